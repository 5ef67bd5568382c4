package envoy

import (
	"slices"
	"strings"

	mutationrulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	setfilterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlymutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"meshroute.io/meshroute/internal/model"
)

// Routes come in scopes (SRDS): one for each exact hostname of a port, and one
// for all hostnames with a wildcard. Envoy builds a scope anew when something in
// it changes, and nothing else: with 5,000 hostnames that took 1.5 ms of its CPU,
// against 135 ms where they were one RouteConfiguration.
//
//	Host: Shop.Example.com:8888
//	  │ before anything else      scopeHeader: port-8888/Shop.Example.com:8888
//	  ▼
//	a scope of that name, up to the colon? ── yes ─► its routes
//	  │ no, so these filters run:
//	  ├─ capital letters: ask again in lower case ── yes ─► its routes
//	  └─ scopeHeader: port-8888/* ─► hostnames with a wildcard, as Envoy matches them
//
// A scope of an exact hostname has an answer for every path, so that a hostname
// whose routes do not match a request is not taken for one that has none.

// scopeHeader names the scope of a request. What a client sends by this name is
// overwritten, and backends do not see it.
const scopeHeader = "x-meshroute-scope"

// otherHosts is what stands for a hostname in the name of the scope of all
// hostnames with a wildcard.
const otherHosts = "*"

// NoRoute is the name of the route that answers where no route of a hostname
// matches.
const NoRoute = "no-route"

// scopes are the scopes of a port as they were translated last.
type scopes struct {
	exact  map[string]translatedScope
	others map[string]translatedHost
	scope  *routev3.ScopedRouteConfiguration // of others; nil where there are none
}

type translatedScope struct {
	from model.VirtualHost
	to   *routev3.ScopedRouteConfiguration
}

type translatedHost struct {
	from model.VirtualHost
	to   *routev3.VirtualHost
}

// translate takes over from s what has not changed.
func (s scopes) translate(port string, hosts []model.VirtualHost) scopes {
	now := scopes{
		exact:  make(map[string]translatedScope, len(hosts)),
		others: map[string]translatedHost{},
	}
	var others []*routev3.VirtualHost
	for _, host := range hosts {
		if strings.HasPrefix(host.Hostname, "*") {
			known, found := s.others[host.Hostname]
			if !found || !known.from.Equal(host) {
				known = translatedHost{from: host, to: virtualHost(host)}
			}
			now.others[host.Hostname] = known
			others = append(others, known.to)
			continue
		}
		known, found := s.exact[host.Hostname]
		if !found || !known.from.Equal(host) {
			known = translatedScope{from: host, to: exactScope(port, host)}
		}
		now.exact[host.Hostname] = known
	}
	if now.scope = s.scope; !slices.Equal(others, s.scope.GetRouteConfiguration().GetVirtualHosts()) {
		now.scope = nil
		if len(others) > 0 {
			now.scope = scope(port, otherHosts, &routev3.RouteConfiguration{
				VirtualHosts: others,
				// "shop.example.com:8888" is the host "shop.example.com": clients send
				// the port whenever it is not 80.
				IgnorePortInHostMatching: true,
			})
		}
	}
	return now
}

// list adds the scopes to what they are called by.
func (s scopes) list(to map[string]proto.Message) {
	for _, exact := range s.exact {
		to[exact.to.GetName()] = exact.to
	}
	if s.scope != nil {
		to[s.scope.GetName()] = s.scope
	}
}

// What all scopes have alike they share: messages are never changed, and there may
// be thousands of them.
var (
	noRoute           = &routev3.Route{Name: NoRoute, Match: match(model.Match{Path: "/"}), Action: directResponse(404, "")}
	maxBodyOfAll      = wrapperspb.UInt32(maxBody)
	notForTheBackends = []string{scopeHeader}
	everyHost         = []string{"*"}
)

func exactScope(port string, host model.VirtualHost) *routev3.ScopedRouteConfiguration {
	made := virtualHost(host)
	made.Domains = everyHost // whoever comes here asked for this host
	if n := len(made.GetRoutes()); n == 0 || !proto.Equal(made.GetRoutes()[n-1].GetMatch(), noRoute.GetMatch()) {
		made.Routes = append(made.Routes, noRoute)
	}
	return scope(port, host.Hostname, &routev3.RouteConfiguration{
		VirtualHosts:         []*routev3.VirtualHost{made},
		TypedPerFilterConfig: unusedFilters,
	})
}

func scope(port, host string, routes *routev3.RouteConfiguration) *routev3.ScopedRouteConfiguration {
	name := port + "/" + host
	routes.Name = name
	routes.MaxDirectResponseBodySizeBytes = maxBodyOfAll
	routes.RequestHeadersToRemove = notForTheBackends
	return &routev3.ScopedRouteConfiguration{
		Name: name, RouteConfiguration: routes,
		Key: &routev3.ScopedRouteConfiguration_Key{Fragments: []*routev3.ScopedRouteConfiguration_Key_Fragment{{
			Type: &routev3.ScopedRouteConfiguration_Key_Fragment_StringKey{StringKey: name},
		}}},
	}
}

