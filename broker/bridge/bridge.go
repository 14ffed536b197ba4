// Package bridge is the dataplane of bridge mode: a TUN whose packets travel to other clusters in
// TLS streams over TCP.
//
// The way of a packet out: outbound.go (TUN to session), queue.go (what waits there), session.go (to the
// connection), gather.go (to the socket); and in: session.go (connection to TUN). Packets are as large as
// the kernel makes them, up to 64 KiB: offload.go. Connections come from peer.go (dialled) and
// listen.go (accepted), are authenticated by auth.go and identified by the hello of hello.go.
//
// On the way of a packet nothing waits for a lock, there is no allocation and no log: decisions are read from
// immutable tables (table.go) behind atomic pointers, and what is dropped is counted (stats.go).
package bridge

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Config is how a bridge works. Configure can change the Settings later. Of these, MTU defaults to DefaultMTU, and Streams
// (1 to MaxStreams) to DefaultStreams(); ListenPort is a TCP port.
type Config struct {
	link.Settings
	Interface string // name of the TUN

	Log *slog.Logger // nil: slog.Default()

	// Changed is called when the status of a link changed, in RTT only when it was not known. OnUnknown is called for an
	// authenticated peer without link; its connection is closed, it dials again. Both are called
	// without locks, from any goroutine, and must not block.
	Changed   func()
	OnUnknown func(link.UnknownPeer)

	open   func() (device, error) // tests: instead of a TUN of the kernel
	timing *timing                // tests: instead of defaultTiming
}

// timing is all durations of the bridge, what else limits a session, and the dialer.
type timing struct {
	dial, handshake, write   time.Duration // limits; handshake includes the hellos
	tls                      time.Duration // limit of the TLS handshake of an accepted connection
	ping, silence            time.Duration // a ping each, and a peer is dead after that without any byte
	stale                    time.Duration // packets that waited for longer are dropped
	backoff                  time.Duration // first pause between dials, doubled each time
	backoffUsed, backoffIdle time.Duration // its limit when the link was used recently, and else
	recently, stable         time.Duration // a session that lived for longer than stable is dialled again at once
	followDelay              time.Duration // the end that does not lead dials missing streams after that
	announceInterval         time.Duration // what a peer announces changes once in that time at most
	maxRecords               int64         // about as many TLS records are sent with the keys of a session
	dialer                   func(ctx context.Context, network, address string) (net.Conn, error)
}

var defaultTiming = timing{
	dial: 5 * time.Second, handshake: 10 * time.Second, write: 15 * time.Second,
	tls:  3 * time.Second,
	ping: time.Second, silence: 5 * time.Second,
	stale:   time.Second,
	backoff: 100 * time.Millisecond, backoffUsed: time.Second, backoffIdle: 5 * time.Second,
	recently: 5 * time.Minute, stable: 3 * time.Second, followDelay: 2 * time.Second, announceInterval: 3 * time.Second,
	maxRecords: 1 << 24,
	// It looks the name up each time, and tries IPv6 and IPv4 (RFC 8305).
	dialer: (&net.Dialer{}).DialContext,
}

// MaxStreams bounds Config.Streams.
const MaxStreams = 16

// DefaultStreams is one for each processor, up to eight. There are two at least: a lost one costs no more
// than its part of the traffic.
func DefaultStreams() int { return max(2, min(8, runtime.GOMAXPROCS(0))) }

// ICMP messages of a TUN reader or a session.
const (
	icmpInterval = 10 * time.Millisecond
	icmpBurst    = 50
)

// Bridge carries packets between its TUN and its peers.
type Bridge struct {
	name       string
	openDevice func() (device, error)
	device     atomic.Pointer[device]

	offloads atomic.Uint32 // of the device, or the last one that was there
	reopen   atomic.Bool   // the device is to be opened again

	log      *slog.Logger
	timing   *timing
	start    time.Time
	instance uint64
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup // all goroutines

	config      atomic.Pointer[Config]
	credentials atomic.Pointer[link.Credentials] // nil: not told yet, or suspended
	table       atomic.Pointer[routingTable]
	failure     atomic.Pointer[error] // of the TUN
	drops       dropCounters
	refused     [NumRefusals]atomic.Uint64
	pending     pendingConns
	refuseMu    sync.Mutex
	refuseLog   limiter

	budget byteBudget

	mu       sync.Mutex // guards what follows; nothing waits while it is held
	closed   bool
	keep     bool // when closed: the device
	peers    map[string]*peer
	listener net.Listener
	port     uint16 // that listener was asked for
}

