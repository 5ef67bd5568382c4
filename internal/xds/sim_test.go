package xds

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	aggregatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/aggregate/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"meshroute.io/meshroute/internal/report/reportv1"
)

// ---- Resources, as small as they can be.

func packed(m proto.Message) *anypb.Any {
	a, err := anypb.New(m)
	if err != nil {
		panic(err)
	}
	return a
}

func body(k kind, name string, refs ...string) proto.Message {
	switch k {
	case clusters:
		if len(refs) > 0 {
			return &clusterv3.Cluster{Name: name, ClusterDiscoveryType: &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{
				Name: "envoy.clusters.aggregate", TypedConfig: packed(&aggregatev3.ClusterConfig{Clusters: refs}),
			}}}
		}
		c := &clusterv3.Cluster{Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}}
		if checksHealth(name) {
			c.HealthChecks = []*corev3.HealthCheck{{}}
		}
		return c
	case endpoints:
		return &endpointv3.ClusterLoadAssignment{ClusterName: name}
	case routes:
		rc := &routev3.RouteConfiguration{Name: name}
		for _, ref := range refs {
			rc.VirtualHosts = append(rc.VirtualHosts, &routev3.VirtualHost{Name: ref, Domains: []string{ref}, Routes: []*routev3.Route{{
				Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
				Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: ref}}},
			}}})
		}
		return &routev3.ScopedRouteConfiguration{Name: name, RouteConfiguration: rc}
	case secrets:
		return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{}}}
	}
	l := &listenerv3.Listener{Name: name}
	for _, ref := range refs {
		l.FilterChains = append(l.FilterChains, &listenerv3.FilterChain{TransportSocket: &corev3.TransportSocket{
			ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: packed(&tlsv3.DownstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{
				TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{{Name: ref}},
			}})},
		}})
	}
	return l
}

// checksHealth tells which clusters do, here.
func checksHealth(cluster string) bool { return strings.HasPrefix(cluster, "h") }

// notAsked tells that endpoints are as a cluster that checks health begins with.
func notAsked(endpoints *discoveryv3.Resource) bool {
	return strings.HasSuffix(endpoints.GetVersion(), unaskedSuffix)
}

func res(k kind, name, version string, refs ...string) *discoveryv3.Resource {
	return &discoveryv3.Resource{Name: name, Version: version, Resource: packed(body(k, name, refs...))}
}

// keep is a secret without content.
func keep(name, version string) *discoveryv3.Resource {
	return &discoveryv3.Resource{Name: name, Version: version, Resource: packed(&tlsv3.Secret{Name: name})}
}

func refsOf(k kind, r *discoveryv3.Resource) []ref {
	if kinds[k].refs == nil {
		return nil
	}
	refs, err := kinds[k].refs(r.GetResource().GetValue())
	if err != nil {
		panic(err)
	}
	return refs
}

// ---- A manager that behaves like go-control-plane's delta server.

type content = [numKinds]map[string]*discoveryv3.Resource

type fakeManager struct {
	content  content
	versions [numKinds]uint64
	tracker  tracker
	pod      *podState
	known    [numKinds]map[string]string
	armed    [numKinds]bool
	first    [numKinds]bool
	nonces   int
	out      []*discoveryv3.DeltaDiscoveryResponse
	answers  [numKinds]*discoveryv3.DeltaDiscoveryRequest
	latest   [numKinds]string
}

func newFakeManager() *fakeManager { return &fakeManager{pod: &podState{pod: "pod"}} }

func (m *fakeManager) set(to content) {
	changed := false
	var digests [numKinds]digest
	for k := range numKinds {
		if !maps.EqualFunc(m.content[k], to[k], func(a, b *discoveryv3.Resource) bool { return a.GetVersion() == b.GetVersion() }) {
			m.versions[k]++
			changed = true
		}
		m.content[k] = to[k]
		for name, r := range to[k] {
			digests[k] = digests[k].plus(digestOf(name, r.GetVersion()))
		}
	}
	if changed {
		m.tracker.advance(digests)
	}
	for k := range numKinds {
		m.respond(k)
	}
}

// applied tells whether the pod has what is wanted here, as far as is known.
func (m *fakeManager) applied() bool {
	acks := m.tracker.acks()
	return len(acks.Pods) == 1 && acks.Pods[0].Nack == nil && acks.Pods[0].Sequence == m.tracker.sequence
}

