package envoy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"meshroute.io/meshroute/internal/model"
)

const webCluster = "shop/web/80"

// gatewayTo is a gateway with one port, the given hosts, and one cluster with
// one backend.
func gatewayTo(t *testing.T, backend model.Endpoint, hosts map[string][]model.Route) goldenCase {
	t.Helper()
	in := goldenCase{Endpoints: map[string][]model.Endpoint{webCluster: {backend}}}
	in.Gateway.Clusters = []model.Cluster{{Name: webCluster}}
	port := model.Port{Number: freePort(t)}
	port.Bind = port.Number
	for hostname, routes := range hosts {
		port.VirtualHosts = append(port.VirtualHosts, model.VirtualHost{Hostname: hostname, Routes: routes})
	}
	in.Gateway.Ports = []model.Port{port}
	return in
}

// toWeb is a route to the one backend.
func toWeb(match model.Match) model.Route {
	return model.Route{
		Name: "shop/web", Match: match, Timeout: 5 * time.Second,
		Backends: []model.WeightedCluster{{Cluster: webCluster, Weight: 1}},
	}
}

// answer is what came back for a request.
type answer struct {
	status int
	header http.Header
	body   string
}

// ask sends a request as it is written, for net/http would tidy it up.
func ask(t *testing.T, address, method, host, path string, headers ...string) answer {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: %s\r\n", method, path, host)
	for _, header := range headers {
		fmt.Fprintf(conn, "%s\r\n", header)
	}
	io.WriteString(conn, "\r\n")
	response, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{response.StatusCode, response.Header, string(body)}
}

// echo answers with what it saw, and the headers that begin with X- or are named.
func echo(named ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("X-Version", "1")
		w.Header().Add("X-Version", "2")
		w.Header().Set("X-Secret", "tell nobody")
		fmt.Fprintf(w, "%s %s %s", r.Method, r.Host, r.RequestURI)
		var lines []string
		for name, values := range r.Header {
			if slices.Contains(named, name) || strings.HasPrefix(name, "X-Test") {
				lines = append(lines, fmt.Sprintf("\n%s: %s", name, strings.Join(values, "|")))
			}
		}
		slices.Sort(lines)
		io.WriteString(w, strings.Join(lines, ""))
	}
}

