package model

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
)

// Defaults of a health check, which are those of Kubernetes' probes but for the
// interval.
const (
	DefaultHealthInterval     = 30 * time.Second
	DefaultHealthTimeout      = time.Second
	DefaultHealthyThreshold   = 1
	DefaultUnhealthyThreshold = 3
)

// Health says how gateways find out which endpoints of a cluster are well. It is
// apart from Cluster, and no part of its name: what is asked of endpoints changes
// nothing about where requests go, and a cluster may be asked otherwise by
// another gateway.
type Health struct {
	// Check that is made; nil: none.
	Check *HealthCheck
	// Source that it comes from; none where nothing is said by anybody.
	Source HealthSource
	// Why there is no check, as a part of a sentence; empty where there is one.
	Why string
}

// Equal tells whether two are the same.
func (h Health) Equal(other Health) bool {
	return h.Source == other.Source && h.Why == other.Why && h.Check.Equal(other.Check)
}

// HealthSource is the object that a check comes from: a HealthPolicy, or what
// made the pods whose readinessProbe it is.
type HealthSource struct {
	Kind string
	Key
}

func (s HealthSource) String() string { return s.Kind + " " + s.Key.String() }

// HealthCheck is how an endpoint is asked whether it is well, on the port that
// requests go to.
type HealthCheck struct {
	Type CheckType
	// Interval between two checks of an endpoint, and how long an answer may take.
	Interval, Timeout time.Duration
	// HealthyThreshold and UnhealthyThreshold are how many checks in a row have to
	// pass, and to fail, until an endpoint counts as the one or the other.
	HealthyThreshold, UnhealthyThreshold uint32

	// HTTP: Path and Host of the request, the Statuses of a good answer, and
	// whether it speaks HTTP/2.
	Path, Host string
	Statuses   []StatusRange
	HTTP2      bool

	// GRPC: GRPCService whose health is asked for; empty: the server's. Host is
	// its authority.
	GRPCService string
}

// CheckType is what is asked.
type CheckType string

// Types of checks.
const (
	CheckHTTP = CheckType(v1alpha1.HealthCheckHTTP)
	CheckGRPC = CheckType(v1alpha1.HealthCheckGRPC)
	CheckTCP  = CheckType(v1alpha1.HealthCheckTCP)
)

// StatusRange is a range of HTTP statuses, both ends included.
type StatusRange struct{ Start, End int32 }

// readyStatuses are what the kubelet takes for ready.
var readyStatuses = []StatusRange{{200, 399}}

// Equal tells whether two checks are the same; nil equals nil.
func (c *HealthCheck) Equal(other *HealthCheck) bool {
	if c == nil || other == nil {
		return c == other
	}
	return c.Type == other.Type && c.Interval == other.Interval && c.Timeout == other.Timeout &&
		c.HealthyThreshold == other.HealthyThreshold && c.UnhealthyThreshold == other.UnhealthyThreshold &&
		c.Path == other.Path && c.Host == other.Host && slices.Equal(c.Statuses, other.Statuses) &&
		c.HTTP2 == other.HTTP2 && c.GRPCService == other.GRPCService
}

// String describes it in a few words.
func (c *HealthCheck) String() string {
	var what string
	switch c.Type {
	case CheckGRPC:
		what = strings.TrimSpace("gRPC health " + c.GRPCService)
	case CheckTCP:
		what = "TCP connection"
	default:
		statuses := make([]string, len(c.Statuses))
		for i, status := range c.Statuses {
			statuses[i] = strconv.Itoa(int(status.Start))
			if status.End != status.Start {
				statuses[i] += "-" + strconv.Itoa(int(status.End))
			}
		}
		what = fmt.Sprintf("GET %s of host %s, expecting %s", c.Path, c.Host, strings.Join(statuses, ", "))
	}
	return fmt.Sprintf("%s, every %s with timeout %s; unhealthy after %d, healthy after %d",
		what, c.Interval, c.Timeout, c.UnhealthyThreshold, c.HealthyThreshold)
}

// PolicyStatus is how a policy was judged.
type PolicyStatus struct {
	Key
	Generation int64
	// Targets in the order of its targetRefs, without those that are another
	// controller's.
	Targets []PolicyTarget
}

// PolicyTarget is how a policy was judged for one of its targets. Programmed
// depends on what gateway pods acknowledge.
type PolicyTarget struct {
	Ref      gatewayv1.ParentReference
	Accepted metav1.Condition
	// Clusters that the policy is in force for, by gateway, sorted.
	Clusters map[Key][]string
}

