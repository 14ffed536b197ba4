package zone

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/records"
)

// globalNames reads records in the form of zone files. A name with a SOA record is an apex; addresses
// of names in fixed keep their order, and those in anyLink do not follow links.
func globalNames(t testing.TB, text string, fixed, anyLink string) records.Zone {
	t.Helper()
	names := records.Zone{Name: "svc.global.kubelink."}
	var order []string
	owners := map[string]*records.Owner{}
	parser := dns.NewZoneParser(strings.NewReader(text), "svc.global.kubelink.", "")
	parser.SetDefaultTTL(5)
	for rr, ok := parser.Next(); ok; rr, ok = parser.Next() {
		name := rr.Header().Name
		if soa, ok := rr.(*dns.SOA); ok {
			names.Apexes = append(names.Apexes, records.Apex{Name: name, Mbox: soa.Mbox, Refresh: soa.Refresh, Retry: soa.Retry, Expire: soa.Expire, Minimum: soa.Minttl})
			continue
		}
		if owners[name] == nil {
			owners[name] = &records.Owner{Name: name, Fixed: fixed == name}
			order = append(order, name)
		}
		o := owners[name]
		switch rr := rr.(type) {
		case *dns.A:
			a, _ := netip.AddrFromSlice(rr.A)
			o.Addresses = append(o.Addresses, records.Address{Addr: a.Unmap(), AnyLink: anyLink == name})
		case *dns.AAAA:
			a, _ := netip.AddrFromSlice(rr.AAAA)
			o.Addresses = append(o.Addresses, records.Address{Addr: a, AnyLink: anyLink == name})
		case *dns.CNAME:
			o.CNAME = rr.Target
		case *dns.TXT:
			o.TXT = append(o.TXT, strings.Join(rr.Txt, ""))
		case *dns.NS:
			o.NS = append(o.NS, rr.Ns)
		case *dns.SRV:
			o.SRV = append(o.SRV, records.SRV{Priority: rr.Priority, Weight: rr.Weight, Port: rr.Port, Target: rr.Target})
		}
	}
	if err := parser.Err(); err != nil {
		t.Fatal(err)
	}
	for _, name := range order {
		names.Owners = append(names.Owners, *owners[name])
	}
	return names
}

// globalTable serves the names in a table of one mesh domain.
func globalTable(t testing.TB, names records.Zone, state links) *Table {
	t.Helper()
	g := NewGlobal("kubelink.", names, 7, options.NSAddresses, nil)
	opts := options
	opts.Globals = map[string]*Global{names.Name: g}
	for n := byte(1); n <= 3; n++ {
		link := fmt.Sprintf("k%d", n)
		opts.Networks = append(opts.Networks, Network{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, n}), 16), link},
			Network{netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0, 0, n}), 32), link})
	}
	return New(nil, []mesh.Zone{{Domain: "kubelink.", Global: mesh.GlobalZone{Name: names.Name}}}, func(link string) Status { return state[link] }, opts)
}

const names = `
@ SOA ns.dns.kubelink. hostmaster.kubelink. 7 7200 1800 86400 5
web A 10.0.0.1
web AAAA fd00::1
web TXT "hello world"
alias CNAME web
alias2 CNAME alias
lost CNAME nobody
empty CNAME deep
out CNAME www.example.com.
loop1 CNAME loop2
loop2 CNAME loop1
a.deep A 10.0.0.2
*.wild A 10.0.0.3
*.wild TXT any
x.wild A 10.0.0.4
sub.y.wild A 10.0.0.5
*.alias CNAME web
*.self CNAME a.self
_ldap._tcp.dir SRV 0 5 389 web
_ldap._tcp.dir SRV 1 5 389 web
_ldap._tcp.dir SRV 2 5 389 x.wild
_ldap._tcp.dir SRV 3 5 389 y.example.com.
_ldap._tcp.dir SRV 4 5 389 alias
_any._tcp.dir SRV 0 0 1 some.wild
sub NS ns1.sub
sub NS ns2
sub NS ns.example.com.
ns1.sub A 10.0.0.6
ns2 A 10.0.0.7
ns2 AAAA fd00::7
insub CNAME www.sub
team SOA ns.dns.kubelink. a\.b.example.com. 7 1 2 3 3600
team A 10.0.0.8
team NS ns2
db.team A 10.0.0.9
up.team CNAME web
short SOA ns.dns.kubelink. hostmaster.kubelink. 7 1 2 3 0
`

