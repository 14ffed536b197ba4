package zone

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// An alias from one zone of the mesh to another is followed here: clients do not do it.
func TestAliasesBetweenZones(t *testing.T) {
	second := serve(t, func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(r)
		m.Authoritative = true
		name := r.Question[0].Name
		if alias := map[string]string{
			"a.cluster.local.": "b.kubelink3.kubelink.", "none.cluster.local.": "x.kubelink.",
			"down.cluster.local.": "x.kubelink4.kubelink.",
			"loop.cluster.local.": "loop.kubelink3.kubelink.", "own.cluster.local.": "c.kubelink2.kubelink.",
			"apex.cluster.local.": "kubelink3.kubelink.",
		}[strings.ToLower(name)]; alias != "" {
			m.Answer = []dns.RR{rr(t, name+" 5 IN CNAME "+alias), rr(t, alias+" 5 IN A 6.6.6.6")}
		} else if name == "c.cluster.local." {
			m.Answer = []dns.RR{rr(t, name+" 5 IN A 10.2.0.1")}
		}
		w.WriteMsg(m)
	})
	third := serve(t, func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(r)
		m.Authoritative = true
		switch name := r.Question[0].Name; name {
		case "b.cluster.local.":
			m.Answer = []dns.RR{rr(t, name+" 5 IN A 10.3.0.1")}
		case "loop.cluster.local.":
			m.Answer = []dns.RR{rr(t, name+" 5 IN CNAME loop.kubelink2.kubelink.")}
		}
		w.WriteMsg(m)
	})
	z := []mesh.Zone{{Domain: "kubelink.", Clusters: []mesh.ClusterZone{
		{Name: "kubelink2.kubelink.", Link: "kubelink2", Upstream: second, ClusterDomain: "cluster.local."},
		{Name: "kubelink3.kubelink.", Link: "kubelink3", Upstream: third, ClusterDomain: "cluster.local.",
			Addresses: []netip.Addr{netip.MustParseAddr("192.168.0.13")}},
		{Name: "kubelink4.kubelink.", Link: "kubelink4", Upstream: third, ClusterDomain: "cluster.local."},
	}, Global: mesh.GlobalZone{Name: "svc.global.kubelink.", Upstream: serve(t, func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(r)
		m.Answer = []dns.RR{rr(t, r.Question[0].Name+" 5 IN CNAME a.kubelink2.kubelink.")}
		w.WriteMsg(m)
	}), Link: "kubelink2"}}}
	o := cachingOptions()
	o.ServeStale = time.Hour
	table := New(nil, z, func(link string) Status { return Status{Usable: link != "kubelink4", State: "Down"} }, o)
	defer func() { table.Close() }()
	const soa = "kubelink. 5 IN SOA ns.dns.kubelink. hostmaster.kubelink. 7 7200 1800 86400 5"
	for range 2 { // asked, and remembered
		for _, c := range []struct {
			name  string
			rcode int
			want  string
		}{
			{"A.kubelink2.kubelink.", 0,
				"A.kubelink2.kubelink. 5 IN CNAME b.kubelink3.kubelink. b.kubelink3.kubelink. 5 IN A 10.3.0.1 / / /"},
			{"own.kubelink2.kubelink.", 0,
				"own.kubelink2.kubelink. 5 IN CNAME c.kubelink2.kubelink. c.kubelink2.kubelink. 5 IN A 10.2.0.1 / / /"},
			{"apex.kubelink2.kubelink.", 0,
				"apex.kubelink2.kubelink. 5 IN CNAME kubelink3.kubelink. kubelink3.kubelink. 5 IN A 192.168.0.13 / / /"},
			{"none.kubelink2.kubelink.", dns.RcodeNameError, "none.kubelink2.kubelink. 5 IN CNAME x.kubelink. / " + soa +
				" / /"},
			{"down.kubelink2.kubelink.", dns.RcodeServerFailure, "/ / /"},
			{"loop.kubelink2.kubelink.", dns.RcodeServerFailure, "/ / /"},
			{"www.SVC.global.kubelink.", 0,
				"www.SVC.global.kubelink. 5 IN CNAME a.kubelink2.kubelink. a.kubelink2.kubelink. 5 IN CNAME " +
					"b.kubelink3.kubelink. b.kubelink3.kubelink. 5 IN A 10.3.0.1 / / /"},
		} {
			m, err := queryTable(t, table, c.name, dns.TypeA, false, 1232)
			if err != nil || m.Rcode != c.rcode || sections(m) != c.want {
				t.Errorf("%s: %v %v\n got %s\nwant %s", c.name, err, m.MsgHdr, sections(m), c.want)
			}
			reason := map[string]string{"down.kubelink2.kubelink.": "link kubelink4 is Down",
				"loop.kubelink2.kubelink.": "the aliases of loop.kubelink2.kubelink. lead in a circle"}[c.name]
			if _, text := ede(m); text != reason {
				t.Errorf("%s: %q", c.name, text)
			}
		}
	}
	if m, _ := queryTable(t, table, "a.kubelink2.kubelink.", dns.TypeCNAME, false, 0); len(m.Answer) != 1 {
		t.Errorf("%v", m)
	}

	// What is at the end of an alias that may be stale may be, too.
	table = New(table, z, func(link string) Status { return Status{Usable: link == "kubelink3", State: "Down"} }, o)
	for range 2 {
		m, _ := queryTable(t, table, "a.kubelink2.kubelink.", dns.TypeA, false, 1232)
		if code, text := ede(m); len(m.Answer) != 2 || code != dns.ExtendedErrorCodeStaleAnswer ||
			text != "link kubelink2 is Down" {
			t.Errorf("%v", m)
		}
		m, _ = queryTable(t, table, "b.kubelink3.kubelink.", dns.TypeA, false, 1232)
		if code, _ := ede(m); len(m.Answer) != 1 || code != 0 {
			t.Errorf("%v", m)
		}
	}
}

