package model

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
)

// Builder builds again and again, as Build does, and keeps what did not change:
// one change costs one object's work. What is the same as in its last Result is
// the same memory, so that whoever compares two Results need not look into it;
// it must not be changed. Nor must objects that were handed over: one counts as
// changed when its pointer has, unless an API server's own counting says that it
// is the same. The zero Builder is ready for use.
type Builder struct {
	count uint64 // builds so far

	classes    index[*gatewayv1.GatewayClass]
	gateways   index[*gatewayv1.Gateway]
	configs    index[*v1alpha1.GatewayConfig]
	services   index[*corev1.Service]
	namespaces index[*corev1.Namespace]
	grants     index[[]*gatewayv1.ReferenceGrant] // by namespace of the target

	frame   *frame // what every route depends on
	links   map[Key]*link
	hosts   map[hostKey]*host
	traffic map[*gateway]*traffic
	result  Result // without health and certificates

	health map[Key]map[string]Health // of gateways, as found last
	// unserved are statuses of routes, by what they are without certificates.
	unserved map[*RouteStatus]*RouteStatus
}

// link is a route with what it leads to, and where it may attach: as much of its
// judgement as does not depend on other routes.
type link struct {
	source *v1alpha1.ServiceRoute
	age    age
	made   uint64 // the build that made it
	seen   uint64 // the last one that had it
	reads  reads

	rules   []rule
	status  RouteStatus // without hosts and parents
	parents []attachment
	// brought is what it brings to gateways, now that it is known which of its
	// rules other routes were first with.
	brought []contribution
}

// age orders routes: who came first keeps what two claim.
type age struct {
	created time.Time
	Key
}

func compareAges(a, b age) int {
	return cmp.Or(a.created.Compare(b.created), CompareKeys(a.Key, b.Key))
}

// attachment is a parentRef of a route.
type attachment struct {
	status ParentStatus
	// gateway with the listeners that the route may attach to, and the hostnames
	// that it asks for there; nil where there is none.
	gateway   *gateway
	listeners []*listener
	hosts     []*host
	backends  []isolable
}

// contribution is what a route brings to a gateway that it is attached to.
type contribution struct {
	gateway   *gateway
	listeners []*listener
	clusters  []Cluster
	failovers []Failover
	backends  []isolable
}

// traffic is what the routes of a gateway amount to.
type traffic struct {
	clusters counts[string, Cluster]
	// failovers by name: it stands for all that they are.
	failovers counts[string, Failover]
	services  counts[Key, BackendService]
	isolated  map[Key]int // how many routes want it of a Service
	attached  map[*listener]int32
	ports     []Port
	// The lists are sorted.
	clusterList  []Cluster
	failoverList []Failover
	serviceList  []BackendService
}

// counts are values by name, each with how many have brought it.
type counts[K comparable, V any] map[K]*counted[V]

type counted[V any] struct {
	value V
	times int
}

func (c counts[K, V]) add(key K, value V) {
	if held := c[key]; held != nil {
		held.value = value
		held.times++
		return
	}
	c[key] = &counted[V]{value: value, times: 1}
}

func (c counts[K, V]) remove(key K) {
	if c[key].times--; c[key].times == 0 {
		delete(c, key)
	}
}

// changes is what becomes of elements of a list, by key: nil where they go.
type changes[K comparable, V any] map[K]*V

// of notes the present values of counts.
func (c changes[K, V]) of(now counts[K, V]) changes[K, V] {
	for key := range c {
		if held := now[key]; held != nil {
			c[key] = &held.value
		}
	}
	return c
}

// amend returns a sorted list with changes. The list itself stays as it is; it is
// returned where nothing changes.
func amend[K comparable, V any](list []V, keyOf func(V) K, compare func(a, b K) int, changed changes[K, V]) []V {
	if len(changed) == 0 {
		return list
	}
	amended := make([]V, 0, len(list)+len(changed))
	for _, key := range slices.SortedFunc(maps.Keys(changed), compare) {
		at, found := slices.BinarySearchFunc(list, key, func(v V, key K) int { return compare(keyOf(v), key) })
		amended = append(amended, list[:at]...)
		if list = list[at:]; found {
			list = list[1:]
		}
		if value := changed[key]; value != nil {
			amended = append(amended, *value)
		}
	}
	return append(amended, list...)
}

// Build is as the function Build.
func (b *Builder) Build(in Inputs) Result {
	return b.withCertificates(b.judgeHealth(b.build(in), in.HealthPolicies), in)
}

