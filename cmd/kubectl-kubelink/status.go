package main

// The command status: how the links of clusters are, both directions of each.

import (
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"k8s.io/cli-runtime/pkg/genericclioptions"

	"github.com/mandelsoft/kubelink/broker/diagnosis"
	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/survey"
)

// Exit codes of status and diagnose, besides those of all commands.
const (
	exitWrong      = 3 // a link is not Up, or there is an error
	exitUnanswered = 4 // an API server or a broker does not answer
)

// exitError ends the program with a code. Its text is printed unless it is empty.
type exitError struct {
	code int
	text string
}

func (e *exitError) Error() string { return e.text }

// statusView is what is printed.
type statusView struct {
	Clusters []survey.Answer  `json:"clusters"`
	Links    []survey.Link    `json:"links"`
	Findings []survey.Finding `json:"findings"`
	Healthy  bool             `json:"healthy"`

	health survey.Health
	now    time.Time
}

// look asks the clusters.
func look(ctx context.Context, targets []survey.Target) *statusView {
	answers := survey.Ask(ctx, targets)
	v := &statusView{Clusters: answers, Links: survey.Links(answers), Findings: survey.Examine(answers), now: time.Now()}
	v.health = survey.Judge(answers, v.Links, v.Findings)
	v.Healthy = v.health == survey.Health{}
	if v.Links == nil {
		v.Links = []survey.Link{}
	}
	if v.Findings == nil {
		v.Findings = []survey.Finding{}
	}
	return v
}

// exit is the end of the program by the health of the clusters.
func (v *statusView) exit() error {
	switch {
	case v.health.Unanswered:
		return &exitError{code: exitUnanswered}
	case v.health.Wrong:
		return &exitError{code: exitWrong}
	}
	return nil
}

// statusOptions are the flags of status.
type statusOptions struct {
	contexts
	output string
	wait   time.Duration
}

func newStatusCommand(cluster *genericclioptions.ConfigFlags) *cobra.Command {
	o := &statusOptions{contexts: contexts{cluster: cluster}}
	c := &cobra.Command{
		Use:   "status [CONTEXT]...",
		Short: "Show the links of clusters, both directions of each",
		Long: `status asks the brokers of the clusters, through their API servers, how the links are. With several contexts it
shows both directions of each link. IN and OUT are what went through it per second, in the last 5 seconds. status ends
within 5 seconds, whatever is dead.

Exit codes: 0 all is well, 1 the command failed, 2 the command line is wrong, 3 a link is not Up or there is an error,
4 an API server or a broker does not answer.`,
		Example: `  kubectl kubelink status                      # the cluster of the current context
  kubectl kubelink status c1 c2 -o wide        # both directions of the links between two
  kubectl kubelink status -A --wait 2m         # until all links are Up
  kubectl kubelink status -A -o json | jq '.links[] | select(.state != "Up")'`,
		RunE: func(c *cobra.Command, args []string) error {
			if err := checkOutput(o.output, "", "json", "yaml", "wide"); err != nil {
				return err
			}
			targets, err := o.choose(args)
			if err != nil {
				return err
			}
			v := o.await(c.Context(), targets, c.ErrOrStderr())
			if err := v.print(c.OutOrStdout(), o.output); err != nil {
				return err
			}
			return v.exit()
		},
	}
	o.addFlags(c)
	c.Flags().StringVarP(&o.output, "output", "o", "", "json, yaml or wide")
	completeOutput(c, "json", "yaml", "wide")
	c.Flags().DurationVar(&o.wait, "wait", 0, "wait up to this time until all is well, such as 2m")
	return c
}

// pollInterval is between two looks while status waits.
const pollInterval = time.Second

// await looks until all is well or the time is over.
func (o *statusOptions) await(ctx context.Context, targets []survey.Target, progress io.Writer) *statusView {
	end := time.Now().Add(o.wait)
	said := ""
	for {
		v := look(ctx, targets)
		if v.Healthy || ctx.Err() != nil || !time.Now().Add(pollInterval).Before(end) {
			return v
		}
		if text := v.summary(); text != said {
			fmt.Fprintln(progress, "waiting:", text)
			said = text
		}
		select {
		case <-ctx.Done():
		case <-time.After(pollInterval):
		}
	}
}

// summary is a line on what is not as it should be.
func (v *statusView) summary() string {
	var texts []string
	for i := range v.Links {
		if l := &v.Links[i]; !survey.IsGood(l.State, l.Mode) {
			texts = append(texts, fmt.Sprintf("%s: link %s is %s", l.Context, l.Name, orDash(l.State)))
		}
	}
	for _, f := range v.Findings {
		if f.Severity == diagnosis.Error && len(texts) < 3 {
			texts = append(texts, f.Context+": "+f.Message)
		}
	}
	if len(texts) > 3 {
		texts = append(texts[:3], fmt.Sprintf("and %d more", len(texts)-3))
	}
	return strings.Join(texts, "; ")
}

// print writes the view in a format.
func (v *statusView) print(w io.Writer, format string) error {
	if format == "json" || format == "yaml" {
		return printValue(w, format, v)
	}
	paint := newPainter(w)
	v.printBrokers(w, paint)
	v.printLinks(w, paint, format == "wide")
	printFindings(w, paint, v.Findings)
	return nil
}

