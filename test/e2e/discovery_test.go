package e2e_test

import (
	"slices"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"meshroute.io/meshroute/test/harness"
)

// Serial, because it measures.
var _ = Describe("A new pod of a backend", Label("discovery"), Serial, func() {
	It("gets its first request soon after it is Ready", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		host := namespace + ".example.com"
		deployment := backend(ctx, namespace, "app", 1)
		gw := newGateway(ctx, namespace, "own")
		create(ctx, harness.Route(namespace, "app", host, "app", gw.parent()))
		awaitRollout(ctx, client.ObjectKeyFromObject(deployment))
		Eventually(status(gw.address, host, "/")).WithTimeout(time.Minute).Should(Equal(200))

		var mu sync.Mutex
		readyAt, firstAt := map[string]time.Time{}, map[string]time.Time{}
		pods, err := k8s.Watch(ctx, &corev1.PodList{}, client.InNamespace(namespace), client.MatchingLabels{"app": "app"})
		Expect(err).NotTo(HaveOccurred())
		defer pods.Stop()
		go func() {
			for event := range pods.ResultChan() {
				pod, isPod := event.Object.(*corev1.Pod)
				if !isPod || event.Type == watch.Deleted || !ready(pod) {
					continue
				}
				mu.Lock()
				if _, known := readyAt[pod.Name]; !known {
					readyAt[pod.Name] = time.Now()
				}
				mu.Unlock()
			}
		}()
		load := startTraffic(gw.address, host, 200, 0, func(answered echo, at time.Time) {
			mu.Lock()
			defer mu.Unlock()
			if _, known := firstAt[answered.Pod]; !known {
				firstAt[answered.Pod] = at
			}
		})
		defer load.cancel()

		// Each time five pods join the one that is there.
		const more, times = 5, 4
		var delays []time.Duration
		for range times {
			awaitRollout(ctx, client.ObjectKeyFromObject(deployment))
			mu.Lock()
			clear(readyAt)
			mu.Unlock()
			kubectl(ctx, "scale", "deployment/app", "--namespace", namespace, "--replicas=6")
			Eventually(func() int {
				mu.Lock()
				defer mu.Unlock()
				seen := 0
				for name := range readyAt {
					if _, answered := firstAt[name]; answered {
						seen++
					}
				}
				return seen
			}).WithTimeout(2 * time.Minute).Should(BeNumerically(">=", more))
			mu.Lock()
			for name, at := range readyAt {
				delays = append(delays, max(0, firstAt[name].Sub(at)))
			}
			mu.Unlock()
			kubectl(ctx, "scale", "deployment/app", "--namespace", namespace, "--replicas=1")
		}
		got := load.stop()
		slices.Sort(delays)
		AddReportEntry("pod Ready → first request", map[string]any{
			"pods": len(delays), "p50": delays[len(delays)/2].String(), "p99": delays[len(delays)*99/100].String(),
		})
		AddReportEntry("requests meanwhile", got.String())
		Expect(got.Failed).To(BeZero(), got.String())
		Expect(delays[len(delays)*99/100]).To(BeNumerically("<", time.Second))
	}, SpecTimeout(8*time.Minute))
})
