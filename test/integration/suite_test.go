// Package integration_test shows what users of meshroute notice, with a real
// API server, the real manager, the real agent and the real Envoy.
package integration_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/test/harness"
)

func TestIntegration(t *testing.T) {
	RegisterFailHandler(Fail)
	log.SetLogger(GinkgoLogr) // of envtest
	RunSpecs(t, "Integration")
}

var (
	cluster  *harness.Cluster
	backends *harness.Net
	binaries harness.Binaries
	operator *harness.Operator
	// pod is a pod of the Gateway default/main, which serves port.
	pod  *harness.Pod
	port int

	folder string
)

const class = "meshroute"

var _ = BeforeSuite(func(ctx SpecContext) {
	SetDefaultEventuallyTimeout(15 * time.Second)
	SetDefaultEventuallyPollingInterval(20 * time.Millisecond)
	var err error
	folder, err = os.MkdirTemp("", "mr")
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(os.RemoveAll, folder)

	binaries, err = harness.Build(folder)
	Expect(err).NotTo(HaveOccurred())
	backends, err = harness.NewNet()
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(backends.Close)
	cluster, err = harness.StartCluster(folder)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(cluster.Stop)
	operator, err = cluster.StartOperator(ctx, binaries, folder)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func() { operator.Stop() })
	up := false
	defer func() {
		if !up {
			AddReportEntry("manager", tail(operator.Log()))
		}
	}()

	port, err = harness.FreePort()
	Expect(err).NotTo(HaveOccurred())
	Expect(cluster.Client.Create(ctx, harness.GatewayClass(class))).To(Succeed())
	Expect(cluster.Client.Create(ctx, harness.Gateway("default", "main", class, port))).To(Succeed())
	pod, err = cluster.StartPod(ctx, binaries, folder, client.ObjectKey{Namespace: "default", Name: "main"}, class, "main-0")
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func() { pod.Stop() })
	Expect(harness.AwaitOK(ctx, pod.Readiness)).To(Succeed())
	up = true
}, NodeTimeout(2*time.Minute))

// On a failure the logs of all processes are part of the report.
var _ = AfterEach(func() {
	if CurrentSpecReport().Failed() {
		AddReportEntry("manager", tail(operator.Log()))
		AddReportEntry("agent", tail(pod.Agent.Log()))
		AddReportEntry("envoy", tail(pod.Envoy.Log()))
	}
})

func tail(log string) string {
	const most = 8000
	if len(log) > most {
		return "..." + log[len(log)-most:]
	}
	return log
}

// newNamespace makes a namespace for a spec, and removes what the spec leaves
// in it: an API server alone deletes no namespace.
func newNamespace(ctx context.Context) string {
	GinkgoHelper()
	namespace := &corev1.Namespace{GenerateName: "spec-"}
	Expect(cluster.Client.Create(ctx, namespace)).To(Succeed())
	DeferCleanup(func(ctx SpecContext) {
		in := client.InNamespace(namespace.Name)
		for _, object := range []client.Object{
			&v1alpha1.ServiceRoute{}, &gatewayv1.Gateway{}, &v1alpha1.GatewayConfig{}, &gatewayv1.ReferenceGrant{},
		} {
			Expect(cluster.Client.DeleteAllOf(ctx, object, in)).To(Succeed())
		}
	})
	return namespace.Name
}

func create(ctx context.Context, objects ...client.Object) {
	GinkgoHelper()
	for _, object := range objects {
		Expect(cluster.Client.Create(ctx, object)).To(Succeed())
	}
}

// change reads an object, changes it and writes it, again where somebody else
// was faster.
func change[T client.Object](ctx context.Context, object T, how func(T)) {
	GinkgoHelper()
	Eventually(func() error {
		if err := cluster.Client.Get(ctx, client.ObjectKeyFromObject(object), object); err != nil {
			return err
		}
		how(object)
		err := cluster.Client.Update(ctx, object)
		if err != nil && !apierrors.IsConflict(err) {
			return StopTrying("not a conflict").Wrap(err)
		}
		return err
	}).Should(Succeed())
}

// backend starts a backend in the backends' network for the time of a spec.
func backend(name string, handler http.Handler) *harness.Backend {
	GinkgoHelper()
	started, err := backends.Backend(name, handler)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(started.Close)
	return started
}

// answer is what a request got.
type answer struct {
	Status  int
	Backend string
	Body    string
	Header  http.Header
}

var noReuse = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// get asks the gateway on a port.
func get(on int, host, path string, headers ...string) (answer, error) {
	request, err := http.NewRequest(http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", on, path), nil)
	if err != nil {
		return answer{}, err
	}
	request.Host = host
	for i := 0; i+1 < len(headers); i += 2 {
		request.Header.Add(headers[i], headers[i+1])
	}
	response, err := noReuse.Do(request)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	return answer{response.StatusCode, response.Header.Get("X-Backend"), string(body), response.Header}, err
}

// status asks the gateway default/main and returns the status of its answer.
func status(host, path string, headers ...string) func() (int, error) {
	return func() (int, error) {
		a, err := get(port, host, path, headers...)
		return a.Status, err
	}
}

// condition returns "Status Reason: Message" of a condition.
func condition(conditions []metav1.Condition, kind string) string {
	for _, c := range conditions {
		if c.Type == kind {
			return fmt.Sprintf("%s %s: %s", c.Status, c.Reason, c.Message)
		}
	}
	return kind + " is missing"
}

// routeCondition returns a condition of a ServiceRoute's first parent, or Ready
// of the route itself.
func routeCondition(ctx context.Context, route *v1alpha1.ServiceRoute, kind string) func() (string, error) {
	return func() (string, error) {
		var now v1alpha1.ServiceRoute
		if err := cluster.Client.Get(ctx, client.ObjectKeyFromObject(route), &now); err != nil {
			return "", err
		}
		if kind == v1alpha1.ConditionReady {
			return condition(now.Status.Conditions, kind), nil
		}
		if len(now.Status.Parents) == 0 {
			return "no parents", nil
		}
		return condition(now.Status.Parents[0].Conditions, kind), nil
	}
}

// hostOf is a hostname that no other spec has.
func hostOf(namespace string) string { return strings.ReplaceAll(namespace, "_", "-") + ".example.com" }
