package dataplane

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/internal/model"
	"meshroute.io/meshroute/internal/xds"
)

// judge is a world whose pods refuse routes, and where what is to be written down
// of them is.
type judge struct {
	*world
	pods    []*pod
	written map[model.Key]*Refusal
}

// pod does what a relay and its Envoy do, to the model's routes.
type pod struct {
	name     string
	gateway  model.Key
	refuses  func(model.Route) bool
	sequence uint64
	held     map[string]string
	serves   map[string][]string // routes by object
}

// bad is in the path of routes that Envoy refuses here.
const bad = "bad"

func refusesBad(route model.Route) bool { return strings.Contains(route.Match.Path, bad) }

func newJudge(t *testing.T) *judge {
	t.Helper()
	j := judgeOf(newWorld(t))
	j.now = time.Unix(1_000_000, 0)
	j.in.ServiceRoutes = []*v1alpha1.ServiceRoute{version("a", "/a", 1), version("b", "/b", 1)}
	return j
}

func judgeOf(w *world) *judge {
	j := &judge{world: w, written: map[model.Key]*Refusal{}}
	j.Version = "1"
	j.acks = func(gateway model.Key) (acks []xds.PodAck) {
		for _, pod := range j.pods {
			if pod.gateway == gateway && pod.sequence > 0 {
				held := map[string]string{}
				for _, object := range slices.Sorted(maps.Keys(pod.held))[:min(len(pod.held), xds.MaxWithheld)] {
					held[object] = pod.held[object]
				}
				acks = append(acks, xds.PodAck{Pod: pod.name, Sequence: pod.sequence, Held: held})
			}
		}
		return acks
	}
	return j
}

// version is a version of a route, as an API server counts it.
func version(name, path string, generation int64) *v1alpha1.ServiceRoute {
	route := newRoute(name, path)
	route.UID, route.Generation = types.UID("uid-of-"+name), generation
	return route
}

func (j *judge) pod(name string, refuses func(model.Route) bool) *pod {
	p := &pod{name: name, gateway: edge, refuses: refuses, serves: map[string][]string{}}
	j.pods = append(j.pods, p)
	return p
}

// take gives a pod what its gateway was told last.
func (j *judge) take(p *pod) {
	p.sequence, p.held = j.server.Set(xds.Gateway(p.gateway), nil).Sequence, nil
	wanted, refused := map[string][]string{}, map[string]bool{}
	for _, port := range j.gateways[p.gateway].told.Ports {
		for _, host := range port.VirtualHosts {
			for _, route := range host.Routes {
				object := strings.Join(strings.Split(route.Name, "/")[:2], "/")
				wanted[object] = append(wanted[object], fmt.Sprint(host.Hostname, route.Match.Path, " ", route.Backends))
				refused[object] = refused[object] || p.refuses(route)
			}
		}
	}
	for object := range wanted {
		if !refused[object] {
			continue
		}
		if p.held == nil {
			p.held = map[string]string{}
		}
		p.held[object] = "no"
		if delete(wanted, object); p.serves[object] != nil {
			wanted[object] = p.serves[object]
		}
	}
	p.serves = wanted
}

// step builds, and lets all pods take it.
func (j *judge) step() {
	j.configure()
	for _, pod := range j.pods {
		j.take(pod)
	}
}

// write does what is to be written down, and tells what that was.
func (j *judge) write() string {
	var told []string
	changes := j.Refusals(j.now)
	for _, refusal := range changes.Write {
		j.written[refusal.Route] = refusal
		j.SetRefusal(refusal.Route, refusal)
		instead := "none"
		if refusal.LastGood != nil {
			instead = fmt.Sprint(refusal.LastGood.Generation)
		}
		told = append(told, fmt.Sprintf("%s %d by %s: %s, instead %s", refusal.Route.Name, refusal.Generation, refusal.By, refusal.Message, instead))
	}
	for _, key := range changes.Delete {
		delete(j.written, key)
		j.SetRefusal(key, nil)
		told = append(told, key.Name+" deleted")
	}
	return strings.Join(told, "; ")
}

// apply puts a version of a route in the place of the one that is there.
func (j *judge) apply(route *v1alpha1.ServiceRoute) {
	j.delete(route.Name)
	j.in.ServiceRoutes = append(j.in.ServiceRoutes, route)
}

