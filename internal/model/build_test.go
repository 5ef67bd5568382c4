package model

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"meshroute.io/meshroute/api/v1alpha1"
)

var update = flag.Bool("update", false, "write what the tests find to the want.yaml of each case")

// scenario is the in.yaml of a case.
type scenario struct {
	Inputs
	slices []*discoveryv1.EndpointSlice
}

// Every directory in testdata is a scenario: in.yaml holds Kubernetes objects,
// want.yaml what Build makes of them, and the endpoints of each cluster where
// in.yaml has EndpointSlices.
func TestBuild(t *testing.T) {
	t.Parallel()
	for name, path := range scenarios(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in := readScenario(t, path)
			untouched := readScenario(t, path)
			result := Build(in.Inputs)
			if diff := cmp.Diff(untouched.Inputs, in.Inputs); diff != "" {
				t.Errorf("Build changed its inputs (-before +after):\n%s", diff)
			}
			compareGolden(t, filepath.Join(filepath.Dir(path), "want.yaml"), render(t, result, in.slices))
			checkInvariants(t, result)

			random := rand.New(rand.NewPCG(1, 2))
			for range 10 {
				shuffle(random, &in.Inputs)
				if diff := cmp.Diff(result, Build(in.Inputs), cmpopts.EquateEmpty()); diff != "" {
					t.Fatalf("the order of inputs makes a difference (-as written +shuffled):\n%s", diff)
				}
			}
		})
	}
}

func scenarios(t testing.TB) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("testdata/*/in.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no scenario in testdata: %v", err)
	}
	named := map[string]string{}
	for _, path := range paths {
		named[filepath.Base(filepath.Dir(path))] = path
	}
	return named
}

// readScenario decodes objects by their kind, and refuses fields that it does
// not know. A document of kind Scenario sets what is no object.
func readScenario(t testing.TB, path string) scenario {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var in scenario
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(content)))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return in
		}
		if err != nil {
			t.Fatal(err)
		}
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal(document, &kind); err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		switch kind.Kind {
		case "": // only comments
		case "Scenario":
			var options struct {
				metav1.TypeMeta `json:",inline"`

				OneHost bool      `json:"oneHost"`
				IPv6    bool      `json:"ipv6"`
				Now     time.Time `json:"now"`
			}
			decode(t, document, &options)
			in.OneHost, in.IPv6, in.Now = options.OneHost, options.IPv6, options.Now
		case "Certificate":
			var read struct {
				metav1.TypeMeta `json:",inline"`
				Certificate
			}
			decode(t, document, &read)
			if in.Certificates == nil {
				in.Certificates = map[Key]*Certificate{}
			}
			in.Certificates[read.Secret] = &read.Certificate
		case "GatewayClass":
			in.GatewayClasses = append(in.GatewayClasses, decode(t, document, &gatewayv1.GatewayClass{}))
		case "Gateway":
			in.Gateways = append(in.Gateways, decode(t, document, &gatewayv1.Gateway{}))
		case "GatewayConfig":
			in.GatewayConfigs = append(in.GatewayConfigs, decode(t, document, &v1alpha1.GatewayConfig{}))
		case "ServiceRoute":
			in.ServiceRoutes = append(in.ServiceRoutes, decode(t, document, &v1alpha1.ServiceRoute{}))
		case "HealthPolicy":
			in.HealthPolicies = append(in.HealthPolicies, decode(t, document, &v1alpha1.HealthPolicy{}))
		case "Service":
			in.Services = append(in.Services, decode(t, document, &corev1.Service{}))
		case "ReferenceGrant":
			in.ReferenceGrants = append(in.ReferenceGrants, decode(t, document, &gatewayv1.ReferenceGrant{}))
		case "Namespace":
			in.Namespaces = append(in.Namespaces, decode(t, document, &corev1.Namespace{}))
		case "EndpointSlice":
			in.slices = append(in.slices, decode(t, document, &discoveryv1.EndpointSlice{}))
		default:
			t.Fatalf("%s: no place for kind %s", path, kind.Kind)
		}
	}
}

func decode[T any](t testing.TB, document []byte, into T) T {
	t.Helper()
	if err := yaml.UnmarshalStrict(document, into); err != nil {
		t.Fatalf("%v in\n%s", err, document)
	}
	return into
}

func compareGolden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v: go test -update writes it", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs (-want +got; go test -update rewrites it):\n%s", path, diff)
	}
}

func shuffle(random *rand.Rand, in *Inputs) {
	value := reflect.ValueOf(in).Elem()
	for _, field := range value.Fields() {
		if field.Kind() == reflect.Slice {
			random.Shuffle(field.Len(), reflect.Swapper(field.Interface()))
		}
	}
}

