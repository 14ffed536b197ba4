package bridge

// Configuration: what the broker sets, and the durations and limits that only tests change.

import (
	"context"
	"log/slog"
	"net"
	"runtime"
	"time"

	"github.com/mandelsoft/kubelink/broker/link"
)

// Config configures a bridge. Configure can change the Settings later. Of these, MTU defaults to DefaultMTU, and
// Streams (1 to MaxStreams) to DefaultStreams(); ListenPort is a TCP port.
type Config struct {
	link.Settings
	Interface string // name of the TUN

	Log *slog.Logger // nil: slog.Default()

	// The bridge calls Changed when the status of a link has changed; of RTT, only that it has become known. It calls
	// OnUnknown for an authenticated peer without link, closes the connection, and the peer dials again. It calls both
	// without holding locks, from goroutines of its own, and they must not block.
	Changed   func()
	OnUnknown func(link.UnknownPeer)

	open   func() (device, error) // tests: instead of a TUN of the kernel
	timing *timing                // tests: instead of defaultTiming
}

// DefaultMTU of the TUN, in bytes. A TCP stream carries packets of any size, so the encapsulation takes nothing off:
// with the 1500 of pods no packet is fragmented and no MSS clamped.
const DefaultMTU = 1500

// MaxStreams bounds Config.Streams.
const MaxStreams = 16

// DefaultStreams is one stream for each processor, but at most eight. It is at least two, so that a lost stream affects
// only a part of the traffic.
func DefaultStreams() int { return max(2, min(8, runtime.GOMAXPROCS(0))) }

// withDefaults fills in the defaults.
func withDefaults(s link.Settings) link.Settings {
	if s.MTU == 0 {
		s.MTU = DefaultMTU
	}
	if s.Streams == 0 {
		s.Streams = DefaultStreams()
	}
	return s
}

// timing is all durations of the bridge, the limit on the use of keys, and the function that dials.
type timing struct {
	dial, handshake, write time.Duration // limits; handshake includes the hellos
	tls, hello             time.Duration // limits of an accepted connection: TLS handshake, and each answer after it
	ping, silence          time.Duration // interval of pings, and the time without any byte after which a peer is dead
	stale                  time.Duration // packets that waited for longer are dropped

	// The first pause between dials; each failure doubles it, up to a limit: backoffUsed for a link that was used within
	// recently, else backoffIdle. A session that lasted longer than stable is dialled again at once.
	backoff, backoffUsed, backoffIdle time.Duration
	recently, stable                  time.Duration
	followDelay                       time.Duration // after which the end that is not the initiator dials missing streams

	termMemory time.Duration // see hello.Moment
	recheck    time.Duration // interval in which a session looks whether its certificates are still valid
	renewal    time.Duration // within which sessions are replaced after a change of our certificate

	intervals

	maxRecords int64 // TLS records that are sent with the keys of a session, approximately

	dialer func(ctx context.Context, network, address string) (net.Conn, error) // nil: that of package net
}

// intervals are the times in which a peer or a stranger causes something once at most.
type intervals struct {
	announceInterval time.Duration // its announcement changes
	offerInterval    time.Duration // what it offers changes, after many changes at once
	logInterval      time.Duration // a line about one cause
	reportInterval   time.Duration // a certificate without link is reported
	changeInterval   time.Duration // a call of Config.Changed
}

var defaultTiming = timing{
	dial: 5 * time.Second, handshake: 10 * time.Second, write: 15 * time.Second,
	tls: 3 * time.Second, hello: 2 * time.Second,
	ping: time.Second, silence: 5 * time.Second,
	stale:   time.Second,
	backoff: 100 * time.Millisecond, backoffUsed: time.Second, backoffIdle: 5 * time.Second,
	recently: 5 * time.Minute, stable: 3 * time.Second, followDelay: 2 * time.Second,
	termMemory: 30 * time.Second,
	recheck:    2 * time.Second, renewal: time.Minute,
	intervals: intervals{
		announceInterval: 3 * time.Second, offerInterval: time.Second,
		logInterval: time.Second, reportInterval: time.Second,
		changeInterval: 20 * time.Millisecond,
	},
	maxRecords: 1 << 24,
}
