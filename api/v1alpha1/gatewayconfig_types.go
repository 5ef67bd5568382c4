package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
type GatewayConfigSpec struct {
	// Replicas is the number of gateway pods, 1 when left out. A
	// PodDisruptionBudget lets one of them go at a time.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	Replicas *int32 `json:"replicas,omitempty"`

	// Resources of the Envoy container. Left out, it requests 100m CPU and
	// 128Mi memory and has no limits.
	//
	// +optional
	Resources *Resources `json:"resources,omitempty"`

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
}

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
