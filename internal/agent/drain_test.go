package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"

	"meshroute.io/meshroute/internal/envoy"
	"meshroute.io/meshroute/internal/model"
)

func TestProgress(t *testing.T) {
	type poll struct {
		at   time.Duration
		seen counters
		want string
	}
	const nobody, idleClients = "no client is left", "the clients that are left are idle"
	for name, polls := range map[string][]poll{
		"nobody is there: not before others know": {
			{0, counters{}, ""},
			{4900 * time.Millisecond, counters{}, ""},
			{5 * time.Second, counters{}, nobody},
		},
		"the last client goes": {
			{0, counters{activeConnections: 1, activeRequests: 1, requests: 1}, ""},
			{20 * time.Second, counters{activeConnections: 1, activeRequests: 1, requests: 1}, ""},
			{21 * time.Second, counters{requests: 1}, nobody},
		},
		"idle all along": {
			{0, counters{activeConnections: 3, requests: 9}, ""},
			{4 * time.Second, counters{activeConnections: 3, requests: 9}, ""},
			{5 * time.Second, counters{activeConnections: 3, requests: 9}, idleClients},
		},
		"requests between polls are no silence": {
			{0, counters{activeConnections: 3, requests: 9}, ""},
			{4 * time.Second, counters{activeConnections: 3, requests: 10}, ""},
			{6 * time.Second, counters{activeConnections: 3, requests: 11}, ""},
			{8900 * time.Millisecond, counters{activeConnections: 3, requests: 11}, ""},
			{9 * time.Second, counters{activeConnections: 3, requests: 11}, idleClients},
		},
		"a request on its way is no silence, however long": {
			{0, counters{activeConnections: 1, activeRequests: 1, requests: 1}, ""},
			{50 * time.Second, counters{activeConnections: 1, activeRequests: 1, requests: 1}, ""},
			{51 * time.Second, counters{activeConnections: 1, requests: 1}, ""},
			{53 * time.Second, counters{activeConnections: 1, requests: 1}, idleClients},
		},
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Unix(1_000_000, 0)
			p := progress{least: leastDrain, quiet: quietDrain, began: began}
			for _, poll := range polls {
				if got := p.judge(began.Add(poll.at), poll.seen); got != poll.want {
					t.Errorf("after %v: %q, wanted %q", poll.at, got, poll.want)
				}
			}
		})
	}
}

// A container that is restarted alone is no end of the pod.
func TestOneContainerAloneDrainsNothing(t *testing.T) {
	t.Run("Envoy's", func(t *testing.T) {
		d := newDrain(time.Minute, nil, func() {}, testr.New(t))
		d.together = 50 * time.Millisecond
		answer := make(chan int, 1)
		go func() { answer <- ask(probes(func() bool { return true }, d, nil), "/drained").Code }()
		if got := <-answer; got != http.StatusOK || d.draining.Load() {
			t.Errorf("/drained: %d, draining: %v", got, d.draining.Load())
		}
		// Nor was it the beginning of one.
		d.run(t.Context())
		if d.draining.Load() {
			t.Error("the agent, asked to end later, drains")
		}
	})
	t.Run("the agent's", func(t *testing.T) {
		d := newDrain(time.Minute, nil, func() {}, testr.New(t))
		d.together = 50 * time.Millisecond
		d.run(t.Context())
		if d.draining.Load() {
			t.Error("it drains")
		}
	})
}

