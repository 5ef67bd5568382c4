package envoy

import (
	"encoding/json"
	"flag"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"meshroute.io/meshroute/internal/model"
	"meshroute.io/meshroute/internal/modeltest"
)

var samples = flag.Int("samples", 10, "how many gateways, made of objects at random, are shown to Envoy")

// What comes of any set of objects that an API server takes is translated
// without a panic, and into the same bytes by a Translator that has translated
// something else before. `make fuzz` looks for a set that is not.
func FuzzTranslate(f *testing.F) {
	generator, err := modeltest.New()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{1, 2, 3})
	f.Add([]byte{200, 100, 50, 25})
	var translator Translator
	f.Fuzz(func(t *testing.T, bytes []byte) {
		in, err := generator.Inputs(bytes)
		if err != nil {
			t.Fatal(err)
		}
		for _, gw := range model.Build(in).Gateways {
			same(t, Translate(gw), translator.Translate(gw))
		}
	})
}

func same(t *testing.T, fresh, again Resources) {
	t.Helper()
	if len(fresh) != len(again) {
		t.Fatalf("%d and %d types", len(fresh), len(again))
	}
	for kind, named := range fresh {
		if len(named) != len(again[kind]) {
			t.Errorf("%d and %d resources of type %s", len(named), len(again[kind]), kind)
		}
		for name, message := range named {
			if !slices.Equal(packed(t, message), packed(t, again[kind][name])) {
				t.Errorf("the Translator makes another %s %s of the same gateway", kind, name)
			}
		}
	}
}

func packed(t *testing.T, message proto.Message) []byte {
	t.Helper()
	if message == nil {
		return nil
	}
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	return encoded
}

// Envoy itself takes what is made of objects at random. -samples looks at more
// of them.
func TestEnvoyTakesAnything(t *testing.T) {
	t.Parallel()
	envoyBinary(t)
	generator, err := modeltest.New()
	if err != nil {
		t.Fatal(err)
	}
	began, shown := time.Now(), 0
	for seed := uint64(0); shown < *samples; seed++ {
		in, err := generator.Random(seed)
		if err != nil {
			t.Fatal(err)
		}
		for _, gw := range model.Build(in).Gateways {
			if len(gw.Clusters) == 0 || shown == *samples {
				continue // little to see
			}
			shown++
			example := goldenCase{Gateway: gw, Endpoints: map[string][]model.Endpoint{}}
			for i, cluster := range gw.Clusters {
				if i%3 != 0 {
					example.Endpoints[cluster.Name] = []model.Endpoint{{Address: "10.0.0.1", Port: 8080}, {Address: "fd00::1", Port: 8080, Zone: "a"}}
				}
			}
			if validate(t, mustYAML(t, static(t, resourcesOf(example)))); t.Failed() {
				var routes []string
				for _, route := range in.ServiceRoutes {
					encoded, err := json.Marshal(route.Spec)
					if err != nil {
						t.Fatal(err)
					}
					routes = append(routes, string(encoded))
				}
				t.Fatalf("seed %d, Gateway %s; all routes:\n%s", seed, gw.Key, strings.Join(routes, "\n"))
			}
		}
	}
	t.Logf("%d gateways in %s", shown, time.Since(began).Round(time.Millisecond))
}
