package xds

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	streamv3 "github.com/envoyproxy/go-control-plane/pkg/server/stream/v3"
	"github.com/go-logr/logr/testr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"meshroute.io/meshroute/internal/envoy"
	"meshroute.io/meshroute/internal/model"
	"meshroute.io/meshroute/internal/report/reportv1"
)

var gw = Gateway{Namespace: "shop", Name: "edge"}

// manager is a Server on a connection of its own, with a bell for acks.
type manager struct {
	*Server
	grpc  *grpc.Server
	moved chan struct{}
}

// place is an address at which managers come and go. The one that is there
// leads.
type place struct {
	listener *bufconn.Listener
	leader   *manager

	mu  sync.Mutex
	pod *Pod // of the leader, as far as it was told
}

// report is what a report.Reporter does for a relay.
func (p *place) report(t *testing.T, r **Relay) func() {
	t.Helper()
	bell := make(chan struct{}, 1)
	over, ended := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(over); <-ended })
	go func() {
		defer close(ended)
		for {
			select {
			case <-bell:
			case <-over:
				return
			}
			p.mu.Lock()
			select {
			case <-p.pod.Done():
				p.pod = p.leader.Pod(Peer{gw, "pod-1"})
			default:
			}
			p.pod.Report(&reportv1.PodState{Types: (*r).Progress()})
			p.mu.Unlock()
		}
	}()
	return func() {
		select {
		case bell <- struct{}{}:
		default:
		}
	}
}

func (p *place) start(t *testing.T) *manager {
	t.Helper()
	p.listener = bufconn.Listen(1 << 20)
	m := &manager{moved: make(chan struct{}, 1), grpc: grpc.NewServer(ServerOptions(0)...)}
	m.Server = NewServer(func(context.Context) (Peer, error) { return Peer{gw, "pod-1"}, nil }, testr.New(t))
	m.OnAcks = func(Gateway) {
		select {
		case m.moved <- struct{}{}:
		default:
		}
	}
	m.Register(m.grpc)
	p.mu.Lock()
	p.leader, p.pod = m, m.Pod(Peer{gw, "pod-1"})
	p.mu.Unlock()
	listener := p.listener
	go m.grpc.Serve(listener)
	t.Cleanup(m.grpc.Stop)
	return m
}

func (p *place) dial(context.Context) (*grpc.ClientConn, error) {
	listener := p.listener
	return grpc.NewClient("passthrough:///manager", append(DialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))...)
}

// applied waits until the pod has applied a sequence.
func (m *manager) applied(t *testing.T, sequence uint64) {
	t.Helper()
	m.until(t, fmt.Sprintf("sequence %d applied", sequence), func(a Acks) bool {
		return len(a.Pods) == 1 && a.Pods[0].Sequence >= sequence && a.Pods[0].Nack == nil
	})
}

func (m *manager) until(t *testing.T, what string, done func(Acks) bool) {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for !done(m.Acks(gw)) {
		select {
		case <-m.moved:
		case <-timeout:
			acks := m.Acks(gw)
			if len(acks.Pods) > 0 && acks.Pods[0].Nack != nil {
				t.Logf("refused: %+v", *acks.Pods[0].Nack)
			}
			t.Fatalf("never came: %s; acks: %+v", what, acks)
		}
	}
}

// relay starts a Relay and returns where Envoy finds it, and what ends it.
func startRelay(t *testing.T, p *place, store string, more ...func(*RelayOptions)) (*Relay, *bufconn.Listener, func()) {
	t.Helper()
	var r *Relay
	options := RelayOptions{
		Node: &corev3.Node{Id: "pod-1", Cluster: gw.String()}, Dial: p.dial, OnProgress: p.report(t, &r), Store: store, Log: testr.New(t),
	}
	for _, option := range more {
		option(&options)
	}
	r = NewRelay(options)
	local := bufconn.Listen(1 << 20)
	g := grpc.NewServer(LocalServerOptions()...)
	r.Register(g)
	go g.Serve(local)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { r.Run(ctx); close(done) }()
	stop := func() { cancel(); g.Stop(); <-done }
	t.Cleanup(stop)
	return r, local, stop
}

