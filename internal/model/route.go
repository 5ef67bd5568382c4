package model

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
)

// parents returns the parentRefs with all fields that matter filled in, or one
// to the default Gateway where the route names none, or why there is none.
func (b *linker) parents(source *v1alpha1.ServiceRoute) ([]gatewayv1.ParentReference, *ParentStatus) {
	if len(source.Spec.ParentRefs) > 0 {
		return source.Spec.ParentRefs, nil
	}
	if gw := b.defaultGateway(source.Namespace); gw != nil {
		namespace := gatewayv1.Namespace(gw.Namespace)
		return []gatewayv1.ParentReference{{Name: gatewayv1.ObjectName(gw.Name), Namespace: &namespace}}, nil
	}
	return nil, &ParentStatus{
		Ref: gatewayv1.ParentReference{Name: "default"},
		Conditions: []metav1.Condition{condition(v1alpha1.ConditionAccepted, metav1.ConditionFalse,
			v1alpha1.ReasonNoDefaultGateway, fmt.Sprintf(
				"the route has no parentRefs, and no Gateway of meshroute carries the label %s: name a Gateway in parentRefs, or label one",
				v1alpha1.DefaultGatewayLabel))},
	}
}

// defaultGateway returns the oldest Gateway of this operator that carries the
// label, preferring the namespace's own.
func (b *frame) defaultGateway(namespace string) *gatewayv1.Gateway {
	for _, gw := range b.labelled {
		if gw.Namespace == namespace {
			return gw
		}
	}
	if len(b.labelled) > 0 {
		return b.labelled[0]
	}
	return nil
}

// parent finds the Gateway of a parentRef. It returns no status for a Gateway
// that another controller serves, and no gateway where there is none to attach
// to.
func (b *frame) parent(ref gatewayv1.ParentReference, route Key) (*ParentStatus, *gateway) {
	key := Key{Namespace: string(valueOr(ref.Namespace, gatewayv1.Namespace(route.Namespace))), Name: string(ref.Name)}
	refuse := func(reason, message string) *ParentStatus {
		return &ParentStatus{Ref: ref, Conditions: []metav1.Condition{
			condition(v1alpha1.ConditionAccepted, metav1.ConditionFalse, reason, message),
		}}
	}
	if gw := b.built[key]; gw != nil {
		return &ParentStatus{Ref: ref}, gw
	}
	source := b.allGateway[key]
	if source == nil {
		return refuse(v1alpha1.ReasonGatewayNotFound, fmt.Sprintf(
			"Gateway %s does not exist: create it or correct parentRefs", key)), nil
	}
	if class := string(source.Spec.GatewayClassName); b.classes[class] == nil {
		return refuse(v1alpha1.ReasonGatewayClassNotFound, fmt.Sprintf(
			"Gateway %s names GatewayClass %q, which does not exist: create it or correct spec.gatewayClassName", key, class)), nil
	}
	return nil, nil
}

// claim finds the listeners of gw that a route may attach to, and the hostnames
// that it asks for there. Where there is none it says why.
func (b *linker) claim(source *v1alpha1.ServiceRoute, rules []rule, gw *gateway, to *attachment) {
	refused := ""
	reason := string(gatewayv1.RouteReasonNoMatchingParent)
	for _, listener := range gw.listeners {
		if ref := to.status.Ref; ref.SectionName != nil && *ref.SectionName != listener.source.Name ||
			ref.Port != nil && *ref.Port != listener.port.number {
			continue
		}
		if !listener.kinds || !listener.from(source.Namespace, b.namespaceLabels) {
			reason = string(gatewayv1.RouteReasonNotAllowedByListeners)
			refused = fmt.Sprintf("listener %q of Gateway %s does not allow ServiceRoutes from namespace %s: see its allowedRoutes",
				listener.source.Name, gw.model.Key, source.Namespace)
			continue
		}
		names := intersect(listener.hostname, source.Spec.Hostnames)
		if len(names) == 0 {
			reason = string(gatewayv1.RouteReasonNoMatchingListenerHostname)
			refused = fmt.Sprintf("none of the route's hostnames lies within the hostname %q of listener %q of Gateway %s",
				listener.hostname, listener.source.Name, gw.model.Key)
			continue
		}
		own, owner := listener.own(names)
		if len(own) == 0 {
			reason = string(gatewayv1.RouteReasonNoMatchingListenerHostname)
			refused = fmt.Sprintf("the route's hostnames are those of listener %q of Gateway %s, which is more specific than %q: attach the route to that one",
				owner.source.Name, gw.model.Key, listener.source.Name)
			continue
		}
		to.listeners = append(to.listeners, listener)
		for _, name := range own {
			if host := b.of.host(hostKey{gw, listener.port.number, name}); !slices.Contains(to.hosts, host) {
				to.hosts = append(to.hosts, host)
			}
		}
	}
	if len(to.listeners) == 0 {
		if refused == "" {
			refused = fmt.Sprintf("Gateway %s has no valid listener that the parentRef selects: correct sectionName or port, or see the Gateway's status.listeners", gw.model.Key)
		}
		to.status.add(v1alpha1.ConditionAccepted, metav1.ConditionFalse, reason, refused)
		return
	}
	to.gateway, to.backends = gw, b.isolables(source, rules, gw)
}

