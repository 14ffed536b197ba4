package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/mandelsoft/kubelink/broker/diagnosis"
	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/connectivity"
	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/survey"
)

// A test is a table, and then what is wrong. Of a large one, what is ok has no lines. The exit code says how it ended.
func TestTestOutput(t *testing.T) {
	checks := []connectivity.Check{
		{Context: "c1", Node: "n1", Link: "c2", Check: "connect", Result: connectivity.OK, Seconds: 0.0012,
			Target: "1.2.3.4:443"},
		{Context: "c1", Node: "n2", Link: "c2", Check: "connect", Result: connectivity.Failed, Seconds: 5,
			Message: "no answer"},
		{Context: "c1", Link: "c2", Check: "ping", Result: connectivity.NotTested, Message: "no rights"},
		{Context: "c1", Link: "c3", Check: "ping", Result: connectivity.NotTested, Message: "no rights"},
		{Context: "c1", Link: "c3", Check: "connect", Result: connectivity.NotTested, Message: "no rights"},
	}
	r := &connectivity.Report{Checks: checks, LeftOut: []string{"c1: much"}, Findings: []survey.Finding{{Context: "c1",
		Finding: diagnosis.Finding{Reason: "NotReachable", Severity: diagnosis.Error, Message: "why", Remedy: "do",
			Object: diagnosis.Object{Kind: "Node", Name: "n2"}}}}}
	show := func(format string) string {
		var out bytes.Buffer
		if err := printTest(&out, format, r); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	want := `CONTEXT  NODE  LINK  CHECK    RESULT      TIME
c1       n1    c2    connect  ok          1.2ms
c1       n2    c2    connect  failed      5000.0ms
c1       -     c2    ping     not tested  -
c1       -     c3    ping     not tested  -
c1       -     c3    connect  not tested  -

1 ok, 1 failed, 3 not tested
not tested: ping, connect: no rights
left out: c1: much

c1: error: Node n2: NotReachable
  cause:  why
  remedy: do
`
	if got := show(""); got != want {
		t.Error(got)
	}
	if got := show("wide"); !strings.Contains(got, "TARGET") || !strings.Contains(got, "1.2.3.4:443") {
		t.Error(got)
	}
	if got := show("yaml"); !strings.Contains(got, "- check: connect") || !strings.Contains(got, "result: not tested") {
		t.Error(got)
	}
	for i := range maxRows {
		r.Checks = append(r.Checks, connectivity.Check{Node: fmt.Sprint(i), Check: "connect", Result: connectivity.OK})
	}
	if got := show(""); strings.Contains(got, "1.2ms") || !strings.Contains(got, "201 ok, 1 failed") ||
		!strings.Contains(got, "n2") {
		t.Error(got)
	}
	for want, r := range map[int]*connectivity.Report{0: {OK: true}, exitWrong: {}, exitUnanswered: {Unanswered: true}} {
		if got := exitCode(exitOfTest(r)); got != want {
			t.Errorf("%+v: exit code %d", r, got)
		}
	}
}
