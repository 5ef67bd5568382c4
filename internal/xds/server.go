package xds

import (
	"context"
	"sync"
	"sync/atomic"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	"github.com/go-logr/logr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"meshroute.io/meshroute/internal/report/reportv1"
)

// Gateway names a gateway.
type Gateway struct{ Namespace, Name string }

// String is what a relay's node may have as its cluster: "namespace/name".
func (g Gateway) String() string { return g.Namespace + "/" + g.Name }

// Peer is who is at the other end of a stream, from its client certificate.
type Peer struct {
	Gateway
	Pod string
}

// Resources are resources by type URL and name. They must not be changed once
// handed over.
type Resources = map[string]map[string]proto.Message

// Change is what handing over content came to.
type Change struct {
	// Sequence of the newest content, also when nothing changed.
	Sequence uint64
	Changed  bool
}

// Server serves gateways their configuration and keeps count of what their pods
// report of it. The two are apart: a pod gets its configuration from any replica
// of the manager, and reports to the one that leads.
//
// It never sends emptiness by accident: a gateway gets no answer before each
// of Types was Set once, so that a restarted manager changes nothing until it
// knows what it wants, and Delete ends streams instead of emptying gateways.
type Server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer

	// OnAcks is told that Acks of a gateway may have moved; nil: nobody is. It is
	// called from streams and must not block. Set it before Register.
	OnAcks func(Gateway)

	identify func(context.Context) (Peer, error)
	log      logr.Logger
	counts   [numKinds]counts

	mu       sync.Mutex
	gateways map[Gateway]*gateway
}

// counts are what has happened to one type since the start.
type counts struct{ pushes, resources, refusals atomic.Uint64 }

// Figures are what a Server counts of itself.
type Figures struct {
	Types []TypeFigures
	// Agents that get configuration from this server now, by gateway.
	Agents map[Gateway]int
}

// TypeFigures count, of one resource type and since the start, responses that
// were sent to agents, resources in them (new, changed or removed), and what pods
// have said that Envoy refuses.
type TypeFigures struct {
	Type                        string
	Pushes, Resources, Refusals uint64
}

// Figures counts.
func (s *Server) Figures() Figures {
	figures := Figures{Agents: map[Gateway]int{}}
	for k := range s.counts {
		of := &s.counts[k]
		figures.Types = append(figures.Types, TypeFigures{
			Type: kinds[k].label, Pushes: of.pushes.Load(), Resources: of.resources.Load(), Refusals: of.refusals.Load(),
		})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, gw := range s.gateways {
		figures.Agents[key] = int(gw.agents.Load())
	}
	return figures
}

// NewServer returns a Server that asks identify who a stream's peer is.
func NewServer(identify func(context.Context) (Peer, error), log logr.Logger) *Server {
	return &Server{identify: identify, log: log, gateways: map[Gateway]*gateway{}}
}

// Register makes g serve ADS. Use ServerOptions for g.
func (s *Server) Register(g *grpc.Server) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, s)
}

// gateway is what is wanted of one gateway, and who watches it.
type gateway struct {
	done   context.Context // ends with Delete
	end    context.CancelFunc
	agents atomic.Int32 // that are connected

	// mu makes a watch and the version that it starts from one thing.
	mu      sync.Mutex
	content [numKinds]map[string]wanted
	digests [numKinds]digest // of content
	set     [numKinds]bool
	caches  [numKinds]*cache.LinearCache
	waiting map[*waiter]struct{}
	tracker tracker
}

// wanted is one resource, and its part in the digest of its type.
type wanted struct {
	proto.Message
	digest digest
}

// waiter is a watch that is to start with the first complete content.
type waiter struct {
	kind   kind
	start  func() (func(), error)
	cancel func()
}

func (s *Server) gateway(key Gateway) *gateway {
	s.mu.Lock()
	defer s.mu.Unlock()
	gw := s.gateways[key]
	if gw == nil {
		gw = &gateway{waiting: map[*waiter]struct{}{}}
		gw.done, gw.end = context.WithCancel(context.Background())
		for k := range numKinds {
			gw.content[k] = map[string]wanted{}
			gw.caches[k] = cache.NewLinearCache(kinds[k].url)
		}
		s.gateways[key] = gw
	}
	return gw
}

// Set replaces the content of the types named in r; other types stay as they
// are, so that endpoints can be set apart from the rest. Only what differs is
// sent: same pointer means same content, otherwise messages are compared.
func (s *Server) Set(key Gateway, r Resources) Change {
	gw := s.gateway(key)
	gw.mu.Lock()
	defer gw.mu.Unlock()
	var upserts [numKinds]map[string]types.Resource
	var removals [numKinds][]string
	for k := range numKinds {
		wanted, ok := r[kinds[k].url]
		if !ok {
			continue
		}
		gw.set[k] = true
		upserts[k] = gw.differing(k, wanted)
		for name := range gw.content[k] {
			if _, ok := wanted[name]; !ok {
				removals[k] = append(removals[k], name)
			}
		}
	}
	return s.apply(key, gw, upserts, removals)
}