func (j *judge) delete(name string) {
	j.in.ServiceRoutes = slices.DeleteFunc(slices.Clone(j.in.ServiceRoutes), func(r *v1alpha1.ServiceRoute) bool { return r.Name == name })
}

// restarted is another manager in the same world: with what is written down, and
// nothing else.
func (j *judge) restarted(t *testing.T) *judge {
	t.Helper()
	again := newJudge(t)
	again.in, again.slices, again.pods, again.written = j.in, j.slices, j.pods, j.written
	for _, pod := range again.pods {
		pod.sequence, pod.held = 0, nil
	}
	for key, refusal := range again.written {
		again.SetRefusal(key, refusal)
	}
	return again
}

func (j *judge) says(t *testing.T, route, status, message string) {
	t.Helper()
	for _, parent := range j.observe().Routes[model.Key{Namespace: "shop", Name: route}].Parents {
		for _, c := range parent.Conditions {
			if c.Type != v1alpha1.ConditionProgrammed {
				continue
			}
			if got := string(c.Status) + " " + c.Reason; got != status || !strings.Contains(c.Message, message) {
				t.Errorf("%s is %s: %s; wanted %s: …%s…", route, got, c.Message, status, message)
			}
			return
		}
	}
	t.Errorf("%s says nothing", route)
}

func equals[T any](t *testing.T, when string, want, got T) {
	t.Helper()
	if reflect.DeepEqual(want, got) {
		return
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", when, diff)
	}
}

func (p *pod) paths(t *testing.T, when string, want ...string) {
	t.Helper()
	var got []string
	for _, routes := range p.serves {
		for _, route := range routes {
			path, _, _ := strings.Cut(route, " ")
			got = append(got, strings.TrimPrefix(path, "*"))
		}
	}
	slices.Sort(got)
	equals(t, when+", paths of "+p.name, want, got)
}

const refusedByEnvoy = "False " + v1alpha1.ReasonRefused

func TestARefusedRouteIsHeldAtItsLastGoodVersion(t *testing.T) {
	j := newJudge(t)
	one := j.pod("one", refusesBad)
	j.step()
	equals(t, "while all is well", "", j.write())

	j.apply(version("a", "/bad", 2))
	j.apply(version("b", "/b2", 2))
	j.step()
	one.paths(t, "refused", "/a", "/b2")
	j.says(t, "a", refusedByEnvoy, insteadInPods+"; nothing else is affected. It says: no")
	j.says(t, "b", "True Programmed", "")
	if got := conditionOf(j.observe().Gateways[edge].Conditions, v1alpha1.ConditionProgrammed); got != "True Programmed" {
		t.Errorf("the Gateway is %s", got)
	}

	equals(t, "figures", RouteFigures{Valid: 2, Refused: 1}, j.Figures().Routes)
	equals(t, "written", "a 2 by 1: no, instead 1", j.write())
	two := j.pod("two", func(route model.Route) bool {
		if refusesBad(route) {
			t.Errorf("a new pod is told of %s", route.Match.Path)
		}
		return false
	})
	j.step()
	two.paths(t, "a new pod", "/a", "/b2")
	j.says(t, "a", refusedByEnvoy, "its previous version (generation 1) serves on")
	equals(t, "written again", "", j.write())
	equals(t, "figures", RouteFigures{Valid: 2, Refused: 1}, j.Figures().Routes)
	status := j.observe().Routes[model.Key{Namespace: "shop", Name: "a"}]
	if got := status.Parents[0].Conditions[0].ObservedGeneration; got != 2 {
		t.Errorf("the status is of generation %d", got)
	}
	equals(t, "pods that have the route", "0/2", j.observe().MeshRoutes[model.Key{Namespace: "shop", Name: "a"}].Display.Programmed)

	// Still refused, in another version; then mended.
	j.apply(version("a", "/bad/again", 3))
	j.take(one) // nothing new
	two.refuses = refusesBad
	j.step()
	equals(t, "written", "a 3 by 1: no, instead 1", j.write())
	j.step()
	j.apply(version("a", "/mended", 4))
	j.configure()
	j.take(one)
	j.says(t, "a", "False Waiting", "1 of 2")
	equals(t, "before all have it", "", j.write())
	j.take(two)
	j.says(t, "a", "True Programmed", "")
	equals(t, "mended", "a deleted", j.write())
	j.step()
	equals(t, "figures", RouteFigures{Valid: 2}, j.Figures().Routes)
	one.paths(t, "mended", "/b2", "/mended")

	j.apply(version("a", "/bad", 5))
	j.step()
	equals(t, "once more", "a 5 by 1: no, instead 4", j.write())
}

