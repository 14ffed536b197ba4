package main

// The image as make image makes it: the same input gives the same bytes, nothing is missing in it, and it runs as
// deploy/base lets it: with a read-only root, and no capabilities but NET_ADMIN and NET_RAW.

import (
	"archive/tar"
	"bytes"
	"crypto/x509"
	"debug/elf"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// built is a directory with the programs and the image of them. All tests share it.
var built struct {
	sync.Once
	dir   string
	err   error
	files tree // of rootFiles
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// buildImage returns the command line that has made the image.
func buildImage(t *testing.T) *config {
	t.Helper()
	built.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "image-"); built.err != nil {
			return
		}
		for _, name := range programs(t) {
			cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=v1.2.3+test",
				"-o", filepath.Join(built.dir, name), "../../cmd/"+name)
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				built.err = errors.New(string(out))
				return
			}
		}
		built.err = newConfig(t, built.dir).makeImage(t.Context())
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return newConfig(t, built.dir)
}

// programs are the commands that are in the image.
func programs(t *testing.T) (names []string) {
	dirs, err := filepath.Glob("../../cmd/kubelink*")
	if err != nil || len(dirs) == 0 {
		t.Fatal("no commands", err)
	}
	for _, d := range dirs {
		names = append(names, filepath.Base(d))
	}
	return names
}

