package modeltest

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"meshroute.io/meshroute/internal/schema"
)

// node is a place in the schema of a kind.
type node struct {
	*apiextensionsv1.JSONSchemaProps
	// path leads to it from the kind: "ServiceRoute.spec.rules[].name".
	path string
	// fields are the last two names in it.
	fields [2]string
	// children are properties by name, "[]" for items, "*" for the values of a
	// map. They are made once, for what they remember.
	children map[string]*node

	judge *schema.Schema
	field string
	// candidates are the values that a scalar may have, nil until they are known.
	candidates []any
}

func (n *node) child(name string, props *apiextensionsv1.JSONSchemaProps) *node {
	if known := n.children[name]; known != nil {
		return known
	}
	made := &node{JSONSchemaProps: props, children: map[string]*node{}}
	switch name {
	case "[]":
		made.path, made.fields = n.path+"[]", n.fields
	case "*":
		made.path, made.fields = n.path+".*", [2]string{n.fields[1], "additional"}
	default:
		made.path, made.fields = n.path+"."+name, [2]string{n.fields[1], name}
	}
	n.children[name] = made
	return made
}

// admits tells whether an API server would take a value here, as far as this
// part of the schema tells.
func (n *node) admits(value any) bool {
	if n.judge == nil {
		var err error
		if n.judge, n.field, err = schema.Of(ownRules(n.JSONSchemaProps, true)); err != nil {
			panic(fmt.Sprintf("%s: %v", n.path, err)) // a schema that no API server takes either
		}
	}
	// What is admitted gets defaults, which the value is to stay without.
	object := runtime.DeepCopyJSON(map[string]any{n.field: value})
	return n.judge.Admit(context.Background(), object) == nil
}

// ownRules is a schema without what fields below it may hold: they have been
// judged by themselves, which takes most of the time. Defaults stay, because
// rules see them.
func ownRules(props *apiextensionsv1.JSONSchemaProps, top bool) *apiextensionsv1.JSONSchemaProps {
	own := *props
	if !top {
		own = apiextensionsv1.JSONSchemaProps{
			Type: props.Type, Default: props.Default, Properties: props.Properties, Items: props.Items,
			AdditionalProperties: props.AdditionalProperties, XIntOrString: props.XIntOrString, Nullable: props.Nullable,
			XPreserveUnknownFields: props.XPreserveUnknownFields,
		}
	}
	if len(props.Properties) > 0 {
		own.Properties = make(map[string]apiextensionsv1.JSONSchemaProps, len(props.Properties))
		for name := range props.Properties {
			below := props.Properties[name]
			own.Properties[name] = *ownRules(&below, false)
		}
	}
	if props.Items != nil && props.Items.Schema != nil {
		own.Items = &apiextensionsv1.JSONSchemaPropsOrArray{Schema: ownRules(props.Items.Schema, false)}
	}
	if props.AdditionalProperties != nil && props.AdditionalProperties.Schema != nil {
		own.AdditionalProperties = &apiextensionsv1.JSONSchemaPropsOrBool{Allows: true, Schema: ownRules(props.AdditionalProperties.Schema, false)}
	}
	return &own
}

// value makes a value, and returns nil where none is found that the schema
// admits.
func (n *node) value(c *choices) any {
	switch {
	case n.XIntOrString || n.Type == "string" || n.Type == "integer" || n.Type == "number" || n.Type == "boolean":
		return n.scalar(c)
	case n.Type == "array":
		return n.list(c)
	case n.Type == "object" && n.AdditionalProperties != nil && n.AdditionalProperties.Schema != nil:
		return n.entries(c)
	case n.Type == "object" && len(n.Properties) > 0:
		return n.object(c)
	}
	return nil // what may be anything is of no use to this operator
}

func (n *node) scalar(c *choices) any {
	if n.candidates == nil {
		n.candidates = []any{}
		for _, candidate := range n.possible() {
			if n.admits(candidate) {
				n.candidates = append(n.candidates, candidate)
			}
		}
	}
	if len(n.candidates) == 0 {
		return nil
	}
	return pick(c, n.candidates...)
}

// possible are values of the type of n, admitted or not.
func (n *node) possible() []any {
	var all []any
	if len(n.Enum) > 0 {
		for _, value := range n.Enum {
			var decoded any
			if json.Unmarshal(value.Raw, &decoded) == nil {
				all = append(all, decoded)
			}
		}
		return all
	}
	if own := fieldNumbers[n.fields[1]]; own != nil && n.Type != "string" {
		for _, number := range own {
			all = append(all, number)
		}
	} else if n.XIntOrString || n.Type == "integer" || n.Type == "number" {
		for _, number := range numbers {
			all = append(all, number)
		}
		if n.Minimum != nil {
			all = append(all, int64(*n.Minimum))
		}
		if n.Maximum != nil {
			all = append(all, int64(*n.Maximum))
		}
	}
	switch {
	case n.Type == "boolean":
		all = append(all, false, true)
	case n.XIntOrString && n.fields[1] == "port":
		all = append(all, "http", "grpc", "none")
	case n.XIntOrString || n.Type == "string":
		var own []string
		for _, key := range []string{n.fields[0] + "." + n.fields[1], n.fields[1]} {
			if words[key] != nil {
				own = words[key]
				break
			}
		}
		if !slices.ContainsFunc(own, func(word string) bool { return n.admits(word) }) {
			own = anyWords
		}
		for _, word := range own {
			all = append(all, word)
		}
	}
	return all
}

