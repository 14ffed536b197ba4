package zone

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"

	"github.com/miekg/dns"
)

// TestDeadService: a DNS service that refuses fails at once; one that is silent costs two seconds, and nothing any more
// once it is known to be dead.
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
		if code, text := ede(m); m.Rcode != dns.RcodeServerFailure || code != 23 ||
			!strings.HasSuffix(text, "connection refused") || err == nil {
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
	if code, text := ede(m); err == nil || code != dns.ExtendedErrorCodeNetworkError ||
		!strings.HasSuffix(text, "no answer yet to 1024 queries before this one") || time.Since(begin) > tryTimeout/2 {
		t.Errorf("after %v: %v, %v", time.Since(begin), err, m)
	}
	close(hold)
	if err := <-first; err != nil {
		t.Error(err)
	}
	if m, err := queryTable(t, table, "db.default.svc.kubelink2.kubelink.", dns.TypeA, false, 0); err != nil ||
		m.Rcode != dns.RcodeSuccess {
		t.Errorf("%v, %v", err, m)
	}
}

// A query that waits for its answer while the link dies fails at once, and says why.
func TestLinkDiesUnderQuery(t *testing.T) {
	for _, tcp := range []bool{false, true} {
		asked := make(chan struct{}, 8)
		silent := serve(t, dns.HandlerFunc(func(dns.ResponseWriter, *dns.Msg) { asked <- struct{}{} }))
		remote := zones(silent)[:1]
		remote[0].Clusters = remote[0].Clusters[2:3] // kubelink2 alone
		table := New(nil, remote, up, options)
		type answer struct {
			m    *dns.Msg
			took time.Duration
		}
		answers := make(chan answer)
		var died atomic.Int64
		for range 3 {
			go func() {
				m, _ := queryTable(t, table, "x.kubelink2.kubelink.", dns.TypeA, tcp, 1232)
				answers <- answer{m, time.Duration(time.Now().UnixNano() - died.Load())}
			}()
		}
		<-asked
		died.Store(time.Now().UnixNano())
		down := func(string) Status { return Status{State: "Down", Reason: "no answer"} }
		lost := New(table, remote, down, options)
		for range 3 {
			a := <-answers
			if code, text := ede(a.m); a.m.Rcode != dns.RcodeServerFailure || code != 23 ||
				!strings.Contains(text, "link kubelink2 is Down: no answer") || a.took > 500*time.Millisecond {
				t.Errorf("tcp %v: after %v: %v", tcp, a.took, a.m)
			}
		}
		back := New(lost, remote, up, options)
		if back.upstreams[silent].isLost() {
			t.Error("the link is back, its DNS service is not")
		}
		back.Close()
	}
}

// Equal queries share one call, and each caller gets a reply of its own.
func TestQueryGroupShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g queryGroup
		var calls int
		release := make(chan struct{})
		replies := make(chan *dns.Msg, 8)
		for range cap(replies) {
			go func() {
				reply, err := g.runOnce(web, func() (*dns.Msg, error) {
					calls++
					<-release
					return new(dns.Msg).SetQuestion(web, dns.TypeA), nil
				})
				if err != nil {
					t.Error(err)
				}
				replies <- reply
			}()
		}
		synctest.Wait()
		close(release)
		seen := map[*dns.Msg]bool{}
		for range cap(replies) {
			seen[<-replies] = true
		}
		if calls != 1 || len(seen) != cap(replies) || seen[nil] || g.waiting != 0 {
			t.Errorf("%d calls, %d replies, %d waiting", calls, len(seen), g.waiting)
		}
	})
}

// A failure is believed for as long as it took.
func TestQueryGroupFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const took = 2 * time.Second
		var g queryGroup
		var calls int
		failure := errors.New("i/o timeout")
		expect := func(want int) {
			t.Helper()
			_, err := g.runOnce(web, func() (*dns.Msg, error) {
				calls++
				<-time.After(took)
				return nil, failure
			})
			if err != failure || calls != want || g.waiting != 0 {
				t.Errorf("%v, %d calls, want %d, %d waiting", err, calls, want, g.waiting)
			}
		}
		expect(1)
		expect(1)
		<-time.After(took - 1)
		expect(1)
		<-time.After(2)
		expect(2)
		if _, err := g.runOnce("another", func() (*dns.Msg, error) { return new(dns.Msg), nil }); err != nil {
			t.Error(err)
		}
	})
}