func (b *Builder) build(in Inputs) Result {
	b.count++
	anew := b.update(in)
	made, gone := b.linkRoutes(in.ServiceRoutes)
	if !anew && len(made)+len(gone) == 0 {
		return b.result
	}
	placed, touched := b.place(made, gone)
	b.bring(gone, touched)
	b.conclude(gone, touched, placed)
	return b.result
}

// ServiceRoute returns a route that was built last; nil where there is none.
func (b *Builder) ServiceRoute(key Key) *v1alpha1.ServiceRoute {
	if known := b.links[key]; known != nil {
		return known.source
	}
	return nil
}

// update takes note of the objects. It tells whether all routes have to be linked
// anew.
func (b *Builder) update(in Inputs) bool {
	changed := b.classes.update(b.count, byKey(in.GatewayClasses), sameSpec)
	changed = b.gateways.update(b.count, byKey(in.Gateways), sameSpec) || changed
	changed = b.configs.update(b.count, byKey(in.GatewayConfigs), sameSpec) || changed
	b.services.update(b.count, byKey(in.Services), sameVersion)
	b.namespaces.update(b.count, byKey(in.Namespaces), sameVersion)
	b.grants.update(b.count, grantsByNamespace(in.ReferenceGrants), func(a, b []*gatewayv1.ReferenceGrant) bool {
		return slices.EqualFunc(a, b, sameSpec)
	})
	if b.frame != nil && !changed && b.frame.in.GatewayAPI == in.GatewayAPI && b.frame.in.OneHost == in.OneHost && b.frame.in.IPv6 == in.IPv6 {
		return false
	}
	b.frame = newFrame(in)
	b.links, b.hosts, b.traffic = map[Key]*link{}, map[hostKey]*host{}, map[*gateway]*traffic{}
	b.result = Result{}
	for _, gw := range b.frame.sorted {
		b.traffic[gw] = &traffic{
			clusters: counts[string, Cluster]{}, failovers: counts[string, Failover]{}, services: counts[Key, BackendService]{},
			isolated: map[Key]int{}, attached: map[*listener]int32{}, ports: gw.emptyPorts(),
		}
	}
	return true
}

// linkRoutes links the routes that are not what they were, or of which something
// is not that they read. It returns these, and the links that are in force no
// more: of routes that went, or that were replaced by others.
func (b *Builder) linkRoutes(routes []*v1alpha1.ServiceRoute) (made, gone []*link) {
	for _, source := range routes {
		key := keyOf(source)
		known := b.links[key]
		if known != nil && sameSpec(known.source, source) && known.reads.unchanged(known.made, b.count) {
			known.source, known.seen = source, b.count
			continue
		}
		if known != nil {
			gone = append(gone, known)
		}
		b.links[key] = b.link(source)
		made = append(made, b.links[key])
	}
	if len(b.links) > len(routes) {
		for key, known := range b.links {
			if known.seen != b.count {
				delete(b.links, key)
				gone = append(gone, known)
			}
		}
	}
	return made, gone
}

// linker links one route.
type linker struct {
	*frame

	of    *Builder
	reads reads
}

func (b *linker) service(key Key) *corev1.Service {
	return b.of.services.get(&b.reads, b.of.count, key)
}

func (b *linker) grants(namespace string) []*gatewayv1.ReferenceGrant {
	return b.of.grants.get(&b.reads, b.of.count, Key{Name: namespace})
}

func (b *linker) namespaceLabels(namespace string) (of labels.Set, exists bool) {
	if object := b.of.namespaces.get(&b.reads, b.of.count, Key{Name: namespace}); object != nil {
		return object.Labels, true
	}
	return nil, false
}

// link judges a ServiceRoute by itself, and finds the listeners that it attaches
// to.
func (b *Builder) link(source *v1alpha1.ServiceRoute) *link {
	key := keyOf(source)
	by := &linker{frame: b.frame, of: b}
	made := &link{
		source: source, age: age{source.CreationTimestamp.Time, key}, made: b.count, seen: b.count,
		status: RouteStatus{Key: key, UID: string(source.UID), Generation: source.Generation},
	}
	rules, resolved := by.resolve(source)
	made.rules, made.status.Backends, made.status.Groups = rules, backendStatuses(rules), groups(rules)
	refs, refused := by.parents(source)
	if refused != nil {
		made.parents = append(made.parents, attachment{status: *refused})
	}
	for _, ref := range refs {
		parent, gw := by.parent(ref, key)
		if parent == nil {
			continue // another controller's Gateway
		}
		parent.Conditions = append(parent.Conditions, resolved)
		to := attachment{status: *parent}
		if gw != nil {
			by.claim(source, rules, gw, &to)
		}
		made.parents = append(made.parents, to)
	}
	made.reads = by.reads
	return made
}

