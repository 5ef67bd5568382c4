package xds

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"

	"meshroute.io/meshroute/internal/report/reportv1"
)

// relayState decides what Envoy is sent and what the manager is answered. It is
// fed with events and asked by next for what to send: no goroutines, no clock,
// no IO.
//
// Order. A cluster is sent as soon as it is wanted. Routes (those of one
// hostname are one resource) are sent when Envoy has all their clusters and the
// endpoints of these. A cluster is removed when no routes, and no aggregate
// cluster, that Envoy has, or may have, name it. Clusters, endpoints and listeners
// may thus go out at any time; only routes lead requests anywhere, and an
// aggregate cluster is ready for them when its members are. A listener is sent
// when its secrets have come: Envoy asks for these when it has the listener, and
// serves it when it has them. With the first listener an Envoy that starts asks
// for routes, too, and opens it when the first are there: so the first are all of
// them, as far as nothing from the manager is lacking.
//
// Liveness. Each resource has a verdict (see status). It is pending only where
// Envoy owes something that it always gives: an answer to a push, or the
// subscription that follows from what it was given. Whatever lacks something
// from the manager is waiting instead, and a type with nothing pending is
// answered at once: by an ACK, a NACK or a deferral, upon which the manager
// sends what it has. So neither side ever waits for the other's next word.
// While there is no Envoy, all responses are deferred: the manager goes on
// sending, Envoy gets the newest when it comes, and only then is anything
// acknowledged.
//
// Truth. A cluster counts as applied when its endpoints are, a listener when its
// secrets are, routes that nothing asks for yet when no listener is to come.
// Otherwise a response whose resources nothing wants yet would be acknowledged,
// and reported as applied while the resources are still on their way.
type relayState struct {
	kinds  [numKinds]kindState
	envoy  bool
	nonces int
	// healthLog is where Envoy writes what health checks find; empty: nowhere.
	healthLog string
	unknown   int // versions of routes that Envoy has and nobody here knows
	// strange are clusters that Envoy has in a version that nobody here knows, so
	// that their members are not known.
	strange map[*item]struct{}
	// resumed: Envoy came with clusters from an earlier stream. Until it has said
	// which routes it came with, none of them is removed.
	resumed bool
	// carried: Envoy came with resources from an earlier stream. What the file
	// says may be older than those: until the manager has been heard, what Envoy
	// has is neither changed nor removed.
	carried bool
	// saved counts changes of what lastGood returns, told those of progress.
	saved, told uint64
	lastNack    string
}

// kindState is the state of one resource type.
type kindState struct {
	// known: the manager, or the file, has told what is wanted. Before that,
	// what is missing may still come.
	known bool
	// heard: the manager itself has told what is wanted.
	heard bool
	items map[string]*item
	dirty map[*item]struct{} // to be judged
	queue map[*item]struct{} // judged: to be sent to Envoy
	count [numStatuses]int   // of items' verdicts

	// Towards Envoy.
	requested, greeted bool
	settled            bool // all that could be sent was answered, at some time
	flight             *push
	retries            [][]*item // of refused pushes: who among them is it?

	// Towards the manager: its latest response and the answer to it.
	nonce, version string
	answer         *answer
	stale          bool // the answer may be another one by now

	// Towards the manager that leads: the content that is wanted, and what was
	// answered about it last, to whichever manager that was.
	wanted  digest
	acked   *digest
	refusal *reportv1.Refusal
	// withheld are the objects that Envoy does not have as they are wanted in the
	// content acked.
	withheld []*reportv1.Withheld
}

// item is all about one resource. Its name may be known before itself: others
// need it, or Envoy has asked for it.
type item struct {
	name string

	desired *version   // the manager's; nil: not wanted
	target  *version   // to be sent: desired, or the last good one while Envoy refuses that
	good    *version   // last acknowledged by Envoy, on whatever stream
	held    *version   // what Envoy has on its present stream
	maybe   []*version // what Envoy may have, too: sent and not acknowledged

	search *search                  // routes: what can be served of desired, which was refused
	known  map[string]refusedObject // routes: what was found by the last search

	users map[*item]struct{} // items whose target needs this one
	// groups are the aggregate clusters whose target has this cluster as a member.
	groups map[*item]struct{}
	pins   int // versions held, sent or good that need this one
	led    int // those of them that are route configurations

	subscribed bool // named types only
	resend     bool // Envoy wants it again although it has it
	unasked    bool // endpoints of a cluster that was just sent: first without being asked
	leaving    bool // a removal was sent: until an acknowledgement Envoy may have it or not
	told       bool // Envoy was told that it does not exist
	ready      bool // clusters: routes may lead here
	spoiled    bool // secrets: see setSpoiled

	verdict verdict // of this one
	need    verdict // clusters: of those that need this one
}

// version is one version of a resource.
type version struct {
	*discoveryv3.Resource
	refs    []ref    // sorted
	keep    bool     // no content: the one that Envoy has is to stay
	refused string   // Envoy's words
	unknown bool     // Envoy has it; its content is not known here
	checked bool     // clusters: their endpoints are asked whether they are well
	unasked *version // endpoints: the same as that one, but not to be asked yet
	holders int
}

