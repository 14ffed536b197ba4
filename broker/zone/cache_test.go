package zone

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
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

// ageEntries makes what is remembered of a name older.
func (a *ReplyCache) ageEntries(name string, by time.Duration) {
	a.cache.Walk(func(items map[uint64]*entry, key uint64) bool {
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

func TestAnswersAreRemembered(t *testing.T) {
	var asked atomic.Int64
	o := cachingOptions()
	table := New(nil, zones(serve(t, clusterDNS(t, &asked))), up, o)
	defer table.Close()
	ttl := func(m *dns.Msg) uint32 {
		t.Helper()
		if len(m.Answer) != 1 || m.Answer[0].Header().Name != m.Question[0].Name {
			t.Fatalf("%v", m)
		}
		return m.Answer[0].Header().Ttl
	}
	for n, c := range []struct {
		name  string
		edns  uint16
		older time.Duration
		asked int64 // in all
		ttl   uint32
	}{
		{web, 0, 0, 1, 5},
		{web, 0, 0, 1, 5},
		{web, 1232, 0, 1, 5},
		{strings.ToUpper(web), 0, 0, 1, 5},
		{web, 0, 2 * time.Second, 1, 3},
		{"Web" + web[3:], 0, 0, 1, 3},
		{web, 0, 2 * time.Second, 1, 1},
		{web, 0, time.Second, 2, 5}, // its TTL is over
	} {
		o.Replies.ageEntries(web, c.older)
		m, err := queryTable(t, table, c.name, dns.TypeA, n%2 == 0, c.edns)
		if got := ttl(m); err != nil || got != c.ttl || asked.Load() != c.asked || !m.Authoritative || (m.IsEdns0() != nil) != (c.edns > 0) {
			t.Errorf("%d: TTL %d, asked %d times, %v, %v", n, got, asked.Load(), err, m)
		}
	}

	// Who asked first in another spelling leaves the same.
	before := asked.Load()
	for _, name := range []string{"NOBODY.kubelink2.kubelink.", "nobody.kubelink2.kubelink."} {
		if m, err := queryTable(t, table, name, dns.TypeA, false, 0); err != nil || m.Rcode != dns.RcodeNameError || len(m.Ns) != 1 {
			t.Errorf("%s: %v %v", name, err, m)
		}
	}
	if n := asked.Load() - before; n != 1 {
		t.Errorf("asked %d times", n)
	}

	// What is not good for others: other types and flags, truncated replies, failures. Options are the client's own.
	before = asked.Load()
	for range 2 {
		queryTable(t, table, "refused.kubelink2.kubelink.", dns.TypeA, false, 0)
		if m, _ := queryTable(t, table, "big.default.svc.kubelink2.kubelink.", dns.TypeA, false, 0); !m.Truncated {
			t.Errorf("%v", m)
		}
		req := new(dns.Msg)
		req.SetQuestion(web, dns.TypeA)
		req.SetEdns0(1232, false)
		req.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: []byte{192, 0, 2, 0}}}
		exchangeQuery(t, table, req, false)
	}
	if n := asked.Load() - before; n != 4 {
		t.Errorf("asked %d times, not 4", n)
	}
	before = asked.Load()
	for _, change := range []func(*dns.Msg){
		func(m *dns.Msg) { m.RecursionDesired = false }, func(m *dns.Msg) { m.CheckingDisabled = true },
		func(m *dns.Msg) { m.SetEdns0(1232, true) }, func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeSRV },
	} {
		req := new(dns.Msg)
		req.SetQuestion(web, dns.TypeA)
		change(req)
		exchangeQuery(t, table, req, false)
	}
	if n := asked.Load() - before; n != 4 {
		t.Errorf("asked %d times, not 4", n)
	}
}

