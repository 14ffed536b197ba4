package records

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
)

const served = "svc.global.kubelink."

// home is kubelink's namespace in most tests.
var home = Tenancy{Home: "ns"}

var continued = regexp.MustCompile(`,\n\s*`)

// globalObjects reads objects, each a second younger than the one before: "namespace/name: {spec}" a line, zones with a
// leading "zone ". After a comma at the end of a line the object goes on in the next one.
func globalObjects(t testing.TB, text string) (entries []coredns.CoreDNSEntry, zones []coredns.HostedZone) {
	t.Helper()
	text = continued.ReplaceAllString(text, ", ")
	for i, line := range strings.Split(strings.TrimSpace(text), "\n") {
		line, zone := strings.CutPrefix(strings.TrimSpace(line), "zone ")
		key, spec, _ := strings.Cut(line, ": ")
		namespace, name, _ := strings.Cut(key, "/")
		meta := metav1.ObjectMeta{Namespace: namespace, Name: name, CreationTimestamp: metav1.Unix(int64(1000+i), 0)}
		var err error
		if zone {
			z := coredns.HostedZone{ObjectMeta: meta}
			err = yaml.UnmarshalStrict([]byte(spec), &z.Spec)
			zones = append(zones, z)
		} else {
			e := coredns.CoreDNSEntry{ObjectMeta: meta}
			err = yaml.UnmarshalStrict([]byte(spec), &e.Spec)
			entries = append(entries, e)
		}
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
	}
	return entries, zones
}

func build(t testing.TB, text string) Result {
	entries, zones := globalObjects(t, text)
	return Build(entries, zones, []string{served}, home)
}

// dump renders the names of all zones, a record a line.
func dump(g Result) string {
	var b strings.Builder
	for _, z := range g.Zones {
		for _, a := range z.Apexes {
			fmt.Fprintf(&b, "%s SOA %s %d %d %d %d\n", a.Name, a.Mbox, a.Refresh, a.Retry, a.Expire, a.Minimum)
		}
		for _, o := range z.Owners {
			for _, a := range o.Addresses {
				fmt.Fprintf(&b, "%s %s\n", o.Name, a)
			}
			if o.CNAME != "" {
				fmt.Fprintf(&b, "%s CNAME %s\n", o.Name, o.CNAME)
			}
			for _, t := range o.TXT {
				fmt.Fprintf(&b, "%s TXT %q\n", o.Name, t)
			}
			for _, n := range o.NS {
				fmt.Fprintf(&b, "%s NS %s\n", o.Name, n)
			}
			for _, s := range o.SRV {
				fmt.Fprintf(&b, "%s SRV %d %d %d %s\n", o.Name, s.Priority, s.Weight, s.Port, s.Target)
			}
		}
	}
	return b.String()
}