func TestGlobal(t *testing.T) {
	table := globalTable(t, globalNames(t, names, "", ""), nil)
	defer table.Close()
	const (
		z     = "svc.global.kubelink."
		soa   = z + " 5 IN SOA ns.dns.kubelink. hostmaster.kubelink. 7 7200 1800 86400 5"
		team  = "team." + z + ` 5 IN SOA ns.dns.kubelink. a\.b.example.com. 7 1 2 3 3600`
		short = "short." + z + " 0 IN SOA ns.dns.kubelink. hostmaster.kubelink. 7 1 2 3 0"
		mesh  = "kubelink. 5 IN SOA ns.dns.kubelink. hostmaster.kubelink. 7 7200 1800 86400 5"
		glue  = "ns.dns.kubelink. 5 IN A 100.64.0.11 ns.dns.kubelink. 5 IN AAAA fd00::11"
		ns2   = "ns2." + z + " 5 IN A 10.0.0.7 ns2." + z + " 5 IN AAAA fd00::7"
		web   = "web." + z + " 5 IN A 10.0.0.1"
		web6  = "web." + z + " 5 IN AAAA fd00::1"
		none  = "/ " + soa + " / /"
		refer = "/ sub." + z + " 5 IN NS ns1.sub." + z + " sub." + z + " 5 IN NS ns2." + z + " sub." + z + " 5 IN NS ns.example.com. / ns1.sub." + z + " 5 IN A 10.0.0.6 " + ns2 + " /"
	)
	nx, ref := dns.RcodeNameError, -1
	for _, c := range []struct {
		name  string // relative to the zone
		qtype uint16
		rcode int // ref: NOERROR without authority
		want  string
	}{
		// The zone itself.
		{"", dns.TypeSOA, 0, soa + " / / /"},
		{"", dns.TypeNS, 0, z + " 5 IN NS ns.dns.kubelink. / / " + glue + " /"},
		{"", dns.TypeA, 0, none},
		{"", dns.TypeANY, 0, soa + " " + z + " 5 IN NS ns.dns.kubelink. / / /"},
		{"", dns.TypeDS, 0, "/ " + mesh + " / /"},
		{"nobody.", dns.TypeA, nx, none},
		{"x.y.nobody.", dns.TypeTXT, nx, none},

		// Records.
		{"web.", dns.TypeA, 0, web + " / / /"},
		{"WeB.", dns.TypeA, 0, "WeB." + z + " 5 IN A 10.0.0.1 / / /"},
		{"web.", dns.TypeAAAA, 0, web6 + " / / /"},
		{"web.", dns.TypeTXT, 0, "web." + z + ` 5 IN TXT "hello world" / / /`},
		{"web.", dns.TypeMX, 0, none},
		{"web.", dns.TypeSOA, 0, none},
		{"web.", dns.TypeNS, 0, none},
		{"web.", dns.TypeDS, 0, none},
		{"web.", dns.TypeANY, 0, web + " " + web6 + " web." + z + ` 5 IN TXT "hello world" / / /`},
		{"x.web.", dns.TypeA, nx, none},
		{"deep.", dns.TypeA, 0, none}, // empty non-terminal
		{"b.deep.", dns.TypeA, nx, none},
		{`a\.deep.`, dns.TypeA, nx, none},

		// Aliases.
		{"alias.", dns.TypeA, 0, "alias." + z + " 5 IN CNAME web." + z + " " + web + " / / /"},
		{"ALIAS2.", dns.TypeAAAA, 0, "ALIAS2." + z + " 5 IN CNAME alias." + z + " alias." + z + " 5 IN CNAME web." + z + " " + web6 + " / / /"},
		{"alias.", dns.TypeCNAME, 0, "alias." + z + " 5 IN CNAME web." + z + " / / /"},
		{"alias.", dns.TypeANY, 0, "alias." + z + " 5 IN CNAME web." + z + " / / /"},
		{"alias.", dns.TypeMX, 0, "alias." + z + " 5 IN CNAME web." + z + " / " + soa + " / /"},
		{"lost.", dns.TypeA, nx, "lost." + z + " 5 IN CNAME nobody." + z + " / " + soa + " / /"},
		{"empty.", dns.TypeA, 0, "empty." + z + " 5 IN CNAME deep." + z + " / " + soa + " / /"},
		{"out.", dns.TypeA, 0, "out." + z + " 5 IN CNAME www.example.com. / / /"},
		{"up.team.", dns.TypeA, 0, "up.team." + z + " 5 IN CNAME web." + z + " " + web + " / / /"},

		// Wildcards (RFC 4592): names that exist, also between, are not covered, nor what is below them.
		{"a.wild.", dns.TypeA, 0, "a.wild." + z + " 5 IN A 10.0.0.3 / / /"},
		{"A.b.Wild.", dns.TypeA, 0, "A.b.Wild." + z + " 5 IN A 10.0.0.3 / / /"},
		{"*.wild.", dns.TypeA, 0, "*.wild." + z + " 5 IN A 10.0.0.3 / / /"},
		{"a.wild.", dns.TypeTXT, 0, "a.wild." + z + ` 5 IN TXT "any" / / /`},
		{"a.wild.", dns.TypeMX, 0, none},
		{"wild.", dns.TypeA, 0, none},
		{"x.wild.", dns.TypeA, 0, "x.wild." + z + " 5 IN A 10.0.0.4 / / /"},
		{"x.wild.", dns.TypeTXT, 0, none},
		{"a.x.wild.", dns.TypeA, nx, none},
		{"y.wild.", dns.TypeA, 0, none},
		{"a.y.wild.", dns.TypeA, nx, none},
		{"a.*.wild.", dns.TypeA, nx, none},
		{"x.alias.", dns.TypeA, 0, "x.alias." + z + " 5 IN CNAME web." + z + " " + web + " / / /"},

		// Services.
		{"_ldap._tcp.dir.", dns.TypeSRV, 0, srv("0", "web") + " " + srv("1", "web") + " " + srv("2", "x.wild") + " _ldap._tcp.dir." + z + " 5 IN SRV 3 5 389 y.example.com. " + srv("4", "alias") + " / / " + web + " " + web6 + " x.wild." + z + " 5 IN A 10.0.0.4 /"},
		{"_any._tcp.dir.", dns.TypeSRV, 0, "_any._tcp.dir." + z + " 5 IN SRV 0 0 1 some.wild." + z + " / / some.wild." + z + " 5 IN A 10.0.0.3 /"},
		{"_LDAP._tcp.dir.", dns.TypeA, 0, none},
		{"_tcp.dir.", dns.TypeSRV, 0, none},
		{"dir.", dns.TypeSRV, 0, none},

		// Delegation.
		{"sub.", dns.TypeA, ref, refer},
		{"sub.", dns.TypeNS, ref, refer},
		{"x.y.SUB.", dns.TypeTXT, ref, refer},
		{"ns1.sub.", dns.TypeA, ref, refer},
		{"sub.", dns.TypeDS, 0, none},
		{"x.sub.", dns.TypeDS, ref, refer},
		{"insub.", dns.TypeA, 0, "insub." + z + " 5 IN CNAME www.sub." + z + " " + refer},

		// Zones within.
		{"team.", dns.TypeSOA, 0, team + " / / /"},
		{"TEAM.", dns.TypeA, 0, "TEAM." + z + " 5 IN A 10.0.0.8 / / /"},
		{"team.", dns.TypeNS, 0, "team." + z + " 5 IN NS ns.dns.kubelink. team." + z + " 5 IN NS ns2." + z + " / / " + glue + " " + ns2 + " /"},
		{"team.", dns.TypeDS, 0, none},
		{"db.team.", dns.TypeA, 0, "db.team." + z + " 5 IN A 10.0.0.9 / / /"},
		{"db.team.", dns.TypeTXT, 0, "/ " + team + " / /"},
		{"nobody.team.", dns.TypeA, nx, "/ " + team + " / /"},
		{"nobody.short.", dns.TypeA, nx, "/ " + short + " / /"},
	} {
		for _, tcp := range []bool{false, true} {
			m, err := queryTable(t, table, c.name+z, c.qtype, tcp, 1232)
			rcode, aa := c.rcode, true
			if rcode == ref {
				rcode, aa = 0, false
			}
			if err != nil || m.Rcode != rcode || m.Authoritative != aa || sections(m) != c.want {
				t.Errorf("%s %s: %v %s aa %v\n got %s\nwant %s", c.name, dns.TypeToString[c.qtype], err, dns.RcodeToString[m.Rcode], m.Authoritative, sections(m), c.want)
			}
		}
	}
	for _, name := range []string{"loop1.", "LOOP2.", "a.self.", "b.self."} {
		m, _ := queryTable(t, table, name+z, dns.TypeA, false, 1232)
		if code, text := ede(m); m.Rcode != dns.RcodeServerFailure || code != dns.ExtendedErrorCodeInvalidData || !strings.Contains(text, strings.ToLower(name)) {
			t.Errorf("%s: %v", name, m)
		}
	}
	if m, ok := table.Match("x." + z); !ok || m.Zone() != z || m.Link() != "" || m.Upstream().IsValid() {
		t.Errorf("%+v", m)
	}
	if m, _ := queryTable(t, table, "global.kubelink.", dns.TypeA, false, 0); m.Rcode != 0 || sections(m) != "/ "+mesh+" / /" {
		t.Errorf("%v", m)
	}
}

