package zone

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// serve runs a DNS server on loopback, UDP and TCP on the same port.
func serve(t testing.TB, handler dns.HandlerFunc) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", pc.LocalAddr().String())
	for errors.Is(err, syscall.EADDRINUSE) { // by a connection of somebody else
		pc.Close()
		if pc, err = net.ListenPacket("udp", "127.0.0.1:0"); err == nil {
			ln, err = net.Listen("tcp", pc.LocalAddr().String())
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: handler}, {Listener: ln, Handler: handler}} {
		go s.ActivateAndServe()
		t.Cleanup(func() { s.Shutdown() })
	}
	return netip.MustParseAddrPort(pc.LocalAddr().String())
}

func rr(t testing.TB, s string) dns.RR {
	t.Helper()
	rr, err := dns.NewRR(s)
	if err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	return rr
}

// clusterDNS answers as the kubernetes plugin of a cluster's CoreDNS does.
func clusterDNS(t testing.TB, asked *atomic.Int64) dns.HandlerFunc {
	return func(w dns.ResponseWriter, r *dns.Msg) {
		asked.Add(1)
		m := new(dns.Msg)
		m.SetReply(r)
		m.Authoritative = true
		q := r.Question[0]
		soa := rr(t, "cluster.local. 30 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 30")
		switch strings.ToLower(q.Name) {
		case "web.default.svc.cluster.local.":
			switch q.Qtype {
			case dns.TypeA:
				m.Answer = []dns.RR{rr(t, q.Name+" 30 IN A 100.64.16.20")}
			case dns.TypeSRV:
				m.Answer = []dns.RR{rr(t, q.Name+" 5 IN SRV 0 100 80 web.default.svc.cluster.local.")}
				m.Extra = []dns.RR{rr(t, "web.default.svc.cluster.local. 5 IN A 100.64.16.20")}
			default:
				m.Ns = []dns.RR{soa}
			}
		case "big.default.svc.cluster.local.":
			for i := range 60 {
				m.Answer = append(m.Answer, rr(t, fmt.Sprintf("%s 5 IN A 100.64.16.%d", q.Name, i)))
			}
			size := 512
			if o := r.IsEdns0(); o != nil {
				size = int(o.UDPSize())
			}
			if w.RemoteAddr().Network() == "tcp" {
				size = dns.MaxMsgSize
			}
			m.Truncate(size)
		case "alias.default.svc.cluster.local.":
			m.Answer = []dns.RR{
				rr(t, q.Name+" 5 IN CNAME www.example.com."), rr(t, "www.example.com. 5 IN CNAME web.default.svc.cluster.local."),
				rr(t, "web.default.svc.cluster.local. 5 IN A 100.64.16.20"),
			}
		case "evil.default.svc.cluster.local.": // an answer, and what is not the cluster's to say
			m.Answer = []dns.RR{rr(t, q.Name+" 5 IN A 100.64.16.66")}
			for _, e := range evil[:4] {
				m.Answer, m.Ns, m.Extra = append(m.Answer, rr(t, e)), append(m.Ns, rr(t, e)), append(m.Extra, rr(t, e))
			}
			m.Compress = true
		case "nobody.evil.default.svc.cluster.local.":
			m.Rcode = dns.RcodeNameError
			m.Ns = []dns.RR{rr(t, "kubelink. 5 IN NS ns.evil.example."), soa, rr(t, "kubelink. 5 IN SOA ns.evil.example. evil.example. 1 2 3 4 5")}
		case "onlyevil.default.svc.cluster.local.":
			m.Answer = []dns.RR{rr(t, "db.default.svc.kubelink3.kubelink. 5 IN A 6.6.6.6")}
		case "lead.default.svc.cluster.local.":
			m.Answer = []dns.RR{rr(t, "db.c.other.kubelink. 5 IN A 6.6.6.6"), rr(t, q.Name+" 5 IN CNAME db.c.other.kubelink.")}
		case "external.default.svc.cluster.local.":
			m.Answer = []dns.RR{rr(t, "www.example.com. 5 IN A 192.0.2.1"), rr(t, q.Name+" 5 IN CNAME www.example.com."), rr(t, "www.bank.example. 5 IN A 6.6.6.6")}
		case "x.dname.default.svc.cluster.local.":
			m.Answer = []dns.RR{
				rr(t, "dname.default.svc.cluster.local. 5 IN DNAME example.com."), rr(t, q.Name+" 5 IN CNAME x.example.com."), rr(t, "x.example.com. 5 IN A 192.0.2.2"),
			}
		case "long.default.svc.cluster.local.":
			m.Answer = []dns.RR{rr(t, q.Name+" 5 IN CNAME "+long(4)+strings.Repeat("x", 38)+".cluster.local.")}
		case "refused.cluster.local.":
			m.Rcode = dns.RcodeRefused
		case "other.cluster.local.":
			m.Question[0].Name = "another.cluster.local."
		case "options.cluster.local.":
			o := r.IsEdns0()
			if o == nil {
				break
			}
			// What came, and what must not go back.
			for _, option := range o.Option {
				m.Answer = append(m.Answer, rr(t, fmt.Sprintf("%s 5 IN TXT %d", q.Name, option.Option())))
			}
			m.SetEdns0(1232, false)
			m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"}, &dns.EDNS0_NSID{Code: dns.EDNS0NSID, Nsid: "aa"}}
		default:
			m.Rcode = dns.RcodeNameError
			m.Ns = []dns.RR{soa}
		}
		w.WriteMsg(m)
	}
}

