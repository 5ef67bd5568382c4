package model

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"meshroute.io/meshroute/api/v1alpha1"
)

// Two gateways of one and two pods check the three endpoints of a Service.
func TestMeshRouteTellsWhichEndpointsFail(t *testing.T) {
	edge, other := Key{"shop", "edge"}, Key{"shop", "other"}
	cluster := Cluster{Name: "shop/a/80", Service: Key{"shop", "a"}}
	endpoints := []Endpoint{{Address: "10.0.0.1", Port: 8080}, {Address: "10.0.0.2", Port: 8080}, {Address: "fd00::3", Port: 8080}}
	first, second, third := netip.MustParseAddrPort("10.0.0.1:8080"), netip.MustParseAddrPort("10.0.0.2:8080"), netip.MustParseAddrPort("[fd00::3]:8080")
	type found = map[Key]map[netip.AddrPort]int
	for name, tt := range map[string]struct {
		found     found
		unchecked bool
		pods      map[Key]int
		want      v1alpha1.MeshRouteBackend
		ready     string
	}{
		"none": {
			want:  v1alpha1.MeshRouteBackend{HealthyEndpoints: new(int32(3))},
			ready: "True Ready: serving",
		},
		"one in one pod, and one that has gone": {
			found: found{edge: {first: 1}, other: {netip.MustParseAddrPort("10.0.0.9:8080"): 2}},
			want:  v1alpha1.MeshRouteBackend{HealthyEndpoints: new(int32(2)), UnhealthyEndpoints: []v1alpha1.UnhealthyEndpoint{{Address: "10.0.0.1:8080", Pods: 1}}},
			ready: "True Ready: serving; 1 of 3 endpoints of Service shop/a on port 80 fail their health check",
		},
		"each in some pods": {
			found: found{edge: {first: 1, second: 1}, other: {third: 2}},
			want: v1alpha1.MeshRouteBackend{HealthyEndpoints: new(int32(0)), UnhealthyEndpoints: []v1alpha1.UnhealthyEndpoint{
				{Address: "10.0.0.1:8080", Pods: 1}, {Address: "10.0.0.2:8080", Pods: 1}, {Address: "[fd00::3]:8080", Pods: 2},
			}},
			ready: "True Ready: serving; 3 of 3 endpoints of Service shop/a on port 80 fail their health check",
		},
		"all in all pods": {
			found: found{edge: {first: 1, second: 1, third: 1}, other: {first: 2, second: 2, third: 2}},
			want: v1alpha1.MeshRouteBackend{HealthyEndpoints: new(int32(0)), UnhealthyEndpoints: []v1alpha1.UnhealthyEndpoint{
				{Address: "10.0.0.1:8080", Pods: 3}, {Address: "10.0.0.2:8080", Pods: 3}, {Address: "[fd00::3]:8080", Pods: 3},
			}},
			ready: "False EndpointsUnhealthy: every endpoint of Service shop/a on port 80 fails its health check: requests go to all of them all the same",
		},
		"nothing is asked any more": {
			found: found{edge: {first: 1}}, unchecked: true,
			ready: "True Ready: serving",
		},
		"no pod is there to tell": {
			pods:  map[Key]int{},
			ready: "False NoGatewayPods",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.pods == nil {
				tt.pods = map[Key]int{edge: 1, other: 2}
			}
			progress := func(gateway Key) Progress { return Progress{Pods: tt.pods[gateway], Acknowledged: tt.pods[gateway]} }
			check := &HealthCheck{Type: CheckTCP, Interval: DefaultHealthInterval}
			if tt.unchecked {
				check = nil
			}
			out := Observe(Result{Routes: []*RouteStatus{{
				Key: Key{"shop", "a"}, Parents: []ParentStatus{{Gateway: &edge}, {Gateway: &edge}, {Gateway: &other}},
				Backends: []BackendStatus{{Service: cluster.Service, Port: "80", Cluster: &cluster}},
			}}}, Observations{
				Endpoints:       map[string]EndpointSet{cluster.Name: {Serving: endpoints, Ready: 3}},
				GatewayProgress: progress,
				RouteProgress:   func(gateway, _ Key) Progress { return progress(gateway) },
				Health:          func(Key, Cluster) Health { return Health{Check: check} },
				Unhealthy:       func(gateway Key, _ string) map[netip.AddrPort]int { return tt.found[gateway] },
			})
			mesh := out.MeshRoutes[Key{"shop", "a"}]
			got := v1alpha1.MeshRouteBackend{HealthyEndpoints: mesh.Backends[0].HealthyEndpoints, UnhealthyEndpoints: mesh.Backends[0].UnhealthyEndpoints}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			ready := mesh.Conditions[0]
			says := string(ready.Status) + " " + ready.Reason + ": " + ready.Message
			if ready.Status == metav1.ConditionFalse && ready.Reason == v1alpha1.ReasonNoGatewayPods {
				says = "False NoGatewayPods"
			}
			if says != tt.ready {
				t.Errorf("it says %s", says)
			}
		})
	}
}
