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
	"maps"
	"net/netip"
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
	// Version tells the version of this operator and of the gateways' Envoy. Set it
	// before the first Configure.
	Version string

	server *xds.Server
	// acks is what a gateway's pods have acknowledged.
	acks func(gateway model.Key) []xds.PodAck

	// building is held while something is built, mu while it is put in force:
	// endpoints and statuses need not wait for the first.
	building sync.Mutex
	builder  model.Builder

	mu     sync.Mutex
	result model.Result
	// routes are what gateways are to have, held those of the result of which that
	// is another version, or nothing, because Envoy refuses what users want.
	routes, held []*model.RouteStatus

	gateways map[model.Key]*gateway
	// endpoints by cluster, with the resource made of them. Clusters of the
	// same name are the same in every gateway.
	endpoints map[string]*clusterEndpoints
	// uses tells which clusters a Service's endpoints go to.
	uses map[model.Key][]model.Cluster
	// probes are what the pods of Services in use say, as far as that is known,
	// and derived what follows from it, by cluster.
	probes  map[model.Key]*Probes
	derived map[string]derived
	// referred are all Services that routes refer to, be they there or not, with
	// how often they do.
	referred map[model.Key]int

	// names of network policies; nil where there are none.
	names *PolicyNames
	// policies in the cluster, and what of them is unwanted.
	policies  map[model.Key]observedPolicy
	lingering map[ruleOf]lingering
	// through are the ways that lead through a policy, stale the policies that may
	// not be as wanted any more; anyStale: any may not.
	through  map[model.Key][]*reach
	stale    map[model.Key]struct{}
	anyStale bool
	// refusals are why the API server does not take some of them.
	refusals map[model.Key]string
	// refused is what is written down of routes that Envoy refuses.
	refused map[model.Key]*Refusal
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
	blocked     map[string]*reach // those of them that withhold something
	// current: it was among the gateways of the last build.
	current bool
	// moved: how it gets to its clusters is not what the server was told.
	moved    bool
	since    uint64
	latest   uint64       // sequence, endpoints included
	sent     []sentChange // that not all pods are known to have
	routes   map[model.Key]routeSince
	policies map[model.Key]policySince
	// declared are the checks that HealthPolicies declare of what it was told.
	declared map[string]model.Health
	// guarded is what its policies depend on but for its clusters, as it was when
	// they were looked at last.
	guarded guarded
	// released are the gateway's routes in the version that it was told; held
	// are those of which there is a newer one that waits for a network policy.
	released map[model.Key]*v1alpha1.ServiceRoute
	held     map[model.Key]bool
	// former are the versions that are known to be good of routes of which it was
	// told another since, as long as not every pod has taken that.
	former map[model.Key]*v1alpha1.ServiceRoute
	// heard is the newest sequence that any pod had, everywhere the newest that
	// all have; holding are the routes that any refuses as they were told.
	heard, everywhere uint64
	holding           map[model.Key]bool

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

// routeSince is a route as it is wanted and as pods were told of it, and since
// which sequence.
type routeSince struct {
	wanted, told *model.RouteStatus
	sequence     uint64
}

// New returns a Dataplane that tells server's agents what they are to do. names
// is nil where no network policies are made.
func New(server *xds.Server, names *PolicyNames) *Dataplane {
	return &Dataplane{
		server:    server,
		acks:      func(gateway model.Key) []xds.PodAck { return server.Acks(xds.Gateway(gateway)).Pods },
		gateways:  map[model.Key]*gateway{},
		endpoints: map[string]*clusterEndpoints{},
		uses:      map[model.Key][]model.Cluster{},
		probes:    map[model.Key]*Probes{},
		derived:   map[string]derived{},
		names:     names,
		policies:  map[model.Key]observedPolicy{},
		through:   map[model.Key][]*reach{},
		stale:     map[model.Key]struct{}{},
		anyStale:  true,
		refusals:  map[model.Key]string{},
		referred:  map[model.Key]int{},
		refused:   map[model.Key]*Refusal{},
	}
}