// InForce lists the clusters of a gateway that a policy is in force for.
func (s PolicyStatus) InForce(gateway Key) []string {
	var all []string
	for _, target := range s.Targets {
		all = append(all, target.Clusters[gateway]...)
	}
	return all
}

// healthTarget is what a HealthPolicy can be for; without section, and with the
// name of a port.
type healthTarget struct {
	kind string
	Key
	port string
}

func (t healthTarget) String() string {
	if t.port != "" {
		return fmt.Sprintf("port %s of %s %s", t.port, t.kind, t.Key)
	}
	return t.kind + " " + t.Key.String()
}

// healthClaim is the policy that counts for a target.
type healthClaim struct {
	policy *v1alpha1.HealthPolicy
	target *PolicyTarget
}

const (
	gatewayKind = "Gateway"
	serviceKind = "Service"
)

// judgeHealth judges the HealthPolicies and finds out for which clusters each is
// in force.
func (b *Builder) judgeHealth(result Result, policies []*v1alpha1.HealthPolicy) Result {
	before := b.health
	b.health = nil
	if len(policies) == 0 {
		return result
	}
	claims := make(map[healthTarget]healthClaim, len(policies))
	for _, policy := range oldestFirst(policies) {
		status := PolicyStatus{Key: keyOf(policy), Generation: policy.Generation, Targets: make([]PolicyTarget, 0, len(policy.Spec.TargetRefs))}
		for i := range policy.Spec.TargetRefs {
			ref := &policy.Spec.TargetRefs[i]
			target := healthTarget{
				kind: string(ref.Kind), Key: Key{policy.Namespace, string(ref.Name)}, port: string(valueOr(ref.SectionName, "")),
			}
			reason, problem, ours := b.healthTarget(target, policy)
			if !ours {
				continue
			}
			if other := claims[target].policy; problem == "" && other != nil {
				reason = string(gatewayv1.PolicyReasonConflicted)
				problem = fmt.Sprintf("HealthPolicy %s, which comes first (older, or of one age and first by name), is for %s, too: remove that target from one of them",
					keyOf(other), target)
			}
			accepted := condition(v1alpha1.ConditionAccepted, metav1.ConditionTrue, string(gatewayv1.PolicyReasonAccepted), "attached to "+target.String())
			if problem != "" {
				accepted = condition(v1alpha1.ConditionAccepted, metav1.ConditionFalse, reason, problem)
			}
			group := ref.Group
			status.Targets = append(status.Targets, PolicyTarget{
				Ref:      gatewayv1.ParentReference{Group: &group, Kind: &ref.Kind, Name: ref.Name, SectionName: ref.SectionName},
				Accepted: accepted,
				Clusters: map[Key][]string{},
			})
			if problem == "" {
				// Its capacity is that of all, so that it is not moved.
				claims[target] = healthClaim{policy, &status.Targets[len(status.Targets)-1]}
			}
		}
		result.HealthPolicies = append(result.HealthPolicies, status)
	}
	b.health = make(map[Key]map[string]Health, len(result.Gateways))
	result.Gateways = slices.Clone(result.Gateways) // they are in the last result, too
	for i := range result.Gateways {
		gw := &result.Gateways[i]
		for _, cluster := range gw.Clusters { // sorted by name
			claim, found := claimOf(claims, gw.Key, cluster)
			if !found {
				continue
			}
			if gw.Health == nil {
				gw.Health = map[string]Health{}
			}
			gw.Health[cluster.Name] = healthOf(claim.policy, cluster)
			claim.target.Clusters[gw.Key] = append(claim.target.Clusters[gw.Key], cluster.Name)
		}
		if maps.EqualFunc(gw.Health, before[gw.Key], Health.Equal) {
			gw.Health = before[gw.Key]
		}
		b.health[gw.Key] = gw.Health
	}
	slices.SortFunc(result.HealthPolicies, func(a, b PolicyStatus) int { return CompareKeys(a.Key, b.Key) })
	return result
}

