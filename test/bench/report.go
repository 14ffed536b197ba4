package main

// This file shows the results of a benchmark: tables for the terminal and for README.md beside it, and the promises
// that are kept.

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mandelsoft/kubelink/test/testbed"
)

// result is a quantity with a value per contender and round.
type result struct{ title, unit string }

// formatValue writes three significant digits.
func (result) formatValue(v float64) string {
	switch {
	case math.IsNaN(v):
		return "–"
	case v == 0:
		return "0"
	case v >= 99.95:
		return fmt.Sprintf("%.0f", v)
	case v >= 9.995:
		return fmt.Sprintf("%.1f", v)
	case v >= 0.9995:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.3f", v)
	}
}

// entrant is a contender as tables and plots show it: its title, and the colours of its bars in light and in dark
// mode. Plots do not show entrants without colours.
type entrant struct{ name, title, light, dark string }

// layout defines how to show the results of a benchmark.
type layout struct {
	section  string    // section of the README, and name of the plot
	entrants []entrant // in the order of tables
	measures []string  // the values of the flag -measures
	// present has, for each contender with the binary of -before, the one with the present binary.
	present  map[string]string
	tables   func(*results) []table
	panels   []panel
	promises []promise
}

// results are all values of a run.
type results struct {
	*layout
	chosen              choice                          // of this comparison
	values              map[result]map[string][]float64 // by contender
	measured, disturbed int                             // measures, and the measures that other load disturbed
}

func newResults(l *layout, chosen choice) *results {
	return &results{layout: l, chosen: chosen, values: map[result]map[string][]float64{}}
}

func (r *results) addValue(what result, contender string, value float64) {
	if r.values[what] == nil {
		r.values[what] = map[string][]float64{}
	}
	r.values[what][contender] = append(r.values[what][contender], value)
}

// median returns the median, or NaN if there are no values.
func (r *results) median(what result, contender string) float64 {
	return medianOf(r.values[what][contender])
}

func medianOf(values []float64) float64 {
	values = slices.Sorted(slices.Values(values))
	n := len(values)
	switch {
	case n == 0:
		return math.NaN()
	case n%2 == 0:
		return (values[n/2-1] + values[n/2]) / 2
	}
	return values[n/2]
}

// ratio is the median of the ratios that rounds have, with the lowest and the highest one. NaN: it is not known.
type ratio struct{ median, low, high float64 }

// ratio compares contenders round by round: a machine that changes its pace does so for both. It is not known if a
// round lacks a value.
func (r *results) ratio(what result, contender, to string) ratio {
	a, b := r.values[what][contender], r.values[what][to]
	if len(a) != len(b) || len(a) == 0 || slices.Contains(b, 0) {
		return ratio{math.NaN(), math.NaN(), math.NaN()}
	}
	var all []float64
	for i := range a {
		all = append(all, a[i]/b[i])
	}
	return ratio{medianOf(all), slices.Min(all), slices.Max(all)}
}

func (r ratio) String() string {
	switch {
	case math.IsNaN(r.median):
		return "–"
	case r.low == r.high:
		return formatRatio(r.median)
	}
	return fmt.Sprintf("%s (%.2f–%.2f)", formatRatio(r.median), r.low, r.high)
}

// spread is how far the ratios of rounds are from each other, to one side of their middle.
func (r ratio) spread() float64 { return (r.high - r.low) / 2 }

// entrantsWith returns the contenders that have any of these results, in the order of tables.
func (r *results) entrantsWith(whats ...result) (names, titles []string) {
	for _, c := range r.entrants {
		if slices.ContainsFunc(whats, func(what result) bool { return len(r.values[what][c.name]) > 0 }) {
			names, titles = append(names, c.name), append(titles, c.title)
		}
	}
	return names, titles
}

// table is rows of cells. The first row is the head. The first columns have words, all others have numbers.
type table struct {
	rows  [][]string
	words int
}