func TestBuild(t *testing.T) {
	g := build(t, `
		ns/web: {dnsNames: [Web.SVC.global.kubelink, www.svc.global.kubelink.], A: [10.0.0.1, 10.0.0.2, 10.0.0.1],
			AAAA: [fd00::1], TXT: [hello]}
		ns/more: {dnsNames: [web.svc.global.kubelink], A: [10.0.0.3, 10.0.0.2], TXT: [hello, world]}
		ns/same: {dnsNames: [web.svc.global.kubelink, web.svc.global.kubelink], A: [10.0.0.3]}
		ns/alias: {dnsNames: [alias.svc.global.kubelink], CNAME: Web.default.svc.kubelink2.kubelink}
		ns/again: {dnsNames: [alias.svc.global.kubelink], CNAME: web.default.svc.kubelink2.kubelink.}
		ns/wild: {dnsNames: ["*.apps.svc.global.kubelink"], A: [10.0.0.4]}
		zone ns/root: {domainNames: [svc.global.kubelink], email: uwe.k@example.com, refresh: 1,
			retry: 2, expire: 3, minimumTTL: 0}
		zone ns/team: {parentRef: root, domainNames: [team, squad.x]}
		zone ns/deep: {parentRef: team, domainNames: [deep, full.team.svc.global.kubelink.]}
		zone ns/own: {domainNames: [own.svc.global.kubelink], email: ""}
		ns/apex: {zoneRef: root, dnsNames: ["@"], TXT: [apex], NS: [ns.example.com.]}
		ns/relative: {zoneRef: team, dnsNames: [db, "*"], A: [10.0.0.5]}
		ns/ldap: {zoneRef: deep, dnsNames: [dir], SRV: {service: ldap, records: [{protocol: TCP, port: 389, host: a},
			{protocol: TCP, priority: 1, weight: 2, port: 390, host: b.example.com.}, {protocol: udp, port: 389, host: a}]}}
		ns/sub: {zoneRef: own, dnsNames: [sub], NS: [ns1.sub, ns.example.com.]}
		ns/glue: {zoneRef: own, dnsNames: [ns1.sub.own.svc.global.kubelink.], A: [10.0.0.6]}
		`)
	want := `deep.squad.x.svc.global.kubelink. SOA  7200 1800 86400 5
deep.team.svc.global.kubelink. SOA  7200 1800 86400 5
full.team.svc.global.kubelink. SOA  7200 1800 86400 5
own.svc.global.kubelink. SOA  7200 1800 86400 5
squad.x.svc.global.kubelink. SOA  7200 1800 86400 5
svc.global.kubelink. SOA uwe\.k.example.com. 1 2 3 0
team.svc.global.kubelink. SOA  7200 1800 86400 5
*.apps.svc.global.kubelink. 10.0.0.4
*.squad.x.svc.global.kubelink. 10.0.0.5
*.team.svc.global.kubelink. 10.0.0.5
_ldap._tcp.dir.deep.squad.x.svc.global.kubelink. SRV 0 0 389 a.deep.squad.x.svc.global.kubelink.
_ldap._tcp.dir.deep.squad.x.svc.global.kubelink. SRV 1 2 390 b.example.com.
_ldap._tcp.dir.deep.team.svc.global.kubelink. SRV 0 0 389 a.deep.team.svc.global.kubelink.
_ldap._tcp.dir.deep.team.svc.global.kubelink. SRV 1 2 390 b.example.com.
_ldap._tcp.dir.full.team.svc.global.kubelink. SRV 0 0 389 a.full.team.svc.global.kubelink.
_ldap._tcp.dir.full.team.svc.global.kubelink. SRV 1 2 390 b.example.com.
_ldap._udp.dir.deep.squad.x.svc.global.kubelink. SRV 0 0 389 a.deep.squad.x.svc.global.kubelink.
_ldap._udp.dir.deep.team.svc.global.kubelink. SRV 0 0 389 a.deep.team.svc.global.kubelink.
_ldap._udp.dir.full.team.svc.global.kubelink. SRV 0 0 389 a.full.team.svc.global.kubelink.
alias.svc.global.kubelink. CNAME web.default.svc.kubelink2.kubelink.
db.squad.x.svc.global.kubelink. 10.0.0.5
db.team.svc.global.kubelink. 10.0.0.5
ns1.sub.own.svc.global.kubelink. 10.0.0.6
sub.own.svc.global.kubelink. NS ns1.sub.own.svc.global.kubelink.
sub.own.svc.global.kubelink. NS ns.example.com.
svc.global.kubelink. TXT "apex"
svc.global.kubelink. NS ns.example.com.
web.svc.global.kubelink. 10.0.0.1
web.svc.global.kubelink. 10.0.0.2
web.svc.global.kubelink. fd00::1
web.svc.global.kubelink. 10.0.0.3
web.svc.global.kubelink. TXT "hello"
web.svc.global.kubelink. TXT "world"
www.svc.global.kubelink. 10.0.0.1
www.svc.global.kubelink. 10.0.0.2
www.svc.global.kubelink. fd00::1
www.svc.global.kubelink. TXT "hello"
`
	if got := dump(g); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for key, r := range g.Entries {
		if r.State != coredns.StateOk || r.Message != "" || r.Foreign {
			t.Errorf("%s: %+v", key, r)
		}
	}
	for key, r := range g.HostedZones {
		if r.State != coredns.StateOk || r.Message != "" || r.Foreign {
			t.Errorf("%s: %+v", key, r)
		}
	}
	for name, want := range map[string]Report{
		"web":  {State: "Ok", Names: []string{"web.svc.global.kubelink", "www.svc.global.kubelink"}},
		"same": {State: "Ok", Names: []string{"web.svc.global.kubelink"}},
		"ldap": {State: "Ok", RootZone: "root", Names: []string{
			"dir.deep.team.svc.global.kubelink", "dir.deep.squad.x.svc.global.kubelink", "dir.full.team.svc.global.kubelink",
		}},
		"apex":  {State: "Ok", RootZone: "root", Names: []string{"svc.global.kubelink"}},
		"alias": {State: "Ok", Names: []string{"alias.svc.global.kubelink"}},
	} {
		if got := g.Entries[types.NamespacedName{Namespace: "ns", Name: name}]; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
	}
	got, deep := g.HostedZones[types.NamespacedName{Namespace: "ns", Name: "deep"}], Report{
		State: "Ok", RootZone: "root", Names: []string{
			"deep.team.svc.global.kubelink", "deep.squad.x.svc.global.kubelink", "full.team.svc.global.kubelink",
		},
	}
	if !reflect.DeepEqual(got, deep) {
		t.Errorf("zone: got %+v, want %+v", got, deep)
	}
}

