package model

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
)

// resolve looks up the backends of every rule, and says in the condition
// ResolvedRefs which cannot be.
func (b *linker) resolve(source *v1alpha1.ServiceRoute) ([]rule, metav1.Condition) {
	var problems []string
	reason := string(gatewayv1.RouteReasonResolvedRefs)
	rules := make([]rule, len(source.Spec.Rules))
	for i := range source.Spec.Rules {
		from := &source.Spec.Rules[i]
		to := rule{name: string(from.Name), route: routeOf(from)}
		to.matches, to.invalid = matchesOf(from)
		if from.DirectResponse != nil || from.Redirect != nil {
			rules[i] = to // the gateway answers
			continue
		}
		for _, problem := range b.backends(source.Namespace, from, &to) {
			consequence := " (requests to it get 500)"
			switch {
			case problem.idle:
				consequence = " (its weight is 0: no request goes to it)"
			case !to.misses():
				consequence = " (its requests go to other backends of the rule)"
			}
			problems = append(problems, fmt.Sprintf("rule %q: %s%s", from.Name, problem.what, consequence))
			if len(problems) == 1 {
				reason = problem.reason
			}
		}
		why, unmirrored := b.mirrors(source.Namespace, from, &to)
		if len(problems) == 0 && len(unmirrored) > 0 {
			reason = why
		}
		problems = append(problems, unmirrored...)
		rules[i] = to
	}
	if len(problems) > 0 {
		return rules, condition(v1alpha1.ConditionResolvedRefs, metav1.ConditionFalse, reason, joined(problems))
	}
	return rules, condition(v1alpha1.ConditionResolvedRefs, metav1.ConditionTrue, reason, "all backends resolve")
}

// unresolved is why a backend cannot be used; idle: nobody uses it.
type unresolved struct {
	reason, what string
	idle         bool
}

// backends looks up the backends of a rule, and returns those that cannot be used.
func (b *linker) backends(namespace string, from *v1alpha1.ServiceRouteRule, to *rule) (problems []unresolved) {
	balancing, hash := loadBalancingOf(from.LoadBalancing)
	to.route.Hash, to.route.Affinity = hash, affinityOf(from.SessionAffinity)
	var candidates []candidate
	for _, backend := range from.Backends {
		service := serviceOf(namespace, backend.ServiceReference)
		weight := uint32(max(valueOr(backend.Weight, 1), 0))
		cluster, reason, problem := b.backend(namespace, service, backend.Port, balancing)
		if problem != "" {
			problems = append(problems, unresolved{reason, problem, weight == 0})
		}
		if weight > 0 {
			candidates = append(candidates, candidate{cluster, weight, valueOr(backend.Priority, 0)})
		} else if cluster != nil {
			to.clusters = append(to.clusters, *cluster)
		}
		to.backends = append(to.backends, BackendStatus{
			Service: service, Port: backend.Port.String(), Cluster: cluster, Idle: weight == 0,
		})
	}
	to.share(candidates)
	return problems
}

// backend finds the Service port of a backend, or the reason and the problem
// for which it cannot be used.
func (b *linker) backend(from string, key Key, port intstr.IntOrString, balancing LoadBalancing) (cluster *Cluster, reason, problem string) {
	if key.Namespace != from && !b.granted(from, key) {
		// Said before it is known whether the Service exists: nobody learns of
		// other namespaces' Services what they were not granted.
		return nil, string(gatewayv1.RouteReasonRefNotPermitted), fmt.Sprintf(
			"Service %s is in another namespace, and no ReferenceGrant there lets ServiceRoutes of namespace %s refer to it: create one there", key, from)
	}
	service := b.service(key)
	if service == nil {
		return nil, string(gatewayv1.RouteReasonBackendNotFound), fmt.Sprintf(
			"Service %s does not exist: create it or correct the backend's name", key)
	}
	external := service.Spec.Type == corev1.ServiceTypeExternalName
	if external && service.Spec.ExternalName == "" {
		return nil, v1alpha1.ReasonUnsupportedService, fmt.Sprintf(
			"Service %s is of type ExternalName and has no spec.externalName: set it", key)
	}
	otherProtocol := corev1.Protocol("")
	for i := range service.Spec.Ports {
		have := &service.Spec.Ports[i]
		if port.Type == intstr.Int && have.Port != port.IntVal || port.Type == intstr.String && have.Name != port.StrVal {
			continue
		}
		if have.Protocol != corev1.ProtocolTCP && have.Protocol != "" {
			otherProtocol = have.Protocol // the same number may be there for TCP, too
			continue
		}
		if protocol := valueOr(have.AppProtocol, ""); tlsProtocols[protocol] {
			return nil, string(gatewayv1.RouteReasonUnsupportedProtocol), fmt.Sprintf(
				"port %s of Service %s has appProtocol %s: gateways do not speak TLS to backends yet; name a port without TLS", port.String(), key, protocol)
		}
		return clusterOf(service, have, balancing), "", ""
	}
	if otherProtocol != "" {
		return nil, v1alpha1.ReasonUnsupportedService, fmt.Sprintf(
			"port %s of Service %s is %s: only TCP ports can be routed to", port.String(), key, otherProtocol)
	}
	if external && port.Type == intstr.Int {
		// Its ports need not be listed: they are whatever the host has.
		return clusterOf(service, &corev1.ServicePort{Port: port.IntVal}, balancing), "", ""
	}
	return nil, v1alpha1.ReasonPortNotFound, fmt.Sprintf(
		"Service %s has no TCP port %s, it has %s: correct the backend's port", key, port.String(), portList(service))
}

