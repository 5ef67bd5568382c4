package model

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
)

// anyHost is the hostname of a listener that names none.
const anyHost = "*"

// Certificates returns the Secrets of which in's Gateways need what they hold:
// those that they refer to and may. No other is ever read.
func Certificates(in Inputs) []Key {
	classes := map[string]bool{}
	for _, class := range in.GatewayClasses {
		classes[class.Name] = ours(class)
	}
	wanted := map[Key]bool{}
	for _, gw := range in.Gateways {
		if classes[string(gw.Spec.GatewayClassName)] {
			maps.Copy(wanted, secretsOf(in, gw))
		}
	}
	return slices.SortedFunc(maps.Keys(wanted), CompareKeys)
}

// maxSecrets is how many Secrets a Gateway has read for it. Each costs a watch, of
// every replica of the manager; a schema admits 4096 of them.
const maxSecrets = 256

// secretsOf are the Secrets that a Gateway's listeners refer to, and may: the
// first maxSecrets, in the order of the listeners.
func secretsOf(in Inputs, gw *gatewayv1.Gateway) map[Key]bool {
	wanted := map[Key]bool{}
	for i := range gw.Spec.Listeners {
		listener := &gw.Spec.Listeners[i]
		if listener.Protocol != gatewayv1.HTTPSProtocolType || listener.TLS == nil {
			continue
		}
		for _, ref := range listener.TLS.CertificateRefs {
			if len(wanted) == maxSecrets {
				return wanted
			}
			if key, _, problem := certificateRef(in, gw, ref); problem == "" {
				wanted[key] = true
			}
		}
	}
	return wanted
}

// certificateRef is the Secret that a reference names, or the reason and the
// problem for which it may not be looked at.
func certificateRef(in Inputs, gw *gatewayv1.Gateway, ref gatewayv1.SecretObjectReference) (key Key, reason, problem string) {
	key = Key{Namespace: string(valueOr(ref.Namespace, gatewayv1.Namespace(gw.Namespace))), Name: string(ref.Name)}
	group, kind := string(valueOr(ref.Group, "")), string(valueOr(ref.Kind, "Secret"))
	switch {
	case group != "" || kind != "Secret":
		return key, string(gatewayv1.ListenerReasonInvalidCertificateRef), fmt.Sprintf(
			"%s %s is not supported: refer to a Secret", strings.TrimSuffix(kind+"."+group, "."), key)
	case key.Namespace != gw.Namespace && !granted(grantsIn(in.ReferenceGrants, key.Namespace), gatewayv1.ReferenceGrantFrom{
		Group: gatewayv1.GroupName, Kind: "Gateway", Namespace: gatewayv1.Namespace(gw.Namespace),
	}, "Secret", key.Name):
		return key, string(gatewayv1.ListenerReasonRefNotPermitted), fmt.Sprintf(
			"Secret %s is in another namespace, and no ReferenceGrant there lets Gateways of namespace %s refer to it: create one there", key, gw.Namespace)
	}
	return key, "", ""
}

func grantsIn(grants []*gatewayv1.ReferenceGrant, namespace string) []*gatewayv1.ReferenceGrant {
	var own []*gatewayv1.ReferenceGrant
	for _, grant := range grants {
		if grant.Namespace == namespace {
			own = append(own, grant)
		}
	}
	return own
}

