package integration_test

import (
	"fmt"
	"strconv"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/test/harness"
)

func url(port int) string { return fmt.Sprintf("http://127.0.0.1:%d/", port) }

var _ = Describe("Traffic", Label("resilience"), func() {
	var namespace, host string
	var route *v1alpha1.ServiceRoute
	BeforeEach(func(ctx SpecContext) {
		namespace = newNamespace(ctx)
		host = hostOf(namespace)
		route = harness.Route(namespace, "app", host, "app", harness.Parent("default", "main"))
		create(ctx, harness.Service(namespace, "app"), harness.Endpoints(namespace, "app", backend("app", nil)), route)
		Eventually(status(host, "/")).Should(Equal(200))
		Eventually(routeCondition(ctx, route, v1alpha1.ConditionReady)).Should(HavePrefix("True Ready:"))
	})

	// takesChanges shows that a change made now reaches Envoy.
	takesChanges := func(ctx SpecContext) {
		GinkgoHelper()
		name := fmt.Sprintf("new-%d", time.Now().UnixNano())
		create(ctx, harness.Route(namespace, name, name+"."+host, "app", harness.Parent("default", "main")))
		Eventually(status(name+"."+host, "/")).Should(Equal(200))
	}

	It("goes on while the manager is away, and changes are taken when it is back", func(ctx SpecContext) {
		load := harness.StartLoad(200, url(port), host)
		operator.Hold()
		missed := harness.Route(namespace, "missed", "missed."+host, "app", harness.Parent("default", "main"))
		create(ctx, missed)
		sent := load.Sent()
		Eventually(load.Sent).Should(BeNumerically(">", sent+200))
		Expect(status("missed."+host, "/")()).To(Equal(404))
		Expect(operator.Resume()).To(Succeed())
		Eventually(status("missed."+host, "/")).Should(Equal(200))
		takesChanges(ctx)
		Expect(load.Stop()).To(HaveField("Failed", 0))
	})

	It("does not notice that the agent was killed", func(ctx SpecContext) {
		load := harness.StartLoad(200, url(port), host)
		pod.Agent.Kill()
		Expect(harness.AwaitOK(ctx, pod.Readiness)).To(Succeed())
		takesChanges(ctx)
		Expect(load.Stop()).To(HaveField("Failed", 0))
	})

	It("comes back by itself when Envoy was killed", func(ctx SpecContext) {
		pod.Envoy.Kill()
		Eventually(status(host, "/")).Should(Equal(200))
		Expect(harness.AwaitOK(ctx, pod.Readiness)).To(Succeed())
		takesChanges(ctx)
	})

	It("comes back from the last good configuration when agent and Envoy start with the manager gone", func(ctx SpecContext) {
		// The last good configuration is written within a second.
		Eventually(pod.LastGood).WithContext(ctx).Should(ContainSubstring(host))
		operator.Hold()
		DeferCleanup(func() { _ = operator.Resume() })
		pod.Envoy.Hold()
		pod.Agent.Kill()
		Expect(pod.Envoy.Resume()).To(Succeed())
		Eventually(status(host, "/")).Should(Equal(200))
		Expect(harness.AwaitOK(ctx, pod.Readiness)).To(Succeed())
		Expect(operator.Resume()).To(Succeed())
		takesChanges(ctx)
	})

	It("needs no agent once it is there: Envoy answers for itself", func(ctx SpecContext) {
		load := harness.StartLoad(200, url(port), host)
		pod.Agent.Hold()
		DeferCleanup(func() { _ = pod.Agent.Resume() })
		sent := load.Sent()
		for _, path := range []string{"/livez", "/readyz"} {
			Expect(harness.AwaitOK(ctx, pod.Probes+path)).To(Succeed())
		}
		Eventually(load.Sent).Should(BeNumerically(">", sent+200))
		Expect(pod.Agent.Resume()).To(Succeed())
		Expect(harness.AwaitOK(ctx, pod.Readiness)).To(Succeed())
		takesChanges(ctx)
		Expect(load.Stop()).To(HaveField("Failed", 0))
	})

	It("goes to the other pods when one ends, and that waits for its clients", func(ctx SpecContext) {
		shared, err := harness.FreePort()
		Expect(err).NotTo(HaveOccurred())
		both := harness.Route(namespace, "pair", host, "app", harness.Parent(namespace, "pair"))
		create(ctx, harness.Gateway(namespace, "pair", class, shared), both)
		key := client.ObjectKey{Namespace: namespace, Name: "pair"}
		stays, err := cluster.StartPod(ctx, binaries, folder, key, class, "pair-0")
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(stays.Stop)
		ends, err := cluster.StartPodIn(ctx, backends, binaries, folder, key, class, "pair-1")
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(ends.Stop)
		address := func(p *harness.Pod) string { return fmt.Sprintf("%s:%d", p.Host, shared) }
		for _, p := range []*harness.Pod{stays, ends} {
			Expect(harness.AwaitOK(ctx, p.Readiness)).To(Succeed())
			Expect(harness.AwaitOK(ctx, p.Probes+"/readyz")).To(Succeed())
		}
		// A pod may be ready before a route that is as new as the gateway.
		Eventually(routeCondition(ctx, both, v1alpha1.ConditionReady)).Should(HavePrefix("True Ready:"))
		service, err := harness.StartBalancer(address(stays), address(ends))
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(service.Close)
		requests := func(p *harness.Pod) func() (int, error) {
			return func() (int, error) {
				stats, err := p.Stat(fmt.Sprintf("http.port-%d.downstream_rq_total", shared))
				if err != nil {
					return 0, err
				}
				return strconv.Atoi(stats[fmt.Sprintf("http.port-%d.downstream_rq_total", shared)])
			}
		}

		load := harness.StartLoad(200, url(service.Port), host)
		Eventually(requests(ends)).Should(BeNumerically(">", 50))
		began := time.Now()
		ended := make(chan struct{})
		go func() { defer close(ended); ends.End() }()
		// As long as it may take until every node knows.
		time.AfterFunc(2*time.Second, func() { service.Remove(address(ends)) })
		Eventually(ended).WithTimeout(30 * time.Second).Should(BeClosed())
		took := time.Since(began)
		sent := load.Sent()
		Eventually(load.Sent).Should(BeNumerically(">", sent+200))
		report := load.Stop()
		AddReportEntry("ended", fmt.Sprintf("%s; after %v: %s", report, took.Round(time.Millisecond), ends.Agent.Log()))
		Expect(report).To(HaveField("Failed", 0))
		Expect(took).To(BeNumerically("<", 20*time.Second), "nobody was waited for who was gone")
		Expect(ends.Agent.Log()).To(ContainSubstring("Drained"))
	})

	It("of good routes is untouched by bad ones beside them", func(ctx SpecContext) {
		load := harness.StartLoad(200, url(port), host)
		bad := harness.Route(namespace, "bad", "bad."+host, "nowhere", harness.Parent("default", "main"))
		twin := harness.Route(namespace, "twin", host, "app", harness.Parent("default", "main"))
		create(ctx, bad, twin)
		create(ctx, harness.Gateway(namespace, "classless", "no-such-class", port+2))
		Eventually(status("bad."+host, "/")).Should(Equal(500))
		Eventually(routeCondition(ctx, bad, "ResolvedRefs")).Should(HavePrefix("False BackendNotFound:"))
		Eventually(routeCondition(ctx, twin, "Accepted")).Should(HavePrefix("False RouteConflict:"))
		takesChanges(ctx)
		Expect(load.Stop()).To(HaveField("Failed", 0))
		Expect(routeCondition(ctx, route, v1alpha1.ConditionReady)()).To(HavePrefix("True Ready:"))
	})

	It("survives that its route is moved from one Service to another, again and again", func(ctx SpecContext) {
		create(ctx, harness.Service(namespace, "other"), harness.Endpoints(namespace, "other", backend("other", nil)))
		load := harness.StartLoad(200, url(port), host)
		for i := range 20 {
			target := []gatewayv1.ObjectName{"other", "app"}[i%2]
			change(ctx, route, func(r *v1alpha1.ServiceRoute) { r.Spec.Rules[0].Backends[0].Name = target })
			Eventually(func() (string, error) {
				got, err := get(port, host, "/")
				return got.Backend, err
			}).Should(Equal(string(target)))
		}
		Expect(load.Stop()).To(HaveField("Failed", 0))
	})
})
