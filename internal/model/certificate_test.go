package model

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/internal/certtest"
)

func tlsSecret(pair certtest.Pair) *corev1.Secret {
	return &corev1.Secret{
		Namespace: "shop", Name: "cert", UID: "1", Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{"tls.crt": pair.Certificate, "tls.key": pair.Key},
	}
}

// longRSA is as a key that takes long to make.
type longRSA struct{ *rsa.PrivateKey }

func (longRSA) Public() crypto.PublicKey {
	return &rsa.PublicKey{N: new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), 4099), big.NewInt(1)), E: 65537}
}

func block(kind string, content []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: content})
}

// What is refused is what Envoy would refuse (its own tests are in package xds),
// and what would serve nobody.
func TestReadCertificate(t *testing.T) {
	t.Parallel()
	authority := certtest.NewAuthority(t)
	good, other := authority.Issue(t, "b.example.com", "A.example.com", "192.0.2.1"), authority.Issue(t, "other")
	rsaKey, p256 := certtest.RSA(t, 2048), certtest.ECDSA(t, elliptic.P256())
	_, ed25519Key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(p256)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(key crypto.Signer, change func(*x509.Certificate)) *corev1.Secret {
		return tlsSecret(authority.IssueFor(t, key, change, "a.example.com"))
	}
	with := func(change func(secret *corev1.Secret)) *corev1.Secret {
		secret := tlsSecret(good)
		change(secret)
		return secret
	}
	data := func(certificate, key []byte) *corev1.Secret {
		return tlsSecret(certtest.Pair{Certificate: certificate, Key: key})
	}
	root := block("CERTIFICATE", authority.Certificate.Raw)

	for name, c := range map[string]struct {
		secret  *corev1.Secret
		problem string // a part of it; empty: the certificate is good
	}{
		"good":           {secret: tlsSecret(good)},
		"RSA, 2048 bits": {secret: issue(rsaKey, nil)},
		"RSA, PKCS 1":    {secret: data(authority.IssueFor(t, rsaKey, nil, "a").Certificate, block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey)))},
		"ECDSA, with the curve's parameters before the key": {secret: data(authority.IssueFor(t, p256, nil, "a").Certificate,
			append(block("EC PARAMETERS", []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}), block("EC PRIVATE KEY", sec1)...))},
		"ECDSA, P-384":               {secret: issue(certtest.ECDSA(t, elliptic.P384()), nil)},
		"ECDSA, P-521":               {secret: issue(certtest.ECDSA(t, elliptic.P521()), nil)},
		"a chain":                    {secret: data(append(bytes.Clone(good.Certificate), root...), good.Key)},
		"text around the PEM blocks": {secret: data(bytes.Join([][]byte{[]byte("subject=a\n"), good.Certificate, []byte("\nissuer=b\n"), root, []byte("end\n")}, nil), good.Key)},
		"Ed25519":                    {secret: issue(ed25519Key, nil)},
		"no key usage":               {secret: issue(p256, func(c *x509.Certificate) { c.KeyUsage = 0 })},

		"another type":                {with(func(s *corev1.Secret) { s.Type = corev1.SecretTypeOpaque }), `is of type "Opaque"`},
		"no certificate":              {with(func(s *corev1.Secret) { delete(s.Data, "tls.crt") }), "has no certificate"},
		"blank":                       {data([]byte(" \n"), good.Key), "has no certificate"},
		"without its key":             {with(func(s *corev1.Secret) { s.Data["tls.key"] = nil }), "a certificate without its key"},
		"no data":                     {with(func(s *corev1.Secret) { s.Data = nil }), "has no certificate"},
		"no PEM":                      {data([]byte("hello"), good.Key), "malformed certificate in tls.crt: no PEM block of type CERTIFICATE"},
		"a key instead":               {data(good.Key, good.Key), "no PEM block of type CERTIFICATE"},
		"cut off":                     {data(good.Certificate[:len(good.Certificate)/2], good.Key), "malformed certificate in tls.crt: number 1: not PEM, or cut off"},
		"second cut off":              {data(append(bytes.Clone(good.Certificate), root[:len(root)/2]...), good.Key), "number 2: not PEM, or cut off"},
		"no certificate in the block": {data(block("CERTIFICATE", []byte("hello")), good.Key), "malformed certificate in tls.crt: number 1"},
		"huge":                        {data(bytes.Repeat(good.Certificate, 200), good.Key), "at most 65536 are taken"},
		"no key":                      {data(good.Certificate, []byte("hello")), "malformed key in tls.key: no PEM block of a private key"},
		"no key in the block":         {data(good.Certificate, block("PRIVATE KEY", []byte("hello"))), "malformed key in tls.key: its content is no private key"},
		"an encrypted key":            {data(good.Certificate, block("ENCRYPTED PRIVATE KEY", []byte("x"))), "encrypted: store it without a passphrase"},
		"an encrypted key, the old way": {data(good.Certificate, pem.EncodeToMemory(&pem.Block{
			Type: "RSA PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00"}, Bytes: []byte("x"),
		})), "encrypted: store it without a passphrase"},
		"the key of another":        {data(good.Certificate, other.Key), "has a key that is not its certificate's"},
		"the root first":            {data(append(bytes.Clone(root), good.Certificate...), good.Key), "in the wrong order: put the one that the key belongs to (number 2 in tls.crt) first"},
		"RSA, 1024 bits":            {issue(certtest.RSA(t, 1024), nil), "an RSA key of 1024 bits"},
		"RSA, 4100 bits":            {data(authority.IssueFor(t, longRSA{rsaKey}, nil, "a").Certificate, good.Key), "an RSA key of 4100 bits"},
		"ECDSA, P-224":              {issue(certtest.ECDSA(t, elliptic.P224()), nil), "on the curve P-224"},
		"ECDSA, not for signatures": {issue(p256, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }), "not for digital signatures"},
		"must staple": {issue(p256, func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}, Value: []byte{0x30, 3, 2, 1, 5}}}
		}), "demands a stapled OCSP response"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := ReadCertificate(c.secret, nil)
			if c.problem == "" != (got.Problem == "") || !strings.Contains(got.Problem, c.problem) {
				t.Errorf("problem is %q, wanted %q", got.Problem, c.problem)
			}
			if got.Problem != "" && !strings.HasPrefix(got.Problem, "Secret shop/cert ") {
				t.Errorf("problem does not name the Secret: %q", got.Problem)
			}
			if (got.Problem == "") != (len(got.Chain) > 0 && len(got.PrivateKey) > 0) {
				t.Errorf("problem is %q, with a chain of %d bytes", got.Problem, len(got.Chain))
			}
		})
	}

	got := ReadCertificate(tlsSecret(good), nil)
	if diff := cmp.Diff([]string{"192.0.2.1", "a.example.com", "b.example.com"}, got.Names); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
}

