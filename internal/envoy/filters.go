package envoy

import (
	"net/http"
	"regexp"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	statefulsessionv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/stateful_session/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"meshroute.io/meshroute/internal/model"
)

// rewrite changes path and host of what goes to the backend.
func rewrite(action *routev3.RouteAction, from *model.Route) {
	to := from.Rewrite
	switch {
	case to.Path != "":
		action.PathRewrite = literal(to.Path)
	case to.Prefix != "":
		action.PrefixRewrite, action.RegexRewrite = prefixRewrite(from.Match.Path, to.Prefix)
	}
	if to.Hostname != "" {
		action.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: to.Hostname}
	}
}

// prefixRewrite replaces the matched prefix so that exactly one slash stands
// where the replacement and the rest of the path meet; neither where there is
// nothing to do.
func prefixRewrite(matched, replacement string) (prefix string, regex *matcherv3.RegexMatchAndSubstitute) {
	replacement = strings.TrimSuffix(replacement, "/")
	switch {
	case matched == "/" && replacement == "":
		return "", nil
	case matched == "/":
		return replacement + "/", nil
	case replacement == "":
		// A prefix of "/" would turn /api/x into //x.
		return "", regexRewrite("^"+regexp.QuoteMeta(matched)+"/*", "/")
	default:
		return replacement, nil
	}
}

// literal keeps Envoy from replacing anything in a text that it takes for a
// format.
func literal(text string) string { return strings.ReplaceAll(text, "%", "%%") }

func headersToAdd(from model.HeaderChanges) []*corev3.HeaderValueOption {
	var to []*corev3.HeaderValueOption
	for _, header := range from.Set {
		to = append(to, setHeader(header.Name, header.Value))
	}
	for _, header := range from.Add {
		to = append(to, addHeader(header.Name, header.Value))
	}
	return to
}

func setHeader(name, value string) *corev3.HeaderValueOption {
	option := addHeader(name, value)
	option.AppendAction = corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
	return option
}

func addHeader(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: name, Value: literal(value)}}
}

var redirectCodes = map[uint32]routev3.RedirectAction_RedirectResponseCode{
	301: routev3.RedirectAction_MOVED_PERMANENTLY,
	302: routev3.RedirectAction_FOUND,
	303: routev3.RedirectAction_SEE_OTHER,
	307: routev3.RedirectAction_TEMPORARY_REDIRECT,
	308: routev3.RedirectAction_PERMANENT_REDIRECT,
}

func redirect(from *model.Route) *routev3.RedirectAction {
	source := from.Redirect
	to := &routev3.RedirectAction{HostRedirect: source.Hostname, ResponseCode: redirectCodes[source.Status]}
	if source.Scheme != "" {
		to.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: source.Scheme}
	}
	if source.Port > 0 {
		to.PortRedirect = uint32(source.Port)
	}
	switch {
	case source.Path != "":
		to.PathRewriteSpecifier = &routev3.RedirectAction_PathRedirect{PathRedirect: source.Path}
	case source.Prefix != "":
		prefix, regex := prefixRewrite(from.Match.Path, source.Prefix)
		switch {
		case regex != nil:
			to.PathRewriteSpecifier = &routev3.RedirectAction_RegexRewrite{RegexRewrite: regex}
		case prefix != "":
			to.PathRewriteSpecifier = &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: prefix}
		}
	}
	return to
}

// redirectWithPort is what comes before a redirect to the usual port of another
// scheme, with the host that the client named, where that is not known: Envoy
// would keep a port beside the host, and takes it away only to write another.
// So it writes the usual one, for those clients alone that named any. Nil for
// all other routes.
func redirectWithPort(from *model.Route, to *routev3.Route) *routev3.Route {
	if from.Redirect == nil || from.Redirect.Port != 0 || from.Redirect.Hostname != "" {
		return nil
	}
	twin := proto.Clone(to).(*routev3.Route)
	twin.Match.Headers = append(twin.GetMatch().GetHeaders(), headerMatcher(":authority", &matcherv3.StringMatcher{
		MatchPattern: &matcherv3.StringMatcher_Contains{Contains: ":"},
	}))
	twin.GetRedirect().PortRedirect = usualPorts[from.Redirect.Scheme]
	return twin
}

