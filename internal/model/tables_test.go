package model

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
)

func TestEndpoints(t *testing.T) {
	t.Parallel()
	const (
		nothing = iota // nil conditions
		isReady
		isNotReady
		isDraining // terminating, and still serving
		isEnding   // terminating, serves no more
		isServing  // a contradiction: serving, not ready, not terminating
	)
	conditions := map[int]discoveryv1.EndpointConditions{
		isReady:    {Ready: new(true), Serving: new(true), Terminating: new(false)},
		isNotReady: {Ready: new(false)},
		isDraining: {Ready: new(false), Serving: new(true), Terminating: new(true)},
		isEnding:   {Ready: new(false), Serving: new(false), Terminating: new(true)},
		isServing:  {Ready: new(false), Serving: new(true)},
	}
	at := func(state int, zone string, addresses ...string) discoveryv1.Endpoint {
		endpoint := discoveryv1.Endpoint{Addresses: addresses, Conditions: conditions[state]}
		if zone != "" {
			endpoint.Zone = &zone
		}
		return endpoint
	}
	port := func(name string, number int32) discoveryv1.EndpointPort {
		return discoveryv1.EndpointPort{Name: &name, Port: &number, Protocol: ptr.To(corev1.ProtocolTCP)}
	}
	slice := func(port discoveryv1.EndpointPort, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
		return &discoveryv1.EndpointSlice{
			AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{port}, Endpoints: endpoints,
		}
	}
	ofType := func(kind discoveryv1.AddressType, s *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
		s.AddressType = kind
		return s
	}
	pod := func(name string, endpoint discoveryv1.Endpoint) discoveryv1.Endpoint {
		endpoint.TargetRef = &corev1.ObjectReference{Kind: "Pod", Namespace: "shop", Name: name}
		return endpoint
	}
	http := port("http", 8080)
	a, b := Endpoint{Address: "10.0.0.1", Port: 8080}, Endpoint{Address: "10.0.0.2", Port: 8080}

	cases := map[string]struct {
		ipv6   bool // the Service's first family
		slices []*discoveryv1.EndpointSlice
		port   string // http unless told
		want   EndpointSet
		total  int
	}{
		"no slices": {want: EndpointSet{}},
		"ready ones serve, sorted": {
			slices: []*discoveryv1.EndpointSlice{slice(http, at(isReady, "", "10.0.0.2"), at(isReady, "", "10.0.0.1"))},
			want:   EndpointSet{Serving: []Endpoint{a, b}, Ready: 2}, total: 2,
		},
		"nil conditions mean ready": {
			slices: []*discoveryv1.EndpointSlice{slice(http, at(nothing, "", "10.0.0.1"))},
			want:   EndpointSet{Serving: []Endpoint{a}, Ready: 1}, total: 1,
		},
		"while one is ready, terminating ones get nothing": {
			slices: []*discoveryv1.EndpointSlice{slice(http, at(isReady, "", "10.0.0.1"), at(isDraining, "", "10.0.0.2"))},
			want:   EndpointSet{Serving: []Endpoint{a}, Ready: 1}, total: 2,
		},
		"none ready: terminating ones serve on": {
			slices: []*discoveryv1.EndpointSlice{slice(http,
				at(isNotReady, "", "10.0.0.1"), at(isDraining, "", "10.0.0.2"), at(isEnding, "", "10.0.0.3"), at(isServing, "", "10.0.0.4"))},
			want: EndpointSet{Serving: []Endpoint{b}}, total: 4,
		},
		"none ready, none terminating": {
			slices: []*discoveryv1.EndpointSlice{slice(http, at(isNotReady, "", "10.0.0.1"))},
			want:   EndpointSet{}, total: 1,
		},
		"one address in two slices": {
			slices: []*discoveryv1.EndpointSlice{
				slice(http, at(isNotReady, "", "10.0.0.1"), at(isReady, "", "10.0.0.2")), slice(http, at(isReady, "", "10.0.0.1")),
			},
			want: EndpointSet{Serving: []Endpoint{a, b}, Ready: 2}, total: 2,
		},
		"one address in two slices, its zone in one": {
			slices: []*discoveryv1.EndpointSlice{slice(http, at(isReady, "", "10.0.0.1")), slice(http, at(isReady, "a", "10.0.0.1"))},
			want:   EndpointSet{Serving: []Endpoint{{Address: "10.0.0.1", Port: 8080, Zone: "a"}}, Ready: 1}, total: 1,
		},
		"one address with two ports": {
			slices: []*discoveryv1.EndpointSlice{
				slice(port("http", 8081), at(isReady, "", "10.0.0.1")), slice(http, at(isReady, "", "10.0.0.1")),
			},
			want: EndpointSet{Serving: []Endpoint{a, {Address: "10.0.0.1", Port: 8081}}, Ready: 2}, total: 2,
		},
		"the port is joined by its name": {
			port: "metrics",
			slices: []*discoveryv1.EndpointSlice{
				slice(http, at(isReady, "", "10.0.0.1")), slice(port("metrics", 9090), at(isReady, "", "10.0.0.1")),
			},
			want: EndpointSet{Serving: []Endpoint{{Address: "10.0.0.1", Port: 9090}}, Ready: 1}, total: 1,
		},
		"the only port has no name": {
			port: "none",
			slices: []*discoveryv1.EndpointSlice{
				slice(discoveryv1.EndpointPort{Port: new(int32(8080))}, at(isReady, "", "10.0.0.1")),
				slice(port("", 8080), at(isReady, "", "10.0.0.2")),
			},
			want: EndpointSet{Serving: []Endpoint{a, b}, Ready: 2}, total: 2,
		},
		"a UDP port of the same name, a port without number": {
			slices: []*discoveryv1.EndpointSlice{
				slice(discoveryv1.EndpointPort{Name: new("http"), Port: new(int32(53)), Protocol: ptr.To(corev1.ProtocolUDP)}, at(isReady, "", "10.0.0.1")),
				slice(discoveryv1.EndpointPort{Name: new("http")}, at(isReady, "", "10.0.0.1")),
			},
			want: EndpointSet{},
		},
		"the first of several addresses": {
			slices: []*discoveryv1.EndpointSlice{slice(http, at(isReady, "", "10.0.0.1", "10.0.0.9"), at(isReady, ""))},
			want:   EndpointSet{Serving: []Endpoint{a}, Ready: 1}, total: 1,
		},
		"IPv6": {
			slices: []*discoveryv1.EndpointSlice{ofType(discoveryv1.AddressTypeIPv6, slice(http, at(isReady, "", "2001:db8::1")))},
			want:   EndpointSet{Serving: []Endpoint{{Address: "2001:db8::1", Port: 8080}}, Ready: 1}, total: 1,
		},
		"a pod with addresses of both families": {
			slices: []*discoveryv1.EndpointSlice{
				slice(http, pod("a", at(isReady, "", "10.0.0.1")), pod("b", at(isReady, "", "10.0.0.2"))),
				ofType(discoveryv1.AddressTypeIPv6, slice(http, pod("a", at(isReady, "", "2001:db8::1")), pod("b", at(isReady, "", "2001:db8::2")))),
			},
			want: EndpointSet{Serving: []Endpoint{a, b}, Ready: 2}, total: 2,
		},
		"IPv6 comes first": {
			ipv6: true,
			slices: []*discoveryv1.EndpointSlice{
				slice(http, pod("a", at(isReady, "", "10.0.0.1"))),
				ofType(discoveryv1.AddressTypeIPv6, slice(http, pod("a", at(isReady, "", "2001:db8::1")))),
			},
			want: EndpointSet{Serving: []Endpoint{{Address: "2001:db8::1", Port: 8080}}, Ready: 1}, total: 1,
		},
		"pods of one family each": {
			slices: []*discoveryv1.EndpointSlice{
				slice(http, pod("a", at(isReady, "", "10.0.0.1"))),
				ofType(discoveryv1.AddressTypeIPv6, slice(http, pod("b", at(isReady, "", "2001:db8::2")))),
			},
			want: EndpointSet{Serving: []Endpoint{a, {Address: "2001:db8::2", Port: 8080}}, Ready: 2}, total: 2,
		},
		"without pods one family is all": {
			slices: []*discoveryv1.EndpointSlice{
				slice(http, at(isReady, "", "10.0.0.1")),
				ofType(discoveryv1.AddressTypeIPv6, slice(http, at(isReady, "", "2001:db8::1"))),
			},
			want: EndpointSet{Serving: []Endpoint{a}, Ready: 1}, total: 1,
		},
		"host names": {
			slices: []*discoveryv1.EndpointSlice{
				ofType(discoveryv1.AddressTypeFQDN, slice(http, at(isReady, "", "example.com"))),
				slice(http, at(isReady, "", "localhost")), // as no API server would take it
			},
			want: EndpointSet{},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cluster := Cluster{Port: ServicePort{Name: "http"}, PreferIPv6: c.ipv6}
			switch c.port {
			case "none":
				cluster.Port.Name = ""
			case "metrics":
				cluster.Port.Name = c.port
			}
			got := Endpoints(cluster, c.slices)
			if len(got.All) != c.total {
				t.Errorf("all endpoints are %v, wanted %d", got.All, c.total)
			}
			c.want.All = got.All
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			slices.Reverse(c.slices)
			if diff := cmp.Diff(got, Endpoints(cluster, c.slices)); diff != "" {
				t.Errorf("the order of slices makes a difference (-forward +backward):\n%s", diff)
			}
		})
	}
}