// Update replaces a few resources of one type, such as the endpoints of one
// cluster, and leaves the type's others alone. It does not count as the type's
// first Set.
func (s *Server) Update(key Gateway, typeURL string, r map[string]proto.Message) Change {
	gw := s.gateway(key)
	gw.mu.Lock()
	defer gw.mu.Unlock()
	var upserts [numKinds]map[string]types.Resource
	if k, ok := kindOf(typeURL); ok {
		upserts[k] = gw.differing(k, r)
	}
	return s.apply(key, gw, upserts, [numKinds][]string{})
}

func (gw *gateway) differing(k kind, wanted map[string]proto.Message) map[string]types.Resource {
	differing := map[string]types.Resource{}
	for name, to := range wanted {
		if from, ok := gw.content[k][name]; !ok || from.Message != to && !proto.Equal(from.Message, to) {
			differing[name] = to
		}
	}
	return differing
}

// apply hands differences to the caches in the order of application: streams
// send responses in the order in which they come about.
func (s *Server) apply(key Gateway, gw *gateway, upserts [numKinds]map[string]types.Resource, removals [numKinds][]string) Change {
	changed := false
	for k := range numKinds {
		if len(upserts[k])+len(removals[k]) == 0 {
			continue
		}
		changed = true
		if err := gw.caches[k].UpdateResources(upserts[k], removals[k]); err != nil {
			s.log.Error(err, "Resources cannot be sent", "gateway", key.String(), "type", kinds[k].url)
		}
		for name, to := range upserts[k] {
			part, err := resourceDigest(name, to)
			if err != nil {
				s.log.Error(err, "Resource cannot be sent", "gateway", key.String(), "type", kinds[k].url, "name", name)
			}
			gw.digests[k] = gw.digests[k].minus(gw.content[k][name].digest).plus(part)
			gw.content[k][name] = wanted{to, part}
		}
		for _, name := range removals[k] {
			gw.digests[k] = gw.digests[k].minus(gw.content[k][name].digest)
			delete(gw.content[k], name)
		}
	}
	if changed {
		gw.tracker.advance(gw.digests)
	}
	if gw.complete() {
		for k := range numKinds {
			for w := range gw.waiting {
				if w.kind != k {
					continue
				}
				delete(gw.waiting, w)
				var err error
				if w.cancel, err = w.start(); err != nil {
					s.log.Error(err, "Resources cannot be sent", "gateway", key.String(), "type", kinds[k].url)
				}
			}
		}
	}
	return Change{Sequence: gw.tracker.sequence, Changed: changed}
}

// resourceDigest is the digest of a resource in the version that the cache gives
// it.
func resourceDigest(name string, r proto.Message) (digest, error) {
	marshalled, err := cache.MarshalResource(r)
	if err != nil {
		return digest{}, err
	}
	return digestOf(name, cache.HashResource(marshalled)), nil
}

func (gw *gateway) complete() bool {
	for k := range numKinds {
		if !gw.set[k] {
			return false
		}
	}
	return true
}

// Delete forgets a gateway. Its pods, should any be left, keep what they have:
// their streams end, and new ones wait.
func (s *Server) Delete(key Gateway) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if gw := s.gateways[key]; gw != nil {
		gw.end()
		delete(s.gateways, key)
	}
}

// Acks tells what the gateway's pods that report here made of it.
func (s *Server) Acks(key Gateway) Acks {
	s.mu.Lock()
	gw := s.gateways[key]
	s.mu.Unlock()
	if gw == nil {
		return Acks{}
	}
	gw.mu.Lock()
	defer gw.mu.Unlock()
	return gw.tracker.acks()
}

// Pod is a pod that reports how it is.
type Pod struct {
	server  *Server
	peer    Peer
	gateway *gateway
	state   *podState // nil: closed
}

// Pod begins to take reports of a pod. Close ends that.
func (s *Server) Pod(peer Peer) *Pod {
	return &Pod{server: s, peer: peer, gateway: s.gateway(peer.Gateway), state: &podState{pod: peer.Pod}}
}

// Done is closed when the pod's gateway was deleted: reports lead nowhere then.
func (p *Pod) Done() <-chan struct{} { return p.gateway.done.Done() }

