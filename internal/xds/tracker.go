package xds

import (
	"slices"
	"strings"
)

// maxVectors bounds what is remembered for streams that lag behind. One that
// lags further is reported at an older sequence than it has, never a newer one.
const maxVectors = 1024

// Acks is what a gateway's pods made of its configuration.
type Acks struct {
	// Pods that have answered every type at least once, or refused something,
	// sorted by name.
	Pods []PodAck
	// Starting counts the other connected pods.
	Starting int
}

// PodAck is what one gateway pod has.
type PodAck struct {
	Pod string
	// Sequence is the newest one that the pod has applied; 0: none of this
	// manager's yet.
	Sequence uint64
	// Nack is set while the pod refuses something.
	Nack *Nack
}

// Nack is a refusal. What is refused came with one of the sequences above
// LastGood, up to and with Refused.
type Nack struct {
	// Type URL and Envoy's words.
	Type, Message     string
	LastGood, Refused uint64
}

// tracker turns nonces, versions and answers into Acks of one gateway. Content
// has a version for each type, which only grows; a sequence is one vector of
// them, and a stream has applied it when it has acknowledged at least these
// versions. Plain data: no locks, no clock.
type tracker struct {
	sequence uint64
	vectors  []vector // ascending, without those that all streams passed
	streams  []*ackStream
}

type vector struct {
	sequence uint64
	versions [numKinds]uint64
}

type ackStream struct {
	pod      string
	applied  uint64
	complete bool
	kinds    [numKinds]struct {
		sent     []sentVersion // the last one answered, then those not answered yet
		acked    uint64        // newest version acknowledged
		good     bool          // acknowledged at least once: version 0 is no content at all
		answered bool
		nack     *Nack
		refused  uint64 // version
	}
}

type sentVersion struct {
	nonce   string
	version uint64
}

// advance records new content.
func (t *tracker) advance(versions [numKinds]uint64) {
	t.sequence++
	t.vectors = append(t.vectors, vector{t.sequence, versions})
	t.prune()
}

func (t *tracker) open(pod string) *ackStream {
	s := &ackStream{pod: pod}
	t.streams = append(t.streams, s)
	return s
}

func (t *tracker) close(s *ackStream) {
	t.streams = slices.DeleteFunc(t.streams, func(other *ackStream) bool { return other == s })
	t.prune()
}

func (s *ackStream) sent(k kind, nonce string, version uint64) {
	s.kinds[k].sent = append(s.kinds[k].sent, sentVersion{nonce, version})
}

// answer takes an answer to a nonce; a nil refusal is an acknowledgement. It
// tells whether anything moved.
func (t *tracker) answer(s *ackStream, k kind, nonce string, refusal *string) bool {
	of := &s.kinds[k]
	at := slices.IndexFunc(of.sent, func(sent sentVersion) bool { return sent.nonce == nonce })
	if at < 0 {
		return false
	}
	of.sent = slices.Delete(of.sent, 0, at)
	of.answered = true
	if refusal != nil {
		of.nack = &Nack{Type: kinds[k].url, Message: clip(*refusal)}
		of.refused = of.sent[0].version
	} else {
		of.nack, of.good = nil, true
		of.acked = max(of.acked, of.sent[0].version)
	}
	t.update(s)
	return true
}

// synced tells that a stream was found to have all content of a type, at this
// version, without a response being needed: content may have changed and
// changed back while the stream was busy. It counts only where the stream has
// acknowledged everything that it was sent.
func (t *tracker) synced(s *ackStream, k kind, version uint64) bool {
	of := &s.kinds[k]
	if !of.good || of.nack != nil || len(of.sent) != 1 || of.acked >= version {
		return false
	}
	of.acked = version
	t.update(s)
	return true
}

func (t *tracker) update(s *ackStream) {
	refuses, answered := false, true
	for k := range s.kinds {
		refuses = refuses || s.kinds[k].nack != nil
		answered = answered && s.kinds[k].answered
	}
	s.complete = s.complete || answered || refuses
	for _, v := range slices.Backward(t.vectors) {
		if v.sequence <= s.applied {
			break
		}
		if s.has(v) {
			s.applied = v.sequence
			break
		}
	}
	t.prune()
}

func (s *ackStream) has(v vector) bool {
	for k := range s.kinds {
		if !s.kinds[k].good || s.kinds[k].acked < v.versions[k] {
			return false
		}
	}
	return true
}

// prune drops the vectors that no stream needs any more. The newest stays: a
// new stream is measured by it.
func (t *tracker) prune() {
	passed := t.sequence
	for _, s := range t.streams {
		passed = min(passed, s.applied)
	}
	drop := max(0, len(t.vectors)-maxVectors)
	for drop < len(t.vectors)-1 && t.vectors[drop].sequence <= passed {
		drop++
	}
	t.vectors = slices.Delete(t.vectors, 0, drop)
}

func (t *tracker) acks() Acks {
	newest := map[string]*ackStream{} // a pod that reconnects may have two
	for _, s := range t.streams {
		newest[s.pod] = s
	}
	var acks Acks
	for pod, s := range newest {
		if !s.complete {
			acks.Starting++
			continue
		}
		acks.Pods = append(acks.Pods, PodAck{Pod: pod, Sequence: s.applied, Nack: t.nack(s)})
	}
	slices.SortFunc(acks.Pods, func(a, b PodAck) int { return strings.Compare(a.Pod, b.Pod) })
	return acks
}

// nack is the first refusal in the order of application: what is refused later
// may be its consequence.
func (t *tracker) nack(s *ackStream) *Nack {
	for k := range s.kinds {
		of := &s.kinds[k]
		if of.nack == nil {
			continue
		}
		nack := *of.nack
		nack.LastGood, nack.Refused = s.applied, t.sequence
		for _, v := range t.vectors {
			if v.sequence > s.applied && v.versions[k] >= of.refused {
				nack.Refused = v.sequence
				break
			}
		}
		return &nack
	}
	return nil
}

// clip bounds a message; a character that it cuts is dropped.
func clip(message string) string {
	if len(message) > maxNackMessage {
		message = message[:maxNackMessage]
	}
	return strings.ToValidUTF8(message, "")
}