// attached tells whether a route is attached by this parentRef: it is not where
// others have all that it asks for, or nothing of it is valid. leftOut says what
// of it is, and why; reason is that of the first.
func (a *attachment) attached(by *link) (attached bool, reason string, leftOut []string) {
	if a.gateway == nil {
		return false, "", nil
	}
	placed := false
	for _, rule := range by.rules {
		leftOut = append(leftOut, rule.invalid...)
	}
	if len(leftOut) > 0 {
		reason = v1alpha1.ReasonInvalidRegularExpression
	}
	var circles []string
	for _, host := range a.hosts {
		lost, some := host.lost[by]
		placed = placed || !some || lost.placed
		if leftOut = append(leftOut, lost.conflicts...); len(lost.conflicts) > 0 {
			reason = cmp.Or(reason, v1alpha1.ReasonRouteConflict)
		}
		circles = append(circles, lost.circles...)
	}
	if leftOut = append(leftOut, circles...); len(circles) > 0 {
		reason = cmp.Or(reason, v1alpha1.ReasonRedirectLoop)
	}
	return placed || len(leftOut) == 0, reason, leftOut
}

// judge is the status of a route, now that it is known what others have.
func (b *Builder) judge(by *link) *RouteStatus {
	status := by.status
	hosts := map[string]bool{}
	for i := range by.parents {
		a := &by.parents[i]
		parent := a.status
		parent.Conditions = slices.Clone(parent.Conditions)
		if a.gateway != nil {
			for _, host := range a.hosts {
				if lost, some := host.lost[by]; !some || lost.placed {
					hosts[host.hostname] = true
				}
			}
			b.judgeParent(by, a, &parent)
		}
		status.Parents = append(status.Parents, parent)
	}
	status.Hosts = slices.Sorted(maps.Keys(hosts))
	return &status
}

func (b *Builder) judgeParent(by *link, a *attachment, parent *ParentStatus) {
	key := a.gateway.model.Key
	switch attached, why, leftOut := a.attached(by); {
	case !attached:
		parent.add(v1alpha1.ConditionAccepted, metav1.ConditionFalse, why, joined(leftOut))
		return
	case len(leftOut) > 0:
		parent.add(v1alpha1.ConditionAccepted, metav1.ConditionTrue, string(gatewayv1.RouteReasonAccepted),
			fmt.Sprintf("attached to Gateway %s in part", key))
		parent.add(v1alpha1.ConditionPartiallyInvalid, metav1.ConditionTrue, why, joined(leftOut))
	default:
		parent.add(v1alpha1.ConditionAccepted, metav1.ConditionTrue, string(gatewayv1.RouteReasonAccepted),
			fmt.Sprintf("attached to Gateway %s", key))
	}
	parent.Gateway = &key

	var isolated, cannot []string
	for _, backend := range a.backends {
		switch {
		case b.traffic[a.gateway].services[backend.Key].value.Isolated:
			isolated = append(isolated, backend.String())
		case backend.labelled:
			cannot = append(cannot, fmt.Sprintf(
				"Service %s has the label %s and no selector, so nothing is isolated: give it one, or make a NetworkPolicy for its pods", backend.Key, v1alpha1.IsolationLabel))
		}
	}
	switch {
	case len(cannot) > 0:
		parent.add(v1alpha1.ConditionBackendsIsolated, metav1.ConditionFalse, v1alpha1.ReasonNoSelector, joined(cannot))
	case len(isolated) > 0:
		slices.Sort(isolated)
		parent.add(v1alpha1.ConditionBackendsIsolated, metav1.ConditionTrue, v1alpha1.ReasonIsolated,
			fmt.Sprintf("only gateways are to reach the pods of %s", joined(isolated)))
	}
}

// isolable is a Service that a route leads to.
type isolable struct {
	BackendService

	// wanted: its pods are to answer gateways alone; labelled: because of its
	// label.
	wanted, labelled bool
}

// isolables are the Services that the rules lead to, each once.
func (b *linker) isolables(source *v1alpha1.ServiceRoute, rules []rule, gw *gateway) []isolable {
	var all []isolable
	for _, rule := range rules {
		for _, cluster := range rule.clusters {
			if slices.ContainsFunc(all, func(other isolable) bool { return other.Key == cluster.Service }) {
				continue
			}
			service := b.service(cluster.Service)
			labelled := service.Labels[v1alpha1.IsolationLabel] == v1alpha1.IsolationGateway && gw.isolation != v1alpha1.BackendPolicyOff
			backend := isolable{Key: cluster.Service, labelled: labelled}
			// Whose routes come from another namespace has granted that they may
			// refer to it, not that others may not.
			backend.wanted = labelled || gw.isolation == v1alpha1.BackendPolicyAll && service.Namespace == source.Namespace
			if cluster.DNSName == "" {
				backend.Selector = Selector(service.Spec.Selector)
			}
			all = append(all, backend)
		}
	}
	return all
}

