package integration_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/test/harness"
)

const (
	operatorUser         = "system:serviceaccount:meshroute-system:meshroute-manager"
	garbageCollectorUser = "system:serviceaccount:kube-system:generic-garbage-collector"
)

// Only what takes nothing from other specs is really applied here: they run
// against the same API server.
var _ = Describe("What is deployed", Label("deploy"), func() {
	It("is accepted by the API server, with one image for operator and agents", func(ctx SpecContext) {
		rendered := renderDefault("registry.example.com/meshroute:v1")
		Expect(apply(ctx, rendered, "--dry-run=server")).To(ContainElements(
			"namespace/meshroute-system",
			"deployment.apps/meshroute-manager",
			"gatewayclass.gateway.networking.k8s.io/meshroute",
			"gateway.gateway.networking.k8s.io/default",
			"validatingadmissionpolicy.admissionregistration.k8s.io/meshroutes.meshroute.io",
		))
		container := find[appsv1.Deployment](rendered, "Deployment", "meshroute-manager").Spec.Template.Spec.Containers[0]
		Expect(container.Image).To(Equal("registry.example.com/meshroute:v1"))
		Expect(container.Args).To(ContainElement("--agent-image=$(AGENT_IMAGE)"))
		Expect(container.Env).To(ContainElement(corev1.EnvVar{Name: "AGENT_IMAGE", Value: "registry.example.com/meshroute:v1"}))
	})

	It("runs in a namespace that lets only restricted pods in", func(ctx SpecContext) {
		rendered := renderDefault("meshroute:v1")
		namespace := &corev1.Namespace{GenerateName: "spec-", Labels: find[corev1.Namespace](rendered, "Namespace", harness.SystemNamespace).Labels}
		create(ctx, namespace)
		try := func(spec corev1.PodSpec) error {
			return cluster.Client.Create(ctx, &corev1.Pod{Namespace: namespace.Name, Name: "manager", Spec: spec}, client.DryRunAll)
		}
		manager := find[appsv1.Deployment](rendered, "Deployment", "meshroute-manager").Spec.Template.Spec
		Expect(try(manager)).To(Succeed())
		manager.SecurityContext = nil
		Expect(try(manager)).To(MatchError(ContainSubstring(`violates PodSecurity "restricted`)))
	})

	It("lets only the operator write MeshRoutes", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		create(ctx, harness.Route(namespace, "shop", hostOf(namespace), "none", harness.Parent("default", "main")))
		existing := &v1alpha1.MeshRoute{Namespace: namespace, Name: "shop"}
		Eventually(func() error {
			return cluster.Client.Get(ctx, client.ObjectKeyFromObject(existing), existing)
		}).Should(Succeed())

		rendered := renderDefault("meshroute:v1")
		for _, object := range rendered {
			switch object.GetKind() {
			case "ValidatingAdmissionPolicyBinding":
				// Here for one namespace, for the sake of other specs.
				Expect(unstructured.SetNestedStringMap(object.Object, map[string]string{corev1.LabelMetadataName: namespace},
					"spec", "matchResources", "namespaceSelector", "matchLabels")).To(Succeed())
			case "ValidatingAdmissionPolicy":
			default:
				continue
			}
			create(ctx, object)
			DeferCleanup(func(ctx SpecContext) { Expect(cluster.Client.Delete(ctx, object)).To(Succeed()) })
		}

		type write struct {
			what string
			do   func(client.Client) error
		}
		writes := []write{
			{"create", func(c client.Client) error {
				return c.Create(ctx, &v1alpha1.MeshRoute{Namespace: namespace, Name: "other"}, client.DryRunAll)
			}},
			{"write the status of", func(c client.Client) error {
				return c.Status().Patch(ctx, existing.DeepCopy(), client.RawPatch("application/merge-patch+json",
					[]byte(`{"status":{"display":{"hosts":"mine"}}}`)), &client.SubResourcePatchOptions{DryRun: []string{metav1.DryRunAll}})
			}},
			{"put a finalizer on", func(c client.Client) error {
				return c.Patch(ctx, existing.DeepCopy(), client.RawPatch("application/merge-patch+json",
					[]byte(`{"metadata":{"finalizers":["example.com/mine"]}}`)), client.DryRunAll)
			}},
			{"delete", func(c client.Client) error { return c.Delete(ctx, existing.DeepCopy(), client.DryRunAll) }},
		}
		allowed := func(c client.Client) []string {
			var succeeded []string
			for _, write := range writes {
				if err := write.do(c); err == nil {
					succeeded = append(succeeded, write.what)
				}
			}
			return succeeded
		}
		// A policy takes a moment until it is in force.
		Eventually(func() []string { return allowed(cluster.Client) }).Should(Equal([]string{"delete"}), "what an admin may do")
		Expect(writes[0].do(cluster.Client)).To(MatchError(SatisfyAll(
			ContainSubstring("only the operator writes it"), ContainSubstring("change the ServiceRoute of the same name"))))
		Expect(allowed(as(operatorUser))).To(Equal([]string{"create", "write the status of", "delete"}))
		// Or else nothing could be deleted together with its dependents.
		Expect(allowed(as(garbageCollectorUser))).To(Equal([]string{"put a finalizer on", "delete"}))
	})

	It("permits the operator these things and no others", func() {
		Expect(permissionsOf("meshroute-manager", renderDefault("meshroute:v1"))).To(Equal([]string{
			"everywhere: configmaps: create delete get list patch watch",
			"everywhere: controllerrevisions.apps: create delete list patch watch",
			"everywhere: customresourcedefinitions.apiextensions.k8s.io named gateways.gateway.networking.k8s.io: list watch",
			"everywhere: deployments.apps: create delete get list patch watch",
			"everywhere: endpointslices.discovery.k8s.io: list watch",
			"everywhere: gatewayclasses.gateway.networking.k8s.io/status: patch",
			"everywhere: gatewayclasses.gateway.networking.k8s.io: list watch",
			"everywhere: gatewayconfigs.meshroute.io: list watch",
			"everywhere: gateways.gateway.networking.k8s.io/status: patch",
			"everywhere: gateways.gateway.networking.k8s.io: list watch",
			"everywhere: healthpolicies.meshroute.io/status: patch",
			"everywhere: healthpolicies.meshroute.io: list watch",
			"everywhere: horizontalpodautoscalers.autoscaling: create delete get list patch watch",
			"everywhere: meshroutes.meshroute.io/status: patch",
			"everywhere: meshroutes.meshroute.io: create delete list watch",
			"everywhere: namespaces: list watch",
			"everywhere: networkpolicies.networking.k8s.io: create delete get list patch watch",
			"everywhere: poddisruptionbudgets.policy: create delete get list patch watch",
			"everywhere: pods: list watch",
			"everywhere: referencegrants.gateway.networking.k8s.io: list watch",
			"everywhere: secrets: list watch",
			"everywhere: serviceaccounts: create delete get list patch watch",
			"everywhere: serviceroutes.meshroute.io/status: patch",
			"everywhere: serviceroutes.meshroute.io: list watch",
			"everywhere: services: create delete get list patch watch",
			"everywhere: subjectaccessreviews.authorization.k8s.io: create",
			"everywhere: tokenreviews.authentication.k8s.io: create",
			"meshroute-system: leases.coordination.k8s.io named meshroute-manager: get update",
			"meshroute-system: leases.coordination.k8s.io: create",
			"meshroute-system: secrets named meshroute-ca: get update",
			"meshroute-system: secrets: create",
		}))
	})

	It("serves metrics to whom the API server permits it, over TLS of the operator's authority", func(ctx SpecContext) {
		var authority corev1.Secret
		Expect(cluster.Client.Get(ctx, client.ObjectKey{Namespace: harness.SystemNamespace, Name: "meshroute-ca"}, &authority)).To(Succeed())
		roots := x509.NewCertPool()
		Expect(roots.AppendCertsFromPEM(authority.Data[corev1.TLSCertKey])).To(BeTrue())
		scraper := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost"}, DisableKeepAlives: true,
		}}
		scrape := func(token string) (int, string) {
			GinkgoHelper()
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, operator.Metrics, nil)
			Expect(err).NotTo(HaveOccurred())
			if token != "" {
				request.Header.Set("Authorization", "Bearer "+token)
			}
			response, err := scraper.Do(request)
			Expect(err).NotTo(HaveOccurred())
			defer func() { _ = response.Body.Close() }()
			body, err := io.ReadAll(response.Body)
			Expect(err).NotTo(HaveOccurred())
			return response.StatusCode, string(body)
		}
		namespace := newNamespace(ctx)
		create(ctx, &corev1.ServiceAccount{Namespace: namespace, Name: "stranger"}, &corev1.ServiceAccount{Namespace: namespace, Name: "prometheus"})
		binding := &rbacv1.ClusterRoleBinding{
			Name:     namespace + "-metrics",
			RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "meshroute-metrics-reader"},
			Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: namespace, Name: "prometheus"}},
		}
		create(ctx, binding)
		DeferCleanup(func(ctx SpecContext) { Expect(cluster.Client.Delete(ctx, binding)).To(Succeed()) })
		token := func(name string) string {
			GinkgoHelper()
			token, err := cluster.Token(ctx, namespace, name)
			Expect(err).NotTo(HaveOccurred())
			return token
		}

		status, _ := scrape("")
		Expect(status).To(Equal(http.StatusUnauthorized), "without a token")
		status, _ = scrape("nonsense")
		Expect(status).NotTo(Equal(http.StatusOK), "with a token that is none")
		status, body := scrape(token("stranger"))
		Expect(status).To(Equal(http.StatusForbidden), "without permission")
		Expect(body).NotTo(ContainSubstring("controller_runtime"))
		status, body = scrape(token("prometheus"))
		Expect(status).To(Equal(http.StatusOK))
		for _, metric := range []string{
			"controller_runtime_reconcile_total", "meshroute_build_seconds_count", `meshroute_pushes_total{type="routes"}`,
			`meshroute_pushed_resources_total{type="clusters"}`, `meshroute_nacks_total{type="routes"}`, "meshroute_routes_held",
		} {
			Expect(body).To(ContainSubstring(metric))
		}
	})

	It("comes with samples that are accepted, and none is left out", func(ctx SpecContext) {
		samples := filepath.Join(root(), "config", "samples")
		// Really made, and left: a dry run in a namespace that is not there fails.
		for _, name := range []string{"shop", "payments", "monitoring"} {
			err := cluster.Client.Create(ctx, &corev1.Namespace{Name: name})
			Expect(client.IgnoreAlreadyExists(err)).To(Succeed())
		}
		var folders []string
		Expect(filepath.WalkDir(samples, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				folders = append(folders, path)
			}
			return err
		})).To(Succeed())

		for _, folder := range folders {
			files, err := filepath.Glob(filepath.Join(folder, "*.yaml"))
			Expect(err).NotTo(HaveOccurred())
			var objects []*unstructured.Unstructured
			for _, file := range files {
				if filepath.Base(file) == "kustomization.yaml" {
					continue
				}
				content, err := os.ReadFile(file)
				Expect(err).NotTo(HaveOccurred())
				objects = append(objects, decode(content)...)
			}
			if filepath.Base(folder) != "output" {
				rendered := kustomize(folder)
				Expect(apply(ctx, rendered, "--dry-run=server")).To(HaveLen(len(rendered)))
				for _, object := range objects {
					Expect(rendered).To(ContainElement(SatisfyAll(
						HaveField("GetKind()", object.GetKind()), HaveField("GetName()", object.GetName()))), "of the files in %s", folder)
				}
				continue
			}
			// What the operator writes: it must be as the Go types have it, too,
			// because an API server drops the status of what is applied.
			Expect(objects).NotTo(BeEmpty())
			Expect(apply(ctx, objects, "--dry-run=server")).To(HaveLen(len(objects)))
			for _, object := range objects {
				content, err := yaml.Marshal(object)
				Expect(err).NotTo(HaveOccurred())
				Expect(yaml.UnmarshalStrict(content, &v1alpha1.MeshRoute{})).To(Succeed())
			}
		}
	})
})

