package main

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A machine that slows down in a round does so for both contenders.
func TestRoundsRatio(t *testing.T) {
	what := result{"what", "unit"}
	r := newResults(&layout{}, 3)
	for i, pace := range []float64{10, 1, 5} {
		r.addValue(what, "a", pace*[]float64{0.9, 1, 1.1}[i])
		r.addValue(what, "b", pace)
	}
	if got := r.roundsRatio(what, "a", "b"); got != 1 {
		t.Errorf("%g, want 1", got)
	}
	r.addValue(what, "b", 7)
	if got := r.roundsRatio(what, "a", "b"); !math.IsNaN(got) {
		t.Errorf("a round without value: %g", got)
	}
}

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
