package dataplane

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/internal/model"
)

// Whatever comes, changes and goes, and whatever of it Envoy refuses, a Dataplane
// that was told of it step by step ends with what one has that is told of the end
// alone, and of what is written down of refused routes.
func TestStepByStepIsAsAtOnce(t *testing.T) {
	t.Parallel()
	for seed := range uint64(10) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(seed, 3))
			w := newRandomWorld(t)
			held := 0
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
				w.settle()
				held = max(held, len(w.judge.written))
				if step%4 != 3 {
					continue
				}
				fresh := newWorld(t)
				fresh.names, fresh.in, fresh.slices, fresh.now, fresh.handed = testNames, w.in, w.slices, w.now, w.handed
				fresh.Version = w.Version
				for key, refusal := range w.judge.written {
					fresh.SetRefusal(key, refusal)
				}
				fresh.configure()
				if diff := cmp.Diff(fresh.summary(), w.summary(), cmpopts.EquateEmpty()); diff != "" {
					t.Fatalf("step %d (-at once +step by step):\n%s", step, diff)
				}
				w.told(t, step)
			}
			if held == 0 {
				t.Error("no route was ever held")
			}
		})
	}
}

// randomWorld is one of two gateways, with a pod each that refuses what is bad.
type randomWorld struct {
	*policyWorld

	judge    *judge
	versions map[string]int64       // generations of routes
	uids     map[string]types.UID   // of those that are there
	of       map[string]types.UID   // which route has, or had, a path
	gone     map[string]bool        // those that pods may still have
	good     map[types.UID][]string // paths of the versions that a pod has taken
}

func newRandomWorld(t *testing.T) *randomWorld {
	t.Helper()
	policies := newPolicyWorld(t)
	w := &randomWorld{policyWorld: policies, judge: judgeOf(policies.world), versions: map[string]int64{}, uids: map[string]types.UID{}, of: map[string]types.UID{}, gone: map[string]bool{}, good: map[types.UID][]string{}}
	other := newGateway(gatewayv1.HTTPProtocolType)
	other.Name = "other"
	w.in.Gateways = append(w.in.Gateways, other)
	w.in.ServiceRoutes = nil
	w.judge.pod("one", refusesBad)
	w.judge.pod("two", refusesBad).gateway = model.Key{Namespace: "shop", Name: "other"}
	return w
}

// settle goes on until nothing is left to be done.
func (w *randomWorld) settle() {
	for range 3 {
		w.later(time.Hour)
		for _, pod := range w.judge.pods {
			if w.gateways[pod.gateway] != nil {
				w.judge.take(pod)
			}
		}
		w.remember()
		w.judge.write()
		w.write()
	}
	w.later(time.Hour)
	if !slices.ContainsFunc(w.judge.pods, func(p *pod) bool { gw := w.gateways[p.gateway]; return gw == nil || !gw.current }) {
		clear(w.gone)
	}
}

// told sees that no route is told of as refused but bad ones, that no pod serves
// these, and that one serves on that pods had before, if there was any.
func (w *randomWorld) told(t *testing.T, step int) {
	t.Helper()
	observed := w.observe().Routes
	for _, route := range w.in.ServiceRoutes {
		key := model.Key{Namespace: route.Namespace, Name: route.Name}
		path := route.Spec.Rules[0].Matches[0].Path.Value
		for i, parent := range observed[key].Parents {
			gateway := model.Key{Namespace: key.Namespace, Name: string(route.Spec.ParentRefs[i].Name)}
			refused := slices.ContainsFunc(parent.Conditions, func(c metav1.Condition) bool { return c.Reason == v1alpha1.ReasonRefused })
			if refused != strings.Contains(path, bad) {
				t.Fatalf("step %d: that Gateway %s refuses %s of %s is told: %t", step, gateway, path, route.Name, refused)
			}
			if !refused {
				continue
			}
			held := w.judge.written[key]
			switch {
			case held == nil || held.Generation != route.Generation:
			case held.LastGood == nil && len(w.good[route.UID]) > 0:
				t.Fatalf("step %d: %s is left out, although %v were good", step, route.Name, w.good[route.UID])
			case held.LastGood != nil && !slices.ContainsFunc(w.judge.pods, func(p *pod) bool { return len(p.serves[key.String()]) > 0 }):
				t.Fatalf("step %d: no pod serves the last good version of %s", step, route.Name)
			}
		}
	}
	for _, route := range w.in.ServiceRoutes {
		for _, pod := range w.judge.pods {
			for _, serves := range pod.serves["shop/"+route.Name] {
				path, _, _ := strings.Cut(strings.TrimPrefix(serves, "*"), " ")
				if good := w.good[route.UID]; !slices.Contains(good, path) {
					t.Fatalf("step %d: pod %s serves %s of %s, where good versions have %v", step, pod.name, path, route.Name, good)
				}
			}
		}
	}
}

// remember notes which versions pods have taken.
func (w *randomWorld) remember() {
	for _, pod := range w.judge.pods {
		for _, routes := range pod.serves {
			for _, route := range routes {
				path, _, _ := strings.Cut(strings.TrimPrefix(route, "*"), " ")
				if uid := w.of[path]; !slices.Contains(w.good[uid], path) {
					w.good[uid] = append(w.good[uid], path)
				}
			}
		}
	}
}

// disturb changes something.
func (w *randomWorld) disturb(random *rand.Rand) {
	name := string(rune('a' + random.IntN(6)))
	key := model.Key{Namespace: "shop", Name: name}
	isService := func(s *corev1.Service) bool { return s.Name == name }
	switch random.IntN(8) {
	case 0:
		w.judge.delete(name)
		delete(w.versions, name)
		w.gone[name] = true
	case 1, 2, 3:
		if w.gone[name] {
			return // pods tell another of the same name only once they have seen this one go
		}
		if w.versions[name]++; w.versions[name] == 1 {
			w.uids[name] = types.UID(fmt.Sprint(name, random.Int64()))
		}
		path := fmt.Sprintf("/%s/%d", name, len(w.of))
		if random.IntN(4) == 0 {
			path += "/" + bad
		}
		w.of[path] = w.uids[name]
		route := version(name, path, w.versions[name])
		route.UID = w.uids[name]
		route.Spec.ParentRefs = append(route.Spec.ParentRefs, gatewayv1.ParentReference{Name: "other"})[random.IntN(2):]
		route.Spec.Rules[0].Backends[0].Name = gatewayv1.ObjectName(rune('a' + random.IntN(6)))
		w.judge.apply(route)
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