func TestFewMayWait(t *testing.T) {
	d := newDrain(time.Minute, nil, func() {}, testr.New(t))
	handler := probes(func() bool { return true }, d, nil)
	ctx, cancel := context.WithCancel(t.Context())
	answers := make(chan int)
	for range maxWaiters {
		go func() {
			recorder := httptest.NewRecorder()
			handler.ServeHTTP(recorder, httptest.NewRequestWithContext(ctx, http.MethodGet, "/drained", http.NoBody))
			answers <- recorder.Code
		}()
	}
	if err := eventually(t.Context(), func() error {
		if len(d.waiters) < maxWaiters {
			return fmt.Errorf("%d wait", len(d.waiters))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if got := ask(handler, "/drained").Code; got != http.StatusTooManyRequests {
		t.Errorf("one more: %d", got)
	}
	cancel() // they leave
	for range maxWaiters {
		<-answers
	}
	if len(d.waiters) != 0 {
		t.Errorf("%d are still counted", len(d.waiters))
	}
}

// pod is the real Envoy with a port for clients, and the drain of its pod.
type pod struct {
	*drain
	address, probes string
	end             func()        // asks both containers to end
	ended           chan struct{} // closed when both have
	told            atomic.Bool   // the manager was
}

func startPod(t *testing.T, limit time.Duration) *pod {
	t.Helper()
	binary := os.Getenv("ENVOY_BIN")
	if binary == "" {
		t.Skip("ENVOY_BIN is not set: run make unit, or set ENVOY_BIN=$(hack/envoy.sh)")
	}
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			conn, buffered, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			io.Copy(conn, buffered)
			return
		}
		if pause, err := time.ParseDuration(r.URL.Query().Get("pause")); err == nil {
			time.Sleep(pause)
		}
		io.WriteString(w, "ok")
	}))
	t.Cleanup(backend.Close)

	folder, err := os.MkdirTemp("", "drain") //nolint:usetesting // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	ports := [2]int{}
	for i := range ports {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ports[i] = listener.Addr().(*net.TCPAddr).Port
		listener.Close()
	}
	socket := filepath.Join(folder, "admin")
	bootstrap, err := envoy.Bootstrap(envoy.BootstrapOptions{
		Gateway: model.Key{Namespace: "shop", Name: "edge"}, ProbePort: int32(ports[1]),
		XDSSocket: filepath.Join(folder, "xds"), PagesSocket: filepath.Join(folder, "pages"), AdminSocket: socket,
	})
	if err != nil {
		t.Fatal(err)
	}
	// What xDS would bring is written into it.
	var config map[string]any
	if err := json.Unmarshal(bootstrap, &config); err != nil {
		t.Fatal(err)
	}
	delete(config, "dynamicResources")
	static := config["staticResources"].(map[string]any)
	add := func(kind, text string) {
		var resource any
		if err := json.Unmarshal([]byte(text), &resource); err != nil {
			t.Fatal(err)
		}
		static[kind] = append(static[kind].([]any), resource)
	}
	add("clusters", fmt.Sprintf(`{"name": "backend", "load_assignment": {"cluster_name": "backend", "endpoints": [{"lb_endpoints": [
		{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": %d}}}}]}]}}`, backend.Listener.Addr().(*net.TCPAddr).Port))
	add("listeners", fmt.Sprintf(`{"name": "port-80", "address": {"socket_address": {"address": "127.0.0.1", "port_value": %d}},
		"filter_chains": [{"filters": [{"name": "http", "typed_config": {
			"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
			"stat_prefix": "port-80", "upgrade_configs": [{"upgrade_type": "websocket"}],
			"http_filters": [{"name": "router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
			"route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "backend"}}]}]}}}]}]}`, ports[0]))
	encoded, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(folder, "envoy.json")
	if err := os.WriteFile(path, encoded, 0o600); err != nil {
		t.Fatal(err)
	}
	output := &bytes.Buffer{}
	process := exec.Command(binary, "--config-path", path, "--service-node", "test", "--disable-hot-restart", "--concurrency", "1", "--log-level", "warning")
	process.Stdout, process.Stderr = output, output
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { process.Wait(); close(ended) }()
	t.Cleanup(func() {
		process.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("Envoy says:\n%s", output)
		}
	})

	p := &pod{
		address: fmt.Sprintf("127.0.0.1:%d", ports[0]), probes: fmt.Sprintf("http://127.0.0.1:%d", ports[1]),
		ended: make(chan struct{}),
	}
	p.drain = newDrain(limit, newAdmin(socket), func() { p.told.Store(true) }, testr.New(t))
	p.least, p.quiet = time.Second, time.Second
	handler := probes(func() bool { return true }, p.drain, p.admin)
	p.end = func() {
		go p.run(t.Context())
		go func() {
			ask(handler, "/drained")
			process.Process.Kill()
			<-ended
			close(p.ended)
		}()
	}
	if err := eventually(t.Context(), func() error { return p.is(http.StatusOK, envoy.ReadyPath) }); err != nil {
		t.Fatal(err)
	}
	return p
}

// is tells whether Envoy answers a probe by a status.
func (p *pod) is(status int, path string) error {
	response, err := http.Get(p.probes + path)
	if err != nil {
		return err
	}
	response.Body.Close()
	if response.StatusCode != status {
		return fmt.Errorf("%s: %s", path, response.Status)
	}
	return nil
}

func (p *pod) ends(t *testing.T, within time.Duration) {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(within):
		t.Fatalf("not drained within %v", within)
	}
}

// request asks on a connection of the test's own, so that it sees what becomes
// of that: the answer's status, and whether it closes the connection.
func request(t *testing.T, conn net.Conn, path string) (status int, closes bool) {
	t.Helper()
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: shop\r\n\r\n", path)
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
	response.Body.Close()
	return response.StatusCode, response.Close
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	return conn
}

