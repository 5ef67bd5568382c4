package workload

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"

	"meshroute.io/meshroute/internal/model"
)

var policyGateway = model.Gateway{
	Namespace: "infra", Name: "edge", Class: "meshroute", UID: "0c5d1c3c-0001",
	Infrastructure: &model.Infrastructure{Labels: map[string]string{"team": "edge"}},
}

func pods(namespace, selector string, port int32) model.PolicyRule {
	return model.PolicyRule{Namespace: namespace, Pods: selector, Port: port}
}

func addresses(cidr string, port int32) model.PolicyRule {
	return model.PolicyRule{CIDR: cidr, Port: port}
}

// Each case is a policy as the API server gets it, and is read back as what it
// was made from.
func TestBackendPolicies(t *testing.T) {
	web := model.Key{Namespace: "shop", Name: "web"}
	edge := Pods(policyGateway)
	for name, policy := range map[string]model.Policy{
		"egress-pods": {Pods: edge.Pods, Egress: true, Rules: []model.PolicyRule{
			pods("shop", "app=web,tier=front", 8080), pods("shop", "app=web,tier=front", 9090),
		}},
		"egress-two-selectors": {Pods: edge.Pods, Egress: true, Rules: []model.PolicyRule{
			pods("shop", "app=blue", 8080), pods("shop", "app=green", 9090),
		}},
		"egress-addresses": {Pods: edge.Pods, Egress: true, Rules: []model.PolicyRule{
			addresses("192.0.2.1/32", 80), addresses("192.0.2.2/32", 80), addresses("192.0.2.3/32", 81), addresses("2001:db8::1/128", 80),
		}},
		"egress-anywhere": {Pods: edge.Pods, Egress: true, Rules: []model.PolicyRule{
			addresses(model.AnyIPv4, 443), addresses(model.AnyIPv6, 443),
		}},
		"isolation": {Pods: "app=web", Rules: []model.PolicyRule{
			{Peer: edge, Port: 8080},
			pods("other", "app.kubernetes.io/instance=second-meshroute,app.kubernetes.io/name=meshroute-gateway", 8080),
		}},
	} {
		t.Run(name, func(t *testing.T) {
			policy.Rules = model.NewPolicyRules(policy.Rules)
			made := any(IsolationPolicy(IsolationKey(web), policy))
			if policy.Egress {
				made = EgressPolicy(policyGateway, EgressKey(policyGateway, web), policy)
			}
			content, err := yaml.Marshal(made)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", "policies", name+".yaml")
			if *update {
				if err := os.WriteFile(path, content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(content)); diff != "" {
				t.Errorf("(-want +got; -update writes it):\n%s", diff)
			}
			var object networkingv1.NetworkPolicy
			if err := yaml.UnmarshalStrict(content, &object); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&policy, ReadPolicy(&object)); diff != "" {
				t.Errorf("read back (-want +got):\n%s", diff)
			}
		})
	}
}

// A policy that somebody changed allows nothing that could be relied on, and
// others than ours are none of our business.
func TestForeignPolicies(t *testing.T) {
	rule := pods("shop", "app=web", 8080)
	made := func(t *testing.T) *networkingv1.NetworkPolicy {
		content, err := yaml.Marshal(EgressPolicy(policyGateway, EgressKey(policyGateway, model.Key{Namespace: "shop", Name: "web"}),
			model.Policy{Pods: Pods(policyGateway).Pods, Egress: true, Rules: []model.PolicyRule{rule}}))
		if err != nil {
			t.Fatal(err)
		}
		object := &networkingv1.NetworkPolicy{}
		if err := yaml.UnmarshalStrict(content, object); err != nil {
			t.Fatal(err)
		}
		return object
	}
	for name, change := range map[string]func(*networkingv1.NetworkPolicy){
		"any peer":      func(p *networkingv1.NetworkPolicy) { p.Spec.Egress[0].To = nil },
		"any port":      func(p *networkingv1.NetworkPolicy) { p.Spec.Egress[0].Ports = nil },
		"a named port":  func(p *networkingv1.NetworkPolicy) { p.Spec.Egress[0].Ports[0].Port.Type = 1 },
		"many ports":    func(p *networkingv1.NetworkPolicy) { p.Spec.Egress[0].Ports[0].EndPort = new(int32(9000)) },
		"every pod":     func(p *networkingv1.NetworkPolicy) { p.Spec.Egress[0].To[0].PodSelector = nil },
		"own namespace": func(p *networkingv1.NetworkPolicy) { p.Spec.Egress[0].To[0].NamespaceSelector = nil },
		"also ingress": func(p *networkingv1.NetworkPolicy) {
			p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeIngress)
		},
		"except some": func(p *networkingv1.NetworkPolicy) {
			p.Spec.Egress[0].To[0] = networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: "10.0.0.0/8", Except: []string{"10.0.0.0/9"}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			object := made(t)
			change(object)
			if got := ReadPolicy(object); got == nil || len(got.Rules) > 0 {
				t.Errorf("read as %+v", got)
			}
		})
	}
	theirs := made(t)
	theirs.Labels = map[string]string{LabelManagedBy: ManagedBy}
	if got := ReadPolicy(theirs); got != nil {
		t.Errorf("another policy is read as %+v", got)
	}
}

func TestPolicyNamesFit(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, name := range []string{
		EgressKey(model.Gateway{Name: strings.Repeat("a.", 126) + "a", Class: "meshroute"}, model.Key{Namespace: long, Name: long}).Name,
		IsolationKey(model.Key{Namespace: long, Name: long}).Name,
	} {
		if faults := validation.IsDNS1123Subdomain(name); len(faults) > 0 {
			t.Errorf("%s: %v", name, faults)
		}
	}
}
