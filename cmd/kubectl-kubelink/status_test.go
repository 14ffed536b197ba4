package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mandelsoft/kubelink/broker/diagnosis"
	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/survey"
)

// What a broker or a peer says is text for a terminal, and neither a command, nor a line of its own.
func TestPlainText(t *testing.T) {
	const evil = "a\x1b]0;title\x07\x1b[2J\u009b31m\u202eb\r\nc1: nothing is wrong\x7f"
	v := statusView{Links: []survey.Link{{Context: "c1", Link: diagnosis.Link{Name: evil, Reason: evil, Remote: evil}}},
		Clusters: []survey.Answer{{Context: evil, Brokers: []survey.Broker{{Report: &diagnosis.Report{Node: evil, Mode: evil,
			Checks: []diagnosis.Check{{Name: evil}}}}}}},
		Findings: []survey.Finding{{Context: "c1", Finding: diagnosis.Finding{Reason: evil, Message: evil, Remedy: evil}}}}
	for _, format := range []string{"", "wide", "json", "yaml"} {
		var b strings.Builder
		out := plainWriter{&b}
		if err := v.print(out, format); err != nil {
			t.Fatal(err)
		}
		if err := v.printDiagnosis(out, strings.TrimPrefix(format, "wide")); err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(out, painter{true}.good("ok"))
		text := strings.TrimSuffix(b.String(), "\x1b[32mok\x1b[0m")
		if len(text) == b.Len() || strings.ContainsFunc(text, isControl) || strings.Contains(text, "\nc1: nothing") {
			t.Errorf("%q: %q", format, b.String())
		}
		if !strings.Contains(text, "nothing is wrong") {
			t.Errorf("%q has lost the text: %q", format, text)
		}
	}
}

// Rates have the unit that people read, per second.
func TestRates(t *testing.T) {
	for rate, want := range map[float64]string{0: "0 B/s", 0.4: "0 B/s", 999.6: "1000 B/s", 1536: "1.5 KiB/s",
		125e6: "119.2 MiB/s"} {
		if got := describeRate(rate); got != want {
			t.Errorf("%v: %s, want %s", rate, got, want)
		}
	}
}

// Without links, status says so, but not of clusters that do not answer.
func TestNoLinks(t *testing.T) {
	for unanswered, want := range map[bool]string{false: "there are no links: kubectl kubelink connect makes them", true: ""} {
		var out strings.Builder
		v := statusView{health: survey.Health{Unanswered: unanswered}}
		if err := v.print(&out, ""); err != nil || strings.Contains(out.String(), "no links") != (want != "") ||
			!strings.Contains(out.String(), want) {
			t.Errorf("%v: %v %s", unanswered, err, out.String())
		}
	}
}