// Configure builds what has changed and sends it to each gateway. slicesOf returns
// the EndpointSlices of a Service; it is asked only for Services that come into
// use: what changes later is told by SetEndpoints. The first build is sent as it
// is: what network policies have to wait for is not known before.
// noticed is when the first of the changes in it came to be known.
func (d *Dataplane) Configure(in model.Inputs, noticed time.Time, slicesOf func(service model.Key) []*discoveryv1.EndpointSlice) {
	d.building.Lock()
	defer d.building.Unlock()
	in, result, held := d.build(in)

	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget(in, result.Foreign)
	news := newsOf(d.routes, result.Routes)
	changes := make([]*change, 0, len(result.Gateways))
	for _, gw := range result.Gateways {
		known := d.gateways[gw.Key]
		if known == nil {
			known = &gateway{
				seen: map[string]seenPod{}, reach: map[string]*reach{}, blocked: map[string]*reach{},
				former: map[model.Key]*v1alpha1.ServiceRoute{},
			}
			d.gateways[gw.Key] = known
		}
		c := &change{gateway: known, was: known.model, had: known.told, waited: known.held, news: news}
		before := c.had
		if !known.current {
			// Endpoints may have been read anew for others meanwhile.
			c.news, before = known.restart(result.Routes), model.Gateway{}
		}
		known.model, known.told = gw, gw
		if d.names != nil {
			known.peer = d.names.Pods(gw)
		}
		d.follow(known, before, gw, slicesOf)
		known.hear(known.lately(d.acks(gw.Key)))
		known.hold(&d.builder, c.news, result.Routes, d.refused, !d.built)
		changes = append(changes, c)
	}
	for _, known := range d.gateways {
		known.current = false
	}
	for _, c := range changes {
		if known := c.gateway; len(known.held) > 0 {
			known.told = known.withoutHeld(&d.builder, in)
			// An earlier version of a route may lead elsewhere.
			d.follow(known, known.model, known.told, slicesOf)
		}
		d.send(c, result.HealthPolicies, noticed)
	}
	d.built = true
	d.result, d.routes, d.held = result, result.Routes, held
	d.result.Routes = replaced(result.Routes, held)
	for _, change := range news {
		change.count(d.referred)
	}
}

// change is what becomes of a gateway with a build.
type change struct {
	*gateway

	was, had model.Gateway      // model and told before
	waited   map[model.Key]bool // held before
	news     []routeNews
}

// send tells a gateway's pods what is new.
func (d *Dataplane) send(c *change, policies []model.PolicyStatus, noticed time.Time) {
	known := c.gateway
	d.leave(known, c.was.Clusters)
	d.leave(known, c.had.Clusters)
	known.declared = known.told.Health
	known.told.Health = d.health(known)
	resources := known.translator.Translate(known.told)
	if known.moved {
		assignments := make(map[string]proto.Message, len(known.told.Clusters))
		for _, cluster := range known.told.Clusters {
			if cluster.DNSName == "" {
				assignments[cluster.Name] = known.reach[cluster.Name].resource
			}
		}
		resources[resource.EndpointType] = assignments
	}
	known.moved = false
	change := d.server.Set(xds.Gateway(known.model.Key), resources)
	known.since, known.latest, known.current = change.Sequence, change.Sequence, true
	d.remember(known, change, noticed)
	known.note(c.news, c.waited, change.Sequence)
	known.notePolicies(known.model.Key, policies, change.Sequence)
}

// routeNews is a route that is new, gone (after is nil) or not what it was.
type routeNews struct{ before, after *model.RouteStatus }

func (n routeNews) key() model.Key {
	if n.after != nil {
		return n.after.Key
	}
	return n.before.Key
}

// count brings up to date how many backends of routes a Service is.
func (n routeNews) count(referred map[model.Key]int) {
	if n.after != nil {
		for _, backend := range n.after.Backends {
			referred[backend.Service]++
		}
	}
	if n.before != nil {
		for _, backend := range n.before.Backends {
			if referred[backend.Service]--; referred[backend.Service] == 0 {
				delete(referred, backend.Service)
			}
		}
	}
}

// newsOf compares the routes of two results, both sorted by key.
func newsOf(before, after []*model.RouteStatus) []routeNews {
	var news []routeNews
	for len(before) > 0 && len(after) > 0 {
		switch order := model.CompareKeys(before[0].Key, after[0].Key); {
		case before[0] == after[0]:
			before, after = before[1:], after[1:]
		case order < 0:
			news = append(news, routeNews{before: before[0]})
			before = before[1:]
		case order > 0:
			news = append(news, routeNews{after: after[0]})
			after = after[1:]
		default:
			news = append(news, routeNews{before[0], after[0]})
			before, after = before[1:], after[1:]
		}
	}
	for _, gone := range before {
		news = append(news, routeNews{before: gone})
	}
	for _, come := range after {
		news = append(news, routeNews{after: come})
	}
	return news
}

