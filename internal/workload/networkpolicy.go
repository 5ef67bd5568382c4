package workload

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apilabels "k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	networkingv1ac "k8s.io/client-go/applyconfigurations/networking/v1"

	"meshroute.io/meshroute/internal/model"
)

// A gateway's pods are restricted by one policy, and let through to each Service
// by one more: policies add up, and a route that comes rewrites no large object.
// Another one, in the namespace of a Service that is isolated, lets gateways in.
const (
	// LabelComponent tells which of these a policy is.
	LabelComponent = "app.kubernetes.io/component"

	componentGateway   = "gateway-policy"
	componentEgress    = "backend-egress"
	componentIsolation = "backend-isolation"

	isolationSuffix = ".isolation.meshroute.io"
)

// ManagerName is the value of LabelName that managers' pods carry.
const ManagerName = "meshroute-manager"

// Where pods resolve names: the cluster's DNS, and the address at which
// NodeLocal DNSCache listens on each node.
const (
	dnsNamespace = "kube-system"
	nodeLocalDNS = "169.254.20.10/32"
	dnsPort      = 53
)

// notAnywhere are addresses that no host name leads to on purpose: link-local
// ones, where clouds serve credentials to whoever asks.
var notAnywhere = map[string]string{model.AnyIPv4: "169.254.0.0/16", model.AnyIPv6: "fe80::/10"}

// PolicyKey is the name of the policy that restricts a gateway's pods.
func PolicyKey(gw model.Gateway) model.Key {
	return model.Key{Namespace: gw.Namespace, Name: nameOf(gw)}
}

// EgressKey is the name of the policy that lets a gateway's pods reach a Service.
// None of its parts has dots, so no two are the same.
func EgressKey(gw model.Gateway, service model.Key) model.Key {
	return model.Key{Namespace: gw.Namespace, Name: nameOf(gw) + "." + service.Namespace + "." + service.Name}
}

// IsolationKey is the name of the policy that lets only gateways reach the pods
// of a Service.
func IsolationKey(service model.Key) model.Key {
	return model.Key{Namespace: service.Namespace, Name: service.Name + isolationSuffix}
}

// Pods are those of a gateway, as policies name them.
func Pods(gw model.Gateway) model.Peer {
	return model.Peer{Namespace: gw.Namespace, Pods: model.Selector(selector(gw))}
}

// GatewayPolicy restricts a gateway's pods: anyone may reach the listeners' ports
// and nobody anything else (a kubelet's probes come from the node, which is
// always let in); they reach managers and DNS, and what EgressPolicy adds.
func GatewayPolicy(gw model.Gateway, options Options) *networkingv1ac.NetworkPolicyApplyConfiguration {
	in := networkingv1ac.NetworkPolicyIngressRule()
	for _, port := range gw.Ports {
		in.WithPorts(policyPort(corev1.ProtocolTCP, port.Bind))
	}
	managers := networkingv1ac.NetworkPolicyEgressRule().
		WithTo(podsPeer(options.ManagerNamespace, map[string]string{LabelName: ManagerName}))
	for _, port := range options.ManagerPorts {
		managers.WithPorts(policyPort(corev1.ProtocolTCP, port))
	}
	dns := networkingv1ac.NetworkPolicyEgressRule().
		WithTo(podsPeer(dnsNamespace, nil), networkingv1ac.NetworkPolicyPeer().
			WithIPBlock(networkingv1ac.IPBlock().WithCIDR(nodeLocalDNS))).
		WithPorts(policyPort(corev1.ProtocolUDP, dnsPort), policyPort(corev1.ProtocolTCP, dnsPort))
	return gatewayPolicy(gw, PolicyKey(gw), componentGateway).
		WithSpec(networkingv1ac.NetworkPolicySpec().
			WithPodSelector(metav1ac.LabelSelector().WithMatchLabels(selector(gw))).
			WithPolicyTypes(networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress).
			WithIngress(in).
			WithEgress(managers, dns))
}