func (p *ParentStatus) add(kind string, status metav1.ConditionStatus, reason, message string) {
	p.Conditions = append(p.Conditions, condition(kind, status, reason, message))
}

// joined is the first few sentences, each once, and how many more there are.
func joined(sentences []string) string {
	const most = 3
	var once []string
	for _, sentence := range sentences {
		if !slices.Contains(once, sentence) {
			once = append(once, sentence)
		}
	}
	if len(once) > most {
		return fmt.Sprintf("%s; and %d more", strings.Join(once[:most], "; "), len(once)-most)
	}
	return strings.Join(once, "; ")
}

// hostKey names a hostname on a port of a gateway.
type hostKey struct {
	gateway  *gateway
	port     int32
	hostname string
}

// host is a hostname, and who has which of its requests.
type host struct {
	hostKey

	claims []*link // who asks for it, the oldest first
	routes []Route // in the order in which they are tried
	// lost is what became of those who do not have all that they asked for.
	lost map[*link]outcome
}

// outcome is what a route got of a hostname.
type outcome struct {
	// conflicts are a sentence for each match that others, or an earlier rule of
	// its own, have already.
	conflicts []string
	// circles are the same for each match that would be redirected to itself.
	circles []string
	placed  bool // any of its matches
}

func (b *Builder) host(key hostKey) *host {
	known := b.hosts[key]
	if known == nil {
		known = &host{hostKey: key}
		b.hosts[key] = known
	}
	return known
}

// place gives the hostname's requests to those who asked for them, in the order
// of their age.
func (h *host) place() {
	owner := map[string]string{} // match key → who has it
	var ranked []rankedRoute
	h.lost, h.routes = nil, nil
	on := h.gateway.ports[h.port]
	for _, by := range h.claims {
		var got outcome
		for _, rule := range by.rules {
			prefix := by.age.String() + "/" + rule.name + "/"
			for _, match := range rule.matches {
				name, key := prefix+strconv.Itoa(match.index), match.key()
				made := rule.route
				made.Name, made.Match = name, match.Match
				made.Redirect = made.Redirect.on(h.hostname, on)
				if made.circles(h.hostname, on) {
					// Whoever else asks for it has it: what is redirected to https
					// goes there to be answered.
					got.circles = append(got.circles, circle(rule.name, match.Match, h.hostname, on))
					continue
				}
				if other, taken := owner[key]; taken {
					if strings.HasPrefix(other, prefix) {
						got.placed = true // its rule lists it twice: nothing is left out
						continue
					}
					got.conflicts = append(got.conflicts, fmt.Sprintf("rule %q: %s is already matched by %s: change what one of them matches",
						rule.name, match.describe(h.hostname), ownerName(other, by.age.Key)))
					continue
				}
				owner[key] = name
				got.placed = true
				ranked = append(ranked, rankedRoute{Route: made, order: len(ranked)})
			}
		}
		if len(got.conflicts)+len(got.circles) > 0 || !got.placed {
			if h.lost == nil {
				h.lost = map[*link]outcome{}
			}
			h.lost[by] = got
		}
	}
	slices.SortFunc(ranked, compareRoutes)
	for _, route := range ranked {
		h.routes = append(h.routes, route.Route)
	}
}

func ownerName(owner string, route Key) string {
	parts := strings.Split(owner, "/")
	if parts[0] == route.Namespace && parts[1] == route.Name {
		return fmt.Sprintf("rule %q of this route", parts[2])
	}
	return fmt.Sprintf("ServiceRoute %s/%s (rule %q), which comes first (older, or of one age and first by name)", parts[0], parts[1], parts[2])
}

// intersect returns the hostnames that both a listener and a route serve, the
// narrower of each pair, as Gateway API's Listener.hostname describes.
func intersect(listener string, route []gatewayv1.Hostname) []string {
	if listener == "" {
		listener = "*"
	}
	if len(route) == 0 {
		return []string{listener}
	}
	var both []string
	for _, hostname := range route {
		name := strings.ToLower(string(hostname))
		switch {
		case name == "": // no schema admits it, nor does Envoy
		case covers(listener, name):
			both = append(both, name)
		case covers(name, listener):
			both = append(both, listener)
		}
	}
	slices.Sort(both)
	return slices.Compact(both)
}

// covers tells whether every hostname that narrow stands for is one of wide's.
func covers(wide, narrow string) bool {
	if wide == "*" || wide == narrow {
		return true
	}
	suffix, wildcard := strings.CutPrefix(wide, "*")
	return wildcard && strings.HasSuffix(narrow, suffix) && narrow != suffix
}

// rule is a ServiceRouteRule with its backends resolved.
type rule struct {
	name      string
	matches   []ruleMatch
	invalid   []string // why others of its matches are left out
	route     Route    // without name and match
	clusters  []Cluster
	failovers []Failover
	group     []string // clusters that take over from each other
	backends  []BackendStatus
}
