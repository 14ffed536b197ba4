package zone

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"

	"github.com/miekg/dns"
)

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
		refer = "/ sub." + z + " 5 IN NS ns1.sub." + z + " sub." + z + " 5 IN NS ns2." + z + " sub." + z +
			" 5 IN NS ns.example.com. / ns1.sub." + z + " 5 IN A 10.0.0.6 " + ns2 + " /"
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
		{"ALIAS2.", dns.TypeAAAA, 0, "ALIAS2." + z + " 5 IN CNAME alias." + z + " alias." + z + " 5 IN CNAME web." + z + " " +
			web6 + " / / /"},
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
		{"_ldap._tcp.dir.", dns.TypeSRV, 0, srv("0", "web") + " " + srv("1", "web") + " " + srv("2", "x.wild") +
			" _ldap._tcp.dir." + z + " 5 IN SRV 3 5 389 y.example.com. " + srv("4", "alias") + " / / " + web + " " + web6 +
			" x.wild." + z + " 5 IN A 10.0.0.4 /"},
		{"_any._tcp.dir.", dns.TypeSRV, 0, "_any._tcp.dir." + z + " 5 IN SRV 0 0 1 some.wild." + z + " / / some.wild." + z +
			" 5 IN A 10.0.0.3 /"},
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
		{"team.", dns.TypeNS, 0, "team." + z + " 5 IN NS ns.dns.kubelink. team." + z + " 5 IN NS ns2." + z + " / / " + glue +
			" " + ns2 + " /"},
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
				t.Errorf("%s %s: %v %s aa %v\n got %s\nwant %s", c.name, dns.TypeToString[c.qtype], err, dns.RcodeToString[m.Rcode],
					m.Authoritative, sections(m), c.want)
			}
		}
	}
	for _, name := range []string{"loop1.", "LOOP2.", "a.self.", "b.self."} {
		m, _ := queryTable(t, table, name+z, dns.TypeA, false, 1232)
		if code, text := ede(m); m.Rcode != dns.RcodeServerFailure || code != dns.ExtendedErrorCodeInvalidData ||
			!strings.Contains(text, strings.ToLower(name)) {
			t.Errorf("%s: %v", name, m)
		}
	}
	if m, ok := table.Match("x." + z); !ok || m.Zone() != z || m.Link() != "" || m.Upstream().IsValid() {
		t.Errorf("%+v", m)
	}
	if m, _ := queryTable(t, table, "global.kubelink.", dns.TypeA, false, 0); m.Rcode != 0 ||
		sections(m) != "/ "+mesh+" / /" {
		t.Errorf("%v", m)
	}
}

func srv(priority, host string) string {
	return "_ldap._tcp.dir.svc.global.kubelink. 5 IN SRV " + priority + " 5 389 " + host + ".svc.global.kubelink."
}

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
			t.Errorf("%s %s: %v %s %q %q, want %q %q", c.name, dns.TypeToString[c.qtype], err, dns.RcodeToString[m.Rcode], data,
				text, c.data, c.says)
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
		if len(f) != 6 || !slices.Contains(local, "0.0.1") || !slices.Contains(local, "0.0.2") ||
			!slices.Contains(near, "2.0.1") || !slices.Contains(near, "2.0.2") || f[4] != "1.0.1" || f[5] != "3.0.1" {
			t.Errorf("order %s", order)
		}
	}
	if len(seen) < 2 {
		t.Errorf("always %v", seen)
	}
}

// BenchmarkGlobalAnswer is a query to one of 10,000 names, without the server around it.
func BenchmarkGlobalAnswer(b *testing.B) {
	state := links{"k2": {Usable: true, State: "Up", RTT: time.Millisecond}}
	table := globalTable(b, manyNames(10_000), state)
	for _, c := range []struct {
		name, pattern string
	}{{"positive", "name-%d.svc.global.kubelink."}, {"mixed-case", "NAME-%d.svc.Global.kubelink."},
		{"negative", "nobody-%d.svc.global.kubelink."}} {
		b.Run(c.name, func(b *testing.B) {
			var reqs []*dns.Msg
			for range 1000 {
				reqs = append(reqs, new(dns.Msg).SetQuestion(fmt.Sprintf(c.pattern, rand.N(10_000)), dns.TypeA))
			}
			w := &test.ResponseWriter{}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				state := request.Request{W: w, Req: reqs[i%len(reqs)]}
				m, _ := table.Match(state.Name())
				m.Answer(b.Context(), &state)
				i++
			}
		})
	}
}