// healthTarget tells what is wrong with a target, if anything is, and whether it
// is for this operator to judge.
func (b *Builder) healthTarget(target healthTarget, policy *v1alpha1.HealthPolicy) (reason, problem string, ours bool) {
	notFound := string(gatewayv1.PolicyReasonTargetNotFound)
	if target.kind == gatewayKind {
		if b.frame.built[target.Key] != nil {
			return "", "", true
		}
		source := b.frame.allGateway[target.Key]
		if source == nil {
			return notFound, fmt.Sprintf("%s does not exist: create it or correct targetRefs", target), true
		}
		if class := string(source.Spec.GatewayClassName); b.frame.classes[class] == nil {
			return notFound, fmt.Sprintf("%s names GatewayClass %q, which does not exist: create it or correct spec.gatewayClassName", target, class), true
		}
		return "", "", false
	}
	service := b.services.peek(target.Key)
	if service == nil {
		return notFound, fmt.Sprintf("Service %s does not exist: create it or correct targetRefs", target.Key), true
	}
	invalid := string(gatewayv1.PolicyReasonInvalid)
	if service.Spec.Type == corev1.ServiceTypeExternalName {
		return invalid, fmt.Sprintf("Service %s is of type ExternalName: what is behind its host name is for others to check; remove it from targetRefs", target.Key), true
	}
	found, http2 := false, false
	for i := range service.Spec.Ports {
		port := &service.Spec.Ports[i]
		if target.port == "" || port.Name == target.port {
			found = true
			http2 = http2 || clusterOf(service, port, LeastRequest).HTTP2
		}
	}
	switch {
	case target.port != "" && !found:
		return notFound, fmt.Sprintf("Service %s has no port named %q, it has %s: correct sectionName", target.Key, target.port, portList(service)), true
	case policy.Spec.Type == v1alpha1.HealthCheckGRPC && !http2:
		return invalid, fmt.Sprintf("%s does not speak gRPC: set appProtocol kubernetes.io/h2c on the Service's port, or choose another type", target), true
	}
	return "", "", true
}

// claimOf finds the policy that counts for a cluster: the most specific.
func claimOf(claims map[healthTarget]healthClaim, gateway Key, cluster Cluster) (healthClaim, bool) {
	if len(claims) == 0 || cluster.DNSName != "" || cluster.Service.Name == "" {
		return healthClaim{}, false
	}
	if cluster.Port.Name != "" {
		if claim, found := claims[healthTarget{serviceKind, cluster.Service, cluster.Port.Name}]; found {
			return claim, true
		}
	}
	if claim, found := claims[healthTarget{serviceKind, cluster.Service, ""}]; found {
		return claim, true
	}
	claim, found := claims[healthTarget{gatewayKind, gateway, ""}]
	return claim, found
}

// healthOf is what a policy means for a cluster.
func healthOf(policy *v1alpha1.HealthPolicy, cluster Cluster) Health {
	health := Health{Source: HealthSource{Kind: "HealthPolicy", Key: keyOf(policy)}}
	spec := &policy.Spec
	check := HealthCheck{
		Type:               CheckType(cmp.Or(spec.Type, v1alpha1.HealthCheckHTTP)),
		Interval:           durationOr(spec.Interval, DefaultHealthInterval),
		Timeout:            durationOr(spec.Timeout, DefaultHealthTimeout),
		HealthyThreshold:   uint32(max(1, valueOr(spec.HealthyThreshold, DefaultHealthyThreshold))),
		UnhealthyThreshold: uint32(max(1, valueOr(spec.UnhealthyThreshold, DefaultUnhealthyThreshold))),
	}
	switch check.Type {
	case CheckType(v1alpha1.HealthCheckNone):
		health.Why = "its type is None"
		return health
	case CheckGRPC:
		if !cluster.HTTP2 {
			health.Why = "its type is GRPC, which needs appProtocol kubernetes.io/h2c on the Service's port"
			return health
		}
		check.Host = hostOf(cluster)
		if spec.GRPC != nil {
			check.GRPCService = valueOr(spec.GRPC.Service, "")
		}
	case CheckHTTP:
		http := valueOr(spec.HTTP, v1alpha1.HTTPHealthCheck{})
		check.Path, check.Host = valueOr(http.Path, "/"), valueOr(http.Host, hostOf(cluster))
		check.Statuses, check.HTTP2 = readyStatuses, cluster.HTTP2
		if len(http.ExpectedStatuses) > 0 {
			check.Statuses = make([]StatusRange, len(http.ExpectedStatuses))
			for i, status := range http.ExpectedStatuses {
				check.Statuses[i] = StatusRange{status.Start, valueOr(status.End, status.Start)}
			}
		}
	}
	health.Check = &check
	return health
}

// hostOf is the host that a backend is asked for where nobody says which.
func hostOf(cluster Cluster) string { return cluster.Service.Name + "." + cluster.Service.Namespace }

