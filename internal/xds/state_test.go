package xds

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

// set is a content from "kind name version refs…" lines, such as "r web 1 a b".
func set(lines ...string) (c content) {
	for k := range c {
		c[k] = map[string]*discoveryv3.Resource{}
	}
	for _, line := range lines {
		f := strings.Fields(line)
		k := map[string]kind{"c": clusters, "e": endpoints, "s": secrets, "r": routes, "l": listeners}[f[0]]
		c[k][f[1]] = res(k, f[1], f[2], f[3:]...)
		if k == secrets && f[2] == "keep" {
			c[k][f[1]] = keep(f[1], f[2])
		}
	}
	return c
}

// Each scenario goes through its contents and reconnections; what Envoy has in
// the end, and what the manager was told of each type, is compared.
func TestScenarios(t *testing.T) {
	base := []string{"c a 1", "e a 1", "r web 1 a", "l http 1"}
	for name, tt := range map[string]struct {
		steps   []any // content, or what happens
		want    string
		answers map[kind]string // of types not simply acknowledged
	}{
		"everything arrives in order": {
			steps: []any{set(base...)}, want: "c a 1, e a 1, r web 1, l http 1",
		},
		"one refused route does not hold back its neighbours": {
			steps: []any{
				set("c a 1", "e a 1", "r x 1 a", "r y 1 a", "r z 1 a", "l http 1"),
				set("c a 1", "e a 1", "r x 2 a", "r y bad a", "r z 2 a", "l http 1"),
			},
			want:    "c a 1, e a 1, r x 2, r y 1, r z 2, l http 1",
			answers: map[kind]string{routes: `routes "y": no good`},
		},
		"one refused cluster does not hold back its neighbours": {
			steps: []any{set("c a 1", "e a 1", "c b bad", "e b 1", "c d 1", "e d 1")},
			want:  "c a 1, c d 1, e a 1, e d 1", answers: map[kind]string{clusters: `cluster "b": no good`},
		},
		"a route waits for a refused cluster, and says so": {
			steps: []any{set(base...), set("c a 1", "e a 1", "c b bad", "e b 1", "r web 2 a b", "l http 1")},
			want:  "c a 1, e a 1, r web 1, l http 1",
			answers: map[kind]string{
				clusters: `cluster "b": no good`,
				routes:   `routes "web": waits for cluster "b", which Envoy refused: no good`,
			},
		},
		"a mended cluster lets the waiting route go, and its refusal is taken back": {
			steps: []any{
				set(base...), set("c a 1", "e a 1", "c b bad", "e b 1", "r web 2 a b", "l http 1"),
				set("c a 1", "e a 1", "c b 2", "e b 1", "r web 2 a b", "l http 1"),
			},
			want: "c a 1, c b 2, e a 1, e b 1, r web 2, l http 1",
		},
		"a cluster stays while a listener that drains keeps its routes": {
			steps: []any{set(base...), "envoy drains", set("r web 1 a")},
			want:  "c a 1, e a 1, r web 1", answers: map[kind]string{},
		},
		"routes come again with a listener after the last one went": {
			steps: []any{set(base...), set(base[:3]...), set(base...)},
			want:  "c a 1, e a 1, r web 1, l http 1",
		},
		"a route without its cluster is deferred, not refused": {
			steps: []any{set("r web 1 a", "l http 1")},
			want:  "l http 1", answers: map[kind]string{routes: "deferred"},
		},
		"a route to a group comes when the group's members are ready": {
			steps: []any{set("c g 1 a b", "c a 1", "e a 1", "c b 1", "e b 1", "r web 1 g", "l http 1")},
			want:  "c a 1, c b 1, c g 1, e a 1, e b 1, r web 1, l http 1",
		},
		"a route to a group waits for a member that has not come": {
			steps:   []any{set("c g 1 a b", "c a 1", "e a 1", "r web 1 g", "l http 1")},
			want:    "c a 1, c g 1, e a 1, l http 1",
			answers: map[kind]string{clusters: "deferred", routes: "deferred"},
		},
		"a route to a group waits for a refused member, and says so": {
			steps: []any{set(base...), set("c a 1", "e a 1", "c b bad", "e b 1", "c g 1 a b", "r web 2 g", "l http 1")},
			want:  "c a 1, c g 1, e a 1, r web 1, l http 1",
			answers: map[kind]string{
				clusters: `cluster "b": no good`,
				routes:   `routes "web": waits for cluster "b", which Envoy refused: no good`,
			},
		},
		"a group goes before its members": {
			steps: []any{
				set("c g 1 a b", "c a 1", "e a 1", "c b 1", "e b 1", "r web 1 g", "l http 1"),
				set("c d 1", "e d 1", "r web 2 d", "l http 1"),
			},
			want: "c d 1, e d 1, r web 2, l http 1",
		},
		"missing backends are nothing to wait for": {
			steps: []any{set("r web 1 meshroute-missing-backend meshroute-agent", "l http 1")},
			want:  "r web 1, l http 1",
		},
		"a fresh Envoy gets the newest although it came late": {
			steps: []any{set(base...), "envoy leaves", set("c a 2", "e a 2", "r web 2 a", "l http 1"), set("c a 3", "e a 3", "r web 3 a", "l http 1"), "envoy comes"},
			want:  "c a 3, e a 3, r web 3, l http 1",
		},
		"without an Envoy everything is deferred": {
			steps:   []any{"envoy leaves", set(base...)},
			answers: map[kind]string{clusters: "deferred", endpoints: "deferred", secrets: "deferred", routes: "deferred", listeners: "deferred"},
		},
		"a secret changes alone": {
			steps: []any{set("s s1 1", "r web 1", "l https 1 s1"), set("s s1 2", "r web 1", "l https 1 s1")},
			want:  "s s1 2, r web 1, l https 1",
		},
		"a listener without its secret is deferred": {
			steps:   []any{set("r web 1", "l http 1", "l https 1 s1")},
			want:    "r web 1, l http 1",
			answers: map[kind]string{listeners: "deferred"},
		},
		"a refused secret stays as it was": {
			steps:   []any{set("s s1 1", "r web 1", "l https 1 s1"), set("s s1 bad", "r web 1", "l https 1 s1")},
			want:    "s s1 1, r web 1, l https 1",
			answers: map[kind]string{secrets: `secret "s1": no good`},
		},
		"a refused secret is in no listener's way once the one before it is back": {
			steps: []any{
				set("s s1 1", "r web 1", "l https 1 s1"), set("s s1 bad", "r web 1", "l https 1 s1"),
				set("s s1 bad", "r web 1", "l https 2 s1"),
			},
			want:    "s s1 1, r web 1, l https 2",
			answers: map[kind]string{secrets: `secret "s1": no good`},
		},
		"a listener that waits for a refused secret goes when that is mended": {
			steps: []any{
				set("s s1 bad", "s s2 1", "r web 1", "l https 1 s1"), set("s s1 bad", "s s2 1", "r web 1", "l https 2 s1 s2"),
				set("s s1 2", "s s2 1", "r web 1", "l https 2 s1 s2"),
			},
			want: "s s1 2, s s2 1, r web 1, l https 2",
		},
		"a refused secret does not hold back its listener's others": {
			steps:   []any{set("s s1 bad", "s s2 1", "r web 1", "l https 1 s1 s2")},
			want:    "s s2 1, r web 1, l https 1",
			answers: map[kind]string{secrets: `secret "s1": no good`},
		},
		"a secret without content is kept": {
			steps: []any{
				set("s s1 1", "r web 1", "l https 1 s1"), set("s s1 keep", "r web 1", "l https 2 s1"),
				"agent restarts",
			},
			want: "s s1 1, r web 1, l https 2",
		},
		"where there is none to keep the listener's others serve": {
			steps: []any{set("s s1 keep", "s s2 1", "r web 1", "l https 1 s1 s2")},
			want:  "s s2 1, r web 1, l https 1",
		},
		"a kept secret is replaced when there is a good one": {
			steps: []any{
				set("s s1 1", "r web 1", "l https 1 s1"), set("s s1 keep", "r web 1", "l https 1 s1"),
				set("s s1 2", "r web 1", "l https 1 s1"),
			},
			want: "s s1 2, r web 1, l https 1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(7, 7))
			w := newWorld(r, newFakeManager())
			w.connectEnvoy(true)
			w.connectManager(w.manager)
			// The first content comes by set, as a Server's first answers do.
			for i := range w.manager.first {
				w.manager.first[i] = true
			}
			for _, step := range tt.steps {
				switch step := step.(type) {
				case content:
					w.manager.set(step)
				case string:
					switch step {
					case "envoy leaves":
						w.envoyUp = false
						w.state.envoyClosed()
					case "envoy comes":
						w.connectEnvoy(true)
					case "agent restarts":
						w.restartAgent(true)
						w.connectManager(w.manager)
						w.connectEnvoy(true)
					case "envoy drains":
						w.envoy.drains = true
					}
					w.step()
				}
				if err := drain(w, r); err != nil {
					t.Fatal(err)
				}
			}
			var got []string
			if w.envoyUp {
				have := w.envoy.have
				have[routes] = w.envoy.routes
				for k := range numKinds {
					for _, r := range have[k] {
						got = append(got, fmt.Sprintf("%d %s %s %s", k, string("cesrl"[k]), r.GetName(), r.GetVersion()))
					}
				}
			}
			slices.Sort(got)
			for i := range got {
				got[i] = got[i][2:]
			}
			if diff := cmp.Diff(tt.want, strings.Join(got, ", ")); diff != "" {
				t.Errorf("Envoy has (-want +got):\n%s", diff)
			}
			answers := map[kind]string{}
			for k := range numKinds {
				switch a := w.manager.answers[k]; {
				case a == nil:
					answers[k] = "none"
				case a.GetErrorDetail().GetCode() == int32(codes.Unavailable):
					answers[k] = "deferred"
				case a.GetErrorDetail() != nil:
					answers[k] = a.GetErrorDetail().GetMessage()
				}
			}
			want := tt.answers
			if want == nil {
				want = map[kind]string{}
			}
			if diff := cmp.Diff(want, answers); diff != "" {
				t.Errorf("answers (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReconnectingEnvoyGetsOnlyDifferences(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	w := newWorld(r, newFakeManager())
	w.manager.set(set("c a 1", "e a 1", "c b 1", "e b 1", "r web 1 a b", "l http 1"))
	w.connectEnvoy(true)
	w.connectManager(w.manager)
	if err := drain(w, r); err != nil {
		t.Fatal(err)
	}
	w.envoyUp = false
	w.state.envoyClosed()
	w.step()
	w.manager.set(set("c a 1", "e a 1", "c b 1", "e b 2", "r web 1 a b", "l http 1"))
	if err := drain(w, r); err != nil {
		t.Fatal(err)
	}
	before := w.envoy.pushed
	w.connectEnvoy(false)
	if err := drain(w, r); err != nil {
		t.Fatal(err)
	}
	if got := w.envoy.pushed - before; got != 1 {
		t.Errorf("%d resources were sent, not the one that changed", got)
	}
}

// The file is written up to a second after Envoy has acknowledged something. An
// agent that dies in between starts from what was before.
func TestEnvoyKeepsWhatIsNewerThanTheFile(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(8, 8))
	older, newer := set("c a 1", "e a 1", "r web 1 a", "l http 1"), set("c b 1", "e b 1", "r web 2 b", "l http 2")
	w := newWorld(r, newFakeManager())
	settle := func() {
		t.Helper()
		if err := drain(w, r); err != nil {
			t.Fatal(err)
		}
	}
	w.manager.set(older)
	w.connectEnvoy(true)
	w.connectManager(w.manager)
	settle()
	file := w.state.lastGood()
	w.manager.set(newer)
	settle()

	w.manager, w.state = newFakeManager(), newRelayState()
	w.state.restore(file)
	w.connectEnvoy(false)
	settle()
	for k, want := range map[kind]string{routes: "web 2", listeners: "http 2", clusters: "b 1", endpoints: "b 1"} {
		name, version, _ := strings.Cut(want, " ")
		if got := w.envoy.have[k][name].GetVersion(); got != version {
			t.Errorf("without a manager, Envoy's %s is at version %q, not at its own %s", name, got, version)
		}
	}
	w.manager.set(newer)
	w.connectManager(w.manager)
	settle()
	if err := holdsAll(w); err != nil {
		t.Error(err)
	}
}

func TestRouteRefs(t *testing.T) {
	mirror := func(name string) []*routev3.RouteAction_RequestMirrorPolicy {
		return []*routev3.RouteAction_RequestMirrorPolicy{{Cluster: name}}
	}
	encoded, err := proto.Marshal(&routev3.ScopedRouteConfiguration{Name: "nor-this", RouteConfiguration: &routev3.RouteConfiguration{
		Name: "not-a-cluster", RequestMirrorPolicies: mirror("m1"),
		VirtualHosts: []*routev3.VirtualHost{{
			Name: "nor-this", RequestMirrorPolicies: mirror("m2"),
			Routes: []*routev3.Route{
				{Name: "nor-this", Action: &routev3.Route_Route{Route: &routev3.RouteAction{
					ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "plain"}, RequestMirrorPolicies: mirror("m3"),
				}}},
				{Action: &routev3.Route_Route{Route: &routev3.RouteAction{
					ClusterSpecifier: &routev3.RouteAction_WeightedClusters{WeightedClusters: &routev3.WeightedCluster{
						Clusters: []*routev3.WeightedCluster_ClusterWeight{{Name: "w1"}, {Name: "meshroute-missing-backend"}, {Name: "plain"}},
					}},
				}}},
				{Action: &routev3.Route_Redirect{Redirect: &routev3.RedirectAction{}}},
			},
		}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	refs, err := routeRefs(encoded)
	var got []string
	for _, to := range refs {
		got = append(got, to.name)
	}
	if diff := cmp.Diff([]string{"m1", "m2", "m3", "plain", "w1"}, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if _, err := routeRefs(encoded[:len(encoded)-1]); err == nil {
		t.Error("half a message is no error")
	}
}
