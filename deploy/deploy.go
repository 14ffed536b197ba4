// Package deploy embeds the manifests that the broker applies by itself.
package deploy

import "embed"

// CRDs are the CustomResourceDefinitions of kubelink.
//
//go:embed crds/*.yaml
var CRDs embed.FS
