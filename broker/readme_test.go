package broker

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	namedFile  = regexp.MustCompile("`([a-z0-9_/.]+\\.go)`")
	namedCode  = regexp.MustCompile("`([A-Za-z]+)`")
	codeInFile = regexp.MustCompile("`([A-Za-z]+)`\\s+in\\s+`([a-z0-9_/.]+\\.go)`")
	step       = regexp.MustCompile(`^\d+\. `)
)

// Every file that README.md names exists, every function is declared in the file beside which it stands, and every walk
// names at most four files.
func TestReadmeNamesCode(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range namedFile.FindAllStringSubmatch(string(text), -1) {
		if _, err := os.Stat(m[1]); err != nil {
			t.Error(err)
		}
	}
	for _, m := range codeInFile.FindAllStringSubmatch(string(text), -1) {
		if !slices.Contains(declaredNames(t, m[2]), m[1]) {
			t.Errorf("%s declares no %s", m[2], m[1])
		}
	}
	walks := 0
	for _, section := range strings.Split(string(text), "\n## ")[1:] {
		steps := readSteps(section)
		if len(steps) == 0 {
			continue
		}
		walks++
		title, _, _ := strings.Cut(section, "\n")
		if len(steps) > 4 {
			t.Errorf("%s: %d steps", title, len(steps))
		}
		for _, s := range steps {
			checkStep(t, title, s)
		}
	}
	if walks != 3 {
		t.Errorf("%d walks", walks)
	}
}

// readSteps returns the numbered steps of a section, each as one line.
func readSteps(section string) (steps []string) {
	for _, line := range strings.Split(section, "\n") {
		switch {
		case step.MatchString(line):
			steps = append(steps, line)
		case strings.HasPrefix(line, "   ") && len(steps) > 0:
			steps[len(steps)-1] += line
		}
	}
	return steps
}

// checkStep checks that a step names one file, and functions of that file only.
func checkStep(t *testing.T, title, step string) {
	t.Helper()
	files := namedFile.FindAllStringSubmatch(step, -1)
	if len(files) != 1 {
		t.Errorf("%s: a step names %d files: %s", title, len(files), step)
		return
	}
	declared := declaredNames(t, files[0][1])
	functions := 0
	for _, m := range namedCode.FindAllStringSubmatch(step, -1) {
		if m[1] == "State" { // the type that goes from step to step
			continue
		}
		if functions++; !slices.Contains(declared, m[1]) {
			t.Errorf("%s: %s declares no %s", title, files[0][1], m[1])
		}
	}
	if functions == 0 {
		t.Errorf("%s: a step names no function: %s", title, step)
	}
}

// declaredNames are the functions and methods of a file.
func declaredNames(t *testing.T, file string) (names []string) {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Error(err)
		return nil
	}
	for _, d := range parsed.Decls {
		if f, ok := d.(*ast.FuncDecl); ok {
			names = append(names, f.Name.Name)
		}
	}
	return names
}
