package model

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
)

// Observations are what is known of a running Result.
type Observations struct {
	// Endpoints of each cluster, by Cluster.Name.
	Endpoints map[string]EndpointSet
	// GatewayProgress and RouteProgress tell how far the pods of a gateway
	// are: with its newest configuration, and with the newest that concerns a
	// route.
	GatewayProgress func(gateway Key) Progress
	RouteProgress   func(gateway, route Key) Progress
	// PolicyProgress tells the same of a HealthPolicy.
	PolicyProgress func(gateway, policy Key) Progress
	// Health tells what a gateway asks the endpoints of a cluster; nil: nobody
	// knows.
	Health func(gateway Key, cluster Cluster) Health
	// Unhealthy tells which endpoints of a cluster fail their health checks, and in
	// how many of a gateway's pods; nil: nobody knows.
	Unhealthy func(gateway Key, cluster string) map[netip.AddrPort]int
	// Workloads are the objects that run each gateway.
	Workloads map[Key]Workload
}

// Progress tells how many pods of a gateway have acknowledged something.
type Progress struct {
	// Pods that are connected and serving.
	Pods int
	// Acknowledged of these.
	Acknowledged int
	// Refused is what Envoy said when it refused it; empty where none did.
	Refused string
	// Instead tells what serves where it is one object that Envoy refused, and
	// nothing else; empty where that is not known.
	Instead string
	// Isolated are pods that found network policies enforced, Open is one that
	// found them not enforced; empty where none did.
	Isolated int
	Open     string
	// Waiting tells what has to be there before the pods are told of it; empty
	// where nothing has.
	Waiting string
}

func (p Progress) String() string { return fmt.Sprintf("%d/%d", p.Acknowledged, p.Pods) }

// Observed is the status of every object, without times: MergeConditions adds
// these when it is written.
type Observed struct {
	Classes    map[string]gatewayv1.GatewayClassStatus
	Gateways   map[Key]gatewayv1.GatewayStatus
	Routes     map[Key]v1alpha1.ServiceRouteStatus
	MeshRoutes map[Key]v1alpha1.MeshRouteStatus

	HealthPolicies map[Key]gatewayv1.PolicyStatus
}

// Observe joins a Result with what is known of it running.
func Observe(r Result, o Observations) Observed {
	out := Observed{
		Classes:    make(map[string]gatewayv1.GatewayClassStatus, len(r.Classes)),
		Gateways:   make(map[Key]gatewayv1.GatewayStatus, len(r.GatewayStatuses)),
		Routes:     make(map[Key]v1alpha1.ServiceRouteStatus, len(r.Routes)),
		MeshRoutes: make(map[Key]v1alpha1.MeshRouteStatus, len(r.Routes)),
	}
	for _, class := range r.Classes {
		out.Classes[class.Name] = gatewayv1.GatewayClassStatus{Conditions: at(class.Generation, class.Conditions)}
	}
	for _, gw := range r.GatewayStatuses {
		out.Gateways[gw.Key] = observeGateway(gw, o)
	}
	out.HealthPolicies = make(map[Key]gatewayv1.PolicyStatus, len(r.HealthPolicies))
	for _, policy := range r.HealthPolicies {
		out.HealthPolicies[policy.Key] = observePolicy(policy, o)
	}
	namespaces := map[string][]namedStatus{}
	for _, route := range r.Routes {
		if len(route.Parents) == 0 {
			continue // all of its parents are another controller's
		}
		status := observeRoute(route, o)
		mesh := meshRoute(route, status, o)
		out.Routes[route.Key] = status
		out.MeshRoutes[route.Key] = mesh
		namespaces[route.Namespace] = append(namespaces[route.Namespace], namedStatus{route.Name, mesh})
	}
	for namespace, routes := range namespaces {
		out.MeshRoutes[Key{namespace, v1alpha1.MeshRouteStatusName}] = summary(routes)
	}
	return out
}

func at(generation int64, conditions []metav1.Condition) []metav1.Condition {
	stamped := slices.Clone(conditions)
	for i := range stamped {
		stamped[i].ObservedGeneration = generation
	}
	return stamped
}

