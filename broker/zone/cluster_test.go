package zone

import (
	"cmp"
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

// What a link's cluster said before the link was lost is not what it says after.
func TestLostAndBack(t *testing.T) {
	var asked atomic.Int64
	z := zones(serve(t, clusterDNS(t, &asked)))
	o := cachingOptions()
	table := New(nil, z, up, o)
	queryTable(t, table, web, dns.TypeA, false, 0)
	table = New(table, z, down, o)
	if m, err := queryTable(t, table, web, dns.TypeA, false, 1232); err != nil || m.Rcode != dns.RcodeServerFailure {
		t.Errorf("lost: %v, %v", m, err)
	} else if code, text := ede(m); code != dns.ExtendedErrorCodeNoReachableAuthority ||
		text != "link kubelink2 is Down: connection lost" {
		t.Errorf("%d %q", code, text)
	}
	table = New(table, z, up, o)
	defer table.Close()
	queryTable(t, table, web, dns.TypeA, false, 0)
	if n := asked.Load(); n != 2 {
		t.Errorf("asked %d times, not again after the return", n)
	}
}

func TestServeStale(t *testing.T) {
	var asked atomic.Int64
	z := zones(serve(t, clusterDNS(t, &asked)))
	o := cachingOptions()
	o.ServeStale = time.Hour
	table := New(nil, z, up, o)
	queryTable(t, table, web, dns.TypeA, false, 0)
	table = New(table, z, down, o)
	defer func() { table.Close() }()
	for _, c := range []struct {
		older time.Duration
		rcode int
		code  uint16
	}{
		{0, dns.RcodeSuccess, dns.ExtendedErrorCodeStaleAnswer},
		{50 * time.Minute, dns.RcodeSuccess, dns.ExtendedErrorCodeStaleAnswer},
		{10 * time.Minute, dns.RcodeServerFailure, dns.ExtendedErrorCodeNoReachableAuthority},
	} {
		o.Replies.ageEntries(web, c.older)
		m, err := queryTable(t, table, strings.ToUpper(web), dns.TypeA, false, 1232)
		code, text := ede(m)
		if err != nil || m.Rcode != c.rcode || code != c.code || text != "link kubelink2 is Down: connection lost" {
			t.Errorf("%v: %v, %d %q", m, err, code, text)
		}
		if c.rcode == 0 && (len(m.Answer) != 1 || m.Answer[0].Header().Ttl != maxTTL ||
			m.Answer[0].Header().Name != strings.ToUpper(web)) {
			t.Errorf("%v", m)
		}
	}

	// The service of the cluster does not answer, though the link is usable.
	z[0].Clusters[2].Upstream = netip.MustParseAddrPort("127.0.0.1:1")
	table = New(table, z, up, o)
	o.Replies.ageEntries(web, -time.Hour)
	m, err := queryTable(t, table, web, dns.TypeA, false, 1232)
	if code, text := ede(m); err == nil || len(m.Answer) != 1 || code != dns.ExtendedErrorCodeStaleAnswer ||
		!strings.HasSuffix(text, "connection refused") {
		t.Errorf("%v: %v, %d %q", m, err, code, text)
	}
}

func TestStateNames(t *testing.T) {
	since := time.Date(2026, 11, 24, 7, 0, 0, 0, time.UTC)
	status := func(link string) Status {
		if link == "kubelink2" {
			return Status{Usable: true, State: "Up", Since: since, RTT: 1234567}
		}
		return Status{State: "Down", Reason: strings.Repeat("it is long; ", 40), Since: since}
	}
	z := zones(netip.MustParseAddrPort("127.0.0.1:1"))
	table := New(nil, z, status, options)
	defer table.Close()
	for name, want := range map[string]string{
		"_state.kubelink2.kubelink.": `_state.kubelink2.kubelink. 5 IN TXT ` +
			`"state=Up" "since=2026-11-24T07:00:00Z" "rtt=1.23ms" / / /`,
		"_State.Unknown.kubelink.": `_State.Unknown.kubelink. 5 IN TXT "state=Down" "since=2026-11-24T07:00:00Z" "reason=` +
			strings.Repeat("it is long; ", 19) + `it is..." / / /`,
		"_state.kubelink1.kubelink.": `_state.kubelink1.kubelink. 5 IN TXT "state=Local" / / /`,
	} {
		if m, err := queryTable(t, table, name, dns.TypeTXT, false, 0); err != nil || sections(m) != want ||
			!m.Authoritative {
			t.Errorf("%s\n got %s\nwant %s", name, sections(m), want)
		}
	}
	if m, _ := queryTable(t, table, "_state.kubelink2.kubelink.", dns.TypeA, false, 0); m.Rcode != 0 || len(m.Ns) != 1 {
		t.Errorf("%v", m)
	}

	// A round-trip time that is about the same makes no new table.
	if New(table, z, func(link string) Status { s := status(link); s.RTT += s.RTT / 10; return s }, options) != table {
		t.Error("new table")
	}
	o := options
	o.NoStateNames = true
	off := New(table, z, status, o)
	defer off.Close()
	if m, _ := off.Match("_state.kubelink2.kubelink."); m.stateOf != nil {
		t.Error("switched off, and there")
	}
}

// How links are is for clients of this cluster: not for those of the clusters behind them.
func TestStateIsForLocalClients(t *testing.T) {
	o := options
	o.Networks = []Network{
		{netip.MustParsePrefix("192.0.2.0/24"), "kubelink2"},
		{netip.MustParsePrefix("2001:db8::/64"), "kubelink2"},
	}
	table := New(nil, zones(netip.MustParseAddrPort("127.0.0.1:1")), func(string) Status {
		return Status{Usable: true, State: "Up"}
	}, o)
	defer table.Close()
	for client, rcode := range map[string]int{
		"192.0.2.7": dns.RcodeRefused, "::ffff:192.0.2.7": dns.RcodeRefused, "2001:db8::1": dns.RcodeRefused,
		"198.51.100.7": dns.RcodeSuccess, "::1": dns.RcodeSuccess,
	} {
		req := new(dns.Msg)
		req.SetQuestion("_state.kubelink2.kubelink.", dns.TypeTXT)
		req.SetEdns0(1232, false)
		w := &test.ResponseWriter{RemoteIP: client}
		m, _ := table.Match("_state.kubelink2.kubelink.")
		reply, err := m.Answer(t.Context(), &request.Request{W: w, Req: req})
		if err != nil || reply.Rcode != rcode || (len(reply.Answer) == 1) != (rcode == dns.RcodeSuccess) {
			t.Errorf("%s: %v, %v", client, reply, err)
		}
		if code, _ := ede(reply); (code == dns.ExtendedErrorCodeProhibited) != (rcode == dns.RcodeRefused) {
			t.Errorf("%s: Extended DNS Error %d", client, code)
		}
	}
}

func TestClusterAddress(t *testing.T) {
	table := New(nil, clusters(netip.MustParseAddrPort("127.0.0.1:1")), func(link string) Status {
		return Status{Usable: link != "other--c", State: "Down"}
	}, options)
	defer table.Close()
	for _, c := range []struct {
		name  string
		qtype uint16
		rcode int
		want  string
	}{
		{"Kubelink2.kubelink.", dns.TypeA, 0, "Kubelink2.kubelink. 5 IN A 192.168.0.12 / / /"},
		{"kubelink1.kubelink.", dns.TypeA, 0, "kubelink1.kubelink. 5 IN A 192.168.0.11 / / /"},
		{"kubelink2.kubelink.", dns.TypeAAAA, 0,
			"/ kubelink. 5 IN SOA ns.dns.kubelink. hostmaster.kubelink. 7 7200 1800 86400 5 / /"},
		{"c.other.kubelink.", dns.TypeAAAA, dns.RcodeServerFailure, "/ / /"},
		{"12.0.168.192.in-addr.arpa.", dns.TypePTR, 0, "12.0.168.192.in-addr.arpa. 5 IN PTR kubelink2.kubelink. / / /"},
		{"12.0.168.192.IN-ADDR.arpa.", dns.TypePTR, 0, "12.0.168.192.IN-ADDR.arpa. 5 IN PTR kubelink2.kubelink. / / /"},
		{"12.0.168.192.in-addr.arpa.", dns.TypeA, 0,
			"/ 0.168.192.in-addr.arpa. 5 IN SOA ns.dns.kubelink. hostmaster.kubelink. 7 7200 1800 86400 5 / /"},
		{"99.0.168.192.in-addr.arpa.", dns.TypePTR, dns.RcodeNameError,
			"/ 0.168.192.in-addr.arpa. 5 IN SOA ns.dns.kubelink. hostmaster.kubelink. 7 7200 1800 86400 5 / /"},
		{"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.", dns.TypePTR, dns.RcodeServerFailure,
			"/ / /"},
	} {
		m, err := queryTable(t, table, c.name, c.qtype, false, 0)
		if err != nil || m.Rcode != c.rcode || sections(m) != c.want ||
			m.Authoritative != (c.rcode != dns.RcodeServerFailure) {
			t.Errorf("%s %s: %v %v\n got %s\nwant %s", c.name, dns.TypeToString[c.qtype], err, m.MsgHdr, sections(m), c.want)
		}
	}
	for _, name := range []string{"12.1.168.192.in-addr.arpa.", "168.192.in-addr.arpa.", "in-addr.arpa.",
		"2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa."} {
		if m, ok := table.Match(name); ok {
			t.Errorf("%s: %+v", name, m)
		}
	}
}

// Addresses of clusters and names of addresses are remembered like all others.
func TestFactsAreCached(t *testing.T) {
	z := clusters(netip.MustParseAddrPort("127.0.0.1:1"))
	z[0].Clusters[2].API = mesh.API{Use: true}
	o := cachingOptions()
	o.ServeStale = time.Minute
	o.Backends = map[string]Backend{"kubelink2.kubelink.": &backend{}}
	table := New(nil, z, up, o)
	defer func() { table.Close() }()
	names := map[string]uint16{"kubelink2.kubelink.": dns.TypeA, "12.0.168.192.in-addr.arpa.": dns.TypePTR,
		"20.16.64.100.in-addr.arpa.": dns.TypePTR}
	for name, qtype := range names {
		if m, err := queryTable(t, table, name, qtype, false, 0); err != nil || len(m.Answer) != 1 {
			t.Errorf("%v, %v", m, err)
		}
	}
	z = clusters(netip.MustParseAddrPort("127.0.0.1:1"))
	z[0].Clusters[2].API = mesh.API{Use: true}
	z[0].Clusters[2].Addresses = []netip.Addr{netip.MustParseAddr("192.168.0.22")} // the present one is the right one
	delete(names, "12.0.168.192.in-addr.arpa.")
	table = New(table, z, down, o)
	if m, err := queryTable(t, table, "kubelink2.kubelink.", dns.TypeA, false, 0); err != nil || len(m.Answer) != 1 ||
		m.Answer[0].(*dns.A).A.String() != "192.168.0.22" {
		t.Errorf("%v, %v", m, err)
	}
	names["21.16.64.100.in-addr.arpa."] = 0 // nobody has asked
	for name, qtype := range names {
		m, err := queryTable(t, table, name, cmp.Or(qtype, dns.TypePTR), false, 1232)
		code, _ := ede(m)
		if qtype == 0 && (err != nil || m.Rcode != dns.RcodeServerFailure ||
			code != dns.ExtendedErrorCodeNoReachableAuthority) ||
			qtype != 0 && (err != nil || len(m.Answer) != 1 || code != dns.ExtendedErrorCodeStaleAnswer) {
			t.Errorf("%v, %v", m, err)
		}
	}
}

// What a backend answered is remembered where somebody wants that.
func TestBackendIsCached(t *testing.T) {
	z := zones(netip.MustParseAddrPort("127.0.0.1:1"))
	z[0].Clusters[2].API = mesh.API{Use: true}
	source := &backend{}
	o := cachingOptions()
	o.Backends = map[string]Backend{"kubelink2.kubelink.": source}
	o.Replies.Persistent.Store(true)
	table := New(nil, z, up, o)
	defer func() { table.Close() }()
	m, err := queryTable(t, table, web, dns.TypeA, false, 0)
	if err != nil || len(m.Answer) != 1 {
		t.Errorf("%v, %v", m, err)
	}
	source.why = errors.New("services is forbidden")
	m, err = queryTable(t, table, web, dns.TypeA, false, 1232)
	if code, text := ede(m); err != nil || m.Rcode != dns.RcodeServerFailure ||
		code != dns.ExtendedErrorCodeNoReachableAuthority || text != "services is forbidden" {
		t.Errorf("%v, %v", m, err)
	}
	o.ServeStale = time.Minute
	table = New(table, z, down, o)
	m, err = queryTable(t, table, web, dns.TypeA, false, 1232)
	if code, _ := ede(m); err != nil || len(m.Answer) != 1 || code != dns.ExtendedErrorCodeStaleAnswer {
		t.Errorf("%v, %v", m, err)
	}
	// Before it is there at all.
	o.Backends, z[0].Clusters[2].Upstream = nil, netip.AddrPort{}
	table = New(table, z, up, o)
	m, _ = queryTable(t, table, "x."+web, dns.TypeA, false, 1232)
	if m.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v", m)
	}
}
