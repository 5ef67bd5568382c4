package integration_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/test/harness"
)

// An API server of their own: the manager of the other specs leads without
// asking.
var _ = Describe("Two replicas of the manager", Label("replicas"), Ordered, func() {
	const host = "two.example.com"
	var (
		own      *harness.Cluster
		replicas *harness.Replicas
		pod      *harness.Pod
		gateway  *gatewayv1.Gateway
		port     int
		leader   int
	)
	follower := func() int { return 1 - leader }

	BeforeAll(func(ctx SpecContext) {
		files := filepath.Join(folder, "replicas")
		Expect(os.Mkdir(files, 0o700)).To(Succeed())
		var err error
		own, err = harness.StartCluster(files)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(own.Stop)
		replicas, err = own.StartReplicas(ctx, binaries, files, 2)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(replicas.Stop)
		Eventually(func() (err error) {
			leader, err = replicas.Leader(ctx)
			return err
		}).Should(Succeed())
		for _, operator := range replicas.Operators {
			Expect(harness.AwaitOK(ctx, operator.Probes+"/readyz")).To(Succeed())
		}
		replicas.Serve(follower())

		port, err = harness.FreePort()
		Expect(err).NotTo(HaveOccurred())
		gateway = harness.Gateway("default", "main", class, port)
		service := backend("two", nil)
		for _, object := range []client.Object{
			harness.GatewayClass(class), gateway,
			harness.Service("default", "app"), harness.Endpoints("default", "app", service),
			harness.Route("default", "app", host, "app", harness.Parent("default", "main")),
		} {
			Expect(own.Client.Create(ctx, object)).To(Succeed())
		}
		pod, err = own.StartPod(ctx, binaries, files, client.ObjectKeyFromObject(gateway), class, "main-0")
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(pod.Stop)
		Expect(harness.AwaitOK(ctx, pod.Readiness)).To(Succeed())
	}, NodeTimeout(3*time.Minute))

	AfterEach(func() {
		if CurrentSpecReport().Failed() {
			for i, operator := range replicas.Operators {
				AddReportEntry(fmt.Sprintf("manager %d", i), tail(operator.Log()))
			}
			AddReportEntry("agent", tail(pod.Agent.Log()))
		}
	})

	programmed := func(ctx context.Context, name string) func() (string, error) {
		return func() (string, error) {
			var now gatewayv1.Gateway
			err := own.Client.Get(ctx, client.ObjectKey{Namespace: "default", Name: name}, &now)
			return condition(now.Status.Conditions, v1alpha1.ConditionProgrammed), err
		}
	}
	ready := func(ctx context.Context, route string) func() (string, error) {
		return func() (string, error) {
			var now v1alpha1.ServiceRoute
			err := own.Client.Get(ctx, client.ObjectKey{Namespace: "default", Name: route}, &now)
			if len(now.Status.Conditions) > 0 && now.Status.Conditions[0].ObservedGeneration != now.Generation {
				return "not looked at yet", err
			}
			return condition(now.Status.Conditions, v1alpha1.ConditionReady), err
		}
	}
	answers := func(host string) func() (int, error) {
		return func() (int, error) {
			got, err := get(port, host, "/")
			return got.Status, err
		}
	}
	// takesChanges shows that a route made now gets requests, and a status.
	takesChanges := func(ctx SpecContext, name string) {
		GinkgoHelper()
		Expect(own.Client.Create(ctx, harness.Route("default", name, name+"."+host, "app", harness.Parent("default", "main")))).To(Succeed())
		Eventually(answers(name + "." + host)).Should(Equal(200))
		Eventually(ready(ctx, name)).WithTimeout(30 * time.Second).Should(HavePrefix("True Ready:"))
	}

	It("show what pods have that get their configuration from the one that does not lead", func(ctx SpecContext) {
		Eventually(answers(host)).Should(Equal(200))
		Eventually(programmed(ctx, "main")).Should(HavePrefix("True Programmed:"))
		Eventually(ready(ctx, "app")).Should(HavePrefix("True Ready:"))
		takesChanges(ctx, "more")
	})

	It("tell what Envoy refused of what the one that does not lead has sent", func(ctx SpecContext) {
		taken, err := net.Listen("tcp", "0.0.0.0:0")
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(func() { _ = taken.Close() })
		listen := func(on int) {
			GinkgoHelper()
			Eventually(func() error {
				if err := own.Client.Get(ctx, client.ObjectKeyFromObject(gateway), gateway); err != nil {
					return err
				}
				gateway.Spec.Listeners = gateway.Spec.Listeners[:1]
				if on > 0 {
					second := *gateway.Spec.Listeners[0].DeepCopy()
					second.Name, second.Port = "second", gatewayv1.PortNumber(on)
					gateway.Spec.Listeners = append(gateway.Spec.Listeners, second)
				}
				return own.Client.Update(ctx, gateway)
			}).Should(Succeed())
		}
		listen(taken.Addr().(*net.TCPAddr).Port)
		Eventually(programmed(ctx, "main")).Should(SatisfyAll(HavePrefix("False RefusedByEnvoy:"), ContainSubstring("in use")))
		Expect(answers(host)()).To(Equal(200))
		listen(0)
		Eventually(programmed(ctx, "main")).Should(HavePrefix("True Programmed:"))
	})

	It("lose no request and write nothing false when the one that leads is killed", func(ctx SpecContext) {
		seen := follow(ctx, own.Client)
		load := harness.StartLoad(200, url(port), host)
		killed := leader
		replicas.Operators[killed].Hold()
		start := time.Now()
		// Configuration goes on at once.
		Expect(own.Client.Create(ctx, harness.Route("default", "meanwhile", "meanwhile."+host, "app", harness.Parent("default", "main")))).To(Succeed())
		Eventually(answers("meanwhile." + host)).Should(Equal(200))
		Eventually(func() (int, error) { return replicas.Leader(ctx) }).WithTimeout(30 * time.Second).Should(Equal(follower()))
		AddReportEntry("another leads", time.Since(start).String())
		leader = follower()
		Eventually(ready(ctx, "meanwhile")).WithTimeout(30 * time.Second).Should(HavePrefix("True Ready:"))
		AddReportEntry("its first status", time.Since(start).String())
		takesChanges(ctx, "after")
		Expect(replicas.Operators[killed].Resume()).To(Succeed())
		Expect(harness.AwaitOK(ctx, replicas.Operators[killed].Probes+"/readyz")).To(Succeed())
		Expect(load.Stop()).To(HaveField("Failed", 0))
		Expect(seen()).To(BeEmpty(), "statuses that were never true")
	})

	It("lose no request and write nothing false when the one that leads, and configures, is killed", func(ctx SpecContext) {
		replicas.Serve(leader)
		pod.Agent.Kill()
		Expect(harness.AwaitOK(ctx, pod.Readiness)).To(Succeed())
		takesChanges(ctx, "by-leader")
		seen := follow(ctx, own.Client)
		load := harness.StartLoad(200, url(port), host)
		killed := leader
		replicas.Serve(follower())
		replicas.Operators[killed].Hold()
		Expect(own.Client.Create(ctx, harness.Route("default", "meanwhile-2", "meanwhile-2."+host, "app", harness.Parent("default", "main")))).To(Succeed())
		Eventually(answers("meanwhile-2." + host)).Should(Equal(200))
		leader = follower()
		Eventually(ready(ctx, "meanwhile-2")).WithTimeout(30 * time.Second).Should(HavePrefix("True Ready:"))
		Expect(replicas.Operators[killed].Resume()).To(Succeed())
		Expect(load.Stop()).To(HaveField("Failed", 0))
		Expect(seen()).To(BeEmpty(), "statuses that were never true")
	})

	It("hand over within seconds when the one that leads ends", func(ctx SpecContext) {
		Expect(harness.AwaitOK(ctx, replicas.Operators[follower()].Probes+"/readyz")).To(Succeed())
		seen := follow(ctx, own.Client)
		start := time.Now()
		replicas.Operators[leader].Stop()
		Eventually(func() (int, error) { return replicas.Leader(ctx) }).WithTimeout(8*time.Second).Should(Equal(follower()), "well before a lease ends")
		AddReportEntry("another leads", time.Since(start).String())
		leader = follower()
		replicas.Serve(leader)
		takesChanges(ctx, "handed-over")
		Expect(seen()).To(BeEmpty(), "statuses that were never true")
	})
})

