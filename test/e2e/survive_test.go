package e2e_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/test/harness"
)

// perSecond is the constant load of this file; a quarter of it comes on
// connections of its own.
const perSecond = 200

var managers = client.ObjectKey{Namespace: harness.SystemNamespace, Name: "meshroute-manager"}

// Serial: these specs take away nodes, managers and the API server, which
// others need.
var _ = Describe("No request is lost", Label("survive"), Serial, Ordered, ContinueOnFailure, func() {
	var (
		namespace, host string
		gw              *gateway
		app             client.ObjectKey
		lost            table
	)

	BeforeAll(func(ctx SpecContext) {
		namespace = newNamespace(ctx)
		host = namespace + ".example.com"
		app = client.ObjectKeyFromObject(backend(ctx, namespace, "app", 4))
		// Clients enter by the node of the control plane, and the gateway runs
		// there: what kube-proxy does with a node that is gone is not what is
		// looked at.
		gw = newGateway(ctx, namespace, "edge", func(config *v1alpha1.GatewayConfigSpec) {
			config.Replicas = new(int32(2))
			config.NodeSelector = map[string]string{corev1.LabelHostname: controlPlane}
		})
		create(ctx, harness.Route(namespace, "app", host, "app", gw.parent()))
		awaitRollout(ctx, app)
		// On both pods.
		Eventually(routeCondition(ctx, app, v1alpha1.ConditionReady)).WithTimeout(time.Minute).Should(HavePrefix("True"))
	})
	AfterAll(func() {
		AddReportEntry("lost requests", lost.String())
		Expect(lost.write()).To(Succeed())
	})

	// under runs an event under constant load, and a few seconds on.
	under := func(what string, event func()) report {
		GinkgoHelper()
		load := startTraffic(gw.address, host, perSecond*3/4, perSecond/4, nil)
		flows := func() {
			GinkgoHelper()
			sent := load.sent()
			Eventually(load.sent).WithTimeout(time.Minute).Should(BeNumerically(">", sent+3*perSecond))
		}
		defer load.cancel()
		flows()
		begun := time.Now()
		event()
		took := time.Since(begun)
		flows()
		got := load.stop()
		lost.add(what, took, got)
		GinkgoWriter.Printf("%s: %s\n", what, got)
		return got
	}
	takesChanges := func(ctx context.Context) {
		GinkgoHelper()
		name := fmt.Sprintf("new-%d", time.Now().UnixNano())
		create(ctx, harness.Route(namespace, name, name+"."+host, "app", gw.parent()))
		Eventually(status(gw.address, name+"."+host, "/")).WithTimeout(time.Minute).Should(Equal(200))
	}

	It("when the gateway's pods are replaced", func(ctx SpecContext) {
		got := under("gateway rollout", func() {
			gw.configure(ctx, func(config *v1alpha1.GatewayConfigSpec) {
				config.Resources = &v1alpha1.Resources{Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("96Mi")}}
			})
		})
		Expect(got).To(HaveField("Failed", 0))
	})

	It("when the gateway is scaled from 1 to 3 and back to 1", func(ctx SpecContext) {
		scale := func(replicas int32) {
			GinkgoHelper()
			gw.configure(ctx, func(config *v1alpha1.GatewayConfigSpec) { config.Replicas = new(replicas) })
		}
		scale(1)
		got := under("gateway scaled 1 → 3 → 1", func() {
			scale(3)
			scale(1)
		})
		scale(2)
		Expect(got).To(HaveField("Failed", 0))
	})

	It("when the backends are replaced", func(ctx SpecContext) {
		got := under("backend rollout", func() {
			kubectl(ctx, "rollout", "restart", "deployment/app", "--namespace", namespace)
			awaitRollout(ctx, app)
		})
		Expect(got).To(HaveField("Failed", 0))
	})

	It("when a backend is killed", func(ctx SpecContext) {
		got := under("3 of 4 backends killed in turn, then 2 deleted without grace", func() {
			// One after the other; the same one again would be held back.
			var pods corev1.PodList
			Expect(k8s.List(ctx, &pods, client.InNamespace(namespace), client.MatchingLabels{"app": "app"})).To(Succeed())
			for _, victim := range pods.Items[:3] {
				killContainer(ctx, victim, "backend")
				Eventually(func() (bool, error) {
					var pod corev1.Pod
					err := k8s.Get(ctx, client.ObjectKeyFromObject(&victim), &pod)
					return ready(&pod) && pod.Status.ContainerStatuses[0].RestartCount > 0, err
				}).WithTimeout(2 * time.Minute).Should(BeTrue())
			}
			kubectl(ctx, "delete", "pod", "--namespace", namespace, "--selector", "app=app", "--field-selector", "spec.nodeName="+worker, "--grace-period=0", "--force", "--wait=false")
			awaitRollout(ctx, app)
		})
		Expect(got).To(HaveField("Failed", 0))
	})

	It("when a node is drained", func(ctx SpecContext) {
		// On both nodes for this one.
		DeferCleanup(func(ctx SpecContext) {
			kubectl(ctx, "uncordon", worker)
			gw.configure(ctx, func(config *v1alpha1.GatewayConfigSpec) {
				config.NodeSelector = map[string]string{corev1.LabelHostname: controlPlane}
			})
			rebalance(ctx, app)
		}, NodeTimeout(5*time.Minute))
		gw.configure(ctx, func(config *v1alpha1.GatewayConfigSpec) { config.NodeSelector = nil })
		evict := func() bool {
			for _, pod := range gw.pods(ctx) {
				if pod.Spec.NodeName == worker {
					return true
				}
			}
			return false
		}
		Expect(evict()).To(BeTrue(), "no pod of the gateway runs on %s", worker)
		// Nothing in a gateway helps where all backends are on the node that goes.
		if !slices.Contains(nodesOf(ctx, namespace, "app"), controlPlane) {
			rebalance(ctx, app)
		}
		before := nodesOf(ctx, namespace, "app")
		Expect(before).To(ContainElement(controlPlane), "the backends' nodes")
		AddReportEntry("nodes of the backends before the drain", before)
		got := under("node drained", func() {
			kubectl(ctx, "drain", worker, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=150s")
			kubectl(ctx, "uncordon", worker)
			awaitRollout(ctx, gw.deployment)
			awaitRollout(ctx, app)
		})
		Expect(got).To(HaveField("Failed", 0))
	}, SpecTimeout(8*time.Minute))

	It("when the leading manager is killed", func(ctx SpecContext) {
		got := under("leading manager killed", func() {
			before, err := leader(ctx)
			Expect(err).NotTo(HaveOccurred())
			kubectl(ctx, "delete", "pod", before, "--namespace", managers.Namespace, "--grace-period=0", "--force")
			Eventually(func() (string, error) { return leader(ctx) }).WithTimeout(time.Minute).ShouldNot(Equal(before))
			takesChanges(ctx)
			awaitRollout(ctx, managers)
		})
		Expect(got).To(HaveField("Failed", 0))
		Eventually(gatewayCondition(ctx, gw.ObjectKey, v1alpha1.ConditionProgrammed)).Should(HavePrefix("True"))
	})

	It("when all managers are gone for a minute and every container of a gateway pod is killed", func(ctx SpecContext) {
		var killed time.Time
		got := under("no manager for a minute, containers of a gateway pod killed", func() {
			minute := time.After(time.Minute)
			kubectl(ctx, "scale", "deployment/meshroute-manager", "--namespace", managers.Namespace, "--replicas=0")
			Eventually(func() (int, error) {
				var pods corev1.PodList
				err := k8s.List(ctx, &pods, client.InNamespace(managers.Namespace), client.MatchingLabels{"app.kubernetes.io/name": "meshroute-manager"})
				return len(pods.Items), err
			}).WithTimeout(time.Minute).Should(BeZero())
			victim := gw.pods(ctx)[0]
			killed = time.Now()
			for _, container := range victim.Spec.Containers {
				killContainer(ctx, victim, container.Name)
			}
			Eventually(func() (bool, error) {
				var pod corev1.Pod
				err := k8s.Get(ctx, client.ObjectKeyFromObject(&victim), &pod)
				restarted := true
				for _, status := range pod.Status.ContainerStatuses {
					restarted = restarted && status.RestartCount > 0
				}
				return restarted && ready(&pod), err
			}).WithTimeout(time.Minute).Should(BeTrue(), "the pod comes back without a manager, from its last good configuration")
			select {
			case <-minute:
			case <-ctx.Done():
			}
			kubectl(ctx, "scale", "deployment/meshroute-manager", "--namespace", managers.Namespace, "--replicas=2")
			awaitRollout(ctx, managers)
			takesChanges(ctx)
		})
		// A proxy that is killed (SIGKILL) takes its connections along, and until
		// kube-proxy knows, new ones come to nobody. Nothing but that may fail.
		for _, failure := range got.all {
			Expect(failure.at).To(And(BeTemporally(">=", killed), BeTemporally("<", killed.Add(2*time.Second))), failure.why)
			Expect(failure.why).To(MatchRegexp("connection refused|connection reset|EOF"))
		}
	}, SpecTimeout(6*time.Minute))

	It("when the API server cannot be reached for a minute", func(ctx SpecContext) {
		rule := []string{"INPUT", "--protocol", "tcp", "--dport", "6443", "--jump", "DROP"}
		got := under("API server unreachable for a minute", func() {
			minute := time.After(time.Minute)
			onNode(ctx, controlPlane, append([]string{"iptables", "--wait", "--insert"}, rule...)...)
			restore := func(ctx context.Context) {
				_, _ = run(ctx, "", containerTool, append([]string{"exec", controlPlane, "iptables", "--wait", "--delete"}, rule...)...)
			}
			DeferCleanup(restore)
			select {
			case <-minute:
			case <-ctx.Done():
			}
			restore(ctx)
			Eventually(func() error {
				_, err := tryKubectl(ctx, "", "get", "namespace", "default")
				return err
			}).WithTimeout(2 * time.Minute).Should(Succeed())
			Eventually(rolledOut(ctx, managers)).WithTimeout(3 * time.Minute).Should(BeEmpty())
			takesChanges(ctx)
		})
		Expect(got).To(HaveField("Failed", 0))
	}, SpecTimeout(8*time.Minute))

	It("when a bad object is applied in the middle", func(ctx SpecContext) {
		got := under("bad objects applied", func() {
			bad := harness.Route(namespace, "bad", "bad."+host, "nowhere", gw.parent())
			twin := harness.Route(namespace, "twin", host, "nowhere", gw.parent())
			create(ctx, bad, twin, harness.Gateway(namespace, "classless", "no-such-class", 81))
			_, err := tryKubectl(ctx, fmt.Sprintf(refused, namespace), "apply", "--filename=-")
			Expect(err).To(MatchError(ContainSubstring("at least one weight must be above 0")))
			Eventually(routeCondition(ctx, client.ObjectKeyFromObject(bad), "ResolvedRefs")).Should(HavePrefix("False BackendNotFound:"))
			Eventually(routeCondition(ctx, client.ObjectKeyFromObject(twin), "Accepted")).Should(HavePrefix("False RouteConflict:"))
			takesChanges(ctx)
		})
		Expect(got).To(HaveField("Failed", 0))
	})

	It("when the operator is upgraded from the previous commit", func(ctx SpecContext) {
		Expect(previousImage).NotTo(BeEmpty(), "E2E_PREVIOUS_IMG names no image of the previous commit: see hack/e2e.sh")
		Expect(previousCheckout).NotTo(BeEmpty(), "E2E_PREVIOUS names no checkout of the previous commit: see hack/e2e.sh")
		// Back to the previous one first, not under load: only its way forward is
		// promised.
		_, err := run(ctx, "", "make", "--no-print-directory", "-C", previousCheckout, "deploy", "IMG="+previousImage)
		Expect(err).NotTo(HaveOccurred())
		settled := func() {
			GinkgoHelper()
			awaitRollout(ctx, managers)
			Eventually(func() (string, error) {
				pods := gw.pods(ctx)
				for _, pod := range pods {
					for _, container := range pod.Spec.Containers {
						if container.Name == "agent" {
							return container.Image, nil
						}
					}
				}
				return "", nil
			}).WithTimeout(2 * time.Minute).Should(Not(BeEmpty()))
			awaitRollout(ctx, gw.deployment)
		}
		settled()
		got := under("operator upgraded from the previous commit", func() {
			makeTarget(ctx, "deploy", "IMG="+image)
			Eventually(func() bool {
				for _, pod := range gw.pods(ctx) {
					for _, container := range pod.Spec.Containers {
						if container.Name == "agent" && container.Image == image {
							return true
						}
					}
				}
				return false
			}).WithTimeout(2 * time.Minute).Should(BeTrue())
			settled()
			takesChanges(ctx)
		})
		Expect(got).To(HaveField("Failed", 0))
	}, SpecTimeout(10*time.Minute))

	It("when the node of half of the backends stops", func(ctx SpecContext) {
		rebalance(ctx, app)
		got := under("backends' node stopped", func() {
			_, err := run(ctx, "", containerTool, "kill", worker)
			Expect(err).NotTo(HaveOccurred())
			DeferCleanup(func(ctx SpecContext) {
				_, err := run(ctx, "", containerTool, "start", worker)
				Expect(err).NotTo(HaveOccurred())
				Eventually(nodeReady(ctx, worker)).WithTimeout(3 * time.Minute).Should(BeTrue())
				awaitRollout(ctx, managers)
			}, NodeTimeout(6*time.Minute))
			Eventually(nodeReady(ctx, worker)).WithTimeout(3 * time.Minute).Should(BeFalse())
		})
		Expect(got).To(HaveField("Failed", 0))
	}, SpecTimeout(8*time.Minute))
})

