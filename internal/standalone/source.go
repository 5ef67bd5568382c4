package standalone

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/validation"
	yamlutil "k8s.io/apimachinery/pkg/util/yaml"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/internal/model"
	crdschema "meshroute.io/meshroute/internal/schema"
)

// Bounds of what is read.
const (
	maxFileSize = 8 << 20
	maxFiles    = 20_000
)

// source reads objects from the YAML files below a folder. A file that cannot be
// read as a whole keeps the objects that it had when it last could.
type source struct {
	folder  string
	schemas map[schema.GroupVersionKind]*crdschema.Schema
	files   map[string]*file
	seen    map[string]metav1.Object // by id, as last read
	// certificates are what Secrets held, also those that were broken since.
	certificates map[model.Key]*model.Certificate
	now          time.Time // of the present read
}

type file struct {
	hash    [sha256.Size]byte
	objects []metav1.Object // as of the last time that all of it was good
	problem string
}

func newSource(folder string) (*source, error) {
	info, err := os.Stat(folder)
	if err != nil {
		return nil, fmt.Errorf("read the folder of YAML files: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%s is not a folder", folder)
	}
	schemas, err := crdschema.Load()
	if err != nil {
		return nil, err
	}
	return &source{folder: folder, schemas: schemas, files: map[string]*file{}, seen: map[string]metav1.Object{}}, nil
}

// objects are what all files together declare.
type objects struct {
	inputs model.Inputs
	slices map[model.Key][]*discoveryv1.EndpointSlice
	// secrets by key
	secrets map[model.Key]*corev1.Secret
	// problems are sentences about files, sorted by file.
	problems []string
}

// read reads the files that have changed, and returns what all of them declare.
func (s *source) read(ctx context.Context, now time.Time) (objects, error) {
	s.now = now
	paths, err := s.paths()
	if err != nil {
		return objects{}, err
	}
	for path := range s.files {
		if !slices.Contains(paths, path) {
			delete(s.files, path)
		}
	}
	for _, path := range paths {
		s.readFile(ctx, path)
	}
	return s.collect(paths), nil
}

func (s *source) paths() ([]string, error) {
	var paths []string
	err := filepath.WalkDir(s.folder, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone while walking
		}
		if err != nil {
			return err
		}
		if hidden := path != s.folder && strings.HasPrefix(entry.Name(), "."); hidden {
			if entry.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		switch filepath.Ext(path) {
		case ".yaml", ".yml", ".json":
			if !entry.IsDir() {
				paths = append(paths, path)
			}
		}
		if len(paths) > maxFiles {
			return fmt.Errorf("%s holds more than %d YAML files", s.folder, maxFiles)
		}
		return nil
	})
	slices.Sort(paths)
	return paths, err
}

func (s *source) readFile(ctx context.Context, path string) {
	known := s.files[path]
	if known == nil {
		known = &file{}
		s.files[path] = known
	}
	content, err := readBounded(path)
	if err != nil {
		known.problem = err.Error()
		known.hash = [sha256.Size]byte{}
		return
	}
	hash := sha256.Sum256(content)
	if hash == known.hash {
		return
	}
	known.hash = hash
	read, err := s.parse(ctx, content)
	if err != nil {
		known.problem = err.Error()
		return
	}
	for _, object := range read {
		s.setHistory(object)
	}
	known.objects, known.problem = read, ""
}

// setHistory tells what an API server would of an object, and files do not: its
// generation, by which it is known whether gateways have a route as it is now;
// and its age, because of two objects that claim the same the older one has it.
func (s *source) setHistory(object metav1.Object) {
	object.SetGeneration(1)
	object.SetCreationTimestamp(metav1.NewTime(s.now))
	if before := s.seen[id(object)]; before != nil {
		object.SetGeneration(before.GetGeneration())
		object.SetCreationTimestamp(before.GetCreationTimestamp())
		if !reflect.DeepEqual(before, object) {
			object.SetGeneration(before.GetGeneration() + 1)
		}
	}
	s.seen[id(object)] = object
}

// id names an object among those of all kinds.
func id(object metav1.Object) string {
	return fmt.Sprintf("%s %s/%s", strings.TrimLeft(fmt.Sprintf("%T", object), "*"), object.GetNamespace(), object.GetName())
}

func readBounded(path string) ([]byte, error) {
	opened, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = opened.Close() }()
	content, err := io.ReadAll(io.LimitReader(opened, maxFileSize+1))
	if err == nil && len(content) > maxFileSize {
		err = fmt.Errorf("larger than %d MiB", maxFileSize>>20)
	}
	return content, err
}

