package deploy

// This file checks the documents of the whole repository: links lead to files and headings that exist, and the README
// stays short.

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// root is the repository, seen from the folder of this package.
const root = ".."

// maxReadme is the limit for README.md in bytes: details belong into the other documents.
const maxReadme = 10 << 10

func TestReadmeSize(t *testing.T) {
	info, err := os.Stat(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > maxReadme {
		t.Errorf("README.md has %d bytes, %d is the most", info.Size(), maxReadme)
	}
}

var (
	markdownFence   = regexp.MustCompile("(?ms)^ *(```|~~~).*?^ *(```|~~~)$")
	markdownCode    = regexp.MustCompile("`[^`\n]*`")
	markdownLink    = regexp.MustCompile(`\]\(([^()\s]+)\)`)
	markdownHeading = regexp.MustCompile(`(?m)^#+ +(.*)$`)
	headingDropped  = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
)

// anchors are the fragments under which GitHub shows the headings of a document.
func anchors(text string) map[string]bool {
	all := map[string]bool{}
	for _, m := range markdownHeading.FindAllStringSubmatch(markdownFence.ReplaceAllString(text, ""), -1) {
		heading := headingDropped.ReplaceAllString(strings.ToLower(strings.TrimSpace(m[1])), "")
		all[strings.ReplaceAll(heading, " ", "-")] = true
	}
	return all
}

// relativeLinks are the targets of a document's links, without links to other hosts.
func relativeLinks(text string) (all []string) {
	text = markdownCode.ReplaceAllString(markdownFence.ReplaceAllString(text, ""), "")
	for _, m := range markdownLink.FindAllStringSubmatch(text, -1) {
		if !strings.Contains(m[1], "://") && !strings.HasPrefix(m[1], "mailto:") {
			all = append(all, m[1])
		}
	}
	return all
}

// documents are the Markdown files of the repository, outside of folders that begin with a dot.
func documents(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	visitFiles(t, ".md", func(path string, text []byte) { all[path] = string(text) })
	return all
}

// visitFiles calls a function for each file of the repository with this end of its name, outside of folders that begin
// with a dot.
func visitFiles(t *testing.T, end string, visit func(path string, text []byte)) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && strings.HasPrefix(d.Name(), "."):
			return filepath.SkipDir
		case d.IsDir() || filepath.Ext(path) != end:
			return nil
		}
		text, err := os.ReadFile(path)
		if err == nil {
			visit(path, text)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestLinksOfDocuments(t *testing.T) {
	all := documents(t)
	links := 0
	for path, text := range all {
		for _, link := range relativeLinks(text) {
			links++
			file, fragment, _ := strings.Cut(link, "#")
			target := path
			if file != "" {
				target = filepath.Join(filepath.Dir(path), file)
			}
			if outside, err := filepath.Rel(root, target); err != nil || strings.HasPrefix(outside, "..") {
				t.Errorf("%s: the link %s leads out of the repository", path, link)
				continue
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: the link %s leads nowhere: %v", path, link, err)
				continue
			}
			if fragment != "" && !anchors(all[target])[fragment] {
				t.Errorf("%s: the link %s leads to no heading of %s", path, link, target)
			}
		}
	}
	if len(all) < 5 || links < 20 {
		t.Errorf("%d documents with %d links: the test does not find them", len(all), links)
	}
}

func TestRelativeLinks(t *testing.T) {
	text := "# A `b` c-d: e, f!\n\n[a](x.md) and [b](y/z.md#p), [c](https://example.com/x.md), " +
		"![d](e.svg), `[no](link)`\n" +
		"```\n# no heading\n[no](link)\n```\n[last](#a-b-c-d-e-f)\n"
	if got, want := strings.Join(relativeLinks(text), " "), "x.md y/z.md#p e.svg #a-b-c-d-e-f"; got != want {
		t.Errorf("links %q, not %q", got, want)
	}
	if got := anchors(text); len(got) != 1 || !got["a-b-c-d-e-f"] {
		t.Errorf("anchors %v", got)
	}
}
