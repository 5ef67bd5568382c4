package model

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
	"github.com/google/go-cmp/cmp/cmpopts"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
)

// The same for each object of each case, which goes, comes back, and is replaced
// by one of the same name from another case.
func TestBuilderMissesNoObject(t *testing.T) {
	t.Parallel()
	all, cases := newPool(t)
	for i, objects := range cases {
		cluster := &cluster{random: rand.New(rand.NewPCG(uint64(i), 7)), counted: true, objects: map[string]map[Key]pooled{}}
		for kind, of := range objects {
			for _, object := range of {
				cluster.write(kind, object)
			}
		}
		var builder Builder
		builder.Build(cluster.inputs())
		same := func(what string) {
			in := cluster.inputs()
			if diff := difference(Build(in), builder.Build(in)); diff != "" {
				t.Errorf("%s: (-built afresh +remembered)\n%s", what, diff)
			}
		}
		for kind, of := range objects {
			for _, object := range of {
				key := keyOf(object)
				there := cluster.objects[kind][key]
				delete(cluster.objects[kind], key)
				same(fmt.Sprintf("%s %s gone", kind, key))
				cluster.objects[kind][key] = there
				same(fmt.Sprintf("%s %s back", kind, key))
				for _, other := range all[kind] {
					if keyOf(other) == key {
						cluster.write(kind, other)
						same(fmt.Sprintf("%s %s replaced", kind, key))
					}
				}
				cluster.objects[kind][key] = there
			}
		}
	}
}

// A Builder that remembers gives what one gives that does not, whatever comes,
// changes and goes. The objects are those of all scenarios in testdata, so a
// scenario for something new makes it a part of this, too.
func TestBuilderRemembersRightly(t *testing.T) {
	t.Parallel()
	pool, cases := newPool(t)
	for _, counted := range []bool{true, false} {
		for seed := range uint64(4) {
			t.Run(fmt.Sprintf("counted=%t/%d", counted, seed), func(t *testing.T) {
				t.Parallel()
				random := rand.New(rand.NewPCG(seed, 7))
				cluster := &cluster{random: random, counted: counted, pool: pool, objects: map[string]map[Key]pooled{}}
				var builder Builder
				var before, copied Result
				for step := range 100 {
					var done []string
					if step%10 == 0 {
						// A case as a whole, by itself or among what there is, and then
						// changes of it.
						if random.IntN(3) > 0 {
							clear(cluster.objects)
						}
						cluster.scenario = cases[random.IntN(len(cases))]
						for _, kind := range slices.Sorted(maps.Keys(cluster.scenario)) {
							for _, object := range cluster.scenario[kind] {
								cluster.write(kind, object)
							}
						}
						done = append(done, "a whole case")
					}
					for range 1 + random.IntN(1<<random.IntN(5)) {
						done = append(done, cluster.change())
					}
					in := cluster.inputs()
					got, want := builder.Build(in), Build(in)
					if diff := difference(want, got); diff != "" {
						t.Fatalf("step %d, after %s: (-built afresh +remembered)\n%s", step, strings.Join(done, ", "), diff)
					}
					if diff := difference(copied, before); diff != "" {
						t.Fatalf("step %d changed the result before it (-as it was +as it is):\n%s", step, diff)
					}
					checkInvariants(t, got)
					before, copied = got, want
				}
			})
		}
	}
}

func difference(want, got Result) string {
	if reflect.DeepEqual(want, got) { // which takes a tenth of the time
		return ""
	}
	return cmp.Diff(want, got, cmpopts.EquateEmpty())
}

// What did not change is the same memory: who compares need not look into it.
func TestBuilderKeepsWhatIsTheSame(t *testing.T) {
	t.Parallel()
	in := readScenario(t, "testdata/monitoring/in.yaml").Inputs
	var builder Builder
	before := builder.Build(in)
	changed := in.ServiceRoutes[0].DeepCopy()
	changed.Spec.Rules = changed.Spec.Rules[:1]
	in.ServiceRoutes = append([]*v1alpha1.ServiceRoute{changed}, in.ServiceRoutes[1:]...)
	in.Gateways = []*gatewayv1.Gateway{in.Gateways[0]}
	after := builder.Build(in)
	for i, route := range after.Routes {
		same := route == before.Routes[i]
		if is := route.Key == keyOf(changed); is == same {
			t.Errorf("route %s: same memory is %t", route.Key, same)
		}
	}
	again := builder.Build(in)
	if &again.Gateways[0] != &after.Gateways[0] || &again.Routes[0] != &after.Routes[0] {
		t.Error("a Build without news made another result")
	}
}

type pooled interface {
	metav1.Object
	runtime.Object
}

// pool are objects by the field of Inputs that holds their kind.
type pool map[string][]pooled