func TestIntersect(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		listener string
		route    []gatewayv1.Hostname
		want     []string
	}{
		"neither names any":             {"", nil, []string{"*"}},
		"only the listener":             {"a.example.com", nil, []string{"a.example.com"}},
		"only the route, sorted, once":  {"", []gatewayv1.Hostname{"b.com", "a.com", "b.com", "*.c.com"}, []string{"*.c.com", "a.com", "b.com"}},
		"the same":                      {"a.com", []gatewayv1.Hostname{"a.com"}, []string{"a.com"}},
		"the same, in capitals":         {"a.com", []gatewayv1.Hostname{"A.Com"}, []string{"a.com"}},
		"another":                       {"a.com", []gatewayv1.Hostname{"b.com"}, nil},
		"wildcard listener":             {"*.a.com", []gatewayv1.Hostname{"x.a.com", "x.y.a.com", "a.com", "xa.com", "b.com"}, []string{"x.a.com", "x.y.a.com"}},
		"wildcard route":                {"x.a.com", []gatewayv1.Hostname{"*.a.com", "*.com", "*.b.com"}, []string{"x.a.com"}},
		"both wildcards, one":           {"*.a.com", []gatewayv1.Hostname{"*.a.com"}, []string{"*.a.com"}},
		"both wildcards, route wider":   {"*.a.com", []gatewayv1.Hostname{"*.com"}, []string{"*.a.com"}},
		"both wildcards, route deeper":  {"*.com", []gatewayv1.Hostname{"*.a.com"}, []string{"*.a.com"}},
		"both wildcards, apart":         {"*.a.com", []gatewayv1.Hostname{"*.b.com"}, nil},
		"wildcard is no apex":           {"*.a.com", []gatewayv1.Hostname{"a.com"}, nil},
		"a suffix is not enough":        {"*.a.com", []gatewayv1.Hostname{"ba.com"}, nil},
		"an empty name is none":         {"", []gatewayv1.Hostname{""}, nil},
		"any is the listener's":         {"a.com", []gatewayv1.Hostname{"*"}, []string{"a.com"}},
		"nothing before the suffix":     {"*.a.com", []gatewayv1.Hostname{".a.com"}, nil},
		"wildcard and one of its hosts": {"*.a.com", []gatewayv1.Hostname{"*.com", "x.a.com"}, []string{"*.a.com", "x.a.com"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(c.want, intersect(c.listener, c.route)); diff != "" {
				t.Errorf("intersect(%q, %q) (-want +got):\n%s", c.listener, c.route, diff)
			}
		})
	}
}

