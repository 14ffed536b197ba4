package zone

import (
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Addresses of services have the names that the cluster gives them.
func TestReverse(t *testing.T) {
	var asked atomic.Int64
	table := New(nil, clusters(serve(t, func(w dns.ResponseWriter, r *dns.Msg) {
		asked.Add(1)
		m := new(dns.Msg)
		m.SetReply(r)
		name := r.Question[0].Name
		switch name {
		case "20.16.64.100.in-addr.arpa.":
			m.Answer = []dns.RR{
				rr(t, name+" 30 IN PTR web.default.svc.cluster.local."), rr(t, name+" 30 IN PTR www.bank.example."),
				rr(t, "21.16.64.100.in-addr.arpa. 30 IN PTR db.default.svc.cluster.local."),
			}
			m.Ns = []dns.RR{rr(t, "in-addr.arpa. 30 IN NS ns.dns.cluster.local.")}
		case "66.16.64.100.in-addr.arpa.":
			m.Answer = []dns.RR{rr(t, name+" 30 IN PTR www.bank.example.")}
		default:
			m.Rcode = dns.RcodeNameError
		}
		w.WriteMsg(m)
	})), up, cachingOptions())
	defer table.Close()
	for range 2 {
		for _, c := range []struct {
			name  string
			rcode int
			want  string
		}{
			{"20.16.64.100.IN-addr.arpa.", 0, "20.16.64.100.IN-addr.arpa. 5 IN PTR web.default.svc.kubelink2.kubelink. / / /"},
			{"66.16.64.100.in-addr.arpa.", dns.RcodeServerFailure, "/ / /"},
			{"30.16.64.100.in-addr.arpa.", dns.RcodeNameError,
				"/ 16.64.100.in-addr.arpa. 5 IN SOA ns.dns.kubelink. hostmaster.kubelink. 7 7200 1800 86400 5 / /"},
		} {
			if m, _ := queryTable(t, table, c.name, dns.TypePTR, false, 0); m.Rcode != c.rcode || sections(m) != c.want {
				t.Errorf("%s: %v\n got %s\nwant %s", c.name, m.MsgHdr, sections(m), c.want)
			}
		}
	}
	if n := asked.Load(); n != 4 {
		t.Errorf("asked %d times", n)
	}

	// A stale name of an address is one in the cluster's domain of today.
	o := cachingOptions()
	o.ServeStale = time.Hour
	service := serve(t, func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(r)
		m.Answer = []dns.RR{rr(t, r.Question[0].Name+" 30 IN PTR web.default.svc.cluster.local.")}
		w.WriteMsg(m)
	})
	z := clusters(service)
	stale := New(nil, z, up, o)
	defer func() { stale.Close() }()
	const name = "20.16.64.100.in-addr.arpa."
	queryTable(t, stale, name, dns.TypePTR, false, 0)
	for domain, rcode := range map[string]int{"kubelink.": dns.RcodeSuccess, "renamed.": dns.RcodeServerFailure} {
		z := clusters(service)
		z[0].Domain, z[0].Global.Name = domain, ""
		for i := range z[0].Clusters {
			z[0].Clusters[i].Name = strings.TrimSuffix(z[0].Clusters[i].Name, "kubelink.") + domain
		}
		stale = New(stale, z, func(string) Status { return Status{State: "Down"} }, o)
		if m, _ := queryTable(t, stale, name, dns.TypePTR, false, 0); m.Rcode != rcode {
			t.Errorf("%s: %v", domain, m)
		}
	}
}

// With a backend, it is asked for the names of services.
func TestReverseOfBackend(t *testing.T) {
	z := clusters(netip.MustParseAddrPort("127.0.0.1:1"))
	z[0].Clusters[2].API = mesh.API{Use: true}
	o, source := options, &backend{}
	o.Backends = map[string]Backend{"kubelink2.kubelink.": source}
	table := New(nil, z, up, o)
	defer table.Close()
	for name, want := range map[string]string{
		"20.16.64.100.in-addr.arpa.": "20.16.64.100.in-addr.arpa. 5 IN PTR web.default.svc.kubelink2.kubelink. / / /",
		"30.16.64.100.in-addr.arpa.": "/ 16.64.100.in-addr.arpa. 5 IN SOA ns.dns.kubelink. hostmaster.kubelink. 7 7200 " +
			"1800 86400 5 / /",
	} {
		if m, err := queryTable(t, table, name, dns.TypePTR, false, 0); err != nil || sections(m) != want ||
			(m.Rcode == dns.RcodeNameError) != (len(m.Answer) == 0) {
			t.Errorf("%s: %v\n got %s\nwant %s", name, err, sections(m), want)
		}
	}
	source.why = errors.New("services is forbidden")
	m, err := queryTable(t, table, "20.16.64.100.in-addr.arpa.", dns.TypePTR, false, 1232)
	if _, text := ede(m); err != nil || m.Rcode != dns.RcodeServerFailure || text != "services is forbidden" {
		t.Errorf("%v, %v", m, err)
	}
}

