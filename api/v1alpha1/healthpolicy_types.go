package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// HealthPolicy says how gateways find out which endpoints of a Service are well:
// each gateway pod asks each of them, again and again, and sends no requests to
// those that fail. It attaches to Services, to single ports of them, or to
// Gateways, whose backends without a policy of their own it is for. Where no
// HealthPolicy is, the check is derived from the readinessProbe of the backend's
// pods.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=hp,categories=mesh
// +kubebuilder:metadata:labels="gateway.networking.k8s.io/policy=Direct"
// +kubebuilder:printcolumn:name="Type",type=string,JSONPath=`.spec.type`
// +kubebuilder:printcolumn:name="Interval",type=string,JSONPath=`.spec.interval`
// +kubebuilder:printcolumn:name="Targets",type=string,JSONPath=`.spec.targetRefs[*].name`
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.ancestors[*].conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Programmed",type=string,JSONPath=`.status.ancestors[*].conditions[?(@.type=="Programmed")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type HealthPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is what the author wants.
	// +required
	Spec HealthPolicySpec `json:"spec"`

	// Status tells of each target what became of the policy, written by the
	// operator only. The ancestors in it are the targets.
	// +optional
	Status gatewayv1.PolicyStatus `json:"status,omitempty,omitzero"`
}

// HealthPolicySpec is the wanted check.
//
// +kubebuilder:validation:XValidation:rule="!has(self.http) || self.type == 'HTTP'",message="http: only a check of type HTTP has it"
// +kubebuilder:validation:XValidation:rule="!has(self.grpc) || self.type == 'GRPC'",message="grpc: only a check of type GRPC has it"
// +kubebuilder:validation:XValidation:rule="self.type != 'None' || !(has(self.interval) || has(self.timeout) || has(self.healthyThreshold) || has(self.unhealthyThreshold))",message="type: None makes no check, so interval, timeout and thresholds have no effect: remove them"
// +kubebuilder:validation:XValidation:rule="!has(self.timeout) || duration(self.timeout) <= duration(has(self.interval) ? self.interval : '30s')",message="timeout must not be above interval"
type HealthPolicySpec struct {
	// TargetRefs are what the policy is for, in its own namespace: Services,
	// single ports of Services (sectionName is the port's name), or Gateways. For
	// a backend the policy of its port counts, else that of its Service, else
	// that of the Gateway, and of several with the same target the oldest.
	//
	// +required
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:XValidation:rule="self.all(t, t.group == '' && t.kind == 'Service' || t.group == 'gateway.networking.k8s.io' && t.kind == 'Gateway')",message="targetRefs: a HealthPolicy attaches to a Service (group '') or to a Gateway (group gateway.networking.k8s.io)"
	// +kubebuilder:validation:XValidation:rule="self.all(t, !has(t.sectionName) || t.kind == 'Service')",message="targetRefs: sectionName is the name of a Service's port; a Gateway is meant as a whole"
	// +kubebuilder:validation:XValidation:rule="self.all(a, self.exists_one(b, a.kind == b.kind && a.name == b.name && (has(a.sectionName) ? a.sectionName : '') == (has(b.sectionName) ? b.sectionName : '')))",message="targetRefs: each target can be named once"
	TargetRefs []gatewayv1.LocalPolicyTargetReferenceWithSectionName `json:"targetRefs"`

	// Type is what is asked. HTTP: a GET, answered with an expected status. GRPC:
	// the method grpc.health.v1.Health/Check, answered with SERVING; it needs a
	// Service port with the appProtocol kubernetes.io/h2c. TCP: a connection. None:
	// nothing, and no check is derived either.
	//
	// +optional
	// +kubebuilder:default=HTTP
	Type HealthCheckType `json:"type,omitempty"`

	// Interval between two checks of an endpoint by one gateway pod, 30s when left
	// out, in the format of GEP-2257. An endpoint that fails is asked every 5s, if
	// that is shorter; those of a backend that never had a request every 60s, if
	// that is longer.
	//
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s') && duration(self) <= duration('1h')",message="interval must be from 1s to 1h"
	Interval *gatewayv1.Duration `json:"interval,omitempty"`

	// Timeout is how long an answer may take, 1s when left out.
	//
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('10ms') && duration(self) <= duration('1m')",message="timeout must be from 10ms to 1m"
	Timeout *gatewayv1.Duration `json:"timeout,omitempty"`

	// HealthyThreshold is how many checks in a row have to pass until an endpoint
	// that failed gets requests again, 1 when left out. A new endpoint gets them
	// after its first.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=10
	HealthyThreshold *int32 `json:"healthyThreshold,omitempty"`

	// UnhealthyThreshold is how many checks in a row have to fail until an
	// endpoint gets no more requests, 3 when left out. A gRPC server that answers
	// that it does not serve is believed at once.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=10
	UnhealthyThreshold *int32 `json:"unhealthyThreshold,omitempty"`

	// HTTP is what a check of type HTTP asks for.
	//
	// +optional
	HTTP *HTTPHealthCheck `json:"http,omitempty"`

	// GRPC is what a check of type GRPC asks for.
	//
	// +optional
	GRPC *GRPCHealthCheck `json:"grpc,omitempty"`
}

