package main

// The Debian packages of the image: the pinned list, how they come here, and what of them is in the image.

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// The Debian release of the packages. Dockerfile has the same one.
const (
	release       = "bookworm"
	releaseNumber = "12"
	architecture  = "amd64"
)

// keyring has the keys of Debian, where its package debian-archive-keyring is installed.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// debianSources is where the packages come from if this system's apt does not know them. The checksums of the list are
// what we trust: with a list that is written anew (flags update and newer) they are as good as the signature of the
// mirror's lists, which needs the keyring. A directory of this machine has none.
func debianSources() string {
	text := ""
	for _, source := range []struct{ mirror, suite string }{
		{cmp.Or(os.Getenv("DEBIAN_MIRROR"), "http://deb.debian.org/debian"), release},
		{cmp.Or(os.Getenv("DEBIAN_SECURITY_MIRROR"), "http://deb.debian.org/debian-security"), release + "-security"},
	} {
		trust := "signed-by=" + keyring
		if _, err := os.Stat(keyring); err != nil || strings.HasPrefix(source.mirror, "file:") {
			trust = "trusted=yes"
		}
		text += fmt.Sprintf("deb [%s check-valid-until=no] %s %s main\n", trust, source.mirror, source.suite)
	}
	return text
}

// debianPackage is one line of the list.
type debianPackage struct {
	name, version string
	checksum      string   // SHA-256 of the file, in hexadecimal digits
	file          string   // after fetchPackages
	control       []byte   // its control file, after makeRoot
	licences      []string // as Debian names them, after makeRoot
}

var packageLine = regexp.MustCompile(`^([a-z0-9][a-z0-9+.-]+)=(\S+)\s+([0-9a-f]{64})$`)

// readPackages reads the list: "NAME=VERSION SHA256" per line, # begins a comment.
func readPackages(file string) (packages []*debianPackage, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		m := packageLine.FindStringSubmatch(line)
		if m == nil {
			return nil, fmt.Errorf("%s:%d: %.100q: want NAME=VERSION SHA256", file, number, line)
		}
		packages = append(packages, &debianPackage{name: m[1], version: m[2], checksum: m[3]})
	}
	return packages, nil
}

// fetchPackages downloads what the cache does not have.
func fetchPackages(ctx context.Context, packages []*debianPackage, cache string) error {
	cache, err := filepath.Abs(cache)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	var missing []string
	for _, p := range packages {
		p.file = filepath.Join(cache, p.checksum+".deb")
		if _, err := os.Stat(p.file); err != nil {
			missing = append(missing, p.name+"="+p.version)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	dir, err := os.MkdirTemp(cache, "download-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := downloadPackages(ctx, dir, cache, missing); err != nil {
		return err
	}
	for _, p := range packages {
		if err := p.takeDownload(dir); err != nil {
			return err
		}
	}
	return nil
}

// downloadPackages has apt-get download packages into a directory: by the lists of this system, else by lists of our own.
func downloadPackages(ctx context.Context, dir, cache string, packages []string) error {
	if err := runAPT(ctx, dir, nil, "download", packages...); err == nil {
		return nil
	}
	lists, err := updateLists(ctx, cache)
	if err != nil {
		return err
	}
	if err := runAPT(ctx, dir, lists, "download", packages...); err != nil {
		return fmt.Errorf("%w\nDebian may have newer versions: take them with \"go run ./deploy/image -update\", or name "+
			"a mirror with the old ones, for example "+
			"DEBIAN_MIRROR=http://snapshot.debian.org/archive/debian/20261101T000000Z", err)
	}
	return nil
}

// updateLists makes lists of packages in the cache, and returns the options of apt-get that use them.
func updateLists(ctx context.Context, cache string) (options []string, err error) {
	sources := debianSources()
	dir := filepath.Join(cache, fmt.Sprintf("apt-%x", sha256.Sum256([]byte(sources))))
	if err := os.MkdirAll(filepath.Join(dir, "lists", "partial"), 0o755); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "sources.list")
	if err := os.WriteFile(file, []byte(sources), 0o644); err != nil {
		return nil, err
	}
	options = []string{
		"-oAPT::Architecture=" + architecture, "-oAPT::Architectures=" + architecture,
		"-oAcquire::IndexTargets::deb::DEP-11::DefaultEnabled=false", // descriptions for graphical shells
		"-oDir::Etc::sourcelist=" + file, "-oDir::Etc::sourceparts=-",
		"-oDir::State::lists=" + filepath.Join(dir, "lists"), "-oDir::State::status=" + os.DevNull, "-oDir::Cache=" + dir,
	}
	return options, runAPT(ctx, dir, options, "update")
}

// runAPT runs apt-get in a directory.
func runAPT(ctx context.Context, dir string, options []string, verb string, packages ...string) error {
	// Root may use directories that the user _apt may not.
	args := append([]string{"-q", "-oAPT::Sandbox::User=root"}, options...)
	cmd := exec.CommandContext(ctx, "apt-get", append(append(args, verb), packages...)...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get %s: %w\n%s", verb, err, bytes.TrimSpace(out))
	}
	return nil
}

// takeDownload moves a downloaded file to its place in the cache, if its checksum is right.
func (p *debianPackage) takeDownload(dir string) error {
	// apt-get writes a colon as %3a.
	version := strings.ReplaceAll(p.version, ":", "%3a")
	found, err := filepath.Glob(filepath.Join(dir, p.name+"_"+version+"_*.deb"))
	if err != nil || len(found) == 0 {
		return err
	}
	checksum, err := fileChecksum(found[0])
	if err != nil {
		return err
	}
	if checksum != p.checksum {
		return fmt.Errorf("package %s=%s: SHA-256 is %s, want %s as in the list: do not use it",
			p.name, p.version, checksum, p.checksum)
	}
	return os.Rename(found[0], p.file)
}

func fileChecksum(file string) (string, error) {
	content, err := os.ReadFile(file)
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:]), err
}

