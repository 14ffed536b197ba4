package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The README has the markers between which -write puts the results, and shows the plots beside it.
func TestReadme(t *testing.T) {
	for _, c := range comparisons {
		path, before, after, err := c.splitReadme()
		if err != nil {
			t.Error(err)
			continue
		}
		if !strings.HasPrefix(before, "# ") || after == "" {
			t.Errorf("%s: %q before and %q after %s", path, before[:min(len(before), 20)], after[:min(len(after), 20)],
				c.section)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), "]("+c.plotFile()+")") {
			t.Errorf("%s does not show %s", path, c.plotFile())
		}
		if _, err := os.Stat(filepath.Join(filepath.Dir(path), c.plotFile())); err != nil {
			t.Error(err)
		}
	}
}
