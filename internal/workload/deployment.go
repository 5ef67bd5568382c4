package workload

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
	appsv1ac "k8s.io/client-go/applyconfigurations/apps/v1"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"

	"meshroute.io/meshroute/internal/model"
)

// Places in a gateway pod.
const (
	runDir    = "/run/meshroute"             // Unix sockets between Envoy and agent
	stateDir  = "/var/lib/meshroute"         // the agent's last good configuration
	keysDir   = "/run/meshroute-keys"        // its certificates with their keys, in memory
	configDir = "/etc/meshroute"             // ConfigMap: bootstrap and roots
	tokenDir  = "/var/run/secrets/meshroute" //nolint:gosec // a path, not a credential

	// XDSSocket, PagesSocket and AdminSocket are where Envoy and agent find
	// each other.
	XDSSocket   = runDir + "/xds.sock"
	PagesSocket = runDir + "/pages.sock"
	AdminSocket = runDir + "/admin.sock"

	bootstrapFile = "envoy.json"
	rootsFile     = "ca.crt"

	// endTime is how long a pod's containers may take to end after its clients
	// are gone.
	endTime = 10 * time.Second

	// nonRoot is the user that distroless images call nonroot.
	nonRoot = 65532
)

// Deployment runs the pods of a gateway: Envoy, and the agent that configures
// it. bootstrap is what Envoy starts from.
func Deployment(gw model.Gateway, options Options, bootstrap string) *appsv1ac.DeploymentApplyConfiguration {
	podLabels := labels(gw)
	annotations := map[string]string{"kubectl.kubernetes.io/default-container": "envoy"}
	maps.Copy(annotations, gw.Infrastructure.Annotations)
	// Envoy reads its bootstrap once: another bootstrap needs other pods.
	sum := sha256.Sum256([]byte(bootstrap))
	annotations["meshroute.io/bootstrap-hash"] = hex.EncodeToString(sum[:8])

	spec := appsv1ac.DeploymentSpec()
	if gw.Infrastructure.Autoscaling == nil {
		spec.WithReplicas(gw.Infrastructure.Replicas)
	}
	return appsv1ac.Deployment(nameOf(gw), gw.Namespace).
		WithLabels(podLabels).
		WithAnnotations(gw.Infrastructure.Annotations).
		WithOwnerReferences(owner(gw)).
		WithSpec(spec.
			WithSelector(metav1ac.LabelSelector().WithMatchLabels(selector(gw))).
			WithStrategy(appsv1ac.DeploymentStrategy().
				WithRollingUpdate(appsv1ac.RollingUpdateDeployment().
					// A new pod serves before an old one goes.
					WithMaxUnavailable(intstr.FromInt32(0)).
					WithMaxSurge(intstr.FromString("25%")))).
			WithTemplate(corev1ac.PodTemplateSpec().
				WithLabels(podLabels).
				WithAnnotations(annotations).
				WithSpec(podSpec(gw, options))))
}

// Replicas is a gateway's Deployment with nothing but its number of pods.
func Replicas(gw model.Gateway, replicas int32) *appsv1ac.DeploymentApplyConfiguration {
	return appsv1ac.Deployment(nameOf(gw), gw.Namespace).
		WithSpec(appsv1ac.DeploymentSpec().WithReplicas(replicas))
}