// restart makes all routes news to a gateway that was not among those of the last
// build, and forgets those that went meanwhile.
func (g *gateway) restart(routes []*model.RouteStatus) []routeNews {
	g.moved = true
	there := make(map[model.Key]bool, len(routes))
	for _, route := range routes {
		there[route.Key] = true
	}
	gone := func(key model.Key) bool { return !there[key] }
	maps.DeleteFunc(g.released, func(key model.Key, _ *v1alpha1.ServiceRoute) bool { return gone(key) })
	maps.DeleteFunc(g.former, func(key model.Key, _ *v1alpha1.ServiceRoute) bool { return gone(key) })
	maps.DeleteFunc(g.routes, func(key model.Key, _ routeSince) bool { return gone(key) })
	maps.DeleteFunc(g.held, func(key model.Key, _ bool) bool { return gone(key) })
	return newsOf(nil, routes)
}

// follow brings up to date how a gateway gets to its clusters, from when these
// were what before has: what is new, what is another than it was, and what waits
// for a policy.
func (d *Dataplane) follow(known *gateway, before, after model.Gateway, slicesOf func(model.Key) []*discoveryv1.EndpointSlice) {
	services := make(map[model.Key]model.BackendService)
	changed := make(map[string]model.Cluster)
	differing(before.Services, after.Services, func(s model.BackendService) model.Key { return s.Key }, model.CompareKeys, func(service model.BackendService) {
		for _, cluster := range d.uses[service.Key] {
			changed[cluster.Name] = cluster
		}
	})
	differing(before.Clusters, after.Clusters, func(c model.Cluster) string { return c.Name }, strings.Compare, func(cluster model.Cluster) {
		changed[cluster.Name] = cluster
	})
	for name, r := range known.blocked {
		if _, is := changed[name]; !is {
			changed[name] = r.cluster
		}
	}
	for name := range changed {
		at, wanted := after.Cluster(name)
		if !wanted {
			continue // another gateway's
		}
		d.use(at, slicesOf)
		if _, read := services[at.Service]; !read {
			services[at.Service], _ = after.Service(at.Service)
		}
		d.setReach(known, at, services[at.Service], !d.built)
		known.moved = true
	}
}

// differing calls differs for what is in after and not the same in before, both
// sorted.
func differing[K any, V comparable](before, after []V, key func(V) K, compare func(a, b K) int, differs func(V)) {
	for _, value := range after {
		for len(before) > 0 && compare(key(before[0]), key(value)) < 0 {
			before = before[1:]
		}
		if len(before) == 0 || before[0] != value {
			differs(value)
		}
	}
}

// leave forgets the clusters of those that a gateway had which it neither is to
// have nor has.
func (d *Dataplane) leave(known *gateway, had []model.Cluster) {
	for _, cluster := range had {
		if known.needs(cluster.Name) {
			continue
		}
		if r := known.reach[cluster.Name]; r != nil {
			known.moved = true
			d.leaveThrough(r)
		}
		delete(known.reach, cluster.Name)
		delete(known.blocked, cluster.Name)
		d.disuse(cluster)
	}
}

// needs tells whether a gateway is to have a cluster, or has it.
func (g *gateway) needs(cluster string) bool {
	_, wanted := g.model.Cluster(cluster)
	return wanted || g.tells(cluster)
}

// tells is whether its pods were told of a cluster.
func (g *gateway) tells(cluster string) bool {
	_, told := g.told.Cluster(cluster)
	return told
}

// use sees to it that the endpoints of a cluster are known: they are read where it
// was not in use before, or not by this name of its port: that follows from the Service
// alone, so it is the same for an earlier version of a route.
func (d *Dataplane) use(cluster model.Cluster, slicesOf func(model.Key) []*discoveryv1.EndpointSlice) {
	known, in := d.endpoints[cluster.Name]
	if cluster.DNSName != "" || in && known.cluster == cluster {
		return
	}
	d.endpoints[cluster.Name] = newClusterEndpoints(cluster, slicesOf(cluster.Service))
	d.uses[cluster.Service] = append(without(d.uses[cluster.Service], cluster.Name), cluster)
}

// disuse forgets the endpoints of a cluster that no gateway needs.
func (d *Dataplane) disuse(cluster model.Cluster) {
	for _, gw := range d.gateways {
		if gw.needs(cluster.Name) {
			return
		}
	}
	delete(d.endpoints, cluster.Name)
	delete(d.derived, cluster.Name)
	if d.uses[cluster.Service] = without(d.uses[cluster.Service], cluster.Name); len(d.uses[cluster.Service]) == 0 {
		delete(d.uses, cluster.Service)
		delete(d.probes, cluster.Service)
	}
}

