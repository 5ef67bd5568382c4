package xds

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
)

// scopeWith has routes of objects on hosts, from "host: object=content …" lines,
// in that order. A content that begins with "bad" is refused (badObjects).
func scopeWith(version string, lines ...string) *discoveryv3.Resource {
	scope := &routev3.ScopedRouteConfiguration{Name: "port-80/*", RouteConfiguration: &routev3.RouteConfiguration{}}
	for _, line := range lines {
		name, objects, _ := strings.Cut(line, ":")
		host := &routev3.VirtualHost{Name: name, Domains: []string{name}}
		for object := range strings.FieldsSeq(objects) {
			object, content, _ := strings.Cut(object, "=")
			route := &routev3.Route{Name: "shop/" + object + "/all/0", Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: "/" + content}}}
			if object == "no-route" {
				route.Name = object
			}
			host.Routes = append(host.Routes, route)
		}
		scope.RouteConfiguration.VirtualHosts = append(scope.RouteConfiguration.VirtualHosts, host)
	}
	return &discoveryv3.Resource{Name: scope.GetName(), Version: version, Resource: packed(scope)}
}

// linesOf is the reverse of scopeWith.
func linesOf(r *discoveryv3.Resource) string {
	scope := scopeOf(&version{Resource: r})
	var lines []string
	for _, host := range scope.GetRouteConfiguration().GetVirtualHosts() {
		line := host.GetName() + ":"
		for _, route := range host.GetRoutes() {
			object := strings.TrimPrefix(objectOf(route), "shop/")
			if object == "" {
				object = route.GetName()
			}
			line += " " + object
			if content := strings.TrimPrefix(route.GetMatch().GetPath(), "/"); content != "" {
				line += "=" + content
			}
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "; ")
}

func badObjects(r *discoveryv3.Resource) bool { return strings.Contains(linesOf(r), "=bad") }

// Each scenario goes through versions of a scope; what Envoy has in the end, and
// what is told of objects, is compared.
func TestBadObjectsAreFound(t *testing.T) {
	for name, tt := range map[string]struct {
		versions []*discoveryv3.Resource
		want     string
		withheld string
		refusals int // how often Envoy had to refuse
	}{
		"one is left out that was not there before": {
			versions: []*discoveryv3.Resource{scopeWith("1", "a: x=1"), scopeWith("2", "a: y=bad x=1")},
			want:     "a: x=1", withheld: "shop/y", refusals: 1,
		},
		"one stays as it was, where it was": {
			versions: []*discoveryv3.Resource{scopeWith("1", "a: x=1 y=1 z=1 no-route"), scopeWith("2", "a: x=1 y=bad z=1 no-route")},
			want:     "a: x=1 y=1 z=1 no-route", withheld: "shop/y", refusals: 1,
		},
		"its neighbours change with it": {
			versions: []*discoveryv3.Resource{scopeWith("1", "a: w=1 x=1 y=1 z=1"), scopeWith("2", "a: w=2 x=2 y=bad z=2 new=1")},
			want:     "a: w=2 x=2 y=1 z=2 new=1", withheld: "shop/y", refusals: 4,
		},
		"its neighbours change after it, and it is not tried again": {
			versions: []*discoveryv3.Resource{scopeWith("1", "a: x=1 y=1"), scopeWith("2", "a: x=1 y=bad"), scopeWith("3", "a: x=2 y=bad"), scopeWith("4", "a: y=bad")},
			want:     "a: y=1", withheld: "shop/y", refusals: 1,
		},
		"two at a time": {
			versions: []*discoveryv3.Resource{scopeWith("1", "a: w=1 x=1"), scopeWith("2", "a: v=bad1 w=2 x=bad2 y=1 z=1")},
			want:     "a: w=2 x=1 y=1 z=1", withheld: "shop/v shop/x", refusals: 5,
		},
		"nothing else is there": {
			versions: []*discoveryv3.Resource{scopeWith("1", "a: x=bad")},
			want:     "", withheld: "shop/x", refusals: 1,
		},
		"mended": {
			versions: []*discoveryv3.Resource{scopeWith("1", "a: x=1 y=bad"), scopeWith("2", "a: x=1 y=2")},
			want:     "a: x=1 y=2", refusals: 2,
		},
		"mended to what it was": {
			versions: []*discoveryv3.Resource{scopeWith("1", "a: x=1 y=1"), scopeWith("2", "a: x=1 y=bad"), scopeWith("1", "a: x=1 y=1")},
			want:     "a: x=1 y=1", refusals: 1,
		},
		"another one gets bad": {
			versions: []*discoveryv3.Resource{scopeWith("1", "a: x=1 y=bad"), scopeWith("2", "a: x=bad y=bad z=1")},
			want:     "a: x=1 z=1", withheld: "shop/x shop/y", refusals: 4,
		},
		"it moves to another hostname": {
			versions: []*discoveryv3.Resource{scopeWith("1", "*.a: x=1 y=1", "*.b: z=1"), scopeWith("2", "*.a: x=1", "*.b: y=bad z=1", "*.c: y=bad")},
			want:     "*.a: x=1 y=1; *.b: z=1", withheld: "shop/y", refusals: 1,
		},
		"a neighbour goes": {
			versions: []*discoveryv3.Resource{scopeWith("1", "*.a: x=1", "*.b: y=1"), scopeWith("2", "*.b: y=bad")},
			want:     "*.b: y=1", withheld: "shop/y", refusals: 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(7, 7))
			w := newWorld(r, newFakeManager())
			refusals := 0
			w.envoy.refuses = badObjects
			w.envoy.refused = func() { refusals++ }
			w.connectEnvoy(true)
			w.connectManager(w.manager)
			for i := range w.manager.first {
				w.manager.first[i] = true
			}
			for _, v := range tt.versions {
				c := set("l http 1")
				c[routes][v.GetName()] = v
				w.manager.set(c)
				if err := drain(w, r); err != nil {
					t.Fatal(err)
				}
			}
			if got := linesOf(w.envoy.routes["port-80/*"]); got != tt.want {
				t.Errorf("Envoy has %q, wanted %q", got, tt.want)
			}
			acks := w.leader.tracker.acks()
			if len(acks.Pods) != 1 || acks.Pods[0].Sequence != w.leader.tracker.sequence || acks.Pods[0].Nack != nil {
				t.Errorf("the pod does not count as having sequence %d: %+v", w.leader.tracker.sequence, acks)
			} else if got := strings.Join(slices.Sorted(maps.Keys(acks.Pods[0].Held)), " "); got != tt.withheld {
				t.Errorf("withheld are %q, wanted %q", got, tt.withheld)
			}
			if refusals != tt.refusals {
				t.Errorf("Envoy refused %d times, wanted %d", refusals, tt.refusals)
			}
		})
	}
}