var up = func(string) Status { return Status{Usable: true, State: "Up"} }

func zones(upstream netip.AddrPort) []mesh.Zone {
	return []mesh.Zone{
		{Domain: "kubelink.", Clusters: []mesh.ClusterZone{
			{Name: "a.deep.kubelink.", Link: "a.deep", Upstream: upstream, ClusterDomain: "cluster.local."},
			{Name: "kubelink1.kubelink.", Upstream: upstream, ClusterDomain: "cluster.local."},
			{Name: "kubelink2.kubelink.", Link: "kubelink2", Upstream: upstream, ClusterDomain: "cluster.local."},
			{Name: "unknown.kubelink.", Link: "unknown", ClusterDomain: "cluster.local."},
		}},
		{Domain: "other.kubelink.", Mesh: "other", Clusters: []mesh.ClusterZone{
			{Name: "c.other.kubelink.", Link: "other--c", Upstream: upstream, ClusterDomain: "c.example."},
		}},
	}
}

var options = Options{Serial: 7, NSAddresses: []netip.Addr{netip.MustParseAddr("100.64.0.11"), netip.MustParseAddr("fd00::11")}}

func TestMatch(t *testing.T) {
	table := New(nil, zones(netip.MustParseAddrPort("127.0.0.1:1")), up, options)
	defer table.Close()
	for _, c := range []struct{ name, zone, link string }{
		{"kubelink.", "kubelink.", ""},
		{"x.kubelink.", "kubelink.", ""},
		{"kubelink2.kubelink.", "kubelink2.kubelink.", "kubelink2"},
		{"x.y.kubelink2.kubelink.", "kubelink2.kubelink.", "kubelink2"},
		{"xkubelink2.kubelink.", "kubelink.", ""},
		{`x\.kubelink2.kubelink.`, "kubelink.", ""},
		{"deep.kubelink.", "kubelink.", ""},
		{"b.deep.kubelink.", "kubelink.", ""},
		{"x.a.deep.kubelink.", "a.deep.kubelink.", "a.deep"},
		{"x.other.kubelink.", "other.kubelink.", ""},
		{"x.c.other.kubelink.", "c.other.kubelink.", "other--c"},
		{"x.ns.dns.kubelink.", "kubelink.", ""},
		{"mykubelink.", "", ""},
		{"example.com.", "", ""},
		{".", "", ""},
	} {
		m, ok := table.Match(c.name)
		if ok != (c.zone != "") || ok && (m.Zone() != c.zone || m.Link() != c.link) {
			t.Errorf("%s: %v %+v", c.name, ok, m)
		}
	}
}

// queryTable puts a question to the table, as the plugin does, and packs the reply as a server does.
func queryTable(t testing.TB, table *Table, name string, qtype uint16, tcp bool, edns uint16) (*dns.Msg, error) {
	t.Helper()
	req := new(dns.Msg)
	req.SetQuestion(name, qtype)
	if edns > 0 {
		req.SetEdns0(edns, false)
	}
	return exchangeQuery(t, table, req, tcp)
}

func exchangeQuery(t testing.TB, table *Table, req *dns.Msg, tcp bool) (*dns.Msg, error) {
	t.Helper()
	state := request.Request{W: &test.ResponseWriter{TCP: tcp}, Req: req}
	m, ok := table.Match(state.Name())
	if !ok {
		t.Fatalf("%s is in no zone", state.Name())
	}
	id := req.Id
	reply, err := m.Answer(context.Background(), &state)
	if reply.Id != id || !reply.Response || len(reply.Question) != 1 || reply.Question[0].Name != state.QName() {
		t.Fatalf("not a reply to %s: %v", state.QName(), reply)
	}
	state.SizeAndDo(reply)
	state.Scrub(reply)
	wire, err1 := reply.Pack()
	if err1 != nil {
		t.Fatalf("%v: %v", err1, reply)
	}
	if len(wire) > state.Size() {
		t.Fatalf("%d octets for a client that takes %d", len(wire), state.Size())
	}
	out := new(dns.Msg)
	if err := out.Unpack(wire); err != nil {
		t.Fatal(err)
	}
	return out, err
}

