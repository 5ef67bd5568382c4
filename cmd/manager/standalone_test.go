package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"meshroute.io/meshroute/internal/standalone"
)

// screen is a terminal that can be read while it is written to.
type screen struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// Files in, answers out: the manager's own wiring with the real agent and the
// real Envoy.
func TestStandalone(t *testing.T) {
	envoy := os.Getenv("ENVOY_BIN")
	if envoy == "" {
		t.Skip("ENVOY_BIN names no Envoy")
	}
	binaries, folder := t.TempDir(), t.TempDir()
	agent := filepath.Join(binaries, "gateway-agent")
	if output, err := exec.CommandContext(t.Context(), "go", "build", "-o", agent, "../gateway-agent").CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, output)
	}
	one, two := backend(t, "one"), backend(t, "two")
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := free.Addr().(*net.TCPAddr).Port
	free.Close()
	address := fmt.Sprintf("http://127.0.0.1:%d/", port)

	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(folder, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sendTo := func(port int) string {
		return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ports: [{name: http, port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: %d}]
endpoints: [{addresses: [127.0.0.1]}]
`, port)
	}
	write("gateway.yaml", fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: meshroute
  listeners: [{name: http, protocol: HTTP, port: %d}]
`, port))
	write("route.yaml", `
apiVersion: meshroute.io/v1alpha1
kind: ServiceRoute
metadata: {name: web}
spec:
  parentRefs: [{name: edge}]
  rules:
  - name: all
    backends: [{name: web, port: http}]
`)
	write("service.yaml", sendTo(one))

	out := &screen{}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- runStandalone(ctx, standalone.Options{
			Folder: folder, StateDir: t.TempDir(), Envoy: envoy, Agent: agent, Out: out,
		})
	}()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("it ended with: %v", err)
		}
	})
	t.Cleanup(stop)
	until := func(what string, done func() bool) {
		t.Helper()
		timeout := time.After(20 * time.Second)
		ticker := time.NewTicker(10 * time.Millisecond)
		defer ticker.Stop()
		for !done() {
			select {
			case <-ticker.C:
			case err := <-ended:
				ended <- nil
				t.Fatalf("it ended before this came: %s: %v", what, err)
			case <-timeout:
				t.Fatalf("never came: %s; printed: %s", what, out)
			}
		}
	}
	printed := func(text string) func() bool {
		return func() bool { return strings.Contains(out.String(), text) }
	}
	answers := func(want string) func() bool { return func() bool { return get(address) == want } }

	until("the first answer", answers("200 one"))
	until("the table", printed("1 of 1 routes ready"))

	write("service.yaml", sendTo(two))
	until("the answer of the edited file", answers("200 two"))

	write("service.yaml", sendTo(one)+"broken: [\n")
	until("a word about the broken file", printed("service.yaml: document 2: "))
	if !printed("(what it held before stays in use)")() {
		t.Errorf("printed: %s", out)
	}
	if got := get(address); got != "200 two" {
		t.Errorf("with a broken file: %s", got)
	}

	write("service.yaml", sendTo(one))
	until("the answer of the mended file", answers("200 one"))
	until("a word about the mended file", printed("all files are good"))

	stop()
	if got := get(address); !strings.Contains(got, "connection refused") {
		t.Errorf("after the end: %s", got)
	}
}

// backend answers with its name, and returns its port.
func backend(t *testing.T, name string) int {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, name)
	}))
	t.Cleanup(server.Close)
	return server.Listener.Addr().(*net.TCPAddr).Port
}

// get returns status and body, or what went wrong.
func get(address string) string {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(address)
	if err != nil {
		return err.Error()
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%d %s", response.StatusCode, body)
}
