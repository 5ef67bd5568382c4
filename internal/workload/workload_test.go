package workload

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"

	"meshroute.io/meshroute/internal/model"
)

var update = flag.Bool("update", false, "write what the tests find to the want.yaml of each case")

const testBootstrap = "{}\n"

var testOptions = Options{
	EnvoyImage:     "envoy:test",
	AgentImage:     "meshroute:test",
	PodBootstrap:   `{"node":{"locality":{"zone":"$(ZONE)"}}}`,
	XDSAddress:     "meshroute-manager.meshroute-system.svc:18000",
	CertificateURL: "https://meshroute-manager.meshroute-system.svc:18001",
	ServerName:     "meshroute-manager.meshroute-system.svc",
	Roots:          "roots\n",

	ManagerNamespace: "meshroute-system",
	ManagerPorts:     []int32{18000, 18001},
	ManagerProbePort: 8081,
}

// Every directory in testdata is a case: in.yaml is a model.Gateway, want.yaml
// all objects that run it.
func TestObjects(t *testing.T) {
	for _, dir := range cases(t) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			got := render(t, readGateway(t, dir))
			if again := render(t, readGateway(t, dir)); again != got {
				t.Errorf("made twice from the same gateway, the objects differ (-first +second):\n%s", cmp.Diff(got, again))
			}
			path := filepath.Join(dir, "want.yaml")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("objects (-want +got; -update writes them):\n%s", diff)
			}
		})
	}
}

// Objects must be made of copies: the gateway is shared.
func TestObjectsLeaveTheGatewayAlone(t *testing.T) {
	for _, dir := range cases(t) {
		gw := readGateway(t, dir)
		render(t, gw)
		if diff := cmp.Diff(readGateway(t, dir), gw); diff != "" {
			t.Errorf("%s: the gateway was changed:\n%s", dir, diff)
		}
	}
}

func TestName(t *testing.T) {
	long := strings.Repeat("a", 70)
	for name, test := range map[string]struct {
		gateway, class string
		want           string // a trailing * stands for the hash
	}{
		"as GEP-1762 has it":            {"edge", "meshroute", "edge-meshroute"},
		"63 characters fit":             {long[:53], "meshroute", long[:53] + "-meshroute"},
		"64 are shortened":              {long[:54], "meshroute", long[:54] + "-*"},
		"dots":                          {"edge.example.com", "meshroute", "edge-example-com-meshroute-*"},
		"a digit first":                 {"1st", "meshroute", "gw-1st-meshroute-*"},
		"a digit first, and long":       {"1" + long, "meshroute", "gw-1" + long[:50] + "-*"},
		"cut at a hyphen":               {long[:53] + "-b", "meshroute", long[:53] + "-*"},
		"a class with dots":             {"edge", "example.com", "edge-example-com-*"},
		"the longest names that may be": {strings.Repeat("a.", 126) + "a", strings.Repeat("b", 253), strings.Repeat("a-", 27) + "*"},
	} {
		t.Run(name, func(t *testing.T) {
			got := Name(test.gateway, test.class)
			if prefix, hashed := strings.CutSuffix(test.want, "*"); hashed {
				if len(got) != len(prefix)+8 || !strings.HasPrefix(got, prefix) {
					t.Errorf("Name is %s, wanted %s and 8 digits", got, prefix)
				}
			} else if got != test.want {
				t.Errorf("Name is %s, wanted %s", got, test.want)
			}
			if faults := validation.IsDNS1035Label(got); len(faults) > 0 {
				t.Errorf("%s is no name for a Service: %v", got, faults)
			}
		})
	}
}

// Names that look alike once shortened stay apart.
func TestNamesAreUnique(t *testing.T) {
	long := strings.Repeat("a", 80)
	made := map[string]string{}
	for _, gateway := range []string{
		"edge.example", "edge-example", "edge.exam-ple", "1st", "gw-1st", "gw.1st",
		long, long + "a", long + "b", long[:53], long[:54], "1" + long, "2" + long,
	} {
		name := Name(gateway, "meshroute")
		if other, taken := made[name]; taken {
			t.Errorf("%s is the name for both %s and %s", name, gateway, other)
		}
		made[name] = gateway
	}
}

func FuzzName(f *testing.F) {
	f.Add("edge", "meshroute")
	f.Add("1.2.3", "a.b")
	f.Add(strings.Repeat("a-", 40)+"b", "meshroute")
	f.Fuzz(func(t *testing.T, gateway, class string) {
		if len(validation.IsDNS1123Subdomain(gateway))+len(validation.IsDNS1123Subdomain(class)) > 0 {
			t.Skip("no name that an API server takes")
		}
		if faults := validation.IsDNS1035Label(Name(gateway, class)); len(faults) > 0 {
			t.Errorf("Name(%q, %q) is %q: %v", gateway, class, Name(gateway, class), faults)
		}
	})
}

