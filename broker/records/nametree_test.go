package records

import (
	"fmt"
	"reflect"
	"testing"

	"k8s.io/apimachinery/pkg/types"
)

func TestServedZone(t *testing.T) {
	tree := newNameTree([]string{"svc.global.a.", "svc.global.svc.global.a.", "svc.global.b."}, 0, home)
	for name, want := range map[string]string{
		"svc.global.a.": "svc.global.a.", "x.y.svc.global.a.": "svc.global.a.", "xsvc.global.a.": "", "global.a.": "",
		"x.svc.global.svc.global.a.": "svc.global.svc.global.a.", "svc.global.b.": "svc.global.b.", "svc.global.c.": "",
		"": "", "*.svc.global.b.": "svc.global.b.",
	} {
		if got := tree.servedZone(name); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
	if got := parentName("c."); got != "" {
		t.Errorf("the name above the top level is %q", got)
	}
}

// Each name knows how many names are below it, and which object came first.
func TestCountBelow(t *testing.T) {
	tree := newNameTree([]string{"z."}, 0, home)
	tree.countBelow("c.b.a.z.", "entry ns/first")
	tree.countBelow("d.b.a.z.", "entry ns/second")
	tree.countBelow("e.z.", "entry ns/third")
	for name, want := range map[string]struct {
		below int
		first string
	}{
		"b.a.z.": {2, "entry ns/first"}, "a.z.": {2, "entry ns/first"}, "z.": {3, "entry ns/first"},
		"c.b.a.z.": {0, ""}, "e.z.": {0, ""},
	} {
		if o := tree.addName(name); o.below != want.below || o.first != want.first {
			t.Errorf("%s: %d below, first %q", name, o.below, o.first)
		}
	}
}

func TestOutsideProblem(t *testing.T) {
	for _, c := range []struct {
		served []string
		want   string
	}{
		{nil, `spec.x "y": no global zone is served in this cluster`},
		{[]string{"b."}, `spec.x "y" lies in no zone that is served here: write a name in b`},
		{[]string{"b.", "a."}, `spec.x "y" lies in no zone that is served here: write a name in a or b`},
	} {
		if p := newNameTree(c.served, 0, home).outsideProblem("spec.x", "y"); p.state != "Stale" || p.message != c.want {
			t.Errorf("%q: %+v", c.served, p)
		}
	}
}

func TestMergeRecords(t *testing.T) {
	tree := newNameTree([]string{served}, 0, home)
	first, second := types.NamespacedName{Namespace: "ns", Name: "a"}, types.NamespacedName{Namespace: "ns", Name: "b"}
	r := build(t, "ns/x: {dnsNames: [x.svc.global.kubelink], A: [10.0.0.1, 10.0.0.2, 10.0.0.3]}")
	addr := r.Zones[0].Owners[0].Addresses
	anyLink := addr[1]
	anyLink.AnyLink = true
	name := "x.a." + served
	tree.mergeRecords(&first, &Owner{
		Name: name, Addresses: addr[:2], TXT: []string{"one", "two"}, NS: []string{"a."}, SRV: []SRV{{1, 2, 3, "a."}},
	})
	tree.mergeRecords(&second, &Owner{
		Name: name, Addresses: []Address{anyLink, addr[2]}, TXT: []string{"two", "three"}, NS: []string{"a.", "b."},
		SRV: []SRV{{1, 2, 3, "a."}, {1, 2, 4, "a."}}, Fixed: true,
	})
	tree.mergeRecords(&first, &Owner{Name: name})
	want := Owner{
		Name: name, Addresses: []Address{addr[0], anyLink, addr[2]}, TXT: []string{"one", "two", "three"},
		NS: []string{"a.", "b."}, SRV: []SRV{{1, 2, 3, "a."}, {1, 2, 4, "a."}}, Fixed: true,
	}
	o := tree.owners[name]
	if !reflect.DeepEqual(o.Owner, want) || o.by != &first {
		t.Errorf("got  %+v of %s\nwant %+v", o.Owner, o.by, want)
	}
	if above := tree.owners["a."+served]; above.below != 1 || above.first != "entry ns/a" {
		t.Errorf("a name is counted %d times, for %s", above.below, above.first)
	}
}

// Aliases are followed as far as DNS follows them, and a loop is one only at the names that are in it.
func TestCNAMELoop(t *testing.T) {
	chain := func(n int, end string) *nameTree {
		tree := newNameTree([]string{"z."}, 0, home)
		for i := range n {
			next := fmt.Sprintf("n%d.z.", i+1)
			if i == n-1 {
				next = end
			}
			tree.addName(fmt.Sprintf("n%d.z.", i)).CNAME = next
		}
		return tree
	}
	for _, c := range []struct {
		what   string
		length int
		end    string
		want   bool
	}{
		{"of itself", 1, "n0.z.", true}, {"two", 2, "n0.z.", true}, {"the longest", maxAliases, "n0.z.", true},
		{"too long to be followed", maxAliases + 1, "n0.z.", false},
		{"an end outside", 3, "web.example.", false}, {"an end without records", 3, "z.", false},
		{"a loop behind it", 3, "n1.z.", false},
	} {
		tree := chain(c.length, c.end)
		if got := tree.cnameLoop(tree.owners["n0.z."]); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
}

// The report of a loop names the first of the entry's names that is in one. The records stay.
func TestCNAMELoopReport(t *testing.T) {
	r := build(t, `
		ns/in: {dnsNames: [free.svc.global.kubelink, a.svc.global.kubelink], CNAME: b.svc.global.kubelink}
		ns/back: {dnsNames: [b.svc.global.kubelink], CNAME: a.svc.global.kubelink}
		ns/before: {dnsNames: [c.svc.global.kubelink], CNAME: a.svc.global.kubelink}`)
	for name, want := range map[string]string{
		"in": "spec.CNAME makes a.svc.global.kubelink an alias of itself, by way of b.svc.global.kubelink: " +
			"point it to a name with addresses",
		"back": "spec.CNAME makes b.svc.global.kubelink an alias of itself, by way of a.svc.global.kubelink: " +
			"point it to a name with addresses",
		"before": "",
	} {
		report := r.Entries[types.NamespacedName{Namespace: "ns", Name: name}]
		if report.Message != want || (report.State == "Ok") != (want == "") || len(report.Names) == 0 {
			t.Errorf("%s: %+v", name, report)
		}
	}
	if len(r.Zones[0].Owners) != 4 {
		t.Errorf("%+v", r.Zones[0].Owners)
	}
}
