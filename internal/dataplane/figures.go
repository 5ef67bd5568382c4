package dataplane

import (
	"time"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/internal/model"
	"meshroute.io/meshroute/internal/xds"
)

// Figures are what a Dataplane counts of itself at a moment.
type Figures struct {
	// Pods of each gateway that report here, by how far they are.
	Pods map[model.Key]PodFigures
	// Routes, each once: attached to a gateway with all that it asks for; partly,
	// or with a backend that does not resolve; not at all; and held back until a
	// network policy lets its gateway reach its backends. Those that Envoy refuses
	// are among the first three, too.
	Routes RouteFigures
	// Agents that get their configuration here, of each gateway.
	Agents map[model.Key]int
	// Sent is what was sent to agents, by type, and what Envoy refused of it.
	Sent []xds.TypeFigures
}

// PodFigures count pods of a gateway: those that have its newest configuration,
// those that do not yet, and those whose Envoy refuses something.
type PodFigures struct{ Current, Behind, Refusing int }

// RouteFigures count routes.
type RouteFigures struct{ Valid, Partial, Invalid, Held, Refused int }

// Figures counts.
func (d *Dataplane) Figures() Figures {
	d.mu.Lock()
	defer d.mu.Unlock()
	served := d.server.Figures()
	figures := Figures{Pods: make(map[model.Key]PodFigures, len(d.gateways)), Agents: make(map[model.Key]int, len(d.gateways)), Sent: served.Types}
	refused := map[string]bool{}
	for _, route := range d.held {
		refused[route.Key.String()] = true
	}
	for key, gw := range d.gateways {
		var pods PodFigures
		for _, pod := range d.acks(key) {
			for object := range pod.Held {
				refused[object] = true
			}
			switch {
			case pod.Nack != nil:
				pods.Refusing++
			case pod.Sequence >= gw.latest:
				pods.Current++
			default:
				pods.Behind++
			}
		}
		figures.Pods[key], figures.Agents[key] = pods, served.Agents[xds.Gateway(key)]
		figures.Routes.Held += len(gw.held)
	}
	figures.Routes.Refused = len(refused)
	for _, route := range d.result.Routes {
		switch judged(route) {
		case "":
			// All of its parents are another controller's.
		case v1alpha1.ConditionAccepted:
			figures.Routes.Invalid++
		case v1alpha1.ConditionReady:
			figures.Routes.Valid++
		default:
			figures.Routes.Partial++
		}
	}
	return figures
}

// judged is the condition that matters most of those that are not as they should
// be; Ready where all are.
func judged(route *model.RouteStatus) string {
	worst := ""
	for _, parent := range route.Parents {
		if worst == "" {
			worst = v1alpha1.ConditionReady
		}
		for _, condition := range parent.Conditions {
			switch {
			case condition.Type == v1alpha1.ConditionAccepted && condition.Status == "False":
				return v1alpha1.ConditionAccepted
			case condition.Type == v1alpha1.ConditionPartiallyInvalid,
				condition.Type == v1alpha1.ConditionResolvedRefs && condition.Status == "False":
				worst = condition.Type
			}
		}
	}
	return worst
}

// mostUnacknowledged bounds how many changes of a gateway are remembered until
// its pods have them.
const mostUnacknowledged = 1024

// sentChange is a change that pods were told of.
type sentChange struct {
	sequence uint64
	noticed  time.Time
}

// remember notes a change that was sent, to tell how long its pods took to have
// it. Of a manager that does not lead nobody asks how long it took.
func (d *Dataplane) remember(g *gateway, change xds.Change, noticed time.Time) {
	if change.Changed && !noticed.IsZero() && len(g.sent) < mostUnacknowledged && len(d.acks(g.model.Key)) > 0 {
		g.sent = append(g.sent, sentChange{change.Sequence, noticed})
	}
}

// Acknowledged returns how long changes took that every pod of a gateway has by
// now, from when they were noticed; each is told once.
func (d *Dataplane) Acknowledged(key model.Key, now time.Time) []time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	gw := d.gateways[key]
	if gw == nil {
		return nil
	}
	pods := d.acks(key)
	if len(pods) == 0 {
		gw.sent = nil // they went to another replica, or there are none
		return nil
	}
	lowest := pods[0].Sequence
	for _, pod := range pods {
		lowest = min(lowest, pod.Sequence)
	}
	var took []time.Duration
	for len(gw.sent) > 0 && gw.sent[0].sequence <= lowest {
		took = append(took, now.Sub(gw.sent[0].noticed))
		gw.sent = gw.sent[1:]
	}
	return took
}