func root() string {
	GinkgoHelper()
	folder, err := harness.Root()
	Expect(err).NotTo(HaveOccurred())
	return folder
}

// renderDefault renders config/default with an image, as `make deploy` does.
func renderDefault(image string) []*unstructured.Unstructured {
	GinkgoHelper()
	overlay := GinkgoT().TempDir()
	base, err := filepath.Rel(overlay, filepath.Join(root(), "config", "default"))
	Expect(err).NotTo(HaveOccurred())
	repository, tag, _ := strings.Cut(image, ":")
	Expect(os.WriteFile(filepath.Join(overlay, "kustomization.yaml"), fmt.Appendf(nil, `
resources: [%s]
images: [{name: meshroute, newName: %s, newTag: %s}]
`, base, repository, tag), 0o600)).To(Succeed())
	return kustomize(overlay)
}

// kustomize renders a folder.
func kustomize(folder string) []*unstructured.Unstructured {
	GinkgoHelper()
	command := exec.Command(filepath.Join(root(), "hack", "tool.sh"), "kustomize", "build", folder)
	command.Stderr = GinkgoWriter
	output, err := command.Output()
	Expect(err).NotTo(HaveOccurred())
	return decode(output)
}

func decode(documents []byte) []*unstructured.Unstructured {
	GinkgoHelper()
	var objects []*unstructured.Unstructured
	for document := range bytes.SplitSeq(documents, []byte("\n---\n")) {
		object := &unstructured.Unstructured{}
		Expect(yaml.UnmarshalStrict(document, &object.Object)).To(Succeed())
		objects = append(objects, object)
	}
	return objects
}