// TestGlobalProblems has a row for each rule: the last object is refused, with the field and the remedy
// named, and what was there goes on.
func TestGlobalProblems(t *testing.T) {
	long := strings.Repeat(strings.Repeat("x", 50)+".", 4) + "svc.global.kubelink"
	many := "n0"
	for i := range 64 {
		many += fmt.Sprintf(", n%d", i+1)
	}
	const old = "ns/old: {dnsNames: [old.svc.global.kubelink], A: [10.0.0.1]}\n"
	const zone = "zone ns/root: {domainNames: [svc.global.kubelink]}\n"
	for _, c := range []struct {
		name, objects string
		state         coredns.State
		foreign       bool
		says          []string
	}{
		{
			"address", `ns/x: {dnsNames: [x.svc.global.kubelink], A: [10.0.0]}`, "Invalid", false,
			[]string{`spec.A "10.0.0"`, "IPv4 address"},
		},
		{
			"IPv6 in A", `ns/x: {dnsNames: [x.svc.global.kubelink], A: ["fd00::1"]}`, "Invalid", false,
			[]string{`spec.A "fd00::1"`},
		},
		{
			"mapped in A", `ns/x: {dnsNames: [x.svc.global.kubelink], A: ["::ffff:10.0.0.1"]}`, "Invalid", false,
			[]string{`spec.A`},
		},
		{
			"IPv4 in AAAA", `ns/x: {dnsNames: [x.svc.global.kubelink], AAAA: [10.0.0.1]}`, "Invalid", false,
			[]string{`spec.AAAA "10.0.0.1"`, "write 10.0.0.1 into spec.A"},
		},
		{
			"mapped in AAAA", `ns/x: {dnsNames: [x.svc.global.kubelink], AAAA: ["::ffff:10.0.0.1"]}`, "Invalid", false,
			[]string{`spec.AAAA "::ffff:10.0.0.1"`, "write 10.0.0.1 into spec.A"},
		},
		{
			"scoped", `ns/x: {dnsNames: [x.svc.global.kubelink], AAAA: ["fe80::1%eth0"]}`, "Invalid", false,
			[]string{`spec.AAAA "fe80::1%eth0"`},
		},
		{"nothing", `ns/x: {dnsNames: [x.svc.global.kubelink]}`, "Invalid", false, []string{"no record", "set A"}},
		{"no name", `ns/x: {dnsNames: [], A: [10.0.0.2]}`, "Invalid", false, []string{"spec.dnsNames is empty"}},
		{
			"bad name", `ns/x: {dnsNames: [a..svc.global.kubelink], A: [10.0.0.2]}`, "Invalid", false,
			[]string{`spec.dnsNames "a..svc.global.kubelink"`, "label"},
		},
		{
			"long name",
			`ns/x: {dnsNames: [` + long + `], ` +
				`SRV: {service: ldap-directory-service-of-the-whole-company, ` +
				`records: [{protocol: TCP, port: 1, host: a.example}]}}`,
			"Invalid", false, []string{"spec.SRV", "253 characters"},
		},
		{
			"wildcard inside", `ns/x: {dnsNames: [a.*.svc.global.kubelink], A: [10.0.0.2]}`, "Invalid", false,
			[]string{`spec.dnsNames "a.*.svc.global.kubelink"`},
		},
		{
			"wildcard in part", `ns/x: {dnsNames: ["*x.svc.global.kubelink"], A: [10.0.0.2]}`, "Invalid", false,
			[]string{"label of its own"},
		},
		{"relative without zone", `ns/x: {dnsNames: ["@"], A: [10.0.0.2]}`, "Invalid", false, []string{"set spec.zoneRef"}},
		{
			"outside", `ns/x: {dnsNames: [x.svc.global.kubelnk], A: [10.0.0.2]}`, "Stale", true,
			[]string{`spec.dnsNames "x.svc.global.kubelnk"`, "write a name in svc.global.kubelink"},
		},
		{
			"beside", `ns/x: {dnsNames: [xsvc.global.kubelink], A: [10.0.0.2]}`, "Stale", true,
			[]string{"no zone that is served here"},
		},
		{
			"partly outside", `ns/x: {dnsNames: [x.svc.global.kubelink, x.example.com], A: [10.0.0.2]}`, "Stale", false,
			[]string{`"x.example.com"`},
		},
		{
			"no such zone", `ns/x: {zoneRef: nope, dnsNames: [x], A: [10.0.0.2]}`, "Stale", false,
			[]string{`spec.zoneRef "nope"`, "namespace ns", "create it"},
		},
		{
			"zone of another namespace", zone + `other/x: {zoneRef: root, dnsNames: [x], A: [10.0.0.2]}`, "Stale", false,
			[]string{`spec.zoneRef "root"`, "namespace other"},
		},
		{
			"zone not served",
			"zone ns/far: {domainNames: [example.com]}\n" + `ns/x: {zoneRef: far, dnsNames: [x], A: [10.0.0.2]}`, "Stale", true,
			[]string{"spec.zoneRef far cannot be used (Stale)"},
		},
		{
			"zone broken",
			"zone ns/far: {domainNames: [svc.global.kubelink], email: x}\n" +
				`ns/x: {zoneRef: far, dnsNames: [x], A: [10.0.0.2]}`,
			"Stale", false, []string{"spec.zoneRef far cannot be used (Invalid)"},
		},
		{
			"qualified in another zone", zone + `ns/x: {zoneRef: root, dnsNames: [x.example.com.], A: [10.0.0.2]}`, "Invalid",
			false, []string{"final dot", "remove the dot"},
		},
		{
			"too many names",
			zone + "zone ns/four: {parentRef: root, domainNames: [a, b, c, d]}\n" +
				`ns/x: {zoneRef: four, dnsNames: [` + many + `], A: [10.0.0.2]}`,
			"Invalid", false, []string{"260 names", "256 is the most"},
		},
		{
			"CNAME and more", `ns/x: {dnsNames: [x.svc.global.kubelink], CNAME: a.example, TXT: [x]}`, "Invalid", false,
			[]string{`spec.CNAME "a.example"`, "remove one"},
		},
		{
			"CNAME to an address", `ns/x: {dnsNames: [x.svc.global.kubelink], CNAME: 10.0.0.1}`, "Invalid", false,
			[]string{`spec.CNAME "10.0.0.1" is an address`},
		},
		{
			"CNAME at an apex", zone + `ns/x: {zoneRef: root, dnsNames: ["@"], CNAME: a.example.}`, "Invalid", false,
			[]string{"spec.CNAME", "name of a zone"},
		},
		{
			"CNAME at what there is", old + `ns/x: {dnsNames: [old.svc.global.kubelink], CNAME: a.example}`, "Stale", false,
			[]string{"older entry ns/old", "alias"},
		},
		{
			"beside a CNAME",
			"ns/old: {dnsNames: [old.svc.global.kubelink], CNAME: a.example}\n" +
				`ns/x: {dnsNames: [old.svc.global.kubelink], A: [10.0.0.2]}`,
			"Stale", false, []string{"older entry ns/old", "alias"},
		},
		{
			"two CNAMEs",
			"ns/old: {dnsNames: [old.svc.global.kubelink], CNAME: a.example}\n" +
				`ns/x: {dnsNames: [old.svc.global.kubelink], CNAME: b.example}`,
			"Stale", false, []string{"older entry ns/old"},
		},
		{
			"circle of aliases",
			"ns/old: {dnsNames: [old.svc.global.kubelink], CNAME: x.svc.global.kubelink}\n" +
				`ns/x: {dnsNames: [x.svc.global.kubelink], CNAME: old.svc.global.kubelink}`,
			"Invalid", false,
			[]string{"spec.CNAME makes x.svc.global.kubelink an alias of itself, by way of old.svc.global.kubelink"},
		},
		{
			"alias of itself", `ns/x: {dnsNames: [x.svc.global.kubelink], CNAME: x.svc.global.kubelink}`, "Invalid", false,
			[]string{"alias of itself"},
		},
		{
			"NS at a wildcard", `ns/x: {dnsNames: ["*.svc.global.kubelink"], NS: [a.example]}`, "Invalid", false,
			[]string{"spec.NS", "wildcard"},
		},
		{
			"NS to an address", `ns/x: {dnsNames: [x.svc.global.kubelink], NS: ["fd00::1"]}`, "Invalid", false,
			[]string{`spec.NS "fd00::1" is an address`},
		},
		{
			"NS beside own records", `ns/x: {dnsNames: [x.svc.global.kubelink], NS: [a.example], TXT: [x]}`, "Invalid", false,
			[]string{"spec.NS delegates x.svc.global.kubelink"},
		},
		{
			"NS and SRV",
			`ns/x: {dnsNames: [x.svc.global.kubelink], NS: [a.example], ` +
				`SRV: {service: a, records: [{protocol: TCP, port: 1, host: a.example}]}}`,
			"Invalid", false, []string{"spec.NS delegates", "spec.SRV"},
		},
		{
			"NS where records are", old + `ns/x: {dnsNames: [old.svc.global.kubelink], NS: [a.example]}`, "Stale", false,
			[]string{"spec.NS", "older entry ns/old"},
		},
		{
			"NS above names",
			"ns/old: {dnsNames: [a.old.svc.global.kubelink], A: [10.0.0.1]}\n" +
				`ns/x: {dnsNames: [old.svc.global.kubelink], NS: [a.example]}`,
			"Stale", false, []string{"spec.NS would delegate old.svc.global.kubelink", "older entry ns/old"},
		},
		{
			"NS above a zone",
			"zone ns/z: {domainNames: [z.old.svc.global.kubelink]}\n" +
				`ns/x: {dnsNames: [old.svc.global.kubelink], NS: [a.example]}`,
			"Stale", false, []string{"HostedZone ns/z"},
		},
		{
			"beside NS",
			"ns/old: {dnsNames: [old.svc.global.kubelink], NS: [a.example]}\n" +
				`ns/x: {dnsNames: [old.svc.global.kubelink], TXT: [x]}`,
			"Stale", false, []string{"older entry ns/old delegates"},
		},
		{
			"below NS",
			"ns/old: {dnsNames: [old.svc.global.kubelink], NS: [a.example]}\n" +
				`ns/x: {dnsNames: [a.b.old.svc.global.kubelink], A: [10.0.0.2]}`,
			"Stale", false, []string{"older entry ns/old delegates old.svc.global.kubelink"},
		},
		{
			"more than glue",
			"ns/old: {dnsNames: [old.svc.global.kubelink], NS: [a.old.svc.global.kubelink]}\n" +
				`ns/x: {dnsNames: [a.old.svc.global.kubelink], A: [10.0.0.2], TXT: [x]}`,
			"Stale", false, []string{"older entry ns/old delegates"},
		},
		{
			"SRV at a wildcard",
			`ns/x: {dnsNames: ["*.svc.global.kubelink"], ` +
				`SRV: {service: a, records: [{protocol: TCP, port: 1, host: a.example}]}}`,
			"Invalid", false, []string{"spec.SRV", "wildcard"},
		},
		{
			"SRV service",
			`ns/x: {dnsNames: [x.svc.global.kubelink], SRV: {service: _, records: [{protocol: TCP, port: 1, host: a.example}]}}`,
			"Invalid", false, []string{`spec.SRV.service "_"`},
		},
		{
			"SRV protocol",
			`ns/x: {dnsNames: [x.svc.global.kubelink], SRV: {service: a, records: [{protocol: a.b, port: 1, host: a.example}]}}`,
			"Invalid", false, []string{`spec.SRV.records.protocol "a.b"`},
		},
		{
			"SRV port",
			`ns/x: {dnsNames: [x.svc.global.kubelink], SRV: {service: a, records: [{protocol: TCP, host: a.example}]}}`,
			"Invalid", false, []string{`spec.SRV.records.port 0`, "from 1 to 65535"},
		},
		{
			"SRV weight",
			`ns/x: {dnsNames: [x.svc.global.kubelink], ` +
				`SRV: {service: a, records: [{protocol: TCP, port: 1, weight: 70000, host: a.example}]}}`,
			"Invalid", false, []string{`spec.SRV.records.weight 70000`},
		},
		{
			"SRV host",
			`ns/x: {dnsNames: [x.svc.global.kubelink], SRV: {service: a, records: [{protocol: TCP, port: 1, host: a b}]}}`,
			"Invalid", false, []string{`spec.SRV.records.host "a b"`},
		},
		{
			"long text", `ns/x: {dnsNames: [x.svc.global.kubelink], TXT: [` + strings.Repeat("x", 5000) + `]}`, "Invalid",
			false, []string{"spec.TXT", "5000 bytes", "4096"},
		},

		{"zone without name", `zone ns/x: {domainNames: []}`, "Invalid", false, []string{"spec.domainNames is empty"}},
		{
			"zone name", `zone ns/x: {domainNames: ["*.svc.global.kubelink"]}`, "Invalid", false,
			[]string{`spec.domainNames "*.svc.global.kubelink"`},
		},
		{
			"zone outside", `zone ns/x: {domainNames: [example.com]}`, "Stale", true,
			[]string{`spec.domainNames "example.com"`},
		},
		{
			"zone with the name of another", zone + `zone ns/x: {domainNames: [svc.global.kubelink]}`, "Stale", false,
			[]string{"already the name of HostedZone ns/root"},
		},
		{
			"zone mail", `zone ns/x: {domainNames: [svc.global.kubelink], email: "a b@example.com"}`, "Invalid", false,
			[]string{`spec.email "a b@example.com"`},
		},
		{
			"zone refresh", `zone ns/x: {domainNames: [svc.global.kubelink], refresh: -1}`, "Invalid", false,
			[]string{`spec.refresh -1`},
		},
		{
			"zone minimum", `zone ns/x: {domainNames: [svc.global.kubelink], minimumTTL: -1}`, "Invalid", false,
			[]string{`spec.minimumTTL -1`},
		},
		{
			"zone without parent", `zone ns/x: {parentRef: nope, domainNames: [x]}`, "Stale", false,
			[]string{`spec.parentRef "nope"`, "create it"},
		},
		{
			"zone with a broken parent",
			"zone ns/p: {domainNames: [svc.global.kubelink], refresh: -1}\n" + `zone ns/x: {parentRef: p, domainNames: [x]}`,
			"Stale", false, []string{"spec.parentRef p cannot be used (Invalid)"},
		},
		{
			"zone with a parent elsewhere",
			"zone ns/p: {domainNames: [example.com]}\n" + `zone ns/x: {parentRef: p, domainNames: [x]}`, "Stale", true,
			[]string{"spec.parentRef p cannot be used (Stale)"},
		},
		{
			"zone of itself", `zone ns/x: {parentRef: x, domainNames: [x]}`, "Invalid", false,
			[]string{`spec.parentRef "x" leads in a circle`},
		},
		{
			"circle of zones",
			"zone ns/a: {parentRef: b, domainNames: [a]}\nzone ns/b: {parentRef: x, domainNames: [b]}\n" +
				`zone ns/x: {parentRef: a, domainNames: [x]}`,
			"Invalid", false, []string{`leads in a circle`},
		},
		{
			"too many zones",
			"zone ns/p: {domainNames: [a.svc.global.kubelink, b.svc.global.kubelink]}\n" +
				`zone ns/x: {parentRef: p, domainNames: [` + many + `]}`,
			"Invalid", false, []string{"130 names", "64 is the most"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			entries, zones := globalObjects(t, c.objects)
			g := Build(entries, zones, []string{served}, home)
			last := c.objects[strings.LastIndex(c.objects, "\n")+1:]
			key, _, _ := strings.Cut(last, ": ")
			key, isZone := strings.CutPrefix(key, "zone ")
			namespace, name, _ := strings.Cut(key, "/")
			r := g.Entries[types.NamespacedName{Namespace: namespace, Name: name}]
			if isZone {
				r = g.HostedZones[types.NamespacedName{Namespace: namespace, Name: name}]
			}
			if r.State != c.state || r.Foreign != c.foreign {
				t.Errorf("%s foreign %v, want %s %v (%s)", r.State, r.Foreign, c.state, c.foreign, r.Message)
			}
			for _, w := range c.says {
				if !strings.Contains(r.Message, w) {
					t.Errorf("message %q does not contain %q", r.Message, w)
				}
			}
			if strings.Contains(r.Message, "\n") {
				t.Errorf("message %q has more than one line", r.Message)
			}
			if strings.HasPrefix(c.objects, "ns/old") && !strings.Contains(c.name, "circle") {
				old := g.Entries[types.NamespacedName{Namespace: "ns", Name: "old"}]
				if old.State != coredns.StateOk || len(old.Names) != 1 {
					t.Errorf("the older entry is %+v", old)
				}
				if alone := Build(entries[:1], nil, []string{served}, home); dump(g) != dump(alone) {
					t.Errorf("there is\n%s instead of\n%s", dump(g), dump(alone))
				}
			}
		})
	}
}