// render writes a Result for readers: conditions, keys and durations in one
// line each, and nothing that is zero. It goes over all fields by reflection,
// so that a new one shows up by itself.
func render(t testing.TB, result Result, slices []*discoveryv1.EndpointSlice) []byte {
	t.Helper()
	out, _ := readable(reflect.ValueOf(result)).(map[string]any)
	if len(slices) > 0 {
		endpoints := map[string]any{}
		for _, gateway := range result.Gateways {
			for _, cluster := range gateway.Clusters {
				set := Endpoints(cluster, slicesOf(cluster.Service, slices))
				endpoints[cluster.Name] = readable(reflect.ValueOf(set))
			}
		}
		out["endpoints"] = endpoints
	}
	encoded, err := yaml.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	return encoded
}

func slicesOf(service Key, slices []*discoveryv1.EndpointSlice) []*discoveryv1.EndpointSlice {
	var own []*discoveryv1.EndpointSlice
	for _, slice := range slices {
		if slice.Namespace == service.Namespace && slice.Labels[discoveryv1.LabelServiceName] == service.Name {
			own = append(own, slice)
		}
	}
	return own
}

func readable(value reflect.Value) any {
	switch value := value.Interface().(type) {
	case Key:
		return value.String()
	case time.Duration:
		return value.String()
	case time.Time:
		return value.Format(time.RFC3339)
	case PrivateKey:
		return fmt.Sprint(value)
	case []byte:
		return string(value)
	case resource.Quantity:
		return value.String()
	case metav1.Condition:
		return fmt.Sprintf("%s=%s %s: %s", value.Type, value.Status, value.Reason, value.Message)
	case gatewayv1.RouteGroupKind:
		return fmt.Sprintf("%s.%s", value.Kind, valueOr(value.Group, gatewayv1.GroupName))
	case WeightedCluster:
		return fmt.Sprintf("%d x %s", value.Weight, value.Cluster)
	}
	switch value.Kind() {
	case reflect.Pointer:
		return readable(value.Elem())
	case reflect.Slice:
		list := make([]any, value.Len())
		for i := range list {
			list[i] = readable(value.Index(i))
		}
		return list
	case reflect.Map:
		entries := map[string]any{}
		for entry := value.MapRange(); entry.Next(); {
			entries[fmt.Sprint(entry.Key().Interface())] = readable(entry.Value())
		}
		return entries
	case reflect.Struct:
		fields := map[string]any{}
		for field, held := range value.Fields() {
			empty := held.IsZero() || (held.Kind() == reflect.Slice || held.Kind() == reflect.Map) && held.Len() == 0
			if !empty {
				fields[lowerCamel(field.Name)] = readable(held)
			}
		}
		return fields
	default:
		return value.Interface()
	}
}