type status int

const (
	applied status = iota // Envoy has it, or does not want it
	partly                // Envoy has it but for the objects that it refuses
	waiting               // something else must come from the manager
	refused               // Envoy refused it or what it needs
	pending               // Envoy owes an answer or a subscription
	numStatuses
)

// verdict tells how far something is and, where it is waiting or refused, why.
type verdict struct {
	status
	why string
}

func (v verdict) worse(other verdict) verdict {
	if other.status > v.status {
		return other
	}
	return v
}

type push struct {
	nonce   string
	alone   bool // of one resource from the start: a refusal means that one
	entries []entry
}

// entry is one resource of a push; a nil version is its removal.
type entry struct {
	it *item
	v  *version
}

type answer struct {
	code    codes.Code // OK: ACK, Unavailable: deferral, else NACK
	message string
}

// output is what is to be sent, in this order.
type output struct {
	toEnvoy   []*discoveryv3.DeltaDiscoveryResponse
	toManager []*discoveryv3.DeltaDiscoveryRequest
}

func newRelayState() *relayState {
	s := &relayState{strange: map[*item]struct{}{}}
	for k := range s.kinds {
		s.kinds[k].items = map[string]*item{}
		s.kinds[k].dirty = map[*item]struct{}{}
		s.kinds[k].queue = map[*item]struct{}{}
	}
	return s
}

// restore starts from what lastGood returned in an earlier life.
func (s *relayState) restore(resources []*discoveryv3.Resource) {
	for _, r := range resources {
		if k, ok := kindOf(r.GetResource().GetTypeUrl()); ok {
			it := s.item(k, r.GetName())
			s.want(k, it, r)
			s.setGood(k, it, it.desired)
		}
	}
	for k := range s.kinds {
		s.kinds[k].known = true
	}
}

// lastGood is the newest set of resources that Envoy acknowledged and that is
// closed: it contains what its members need.
func (s *relayState) lastGood() []*discoveryv3.Resource {
	var good []*discoveryv3.Resource
	for k := range s.kinds {
		for _, it := range s.kinds[k].items {
			if it.good != nil {
				good = append(good, it.good.Resource)
			}
		}
	}
	return good
}

// progress is how far Envoy is. It says what the answers to the manager say, and
// holds when that manager is gone.
func (s *relayState) progress() []*reportv1.TypeState {
	types := make([]*reportv1.TypeState, numKinds)
	for k := range s.kinds {
		types[k] = &reportv1.TypeState{TypeUrl: kinds[k].url, Refusal: s.kinds[k].refusal, Withheld: s.kinds[k].withheld}
		if acked := s.kinds[k].acked; acked != nil {
			types[k].Acknowledged = acked.bytes()
		}
	}
	return types
}

// serving tells whether Envoy has, on its present stream, the routes that there
// are, a listener, and those of its secrets that are there.
func (s *relayState) serving() bool {
	if !s.kinds[routes].settled {
		return false
	}
	for _, it := range s.kinds[listeners].items {
		if it.held == nil || it.held.unknown {
			continue
		}
		if !slices.ContainsFunc(it.held.refs, func(r ref) bool {
			needed := s.find(r)
			return needed == nil || needed.held == nil && needed.target != nil
		}) {
			return true
		}
	}
	return false
}

// ---- Events from the manager.

// upstreamOpened returns the first requests of a stream: everything is wanted,
// except what is here already.
func (s *relayState) upstreamOpened() []*discoveryv3.DeltaDiscoveryRequest {
	var requests []*discoveryv3.DeltaDiscoveryRequest
	for k := range s.kinds {
		have := map[string]string{}
		for name, it := range s.kinds[k].items {
			if it.desired != nil {
				have[name] = it.desired.Version
			}
		}
		requests = append(requests, &discoveryv3.DeltaDiscoveryRequest{
			TypeUrl:                 kinds[k].url,
			ResourceNamesSubscribe:  []string{"*"},
			InitialResourceVersions: have,
		})
	}
	return requests
}

func (s *relayState) upstreamClosed() {
	for k := range s.kinds {
		s.kinds[k].nonce, s.kinds[k].answer = "", nil
	}
}

func (s *relayState) upstreamResponse(resp *discoveryv3.DeltaDiscoveryResponse) {
	k, ok := kindOf(resp.GetTypeUrl())
	if !ok {
		return
	}
	ts := &s.kinds[k]
	for _, r := range resp.GetResources() {
		s.want(k, s.item(k, r.GetName()), r)
	}
	for _, name := range resp.GetRemovedResources() {
		if it := ts.items[name]; it != nil {
			s.want(k, it, nil)
		}
	}
	if !ts.known || !ts.heard {
		ts.known, ts.heard = true, true
		for k := range s.kinds {
			s.markAll(kind(k))
		}
	}
	ts.nonce, ts.version, ts.answer, ts.stale = resp.GetNonce(), resp.GetSystemVersionInfo(), nil, true
}

