package envoy

import (
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"meshroute.io/meshroute/internal/model"
)

// maxBody bounds the body of a direct response: the schema's 4096 characters
// take up to four bytes each, and Envoy refuses all routes of a hostname for
// one body that is longer than this (4096 bytes unless told).
const maxBody = 4 * 4096

func route(from *model.Route) *routev3.Route {
	to := &routev3.Route{
		Name:                    from.Name,
		Match:                   match(from.Match),
		RequestHeadersToAdd:     headersToAdd(from.RequestHeaders),
		RequestHeadersToRemove:  from.RequestHeaders.Remove,
		ResponseHeadersToAdd:    headersToAdd(from.ResponseHeaders),
		ResponseHeadersToRemove: from.ResponseHeaders.Remove,
	}
	switch {
	case from.Response != nil:
		to.Action = directResponse(from.Response.Status, from.Response.Body)
		// In front, so that the route's own changes have the last word.
		to.ResponseHeadersToAdd = append([]*corev3.HeaderValueOption{setHeader("content-type", from.Response.ContentType)}, to.GetResponseHeadersToAdd()...)
	case from.Redirect != nil:
		to.Action = &routev3.Route_Redirect{Redirect: redirect(from)}
	case from.StubStatus:
		to.Action = &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: AgentCluster},
			RegexRewrite:     regexRewrite("^/.*$", StubStatusPath),
		}}
	case allMissing(from.Backends):
		to.Action = directResponse(500, "no backend of this route could be resolved\n")
	default:
		to.Action = &routev3.Route_Route{Route: routeAction(from)}
		enableCORS(to, from.CORS)
		enableAffinity(to, from.Affinity)
	}
	return to
}

func match(from model.Match) *routev3.RouteMatch {
	to := &routev3.RouteMatch{}
	switch {
	case from.Type == model.PathExact:
		to.PathSpecifier = &routev3.RouteMatch_Path{Path: from.Path}
	case from.Type == model.PathRegex:
		to.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: from.Path}}
	case from.Path == "/":
		to.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: "/"}
	default:
		to.PathSpecifier = &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: from.Path}
	}
	if from.Method != "" {
		to.Headers = append(to.Headers, headerMatcher(":method", exactly(from.Method)))
	}
	for _, header := range from.Headers {
		to.Headers = append(to.Headers, headerMatcher(header.Name, valueMatcher(header)))
	}
	for _, param := range from.QueryParams {
		to.QueryParameters = append(to.QueryParameters, &routev3.QueryParameterMatcher{
			Name: param.Name,
			QueryParameterMatchSpecifier: &routev3.QueryParameterMatcher_StringMatch{
				StringMatch: valueMatcher(param),
			},
		})
	}
	return to
}

func headerMatcher(name string, value *matcherv3.StringMatcher) *routev3.HeaderMatcher {
	return &routev3.HeaderMatcher{
		Name:                 name,
		HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: value},
	}
}

func valueMatcher(from model.ValueMatch) *matcherv3.StringMatcher {
	if from.Regex {
		return like(from.Value)
	}
	return exactly(from.Value)
}

func exactly(value string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: value}}
}

// like matches a regular expression with the whole of a text.
func like(regex string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{
		SafeRegex: &matcherv3.RegexMatcher{Regex: regex},
	}}
}

func directResponse(status uint32, body string) *routev3.Route_DirectResponse {
	response := &routev3.DirectResponseAction{Status: status}
	if body != "" {
		response.Body = &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: body}}
	}
	return &routev3.Route_DirectResponse{DirectResponse: response}
}

func allMissing(backends []model.WeightedCluster) bool {
	for _, backend := range backends {
		if backend.Cluster != model.MissingCluster {
			return false
		}
	}
	return true
}

