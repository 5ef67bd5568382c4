package envoy

import (
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	aggregatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/aggregate/v3"
	previousprioritiesv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"meshroute.io/meshroute/internal/model"
)

// failover is a cluster made of others: Envoy takes the first that has an
// endpoint to offer, and leaves it to that cluster which one. All that is known
// of endpoints stays with the members.
func failover(from model.Failover) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name: from.Name,
		ClusterDiscoveryType: &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{
			Name:        "envoy.clusters.aggregate",
			TypedConfig: mustAny(&aggregatev3.ClusterConfig{Clusters: from.Members}),
		}},
		LbPolicy: clusterv3.Cluster_CLUSTER_PROVIDED,
		// Retries are counted here, all else in the members.
		CircuitBreakers: concurrencyOfAll,
		// While nobody has a healthy endpoint all are asked, as within a cluster;
		// but not sooner.
		CommonLbConfig: &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: panicThreshold()},
	}
}

// onlyWhenEmpty makes one healthy endpoint of a cluster enough to get all
// requests. (Envoy would send a part of them to the next cluster as soon as fewer
// than 72 % are healthy.)
func onlyWhenEmpty() *endpointv3.ClusterLoadAssignment_Policy {
	const percent = 1_000_000 // of the share of endpoints that are healthy
	return &endpointv3.ClusterLoadAssignment_Policy{OverprovisioningFactor: wrapperspb.UInt32(percent)}
}

// nextPriority makes the last of the retries go to the next cluster: the first
// goes to another endpoint of the same one, if there is any.
func nextPriority() *routev3.RetryPolicy_RetryPriority {
	return &routev3.RetryPolicy_RetryPriority{
		Name:       "envoy.retry_priorities.previous_priorities",
		ConfigType: &routev3.RetryPolicy_RetryPriority_TypedConfig{TypedConfig: mustAny(&previousprioritiesv3.PreviousPrioritiesConfig{UpdateFrequency: 2})},
	}
}