func without(clusters []model.Cluster, name string) []model.Cluster {
	return slices.DeleteFunc(clusters, func(c model.Cluster) bool { return c.Name == name })
}

func newClusterEndpoints(cluster model.Cluster, found []*discoveryv1.EndpointSlice) *clusterEndpoints {
	set := model.Endpoints(cluster, found)
	return &clusterEndpoints{cluster: cluster, set: set, resource: envoy.Endpoints(cluster, set.Serving)}
}

// hold finds out which routes have to wait: they lead to a cluster that no policy
// lets the gateway reach yet, and it was not told of this version of them before.
// Of the others it notes that they are released; none waits where everything is.
func (g *gateway) hold(objects *model.Builder, news []routeNews, routes []*model.RouteStatus, refused map[model.Key]*Refusal, everything bool) {
	waited := g.held
	g.held = nil
	if g.released == nil {
		g.released = map[model.Key]*v1alpha1.ServiceRoute{}
	}
	for _, change := range news {
		g.holdRoute(objects, change.key(), change.after, refused, everything)
	}
	for key := range waited {
		at, there := slices.BinarySearchFunc(routes, key, func(r *model.RouteStatus, key model.Key) int { return model.CompareKeys(r.Key, key) })
		if there && !g.held[key] {
			g.holdRoute(objects, key, routes[at], refused, everything)
		}
	}
}

func (g *gateway) holdRoute(objects *model.Builder, key model.Key, route *model.RouteStatus, refused map[model.Key]*Refusal, everything bool) {
	if route == nil || !route.AttachedTo(g.model.Key) {
		delete(g.released, key)
		delete(g.former, key)
		return
	}
	source, before := objects.ServiceRoute(key), g.released[key]
	if before != nil && before.UID != source.UID {
		before = nil // another of the same name
	}
	known := before != nil && before.Generation == source.Generation
	if everything || known || g.waitsFor(route.Backends) == nil {
		g.supersede(key, before, source, refused[key])
		g.released[key] = source
		return
	}
	if g.held == nil {
		g.held = map[model.Key]bool{}
	}
	g.held[key] = true
	if before == nil {
		delete(g.released, key)
	}
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

// withoutHeld is the gateway with what is released of the routes that wait. The
// builder turns back with the next build: either way only these routes are built
// anew.
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

// note remembers the sequence for those routes that changed, or that waited until
// now. A route that did not keeps its own, so that it stays programmed while its
// neighbours' changes are still on the way.
func (g *gateway) note(news []routeNews, waited map[model.Key]bool, sequence uint64) {
	if g.routes == nil {
		g.routes = map[model.Key]routeSince{}
	}
	for _, change := range news {
		route := change.after
		if route == nil || !route.AttachedTo(g.model.Key) {
			delete(g.routes, change.key())
			continue
		}
		before := g.routes[route.Key]
		if before.wanted = route; !g.held[route.Key] && (before.told == nil || !before.told.SameConfiguration(route)) {
			before.told, before.sequence = route, sequence
		}
		g.routes[route.Key] = before
	}
	for key := range waited {
		if route, there := g.routes[key]; there && !g.held[key] && (route.told == nil || !route.told.SameConfiguration(route.wanted)) {
			route.told, route.sequence = route.wanted, sequence
			g.routes[key] = route
		}
	}
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
			gone := d.gateways[key]
			for _, r := range gone.reach {
				d.leaveThrough(r)
			}
			d.anyStale = true
			d.server.Delete(xds.Gateway(key))
			delete(d.gateways, key)
			for _, had := range [][]model.Cluster{gone.model.Clusters, gone.told.Clusters} {
				for _, cluster := range had {
					d.disuse(cluster)
				}
			}
		}
	}
}

// SetEndpoints takes the EndpointSlices of a Service and sends the endpoints
// that changed to the gateways that use it, as far as network policies let these
// reach them; nothing else is built anew. noticed is when they came to be known. It
// tells whether anything changed.
func (d *Dataplane) SetEndpoints(service model.Key, found []*discoveryv1.EndpointSlice, noticed time.Time) bool {
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
			if d.setReach(gw, cluster, r.service, false); gw.tells(cluster.Name) && r.resource != had {
				change := d.server.Update(xds.Gateway(key), resource.EndpointType, map[string]proto.Message{cluster.Name: r.resource})
				gw.latest = change.Sequence
				d.remember(gw, change, noticed)
			}
		}
	}
	if changed && slices.ContainsFunc(d.uses[service], func(c model.Cluster) bool { return c.TargetPort == 0 }) {
		d.sendHealth() // which port the pods have, may be known now
	}
	return changed
}

