package model

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Certificate is a certificate with its key, from a Secret that Gateways refer
// to. It is never changed once made.
type Certificate struct {
	// Secret that it comes from.
	Secret Key
	// UID of the Secret.
	UID string
	// Chain is the certificate and those that lead to its root, in PEM, and
	// PrivateKey its key. Both are empty where there is none that is good:
	// gateways keep the one that they have, if any.
	Chain      []byte
	PrivateKey PrivateKey
	// Names are the DNS names and IP addresses that the certificate is for.
	Names []string
	// NotBefore and NotAfter bound the time in which it is valid.
	NotBefore, NotAfter time.Time
	// Problem tells why what the Secret holds cannot be used, and what to do;
	// empty where it can. Chain and PrivateKey are those of the Secret's last
	// good content then.
	Problem string
}

// PrivateKey is a private key in PEM. It shows itself to nobody who prints it.
type PrivateKey []byte

const redacted = "[private key]"

// Format prints a placeholder, whatever the verb.
func (PrivateKey) Format(state fmt.State, _ rune) { _, _ = state.Write([]byte(redacted)) }

// MarshalText prints a placeholder.
func (PrivateKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// UnreadableCertificate stands for a Secret of which it is not known what it
// holds, or whether it exists. before is what was known of it, or nil.
func UnreadableCertificate(secret Key, before *Certificate, why string) *Certificate {
	unreadable := Certificate{Secret: secret}
	if before != nil {
		unreadable = *before
	}
	unreadable.Problem = fmt.Sprintf("Secret %s cannot be read: %s", secret, why)
	return &unreadable
}

// ReadCertificate reads a Secret. before is what came of the Secret's earlier
// content, or nil: its last good certificate stays in use while the Secret holds
// nothing that can be.
func ReadCertificate(secret *corev1.Secret, before *Certificate) *Certificate {
	certificate := &Certificate{Secret: keyOf(secret), UID: string(secret.UID)}
	err := certificate.read(secret)
	if err == nil {
		return certificate
	}
	certificate = &Certificate{Secret: keyOf(secret), UID: string(secret.UID)}
	if before != nil && before.UID == certificate.UID {
		*certificate = *before
	}
	certificate.Problem = fmt.Sprintf("Secret %s %s", certificate.Secret, err.Error())
	return certificate
}

// maxChain bounds a chain, in bytes: clients get it with each handshake.
const maxChain = 64 << 10

// read takes the certificate from a Secret. It admits nothing that Envoy would
// refuse, and writes all of it anew, so that Envoy gets nothing else.
func (c *Certificate) read(secret *corev1.Secret) error {
	if secret.Type != corev1.SecretTypeTLS {
		return fmt.Errorf("is of type %q: one of type %s is needed, with %s and %s", secret.Type, corev1.SecretTypeTLS, corev1.TLSCertKey, corev1.TLSPrivateKeyKey)
	}
	encoded, encodedKey := secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey]
	switch {
	case len(bytes.TrimSpace(encoded)) == 0:
		return fmt.Errorf("has no certificate: put one into %s, in PEM", corev1.TLSCertKey)
	case len(encoded) > maxChain:
		return fmt.Errorf("has %d bytes of certificates in %s: at most %d are taken; leave roots out", len(encoded), corev1.TLSCertKey, maxChain)
	case len(bytes.TrimSpace(encodedKey)) == 0:
		return fmt.Errorf("has a certificate without its key: put that into %s, in PEM", corev1.TLSPrivateKeyKey)
	}
	chain, err := parseChain(encoded)
	if err != nil {
		return fmt.Errorf("has a malformed certificate in %s: %w", corev1.TLSCertKey, err)
	}
	key, err := parseKey(encodedKey)
	if err != nil {
		return fmt.Errorf("has a malformed key in %s: %w", corev1.TLSPrivateKeyKey, err)
	}
	leaf := chain[0]
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	belongs := func(to *x509.Certificate) bool { return ok && public.Equal(to.PublicKey) }
	if i := slices.IndexFunc(chain, belongs); i > 0 {
		return fmt.Errorf("has its certificates in the wrong order: put the one that the key belongs to (number %d in %s) first", i+1, corev1.TLSCertKey)
	}
	if err := servable(leaf); err != nil {
		return err
	}
	if !belongs(leaf) {
		return fmt.Errorf("has a key that is not its certificate's: %s and the first certificate in %s have to belong together", corev1.TLSPrivateKeyKey, corev1.TLSCertKey)
	}
	marshalled, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("has a key in %s that cannot be used: %w", corev1.TLSPrivateKeyKey, err)
	}
	for _, link := range chain {
		c.Chain = append(c.Chain, pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: link.Raw})...)
	}
	c.PrivateKey = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: marshalled})
	c.NotBefore, c.NotAfter = leaf.NotBefore, leaf.NotAfter
	for _, name := range leaf.DNSNames {
		c.Names = append(c.Names, strings.ToLower(name))
	}
	for _, address := range leaf.IPAddresses {
		c.Names = append(c.Names, address.String())
	}
	slices.Sort(c.Names)
	c.Names = slices.Compact(c.Names)
	return nil
}