func (m *fakeManager) connect() {
	m.out = nil
	m.armed, m.answers, m.latest = [numKinds]bool{}, [numKinds]*discoveryv3.DeltaDiscoveryRequest{}, [numKinds]string{}
}

func (m *fakeManager) request(req *discoveryv3.DeltaDiscoveryRequest) {
	k, _ := kindOf(req.GetTypeUrl())
	if req.GetResponseNonce() == "" {
		m.known[k] = maps.Clone(req.GetInitialResourceVersions())
		if m.known[k] == nil {
			m.known[k] = map[string]string{}
		}
		m.first[k] = true
	} else if req.GetResponseNonce() == m.latest[k] {
		m.answers[k] = req
	}
	m.armed[k] = true
	m.respond(k)
}

func (m *fakeManager) respond(k kind) {
	if !m.armed[k] {
		return
	}
	resp := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: kinds[k].url, SystemVersionInfo: strconv.FormatUint(m.versions[k], 10)}
	for name, r := range m.content[k] {
		if m.known[k][name] != r.GetVersion() {
			resp.Resources = append(resp.Resources, r)
			m.known[k][name] = r.GetVersion()
		}
	}
	for name := range m.known[k] {
		if m.content[k][name] == nil {
			resp.RemovedResources = append(resp.RemovedResources, name)
			delete(m.known[k], name)
		}
	}
	if len(resp.GetResources())+len(resp.GetRemovedResources()) == 0 && !m.first[k] {
		return
	}
	m.first[k], m.armed[k] = false, false
	m.nonces++
	resp.Nonce = strconv.Itoa(m.nonces)
	m.latest[k], m.answers[k] = resp.GetNonce(), nil
	m.out = append(m.out, resp)
}

// ---- An Envoy: what it asks for follows from what it has.

type fakeEnvoy struct {
	rand *rand.Rand
	// refuses tells whether it refuses a resource.
	refuses func(*discoveryv3.Resource) bool
	refused func() // called when it did; nil: nothing is
	have    content
	warm    map[string]bool // clusters
	rewarm  map[string]bool // clusters changed, endpoints not come again yet
	late    map[string]bool // of these, those that an earlier stream has left so
	spoiled map[string]bool // secrets whose last version was refused
	subs    [numKinds]map[string]bool
	asked   [numKinds]bool
	in      []*discoveryv3.DeltaDiscoveryResponse
	out     []*discoveryv3.DeltaDiscoveryRequest
	pushed  int
	// routes that requests take. It has them while it has a listener; have keeps
	// what it was sent, also when it has none.
	routes map[string]*discoveryv3.Resource
	watch  bool     // it has, or had not long ago, a listener
	drains bool     // listeners that go keep the routes for long
	told   []string // endpoints that do not exist
	// strangers: the relay may not know what clusters this Envoy has, so it may
	// take members from a group that no route leads to.
	strangers bool
}

func newFakeEnvoy(r *rand.Rand) *fakeEnvoy {
	e := &fakeEnvoy{rand: r, refuses: bad, warm: map[string]bool{}, rewarm: map[string]bool{}, spoiled: map[string]bool{}, routes: map[string]*discoveryv3.Resource{}}
	for k := range numKinds {
		e.have[k], e.subs[k] = map[string]*discoveryv3.Resource{}, map[string]bool{}
	}
	return e
}

// connect sends the first requests of a stream.
func (e *fakeEnvoy) connect() {
	e.in, e.out = nil, nil
	// Nobody can tell that these are not there yet: they ask as they begin, and
	// are late.
	e.late = maps.Clone(e.rewarm)
	for k := range numKinds {
		again := k != routes || e.asked[k]
		e.asked[k] = false
		if kinds[k].wildcard && again || len(e.subs[k]) > 0 {
			e.ask(k, slices.Sorted(maps.Keys(e.subs[k])), nil)
		}
	}
}

func (e *fakeEnvoy) ask(k kind, subscribe, unsubscribe []string) {
	req := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: kinds[k].url, ResourceNamesSubscribe: subscribe, ResourceNamesUnsubscribe: unsubscribe}
	if !e.asked[k] {
		e.asked[k] = true
		req.InitialResourceVersions = map[string]string{}
		for name, r := range e.have[k] {
			req.InitialResourceVersions[name] = r.GetVersion()
		}
	}
	e.out = append(e.out, req)
}

