package controllers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/source"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/internal/dataplane"
	"meshroute.io/meshroute/internal/model"
	"meshroute.io/meshroute/internal/workload"
)

const statusOwner = client.FieldOwner("meshroute.io/status")

// statusDelay is how long statuses are held back after something changed: what
// follows from one change (built, acknowledged by one pod, by the next) is then
// written once.
const statusDelay = 500 * time.Millisecond

// Where there are so many routes that to look at all of them takes long, statuses
// wait statusShare times as long as that took, up to maxStatusDelay: it is work and
// garbage that changes of configuration would have to wait for.
const (
	statusShare    = 10
	maxStatusDelay = 3 * time.Second
)

// A new leader knows of gateway pods what they report to it. Where there were
// gateways that were programmed, it says nothing for returnTime: all pods that
// live have come to it by then. That one has no pods at all any more it says
// after settleTime.
const (
	returnTime = 3 * time.Second
	settleTime = 15 * time.Second
)

// StatusReconciler writes what was judged and observed: the statuses of
// GatewayClasses, Gateways and ServiceRoutes, and the MeshRoutes. It writes
// only what differs from what is there.
type StatusReconciler struct {
	Client    client.Client
	Dataplane *dataplane.Dataplane
	Clock     clock.PassiveClock
	// Refusal tells why an object that runs a gateway was refused; nil where none
	// was.
	Refusal func(gateway model.Key) *model.Trouble
	// Built is closed after the first build: before it, nothing is known of any
	// object.
	Built <-chan struct{}
	// Changed is told whenever a status may have to be different.
	Changed <-chan event.GenericEvent

	started time.Time
	counted counted
	took    atomic.Int64 // nanoseconds, to find out what to write
}

func (r *StatusReconciler) delay() time.Duration {
	return max(statusDelay, min(statusShare*time.Duration(r.took.Load()), maxStatusDelay))
}

// Reconcile brings all statuses up to date.
func (r *StatusReconciler) Reconcile(ctx context.Context, _ statusRequest) (ctrl.Result, error) {
	select {
	case <-r.Built:
	default:
		return ctrl.Result{RequeueAfter: statusDelay}, nil
	}
	if r.started.IsZero() {
		r.started = r.Clock.Now()
	}
	begun := r.Clock.Now()
	workloads, err := r.workloads(ctx)
	if err != nil {
		return ctrl.Result{}, err
	}
	observed, recheck := r.Dataplane.Observe(r.Clock.Now(), workloads)
	waiting, err := r.unsettled(ctx, observed)
	if err != nil || waiting {
		return ctrl.Result{RequeueAfter: time.Second}, err
	}
	now := metav1.NewTime(r.Clock.Now())
	writes := statusWrites{counts: map[model.Key]func() error{}}
	failed := errors.Join(
		r.classes(ctx, observed, now, &writes),
		r.gateways(ctx, observed, now, &writes),
		r.healthPolicies(ctx, observed, now, &writes),
		r.routes(ctx, observed, now, &writes),
		r.meshRoutes(ctx, observed, now, &writes),
	)
	r.took.Store(int64(r.Clock.Since(begun)))
	left, err := writes.run(r.Clock)
	if left {
		// What is true of the others may be another thing by now.
		return ctrl.Result{RequeueAfter: time.Millisecond}, errors.Join(failed, err)
	}
	if writes.postponed > 0 && (recheck == 0 || writes.postponed < recheck) {
		recheck = writes.postponed
	}
	return ctrl.Result{RequeueAfter: recheck}, errors.Join(failed, err)
}

type statusRequest struct{}

// withoutPods are the reasons for which a gateway has no pods that are connected.
var withoutPods = []string{
	v1alpha1.ReasonNoGatewayPods, v1alpha1.ReasonPodsForbidden, v1alpha1.ReasonPodsUnschedulable,
	v1alpha1.ReasonImageUnavailable, v1alpha1.ReasonPodsCrashing, v1alpha1.ReasonPodsNotRunning,
}

