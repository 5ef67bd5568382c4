package dataplane

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/internal/model"
)

// Whatever comes, changes and goes, a Dataplane that was told of it step by step
// ends with what one has that is told of the end alone.
func TestStepByStepIsAsAtOnce(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(seed, 3))
			w := newPolicyWorld(t)
			other := newGateway(gatewayv1.HTTPProtocolType)
			other.Name = "other"
			w.in.Gateways = append(w.in.Gateways, other)
			for step := range 40 {
				for range 1 + random.IntN(3) {
					w.disturb(random)
				}
				if random.IntN(2) == 0 {
					w.configure() // before its policies are there
					w.disturb(random)
				}
				if step%4 == 3 {
					w.valid(true) // an invalid gateway keeps what it had
				}
				w.later(time.Second)
				w.write()
				w.later(time.Hour)
				w.write()
				if step%4 != 3 {
					continue
				}
				fresh := newWorld(t)
				fresh.names, fresh.in, fresh.slices, fresh.now, fresh.handed = testNames, w.in, w.slices, w.now, w.handed
				fresh.configure()
				if diff := cmp.Diff(fresh.summary(), w.summary(), cmpopts.EquateEmpty()); diff != "" {
					t.Fatalf("step %d (-at once +step by step):\n%s", step, diff)
				}
			}
		})
	}
}

// disturb changes something.
func (w *policyWorld) disturb(random *rand.Rand) {
	name := string(rune('a' + random.IntN(6)))
	key := model.Key{Namespace: "shop", Name: name}
	isRoute := func(r *v1alpha1.ServiceRoute) bool { return r.Name == name }
	isService := func(s *corev1.Service) bool { return s.Name == name }
	switch random.IntN(8) {
	case 0:
		w.in.ServiceRoutes = slices.DeleteFunc(slices.Clone(w.in.ServiceRoutes), isRoute)
	case 1, 2, 3:
		w.in.ServiceRoutes = slices.DeleteFunc(slices.Clone(w.in.ServiceRoutes), isRoute)
		route := newRoute(name, "/"+name)
		route.UID, route.Generation = types.UID(name), random.Int64()
		route.Spec.ParentRefs = append(route.Spec.ParentRefs, gatewayv1.ParentReference{Name: "other"})[random.IntN(2):]
		route.Spec.Rules[0].Backends[0].Name = gatewayv1.ObjectName(rune('a' + random.IntN(6)))
		w.in.ServiceRoutes = append(w.in.ServiceRoutes, route)
	case 4:
		w.in.Services = slices.DeleteFunc(slices.Clone(w.in.Services), isService)
	case 5, 6:
		w.in.Services = slices.DeleteFunc(slices.Clone(w.in.Services), isService)
		service := w.add(name, fmt.Sprintf("10.0.1.%d", random.IntN(200)))
		if random.IntN(2) == 0 {
			service.Spec.Ports[0].Name = "web"
		}
		if random.IntN(3) == 0 {
			service.Spec.Selector["version"] = fmt.Sprint(random.IntN(3))
		}
		if random.IntN(3) == 0 {
			service.Labels = map[string]string{v1alpha1.IsolationLabel: v1alpha1.IsolationGateway}
		}
		w.SetEndpoints(key, w.slices[key], time.Time{})
	case 7:
		w.valid(random.IntN(2) == 0)
	}
}

func (w *policyWorld) valid(is bool) {
	gw := w.in.Gateways[1].DeepCopy()
	gw.Spec.Listeners[0].Protocol = "UDP"
	if is {
		gw.Spec.Listeners[0].Protocol = gatewayv1.HTTPProtocolType
	}
	w.in.Gateways = []*gatewayv1.Gateway{w.in.Gateways[0], gw}
}

// summary is what a Dataplane knows.
func (w *world) summary() any {
	all := map[string]any{"referred": w.referred}
	uses := map[string]int{}
	for service, clusters := range w.uses {
		uses[service.String()] = len(clusters)
	}
	for key, gw := range w.gateways {
		endpoints := map[string]string{}
		for name, r := range gw.reach {
			endpoints[name] = fmt.Sprint(r.cluster, r.service, slices.Sorted(maps.Keys(endpointsOf(r))), r.needs, r.withheld, r.resource)
		}
		var routes []string
		for route, since := range gw.routes {
			routes = append(routes, fmt.Sprint(route, since.told.UID, since.told.Generation, gw.released[route].Generation))
		}
		slices.Sort(routes)
		all[key.String()] = []any{gw.told.Ports, gw.told.Clusters, endpoints, routes, len(gw.held), len(gw.released), len(gw.blocked)}
	}
	all["uses"], all["endpoints"] = uses, slices.Sorted(maps.Keys(w.endpoints))
	return all
}

func endpointsOf(r *reach) map[string]bool {
	endpoints := map[string]bool{}
	for _, endpoint := range r.given {
		endpoints[fmt.Sprint(endpoint.Endpoint)] = true
	}
	return endpoints
}