// observePolicy tells of each target of a policy what became of it.
func observePolicy(policy PolicyStatus, o Observations) gatewayv1.PolicyStatus {
	status := gatewayv1.PolicyStatus{Ancestors: make([]gatewayv1.PolicyAncestorStatus, 0, len(policy.Targets))}
	for _, target := range policy.Targets {
		conditions := []metav1.Condition{target.Accepted}
		if target.Accepted.Status == metav1.ConditionTrue {
			conditions = append(conditions, policyProgrammed(policy.Key, target, o))
		}
		status.Ancestors = append(status.Ancestors, gatewayv1.PolicyAncestorStatus{
			AncestorRef:    target.Ref,
			ControllerName: v1alpha1.ControllerName,
			Conditions:     at(policy.Generation, conditions),
		})
	}
	return status
}

// policyProgrammed is that of the first gateway, by name, that is not as far.
func policyProgrammed(policy Key, target PolicyTarget, o Observations) metav1.Condition {
	gateways := slices.SortedFunc(maps.Keys(target.Clusters), CompareKeys)
	if len(gateways) == 0 {
		return condition(v1alpha1.ConditionProgrammed, metav1.ConditionFalse, v1alpha1.ReasonNotInUse,
			"it is in force for no backend: no route leads to one, or a more specific HealthPolicy is for each")
	}
	backends := 0
	for _, gateway := range gateways {
		if programmed := programmedCondition(gateway, o.PolicyProgress(gateway, policy), o.Workloads[gateway]); programmed.Status != metav1.ConditionTrue {
			return programmed
		}
		backends += len(target.Clusters[gateway])
	}
	return condition(v1alpha1.ConditionProgrammed, metav1.ConditionTrue, string(gatewayv1.GatewayReasonProgrammed), fmt.Sprintf(
		"in force for %d backends of %d gateways, whose connected pods have acknowledged it", backends, len(gateways)))
}

// shownCheck is what a route's gateways ask the endpoints of one of its backends.
func shownCheck(route *RouteStatus, cluster Cluster, o Observations) v1alpha1.MeshRouteHealthCheck {
	if o.Health == nil {
		return v1alpha1.MeshRouteHealthCheck{}
	}
	for _, parent := range route.Parents {
		if parent.Gateway == nil {
			continue
		}
		health := o.Health(*parent.Gateway, cluster)
		shown := v1alpha1.MeshRouteHealthCheck{Kind: health.Source.Kind, Name: health.Source.Name, Message: bounded(health.Why)}
		if health.Check != nil {
			shown.Check = bounded(health.Check.String())
		}
		return shown
	}
	return v1alpha1.MeshRouteHealthCheck{}
}

// foundHealth is what the pods of a route's gateways have found out about the
// endpoints of a cluster that may get requests.
type foundHealth struct {
	pods    int // that ask
	serving int
	failing []v1alpha1.UnhealthyEndpoint
}

func findHealth(route *RouteStatus, cluster Cluster, o Observations) foundHealth {
	var found foundHealth
	if o.Health == nil || o.Unhealthy == nil {
		return found
	}
	var failing map[netip.AddrPort]int // mostly none
	for gateway := range route.gateways {
		if o.Health(gateway, cluster).Check == nil {
			continue
		}
		found.pods += o.GatewayProgress(gateway).Pods
		for endpoint, pods := range o.Unhealthy(gateway, cluster.Name) {
			if failing == nil {
				failing = map[netip.AddrPort]int{}
			}
			failing[endpoint] += pods
		}
	}
	if found.pods == 0 {
		return found
	}
	// What a pod tells of others is of no concern: they have gone.
	serving := o.Endpoints[cluster.Name].Serving
	found.serving = len(serving)
	for _, endpoint := range serving {
		address, err := netip.ParseAddr(endpoint.Address)
		if err != nil || len(failing) == 0 {
			continue
		}
		at := netip.AddrPortFrom(address, uint16(endpoint.Port))
		if pods := failing[at]; pods > 0 {
			found.failing = append(found.failing, v1alpha1.UnhealthyEndpoint{Address: at.String(), Pods: int32(pods)})
		}
	}
	return found
}

// any tells whether an endpoint fails, none whether no pod finds one that does not.
func (f foundHealth) any() bool { return len(f.failing) > 0 }

func (f foundHealth) none() bool {
	return f.any() && len(f.failing) == f.serving &&
		!slices.ContainsFunc(f.failing, func(e v1alpha1.UnhealthyEndpoint) bool { return int(e.Pods) < f.pods })
}

func (f foundHealth) show(on *v1alpha1.MeshRouteBackend) {
	if f.pods == 0 {
		return
	}
	on.HealthyEndpoints = new(int32(f.serving - len(f.failing)))
	on.UnhealthyEndpoints = f.failing[:min(len(f.failing), v1alpha1.MaxUnhealthyEndpoints)]
}