// place gives hostnames to the links in the order of their age. It returns the
// hosts whose routes may be others than before, and the links that may have lost
// or won something by it.
func (b *Builder) place(made, gone []*link) (placed []*host, touched map[*link]bool) {
	claims := map[*host]changes[age, *link]{}
	claim := func(by *link, value **link) {
		for i := range by.parents {
			for _, host := range by.parents[i].hosts {
				if claims[host] == nil {
					claims[host] = changes[age, *link]{}
				}
				claims[host][by.age] = value
			}
		}
	}
	touched = map[*link]bool{}
	for _, link := range gone {
		claim(link, nil)
	}
	for _, link := range made {
		claim(link, &link)
		touched[link] = true
	}
	for host, changed := range claims {
		host.claims = amend(host.claims, func(l *link) age { return l.age }, compareAges, changed)
		before := host.lost
		host.place()
		for _, lost := range []map[*link]outcome{before, host.lost} {
			for link := range lost {
				touched[link] = true
			}
		}
		if len(host.claims) == 0 {
			delete(b.hosts, host.hostKey)
		}
		placed = append(placed, host)
	}
	for _, link := range gone {
		delete(touched, link)
	}
	return placed, touched
}

// bring joins what routes bring to gateways. It adds to touched the links whose
// status is another because of that.
func (b *Builder) bring(gone []*link, touched map[*link]bool) {
	moved := map[*gateway]*moves{}
	move := func(of []contribution, by func(*moves, *contribution)) {
		for i := range of {
			gw := of[i].gateway
			if moved[gw] == nil {
				moved[gw] = &moves{
					traffic: b.traffic[gw], clusters: changes[string, Cluster]{},
					failovers: changes[string, Failover]{}, services: changes[Key, BackendService]{},
				}
			}
			by(moved[gw], &of[i])
		}
	}
	for _, link := range gone {
		move(link.brought, (*moves).remove)
	}
	for link := range touched {
		brought := link.contributions()
		if reflect.DeepEqual(brought, link.brought) {
			continue
		}
		move(link.brought, (*moves).remove)
		move(brought, (*moves).add)
		link.brought = brought
	}
	for gw, moves := range moved {
		flipped := moves.settle()
		if len(flipped) == 0 {
			continue
		}
		// That a Service is isolated is told by all routes that lead to it.
		for _, link := range b.links {
			if link.leadsTo(gw, flipped) {
				touched[link] = true
			}
		}
	}
}

// moves are changes of a gateway's traffic.
type moves struct {
	*traffic

	clusters  changes[string, Cluster]
	failovers changes[string, Failover]
	services  changes[Key, BackendService]
}

func (m *moves) add(c *contribution) {
	for _, listener := range c.listeners {
		m.attached[listener]++
	}
	for _, cluster := range c.clusters {
		m.traffic.clusters.add(cluster.Name, cluster)
		m.clusters[cluster.Name] = nil
	}
	for _, failover := range c.failovers {
		m.traffic.failovers.add(failover.Name, failover)
		m.failovers[failover.Name] = nil
	}
	for _, backend := range c.backends {
		m.traffic.services.add(backend.Key, backend.BackendService)
		m.services[backend.Key] = nil
		if backend.wanted {
			m.isolated[backend.Key]++
		}
	}
}

func (m *moves) remove(c *contribution) {
	for _, listener := range c.listeners {
		m.attached[listener]--
	}
	for _, cluster := range c.clusters {
		m.traffic.clusters.remove(cluster.Name)
		m.clusters[cluster.Name] = nil
	}
	for _, failover := range c.failovers {
		m.traffic.failovers.remove(failover.Name)
		m.failovers[failover.Name] = nil
	}
	for _, backend := range c.backends {
		m.traffic.services.remove(backend.Key)
		m.services[backend.Key] = nil
		if backend.wanted {
			if m.isolated[backend.Key]--; m.isolated[backend.Key] == 0 {
				delete(m.isolated, backend.Key)
			}
		}
	}
}

