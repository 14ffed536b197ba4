package bridge

// What operators see: states of links and counters.

import (
	"sync/atomic"

	"github.com/mandelsoft/kubelink/broker/link"
)

// Drop is why a packet was dropped.
type Drop uint8

// The reasons; String gives the label for metrics.
const (
	DropNoLink       Drop = iota // out: no link leads to its destination
	DropNotConnected             // out: link is not connected
	DropQueueFull                // out: made room for a newer packet
	DropStale                    // out: waited for so long that nobody wants it any more
	DropCoDel                    // out: its flow waits for longer than it should, and shall slow down (RFC 8289)
	DropTooBig                   // out: larger than the peer reads
	DropSource                   // in: source is not routed to the link
	DropDestination              // in: destination is neither within ingress nor of another link, or there is a source route
	DropTTL                      // in: to be forwarded, but has no hop left
	DropMalformed                // in or out: not a sound IP packet
	DropTUNWrite                 // in: refused by the TUN
	NumDrops
)

func (d Drop) String() string {
	return [...]string{"no-link", "not-connected", "queue-full", "stale", "codel", "too-big", "source", "destination", "ttl", "malformed", "tun-write"}[d]
}

// Stats are counters since the bridge was opened, or the link was first set.
type Stats struct {
	Drops   [NumDrops]uint64    // of packets of no known link
	Refused [NumRefusals]uint64 // all refused connections
	Links   map[string]LinkStats
}

// LinkStats are the counters of a link. Packets are as they travel: a super-packet is one of them, cut or not. Bytes are
// those of IP packets.
type LinkStats struct {
	RxPackets, RxBytes uint64 // received, the dropped ones included
	TxPackets, TxBytes uint64 // given to the connection, no dropped ones
	Drops              [NumDrops]uint64
}

type dropCounters [NumDrops]atomic.Uint64

func (d *dropCounters) add(why Drop) { d[why].Add(1) }

func (d *dropCounters) load() (n [NumDrops]uint64) {
	for i := range d {
		n[i] = d[i].Load()
	}
	return n
}

// counters of a link; they outlive a change of its endpoint. What different goroutines count is on
// different cache lines.
type counters struct {
	rxPackets, rxBytes atomic.Uint64 // session readers
	_                  [112]byte
	txPackets, txBytes atomic.Uint64 // session writer
	_                  [112]byte
	drops              dropCounters
}

// Stats returns the counters.
func (b *Bridge) Stats() Stats {
	s := Stats{Drops: b.drops.load(), Links: map[string]LinkStats{}}
	for i := range b.refused {
		s.Refused[i] = b.refused[i].Load()
	}
	for _, p := range b.table.Load().peers {
		c := p.counters
		s.Links[p.Link] = LinkStats{
			RxPackets: c.rxPackets.Load(), RxBytes: c.rxBytes.Load(),
			TxPackets: c.txPackets.Load(), TxBytes: c.txBytes.Load(), Drops: c.drops.load(),
		}
	}
	return s
}

// Statuses returns the status of each link, in the order of Set.
func (b *Bridge) Statuses() []link.Status {
	peers := b.table.Load().peers
	all := make([]link.Status, 0, len(peers))
	for _, p := range peers {
		all = append(all, p.currentStatus())
	}
	return all
}

// Status returns the status of a link.
func (b *Bridge) Status(name string) (link.Status, bool) {
	for _, p := range b.table.Load().peers {
		if p.Link == name {
			return p.currentStatus(), true
		}
	}
	return link.Status{}, false
}

// TUN is the device as it was opened.
type TUN struct {
	Interface string
	Queues    int // 0: it is missing, and opened again
	Offloads  Offloads
}

// TUN returns what the kernel gave.
func (b *Bridge) TUN() TUN {
	dev := *b.device.Load()
	if _, missing := dev.(noDevice); missing {
		return TUN{Interface: b.name}
	}
	return TUN{b.name, len(dev.Queues()), dev.Offloads()}
}
