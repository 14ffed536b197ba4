package zone

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"

	"github.com/miekg/dns"
)

func TestRepliesAreCached(t *testing.T) {
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
		if got := ttl(m); err != nil || got != c.ttl || asked.Load() != c.asked || !m.Authoritative ||
			(m.IsEdns0() != nil) != (c.edns > 0) {
			t.Errorf("%d: TTL %d, asked %d times, %v, %v", n, got, asked.Load(), err, m)
		}
	}

	// Who asked first in another spelling leaves the same.
	before := asked.Load()
	for _, name := range []string{"NOBODY.kubelink2.kubelink.", "nobody.kubelink2.kubelink."} {
		if m, err := queryTable(t, table, name, dns.TypeA, false, 0); err != nil || m.Rcode != dns.RcodeNameError ||
			len(m.Ns) != 1 {
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
		req.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24,
			Address: []byte{192, 0, 2, 0}}}
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
func TestCachedForAllSizes(t *testing.T) {
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

// What an earlier process was told is answered until the link is usable.
func TestRepliesSurvive(t *testing.T) {
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
	if m, err := queryTable(t, table, web, dns.TypeA, false, 1232); err != nil || m.IsEdns0() == nil ||
		asked.Load() == before {
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
func TestLocalRepliesSurvive(t *testing.T) {
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
	a.storeReply(question{web, dns.TypeA, 0}, source{}, m, "")
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
		"a cut head": good[:len(cacheFileMagic)+5], "a cut message": good[:len(good)-1],
		"no message": good[:len(cacheFileMagic)+27] + strings.Repeat("x", len(good)),
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

// One bad answer spoils nothing: it is neither saved, nor does it keep what follows from being loaded.
func TestOneBadAnswer(t *testing.T) {
	a := NewReplyCache()
	store := func(name string, record dns.RR) {
		m := new(dns.Msg)
		m.SetQuestion(name, dns.TypeA)
		m.Ns = []dns.RR{record}
		a.storeReply(question{name, dns.TypeA, 0}, source{}, m, "")
	}
	for i := range 200 {
		name := fmt.Sprintf("n%d.%s", i, web)
		store(name, rr(t, name+" 5 IN NS ns.example."))
	}
	store("bad."+web, &dns.SOA{Hdr: rrHeader(web, dns.TypeSOA)}) // as the library reads one without data
	var file bytes.Buffer
	if err := a.Save(&file); err != nil {
		t.Fatal(err)
	}
	loaded := func(data []byte) (n int, err error) {
		b := NewReplyCache()
		err = b.Load(bytes.NewReader(data))
		b.cache.Walk(func(map[uint64]*entry, uint64) bool { n++; return true })
		return n, err
	}
	if n, err := loaded(file.Bytes()); n != 200 || err != nil {
		t.Errorf("%d of 200 answers, %v", n, err)
	}
	// One that an earlier version has saved, or that the disk has changed.
	for at := range 3 {
		data := bytes.Clone(file.Bytes())
		from := len(cacheFileMagic)
		for range 50 * at {
			from += entryHeadSize + int(binary.BigEndian.Uint16(data[from+25:]))
		}
		copy(data[from+entryHeadSize:], bytes.Repeat([]byte{0xff}, 12))
		if n, err := loaded(data); n != 199 || err == nil || !strings.HasPrefix(err.Error(), "1 answers are left out") {
			t.Errorf("entry %d is bad: %d of 199 others, %v", 50*at, n, err)
		}
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

// An answer that is at hand costs one allocation: the reply, which plugins in front may keep.
func TestAllocations(t *testing.T) {
	var asked atomic.Int64
	cached := New(nil, zones(serve(t, clusterDNS(t, &asked))), up, cachingOptions())
	defer cached.Close()
	global := globalTable(t, manyNames(10), links{"k2": {Usable: true, State: "Up", RTT: time.Millisecond}})
	for name, table := range map[string]*Table{
		web: cached, "nobody.default.svc.kubelink2.kubelink.": cached,
		"name-1.svc.global.kubelink.": global, "nobody.svc.global.kubelink.": global,
	} {
		req := new(dns.Msg).SetQuestion(name, dns.TypeA)
		state := &request.Request{W: &test.ResponseWriter{}, Req: req}
		if n := testing.AllocsPerRun(1000, func() {
			m, _ := table.Match(state.Name())
			m.Answer(t.Context(), state)
		}); n != 1 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// BenchmarkCached is a query whose answer is remembered.
func BenchmarkCached(b *testing.B) {
	var asked atomic.Int64
	table := New(nil, zones(serve(b, clusterDNS(b, &asked))), up, cachingOptions())
	defer table.Close()
	req := new(dns.Msg)
	req.SetQuestion(web, dns.TypeA)
	w := &test.ResponseWriter{}
	b.ReportAllocs()
	for b.Loop() {
		state := request.Request{W: w, Req: req}
		m, _ := table.Match(state.Name())
		if r, err := m.Answer(b.Context(), &state); err != nil || len(r.Answer) != 1 {
			b.Fatal(r, err)
		}
	}
}

// What was another cluster's, is too large, or was given by an upstream that is gone, is not answered from memory; what
// has no TTL is, for a second.
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
	a.storeReply(q, source{cluster: one, serial: 1}, reply(0, 1), "")
	if e := a.findEntry(q); e.freshReply(source{cluster: one, serial: 1}, maxTTL, req) == nil ||
		e.freshReply(source{cluster: one, serial: 2}, maxTTL, req) != nil {
		t.Error("fresh")
	}
	if e := a.findEntry(q); e.staleReply(one, time.Hour, req) == nil || e.staleReply(two, time.Hour, req) != nil {
		t.Error("stale")
	}
	a = NewReplyCache()
	if a.storeReply(q, source{}, reply(5, 200), ""); a.findEntry(q) != nil {
		t.Error("a large answer is remembered")
	}
}
