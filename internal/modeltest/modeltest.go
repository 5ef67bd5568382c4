// Package modeltest makes sets of objects for tests: whatever users may write
// that an API server takes, and what goes with it.
//
// What the fields of a kind may hold it reads from the kind's own
// CustomResourceDefinition, and asks the API server's libraries. So a field that
// is new is in these sets without anybody adding it; where no value is found for
// one, Missing names it, and words.go wants one more.
package modeltest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"meshroute.io/meshroute/internal/model"
	"meshroute.io/meshroute/internal/schema"
)

// Generator makes sets of objects. It is not for several goroutines.
type Generator struct {
	kinds map[string]*kind
	// set are the fields that were set in any object.
	set map[string]bool
	// Made and Refused are how many objects it has made, and how many of them
	// the schema refused as a whole; these are left out.
	Made, Refused int
}

// kind is one whose objects are judged by a definition.
type kind struct {
	schema *schema.Schema
	spec   *node
	root   *node
}

// admits sets defaults in an object, and tells whether an API server would take
// it.
func (k *kind) admits(object map[string]any) bool {
	return k.schema.Admit(context.Background(), object) == nil
}

// New reads the definitions of this operator's kinds and of Gateway API's.
func New() (*Generator, error) {
	own, err := schema.Load()
	if err != nil {
		return nil, err
	}
	gatewayAPI, err := gatewayAPI()
	if err != nil {
		return nil, err
	}
	g := &Generator{kinds: map[string]*kind{}, set: map[string]bool{}}
	for gvk, s := range gatewayAPI {
		if gvk.Version == "v1" {
			g.add(gvk.Kind, s)
		}
	}
	for gvk, s := range own {
		g.add(gvk.Kind, s)
	}
	return g, nil
}

func (g *Generator) add(name string, s *schema.Schema) {
	root := &node{JSONSchemaProps: s.Properties, path: name, children: map[string]*node{}}
	spec, found := s.Properties.Properties["spec"]
	if !found {
		return
	}
	g.kinds[name] = &kind{schema: s, root: root, spec: root.child("spec", &spec)}
}

// gatewayAPI reads the definitions that the version of Gateway API has that this
// repository is built with.
func gatewayAPI() (map[gvk]*schema.Schema, error) {
	output, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api").Output()
	if err != nil {
		return nil, fmt.Errorf("find the definitions of Gateway API: %w", err)
	}
	folder := filepath.Join(strings.TrimSpace(string(output)), "config", "crd", "standard")
	return schema.Read(os.DirFS(folder))
}

// names are those that objects of a kind may have; of every other kind there
// are at most four.
var names = map[string][]string{
	"GatewayClass":  {"meshroute", "foreign"},
	"Gateway":       {"edge", "inner", "third"},
	"GatewayConfig": {"config", "other"},
	"Namespace":     {"one", "two"},
	"Service":       {"web", "api", "old", "web-2"},
	"Secret":        {"cert", "wildcard", "mismatched", "malformed"},
	"ServiceRoute":  {"a", "b", "c", "d", "e", "f"},
}

// Random makes a set of objects, another one for each seed.
func (g *Generator) Random(seed uint64) (model.Inputs, error) { return g.inputs(seeded(seed)) }

// Inputs makes a set of objects by bytes, which a fuzzer changes: the same for
// the same ones.
func (g *Generator) Inputs(bytes []byte) (model.Inputs, error) { return g.inputs(newChoices(bytes)) }

func (g *Generator) inputs(c *choices) (model.Inputs, error) {
	in := model.Inputs{OneHost: c.sometimes(4), GatewayAPI: pick(c, "", "v1.5.0", "v1.7.0")}
	for field, list := range reflect.ValueOf(&in).Elem().Fields() {
		if field.Type.Kind() != reflect.Slice {
			continue
		}
		kind := field.Type.Elem().Elem().Name()
		named := names[kind]
		if named == nil {
			named = []string{"p", "q", "r", "s"}
		}
		namespaces := []string{"one", "two"}
		if kind == "GatewayClass" || kind == "Namespace" {
			namespaces = []string{""}
		}
		for _, namespace := range namespaces {
			for i, name := range named {
				// What everything else needs is nearly always there.
				needed := i == 0 && (kind == "GatewayClass" || kind == "Namespace" || kind == "Gateway" || kind == "GatewayConfig") || i < 2 && kind == "Service"
				if c.sometimes(2) && !needed || c.sometimes(20) {
					continue
				}
				object := reflect.New(field.Type.Elem().Elem())
				made, err := g.make(c, kind, namespace, name, object.Interface())
				if err != nil {
					return in, err
				}
				if made {
					list.Set(reflect.Append(list, object))
				}
			}
		}
	}
	return in, nil
}

// make fills an object, and returns false where there is none to be had.
func (g *Generator) make(c *choices, kind, namespace, name string, into any) (bool, error) {
	content := map[string]any{}
	if foreign := others[kind]; foreign != nil {
		content = foreign(c, name)
	} else if made := g.kinds[kind]; made == nil {
		return false, fmt.Errorf("modeltest does not know what a %s is: give it a function in others", kind)
	} else if content["spec"] = made.spec.value(c); content["spec"] == nil {
		return false, nil
	}
	metadata, _ := content["metadata"].(map[string]any)
	if metadata == nil {
		metadata = map[string]any{}
		content["metadata"] = metadata
	}
	metadata["name"] = name
	if namespace != "" {
		metadata["namespace"] = namespace
	}
	if kind == "Gateway" && c.sometimes(2) {
		metadata["labels"] = map[string]any{"meshroute.io/default-gateway": ""}
	}
	if judged := g.kinds[kind]; judged != nil {
		g.Made++
		admitted := runtime.DeepCopyJSON(content)
		if !judged.admits(admitted) {
			g.Refused++
			return false, nil
		}
		judged.spec.setIn(content["spec"], func(path string) { g.set[path] = true })
		content = admitted
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(content, into, true); err != nil {
		return false, fmt.Errorf("%s %s: %w", kind, name, err)
	}
	object := into.(metav1.Object)
	object.SetUID(types.UID(kind + "-" + namespace + "-" + name))
	// Objects of one name in several sets are versions of one.
	version := c.of(1 << 30)
	object.SetGeneration(int64(version))
	object.SetResourceVersion(strconv.Itoa(version))
	object.SetCreationTimestamp(metav1.NewTime(time.Date(2026, 11, 1, c.of(4), 0, 0, 0, time.UTC)))
	return true, nil
}

// Missing are the fields of the kinds in model.Inputs, and those values of
// enumerations, that no object had so far.
func (g *Generator) Missing() []string {
	var missing []string
	for field := range reflect.TypeFor[model.Inputs]().Fields() {
		if field.Type.Kind() != reflect.Slice {
			continue
		}
		if kind := g.kinds[field.Type.Elem().Elem().Name()]; kind != nil {
			kind.spec.fieldsOf(func(path string) {
				if !g.set[path] {
					missing = append(missing, path)
				}
			})
		}
	}
	slices.Sort(missing)
	return missing
}
