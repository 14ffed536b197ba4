package zone

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/coredns/coredns/request"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// answers has the records of a DNS service, or of an API, by name and type; the names are those of the cluster. A name
// without records of the type is denied unless it is the end of another one's records.
type answers map[string]string

func (a answers) reply(t testing.TB, req *dns.Msg, to string) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(req)
	m.Authoritative = true
	q := req.Question[0]
	name := strings.ToLower(q.Name)
	text, ok := a[strings.TrimSuffix(name, to)+" "+dns.TypeToString[q.Qtype]]
	if !ok {
		m.Rcode = dns.RcodeNameError
		m.Ns = []dns.RR{rr(t, to+" 5 IN SOA ns.dns."+to+" hostmaster."+to+" 1 2 3 4 5")}
		return m
	}
	text = strings.ReplaceAll(strings.ReplaceAll(text, "@", q.Name), "$", to)
	answer, extra, _ := strings.Cut(text, " / ")
	for _, part := range []struct {
		text string
		rrs  *[]dns.RR
	}{{answer, &m.Answer}, {extra, &m.Extra}} {
		for s := range strings.SplitSeq(part.text, ";") {
			if s = strings.TrimSpace(s); s != "" {
				*part.rrs = append(*part.rrs, rr(t, s))
			}
		}
	}
	return m
}

// answersAPI is a backend with answers.
type answersAPI struct {
	backend
	t testing.TB
	answers
}

func (b *answersAPI) Answer(_ context.Context, state *request.Request) (*dns.Msg, error) {
	return b.reply(b.t, state.Req, "kubelink2.kubelink."), nil
}

func prefixes(list ...string) (result []netip.Prefix) {
	for _, s := range list {
		result = append(result, netip.MustParsePrefix(s))
	}
	return result
}

// reachOptions are what is known of networks: kubelink2 and kubelink4, which it carries, and kubelink3.
func reachOptions() Options {
	o := cachingOptions()
	for link, networks := range map[string][]netip.Prefix{
		"kubelink2": prefixes("100.64.16.0/20", "100.65.0.0/24", "192.168.0.12/32", "100.64.48.0/20", "192.168.0.14/32",
			"fd00:64:2::/48"),
		"kubelink3": prefixes("100.64.32.0/20", "192.168.0.13/32"),
	} {
		for _, n := range networks {
			o.Networks = append(o.Networks, Network{n, link})
		}
	}
	o.Links = []mesh.Link{{Name: "kubelink2", Peer: "kubelink2"}, {Name: "kubelink3", Peer: "kubelink3"},
		{Name: "kubelink4", Peer: "kubelink2"}}
	o.Services = prefixes("100.64.0.0/20", "192.168.0.11/32")
	o.Hosts = prefixes("100.96.0.0/11", "10.250.0.0/16", "fd00:96::/64")
	return o
}

func reachZones(upstream netip.AddrPort) []mesh.Zone {
	z := clusters(upstream)
	z[0].Clusters[2].Services = append(z[0].Clusters[2].Services, netip.MustParsePrefix("fd00:64:2::/112"))
	z[0].Clusters = append(z[0].Clusters, mesh.ClusterZone{Name: "kubelink4.kubelink.", Link: "kubelink4",
		Upstream: upstream, ClusterDomain: "cluster.local."})
	return z
}

