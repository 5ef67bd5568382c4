package integration_test

import (
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/test/harness"
)

// With a cluster of its own, because what the operator needs is missing there.
var _ = Describe("The operator in a cluster", Label("versions"), Ordered, func() {
	var (
		bare    *harness.Cluster
		process *harness.Operator
		files   string
	)
	BeforeAll(func(ctx SpecContext) {
		var err error
		files, err = os.MkdirTemp("", "mr")
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(os.RemoveAll, files)
		bare, err = harness.StartBareCluster(files)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(bare.Stop)
		process, err = bare.StartOperator(ctx, binaries, files)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(func() { process.Stop() })
	}, NodeTimeout(2*time.Minute))
	AfterEach(func() {
		if CurrentSpecReport().Failed() {
			AddReportEntry("its manager", tail(process.Log()))
		}
	})

	probe := func(path string) func() (string, error) {
		return func() (string, error) {
			response, err := http.Get(process.Probes + path)
			if err != nil {
				return "", err
			}
			defer func() { _ = response.Body.Close() }()
			body, err := io.ReadAll(response.Body)
			return response.Status + ": " + string(body), err
		}
	}
	install := func(ctx SpecContext, folder string) {
		GinkgoHelper()
		found, err := filepath.Glob(filepath.Join(folder, "*.yaml"))
		Expect(err).NotTo(HaveOccurred())
		arguments := []string{"apply", "--server-side", "--force-conflicts"}
		for _, file := range found {
			if !strings.Contains(file, "_vap_") { // guards against what is done here
				arguments = append(arguments, "-f", file)
			}
		}
		_, err = bare.Kubectl(ctx, arguments...)
		Expect(err).NotTo(HaveOccurred())
	}
	gatewayAPI := func(ctx SpecContext, version string) {
		GinkgoHelper()
		folder, err := harness.GatewayAPI(version)
		Expect(err).NotTo(HaveOccurred())
		install(ctx, folder)
	}
	// in reads what kubectl prints.
	in := func(ctx SpecContext, arguments ...string) func() (string, error) {
		return func() (string, error) { return bare.Kubectl(ctx, arguments...) }
	}
	supported := `-ojsonpath={.status.conditions[?(@.type=="Accepted")].status}, {.status.conditions[?(@.type=="SupportedVersion")].status}: {.status.conditions[?(@.type=="SupportedVersion")].message}`
	resolved := `-ojsonpath={.status.parents[0].conditions[?(@.type=="ResolvedRefs")].status} {.status.parents[0].conditions[?(@.type=="ResolvedRefs")].reason}`

	It("without Gateway API waits for it, alive, and says what to do", func() {
		Eventually(probe("/readyz")).Should(SatisfyAll(HavePrefix("503"),
			ContainSubstring("the cluster lacks gatewayclasses.gateway.networking.k8s.io/v1, gateways.gateway.networking.k8s.io/v1"),
			ContainSubstring("install the CRDs of Gateway API"), ContainSubstring("install meshroute's CRDs (`make install`)")))
		Expect(probe("/healthz")()).To(HavePrefix("200"))
	})

	It("with an old Gateway API works as far as that goes, and says so", func(ctx SpecContext) {
		install(ctx, filepath.Join(root(), "config", "crd", "bases"))
		Eventually(probe("/readyz")).Should(SatisfyAll(ContainSubstring("Gateway API"), Not(ContainSubstring("make install"))))
		gatewayAPI(ctx, "v1.0.0")
		Eventually(probe("/readyz")).Should(HavePrefix("200"))
		for _, object := range []client.Object{
			harness.GatewayClass(class),
			&corev1.Namespace{Name: "shop"}, &corev1.Namespace{Name: "payments"},
			harness.Gateway("shop", "edge", class, 80),
			harness.Service("payments", "app"),
		} {
			Expect(bare.Client.Create(ctx, object)).To(Succeed())
		}
		Eventually(in(ctx, "get", "gatewayclass", class, supported)).Should(SatisfyAll(
			HavePrefix("True, False: Gateway API v1.0.0 is installed"), ContainSubstring("update its CRDs")))
		Eventually(in(ctx, "-n", "shop", "get", "gateway", "edge", `-ojsonpath={.status.conditions[?(@.type=="Accepted")].status}`)).Should(Equal("True"))

		By("leaving it as it is when meshroute is installed")
		script := exec.CommandContext(ctx, filepath.Join(root(), "hack", "gateway-api.sh"))
		script.Env = append(os.Environ(), "KUBECTL="+filepath.Join(bare.Assets, "kubectl"), "KUBECONFIG="+bare.Kubeconfig)
		said, err := script.CombinedOutput()
		Expect(err).NotTo(HaveOccurred(), "%s", said)
		Expect(string(said)).To(MatchRegexp("^Gateway API v1.0.0 is there, older than .*, and stays as it is: .*\n$"))

		// Of ReferenceGrants it knows only v1beta1.
		route := harness.Route("shop", "r", "a.example.com", "app", harness.Parent("shop", "edge"))
		route.Spec.Rules[0].Backends[0].Namespace = new(gatewayv1.Namespace("payments"))
		Expect(bare.Client.Create(ctx, route)).To(Succeed())
		Eventually(in(ctx, "-n", "shop", "get", "serviceroute", "r", resolved)).Should(Equal("False RefNotPermitted"))
		grant := manifest("payments", `{apiVersion: gateway.networking.k8s.io/v1beta1, kind: ReferenceGrant, metadata: {name: shop}, spec: {
			from: [{group: meshroute.io, kind: ServiceRoute, namespace: shop}], to: [{group: "", kind: Service}]}}`)
		Expect(bare.Client.Create(ctx, grant)).To(Succeed())
		Eventually(in(ctx, "-n", "shop", "get", "serviceroute", "r", resolved)).Should(HavePrefix("True"))
	})

	It("notices that Gateway API was updated", func(ctx SpecContext) {
		gatewayAPI(ctx, "")
		Eventually(in(ctx, "get", "gatewayclass", class, supported)).Should(HavePrefix("True, True: "))
	})

	It("serves single namespaces with permissions there alone, as config/namespaced has it", func(ctx SpecContext) {
		process.Stop()
		for _, name := range []string{"meshroute-manager", "meshroute-manager-certificates"} {
			Expect(bare.Client.Delete(ctx, &rbacv1.ClusterRoleBinding{Name: name})).To(Succeed())
		}
		var watch string
		for _, object := range kustomize(filepath.Join(root(), "config", "namespaced")) {
			switch object.GetKind() {
			case "ClusterRoleBinding":
				Expect(object.GetName()).To(Equal("meshroute-manager-cluster"))
			case "RoleBinding":
				Expect(client.IgnoreAlreadyExists(bare.Client.Create(ctx, object))).To(Succeed())
			case "Deployment":
				watch = argument(object, "--watch-namespaces=")
			}
		}
		Expect(watch).To(Equal("--watch-namespaces=meshroute-system,shop"))
		var err error
		process, err = bare.StartOperator(ctx, binaries, files, watch)
		Expect(err).NotTo(HaveOccurred())
		Eventually(probe("/readyz")).Should(HavePrefix("200"))

		Expect(bare.Client.Create(ctx, harness.Gateway("shop", "second", class, 81))).To(Succeed())
		Expect(bare.Client.Create(ctx, harness.Gateway("payments", "unserved", class, 82))).To(Succeed())
		Expect(bare.Client.Create(ctx, harness.Service("shop", "own"))).To(Succeed())
		Expect(bare.Client.Create(ctx, harness.Route("shop", "own", "b.example.com", "own", harness.Parent("shop", "second")))).To(Succeed())
		Eventually(in(ctx, "-n", "shop", "get", "serviceroute", "own", resolved)).Should(HavePrefix("True"))
		Eventually(in(ctx, "-n", "shop", "get", "deployments", "-oname")).Should(ContainSubstring("second-" + class))
		// The grant in payments can no longer be read.
		Eventually(in(ctx, "-n", "shop", "get", "serviceroute", "r", resolved)).Should(Equal("False RefNotPermitted"))
		Expect(in(ctx, "-n", "payments", "get", "deployments", "-oname")()).To(BeEmpty())
		Expect(process.Log()).NotTo(ContainSubstring("forbidden"))
		var meshRoutes v1alpha1.MeshRouteList
		Expect(bare.Client.List(ctx, &meshRoutes, client.InNamespace("shop"))).To(Succeed())
		Expect(meshRoutes.Items).NotTo(BeEmpty())
	})
})

// argument is an argument of a Deployment's first container, by how it begins.
func argument(deployment *unstructured.Unstructured, prefix string) string {
	GinkgoHelper()
	containers, _, err := unstructured.NestedSlice(deployment.Object, "spec", "template", "spec", "containers")
	Expect(err).NotTo(HaveOccurred())
	arguments, _, err := unstructured.NestedStringSlice(containers[0].(map[string]any), "args")
	Expect(err).NotTo(HaveOccurred())
	for _, argument := range arguments {
		if strings.HasPrefix(argument, prefix) {
			return argument
		}
	}
	return ""
}
