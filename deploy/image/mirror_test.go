package main

// Packages from a mirror that the system's apt does not know: one in a directory, with one package.

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// makeMirror makes a mirror that has this package, and has the tool use it.
func makeMirror(t *testing.T, name, version string) {
	t.Helper()
	dir := t.TempDir()
	write := func(file, text string) {
		t.Helper()
		file = filepath.Join(dir, file)
		err := os.MkdirAll(filepath.Dir(file), 0o755)
		if err == nil {
			err = os.WriteFile(file, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	control := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: nobody <nobody@kubelink.example>\n"+
		"Description: for a test\n", name, version)
	write("package/DEBIAN/control", control)
	write("package/usr/share/"+name+"/file", "content")
	if out, err := exec.Command("dpkg-deb", "--build", filepath.Join(dir, "package"), dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	file := name + "_" + version + "_all.deb"
	checksum, err := fileChecksum(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	list := fmt.Sprintf("%sFilename: %s\nSize: %d\nSHA256: %s\n", control, file, len(read(t, filepath.Join(dir, file))),
		checksum)
	write("dists/"+release+"/main/binary-"+architecture+"/Packages", list)
	write("dists/"+release+"-security/main/binary-"+architecture+"/Packages", "")
	t.Setenv("DEBIAN_MIRROR", "file:"+dir)
	t.Setenv("DEBIAN_SECURITY_MIRROR", "file:"+dir)
}

// TestUnsignedMirror: a list that is written anew does not take checksums of a mirror on the network that Debian has not
// signed, where Debian's keys are installed.
func TestUnsignedMirror(t *testing.T) {
	const name = "kubelink-test-package"
	makeMirror(t, name, "2.0-1")
	server := httptest.NewServer(http.FileServer(http.Dir(strings.TrimPrefix(os.Getenv("DEBIAN_MIRROR"), "file:"))))
	defer server.Close()
	t.Setenv("DEBIAN_MIRROR", server.URL)
	t.Setenv("DEBIAN_SECURITY_MIRROR", server.URL)
	list := filepath.Join(t.TempDir(), "packages.txt")
	if err := os.WriteFile(list, []byte(name+"=1.0-1 "+strings.Repeat("0", 64)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, noKeys := os.Stat(keyring)
	err := updatePackages(t.Context(), list, t.TempDir())
	if refused := err != nil && strings.Contains(err.Error(), "does not have a Release file"); refused != (noKeys == nil) {
		t.Errorf("keys of Debian: %v; error %v", noKeys, err)
	}
}

func TestMirror(t *testing.T) {
	const name = "kubelink-test-package"
	makeMirror(t, name, "2.0-1")
	cache, list := t.TempDir(), filepath.Join(t.TempDir(), "packages.txt")
	setList := func(version string) {
		t.Helper()
		text := "# a comment\n" + name + "=" + version + " " + strings.Repeat("0", 64) + "\n"
		if err := os.WriteFile(list, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fetch := func() ([]*debianPackage, error) {
		packages, err := readPackages(list)
		if err != nil {
			t.Fatal(err)
		}
		return packages, fetchPackages(t.Context(), packages, cache)
	}
	setList("1.0-1")
	if _, err := fetch(); err == nil || !strings.Contains(err.Error(), "Version '1.0-1' for '"+name+"' was not found") ||
		!strings.Contains(err.Error(), `take them with "go run ./deploy/image -update"`) {
		t.Errorf("an old version: %v", err)
	}
	c := &config{packages: list, newer: true, cache: cache}
	if packages, err := c.findPackages(t.Context()); err != nil || len(packages) != 1 || packages[0].version != "2.0-1" {
		t.Errorf("a newer version: %v, %v", packages, err)
	}
	if text := string(read(t, list)); !strings.Contains(text, "=1.0-1 ") {
		t.Errorf("the list has changed: %s", text)
	}
	setList("2.0-1")
	if _, err := fetch(); err == nil || !strings.Contains(err.Error(), "as in the list: do not use it") {
		t.Errorf("a wrong checksum: %v", err)
	}
	setList("1.0-1")
	if err := updatePackages(t.Context(), list, cache); err != nil {
		t.Fatal(err)
	}
	packages, err := fetch()
	if err != nil || len(packages) != 1 || packages[0].version != "2.0-1" {
		t.Fatalf("%s: %v", read(t, list), err)
	}
	root, err := makeRoot(t.Context(), packages)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(root["usr/share/"+name+"/file"].content); got != "content" {
		t.Errorf("content %q", got)
	}
	if !strings.HasPrefix(string(read(t, list)), "# a comment\n") {
		t.Errorf("the comment is gone: %s", read(t, list))
	}
}