func TestCompareRoutes(t *testing.T) {
	t.Parallel()
	headers := func(names ...string) []ValueMatch {
		made := make([]ValueMatch, len(names))
		for i, name := range names {
			made[i].Name = name
		}
		return made
	}
	// In the order in which they are to be tried.
	want := []rankedRoute{
		{order: 9, Name: "exact, longer", Match: Match{Path: "/api/v1", Type: PathExact}},
		{order: 8, Name: "exact, with header", Match: Match{Path: "/api", Type: PathExact, Headers: headers("a")}},
		{order: 7, Name: "exact", Match: Match{Path: "/api", Type: PathExact}},
		{order: 6, Name: "longer expression", Match: Match{Path: "/api/[^/]+", Type: PathRegex}},
		{order: 6, Name: "expression", Match: Match{Path: ".+", Type: PathRegex}},
		{order: 6, Name: "longest prefix", Match: Match{Path: "/a/long/prefix"}},
		{order: 6, Name: "method", Match: Match{Path: "/api", Method: "GET"}},
		{order: 7, Name: "another method", Match: Match{Path: "/api", Method: "DELETE"}},
		{order: 5, Name: "two headers", Match: Match{Path: "/api", Headers: headers("a", "b")}},
		{order: 9, Name: "one header, two parameters", Match: Match{Path: "/api", Headers: headers("a"), QueryParams: headers("q", "r")}},
		{order: 8, Name: "one header, one parameter", Match: Match{Path: "/api", Headers: headers("a"), QueryParams: headers("q")}},
		{order: 3, Name: "one header, older", Match: Match{Path: "/api", Headers: headers("z")}},
		{order: 4, Name: "one header, younger", Match: Match{Path: "/api", Headers: headers("a")}},
		{order: 9, Name: "only parameters", Match: Match{Path: "/api", QueryParams: headers("q", "r")}},
		{order: 2, Name: "no header", Match: Match{Path: "/api"}},
		{order: 0, Name: "root, with headers", Match: Match{Path: "/", Headers: headers("a", "b", "c")}},
		{order: 1, Name: "root", Match: Match{Path: "/"}},
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		got := slices.Clone(want)
		random.Shuffle(len(got), func(i, j int) { got[i], got[j] = got[j], got[i] })
		slices.SortFunc(got, compareRoutes)
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(rankedRoute{})); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	}
}

