package records

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
)

// TestZoneMessages has a row for each field of a HostedZone: a value that is refused, and all of the text. x is the
// youngest object.
func TestZoneMessages(t *testing.T) {
	const root = "zone ns/root: {domainNames: [svc.global.kubelink]}\n"
	many := func(n int) string {
		var names []string
		for i := range n {
			names = append(names, fmt.Sprintf("n%d.svc.global.kubelink", i))
		}
		return "zone ns/x: {domainNames: [" + strings.Join(names, ", ") + "]}"
	}
	for _, c := range []struct {
		field, objects string
		state          coredns.State
		want           string
	}{
		{"fine", root + "zone ns/x: {parentRef: root, domainNames: [a, b]}", "Ok", ""},
		{"as many names as there may be", many(maxZoneNames), "Ok", ""},
		{
			"one name more", many(maxZoneNames + 1), "Invalid",
			"spec.domainNames are 65 names together with those of the zones above, and 64 is the most: remove some",
		},
		{
			"no name", "zone ns/x: {domainNames: []}", "Invalid",
			"spec.domainNames is empty: name the zone, such as svc.global.kubelink",
		},
		{
			"bad name", "zone ns/x: {domainNames: [a.svc.global.kubelink, a..b]}", "Invalid",
			`spec.domainNames "a..b": label "": a label has 1 to 63 characters`,
		},
		{
			"outside", "zone ns/x: {domainNames: [example.com]}", "Stale",
			`spec.domainNames "example.com" lies in no zone that is served here: write a name in svc.global.kubelink`,
		},
		{
			"taken", root + "zone ns/x: {domainNames: [svc.global.kubelink, a.svc.global.kubelink]}", "Stale",
			`spec.domainNames "svc.global.kubelink": svc.global.kubelink is already the name of HostedZone ns/root; ` +
				"remove it from one of the two",
		},
		{
			"no parent", "zone ns/x: {parentRef: p, domainNames: [a]}", "Stale",
			`spec.parentRef "p": there is no such HostedZone in namespace ns; ` +
				"create it, or remove the field and write fully qualified names",
		},
		{
			"parent of another namespace", "zone other/p: {domainNames: [svc.global.kubelink]}\n" +
				"zone ns/x: {parentRef: p, domainNames: [a]}", "Stale",
			`spec.parentRef "p": there is no such HostedZone in namespace ns; ` +
				"create it, or remove the field and write fully qualified names",
		},
		{
			"its own parent", "zone ns/x: {parentRef: x, domainNames: [a]}", "Invalid",
			`spec.parentRef "x" leads in a circle back to this zone: one of the zones must have no parent`,
		},
		{
			"broken parent", "zone ns/p: {domainNames: [svc.global.kubelink], retry: -1}\n" +
				"zone ns/x: {parentRef: p, domainNames: [a]}", "Stale",
			"spec.parentRef p cannot be used (Invalid): repair that zone first",
		},
		{
			"outside of the parent", root + "zone ns/x: {parentRef: root, domainNames: [a.example.]}", "Invalid",
			`spec.domainNames "a.example.": the final dot makes it a fully qualified name, and it does not lie in ` +
				"svc.global.kubelink; remove the dot to make it relative",
		},
		{
			"SOA", "zone ns/x: {domainNames: [svc.global.kubelink], expire: -1}", "Invalid",
			"spec.expire -1: expected a number of seconds from 0 on",
		},
	} {
		t.Run(c.field, func(t *testing.T) {
			report := build(t, c.objects).HostedZones[types.NamespacedName{Namespace: "ns", Name: "x"}]
			if report.State != c.state || report.Message != c.want {
				t.Errorf("got  %s %s\nwant %s %s", report.State, report.Message, c.state, c.want)
			}
		})
	}
}