func routeAction(from *model.Route) *routev3.RouteAction {
	repeated := unharmed
	if from.Match.Method != "" && !slices.Contains(idempotent, from.Match.Method) {
		repeated = untouched
	}
	action := &routev3.RouteAction{
		Timeout:     durationpb.New(from.Timeout),
		RetryPolicy: retriesFor(from, repeated),
		HashPolicy:  hashPolicy(from.Hash),
		// The share of a backend that could not be resolved is answered like a
		// rule that has no other.
		ClusterNotFoundResponseCode: routev3.RouteAction_INTERNAL_SERVER_ERROR,
	}
	switch {
	case from.IdleTimeout != nil && *from.IdleTimeout != streamIdleTimeout:
		action.IdleTimeout = durationpb.New(*from.IdleTimeout)
	case from.IdleTimeout == nil && from.Timeout > streamIdleTimeout:
		// Who waits this long for an answer is not idle.
		action.IdleTimeout = durationpb.New(from.Timeout)
	}
	if len(from.Backends) == 1 {
		action.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: from.Backends[0].Cluster}
	} else {
		weighted := &routev3.WeightedCluster{}
		if from.Hash != nil {
			weighted.RandomValueSpecifier = &routev3.WeightedCluster_UseHashPolicy{UseHashPolicy: wrapperspb.Bool(true)}
		}
		for _, backend := range from.Backends {
			weighted.Clusters = append(weighted.Clusters, &routev3.WeightedCluster_ClusterWeight{
				Name: backend.Cluster, Weight: wrapperspb.UInt32(backend.Weight),
			})
		}
		action.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: weighted}
	}
	rewrite(action, from)
	for _, mirror := range from.Mirrors {
		action.RequestMirrorPolicies = append(action.RequestMirrorPolicies, mirrorPolicy(mirror))
	}
	return action
}

func regexRewrite(pattern, substitution string) *matcherv3.RegexMatchAndSubstitute {
	return &matcherv3.RegexMatchAndSubstitute{
		Pattern:      &matcherv3.RegexMatcher{Regex: pattern},
		Substitution: substitution,
	}
}

// What is repeated, on another endpoint: requests of which no endpoint has seen
// anything. The connection could not be made, or it broke before the request was
// sent on it, or HTTP/2 refused the stream. That is safe for every method, and
// hides the moment in which a backend closes an idle connection or an endpoint
// goes away. Requests with idempotent methods are repeated, too, when an endpoint
// takes one and is gone before it answers.
const (
	untouched = "connect-failure,refused-stream,reset-before-request"
	unharmed  = untouched + ",reset"
)

// retriesOf most routes, by what is repeated. They are shared by thousands:
// messages are never changed.
var retriesOf = map[string]*routev3.RetryPolicy{untouched: retries(untouched), unharmed: retries(unharmed)}

func retries(on string) *routev3.RetryPolicy {
	return &routev3.RetryPolicy{
		RetryOn:    on,
		NumRetries: wrapperspb.UInt32(2),
		RetryHostPredicate: []*routev3.RetryPolicy_RetryHostPredicate{{
			Name: "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{
				TypedConfig: mustAny(&previoushostsv3.PreviousHostsPredicate{}),
			},
		}},
		// How often another endpoint is drawn when one that was tried comes up
		// again. Half of them may be gone at once, with their node: of four, two
		// tried, six draws would miss the others in one of 64 cases.
		HostSelectionRetryMaxAttempts: 32,
	}
}

// idempotent are the methods of requests that may be sent twice without harm (RFC
// 9110, 9.2.2); the most frequent first.
var idempotent = []string{"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"}

// otherMethods match requests with none of them. They are shared, too.
var otherMethods = func() []*routev3.HeaderMatcher {
	matchers := make([]*routev3.HeaderMatcher, 0, len(idempotent))
	for _, method := range idempotent {
		matcher := headerMatcher(":method", exactly(method))
		matcher.InvertMatch = true
		matchers = append(matchers, matcher)
	}
	return matchers
}()

// withoutRepeats is what comes before a route for all methods: the same for
// requests that must not be sent twice. A route's retries are alike for all of its
// methods, and a filter that tells them apart for the router takes a twentieth of what
// Envoy does for a request. Nil for all other routes.
func withoutRepeats(from *model.Route, to *routev3.Route) *routev3.Route {
	if to.GetRoute().GetRetryPolicy() == nil || from.Match.Method != "" {
		return nil
	}
	once := route(from)
	once.GetRoute().RetryPolicy = retriesFor(from, untouched)
	once.Match.Headers = append(once.GetMatch().GetHeaders(), otherMethods...)
	return once
}

func retriesFor(from *model.Route, on string) *routev3.RetryPolicy {
	if from.BackendTimeout == 0 && !from.FailsOver {
		return retriesOf[on]
	}
	policy := retries(on)
	if from.BackendTimeout > 0 {
		policy.PerTryTimeout = durationpb.New(from.BackendTimeout)
	}
	if from.FailsOver {
		policy.RetryPriority = nextPriority()
	}
	return policy
}
