package standalone

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"k8s.io/apiextensions-apiserver/pkg/registry/customresource/tableconvertor"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"meshroute.io/meshroute/api/v1alpha1"
	"meshroute.io/meshroute/internal/model"
)

// table renders MeshRoutes as kubectl does, by the columns of their definition;
// all but the age, which files do not tell.
func (s *source) table(ctx context.Context, routes map[model.Key]v1alpha1.MeshRouteStatus) (string, error) {
	columns := s.schemas[v1alpha1.GroupVersion.WithKind("MeshRoute")].Columns
	columns = slices.Clone(columns)
	convertor, err := tableconvertor.New(columns)
	if err != nil {
		return "", err
	}
	keys := make([]model.Key, 0, len(routes))
	for key := range routes {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b model.Key) int { return strings.Compare(a.String(), b.String()) })
	list := &unstructured.UnstructuredList{}
	for _, key := range keys {
		content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&v1alpha1.MeshRoute{
			Namespace: key.Namespace, Name: key.Name,
			Status: routes[key],
		})
		if err != nil {
			return "", err
		}
		list.Items = append(list.Items, unstructured.Unstructured{Object: content})
	}
	table, err := convertor.ConvertToTable(ctx, list, nil)
	if err != nil {
		return "", err
	}

	var text bytes.Buffer
	writer := tabwriter.NewWriter(&text, 0, 8, 3, ' ', 0)
	shown := func(column int) bool {
		definition := table.ColumnDefinitions[column]
		return definition.Priority == 0 && definition.Name != "Age"
	}
	row := func(namespace string, cell func(column int) string) {
		cells := []string{namespace}
		for column := range table.ColumnDefinitions {
			if shown(column) {
				cells = append(cells, cell(column))
			}
		}
		_, _ = fmt.Fprintln(writer, strings.Join(cells, "\t"))
	}
	row("NAMESPACE", func(column int) string { return strings.ToUpper(table.ColumnDefinitions[column].Name) })
	for i, key := range keys {
		row(key.Namespace, func(column int) string {
			if value := table.Rows[i].Cells[column]; value != nil {
				return fmt.Sprint(value)
			}
			return ""
		})
	}
	if err := writer.Flush(); err != nil {
		return "", err
	}
	lines := strings.Split(text.String(), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n"), nil
}