// A zone keeps working where only one of its names does, and so does an entry.
func TestGlobalPartly(t *testing.T) {
	g := build(t, `
		zone ns/z: {domainNames: [z.svc.global.kubelink, example.com]}
		ns/a: {zoneRef: z, dnsNames: [a], A: [10.0.0.1]}
		ns/old: {dnsNames: [b.svc.global.kubelink], CNAME: x.example}
		ns/b: {dnsNames: [b.svc.global.kubelink, c.svc.global.kubelink], A: [10.0.0.2]}`)
	r := g.HostedZones[types.NamespacedName{Namespace: "ns", Name: "z"}]
	if r.State != "Stale" || len(r.Names) != 1 || r.Foreign {
		t.Errorf("%+v", r)
	}
	if r := g.Entries[types.NamespacedName{Namespace: "ns", Name: "a"}]; r.State != "Ok" || len(r.Names) != 1 {
		t.Errorf("%+v", r)
	}
	r = g.Entries[types.NamespacedName{Namespace: "ns", Name: "b"}]
	if r.State != "Stale" || !slices.Equal(r.Names, []string{"c.svc.global.kubelink"}) {
		t.Errorf("%+v", r)
	}
}

func TestGlobalGlueComesFirst(t *testing.T) {
	g := build(t, `
		ns/glue: {dnsNames: [ns.sub.svc.global.kubelink], A: [10.0.0.1]}
		ns/sub: {dnsNames: [sub.svc.global.kubelink], NS: [ns.sub.svc.global.kubelink]}
		ns/same: {dnsNames: [ns2.svc.global.kubelink], NS: [ns2.svc.global.kubelink], A: [10.0.0.2]}`)
	for key, r := range g.Entries {
		if r.State != "Ok" {
			t.Errorf("%s: %+v", key, r)
		}
	}
}

