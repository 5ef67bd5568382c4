package report

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"meshroute.io/meshroute/internal/report/reportv1"
	"meshroute.io/meshroute/internal/xds"
)

var edge = xds.Gateway{Namespace: "shop", Name: "edge"}

// lease says who leads.
type lease struct {
	mu      sync.Mutex
	address string
	changed chan struct{}
}

func (l *lease) leader() (string, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.address, l.changed
}

func (l *lease) take(address string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.address = address
	close(l.changed)
	l.changed = make(chan struct{})
}

// replicas are managers by address.
type replicas struct {
	lease
	managers map[string]*manager
}

type manager struct {
	*xds.Server
	listener *bufconn.Listener
	grpc     *grpc.Server
	moved    chan struct{}
	reports  int
	mu       sync.Mutex
}

func newReplicas(t *testing.T, addresses ...string) *replicas {
	t.Helper()
	r := &replicas{managers: map[string]*manager{}}
	r.changed = make(chan struct{})
	for _, address := range addresses {
		r.start(t, address)
	}
	return r
}

func (r *replicas) start(t *testing.T, address string) {
	t.Helper()
	m := &manager{listener: bufconn.Listen(1 << 20), grpc: grpc.NewServer(xds.ServerOptions(0)...), moved: make(chan struct{}, 1)}
	identify := func(context.Context) (xds.Peer, error) { return xds.Peer{Gateway: edge, Pod: "pod-1"}, nil }
	m.Server = xds.NewServer(identify, testr.New(t))
	m.OnAcks = func(xds.Gateway) {
		m.mu.Lock()
		m.reports++
		m.mu.Unlock()
		select {
		case m.moved <- struct{}{}:
		default:
		}
	}
	m.configure()
	NewServer(m.Server, identify, r.leader).Register(m.grpc)
	listener := m.listener
	go m.grpc.Serve(listener)
	t.Cleanup(m.grpc.Stop)
	r.managers[address] = m
}

// configure gives the gateway content that is empty in each type.
func (m *manager) configure() uint64 {
	all := xds.Resources{}
	for _, url := range xds.Types() {
		all[url] = map[string]proto.Message{}
	}
	all[xds.Types()[0]]["a"] = &reportv1.Leader{Address: "any message will do"}
	m.Set(edge, all)
	delete(all[xds.Types()[0]], "a")
	return m.Set(edge, map[string]map[string]proto.Message{xds.Types()[0]: {}}).Sequence
}

func (r *replicas) dial(_ context.Context, address string) (*grpc.ClientConn, error) {
	m := r.managers[address]
	if m == nil {
		return nil, fmt.Errorf("nobody is at %q", address)
	}
	return grpc.NewClient("passthrough:///"+address, append(xds.DialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return m.listener.DialContext(ctx) }))...)
}

// has waits until a manager knows this of the pod.
func (m *manager) has(t *testing.T, what string, done func(xds.Acks) bool) {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for !done(m.Acks(edge)) {
		select {
		case <-m.moved:
		case <-timeout:
			t.Fatalf("never came: %s; acks: %+v", what, m.Acks(edge))
		}
	}
}

func present(a xds.Acks) bool { return len(a.Pods) == 1 }
func absent(a xds.Acks) bool  { return len(a.Pods)+a.Starting == 0 }

// everything is the progress of an Envoy that has the content of configure.
func everything() []*reportv1.TypeState {
	var types []*reportv1.TypeState
	for _, url := range xds.Types() {
		types = append(types, &reportv1.TypeState{TypeUrl: url, Acknowledged: make([]byte, 16)})
	}
	return types
}

// run starts a reporter that is connected to a manager.
func (r *replicas) run(t *testing.T, connectedTo string) *Reporter {
	t.Helper()
	reporter := NewReporter(ReporterOptions{Dial: r.dial, Progress: everything, Log: testr.New(t)})
	ctx, cancel := context.WithCancel(t.Context())
	conn, err := r.dial(ctx, connectedTo)
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { reporter.Run(ctx) })
	running.Go(func() { reporter.Follow(ctx, conn) })
	t.Cleanup(func() { cancel(); running.Wait(); conn.Close() })
	return reporter
}

func TestAPodReportsToWhoeverLeads(t *testing.T) {
	r := newReplicas(t, "one", "two", "three")
	r.run(t, "three")
	r.take("one")
	r.managers["one"].has(t, "the pod at the first leader", present)
	r.take("") // gives up, and nobody has taken over yet
	r.managers["one"].has(t, "the pod gone from who led", absent)
	r.take("two")
	r.managers["two"].has(t, "the pod at the second leader", present)
	r.take("three") // the one that it is connected to
	r.managers["three"].has(t, "the pod at the third leader", present)
	r.managers["two"].has(t, "the pod gone from the second", absent)
}

func TestAPodComesBackToALeaderThatStartsAgain(t *testing.T) {
	r := newReplicas(t, "one", "two")
	r.take("one")
	r.run(t, "two")
	r.managers["one"].has(t, "the pod", present)
	gone := r.managers["one"].grpc
	r.start(t, "one")
	gone.Stop()
	r.managers["one"].has(t, "the pod again", present)
}

func TestAPodComesBackToAGatewayThatWasDeletedAndMadeAgain(t *testing.T) {
	r := newReplicas(t, "one")
	r.take("one")
	r.run(t, "one")
	m := r.managers["one"]
	m.has(t, "the pod", present)
	m.Delete(edge)
	m.configure()
	m.has(t, "the pod again", present)
}

func TestWhatHappensTogetherIsToldTogetherAndTheLastIsTold(t *testing.T) {
	r := newReplicas(t, "one")
	r.take("one")
	reporter := r.run(t, "one")
	m := r.managers["one"]
	m.has(t, "the pod", present)
	start := time.Now()
	for i := range 10_000 {
		reporter.SetNetworkPolicy(reportv1.NetworkPolicy(i % 2))
	}
	reporter.SetNetworkPolicy(reportv1.NetworkPolicy_NETWORK_POLICY_NOT_ENFORCED)
	reporter.SetDraining()
	m.has(t, "the last word", func(a xds.Acks) bool {
		return present(a) && a.Pods[0].Draining && a.Pods[0].NetworkPolicy == reportv1.NetworkPolicy_NETWORK_POLICY_NOT_ENFORCED
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	if most := 3 + int(time.Since(start)/reportPause); m.reports > most {
		t.Errorf("%d reports in %v", m.reports, time.Since(start))
	}
}

func TestNobodyReportsWithoutACertificate(t *testing.T) {
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer(xds.ServerOptions(0)...)
	stranger := func(context.Context) (xds.Peer, error) { return xds.Peer{}, errors.New("no certificate") }
	NewServer(xds.NewServer(stranger, testr.New(t)), stranger, Alone("one")).Register(server)
	go server.Serve(listener)
	defer server.Stop()
	r := &replicas{managers: map[string]*manager{"one": {listener: listener}}}
	conn, err := r.dial(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := reportv1.NewReportsClient(conn)
	watch, err := client.WatchLeader(t.Context(), &reportv1.WatchLeaderRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); grpcstatus.Code(err) != codes.Unauthenticated {
		t.Errorf("who leads was told: %v", err)
	}
	report, err := client.Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := report.CloseAndRecv(); grpcstatus.Code(err) != codes.Unauthenticated {
		t.Errorf("a report was taken: %v", err)
	}
}