func TestARouteThatWasNeverGoodIsLeftOut(t *testing.T) {
	j := newJudge(t)
	j.pod("one", refusesBad)
	j.step()
	j.apply(version("c", "/bad", 1))
	j.step()
	equals(t, "written", "c 1 by 1: no, instead none", j.write())
	two := j.pod("two", func(route model.Route) bool { return route.Match.Path != "/a" && route.Match.Path != "/b" })
	j.step()
	two.paths(t, "a new pod", "/a", "/b")
	equals(t, "held by a new pod", nil, two.held)
	j.says(t, "c", refusedByEnvoy, "it has no version that Envoy takes, so it is left out")
	two.refuses = refusesBad

	j.apply(version("c", "/bad/again", 2))
	j.step()
	equals(t, "written", "c 2 by 1: no, instead none", j.write())
	j.apply(version("c", "/c", 3))
	j.step()
	equals(t, "mended", "c deleted", j.write())
	two.paths(t, "mended", "/a", "/b", "/c")
}

// Two versions may follow each other faster than anybody looks.
func TestTheLastGoodVersionIsRememberedOverSeveralBadOnes(t *testing.T) {
	j := newJudge(t)
	one := j.pod("one", refusesBad)
	j.step()
	j.apply(version("a", "/bad", 2))
	j.configure() // no pod has heard of it
	j.apply(version("a", "/bad/again", 3))
	j.step()
	j.apply(version("a", "/bad/anew", 4))
	j.step()
	one.paths(t, "refused", "/a", "/b")
	equals(t, "written", "a 4 by 1: no, instead 1", j.write())
}

// What was refused is not taken for good when the pods that said so have gone.
func TestWhoRefusedARouteGoes(t *testing.T) {
	j := newJudge(t)
	j.pod("one", refusesBad)
	j.step()
	j.apply(version("a", "/bad", 2))
	j.step()
	j.write()
	j.pods = nil
	j.now = j.now.Add(absence + 1)
	equals(t, "written when they have gone", "", j.write())
	j.step()
	j.apply(version("a", "/bad/again", 3))
	j.pod("two", refusesBad)
	j.step()
	equals(t, "written", "a 3 by 1: no, instead 1", j.write())
}

func TestManagersThatStartKnowWhatIsRefused(t *testing.T) {
	j := newJudge(t)
	j.pod("one", refusesBad)
	j.step()
	j.apply(version("a", "/bad", 2))
	j.apply(version("c", "/bad/c", 1))
	j.step()
	equals(t, "written", "a 2 by 1: no, instead 1; c 1 by 1: no, instead none", j.write())
	j.step()

	j = j.restarted(t)
	two := j.pod("two", func(model.Route) bool { return false })
	j.step()
	two.paths(t, "a new pod of a new manager", "/a", "/b")
	j.says(t, "a", refusedByEnvoy, "generation 1")
	j.says(t, "c", refusedByEnvoy, "left out")
	equals(t, "written", "", j.write())
	two.refuses = refusesBad
	j.apply(version("a", "/bad/again", 3))
	j.step()
	equals(t, "the next bad one", "a 3 by 1: no, instead 1", j.write())
}

// A manager that starts while a route is bad, and finds nothing written down,
// takes nothing away.
func TestWhatOnlyPodsKnowStaysWithThem(t *testing.T) {
	j := newJudge(t)
	one := j.pod("one", refusesBad)
	j.step()
	j.apply(version("a", "/bad", 2))
	j.step()
	j = j.restarted(t)
	j.step()
	equals(t, "written", "", j.write())
	j.step()
	one.paths(t, "afterwards", "/a", "/b")
	j.says(t, "a", refusedByEnvoy, insteadInPods)
	j.apply(version("a", "/mended", 3))
	j.step()
	j.says(t, "a", "True Programmed", "")
}