// HealthCheckType is what is asked of an endpoint.
//
// +kubebuilder:validation:Enum=HTTP;GRPC;TCP;None
type HealthCheckType string

const (
	// HealthCheckHTTP asks by a GET.
	HealthCheckHTTP HealthCheckType = "HTTP"
	// HealthCheckGRPC asks by the gRPC health checking protocol.
	HealthCheckGRPC HealthCheckType = "GRPC"
	// HealthCheckTCP makes a connection.
	HealthCheckTCP HealthCheckType = "TCP"
	// HealthCheckNone asks nothing.
	HealthCheckNone HealthCheckType = "None"
)

// HTTPHealthCheck is a GET and the answers that are good.
type HTTPHealthCheck struct {
	// Path of the request, with a query if there is to be one; "/" when left out.
	//
	// +optional
	// +kubebuilder:validation:Pattern=`^/[!-"$-~]*$`
	// +kubebuilder:validation:MaxLength=1024
	Path *string `json:"path,omitempty"`

	// Host is the request's Host header: a host name or an address, and a port if
	// there is to be one. Left out, it is "service.namespace".
	//
	// +optional
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?(:[1-9][0-9]{0,4})?$`
	// +kubebuilder:validation:MaxLength=253
	Host *string `json:"host,omitempty"`

	// ExpectedStatuses are the statuses of a good answer; 200 to 399 when left
	// out.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	ExpectedStatuses []StatusRange `json:"expectedStatuses,omitempty"`
}

// StatusRange is a range of HTTP statuses.
//
// +kubebuilder:validation:XValidation:rule="!has(self.end) || self.start <= self.end",message="expectedStatuses: start must not be above end"
type StatusRange struct {
	// Start is the lowest status.
	//
	// +required
	// +kubebuilder:validation:Minimum=100
	// +kubebuilder:validation:Maximum=599
	Start int32 `json:"start"`

	// End is the highest status; that of start when left out.
	//
	// +optional
	// +kubebuilder:validation:Minimum=100
	// +kubebuilder:validation:Maximum=599
	End *int32 `json:"end,omitempty"`
}

// GRPCHealthCheck says whose health a gRPC server is asked for.
type GRPCHealthCheck struct {
	// Service whose health is asked for; that of the server as a whole when left
	// out.
	//
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[!-~]+$`
	Service *string `json:"service,omitempty"`
}

// HealthPolicyList is a list of HealthPolicies.
//
// +kubebuilder:object:root=true
type HealthPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []HealthPolicy `json:"items"`
}
