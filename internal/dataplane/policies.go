package dataplane

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"meshroute.io/meshroute/internal/envoy"
	"meshroute.io/meshroute/internal/model"
	"meshroute.io/meshroute/internal/xds"
)

// Network policies stand between a gateway and its backends, and take effect on
// the nodes in a time of their own. So that no request meets one that is not
// there yet, or not any more:
//
//   - A policy is wanted for whatever Envoy may send requests to, as soon as a
//     route leads there, and also for endpoints that are not ready yet.
//   - An endpoint is told of when the policy that lets it be reached was seen in
//     the cluster. When that is in force on its node, each gateway pod finds out
//     for itself, before its Envoy is given the endpoint (RelayOptions.Reach).
//     What Envoy has already is never taken away for the lack of a policy.
//   - A route to a cluster that would have no endpoint for this reason waits: an
//     earlier version of it serves on, a new one is left out.
//   - What a policy allows that is wanted no more is taken away when every pod
//     has acknowledged a configuration without it, and requests had time to end.
//
// Every replica of the manager gates what it serves in this way, by what it sees
// in the cluster; one of them writes the policies (NetworkPolicies).

const (
	// settle is how long after policies were seen a gateway may be restricted to
	// them: by then nodes enforce them.
	settle = 250 * time.Millisecond
	// grace is how long what was allowed stays so after Envoy stopped using it,
	// for requests under way, and most is when it ends at the latest, whatever
	// the pods say.
	grace = 2 * time.Second
	most  = 30 * time.Second
	// askAgain is how often is looked whether pods have acknowledged.
	askAgain = time.Second
)

// PolicyNames tell how network policies are called, and which pods are a
// gateway's.
type PolicyNames struct {
	// Gateway is the policy that restricts a gateway's pods, Egress the one that
	// lets them reach a Service, Isolation the one that lets only gateways reach
	// a Service's pods.
	Gateway   func(gateway model.Gateway) model.Key
	Egress    func(gateway model.Gateway, service model.Key) model.Key
	Isolation func(service model.Key) model.Key
	Pods      func(gateway model.Gateway) model.Peer
}

// observedPolicy is a policy in the cluster.
type observedPolicy struct {
	model.Policy
	// seen tells since when each rule is there; sorted. A rule that is about to be
	// removed is not in it any more.
	seen []seenRule
}

type seenRule struct {
	model.PolicyRule
	since time.Time
}

func (p observedPolicy) find(rule model.PolicyRule) (at int, there bool) {
	return slices.BinarySearchFunc(p.seen, rule, func(seen seenRule, rule model.PolicyRule) int {
		return model.ComparePolicyRules(seen.PolicyRule, rule)
	})
}

// reach is how a gateway gets to a cluster.
type reach struct {
	gateway *gateway
	cluster model.Cluster
	service model.BackendService
	// egress and isolation are the policies in between.
	egress, isolation model.Key

	endpoints *clusterEndpoints // that the following was made from
	needs     []model.PolicyRule
	// given are the endpoints that Envoy gets, each with the rule that lets it be
	// reached, and used these rules, each once.
	given    []givenEndpoint // sorted
	used     []model.PolicyRule
	resource proto.Message
	// withheld are rules that are not there yet for endpoints that Envoy does
	// not get therefore.
	withheld []model.PolicyRule
	open     bool // of a cluster with a host name: requests may be sent
}

type givenEndpoint struct {
	model.Endpoint
	rule model.PolicyRule
}

// pending tells that requests would find no endpoint, only because no policy
// lets any be reached yet.
func (r *reach) pending() bool {
	return len(r.withheld) > 0 && len(r.given) == 0 && !r.open
}

// waiting tells of a gateway's routes, where their requests wait for policies,
// what they wait for.
func (d *Dataplane) waiting(gw *gateway) map[model.Key]string {
	if len(gw.blocked) == 0 {
		return nil
	}
	waiting := map[model.Key]string{}
	for _, route := range d.result.Routes {
		if !route.AttachedTo(gw.model.Key) {
			continue
		}
		for _, backend := range route.Backends {
			if backend.Cluster == nil || backend.Idle {
				continue
			}
			if r := gw.reach[backend.Cluster.Name]; r != nil && len(r.withheld) > 0 {
				waiting[route.Key] = d.sentence(gw, r, route.Key)
				break
			}
		}
	}
	return waiting
}

