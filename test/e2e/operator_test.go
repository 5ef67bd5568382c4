package e2e_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/test/harness"
)

// Serial: it ends leaders and replaces the authority.
var _ = Describe("The operator", Label("operator"), Serial, func() {
	It("runs as two replicas, and tells of gateways whichever of them serves these", func(ctx SpecContext) {
		awaitRollout(ctx, managers)
		var pods corev1.PodList
		Expect(k8s.List(ctx, &pods, client.InNamespace(managers.Namespace), client.MatchingLabels{"app.kubernetes.io/name": managers.Name})).To(Succeed())
		Expect(pods.Items).To(HaveLen(2))

		// Four pods, so that hardly ever all of them have the same manager.
		namespace := newNamespace(ctx)
		backend(ctx, namespace, "app", 1)
		gw := newGateway(ctx, namespace, "own", func(config *v1alpha1.GatewayConfigSpec) { config.Replicas = new(int32(4)) })
		awaitRollout(ctx, gw.deployment)
		route := harness.Route(namespace, "app", "replicas.example.com", "app", gw.parent())
		create(ctx, route)
		shown := func() (string, error) {
			return tryKubectl(ctx, "", "get", "meshroute", "app", "--namespace", namespace)
		}
		Eventually(shown).WithTimeout(time.Minute).Should(MatchRegexp(`True +4/4`))

		By("changing the leader")
		before, err := leader(ctx)
		Expect(err).NotTo(HaveOccurred())
		kubectl(ctx, "delete", "pod", before, "--namespace", managers.Namespace, "--wait=false")
		Eventually(func() (string, error) { return leader(ctx) }).WithTimeout(time.Minute).ShouldNot(Equal(before))
		awaitRollout(ctx, managers)
		Eventually(shown).WithTimeout(time.Minute).Should(MatchRegexp(`True +4/4`))
		Consistently(shown).WithTimeout(5 * time.Second).Should(MatchRegexp(`True +4/4`))
	}, SpecTimeout(6*time.Minute))

	It("shows its metrics to those who may see them, and to nobody else", func(ctx SpecContext) {
		var pods corev1.PodList
		Expect(k8s.List(ctx, &pods, client.InNamespace(managers.Namespace), client.MatchingLabels{"app.kubernetes.io/name": managers.Name})).To(Succeed())
		namespace := newNamespace(ctx)
		create(ctx, &corev1.ServiceAccount{Namespace: namespace, Name: "reader"}, &corev1.ServiceAccount{Namespace: namespace, Name: "other"})
		binding := "e2e-metrics-" + namespace
		kubectl(ctx, "create", "clusterrolebinding", binding, "--clusterrole=meshroute-metrics-reader", "--serviceaccount="+namespace+":reader")
		DeferCleanup(func(ctx SpecContext) { kubectl(ctx, "delete", "clusterrolebinding", binding) })
		token := func(account string) string {
			GinkgoHelper()
			request := &authenticationv1.TokenRequest{}
			Expect(k8s.SubResource("token").Create(ctx, &corev1.ServiceAccount{Namespace: namespace, Name: account}, request)).To(Succeed())
			return request.Status.Token
		}
		// From the node, which may speak to its pods.
		ask := func(bearer string) string {
			arguments := []string{"curl", "--insecure", "--silent", "--max-time", "5", "--write-out", "\n%{http_code}"}
			if bearer != "" {
				arguments = append(arguments, "--header", "Authorization: Bearer "+bearer)
			}
			return onNode(ctx, pods.Items[0].Spec.NodeName, append(arguments, fmt.Sprintf("https://%s:8443/metrics", pods.Items[0].Status.PodIP))...)
		}
		Expect(ask("")).To(HaveSuffix("\n401"))
		Expect(ask(token("other"))).To(HaveSuffix("\n403"))
		Expect(ask(token("reader"))).To(And(HaveSuffix("\n200"), ContainSubstring("controller_runtime_reconcile_total")))
	})

	It("replaces its authority without anybody noticing", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		backend(ctx, namespace, "app", 1)
		gw := newGateway(ctx, namespace, "own", func(config *v1alpha1.GatewayConfigSpec) { config.Replicas = new(int32(2)) })
		create(ctx, harness.Route(namespace, "app", "rotate.example.com", "app", gw.parent()))
		Eventually(routeCondition(ctx, client.ObjectKey{Namespace: namespace, Name: "app"}, v1alpha1.ConditionReady)).WithTimeout(time.Minute).Should(HavePrefix("True"))
		load := startTraffic(gw.address, "rotate.example.com", 50, 10, nil)
		defer load.cancel()

		var secret corev1.Secret
		key := client.ObjectKey{Namespace: managers.Namespace, Name: "meshroute-ca"}
		Expect(k8s.Get(ctx, key, &secret)).To(Succeed())
		before := authority(secret.Data[corev1.TLSCertKey])
		// The same authority, but older: it is due.
		secret.Data[corev1.TLSCertKey] = aged(secret, before)
		Expect(k8s.Update(ctx, &secret)).To(Succeed())
		Eventually(func() (time.Time, error) {
			err := k8s.Get(ctx, key, &secret)
			return authority(secret.Data[corev1.TLSCertKey]).NotBefore, err
		}).WithTimeout(3 * time.Minute).Should(BeTemporally(">=", before.NotBefore))

		By("having pods that trust the old one, and a pod that trusts the new one, take changes")
		Expect(k8s.Delete(ctx, &gw.pods(ctx)[0])).To(Succeed())
		kubectl(ctx, "rollout", "restart", "deployment/"+managers.Name, "--namespace", managers.Namespace)
		awaitRollout(ctx, managers)
		awaitRollout(ctx, gw.deployment)
		create(ctx, harness.Route(namespace, "new", "new.rotate.example.com", "app", gw.parent()))
		Eventually(func() (string, error) {
			return tryKubectl(ctx, "", "get", "meshroute", "new", "--namespace", namespace)
		}).WithTimeout(time.Minute).Should(MatchRegexp(`True +2/2`))
		got := load.stop()
		Expect(got.Failed).To(BeZero(), got.String())
	}, SpecTimeout(8*time.Minute))
})

