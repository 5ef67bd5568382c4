package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"meshroute.io/meshroute/internal/workload"
)

// Operator is the manager as a process.
type Operator struct {
	*Process
	// Probes is its base URL for /healthz and /readyz, Metrics the URL of its
	// metrics.
	Probes, Metrics string
	// Ports on which it serves agents: configuration, certificates.
	Ports []string
}

// StartOperator starts the manager against a cluster. It is the ServiceAccount
// that it is in a cluster, with the permissions of config/rbac and no others;
// where that ServiceAccount is there already, it keeps the permissions it has.
func (c *Cluster) StartOperator(ctx context.Context, binaries Binaries, folder string, flags ...string) (*Operator, error) {
	kubeconfig, err := c.prepare(ctx, folder)
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	operator, err := startManager(binaries, folder, "manager", kubeconfig, append(flags,
		"--xds-bind-address", "127.0.0.1:"+ports[0], "--certificate-bind-address", "127.0.0.1:"+ports[1])...)
	if err != nil {
		return nil, err
	}
	operator.Ports = ports
	return operator, nil
}

// prepare makes the operator's namespace and permissions, and returns its
// kubeconfig.
func (c *Cluster) prepare(ctx context.Context, folder string) (string, error) {
	err := c.Client.Create(ctx, &corev1.Namespace{Name: SystemNamespace})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return "", err
	}
	root, err := Root()
	if err != nil {
		return "", err
	}
	account := client.ObjectKey{Namespace: SystemNamespace, Name: "meshroute-manager"}
	err = c.Client.Get(ctx, account, &corev1.ServiceAccount{})
	if apierrors.IsNotFound(err) {
		_, err = c.Kubectl(ctx, "apply", "--server-side", "-k", filepath.Join(root, "config", "rbac"))
	}
	if err != nil {
		return "", err
	}
	return c.kubeconfigOf(ctx, account.Namespace, account.Name, folder)
}

func startManager(binaries Binaries, folder, name, kubeconfig string, args ...string) (*Operator, error) {
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	process, err := StartProcess(name, filepath.Join(folder, name+".log"), binaries.Manager, append([]string{
		"--kubeconfig", kubeconfig, "--namespace", SystemNamespace, "--service", "localhost",
		"--health-probe-bind-address", "127.0.0.1:" + ports[0], "--metrics-bind-address", "127.0.0.1:" + ports[1],
	}, args...)...)
	if err != nil {
		return nil, err
	}
	return &Operator{Process: process, Probes: "http://127.0.0.1:" + ports[0], Metrics: "https://127.0.0.1:" + ports[1] + "/metrics"}, nil
}

func freePorts(n int) ([]string, error) {
	ports := make([]string, n)
	for i := range ports {
		port, err := FreePort()
		if err != nil {
			return nil, err
		}
		ports[i] = strconv.Itoa(port)
	}
	return ports, nil
}

// kubeconfigOf writes a kubeconfig of a ServiceAccount and returns where it is.
func (c *Cluster) kubeconfigOf(ctx context.Context, namespace, name, folder string) (string, error) {
	token, err := c.Token(ctx, namespace, name)
	if err != nil {
		return "", err
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["cluster"] = &clientcmdapi.Cluster{Server: c.Config.Host, CertificateAuthorityData: c.Config.CAData}
	config.AuthInfos["account"] = &clientcmdapi.AuthInfo{Token: token}
	config.Contexts["context"] = &clientcmdapi.Context{Cluster: "cluster", AuthInfo: "account", Namespace: namespace}
	config.CurrentContext = "context"
	path := filepath.Join(folder, name+".kubeconfig")
	return path, clientcmd.WriteToFile(*config, path)
}

// Token is one of a ServiceAccount, for the API server, valid for a day.
func (c *Cluster) Token(ctx context.Context, namespace, name string) (string, error) {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: new(int64(24 * 60 * 60))}}
	account := &corev1.ServiceAccount{Namespace: namespace, Name: name}
	if err := c.Client.SubResource("token").Create(ctx, account, request); err != nil {
		return "", fmt.Errorf("token of ServiceAccount %s/%s: %w", namespace, name, err)
	}
	return request.Status.Token, nil
}