func TestDanglingTarget(t *testing.T) {
	const soa = "kubelink. 5 IN SOA ns.dns.kubelink. hostmaster.kubelink. 7 7200 1800 86400 5"
	for _, c := range []struct {
		what   string
		answer []string
		ns     []string
		change func(*dns.Msg)
		target string
		loop   bool
	}{
		{what: "nothing"},
		{what: "address", answer: []string{"q.kubelink. 5 IN A 10.0.0.1"}},
		{what: "alias", answer: []string{"Q.kubelink. 5 IN CNAME b.kubelink."}, target: "b.kubelink."},
		{what: "alias and address", answer: []string{"b.kubelink. 5 IN A 10.0.0.1", "q.kubelink. 5 IN CNAME b.kubelink."}},
		{what: "two aliases, unordered", answer: []string{"b.kubelink. 5 IN CNAME c.example.",
			"q.kubelink. 5 IN CNAME B.kubelink."},
			target: "c.example."},
		{what: "denial", answer: []string{"q.kubelink. 5 IN CNAME b.kubelink."}, ns: []string{soa}},
		{what: "denial by another zone", answer: []string{"q.kubelink. 5 IN CNAME b.example."}, ns: []string{soa},
			target: "b.example."},
		{what: "referral", answer: []string{"q.kubelink. 5 IN CNAME b.sub.kubelink."},
			ns: []string{"sub.kubelink. 5 IN NS ns.example."}},
		{what: "loop", answer: []string{"q.kubelink. 5 IN CNAME b.kubelink.", "b.kubelink. 5 IN CNAME q.kubelink."},
			loop: true},
		{what: "alias to itself", answer: []string{"q.kubelink. 5 IN CNAME q.kubelink."}, loop: true},
		{what: "query for the alias", answer: []string{"q.kubelink. 5 IN CNAME b.kubelink."},
			change: func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeCNAME }},
		{what: "query for all types", answer: []string{"q.kubelink. 5 IN CNAME b.kubelink."},
			change: func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeANY }},
		{what: "truncated", answer: []string{"q.kubelink. 5 IN CNAME b.kubelink."},
			change: func(m *dns.Msg) { m.Truncated = true }},
		{what: "failure", answer: []string{"q.kubelink. 5 IN CNAME b.kubelink."},
			change: func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure }},
	} {
		m := new(dns.Msg).SetQuestion("q.kubelink.", dns.TypeA)
		for _, s := range c.answer {
			m.Answer = append(m.Answer, rr(t, s))
		}
		for _, s := range c.ns {
			m.Ns = append(m.Ns, rr(t, s))
		}
		if c.change != nil {
			c.change(m)
		}
		if target, loop := danglingTarget(m); target != c.target || loop != c.loop {
			t.Errorf("%s: %q, loop %v, want %q, %v", c.what, target, loop, c.target, c.loop)
		}
	}
}

func TestAppendChain(t *testing.T) {
	req := new(dns.Msg).SetQuestion("Q.kubelink.", dns.TypeA)
	req.SetEdns0(1232, false)
	reply := new(dns.Msg).SetReply(req)
	reply.Authoritative = true
	reply.Answer = []dns.RR{rr(t, "Q.kubelink. 5 IN CNAME b.example.")}
	explainReply(reply, req, dns.ExtendedErrorCodeStaleAnswer, "link k1 is Down")
	for _, c := range []struct {
		rcode int
		want  string
	}{
		{dns.RcodeSuccess, "Q.kubelink. 5 IN CNAME b.example. b.example. 5 IN A 10.0.0.1 / / /"},
		{dns.RcodeNameError, "Q.kubelink. 5 IN CNAME b.example. b.example. 5 IN A 10.0.0.1 / / /"},
		{dns.RcodeServerFailure, "b.example. 5 IN A 10.0.0.1 / / /"},
	} {
		rest := new(dns.Msg).SetQuestion("b.example.", dns.TypeA)
		rest.Rcode, rest.Truncated = c.rcode, true
		rest.Answer = []dns.RR{rr(t, "b.example. 5 IN A 10.0.0.1")}
		joined := appendChain(reply, rest, req)
		failed := c.rcode == dns.RcodeServerFailure
		if joined.Rcode != c.rcode || sections(joined) != c.want || joined.Question[0].Name != "Q.kubelink." ||
			!joined.Truncated || joined.Authoritative == failed {
			t.Errorf("%s: %v", dns.RcodeToString[c.rcode], joined)
		}
		if code, text := ede(joined); !failed && (code != dns.ExtendedErrorCodeStaleAnswer || text != "link k1 is Down") {
			t.Errorf("%s: %d %q", dns.RcodeToString[c.rcode], code, text)
		}
	}
	if len(reply.Answer) != 1 || len(reply.IsEdns0().Option) != 1 {
		t.Errorf("the first reply is modified: %v", reply)
	}
}