// certificates resolves the certificateRefs of an HTTPS listener, as far as they are
// among those that are read for its Gateway. It returns those that are there, good
// or not, and the condition ResolvedRefs.
func certificates(in Inputs, gw *gatewayv1.Gateway, read map[Key]bool, source *gatewayv1.Listener) (found []*Certificate, resolved metav1.Condition) {
	var problems []string
	reason := string(gatewayv1.ListenerReasonResolvedRefs)
	fail := func(why, problem string) {
		problems = append(problems, problem)
		if len(problems) == 1 {
			reason = why
		}
	}
	var refs []gatewayv1.SecretObjectReference
	if source.TLS != nil {
		refs = source.TLS.CertificateRefs
	}
	if len(refs) == 0 {
		fail(string(gatewayv1.ListenerReasonInvalidCertificateRef), "tls.certificateRefs is empty: name a Secret of type kubernetes.io/tls")
	}
	seen := map[Key]bool{}
	for _, ref := range refs {
		key, why, problem := certificateRef(in, gw, ref)
		if problem != "" {
			fail(why, problem)
			continue
		}
		if seen[key] {
			continue
		}
		seen[key] = true
		if !read[key] {
			fail(string(gatewayv1.ListenerReasonInvalidCertificateRef), fmt.Sprintf(
				"Secret %s is not looked at, because the listeners before refer to %d others: have one certificate for several names, or another Gateway", key, maxSecrets))
			continue
		}
		certificate := in.Certificates[key]
		if certificate == nil {
			fail(string(gatewayv1.ListenerReasonInvalidCertificateRef), fmt.Sprintf(
				"Secret %s does not exist: create it, with the type kubernetes.io/tls", key))
			continue
		}
		found = append(found, certificate)
		switch {
		case certificate.Problem == "":
		case len(certificate.Chain) > 0:
			fail(string(gatewayv1.ListenerReasonInvalidCertificateRef), certificate.Problem+" (its last good certificate serves on)")
		default:
			fail(string(gatewayv1.ListenerReasonInvalidCertificateRef), certificate.Problem)
		}
	}
	if len(problems) > 0 {
		return found, condition(v1alpha1.ConditionResolvedRefs, metav1.ConditionFalse, reason, joined(problems))
	}
	return found, condition(v1alpha1.ConditionResolvedRefs, metav1.ConditionTrue, reason, "all references resolve")
}

// unsupportedTLS tells what of an HTTPS listener's settings nobody would heed;
// empty where there is nothing. Who asks for client certificates must not get a
// listener that does not ask for them.
func unsupportedTLS(gw *gatewayv1.Gateway, source *gatewayv1.Listener) string {
	if tls := source.TLS; tls != nil {
		if mode := valueOr(tls.Mode, gatewayv1.TLSModeTerminate); mode != gatewayv1.TLSModeTerminate {
			return fmt.Sprintf("tls.mode %s is not supported: use Terminate", mode)
		}
		if len(tls.Options) > 0 {
			options := slices.Sorted(maps.Keys(tls.Options))
			return fmt.Sprintf("tls.options: %q is not supported: leave it out", options[0])
		}
	}
	if gw.Spec.TLS == nil || gw.Spec.TLS.Frontend == nil {
		return ""
	}
	frontend := gw.Spec.TLS.Frontend.Default
	for _, port := range gw.Spec.TLS.Frontend.PerPort {
		if port.Port == source.Port {
			frontend = port.TLS
		}
	}
	if frontend.Validation != nil {
		return fmt.Sprintf("the Gateway's tls.frontend asks clients on port %d for certificates, which is not supported: the listener does not serve without", source.Port)
	}
	return ""
}

// host is what the listener serves: a hostname, or anyHost.
func (l *listener) host() string { return cmp.Or(l.hostname, anyHost) }

// own leaves out the hostnames that another listener of the port has, which is
// more specific: a host is served by one listener, with the routes and the
// certificates of that one. owner is the listener that has the last of those.
func (l *listener) own(names []string) (own []string, owner *listener) {
	for _, name := range names {
		best := l
		for _, other := range l.port.listeners {
			if other.host() != best.host() && covers(best.host(), other.host()) && covers(other.host(), name) {
				best = other
			}
		}
		if best == l {
			own = append(own, name)
		} else {
			owner = best
		}
	}
	return own, owner
}

// withCertificates joins what Secrets hold to the result: which certificates each
// listener has, and which listeners, and routes, are not served for want of one.
// It is looked at apart from all else, because it changes without anybody having
// changed a Gateway, and is little.
func (b *Builder) withCertificates(result Result, in Inputs) Result {
	if !slices.ContainsFunc(b.frame.sorted, (*gateway).terminates) {
		b.unserved = nil
		return result
	}
	result.Gateways, result.GatewayStatuses = slices.Clone(result.Gateways), slices.Clone(result.GatewayStatuses)
	unserved := map[*listener]string{}
	for i, gw := range b.frame.sorted {
		if !gw.terminates() {
			continue
		}
		served := judgeTLS(in, gw, &result.GatewayStatuses[i], unserved)
		at, found := slices.BinarySearchFunc(result.Gateways, gw.model.Key, func(g Gateway, key Key) int { return CompareKeys(g.Key, key) })
		if found {
			served.join(&result.Gateways[at])
		}
	}
	b.markUnserved(&result, unserved)
	return result
}

