// Package install makes the objects of an installation, as `kubectl apply -k` makes them, from the manifests in the
// binary.
package install

import (
	"fmt"
	"io/fs"
	"path"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	"github.com/mandelsoft/kubelink/deploy"
)

const (
	Namespace = "kubelink"     // of all that is installed
	Name      = "kubelink"     // of Deployment, ConfigMap, Service and account of the broker
	Secret    = "kubelink-tls" // with certificate and CA, or the key of mode wireguard
)

// Values are those of deploy/values.yaml.
type Values struct {
	Image        string `json:"image"`
	ServiceCIDR  string `json:"service-cidr"`
	PodCIDR      string `json:"pod-cidr"`
	NodeCIDR     string `json:"node-cidr"`
	MeshCIDR     string `json:"mesh-cidr"`
	DNSServiceIP string `json:"dns-service-ip"`
	Endpoint     string `json:"endpoint"` // its name for peers
}

const (
	manifestsFolder = "/deploy"
	ownFolder       = "/own" // of the kustomization
)

// Build returns the objects of the base with components of deploy/components; the component values is added. The
// namespace is the first one.
func Build(values Values, components ...string) ([]*unstructured.Unstructured, error) {
	files, err := loadManifests()
	if err != nil {
		return nil, err
	}
	text := "resources: [values.yaml, .." + manifestsFolder + "/base]\ncomponents:\n"
	for _, name := range append(components, "values") {
		text += "  - .." + manifestsFolder + "/components/" + name + "\n"
	}
	config, err := yaml.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": "kubelink-values", "namespace": Namespace,
			"annotations": map[string]any{"config.kubernetes.io/local-config": "true"}}, // the others have its values
		"data": values,
	})
	if err != nil {
		return nil, err
	}
	for name, content := range map[string][]byte{"kustomization.yaml": []byte(text), "values.yaml": config} {
		if err := files.WriteFile(path.Join(ownFolder, name), content); err != nil {
			return nil, err
		}
	}
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(files, ownFolder)
	if err != nil {
		return nil, fmt.Errorf("build the manifests with components %s: %w", strings.Join(components, ", "), err)
	}
	var all []*unstructured.Unstructured
	for _, r := range built.Resources() {
		text, err := r.MarshalJSON()
		o := &unstructured.Unstructured{}
		if err == nil {
			err = o.UnmarshalJSON(text)
		}
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", r.GetKind(), r.GetName(), err)
		}
		all = append(all, o)
	}
	return all, nil
}

// loadManifests copies the manifests to a file system for kustomize.
func loadManifests() (filesys.FileSystem, error) {
	files := filesys.MakeFsInMemory()
	return files, fs.WalkDir(deploy.Manifests, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := deploy.Manifests.ReadFile(name)
		if err != nil {
			return err
		}
		return files.WriteFile(path.Join(manifestsFolder, name), text)
	})
}

// CRDs returns the CustomResourceDefinitions.
func CRDs() ([]*unstructured.Unstructured, error) {
	var all []*unstructured.Unstructured
	err := fs.WalkDir(deploy.CRDs, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := deploy.CRDs.ReadFile(name)
		if err != nil {
			return err
		}
		o := &unstructured.Unstructured{}
		all = append(all, o)
		if text, err = yaml.YAMLToJSON(text); err != nil {
			return err
		}
		return o.UnmarshalJSON(text)
	})
	return all, err
}

// Find returns the object of a kind with a name; nil: there is none.
func Find(all []*unstructured.Unstructured, kind, name string) *unstructured.Unstructured {
	for _, o := range all {
		if o.GetKind() == kind && o.GetName() == name {
			return o
		}
	}
	return nil
}
