package integration_test

import (
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

// manifest turns YAML into an object of a namespace, without any Go type in
// between: what is sent is what a user would send.
func manifest(namespace, text string) *unstructured.Unstructured {
	GinkgoHelper()
	object := &unstructured.Unstructured{}
	Expect(yaml.UnmarshalStrict([]byte(strings.ReplaceAll(text, "\t", "  ")), &object.Object)).To(Succeed())
	object.SetNamespace(namespace)
	return object
}

func routeManifest(name, spec string) string {
	return "apiVersion: meshroute.io/v1alpha1\nkind: ServiceRoute\nmetadata: {name: " + name + "}\nspec: " + spec
}

func ruleManifest(rule string) string {
	return routeManifest("r", "{rules: [{name: a, "+rule+"}]}")
}

func gatewayConfigManifest(spec string) string {
	return "apiVersion: meshroute.io/v1alpha1\nkind: GatewayConfig\nmetadata: {name: c}\nspec: " + spec
}

const someBackend = "backends: [{name: b, port: 80}]"

var _ = Describe("Admission", Label("api"), func() {
	DescribeTable("refuses, and says which field and why",
		func(ctx SpecContext, text, message string) {
			err := cluster.Client.Create(ctx, manifest("default", text), client.DryRunAll)
			Expect(err).To(MatchError(ContainSubstring(message)))
		},
		Entry("a route named status", routeManifest("status", "{rules: [{name: a, "+someBackend+"}]}"), "cannot be named 'status'"),
		Entry("no rules", routeManifest("r", "{rules: []}"), "spec.rules: Invalid value: 0: spec.rules in body should have at least 1 items"),
		Entry("two rules of one name", routeManifest("r", "{rules: [{name: a, "+someBackend+"}, {name: a, "+someBackend+"}]}"), `spec.rules[1]: Duplicate value`),
		Entry("a rule that does nothing", ruleManifest("matches: [{path: {value: /}}]"), "a rule needs either backends or directResponse"),
		Entry("a rule that does both", ruleManifest(someBackend+", directResponse: {status: 200}"), "a rule needs either backends or directResponse"),
		Entry("a hostname that is none", routeManifest("r", "{hostnames: ['a_b.com'], rules: [{name: a, "+someBackend+"}]}"), "spec.hostnames[0]"),
		Entry("a path without slash", ruleManifest(someBackend+", matches: [{path: {value: api}}]"), "path.value must start with '/'"),
		Entry("a path that no request has", ruleManifest(someBackend+", matches: [{path: {value: /a//b}}]"), "path.value must be normalized"),
		Entry("a path with a query", ruleManifest(someBackend+", matches: [{path: {value: '/a?b'}}]"), "leave out '?' and '#'"),
		Entry("an unknown kind of path", ruleManifest(someBackend+", matches: [{path: {type: Regex, value: /}}]"), `Unsupported value: "Regex"`),
		Entry("one header twice", ruleManifest(someBackend+", matches: [{headers: [{name: X, value: a}, {name: x, value: b}]}]"), "header names are case-insensitive and must be unique"),
		Entry("the Host header", ruleManifest(someBackend+", matches: [{headers: [{name: Host, value: a}]}]"), "match hostnames by spec.hostnames"),
		Entry("a header that gateways drop", ruleManifest(someBackend+", matches: [{headers: [{name: a_b, value: a}]}]"), "headers with '_' in their names are dropped"),
		Entry("port 0", ruleManifest("backends: [{name: b, port: 0}]"), "port must be a number from 1 to 65535"),
		Entry("a port that is no name", ruleManifest("backends: [{name: b, port: HTTP}]"), "spec.rules[0].backends[0].port"),
		Entry("no port", ruleManifest("backends: [{name: b}]"), "spec.rules[0].backends[0].port: Required value"),
		Entry("a negative weight", ruleManifest("backends: [{name: b, port: 80, weight: -1}]"), "weight"),
		Entry("no weight above zero", ruleManifest("backends: [{name: b, port: 80, weight: 0}]"), "at least one weight must be above 0"),
		Entry("a negative priority", ruleManifest("backends: [{name: b, port: 80, priority: -1}]"), "spec.rules[0].backends[0].priority"),
		Entry("priorities of too many backends", ruleManifest("backends: ["+strings.Repeat("{name: b, port: 80}, ", 8)+"{name: c, port: 80, priority: 1}]"), "at most 8 where priorities are given"),
		Entry("an unknown way to balance", ruleManifest(someBackend+", loadBalancing: {type: Fastest}"), `Unsupported value: "Fastest"`),
		Entry("a hash of nothing", ruleManifest(someBackend+", loadBalancing: {type: Maglev}"), "loadBalancing.hash says what RingHash and Maglev hash"),
		Entry("a hash that nobody looks at", ruleManifest(someBackend+", loadBalancing: {type: Random, hash: {type: ClientAddress}}"), "loadBalancing.hash says what RingHash and Maglev hash"),
		Entry("a hash of no header", ruleManifest(someBackend+", loadBalancing: {type: Maglev, hash: {type: Header}}"), "hash.header names the header of type Header"),
		Entry("a hash of a header that gateways drop", ruleManifest(someBackend+", loadBalancing: {type: Maglev, hash: {type: Header, header: a_b}}"), "dropped by gateways before they could be hashed"),
		Entry("a hash of the Host header", ruleManifest(someBackend+", loadBalancing: {type: Maglev, hash: {type: Header, header: HOST}}"), "the Host header is the same for all clients"),
		Entry("a hash of a cookie and an address", ruleManifest(someBackend+", loadBalancing: {type: Maglev, hash: {type: ClientAddress, cookie: {name: a}}}"), "hash.cookie is the cookie of type Cookie"),
		Entry("the path of a cookie that is not set", ruleManifest(someBackend+", loadBalancing: {type: Maglev, hash: {type: Cookie, cookie: {name: a, path: /}}}"), "only where cookie.ttl is given"),
		Entry("a cookie for ever", ruleManifest(someBackend+", loadBalancing: {type: Maglev, hash: {type: Cookie, cookie: {name: a, ttl: 8761h}}}"), "cookie.ttl must not be above 8760h"),
		Entry("a cookie whose name is none", ruleManifest(someBackend+", sessionAffinity: {cookie: {name: 'a;b'}}"), "sessionAffinity.cookie.name"),
		Entry("a cookie whose path is none", ruleManifest(someBackend+", sessionAffinity: {cookie: {name: a, path: '/;x'}}"), "sessionAffinity.cookie.path"),
		Entry("affinity for ever", ruleManifest(someBackend+", sessionAffinity: {cookie: {name: a, ttl: 8761h}}"), "cookie.ttl must not be above 8760h"),
		Entry("affinity to two Services", ruleManifest("backends: [{name: b, port: 80}, {name: c, port: 80}], sessionAffinity: {cookie: {name: a}}"), "exactly one backend may have a weight above 0"),
		Entry("balancing without backends", ruleManifest("directResponse: {}, loadBalancing: {type: Random}"), "loadBalancing and sessionAffinity have no effect on a rule without backends"),
		Entry("a rewrite of an exact path", ruleManifest(someBackend+", rewrite: {pathPrefix: /}, matches: [{path: {type: Exact, value: /a}}]"), "every match of the rule needs path.type PathPrefix"),
		Entry("a rewrite without slash", ruleManifest(someBackend+", rewrite: {pathPrefix: x}"), "rewrite.pathPrefix must start with '/'"),
		Entry("a rewrite of a direct response", ruleManifest("directResponse: {}, rewrite: {pathPrefix: /}"), "have no effect on a rule without backends"),
		Entry("a timeout that is none", ruleManifest(someBackend+", timeouts: {request: soon}"), "timeouts.request"),
		Entry("a timeout beyond a day", ruleManifest(someBackend+", timeouts: {request: 25h}"), "timeouts.request must not be above 24h"),
		Entry("an attempt longer than the request", ruleManifest(someBackend+", timeouts: {request: 1s, backendRequest: 2s}"), "timeouts.backendRequest must not be above timeouts.request"),
		Entry("an attempt longer than requests usually are", ruleManifest(someBackend+", timeouts: {backendRequest: 16s}"), "timeouts.backendRequest must not be above timeouts.request"),
		Entry("idle beyond a day", ruleManifest(someBackend+", timeouts: {idle: 25h}"), "timeouts.idle must not be above 24h"),
		Entry("a regular expression with a space", ruleManifest(someBackend+", matches: [{path: {type: RegularExpression, value: '/a b'}}]"), "a regular expression may hold only printable ASCII"),
		Entry("a regular expression of a header, beyond ASCII", ruleManifest(someBackend+", matches: [{headers: [{type: RegularExpression, name: a, value: ü}]}]"), "a regular expression may hold at most 1024 characters"),
		Entry("a method that is none", ruleManifest(someBackend+", matches: [{method: get}]"), `Unsupported value: "get"`),
		Entry("one query parameter twice", ruleManifest(someBackend+", matches: [{queryParams: [{name: a, value: b}, {name: a, value: c}]}]"), "Duplicate value"),
		Entry("a query parameter that no URL has", ruleManifest(someBackend+", matches: [{queryParams: [{name: a, value: 'b c'}]}]"), "queryParams: a value may hold only the characters of a URL"),
		Entry("a rewrite of nothing", ruleManifest(someBackend+", rewrite: {}"), "rewrite"),
		Entry("a rewrite of the whole path and a part", ruleManifest(someBackend+", rewrite: {path: /a, pathPrefix: /b}"), "only one of them"),
		Entry("a rewrite with a query", ruleManifest(someBackend+", rewrite: {path: '/a?b'}"), "rewrite.path may hold only the characters of a URL path"),
		Entry("a rewrite to no hostname", ruleManifest(someBackend+", rewrite: {hostname: '*.example.com'}"), "rewrite.hostname"),
		Entry("a redirect to where one was", ruleManifest("redirect: {statusCode: 301}"), "redirect needs a scheme, hostname, port, path or pathPrefix"),
		Entry("a redirect beside backends", ruleManifest(someBackend+", redirect: {scheme: https}"), "a rule needs either backends or directResponse or redirect"),
		Entry("a redirect to no port", ruleManifest("redirect: {port: 0}"), "redirect.port"),
		Entry("a redirect that is none", ruleManifest("redirect: {port: 81, statusCode: 304}"), "redirect.statusCode"),
		Entry("a redirect of the prefix of an exact path", ruleManifest("redirect: {pathPrefix: /}, matches: [{path: {type: Exact, value: /a}}]"), "redirect.pathPrefix replaces the matched prefix"),
		Entry("a mirror of a redirect", ruleManifest("redirect: {scheme: https}, mirrors: [{name: b, port: 80}]"), "have no effect on a rule without backends"),
		Entry("no change of headers", ruleManifest(someBackend+", requestHeaders: {}"), "requestHeaders"),
		Entry("a pseudo header", ruleManifest(someBackend+", requestHeaders: {set: [{name: ':path', value: a}]}"), "requestHeaders.set[0].name"),
		Entry("the Host header, changed", ruleManifest(someBackend+", requestHeaders: {remove: [host]}"), "use rewrite.hostname"),
		Entry("a header of the connection", ruleManifest(someBackend+", responseHeaders: {add: [{name: Content-Length, value: '1'}]}"), "are written by the gateway and cannot be changed"),
		Entry("a header of Envoy", ruleManifest(someBackend+", requestHeaders: {set: [{name: X-Envoy-Retry-On, value: 5xx}]}"), "are Envoy's own"),
		Entry("a header of two lines", ruleManifest(someBackend+`, requestHeaders: {set: [{name: a, value: "b\r\nc: d"}]}`), "requestHeaders.set[0].value"),
		Entry("a header set twice", ruleManifest(someBackend+", requestHeaders: {set: [{name: A, value: b}, {name: a, value: b}]}"), "set: header names are case-insensitive and must be unique"),
		Entry("a header set and added", ruleManifest(someBackend+", requestHeaders: {set: [{name: A, value: b}], add: [{name: a, value: b}]}"), "a header is either in set or in add"),
		Entry("a header added and removed", ruleManifest(someBackend+", responseHeaders: {add: [{name: A, value: b}], remove: [a]}"), "a header in remove cannot be in set or add"),
		Entry("more than all requests", ruleManifest(someBackend+", mirrors: [{name: b, port: 80, percent: 101}]"), "mirrors[0].percent"),
		Entry("two shares of a mirror", ruleManifest(someBackend+", mirrors: [{name: b, port: 80, percent: 1, fraction: {numerator: 1}}]"), "either percent or fraction"),
		Entry("more than a whole", ruleManifest(someBackend+", mirrors: [{name: b, port: 80, fraction: {numerator: 101}}]"), "numerator must not be above denominator"),
		Entry("CORS for nobody", ruleManifest(someBackend+", cors: {allowOrigins: []}"), "cors.allowOrigins"),
		Entry("an origin with a path", ruleManifest(someBackend+", cors: {allowOrigins: ['https://a/b']}"), "cors.allowOrigins[0]"),
		Entry("every origin and one", ruleManifest(someBackend+", cors: {allowOrigins: ['*', 'https://a']}"), "stands for every origin"),
		Entry("every method and one", ruleManifest(someBackend+", cors: {allowOrigins: ['*'], allowMethods: ['*', PUT]}"), "stands for every method"),
		Entry("every header, with credentials", ruleManifest(someBackend+", cors: {allowOrigins: ['*'], allowCredentials: true, exposeHeaders: ['*']}"), "has no effect with allowCredentials"),
		Entry("a status that is none", ruleManifest("directResponse: {status: 99}"), "directResponse.status"),
		Entry("a body for the counters", ruleManifest("directResponse: {type: StubStatus, body: x}"), "type StubStatus takes no status, body or contentType"),
		Entry("a parent that is no Gateway", routeManifest("r", "{parentRefs: [{name: g, kind: Service, group: ''}], rules: [{name: a, "+someBackend+"}]}"), "a ServiceRoute attaches to Gateways"),
		Entry("more replicas than sense", gatewayConfigManifest("{replicas: 101}"), "spec.replicas"),
		Entry("replicas beside autoscaling", gatewayConfigManifest("{replicas: 2, autoscaling: {maxReplicas: 3}}"), "replicas and autoscaling exclude each other"),
		Entry("autoscaling from above", gatewayConfigManifest("{autoscaling: {minReplicas: 4, maxReplicas: 3}}"), "minReplicas must not be above maxReplicas"),
		Entry("autoscaling without an end", gatewayConfigManifest("{autoscaling: {minReplicas: 4}}"), "spec.autoscaling.maxReplicas: Required value"),
		Entry("autoscaling to zero", gatewayConfigManifest("{autoscaling: {minReplicas: 0, maxReplicas: 3}}"), "spec.autoscaling.minReplicas"),
		Entry("a drain beyond an hour", gatewayConfigManifest("{drainTimeout: 61m}"), "drainTimeout must not be above 1h"),
		Entry("a selector of no nodes", gatewayConfigManifest("{nodeSelector: {}}"), "spec.nodeSelector"),
		Entry("a request above its limit", gatewayConfigManifest("{resources: {requests: {cpu: '2'}, limits: {cpu: '1'}}}"), "a request must not be above its limit"),
		Entry("an unknown way to restrict gateways", gatewayConfigManifest("{networkPolicy: {gateway: Audit}}"), `Unsupported value: "Audit"`),
		Entry("an unknown way to isolate backends", gatewayConfigManifest("{networkPolicy: {backends: Some}}"), `Unsupported value: "Some"`),
		Entry("port 0 of a gateway", gatewayConfigManifest("{ports: [{port: 0}]}"), "spec.ports[0].port"),
		Entry("one nodePort twice", gatewayConfigManifest("{ports: [{port: 80, nodePort: 30000}, {port: 81, nodePort: 30000}]}"), "two ports cannot have the same nodePort"),
	)

	It("fills in what was left out", func(ctx SpecContext) {
		object := manifest("default", ruleManifest(someBackend))
		Expect(cluster.Client.Create(ctx, object, client.DryRunAll)).To(Succeed())
		Expect(object.Object["spec"]).To(Equal(map[string]any{
			"rules": []any{map[string]any{
				"name":     "a",
				"backends": []any{map[string]any{"name": "b", "port": int64(80), "weight": int64(1)}},
				"matches":  []any{map[string]any{"path": map[string]any{"type": "PathPrefix", "value": "/"}}},
			}},
		}))
	})

	DescribeTable("accepts",
		func(ctx SpecContext, text string) {
			Expect(cluster.Client.Create(ctx, manifest("default", text), client.DryRunAll)).To(Succeed())
		},
		Entry("ports by number and by name", ruleManifest("backends: [{name: b, port: 65535}, {name: c, port: http-2}]")),
		Entry("wildcard hostnames", routeManifest("r", "{hostnames: ['*.example.com'], rules: [{name: a, "+someBackend+"}]}")),
		Entry("encoded paths", ruleManifest(someBackend+", matches: [{path: {value: '/a%20b/~x;v=1'}}]")),
		Entry("priorities with gaps", ruleManifest("backends: [{name: b, port: 80, priority: 1000}, {name: c, port: 80, priority: 7}, {name: d, port: 80, weight: 0}]")),
		Entry("many backends of one priority", ruleManifest("backends: ["+strings.Repeat("{name: b, port: 80}, ", 15)+"{name: c, port: 80, priority: 0}]")),
		Entry("a hash of a header", ruleManifest(someBackend+", loadBalancing: {type: RingHash, hash: {type: Header, header: X-User}}")),
		Entry("a hash of the gateway's cookie", ruleManifest(someBackend+", loadBalancing: {type: Maglev, hash: {type: Cookie, cookie: {name: user, ttl: 0s, path: /shop}}}")),
		Entry("affinity beside idle backends", ruleManifest("backends: [{name: b, port: 80}, {name: c, port: 80, weight: 0}], sessionAffinity: {cookie: {name: a, ttl: 1h, path: /}}")),
		Entry("no timeout", ruleManifest(someBackend+", timeouts: {request: 0s}")),
		Entry("no drain", gatewayConfigManifest("{drainTimeout: 0s}")),
		Entry("autoscaling, with defaults", gatewayConfigManifest("{autoscaling: {maxReplicas: 2}}")),
		Entry("regular expressions", ruleManifest(someBackend+", matches: [{path: {type: RegularExpression, value: '.*/[a?]//x'}, method: PATCH, headers: [{type: RegularExpression, name: a, value: '[ a]+'}], queryParams: [{name: 'a[b]', value: 'c=d'}, {type: RegularExpression, name: e, value: '.*'}]}]")),
		Entry("rewrites of everything", ruleManifest(someBackend+", rewrite: {path: '/a%20b', hostname: a.example.com}, matches: [{path: {type: RegularExpression, value: a}}]")),
		Entry("redirects", ruleManifest("redirect: {scheme: https, hostname: a.example.com, port: 8443, pathPrefix: /, statusCode: 308}, responseHeaders: {set: [{name: a, value: b}]}")),
		Entry("changes of headers", ruleManifest(someBackend+", requestHeaders: {set: [{name: a_b, value: '100%'}], add: [{name: c, value: d}], remove: [e, X-Forwarded-For]}")),
		Entry("mirrors", ruleManifest(someBackend+", mirrors: [{name: b, namespace: c, port: http, percent: 0}, {name: b, port: 80, fraction: {numerator: 1, denominator: 1000000}}]")),
		Entry("CORS", ruleManifest(someBackend+", cors: {allowOrigins: ['https://*.example.com:8443', 'http://localhost'], allowMethods: [PUT], allowHeaders: [A], exposeHeaders: [B], allowCredentials: true, maxAge: 86400}")),
		Entry("timeouts of an attempt", ruleManifest(someBackend+", timeouts: {request: 0s, backendRequest: 1h, idle: 0s}")),
		Entry("compound timeouts", ruleManifest(someBackend+", timeouts: {request: 1m30s500ms}")),
	)
})