// ede is the code and text of the Extended DNS Error, 0 if there is none.
func ede(m *dns.Msg) (uint16, string) {
	if o := m.IsEdns0(); o != nil {
		for _, option := range o.Option {
			if e, ok := option.(*dns.EDNS0_EDE); ok {
				return e.InfoCode, e.ExtraText
			}
		}
	}
	return 0, ""
}

func sections(m *dns.Msg) string {
	var s []string
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if rr.Header().Rrtype != dns.TypeOPT {
				s = append(s, strings.Join(strings.Fields(rr.String()), " "))
			}
		}
		s = append(s, "/")
	}
	return strings.Join(s, " ")
}

func TestAuthority(t *testing.T) {
	table := New(nil, zones(netip.MustParseAddrPort("127.0.0.1:1")), up, options)
	defer table.Close()
	const (
		soa  = "kubelink. 5 IN SOA ns.dns.kubelink. hostmaster.kubelink. 7 7200 1800 86400 5"
		glue = "ns.dns.kubelink. 5 IN A 100.64.0.11 ns.dns.kubelink. 5 IN AAAA fd00::11"
	)
	for _, c := range []struct {
		name  string
		qtype uint16
		rcode int
		want  string
	}{
		{"kubelink.", dns.TypeSOA, 0, soa + " / / /"},
		{"KubeLink.", dns.TypeSOA, 0, "KubeLink." + soa[9:] + " / / /"},
		{"kubelink.", dns.TypeNS, 0, "kubelink. 5 IN NS ns.dns.kubelink. / / " + glue + " /"},
		{"kubelink.", dns.TypeANY, 0, soa + " kubelink. 5 IN NS ns.dns.kubelink. / / " + glue + " /"},
		{"kubelink.", dns.TypeA, 0, "/ " + soa + " / /"},
		{"kubelink.", dns.TypeTXT, 0, "/ " + soa + " / /"},
		{"nobody.kubelink.", dns.TypeA, dns.RcodeNameError, "/ " + soa + " / /"},
		{"x.nobody.kubelink.", dns.TypeSRV, dns.RcodeNameError, "/ " + soa + " / /"},
		{"dns.kubelink.", dns.TypeA, 0, "/ " + soa + " / /"},  // empty non-terminal
		{"deep.kubelink.", dns.TypeA, 0, "/ " + soa + " / /"}, // empty non-terminal
		{"b.deep.kubelink.", dns.TypeA, dns.RcodeNameError, "/ " + soa + " / /"},
		{"ns.dns.kubelink.", dns.TypeA, 0, "ns.dns.kubelink. 5 IN A 100.64.0.11 / / /"},
		{"NS.dns.kubelink.", dns.TypeAAAA, 0, "NS.dns.kubelink. 5 IN AAAA fd00::11 / / /"},
		{"ns.dns.kubelink.", dns.TypeMX, 0, "/ " + soa + " / /"},
		{"x.ns.dns.kubelink.", dns.TypeA, dns.RcodeNameError, "/ " + soa + " / /"},
		{"kubelink2.kubelink.", dns.TypeDS, 0, "/ " + soa + " / /"}, // the parent's
		{"nobody.other.kubelink.", dns.TypeA, dns.RcodeNameError, "/ other.kubelink. 5 IN SOA ns.dns.other.kubelink. hostmaster.other.kubelink. 7 7200 1800 86400 5 / /"},
	} {
		m, err := queryTable(t, table, c.name, c.qtype, false, 0)
		if err != nil || m.Rcode != c.rcode || !m.Authoritative || sections(m) != c.want {
			t.Errorf("%s %s: %v %s aa %v\n got %s\nwant %s", c.name, dns.TypeToString[c.qtype], err, dns.RcodeToString[m.Rcode], m.Authoritative, sections(m), c.want)
		}
	}

	// A domain in another one: there is something between.
	nested := New(nil, []mesh.Zone{{Domain: "a.b.kubelink."}, {Domain: "kubelink."}, {Domain: "x.example."}, {Domain: "y.d.a.b.kubelink."}}, up, options)
	for name, rcode := range map[string]int{"b.kubelink.": 0, "c.b.kubelink.": dns.RcodeNameError, "a.b.kubelink.": 0, "x.a.b.kubelink.": dns.RcodeNameError} {
		if m, err := queryTable(t, nested, name, dns.TypeA, false, 0); err != nil || m.Rcode != rcode {
			t.Errorf("%s: %v, %v", name, err, m)
		}
	}
	if m, _ := queryTable(t, nested, "d.a.b.kubelink.", dns.TypeA, false, 0); len(m.Ns) != 1 || m.Ns[0].Header().Name != "a.b.kubelink." {
		t.Errorf("%v", m)
	}
	if _, ok := nested.Match("example."); ok {
		t.Error("what is above a domain is ours")
	}

	bare := New(nil, zones(netip.AddrPort{}), up, Options{Serial: 1})
	m, _ := queryTable(t, bare, "kubelink.", dns.TypeNS, false, 0)
	if got := sections(m); got != "kubelink. 5 IN NS ns.dns.kubelink. / / /" {
		t.Errorf("without addresses: %s", got)
	}
	if m, _ := queryTable(t, bare, "ns.dns.kubelink.", dns.TypeA, false, 0); m.Rcode != 0 || len(m.Ns) != 1 {
		t.Errorf("without addresses: %v", m)
	}
}

