package envoy

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"sigs.k8s.io/yaml"

	"meshroute.io/meshroute/internal/certtest"
	"meshroute.io/meshroute/internal/model"
)

var update = flag.Bool("update", false, "write what the tests find to the want.yaml of each case")

// goldenCase is the in.yaml of a case.
type goldenCase struct {
	Gateway   model.Gateway
	Endpoints map[string][]model.Endpoint // by cluster
}

// Every directory in testdata is a case: in.yaml is a model.Gateway and its
// endpoints, want.yaml the resources that Envoy gets. Envoy itself is shown
// each of them.
func TestTranslate(t *testing.T) {
	t.Parallel()
	cases, err := filepath.Glob("testdata/*/in.yaml")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no case in testdata: %v", err)
	}
	for _, path := range cases {
		dir := filepath.Dir(path)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			t.Parallel()
			in := readCase(t, dir)
			resources := resourcesOf(in)
			compareGolden(t, filepath.Join(dir, "want.yaml"), render(t, resources))

			again := render(t, resourcesOf(readCase(t, dir)))
			if diff := cmp.Diff(string(render(t, resources)), string(again)); diff != "" {
				t.Errorf("the second translation differs (-first +second):\n%s", diff)
			}
			validate(t, mustYAML(t, static(t, resources)))
		})
	}
}

func TestBootstrap(t *testing.T) {
	t.Parallel()
	bootstrap, err := Bootstrap(BootstrapOptions{
		Gateway:     model.Key{Namespace: "shop", Name: "edge"},
		XDSSocket:   "/run/meshroute/xds.sock",
		PagesSocket: "/run/meshroute/pages.sock",
		AdminSocket: "/run/meshroute/admin.sock",
		ProbePort:   model.ProbePort,
	})
	if err != nil {
		t.Fatal(err)
	}
	compareGolden(t, "testdata/bootstrap.yaml", bootstrap)
	validate(t, bootstrap)
}

func readCase(t testing.TB, dir string) goldenCase {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, "in.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var raw any
	if err := yaml.Unmarshal(content, &raw); err != nil {
		t.Fatal(err)
	}
	durations(t, raw)
	if content, err = json.Marshal(raw); err != nil {
		t.Fatal(err)
	}
	var in goldenCase
	if err := yaml.UnmarshalStrict(content, &in); err != nil {
		t.Fatal(err)
	}
	return in
}

// durations turns "timeout: 15s" into what encoding/json takes for a
// time.Duration.
func durations(t testing.TB, node any) {
	t.Helper()
	switch node := node.(type) {
	case []any:
		for _, child := range node {
			durations(t, child)
		}
	case map[string]any:
		for key, child := range node {
			durations(t, child)
			if text, ok := child.(string); ok && (key == "maxAge" || key == "interval" || key == "ttl" || strings.HasSuffix(strings.ToLower(key), "timeout")) {
				duration, err := time.ParseDuration(text)
				if err != nil {
					t.Fatal(err)
				}
				node[key] = int64(duration)
			}
		}
	}
}

func resourcesOf(in goldenCase) Resources {
	resources := Translate(in.Gateway)
	resources[resource.EndpointType] = map[string]proto.Message{}
	for _, cluster := range in.Gateway.Clusters {
		if cluster.DNSName == "" {
			resources[resource.EndpointType][cluster.Name] = Endpoints(cluster, in.Endpoints[cluster.Name])
		}
	}
	return resources
}

