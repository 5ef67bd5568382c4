package controllers

import (
	"context"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"meshroute.io/meshroute/internal/workload"
)

// Strip takes away what nobody here reads, before an object is kept in memory:
// with thousands of objects that is most of them.
func Strip(in any) (any, error) {
	object, is := in.(metav1.Object)
	if !is {
		return in, nil // an event of the cache's own
	}
	if object.GetManagedFields() != nil {
		object.SetManagedFields(nil)
	}
	// What kubectl applied last is all of it once more. A map may be shared.
	if _, has := object.GetAnnotations()[corev1.LastAppliedConfigAnnotation]; has {
		annotations := maps.Clone(object.GetAnnotations())
		delete(annotations, corev1.LastAppliedConfigAnnotation)
		object.SetAnnotations(annotations)
	}
	switch of := in.(type) {
	case *corev1.Namespace:
		of.Annotations, of.OwnerReferences, of.Finalizers = nil, nil, nil
		of.Spec, of.Status = corev1.NamespaceSpec{}, corev1.NamespaceStatus{}
	case *corev1.Service:
		// Of a gateway's own the address is told, and the owner decides whether it
		// may be removed.
		if of.Labels[workload.LabelManagedBy] != workload.ManagedBy {
			of.OwnerReferences, of.Finalizers = nil, nil
			of.Status = corev1.ServiceStatus{}
		}
	case *discoveryv1.EndpointSlice:
		of.Annotations, of.OwnerReferences, of.GenerateName = nil, nil, ""
		for i := range of.Endpoints {
			of.Endpoints[i].DeprecatedTopology, of.Endpoints[i].Hostname = nil, nil
		}
	}
	return in, nil
}

// all returns the objects of a kind in the cache as they are there: they must not
// be changed. A List, even one without deep copies, copies each object's outermost
// struct; with 5,000 Services these are 5 MB for each change of anything, and what
// it returns is never the object that was read before.
func all[T any, O interface {
	*T
	client.Object
}](ctx context.Context, c cache.Cache, list client.ObjectList, items *[]T) ([]O, error) {
	informer, err := c.GetInformer(ctx, O(new(T)))
	if err != nil {
		return nil, fmt.Errorf("read %T: %w", list, err)
	}
	stored, is := informer.(interface{ GetStore() toolscache.Store })
	if !is {
		// Some namespaces only: there is an informer for each of them, out of reach.
		if err := c.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return nil, fmt.Errorf("read %T: %w", list, err)
		}
		objects := make([]O, len(*items))
		for i := range *items {
			objects[i] = &(*items)[i]
		}
		return objects, nil
	}
	held := stored.GetStore().List()
	objects := make([]O, 0, len(held))
	for _, object := range held {
		if object, is := object.(O); is {
			objects = append(objects, object)
		}
	}
	return objects, nil
}