// updatePackages writes the list anew: the same packages, in the versions that Debian has now.
func updatePackages(ctx context.Context, file, cache string) error {
	packages, err := readPackages(file)
	if err != nil {
		return err
	}
	if cache, err = filepath.Abs(cache); err != nil {
		return err
	}
	options, err := updateLists(ctx, cache)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	args := append(options, "show", "--no-all-versions")
	for _, p := range packages {
		args = append(args, p.name)
	}
	out, err := exec.CommandContext(ctx, "apt-cache", args...).Output()
	if err != nil {
		return fmt.Errorf("apt-cache show: %w", err)
	}
	for _, found := range bytes.Split(bytes.TrimSpace(out), []byte("\n\n")) {
		name := controlField(found, "Package")
		line := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + `=.*$`)
		text = line.ReplaceAllLiteral(text,
			[]byte(name+"="+controlField(found, "Version")+" "+controlField(found, "SHA256")))
	}
	return writeFile(file, text)
}

// controlField is a field of a control file; empty if it is missing.
func controlField(control []byte, name string) string {
	for line := range strings.Lines(string(control)) {
		if value, ok := strings.CutPrefix(line, name+": "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// bundle is the file in which programs look for CA certificates. Debian makes it when it installs their package.
const bundle = "etc/ssl/certs/ca-certificates.crt"

// makeRoot returns the files of the packages, and what Debian makes of them when it installs them.
func makeRoot(ctx context.Context, packages []*debianPackage) (tree, error) {
	root, certificates := tree{}, tree{}
	for _, p := range packages {
		if err := p.unpackFiles(ctx, root, certificates); err != nil {
			return nil, fmt.Errorf("package %s: %w", p.name, err)
		}
		// Scanners of images look for packages there, and for the release in os-release.
		root.addFile("var/lib/dpkg/status.d/"+p.name, 0o644, p.control)
	}
	for _, p := range packages {
		p.licences = p.findLicences(root)
	}
	root.addFile("etc/os-release", 0o644, []byte(fmt.Sprintf("PRETTY_NAME=\"packages of Debian %s\"\nID=debian\n"+
		"VERSION_ID=\"%[1]s\"\nVERSION_CODENAME=%s\n", releaseNumber, release)))

	var all bytes.Buffer
	for _, name := range certificates.sortedNames() {
		all.Write(bytes.TrimSpace(certificates[name].content))
		all.WriteByte('\n')
	}
	root.addFile(bundle, 0o644, all.Bytes())

	// kubelink chooses the back end; these are for a look with kubectl exec.
	for _, name := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			root.addLink("usr/sbin/"+name+suffix, name+"-nft"+suffix)
		}
	}
	// Where deploy/base mounts something, and what any process expects.
	for _, dir := range []string{"dev", "proc", "sys", "run", "etc/kubelink", "var/lib/kubelink"} {
		root.addDirectory(dir, 0o755)
	}
	root.addDirectory("tmp", 0o1777)
	// The legacy iptables needs its lock also if the node's is not mounted here, and cannot make it.
	root.addFile("run/xtables.lock", 0o600, nil)
	return root, nil
}

// certificateFile is one CA certificate in the package ca-certificates.
var certificateFile = regexp.MustCompile(`^usr/share/ca-certificates/.*\.crt$`)

// unneeded is what the image has not: documentation, translations, character sets, and scripts, for there is no shell.
var unneeded = regexp.MustCompile(`^(usr/share/(man|locale|lintian|iptables|ca-certificates|bug|doc-base)(/|$)|` +
	`usr/lib/[^/]+/gconv(/|$)|usr/sbin/(update-ca-certificates|ip6?tables-apply)$|etc/ca-certificates(/|$))`)

// isNeeded tells whether the image has a file of a package. Of the documentation it has the licences.
func isNeeded(h *tar.Header, name string) bool {
	if strings.HasPrefix(name, "usr/share/doc/") {
		return h.Typeflag == tar.TypeSymlink || strings.HasSuffix(name, "/copyright")
	}
	return !unneeded.MatchString(name)
}

// unpackFiles reads the control file, and adds the files to root or, CA certificates, to certificates.
func (p *debianPackage) unpackFiles(ctx context.Context, root, certificates tree) (err error) {
	if p.control, err = exec.CommandContext(ctx, "dpkg-deb", "--field", p.file).Output(); err != nil {
		return fmt.Errorf("dpkg-deb --field %s: %w", p.file, err)
	}
	if a := controlField(p.control, "Architecture"); a != architecture && a != "all" {
		return fmt.Errorf("it is for %s, want %s", a, architecture)
	}
	files, err := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", p.file).Output()
	if err != nil {
		return fmt.Errorf("dpkg-deb --fsys-tarfile %s: %w", p.file, err)
	}
	r := tar.NewReader(bytes.NewReader(files))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		content, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		name := filepath.Clean(strings.TrimPrefix(h.Name, "./"))
		switch {
		case certificateFile.MatchString(name):
			certificates.addFile(name, 0o644, content)
		case name == "." || !isNeeded(h, name):
		case h.Typeflag == tar.TypeDir:
			root.addDirectory(name, h.Mode)
		case h.Typeflag == tar.TypeSymlink:
			root.addLink(name, h.Linkname)
		case h.Typeflag == tar.TypeReg:
			root.addFile(name, h.Mode, content)
		default:
			return fmt.Errorf("%s has type %q: want a file, a directory or a symbolic link", name, h.Typeflag)
		}
	}
}
