// Package harness runs the product for tests and benchmarks as it runs in a
// cluster, but on one machine: a real API server, the real manager as a process,
// and gateway pods as the real Envoy and agent, started from the Deployment that
// the manager has applied. Backends listen in a network namespace of their own,
// because an API server accepts no loopback address as an endpoint.
package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
)

// SystemNamespace is the one that the manager runs in.
const SystemNamespace = "meshroute-system"

// Cluster is a real API server with this repository's CRDs.
type Cluster struct {
	Config     *rest.Config
	Client     client.WithWatch
	Kubeconfig string
	// AuditLog holds a line for each request to the API server.
	AuditLog string
	// Assets is the folder of kube-apiserver, etcd and kubectl.
	Assets string

	environment *envtest.Environment
}

// auditPolicy logs every request once it was answered, without bodies.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
`

// StartCluster starts an API server with this repository's CRDs and those of
// Gateway API; folder is for its files.
func StartCluster(folder string) (*Cluster, error) {
	root, err := Root()
	if err != nil {
		return nil, err
	}
	gatewayAPI, err := GatewayAPI("")
	if err != nil {
		return nil, err
	}
	return StartBareCluster(folder, filepath.Join(root, "config", "crd", "bases"), gatewayAPI)
}

// GatewayAPI is the folder of the CRDs of a version of Gateway API, by default
// the one that this repository is built with.
func GatewayAPI(version string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	const module = "sigs.k8s.io/gateway-api"
	var folder string
	if version == "" {
		folder, err = moduleFolder(root, module)
	} else {
		folder, err = downloaded(module + "@" + version)
	}
	return filepath.Join(folder, "config", "crd", "standard"), err
}

// downloaded is the folder of a version of a module that this one may not use.
func downloaded(module string) (string, error) {
	output, err := exec.Command("go", "mod", "download", "-json", module).Output()
	if err != nil {
		return "", fmt.Errorf("download %s: %w", module, err)
	}
	var found struct{ Dir string }
	err = json.Unmarshal(output, &found)
	return found.Dir, err
}

// StartBareCluster starts an API server with the CRDs of some folders.
func StartBareCluster(folder string, crds ...string) (*Cluster, error) {
	assets := os.Getenv("KUBEBUILDER_ASSETS")
	if assets == "" {
		return nil, errors.New("KUBEBUILDER_ASSETS is not set: run `make integration`, or set it to what hack/envtest.sh prints")
	}
	var err error
	policy := filepath.Join(folder, "audit-policy.yaml")
	if err := os.WriteFile(policy, []byte(auditPolicy), 0o600); err != nil {
		return nil, err
	}
	c := &Cluster{
		Assets:   assets,
		AuditLog: filepath.Join(folder, "audit.log"),
		environment: &envtest.Environment{
			BinaryAssetsDirectory: assets,
			CRDDirectoryPaths:     crds,
			ErrorIfCRDPathMissing: true,
			// Two busy cores may take their time.
			ControlPlaneStartTimeout: 2 * time.Minute,
			ControlPlaneStopTimeout:  time.Minute,
		},
	}
	c.environment.ControlPlane.GetAPIServer().Configure().
		Set("service-cluster-ip-range", "10.0.0.0/16"). // thousands of Services
		Set("audit-policy-file", policy).
		Set("audit-log-path", c.AuditLog)
	if c.Config, err = c.environment.Start(); err != nil {
		_ = c.environment.Stop()
		return nil, fmt.Errorf("start the API server: %w", err)
	}
	c.Config.QPS = -1
	scheme, err := Scheme()
	if err != nil {
		return nil, err
	}
	if c.Client, err = client.NewWithWatch(c.Config, client.Options{Scheme: scheme}); err != nil {
		return nil, err
	}
	admin, err := c.environment.AddUser(envtest.User{Name: "admin", Groups: []string{"system:masters"}}, nil)
	if err != nil {
		return nil, err
	}
	kubeconfig, err := admin.KubeConfig()
	if err != nil {
		return nil, err
	}
	c.Kubeconfig = filepath.Join(folder, "kubeconfig")
	return c, os.WriteFile(c.Kubeconfig, kubeconfig, 0o600)
}

// Stop ends the API server.
func (c *Cluster) Stop() error { return c.environment.Stop() }

// Kubectl runs kubectl against the cluster and returns what it printed.
func (c *Cluster) Kubectl(ctx context.Context, arguments ...string) (string, error) {
	command := exec.CommandContext(ctx, filepath.Join(c.Assets, "kubectl"), append([]string{"--kubeconfig", c.Kubeconfig}, arguments...)...)
	output, err := command.CombinedOutput()
	if err != nil {
		return string(output), fmt.Errorf("kubectl %s: %w: %s", strings.Join(arguments, " "), err, output)
	}
	return string(output), nil
}

// Scheme knows every kind that tests use.
func Scheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	return scheme, errors.Join(clientgoscheme.AddToScheme(scheme), gatewayv1.Install(scheme), v1alpha1.AddToScheme(scheme))
}

// Root is the folder of the repository.
func Root() (string, error) {
	output, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("find the repository: %w", err)
	}
	return strings.TrimSpace(string(output)), nil
}

func moduleFolder(root, module string) (string, error) {
	command := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module)
	command.Dir = root
	output, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("find module %s: %w", module, err)
	}
	return strings.TrimSpace(string(output)), nil
}

// Binaries are the programs under test.
type Binaries struct{ Manager, Agent, Envoy string }

// Build builds them into folder.
func Build(folder string) (Binaries, error) {
	root, err := Root()
	if err != nil {
		return Binaries{}, err
	}
	envoy := os.Getenv("ENVOY_BIN")
	if envoy == "" {
		return Binaries{}, errors.New("ENVOY_BIN is not set: run `make integration`, or set it to what hack/envoy.sh prints")
	}
	command := exec.Command("go", "build", "-o", folder+"/", "./cmd/manager", "./cmd/gateway-agent")
	command.Dir = root
	if output, err := command.CombinedOutput(); err != nil {
		return Binaries{}, fmt.Errorf("build: %w: %s", err, output)
	}
	return Binaries{Manager: filepath.Join(folder, "manager"), Agent: filepath.Join(folder, "gateway-agent"), Envoy: envoy}, nil
}

// FreePort returns a TCP port that nobody listens on.
func FreePort() (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().(*net.TCPAddr).Port, nil
}