func TestGlobalAnnotations(t *testing.T) {
	entries, _ := globalObjects(t, `
		ns/a: {dnsNames: [a.svc.global.kubelink], A: [10.0.0.1]}
		ns/b: {dnsNames: [a.svc.global.kubelink], A: [10.0.0.1, 10.0.0.2]}
		ns/c: {dnsNames: [c.svc.global.kubelink], A: [10.0.0.1]}
		ns/d: {dnsNames: [d.svc.global.kubelink], A: [10.0.0.1]}`)
	entries[1].Annotations = map[string]string{coredns.AnnotationFollowLinks: "false"}
	entries[2].Annotations = map[string]string{coredns.AnnotationOrder: "fixed", coredns.AnnotationFollowLinks: "true"}
	entries[3].Annotations = map[string]string{coredns.AnnotationOrder: "fix"}
	g := Build(entries, nil, []string{served}, home)
	o := g.Zones[0].Owners
	if !o[0].Addresses[0].AnyLink || !o[0].Addresses[1].AnyLink || o[0].Fixed || o[1].Addresses[0].AnyLink ||
		!o[1].Fixed || o[2].Fixed {
		t.Errorf("%+v", o)
	}
	r := g.Entries[types.NamespacedName{Namespace: "ns", Name: "d"}]
	want := `annotation coredns.mandelsoft.org/order "fix" has no effect: it is "nearest" or "fixed"`
	if r.State != "Ok" || r.Message != want {
		t.Errorf("%+v", r)
	}
}

