package controllers

import (
	"context"
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/internal/workload"
)

// cluster is an API server that counts applies, and refuses them when told to.
type cluster struct {
	client.Client
	applied int
	refuse  error
}

func newCluster() *cluster {
	c := &cluster{}
	c.Client = fake.NewClientBuilder().WithInterceptorFuncs(interceptor.Funcs{
		Apply: func(ctx context.Context, inner client.WithWatch, object runtime.ApplyConfiguration, options ...client.ApplyOption) error {
			if c.refuse != nil {
				return c.refuse
			}
			c.applied++
			return inner.Apply(ctx, object, options...)
		},
	}).Build()
	return c
}

func TestApplierAppliesWhatNeedsIt(t *testing.T) {
	ctx := t.Context()
	c := newCluster()
	a := newApplier(c, c)
	value, key := "1", client.ObjectKey{Namespace: "shop", Name: "edge"}
	live := func() *corev1.ConfigMap {
		t.Helper()
		var object corev1.ConfigMap
		if err := c.Get(ctx, key, &object); err != nil {
			t.Fatal(err)
		}
		return &object
	}
	for _, step := range []struct {
		name    string
		change  func() error
		applies bool
	}{
		{"it is not there", nil, true},
		{"nothing changed", nil, false},
		{"nothing changed again", nil, false},
		{"it should be different", func() error { value = "2"; return nil }, true},
		{"nothing changed since", nil, false},
		{"somebody changed it", func() error {
			object := live()
			object.Data["key"] = "theirs"
			return c.Update(ctx, object)
		}, true},
		{"it was mended", nil, false},
		{"somebody deleted it", func() error { return c.Delete(ctx, live()) }, true},
		{"it is there again", nil, false},
	} {
		if step.change != nil {
			if err := step.change(); err != nil {
				t.Fatal(err)
			}
		}
		before := c.applied
		desired := corev1ac.ConfigMap(key.Name, key.Namespace).
			WithLabels(map[string]string{workload.LabelManagedBy: workload.ManagedBy}).WithData(map[string]string{"key": value})
		if err := a.apply(ctx, desired, &corev1.ConfigMap{}); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if applied := c.applied > before; applied != step.applies {
			t.Errorf("%s: applied %v, wanted %v", step.name, applied, step.applies)
		}
		if got := live().Data["key"]; got != value {
			t.Errorf("%s: it holds %q, wanted %q", step.name, got, value)
		}
	}
}

// What could not be applied is not taken for applied.
func TestApplierTriesAgainAfterAnError(t *testing.T) {
	c := newCluster()
	a := newApplier(c, c)
	desired := func() *corev1ac.ConfigMapApplyConfiguration {
		return corev1ac.ConfigMap("edge", "shop").WithData(map[string]string{"key": "1"})
	}
	c.refuse = errors.New("no")
	err := a.apply(t.Context(), desired(), &corev1.ConfigMap{})
	if !errors.Is(err, c.refuse) || err.Error() != "apply ConfigMap shop/edge: no" {
		t.Errorf("error %v", err)
	}
	c.refuse = nil
	if err := a.apply(t.Context(), desired(), &corev1.ConfigMap{}); err != nil || c.applied != 1 {
		t.Errorf("applied %d times, %v", c.applied, err)
	}
}

// What is another's is left alone: the API server would let it be taken over.
func TestApplierTakesNothingOver(t *testing.T) {
	const key, uid = "shop/edge", types.UID("this")
	owned := func(by types.UID) []metav1.OwnerReference {
		return []metav1.OwnerReference{{APIVersion: "gateway.networking.k8s.io/v1", Kind: "Gateway", Name: "edge", UID: by, Controller: new(true)}}
	}
	ours := map[string]string{workload.LabelManagedBy: workload.ManagedBy}
	for name, test := range map[string]struct {
		present *corev1.ConfigMap
		cached  bool
		taken   bool
	}{
		"nothing is there":                        {},
		"this Gateway's":                          {present: &corev1.ConfigMap{Labels: ours, OwnerReferences: owned(uid)}, cached: true},
		"this Gateway's, without its label":       {present: &corev1.ConfigMap{OwnerReferences: owned(uid)}},
		"this Gateway's, deleted without cascade": {present: &corev1.ConfigMap{Labels: ours}, cached: true},
		"a user's": {present: &corev1.ConfigMap{}, taken: true},
		"a user's, of a kind that is cached as a whole":   {present: &corev1.ConfigMap{}, cached: true, taken: true},
		"another Gateway's that comes to the same name":   {present: &corev1.ConfigMap{Labels: ours, OwnerReferences: owned("other")}, cached: true, taken: true},
		"that of a Gateway which had this one's own name": {present: &corev1.ConfigMap{Labels: ours, OwnerReferences: owned("before")}, cached: true, taken: true},
	} {
		t.Run(name, func(t *testing.T) {
			direct, cached := newCluster(), newCluster()
			if test.present != nil {
				test.present.Namespace, test.present.Name = "shop", "edge"
				for _, c := range []*cluster{direct, cached} {
					if c == cached && !test.cached {
						continue
					}
					if err := c.Create(t.Context(), test.present.DeepCopy()); err != nil {
						t.Fatal(err)
					}
				}
			}
			err := newApplier(cached, direct).apply(t.Context(), corev1ac.ConfigMap("edge", "shop").
				WithOwnerReferences(metav1ac.OwnerReference().WithAPIVersion("gateway.networking.k8s.io/v1").WithKind("Gateway").
					WithName("edge").WithUID(uid).WithController(true)), &corev1.ConfigMap{})
			var refused *refusal
			switch {
			case !test.taken && (err != nil || cached.applied != 1):
				t.Errorf("applied %d times, %v", cached.applied, err)
			case test.taken && (!errors.As(err, &refused) || refused.Reason != v1alpha1.ReasonNameTaken || !strings.Contains(refused.Message, key)):
				t.Errorf("error %v", err)
			case test.taken && cached.applied != 0:
				t.Error("it was taken over")
			}
		})
	}
}

// A status that changes often, such as a Deployment's, is no reason to apply.
func TestStateOf(t *testing.T) {
	object := func(uid types.UID, version string, generation int64) string {
		return stateOf(&corev1.ConfigMap{UID: uid, ResourceVersion: version, Generation: generation})
	}
	for name, test := range map[string]struct {
		a, b string
		same bool
	}{
		"another version of the same generation": {object("1", "1", 1), object("1", "2", 1), true},
		"another generation":                     {object("1", "1", 1), object("1", "2", 2), false},
		"another version without generations":    {object("1", "1", 0), object("1", "2", 0), false},
		"another object of the same name":        {object("1", "1", 1), object("2", "1", 1), false},
		"the same":                               {object("1", "1", 0), object("1", "1", 0), true},
	} {
		if (test.a == test.b) != test.same {
			t.Errorf("%s: %s and %s", name, test.a, test.b)
		}
	}
}
