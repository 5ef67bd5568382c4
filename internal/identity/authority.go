package identity

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/utils/clock"
)

// Authority is the manager's certificate authority. It is safe for concurrent
// use, and Update exchanges its content while it serves.
type Authority struct {
	current atomic.Pointer[signer]
}

// LoadAuthority reads a Bundle. ExtraRoots are PEM files of roots to trust in
// addition: the issuer of an authority that cert-manager keeps. An error says
// what is wrong and what to do about it.
func LoadAuthority(b Bundle, extraRoots ...[]byte) (*Authority, error) {
	a := &Authority{}
	if err := a.Update(b, extraRoots...); err != nil {
		return nil, err
	}
	return a, nil
}

// Update takes over a Bundle that has changed: new handshakes and signatures
// use it at once. On an error the Authority goes on with what it had.
func (a *Authority) Update(b Bundle, extraRoots ...[]byte) error {
	s, err := load(b, extraRoots...)
	if err != nil {
		return err
	}
	a.current.Store(s)
	return nil
}

// RootsPEM is what agents need to trust this authority: the content of the
// ConfigMap that is mounted into their pods. The newest root comes first.
func (a *Authority) RootsPEM() []byte { return encodeCerts(a.current.Load().roots) }

var errBadRequest = errors.New("certificate request refused")

// maxCSR, in bytes, leaves room for an RSA key of 8192 bits.
const maxCSR = 16 << 10

// Sign issues a client certificate for gw, valid for GatewayLifetime at most,
// to the public key of a PEM certificate request. The key is all it takes from
// the request: names, extensions and lifetimes asked for are ignored.
//
// Whether the requester is gw must have been checked before.
func (a *Authority) Sign(csrPEM []byte, gw Gateway, now time.Time) (chainPEM []byte, notAfter time.Time, err error) {
	if err := gw.Validate(); err != nil {
		return nil, time.Time{}, fmt.Errorf("%w: %w", errBadRequest, err)
	}
	pub, err := requestKey(csrPEM)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("%w: %w", errBadRequest, err)
	}
	chain, err := a.current.Load().sign(&x509.Certificate{
		URIs:        []*url.URL{gw.url()},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, pub, GatewayLifetime, now)
	if err != nil {
		return nil, time.Time{}, err
	}
	return encodeCerts(chain), chain[0].NotAfter, nil
}

// requestKey returns the public key of a request that proves possession of the
// private one.
func requestKey(csrPEM []byte) (any, error) {
	if len(csrPEM) > maxCSR {
		return nil, fmt.Errorf("it has %d bytes, at most %d are allowed", len(csrPEM), maxCSR)
	}
	block, rest := pem.Decode(csrPEM)
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(strings.TrimSpace(string(rest))) > 0 {
		return nil, errors.New("it is not one PEM block of type CERTIFICATE REQUEST")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	// The key's size comes first: checking a signature of a huge key is costly.
	if err := checkKey(csr.PublicKey); err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("its signature is wrong: %w", err)
	}
	return csr.PublicKey, nil
}

func checkKey(pub any) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return nil
		}
	case ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits >= 2048 && bits <= 8192 {
			return nil
		}
	}
	return errors.New("its key must be ECDSA P-256 or P-384, Ed25519, or RSA of 2048 to 8192 bits")
}

// ServerTLS serves the certificate endpoint: the server proves itself, clients
// do so with a token. Names are the DNS names and IP addresses by which agents
// reach this manager; certificates for them live ServingLifetime, and the next
// one is issued by the first handshake after two thirds of that.
func (a *Authority) ServerTLS(names []string, clk clock.PassiveClock) *tls.Config {
	s := &serving{authority: a, names: names, clk: clk}
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		Time:           clk.Now,
		GetCertificate: s.certificate,
		// A resumed session would skip the checks of a full handshake.
		SessionTicketsDisabled: true,
	}
}

// MutualTLS serves xDS: as ServerTLS, but only to clients with a certificate of
// this authority. PeerGateway tells who they are.
func (a *Authority) MutualTLS(names []string, clk clock.PassiveClock) *tls.Config {
	base := a.ServerTLS(names, clk)
	base.NextProtos = []string{"h2"}
	base.ClientAuth = tls.RequireAndVerifyClientCert
	base.ClientCAs = x509.NewCertPool() // trusts nobody; each handshake gets its own
	outer := base.Clone()
	outer.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c := base.Clone()
		c.ClientCAs = a.current.Load().pool
		return c, nil
	}
	return outer
}

// serving keeps a manager's own certificate fresh.
type serving struct {
	authority *Authority
	names     []string
	clk       clock.PassiveClock

	mu      sync.Mutex
	cert    *tls.Certificate
	by      *signer   // who signed cert
	renewAt time.Time // when cert is replaced
}

func (s *serving) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	by, now := s.authority.current.Load(), s.clk.Now()
	if s.cert != nil && s.by == by && now.Before(s.renewAt) {
		return s.cert, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, name := range s.names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	chain, err := by.sign(template, key.Public(), ServingLifetime, now)
	if err != nil {
		return nil, err
	}
	s.cert, s.by, s.renewAt = tlsCertificate(chain, key), by, twoThirds(now, chain[0].NotAfter)
	return s.cert, nil
}

func tlsCertificate(chain []*x509.Certificate, key *ecdsa.PrivateKey) *tls.Certificate {
	cert := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert
}
