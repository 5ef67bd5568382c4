package model

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
)

// Build links, defaults and validates, and tells of every object how it was
// judged.
func Build(in Inputs) Result {
	b := newBuilder(in)
	b.classStatuses()
	b.gateways()
	for _, route := range oldestFirst(in.ServiceRoutes) {
		b.route(route)
	}
	return b.result()
}

// builder holds the indexes over the inputs and what is built so far.
type builder struct {
	in         Inputs
	classes    map[string]*gatewayv1.GatewayClass
	allGateway map[Key]*gatewayv1.Gateway
	configs    map[Key]*v1alpha1.GatewayConfig
	services   map[Key]*corev1.Service
	namespaces map[string]labels.Set
	grants     map[string][]*gatewayv1.ReferenceGrant // by namespace of the target

	classList []ClassStatus
	foreign   []Key
	built     map[Key]*gateway // gateways of this operator
	routes    []RouteStatus
}

// gateway is a Gateway while it is built.
type gateway struct {
	source    *gatewayv1.Gateway
	model     Gateway
	status    GatewayStatus
	listeners []*listener
	ports     map[int32]*port
	clusters  map[string]Cluster
	services  map[Key]BackendService
	isolation v1alpha1.BackendPolicy
}

// listener is a listener that serves.
type listener struct {
	source   *gatewayv1.Listener
	status   *ListenerStatus
	hostname string // "" for any
	port     *port
	kinds    bool // ServiceRoute may attach
	from     func(namespace string) bool
	counted  *v1alpha1.ServiceRoute // the last one in status.AttachedRoutes
}

// port collects virtual hosts of all listeners on one port number.
type port struct {
	number, bind int32
	hosts        map[string]*virtualHost
}

type virtualHost struct {
	routes []rankedRoute
	owner  map[string]string // match key → who has it, for messages
}