// Pod is a gateway pod: the containers of the Deployment that the manager has
// applied, as processes. It does what a kubelet does: mounts, token, restarts.
type Pod struct {
	Agent, Envoy *Process
	// Readiness is where the agent tells that Envoy has its configuration, which
	// is the pod's startup probe.
	Readiness string
	// Probes is the base URL of what Envoy tells itself, /readyz and /livez.
	Probes string
	Name   string
	// Host is where its listeners are reached.
	Host string

	folder string
	hook   string        // URL of Envoy's preStop hook
	grace  time.Duration // between the wish that it ends and force
}

// StartPod starts a pod of a gateway, once its Deployment is there.
func (c *Cluster) StartPod(ctx context.Context, binaries Binaries, folder string, gateway client.ObjectKey, class, name string) (*Pod, error) {
	return c.StartPodIn(ctx, nil, binaries, folder, gateway, class, name)
}

// StartPodIn starts a pod whose Envoy is in a network namespace of its own, so
// that it can have the ports of another.
func (c *Cluster) StartPodIn(ctx context.Context, where *Net, binaries Binaries, folder string, gateway client.ObjectKey, class, name string) (*Pod, error) {
	key := client.ObjectKey{Namespace: gateway.Namespace, Name: workload.Name(gateway.Name, class)}
	var deployment appsv1.Deployment
	var config corev1.ConfigMap
	if err := c.await(ctx, key, &deployment); err != nil {
		return nil, err
	}
	if err := c.await(ctx, key, &config); err != nil {
		return nil, err
	}
	template := deployment.Spec.Template
	pod := &corev1.Pod{
		Namespace: gateway.Namespace, Name: name, Labels: template.Labels,
		Spec: template.Spec,
	}
	if err := c.Client.Create(ctx, pod); err != nil && !apierrors.IsAlreadyExists(err) {
		return nil, err
	}
	if err := c.Client.Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
		return nil, err
	}

	p := &Pod{Name: name, folder: filepath.Join(folder, gateway.Namespace+"-"+name)}
	// Where the pod's volumes are mounted there, and here.
	mounts := strings.NewReplacer(
		"/run/meshroute", filepath.Join(p.folder, "run"),
		"/var/lib/meshroute", filepath.Join(p.folder, "state"),
		"/etc/meshroute", filepath.Join(p.folder, "config"),
		"/var/run/secrets/meshroute", filepath.Join(p.folder, "token"),
	)
	for _, volume := range []string{"run", "state", "config", "token"} {
		if err := os.MkdirAll(filepath.Join(p.folder, volume), 0o700); err != nil {
			return nil, err
		}
	}
	probes, err := FreePort()
	if err != nil {
		return nil, err
	}
	envoyProbes, err := FreePort()
	if err != nil {
		return nil, err
	}
	p.Host = "127.0.0.1"
	if where != nil {
		p.Host = where.Host()
	}
	p.Readiness = fmt.Sprintf("http://127.0.0.1:%d/readyz", probes)
	p.hook = fmt.Sprintf("http://127.0.0.1:%d/drained", probes)
	p.Probes = fmt.Sprintf("http://%s:%d", p.Host, envoyProbes)
	p.grace = time.Duration(*template.Spec.TerminationGracePeriodSeconds) * time.Second
	for file, content := range config.Data {
		content = strings.ReplaceAll(content, `"portValue":19002`, fmt.Sprintf(`"portValue":%d`, envoyProbes))
		if err := os.WriteFile(filepath.Join(p.folder, "config", file), []byte(mounts.Replace(content)), 0o600); err != nil {
			return nil, err
		}
	}
	token, err := c.podToken(ctx, pod)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(p.folder, "token", "token"), []byte(token), 0o600); err != nil {
		return nil, err
	}

	var failed error
	for _, container := range template.Spec.Containers {
		var args []string
		for _, arg := range container.Args {
			arg = mounts.Replace(strings.NewReplacer("$(POD_NAME)", name, "$(ZONE)", Zone).Replace(arg))
			args = append(args, strings.ReplaceAll(arg, ":19001", fmt.Sprintf("127.0.0.1:%d", probes)))
		}
		log := filepath.Join(p.folder, container.Name+".log")
		switch container.Name {
		case "envoy":
			// Several Envoys share this machine's memory segments otherwise, and
			// its two cores.
			args = append(args, "--use-dynamic-base-id", "--concurrency", "1")
			path := binaries.Envoy
			if where != nil {
				path, args = "ip", append([]string{"netns", "exec", where.name, path}, args...)
			}
			p.Envoy, err = StartProcess("envoy", log, path, args...)
		case "agent":
			p.Agent, err = StartProcess("agent", log, binaries.Agent, args...)
		default:
			err = fmt.Errorf("unknown container %s", container.Name)
		}
		failed = errors.Join(failed, err)
	}
	if failed != nil {
		p.Stop()
		return nil, failed
	}
	return p, nil
}