// render writes resources as YAML, by kind and name.
func render(t testing.TB, resources Resources) []byte {
	t.Helper()
	kinds := map[string]string{
		resource.ListenerType:    "listeners",
		resource.ScopedRouteType: "scopes",
		resource.ClusterType:     "clusters",
		resource.EndpointType:    "endpoints",
		resource.SecretType:      "secrets",
	}
	out := map[string]map[string]json.RawMessage{}
	for url, named := range resources {
		kind := kinds[url]
		if kind == "" {
			t.Fatalf("resources of type %s have no place in want.yaml", url)
		}
		if len(named) == 0 && url == resource.SecretType {
			continue // as with most gateways
		}
		out[kind] = map[string]json.RawMessage{}
		for name, message := range named {
			encoded, err := protojson.Marshal(message)
			if err != nil {
				t.Fatal(err)
			}
			out[kind][name] = encoded
		}
	}
	encoded, err := yaml.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	return encoded
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

// static is a bootstrap that holds resources without any xDS: all routes inside
// each listener, endpoints inside their clusters, and the clusters of our own
// Bootstrap beside them.
func static(t testing.TB, resources Resources) *bootstrapv3.Bootstrap {
	t.Helper()
	made, err := Bootstrap(BootstrapOptions{XDSSocket: "/xds.sock", PagesSocket: "/pages.sock", AdminSocket: "/admin.sock"})
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := yaml.YAMLToJSON(made)
	if err != nil {
		t.Fatal(err)
	}
	bootstrap := &bootstrapv3.Bootstrap{}
	if err := protojson.Unmarshal(encoded, bootstrap); err != nil {
		t.Fatal(err)
	}
	bootstrap.DynamicResources = nil
	bootstrap.Admin = nil

	for _, message := range resources[resource.ClusterType] {
		cluster := proto.Clone(message).(*clusterv3.Cluster)
		if cluster.GetEdsClusterConfig() != nil {
			cluster.EdsClusterConfig = nil
			cluster.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
			cluster.LoadAssignment = loadAssignment(cluster.GetName(), nil)
			if assignment := resources[resource.EndpointType][cluster.GetName()]; assignment != nil {
				cluster.LoadAssignment = proto.Clone(assignment).(*endpointv3.ClusterLoadAssignment)
			}
		}
		bootstrap.StaticResources.Clusters = append(bootstrap.StaticResources.Clusters, cluster)
	}
	for name := range resources[resource.SecretType] {
		// Those of in.yaml are no certificates.
		pair := certtest.NewAuthority(t).Issue(t, "example.com")
		bootstrap.StaticResources.Secrets = append(bootstrap.StaticResources.Secrets, &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_TlsCertificate{
			TlsCertificate: &tlsv3.TlsCertificate{
				CertificateChain: &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: pair.Certificate}},
				PrivateKey:       &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: pair.Key}},
			},
		}})
	}
	for _, message := range resources[resource.ListenerType] {
		listener := proto.Clone(message).(*listenerv3.Listener)
		scopes := &hcmv3.ScopedRouteConfigurationsList{}
		for _, message := range resources[resource.ScopedRouteType] {
			scope := proto.Clone(message).(*routev3.ScopedRouteConfiguration)
			// As it is for routes that come by SRDS.
			scope.GetRouteConfiguration().ValidateClusters = wrapperspb.Bool(false)
			scopes.ScopedRouteConfigurations = append(scopes.ScopedRouteConfigurations, scope)
		}
		for _, chain := range listener.GetFilterChains() {
			filter := chain.GetFilters()[0]
			manager := &hcmv3.HttpConnectionManager{}
			if err := filter.GetTypedConfig().UnmarshalTo(manager); err != nil {
				t.Fatal(err)
			}
			if len(scopes.GetScopedRouteConfigurations()) == 0 {
				manager.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{}}
			} else {
				manager.GetScopedRoutes().ConfigSpecifier = &hcmv3.ScopedRoutes_ScopedRouteConfigurationsList{ScopedRouteConfigurationsList: scopes}
			}
			filter.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: mustAny(manager)}
			if socket := chain.GetTransportSocket(); socket != nil {
				context := &tlsv3.DownstreamTlsContext{}
				if err := socket.GetTypedConfig().UnmarshalTo(context); err != nil {
					t.Fatal(err)
				}
				for _, secret := range context.GetCommonTlsContext().GetTlsCertificateSdsSecretConfigs() {
					secret.SdsConfig = nil // so it is one of the bootstrap's
				}
				socket.ConfigType = &corev3.TransportSocket_TypedConfig{TypedConfig: mustAny(context)}
			}
		}
		bootstrap.StaticResources.Listeners = append(bootstrap.StaticResources.Listeners, listener)
	}
	return bootstrap
}

func mustYAML(t testing.TB, message proto.Message) []byte {
	t.Helper()
	encoded, err := protojson.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	return encoded // JSON is YAML
}

// validate asks the real Envoy whether it would start with a bootstrap.
func validate(t testing.TB, bootstrap []byte, arguments ...string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bootstrap.yaml")
	if err := os.WriteFile(path, bootstrap, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), envoyBinary(t), append([]string{
		"--mode", "validate", "--config-path", path,
		"--service-node", "test", "--log-level", "warning", "--concurrency", "1",
	}, arguments...)...).CombinedOutput()
	if err != nil {
		t.Errorf("Envoy refuses the configuration: %v\n%s", err, out)
	} else if bytes.Contains(out, []byte("deprecated")) {
		t.Errorf("Envoy warns:\n%s", out)
	}
}

func envoyBinary(t testing.TB) string {
	t.Helper()
	binary := os.Getenv("ENVOY_BIN")
	if binary == "" {
		t.Skip("ENVOY_BIN is not set, so no Envoy looks at the configuration: run make unit, or set ENVOY_BIN=$(hack/envoy.sh)")
	}
	return binary
}

func BenchmarkTranslate1000(b *testing.B) {
	port := model.Port{Number: 8888, Bind: 8888}
	gw := model.Gateway{Namespace: "shop", Name: "edge"}
	for i := range 1000 {
		name := fmt.Sprintf("route-%04d", i)
		cluster := "shop/" + name + "/80"
		backends := []model.WeightedCluster{{Cluster: cluster, Weight: 1}}
		gw.Clusters = append(gw.Clusters, model.Cluster{Name: cluster})
		port.VirtualHosts = append(port.VirtualHosts, model.VirtualHost{Hostname: name + ".example.com", Routes: []model.Route{
			{Name: name + "/api", Match: model.Match{Path: "/api"}, Backends: backends, Rewrite: model.Rewrite{Prefix: "/"}, Timeout: 15 * time.Second},
			{Name: name + "/all", Match: model.Match{Path: "/"}, Backends: backends, Timeout: 15 * time.Second},
		}})
	}
	gw.Ports = []model.Port{port}
	b.ReportAllocs()
	for b.Loop() {
		if resources := Translate(gw); len(resources[resource.ClusterType]) != 1000 {
			b.Fatal("clusters are missing")
		}
	}
}
