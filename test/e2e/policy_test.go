package e2e_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/test/harness"
)

// dialler tries, again and again, to open connections from within a pod, and
// remembers which of them came about.
type dialler struct {
	mu   sync.Mutex
	last map[string]attempt
}

type attempt struct {
	Target string    `json:"target"`
	Open   bool      `json:"open"`
	Time   time.Time `json:"time"`
}

// reaches tells whether the newest attempt, begun after since, opened a
// connection.
func (d *dialler) reaches(target string, since time.Time) func() (bool, error) {
	return func() (bool, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		last, known := d.last[target]
		if !known || last.Time.Before(since) {
			return false, fmt.Errorf("no attempt at %s since then", target)
		}
		return last.Open, nil
	}
}

func (d *dialler) follow(from io.Reader) {
	lines := bufio.NewScanner(from)
	for lines.Scan() {
		var line attempt
		if json.Unmarshal(lines.Bytes(), &line) == nil {
			d.mu.Lock()
			d.last[line.Target] = line
			d.mu.Unlock()
		}
	}
}

// logs reads a container's log until the spec ends.
func (d *dialler) logs(ctx context.Context, namespace, pod, container string) {
	GinkgoHelper()
	// The log of a container that is only about to start is refused.
	Eventually(func() error {
		_, err := tryKubectl(ctx, "", "logs", pod, "--container", container, "--namespace", namespace, "--tail=1")
		return err
	}).WithTimeout(time.Minute).Should(Succeed())
	following, stop := context.WithCancel(context.Background())
	command := exec.CommandContext(following, kubectlPath, "logs", pod, "--container", container, "--namespace", namespace, "--follow")
	output, err := command.StdoutPipe()
	Expect(err).NotTo(HaveOccurred())
	Expect(command.Start()).To(Succeed())
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.follow(output)
	}()
	DeferCleanup(func() {
		stop()
		<-done
		_ = command.Wait() // it was ended
	})
}

// dialFrom dials targets from within a pod that runs already, by a container
// that is added to it.
func dialFrom(ctx context.Context, pod corev1.Pod, targets ...string) *dialler {
	GinkgoHelper()
	name := fmt.Sprintf("dial-%d", len(pod.Spec.EphemeralContainers)+1)
	Expect(k8s.Get(ctx, client.ObjectKeyFromObject(&pod), &pod)).To(Succeed())
	pod.Spec.EphemeralContainers = append(pod.Spec.EphemeralContainers, corev1.EphemeralContainer{
		Name: name, Image: backendImage, ImagePullPolicy: corev1.PullIfNotPresent,
		Args: append([]string{"dial"}, targets...), SecurityContext: restricted(),
	})
	Expect(k8s.SubResource("ephemeralcontainers").Update(ctx, &pod)).To(Succeed())
	d := &dialler{last: map[string]attempt{}}
	d.logs(ctx, pod.Namespace, pod.Name, name)
	return d
}

// dialAs dials targets from a pod of its own.
func dialAs(ctx context.Context, namespace, name string, targets ...string) *dialler {
	GinkgoHelper()
	backend(ctx, namespace, name, 1, func(deployment *appsv1.Deployment) {
		deployment.Spec.Template.Spec.Containers[0].Args = append([]string{"dial"}, targets...)
		deployment.Spec.Template.Spec.Containers[0].ReadinessProbe = nil
	})
	awaitRollout(ctx, client.ObjectKey{Namespace: namespace, Name: name})
	var pods corev1.PodList
	Expect(k8s.List(ctx, &pods, client.InNamespace(namespace), client.MatchingLabels{"app": name})).To(Succeed())
	d := &dialler{last: map[string]attempt{}}
	d.logs(ctx, namespace, pods.Items[0].Name, "backend")
	return d
}

// seconds is within which policies have to follow routes.
const seconds = 10 * time.Second

