package controllers

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	appsv1ac "k8s.io/client-go/applyconfigurations/apps/v1"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/internal/dataplane"
	"meshroute.io/meshroute/internal/model"
	"meshroute.io/meshroute/internal/workload"
)

// RefusalReconciler writes down which routes Envoy refuses, and what serves
// instead, in a ControllerRevision beside each of them: it outlives managers, and
// goes with the route. What to write is the Dataplane's to say.
type RefusalReconciler struct {
	Client    client.Client
	Dataplane *dataplane.Dataplane
	Clock     clock.PassiveClock
	// Changed is told whenever pods have reported, or something was built.
	Changed <-chan event.GenericEvent

	started time.Time
}

type refusalRequest struct{}

const refusalOwner = client.FieldOwner("meshroute.io/refusals")

// Reconcile writes what is not written yet.
func (r *RefusalReconciler) Reconcile(ctx context.Context, _ refusalRequest) (ctrl.Result, error) {
	if r.started.IsZero() {
		r.started = r.Clock.Now()
	}
	// Nothing is concluded from what only some of the pods have reported.
	if left := returnTime - r.Clock.Since(r.started); left > 0 {
		return ctrl.Result{RequeueAfter: left}, nil
	}
	changes := r.Dataplane.Refusals(r.Clock.Now())
	var writes []func() error
	for _, refusal := range changes.Write {
		writes = append(writes, func() error { return r.write(ctx, refusal) })
	}
	for _, route := range changes.Delete {
		writes = append(writes, func() error { return r.remove(ctx, route) })
	}
	return ctrl.Result{}, allOf(writes)
}

func (r *RefusalReconciler) write(ctx context.Context, refusal *dataplane.Refusal) error {
	desired, err := refusalRevision(refusal)
	if err != nil {
		return err
	}
	err = r.Client.Apply(ctx, desired, refusalOwner, client.ForceOwnership)
	if apierrors.IsInvalid(err) {
		// The data of a ControllerRevision never changes: this is an earlier one's.
		if err := r.remove(ctx, refusal.Route); err != nil {
			return err
		}
		err = r.Client.Apply(ctx, desired, refusalOwner, client.ForceOwnership)
	}
	if err != nil {
		return fmt.Errorf("write down that Envoy refuses ServiceRoute %s: %w", refusal.Route, err)
	}
	return nil
}

func (r *RefusalReconciler) remove(ctx context.Context, route model.Key) error {
	revision := &appsv1.ControllerRevision{Namespace: route.Namespace, Name: refusalName(route)}
	if err := client.IgnoreNotFound(r.Client.Delete(ctx, revision)); err != nil {
		return fmt.Errorf("delete ControllerRevision %s/%s: %w", revision.Namespace, revision.Name, err)
	}
	return nil
}

// SetupWithManager registers the controller.
func (r *RefusalReconciler) SetupWithManager(mgr manager.Manager) error {
	all := handler.TypedEnqueueRequestsFromMapFunc(func(context.Context, client.Object) []refusalRequest {
		return []refusalRequest{{}}
	})
	return builder.TypedControllerManagedBy[refusalRequest](mgr).
		Named("refusal").
		WatchesRawSource(source.TypedChannel(r.Changed, all)).
		WithOptions(controller.TypedOptions[refusalRequest]{MaxConcurrentReconciles: 1}).
		Complete(r)
}

// What a ControllerRevision tells beside its data, which is the version of the
// route that serves instead; without a spec there is none.
const (
	annotationGeneration = "meshroute.io/refused-generation"
	annotationBy         = "meshroute.io/refused-by"
	annotationBecause    = "meshroute.io/refused-because"

	refusalSuffix    = ".refused.meshroute.io"
	componentRefusal = "refused-route"
)

// refusalName is the name of the ControllerRevision of a route.
func refusalName(route model.Key) string {
	const most = 253
	if len(route.Name)+len(refusalSuffix) <= most {
		return route.Name + refusalSuffix
	}
	sum := sha256.Sum256([]byte(route.Name))
	hash := "x" + hex.EncodeToString(sum[:8])
	return route.Name[:most-len(refusalSuffix)-len(hash)] + hash + refusalSuffix
}

// refusalRevision is what is written down of a refusal.
func refusalRevision(refusal *dataplane.Refusal) (*appsv1ac.ControllerRevisionApplyConfiguration, error) {
	data, number := []byte("{}"), int64(0)
	if good := refusal.LastGood; good != nil {
		// Such as one could apply it, but for what others wrote into it.
		kept := &v1alpha1.ServiceRoute{
			Namespace: good.Namespace, Name: good.Name, UID: good.UID, Generation: good.Generation,
			CreationTimestamp: good.CreationTimestamp, Spec: good.Spec,
		}
		kept.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("ServiceRoute"))
		var err error
		if data, err = json.Marshal(kept); err != nil {
			return nil, fmt.Errorf("encode ServiceRoute %s: %w", refusal.Route, err)
		}
		number = good.Generation
	}
	return appsv1ac.ControllerRevision(refusalName(refusal.Route), refusal.Route.Namespace).
		WithLabels(map[string]string{workload.LabelManagedBy: workload.ManagedBy, workload.LabelComponent: componentRefusal}).
		WithAnnotations(map[string]string{
			annotationGeneration: strconv.FormatInt(refusal.Generation, 10),
			annotationBy:         refusal.By,
			annotationBecause:    refusal.Message,
		}).
		WithOwnerReferences(metav1ac.OwnerReference().
			WithAPIVersion(v1alpha1.GroupVersion.String()).WithKind("ServiceRoute").
			WithName(refusal.Route.Name).WithUID(types.UID(refusal.UID)).WithController(true)).
		WithRevision(number).
		WithData(runtime.RawExtension{Raw: data}), nil
}

// readRefusal is the inverse of refusalRevision. It is nil for what is none.
func readRefusal(revision *appsv1.ControllerRevision) (*dataplane.Refusal, error) {
	route, is := refusedRoute(revision)
	if !is {
		return nil, nil
	}
	refusal := &dataplane.Refusal{
		Route: route, UID: string(metav1.GetControllerOf(revision).UID),
		Message: revision.Annotations[annotationBecause], By: revision.Annotations[annotationBy],
	}
	var err error
	if refusal.Generation, err = strconv.ParseInt(revision.Annotations[annotationGeneration], 10, 64); err != nil {
		return nil, fmt.Errorf("annotation %s: %w", annotationGeneration, err)
	}
	var kept v1alpha1.ServiceRoute
	if err := json.Unmarshal(revision.Data.Raw, &kept); err != nil {
		return nil, fmt.Errorf("decode data: %w", err)
	}
	if kept.Name == "" {
		return refusal, nil
	}
	if keyOf(&kept) != route || string(kept.UID) != refusal.UID {
		return nil, fmt.Errorf("data is of ServiceRoute %s (UID %s), and its owner is %s (UID %s)", keyOf(&kept), kept.UID, route, refusal.UID)
	}
	refusal.LastGood = &kept
	return refusal, nil
}

// refusedRoute is the route that a ControllerRevision is about.
func refusedRoute(revision metav1.Object) (route model.Key, is bool) {
	owner := metav1.GetControllerOf(revision)
	if owner == nil || owner.Kind != "ServiceRoute" || owner.APIVersion != v1alpha1.GroupVersion.String() {
		return model.Key{}, false
	}
	route = model.Key{Namespace: revision.GetNamespace(), Name: owner.Name}
	return route, revision.GetName() == refusalName(route)
}