// settle brings the lists up to date, and returns the Services that are isolated
// now and were not, or the other way round.
func (m *moves) settle() (flipped map[Key]bool) {
	flipped = map[Key]bool{}
	for key := range m.services {
		held := m.traffic.services[key]
		if held == nil {
			continue
		}
		held.value.Isolated = held.value.Selector != "" && m.isolated[key] > 0
		at, was := slices.BinarySearchFunc(m.serviceList, key, func(s BackendService, key Key) int { return CompareKeys(s.Key, key) })
		if held.value.Isolated != (was && m.serviceList[at].Isolated) {
			flipped[key] = true
		}
	}
	m.clusterList = amend(m.clusterList, func(c Cluster) string { return c.Name }, strings.Compare, m.clusters.of(m.traffic.clusters))
	m.failoverList = amend(m.failoverList, func(f Failover) string { return f.Name }, strings.Compare, m.failovers.of(m.traffic.failovers))
	m.serviceList = amend(m.serviceList, func(s BackendService) Key { return s.Key }, CompareKeys, m.services.of(m.traffic.services))
	return flipped
}

// contributions are what a link brings to the gateways that it is attached to,
// each once.
func (l *link) contributions() []contribution {
	var all []contribution
	for i := range l.parents {
		to := &l.parents[i]
		if attached, _, _ := to.attached(l); !attached {
			continue
		}
		at := slices.IndexFunc(all, func(c contribution) bool { return c.gateway == to.gateway })
		if at < 0 {
			at, all = len(all), append(all, contribution{gateway: to.gateway, backends: to.backends})
			for _, rule := range l.rules {
				for _, cluster := range rule.clusters {
					if !slices.ContainsFunc(all[at].clusters, func(c Cluster) bool { return c.Name == cluster.Name }) {
						all[at].clusters = append(all[at].clusters, cluster)
					}
				}
				for _, failover := range rule.failovers {
					if !slices.ContainsFunc(all[at].failovers, func(f Failover) bool { return f.Name == failover.Name }) {
						all[at].failovers = append(all[at].failovers, failover)
					}
				}
			}
		}
		for _, listener := range to.listeners {
			if !slices.Contains(all[at].listeners, listener) { // not yet through another parentRef
				all[at].listeners = append(all[at].listeners, listener)
			}
		}
	}
	return all
}

// leadsTo tells whether a link is attached to a gateway and leads to one of these
// Services.
func (l *link) leadsTo(gw *gateway, services map[Key]bool) bool {
	return slices.ContainsFunc(l.brought, func(c contribution) bool {
		return c.gateway == gw && slices.ContainsFunc(c.backends, func(b isolable) bool { return services[b.Key] })
	})
}

// conclude brings the result up to date: with the statuses of these routes and
// the routes of these hosts.
func (b *Builder) conclude(gone []*link, touched map[*link]bool, placed []*host) {
	judged := changes[Key, *RouteStatus]{}
	for _, link := range gone {
		judged[link.age.Key] = nil
	}
	for link := range touched {
		status := b.judge(link)
		judged[link.age.Key] = &status
	}
	result := Result{
		Classes: b.frame.classList, Foreign: b.frame.foreign,
		Routes: amend(b.result.Routes, func(s *RouteStatus) Key { return s.Key }, CompareKeys, judged),
	}
	hosts := map[*gateway]map[int32]changes[string, VirtualHost]{}
	for _, host := range placed {
		if hosts[host.gateway] == nil {
			hosts[host.gateway] = map[int32]changes[string, VirtualHost]{}
		}
		of := hosts[host.gateway]
		if of[host.port] == nil {
			of[host.port] = changes[string, VirtualHost]{}
		}
		of[host.port][host.hostname] = nil
		if len(host.routes) > 0 || host.gateway.ports[host.port].closes(host.hostname) {
			of[host.port][host.hostname] = &VirtualHost{Hostname: host.hostname, Routes: host.routes}
		}
	}
	for _, gw := range b.frame.sorted {
		traffic := b.traffic[gw]
		status := gw.status
		status.Listeners = slices.Clone(status.Listeners)
		for listener, attached := range traffic.attached {
			status.Listeners[listener.index].AttachedRoutes = attached
		}
		result.GatewayStatuses = append(result.GatewayStatuses, status)
		if len(gw.listeners) == 0 {
			continue
		}
		traffic.ports = slices.Clone(traffic.ports) // the last result has the old ones
		for i := range traffic.ports {
			port := &traffic.ports[i]
			port.VirtualHosts = amend(port.VirtualHosts, func(h VirtualHost) string { return h.Hostname }, strings.Compare, hosts[gw][port.Number])
		}
		model := gw.model
		model.Ports, model.Services = traffic.ports, traffic.serviceList
		model.Clusters, model.Failovers = traffic.clusterList, traffic.failoverList
		result.Gateways = append(result.Gateways, model)
	}
	b.result = result
}