// parse reads the documents of a file; one that is wrong makes it all wrong,
// with every problem told.
func (s *source) parse(ctx context.Context, content []byte) ([]metav1.Object, error) {
	reader := yamlutil.NewYAMLReader(bufio.NewReader(bytes.NewReader(content)))
	var read []metav1.Object
	var problems []error
	for number := 1; ; number++ {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return read, errors.Join(problems...)
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", number, err)
		}
		parsed, err := s.document(ctx, document)
		if err != nil {
			problems = append(problems, fmt.Errorf("document %d: %w", number, err))
			continue
		}
		read = append(read, parsed...)
	}
}

// newObject returns an empty object of a kind that standalone mode looks at.
func newObject(kind schema.GroupVersionKind) metav1.Object {
	gatewayAPI := schema.GroupVersion(gatewayv1.GroupVersion)
	switch kind {
	case gatewayAPI.WithKind("GatewayClass"):
		return &gatewayv1.GatewayClass{}
	case gatewayAPI.WithKind("Gateway"):
		return &gatewayv1.Gateway{}
	case gatewayAPI.WithKind("ReferenceGrant"):
		return &gatewayv1.ReferenceGrant{}
	case v1alpha1.GroupVersion.WithKind("ServiceRoute"):
		return &v1alpha1.ServiceRoute{}
	case v1alpha1.GroupVersion.WithKind("GatewayConfig"):
		return &v1alpha1.GatewayConfig{}
	case v1alpha1.GroupVersion.WithKind("HealthPolicy"):
		return &v1alpha1.HealthPolicy{}
	case corev1.SchemeGroupVersion.WithKind("Service"):
		return &corev1.Service{}
	case corev1.SchemeGroupVersion.WithKind("Namespace"):
		return &corev1.Namespace{}
	case corev1.SchemeGroupVersion.WithKind("Secret"):
		return &corev1.Secret{}
	case discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice"):
		return &discoveryv1.EndpointSlice{}
	}
	return nil
}

