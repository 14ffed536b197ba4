// Package deploy embeds manifests: those that the broker applies by itself, and those that the command line installs.
package deploy

import "embed"

// CRDs are the CustomResourceDefinitions of kubelink.
//
//go:embed crds/*.yaml
var CRDs embed.FS

// Manifests are the kustomize base and its components.
//
//go:embed base components
var Manifests embed.FS