var reachAnswers = answers{
	"db.default.svc. A":      "@ 5 IN A 100.96.1.3; @ 5 IN A 100.96.1.2",
	"db.default.svc. AAAA":   "@ 5 IN AAAA fd00:96::",
	"db-0.db.default.svc. A": "@ 5 IN A 100.96.1.3",
	"lies.default.svc. A": "@ 5 IN A 100.96.1.5; @ 5 IN A 127.0.0.1; @ 5 IN A 169.254.169.254; @ 5 IN A 100.64.0.1; " +
		"@ 5 IN A 192.168.0.13; @ 5 IN A 192.168.0.11; @ 5 IN A 0.0.0.0; @ 5 IN A 224.0.0.1; @ 5 IN A 6.6.6.6; " +
		"@ 5 IN A 192.168.0.99; @ 5 IN A 100.64.33.1; @ 5 IN A 10.250.0.2; @ 5 IN A 10.1.2.3",
	"lies.default.svc. AAAA": "@ 5 IN AAAA ::1; @ 5 IN AAAA fe80::1; @ 5 IN AAAA ::; @ 5 IN AAAA ff02::1; " +
		"@ 5 IN AAAA ::ffff:127.0.0.1; @ 5 IN AAAA fd00:96::7; @ 5 IN AAAA 2001:db8::1",
	"some.default.svc. A":   "@ 5 IN A 100.96.1.5; @ 5 IN A 100.64.16.20",
	"web.default.svc. A":    "@ 5 IN A 100.64.16.20",
	"web.default.svc. AAAA": "@ 5 IN AAAA fd00:64:2::20",
	"extra.default.svc. A":  "@ 5 IN A 100.65.0.20", // egress
	"behind.default.svc. A": "@ 5 IN A 100.64.48.7", // of the cluster that shares the link
	"_pg._tcp.db.default.svc. SRV": "@ 5 IN SRV 0 50 5432 db-0.db.default.svc.$; @ 5 IN SRV 0 50 5432 web.default.svc.$ " +
		"/ db-0.db.default.svc.$ 5 IN A 100.96.1.3; web.default.svc.$ 5 IN A 100.64.16.20",
	"alias.default.svc. A":    "@ 5 IN CNAME db-0.db.default.svc.$; db-0.db.default.svc.$ 5 IN A 100.96.1.3",
	"rebind.default.svc. A":   "@ 5 IN CNAME www.example.com.; www.example.com. 5 IN A 10.0.0.5",
	"internet.default.svc. A": "@ 5 IN CNAME www.example.com.; www.example.com. 5 IN A 192.0.2.1",
	"hint.default.svc. HTTPS": `@ 5 IN HTTPS 1 . alpn="h2" ipv4hint="100.64.16.20,100.96.1.3" ipv6hint="fd00:64:2::20"`,
	"must.default.svc. HTTPS": `@ 5 IN HTTPS 1 . mandatory="ipv4hint" ipv4hint="100.96.1.3"`,
	"hint.default.svc. SVCB":  `@ 5 IN SVCB 1 . ipv6hint="::1" port="81"`,
}

// reachCases are questions to a cluster that gives such addresses, with the names below it.
var reachCases = []struct {
	question string // type and name
	want     string // with @ for the name and $ for the cluster; "SOA" for our denial
	omitted  string // part of the Extended DNS Error; empty: none
}{
	{"A db.default.svc.", "SOA", "left out 100.96.1.3, 100.96.1.2: not routed to link "},
	{"AAAA db.default.svc.", "SOA", "left out fd00:96::: not routed to link "},
	{"A db-0.db.default.svc.", "SOA", "left out 100.96.1.3"},
	{"A lies.default.svc.", "SOA", "left out 100.96.1.5, 127.0.0.1, 169.254.169.254 and 10 more"},
	{"AAAA lies.default.svc.", "SOA", "left out ::1, fe80::1, :: and 4 more"},
	{"A some.default.svc.", "@ 5 IN A 100.64.16.20 / / /", "left out 100.96.1.5"},
	{"A web.default.svc.", "@ 5 IN A 100.64.16.20 / / /", ""},
	{"AAAA web.default.svc.", "@ 5 IN AAAA fd00:64:2::20 / / /", ""},
	{"A extra.default.svc.", "@ 5 IN A 100.65.0.20 / / /", ""},
	{"A behind.default.svc.", "@ 5 IN A 100.64.48.7 / / /", ""},
	{"SRV _pg._tcp.db.default.svc.", "@ 5 IN SRV 0 50 5432 db-0.db.default.svc.$ @ 5 IN SRV 0 50 5432 " +
		"web.default.svc.$ / / web.default.svc.$ 5 IN A 100.64.16.20 /", "left out 100.96.1.3"},
	{"A alias.default.svc.", "@ 5 IN CNAME db-0.db.default.svc.$ SOA", "left out 100.96.1.3"},
	{"A rebind.default.svc.", "@ 5 IN CNAME www.example.com. / / /", "left out 10.0.0.5"},
	{"A internet.default.svc.", "@ 5 IN CNAME www.example.com. www.example.com. 5 IN A 192.0.2.1 / / /", ""},
	{"HTTPS hint.default.svc.", `@ 5 IN HTTPS 1 . alpn="h2" ipv6hint="fd00:64:2::20" / / /`, "left out 100.96.1.3"},
	{"HTTPS must.default.svc.", "SOA", "left out 100.96.1.3"},
	{"SVCB hint.default.svc.", `@ 5 IN SVCB 1 . port="81" / / /`, "left out ::1"},
}