// attach runs a fakeEnvoy against a relay; it tells of each response.
func attach(t *testing.T, local *bufconn.Listener, e *fakeEnvoy) chan *discoveryv3.DeltaDiscoveryResponse {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///relay", append(DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return local.DialContext(ctx) }))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	responses := make(chan *discoveryv3.DeltaDiscoveryResponse, 1000)
	e.connect()
	go func() {
		defer close(responses)
		for {
			for _, req := range e.out {
				if stream.Send(req) != nil {
					return
				}
			}
			e.out = nil
			resp, err := stream.Recv()
			if err != nil {
				return
			}
			e.in = append(e.in, resp)
			if err := e.receive(); err != nil {
				t.Error(err)
			}
			responses <- resp
		}
	}()
	return responses
}

func someContent(n int) Resources {
	r := Resources{}
	for _, url := range Types() {
		r[url] = map[string]proto.Message{}
	}
	var names []string
	for i := range n {
		name := fmt.Sprintf("c%04d", i)
		names = append(names, name)
		r[kinds[clusters].url][name] = body(clusters, name)
		r[kinds[endpoints].url][name] = body(endpoints, name)
	}
	r[kinds[routes].url]["r"] = body(routes, "r", names...)
	r[kinds[listeners].url]["l"] = body(listeners, "l")
	return r
}

func TestManagerRestartsWithTheSameContent(t *testing.T) {
	p := &place{}
	first := p.start(t)
	_, local, _ := startRelay(t, p, "")
	e := newFakeEnvoy(rand.New(rand.NewPCG(1, 1)))
	responses := attach(t, local, e)
	first.applied(t, first.Set(gw, someContent(20)).Sequence)
	for len(responses) > 0 {
		<-responses
	}

	old := first.grpc
	second := p.start(t)
	change := second.Set(gw, someContent(20))
	old.Stop()
	second.applied(t, change.Sequence)
	if again := second.Set(gw, someContent(20)); again.Changed || again.Sequence != change.Sequence {
		t.Errorf("the same content again: %+v after %+v", again, change)
	}
	// A change afterwards is the first thing that Envoy hears of.
	changed := someContent(20)
	changed[kinds[listeners].url] = map[string]proto.Message{"l": body(listeners, "l"), "l2": body(listeners, "l2")}
	second.applied(t, second.Set(gw, changed).Sequence)
	if resp := <-responses; len(resp.GetResources()) != 1 || resp.GetResources()[0].GetName() != "l2" {
		t.Errorf("Envoy was sent %v", short(resp))
	}
}

// Between a gateway and endpoints that are new stands a network that may not let
// it through yet. What needs them waits for that, and nothing else does.
func TestEndpointsThatAreNewAreAwaited(t *testing.T) {
	p := &place{}
	m := p.start(t)
	awaited, through := make(chan []netip.AddrPort, 10), make(chan struct{})
	_, local, _ := startRelay(t, p, "", func(o *RelayOptions) {
		o.Reach = func(_ context.Context, endpoints []netip.AddrPort) {
			awaited <- endpoints
			<-through
		}
	})
	responses := attach(t, local, newFakeEnvoy(rand.New(rand.NewPCG(1, 1))))
	content := func() Resources {
		r := someContent(2)
		for i, name := range []string{"c0000", "c0001"} {
			r[kinds[endpoints].url][name] = envoy.Endpoints(model.Cluster{Name: name}, []model.Endpoint{{Address: fmt.Sprintf("10.0.0.%d", i+1), Port: 80}})
		}
		return r
	}
	before := content()
	delete(before[kinds[clusters].url], "c0001")
	delete(before[kinds[endpoints].url], "c0001")
	before[kinds[routes].url]["r"] = body(routes, "r", "c0000")
	m.applied(t, m.Set(gw, before).Sequence)
	if len(awaited) > 0 {
		t.Errorf("at the start %v were awaited: no news to the network", <-awaited)
	}
	for len(responses) > 0 {
		<-responses
	}

	after := content()
	after[kinds[listeners].url]["l2"] = body(listeners, "l2")
	change := m.Set(gw, after)
	if got := <-awaited; len(got) != 1 || got[0].String() != "10.0.0.2:80" {
		t.Errorf("awaited were %v", got)
	}
	for resp := range responses {
		if resp.GetTypeUrl() == kinds[endpoints].url || resp.GetTypeUrl() == kinds[routes].url {
			t.Errorf("Envoy was sent %v before its endpoints can be reached", short(resp))
		}
		if resp.GetTypeUrl() == kinds[listeners].url {
			break // which waits for nobody
		}
	}
	close(through)
	m.applied(t, change.Sequence)

	// The same endpoints again are no news.
	after[kinds[endpoints].url]["c0001"] = envoy.Endpoints(model.Cluster{Name: "c0001"}, []model.Endpoint{{Address: "10.0.0.2", Port: 80, Zone: "a"}})
	m.applied(t, m.Set(gw, after).Sequence)
	if len(awaited) > 0 {
		t.Errorf("%v were awaited again", <-awaited)
	}
}

