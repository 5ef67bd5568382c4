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

// What many clusters have alike they share: messages are never changed, and there
// may be thousands of them.
var (
	connectTimeoutOfAll = durationpb.New(connectTimeout)
	balancingOfAll      = &clusterv3.Cluster_CommonLbConfig{
		// An endpoint known to be broken gets no requests, even when most of
		// them are. But when all are set aside (the last one that was not has
		// just gone), all are asked: below 1 % is none.
		HealthyPanicThreshold: panicThreshold(),
	}
	concurrencyOfAll = unlimitedConcurrency()
	protocolsOf      = map[bool]map[string]*anypb.Any{
		false: {httpProtocolOptions: protocolOptions(false)},
		true:  {httpProtocolOptions: protocolOptions(true)},
	}
	ejectionOf       = map[bool]*clusterv3.OutlierDetection{false: ejection(false), true: ejection(true)}
	bindingOfAll     = &corev3.BindConfig{SocketOptions: []*corev3.SocketOption{userTimeout()}}
	connectionsOfAll = &clusterv3.UpstreamConnectionOptions{
		TcpKeepalive: &corev3.TcpKeepalive{
			KeepaliveTime:     wrapperspb.UInt32(keepaliveTime),
			KeepaliveInterval: wrapperspb.UInt32(1),
			KeepaliveProbes:   wrapperspb.UInt32(2),
		},
	}
	endpointsByADS = &clusterv3.Cluster_EdsClusterConfig{EdsConfig: adsConfigSource()}
)

func cluster(from model.Cluster) *clusterv3.Cluster {
	to := &clusterv3.Cluster{
		Name:           from.Name,
		ConnectTimeout: connectTimeoutOfAll,
		LbPolicy:       lbPolicies[from.LoadBalancing],
		CommonLbConfig: balancingOfAll,
		// An endpoint that left its EndpointSlice is gone at once.
		IgnoreHealthOnHostRemoval:     true,
		CircuitBreakers:               concurrencyOfAll,
		TypedExtensionProtocolOptions: protocolsOf[from.HTTP2],
		OutlierDetection:              ejectionOf[from.BackedUp],
		UpstreamBindConfig:            bindingOfAll,
		UpstreamConnectionOptions:     connectionsOfAll,
	}
	if from.PreferZone {
		to.LoadBalancingPolicy = nearest(from.LoadBalancing)
	}
	if from.DNSName != "" {
		to.ClusterDiscoveryType = &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{
			Name: "envoy.cluster.dns",
			TypedConfig: mustAny(&dnsclusterv3.DnsCluster{
				DnsLookupFamily: dnsv3.DnsLookupFamily_V4_PREFERRED,
				RespectDnsTtl:   true,
			}),
		}}
		to.LoadAssignment = Endpoints(from, []model.Endpoint{{Address: from.DNSName, Port: from.Port.Number}})
		return to
	}
	to.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}
	to.EdsClusterConfig = endpointsByADS
	return to
}

func unlimitedConcurrency() *clusterv3.CircuitBreakers {
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
		MaxConnections:     wrapperspb.UInt32(unlimited),
		MaxPendingRequests: wrapperspb.UInt32(unlimited),
		MaxRequests:        wrapperspb.UInt32(unlimited),
		MaxRetries:         wrapperspb.UInt32(unlimited),
	}}}
}

func panicThreshold() *typev3.Percent { return &typev3.Percent{Value: 1} }

// How an endpoint is noticed that has vanished with its node: nobody closes its
// connections, and nobody refuses new ones.
const (
	// connectTimeout leaves time for one lost packet: the kernel sends the
	// first one again after a second.
	connectTimeout = 2 * time.Second
	// silence is how long the other end of a connection may acknowledge
	// nothing: neither what it was sent, nor, while Envoy waits for an answer,
	// the kernel's probes. The other end is its kernel, so how long an answer
	// takes is not bounded by it. An upload whose reader pauses is: once the
	// buffers are full the kernel counts that as silence, too. So it is no
	// shorter than it has to be for a client that waits 10 s.
	silence = 8 * time.Second
	// keepaliveTime, in seconds, is when the kernel begins to ask, each second,
	// whether the other end is there.
	keepaliveTime = 3
)

// userTimeout ends a connection after silence (tcp(7), TCP_USER_TIMEOUT).
func userTimeout() *corev3.SocketOption {
	const ipprotoTCP, tcpUserTimeout = 6, 18 // Linux's numbers
	return &corev3.SocketOption{
		Description: "TCP_USER_TIMEOUT",
		Level:       ipprotoTCP,
		Name:        tcpUserTimeout,
		Value:       &corev3.SocketOption_IntValue{IntValue: silence.Milliseconds()},
		State:       corev3.SocketOption_STATE_PREBIND,
	}
}

// ejection sets an endpoint aside that cannot be reached, so that not every
// request has to find out. Answers, whatever they are, do not count: whether a
// 500 is a fault is for a policy to say. The last endpoint is not set aside,
// except where others take over.
func ejection(backedUp bool) *clusterv3.OutlierDetection {
	never := wrapperspb.UInt32(0)
	most := wrapperspb.UInt32(99) // percent: less than all
	if backedUp {
		most = wrapperspb.UInt32(100)
	}
	return &clusterv3.OutlierDetection{
		SplitExternalLocalOriginErrors:         true,
		ConsecutiveLocalOriginFailure:          wrapperspb.UInt32(3),
		EnforcingConsecutiveLocalOriginFailure: wrapperspb.UInt32(100),
		EnforcingConsecutive_5Xx:               never,
		EnforcingConsecutiveGatewayFailure:     never,
		EnforcingSuccessRate:                   never,
		EnforcingLocalOriginSuccessRate:        never,
		// It is tried again after 5 to 10 s, then 10 to 15, and so on.
		BaseEjectionTime:   durationpb.New(5 * time.Second),
		MaxEjectionTime:    durationpb.New(30 * time.Second),
		Interval:           durationpb.New(5 * time.Second),
		MaxEjectionPercent: most,
	}
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
func Endpoints(cluster model.Cluster, endpoints []model.Endpoint) *endpointv3.ClusterLoadAssignment {
	assignment := loadAssignment(cluster.Name, endpoints)
	if cluster.BackedUp {
		assignment.Policy = onlyWhenEmpty()
	}
	return assignment
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
