package xds

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"meshroute.io/meshroute/internal/report/reportv1"
)

// maxVectors bounds what is remembered for pods that lag behind. One that lags
// further counts as having what it was last known to have.
const maxVectors = 512

// Acks is what a gateway's pods made of its configuration.
type Acks struct {
	// Pods that have content which is known here, or refused something, sorted
	// by name.
	Pods []PodAck
	// Starting counts the other pods that report.
	Starting int
}

// PodAck is what one gateway pod has.
type PodAck struct {
	Pod string
	// Sequence is the newest one whose content the pod has; 0: none that is
	// known here.
	Sequence uint64
	// Held are the objects that Envoy refuses in what the pod has acknowledged, by
	// "namespace/name" of the ServiceRoute, with Envoy's words: they are as they
	// were, or left out. Where there are MaxWithheld of them there may be more.
	Held map[string]string
	// Nack is set while the pod refuses something else.
	Nack *Nack
	// NetworkPolicy is what the pod found out about its network.
	NetworkPolicy reportv1.NetworkPolicy
	// Draining: the pod is about to end and takes no new clients.
	Draining bool
	// Unhealthy are the endpoints that fail the pod's health checks.
	Unhealthy map[Endpoint]bool
}

// Endpoint is one of a cluster, by its address.
type Endpoint struct {
	Cluster string
	netip.AddrPort
}

// MaxUnhealthy bounds how many endpoints a pod tells of.
const MaxUnhealthy = 200

// Nack is a refusal. What is refused came with one of the sequences above
// LastGood, up to and with Refused.
type Nack struct {
	// Type URL and Envoy's words.
	Type, Message     string
	LastGood, Refused uint64
}

// digest stands for the content of one type, in any order: see TypeState in
// report.proto. That of no content is zero.
type digest [2]uint64

func digestOf(name, version string) digest {
	sum := sha256.Sum256([]byte(name + "\x00" + version))
	return digest{binary.BigEndian.Uint64(sum[:]), binary.BigEndian.Uint64(sum[8:])}
}

func (d digest) plus(other digest) digest  { return digest{d[0] + other[0], d[1] + other[1]} }
func (d digest) minus(other digest) digest { return digest{d[0] - other[0], d[1] - other[1]} }

func (d digest) bytes() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, d[0]), d[1])
}

func parseDigest(b []byte) (digest, bool) {
	if len(b) != 16 {
		return digest{}, false
	}
	return digest{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}, true
}

// tracker turns what pods report into Acks of one gateway. A pod may have its
// configuration from another replica of the manager, which counts changes for
// itself and may have taken two of them for one. So pods name content, and the
// tracker knows with which of its own sequences that content was the wanted one.
//
// Content that is not known here is passed over: the other replica is ahead, or
// has seen a state that was none here. The pod then counts as having what it was
// last known to have, until it reports something known. Plain data: no locks, no
// clock.
type tracker struct {
	sequence uint64
	vectors  []vector // ascending
	pods     []*podState
}

// vector is the content of a sequence.
type vector struct {
	sequence uint64
	digests  [numKinds]digest
}

// podState is the newest report of a pod.
type podState struct {
	pod   string
	kinds [numKinds]struct {
		acknowledged bool
		content      digest // if acknowledged
		// at is the newest sequence that had what the pod has; 0: none did.
		at       uint64
		refusal  *reportv1.Refusal
		withheld []*reportv1.Withheld
	}
	networkPolicy reportv1.NetworkPolicy
	draining      bool
	unhealthy     map[Endpoint]bool
}

// advance records new content.
func (t *tracker) advance(digests [numKinds]digest) {
	t.sequence++
	t.vectors = append(t.vectors, vector{t.sequence, digests})
	t.vectors = slices.Delete(t.vectors, 0, max(0, len(t.vectors)-maxVectors))
	for _, pod := range t.pods {
		for k := range pod.kinds {
			if of := &pod.kinds[k]; of.acknowledged && of.content == digests[k] {
				of.at = t.sequence
			}
		}
	}
}