func (s *relayState) want(k kind, it *item, r *discoveryv3.Resource) {
	ts := &s.kinds[k]
	if it.desired != nil {
		ts.wanted = ts.wanted.minus(digestOf(it.name, it.desired.Version))
	}
	if r != nil {
		ts.wanted = ts.wanted.plus(digestOf(it.name, r.GetVersion()))
	}
	if r == nil {
		it.desired = nil
	} else if v := it.find(r.GetVersion()); v != nil {
		it.desired = v
	} else {
		it.desired = &version{Resource: r, keep: withoutContent(r), checked: k == clusters && hasHealthChecks(r.GetResource().GetValue())}
		if refs := kinds[k].refs; refs != nil {
			// What cannot be read has no references: Envoy will refuse it.
			it.desired.refs, _ = refs(r.GetResource().GetValue())
		}
		if it.held != nil && it.held.unknown && it.held.Version == r.GetVersion() {
			s.hold(k, it.desired) // so that is what it has, beside what is in flight
			s.release(k, it.held)
			it.held = it.desired
			s.noStranger(k, it)
		}
	}
	if k == routes && (it.search == nil || it.search.of != it.desired) {
		s.searchAgain(it)
	}
	s.retarget(k, it)
}

// find returns a version that is known already, with what is known of it.
func (it *item) find(name string) *version {
	for _, v := range append([]*version{it.desired, it.good, it.held}, it.maybe...) {
		if v != nil && !v.unknown && v.Version == name {
			return v
		}
	}
	return nil
}

// ---- Events from Envoy.

func (s *relayState) envoyOpened() {
	s.envoyClosed()
	s.envoy = true
}

func (s *relayState) envoyClosed() {
	s.envoy, s.resumed, s.carried = false, false, false
	for k := range s.kinds {
		ts := &s.kinds[k]
		ts.requested, ts.greeted, ts.settled, ts.flight, ts.retries, ts.stale = false, false, false, nil, nil, true
		for _, it := range ts.items {
			s.setHeld(kind(k), it, nil)
			it.subscribed, it.resend, it.told, it.unasked = false, false, false, false
			s.setSpoiled(kind(k), it, false)
			s.mark(kind(k), it)
		}
	}
}

func (s *relayState) envoyRequest(req *discoveryv3.DeltaDiscoveryRequest) {
	k, ok := kindOf(req.GetTypeUrl())
	if !ok {
		return
	}
	ts := &s.kinds[k]
	// One request can carry both: what it answers came before what it asks.
	if ts.flight != nil && req.GetResponseNonce() == ts.flight.nonce {
		s.answered(k, req.GetErrorDetail())
	}
	if !kinds[k].wildcard {
		for _, name := range req.GetResourceNamesUnsubscribe() {
			it := s.item(k, name)
			s.setHeld(k, it, nil)
			it.subscribed, it.resend, it.told = false, false, false
			s.setSpoiled(k, it, false)
			if ts.flight != nil { // its acknowledgement will say nothing of this one
				ts.flight.entries = slices.DeleteFunc(ts.flight.entries, func(e entry) bool { return e.it == it })
			}
			s.mark(k, it)
		}
		for _, name := range req.GetResourceNamesSubscribe() {
			it := s.item(k, name)
			// Asked for, so sent, unless it says that it has it. It cannot know of
			// a cluster that was sent before this came and wants it again.
			if _, has := req.GetInitialResourceVersions()[name]; !has || ts.requested {
				it.resend = true
				it.unasked = it.unasked || s.checked(it)
			}
			it.subscribed, it.told = true, false
			s.mark(k, it)
		}
	}
	if ts.requested {
		return
	}
	ts.requested = true
	if len(req.GetInitialResourceVersions()) > 0 && !s.carried {
		s.carried = true
		for k := range s.kinds {
			s.markAll(kind(k))
		}
	}
	for name, number := range req.GetInitialResourceVersions() {
		it := s.item(k, name)
		v := it.find(number)
		if v == nil {
			v = &version{Resource: &discoveryv3.Resource{Name: name, Version: number}, unknown: true}
		}
		s.setHeld(k, it, v)
	}
	s.markAll(k)
	switch k {
	case clusters:
		s.resumed = len(req.GetInitialResourceVersions()) > 0
	case routes:
		ts.settled = s.carried // it came with what it serves from
		s.markAll(clusters)
		s.markAll(listeners)
	}
}

