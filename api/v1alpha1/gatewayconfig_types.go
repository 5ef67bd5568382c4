package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// GatewayConfig says how gateways are run. A GatewayClass or a Gateway
// (spec.infrastructure.parametersRef) refers to it; a field set for the Gateway
// wins over the same field set for its class.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:shortName=gwc,categories=mesh
// +kubebuilder:printcolumn:name="Replicas",type=integer,JSONPath=`.spec.replicas`
// +kubebuilder:printcolumn:name="Service",type=string,JSONPath=`.spec.serviceType`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type GatewayConfig struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is what the author wants.
	// +optional
	Spec GatewayConfigSpec `json:"spec,omitempty,omitzero"`
}

// GatewayConfigSpec is the wanted way to run gateways.
//
// +kubebuilder:validation:XValidation:rule="!(has(self.replicas) && has(self.autoscaling))",message="autoscaling: replicas and autoscaling exclude each other; minReplicas is the least number of pods"
type GatewayConfigSpec struct {
	// Replicas is the number of gateway pods, 1 when left out. A
	// PodDisruptionBudget lets one of them go at a time. It excludes
	// autoscaling.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	Replicas *int32 `json:"replicas,omitempty"`

	// Autoscaling lets a HorizontalPodAutoscaler choose the number of gateway
	// pods by their load.
	//
	// +optional
	Autoscaling *Autoscaling `json:"autoscaling,omitempty"`

	// Resources of the Envoy container. Left out, it requests 100m CPU and
	// 128Mi memory and has no limits.
	//
	// +optional
	Resources *Resources `json:"resources,omitempty"`

	// DrainTimeout is how long the clients of a gateway pod that ends have to
	// finish what they do and to go to other pods, 60s when left out, in the
	// format of GEP-2257. A pod whose clients are gone or idle ends earlier, but
	// not before 5s. Who is still connected when it is over is cut off: long
	// requests and WebSockets. 0s cuts everybody off at once.
	//
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) <= duration('1h')",message="drainTimeout must not be above 1h"
	DrainTimeout *gatewayv1.Duration `json:"drainTimeout,omitempty"`

	// NodeSelector holds labels that a node must have to run gateway pods. Left
	// out, every node may.
	//
	// +optional
	// +kubebuilder:validation:MinProperties=1
	// +kubebuilder:validation:MaxProperties=32
	NodeSelector map[string]string `json:"nodeSelector,omitempty"`

	// Tolerations let gateway pods run on nodes with these taints.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	Tolerations []corev1.Toleration `json:"tolerations,omitempty"`

	// PriorityClassName is the PriorityClass of gateway pods: who has to go
	// where a node is too full. Left out, it is the cluster's default.
	//
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	PriorityClassName *string `json:"priorityClassName,omitempty"`

	// ServiceType of the gateway's Service, LoadBalancer when left out.
	//
	// +optional
	// +kubebuilder:validation:Enum=ClusterIP;NodePort;LoadBalancer
	ServiceType *corev1.ServiceType `json:"serviceType,omitempty"`

	// Ports holds settings for single listener ports.
	//
	// +optional
	// +listType=map
	// +listMapKey=port
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:XValidation:rule="self.all(a, !has(a.nodePort) || self.exists_one(b, has(b.nodePort) && a.nodePort == b.nodePort))",message="ports: two ports cannot have the same nodePort"
	Ports []GatewayPort `json:"ports,omitempty"`

	// NetworkPolicy says which network policies are made from the routes.
	//
	// +optional
	NetworkPolicy *NetworkPolicy `json:"networkPolicy,omitempty"`
}