func TestRelayServesFromItsStoreWithoutAManager(t *testing.T) {
	p, store := &place{}, filepath.Join(t.TempDir(), "store")
	m := p.start(t)
	_, local, stop := startRelay(t, p, store)
	attach(t, local, newFakeEnvoy(rand.New(rand.NewPCG(1, 1))))
	m.applied(t, m.Set(gw, someContent(5)).Sequence)
	stop() // writes
	m.grpc.Stop()

	_, local, _ = startRelay(t, p, store)
	e := newFakeEnvoy(rand.New(rand.NewPCG(1, 1)))
	responses := attach(t, local, e)
	timeout := time.After(10 * time.Second)
	for got := 0; got < 12; { // 5 clusters, 5 endpoints, routes, a listener
		select {
		case resp := <-responses:
			got += len(resp.GetResources())
		case <-timeout:
			t.Fatalf("Envoy got %d resources", got)
		}
	}
}

func TestNoAnswerBeforeEverythingWasSet(t *testing.T) {
	// Below gRPC, where everything happens in the calls: nothing to wait for.
	server := NewServer(nil, testr.New(t))
	str := &stream{peer: Peer{gw, "pod-1"}, gateway: server.gateway(gw)}
	out := make(chan cache.DeltaResponse, 10)
	for _, url := range Types() {
		sub := streamv3.NewDeltaSubscription([]string{"*"}, nil, nil, true)
		if _, err := str.CreateDeltaWatch(&cache.DeltaRequest{TypeUrl: url}, sub, out); err != nil {
			t.Fatal(err)
		}
	}
	all, eds := someContent(3), kinds[endpoints].url
	server.Update(gw, eds, map[string]proto.Message{"c0000": all[eds]["c0000"]})
	for url, content := range all {
		if url != eds {
			server.Set(gw, Resources{url: content})
		}
	}
	if len(out) > 0 {
		t.Fatalf("%d answers before the endpoints were set", len(out))
	}
	server.Set(gw, Resources{eds: all[eds]})
	for _, url := range Types() { // in the order of application, too
		if len(out) == 0 {
			t.Fatal("no answer when everything was set")
		}
		resp, err := (<-out).GetDeltaDiscoveryResponse()
		if err != nil || resp.GetTypeUrl() != url || len(resp.GetResources()) != len(all[url]) {
			t.Errorf("came %s, %v, wanted all %d of %s", short(resp), err, len(all[url]), url)
		}
	}
}

func TestNodeMustAgreeWithCertificate(t *testing.T) {
	p := &place{}
	p.start(t)
	for name, node := range map[string]*corev3.Node{
		"another gateway": {Id: "pod-1", Cluster: "shop/other"},
		"another pod":     {Id: "pod-2", Cluster: gw.String()},
	} {
		t.Run(name, func(t *testing.T) {
			conn, _ := p.dial(t.Context())
			defer conn.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
			if err != nil {
				t.Fatal(err)
			}
			stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: kinds[clusters].url})
			if _, err = stream.Recv(); grpcstatus.Code(err) != codes.PermissionDenied {
				t.Errorf("stream ended with %v", err)
			}
		})
	}
}

