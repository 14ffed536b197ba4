package records

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
)

// TestOwnership has objects of several namespaces, from the oldest to the youngest, and what becomes of the youngest.
// All older ones are Ok.
func TestOwnership(t *testing.T) {
	const (
		db     = "prod/db: {dnsNames: [db.svc.global.kubelink], A: [100.64.0.20]}\n"
		shop   = "zone prod/shop: {domainNames: [shop.svc.global.kubelink]}\n"
		wild   = `prod/wild: {dnsNames: ["*.apps.svc.global.kubelink"], A: [100.64.0.20]}` + "\n"
		root   = "zone kubelink/root: {domainNames: [svc.global.kubelink]}\n"
		all    = `kubelink/all: {dnsNames: ["*.svc.global.kubelink"], A: [100.64.0.20]}` + "\n"
		first  = " belongs to prod/%s, as namespace prod had it first: use another name, or namespace prod"
		served = "svc.global.kubelink"
		top    = " is for namespace kubelink: use a name below svc.global.kubelink, or add namespace evil to " +
			"global-namespaces of kubelink's stanza"
		forbidden = ": namespace evil may have no global names: add it to global-namespaces of kubelink's stanza, " +
			"or use another namespace"
	)
	entry := func(namespace, names string) string {
		return namespace + "/x: {dnsNames: [" + names + "], A: [6.6.6.6]}"
	}
	zone := func(namespace, name string) string { return "zone " + namespace + "/x: {domainNames: [" + name + "]}" }
	for _, c := range []struct {
		name, objects string
		allowed       string
		want          string // the message; empty: Ok
	}{
		{"another name", db + entry("evil", "x."+served), "", ""},
		{"a name of another namespace", db + entry("evil", "db."+served), "", "db." + served + fmt.Sprintf(first, "db")},
		{"a name of its namespace", db + entry("prod", "db."+served), "", ""},
		{"an alias of another namespace", db + "evil/x: {dnsNames: [DB." + served + "], CNAME: evil.example}", "",
			"db." + served + fmt.Sprintf(first, "db")},
		{"a text", db + "evil/x: {dnsNames: [db." + served + "], TXT: [x]}", "", "db." + served + fmt.Sprintf(first, "db")},
		{"services", db + "evil/x: {dnsNames: [db." + served + "], SRV: {service: pg, records: [{protocol: TCP, port: 1, " +
			"host: e.example}]}}", "", "db." + served + fmt.Sprintf(first, "db")},
		{"services below", db + entry("evil", "_tcp.db."+served), "", "_tcp.db." + served + fmt.Sprintf(first, "db")},
		{"services far below", db + entry("evil", "_pg._tcp.db."+served), "",
			"_pg._tcp.db." + served + fmt.Sprintf(first, "db")},
		{"below a name", db + entry("evil", "a.db."+served), "", ""},
		{"a delegation", db + "evil/x: {dnsNames: [db." + served + "], NS: [ns.example]}", "",
			"db." + served + fmt.Sprintf(first, "db")},

		// Zones.
		{"a zone of a name", db + zone("evil", "db."+served), "", "db." + served + fmt.Sprintf(first, "db")},
		{"the same zone", shop + zone("evil", "shop."+served), "", "shop." + served + fmt.Sprintf(first, "shop")},
		{"a name in a zone", shop + entry("evil", "x.shop."+served), "", "x.shop." + served + fmt.Sprintf(first, "shop")},
		{"a name deep in a zone", shop + entry("evil", "x.y.shop."+served), "",
			"x.y.shop." + served + fmt.Sprintf(first, "shop")},
		{"a zone in a zone", shop + zone("evil", "x.shop."+served), "", "x.shop." + served + fmt.Sprintf(first, "shop")},
		{"a name at a zone", shop + entry("evil", "shop."+served), "", "shop." + served + fmt.Sprintf(first, "shop")},
		{"a zone above names", "prod/a: {dnsNames: [a.b.shop." + served + "], A: [10.0.0.1]}\n" +
			zone("evil", "shop."+served), "", "shop." + served + fmt.Sprintf(first, "a")},
		{"a zone above names of several", "evil/a: {dnsNames: [e.shop." + served + "], A: [10.0.0.1]}\n" +
			"prod/a: {dnsNames: [a.shop." + served + "], A: [10.0.0.1]}\n" + zone("evil", "shop."+served), "",
			"shop." + served + fmt.Sprintf(first, "a")},
		{"a zone beside names", db + zone("evil", "x."+served), "", ""},
		{"a zone in a zone of its namespace", shop + zone("prod", "x.shop."+served), "", ""},

		// Wildcards.
		{"a wildcard", db + entry("evil", `"*.x.`+served+`"`), "", ""},
		{"the same wildcard", wild + entry("evil", `"*.apps.`+served+`"`), "",
			"*.apps." + served + fmt.Sprintf(first, "wild")},
		{"a name of a wildcard", wild + entry("evil", "x.apps."+served), "", "x.apps." + served + fmt.Sprintf(first, "wild")},
		{"the name above a wildcard", wild + entry("evil", "apps."+served), "", ""},
		{"a wildcard in a wildcard", wild + entry("evil", `"*.x.apps.`+served+`"`), "",
			"*.x.apps." + served + fmt.Sprintf(first, "wild")},
		{"a zone of a wildcard", wild + zone("evil", "x.apps."+served), "", "x.apps." + served + fmt.Sprintf(first, "wild")},
		{"a wildcard below a name", db + entry("evil", `"*.db.`+served+`"`), "", "*.db." + served + fmt.Sprintf(first, "db")},
		{"a wildcard above a name", "prod/a: {dnsNames: [a.b." + served + "], A: [10.0.0.1]}\n" +
			entry("evil", `"*.b.`+served+`"`), "", "*.b." + served + fmt.Sprintf(first, "a")},
		{"a wildcard in a zone", shop + entry("evil", `"*.shop.`+served+`"`), "",
			"*.shop." + served + fmt.Sprintf(first, "shop")},

		// The served zone.
		{"the served zone", db + zone("evil", served), "", served + top},
		{"records of the served zone", db + entry("evil", served), "", served + top},
		{"its wildcard", db + entry("evil", `"*.`+served+`"`), "", "*." + served + top},
		{"the served zone for kubelink", db + zone("kubelink", served), "", ""},
		{"its wildcard for kubelink", db + entry("kubelink", `"*.`+served+`"`), "", ""},
		{"the served zone, allowed", db + zone("evil", served), "evil,prod", ""},
		{"a name in the served zone of kubelink", root + all + entry("evil", "x."+served), "", ""},
		{"a zone in the served zone of kubelink", root + all + zone("evil", "x."+served), "", ""},
		{"the wildcard of a zone of another", "zone prod/root: {domainNames: [" + served + "]}\n" +
			entry("evil", `"*.`+served+`"`), "evil,prod", "*." + served + fmt.Sprintf(first, "root")},
		{"the zone of a wildcard of another", `prod/wild: {dnsNames: ["*.` + served + `"], A: [10.0.0.1]}` + "\n" +
			zone("evil", served), "evil,prod", served + fmt.Sprintf(first, "wild")},

		// Who may have names at all.
		{"not allowed", db + entry("evil", "x."+served), "prod", "x." + served + forbidden},
		{"a zone, not allowed", db + zone("evil", "x."+served), "prod", "x." + served + forbidden},
		{"allowed", db + entry("evil", "x."+served), "evil,prod", ""},
		{"kubelink", db + entry("kubelink", "x."+served), "prod", ""},

		// The age of a name is that of the youngest object that makes it.
		{"a zone that waits for its parent", "zone evil/x: {parentRef: late, domainNames: [x]}\n" +
			"prod/a: {dnsNames: [x.db." + served + "], A: [10.0.0.1]}\n" + "zone evil/late: {domainNames: [db." + served + "]}",
			"", "db." + served + fmt.Sprintf(first, "a")},
		{"an object that is wrong owns nothing", "evil/a: {dnsNames: [db." + served + "], A: [x]}\n" +
			"prod/b: {dnsNames: [db." + served + "], A: [10.0.0.1]}\n" + entry("evil", "db."+served), "",
			"db." + served + fmt.Sprintf(first, "b")},
	} {
		t.Run(c.name, func(t *testing.T) {
			tenancy := Tenancy{Home: "kubelink"}
			if c.allowed != "" {
				tenancy.Allowed = strings.Split(c.allowed, ",")
			}
			entries, zones := globalObjects(t, c.objects)
			r := Build(entries, zones, []string{served + "."}, tenancy)
			last := c.objects[strings.LastIndex(c.objects, "\n")+1:]
			key, _, _ := strings.Cut(last, ":")
			key, isZone := strings.CutPrefix(key, "zone ")
			namespace, name, _ := strings.Cut(key, "/")
			reports := r.Entries
			if isZone {
				reports = r.HostedZones
			}
			got := reports[types.NamespacedName{Namespace: namespace, Name: name}]
			if got.Message != c.want || (got.State == coredns.StateOk) != (c.want == "") ||
				c.want != "" && (got.State != coredns.StateStale || len(got.Names) != 0 || got.Foreign) {
				t.Errorf("got  %+v\nwant %s", got, c.want)
			}
			if text := dump(r); c.want != "" && (strings.Contains(text, "6.6.6.6") || strings.Contains(text, "evil")) {
				t.Errorf("it has names:\n%s", text)
			}
			for _, o := range []string{"db", "shop", "wild", "root", "all"} {
				for _, reports := range []map[types.NamespacedName]Report{r.Entries, r.HostedZones} {
					for key, old := range reports {
						if key.Name == o && old.State != coredns.StateOk {
							t.Errorf("%s: %s", key, old.Message)
						}
					}
				}
			}
		})
	}
}