// Autoscaling is what a HorizontalPodAutoscaler goes by. Where load is measured
// by CPU and by memory, the one that wants more pods decides.
//
// +kubebuilder:validation:XValidation:rule="self.minReplicas <= self.maxReplicas",message="autoscaling: minReplicas must not be above maxReplicas"
type Autoscaling struct {
	// MinReplicas is the least number of pods. With 1 a pod that fails takes
	// the gateway with it until it is replaced.
	//
	// +optional
	// +kubebuilder:default=2
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	MinReplicas int32 `json:"minReplicas,omitempty"`

	// MaxReplicas is the largest number of pods.
	//
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	MaxReplicas int32 `json:"maxReplicas"`

	// TargetCPUUtilizationPercentage is the CPU that Envoy should use on
	// average, in percent of what its container requests.
	//
	// +optional
	// +kubebuilder:default=80
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000
	TargetCPUUtilizationPercentage int32 `json:"targetCPUUtilizationPercentage,omitempty"`

	// TargetMemoryUtilizationPercentage is the memory that Envoy should use on
	// average, in percent of what its container requests. Left out, memory does
	// not count.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000
	TargetMemoryUtilizationPercentage *int32 `json:"targetMemoryUtilizationPercentage,omitempty"`
}

// NetworkPolicy says which network policies (networking.k8s.io/v1) are made from
// the routes. They do something only where the cluster's network plugin enforces
// them.
type NetworkPolicy struct {
	// Gateway is about the gateway's own pods. Enforce, which counts when left
	// out: they are reached on the listeners' ports alone, and reach nothing but
	// the backends of their routes, the operator and DNS. Off: no policy is made.
	//
	// +optional
	Gateway *GatewayPolicy `json:"gateway,omitempty"`

	// Backends is about the pods that routes lead to. OptIn, which counts when
	// left out: the pods of a Service with the label meshroute.io/isolation:
	// gateway answer only the gateways that route to it, on the routed ports.
	// All: so do those of every Service that a route of its own namespace leads
	// to; Services reached by ReferenceGrants alone still need the label, because
	// who may reach its pods is for their namespace to say. Off: no policy is
	// made on this gateway's account.
	//
	// +optional
	Backends *BackendPolicy `json:"backends,omitempty"`

	// Verify has each gateway pod try once a minute whether the policies are
	// enforced, and the condition NetworkPolicyEnforced of the Gateway tell.
	// False when left out.
	//
	// +optional
	Verify *bool `json:"verify,omitempty"`
}

// GatewayPolicy says whether a gateway's own pods are restricted.
//
// +kubebuilder:validation:Enum=Enforce;Off
type GatewayPolicy string

const (
	// GatewayPolicyEnforce restricts them to what their routes need.
	GatewayPolicyEnforce GatewayPolicy = "Enforce"
	// GatewayPolicyOff leaves them alone.
	GatewayPolicyOff GatewayPolicy = "Off"
)

// BackendPolicy says which backends' pods answer gateways alone.
//
// +kubebuilder:validation:Enum=OptIn;All;Off
type BackendPolicy string

const (
	// BackendPolicyOptIn isolates Services that carry the label IsolationLabel.
	BackendPolicyOptIn BackendPolicy = "OptIn"
	// BackendPolicyAll isolates every Service that a route of its own namespace
	// leads to, and those with the label.
	BackendPolicyAll BackendPolicy = "All"
	// BackendPolicyOff isolates none.
	BackendPolicyOff BackendPolicy = "Off"
)

// Resources are compute resources of a container.
//
// +kubebuilder:validation:XValidation:rule="!has(self.requests) || !has(self.limits) || self.requests.all(r, !(r in self.limits) || quantity(string(self.requests[r])).compareTo(quantity(string(self.limits[r]))) <= 0)",message="resources: a request must not be above its limit"
type Resources struct {
	// Limits the container may not exceed.
	// +optional
	// +kubebuilder:validation:MaxProperties=4
	Limits corev1.ResourceList `json:"limits,omitempty"`
	// Requests that the scheduler sets aside.
	// +optional
	// +kubebuilder:validation:MaxProperties=4
	Requests corev1.ResourceList `json:"requests,omitempty"`
}

// GatewayPort holds settings of one listener port.
type GatewayPort struct {
	// Port of the listener.
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port"`

	// NodePort that the Service has for it, where its type is NodePort or
	// LoadBalancer. Kubernetes chooses one when left out.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	NodePort *int32 `json:"nodePort,omitempty"`
}

// GatewayConfigList is a list of GatewayConfigs.
//
// +kubebuilder:object:root=true
type GatewayConfigList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []GatewayConfig `json:"items"`
}
