package integration_test

import (
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/test/harness"
)

var _ = Describe("Endpoints", Label("endpoints"), func() {
	It("are followed as they come, get ready and go, without a failed request", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		host := hostOf(namespace)
		one, two := backend("one", nil), backend("two", nil)
		slice := harness.Endpoints(namespace, "app", one)
		route := harness.Route(namespace, "app", host, "app", harness.Parent("default", "main"))
		create(ctx, harness.Service(namespace, "app"), slice, route)
		Eventually(status(host, "/")).Should(Equal(200))

		load := harness.StartLoad(200, url(port), host)
		change(ctx, slice, func(s *discoveryv1.EndpointSlice) {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{two.Address}, Conditions: discoveryv1.EndpointConditions{Ready: new(false)},
			})
		})
		Eventually(meshRoute(ctx, route)).Should(HaveField("Display.Endpoints", "1/2"))
		Expect(two.Requests.Load()).To(BeZero(), "an endpoint that is not ready gets no requests")

		change(ctx, slice, func(s *discoveryv1.EndpointSlice) { s.Endpoints[1].Conditions.Ready = new(true) })
		Eventually(two.Requests.Load).Should(BeNumerically(">", 10))
		change(ctx, slice, func(s *discoveryv1.EndpointSlice) { s.Endpoints = s.Endpoints[1:] })
		Eventually(meshRoute(ctx, route)).Should(HaveField("Display.Endpoints", "1/1"))
		before := one.Requests.Load()
		sent := load.Sent()
		Eventually(load.Sent).Should(BeNumerically(">", sent+100))
		Expect(one.Requests.Load()).To(Equal(before), "an endpoint that is gone gets no requests")
		Expect(load.Stop()).To(HaveField("Failed", 0))
	})

	It("are preferred in the gateway's zone where their Service says so", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		host := hostOf(namespace)
		near, far := backend("near", nil), backend("far", nil)
		slice := harness.Endpoints(namespace, "app", near, far)
		slice.Endpoints[0].Zone, slice.Endpoints[1].Zone = new(harness.Zone), new("elsewhere")
		service := harness.Service(namespace, "app")
		service.Spec.TrafficDistribution = new(corev1.ServiceTrafficDistributionPreferSameZone)
		create(ctx, service, slice, harness.Route(namespace, "app", host, "app", harness.Parent("default", "main")))
		Eventually(status(host, "/")).Should(Equal(200))
		for range 20 {
			Expect(status(host, "/")()).To(Equal(200))
		}
		Expect(far.Requests.Load()).To(BeZero())
		change(ctx, slice, func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Conditions.Ready = new(false) })
		Eventually(func() (int64, error) {
			code, err := status(host, "/")()
			Expect(code).To(Equal(200))
			return far.Requests.Load(), err
		}).Should(BeNumerically(">", 0))
	})

	It("that are missing mean 503, and their return 200", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		host := hostOf(namespace)
		one := backend("one", nil)
		slice := harness.Endpoints(namespace, "app")
		route := harness.Route(namespace, "app", host, "app", harness.Parent("default", "main"))
		create(ctx, harness.Service(namespace, "app"), slice, route)
		Eventually(status(host, "/")).Should(Equal(503))
		Eventually(meshRoute(ctx, route)).Should(HaveField("Conditions", ContainElement(SatisfyAll(
			HaveField("Reason", v1alpha1.ReasonNoEndpoints), HaveField("Message", ContainSubstring("503"))))))

		change(ctx, slice, func(s *discoveryv1.EndpointSlice) {
			s.Endpoints = harness.Endpoints(namespace, "app", one).Endpoints
		})
		Eventually(status(host, "/")).Should(Equal(200))
		Expect(cluster.Client.Delete(ctx, slice)).To(Succeed())
		Eventually(status(host, "/")).Should(Equal(503))
	})

	It("that terminate but still serve are used while there is no other", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		host := hostOf(namespace)
		slice := harness.Endpoints(namespace, "app", backend("old", nil))
		create(ctx, harness.Service(namespace, "app"), slice,
			harness.Route(namespace, "app", host, "app", harness.Parent("default", "main")))
		Eventually(status(host, "/")).Should(Equal(200))
		load := harness.StartLoad(100, url(port), host)
		change(ctx, slice, func(s *discoveryv1.EndpointSlice) {
			s.Endpoints[0].Conditions = discoveryv1.EndpointConditions{Ready: new(false), Serving: new(true), Terminating: new(true)}
		})
		sent := load.Sent()
		Eventually(load.Sent).Should(BeNumerically(">", sent+100))
		Expect(load.Stop()).To(HaveField("Failed", 0))
	})
})

func meshRoute(ctx SpecContext, route *v1alpha1.ServiceRoute) func() (v1alpha1.MeshRouteStatus, error) {
	return func() (v1alpha1.MeshRouteStatus, error) {
		var now v1alpha1.MeshRoute
		err := cluster.Client.Get(ctx, client.ObjectKeyFromObject(route), &now)
		return now.Status, err
	}
}
