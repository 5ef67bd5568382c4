// Package v1alpha1 holds the kinds of the API group meshroute.io: what users
// declare (ServiceRoute, GatewayConfig) and what the operator observes
// (MeshRoute). Gateways themselves are Gateway API's GatewayClass and Gateway.
//
// What a schema can refuse is refused here, by validation markers and CEL
// rules whose messages name the field; what needs other objects to judge is
// found by the operator and told in conditions, whose types and reasons are
// the constants in conditions.go.
//
// +kubebuilder:object:generate=true
// +groupName=meshroute.io
package v1alpha1