// follow asks for what is needed now and was not asked for.
func (e *fakeEnvoy) follow(parent kind) {
	for k := range numKinds {
		if kinds[k].users == parent && !kinds[k].wildcard {
			e.followTo(parent, k)
		}
	}
}

func (e *fakeEnvoy) followTo(parent, k kind) {
	need := map[string]bool{}
	for _, r := range e.have[parent] {
		for _, to := range refsOf(parent, r) {
			if to.kind == k {
				need[to.name] = true
			}
		}
	}
	var add, drop []string
	for name := range need {
		if !e.subs[k][name] {
			add = append(add, name)
		}
	}
	for name := range e.subs[k] {
		if !need[name] {
			drop = append(drop, name)
			delete(e.have[k], name)
			delete(e.spoiled, name)
		}
	}
	e.subs[k] = need
	if len(add)+len(drop) > 0 {
		e.ask(k, add, drop)
	}
}

// The Server's versions are hashes, which may begin with "bad", too.
func bad(r *discoveryv3.Resource) bool {
	return len(r.GetVersion()) < 64 && strings.HasPrefix(r.GetVersion(), "bad")
}

var trace = func(string, ...any) {}

func (e *fakeEnvoy) receive() error {
	resp := e.in[0]
	trace("envoy gets %s", short(resp))
	e.in = e.in[1:]
	k, _ := kindOf(resp.GetTypeUrl())
	e.pushed += len(resp.GetResources())
	// A secret that was refused is refused again in a listener that names it.
	refuses := func(r *discoveryv3.Resource) bool {
		return e.refuses(r) || k == listeners && slices.ContainsFunc(refsOf(k, r), func(to ref) bool { return to.kind == secrets && e.spoiled[to.name] })
	}
	refuse := slices.ContainsFunc(resp.GetResources(), refuses)
	ack := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
	if refuse {
		if e.refused != nil {
			e.refused()
		}
		ack.ErrorDetail = &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: "no good"}
	}
	for _, r := range resp.GetResources() {
		if k == secrets && e.subs[k][r.GetName()] {
			e.spoiled[r.GetName()] = refuses(r)
		}
		// Envoy takes some of the good ones of a refused response.
		if refuses(r) || refuse && e.rand.IntN(2) == 0 || !kinds[k].wildcard && !e.subs[k][r.GetName()] {
			continue
		}
		switch k {
		case clusters:
			if old := e.have[k][r.GetName()]; len(membersOf(r)) == 0 && (old == nil || old.GetVersion() != r.GetVersion()) {
				e.rewarm[r.GetName()] = true
			}
		case endpoints:
			name := r.GetName()
			if checksHealth(name) && e.have[clusters][name] != nil && (e.rewarm[name] && !e.late[name] || !e.warm[name]) && !notAsked(r) {
				return fmt.Errorf("cluster %s was given endpoints to ask before it was there, and would wait for their answers", name)
			}
			if e.have[clusters][r.GetName()] != nil {
				e.warm[r.GetName()] = true
				delete(e.rewarm, r.GetName())
				delete(e.late, r.GetName())
			}
		case routes:
			for _, cluster := range refsOf(k, r) {
				if !e.isWarm(cluster.name) {
					return fmt.Errorf("route configuration %s came before its cluster %s was ready", r.GetName(), cluster.name)
				}
			}
			if e.watch {
				e.routes[r.GetName()] = r
			}
		case secrets:
			if withoutContent(r) {
				return fmt.Errorf("secret %s came without content", r.GetName())
			}
		}
		e.have[k][r.GetName()] = r
	}
	for _, name := range resp.GetRemovedResources() {
		switch k {
		case clusters:
			for _, r := range e.routes {
				if slices.Contains(refsOf(routes, r), ref{clusters, name}) {
					return fmt.Errorf("cluster %s removed while %s uses it", name, r.GetName())
				}
			}
			for _, c := range e.have[clusters] {
				if slices.Contains(membersOf(c), name) && (!e.strangers || e.routed(c.GetName())) {
					return fmt.Errorf("cluster %s removed while it is a member of %s", name, c.GetName())
				}
			}
			delete(e.warm, name)
			delete(e.rewarm, name)
			delete(e.have[k], name)
		case endpoints:
			e.told = append(e.told, name)
		case routes:
			delete(e.routes, name)
			delete(e.have[k], name)
		default:
			delete(e.have[k], name)
		}
	}
	e.out = append(e.out, ack)
	switch k {
	case clusters:
		e.follow(k)
	case listeners:
		e.watch = len(e.have[k]) > 0 || e.watch && e.drains
		if !e.watch {
			clear(e.routes)
		} else if !e.asked[routes] {
			e.ask(routes, nil, nil)
		}
		if !e.drains {
			e.follow(k)
		}
	}
	return nil
}