// lowerCamel makes httpPort of HTTPPort.
func lowerCamel(name string) string {
	capitals := len(name) - len(strings.TrimLeft(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
	if capitals > 1 && capitals < len(name) && name[capitals] >= 'a' {
		capitals-- // the last one begins the next word
	}
	return strings.ToLower(name[:capitals]) + name[capitals:]
}

// checkInvariants holds what is true of every Result, whatever went in.
func checkInvariants(t testing.TB, result Result) {
	t.Helper()
	clusters := map[Key]map[string]bool{}
	for _, gateway := range result.Gateways {
		clusters[gateway.Key] = map[string]bool{MissingCluster: true}
		for _, cluster := range gateway.Clusters {
			clusters[gateway.Key][cluster.Name] = true
		}
		failovers := map[string]bool{}
		for _, failover := range gateway.Failovers {
			for _, member := range failover.Members {
				if !clusters[gateway.Key][member] || member == MissingCluster {
					t.Errorf("Gateway %s: failover %s has the member %s, which is no cluster", gateway.Key, failover.Name, member)
				}
			}
			failovers[failover.Name] = true
		}
		for name := range failovers {
			clusters[gateway.Key][name] = true
		}
		binds := map[int32]bool{}
		for _, port := range gateway.Ports {
			if binds[port.Bind] {
				t.Errorf("Gateway %s binds port %d twice", gateway.Key, port.Bind)
			}
			binds[port.Bind] = true
			hostnames := map[string]bool{}
			for _, host := range port.VirtualHosts {
				folded := strings.ToLower(host.Hostname)
				if hostnames[folded] || folded == "" {
					t.Errorf("Gateway %s port %d has the hostname %q twice: Envoy refuses that", gateway.Key, port.Number, host.Hostname)
				}
				hostnames[folded] = true
				for _, route := range host.Routes {
					checkRoute(t, route, clusters[gateway.Key])
				}
			}
			serverNames := map[string]bool{}
			for _, listener := range port.TLS {
				if serverNames[listener.Hostname] || listener.Hostname == "" {
					t.Errorf("Gateway %s port %d has the server name %q twice: Envoy refuses that", gateway.Key, port.Number, listener.Hostname)
				}
				serverNames[listener.Hostname] = true
				for _, secret := range listener.Certificates {
					if !slices.ContainsFunc(gateway.Certificates, func(c *Certificate) bool { return c.Secret == secret }) {
						t.Errorf("Gateway %s port %d serves certificate %s, which it does not have", gateway.Key, port.Number, secret)
					}
				}
			}
			if port.HTTPS != (len(port.TLS) > 0) {
				t.Errorf("Gateway %s port %d: HTTPS is %t, with %d TLS listeners", gateway.Key, port.Number, port.HTTPS, len(port.TLS))
			}
		}
	}
	for _, class := range result.Classes {
		checkConditions(t, "GatewayClass "+class.Name, class.Conditions)
	}
	for _, gateway := range result.GatewayStatuses {
		checkConditions(t, "Gateway "+gateway.Key.String(), gateway.Conditions)
		for _, listener := range gateway.Listeners {
			checkConditions(t, "listener "+listener.Name, listener.Conditions)
		}
	}
	for _, route := range result.Routes {
		for _, parent := range route.Parents {
			checkConditions(t, "ServiceRoute "+route.Key.String(), parent.Conditions)
			accepted := firstFalse(parent.Conditions) == nil || firstFalse(parent.Conditions).Type != v1alpha1.ConditionAccepted
			for _, c := range parent.Conditions {
				if c.Type == v1alpha1.ConditionAccepted {
					accepted = c.Status == metav1.ConditionTrue
				}
			}
			if accepted != (parent.Gateway != nil) {
				t.Errorf("ServiceRoute %s: Accepted is %t, and its gateway %v", route.Key, accepted, parent.Gateway)
			}
		}
	}
}

func checkRoute(t testing.TB, route Route, clusters map[string]bool) {
	t.Helper()
	if route.Match.Path == "" || route.Match.Type == PathPrefix && route.Match.Path != "/" && strings.HasSuffix(route.Match.Path, "/") {
		t.Errorf("route %s: Envoy refuses the path %q", route.Name, route.Match.Path)
	}
	if problem := route.Match.problem(); problem != "" {
		t.Errorf("route %s: Envoy refuses its %s", route.Name, problem)
	}
	if route.Timeout < 0 {
		t.Errorf("route %s: Envoy refuses the timeout %s", route.Name, route.Timeout)
	}
	var total uint64
	for _, mirror := range route.Mirrors {
		if mirror.PerMillion == 0 || mirror.PerMillion > 1_000_000 || !clusters[mirror.Cluster] {
			t.Errorf("route %s: mirror %v", route.Name, mirror)
		}
	}
	if route.Redirect != nil && route.Redirect.Port == 0 && route.Redirect.Scheme == "" {
		t.Errorf("route %s: the usual port of no scheme: %v", route.Name, route.Redirect)
	}
	for _, backend := range route.Backends {
		total += uint64(backend.Weight)
		if backend.Weight == 0 || !clusters[backend.Cluster] {
			t.Errorf("route %s: backend %v", route.Name, backend)
		}
	}
	if total > 1<<32-1 {
		t.Errorf("route %s: the sum of weights is %d, more than Envoy can hold", route.Name, total)
	}
}

func checkConditions(t testing.TB, of string, conditions []metav1.Condition) {
	t.Helper()
	if len(conditions) == 0 {
		t.Errorf("%s has no condition", of)
	}
	types := map[string]bool{}
	for _, c := range conditions {
		if types[c.Type] || c.Reason == "" || c.Message == "" {
			t.Errorf("%s: condition of a type that is there already, or without reason or message: %v", of, c)
		}
		types[c.Type] = true
	}
}

// Build is never to panic, nor to break its promises, whatever objects say that
// no schema has looked at.
func TestBuildOddInput(t *testing.T) {
	t.Parallel()
	for name, path := range scenarios(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(20) {
				in := readScenario(t, path)
				random := rand.New(rand.NewPCG(seed, 0))
				m := mutator{random: random}
				m.mutate(reflect.ValueOf(&in.Inputs).Elem())
				m.mutate(reflect.ValueOf(&in.slices).Elem())
				func() {
					defer func() {
						if p := recover(); p != nil {
							t.Fatalf("seed %d: %v", seed, p)
						}
					}()
					result := Build(in.Inputs)
					checkInvariants(t, result)
					Observe(result, Observations{
						GatewayProgress: func(Key) Progress { return Progress{} },
						RouteProgress:   func(Key, Key) Progress { return Progress{} },
						PolicyProgress:  func(Key, Key) Progress { return Progress{} },
					})
					for _, gateway := range result.Gateways {
						for _, cluster := range gateway.Clusters {
							Endpoints(cluster, in.slices)
						}
					}
				}()
				if t.Failed() {
					t.Fatalf("seed %d", seed)
				}
			}
		})
	}
}

