// Package workload turns a model.Gateway into the Kubernetes objects that run
// it: a Deployment of Envoy with its agent, and what belongs to that. Each
// object is a plain function from values to an apply configuration, which holds
// just the fields that this operator owns; applying them is the controllers'.
package workload

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"regexp"
	"strings"

	"k8s.io/apimachinery/pkg/types"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/internal/model"
)

// Options are what all gateways of an operator have in common.
type Options struct {
	// EnvoyImage and AgentImage are container images.
	EnvoyImage, AgentImage string
	// PodBootstrap is what Envoy merges into its bootstrap, with $(ZONE) where the
	// pod's zone belongs.
	PodBootstrap string
	// XDSAddress is host:port where managers serve configuration, and
	// CertificateURL where they sign agents' certificates.
	XDSAddress, CertificateURL string
	// ServerName is the name in the managers' certificates.
	ServerName string
	// Roots are the PEM certificates that managers' certificates are checked
	// against.
	Roots string
	// ManagerNamespace is where managers' pods are, and ManagerPorts are those on
	// which they serve agents.
	ManagerNamespace string
	ManagerPorts     []int32
	// ManagerProbePort is another port that managers serve, which gateways have
	// no business with; 0 where there is none.
	ManagerProbePort int32
}

// Labels that every object made for a gateway carries.
const (
	LabelName      = "app.kubernetes.io/name"
	LabelInstance  = "app.kubernetes.io/instance"
	LabelManagedBy = "app.kubernetes.io/managed-by"

	// ManagedBy is the value of LabelManagedBy.
	ManagedBy = "meshroute"

	nameValue = "meshroute-gateway"
)

// TokenAudience is the audience of the tokens with which agents ask managers
// for a certificate: a token for the API server is of no use there, nor the
// other way round.
const TokenAudience = "meshroute.io/agent" //nolint:gosec // a name, not a credential

var notLabel = regexp.MustCompile(`[^a-z0-9-]+`)

// Name is the name of every object made for a gateway: "<gateway>-<class>", as
// Gateway API's GEP-1762 has it. Where that is no valid Service name (too long,
// or with dots), it is shortened and made unique by a hash.
func Name(gateway, class string) string {
	const most = 63
	full := gateway + "-" + class
	name := notLabel.ReplaceAllString(full, "-")
	if name[0] < 'a' || name[0] > 'z' {
		name = "gw-" + name
	}
	if name == full && len(name) <= most {
		return name
	}
	sum := sha256.Sum256([]byte(full))
	suffix := "-" + hex.EncodeToString(sum[:4])
	return strings.TrimRight(name[:min(len(name), most-len(suffix))], "-") + suffix
}

func nameOf(gw model.Gateway) string { return Name(gw.Name, gw.Class) }

// selector picks the pods of a gateway. It can never change: a Deployment's
// selector is immutable.
func selector(gw model.Gateway) map[string]string {
	return map[string]string{LabelName: nameValue, LabelInstance: nameOf(gw)}
}

func labels(gw model.Gateway) map[string]string {
	labels := map[string]string{}
	if gw.Infrastructure != nil {
		maps.Copy(labels, gw.Infrastructure.Labels)
	}
	maps.Copy(labels, selector(gw))
	labels[LabelManagedBy] = ManagedBy
	// The label of GEP-1762, by which others find a gateway's objects. Label
	// values are shorter than names may be.
	if len(gw.Name) <= 63 {
		labels[gatewayv1.GatewayNameLabelKey] = gw.Name
	}
	return labels
}

func owner(gw model.Gateway) *metav1ac.OwnerReferenceApplyConfiguration {
	return metav1ac.OwnerReference().
		WithAPIVersion(gatewayv1.GroupVersion.String()).
		WithKind("Gateway").
		WithName(gw.Name).
		WithUID(types.UID(gw.UID)).
		WithController(true)
}

func portName(port model.Port) string {
	if port.HTTPS {
		return fmt.Sprintf("https-%d", port.Number)
	}
	return fmt.Sprintf("http-%d", port.Number)
}