// A call that panics counts as a failure, and no longer as one that waits.
func TestQueryGroupPanics(t *testing.T) {
	var g queryGroup
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic is lost")
			}
		}()
		g.runOnce(web, func() (*dns.Msg, error) { panic("test") })
	}()
	if g.waiting != 0 {
		t.Errorf("%d waiting", g.waiting)
	}
}

// BenchmarkExchange is a query to the DNS service of a cluster, without cache and rewriting. It has a goroutine, and so
// a stack, of its own, as in the DNS server.
func BenchmarkExchange(b *testing.B) {
	var asked atomic.Int64
	u := newUpstream(serve(b, clusterDNS(b, &asked)), "cluster.local.")
	defer u.stopChecks()
	query := new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA)
	query.Id = 0
	b.ReportAllocs()
	for b.Loop() {
		var wg sync.WaitGroup
		wg.Go(func() {
			reply, err := u.exchangeShared(b.Context(), &request.Request{W: &test.ResponseWriter{}, Req: query})
			if err != nil || len(reply.Answer) != 1 {
				b.Error(reply, err)
			}
		})
		wg.Wait()
	}
}

// BenchmarkQueryGroup is what sharing adds to a query: for one that is alone, for eight equal ones at a time, and for
// one that has failed before.
func BenchmarkQueryGroup(b *testing.B) {
	reply := new(dns.Msg).SetQuestion(web, dns.TypeA)
	exchange := func() (*dns.Msg, error) { return reply, nil }
	b.Run("alone", func(b *testing.B) {
		var g queryGroup
		b.ReportAllocs()
		for b.Loop() {
			if _, err := g.runOnce(web, exchange); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("equal", func(b *testing.B) {
		var g queryGroup
		b.ReportAllocs()
		for b.Loop() {
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() { g.runOnce(web, exchange) })
			}
			wg.Wait()
		}
	})
	b.Run("failed", func(b *testing.B) {
		var g queryGroup
		failure := errors.New("i/o timeout")
		b.ReportAllocs()
		for b.Loop() {
			if _, err := g.runOnce(web, func() (*dns.Msg, error) { return nil, failure }); err != failure {
				b.Fatal(err)
			}
		}
	})
}

// Records without data are left out of an answer: a client could not read a message with them.
func TestRecordsWithoutData(t *testing.T) {
	addr := serve(t, func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(r)
		m.Answer = []dns.RR{&dns.A{Hdr: rrHeader(r.Question[0].Name, dns.TypeA)},
			rr(t, r.Question[0].Name+" 5 IN A 100.64.16.20")}
		if strings.HasPrefix(r.Question[0].Name, "nobody.") {
			m.Answer, m.Rcode = nil, dns.RcodeNameError
			m.Ns = []dns.RR{&dns.ANY{Hdr: rrHeader("cluster.local.", dns.TypeSOA)}} // which has no data
		}
		m.Extra = []dns.RR{&dns.ANY{Hdr: rrHeader("x.cluster.local.", dns.TypeSRV)}}
		w.WriteMsg(m)
	})
	table := New(nil, zones(addr), up, cachingOptions())
	defer table.Close()
	for range 2 {
		m, err := queryTable(t, table, web, dns.TypeA, false, 0)
		if err != nil || sections(m) != web+" 5 IN A 100.64.16.20 / / /" {
			t.Errorf("%v %s", err, sections(m))
		}
		m, err = queryTable(t, table, "nobody.svc.kubelink2.kubelink.", dns.TypeA, false, 0)
		if err != nil || m.Rcode != dns.RcodeNameError || len(m.Ns) != 1 || m.Ns[0].(*dns.SOA).Ns != "ns.dns.kubelink." {
			t.Errorf("%v %v", err, m)
		}
	}
}

// A failure is told once, and again when it is there again after an answer; several ones are told one by one.
func TestFailureNews(t *testing.T) {
	u := &upstream{}
	first, second := errors.New("i/o timeout"), errors.New("connection refused")
	told := func(err error) bool { return u.pickNews(err) != nil }
	for i, want := range []bool{true, false, false} {
		if told(first) != want || told(second) != want {
			t.Errorf("%d: not %v", i, want)
		}
	}
	u.answers.Add(1)
	if told(first) {
		t.Error("told twice in a second")
	}
	u.failures.said[first.Error()] = toldFailure{at: time.Now().Add(-2 * time.Second)}
	if !told(first) || told(first) {
		t.Error("not told once when it is back")
	}
	lines := 0
	for i := range 1000 {
		if told(fmt.Errorf("failure %d", i)) {
			lines++
		}
	}
	if lines > maxTold {
		t.Errorf("%d lines for texts of a peer", lines)
	}
}