func newBuilder(in Inputs) *builder {
	b := &builder{
		in:         in,
		classes:    make(map[string]*gatewayv1.GatewayClass, len(in.GatewayClasses)),
		allGateway: make(map[Key]*gatewayv1.Gateway, len(in.Gateways)),
		configs:    make(map[Key]*v1alpha1.GatewayConfig, len(in.GatewayConfigs)),
		services:   make(map[Key]*corev1.Service, len(in.Services)),
		namespaces: make(map[string]labels.Set, len(in.Namespaces)),
		grants:     make(map[string][]*gatewayv1.ReferenceGrant),
		built:      make(map[Key]*gateway),
		routes:     make([]RouteStatus, 0, len(in.ServiceRoutes)),
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
	for _, service := range in.Services {
		b.services[keyOf(service)] = service
	}
	for _, namespace := range in.Namespaces {
		b.namespaces[namespace.Name] = labels.Set(namespace.Labels)
	}
	for _, grant := range in.ReferenceGrants {
		b.grants[grant.Namespace] = append(b.grants[grant.Namespace], grant)
	}
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

func (b *builder) classStatuses() {
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

func (b *builder) gateways() {
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
			source:   source,
			model:    Gateway{Key: key, Class: class.Name, UID: string(source.UID)},
			status:   GatewayStatus{Key: key, Generation: source.Generation},
			ports:    map[int32]*port{},
			clusters: map[string]Cluster{},
			services: map[Key]BackendService{},
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
	}
}

func (b *builder) listeners(gw *gateway, taken map[int32]Key) {
	gw.status.Listeners = make([]ListenerStatus, len(gw.source.Spec.Listeners))
	claimed := map[string]string{} // port and hostname → listener
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

		claim := fmt.Sprintf("%d %s", number, hostname)
		other, clash := claimed[claim]
		switch holder, held := taken[number]; {
		case source.Protocol != gatewayv1.HTTPProtocolType:
			accepted = condition(v1alpha1.ConditionAccepted, metav1.ConditionFalse,
				string(gatewayv1.ListenerReasonUnsupportedProtocol),
				fmt.Sprintf("protocol %s is not supported: use HTTP", source.Protocol))
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
			gw.listeners = append(gw.listeners, &listener{
				source: source, status: status, hostname: hostname,
				port:  gw.port(number, b.in.OneHost),
				kinds: len(kinds) > 0,
				from:  b.allowedNamespaces(gw, source),
			})
		}
		status.Conditions = []metav1.Condition{accepted, conflicted, resolved}
	}
}

func (gw *gateway) port(number int32, oneHost bool) *port {
	p := gw.ports[number]
	if p == nil {
		p = &port{number: number, bind: number, hosts: map[string]*virtualHost{}}
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

func (b *builder) allowedNamespaces(gw *gateway, source *gatewayv1.Listener) func(string) bool {
	same := func(namespace string) bool { return namespace == gw.model.Namespace }
	if source.AllowedRoutes == nil || source.AllowedRoutes.Namespaces == nil || source.AllowedRoutes.Namespaces.From == nil {
		return same
	}
	switch *source.AllowedRoutes.Namespaces.From {
	case gatewayv1.NamespacesFromAll:
		return func(string) bool { return true }
	case gatewayv1.NamespacesFromSelector:
		selector, err := metav1.LabelSelectorAsSelector(source.AllowedRoutes.Namespaces.Selector)
		if err != nil {
			return func(string) bool { return false }
		}
		return func(namespace string) bool {
			set, known := b.namespaces[namespace]
			return known && selector.Matches(set)
		}
	case gatewayv1.NamespacesFromNone:
		return func(string) bool { return false }
	default:
		return same
	}
}

func (b *builder) result() Result {
	result := Result{Classes: b.classList, Routes: b.routes, Foreign: b.foreign}
	for _, gw := range b.built {
		result.GatewayStatuses = append(result.GatewayStatuses, gw.status)
		if len(gw.listeners) > 0 {
			result.Gateways = append(result.Gateways, gw.finish())
		}
	}
	slices.SortFunc(result.Classes, func(a, b ClassStatus) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(result.Gateways, func(a, b Gateway) int { return compareKeys(a.Key, b.Key) })
	slices.SortFunc(result.GatewayStatuses, func(a, b GatewayStatus) int { return compareKeys(a.Key, b.Key) })
	slices.SortFunc(result.Foreign, compareKeys)
	slices.SortFunc(result.Routes, func(a, b RouteStatus) int { return compareKeys(a.Key, b.Key) })
	return result
}

func compareKeys(a, b Key) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// finish turns what was collected into sorted, plain values.
func (gw *gateway) finish() Gateway {
	model := gw.model
	for _, p := range gw.ports {
		port := Port{Number: p.number, Bind: p.bind}
		for hostname, host := range p.hosts {
			slices.SortStableFunc(host.routes, compareRoutes)
			virtualHost := VirtualHost{Hostname: hostname, Routes: make([]Route, len(host.routes))}
			for i, ranked := range host.routes {
				virtualHost.Routes[i] = ranked.Route
			}
			port.VirtualHosts = append(port.VirtualHosts, virtualHost)
		}
		slices.SortFunc(port.VirtualHosts, func(a, b VirtualHost) int { return cmp.Compare(a.Hostname, b.Hostname) })
		model.Ports = append(model.Ports, port)
	}
	slices.SortFunc(model.Ports, func(a, b Port) int { return cmp.Compare(a.Number, b.Number) })
	for _, cluster := range gw.clusters {
		model.Clusters = append(model.Clusters, cluster)
	}
	slices.SortFunc(model.Clusters, func(a, b Cluster) int { return cmp.Compare(a.Name, b.Name) })
	for _, service := range gw.services {
		model.Services = append(model.Services, service)
	}
	slices.SortFunc(model.Services, func(a, b BackendService) int { return compareKeys(a.Key, b.Key) })
	return model
}