// isWarm tells whether requests may go to a cluster: for one that is made of
// others, whether all of them are there.
func (e *fakeEnvoy) isWarm(name string) bool {
	c := e.have[clusters][name]
	if c == nil || len(membersOf(c)) == 0 {
		return e.warm[name]
	}
	return !slices.ContainsFunc(membersOf(c), func(member string) bool { return !e.warm[member] })
}

func (e *fakeEnvoy) routed(cluster string) bool {
	for _, r := range e.have[routes] {
		if slices.Contains(refsOf(routes, r), ref{clusters, cluster}) {
			return true
		}
	}
	return false
}

// membersOf are the clusters that a cluster is made of.
func membersOf(r *discoveryv3.Resource) (names []string) {
	for _, to := range refsOf(clusters, r) {
		if to.kind == clusters {
			names = append(names, to.name)
		}
	}
	return names
}

// ---- All together.

// world has one relay between its Envoy and the managers: it is connected to one
// of them, and reports to the leader.
type world struct {
	manager         *fakeManager // connected
	leader          *fakeManager
	state           *relayState
	envoy           *fakeEnvoy
	up              []*discoveryv3.DeltaDiscoveryRequest // on the way to the manager
	online, envoyUp bool
	told            uint64
	unreported      bool
}

func newWorld(r *rand.Rand, m *fakeManager) *world {
	return &world{manager: m, leader: m, state: newRelayState(), envoy: newFakeEnvoy(r)}
}

func (w *world) step() {
	out := w.state.next()
	if w.envoyUp {
		w.envoy.in = append(w.envoy.in, out.toEnvoy...)
	}
	if w.online {
		w.up = append(w.up, out.toManager...)
	}
	if w.told != w.state.told {
		w.told, w.unreported = w.state.told, true
	}
}

func (w *world) connectManager(m *fakeManager) {
	w.state.upstreamClosed()
	w.manager = m
	w.manager.connect()
	w.online = true
	w.up = w.state.upstreamOpened()
	w.step()
}

func (w *world) connectEnvoy(fresh bool) {
	trace("ENVOY CONNECTS fresh=%v", fresh)
	if fresh {
		last := w.envoy
		w.envoy = newFakeEnvoy(last.rand)
		w.envoy.pushed, w.envoy.strangers = last.pushed, last.strangers
		w.envoy.refuses, w.envoy.refused = last.refuses, last.refused
	}
	w.envoyUp = true
	w.state.envoyOpened()
	w.envoy.connect()
	w.step()
}

// restartAgent begins anew with what the file has, if anything.
func (w *world) restartAgent(restore bool) {
	good := w.state.lastGood()
	w.state, w.told, w.unreported = newRelayState(), 0, false
	if restore {
		w.state.restore(good)
	}
	w.leader.tracker.close(w.leader.pod)
	w.leader.pod = &podState{pod: "pod"}
}

// deliver moves one message, chosen by chance; false: there is none.
func (w *world) deliver(r *rand.Rand) (bool, error) {
	var moves []func() error
	if len(w.up) > 0 && w.online {
		moves = append(moves, func() error { req := w.up[0]; w.up = w.up[1:]; w.manager.request(req); return nil })
	}
	if len(w.manager.out) > 0 && w.online {
		moves = append(moves, func() error {
			resp := w.manager.out[0]
			w.manager.out = w.manager.out[1:]
			trace("relay gets %s", short(resp))
			w.state.upstreamResponse(resp)
			w.step()
			return nil
		})
	}
	if w.envoyUp && len(w.envoy.in) > 0 {
		moves = append(moves, w.envoy.receive)
	}
	if w.envoyUp && len(w.envoy.out) > 0 {
		moves = append(moves, func() error {
			req := w.envoy.out[0]
			w.envoy.out = w.envoy.out[1:]
			trace("envoy says %v", req)
			w.state.envoyRequest(req)
			w.step()
			return nil
		})
	}
	if w.unreported {
		moves = append(moves, func() error {
			w.unreported = false
			w.leader.tracker.report(w.leader.pod, &reportv1.PodState{Types: w.state.progress()})
			return nil
		})
	}
	if len(moves) == 0 {
		return false, nil
	}
	return true, moves[r.IntN(len(moves))]()
}

