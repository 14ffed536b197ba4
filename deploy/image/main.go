// image makes the container image of kubelink without a container engine, from static binaries and pinned Debian
// packages, and a bill of materials beside it. It needs apt-get and dpkg-deb. The same input gives the same digest.
//
// The processes of the image run as root, without capabilities but NET_ADMIN and NET_RAW. Another user cannot have
// them: Kubernetes gives added capabilities to root only, and allowPrivilegeEscalation: false, which deploy/base sets,
// makes the kernel ignore capabilities of a file. The legacy iptables also demands to be root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/google/renameio/v2"
)

// config is what the command line says.
type config struct {
	packages string   // file with the list of packages
	newer    bool     // take newer packages where Debian has replaced one of the list
	cache    string   // directory with downloaded packages
	image    string   // file to write: an OCI layout that is a docker-archive, too
	sbom     string   // file to write: CycloneDX in JSON
	version  string   // of kubelink
	revision string   // commit
	binaries []string // files
}

func main() {
	var c config
	flag.StringVar(&c.packages, "packages", "deploy/image/packages.txt", "list of the Debian packages")
	flag.StringVar(&c.cache, "cache", ".cache/packages", "directory for downloaded packages")
	flag.StringVar(&c.image, "o", "bin/kubelink-image.tar", "image to write")
	flag.StringVar(&c.sbom, "sbom", "bin/kubelink-image.cdx.json", "bill of materials to write (CycloneDX)")
	flag.StringVar(&c.version, "version", "unknown", "version of kubelink")
	flag.StringVar(&c.revision, "revision", "", "commit of kubelink")
	flag.BoolVar(&c.newer, "newer", false, "take newer packages where Debian has replaced one of the list, and say so")
	update := flag.Bool("update", false, "write the list of packages anew, with the versions that Debian has now")
	flag.Parse()
	c.binaries = flag.Args()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	var err error
	if *update {
		err = updatePackages(ctx, c.packages, c.cache)
	} else {
		err = c.makeImage(ctx)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// findPackages returns the packages of the list; they are in the cache. Debian's mirrors drop a version when there is a
// newer one: with newer, the image can still be made, but is another one.
func (c *config) findPackages(ctx context.Context) ([]*debianPackage, error) {
	packages, err := readPackages(c.packages)
	if err != nil {
		return nil, err
	}
	err = fetchPackages(ctx, packages, c.cache)
	if err == nil || !c.newer {
		return packages, err
	}
	fmt.Fprintln(os.Stderr, "image: it gets newer packages than the list has, for:", err)
	text, err := os.ReadFile(c.packages)
	if err != nil {
		return nil, err
	}
	list := filepath.Join(c.cache, "newer.txt")
	if err := errors.Join(writeFile(list, text), updatePackages(ctx, list, c.cache)); err != nil {
		return nil, err
	}
	if packages, err = readPackages(list); err != nil {
		return nil, err
	}
	return packages, fetchPackages(ctx, packages, c.cache)
}

// makeImage writes the image and its bill of materials.
func (c *config) makeImage(ctx context.Context) error {
	if len(c.binaries) == 0 {
		return errors.New("no binaries: name the files, for example bin/kubelink")
	}
	for _, tool := range []string{"apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w: run it on Debian or Ubuntu, or use the Dockerfile", err)
		}
	}
	packages, err := c.findPackages(ctx)
	if err != nil {
		return err
	}
	base, err := makeRoot(ctx, packages)
	if err != nil {
		return err
	}
	programs := tree{}
	var binaries []binary
	for _, file := range c.binaries {
		b, err := readBinary(file)
		if err != nil {
			return err
		}
		binaries = append(binaries, b)
		programs.addFile(b.name, 0o755, b.content)
	}
	img, err := c.assembleImage(base, programs)
	if err != nil {
		return err
	}
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	archive, err := packArchive(img, c.imageNames())
	if err != nil {
		return err
	}
	sbom, err := listMaterials(ctx, c.version, digest, binaries, packages)
	if err != nil {
		return err
	}
	if err := errors.Join(writeFile(c.sbom, sbom), writeFile(c.image, archive)); err != nil {
		return err
	}
	fmt.Printf("%s: %s, %d MB, %s\n", c.image, digest, len(archive)>>20, strings.Join(c.imageNames(), ", "))
	return nil
}

// notInTag are the characters that a tag cannot have, + of a semantic version for example.
var notInTag = regexp.MustCompile(`[^A-Za-z0-9_.-]`)

// imageNames are the references of the image.
func (c *config) imageNames() []string {
	return []string{"docker.io/library/kubelink:" + notInTag.ReplaceAllString(c.version, "-"),
		"docker.io/library/kubelink:latest"}
}

// writeFile replaces a file as a whole: a test bed may read it.
func writeFile(name string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return renameio.WriteFile(name, content, 0o644)
}