// A truncated reply is not what others get, and a whole one is cut for those who take less.
func TestRememberedForAllSizes(t *testing.T) {
	var asked atomic.Int64
	table := New(nil, zones(serve(t, clusterDNS(t, &asked))), up, cachingOptions())
	defer table.Close()
	for _, c := range []struct {
		tcp  bool
		edns uint16
		n    int
	}{{false, 0, 0}, {true, 0, 60}, {true, 4096, 60}, {false, 4096, 60}, {false, 0, 0}} {
		m, err := queryTable(t, table, "big.default.svc.kubelink2.kubelink.", dns.TypeA, c.tcp, c.edns)
		if err != nil || m.Truncated != (c.n == 0) || c.n > 0 && len(m.Answer) != c.n {
			t.Errorf("%+v: %v, %d records", c, err, len(m.Answer))
		}
	}
}

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
	} else if code, text := ede(m); code != dns.ExtendedErrorCodeNoReachableAuthority || text != "link kubelink2 is Down: connection lost" {
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
		if c.rcode == 0 && (len(m.Answer) != 1 || m.Answer[0].Header().Ttl != maxTTL || m.Answer[0].Header().Name != strings.ToUpper(web)) {
			t.Errorf("%v", m)
		}
	}

	// The service of the cluster does not answer, though the link is usable.
	z[0].Clusters[2].Upstream = netip.MustParseAddrPort("127.0.0.1:1")
	table = New(table, z, up, o)
	o.Replies.ageEntries(web, -time.Hour)
	m, err := queryTable(t, table, web, dns.TypeA, false, 1232)
	if code, text := ede(m); err == nil || len(m.Answer) != 1 || code != dns.ExtendedErrorCodeStaleAnswer || !strings.HasSuffix(text, "connection refused") {
		t.Errorf("%v: %v, %d %q", m, err, code, text)
	}
}

// What an earlier process was told is answered until the link is usable.
func TestAnswersSurvive(t *testing.T) {
	var asked atomic.Int64
	z := zones(serve(t, clusterDNS(t, &asked)))
	o := cachingOptions()
	table := New(nil, z, up, o)
	queryTable(t, table, web, dns.TypeA, false, 0)
	queryTable(t, table, "nobody.kubelink2.kubelink.", dns.TypeAAAA, false, 0)
	queryTable(t, table, "refused.kubelink2.kubelink.", dns.TypeA, false, 0)
	table.Close()
	var file bytes.Buffer
	if err := o.Replies.Save(&file); err != nil {
		t.Fatal(err)
	}

	load := func() Options {
		o := cachingOptions()
		if err := o.Replies.Load(bytes.NewReader(file.Bytes())); err != nil || o.Replies.cache.Len() != 2 {
			t.Fatalf("%v, %d answers", err, o.Replies.cache.Len())
		}
		return o
	}
	o = load()
	table = New(nil, z, down, o)
	for name, want := range map[string]int{web: dns.RcodeSuccess, "nobody.kubelink2.kubelink.": dns.RcodeNameError} {
		qtype, why := dns.TypeA, dns.ExtendedErrorCodeStaleAnswer
		if want != 0 {
			qtype, why = dns.TypeAAAA, dns.ExtendedErrorCodeStaleNXDOMAINAnswer
		}
		m, err := queryTable(t, table, name, qtype, false, 1232)
		if code, _ := ede(m); err != nil || m.Rcode != want || code != why {
			t.Errorf("%v: %v", m, err)
		}
	}
	if m, _ := queryTable(t, table, "x."+web, dns.TypeA, false, 0); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v", m)
	}
	// The link comes, and goes: from then on it is as with any other link.
	table = New(table, z, up, o)
	before := asked.Load()
	if m, err := queryTable(t, table, web, dns.TypeA, false, 1232); err != nil || m.IsEdns0() == nil || asked.Load() == before {
		t.Errorf("not asked: %v, %v", m, err)
	}
	table = New(table, z, down, o)
	defer table.Close()
	for _, name := range []string{web, "nobody.kubelink2.kubelink."} {
		if m, err := queryTable(t, table, name, dns.TypeA, false, 1232); err != nil || m.Rcode != dns.RcodeServerFailure {
			t.Errorf("%v: %v", m, err)
		}
	}
}

