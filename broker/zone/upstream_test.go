package zone

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"

	"github.com/miekg/dns"
)

// BenchmarkExchange is a query to the DNS service of a cluster, without cache and rewriting.
func BenchmarkExchange(b *testing.B) {
	var asked atomic.Int64
	u := newUpstream(serve(b, clusterDNS(b, &asked)), "cluster.local.")
	defer u.stopChecks()
	query := new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA)
	query.Id = 0
	b.ReportAllocs()
	for b.Loop() {
		reply, err := u.exchangeShared(b.Context(), &request.Request{W: &test.ResponseWriter{}, Req: query})
		if err != nil || len(reply.Answer) != 1 {
			b.Fatal(reply, err)
		}
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