func randomContent(r *rand.Rand, withBad bool) content {
	version := func() string {
		if withBad && r.IntN(8) == 0 {
			return "bad" + strconv.Itoa(r.IntN(3))
		}
		return strconv.Itoa(r.IntN(3))
	}
	var c content
	for k := range c {
		c[k] = map[string]*discoveryv3.Resource{}
	}
	var names []string
	for i := range 6 {
		if r.IntN(2) == 0 {
			name := string("ch"[i%2]) + strconv.Itoa(i)
			names = append(names, name)
			c[clusters][name] = res(clusters, name, version())
			c[endpoints][name] = res(endpoints, name, version())
		}
	}
	if len(names) > 1 {
		for range r.IntN(3) {
			members := slices.Clone(names)
			r.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
			members = members[:1+r.IntN(len(members))]
			name := "g-" + strings.Join(members, "-") // other members, another name
			c[clusters][name] = res(clusters, name, version(), members...)
		}
		names = slices.Sorted(maps.Keys(c[clusters]))
	}
	for i := range 3 {
		if r.IntN(4) > 0 {
			name := "r" + strconv.Itoa(i)
			refs := slices.DeleteFunc(slices.Clone(names), func(string) bool { return r.IntN(2) == 0 })
			c[routes][name] = res(routes, name, version()+strings.Join(refs, ","), refs...)
		}
		if r.IntN(4) > 0 {
			continue
		}
		var needs []string
		for j := range 2 {
			if secret := "s" + strconv.Itoa(r.IntN(3)); r.IntN(3+j) == 0 {
				needs = append(needs, secret)
				c[secrets][secret] = res(secrets, secret, version())
				if withBad && r.IntN(4) == 0 {
					c[secrets][secret] = keep(secret, "keep")
				}
			}
		}
		l := "l" + strconv.Itoa(i)
		c[listeners][l] = res(listeners, l, version()+strings.Join(needs, ","), needs...)
	}
	return c
}

func versionsOf(c content) (v [numKinds]map[string]string) {
	for k := range c {
		v[k] = map[string]string{}
		for name, r := range c[k] {
			v[k][name] = r.GetVersion()
		}
	}
	return v
}

// lacking tells what a set of resources lacks to be closed. A secret may be
// missing: there may be none, or one that Envoy refuses.
func lacking(good []*discoveryv3.Resource) string {
	have := map[string]bool{}
	for _, r := range good {
		have[r.GetResource().GetTypeUrl()+r.GetName()] = true
	}
	for _, r := range good {
		k, _ := kindOf(r.GetResource().GetTypeUrl())
		for _, to := range refsOf(k, r) {
			if to.kind != secrets && !have[kinds[to.kind].url+to.name] {
				return fmt.Sprintf("%s without its %s %s", r.GetName(), kinds[to.kind].noun, to.name)
			}
		}
	}
	return ""
}

