package identity

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"k8s.io/apimachinery/pkg/util/validation"
)

// ErrUnauthenticated is wrapped by errors that say: this peer is not who it
// claims to be. Any other error of a token check means that the check itself
// could not be made.
var ErrUnauthenticated = errors.New("not authenticated")

// Gateway is who an agent is: one pod of one Gateway.
type Gateway struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Pod       string `json:"pod"`
}

// The longest URI that a valid Gateway can have: a namespace has at most 63
// characters, the two names 253 each.
const maxURI = len("spiffe://meshroute.io/ns//gateway//pod/") + 63 + 2*253

// URI is the form in which a certificate carries the gateway, as its only
// subject alternative name.
func (g Gateway) URI() string {
	return "spiffe://meshroute.io/ns/" + g.Namespace + "/gateway/" + g.Name + "/pod/" + g.Pod
}

// String is "namespace/name/pod", for logs.
func (g Gateway) String() string { return g.Namespace + "/" + g.Name + "/" + g.Pod }

// Validate refuses names that Kubernetes would refuse. It is what keeps a name
// from spelling a second path segment in the URI.
func (g Gateway) Validate() error {
	for _, part := range []struct {
		field, value string
		check        func(string) []string
	}{
		{"namespace", g.Namespace, validation.IsDNS1123Label},
		{"name", g.Name, validation.IsDNS1123Subdomain},
		{"pod", g.Pod, validation.IsDNS1123Subdomain},
	} {
		if faults := part.check(part.value); len(faults) > 0 {
			return fmt.Errorf("gateway %s: %s", part.field, faults[0])
		}
	}
	return nil
}

// ParseGateway reads what URI wrote, and nothing else: another scheme, host,
// escape, query or segment is an error.
func ParseGateway(uri string) (Gateway, error) {
	if len(uri) > maxURI {
		return Gateway{}, fmt.Errorf("gateway URI has %d characters, at most %d are allowed", len(uri), maxURI)
	}
	p := strings.Split(uri, "/") // spiffe: "" host ns NAMESPACE gateway NAME pod POD
	if len(p) != 9 {
		return Gateway{}, fmt.Errorf("%q is not a gateway URI", uri)
	}
	g := Gateway{Namespace: p[4], Name: p[6], Pod: p[8]}
	if g.URI() != uri {
		return Gateway{}, fmt.Errorf("%q is not a gateway URI", uri)
	}
	return g, g.Validate()
}

// PeerGateway tells which gateway is at the other end of a gRPC call whose
// server uses MutualTLS. Every error wraps ErrUnauthenticated.
//
// The certificate was checked when the connection was made; a stream may
// outlive it, so servers bound a connection's age.
func PeerGateway(ctx context.Context) (Gateway, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Gateway{}, fmt.Errorf("%w: the call has no peer", ErrUnauthenticated)
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return Gateway{}, fmt.Errorf("%w: the peer has shown no verified certificate", ErrUnauthenticated)
	}
	g, err := certificateGateway(info.State.VerifiedChains[0][0])
	if err != nil {
		return Gateway{}, fmt.Errorf("%w: %w", ErrUnauthenticated, err)
	}
	return g, nil
}

func certificateGateway(cert *x509.Certificate) (Gateway, error) {
	if len(cert.URIs) != 1 {
		return Gateway{}, fmt.Errorf("the certificate names %d URIs, a gateway's names one", len(cert.URIs))
	}
	return ParseGateway(cert.URIs[0].String())
}

func (g Gateway) url() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: "meshroute.io", Path: strings.TrimPrefix(g.URI(), "spiffe://meshroute.io")}
}