// An object is foreign if all of its names lie outside. One that is wrong in itself is ours to tell of.
func TestForeign(t *testing.T) {
	r := build(t, `
		zone ns/far: {domainNames: [example.com, example.org]}
		zone ns/part: {domainNames: [example.com, a.svc.global.kubelink]}
		zone ns/bad: {domainNames: [example.com, a..b]}
		ns/far: {dnsNames: [x.example.com], A: [10.0.0.1]}
		ns/part: {dnsNames: [x.example.com, x.svc.global.kubelink], A: [10.0.0.1]}
		ns/bad: {dnsNames: [x.example.com, a..b], A: [10.0.0.1]}
		ns/record: {dnsNames: [x.example.com], A: [x]}
		ns/zone: {zoneRef: far, dnsNames: [x], A: [10.0.0.1]}`)
	for name, want := range map[string]bool{"far": true, "part": false, "bad": false, "record": false, "zone": true} {
		key := types.NamespacedName{Namespace: "ns", Name: name}
		if report := r.Entries[key]; report.Foreign != want || report.State == "Ok" {
			t.Errorf("entry %s: %+v", name, report)
		}
		if report, there := r.HostedZones[key]; there && (report.Foreign != want || report.State == "Ok") {
			t.Errorf("zone %s: %+v", name, report)
		}
	}
}

// An entry has as many names as there may be, together with the names of its zone.
func TestEntryNamesLimit(t *testing.T) {
	for n, want := range map[int]string{
		maxEntryNames / 2:   "",
		maxEntryNames/2 + 1: "spec.dnsNames are 258 names together with those of the zone, and 256 is the most: remove some",
	} {
		var names []string
		for i := range n {
			names = append(names, fmt.Sprintf("n%d", i))
		}
		r := build(t, "zone ns/two: {domainNames: [a.svc.global.kubelink, b.svc.global.kubelink]}\n"+
			"ns/x: {zoneRef: two, dnsNames: ["+strings.Join(names, ", ")+"], A: [10.0.0.1]}")
		if report := r.Entries[types.NamespacedName{Namespace: "ns", Name: "x"}]; report.Message != want {
			t.Errorf("%d names: %+v", n, report)
		}
	}
}

// A zone is resolved after its parent, whichever of the two is older, and names the zone at the root.
func TestNestedZones(t *testing.T) {
	text := []string{
		"zone ns/leaf: {parentRef: middle, domainNames: [c, d]}", "zone ns/middle: {parentRef: root, domainNames: [a, b]}",
		"zone ns/root: {domainNames: [svc.global.kubelink, svc.global.kubelink]}",
	}
	for range 2 {
		r := build(t, strings.Join(text, "\n"))
		for name, want := range map[string][]string{
			"root": {"svc.global.kubelink"}, "middle": {"a.svc.global.kubelink", "b.svc.global.kubelink"},
			"leaf": {
				"c.a.svc.global.kubelink", "c.b.svc.global.kubelink", "d.a.svc.global.kubelink", "d.b.svc.global.kubelink",
			},
		} {
			report := r.HostedZones[types.NamespacedName{Namespace: "ns", Name: name}]
			if report.State != "Ok" || report.RootZone != "root" || !slices.Equal(report.Names, want) {
				t.Errorf("%s: %+v", name, report)
			}
		}
		slices.Reverse(text)
	}
}

// Of two zones with the same name the older one has it, and of the same age the one whose own name comes first.
func TestOlderZoneWins(t *testing.T) {
	_, zones := globalObjects(t, `
		zone ns/b: {domainNames: [svc.global.kubelink], retry: 2}
		zone ns/a: {domainNames: [svc.global.kubelink], retry: 1}
		zone m/c: {domainNames: [svc.global.kubelink], retry: 3}`)
	for _, c := range []struct {
		ages  [3]int
		retry uint32
	}{{[3]int{0, 1, 2}, 2}, {[3]int{1, 0, 2}, 1}, {[3]int{2, 1, 0}, 3}, {[3]int{0, 0, 1}, 1}, {[3]int{0, 0, 0}, 3}} {
		for i, age := range c.ages {
			zones[i].CreationTimestamp = metav1.Unix(int64(1000+age), 0)
		}
		r := Build(nil, zones, []string{served}, Tenancy{Home: "ns", Allowed: []string{"m"}})
		if got := r.Zones[0].Apexes; len(got) != 1 || got[0].Retry != c.retry {
			t.Errorf("ages %v: %+v", c.ages, got)
		}
	}
}
