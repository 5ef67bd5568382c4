package model

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
)

// NetworkPolicy says which network policies are wanted for a gateway.
type NetworkPolicy struct {
	// Restricted: the gateway's pods reach, and are reached by, nothing but what
	// its routes need.
	Restricted bool
	// Verify: the pods try whether that is enforced.
	Verify bool
}

// BackendService is a Service that a gateway's routes lead to.
type BackendService struct {
	Key
	// Selector of its pods, in Peer.Pods' form; empty where it has none: others
	// than Kubernetes say what its endpoints are.
	Selector string
	// Isolated: its pods are to answer gateways alone.
	Isolated bool
}

// Policy is the part of a network policy that follows from routes: whom it
// concerns, and what it lets through.
type Policy struct {
	// Pods that the policy is for, in Peer.Pods' form.
	Pods string
	// Egress: the rules tell where these pods may connect to; otherwise, who may
	// connect to them.
	Egress bool
	// Rules, sorted, each once.
	Rules []PolicyRule
}

// Equal tells whether two policies are the same.
func (p Policy) Equal(other Policy) bool {
	return p.Pods == other.Pods && p.Egress == other.Egress && slices.Equal(p.Rules, other.Rules)
}

// PolicyRule lets a peer through on a TCP port of the pods' own, which is not
// the Service's.
type PolicyRule struct {
	Peer
	Port int32
}

// Peer is who is at the other end: the pods of a namespace that a selector
// picks, or the addresses of a prefix.
type Peer struct {
	// Namespace and selector of pods; the selector is all labels they must have,
	// as labels.Set writes them: "app=shop,tier=web".
	Namespace, Pods string
	// CIDR of addresses, where they are no pods that could be selected.
	CIDR string
}

// AnyIPv4 and AnyIPv6 are the peers behind a host name, which may be anywhere.
const (
	AnyIPv4 = "0.0.0.0/0"
	AnyIPv6 = "::/0"
)

// Selector writes the labels of a selector in Peer.Pods' form.
func Selector(of map[string]string) string { return labels.Set(of).String() }

// NewPolicyRules returns rules sorted, each once.
func NewPolicyRules(rules []PolicyRule) []PolicyRule {
	slices.SortFunc(rules, ComparePolicyRules)
	return slices.Compact(rules)
}

// ComparePolicyRules orders rules.
func ComparePolicyRules(a, b PolicyRule) int {
	return cmp.Or(
		strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Pods, b.Pods),
		strings.Compare(a.CIDR, b.CIDR), cmp.Compare(a.Port, b.Port),
	)
}

// Reaches returns the rule that a gateway's pods need to reach an endpoint of a
// Service.
func (s BackendService) Reaches(endpoint Endpoint) PolicyRule {
	if s.Selector != "" {
		return s.reaches(endpoint.Port)
	}
	// Endpoints are checked to have an address.
	address, err := netip.ParseAddr(endpoint.Address)
	if err != nil {
		return PolicyRule{}
	}
	address = address.WithZone("").Unmap()
	return PolicyRule{CIDR: netip.PrefixFrom(address, address.BitLen()).String(), Port: endpoint.Port}
}

func (s BackendService) reaches(port int32) PolicyRule {
	return PolicyRule{Namespace: s.Namespace, Pods: s.Selector, Port: port}
}

// Needs returns the rules that a gateway's pods need to send requests to a
// cluster, sorted: for every endpoint, ready or not, so that the policy is there
// before the endpoint is.
func (s BackendService) Needs(cluster Cluster, endpoints EndpointSet) []PolicyRule {
	var rules []PolicyRule
	switch {
	case cluster.DNSName != "":
		// Nobody but DNS knows where the host is, or will be tomorrow.
		for _, anywhere := range []string{AnyIPv4, AnyIPv6} {
			rules = append(rules, PolicyRule{CIDR: anywhere, Port: cluster.Port.Number})
		}
	case s.Selector != "":
		// Many pods, few ports.
		ports := map[int32]bool{}
		if cluster.TargetPort != 0 {
			ports[cluster.TargetPort] = true
		}
		for _, endpoint := range endpoints.All {
			ports[endpoint.Port] = true
		}
		for port := range ports {
			rules = append(rules, s.reaches(port))
		}
	default:
		for _, endpoint := range endpoints.All {
			rules = append(rules, s.Reaches(endpoint))
		}
	}
	return NewPolicyRules(rules)
}
