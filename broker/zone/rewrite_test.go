package zone

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// hipKey is the public key of a HIP record.
const hipKey = "AwEAAbdxyhNuSutc5EMzxTs9LBPCIkOFH8cIvM4p9+LrV4e19WzK00+CI6zBCQTdtWsuxKbWIy87UOoJTwkUs7lBu+" +
	"Upr1gsNrut79ryra+bSRGQb1slImA8YVJyuIDsj7kwzG7jnERNqnWxZ48AWkskmdHaVDP4BcelrTI3rMXdXF5D"

// recordRewrites are one of every type with names in its data, inside (cluster.local) and outside (example.com) of the
// cluster, with what they become.
var recordRewrites = []struct{ in, out string }{
	{`a.cluster.local. 30 IN A 10.0.0.1`, `a.c2.kubelink. 5 IN A 10.0.0.1`},
	{`a.cluster.local. 3 IN AAAA fd00::1`, `a.c2.kubelink. 3 IN AAAA fd00::1`},
	{`a.cluster.local. 0 IN TXT "b.cluster.local."`, `a.c2.kubelink. 0 IN TXT "b.cluster.local."`},
	{`a.CLUSTER.Local. 5 IN CNAME b.Cluster.local.`, `a.c2.kubelink. 5 IN CNAME b.c2.kubelink.`},
	{`a.cluster.local. 5 IN CNAME www.example.com.`, `a.c2.kubelink. 5 IN CNAME www.example.com.`},
	{`a.cluster.local. 5 IN DNAME cluster.local.`, `a.c2.kubelink. 5 IN DNAME c2.kubelink.`},
	{`a.cluster.local. 5 IN PTR b.cluster.local.`, `a.c2.kubelink. 5 IN PTR b.c2.kubelink.`},
	{`_http._tcp.a.cluster.local. 5 IN SRV 0 50 80 10-0-0-1.a.cluster.local.`,
		`_http._tcp.a.c2.kubelink. 5 IN SRV 0 50 80 10-0-0-1.a.c2.kubelink.`},
	{`a.cluster.local. 5 IN MX 10 b.cluster.local.`, `a.c2.kubelink. 5 IN MX 10 b.c2.kubelink.`},
	{`a.cluster.local. 5 IN NAPTR 1 1 "S" "SIP+D2U" "" _sip._udp.cluster.local.`,
		`a.c2.kubelink. 5 IN NAPTR 1 1 "S" "SIP+D2U" "" _sip._udp.c2.kubelink.`},
	{`a.cluster.local. 5 IN SVCB 1 b.cluster.local. alpn="h2"`, `a.c2.kubelink. 5 IN SVCB 1 b.c2.kubelink. alpn="h2"`},
	{`a.cluster.local. 5 IN HTTPS 1 . alpn="h2"`, `a.c2.kubelink. 5 IN HTTPS 1 . alpn="h2"`},
	{`a.cluster.local. 5 IN HTTPS 0 b.cluster.local.`, `a.c2.kubelink. 5 IN HTTPS 0 b.c2.kubelink.`},
	{`a.cluster.local. 5 IN AFSDB 1 b.cluster.local.`, `a.c2.kubelink. 5 IN AFSDB 1 b.c2.kubelink.`},
	{`a.cluster.local. 5 IN RT 1 b.cluster.local.`, `a.c2.kubelink. 5 IN RT 1 b.c2.kubelink.`},
	{`a.cluster.local. 5 IN KX 1 b.cluster.local.`, `a.c2.kubelink. 5 IN KX 1 b.c2.kubelink.`},
	{`a.cluster.local. 5 IN RP b.cluster.local. c.cluster.local.`, `a.c2.kubelink. 5 IN RP b.c2.kubelink. c.c2.kubelink.`},
	{`a.cluster.local. 5 IN MINFO b.cluster.local. c.cluster.local.`,
		`a.c2.kubelink. 5 IN MINFO b.c2.kubelink. c.c2.kubelink.`},
	{`a.cluster.local. 5 IN MB b.cluster.local.`, `a.c2.kubelink. 5 IN MB b.c2.kubelink.`},
	{`a.cluster.local. 5 IN MG b.cluster.local.`, `a.c2.kubelink. 5 IN MG b.c2.kubelink.`},
	{`a.cluster.local. 5 IN MR b.cluster.local.`, `a.c2.kubelink. 5 IN MR b.c2.kubelink.`},
	{`a.cluster.local. 5 IN MF b.cluster.local.`, `a.c2.kubelink. 5 IN MF b.c2.kubelink.`},
	{`a.cluster.local. 5 IN MD b.cluster.local.`, `a.c2.kubelink. 5 IN MD b.c2.kubelink.`},
	{`a.cluster.local. 5 IN PX 1 b.cluster.local. c.cluster.local.`,
		`a.c2.kubelink. 5 IN PX 1 b.c2.kubelink. c.c2.kubelink.`},
	{`a.cluster.local. 5 IN NSAP-PTR b.cluster.local.`, `a.c2.kubelink. 5 IN NSAP-PTR b.c2.kubelink.`},
	{`a.cluster.local. 5 IN TALINK b.cluster.local. c.cluster.local.`,
		`a.c2.kubelink. 5 IN TALINK b.c2.kubelink. c.c2.kubelink.`},
	{`a.cluster.local. 5 IN LP 1 b.cluster.local.`, `a.c2.kubelink. 5 IN LP 1 b.c2.kubelink.`},
	{`a.cluster.local. 5 IN IPSECKEY 10 3 2 b.cluster.local. AQNRU3mG7TVTO2BkR47usntb102uFJtugbo6BSGvgqt4AQ==`,
		`a.c2.kubelink. 5 IN IPSECKEY 10 3 2 b.c2.kubelink. AQNRU3mG7TVTO2BkR47usntb102uFJtugbo6BSGvgqt4AQ==`},
	{`a.cluster.local. 5 IN IPSECKEY 10 1 2 192.0.2.38 AQNRU3mG7TVTO2BkR47usntb102uFJtugbo6BSGvgqt4AQ==`,
		`a.c2.kubelink. 5 IN IPSECKEY 10 1 2 192.0.2.38 AQNRU3mG7TVTO2BkR47usntb102uFJtugbo6BSGvgqt4AQ==`},
	{`a.cluster.local. 5 IN AMTRELAY 10 0 3 b.cluster.local.`, `a.c2.kubelink. 5 IN AMTRELAY 10 0 3 b.c2.kubelink.`},
	{`a.cluster.local. 5 IN HIP 2 200100107b1a74df365639cc39f1d578 ` + hipKey + ` b.cluster.local. c.example.com.`,
		`a.c2.kubelink. 5 IN HIP 2 200100107b1a74df365639cc39f1d578 ` + hipKey + ` b.c2.kubelink. c.example.com.`},
	// Nor do records of who serves the zone: kubelink does.
	{`cluster.local. 5 IN NS ns.dns.cluster.local.`, ``},
	{`a.cluster.local. 5 IN NS ns.dns.cluster.local.`, ``},
	{`cluster.local. 300 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5`, ``},
	// Signatures and denials do not survive.
	{`a.cluster.local. 5 IN RRSIG A 8 3 300 20300101000000 20200101000000 1 cluster.local. AAAA`, ``},
	{`a.cluster.local. 5 IN NSEC b.cluster.local. A NSEC`, ``},
}