func podSpec(gw model.Gateway, options Options) *corev1ac.PodSpecApplyConfiguration {
	spec := corev1ac.PodSpec()
	if class := gw.Infrastructure.PriorityClassName; class != "" {
		spec.WithPriorityClassName(class)
	}
	for i := range gw.Infrastructure.Tolerations {
		spec.WithTolerations(toleration(&gw.Infrastructure.Tolerations[i]))
	}
	return spec.
		WithNodeSelector(gw.Infrastructure.NodeSelector).
		WithServiceAccountName(nameOf(gw)).
		WithAutomountServiceAccountToken(false).
		WithTerminationGracePeriodSeconds(int64((gw.Infrastructure.DrainTimeout+endTime).Seconds())).
		WithSecurityContext(corev1ac.PodSecurityContext().
			WithRunAsNonRoot(true).
			WithRunAsUser(nonRoot).
			WithRunAsGroup(nonRoot).
			WithFSGroup(nonRoot).
			WithSeccompProfile(corev1ac.SeccompProfile().WithType(corev1.SeccompProfileTypeRuntimeDefault))).
		WithTopologySpreadConstraints(corev1ac.TopologySpreadConstraint().
			WithMaxSkew(1).
			WithTopologyKey(corev1.LabelHostname).
			WithWhenUnsatisfiable(corev1.ScheduleAnyway).
			WithLabelSelector(metav1ac.LabelSelector().WithMatchLabels(selector(gw))).
			// Counts the pods of one version: those that a rollout is about to
			// remove would push the new ones together.
			WithMatchLabelKeys(appsv1.DefaultDeploymentUniqueLabelKey)).
		WithContainers(agentContainer(gw, options), envoyContainer(gw, options)).
		WithVolumes(
			emptyDir("run", "16Mi", corev1.StorageMediumMemory),
			emptyDir("state", "512Mi", corev1.StorageMediumDefault),
			emptyDir("keys", "64Mi", corev1.StorageMediumMemory),
			corev1ac.Volume().WithName("config").WithConfigMap(corev1ac.ConfigMapVolumeSource().WithName(nameOf(gw))),
			corev1ac.Volume().WithName("token").WithProjected(corev1ac.ProjectedVolumeSource().WithSources(
				corev1ac.VolumeProjection().WithServiceAccountToken(corev1ac.ServiceAccountTokenProjection().
					WithPath("token").WithAudience(TokenAudience).WithExpirationSeconds(3600)))),
		)
}

// toleration holds the fields that are set: an empty one would not mean the same.
func toleration(from *corev1.Toleration) *corev1ac.TolerationApplyConfiguration {
	to := corev1ac.Toleration()
	if from.Key != "" {
		to.WithKey(from.Key)
	}
	if from.Operator != "" {
		to.WithOperator(from.Operator)
	}
	if from.Value != "" {
		to.WithValue(from.Value)
	}
	if from.Effect != "" {
		to.WithEffect(from.Effect)
	}
	if from.TolerationSeconds != nil {
		to.WithTolerationSeconds(*from.TolerationSeconds)
	}
	return to
}

func envoyContainer(gw model.Gateway, options Options) *corev1ac.ContainerApplyConfiguration {
	arguments := []string{
		"--config-path", configDir + "/" + bootstrapFile,
		"--config-yaml", options.PodBootstrap,
		"--service-node", "$(POD_NAME)",
		"--disable-hot-restart",
		"--log-level", "warn",
		// The agent reads what health checks find.
		"--file-flush-interval-msec", "500",
	}
	if limit, ok := gw.Infrastructure.Resources.Limits[corev1.ResourceCPU]; ok {
		// One worker for each core it may use, rather than for each it sees.
		arguments = append(arguments, "--concurrency", strconv.FormatInt(max(1, limit.Value()), 10))
	}
	container := container("envoy", options.EnvoyImage, gw.Infrastructure.Resources).
		// Kubernetes gives pods their nodes' zones as labels since 1.35. Without
		// the label it is empty, and no zone is preferred.
		WithEnv(corev1ac.EnvVar().WithName("ZONE").WithValueFrom(corev1ac.EnvVarSource().
			WithFieldRef(corev1ac.ObjectFieldSelector().WithFieldPath("metadata.labels['"+corev1.LabelTopologyZone+"']")))).
		WithCommand("envoy").
		WithArgs(arguments...).
		WithVolumeMounts(mount("run", runDir), mount("config", configDir).WithReadOnly(true)).
		WithPorts(corev1ac.ContainerPort().WithName("probes").WithContainerPort(model.ProbePort).WithProtocol(corev1.ProtocolTCP)).
		// It has started when the agent says that it has listeners and routes.
		// From then on it answers for itself: an agent that is broken takes no
		// Envoy along that serves. Without a manager a new pod waits here.
		WithStartupProbe(probe("/readyz", model.AgentPort).WithPeriodSeconds(1).WithFailureThreshold(600)).
		WithLivenessProbe(probe("/livez", model.ProbePort).WithPeriodSeconds(10).WithFailureThreshold(3)).
		WithReadinessProbe(probe("/readyz", model.ProbePort).WithPeriodSeconds(2).WithFailureThreshold(2)).
		// When the pod ends, Envoy is told so only after its clients are gone.
		WithLifecycle(corev1ac.Lifecycle().WithPreStop(corev1ac.LifecycleHandler().WithHTTPGet(httpGet("/drained", model.AgentPort))))
	for _, port := range gw.Ports {
		container.WithPorts(corev1ac.ContainerPort().
			WithName(portName(port)).WithContainerPort(port.Bind).WithProtocol(corev1.ProtocolTCP))
	}
	return container
}