var (
	edge    = Key{"shop", "edge"}
	inner   = Key{"shop", "inner"}
	web     = Key{"shop", "web"}
	webPort = &Cluster{Name: "shop/web/80", Service: web, Port: ServicePort{Number: 80}}

	accepted = condition(v1alpha1.ConditionAccepted, metav1.ConditionTrue, "Accepted", "attached")
	resolved = condition(v1alpha1.ConditionResolvedRefs, metav1.ConditionTrue, "ResolvedRefs", "all backends resolve")
	refused  = condition(v1alpha1.ConditionAccepted, metav1.ConditionFalse, "GatewayNotFound", "no such Gateway")
	missing  = condition(v1alpha1.ConditionResolvedRefs, metav1.ConditionFalse, "BackendNotFound", "no such Service")
	partial  = condition(v1alpha1.ConditionPartiallyInvalid, metav1.ConditionTrue, "RouteConflict", "taken")
)

func to(gateway Key, conditions ...metav1.Condition) ParentStatus {
	return ParentStatus{Ref: gatewayv1.ParentReference{Name: gatewayv1.ObjectName(gateway.Name)}, Gateway: &gateway, Conditions: conditions}
}

func unattached(conditions ...metav1.Condition) ParentStatus {
	return ParentStatus{Ref: gatewayv1.ParentReference{Name: "nowhere"}, Conditions: conditions}
}