// terminates tells whether any listener is to speak TLS, valid or not.
func (gw *gateway) terminates() bool {
	return slices.ContainsFunc(gw.source.Spec.Listeners, func(l gatewayv1.Listener) bool { return l.Protocol == gatewayv1.HTTPSProtocolType })
}

// servedTLS is what the HTTPS ports of a gateway serve.
type servedTLS struct {
	ports        map[int32][]TLSListener
	certificates map[Key]*Certificate
}

func (t servedTLS) join(gw *Gateway) {
	gw.Ports = slices.Clone(gw.Ports)
	for i := range gw.Ports {
		of := t.ports[gw.Ports[i].Number]
		slices.SortFunc(of, func(a, b TLSListener) int { return cmp.Compare(a.Hostname, b.Hostname) })
		gw.Ports[i].TLS = of
	}
	gw.Certificates = slices.SortedFunc(maps.Values(t.certificates), func(a, b *Certificate) int { return CompareKeys(a.Secret, b.Secret) })
}

// judgeTLS judges the certificates of a gateway's listeners. It adds the
// listeners that are not served to unserved, and why.
func judgeTLS(in Inputs, gw *gateway, status *GatewayStatus, unserved map[*listener]string) servedTLS {
	served := servedTLS{ports: map[int32][]TLSListener{}, certificates: map[Key]*Certificate{}}
	status.Listeners = slices.Clone(status.Listeners)
	read := secretsOf(in, gw.source)
	accepted := make(map[int]*listener, len(gw.listeners))
	for _, l := range gw.listeners {
		accepted[l.index] = l
	}
	for i := range status.Listeners {
		source := &gw.source.Spec.Listeners[i]
		if source.Protocol != gatewayv1.HTTPSProtocolType || unsupportedTLS(gw.source, source) != "" {
			continue
		}
		found, resolved := certificates(in, gw.source, read, source)
		of := &status.Listeners[i]
		of.Conditions = slices.Clone(of.Conditions)
		replaceResolved(of.Conditions, resolved)
		l := accepted[i]
		if l == nil {
			continue
		}
		if names := l.overlapping(); names != "" {
			of.Conditions = append(of.Conditions, condition(string(gatewayv1.ListenerConditionOverlappingTLSConfig), metav1.ConditionTrue,
				string(gatewayv1.ListenerReasonOverlappingHostnames), fmt.Sprintf(
					"the hostnames overlap with those of listener %s: a client that sends a request for one over a connection made for the other gets 421 and connects anew", names)))
		}
		offer := TLSListener{Hostname: l.host()}
		offered, good := offered(found)
		for _, certificate := range offered {
			served.certificates[certificate.Secret] = certificate
			offer.Certificates = append(offer.Certificates, certificate.Secret)
		}
		served.ports[l.port.number] = append(served.ports[l.port.number], offer)
		if good {
			of.Conditions = append(of.Conditions, certificatesValid(l.hostname, offered, in.Now))
		} else {
			of.Unserved = "no certificate can be served: " + resolved.Message
			unserved[l] = of.Unserved
		}
	}
	if without := slices.DeleteFunc(slices.Clone(gw.listeners), func(l *listener) bool { return unserved[l] == "" }); len(without) > 0 && firstFalse(status.Conditions) == nil {
		message := "some listeners are not valid, the others serve: see status.listeners"
		if len(without) == len(gw.listeners) {
			message = "no listener has a certificate that can be served: see status.listeners"
			status.Unserved = message
		}
		status.Conditions = []metav1.Condition{condition(v1alpha1.ConditionAccepted, metav1.ConditionTrue,
			string(gatewayv1.GatewayReasonListenersNotValid), message)}
	}
	return served
}

// replaceResolved puts the condition ResolvedRefs in the place of the one that is there,
// unless that is false for another reason.
func replaceResolved(conditions []metav1.Condition, resolved metav1.Condition) {
	for i := range conditions {
		if conditions[i].Type == v1alpha1.ConditionResolvedRefs && conditions[i].Status == metav1.ConditionTrue {
			conditions[i] = resolved
		}
	}
}

// offered are the certificates that a listener is to have: those that are good,
// or, where none is, those that gateways may have had before.
func offered(found []*Certificate) (offered []*Certificate, good bool) {
	usable := slices.DeleteFunc(slices.Clone(found), func(c *Certificate) bool { return len(c.Chain) == 0 })
	if len(usable) > 0 {
		return usable, true
	}
	return found, false
}

