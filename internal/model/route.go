package model

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
)

// route judges one ServiceRoute and places its rules on every listener that it
// attaches to.
func (b *builder) route(source *v1alpha1.ServiceRoute) {
	key := keyOf(source)
	status := RouteStatus{Key: key, UID: string(source.UID), Generation: source.Generation}
	rules, resolved := b.resolve(source)
	status.Backends = backendStatuses(rules)

	hosts := map[string]bool{}
	for _, ref := range b.parents(source, &status) {
		parent, gw := b.parent(ref, key)
		if parent == nil {
			continue // another controller's Gateway
		}
		parent.Conditions = append(parent.Conditions, resolved)
		if gw != nil {
			b.attach(source, rules, gw, parent, hosts)
		}
		status.Parents = append(status.Parents, *parent)
	}
	for host := range hosts {
		status.Hosts = append(status.Hosts, host)
	}
	slices.Sort(status.Hosts)
	b.routes = append(b.routes, status)
}

// parents returns the parentRefs with all fields that matter filled in, or one
// to the default Gateway where the route names none.
func (b *builder) parents(source *v1alpha1.ServiceRoute, status *RouteStatus) []gatewayv1.ParentReference {
	if len(source.Spec.ParentRefs) > 0 {
		return source.Spec.ParentRefs
	}
	if gw := b.defaultGateway(source.Namespace); gw != nil {
		namespace := gatewayv1.Namespace(gw.Namespace)
		return []gatewayv1.ParentReference{{Name: gatewayv1.ObjectName(gw.Name), Namespace: &namespace}}
	}
	status.Parents = append(status.Parents, ParentStatus{
		Ref: gatewayv1.ParentReference{Name: "default"},
		Conditions: []metav1.Condition{condition(v1alpha1.ConditionAccepted, metav1.ConditionFalse,
			v1alpha1.ReasonNoDefaultGateway, fmt.Sprintf(
				"the route has no parentRefs, and no Gateway of meshroute carries the label %s: name a Gateway in parentRefs, or label one",
				v1alpha1.DefaultGatewayLabel))},
	})
	return nil
}

// defaultGateway returns the oldest Gateway of this operator that carries the
// label, preferring the namespace's own.
func (b *builder) defaultGateway(namespace string) *gatewayv1.Gateway {
	var found *gatewayv1.Gateway
	for _, gw := range oldestFirst(b.labelled()) {
		if gw.Namespace == namespace {
			return gw
		}
		if found == nil {
			found = gw
		}
	}
	return found
}

func (b *builder) labelled() []*gatewayv1.Gateway {
	var labelled []*gatewayv1.Gateway
	for _, gw := range b.built {
		if _, ok := gw.source.Labels[v1alpha1.DefaultGatewayLabel]; ok {
			labelled = append(labelled, gw.source)
		}
	}
	return labelled
}