// answered takes Envoy's answer to the push in flight.
func (s *relayState) answered(k kind, refusal *rpcstatus.Status) {
	ts := &s.kinds[k]
	entries, alone := ts.flight.entries, ts.flight.alone && len(ts.flight.entries) == 1
	ts.flight = nil
	switch {
	case refusal == nil:
		for _, e := range entries {
			if e.v == nil {
				e.it.told = true
			}
			if e.v != nil || kinds[k].wildcard {
				s.setHeld(k, e.it, e.v)
			}
			if search := e.it.search; search != nil && search.trial == e.v && !search.done() {
				search.taken()
				s.searched(e.it)
				s.retarget(k, e.it)
			}
			s.setSpoiled(k, e.it, false)
			s.mark(k, e.it)
		}
	case alone && entries[0].v == nil: // nothing more can be done about it
		entries[0].it.told = true
		s.setHeld(k, entries[0].it, nil)
		s.mark(k, entries[0].it)
	case alone:
		it, v := entries[0].it, entries[0].v
		if v.unasked != nil {
			s.forget(k, it, v)
			v = v.unasked
			s.hold(k, v)
		}
		v.refused = clip(refusal.GetMessage())
		if k == secrets && strings.Contains(v.refused, "inline_") {
			// Envoy may quote what it refuses, which nobody is to read.
			v.refused = "Envoy's words are withheld, because they quote the secret"
		}
		if v.refused == "" {
			v.refused = "no reason given"
		}
		s.lastNack = fmt.Sprintf("%s %q: %s", kinds[k].noun, it.name, v.refused)
		s.forget(k, it, v)
		// A changed cluster may still be warming: what it gets instead is sent
		// even where Envoy had it before. A secret that Envoy refused is in the
		// way of listeners that name it, until another one takes its place.
		it.resend = (k == endpoints || k == secrets) && it.subscribed
		it.unasked = k == endpoints && it.resend && s.checked(it)
		s.setSpoiled(k, it, k == secrets && it.subscribed)
		if it.good == v {
			s.setGood(k, it, nil)
		}
		switch {
		case k != routes:
		case it.search != nil && it.search.trial == v:
			it.search.refused(v.refused)
			s.searched(it)
		case it.search == nil && it.desired == v:
			it.search = newSearch(v, it.before(), nil)
			s.searched(it)
		}
		s.retarget(k, it)
		s.mark(k, it)
	default:
		// Envoy does not say which (and may have taken some of them), so halve
		// until it does: the neighbours of n refused ones are through after
		// about n·log(all) round trips, and each version was alone at most once.
		var names []*item
		for _, e := range entries {
			names = append(names, e.it)
			e.it.unasked = e.it.unasked || e.v != nil && e.v.unasked != nil
			s.mark(k, e.it)
		}
		ts.retries = append([][]*item{names[:len(names)/2], names[len(names)/2:]}, ts.retries...)
	}
}

// ---- Bookkeeping.

func (s *relayState) item(k kind, name string) *item {
	it := s.kinds[k].items[name]
	if it == nil {
		it = &item{name: name, users: map[*item]struct{}{}, groups: map[*item]struct{}{}}
		s.kinds[k].items[name] = it
	}
	return it
}

// find returns what is known of a resource, or nil.
func (s *relayState) find(r ref) *item { return s.kinds[r.kind].items[r.name] }

func (s *relayState) mark(k kind, it *item) { s.kinds[k].dirty[it] = struct{}{} }

func (s *relayState) markAll(k kind) {
	for _, it := range s.kinds[k].items {
		s.mark(k, it)
	}
}

// before is what Envoy has of an item, or had last.
func (it *item) before() *version {
	if it.held != nil && !it.held.unknown {
		return it.held
	}
	return it.good
}

// searchAgain begins a search where the wanted version has objects as they were
// refused before, so that Envoy need not refuse them again.
func (s *relayState) searchAgain(it *item) {
	known := it.known
	it.search, it.known = nil, nil
	if len(known) == 0 || it.desired == nil || it.desired.refused != "" {
		return
	}
	again := newSearch(it.desired, it.before(), known)
	if again == nil || len(again.bad) == 0 {
		return
	}
	it.search = again
	it.desired.refused = "objects in it were refused before"
	s.searched(it)
}

// searched takes note of the next trial, or of the outcome, of an item's search.
func (s *relayState) searched(it *item) {
	search := it.search
	for search != nil {
		if same := it.find(search.trial.GetVersion()); same != nil {
			search.trial = same
		}
		switch {
		case search.done():
			it.known = search.remember()
			return
		case search.trial == it.held && len(it.maybe) == 0:
			search.taken() // Envoy has it already
		default:
			return
		}
	}
}

// retarget decides which version is to be sent, and who is needed for it.
func (s *relayState) retarget(k kind, it *item) {
	s.mark(k, it)
	to := it.desired
	if to != nil && to.refused != "" && it.search != nil {
		to = it.search.trial
	} else if to != nil && (to.refused != "" || to.keep) {
		to = it.good
		if to != nil && to.refused != "" {
			to = nil
		}
	}
	from := it.target
	if from == to {
		return
	}
	it.target = to
	if kinds[k].users == listeners {
		for l := range it.users {
			s.mark(listeners, l)
		}
	}
	var before, after []ref
	if from != nil {
		before = from.refs
	}
	if to != nil {
		after = to.refs
	}
	for len(before)+len(after) > 0 { // both sorted: only differences are touched
		switch {
		case len(after) == 0 || len(before) > 0 && compareRefs(before[0], after[0]) < 0:
			needed := s.item(before[0].kind, before[0].name)
			delete(needed.neededBy(k, before[0].kind), it)
			s.mark(before[0].kind, needed)
			before = before[1:]
		case len(before) == 0 || compareRefs(after[0], before[0]) < 0:
			needed := s.item(after[0].kind, after[0].name)
			needed.neededBy(k, after[0].kind)[it] = struct{}{}
			s.mark(after[0].kind, needed)
			after = after[1:]
		default:
			before, after = before[1:], after[1:]
		}
	}
}

