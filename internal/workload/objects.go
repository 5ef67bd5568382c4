package workload

import (
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	autoscalingv2ac "k8s.io/client-go/applyconfigurations/autoscaling/v2"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	policyv1ac "k8s.io/client-go/applyconfigurations/policy/v1"

	"meshroute.io/meshroute/internal/model"
)

// Service is where clients reach the gateway: its ports are the listeners'.
func Service(gw model.Gateway) *corev1ac.ServiceApplyConfiguration {
	spec := corev1ac.ServiceSpec().
		WithType(gw.Infrastructure.ServiceType).
		WithSelector(selector(gw))
	for _, port := range gw.Ports {
		servicePort := corev1ac.ServicePort().
			WithName(portName(port)).
			WithPort(port.Number).
			WithTargetPort(intstr.FromInt32(port.Bind)).
			WithProtocol(corev1.ProtocolTCP)
		// (No appProtocol: some load balancers would then ask for "/" by HTTP, and
		// take a gateway without a route there for a dead one.)
		if nodePort, ok := gw.Infrastructure.NodePorts[port.Number]; ok && gw.Infrastructure.ServiceType != corev1.ServiceTypeClusterIP {
			servicePort.WithNodePort(nodePort)
		}
		spec.WithPorts(servicePort)
	}
	if gw.IPv6 {
		spec.WithIPFamilyPolicy(corev1.IPFamilyPolicyPreferDualStack)
	}
	return corev1ac.Service(nameOf(gw), gw.Namespace).
		WithLabels(labels(gw)).
		WithAnnotations(gw.Infrastructure.Annotations).
		WithOwnerReferences(owner(gw)).
		WithSpec(spec)
}

// ServiceAccount is who the gateway's agents are. It has no permissions: its
// token only proves to managers which gateway an agent belongs to.
func ServiceAccount(gw model.Gateway) *corev1ac.ServiceAccountApplyConfiguration {
	return corev1ac.ServiceAccount(nameOf(gw), gw.Namespace).
		WithLabels(labels(gw)).
		WithAnnotations(gw.Infrastructure.Annotations).
		WithOwnerReferences(owner(gw)).
		WithAutomountServiceAccountToken(false)
}

// ConfigMap holds what the pods need before they can ask for more: Envoy's
// bootstrap, and the roots that the agent checks managers' certificates
// against.
func ConfigMap(gw model.Gateway, options Options, bootstrap string) *corev1ac.ConfigMapApplyConfiguration {
	return corev1ac.ConfigMap(nameOf(gw), gw.Namespace).
		WithLabels(labels(gw)).
		WithAnnotations(gw.Infrastructure.Annotations).
		WithOwnerReferences(owner(gw)).
		WithData(map[string]string{bootstrapFile: bootstrap, rootsFile: options.Roots})
}

// PodDisruptionBudget lets one pod of the gateway go at a time.
func PodDisruptionBudget(gw model.Gateway) *policyv1ac.PodDisruptionBudgetApplyConfiguration {
	return policyv1ac.PodDisruptionBudget(nameOf(gw), gw.Namespace).
		WithLabels(labels(gw)).
		WithAnnotations(gw.Infrastructure.Annotations).
		WithOwnerReferences(owner(gw)).
		WithSpec(policyv1ac.PodDisruptionBudgetSpec().
			WithMaxUnavailable(intstr.FromInt32(1)).
			// A pod that serves nobody anyway does not hold up a node's drain.
			WithUnhealthyPodEvictionPolicy(policyv1.AlwaysAllow).
			WithSelector(metav1ac.LabelSelector().WithMatchLabels(selector(gw))))
}

// HorizontalPodAutoscaler chooses the number of the gateway's pods, where its
// Autoscaling is set. It looks at Envoy alone: what the agent uses says nothing
// about load.
func HorizontalPodAutoscaler(gw model.Gateway) *autoscalingv2ac.HorizontalPodAutoscalerApplyConfiguration {
	scaling := gw.Infrastructure.Autoscaling
	spec := autoscalingv2ac.HorizontalPodAutoscalerSpec().
		WithScaleTargetRef(autoscalingv2ac.CrossVersionObjectReference().
			WithAPIVersion(appsv1.SchemeGroupVersion.String()).
			WithKind("Deployment").
			WithName(nameOf(gw))).
		WithMinReplicas(scaling.MinReplicas).
		WithMaxReplicas(scaling.MaxReplicas).
		WithMetrics(utilization(corev1.ResourceCPU, scaling.CPUPercent))
	if scaling.MemoryPercent > 0 {
		spec.WithMetrics(utilization(corev1.ResourceMemory, scaling.MemoryPercent))
	}
	return autoscalingv2ac.HorizontalPodAutoscaler(nameOf(gw), gw.Namespace).
		WithLabels(labels(gw)).
		WithAnnotations(gw.Infrastructure.Annotations).
		WithOwnerReferences(owner(gw)).
		WithSpec(spec)
}

func utilization(resource corev1.ResourceName, percent int32) *autoscalingv2ac.MetricSpecApplyConfiguration {
	return autoscalingv2ac.MetricSpec().
		WithType(autoscalingv2.ContainerResourceMetricSourceType).
		WithContainerResource(autoscalingv2ac.ContainerResourceMetricSource().
			WithContainer("envoy").
			WithName(resource).
			WithTarget(autoscalingv2ac.MetricTarget().
				WithType(autoscalingv2.UtilizationMetricType).
				WithAverageUtilization(percent)))
}