func TestDeleteDoesNotEmpty(t *testing.T) {
	p := &place{}
	m := p.start(t)
	_, local, _ := startRelay(t, p, "")
	e := newFakeEnvoy(rand.New(rand.NewPCG(1, 1)))
	responses := attach(t, local, e)
	m.applied(t, m.Set(gw, someContent(3)).Sequence)
	m.Delete(gw)
	m.applied(t, m.Set(gw, someContent(4)).Sequence) // the relay comes back and goes on
	for range len(responses) {
		if resp := <-responses; len(resp.GetRemovedResources()) > 0 {
			t.Errorf("Envoy was emptied: %v", short(resp))
		}
	}
}

func TestStore(t *testing.T) {
	path, inMemory := filepath.Join(t.TempDir(), "store"), filepath.Join(t.TempDir(), "secrets")
	if err := (store{path, inMemory}).write([]*discoveryv3.Resource{res(clusters, "c", "1"), res(secrets, "key", "1")}); err != nil {
		t.Fatal(err)
	}
	if got, err := readStore(path); err != nil || len(got) != 1 || got[0].GetName() != "c" {
		t.Fatalf("read %v, %v: the cluster and no secret were to come", got, err)
	}
	if got, err := (store{path, inMemory}).read(); err != nil || len(got) != 2 {
		t.Fatalf("read %v, %v: both were to come", got, err)
	}
	if info, _ := os.Stat(inMemory); info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the secrets %v", info.Mode())
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	whole, _ := os.ReadFile(path)
	for name, content := range map[string][]byte{
		"truncated": whole[:len(whole)-3], "empty": {}, "garbage": []byte("nonsense"),
		"one bit": append(append([]byte{}, whole[:len(whole)-1]...), whole[len(whole)-1]^1),
	} {
		os.WriteFile(path, content, 0o600)
		if got, err := readStore(path); err == nil {
			t.Errorf("%s: read %v without an error", name, got)
		}
	}
	NewRelay(RelayOptions{Store: path, Log: testr.New(t)}) // starts all the same
}

// startRealEnvoy returns a manager, and the relay of an Envoy, with a port that it
// may listen on.
func startRealEnvoy(t *testing.T) (*manager, *Relay, int32) {
	t.Helper()
	binary := os.Getenv("ENVOY_BIN")
	if binary == "" {
		t.Skip("ENVOY_BIN names no Envoy")
	}
	dir := t.TempDir()

	p := &place{}
	m := p.start(t)
	var r *Relay
	r = NewRelay(RelayOptions{Node: &corev3.Node{Id: "pod-1"}, Dial: p.dial, OnProgress: p.report(t, &r), Store: filepath.Join(dir, "store"), Log: testr.New(t)})
	socket, err := net.Listen("unix", filepath.Join(dir, "xds.sock"))
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(LocalServerOptions()...)
	r.Register(g)
	go g.Serve(socket)
	t.Cleanup(g.Stop)
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan struct{})
	go func() { r.Run(ctx); close(ran) }()
	t.Cleanup(func() { cancel(); <-ran })

	bootstrap, err := envoy.Bootstrap(envoy.BootstrapOptions{
		Gateway: model.Key(gw), XDSSocket: filepath.Join(dir, "xds.sock"),
		PagesSocket: filepath.Join(dir, "pages.sock"), AdminSocket: filepath.Join(dir, "admin.sock"),
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "envoy.yaml")
	os.WriteFile(file, bootstrap, 0o600)
	cmd := exec.Command(binary, "-c", file, "--service-node", "x", "--use-dynamic-base-id", "--disable-hot-restart", "-l", "warn", "--concurrency", "1")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })

	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := int32(free.Addr().(*net.TCPAddr).Port)
	free.Close()
	return m, r, port
}