func TestSimulation(t *testing.T) {
	for seed := range uint64(600) {
		if err := simulate(seed); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// simulate has two managers that see the same changes, each in steps of its own.
func simulate(seed uint64) error {
	r := rand.New(rand.NewPCG(seed, 1))
	restarts, withBad := seed%2 == 0, seed%3 == 0
	// Where content returns, what was reported of it earlier may be taken for
	// news; hence truth is checked where it does not.
	unique := seed%5 > 0
	generation := 0
	fresh := func(withBad bool) content {
		c := randomContent(r, withBad)
		if unique {
			generation++
			for k := range c {
				for _, resource := range c[k] {
					resource.Version += fmt.Sprintf("#%d", generation)
				}
			}
		}
		return c
	}
	managers := []*fakeManager{newFakeManager(), newFakeManager()}
	w := newWorld(r, managers[0])
	w.envoy.strangers = restarts
	newest := fresh(withBad)
	for _, m := range managers {
		m.set(newest)
	}
	w.connectManager(managers[r.IntN(2)])
	w.connectEnvoy(true)
	for range 400 {
		switch n := r.IntN(50); {
		case n == 0:
			newest = fresh(withBad)
			fallthrough
		case n < 4:
			managers[r.IntN(2)].set(newest)
		case n == 4 && restarts:
			w.connectManager(managers[r.IntN(2)])
		case n == 5 && restarts:
			w.envoyUp = false
			w.state.envoyClosed()
			w.step()
		case n == 6 && restarts && !w.envoyUp:
			w.connectEnvoy(r.IntN(2) == 0)
		case n == 7 && restarts:
			w.restartAgent(r.IntN(4) > 0)
			w.connectManager(managers[r.IntN(2)])
			w.connectEnvoy(r.IntN(2) == 0)
		default:
			if _, err := w.deliver(r); err != nil {
				return err
			}
		}
		if why := lacking(w.state.lastGood()); why != "" {
			return fmt.Errorf("last good is not closed: %s", why)
		}
		// (The pod may have gone on since, to what only the other manager knows.)
		if !restarts && unique && w.leader.applied() && sameContent(w.manager.content, w.leader.content) {
			if err := holdsAll(w); err != nil {
				return fmt.Errorf("reported as applied: %w", err)
			}
		}
	}

	// In the end everything settles, with an answer to every response.
	for _, m := range managers {
		m.set(newest)
	}
	if !w.envoyUp {
		w.connectEnvoy(true)
	}
	if err := drain(w, r); err != nil {
		return err
	}
	for k := range numKinds {
		if w.manager.answers[k] == nil {
			return fmt.Errorf("%s: response %s was never answered", kinds[k].noun, w.manager.latest[k])
		}
	}
	// And whatever was refused on the way, good content gets through.
	newest = fresh(false)
	for _, m := range managers {
		m.set(newest)
	}
	if err := drain(w, r); err != nil {
		return err
	}
	if err := holdsAll(w); err != nil {
		return fmt.Errorf("in the end: %w", err)
	}
	want, got := versionsOf(w.manager.content), versionsOf(w.envoy.have)
	for _, k := range []kind{clusters, listeners} {
		if k == clusters && !w.envoy.asked[routes] {
			continue // it has not said which routes it came with
		}
		if !maps.Equal(want[k], got[k]) {
			return fmt.Errorf("in the end Envoy has %v, wanted %v", got[k], want[k])
		}
	}
	for name := range w.envoy.rewarm {
		if _, wanted := want[clusters][name]; wanted {
			return fmt.Errorf("in the end cluster %s is still warming", name)
		}
	}
	if !w.leader.applied() {
		return fmt.Errorf("in the end sequence %d is not applied: %+v %v", w.leader.tracker.sequence, w.leader.tracker.acks(), w.manager.answers)
	}
	return nil
}

func sameContent(a, b content) bool {
	va, vb := versionsOf(a), versionsOf(b)
	for k := range va {
		if !maps.Equal(va[k], vb[k]) {
			return false
		}
	}
	return true
}

func drain(w *world, r *rand.Rand) error {
	for range 100000 {
		if more, err := w.deliver(r); !more || err != nil {
			return err
		}
	}
	return fmt.Errorf("messages go back and forth for ever")
}

// holdsAll: Envoy has all that is wanted, of endpoints what it asked for, and
// routes where it has a listener.
func holdsAll(w *world) error {
	want, got := versionsOf(w.manager.content), versionsOf(w.envoy.have)
	got[routes] = versionsOf(content{routes: w.envoy.routes})[routes]
	if len(want[listeners]) == 0 {
		want[routes] = nil
	}
	for k := range numKinds {
		for name, v := range want[k] {
			if got[k][name] != v && !withoutContent(w.manager.content[k][name]) {
				return fmt.Errorf("Envoy has %s %q at %q, wanted %q", kinds[k].noun, name, got[k][name], v)
			}
		}
	}
	return nil
}

func short(resp *discoveryv3.DeltaDiscoveryResponse) string {
	k, _ := kindOf(resp.GetTypeUrl())
	out := kinds[k].noun + " #" + resp.GetNonce()
	for _, r := range resp.GetResources() {
		out += fmt.Sprintf(" %s@%s%v", r.GetName(), r.GetVersion(), refsOf(k, r))
	}
	return out + fmt.Sprintf(" -%v", resp.GetRemovedResources())
}