func TestClientsFinishAndGo(t *testing.T) {
	t.Parallel()
	p := startPod(t, time.Minute)
	busy, kept := dial(t, p.address), dial(t, p.address)
	if _, closes := request(t, kept, "/"); closes {
		t.Error("Connection: close before the pod ends")
	}
	finished := make(chan int, 1)
	go func() {
		status, _ := request(t, busy, "/?pause=3s")
		finished <- status
	}()
	if err := eventually(t.Context(), func() error { return activeRequests(p, 1) }); err != nil {
		t.Fatal(err)
	}

	p.end()
	if err := eventually(t.Context(), func() error { return p.is(http.StatusServiceUnavailable, envoy.ReadyPath) }); err != nil {
		t.Fatalf("it is still ready: %v", err)
	}
	if !p.told.Load() {
		t.Error("the manager is not told")
	}
	if err := p.is(http.StatusOK, envoy.LivePath); err != nil {
		t.Errorf("it would be killed: %v", err)
	}
	if status, closes := request(t, kept, "/"); status != http.StatusOK || !closes {
		t.Errorf("a client of before: %d, close %v", status, closes)
	}
	if status, closes := request(t, dial(t, p.address), "/"); status != http.StatusOK || !closes {
		t.Errorf("a client that does not know yet: %d, close %v", status, closes)
	}
	select {
	case <-p.ended:
		t.Error("Envoy ended before its clients")
	case status := <-finished:
		if status != http.StatusOK {
			t.Errorf("the request on its way: %d", status)
		}
	}
	p.ends(t, 5*time.Second)
}

func TestHTTP2ClientsAreToldToGo(t *testing.T) {
	t.Parallel()
	p := startPod(t, time.Minute)
	var dialled atomic.Int32
	transport := &http.Transport{
		Protocols: new(http.Protocols),
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			dialled.Add(1)
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
	}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	get := func() {
		t.Helper()
		response, err := client.Get("http://" + p.address)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, response.Body)
		response.Body.Close()
		if response.StatusCode != http.StatusOK || response.ProtoMajor != 2 {
			t.Fatalf("%s %s", response.Proto, response.Status)
		}
	}
	get()
	get()
	if got := dialled.Load(); got != 1 {
		t.Fatalf("%d connections for two requests", got)
	}
	p.end()
	// A request that meets GOAWAY has its answer; the next one goes elsewhere.
	if err := eventually(t.Context(), func() error {
		get()
		if dialled.Load() < 2 {
			return fmt.Errorf("%d connection", dialled.Load())
		}
		return nil
	}); err != nil {
		t.Errorf("the client stays: %v", err)
	}
	p.ends(t, 15*time.Second)
}

func TestIdleClientsDoNotHoldUpTheEnd(t *testing.T) {
	t.Parallel()
	p := startPod(t, time.Minute)
	idle := dial(t, p.address)
	request(t, idle, "/")
	p.end()
	p.ends(t, 10*time.Second)
}

func TestWebSocketsGoOnUntilTheLimit(t *testing.T) {
	t.Parallel()
	p := startPod(t, 4*time.Second)
	conn := dial(t, p.address)
	fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, nil)
	if err != nil || response.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", response, err)
	}
	defer response.Body.Close()
	began := time.Now()
	p.end()
	echoes := 0
	for ; ; echoes++ {
		message := fmt.Sprintf("message %d\n", echoes)
		if _, err := io.WriteString(conn, message); err != nil {
			break
		}
		if echo, err := reader.ReadString('\n'); err != nil || echo != message {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if took := time.Since(began); took < 4*time.Second || took > 7*time.Second || echoes < 20 {
		t.Errorf("cut off after %v and %d messages", took, echoes)
	}
	p.ends(t, time.Second)
}

func TestAnEnvoyThatHasEndedIsDrained(t *testing.T) {
	t.Parallel()
	d := newDrain(time.Minute, newAdmin(filepath.Join(t.TempDir(), "none")), func() {}, testr.New(t))
	go ask(probes(func() bool { return true }, d, nil), "/drained")
	done := make(chan struct{})
	go func() { d.run(t.Context()); close(done) }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("it waits for nobody")
	}
}

// activeRequests tells whether Envoy works on so many.
func activeRequests(p *pod, wanted uint64) error {
	stats, err := p.admin.ask(context.Background(), http.MethodGet, "/stats?filter="+url.QueryEscape(connectionStats))
	if err != nil {
		return err
	}
	now, err := parseCounters(stats)
	if err == nil && now.activeRequests != wanted {
		return fmt.Errorf("%d requests", now.activeRequests)
	}
	return err
}