// A name goes to the next one when its owner goes, and an entry has its other names meanwhile.
func TestOwnerGoes(t *testing.T) {
	entries, _ := globalObjects(t, `
		prod/db: {dnsNames: [db.svc.global.kubelink], A: [10.0.0.1]}
		evil/x: {dnsNames: [db.svc.global.kubelink, x.svc.global.kubelink], A: [10.0.0.2]}`)
	key := types.NamespacedName{Namespace: "evil", Name: "x"}
	r := Build(entries, nil, []string{served}, home).Entries[key]
	if r.State != coredns.StateStale || !slices.Equal(r.Names, []string{"x.svc.global.kubelink"}) {
		t.Errorf("%+v", r)
	}
	if r = Build(entries[1:], nil, []string{served}, home).Entries[key]; r.State != coredns.StateOk || len(r.Names) != 2 {
		t.Errorf("%+v", r)
	}
}

// An entry in a zone that comes later is as young as the zone: waiting for a name does not get it.
func TestWaitingForAZone(t *testing.T) {
	entries, zones := globalObjects(t, `
		evil/x: {zoneRef: late, dnsNames: [a.b, "@"], A: [6.6.6.6]}
		prod/db: {dnsNames: [a.b.db.svc.global.kubelink], A: [10.0.0.1]}
		zone evil/late: {domainNames: [db.svc.global.kubelink]}`)
	r := Build(entries, zones, []string{served}, home)
	if text := dump(r); strings.Contains(text, "6.6.6.6") || !strings.Contains(text, "10.0.0.1") {
		t.Errorf("%s", text)
	}
}