// What an earlier process knew of the local cluster is of no use once its DNS service has answered.
func TestLocalAnswersSurvive(t *testing.T) {
	var asked atomic.Int64
	var dead atomic.Bool
	answer := clusterDNS(t, &asked)
	z := zones(serve(t, func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		if m.SetReply(r); dead.Load() {
			m.Question[0].Name = "broken."
			w.WriteMsg(m)
			return
		}
		answer(w, r)
	}))
	const name = "web.default.svc.kubelink1.kubelink."
	first := cachingOptions()
	table := New(nil, z, up, first)
	queryTable(t, table, name, dns.TypeA, false, 0)
	table.Close()
	var file bytes.Buffer
	if err := first.Replies.Save(&file); err != nil {
		t.Fatal(err)
	}
	o := cachingOptions()
	if err := o.Replies.Load(&file); err != nil {
		t.Fatal(err)
	}
	dead.Store(true)
	table = New(nil, z, up, o)
	defer func() { table.Close() }()
	expect := func(rcode int, why uint16) {
		t.Helper()
		m, _ := queryTable(t, table, name, dns.TypeA, false, 1232)
		if code, _ := ede(m); m.Rcode != rcode || code != why {
			t.Errorf("%v", m)
		}
	}
	expect(dns.RcodeSuccess, dns.ExtendedErrorCodeStaleAnswer)
	dead.Store(false)
	queryTable(t, table, "db.default.svc.kubelink1.kubelink.", dns.TypeA, false, 0)
	dead.Store(true)
	expect(dns.RcodeServerFailure, dns.ExtendedErrorCodeNetworkError)
}

