package integration_test

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/test/harness"
)

// Nothing enforces policies here; what is shown is which there are, and when.
var _ = Describe("Network policies", Label("networkpolicy"), func() {
	var namespace, host string
	parent := harness.Parent("default", "main")
	BeforeEach(func(ctx SpecContext) {
		namespace = newNamespace(ctx)
		host = hostOf(namespace)
	})

	// service has a selector, as most have.
	service := func(ctx SpecContext, in, name string, labels map[string]string) *corev1.Service {
		GinkgoHelper()
		s := harness.Service(in, name)
		s.Labels, s.Spec.Selector = labels, map[string]string{"app": name}
		s.Spec.Ports[0].TargetPort = intstr.FromString("http")
		create(ctx, s, harness.Endpoints(in, name, backend(name, nil)))
		return s
	}
	isolated := map[string]string{v1alpha1.IsolationLabel: v1alpha1.IsolationGateway}

	It("restrict a gateway before it has pods, and let it through to its backends before these get requests", func(ctx SpecContext) {
		before := len(writes())
		service(ctx, namespace, "app", nil)
		gw := harness.Gateway(namespace, "own", class, port+5)
		create(ctx, gw, harness.Route(namespace, "r", host, "app", harness.Parent(namespace, "own")))
		Eventually(func() []string { return policies(ctx, namespace) }).Should(ConsistOf(
			"own-meshroute: anyone → app.kubernetes.io/instance=own-meshroute,app.kubernetes.io/name=meshroute-gateway:"+strconv.Itoa(port+5)+
				" → meshroute-system/app.kubernetes.io/name=meshroute-manager:"+strings.Join(operator.Ports, ",")+
				" kube-system/,169.254.20.10/32:53,53",
			"own-meshroute."+namespace+".app: → "+namespace+"/app=app:8080",
		))
		Eventually(func() error {
			return cluster.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: "own-meshroute"}, &corev1.Service{})
		}).Should(Succeed())
		written := writes()[before:]
		first := func(part string) int {
			return slices.IndexFunc(written, func(w string) bool { return strings.Contains(w, "/"+namespace+"/"+part) })
		}
		Eventually(func() int { written = writes()[before:]; return first("deployments/own-meshroute") }).Should(BeNumerically(">=", 0))
		Expect(first("networkpolicies/own-meshroute?")).To(BeNumerically("<", first("deployments/own-meshroute?")), "of %v", written)

		change(ctx, gw, func(gw *gatewayv1.Gateway) { gw.Spec.Listeners[0].Port = 80 })
		Eventually(func() []string { return policies(ctx, namespace) }).Should(ContainElement(ContainSubstring(":10080 →")))
	})

	It("are there before the first request, and a route waits for nothing else", func(ctx SpecContext) {
		service(ctx, namespace, "app", nil)
		route := harness.Route(namespace, "r", host, "app", parent)
		create(ctx, route)
		// The first answer but 404 is a 200, and by then the policy is there.
		Eventually(status(host, "/")).WithPolling(time.Millisecond).Should(Not(Equal(http.StatusNotFound)))
		Expect(policies(ctx, "default")).To(ContainElement("main-meshroute." + namespace + ".app: → " + namespace + "/app=app:8080"))
		Expect(status(host, "/")()).To(Equal(http.StatusOK))

		By("moving the route to another Service under load")
		service(ctx, namespace, "other", nil)
		load := harness.StartLoad(200, url(port), host)
		for i := range 10 {
			target := []string{"other", "app"}[i%2]
			change(ctx, route, func(r *v1alpha1.ServiceRoute) { r.Spec.Rules[0].Backends[0].Name = gatewayv1.ObjectName(target) })
			Eventually(func() (string, error) {
				got, err := get(port, host, "/")
				return got.Backend, err
			}).Should(Equal(target))
		}
		Expect(load.Stop()).To(HaveField("Failed", 0))

		By("removing it")
		Expect(cluster.Client.Delete(ctx, route)).To(Succeed())
		Eventually(func() []string { return policies(ctx, "default") }).ShouldNot(ContainElement(ContainSubstring(namespace)))
	})

	It("are put back when somebody changes or deletes them", func(ctx SpecContext) {
		service(ctx, namespace, "app", isolated)
		create(ctx, harness.Route(namespace, "r", host, "app", parent))
		Eventually(status(host, "/")).Should(Equal(http.StatusOK))
		wanted := "main-meshroute." + namespace + ".app: → " + namespace + "/app=app:8080"
		egress := &networkingv1.NetworkPolicy{Namespace: "default", Name: "main-meshroute." + namespace + ".app"}
		change(ctx, egress, func(p *networkingv1.NetworkPolicy) { p.Spec.Egress[0].To = nil })
		Eventually(func() []string { return policies(ctx, "default") }).Should(ContainElement(wanted))
		Expect(cluster.Client.Delete(ctx, egress)).To(Succeed())
		Eventually(func() []string { return policies(ctx, "default") }).Should(ContainElement(wanted))
		restricts := &networkingv1.NetworkPolicy{Namespace: "default", Name: "main-meshroute"}
		Expect(cluster.Client.Delete(ctx, restricts)).To(Succeed())
		Eventually(func() error { return cluster.Client.Get(ctx, client.ObjectKeyFromObject(restricts), restricts) }).Should(Succeed())
		isolation := &networkingv1.NetworkPolicy{Namespace: namespace, Name: "app.isolation.meshroute.io"}
		change(ctx, isolation, func(p *networkingv1.NetworkPolicy) { p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{}} })
		Eventually(func() []string { return policies(ctx, namespace) }).Should(Equal([]string{
			"app.isolation.meshroute.io: default/app.kubernetes.io/instance=main-meshroute,app.kubernetes.io/name=meshroute-gateway → app=app:8080",
		}))
	})

	It("isolate the backends that ask for it, from all but the gateways that route there", func(ctx SpecContext) {
		app := service(ctx, namespace, "app", nil)
		route := harness.Route(namespace, "r", host, "app", parent)
		create(ctx, route)
		Eventually(status(host, "/")).Should(Equal(http.StatusOK))
		Expect(policies(ctx, namespace)).To(BeEmpty())
		Eventually(routeCondition(ctx, route, v1alpha1.ConditionBackendsIsolated)).Should(ContainSubstring("is missing"))

		change(ctx, app, func(s *corev1.Service) { s.Labels = isolated })
		Eventually(func() []string { return policies(ctx, namespace) }).Should(Equal([]string{
			"app.isolation.meshroute.io: default/app.kubernetes.io/instance=main-meshroute,app.kubernetes.io/name=meshroute-gateway → app=app:8080",
		}))
		Eventually(routeCondition(ctx, route, v1alpha1.ConditionBackendsIsolated)).Should(HavePrefix("True Isolated:"))

		By("routing there from a second Gateway, in another namespace")
		second := newNamespace(ctx)
		create(ctx, harness.Gateway(second, "second", class, port+6))
		change(ctx, route, func(r *v1alpha1.ServiceRoute) {
			r.Spec.ParentRefs = append(r.Spec.ParentRefs, harness.Parent(second, "second"))
		})
		Eventually(func() []string { return policies(ctx, namespace) }).Should(ConsistOf(SatisfyAll(
			ContainSubstring(second+"/app.kubernetes.io/instance=second-meshroute"), ContainSubstring("default/app.kubernetes.io/instance=main-meshroute"))))
		Eventually(func() []string { return policies(ctx, second) }).Should(ContainElement("second-meshroute." + namespace + ".app: → " + namespace + "/app=app:8080"))

		By("deleting the second Gateway")
		Expect(cluster.Client.Delete(ctx, &gatewayv1.Gateway{Namespace: second, Name: "second"})).To(Succeed())
		Eventually(func() []string { return policies(ctx, namespace) }).ShouldNot(ContainElement(ContainSubstring("second")))
		Eventually(func() []string { return policies(ctx, second) }).Should(BeEmpty())

		By("taking the label away")
		change(ctx, app, func(s *corev1.Service) { s.Labels = nil })
		Eventually(func() []string { return policies(ctx, namespace) }).Should(BeEmpty())
	})

	It("isolate with All what a route of its own namespace leads to, and not what is merely granted", func(ctx SpecContext) {
		other := newNamespace(ctx)
		service(ctx, namespace, "app", nil)
		service(ctx, other, "far", nil)
		create(ctx, &gatewayv1.ReferenceGrant{Namespace: other, Name: "let", Spec: gatewayv1.ReferenceGrantSpec{
			From: []gatewayv1.ReferenceGrantFrom{{Group: "meshroute.io", Kind: "ServiceRoute", Namespace: gatewayv1.Namespace(namespace)}},
			To:   []gatewayv1.ReferenceGrantTo{{Kind: "Service"}},
		}})
		config := &v1alpha1.GatewayConfig{Namespace: namespace, Name: "all"}
		config.Spec.NetworkPolicy = &v1alpha1.NetworkPolicy{Backends: new(v1alpha1.BackendPolicyAll)}
		gw := harness.Gateway(namespace, "all", class, port+7)
		gw.Spec.Infrastructure = &gatewayv1.GatewayInfrastructure{
			ParametersRef: &gatewayv1.LocalParametersReference{Group: "meshroute.io", Kind: "GatewayConfig", Name: "all"},
		}
		route := harness.Route(namespace, "r", host, "app", harness.Parent(namespace, "all"))
		route.Spec.Rules[0].Backends = append(route.Spec.Rules[0].Backends,
			v1alpha1.Backend{Name: "far", Namespace: new(gatewayv1.Namespace(other)), Port: route.Spec.Rules[0].Backends[0].Port})
		create(ctx, config, gw, route)
		Eventually(func() []string { return policies(ctx, namespace) }).Should(ContainElements(
			HavePrefix("app.isolation.meshroute.io: "+namespace+"/app.kubernetes.io/instance=all-meshroute"),
			"all-meshroute."+other+".far: → "+other+"/app=far:8080",
		))
		Expect(policies(ctx, other)).To(BeEmpty())

		By("turning everything off")
		change(ctx, config, func(c *v1alpha1.GatewayConfig) {
			c.Spec.NetworkPolicy = &v1alpha1.NetworkPolicy{Backends: new(v1alpha1.BackendPolicyOff), Gateway: new(v1alpha1.GatewayPolicyOff)}
		})
		Eventually(func() []string { return policies(ctx, namespace) }).Should(BeEmpty())
	})

	It("name addresses where a Service has no selector, and say that such a Service is not isolated", func(ctx SpecContext) {
		app := harness.Service(namespace, "app")
		app.Labels = isolated
		only := backend("app", nil)
		route := harness.Route(namespace, "r", host, "app", parent)
		create(ctx, app, harness.Endpoints(namespace, "app", only), route)
		Eventually(status(host, "/")).Should(Equal(http.StatusOK))
		Expect(policies(ctx, "default")).To(ContainElement("main-meshroute." + namespace + ".app: → " + only.Address + "/32:8080"))
		Expect(policies(ctx, namespace)).To(BeEmpty())
		Eventually(routeCondition(ctx, route, v1alpha1.ConditionBackendsIsolated)).Should(
			SatisfyAll(HavePrefix("False NoSelector:"), ContainSubstring("give it one")))
	})

	It("that are refused keep a new backend waiting, which its route says, and nothing else", func(ctx SpecContext) {
		gateways := newNamespace(ctx)
		create(ctx, harness.Gateway(gateways, "own", class, port+9))
		service(ctx, namespace, "app", nil)
		Eventually(func() []string { return policies(ctx, gateways) }).Should(HaveLen(1))
		quota := &corev1.ResourceQuota{Namespace: gateways, Name: "one"}
		quota.Spec.Hard = corev1.ResourceList{"count/networkpolicies.networking.k8s.io": resource.MustParse("1")}
		create(ctx, quota)
		// What a controller does in a cluster.
		quota.Status = corev1.ResourceQuotaStatus{Hard: quota.Spec.Hard, Used: quota.Spec.Hard}
		Expect(cluster.Client.Status().Update(ctx, quota)).To(Succeed())
		route := harness.Route(namespace, "r", host, "app", harness.Parent(gateways, "own"))
		create(ctx, route)
		Eventually(routeCondition(ctx, route, v1alpha1.ConditionProgrammed)).Should(SatisfyAll(
			HavePrefix("False WaitingForNetworkPolicy: NetworkPolicy "+gateways+"/own-meshroute."+namespace+".app does not let the pods of Gateway "+gateways+"/own through"),
			ContainSubstring("the route is left out"), ContainSubstring("exceeded quota: one")))
		Expect(cluster.Client.Delete(ctx, quota)).To(Succeed())
		Eventually(routeCondition(ctx, route, v1alpha1.ConditionProgrammed)).WithTimeout(40 * time.Second).Should(HavePrefix("False NoGatewayPods:"))
	})

	It("come before the gateway is restricted when policies are turned on", func(ctx SpecContext) {
		config := &v1alpha1.GatewayConfig{Namespace: namespace, Name: "off"}
		config.Spec.NetworkPolicy = &v1alpha1.NetworkPolicy{Gateway: new(v1alpha1.GatewayPolicyOff)}
		gw := harness.Gateway(namespace, "late", class, port+8)
		gw.Spec.Infrastructure = &gatewayv1.GatewayInfrastructure{
			ParametersRef: &gatewayv1.LocalParametersReference{Group: "meshroute.io", Kind: "GatewayConfig", Name: "off"},
		}
		service(ctx, namespace, "app", nil)
		service(ctx, namespace, "app2", nil)
		create(ctx, config, gw,
			harness.Route(namespace, "r", host, "app", harness.Parent(namespace, "late")),
			harness.Route(namespace, "r2", "2."+host, "app2", harness.Parent(namespace, "late")))
		deployment := client.ObjectKey{Namespace: namespace, Name: "late-meshroute"}
		Eventually(func() error { return cluster.Client.Get(ctx, deployment, &corev1.Service{}) }).Should(Succeed())
		Expect(policies(ctx, namespace)).To(BeEmpty())
		before := len(writes())
		change(ctx, config, func(c *v1alpha1.GatewayConfig) { c.Spec.NetworkPolicy = nil })
		Eventually(func() []string { return policies(ctx, namespace) }).Should(HaveLen(3))
		var order []string
		for _, w := range writes()[before:] {
			if _, name, is := strings.Cut(w, namespace+"/networkpolicies/"); is {
				name, _, _ = strings.Cut(name, "?")
				order = append(order, strings.ReplaceAll(name, namespace+".", ""))
			}
		}
		restricted := slices.Index(order, "late-meshroute")
		Expect(order[:max(0, restricted)]).To(ContainElements("late-meshroute.app", "late-meshroute.app2"), "of %v", order)
	})
})

