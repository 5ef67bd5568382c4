package xds

import (
	"context"
	"net/netip"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/go-logr/logr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/util/wait"

	"meshroute.io/meshroute/internal/report/reportv1"
)

// storeInterval is the least time between two writes of the store.
const storeInterval = time.Second

// RelayOptions are what a Relay needs.
type RelayOptions struct {
	// Node that the relay tells the manager. Its cluster, if any, must be the
	// gateway as "namespace/name", its id the pod.
	Node *corev3.Node
	// Dial connects to the manager; DialOptions belong in it. It is called for
	// each attempt, so that each finds a manager that lives.
	Dial func(context.Context) (*grpc.ClientConn, error)
	// Beside is run beside each connection to a manager, until its context ends
	// with the connection; nil: nothing is.
	Beside func(context.Context, *grpc.ClientConn)
	// Reach waits until these endpoints, which are new, can be connected to, or for
	// as long as it sees fit; Envoy gets them afterwards. What does not need them
	// goes on. nil: nobody waits.
	Reach func(ctx context.Context, endpoints []netip.AddrPort)
	// OnProgress is told that Progress moved; nil: nobody is. It must not block.
	OnProgress func()
	// Store is the path of the file that keeps the last good configuration, all
	// but its secrets; empty: none is kept.
	Store string
	// HealthLog is the path of a file to which Envoy writes what its health checks
	// find; empty: it writes nothing.
	HealthLog string
	// SecretStore is the path of the file that keeps the secrets of it. It has to
	// be on a file system in memory; empty: none are kept.
	SecretStore string
	Log         logr.Logger
}

// RelayStatus tells how a Relay is doing.
type RelayStatus struct {
	UpstreamConnected, EnvoyConnected bool
	// Applied: Envoy has, acknowledged on its present stream, a listener and
	// the listener's routes.
	Applied bool
	// LastNack is the newest refusal of Envoy; empty: there was none.
	LastNack string
}

// Relay stands between one manager and one Envoy. See relayState for what it
// does; this is how it is reached: streams in, streams out, a file.
type Relay struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	options RelayOptions
	changed chan struct{} // rings when the store is to be written

	mu       sync.Mutex
	state    *relayState
	saved    uint64
	told     uint64
	envoy    *outbox[*discoveryv3.DeltaDiscoveryResponse] // nil: not connected
	upstream *outbox[*discoveryv3.DeltaDiscoveryRequest]
}

// NewRelay returns a Relay with the configuration of its store. A store that
// cannot be read is reported and ignored: to serve nothing until the manager
// answers is better than never to start.
func NewRelay(options RelayOptions) *Relay {
	r := &Relay{options: options, changed: make(chan struct{}, 1), state: newRelayState()}
	r.state.healthLog = options.HealthLog
	resources, err := r.store().read()
	if err != nil {
		options.Log.Error(err, "Stored configuration cannot be used; what it held is not served until a manager sends it anew, which replaces the file")
	}
	if len(resources) > 0 {
		r.state.restore(resources)
		r.saved = r.state.saved
	}
	return r
}

func (r *Relay) store() store { return store{path: r.options.Store, secrets: r.options.SecretStore} }

// Register makes g serve ADS to Envoy. Use LocalServerOptions for g.
func (r *Relay) Register(g *grpc.Server) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, r)
}

// Status tells how things are now.
func (r *Relay) Status() RelayStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return RelayStatus{
		UpstreamConnected: r.upstream != nil,
		EnvoyConnected:    r.envoy != nil,
		Applied:           r.state.serving(),
		LastNack:          r.state.lastNack,
	}
}

// Endpoints are those that a cluster is to have, as far as they have an address.
func (r *Relay) Endpoints(cluster string) map[netip.AddrPort]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	it := r.state.kinds[endpoints].items[cluster]
	if it == nil || it.target == nil {
		return nil
	}
	return addressesOf(it.target.Resource)
}

// step feeds the state and queues what follows from it. Nothing is sent under
// the lock: a peer that does not read holds up nobody else.
func (r *Relay) step(event func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	event()
	out := r.state.next()
	if r.envoy != nil {
		r.envoy.add(out.toEnvoy...)
	}
	if r.upstream != nil {
		r.upstream.add(out.toManager...)
	}
	if r.state.saved != r.saved {
		r.saved = r.state.saved
		select {
		case r.changed <- struct{}{}:
		default:
		}
	}
	if r.state.told != r.told {
		r.told = r.state.told
		if r.options.OnProgress != nil {
			r.options.OnProgress()
		}
	}
}

// Progress tells how far Envoy is with each type.
func (r *Relay) Progress() []*reportv1.TypeState {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.progress()
}