// refused is a route that the schema does not let in.
const refused = `apiVersion: meshroute.io/v1alpha1
kind: ServiceRoute
metadata: {name: refused, namespace: %s}
spec:
  rules:
  - name: all
    backends: [{name: app, port: 80, weight: 0}]
`

func nodeReady(ctx context.Context, name string) func() (bool, error) {
	return func() (bool, error) {
		var node corev1.Node
		if err := k8s.Get(ctx, client.ObjectKey{Name: name}, &node); err != nil {
			return false, err
		}
		for _, condition := range node.Status.Conditions {
			if condition.Type == corev1.NodeReady {
				return condition.Status == corev1.ConditionTrue, nil
			}
		}
		return false, nil
	}
}

// nodesOf are the nodes on which the pods of a backend run.
func nodesOf(ctx context.Context, namespace, name string) []string {
	GinkgoHelper()
	var pods corev1.PodList
	Expect(k8s.List(ctx, &pods, client.InNamespace(namespace), client.MatchingLabels{"app": name})).To(Succeed())
	var nodes []string
	for _, pod := range pods.Items {
		if ready(&pod) {
			nodes = append(nodes, pod.Spec.NodeName)
		}
	}
	slices.Sort(nodes)
	return nodes
}

// rebalance has pods of a Deployment on both nodes again.
func rebalance(ctx context.Context, key client.ObjectKey) {
	GinkgoHelper()
	kubectl(ctx, "rollout", "restart", "deployment/"+key.Name, "--namespace", key.Namespace)
	awaitRollout(ctx, key)
}

// table is the result of this file, for people.
type table struct{ rows, failures []string }

func (t *table) add(what string, took time.Duration, got report) {
	t.rows = append(t.rows, fmt.Sprintf("| %s | %s | %d | %d | %s | %s |", what, took.Round(time.Second), got.Sent, got.Failed,
		got.P99.Round(time.Millisecond/10), got.Slowest.Round(time.Millisecond)))
	for _, failure := range got.Failures {
		t.failures = append(t.failures, what+": "+failure)
	}
}

func (t *table) String() string {
	out := "| event, under 200 requests a second | took | sent | failed | p99 | slowest |\n|---|---|---|---|---|---|\n"
	for _, row := range slices.Concat(t.rows, t.failures) {
		out += row + "\n"
	}
	return out
}

func (t *table) write() error {
	return os.WriteFile(filepath.Join(artefacts, "lost-requests.md"), []byte(t.String()), 0o600)
}
