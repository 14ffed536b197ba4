package bridge

// What operators see: states of links, counters, and the metrics of them. The broker collects the metrics when a
// client asks for them.

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/link"
)

// Stats are counters since the bridge was opened, or since the link was set first.
type Stats struct {
	Drops   [NumDrops]uint64          // packets of no known link
	Refused [hello.NumRefusals]uint64 // all refused connections
	Links   map[string]LinkStats
}

// LinkStats are the counters of a link. A super-packet counts as one packet, whether it is cut or not. Bytes are bytes
// of IP packets.
type LinkStats struct {
	RxPackets, RxBytes uint64        // received, including dropped packets
	TxPackets, TxBytes uint64        // given to the connection, without dropped packets
	TxDelay            time.Duration // for which TxPackets have waited, all together
	Drops              [NumDrops]uint64
}

// Stats returns the counters.
func (b *Bridge) Stats() Stats {
	s := Stats{Drops: b.router.drops.load(), Refused: b.refusals.Counts(), Links: map[string]LinkStats{}}
	for _, p := range b.router.table.Load().peers {
		c := p.counters
		s.Links[p.Link] = LinkStats{
			RxPackets: c.rxPackets.Load(), RxBytes: c.rxBytes.Load(),
			TxPackets: c.txPackets.Load(), TxBytes: c.txBytes.Load(), TxDelay: time.Duration(c.txDelay.Load()),
			Drops: c.drops.load(),
		}
	}
	return s
}

// Statuses returns the status of each link, in the order of Set.
func (b *Bridge) Statuses() []link.Status {
	peers := b.router.table.Load().peers
	all := make([]link.Status, 0, len(peers))
	for _, p := range peers {
		all = append(all, p.currentStatus())
	}
	return all
}

// TUN describes the device as it was opened.
type TUN struct {
	Interface string
	Queues    int // 0: the device is missing, and the bridge tries to open it again
	Offloads  Offloads
}

// TUN returns what the kernel has given.
func (b *Bridge) TUN() TUN {
	dev := *b.iface.device.Load()
	if _, missing := dev.(noDevice); missing {
		return TUN{Interface: b.iface.name}
	}
	return TUN{b.iface.name, len(dev.Queues()), dev.Offloads()}
}

func newDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("coredns_kubelink_"+name, help, labels, nil)
}

var (
	sessionsDesc = newDesc("link_sessions",
		"Number of connections of the link by the end that dialled (local, remote).", "link", "dialled_by")
	tunDesc = newDesc("tun_info",
		"Always 1 while the TUN is there: its queues, and what the kernel leaves to it (offloads).",
		"interface", "queues", "offloads")
	bytesDesc = newDesc("link_bytes_total",
		"Bytes of IP packets by direction (rx: from the peer, dropped ones included; tx: to the peer).",
		"link", "direction")
	packetsDesc = newDesc("link_packets_total",
		"IP packets by direction (rx: from the peer, dropped ones included; tx: to the peer). "+
			"A super-packet of up to 64 KiB is one.", "link", "direction")
	dropsDesc = newDesc("dropped_packets_total",
		"IP packets dropped by reason, a super-packet being one; link is empty where none is known.",
		"link", "reason")
	delayDesc = newDesc("link_queue_delay_seconds",
		"For how long IP packets to the peer waited before they were sent.", "link")
	refusedDesc = newDesc("refused_connections_total", "Connections refused by reason.", "reason")
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
		count(refusedDesc, n, hello.Refusal(i).String())
	}
	drops := func(link string, all [NumDrops]uint64) { // zeros, too: else an increase misses the first packets
		for i, n := range all {
			count(dropsDesc, n, link, Drop(i).String())
		}
	}
	drops("", stats.Drops)
	for link, l := range stats.Links {
		count(bytesDesc, l.RxBytes, link, "rx")
		count(bytesDesc, l.TxBytes, link, "tx")
		count(packetsDesc, l.RxPackets, link, "rx")
		count(packetsDesc, l.TxPackets, link, "tx")
		ch <- prometheus.MustNewConstSummary(delayDesc, l.TxPackets, l.TxDelay.Seconds(), nil, link)
		drops(link, l.Drops)
	}
}
