package integration_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
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
// against the same API server, with a manager that is an admin and would not
// get past the policy on MeshRoutes.
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

	It("runs in a namespace that lets only restricted pods in, as do gateways", func(ctx SpecContext) {
		rendered := renderDefault("meshroute:v1")
		labels := find[corev1.Namespace](rendered, "Namespace", harness.SystemNamespace).Labels
		Expect(labels).To(HaveKeyWithValue("pod-security.kubernetes.io/enforce", "restricted"))
		namespace := newNamespace(ctx)
		change(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, func(n *corev1.Namespace) {
			maps.Copy(n.Labels, labels)
		})
		var gateway appsv1.Deployment
		Expect(cluster.Client.Get(ctx, client.ObjectKey{Namespace: "default", Name: "main-" + class}, &gateway)).To(Succeed())

		try := func(spec corev1.PodSpec) error {
			return cluster.Client.Create(ctx, &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "pod"}, Spec: spec,
			}, client.DryRunAll)
		}
		manager := find[appsv1.Deployment](rendered, "Deployment", "meshroute-manager").Spec.Template.Spec
		Expect(try(manager)).To(Succeed())
		Expect(try(gateway.Spec.Template.Spec)).To(Succeed())
		manager.SecurityContext = nil
		Expect(try(manager)).To(MatchError(ContainSubstring(`violates PodSecurity "restricted`)), "what else the namespace lets in")
	})

	It("lets only the operator write MeshRoutes", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		create(ctx, harness.Route(namespace, "shop", hostOf(namespace), "none", harness.Parent("default", "main")))
		existing := &v1alpha1.MeshRoute{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "shop"}}
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
			case "ValidatingAdmissionPolicy", "ClusterRole", "ClusterRoleBinding":
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
				return c.Create(ctx, &v1alpha1.MeshRoute{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "other"}}, client.DryRunAll)
			}},
			{"write the status of", func(c client.Client) error {
				return c.Status().Patch(ctx, existing.DeepCopy(), client.RawPatch("application/merge-patch+json",
					[]byte(`{"status":{"display":{"hosts":"mine"}}}`)), &client.SubResourcePatchOptions{PatchOptions: client.PatchOptions{DryRun: []string{metav1.DryRunAll}}})
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
			"everywhere: configmaps: create list patch watch",
			"everywhere: deployments.apps: create list patch watch",
			"everywhere: endpointslices.discovery.k8s.io: list watch",
			"everywhere: gatewayclasses.gateway.networking.k8s.io/status: patch",
			"everywhere: gatewayclasses.gateway.networking.k8s.io: list watch",
			"everywhere: gatewayconfigs.meshroute.io: list watch",
			"everywhere: gateways.gateway.networking.k8s.io/status: patch",
			"everywhere: gateways.gateway.networking.k8s.io: list watch",
			"everywhere: meshroutes.meshroute.io/status: patch",
			"everywhere: meshroutes.meshroute.io: create delete list watch",
			"everywhere: namespaces: list watch",
			"everywhere: poddisruptionbudgets.policy: create list patch watch",
			"everywhere: referencegrants.gateway.networking.k8s.io: list watch",
			"everywhere: serviceaccounts: create list patch watch",
			"everywhere: serviceroutes.meshroute.io/status: patch",
			"everywhere: serviceroutes.meshroute.io: list watch",
			"everywhere: services: create list patch watch",
			"everywhere: tokenreviews.authentication.k8s.io: create",
			"meshroute-system: events: create patch",
			"meshroute-system: leases.coordination.k8s.io named meshroute-manager: get update",
			"meshroute-system: leases.coordination.k8s.io: create",
			"meshroute-system: secrets named meshroute-ca: get update",
			"meshroute-system: secrets: create",
		}))
	})

	It("comes with samples that are accepted, and none is left out", func(ctx SpecContext) {
		samples := filepath.Join(root(), "config/samples")
		for _, name := range []string{"shop", "payments", "monitoring"} {
			err := cluster.Client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
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
				Expect(apply(ctx, kustomize("build", folder), "--dry-run=server")).To(HaveLen(len(objects)), "of the files in %s", folder)
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
	base, err := filepath.Rel(overlayFolder(), filepath.Join(root(), "config/default"))
	Expect(err).NotTo(HaveOccurred())
	return kustomizeOverlay(base, image)
}
