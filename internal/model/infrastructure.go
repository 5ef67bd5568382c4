package model

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
)

const gatewayConfigKind = "GatewayConfig"

// infrastructure merges the settings of the class with those of the Gateway,
// field by field, and adds the defaults. It also returns which backends are to be
// isolated. Where a reference does not resolve it returns nil and the problem.
func (b *frame) infrastructure(class *gatewayv1.GatewayClass, gw *gatewayv1.Gateway) (*Infrastructure, v1alpha1.BackendPolicy, string) {
	var merged v1alpha1.GatewayConfigSpec
	config, problem := b.classConfig(class)
	if problem != "" {
		return nil, "", problem
	}
	if config != nil {
		merged = config.Spec
	}
	infrastructure := &Infrastructure{NodePorts: map[int32]int32{}}
	if own := gw.Spec.Infrastructure; own != nil {
		infrastructure.Labels, infrastructure.Annotations = stringMap(own.Labels), stringMap(own.Annotations)
		if ref := own.ParametersRef; ref != nil {
			config, problem := b.config(string(ref.Group), string(ref.Kind), Key{gw.Namespace, ref.Name})
			if problem != "" {
				return nil, "", "infrastructure.parametersRef: " + problem
			}
			merged = override(merged, config.Spec)
		}
	}

	infrastructure.Replicas = valueOr(merged.Replicas, 1)
	if scaling := merged.Autoscaling; scaling != nil {
		infrastructure.Autoscaling = &Autoscaling{
			MinReplicas: scaling.MinReplicas, MaxReplicas: scaling.MaxReplicas,
			CPUPercent: scaling.TargetCPUUtilizationPercentage, MemoryPercent: valueOr(scaling.TargetMemoryUtilizationPercentage, 0),
		}
		infrastructure.Replicas = scaling.MinReplicas
	}
	infrastructure.DrainTimeout = durationOr(merged.DrainTimeout, DefaultDrainTimeout)
	infrastructure.NodeSelector, infrastructure.Tolerations = merged.NodeSelector, merged.Tolerations
	infrastructure.PriorityClassName = valueOr(merged.PriorityClassName, "")
	infrastructure.ServiceType = valueOr(merged.ServiceType, corev1.ServiceTypeLoadBalancer)
	infrastructure.Resources = corev1.ResourceRequirements{Requests: corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse("100m"),
		corev1.ResourceMemory: resource.MustParse("128Mi"),
	}}
	if merged.Resources != nil {
		infrastructure.Resources = corev1.ResourceRequirements{
			Requests: merged.Resources.Requests, Limits: merged.Resources.Limits,
		}
	}
	for _, port := range merged.Ports {
		if port.NodePort != nil {
			infrastructure.NodePorts[port.Port] = *port.NodePort
		}
	}
	policy := valueOr(merged.NetworkPolicy, v1alpha1.NetworkPolicy{})
	restricted := valueOr(policy.Gateway, v1alpha1.GatewayPolicyEnforce) == v1alpha1.GatewayPolicyEnforce
	// Without a policy nothing is forbidden that could be tried.
	infrastructure.NetworkPolicy = NetworkPolicy{Restricted: restricted, Verify: restricted && valueOr(policy.Verify, false)}
	isolation := valueOr(policy.Backends, v1alpha1.BackendPolicyOptIn)
	if b.in.OneHost {
		// No pods, no network policies.
		infrastructure.NetworkPolicy, isolation = NetworkPolicy{}, v1alpha1.BackendPolicyOff
	}
	return infrastructure, isolation, ""
}

// override returns base with the fields that over sets.
func override(base, over v1alpha1.GatewayConfigSpec) v1alpha1.GatewayConfigSpec {
	if over.Replicas != nil || over.Autoscaling != nil {
		// Two ways to say how many pods there are.
		base.Replicas, base.Autoscaling = over.Replicas, over.Autoscaling
	}
	if over.DrainTimeout != nil {
		base.DrainTimeout = over.DrainTimeout
	}
	if over.NodeSelector != nil {
		base.NodeSelector = over.NodeSelector
	}
	if over.Tolerations != nil {
		base.Tolerations = over.Tolerations
	}
	if over.PriorityClassName != nil {
		base.PriorityClassName = over.PriorityClassName
	}
	if over.Resources != nil {
		base.Resources = over.Resources
	}
	if over.ServiceType != nil {
		base.ServiceType = over.ServiceType
	}
	if over.Ports != nil {
		base.Ports = over.Ports
	}
	if over.NetworkPolicy != nil {
		base.NetworkPolicy = over.NetworkPolicy
	}
	return base
}

// classConfig returns the GatewayConfig of a class; nil where it names none.
func (b *frame) classConfig(class *gatewayv1.GatewayClass) (*v1alpha1.GatewayConfig, string) {
	ref := class.Spec.ParametersRef
	if ref == nil {
		return nil, ""
	}
	if ref.Namespace == nil {
		return nil, fmt.Sprintf("parametersRef of GatewayClass %s: namespace is missing: set it to the GatewayConfig's", class.Name)
	}
	config, problem := b.config(string(ref.Group), string(ref.Kind), Key{string(*ref.Namespace), ref.Name})
	if problem != "" {
		problem = fmt.Sprintf("parametersRef of GatewayClass %s: %s", class.Name, problem)
	}
	return config, problem
}

func (b *frame) config(group, kind string, key Key) (*v1alpha1.GatewayConfig, string) {
	if group != v1alpha1.GroupVersion.Group || kind != gatewayConfigKind {
		return nil, fmt.Sprintf("%s is not supported: refer to a %s.%s",
			strings.TrimSuffix(kind+"."+group, "."), gatewayConfigKind, v1alpha1.GroupVersion.Group)
	}
	config := b.configs[key]
	if config == nil {
		return nil, fmt.Sprintf("GatewayConfig %s does not exist: create it or correct the reference; until then the gateway's pods stay as they are", key)
	}
	return config, ""
}

func valueOr[T any](pointer *T, fallback T) T {
	if pointer == nil {
		return fallback
	}
	return *pointer
}

func stringMap[K, V ~string](in map[K]V) map[string]string {
	if len(in) == 0 {
		return nil
	}
	out := make(map[string]string, len(in))
	for key, value := range in {
		out[string(key)] = string(value)
	}
	return out
}
