package modeltest

import "strings"

// words are what strings are made of, by the last two fields of their path, or
// by the last one. A schema says which of them a field may have. Names are few,
// so that objects meet.
var words = map[string][]string{
	"name":                   {"web", "api", "old", "none"},
	"parentRefs.name":        {"edge", "edge", "edge", "inner", "none"},
	"gateways.name":          {"edge", "inner", "none"},
	"gatewayClassName":       {"meshroute", "meshroute", "meshroute", "meshroute", "meshroute", "meshroute", "foreign", "none"},
	"backends.name":          {"web", "web", "web", "api", "api", "old", "none"},
	"controllerName":         {"meshroute.io/gateway-controller"},
	"parametersRef.name":     {"config", "config", "config", "other", "none"},
	"parametersRef.group":    {"meshroute.io", "meshroute.io", "meshroute.io", "example.com"},
	"parametersRef.kind":     {"GatewayConfig", "GatewayConfig", "GatewayConfig", "ConfigMap"},
	"parentRefs.sectionName": {"http", "https", "other", "none"},
	"parentRefs.namespace":   {"one", "one", "two", "three"},
	"certificateRefs.name":   {"cert", "wildcard", "mismatched", "malformed", "none"},
	"targetRefs.name":        {"web", "api", "old", "edge", "inner", "none"},
	"rules.name":             {"all", "one", "two", "three"},
	"listeners.name":         {"http", "https", "other"},
	"listeners.hostname":     {"*.example.com", "shop.example.com", "*.b.example.com", "example.org"},
	"addresses.value":        {"10.0.0.1", "gateway.example.com"},
	"sectionName":            {"http", "https", "all", "one", "none"},
	"protocol":               {"HTTP", "HTTP", "HTTP", "HTTPS", "HTTPS", "TLS", "example.com/odd"},
	"targetRef.name":         {"web", "api", "old", "edge", "inner", "none"},
	"namespace":              {"one", "two", "three"},
	"group":                  {"", "gateway.networking.k8s.io", "meshroute.io", "example.com"},
	"kind":                   {"Gateway", "Service", "Secret", "ServiceRoute", "GatewayConfig", "ConfigMap", "HTTPRoute"},
	"hostnames":              {"shop.example.com", "a.example.com", "*.example.com", "*.b.example.com", "a.b.example.com", "example.org", "*.org"},
	"hostname":               {"shop.example.com", "other.example.org", "xn--sptzle-cua.example"},
	"headers.name":           headerNames,
	"set.name":               headerNames,
	"add.name":               headerNames,
	"remove":                 headerNames,
	"queryParams.name":       {"version", "q", "A-b_c.d~", "filter[]"},
	"cookie.name":            {"session", "AFFINITY", "a-b.c_d"},
	"path":                   {"/", "/healthz", "/a/b?c=d", "/a%20b", "/" + strings.Repeat("long/", 180)},
	"image":                  {"example.com/envoy:v1", "envoy"},
	"requests.additional":    {"cpu", "memory"},
	"limits.additional":      {"cpu", "memory"},
	"additional":             {"team", "example.com/role", "app.kubernetes.io/name"},
	"matchLabels.additional": {"team", "kubernetes.io/metadata.name"},
	"nodePorts.additional":   {"80", "443", "8080"},
}

var headerNames = []string{"x-version", "X-User", "accept", "Content-Type", "cookie", "x-request-id", "x~odd!name", "set-cookie", "cache-control", "x-envoy-retry-on", "connection", "server", "date"}

// anyWords are for every other string, and for those of which a schema takes
// none of the above.
var anyWords = []string{
	"", "a", "all", "web", "2", "one", "two words", "ü\u00dfé \u4e2d", strings.Repeat("x", 63), strings.Repeat("long ", 50), strings.Repeat("y", 4096), strings.Repeat("ü", 4096),
	"/", "/a", "/a/", "/a/b", "/A", "/api/v1", "/a%20b", "/~x;y=1,2", "/(a)+", "/$1", "/" + strings.Repeat("d/", 500) + "e", "/" + strings.Repeat("q", 1023),
	".*", "/a/[0-9]+", "/(a|b)/.*", "^/x$", "(?i)/x", `/\d{1,5}/\w*`, "/[^/]+/b", `\1`, `\\1/x`, "(", "[", "a{1,1000}", "(a+)+", "(?=x)", strings.Repeat("(a|b)?", 40),
	"x-version", "X-User", "authorization", "GET", "text/html", `application/json; charset="utf-8"`, `"quoted" \ value`, "%REQ(x-user)%", "%PROTOCOL%", "%", "%%", "100%",
	"shop.example.com", "*.example.com", "https://shop.example.com", "https://*.example.com", "http://a.example.com:8080", "*", "example.org:8443",
	"0s", "1ms", "50ms", "1s", "15s", "1m30s", "1h", "23h59m", "24h", "0h0m0s", "720h",
	"10.0.0.1", "10.0.0.0/8", "fd00::1", "0.5", "100m", "1", "64Mi", "1Gi", "200", "2xx", "404", "500-599",
	"http", "https", "meshroute.io/agent", "team=a", "example.com/x", "Always", "NoSchedule",
}

// rare are fields that few objects set, or few of them would be of use: with a
// reference into nothing, or to what is not allowed.
var rare = map[string]bool{
	"parentRefs.sectionName": true, "parentRefs.port": true, "backends.namespace": true, "backendRefs.namespace": true,
	"spec.parametersRef": true, "infrastructure.parametersRef": true, "spec.addresses": true, "listeners.hostname": true,
	"allowedRoutes.kinds": true, "allowedRoutes.namespaces": true,
}

// fieldNumbers are for numbers by the last field of their path.
var fieldNumbers = map[string][]int64{
	"port":   {80, 80, 80, 443, 8080, 8888},
	"weight": {0, 1, 1, 10, 1_000_000},
}

// numbers likewise, beside a schema's own bounds.
var numbers = []int64{0, 1, 2, 3, 5, 10, 50, 80, 99, 100, 200, 301, 302, 404, 429, 443, 500, 503, 1000, 1025, 8080, 8443, 8888, 19001, 30080, 65535, 1_000_000}