// newConfig is a command line for programs in a directory.
func newConfig(t *testing.T, dir string) *config {
	c := &config{packages: "packages.txt", newer: true, cache: "../../.cache/packages", version: "v1.2.3+test", revision: "abc",
		image: filepath.Join(dir, "image.tar"), sbom: filepath.Join(dir, "image.cdx.json")}
	for _, name := range programs(t) {
		c.binaries = append(c.binaries, filepath.Join(dir, name))
	}
	return c
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// The same programs with other times, in another place, give the same image, byte by byte; another version another one.
func TestSameInputSameDigest(t *testing.T) {
	first := buildImage(t)
	second := newConfig(t, t.TempDir())
	for i, file := range second.binaries {
		if err := os.WriteFile(file, read(t, first.binaries[i]), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, time.Now(), time.Now().Add(-time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	if err := second.makeImage(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, files := range [][2]string{{first.image, second.image}, {first.sbom, second.sbom}} {
		if !bytes.Equal(read(t, files[0]), read(t, files[1])) {
			t.Errorf("%s and %s differ", files[0], files[1])
		}
	}
	same := digestOf(t, second)
	if want := digestOf(t, first); same != want {
		t.Errorf("digest %s, want %s", same, want)
	}
	second.version = "v1.2.4"
	if err := second.makeImage(t.Context()); err != nil {
		t.Fatal(err)
	}
	if other := digestOf(t, second); other == same {
		t.Errorf("another version has the same digest")
	}
}

// digestOf returns the digest in the index of the OCI layout.
func digestOf(t *testing.T, c *config) v1.Hash {
	t.Helper()
	var index v1.IndexManifest
	if err := json.Unmarshal(untar(t, read(t, c.image))["index.json"].content, &index); err != nil {
		t.Fatal(err)
	}
	for i, m := range index.Manifests {
		name := m.Annotations["io.containerd.image.name"]
		if name != c.imageNames()[i] || m.Digest != index.Manifests[0].Digest {
			t.Errorf("index: %s has the name %s, want %s", m.Digest, name, c.imageNames()[i])
		}
	}
	return index.Manifests[0].Digest
}

func untar(t *testing.T, content []byte) tree {
	t.Helper()
	files := tree{}
	for r := tar.NewReader(bytes.NewReader(content)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		} else if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || !h.ModTime.Equal(epoch) {
			t.Errorf("%s is of %d:%d with the time %s", h.Name, h.Uid, h.Gid, h.ModTime)
		}
		e := treeEntry{kind: h.Typeflag, mode: h.Mode, target: h.Linkname}
		if e.content, err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
		files[strings.TrimSuffix(h.Name, "/")] = e
	}
}

// openImage reads the archive as docker does, and compares it with the OCI layout.
func openImage(t *testing.T, c *config) v1.Image {
	t.Helper()
	img, err := tarball.ImageFromPath(c.image, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}
	var manifest v1.Manifest
	blobs := untar(t, read(t, c.image))
	if err := json.Unmarshal(blobs["blobs/sha256/"+digestOf(t, c).Hex].content, &manifest); err != nil {
		t.Fatal(err)
	}
	if name, err := img.ConfigName(); err != nil || name != manifest.Config.Digest {
		t.Errorf("docker sees the config %s, others %s: %v", name, manifest.Config.Digest, err)
	}
	for _, l := range manifest.Layers {
		if _, ok := blobs["blobs/sha256/"+l.Digest.Hex]; !ok {
			t.Errorf("layer %s is missing", l.Digest)
		}
	}
	if got := manifest.Annotations["org.opencontainers.image.version"]; got != c.version {
		t.Errorf("annotation version: %q", got)
	}
	return img
}

func TestConfig(t *testing.T) {
	c := buildImage(t)
	file, err := openImage(t, c).ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"version": "v1.2.3+test", "revision": "abc", "source": source} {
		if got := file.Config.Labels["org.opencontainers.image."+name]; got != want {
			t.Errorf("label %s: %q, want %q", name, got, want)
		}
	}
	if e := file.Config.Entrypoint; len(e) != 1 || e[0] != "/kubelink" || !file.Created.Equal(epoch) {
		t.Errorf("entrypoint %q, created %s", e, file.Created)
	}
	if got, want := c.imageNames()[0], "docker.io/library/kubelink:v1.2.3-test"; got != want {
		t.Errorf("name %s, want %s", got, want)
	}
}

// rootFiles are the files of the image.
func rootFiles(t *testing.T) tree {
	t.Helper()
	if built.files != nil {
		return built.files
	}
	layers := mutate.Extract(openImage(t, buildImage(t)))
	defer layers.Close()
	content, err := io.ReadAll(layers)
	if err != nil {
		t.Fatal(err)
	}
	built.files = untar(t, content)
	return built.files
}

// Each library that a program or a library needs is there, and where a link points to.
func TestRootFileSystem(t *testing.T) {
	root := rootFiles(t)
	libraries := map[string]bool{}
	for name := range root {
		libraries[path.Base(name)] = true
	}
	programs := 0
	for name, e := range root {
		target := e.target
		if target != "" && !path.IsAbs(target) {
			target = path.Join(path.Dir(name), target)
		}
		if _, ok := root[strings.TrimPrefix(target, "/")]; target != "" && !ok {
			t.Errorf("%s points to %s: it is missing", name, e.target)
		}
		if !bytes.HasPrefix(e.content, []byte(elf.ELFMAG)) {
			continue
		}
		programs++
		file, err := elf.NewFile(bytes.NewReader(e.content))
		if err != nil {
			t.Fatal(err)
		}
		needs, _ := file.ImportedLibraries()
		for _, n := range needs {
			if !libraries[n] {
				t.Errorf("%s needs %s: add its package to packages.txt", name, n)
			}
		}
	}
	if programs < 50 {
		t.Errorf("%d programs and libraries: where is xtables?", programs)
	}
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, backend := range []string{"", "-nft", "-legacy"} {
			for _, tool := range []string{"", "-save", "-restore"} {
				if _, ok := root["usr/sbin/"+family+backend+tool]; !ok {
					t.Errorf("%s%s%s is missing", family, backend, tool)
				}
			}
		}
	}
	for _, name := range []string{"kubelink", "etc/os-release", "usr/share/doc/libc6/copyright", "run/xtables.lock"} {
		if _, ok := root[name]; !ok {
			t.Errorf("%s is missing", name)
		}
	}
	if pool := x509.NewCertPool(); !pool.AppendCertsFromPEM(root[bundle].content) || bytes.Count(root[bundle].content,
		[]byte("BEGIN CERTIFICATE")) < 100 {
		t.Errorf("%s has no certificates", bundle)
	}
}

// The Dockerfile has the same release, and takes the same packages and programs.
func TestDockerfile(t *testing.T) {
	text := string(read(t, "../../Dockerfile"))
	script := regexp.MustCompile(`sed -n '(.*)' /tmp/packages.txt`).FindStringSubmatch(text)
	if !strings.Contains(text, "FROM debian:"+release+"-slim\n") || script == nil {
		t.Fatalf("it has no %s or no sed:\n%s", release, text)
	}
	if want := "COPY bin/" + strings.Join(programs(t), " bin/") + " /\n"; !strings.Contains(text, want) {
		t.Errorf("it has no %q", want)
	}
	out, err := exec.Command("sed", "-n", script[1], "packages.txt").Output()
	if err != nil {
		t.Fatal(err)
	}
	packages, err := readPackages("packages.txt")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, p := range packages {
		want = append(want, p.name+"="+p.version)
	}
	if got := strings.Fields(string(out)); !slices.Equal(got, want) {
		t.Errorf("it installs %q, want %q", got, want)
	}
}

func TestBillOfMaterials(t *testing.T) {
	c := buildImage(t)
	var bom cdx.BOM
	text := read(t, c.sbom)
	if err := cdx.NewBOMDecoder(bytes.NewReader(text), cdx.BOMFileFormatJSON).Decode(&bom); err != nil {
		t.Fatal(err)
	}
	versions, without := map[string]string{}, []string{}
	for _, p := range *bom.Components {
		versions[p.Name] = p.Version
		if p.Licenses == nil && p.Type == cdx.ComponentTypeLibrary {
			without = append(without, p.Name)
		}
	}
	t.Logf("%d components; without licence: %q", len(versions), without)
	if len(without) > 0 {
		t.Errorf("the licences of %q are not known: add what theirs say to knownLicences", without)
	}
	want := map[string]string{"github.com/mandelsoft/kubelink/cmd/kubelink": c.version}
	packages, err := c.findPackages(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range packages {
		want[p.name] = p.version
	}
	for _, file := range c.binaries {
		b, err := readBinary(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range b.info.Deps {
			want[m.Path] = m.Version
		}
	}
	for name, version := range want {
		if versions[name] != version {
			t.Errorf("%s has version %q, want %q", name, versions[name], version)
		}
	}
	if !bytes.Contains(text, []byte(digestOf(t, c).Hex)) || bytes.Contains(text, []byte(`"timestamp"`)) {
		t.Error("it has not the image's digest, or it has a time")
	}
}

func TestReadPackages(t *testing.T) {
	sum := strings.Repeat("0", 64)
	for _, c := range []struct{ text, want string }{
		{"# comment\n\nlibc6=1:2~3+4 " + sum + "\n", ""},
		{"libc6=1\n", `list:1: "libc6=1": want NAME=VERSION SHA256`},
		{"#\nlibc6 1 " + sum, `list:2: "libc6 1 ` + sum + `": want NAME=VERSION SHA256`},
	} {
		dir := t.TempDir()
		t.Chdir(dir)
		if err := os.WriteFile("list", []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		packages, err := readPackages("list")
		if c.want == "" {
			if err != nil || len(packages) != 1 || packages[0].version != "1:2~3+4" {
				t.Errorf("%q: %v", c.text, err)
			}
		} else if err == nil || err.Error() != c.want {
			t.Errorf("%q: error %v, want %s", c.text, err, c.want)
		}
	}
}

// What cannot work in the image ends make image.
func TestRefusedInput(t *testing.T) {
	c := buildImage(t)
	dynamic, err := exec.LookPath("ls")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readBinary(dynamic); err == nil {
		t.Errorf("a program that is not Go is taken")
	}
	dir := t.TempDir()
	p := &debianPackage{name: "libx", version: "1", checksum: strings.Repeat("0", 64), file: filepath.Join(dir, "x")}
	if err := os.WriteFile(filepath.Join(dir, "libx_1_amd64.deb"), []byte("bad"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.takeDownload(dir); err == nil || !strings.Contains(err.Error(), "package libx=1: SHA-256 is ") {
		t.Errorf("a package with another checksum: %v", err)
	}
	c.binaries = nil
	if err := c.makeImage(t.Context()); err == nil || !strings.Contains(err.Error(), "no binaries") {
		t.Errorf("without binaries: %v", err)
	}
}
