package kubelink

// Metrics of the names. Those of the links are the broker's, those of the queries to the clusters
// are the proxy library's (coredns_proxy_*, proxy_name "kubelink").

import (
	"github.com/coredns/coredns/plugin"

	"github.com/miekg/dns"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

var queries = promauto.NewCounterVec(prometheus.CounterOpts{
	Namespace: plugin.Namespace,
	Subsystem: pluginName,
	Name:      "queries_total",
	Help:      "Counter of answered queries by zone (sub-domain of a cluster, or mesh domain) and rcode.",
}, []string{"zone", "rcode"})

// count counts the reply that it returns. It is not inlined for the stack: see zone.Match.Answer.
//
//go:noinline
func count(zone string, reply *dns.Msg) *dns.Msg {
	rcode, ok := dns.RcodeToString[reply.Rcode]
	if !ok {
		rcode = "other"
	}
	queries.WithLabelValues(zone, rcode).Inc()
	return reply
}
