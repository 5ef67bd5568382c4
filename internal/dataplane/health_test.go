package dataplane

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"meshroute.io/meshroute/internal/model"
)

func tcpProbe(seconds int32) Probes {
	return Probes{model.ProbesOf(&corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{
		Name: "web",
		ReadinessProbe: &corev1.Probe{
			TCPSocket:     &corev1.TCPSocketAction{Port: intstr.FromInt32(8080)},
			PeriodSeconds: seconds,
		},
	}}}})}
}

// Checks follow from what the pods say, whenever that is known, and change nothing
// but the cluster: no route is sent anew for them, and none has to be acknowledged
// again.
func TestChecksFollowThePods(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.configure()
	service := model.Key{Namespace: "shop", Name: "a"}
	if diff := cmp.Diff([]model.Key{service, {Namespace: "shop", Name: "b"}}, w.Unprobed()); diff != "" {
		t.Errorf("Services whose pods are not known (-want +got):\n%s", diff)
	}
	checks := func() string {
		gw := w.gateways[edge]
		if check := gw.told.Health["shop/a/80"].Check; check != nil {
			return check.Interval.String()
		}
		return gw.told.Health["shop/a/80"].Why
	}
	before := *w.gateways[edge]
	if !w.SetProbes(map[model.Key]Probes{service: tcpProbe(20)}) || checks() != "20s" {
		t.Errorf("first probe: %q", checks())
	}
	after := w.gateways[edge]
	if after.since != before.since || after.routes[service].sequence != before.routes[service].sequence || after.latest == before.latest {
		t.Errorf("sequences: since %d, then %d; latest %d, then %d", before.since, after.since, before.latest, after.latest)
	}
	if w.SetProbes(map[model.Key]Probes{service: tcpProbe(20)}) {
		t.Error("the same again is news")
	}
	latest := after.latest
	w.configure()
	if checks() != "20s" || w.gateways[edge].latest != latest {
		t.Errorf("building again made it %q, and sent something: %t", checks(), w.gateways[edge].latest != latest)
	}
	// Two that differ.
	if !w.SetProbes(map[model.Key]Probes{service: append(tcpProbe(20), tcpProbe(30)...)}) || checks() != "" {
		t.Errorf("mixed probes: %q", checks())
	}
	if w.SetProbes(map[model.Key]Probes{{Namespace: "shop", Name: "nobody"}: tcpProbe(20)}) {
		t.Error("a Service that is not in use counts")
	}
	w.in.ServiceRoutes = w.in.ServiceRoutes[1:]
	w.configure()
	if len(w.probes) != 0 || len(w.derived) != 0 {
		t.Errorf("of Services that are not in use is still known: %v, %v", w.probes, w.derived)
	}
}
