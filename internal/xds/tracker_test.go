package xds

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"meshroute.io/meshroute/internal/report/reportv1"
)

// contents are digests of the four types: the same letter, the same content.
func contents(letters string) (d [numKinds]digest) {
	for k := range d {
		d[k] = digestOf(kinds[k].url, letters[k:k+1])
	}
	return d
}

// having is the report of a pod that has these contents; a dot: none yet.
func having(letters string) *reportv1.PodState {
	state := &reportv1.PodState{}
	for k, d := range contents(letters) {
		of := &reportv1.TypeState{TypeUrl: kinds[k].url}
		if letters[k] != '.' {
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
