package envoy

import (
	"fmt"
	"time"

	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	matchingv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/matching/v3"
	actionv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/matcher/action/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	typematcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"github.com/envoyproxy/go-control-plane/pkg/wellknown"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"meshroute.io/meshroute/internal/model"
)

// streamIdleTimeout is how long nothing may move on a request or its answer.
const streamIdleTimeout = 5 * time.Minute

func portName(port model.Port) string { return fmt.Sprintf("port-%d", port.Number) }

// listener is made of nothing but the port: routes come by SRDS, and certificates
// by SDS, so that a change of these never drains a connection. It is nil where
// an HTTPS port has no certificate to serve.
func listener(name string, port model.Port) *listenerv3.Listener {
	manager := &hcmv3.HttpConnectionManager{
		StatPrefix:     name,
		CodecType:      hcmv3.HttpConnectionManager_AUTO,
		RouteSpecifier: scopedRoutes(),
		HttpFilters: append(append(scopeFilters(name), routeFilters()...), &hcmv3.HttpFilter{
			Name: wellknown.Router,
			ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: mustAny(&routerv3.Router{
				// Clients are not told about Envoy's inner timings.
				SuppressEnvoyHeaders: true,
			})},
		}),
		EarlyHeaderMutationExtensions: []*corev3.TypedExtensionConfig{setScope(name)},
		UpgradeConfigs:                []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},

		// The gateway stands at the edge: the client's address is that of its
		// connection, and no client is trusted with Envoy's own headers, private
		// address or not.
		UseRemoteAddress: wrapperspb.Bool(true),
		// (Without any range here Envoy would take all private ones; this one
		// is nobody's.)
		InternalAddressConfig: &hcmv3.HttpConnectionManager_InternalAddressConfig{
			CidrRanges: []*corev3.CidrRange{{AddressPrefix: "0.0.0.0", PrefixLen: wrapperspb.UInt32(32)}},
		},

		// Routes compare normalized paths, as their schema demands.
		NormalizePath: wrapperspb.Bool(true),
		MergeSlashes:  true,

		// Bounds from Envoy's advice for edge proxies (configuration best
		// practices, "edge"). No bound on the whole request: uploads and streams
		// may take their time as long as something moves.
		RequestHeadersTimeout: durationpb.New(10 * time.Second),
		StreamIdleTimeout:     durationpb.New(streamIdleTimeout),
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{
			IdleTimeout: durationpb.New(time.Hour),
			// nginx drops such headers, too: backends that map '-' to '_' would
			// otherwise take one for the other.
			HeadersWithUnderscoresAction: corev3.HttpProtocolOptions_DROP_HEADER,
		},
		Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
			MaxConcurrentStreams:        wrapperspb.UInt32(100),
			InitialStreamWindowSize:     wrapperspb.UInt32(64 << 10),
			InitialConnectionWindowSize: wrapperspb.UInt32(1 << 20),
		},
	}
	made := &listenerv3.Listener{
		Name:    name,
		Address: socketAddress("0.0.0.0", port.Bind),
		FilterChains: []*listenerv3.FilterChain{{
			Filters: []*listenerv3.Filter{{
				Name:       wellknown.HTTPConnectionManager,
				ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: mustAny(manager)},
			}},
		}},
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(32 << 10),
	}
	if port.HTTPS {
		return terminate(made, manager, port.TLS)
	}
	return made
}

func ipv6Name(listener string) string { return listener + "-ipv6" }

// alsoIPv6 is a listener beside another one, on the same port for IPv6 alone.
func alsoIPv6(other *listenerv3.Listener) *listenerv3.Listener {
	made := proto.CloneOf(other)
	made.Name = ipv6Name(other.GetName())
	made.GetAddress().GetSocketAddress().Address = "::" // Envoy leaves IPv4 alone there
	return made
}

func adsConfigSource() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
}

func socketAddress(address string, port int32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       address,
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}
}

func pipeAddress(path string) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: path}}}
}

// onlyWhere is a filter that other requests skip.
func onlyWhere(predicate *xdsmatcherv3.Matcher_MatcherList_Predicate, name string, filter *anypb.Any) *anypb.Any {
	return mustAny(&matchingv3.ExtensionWithMatcher{
		XdsMatcher: &xdsmatcherv3.Matcher{MatcherType: &xdsmatcherv3.Matcher_MatcherList_{MatcherList: &xdsmatcherv3.Matcher_MatcherList{
			Matchers: []*xdsmatcherv3.Matcher_MatcherList_FieldMatcher{{
				Predicate: not(predicate),
				OnMatch: &xdsmatcherv3.Matcher_OnMatch{OnMatch: &xdsmatcherv3.Matcher_OnMatch_Action{
					Action: &xdscorev3.TypedExtensionConfig{Name: "skip", TypedConfig: mustAny(&actionv3.SkipFilter{})},
				}},
			}},
		}}},
		ExtensionConfig: &corev3.TypedExtensionConfig{Name: name, TypedConfig: filter},
	})
}

func not(predicate *xdsmatcherv3.Matcher_MatcherList_Predicate) *xdsmatcherv3.Matcher_MatcherList_Predicate {
	if double, is := predicate.GetMatchType().(*xdsmatcherv3.Matcher_MatcherList_Predicate_NotMatcher); is {
		return double.NotMatcher
	}
	return &xdsmatcherv3.Matcher_MatcherList_Predicate{MatchType: &xdsmatcherv3.Matcher_MatcherList_Predicate_NotMatcher{NotMatcher: predicate}}
}

func headerMatches(name, regex string) *xdsmatcherv3.Matcher_MatcherList_Predicate {
	return headerPredicate(name, &xdsmatcherv3.StringMatcher{MatchPattern: &xdsmatcherv3.StringMatcher_SafeRegex{SafeRegex: &xdsmatcherv3.RegexMatcher{
		EngineType: &xdsmatcherv3.RegexMatcher_GoogleRe2{GoogleRe2: &xdsmatcherv3.RegexMatcher_GoogleRE2{}}, Regex: regex,
	}}})
}

func headerPredicate(name string, value *xdsmatcherv3.StringMatcher) *xdsmatcherv3.Matcher_MatcherList_Predicate {
	return &xdsmatcherv3.Matcher_MatcherList_Predicate{
		MatchType: &xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate_{
			SinglePredicate: &xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate{
				Input: &xdscorev3.TypedExtensionConfig{
					Name:        "header",
					TypedConfig: mustAny(&typematcherv3.HttpRequestHeaderMatchInput{HeaderName: name}),
				},
				Matcher: &xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate_ValueMatch{ValueMatch: value},
			},
		},
	}
}