func TestObserveRoute(t *testing.T) {
	t.Parallel()
	three := []Endpoint{{Address: "10.0.0.1", Port: 80}, {Address: "10.0.0.2", Port: 80}, {Address: "10.0.0.3", Port: 80}}
	serving := EndpointSet{Serving: three[:1], Ready: 1, All: three[:2]}
	one := []BackendStatus{{Service: web, Port: "80", Cluster: webPort}}
	cases := map[string]struct {
		parents   []ParentStatus
		backends  []BackendStatus
		hosts     []string
		endpoints EndpointSet
		progress  map[Key]Progress

		wantRoute   []string // conditions of each parent, then of the route
		wantMesh    []string
		wantDisplay v1alpha1.MeshRouteDisplay
		wantBackend []int32 // ready and all endpoints, of each backend
	}{
		"all is well": {
			parents: []ParentStatus{to(edge, resolved, accepted)}, backends: one, hosts: []string{"a.com", "b.com", "c.com"},
			endpoints: serving, progress: map[Key]Progress{edge: {Pods: 2, Acknowledged: 2}},
			wantRoute: []string{
				"Accepted=True Accepted: attached", "ResolvedRefs=True ResolvedRefs: all backends resolve",
				"Programmed=True Programmed: every connected pod of Gateway shop/edge has acknowledged the newest configuration",
				"Ready=True Ready: accepted, resolved and programmed",
			},
			wantMesh:    []string{"Ready=True Ready: serving"},
			wantDisplay: v1alpha1.MeshRouteDisplay{Hosts: "a.com +2", Programmed: "2/2", Endpoints: "1/2"},
			wantBackend: []int32{1, 2},
		},
		"no endpoints: the route is ready, its traffic is not": {
			parents: []ParentStatus{to(edge, resolved, accepted)}, backends: one, hosts: []string{"*"},
			endpoints: EndpointSet{All: three}, progress: map[Key]Progress{edge: {Pods: 1, Acknowledged: 1}},
			wantRoute: []string{
				"Accepted=True Accepted: attached", "ResolvedRefs=True ResolvedRefs: all backends resolve",
				"Programmed=True Programmed: every connected pod of Gateway shop/edge has acknowledged the newest configuration",
				"Ready=True Ready: accepted, resolved and programmed",
			},
			wantMesh:    []string{"Ready=False NoEndpoints: Service shop/web has no ready endpoint on port 80: requests to it get 503"},
			wantDisplay: v1alpha1.MeshRouteDisplay{Hosts: "*", Programmed: "1/1", Endpoints: "0/3"},
			wantBackend: []int32{0, 3},
		},
		"only terminating endpoints serve": {
			parents: []ParentStatus{to(edge, accepted)}, backends: one,
			endpoints: EndpointSet{Serving: serving.Serving, All: three[:1]}, progress: map[Key]Progress{edge: {Pods: 1, Acknowledged: 1}},
			wantRoute: []string{
				"Accepted=True Accepted: attached",
				"Programmed=True Programmed: every connected pod of Gateway shop/edge has acknowledged the newest configuration",
				"Ready=True Ready: accepted, resolved and programmed",
			},
			wantMesh:    []string{"Ready=True Ready: serving"},
			wantDisplay: v1alpha1.MeshRouteDisplay{Programmed: "1/1", Endpoints: "0/1"},
			wantBackend: []int32{0, 1},
		},
		"no endpoints, but no request either": {
			parents:  []ParentStatus{to(edge, accepted)},
			backends: []BackendStatus{{Service: web, Port: "80", Cluster: webPort, Idle: true}},
			progress: map[Key]Progress{edge: {Pods: 1, Acknowledged: 1}},
			wantRoute: []string{
				"Accepted=True Accepted: attached",
				"Programmed=True Programmed: every connected pod of Gateway shop/edge has acknowledged the newest configuration",
				"Ready=True Ready: accepted, resolved and programmed",
			},
			wantMesh:    []string{"Ready=True Ready: serving"},
			wantDisplay: v1alpha1.MeshRouteDisplay{Programmed: "1/1", Endpoints: "0/0"},
			wantBackend: []int32{0, 0},
		},
		"ExternalName": {
			parents:  []ParentStatus{to(edge, accepted)},
			backends: []BackendStatus{{Service: web, Port: "80", Cluster: &Cluster{Name: "dns", DNSName: "example.com"}}},
			progress: map[Key]Progress{edge: {Pods: 1, Acknowledged: 1}},
			wantRoute: []string{
				"Accepted=True Accepted: attached",
				"Programmed=True Programmed: every connected pod of Gateway shop/edge has acknowledged the newest configuration",
				"Ready=True Ready: accepted, resolved and programmed",
			},
			wantMesh:    []string{"Ready=True Ready: serving"},
			wantDisplay: v1alpha1.MeshRouteDisplay{Programmed: "1/1", Endpoints: "0/0"},
			wantBackend: []int32{-1, -1},
		},
		"no pods": {
			parents: []ParentStatus{to(edge, accepted)}, backends: one, endpoints: serving,
			wantRoute: []string{
				"Accepted=True Accepted: attached",
				"Programmed=False NoGatewayPods: no pod of Gateway shop/edge is connected to the operator: if they run, see the log of their container agent",
				"Ready=False NoGatewayPods: no pod of Gateway shop/edge is connected to the operator: if they run, see the log of their container agent",
			},
			wantMesh:    []string{"Ready=False NoGatewayPods: no pod of Gateway shop/edge is connected to the operator: if they run, see the log of their container agent"},
			wantDisplay: v1alpha1.MeshRouteDisplay{Programmed: "0/0", Endpoints: "1/2"},
			wantBackend: []int32{1, 2},
		},
		"waiting": {
			parents: []ParentStatus{to(edge, accepted)}, progress: map[Key]Progress{edge: {Pods: 3, Acknowledged: 1}},
			wantRoute: []string{
				"Accepted=True Accepted: attached",
				"Programmed=False Waiting: 1 of 3 pods of Gateway shop/edge have acknowledged the newest configuration",
				"Ready=False Waiting: 1 of 3 pods of Gateway shop/edge have acknowledged the newest configuration",
			},
			wantMesh:    []string{"Ready=False Waiting: 1 of 3 pods of Gateway shop/edge have acknowledged the newest configuration"},
			wantDisplay: v1alpha1.MeshRouteDisplay{Programmed: "1/3"},
		},
		"refused by Envoy": {
			parents: []ParentStatus{to(edge, accepted)}, progress: map[Key]Progress{edge: {Pods: 1, Acknowledged: 1, Refused: "bad regex"}},
			wantRoute: []string{
				"Accepted=True Accepted: attached",
				"Programmed=False RefusedByEnvoy: Envoy refused the newest configuration of Gateway shop/edge and keeps serving the previous one: bad regex",
				"Ready=False RefusedByEnvoy: Envoy refused the newest configuration of Gateway shop/edge and keeps serving the previous one: bad regex",
			},
			wantMesh:    []string{"Ready=False RefusedByEnvoy: Envoy refused the newest configuration of Gateway shop/edge and keeps serving the previous one: bad regex"},
			wantDisplay: v1alpha1.MeshRouteDisplay{Programmed: "1/1"},
		},
		"a missing backend is told before pods that are missing": {
			parents:  []ParentStatus{to(edge, missing, accepted)},
			backends: []BackendStatus{{Service: web, Port: "80"}},
			wantRoute: []string{
				"Accepted=True Accepted: attached", "ResolvedRefs=False BackendNotFound: no such Service",
				"Programmed=False NoGatewayPods: no pod of Gateway shop/edge is connected to the operator: if they run, see the log of their container agent",
				"Ready=False BackendNotFound: no such Service",
			},
			wantMesh:    []string{"Ready=False BackendNotFound: no such Service"},
			wantDisplay: v1alpha1.MeshRouteDisplay{Programmed: "0/0", Endpoints: "0/0"},
			wantBackend: []int32{0, 0},
		},
		"not attached at all": {
			parents: []ParentStatus{unattached(refused, missing)},
			wantRoute: []string{
				"Accepted=False GatewayNotFound: no such Gateway", "ResolvedRefs=False BackendNotFound: no such Service",
				"Ready=False GatewayNotFound: no such Gateway",
			},
			wantMesh:    []string{"Ready=False GatewayNotFound: no such Gateway"},
			wantDisplay: v1alpha1.MeshRouteDisplay{Programmed: "0/0"},
		},
		"attached in part": {
			parents: []ParentStatus{to(edge, accepted, partial)}, progress: map[Key]Progress{edge: {Pods: 1, Acknowledged: 1}},
			wantRoute: []string{
				"Accepted=True Accepted: attached", "PartiallyInvalid=True RouteConflict: taken",
				"Programmed=True Programmed: every connected pod of Gateway shop/edge has acknowledged the newest configuration",
				"Ready=False RouteConflict: taken",
			},
			wantMesh:    []string{"Ready=False RouteConflict: taken"},
			wantDisplay: v1alpha1.MeshRouteDisplay{Programmed: "1/1"},
		},
		"two parentRefs to one Gateway, and another Gateway": {
			parents:  []ParentStatus{to(edge, accepted), to(edge, accepted), to(inner, accepted)},
			progress: map[Key]Progress{edge: {Pods: 2, Acknowledged: 2}, inner: {Pods: 3, Acknowledged: 3}},
			wantRoute: []string{
				"Accepted=True Accepted: attached",
				"Programmed=True Programmed: every connected pod of Gateway shop/edge has acknowledged the newest configuration",
				"Accepted=True Accepted: attached",
				"Programmed=True Programmed: every connected pod of Gateway shop/edge has acknowledged the newest configuration",
				"Accepted=True Accepted: attached",
				"Programmed=True Programmed: every connected pod of Gateway shop/inner has acknowledged the newest configuration",
				"Ready=True Ready: accepted, resolved and programmed",
			},
			wantMesh:    []string{"Ready=True Ready: serving"},
			wantDisplay: v1alpha1.MeshRouteDisplay{Programmed: "5/5"},
		},
		"only Gateways of other controllers": {}, // not this operator's to judge
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out := Observe(
				Result{Routes: []*RouteStatus{{Key: web, Generation: 7, Hosts: c.hosts, Backends: c.backends, Parents: c.parents}}},
				Observations{
					Endpoints:     map[string]EndpointSet{webPort.Name: c.endpoints},
					RouteProgress: func(gateway, _ Key) Progress { return c.progress[gateway] },
				})
			route, mesh := out.Routes[web], out.MeshRoutes[web]
			var got []string
			for _, parent := range route.Parents {
				got = append(got, lines(t, 7, parent.Conditions)...)
				if parent.ControllerName != v1alpha1.ControllerName {
					t.Errorf("controllerName is %q", parent.ControllerName)
				}
			}
			got = append(got, lines(t, 7, route.Conditions)...)
			if diff := cmp.Diff(c.wantRoute, got); diff != "" {
				t.Errorf("ServiceRoute (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.wantMesh, lines(t, 7, mesh.Conditions)); diff != "" {
				t.Errorf("MeshRoute (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.wantDisplay, mesh.Display); diff != "" {
				t.Errorf("display (-want +got):\n%s", diff)
			}
			var backends []int32
			for _, backend := range mesh.Backends {
				backends = append(backends, backend.ReadyEndpoints, backend.Endpoints)
			}
			if diff := cmp.Diff(c.wantBackend, backends); diff != "" {
				t.Errorf("backends (-want +got):\n%s", diff)
			}
		})
	}
}