func observeGateway(gw GatewayStatus, o Observations) gatewayv1.GatewayStatus {
	conditions := gw.Conditions
	workload := o.Workloads[gw.Key]
	programmed := gatewayProgrammed(gw.Key, o.GatewayProgress(gw.Key), workload)
	if broken := firstFalse(conditions); broken != nil {
		programmed = condition(v1alpha1.ConditionProgrammed, metav1.ConditionFalse, string(gatewayv1.GatewayReasonInvalid), broken.Message)
	} else if gw.Unserved != "" {
		programmed = condition(v1alpha1.ConditionProgrammed, metav1.ConditionFalse, string(gatewayv1.GatewayReasonInvalid), gw.Unserved)
	}
	conditions = append(slices.Clone(conditions), programmed)
	conditions = append(conditions, ready(conditions))
	if gw.Verify {
		// Not a part of Ready: the gateway serves either way.
		conditions = append(conditions, enforcedCondition(o.GatewayProgress(gw.Key)))
	}
	status := gatewayv1.GatewayStatus{
		Addresses:  workload.Addresses,
		Conditions: at(gw.Generation, conditions),
	}
	for _, listener := range gw.Listeners {
		own := programmed
		if broken := firstFalse(listener.Conditions[:1]); broken != nil {
			own = condition(v1alpha1.ConditionProgrammed, metav1.ConditionFalse, string(gatewayv1.ListenerReasonInvalid), broken.Message)
		} else if listener.Unserved != "" {
			own = condition(v1alpha1.ConditionProgrammed, metav1.ConditionFalse, string(gatewayv1.ListenerReasonInvalid), listener.Unserved)
		}
		status.Listeners = append(status.Listeners, gatewayv1.ListenerStatus{
			Name:           gatewayv1.SectionName(listener.Name),
			SupportedKinds: append([]gatewayv1.RouteGroupKind{}, listener.SupportedKinds...),
			AttachedRoutes: listener.AttachedRoutes,
			Conditions:     at(gw.Generation, append(slices.Clone(listener.Conditions), own)),
		})
	}
	return status
}

// gatewayProgrammed tells more of a Gateway than of its routes: also what does
// not keep it from serving what it has.
func gatewayProgrammed(gateway Key, progress Progress, workload Workload) metav1.Condition {
	programmed := programmedCondition(gateway, progress, workload)
	if programmed.Status == metav1.ConditionFalse {
		return programmed
	}
	if workload.Refused != nil {
		return condition(v1alpha1.ConditionProgrammed, metav1.ConditionFalse, workload.Refused.Reason, workload.Refused.Message)
	}
	if workload.Pods != nil {
		programmed.Message += "; others do not run: " + workload.Pods.Message
	}
	if workload.AwaitsAddress {
		programmed.Message += "; its Service has no address of a load balancer yet: where the cluster gives none, set serviceType NodePort or ClusterIP in a GatewayConfig"
	}
	programmed.Message = bounded(programmed.Message)
	return programmed
}

func programmedCondition(gateway Key, progress Progress, workload Workload) metav1.Condition {
	trouble := cmp.Or(workload.Refused, workload.Pods)
	switch {
	case progress.Instead != "":
		return condition(v1alpha1.ConditionProgrammed, metav1.ConditionFalse, v1alpha1.ReasonRefused, fmt.Sprintf(
			"Envoy refuses this version of the route in Gateway %s; %s; nothing else is affected. It says: %s",
			gateway, progress.Instead, strings.Join(strings.Fields(progress.Refused), " ")))
	case progress.Refused != "":
		return condition(v1alpha1.ConditionProgrammed, metav1.ConditionFalse, v1alpha1.ReasonRefused, fmt.Sprintf(
			"Envoy refused the newest configuration of Gateway %s and keeps serving the previous one: %s", gateway, strings.Join(strings.Fields(progress.Refused), " ")))
	case progress.Waiting != "":
		return condition(v1alpha1.ConditionProgrammed, metav1.ConditionFalse, v1alpha1.ReasonWaitingForNetworkPolicy, progress.Waiting)
	case progress.Pods == 0 && trouble != nil:
		return condition(v1alpha1.ConditionProgrammed, metav1.ConditionFalse, trouble.Reason, trouble.Message)
	case progress.Pods == 0:
		return condition(v1alpha1.ConditionProgrammed, metav1.ConditionFalse, v1alpha1.ReasonNoGatewayPods, fmt.Sprintf(
			"no pod of Gateway %s is connected to the operator: if they run, see the log of their container agent", gateway))
	case progress.Acknowledged < progress.Pods:
		return condition(v1alpha1.ConditionProgrammed, metav1.ConditionFalse, v1alpha1.ReasonWaiting, fmt.Sprintf(
			"%d of %d pods of Gateway %s have acknowledged the newest configuration", progress.Acknowledged, progress.Pods, gateway))
	default:
		return condition(v1alpha1.ConditionProgrammed, metav1.ConditionTrue, string(gatewayv1.GatewayReasonProgrammed),
			fmt.Sprintf("every connected pod of Gateway %s has acknowledged the newest configuration", gateway))
	}
}

