package records

import (
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/types"
)

// TestConflicts has a row for each pair of records: what a younger entry may have beside an older one, and all of the
// text if it may not. The older entry keeps its names.
func TestConflicts(t *testing.T) {
	const at = ".svc.global.kubelink"
	ns := func(name, server string) string { return "dnsNames: [" + name + at + "], NS: [" + server + "]" }
	alias := func(name, target string) string { return "dnsNames: [" + name + at + "], CNAME: " + target }
	address := func(name string) string { return "dnsNames: [" + name + at + "], A: [10.0.0.1]" }
	text := func(name string) string { return "dnsNames: [" + name + at + "], TXT: [x]" }
	const delegated = ": the older entry ns/old delegates x.svc.global.kubelink to other name servers, " +
		"so the name belongs there; use another one, or remove one of the two"
	const isAlias = "x.svc.global.kubelink: the older entry ns/old makes that name an alias, " +
		"which has no other records; remove the name from one of the two"
	const noAlias = "x.svc.global.kubelink: the older entry ns/old has records of that name, " +
		"and an alias has none beside it; remove the name from one of the two"
	const hides = "spec.NS would delegate x.svc.global.kubelink, below which there are names of the older entry ns/old; " +
		"delegate another name, or remove those"
	for _, c := range []struct{ name, old, young, want string }{
		{"addresses", address("x"), address("x"), ""},
		{"address and text", address("x"), text("x"), ""},
		{"two aliases of one target", alias("x", "a.example"), alias("x", "a.example."), ""},
		{"two aliases", alias("x", "a.example"), alias("x", "b.example"), noAlias},
		{"alias at records", address("x"), alias("x", "a.example"), noAlias},
		{"records at an alias", alias("x", "a.example"), text("x"), isAlias},
		{"alias beside", address("x"), alias("y", "a.example"), ""},
		{"below an alias", alias("x", "a.example"), address("y.x"), ""},

		{"two delegations", ns("x", "a.example"), ns("x", "b.example"), ""},
		{"below a delegation", ns("x", "a.example"), address("y.x"), "y.x.svc.global.kubelink" + delegated},
		{"far below a delegation", ns("x", "a.example"), text("z.y.x"), "z.y.x.svc.global.kubelink" + delegated},
		{"beside a delegation", ns("x", "a.example"), address("y"), ""},
		{"glue", ns("x", "a.x"+at), address("a.x"), ""},
		{"glue of another server", ns("x", "a.x"+at), address("b.x"), "b.x.svc.global.kubelink" + delegated},
		{"no glue", ns("x", "a.x"+at), text("a.x"), "a.x.svc.global.kubelink" + delegated},
		{"delegation in a delegation", ns("x", "a.x"+at), ns("a.x", "b.example"), "a.x.svc.global.kubelink" + delegated},
		{"own address", ns("x", "x"+at), address("x"), ""},
		{
			"address at a delegation", ns("x", "a.example"), address("x"), "x.svc.global.kubelink: the older entry ns/old " +
				"delegates that name to other name servers, so its records belong there; remove the name from one of the two",
		},

		{"delegation above names", address("y.x"), ns("x", "a.example"), hides},
		{"delegation above far names", text("z.y.x"), ns("x", "a.example"), hides},
		{"delegation above glue", address("y.x"), ns("x", "y.x"+at), ""},
		{"delegation above a text of its server", text("y.x"), ns("x", "y.x"+at), hides},
		{"delegation above a delegation", ns("y.x", "a.example"), ns("x", "y.x"+at), hides},
		{"delegation above an alias", alias("y.x", "a.example"), ns("x", "y.x"+at), hides},
		{
			"delegation of a name with records", address("x"), ns("x", "a.example"), "spec.NS would delegate " +
				"x.svc.global.kubelink, which has records of the older entry ns/old; remove the name from one of the two",
		},
		{"delegation of a name server", address("x"), ns("x", "x"+at), ""},
		{"delegation of a name server above names", address("x" + at + ", y.x"), ns("x", "x"+at), hides},
		{"delegation to a server elsewhere above names", address("y" + at + ", y.x"), ns("x", "y"+at), hides},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := build(t, "ns/old: {"+c.old+"}\nns/young: {"+c.young+"}")
			old := r.Entries[types.NamespacedName{Namespace: "ns", Name: "old"}]
			young := r.Entries[types.NamespacedName{Namespace: "ns", Name: "young"}]
			if old.State != "Ok" || len(old.Names) != 1+strings.Count(c.old, at+",") {
				t.Errorf("the older entry is %+v", old)
			}
			if young.Message != c.want || (young.State == "Ok") != (c.want == "") || len(young.Names) == 1 != (c.want == "") {
				t.Errorf("got  %s %s\nwant %s", young.State, young.Message, c.want)
			}
			if young.State == "Invalid" {
				t.Error("an entry that could stand alone is Invalid")
			}
		})
	}
}