func srv(priority, host string) string {
	return "_ldap._tcp.dir.svc.global.kubelink. 5 IN SRV " + priority + " 5 389 " + host + ".svc.global.kubelink."
}

// links is a mesh of three other clusters: addresses 10.<n>.x.x and fd00:<n>:: lie behind link n.
type links map[string]Status

func TestGlobalFollowsLinks(t *testing.T) {
	const records = `
@ SOA ns.dns.kubelink. hostmaster.kubelink. 7 7200 1800 86400 5
one A 10.1.0.1
two A 10.1.0.1
two A 10.2.0.1
dual A 10.1.0.1
dual AAAA fd00:2::1
dual TXT x
far A 10.1.0.1
far A 10.3.0.1
order A 10.1.0.1
order A 10.2.0.1
order A 10.3.0.1
order A 10.0.0.1
fixed A 10.1.0.1
fixed A 10.2.0.1
fixed A 10.0.0.1
any A 10.1.0.1
any A 10.2.0.1
alias CNAME one
*.w A 10.1.0.1
_a._tcp.s SRV 0 0 1 one
_a._tcp.s SRV 0 0 2 two
_b._tcp.s SRV 0 0 1 one
_b._tcp.s SRV 0 0 2 far
_c._tcp.s SRV 0 0 1 alias
sub NS one
sub NS two
dead NS one
dead NS far
any2 A 10.1.0.1
`
	state := links{
		"k1": {State: "Down", Reason: "dial k1.example:80: connection refused"},
		"k2": {Usable: true, State: "Up", RTT: 20 * time.Millisecond},
		"k3": {State: "Idle"},
	}
	table := globalTable(t, globalNames(t, records, "fixed.svc.global.kubelink.", "any.svc.global.kubelink."), state)
	defer table.Close()
	const (
		z    = "svc.global.kubelink."
		down = "link k1 is Down: dial k1.example:80: connection refused"
	)
	for _, c := range []struct {
		name  string
		qtype uint16
		rcode int
		data  string // of answers and additional records, or else of referrals; in order where fixed
		says  string
	}{
		{"one", dns.TypeA, dns.RcodeServerFailure, "", down},
		{"ONE", dns.TypeANY, dns.RcodeServerFailure, "", down},
		{"one", dns.TypeAAAA, 0, "", ""},
		{"one", dns.TypeTXT, 0, "", ""},
		{"two", dns.TypeA, 0, "10.2.0.1", ""},
		{"dual", dns.TypeA, 0, "", down}, // the other one is usable: no failure, lest the client gives up
		{"dual", dns.TypeAAAA, 0, "fd00:2::1", ""},
		{"dual", dns.TypeTXT, 0, "x", ""},
		{"dual", dns.TypeANY, 0, "fd00:2::1 x", down},
		{"far", dns.TypeA, dns.RcodeServerFailure, "", down + "; link k3 is Idle"},
		{"order", dns.TypeA, 0, "10.0.0.1 10.2.0.1", ""},
		{"fixed", dns.TypeA, 0, "10.2.0.1 10.0.0.1", ""},
		{"any", dns.TypeA, 0, "10.2.0.1 10.1.0.1", ""},
		{"any2", dns.TypeA, dns.RcodeServerFailure, "", down},
		{"alias", dns.TypeA, dns.RcodeServerFailure, "", down},
		{"alias", dns.TypeCNAME, 0, "one", ""},
		{"x.w", dns.TypeA, dns.RcodeServerFailure, "", down},
		{"_a._tcp.s", dns.TypeSRV, 0, "two 10.2.0.1", ""},
		{"_b._tcp.s", dns.TypeSRV, dns.RcodeServerFailure, "", down + "; link k3 is Idle"},
		{"_c._tcp.s", dns.TypeSRV, 0, "alias", ""},
		{"x.sub", dns.TypeA, 0, "two 10.2.0.1", ""},
		{"x.dead", dns.TypeA, dns.RcodeServerFailure, "", down + "; link k3 is Idle"},
	} {
		m, err := queryTable(t, table, c.name+"."+z, c.qtype, false, 1232)
		var data []string
		for _, rr := range slices.Concat(m.Answer, m.Ns, m.Extra) {
			switch rr := rr.(type) {
			case *dns.A:
				data = append(data, rr.A.String())
			case *dns.AAAA:
				data = append(data, rr.AAAA.String())
			case *dns.TXT:
				data = append(data, rr.Txt...)
			case *dns.CNAME:
				data = append(data, strings.TrimSuffix(rr.Target, "."+z))
			case *dns.SRV:
				data = append(data, strings.TrimSuffix(rr.Target, "."+z))
			case *dns.NS:
				data = append(data, strings.TrimSuffix(rr.Ns, "."+z))
			}
		}
		if _, text := ede(m); err != nil || m.Rcode != c.rcode || strings.Join(data, " ") != c.data || text != c.says {
			t.Errorf("%s %s: %v %s %q %q, want %q %q", c.name, dns.TypeToString[c.qtype], err, dns.RcodeToString[m.Rcode], data, text, c.data, c.says)
		}
	}
}

