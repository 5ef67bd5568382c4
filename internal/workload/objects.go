package workload

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
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
		if nodePort, ok := gw.Infrastructure.NodePorts[port.Number]; ok && gw.Infrastructure.ServiceType != corev1.ServiceTypeClusterIP {
			servicePort.WithNodePort(nodePort)
		}
		spec.WithPorts(servicePort)
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
			WithSelector(metav1ac.LabelSelector().WithMatchLabels(selector(gw))))
}
