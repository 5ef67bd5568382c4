package controllers

import (
	"errors"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/runtime"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/internal/dataplane"
	"meshroute.io/meshroute/internal/xds"
)

// With thousands of routes the first build takes longer than it takes until
// statuses are looked at: what is there must not be taken for what is left over.
func TestNoStatusIsTouchedBeforeTheFirstBuild(t *testing.T) {
	scheme := runtime.NewScheme()
	if err := errors.Join(v1alpha1.AddToScheme(scheme), gatewayv1.Install(scheme)); err != nil {
		t.Fatal(err)
	}
	there := &v1alpha1.MeshRoute{Namespace: "shop", Name: "front"}
	objects := fake.NewClientBuilder().WithScheme(scheme).WithObjects(there).Build()
	r := &StatusReconciler{
		Client: objects, Clock: clocktesting.NewFakePassiveClock(there.CreationTimestamp.Time),
		Dataplane: dataplane.New(xds.NewServer(nil, logr.Discard()), nil), Built: make(chan struct{}),
	}
	result, err := r.Reconcile(t.Context(), statusRequest{})
	if err != nil || result.RequeueAfter == 0 {
		t.Errorf("it is not looked at again: %v, %v", result, err)
	}
	if err := objects.Get(t.Context(), client.ObjectKeyFromObject(there), there); err != nil {
		t.Errorf("the MeshRoute: %v", err)
	}
}

func TestStatusesWaitLongerWhereThereAreMany(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{
		0:                      500 * time.Millisecond,
		20 * time.Millisecond:  500 * time.Millisecond,
		150 * time.Millisecond: 1500 * time.Millisecond,
		time.Minute:            3 * time.Second,
	} {
		var r StatusReconciler
		r.took.Store(int64(took))
		if got := r.delay(); got != want {
			t.Errorf("after a look that took %v they wait %v", took, got)
		}
	}
}
