package envoy

import (
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"meshroute.io/meshroute/internal/model"
)

// What browsers are told, and that backends never see them ask.
func TestCORS(t *testing.T) {
	t.Parallel()
	backend := httptest.NewServer(echo())
	t.Cleanup(backend.Close)
	shared := func(match model.Match, cors model.CORS) model.Route {
		route := toWeb(match)
		route.CORS = &cors
		return route
	}
	some := model.CORS{
		Origins: []model.Origin{
			{Scheme: "https", Host: "shop.example.com"},
			{Scheme: "http", Host: "localhost", Port: "3000"},
			{Scheme: "https", Host: "*.example.org"},
			{Scheme: "https", Host: "*", Port: "8443"},
		},
		Methods: []string{"PUT", "DELETE"}, RequestHeaders: []string{"X-One", "X-Two"}, ResponseHeaders: []string{"X-Version"},
		Credentials: true, MaxAge: time.Hour,
	}
	all := model.CORS{
		Origins: []model.Origin{{Any: true}}, Methods: []string{"*"}, RequestHeaders: []string{"*"}, ResponseHeaders: []string{"*"}, MaxAge: 5 * time.Second,
	}
	routes := []model.Route{
		shared(model.Match{Path: "/some"}, some),
		shared(model.Match{Path: "/all"}, all),
		shared(model.Match{Path: "/methods", Method: "GET"}, all),
		shared(model.Match{Path: "/methods", Method: "PUT"}, some),
		shared(model.Match{Path: "/options", Method: "OPTIONS"}, all),
		toWeb(model.Match{Path: "/none"}),
	}
	// Filters come about in another way where a hostname has a wildcard.
	address := startEnvoy(t, gatewayTo(t, endpointOf(t, backend), map[string][]model.Route{"*": routes, "shop": routes}))
	const (
		origin      = "Origin: https://shop.example.com"
		preflighted = "Access-Control-Request-Method: PUT"
	)
	for name, c := range map[string]struct {
		method, path string
		headers      []string
		want         string // status and what is about CORS; "backend" where it answered
	}{
		"preflight": {
			"OPTIONS", "/some",
			[]string{origin, preflighted, "Access-Control-Request-Headers: x-one"},
			"200 allow-credentials: true, allow-headers: X-One, X-Two, allow-methods: PUT, DELETE, allow-origin: https://shop.example.com, expose-headers: X-Version, max-age: 3600",
		},
		"preflight: all": {
			"OPTIONS", "/all",
			[]string{"Origin: null", preflighted, "Access-Control-Request-Headers: x-y"},
			"200 allow-headers: x-y, allow-methods: PUT, allow-origin: null, expose-headers: *, max-age: 5",
		},
		"preflight: another origin": {
			"OPTIONS", "/some",
			[]string{"Origin: https://evil.example.com", preflighted},
			"200 allow-credentials: true, allow-headers: X-One, X-Two, allow-methods: PUT, DELETE, max-age: 3600",
		},
		"preflight: of a route for GET": {
			"OPTIONS", "/methods/x?q",
			[]string{"Origin: https://any.example.net", "Access-Control-Request-Method: GET"},
			"200 allow-headers: , allow-methods: GET, allow-origin: https://any.example.net, expose-headers: *, max-age: 5",
		},
		"preflight: of a route for PUT": {
			"OPTIONS", "/methods",
			[]string{origin, preflighted},
			"200 allow-credentials: true, allow-headers: X-One, X-Two, allow-methods: PUT, DELETE, allow-origin: https://shop.example.com, expose-headers: X-Version, max-age: 3600",
		},
		"preflight: of a method that no route has": {
			"OPTIONS", "/methods", []string{origin, "Access-Control-Request-Method: DELETE"}, "404",
		},
		"OPTIONS that is no preflight, without route": {"OPTIONS", "/methods", []string{origin}, "404"},
		"an empty origin": {"OPTIONS", "/methods", []string{"Origin:", preflighted}, "404"},
		"OPTIONS that is no preflight": {
			"OPTIONS", "/some",
			[]string{origin},
			"backend 200 allow-credentials: true, allow-origin: https://shop.example.com, expose-headers: X-Version, vary: Origin",
		},
		"preflight: of a route for OPTIONS": {
			"OPTIONS", "/options", []string{origin, preflighted}, "200 allow-headers: , allow-methods: PUT, allow-origin: https://shop.example.com, expose-headers: *, max-age: 5",
		},
		"preflight: no CORS": {"OPTIONS", "/none", []string{origin, preflighted}, "backend 200"},
		"request": {
			"PUT", "/some",
			[]string{origin},
			"backend 200 allow-credentials: true, allow-origin: https://shop.example.com, expose-headers: X-Version, vary: Origin",
		},
		"request: all": {
			"GET", "/all",
			[]string{"Origin: https://a.example.net"},
			"backend 200 allow-origin: https://a.example.net, expose-headers: *, vary: Origin",
		},
		"request: another origin": {"GET", "/some", []string{"Origin: https://evil.example.com"}, "backend 200 vary: Origin"},
		"request: no origin":      {"GET", "/some", nil, "backend 200 vary: Origin"},
		"request: no CORS":        {"GET", "/none", []string{origin}, "backend 200"},

		"origin: another scheme":         {"GET", "/some", []string{"Origin: http://shop.example.com"}, "backend 200 vary: Origin"},
		"origin: a port":                 {"GET", "/some", []string{"Origin: https://shop.example.com:444"}, "backend 200 vary: Origin"},
		"origin: its port":               {"GET", "/some", []string{"Origin: http://localhost:3000"}, allowed("http://localhost:3000")},
		"origin: wildcard":               {"GET", "/some", []string{"Origin: https://a.b.example.org"}, allowed("https://a.b.example.org")},
		"origin: wildcard, the suffix":   {"GET", "/some", []string{"Origin: https://example.org"}, "backend 200 vary: Origin"},
		"origin: wildcard, more":         {"GET", "/some", []string{"Origin: https://a.example.org.evil.net"}, "backend 200 vary: Origin"},
		"origin: wildcard, dots are":     {"GET", "/some", []string{"Origin: https://aXexample.org"}, "backend 200 vary: Origin"},
		"origin: wildcard, a path":       {"GET", "/some", []string{"Origin: https://evil.net/.example.org"}, "backend 200 vary: Origin"},
		"origin: any host with its port": {"GET", "/some", []string{"Origin: https://x.net:8443"}, allowed("https://x.net:8443")},
	} {
		check := func(t *testing.T, host string) {
			t.Parallel()
			answer := ask(t, address, c.method, host, c.path, c.headers...)
			var about []string
			for name, values := range answer.header {
				name = strings.ToLower(name)
				if short, cors := strings.CutPrefix(name, "access-control-"); cors || name == "vary" {
					about = append(about, short+": "+strings.Join(values, "|"))
				}
			}
			slices.Sort(about)
			got := strings.TrimSpace(fmt.Sprintf("%d %s", answer.status, strings.Join(about, ", ")))
			if strings.HasPrefix(answer.body, c.method) {
				got = "backend " + got
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		}
		t.Run(name, func(t *testing.T) { check(t, "shop") })
		t.Run(name+", any host", func(t *testing.T) { check(t, "other") })
	}
}

func allowed(origin string) string {
	return "backend 200 allow-credentials: true, allow-origin: " + origin + ", expose-headers: X-Version, vary: Origin"
}