// A pod tells of some of many: what it does not tell of is not good for that.
func TestMoreIsRefusedThanAPodTells(t *testing.T) {
	j := newJudge(t)
	one := j.pod("one", refusesBad)
	all := func(path string, generation int64) {
		for i := range xds.MaxWithheld + 20 {
			j.apply(version(fmt.Sprintf("r%03d", i), fmt.Sprintf("/%s/%d", path, i), generation))
		}
	}
	all("good", 1)
	j.step()
	served := one.serves
	all("bad", 2)
	for range 2 {
		j.step()
		j.write()
	}
	j.step()
	all("bad/again", 3)
	for range 2 {
		j.step()
		if written := j.write(); strings.Contains(written, "deleted") {
			t.Errorf("what it does not tell of counts as taken: %s", written)
		}
	}
	j.step()
	if len(j.written) != xds.MaxWithheld+20 {
		t.Errorf("%d are written", len(j.written))
	}
	for key, refusal := range j.written {
		if refusal.LastGood == nil || refusal.LastGood.Generation != 1 {
			t.Errorf("%s is held at %v", key, refusal.LastGood)
		}
	}
	equals(t, "what serves", served, one.serves)
}

// What a pod reports gets here.
func TestAPodTellsWhatItHoldsBack(t *testing.T) {
	w := newWorld(t)
	w.configure()
	envoy := w.connect(t)
	envoy.withhold("shop/b", "no  such\nthing")
	w.until(t, "b refused", func() bool { return w.programmed(t, "b") == refusedByEnvoy })
	if got := w.programmed(t, "a"); got != "True Programmed" {
		t.Errorf("its neighbour is %s", got)
	}
	j := &judge{world: w}
	j.says(t, "b", refusedByEnvoy, "no such thing")
}

// Pods may be of two versions while one is replaced.
func TestPodsDisagree(t *testing.T) {
	for name, test := range map[string]struct {
		first, second func(model.Route) bool
	}{
		"the one that refuses it is heard first": {refusesBad, func(model.Route) bool { return false }},
		"the one that takes it is heard first":   {func(model.Route) bool { return false }, refusesBad},
	} {
		t.Run(name, func(t *testing.T) {
			j := newJudge(t)
			one, two := j.pod("one", test.first), j.pod("two", test.second)
			j.step()
			j.apply(version("a", "/bad", 2))
			j.apply(version("c", "/bad/c", 1))
			j.configure()
			j.take(one)
			j.write()
			j.configure()
			j.take(one)
			j.take(two)
			j.write()
			j.step()
			equals(t, "written for a", int64(1), j.written[model.Key{Namespace: "shop", Name: "a"}].LastGood.Generation)
			for _, pod := range []*pod{one, two} {
				if got := pod.serves["shop/a"]; len(got) != 1 || !strings.HasPrefix(got[0], "*/a ") {
					t.Errorf("%s serves %v", pod.name, got)
				}
			}
			// No version of c was ever refused by all: whoever takes it serves it.
			if j.written[model.Key{Namespace: "shop", Name: "c"}] != nil {
				t.Error("a route that a pod has is to be left out")
			}
		})
	}
}

func TestANewVersionOfEnvoyTriesAgain(t *testing.T) {
	for name, test := range map[string]struct {
		refuses func(model.Route) bool
		written string
		serves  []string
	}{
		"and refuses it, too": {refusesBad, "a 2 by 2: no, instead 1", []string{"/a", "/b"}},
		"and takes it":        {func(model.Route) bool { return false }, "a deleted", []string{"/b", "/bad"}},
	} {
		t.Run(name, func(t *testing.T) {
			j := newJudge(t)
			one := j.pod("one", refusesBad)
			j.step()
			j.apply(version("a", "/bad", 2))
			j.step()
			j.write()
			j.step()
			j = j.restarted(t)
			j.Version = "2"
			one.refuses = test.refuses
			j.step()
			equals(t, "written", test.written, j.write())
			j.step()
			one.paths(t, "afterwards", test.serves...)
			equals(t, "written again", "", j.write())
		})
	}
}

// Another route of the same name has nothing to do with what was refused.
func TestARefusedRouteIsDeletedAndComesBack(t *testing.T) {
	j := newJudge(t)
	one := j.pod("one", refusesBad)
	j.step()
	j.apply(version("a", "/bad", 2))
	j.step()
	j.write()
	j.step()
	another := version("a", "/another", 2)
	another.UID = "another"
	j.apply(another)
	j.step()
	one.paths(t, "another", "/another", "/b")
	j.says(t, "a", "True Programmed", "")
	equals(t, "written", "a deleted", j.write())

	j.apply(func() *v1alpha1.ServiceRoute { r := version("a", "/bad", 3); r.UID = "another"; return r }())
	j.step()
	equals(t, "written", "a 3 by 1: no, instead 2", j.write())
	j.delete("a")
	j.step()
	one.paths(t, "deleted", "/b")
	equals(t, "deleted", "a deleted", j.write())
}