// unsettled tells whether pods of a gateway that was programmed before this
// replica became the leader are still to connect.
func (r *StatusReconciler) unsettled(ctx context.Context, observed model.Observed) (bool, error) {
	since := r.Clock.Since(r.started)
	if since > settleTime {
		return false, nil
	}
	var gateways gatewayv1.GatewayList
	if err := r.Client.List(ctx, &gateways, client.UnsafeDisableDeepCopy); err != nil {
		return false, fmt.Errorf("read Gateways: %w", err)
	}
	for i := range gateways.Items {
		gw := &gateways.Items[i]
		status, ours := observed.Gateways[keyOf(gw)]
		if !ours {
			continue
		}
		now := findCondition(status.Conditions, v1alpha1.ConditionProgrammed)
		before := findCondition(gw.Status.Conditions, v1alpha1.ConditionProgrammed)
		if before == nil || before.Status != metav1.ConditionTrue {
			continue
		}
		if since < returnTime || now != nil && slices.Contains(withoutPods, now.Reason) {
			return true, nil
		}
	}
	return false, nil
}

func findCondition(conditions []metav1.Condition, kind string) *metav1.Condition {
	for i := range conditions {
		if conditions[i].Type == kind {
			return &conditions[i]
		}
	}
	return nil
}

func keyOf(object metav1.Object) model.Key {
	return model.Key{Namespace: object.GetNamespace(), Name: object.GetName()}
}

// workloads is what is known of the objects that run the gateways.
func (r *StatusReconciler) workloads(ctx context.Context) (map[model.Key]model.Workload, error) {
	found := map[model.Key]model.Workload{}
	for _, gw := range r.Dataplane.Result().Gateways {
		key := types.NamespacedName{Namespace: gw.Namespace, Name: workload.Name(gw.Name, gw.Class)}
		known := model.Workload{Refused: r.Refusal(gw.Key)}
		var service corev1.Service
		switch err := r.Client.Get(ctx, key, &service); {
		case err == nil:
			known.Addresses = serviceAddresses(&service)
			known.AwaitsAddress = service.Spec.Type == corev1.ServiceTypeLoadBalancer && len(service.Status.LoadBalancer.Ingress) == 0
		case client.IgnoreNotFound(err) != nil:
			return nil, fmt.Errorf("read Service %s: %w", key, err)
		}
		var deployment appsv1.Deployment
		switch err := r.Client.Get(ctx, key, &deployment); {
		case err == nil:
			var pods corev1.PodList
			if err := r.Client.List(ctx, &pods, client.UnsafeDisableDeepCopy, client.InNamespace(gw.Namespace),
				client.MatchingLabels(deployment.Spec.Selector.MatchLabels)); err != nil {
				return nil, fmt.Errorf("read the pods of Deployment %s: %w", key, err)
			}
			known.Pods = model.PodTrouble(gw.Key, &deployment, pointers(pods.Items))
			known.Zoneless = model.Zoneless(pointers(pods.Items))
		case client.IgnoreNotFound(err) != nil:
			return nil, fmt.Errorf("read Deployment %s: %w", key, err)
		}
		found[gw.Key] = known
	}
	return found, nil
}

func serviceAddresses(service *corev1.Service) []gatewayv1.GatewayStatusAddress {
	var addresses []gatewayv1.GatewayStatusAddress
	for _, ingress := range service.Status.LoadBalancer.Ingress {
		if ingress.IP != "" {
			addresses = append(addresses, gatewayv1.GatewayStatusAddress{Type: new(gatewayv1.IPAddressType), Value: ingress.IP})
		}
		if ingress.Hostname != "" {
			addresses = append(addresses, gatewayv1.GatewayStatusAddress{Type: new(gatewayv1.HostnameAddressType), Value: ingress.Hostname})
		}
	}
	if len(addresses) == 0 && service.Spec.ClusterIP != "" && service.Spec.ClusterIP != corev1.ClusterIPNone {
		addresses = append(addresses, gatewayv1.GatewayStatusAddress{Type: new(gatewayv1.IPAddressType), Value: service.Spec.ClusterIP})
	}
	return addresses
}

