package main

// The image of the layers, and the archive that "ctr images import" and "docker load" take.

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// source is where the code is.
const source = "https://github.com/mandelsoft/kubelink"

// imageLabels are the annotations of the OCI image specification. Docker shows them as labels.
func (c *config) imageLabels() map[string]string {
	return map[string]string{
		"org.opencontainers.image.title":       "kubelink",
		"org.opencontainers.image.description": "links Kubernetes clusters, and names what it links",
		"org.opencontainers.image.version":     c.version,
		"org.opencontainers.image.revision":    c.revision,
		"org.opencontainers.image.source":      source,
	}
}

// assembleImage makes the image: a layer with Debian's files, which rarely changes, and one with the programs.
func (c *config) assembleImage(base, programs tree) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.ConfigFile(img, &v1.ConfigFile{
		Architecture: architecture, OS: "linux", Created: v1.Time{Time: epoch},
		RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{
			Entrypoint: []string{"/kubelink"},
			Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			User:       "0:0", // main.go says why
			WorkingDir: "/",
			Labels:     c.imageLabels(),
		},
	})
	if err != nil {
		return nil, err
	}
	for _, part := range []struct {
		files tree
		what  string
	}{{base, "packages of Debian " + release}, {programs, "kubelink " + c.version}} {
		layer, err := part.files.makeLayer()
		if err != nil {
			return nil, err
		}
		img, err = mutate.Append(img, mutate.Addendum{Layer: layer,
			History: v1.History{Created: v1.Time{Time: epoch}, CreatedBy: "deploy/image", Comment: part.what}})
		if err != nil {
			return nil, err
		}
	}
	return mutate.Annotations(img, c.imageLabels()).(v1.Image), nil
}

// packArchive returns the image as an OCI layout in a tar, with the file manifest.json of docker-archive: docker save
// writes the same since version 25.
func packArchive(img v1.Image, names []string) ([]byte, error) {
	files := tree{}
	manifest, err := partial.Descriptor(img)
	if err != nil {
		return nil, err
	}
	raw, err := img.RawManifest()
	if err != nil {
		return nil, err
	}
	files.addBlob(manifest.Digest, raw)
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	docker := tarball.Descriptor{}
	for _, l := range layers {
		digest, content, err := readLayer(l)
		if err != nil {
			return nil, err
		}
		docker.Layers = append(docker.Layers, files.addBlob(digest, content))
	}
	configName, err := img.ConfigName()
	if err != nil {
		return nil, err
	}
	configFile, err := img.RawConfigFile()
	if err != nil {
		return nil, err
	}
	docker.Config = files.addBlob(configName, configFile)

	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	for _, name := range names {
		docker.RepoTags = append(docker.RepoTags, strings.TrimPrefix(name, "docker.io/library/"))
		d := *manifest
		d.Platform = &v1.Platform{OS: "linux", Architecture: architecture}
		d.Annotations = map[string]string{
			"io.containerd.image.name":          name,
			"org.opencontainers.image.ref.name": name[strings.LastIndex(name, ":")+1:],
		}
		index.Manifests = append(index.Manifests, d)
	}
	for name, value := range map[string]any{
		"index.json": index, "manifest.json": tarball.Manifest{docker},
		"oci-layout": map[string]string{"imageLayoutVersion": "1.0.0"},
	} {
		content, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		files.addFile(name, 0o644, content)
	}
	return files.packFiles()
}

// addBlob adds what an index or a manifest names by its digest.
func (t tree) addBlob(digest v1.Hash, content []byte) (name string) {
	name = "blobs/" + digest.Algorithm + "/" + digest.Hex
	t.addFile(name, 0o644, content)
	return name
}

func readLayer(l v1.Layer) (v1.Hash, []byte, error) {
	digest, err := l.Digest()
	if err != nil {
		return digest, nil, err
	}
	r, err := l.Compressed()
	if err != nil {
		return digest, nil, err
	}
	defer r.Close()
	content, err := io.ReadAll(r)
	if err != nil {
		return digest, nil, fmt.Errorf("layer %s: %w", digest, err)
	}
	return digest, content, nil
}
