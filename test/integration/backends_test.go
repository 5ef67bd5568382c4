package integration_test

import (
	"net/http"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	discoveryv1 "k8s.io/api/discovery/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/test/harness"
)

// slow answers after a moment, so that requests are on their way whenever
// something happens.
func slow(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(30 * time.Millisecond)
		w.Header().Set("X-Backend", name)
	})
}

var _ = Describe("A backend", Label("resilience", "backends"), func() {
	// serve routes a hostname to backends, the last of which is the victim.
	serve := func(ctx SpecContext, all ...*harness.Backend) (host string) {
		GinkgoHelper()
		namespace := newNamespace(ctx)
		host = hostOf(namespace)
		create(ctx, harness.Service(namespace, "app"), harness.Endpoints(namespace, "app", all...),
			harness.Route(namespace, "app", host, "app", harness.Parent("default", "main")))
		Eventually(status(host, "/")).Should(Equal(200))
		return host
	}

	It("that dies takes no request along that may be sent twice", func(ctx SpecContext) {
		victim := backend("victim", slow("victim"))
		host := serve(ctx, backend("one", slow("one")), backend("two", slow("two")), victim)
		load := harness.StartLoad(200, url(port), host)
		Eventually(victim.Requests.Load).Should(BeNumerically(">", 50))
		victim.Close()
		sent := load.Sent()
		Eventually(load.Sent).Should(BeNumerically(">", sent+600))
		report := load.Stop()
		AddReportEntry("killed", report.String())
		Expect(report).To(HaveField("Failed", 0))
		Expect(report.Worst).To(BeNumerically("<", 2*time.Second))
	})

	It("whose node vanishes takes no request along that may be sent twice", func(ctx SpecContext) {
		node, err := harness.NewNet()
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(node.Close)
		victim, err := node.Backend("victim", slow("victim"))
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(victim.Close)
		host := serve(ctx, backend("one", slow("one")), backend("two", slow("two")), victim)
		load := harness.StartLoad(200, url(port), host)
		Eventually(victim.Requests.Load).Should(BeNumerically(">", 50))
		Expect(node.Unplug()).To(Succeed())
		sent := load.Sent()
		Eventually(load.Sent).WithTimeout(time.Minute).Should(BeNumerically(">", sent+200*20))
		Expect(node.Plug()).To(Succeed())
		before := victim.Requests.Load()
		Eventually(victim.Requests.Load).WithTimeout(time.Minute).Should(BeNumerically(">", before+100), "it is used again when it is back")
		report := load.Stop()
		AddReportEntry("unplugged", report.String())
		Expect(report).To(HaveField("Failed", 0))
		Expect(report.Worst).To(BeNumerically("<", 9500*time.Millisecond))
	})

	It("is relieved by the Service of the next priority", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		host := hostOf(namespace)
		preferred, spare := backend("preferred", slow("preferred")), backend("spare", slow("spare"))
		slice := harness.Endpoints(namespace, "preferred", preferred)
		route := harness.Route(namespace, "app", host, "spare", harness.Parent("default", "main"))
		route.Spec.Rules[0].Backends[0].Priority = new(int32(70))
		first := route.Spec.Rules[0].Backends[0]
		first.Name, first.Priority = "preferred", new(int32(7))
		route.Spec.Rules[0].Backends = append(route.Spec.Rules[0].Backends, first)
		create(ctx, harness.Service(namespace, "preferred"), slice,
			harness.Service(namespace, "spare"), harness.Endpoints(namespace, "spare", spare), route)
		Eventually(status(host, "/")).Should(Equal(200))

		load := harness.StartLoad(300, url(port), host)
		used := func(b *harness.Backend) {
			GinkgoHelper()
			before := b.Requests.Load()
			Eventually(b.Requests.Load).Should(BeNumerically(">", before+200))
		}
		used(preferred)
		Expect(spare.Requests.Load()).To(BeZero(), "while the preferred one has an endpoint")
		var endpoints []discoveryv1.Endpoint
		change(ctx, slice, func(s *discoveryv1.EndpointSlice) { endpoints, s.Endpoints = s.Endpoints, nil })
		used(spare)
		Eventually(func() (string, error) {
			mesh, err := meshRoute(ctx, route)()
			return condition(mesh.Conditions, v1alpha1.ConditionReady), err
		}).Should(Equal("True Ready: serving; Service " + namespace + "/preferred has no ready endpoint on port 80, so others take its requests"))
		change(ctx, slice, func(s *discoveryv1.EndpointSlice) { s.Endpoints = endpoints })
		used(preferred)
		preferred.Close() // and Kubernetes has not noticed
		used(spare)
		report := load.Stop()
		AddReportEntry("failed over", report.String())
		Expect(report).To(HaveField("Failed", 0))
	})

	It("that was set aside is asked again at once when no other is left", func(ctx SpecContext) {
		node, err := harness.NewNet()
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(node.Close)
		back, err := node.Backend("back", nil)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(back.Close)
		namespace := newNamespace(ctx)
		host := hostOf(namespace)
		slice := harness.Endpoints(namespace, "app", backend("other", nil), back)
		create(ctx, harness.Service(namespace, "app"), slice,
			harness.Route(namespace, "app", host, "app", harness.Parent("default", "main")))
		Eventually(status(host, "/")).Should(Equal(200))

		load := harness.StartLoad(100, url(port), host)
		Expect(node.Unplug()).To(Succeed())
		// Connecting to it takes its time to fail; three failures set it aside.
		sent := load.Sent()
		Eventually(load.Sent).Should(BeNumerically(">", sent+400))
		Expect(node.Plug()).To(Succeed())
		change(ctx, slice, func(s *discoveryv1.EndpointSlice) { s.Endpoints = s.Endpoints[1:] })
		before := back.Requests.Load()
		Eventually(back.Requests.Load).WithTimeout(2 * time.Second).Should(BeNumerically(">", before+50))
		report := load.Stop()
		AddReportEntry("set aside", report.String())
		Expect(report).To(HaveField("Failed", 0))
	})
})