// mutator changes about one in thirty of the values it meets: to nothing, to
// something odd, or to what stands elsewhere in the same objects.
type mutator struct {
	random *rand.Rand
	seen   []string
}

func (m *mutator) mutate(value reflect.Value) {
	if value.Type() == reflect.TypeFor[metav1.ObjectMeta]() {
		return // the API server sees to these, for every kind
	}
	hit := m.random.IntN(30) == 0
	switch value.Kind() {
	case reflect.Pointer:
		// Objects of Inputs are never nil.
		_, object := reflect.TypeAssert[metav1.Object](value)
		switch {
		case hit && !object && !value.IsNil():
			value.SetZero()
		case hit && !object:
			value.Set(reflect.New(value.Type().Elem()))
		case !value.IsNil():
			m.mutate(value.Elem())
		}
	case reflect.Struct:
		for field, held := range value.Fields() {
			if field.IsExported() && held.CanSet() {
				m.mutate(held)
			}
		}
	case reflect.Slice:
		_, object := reflect.TypeAssert[metav1.Object](reflect.Zero(value.Type().Elem()))
		if hit && !object && value.Len() > 0 {
			if m.random.IntN(2) == 0 {
				value.SetZero()
				return
			}
			value.Set(reflect.Append(value, value.Index(m.random.IntN(value.Len()))))
		}
		for i := range value.Len() {
			m.mutate(value.Index(i))
		}
	case reflect.String:
		m.seen = append(m.seen, value.String())
		if hit {
			odd := append([]string{"", "/", "//", "*", "*.", "*.Example.com", "ü\x00\xff", "-1s", strings.Repeat("long", 500)}, m.seen...)
			value.SetString(odd[m.random.IntN(len(odd))])
		}
	case reflect.Int32:
		if hit {
			value.SetInt([]int64{0, -1, 1, 80, 10080, 65535, 1 << 20, 1<<31 - 1}[m.random.IntN(8)])
		}
	case reflect.Bool:
		if hit {
			value.SetBool(!value.Bool())
		}
	default: // maps of labels and quantities, times
	}
}

func BenchmarkBuild1000(b *testing.B) {
	in := thousandRoutes()
	b.ReportAllocs()
	for b.Loop() {
		if result := Build(in); len(result.Gateways[0].Ports[0].VirtualHosts) != 1000 {
			b.Fatal("routes are missing")
		}
	}
}

// thousandRoutes has a host, two rules and a Service of its own for each route.
func thousandRoutes() Inputs {
	meta := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{v1alpha1.DefaultGatewayLabel: ""}}
	}
	all := gatewayv1.NamespacesFromAll
	in := Inputs{
		GatewayClasses: []*gatewayv1.GatewayClass{{
			ObjectMeta: meta("meshroute"), Spec: gatewayv1.GatewayClassSpec{ControllerName: v1alpha1.ControllerName},
		}},
		Gateways: []*gatewayv1.Gateway{{
			ObjectMeta: meta("edge"),
			Spec: gatewayv1.GatewaySpec{GatewayClassName: "meshroute", Listeners: []gatewayv1.Listener{{
				Name: "http", Port: 8888, Protocol: gatewayv1.HTTPProtocolType,
				AllowedRoutes: &gatewayv1.AllowedRoutes{Namespaces: &gatewayv1.RouteNamespaces{From: &all}},
			}}},
		}},
	}
	for i := range 1000 {
		name := fmt.Sprintf("route-%04d", i)
		backends := []v1alpha1.Backend{{Name: gatewayv1.ObjectName(name), Port: intstr.FromInt32(80)}}
		in.ServiceRoutes = append(in.ServiceRoutes, &v1alpha1.ServiceRoute{
			ObjectMeta: meta(name),
			Spec: v1alpha1.ServiceRouteSpec{
				Hostnames: []gatewayv1.Hostname{gatewayv1.Hostname(name + ".example.com")},
				Rules: []v1alpha1.ServiceRouteRule{
					{Name: "api", Backends: backends, Matches: []v1alpha1.RouteMatch{{Path: &v1alpha1.PathMatch{Value: "/api"}}}},
					{Name: "all", Backends: backends},
				},
			},
		})
		in.Services = append(in.Services, &corev1.Service{
			ObjectMeta: meta(name), Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
		})
	}
	return in
}
