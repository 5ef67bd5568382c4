package controllers

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"

	"meshroute.io/meshroute/internal/workload"
)

func TestStrip(t *testing.T) {
	t.Parallel()
	applied := map[string]string{corev1.LastAppliedConfigAnnotation: "{}", "kept": "yes"}
	fields := []metav1.ManagedFieldsEntry{{Manager: "kubectl"}}
	address := corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}}}}
	ours := map[string]string{workload.LabelManagedBy: workload.ManagedBy}
	for name, test := range map[string]struct{ in, want any }{
		"a Service of others": {
			&corev1.Service{ManagedFields: fields, Annotations: applied, Spec: corev1.ServiceSpec{ClusterIP: "10.0.0.1"}, Status: address},
			&corev1.Service{Annotations: map[string]string{"kept": "yes"}, Spec: corev1.ServiceSpec{ClusterIP: "10.0.0.1"}},
		},
		"a gateway's Service": {
			&corev1.Service{Labels: ours, Status: address},
			&corev1.Service{Labels: ours, Status: address},
		},
		"a Namespace": {
			&corev1.Namespace{Name: "shop", Labels: ours, Annotations: applied, Spec: corev1.NamespaceSpec{Finalizers: []corev1.FinalizerName{"kubernetes"}}},
			&corev1.Namespace{Name: "shop", Labels: ours},
		},
		"an EndpointSlice": {
			&discoveryv1.EndpointSlice{Labels: ours, Annotations: applied, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}, Hostname: new("web"), Zone: new("a")}}},
			&discoveryv1.EndpointSlice{Labels: ours, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}, Zone: new("a")}}},
		},
		"no object": {toolscache.DeletedFinalStateUnknown{Key: "shop/web"}, toolscache.DeletedFinalStateUnknown{Key: "shop/web"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := Strip(test.in)
			if diff := cmp.Diff(test.want, got); err != nil || diff != "" {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
	if applied[corev1.LastAppliedConfigAnnotation] == "" {
		t.Error("a map that may be shared was changed")
	}
}
