package controllers

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func sameService(a, b *corev1.Service) bool { return equality.Semantic.DeepEqual(a.Spec, b.Spec) }

// applier applies objects by server-side apply, and only those that need it: an
// object is applied again when it should be different, or when somebody changed
// it since.
type applier struct {
	client client.Client
	owner  client.FieldOwner

	mu      sync.Mutex
	applied map[string]appliedObject
}

// appliedObject is what was applied, and the state of the object afterwards.
type appliedObject struct {
	hash  [sha256.Size]byte
	state string
}

func newApplier(c client.Client, owner client.FieldOwner) *applier {
	return &applier{client: c, owner: owner, applied: map[string]appliedObject{}}
}

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
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if err == nil {
		a.mu.Lock()
		last, known := a.applied[name]
		a.mu.Unlock()
		if known && last.hash == hash && last.state == stateOf(live) {
			return nil
		}
	}
	if err := a.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(desired), a.owner, client.ForceOwnership); err != nil {
		return fmt.Errorf("apply %s: %w", name, err)
	}
	a.mu.Lock()
	a.applied[name] = appliedObject{hash: hash, state: stateOf(desired)}
	a.mu.Unlock()
	return nil
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
func applyStatus(ctx context.Context, c client.Client, owner client.FieldOwner, object client.Object, status any) error {
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
	err = c.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(patch), owner, client.ForceOwnership)
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