func lines(t *testing.T, generation int64, conditions []metav1.Condition) []string {
	t.Helper()
	var made []string
	for _, c := range conditions {
		made = append(made, c.Type+"="+string(c.Status)+" "+c.Reason+": "+c.Message)
		if c.ObservedGeneration != generation {
			t.Errorf("%s has observedGeneration %d, not %d", c.Type, c.ObservedGeneration, generation)
		}
	}
	return made
}

func TestObserveSummary(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		ready, broken []string
		want          string
	}{
		"all ready":        {ready: []string{"a", "b"}, want: "Ready=True Ready: 2 of 2 routes ready"},
		"one is not":       {ready: []string{"a"}, broken: []string{"b"}, want: "Ready=False RoutesNotReady: 1 of 2 routes ready; not ready: b"},
		"three, by name":   {broken: []string{"c", "a", "b"}, want: "Ready=False RoutesNotReady: 0 of 3 routes ready; not ready: a, b, c"},
		"more than fit in": {broken: []string{"d", "c", "a", "b"}, want: "Ready=False RoutesNotReady: 0 of 4 routes ready; not ready: a, b, c, ..."},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			result := Result{Routes: []*RouteStatus{{Key: Key{"other", "x"}, Parents: []ParentStatus{unattached(refused)}}}}
			for _, route := range c.ready {
				result.Routes = append(result.Routes, &RouteStatus{Key: Key{"shop", route}, Parents: []ParentStatus{to(edge, accepted)}})
			}
			for _, route := range c.broken {
				result.Routes = append(result.Routes, &RouteStatus{Key: Key{"shop", route}, Parents: []ParentStatus{unattached(refused)}})
			}
			out := Observe(result, Observations{RouteProgress: func(Key, Key) Progress { return Progress{Pods: 1, Acknowledged: 1} }})
			got := out.MeshRoutes[Key{"shop", "status"}]
			if diff := cmp.Diff([]string{c.want}, lines(t, 0, got.Conditions)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			want := &v1alpha1.MeshRouteSummary{Routes: int32(len(c.ready) + len(c.broken)), ReadyRoutes: int32(len(c.ready))}
			if diff := cmp.Diff(want, got.Summary); diff != "" {
				t.Errorf("summary (-want +got):\n%s", diff)
			}
			if other := out.MeshRoutes[Key{"other", "status"}].Summary; other == nil || other.Routes != 1 {
				t.Errorf("the other namespace has the summary %v", other)
			}
		})
	}
}