func TestCluster(t *testing.T) {
	var asked atomic.Int64
	table := New(nil, zones(serve(t, clusterDNS(t, &asked))), up, options)
	defer table.Close()
	const soa = "kubelink2.kubelink. 5 IN SOA ns.dns.kubelink2.kubelink. hostmaster.kubelink2.kubelink. 1 7200 1800 86400 30"
	for _, tcp := range []bool{false, true} {
		for _, c := range []struct {
			name  string
			qtype uint16
			rcode int
			want  string
		}{
			{"web.default.svc.kubelink2.kubelink.", dns.TypeA, 0, "web.default.svc.kubelink2.kubelink. 5 IN A 100.64.16.20 / / /"},
			{"Web.default.SVC.KUBElink2.kubelink.", dns.TypeA, 0, "Web.default.SVC.KUBElink2.kubelink. 5 IN A 100.64.16.20 / / /"},
			{"web.default.svc.kubelink1.kubelink.", dns.TypeA, 0, "web.default.svc.kubelink1.kubelink. 5 IN A 100.64.16.20 / / /"},
			{"web.default.svc.kubelink2.kubelink.", dns.TypeSRV, 0, "web.default.svc.kubelink2.kubelink. 5 IN SRV 0 100 80 web.default.svc.kubelink2.kubelink. / / web.default.svc.kubelink2.kubelink. 5 IN A 100.64.16.20 /"},
			{"alias.default.svc.kubelink2.kubelink.", dns.TypeA, 0, "alias.default.svc.kubelink2.kubelink. 5 IN CNAME www.example.com. www.example.com. 5 IN CNAME web.default.svc.kubelink2.kubelink. web.default.svc.kubelink2.kubelink. 5 IN A 100.64.16.20 / / /"},
			{"web.default.svc.kubelink2.kubelink.", dns.TypeMX, 0, "/ " + soa + " / /"},
			{"nobody.kubelink2.kubelink.", dns.TypeA, dns.RcodeNameError, "/ " + soa + " / /"},
			{"kubelink2.kubelink.", dns.TypeA, dns.RcodeNameError, "/ " + soa + " / /"},
			{"x.c.other.kubelink.", dns.TypeA, dns.RcodeNameError, "/ / /"}, // the SOA is of another domain
			{"evil.default.svc.kubelink2.kubelink.", dns.TypeA, 0, "evil.default.svc.kubelink2.kubelink. 5 IN A 100.64.16.66 / / /"},
			{"nobody.evil.default.svc.kubelink2.kubelink.", dns.TypeA, dns.RcodeNameError, "/ " + soa + " / /"},
			{"external.default.svc.kubelink2.kubelink.", dns.TypeA, 0, "www.example.com. 5 IN A 192.0.2.1 external.default.svc.kubelink2.kubelink. 5 IN CNAME www.example.com. / / /"},
			{"x.dname.default.svc.kubelink2.kubelink.", dns.TypeA, 0, "dname.default.svc.kubelink2.kubelink. 5 IN DNAME example.com. x.dname.default.svc.kubelink2.kubelink. 5 IN CNAME x.example.com. x.example.com. 5 IN A 192.0.2.2 / / /"},
		} {
			m, err := queryTable(t, table, c.name, c.qtype, tcp, 0)
			if aa := !strings.Contains(c.want, "example.com. 5 IN "); err != nil || m.Rcode != c.rcode || m.Authoritative != aa || m.IsEdns0() != nil || sections(m) != c.want {
				t.Errorf("%s %s: %v\n got %s\nwant %s", c.name, dns.TypeToString[c.qtype], err, sections(m), c.want)
			}
		}
	}
}