func TestMatches(t *testing.T) {
	t.Parallel()
	backend := httptest.NewServer(echo())
	t.Cleanup(backend.Close)
	// Each route tells by its path which one it is.
	named := func(name string, match model.Match) model.Route {
		route := toWeb(match)
		route.Rewrite.Path = "/" + name
		return route
	}
	like := func(name, value string) []model.ValueMatch {
		return []model.ValueMatch{{Name: name, Value: value, Regex: true}}
	}
	is := func(name, value string) []model.ValueMatch {
		return []model.ValueMatch{{Name: name, Value: value}}
	}
	address := startEnvoy(t, gatewayTo(t, endpointOf(t, backend), map[string][]model.Route{
		"regex": {
			named("orders", model.Match{Path: "/users/[^/]+/orders/[0-9]+", Type: model.PathRegex}),
			named("images", model.Match{Path: `.*\.(png|jpe?g)`, Type: model.PathRegex}),
			named("big", model.Match{Path: "/x{1,140}", Type: model.PathRegex}),
			named("none", model.Match{Path: "/"}),
		},
		"method": {
			named("post", model.Match{Path: "/", Method: "POST"}),
			named("get", model.Match{Path: "/", Method: "GET"}),
		},
		"header": {
			named("beta", model.Match{Path: "/", Headers: like("x-test", "beta-[0-9]+")}),
			named("two", model.Match{Path: "/", Headers: is("x-test", "two")}),
			named("none", model.Match{Path: "/"}),
		},
		"query": {
			named("both", model.Match{Path: "/", QueryParams: append(is("a", "1"), is("b", "2")...)}),
			named("exact", model.Match{Path: "/", QueryParams: is("v", "a%20b")}),
			named("brackets", model.Match{Path: "/", QueryParams: is("filter[x]", "1")}),
			named("regex", model.Match{Path: "/", QueryParams: like("v", "[0-9]+")}),
			named("none", model.Match{Path: "/"}),
		},
		"*.example.com":     {named("wildcard", model.Match{Path: "/"})},
		"*.eu.example.com":  {named("longer-wildcard", model.Match{Path: "/"})},
		"shop.example.com":  {named("exact", model.Match{Path: "/"})},
		"*":                 {named("any", model.Match{Path: "/"})},
		"x.y.z.example.com": {named("deep", model.Match{Path: "/"})},
	}))
	for name, c := range map[string]struct {
		method, host, path string
		header             string
		want               string
	}{
		"regex":                                {host: "regex", path: "/users/7/orders/8", want: "orders"},
		"regex: the query is not looked at":    {host: "regex", path: "/users/7/orders/8?x=/y", want: "orders"},
		"regex: the whole path":                {host: "regex", path: "/users/7/orders/8/items", want: "none"},
		"regex: the whole path, in front":      {host: "regex", path: "/a/users/7/orders/8", want: "none"},
		"regex: an element is one":             {host: "regex", path: "/users/7/8/orders/8", want: "none"},
		"regex: paths are normalized before":   {host: "regex", path: "/users/7/../9//orders/8", want: "orders"},
		"regex: its end":                       {host: "regex", path: "/a/b.jpeg", want: "images"},
		"regex: a bigger program than usual":   {host: "regex", path: "/" + strings.Repeat("x", 140), want: "big"},
		"method":                               {method: "POST", host: "method", path: "/", want: "post"},
		"another method":                       {host: "method", path: "/", want: "get"},
		"a method that no rule has":            {method: "PUT", host: "method", path: "/", want: "404"},
		"header: regex":                        {host: "header", path: "/", header: "x-test: beta-12", want: "beta"},
		"header: the whole value":              {host: "header", path: "/", header: "x-test: beta-12x", want: "none"},
		"header: one of several":               {host: "header", path: "/", header: "x-test: a\r\nx-test: beta-3", want: "beta"},
		"header: another of several":           {host: "header", path: "/", header: "x-test: two\r\nx-test: a", want: "two"},
		"header: a list is one value":          {host: "header", path: "/", header: "x-test: two, a", want: "none"},
		"query: both":                          {host: "query", path: "/?b=2&a=1", want: "both"},
		"query: one of both":                   {host: "query", path: "/?b=2", want: "none"},
		"query: regex":                         {host: "query", path: "/?x&v=12", want: "regex"},
		"query: the whole value":               {host: "query", path: "/?v=12x", want: "none"},
		"query: as it stands in the URL":       {host: "query", path: "/?v=a%20b", want: "exact"},
		"query: the first value counts":        {host: "query", path: "/?v=1&v=x", want: "regex"},
		"query: the first value counts, again": {host: "query", path: "/?v=x&v=1", want: "none"},
		"query: brackets":                      {host: "query", path: "/?filter[x]=1", want: "brackets"},
		"query: names are case-sensitive":      {host: "query", path: "/?V=1", want: "none"},
		"host: exact before wildcard":          {host: "shop.example.com", path: "/", want: "exact"},
		"host: wildcard":                       {host: "web.example.com", path: "/", want: "wildcard"},
		"host: several labels":                 {host: "a.b.example.com:8888", path: "/", want: "wildcard"},
		"host: the longer wildcard":            {host: "shop.eu.example.com", path: "/", want: "longer-wildcard"},
		"host: the longer, several labels":     {host: "a.b.EU.example.com", path: "/", want: "longer-wildcard"},
		"host: the wildcard's own suffix":      {host: "eu.example.com", path: "/", want: "wildcard"},
		"host: exact and deep":                 {host: "x.y.z.example.com", path: "/", want: "deep"},
		"host: below an exact one":             {host: "w.x.y.z.example.com", path: "/", want: "wildcard"},
		"host: not the suffix alone":           {host: "example.com", path: "/", want: "any"},
		"host: any":                            {host: "example.org", path: "/", want: "any"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			headers := []string{}
			if c.header != "" {
				headers = append(headers, c.header)
			}
			if c.method == "" {
				c.method = "GET"
			}
			answer := ask(t, address, c.method, c.host, c.path, headers...)
			got := fmt.Sprint(answer.status)
			if answer.status == http.StatusOK {
				_, path, _ := strings.Cut(strings.Fields(answer.body)[2], "/")
				got, _, _ = strings.Cut(path, "?")
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("%s%s goes to (-want +got):\n%s", c.host, c.path, diff)
			}
		})
	}
}

