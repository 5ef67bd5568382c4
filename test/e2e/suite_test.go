// Package e2e_test uses the product as its users do, from outside, in a real
// cluster: what they apply, what they see, and what becomes of their requests
// while everything around them comes and goes.
//
// hack/e2e.sh makes the cluster, or takes the one that KUBECONFIG names.
package e2e_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"meshroute.io/meshroute/test/harness"
)

func TestE2E(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "E2E")
}

const (
	// class is the GatewayClass that `make deploy` installs.
	class = "meshroute"
	// suiteLabel marks the namespaces of this suite.
	suiteLabel = "meshroute.io/e2e"
)

var (
	k8s  client.WithWatch
	root string

	kubectlPath      = environment("KUBECTL", "kubectl")
	containerTool    = environment("CONTAINER_TOOL", "docker")
	image            = environment("IMG", "meshroute:latest")
	backendImage     = environment("E2E_BACKEND_IMG", "meshroute-backend:dev")
	previousImage    = os.Getenv("E2E_PREVIOUS_IMG")
	previousCheckout = os.Getenv("E2E_PREVIOUS")
	artefacts        = environment("E2E_ARTEFACTS", filepath.Join(os.TempDir(), "meshroute-e2e"))

	// controlPlane and worker are nodes; a cluster that is not kind's may have
	// only one.
	controlPlane, worker string

	specNamespaces []string
)

var _ = BeforeSuite(func(ctx SpecContext) {
	SetDefaultEventuallyTimeout(30 * time.Second)
	SetDefaultEventuallyPollingInterval(50 * time.Millisecond)
	EnforceDefaultTimeoutsWhenUsingContexts()
	var err error
	root, err = harness.Root()
	Expect(err).NotTo(HaveOccurred())
	Expect(os.MkdirAll(artefacts, 0o755)).To(Succeed())

	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(clientcmd.NewDefaultClientConfigLoadingRules(), nil).ClientConfig()
	Expect(err).NotTo(HaveOccurred(), "no cluster: run `make e2e`, or set KUBECONFIG")
	config.QPS = -1
	scheme, err := harness.Scheme()
	Expect(err).NotTo(HaveOccurred())
	k8s, err = client.NewWithWatch(config, client.Options{Scheme: scheme})
	Expect(err).NotTo(HaveOccurred())

	var nodes corev1.NodeList
	Expect(k8s.List(ctx, &nodes)).To(Succeed())
	for _, node := range nodes.Items {
		if _, isControlPlane := node.Labels["node-role.kubernetes.io/control-plane"]; isControlPlane {
			controlPlane = node.Name
		} else {
			worker = node.Name
		}
	}
	if controlPlane == "" {
		controlPlane = worker
	}
}, NodeTimeout(time.Minute))

var _ = BeforeEach(func() { specNamespaces = nil })

// What a person would look at first is kept of every failure.
var _ = JustAfterEach(func(ctx SpecContext) {
	if !CurrentSpecReport().Failed() {
		return
	}
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, CurrentSpecReport().FullText())
	folder := filepath.Join(artefacts, fmt.Sprintf("%.100s", name))
	keep(ctx, folder, append([]string{harness.SystemNamespace}, specNamespaces...))
	AddReportEntry("artefacts", folder)
}, NodeTimeout(2*time.Minute))

// keep writes down objects, events, logs and what Envoys have.
func keep(ctx context.Context, folder string, namespaces []string) {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		GinkgoWriter.Println(err)
		return
	}
	write := func(name string, arguments ...string) {
		output, err := tryKubectl(ctx, "", arguments...)
		if err != nil {
			output += "\n" + err.Error()
		}
		if err := os.WriteFile(filepath.Join(folder, name), []byte(output), 0o600); err != nil {
			GinkgoWriter.Println(err)
		}
	}
	write("nodes.txt", "get", "nodes", "--output", "wide")
	write("mesh.yaml", "get", "mesh,gateways,gatewayclasses,networkpolicies", "--all-namespaces", "--output", "yaml")
	for _, namespace := range namespaces {
		in := []string{"--namespace", namespace}
		write(namespace+"-objects.txt", append([]string{"get", "all,networkpolicies,pdb,hpa,endpointslices", "--output", "wide"}, in...)...)
		write(namespace+"-events.txt", append([]string{"get", "events", "--sort-by", ".lastTimestamp"}, in...)...)
		write(namespace+"-pods.txt", append([]string{"describe", "pods"}, in...)...)
		var pods corev1.PodList
		if err := k8s.List(ctx, &pods, client.InNamespace(namespace)); err != nil {
			GinkgoWriter.Println(err)
			continue
		}
		for _, pod := range pods.Items {
			for _, container := range pod.Spec.Containers {
				log := append([]string{"logs", pod.Name, "--container", container.Name, "--tail", "2000"}, in...)
				write(pod.Name+"-"+container.Name+".log", log...)
				write(pod.Name+"-"+container.Name+"-previous.log", append(log, "--previous")...)
				if container.Name == "agent" {
					write(pod.Name+"-envoy.json", append([]string{"exec", pod.Name, "--container", "agent", "--", "/gateway-agent", "admin", "/config_dump?include_eds"}, in[0], in[1])...)
				}
			}
		}
	}
}