func (r *StatusReconciler) classes(ctx context.Context, observed model.Observed, now metav1.Time, to *statusWrites) error {
	var list gatewayv1.GatewayClassList
	if err := r.Client.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("read GatewayClasses: %w", err)
	}
	for i := range list.Items {
		object := &list.Items[i]
		status, ours := observed.Classes[object.Name]
		if !ours {
			continue
		}
		status.Conditions = model.MergeConditions(object.Status.Conditions, status.Conditions, now)
		if !equality.Semantic.DeepEqual(object.Status, status) {
			to.add(true, func() error { return applyStatus(ctx, r.Client, object, status) })
		}
	}
	return nil
}

func (r *StatusReconciler) gateways(ctx context.Context, observed model.Observed, now metav1.Time, to *statusWrites) error {
	var list gatewayv1.GatewayList
	if err := r.Client.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("read Gateways: %w", err)
	}
	for i := range list.Items {
		object := &list.Items[i]
		status, ours := observed.Gateways[keyOf(object)]
		if !ours {
			continue
		}
		status.Conditions = model.MergeConditions(object.Status.Conditions, status.Conditions, now)
		for l := range status.Listeners {
			var before []metav1.Condition
			for _, listener := range object.Status.Listeners {
				if listener.Name == status.Listeners[l].Name {
					before = listener.Conditions
				}
			}
			status.Listeners[l].Conditions = model.MergeConditions(before, status.Listeners[l].Conditions, now)
		}
		if !equality.Semantic.DeepEqual(object.Status, status) {
			to.add(true, func() error { return applyStatus(ctx, r.Client, object, status) })
		}
	}
	return nil
}

func (r *StatusReconciler) routes(ctx context.Context, observed model.Observed, now metav1.Time, to *statusWrites) error {
	var list v1alpha1.ServiceRouteList
	if err := r.Client.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("read ServiceRoutes: %w", err)
	}
	for i := range list.Items {
		object := &list.Items[i]
		status, known := observed.Routes[keyOf(object)]
		if !known {
			continue // newer than what was built last
		}
		status.Conditions = model.MergeConditions(object.Status.Conditions, status.Conditions, now)
		for p := range status.Parents {
			var before []metav1.Condition
			for _, parent := range object.Status.Parents {
				if sameParent(parent.ParentRef, status.Parents[p].ParentRef) {
					before = parent.Conditions
				}
			}
			status.Parents[p].Conditions = model.MergeConditions(before, status.Parents[p].Conditions, now)
		}
		if !sameRouteStatus(object.Status, status) {
			to.add(news(object.Status.Conditions, status.Conditions), func() error { return applyStatus(ctx, r.Client, object, status) })
		}
	}
	return nil
}

// meshRoutes creates, updates and deletes MeshRoutes.
func (r *StatusReconciler) meshRoutes(ctx context.Context, observed model.Observed, now metav1.Time, to *statusWrites) error {
	var list v1alpha1.MeshRouteList
	if err := r.Client.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("read MeshRoutes: %w", err)
	}
	exists := make(map[model.Key]*v1alpha1.MeshRoute, len(list.Items))
	for i := range list.Items {
		object := &list.Items[i]
		if _, wanted := observed.MeshRoutes[keyOf(object)]; wanted {
			exists[keyOf(object)] = object
		} else {
			to.add(false, func() error {
				if err := client.IgnoreNotFound(r.Client.Delete(ctx, object)); err != nil {
					return fmt.Errorf("delete %s: %w", describe(object), err)
				}
				return nil
			})
		}
	}
	owners := make(map[model.Key]string, len(observed.Routes))
	for _, route := range r.Dataplane.Result().Routes {
		owners[route.Key] = route.UID
	}
	for key, status := range observed.MeshRoutes {
		object := exists[key]
		if object != nil {
			keepChecks(object.Status.Backends, status.Backends)
		}
		if object != nil && sameMeshRouteStatus(object.Status, status) {
			continue
		}
		write := func() error {
			if object == nil {
				object = &v1alpha1.MeshRoute{Namespace: key.Namespace, Name: key.Name}
				if err := r.createMeshRoute(ctx, object, owners[key]); err != nil {
					return err
				}
			}
			status.Conditions = model.MergeConditions(object.Status.Conditions, status.Conditions, now)
			return applyStatus(ctx, r.Client, object, status)
		}
		if object != nil && sameButCounts(object.Status, status) {
			to.counts[key] = write
		} else {
			to.add(object == nil || news(object.Status.Conditions, status.Conditions), write)
		}
	}
	r.counted.admit(to, now.Time)
	return nil
}

