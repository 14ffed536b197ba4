package zone

// Where answers come from, counted for each zone. Queries add to counters that the table holds: they take no lock.

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// origin is where an answer comes from.
type origin uint8

// The origins; String gives the label for metrics.
const (
	fromTable   origin = iota // kubelink knows it: the mesh domain, mesh services, addresses and states of clusters
	fromGlobal                // objects of global names
	fromService               // the DNS service of the cluster
	fromCache                 // an answer of that DNS service, within its TTL
	fromAPI                   // the API server of the cluster
	fromStale                 // an earlier answer, as there is no newer one
	fromNowhere               // there is none: SERVFAIL
	numOrigins
)

func (o origin) String() string {
	return [...]string{"table", "global", "service", "cache", "api", "stale", "none"}[o]
}

// answerCounts count the answers of a zone by origin.
type answerCounts [numOrigins]atomic.Uint64

var answersDesc = prometheus.NewDesc("coredns_kubelink_answers_total",
	"Counter of answered queries by zone (sub-domain of a cluster, or mesh domain) and by where the answer comes from.",
	[]string{"zone", "source"}, nil)

// countAnswers makes the counters of all zones. Those of zones that prev, which may be nil, has too go on.
func (t *Table) countAnswers(prev *Table) {
	t.answers = map[string]*answerCounts{}
	for name, n := range t.nodes {
		if (&Match{node: n}).Zone() != name { // mesh services of a cluster count as names of the cluster
			continue
		}
		counts := &answerCounts{}
		if prev != nil && prev.answers[name] != nil {
			counts = prev.answers[name]
		}
		t.answers[name] = counts
	}
}

// Collect sends the metrics of the zones; a nil table has none.
func (t *Table) Collect(ch chan<- prometheus.Metric) {
	if t == nil {
		return
	}
	for name, counts := range t.answers {
		for i := range counts {
			ch <- prometheus.MustNewConstMetric(answersDesc, prometheus.CounterValue, float64(counts[i].Load()),
				name, origin(i).String())
		}
	}
}
