package testbed

// This file makes container images, without a registry and an engine: an archive as `docker save` writes it, which
// containerd imports.

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// PodImage is an image that every real node has. Its program /pod waits for its end; with the argument serve it answers
// with the client's address on TCP port 8080 and UDP port 5353; see test/pod.
const PodImage = "kubelink.test/pod:test"

// buildPodImage builds the archive of PodImage.
func buildPodImage(ctx context.Context) (path string, err error) {
	root, err := Repository()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(workDir, "image")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	program := filepath.Join(dir, "pod")
	build := exec.CommandContext(ctx, "go", "build", "-ldflags", "-s -w", "-o", program, "./test/pod")
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build test/pod: %w\n%s", err, out)
	}
	path = program + ".tar"
	return path, WriteImage(path, PodImage, map[string]string{"/pod": program}, "/pod")
}

// WriteImage writes the archive of an image that has these programs, by their paths in it.
func WriteImage(path, reference string, programs map[string]string, entrypoint ...string) error {
	fail := func(err error) error { return fmt.Errorf("image %s: %w", reference, err) }
	tag, err := name.NewTag(reference)
	if err != nil {
		return fail(err)
	}
	var files bytes.Buffer
	archive := tar.NewWriter(&files)
	for to, from := range programs {
		text, err := os.ReadFile(from)
		if err != nil {
			return fail(err)
		}
		if err := archive.WriteHeader(&tar.Header{Name: to[1:], Mode: 0o755, Size: int64(len(text))}); err != nil {
			return fail(err)
		}
		if _, err := archive.Write(text); err != nil {
			return fail(err)
		}
	}
	if err := archive.Close(); err != nil {
		return fail(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(files.Bytes())), nil
	})
	if err != nil {
		return fail(err)
	}
	image, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH,
		Config: v1.Config{Entrypoint: entrypoint, Env: []string{"PATH=/"}}})
	if err != nil {
		return fail(err)
	}
	if image, err = mutate.AppendLayers(image, layer); err != nil {
		return fail(err)
	}
	if err := tarball.WriteToFile(path, tag, image); err != nil {
		return fail(err)
	}
	return nil
}