func TestTruncation(t *testing.T) {
	var asked atomic.Int64
	table := New(nil, zones(serve(t, clusterDNS(t, &asked))), up, options)
	defer table.Close()
	for _, c := range []struct {
		edns uint16
		tcp  bool
		tc   bool
	}{
		{0, false, true}, {512, false, true}, {1232, false, false}, {4096, false, false}, {0, true, false}, {512, true, false},
	} {
		m, err := queryTable(t, table, "big.default.svc.kubelink2.kubelink.", dns.TypeA, c.tcp, c.edns)
		if err != nil || m.Truncated != c.tc || !c.tc && len(m.Answer) != 60 {
			t.Errorf("%+v: %v, tc %v, %d answers", c, err, m.Truncated, len(m.Answer))
		}
		if o := m.IsEdns0(); (o != nil) != (c.edns > 0) || o != nil && o.UDPSize() != c.edns {
			t.Errorf("%+v: OPT %v", c, o)
		}
	}
}

// The cluster is told none of the options of the client, and its own but for the connection's are passed on.
func TestEDNSOptions(t *testing.T) {
	var asked atomic.Int64
	table := New(nil, zones(serve(t, clusterDNS(t, &asked))), up, options)
	defer table.Close()
	req := new(dns.Msg)
	req.SetQuestion("options.kubelink2.kubelink.", dns.TypeTXT)
	req.SetEdns0(1232, true)
	req.IsEdns0().Option = []dns.EDNS0{
		&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "8899aabbccddeeff"},
		&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: net.IPv4(192, 0, 2, 0)},
	}
	m, err := exchangeQuery(t, table, req, false)
	if want := `/ / /`; err != nil || sections(m) != want {
		t.Errorf("%v: %s, want %s", err, sections(m), want)
	}
	if o := m.IsEdns0(); len(o.Option) != 1 || o.Option[0].Option() != dns.EDNS0NSID || !o.Do() {
		t.Errorf("OPT %v", o)
	}
}

func TestErrors(t *testing.T) {
	var asked atomic.Int64
	addr := serve(t, clusterDNS(t, &asked))
	down := func(link string) Status {
		if link == "a.deep" {
			return Status{State: "Down", Reason: "dial kubelink.b.example:80: connection refused"}
		}
		return up(link)
	}
	table := New(nil, zones(addr), down, options)
	defer table.Close()
	for _, c := range []struct {
		name  string
		rcode int
		code  uint16
		text  string
		log   bool
	}{
		{"x.a.deep.kubelink.", dns.RcodeServerFailure, 22, "link a.deep is Down: dial kubelink.b.example:80: connection refused", false},
		{"a.deep.kubelink.", dns.RcodeServerFailure, 22, "link a.deep is Down: dial kubelink.b.example:80: connection refused", false},
		{"x.unknown.kubelink.", dns.RcodeServerFailure, 22, "the address of the DNS service of link unknown is not known", false},
		{"refused.kubelink1.kubelink.", dns.RcodeRefused, 22, fmt.Sprintf("answer of DNS service %s of the local cluster", addr), false},
		{"other.kubelink2.kubelink.", dns.RcodeServerFailure, 23, fmt.Sprintf("DNS service %s of link kubelink2: answer to another question", addr), true},
		{"long.default.svc.kubelink2.kubelink.", dns.RcodeServerFailure, 24, fmt.Sprintf("DNS service %s of link kubelink2: a name in the answer is longer than 255 octets in kubelink2.kubelink.", addr), true},
		{"onlyevil.default.svc.kubelink2.kubelink.", dns.RcodeServerFailure, 24, fmt.Sprintf("DNS service %s of link kubelink2: it answered for a name that is not its own, outside of kubelink2.kubelink.", addr), true},
	} {
		m, err := queryTable(t, table, c.name, dns.TypeA, false, 1232)
		code, text := ede(m)
		if m.Rcode != c.rcode || code != c.code || text != c.text || (err != nil) != c.log {
			t.Errorf("%s: %s %d %q, error %v", c.name, dns.RcodeToString[m.Rcode], code, text, err)
		}
		if m, _ := queryTable(t, table, c.name, dns.TypeA, false, 0); m.Rcode != c.rcode || m.IsEdns0() != nil {
			t.Errorf("%s without EDNS: %v", c.name, m)
		}
	}
	before := asked.Load()
	queryTable(t, table, "x.a.deep.kubelink.", dns.TypeA, false, 0)
	if asked.Load() != before {
		t.Error("a cluster was asked whose link is Down")
	}

	// The longest legal question is too long in the domain of the cluster.
	long := long(4) + strings.Repeat("x", 34) + ".kubelink2.kubelink."
	table = New(table, []mesh.Zone{{Domain: "kubelink.", Clusters: []mesh.ClusterZone{
		{Name: "kubelink2.kubelink.", Link: "kubelink2", Upstream: addr, ClusterDomain: "a.very.long.cluster.domain."},
	}}}, up, options)
	if m, err := queryTable(t, table, long, dns.TypeA, false, 0); m.Rcode != dns.RcodeNameError || err != nil || !m.Authoritative || len(m.Ns) != 1 {
		t.Errorf("%v %v", m, err)
	}
}

