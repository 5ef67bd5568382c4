package dataplane

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/internal/model"
	"meshroute.io/meshroute/internal/xds"
)

// A route that Envoy refuses, whatever it says, is held at its last good version,
// and left out where it has none:
//
//   - In each pod the relay finds out whose routes Envoy refuses, keeps these as
//     they were, and tells of it (xds.PodAck.Held). Nobody else waits for that.
//   - The replica that leads hears it, and has written down what was refused and
//     what serves instead (Refusals).
//   - All replicas see what is written (SetRefusal) and build that: pods that come
//     later, and managers, do not try what is known to be refused.
//   - Once the route changes it is tried anew, and what is written goes when every
//     pod has taken it.
//
// Where nobody knows what a route was before, nothing is written: the pods that
// have an earlier version serve it on.

// Refusal is what is known of a version of a ServiceRoute that Envoy refuses.
type Refusal struct {
	Route model.Key
	// UID and Generation of that version.
	UID        string
	Generation int64
	// Message has Envoy's words.
	Message string
	// By tells whose words these are (Dataplane.Version): another version may
	// think otherwise, so it tries again.
	By string
	// LastGood is what gateways serve instead; nil where there is none.
	LastGood *v1alpha1.ServiceRoute
}

// of tells whether it is this version of a route that was refused.
func (r *Refusal) of(uid string, generation int64) bool {
	return r != nil && r.UID == uid && r.Generation == generation
}

func (r *Refusal) equal(other *Refusal) bool {
	return r == other || r != nil && other != nil &&
		r.Route == other.Route && r.UID == other.UID && r.Generation == other.Generation &&
		r.Message == other.Message && r.By == other.By && sameVersion(r.LastGood, other.LastGood)
}

func sameVersion(a, b *v1alpha1.ServiceRoute) bool {
	return a == b || a != nil && b != nil && a.UID == b.UID && a.Generation == b.Generation
}

// instead says what serves.
func (r *Refusal) instead() string {
	if r.LastGood == nil {
		return "it has no version that Envoy takes, so it is left out"
	}
	return fmt.Sprintf("its previous version (generation %d) serves on", r.LastGood.Generation)
}

// insteadInPods is said while nobody knows better.
const insteadInPods = "pods that have an earlier version of it serve that on, others leave it out"

// SetRefusal takes note of what is written down of a route, nil where there is
// nothing. It tells whether that is news.
func (d *Dataplane) SetRefusal(route model.Key, refusal *Refusal) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	before := d.refused[route]
	if before.equal(refusal) {
		return false
	}
	if delete(d.refused, route); refusal != nil {
		d.refused[route] = refusal
	}
	return true
}

// build builds what gateways are to have of what users want, and returns it with
// the objects that it comes from. held are the routes of which this is not the
// version that users want, as that is judged.
func (d *Dataplane) build(in model.Inputs) (wanted model.Inputs, built model.Result, held []*model.RouteStatus) {
	d.mu.Lock()
	refused := map[model.Key]*Refusal{}
	for key, refusal := range d.refused {
		if refusal.By == d.Version {
			refused[key] = refusal
		}
	}
	d.mu.Unlock()
	if len(refused) == 0 {
		return in, d.builder.Build(in), nil
	}
	wanted = in
	wanted.ServiceRoutes = make([]*v1alpha1.ServiceRoute, 0, len(in.ServiceRoutes))
	are := map[model.Key]bool{}
	for _, route := range in.ServiceRoutes {
		key := model.Key{Namespace: route.Namespace, Name: route.Name}
		if refusal := refused[key]; refusal.of(string(route.UID), route.Generation) {
			are[key] = true
			if route = refusal.LastGood; route == nil {
				continue
			}
		}
		wanted.ServiceRoutes = append(wanted.ServiceRoutes, route)
	}
	if len(are) == 0 {
		return in, d.builder.Build(in), nil
	}
	// Either way only these routes are built anew.
	for _, status := range d.builder.Build(in).Routes {
		if are[status.Key] {
			held = append(held, status)
		}
	}
	return wanted, d.builder.Build(wanted), held
}

// replaced is a list of routes with others in the place of those of the same key,
// both sorted.
func replaced(routes, by []*model.RouteStatus) []*model.RouteStatus {
	if len(by) == 0 {
		return routes
	}
	all := make([]*model.RouteStatus, 0, len(routes)+len(by))
	for _, route := range routes {
		for len(by) > 0 && model.CompareKeys(by[0].Key, route.Key) < 0 {
			all, by = append(all, by[0]), by[1:]
		}
		if len(by) > 0 && by[0].Key == route.Key {
			route, by = by[0], by[1:]
		}
		all = append(all, route)
	}
	return append(all, by...)
}

// refusal is what is known against the present version of a route, as built last.
func (d *Dataplane) refusal(route model.Key) *Refusal {
	refusal, status := d.refused[route], d.status(route)
	if status != nil && refusal.of(status.UID, status.Generation) && refusal.By == d.Version {
		return refusal
	}
	return nil
}

// status is how a route was judged; nil where there is none.
func (d *Dataplane) status(route model.Key) *model.RouteStatus {
	at, there := slices.BinarySearchFunc(d.result.Routes, route, func(s *model.RouteStatus, key model.Key) int { return model.CompareKeys(s.Key, key) })
	if !there {
		return nil
	}
	return d.result.Routes[at]
}

// lately returns what connected pods have acknowledged, and what those had that
// have gone since it was last looked.
func (g *gateway) lately(connected []xds.PodAck) []xds.PodAck {
	pods := make(map[string]xds.PodAck, len(g.seen))
	for name, pod := range g.seen {
		pods[name] = pod.ack
	}
	for _, pod := range connected {
		if pods[pod.Pod] = pod; pod.Draining {
			delete(pods, pod.Pod)
		}
	}
	return slices.Collect(maps.Values(pods))
}