// An address in an answer is one that this side can reach over the link: of names from a DNS service, whether they are
// cached or not, and of names from an API.
func TestReachableAddresses(t *testing.T) {
	var asked atomic.Int64
	addr := serve(t, func(w dns.ResponseWriter, r *dns.Msg) {
		asked.Add(1)
		w.WriteMsg(reachAnswers.reply(t, r, "cluster.local."))
	})
	o := reachOptions()
	z := reachZones(addr)
	table := New(nil, z, up, o)
	defer func() { table.Close() }()
	z2 := reachZones(addr)
	z2[0].Clusters[2].API = mesh.API{Use: true}
	api := o
	api.Backends = map[string]Backend{"kubelink2.kubelink.": &answersAPI{t: t, answers: reachAnswers}}
	fromAPI := New(nil, z2, up, api)
	defer fromAPI.Close()
	for _, mode := range []struct {
		name    string
		table   *Table
		cluster string
		queries int64
	}{
		{"asked", table, "kubelink2.kubelink.", int64(len(reachCases))},
		{"cached", table, "kubelink2.kubelink.", 0},
		{"behind a gateway", table, "kubelink4.kubelink.", int64(len(reachCases))},
		{"from the API", fromAPI, "kubelink2.kubelink.", 0},
		{"from the API again", fromAPI, "kubelink2.kubelink.", 0},
	} {
		before := asked.Load()
		for _, c := range reachCases {
			qtype, name, _ := strings.Cut(c.question, " ")
			name += mode.cluster
			want := strings.ReplaceAll(strings.ReplaceAll(c.want, "@", name), "$", mode.cluster)
			want = strings.ReplaceAll(want, "SOA",
				"/ "+mode.cluster+" 5 IN SOA ns.dns.kubelink. hostmaster.kubelink. 7 7200 1800 86400 5 / /")
			m, err := queryTable(t, mode.table, name, dns.StringToType[qtype], true, 1232)
			code, text := ede(m)
			if err != nil || m.Rcode != dns.RcodeSuccess || sections(m) != want {
				t.Errorf("%s: %s: %v %v\n got %s\nwant %s", mode.name, c.question, err, m.MsgHdr, sections(m), want)
			}
			if (c.omitted == "") != (text == "") || !strings.Contains(text, c.omitted) ||
				text != "" && code != dns.ExtendedErrorCodeNoReachableAuthority {
				t.Errorf("%s: %s: %d %q, want %q", mode.name, c.question, code, text, c.omitted)
			}
		}
		if n := asked.Load() - before; n != mode.queries {
			t.Errorf("%s: asked %d times, not %d", mode.name, n, mode.queries)
		}
	}

	// The own cluster says what it wants of its addresses.
	for name, want := range map[string]string{"db.default.svc.kubelink1.kubelink.": "100.96.1.3"} {
		m, err := queryTable(t, table, name, dns.TypeA, false, 1232)
		if _, text := ede(m); err != nil || !strings.Contains(sections(m), want) || text != "" {
			t.Errorf("%s: %v %s %q", name, err, sections(m), text)
		}
	}

	// A network that is routed from now on counts at once, also for answers that are cached, and one that is gone for
	// stale answers.
	o.Networks = append(o.Networks, Network{netip.MustParsePrefix("100.96.1.2/32"), "kubelink2"})
	o.ServeStale = maxStaleAge
	table = New(table, z, up, o)
	if m, _ := queryTable(t, table, "db.default.svc.kubelink2.kubelink.", dns.TypeA, false, 0); len(m.Answer) != 1 {
		t.Errorf("a pod that is routed: %s", sections(m))
	}
	o.Networks = o.Networks[:len(o.Networks)-1]
	table = New(table, z, up, o)
	if m, _ := queryTable(t, table, "db.default.svc.kubelink2.kubelink.", dns.TypeA, false, 0); len(m.Answer) != 0 {
		t.Errorf("a pod that is no longer routed: %s", sections(m))
	}
	o.Networks = append(o.Networks, Network{netip.MustParsePrefix("100.96.1.2/32"), "kubelink2"})
	table = New(table, z, up, o)
	queryTable(t, table, "db.default.svc.kubelink2.kubelink.", dns.TypeA, false, 0)
	o.Networks = o.Networks[:len(o.Networks)-1]
	table = New(table, z, down, o)
	m, _ := queryTable(t, table, "db.default.svc.kubelink2.kubelink.", dns.TypeA, false, 1232)
	if code, _ := ede(m); len(m.Answer) != 0 || code != dns.ExtendedErrorCodeStaleAnswer {
		t.Errorf("a stale answer leads nowhere: %s %d", sections(m), code)
	}
}

