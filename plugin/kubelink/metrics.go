package kubelink

// Metrics of the names. Those of the links are the broker's, those of the queries to the clusters
// are the proxy library's (coredns_proxy_*, proxy_name "kubelink").

import (
	"github.com/coredns/coredns/plugin"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

var queries = promauto.NewCounterVec(prometheus.CounterOpts{
	Namespace: plugin.Namespace,
	Subsystem: pluginName,
	Name:      "queries_total",
	Help:      "Counter of answered queries by zone (sub-domain of a cluster, or mesh domain) and rcode.",
}, []string{"zone", "rcode"})
