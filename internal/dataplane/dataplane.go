// Package dataplane joins the pure parts into the one way that configuration
// takes, for the operator in a cluster and for standalone mode alike:
//
//	Inputs ─► model.Build ─► envoy.Translate ─► xds.Server ─► agents
//	EndpointSlices ─────────► envoy.Endpoints ─┘      │
//	model.Observe ◄─ Result, endpoints, acknowledgements
//
// It holds what was built last; who reads the objects and who writes the
// statuses is the caller's business.
package dataplane

import (
	"cmp"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
	discoveryv1 "k8s.io/api/discovery/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/internal/envoy"
	"meshroute.io/meshroute/internal/model"
	"meshroute.io/meshroute/internal/report/reportv1"
	"meshroute.io/meshroute/internal/xds"
)

// Dataplane is what all gateways were last told. Its methods may be called from
// several goroutines.
type Dataplane struct {
	server *xds.Server

	// building is held while something is built, mu while it is put in force:
	// endpoints and statuses need not wait for the first.
	building sync.Mutex
	builder  model.Builder

	mu       sync.Mutex
	result   model.Result
	gateways map[model.Key]*gateway
	// endpoints by cluster, with the resource made of them. Clusters of the
	// same name are the same in every gateway.
	endpoints map[string]*clusterEndpoints
	// uses tells which clusters a Service's endpoints go to.
	uses map[model.Key][]model.Cluster
	// referred are all Services that routes refer to, be they there or not.
	referred map[model.Key]bool

	// names of network policies; nil where there are none.
	names *PolicyNames
	// policies in the cluster, and what of them is unwanted.
	policies  map[model.Key]observedPolicy
	lingering map[ruleOf]lingering
	// refusals are why the API server does not take some of them.
	refusals map[model.Key]string
	// built: the first build was sent.
	built bool
}

type clusterEndpoints struct {
	cluster  model.Cluster
	set      model.EndpointSet
	resource proto.Message
}

// gateway remembers with which sequence of the xDS server a gateway, and each
// of its routes, last changed.
type gateway struct {
	// model is what is wanted of it, as built last; told is what its pods were
	// told, which differs while routes wait for network policies.
	model, told model.Gateway
	peer        model.Peer // its pods
	reach       map[string]*reach
	since       uint64
	latest      uint64 // sequence, endpoints included
	routes      map[model.Key]routeSince
	policies    map[model.Key]policySince
	// released are the gateway's routes in the version that it was told; held
	// are those of which there is a newer one that waits for a network policy.
	released map[model.Key]*v1alpha1.ServiceRoute
	held     map[model.Key]bool

	translator envoy.Translator
	// seen are the pods that are, or were not long ago, connected.
	seen map[string]seenPod
}

type seenPod struct {
	ack  xds.PodAck
	last time.Time
}

// absence is how long a pod may be away before it no longer counts. An agent
// that restarts, or changes to another replica, is back within a second or two,
// and its Envoy keeps serving meanwhile.
const absence = 15 * time.Second

// pods returns what connected pods have acknowledged, and what those had that
// have just gone; away: there are some of those. A pod that drains is on its way
// out: it no longer counts.
func (g *gateway) pods(connected []xds.PodAck, now time.Time) (pods []xds.PodAck, away bool) {
	for _, ack := range connected {
		if ack.Draining {
			delete(g.seen, ack.Pod)
		} else {
			g.seen[ack.Pod] = seenPod{ack: ack, last: now}
		}
	}
	pods = make([]xds.PodAck, 0, len(g.seen))
	for name, pod := range g.seen {
		if now.Sub(pod.last) > absence {
			delete(g.seen, name)
			continue
		}
		pods = append(pods, pod.ack)
		away = away || pod.last != now
	}
	// Which refusal is told must not change from one look to the next.
	slices.SortFunc(pods, func(a, b xds.PodAck) int { return strings.Compare(a.Pod, b.Pod) })
	return pods, away
}

type routeSince struct {
	status   *model.RouteStatus
	sequence uint64
}