func agentContainer(gw model.Gateway, options Options) *corev1ac.ContainerApplyConfiguration {
	resources := corev1.ResourceRequirements{Requests: corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse("10m"),
		corev1.ResourceMemory: resource.MustParse("32Mi"),
	}}
	agent := container("agent", options.AgentImage, resources)
	if gw.Infrastructure.NetworkPolicy.Verify && options.ManagerProbePort != 0 {
		agent.WithArgs("--forbidden-port", strconv.Itoa(int(options.ManagerProbePort)))
	}
	return agent.
		WithCommand("/gateway-agent").
		WithArgs(
			"--gateway", gw.Key.String(),
			"--pod", "$(POD_NAME)",
			"--xds-address", options.XDSAddress,
			"--certificate-url", options.CertificateURL,
			"--server-name", options.ServerName,
			"--roots", configDir+"/"+rootsFile,
			"--token", tokenDir+"/token",
			"--state-dir", stateDir,
			"--secrets-dir", keysDir,
			"--xds-socket", XDSSocket,
			"--pages-socket", PagesSocket,
			"--admin-socket", AdminSocket,
			"--probe-address", ":"+strconv.Itoa(model.AgentPort),
			"--drain-timeout", gw.Infrastructure.DrainTimeout.String(),
		).
		WithVolumeMounts(
			mount("run", runDir),
			mount("state", stateDir),
			mount("keys", keysDir),
			mount("config", configDir).WithReadOnly(true),
			mount("token", tokenDir).WithReadOnly(true),
		).
		WithPorts(corev1ac.ContainerPort().WithName("agent").WithContainerPort(model.AgentPort).WithProtocol(corev1.ProtocolTCP)).
		// Not its readiness: a pod whose Envoy serves is ready, whatever the
		// agent is busy with.
		WithStartupProbe(probe("/livez", model.AgentPort).WithPeriodSeconds(1).WithFailureThreshold(60)).
		WithLivenessProbe(probe("/livez", model.AgentPort).WithPeriodSeconds(10).WithFailureThreshold(3))
}

// probe asks by HTTP. It has time: who is slow because the node is busy is made
// slower by a restart.
func probe(path string, port int32) *corev1ac.ProbeApplyConfiguration {
	return corev1ac.Probe().WithHTTPGet(httpGet(path, port)).WithTimeoutSeconds(5)
}

func httpGet(path string, port int32) *corev1ac.HTTPGetActionApplyConfiguration {
	return corev1ac.HTTPGetAction().WithPath(path).WithPort(intstr.FromInt32(port))
}

func container(name, image string, resources corev1.ResourceRequirements) *corev1ac.ContainerApplyConfiguration {
	requirements := corev1ac.ResourceRequirements()
	if resources.Requests != nil {
		requirements.WithRequests(resources.Requests)
	}
	if resources.Limits != nil {
		requirements.WithLimits(resources.Limits)
	}
	return corev1ac.Container().
		WithName(name).
		WithImage(image).
		// Images are named by version, and may have been loaded into the node.
		WithImagePullPolicy(corev1.PullIfNotPresent).
		WithEnv(corev1ac.EnvVar().WithName("POD_NAME").WithValueFrom(corev1ac.EnvVarSource().
			WithFieldRef(corev1ac.ObjectFieldSelector().WithFieldPath("metadata.name")))).
		WithResources(requirements).
		WithSecurityContext(corev1ac.SecurityContext().
			WithAllowPrivilegeEscalation(false).
			WithReadOnlyRootFilesystem(true).
			WithCapabilities(corev1ac.Capabilities().WithDrop("ALL")))
}

func mount(volume, path string) *corev1ac.VolumeMountApplyConfiguration {
	return corev1ac.VolumeMount().WithName(volume).WithMountPath(path)
}

func emptyDir(name, limit string, medium corev1.StorageMedium) *corev1ac.VolumeApplyConfiguration {
	return corev1ac.Volume().WithName(name).WithEmptyDir(corev1ac.EmptyDirVolumeSource().
		WithMedium(medium).WithSizeLimit(resource.MustParse(limit)))
}
