package bridge

// Counters of packets.

import "sync/atomic"

// Drop is the reason why a packet was dropped.
type Drop uint8

// The reasons; String gives the label for metrics.
const (
	DropNoLink       Drop = iota // out: no link leads to its destination
	DropNotConnected             // out: the link is not connected
	DropQueueFull                // out: made room for a newer packet
	DropStale                    // out: waited for so long that its receiver has no use for it any more
	DropCoDel                    // out: its flow waits for longer than the target, and has to slow down (RFC 8289)
	DropTooBig                   // out: larger than the peer reads
	DropSource                   // in: its source is not routed to the link
	DropDestination              // in: destination is neither in ingress nor of another link, or a source route
	DropNode                     // in: to this node itself, which takes replies, ping and open ports only
	DropTTL                      // in: to be forwarded, but has no hop left
	DropMalformed                // in or out: not a valid IP packet
	DropTUNWrite                 // in: refused by the TUN
	NumDrops
)

func (d Drop) String() string {
	return [...]string{
		"no-link", "not-connected", "queue-full", "stale", "codel", "too-big",
		"source", "destination", "node", "ttl", "malformed", "tun-write",
	}[d]
}

type dropCounters [NumDrops]atomic.Uint64

func (d *dropCounters) add(why Drop) { d[why].Add(1) }

func (d *dropCounters) load() (n [NumDrops]uint64) {
	for i := range d {
		n[i] = d[i].Load()
	}
	return n
}

// counters of a link; they outlive a change of its endpoint. Counters of different goroutines are on different cache
// lines.
type counters struct {
	rxPackets, rxBytes atomic.Uint64 // of the goroutines that receive
	_                  [112]byte
	txPackets, txBytes atomic.Uint64 // of the goroutines that send
	txDelay            atomic.Int64  // nanoseconds that the packets have waited
	_                  [104]byte
	drops              dropCounters
	downs              atomic.Uint64 // of the link
}