func TestRewrites(t *testing.T) {
	t.Parallel()
	backend := httptest.NewServer(echo("X-Envoy-Original-Path", "X-Envoy-Original-Host"))
	t.Cleanup(backend.Close)
	rewritten := func(match model.Match, to model.Rewrite) model.Route {
		route := toWeb(match)
		route.Rewrite = to
		return route
	}
	address := startEnvoy(t, gatewayTo(t, endpointOf(t, backend), map[string][]model.Route{
		"shop": {
			rewritten(model.Match{Path: "/path"}, model.Rewrite{Path: "/other"}),
			rewritten(model.Match{Path: "/escaped"}, model.Rewrite{Path: "/a%20b/%25REQ(host)%25"}),
			rewritten(model.Match{Path: "/exact", Type: model.PathExact}, model.Rewrite{Path: "/e"}),
			rewritten(model.Match{Path: "/u/[0-9]+", Type: model.PathRegex}, model.Rewrite{Path: "/user"}),
			rewritten(model.Match{Path: "/host"}, model.Rewrite{Hostname: "backend.example.com"}),
			rewritten(model.Match{Path: "/both"}, model.Rewrite{Prefix: "/", Hostname: "backend.example.com"}),
		},
	}))
	for path, want := range map[string]string{
		"/path/x/y?q=1": "GET shop /other?q=1",
		"/path":         "GET shop /other",
		"/escaped":      "GET shop /a%20b/%25REQ(host)%25",
		"/exact?q":      "GET shop /e?q",
		"/u/12?q":       "GET shop /user?q",
		"/host/x":       "GET backend.example.com /host/x",
		"/both/x?q":     "GET backend.example.com /x?q",
	} {
		if body := ask(t, address, "GET", "shop", path).body; body != want {
			t.Errorf("%s: the backend saw %q, not %q", path, body, want)
		}
	}
}