func (d *Dataplane) sentence(gw *gateway, r *reach, route model.Key) string {
	policy := r.isolation
	if d.restricted(gw) && !d.policies[r.egress].has(r.withheld[0]) {
		policy = r.egress
	}
	meanwhile := "requests go to those of its endpoints that they went to before"
	if gw.held[route] {
		meanwhile = "the route is left out"
		if gw.released[route] != nil {
			meanwhile = "the route's previous version serves"
		}
	}
	because := ""
	if refused := d.refusals[policy]; refused != "" {
		because = ": " + refused
	}
	return fmt.Sprintf("NetworkPolicy %s does not let the pods of Gateway %s through to Service %s yet; until it does, %s%s",
		policy, gw.model.Key, r.service.Key, meanwhile, because)
}

// SetPolicy takes note of a network policy that is in the cluster since now, or
// of its absence (nil). It tells whether that is news.
func (d *Dataplane) SetPolicy(key model.Key, policy *model.Policy, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	before, known := d.policies[key]
	d.stale[key] = struct{}{}
	if policy == nil {
		delete(d.policies, key)
		return known
	}
	seen := make([]seenRule, 0, len(policy.Rules))
	for _, rule := range policy.Rules {
		since := now
		if at, was := before.find(rule); was {
			since = before.seen[at].since
		}
		seen = append(seen, seenRule{rule, since})
	}
	d.policies[key] = observedPolicy{Policy: *policy, seen: seen}
	return !known || !before.Equal(*policy)
}

// PolicyRefused takes note of why the API server does not take a policy, for the
// statuses of routes that wait for it; empty: it does. It tells whether that is
// news.
func (d *Dataplane) PolicyRefused(key model.Key, message string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	before := d.refusals[key]
	if delete(d.refusals, key); message != "" {
		d.refusals[key] = message
	}
	return before != message
}

// restricted tells whether a gateway's pods reach only what policies allow.
func (d *Dataplane) restricted(gw *gateway) bool {
	if d.names == nil {
		return false
	}
	if gw.model.Infrastructure == nil {
		// Not known at the moment: what is there stays.
		_, there := d.policies[d.names.Gateway(gw.model)]
		return there
	}
	return gw.model.Infrastructure.NetworkPolicy.Restricted
}

// has tells whether a rule is there.
func (p observedPolicy) has(rule model.PolicyRule) bool {
	_, there := p.find(rule)
	return there
}

// settled tells whether a rule is there for so long that nodes enforce it.
func (p observedPolicy) settled(rule model.PolicyRule, now time.Time) bool {
	at, there := p.find(rule)
	return there && now.Sub(p.seen[at].since) >= settle
}

// blocked tells whether a policy is missing for a gateway to get through to where
// a rule leads.
func (d *Dataplane) blocked(gw *gateway, restricted bool, r *reach, rule model.PolicyRule) bool {
	if restricted && !d.policies[r.egress].has(rule) {
		return true
	}
	isolation, isolated := d.policies[r.isolation]
	return isolated && !isolation.has(model.PolicyRule{Peer: gw.peer, Port: rule.Port})
}