// The real Envoy: routes a request, follows a change of a cluster in use
// (warming again), and refuses what is refused without harm to the rest.
func TestRealEnvoy(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" {
			<-r.Context().Done() // until the check gives up
			return
		}
		io.WriteString(w, "hello")
	}))
	defer backend.Close()
	m, r, port := startRealEnvoy(t)
	address := backend.Listener.Addr().(*net.TCPAddr)
	content := func(n int, change func(*model.Gateway)) Resources {
		var cs []model.Cluster
		var rs []model.Route
		eds := map[string]proto.Message{}
		for i := range n {
			name := fmt.Sprintf("shop/web-%d/80", i)
			cs = append(cs, model.Cluster{Name: name})
			rs = append(rs, model.Route{Name: name, Match: model.Match{Path: fmt.Sprintf("/%d", i), Type: model.PathExact}, Backends: []model.WeightedCluster{{Cluster: name, Weight: 1}}})
			eds[name] = envoy.Endpoints(model.Cluster{Name: name}, []model.Endpoint{{Address: "127.0.0.1", Port: int32(address.Port)}})
		}
		made := model.Gateway{Key: model.Key(gw), Clusters: cs, Ports: []model.Port{{
			Number: port, Bind: port, VirtualHosts: []model.VirtualHost{{Hostname: "*", Routes: rs}},
		}}}
		if change != nil {
			change(&made)
		}
		res := envoy.Translate(made)
		res[kinds[endpoints].url] = eds
		return res
	}
	m.applied(t, m.Set(gw, content(3, nil)).Sequence)
	get := func(path string) {
		t.Helper()
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if got, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK || string(got) != "hello" {
			t.Fatalf("GET %s: %d %q", path, resp.StatusCode, got)
		}
	}
	get("/2")
	if s := r.Status(); !s.Applied || !s.EnvoyConnected || !s.UpstreamConnected {
		t.Errorf("status %+v", s)
	}

	// Clusters in use change: they warm again, at once.
	start := time.Now()
	m.applied(t, m.Set(gw, content(3, func(g *model.Gateway) {
		for i := range g.Clusters {
			g.Clusters[i].HTTP2 = true
		}
	})).Sequence)
	m.applied(t, m.Set(gw, content(3, nil)).Sequence)
	get("/1")
	t.Logf("two changes of all clusters took %v", time.Since(start))
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("clusters warmed for %v", d)
	}

	// 1,000 routes, then one more.
	m.applied(t, m.Set(gw, content(1000, nil)).Sequence)
	grown := content(1001, nil)
	start = time.Now()
	m.applied(t, m.Set(gw, grown).Sequence)
	t.Logf("one more route among 1,000 took %v", time.Since(start))
	get("/1000")

	// One whose endpoints are asked whether they are well, and are slow to answer:
	// it serves at once. So it does when that is asked of one that is in use.
	withCheck := func(g *model.Gateway) {
		g.Health = map[string]model.Health{}
		for _, cluster := range g.Clusters {
			g.Health[cluster.Name] = model.Health{Check: &model.HealthCheck{
				Type: model.CheckHTTP, Path: "/healthz", Host: "web", Statuses: []model.StatusRange{{Start: 200, End: 399}},
				Interval: time.Minute, Timeout: 3 * time.Second, HealthyThreshold: 1, UnhealthyThreshold: 3,
			}}
		}
	}
	m.applied(t, m.Set(gw, content(2, nil)).Sequence)
	start = time.Now()
	m.applied(t, m.Set(gw, content(3, withCheck)).Sequence)
	for range 10 {
		for _, path := range []string{"/2", "/0"} {
			get(path)
		}
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("a new route with a health check took %v", took)
	} else {
		t.Logf("a new route with a health check took %v", took)
	}

	// A route that Envoy refuses: told by its object, which stays as it was; a
	// neighbour that comes with the same change is served.
	m.applied(t, m.Set(gw, content(3, nil)).Sequence)
	bad := content(4, nil)
	scopeName := fmt.Sprintf("port-%d/*", port)
	scope := proto.Clone(bad[kinds[routes].url][scopeName]).(*routev3.ScopedRouteConfiguration)
	for _, route := range scope.GetRouteConfiguration().GetVirtualHosts()[0].GetRoutes() {
		if route.GetName() == "shop/web-1/80" {
			route.Match.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: "("}}
		}
	}
	bad[kinds[routes].url][scopeName] = scope
	start = time.Now()
	sequence := m.Set(gw, bad).Sequence
	m.until(t, "a refused object", func(a Acks) bool {
		return len(a.Pods) == 1 && a.Pods[0].Sequence == sequence && strings.Contains(a.Pods[0].Held["shop/web-1"], "missing )")
	})
	t.Logf("it was found after %v", time.Since(start))
	get("/1")
	get("/3")
	m.applied(t, m.Set(gw, content(5, nil)).Sequence)
	get("/4")

	// A cluster that Envoy refuses: told by name, and the old routes go on.
	refused := content(3, nil)
	name := "shop/web-1/80"
	broken := proto.Clone(refused[kinds[clusters].url][name]).(*clusterv3.Cluster)
	broken.ConnectTimeout = durationpb.New(-time.Second)
	refused[kinds[clusters].url][name] = broken
	m.Set(gw, refused)
	m.until(t, "a refusal", func(a Acks) bool {
		return len(a.Pods) == 1 && a.Pods[0].Nack != nil && strings.Contains(a.Pods[0].Nack.Message, name)
	})
	get("/1")
	m.applied(t, m.Set(gw, content(3, nil)).Sequence)
	get("/1")
}

