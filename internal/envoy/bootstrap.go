package envoy

import (
	"bytes"
	"encoding/json"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	healthcheckv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/health_check/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"github.com/envoyproxy/go-control-plane/pkg/wellknown"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"meshroute.io/meshroute/internal/model"
)

// BootstrapOptions are the places where an Envoy finds its agent. Paths are
// those of Unix sockets, at most 107 bytes long.
type BootstrapOptions struct {
	// Gateway that the Envoy belongs to.
	Gateway model.Key
	// XDSSocket is where the agent serves configuration, PagesSocket where it
	// serves pages, AdminSocket where Envoy serves its admin interface.
	XDSSocket, PagesSocket, AdminSocket string
	// ProbePort is where Envoy answers Kubernetes' probes; 0: nowhere.
	ProbePort int32
	// IPv6 tells that it does so on IPv6 addresses, too.
	IPv6 bool
}

// Bootstrap is the configuration that an Envoy starts from, as JSON. Everything
// else it gets from the agent beside it. The node's id is left out: it differs
// from pod to pod and is given on the command line (--service-node).
func Bootstrap(options BootstrapOptions) ([]byte, error) {
	bootstrap := &bootstrapv3.Bootstrap{
		Node:  &corev3.Node{Cluster: options.Gateway.String()},
		Admin: &bootstrapv3.Admin{Address: pipeAddress(options.AdminSocket)},

		StatsConfig: statistics(),

		DynamicResources: &bootstrapv3.Bootstrap_DynamicResources{
			LdsConfig: adsConfigSource(),
			CdsConfig: adsConfigSource(),
			AdsConfig: &corev3.ApiConfigSource{
				ApiType:             corev3.ApiConfigSource_DELTA_GRPC,
				TransportApiVersion: corev3.ApiVersion_V3,
				GrpcServices: []*corev3.GrpcService{{
					TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
						EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
							ClusterName: XDSCluster,
							// The agent is a neighbour on a socket: when it comes
							// back, find it at once.
							RetryPolicy: &corev3.RetryPolicy{RetryBackOff: &corev3.BackoffStrategy{
								BaseInterval: durationpb.New(50 * time.Millisecond),
								MaxInterval:  durationpb.New(500 * time.Millisecond),
							}},
						},
					},
				}},
			},
		},
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{Clusters: []*clusterv3.Cluster{
			pipeCluster(XDSCluster, options.XDSSocket, true),
			pipeCluster(AgentCluster, options.PagesSocket, false),
		}},
	}
	bootstrap.LayeredRuntime = &bootstrapv3.LayeredRuntime{Layers: []*bootstrapv3.RuntimeLayer{{
		Name: "static",
		LayerSpecifier: &bootstrapv3.RuntimeLayer_StaticLayer{StaticLayer: &structpb.Struct{Fields: map[string]*structpb.Value{
			// Envoy refuses regular expressions of more than 100 instructions.
			// How large they may be is the model's to say.
			"re2.max_program_size.error_level": structpb.NewNumberValue(maxRegexProgram),
		}}},
	}}}
	if options.ProbePort != 0 {
		probes := probeListener(options.ProbePort)
		bootstrap.StaticResources.Listeners = []*listenerv3.Listener{probes}
		if options.IPv6 {
			bootstrap.StaticResources.Listeners = append(bootstrap.StaticResources.Listeners, alsoIPv6(probes))
		}
	}
	return encode(bootstrap)
}

func encode(bootstrap *bootstrapv3.Bootstrap) ([]byte, error) {
	encoded, err := protojson.Marshal(bootstrap)
	if err != nil {
		return nil, err
	}
	// protojson varies its white space from one build to another; pods are
	// replaced when these bytes change.
	var compact bytes.Buffer
	if err := json.Compact(&compact, encoded); err != nil {
		return nil, err
	}
	return compact.Bytes(), nil
}

// maxRegexProgram is beyond every regular expression that the model lets pass, and
// that this package writes.
const maxRegexProgram = 2000

// LivePath and ReadyPath are what Envoy answers on its probe port, with nobody's
// help: that its workers work, and that its health check was not failed from
// its admin interface, as it is when its pod drains.
const (
	LivePath  = "/livez"
	ReadyPath = "/readyz"
)

// probeListener answers from the same workers that clients' connections are
// served by. It is open to whoever reaches the pod, and holds nothing.
func probeListener(port int32) *listenerv3.Listener {
	manager := &hcmv3.HttpConnectionManager{
		StatPrefix: "probes",
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
			VirtualHosts: []*routev3.VirtualHost{{
				Name: "probes", Domains: []string{"*"},
				Routes: []*routev3.Route{{
					Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: LivePath}},
					Action: directResponse(200, "ok\n"),
				}},
			}},
		}},
		HttpFilters: []*hcmv3.HttpFilter{
			{
				Name: "envoy.filters.http.health_check",
				ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: mustAny(&healthcheckv3.HealthCheck{
					PassThroughMode: wrapperspb.Bool(false),
					Headers: []*routev3.HeaderMatcher{{
						Name: ":path",
						HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
							MatchPattern: &matcherv3.StringMatcher_Exact{Exact: ReadyPath},
						}},
					}},
				})},
			},
			{
				Name:       wellknown.Router,
				ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: mustAny(&routerv3.Router{})},
			},
		},
		RequestHeadersTimeout:     durationpb.New(5 * time.Second),
		StreamIdleTimeout:         durationpb.New(5 * time.Second),
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{IdleTimeout: durationpb.New(5 * time.Second)},
	}
	return &listenerv3.Listener{
		Name:    "probes",
		Address: socketAddress("0.0.0.0", port),
		FilterChains: []*listenerv3.FilterChain{{
			Filters: []*listenerv3.Filter{{
				Name:       wellknown.HTTPConnectionManager,
				ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: mustAny(manager)},
			}},
		}},
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(4 << 10),
		// A gateway that is full is alive.
		IgnoreGlobalConnLimit: true,
	}
}

func pipeCluster(name, path string, http2 bool) *clusterv3.Cluster {
	assignment := loadAssignment(name, []model.Endpoint{{}})
	assignment.Endpoints[0].LbEndpoints[0].GetEndpoint().Address = pipeAddress(path)
	return &clusterv3.Cluster{
		Name:                          name,
		ConnectTimeout:                durationpb.New(time.Second),
		ClusterDiscoveryType:          &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		LoadAssignment:                assignment,
		TypedExtensionProtocolOptions: map[string]*anypb.Any{httpProtocolOptions: protocolOptions(http2)},
	}
}
