package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// Lifetimes. Everything is replaced after two thirds of its life, so that a
// third is left to get over an outage.
const (
	AuthorityLifetime = 365 * 24 * time.Hour
	ServingLifetime   = 24 * time.Hour
	GatewayLifetime   = 12 * time.Hour
)

// backdate is how far clocks may disagree before a fresh certificate looks as
// if it came from the future.
const backdate = 5 * time.Minute

const hidden = "[private key]"

// PrivatePEM is a private key in PEM. However it is printed or encoded, it
// shows that it is a key and nothing of it; []byte(k) has the content.
//
// Package fmt cannot call methods through unexported struct fields: keep it,
// and Bundle, out of those.
type PrivatePEM []byte

// Format implements fmt.Formatter for every verb, %x and %d included.
func (PrivatePEM) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, hidden) }

// String is for loggers that ask for it instead of using fmt.
func (PrivatePEM) String() string { return hidden }

// MarshalText serves JSON, YAML and log/slog.
func (PrivatePEM) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// Bundle is a certificate authority as it is kept in a Secret (tls.crt and
// tls.key). Anybody who holds KeyPEM can be any gateway and any manager.
type Bundle struct {
	// CertPEM has the authority's certificate first. After it come roots that
	// are still trusted, and certificates by which older roots vouch for newer.
	CertPEM []byte
	// KeyPEM belongs to the first certificate.
	KeyPEM PrivatePEM
}

// NewBundle makes a new authority, valid from now for AuthorityLifetime.
func NewBundle(now time.Time) (Bundle, error) {
	cert, key, err := newRoot(now)
	if err != nil {
		return Bundle{}, err
	}
	return pack(key, cert)
}

// RotateIfDue replaces an authority that has lived two thirds of its life and
// drops what has expired of older ones. Changed tells whether the returned
// Bundle differs from b and has to be stored; call it daily or more often.
//
// Old roots stay trusted until they expire. It is for authorities that NewBundle
// made; what cert-manager keeps, cert-manager rotates.
func RotateIfDue(b Bundle, now time.Time) (_ Bundle, changed bool, err error) {
	s, err := load(b)
	if err != nil {
		return Bundle{}, false, err
	}
	if !selfSigned(s.cert) {
		return Bundle{}, false, fmt.Errorf("the authority was issued by %q, which has to renew it", s.cert.Issuer)
	}
	var keep []*x509.Certificate
	for _, c := range s.bundle {
		if c == s.cert || now.Before(c.NotAfter) {
			keep = append(keep, c)
		}
	}
	if now.Before(twoThirds(s.cert.NotBefore, s.cert.NotAfter)) {
		if len(keep) == len(s.bundle) {
			return b, false, nil
		}
		return Bundle{CertPEM: encodeCerts(keep), KeyPEM: b.KeyPEM}, true, nil
	}

	cert, key, err := newRoot(now)
	if err != nil {
		return Bundle{}, false, err
	}
	certs := []*x509.Certificate{cert}
	if now.Before(s.cert.NotAfter) {
		cross, err := issue(&x509.Certificate{
			Subject:               cert.Subject,
			SubjectKeyId:          cert.SubjectKeyId,
			NotBefore:             cert.NotBefore,
			NotAfter:              earlier(cert.NotAfter, s.cert.NotAfter),
			IsCA:                  true,
			BasicConstraintsValid: true,
			MaxPathLenZero:        true,
			KeyUsage:              x509.KeyUsageCertSign,
		}, s.cert, key.Public(), s.key)
		if err != nil {
			return Bundle{}, false, err
		}
		certs = append(append(certs, cross), keep...)
	}
	b, err = pack(key, certs...)
	return b, true, err
}

// newRoot names each root after its moment, so that verifiers do not confuse
// the old with the new.
func newRoot(now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "meshroute " + now.UTC().Format(time.RFC3339)},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(AuthorityLifetime),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLen:            1, // a cross-signed successor, then the leaf
		KeyUsage:              x509.KeyUsageCertSign,
	}
	cert, err := issue(template, template, key.Public(), key)
	return cert, key, err
}

func issue(template, parent *x509.Certificate, pub crypto.PublicKey, signer crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func pack(key *ecdsa.PrivateKey, certs ...*x509.Certificate) (Bundle, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Bundle{}, err
	}
	return Bundle{
		CertPEM: encodeCerts(certs),
		KeyPEM:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
	}, nil
}

// signer is a Bundle read and checked; it never changes.
type signer struct {
	cert   *x509.Certificate
	key    crypto.Signer
	bundle []*x509.Certificate // all certificates of the Bundle, cert first
	chain  []*x509.Certificate // those that go out with what is signed
	roots  []*x509.Certificate
	pool   *x509.CertPool // of roots
}

func load(b Bundle, extraRoots ...[]byte) (*signer, error) {
	const remedy = "restore the authority's Secret, or delete it to have a new authority made"
	pair, err := tls.X509KeyPair(b.CertPEM, b.KeyPEM)
	if err != nil {
		return nil, fmt.Errorf("the authority's certificate and key cannot be used: %w; %s", err, remedy)
	}
	certs, err := decodeCerts(b.CertPEM)
	if err != nil {
		return nil, fmt.Errorf("the authority's certificates: %w; %s", err, remedy)
	}
	s := &signer{cert: certs[0], key: pair.PrivateKey.(crypto.Signer), bundle: certs, pool: x509.NewCertPool()}
	if !s.cert.IsCA {
		return nil, errors.New("the first certificate of the authority is not a CA certificate; " + remedy)
	}
	for _, roots := range extraRoots {
		extra, err := decodeCerts(roots)
		if err != nil {
			return nil, fmt.Errorf("the authority's further roots: %w; correct or remove them", err)
		}
		certs = slices.Concat(certs, extra)
	}
	known := false
	for _, c := range certs {
		if selfSigned(c) {
			s.roots = append(s.roots, c)
			s.pool.AddCert(c)
		} else {
			s.chain = append(s.chain, c)
		}
		known = known || s.cert.CheckSignatureFrom(c) == nil
	}
	if !known || len(s.roots) == 0 {
		return nil, errors.New("the authority's issuer is not among its certificates; append the issuer's certificate (ca.crt) up to the root")
	}
	return s, nil
}

// sign makes a leaf certificate that never outlives the authority.
func (s *signer) sign(template *x509.Certificate, pub crypto.PublicKey, life time.Duration, now time.Time) ([]*x509.Certificate, error) {
	if !now.Before(s.cert.NotAfter) {
		return nil, fmt.Errorf("the authority expired on %s; delete its Secret to have a new one made", s.cert.NotAfter.Format(time.RFC3339))
	}
	template.NotBefore = now.Add(-backdate)
	template.NotAfter = earlier(now.Add(life), s.cert.NotAfter)
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageDigitalSignature
	leaf, err := issue(template, s.cert, pub, s.key)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return append([]*x509.Certificate{leaf}, s.chain...), nil
}

func selfSigned(c *x509.Certificate) bool {
	return string(c.RawIssuer) == string(c.RawSubject) && c.CheckSignatureFrom(c) == nil
}

func encodeCerts(certs []*x509.Certificate) (out []byte) {
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// decodeCerts wants one certificate at least and no other kind of block.
func decodeCerts(in []byte) (certs []*x509.Certificate, _ error) {
	for block, rest := pem.Decode(in); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("found a PEM block %q where only certificates belong", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate found in PEM")
	}
	return certs, nil
}

func twoThirds(from, to time.Time) time.Time { return from.Add(to.Sub(from) * 2 / 3) }

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
