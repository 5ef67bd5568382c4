package controllers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"meshroute.io/meshroute/internal/dataplane"
	"meshroute.io/meshroute/internal/model"
	"meshroute.io/meshroute/internal/workload"
)

// NetworkPolicyReconciler keeps the network policies between gateways and their
// backends as the routes want them. What they are, and when one may go, is the
// Dataplane's to say.
type NetworkPolicyReconciler struct {
	Client client.Client
	// Direct reads from the API server rather than from the cache.
	Direct    client.Reader
	Dataplane *dataplane.Dataplane
	Clock     clock.PassiveClock
	// Changed is told whenever a policy may have to be different.
	Changed <-chan event.GenericEvent
	// RefusalChanged is told when something else is refused than before. It must
	// not block.
	RefusalChanged func()

	applier *applier
	refused atomic.Bool // since the last look
}

type networkPolicyRequest struct{}

// Reconcile writes the policies that differ from what is wanted.
func (r *NetworkPolicyReconciler) Reconcile(ctx context.Context, _ networkPolicyRequest) (ctrl.Result, error) {
	changes, recheck := r.Dataplane.NetworkPolicies(r.Clock.Now())
	var writes []func() error
	for _, object := range changes.Apply {
		writes = append(writes, func() error {
			desired := workload.IsolationPolicy(object.Key, object.Policy)
			if object.Gateway != nil {
				desired = workload.EgressPolicy(*object.Gateway, object.Key, object.Policy)
			}
			return r.written(ctx, object.Key, r.applier.apply(ctx, desired, &networkingv1.NetworkPolicy{}))
		})
	}
	for _, key := range changes.Delete {
		writes = append(writes, func() error {
			err := client.IgnoreNotFound(r.Client.Delete(ctx, &networkingv1.NetworkPolicy{Namespace: key.Namespace, Name: key.Name}))
			if err != nil {
				err = fmt.Errorf("delete NetworkPolicy %s: %w", key, err)
			}
			return r.written(ctx, key, err)
		})
	}
	err := allOf(writes)
	if err == nil && r.refused.Swap(false) {
		recheck = cmp.Or(min(recheck, refusedAgain), refusedAgain)
	}
	return ctrl.Result{RequeueAfter: recheck}, err
}

// written tells the Dataplane of a policy that could not be written: it counts
// with it being as wanted. What was refused is for a status, and is tried again
// in a while.
func (r *NetworkPolicyReconciler) written(ctx context.Context, key model.Key, failed error) error {
	message := ""
	if refused, is := errors.AsType[*refusal](failed); is {
		r.refused.Store(true)
		message, failed = refused.Message, nil
	}
	if r.Dataplane.PolicyRefused(key, message) {
		r.RefusalChanged()
	}
	if failed == nil && message == "" {
		return nil
	}
	var object networkingv1.NetworkPolicy
	if err := r.Client.Get(ctx, client.ObjectKey{Namespace: key.Namespace, Name: key.Name}, &object); err == nil {
		r.Dataplane.SetPolicy(key, workload.ReadPolicy(&object), r.Clock.Now())
	}
	return failed
}

// SetupWithManager registers the controller.
func (r *NetworkPolicyReconciler) SetupWithManager(mgr manager.Manager) error {
	r.applier = newApplier(r.Client, r.Direct)
	all := handler.TypedEnqueueRequestsFromMapFunc(func(context.Context, client.Object) []networkPolicyRequest {
		return []networkPolicyRequest{{}}
	})
	return builder.TypedControllerManagedBy[networkPolicyRequest](mgr).
		Named("networkpolicy").
		WatchesRawSource(source.TypedChannel(r.Changed, all)).
		WithOptions(controller.TypedOptions[networkPolicyRequest]{MaxConcurrentReconciles: 1}).
		Complete(r)
}