// TestDeadService: a DNS service that refuses fails at once; one that is silent costs two seconds,
// and nothing any more once it is known to be dead.
func TestDeadService(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	silent := netip.MustParseAddrPort(pc.LocalAddr().String())
	for _, tcp := range []bool{false, true} {
		table := New(nil, zones(netip.MustParseAddrPort("127.0.0.1:1")), up, options)
		begin := time.Now()
		m, err := queryTable(t, table, "x.kubelink2.kubelink.", dns.TypeA, tcp, 1232)
		if code, text := ede(m); m.Rcode != dns.RcodeServerFailure || code != 23 || !strings.HasSuffix(text, "connection refused") || err == nil {
			t.Errorf("refused: %v %v", m, err)
		}
		if d := time.Since(begin); d > time.Second {
			t.Errorf("refused after %v", d)
		}
		table.Close()
	}

	table := New(nil, zones(silent), up, options)
	defer table.Close()
	begin := time.Now()
	m, _ := queryTable(t, table, "x.kubelink2.kubelink.", dns.TypeA, false, 1232)
	if code, text := ede(m); code != 23 || !strings.HasSuffix(text, "i/o timeout") {
		t.Errorf("silent: %v", m)
	}
	if d := time.Since(begin); d < time.Second || d > 2500*time.Millisecond {
		t.Errorf("silent: %v", d)
	}
	// Health checks are packets to the silent service: two failed ones make it dead.
	u := table.upstreams[silent]
	for !u.proxy.Down(maxFails) {
		runtime.Gosched()
		if time.Since(begin) > 20*time.Second {
			t.Fatal("never known to be dead")
		}
		pc.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		pc.ReadFrom(make([]byte, 512))
	}
	begin = time.Now()
	m, err = queryTable(t, table, "x.kubelink2.kubelink.", dns.TypeA, false, 1232)
	if d := time.Since(begin); d > 200*time.Millisecond {
		t.Errorf("known to be dead: %v", d)
	}
	if _, text := ede(m); !strings.HasSuffix(text, "no answer for a while: i/o timeout") || err == nil {
		t.Errorf("known to be dead: %q %v", text, err)
	}

	// The link goes and comes back: what was known about the service is forgotten.
	lost := New(table, zones(silent), func(string) Status { return Status{State: "Down"} }, options)
	if lost.upstreams[silent] != u {
		t.Error("the upstream was not kept while the link is down")
	}
	back := New(lost, zones(silent), up, options)
	defer back.Close()
	if back.upstreams[silent] == u {
		t.Error("the upstream was kept when the link came back")
	}
}

func TestConnectionsAreReused(t *testing.T) {
	var asked atomic.Int64
	var seen atomic.Value
	answer := clusterDNS(t, &asked)
	addr := serve(t, func(w dns.ResponseWriter, r *dns.Msg) {
		seen.Store(w.RemoteAddr().String())
		answer(w, r)
	})
	table := New(nil, zones(addr), up, options)
	defer func() { table.Close() }()
	var ports []any
	for i := range 3 {
		if _, err := queryTable(t, table, "web.default.svc.kubelink2.kubelink.", dns.TypeA, true, 0); err != nil {
			t.Fatal(err)
		}
		ports = append(ports, seen.Load())
		z := zones(addr)
		z[0].Clusters = z[0].Clusters[i:3] // other zones, same upstream
		table = New(table, z, up, options)
	}
	if ports[0] != ports[1] || ports[1] != ports[2] {
		t.Errorf("connections from %v", ports)
	}
	if len(table.upstreams) != 1 {
		t.Errorf("%d upstreams", len(table.upstreams))
	}
}