// Run connects to the manager until ctx ends, for as long as that takes and as
// often as it is needed, and keeps the store.
func (r *Relay) Run(ctx context.Context) error {
	var storing sync.WaitGroup
	storing.Go(func() { r.keepStore(ctx) })
	defer storing.Wait()

	first := wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 100, Cap: 5 * time.Second}
	backoff := first
	for ctx.Err() == nil {
		answered, err := r.connect(ctx)
		if ctx.Err() != nil {
			break
		}
		if answered {
			backoff = first
		}
		delay := backoff.Step()
		r.options.Log.Info("Connection to the manager ended; Envoy keeps what it has", "reason", err, "retryIn", delay.String())
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
	}
	return nil
}

// connect serves one connection to the manager until it ends.
func (r *Relay) connect(ctx context.Context) (answered bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := r.options.Dial(ctx)
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close() }()
	if r.options.Beside != nil {
		var beside sync.WaitGroup
		beside.Go(func() { r.options.Beside(ctx, conn) })
		defer beside.Wait()
		defer cancel()
	}
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return false, err
	}
	box := newOutbox[*discoveryv3.DeltaDiscoveryRequest]()
	r.step(func() {
		requests := r.state.upstreamOpened()
		requests[0].Node = r.options.Node
		box.add(requests...)
		r.upstream = box
	})
	defer r.step(func() {
		r.upstream = nil
		r.state.upstreamClosed()
	})
	go func() {
		defer cancel() // ends Recv
		for {
			req, ok := box.take(ctx)
			if !ok || stream.Send(req) != nil {
				return
			}
		}
	}()
	take := func(resp *discoveryv3.DeltaDiscoveryResponse) {
		r.step(func() {
			if r.upstream == box {
				r.state.upstreamResponse(resp)
			}
		})
	}
	waiting := newOutbox[*discoveryv3.DeltaDiscoveryResponse]()
	go func() {
		for {
			resp, ok := waiting.take(ctx)
			if !ok {
				return
			}
			r.awaitReach(ctx, resp)
			take(resp)
		}
	}()
	for {
		resp, err := stream.Recv()
		if err != nil {
			return answered, err
		}
		answered = true
		if r.options.Reach != nil && resp.GetTypeUrl() == kinds[endpoints].url {
			waiting.add(resp) // in the order in which they come
			continue
		}
		take(resp)
	}
}

// DeltaAggregatedResources serves Envoy. There is one: who comes later replaces
// who was there, whose stream may just not have noticed its end.
func (r *Relay) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	box := newOutbox[*discoveryv3.DeltaDiscoveryResponse]()
	r.step(func() {
		if r.envoy != nil {
			r.envoy.close()
		}
		r.envoy = box
		r.state.envoyOpened()
	})
	defer r.step(func() {
		if r.envoy == box {
			r.envoy = nil
			r.state.envoyClosed()
		}
	})
	go func() {
		defer box.close()
		for {
			req, err := stream.Recv()
			if err != nil {
				return
			}
			r.step(func() {
				if r.envoy == box {
					r.state.envoyRequest(req)
				}
			})
		}
	}()
	for {
		resp, ok := box.take(stream.Context())
		if !ok {
			return grpcstatus.Error(codes.Unavailable, "the stream ended or another Envoy has connected")
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

// keepStore writes the store soon after it changed, and a last time at the end.
func (r *Relay) keepStore(ctx context.Context) {
	if r.store() == (store{}) {
		return
	}
	write := func() {
		r.mu.Lock()
		resources := r.state.lastGood()
		r.mu.Unlock()
		if err := r.store().write(resources); err != nil {
			r.options.Log.Error(err, "Configuration cannot be stored; a restart would begin with an older one")
		}
	}
	for {
		select {
		case <-ctx.Done():
			select {
			case <-r.changed:
				write()
			default:
			}
			return
		case <-r.changed:
			write()
		}
		select {
		case <-ctx.Done():
		case <-time.After(storeInterval):
		}
	}
}

// outbox is a queue between the state and the goroutine that sends. It needs no
// bound: the protocol has at most one push of a type in flight and answers a
// response a few times.
type outbox[T any] struct {
	mu     sync.Mutex
	queued []T
	ring   chan struct{}
	closed chan struct{}
	once   sync.Once
}

func newOutbox[T any]() *outbox[T] {
	return &outbox[T]{ring: make(chan struct{}, 1), closed: make(chan struct{})}
}

func (o *outbox[T]) add(messages ...T) {
	if len(messages) == 0 {
		return
	}
	o.mu.Lock()
	o.queued = append(o.queued, messages...)
	o.mu.Unlock()
	select {
	case o.ring <- struct{}{}:
	default:
	}
}

func (o *outbox[T]) close() { o.once.Do(func() { close(o.closed) }) }

// take waits for a message; false: there will be none.
func (o *outbox[T]) take(ctx context.Context) (message T, ok bool) {
	for {
		o.mu.Lock()
		if len(o.queued) > 0 {
			message, o.queued = o.queued[0], o.queued[1:]
			o.mu.Unlock()
			return message, true
		}
		o.mu.Unlock()
		select {
		case <-o.ring:
		case <-o.closed:
			return message, false
		case <-ctx.Done():
			return message, false
		}
	}
}
