package model

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
)

// Workload is what the cluster tells of the objects that run a gateway.
type Workload struct {
	// Addresses at which clients reach it.
	Addresses []gatewayv1.GatewayStatusAddress
	// AwaitsAddress tells that its Service is to get the address of a load
	// balancer, and has none so far.
	AwaitsAddress bool
	// Refused is why an object could not be made as it should be; nil where
	// all could.
	Refused *Trouble
	// Pods is why pods do not run; nil where that is not known, or they do.
	Pods *Trouble
	// Zoneless is a pod that does not know its zone; empty where there is none.
	Zoneless string
}

// Trouble is what is wrong: the reason of a condition, and a sentence that says
// what is the case and what to do.
type Trouble struct{ Reason, Message string }

// PodTrouble tells why pods of a gateway do not run, as far as its Deployment
// and its pods know; nil where they know of nothing. Pods may come in any order.
//
// What it says stays the same while the cause does: a status that followed each
// of Kubernetes' attempts would be written again and again.
func PodTrouble(gateway Key, deployment *appsv1.Deployment, pods []*corev1.Pod) *Trouble {
	if deployment == nil {
		return nil
	}
	if deployment.Spec.Replicas != nil && *deployment.Spec.Replicas == 0 {
		return &Trouble{v1alpha1.ReasonNoGatewayPods, fmt.Sprintf(
			"Gateway %s is to have no pods: set replicas in its GatewayConfig to 1 or more", gateway)}
	}
	if refused := deploymentCondition(deployment, appsv1.DeploymentReplicaFailure); refused != nil && refused.Status == corev1.ConditionTrue {
		return podsForbidden(gateway, refused.Message)
	}
	pods = slices.SortedFunc(slices.Values(pods), func(a, b *corev1.Pod) int { return cmp.Compare(a.Name, b.Name) })
	var ended *corev1.Pod
	living := false
	for _, pod := range pods {
		switch {
		case pod.DeletionTimestamp != nil, pod.Status.Phase == corev1.PodSucceeded:
			continue
		case pod.Status.Phase == corev1.PodFailed:
			ended = pod
			continue
		}
		living = true
		if trouble := podTrouble(pod); trouble != nil {
			return trouble
		}
	}
	switch progress := deploymentCondition(deployment, appsv1.DeploymentProgressing); {
	case ended != nil && !living:
		return &Trouble{v1alpha1.ReasonPodsNotRunning, fmt.Sprintf(
			"pod %s was ended (%s): its node has too little of what it needs: see `kubectl -n %s describe pod %s`",
			nameOf(ended), phrase(ended.Status.Reason, ended.Status.Message), ended.Namespace, ended.Name)}
	case progress != nil && progress.Status == corev1.ConditionFalse:
		return &Trouble{v1alpha1.ReasonPodsNotRunning, fmt.Sprintf(
			"pods of Gateway %s do not become ready: see `kubectl -n %s describe pods --selector gateway.networking.k8s.io/gateway-name=%s`",
			gateway, gateway.Namespace, gateway.Name)}
	}
	return nil
}

// Zoneless names a pod that runs and does not know in which zone: it prefers no
// endpoints, whatever their Service asks for. Empty where all know it. Pods may
// come in any order.
func Zoneless(pods []*corev1.Pod) string {
	first := ""
	for _, pod := range pods {
		placed := pod.Spec.NodeName != "" && pod.DeletionTimestamp == nil
		if name := nameOf(pod); placed && pod.Labels[corev1.LabelTopologyZone] == "" && (first == "" || name < first) {
			first = name
		}
	}
	return first
}

func deploymentCondition(deployment *appsv1.Deployment, kind appsv1.DeploymentConditionType) *appsv1.DeploymentCondition {
	for i := range deployment.Status.Conditions {
		if deployment.Status.Conditions[i].Type == kind {
			return &deployment.Status.Conditions[i]
		}
	}
	return nil
}