// report takes the newest report of a stream. A pod that reconnects may have
// two: the one that reported first lately is the newer. It returns how many
// refusals are news, by kind.
func (t *tracker) report(pod *podState, state *reportv1.PodState) (refused [numKinds]int) {
	if !slices.Contains(t.pods, pod) {
		t.pods = append(t.pods, pod)
	}
	pod.networkPolicy, pod.draining, pod.unhealthy = state.GetNetworkPolicy(), state.GetDraining(), unhealthy(state)
	for k := range pod.kinds {
		of := &pod.kinds[k]
		refusal, withheld := of.refusal, of.withheld
		of.refusal, of.withheld = nil, nil
		at := slices.IndexFunc(state.GetTypes(), func(s *reportv1.TypeState) bool { return s.GetTypeUrl() == kinds[k].url })
		if at < 0 {
			continue
		}
		of.refusal = state.GetTypes()[at].GetRefusal()
		of.withheld = state.GetTypes()[at].GetWithheld()
		if of.refusal != nil && !bytes.Equal(of.refusal.GetContent(), refusal.GetContent()) {
			refused[k]++
		}
		for _, now := range of.withheld {
			if !slices.ContainsFunc(withheld, func(before *reportv1.Withheld) bool { return before.GetObject() == now.GetObject() }) {
				refused[k]++
			}
		}
		of.content, of.acknowledged = parseDigest(state.GetTypes()[at].GetAcknowledged())
		for _, v := range slices.Backward(t.vectors) {
			if of.acknowledged && v.digests[k] == of.content {
				of.at = v.sequence
				break
			}
		}
	}
	return refused
}

func unhealthy(state *reportv1.PodState) map[Endpoint]bool {
	if len(state.GetUnhealthy()) == 0 {
		return nil
	}
	all := map[Endpoint]bool{}
	for _, endpoint := range state.GetUnhealthy() {
		if address, err := netip.ParseAddrPort(endpoint.GetAddress()); err == nil && len(all) < MaxUnhealthy {
			all[Endpoint{endpoint.GetCluster(), address}] = true
		}
	}
	return all
}

func (t *tracker) close(pod *podState) {
	t.pods = slices.DeleteFunc(t.pods, func(other *podState) bool { return other == pod })
}

func (t *tracker) acks() Acks {
	newest := map[string]*podState{}
	for _, pod := range t.pods {
		newest[pod.pod] = pod
	}
	var acks Acks
	for name, pod := range newest {
		ack := PodAck{Pod: name, Sequence: pod.sequence(), NetworkPolicy: pod.networkPolicy, Draining: pod.draining, Unhealthy: pod.unhealthy}
		ack.Nack = t.nack(pod, ack.Sequence)
		ack.Held = pod.held()
		if ack.Sequence == 0 && ack.Nack == nil {
			acks.Starting++
			continue
		}
		acks.Pods = append(acks.Pods, ack)
	}
	slices.SortFunc(acks.Pods, func(a, b PodAck) int { return strings.Compare(a.Pod, b.Pod) })
	return acks
}

// sequence is the newest one of which the pod has every type: a type that did
// not change since is at the newest sequence with the others.
func (p *podState) sequence() uint64 {
	lowest := p.kinds[0].at
	for k := range p.kinds {
		lowest = min(lowest, p.kinds[k].at)
	}
	return lowest
}

func (p *podState) held() map[string]string {
	var held map[string]string
	for k := range p.kinds {
		for _, withheld := range p.kinds[k].withheld {
			if held == nil {
				held = map[string]string{}
			}
			if len(held) < MaxWithheld {
				held[withheld.GetObject()] = clip(cmp.Or(withheld.GetMessage(), "no reason given"))
			}
		}
	}
	return held
}

// nack is the first refusal in the order of application: what is refused later
// may be its consequence.
func (t *tracker) nack(pod *podState, good uint64) *Nack {
	for k := range pod.kinds {
		refusal := pod.kinds[k].refusal
		if refusal == nil {
			continue
		}
		nack := &Nack{
			Type: kinds[k].url, Message: clip(cmp.Or(refusal.GetMessage(), "no reason given")),
			LastGood: good, Refused: t.sequence,
		}
		content, _ := parseDigest(refusal.GetContent())
		for _, v := range t.vectors {
			if v.sequence > good && v.digests[k] == content {
				nack.Refused = v.sequence
				break
			}
		}
		return nack
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
