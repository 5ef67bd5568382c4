package xds

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTracker(t *testing.T) {
	no := "no good"
	all := func(tr *tracker, s *ackStream, nonce string, version uint64) {
		for k := range numKinds {
			s.sent(k, nonce, version)
			tr.answer(s, k, nonce, nil)
		}
	}
	for name, tt := range map[string]struct {
		do   func(*tracker)
		want Acks
	}{
		"a pod counts from its first complete acknowledgement on": {
			do: func(tr *tracker) {
				tr.advance([numKinds]uint64{1, 1, 1, 1})
				all(tr, tr.open("b"), "1", 1)
				s := tr.open("a")
				s.sent(clusters, "1", 1)
				tr.answer(s, clusters, "1", nil)
			},
			want: Acks{Pods: []PodAck{{Pod: "b", Sequence: 1}}, Starting: 1},
		},
		"applied when every type is": {
			do: func(tr *tracker) {
				tr.advance([numKinds]uint64{1, 1, 1, 1})
				s := tr.open("a")
				all(tr, s, "1", 1)
				tr.advance([numKinds]uint64{2, 2, 1, 1})
				s.sent(clusters, "2", 2)
				tr.answer(s, clusters, "2", nil)
			},
			want: Acks{Pods: []PodAck{{Pod: "a", Sequence: 1}}},
		},
		"a refusal names the range in which its cause lies": {
			do: func(tr *tracker) {
				tr.advance([numKinds]uint64{1, 1, 1, 1})
				s := tr.open("a")
				all(tr, s, "1", 1)
				for v := uint64(2); v < 6; v++ {
					tr.advance([numKinds]uint64{1, 1, v, 1})
				}
				s.sent(routes, "2", 4)
				tr.answer(s, routes, "2", &no)
			},
			want: Acks{Pods: []PodAck{{Pod: "a", Sequence: 1, Nack: &Nack{Type: kinds[routes].url, Message: no, LastGood: 1, Refused: 4}}}},
		},
		"a later acknowledgement clears a refusal": {
			do: func(tr *tracker) {
				tr.advance([numKinds]uint64{1, 1, 1, 1})
				s := tr.open("a")
				for k := range numKinds {
					s.sent(k, "1", 1)
					tr.answer(s, k, "1", &no)
				}
				for k := range numKinds {
					tr.answer(s, k, "1", nil)
				}
			},
			want: Acks{Pods: []PodAck{{Pod: "a", Sequence: 1}}},
		},
		"of two streams of a pod the newest counts": {
			do: func(tr *tracker) {
				tr.advance([numKinds]uint64{1, 1, 1, 1})
				all(tr, tr.open("a"), "1", 1)
				tr.open("a")
			},
			want: Acks{Starting: 1},
		},
		"content that changed back while a stream was busy is applied": {
			do: func(tr *tracker) {
				tr.advance([numKinds]uint64{1, 1, 1, 1})
				s := tr.open("a")
				all(tr, s, "1", 1)
				tr.advance([numKinds]uint64{1, 1, 2, 1})
				tr.advance([numKinds]uint64{1, 1, 3, 1})
				tr.synced(s, routes, 3)
			},
			want: Acks{Pods: []PodAck{{Pod: "a", Sequence: 3}}},
		},
		"a stream with an unanswered response is not in step": {
			do: func(tr *tracker) {
				tr.advance([numKinds]uint64{1, 1, 1, 1})
				s := tr.open("a")
				all(tr, s, "1", 1)
				tr.advance([numKinds]uint64{1, 1, 2, 1})
				s.sent(routes, "2", 2)
				tr.synced(s, routes, 2)
			},
			want: Acks{Pods: []PodAck{{Pod: "a", Sequence: 1}}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			tr := &tracker{}
			tt.do(tr)
			if diff := cmp.Diff(tt.want, tr.acks()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestTrackerStaysSmall(t *testing.T) {
	tr := &tracker{}
	tr.open("stuck")
	for v := range uint64(5000) {
		tr.advance([numKinds]uint64{v, v, v, v})
	}
	if len(tr.vectors) > maxVectors {
		t.Errorf("%d vectors", len(tr.vectors))
	}
	if got := clip(strings.Repeat("ä", maxNackMessage)); len(got) > maxNackMessage {
		t.Errorf("%d bytes", len(got))
	}
}