// podsForbidden is for pods that the API server does not let in.
func podsForbidden(gateway Key, message string) *Trouble {
	// `pods "edge-meshroute-5d8-x7k2p" is forbidden: …`: each attempt has a name
	// of its own.
	if _, why, found := strings.Cut(message, "is forbidden: "); found {
		message = why
	}
	remedy := "allow them in this namespace"
	switch {
	case strings.Contains(message, "exceeded quota"):
		remedy = "raise the quota, or lower replicas or resources in the GatewayConfig"
	case strings.Contains(message, "failed quota"):
		remedy = "set in the GatewayConfig the resources that the quota asks for"
	case strings.Contains(message, "PodSecurity"):
		remedy = "something adds to the pods what Pod Security forbids (they are made to meet its level restricted): a mutating webhook, or another who writes to the Deployment"
	case strings.Contains(message, "serviceaccount") && strings.Contains(message, "not found"):
		remedy = "the operator makes it anew"
	}
	return &Trouble{v1alpha1.ReasonPodsForbidden, fmt.Sprintf("the pods of Gateway %s are refused: %s: %s", gateway, message, remedy)}
}

// podTrouble tells why a pod does not run.
func podTrouble(pod *corev1.Pod) *Trouble {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodScheduled && condition.Status == corev1.ConditionFalse {
			// What preemption would change is told after it, and is long.
			why, _, _ := strings.Cut(condition.Message, " preemption:")
			return &Trouble{v1alpha1.ReasonPodsUnschedulable, fmt.Sprintf(
				"no node takes pod %s: %s: make room, add a node, or change resources or placement in the GatewayConfig",
				nameOf(pod), strings.TrimRight(phrase(condition.Reason, why), ". "))}
		}
	}
	for i := range pod.Status.ContainerStatuses {
		if trouble := containerTrouble(pod, &pod.Status.ContainerStatuses[i]); trouble != nil {
			return trouble
		}
	}
	return nil
}

func containerTrouble(pod *corev1.Pod, container *corev1.ContainerStatus) *Trouble {
	waiting := container.State.Waiting
	last := container.LastTerminationState.Terminated
	if now := container.State.Terminated; now != nil {
		last = now
	}
	switch {
	// A container that runs for a moment between two ends has not come to rest.
	case last != nil && !container.Ready && (waiting != nil && waiting.Reason == "CrashLoopBackOff" || container.RestartCount > 1):
		what := fmt.Sprintf("exit code %d, %s", last.ExitCode, cmp.Or(last.Reason, "no reason given"))
		remedy := fmt.Sprintf("see `kubectl -n %s logs %s -c %s --previous`", pod.Namespace, pod.Name, container.Name)
		if last.Reason == "OOMKilled" {
			remedy = "raise its memory limit in the GatewayConfig"
		}
		return &Trouble{v1alpha1.ReasonPodsCrashing, fmt.Sprintf(
			"container %s of pod %s ends again and again (%s): %s", container.Name, nameOf(pod), what, remedy)}
	case waiting == nil:
		return nil
	}
	switch waiting.Reason {
	case "", "ContainerCreating", "PodInitializing":
		return nil
	case "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError",
		"RegistryUnavailable", "SignatureValidationFailed":
		return &Trouble{v1alpha1.ReasonImageUnavailable, fmt.Sprintf(
			"image %s of pod %s cannot be had (%s): correct the operator's flag --%s-image, push the image, or let the nodes reach its registry",
			container.Image, nameOf(pod), pullError(waiting), container.Name)}
	default:
		return &Trouble{v1alpha1.ReasonPodsNotRunning, fmt.Sprintf(
			"container %s of pod %s cannot be started (%s): see `kubectl -n %s describe pod %s`",
			container.Name, nameOf(pod), phrase(waiting.Reason, waiting.Message), pod.Namespace, pod.Name)}
	}
}

// pullError is why an image could not be pulled. A kubelet that tries, and one
// that waits before it tries again, tell the same in two ways.
func pullError(waiting *corev1.ContainerStateWaiting) string {
	message := strings.Join(strings.Fields(waiting.Message), " ")
	if rest, backOff := strings.CutPrefix(message, "Back-off pulling image "); backOff {
		_, message, _ = strings.Cut(rest, ": ErrImagePull: ")
	}
	reason := waiting.Reason
	if reason == "ImagePullBackOff" {
		reason = "ErrImagePull"
	}
	return phrase(reason, message)
}

func phrase(reason, message string) string {
	const most = 400
	message = strings.Join(strings.Fields(message), " ")
	if len(message) > most {
		message = strings.ToValidUTF8(message[:most], "") + "..."
	}
	if reason == "" || message == "" {
		return reason + message
	}
	return reason + ": " + message
}

func nameOf(pod *corev1.Pod) string { return pod.Namespace + "/" + pod.Name }
