package envoy

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"meshroute.io/meshroute/internal/model"
)

// named is a backend that says who it is.
func named(t *testing.T, name string) model.Endpoint {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, name)
	}))
	t.Cleanup(server.Close)
	return endpointOf(t, server)
}

// dead is an endpoint where nobody listens.
func dead(t *testing.T) model.Endpoint {
	t.Helper()
	return model.Endpoint{Address: "127.0.0.1", Port: freePort(t)}
}

func to(cluster string) []model.WeightedCluster {
	return []model.WeightedCluster{{Cluster: cluster, Weight: 1}}
}

// routesTo is a gateway with one route for each hostname.
func routesTo(t *testing.T, routes map[string]model.Route, endpoints map[string][]model.Endpoint) goldenCase {
	t.Helper()
	in := goldenCase{Endpoints: endpoints}
	port := freePort(t)
	in.Gateway.Ports = []model.Port{{Number: port, Bind: port}}
	for host, route := range routes {
		route.Name, route.Match, route.Timeout = host, model.Match{Path: "/"}, 10*time.Second
		in.Gateway.Ports[0].VirtualHosts = append(in.Gateway.Ports[0].VirtualHosts, model.VirtualHost{
			Hostname: host, Routes: []model.Route{route},
		})
	}
	return in
}

// from tells in one line what a request to a host gets, and the cookie that it is
// given.
func from(t *testing.T, address, method, host string, headers ...string) (got, cookie string) {
	t.Helper()
	answer := ask(t, address, method, host, "/", headers...)
	return fmt.Sprintf("%d %s", answer.status, answer.body), answer.header.Get("Set-Cookie")
}