var _ = Describe("Network policies", Label("policies"), func() {
	podAddress := func(ctx SpecContext, namespace, app string) string {
		GinkgoHelper()
		awaitRollout(ctx, client.ObjectKey{Namespace: namespace, Name: app})
		var pods corev1.PodList
		Expect(k8s.List(ctx, &pods, client.InNamespace(namespace), client.MatchingLabels{"app": app})).To(Succeed())
		Expect(pods.Items).NotTo(BeEmpty())
		return pods.Items[0].Status.PodIP
	}

	It("let a gateway pod reach routed backends on their ports, the manager and DNS, and nothing else", func(ctx SpecContext) {
		namespace, other := newNamespace(ctx), newNamespace(ctx)
		host := namespace + ".example.com"
		for _, app := range []string{"routed", "later", "never"} {
			backend(ctx, namespace, app, 1)
		}
		backend(ctx, other, "abroad", 1)
		gw := newGateway(ctx, namespace, "own")
		create(ctx, harness.Route(namespace, "routed", host, "routed", gw.parent()))
		Eventually(status(gw.address, host, "/")).WithTimeout(time.Minute).Should(Equal(200))

		var manager corev1.PodList
		Expect(k8s.List(ctx, &manager, client.InNamespace(managers.Namespace), client.MatchingLabels{"app.kubernetes.io/name": managers.Name})).To(Succeed())
		Expect(manager.Items).NotTo(BeEmpty())
		var dns corev1.Service
		Expect(k8s.Get(ctx, client.ObjectKey{Namespace: "kube-system", Name: "kube-dns"}, &dns)).To(Succeed())

		routed, later := podAddress(ctx, namespace, "routed")+":8080", podAddress(ctx, namespace, "later")+":8080"
		never, abroad := podAddress(ctx, namespace, "never")+":8080", podAddress(ctx, other, "abroad")+":8080"
		// The backend listens on a second port, which no Service names.
		unrouted := podAddress(ctx, namespace, "routed") + ":8081"
		xds, probes := manager.Items[0].Status.PodIP+":18000", manager.Items[0].Status.PodIP+":8081"
		d := dialFrom(ctx, gw.pods(ctx)[0], routed, later, never, abroad, unrouted, xds, probes, dns.Spec.ClusterIP+":53", "10.96.0.1:443")
		now := time.Now()
		for _, target := range []string{routed, xds, dns.Spec.ClusterIP + ":53"} {
			Eventually(d.reaches(target, now)).Should(BeTrue(), target)
		}
		for _, target := range []string{later, never, abroad, unrouted, probes, "10.96.0.1:443"} {
			Eventually(d.reaches(target, now)).Should(BeFalse(), target)
		}

		By("following a new route before its first request")
		create(ctx, harness.Route(namespace, "later", "later."+host, "later", gw.parent()))
		Eventually(func() (int, error) {
			code, err := status(gw.address, "later."+host, "/")()
			if err != nil || code != 200 && code != 404 {
				return code, StopTrying(fmt.Sprintf("answered %d on the way: %v", code, err))
			}
			return code, nil
		}).WithTimeout(seconds).WithPolling(5 * time.Millisecond).Should(Equal(200))
		Eventually(d.reaches(later, time.Now())).Should(BeTrue())
		Expect(d.reaches(never, now)()).To(BeFalse())

		By("following a route that goes")
		Expect(k8s.Delete(ctx, &v1alpha1.ServiceRoute{Namespace: namespace, Name: "later"})).To(Succeed())
		gone := time.Now()
		Eventually(func() (bool, error) { return d.reaches(later, gone)() }).WithTimeout(seconds).Should(BeFalse())
		Expect(d.reaches(routed, gone)()).To(BeTrue())
		AddReportEntry("policy followed the end of its route after", time.Since(gone).String())
	}, SpecTimeout(4*time.Minute))

	It("have a backend that opted in answer the gateway and nobody else", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		host := namespace + ".example.com"
		backend(ctx, namespace, "app", 1)
		gw := newGateway(ctx, namespace, "own")
		create(ctx, harness.Route(namespace, "app", host, "app", gw.parent()))
		Eventually(status(gw.address, host, "/")).WithTimeout(time.Minute).Should(Equal(200))
		target := podAddress(ctx, namespace, "app") + ":8080"
		stranger := dialAs(ctx, namespace, "stranger", target)
		Eventually(stranger.reaches(target, time.Now())).Should(BeTrue())

		load := startTraffic(gw.address, host, 50, 10, nil)
		defer load.cancel()
		kubectl(ctx, "label", "service", "app", "--namespace", namespace, v1alpha1.IsolationLabel+"="+v1alpha1.IsolationGateway)
		Eventually(func() (bool, error) { return stranger.reaches(target, time.Now().Add(-2*time.Second))() }).WithTimeout(seconds).Should(BeFalse())

		By("letting a second gateway in as soon as it has a route")
		second := newGateway(ctx, namespace, "second")
		create(ctx, harness.Route(namespace, "second", host, "app", second.parent()))
		Eventually(status(second.address, host, "/")).WithTimeout(time.Minute).Should(Equal(200))
		Expect(stranger.reaches(target, time.Now().Add(-5*time.Second))()).To(BeFalse())

		By("opening up when the backend opts out")
		kubectl(ctx, "label", "service", "app", "--namespace", namespace, v1alpha1.IsolationLabel+"-")
		Eventually(func() (bool, error) { return stranger.reaches(target, time.Now().Add(-2*time.Second))() }).WithTimeout(seconds).Should(BeTrue())
		got := load.stop()
		Expect(got.Failed).To(BeZero(), got.String())
	}, SpecTimeout(4*time.Minute))

	It("are found to be enforced by this cluster, where a gateway is asked to look", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		gw := newGateway(ctx, namespace, "own", func(config *v1alpha1.GatewayConfigSpec) {
			config.NetworkPolicy = &v1alpha1.NetworkPolicy{Verify: new(true)}
		})
		Eventually(gatewayCondition(ctx, gw.ObjectKey, v1alpha1.ConditionNetworkPolicyEnforced)).WithTimeout(2 * time.Minute).Should(HavePrefix("True"))
	}, SpecTimeout(4*time.Minute))
})
