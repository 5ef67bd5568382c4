package model

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
)

// Build links, defaults and validates, and tells of every object how it was
// judged.
func Build(in Inputs) Result { return new(Builder).Build(in) }

func grantsByNamespace(grants []*gatewayv1.ReferenceGrant) iter.Seq2[Key, []*gatewayv1.ReferenceGrant] {
	grouped := map[Key][]*gatewayv1.ReferenceGrant{}
	for _, grant := range slices.SortedFunc(slices.Values(grants), func(a, b *gatewayv1.ReferenceGrant) int { return cmp.Compare(a.Name, b.Name) }) {
		namespace := Key{Name: grant.Namespace}
		grouped[namespace] = append(grouped[namespace], grant)
	}
	return maps.All(grouped)
}

// frame is what users said of classes and gateways: what routes attach to. It is
// not changed once it is made.
type frame struct {
	in         Inputs
	classes    map[string]*gatewayv1.GatewayClass
	allGateway map[Key]*gatewayv1.Gateway
	configs    map[Key]*v1alpha1.GatewayConfig

	classList []ClassStatus
	foreign   []Key
	built     map[Key]*gateway     // gateways of this operator
	sorted    []*gateway           // by key
	labelled  []*gatewayv1.Gateway // default gateways, the oldest first
}

// gateway is a Gateway without routes.
type gateway struct {
	source    *gatewayv1.Gateway
	model     Gateway
	status    GatewayStatus
	listeners []*listener
	ports     map[int32]*port
	isolation v1alpha1.BackendPolicy
}

// listener is a listener that serves.
type listener struct {
	source   *gatewayv1.Listener
	index    int    // in the Gateway's status
	hostname string // "" for any
	port     *port
	kinds    bool // ServiceRoute may attach
	from     func(namespace string, labelsOf func(namespace string) (of labels.Set, exists bool)) bool
}

// port is a port number that any of the listeners has.
type port struct {
	number, bind int32
	https        bool
	gateway      *gateway
	listeners    []*listener
}

func newFrame(in Inputs) *frame {
	b := &frame{
		in:         Inputs{GatewayClasses: in.GatewayClasses, Gateways: in.Gateways, GatewayConfigs: in.GatewayConfigs, GatewayAPI: in.GatewayAPI, OneHost: in.OneHost, IPv6: in.IPv6},
		classes:    make(map[string]*gatewayv1.GatewayClass, len(in.GatewayClasses)),
		allGateway: make(map[Key]*gatewayv1.Gateway, len(in.Gateways)),
		configs:    make(map[Key]*v1alpha1.GatewayConfig, len(in.GatewayConfigs)),
		built:      make(map[Key]*gateway),
	}
	for _, class := range in.GatewayClasses {
		b.classes[class.Name] = class
	}
	for _, gw := range in.Gateways {
		b.allGateway[keyOf(gw)] = gw
	}
	for _, config := range in.GatewayConfigs {
		b.configs[keyOf(config)] = config
	}
	b.classStatuses()
	b.gateways()
	return b
}

func keyOf(object metav1.Object) Key { return Key{object.GetNamespace(), object.GetName()} }

// oldestFirst sorts by age, then by name: who came first keeps what two claim.
func oldestFirst[T metav1.Object](objects []T) []T {
	sorted := slices.Clone(objects)
	slices.SortFunc(sorted, func(a, b T) int {
		at, bt := a.GetCreationTimestamp(), b.GetCreationTimestamp()
		return cmp.Or(
			at.Compare(bt.Time),
			cmp.Compare(a.GetNamespace(), b.GetNamespace()),
			cmp.Compare(a.GetName(), b.GetName()),
		)
	})
	return sorted
}

func ours(class *gatewayv1.GatewayClass) bool {
	return class.Spec.ControllerName == v1alpha1.ControllerName
}

func (b *frame) classStatuses() {
	for _, class := range b.in.GatewayClasses {
		if !ours(class) {
			continue
		}
		accepted := condition(v1alpha1.ConditionAccepted, metav1.ConditionTrue,
			string(gatewayv1.GatewayClassReasonAccepted), "served by meshroute")
		if _, problem := b.classConfig(class); problem != "" {
			accepted = condition(v1alpha1.ConditionAccepted, metav1.ConditionFalse,
				string(gatewayv1.GatewayClassReasonInvalidParameters), problem)
		}
		conditions := []metav1.Condition{accepted}
		if b.in.GatewayAPI != "" {
			conditions = append(conditions, supportedVersion(b.in.GatewayAPI))
		}
		b.classList = append(b.classList, ClassStatus{Name: class.Name, Generation: class.Generation, Conditions: conditions})
	}
}