// Requests go to the first cluster that can answer them, and none is lost on the
// way to it, whatever its method.
func TestFailover(t *testing.T) {
	t.Parallel()
	clusters := []model.Cluster{
		{Name: "healthy", BackedUp: true},
		{Name: "empty", BackedUp: true},
		{Name: "dead", BackedUp: true},
		{Name: "one-of-three", BackedUp: true},
		{Name: "spare"},
		{Name: "none"},
	}
	in := routesTo(t, map[string]model.Route{}, map[string][]model.Endpoint{
		"healthy":      {named(t, "healthy")},
		"dead":         {dead(t), dead(t)},
		"one-of-three": {dead(t), named(t, "one-of-three"), dead(t)},
		"spare":        {named(t, "spare")},
	})
	want := map[string]string{ // by members, what all requests get
		"healthy spare":          "200 healthy",
		"empty spare":            "200 spare",
		"dead spare":             "200 spare",
		"empty dead spare":       "200 spare",
		"one-of-three spare":     "200 one-of-three",
		"empty one-of-three":     "200 one-of-three",
		"empty none":             "503 no healthy upstream",
		"none healthy spare":     "200 healthy",
		"dead one-of-three none": "200 one-of-three",
	}
	for members := range want {
		host := strings.ReplaceAll(members, " ", ".")
		in.Gateway.Failovers = append(in.Gateway.Failovers, model.Failover{Name: host, Members: strings.Fields(members)})
		in.Gateway.Ports[0].VirtualHosts = append(in.Gateway.Ports[0].VirtualHosts, model.VirtualHost{
			Hostname: host, Routes: []model.Route{{
				Name: host, Match: model.Match{Path: "/"}, Timeout: 10 * time.Second, Backends: to(host), FailsOver: true,
			}},
		})
	}
	in.Gateway.Clusters = clusters
	address := startEnvoy(t, in)
	// Three tries do not get past two clusters of which nothing is known yet: the
	// one that nobody answers in is set aside first.
	for range 10 {
		if got, _ := from(t, address, http.MethodPost, "dead.spare"); got != "200 spare" {
			t.Errorf("while the dead are tried: %s", got)
		}
	}
	for members, want := range want {
		t.Run(members, func(t *testing.T) {
			host := strings.ReplaceAll(members, " ", ".")
			if strings.Contains(members, "one-of-three") {
				// Until those are set aside that cannot be reached, a request may meet
				// two of them, and the last try is the next cluster's.
				for range 30 {
					if got, _ := from(t, address, http.MethodPost, host); !strings.HasPrefix(got, "200 ") {
						t.Errorf("while endpoints are tried: %s", got)
					}
				}
			}
			got := map[string]int{}
			for i := range 60 {
				method := []string{http.MethodGet, http.MethodPost}[i%2]
				text, _ := from(t, address, method, host)
				got[text]++
			}
			if diff := cmp.Diff(map[string]int{want: 60}, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestHashedRequestsStay(t *testing.T) {
	t.Parallel()
	var endpoints []model.Endpoint
	for i := range 8 {
		endpoints = append(endpoints, named(t, fmt.Sprint(i)))
	}
	in := routesTo(t, map[string]model.Route{
		"header":    {Backends: to("ring"), Hash: &model.Hash{Header: "x-user"}},
		"cookie":    {Backends: to("maglev"), Hash: &model.Hash{Cookie: model.Cookie{Name: "user"}}},
		"generated": {Backends: to("maglev"), Hash: &model.Hash{Generate: true, Cookie: model.Cookie{Name: "user", Path: "/p", TTL: time.Hour}}},
		"session":   {Backends: to("maglev"), Hash: &model.Hash{Generate: true, Cookie: model.Cookie{Name: "user", Path: "/"}}},
		"address":   {Backends: to("maglev"), Hash: &model.Hash{ClientAddress: true}},
		"failover":  {Backends: to("failover"), FailsOver: true, Hash: &model.Hash{Header: "x-user"}},
		"weights": {
			Backends: []model.WeightedCluster{{Cluster: "ring", Weight: 1}, {Cluster: "other", Weight: 1}},
			Hash:     &model.Hash{Header: "x-user"},
		},
	}, map[string][]model.Endpoint{"ring": endpoints, "maglev": endpoints, "other": {named(t, "other")}})
	in.Gateway.Clusters = []model.Cluster{
		{Name: "ring", LoadBalancing: model.RingHash},
		{Name: "maglev", LoadBalancing: model.Maglev},
		{Name: "other", LoadBalancing: model.RingHash},
		{Name: "empty", LoadBalancing: model.RingHash, BackedUp: true},
	}
	in.Gateway.Failovers = []model.Failover{{Name: "failover", Members: []string{"empty", "ring"}}}
	address := startEnvoy(t, in)

	answers := func(host string, header func(i int) []string) map[string]int {
		got := map[string]int{}
		for i := range 40 {
			text, _ := from(t, address, http.MethodGet, host, header(i)...)
			got[text]++
		}
		return got
	}
	for host, header := range map[string][]string{
		"header": {"x-user: alice"}, "cookie": {"cookie: user=alice"}, "address": nil, "failover": {"x-user: alice"}, "weights": {"x-user: alice"},
	} {
		if got := answers(host, func(int) []string { return header }); len(got) != 1 {
			t.Errorf("%s: one client's requests go to several endpoints: %v", host, got)
		}
	}
	for host, header := range map[string]string{"header": "x-user: %d", "cookie": "cookie: user=%d", "failover": "x-user: %d"} {
		if got := answers(host, func(i int) []string { return []string{fmt.Sprintf(header, i)} }); len(got) < 4 {
			t.Errorf("%s: 40 clients' requests go to few endpoints: %v", host, got)
		}
		if got := answers(host, func(int) []string { return nil }); len(got) < 4 {
			t.Errorf("%s: requests without it go to few endpoints: %v", host, got)
		}
	}
	if got := answers("weights", func(i int) []string { return []string{fmt.Sprintf("x-user: %d", i)} }); got["200 other"] < 5 || got["200 other"] > 35 {
		t.Errorf("weights of 1 and 1: %v", got)
	}

	first, given := from(t, address, http.MethodGet, "generated")
	cookie, attributes, _ := strings.Cut(given, ";")
	if diff := cmp.Diff(" Max-Age=3600; Path=/p; SameSite=Lax; HttpOnly", attributes); diff != "" {
		t.Errorf("attributes of a cookie with a TTL (-want +got):\n%s", diff)
	}
	if strings.Contains(decoded(cookie), "127.0.0.1") {
		t.Errorf("%s tells where the backend is", cookie)
	}
	for range 10 {
		if again, given := from(t, address, http.MethodGet, "generated", "cookie: "+cookie); again != first || given != "" {
			t.Errorf("with the cookie: %s, and the cookie %q; without it %s", again, given, first)
		}
	}
	_, given = from(t, address, http.MethodGet, "session")
	if _, attributes, _ = strings.Cut(given, ";"); attributes != " Path=/; SameSite=Lax; HttpOnly" {
		t.Errorf("attributes of a cookie for the browser's session: %q", attributes)
	}
}

func decoded(cookie string) string {
	_, value, _ := strings.Cut(cookie, "=")
	text, _ := base64.StdEncoding.DecodeString(strings.Trim(value, `"`))
	return string(text)
}

func TestSessionAffinity(t *testing.T) {
	t.Parallel()
	var endpoints []model.Endpoint
	for i := range 8 {
		endpoints = append(endpoints, named(t, fmt.Sprint(i)))
	}
	stranger := named(t, "stranger")
	in := routesTo(t, map[string]model.Route{
		"hour":    {Backends: to("web"), Affinity: &model.Cookie{Name: "bound", Path: "/", TTL: time.Hour}},
		"session": {Backends: to("web"), Affinity: &model.Cookie{Name: "bound", Path: "/"}},
		"*.wild":  {Backends: to("web"), Affinity: &model.Cookie{Name: "bound", Path: "/"}},
		"below":   {Backends: to("web"), Affinity: &model.Cookie{Name: "bound", Path: "/below"}},
		"empty":   {Backends: to("empty"), Affinity: &model.Cookie{Name: "bound", Path: "/"}},
		"free":    {Backends: to("web")},
	}, map[string][]model.Endpoint{"web": endpoints})
	in.Gateway.Clusters = []model.Cluster{{Name: "web"}, {Name: "empty"}}
	address := startEnvoy(t, in)

	for host, attributes := range map[string]string{
		"hour":    " Max-Age=3600; Path=/; SameSite=Lax; HttpOnly",
		"session": " Path=/; SameSite=Lax; HttpOnly",
		"a.wild":  " Path=/; SameSite=Lax; HttpOnly",
	} {
		first, given := from(t, address, http.MethodGet, host)
		cookie, got, _ := strings.Cut(given, ";")
		if diff := cmp.Diff(attributes, got); diff != "" {
			t.Errorf("%s: attributes of the cookie (-want +got):\n%s", host, diff)
		}
		for range 20 {
			if again, given := from(t, address, http.MethodGet, host, "cookie: "+cookie); again != first || given != "" {
				t.Errorf("%s: bound to %s, now %s with the cookie %q", host, first, again, given)
			}
		}
	}

	// A cookie is what a client wants it to be. It leads nowhere but to endpoints
	// of the Service.
	elsewhere := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%s:%d", stranger.Address, stranger.Port))
	for name, value := range map[string]string{
		"of another place": elsewhere, "empty": "", "not base64": "%%%", "long": strings.Repeat("A", 4000),
		"not an address": base64.StdEncoding.EncodeToString([]byte("\x00\xff\n")),
	} {
		got, given := from(t, address, http.MethodGet, "session", "cookie: bound="+value)
		if !strings.HasPrefix(got, "200 ") || got == "200 stranger" {
			t.Errorf("cookie %s: %s", name, got)
		}
		if given == "" {
			t.Errorf("cookie %s: the client is not bound anew", name)
		}
	}
	for _, headers := range [][]string{nil, {"cookie: bound=" + elsewhere}} {
		if got, given := from(t, address, http.MethodGet, "empty", headers...); got != "503 no healthy upstream" || given != "" {
			t.Errorf("no endpoints: %s, and the cookie %q", got, given)
		}
	}
	for _, host := range []string{"free", "below"} {
		if _, given := from(t, address, http.MethodGet, host); given != "" {
			t.Errorf("%s: is given the cookie %q", host, given)
		}
	}
}