// What the Pod Security level "restricted" demands of pods like these.
func TestPodsAreRestricted(t *testing.T) {
	for _, dir := range cases(t) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			pod := podOf(t, readGateway(t, dir))
			if pod.HostNetwork || pod.HostPID || pod.HostIPC {
				t.Error("the pod uses namespaces of its node")
			}
			is := pod.SecurityContext
			if is == nil || is.RunAsNonRoot == nil || !*is.RunAsNonRoot || is.RunAsUser == nil || *is.RunAsUser == 0 {
				t.Error("the pod may run as root")
			}
			if is == nil || is.SeccompProfile == nil || is.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
				t.Error("the pod has no seccomp profile")
			}
			for _, volume := range pod.Volumes {
				if volume.ConfigMap == nil && volume.EmptyDir == nil && volume.Projected == nil {
					t.Errorf("volume %s is of a kind that is not allowed", volume.Name)
				}
			}
			if len(pod.InitContainers)+len(pod.EphemeralContainers) > 0 {
				t.Error("there are containers that this test does not look at")
			}
			for i := range pod.Containers {
				container := &pod.Containers[i]
				is := container.SecurityContext
				if is == nil || is.AllowPrivilegeEscalation == nil || *is.AllowPrivilegeEscalation {
					t.Errorf("%s may gain privileges", container.Name)
				}
				if is == nil || is.Privileged != nil && *is.Privileged {
					t.Errorf("%s is privileged", container.Name)
				}
				if is == nil || is.Capabilities == nil || len(is.Capabilities.Add) > 0 || !slices.Equal(is.Capabilities.Drop, []corev1.Capability{"ALL"}) {
					t.Errorf("%s has capabilities", container.Name)
				}
				if is == nil || is.ReadOnlyRootFilesystem == nil || !*is.ReadOnlyRootFilesystem {
					t.Errorf("%s can write to its image", container.Name) // not demanded, but ours
				}
				for _, port := range container.Ports {
					if port.HostPort != 0 || port.ContainerPort < 1024 {
						t.Errorf("%s listens on port %d of the pod, %d of its node", container.Name, port.ContainerPort, port.HostPort)
					}
				}
			}
		})
	}
}

// The token proves who an agent is: Envoy, which strangers speak to, has none.
func TestOnlyTheAgentHasAToken(t *testing.T) {
	for _, dir := range cases(t) {
		gw := readGateway(t, dir)
		pod := podOf(t, gw)
		if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
			t.Errorf("%s: every container gets the token of the ServiceAccount", dir)
		}
		if mount := ServiceAccount(gw).AutomountServiceAccountToken; mount == nil || *mount {
			t.Errorf("%s: the ServiceAccount has its token mounted", dir)
		}
		tokens := map[string]bool{}
		for _, volume := range pod.Volumes {
			if volume.Projected != nil {
				tokens[volume.Name] = true
			}
		}
		var holders []string
		for i := range pod.Containers {
			for _, mount := range pod.Containers[i].VolumeMounts {
				if tokens[mount.Name] {
					holders = append(holders, pod.Containers[i].Name)
				}
			}
		}
		if diff := cmp.Diff([]string{"agent"}, holders); diff != "" {
			t.Errorf("%s: who has a token (-want +got):\n%s", dir, diff)
		}
	}
}

// Pods are replaced when Envoy would start from another bootstrap, and only then.
func TestBootstrapReplacesPods(t *testing.T) {
	gw := readGateway(t, "testdata/minimal")
	template := func(options Options, bootstrap string) string {
		encoded, err := json.Marshal(Deployment(gw, options, bootstrap).Spec.Template)
		if err != nil {
			t.Fatal(err)
		}
		return string(encoded)
	}
	before := template(testOptions, "{}")
	if template(testOptions, `{"node":{}}`) == before {
		t.Error("another bootstrap leaves the pods as they are")
	}
	rotated := testOptions
	rotated.Roots = "other roots\n"
	if template(rotated, "{}") != before {
		t.Error("other roots, which agents read by themselves, replace the pods")
	}
}

func cases(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob("testdata/*/in.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no case in testdata: %v", err)
	}
	for i := range paths {
		paths[i] = filepath.Dir(paths[i])
	}
	return paths
}

func readGateway(t *testing.T, dir string) model.Gateway {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, "in.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var gw model.Gateway
	if err := yaml.UnmarshalStrict(content, &gw); err != nil {
		t.Fatal(err)
	}
	return gw
}

func render(t *testing.T, gw model.Gateway) string {
	t.Helper()
	var all bytes.Buffer
	objects := []any{
		ServiceAccount(gw),
		ConfigMap(gw, testOptions, testBootstrap),
		Service(gw),
		PodDisruptionBudget(gw),
		GatewayPolicy(gw, testOptions),
		Deployment(gw, testOptions, testBootstrap),
	}
	if gw.Infrastructure.Autoscaling != nil {
		objects = append(objects, HorizontalPodAutoscaler(gw))
	}
	for _, object := range objects {
		content, err := yaml.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		all.WriteString("---\n")
		all.Write(content)
	}
	return all.String()
}

func podOf(t *testing.T, gw model.Gateway) corev1.PodSpec {
	t.Helper()
	encoded, err := json.Marshal(Deployment(gw, testOptions, testBootstrap))
	if err != nil {
		t.Fatal(err)
	}
	var deployment appsv1.Deployment
	if err := yaml.UnmarshalStrict(encoded, &deployment); err != nil {
		t.Fatal(err)
	}
	return deployment.Spec.Template.Spec
}