func (n *node) list(c *choices) any {
	if n.Items == nil || n.Items.Schema == nil {
		return nil
	}
	item := n.child("[]", n.Items.Schema)
	least, most := 0, 3
	if n.MinItems != nil {
		least = int(*n.MinItems)
	}
	if n.MaxItems != nil {
		if c.sometimes(40) {
			most = int(*n.MaxItems) // all that there may be
		}
		most = min(most, int(*n.MaxItems))
	}
	length := max(least, c.of(most+1))
	list := []any{}
	for range length {
		if made := item.value(c); made != nil {
			list = append(list, made)
		}
	}
	if n.joint() && !n.admits(list) {
		// Those that fit the ones before them.
		fitting := []any{}
		for _, made := range list {
			if fitting = append(fitting, made); !n.admits(fitting) {
				fitting = fitting[:len(fitting)-1]
			}
		}
		list = fitting
	}
	if len(list) < least || n.joint() && !n.admits(list) {
		return nil
	}
	return list
}

// joint tells that items or fields of n must fit each other.
func (n *node) joint() bool {
	return len(n.XValidations) > 0 || n.XListType != nil && *n.XListType != "atomic" || len(n.OneOf) > 0 || len(n.AnyOf) > 0 || n.Not != nil
}

func (n *node) entries(c *choices) any {
	value := n.child("*", n.AdditionalProperties.Schema)
	keys := words[n.fields[1]+".additional"]
	if keys == nil {
		keys = words["additional"]
	}
	made := map[string]any{}
	for range c.of(3) {
		key := pick(c, keys...)
		if one := value.value(c); one != nil {
			made[key] = one
			if !n.admits(made) {
				delete(made, key)
			}
		}
	}
	if !n.admits(made) {
		return nil
	}
	return made
}

// object sets about half of the fields, or a third, and then leaves out one after the other
// of those that need not be there, until the rest fits.
func (n *node) object(c *choices) any {
	const attempts = 6
	// Of many fields few go together.
	many := len(n.Properties) > 8 && n.joint()
	for range attempts {
		made := map[string]any{}
		complete := true
		for _, name := range slices.Sorted(maps.Keys(n.Properties)) {
			required := slices.Contains(n.Required, name)
			absent := c.sometimes(2)
			if many && !absent {
				absent = c.sometimes(3)
			}
			if rare[n.fields[1]+"."+name] {
				absent = !c.sometimes(6)
			}
			if !required && absent {
				continue
			}
			props := n.Properties[name]
			value := n.child(name, &props).value(c)
			if value != nil {
				made[name] = value
			} else if required {
				complete = false
				break
			}
		}
		if complete && n.fit(c, made) {
			return made
		}
	}
	return nil
}

func (n *node) fit(c *choices, made map[string]any) bool {
	if !n.joint() {
		return true // its fields have been judged, each by itself
	}
	for !n.admits(made) {
		var optional []string
		for _, name := range slices.Sorted(maps.Keys(made)) {
			if !slices.Contains(n.Required, name) {
				optional = append(optional, name)
			}
		}
		if len(optional) == 0 {
			return false
		}
		delete(made, pick(c, optional...))
	}
	return true
}

// fieldsOf are all fields below n, and the values of those that are one of a
// few.
func (n *node) fieldsOf(yield func(string)) {
	switch {
	case len(n.Enum) > 0:
		for _, value := range n.Enum {
			yield(n.path + "=" + strings.Trim(string(value.Raw), `"`))
		}
	case n.Items != nil && n.Items.Schema != nil:
		yield(n.path)
		n.child("[]", n.Items.Schema).fieldsOf(yield)
	case n.AdditionalProperties != nil && n.AdditionalProperties.Schema != nil:
		yield(n.path)
		n.child("*", n.AdditionalProperties.Schema).fieldsOf(yield)
	default:
		yield(n.path)
		for name := range n.Properties {
			props := n.Properties[name]
			n.child(name, &props).fieldsOf(yield)
		}
	}
}

// setIn are those of them that a value sets.
func (n *node) setIn(value any, yield func(string)) {
	switch value := value.(type) {
	case map[string]any:
		yield(n.path)
		for name, held := range value {
			if props, found := n.Properties[name]; found {
				n.child(name, &props).setIn(held, yield)
			} else if n.AdditionalProperties != nil {
				n.child("*", n.AdditionalProperties.Schema).setIn(held, yield)
			}
		}
	case []any:
		yield(n.path)
		for _, held := range value {
			n.child("[]", n.Items.Schema).setIn(held, yield)
		}
	default:
		if len(n.Enum) > 0 {
			yield(fmt.Sprintf("%s=%v", n.path, value))
		} else {
			yield(n.path)
		}
	}
}