func TestSection(t *testing.T) {
	for _, c := range recordRewrites {
		rr, err := dns.NewRR(c.in)
		if err != nil {
			t.Fatalf("%s: %v", c.in, err)
		}
		// Through the wire, as an upstream sends it.
		wire := make([]byte, 1024)
		n, err := dns.PackRR(rr, wire, 0, nil, false)
		if err != nil {
			t.Fatalf("%s: %v", c.in, err)
		}
		if rr, _, err = dns.UnpackRR(wire[:n], 0); err != nil {
			t.Fatalf("%s: %v", c.in, err)
		}
		w := newRewriter("cluster.local.")
		kept, err := w.rewriteSection([]dns.RR{rr}, nil)
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
		}
		if c.out == "" {
			if len(kept) != 0 {
				t.Errorf("%s became %v", c.in, kept)
			}
			continue
		}
		want, err := dns.NewRR(c.out)
		if err != nil {
			t.Fatalf("%s: %v", c.out, err)
		}
		if len(kept) != 1 || kept[0].String() != want.String() {
			t.Errorf("%s\n became %v\n   want %s", c.in, kept, want)
		}
	}
}

func TestSectionKeepsTheClientsSpelling(t *testing.T) {
	w := newRewriter("cluster.local.")
	cname, _ := dns.NewRR("Q.Cluster.LOCAL. 5 IN CNAME q.cluster.local.")
	kept, _ := w.rewriteSection([]dns.RR{cname}, nil)
	if got := kept[0].Header().Name; got != "Q.c2.KubeLink." {
		t.Errorf("owner is %s", got)
	}
}