var usualPorts = map[string]uint32{"http": 80, "https": 443}

func mirrorPolicy(from model.Mirror) *routev3.RouteAction_RequestMirrorPolicy {
	const all = 1_000_000
	to := &routev3.RouteAction_RequestMirrorPolicy{
		Cluster: from.Cluster,
		// Whoever looks at the Host header is to see what the backend sees.
		DisableShadowHostSuffixAppend: true,
	}
	if from.PerMillion < all {
		to.RuntimeFraction = &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{
			Numerator: from.PerMillion, Denominator: typev3.FractionalPercent_MILLION,
		}}
	}
	return to
}

// corsFilter answers for routes that say how (enableCORS), and does nothing for
// others.
const corsFilter = "envoy.filters.http.cors"

// routeFilters are the filters that do nothing where a route does not say what.
// They are not disabled here: Envoy makes a request's filters when it first looks
// for a route, and requests to hostnames with a wildcard have none by then. A
// scope of an exact hostname leaves them out (see unusedFilters).
func routeFilters() []*hcmv3.HttpFilter {
	return []*hcmv3.HttpFilter{
		{Name: corsFilter, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: mustAny(&corsv3.Cors{})}},
		{Name: affinityFilter, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: mustAny(&statefulsessionv3.StatefulSession{})}},
	}
}

func enableCORS(to *routev3.Route, from *model.CORS) {
	if from == nil {
		return
	}
	policy := &corsv3.CorsPolicy{
		AllowMethods:  strings.Join(from.Methods, ", "),
		AllowHeaders:  strings.Join(from.RequestHeaders, ", "),
		ExposeHeaders: strings.Join(from.ResponseHeaders, ", "),
		MaxAge:        strconv.Itoa(int(from.MaxAge.Seconds())),
		// Who is not allowed is told so by the gateway, too: no backend answers
		// preflight requests.
		ForwardNotMatchingPreflights: wrapperspb.Bool(false),
	}
	if from.Credentials {
		policy.AllowCredentials = wrapperspb.Bool(true)
	}
	for _, origin := range from.Origins {
		policy.AllowOriginStringMatch = append(policy.AllowOriginStringMatch, originMatcher(origin))
	}
	to.TypedPerFilterConfig = map[string]*anypb.Any{corsFilter: mustAny(policy)}
	// Envoy answers each origin with its own name, so caches have to keep the
	// answers apart.
	to.ResponseHeadersToAdd = append(to.ResponseHeadersToAdd, addHeader("vary", "Origin"))
}

func originMatcher(from model.Origin) *matcherv3.StringMatcher {
	if from.Any {
		return exactly("*") // the filter takes it for every origin
	}
	port := from.Port
	if port != "" {
		port = ":" + port
	}
	suffix, wildcard := strings.CutPrefix(from.Host, "*")
	if !wildcard {
		return exactly(from.Scheme + "://" + from.Host + port)
	}
	return like(from.Scheme + "://[A-Za-z0-9.-]+" + regexp.QuoteMeta(suffix+port))
}

// preflight is what comes before a route with CORS that matches a method: a
// browser asks with OPTIONS whether it may use that method, which the route does
// not match, and the filter answers only where a route does. Nil for all other
// routes.
func preflight(from *model.Route, to *routev3.Route) *routev3.Route {
	if to.GetTypedPerFilterConfig()[corsFilter] == nil || from.Match.Method == "" || from.Match.Method == http.MethodOptions {
		return nil
	}
	asked := from.Match
	asked.Method = http.MethodOptions
	twin := &routev3.Route{
		Name:  from.Name,
		Match: match(asked),
		// What the filter does not take for a preflight request (its origin is
		// empty) goes nowhere: the rule is not for its method.
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier:            &routev3.RouteAction_Cluster{Cluster: model.MissingCluster},
			ClusterNotFoundResponseCode: routev3.RouteAction_NOT_FOUND,
		}},
		TypedPerFilterConfig: to.GetTypedPerFilterConfig(),
	}
	twin.Match.Headers = append(twin.GetMatch().GetHeaders(),
		&routev3.HeaderMatcher{Name: "origin", HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}},
		headerMatcher("access-control-request-method", exactly(from.Match.Method)))
	return twin
}
