package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/internal/workload"
	"meshroute.io/meshroute/test/harness"
)

// kubectl runs kubectl as users do, and returns what it printed.
func kubectl(ctx context.Context, arguments ...string) string {
	GinkgoHelper()
	output, err := tryKubectl(ctx, "", arguments...)
	Expect(err).NotTo(HaveOccurred())
	return output
}

// tryKubectl gives kubectl an input and may fail.
func tryKubectl(ctx context.Context, input string, arguments ...string) (string, error) {
	return run(ctx, input, kubectlPath, arguments...)
}

func run(ctx context.Context, input, program string, arguments ...string) (string, error) {
	command := exec.CommandContext(ctx, program, arguments...)
	command.Stdin = strings.NewReader(input)
	output, err := command.CombinedOutput()
	if err != nil {
		return string(output), fmt.Errorf("%s %s: %w: %s", program, strings.Join(arguments, " "), err, output)
	}
	return string(output), nil
}

// makeTarget runs a target of the Makefile.
func makeTarget(ctx context.Context, arguments ...string) string {
	GinkgoHelper()
	output, err := run(ctx, "", "make", append([]string{"--no-print-directory", "-C", root}, arguments...)...)
	Expect(err).NotTo(HaveOccurred())
	return output
}

// onNode runs a program on a node of a kind cluster.
func onNode(ctx context.Context, node string, arguments ...string) string {
	GinkgoHelper()
	output, err := run(ctx, "", containerTool, append([]string{"exec", node}, arguments...)...)
	Expect(err).NotTo(HaveOccurred())
	return output
}

func create(ctx context.Context, objects ...client.Object) {
	GinkgoHelper()
	for _, object := range objects {
		Expect(k8s.Create(ctx, object)).To(Succeed())
	}
}

// change reads an object, changes it and writes it, again where somebody else
// was faster.
func change[T client.Object](ctx context.Context, object T, how func(T)) {
	GinkgoHelper()
	Eventually(func() error {
		if err := k8s.Get(ctx, client.ObjectKeyFromObject(object), object); err != nil {
			return err
		}
		how(object)
		err := k8s.Update(ctx, object)
		if err != nil && !apierrors.IsConflict(err) {
			return StopTrying("not a conflict").Wrap(err)
		}
		return err
	}).Should(Succeed())
}

// newNamespace makes a namespace for a spec, in which only pods without any
// privilege may run.
func newNamespace(ctx context.Context) string {
	GinkgoHelper()
	namespace := &corev1.Namespace{
		GenerateName: "e2e-",
		Labels:       map[string]string{"pod-security.kubernetes.io/enforce": "restricted", suiteLabel: "true"},
	}
	create(ctx, namespace)
	specNamespaces = append(specNamespaces, namespace.Name)
	DeferCleanup(func(ctx SpecContext) {
		// Gateways first, so that the operator is still there for them; the rest
		// goes with the namespace, in its own time.
		Expect(k8s.DeleteAllOf(ctx, &gatewayv1.Gateway{}, client.InNamespace(namespace.Name))).To(Succeed())
		Expect(client.IgnoreNotFound(k8s.Delete(ctx, namespace))).To(Succeed())
	})
	return namespace.Name
}

// backend runs pods that answer what they were asked, behind a Service of the
// same name with the port 80, named http.
func backend(ctx context.Context, namespace, name string, replicas int32, adapt ...func(*appsv1.Deployment)) *appsv1.Deployment {
	GinkgoHelper()
	labels := map[string]string{"app": name}
	deployment := &appsv1.Deployment{
		Namespace: namespace, Name: name,
		Spec: appsv1.DeploymentSpec{
			Replicas: new(replicas),
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				Labels: labels,
				Spec: corev1.PodSpec{
					AutomountServiceAccountToken: new(false),
					SecurityContext: &corev1.PodSecurityContext{
						RunAsNonRoot: new(true), RunAsUser: new(int64(65532)),
						SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
					},
					TerminationGracePeriodSeconds: new(int64(20)),
					// On as many nodes as there are.
					TopologySpreadConstraints: []corev1.TopologySpreadConstraint{{
						MaxSkew: 1, TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.ScheduleAnyway,
						LabelSelector: &metav1.LabelSelector{MatchLabels: labels}, MatchLabelKeys: []string{"pod-template-hash"},
					}},
					Containers: []corev1.Container{{
						Name: "backend", Image: backendImage, ImagePullPolicy: corev1.PullIfNotPresent,
						Env: []corev1.EnvVar{{Name: "POD_NAME", ValueFrom: &corev1.EnvVarSource{
							FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"},
						}}},
						Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
						ReadinessProbe: &corev1.Probe{
							PeriodSeconds: 1, FailureThreshold: 1,
							HTTPGet: &corev1.HTTPGetAction{Path: "/readyz", Port: intstr.FromString("http")},
						},
						SecurityContext: restricted(),
					}},
				},
			},
		},
	}
	for _, how := range adapt {
		how(deployment)
	}
	create(ctx, deployment, &corev1.Service{
		Namespace: namespace, Name: name,
		Spec: corev1.ServiceSpec{
			Selector: labels,
			Ports:    []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("http")}},
		},
	})
	return deployment
}