// neededBy is where an item of kind to notes those of kind k that need it.
func (it *item) neededBy(k, to kind) map[*item]struct{} {
	if k == to {
		return it.groups
	}
	return it.users
}

// noStranger notes that Envoy has no version of it whose members are unknown:
// some that were kept for it may go now.
func (s *relayState) noStranger(k kind, it *item) {
	if _, was := s.strange[it]; k == clusters && was {
		delete(s.strange, it)
		s.markAll(clusters)
	}
}

// strangersUsed tells whether a route leads to a cluster that may have members
// which are not known here.
func (s *relayState) strangersUsed() bool {
	for it := range s.strange {
		if it.led > 0 {
			return true
		}
	}
	return false
}

// setHeld tells that Envoy has this version and no other.
func (s *relayState) setHeld(k kind, it *item, v *version) {
	if k == clusters && v != nil && v.unknown {
		s.strange[it] = struct{}{}
	} else {
		s.noStranger(k, it)
	}
	if v != nil {
		s.hold(k, v)
	}
	if it.held != nil {
		s.release(k, it.held)
	}
	for _, old := range it.maybe {
		s.release(k, old)
	}
	it.held, it.maybe, it.leaving = v, nil, false
	if v == nil {
		it.ready = false
	}
}

// checked tells whether endpoints are those of a cluster that asks them whether
// they are well.
func (s *relayState) checked(it *item) bool {
	for user := range it.users {
		if user.target != nil && user.target.checked {
			return true
		}
	}
	// One that is about to go holds others up, too, and of one that came from an
	// earlier stream it may not be known.
	has := s.find(ref{clusters, it.name})
	return has != nil && has.held != nil && (has.held.checked || has.held.unknown)
}

// forget tells that Envoy does not have a version that it might have had.
func (s *relayState) forget(k kind, it *item, v *version) {
	it.maybe = slices.DeleteFunc(it.maybe, func(other *version) bool { return other == v })
	s.release(k, v)
}

// setSpoiled tells whether Envoy got this secret in a version that it refused,
// and no other since: it refuses listeners, too, that name it. Those that it
// refused may be good afterwards.
func (s *relayState) setSpoiled(k kind, it *item, spoiled bool) {
	if it.spoiled == spoiled {
		return
	}
	it.spoiled = spoiled
	for _, l := range s.kinds[listeners].items {
		if l.desired == nil || !slices.Contains(l.desired.refs, ref{k, it.name}) {
			continue
		}
		if !spoiled && l.desired.refused != "" {
			l.desired.refused = ""
			s.retarget(listeners, l)
		}
		s.mark(listeners, l)
	}
}

func (s *relayState) setGood(k kind, it *item, v *version) {
	if it.good == v {
		return
	}
	if v != nil {
		s.hold(k, v)
	}
	if it.good != nil {
		s.release(k, it.good)
	}
	it.good = v
	s.saved++
}

// hold pins what a version needs, as long as somebody has that version.
func (s *relayState) hold(k kind, v *version) {
	if v.holders++; v.holders > 1 {
		return
	}
	if v.unknown && k == routes {
		s.unknown++
	}
	for _, r := range v.refs {
		needed := s.item(r.kind, r.name)
		if needed.pins++; needed.pins == 1 && needed.desired == nil {
			s.mark(r.kind, needed) // it was perhaps about to go
		}
		if k == routes {
			needed.led++
		}
	}
}

func (s *relayState) release(k kind, v *version) {
	if v.holders--; v.holders > 0 {
		return
	}
	if v.unknown && k == routes {
		if s.unknown--; s.unknown == 0 {
			s.markAll(clusters)
		}
	}
	for _, r := range v.refs {
		needed := s.item(r.kind, r.name)
		if needed.pins--; needed.pins == 0 && needed.desired == nil {
			s.mark(r.kind, needed)
		}
		if k == routes {
			needed.led--
			if _, strange := s.strange[needed]; strange && needed.led == 0 {
				s.markAll(clusters)
			}
		}
	}
}

// ---- Judging.

// settle judges until nothing is left to judge. It ends: the verdict of routes,
// or of a secret, looks at listeners' only until Envoy has asked for it, and a
// listener's at theirs only after Envoy has it.
func (s *relayState) settle() {
	for again := true; again; {
		again = false
		for k := range numKinds {
			for it := range s.kinds[k].dirty {
				again = true
				delete(s.kinds[k].dirty, it)
				s.process(k, it)
			}
		}
	}
}