// Report replaces what was known of the pod.
func (p *Pod) Report(state *reportv1.PodState) {
	p.do(func() {
		for k, refused := range p.gateway.tracker.report(p.state, state) {
			p.server.counts[k].refusals.Add(uint64(refused))
		}
	})
}

// Close forgets the pod.
func (p *Pod) Close() {
	p.do(func() {
		p.gateway.tracker.close(p.state)
		p.state = nil
	})
}

func (p *Pod) do(move func()) {
	p.gateway.mu.Lock()
	if p.state != nil {
		move()
	}
	p.gateway.mu.Unlock()
	if p.server.OnAcks != nil {
		p.server.OnAcks(p.peer.Gateway)
	}
}

// DeltaAggregatedResources serves one relay.
func (s *Server) DeltaAggregatedResources(grpcStream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	peer, err := s.identify(grpcStream.Context())
	if err != nil {
		return grpcstatus.Errorf(codes.Unauthenticated, "the peer's certificate names no gateway: %v", err)
	}
	str := &stream{peer: peer, gateway: s.gateway(peer.Gateway), counts: &s.counts}
	str.gateway.agents.Add(1)
	defer str.gateway.agents.Add(-1)
	// A server of its own for each stream, so that watches and callbacks know
	// whose they are.
	return delta.NewServer(str.gateway.done, str, str).DeltaStreamHandler(grpcStream, resource.AnyType)
}

// stream is one relay's: where go-control-plane's server finds content
// (cache.ConfigWatcher), and who may ask for it (delta.Callbacks).
type stream struct {
	peer    Peer
	gateway *gateway
	counts  *[numKinds]counts
}

// OnStreamDeltaRequest refuses who is not whom its certificate names, and agents
// that do not know what is served.
func (s *stream) OnStreamDeltaRequest(_ int64, req *discoveryv3.DeltaDiscoveryRequest) error {
	node, gw := req.GetNode(), s.peer.Gateway.String()
	if node.GetCluster() != "" && node.GetCluster() != gw || node.GetId() != "" && node.GetId() != s.peer.Pod {
		return grpcstatus.Errorf(codes.PermissionDenied, "the certificate is that of pod %q of gateway %q, but the node calls itself %q of %q",
			s.peer.Pod, gw, node.GetId(), node.GetCluster())
	}
	if req.GetTypeUrl() == resource.RouteType {
		// Its Envoy would open the listeners that there are now without routes.
		return grpcstatus.Error(codes.FailedPrecondition,
			"this agent is of a version that knows no scoped routes: its Envoy keeps what it has until the pod is replaced")
	}
	return nil
}

// OnDeltaStreamOpen has nothing to add.
func (s *stream) OnDeltaStreamOpen(context.Context, int64, string) error { return nil }

// OnDeltaStreamClosed has nothing to add.
func (s *stream) OnDeltaStreamClosed(int64, *corev3.Node) {}

// OnStreamDeltaResponse counts what is sent.
func (s *stream) OnStreamDeltaResponse(_ int64, _ *discoveryv3.DeltaDiscoveryRequest, response *discoveryv3.DeltaDiscoveryResponse) {
	if k, known := kindOf(response.GetTypeUrl()); known {
		s.counts[k].pushes.Add(1)
		s.counts[k].resources.Add(uint64(len(response.GetResources()) + len(response.GetRemovedResources())))
	}
}

// CreateWatch refuses state-of-the-world requests.
func (s *stream) CreateWatch(*cache.Request, cache.Subscription, chan cache.Response) (func(), error) {
	return nil, grpcstatus.Error(codes.Unimplemented, "only delta xDS is served")
}

// CreateDeltaWatch starts a watch, or has it wait for the first content.
func (s *stream) CreateDeltaWatch(req *cache.DeltaRequest, sub cache.Subscription, out chan cache.DeltaResponse) (func(), error) {
	k, known := kindOf(req.GetTypeUrl())
	if !known {
		return nil, nil // a newer agent may ask for more; it gets what there is
	}
	gw := s.gateway
	gw.mu.Lock()
	defer gw.mu.Unlock()
	if !gw.complete() {
		return gw.wait(k, func() (func(), error) { return gw.caches[k].CreateDeltaWatch(req, sub, out) }), nil
	}
	return gw.caches[k].CreateDeltaWatch(req, sub, out)
}

// wait must be called under gw.mu. What it returns stops the waiter or the
// watch that it became: nothing may be sent after that.
func (gw *gateway) wait(k kind, start func() (func(), error)) func() {
	w := &waiter{kind: k, start: start}
	gw.waiting[w] = struct{}{}
	return func() {
		gw.mu.Lock()
		defer gw.mu.Unlock()
		delete(gw.waiting, w)
		if w.cancel != nil {
			w.cancel()
			w.cancel = nil
		}
	}
}