// EgressPolicy lets a gateway's pods through to one Service.
func EgressPolicy(gw model.Gateway, key model.Key, policy model.Policy) *networkingv1ac.NetworkPolicyApplyConfiguration {
	spec := networkingv1ac.NetworkPolicySpec().
		WithPodSelector(podSelector(policy.Pods)).
		WithPolicyTypes(networkingv1.PolicyTypeEgress)
	for _, group := range grouped(policy.Rules) {
		spec.WithEgress(networkingv1ac.NetworkPolicyEgressRule().WithTo(group.peers...).WithPorts(group.ports...))
	}
	return gatewayPolicy(gw, key, componentEgress).WithSpec(spec)
}

// IsolationPolicy lets only gateways reach the pods of a Service. It may be in
// another namespace than they, so nothing owns it.
func IsolationPolicy(key model.Key, policy model.Policy) *networkingv1ac.NetworkPolicyApplyConfiguration {
	spec := networkingv1ac.NetworkPolicySpec().
		WithPodSelector(podSelector(policy.Pods)).
		WithPolicyTypes(networkingv1.PolicyTypeIngress)
	for _, group := range grouped(policy.Rules) {
		spec.WithIngress(networkingv1ac.NetworkPolicyIngressRule().WithFrom(group.peers...).WithPorts(group.ports...))
	}
	return networkingv1ac.NetworkPolicy(key.Name, key.Namespace).
		WithLabels(map[string]string{LabelManagedBy: ManagedBy, LabelComponent: componentIsolation}).
		WithSpec(spec)
}

func gatewayPolicy(gw model.Gateway, key model.Key, component string) *networkingv1ac.NetworkPolicyApplyConfiguration {
	with := labels(gw)
	with[LabelComponent] = component
	policy := networkingv1ac.NetworkPolicy(key.Name, key.Namespace).
		WithLabels(with).
		WithOwnerReferences(owner(gw))
	if gw.Infrastructure != nil {
		policy.WithAnnotations(gw.Infrastructure.Annotations)
	}
	return policy
}

// ReadPolicy is what one of these policies lets through: the inverse of the
// functions above. Of one that somebody has made into something else it returns
// no rule, for nothing that it allows is to be relied on. It returns nil for any
// other policy.
func ReadPolicy(object *networkingv1.NetworkPolicy) *model.Policy {
	component := object.Labels[LabelComponent]
	policy := &model.Policy{Egress: component == componentEgress, Pods: apilabels.Set(object.Spec.PodSelector.MatchLabels).String()}
	readable := len(object.Spec.PodSelector.MatchExpressions) == 0
	read := func(peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) {
		readable = readable && len(peers) > 0 && len(ports) > 0
		for i := range peers {
			peer, known := readPeer(&peers[i])
			readable = readable && known
			for _, port := range ports {
				if port.Port == nil || port.Port.Type != intstr.Int || port.EndPort != nil || port.Protocol == nil || *port.Protocol != corev1.ProtocolTCP {
					readable = false
					continue
				}
				policy.Rules = append(policy.Rules, model.PolicyRule{Peer: peer, Port: port.Port.IntVal})
			}
		}
	}
	only := func(kind networkingv1.PolicyType) bool {
		return slices.Equal(object.Spec.PolicyTypes, []networkingv1.PolicyType{kind})
	}
	switch component {
	case componentGateway:
		return policy
	case componentEgress:
		readable = readable && only(networkingv1.PolicyTypeEgress)
		for _, rule := range object.Spec.Egress {
			read(rule.To, rule.Ports)
		}
	case componentIsolation:
		readable = readable && only(networkingv1.PolicyTypeIngress)
		for _, rule := range object.Spec.Ingress {
			read(rule.From, rule.Ports)
		}
	default:
		return nil
	}
	if !readable {
		return &model.Policy{Egress: policy.Egress, Pods: policy.Pods}
	}
	policy.Rules = model.NewPolicyRules(policy.Rules)
	return policy
}

