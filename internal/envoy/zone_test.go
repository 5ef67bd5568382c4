package envoy

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"meshroute.io/meshroute/internal/model"
)

// The pod's zone is preferred where a cluster asks for that, and while an
// endpoint there can be reached.
func TestZones(t *testing.T) {
	t.Parallel()
	in := func(zone string, endpoint model.Endpoint) model.Endpoint {
		endpoint.Zone = zone
		return endpoint
	}
	gateway := routesTo(t, map[string]model.Route{
		"least": {Backends: to("least")}, "robin": {Backends: to("robin")}, "random": {Backends: to("random")},
		"plain": {Backends: to("plain")}, "down": {Backends: to("down")}, "failover": {Backends: to("failover"), FailsOver: true},
	}, nil)
	endpoints := []model.Endpoint{
		in("a", named(t, "a1")), in("b", named(t, "b1")), in("b", named(t, "b2")),
	}
	gateway.Endpoints = map[string][]model.Endpoint{
		"least": endpoints, "robin": endpoints, "random": endpoints, "plain": endpoints, "preferred": endpoints,
		"down": {in("a", dead(t)), endpoints[1], endpoints[2]},
	}
	gateway.Gateway.Clusters = []model.Cluster{
		{Name: "least", PreferZone: true},
		{Name: "robin", PreferZone: true, LoadBalancing: model.RoundRobin},
		{Name: "random", PreferZone: true, LoadBalancing: model.Random},
		{Name: "plain"},
		{Name: "down", PreferZone: true},
		{Name: "preferred", PreferZone: true, BackedUp: true},
		{Name: "empty"},
	}
	gateway.Gateway.Failovers = []model.Failover{{Name: "failover", Members: []string{"preferred", "empty"}}}
	everywhere := []string{"200 a1", "200 b1", "200 b2"}
	for zone, want := range map[string][]string{
		"a": {"200 a1"}, "b": {"200 b1", "200 b2"}, "c": everywhere, "": everywhere,
	} {
		t.Run("in zone "+zone, func(t *testing.T) {
			pod, err := PodBootstrap(zone)
			if err != nil {
				t.Fatal(err)
			}
			address := startEnvoy(t, gateway, func(bootstrap *bootstrapv3.Bootstrap) {
				more := &bootstrapv3.Bootstrap{}
				if err := protojson.Unmarshal(pod, more); err != nil {
					t.Fatal(err)
				}
				proto.Merge(bootstrap, more) // as Envoy does
			})
			answers := func(host string) []string {
				got := map[string]bool{}
				for range 60 {
					text, _ := from(t, address, http.MethodGet, host)
					got[text] = true
				}
				return slices.Sorted(maps.Keys(got))
			}
			for host, want := range map[string][]string{
				"least": want, "robin": want, "random": want, "failover": want, "plain": everywhere,
			} {
				if diff := cmp.Diff(want, answers(host)); diff != "" {
					t.Errorf("%s (-want +got):\n%s", host, diff)
				}
			}
			if zone != "a" {
				return
			}
			answers("down") // until it is set aside
			if got := strings.Join(answers("down"), ", "); got != "200 b1, 200 b2" {
				t.Errorf("with nobody in the zone: %s", got)
			}
		})
	}
}

// Envoy takes what is in its file and what it is told for the pod as one, whatever
// zone that is in.
func TestPodBootstrap(t *testing.T) {
	t.Parallel()
	file, err := Bootstrap(BootstrapOptions{
		Gateway:   model.Key{Namespace: "shop", Name: "edge"},
		XDSSocket: "/run/xds.sock", PagesSocket: "/run/pages.sock", AdminSocket: "/run/admin.sock",
	})
	if err != nil {
		t.Fatal(err)
	}
	template, err := PodBootstrap("$(ZONE)")
	if err != nil {
		t.Fatal(err)
	}
	for _, zone := range []string{"eu-central-1a", ""} {
		validate(t, file, "--config-yaml", strings.ReplaceAll(string(template), "$(ZONE)", zone))
	}
}