func TestObserveGateway(t *testing.T) {
	t.Parallel()
	valid := condition(v1alpha1.ConditionAccepted, metav1.ConditionTrue, "Accepted", "valid")
	invalid := condition(v1alpha1.ConditionAccepted, metav1.ConditionFalse, "InvalidParameters", "no such GatewayConfig")
	listener := func(conditions ...metav1.Condition) ListenerStatus {
		return ListenerStatus{Name: "http", AttachedRoutes: 2, Conditions: conditions}
	}
	cases := map[string]struct {
		conditions   []metav1.Condition
		listener     ListenerStatus
		progress     Progress
		workload     Workload
		want         []string
		wantListener []string
	}{
		"all is well": {
			conditions: []metav1.Condition{valid}, listener: listener(valid), progress: Progress{Pods: 1, Acknowledged: 1},
			want: []string{
				"Accepted=True Accepted: valid",
				"Programmed=True Programmed: every connected pod of Gateway shop/edge has acknowledged the newest configuration",
				"Ready=True Ready: accepted, resolved and programmed",
			},
			wantListener: []string{
				"Accepted=True Accepted: valid",
				"Programmed=True Programmed: every connected pod of Gateway shop/edge has acknowledged the newest configuration",
			},
		},
		"no pods": {
			conditions: []metav1.Condition{valid}, listener: listener(valid),
			want: []string{
				"Accepted=True Accepted: valid",
				"Programmed=False NoGatewayPods: no pod of Gateway shop/edge is connected to the operator: if they run, see the log of their container agent",
				"Ready=False NoGatewayPods: no pod of Gateway shop/edge is connected to the operator: if they run, see the log of their container agent",
			},
			wantListener: []string{
				"Accepted=True Accepted: valid",
				"Programmed=False NoGatewayPods: no pod of Gateway shop/edge is connected to the operator: if they run, see the log of their container agent",
			},
		},
		"no pods, and why": {
			conditions: []metav1.Condition{valid}, listener: listener(valid),
			workload: Workload{Pods: &Trouble{"PodsForbidden", "a quota"}},
			want: []string{
				"Accepted=True Accepted: valid", "Programmed=False PodsForbidden: a quota", "Ready=False PodsForbidden: a quota",
			},
			wantListener: []string{"Accepted=True Accepted: valid", "Programmed=False PodsForbidden: a quota"},
		},
		"some pods serve, others do not run": {
			conditions: []metav1.Condition{valid}, listener: listener(valid), progress: Progress{Pods: 1, Acknowledged: 1},
			workload: Workload{Pods: &Trouble{"ImageUnavailable", "no such image"}, AwaitsAddress: true},
			want: []string{
				"Accepted=True Accepted: valid",
				"Programmed=True Programmed: every connected pod of Gateway shop/edge has acknowledged the newest configuration" +
					"; others do not run: no such image" +
					"; its Service has no address of a load balancer yet: where the cluster gives none, set serviceType NodePort or ClusterIP in a GatewayConfig",
				"Ready=True Ready: accepted, resolved and programmed",
			},
			wantListener: []string{
				"Accepted=True Accepted: valid",
				"Programmed=True Programmed: every connected pod of Gateway shop/edge has acknowledged the newest configuration" +
					"; others do not run: no such image" +
					"; its Service has no address of a load balancer yet: where the cluster gives none, set serviceType NodePort or ClusterIP in a GatewayConfig",
			},
		},
		"an object is refused, though pods serve": {
			conditions: []metav1.Condition{valid}, listener: listener(valid), progress: Progress{Pods: 1, Acknowledged: 1},
			workload: Workload{Refused: &Trouble{"ObjectRefused", "the nodePort is taken"}},
			want: []string{
				"Accepted=True Accepted: valid", "Programmed=False ObjectRefused: the nodePort is taken", "Ready=False ObjectRefused: the nodePort is taken",
			},
			wantListener: []string{"Accepted=True Accepted: valid", "Programmed=False ObjectRefused: the nodePort is taken"},
		},
		"invalid: not programmed, whatever pods say": {
			conditions: []metav1.Condition{invalid}, listener: listener(valid), progress: Progress{Pods: 1, Acknowledged: 1},
			want: []string{
				"Accepted=False InvalidParameters: no such GatewayConfig",
				"Programmed=False Invalid: no such GatewayConfig",
				"Ready=False InvalidParameters: no such GatewayConfig",
			},
			wantListener: []string{"Accepted=True Accepted: valid", "Programmed=False Invalid: no such GatewayConfig"},
		},
		"one listener is invalid": {
			conditions: []metav1.Condition{valid}, listener: listener(invalid), progress: Progress{Pods: 1, Acknowledged: 1},
			want: []string{
				"Accepted=True Accepted: valid",
				"Programmed=True Programmed: every connected pod of Gateway shop/edge has acknowledged the newest configuration",
				"Ready=True Ready: accepted, resolved and programmed",
			},
			wantListener: []string{"Accepted=False InvalidParameters: no such GatewayConfig", "Programmed=False Invalid: no such GatewayConfig"},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addresses := []gatewayv1.GatewayStatusAddress{{Value: "192.0.2.1"}}
			c.workload.Addresses = addresses
			got := Observe(
				Result{GatewayStatuses: []GatewayStatus{{Key: edge, Generation: 3, Conditions: c.conditions, Listeners: []ListenerStatus{c.listener}}}},
				Observations{
					GatewayProgress: func(Key) Progress { return c.progress },
					Workloads:       map[Key]Workload{edge: c.workload},
				}).Gateways[edge]
			if diff := cmp.Diff(c.want, lines(t, 3, got.Conditions)); diff != "" {
				t.Errorf("Gateway (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.wantListener, lines(t, 3, got.Listeners[0].Conditions)); diff != "" {
				t.Errorf("listener (-want +got):\n%s", diff)
			}
			if got.Listeners[0].SupportedKinds == nil || got.Listeners[0].AttachedRoutes != 2 {
				t.Errorf("listener %+v: supportedKinds is a required field", got.Listeners[0])
			}
			if diff := cmp.Diff(addresses, got.Addresses); diff != "" {
				t.Errorf("addresses (-want +got):\n%s", diff)
			}
		})
	}
}

