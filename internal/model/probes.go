package model

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// PodProbes is what the pods of a workload say themselves of how they want to be
// asked whether they are ready. There are few that differ, however many pods a
// Service has.
type PodProbes struct {
	// Workload that the pods are of: a Deployment, a StatefulSet, …, or the pod
	// itself, where nothing made it.
	Workload   HealthSource
	Containers []ContainerProbe
}

// ContainerProbe is the readinessProbe of a container.
type ContainerProbe struct {
	// Ports that the container declares.
	Ports []int32
	// Check is what the probe asks, if a gateway can ask the same, and Port which
	// port.
	Check *HealthCheck
	Port  int32
	// Why there is no check, as a part of a sentence.
	Why string
}

// Equal tells whether two say the same.
func (p PodProbes) Equal(other PodProbes) bool {
	return p.Workload == other.Workload && slices.EqualFunc(p.Containers, other.Containers, func(a, b ContainerProbe) bool {
		return slices.Equal(a.Ports, b.Ports) && a.Check.Equal(b.Check) && a.Port == b.Port && a.Why == b.Why
	})
}

// leastDerivedInterval bounds how often endpoints are asked on nobody's explicit
// wish: a probe is made for one kubelet, and every gateway pod asks.
const leastDerivedInterval = 5 * time.Second

// ProbesOf reads the readinessProbes of a pod. The pod is not kept.
func ProbesOf(pod *corev1.Pod) PodProbes {
	probes := PodProbes{Workload: workloadOf(pod), Containers: make([]ContainerProbe, 0, len(pod.Spec.Containers))}
	for i := range pod.Spec.Containers {
		probes.Containers = append(probes.Containers, containerProbe(&pod.Spec.Containers[i]))
	}
	for i := range pod.Spec.InitContainers {
		// A sidecar, which goes on beside the containers.
		if container := &pod.Spec.InitContainers[i]; container.RestartPolicy != nil && *container.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			probes.Containers = append(probes.Containers, containerProbe(container))
		}
	}
	return probes
}

// workloadOf is what a person knows the pod by: a Deployment's pods are made by
// ReplicaSets that are named after it.
func workloadOf(pod *corev1.Pod) HealthSource {
	owner := metav1.GetControllerOf(pod)
	if owner == nil {
		return HealthSource{Kind: "Pod", Key: keyOf(pod)}
	}
	kind, name := owner.Kind, owner.Name
	if hash := pod.Labels[appsv1.DefaultDeploymentUniqueLabelKey]; kind == "ReplicaSet" && hash != "" {
		if deployment, cut := strings.CutSuffix(name, "-"+hash); cut {
			kind, name = "Deployment", deployment
		}
	}
	return HealthSource{Kind: kind, Key: Key{pod.Namespace, name}}
}

func containerProbe(container *corev1.Container) ContainerProbe {
	var found ContainerProbe
	for _, port := range container.Ports {
		if port.Protocol == corev1.ProtocolTCP || port.Protocol == "" {
			found.Ports = append(found.Ports, port.ContainerPort)
		}
	}
	probe := container.ReadinessProbe
	if probe == nil {
		found.Why = fmt.Sprintf("container %s has no readinessProbe", container.Name)
		return found
	}
	seconds := func(n, fallback int32) time.Duration {
		if n < 1 {
			n = fallback // as the API server fills it in
		}
		return time.Duration(n) * time.Second
	}
	threshold := func(n, fallback int32) uint32 {
		if n < 1 {
			n = fallback
		}
		return uint32(n)
	}
	check := &HealthCheck{
		Interval:           max(leastDerivedInterval, seconds(probe.PeriodSeconds, 10)),
		Timeout:            seconds(probe.TimeoutSeconds, 1),
		HealthyThreshold:   threshold(probe.SuccessThreshold, 1),
		UnhealthyThreshold: threshold(probe.FailureThreshold, 3),
	}
	cannot := func(format string, arguments ...any) ContainerProbe {
		found.Why = fmt.Sprintf("the readinessProbe of container %s %s", container.Name, fmt.Sprintf(format, arguments...))
		return found
	}
	switch {
	case probe.HTTPGet != nil:
		get := probe.HTTPGet
		check.Type = CheckHTTP
		check.Path, check.Statuses = "/"+strings.TrimPrefix(get.Path, "/"), readyStatuses
		for _, header := range get.HTTPHeaders {
			switch strings.ToLower(header.Name) {
			case "host":
				check.Host = header.Value
			case "accept", "user-agent":
			default:
				// It may be a secret, and is none of a gateway's configuration.
				return cannot("sends the header %s, which is not taken over", header.Name)
			}
		}
		switch {
		case get.Host != "":
			return cannot("asks another host, %s", get.Host)
		case get.Scheme == corev1.URISchemeHTTPS:
			return cannot("asks by HTTPS, and requests go without TLS")
		case !printable(check.Path) || strings.Contains(check.Path, "#") || !printable(check.Host):
			return cannot("has a path or a host that cannot be sent")
		}
		found.Port = portNumber(container, get.Port)
	case probe.TCPSocket != nil:
		check.Type = CheckTCP
		if probe.TCPSocket.Host != "" {
			return cannot("asks another host, %s", probe.TCPSocket.Host)
		}
		found.Port = portNumber(container, probe.TCPSocket.Port)
	case probe.GRPC != nil:
		check.Type = CheckGRPC
		check.GRPCService = valueOr(probe.GRPC.Service, "")
		if !printable(check.GRPCService) {
			return cannot("names a service that cannot be sent")
		}
		found.Port = probe.GRPC.Port
	case probe.Exec != nil:
		return cannot("runs a command, which a gateway cannot")
	default:
		return cannot("asks nothing")
	}
	if found.Port == 0 {
		return cannot("names a port that the container does not have")
	}
	found.Check = check
	return found
}