// setReach brings up to date how a gateway gets to a cluster. everything lets it
// have all endpoints, be they allowed or not.
func (d *Dataplane) setReach(gw *gateway, cluster model.Cluster, service model.BackendService, everything bool) {
	r := gw.reach[cluster.Name]
	if r == nil {
		r = &reach{gateway: gw, cluster: cluster}
		if d.names != nil {
			r.egress, r.isolation = d.names.Egress(gw.model, service.Key), d.names.Isolation(service.Key)
			d.through[r.egress] = append(d.through[r.egress], r)
			d.through[r.isolation] = append(d.through[r.isolation], r)
		}
		gw.reach[cluster.Name] = r
	}
	defer func() {
		if delete(gw.blocked, cluster.Name); len(r.withheld) > 0 {
			gw.blocked[cluster.Name] = r
		}
	}()
	endpoints := d.endpoints[cluster.Name]
	same := r.cluster == cluster && r.service.Selector == service.Selector && r.endpoints == endpoints
	if !same || r.service != service || len(r.withheld) > 0 {
		d.stale[r.egress], d.stale[r.isolation] = struct{}{}, struct{}{}
	}
	r.cluster, r.service, r.endpoints = cluster, service, endpoints
	if same && len(r.withheld) == 0 && (r.resource != nil || r.open) {
		return
	}
	r.withheld = nil
	restricted := d.restricted(gw)
	blocked := func(rule model.PolicyRule) bool {
		if everything || !d.blocked(gw, restricted, r, rule) {
			return false
		}
		r.withheld = append(r.withheld, rule)
		return true
	}
	if cluster.DNSName != "" {
		r.needs = service.Needs(cluster, model.EndpointSet{})
		r.used = r.needs
		for _, rule := range r.needs {
			blocked(rule)
		}
		r.open = r.open || len(r.withheld) == 0
		return
	}
	r.needs = service.Needs(cluster, endpoints.set)
	given := make([]givenEndpoint, 0, len(endpoints.set.Serving))
	had := r.given
	for _, endpoint := range endpoints.set.Serving {
		for len(had) > 0 && model.CompareEndpoints(had[0].Endpoint, endpoint) < 0 {
			had = had[1:]
		}
		if len(had) > 0 && had[0].Endpoint == endpoint {
			given = append(given, had[0])
		} else if rule := service.Reaches(endpoint); !blocked(rule) {
			given = append(given, givenEndpoint{endpoint, rule})
		}
	}
	r.withheld = model.NewPolicyRules(r.withheld)
	if len(given) == 0 && len(r.withheld) > 0 && len(r.given) > 0 {
		// All that there was has gone, and what came instead is not allowed yet:
		// the old may still answer, the new certainly does not.
		return
	}
	used := make([]model.PolicyRule, 0, 1)
	serving := make([]model.Endpoint, 0, len(given))
	for _, endpoint := range given {
		serving = append(serving, endpoint.Endpoint)
		if !slices.Contains(used[max(0, len(used)-1):], endpoint.rule) { // mostly the same
			used = append(used, endpoint.rule)
		}
	}
	r.given, r.used = given, model.NewPolicyRules(used)
	r.resource = endpoints.resource
	if len(r.withheld) > 0 {
		r.resource = envoy.Endpoints(cluster, serving)
	}
}

// Waiting tells whether an endpoint or a route waits that need not wait any more.
func (d *Dataplane) Waiting() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, gw := range d.gateways {
		restricted := d.restricted(gw)
		for _, r := range gw.blocked {
			if slices.ContainsFunc(r.withheld, func(rule model.PolicyRule) bool { return !d.blocked(gw, restricted, r, rule) }) {
				return true
			}
		}
	}
	return false
}

// PoliciesInForce tells whether the policies that let a gateway reach its
// backends are all there and settled, so that it may be restricted to them.
func (d *Dataplane) PoliciesInForce(key model.Key, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	gw := d.gateways[key]
	return gw == nil || d.inForce(gw, now)
}

// AllPoliciesInForce tells the same of all gateways that are to be restricted.
func (d *Dataplane) AllPoliciesInForce(now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, gw := range d.gateways {
		if d.restricted(gw) && !d.inForce(gw, now) {
			return false
		}
	}
	return true
}

func (d *Dataplane) inForce(gw *gateway, now time.Time) bool {
	for _, r := range gw.reach {
		for _, rule := range r.needs {
			if !d.policies[r.egress].settled(rule, now) {
				return false
			}
		}
	}
	return true
}

// PolicyObject is a network policy as it should be.
type PolicyObject struct {
	model.Key
	model.Policy
	// Gateway whose pods it lets out; nil where it lets gateways in.
	Gateway *model.Gateway
}

// PolicyChanges are what has to be done about the network policies of backends,
// in any order. Delete also names those that restrict a gateway which is not to
// be restricted any more.
type PolicyChanges struct {
	Apply  []PolicyObject
	Delete []model.Key
}

// ruleOf names a rule of a policy.
type ruleOf struct {
	policy model.Key
	rule   model.PolicyRule
}

// lingering is a rule that is wanted no more.
type lingering struct {
	// sequence of the configuration without it, and since when it is unwanted.
	sequence uint64
	since    time.Time
	// acknowledged is when all pods had that configuration.
	acknowledged time.Time
}

// guarded is what all policies of a gateway depend on.
type guarded struct {
	restricted, known, present bool
	peer                       model.Peer
}

func (d *Dataplane) guarded(gw *gateway) guarded {
	_, present := d.policies[d.names.Gateway(gw.model)]
	return guarded{d.restricted(gw), gw.model.Infrastructure != nil, present, gw.peer}
}

