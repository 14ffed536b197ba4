package bridge

// The metrics that only a bridge has, and those of packets. The broker gathers them when they are asked for.

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

func newDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("coredns_kubelink_"+name, help, labels, nil)
}

var (
	sessionsDesc = newDesc("link_sessions", "Number of connections of the link by the end that dialled (local, remote).", "link", "dialled_by")
	tunDesc      = newDesc("tun_info", "Always 1 while the TUN is there: its queues, and what the kernel leaves to it (offloads).", "interface", "queues", "offloads")
	bytesDesc    = newDesc("link_bytes_total", "Bytes of IP packets by direction (rx: from the peer, dropped ones included; tx: to the peer).", "link", "direction")
	packetsDesc  = newDesc("link_packets_total", "IP packets by direction (rx: from the peer, dropped ones included; tx: to the peer). A super-packet of up to 64 KiB is one.", "link", "direction")
	dropsDesc    = newDesc("dropped_packets_total", "IP packets dropped by reason, a super-packet being one; link is empty where none is known.", "link", "reason")
	refusedDesc  = newDesc("refused_connections_total", "Connections refused by reason.", "reason")
)

// Collect sends the metrics of the bridge.
func (b *Bridge) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	for _, s := range b.Statuses() {
		gauge(sessionsDesc, float64(s.Dialled), s.Link, "local")
		gauge(sessionsDesc, float64(s.Accepted), s.Link, "remote")
	}
	if tun := b.TUN(); tun.Queues > 0 {
		gauge(tunDesc, 1, tun.Interface, strconv.Itoa(tun.Queues), tun.Offloads.String())
	}
	stats := b.Stats()
	for i, n := range stats.Refused {
		count(refusedDesc, n, Refusal(i).String())
	}
	drops := func(link string, all [NumDrops]uint64) {
		for i, n := range all {
			if n > 0 || link == "" { // 250 links times 11 reasons say little as long as they are zero
				count(dropsDesc, n, link, Drop(i).String())
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