func TestLastGoodCertificateIsKept(t *testing.T) {
	t.Parallel()
	pair := certtest.NewAuthority(t).Issue(t, "a.example.com")
	first := ReadCertificate(tlsSecret(pair), nil)
	broken := tlsSecret(pair)
	broken.Data = nil
	second := ReadCertificate(broken, first)
	if second.Problem == "" || !bytes.Equal(second.Chain, first.Chain) || !bytes.Equal(second.PrivateKey, first.PrivateKey) || second.NotAfter != first.NotAfter {
		t.Errorf("a Secret that has lost its content: %+v", second)
	}
	if third := ReadCertificate(broken, second); !bytes.Equal(third.Chain, first.Chain) {
		t.Errorf("the same again: %+v", third)
	}
	if mended := ReadCertificate(tlsSecret(pair), second); mended.Problem != "" {
		t.Errorf("mended: %+v", mended)
	}
	if unread := UnreadableCertificate(first.Secret, first, "forbidden"); unread.Problem == "" || !bytes.Equal(unread.Chain, first.Chain) || first.Problem != "" {
		t.Errorf("unreadable: %+v, was %+v", unread, first)
	}
	broken.UID = "2"
	if another := ReadCertificate(broken, first); another.Chain != nil {
		t.Errorf("another Secret of the same name: %+v", another)
	}
}

func TestPrivateKeysAreNotPrinted(t *testing.T) {
	t.Parallel()
	certificate := ReadCertificate(tlsSecret(certtest.NewAuthority(t).Issue(t, "a")), nil)
	encoded, err := json.Marshal(certificate)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		string(encoded), fmt.Sprint(certificate.PrivateKey), fmt.Sprintf("%+v %#v %x %s %q", certificate, certificate, certificate.PrivateKey, certificate.PrivateKey, certificate.PrivateKey),
		fmt.Sprintf("%v", Gateway{Certificates: []*Certificate{certificate}}), fmt.Sprintf("%+v", *certificate),
	} {
		for _, secret := range []string{"PRIVATE", "2d2d2d2d2d", "LS0tLS1CRUdJTiBQUklWQVRF", "45 45 45 45 45 66 69 71 73 78 32 80 82"} {
			if strings.Contains(text, secret) {
				t.Errorf("the key shows in %.300s", text)
			}
		}
	}
}

