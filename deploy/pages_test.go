package deploy

// Tests of the pages for environments and symptoms: what they say was tested is tested, and all else is marked.

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var (
	fencedBlock = regexp.MustCompile("(?ms)^( *)```.*?^ *```$")
	command     = regexp.MustCompile(`(?m)^ *(kubectl|helm|skopeo|ctr|docker|openssl|wg|ip|dig|umask|curl|make) `)
	namedTest   = regexp.MustCompile("`(Test[A-Z][A-Za-z0-9]*)`")
	goTest      = regexp.MustCompile(`(?m)^func (Test[A-Z][A-Za-z0-9]*)\(t \*testing\.T\)`)
)

// readPage reads a Markdown file of this folder.
func readPage(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Before each block of commands stands a paragraph that names a test which runs them, or says that none does, or the
// section says so of all its commands. README.md has blocks of files, too.
func TestCommandsOfPages(t *testing.T) {
	tests := map[string]bool{}
	visitFiles(t, ".go", func(path string, text []byte) {
		for _, m := range goTest.FindAllSubmatch(text, -1) {
			tests[string(m[1])] = true
		}
	})
	for _, page := range []string{"README.md", "environments.md", "troubleshooting.md"} {
		text := readPage(t, page)
		for _, m := range namedTest.FindAllStringSubmatch(text, -1) {
			if !tests[m[1]] {
				t.Errorf("%s: there is no test %s", page, m[1])
			}
		}
		blocks := slices.DeleteFunc(fencedBlock.FindAllStringIndex(text, -1), func(at []int) bool {
			return strings.HasPrefix(text[at[0]:], "```txt\n") // what a command prints
		})
		if len(blocks) < 3 {
			t.Errorf("%s: %d blocks of commands: the test does not find them", page, len(blocks))
		}
		for _, at := range blocks {
			block, before := text[at[0]:at[1]], strings.TrimSpace(text[:at[0]])
			section := before[max(strings.LastIndex(before, "\n## "), 0):]
			before = before[strings.LastIndex(before, "\n\n")+1:]
			if (page != "README.md" || command.MatchString(block)) && !strings.Contains(section, "were not run here") &&
				!strings.Contains(before, "not run here") && !namedTest.MatchString(before) {
				t.Errorf("%s: nothing says which test runs\n%s", page, block)
			}
		}
	}
}

// collectTexts returns the texts in the code of the programs: each constant string, with its parts joined.
func collectTexts(t *testing.T) []string {
	t.Helper()
	var all []string
	visitFiles(t, ".go", func(path string, text []byte) {
		if strings.HasSuffix(path, "_test.go") || strings.HasPrefix(path, filepath.Join(root, "test")) {
			return
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, text, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if e, ok := n.(ast.Expr); ok {
				if text := joinText(e); text != "" {
					all = append(all, text)
				}
			}
			return true
		})
	})
	return all
}

// joinText is the text of a literal, or of a sum of literals. What else is in a sum is left out.
func joinText(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		if text, err := strconv.Unquote(e.Value); err == nil && e.Kind == token.STRING {
			return text
		}
	case *ast.BinaryExpr:
		if e.Op == token.ADD {
			return joinText(e.X) + joinText(e.Y)
		}
	}
	return ""
}

var (
	textTable = regexp.MustCompile(`(?m)^\| text \|.*\n\|[-|]+\|\n((?:\|.*\n)+)`)
	codeSpan  = regexp.MustCompile("`([^`]+)`")

	outputBlock = regexp.MustCompile("(?ms)^```txt\n(.*?)^```$")
)

// quotedTexts returns the texts in the left columns of the tables of texts.
func quotedTexts(page string) (all []string) {
	for _, table := range textTable.FindAllStringSubmatch(page, -1) {
		for _, row := range strings.Split(strings.TrimSpace(table[1]), "\n") {
			left, _, _ := strings.Cut(strings.TrimPrefix(row, "|"), " |")
			for _, m := range codeSpan.FindAllStringSubmatch(left, -1) {
				all = append(all, m[1])
			}
		}
	}
	return all
}

// hasParts tells whether the parts of a text are in one text of the source, in this order.
func hasParts(source string, parts []string) bool {
	for _, part := range parts {
		_, rest, found := strings.Cut(source, part)
		if !found {
			return false
		}
		source = rest
	}
	return true
}

// Each text that the page quotes is one of the programs'.
func TestTextsOfTroubleshooting(t *testing.T) {
	source := collectTexts(t)
	quoted := quotedTexts(readPage(t, "troubleshooting.md"))
	if len(quoted) < 80 {
		t.Fatalf("%d texts: the test does not find them", len(quoted))
	}
	for _, text := range quoted {
		parts := strings.Split(text, "...")
		for i := range parts {
			parts[i] = strings.TrimSpace(parts[i])
		}
		if !slices.ContainsFunc(source, func(s string) bool { return hasParts(s, parts) }) {
			t.Errorf("no program says %q", text)
		}
	}
	outputs := outputBlock.FindAllStringSubmatch(readPage(t, "troubleshooting.md"), -1)
	if len(outputs) != 1 {
		t.Fatalf("%d examples of output", len(outputs))
	}
	heading, _, _ := strings.Cut(outputs[0][1], "\n")
	_, remedy, _ := strings.Cut(outputs[0][1], "remedy: ")
	for _, text := range append(strings.Fields(heading), strings.TrimSpace(remedy)) {
		if !slices.Contains(source, text) {
			t.Errorf("no program prints %q", text)
		}
	}
	for _, missing := range []string{"links are purple", "no such ... purple"} {
		parts := strings.Split(missing, " ... ")
		if slices.ContainsFunc(source, func(s string) bool { return hasParts(s, parts) }) {
			t.Errorf("%q is found", missing)
		}
	}
}