// One namespace cannot use up all names, and does not lose the names that it has.
func TestNamesOfANamespace(t *testing.T) {
	var entries []coredns.CoreDNSEntry
	add := func(namespace string, n int) {
		e := coredns.CoreDNSEntry{ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: fmt.Sprint("e", len(entries)), CreationTimestamp: metav1.Unix(int64(len(entries)), 0),
		}}
		for i := range n {
			name := fmt.Sprintf("n%d-%d.svc.global.kubelink", len(entries), i)
			e.Spec.DNSNames = append(e.Spec.DNSNames, coredns.DNSName(name))
		}
		e.Spec.A = []coredns.IPv4Address{"10.0.0.1"}
		entries = append(entries, e)
	}
	for n := 0; n < maxNamespaceNames; n += 250 {
		add("evil", 250)
	}
	add("evil", 1)
	add("prod", 10)
	add("ns", 10)
	r := Build(entries, nil, []string{served}, home)
	count := map[string]int{}
	for key, report := range r.Entries {
		count[key.Namespace] += len(report.Names)
	}
	if count["evil"] != maxNamespaceNames || count["prod"] != 10 || count["ns"] != 10 {
		t.Errorf("names %v", count)
	}
	last := r.Entries[types.NamespacedName{Namespace: "evil", Name: fmt.Sprint("e", len(entries)-3)}]
	want := "n200-0.svc.global.kubelink: namespace evil has 50000 global names already, " +
		"and that is the most of one namespace; remove some"
	if last.Message != want || last.State != coredns.StateStale {
		t.Errorf("%+v", last)
	}
}