// leaveThrough forgets the way to a cluster.
func (d *Dataplane) leaveThrough(r *reach) {
	if d.names == nil {
		return
	}
	for _, key := range []model.Key{r.egress, r.isolation} {
		d.stale[key] = struct{}{}
		d.through[key] = slices.DeleteFunc(d.through[key], func(other *reach) bool { return other == r })
		if len(d.through[key]) == 0 {
			delete(d.through, key)
		}
	}
}

// NetworkPolicies returns what has to be changed about the policies in the
// cluster. It is for the one replica that writes. Where something is still to be
// removed later, recheck is when to ask again; otherwise 0. It looks at those
// policies only of which something is not as it was.
func (d *Dataplane) NetworkPolicies(now time.Time) (changes PolicyChanges, recheck time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.names == nil || !d.built {
		return changes, 0
	}
	w := &policyWriter{
		d: d, now: now,
		gateways: map[model.Peer]*gateway{}, own: map[model.Key]*gateway{}, lingering: map[ruleOf]lingering{},
	}
	for _, gw := range d.gateways {
		w.gateways[gw.peer], w.own[d.names.Gateway(gw.model)] = gw, gw
		if now := d.guarded(gw); gw.guarded != now {
			gw.guarded, d.anyStale = now, true
		}
	}
	for of := range d.lingering {
		d.stale[of.policy] = struct{}{}
	}
	if d.anyStale {
		for key := range d.policies {
			d.stale[key] = struct{}{}
		}
		for key := range d.through {
			d.stale[key] = struct{}{}
		}
		d.anyStale = false
	}
	for key := range d.stale {
		if !w.look(key) {
			delete(d.stale, key)
		}
	}
	d.lingering = w.lingering
	slices.SortFunc(w.changes.Apply, func(a, b PolicyObject) int { return strings.Compare(a.Key.String(), b.Key.String()) })
	slices.SortFunc(w.changes.Delete, func(a, b model.Key) int { return strings.Compare(a.String(), b.String()) })
	return w.changes, w.recheck
}

// policyWriter goes over policies once.
type policyWriter struct {
	d   *Dataplane
	now time.Time
	// gateways by their pods, and by the policy that restricts them.
	gateways  map[model.Peer]*gateway
	own       map[model.Key]*gateway
	lingering map[ruleOf]lingering
	changes   PolicyChanges
	recheck   time.Duration
}

// look finds out what is to be done about one policy. It tells whether anything is.
func (w *policyWriter) look(key model.Key) (something bool) {
	before := len(w.changes.Apply) + len(w.changes.Delete)
	through := w.d.through[key]
	there, exists := w.d.policies[key]
	switch {
	case w.own[key] != nil && w.d.restricted(w.own[key]):
		// Written where the gateway's other objects are.
	case len(through) > 0 && through[0].egress == key && w.egress(key, through):
	case len(through) > 0 && through[0].isolation == key:
		w.isolation(key, through)
	case exists:
		// It is for nobody any more, or will soon be.
		w.write(key, there.Pods, there.Egress, nil)
	}
	return len(w.changes.Apply)+len(w.changes.Delete) > before
}

// egress is a policy by which a gateway reaches a backend. It tells whether anybody
// wants it.
func (w *policyWriter) egress(key model.Key, through []*reach) (wanted bool) {
	gw := through[0].gateway
	if !w.d.restricted(gw) {
		return false
	}
	needed := through[0].needs
	if len(through) > 1 {
		needed = nil
		for _, r := range through {
			needed = append(needed, r.needs...)
		}
		needed = model.NewPolicyRules(needed)
	}
	// While a Service has no endpoints there may be nothing to allow.
	w.write(key, gw.peer.Pods, true, needed)
	return true
}

// isolation is a policy that lets only gateways reach a Service's pods. If any
// gateway asks for that, all that route to the Service are let in.
func (w *policyWriter) isolation(key model.Key, through []*reach) {
	_, there := w.d.policies[key]
	isolated := slices.ContainsFunc(through, func(r *reach) bool {
		// What is not known at the moment stays.
		return r.service.Isolated || there && r.gateway.model.Infrastructure == nil
	})
	var pods string
	var rules []model.PolicyRule
	for _, r := range through {
		if !isolated || r.service.Selector == "" {
			continue
		}
		pods = r.service.Selector
		for _, of := range [][]model.PolicyRule{r.needs, r.used} {
			for _, rule := range of {
				rules = append(rules, model.PolicyRule{Peer: r.gateway.peer, Port: rule.Port})
			}
		}
	}
	switch {
	case pods != "":
		w.write(key, pods, false, model.NewPolicyRules(rules))
	case there:
		w.changes.Delete = append(w.changes.Delete, key) // who asked for it asks no more
	}
}