func newPool(t *testing.T) (all pool, cases []pool) {
	all = pool{}
	paths := scenarios(t)
	for _, name := range slices.Sorted(maps.Keys(paths)) {
		path := paths[name]
		one := pool{}
		cases = append(cases, one)
		in := reflect.ValueOf(readScenario(t, path).Inputs)
		for field, held := range in.Fields() {
			switch held.Kind() {
			case reflect.Slice:
				for i := range held.Len() {
					object := held.Index(i).Interface().(pooled)
					all[field.Name] = append(all[field.Name], object)
					one[field.Name] = append(one[field.Name], object)
				}
			case reflect.String, reflect.Bool: // cluster.inputs changes them
			case reflect.Map, reflect.Struct: // Certificates and Now: so does it
				if field.Name != "Certificates" && field.Name != "Now" {
					t.Fatalf("this test does not know how to change Inputs.%s", field.Name)
				}
			default:
				t.Fatalf("this test does not know how to change Inputs.%s", field.Name)
			}
			if held.Kind() == reflect.Slice && len(all[field.Name]) == 0 {
				all[field.Name] = nil
			}
		}
	}
	for kind, objects := range all {
		if len(objects) == 0 {
			t.Fatalf("no scenario has %s", kind)
		}
		slices.SortFunc(objects, func(a, b pooled) int { return strings.Compare(keyOf(a).String(), keyOf(b).String()) })
	}
	return all, cases
}

// cluster holds objects as an API server does.
type cluster struct {
	random  *rand.Rand
	counted bool // generations and versions, as an API server does; files have none
	pool    pool
	// scenario is the case that most changes are about.
	scenario pool
	objects  map[string]map[Key]pooled
	count    int64
	api      string
	oneHost  bool

	certificates map[Key]*Certificate
}

// change makes, changes or deletes an object, and says what it did.
func (c *cluster) change() string {
	c.count++
	from := c.pool
	if c.random.IntN(4) > 0 {
		from = c.scenario
	}
	kinds := slices.Sorted(maps.Keys(from))
	kind := kinds[c.random.IntN(len(kinds))]
	if c.random.IntN(3) > 0 && len(from["ServiceRoutes"]) > 0 {
		kind = "ServiceRoutes" // most of what changes
	}
	chosen := from[kind][c.random.IntN(len(from[kind]))]
	key := keyOf(chosen)
	before := c.objects[kind][key]
	switch n := c.random.IntN(40); {
	case n == 0:
		c.api = []string{"", "v1.5.1", "v1.7.0"}[c.random.IntN(3)]
		return "another GatewayAPI"
	case n == 1:
		c.oneHost = !c.oneHost
		return "another OneHost"
	case n < 12:
		delete(c.objects[kind], key)
		return fmt.Sprintf("%s %s deleted", kind, key)
	case n == 16:
		// A Secret comes, goes, or is broken.
		c.certificates = maps.Clone(c.certificates)
		if c.certificates == nil {
			c.certificates = map[Key]*Certificate{}
		}
		name := Key{"shop", []string{"good", "missing", "shop-rsa", "default", "never-good"}[c.random.IntN(5)]}
		switch c.random.IntN(3) {
		case 0:
			delete(c.certificates, name)
		case 1:
			c.certificates[name] = &Certificate{Secret: name, Problem: "broken"}
		default:
			c.certificates[name] = &Certificate{Secret: name, Chain: []byte("chain"), Names: []string{"*.example.com"}}
		}
		return "another Secret"
	case n < 16 && before != nil:
		// Somebody has written a status.
		again := before.DeepCopyObject().(pooled)
		again.SetResourceVersion(fmt.Sprint(c.count))
		c.objects[kind][key] = again
		return fmt.Sprintf("%s %s touched", kind, key)
	}
	c.write(kind, chosen)
	return fmt.Sprintf("%s %s written", kind, key)
}

// write makes an object or changes it, and now and then makes it anew.
func (c *cluster) write(kind string, object pooled) {
	c.count++
	key := keyOf(object)
	if c.objects[kind] == nil {
		c.objects[kind] = map[Key]pooled{}
	}
	before := c.objects[kind][key]
	made := object.DeepCopyObject().(pooled)
	made.SetUID(types.UID(fmt.Sprint(kind, key)))
	made.SetCreationTimestamp(metav1.NewTime(time.Unix(int64(c.random.IntN(4)), 0)))
	if before != nil && c.random.IntN(4) > 0 {
		made.SetCreationTimestamp(before.GetCreationTimestamp())
	} else {
		made.SetUID(types.UID(fmt.Sprint(kind, key, c.count)))
	}
	made.SetGeneration(c.count)
	made.SetResourceVersion(fmt.Sprint(c.count))
	if !c.counted {
		made.SetUID("")
		made.SetGeneration(0)
		made.SetResourceVersion("")
	}
	c.objects[kind][key] = made
}

func (c *cluster) inputs() Inputs {
	in := Inputs{GatewayAPI: c.api, OneHost: c.oneHost, Certificates: c.certificates, Now: time.Unix(1780000000, 0)}
	value := reflect.ValueOf(&in).Elem()
	for kind, objects := range c.objects {
		field := value.FieldByName(kind)
		for _, object := range objects {
			field.Set(reflect.Append(field, reflect.ValueOf(object)))
		}
	}
	shuffle(c.random, &in)
	return in
}