// Each reverse zone that answers name has a SOA and NS records, and so has the zone above addresses of a network that
// is no zone itself.
func TestReverseZones(t *testing.T) {
	z := clusters(netip.MustParseAddrPort("127.0.0.1:1"))
	z[0].Networks = append(z[0].Networks, netip.MustParsePrefix("fd00:168::/60"))
	z[0].Clusters[0].Services = mesh.Prefixes{netip.MustParsePrefix("10.1.2.128/26")}
	table := New(nil, z, down, options) // who serves a zone does not depend on links
	defer table.Close()
	const v6 = "0.0.0.0.0.0.0.0.8.6.1.0.0.0.d.f.ip6.arpa." // fd00:168::/64
	for zone, want := range map[string]string{             // "": nothing here; "shared": where no other server is asked
		"0.168.192.in-addr.arpa.":        "zone",
		"16.64.100.in-addr.arpa.":        "zone",
		"31.64.100.in-addr.arpa.":        "zone",
		"2.1.10.in-addr.arpa.":           "zone", // of addresses of ours, and of others
		"64.100.in-addr.arpa.":           "shared",
		"32.64.100.in-addr.arpa.":        "denied", // in the one above
		"x.64.100.in-addr.arpa.":         "denied",
		"1.40.64.100.in-addr.arpa.":      "denied",
		"1.2.1.10.in-addr.arpa.":         "denied",
		"100.in-addr.arpa.":              "",
		"168.192.in-addr.arpa.":          "",
		"in-addr.arpa.":                  "",
		"x.in-addr.arpa.":                "",
		"065.100.in-addr.arpa.":          "",
		"1.1.1.10.in-addr.arpa.":         "",
		"dns-sd.16.64.100.in-addr.arpa.": "NXDOMAIN",
		"_x.20.16.64.100.in-addr.arpa.":  "NXDOMAIN",
		`a\.20.16.64.100.in-addr.arpa.`:  "NXDOMAIN",
		v6:                               "zone",
		v6[2:]:                           "zone", // /60
		v6[4:]:                           "",
		"a." + v6:                        "zone",
		"10." + v6:                       "NXDOMAIN",
		"ip6.arpa.":                      "",
	} {
		name := zone
		m, ok := table.Match(name)
		if _, shared := table.MatchShared(name); want == "shared" || want == "denied" {
			if ok || !shared {
				t.Errorf("%s: matched %v, shared %v", name, ok, shared)
			}
			m, ok = table.MatchShared(name)
		}
		if ok != (want != "") {
			t.Errorf("%s: %v", name, m)
		}
		if !ok {
			continue
		}
		for _, c := range []struct {
			qtype uint16
			rr    string
		}{
			{dns.TypeSOA, name + " 5 IN SOA ns.dns.kubelink. hostmaster.kubelink. 7 7200 1800 86400 5"},
			{dns.TypeNS, name + " 5 IN NS ns.dns.kubelink."}, {dns.TypePTR, ""}, {dns.TypeA, ""}, {dns.TypeDS, ""},
		} {
			req := new(dns.Msg)
			req.SetQuestion(name, c.qtype)
			reply, err := m.Answer(t.Context(), &request.Request{W: &test.ResponseWriter{}, Req: req})
			var got string
			if len(reply.Answer) > 0 {
				got = strings.Join(strings.Fields(reply.Answer[0].String()), " ")
			}
			rcode := dns.RcodeSuccess
			if want != "zone" && want != "shared" {
				rcode, c.rr = dns.RcodeNameError, ""
			}
			if err != nil || got != c.rr || reply.Rcode != rcode || !reply.Authoritative {
				t.Errorf("%s %s: %v %v", name, dns.TypeToString[c.qtype], err, reply)
			}
			if got != "" {
				continue
			}
			// The zone that a denial names says that it is one.
			soa := reply.Ns[0].(*dns.SOA)
			if of, ok := table.Match(soa.Hdr.Name); (!ok || !of.exact) && want != "shared" && want != "denied" ||
				!inDomain(name, soa.Hdr.Name) {
				t.Errorf("%s: denied in the name of %s", name, soa.Hdr.Name)
			}
		}
	}
}