func TestSectionTooLong(t *testing.T) {
	w := rewriter{from: "c.", to: "cluster-two.kubelink.", table: new(Table), cluster: new(cluster)}
	for _, s := range []string{
		long(4) + strings.Repeat("x", 40) + ".c. 5 IN A 10.0.0.1",
		"a.c. 5 IN SRV 0 0 80 " + long(4) + strings.Repeat("x", 40) + ".c.",
	} {
		rr, err := dns.NewRR(s)
		if err != nil {
			t.Fatal(err)
		}
		ok, _ := dns.NewRR("b.c. 5 IN A 10.0.0.2")
		kept, all := w.rewriteSection([]dns.RR{rr, ok}, nil)
		if all != errTooLong || len(kept) != 1 || kept[0].Header().Name != "b.cluster-two.kubelink." {
			t.Errorf("%s: %v %v", s, kept, all)
		}
	}
}

// TestEachName compares the list in eachName with the library: the tags of its record types say which fields are names.
func TestEachName(t *testing.T) {
	signatures := map[uint16]bool{ // dropped by section
		dns.TypeRRSIG: true, dns.TypeSIG: true, dns.TypeNSEC: true, dns.TypeNXT: true, dns.TypeTSIG: true,
	}
	for rrtype, make := range dns.TypeToRR {
		rr := make()
		want := 0
		var mark func(v reflect.Value)
		mark = func(v reflect.Value) {
			for i := range v.NumField() {
				field, tag := v.Field(i), v.Type().Field(i).Tag.Get("dns")
				switch {
				case v.Type().Field(i).Name == "Hdr":
				case field.Kind() == reflect.Struct:
					mark(field)
				case strings.HasSuffix(tag, "domain-name") && field.Kind() == reflect.Slice:
					field.Set(reflect.ValueOf([]string{"x.", "y."}))
					want += 2
				case strings.HasSuffix(tag, "domain-name"), v.Type().Field(i).Name == "GatewayHost":
					field.SetString("x.")
					want++
				}
			}
		}
		mark(reflect.ValueOf(rr).Elem())
		if rrtype == dns.TypeTSIG || signatures[rrtype] || rrtype == dns.TypeOPT {
			continue
		}
		got := 0
		eachName(rr, func(*string) { got++ })
		if got != want {
			t.Errorf("%s: %d names, want %d", dns.TypeToString[rrtype], got, want)
		}
	}
}

