package envoy

import (
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	statefulsessionv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/stateful_session/v3"
	cookiev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/stateful_session/cookie/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/type/http/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"meshroute.io/meshroute/internal/model"
)

var lbPolicies = map[model.LoadBalancing]clusterv3.Cluster_LbPolicy{
	model.LeastRequest: clusterv3.Cluster_LEAST_REQUEST,
	model.RoundRobin:   clusterv3.Cluster_ROUND_ROBIN,
	model.Random:       clusterv3.Cluster_RANDOM,
	model.RingHash:     clusterv3.Cluster_RING_HASH,
	model.Maglev:       clusterv3.Cluster_MAGLEV,
}

// hashPolicy says what of a request is hashed.
func hashPolicy(from *model.Hash) []*routev3.RouteAction_HashPolicy {
	switch {
	case from == nil:
		return nil
	case from.ClientAddress:
		return []*routev3.RouteAction_HashPolicy{{
			PolicySpecifier: &routev3.RouteAction_HashPolicy_ConnectionProperties_{
				ConnectionProperties: &routev3.RouteAction_HashPolicy_ConnectionProperties{SourceIp: true},
			},
		}}
	case from.Header != "":
		return []*routev3.RouteAction_HashPolicy{{
			PolicySpecifier: &routev3.RouteAction_HashPolicy_Header_{
				Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: from.Header},
			},
		}}
	}
	cookie := &routev3.RouteAction_HashPolicy_Cookie{Name: from.Cookie.Name}
	if from.Generate {
		cookie.Ttl, cookie.Path = durationpb.New(from.Cookie.TTL), from.Cookie.Path
		cookie.Attributes = []*routev3.RouteAction_HashPolicy_CookieAttribute{{Name: sameSite, Value: lax}}
	}
	return []*routev3.RouteAction_HashPolicy{{PolicySpecifier: &routev3.RouteAction_HashPolicy_Cookie_{Cookie: cookie}}}
}

// What browsers without an opinion of their own take for granted: the cookie is
// not sent with what other sites make a browser request in the background.
const sameSite, lax = "SameSite", "Lax"

// affinityFilter keeps clients at one endpoint on routes that say how
// (enableAffinity), and is not there for others.
const affinityFilter = "envoy.filters.http.stateful_session"

// enableAffinity binds clients by a cookie. One that names an endpoint which is
// not there, or no more, is as good as none.
func enableAffinity(to *routev3.Route, from *model.Cookie) {
	if from == nil {
		return
	}
	cookie := &httpv3.Cookie{
		Name:       from.Name,
		Path:       from.Path,
		Attributes: []*httpv3.CookieAttribute{{Name: sameSite, Value: lax}},
	}
	if from.TTL > 0 {
		cookie.Ttl = durationpb.New(from.TTL)
	}
	if to.TypedPerFilterConfig == nil {
		to.TypedPerFilterConfig = map[string]*anypb.Any{}
	}
	to.TypedPerFilterConfig[affinityFilter] = mustAny(&statefulsessionv3.StatefulSessionPerRoute{
		Override: &statefulsessionv3.StatefulSessionPerRoute_StatefulSession{StatefulSession: &statefulsessionv3.StatefulSession{
			SessionState: &corev3.TypedExtensionConfig{
				Name:        "envoy.http.stateful_session.cookie",
				TypedConfig: mustAny(&cookiev3.CookieBasedSessionState{Cookie: cookie}),
			},
		}},
	})
}
