package controllers

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/internal/model"
	"meshroute.io/meshroute/internal/workload"
)

func sameService(a, b *corev1.Service) bool { return equality.Semantic.DeepEqual(a.Spec, b.Spec) }

// applier applies objects by server-side apply, and only those that need it: an
// object is applied again when it should be different, or when somebody changed
// it since. It never takes over an object that is another's.
type applier struct {
	client client.Client
	// direct reads from the API server: the cache holds only objects with the
	// label of this operator.
	direct client.Reader

	mu      sync.Mutex
	applied map[string]appliedObject
}

// appliedObject is what was applied, and the state of the object afterwards.
type appliedObject struct {
	hash  [sha256.Size]byte
	state string
}

func newApplier(c client.Client, direct client.Reader) *applier {
	return &applier{client: c, direct: direct, applied: map[string]appliedObject{}}
}

// refusal is an object that cannot be applied for a reason that stays until
// somebody does something about it: to try again at once is of no use.
type refusal model.Trouble

func (r *refusal) Error() string { return r.Message }

// apply makes the API server hold what object says. live is an empty object of
// the same kind, to read the present state into from the cache.
func (a *applier) apply(ctx context.Context, object runtime.ApplyConfiguration, live client.Object) error {
	encoded, err := json.Marshal(object)
	if err != nil {
		return fmt.Errorf("encode %T: %w", object, err)
	}
	desired := &unstructured.Unstructured{}
	if err := json.Unmarshal(encoded, &desired.Object); err != nil {
		return fmt.Errorf("decode %T: %w", object, err)
	}
	name := fmt.Sprintf("%s %s/%s", desired.GetKind(), desired.GetNamespace(), desired.GetName())
	hash := sha256.Sum256(encoded)

	err = a.client.Get(ctx, client.ObjectKeyFromObject(desired), live)
	if err == nil {
		a.mu.Lock()
		last, known := a.applied[name]
		a.mu.Unlock()
		if known && last.hash == hash && last.state == stateOf(live) {
			return nil
		}
	}
	present := live
	if apierrors.IsNotFound(err) {
		metadata := &metav1.PartialObjectMetadata{}
		metadata.SetGroupVersionKind(desired.GroupVersionKind())
		present, err = metadata, a.direct.Get(ctx, client.ObjectKeyFromObject(desired), metadata)
	}
	switch {
	case err == nil && !sameOwner(present, desired):
		return &refusal{v1alpha1.ReasonNameTaken, fmt.Sprintf(
			"%s exists and is not this Gateway's, so it is left alone: delete it, or choose another name for the Gateway", name)}
	case client.IgnoreNotFound(err) != nil:
		return fmt.Errorf("read %s: %w", name, err)
	}
	err = a.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(desired), workloadOwner, client.ForceOwnership)
	switch {
	case apierrors.IsInvalid(err) || apierrors.IsForbidden(err) || apierrors.IsBadRequest(err):
		return &refusal{v1alpha1.ReasonObjectRefused, fmt.Sprintf("the API server refuses %s: %s", name, refusedBecause(err))}
	case err != nil:
		return fmt.Errorf("apply %s: %w", name, err)
	}
	a.mu.Lock()
	a.applied[name] = appliedObject{hash: hash, state: stateOf(desired)}
	a.mu.Unlock()
	return nil
}

// sameOwner tells whether an object that exists belongs to whom it should belong
// to: it is controlled by the same owner or, having lost its owner (who deletes
// without cascade leaves such), still carries the label of this operator.
func sameOwner(present metav1.Object, desired *unstructured.Unstructured) bool {
	has, wanted := metav1.GetControllerOf(present), metav1.GetControllerOf(desired)
	if has == nil {
		return present.GetLabels()[workload.LabelManagedBy] == workload.ManagedBy
	}
	return wanted != nil && has.UID == wanted.UID
}

// refusedBecause is what an API server says, and what to do where that is known.
func refusedBecause(err error) string {
	message := err.Error()
	switch {
	case strings.Contains(message, "nodePort"):
		message += ": choose another nodePort in the GatewayConfig"
	case strings.Contains(message, "exceeded quota"):
		message += ": raise the quota"
	}
	return message
}

// stateOf changes whenever somebody changes what an object wants: with its
// generation, where its kind has one (a Deployment's status changes often and
// is not ours), or else with every write.
func stateOf(object metav1.Object) string {
	if generation := object.GetGeneration(); generation > 0 {
		return fmt.Sprintf("%s generation %d", object.GetUID(), generation)
	}
	return fmt.Sprintf("%s version %s", object.GetUID(), object.GetResourceVersion())
}

// applyStatus writes the status of an object that exists.
func applyStatus(ctx context.Context, c client.Client, object client.Object, status any) error {
	encoded, err := json.Marshal(status)
	if err != nil {
		return fmt.Errorf("encode the status of %s: %w", describe(object), err)
	}
	var content map[string]any
	if err := json.Unmarshal(encoded, &content); err != nil {
		return fmt.Errorf("encode the status of %s: %w", describe(object), err)
	}
	gvk, err := c.GroupVersionKindFor(object)
	if err != nil {
		return err
	}
	patch := &unstructured.Unstructured{Object: map[string]any{"status": content}}
	patch.SetGroupVersionKind(gvk)
	patch.SetNamespace(object.GetNamespace())
	patch.SetName(object.GetName())
	err = c.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(patch), statusOwner, client.ForceOwnership)
	if apierrors.IsNotFound(err) {
		return nil // deleted in the meantime
	}
	if err != nil {
		return fmt.Errorf("write the status of %s: %w", describe(object), err)
	}
	return nil
}

func describe(object client.Object) string {
	return fmt.Sprintf("%T %s", object, client.ObjectKeyFromObject(object))
}