// Whatever a Secret holds, it is judged, and what is taken can be taken again.
func FuzzReadCertificate(f *testing.F) {
	authority := certtest.NewAuthority(f)
	good := authority.Issue(f, "a.example.com")
	f.Add(good.Certificate, good.Key)
	f.Add(append(bytes.Clone(good.Certificate), good.Certificate...), good.Key[:40])
	f.Fuzz(func(t *testing.T, certificate, key []byte) {
		read := ReadCertificate(tlsSecret(certtest.Pair{Certificate: certificate, Key: key}), nil)
		if read.Problem != "" {
			return
		}
		again := ReadCertificate(tlsSecret(certtest.Pair{Certificate: read.Chain, Key: read.PrivateKey}), nil)
		if diff := cmp.Diff(read, again); diff != "" {
			t.Errorf("(-first +again):\n%s", diff)
		}
	})
}

// Whatever a Gateway asks for, the Secrets that are read for it are bounded, and
// those of others are read all the same.
func TestAGatewayHasOnlySoManySecretsRead(t *testing.T) {
	t.Parallel()
	gateway := func(name string) *gatewayv1.Gateway {
		return &gatewayv1.Gateway{Namespace: "shop", Name: name, Spec: gatewayv1.GatewaySpec{GatewayClassName: "meshroute"}}
	}
	https := func(name string, secrets ...gatewayv1.ObjectName) gatewayv1.Listener {
		listener := gatewayv1.Listener{
			Name: gatewayv1.SectionName(name), Port: 443, Protocol: gatewayv1.HTTPSProtocolType,
			Hostname: new(gatewayv1.Hostname(name + ".example.com")), TLS: &gatewayv1.ListenerTLSConfig{},
		}
		for _, secret := range secrets {
			listener.TLS.CertificateRefs = append(listener.TLS.CertificateRefs, gatewayv1.SecretObjectReference{Name: secret})
		}
		return listener
	}
	greedy, modest := gateway("greedy"), gateway("modest")
	for i := range maxSecrets/64 + 1 {
		var secrets []gatewayv1.ObjectName
		for j := range 64 {
			secrets = append(secrets, gatewayv1.ObjectName(fmt.Sprintf("cert-%d-%d", i, j)))
		}
		greedy.Spec.Listeners = append(greedy.Spec.Listeners, https(fmt.Sprint("l", i), secrets...))
	}
	greedy.Spec.Listeners = append(greedy.Spec.Listeners, https("again", "cert-0-0"))
	modest.Spec.Listeners = append(modest.Spec.Listeners, https("one", "cert"))
	in := Inputs{
		GatewayClasses: []*gatewayv1.GatewayClass{{Name: "meshroute", Spec: gatewayv1.GatewayClassSpec{ControllerName: v1alpha1.ControllerName}}},
		Gateways:       []*gatewayv1.Gateway{greedy, modest},
		Certificates:   map[Key]*Certificate{},
	}
	pair := certtest.NewAuthority(t).Issue(t, "*.example.com")
	wanted := Certificates(in)
	for _, key := range wanted {
		secret := tlsSecret(pair)
		secret.Namespace, secret.Name = key.Namespace, key.Name
		in.Certificates[key] = ReadCertificate(secret, nil)
	}
	if len(wanted) != maxSecrets+1 || in.Certificates[Key{"shop", "cert"}] == nil {
		t.Errorf("%d Secrets are read, wanted %d", len(wanted), maxSecrets+1)
	}
	refused := func(secret string) string {
		return "Secret shop/" + secret + " is not looked at, because the listeners before refer to 256 others: have one certificate for several names, or another Gateway"
	}
	var got []string
	for _, status := range Build(in).GatewayStatuses {
		for _, listener := range status.Listeners {
			for _, condition := range listener.Conditions {
				if condition.Type == v1alpha1.ConditionResolvedRefs && condition.Status == metav1.ConditionFalse {
					got = append(got, fmt.Sprintf("%s of %s: %s", listener.Name, status.Name, condition.Message))
				}
			}
		}
	}
	want := []string{"l4 of greedy: " + refused("cert-4-0") + "; " + refused("cert-4-1") + "; " + refused("cert-4-2") + "; and 61 more"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