func (s *relayState) process(k kind, it *item) {
	ts := &s.kinds[k]
	send, v := s.judge(k, it)
	if send {
		ts.queue[it] = struct{}{}
	} else {
		delete(ts.queue, it)
	}
	s.keepGood(k, it)

	changed := it.verdict != v
	if changed {
		ts.count[it.verdict.status]--
		ts.count[v.status]++
		it.verdict = v
		ts.stale = true
	}
	switch k {
	case endpoints:
		for c := range it.users {
			s.mark(clusters, c)
		}
	case clusters:
		if need := s.need(it); need != it.need {
			it.need, changed = need, true
			for r := range it.users {
				s.mark(routes, r)
			}
		}
		if changed {
			for group := range it.groups {
				s.mark(clusters, group)
			}
		}
	case routes, secrets:
		if changed {
			s.markAll(listeners)
		}
	case listeners:
		if changed && it.target != nil {
			for _, r := range it.target.refs {
				s.mark(r.kind, s.item(r.kind, r.name))
			}
		}
		if !s.kinds[routes].requested {
			s.markAll(routes)
		}
	}

	if it.desired == nil && it.good == nil && it.held == nil && len(it.maybe) == 0 &&
		!it.subscribed && len(it.users)+len(it.groups) == 0 && it.pins == 0 && ts.items[it.name] == it {
		delete(ts.items, it.name)
	}
}

// keepGood moves an item's last good version along: never before those that it
// needs have one, so that all of them together stay closed. Only a secret that
// there is none of may be missing: the listener's others serve without it.
func (s *relayState) keepGood(k kind, it *item) {
	switch {
	case it.held != nil && !it.held.unknown && it.held.unasked == nil && it.held != it.good && it.held.refused == "":
		for _, r := range it.held.refs {
			needed := s.find(r)
			absent := r.kind == secrets && needed != nil && needed.desired != nil && needed.target == nil
			if needed == nil || needed.good == nil && !absent {
				return
			}
		}
		s.setGood(k, it, it.held)
		for user := range it.users { // theirs may have waited for this one
			s.mark(kinds[k].users, user)
		}
		for group := range it.groups {
			s.mark(k, group)
		}
	case it.good != nil && it.desired == nil && it.held == nil && len(it.maybe) == 0 && it.pins == 0:
		s.setGood(k, it, nil)
	}
}

// judge tells whether something is to be sent for an item, and how far it is.
func (s *relayState) judge(k kind, it *item) (send bool, v verdict) {
	has := it.held != nil || len(it.maybe) > 0
	if has && s.carried && !s.kinds[k].heard && it.held != it.target {
		return false, verdict{waiting, "what Envoy has may be newer than the file of the last good configuration"}
	}
	if it.desired == nil {
		switch {
		case k == clusters:
			// Removed last of all. Nobody upstream waits for that.
			told := !s.resumed || s.kinds[routes].requested
			if has && it.pins == 0 && s.unknown == 0 && told && !s.strangersUsed() {
				return true, verdict{status: pending}
			}
		case kinds[k].wildcard && has:
			return true, verdict{status: pending}
		case k == endpoints:
			// A cluster of which nobody will send endpoints would warm until
			// Envoy's patience ends (15 s).
			send = it.subscribed && !has && !it.told && s.kinds[clusters].known && len(it.users) == 0
		}
		return send, verdict{}
	}

	asked := it.subscribed
	if kinds[k].wildcard {
		asked = s.kinds[k].requested
	}
	switch {
	case it.target == nil && it.desired.keep:
		return false, verdict{} // there is none to keep
	case it.target == nil:
		return false, verdict{refused, it.desired.refused}
	case asked && it.held == it.target && len(it.maybe) == 0 && !it.resend && !it.leaving:
		switch {
		case it.target == it.desired || it.desired.keep:
			return false, s.below(k, it)
		case it.search != nil:
			return false, verdict{partly, it.search.why()}
		}
		return false, verdict{refused, it.desired.refused}
	case k == listeners && !s.kinds[routes].known:
		// It would wait for them, and after a while open without.
		return false, verdict{waiting, "the routes have not come"}
	case asked:
		v = s.ready(k, it)
		if v.status == applied {
			return true, verdict{status: pending}
		}
		return false, v
	case k == routes:
		if v = s.beforeListeners(); v.status == applied {
			v = s.ready(k, it) // so that nothing is lacking when a listener comes
		}
		return false, v
	case kinds[k].wildcard:
		return false, verdict{status: pending}
	case len(it.users) == 0:
		if kinds[k].users == listeners && !s.kinds[listeners].known {
			return false, verdict{waiting, "the listeners have not come"}
		}
		return false, verdict{} // nobody wants it
	case k == secrets:
		// Envoy will subscribe when it has a listener that needs it.
		for l := range it.users {
			if l.held == l.target {
				return false, verdict{status: pending}
			}
			v = v.worse(l.verdict)
		}
		if v.status == applied { // the listener is not judged yet
			v.status = pending
		}
		return false, v
	}
	return false, verdict{status: pending} // Envoy subscribes with the cluster
}

// beforeListeners is the verdict of routes that Envoy has not asked for: it does
// with its first listener.
func (s *relayState) beforeListeners() (v verdict) {
	if !s.kinds[listeners].known {
		return verdict{waiting, "the listeners have not come"}
	}
	for _, l := range s.kinds[listeners].items {
		switch {
		case l.desired == nil:
		case l.target != nil && l.held == l.target, l.verdict.status == applied: // or not judged yet
			return verdict{status: pending}
		default:
			v = v.worse(l.verdict)
		}
	}
	return v
}

