package integration_test

import (
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/test/harness"
)

// The schema and the model let nothing pass that Envoy is known to refuse. So the
// Envoy of these pods is stricter than the product makes it: it takes but short
// regular expressions.
var _ = Describe("A route that Envoy refuses", Label("refusals"), func() {
	strict := func(bootstrap string) string {
		return strings.Replace(bootstrap, `"re2.max_program_size.error_level":2000`, `"re2.max_program_size.error_level":60`, 1)
	}
	const tooLong = "/(alpha|bravo|charlie|delta|echo|foxtrot|golf|hotel|india|juliett|kilo)"

	It("is held at its last good version, by new pods and new managers, too, and harms nobody", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		host := hostOf(namespace)
		port, err := harness.FreePort()
		Expect(err).NotTo(HaveOccurred())
		key := client.ObjectKey{Namespace: namespace, Name: "strict"}
		parent := harness.Parent(namespace, "strict")
		route := func(name string, kind v1alpha1.PathMatchType, path string) *v1alpha1.ServiceRoute {
			made := harness.Route(namespace, name, host, "app", parent)
			made.Spec.Rules[0].Matches = []v1alpha1.RouteMatch{{Path: &v1alpha1.PathMatch{Type: kind, Value: path}}}
			return made
		}
		bad, neighbour := route("bad", v1alpha1.PathMatchPrefix, "/bad"), route("neighbour", v1alpha1.PathMatchPrefix, "/neighbour")
		create(ctx, harness.Gateway(namespace, "strict", class, port), bad, neighbour,
			harness.Service(namespace, "app"), harness.Endpoints(namespace, "app", backend("app", nil)))
		start := func(name string) *harness.Pod {
			GinkgoHelper()
			started, err := cluster.StartPod(ctx, binaries, folder, key, class, name)
			Expect(err).NotTo(HaveOccurred())
			DeferCleanup(started.Stop)
			Expect(started.Reconfigure(strict)).To(Succeed())
			Expect(harness.AwaitOK(ctx, started.Readiness)).To(Succeed())
			return started
		}
		answers := func(path string) func() (int, error) {
			return func() (int, error) {
				got, err := get(port, host, path)
				return got.Status, err
			}
		}
		first := start("strict-0")
		Eventually(routeCondition(ctx, bad, v1alpha1.ConditionReady)).Should(HavePrefix("True Ready:"))
		Eventually(routeCondition(ctx, neighbour, v1alpha1.ConditionReady)).Should(HavePrefix("True Ready:"))

		By("being changed, and a new one made, while the neighbour changes")
		change(ctx, bad, func(r *v1alpha1.ServiceRoute) {
			r.Spec.Rules[0].Matches[0].Path = &v1alpha1.PathMatch{Type: v1alpha1.PathMatchRegularExpression, Value: tooLong}
		})
		never := route("never", v1alpha1.PathMatchRegularExpression, "/never"+tooLong)
		create(ctx, never)
		change(ctx, neighbour, func(r *v1alpha1.ServiceRoute) { r.Spec.Rules[0].Matches[0].Path.Value = "/moved" })
		Eventually(answers("/moved")).Should(Equal(200))
		Eventually(routeCondition(ctx, neighbour, v1alpha1.ConditionReady)).Should(HavePrefix("True Ready:"))
		held := SatisfyAll(HavePrefix("False RefusedByEnvoy:"), ContainSubstring("(generation 1) serves on"), ContainSubstring("program size"))
		out := SatisfyAll(HavePrefix("False RefusedByEnvoy:"), ContainSubstring("left out"))
		Eventually(routeCondition(ctx, bad, v1alpha1.ConditionReady)).Should(held)
		Eventually(routeCondition(ctx, never, v1alpha1.ConditionReady)).Should(out)
		Expect(answers("/bad")()).To(Equal(200))
		Expect(answers("/never/alpha")()).To(Equal(404))
		revisions := func() (names []string, err error) {
			var list appsv1.ControllerRevisionList
			err = cluster.Client.List(ctx, &list, client.InNamespace(namespace))
			for _, revision := range list.Items {
				names = append(names, revision.Name+" of "+revision.OwnerReferences[0].Name)
			}
			return names, err
		}
		Eventually(revisions).Should(ConsistOf("bad.refused.meshroute.io of bad", "never.refused.meshroute.io of never"))

		By("another manager and another pod, which Envoy refuses nothing")
		operator.Hold()
		first.Stop()
		Expect(operator.Resume()).To(Succeed())
		second := start("strict-1")
		Eventually(answers("/moved")).Should(Equal(200))
		Expect(answers("/bad")()).To(Equal(200))
		Expect(answers("/never/alpha")()).To(Equal(404))
		Eventually(routeCondition(ctx, bad, v1alpha1.ConditionReady)).WithTimeout(30 * time.Second).Should(held)
		Expect(first.Envoy.Log()).To(ContainSubstring("program size"))
		Expect(second.Envoy.Log()).NotTo(ContainSubstring("program size"))

		By("being mended")
		change(ctx, bad, func(r *v1alpha1.ServiceRoute) { r.Spec.Rules[0].Matches[0].Path.Value = "/mend(ed)?" })
		Eventually(answers("/mended")).Should(Equal(200))
		Expect(cluster.Client.Delete(ctx, never)).To(Succeed())
		Eventually(routeCondition(ctx, bad, v1alpha1.ConditionReady)).Should(HavePrefix("True Ready:"))
		Eventually(revisions).Should(BeEmpty())
	})
})
