package envoy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"meshroute.io/meshroute/internal/model"
)

func TestTimeouts(t *testing.T) {
	t.Parallel()
	var attempts atomic.Int32
	done := make(chan struct{})
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/hangs-once"):
			if attempts.Add(1) == 1 {
				<-done
			}
		case strings.HasPrefix(r.URL.Path, "/trickles"):
			for i := range 6 {
				fmt.Fprint(w, i)
				http.NewResponseController(w).Flush()
				select { // slower than nothing, faster than idle
				case <-time.After(100 * time.Millisecond):
				case <-done:
				}
			}
		case strings.HasPrefix(r.URL.Path, "/hangs"):
			<-done
		}
		fmt.Fprint(w, "answer")
	}))
	t.Cleanup(backend.Close)
	t.Cleanup(func() { close(done) }) // before the server waits for its handlers
	idle := func(route model.Route, timeout time.Duration) model.Route {
		route.IdleTimeout = &timeout
		return route
	}
	within := func(path string, request, attempt time.Duration) model.Route {
		route := toWeb(model.Match{Path: path})
		route.Timeout, route.BackendTimeout = request, attempt
		return route
	}
	address := startEnvoy(t, gatewayTo(t, endpointOf(t, backend), map[string][]model.Route{"*": {
		within("/hangs-once", 20*time.Second, 300*time.Millisecond),
		within("/hangs/attempt", 20*time.Second, 200*time.Millisecond),
		within("/hangs/request", 300*time.Millisecond, 0),
		idle(within("/hangs/idle", 0, 0), 300*time.Millisecond),
		idle(within("/trickles/idle", 0, 0), 400*time.Millisecond),
		within("/trickles/request", 300*time.Millisecond, 0),
		within("/", 0, 0),
	}}))
	for name, c := range map[string]struct{ method, path, want string }{
		"an attempt: GET is tried again":            {"GET", "/hangs-once", "200 answer"},
		"an attempt: POST is not":                   {"POST", "/hangs/attempt", "504 upstream request timeout"},
		"an attempt: at most three":                 {"GET", "/hangs/attempt", "504 upstream request timeout"},
		"the request":                               {"GET", "/hangs/request", "504 upstream request timeout"},
		"idle: nothing came":                        {"GET", "/hangs/idle", "504 stream timeout"},
		"idle: something comes now and again":       {"GET", "/trickles/idle", "200 012345answer"},
		"the request: whatever comes now and again": {"GET", "/trickles/request", "200 cut short"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			request, err := http.NewRequest(c.method, "http://"+address+c.path, http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			response, err := http.DefaultClient.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			body, err := io.ReadAll(response.Body)
			if err != nil {
				body = []byte("cut short")
			}
			if diff := cmp.Diff(c.want, fmt.Sprintf("%d %s", response.StatusCode, body)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// A WebSocket lasts as long as somebody says something now and again, whatever
// the timeouts of requests are.
func TestWebSocketsOutliveRequests(t *testing.T) {
	t.Parallel()
	backend := startMortal(t) // which answers an upgrade, and then echoes
	idle := 400 * time.Millisecond
	short, quiet := toWeb(model.Match{Path: "/short"}), toWeb(model.Match{Path: "/quiet"})
	short.Timeout, short.BackendTimeout = 200*time.Millisecond, 100*time.Millisecond
	quiet.IdleTimeout = &idle
	short.IdleTimeout = &idle
	address := startEnvoy(t, gatewayTo(t, model.Endpoint{
		Address: "127.0.0.1", Port: int32(backend.Addr().(*net.TCPAddr).Port),
	}, map[string][]model.Route{"*": {short, quiet, toWeb(model.Match{Path: "/"})}}))
	open := func(path string) (net.Conn, *bufio.Reader) {
		t.Helper()
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", path)
		reader := bufio.NewReader(conn)
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { response.Body.Close() })
		if response.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("%s: %s", path, response.Status)
		}
		return conn, reader
	}

	conn, reader := open("/short")
	began := time.Now()
	for ticker := time.NewTicker(100 * time.Millisecond); time.Since(began) < time.Second; <-ticker.C {
		said := []byte("said something")
		if _, err := conn.Write(said); err != nil {
			t.Fatalf("after %s: %v", time.Since(began), err)
		}
		heard := make([]byte, len(said))
		if _, err := io.ReadFull(reader, heard); err != nil || !bytes.Equal(said, heard) {
			t.Fatalf("after %s: %v, heard %q", time.Since(began), err, heard)
		}
	}

	_, reader = open("/quiet")
	if _, err := reader.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("a WebSocket on which nothing moves was not ended: %v", err)
	}
}