func TestRedirects(t *testing.T) {
	t.Parallel()
	redirected := func(match model.Match, to model.Redirect) model.Route {
		if to.Status == 0 {
			to.Status = 302
		}
		return model.Route{Name: "shop/web", Match: match, Redirect: &to}
	}
	below := func(path string) model.Match { return model.Match{Path: path} }
	keep := int32(model.KeepPort)
	routes := []model.Route{
		redirected(below("/https"), model.Redirect{Scheme: "https"}),
		redirected(below("/https-8443"), model.Redirect{Scheme: "https", Port: 8443}),
		redirected(below("/host"), model.Redirect{Hostname: "other.example.com", Scheme: "http"}),
		redirected(below("/host-8888"), model.Redirect{Hostname: "other.example.com", Port: 8888}),
		redirected(below("/path"), model.Redirect{Path: "/new%20path", Port: keep}),
		redirected(below("/prefix"), model.Redirect{Prefix: "/p", Port: keep}),
		redirected(below("/root"), model.Redirect{Prefix: "/", Port: keep}),
		redirected(below("/all"), model.Redirect{Scheme: "https", Hostname: "other.example.com", Port: 444, Prefix: "/", Status: 308}),
		redirected(model.Match{Path: "/exact", Type: model.PathExact}, model.Redirect{Path: "/e", Port: keep, Status: 301}),
		redirected(below("/303"), model.Redirect{Path: "/x", Port: keep, Status: 303}),
		redirected(below("/307"), model.Redirect{Path: "/x", Port: keep, Status: 307}),
	}
	routes[0].ResponseHeaders.Set = []model.Header{{Name: "x-why", Value: "100%"}}
	address := startEnvoy(t, gatewayTo(t, model.Endpoint{Address: "127.0.0.1", Port: 1}, map[string][]model.Route{
		"*":    routes,
		"root": {redirected(below("/"), model.Redirect{Prefix: "/below", Port: keep})},
	}))
	for name, c := range map[string]struct{ host, path, want string }{
		"scheme":                           {"shop", "/https/x?q=1", "302 https://shop/https/x?q=1"},
		"scheme: the old one's usual port": {"shop:80", "/https", "302 https://shop:443/https"},
		"scheme: another port":             {"shop:8888", "/https", "302 https://shop:443/https"},
		"scheme: an address":               {"[::1]:8888", "/https", "302 https://[::1]:443/https"},
		"scheme and port":                  {"shop:8888", "/https-8443", "302 https://shop:8443/https-8443"},
		"scheme and port, no port named":   {"shop", "/https-8443", "302 https://shop:8443/https-8443"},
		"hostname":                         {"shop:8888", "/host", "302 http://other.example.com/host"},
		"hostname, the listener's port":    {"shop", "/host-8888", "302 http://other.example.com:8888/host-8888"},
		"path":                             {"shop:8888", "/path/x?q", "302 http://shop:8888/new%20path?q"},
		"prefix":                           {"shop", "/prefix/x?q", "302 http://shop/p/x?q"},
		"prefix: alone":                    {"shop", "/prefix", "302 http://shop/p"},
		"prefix to the root":               {"shop", "/root/x", "302 http://shop/x"},
		"prefix to the root: alone":        {"shop", "/root", "302 http://shop/"},
		"prefix from the root":             {"root", "/y?q", "302 http://root/below/y?q"},
		"everything":                       {"shop:80", "/all/x?q", "308 https://other.example.com:444/x?q"},
		"an exact path":                    {"shop", "/exact", "301 http://shop/e"},
		"303":                              {"shop", "/303", "303 http://shop/x"},
		"307":                              {"shop", "/307", "307 http://shop/x"},
	} {
		t.Run(name, func(t *testing.T) {
			answer := ask(t, address, "GET", c.host, c.path)
			got := fmt.Sprintf("%d %s", answer.status, answer.header.Get("Location"))
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("%s%s (-want +got):\n%s", c.host, c.path, diff)
			}
			if strings.HasPrefix(name, "scheme:") && answer.header.Get("X-Why") != "100%" {
				t.Errorf("the answer's headers are not changed: %v", answer.header)
			}
		})
	}
}

func TestHeaderChanges(t *testing.T) {
	t.Parallel()
	backend := httptest.NewServer(echo("User-Agent", "Accept", "X-Forwarded-Proto"))
	t.Cleanup(backend.Close)
	route := toWeb(model.Match{Path: "/"})
	route.RequestHeaders = model.HeaderChanges{
		Set:    []model.Header{{Name: "x-test-set", Value: "100% %REQ(host)%"}, {Name: "x-forwarded-proto", Value: "https"}},
		Add:    []model.Header{{Name: "x-test-add", Value: "3"}},
		Remove: []string{"user-agent", "x-test-gone"},
	}
	route.ResponseHeaders = model.HeaderChanges{
		Set:    []model.Header{{Name: "x-version", Value: "%d"}},
		Add:    []model.Header{{Name: "cache-control", Value: "no-store"}},
		Remove: []string{"x-secret", "server"},
	}
	own := model.Route{
		Name: "own", Match: model.Match{Path: "/own"}, ResponseHeaders: model.HeaderChanges{
			Set: []model.Header{{Name: "content-type", Value: "text/own"}, {Name: "x-own", Value: "1"}},
		},
		Response: &model.Response{Status: 200, Body: "own", ContentType: "text/plain"},
	}
	empty := route
	empty.Match.Path, empty.Backends = "/empty", []model.WeightedCluster{{Cluster: "shop/empty/80", Weight: 1}}
	in := gatewayTo(t, endpointOf(t, backend), map[string][]model.Route{"*": {own, empty, route}})
	in.Gateway.Clusters = append(in.Gateway.Clusters, model.Cluster{Name: "shop/empty/80"})
	address := startEnvoy(t, in)
	changed := ask(t, address, "GET", "shop", "/", "User-Agent: me", "Accept: all",
		"X-Test-Set: 1", "X-Test-Set: 2", "X-Test-Add: 1", "X-Test-Add: 2", "X-Test-Gone: 1")
	want := "GET shop /\nAccept: all\nX-Forwarded-Proto: https\nX-Test-Add: 1|2|3\nX-Test-Set: 100% %REQ(host)%"
	if diff := cmp.Diff(want, changed.body); diff != "" {
		t.Errorf("the backend saw (-want +got):\n%s", diff)
	}
	for name, want := range map[string][]string{"X-Version": {"%d"}, "Cache-Control": {"no-store"}, "X-Secret": nil} {
		if diff := cmp.Diff(want, changed.header.Values(name)); diff != "" {
			t.Errorf("%s of the answer (-want +got):\n%s", name, diff)
		}
	}
	if changed = ask(t, address, "GET", "shop", "/empty"); changed.status != 503 || changed.header.Get("Cache-Control") != "no-store" {
		t.Errorf("an error of the gateway: %d %v", changed.status, changed.header)
	}
	changed = ask(t, address, "GET", "shop", "/own")
	for name, want := range map[string][]string{"Content-Type": {"text/own"}, "X-Own": {"1"}} {
		if diff := cmp.Diff(want, changed.header.Values(name)); diff != "" {
			t.Errorf("%s of the gateway's own answer (-want +got):\n%s", name, diff)
		}
	}
}

