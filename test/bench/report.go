package main

// This file tells the results: tables for the terminal and for the README, and which promises are kept.

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mandelsoft/kubelink/test/bed"
)

// result is something that has a number per contender and round.
type result struct{ title, unit string }

// format shows three significant digits.
func (result) format(v float64) string {
	switch {
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

var words = map[direction]string{up: "upload", down: "download"}

func resultStream(n int, d direction) result {
	flows := map[int]string{1: "one TCP flow", 4: "four TCP flows"}[n]
	return result{flows + ", " + words[d], "Gbit/s"}
}
func resultDatagrams(d direction) result {
	return result{"UDP, 1200 bytes, loss < 1 %, " + words[d], "1000/s"}
}
func resultTunnelCPU(d direction) result  { return result{"CPU, tunnel processes, " + words[d], "s/GB"} }
func resultMachineCPU(d direction) result { return result{"CPU, whole machine, " + words[d], "s/GB"} }

var (
	resultRequests   = result{"HTTP requests, 16 connections", "1000/s"}
	resultIdleMedian = result{"round trip, idle, median", "ms"}
	resultIdle99     = result{"round trip, idle, p99", "ms"}
	resultLoadMedian = result{"round trip beside one flow, median", "ms"}
	resultLoad99     = result{"round trip beside one flow, p99", "ms"}
	resultLoadLost   = result{"echoes lost beside one flow", "%"}
	resultMemory     = result{"memory, both tunnel processes", "MiB"}
	resultPeak       = result{"memory, both tunnel processes, peak", "MiB"}
)

// order is that of the tables.
var order = []result{
	resultStream(1, up), resultStream(1, down), resultStream(4, up), resultStream(4, down),
	resultDatagrams(up), resultDatagrams(down), resultRequests,
	resultIdleMedian, resultIdle99, resultLoadMedian, resultLoad99, resultLoadLost,
	resultTunnelCPU(up), resultTunnelCPU(down), resultMachineCPU(up), resultMachineCPU(down),
	resultMemory, resultPeak,
}

// results are all values of a run.
type results struct {
	values              map[result]map[string][]float64 // by contender
	measured, disturbed int                             // measures, and those during which somebody else used the machine
}

func (r *results) add(what result, contender string, value float64) {
	if r.values == nil {
		r.values = map[result]map[string][]float64{}
	}
	if r.values[what] == nil {
		r.values[what] = map[string][]float64{}
	}
	r.values[what][contender] = append(r.values[what][contender], value)
}

// median is not a number where nothing was measured.
func (r *results) median(what result, contender string) float64 {
	values := slices.Sorted(slices.Values(r.values[what][contender]))
	n := len(values)
	switch {
	case n == 0:
		return math.NaN()
	case n%2 == 0:
		return (values[n/2-1] + values[n/2]) / 2
	}
	return values[n/2]
}

func (r *results) ratio(what result, contender, to string) float64 {
	a, b := r.median(what, contender), r.median(what, to)
	if b == 0 {
		return math.NaN()
	}
	return a / b
}

// rounds is how often the most was measured.
func (r *results) rounds() (n int) {
	for _, values := range r.values {
		for _, v := range values {
			n = max(n, len(v))
		}
	}
	return n
}

// took are the contenders that took part, in the order of tables.
func (r *results) took() (names, titles []string) {
	for _, c := range contenders {
		for _, values := range r.values {
			if len(values[c.name]) > 0 {
				names, titles = append(names, c.name), append(titles, c.title)
				break
			}
		}
	}
	return names, titles
}

// table is the medians, each with its range, and kubelink's as multiples of others'.
func (r *results) table() [][]string {
	names, titles := r.took()
	head := append([]string{"", "unit"}, titles...)
	var to []string
	for i, name := range names {
		if (name == wireguardGo || name == plainPath) && slices.Contains(names, bridgeLink) {
			to = append(to, name)
			head = append(head, "kubelink / "+titles[i])
		}
	}
	rows := [][]string{head}
	for _, what := range order {
		if len(r.values[what]) == 0 {
			continue
		}
		row := []string{what.title, what.unit}
		for _, name := range names {
			values := r.values[what][name]
			if len(values) == 0 {
				row = append(row, "–")
				continue
			}
			row = append(row, fmt.Sprintf("%s (%s–%s)", what.format(r.median(what, name)), what.format(slices.Min(values)), what.format(slices.Max(values))))
		}
		for _, name := range to {
			row = append(row, times(r.ratio(what, bridgeLink, name)))
		}
		rows = append(rows, row)
	}
	return rows
}

func times(ratio float64) string {
	if math.IsNaN(ratio) {
		return "–"
	}
	return fmt.Sprintf("%.2f×", ratio)
}

// promise is a bound of kubelink's median as a multiple of another's.
type promise struct {
	what   result
	to     string
	bound  float64
	atMost bool // else at least
}

var promises = []promise{
	{resultStream(1, up), wireguardGo, 2, false},
	{resultStream(1, down), wireguardGo, 2, false},
	{resultStream(4, up), wireguardGo, 2, false},
	{resultStream(4, down), wireguardGo, 2, false},
	{resultStream(4, up), plainPath, 0.5, false},
	{resultStream(4, down), plainPath, 0.5, false},
	{resultRequests, wireguardGo, 1, false},
	{resultDatagrams(up), wireguardGo, 1, false},
	{resultDatagrams(down), wireguardGo, 1, false},
	{resultLoadMedian, wireguardGo, 0.5, true},
	{resultTunnelCPU(up), wireguardGo, 0.6, true},
	{resultTunnelCPU(down), wireguardGo, 0.6, true},
}

// promised is the table of the promises that were measured, and whether all of them are kept.
func (r *results) promised() (rows [][]string, kept bool) {
	kept = true
	titles := map[string]string{}
	for _, c := range contenders {
		titles[c.name] = c.title
	}
	for _, p := range promises {
		ratio := r.ratio(p.what, bridgeLink, p.to)
		if math.IsNaN(ratio) {
			continue
		}
		word, verdict := "at least", "kept"
		if p.atMost {
			word = "at most"
		}
		if p.atMost && ratio > p.bound || !p.atMost && ratio < p.bound {
			verdict, kept = "NOT kept", false
		}
		numbers := fmt.Sprintf("%s / %s %s", p.what.format(r.median(p.what, bridgeLink)), p.what.format(r.median(p.what, p.to)), p.what.unit)
		rows = append(rows, []string{p.what.title, fmt.Sprintf("%s %.1f× %s", word, p.bound, titles[p.to]), times(ratio), numbers, verdict})
	}
	if len(rows) > 0 {
		rows = slices.Insert(rows, 0, []string{"promise", "", "is", "kubelink / other", ""})
	}
	return rows, kept
}

// origin tells where the numbers are from, and whether they are good for anything.
func (r *results) origin() string {
	text := fmt.Sprintf("Medians of %d rounds (minimum–maximum), all in one run, with both ends and the load on the same machine: %s.", r.rounds(), describeMachine())
	if r.disturbed > 0 {
		text += fmt.Sprintf(" During %d of %d measures somebody else used the machine: THE NUMBERS ARE NOISY.", r.disturbed, r.measured)
	}
	return text
}

// print writes all tables to the terminal.
func (r *results) print() (kept bool) {
	fmt.Printf("\n%s\n\n%s", r.origin(), plainTable(r.table()))
	rows, kept := r.promised()
	if len(rows) > 0 {
		fmt.Printf("\n%s", plainTable(rows))
	}
	return kept
}

func plainTable(rows [][]string) string {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	var b strings.Builder
	for _, row := range rows {
		line := ""
		for i, cell := range row {
			line += cell + strings.Repeat(" ", widths[i]-len([]rune(cell))+2)
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	return b.String()
}

// markdownTable aligns all but the first left columns to the right.
func markdownTable(rows [][]string, left int) string {
	var b strings.Builder
	for i, row := range rows {
		b.WriteString("| " + strings.Join(row, " | ") + " |\n")
		if i == 0 {
			for j := range row {
				if j < left {
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

// Where the results are written to.
const (
	beginMark = "<!-- bench:dataplane -->"
	endMark   = "<!-- /bench:dataplane -->"
	plotFile  = "test/bench/dataplane.svg"
)

// readme returns the README's path, and its text before and after the results.
func readme() (path, before, after string, err error) {
	root, err := bed.Repository()
	if err != nil {
		return "", "", "", err
	}
	path = filepath.Join(root, "README.md")
	text, err := os.ReadFile(path)
	if err != nil {
		return "", "", "", err
	}
	before, rest, ok1 := strings.Cut(string(text), beginMark)
	_, after, ok2 := strings.Cut(rest, endMark)
	if !ok1 || !ok2 {
		return "", "", "", fmt.Errorf("%s: has no %s followed by %s", path, beginMark, endMark)
	}
	return path, before + beginMark + "\n", endMark + after, nil
}

// write puts the results into the README and the plot beside the sources.
func (r *results) write() error {
	path, before, after, err := readme()
	if err != nil {
		return err
	}
	promised, _ := r.promised()
	text := fmt.Sprintf("%s\n\n![Plot of the medians](%s)\n\n%s\n%s", r.origin(), plotFile, markdownTable(r.table(), 2), markdownTable(promised, 2))
	return errors.Join(
		os.WriteFile(filepath.Join(filepath.Dir(path), plotFile), []byte(r.plot()), 0o644),
		os.WriteFile(path, []byte(before+text+after), 0o644),
	)
}
