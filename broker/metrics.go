package broker

// The metrics of links and names. CoreDNS gathers them when they are asked for; a dataplane adds its own.

import (
	"sync/atomic"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// metricsSource is the running broker.
var metricsSource atomic.Pointer[Broker]

func init() { prometheus.MustRegister(collector{}) }

func newDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(plugin.Namespace, "kubelink", name), help, labels, nil)
}

var (
	linksDesc = newDesc("links", "Number of links by state.", "state")
	upDesc    = newDesc("link_up", "Whether the link is connected and the kernel has its routes (1) or not (0).", "link")
	downsDesc = newDesc("link_downs_total", "How often the link was connected and lost its connection.", "link")
	peerDesc  = newDesc("peer_info", "Always 1: version of the kubelink at the other end, as it says.", "link", "version")
	rttDesc   = newDesc("link_rtt_seconds", "Smoothed round-trip time of the link's keepalive, in seconds.", "link")
	apiDesc   = newDesc("api_up", "Whether the API server answers (1) or not (0).")
	namesDesc = newDesc("cluster_names_up",
		"Whether the names of the cluster are loaded from its API server and kept up to date (1) or not (0).", "zone")
	crdsDesc = newDesc("crds_installed",
		"Whether the CRDs are as this version needs them (1) or could not be installed (0).")
	appliedDesc = newDesc("applied", "Whether the last state was applied in full (1) or not (0).")
	refusedDesc = newDesc("node_refused_packets_total",
		"Packets of links to the node itself that its kernel dropped: neither ping, nor a reply, nor for an open port.")
	dropsDesc = newDesc("dropped_packets_total",
		"IP packets of links dropped by the kernel by reason (source, destination, node); it does not tell of which link.",
		"link", "reason")
	vxlanDesc = newDesc("vxlan_dropped_packets_total",
		"VXLAN packets to the gateway that its kernel dropped: they came from no node, or from a link or a pod.")
	backendDesc = newDesc("iptables_backend_info",
		"Back end of iptables that has the chains of kubelink: nft or legacy. The value is 1.", "family", "backend")
	offersDesc = newDesc("refused_mesh_services",
		"Number of mesh services that peers offer at the moment and that are not accepted by reason.", "reason")
	findingsDesc = newDesc("node_findings", "Things on the node that keep packets of links from passing.", "reason")
)

// updates are the metrics of updates: how long they take, and how many have failed.
type updates struct {
	duration prometheus.Histogram
	failed   prometheus.Counter
}

// applies are those of apply, kernelUpdates those of the kernel, which goes on after apply where it is slow.
var (
	applies = newUpdates("apply", "applying a state of the links and names, in which the kernel has a second",
		prometheus.ExponentialBuckets(0.001, 4, 7))
	kernelUpdates = newUpdates("kernel_update", "bringing addresses, routes and iptables chains to the kernel",
		prometheus.ExponentialBuckets(0.001, 4, 9))
)

func newUpdates(name, what string, buckets []float64) updates {
	return updates{
		duration: promauto.NewHistogram(prometheus.HistogramOpts{
			Namespace: plugin.Namespace, Subsystem: "kubelink", Name: name + "_duration_seconds", Buckets: buckets,
			Help: "Histogram of the time that is needed for " + what + ".",
		}),
		failed: promauto.NewCounter(prometheus.CounterOpts{
			Namespace: plugin.Namespace, Subsystem: "kubelink", Name: name + "_errors_total",
			Help: "Counter of errors of " + what + ".",
		}),
	}
}

// observe counts an update that took so long, and failed with err.
func (u updates) observe(took time.Duration, err error) {
	u.duration.Observe(took.Seconds())
	if err != nil {
		u.failed.Inc()
	}
}

// collector collects from the broker that runs.
type collector struct{}

// Describe describes nothing: which metrics there are depends on the dataplane.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (collector) Collect(ch chan<- prometheus.Metric) {
	b := metricsSource.Load()
	if b == nil {
		return
	}
	h := b.health.Load()
	sendGauge(ch, apiDesc, boolValue(h.api == nil))
	sendGauge(ch, appliedDesc, boolValue(h.controllers == nil && h.applied == nil))
	sendGauge(ch, crdsDesc, boolValue(h.crds == nil))
	b.r.election.Collect(ch)
	for zone, s := range b.names.apis.Statuses() {
		sendGauge(ch, namesDesc, boolValue(s.Loaded && s.Err == nil), zone)
	}
	for reason, n := range h.node.CountReasons() {
		sendGauge(ch, findingsDesc, float64(n), reason)
	}
	b.Table().Collect(ch)
	b.r.found.Load().Collect(ch)
	refused := b.r.peers.offers.CountRefused()
	for _, why := range mesh.OfferRefusals {
		sendGauge(ch, offersDesc, float64(refused[why]), string(why))
	}
	d := b.names.currentDataplane()
	if d == nil {
		return
	}
	states, routed := map[link.State]int{link.Idle: 0, link.Up: 0, link.Down: 0}, b.names.routedLinks()
	for _, s := range d.Statuses() {
		if s.State == link.Up && !routed[s.Link] {
			s.State = link.Idle
		}
		states[s.State]++
		sendGauge(ch, upDesc, boolValue(s.State == link.Up), s.Link)
		ch <- prometheus.MustNewConstMetric(downsDesc, prometheus.CounterValue, float64(s.Downs), s.Link)
		if s.Announced != nil && s.Announced.Version != "" {
			sendGauge(ch, peerDesc, 1, s.Link, s.Announced.Version)
		}
		if s.RTT > 0 {
			sendGauge(ch, rttDesc, s.RTT.Seconds(), s.Link)
		}
	}
	for s, n := range states {
		sendGauge(ch, linksDesc, float64(n), string(s))
	}
	d.Collect(ch)
}

func sendGauge(ch chan<- prometheus.Metric, d *prometheus.Desc, v float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

// boolValue is the value of a gauge that says yes or no.
func boolValue(ok bool) float64 {
	if ok {
		return 1
	}
	return 0
}