// policies are the network policies of a namespace that the operator made, each
// in a line: "name: from → pods:ports → to:ports".
func policies(ctx context.Context, namespace string) []string {
	GinkgoHelper()
	var list networkingv1.NetworkPolicyList
	Expect(cluster.Client.List(ctx, &list, client.InNamespace(namespace), client.MatchingLabels{"app.kubernetes.io/managed-by": "meshroute"})).To(Succeed())
	ports := func(of []networkingv1.NetworkPolicyPort) string {
		var all []string
		for _, port := range of {
			all = append(all, port.Port.String())
		}
		return strings.Join(all, ",")
	}
	peers := func(of []networkingv1.NetworkPolicyPeer) string {
		var all []string
		for _, peer := range of {
			if peer.IPBlock != nil {
				all = append(all, peer.IPBlock.CIDR)
				continue
			}
			all = append(all, peer.NamespaceSelector.MatchLabels[corev1.LabelMetadataName]+"/"+labelsOf(peer.PodSelector.MatchLabels))
		}
		return strings.Join(all, ",")
	}
	lines := []string{}
	for _, policy := range list.Items {
		line := policy.Name + ":"
		for _, rule := range policy.Spec.Ingress {
			from := peers(rule.From)
			if len(rule.From) == 0 {
				from = "anyone"
			}
			line += " " + from + " → " + labelsOf(policy.Spec.PodSelector.MatchLabels) + ":" + ports(rule.Ports)
		}
		for i, rule := range policy.Spec.Egress {
			if i == 0 {
				line += " →"
			}
			line += " " + peers(rule.To) + ":" + ports(rule.Ports)
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return lines
}

func labelsOf(of map[string]string) string {
	var all []string
	for key, value := range of {
		all = append(all, key+"="+value)
	}
	slices.Sort(all)
	return strings.Join(all, ",")
}
