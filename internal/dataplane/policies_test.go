package dataplane

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/internal/model"
)

// policyWorld is a world with network policies: what NetworkPolicies asks for is
// done, and seen, when write is called.
type policyWorld struct {
	*world

	t *testing.T
}

var testNames = &PolicyNames{
	Gateway: func(gw model.Gateway) model.Key { return gw.Key },
	Egress: func(gw model.Gateway, service model.Key) model.Key {
		return model.Key{Namespace: gw.Namespace, Name: gw.Name + "." + service.Name}
	},
	Isolation: func(service model.Key) model.Key {
		return model.Key{Namespace: service.Namespace, Name: service.Name + ".isolation"}
	},
	Pods: func(gw model.Gateway) model.Peer {
		return model.Peer{Namespace: gw.Namespace, Pods: "gateway=" + gw.Name}
	},
}

// newPolicyWorld has a gateway that was restricted long ago, with the routes a
// and b to Services of the same names.
func newPolicyWorld(t *testing.T) *policyWorld {
	t.Helper()
	w := &policyWorld{world: newWorld(t), t: t}
	w.names = testNames
	w.now = time.Unix(1_000_000, 0)
	for _, service := range w.in.Services {
		service.Spec.Selector = map[string]string{"app": service.Name}
		service.Spec.Ports[0].TargetPort = intstr.FromString("http")
	}
	w.configure()
	w.write()
	w.SetPolicy(edge, &model.Policy{Pods: "gateway=edge"}, time.Time{})
	w.later(time.Hour)
	return w
}

// add makes a Service with an endpoint, as a pod of the Service has it.
func (w *policyWorld) add(name, address string, labels ...string) *corev1.Service {
	service := newService(name, "http")
	service.Spec.Selector = map[string]string{"app": name}
	service.Spec.Ports[0].TargetPort = intstr.FromString("http")
	if len(labels) > 0 {
		service.Labels = map[string]string{labels[0]: labels[1]}
	}
	w.in.Services = append(w.in.Services, service)
	w.slices[model.Key{Namespace: "shop", Name: name}] = newSlices("http", address)
	return service
}

func (w *policyWorld) later(by time.Duration) {
	w.now = w.now.Add(by)
	w.configure()
}

// write does what is to be done about policies.
//
// Who looks at all policies must find no more to do than who looks at what is new.
func (w *policyWorld) write() {
	w.t.Helper()
	anyStale, stale, lingers, policies := w.anyStale, maps.Clone(w.stale), maps.Clone(w.lingering), maps.Clone(w.policies)
	guards := map[model.Key]guarded{}
	for key, gw := range w.gateways {
		guards[key] = gw.guarded
	}
	w.anyStale = true
	whole, wholeRecheck := w.NetworkPolicies(w.now)
	w.anyStale, w.stale, w.lingering, w.policies = anyStale, stale, lingers, policies
	for key, gw := range w.gateways {
		gw.guarded = guards[key]
	}
	changes, recheck := w.NetworkPolicies(w.now)
	if diff := cmp.Diff(whole, changes, cmpopts.IgnoreFields(PolicyObject{}, "Gateway"), cmpopts.EquateEmpty()); diff != "" || recheck != wholeRecheck {
		w.t.Errorf("(-all policies +what is new): again in %v, or in %v\n%s", wholeRecheck, recheck, diff)
	}
	for _, object := range changes.Apply {
		w.SetPolicy(object.Key, &object.Policy, w.now)
	}
	for _, key := range changes.Delete {
		w.SetPolicy(key, nil, w.now)
	}
}