func TestMergeConditions(t *testing.T) {
	t.Parallel()
	before, now := metav1.NewTime(time.Unix(100, 0)), metav1.NewTime(time.Unix(200, 0))
	made := func(status metav1.ConditionStatus, message string, when metav1.Time) []metav1.Condition {
		return []metav1.Condition{{Type: "Ready", Status: status, Message: message, LastTransitionTime: when}}
	}
	cases := map[string]struct {
		old, updated, want []metav1.Condition
	}{
		"new":                        {updated: made("True", "a", metav1.Time{}), want: made("True", "a", now)},
		"the status is the same":     {old: made("True", "a", before), updated: made("True", "b", metav1.Time{}), want: made("True", "b", before)},
		"the status is another":      {old: made("False", "a", before), updated: made("True", "a", metav1.Time{}), want: made("True", "a", now)},
		"a condition that went away": {old: made("True", "a", before), updated: nil, want: nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			untouched := slices.Clone(c.updated)
			if diff := cmp.Diff(c.want, MergeConditions(c.old, c.updated, now)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(untouched, c.updated); diff != "" {
				t.Errorf("the argument was changed (-before +after):\n%s", diff)
			}
		})
	}
}

func TestBoundedMessage(t *testing.T) {
	t.Parallel()
	for _, length := range []int{0, 1023, 1024, 1025, 4000} {
		for _, unit := range []string{"a", "ü", "日"} {
			got := condition("Ready", metav1.ConditionFalse, "R", strings.Repeat(unit, length/len(unit))).Message
			if len(got) > maxMessage || !utf8.ValidString(got) {
				t.Errorf("%d bytes of %q became %d, valid UTF-8: %t", length, unit, len(got), utf8.ValidString(got))
			}
		}
	}
}

// Whether policies are enforced is told where somebody wants to know, and is no
// part of Ready.
func TestNetworkPolicyEnforced(t *testing.T) {
	t.Parallel()
	edge := Key{Namespace: "shop", Name: "edge"}
	for name, c := range map[string]struct {
		ignored  bool
		progress Progress
		want     string // "" for no condition
	}{
		"nobody wants to know":   {ignored: true, progress: Progress{Pods: 1, Isolated: 1}},
		"no pods":                {want: "Unknown NotVerifiedYet"},
		"not all pods know":      {progress: Progress{Pods: 2, Isolated: 1}, want: "Unknown NotVerifiedYet"},
		"all pods are isolated":  {progress: Progress{Pods: 2, Isolated: 2}, want: "True Enforced"},
		"one of them is not":     {progress: Progress{Pods: 3, Isolated: 1, Open: "edge-1"}, want: "False NotEnforced"},
		"one that is now absent": {progress: Progress{Pods: 1, Isolated: 1, Open: "edge-1"}, want: "False NotEnforced"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.progress.Acknowledged = c.progress.Pods
			got := Observe(Result{GatewayStatuses: []GatewayStatus{{Key: edge, Verify: !c.ignored}}}, Observations{
				GatewayProgress: func(Key) Progress { return c.progress },
			}).Gateways[edge]
			is := ""
			for _, condition := range got.Conditions {
				if condition.Type == v1alpha1.ConditionNetworkPolicyEnforced {
					is = string(condition.Status) + " " + condition.Reason
				}
				if condition.Type == v1alpha1.ConditionReady && (condition.Status == metav1.ConditionTrue) != (c.progress.Pods > 0) {
					t.Errorf("Ready is %s", condition.Status)
				}
			}
			if is != c.want {
				t.Errorf("the condition is %q, wanted %q", is, c.want)
			}
		})
	}
}
