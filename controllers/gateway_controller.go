package controllers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/clock"
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
// What is made for a Gateway is owned by it, and goes with it; what is owned by
// it and no longer wanted, because its class is another, goes at once.
type GatewayReconciler struct {
	Client client.Client
	// Direct reads from the API server rather than from the cache.
	Direct    client.Reader
	Dataplane *dataplane.Dataplane
	Clock     clock.PassiveClock
	// Options returns what all gateways have in common; the roots among it
	// change with the authority.
	Options func() workload.Options
	// Changed is told whenever the objects of gateways may have to be different.
	Changed <-chan event.GenericEvent

	// RefusalChanged is told when what Refusal returns has changed. It must not block.
	RefusalChanged func()

	applier  *applier
	mu       sync.Mutex
	refusals map[model.Key]*model.Trouble
}

// refusedAgain is when an object that was refused is tried again: what was in
// the way may have gone without any event.
const refusedAgain = 15 * time.Second

// Reconcile applies the objects of one Gateway, and deletes those that are owned
// by it under another name.
func (r *GatewayReconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	key := model.Key{Namespace: request.Namespace, Name: request.Name}
	result := r.Dataplane.Result()
	var again time.Duration
	var refused *model.Trouble
	var failed error
	if i := slices.IndexFunc(result.Gateways, func(gw model.Gateway) bool { return gw.Key == key }); i >= 0 {
		gw := result.Gateways[i]
		again, refused, failed = r.applyObjects(ctx, gw)
		failed = errors.Join(failed, r.sweep(ctx, key, workload.Name(gw.Name, gw.Class)))
	} else if slices.Contains(result.Foreign, key) {
		failed = r.sweep(ctx, key, "")
	}
	r.note(key, refused)
	if refused != nil && failed == nil {
		again = cmp.Or(again, refusedAgain)
	}
	return ctrl.Result{RequeueAfter: again}, failed
}

// Refusal tells why an object of a Gateway was refused; nil where none was.
func (r *GatewayReconciler) Refusal(gateway model.Key) *model.Trouble {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.refusals[gateway]
}

// note keeps a refusal for the Gateway's status.
func (r *GatewayReconciler) note(gateway model.Key, refused *model.Trouble) {
	r.mu.Lock()
	before := r.refusals[gateway]
	if refused != nil {
		r.refusals[gateway] = refused
	} else {
		delete(r.refusals, gateway)
	}
	r.mu.Unlock()
	if (before == nil) != (refused == nil) || before != nil && *before != *refused {
		r.RefusalChanged()
	}
}

// made are the kinds of objects that are made for a gateway in its namespace.
func made() []client.ObjectList {
	return []client.ObjectList{
		&autoscalingv2.HorizontalPodAutoscalerList{}, &appsv1.DeploymentList{}, &policyv1.PodDisruptionBudgetList{}, &corev1.ServiceList{},
		&corev1.ConfigMapList{}, &corev1.ServiceAccountList{},
	}
}

// sweep deletes what is owned by a Gateway and has another name than what is
// wanted; all of it where name is empty.
func (r *GatewayReconciler) sweep(ctx context.Context, gateway model.Key, name string) error {
	var failed []error
	for _, list := range made() {
		if err := r.Client.List(ctx, list, client.UnsafeDisableDeepCopy, client.InNamespace(gateway.Namespace),
			client.MatchingLabels{workload.LabelManagedBy: workload.ManagedBy}); err != nil {
			failed = append(failed, fmt.Errorf("read %T: %w", list, err))
			continue
		}
		failed = append(failed, meta.EachListItem(list, func(item runtime.Object) error {
			object, ok := item.(client.Object)
			if !ok || object.GetName() == name {
				return nil
			}
			owner := metav1.GetControllerOf(object)
			if owner == nil || owner.Kind != "Gateway" || owner.Name != gateway.Name {
				return nil
			}
			err := r.Client.Delete(ctx, object, client.Preconditions{UID: new(object.GetUID())},
				client.PropagationPolicy(metav1.DeletePropagationBackground))
			if client.IgnoreNotFound(err) != nil {
				return fmt.Errorf("delete %s: %w", describe(object), err)
			}
			return nil
		}))
	}
	return errors.Join(failed...)
}