// inCluster are the policies, each with its rules.
func (w *policyWorld) inCluster() string {
	var lines []string
	for key, policy := range w.policies {
		if key == edge {
			continue
		}
		line := key.Name + ":"
		for _, rule := range policy.Rules {
			line += fmt.Sprintf(" %s%s:%d", rule.Pods, rule.CIDR, rule.Port)
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// sends tells where the gateway was told to send requests, by path.
func (w *policyWorld) sends() string {
	gw := w.gateways[edge]
	var lines []string
	for _, port := range gw.told.Ports {
		for _, host := range port.VirtualHosts {
			for _, route := range host.Routes {
				line := route.Match.Path
				for _, backend := range route.Backends {
					line += " " + strings.TrimPrefix(backend.Cluster, "shop/")
					var to []string
					for _, endpoint := range gw.reach[backend.Cluster].given {
						to = append(to, fmt.Sprintf(" %s:%d", endpoint.Address, endpoint.Port))
					}
					slices.Sort(to)
					line += strings.Join(to, "")
				}
				lines = append(lines, line)
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func (w *policyWorld) wants(t *testing.T, when string, got string, lines ...string) {
	t.Helper()
	if diff := cmp.Diff(strings.Join(lines, "\n"), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", when, diff)
	}
}

const (
	sendsA = "/a a/80 10.0.0.1:8080"
	sendsB = "/b b/80 10.0.0.2:8080"
	letA   = "edge.a: app=a:8080"
	letB   = "edge.b: app=b:8080"
)

func TestANewBackendWaitsForItsPolicy(t *testing.T) {
	w := newPolicyWorld(t)
	w.connect(t)
	w.applied(t)
	w.add("c", "10.0.0.3")
	w.in.ServiceRoutes = append(w.in.ServiceRoutes, newRoute("c", "/c"))
	w.configure()
	w.wants(t, "before the policy is there", w.sends(), sendsA, sendsB)
	if got := w.programmed(t, "c"); got != "False WaitingForNetworkPolicy" {
		t.Errorf("the route says %s", got)
	}
	if got := w.programmed(t, "a"); got != "True Programmed" {
		t.Errorf("its neighbour says %s", got)
	}
	if w.Waiting() {
		t.Error("a build would be of use while the policy is not there")
	}

	w.write()
	w.wants(t, "policies", w.inCluster(), letA, letB, "edge.c: app=c:8080")
	if !w.Waiting() {
		t.Error("a build is of no use although the policy is there")
	}
	w.later(0)
	w.wants(t, "afterwards", w.sends(), sendsA, sendsB, "/c c/80 10.0.0.3:8080")
	w.until(t, "programmed", func() bool { return w.programmed(t, "c") == "True Programmed" })
}

// Nobody waits for a mirror: its policy is made, and its copies begin when that
// is there.
func TestAMirrorHoldsNothingBack(t *testing.T) {
	w := newPolicyWorld(t)
	w.connect(t)
	w.applied(t)
	w.add("c", "10.0.0.3")
	mirrored := changed(newRoute("a", "/mirrored"), 2)
	mirrored.Spec.Rules[0].Mirrors = []v1alpha1.Mirror{{Name: "c", Port: intstr.FromInt32(80)}}
	w.in.ServiceRoutes[0] = mirrored
	w.configure()
	w.wants(t, "before the policy is there", w.sends(), sendsB, "/mirrored a/80 10.0.0.1:8080")
	copies := func() int { return len(w.gateways[edge].reach["shop/c/80"].given) }
	if copies() != 0 {
		t.Error("copies are sent where no policy lets them through")
	}
	w.write()
	w.wants(t, "policies", w.inCluster(), letA, letB, "edge.c: app=c:8080")
	w.later(settle)
	if copies() != 1 {
		t.Error("no copies are sent")
	}
	w.until(t, "programmed", func() bool { return w.programmed(t, "a") == "True Programmed" })
}

func TestAChangedRouteServesOnAsItWas(t *testing.T) {
	w := newPolicyWorld(t)
	w.connect(t)
	w.add("c", "10.0.0.3")
	moved := changed(newRoute("a", "/moved"), 2)
	moved.Spec.Rules[0].Backends[0].Name = "c"
	w.in.ServiceRoutes[0] = moved
	w.configure()
	w.wants(t, "while its new backend waits", w.sends(), sendsA, sendsB)
	if got := w.programmed(t, "a"); got != "False WaitingForNetworkPolicy" {
		t.Errorf("the route says %s", got)
	}
	// A neighbour's change goes out all the same.
	w.in.ServiceRoutes[1] = changed(newRoute("b", "/b2"), 2)
	w.configure()
	w.wants(t, "with a neighbour's change", w.sends(), sendsA, "/b2 b/80 10.0.0.2:8080")

	w.write()
	w.wants(t, "policies", w.inCluster(), letA, letB, "edge.c: app=c:8080")
	w.configure()
	w.wants(t, "afterwards", w.sends(), "/b2 b/80 10.0.0.2:8080", "/moved c/80 10.0.0.3:8080")
	w.write()
	w.wants(t, "policies right afterwards", w.inCluster(), letA, letB, "edge.c: app=c:8080")
	w.applied(t)
	w.write()
	w.later(grace)
	w.write()
	w.wants(t, "policies when all have acknowledged", w.inCluster(), letB, "edge.c: app=c:8080")
}

func TestAPolicyGoesWhenEveryPodHasDoneWithoutIt(t *testing.T) {
	w := newPolicyWorld(t)
	envoy := w.connect(t)
	w.applied(t)
	envoy.answer(silent)
	w.in.ServiceRoutes = w.in.ServiceRoutes[1:]
	w.configure()
	w.write()
	w.later(20 * time.Second)
	w.write()
	w.wants(t, "while a pod may still use it", w.inCluster(), letA, letB)
	envoy.answer(accept)
	w.applied(t)
	w.write()
	w.later(grace - 1)
	w.write()
	w.wants(t, "while requests may be under way", w.inCluster(), letA, letB)
	if _, recheck := w.NetworkPolicies(w.now); recheck != 1 {
		t.Errorf("looks again in %s", recheck)
	}
	w.later(1)
	w.write()
	w.wants(t, "afterwards", w.inCluster(), letB)
}

func TestAPolicyGoesInTheEnd(t *testing.T) {
	w := newPolicyWorld(t)
	envoy := w.connect(t)
	w.applied(t)
	envoy.answer(silent)
	w.in.ServiceRoutes = w.in.ServiceRoutes[1:]
	w.configure()
	w.write()
	w.later(most - 1)
	w.write()
	w.wants(t, "while a pod may still use it", w.inCluster(), letA, letB)
	w.later(1)
	w.write()
	w.wants(t, "at the latest", w.inCluster(), letB)
}

// A route that comes back before its policy is gone finds it, and one that comes
// back afterwards waits for a new one.
func TestARouteThatComesBack(t *testing.T) {
	w := newPolicyWorld(t)
	routes := w.in.ServiceRoutes
	w.in.ServiceRoutes = routes[1:]
	w.configure()
	w.write()
	w.later(grace / 2)
	w.in.ServiceRoutes = routes
	w.configure()
	w.wants(t, "while the policy is there", w.sends(), sendsA, sendsB)
	w.later(time.Hour)
	w.write()
	w.wants(t, "the policy", w.inCluster(), letA, letB)

	w.in.ServiceRoutes = routes[1:]
	w.configure()
	w.write()
	w.later(grace)
	w.NetworkPolicies(w.now) // is being deleted
	w.in.ServiceRoutes = routes
	w.configure()
	w.wants(t, "while the policy is being deleted", w.sends(), sendsB)
	w.SetPolicy(model.Key{Namespace: "shop", Name: "edge.a"}, nil, w.now)
	w.write()
	w.later(settle)
	w.wants(t, "with a new policy", w.sends(), sendsA, sendsB)
}

func TestPodsOnAnotherPort(t *testing.T) {
	w := newPolicyWorld(t)
	envoy := w.connect(t)
	w.applied(t)
	a := model.Key{Namespace: "shop", Name: "a"}
	at := func(port int32, address string) *discoveryv1.EndpointSlice {
		slice := newSlices("http", address)[0]
		slice.Ports[0].Port = &port
		return slice
	}
	w.SetEndpoints(a, []*discoveryv1.EndpointSlice{at(8080, "10.0.0.1"), at(9090, "10.0.0.9")}, time.Time{})
	w.wants(t, "the new pod before it is let through", w.sends(), sendsA, sendsB)
	w.write()
	w.wants(t, "policies", w.inCluster(), "edge.a: app=a:8080 app=a:9090", letB)
	w.later(settle)
	envoy.has(t, "10.0.0.1:8080 10.0.0.9:9090", "shop/a/80")

	envoy.answer(silent)
	w.SetEndpoints(a, []*discoveryv1.EndpointSlice{at(9090, "10.0.0.9")}, time.Time{})
	w.write()
	w.later(grace)
	w.write()
	w.wants(t, "policies while a pod may still use the old one", w.inCluster(), "edge.a: app=a:8080 app=a:9090", letB)
	envoy.answer(accept)
	w.applied(t)
	w.write()
	w.wants(t, "policies when the old pod has gone", w.inCluster(), "edge.a: app=a:8080 app=a:9090", letB)
	w.later(grace)
	w.write()
	w.wants(t, "policies a little later", w.inCluster(), "edge.a: app=a:9090", letB)

	// All at once: the old may still answer.
	w.SetEndpoints(a, []*discoveryv1.EndpointSlice{at(7070, "10.0.0.9")}, time.Time{})
	w.wants(t, "all pods on another port", w.sends(), "/a a/80 10.0.0.9:9090", sendsB)
	if got := w.programmed(t, "a"); got != "False WaitingForNetworkPolicy" {
		t.Errorf("the route says %s", got)
	}
	w.write()
	w.later(settle)
	w.wants(t, "when they are let through", w.sends(), "/a a/80 10.0.0.9:7070", sendsB)
	w.SetEndpoints(a, nil, time.Time{})
	w.wants(t, "without pods", w.sends(), "/a a/80", sendsB)
}

// What Envoy has is never taken away, even if somebody deletes the policy.
func TestEndpointsStayWithoutTheirPolicy(t *testing.T) {
	w := newPolicyWorld(t)
	w.SetPolicy(model.Key{Namespace: "shop", Name: "edge.a"}, nil, w.now)
	w.SetEndpoints(model.Key{Namespace: "shop", Name: "a"}, newSlices2("10.0.0.1", "10.0.0.9"), time.Time{})
	w.wants(t, "without the policy", w.sends(), sendsA, sendsB)
	w.write()
	w.later(settle)
	w.wants(t, "with a new one", w.sends(), sendsA+" 10.0.0.9:8080", sendsB)
}

// newSlices2 has an endpoint for each address.
func newSlices2(addresses ...string) []*discoveryv1.EndpointSlice {
	all := newSlices("http", addresses[0])
	for _, address := range addresses[1:] {
		all[0].Endpoints = append(all[0].Endpoints, discoveryv1.Endpoint{Addresses: []string{address}})
	}
	return all
}

// A rule that is being removed from a policy does not count any more.
func TestARuleOnItsWayOut(t *testing.T) {
	w := newPolicyWorld(t)
	a := model.Key{Namespace: "shop", Name: "a"}
	slices := func(port int32) []*discoveryv1.EndpointSlice {
		slices := newSlices("http", "10.0.0.1")
		slices[0].Ports[0].Port = &port
		return slices
	}
	w.SetEndpoints(a, slices(9090), time.Time{})
	w.write()
	w.later(settle)
	w.write()
	w.later(grace)
	changes, _ := w.NetworkPolicies(w.now) // port 8080 goes
	w.SetEndpoints(a, slices(8080), time.Time{})
	w.wants(t, "back on the old port", w.sends(), "/a a/80 10.0.0.1:9090", sendsB)
	for _, object := range changes.Apply {
		w.SetPolicy(object.Key, &object.Policy, w.now)
	}
	w.write()
	w.later(settle)
	w.wants(t, "when it is let through again", w.sends(), sendsA, sendsB)
}

// Pods that are not ready yet have their policy already.
func TestPodsThatAreNotReady(t *testing.T) {
	w := newPolicyWorld(t)
	a := model.Key{Namespace: "shop", Name: "a"}
	slices := newSlices("http", "10.0.0.5")
	slices[0].Ports[0].Port = new(int32(9090))
	slices[0].Endpoints[0].Conditions.Ready = new(false)
	w.SetEndpoints(a, slices, time.Time{})
	w.write()
	w.later(settle)
	slices = newSlices("http", "10.0.0.5")
	slices[0].Ports[0].Port = new(int32(9090))
	w.SetEndpoints(a, slices, time.Time{})
	w.wants(t, "as soon as it is ready", w.sends(), "/a a/80 10.0.0.5:9090", sendsB)
}

func TestAnotherSelector(t *testing.T) {
	w := newPolicyWorld(t)
	w.connect(t)
	w.applied(t)
	service := *w.in.Services[0]
	service.Spec.Selector = map[string]string{"app": "green"}
	w.in.Services[0] = &service
	w.configure()
	w.write()
	w.wants(t, "while the old pods serve", w.inCluster(), "edge.a: app=a:8080 app=green:8080", letB)
	w.later(grace)
	w.write()
	w.wants(t, "however long that takes", w.inCluster(), "edge.a: app=a:8080 app=green:8080", letB)
	w.SetEndpoints(model.Key{Namespace: "shop", Name: "a"}, newSlices("http", "10.0.0.7"), time.Time{})
	w.wants(t, "the new pods", w.sends(), "/a a/80 10.0.0.7:8080", sendsB)
	w.applied(t)
	w.write()
	w.later(grace)
	w.write()
	w.wants(t, "when the old pods have gone", w.inCluster(), "edge.a: app=green:8080", letB)
}

// What a manager finds at its start, be it new here or just restarted, it leaves
// as it is; a gateway is restricted once it is let through to everything.
func TestTheFirstBuildHoldsNothingBack(t *testing.T) {
	w := &policyWorld{world: newWorld(t), t: t}
	w.names, w.now = testNames, time.Unix(1_000_000, 0)
	w.configure()
	w.wants(t, "without any policy", w.sends(), sendsA, sendsB)
	if w.PoliciesInForce(edge, w.now) || w.AllPoliciesInForce(w.now) {
		t.Error("policies are in force that are not there")
	}
	w.write()
	w.wants(t, "policies of Services without selector", w.inCluster(), "edge.a: 10.0.0.1/32:8080", "edge.b: 10.0.0.2/32:8080")
	w.later(settle - 1)
	if w.PoliciesInForce(edge, w.now) {
		t.Error("policies are in force that have not settled")
	}
	w.later(1)
	if !w.PoliciesInForce(edge, w.now) || !w.AllPoliciesInForce(w.now) {
		t.Error("policies are not in force")
	}
}

func TestWhoIsNotRestrictedNeedsNoPolicy(t *testing.T) {
	w := newPolicyWorld(t)
	w.in.GatewayConfigs = []*v1alpha1.GatewayConfig{{
		Namespace: "shop", Name: "off", Spec: v1alpha1.GatewayConfigSpec{
			NetworkPolicy: &v1alpha1.NetworkPolicy{Gateway: new(v1alpha1.GatewayPolicyOff)},
		},
	}}
	w.in.Gateways[0].Spec.Infrastructure = &gatewayv1.GatewayInfrastructure{ParametersRef: &gatewayv1.LocalParametersReference{
		Group: "meshroute.io", Kind: "GatewayConfig", Name: "off",
	}}
	w.configure()
	changes, _ := w.NetworkPolicies(w.now)
	if diff := cmp.Diff(PolicyChanges{Delete: []model.Key{edge}}, changes); diff != "" {
		t.Errorf("first goes what restricts it (-want +got):\n%s", diff)
	}
	w.write()
	w.write()
	w.wants(t, "policies", w.inCluster(), "")
	w.add("c", "10.0.0.3")
	w.in.ServiceRoutes = append(w.in.ServiceRoutes, newRoute("c", "/c"))
	w.configure()
	w.wants(t, "a new backend", w.sends(), sendsA, sendsB, "/c c/80 10.0.0.3:8080")

	// Restricted again: nothing is taken away, and a new backend waits.
	w.in.Gateways[0].Spec.Infrastructure = nil
	w.add("d", "10.0.0.4")
	w.in.ServiceRoutes = append(w.in.ServiceRoutes, newRoute("d", "/d"))
	w.configure()
	w.wants(t, "with policies on the way", w.sends(), sendsA, sendsB, "/c c/80 10.0.0.3:8080")
	w.write()
	w.later(settle)
	w.wants(t, "with policies", w.sends(), sendsA, sendsB, "/c c/80 10.0.0.3:8080", "/d d/80 10.0.0.4:8080")
}

func TestIsolation(t *testing.T) {
	w := newPolicyWorld(t)
	service := *w.in.Services[0]
	service.Labels = map[string]string{v1alpha1.IsolationLabel: v1alpha1.IsolationGateway}
	w.in.Services[0] = &service
	second := newGateway(gatewayv1.HTTPProtocolType)
	second.Name = "second"
	second.Spec.Listeners[0].AllowedRoutes = &gatewayv1.AllowedRoutes{Namespaces: &gatewayv1.RouteNamespaces{From: new(gatewayv1.NamespacesFromAll)}}
	w.in.Gateways = append(w.in.Gateways, second)
	both := changed(newRoute("a", "/a"), 2)
	both.Spec.ParentRefs = append(both.Spec.ParentRefs, gatewayv1.ParentReference{Name: "second"})
	w.in.ServiceRoutes[0] = both
	w.configure()
	w.write()
	w.later(settle)
	isolated := "a.isolation: gateway=edge:8080 gateway=second:8080"
	w.wants(t, "all gateways at once", w.inCluster(), isolated, letA, letB, "second.a: app=a:8080")

	// One stops to route there.
	w.in.ServiceRoutes[0] = changed(newRoute("a", "/a"), 3)
	w.configure()
	w.write()
	w.later(grace)
	w.write()
	w.wants(t, "without the second", w.inCluster(), "a.isolation: gateway=edge:8080", letA, letB)

	// And comes back: its requests wait until it is let in.
	w.in.ServiceRoutes[0] = changed(both.DeepCopy(), 4)
	w.configure()
	if told := w.gateways[model.Key{Namespace: "shop", Name: "second"}].told; len(told.Clusters) > 0 {
		t.Error("the second gateway was told of a backend that does not answer it")
	}
	w.wants(t, "the first gateway", w.sends(), sendsA, sendsB)
	w.write()
	w.later(settle)
	if told := w.gateways[model.Key{Namespace: "shop", Name: "second"}].told; len(told.Clusters) != 1 {
		t.Error("the second gateway was not told")
	}
	w.wants(t, "with the second", w.inCluster(), isolated, letA, letB, "second.a: app=a:8080")

	// The label goes, and with it the isolation.
	service2 := service
	service2.Labels = nil
	w.in.Services[0] = &service2
	w.configure()
	w.write()
	w.wants(t, "without the label", w.inCluster(), letA, letB, "second.a: app=a:8080")
}

func TestADeletedGatewayLeavesNoPolicy(t *testing.T) {
	w := newPolicyWorld(t)
	service := *w.in.Services[0]
	service.Labels = map[string]string{v1alpha1.IsolationLabel: v1alpha1.IsolationGateway}
	w.in.Services[0] = &service
	w.configure()
	w.write()
	w.wants(t, "policies", w.inCluster(), "a.isolation: gateway=edge:8080", letA, letB)
	w.in.Gateways = nil
	w.configure()
	w.write()
	w.wants(t, "its own go at once, others after its last requests", w.inCluster(), "a.isolation: gateway=edge:8080")
	if _, there := w.policies[edge]; there {
		t.Error("what restricts it is left")
	}
	w.later(grace)
	w.write()
	w.wants(t, "afterwards", w.inCluster(), "")
}

// A manager that could not write looks again.
func TestAPolicyThatCouldNotBeDeletedCountsAgain(t *testing.T) {
	w := newPolicyWorld(t)
	routes := w.in.ServiceRoutes
	w.in.ServiceRoutes = routes[1:]
	w.configure()
	w.write()
	w.later(grace)
	changes, _ := w.NetworkPolicies(w.now)
	if len(changes.Delete) != 1 {
		t.Fatalf("changes: %+v", changes)
	}
	policy := w.policies[changes.Delete[0]].Policy
	w.SetPolicy(changes.Delete[0], &policy, w.now)
	w.in.ServiceRoutes = routes
	w.later(settle)
	w.wants(t, "when it is wanted again", w.sends(), sendsA, sendsB)
}

func TestAnExternalNameWaitsForItsPolicy(t *testing.T) {
	w := newPolicyWorld(t)
	service := w.add("c", "")
	service.Spec.Type, service.Spec.ExternalName, service.Spec.Selector = corev1.ServiceTypeExternalName, "example.com", nil
	w.in.ServiceRoutes = append(w.in.ServiceRoutes, newRoute("c", "/c"))
	w.configure()
	w.wants(t, "before the policy is there", w.sends(), sendsA, sendsB)
	w.write()
	w.wants(t, "policies", w.inCluster(), letA, letB, "edge.c: 0.0.0.0/0:80 ::/0:80")
	w.later(settle)
	w.wants(t, "afterwards", w.sends(), sendsA, sendsB, "/c c/80/dns/example.com")
}

// An earlier version of a route, which serves while the newest waits for a policy,
// leads to the endpoints that its Service has now.
func TestEarlierVersionsFollowTheirServices(t *testing.T) {
	w := newPolicyWorld(t)
	w.add("c", "10.0.0.3")
	route := newRoute("a", "/a")
	route.Spec.Rules[0].Backends[0].Name = "c"
	w.in.ServiceRoutes[0] = changed(route, 2)
	service := w.in.Services[0].DeepCopy()
	service.Spec.Ports[0].Name = "web"
	w.in.Services[0] = service
	w.slices[model.Key{Namespace: "shop", Name: "a"}] = newSlices("web", "10.0.0.9")
	w.configure()
	w.wants(t, "while c waits", w.sends(), "/a a/80 10.0.0.9:8080", sendsB)
	w.write()
	w.configure()
	w.wants(t, "with its policy", w.sends(), "/a c/80 10.0.0.3:8080", sendsB)
}

// A gateway that was invalid for a while sends requests where the others do.
func TestAGatewayThatBecomesValidAgain(t *testing.T) {
	w := newWorld(t)
	other := newGateway(gatewayv1.HTTPProtocolType)
	other.Name = "other"
	invalid := newGateway("UDP")
	invalid.Name = "other"
	w.in.Gateways = append(w.in.Gateways, other)
	w.in.ServiceRoutes[0].Spec.ParentRefs = append(w.in.ServiceRoutes[0].Spec.ParentRefs, gatewayv1.ParentReference{Name: "other"})
	w.configure()
	w.in.Gateways[1] = invalid
	rename := func(port, address string) {
		w.in.Services[0] = newService("a", port)
		w.slices[model.Key{Namespace: "shop", Name: "a"}] = newSlices(port, address)
		w.configure()
	}
	rename("web", "10.0.0.8")
	rename("http", "10.0.0.9")
	w.in.Gateways[1] = other
	w.configure()
	for key, gw := range w.gateways {
		if got := fmt.Sprint(gw.reach["shop/a/80"].endpoints.set.Serving); !strings.Contains(got, "10.0.0.9") {
			t.Errorf("%s sends requests to %s", key, got)
		}
	}
}
