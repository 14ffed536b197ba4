package main

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A machine that slows down in a round does so for both contenders.
func TestRatio(t *testing.T) {
	what := result{"what", "unit"}
	r := newResults(&layout{}, choice{})
	for i, pace := range []float64{10, 1, 5} {
		r.addValue(what, "a", pace*[]float64{0.9, 1, 1.1}[i])
		r.addValue(what, "b", pace)
	}
	got := r.ratio(what, "a", "b")
	if got.median != 1 || got.low != 0.9 || got.high != 1.1 || got.String() != "1.00× (0.90–1.10)" {
		t.Errorf("%+v %s", got, got)
	}
	if near := got.spread(); math.Abs(near-0.1) > 1e-9 {
		t.Errorf("spread %g", near)
	}
	r.addValue(what, "b", 7)
	if got := r.ratio(what, "a", "b"); !math.IsNaN(got.median) || got.String() != "–" {
		t.Errorf("a round without value: %s", got)
	}
}

// A promise to be no worse leaves room for what rounds differ by, and no more than that.
func TestPromiseLimits(t *testing.T) {
	for _, c := range []struct {
		promise
		ratio
		want float64
	}{
		{promise{bound: 2}, ratio{1, 0.5, 1.5}, 2},
		{promise{noWorse: true}, ratio{1, 0.98, 1.02}, 0.98},
		{promise{noWorse: true}, ratio{1, 0.5, 1.5}, 0.9},
		{promise{noWorse: true, atMost: true}, ratio{1, 0.98, 1.02}, 1.02},
		{promise{noWorse: true, atMost: true}, ratio{1, 0.5, 1.5}, 1.1},
	} {
		if got := c.limit(c.ratio); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%+v of %s: %g, want %g", c.promise, c.ratio, got, c.want)
		}
	}
}

// A promise about a contender that is no bound in a run is neither kept nor broken there.
func TestPromiseWithCondition(t *testing.T) {
	what := result{"what", "unit"}
	for _, c := range []struct {
		bound   float64 // what the contender makes
		verdict string
		kept    bool
	}{
		{5, "NOT kept", false}, {1.2, "kept", true},
		{0.9, "not judged: bound makes 0.09× of path, not 0.10×", true},
	} {
		l := &layout{entrants: []entrant{{name: "a", title: "a"}, {name: "bound", title: "bound"}, {name: "path", title: "path"}},
			promises: []promise{{what: what, of: "a", to: "bound", bound: 0.5,
				provided: &promise{what: what, of: "bound", to: "path", bound: 0.1}}}}
		r := newResults(l, choice{})
		r.addValue(what, "a", 1)
		r.addValue(what, "bound", c.bound)
		r.addValue(what, "path", 10)
		table, kept := r.promiseTable()
		if row := table.rows[1]; kept != c.kept || row[len(row)-1] != c.verdict {
			t.Errorf("bound %g: %v %q", c.bound, kept, row)
		}
	}
}

// A promise does not vanish because values are missing that the run was to have.
func TestUnmeasuredPromise(t *testing.T) {
	what, other := result{"what", "unit"}, result{"other", "unit"}
	for _, c := range []struct {
		contenders, measures, verdicts []string // verdicts: of both promises
	}{
		{[]string{"a", "b"}, []string{"m", "n"}, []string{"NOT measured", "NOT measured"}},
		{[]string{"a", "b"}, []string{"m"}, []string{"NOT measured"}},
		{[]string{"a"}, []string{"m", "n"}, nil},
	} {
		l := &layout{entrants: []entrant{{name: "a"}, {name: "b"}}, measures: []string{"m", "n"}, promises: []promise{
			{what: what, of: "a", to: "b", noWorse: true}, {what: other, of: "a", to: "b", bound: 1}}}
		r := newResults(l, choice{contenders: c.contenders, measures: c.measures})
		r.addValue(what, "a", 1)
		table, kept := r.promiseTable()
		var verdicts []string
		for _, row := range table.rows[1:] {
			verdicts = append(verdicts, row[len(row)-1])
		}
		if !slices.Equal(verdicts, c.verdicts) || kept != (c.verdicts == nil) {
			t.Errorf("%s, %s: %v %q", c.contenders, c.measures, kept, table.rows)
		}
	}
}

// A run says what it does not have.
func TestDescribeRun(t *testing.T) {
	l := &layout{entrants: []entrant{{name: "a"}, {name: "b"}, {name: "c"}}, measures: []string{"m", "n"}}
	for want, chosen := range map[string]choice{
		" Chosen by `-only a,b -measures n`.": {contenders: []string{"a", "b"}, measures: []string{"n"}},
		" Chosen by `-measures n`.":           {contenders: []string{"a", "b", "c"}, measures: []string{"n"}},
		"ratios.":                             {contenders: []string{"a", "b", "c"}, measures: []string{"m", "n"}},
	} {
		if got := newResults(l, chosen).describeRun(); !strings.HasSuffix(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// A server without the plugin chain is compared with one without it.
func TestBareNames(t *testing.T) {
	r := newResults(&dnsLayout, choice{})
	for name, rate := range map[string]float64{whoamiServer: 10, legacyServer: 5, dnsServer: 15, whoamiBare: 40,
		dnsBare: 20} {
		r.addValue(resultQueries(existingNames), name, rate)
	}
	for _, row := range r.namesTable(existingNames).rows[1:] {
		want := map[string][]string{
			"kubelink, dns, warm": {"1.50×", "3.00×"}, "kubelink, dns, warm, bare": {"0.50×", "–"},
		}[row[0]]
		if want != nil && !slices.Equal(row[2:4], want) {
			t.Errorf("%q, want %q", row, want)
		}
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
