package broker

// The metrics of links and dataplane, gathered when they are asked for.

import (
	"sync/atomic"

	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mandelsoft/kubelink/broker/link"
)

// metricsSource is the running broker.
var metricsSource atomic.Pointer[Broker]

func init() { prometheus.MustRegister(collector{}) }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(plugin.Namespace, "kubelink", name), help, labels, nil)
}

var (
	linksDesc   = desc("links", "Number of links by state of their connection.", "state")
	upDesc      = desc("link_up", "Whether the link is connected (1) or not (0).", "link")
	rttDesc     = desc("link_rtt_seconds", "Smoothed round-trip time of the link's keepalive, in seconds.", "link")
	apiDesc     = desc("api_up", "Whether the API server answers (1) or not (0).")
	namesDesc   = desc("cluster_names_up", "Whether the names of the cluster are loaded from its API server and kept up to date (1) or not (0).", "zone")
	appliedDesc = desc("applied", "Whether the last state was applied in full (1) or not (0).")
)

type collector struct{}

// Describe describes nothing: which metrics there are depends on the dataplane.
func (collector) Describe(chan<- *prometheus.Desc) {}

func (collector) Collect(ch chan<- prometheus.Metric) {
	b := metricsSource.Load()
	if b == nil {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	truth := func(ok bool) float64 {
		if ok {
			return 1
		}
		return 0
	}
	h := b.health.Load()
	gauge(apiDesc, truth(h.api == nil))
	gauge(appliedDesc, truth(h.controllers == nil && h.applied == nil))

	for zone, s := range b.apiZones.Statuses() {
		gauge(namesDesc, truth(s.Loaded && s.Err == nil), zone)
	}

	br := b.dataplane.Load()
	if br == nil {
		return
	}
	states := map[link.State]int{link.Idle: 0, link.Up: 0, link.Down: 0}
	for _, s := range br.Statuses() {
		states[s.State]++
		gauge(upDesc, truth(s.State == link.Up), s.Link)
		if s.RTT > 0 {
			gauge(rttDesc, s.RTT.Seconds(), s.Link)
		}
	}
	for s, n := range states {
		gauge(linksDesc, float64(n), string(s))
	}
	br.Collect(ch)
}
