package e2e_test

import (
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/test/harness"
)

var _ = Describe("What is wrong", Label("status"), func() {
	It("is told at once where the schema sees it, with the field and the rule", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		for spec, message := range map[string]string{
			`rules: [{name: a, backends: [{name: app, port: 80}], directResponse: {}}]`:                              "a rule needs either backends or directResponse or redirect, and only one of them",
			`rules: [{name: a, backends: [{name: app, port: 80, weight: 0}]}]`:                                       "backends: at least one weight must be above 0",
			`rules: [{name: a, backends: [{name: app, port: 70000}]}]`:                                               "port must be a number from 1 to 65535",
			`rules: [{name: a, matches: [{path: {value: relative}}], backends: [{name: app, port: 80}]}]`:            "path.value must start with '/'",
			`rules: [{name: a, matches: [{headers: [{name: Host, value: x}]}], backends: [{name: app, port: 80}]}]`:  "match hostnames by spec.hostnames",
			`rules: [{name: a, backends: [{name: app, port: 80}], timeouts: {request: 25h}}]`:                        "timeouts.request must not be above 24h",
			`rules: [{name: a, directResponse: {type: StubStatus, body: x}}]`:                                        "type StubStatus takes no status, body or contentType",
			`{parentRefs: [{kind: Service, group: "", name: x}], rules: [{name: a, directResponse: {status: 200}}]}`: "a ServiceRoute attaches to Gateways of the group gateway.networking.k8s.io only",
			`{rules: [{name: a, directResponse: {status: 200}}], surprise: 1}`:                                       `unknown field "spec.surprise"`,
		} {
			if spec[0] != '{' {
				spec = "{" + spec + "}"
			}
			_, err := tryKubectl(ctx, fmt.Sprintf("apiVersion: meshroute.io/v1alpha1\nkind: ServiceRoute\nmetadata: {name: wrong, namespace: %s}\nspec: %s\n", namespace, spec), "apply", "--filename=-")
			Expect(err).To(MatchError(ContainSubstring(message)), spec)
		}
		_, err := tryKubectl(ctx, fmt.Sprintf("apiVersion: meshroute.io/v1alpha1\nkind: ServiceRoute\nmetadata: {name: status, namespace: %s}\nspec: {rules: [{name: a, directResponse: {status: 200}}]}\n", namespace), "apply", "--filename=-")
		Expect(err).To(MatchError(ContainSubstring("a ServiceRoute cannot be named 'status'")))
	})

	It("becomes a condition where only the cluster knows, and the answer of the gateway fits", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		host := namespace + ".example.com"
		backend(ctx, namespace, "app", 1)
		backend(ctx, namespace, "empty", 0)
		gw := newGateway(ctx, namespace, "own")
		at := func(name string) client.ObjectKey { return client.ObjectKey{Namespace: namespace, Name: name} }

		lonely := harness.Route(namespace, "lonely", "lonely."+host, "nowhere", gw.parent())
		portless := harness.Route(namespace, "portless", "portless."+host, "app", gw.parent())
		portless.Spec.Rules[0].Backends[0].Port.IntVal = 81
		orphan := harness.Route(namespace, "orphan", "orphan."+host, "app", harness.Parent(namespace, "nobody"))
		create(ctx, harness.Route(namespace, "app", host, "app", gw.parent()))
		Eventually(routeCondition(ctx, at("app"), v1alpha1.ConditionReady)).WithTimeout(time.Minute).Should(HavePrefix("True"))
		create(ctx, lonely, portless, orphan,
			harness.Route(namespace, "empty", "empty."+host, "empty", gw.parent()),
			harness.Route(namespace, "twin", host, "app", gw.parent()),
			harness.Gateway(namespace, "classless", "no-such-class", 80),
		)
		Eventually(routeCondition(ctx, at("lonely"), "ResolvedRefs")).Should(HavePrefix("False BackendNotFound:"))
		Eventually(status(gw.address, "lonely."+host, "/")).Should(Equal(500))
		Eventually(routeCondition(ctx, at("portless"), "ResolvedRefs")).Should(And(HavePrefix("False"), ContainSubstring("81")))
		Eventually(routeCondition(ctx, at("orphan"), "Accepted")).Should(HavePrefix("False GatewayNotFound:"))
		Eventually(routeCondition(ctx, at("twin"), "Accepted")).Should(HavePrefix("False RouteConflict:"))
		Eventually(status(gw.address, "empty."+host, "/")).Should(Equal(503))
		Eventually(func() (string, error) {
			return tryKubectl(ctx, "", "get", "meshroute", "empty", "--namespace", namespace)
		}).Should(ContainSubstring("has no ready endpoint on port 80: requests to it get 503"))
		Consistently(status(gw.address, host, "/")).WithTimeout(time.Second).Should(Equal(200))

		By("mending by itself when the cause goes")
		backend(ctx, namespace, "nowhere", 1)
		Eventually(status(gw.address, "lonely."+host, "/")).WithTimeout(time.Minute).Should(Equal(200))
		Eventually(routeCondition(ctx, at("lonely"), v1alpha1.ConditionReady)).Should(HavePrefix("True"))
	})

	// told waits for a word about why the pods of a gateway do not run.
	told := func(ctx SpecContext, namespace string, config func(*v1alpha1.GatewayConfigSpec), words string) client.ObjectKey {
		GinkgoHelper()
		settings := &v1alpha1.GatewayConfig{Namespace: namespace, Name: "own"}
		settings.Spec.ServiceType = new(corev1.ServiceTypeClusterIP)
		if config != nil {
			config(&settings.Spec)
		}
		gw := harness.Gateway(namespace, "own", class, 80)
		gw.Spec.Infrastructure = &gatewayv1.GatewayInfrastructure{ParametersRef: &gatewayv1.LocalParametersReference{
			Group: gatewayv1.Group(v1alpha1.GroupVersion.Group), Kind: "GatewayConfig", Name: "own",
		}}
		create(ctx, settings, gw)
		key := client.ObjectKeyFromObject(gw)
		Eventually(gatewayCondition(ctx, key, v1alpha1.ConditionProgrammed)).WithTimeout(90 * time.Second).
			Should(And(HavePrefix("False"), ContainSubstring(words)))
		return key
	}

	It("is told of a quota that keeps a gateway from running, and is over when the quota is", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		quota := &corev1.ResourceQuota{
			Namespace: namespace, Name: "small",
			Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")}},
		}
		create(ctx, quota)
		Eventually(func() (bool, error) {
			err := k8s.Get(ctx, client.ObjectKeyFromObject(quota), quota)
			return len(quota.Status.Hard) > 0, err
		}).Should(BeTrue())
		gw := told(ctx, namespace, nil, "exceeded quota: small")
		Expect(k8s.Delete(ctx, quota)).To(Succeed())
		Eventually(gatewayCondition(ctx, gw, v1alpha1.ConditionProgrammed)).WithTimeout(2 * time.Minute).Should(HavePrefix("True"))
	}, SpecTimeout(5*time.Minute))

	It("is told of a gateway for which no node has room", func(ctx SpecContext) {
		told(ctx, newNamespace(ctx), func(config *v1alpha1.GatewayConfigSpec) {
			config.Resources = &v1alpha1.Resources{Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Ti")}}
		}, "Insufficient memory")
	})
})

