package link

import (
	"strings"
	"testing"
)

func TestFindings(t *testing.T) {
	node := Finding{Reason: "ForwardingOff", Text: "forwarding is off", Remedy: "switch it on"}
	b := Finding{Link: "b", Reason: "ForeignRoute", Text: "a route", Remedy: "remove it"}
	c := Finding{Link: "c", Reason: "ForeignRoute", Text: "another route", Remedy: "remove that"}
	all := Findings{node, b, c}
	for _, tc := range []struct {
		name     string
		findings Findings
		want     string
	}{
		{"none", nil, ""},
		{"all", all, "forwarding is off: switch it on; link b: a route: remove it; link c: another route: remove that"},
		{"about a link", all.About("b"), "forwarding is off: switch it on; link b: a route: remove it"},
		{"about the node", all.About(""), "forwarding is off: switch it on"},
		{"about no link that there is", Findings{b, c}.About("d"), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := tc.findings.String(); got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}

// Many findings make a text that fits into a status, and says how many there are.
func TestManyFindings(t *testing.T) {
	long := Finding{Text: strings.Repeat("x", 300), Remedy: "y"}
	text := Findings{long, long, long, long, long}.String()
	if len(text) > 1000 || !strings.HasSuffix(text, "; and 3 more") {
		t.Errorf("%d bytes: %s", len(text), text)
	}
}