func printable(text string) bool {
	return strings.IndexFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}

// portNumber is the number of a probe's port; 0 where its name leads nowhere.
func portNumber(container *corev1.Container, port intstr.IntOrString) int32 {
	if port.Type == intstr.Int {
		return port.IntVal
	}
	for i := range container.Ports {
		if container.Ports[i].Name == port.StrVal {
			return container.Ports[i].ContainerPort
		}
	}
	return 0
}

// Derive is the check that follows from the pods' own readinessProbes for a
// cluster of whose pods requests go to port, and those that differ of which are
// given: all have to ask the same, or there is none. port is 0 where pods have
// different ones.
func Derive(cluster Cluster, port int32, pods []PodProbes) Health {
	switch {
	case len(pods) == 0:
		return Health{Why: "there is no HealthPolicy, and no pod whose readinessProbe could be asked for"}
	case port == 0:
		return Health{Why: "there is no HealthPolicy, and the Service's pods do not all have the same port"}
	}
	health := deriveFrom(cluster, port, pods[0])
	for _, other := range pods[1:] {
		if same := deriveFrom(cluster, port, other); !same.Check.Equal(health.Check) {
			return Health{Why: fmt.Sprintf("there is no HealthPolicy, and the Service's pods differ in their readinessProbes (those of %s %s and of %s %s), as they may in the middle of a rollout",
				health.Source.Kind, health.Source.Name, same.Source.Kind, same.Source.Name)}
		}
	}
	return health
}

func deriveFrom(cluster Cluster, port int32, pod PodProbes) Health {
	health := Health{Source: pod.Workload}
	i := slices.IndexFunc(pod.Containers, func(c ContainerProbe) bool { return slices.Contains(c.Ports, port) })
	if i < 0 && len(pod.Containers) == 1 {
		i = 0 // to declare ports is a courtesy
	}
	if i < 0 {
		health.Why = fmt.Sprintf("there is no HealthPolicy, and none of the pods' containers declares port %d", port)
		return health
	}
	switch probe := pod.Containers[i]; {
	case probe.Check == nil:
		health.Why = "there is no HealthPolicy, and " + probe.Why
	case probe.Port != port:
		health.Why = fmt.Sprintf("there is no HealthPolicy, and the readinessProbe asks port %d, where requests go to port %d", probe.Port, port)
	case probe.Check.Type == CheckGRPC && !cluster.HTTP2:
		health.Why = "there is no HealthPolicy, and the readinessProbe asks by gRPC, which needs appProtocol kubernetes.io/h2c on the Service's port"
	default:
		check := *probe.Check
		if check.Host == "" && check.Type != CheckTCP {
			check.Host = hostOf(cluster)
		}
		health.Check = &check
	}
	return health
}

// PodPort is the one port of its pods that requests to a cluster go to; 0 where
// that is not known, or they differ.
func PodPort(cluster Cluster, endpoints EndpointSet) int32 {
	if cluster.TargetPort != 0 {
		return cluster.TargetPort
	}
	var port int32
	for _, endpoint := range endpoints.All {
		if port != 0 && port != endpoint.Port {
			return 0
		}
		port = endpoint.Port
	}
	return port
}

// ComparePodProbes orders what pods say by the workloads that they are of, which is
// enough for them to be told of in the same order each time.
func ComparePodProbes(a, b PodProbes) int {
	return cmp.Or(cmp.Compare(a.Workload.Kind, b.Workload.Kind), CompareKeys(a.Workload.Key, b.Workload.Key))
}
