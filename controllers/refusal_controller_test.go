package controllers

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/internal/dataplane"
	"meshroute.io/meshroute/internal/model"
)

func TestWhatIsWrittenDownOfARefusalIsReadAgain(t *testing.T) {
	good := &v1alpha1.ServiceRoute{
		Namespace: "shop", Name: "front", UID: "uid", Generation: 3,
		CreationTimestamp: metav1.Unix(1_000_000, 0),
		Spec: v1alpha1.ServiceRouteSpec{
			Hostnames: []gatewayv1.Hostname{"shop.example.com"},
			Rules:     []v1alpha1.ServiceRouteRule{{Name: "all"}},
		},
	}
	noisy := good.DeepCopy()
	noisy.Annotations = map[string]string{"kubectl.kubernetes.io/last-applied-configuration": "all of it once more"}
	noisy.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "somebody"}}
	noisy.Status.Conditions = []metav1.Condition{{Type: "Ready"}}
	for name, instead := range map[string]*v1alpha1.ServiceRoute{"with a good version": noisy, "without one": nil} {
		t.Run(name, func(t *testing.T) {
			refusal := &dataplane.Refusal{
				Route: model.Key{Namespace: "shop", Name: "front"}, UID: "uid", Generation: 4,
				Message: "bad regex", By: "v1, envoy:v2", LastGood: instead,
			}
			read, err := readRefusal(writtenDown(t, refusal))
			if err != nil {
				t.Fatal(err)
			}
			if refusal.LastGood != nil {
				refusal.LastGood = good
			}
			ignoreKind := cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".TypeMeta" }, cmp.Ignore())
			if diff := cmp.Diff(refusal, read, ignoreKind); diff != "" {
				t.Errorf("read again (-want +got):\n%s", diff)
			}
		})
	}
}

// Whoever else keeps ControllerRevisions is not listened to, and nothing that was
// tampered with is used.
func TestOtherControllerRevisionsAreNotRefusals(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*appsv1.ControllerRevision)
		failed string
	}{
		"one of a StatefulSet": {change: func(r *appsv1.ControllerRevision) {
			r.OwnerReferences[0].APIVersion, r.OwnerReferences[0].Kind = "apps/v1", "StatefulSet"
		}},
		"one without an owner":     {change: func(r *appsv1.ControllerRevision) { r.OwnerReferences = nil }},
		"one of another name":      {change: func(r *appsv1.ControllerRevision) { r.Name = "front" }},
		"one without a generation": {change: func(r *appsv1.ControllerRevision) { r.Annotations = nil }, failed: "refused-generation"},
		"one of another route": {
			change: func(r *appsv1.ControllerRevision) {
				r.Data.Raw = []byte(strings.ReplaceAll(string(r.Data.Raw), `"shop"`, `"bank"`))
			},
			failed: "data is of ServiceRoute bank/front",
		},
		"one of an earlier route of the name": {
			change: func(r *appsv1.ControllerRevision) { r.OwnerReferences[0].UID = "newer" },
			failed: "UID newer",
		},
		"one that is no object": {change: func(r *appsv1.ControllerRevision) { r.Data.Raw = []byte(`[]`) }, failed: "decode data"},
	} {
		t.Run(name, func(t *testing.T) {
			revision := writtenDown(t, &dataplane.Refusal{
				Route: model.Key{Namespace: "shop", Name: "front"}, UID: "uid", Generation: 4,
				LastGood: &v1alpha1.ServiceRoute{Namespace: "shop", Name: "front", UID: "uid", Generation: 3},
			})
			test.change(revision)
			read, err := readRefusal(revision)
			if read != nil || (err == nil) != (test.failed == "") || err != nil && !strings.Contains(err.Error(), test.failed) {
				t.Errorf("read %+v, %v", read, err)
			}
		})
	}
}

func TestRefusalNames(t *testing.T) {
	names := map[string]bool{}
	for _, route := range []string{"front", "front.refused.meshroute.io", strings.Repeat("a", 252), strings.Repeat("a", 253)} {
		name := refusalName(model.Key{Namespace: "shop", Name: route})
		if len(name) > 253 || names[name] {
			t.Errorf("route %s: %s is too long, or another route's", route, name)
		}
		names[name] = true
	}
}

func writtenDown(t *testing.T, refusal *dataplane.Refusal) *appsv1.ControllerRevision {
	t.Helper()
	desired, err := refusalRevision(refusal)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := json.Marshal(desired)
	if err != nil {
		t.Fatal(err)
	}
	var revision appsv1.ControllerRevision
	if err := json.Unmarshal(encoded, &revision); err != nil {
		t.Fatal(err)
	}
	return &revision
}