var (
	errClosed      = errors.New("bridge is closed")
	errUnencrypted = errors.New("it was without certificate, which is not allowed any more")
	errSuspended   = errors.New("waiting for the certificate")
	errStreams     = errors.New("fewer streams are configured")
	errOffloads    = errors.New("the TUN's offloads changed")
	errSpent       = errors.New("its keys are used up, it is made anew")
)

// Open opens the TUN, or takes over the one that an earlier process left. Nothing is
// listened for or dialled before SetCredentials and Set.
func Open(config Config) (*Bridge, error) {
	config.Settings = withDefaults(config.Settings)
	if config.Log == nil {
		config.Log = slog.Default()
	}
	if config.timing == nil {
		config.timing = &defaultTiming
	}
	b := &Bridge{
		name: config.Interface, openDevice: config.open, log: config.Log, timing: config.timing, start: time.Now(),
		peers: map[string]*peer{}, refuseLog: limiter{every: time.Second, burst: 10},
	}
	var random [8]byte
	rand.Read(random[:])
	b.instance = binary.BigEndian.Uint64(random[:]) | 1 // 0 is "not known"
	b.config.Store(&config)
	b.table.Store(&routingTable{})
	if _, err := b.ownHello().appendPayload(nil); err != nil {
		return nil, err
	}
	if b.openDevice == nil {
		b.openDevice = func() (device, error) {
			c := b.config.Load()
			return openTUN(b.name, c.MTU, c.NoOffload)
		}
	}
	dev, err := b.openDevice()
	if err != nil {
		return nil, err
	}
	b.setDevice(dev)
	b.logDevice(dev)
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.wg.Go(b.serveTUN)
	return b, nil
}

// logDevice logs what the kernel gave.
func (b *Bridge) logDevice(dev device) {
	attrs := []any{"interface", b.name, "queues", len(dev.Queues()), "offloads", dev.Offloads()}
	if t, ok := dev.(*kernelTUN); ok && t.refused != nil {
		attrs = append(attrs, "refused", t.refused)
	}
	b.log.Info("TUN is open", attrs...)
}

// withDefaults fills in defaults.
func withDefaults(s link.Settings) link.Settings {
	if s.MTU == 0 {
		s.MTU = DefaultMTU
	}
	if s.Streams == 0 {
		s.Streams = DefaultStreams()
	}
	return s
}

// now is the bridge's time: monotonic, since Open.
func (b *Bridge) now() time.Duration { return time.Since(b.start) }

func (b *Bridge) notifyChanged() {
	if f := b.config.Load().Changed; f != nil {
		f()
	}
}

// ownHello is our hello, but for the address.
func (b *Bridge) ownHello() *hello {
	c := b.config.Load()
	return &hello{
		Announcement: link.Announcement{AdvertisedPort: c.AdvertisedPort, DNS: c.DNS, API: c.API},
		capable:      true, flags: b.featureFlags(), instance: b.instance, streams: c.Streams,
	}
}

// featureFlags are the features of this end.
func (b *Bridge) featureFlags() uint32 {
	flags := flagKeepalive | flagUpdates | flagStreams
	offloads := Offloads(b.offloads.Load())
	if offloads&OffloadTSO != 0 {
		flags |= flagOffload
	}
	if offloads&OffloadUSO != 0 {
		flags |= flagUSO
	}
	return flags
}