// Hundreds of good and bad versions of many objects, in any order: Envoy serves
// what it would serve if the bad ones had never been, and all neighbours as they
// are; each that it refuses is told of, and no other.
func TestRealEnvoyIsNotHarmedByBadObjects(t *testing.T) {
	const objects, steps = 40, 60
	m, _, port := startRealEnvoy(t)
	random := rand.New(rand.NewPCG(1, 7))
	type version struct {
		text string
		bad  bool
	}
	now, served := map[string]version{}, map[string]string{}
	content := func() Resources {
		host := model.VirtualHost{Hostname: "*"}
		for _, name := range slices.Sorted(maps.Keys(now)) {
			route := model.Route{
				Name: "shop/" + name + "/all/0", Match: model.Match{Path: "/" + name, Type: model.PathExact},
				Response: &model.Response{Status: 200, Body: now[name].text},
			}
			if now[name].bad {
				route.Match = model.Match{Path: "/" + name + "(" + now[name].text, Type: model.PathRegex}
			}
			host.Routes = append(host.Routes, route)
		}
		made := envoy.Translate(model.Gateway{Key: model.Key(gw), Ports: []model.Port{{Number: port, Bind: port, VirtualHosts: []model.VirtualHost{host}}}})
		made[kinds[endpoints].url] = map[string]proto.Message{}
		return made
	}
	m.applied(t, m.Set(gw, content()).Sequence)
	changes := 0
	for step := range steps {
		for _, i := range random.Perm(objects)[:1+random.IntN(objects/2)] {
			name := fmt.Sprintf("o%02d", i)
			changes++
			if random.IntN(6) == 0 {
				delete(now, name)
				delete(served, name)
				continue
			}
			now[name] = version{fmt.Sprintf("%s in step %d", name, step), random.IntN(3) == 0}
			if !now[name].bad {
				served[name] = now[name].text
			}
		}
		var bad []string
		for name, version := range now {
			if version.bad {
				bad = append(bad, "shop/"+name)
			}
		}
		slices.Sort(bad)
		sequence := m.Set(gw, content()).Sequence
		m.until(t, fmt.Sprintf("step %d: that %v are refused", step, bad), func(a Acks) bool {
			return len(a.Pods) == 1 && a.Pods[0].Sequence == sequence && slices.Equal(slices.Sorted(maps.Keys(a.Pods[0].Held)), bad)
		})
		for i := range objects {
			name := fmt.Sprintf("o%02d", i)
			resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/%s", port, name))
			if err != nil {
				t.Fatal(err)
			}
			got, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if want, good := served[name]; good && (resp.StatusCode != http.StatusOK || string(got) != want) || !good && resp.StatusCode != http.StatusNotFound {
				t.Fatalf("step %d: %s gets %d %q, where %q is good", step, name, resp.StatusCode, got, want)
			}
		}
	}
	t.Logf("%d changes of %d objects", changes, objects)
}