func enforcedCondition(progress Progress) metav1.Condition {
	switch {
	case progress.Open != "":
		return condition(v1alpha1.ConditionNetworkPolicyEnforced, metav1.ConditionFalse, v1alpha1.ReasonNotEnforced, fmt.Sprintf(
			"pod %s reached a port of the operator that its network policy forbids: the network plugin of its node does not enforce policies, so neither gateways nor backends are isolated; install one that does", progress.Open))
	case progress.Pods > 0 && progress.Isolated == progress.Pods:
		return condition(v1alpha1.ConditionNetworkPolicyEnforced, metav1.ConditionTrue, v1alpha1.ReasonEnforced,
			"no connected pod reaches what its network policy forbids")
	default:
		return condition(v1alpha1.ConditionNetworkPolicyEnforced, metav1.ConditionUnknown, v1alpha1.ReasonNotVerifiedYet, fmt.Sprintf(
			"%d of %d pods know whether network policies are enforced: it is tried once a minute, and a manager has to lead", progress.Isolated, progress.Pods))
	}
}

// ready sums up: the first condition that is not True, or that all are.
func ready(conditions []metav1.Condition) metav1.Condition {
	if broken := firstFalse(conditions); broken != nil {
		return condition(v1alpha1.ConditionReady, metav1.ConditionFalse, broken.Reason, broken.Message)
	}
	return condition(v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady, "accepted, resolved and programmed")
}

func firstFalse(conditions []metav1.Condition) *metav1.Condition {
	for i := range conditions {
		if conditions[i].Status == metav1.ConditionFalse {
			return &conditions[i]
		}
	}
	return nil
}

func observeRoute(route *RouteStatus, o Observations) v1alpha1.ServiceRouteStatus {
	var status v1alpha1.ServiceRouteStatus
	var all []metav1.Condition
	for _, parent := range route.Parents {
		conditions := slices.Clone(parent.Conditions)
		// Accepted comes first: that a route is not attached matters more than
		// that one of its backends is missing.
		slices.SortStableFunc(conditions, func(a, b metav1.Condition) int { return cmp.Compare(a.Type, b.Type) })
		if parent.Gateway != nil {
			programmed := programmedCondition(*parent.Gateway, o.RouteProgress(*parent.Gateway, route.Key), o.Workloads[*parent.Gateway])
			if parent.Unserved != "" {
				programmed = condition(v1alpha1.ConditionProgrammed, metav1.ConditionFalse, v1alpha1.ReasonListenerNotServed, parent.Unserved)
			}
			conditions = append(conditions, programmed)
		}
		all = append(all, conditions...)
		status.Parents = append(status.Parents, gatewayv1.RouteParentStatus{
			ParentRef:      parent.Ref,
			ControllerName: v1alpha1.ControllerName,
			Conditions:     at(route.Generation, conditions),
		})
	}
	slices.SortStableFunc(all, func(a, b metav1.Condition) int {
		return cmp.Compare(conditionRank(a.Type), conditionRank(b.Type))
	})
	if len(route.Parents) > 0 {
		summed := ready(all)
		if i := slices.IndexFunc(all, func(c metav1.Condition) bool { return c.Type == v1alpha1.ConditionPartiallyInvalid }); summed.Status == metav1.ConditionTrue && i >= 0 {
			summed = condition(v1alpha1.ConditionReady, metav1.ConditionFalse, all[i].Reason, all[i].Message)
		}
		status.Conditions = at(route.Generation, []metav1.Condition{summed})
	}
	return status
}

