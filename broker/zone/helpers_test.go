package zone

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
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

// ageEntries makes what is remembered of a name older.
func (rc *ReplyCache) ageEntries(name string, by time.Duration) {
	rc.cache.Walk(func(items map[uint64]*entry, key uint64) bool {
		if e := items[key]; e != nil && e.name == name {
			e.storedAt = e.storedAt.Add(-by)
		}
		return true
	})
}

// cachingOptions are options with an empty memory.
func cachingOptions() Options {
	o := options
	o.Replies = NewReplyCache()
	return o
}

func down(string) Status { return Status{State: "Down", Reason: "connection lost"} }

const web = "web.default.svc.kubelink2.kubelink."

// clusters have addresses and networks.
func clusters(upstream netip.AddrPort) []mesh.Zone {
	z := zones(upstream)
	z[0].Networks = mesh.Prefixes{netip.MustParsePrefix("192.168.0.0/24")}
	z[0].Clusters[1].Addresses, z[0].Clusters[1].Services = []netip.Addr{netip.MustParseAddr("192.168.0.11")},
		mesh.Prefixes{netip.MustParsePrefix("100.64.0.0/20")}
	z[0].Clusters[2].Addresses, z[0].Clusters[2].Services = []netip.Addr{netip.MustParseAddr("192.168.0.12")},
		mesh.Prefixes{netip.MustParsePrefix("100.64.16.0/20")}
	z[1].Clusters[0].Addresses = []netip.Addr{netip.MustParseAddr("fd00::1")}
	return z
}

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
			m.Ns = []dns.RR{rr(t, "kubelink. 5 IN NS ns.evil.example."), soa,
				rr(t, "kubelink. 5 IN SOA ns.evil.example. evil.example. 1 2 3 4 5")}
		case "onlyevil.default.svc.cluster.local.":
			m.Answer = []dns.RR{rr(t, "db.default.svc.kubelink3.kubelink. 5 IN A 6.6.6.6")}
		case "lead.default.svc.cluster.local.":
			m.Answer = []dns.RR{rr(t, "db.c.other.kubelink. 5 IN A 6.6.6.6"), rr(t, q.Name+" 5 IN CNAME db.c.other.kubelink.")}
		case "external.default.svc.cluster.local.":
			m.Answer = []dns.RR{rr(t, "www.example.com. 5 IN A 192.0.2.1"), rr(t, q.Name+" 5 IN CNAME www.example.com."),
				rr(t, "www.bank.example. 5 IN A 6.6.6.6")}
		case "x.dname.default.svc.cluster.local.":
			m.Answer = []dns.RR{
				rr(t, "dname.default.svc.cluster.local. 5 IN DNAME example.com."), rr(t, q.Name+" 5 IN CNAME x.example.com."),
				rr(t, "x.example.com. 5 IN A 192.0.2.2"),
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
			m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"},
				&dns.EDNS0_NSID{Code: dns.EDNS0NSID, Nsid: "aa"}}
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

var options = Options{Serial: 7, NSAddresses: []netip.Addr{netip.MustParseAddr("100.64.0.11"),
	netip.MustParseAddr("fd00::11")}}

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