// follow watches what is said of the Gateway and of the route that do not change.
// The function that it returns ends that, and returns what was not good.
func follow(ctx context.Context, c client.WithWatch) func() []string {
	GinkgoHelper()
	var mu sync.Mutex
	var bad []string
	var watches []watch.Interface
	var done sync.WaitGroup
	take := func(list client.ObjectList, look func(client.Object) string) {
		w, err := c.Watch(ctx, list, client.InNamespace("default"))
		Expect(err).NotTo(HaveOccurred())
		watches = append(watches, w)
		done.Go(func() {
			for event := range w.ResultChan() {
				object, ok := event.Object.(client.Object)
				if !ok {
					continue
				}
				if found := look(object); found != "" {
					mu.Lock()
					bad = append(bad, found)
					mu.Unlock()
				}
			}
		})
	}
	take(&gatewayv1.GatewayList{}, func(object client.Object) string {
		found := condition(object.(*gatewayv1.Gateway).Status.Conditions, v1alpha1.ConditionProgrammed)
		// While something new is on its way, that is said.
		if strings.HasPrefix(found, "True Programmed:") || strings.HasPrefix(found, "False Waiting:") {
			return ""
		}
		return found
	})
	take(&v1alpha1.ServiceRouteList{}, func(object client.Object) string {
		if object.GetName() != "app" {
			return ""
		}
		found := condition(object.(*v1alpha1.ServiceRoute).Status.Conditions, v1alpha1.ConditionReady)
		if strings.HasPrefix(found, "True Ready:") {
			return ""
		}
		return found
	})
	return func() []string {
		for _, w := range watches {
			w.Stop()
		}
		done.Wait()
		return bad
	}
}