// formatMedian returns the median with its range.
func (r *results) formatMedian(what result, contender string) string {
	values := r.values[what][contender]
	if len(values) == 0 {
		return "–"
	}
	return fmt.Sprintf("%s (%s–%s)", what.formatValue(r.median(what, contender)), what.formatValue(slices.Min(values)),
		what.formatValue(slices.Max(values)))
}

func formatRatio(ratio float64) string {
	if math.IsNaN(ratio) {
		return "–"
	}
	return fmt.Sprintf("%.2f×", ratio)
}

// promise is a bound of a contender's median, a number in the result's unit; or, with to, of the median of the ratios
// to another contender.
type promise struct {
	what   result
	of, to string
	bound  float64
	atMost bool // else at least
	worst  bool // a bound of every value, not of the median
	// noWorse is a bound that depends on the rounds: worse than the other contender by no more than their spread, and by
	// 10 % at most.
	noWorse bool
	// provided is what the run has to show first, else the promise is not judged; nil: nothing.
	provided *promise
}

// maxSpread bounds how much worse a noWorse promise lets a contender be.
const maxSpread = 0.1

// limit returns the bound of a promise about ratios.
func (p *promise) limit(is ratio) float64 {
	if !p.noWorse {
		return p.bound
	}
	room := min(is.spread(), maxSpread)
	if p.atMost {
		return 1 + room
	}
	return 1 - room
}

// promiseTable returns the table of the promises about what was chosen, and whether all of them are kept.
func (r *results) promiseTable() (t table, kept bool) {
	kept = true
	titles := map[string]string{}
	for _, c := range r.entrants {
		titles[c.name] = c.title
	}
	rows := [][]string{{"promise", "", "is", "", ""}}
	for _, p := range r.promises {
		is := r.median(p.what, p.of)
		if values := r.values[p.what][p.of]; p.worst && len(values) > 0 {
			if is = slices.Min(values); p.atMost {
				is = slices.Max(values)
			}
		}
		numbers, bound := titles[p.of], fmt.Sprintf("%s %s", p.what.formatValue(p.bound), p.what.unit)
		shown := fmt.Sprintf("%s %s", p.what.formatValue(is), p.what.unit)
		limit := p.bound
		if p.to != "" {
			compared := r.ratio(p.what, p.of, p.to)
			is, limit = compared.median, p.limit(compared)
			bound, shown = fmt.Sprintf("%s %s", formatRatio(limit), titles[p.to]), compared.String()
			numbers = fmt.Sprintf("%s: %s / %s %s", titles[p.of], p.what.formatValue(r.median(p.what, p.of)),
				p.what.formatValue(r.median(p.what, p.to)), p.what.unit)
		}
		word, verdict := "at least", "kept"
		if p.atMost {
			word = "at most"
		}
		switch missed := r.missedCondition(p.provided, titles); {
		case math.IsNaN(is) && !r.isChosen(p):
			continue
		case math.IsNaN(is):
			verdict, kept = "NOT measured", false
		case missed != "":
			verdict = "not judged: " + missed
		case p.atMost && is > limit || !p.atMost && is < limit:
			verdict, kept = "NOT kept", false
		}
		rows = append(rows, []string{p.what.title, word + " " + bound, shown, numbers, verdict})
	}
	return table{rows, 2}, kept
}

// isChosen says whether the run was to measure what the promise is about. If not all measures were chosen, a result that
// nobody has belongs to another one.
func (r *results) isChosen(p promise) bool {
	return slices.Contains(r.chosen.contenders, p.of) && (p.to == "" || slices.Contains(r.chosen.contenders, p.to)) &&
		(len(r.values[p.what]) > 0 || len(r.chosen.measures) == len(r.measures))
}