// conditionRank puts what has to be mended first in front.
func conditionRank(kind string) int {
	return slices.Index([]string{
		v1alpha1.ConditionAccepted, v1alpha1.ConditionResolvedRefs,
		v1alpha1.ConditionProgrammed, v1alpha1.ConditionPartiallyInvalid, v1alpha1.ConditionBackendsIsolated,
	}, kind)
}

func meshRoute(route *RouteStatus, status v1alpha1.ServiceRouteStatus, o Observations) v1alpha1.MeshRouteStatus {
	mesh := v1alpha1.MeshRouteStatus{Conditions: slices.Clone(status.Conditions)}
	mesh.Display.Hosts = abbreviated(route.Hosts)

	var programmed Progress
	for gateway := range route.gateways {
		progress := o.RouteProgress(gateway, route.Key)
		programmed.Pods += progress.Pods
		programmed.Acknowledged += progress.Acknowledged
		mesh.Gateways = append(mesh.Gateways, v1alpha1.MeshRouteGateway{
			Namespace:      gatewayv1.Namespace(gateway.Namespace),
			Name:           gatewayv1.ObjectName(gateway.Name),
			Pods:           int32(progress.Pods),
			ProgrammedPods: int32(progress.Acknowledged),
		})
	}
	mesh.Display.Programmed = programmed.String()

	var readyEndpoints, endpoints int
	var empty, failing, relieved []string
	for _, backend := range route.Backends {
		shown := v1alpha1.MeshRouteBackend{
			Namespace: gatewayv1.Namespace(backend.Service.Namespace),
			Name:      gatewayv1.ObjectName(backend.Service.Name),
			Port:      backend.Port,
		}
		if cluster := backend.Cluster; cluster != nil {
			shown.HealthCheck = shownCheck(route, *cluster, o)
			found := findHealth(route, *cluster, o)
			found.show(&shown)
			if cluster.DNSName != "" {
				shown.Endpoints, shown.ReadyEndpoints = -1, -1
			} else {
				set := o.Endpoints[cluster.Name]
				shown.Endpoints, shown.ReadyEndpoints = int32(len(set.All)), int32(set.Ready)
				readyEndpoints += set.Ready
				endpoints += len(set.All)
				switch {
				case len(set.Serving) > 0 && found.none() && !backend.Idle && !route.relieved(cluster.Name, o.Endpoints):
					failing = append(failing, fmt.Sprintf("every endpoint of Service %s on port %s fails its health check: requests go to all of them all the same",
						backend.Service, backend.Port))
				case len(set.Serving) > 0 && found.any():
					relieved = append(relieved, fmt.Sprintf("%d of %d endpoints of Service %s on port %s fail their health check",
						len(found.failing), len(set.Serving), backend.Service, backend.Port))
				case len(set.Serving) > 0 || backend.Idle:
				case route.relieved(cluster.Name, o.Endpoints):
					relieved = append(relieved, fmt.Sprintf("Service %s has no ready endpoint on port %s, so others take its requests", backend.Service, backend.Port))
				default:
					empty = append(empty, fmt.Sprintf("Service %s has no ready endpoint on port %s: requests to it get 503", backend.Service, backend.Port))
				}
			}
		}
		mesh.Backends = append(mesh.Backends, shown)
	}
	if len(route.Backends) > 0 {
		mesh.Display.Endpoints = fmt.Sprintf("%d/%d", readyEndpoints, endpoints)
	}

	if len(mesh.Conditions) == 1 && mesh.Conditions[0].Status == metav1.ConditionTrue {
		message := joined(slices.Concat([]string{"serving"}, relieved, zoneless(route, o)))
		mesh.Conditions[0] = condition(v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady, message)
		if len(empty) > 0 {
			mesh.Conditions[0] = condition(v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonNoEndpoints, joined(append(empty, failing...)))
		} else if len(failing) > 0 {
			mesh.Conditions[0] = condition(v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonEndpointsUnhealthy, joined(failing))
		}
		mesh.Conditions = at(route.Generation, mesh.Conditions)
	}
	return mesh
}

