package e2e_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/test/harness"
)

var _ = Describe("Endpoints", Label("endpoints"), Ordered, func() {
	var (
		namespace, host string
		gw              *gateway
		route           *v1alpha1.ServiceRoute
		near, far       string // pods of the backend, by the node of the gateway's pod
		zones           bool   // the nodes are in two of them
	)
	BeforeAll(func(ctx SpecContext) {
		if worker == "" || worker == controlPlane {
			Skip("the cluster has one node")
		}
		namespace = newNamespace(ctx)
		host = namespace + ".example.com"
		deployment := backend(ctx, namespace, "app", 2)
		route = harness.Route(namespace, "app", host, "app", harness.Parent(namespace, "edge"))
		create(ctx, route)
		gw = newGateway(ctx, namespace, "edge", func(config *v1alpha1.GatewayConfigSpec) {
			config.NodeSelector = map[string]string{corev1.LabelHostname: worker}
		})
		awaitRollout(ctx, client.ObjectKeyFromObject(deployment))
		pods, err := podsOf(ctx, deployment)
		Expect(err).NotTo(HaveOccurred())
		for _, pod := range pods {
			if pod.Spec.NodeName == worker {
				near = pod.Name
			} else {
				far = pod.Name
			}
		}
		zones = zoneOf(ctx, worker) != zoneOf(ctx, controlPlane)
		Expect([]string{near, far}).NotTo(ContainElement(""), "one pod of the backend on each node")
		Eventually(routeCondition(ctx, client.ObjectKeyFromObject(route), v1alpha1.ConditionReady)).WithTimeout(time.Minute).Should(HavePrefix("True"))
	})

	// asked are the pods that answer 20 requests.
	asked := func() ([]string, error) {
		var pods []string
		for range 20 {
			got, err := get(gw.address, host, "/")
			switch {
			case err != nil:
				return nil, err
			case got.Status != 200:
				return nil, fmt.Errorf("%d %s", got.Status, got.Body)
			}
			if !slices.Contains(pods, got.Echo.Pod) {
				pods = append(pods, got.Echo.Pod)
			}
		}
		return pods, nil
	}
	// turn changes what a pod answers who asks for its health; the kubelet asks for
	// another page.
	turn := func(ctx context.Context, pod string, status int) {
		GinkgoHelper()
		kubectl(ctx, "get", "--raw", fmt.Sprintf("/api/v1/namespaces/%s/pods/%s:8080/proxy/turn?status=%d", namespace, pod, status))
	}
	backendStatus := func(ctx context.Context) func() (v1alpha1.MeshRouteBackend, error) {
		return func() (v1alpha1.MeshRouteBackend, error) {
			var mesh v1alpha1.MeshRoute
			if err := k8s.Get(ctx, client.ObjectKeyFromObject(route), &mesh); err != nil || len(mesh.Status.Backends) == 0 {
				return v1alpha1.MeshRouteBackend{}, err
			}
			return mesh.Status.Backends[0], nil
		}
	}

	It("in the gateway pod's own zone are preferred", func(ctx SpecContext) {
		if !zones {
			Skip("nodes have no zones")
		}
		Eventually(asked).Should(ConsistOf(near, far))
		change(ctx, &corev1.Service{Namespace: namespace, Name: "app"}, func(service *corev1.Service) {
			service.Spec.TrafficDistribution = new(corev1.ServiceTrafficDistributionPreferSameZone)
		})
		Eventually(asked).Should(ConsistOf(near))
	})

	It("are asked for their health, as their readinessProbe does or as a HealthPolicy says, and get requests while they are well", func(ctx SpecContext) {
		well := []string{near, far}
		if zones {
			well = []string{near} // as long as it is
		}
		Eventually(asked).Should(ConsistOf(well))
		Eventually(backendStatus(ctx)).Should(HaveField("HealthCheck", SatisfyAll(
			HaveField("Kind", "Deployment"), HaveField("Name", "app"), HaveField("Check", HavePrefix("GET /readyz of host app."+namespace+", ")))))
		Eventually(func() (int64, error) {
			got, err := get(gw.address, host, "/")
			return got.Echo.Checks, err
		}).Should(BeNumerically(">", 0))

		create(ctx, &v1alpha1.HealthPolicy{
			Namespace: namespace, Name: "quick",
			Spec: v1alpha1.HealthPolicySpec{
				TargetRefs: []gatewayv1.LocalPolicyTargetReferenceWithSectionName{{Kind: "Service", Name: "app"}},
				Interval:   new(gatewayv1.Duration("1s")), UnhealthyThreshold: new(int32(2)),
				HTTP: &v1alpha1.HTTPHealthCheck{Path: new("/healthz")},
			},
		})
		Eventually(backendStatus(ctx)).Should(HaveField("HealthCheck", SatisfyAll(
			HaveField("Kind", "HealthPolicy"), HaveField("Name", "quick"), HaveField("Check", SatisfyAll(HavePrefix("GET /healthz "), ContainSubstring("every 1s"))))))

		By("failing in one pod, which is ready all the same")
		turn(ctx, near, 503)
		Eventually(asked).Should(ConsistOf(far))
		Eventually(backendStatus(ctx)).Should(SatisfyAll(
			HaveField("Endpoints", int32(2)), HaveField("ReadyEndpoints", int32(2)), HaveField("HealthyEndpoints", HaveValue(Equal(int32(1)))),
			HaveField("UnhealthyEndpoints", ConsistOf(SatisfyAll(HaveField("Address", addressOf(ctx, namespace, near)+":8080"), HaveField("Pods", int32(1)))))))
		turn(ctx, near, 200)
		Eventually(asked).Should(ConsistOf(well))
		Eventually(backendStatus(ctx)).Should(SatisfyAll(HaveField("HealthyEndpoints", HaveValue(Equal(int32(2)))), HaveField("UnhealthyEndpoints", BeEmpty())))
	})

	It("are reached by IPv6, by clients who come by it, too, where their Service prefers that", func(ctx SpecContext) {
		address := ipv6Address(ctx, controlPlane)
		if address == "" {
			Skip("nodes have no IPv6 addresses")
		}
		six := &corev1.Service{
			Namespace: namespace, Name: "six",
			Spec: corev1.ServiceSpec{
				Selector:   map[string]string{"app": "app"},
				IPFamilies: []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}, IPFamilyPolicy: new(corev1.IPFamilyPolicyRequireDualStack),
				Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("http")}},
			},
		}
		create(ctx, six, harness.Route(namespace, "six", "six."+host, "six", gw.parent()))
		_, port, err := net.SplitHostPort(gw.address)
		Expect(err).NotTo(HaveOccurred())
		for _, by := range []string{gw.address, net.JoinHostPort(address, port)} {
			Eventually(func() (string, error) {
				got, err := get(by, "six."+host, "/")
				return got.Echo.From, err
			}).Should(HavePrefix("["), "by way of %s", by)
		}
	})
})

// ipv6Address is a node's, empty where it has none.
func ipv6Address(ctx context.Context, name string) string {
	GinkgoHelper()
	var node corev1.Node
	Expect(k8s.Get(ctx, client.ObjectKey{Name: name}, &node)).To(Succeed())
	for _, address := range node.Status.Addresses {
		if ip, err := netip.ParseAddr(address.Address); err == nil && ip.Is6() && address.Type == corev1.NodeInternalIP {
			return address.Address
		}
	}
	return ""
}

func addressOf(ctx context.Context, namespace, pod string) string {
	GinkgoHelper()
	var found corev1.Pod
	Expect(k8s.Get(ctx, client.ObjectKey{Namespace: namespace, Name: pod}, &found)).To(Succeed())
	return found.Status.PodIP
}

func zoneOf(ctx context.Context, name string) string {
	GinkgoHelper()
	var node corev1.Node
	Expect(k8s.Get(ctx, client.ObjectKey{Name: name}, &node)).To(Succeed())
	return node.Labels[corev1.LabelTopologyZone]
}