// missedCondition says what the run has not shown of a condition, a bound of ratios from below; empty: nothing.
func (r *results) missedCondition(p *promise, titles map[string]string) string {
	if p == nil {
		return ""
	}
	is := r.ratio(p.what, p.of, p.to)
	if is.median >= p.bound {
		return ""
	}
	return fmt.Sprintf("%s makes %s of %s, not %s", titles[p.of], is, titles[p.to], formatRatio(p.bound))
}

// describeRun says where the numbers are from, and whether they are reliable.
func (r *results) describeRun() string {
	text := fmt.Sprintf(
		"Medians of %d rounds (minimum–maximum), all in one run, with both ends and the load on the same machine: %s. "+
			"Ratios are medians of the rounds' ratios.",
		r.chosen.rounds, describeMachine())
	var flags string
	if len(r.chosen.contenders) < len(r.entrants) {
		flags += " -only " + strings.Join(r.chosen.contenders, ",")
	}
	if len(r.chosen.measures) < len(r.measures) {
		flags += " -measures " + strings.Join(r.chosen.measures, ",")
	}
	if flags != "" {
		text += fmt.Sprintf(" Chosen by `%s`.", flags[1:])
	}
	if r.disturbed > 0 {
		text += fmt.Sprintf(" During %d of %d measures other programs used the machine, or its host: THE NUMBERS ARE NOISY.",
			r.disturbed, r.measured)
	}
	return text
}

// printTables writes all tables to the terminal.
func (r *results) printTables() (kept bool) {
	fmt.Printf("\n%s\n", r.describeRun())
	promised, kept := r.promiseTable()
	for _, t := range append(r.tables(r), promised) {
		if len(t.rows) > 1 {
			fmt.Printf("\n%s", t.plainText())
		}
	}
	return kept
}

func (t table) plainText() string {
	var widths []int
	for _, row := range t.rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	var b strings.Builder
	for _, row := range t.rows {
		line := ""
		for i, cell := range row {
			line += cell + strings.Repeat(" ", widths[i]-len([]rune(cell))+2)
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	return b.String()
}

// toMarkdown returns the table in Markdown. It aligns numbers to the right.
func (t table) toMarkdown() string {
	var b strings.Builder
	for i, row := range t.rows {
		b.WriteString("| " + strings.Join(row, " | ") + " |\n")
		if i == 0 {
			for j := range row {
				if j < t.words {
					b.WriteString("|---")
				} else {
					b.WriteString("|---:")
				}
			}
			b.WriteString("|\n")
		}
	}
	return b.String()
}

// plotFile is the name of the plot, in the folder of the README.
func (l *layout) plotFile() string { return l.section + ".svg" }

// splitReadme returns the path of test/bench/README.md, and its text before and after the section.
func (l *layout) splitReadme() (path, before, after string, err error) {
	root, err := testbed.Repository()
	if err != nil {
		return "", "", "", err
	}
	path = filepath.Join(root, "test", "bench", "README.md")
	text, err := os.ReadFile(path)
	if err != nil {
		return "", "", "", err
	}
	begin, end := "<!-- bench:"+l.section+" -->", "<!-- /bench:"+l.section+" -->"
	before, rest, ok1 := strings.Cut(string(text), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		return "", "", "", fmt.Errorf("%s: has no %s followed by %s", path, begin, end)
	}
	return path, before + begin + "\n", end + after, nil
}

// writeReadme puts the results into test/bench/README.md and the plot beside it.
func (r *results) writeReadme() error {
	path, before, after, err := r.splitReadme()
	if err != nil {
		return err
	}
	text := fmt.Sprintf("%s\n\n![Plot of the medians](%s)\n", r.describeRun(), r.plotFile())
	promised, _ := r.promiseTable()
	for _, t := range append(r.tables(r), promised) {
		if len(t.rows) > 1 {
			text += "\n" + t.toMarkdown()
		}
	}
	return errors.Join(
		os.WriteFile(filepath.Join(filepath.Dir(path), r.plotFile()), []byte(r.drawPlot()), 0o644),
		os.WriteFile(path, []byte(before+text+after), 0o644),
	)
}