// newRewriter is for a question about cluster c2, among clusters that lie where they can be in the way.
func newRewriter(from string) rewriter {
	table := New(nil, []mesh.Zone{
		{Domain: "kubelink.", Clusters: []mesh.ClusterZone{
			{Name: "c2.kubelink.", ClusterDomain: from}, {Name: "c3.kubelink.", ClusterDomain: from},
			{Name: "dns.kubelink.", ClusterDomain: from},
		}},
		{Domain: "in.c2.kubelink.", Mesh: "in"},
		{Domain: "mesh.example.", Mesh: "other",
			Clusters: []mesh.ClusterZone{{Name: "c.mesh.example.", ClusterDomain: from}}},
	}, nil, Options{})
	asked, _ := replaceSuffix("q.cluster.local.", "cluster.local.", from)
	return rewriter{
		from: from, to: "c2.kubelink.", queried: asked, client: "Q.c2.KubeLink.",
		table: table, cluster: table.nodes["c2.kubelink."].cluster,
	}
}

// evil are records that a cluster has no business to send, in any section.
var evil = []string{
	"db.default.svc.kubelink3.kubelink. 5 IN A 6.6.6.6", "kubelink. 5 IN NS ns.evil.example.",
	"ns.dns.kubelink. 5 IN A 6.6.6.6", "www.bank.example. 5 IN A 6.6.6.6",

	"db.default.svc.c3.kubelink. 5 IN A 6.6.6.6", "x.c.mesh.example. 5 IN A 6.6.6.6",
	"KubeLink. 5 IN SOA ns.evil.example. evil.example. 1 7200 1800 86400 5", ". 5 IN NS ns.evil.example.",
	"q.c2.kubelink. 5 IN A 6.6.6.6", "local. 5 IN DNAME evil.example.",
	"xcluster.local. 5 IN A 6.6.6.6", `x\.cluster.local. 5 IN A 6.6.6.6`,
}

func TestForeignRecords(t *testing.T) {
	const soa = "cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"
	const others = " / / b.c2.kubelink. 5 IN A 10.0.0.2 /"
	for _, e := range evil {
		for _, c := range []struct {
			answer []dns.RR
			want   string
			err    error
		}{
			{[]dns.RR{rr(t, e), rr(t, "q.cluster.local. 5 IN A 10.0.0.1"), rr(t, e)}, "Q.c2.KubeLink. 5 IN A 10.0.0.1" + others,
				nil},
			{nil, others[1:], nil},
			{[]dns.RR{rr(t, e)}, "", errForeign}, // nothing but that is no answer, and no denial either
		} {
			w := newRewriter("cluster.local.")
			m := &dns.Msg{Answer: c.answer, Ns: []dns.RR{rr(t, e), rr(t, soa)}, Extra: []dns.RR{
				rr(t, e), &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}, rr(t, "b.cluster.local. 5 IN A 10.0.0.2"),
			}}
			m.Authoritative = true
			err := w.rewriteReply(m)
			if err != c.err || err == nil && (sections(m) != c.want || !m.Authoritative || m.IsEdns0() == nil) {
				t.Errorf("%s: %v aa %v\n got %s\nwant %s", e, err, m.Authoritative, sections(m), c.want)
			}
		}
	}

	// The domain of a mesh below the cluster's: the names in it are not the cluster's.
	w := newRewriter("cluster.local.")
	m := &dns.Msg{Extra: []dns.RR{rr(t, "x.in.cluster.local. 5 IN A 6.6.6.6"), rr(t, "b.cluster.local. 5 IN A 10.0.0.2")}}
	if err := w.rewriteReply(m); err != nil || sections(m) != "/ / b.c2.kubelink. 5 IN A 10.0.0.2 /" {
		t.Errorf("%v %s", err, sections(m))
	}
}