// parent finds the Gateway of a parentRef. It returns no status for a Gateway
// that another controller serves, and no gateway where there is none to attach
// to.
func (b *builder) parent(ref gatewayv1.ParentReference, route Key) (*ParentStatus, *gateway) {
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

// attach places the rules on the listeners of gw that the route may attach to,
// and adds the condition Accepted to parent.
func (b *builder) attach(source *v1alpha1.ServiceRoute, rules []rule, gw *gateway, parent *ParentStatus, hosts map[string]bool) {
	refused := ""
	reason := string(gatewayv1.RouteReasonNoMatchingParent)
	var conflicts, invalid []string
	var attached []*listener
	placed := false
	for _, listener := range gw.listeners {
		if parent.Ref.SectionName != nil && *parent.Ref.SectionName != listener.source.Name {
			continue
		}
		if parent.Ref.Port != nil && *parent.Ref.Port != listener.port.number {
			continue
		}
		if !listener.kinds || !listener.from(source.Namespace) {
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
		attached = append(attached, listener)
		for _, name := range names {
			lost, some := listener.port.place(name, keyOf(source), rules)
			if some {
				hosts[name] = true
				placed = true
			}
			conflicts = append(conflicts, lost...)
		}
	}

	key := gw.model.Key
	for _, rule := range rules {
		invalid = append(invalid, rule.invalid...)
	}
	leftOut, why := slices.Concat(invalid, conflicts), v1alpha1.ReasonRouteConflict
	if len(invalid) > 0 {
		why = v1alpha1.ReasonInvalidRegularExpression
	}
	switch {
	case len(attached) == 0:
		if refused == "" {
			refused = fmt.Sprintf("Gateway %s has no valid listener that the parentRef selects: correct sectionName or port, or see the Gateway's status.listeners", key)
		}
		parent.add(v1alpha1.ConditionAccepted, metav1.ConditionFalse, reason, refused)
		return
	case !placed && len(leftOut) > 0:
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
	for _, listener := range attached {
		if listener.counted != source { // not yet through another parentRef
			listener.counted = source
			listener.status.AttachedRoutes++
		}
	}
	for _, rule := range rules {
		for _, cluster := range rule.clusters {
			gw.clusters[cluster.Name] = cluster
		}
	}
	b.isolate(source, rules, gw, parent)
}

// isolate notes which Services the rules lead to, and which of them are to
// answer gateways alone, and adds the condition BackendsIsolated to parent where
// any is.
func (b *builder) isolate(source *v1alpha1.ServiceRoute, rules []rule, gw *gateway, parent *ParentStatus) {
	var isolated, cannot []string
	for _, rule := range rules {
		for _, cluster := range rule.clusters {
			service := b.services[cluster.Service]
			labelled := service.Labels[v1alpha1.IsolationLabel] == v1alpha1.IsolationGateway && gw.isolation != v1alpha1.BackendPolicyOff
			// Whose routes come from another namespace has granted that they may
			// refer to it, not that others may not.
			wanted := labelled || gw.isolation == v1alpha1.BackendPolicyAll && service.Namespace == source.Namespace
			backend := BackendService{Key: cluster.Service}
			if cluster.DNSName == "" {
				backend.Selector = Selector(service.Spec.Selector)
			}
			backend.Isolated = backend.Selector != "" && (wanted || gw.services[backend.Key].Isolated)
			gw.services[backend.Key] = backend
			switch {
			case backend.Isolated:
				isolated = append(isolated, backend.String())
			case labelled:
				cannot = append(cannot, fmt.Sprintf(
					"Service %s has the label %s and no selector, so nothing is isolated: give it one, or make a NetworkPolicy for its pods", backend.Key, v1alpha1.IsolationLabel))
			}
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

// place adds the rules' matches to a hostname, but not those that another
// route, or an earlier rule, already has. It returns a sentence for each of
// these, and whether any match was placed.
func (p *port) place(hostname string, route Key, rules []rule) (conflicts []string, placed bool) {
	host := p.hosts[hostname]
	if host == nil {
		host = &virtualHost{owner: map[string]string{}}
		p.hosts[hostname] = host
	}
	for _, rule := range rules {
		prefix := route.String() + "/" + rule.name + "/"
		for _, match := range rule.matches {
			name := prefix + strconv.Itoa(match.index)
			key := match.key()
			if owner, taken := host.owner[key]; taken {
				if strings.HasPrefix(owner, prefix) {
					// The same listener port through two parents, or a match that
					// its rule lists twice: nothing is left out.
					placed = true
					continue
				}
				conflicts = append(conflicts, fmt.Sprintf("rule %q: %s is already matched by %s: change what one of them matches",
					rule.name, match.describe(hostname), ownerName(owner, route)))
				continue
			}
			host.owner[key] = name
			placed = true
			made := rule.route
			made.Name, made.Match = name, match.Match
			made.Redirect = made.Redirect.on(hostname, "http", p.number)
			host.routes = append(host.routes, rankedRoute{Route: made, order: len(host.routes)})
		}
	}
	if len(host.routes) == 0 {
		delete(p.hosts, hostname)
	}
	return conflicts, placed
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
	name     string
	matches  []ruleMatch
	invalid  []string // why others of its matches are left out
	route    Route    // without name and match
	clusters []Cluster
	backends []BackendStatus
}
