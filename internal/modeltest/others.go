package modeltest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

type gvk = schema.GroupVersionKind

// others make objects of kinds that have no definition here: Kubernetes' own.
var others = map[string]func(c *choices, name string) map[string]any{
	"Namespace": namespace,
	"Service":   service,
	"Secret":    secret,
}

func namespace(c *choices, name string) map[string]any {
	return map[string]any{"metadata": map[string]any{"labels": map[string]any{
		"kubernetes.io/metadata.name": name, "team": pick(c, "a", "b", ""),
	}}}
}

func service(c *choices, _ string) map[string]any {
	var ports []any
	for i, name := range []string{"http", "grpc", "other"}[:1+c.of(3)] {
		port := map[string]any{"name": name, "port": []int64{80, 443, 8080}[i], "protocol": pick(c, "TCP", "TCP", "TCP", "UDP")}
		if i == 0 && c.sometimes(3) {
			port["targetPort"] = pick[any](c, int64(8080), "web")
		}
		if c.sometimes(2) {
			port["appProtocol"] = pick(c, "http", "https", "kubernetes.io/h2c", "kubernetes.io/ws", "kubernetes.io/wss", "grpc", "example.com/odd")
		}
		ports = append(ports, port)
	}
	if len(ports) == 1 && c.sometimes(3) {
		delete(ports[0].(map[string]any), "name")
	}
	spec := map[string]any{"ports": ports}
	switch c.of(6) {
	case 0:
		spec["type"] = "ExternalName"
		spec["externalName"] = pick(c, "example.org", "a.b.example.org", "10.0.0.1", "localhost")
	case 1:
		spec["clusterIP"] = "None"
	case 2:
		spec["ipFamilyPolicy"] = "PreferDualStack"
		spec["ipFamilies"] = []any{"IPv6", "IPv4"}
	case 3:
		spec["trafficDistribution"] = "PreferClose"
	}
	if c.sometimes(2) {
		spec["selector"] = map[string]any{"app": pick(c, "web", "api")}
	}
	content := map[string]any{"spec": spec}
	if c.sometimes(4) {
		content["metadata"] = map[string]any{"labels": map[string]any{"meshroute.io/isolation": pick(c, "gateway", "odd")}}
	}
	return content
}

func secret(c *choices, name string) map[string]any {
	keys := pairs()
	encoded := func(content []byte) string { return base64.StdEncoding.EncodeToString(content) }
	certificate, key := keys[0].certificate, keys[0].key
	switch name {
	case "wildcard":
		certificate, key = keys[1].certificate, keys[1].key
	case "mismatched":
		key = keys[1].key
	case "malformed":
		certificate = certificate[:len(certificate)/2]
	}
	data := map[string]any{"tls.crt": encoded(certificate), "tls.key": encoded(key)}
	switch c.of(8) {
	case 0:
		delete(data, "tls.key")
	case 1:
		data["tls.crt"] = ""
	}
	return map[string]any{"type": pick(c, "kubernetes.io/tls", "kubernetes.io/tls", "kubernetes.io/tls", "Opaque"), "data": data}
}

type pair struct{ certificate, key []byte }

// pairs are two certificates with their keys.
var pairs = sync.OnceValue(func() []pair {
	var made []pair
	for i, names := range [][]string{{"shop.example.com", "a.example.com"}, {"*.example.com"}} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			panic(err)
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
			NotBefore: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2036, 1, 1, 0, 0, 0, 0, time.UTC),
		}
		certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			panic(err)
		}
		private, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			panic(err)
		}
		made = append(made, pair{
			pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}),
			pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
		})
	}
	return made
})