func restricted() *corev1.SecurityContext {
	return &corev1.SecurityContext{
		AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true),
		Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	}
}

// rolledOut tells whether all pods of a Deployment are of its newest template
// and available, and no other is left.
func rolledOut(ctx context.Context, key client.ObjectKey) func() (string, error) {
	return func() (string, error) {
		var deployment appsv1.Deployment
		if err := k8s.Get(ctx, key, &deployment); err != nil {
			return "", err
		}
		status, replicas := deployment.Status, *deployment.Spec.Replicas
		if status.ObservedGeneration < deployment.Generation || status.UpdatedReplicas != replicas ||
			status.AvailableReplicas != replicas || status.Replicas != replicas {
			return fmt.Sprintf("%d updated, %d available, %d in all, of %d", status.UpdatedReplicas, status.AvailableReplicas, status.Replicas, replicas), nil
		}
		// Deployments don't count pods that are on their way out.
		pods, err := podsOf(ctx, &deployment)
		if err != nil {
			return "", err
		}
		if int32(len(pods)) != replicas {
			return fmt.Sprintf("%d pods, those included that are ending, of %d", len(pods), replicas), nil
		}
		return "", nil
	}
}

// awaitRollout waits until a Deployment is as it should be.
func awaitRollout(ctx context.Context, key client.ObjectKey) {
	GinkgoHelper()
	Eventually(rolledOut(ctx, key)).WithContext(ctx).WithTimeout(3 * time.Minute).Should(BeEmpty())
}

