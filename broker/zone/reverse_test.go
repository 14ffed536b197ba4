package zone

import (
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

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