func virtualHost(host model.VirtualHost) *routev3.VirtualHost {
	made := &routev3.VirtualHost{
		Name:    host.Hostname,
		Domains: []string{host.Hostname},
		Routes:  make([]*routev3.Route, 0, len(host.Routes)),
	}
	for i := range host.Routes {
		from := &host.Routes[i]
		to := route(from)
		once := withoutRepeats(from, to)
		if twin := preflight(from, to); twin != nil {
			made.Routes = append(made.Routes, twin)
		}
		if twin := redirectWithPort(from, to); twin != nil {
			made.Routes = append(made.Routes, twin)
		}
		if once != nil {
			made.Routes = append(made.Routes, once)
		}
		made.Routes = append(made.Routes, to)
	}
	return made
}

// scopedRoutes finds a request's scope by scopeHeader, up to a colon. All
// listeners have the same source of scopes, so that Envoy keeps them once.
func scopedRoutes() *hcmv3.HttpConnectionManager_ScopedRoutes {
	return &hcmv3.HttpConnectionManager_ScopedRoutes{ScopedRoutes: &hcmv3.ScopedRoutes{
		Name:            "scopes",
		RdsConfigSource: adsConfigSource(), // demanded, not used: scopes hold their routes
		ScopeKeyBuilder: &hcmv3.ScopedRoutes_ScopeKeyBuilder{Fragments: []*hcmv3.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder{{
			Type: &hcmv3.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder_HeaderValueExtractor_{
				HeaderValueExtractor: &hcmv3.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder_HeaderValueExtractor{
					Name: scopeHeader, ElementSeparator: ":",
					ExtractType: &hcmv3.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder_HeaderValueExtractor_Index{},
				},
			},
		}}},
		ConfigSpecifier: &hcmv3.ScopedRoutes_ScopedRds{ScopedRds: &hcmv3.ScopedRds{ScopedRdsConfigSource: adsConfigSource()}},
	}}
}

// setScope names the scope of a request's own hostname, before a route is looked
// for.
func setScope(port string) *corev3.TypedExtensionConfig {
	return &corev3.TypedExtensionConfig{
		Name: "meshroute.scope",
		TypedConfig: mustAny(&earlymutationv3.HeaderMutation{
			Mutations: []*mutationrulesv3.HeaderMutation{overwriteHeader(scopeHeader, port+"/%REQ(:AUTHORITY)%")},
		}),
	}
}

func overwriteHeader(name, value string) *mutationrulesv3.HeaderMutation {
	return &mutationrulesv3.HeaderMutation{Action: &mutationrulesv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, Value: value},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}}}
}

// Filters that look for another scope where there is none of a request's own
// hostname. Envoy does not even make them for a request that has a route.
const (
	lowerCaseFilter  = "meshroute.scope-lower-case"
	otherHostsFilter = "meshroute.scope-other-hosts"
	newRouteFilter   = "meshroute.scope-route"
)

// unusedFilters leaves these filters out, and those that wait for a route that
// uses them; a route that does has them all the same.
var unusedFilters = func() map[string]*anypb.Any {
	off := mustAny(&routev3.FilterConfig{Disabled: true})
	unused := map[string]*anypb.Any{lowerCaseFilter: off, otherHostsFilter: off, newRouteFilter: off}
	for _, filter := range routeFilters() {
		unused[filter.GetName()] = off
	}
	return unused
}()

// scopeFilters are these filters. Capital letters in hostnames are allowed and
// rare: only they cost a script.
func scopeFilters(port string) []*hcmv3.HttpFilter {
	capitals := headerMatches(":authority", ".*[A-Z].*")
	other := mustAny(&headermutationv3.HeaderMutation{Mutations: &headermutationv3.Mutations{
		RequestMutations: []*mutationrulesv3.HeaderMutation{overwriteHeader(scopeHeader, port+"/"+otherHosts)},
	}})
	script := mustAny(&luav3.Lua{DefaultSourceCode: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: lowerCaseScript(port)}}})
	return []*hcmv3.HttpFilter{
		{Name: lowerCaseFilter, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: onlyWhere(capitals, lowerCaseFilter, script)}},
		{Name: otherHostsFilter, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: onlyWhere(not(capitals), otherHostsFilter, other)}},
		{Name: newRouteFilter, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: mustAny(&setfilterstatev3.Config{ClearRouteCache: true})}},
	}
}

// lowerCaseScript does what the two other filters do, after it has looked for the
// scope in lower case. Every route has a name; metadata() has Envoy look for one.
func lowerCaseScript(port string) string {
	own, other := port+"/", port+"/"+otherHosts
	return `function envoy_on_request(handle)
  local headers = handle:headers()
  local lower = string.lower(headers:get(":authority"))
  headers:replace("` + scopeHeader + `", "` + own + `" .. lower)
  handle:clearRouteCache()
  handle:metadata()
  if handle:streamInfo():routeName() ~= "" then return end
  headers:replace("` + scopeHeader + `", "` + other + `")
end
`
}