// TestAskedOnceAtATime: a cluster that follows an alias back to where it was asked for waits for itself, and no more is
// asked than one query and its retry. Whoever waits gets the answer in his own spelling.
func TestAskedOnceAtATime(t *testing.T) {
	var table atomic.Pointer[Table]
	var asked, answered atomic.Int64
	answer := clusterDNS(t, &answered)
	again := make(chan *dns.Msg, 1)
	spelled := strings.ToUpper(web)
	table.Store(New(nil, zones(serve(t, func(w dns.ResponseWriter, r *dns.Msg) {
		if asked.Add(1) > 1 {
			answer(w, r)
			return
		}
		m, err := queryTable(t, table.Load(), spelled, dns.TypeA, false, 0)
		if err != nil {
			t.Error(err)
		}
		again <- m
	})), up, Options{}))
	defer table.Load().Close()
	m, err := queryTable(t, table.Load(), web, dns.TypeA, false, 0)
	if err != nil || len(m.Answer) != 1 || m.Answer[0].Header().Name != web {
		t.Errorf("%v, %v", err, m)
	}
	if m := <-again; len(m.Answer) != 1 || m.Answer[0].Header().Name != spelled {
		t.Errorf("%v", m)
	}
	if n := asked.Load(); n != 2 {
		t.Errorf("asked %d times", n)
	}
}

// One cluster that does not answer does not take all sockets.
func TestAskingIsBounded(t *testing.T) {
	hold, began := make(chan struct{}), make(chan struct{}, maxWaiting+1)
	table := New(nil, zones(serve(t, func(w dns.ResponseWriter, r *dns.Msg) {
		began <- struct{}{}
		<-hold
		w.WriteMsg(new(dns.Msg).SetReply(r))
	})), up, Options{})
	defer table.Close()
	u := table.nodes["kubelink2.kubelink."].cluster.upstream
	u.queries.mu.Lock()
	u.queries.waiting = maxWaiting - 1
	u.queries.mu.Unlock()
	first := make(chan error, 1)
	go func() { _, err := queryTable(t, table, web, dns.TypeA, false, 0); first <- err }()
	<-began
	begin := time.Now()
	m, err := queryTable(t, table, "db.default.svc.kubelink2.kubelink.", dns.TypeA, false, 1232)
	if code, text := ede(m); err == nil || code != dns.ExtendedErrorCodeNetworkError || !strings.HasSuffix(text, "no answer yet to 1024 queries before this one") || time.Since(begin) > tryTimeout/2 {
		t.Errorf("after %v: %v, %v", time.Since(begin), err, m)
	}
	close(hold)
	if err := <-first; err != nil {
		t.Error(err)
	}
	if m, err := queryTable(t, table, "db.default.svc.kubelink2.kubelink.", dns.TypeA, false, 0); err != nil || m.Rcode != dns.RcodeSuccess {
		t.Errorf("%v, %v", err, m)
	}
}