// zoneless are a sentence for each Service of a route of which near endpoints are
// to be preferred, and are not, because a gateway does not know what is near.
func zoneless(route *RouteStatus, o Observations) (sentences []string) {
	for _, backend := range route.Backends {
		if backend.Cluster == nil || !backend.Cluster.PreferZone {
			continue
		}
		for gateway := range route.gateways {
			if pod := o.Workloads[gateway].Zoneless; pod != "" {
				sentences = append(sentences, fmt.Sprintf(
					"Service %s has a trafficDistribution, and pod %s of the gateway no label %s, so it prefers no endpoints: see that its node has that label (Kubernetes copies it to new pods since 1.35)",
					backend.Service, pod, corev1.LabelTopologyZone))
			}
		}
	}
	return sentences
}

// gateways yields the gateways that a route may attach to, each once: two of its
// parentRefs may lead to listeners of the same.
func (r *RouteStatus) gateways(yield func(Key) bool) {
	for i, parent := range r.Parents {
		before := func(other ParentStatus) bool { return other.Gateway != nil && *other.Gateway == *parent.Gateway }
		if parent.Gateway == nil || slices.ContainsFunc(r.Parents[:i], before) {
			continue
		}
		if !yield(*parent.Gateway) {
			return
		}
	}
}

// relieved tells whether, in every rule in which a cluster of the route takes
// part, others have endpoints for its requests. (A host name may have some.)
func (r RouteStatus) relieved(cluster string, endpoints map[string]EndpointSet) bool {
	relieved := false
	for _, group := range r.Groups {
		if !slices.Contains(group, cluster) {
			continue
		}
		relieved = slices.ContainsFunc(group, func(name string) bool {
			set, known := endpoints[name]
			return !known || len(set.Serving) > 0
		})
		if !relieved {
			return false
		}
	}
	return relieved
}

func abbreviated(hosts []string) string {
	switch len(hosts) {
	case 0:
		return ""
	case 1:
		return hosts[0]
	default:
		return hosts[0] + " +" + strconv.Itoa(len(hosts)-1)
	}
}

type namedStatus struct {
	name   string
	status v1alpha1.MeshRouteStatus
}

// summary sums up the routes of a namespace.
func summary(routes []namedStatus) v1alpha1.MeshRouteStatus {
	sum := v1alpha1.MeshRouteSummary{Routes: int32(len(routes))}
	var broken []string
	for _, route := range routes {
		if len(route.status.Conditions) > 0 && route.status.Conditions[0].Status == metav1.ConditionTrue {
			sum.ReadyRoutes++
			continue
		}
		broken = append(broken, route.name)
	}
	message := fmt.Sprintf("%d of %d routes ready", sum.ReadyRoutes, sum.Routes)
	status, reason := metav1.ConditionTrue, v1alpha1.ReasonReady
	if len(broken) > 0 {
		slices.Sort(broken)
		const most = 3
		named := broken
		if len(named) > most {
			named = append(slices.Clone(named[:most]), "...")
		}
		status, reason = metav1.ConditionFalse, v1alpha1.ReasonRoutesNotReady
		message += "; not ready: " + strings.Join(named, ", ")
	}
	return v1alpha1.MeshRouteStatus{
		Conditions: []metav1.Condition{condition(v1alpha1.ConditionReady, status, reason, message)},
		Summary:    &sum,
	}
}

// MergeConditions gives new conditions their times: that of the old condition
// of the same type and status, or else now.
func MergeConditions(old, updated []metav1.Condition, now metav1.Time) []metav1.Condition {
	merged := slices.Clone(updated)
	for i := range merged {
		merged[i].LastTransitionTime = now
		for _, before := range old {
			if before.Type == merged[i].Type && before.Status == merged[i].Status {
				merged[i].LastTransitionTime = before.LastTransitionTime
			}
		}
	}
	return merged
}