// savedCache is a file with one answer.
func savedCache(t testing.TB) []byte {
	a := NewReplyCache()
	m := new(dns.Msg)
	m.SetQuestion(web, dns.TypeA)
	m.Answer = []dns.RR{rr(t, web+" 5 IN A 100.64.16.20")}
	a.storeReply(question{web, dns.TypeA, 0}, source{}, m)
	var file bytes.Buffer
	if err := a.Save(&file); err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

func TestLoadRefuses(t *testing.T) {
	good := string(savedCache(t))
	for name, data := range map[string]string{
		"nothing": "", "another file": "hello", "another version": strings.Replace(good, "2", "9", 1),
		"a cut head": good[:len(cacheFileMagic)+5], "a cut message": good[:len(good)-1], "no message": good[:len(cacheFileMagic)+27] + strings.Repeat("x", len(good)),
	} {
		if err := NewReplyCache().Load(strings.NewReader(data)); err == nil {
			t.Errorf("loaded %s", name)
		}
	}
	b := NewReplyCache()
	if err := b.Load(strings.NewReader(good)); err != nil || b.findEntry(question{web, dns.TypeA, 0}) == nil {
		t.Errorf("%v", err)
	}
}

// FuzzLoad: whatever the file has, what is remembered of it can be answered.
func FuzzLoad(f *testing.F) {
	f.Add(savedCache(f))
	f.Fuzz(func(t *testing.T, data []byte) {
		a := NewReplyCache()
		a.Load(bytes.NewReader(data)) //nolint:errcheck // what came before an error counts
		a.cache.Walk(func(items map[uint64]*entry, key uint64) bool {
			e := items[key]
			req := new(dns.Msg)
			req.SetQuestion(strings.ToUpper(e.name), e.qtype)
			if m := e.staleReply(e.source.cluster, maxStaleAge, req); m != nil {
				m.Pack() //nolint:errcheck // must not panic
			}
			return true
		})
		if err := a.Save(&bytes.Buffer{}); err != nil {
			t.Fatal(err)
		}
	})
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
		"_state.kubelink2.kubelink.": `_state.kubelink2.kubelink. 5 IN TXT "state=Up" "since=2026-11-24T07:00:00Z" "rtt=1.23ms" / / /`,
		"_State.Unknown.kubelink.":   `_State.Unknown.kubelink. 5 IN TXT "state=Down" "since=2026-11-24T07:00:00Z" "reason=` + strings.Repeat("it is long; ", 20) + `" / / /`,
		"_state.kubelink1.kubelink.": `_state.kubelink1.kubelink. 5 IN TXT "state=Local" / / /`,
	} {
		if m, err := queryTable(t, table, name, dns.TypeTXT, false, 0); err != nil || sections(m) != want || !m.Authoritative {
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

// clusters have addresses and networks.
func clusters(upstream netip.AddrPort) []mesh.Zone {
	z := zones(upstream)
	z[0].Networks = mesh.Prefixes{netip.MustParsePrefix("192.168.0.0/24")}
	z[0].Clusters[1].Addresses, z[0].Clusters[1].Services = []netip.Addr{netip.MustParseAddr("192.168.0.11")}, mesh.Prefixes{netip.MustParsePrefix("100.64.0.0/20")}
	z[0].Clusters[2].Addresses, z[0].Clusters[2].Services = []netip.Addr{netip.MustParseAddr("192.168.0.12")}, mesh.Prefixes{netip.MustParsePrefix("100.64.16.0/20")}
	z[1].Clusters[0].Addresses = []netip.Addr{netip.MustParseAddr("fd00::1")}
	return z
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
		{"kubelink2.kubelink.", dns.TypeAAAA, 0, "/ kubelink. 5 IN SOA ns.dns.kubelink. hostmaster.kubelink. 7 7200 1800 86400 5 / /"},
		{"c.other.kubelink.", dns.TypeAAAA, dns.RcodeServerFailure, "/ / /"},
		{"12.0.168.192.in-addr.arpa.", dns.TypePTR, 0, "12.0.168.192.in-addr.arpa. 5 IN PTR kubelink2.kubelink. / / /"},
		{"12.0.168.192.IN-ADDR.arpa.", dns.TypePTR, 0, "12.0.168.192.IN-ADDR.arpa. 5 IN PTR kubelink2.kubelink. / / /"},
		{"12.0.168.192.in-addr.arpa.", dns.TypeA, 0, "/ 0.168.192.in-addr.arpa. 5 IN SOA ns.dns.kubelink. hostmaster.kubelink. 7 7200 1800 86400 5 / /"},
		{"99.0.168.192.in-addr.arpa.", dns.TypePTR, dns.RcodeNameError, "/ 0.168.192.in-addr.arpa. 5 IN SOA ns.dns.kubelink. hostmaster.kubelink. 7 7200 1800 86400 5 / /"},
		{"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.", dns.TypePTR, dns.RcodeServerFailure, "/ / /"},
	} {
		m, err := queryTable(t, table, c.name, c.qtype, false, 0)
		if err != nil || m.Rcode != c.rcode || sections(m) != c.want || m.Authoritative != (c.rcode != dns.RcodeServerFailure) {
			t.Errorf("%s %s: %v %v\n got %s\nwant %s", c.name, dns.TypeToString[c.qtype], err, m.MsgHdr, sections(m), c.want)
		}
	}
	for _, name := range []string{"12.1.168.192.in-addr.arpa.", "168.192.in-addr.arpa.", "in-addr.arpa.", "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa."} {
		if m, ok := table.Match(name); ok {
			t.Errorf("%s: %+v", name, m)
		}
	}
}

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
			{"30.16.64.100.in-addr.arpa.", dns.RcodeNameError, "/ 16.64.100.in-addr.arpa. 5 IN SOA ns.dns.kubelink. hostmaster.kubelink. 7 7200 1800 86400 5 / /"},
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
		"30.16.64.100.in-addr.arpa.": "/ 16.64.100.in-addr.arpa. 5 IN SOA ns.dns.kubelink. hostmaster.kubelink. 7 7200 1800 86400 5 / /",
	} {
		if m, err := queryTable(t, table, name, dns.TypePTR, false, 0); err != nil || sections(m) != want || (m.Rcode == dns.RcodeNameError) != (len(m.Answer) == 0) {
			t.Errorf("%s: %v\n got %s\nwant %s", name, err, sections(m), want)
		}
	}
	source.why = errors.New("services is forbidden")
	m, err := queryTable(t, table, "20.16.64.100.in-addr.arpa.", dns.TypePTR, false, 1232)
	if _, text := ede(m); err != nil || m.Rcode != dns.RcodeServerFailure || text != "services is forbidden" {
		t.Errorf("%v, %v", m, err)
	}
}

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

