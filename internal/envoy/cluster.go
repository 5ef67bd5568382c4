package envoy

import (
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	dnsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/common/dns/v3"
	dnsclusterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dns/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"meshroute.io/meshroute/internal/model"
)

const httpProtocolOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// unlimited is what concurrency limits are set to. Envoy's own defaults (1024
// connections and requests, 3 retries, for a whole cluster) refuse requests
// that nobody asked to be refused.
const unlimited = 1 << 30

func cluster(from model.Cluster) *clusterv3.Cluster {
	to := &clusterv3.Cluster{
		Name:           from.Name,
		ConnectTimeout: durationpb.New(5 * time.Second),
		LbPolicy:       clusterv3.Cluster_LEAST_REQUEST,
		CommonLbConfig: &clusterv3.Cluster_CommonLbConfig{
			// No panic mode: an endpoint known to be broken gets no requests,
			// even when most of them are.
			HealthyPanicThreshold: &typev3.Percent{Value: 0},
		},
		// An endpoint that left its EndpointSlice is gone at once.
		IgnoreHealthOnHostRemoval: true,
		CircuitBreakers: &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
			MaxConnections:     wrapperspb.UInt32(unlimited),
			MaxPendingRequests: wrapperspb.UInt32(unlimited),
			MaxRequests:        wrapperspb.UInt32(unlimited),
			MaxRetries:         wrapperspb.UInt32(unlimited),
		}}},
		TypedExtensionProtocolOptions: map[string]*anypb.Any{httpProtocolOptions: protocolOptions(from.HTTP2)},
		UpstreamConnectionOptions: &clusterv3.UpstreamConnectionOptions{
			TcpKeepalive: &corev3.TcpKeepalive{
				KeepaliveTime:     wrapperspb.UInt32(60),
				KeepaliveInterval: wrapperspb.UInt32(10),
				KeepaliveProbes:   wrapperspb.UInt32(3),
			},
		},
	}
	if from.DNSName != "" {
		to.ClusterDiscoveryType = &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{
			Name: "envoy.cluster.dns",
			TypedConfig: mustAny(&dnsclusterv3.DnsCluster{
				DnsLookupFamily: dnsv3.DnsLookupFamily_V4_PREFERRED,
				RespectDnsTtl:   true,
			}),
		}}
		to.LoadAssignment = loadAssignment(from.Name, []model.Endpoint{{Address: from.DNSName, Port: from.Port.Number}})
		return to
	}
	to.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}
	to.EdsClusterConfig = &clusterv3.Cluster_EdsClusterConfig{EdsConfig: adsConfigSource()}
	return to
}

func protocolOptions(http2 bool) *anypb.Any {
	explicit := &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
		ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{
			HttpProtocolOptions: &corev3.Http1ProtocolOptions{},
		},
	}
	if http2 {
		explicit.ProtocolConfig = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
			Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
		}
	}
	return mustAny(&httpv3.HttpProtocolOptions{
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{IdleTimeout: durationpb.New(time.Minute)},
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: explicit,
		},
	})
}

// Endpoints is the resource that tells Envoy the endpoints of a cluster. With
// none, requests to the cluster are answered with 503.
func Endpoints(cluster string, endpoints []model.Endpoint) *endpointv3.ClusterLoadAssignment {
	return loadAssignment(cluster, endpoints)
}

// loadAssignment groups endpoints by zone; they come sorted, and the order of
// their zones' first appearance keeps the result stable.
func loadAssignment(cluster string, endpoints []model.Endpoint) *endpointv3.ClusterLoadAssignment {
	assignment := &endpointv3.ClusterLoadAssignment{ClusterName: cluster}
	zones := map[string]*endpointv3.LocalityLbEndpoints{}
	for _, endpoint := range endpoints {
		zone := zones[endpoint.Zone]
		if zone == nil {
			zone = &endpointv3.LocalityLbEndpoints{}
			if endpoint.Zone != "" {
				zone.Locality = &corev3.Locality{Zone: endpoint.Zone}
			}
			zones[endpoint.Zone] = zone
			assignment.Endpoints = append(assignment.Endpoints, zone)
		}
		zone.LbEndpoints = append(zone.LbEndpoints, &endpointv3.LbEndpoint{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
				Address: socketAddress(endpoint.Address, endpoint.Port),
			}},
		})
	}
	return assignment
}