// printBrokers writes a line for each broker.
func (v *statusView) printBrokers(w io.Writer, paint painter) {
	t := newTable(w)
	t.row("CONTEXT", "BROKER", "NODE", "VERSION", "MODE", "ROLE", "CERTIFICATE")
	for i := range v.Clusters {
		a := &v.Clusters[i]
		if len(a.Brokers) == 0 {
			t.row(a.Context, paint.bad("does not answer"), "-", "-", "-", "-", "-")
		}
		for j := range a.Brokers {
			b := &a.Brokers[j]
			r := b.Report
			if r == nil {
				t.row(a.Context, b.Name, orDash(b.Node), "-", "-", paint.bad("does not answer"), "-")
				continue
			}
			role := "standby"
			if r.Lease.Active {
				role = "active"
			}
			t.row(a.Context, b.Name, r.Node, orDash(r.Version), r.Mode, role, describeEnd(r.Certificates, v.now))
		}
	}
	t.flush()
}

// describeEnd is the time until the first certificate ends.
func describeEnd(all []diagnosis.Certificate, now time.Time) string {
	var first time.Time
	for _, c := range all {
		if first.IsZero() || c.NotAfter.Before(first) {
			first = c.NotAfter
		}
	}
	switch {
	case first.IsZero():
		return "-"
	case first.Before(now):
		return "expired"
	}
	return survey.RoundAge(first.Sub(now))
}

// printLinks writes a line for each link.
func (v *statusView) printLinks(w io.Writer, paint painter, wide bool) {
	if len(v.Links) == 0 {
		if !v.health.Unanswered {
			fmt.Fprintln(w, "\nthere are no links: kubectl kubelink connect makes them")
		}
		return
	}
	fmt.Fprintln(w)
	t := newTable(w)
	head := []string{"CONTEXT", "LINK", "STATE", "BACK", "SINCE", "RTT", "IN", "OUT", "NAMES"}
	if wide {
		head = append(head, "ADDRESS", "ENDPOINT", "REMOTE", "RECEIVED", "SENT", "REASON")
	}
	t.row(head...)
	for i := range v.Links {
		l := &v.Links[i]
		state := paint.state(l.State, l.Mode)
		if l.Old {
			state += " (old)"
		}
		back := "-"
		if l.Back != nil {
			back = paint.state(l.Back.State, l.Mode)
		}
		names, in, out := "-", "-", "-"
		if l.Names != nil {
			names = strings.TrimSuffix(l.Names.Zone, ".")
		}
		if !l.Old {
			in, out = describeRate(l.RxRate), describeRate(l.TxRate)
		}
		cells := []string{l.Context, l.Name, state, back, survey.RoundAge(l.Age(v.now)), describeRTT(l.RTT), in, out, names}
		if wide {
			cells = append(cells, l.ClusterAddress, orDash(l.Endpoint), orDash(l.Remote), describeBytes(l.RxBytes),
				describeBytes(l.TxBytes), orDash(l.Reason))
		}
		t.row(cells...)
	}
	t.flush()
}

// printFindings writes what is wrong, and what to do.
func printFindings(w io.Writer, paint painter, findings []survey.Finding) {
	for _, f := range findings {
		title := paint.warn("warning")
		if f.Severity == diagnosis.Error {
			title = paint.bad("error")
		}
		name := f.Object.Name
		if f.Object.Namespace != "" {
			name = f.Object.Namespace + "/" + name
		}
		fmt.Fprintf(w, "\n%s: %s: %s %s: %s\n  cause:  %s\n  remedy: %s\n",
			f.Context, title, joinLines(f.Object.Kind), joinLines(name), joinLines(f.Reason), joinLines(f.Message),
			joinLines(f.Remedy))
	}
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func describeRTT(seconds float64) string {
	if seconds <= 0 {
		return "-"
	}
	return fmt.Sprintf("%.1fms", seconds*1000)
}

// describeRate is a number of bytes per second.
func describeRate(rate float64) string { return describeBytes(uint64(rate+0.5)) + "/s" }

// describeBytes is a number of bytes with a binary unit.
func describeBytes(n uint64) string {
	value, units := float64(n), []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	for len(units) > 1 && value >= 1024 {
		value, units = value/1024, units[1:]
	}
	if units[0] == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", value, units[0])
}

// table writes columns.
type table struct {
	w    io.Writer
	rows [][]string
}

func newTable(w io.Writer) *table { return &table{w: w} }

func (t *table) row(cells ...string) {
	for i := range cells {
		cells[i] = joinLines(cells[i])
	}
	t.rows = append(t.rows, cells)
}

// joinLines makes one line, so that no text looks like a line of its own.
func joinLines(text string) string { return strings.ReplaceAll(text, "\n", " ") }

var colourCode = regexp.MustCompile("\x1b\\[[0-9]+m")

// width is the number of characters that a terminal shows.
func width(cell string) int { return utf8.RuneCountInString(colourCode.ReplaceAllString(cell, "")) }

// flush writes the rows.
func (t *table) flush() {
	var widths []int
	for _, r := range t.rows {
		for i, cell := range r {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], width(cell))
		}
	}
	for _, r := range t.rows {
		for i, cell := range r[:len(r)-1] {
			fmt.Fprint(t.w, cell, strings.Repeat(" ", widths[i]-width(cell)+2))
		}
		fmt.Fprintln(t.w, r[len(r)-1])
	}
}

// painter colours words on terminals.
type painter struct{ colours bool }

func newPainter(w io.Writer) painter {
	file := fileOf(w)
	return painter{file != nil && term.IsTerminal(int(file.Fd())) && os.Getenv("NO_COLOR") == ""}
}

func (p painter) paint(colour int, text string) string {
	if !p.colours {
		return text
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", colour, text)
}

func (p painter) good(text string) string { return p.paint(32, text) }
func (p painter) bad(text string) string  { return p.paint(31, text) }
func (p painter) warn(text string) string { return p.paint(33, text) }

func (p painter) state(state, mode string) string {
	if survey.IsGood(state, mode) {
		return p.good(state)
	}
	return p.bad(orDash(state))
}
