package xds

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"meshroute.io/meshroute/internal/report/reportv1"
)

// lettered are the types whose content is given by letters; that of the others is
// always the same.
var lettered = []kind{clusters, endpoints, routes, listeners}

// contents are digests of the types: the same letter, the same content.
func contents(letters string) (d [numKinds]digest) {
	for i, k := range lettered {
		d[k] = digestOf(kinds[k].url, letters[i:i+1])
	}
	return d
}

// having is the report of a pod that has these contents; a dot: none yet.
func having(letters string) *reportv1.PodState {
	state := &reportv1.PodState{}
	for k, d := range contents(letters) {
		of := &reportv1.TypeState{TypeUrl: kinds[k].url}
		if i := slices.Index(lettered, kind(k)); i < 0 || letters[i] != '.' {
			of.Acknowledged = d.bytes()
		}
		state.Types = append(state.Types, of)
	}
	return state
}

// refusing is the report of a pod that has the first contents, and refuses route
// configurations.
func refusing(has, refused string) *reportv1.PodState {
	state, content := having(has), contents(refused)
	state.Types[routes].Refusal = &reportv1.Refusal{Content: content[routes].bytes(), Message: "no good"}
	return state
}

func TestTracker(t *testing.T) {
	a, b := &podState{pod: "a"}, &podState{pod: "b"}
	type step = func(*tracker)
	wants := func(letters string) step { return func(tr *tracker) { tr.advance(contents(letters)) } }
	report := func(pod *podState, state *reportv1.PodState) step {
		return func(tr *tracker) { tr.report(pod, state) }
	}
	for name, tt := range map[string]struct {
		steps []step
		want  Acks
	}{
		"a pod counts once it has every type": {
			steps: []step{wants("aaaa"), report(b, having("aaaa")), report(a, having("a..."))},
			want:  Acks{Pods: []PodAck{{Pod: "b", Sequence: 1}}, Starting: 1},
		},
		"applied when every type is": {
			steps: []step{wants("aaaa"), wants("bbaa"), report(a, having("baaa"))},
			want:  Acks{Pods: []PodAck{{Pod: "a", Sequence: 1}}},
		},
		"a type that did not change holds up nothing": {
			steps: []step{wants("aaaa"), report(a, having("aaba")), wants("aaba"), wants("aaca"), report(a, having("aaca"))},
			want:  Acks{Pods: []PodAck{{Pod: "a", Sequence: 3}}},
		},
		"what another replica was told earlier counts when it is told here": {
			steps: []step{wants("aaaa"), report(a, having("aaaa")), report(a, having("aaba")), wants("aaba")},
			want:  Acks{Pods: []PodAck{{Pod: "a", Sequence: 2}}},
		},
		"content that was never wanted here leaves a pod where it was": {
			steps: []step{wants("aaaa"), wants("aaba"), report(a, having("aaba")), report(a, having("aaxa")), wants("aaca")},
			want:  Acks{Pods: []PodAck{{Pod: "a", Sequence: 2}}},
		},
		"a pod of which nothing is known here is starting": {
			steps: []step{wants("aaaa"), report(a, having("aaxa"))},
			want:  Acks{Starting: 1},
		},
		"a replica that is behind takes a pod back": {
			steps: []step{wants("aaaa"), wants("aaba"), report(a, having("aaba")), report(a, having("aaaa"))},
			want:  Acks{Pods: []PodAck{{Pod: "a", Sequence: 1}}},
		},
		"content that comes back is applied where it was kept": {
			steps: []step{wants("aaaa"), report(a, having("aaaa")), wants("aaba"), wants("aaaa")},
			want:  Acks{Pods: []PodAck{{Pod: "a", Sequence: 3}}},
		},
		"a refusal names the range in which its cause lies": {
			steps: []step{
				wants("aaaa"), report(a, having("aaaa")), wants("aaba"), wants("aaca"), wants("aada"), wants("aaea"),
				report(a, refusing("aaaa", "aada")),
			},
			want: Acks{Pods: []PodAck{{Pod: "a", Sequence: 1, Nack: &Nack{Type: kinds[routes].url, Message: "no good", LastGood: 1, Refused: 4}}}},
		},
		"a refusal of content that is not known here may be of the newest": {
			steps: []step{wants("aaaa"), report(a, having("aaaa")), wants("aaba"), report(a, refusing("aaaa", "aaxa"))},
			want:  Acks{Pods: []PodAck{{Pod: "a", Sequence: 1, Nack: &Nack{Type: kinds[routes].url, Message: "no good", LastGood: 1, Refused: 2}}}},
		},
		"a pod that refuses from the start is seen": {
			steps: []step{wants("aaaa"), report(a, refusing("a...", "aaaa"))},
			want:  Acks{Pods: []PodAck{{Pod: "a", Nack: &Nack{Type: kinds[routes].url, Message: "no good", Refused: 1}}}},
		},
		"a later acknowledgement clears a refusal": {
			steps: []step{wants("aaaa"), report(a, refusing("aa.a", "aaaa")), wants("aaba"), report(a, having("aaba"))},
			want:  Acks{Pods: []PodAck{{Pod: "a", Sequence: 2}}},
		},
		"of two streams of a pod the newest counts, once it has said something": {
			steps: []step{wants("aaaa"), report(&podState{pod: "a"}, having("a...")), report(a, having("aaaa"))},
			want:  Acks{Pods: []PodAck{{Pod: "a", Sequence: 1}}},
		},
		"what is no digest is none": {
			steps: []step{wants("aaaa"), report(a, &reportv1.PodState{Types: []*reportv1.TypeState{
				{TypeUrl: kinds[clusters].url, Acknowledged: []byte("short")}, {TypeUrl: "unheard of"}, {},
			}})},
			want: Acks{Starting: 1},
		},
		"what else a pod says is passed on": {
			steps: []step{wants("aaaa"), func(tr *tracker) {
				state := having("aaaa")
				state.NetworkPolicy, state.Draining = reportv1.NetworkPolicy_NETWORK_POLICY_NOT_ENFORCED, true
				tr.report(a, state)
			}},
			want: Acks{Pods: []PodAck{{Pod: "a", Sequence: 1, Draining: true, NetworkPolicy: reportv1.NetworkPolicy_NETWORK_POLICY_NOT_ENFORCED}}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			*a, *b = podState{pod: "a"}, podState{pod: "b"}
			tr := &tracker{}
			for _, step := range tt.steps {
				step(tr)
			}
			if diff := cmp.Diff(tt.want, tr.acks()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestDigestsAreAlikeInAnyOrder(t *testing.T) {
	one, two := digestOf("a", "1"), digestOf("b", "1")
	if one.plus(two) != two.plus(one) || one.plus(two).minus(one) != two {
		t.Error("the order counts")
	}
	for what, other := range map[string]digest{
		"another version": digestOf("a", "2"), "another name": digestOf("c", "1"), "the same letters": digestOf("a\x001", ""), "nothing": {},
	} {
		if other == one {
			t.Errorf("%s: the same digest", what)
		}
	}
	if got, ok := parseDigest(one.bytes()); !ok || got != one {
		t.Errorf("%v came as %v", one, got)
	}
}

func TestTrackerTellsWhichRefusalsAreNews(t *testing.T) {
	tr, pod := &tracker{}, &podState{pod: "pod"}
	tr.advance(contents("aaaa"))
	withholding := func(objects ...string) *reportv1.PodState {
		state := having("aaaa")
		for _, object := range objects {
			state.Types[routes].Withheld = append(state.Types[routes].Withheld, &reportv1.Withheld{Object: object})
		}
		return state
	}
	for i, step := range []struct {
		report *reportv1.PodState
		want   int
	}{
		{having("aaaa"), 0},
		{refusing("aaaa", "aaba"), 1},
		{refusing("aaaa", "aaba"), 0}, // the same still
		{refusing("aaaa", "aaca"), 1},
		{withholding("shop/a", "shop/b"), 2},
		{withholding("shop/b", "shop/c"), 1},
		{having("aaaa"), 0},
		{withholding("shop/b"), 1}, // again
	} {
		if got := tr.report(pod, step.report); got != [numKinds]int{routes: step.want} {
			t.Errorf("step %d: %v, not %d of routes", i, got, step.want)
		}
	}
}

func TestTrackerStaysSmall(t *testing.T) {
	tr := &tracker{}
	for v := range uint64(5000) {
		tr.advance([numKinds]digest{{v}})
	}
	if len(tr.vectors) > maxVectors {
		t.Errorf("%d vectors", len(tr.vectors))
	}
	if got := clip(strings.Repeat("ä", maxNackMessage)); len(got) > maxNackMessage {
		t.Errorf("%d bytes", len(got))
	}
}

// Two replicas see 20 changes a second. Each builds what it finds when it has
// time, so that hardly two of their states are the same where building takes
// long; the pod has the states of the other replica. In simulated milliseconds.
func TestStatusesKeepUpWithChurn(t *testing.T) {
	for name, tt := range map[string]struct {
		build       int // takes up to so long
		median, p99 int
	}{
		"a build takes up to 10 ms":  {10, 150, 400},
		"a build takes up to 50 ms":  {50, 150, 400},
		"a build takes up to 200 ms": {200, 300, 1500},
		"a build takes up to 1 s":    {1000, 3000, 15000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(1, uint64(tt.build)))
			const leader, other, envoy = 0, 1, 2
			var (
				tr      tracker
				pod     = &podState{pod: "pod"}
				wanted  uint64 // number of changes so far
				workers [3]struct{ has, next, until int }
				told    int // what of the pod was reported
				pause   int
				since   []int // when each sequence began
				late    []int
			)
			content := func(state int) [numKinds]digest { return [numKinds]digest{routes: {uint64(state)}} }
			for now := range 300_000 {
				if r.IntN(1000) < 20 {
					wanted++
				}
				for i := range workers {
					w := &workers[i]
					newest, most := int(wanted), tt.build
					if i == envoy {
						newest, most = workers[other].has, 60
					}
					switch {
					case w.next != w.has && now >= w.until:
						w.has = w.next
						if i == leader {
							tr.advance(content(w.has))
							since = append(since, now)
						}
					case w.next == w.has && newest != w.has:
						w.next, w.until = newest, now+1+r.IntN(most)
					}
				}
				if has := workers[envoy].has; has != told && now >= pause {
					told, pause = has, now+50
					state := &reportv1.PodState{}
					for k, d := range content(has) {
						state.Types = append(state.Types, &reportv1.TypeState{TypeUrl: kinds[k].url, Acknowledged: d.bytes()})
					}
					tr.report(pod, state)
				}
				for uint64(len(late)) < pod.sequence() {
					late = append(late, now-since[len(late)])
				}
			}
			slices.Sort(late)
			median, p99, most := late[len(late)/2], late[len(late)*99/100], late[len(late)-1]
			t.Logf("%d states of the leader; a status is late by %d ms (median), %d ms (p99), %d ms (most)", len(late), median, p99, most)
			if median > tt.median || p99 > tt.p99 {
				t.Errorf("a status is late by %d ms (median), %d ms (p99): more than %d, %d", median, p99, tt.median, tt.p99)
			}
		})
	}
}
