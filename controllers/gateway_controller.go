package controllers

import (
	"context"
	"errors"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/internal/dataplane"
	"meshroute.io/meshroute/internal/envoy"
	"meshroute.io/meshroute/internal/model"
	"meshroute.io/meshroute/internal/workload"
)

const (
	workloadOwner = client.FieldOwner("meshroute.io/workload")
	// replicasOwner holds a Deployment's number of pods from when an autoscaler
	// is to choose it until that does.
	replicasOwner = client.FieldOwner("meshroute.io/replicas")
)

// GatewayReconciler keeps the objects that run each gateway as they should be.
// What is made for a Gateway is owned by it, and goes with it.
type GatewayReconciler struct {
	Client    client.Client
	Dataplane *dataplane.Dataplane
	// Options returns what all gateways have in common; the roots among it
	// change with the authority.
	Options func() workload.Options
	// Changed is told whenever the objects of gateways may have to be different.
	Changed <-chan event.GenericEvent

	applier *applier
}

// Reconcile applies the objects of one Gateway.
func (r *GatewayReconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	for _, gw := range r.Dataplane.Result().Gateways {
		if gw.Namespace == request.Namespace && gw.Name == request.Name {
			return ctrl.Result{}, r.applyObjects(ctx, gw)
		}
	}
	return ctrl.Result{}, nil
}

func (r *GatewayReconciler) applyObjects(ctx context.Context, gw model.Gateway) error {
	if gw.Infrastructure == nil {
		return nil // how is not known at the moment, which its status says
	}
	options := r.Options()
	encoded, err := envoy.Bootstrap(envoy.BootstrapOptions{
		Gateway:     gw.Key,
		XDSSocket:   workload.XDSSocket,
		PagesSocket: workload.PagesSocket,
		AdminSocket: workload.AdminSocket,
	})
	if err != nil {
		return fmt.Errorf("bootstrap of Gateway %s: %w", gw.Key, err)
	}
	bootstrap := string(encoded)
	if err := r.autoscale(ctx, gw); err != nil {
		return err
	}
	var failed []error
	for _, object := range []struct {
		desired runtime.ApplyConfiguration
		live    client.Object
	}{
		{workload.ServiceAccount(gw), &corev1.ServiceAccount{}},
		{workload.ConfigMap(gw, options, bootstrap), &corev1.ConfigMap{}},
		{workload.Service(gw), &corev1.Service{}},
		{workload.PodDisruptionBudget(gw), &policyv1.PodDisruptionBudget{}},
		{workload.Deployment(gw, options, bootstrap), &appsv1.Deployment{}},
	} {
		// One object that cannot be applied is no reason to leave out another.
		failed = append(failed, r.applier.apply(ctx, object.desired, object.live))
	}
	if gw.Infrastructure.Autoscaling != nil {
		failed = append(failed, r.applier.apply(ctx, workload.HorizontalPodAutoscaler(gw), &autoscalingv2.HorizontalPodAutoscaler{}))
	}
	return errors.Join(failed...)
}

// autoscale prepares a Deployment for who chooses its number of pods. A field
// that nobody owns any more goes back to its default, one pod; so before the
// number is left to an autoscaler it passes, as it is, to an owner of its own.
// The autoscaler is applied last: where there is one, this was done. Without
// autoscaling it goes first, or it would go on choosing.
func (r *GatewayReconciler) autoscale(ctx context.Context, gw model.Gateway) error {
	key := client.ObjectKey{Namespace: gw.Namespace, Name: workload.Name(gw.Name, gw.Class)}
	var autoscaler autoscalingv2.HorizontalPodAutoscaler
	err := r.Client.Get(ctx, key, &autoscaler)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("read HorizontalPodAutoscaler %s: %w", key, err)
	}
	exists := err == nil
	if gw.Infrastructure.Autoscaling == nil {
		if !exists {
			return nil
		}
		err := r.Client.Delete(ctx, &autoscaler)
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("delete HorizontalPodAutoscaler %s: %w", key, err)
		}
		return nil
	}
	var deployment appsv1.Deployment
	if err := r.Client.Get(ctx, key, &deployment); err != nil || exists {
		return client.IgnoreNotFound(err)
	}
	// An autoscaler leaves a Deployment without pods alone.
	replicas := max(1, ptr.Deref(deployment.Spec.Replicas, 1), gw.Infrastructure.Autoscaling.MinReplicas)
	passed := workload.Replicas(gw, replicas).WithResourceVersion(deployment.ResourceVersion)
	if err := r.Client.Apply(ctx, passed, replicasOwner, client.ForceOwnership); err != nil {
		return fmt.Errorf("keep the number of pods of Deployment %s for its autoscaler: %w", key, err)
	}
	return nil
}

// SetupWithManager registers the controller.
func (r *GatewayReconciler) SetupWithManager(mgr manager.Manager) error {
	r.applier = newApplier(r.Client, workloadOwner)
	owned := builder.WithPredicates(predicate.Funcs{
		// What this operator has just made is no news to it.
		CreateFunc: func(event.CreateEvent) bool { return false },
		UpdateFunc: func(e event.UpdateEvent) bool {
			return stateOf(e.ObjectOld) != stateOf(e.ObjectNew)
		},
	})
	// What was built may concern any of them; most have nothing to apply then.
	all := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request {
		var requests []reconcile.Request
		for _, gw := range r.Dataplane.Result().Gateways {
			requests = append(requests, reconcile.Request{Namespace: gw.Namespace, Name: gw.Name})
		}
		return requests
	})
	return builder.ControllerManagedBy(mgr).
		Named("gateway").
		For(&gatewayv1.Gateway{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Owns(&corev1.ServiceAccount{}, owned).
		Owns(&corev1.ConfigMap{}, owned).
		Owns(&corev1.Service{}, owned).
		Owns(&policyv1.PodDisruptionBudget{}, owned).
		Owns(&appsv1.Deployment{}, owned).
		Owns(&autoscalingv2.HorizontalPodAutoscaler{}, owned).
		WatchesRawSource(source.Channel(r.Changed, all)).
		Complete(reconcile.Func(r.Reconcile))
}