// New returns a Dataplane that tells server's agents what they are to do. names
// is nil where no network policies are made.
func New(server *xds.Server, names *PolicyNames) *Dataplane {
	return &Dataplane{
		server:    server,
		gateways:  map[model.Key]*gateway{},
		endpoints: map[string]*clusterEndpoints{},
		uses:      map[model.Key][]model.Cluster{},
		names:     names,
		policies:  map[model.Key]observedPolicy{},
		refusals:  map[model.Key]string{},
	}
}

// Configure builds everything anew and sends each gateway what has changed.
// slicesOf returns the EndpointSlices of a Service; it is asked only for
// Services that come into use: what changes later is told by SetEndpoints.
// The first build is sent as it is: what network policies have to wait for is
// not known before.
func (d *Dataplane) Configure(in model.Inputs, now time.Time, slicesOf func(service model.Key) []*discoveryv1.EndpointSlice) {
	d.building.Lock()
	defer d.building.Unlock()
	result := d.builder.Build(in)

	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget(in, result.Foreign)
	for _, gw := range result.Gateways {
		known := d.gateways[gw.Key]
		if known == nil {
			known = &gateway{seen: map[string]seenPod{}, reach: map[string]*reach{}}
			d.gateways[gw.Key] = known
		}
		known.model, known.told = gw, gw
		if d.names != nil {
			known.peer = d.names.Pods(gw)
		}
	}
	d.setUses(slicesOf)
	waiting := false
	for _, gw := range result.Gateways {
		known := d.gateways[gw.Key]
		d.setReaches(known, gw, now)
		if known.hold(result.Routes, in.ServiceRoutes, !d.built); len(known.held) > 0 {
			known.told, waiting = known.withoutHeld(&d.builder, in), true
		}
	}
	if waiting {
		d.setUses(slicesOf) // an earlier version of a route may lead elsewhere
	}
	for _, gw := range result.Gateways {
		known := d.gateways[gw.Key]
		if len(known.held) > 0 {
			d.setReaches(known, known.told, now)
		}
		known.pruneReaches()
		resources := known.translator.Translate(known.told)
		assignments := make(map[string]proto.Message, len(known.told.Clusters))
		for _, cluster := range known.told.Clusters {
			if cluster.DNSName == "" {
				assignments[cluster.Name] = known.reach[cluster.Name].resource
			}
		}
		resources[resource.EndpointType] = assignments
		change := d.server.Set(xds.Gateway(gw.Key), resources)
		known.since, known.latest = change.Sequence, change.Sequence
		known.note(gw.Key, result.Routes, change.Sequence)
		known.notePolicies(gw.Key, result.HealthPolicies, change.Sequence)
	}
	d.built = true
	d.result = result
	d.referred = make(map[model.Key]bool, len(result.Routes))
	for _, route := range result.Routes {
		for _, backend := range route.Backends {
			d.referred[backend.Service] = true
		}
	}
}

// setReaches brings up to date how a gateway gets to the clusters of what it is
// to be told.
func (d *Dataplane) setReaches(known *gateway, of model.Gateway, now time.Time) {
	services := make(map[model.Key]model.BackendService, len(of.Services))
	for _, service := range of.Services {
		services[service.Key] = service
	}
	for _, cluster := range of.Clusters {
		d.setReach(known, cluster, services[cluster.Service], now, !d.built)
	}
}

// pruneReaches forgets the clusters that are neither wanted nor told.
func (g *gateway) pruneReaches() {
	const wanted, told = 1, 2
	uses := make(map[string]int, len(g.reach))
	for _, cluster := range g.model.Clusters {
		uses[cluster.Name] = wanted
	}
	for _, cluster := range g.told.Clusters {
		uses[cluster.Name] |= told
	}
	for name, r := range g.reach {
		if uses[name] == 0 {
			delete(g.reach, name)
		}
		r.told = uses[name]&told != 0
	}
}