func TestChains(t *testing.T) {
	for _, c := range []struct {
		name string
		in   string // records, separated by semicolons
		want string // the same; empty: errForeign
		aa   bool
	}{
		{"inside", "q.cluster.local. 5 IN CNAME b.cluster.local.;b.cluster.local. 5 IN A 10.0.0.1",
			"Q.c2.KubeLink. 5 IN CNAME b.c2.kubelink.;b.c2.kubelink. 5 IN A 10.0.0.1", true},
		{"ExternalName without address", "q.cluster.local. 5 IN CNAME www.example.", "Q.c2.KubeLink. 5 IN CNAME www.example.",
			true},
		{"ExternalName", "q.cluster.local. 5 IN CNAME www.example.;WWW.example. 5 IN CNAME cdn.example.;cdn.example. 5 IN " +
			"A 1.1.1.1;cdn.example. 5 IN A 1.1.1.2",
			"Q.c2.KubeLink. 5 IN CNAME www.example.;WWW.example. 5 IN CNAME cdn.example.;cdn.example. 5 IN A " +
				"1.1.1.1;cdn.example. 5 IN A 1.1.1.2", false},
		{"unordered", "cdn.example. 5 IN A 1.1.1.1;www.example. 5 IN CNAME cdn.example.;www.bank.example. 5 IN A " +
			"6.6.6.6;Q.cluster.local. 5 IN CNAME www.example.",
			"cdn.example. 5 IN A 1.1.1.1;www.example. 5 IN CNAME cdn.example.;Q.c2.KubeLink. 5 IN CNAME www.example.", false},
		{"out and in", "q.cluster.local. 5 IN CNAME www.example.;www.example. 5 IN CNAME " +
			"b.cluster.local.;b.cluster.local. 5 IN A 10.0.0.1",
			"Q.c2.KubeLink. 5 IN CNAME www.example.;www.example. 5 IN CNAME b.c2.kubelink.;b.c2.kubelink. 5 IN A 10.0.0.1",
			false},
		{"off the chain", "q.cluster.local. 5 IN A 10.0.0.1;b.cluster.local. 5 IN CNAME www.example.;www.example. 5 IN A " +
			"1.1.1.1",
			"Q.c2.KubeLink. 5 IN A 10.0.0.1;b.c2.kubelink. 5 IN CNAME www.example.", true},
		{"loop", "q.cluster.local. 5 IN CNAME b.example.;b.example. 5 IN CNAME q.cluster.local.",
			"Q.c2.KubeLink. 5 IN CNAME b.example.;b.example. 5 IN CNAME Q.c2.KubeLink.", false},

		{"DNAME above a mesh below",
			"cluster.local. 5 IN DNAME example.;q.cluster.local. 5 IN CNAME q.example.;q.example. 5 IN A 1.1.1.1", "", false},
		{"DNAME", "q.example. 5 IN A 1.1.1.1;q.cluster.local. 5 IN CNAME x.d.cluster.local.;d.cluster.local. 5 IN DNAME " +
			"example.;x.example. 5 IN A 1.1.1.1",
			"Q.c2.KubeLink. 5 IN CNAME x.d.c2.kubelink.;d.c2.kubelink. 5 IN DNAME example.;x.example. 5 IN A 1.1.1.1", false},
		{"DNAME outside", "q.cluster.local. 5 IN CNAME x.d.test.;d.test. 5 IN DNAME e.test.;x.d.test. 5 IN CNAME " +
			"x.e.test.;x.e.test. 5 IN A 1.1.1.1;x.f.test. 5 IN A 1.1.1.1",
			"Q.c2.KubeLink. 5 IN CNAME x.d.test.;d.test. 5 IN DNAME e.test.;x.d.test. 5 IN CNAME x.e.test.;x.e.test. 5 IN A " +
				"1.1.1.1", false},
		{"DNAME above a mesh domain",
			"q.cluster.local. 5 IN CNAME www.example.;example. 5 IN DNAME evil.test.;www.evil.test. 5 IN A 6.6.6.6", "", false},
		{"DNAME above the cluster's domain", "local. 5 IN DNAME evil.example.;q.cluster.evil.example. 5 IN A 6.6.6.6", "",
			false},
		{"DNAME into a mesh domain",
			"q.cluster.local. 5 IN CNAME x.d.cluster.local.;d.cluster.local. 5 IN DNAME c3.kubelink.", "", false},
		{"DNAME to the root",
			"q.cluster.local. 5 IN CNAME x.kubelink.d.cluster.local.;d.cluster.local. 5 IN DNAME .;x.kubelink. 5 IN A 6.6.6.6",
			"Q.c2.KubeLink. 5 IN CNAME x.kubelink.d.c2.kubelink.;d.c2.kubelink. 5 IN DNAME .", true},
		{"DNAME that grows", "q.cluster.local. 5 IN CNAME x.d.test.;d.test. 5 IN DNAME d.d.test.",
			"Q.c2.KubeLink. 5 IN CNAME x.d.test.;d.test. 5 IN DNAME d.d.test.", false},

		// What lies in a mesh domain we say ourselves.
		{"into another cluster", "q.cluster.local. 5 IN CNAME db.c3.kubelink.;db.c3.kubelink. 5 IN A 6.6.6.6",
			"Q.c2.KubeLink. 5 IN CNAME db.c3.kubelink.", true},
		{"to another cluster, by itself", "q.cluster.local. 5 IN CNAME db.c3.kubelink.",
			"Q.c2.KubeLink. 5 IN CNAME db.c3.kubelink.", true},
		{"to the apex", "q.cluster.local. 5 IN CNAME KUBELINK.;KUBELINK. 5 IN A 6.6.6.6",
			"Q.c2.KubeLink. 5 IN CNAME KUBELINK.", true},
		{"into another mesh", "q.cluster.local. 5 IN CNAME x.c.mesh.example.;x.c.mesh.example. 5 IN A 6.6.6.6",
			"Q.c2.KubeLink. 5 IN CNAME x.c.mesh.example.", true},
		{"out and into a mesh, unordered",
			"x.mesh.example. 5 IN A 6.6.6.6;www.test. 5 IN CNAME x.mesh.example.;q.cluster.local. 5 IN CNAME www.test.",
			"www.test. 5 IN CNAME x.mesh.example.;Q.c2.KubeLink. 5 IN CNAME www.test.", false},
		{"as the mesh calls it", "q.cluster.local. 5 IN CNAME b.c2.kubelink.;b.c2.kubelink. 5 IN A 10.0.0.1",
			"Q.c2.KubeLink. 5 IN CNAME b.c2.kubelink.", true},
		{"into a mesh below", "q.cluster.local. 5 IN CNAME x.in.cluster.local.;x.in.cluster.local. 5 IN A 6.6.6.6",
			"Q.c2.KubeLink. 5 IN CNAME x.in.c2.kubelink.", true},
		{"through a mesh and out",
			"q.cluster.local. 5 IN CNAME x.c3.kubelink.;x.c3.kubelink. 5 IN CNAME www.bank.example.;www.bank.example. 5 IN A " +
				"6.6.6.6", "Q.c2.KubeLink. 5 IN CNAME x.c3.kubelink.", true},
	} {
		w := newRewriter("cluster.local.")
		m := new(dns.Msg)
		m.Authoritative = true
		for _, s := range strings.Split(c.in, ";") {
			m.Answer = append(m.Answer, rr(t, s))
		}
		err := w.rewriteReply(m)
		if c.want == "" {
			if err != errForeign {
				t.Errorf("%s: %v %v", c.name, err, m.Answer)
			}
			continue
		}
		want := strings.ReplaceAll(c.want, ";", " ") + " / / /"
		if got := sections(m); err != nil || got != want || m.Authoritative != c.aa {
			t.Errorf("%s: %v aa %v\n got %s\nwant %s", c.name, err, m.Authoritative, got, want)
		}
	}

	// A chain without end costs no more than one that is long.
	m := &dns.Msg{Answer: []dns.RR{rr(t, "q.cluster.local. 5 IN CNAME 0.test.")}}
	for i := range 50 {
		m.Answer = append(m.Answer, rr(t, fmt.Sprintf("%d.test. 5 IN CNAME %d.test.", i, i+1)))
	}
	w := newRewriter("cluster.local.")
	if err := w.rewriteReply(m); err != nil || len(m.Answer) != 1+maxChain {
		t.Errorf("%v, %d records", err, len(m.Answer))
	}
}