// What serves is judged as it is now; what is said is about what users wrote last.
func TestTheWorldGoesOnAroundARefusedRoute(t *testing.T) {
	j := newJudge(t)
	one := j.pod("one", refusesBad)
	j.in.Services = append(j.in.Services, newService("c", "http"))
	j.slices[model.Key{Namespace: "shop", Name: "c"}] = newSlices("http", "10.0.0.3")
	j.step()
	refused := version("a", "/bad", 2)
	refused.Spec.Rules[0].Backends[0].Name = "c"
	j.apply(refused)
	j.step()
	j.write()
	j.step()

	// The Service of the good version goes: its requests get 500, and a route that
	// leads nowhere is no news to the one that leads to c.
	services := j.in.Services
	j.in.Services = services[1:]
	j.step()
	if got := one.serves["shop/a"]; len(got) != 1 || !strings.Contains(got[0], model.MissingCluster) {
		t.Errorf("with its Service gone, a leads to %v", got)
	}
	if !j.Refers(model.Key{Namespace: "shop", Name: "a"}) || !j.Refers(model.Key{Namespace: "shop", Name: "c"}) {
		t.Error("a Service that comes back is no news")
	}
	parent := j.observe().Routes[model.Key{Namespace: "shop", Name: "a"}].Parents[0]
	if got := conditionOf(parent.Conditions, v1alpha1.ConditionResolvedRefs); got != "True ResolvedRefs" {
		t.Errorf("ResolvedRefs of what the user wrote is %s", got)
	}
	j.in.Services = services
	j.step()

	// Who asks for what the good version has comes second, and is told.
	j.apply(version("late", "/a", 1))
	j.in.ServiceRoutes[len(j.in.ServiceRoutes)-1].CreationTimestamp = metav1.NewTime(j.now)
	// What only the refused version asks for is anybody's.
	j.apply(version("other", "/bad", 1))
	one.refuses = func(route model.Route) bool { return strings.HasPrefix(route.Name, "shop/a/") && refusesBad(route) }
	j.in.ServiceRoutes[len(j.in.ServiceRoutes)-1].CreationTimestamp = metav1.NewTime(j.now)
	j.step()
	one.paths(t, "with neighbours", "/a", "/b", "/bad")
	for route, want := range map[string]string{"late": "False RouteConflict", "other": "True Accepted", "a": "True Accepted"} {
		parent := j.observe().Routes[model.Key{Namespace: "shop", Name: route}].Parents[0]
		if got := conditionOf(parent.Conditions, v1alpha1.ConditionAccepted); got != want {
			t.Errorf("%s is accepted: %s, wanted %s", route, got, want)
		}
	}
}

// A route that one gateway refuses serves in none of them, and in all as before.
func TestSeveralGateways(t *testing.T) {
	j := newJudge(t)
	second := newGateway(gatewayv1.HTTPProtocolType)
	second.Name = "second"
	j.in.Gateways = append(j.in.Gateways, second)
	both := func(path string, generation int64) *v1alpha1.ServiceRoute {
		route := version("a", path, generation)
		route.Spec.ParentRefs = append(route.Spec.ParentRefs, gatewayv1.ParentReference{Name: "second"})
		return route
	}
	one := j.pod("one", refusesBad)
	two := j.pod("two", func(model.Route) bool { return false })
	two.gateway = model.Key{Namespace: "shop", Name: "second"}
	j.apply(both("/a", 1))
	j.step()
	j.apply(both("/bad", 2))
	j.step()
	two.paths(t, "at first", "/bad")
	equals(t, "written", "a 2 by 1: no, instead 1", j.write())
	j.step()
	one.paths(t, "afterwards", "/a", "/b")
	two.paths(t, "afterwards", "/a")
	equals(t, "pods that have it", "0/2", j.observe().MeshRoutes[model.Key{Namespace: "shop", Name: "a"}].Display.Programmed)

	j.apply(both("/mended", 3))
	j.configure()
	j.take(one)
	equals(t, "with one to come", "", j.write())
	j.take(two)
	equals(t, "mended", "a deleted", j.write())
}