// Serial: the images of all gateways are the manager's to name.
var _ = Describe("What is wrong", Label("status"), Serial, func() {
	It("is told of an image that cannot be pulled, while gateways that run go on", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		backend(ctx, namespace, "app", 1)
		gw := newGateway(ctx, namespace, "own")
		create(ctx, harness.Route(namespace, "app", "pull.example.com", "app", gw.parent()))
		Eventually(status(gw.address, "pull.example.com", "/")).WithTimeout(time.Minute).Should(Equal(200))

		patch := func(argument string) {
			GinkgoHelper()
			kubectl(ctx, "patch", "deployment", managers.Name, "--namespace", managers.Namespace, "--type=json",
				"--patch", fmt.Sprintf(`[{"op": %q, "path": "/spec/template/spec/containers/0/args/-", "value": "--envoy-image=registry.invalid/envoy:none"}]`, argument))
		}
		patch("add")
		DeferCleanup(func(ctx SpecContext) {
			makeTarget(ctx, "deploy", "IMG="+image)
			awaitRollout(ctx, managers)
			Eventually(rolledOut(ctx, gw.deployment)).WithTimeout(2 * time.Minute).Should(BeEmpty())
		}, NodeTimeout(5*time.Minute))
		Eventually(gatewayCondition(ctx, gw.ObjectKey, v1alpha1.ConditionProgrammed)).WithTimeout(2 * time.Minute).
			Should(And(HavePrefix("True"), ContainSubstring("others do not run: image registry.invalid/envoy:none")))
		Expect(status(gw.address, "pull.example.com", "/")()).To(Equal(200))
	}, SpecTimeout(8*time.Minute))
})
