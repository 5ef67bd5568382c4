package integration_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
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
	It("serves the certificate of its Secret, from its coming to its going", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		host := hostOf(namespace)
		plain, err := harness.FreePort()
		Expect(err).NotTo(HaveOccurred())
		secure, err := harness.FreePort()
		Expect(err).NotTo(HaveOccurred())
		gateway := harness.Gateway(namespace, "edge", class, plain)
		https := gateway.Spec.Listeners[0]
		https.Name, https.Port, https.Protocol = "https", gatewayv1.PortNumber(secure), gatewayv1.HTTPSProtocolType
		https.Hostname = new(gatewayv1.Hostname(host))
		https.TLS = &gatewayv1.ListenerTLSConfig{CertificateRefs: []gatewayv1.SecretObjectReference{{Name: "cert"}}}
		gateway.Spec.Listeners = append(gateway.Spec.Listeners, https)
		app := harness.Route(namespace, "app", host, "app", gatewayv1.ParentReference{Name: "edge", SectionName: new(gatewayv1.SectionName("https"))})
		redirect := harness.Route(namespace, "to-https", host, "app", gatewayv1.ParentReference{Name: "edge", SectionName: new(gatewayv1.SectionName("http"))})
		redirect.Spec.Rules = []v1alpha1.ServiceRouteRule{{Name: "all", Redirect: &v1alpha1.Redirect{Scheme: new("https")}}}
		create(ctx, harness.Service(namespace, "app"), harness.Endpoints(namespace, "app", backend("app", nil)), gateway, app, redirect)
		pod, err := cluster.StartPod(ctx, binaries, folder, client.ObjectKeyFromObject(gateway), class, "edge-0")
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(func() { pod.Stop() })
		Expect(harness.AwaitOK(ctx, pod.Readiness)).To(Succeed())

		listener := func(kind string) func() (string, error) {
			return func() (string, error) {
				var read gatewayv1.Gateway
				if err := cluster.Client.Get(ctx, client.ObjectKeyFromObject(gateway), &read); err != nil {
					return "", err
				}
				for _, status := range read.Status.Listeners {
					if status.Name == "https" {
						return condition(status.Conditions, kind), nil
					}
				}
				return "", nil
			}
		}
		authority := certtest.NewAuthority(GinkgoTB())
		var served *tls.ConnectionState
		ask := func(ctx context.Context) (int, error) {
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("https://127.0.0.1:%d/", secure), http.NoBody)
			if err != nil {
				return 0, err
			}
			request.Host = host
			asker := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
				DisableKeepAlives: true, TLSClientConfig: &tls.Config{ServerName: host, RootCAs: authority.Pool()},
			}}
			response, err := asker.Do(request)
			if err != nil {
				return 0, err
			}
			defer func() { _ = response.Body.Close() }()
			served = response.TLS
			return response.StatusCode, nil
		}

		By("telling that the Secret is missing, while its neighbour serves")
		Eventually(listener("ResolvedRefs")).Should(HavePrefix("False InvalidCertificateRef"))
		Eventually(listener("Programmed")).Should(HavePrefix("False Invalid"))
		Eventually(routeCondition(ctx, app, "Programmed")).Should(HavePrefix("False ListenerNotServed"))
		asker := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		Eventually(func() (string, error) {
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/a?b", plain), http.NoBody)
			if err != nil {
				return "", err
			}
			request.Host = fmt.Sprintf("%s:%d", host, plain)
			response, err := asker.Do(request)
			if err != nil {
				return "", err
			}
			return response.Header.Get("Location"), response.Body.Close()
		}).Should(Equal(fmt.Sprintf("https://%s:%d/a?b", host, secure)))

		By("serving when it is created")
		first := authority.Issue(GinkgoTB(), host)
		secret := &corev1.Secret{
			Namespace: namespace, Name: "cert", Type: corev1.SecretTypeTLS,
			Data: map[string][]byte{"tls.crt": first.Certificate, "tls.key": first.Key},
		}
		create(ctx, secret)
		Eventually(ask).WithContext(ctx).Should(Equal(200))
		Eventually(listener("ResolvedRefs")).Should(HavePrefix("True"))
		Eventually(listener("CertificatesValid")).Should(HavePrefix("True Valid"))
		Eventually(listener("Programmed")).Should(HavePrefix("True"))
		before := served.PeerCertificates[0]

		By("serving the next one, and losing no request on the way")
		second := authority.Issue(GinkgoTB(), host)
		start := time.Now()
		change(ctx, secret, func(s *corev1.Secret) {
			s.Data = map[string][]byte{"tls.crt": second.Certificate, "tls.key": second.Key}
		})
		for served.PeerCertificates[0].Equal(before) {
			code, err := ask(ctx)
			Expect(err).NotTo(HaveOccurred())
			Expect(code).To(Equal(200))
			Expect(time.Since(start)).To(BeNumerically("<", 10*time.Second), "the certificate before is served still")
		}
		AddReportEntry("rotated after", time.Since(start).String())

		By("keeping it when the Secret breaks")
		change(ctx, secret, func(s *corev1.Secret) { s.Data["tls.key"] = first.Key })
		Eventually(listener("ResolvedRefs")).Should(HavePrefix("False InvalidCertificateRef"))
		Expect(ask(ctx)).To(Equal(200))
		Expect(listener("Programmed")()).To(HavePrefix("True"))

		By("ending with it")
		Expect(cluster.Client.Delete(ctx, secret)).To(Succeed())
		Eventually(func() error { _, err := ask(ctx); return err }).Should(HaveOccurred())
		Eventually(listener("Programmed")).Should(HavePrefix("False Invalid"))
		Expect(operator.Log()).NotTo(ContainSubstring("PRIVATE KEY"))
	})
})
