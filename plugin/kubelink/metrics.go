package kubelink

// The metrics of queries. The broker has the metrics of links and dataplane, and the proxy library has
// the metrics of queries to other clusters (coredns_proxy_*, proxy_name "kubelink").

import (
	"github.com/coredns/coredns/plugin"

	"github.com/miekg/dns"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/mandelsoft/kubelink/broker/zone"
)

// queries has the series of the zones that there are.
var queries = queryCounter{prometheus.NewCounterVec(prometheus.CounterOpts{
	Namespace: plugin.Namespace,
	Subsystem: pluginName,
	Name:      "queries_total",
	Help:      "Counter of answered queries by zone (sub-domain of a cluster, or mesh domain) and rcode.",
}, []string{"zone", "rcode"})}

func init() { prometheus.MustRegister(queries) }

// queryCounter is a counter that forgets the zones that are gone.
type queryCounter struct{ *prometheus.CounterVec }

// Collect implements prometheus.Collector.
func (q queryCounter) Collect(metrics chan<- prometheus.Metric) {
	if table := sharedLifecycle.currentTable(); table != nil { // else no link is known, and none is gone
		q.forgetZones(table)
	}
	q.CounterVec.Collect(metrics)
}

// forgetZones deletes the series of zones that the table does not have.
func (q queryCounter) forgetZones(table *zone.Table) {
	all := make(chan prometheus.Metric)
	go func() { // it ends with the loop below
		q.CounterVec.Collect(all)
		close(all)
	}()
	gone := map[string]bool{}
	for m := range all {
		var series dto.Metric
		if m.Write(&series) != nil {
			continue
		}
		for _, l := range series.Label {
			if l.GetName() == "zone" && !table.HasZone(l.GetValue()) {
				gone[l.GetValue()] = true
			}
		}
	}
	for name := range gone {
		q.DeletePartialMatch(prometheus.Labels{"zone": name})
	}
}

// countReply counts the reply and returns it. The compiler must not inline it, to keep the stack of
// answerQuery small: see zone.Match.Answer.
//
//go:noinline
func countReply(zone string, reply *dns.Msg) *dns.Msg {
	rcode, ok := dns.RcodeToString[reply.Rcode]
	if !ok {
		rcode = "other"
	}
	queries.WithLabelValues(zone, rcode).Inc()
	return reply
}