func TestMirrors(t *testing.T) {
	t.Parallel()
	backend := httptest.NewServer(echo())
	t.Cleanup(backend.Close)
	var mu sync.Mutex
	seen := map[string]int{}
	got := make(chan string, 1000)
	shadow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		mu.Lock()
		seen[r.URL.Path]++
		mu.Unlock()
		got <- fmt.Sprintf("%s %s %s %s %s", r.Method, r.Host, r.RequestURI, r.Header.Get("X-Test"), body)
		w.WriteHeader(http.StatusTeapot)
	}))
	t.Cleanup(shadow.Close)
	const copies, gone = "shop/shadow/80", "shop/gone/80"
	mirrored := func(path string, mirrors ...model.Mirror) model.Route {
		route := toWeb(model.Match{Path: path})
		route.Mirrors = mirrors
		route.Rewrite = model.Rewrite{Prefix: "/new" + path}
		route.RequestHeaders.Set = []model.Header{{Name: "x-test", Value: "changed"}}
		return route
	}
	in := gatewayTo(t, endpointOf(t, backend), map[string][]model.Route{"*": {
		mirrored("/all", model.Mirror{Cluster: copies, PerMillion: 1_000_000}, model.Mirror{Cluster: gone, PerMillion: 1_000_000}),
		mirrored("/half", model.Mirror{Cluster: copies, PerMillion: 500_000}),
		mirrored("/none"),
	}})
	in.Gateway.Clusters = append(in.Gateway.Clusters, model.Cluster{Name: copies}, model.Cluster{Name: gone})
	in.Endpoints[copies] = []model.Endpoint{endpointOf(t, shadow)}
	address := startEnvoy(t, in)

	response, err := http.Post("http://"+address+"/all/x?q=1", "text/plain", strings.NewReader("what it says"))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Errorf("the client got %d, and not its backend's answer", response.StatusCode)
	}
	next := func() string {
		t.Helper()
		select {
		case copied := <-got:
			return copied
		case <-time.After(10 * time.Second):
			t.Fatal("no copy comes")
			return ""
		}
	}
	if diff := cmp.Diff(fmt.Sprintf("POST %s /new/all/x?q=1 changed what it says", address), next()); diff != "" {
		t.Errorf("the mirror saw (-want +got):\n%s", diff)
	}
	const requests = 400
	for range requests {
		ask(t, address, "GET", "shop", "/none")
		ask(t, address, "GET", "shop", "/half")
	}
	ask(t, address, "GET", "shop", "/all/last")
	for !strings.Contains(next(), "/last") {
	}
	mu.Lock()
	defer mu.Unlock()
	// 200 expected; beyond these once in a billion runs.
	if n := seen["/new/half"]; n < 140 || n > 260 {
		t.Errorf("%d of %d requests were mirrored, not about half", n, requests)
	}
	if seen["/new/none"] != 0 {
		t.Error("a route without mirrors was mirrored")
	}
}