// TestAnnotationNotes has a row for each value of an annotation: the note that says that it has no effect.
func TestAnnotationNotes(t *testing.T) {
	const follow, order = coredns.AnnotationFollowLinks, coredns.AnnotationOrder
	for _, c := range []struct{ name, value, want string }{
		{follow, "true", ""}, {follow, "false", ""}, {order, "nearest", ""}, {order, "fixed", ""}, {"other", "x", ""},
		{follow, "no", `annotation ` + follow + ` "no" has no effect: it is "true" or "false"`},
		{follow, "", `annotation ` + follow + ` "" has no effect: it is "true" or "false"`},
		{order, "Fixed", `annotation ` + order + ` "Fixed" has no effect: it is "nearest" or "fixed"`},
	} {
		entries, _ := globalObjects(t, "ns/x: {dnsNames: [x.svc.global.kubelink], A: [10.0.0.1]}")
		entries[0].Annotations = map[string]string{c.name: c.value}
		r := Build(entries, nil, []string{served}, home).Entries[types.NamespacedName{Namespace: "ns", Name: "x"}]
		if r.State != "Ok" || r.Message != c.want {
			t.Errorf("%s %q: %+v", c.name, c.value, r)
		}
		// A problem is more than a note.
		entries[0].Spec.DNSNames = append(entries[0].Spec.DNSNames, "x.example.com")
		r = Build(entries, nil, []string{served}, home).Entries[types.NamespacedName{Namespace: "ns", Name: "x"}]
		if r.State != "Stale" || !strings.HasPrefix(r.Message, "spec.dnsNames") {
			t.Errorf("%s %q: %+v", c.name, c.value, r)
		}
	}
}