// An object keeps a name that its status says it has: an older one of another namespace that wants the name later does
// not get it. A status without a wish, or with a wish for what is not allowed, gives nothing.
func TestNamesAreKept(t *testing.T) {
	entries, zones := globalObjects(t, `
		evil/x: {dnsNames: [x.svc.global.kubelink, db.svc.global.kubelink, a.shop.svc.global.kubelink], A: [6.6.6.6]}
		zone evil/z: {domainNames: [team.svc.global.kubelink]}
		prod/db: {dnsNames: [db.svc.global.kubelink], A: [10.0.0.1]}
		zone prod/root: {domainNames: [shop.svc.global.kubelink]}
		zone prod/team: {parentRef: root, domainNames: [team.shop.svc.global.kubelink.]}
		prod/rel: {zoneRef: root, dnsNames: [a], A: [10.0.0.2]}
		prod/team: {dnsNames: [db.team.svc.global.kubelink], A: [10.0.0.3]}`)
	has := func(o *coredns.Status, names ...string) { o.EffectiveDomainNames = names }
	has(&entries[0].Status, "x.svc.global.kubelink", "gone.svc.global.kubelink", "*.svc.global.kubelink")
	has(&entries[1].Status, "db.svc.global.kubelink")
	has(&entries[2].Status, "a.shop.svc.global.kubelink")
	has(&entries[3].Status, "db.team.svc.global.kubelink")
	has(&zones[1].Status, "shop.svc.global.kubelink")
	r := Build(entries, zones, []string{served}, Tenancy{Home: "kubelink"})
	names := func(r Report) string { return strings.Join(r.Names, " ") }
	for key, want := range map[string]string{
		"evil/x": "x.svc.global.kubelink", "prod/db": "db.svc.global.kubelink", "prod/rel": "a.shop.svc.global.kubelink",
		"prod/team": "db.team.svc.global.kubelink",
	} {
		namespace, name, _ := strings.Cut(key, "/")
		if got := names(r.Entries[types.NamespacedName{Namespace: namespace, Name: name}]); got != want {
			t.Errorf("%s has %s, want %s", key, got, want)
		}
	}
	z := r.HostedZones[types.NamespacedName{Namespace: "evil", Name: "z"}]
	if z.State != coredns.StateStale || names(z) != "" {
		t.Errorf("a zone above a name of another namespace: %+v", z)
	}
	if text := dump(r); strings.Count(text, "6.6.6.6") != 1 {
		t.Errorf("%s", text)
	}
}

// Ten thousand HostedZones of one namespace, nested or in a circle, cost about what as many side by side cost: each
// zone is looked at once.
func TestNestedZonesAreCheap(t *testing.T) {
	const n = 10_000
	build := func(parent func(i int) int) time.Duration {
		zones := make([]coredns.HostedZone, n)
		for i := range zones {
			z := &zones[i]
			z.Namespace, z.Name = "evil", fmt.Sprint("z", i)
			z.CreationTimestamp = metav1.Unix(int64(i), 0)
			z.Spec.DomainNames = []coredns.DomainName{coredns.DomainName(fmt.Sprintf("a%d.svc.global.kubelink", i))}
			if p := parent(i); p >= 0 {
				z.Spec.DomainNames[0] = "a"
				z.Spec.ParentRef = fmt.Sprint("z", p)
			}
			z.Status.EffectiveDomainNames = []string{"a.svc.global.kubelink"}
		}
		begin := time.Now()
		Build(nil, zones, []string{"svc.global.kubelink."}, Tenancy{Home: "kubelink"})
		return time.Since(begin)
	}
	flat := build(func(int) int { return -1 })
	for name, parent := range map[string]func(int) int{
		"nested":     func(i int) int { return i - 1 },
		"a circle":   func(i int) int { return (i + 1) % n },
		"in reverse": func(i int) int { return (i+2)%(n+1) - 1 },
	} {
		if took := build(parent); took > 20*flat+time.Second {
			t.Errorf("%s: %v, side by side %v", name, took, flat)
		}
	}
}