// createMeshRoute creates a MeshRoute that goes when its ServiceRoute does. The
// one that sums up a namespace has no owner.
func (r *StatusReconciler) createMeshRoute(ctx context.Context, object *v1alpha1.MeshRoute, owner string) error {
	if owner != "" {
		object.OwnerReferences = []metav1.OwnerReference{{
			APIVersion: v1alpha1.GroupVersion.String(), Kind: "ServiceRoute", Name: object.Name,
			UID: types.UID(owner), Controller: new(true),
		}}
	}
	if err := client.IgnoreAlreadyExists(r.Client.Create(ctx, object, statusOwner)); err != nil {
		return fmt.Errorf("create %s: %w", describe(object), err)
	}
	return nil
}

// SetupWithManager registers the controller.
func (r *StatusReconciler) SetupWithManager(mgr manager.Manager) error {
	// Whatever happens, all statuses are looked at, a little later.
	all := handler.TypedFuncs[client.Object, statusRequest]{
		CreateFunc: func(_ context.Context, _ event.CreateEvent, queue statusQueue) {
			queue.AddAfter(statusRequest{}, r.delay())
		},
		UpdateFunc: func(_ context.Context, _ event.UpdateEvent, queue statusQueue) {
			queue.AddAfter(statusRequest{}, r.delay())
		},
		DeleteFunc: func(_ context.Context, _ event.DeleteEvent, queue statusQueue) {
			queue.AddAfter(statusRequest{}, r.delay())
		},
		GenericFunc: func(_ context.Context, _ event.GenericEvent, queue statusQueue) {
			queue.AddAfter(statusRequest{}, r.delay())
		},
	}
	// What this operator writes itself is no news to it; a status that somebody
	// else changed is mended with the next change of anything.
	spec := builder.WithPredicates(predicate.GenerationChangedPredicate{})
	deleted := builder.WithPredicates(predicate.Funcs{
		CreateFunc: func(event.CreateEvent) bool { return false },
		UpdateFunc: func(event.UpdateEvent) bool { return false },
	})
	gateways, err := predicate.LabelSelectorPredicate(metav1.LabelSelector{
		MatchLabels: map[string]string{workload.LabelManagedBy: workload.ManagedBy},
	})
	if err != nil {
		return err
	}
	return builder.TypedControllerManagedBy[statusRequest](mgr).
		Named("status").
		Watches(&v1alpha1.MeshRoute{}, all, deleted).
		Watches(&v1alpha1.ServiceRoute{}, all, spec).
		Watches(&v1alpha1.HealthPolicy{}, all, spec).
		Watches(&gatewayv1.Gateway{}, all, spec).
		Watches(&gatewayv1.GatewayClass{}, all, spec).
		Watches(&corev1.Service{}, all, builder.WithPredicates(gateways)).
		Watches(&appsv1.Deployment{}, all).
		Watches(&corev1.Pod{}, all).
		WatchesRawSource(source.TypedChannel(r.Changed, all)).
		WithOptions(controller.TypedOptions[statusRequest]{MaxConcurrentReconciles: 1}).
		Complete(r)
}

type statusQueue = workqueue.TypedRateLimitingInterface[statusRequest]