// Where another system carries the traffic, kubelink does not know what that routes. It still knows what is not the
// cluster's.
func TestReachableWithoutRoutes(t *testing.T) {
	addr := serve(t, func(w dns.ResponseWriter, r *dns.Msg) { w.WriteMsg(reachAnswers.reply(t, r, "cluster.local.")) })
	o := reachOptions()
	o.Networks, o.Hosts = nil, prefixes("10.250.0.0/16")
	for i := range o.Links {
		o.Links[i].Peer = ""
	}
	z := reachZones(addr)
	z[0].Clusters = append(z[0].Clusters, mesh.ClusterZone{Name: "kubelink3.kubelink.", Link: "kubelink3",
		Addresses: []netip.Addr{netip.MustParseAddr("192.168.0.13")}, Services: prefixes("100.64.32.0/20")})
	table := New(nil, z, up, o)
	defer table.Close()
	for question, want := range map[string]string{
		"db-0.db.default.svc. A": "100.96.1.3", // a flat network, perhaps
		"lies.default.svc. A":    "100.96.1.5 6.6.6.6 192.168.0.99 10.1.2.3",
	} {
		name, _, _ := strings.Cut(question, " ")
		m, err := queryTable(t, table, name+"kubelink2.kubelink.", dns.TypeA, true, 1232)
		var got []string
		for _, rr := range m.Answer {
			got = append(got, rr.(*dns.A).A.String())
		}
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s: %v %v, want %s", question, err, got, want)
		}
	}
}

// Of a global zone that another cluster serves, answers lead where this side can get: not over its own links that are
// lost, and not to pods and nodes of its own, which the other cluster means by the same addresses.
func TestReachableGlobalNames(t *testing.T) {
	names := answers{
		"shop. A":  "@ 5 IN A 100.64.16.20; @ 5 IN A 100.64.33.1; @ 5 IN A 100.64.0.7; @ 5 IN A 192.0.2.1",
		"lost. A":  "@ 5 IN A 100.64.33.1",
		"lies. A":  "@ 5 IN A 100.96.1.5; @ 5 IN A 127.0.0.1; @ 5 IN A 192.168.0.99",
		"other. A": "@ 5 IN A 10.1.2.3",
	}
	addr := serve(t, func(w dns.ResponseWriter, r *dns.Msg) { w.WriteMsg(names.reply(t, r, "svc.global.kubelink.")) })
	z := reachZones(addr)
	z[0].Global = mesh.GlobalZone{Name: "svc.global.kubelink.", Upstream: addr, Link: "kubelink2"}
	table := New(nil, z, func(link string) Status {
		return Status{Usable: link != "kubelink3", State: map[bool]string{true: "Up", false: "Down"}[link != "kubelink3"]}
	}, reachOptions())
	defer table.Close()
	for _, c := range []struct {
		name  string
		rcode int
		want  string
		text  string
	}{
		{"shop.", 0, "@ 5 IN A 100.64.16.20 @ 5 IN A 100.64.0.7 @ 5 IN A 192.0.2.1 / / /",
			"left out 100.64.33.1: link kubelink3 is Down"},
		{"lost.", dns.RcodeServerFailure, "/ / /", "left out 100.64.33.1: link kubelink3 is Down"},
		{"lies.", 0, "/ svc.global.kubelink. 5 IN SOA ns.dns.kubelink. hostmaster.kubelink. 7 7200 1800 86400 5 / /",
			"left out 100.96.1.5, 127.0.0.1, 192.168.0.99: "},
		{"other.", 0, "@ 5 IN A 10.1.2.3 / / /", ""},
	} {
		name := c.name + "svc.global.kubelink."
		m, err := queryTable(t, table, name, dns.TypeA, false, 1232)
		if _, text := ede(m); err != nil || m.Rcode != c.rcode || sections(m) != strings.ReplaceAll(c.want, "@", name) ||
			!strings.HasPrefix(text, c.text) || (c.text == "") != (text == "") {
			t.Errorf("%s: %v %s %s %q", name, err, dns.RcodeToString[m.Rcode], sections(m), text)
		}
	}
}