func (s *source) document(ctx context.Context, document []byte) ([]metav1.Object, error) {
	encoded, err := yaml.YAMLToJSONStrict(document)
	if err != nil {
		return nil, fmt.Errorf("no valid YAML: %w", err)
	}
	// Kubernetes' own decoder keeps whole numbers whole, as schemas want them.
	var content map[string]any
	if err := json.Unmarshal(encoded, &content); err != nil {
		return nil, fmt.Errorf("not an object: %w", err)
	}
	if len(content) == 0 {
		return nil, nil
	}
	apiVersion, _ := content["apiVersion"].(string)
	kind, _ := content["kind"].(string)
	if apiVersion == "" || kind == "" {
		return nil, errors.New("apiVersion or kind is missing")
	}
	gvk := schema.FromAPIVersionAndKind(apiVersion, kind)
	object := newObject(gvk)
	if object == nil {
		// The same files may hold Deployments and more for a cluster.
		if gvk.Group == v1alpha1.GroupVersion.Group || gvk.Group == gatewayv1.GroupName {
			return nil, fmt.Errorf("kind %s of %s is not one that can be read here", kind, apiVersion)
		}
		return nil, nil
	}
	metadata, _ := content["metadata"].(map[string]any)
	name := fmt.Sprintf("%s %v", kind, metadata["name"])
	if own := s.schemas[gvk]; own != nil {
		if err := own.Admit(ctx, content); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(content, object, true); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := check(object); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return []metav1.Object{object}, nil
}

// check does the part of an API server's validation without which Envoy would
// refuse what comes of an object, and sets the namespace.
func check(object metav1.Object) error {
	if faults := validation.IsDNS1123Subdomain(object.GetName()); len(faults) > 0 {
		return fmt.Errorf("metadata.name: %s", faults[0])
	}
	switch object := object.(type) {
	case *gatewayv1.GatewayClass, *corev1.Namespace:
		return nil
	case *gatewayv1.Gateway:
		for i, listener := range object.Spec.Listeners {
			if listener.Port < 1 || listener.Port > 65535 {
				return fmt.Errorf("spec.listeners[%d].port: must be from 1 to 65535", i)
			}
		}
	case *corev1.Service:
		for i, port := range object.Spec.Ports {
			if port.Port < 1 || port.Port > 65535 {
				return fmt.Errorf("spec.ports[%d].port: must be from 1 to 65535", i)
			}
		}
	case *corev1.Secret:
		for name, text := range object.StringData {
			if object.Data == nil {
				object.Data = map[string][]byte{}
			}
			object.Data[name] = []byte(text)
		}
		object.StringData = nil
	case *discoveryv1.EndpointSlice:
		if object.Labels[discoveryv1.LabelServiceName] == "" {
			return fmt.Errorf("metadata.labels: %s is missing, which names the Service", discoveryv1.LabelServiceName)
		}
		for i, endpoint := range object.Endpoints {
			for _, address := range endpoint.Addresses {
				if _, err := netip.ParseAddr(address); err != nil && object.AddressType != discoveryv1.AddressTypeFQDN {
					return fmt.Errorf("endpoints[%d].addresses: %q is no IP address", i, address)
				}
			}
		}
		for i, port := range object.Ports {
			if port.Port == nil || *port.Port < 1 || *port.Port > 65535 {
				return fmt.Errorf("ports[%d].port: must be from 1 to 65535", i)
			}
		}
	}
	if object.GetNamespace() == "" {
		object.SetNamespace(metav1.NamespaceDefault)
	}
	if faults := validation.IsDNS1123Label(object.GetNamespace()); len(faults) > 0 {
		return fmt.Errorf("metadata.namespace: %s", faults[0])
	}
	return nil
}

// standaloneClass is there without being declared, as it is in a cluster that
// the operator was deployed to.
const standaloneClass = "meshroute"

// collect puts the objects of all files together. Of two with the same kind and
// name the first counts.
func (s *source) collect(paths []string) objects {
	all := objects{
		inputs:  model.Inputs{OneHost: true},
		slices:  map[model.Key][]*discoveryv1.EndpointSlice{},
		secrets: map[model.Key]*corev1.Secret{},
	}
	from := map[string]string{}
	for _, path := range paths {
		known := s.files[path]
		if known.problem != "" {
			state := "none of it is used"
			if len(known.objects) > 0 {
				state = "what it held before stays in use"
			}
			all.problems = append(all.problems, fmt.Sprintf("%s: %s (%s)", path, known.problem, state))
		}
		for _, object := range known.objects {
			id := id(object)
			if other, taken := from[id]; taken {
				all.problems = append(all.problems, fmt.Sprintf("%s: %s is also in %s, which counts: remove one of them",
					path, id, other))
				continue
			}
			from[id] = path
			all.add(object)
		}
	}
	in := &all.inputs
	in.Now, in.Certificates = s.now, s.readCertificates(all.secrets, model.Certificates(*in))
	if !slices.ContainsFunc(in.GatewayClasses, func(class *gatewayv1.GatewayClass) bool { return class.Name == standaloneClass }) {
		in.GatewayClasses = append(in.GatewayClasses, &gatewayv1.GatewayClass{
			Name: standaloneClass,
			Spec: gatewayv1.GatewayClassSpec{ControllerName: v1alpha1.ControllerName},
		})
	}
	return all
}

func (o *objects) add(object metav1.Object) {
	in := &o.inputs
	switch object := object.(type) {
	case *gatewayv1.GatewayClass:
		in.GatewayClasses = append(in.GatewayClasses, object)
	case *gatewayv1.Gateway:
		in.Gateways = append(in.Gateways, object)
	case *gatewayv1.ReferenceGrant:
		in.ReferenceGrants = append(in.ReferenceGrants, object)
	case *v1alpha1.ServiceRoute:
		in.ServiceRoutes = append(in.ServiceRoutes, object)
	case *v1alpha1.GatewayConfig:
		in.GatewayConfigs = append(in.GatewayConfigs, object)
	case *v1alpha1.HealthPolicy:
		in.HealthPolicies = append(in.HealthPolicies, object)
	case *corev1.Service:
		in.Services = append(in.Services, object)
	case *corev1.Namespace:
		in.Namespaces = append(in.Namespaces, object)
	case *corev1.Secret:
		o.secrets[model.Key{Namespace: object.Namespace, Name: object.Name}] = object
	case *discoveryv1.EndpointSlice:
		key := model.Key{Namespace: object.Namespace, Name: object.Labels[discoveryv1.LabelServiceName]}
		o.slices[key] = append(o.slices[key], object)
	}
}

// readCertificates reads the Secrets that Gateways refer to.
func (s *source) readCertificates(secrets map[model.Key]*corev1.Secret, wanted []model.Key) map[model.Key]*model.Certificate {
	read := map[model.Key]*model.Certificate{}
	for _, key := range wanted {
		if secret := secrets[key]; secret != nil {
			read[key] = model.ReadCertificate(secret, s.certificates[key])
			if before := s.certificates[key]; before != nil && reflect.DeepEqual(before, read[key]) {
				read[key] = before
			}
		}
	}
	s.certificates = read
	return read
}
