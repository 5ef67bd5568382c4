// Package schema judges objects as an API server does that has their
// CustomResourceDefinition: defaults, validation and rules in CEL, by the API
// server's own libraries.
package schema

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"sigs.k8s.io/yaml"

	"meshroute.io/meshroute/config/crd"
)

// Schema judges objects of one kind.
type Schema struct {
	// Properties is the schema as its definition has it.
	Properties *apiextensionsv1.JSONSchemaProps
	// Columns are those that kubectl prints.
	Columns []apiextensionsv1.CustomResourceColumnDefinition

	structural *structuralschema.Structural
	validator  validation.SchemaValidator
	rules      *cel.Validator
}

// Load reads this operator's own definitions.
func Load() (map[schema.GroupVersionKind]*Schema, error) { return Read(crd.Files) }

// Read reads the definitions in the YAML files of a folder and those below it.
// What is no definition it leaves out.
func Read(files fs.FS) (map[schema.GroupVersionKind]*Schema, error) {
	schemas := map[schema.GroupVersionKind]*Schema{}
	err := fs.WalkDir(files, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || path.Ext(name) != ".yaml" {
			return err
		}
		content, err := fs.ReadFile(files, name)
		if err != nil {
			return err
		}
		var definition apiextensionsv1.CustomResourceDefinition
		if err := yaml.Unmarshal(content, &definition); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if definition.Kind != "CustomResourceDefinition" {
			return nil
		}
		for i := range definition.Spec.Versions {
			version := &definition.Spec.Versions[i]
			gvk := schema.GroupVersionKind{Group: definition.Spec.Group, Version: version.Name, Kind: definition.Spec.Names.Kind}
			made, err := compile(version.Schema, true)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			made.Columns = version.AdditionalPrinterColumns
			schemas[gvk] = made
		}
		return nil
	})
	return schemas, err
}

// Of judges values of a part of an object, as the value of the field that it
// returns: what the object's other fields say is not looked at.
func Of(part *apiextensionsv1.JSONSchemaProps) (made *Schema, field string, err error) {
	field = "value"
	made, err = compile(&apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{
		Type:       "object",
		Properties: map[string]apiextensionsv1.JSONSchemaProps{field: *part},
	}}, false)
	return made, field, err
}

func compile(from *apiextensionsv1.CustomResourceValidation, root bool) (*Schema, error) {
	var internal apiextensions.CustomResourceValidation
	if err := apiextensionsv1.Convert_v1_CustomResourceValidation_To_apiextensions_CustomResourceValidation(from, &internal, nil); err != nil {
		return nil, err
	}
	structural, err := structuralschema.NewStructural(internal.OpenAPIV3Schema)
	if err != nil {
		return nil, err
	}
	validator, _, err := validation.NewSchemaValidator(internal.OpenAPIV3Schema)
	if err != nil {
		return nil, err
	}
	return &Schema{
		Properties: from.OpenAPIV3Schema,
		structural: structural,
		validator:  validator,
		rules:      cel.NewValidator(structural, root, celconfig.PerCallLimit),
	}, nil
}

// Admit sets defaults in object, and returns what an API server would refuse it
// for.
func (s *Schema) Admit(ctx context.Context, object map[string]any) error {
	unknown := pruning.PruneWithOptions(object, s.structural, true, structuralschema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true})
	if len(unknown) > 0 {
		slices.Sort(unknown)
		return fmt.Errorf("unknown field %s", strings.Join(unknown, ", "))
	}
	defaulting.Default(object, s.structural)
	if faults := validation.ValidateCustomResource(nil, object, s.validator); len(faults) > 0 {
		return faults.ToAggregate()
	}
	var faults field.ErrorList
	faults = append(faults, listtype.ValidateListSetsAndMaps(nil, s.structural, object)...)
	broken, _ := s.rules.Validate(ctx, nil, s.structural, object, nil, celconfig.RuntimeCELCostBudget)
	return append(faults, broken...).ToAggregate()
}