const pemCertificate = "CERTIFICATE"

// parseChain reads certificates; what else stands between them is left out.
func parseChain(encoded []byte) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for {
		block, rest := pem.Decode(encoded)
		if block == nil {
			break
		}
		encoded = rest
		if block.Type != pemCertificate {
			continue
		}
		link, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("number %d: %w", len(chain)+1, err)
		}
		chain = append(chain, link)
	}
	if bytes.Contains(encoded, []byte("-----BEGIN")) {
		return nil, fmt.Errorf("number %d: not PEM, or cut off", len(chain)+1)
	}
	if len(chain) == 0 {
		return nil, errors.New("no PEM block of type " + pemCertificate)
	}
	return chain, nil
}

// parseKey reads the first private key. Its errors hold nothing of the key.
func parseKey(encoded []byte) (crypto.Signer, error) {
	for {
		block, rest := pem.Decode(encoded)
		if block == nil {
			return nil, errors.New("no PEM block of a private key")
		}
		encoded = rest
		var key any
		var err error
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			if block.Headers["DEK-Info"] != "" {
				return nil, errEncrypted
			}
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			if block.Headers["DEK-Info"] != "" {
				return nil, errEncrypted
			}
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "ENCRYPTED PRIVATE KEY":
			return nil, errEncrypted
		default:
			continue // parameters of a curve, say
		}
		if err != nil {
			return nil, errors.New("its content is no private key")
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, errors.New("a key of its kind signs nothing")
		}
		return signer, nil
	}
}

var errEncrypted = errors.New("it is encrypted: store it without a passphrase")

var (
	// mustStaple is the extension by which a certificate is worth nothing without
	// a proof that it is not revoked (RFC 7633).
	mustStaple = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}

	curves = []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()}
)

// minRSA and maxRSA bound an RSA key, in bits: Envoy takes none that are
// shorter, and signing with longer ones costs more than serving a request.
const minRSA, maxRSA = 2048, 4096

// servable tells why Envoy does not serve with a certificate.
func servable(leaf *x509.Certificate) error {
	switch key := leaf.PublicKey.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < minRSA || bits > maxRSA {
			return fmt.Errorf("has an RSA key of %d bits: from %d to %d are served; have it issued anew", bits, minRSA, maxRSA)
		}
	case *ecdsa.PublicKey:
		if !slices.Contains(curves, key.Curve) {
			return fmt.Errorf("has an ECDSA key on the curve %s: P-256, P-384 and P-521 are served; have it issued anew", key.Curve.Params().Name)
		}
		if leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
			return errors.New("has an ECDSA certificate that is not for digital signatures: have it issued with that key usage")
		}
	case ed25519.PublicKey:
	default:
		return fmt.Errorf("has a key of the kind %s: RSA, ECDSA and Ed25519 are served; have it issued anew", leaf.PublicKeyAlgorithm)
	}
	for _, extension := range leaf.Extensions {
		if extension.Id.Equal(mustStaple) {
			return errors.New("has a certificate that demands a stapled OCSP response, which gateways do not have: have it issued without \"must staple\"")
		}
	}
	return nil
}

// validAt tells what is wrong with serving a certificate at a time; empty where
// nothing is.
func (c *Certificate) validAt(now time.Time) (expired bool, problem string) {
	switch {
	case now.IsZero():
	case now.After(c.NotAfter):
		return true, fmt.Sprintf("the certificate of Secret %s expired at %s: clients refuse it; renew it", c.Secret, c.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(c.NotBefore):
		return false, fmt.Sprintf("the certificate of Secret %s is not valid before %s: clients refuse it until then", c.Secret, c.NotBefore.UTC().Format(time.RFC3339))
	}
	return false, ""
}

// NextChange is when next a certificate becomes valid or expires, after now; the
// zero Time where none does.
func NextChange(certificates map[Key]*Certificate, now time.Time) (next time.Time) {
	for _, certificate := range certificates {
		for _, at := range []time.Time{certificate.NotBefore, certificate.NotAfter} {
			if at.After(now) && (next.IsZero() || at.Before(next)) {
				next = at
			}
		}
	}
	return next
}
