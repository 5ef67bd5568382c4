package envoy

import (
	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/common/v3"
	leastrequestv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/least_request/v3"
	randomv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/random/v3"
	roundrobinv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/round_robin/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"meshroute.io/meshroute/internal/model"
)

// zoneCluster stands for the gateway's own pods, of which Envoy wants to know the
// zones before it prefers one. Nothing is ever sent there.
const zoneCluster = "meshroute-zone"

// PodBootstrap is the part of Envoy's bootstrap that differs from pod to pod, as
// JSON, for --config-yaml: the zone that the pod is in, empty where that is not
// known.
func PodBootstrap(zone string) ([]byte, error) {
	// One endpoint, in this pod's zone: so all pods seem to be in one zone, and
	// that one is preferred without regard to how many gateway pods others have.
	assignment := loadAssignment(zoneCluster, []model.Endpoint{{Zone: zone}})
	assignment.Endpoints[0].LbEndpoints[0].GetEndpoint().Address = pipeAddress("/dev/null")
	return encode(&bootstrapv3.Bootstrap{
		Node:           &corev3.Node{Locality: &corev3.Locality{Zone: zone}},
		ClusterManager: &bootstrapv3.ClusterManager{LocalClusterName: zoneCluster},
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{Clusters: []*clusterv3.Cluster{{
			Name:                 zoneCluster,
			ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
			LoadAssignment:       assignment,
		}}},
	})
}

// nearest chooses among the endpoints of the pod's own zone while any of them is
// healthy, and among all otherwise.
func nearest(balancing model.LoadBalancing) *clusterv3.LoadBalancingPolicy {
	zone := &commonv3.LocalityLbConfig{LocalityConfigSpecifier: &commonv3.LocalityLbConfig_ZoneAwareLbConfig_{
		ZoneAwareLbConfig: &commonv3.LocalityLbConfig_ZoneAwareLbConfig{
			// However few endpoints there are.
			MinClusterSize: wrapperspb.UInt64(1),
			ForceLocalZone: &commonv3.LocalityLbConfig_ZoneAwareLbConfig_ForceLocalZone{MinSize: wrapperspb.UInt32(1)},
		},
	}}
	var name string
	var config proto.Message
	switch balancing {
	case model.RoundRobin:
		name, config = "round_robin", &roundrobinv3.RoundRobin{LocalityLbConfig: zone}
	case model.Random:
		name, config = "random", &randomv3.Random{LocalityLbConfig: zone}
	default:
		name, config = "least_request", &leastrequestv3.LeastRequest{LocalityLbConfig: zone}
	}
	return &clusterv3.LoadBalancingPolicy{Policies: []*clusterv3.LoadBalancingPolicy_Policy{{
		TypedExtensionConfig: &corev3.TypedExtensionConfig{
			Name: "envoy.load_balancing_policies." + name, TypedConfig: mustAny(config),
		},
	}}}
}
