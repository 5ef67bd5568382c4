package e2e_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/internal/certtest"
	"meshroute.io/meshroute/test/harness"
)

var _ = Describe("An HTTPS listener", Label("tls"), func() {
	It("serves with the certificate of a Secret, and takes another one without losing a request", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		host := namespace + ".example.com"
		app := backend(ctx, namespace, "app", 1)
		authority := certtest.NewAuthority(GinkgoTB())
		first, second := authority.Issue(GinkgoTB(), host), authority.Issue(GinkgoTB(), host)
		secret := &corev1.Secret{
			Namespace: namespace, Name: "web", Type: corev1.SecretTypeTLS,
			Data: map[string][]byte{corev1.TLSCertKey: first.Certificate, corev1.TLSPrivateKeyKey: first.Key},
		}
		create(ctx, secret)
		gw := newGateway(ctx, namespace, "edge")
		create(ctx, harness.Route(namespace, "app", host, "app", gw.parent()))
		change(ctx, &gatewayv1.Gateway{Namespace: gw.Namespace, Name: gw.Name}, func(gateway *gatewayv1.Gateway) {
			https := *gateway.Spec.Listeners[0].DeepCopy()
			https.Name, https.Port, https.Protocol = "https", 443, gatewayv1.HTTPSProtocolType
			https.TLS = &gatewayv1.ListenerTLSConfig{CertificateRefs: []gatewayv1.SecretObjectReference{{Name: "web"}}}
			gateway.Spec.Listeners = append(gateway.Spec.Listeners, https)
		})
		awaitRollout(ctx, client.ObjectKeyFromObject(app))
		address := tlsNodePort(ctx, gw.deployment)
		served := func() (string, error) {
			_, certificate, err := getTLS(address, host, authority.Pool())
			return certificate, err
		}
		Eventually(served).WithTimeout(time.Minute).Should(Equal(string(first.Certificate)))
		protocol, _, err := getTLS(address, host, authority.Pool())
		Expect(err).NotTo(HaveOccurred())
		Expect(protocol).To(Equal("HTTP/2.0"))
		Eventually(gatewayCondition(ctx, gw.ObjectKey, v1alpha1.ConditionProgrammed)).Should(HavePrefix("True"))

		// Each request over a connection of its own.
		var failures []string
		sent, stop, stopped := 0, make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				select {
				case <-stop:
					return
				case <-time.After(10 * time.Millisecond):
				}
				sent++
				if _, _, err := getTLS(address, host, authority.Pool()); err != nil {
					failures = append(failures, err.Error())
				}
			}
		}()
		change(ctx, secret, func(secret *corev1.Secret) {
			secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey] = second.Certificate, second.Key
		})
		Eventually(served).WithTimeout(time.Minute).Should(Equal(string(second.Certificate)))
		close(stop)
		<-stopped
		Expect(failures).To(BeEmpty(), "of %d", sent)
	})
})

// getTLS asks for / of a host over a new connection and returns what was spoken
// and the certificate, in PEM.
func getTLS(address, host string, roots *x509.CertPool) (protocol, certificate string, err error) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, ForceAttemptHTTP2: true,
		TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: host, MinVersion: tls.VersionTLS12},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
	}}
	response, err := client.Get("https://" + host + "/")
	if err != nil {
		return "", "", err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return "", "", fmt.Errorf("status %d", response.StatusCode)
	}
	block := &pem.Block{Type: "CERTIFICATE", Bytes: response.TLS.PeerCertificates[0].Raw}
	return response.Proto, string(pem.EncodeToMemory(block)), nil
}

// tlsNodePort is where port 443 of a Service is reached from outside.
func tlsNodePort(ctx context.Context, service client.ObjectKey) string {
	GinkgoHelper()
	var port int32
	Eventually(func() (int32, error) {
		var found corev1.Service
		err := k8s.Get(ctx, service, &found)
		for _, of := range found.Spec.Ports {
			if of.Port == 443 {
				port = of.NodePort
			}
		}
		return port, err
	}).Should(BeNumerically(">", 0))
	return net.JoinHostPort(nodeAddress(ctx, controlPlane), strconv.Itoa(int(port)))
}
