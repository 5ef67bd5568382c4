package model_test

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/internal/model"
	"meshroute.io/meshroute/internal/modeltest"
)

// Any set of objects that an API server takes is built without a panic, into
// the same for the same objects in any order and whatever was built before, and
// nothing of them is changed.
// `make fuzz` looks for one that is not.
func FuzzBuild(f *testing.F) {
	generator, err := modeltest.New()
	if err != nil {
		f.Fatal(err)
	}
	for seed := range byte(4) {
		f.Add([]byte{255 - seed, seed, 7, 128})
	}
	var builder model.Builder
	f.Fuzz(func(t *testing.T, bytes []byte) {
		in, err := generator.Inputs(bytes)
		if err != nil {
			t.Fatal(err)
		}
		checkBuild(t, in, &builder)
	})
}

// The same for sets at random, some more at each run of the tests than the
// fuzzer begins with.
func TestBuildAnything(t *testing.T) {
	t.Parallel()
	generator, err := modeltest.New()
	if err != nil {
		t.Fatal(err)
	}
	var builder model.Builder
	for seed := range uint64(15) {
		in, err := generator.Random(seed)
		if err != nil {
			t.Fatal(err)
		}
		if checkBuild(t, in, &builder); t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func checkBuild(t *testing.T, in model.Inputs, builder *model.Builder) {
	t.Helper()
	untouched := deepCopy(in)
	result := model.Build(in)
	if !reflect.DeepEqual(untouched, in) {
		t.Errorf("Build changed its inputs (-before +after):\n%s", cmp.Diff(untouched, in))
	}
	model.CheckInvariants(t, result)
	if again := builder.Build(in); !reflect.DeepEqual(result, again) {
		if diff := cmp.Diff(result, again, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("what was built before makes a difference (-alone +after others):\n%s", diff)
		}
	}
	shuffled := deepCopy(in)
	model.Shuffle(rand.New(rand.NewPCG(1, 2)), &shuffled)
	if again := model.Build(shuffled); !reflect.DeepEqual(result, again) {
		if diff := cmp.Diff(result, again, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("the order of objects makes a difference (-first +shuffled):\n%s", diff)
		}
	}
}

// deepCopy copies the objects of every kind, too.
func deepCopy(in model.Inputs) model.Inputs {
	for _, list := range reflect.ValueOf(&in).Elem().Fields() {
		if list.Kind() != reflect.Slice || list.IsNil() {
			continue
		}
		copied := reflect.MakeSlice(list.Type(), list.Len(), list.Len())
		for i := range list.Len() {
			copied.Index(i).Set(list.Index(i).MethodByName("DeepCopy").Call(nil)[0])
		}
		list.Set(copied)
	}
	return in
}

// Bad objects, hundreds of them and in any order, do nothing to their
// neighbours: what gateways do for the good ones, and what their statuses say,
// is the same as without the bad ones.
func TestBadNeighbours(t *testing.T) {
	t.Parallel()
	generator, err := modeltest.New()
	if err != nil {
		t.Fatal(err)
	}
	good, bad := neighbours(t, generator)
	alone := model.Build(good)
	want := viewOf(good, alone)
	if routes := len(want.Statuses); routes < 40 {
		t.Fatalf("only %d good routes", routes)
	}
	for seed := range uint64(5) {
		random := rand.New(rand.NewPCG(seed, 0))
		all := deepCopy(good)
		for i := range 4 * len(bad) {
			other := deepCopy(bad[i%len(bad)])
			again := fmt.Sprintf("-%d", i)
			// Half of them say what no schema would have admitted, too.
			for _, route := range other.ServiceRoutes {
				if route.Name += again; random.IntN(2) == 0 {
					model.Mutate(random, &route.Spec)
				}
			}
			for _, gw := range other.Gateways {
				if gw.Name += again; random.IntN(2) == 0 {
					model.Mutate(random, &gw.Spec)
				}
			}
			for _, config := range other.GatewayConfigs {
				config.Name += again
			}
			all.ServiceRoutes = append(all.ServiceRoutes, other.ServiceRoutes...)
			all.Gateways = append(all.Gateways, other.Gateways...)
			all.GatewayConfigs = append(all.GatewayConfigs, other.GatewayConfigs...)
		}
		model.Shuffle(random, &all)
		if diff := cmp.Diff(want, viewOf(good, model.Build(all)), cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("seed %d: %d bad routes changed what %d good ones get (-alone +among bad ones):\n%s",
				seed, len(all.ServiceRoutes)-len(good.ServiceRoutes), len(good.ServiceRoutes), diff)
		}
	}
}

// neighbours are a gateway with the good routes, which are older, and lots of
// objects that use the same hostnames, Services and gateway, or break something
// of their own.
func neighbours(t *testing.T, generator *modeltest.Generator) (good model.Inputs, bad []model.Inputs) {
	t.Helper()
	const class = "meshroute"
	all := gatewayv1.NamespacesFromAll
	good = model.Inputs{
		GatewayClasses: []*gatewayv1.GatewayClass{{
			Name: class, Spec: gatewayv1.GatewayClassSpec{ControllerName: v1alpha1.ControllerName},
		}},
		Gateways: []*gatewayv1.Gateway{{
			Namespace: "good", Name: "edge", UID: "edge",
			Spec: gatewayv1.GatewaySpec{GatewayClassName: class, Listeners: []gatewayv1.Listener{{
				Name: "http", Port: 8888, Protocol: gatewayv1.HTTPProtocolType,
				AllowedRoutes: &gatewayv1.AllowedRoutes{Namespaces: &gatewayv1.RouteNamespaces{From: &all}},
			}}},
		}},
	}
	parent := []gatewayv1.ParentReference{{Name: "edge", Namespace: new(gatewayv1.Namespace("good"))}}
	old := metav1.NewTime(time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC))
	for seed := uint64(1000); seed < 1030; seed++ {
		in, err := generator.Random(seed)
		if err != nil {
			t.Fatal(err)
		}
		if seed == 1000 {
			good.Services, good.Namespaces = in.Services, in.Namespaces
		}
		// Of each set one half is good, and the other has its hostnames, too.
		var other model.Inputs
		for i, route := range in.ServiceRoutes {
			route.Name = fmt.Sprintf("%s-%d", route.Name, seed)
			if i%2 == 0 {
				route.CreationTimestamp, route.Spec.ParentRefs = old, parent
				route.Spec.Hostnames = []gatewayv1.Hostname{gatewayv1.Hostname(route.Name + "." + route.Namespace + ".example.com"), "shared.example.com"}
				good.ServiceRoutes = append(good.ServiceRoutes, route)
				continue
			}
			if i%4 == 1 {
				route.Spec.ParentRefs = append(slices.Clone(parent), route.Spec.ParentRefs...)
				route.Spec.Hostnames = append(route.Spec.Hostnames, good.ServiceRoutes[len(good.ServiceRoutes)-1].Spec.Hostnames...)
			}
			other.ServiceRoutes = append(other.ServiceRoutes, route)
		}
		for _, gw := range in.Gateways {
			gw.Name = fmt.Sprintf("%s-%d", gw.Name, seed)
			other.Gateways = append(other.Gateways, gw)
		}
		for _, config := range in.GatewayConfigs {
			config.Name = fmt.Sprintf("%s-%d", config.Name, seed)
			other.GatewayConfigs = append(other.GatewayConfigs, config)
		}
		bad = append(bad, other)
	}
	return good, bad
}

// view is what the good objects get.
type view struct {
	// Routes of the good gateway, by port and hostname, in their order.
	Routes map[string][]model.Route
	// Clusters that these send requests to.
	Clusters []model.Cluster
	Statuses []*model.RouteStatus
	Listener model.ListenerStatus
}

func viewOf(good model.Inputs, result model.Result) view {
	mine := map[model.Key]bool{}
	for _, route := range good.ServiceRoutes {
		mine[model.Key{Namespace: route.Namespace, Name: route.Name}] = true
	}
	owns := func(route model.Route) bool {
		parts := strings.SplitN(route.Name, "/", 3)
		return mine[model.Key{Namespace: parts[0], Name: parts[1]}]
	}
	seen := view{Routes: map[string][]model.Route{}}
	used := map[string]bool{}
	for _, gw := range result.Gateways {
		if gw.Namespace != "good" {
			continue
		}
		for _, port := range gw.Ports {
			for _, host := range port.VirtualHosts {
				for _, route := range host.Routes {
					if !owns(route) {
						continue
					}
					at := fmt.Sprintf("%s:%d", host.Hostname, port.Number)
					seen.Routes[at] = append(seen.Routes[at], route)
					for _, backend := range route.Backends {
						used[backend.Cluster] = true
					}
				}
			}
		}
		for _, cluster := range gw.Clusters {
			if used[cluster.Name] {
				seen.Clusters = append(seen.Clusters, cluster)
			}
		}
	}
	for _, status := range result.Routes {
		if mine[status.Key] {
			seen.Statuses = append(seen.Statuses, status)
		}
	}
	for _, gw := range result.GatewayStatuses {
		if gw.Namespace == "good" {
			seen.Listener = gw.Listeners[0]
			seen.Listener.AttachedRoutes = 0 // all that attach, good or bad
		}
	}
	return seen
}