// Refers tells whether a route refers to a Service, be it there or not.
func (d *Dataplane) Refers(service model.Key) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.referred[service] > 0 || slices.ContainsFunc(d.held, func(route *model.RouteStatus) bool {
		return slices.ContainsFunc(route.Backends, func(b model.BackendStatus) bool { return b.Service == service })
	})
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
	result, o, recheck := d.observations(now)
	o.Workloads = workloads
	// Thousands of statuses take a while: no change of a route waits for them.
	return model.Observe(result, o), recheck
}

// seenGateway is how far a gateway is, at some moment.
type seenGateway struct {
	pods     []xds.PodAck
	since    uint64
	routes   map[model.Key]routeSince
	policies map[model.Key]policySince
	waiting  map[model.Key]string
	health   map[string]model.Health
	// unhealthy are endpoints that fail health checks, by cluster, each with how
	// many pods find so.
	unhealthy map[string]map[netip.AddrPort]int
}

func unhealthy(pods []xds.PodAck) map[string]map[netip.AddrPort]int {
	var all map[string]map[netip.AddrPort]int
	for _, pod := range pods {
		for endpoint := range pod.Unhealthy {
			if all == nil {
				all = map[string]map[netip.AddrPort]int{}
			}
			if all[endpoint.Cluster] == nil {
				all[endpoint.Cluster] = map[netip.AddrPort]int{}
			}
			all[endpoint.Cluster][endpoint.AddrPort]++
		}
	}
	return all
}

// observations are what is known now of the result that was built last. Nothing of
// it changes later.
func (d *Dataplane) observations(now time.Time) (result model.Result, o model.Observations, recheck time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	gateways := make(map[model.Key]seenGateway, len(d.gateways))
	for key, gw := range d.gateways {
		pods, away := gw.pods(d.acks(key), now)
		if away {
			recheck = absence
		}
		gateways[key] = seenGateway{
			pods: pods, since: gw.since, routes: maps.Clone(gw.routes), policies: maps.Clone(gw.policies), waiting: d.waiting(gw),
			health: gw.told.Health, unhealthy: unhealthy(pods),
		}
	}
	o.Endpoints = make(map[string]model.EndpointSet, len(d.endpoints))
	derived := make(map[string]model.Health, len(d.endpoints))
	for name, known := range d.endpoints {
		o.Endpoints[name] = known.set
		derived[name] = d.derive(known.cluster)
	}
	refused := make(map[model.Key]*Refusal, len(d.refused))
	for route := range d.refused {
		refused[route] = d.refusal(route)
	}
	o.GatewayProgress = func(key model.Key) model.Progress {
		gw := gateways[key]
		return progress(gw.pods, gw.since)
	}
	o.RouteProgress = func(key, route model.Key) model.Progress {
		gw := gateways[key]
		progress := routeProgress(gw.pods, gw.routes[route].sequence, route)
		if progress.Waiting = gw.waiting[route]; progress.Waiting != "" {
			progress.Acknowledged = 0
		}
		if refusal := refused[route]; refusal != nil {
			progress.Acknowledged, progress.Refused, progress.Instead = 0, refusal.Message, refusal.instead()
		}
		return progress
	}
	o.Health = func(key model.Key, cluster model.Cluster) model.Health {
		if health, is := gateways[key].health[cluster.Name]; is {
			return health
		}
		if cluster.DNSName != "" {
			return behindHostName
		}
		return derived[cluster.Name]
	}
	o.Unhealthy = func(key model.Key, cluster string) map[netip.AddrPort]int { return gateways[key].unhealthy[cluster] }
	o.PolicyProgress = func(key, policy model.Key) model.Progress {
		gw := gateways[key]
		return progress(gw.pods, gw.policies[policy].sequence)
	}
	return d.result, o, recheck
}

// routeProgress counts the pods that have acknowledged a sequence, and take the
// route as it is in it.
func routeProgress(pods []xds.PodAck, since uint64, route model.Key) model.Progress {
	made := progress(pods, since)
	refused := ""
	for _, pod := range pods {
		if message := pod.Held[route.String()]; message != "" && pod.Sequence >= since {
			made.Acknowledged--
			refused = cmp.Or(refused, message)
		}
	}
	if refused != "" {
		made.Refused, made.Instead = refused, insteadInPods
	}
	return made
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
