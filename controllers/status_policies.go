package controllers

import (
	"context"
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/internal/model"
)

// healthPolicies writes the statuses of HealthPolicies.
func (r *StatusReconciler) healthPolicies(ctx context.Context, observed model.Observed, now metav1.Time, to *statusWrites) error {
	var list v1alpha1.HealthPolicyList
	if err := r.Client.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("read HealthPolicies: %w", err)
	}
	for i := range list.Items {
		object := &list.Items[i]
		status, known := observed.HealthPolicies[keyOf(object)]
		if !known || samePolicyStatus(object.Status, status) {
			continue
		}
		mergePolicyTimes(object.Status, status, now)
		to.add(true, func() error { return applyStatus(ctx, r.Client, object, status) })
	}
	return nil
}

// mergePolicyTimes gives the conditions of a policy's new status their times.
func mergePolicyTimes(before, after gatewayv1.PolicyStatus, now metav1.Time) {
	for i := range after.Ancestors {
		var old []metav1.Condition
		for _, ancestor := range before.Ancestors {
			if sameParent(ancestor.AncestorRef, after.Ancestors[i].AncestorRef) {
				old = ancestor.Conditions
			}
		}
		after.Ancestors[i].Conditions = model.MergeConditions(old, after.Ancestors[i].Conditions, now)
	}
}

func samePolicyStatus(a, b gatewayv1.PolicyStatus) bool {
	return slices.EqualFunc(a.Ancestors, b.Ancestors, func(a, b gatewayv1.PolicyAncestorStatus) bool {
		return a.ControllerName == b.ControllerName && sameParent(a.AncestorRef, b.AncestorRef) && sameConditions(a.Conditions, b.Conditions)
	})
}

// keepChecks keeps what was shown of a backend's health check where it is not known
// yet what to show, as at the start: otherwise all MeshRoutes would be written twice.
func keepChecks(before, after []v1alpha1.MeshRouteBackend) {
	for i := range after {
		if after[i].HealthCheck != (v1alpha1.MeshRouteHealthCheck{}) || after[i].Endpoints <= 0 {
			continue
		}
		at := slices.IndexFunc(before, func(b v1alpha1.MeshRouteBackend) bool {
			return b.Namespace == after[i].Namespace && b.Name == after[i].Name && b.Port == after[i].Port
		})
		if at >= 0 {
			after[i].HealthCheck = before[at].HealthCheck
			after[i].HealthyEndpoints, after[i].UnhealthyEndpoints = before[at].HealthyEndpoints, before[at].UnhealthyEndpoints
		}
	}
}
