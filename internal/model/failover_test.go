package model

import (
	"fmt"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"meshroute.io/meshroute/api/v1alpha1"
)

func TestSharesOfFailovers(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		weights [][]uint32 // by priority
		want    []uint32
	}{
		"one and one":              {weights: [][]uint32{{5}, {7}}, want: []uint32{1}},
		"as they are":              {weights: [][]uint32{{2, 1}, {1}}, want: []uint32{2, 1}},
		"as small as can be":       {weights: [][]uint32{{90, 10}, {3}}, want: []uint32{9, 1}},
		"the heaviest first":       {weights: [][]uint32{{10, 90}, {3}}, want: []uint32{9, 1}},
		"products":                 {weights: [][]uint32{{2, 1}, {3, 1}}, want: []uint32{6, 2, 3, 1}},
		"as large as they may be":  {weights: [][]uint32{{1_000_000, 1}, {1}}, want: []uint32{1_000_000, 1}},
		"so large that Envoy ends": {weights: [][]uint32{{1_000_000, 1}, {1_000_000, 1}}, want: []uint32{65533 * 65533, 65533, 65533, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var candidates []candidate
			for priority, weights := range test.weights {
				for i, weight := range weights {
					cluster := Cluster{Name: fmt.Sprintf("%d-%d", priority, i)}
					candidates = append(candidates, candidate{&cluster, weight, int32(priority)})
				}
			}
			var r rule
			r.share(candidates)
			var got []uint32
			for _, share := range r.route.Backends {
				got = append(got, share.Weight)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// Whatever eight backends are given, Envoy can add their weights up, and nobody
// is forgotten.
func FuzzSharesOfFailovers(f *testing.F) {
	f.Add(uint32(1), uint32(1_000_000), uint32(999_983), uint32(7), uint8(0b01010101))
	f.Fuzz(func(t *testing.T, a, b, c, d uint32, priorities uint8) {
		var candidates []candidate
		for i, weight := range []uint32{a, b, c, d, d, c, b, a} {
			cluster := Cluster{Name: fmt.Sprint(i)}
			priority := int32(priorities >> i & 3)
			candidates = append(candidates, candidate{&cluster, weight%1_000_000 + 1, priority})
		}
		var r rule
		r.share(candidates)
		sum := uint64(0)
		first := map[string]bool{}
		for _, share := range r.route.Backends {
			if share.Weight == 0 {
				t.Errorf("a share of nothing: %+v", r.route.Backends)
			}
			sum += uint64(share.Weight)
			first[share.Cluster] = true
		}
		if sum > math.MaxUint32 {
			t.Errorf("the weights are %d in all", sum)
		}
		if len(first) != len(r.route.Backends) || len(r.route.Backends) > 18 {
			t.Errorf("%d shares, of %d names", len(r.route.Backends), len(first))
		}
	})
}

// A route is ready as long as others take the requests of backends that have no
// endpoint, and says that they do.
func TestObserveFailover(t *testing.T) {
	t.Parallel()
	backend := func(name string) BackendStatus {
		return BackendStatus{Service: Key{"shop", name}, Port: "80", Cluster: &Cluster{Name: name}}
	}
	for name, test := range map[string]struct {
		groups  [][]string
		serving []string
		want    string
	}{
		"all": {
			groups: [][]string{{"a", "b"}}, serving: []string{"a", "b", "c"}, want: "Ready=True Ready: serving",
		},
		"the preferred has none": {
			groups: [][]string{{"a", "b"}}, serving: []string{"b", "c"},
			want: "Ready=True Ready: serving; Service shop/a has no ready endpoint on port 80, so others take its requests",
		},
		"nobody has any": {
			groups: [][]string{{"a", "b"}}, serving: []string{"c"},
			want: "Ready=False NoEndpoints: Service shop/a has no ready endpoint on port 80: requests to it get 503; " +
				"Service shop/b has no ready endpoint on port 80: requests to it get 503",
		},
		"nobody has any in one of two rules": {
			groups: [][]string{{"a", "b"}, {"a", "c"}}, serving: []string{"c"},
			want: "Ready=False NoEndpoints: Service shop/a has no ready endpoint on port 80: requests to it get 503; " +
				"Service shop/b has no ready endpoint on port 80: requests to it get 503",
		},
		"one that nobody backs up": {
			groups: [][]string{{"a", "b"}}, serving: []string{"a", "b"},
			want: "Ready=False NoEndpoints: Service shop/c has no ready endpoint on port 80: requests to it get 503",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key := Key{"shop", "web"}
			endpoints := map[string]EndpointSet{"a": {}, "b": {}, "c": {}}
			for _, cluster := range test.serving {
				endpoints[cluster] = EndpointSet{Serving: []Endpoint{{Address: "10.0.0.1", Port: 80}}}
			}
			accepted := condition(v1alpha1.ConditionAccepted, metav1.ConditionTrue, "Accepted", "attached")
			out := Observe(Result{Routes: []*RouteStatus{{
				Key: key, Backends: []BackendStatus{backend("a"), backend("b"), backend("c")}, Groups: test.groups,
				Parents: []ParentStatus{{Conditions: []metav1.Condition{accepted}}},
			}}}, Observations{Endpoints: endpoints})
			if diff := cmp.Diff([]string{test.want}, lines(t, 0, out.MeshRoutes[key].Conditions)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}