// hear takes note of what a gateway's pods have taken.
func (g *gateway) hear(pods []xds.PodAck) {
	g.everywhere, g.holding = 0, map[model.Key]bool{}
	for i, pod := range pods {
		taken := pod.Sequence
		if len(pod.Held) >= xds.MaxWithheld {
			taken = 0 // of what it does not tell nobody knows
		}
		g.heard = max(g.heard, taken)
		if i == 0 || taken < g.everywhere {
			g.everywhere = taken
		}
		for object := range pod.Held {
			namespace, name, _ := strings.Cut(object, "/")
			key := model.Key{Namespace: namespace, Name: name}
			if since, told := g.routes[key]; told && pod.Sequence >= since.sequence {
				g.holding[key] = true
			}
		}
	}
	maps.DeleteFunc(g.former, func(route model.Key, _ *v1alpha1.ServiceRoute) bool {
		return g.routes[route].sequence <= g.everywhere && !g.holding[route]
	})
}

// supersede notes which version of a route is known to be good, now that the
// gateway is told another one than before, which may be nil.
func (g *gateway) supersede(route model.Key, before, after *v1alpha1.ServiceRoute, refused *Refusal) {
	switch {
	case before == nil:
		delete(g.former, route)
	case before.Generation != after.Generation && g.routes[route].sequence <= g.heard && !g.holding[route] && !refused.of(string(before.UID), before.Generation):
		g.former[route] = before
	}
}

// RefusalChanges are what has to be written down of refused routes.
type RefusalChanges struct {
	Write  []*Refusal
	Delete []model.Key
}

// Refusals returns what has to be written down, sorted. It is for the one replica
// that writes, once all pods have had time to report to it.
func (d *Dataplane) Refusals(now time.Time) RefusalChanges {
	d.mu.Lock()
	defer d.mu.Unlock()
	pods := make(map[*gateway][]xds.PodAck, len(d.gateways))
	routes := make(map[model.Key]bool, len(d.refused))
	for key := range d.refused {
		routes[key] = true
	}
	for key, gw := range d.gateways {
		pods[gw], _ = gw.pods(d.acks(key), now)
		gw.hear(pods[gw])
		for route := range gw.holding {
			routes[route] = true
		}
	}
	var changes RefusalChanges
	for route := range routes {
		status, known := d.status(route), d.refused[route]
		if status == nil || known != nil && known.UID != status.UID {
			if known != nil {
				changes.Delete = append(changes.Delete, route)
			}
			continue
		}
		verdict := d.verdict(status, known, pods)
		switch {
		case verdict.message != "" && d.refusal(route) == nil:
			if refusal := d.refusalOf(status, known, verdict); refusal != nil {
				changes.Write = append(changes.Write, refusal)
			}
		case known != nil && verdict.everywhere:
			changes.Delete = append(changes.Delete, route)
		}
	}
	slices.SortFunc(changes.Write, func(a, b *Refusal) int { return model.CompareKeys(a.Route, b.Route) })
	slices.SortFunc(changes.Delete, model.CompareKeys)
	return changes
}

// verdict is what pods say about the present version of a route.
type verdict struct {
	// message has Envoy's words; empty where none refuses it.
	message string
	// somewhere: a pod has taken it; everywhere: all have, and there are some.
	somewhere, everywhere bool
	// open: one has not said anything yet.
	open bool
	// lastGood is the version before it; nil where none is known.
	lastGood *v1alpha1.ServiceRoute
}

func (d *Dataplane) verdict(route *model.RouteStatus, known *Refusal, pods map[*gateway][]xds.PodAck) verdict {
	key := route.Key
	all := verdict{everywhere: true}
	for _, gateway := range slices.SortedFunc(maps.Keys(d.gateways), model.CompareKeys) {
		gw := d.gateways[gateway]
		since, told := gw.routes[key]
		if !told || !gw.current {
			continue
		}
		if is := gw.released[key]; is == nil || string(is.UID) != route.UID || is.Generation != route.Generation {
			all.everywhere, all.open = false, true // not told of it yet
			continue
		}
		if good := gw.former[key]; good != nil && (all.lastGood == nil || good.Generation > all.lastGood.Generation) {
			all.lastGood = good
		}
		for _, pod := range pods[gw] {
			switch held := pod.Held[key.String()]; {
			case pod.Sequence >= since.sequence && held != "":
				all.everywhere = false
				all.message = cmp.Or(all.message, held)
			case pod.Sequence < since.sequence || len(pod.Held) >= xds.MaxWithheld:
				all.everywhere, all.open = false, true
			default:
				all.somewhere = true
			}
		}
	}
	all.everywhere = all.everywhere && all.somewhere
	if all.lastGood == nil && known != nil {
		all.lastGood = known.LastGood
	}
	if all.lastGood != nil && all.lastGood.Generation >= route.Generation {
		all.lastGood = nil
	}
	return all
}

// refusalOf is what to write down of a route; nil where it is not known what may
// serve instead.
func (d *Dataplane) refusalOf(route *model.RouteStatus, known *Refusal, of verdict) *Refusal {
	if of.lastGood == nil {
		// It is left out only where no pod can have any version of it: one that
		// an API server counts as the first, or that had none before.
		never := route.UID != "" && route.Generation == 1 || known != nil && known.LastGood == nil
		if !never || of.somewhere || of.open {
			return nil
		}
	}
	return &Refusal{
		Route: route.Key, UID: route.UID, Generation: route.Generation,
		Message: of.message, By: d.Version, LastGood: of.lastGood,
	}
}