// TestUpstreamEnds: the connection manager of an upstream ends when no table holds it.
func TestUpstreamEnds(t *testing.T) {
	before := runtime.NumGoroutine()
	table := many(nil, 50, up)
	if n := runtime.NumGoroutine(); n < before+40 { // those of earlier tests may end meanwhile
		t.Fatalf("%d goroutines, %d before", n, before)
	}
	table = New(table, nil, up, options)
	for deadline := time.Now().Add(20 * time.Second); runtime.NumGoroutine() > before+5; runtime.GC() {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
	table.Close()
	(*Table)(nil).Close()
}

// backend answers with its own name, or says why it cannot.
type backend struct {
	why     error
	loading bool
	asked   int
}

func (b *backend) Loading() bool { return b.loading }

func (b *backend) Answer(_ context.Context, state *request.Request) (*dns.Msg, error) {
	b.asked++
	if b.why != nil {
		return nil, b.why
	}
	m := new(dns.Msg)
	m.SetReply(state.Req)
	m.Answer = []dns.RR{&dns.A{Hdr: rrHeader(state.QName(), dns.TypeA), A: net.IPv4(100, 64, 16, 20)}}
	return m, nil
}

func (b *backend) Services(address netip.Addr) ([]string, error) {
	if address != netip.MustParseAddr("100.64.16.20") {
		return nil, b.why
	}
	return []string{"web.default.svc.kubelink2.kubelink."}, b.why
}

// A cluster with a Backend is asked there, and only while its link is usable.
func TestBackend(t *testing.T) {
	var asked atomic.Int64
	b, status := &backend{}, Status{Usable: true}
	opts := options
	opts.Backends = map[string]Backend{"kubelink2.kubelink.": b}
	z := zones(serve(t, clusterDNS(t, &asked)))
	table := New(nil, z, func(string) Status { return status }, opts)
	defer table.Close()
	const name = "web.default.svc.KubeLink2.kubelink."
	if m, err := queryTable(t, table, name, dns.TypeA, false, 0); err != nil || sections(m) != name+" 5 IN A 100.64.16.20 / / /" {
		t.Error(m, err)
	}
	b.why = errors.New("names are being loaded")
	m, err := queryTable(t, table, name, dns.TypeA, false, 1232)
	if code, text := ede(m); err != nil || m.Rcode != dns.RcodeServerFailure || code != dns.ExtendedErrorCodeNoReachableAuthority || text != b.why.Error() {
		t.Error(m, err)
	}
	if asked.Load() != 0 {
		t.Error("the DNS service was asked")
	}
	if match, _ := table.Match("x.kubelink2.kubelink."); match.Upstream().IsValid() {
		t.Error("an upstream that is not asked")
	}

	if New(table, z, func(string) Status { return status }, opts) != table {
		t.Error("nothing has changed")
	}
	status = Status{State: "Down"}
	next := New(table, z, func(string) Status { return status }, opts)
	defer next.Close()
	b.asked = 0
	if m, _ := queryTable(t, next, name, dns.TypeA, false, 1232); m.Rcode != dns.RcodeServerFailure || b.asked != 0 {
		t.Error(m, b.asked)
	}
	status = Status{Usable: true}
	opts.Backends = nil
	last := New(next, z, func(string) Status { return status }, opts)
	defer last.Close()
	if m, err := queryTable(t, last, name, dns.TypeA, false, 0); err != nil || len(m.Answer) != 1 || asked.Load() == 0 {
		t.Error(m, err)
	}
}

func TestUnchanged(t *testing.T) {
	addr := netip.MustParseAddrPort("127.0.0.1:1")
	status := Status{Usable: true, State: "Up"}
	same := func(string) Status { return status }
	table := New(nil, zones(addr), same, options)
	if New(table, zones(addr), same, Options{Serial: 99, NSAddresses: options.NSAddresses}) != table {
		t.Error("another table of the same things")
	}
	status = Status{State: "Down", Reason: "x"}
	next := New(table, zones(addr), same, options) // within the same second
	if next == table {
		t.Fatal("the same table though a link went down")
	}
	if m, _ := queryTable(t, next, "kubelink.", dns.TypeSOA, false, 0); m.Answer[0].(*dns.SOA).Serial != 8 {
		t.Errorf("serial of %v", m.Answer[0])
	}
	status.Reason = "y"
	if New(next, zones(addr), same, options) == next {
		t.Error("the same table though the reason changed")
	}
	other := New(next, zones(addr)[:1], same, options)
	if other == next || New(other, zones(addr)[:1], same, Options{}) == other {
		t.Error("the same table though zones or addresses changed")
	}
	other.Close()
}

// many makes n zones of a cluster each.
func many(prev *Table, n int, status func(string) Status) *Table {
	var z []mesh.Zone
	for i := range n {
		d := fmt.Sprintf("mesh%d.", i)
		z = append(z, mesh.Zone{Domain: d, Clusters: []mesh.ClusterZone{{
			Name: "c." + d, Link: "c." + d, ClusterDomain: "cluster.local.",
			Upstream: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)}), 53),
		}}})
	}
	return New(prev, z, status, options)
}

// BenchmarkNew is one change of a link among 250 zones with an upstream each.
func BenchmarkNew(b *testing.B) {
	changed := false
	status := func(link string) Status {
		return Status{Usable: true, State: "Up", Reason: fmt.Sprint(link == "c.mesh7." && changed)}
	}
	table := many(nil, 250, status)
	defer func() { table.Close() }()
	z := table.zones
	b.ReportAllocs()
	for b.Loop() {
		changed = !changed
		table = New(table, z, status, options)
	}
}

// BenchmarkAnswer is a query to a cluster over UDP on loopback.
func BenchmarkAnswer(b *testing.B) {
	var asked atomic.Int64
	table := New(nil, zones(serve(b, clusterDNS(b, &asked))), up, options)
	defer table.Close()
	b.ReportAllocs()
	for b.Loop() {
		if m, err := queryTable(b, table, "web.default.svc.kubelink2.kubelink.", dns.TypeA, false, 0); err != nil || len(m.Answer) != 1 {
			b.Fatal(m, err)
		}
	}
}
