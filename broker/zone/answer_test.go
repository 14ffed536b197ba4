package zone

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// The DNS service is asked until the names are loaded from the API.
func TestBackendTakesOver(t *testing.T) {
	var asked atomic.Int64
	z := zones(serve(t, clusterDNS(t, &asked)))
	source := &backend{loading: true, why: errors.New("being loaded")}
	o := options
	z[0].Clusters[2].API = mesh.API{Use: true}
	o.Backends = map[string]Backend{"kubelink2.kubelink.": source}
	table := New(nil, z, up, o)
	defer func() { table.Close() }()
	if m, err := queryTable(t, table, web, dns.TypeA, false, 0); err != nil || len(m.Answer) != 1 || asked.Load() != 1 {
		t.Errorf("%v, %v", m, err)
	}
	source.loading = false // with an error: that is to be seen
	m, err := queryTable(t, table, web, dns.TypeA, false, 1232)
	if _, text := ede(m); err != nil || m.Rcode != dns.RcodeServerFailure || text != "being loaded" {
		t.Errorf("%v, %v", m, err)
	}
	table = New(table, z, up, o)
	source.loading = true // again: the DNS service, too
	table = New(table, z, up, o)
	if m, err := queryTable(t, table, web, dns.TypeA, false, 0); err != nil || len(m.Answer) != 1 || asked.Load() != 2 {
		t.Errorf("%v, %v", m, err)
	}
	source.loading, source.why = false, nil
	if m, err := queryTable(t, table, web, dns.TypeA, false, 0); err != nil || len(m.Answer) != 1 || asked.Load() != 2 {
		t.Errorf("%v, %v", m, err)
	}
	if table = New(table, z, up, o); table.nodes["kubelink2.kubelink."].cluster.upstream != nil {
		t.Error("the DNS service is still held")
	}
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
		{"nobody.other.kubelink.", dns.TypeA, dns.RcodeNameError,
			"/ other.kubelink. 5 IN SOA ns.dns.other.kubelink. hostmaster.other.kubelink. 7 7200 1800 86400 5 / /"},
	} {
		m, err := queryTable(t, table, c.name, c.qtype, false, 0)
		if err != nil || m.Rcode != c.rcode || !m.Authoritative || sections(m) != c.want {
			t.Errorf("%s %s: %v %s aa %v\n got %s\nwant %s", c.name, dns.TypeToString[c.qtype], err, dns.RcodeToString[m.Rcode],
				m.Authoritative, sections(m), c.want)
		}
	}

	// A domain in another one: there is something between.
	nested := New(nil, []mesh.Zone{{Domain: "a.b.kubelink."}, {Domain: "kubelink."}, {Domain: "x.example."},
		{Domain: "y.d.a.b.kubelink."}}, up, options)
	for name, rcode := range map[string]int{"b.kubelink.": 0, "c.b.kubelink.": dns.RcodeNameError, "a.b.kubelink.": 0,
		"x.a.b.kubelink.": dns.RcodeNameError} {
		if m, err := queryTable(t, nested, name, dns.TypeA, false, 0); err != nil || m.Rcode != rcode {
			t.Errorf("%s: %v, %v", name, err, m)
		}
	}
	if m, _ := queryTable(t, nested, "d.a.b.kubelink.", dns.TypeA, false, 0); len(m.Ns) != 1 ||
		m.Ns[0].Header().Name != "a.b.kubelink." {
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
	const soa = "kubelink2.kubelink. 5 IN SOA ns.dns.kubelink. hostmaster.kubelink. 7 7200 1800 86400 5"
	for _, tcp := range []bool{false, true} {
		for _, c := range []struct {
			name  string
			qtype uint16
			rcode int
			want  string
		}{
			{"web.default.svc.kubelink2.kubelink.", dns.TypeA, 0,
				"web.default.svc.kubelink2.kubelink. 5 IN A 100.64.16.20 / / /"},
			{"Web.default.SVC.KUBElink2.kubelink.", dns.TypeA, 0,
				"Web.default.SVC.KUBElink2.kubelink. 5 IN A 100.64.16.20 / / /"},
			{"web.default.svc.kubelink1.kubelink.", dns.TypeA, 0,
				"web.default.svc.kubelink1.kubelink. 5 IN A 100.64.16.20 / / /"},
			{"web.default.svc.kubelink2.kubelink.", dns.TypeSRV, 0,
				"web.default.svc.kubelink2.kubelink. 5 IN SRV 0 100 80 web.default.svc.kubelink2.kubelink. / / " +
					"web.default.svc.kubelink2.kubelink. 5 IN A 100.64.16.20 /"},
			{"alias.default.svc.kubelink2.kubelink.", dns.TypeA, 0,
				"alias.default.svc.kubelink2.kubelink. 5 IN CNAME www.example.com. www.example.com. 5 IN CNAME " +
					"web.default.svc.kubelink2.kubelink. web.default.svc.kubelink2.kubelink. 5 IN A 100.64.16.20 / / /"},
			{"web.default.svc.kubelink2.kubelink.", dns.TypeMX, 0, "/ " + soa + " / /"},
			{"nobody.kubelink2.kubelink.", dns.TypeA, dns.RcodeNameError, "/ " + soa + " / /"},
			{"kubelink2.kubelink.", dns.TypeA, 0, "/ " + soa + " / /"}, // a zone exists
			{"kubelink2.kubelink.", dns.TypeSOA, 0, soa + " / / /"},
			{"KubeLink2.kubelink.", dns.TypeNS, 0, "KubeLink2.kubelink. 5 IN NS ns.dns.kubelink. / / " +
				"ns.dns.kubelink. 5 IN A 100.64.0.11 ns.dns.kubelink. 5 IN AAAA fd00::11 /"},
			{"svc.kubelink2.kubelink.", dns.TypeA, 0, "/ " + soa + " / /"},
			{"pod.kubelink2.kubelink.", dns.TypeA, 0, "/ " + soa + " / /"},
			{"_tcp.web.default.svc.kubelink2.kubelink.", dns.TypeA, 0, "/ " + soa + " / /"},
			{"_TCP.Web.default.svc.kubelink2.kubelink.", dns.TypeNS, 0, "/ " + soa + " / /"},
			{"_tcp.nobody.default.svc.kubelink2.kubelink.", dns.TypeA, dns.RcodeNameError, "/ " + soa + " / /"},
			{"_x._tcp.web.default.svc.kubelink2.kubelink.", dns.TypeSRV, dns.RcodeNameError, "/ " + soa + " / /"},
			{"tcp.web.default.svc.kubelink2.kubelink.", dns.TypeA, dns.RcodeNameError, "/ " + soa + " / /"},
			// The SOA record of the cluster is of another domain: ours is in its place.
			{"x.c.other.kubelink.", dns.TypeA, dns.RcodeNameError,
				"/ c.other.kubelink. 5 IN SOA ns.dns.other.kubelink. hostmaster.other.kubelink. 7 7200 1800 86400 5 / /"},
			{"evil.default.svc.kubelink2.kubelink.", dns.TypeA, 0,
				"evil.default.svc.kubelink2.kubelink. 5 IN A 100.64.16.66 / / /"},
			{"nobody.evil.default.svc.kubelink2.kubelink.", dns.TypeA, dns.RcodeNameError, "/ " + soa + " / /"},
			{"external.default.svc.kubelink2.kubelink.", dns.TypeA, 0,
				"www.example.com. 5 IN A 192.0.2.1 external.default.svc.kubelink2.kubelink. 5 IN CNAME www.example.com. / / /"},
			{"x.dname.default.svc.kubelink2.kubelink.", dns.TypeA, 0,
				"dname.default.svc.kubelink2.kubelink. 5 IN DNAME example.com. x.dname.default.svc.kubelink2.kubelink. 5 IN " +
					"CNAME x.example.com. x.example.com. 5 IN A 192.0.2.2 / / /"},
		} {
			m, err := queryTable(t, table, c.name, c.qtype, tcp, 0)
			if aa := !strings.Contains(c.want, "example.com. 5 IN "); err != nil || m.Rcode != c.rcode ||
				m.Authoritative != aa || m.IsEdns0() != nil || sections(m) != c.want {
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
		{0, false, true}, {512, false, true}, {1232, false, false}, {4096, false, false}, {0, true, false},
		{512, true, false},
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
	const want = `/ kubelink2.kubelink. 5 IN SOA ns.dns.kubelink. hostmaster.kubelink. 7 7200 1800 86400 5 / /`
	if err != nil || sections(m) != want {
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
		{"x.a.deep.kubelink.", dns.RcodeServerFailure, 22,
			"link a.deep is Down: dial kubelink.b.example:80: connection refused", false},
		{"a.deep.kubelink.", dns.RcodeServerFailure, 22,
			"link a.deep is Down: dial kubelink.b.example:80: connection refused", false},
		{"x.unknown.kubelink.", dns.RcodeServerFailure, 22, "the address of the DNS service of link unknown is not known",
			false},
		{"refused.kubelink1.kubelink.", dns.RcodeRefused, 22, fmt.Sprintf("answer of DNS service %s of the local cluster",
			addr), false},
		{"other.kubelink2.kubelink.", dns.RcodeServerFailure, 23,
			fmt.Sprintf("DNS service %s of link kubelink2: answer to another question", addr), true},
		{"long.default.svc.kubelink2.kubelink.", dns.RcodeServerFailure, 24,
			fmt.Sprintf("DNS service %s of link kubelink2: "+
				"a name in the answer is longer than 255 octets in kubelink2.kubelink.", addr), true},
		{"onlyevil.default.svc.kubelink2.kubelink.", dns.RcodeServerFailure, 24,
			fmt.Sprintf("DNS service %s of link kubelink2: it answered for a name that is not its own, outside of "+
				"kubelink2.kubelink.", addr), true},
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
	if m, err := queryTable(t, table, long, dns.TypeA, false, 0); m.Rcode != dns.RcodeNameError || err != nil ||
		!m.Authoritative || len(m.Ns) != 1 {
		t.Errorf("%v %v", m, err)
	}
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
	if m, err := queryTable(t, table, name, dns.TypeA, false, 0); err != nil ||
		sections(m) != name+" 5 IN A 100.64.16.20 / / /" {
		t.Error(m, err)
	}
	b.why = errors.New("names are being loaded")
	m, err := queryTable(t, table, name, dns.TypeA, false, 1232)
	if code, text := ede(m); err != nil || m.Rcode != dns.RcodeServerFailure ||
		code != dns.ExtendedErrorCodeNoReachableAuthority || text != b.why.Error() {
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

// BenchmarkAnswer is a query to a cluster over UDP on loopback.
func BenchmarkAnswer(b *testing.B) {
	var asked atomic.Int64
	table := New(nil, zones(serve(b, clusterDNS(b, &asked))), up, options)
	defer table.Close()
	b.ReportAllocs()
	for b.Loop() {
		if m, err := queryTable(b, table, "web.default.svc.kubelink2.kubelink.", dns.TypeA, false, 0); err != nil ||
			len(m.Answer) != 1 {
			b.Fatal(m, err)
		}
	}
}
