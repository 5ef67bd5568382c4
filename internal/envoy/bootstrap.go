package envoy

import (
	"bytes"
	"encoding/json"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

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
}

// Bootstrap is the configuration that an Envoy starts from, as JSON. Everything
// else it gets from the agent beside it. The node's id is left out: it differs
// from pod to pod and is given on the command line (--service-node).
func Bootstrap(options BootstrapOptions) ([]byte, error) {
	bootstrap := &bootstrapv3.Bootstrap{
		Node:  &corev3.Node{Cluster: options.Gateway.String()},
		Admin: &bootstrapv3.Admin{Address: pipeAddress(options.AdminSocket)},
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

func pipeCluster(name, path string, http2 bool) *clusterv3.Cluster {
	assignment := Endpoints(name, []model.Endpoint{{}})
	assignment.Endpoints[0].LbEndpoints[0].GetEndpoint().Address = pipeAddress(path)
	return &clusterv3.Cluster{
		Name:                          name,
		ConnectTimeout:                durationpb.New(time.Second),
		ClusterDiscoveryType:          &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		LoadAssignment:                assignment,
		TypedExtensionProtocolOptions: map[string]*anypb.Any{httpProtocolOptions: protocolOptions(http2)},
	}
}
