package main

// Files of the image as a tar: sorted, of root, without times.

import (
	"archive/tar"
	"bytes"
	"io"
	"maps"
	"path"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// epoch is the time of all that is in the image.
var epoch = time.Unix(0, 0).UTC()

// treeEntry is a file, a directory or a symbolic link.
type treeEntry struct {
	kind    byte  // a type of archive/tar
	mode    int64 // permissions
	target  string
	content []byte
}

// tree is files by name, without a slash at the begin.
type tree map[string]treeEntry

func (t tree) addFile(name string, mode int64, content []byte) {
	t[name] = treeEntry{kind: tar.TypeReg, mode: mode & 0o777, content: content}
}

func (t tree) addDirectory(name string, mode int64) {
	t[name] = treeEntry{kind: tar.TypeDir, mode: mode & 0o1777}
}

func (t tree) addLink(name, target string) {
	t[name] = treeEntry{kind: tar.TypeSymlink, mode: 0o777, target: target}
}

// sortedNames returns the names; a directory comes before what is in it.
func (t tree) sortedNames() []string { return slices.Sorted(maps.Keys(t)) }

// packFiles writes the tree as a tar. The same tree gives the same bytes.
func (t tree) packFiles() ([]byte, error) {
	t = maps.Clone(t)
	for name := range maps.Clone(t) {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, ok := t[dir]; !ok {
				t.addDirectory(dir, 0o755)
			}
		}
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range t.sortedNames() {
		e := t[name]
		h := &tar.Header{Typeflag: e.kind, Name: name, Linkname: e.target, Mode: e.mode, Size: int64(len(e.content)),
			ModTime: epoch, Format: tar.FormatPAX}
		if e.kind == tar.TypeDir {
			h.Name += "/"
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(e.content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// makeLayer makes a layer of the tree.
func (t tree) makeLayer() (v1.Layer, error) {
	content, err := t.packFiles()
	if err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }
	return tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
}