// Names between a service and its ports exist, also where the names come from an API (RFC 8020).
func TestEmptyNonTerminals(t *testing.T) {
	var asked atomic.Int64
	addr := serve(t, func(w dns.ResponseWriter, r *dns.Msg) {
		asked.Add(1)
		w.WriteMsg(reachAnswers.reply(t, r, "cluster.local."))
	})
	z := reachZones(addr)
	api := reachOptions()
	source := &answersAPI{t: t, answers: reachAnswers}
	api.Backends = map[string]Backend{"kubelink2.kubelink.": source}
	fromService := New(nil, z, up, reachOptions())
	defer fromService.Close()
	z2 := reachZones(addr)
	z2[0].Clusters[2].API = mesh.API{Use: true}
	fromAPI := New(nil, z2, up, api)
	defer fromAPI.Close()
	for _, table := range []*Table{fromService, fromAPI} {
		for name, rcode := range map[string]int{
			"":                         0,
			"svc.":                     0,
			"dns-version.":             0,
			"_tcp.web.default.svc.":    0,
			"_udp.web.default.svc.":    0, // one query cannot tell the protocols of a service
			"_tcp.db.default.svc.":     0, // the service exists, and all its addresses are left out
			"_tcp.nobody.default.svc.": dns.RcodeNameError,
			"x.web.default.svc.":       dns.RcodeNameError,
			"_tcp.":                    dns.RcodeNameError,
			"a.b.c.d.svc.":             dns.RcodeNameError,
		} {
			for _, qtype := range []uint16{dns.TypeA, dns.TypeTXT} {
				m, err := queryTable(t, table, name+"kubelink2.kubelink.", qtype, false, 0)
				if name == "" && qtype == dns.TypeA { // its address
					continue
				}
				if err != nil || m.Rcode != rcode || len(m.Answer) != 0 || len(m.Ns) != 1 ||
					m.Ns[0].(*dns.SOA).Ns != "ns.dns.kubelink." {
					t.Errorf("%s: %v %v", name, err, m)
				}
			}
		}
	}
	before := asked.Load()
	queryTable(t, fromService, "_tcp.web.default.svc.kubelink2.kubelink.", dns.TypeA, false, 0)
	if asked.Load() != before {
		t.Error("asked again for what was known")
	}
}

// A cluster that refers to other name servers has no answer: kubelink serves all of its names, and a resolver must not
// be led elsewhere.
func TestReferral(t *testing.T) {
	addr := serve(t, func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(r)
		if strings.HasPrefix(r.Question[0].Name, "ns.") {
			m.Answer = []dns.RR{rr(t, r.Question[0].Name+" 5 IN NS ns.evil.example.")}
		}
		m.Ns = []dns.RR{rr(t, "sub.cluster.local. 5 IN NS ns.evil.example.")}
		w.WriteMsg(m)
	})
	table := New(nil, zones(addr), up, options)
	defer table.Close()
	m, err := queryTable(t, table, "x.sub.kubelink2.kubelink.", dns.TypeA, false, 1232)
	if code, text := ede(m); m.Rcode != dns.RcodeServerFailure || code != dns.ExtendedErrorCodeInvalidData ||
		!strings.Contains(text, "it refers to other name servers") || err == nil {
		t.Errorf("%v %v", m, err)
	}
	if m, err = queryTable(t, table, "ns.sub.kubelink2.kubelink.", dns.TypeNS, false, 0); err != nil || m.Rcode != 0 ||
		sections(m) != "/ kubelink2.kubelink. 5 IN SOA ns.dns.kubelink. hostmaster.kubelink. 7 7200 1800 86400 5 / /" {
		t.Errorf("%v %s", err, sections(m))
	}
}

// BenchmarkReachable is what the check of an answer costs where nothing is left out.
func BenchmarkReachable(b *testing.B) {
	table := New(nil, reachZones(netip.AddrPort{}), up, reachOptions())
	defer table.Close()
	c := table.nodes["kubelink2.kubelink."].cluster
	m := &dns.Msg{Answer: []dns.RR{rr(b, "web.default.svc.kubelink2.kubelink. 5 IN A 100.64.16.20")}}
	b.ReportAllocs()
	for b.Loop() {
		if c.leaveOutUnreachable(m) != "" {
			b.Fatal(errors.New("left out"))
		}
	}
}