// Addresses of clusters and names of addresses are remembered like all others.
func TestFactsAreRemembered(t *testing.T) {
	z := clusters(netip.MustParseAddrPort("127.0.0.1:1"))
	z[0].Clusters[2].API = mesh.API{Use: true}
	o := cachingOptions()
	o.ServeStale = time.Minute
	o.Backends = map[string]Backend{"kubelink2.kubelink.": &backend{}}
	table := New(nil, z, up, o)
	defer func() { table.Close() }()
	names := map[string]uint16{"kubelink2.kubelink.": dns.TypeA, "12.0.168.192.in-addr.arpa.": dns.TypePTR, "20.16.64.100.in-addr.arpa.": dns.TypePTR}
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
	if m, err := queryTable(t, table, "kubelink2.kubelink.", dns.TypeA, false, 0); err != nil || len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != "192.168.0.22" {
		t.Errorf("%v, %v", m, err)
	}
	names["21.16.64.100.in-addr.arpa."] = 0 // nobody has asked
	for name, qtype := range names {
		m, err := queryTable(t, table, name, cmp.Or(qtype, dns.TypePTR), false, 1232)
		code, _ := ede(m)
		if qtype == 0 && (err != nil || m.Rcode != dns.RcodeServerFailure || code != dns.ExtendedErrorCodeNoReachableAuthority) ||
			qtype != 0 && (err != nil || len(m.Answer) != 1 || code != dns.ExtendedErrorCodeStaleAnswer) {
			t.Errorf("%v, %v", m, err)
		}
	}
}

