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
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
	discoveryv1 "k8s.io/api/discovery/v1"

	"meshroute.io/meshroute/internal/envoy"
	"meshroute.io/meshroute/internal/model"
	"meshroute.io/meshroute/internal/xds"
)

// Dataplane is what all gateways were last told. Its methods may be called from
// several goroutines.
type Dataplane struct {
	server *xds.Server

	mu       sync.Mutex
	result   model.Result
	gateways map[model.Key]*gateway
	// endpoints by cluster, with the resource made of them. Clusters of the
	// same name are the same in every gateway.
	endpoints map[string]clusterEndpoints
	// uses tells which clusters a Service's endpoints go to.
	uses map[model.Key][]model.Cluster
	// referred are all Services that routes refer to, be they there or not.
	referred map[model.Key]bool
}

type clusterEndpoints struct {
	cluster  model.Cluster
	set      model.EndpointSet
	resource proto.Message
}

// gateway remembers with which sequence of the xDS server a gateway, and each
// of its routes, last changed.
type gateway struct {
	clusters []model.Cluster
	since    uint64
	routes   map[model.Key]routeSince

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
	status   model.RouteStatus
	sequence uint64
}

// New returns a Dataplane that tells server's agents what they are to do.
func New(server *xds.Server) *Dataplane {
	return &Dataplane{
		server:    server,
		gateways:  map[model.Key]*gateway{},
		endpoints: map[string]clusterEndpoints{},
		uses:      map[model.Key][]model.Cluster{},
	}
}

// Configure builds everything anew and sends each gateway what has changed.
// slicesOf returns the EndpointSlices of a Service; it is asked only for
// Services that come into use: what changes later is told by SetEndpoints.
func (d *Dataplane) Configure(in model.Inputs, slicesOf func(service model.Key) []*discoveryv1.EndpointSlice) {
	result := model.Build(in)

	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget(in, result.Foreign)
	for _, gw := range result.Gateways {
		known := d.gateways[gw.Key]
		if known == nil {
			known = &gateway{seen: map[string]seenPod{}}
			d.gateways[gw.Key] = known
		}
		known.clusters = gw.Clusters
	}
	d.setUses(result.Gateways, slicesOf)
	for _, gw := range result.Gateways {
		known := d.gateways[gw.Key]
		resources := known.translator.Translate(gw)
		assignments := make(map[string]proto.Message, len(gw.Clusters))
		for _, cluster := range gw.Clusters {
			if cluster.DNSName == "" {
				assignments[cluster.Name] = d.endpoints[cluster.Name].resource
			}
		}
		resources[resource.EndpointType] = assignments
		change := d.server.Set(xds.Gateway(gw.Key), resources)
		known.since = change.Sequence
		known.note(gw.Key, result.Routes, change.Sequence)
	}
	d.result = result
	d.referred = make(map[model.Key]bool, len(result.Routes))
	for _, route := range result.Routes {
		for _, backend := range route.Backends {
			d.referred[backend.Service] = true
		}
	}
}

// setUses finds out which Services are in use, and reads the endpoints of those
// that were not before, or not by this name of their port.
func (d *Dataplane) setUses(valid []model.Gateway, slicesOf func(model.Key) []*discoveryv1.EndpointSlice) {
	uses := make(map[model.Key][]model.Cluster, len(d.uses))
	endpoints := make(map[string]clusterEndpoints, len(d.endpoints))
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
	// What an invalid gateway has of a cluster may be out of date.
	for _, gw := range valid {
		use(gw.Clusters)
	}
	for _, gw := range d.gateways {
		use(gw.clusters)
	}
	d.uses, d.endpoints = uses, endpoints
}

func newClusterEndpoints(cluster model.Cluster, found []*discoveryv1.EndpointSlice) clusterEndpoints {
	set := model.Endpoints(cluster, found)
	return clusterEndpoints{cluster: cluster, set: set, resource: envoy.Endpoints(cluster.Name, set.Serving)}
}

// note remembers the sequence for those routes that changed. A route that did
// not keeps its own, so that it stays programmed while its neighbours' changes
// are still on the way.
func (g *gateway) note(key model.Key, routes []model.RouteStatus, sequence uint64) {
	noted := make(map[model.Key]routeSince, len(g.routes))
	for _, route := range routes {
		for _, parent := range route.Parents {
			if parent.Gateway == nil || *parent.Gateway != key {
				continue
			}
			before, known := g.routes[route.Key]
			if !known || !before.status.SameConfiguration(route) {
				before = routeSince{status: route, sequence: sequence}
			}
			noted[route.Key] = before
			break
		}
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
// that changed to the gateways that use it; nothing else is built anew. It
// tells whether anything changed.
func (d *Dataplane) SetEndpoints(service model.Key, found []*discoveryv1.EndpointSlice) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	changed := false
	for _, cluster := range d.uses[service] {
		before, now := d.endpoints[cluster.Name], newClusterEndpoints(cluster, found)
		if reflect.DeepEqual(before.set, now.set) {
			continue
		}
		changed = true
		if proto.Equal(before.resource, now.resource) {
			now.resource = before.resource // only endpoints that get no requests changed
		}
		d.endpoints[cluster.Name] = now
		if now.resource == before.resource {
			continue
		}
		for key, gw := range d.gateways {
			if slices.ContainsFunc(gw.clusters, func(c model.Cluster) bool { return c.Name == cluster.Name }) {
				d.server.Update(xds.Gateway(key), resource.EndpointType,
					map[string]proto.Message{cluster.Name: now.resource})
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
	for key, gw := range d.gateways {
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
				return progress(acks[key], gw.routes[route].sequence)
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
		switch {
		case pod.Sequence >= since:
			progress.Acknowledged++
		case pod.Nack != nil && progress.Refused == "":
			progress.Refused = pod.Nack.Message
		}
	}
	return progress
}