// apply gives objects to kubectl at once and returns what it says it applied.
func apply(ctx context.Context, objects []*unstructured.Unstructured, flags ...string) []string {
	GinkgoHelper()
	var documents bytes.Buffer
	for _, object := range objects {
		content, err := yaml.Marshal(object)
		Expect(err).NotTo(HaveOccurred())
		fmt.Fprintf(&documents, "---\n%s", content)
	}
	file := filepath.Join(GinkgoT().TempDir(), "objects.yaml")
	Expect(os.WriteFile(file, documents.Bytes(), 0o600)).To(Succeed())
	output, err := cluster.Kubectl(ctx, append([]string{"apply", "--server-side", "-f", file}, flags...)...)
	Expect(err).NotTo(HaveOccurred())
	var applied []string
	for line := range strings.Lines(output) {
		name, rest, _ := strings.Cut(line, " ")
		Expect(rest).To(HavePrefix("serverside-applied"), "kubectl has something to say: %s", output)
		applied = append(applied, name)
	}
	return applied
}

// find returns the object of a kind and name.
func find[T any](objects []*unstructured.Unstructured, kind, name string) *T {
	GinkgoHelper()
	for _, object := range objects {
		if object.GetKind() == kind && object.GetName() == name {
			return typed[T](object)
		}
	}
	Fail("there is no " + kind + " " + name)
	return nil
}

