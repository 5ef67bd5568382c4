// Package crd holds the CustomResourceDefinitions of this operator, so that
// programs can judge objects as an API server would.
package crd

import "embed"

// Files are the generated CustomResourceDefinitions, in the folder bases.
//
//go:embed bases/*.yaml
var Files embed.FS
