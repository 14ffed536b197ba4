package zone

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"

	"github.com/miekg/dns"
)

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

// BenchmarkExchange is a query to the DNS service of a cluster, without cache and rewriting. It has a goroutine, and so a
// stack, of its own, as in the DNS server.
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

// BenchmarkQueryGroup is what sharing adds to a query: for one that is alone, for eight equal ones at a time, and for one
// that has failed before.
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