func typed[T any](object *unstructured.Unstructured) *T {
	GinkgoHelper()
	converted := new(T)
	Expect(runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(object.Object, converted, true)).To(Succeed())
	return converted
}

// as is a client of somebody else.
func as(user string) client.Client {
	GinkgoHelper()
	config := rest.CopyConfig(cluster.Config)
	config.Impersonate = rest.ImpersonationConfig{UserName: user}
	impersonated, err := client.New(config, client.Options{Scheme: cluster.Client.Scheme()})
	Expect(err).NotTo(HaveOccurred())
	return impersonated
}

// permissionsOf lists what the roles bound to a ServiceAccount of the system
// namespace permit: where, on what, and which verbs.
func permissionsOf(account string, objects []*unstructured.Unstructured) []string {
	GinkgoHelper()
	var permissions []string
	permit := func(where string, subjects []rbacv1.Subject, rules []rbacv1.PolicyRule) {
		Expect(subjects).To(ConsistOf(rbacv1.Subject{Kind: "ServiceAccount", Namespace: harness.SystemNamespace, Name: account}))
		for _, rule := range rules {
			Expect(rule.NonResourceURLs).To(BeEmpty())
			slices.Sort(rule.Verbs)
			for _, group := range rule.APIGroups {
				for _, resource := range rule.Resources {
					kind, subresource, _ := strings.Cut(resource, "/")
					if group != "" {
						kind += "." + group
					}
					if subresource != "" {
						kind += "/" + subresource
					}
					if len(rule.ResourceNames) > 0 {
						kind += " named " + strings.Join(rule.ResourceNames, ", ")
					}
					permissions = append(permissions, fmt.Sprintf("%s: %s: %s", where, kind, strings.Join(rule.Verbs, " ")))
				}
			}
		}
	}
	for _, object := range objects {
		switch object.GetKind() {
		case "ClusterRoleBinding":
			binding := typed[rbacv1.ClusterRoleBinding](object)
			permit("everywhere", binding.Subjects, find[rbacv1.ClusterRole](objects, "ClusterRole", binding.RoleRef.Name).Rules)
		case "RoleBinding":
			binding := typed[rbacv1.RoleBinding](object)
			Expect(binding.RoleRef.Kind).To(Equal("Role"))
			permit(binding.Namespace, binding.Subjects, find[rbacv1.Role](objects, "Role", binding.RoleRef.Name).Rules)
		}
	}
	slices.Sort(permissions)
	return permissions
}