// applyObjects returns the first object that was refused, and what failed
// otherwise; and when to apply again what has to wait, or 0.
func (r *GatewayReconciler) applyObjects(ctx context.Context, gw model.Gateway) (time.Duration, *model.Trouble, error) {
	if gw.Infrastructure == nil {
		return 0, nil, nil // how is not known at the moment, which its status says
	}
	options := r.Options()
	encoded, err := envoy.Bootstrap(envoy.BootstrapOptions{
		Gateway:     gw.Key,
		XDSSocket:   workload.XDSSocket,
		PagesSocket: workload.PagesSocket,
		AdminSocket: workload.AdminSocket,
		ProbePort:   model.ProbePort,
		IPv6:        gw.IPv6,
	})
	if err != nil {
		return 0, nil, fmt.Errorf("bootstrap of Gateway %s: %w", gw.Key, err)
	}
	bootstrap := string(encoded)
	podBootstrap, err := envoy.PodBootstrap("$(ZONE)")
	if err != nil {
		return 0, nil, fmt.Errorf("bootstrap of pods: %w", err)
	}
	options.PodBootstrap = string(podBootstrap)
	if err := r.autoscale(ctx, gw); err != nil {
		return 0, nil, err
	}
	again, policy, err := r.restriction(ctx, gw, options)
	if err != nil {
		return 0, nil, err
	}
	var refused *refusal
	var failed []error
	type applied struct {
		desired runtime.ApplyConfiguration
		live    client.Object
	}
	objects := []applied{
		{workload.ServiceAccount(gw), &corev1.ServiceAccount{}},
		{workload.ConfigMap(gw, options, bootstrap), &corev1.ConfigMap{}},
		{workload.Service(gw), &corev1.Service{}},
		{workload.PodDisruptionBudget(gw), &policyv1.PodDisruptionBudget{}},
		{workload.Deployment(gw, options, bootstrap), &appsv1.Deployment{}},
	}
	if gw.Infrastructure.Autoscaling != nil {
		objects = append(objects, applied{workload.HorizontalPodAutoscaler(gw), &autoscalingv2.HorizontalPodAutoscaler{}})
	}
	if policy != nil {
		objects = append([]applied{{policy, &networkingv1.NetworkPolicy{}}}, objects...)
	}
	unrestricted := false
	for _, object := range objects {
		if _, pods := object.live.(*appsv1.Deployment); pods && unrestricted {
			// Pods that run stay as they are; none come to be without the policy.
			break
		}
		// One object that cannot be applied is no reason to leave out another.
		err := r.applier.apply(ctx, object.desired, object.live)
		if _, restricts := object.live.(*networkingv1.NetworkPolicy); restricts {
			unrestricted = err != nil
		}
		if found, is := errors.AsType[*refusal](err); is {
			refused = cmp.Or(refused, found)
		} else {
			failed = append(failed, err)
		}
	}
	return again, (*model.Trouble)(refused), errors.Join(failed...)
}

// restriction is the policy that restricts a gateway's pods: applied before there
// are any, or else once the policies that let them reach their backends are in
// force. The other way round they would be cut off in between. It is nil where it
// is not wanted, or has to wait, and again is for how long. (One that is not
// wanted any more is removed with backends' policies.)
func (r *GatewayReconciler) restriction(ctx context.Context, gw model.Gateway, options workload.Options) (
	again time.Duration, policy runtime.ApplyConfiguration, err error,
) {
	if !gw.Infrastructure.NetworkPolicy.Restricted {
		return 0, nil, nil
	}
	if !r.Dataplane.PoliciesInForce(gw.Key, r.Clock.Now()) {
		name := workload.PolicyKey(gw)
		key := client.ObjectKey{Namespace: name.Namespace, Name: name.Name}
		without, err := missing(ctx, r.Client, key, &networkingv1.NetworkPolicy{})
		if err != nil {
			return 0, nil, err
		}
		fresh, err := missing(ctx, r.Client, key, &appsv1.Deployment{}) // of the same name
		if err != nil {
			return 0, nil, err
		}
		if without && !fresh {
			return 100 * time.Millisecond, nil, nil
		}
	}
	return 0, workload.GatewayPolicy(gw, options), nil
}

func missing(ctx context.Context, c client.Reader, key client.ObjectKey, object client.Object) (bool, error) {
	err := c.Get(ctx, key, object)
	if client.IgnoreNotFound(err) != nil {
		return false, fmt.Errorf("read %T %s: %w", object, key, err)
	}
	return err != nil, nil
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
	if exists && !controlledBy(&autoscaler, gw) {
		return nil // its name is taken, which is told when it is applied
	}
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
	if err := r.Client.Get(ctx, key, &deployment); err != nil || exists || !controlledBy(&deployment, gw) {
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

func controlledBy(object metav1.Object, gw model.Gateway) bool {
	owner := metav1.GetControllerOf(object)
	return owner != nil && string(owner.UID) == gw.UID
}

// SetupWithManager registers the controller.
func (r *GatewayReconciler) SetupWithManager(mgr manager.Manager) error {
	r.applier, r.refusals = newApplier(r.Client, r.Direct), map[model.Key]*model.Trouble{}
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
		result := r.Dataplane.Result()
		for _, gw := range result.Gateways {
			requests = append(requests, reconcile.Request{Namespace: gw.Namespace, Name: gw.Name})
		}
		for _, key := range result.Foreign {
			requests = append(requests, reconcile.Request{Namespace: key.Namespace, Name: key.Name})
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
		Owns(&networkingv1.NetworkPolicy{}, owned).
		WatchesRawSource(source.Channel(r.Changed, all)).
		Complete(reconcile.Func(r.Reconcile))
}