// The nearest address is the first, and equal ones take turns.
func TestGlobalOrder(t *testing.T) {
	const records = `
@ SOA ns.dns.kubelink. hostmaster.kubelink. 7 7200 1800 86400 5
x A 10.1.0.1
x A 10.2.0.1
x A 10.2.0.2
x A 10.3.0.1
x A 10.0.0.1
x A 10.0.0.2
`
	state := links{
		"k1": {Usable: true, RTT: 30 * time.Millisecond},
		"k2": {Usable: true, RTT: 20 * time.Millisecond},
		"k3": {Usable: true}, // not known yet
	}
	table := globalTable(t, globalNames(t, records, "", ""), state)
	defer table.Close()
	seen := map[string]int{}
	for id := range uint16(600) {
		req := new(dns.Msg)
		req.SetQuestion("x.svc.global.kubelink.", dns.TypeA)
		req.Id = id
		m, _ := exchangeQuery(t, table, req, false)
		var s []string
		for _, rr := range m.Answer {
			s = append(s, strings.TrimPrefix(rr.(*dns.A).A.String(), "10."))
		}
		seen[strings.Join(s, " ")]++
	}
	for order := range seen {
		f := strings.Fields(order)
		local, near := f[:2], f[2:4]
		if len(f) != 6 || !slices.Contains(local, "0.0.1") || !slices.Contains(local, "0.0.2") || !slices.Contains(near, "2.0.1") || !slices.Contains(near, "2.0.2") || f[4] != "1.0.1" || f[5] != "3.0.1" {
			t.Errorf("order %s", order)
		}
	}
	if len(seen) < 2 {
		t.Errorf("always %v", seen)
	}
}