// What a backend answered is remembered where somebody wants that.
func TestBackendIsRemembered(t *testing.T) {
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
	if code, text := ede(m); err != nil || m.Rcode != dns.RcodeServerFailure || code != dns.ExtendedErrorCodeNoReachableAuthority || text != "services is forbidden" {
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

// BenchmarkRemembered is a query whose answer is remembered.
func BenchmarkRemembered(b *testing.B) {
	var asked atomic.Int64
	table := New(nil, zones(serve(b, clusterDNS(b, &asked))), up, cachingOptions())
	defer table.Close()
	req := new(dns.Msg)
	req.SetQuestion(web, dns.TypeA)
	b.ReportAllocs()
	for b.Loop() {
		state := request.Request{W: &test.ResponseWriter{}, Req: req}
		m, _ := table.Match(state.Name())
		if r, err := m.Answer(b.Context(), &state); err != nil || len(r.Answer) != 1 {
			b.Fatal(r, err)
		}
	}
}

// An alias from one zone of the mesh to another is followed here: clients do not do it.
func TestAliasesBetweenZones(t *testing.T) {
	second := serve(t, func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(r)
		m.Authoritative = true
		name := r.Question[0].Name
		if alias := map[string]string{
			"a.cluster.local.": "b.kubelink3.kubelink.", "none.cluster.local.": "x.kubelink.", "down.cluster.local.": "x.kubelink4.kubelink.",
			"loop.cluster.local.": "loop.kubelink3.kubelink.", "own.cluster.local.": "c.kubelink2.kubelink.", "apex.cluster.local.": "kubelink3.kubelink.",
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
		{Name: "kubelink3.kubelink.", Link: "kubelink3", Upstream: third, ClusterDomain: "cluster.local.", Addresses: []netip.Addr{netip.MustParseAddr("192.168.0.13")}},
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
			{"A.kubelink2.kubelink.", 0, "A.kubelink2.kubelink. 5 IN CNAME b.kubelink3.kubelink. b.kubelink3.kubelink. 5 IN A 10.3.0.1 / / /"},
			{"own.kubelink2.kubelink.", 0, "own.kubelink2.kubelink. 5 IN CNAME c.kubelink2.kubelink. c.kubelink2.kubelink. 5 IN A 10.2.0.1 / / /"},
			{"apex.kubelink2.kubelink.", 0, "apex.kubelink2.kubelink. 5 IN CNAME kubelink3.kubelink. kubelink3.kubelink. 5 IN A 192.168.0.13 / / /"},
			{"none.kubelink2.kubelink.", dns.RcodeNameError, "none.kubelink2.kubelink. 5 IN CNAME x.kubelink. / " + soa + " / /"},
			{"down.kubelink2.kubelink.", dns.RcodeServerFailure, "/ / /"},
			{"loop.kubelink2.kubelink.", dns.RcodeServerFailure, "/ / /"},
			{"www.SVC.global.kubelink.", 0, "www.SVC.global.kubelink. 5 IN CNAME a.kubelink2.kubelink. a.kubelink2.kubelink. 5 IN CNAME b.kubelink3.kubelink. b.kubelink3.kubelink. 5 IN A 10.3.0.1 / / /"},
		} {
			m, err := queryTable(t, table, c.name, dns.TypeA, false, 1232)
			if err != nil || m.Rcode != c.rcode || sections(m) != c.want {
				t.Errorf("%s: %v %v\n got %s\nwant %s", c.name, err, m.MsgHdr, sections(m), c.want)
			}
			reason := map[string]string{"down.kubelink2.kubelink.": "link kubelink4 is Down", "loop.kubelink2.kubelink.": "the aliases of loop.kubelink2.kubelink. lead in a circle"}[c.name]
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
		if code, text := ede(m); len(m.Answer) != 2 || code != dns.ExtendedErrorCodeStaleAnswer || text != "link kubelink2 is Down" {
			t.Errorf("%v", m)
		}
		m, _ = queryTable(t, table, "b.kubelink3.kubelink.", dns.TypeA, false, 1232)
		if code, _ := ede(m); len(m.Answer) != 1 || code != 0 {
			t.Errorf("%v", m)
		}
	}
}

// What was another cluster's, is too large, or was given by an upstream that is gone, is not answered from memory; what has
// no TTL is, for a second.
func TestSources(t *testing.T) {
	reply := func(ttl int, n int) *dns.Msg {
		m := new(dns.Msg)
		m.SetQuestion(web, dns.TypeA)
		for i := range n {
			m.Answer = append(m.Answer, rr(t, fmt.Sprintf("%s %d IN A 100.64.16.%d", web, ttl, i)))
		}
		return m
	}
	q, req := question{web, dns.TypeA, 0}, new(dns.Msg).SetQuestion(web, dns.TypeA)
	one, two := netip.MustParseAddr("100.64.16.0"), netip.MustParseAddr("100.64.32.0")
	a := NewReplyCache()
	a.storeReply(q, source{cluster: one, serial: 1}, reply(0, 1))
	if e := a.findEntry(q); e.freshReply(source{cluster: one, serial: 1}, maxTTL, req) == nil || e.freshReply(source{cluster: one, serial: 2}, maxTTL, req) != nil {
		t.Error("fresh")
	}
	if e := a.findEntry(q); e.staleReply(one, time.Hour, req) == nil || e.staleReply(two, time.Hour, req) != nil {
		t.Error("stale")
	}
	a = NewReplyCache()
	if a.storeReply(q, source{}, reply(5, 200)); a.findEntry(q) != nil {
		t.Error("a large answer is remembered")
	}
}