// Names of two meshes, one of them inside of the other, and objects that are about to go.
func TestGlobalZones(t *testing.T) {
	entries, zones := globalObjects(t, `
		zone ns/z: {domainNames: [z.svc.global.a.example, z.svc.global.b.example]}
		ns/both: {zoneRef: z, dnsNames: [x], A: [10.0.0.1]}
		ns/inner: {dnsNames: [x.svc.global.svc.global.a.example], A: [10.0.0.1]}
		ns/gone: {dnsNames: [gone.svc.global.a.example], A: [10.0.0.1]}`)
	now := metav1.Unix(5000, 0)
	entries[2].DeletionTimestamp = &now
	g := Build(entries, zones, []string{
		"svc.global.b.example.", "svc.global.a.example.", "svc.global.svc.global.a.example.",
	}, home)
	want := `svc.global.a.example. SOA  7200 1800 86400 5
z.svc.global.a.example. SOA  7200 1800 86400 5
x.z.svc.global.a.example. 10.0.0.1
svc.global.b.example. SOA  7200 1800 86400 5
z.svc.global.b.example. SOA  7200 1800 86400 5
x.z.svc.global.b.example. 10.0.0.1
svc.global.svc.global.a.example. SOA  7200 1800 86400 5
x.svc.global.svc.global.a.example. 10.0.0.1
`
	if got := dump(g); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if _, ok := g.Entries[types.NamespacedName{Namespace: "ns", Name: "gone"}]; ok {
		t.Error("there is a report of what is about to go")
	}
}