func TestGlobalText(t *testing.T) {
	texts := []string{"", `back\slash "quoted" \065`, strings.Repeat("x", 255), strings.Repeat("y", 256), strings.Repeat(`\`, 300), "ü\x00\xff"}
	n := records.Zone{Name: "svc.global.kubelink.", Apexes: []records.Apex{{Name: "svc.global.kubelink."}}}
	for i, text := range texts {
		n.Owners = append(n.Owners, records.Owner{Name: fmt.Sprintf("t%d.svc.global.kubelink.", i), TXT: []string{text}})
	}
	table := globalTable(t, n, nil)
	defer table.Close()
	for i, text := range texts {
		m, err := queryTable(t, table, fmt.Sprintf("t%d.svc.global.kubelink.", i), dns.TypeTXT, true, 0)
		if err != nil || len(m.Answer) != 1 {
			t.Fatal(m, err)
		}
		wire := make([]byte, 1000)
		end, err := dns.PackRR(m.Answer[0], wire, 0, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		// The data is a sequence of strings, each after its length.
		data, got := wire[wireLength(m.Answer[0].Header().Name)+10:end], ""
		for len(data) > 0 {
			n := 1 + int(data[0])
			got, data = got+string(data[1:n]), data[n:]
		}
		if got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}

// delegated has a zone whose name server is in it.
const delegated = names + `
team NS ns.team
ns.team A 10.0.0.10
ns.team AAAA fd00::10
`

func TestGlobalTransfer(t *testing.T) {
	table := globalTable(t, globalNames(t, delegated, "", ""), links{})
	defer table.Close()
	const z = "svc.global.kubelink."
	for _, c := range []struct {
		zone   string
		serial uint32
		n      int // records, or -1: no such zone
	}{
		{z, 0, 39}, {z, 6, 39}, {z, 7, 1}, {z, 8, 1}, {z, 1<<32 - 1, 39}, {"team." + z, 0, 10}, {"short." + z, 0, 3},
		{"web." + z, 0, -1}, {"nobody." + z, 0, -1}, {"kubelink.", 0, -1}, {"example.com.", 0, -1},
	} {
		rrs, ok := table.Transfer(c.zone, c.serial)
		if ok != (c.n >= 0) || ok && len(rrs) != c.n {
			t.Errorf("%s %d: %d records, %v", c.zone, c.serial, len(rrs), ok)
			for _, rr := range rrs {
				t.Log(rr)
			}
			continue
		}
		for i, rr := range rrs {
			if _, soa := rr.(*dns.SOA); soa != (i == 0 || i == len(rrs)-1) || soa && rr.Header().Name != c.zone || !dns.IsSubDomain(c.zone, rr.Header().Name) {
				t.Errorf("%s: %v", c.zone, rr)
			}
		}
	}
	var names, glue []string
	rrs, _ := table.Transfer(z, 0)
	for _, rr := range rrs {
		if ns, ok := rr.(*dns.NS); ok && ns.Hdr.Name != z {
			names = append(names, strings.TrimSuffix(ns.Hdr.Name, "."+z))
		}
		if rr.Header().Name == "ns.team."+z {
			glue = append(glue, dns.Field(rr, 1))
		}
	}
	if slices.Sort(names); !slices.Equal(names, []string{"short", "sub", "sub", "sub", "team", "team", "team"}) {
		t.Errorf("delegated %q", names)
	}
	if fmt.Sprint(glue) != "[10.0.0.10 fd00::10]" {
		t.Errorf("glue %v", glue)
	}
}

// A zone gets a new serial when what is transferred of it has changed, and not with other zones.
func TestGlobalSerials(t *testing.T) {
	const z = "svc.global.kubelink."
	before := NewGlobal("kubelink.", globalNames(t, delegated, "", ""), 7, options.NSAddresses, nil)
	for _, c := range []struct {
		what, from, to string
		changed        string // zones
	}{
		{"nothing", "", "", ""},
		{"address", "web A 10.0.0.1", "web A 10.0.0.99", z},
		{"address in a zone", "db.team A 10.0.0.9", "db.team A 10.0.0.99", "team." + z},
		{"address at the top of a zone", "team A 10.0.0.8", "team A 10.0.0.99", "team." + z},
		{"one more", "team A 10.0.0.8", "team A 10.0.0.8\nteam A 10.0.0.99", "team." + z},
		{"other type", "db.team A 10.0.0.9", "db.team TXT 10.0.0.9", "team." + z},
		{"text", "hello world", "hello", z},
		{"alias", "alias CNAME web", "alias CNAME a.deep", z},
		{"SRV", "_ldap._tcp.dir SRV 0 5", "_ldap._tcp.dir SRV 0 6", z},
		{"spelling", "out CNAME www.example.com.", "out CNAME WWW.example.com.", ""},
		{"name server of a zone", "team NS ns2", "team NS insub", z + " team." + z},
		{"name server of a delegation", "sub NS ns.example.com.", "sub NS ns.example.org.", z},
		{"new name", "web A", "new A 10.0.0.99\nweb A", z},
		{"new name in a zone", "web A", "new.team A 10.0.0.99\nweb A", "team." + z},
		{"name is gone", "*.self CNAME a.self", "", z},
		{"name is gone from a zone", "db.team A 10.0.0.9", "", "team." + z},
		{"address of a zone's name server", "ns.team A 10.0.0.10", "ns.team A 10.0.0.99", z + " team." + z},
		{"minimum of a zone", "7 1 2 3 3600", "7 1 2 3 60", "team." + z},
		{"zone within", "db.team A", "db.team SOA ns.dns.kubelink. hostmaster.kubelink. 7 1 2 3 0\ndb.team A", "db.team." + z + " team." + z},
		{"zone is gone", "short SOA ns.dns.kubelink. hostmaster.kubelink. 7 1 2 3 0", "", z},
		{"name instead of a zone", "short SOA ns.dns.kubelink. hostmaster.kubelink. 7 1 2 3 0", "short A 10.0.0.99", z},
		{"zone instead of a name", "a.deep A", "deep SOA ns.dns.kubelink. hostmaster.kubelink. 7 1 2 3 0\na.deep A", "deep." + z + " " + z},
	} {
		text := strings.Replace(delegated, c.from, c.to, 1)
		if text == delegated && c.changed != "" {
			t.Fatal("no such names:", c.from)
		}
		now := NewGlobal("kubelink.", globalNames(t, text, "", ""), 8, options.NSAddresses, before)
		var changed []string
		for _, o := range now.sorted {
			if !o.apex {
				continue
			}
			serial := o.zone.soa[0].(*dns.SOA).Serial
			if serial == 8 {
				changed = append(changed, o.name)
			}
			// Transferred is what belongs to the serial.
			theirs, known := before.Transfer(o.name, 0)
			rrs, _ := now.Transfer(o.name, 0)
			same := slices.EqualFunc(theirs, rrs, func(a, b dns.RR) bool { return strings.EqualFold(a.String(), b.String()) })
			if same != (serial == 7) || serial == 7 && !known {
				t.Errorf("%s: serial %d, same %v:\n%v\n%v", c.what, serial, same, theirs, rrs)
			}
		}
		if slices.Sort(changed); strings.Join(changed, " ") != c.changed {
			t.Errorf("%s: changed %q, want %q", c.what, changed, c.changed)
		}
	}
	// One that has changed again before there is another serial gets it with the next one.
	g := before
	for n, c := range []struct {
		text         string
		serial, want uint32
		early        bool
	}{
		{"a A 10.0.0.1", 8, 8, false}, {"a A 10.0.0.2", 8, 8, true}, {"a A 10.0.0.2", 7, 8, true}, {"a A 10.0.0.2", 9, 9, false}, {"a A 10.0.0.2", 10, 9, false},
		{"a A 10.0.0.3", 1<<31 + 8, 1<<31 + 8, false}, {"a A 10.0.0.4", 1<<32 - 1, 1<<32 - 1, false}, {"a A 10.0.0.5", 1, 1, false}, {"a A 10.0.0.6", 1<<32 - 1, 1, true},
	} {
		g = NewGlobal("kubelink.", globalNames(t, strings.Replace(delegated, "db.team A 10.0.0.9", strings.Replace(c.text, "a ", "a.team ", 1), 1), "", ""), c.serial, options.NSAddresses, g)
		serial := g.owners["team."+z].zone.soa[0].(*dns.SOA).Serial
		if serial != c.want || g.SerialPending() != c.early || g.owners[z].zone.soa[0].(*dns.SOA).Serial != 7 {
			t.Errorf("%d: serial %d, early %v", n, serial, g.SerialPending())
		}
	}
	if g := NewGlobal("kubelink.", globalNames(t, delegated, "", ""), 8, options.NSAddresses[:1], NoGlobal(z, "not known")); g.owners[z].zone.soa[0].(*dns.SOA).Serial != 8 {
		t.Error("a zone has the serial of one that was not known")
	}
}

func TestGlobalNotKnown(t *testing.T) {
	z := []mesh.Zone{{Domain: "kubelink.", Global: mesh.GlobalZone{Name: "svc.global.kubelink."}}}
	table := New(nil, z, up, Options{Serial: 1})
	m, _ := queryTable(t, table, "web.svc.global.kubelink.", dns.TypeA, false, 1232)
	if code, text := ede(m); m.Rcode != dns.RcodeServerFailure || code != dns.ExtendedErrorCodeNotReady || text != "the names of svc.global.kubelink. are not known yet" {
		t.Errorf("%v", m)
	}
	if _, ok := table.Transfer("svc.global.kubelink.", 0); ok {
		t.Error("a zone is transferred that is not known")
	}
	g := NoGlobal("svc.global.kubelink.", "no permission")
	next := New(table, z, up, Options{Serial: 1, Globals: map[string]*Global{"svc.global.kubelink.": g}})
	m, _ = queryTable(t, next, "web.svc.global.kubelink.", dns.TypeA, false, 1232)
	if _, text := ede(m); text != "no permission" || next == table {
		t.Errorf("%v", m)
	}
	if New(next, z, up, Options{Globals: map[string]*Global{"svc.global.kubelink.": g}}) != next {
		t.Error("another table of the same things")
	}
	// A zone that is asked of another cluster is not ours to deny.
	z = []mesh.Zone{{Domain: "kubelink.", Global: mesh.GlobalZone{Name: "svc.global.kubelink.", Upstream: netip.MustParseAddrPort("100.64.16.11:53")}}}
	if table := New(next, z, up, Options{}); table == next || table.nodes["svc.global.kubelink."].global != nil {
		t.Error("served here, too")
	}
}

// manyNames makes names with an address each.
func manyNames(n int) records.Zone {
	names := records.Zone{Name: "svc.global.kubelink.", Apexes: []records.Apex{{Name: "svc.global.kubelink.", Minimum: 5}}}
	for i := range n {
		names.Owners = append(names.Owners, records.Owner{
			Name:      fmt.Sprintf("name-%d.svc.global.kubelink.", i),
			Addresses: []records.Address{{Addr: netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)})}},
		})
	}
	return names
}

func BenchmarkNewGlobal(b *testing.B) {
	names := manyNames(10_000)
	before := NewGlobal("kubelink.", names, 1, nil, nil)
	b.ReportAllocs()
	for b.Loop() {
		NewGlobal("kubelink.", names, 2, nil, before)
	}
}

// BenchmarkGlobalAnswer is a query to one of 10,000 names, without the server around it.
func BenchmarkGlobalAnswer(b *testing.B) {
	state := links{"k2": {Usable: true, State: "Up", RTT: time.Millisecond}}
	table := globalTable(b, manyNames(10_000), state)
	for _, c := range []struct {
		name, pattern string
	}{{"positive", "name-%d.svc.global.kubelink."}, {"mixed-case", "NAME-%d.svc.Global.kubelink."}, {"negative", "nobody-%d.svc.global.kubelink."}} {
		b.Run(c.name, func(b *testing.B) {
			var reqs []*dns.Msg
			for range 1000 {
				reqs = append(reqs, new(dns.Msg).SetQuestion(fmt.Sprintf(c.pattern, rand.N(10_000)), dns.TypeA))
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				state := request.Request{W: &test.ResponseWriter{}, Req: reqs[i%len(reqs)]}
				m, _ := table.Match(state.Name())
				m.Answer(b.Context(), &state)
				i++
			}
		})
	}
}