func (b *frame) gateways() {
	taken := map[int32]Key{} // in OneHost: who has a port
	for _, source := range oldestFirst(b.in.Gateways) {
		class := b.classes[string(source.Spec.GatewayClassName)]
		key := keyOf(source)
		switch {
		case class == nil:
			continue
		case !ours(class):
			b.foreign = append(b.foreign, key)
			continue
		}
		gw := &gateway{
			source: source,
			model:  Gateway{Key: key, Class: class.Name, UID: string(source.UID), IPv6: b.in.IPv6},
			status: GatewayStatus{Key: key, Generation: source.Generation},
			ports:  map[int32]*port{},
		}
		b.built[key] = gw
		b.listeners(gw, taken)

		accepted := condition(v1alpha1.ConditionAccepted, metav1.ConditionTrue,
			string(gatewayv1.GatewayReasonAccepted), "the Gateway is valid")
		infrastructure, isolation, problem := b.infrastructure(class, source)
		gw.model.Infrastructure, gw.isolation = infrastructure, isolation
		gw.status.Verify = infrastructure != nil && infrastructure.NetworkPolicy.Verify
		switch {
		case problem != "":
			accepted = condition(v1alpha1.ConditionAccepted, metav1.ConditionFalse,
				string(gatewayv1.GatewayReasonInvalidParameters), problem)
		case len(gw.listeners) == 0:
			accepted = condition(v1alpha1.ConditionAccepted, metav1.ConditionFalse,
				string(gatewayv1.GatewayReasonListenersNotValid), "no listener is valid: see status.listeners")
		case len(gw.listeners) < len(source.Spec.Listeners):
			accepted = condition(v1alpha1.ConditionAccepted, metav1.ConditionTrue,
				string(gatewayv1.GatewayReasonListenersNotValid), "some listeners are not valid, the others serve: see status.listeners")
		}
		gw.status.Conditions = []metav1.Condition{accepted}
		b.sorted = append(b.sorted, gw)
		if _, ok := source.Labels[v1alpha1.DefaultGatewayLabel]; ok {
			b.labelled = append(b.labelled, source)
		}
	}
	slices.SortFunc(b.sorted, func(a, b *gateway) int { return CompareKeys(a.model.Key, b.model.Key) })
	slices.SortFunc(b.classList, func(a, b ClassStatus) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(b.foreign, CompareKeys)
}

func (b *frame) listeners(gw *gateway, taken map[int32]Key) {
	gw.status.Listeners = make([]ListenerStatus, len(gw.source.Spec.Listeners))
	claimed := map[string]string{} // port and hostname → listener
	protocols := map[int32]*gatewayv1.Listener{}
	for i := range gw.source.Spec.Listeners {
		source := &gw.source.Spec.Listeners[i]
		status := &gw.status.Listeners[i]
		status.Name = string(source.Name)

		kinds, kindProblem := allowedKinds(source)
		status.SupportedKinds = kinds
		resolved := condition(v1alpha1.ConditionResolvedRefs, metav1.ConditionTrue,
			string(gatewayv1.ListenerReasonResolvedRefs), "all references resolve")
		if kindProblem != "" {
			resolved = condition(v1alpha1.ConditionResolvedRefs, metav1.ConditionFalse,
				string(gatewayv1.ListenerReasonInvalidRouteKinds), kindProblem)
		}

		hostname := ""
		if source.Hostname != nil {
			hostname = strings.ToLower(string(*source.Hostname))
		}
		number := source.Port
		accepted := condition(v1alpha1.ConditionAccepted, metav1.ConditionTrue,
			string(gatewayv1.ListenerReasonAccepted), "the listener is valid")
		conflicted := condition(string(gatewayv1.ListenerConditionConflicted), metav1.ConditionFalse,
			string(gatewayv1.ListenerReasonNoConflicts), "no other listener is in the way")

		https, unsupported := source.Protocol == gatewayv1.HTTPSProtocolType, ""
		if https {
			unsupported = unsupportedTLS(gw.source, source)
		}
		claim := fmt.Sprintf("%d %s", number, hostname)
		other, clash := claimed[claim]
		first := protocols[number]
		switch holder, held := taken[number]; {
		case source.Protocol != gatewayv1.HTTPProtocolType && !https:
			accepted = condition(v1alpha1.ConditionAccepted, metav1.ConditionFalse,
				string(gatewayv1.ListenerReasonUnsupportedProtocol),
				fmt.Sprintf("protocol %s is not supported: use HTTP or HTTPS", source.Protocol))
		case unsupported != "":
			accepted = condition(v1alpha1.ConditionAccepted, metav1.ConditionFalse,
				string(gatewayv1.ListenerReasonUnsupportedValue), unsupported)
		case first != nil && first.Protocol != source.Protocol:
			accepted = condition(v1alpha1.ConditionAccepted, metav1.ConditionFalse,
				string(gatewayv1.ListenerReasonProtocolConflict),
				fmt.Sprintf("listener %q already has port %d, with protocol %s: give this one another port", first.Name, number, first.Protocol))
			conflicted = condition(string(gatewayv1.ListenerConditionConflicted), metav1.ConditionTrue,
				string(gatewayv1.ListenerReasonProtocolConflict), accepted.Message)
		case clash:
			accepted = condition(v1alpha1.ConditionAccepted, metav1.ConditionFalse,
				string(gatewayv1.ListenerReasonHostnameConflict),
				fmt.Sprintf("listener %q already has port %d and the same hostname: change one of them", other, number))
			conflicted = condition(string(gatewayv1.ListenerConditionConflicted), metav1.ConditionTrue,
				string(gatewayv1.ListenerReasonHostnameConflict), accepted.Message)
		case b.in.OneHost && held && holder != gw.model.Key:
			accepted = condition(v1alpha1.ConditionAccepted, metav1.ConditionFalse,
				string(gatewayv1.ListenerReasonPortUnavailable),
				fmt.Sprintf("Gateway %s already listens on port %d of this host: change one of them", holder, number))
		default:
			claimed[claim] = status.Name
			taken[number] = gw.model.Key
			if first == nil {
				protocols[number] = source
			}
			made := &listener{
				source: source, index: i, hostname: hostname,
				port:  gw.port(number, b.in.OneHost),
				kinds: len(kinds) > 0,
				from:  allowedNamespaces(gw, source),
			}
			made.port.https = https
			made.port.listeners = append(made.port.listeners, made)
			gw.listeners = append(gw.listeners, made)
		}
		status.Conditions = []metav1.Condition{accepted, conflicted, resolved}
	}
}

func (gw *gateway) port(number int32, oneHost bool) *port {
	p := gw.ports[number]
	if p == nil {
		p = &port{number: number, bind: number, gateway: gw}
		if !oneHost && (number < 1024 || number == AgentPort || number == ProbePort) {
			// Ports below 1024 need a capability that gateway pods do not have,
			// and two are the pods' own. Above 10000 collisions are as unlikely
			// as they are visible: Bind moves on to a free one.
			p.bind = number + 10000
			for gw.binds(p.bind) {
				p.bind++
			}
		}
		gw.ports[number] = p
	}
	return p
}

func (gw *gateway) binds(bind int32) bool {
	for _, port := range gw.ports {
		if port.bind == bind {
			return true
		}
	}
	for _, listener := range gw.source.Spec.Listeners {
		if listener.Port == bind {
			return true
		}
	}
	return false
}

// serviceRouteKind is the kind that may attach where a listener names none.
var serviceRouteKind = gatewayv1.RouteGroupKind{
	Group: new(gatewayv1.Group(v1alpha1.GroupVersion.Group)), Kind: "ServiceRoute",
}

func allowedKinds(source *gatewayv1.Listener) (kinds []gatewayv1.RouteGroupKind, problem string) {
	if source.AllowedRoutes == nil || len(source.AllowedRoutes.Kinds) == 0 {
		return []gatewayv1.RouteGroupKind{serviceRouteKind}, ""
	}
	var unknown []string
	for _, kind := range source.AllowedRoutes.Kinds {
		group := gatewayv1.GroupName
		if kind.Group != nil {
			group = string(*kind.Group)
		}
		if group == v1alpha1.GroupVersion.Group && kind.Kind == serviceRouteKind.Kind {
			kinds = append(kinds, serviceRouteKind)
			continue
		}
		unknown = append(unknown, fmt.Sprintf("%s.%s", kind.Kind, group))
	}
	if len(unknown) > 0 {
		problem = fmt.Sprintf("allowedRoutes.kinds: %s not supported, only ServiceRoute.%s is",
			strings.Join(unknown, ", "), v1alpha1.GroupVersion.Group)
	}
	return kinds, problem
}

// allowedNamespaces tells from which namespaces routes may attach.
func allowedNamespaces(gw *gateway, source *gatewayv1.Listener) func(string, func(string) (labels.Set, bool)) bool {
	type labelsOf = func(string) (labels.Set, bool)
	always := func(is bool) func(string, labelsOf) bool { return func(string, labelsOf) bool { return is } }
	same := func(namespace string, _ labelsOf) bool { return namespace == gw.model.Namespace }
	if source.AllowedRoutes == nil || source.AllowedRoutes.Namespaces == nil || source.AllowedRoutes.Namespaces.From == nil {
		return same
	}
	switch *source.AllowedRoutes.Namespaces.From {
	case gatewayv1.NamespacesFromAll:
		return always(true)
	case gatewayv1.NamespacesFromSelector:
		selector, err := metav1.LabelSelectorAsSelector(source.AllowedRoutes.Namespaces.Selector)
		if err != nil {
			return always(false)
		}
		return func(namespace string, of labelsOf) bool {
			set, known := of(namespace)
			return known && selector.Matches(set)
		}
	case gatewayv1.NamespacesFromNone:
		return always(false)
	default:
		return same
	}
}

// CompareKeys orders keys by namespace, then by name.
func CompareKeys(a, b Key) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// emptyPorts are the ports that a gateway listens on, sorted by number.
func (gw *gateway) emptyPorts() []Port {
	ports := make([]Port, 0, len(gw.ports))
	for _, p := range gw.ports {
		ports = append(ports, Port{Number: p.number, Bind: p.bind, HTTPS: p.https, VirtualHosts: p.closedHosts()})
	}
	slices.SortFunc(ports, func(a, b Port) int { return cmp.Compare(a.Number, b.Number) })
	return ports
}
