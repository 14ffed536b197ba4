package deploy

// Tests of the pages for environments and symptoms: what they say was tested is tested, and all else is marked.

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	fencedBlock = regexp.MustCompile("(?ms)^( *)```.*?^ *```$")
	namedTest   = regexp.MustCompile("`(Test[A-Z][A-Za-z0-9]*)`")
	goTest      = regexp.MustCompile(`(?m)^func (Test[A-Z][A-Za-z0-9]*)\(t \*testing\.T\)`)
)

// sourceFiles calls a function for each Go file of the repository.
func sourceFiles(t *testing.T, visit func(path string, text []byte)) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && strings.HasPrefix(d.Name(), "."):
			return filepath.SkipDir
		case d.IsDir() || filepath.Ext(path) != ".go":
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

// readPage reads a Markdown file of this folder.
func readPage(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Before each block of commands stands a paragraph that names a test which runs them, or says that none does.
func TestCommandsOfPages(t *testing.T) {
	tests := map[string]bool{}
	sourceFiles(t, func(path string, text []byte) {
		for _, m := range goTest.FindAllSubmatch(text, -1) {
			tests[string(m[1])] = true
		}
	})
	for _, page := range []string{"environments.md"} {
		text := readPage(t, page)
		for _, m := range namedTest.FindAllStringSubmatch(text, -1) {
			if !tests[m[1]] {
				t.Errorf("%s: there is no test %s", page, m[1])
			}
		}
		blocks := fencedBlock.FindAllStringIndex(text, -1)
		if len(blocks) < 3 {
			t.Errorf("%s: %d blocks of commands: the test does not find them", page, len(blocks))
		}
		for _, at := range blocks {
			before := strings.TrimSpace(text[:at[0]])
			before = before[strings.LastIndex(before, "\n\n")+1:]
			if !strings.Contains(before, "not run here") && !namedTest.MatchString(before) {
				t.Errorf("%s: nothing says which test runs\n%s", page, text[at[0]:at[1]])
			}
		}
	}
}