// podToken asks for the token that a kubelet would mount.
func (c *Cluster) podToken(ctx context.Context, pod *corev1.Pod) (string, error) {
	for _, volume := range pod.Spec.Volumes {
		if volume.Projected == nil {
			continue
		}
		wanted := volume.Projected.Sources[0].ServiceAccountToken
		request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
			Audiences:         []string{wanted.Audience},
			ExpirationSeconds: wanted.ExpirationSeconds,
			BoundObjectRef:    &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID},
		}}
		account := &corev1.ServiceAccount{Namespace: pod.Namespace, Name: pod.Spec.ServiceAccountName}
		if err := c.Client.SubResource("token").Create(ctx, account, request); err != nil {
			return "", fmt.Errorf("token of pod %s: %w", pod.Name, err)
		}
		return request.Status.Token, nil
	}
	return "", errors.New("the pod has no projected token")
}

// await waits until an object exists.
func (c *Cluster) await(ctx context.Context, key client.ObjectKey, object client.Object) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := c.Client.Get(ctx, key, object)
		if err == nil || !apierrors.IsNotFound(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %T %s: %w", object, key, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// End ends the pod as a kubelet does when it is deleted: both containers are
// asked at once, Envoy after its preStop hook, and killed when their time is up.
func (p *Pod) End() {
	over := time.Now().Add(p.grace)
	var ending sync.WaitGroup
	ending.Go(func() { p.Agent.StopWithin(p.grace) })
	ending.Go(func() {
		client := &http.Client{Timeout: p.grace}
		if response, err := client.Get(p.hook); err == nil {
			_ = response.Body.Close()
		}
		p.Envoy.StopWithin(time.Until(over))
	})
	ending.Wait()
}

// Stop kills the pod's containers.
func (p *Pod) Stop() {
	for _, process := range []*Process{p.Envoy, p.Agent} {
		if process != nil {
			process.StopWithin(0)
		}
	}
}

// Reconfigure starts the pod's Envoy again with another bootstrap.
func (p *Pod) Reconfigure(change func(bootstrap string) string) error {
	path := filepath.Join(p.folder, "config", "envoy.json")
	bootstrap, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	p.Envoy.Hold()
	if err := os.WriteFile(path, []byte(change(string(bootstrap))), 0o600); err != nil {
		return err
	}
	return p.Envoy.Resume()
}

// LastGood is the content of the file in which the agent keeps the last good
// configuration.
func (p *Pod) LastGood() (string, error) {
	content, err := os.ReadFile(filepath.Join(p.folder, "state", "last-good.pb"))
	return string(content), err
}

// Stat returns Envoy's statistics whose names start with one of the prefixes.
func (p *Pod) Stat(prefixes ...string) (map[string]string, error) {
	page, err := p.Admin("/stats")
	if err != nil {
		return nil, err
	}
	stats := map[string]string{}
	for line := range strings.Lines(page) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		for _, prefix := range prefixes {
			if strings.HasPrefix(name, prefix) {
				stats[name] = value
			}
		}
	}
	return stats, nil
}

// Admin returns a page of Envoy's admin interface.
func (p *Pod) Admin(path string) (string, error) {
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(p.folder, "run", "admin.sock"))
		},
	}}
	response, err := client.Get("http://envoy" + path)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s of Envoy: %s", path, response.Status)
	}
	return string(body), err
}