// markUnserved tells the routes of which no listener is served.
func (b *Builder) markUnserved(result *Result, unserved map[*listener]string) {
	before := b.unserved
	b.unserved = map[*RouteStatus]*RouteStatus{}
	if len(unserved) == 0 {
		return
	}
	routes := result.Routes
	result.Routes = slices.Clone(routes)
	for i, status := range routes {
		marked := *status
		marked.Parents = slices.Clone(marked.Parents)
		changed := false
		for p, to := range b.links[status.Key].parents {
			if marked.Parents[p].Gateway == nil || slices.ContainsFunc(to.listeners, func(l *listener) bool { return unserved[l] == "" }) {
				continue
			}
			first := to.listeners[0]
			marked.Parents[p].Unserved = fmt.Sprintf("listener %q of Gateway %s does not serve: %s", first.source.Name, to.gateway.model.Key, unserved[first])
			changed = true
		}
		if !changed {
			continue
		}
		kept := &marked
		if known := before[status]; known != nil && slices.EqualFunc(known.Parents, marked.Parents, func(a, b ParentStatus) bool { return a.Unserved == b.Unserved }) {
			kept = known
		}
		b.unserved[status], result.Routes[i] = kept, kept
	}
}

// overlapping names the other listeners of the port of which one may be meant
// where this one is.
func (l *listener) overlapping() string {
	var names []string
	for _, other := range l.port.listeners {
		if other != l && (covers(l.host(), other.host()) || covers(other.host(), l.host())) {
			names = append(names, fmt.Sprintf("%q", other.source.Name))
		}
	}
	return strings.Join(names, ", ")
}

// certificatesValid tells whether clients take the certificates of a listener.
func certificatesValid(hostname string, served []*Certificate, now time.Time) metav1.Condition {
	invalid := func(reason, message string) metav1.Condition {
		return condition(v1alpha1.ConditionCertificatesValid, metav1.ConditionFalse, reason, message)
	}
	var expired, early, names []string
	for _, c := range served {
		names = append(names, c.Names...)
		switch gone, problem := c.validAt(now); {
		case gone:
			expired = append(expired, problem)
		case problem != "":
			early = append(early, problem)
		}
	}
	matches := hostname == "" || slices.ContainsFunc(names, func(name string) bool { return certificateCovers(name, hostname) })
	switch {
	case len(expired) > 0:
		return invalid(v1alpha1.ReasonCertificateExpired, joined(expired))
	case len(early) > 0:
		return invalid(v1alpha1.ReasonCertificateNotYetValid, joined(early))
	case !matches:
		slices.Sort(names)
		return invalid(v1alpha1.ReasonCertificateNameMismatch, fmt.Sprintf(
			"no certificate is for %s, so clients refuse them: they are for %s; have one issued for it, or correct the listener's hostname",
			hostname, cmp.Or(joined(names), "no name at all")))
	}
	return condition(v1alpha1.ConditionCertificatesValid, metav1.ConditionTrue, v1alpha1.ReasonCertificatesValid, "the certificates are valid now, and for the listener's hostname")
}

// certificateCovers tells whether a name in a certificate stands for a
// listener's hostname: in certificates "*" is one label.
func certificateCovers(name, hostname string) bool {
	if name == hostname {
		return true
	}
	_, parent, _ := strings.Cut(hostname, ".")
	return name == "*."+parent && !strings.HasPrefix(hostname, "*")
}

// closes tells whether a hostname is a listener's that another listener's would
// otherwise answer for. It is closed to those, with or without routes.
func (p *port) closes(hostname string) bool {
	return slices.ContainsFunc(p.listeners, func(l *listener) bool { return l.host() == hostname }) &&
		slices.ContainsFunc(p.listeners, func(l *listener) bool { return l.host() != hostname && covers(l.host(), hostname) })
}

// closedHosts are virtual hosts without routes, sorted.
func (p *port) closedHosts() []VirtualHost {
	var closed []VirtualHost
	for _, l := range p.listeners {
		if p.closes(l.host()) {
			closed = append(closed, VirtualHost{Hostname: l.host()})
		}
	}
	slices.SortFunc(closed, func(a, b VirtualHost) int { return cmp.Compare(a.Hostname, b.Hostname) })
	return closed
}