// TestNameServersName: a cluster may be called dns, but is not our name server.
func TestNameServersName(t *testing.T) {
	w := newRewriter("cluster.local.")
	w.to, w.client, w.cluster = "dns.kubelink.", "q.dns.kubelink.", w.table.nodes["dns.kubelink."].cluster
	m := &dns.Msg{Answer: []dns.RR{rr(t, "q.cluster.local. 5 IN A 10.0.0.1")},
		Extra: []dns.RR{rr(t, "ns.cluster.local. 5 IN A 6.6.6.6")}}
	if err := w.rewriteReply(m); err != nil || sections(m) != "q.dns.kubelink. 5 IN A 10.0.0.1 / / /" {
		t.Errorf("%v %s", err, sections(m))
	}
}

// FuzzSection rewrites whole messages: the result must pack, no name of the cluster may be left, and no owner may be in
// a mesh domain but below the cluster that was asked.
func FuzzSection(f *testing.F) {
	for _, r := range recordRewrites {
		m := new(dns.Msg)
		m.SetQuestion("q.cluster.local.", dns.TypeANY)
		rr, _ := dns.NewRR(r.in)
		m.Answer = []dns.RR{rr}
		m.Compress = true
		wire, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
	}
	for _, e := range evil {
		m := new(dns.Msg)
		m.SetQuestion("q.cluster.local.", dns.TypeANY)
		m.Answer = []dns.RR{rr(f, "q.cluster.local. 5 IN CNAME x.d.test."), rr(f, "d.test. 5 IN DNAME mesh.example."),
			rr(f, e)}
		m.Ns, m.Extra = []dns.RR{rr(f, e)}, []dns.RR{rr(f, e)}
		wire, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		m := new(dns.Msg)
		if m.Unpack(wire) != nil {
			return
		}
		if _, err := m.Pack(); err != nil {
			return // the library reads more than it writes
		}
		w := newRewriter("cluster.local.")
		chain, _ := w.aliasChain(m.Answer)
		for _, section := range []*[]dns.RR{&m.Answer, &m.Ns, &m.Extra} {
			// Also of what is refused in the end, the rest must be good.
			*section, _ = w.rewriteSection(*section, chain)
			chain = nil
			for _, rr := range *section {
				owner := rr.Header().Name
				if match, ok := w.table.Match(dns.CanonicalName(owner)); ok &&
					(match.cluster != w.cluster || !inDomain(owner, w.to)) {
					t.Fatalf("not of the cluster: %s", rr)
				}
				if section != &m.Answer && rr.Header().Rrtype != dns.TypeOPT && !inDomain(owner, w.to) {
					t.Fatalf("not of the cluster: %s", rr)
				}
				switch rr.Header().Rrtype {
				case dns.TypeOPT:
					continue
				case dns.TypeNS, dns.TypeSOA:
					if inDomain(owner, w.to) {
						t.Fatalf("the cluster says who serves it: %s", rr)
					}
				}
				eachName(rr, func(s *string) {
					if _, in := cutSuffix(*s, "cluster.local."); in && *s != "" {
						t.Fatalf("left in %s", rr)
					}
				})
				if _, in := cutSuffix(rr.Header().Name, "cluster.local."); in {
					t.Fatalf("left in %s", rr)
				}
			}
		}
		if _, err := m.Pack(); err != nil {
			t.Fatalf("%v\n%s", err, m)
		}
	})
}