// Values of a Service port's appProtocol (KEP-3726, GEP-1911, IANA's names) that
// mean something here. All others, http and kubernetes.io/ws among them, are
// HTTP/1.1, which is what a port without any means, too.
var (
	http2Protocols = map[string]bool{"kubernetes.io/h2c": true, "h2c": true, "http2": true, "grpc": true}
	tlsProtocols   = map[string]bool{"https": true, "kubernetes.io/wss": true, "wss": true, "tls": true, "grpcs": true}
)

func clusterOf(service *corev1.Service, port *corev1.ServicePort, balancing LoadBalancing) *Cluster {
	key := keyOf(service)
	cluster := &Cluster{
		Name:    key.Namespace + "/" + key.Name + "/" + strconv.Itoa(int(port.Port)),
		Service: key,
		Port:    ServicePort{Name: port.Name, Number: port.Port},
	}
	// Settings are a part of the name, so that a cluster whose settings change
	// is a new one beside the old: requests move over once it is warm.
	if len(service.Spec.Selector) > 0 {
		// Named ports may differ from pod to pod: their endpoints tell. Left out,
		// it is the Service's own (an API server fills that in).
		if port.TargetPort.Type == intstr.Int {
			cluster.TargetPort = cmp.Or(port.TargetPort.IntVal, port.Port)
		}
	}
	if http2Protocols[valueOr(port.AppProtocol, "")] {
		cluster.HTTP2 = true
		cluster.Name += "/h2c"
	}
	cluster.PreferIPv6 = len(service.Spec.IPFamilies) > 0 && service.Spec.IPFamilies[0] == corev1.IPv6Protocol
	if service.Spec.Type == corev1.ServiceTypeExternalName {
		cluster.Port.Name, cluster.TargetPort = "", 0 // no EndpointSlice to join, no pods
		cluster.DNSName = service.Spec.ExternalName
		cluster.Name += "/dns/" + cluster.DNSName
	}
	if balancing != LeastRequest {
		cluster.LoadBalancing = balancing
		cluster.Name += "/" + string(balancing)
	}
	// A hash has its own opinion of which endpoint it is.
	if service.Spec.TrafficDistribution != nil && cluster.DNSName == "" && balancing != RingHash && balancing != Maglev {
		cluster.PreferZone = true
		cluster.Name += "/zone"
	}
	return cluster
}

func portList(service *corev1.Service) string {
	if len(service.Spec.Ports) == 0 {
		return "none"
	}
	var text strings.Builder
	for i, port := range service.Spec.Ports {
		if i > 0 {
			text.WriteString(", ")
		}
		text.WriteString(strconv.Itoa(int(port.Port)))
		if port.Name != "" {
			text.WriteString(" (" + port.Name + ")")
		}
		if port.Protocol != corev1.ProtocolTCP && port.Protocol != "" {
			text.WriteString(" " + string(port.Protocol))
		}
	}
	return text.String()
}

// granted tells whether a ReferenceGrant lets ServiceRoutes of a namespace
// refer to a Service.
func (b *linker) granted(from string, to Key) bool {
	return granted(b.grants(to.Namespace), gatewayv1.ReferenceGrantFrom{
		Group: gatewayv1.Group(v1alpha1.GroupVersion.Group), Kind: "ServiceRoute", Namespace: gatewayv1.Namespace(from),
	}, "Service", to.Name)
}

// granted tells whether one of a namespace's ReferenceGrants lets from refer to
// an object of the core group there.
func granted(grants []*gatewayv1.ReferenceGrant, from gatewayv1.ReferenceGrantFrom, kind gatewayv1.Kind, name string) bool {
	for _, grant := range grants {
		if slices.Contains(grant.Spec.From, from) && slices.ContainsFunc(grant.Spec.To, func(t gatewayv1.ReferenceGrantTo) bool {
			return t.Group == "" && t.Kind == kind && (t.Name == nil || string(*t.Name) == name)
		}) {
			return true
		}
	}
	return false
}

// backendStatuses lists each Service port of the rules once, sorted, also where
// one rule names the port and another gives its number.
func backendStatuses(rules []rule) []BackendStatus {
	var all []BackendStatus
	for _, rule := range rules {
		all = append(all, rule.backends...)
	}
	slices.SortFunc(all, func(a, b BackendStatus) int {
		return cmp.Or(CompareKeys(a.Service, b.Service), cmp.Compare(a.Port, b.Port))
	})
	var once []BackendStatus
	for _, backend := range all {
		i := slices.IndexFunc(once, func(b BackendStatus) bool {
			same := b.Cluster != nil && backend.Cluster != nil && b.Cluster.Name == backend.Cluster.Name
			return b.Service == backend.Service && (same || b.Port == backend.Port)
		})
		if i < 0 {
			once = append(once, backend)
			continue
		}
		once[i].Idle = once[i].Idle && backend.Idle
		if have := once[i].Cluster; have != nil && have.BackedUp && backend.Cluster != nil && !backend.Cluster.BackedUp && !backend.Idle {
			once[i].Cluster = backend.Cluster // where its endpoints are missed most
		}
	}
	return once
}

// Services returns the Services that a route refers to.
func Services(route *v1alpha1.ServiceRoute) []Key {
	var keys []Key
	for _, rule := range route.Spec.Rules {
		for _, backend := range rule.Backends {
			keys = append(keys, serviceOf(route.Namespace, backend.ServiceReference))
		}
		for _, mirror := range rule.Mirrors {
			keys = append(keys, serviceOf(route.Namespace, mirror.ServiceReference))
		}
	}
	return keys
}