// write sees to it that a policy has these rules, beside those that it has and
// that are still in use. One without any is removed.
func (w *policyWriter) write(key model.Key, pods string, egress bool, rules []model.PolicyRule) {
	there, exists := w.d.policies[key]
	if exists && there.Pods == pods && slices.Equal(there.Rules, rules) && len(rules) > 0 {
		return
	}
	wanted := slices.Clone(rules)
	if there.Pods == pods {
		for _, rule := range there.Rules {
			if _, is := slices.BinarySearchFunc(rules, rule, model.ComparePolicyRules); is {
				continue
			}
			if w.inUse(key, pods, egress, rule) {
				wanted = append(wanted, rule)
			} else {
				// From now on nobody relies on it: should it be wanted again, it
				// has to be seen again.
				if at, was := there.find(rule); was {
					there.seen = slices.Delete(slices.Clone(there.seen), at, at+1)
					w.d.policies[key] = there
				}
			}
		}
	}
	policy := model.Policy{Pods: pods, Egress: egress, Rules: model.NewPolicyRules(wanted)}
	switch {
	case len(policy.Rules) == 0 && exists:
		w.changes.Delete = append(w.changes.Delete, key)
	case len(policy.Rules) == 0 || exists && there.Equal(policy):
	default:
		object := PolicyObject{Key: key, Policy: policy}
		if egress {
			object.Gateway = &w.gateways[model.Peer{Namespace: key.Namespace, Pods: pods}].model
		}
		w.changes.Apply = append(w.changes.Apply, object)
	}
}

// inUse tells whether a rule that is wanted no more may still be needed.
func (w *policyWriter) inUse(key model.Key, pods string, egress bool, rule model.PolicyRule) bool {
	gw := w.gateways[rule.Peer]
	if egress {
		gw = w.gateways[model.Peer{Namespace: key.Namespace, Pods: pods}]
		if gw == nil {
			return false // the pods that it is for go, too
		}
		if !w.d.restricted(gw) {
			// What restricts the gateway to these policies has to go first.
			_, restricts := w.d.policies[w.d.names.Gateway(gw.model)]
			return restricts
		}
	}
	id := ruleOf{key, rule}
	is, known := w.d.lingering[id]
	if !known {
		is.since = w.now
	}
	switch {
	case gw == nil:
		is.acknowledged = is.since
	case egress && w.uses(key, rule):
		is.sequence = 0
	case w.holds(gw):
		// What serves instead of refused routes, and where it leads, is not known.
		is = lingering{since: w.now}
	default:
		is.sequence = cmp.Or(is.sequence, gw.latest)
		if is.acknowledged.IsZero() && w.acknowledged(gw, is.sequence) {
			is.acknowledged = w.now
		}
	}
	left, again := is.since.Add(most).Sub(w.now), askAgain
	if !is.acknowledged.IsZero() {
		left = min(left, is.acknowledged.Add(grace).Sub(w.now))
		again = left
	}
	if left <= 0 {
		return false
	}
	w.lingering[id] = is
	if again = min(again, left); w.recheck == 0 || again < w.recheck {
		w.recheck = again
	}
	return true
}

// uses tells whether Envoy has endpoints that a policy's rule lets it reach.
func (w *policyWriter) uses(egress model.Key, rule model.PolicyRule) bool {
	return slices.ContainsFunc(w.d.through[egress], func(r *reach) bool { return slices.Contains(r.used, rule) })
}

// acknowledged tells whether all pods of a gateway have a configuration.
func (w *policyWriter) acknowledged(gw *gateway, sequence uint64) bool {
	pods, _ := gw.pods(w.d.acks(gw.model.Key), w.now)
	for _, pod := range pods {
		if pod.Sequence < sequence {
			return false
		}
	}
	return true
}

// holds tells whether pods of a gateway hold routes back that Envoy refuses.
func (w *policyWriter) holds(gw *gateway) bool {
	pods, _ := gw.pods(w.d.acks(gw.model.Key), w.now)
	return slices.ContainsFunc(pods, func(pod xds.PodAck) bool { return len(pod.Held) > 0 })
}
