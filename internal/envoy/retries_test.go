package envoy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"meshroute.io/meshroute/internal/model"
)

// mortal is a backend that closes the connection of the first n requests for
// each path /n/… once it has read them, and answers those that come after.
type mortal struct {
	net.Listener
	mu   sync.Mutex
	seen map[string]int // requests by path
	sent http.Header    // of the last request
}

func startMortal(t *testing.T) *mortal {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	m := &mortal{Listener: listener, seen: map[string]int{}}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go m.serve(conn)
		}
	}()
	return m
}

func (m *mortal) serve(conn net.Conn) {
	defer conn.Close()
	reader := bufio.NewReader(conn)
	for {
		request, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		body, err := io.ReadAll(request.Body)
		if err != nil {
			return
		}
		m.mu.Lock()
		m.seen[request.URL.Path]++
		attempt := m.seen[request.URL.Path]
		m.sent = request.Header
		m.mu.Unlock()
		var deaths int
		if _, err := fmt.Sscanf(request.URL.Path, "/%d/", &deaths); err == nil && attempt <= deaths {
			return
		}
		if request.Header.Get("Upgrade") != "" {
			fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			io.Copy(conn, reader)
			return
		}
		answer := fmt.Sprintf("%d bytes", len(body))
		fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(answer))
		if request.Method != http.MethodHead {
			io.WriteString(conn, answer)
		}
	}
}

// A request whose connection breaks before the answer is sent again where that
// does no harm, twice at most, and otherwise not.
func TestRetriesOfWhatABackendTookAndNeverAnswered(t *testing.T) {
	t.Parallel()
	backend := startMortal(t)
	const cluster = "shop/web/80"
	in := goldenCase{Endpoints: map[string][]model.Endpoint{cluster: {{
		Address: "127.0.0.1", Port: int32(backend.Addr().(*net.TCPAddr).Port),
	}}}}
	in.Gateway.Clusters = []model.Cluster{{Name: cluster}}
	port := freePort(t)
	route := func(method string) model.Route {
		return model.Route{
			Name: "all", Match: model.Match{Path: "/", Method: method}, Timeout: 10 * time.Second,
			Backends: []model.WeightedCluster{{Cluster: cluster, Weight: 1}},
		}
	}
	in.Gateway.Ports = []model.Port{{Number: port, Bind: port, VirtualHosts: []model.VirtualHost{
		{Hostname: "*", Routes: []model.Route{route("")}},
		{Hostname: "by-method", Routes: []model.Route{route("GET"), route("POST")}},
	}}}
	address := startEnvoy(t, in)

	for name, test := range map[string]struct {
		method, header string
		host           string // "shop" where it is empty
		deaths         int    // of the backend; 1 where it is 0
		body           int
		want           string // status, and how often the backend saw it
	}{
		"GET":                                {method: "GET", want: "200, seen 2"},
		"GET, three times":                   {method: "GET", deaths: 3, want: "503, seen 3"},
		"HEAD":                               {method: "HEAD", want: "200, seen 2"},
		"OPTIONS":                            {method: "OPTIONS", want: "200, seen 2"},
		"TRACE":                              {method: "TRACE", want: "200, seen 2"},
		"DELETE":                             {method: "DELETE", want: "200, seen 2"},
		"PUT":                                {method: "PUT", body: 20_000, want: "200, seen 2"},
		"PUT of more than is kept":           {method: "PUT", body: 1 << 20, want: "503, seen 1"},
		"POST":                               {method: "POST", body: 10, want: "503, seen 1"},
		"POST without a body":                {method: "POST", want: "503, seen 1"},
		"PATCH":                              {method: "PATCH", body: 10, want: "503, seen 1"},
		"a route for GET alone":              {host: "by-method", method: "GET", want: "200, seen 2"},
		"a route for POST alone":             {host: "by-method", method: "POST", body: 10, want: "503, seen 1"},
		"a method that is not listed":        {method: "PROPPATCH", want: "503, seen 1"},
		"a client cannot ask for it":         {method: "POST", header: "x-envoy-retry-on: reset,5xx\r\nx-envoy-max-retries: 5\r\n", want: "503, seen 1"},
		"a client cannot ask for more tries": {method: "GET", header: "x-envoy-max-retries: 0\r\n", want: "200, seen 2"},
		"a WebSocket that did not begin":     {method: "GET", header: "Connection: Upgrade\r\nUpgrade: websocket\r\n", want: "101, seen 2"},
	} {
		t.Run(name, func(t *testing.T) {
			path := fmt.Sprintf("/%d/%s", max(1, test.deaths), strings.ReplaceAll(name, " ", "-"))
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			host := test.host
			if host == "" {
				host = "shop"
			}
			request := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: %s\r\n%s", test.method, path, host, test.header)
			if test.body > 0 {
				request += fmt.Sprintf("Content-Length: %d\r\n", test.body)
			}
			go conn.Write(append([]byte(request+"\r\n"), bytes.Repeat([]byte("x"), test.body)...))
			response, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: test.method})
			if err != nil {
				t.Fatal(err)
			}
			response.Body.Close()
			backend.mu.Lock()
			defer backend.mu.Unlock()
			got := fmt.Sprintf("%d, seen %d", response.StatusCode, backend.seen[path])
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			for header := range backend.sent {
				if strings.Contains(strings.ToLower(header), "retr") {
					t.Errorf("the backend is told of %s: %s", header, backend.sent.Get(header))
				}
			}
		})
	}
}

// An endpoint that cannot be reached is set aside, but the last one never is:
// it may be back at any moment, and nobody else could answer.
func TestTheLastEndpointIsNeverSetAside(t *testing.T) {
	t.Parallel()
	const cluster = "shop/web/80"
	down := model.Endpoint{Address: "127.0.0.1", Port: freePort(t)}
	in := goldenCase{Endpoints: map[string][]model.Endpoint{cluster: {down}}}
	in.Gateway.Clusters = []model.Cluster{{Name: cluster}}
	port := freePort(t)
	in.Gateway.Ports = []model.Port{{Number: port, Bind: port, VirtualHosts: []model.VirtualHost{{
		Hostname: "*",
		Routes: []model.Route{{
			Name: "all", Match: model.Match{Path: "/"}, Timeout: 10 * time.Second,
			Backends: []model.WeightedCluster{{Cluster: cluster, Weight: 1}},
		}},
	}}}}
	address := startEnvoy(t, in)
	get := func() string {
		t.Helper()
		response, err := http.Get("http://" + address)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%d %s", response.StatusCode, body)
	}
	for range 10 {
		if got := get(); !strings.HasPrefix(got, "503 upstream connect error") {
			t.Fatalf("nobody listens: %s", got)
		}
	}
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", down.Port))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "back") })}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	if got := get(); got != "200 back" {
		t.Errorf("at once when it is back: %s", got)
	}
}
