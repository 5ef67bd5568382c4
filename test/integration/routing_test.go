package integration_test

import (
	"fmt"
	"net/http"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"k8s.io/apimachinery/pkg/util/intstr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/test/harness"
)

var _ = Describe("A ServiceRoute", Label("routing"), func() {
	var namespace, host string
	var parent gatewayv1.ParentReference
	BeforeEach(func(ctx SpecContext) {
		namespace = newNamespace(ctx)
		host = hostOf(namespace)
		parent = harness.Parent("default", "main")
	})

	service := func(ctx SpecContext, name string, handler http.Handler) *harness.Backend {
		GinkgoHelper()
		started := backend(name, handler)
		create(ctx, harness.Service(namespace, name), harness.Endpoints(namespace, name, started))
		return started
	}
	path := func(kind v1alpha1.PathMatchType, value string) []v1alpha1.RouteMatch {
		return []v1alpha1.RouteMatch{{Path: &v1alpha1.PathMatch{Type: kind, Value: value}}}
	}
	to := func(names ...string) []v1alpha1.Backend {
		var list []v1alpha1.Backend
		for _, name := range names {
			list = append(list, v1alpha1.Backend{Name: gatewayv1.ObjectName(name), Port: intstr.FromString("http")})
		}
		return list
	}

	It("sends requests to the rule that matches best, whatever the order of rules", func(ctx SpecContext) {
		for _, name := range []string{"root", "prefix", "longer", "exact", "header"} {
			service(ctx, name, nil)
		}
		route := harness.Route(namespace, "best", host, "root", parent)
		route.Spec.Rules = []v1alpha1.ServiceRouteRule{
			{Name: "root", Backends: to("root")},
			{Name: "prefix", Matches: path(v1alpha1.PathMatchPrefix, "/api"), Backends: to("prefix")},
			{Name: "longer", Matches: path(v1alpha1.PathMatchPrefix, "/api/users/"), Backends: to("longer")},
			{Name: "exact", Matches: path(v1alpha1.PathMatchExact, "/api/users"), Backends: to("exact")},
			{Name: "header", Backends: to("header"), Matches: []v1alpha1.RouteMatch{{
				Path:    &v1alpha1.PathMatch{Type: v1alpha1.PathMatchPrefix, Value: "/api"},
				Headers: []v1alpha1.HeaderMatch{{Name: "X-Canary", Value: "yes"}},
			}}},
		}
		create(ctx, route)
		Eventually(status(host, "/")).Should(Equal(200))

		for _, request := range []struct {
			path, want string
			headers    []string
		}{
			{"/", "root", nil},
			{"/apis", "root", nil}, // a prefix matches whole path elements
			{"/api", "prefix", nil},
			{"/api/orders?x=/api/users", "prefix", nil},
			{"/api/users/7", "longer", nil},
			{"/api/users", "exact", nil},
			{"/api/orders", "header", []string{"x-canary", "yes"}},
			{"/api/orders", "prefix", []string{"x-canary", "no"}},
			{"/api/users/7", "longer", []string{"x-canary", "yes"}}, // the path counts first
		} {
			got, err := get(port, host, request.path, request.headers...)
			Expect(err).NotTo(HaveOccurred())
			Expect(got.Backend).To(Equal(request.want), "%s %v", request.path, request.headers)
		}
		got, err := get(port, host+":8888", "/api")
		Expect(err).NotTo(HaveOccurred())
		Expect(got.Backend).To(Equal("prefix"), "a port in the Host header makes no difference")
		Expect(status("other."+host, "/")()).To(Equal(404))
	})

	It("that comes together with its Service answers 200 from the first answer on", func(ctx SpecContext) {
		started := backend("together", nil)
		for i := range 20 {
			name := fmt.Sprintf("together-%d", i)
			create(ctx, harness.Service(namespace, name), harness.Endpoints(namespace, name, started),
				harness.Route(namespace, name, name+"."+host, name, parent))
			Eventually(func() (int, error) {
				code, err := status(name+"."+host, "/")()
				if code != 200 && code != 404 {
					return code, StopTrying(fmt.Sprintf("answered %d on the way", code))
				}
				return code, err
			}).WithPolling(time.Millisecond).Should(Equal(200))
		}
	})

	It("splits requests by weight", func(ctx SpecContext) {
		service(ctx, "stable", nil)
		service(ctx, "canary", nil)
		service(ctx, "off", nil)
		route := harness.Route(namespace, "split", host, "stable", parent)
		split := to("stable", "canary", "off")
		split[0].Weight, split[1].Weight, split[2].Weight = new(int32(9)), new(int32(1)), new(int32(0))
		route.Spec.Rules[0].Backends = split
		create(ctx, route)
		Eventually(status(host, "/")).Should(Equal(200))

		counts := map[string]int{}
		const requests = 1000
		for range requests {
			got, err := get(port, host, "/")
			Expect(err).NotTo(HaveOccurred())
			counts[got.Backend]++
		}
		// 100 expected; below 55 or above 145 once in a million runs.
		Expect(counts["canary"]).To(BeNumerically("~", requests/10, 45))
		Expect(counts["off"]).To(BeZero())
	})

	It("rewrites the prefix that matched", func(ctx SpecContext) {
		service(ctx, "echo", nil)
		route := harness.Route(namespace, "rewrite", host, "echo", parent)
		route.Spec.Rules = []v1alpha1.ServiceRouteRule{
			{Name: "away", Matches: path(v1alpha1.PathMatchPrefix, "/api/prometheus"), Rewrite: &v1alpha1.Rewrite{PathPrefix: new("/")}, Backends: to("echo")},
			{Name: "other", Matches: path(v1alpha1.PathMatchPrefix, "/old"), Rewrite: &v1alpha1.Rewrite{PathPrefix: new("/new")}, Backends: to("echo")},
		}
		create(ctx, route)
		Eventually(status(host, "/old")).Should(Equal(200))
		for path, seen := range map[string]string{
			"/api/prometheus":               "GET /",
			"/api/prometheus/":              "GET /",
			"/api/prometheus/-/healthy":     "GET /-/healthy",
			"/api/prometheus/query?x=1&y=2": "GET /query?x=1&y=2",
			"/old":                          "GET /new",
			"/old/x?y":                      "GET /new/x?y",
		} {
			got, err := get(port, host, path)
			Expect(err).NotTo(HaveOccurred())
			Expect(got.Body).To(Equal(seen), path)
		}
	})

	It("leaves a regular expression out that is none, says so, and takes it in when it is mended", func(ctx SpecContext) {
		service(ctx, "rest", nil)
		service(ctx, "users", nil)
		route := harness.Route(namespace, "regex", host, "rest", parent)
		route.Spec.Rules = append(route.Spec.Rules, v1alpha1.ServiceRouteRule{
			Name: "users", Matches: path(v1alpha1.PathMatchRegularExpression, "/users/([0-9]+"), Backends: to("users"),
		})
		create(ctx, route)
		Eventually(status(host, "/users/7")).Should(Equal(200))
		Eventually(routeCondition(ctx, route, v1alpha1.ConditionReady)).Should(
			SatisfyAll(HavePrefix("False InvalidRegularExpression:"), ContainSubstring("missing closing )")))
		backendOf := func(path string) func() (string, error) {
			return func() (string, error) {
				got, err := get(port, host, path)
				return got.Backend, err
			}
		}
		Expect(backendOf("/users/7")()).To(Equal("rest"))

		change(ctx, route, func(r *v1alpha1.ServiceRoute) { r.Spec.Rules[1].Matches[0].Path.Value = "/users/([0-9]+)" })
		Eventually(backendOf("/users/7")).Should(Equal("users"))
		Expect(backendOf("/users/x")()).To(Equal("rest"))
		Eventually(routeCondition(ctx, route, v1alpha1.ConditionReady)).Should(HavePrefix("True Ready:"))
	})

	It("sends copies to a mirror, and needs none to be there", func(ctx SpecContext) {
		service(ctx, "app", nil)
		route := harness.Route(namespace, "mirror", host, "app", parent)
		route.Spec.Rules[0].Mirrors = []v1alpha1.Mirror{{Name: "shadow", Port: intstr.FromString("http")}}
		create(ctx, route)
		Eventually(status(host, "/")).Should(Equal(200))
		Eventually(routeCondition(ctx, route, "ResolvedRefs")).Should(
			SatisfyAll(HavePrefix("False BackendNotFound:"), ContainSubstring("nothing is mirrored to it")))

		shadow := service(ctx, "shadow", nil)
		Eventually(func() (int64, error) {
			got, err := get(port, host, "/")
			if err == nil && got.Backend != "app" {
				return 0, StopTrying("the mirror answered")
			}
			return shadow.Requests.Load(), err
		}).Should(BeNumerically(">", 0))
		Eventually(routeCondition(ctx, route, v1alpha1.ConditionReady)).Should(HavePrefix("True Ready:"))
	})

	It("answers 504 when the time for a request is over, and only then", func(ctx SpecContext) {
		release := make(chan struct{})
		service(ctx, "slow", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				select {
				case <-release:
				case <-r.Context().Done():
				}
			}
		}))
		DeferCleanup(func() { close(release) })
		route := harness.Route(namespace, "timeout", host, "slow", parent)
		route.Spec.Rules[0].Timeouts = &v1alpha1.Timeouts{Request: new(gatewayv1.Duration("300ms"))}
		create(ctx, route)
		Eventually(status(host, "/")).Should(Equal(200))
		started := time.Now()
		Expect(status(host, "/slow")()).To(Equal(504))
		Expect(time.Since(started)).To(BeNumerically("~", 300*time.Millisecond, 250*time.Millisecond))

		By("not letting clients shorten it with Envoy's own headers, private addresses or not")
		started = time.Now()
		Expect(status(host, "/slow", "x-envoy-upstream-rq-timeout-ms", "1")()).To(Equal(504))
		Expect(time.Since(started)).To(BeNumerically(">", 200*time.Millisecond))
	})

	It("answers by itself, and shows the connection counters as nginx does", func(ctx SpecContext) {
		route := harness.Route(namespace, "direct", host, "none", parent)
		route.Spec.Rules = []v1alpha1.ServiceRouteRule{
			{Name: "health", Matches: path(v1alpha1.PathMatchExact, "/health"), DirectResponse: &v1alpha1.DirectResponse{
				Type: v1alpha1.DirectResponseFixed, Body: new("healthy\n"),
			}},
			{Name: "teapot", Matches: path(v1alpha1.PathMatchExact, "/teapot"), DirectResponse: &v1alpha1.DirectResponse{
				Type: v1alpha1.DirectResponseFixed, Status: new(int32(418)), Body: new(`{"short":"stout"}`), ContentType: new("application/json"),
			}},
			{Name: "nginx-status", Matches: path(v1alpha1.PathMatchExact, "/nginx_status"), DirectResponse: &v1alpha1.DirectResponse{
				Type: v1alpha1.DirectResponseStubStatus,
			}},
		}
		create(ctx, route)
		Eventually(status(host, "/health")).Should(Equal(200))
		got, err := get(port, host, "/health")
		Expect(err).NotTo(HaveOccurred())
		Expect(got.Body).To(Equal("healthy\n"))
		got, err = get(port, host, "/teapot")
		Expect(err).NotTo(HaveOccurred())
		Expect(got.Status).To(Equal(418))
		Expect(got.Header.Get("Content-Type")).To(Equal("application/json"))
		Expect(got.Body).To(Equal(`{"short":"stout"}`))

		// The expression of scrapers such as nginx-prometheus-exporter.
		Eventually(func() (string, error) {
			got, err := get(port, host, "/nginx_status")
			return got.Body, err
		}).Should(MatchRegexp(`^Active connections: [1-9]\d* \nserver accepts handled requests\n [1-9]\d* [1-9]\d* [1-9]\d* \nReading: \d+ Writing: [1-9]\d* Waiting: \d+ \n$`))
	})

	It("needs no parentRefs where a Gateway is marked as default, and prefers that of its namespace", func(ctx SpecContext) {
		service(ctx, "anywhere", nil)
		route := harness.Route(namespace, "default", host, "anywhere")
		create(ctx, route)
		Eventually(routeCondition(ctx, route, v1alpha1.ConditionAccepted)).Should(
			SatisfyAll(HavePrefix("False NoDefaultGateway:"), ContainSubstring("label")))

		main := harness.Gateway("default", "main", class, port)
		change(ctx, main, func(gw *gatewayv1.Gateway) { gw.Labels = map[string]string{v1alpha1.DefaultGatewayLabel: ""} })
		DeferCleanup(func(ctx SpecContext) {
			change(ctx, main, func(gw *gatewayv1.Gateway) { gw.Labels = nil })
		})
		Eventually(status(host, "/")).Should(Equal(200))
		Eventually(routeCondition(ctx, route, v1alpha1.ConditionReady)).Should(HavePrefix("True Ready:"))

		own := harness.Gateway(namespace, "own", class, port+1)
		own.Labels = map[string]string{v1alpha1.DefaultGatewayLabel: "true"}
		create(ctx, own)
		Eventually(routeCondition(ctx, route, v1alpha1.ConditionAccepted)).Should(ContainSubstring(namespace + "/own"))
		Eventually(status(host, "/")).Should(Equal(404))
	})

	It("reaches Services of other namespaces where a ReferenceGrant lets it", func(ctx SpecContext) {
		other := newNamespace(ctx)
		far := backend("far", nil)
		create(ctx, harness.Service(other, "far"), harness.Endpoints(other, "far", far))
		route := harness.Route(namespace, "far", host, "far", parent)
		route.Spec.Rules[0].Backends[0].Namespace = new(gatewayv1.Namespace(other))
		create(ctx, route)
		Eventually(routeCondition(ctx, route, "ResolvedRefs")).Should(
			SatisfyAll(HavePrefix("False RefNotPermitted:"), ContainSubstring("ReferenceGrant")))
		Eventually(status(host, "/")).Should(Equal(500))

		grant := &gatewayv1.ReferenceGrant{Spec: gatewayv1.ReferenceGrantSpec{
			From: []gatewayv1.ReferenceGrantFrom{{Group: "meshroute.io", Kind: "ServiceRoute", Namespace: gatewayv1.Namespace(namespace)}},
			To:   []gatewayv1.ReferenceGrantTo{{Kind: "Service"}},
		}}
		grant.Namespace, grant.Name = other, "let"
		create(ctx, grant)
		Eventually(status(host, "/")).Should(Equal(200))
		Expect(cluster.Client.Delete(ctx, grant)).To(Succeed())
		Eventually(status(host, "/")).Should(Equal(500))
	})
})
