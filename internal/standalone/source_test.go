package standalone

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/internal/model"
)

// folder is a folder of YAML files and what reads it.
type folder struct {
	t      *testing.T
	path   string
	source *source
}

func newFolder(t *testing.T) *folder {
	t.Helper()
	path := t.TempDir()
	source, err := newSource(path)
	if err != nil {
		t.Fatal(err)
	}
	return &folder{t: t, path: path, source: source}
}

func (f *folder) write(name, content string) {
	f.t.Helper()
	path := filepath.Join(f.path, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// read returns what the files declare, with paths in problems relative to the
// folder.
func (f *folder) read() objects {
	f.t.Helper()
	read, err := f.source.read(f.t.Context(), time.Now())
	if err != nil {
		f.t.Fatal(err)
	}
	for i := range read.problems {
		read.problems[i] = strings.ReplaceAll(read.problems[i], f.path+"/", "")
	}
	return read
}

// names lists what was read, as "Type namespace/name".
func names(read objects) []string {
	var all []string
	add := func(objects ...metav1.Object) {
		for _, object := range objects {
			if object.GetName() != standaloneClass {
				all = append(all, id(object))
			}
		}
	}
	in := read.inputs
	for _, o := range in.GatewayClasses {
		add(o)
	}
	for _, o := range in.Gateways {
		add(o)
	}
	for _, o := range in.GatewayConfigs {
		add(o)
	}
	for _, o := range in.ServiceRoutes {
		add(o)
	}
	for _, o := range in.Services {
		add(o)
	}
	for _, o := range in.ReferenceGrants {
		add(o)
	}
	for _, o := range in.Namespaces {
		add(o)
	}
	for _, slices := range read.slices {
		for _, o := range slices {
			add(o)
		}
	}
	slices.Sort(all)
	return all
}

const (
	goodRoute = `
apiVersion: meshroute.io/v1alpha1
kind: ServiceRoute
metadata: {name: web, namespace: shop}
spec:
  rules:
  - name: all
    backends: [{name: web, port: 80}]
`
	goodService = `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  ports: [{name: http, port: 80}]
`
	goodSlice = `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.0.0.1]}]
`
	goodGateway = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec:
  gatewayClassName: meshroute
  listeners: [{name: http, protocol: HTTP, port: 8888}]
`
)

func TestFiles(t *testing.T) {
	for name, test := range map[string]struct {
		files        map[string]string
		want         []string
		wantProblems []string // a trailing * stands for more
	}{
		"an empty folder": {},
		"several documents, in several files": {
			files: map[string]string{
				"all.yaml":        "# first\n---" + goodRoute + "---" + goodService + "---\n---\n# nothing\n",
				"below/more.yml":  goodGateway,
				"below/it/s.json": `{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}`,
			},
			want: []string{"v1.Gateway shop/edge", "v1.Namespace /shop", "v1.Service shop/web", "v1alpha1.ServiceRoute shop/web"},
		},
		"hidden files and folders, and files of other kinds": {
			files: map[string]string{
				".route.yaml": "broken: [", ".git/route.yaml": "broken: [", "route.yaml~": "broken: [",
				"README.md": "broken: [", ".#route.yaml": "broken: [",
			},
		},
		"kinds for a cluster": {
			files: map[string]string{"deploy.yaml": "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {whatever: true}\n---" + goodService},
			want:  []string{"v1.Service shop/web"},
		},
		"kinds that look as if they worked here": {
			files: map[string]string{
				"http.yaml": "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: web}\n",
				"mesh.yaml": "apiVersion: meshroute.io/v1alpha1\nkind: MeshRoute\nmetadata: {name: web}\n",
			},
			wantProblems: []string{
				"http.yaml: document 1: kind HTTPRoute of gateway.networking.k8s.io/v1 is not one that can be read here (none of it is used)",
				"mesh.yaml: document 1: kind MeshRoute of meshroute.io/v1alpha1 is not one that can be read here (none of it is used)",
			},
		},
		"the default namespace": {
			files: map[string]string{"s.yaml": strings.ReplaceAll(goodService, ", namespace: shop", "")},
			want:  []string{"v1.Service default/web"},
		},
		"an unknown field of ours": {
			files:        map[string]string{"r.yaml": strings.Replace(goodRoute, "spec:", "spec:\n  hostname: a.example", 1)},
			wantProblems: []string{"r.yaml: document 1: ServiceRoute web: unknown field spec.hostname (none of it is used)"},
		},
		"an unknown field of others": {
			files:        map[string]string{"s.yaml": strings.Replace(goodService, "spec:", "spec:\n  prots: []", 1)},
			wantProblems: []string{`s.yaml: document 1: Service web: strict decoding error: unknown field "spec.prots" (none of it is used)`},
		},
		"a rule of the schema in CEL": {
			files:        map[string]string{"r.yaml": strings.Replace(goodRoute, "    backends:", "    directResponse: {status: 200}\n    backends:", 1)},
			wantProblems: []string{"r.yaml: document 1: ServiceRoute web: spec.rules[0]: Invalid value: *"},
		},
		"a route with a reserved name": {
			files:        map[string]string{"r.yaml": strings.Replace(goodRoute, "name: web,", "name: status,", 1)},
			wantProblems: []string{"r.yaml: document 1: ServiceRoute status: *"},
		},
		"every problem of a file is told": {
			files: map[string]string{"r.yaml": "kind: Service\n---" + goodService + "---\n- a list\n"},
			wantProblems: []string{
				"r.yaml: document 1: apiVersion or kind is missing\ndocument 3: not an object: *",
			},
		},
		"no YAML": {
			files:        map[string]string{"r.yaml": "broken: ["},
			wantProblems: []string{"r.yaml: document 1: no valid YAML: *"},
		},
		"a key that is there twice": {
			files:        map[string]string{"s.yaml": goodService + "  ports: []\n"},
			wantProblems: []string{"s.yaml: document 1: no valid YAML: *"},
		},
		"addresses and ports that Envoy would refuse": {
			files: map[string]string{
				"1.yaml": strings.Replace(goodSlice, "10.0.0.1", "backend.example", 1),
				"2.yaml": strings.Replace(goodSlice, "8080", "65536", 1),
				"3.yaml": strings.Replace(goodSlice, "kubernetes.io/service-name: web", "a: b", 1),
				"4.yaml": strings.Replace(goodService, "port: 80", "port: 0", 1),
				"5.yaml": strings.Replace(goodGateway, "8888", "88888", 1),
			},
			wantProblems: []string{
				`1.yaml: document 1: EndpointSlice web-1: endpoints[0].addresses: "backend.example" is no IP address (none of it is used)`,
				"2.yaml: document 1: EndpointSlice web-1: ports[0].port: must be from 1 to 65535 (none of it is used)",
				"3.yaml: document 1: EndpointSlice web-1: metadata.labels: kubernetes.io/service-name is missing, which names the Service (none of it is used)",
				"4.yaml: document 1: Service web: spec.ports[0].port: must be from 1 to 65535 (none of it is used)",
				"5.yaml: document 1: Gateway edge: spec.listeners[0].port: must be from 1 to 65535 (none of it is used)",
			},
		},
		"names that an API server refuses": {
			files: map[string]string{
				"1.yaml": strings.Replace(goodService, "name: web", "name: Web", 1),
				"2.yaml": strings.Replace(goodService, "namespace: shop", "namespace: a.b", 1),
			},
			wantProblems: []string{
				"1.yaml: document 1: Service Web: metadata.name: a lowercase *",
				"2.yaml: document 1: Service web: metadata.namespace: must not contain dots *",
			},
		},
		"one object in two files": {
			files:        map[string]string{"a.yaml": goodService, "b.yaml": goodService},
			want:         []string{"v1.Service shop/web"},
			wantProblems: []string{"b.yaml: v1.Service shop/web is also in a.yaml, which counts: remove one of them"},
		},
		"a file that is too large": {
			files:        map[string]string{"big.yaml": strings.Repeat("#\n", maxFileSize/2) + "#", "s.yaml": goodService},
			want:         []string{"v1.Service shop/web"},
			wantProblems: []string{"big.yaml: larger than 8 MiB (none of it is used)"},
		},
		"a bad file is no harm to its neighbours": {
			files:        map[string]string{"a.yaml": "broken: [", "s.yaml": goodService},
			want:         []string{"v1.Service shop/web"},
			wantProblems: []string{"a.yaml: document 1: no valid YAML: *"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFolder(t)
			for name, content := range test.files {
				f.write(name, content)
			}
			got := f.read()
			if diff := cmp.Diff(test.want, names(got)); diff != "" {
				t.Errorf("objects (-want +got):\n%s", diff)
			}
			for i, want := range test.wantProblems {
				if prefix, more := strings.CutSuffix(want, "*"); more && i < len(got.problems) && strings.HasPrefix(got.problems[i], prefix) {
					test.wantProblems[i] = got.problems[i]
				}
			}
			if diff := cmp.Diff(test.wantProblems, got.problems); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
			if classes := got.inputs.GatewayClasses; len(classes) != 1 || classes[0].Name != standaloneClass || classes[0].Spec.ControllerName != v1alpha1.ControllerName {
				t.Errorf("GatewayClasses %v: the built-in one is to be there", classes)
			}
		})
	}
}

func TestDefaultsComeFromTheSchema(t *testing.T) {
	f := newFolder(t)
	f.write("r.yaml", strings.Replace(goodRoute, "    backends:", "    matches: [{path: {value: /a}}]\n    backends:", 1))
	read := f.read()
	if len(read.inputs.ServiceRoutes) != 1 {
		t.Fatal(read.problems)
	}
	rule := read.inputs.ServiceRoutes[0].Spec.Rules[0]
	if got := rule.Matches[0].Path.Type; got != v1alpha1.PathMatchPrefix {
		t.Errorf("path.type is %q", got)
	}
	if weight := rule.Backends[0].Weight; weight == nil || *weight != 1 {
		t.Errorf("weight is %v", weight)
	}
}

func TestADeclaredClassReplacesTheBuiltInOne(t *testing.T) {
	f := newFolder(t)
	f.write("c.yaml", "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: meshroute}\nspec: {controllerName: example.com/other}\n")
	if got := f.read().inputs.GatewayClasses; len(got) != 1 || got[0].Spec.ControllerName != "example.com/other" {
		t.Errorf("GatewayClasses %v", got)
	}
}

// A file is edited, broken, mended, broken in another way, and deleted.
func TestAFileOverTime(t *testing.T) {
	f := newFolder(t)
	port := func() (ports []int32) {
		for _, service := range f.read().inputs.Services {
			ports = append(ports, service.Spec.Ports[0].Port)
		}
		return ports
	}
	path := filepath.Join(f.path, "s.yaml")
	for _, step := range []struct {
		name, problem string
		change        func()
		want          []int32
	}{
		{"it comes", "", func() { f.write("s.yaml", goodService) }, []int32{80}},
		{"it is edited", "", func() { f.write("s.yaml", strings.Replace(goodService, "80", "81", 1)) }, []int32{81}},
		{"it is broken", "what it held before stays in use", func() { f.write("s.yaml", "kind: [") }, []int32{81}},
		{"it stays broken", "what it held before stays in use", func() {}, []int32{81}},
		{"one document of two is broken", "what it held before stays in use", func() {
			f.write("s.yaml", strings.Replace(goodService, "80", "82", 1)+"---\nkind: Service\n")
		}, []int32{81}},
		{"it is mended", "", func() { f.write("s.yaml", strings.Replace(goodService, "80", "83", 1)) }, []int32{83}},
		{"it is too large for a moment", "what it held before stays in use", func() { f.write("s.yaml", strings.Repeat("#", maxFileSize+1)) }, []int32{83}},
		{"it is as before", "", func() { f.write("s.yaml", strings.Replace(goodService, "80", "83", 1)) }, []int32{83}},
		{"it is emptied", "", func() { f.write("s.yaml", "") }, nil},
		{"it is as before again", "", func() { f.write("s.yaml", goodService) }, []int32{80}},
		{"it is deleted", "", func() { os.Remove(path) }, nil},
	} {
		step.change()
		if diff := cmp.Diff(step.want, port()); diff != "" {
			t.Errorf("%s: ports (-want +got):\n%s", step.name, diff)
		}
		problems := strings.Join(f.read().problems, "\n")
		if (step.problem == "") != (problems == "") || !strings.Contains(problems, step.problem) {
			t.Errorf("%s: problems %q, wanted %q", step.name, problems, step.problem)
		}
	}
}

// Without an API server nobody else counts generations, and by these it is
// known whether a gateway has a route as it is now.
func TestGenerationsCountChanges(t *testing.T) {
	f := newFolder(t)
	generation := func() int64 { return f.read().inputs.ServiceRoutes[0].Generation }
	for _, step := range []struct {
		name    string
		content string
		want    int64
	}{
		{"new", goodRoute, 1},
		{"the same", goodRoute, 1},
		{"only its neighbour is new", goodRoute + "---" + goodService, 1},
		{"changed", strings.Replace(goodRoute, "port: 80", "port: 81", 1), 2},
		{"changed back", goodRoute, 3},
		{"broken", "kind: [", 3},
		{"mended", goodRoute, 3},
	} {
		f.write("r.yaml", step.content)
		if got := generation(); got != step.want {
			t.Errorf("%s: generation %d, wanted %d", step.name, got, step.want)
		}
	}
}

func TestNoFolder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file.yaml")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		file:           "is not a folder",
		file + "/none": "read the folder of YAML files: ",
	} {
		if _, err := newSource(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// What people are shown has to work here, too; all but the example of what the
// operator writes.
func TestSamplesAreReadable(t *testing.T) {
	samples := filepath.Join("..", "..", "config", "samples")
	found := 0
	err := filepath.WalkDir(samples, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".yaml" || strings.Contains(entry.Name(), "_meshroute.yaml") {
			return err
		}
		found++
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		f := newFolder(t)
		f.write(entry.Name(), string(content))
		if problems := f.read().problems; len(problems) > 0 {
			t.Errorf("%s: %v", path, problems)
		}
		return nil
	})
	if err != nil || found == 0 {
		t.Errorf("%d samples, %v", found, err)
	}
}

func TestSlicesAreFoundByService(t *testing.T) {
	f := newFolder(t)
	f.write("s.yaml", goodSlice+"---"+strings.Replace(goodSlice, "web-1", "web-2", 1))
	key := model.Key{Namespace: "shop", Name: "web"}
	got := f.read().slices
	if len(got) != 1 || len(got[key]) != 2 || got[key][0].AddressType != discoveryv1.AddressTypeIPv4 {
		t.Errorf("slices %v", got)
	}
}

func TestTable(t *testing.T) {
	f := newFolder(t)
	ready := func(status metav1.ConditionStatus, message string) []metav1.Condition {
		return []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: status, Reason: "Reason", Message: message}}
	}
	var serving, broken, sum v1alpha1.MeshRouteStatus
	serving.Conditions = ready(metav1.ConditionTrue, "serving")
	serving.Display.Hosts, serving.Display.Programmed, serving.Display.Endpoints = "*.shop.example +1", "2/2", "6/7"
	broken.Conditions = ready(metav1.ConditionFalse, "Service shop/none does not exist")
	broken.Display.Hosts, broken.Display.Programmed = "*", "0/1"
	sum.Conditions = ready(metav1.ConditionFalse, "1 of 2 routes ready; not ready: broken")
	sum.Summary = &v1alpha1.MeshRouteSummary{Routes: 2, ReadyRoutes: 1}
	got, err := f.source.table(t.Context(), map[model.Key]v1alpha1.MeshRouteStatus{
		{Namespace: "shop", Name: "web"}: serving, {Namespace: "shop", Name: "broken"}: broken, {Namespace: "shop", Name: "status"}: sum,
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `NAMESPACE   NAME     HOSTS               READY   PROGRAMMED   ENDPOINTS   MESSAGE
shop        broken   *                   False   0/1                      Service shop/none does not exist
shop        status                       False                            1 of 2 routes ready; not ready: broken
shop        web      *.shop.example +1   True    2/2          6/7         serving
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
}

func TestScreenPrintsWhatIsNew(t *testing.T) {
	var out strings.Builder
	screen := &screen{out: &out}
	printed := func() string {
		defer out.Reset()
		return out.String()
	}
	screen.problems(nil)
	if got := printed(); got != "" {
		t.Errorf("good files from the start: %q", got)
	}
	screen.problems([]string{"a", "b"})
	screen.problems([]string{"a", "b"})
	if got := printed(); got != "\na\nb\n" {
		t.Errorf("problems: %q", got)
	}
	screen.problems(nil)
	if got := printed(); got != "\nall files are good\n" {
		t.Errorf("mended: %q", got)
	}
	screen.table("table\n")
	screen.table("table\n")
	if got := printed(); len(got) != len("\n"+time.TimeOnly+"\ntable\n") || !strings.HasSuffix(got, "\ntable\n") {
		t.Errorf("table: %q", got)
	}
}