// hold finds out which routes have to wait: they lead to a cluster that no policy
// lets the gateway reach yet, and it was not told of this version of them before.
// Of the others it notes that they are released; none waits where everything is.
func (g *gateway) hold(routes []*model.RouteStatus, sources []*v1alpha1.ServiceRoute, everything bool) {
	newest := make(map[model.Key]*v1alpha1.ServiceRoute, len(sources))
	for _, source := range sources {
		newest[model.Key{Namespace: source.Namespace, Name: source.Name}] = source
	}
	released := make(map[model.Key]*v1alpha1.ServiceRoute, len(g.released))
	g.held = nil
	for _, route := range routes {
		if !route.AttachedTo(g.model.Key) {
			continue
		}
		source, before := newest[route.Key], g.released[route.Key]
		if before != nil && before.UID != source.UID {
			before = nil // another of the same name
		}
		known := before != nil && before.Generation == source.Generation
		if everything || known || g.waitsFor(route.Backends) == nil {
			released[route.Key] = source
			continue
		}
		if g.held == nil {
			g.held = map[model.Key]bool{}
		}
		g.held[route.Key] = true
		if before != nil {
			released[route.Key] = before
		}
	}
	g.released = released
}

// waitsFor returns what requests to backends wait for, or nil.
func (g *gateway) waitsFor(backends []model.BackendStatus) *reach {
	for _, backend := range backends {
		if backend.Cluster == nil || backend.Idle {
			continue
		}
		if r := g.reach[backend.Cluster.Name]; r != nil && r.pending() {
			return r
		}
	}
	return nil
}

// withoutHeld is the gateway with what is released of the routes that wait.
func (g *gateway) withoutHeld(builder *model.Builder, in model.Inputs) model.Gateway {
	routes := make([]*v1alpha1.ServiceRoute, 0, len(in.ServiceRoutes))
	for _, route := range in.ServiceRoutes {
		key := model.Key{Namespace: route.Namespace, Name: route.Name}
		if g.held[key] {
			if route = g.released[key]; route == nil {
				continue
			}
		}
		routes = append(routes, route)
	}
	in.ServiceRoutes = routes
	for _, gw := range builder.Build(in).Gateways {
		if gw.Key == g.model.Key {
			return gw
		}
	}
	return g.model // no route makes a gateway invalid
}

// setUses finds out which Services are in use, and reads the endpoints of those
// that were not before, or not by this name of their port.
func (d *Dataplane) setUses(slicesOf func(model.Key) []*discoveryv1.EndpointSlice) {
	uses := make(map[model.Key][]model.Cluster, len(d.uses))
	endpoints := make(map[string]*clusterEndpoints, len(d.endpoints))
	use := func(clusters []model.Cluster) {
		for _, cluster := range clusters {
			if _, seen := endpoints[cluster.Name]; seen || cluster.DNSName != "" {
				continue
			}
			known, ok := d.endpoints[cluster.Name]
			if !ok || known.cluster != cluster {
				known = newClusterEndpoints(cluster, slicesOf(cluster.Service))
			}
			endpoints[cluster.Name] = known
			uses[cluster.Service] = append(uses[cluster.Service], cluster)
		}
	}
	// Where one has an older idea of a cluster than another, the newest counts.
	for _, newest := range []bool{true, false} {
		for _, gw := range d.gateways {
			if newest {
				use(gw.model.Clusters)
			} else {
				use(gw.told.Clusters)
			}
		}
	}
	d.uses, d.endpoints = uses, endpoints
}

func newClusterEndpoints(cluster model.Cluster, found []*discoveryv1.EndpointSlice) *clusterEndpoints {
	set := model.Endpoints(cluster, found)
	return &clusterEndpoints{cluster: cluster, set: set, resource: envoy.Endpoints(cluster, set.Serving)}
}

// note remembers the sequence for those routes that changed. A route that did
// not keeps its own, so that it stays programmed while its neighbours' changes
// are still on the way.
func (g *gateway) note(key model.Key, routes []*model.RouteStatus, sequence uint64) {
	noted := make(map[model.Key]routeSince, len(g.routes))
	for _, route := range routes {
		if !route.AttachedTo(key) {
			continue
		}
		before := g.routes[route.Key]
		if !g.held[route.Key] && (before.status == nil || !before.status.SameConfiguration(route)) {
			before = routeSince{status: route, sequence: sequence}
		}
		noted[route.Key] = before
	}
	g.routes = noted
}

// forget drops gateways whose Gateway object is gone, or is another controller's
// now. One that is merely invalid at the moment stays, with the routes that it
// has, and goes on hearing of endpoints.
func (d *Dataplane) forget(in model.Inputs, foreign []model.Key) {
	wanted := make(map[model.Key]bool, len(in.Gateways))
	for _, gw := range in.Gateways {
		wanted[model.Key{Namespace: gw.Namespace, Name: gw.Name}] = true
	}
	for _, key := range foreign {
		delete(wanted, key)
	}
	for key := range d.gateways {
		if !wanted[key] {
			d.server.Delete(xds.Gateway(key))
			delete(d.gateways, key)
		}
	}
}