func readPeer(peer *networkingv1.NetworkPolicyPeer) (model.Peer, bool) {
	if block := peer.IPBlock; block != nil {
		except, anywhere := notAnywhere[block.CIDR]
		as := !anywhere && len(block.Except) == 0 || anywhere && slices.Equal(block.Except, []string{except})
		return model.Peer{CIDR: block.CIDR}, as
	}
	if peer.NamespaceSelector == nil || peer.PodSelector == nil {
		return model.Peer{}, false
	}
	namespace := peer.NamespaceSelector.MatchLabels[corev1.LabelMetadataName]
	as := len(peer.NamespaceSelector.MatchLabels) == 1 && namespace != "" && len(peer.PodSelector.MatchLabels) > 0 &&
		len(peer.NamespaceSelector.MatchExpressions)+len(peer.PodSelector.MatchExpressions) == 0
	return model.Peer{Namespace: namespace, Pods: apilabels.Set(peer.PodSelector.MatchLabels).String()}, as
}

// ruleGroup is peers that are let through on the same ports.
type ruleGroup struct {
	peers []*networkingv1ac.NetworkPolicyPeerApplyConfiguration
	ports []*networkingv1ac.NetworkPolicyPortApplyConfiguration
}

// grouped writes rules, which come sorted, as few as they can be: a Service
// without selector may have a thousand addresses on one port.
func grouped(rules []model.PolicyRule) []ruleGroup {
	ports := map[model.Peer][]int32{}
	var peers []model.Peer
	for _, rule := range rules {
		if _, known := ports[rule.Peer]; !known {
			peers = append(peers, rule.Peer)
		}
		ports[rule.Peer] = append(ports[rule.Peer], rule.Port)
	}
	var groups []ruleGroup
	for len(peers) > 0 {
		shared := ports[peers[0]]
		var group ruleGroup
		for _, port := range shared {
			group.ports = append(group.ports, policyPort(corev1.ProtocolTCP, port))
		}
		var others []model.Peer
		for _, peer := range peers {
			if !slices.Equal(ports[peer], shared) {
				others = append(others, peer)
				continue
			}
			group.peers = append(group.peers, peerOf(peer))
		}
		groups, peers = append(groups, group), others
	}
	return groups
}

func peerOf(peer model.Peer) *networkingv1ac.NetworkPolicyPeerApplyConfiguration {
	if peer.CIDR == "" {
		return podsPeer(peer.Namespace, labelsOf(peer.Pods))
	}
	block := networkingv1ac.IPBlock().WithCIDR(peer.CIDR)
	if except, anywhere := notAnywhere[peer.CIDR]; anywhere {
		block.WithExcept(except)
	}
	return networkingv1ac.NetworkPolicyPeer().WithIPBlock(block)
}

// podsPeer are pods of a namespace; all of them where no label is named.
func podsPeer(namespace string, of map[string]string) *networkingv1ac.NetworkPolicyPeerApplyConfiguration {
	return networkingv1ac.NetworkPolicyPeer().
		WithNamespaceSelector(metav1ac.LabelSelector().WithMatchLabels(map[string]string{corev1.LabelMetadataName: namespace})).
		WithPodSelector(metav1ac.LabelSelector().WithMatchLabels(of))
}

func podSelector(pods string) *metav1ac.LabelSelectorApplyConfiguration {
	return metav1ac.LabelSelector().WithMatchLabels(labelsOf(pods))
}

// labelsOf reads what model.Selector has written.
func labelsOf(pods string) map[string]string {
	if pods == "" {
		return nil
	}
	of := map[string]string{}
	for pair := range strings.SplitSeq(pods, ",") {
		key, value, _ := strings.Cut(pair, "=")
		of[key] = value
	}
	return of
}

func policyPort(protocol corev1.Protocol, port int32) *networkingv1ac.NetworkPolicyPortApplyConfiguration {
	return networkingv1ac.NetworkPolicyPort().WithProtocol(protocol).WithPort(intstr.FromInt32(port))
}
