package controllers

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
)

// The statuses of all routes are compared whenever something has changed. With a
// thousand routes the general comparison by reflection took more time than
// everything else that the operator did, so these two kinds have their own.

func sameRouteStatus(a, b v1alpha1.ServiceRouteStatus) bool {
	return sameConditions(a.Conditions, b.Conditions) &&
		slices.EqualFunc(a.Parents, b.Parents, func(a, b gatewayv1.RouteParentStatus) bool {
			return a.ControllerName == b.ControllerName && sameParent(a.ParentRef, b.ParentRef) && sameConditions(a.Conditions, b.Conditions)
		})
}

func sameMeshRouteStatus(a, b v1alpha1.MeshRouteStatus) bool {
	return a.Display == b.Display && same(a.Summary, b.Summary) && sameConditions(a.Conditions, b.Conditions) &&
		slices.Equal(a.Gateways, b.Gateways) && slices.EqualFunc(a.Backends, b.Backends, sameBackend)
}

func sameBackend(a, b v1alpha1.MeshRouteBackend) bool {
	return a.Namespace == b.Namespace && a.Name == b.Name && a.Port == b.Port &&
		a.Endpoints == b.Endpoints && a.ReadyEndpoints == b.ReadyEndpoints && a.HealthCheck == b.HealthCheck &&
		same(a.HealthyEndpoints, b.HealthyEndpoints) && slices.Equal(a.UnhealthyEndpoints, b.UnhealthyEndpoints)
}

// sameConditions leaves out the time of the last transition: it follows from the
// status.
func sameConditions(a, b []metav1.Condition) bool {
	return slices.EqualFunc(a, b, func(a, b metav1.Condition) bool {
		return a.Type == b.Type && a.Status == b.Status && a.Reason == b.Reason &&
			a.Message == b.Message && a.ObservedGeneration == b.ObservedGeneration
	})
}

func sameParent(a, b gatewayv1.ParentReference) bool {
	return a.Name == b.Name && same(a.Group, b.Group) && same(a.Kind, b.Kind) && same(a.Namespace, b.Namespace) &&
		same(a.SectionName, b.SectionName) && same(a.Port, b.Port)
}

func same[T comparable](a, b *T) bool { return a == b || a != nil && b != nil && *a == *b }
