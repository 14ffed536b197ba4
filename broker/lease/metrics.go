package lease

// What metrics tell of the election.

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// takeover is why a broker has taken the Lease.
type takeover int

const (
	tookNew      takeover = iota // there was none
	tookReleased                 // its holder has given it back
	tookRestart                  // an earlier process of this node has held it
	tookExpired                  // its holder has not renewed it
	numTakeovers
)

func (t takeover) String() string { return [...]string{"new", "released", "restart", "expired"}[t] }

// takeoverCounters count the times that this process has taken the Lease.
type takeoverCounters [numTakeovers]atomic.Uint64

var (
	leaderDesc = prometheus.NewDesc("coredns_kubelink_leader",
		"Whether this broker holds the links (1) or another broker of the cluster does (0).", []string{"lease"}, nil)
	termDesc = prometheus.NewDesc("coredns_kubelink_term",
		"Term of the broker that holds the links: the number of transitions of its Lease.", []string{"lease"}, nil)
	takeoversDesc = prometheus.NewDesc("coredns_kubelink_takeovers_total",
		"How often this broker has taken the links by reason (new, released, restart, expired).",
		[]string{"lease", "reason"}, nil)
)

// Collect sends the metrics of the election. It takes no lock.
func (e *Elector) Collect(ch chan<- prometheus.Metric) {
	s, leads := e.State(), 0.0
	if s.Role == Holder {
		leads = 1
	}
	ch <- prometheus.MustNewConstMetric(leaderDesc, prometheus.GaugeValue, leads, s.Lease)
	ch <- prometheus.MustNewConstMetric(termDesc, prometheus.GaugeValue, float64(s.Term), s.Lease)
	for i := range e.takeovers {
		ch <- prometheus.MustNewConstMetric(takeoversDesc, prometheus.CounterValue, float64(e.takeovers[i].Load()),
			s.Lease, takeover(i).String())
	}
}