func authority(content []byte) *x509.Certificate {
	GinkgoHelper()
	block, _ := pem.Decode(content)
	Expect(block).NotTo(BeNil())
	certificate, err := x509.ParseCertificate(block.Bytes)
	Expect(err).NotTo(HaveOccurred())
	return certificate
}

// aged is the certificate of an authority with the same key and name, but made
// 300 days ago.
func aged(secret corev1.Secret, of *x509.Certificate) []byte {
	GinkgoHelper()
	pair, err := tls.X509KeyPair(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
	Expect(err).NotTo(HaveOccurred())
	key, isECDSA := pair.PrivateKey.(*ecdsa.PrivateKey)
	Expect(isECDSA).To(BeTrue())
	template := *of
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().AddDate(0, 0, -300), time.Now().AddDate(0, 0, 65)
	made, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	Expect(err).NotTo(HaveOccurred())
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: made})
}

// Serial: it counts what there is in the whole cluster, and takes it away.
var _ = Describe("Removal", Label("removal"), Serial, func() {
	// made lists every object in the cluster that carries the operator's label.
	made := func(ctx SpecContext, arguments ...string) []string {
		GinkgoHelper()
		kinds := "deployments,services,configmaps,serviceaccounts,poddisruptionbudgets,horizontalpodautoscalers,networkpolicies,replicasets,pods,endpointslices"
		output := kubectl(ctx, append([]string{"get", kinds, "--output", "name", "--selector", "app.kubernetes.io/managed-by=meshroute"}, arguments...)...)
		return strings.Fields(output)
	}

	It("of a Gateway takes away everything that was made for it", func(ctx SpecContext) {
		namespace, other := newNamespace(ctx), newNamespace(ctx)
		backend(ctx, namespace, "app", 1)
		backend(ctx, other, "abroad", 1)
		gw := newGateway(ctx, namespace, "own", func(config *v1alpha1.GatewayConfigSpec) {
			config.NetworkPolicy = &v1alpha1.NetworkPolicy{Backends: new(v1alpha1.BackendPolicyAll)}
		})
		create(ctx, harness.Route(namespace, "app", "removal.example.com", "app", gw.parent()), harness.Route(other, "abroad", "abroad.example.com", "abroad", gw.parent()))
		Eventually(status(gw.address, "removal.example.com", "/")).WithTimeout(time.Minute).Should(Equal(200))
		Eventually(func() []string { return made(ctx, "--namespace", other) }).Should(Not(BeEmpty()), "the policy of the backend there")
		Expect(made(ctx, "--namespace", namespace)).NotTo(BeEmpty())
		Expect(k8s.Delete(ctx, &gatewayv1.Gateway{Namespace: namespace, Name: "own"})).To(Succeed())
		for _, in := range []string{namespace, other} {
			Eventually(func() []string { return made(ctx, "--namespace", in) }).WithTimeout(2 * time.Minute).Should(BeEmpty())
		}
	}, SpecTimeout(4*time.Minute))

	It("of the operator leaves nothing behind, and it can be installed again", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		backend(ctx, namespace, "app", 1)
		gw := newGateway(ctx, namespace, "own")
		create(ctx, harness.Route(namespace, "app", "gone.example.com", "app", gw.parent()))
		Eventually(status(gw.address, "gone.example.com", "/")).WithTimeout(time.Minute).Should(Equal(200))

		makeTarget(ctx, "undeploy", "IMG="+image)
		DeferCleanup(func(ctx SpecContext) {
			makeTarget(ctx, "deploy", "IMG="+image)
			awaitRollout(ctx, managers)
		}, NodeTimeout(4*time.Minute))
		Eventually(func() []string { return made(ctx, "--all-namespaces") }).WithTimeout(2 * time.Minute).Should(BeEmpty())
		for _, kinds := range []string{
			"customresourcedefinitions", "clusterroles,clusterrolebindings", "validatingadmissionpolicies,validatingadmissionpolicybindings",
			"namespaces", "gatewayclasses", "leases --all-namespaces", "secrets --all-namespaces", "roles,rolebindings --all-namespaces",
		} {
			left := kubectl(ctx, append([]string{"get", "--output", "name"}, strings.Fields(kinds)...)...)
			Expect(left).NotTo(MatchRegexp(`meshroute(\.io|-system|-manager|-ca|$)`), "left of %s", kinds)
		}
		// The user's own Gateway is the user's to delete.
		var kept gatewayv1.Gateway
		Expect(k8s.Get(ctx, gw.ObjectKey, &kept)).To(Succeed())
	}, SpecTimeout(6*time.Minute))
})