// Equal input gives equal output in any order of the objects.
func TestGlobalsPure(t *testing.T) {
	entries, zones := globalObjects(t, `
		zone ns/root: {domainNames: [svc.global.kubelink]}
		zone ns/team: {parentRef: root, domainNames: [team, squad]}
		zone ns/late: {parentRef: root, domainNames: [team]}
		ns/a: {zoneRef: team, dnsNames: [a, b], A: [10.0.0.1], AAAA: ["fd00::1"]}
		ns/b: {zoneRef: late, dnsNames: [a], CNAME: b}
		ns/c: {zoneRef: team, dnsNames: [a], CNAME: b}
		ns/d: {zoneRef: root, dnsNames: [d, e], CNAME: d}
		ns/e: {zoneRef: root, dnsNames: [team], NS: [ns.team]}`)
	want := Build(entries, zones, []string{served}, home)
	for i := range entries {
		rotated := append(slices.Clone(zones[i%3:]), zones[:i%3]...)
		got := Build(append(slices.Clone(entries[i:]), entries[:i]...), rotated, []string{served}, home)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("rotated by %d:\n%+v\n%+v", i, got, want)
		}
	}
}

// many makes entries with an address each, as a benchmark's users have them.
func many(n int) (entries []coredns.CoreDNSEntry) {
	for i := range n {
		e := coredns.CoreDNSEntry{ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: fmt.Sprintf("entry-%d", i), CreationTimestamp: metav1.Unix(int64(i), 0),
		}}
		e.Spec.DNSNames = []coredns.DNSName{coredns.DNSName(fmt.Sprintf("name-%d.svc.global.kubelink", i))}
		e.Spec.A = []coredns.IPv4Address{coredns.IPv4Address(fmt.Sprintf("100.64.%d.%d", i>>8&255, i&255))}
		entries = append(entries, e)
	}
	return entries
}

// What one name can hold is bounded.
func TestGlobalBounds(t *testing.T) {
	entries := many(2000)
	for i := range entries {
		entries[i].Spec.DNSNames = []coredns.DNSName{"same.svc.global.kubelink"}
	}
	g := Build(entries, nil, []string{served}, home)
	if n := len(g.Zones[0].Owners[0].Addresses); n != maxRecords {
		t.Errorf("%d addresses", n)
	}
	r := g.Entries[types.NamespacedName{Namespace: "ns", Name: "entry-1999"}]
	if r.State != "Stale" || !strings.Contains(r.Message, "256 records") {
		t.Errorf("%+v", r)
	}
}

func BenchmarkBuild(b *testing.B) {
	entries := many(10_000)
	b.ReportAllocs()
	for b.Loop() {
		if g := Build(entries, nil, []string{served}, home); len(g.Zones[0].Owners) != 10_000 {
			b.Fatal(len(g.Zones[0].Owners))
		}
	}
}