// Hundreds of good and bad versions of many routes, in any order, with managers
// that start in between: at any time what serves is what would serve if the bad
// ones had never been written.
func TestBadRoutesHarmNobody(t *testing.T) {
	const routes, steps = 60, 150
	for seed := range uint64(3) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			j := newJudge(t)
			good := newJudge(t) // the same, without the bad ones
			one, other := j.pod("one", refusesBad), good.pod("one", refusesBad)
			j.step()
			good.step()
			generations, refused := map[string]int64{}, map[string]bool{}
			uid := map[string]types.UID{}
			held := 0
			for step := range steps {
				for _, i := range random.Perm(routes)[:1+random.IntN(4)] {
					name := fmt.Sprintf("r%02d", i)
					if generations[name]++; generations[name] == 1 {
						uid[name] = types.UID(fmt.Sprintf("%s-%d", name, step))
					}
					if generations[name] > 1 && random.IntN(12) == 0 {
						j.delete(name)
						good.delete(name)
						delete(generations, name)
						delete(refused, name)
						continue
					}
					made := func(path string) *v1alpha1.ServiceRoute {
						route := version(name, path, generations[name])
						route.UID = uid[name]
						route.Spec.Rules[0].Backends[0].Name = []gatewayv1.ObjectName{"a", "b"}[random.IntN(2)]
						route.Spec.Hostnames = []gatewayv1.Hostname{gatewayv1.Hostname(fmt.Sprintf("h%d.example.com", random.IntN(5)))}
						return route
					}
					if refused[name] = random.IntN(3) == 0; refused[name] {
						j.apply(made(fmt.Sprintf("/%s/bad-%d", name, step)))
						continue
					}
					route := made(fmt.Sprintf("/%s/%d", name, step))
					j.apply(route)
					good.apply(route)
				}
				j.step()
				good.step()
				equals(t, fmt.Sprintf("step %d, before anything is written", step), other.serves, one.serves)
				if random.IntN(3) > 0 {
					j.write()
					j.step()
				}
				if random.IntN(40) == 0 {
					// Nobody is without a record who is refused.
					j.write()
					j = j.restarted(t)
					one = j.pods[0]
					j.step()
				}
				equals(t, fmt.Sprintf("step %d", step), other.serves, one.serves)
				held = max(held, len(j.written))
				observed := j.observe().Routes
				for name := range generations {
					want := "True Programmed"
					if refused[name] {
						want = refusedByEnvoy
					}
					parent := observed[model.Key{Namespace: "shop", Name: name}].Parents[0]
					if got := conditionOf(parent.Conditions, v1alpha1.ConditionProgrammed); got != want {
						t.Fatalf("step %d: %s is %s, wanted %s", step, name, got, want)
					}
				}
				if t.Failed() {
					return
				}
			}
			if held < 5 {
				t.Errorf("only %d were ever held at a time", held)
			}
			j.write()
			j.step()
			fresh := j.pod("fresh", func(route model.Route) bool {
				if refusesBad(route) {
					t.Errorf("a new pod is told of %s", route.Name)
				}
				return false
			})
			j.take(fresh)
			equals(t, "a new pod", slices.Sorted(maps.Keys(other.serves)), slices.Sorted(maps.Keys(fresh.serves)))
			equals(t, "a new pod", other.serves, fresh.serves)
		})
	}
}

// As long as pods serve versions that nobody else knows, nothing that lets them
// reach backends is taken away.
func TestPoliciesStayWhilePodsHoldRoutesBack(t *testing.T) {
	w := newPolicyWorld(t)
	held := map[string]string{"shop/a": "no"}
	w.acks = func(model.Key) []xds.PodAck {
		return []xds.PodAck{{Pod: "one", Sequence: w.sequence(), Held: held}}
	}
	w.in.ServiceRoutes[0] = changed(newRoute("b", "/moved"), 2)
	w.in.ServiceRoutes[0].Name = "a"
	w.configure()
	for range 100 {
		w.write()
		w.later(askAgain)
	}
	w.wants(t, "policies", w.inCluster(), letA, letB)
	held = nil
	for range 5 {
		w.write()
		w.later(askAgain)
	}
	w.wants(t, "policies afterwards", w.inCluster(), letB)
}