func podsOf(ctx context.Context, deployment *appsv1.Deployment) ([]corev1.Pod, error) {
	var list corev1.PodList
	err := k8s.List(ctx, &list, client.InNamespace(deployment.Namespace), client.MatchingLabels(deployment.Spec.Selector.MatchLabels))
	slices.SortFunc(list.Items, func(a, b corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	return list.Items, err
}

// gateway is a Gateway of a spec's own.
type gateway struct {
	client.ObjectKey
	// deployment that runs it.
	deployment client.ObjectKey
	config     *v1alpha1.GatewayConfig
	// address at which this machine reaches it: a node and its NodePort.
	address string
}

func (g *gateway) parent() gatewayv1.ParentReference { return harness.Parent(g.Namespace, g.Name) }

// pods of the gateway, those included that are ending.
func (g *gateway) pods(ctx context.Context) []corev1.Pod {
	GinkgoHelper()
	var deployment appsv1.Deployment
	Expect(k8s.Get(ctx, g.deployment, &deployment)).To(Succeed())
	pods, err := podsOf(ctx, &deployment)
	Expect(err).NotTo(HaveOccurred())
	return pods
}

// newGateway makes a Gateway for routes of all namespaces and waits until it is
// programmed and reached.
func newGateway(ctx context.Context, namespace, name string, adapt ...func(*v1alpha1.GatewayConfigSpec)) *gateway {
	GinkgoHelper()
	config := &v1alpha1.GatewayConfig{Namespace: namespace, Name: name}
	config.Spec.ServiceType = new(corev1.ServiceTypeNodePort)
	for _, how := range adapt {
		how(&config.Spec)
	}
	object := harness.Gateway(namespace, name, class, 80)
	object.Spec.Infrastructure = &gatewayv1.GatewayInfrastructure{ParametersRef: &gatewayv1.LocalParametersReference{
		Group: gatewayv1.Group(v1alpha1.GroupVersion.Group), Kind: "GatewayConfig", Name: name,
	}}
	create(ctx, config, object)
	g := &gateway{
		ObjectKey:  client.ObjectKeyFromObject(object),
		deployment: client.ObjectKey{Namespace: namespace, Name: workload.Name(name, class)},
		config:     config,
	}
	Eventually(gatewayCondition(ctx, g.ObjectKey, v1alpha1.ConditionProgrammed)).WithTimeout(2 * time.Minute).Should(HavePrefix("True"))
	g.address = nodePort(ctx, g.deployment)
	awaitRollout(ctx, g.deployment)
	// kube-proxy follows in its own time.
	Eventually(status(g.address, "nobody.example.com", "/")).WithTimeout(time.Minute).Should(Equal(404))
	return g
}

// configure changes the gateway's GatewayConfig and waits until its pods are as
// that wants them.
func (g *gateway) configure(ctx context.Context, how func(*v1alpha1.GatewayConfigSpec)) {
	GinkgoHelper()
	generation := func() (int64, error) {
		var deployment appsv1.Deployment
		err := k8s.Get(ctx, g.deployment, &deployment)
		return deployment.Generation, err
	}
	before, err := generation()
	Expect(err).NotTo(HaveOccurred())
	change(ctx, g.config, func(config *v1alpha1.GatewayConfig) { how(&config.Spec) })
	Eventually(generation).Should(BeNumerically(">", before))
	awaitRollout(ctx, g.deployment)
}

// nodePort is where a Service is reached from outside: on the node of the
// control plane, which no spec stops.
func nodePort(ctx context.Context, service client.ObjectKey) string {
	GinkgoHelper()
	var found corev1.Service
	Expect(k8s.Get(ctx, service, &found)).To(Succeed())
	Expect(found.Spec.Ports).NotTo(BeEmpty())
	return net.JoinHostPort(nodeAddress(ctx, controlPlane), strconv.Itoa(int(found.Spec.Ports[0].NodePort)))
}

func nodeAddress(ctx context.Context, name string) string {
	GinkgoHelper()
	var node corev1.Node
	Expect(k8s.Get(ctx, client.ObjectKey{Name: name}, &node)).To(Succeed())
	for _, address := range node.Status.Addresses {
		if address.Type == corev1.NodeInternalIP {
			return address.Address
		}
	}
	Fail("node " + name + " has no internal address")
	return ""
}

// gatewayCondition is "Status Reason: message" of a condition of a Gateway.
func gatewayCondition(ctx context.Context, key client.ObjectKey, kind string) func() (string, error) {
	return func() (string, error) {
		var gw gatewayv1.Gateway
		if err := k8s.Get(ctx, key, &gw); err != nil {
			return "", err
		}
		return inWords(gw.Status.Conditions, kind, gw.Generation), nil
	}
}

// routeCondition is the same of a ServiceRoute; of Ready over all parents, of
// others for its first parent.
func routeCondition(ctx context.Context, key client.ObjectKey, kind string) func() (string, error) {
	return func() (string, error) {
		var route v1alpha1.ServiceRoute
		if err := k8s.Get(ctx, key, &route); err != nil {
			return "", err
		}
		conditions := route.Status.Conditions
		if kind != v1alpha1.ConditionReady {
			if len(route.Status.Parents) == 0 {
				return "", nil
			}
			conditions = route.Status.Parents[0].Conditions
		}
		return inWords(conditions, kind, route.Generation), nil
	}
}

func inWords(conditions []metav1.Condition, kind string, generation int64) string {
	for _, condition := range conditions {
		if condition.Type == kind && condition.ObservedGeneration == generation {
			return fmt.Sprintf("%s %s: %s", condition.Status, condition.Reason, condition.Message)
		}
	}
	return ""
}

// killContainer ends a container of a pod at once, as a crash would.
func killContainer(ctx context.Context, pod corev1.Pod, name string) {
	GinkgoHelper()
	for _, container := range pod.Status.ContainerStatuses {
		if container.Name == name {
			_, id, found := strings.Cut(container.ContainerID, "//")
			Expect(found).To(BeTrue(), "container %s of pod %s does not run", name, pod.Name)
			onNode(ctx, pod.Spec.NodeName, "ctr", "--namespace=k8s.io", "task", "kill", "--signal", "SIGKILL", id)
			return
		}
	}
	Fail(fmt.Sprintf("pod %s has no container %s", pod.Name, name))
}

// leader is the pod of the manager that holds the lease.
func leader(ctx context.Context) (string, error) {
	holder, err := tryKubectl(ctx, "", "get", "lease", "meshroute-manager", "--namespace", harness.SystemNamespace, "--output", "jsonpath={.spec.holderIdentity}")
	if err != nil {
		return "", err
	}
	name, _, found := strings.Cut(strings.TrimSpace(holder), "_")
	if !found {
		return "", errors.New("nobody holds the lease")
	}
	return name, nil
}

func ready(pod *corev1.Pod) bool {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

func environment(name, fallback string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return fallback
}
