package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// MeshRoute shows how a route is doing. The operator writes one for each
// ServiceRoute, of the same name, and one named "status" that sums up the
// namespace; nobody else writes them.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=mr,categories=mesh
// +kubebuilder:printcolumn:name="Hosts",type=string,JSONPath=`.status.display.hosts`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Programmed",type=string,JSONPath=`.status.display.programmed`
// +kubebuilder:printcolumn:name="Endpoints",type=string,JSONPath=`.status.display.endpoints`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
// +kubebuilder:printcolumn:name="Gateways",type=string,priority=1,JSONPath=`.status.gateways[*].name`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type MeshRoute struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Status is what is observed.
	// +optional
	Status MeshRouteStatus `json:"status,omitempty,omitzero"`
}

// MeshRouteStatus is what is observed of a route, or of a namespace.
type MeshRouteStatus struct {
	// Conditions: Ready, with the reason in plain words.
	//
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// Display holds the figures below as kubectl's columns show them.
	//
	// +optional
	Display MeshRouteDisplay `json:"display,omitempty,omitzero"`

	// Gateways that the route is attached to.
	//
	// +optional
	// +listType=map
	// +listMapKey=namespace
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=16
	Gateways []MeshRouteGateway `json:"gateways,omitempty"`

	// Backends of the route's rules, each Service port once.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	Backends []MeshRouteBackend `json:"backends,omitempty"`

	// Summary of the namespace, in the MeshRoute named "status" only.
	//
	// +optional
	Summary *MeshRouteSummary `json:"summary,omitempty"`
}

// MeshRouteDisplay holds text for kubectl's columns.
type MeshRouteDisplay struct {
	// Hosts that the route answers for: the first, and how many more.
	// +optional
	Hosts string `json:"hosts,omitempty"`
	// Programmed is "n/m": of m connected gateway pods, n have acknowledged
	// the newest configuration of the route.
	// +optional
	Programmed string `json:"programmed,omitempty"`
	// Endpoints is "n/m": of m endpoints of its backends, n are ready.
	// +optional
	Endpoints string `json:"endpoints,omitempty"`
}

// MeshRouteGateway is a Gateway that a route is attached to.
type MeshRouteGateway struct {
	// Namespace of the Gateway.
	Namespace gatewayv1.Namespace `json:"namespace"`
	// Name of the Gateway.
	Name gatewayv1.ObjectName `json:"name"`
	// Pods that are connected and serving.
	Pods int32 `json:"pods"`
	// ProgrammedPods of these have acknowledged the newest configuration of
	// the route.
	ProgrammedPods int32 `json:"programmedPods"`
}

// MeshRouteBackend is a Service port that a route sends requests to.
type MeshRouteBackend struct {
	// Namespace of the Service.
	Namespace gatewayv1.Namespace `json:"namespace"`
	// Name of the Service.
	Name gatewayv1.ObjectName `json:"name"`
	// Port of the Service, as the route names it.
	Port string `json:"port"`
	// Endpoints of the Service port, ready or not. -1 where they are not
	// known to Kubernetes: those of an ExternalName Service.
	Endpoints int32 `json:"endpoints"`
	// ReadyEndpoints of these.
	ReadyEndpoints int32 `json:"readyEndpoints"`
	// HealthCheck is what gateways ask these endpoints. Where gateways of the
	// route ask differently, it is that of the first.
	// +optional
	HealthCheck MeshRouteHealthCheck `json:"healthCheck,omitempty,omitzero"`
	// HealthyEndpoints, of those that may get requests, are not found to fail by
	// any gateway pod. Unset where nothing is asked, or no pod has told.
	// +optional
	HealthyEndpoints *int32 `json:"healthyEndpoints,omitempty"`
	// UnhealthyEndpoints are the others, as far as there is room, by address.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=8
	UnhealthyEndpoints []UnhealthyEndpoint `json:"unhealthyEndpoints,omitempty"`
}

// UnhealthyEndpoint is an endpoint that fails its health check.
type UnhealthyEndpoint struct {
	// Address and port.
	// +kubebuilder:validation:MaxLength=64
	Address string `json:"address"`
	// Pods of the route's gateways that find so. The others still send it
	// requests.
	Pods int32 `json:"pods"`
}

// MaxUnhealthyEndpoints is how many UnhealthyEndpoints a backend shows.
const MaxUnhealthyEndpoints = 8

// MeshRouteHealthCheck is how gateways find out which endpoints are well.
type MeshRouteHealthCheck struct {
	// Kind and Name of the object, in the Service's namespace, that the check
	// comes from: a HealthPolicy, or the workload (Deployment, StatefulSet, …)
	// whose pods have the readinessProbe that it is derived from.
	// +optional
	Kind string `json:"kind,omitempty"`
	// +optional
	Name string `json:"name,omitempty"`
	// Check is what is asked, and how often. Empty: nothing.
	// +optional
	Check string `json:"check,omitempty"`
	// Message tells why nothing is asked.
	// +optional
	Message string `json:"message,omitempty"`
}

// MeshRouteSummary sums up a namespace.
type MeshRouteSummary struct {
	// Routes in the namespace.
	Routes int32 `json:"routes"`
	// ReadyRoutes of these.
	ReadyRoutes int32 `json:"readyRoutes"`
}

// MeshRouteList is a list of MeshRoutes.
//
// +kubebuilder:object:root=true
type MeshRouteList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []MeshRoute `json:"items"`
}