// Configure changes the settings. Sessions go on: a changed announcement is told to connected
// peers that understand it, to others with the next hello.
func (b *Bridge) Configure(settings link.Settings) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return errClosed
	}
	old := b.config.Load()
	config := *old
	config.Settings = withDefaults(settings)
	before := b.ownHello()
	b.config.Store(&config)
	now := b.ownHello()
	if _, err := now.appendPayload(nil); err != nil {
		b.config.Store(old)
		return err
	}
	if !reflect.DeepEqual(before, now) {
		for _, p := range b.peers {
			p.sendAnnouncement()
		}
	}
	for _, p := range b.peers {
		p.closeSessions(errStreams, func(s *session) bool { return s.stream >= config.Streams })
		p.wakeDialer()
	}
	var err error
	dev := *b.device.Load()
	if t, ok := dev.(*kernelTUN); ok && config.NoOffload != t.noOffload {
		b.reopen.Store(true)
		dev.Close(true)
	} else if config.MTU != old.MTU {
		err = dev.SetMTU(config.MTU)
	}
	if b.listener != nil {
		err = errors.Join(err, b.ensureListener())
	}
	return err
}

// SetCredentials sets what is used from the next handshake on; sessions go on, but for those without
// certificate when there is one now. Nil suspends the bridge: all sessions end, and until there are credentials
// nothing is dialled and nobody is let in.
func (b *Bridge) SetCredentials(c *link.Credentials) {
	old := b.credentials.Swap(c)
	if c == nil {
		for _, p := range b.table.Load().peers {
			p.closeSessions(errSuspended, func(*session) bool { return true })
		}
		return
	}
	if c.Unencrypted && (old == nil || !old.Unencrypted) {
		b.log.Warn("NO CERTIFICATE: links are neither encrypted nor authenticated, anybody who reaches the port can take part in the mesh")
	}
	for _, p := range b.table.Load().peers {
		if !c.Unencrypted {
			p.closeSessions(errUnencrypted, (*session).isUnencrypted)
		}
		p.dialAtOnce()
	}
}

// Set tells the bridge all its peers. New ones are dialled, removed ones are closed at once, those with
// another endpoint or address are connected again, all others keep their connections. No peer owns an
// address of the local networks unless it has that very network or a part of it: a wide one, such as an
// egress of 10.0.0.0/8, includes no address of this cluster. The error is about the listener or the
// TUN: peers are set in any case.
func (b *Bridge) Set(peers []mesh.Peer, local []netip.Prefix) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return errClosed
	}
	var (
		t     = &routingTable{}
		next  = make(map[string]*peer, len(peers))
		fresh []*peer
	)
	for _, n := range local {
		t.routes.Insert(n, nil)
	}
	for i := range peers {
		spec := &peers[i]
		if next[spec.Link] != nil {
			continue // names are unique; were they not, the first would count
		}
		p := b.peers[spec.Link]
		if p == nil || !p.canServe(spec) {
			old := p
			if p = b.newPeer(spec); old != nil {
				p.counters = old.counters
			}
			fresh = append(fresh, p)
		}
		p.filter.Store(newIngressFilter(spec))
		for _, n := range spec.Networks {
			t.routes.Insert(n, p)
		}
		t.peers = append(t.peers, p)
		next[spec.Link] = p
	}
	old := b.peers
	b.peers = next
	b.table.Store(t)
	for link, p := range old {
		if next[link] != p {
			p.close()
		}
	}
	for _, p := range fresh {
		b.wg.Go(p.dialLoop)
	}
	err := b.ensureListener()
	if f := b.failure.Load(); f != nil {
		err = errors.Join(err, *f)
	}
	return err
}

// Close ends all sessions and waits for all goroutines. With keepDevice the TUN stays, with its
// addresses and routes, for the next process; else it is deleted.
func (b *Bridge) Close(keepDevice bool) error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return errClosed
	}
	b.closed, b.keep = true, keepDevice
	b.cancel()
	if b.listener != nil {
		b.listener.Close()
	}
	for _, p := range b.peers {
		p.close()
	}
	dev := *b.device.Load()
	b.mu.Unlock()
	err := dev.Close(keepDevice)
	b.wg.Wait()
	if _, missing := dev.(noDevice); !keepDevice && (missing || err != nil) && removeDevice(b.name) { // was about to be opened again
		return nil
	}
	return err
}