// below is the verdict of what Envoy has: it counts as applied when what it
// needs is.
func (s *relayState) below(k kind, it *item) (v verdict) {
	if k == listeners {
		// With the first one come the routes, which may count as applied already,
		// because nothing wanted them before.
		if ts := &s.kinds[routes]; !ts.requested || !ts.settled && ts.count[pending] > 0 {
			return verdict{status: pending}
		}
	}
	if kinds[k].refs == nil || k == routes {
		return v // routes were sent after their clusters
	}
	for _, r := range it.target.refs {
		needed := s.find(r)
		switch {
		case needed == nil || needed.desired == nil:
			v = v.worse(verdict{waiting, missing(r)})
		case needed.verdict.status != refused: // that is answered there
			v = v.worse(needed.verdict)
		}
	}
	return v
}

// ready is applied where an item can be sent.
func (s *relayState) ready(k kind, it *item) (v verdict) {
	switch k {
	case routes:
		for _, r := range it.target.refs {
			if c := s.item(r.kind, r.name); !c.ready {
				v = v.worse(s.need(c))
			}
		}
	case listeners:
		for _, r := range it.target.refs {
			// Envoy asks for it when it has the listener. Where there is none to
			// give, the listener's others serve all the same.
			switch needed := s.find(r); {
			case needed == nil || needed.desired == nil:
				v = v.worse(verdict{waiting, missing(r)})
			case needed.spoiled && needed.target != nil: // it is on its way
				v = v.worse(verdict{status: pending})
			case needed.spoiled:
				v = v.worse(because(r, cmp.Or(needed.desired.refused, "its last version")))
			}
		}
	}
	return v
}

// need is what a route that names a cluster must think of it. A cluster is
// ready once Envoy has it and its endpoints, or its members, and stays so while
// it is updated: Envoy uses the old one until the new one is warm. One that is to
// go does not become ready any more.
func (s *relayState) need(it *item) verdict {
	if it.held != nil && it.desired != nil && !it.held.unknown && !it.ready && !it.leaving && len(it.maybe) == 0 {
		it.ready = true
		for _, r := range it.held.refs {
			if e := s.find(r); e == nil || e.held == nil || e.held.unasked != nil || e.resend || r.kind == clusters && !e.ready {
				it.ready = false
			}
		}
	}
	switch {
	case it.ready:
		return verdict{}
	case it.desired == nil:
		return verdict{waiting, missing(ref{clusters, it.name})}
	case it.target == nil:
		return because(ref{clusters, it.name}, it.desired.refused)
	case it.held == it.target:
		for _, r := range it.target.refs {
			switch e := s.find(r); {
			case e == nil || e.desired == nil:
				return verdict{waiting, missing(r)}
			case e.target == nil:
				return because(r, e.desired.refused)
			case r.kind == clusters && e.need.status > applied && e.need.status < pending:
				return e.need
			}
		}
	}
	return verdict{status: pending}
}

func missing(r ref) string {
	return fmt.Sprintf("waits for %s %q, which has not come", kinds[r.kind].noun, r.name)
}

func because(r ref, why string) verdict {
	return verdict{refused, fmt.Sprintf("waits for %s %q, which Envoy refused: %s", kinds[r.kind].noun, r.name, why)}
}

// ---- What to send.

// next returns what the events since the last call lead to.
func (s *relayState) next() output {
	var out output
	for k := range numKinds {
		s.settle() // a pushed cluster makes its endpoints due
		if resp := s.push(k); resp != nil {
			out.toEnvoy = append(out.toEnvoy, resp)
		}
	}
	s.settle()
	if ts := &s.kinds[routes]; !ts.settled && ts.greeted && ts.flight == nil && len(ts.queue)+len(ts.retries) == 0 {
		ts.settled = true
		s.markAll(listeners)
		s.settle()
	}
	for k := range numKinds {
		if req := s.reply(k); req != nil {
			out.toManager = append(out.toManager, req)
		}
	}
	return out
}

