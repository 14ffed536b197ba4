package diagnosis

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mandelsoft/kubelink/broker/link"
)

// A rate is that of the last seconds: right during a transfer, and 0 before, after, and where a counter begins anew.
func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent atomic.Uint64
		m := &meter{}
		ctx, cancel := context.WithCancel(t.Context())
		go m.run(ctx, func() []link.Status {
			return []link.Status{{Link: "a", RxBytes: 7, TxBytes: sent.Load()}, {Link: "b", RxBytes: sent.Load() / 2}}
		})
		defer synctest.Wait()
		defer cancel()
		expect := func(what string, tx float64) {
			t.Helper()
			r := &Report{Time: time.Now(), Links: []Link{{Name: "a", Traffic: Traffic{RxBytes: 7, TxBytes: sent.Load()}},
				{Name: "b", Traffic: Traffic{RxBytes: sent.Load() / 2}}, {Name: "new", Traffic: Traffic{RxBytes: 1000}}}}
			m.setRates(r)
			a, b, c := r.Links[0], r.Links[1], r.Links[2]
			if a.TxRate != tx || a.RxRate != 0 || b.RxRate != tx/2 || c.RxRate != 0 {
				t.Errorf("%s: %v %v, %v %v, %v; want %v", what, a.RxRate, a.TxRate, b.RxRate, b.TxRate, c.RxRate, tx)
			}
		}
		expect("at once", 0)
		wait(10 * time.Second)
		expect("at rest", 0)
		for range 100 {
			sent.Add(1000)
			wait(100 * time.Millisecond)
		}
		expect("transfer", 10000)
		wait(2 * time.Second)
		expect("after 2 s", 6000)
		wait(5 * time.Second)
		expect("after it", 0)
		sent.Store(500)
		expect("another broker", 0)
	})
}

// wait lets time pass in the bubble of a test.
func wait(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}
