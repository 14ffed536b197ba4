package broker

// The metrics of links and dataplane, gathered when they are asked for.

import (
	"strconv"
	"sync/atomic"

	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mandelsoft/kubelink/broker/bridge"
)

// metricsSource is the running broker.
var metricsSource atomic.Pointer[Broker]

func init() { prometheus.MustRegister(collector{}) }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(plugin.Namespace, "kubelink", name), help, labels, nil)
}

var (
	linksDesc    = desc("links", "Number of links by state of their connection.", "state")
	upDesc       = desc("link_up", "Whether the link is connected (1) or not (0).", "link")
	rttDesc      = desc("link_rtt_seconds", "Smoothed round-trip time of the link's keepalive, in seconds.", "link")
	sessionsDesc = desc("link_sessions", "Number of connections of the link by the end that dialled (local, remote).", "link", "dialled_by")
	tunDesc      = desc("tun_info", "Always 1 while the TUN is there: its queues, and what the kernel leaves to it (offloads).", "interface", "queues", "offloads")
	bytesDesc    = desc("link_bytes_total", "Bytes of IP packets by direction (rx: from the peer, dropped ones included; tx: to the peer).", "link", "direction")
	packetsDesc  = desc("link_packets_total", "IP packets by direction (rx: from the peer, dropped ones included; tx: to the peer). A super-packet of up to 64 KiB is one.", "link", "direction")
	dropsDesc    = desc("dropped_packets_total", "IP packets dropped by reason, a super-packet being one; link is empty where none is known.", "link", "reason")
	refusedDesc  = desc("refused_connections_total", "Connections refused by reason.", "reason")
	apiDesc      = desc("api_up", "Whether the API server answers (1) or not (0).")
	namesDesc    = desc("cluster_names_up", "Whether the names of the cluster are loaded from its API server and kept up to date (1) or not (0).", "zone")
	appliedDesc  = desc("applied", "Whether the last state was applied in full (1) or not (0).")
)

type collector struct{}

func (collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{linksDesc, upDesc, rttDesc, sessionsDesc, tunDesc, bytesDesc, packetsDesc, dropsDesc, refusedDesc, apiDesc, namesDesc, appliedDesc} {
		ch <- d
	}
}

func (collector) Collect(ch chan<- prometheus.Metric) {
	b := metricsSource.Load()
	if b == nil {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
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

	b.backends.each(func(zone string, loaded bool, trouble error) {
		gauge(namesDesc, truth(loaded && trouble == nil), zone)
	})

	br := b.dataplane.Load()
	if br == nil {
		return
	}
	states := map[bridge.State]int{bridge.Idle: 0, bridge.Up: 0, bridge.Down: 0}
	for _, s := range br.Statuses() {
		states[s.State]++
		gauge(upDesc, truth(s.State == bridge.Up), s.Link)
		gauge(sessionsDesc, float64(s.Dialled), s.Link, "local")
		gauge(sessionsDesc, float64(s.Accepted), s.Link, "remote")
		if s.RTT > 0 {
			gauge(rttDesc, s.RTT.Seconds(), s.Link)
		}
	}
	for s, n := range states {
		gauge(linksDesc, float64(n), string(s))
	}
	if tun := br.TUN(); tun.Queues > 0 {
		gauge(tunDesc, 1, tun.Interface, strconv.Itoa(tun.Queues), tun.Offloads.String())
	}
	stats := br.Stats()
	for i, n := range stats.Refused {
		count(refusedDesc, n, bridge.Refusal(i).String())
	}
	drops := func(link string, all [bridge.NumDrops]uint64) {
		for i, n := range all {
			if n > 0 || link == "" { // 250 links times 11 reasons say little as long as they are zero
				count(dropsDesc, n, link, bridge.Drop(i).String())
			}
		}
	}
	drops("", stats.Drops)
	for link, l := range stats.Links {
		count(bytesDesc, l.RxBytes, link, "rx")
		count(bytesDesc, l.TxBytes, link, "tx")
		count(packetsDesc, l.RxPackets, link, "rx")
		count(packetsDesc, l.TxPackets, link, "tx")
		drops(link, l.Drops)
	}
}