// An apex has no alias, may have name servers of its own, and ends a delegation above it.
func TestConflictsAtApex(t *testing.T) {
	r := build(t, `
		zone ns/z: {domainNames: [z.svc.global.kubelink]}
		ns/alias: {zoneRef: z, dnsNames: ["@"], CNAME: a.example.}
		ns/servers: {zoneRef: z, dnsNames: ["@"], NS: [a.example.], TXT: [x]}
		ns/below: {zoneRef: z, dnsNames: [a.b], A: [10.0.0.1]}
		ns/above: {dnsNames: [global.kubelink], A: [10.0.0.1]}`)
	want := map[string]string{
		"alias": "spec.CNAME cannot stand at z.svc.global.kubelink, which is the name of a zone: write addresses instead",
		"above": `spec.dnsNames "global.kubelink" lies in no zone that is served here: write a name in svc.global.kubelink`,
	}
	for key, report := range r.Entries {
		if report.Message != want[key.Name] || (report.State == "Ok") != (want[key.Name] == "") {
			t.Errorf("%s: %+v", key, report)
		}
	}
}

// No name has more records of a type than fit an answer; other types still find room.
func TestRecordsLimit(t *testing.T) {
	for field, value := range map[string]func(i int) string{
		"TXT": func(i int) string { return fmt.Sprintf("t%d", i) },
		"NS":  func(i int) string { return fmt.Sprintf("ns%d.example.", i) },
		"A":   func(i int) string { return fmt.Sprintf("10.0.%d.%d", i/256, i%256) },
	} {
		var values []string
		for i := range maxRecords {
			values = append(values, value(i))
		}
		text := "zone ns/z: {domainNames: [svc.global.kubelink]}\n" +
			"ns/full: {zoneRef: z, dnsNames: ['@'], " + field + ": [" + strings.Join(values, ", ") + "]}\n" +
			"ns/more: {zoneRef: z, dnsNames: ['@'], " + field + ": [" + value(maxRecords) + "]}\n" +
			"ns/other: {zoneRef: z, dnsNames: ['@'], AAAA: ['fd00::1']}"
		r := build(t, text)
		more := r.Entries[types.NamespacedName{Namespace: "ns", Name: "more"}]
		const want = "svc.global.kubelink: older entries have 256 records of that name already, and that is the most; " +
			"use another name"
		if more.State != "Stale" || more.Message != want {
			t.Errorf("%s: %+v", field, more)
		}
		other := r.Entries[types.NamespacedName{Namespace: "ns", Name: "other"}]
		if wantState := map[bool]string{true: "Stale", false: "Ok"}[field == "A"]; string(other.State) != wantState {
			t.Errorf("AAAA beside %s: %+v", field, other)
		}
	}
}

func TestNamesLimit(t *testing.T) {
	tree := newNameTree([]string{served}, maxNames, home)
	for i := range maxNames - 2 {
		tree.addName(fmt.Sprintf("n%d.", i) + served)
	}
	if p := tree.checkFit(&Owner{Name: "x." + served, TXT: []string{"x"}}); p != nil {
		t.Errorf("the last but one name: %s", p.message)
	}
	p := tree.checkFit(&Owner{Name: "y." + served, TXT: []string{"x"}})
	const want = "y.svc.global.kubelink: there are 250000 global names already, and that is the most; remove some"
	if p == nil || p.message != want {
		t.Errorf("one name too many: %+v", p)
	}
}
