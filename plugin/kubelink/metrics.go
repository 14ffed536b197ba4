package kubelink

// The metrics of queries. The broker has the metrics of links and dataplane, and the proxy library has
// the metrics of queries to other clusters (coredns_proxy_*, proxy_name "kubelink").

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
