package integration_test

import (
	"net/http"
	"sync/atomic"
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

func healthManifest(spec string) string {
	return "apiVersion: meshroute.io/v1alpha1\nkind: HealthPolicy\nmetadata: {name: h}\nspec: {" + spec + "}"
}

const someService = "targetRefs: [{group: '', kind: Service, name: web}]"

var _ = Describe("Admission of HealthPolicies", Label("api"), func() {
	DescribeTable("refuses, and says which field and why",
		func(ctx SpecContext, spec, message string) {
			err := cluster.Client.Create(ctx, manifest("default", healthManifest(spec)), client.DryRunAll)
			Expect(err).To(MatchError(ContainSubstring(message)))
		},
		Entry("no target", "targetRefs: []", "should have at least 1 items"),
		Entry("a route", "targetRefs: [{group: meshroute.io, kind: ServiceRoute, name: web}]", "attaches to a Service (group '') or to a Gateway"),
		Entry("a listener", "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge, sectionName: http}]", "sectionName is the name of a Service's port"),
		Entry("a target twice", "targetRefs: [{group: '', kind: Service, name: web}, {group: '', kind: Service, name: web}]", "each target can be named once"),
		Entry("an unknown type", someService+", type: ICMP", "Unsupported value"),
		Entry("a path of a TCP check", someService+", type: TCP, http: {path: /}", "only a check of type HTTP has it"),
		Entry("a gRPC service of an HTTP check", someService+", grpc: {service: a}", "only a check of type GRPC has it"),
		Entry("an interval of none", someService+", type: None, interval: 5s", "type: None makes no check"),
		Entry("no time between checks", someService+", interval: 500ms", "interval must be from 1s to 1h"),
		Entry("a timeout above its interval", someService+", interval: 2s, timeout: 3s", "timeout must not be above interval"),
		Entry("a timeout above the interval that counts when left out", someService+", timeout: 31s", "timeout must not be above interval"),
		Entry("no timeout at all", someService+", timeout: 0s", "timeout must be from 10ms to 1m"),
		Entry("a threshold of 0", someService+", unhealthyThreshold: 0", "spec.unhealthyThreshold"),
		Entry("a path without slash", someService+", http: {path: healthz}", "spec.http.path"),
		Entry("a path with a blank", someService+", http: {path: '/a b'}", "spec.http.path"),
		Entry("a host with a path", someService+", http: {host: a.example.com/x}", "spec.http.host"),
		Entry("a status that is none", someService+", http: {expectedStatuses: [{start: 99}]}", "start"),
		Entry("a range turned around", someService+", http: {expectedStatuses: [{start: 300, end: 200}]}", "start must not be above end"),
	)

	DescribeTable("takes",
		func(ctx SpecContext, spec string) {
			Expect(cluster.Client.Create(ctx, manifest("default", healthManifest(spec)), client.DryRunAll)).To(Succeed())
		},
		Entry("what has only a target", someService),
		Entry("a Service, a port of it and a Gateway", "targetRefs: [{group: '', kind: Service, name: web}, {group: '', kind: Service, name: web, sectionName: http}, {group: gateway.networking.k8s.io, kind: Gateway, name: edge}]"),
		Entry("all of HTTP", someService+", interval: 1s, timeout: 1s, healthyThreshold: 1, unhealthyThreshold: 10, http: {path: '/healthz?full', host: 'web.example.com:8080', expectedStatuses: [{start: 200, end: 299}, {start: 599}]}"),
		Entry("gRPC", someService+", type: GRPC, grpc: {service: greeter.v1.Greeter}"),
		Entry("TCP", someService+", type: TCP, interval: 1h, timeout: 1m"),
		Entry("none", someService+", type: None"),
	)
})

var _ = Describe("Health checks", Label("health"), func() {
	It("follow from the pods' readinessProbes, and from HealthPolicies where there are any", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		host := hostOf(namespace)
		var sick atomic.Bool
		sick.Store(true)
		var checks atomic.Int64
		one := backend("one", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/healthz" {
				return
			}
			checks.Add(1)
			if sick.Load() {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		}))
		two := backend("two", nil)
		slice := harness.Endpoints(namespace, "app", one, two)
		for i, name := range []string{"app-0", "app-1"} {
			create(ctx, &corev1.Pod{
				Namespace: namespace, Name: name, Labels: map[string]string{"app": "app"},
				Spec: corev1.PodSpec{Containers: []corev1.Container{{
					Name: "app", Image: "app",
					ReadinessProbe: &corev1.Probe{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(8080)}},
				}}},
			})
			slice.Endpoints[i].TargetRef = &corev1.ObjectReference{Kind: "Pod", Namespace: namespace, Name: name}
		}
		service := harness.Service(namespace, "app")
		service.Spec.Selector = map[string]string{"app": "app"}
		service.Spec.Ports[0].TargetPort = intstr.FromInt32(8080)
		route := harness.Route(namespace, "app", host, "app", harness.Parent("default", "main"))
		create(ctx, service, slice, route)
		healthCheck := func() (v1alpha1.MeshRouteHealthCheck, error) {
			status, err := meshRoute(ctx, route)()
			if err != nil || len(status.Backends) == 0 {
				return v1alpha1.MeshRouteHealthCheck{}, err
			}
			return status.Backends[0].HealthCheck, nil
		}
		Eventually(healthCheck).Should(SatisfyAll(
			HaveField("Kind", "Pod"), HaveField("Name", "app-0"), HaveField("Check", HavePrefix("GET /healthz of host app."+namespace+", "))))
		// Who fails gets no requests, and gets them again when it is well.
		Eventually(checks.Load).Should(BeNumerically(">", 0))
		asked := func() int64 {
			before := one.Requests.Load() - checks.Load()
			for range 20 {
				Expect(status(host, "/")()).To(Equal(200))
			}
			return one.Requests.Load() - checks.Load() - before
		}
		Eventually(asked).Should(BeZero())
		found := func() (v1alpha1.MeshRouteBackend, error) {
			status, err := meshRoute(ctx, route)()
			if err != nil || len(status.Backends) == 0 {
				return v1alpha1.MeshRouteBackend{}, err
			}
			return status.Backends[0], nil
		}
		failing := []v1alpha1.UnhealthyEndpoint{{Address: one.Address + ":8080", Pods: 1}}
		Eventually(found).Should(SatisfyAll(HaveField("HealthyEndpoints", HaveValue(Equal(int32(1)))), HaveField("UnhealthyEndpoints", failing)))
		Eventually(func() (string, error) {
			status, err := meshRoute(ctx, route)()
			return condition(status.Conditions, v1alpha1.ConditionReady), err
		}).Should(SatisfyAll(HavePrefix("True"), ContainSubstring("1 of 2 endpoints of Service "+namespace+"/app on port 80 fail their health check")))
		sick.Store(false)
		Eventually(asked).WithTimeout(20 * time.Second).Should(BeNumerically(">", 0))
		Eventually(found).Should(SatisfyAll(HaveField("HealthyEndpoints", HaveValue(Equal(int32(2)))), HaveField("UnhealthyEndpoints", BeEmpty())))

		policy := &v1alpha1.HealthPolicy{
			Namespace: namespace, Name: "none",
			Spec: v1alpha1.HealthPolicySpec{
				TargetRefs: []gatewayv1.LocalPolicyTargetReferenceWithSectionName{{
					Kind: "Service", Name: "app",
				}},
				Type: v1alpha1.HealthCheckNone,
			},
		}
		create(ctx, policy)
		Eventually(healthCheck).Should(Equal(v1alpha1.MeshRouteHealthCheck{Kind: "HealthPolicy", Name: "none", Message: "its type is None"}))
		Eventually(func() (string, error) {
			var now v1alpha1.HealthPolicy
			if err := cluster.Client.Get(ctx, client.ObjectKeyFromObject(policy), &now); err != nil || len(now.Status.Ancestors) == 0 {
				return "", err
			}
			return condition(now.Status.Ancestors[0].Conditions, v1alpha1.ConditionProgrammed), nil
		}).Should(HavePrefix("True"))
	})
})
