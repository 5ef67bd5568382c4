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
			namespace := newNamespace(ctx)
			err := cluster.Client.Create(ctx, manifest(namespace, text), client.DryRunAll)
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
		Entry("a rewrite of an exact path", ruleManifest(someBackend+", rewrite: {pathPrefix: /}, matches: [{path: {type: Exact, value: /a}}]"), "every match of the rule needs path.type PathPrefix"),
		Entry("a rewrite without slash", ruleManifest(someBackend+", rewrite: {pathPrefix: x}"), "rewrite.pathPrefix must start with '/'"),
		Entry("a rewrite of a direct response", ruleManifest("directResponse: {}, rewrite: {pathPrefix: /}"), "have no effect on a rule with directResponse"),
		Entry("a timeout that is none", ruleManifest(someBackend+", timeouts: {request: soon}"), "timeouts.request"),
		Entry("a timeout beyond a day", ruleManifest(someBackend+", timeouts: {request: 25h}"), "timeouts.request must not be above 24h"),
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
		object := manifest(newNamespace(ctx), ruleManifest(someBackend))
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
			Expect(cluster.Client.Create(ctx, manifest(newNamespace(ctx), text), client.DryRunAll)).To(Succeed())
		},
		Entry("ports by number and by name", ruleManifest("backends: [{name: b, port: 65535}, {name: c, port: http-2}]")),
		Entry("wildcard hostnames", routeManifest("r", "{hostnames: ['*.example.com'], rules: [{name: a, "+someBackend+"}]}")),
		Entry("encoded paths", ruleManifest(someBackend+", matches: [{path: {value: '/a%20b/~x;v=1'}}]")),
		Entry("no timeout", ruleManifest(someBackend+", timeouts: {request: 0s}")),
		Entry("no drain", gatewayConfigManifest("{drainTimeout: 0s}")),
		Entry("autoscaling, with defaults", gatewayConfigManifest("{autoscaling: {maxReplicas: 2}}")),
		Entry("compound timeouts", ruleManifest(someBackend+", timeouts: {request: 1m30s500ms}")),
	)
})