// Hundreds of changes of good and bad objects, in any order, with neighbours that
// come and go: Envoy has always what it would have if the bad ones had stayed as
// they were, and every object that is refused is told of, and no other.
func TestBadObjectsHarmNobody(t *testing.T) {
	for seed := range uint64(15) {
		r := rand.New(rand.NewPCG(seed, 3))
		w := newWorld(r, newFakeManager())
		w.envoy.refuses = badObjects
		w.connectEnvoy(true)
		w.connectManager(w.manager)
		for i := range w.manager.first {
			w.manager.first[i] = true
		}
		now, served := map[string]string{}, map[string]string{}
		render := func(objects map[string]string) string {
			line := "a:"
			for _, name := range slices.Sorted(maps.Keys(objects)) {
				line += " " + name + "=" + objects[name]
			}
			if len(objects) == 0 {
				return ""
			}
			return line
		}
		for step := range 150 {
			for range 1 + r.IntN(5) {
				name := "o" + strconv.Itoa(r.IntN(12))
				switch r.IntN(6) {
				case 0:
					delete(now, name)
				case 1, 2:
					now[name] = "bad" + strconv.Itoa(r.IntN(3))
				default:
					now[name] = strconv.Itoa(r.IntN(9))
				}
			}
			var wantHeld []string
			for name, content := range now {
				if strings.HasPrefix(content, "bad") {
					wantHeld = append(wantHeld, "shop/"+name)
				} else {
					served[name] = content
				}
			}
			for name := range served {
				if now[name] == "" {
					delete(served, name)
				}
			}
			slices.Sort(wantHeld)
			c := set("l http 1")
			resource := scopeWith(fmt.Sprint(step))
			if len(now) > 0 {
				resource = scopeWith(fmt.Sprint(step), render(now))
			}
			c[routes][resource.GetName()] = resource
			w.manager.set(c)
			if r.IntN(8) == 0 { // an Envoy that is new gets what the last one had
				w.connectEnvoy(true)
			}
			if err := drain(w, r); err != nil {
				t.Fatal(err)
			}
			// Where a route that is as it was stands among new ones cannot always be
			// known.
			got := strings.Fields(linesOf(w.envoy.routes["port-80/*"]))
			slices.Sort(got)
			want := strings.Fields(render(served))
			slices.Sort(want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("seed %d, step %d: Envoy has (-want +got):\n%s", seed, step, diff)
			}
			held := w.leader.tracker.acks().Pods[0].Held
			if diff := cmp.Diff(wantHeld, slices.Sorted(maps.Keys(held))); diff != "" {
				t.Fatalf("seed %d, step %d: withheld (-want +got):\n%s", seed, step, diff)
			}
		}
	}
}