// SetEndpoints takes the EndpointSlices of a Service and sends the endpoints
// that changed to the gateways that use it, as far as network policies let these
// reach them; nothing else is built anew. It tells whether anything changed.
func (d *Dataplane) SetEndpoints(service model.Key, found []*discoveryv1.EndpointSlice, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	changed := false
	for _, cluster := range d.uses[service] {
		before, after := d.endpoints[cluster.Name], newClusterEndpoints(cluster, found)
		if reflect.DeepEqual(before.set, after.set) {
			continue
		}
		changed = true
		if proto.Equal(before.resource, after.resource) {
			after.resource = before.resource // only endpoints that get no requests changed
		}
		d.endpoints[cluster.Name] = after
		for key, gw := range d.gateways {
			r := gw.reach[cluster.Name]
			if r == nil {
				continue
			}
			had := r.resource
			if d.setReach(gw, cluster, r.service, now, false); r.told && r.resource != had {
				gw.latest = d.server.Update(xds.Gateway(key), resource.EndpointType,
					map[string]proto.Message{cluster.Name: r.resource}).Sequence
			}
		}
	}
	return changed
}

// Refers tells whether a route refers to a Service, be it there or not.
func (d *Dataplane) Refers(service model.Key) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.referred[service]
}

// Result returns what was built last. It must not be changed.
func (d *Dataplane) Result() model.Result {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.result
}

// Observe returns the status of every object as of now. workloads are the objects
// that run each gateway. Where it counts pods that have gone, recheck
// is when they no longer count, if they do not come back; otherwise 0.
func (d *Dataplane) Observe(now time.Time, workloads map[model.Key]model.Workload) (observed model.Observed, recheck time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	acks := make(map[model.Key][]xds.PodAck, len(d.gateways))
	waiting := make(map[model.Key]map[model.Key]string, len(d.gateways))
	for key, gw := range d.gateways {
		waiting[key] = d.waiting(gw, now)
		pods, away := gw.pods(d.server.Acks(xds.Gateway(key)).Pods, now)
		acks[key] = pods
		if away {
			recheck = absence
		}
	}
	endpoints := make(map[string]model.EndpointSet, len(d.endpoints))
	for name, known := range d.endpoints {
		endpoints[name] = known.set
	}
	observed = model.Observe(d.result, model.Observations{
		Endpoints: endpoints,
		Workloads: workloads,
		GatewayProgress: func(key model.Key) model.Progress {
			if gw := d.gateways[key]; gw != nil {
				return progress(acks[key], gw.since)
			}
			return model.Progress{}
		},
		RouteProgress: func(key, route model.Key) model.Progress {
			if gw := d.gateways[key]; gw != nil {
				progress := progress(acks[key], gw.routes[route].sequence)
				if progress.Waiting = waiting[key][route]; progress.Waiting != "" {
					progress.Acknowledged = 0
				}
				return progress
			}
			return model.Progress{}
		},
		PolicyProgress: func(key, policy model.Key) model.Progress {
			if gw := d.gateways[key]; gw != nil {
				return progress(acks[key], gw.policies[policy].sequence)
			}
			return model.Progress{}
		},
	})
	return observed, recheck
}

// progress counts the pods that have acknowledged a sequence.
func progress(pods []xds.PodAck, since uint64) model.Progress {
	progress := model.Progress{Pods: len(pods)}
	for _, pod := range pods {
		switch pod.NetworkPolicy {
		case reportv1.NetworkPolicy_NETWORK_POLICY_ENFORCED:
			progress.Isolated++
		case reportv1.NetworkPolicy_NETWORK_POLICY_NOT_ENFORCED:
			progress.Open = cmp.Or(progress.Open, pod.Pod)
		}
		switch {
		case pod.Sequence >= since:
			progress.Acknowledged++
		case pod.Nack != nil && progress.Refused == "":
			progress.Refused = pod.Nack.Message
		}
	}
	return progress
}