// push builds the next push of a type, if there is one. One at a time is in
// flight.
func (s *relayState) push(k kind) *discoveryv3.DeltaDiscoveryResponse {
	ts := &s.kinds[k]
	if !ts.requested || ts.flight != nil {
		return nil
	}
	if k == routes && !ts.greeted && ts.count[pending] > len(ts.queue) {
		return nil // Envoy opens its listeners with the first: let them be all
	}
	var due []*item
	for len(due) == 0 && len(ts.retries) > 0 {
		due = slices.DeleteFunc(ts.retries[0], func(it *item) bool { _, queued := ts.queue[it]; return !queued })
		ts.retries = ts.retries[1:]
	}
	if len(due) == 0 {
		for it := range ts.queue {
			due = append(due, it)
		}
	}
	// The first answer may be empty, but it says "that is all": not while there
	// is more to come.
	greet := kinds[k].wildcard && !ts.greeted && ts.known && ts.count[pending]+ts.count[waiting] == 0
	if len(due) == 0 && !greet {
		return nil
	}
	ts.greeted = true
	if k == listeners {
		s.revive(due)
	}
	slices.SortFunc(due, func(a, b *item) int { return strings.Compare(a.name, b.name) })

	s.nonces++
	ts.flight = &push{nonce: strconv.Itoa(s.nonces), alone: len(due) == 1}
	resp := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: kinds[k].url, Nonce: ts.flight.nonce, SystemVersionInfo: ts.version}
	for _, it := range due {
		v := it.target
		if it.desired == nil {
			v = nil
			resp.RemovedResources = append(resp.RemovedResources, it.name)
		} else {
			if it.unasked {
				it.unasked, v = false, unasked(v)
			}
			sent := v.Resource
			if v.checked && s.healthLog != "" {
				sent = withHealthLog(sent, s.healthLog)
			}
			resp.Resources = append(resp.Resources, sent)
			if !slices.Contains(it.maybe, v) {
				s.hold(k, v)
				it.maybe = append(it.maybe, v)
			}
		}
		it.resend = false
		if v == nil && kinds[k].wildcard {
			it.leaving, it.ready = true, false
			s.mark(k, it)
		}
		ts.flight.entries = append(ts.flight.entries, entry{it, v})
		if k == clusters && v != nil {
			// Envoy warms a changed cluster until endpoints come, and does not
			// ask for those that it has asked for before.
			for _, r := range v.refs {
				if r.kind == endpoints {
					e := s.item(r.kind, r.name)
					e.resend, e.unasked = true, v.checked
					s.mark(endpoints, e)
				}
			}
		}
	}
	return resp
}

// revive sends all routes again with a listener, where Envoy has none. It forgot
// them with its last one, and does not ask for them twice (seen with 1.40).
func (s *relayState) revive(due []*item) {
	comes := false
	for _, it := range due {
		comes = comes || it.desired != nil
	}
	for _, it := range s.kinds[listeners].items {
		if it.held != nil || len(it.maybe) > 0 {
			return
		}
	}
	if !comes {
		return
	}
	s.kinds[routes].settled = false
	for _, it := range s.kinds[routes].items {
		if it.held != nil || len(it.maybe) > 0 {
			it.resend = true
			s.mark(routes, it)
		}
	}
}

// reply answers the manager's latest response of a type, once there is an
// answer and whenever it is another one.
func (s *relayState) reply(k kind) *discoveryv3.DeltaDiscoveryRequest {
	ts := &s.kinds[k]
	if ts.nonce == "" || !ts.stale {
		return nil
	}
	ts.stale = false
	var a answer
	switch {
	case !s.envoy:
		a = answer{codes.Unavailable, "no Envoy is connected"}
	case ts.count[pending] > 0:
		return nil
	case ts.count[refused] > 0:
		a = answer{codes.InvalidArgument, s.reasons(k, refused)}
	case ts.count[waiting] > 0:
		a = answer{codes.Unavailable, s.reasons(k, waiting)}
	case ts.count[partly] > 0:
		a = answer{codes.InvalidArgument, s.reasons(k, partly)}
	}
	// A deferral asks for more, once; it does not take back an answer.
	if ts.answer != nil && (a == *ts.answer || a.code == codes.Unavailable) {
		return nil
	}
	ts.answer = &a
	switch {
	case a.code == codes.OK, a.code == codes.InvalidArgument && ts.count[refused] == 0:
		ts.acked, ts.refusal, ts.withheld = new(ts.wanted), nil, s.withheld(k)
		s.told++
	case a.code == codes.InvalidArgument:
		ts.refusal = &reportv1.Refusal{Content: ts.wanted.bytes(), Message: a.message}
		s.told++
	}
	req := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: kinds[k].url, ResponseNonce: ts.nonce}
	if a.code != codes.OK {
		req.ErrorDetail = &rpcstatus.Status{Code: int32(a.code), Message: a.message}
	}
	return req
}

// MaxWithheld is of how many objects is told at most.
const MaxWithheld = 100

// withheld are the objects that Envoy refuses, sorted by name.
func (s *relayState) withheld(k kind) []*reportv1.Withheld {
	if s.kinds[k].count[partly] == 0 {
		return nil
	}
	words := map[string]string{}
	for _, it := range s.kinds[k].items {
		if it.verdict.status == partly {
			maps.Copy(words, it.search.bad)
		}
	}
	var all []*reportv1.Withheld
	for _, object := range slices.Sorted(maps.Keys(words))[:min(len(words), MaxWithheld)] {
		all = append(all, &reportv1.Withheld{Object: object, Message: words[object]})
	}
	return all
}

// reasons names who is refused or waiting, and why.
func (s *relayState) reasons(k kind, of status) string {
	var reasons []string
	for name, it := range s.kinds[k].items {
		if it.verdict.status == of {
			reasons = append(reasons, fmt.Sprintf("%s %q: %s", kinds[k].noun, name, it.verdict.why))
		}
	}
	slices.Sort(reasons)
	return clip(strings.Join(reasons, "; "))
}
