package wireguard

// Metrics: what the device counts.

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mandelsoft/kubelink/broker/hello"
)

// linkBytes are bytes of packets since the link was set first.
type linkBytes struct {
	link   string
	rx, tx int64
}

func newDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("coredns_kubelink_"+name, help, labels, nil)
}

var (
	infoDesc = newDesc("wireguard_info",
		"Always 1 while the WireGuard device is there: kernel, userspace (in this process) or adopted (another process).",
		"device", "interface")
	bytesDesc = newDesc("link_bytes_total",
		"Bytes of IP packets by direction (rx: from the peer, dropped ones included; tx: to the peer).",
		"link", "direction")
	refusedDesc = newDesc("refused_connections_total",
		"Connections refused by reason: of the control channel, inside the tunnels.", "reason")
)

// channelRefusals are the reasons for which the control channel refuses connections.
var channelRefusals = []hello.Refusal{
	hello.RefusedAddress, hello.RefusedHello, hello.RefusedUnknown, hello.RefusedLimit, hello.RefusedTerm,
}

// Collect sends the metrics of the device. Bytes are those that WireGuard counts, with its own packets. Links of one
// key are one peer: the first has the bytes of all.
func (d *Device) Collect(ch chan<- prometheus.Metric) {
	o := d.seen.Load()
	if o.kind != "" {
		ch <- prometheus.MustNewConstMetric(infoDesc, prometheus.GaugeValue, 1, o.kind, d.open.name)
	}
	refused := d.channels.CountRefused()
	for _, why := range channelRefusals {
		ch <- prometheus.MustNewConstMetric(refusedDesc, prometheus.CounterValue, float64(refused[why]), why.String())
	}
	for _, b := range o.bytes {
		ch <- prometheus.MustNewConstMetric(bytesDesc, prometheus.CounterValue, float64(b.rx), b.link, "rx")
		ch <- prometheus.MustNewConstMetric(bytesDesc, prometheus.CounterValue, float64(b.tx), b.link, "tx")
	}
}
