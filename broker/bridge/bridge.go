// Package bridge is the dataplane of bridge mode: a TUN whose packets travel to other clusters in TLS streams over TCP.
//
// The path of an outbound packet: tunreader.go (TUN to peer), flows.go (peer to session), queue.go (where it waits),
// sender.go (session to connection), batchconn.go (connection to socket). The path of an inbound packet:
// receiver.go (connection to TUN or to another peer), iface.go (TUN). Packets are as large as the kernel makes them, up
// to 64 KiB: offload.go. Connections come from dial.go and listen.go; handshake.go authenticates them, and authorize.go
// sees to it that this holds as long as they live. The hello identifies the link.
//
// On the path of a packet no goroutine waits for a lock, allocates memory or logs: decisions are read from immutable
// tables (router.go, filter.go) behind atomic pointers, and dropped packets are counted (counters.go).
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
	"sync"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Bridge carries packets between its TUN and its peers.
type Bridge struct {
	*shared
	router   *router
	iface    *iface
	listener *listener
	cancel   context.CancelFunc

	// mu guards the fields below. It is held while ports are opened and the TUN is changed, but on no path of packets or
	// statuses.
	mu     sync.Mutex
	closed bool
	peers  map[string]*peer // by link
}

var errClosed = errors.New("bridge is closed")

// Open opens the TUN, or takes over the one that an earlier process left. The bridge neither listens nor dials before
// SetCredentials and Set.
func Open(config Config) (*Bridge, error) {
	config.Settings = withDefaults(config.Settings)
	if config.Log == nil {
		config.Log = slog.Default()
	}
	if config.timing == nil {
		config.timing = &defaultTiming
	}
	s := &shared{log: config.Log, timing: config.timing, start: time.Now(), changed: newSignal()}
	var random [8]byte
	rand.Read(random[:])
	s.instance = binary.BigEndian.Uint64(random[:]) | 1 // 0 means "not known"
	s.config.Store(&config)
	s.ownServices.Store(&hello.OwnServices{Serial: 1, List: config.Offers})
	s.refusals = hello.NewRefusals(s.log, s.timing.logInterval)
	if _, err := s.ownHello().AppendPayload(nil); err != nil {
		return nil, err
	}
	var cancel context.CancelFunc
	s.ctx, cancel = context.WithCancel(context.Background())
	r := &router{}
	r.table.Store(&routingTable{})
	b := &Bridge{
		shared: s, router: r, cancel: cancel, peers: map[string]*peer{},
		iface:    &iface{shared: s, name: config.Interface, openDevice: config.open},
		listener: &listener{shared: s, router: r, pending: pendingConns{turns: newTurnQueue()}},
	}
	if config.open == nil {
		b.iface.openDevice = func() (device, error) {
			c := s.config.Load()
			return openTUN(c.Interface, c.MTU, c.NoOffload)
		}
	}
	if err := b.iface.open(); err != nil {
		return nil, err
	}
	b.wg.Go(b.reportChanges)
	b.wg.Go(func() { b.iface.serve(b.readDevice, b.closeOtherOffloads) })
	return b, nil
}

// readDevice reads the TUN until it fails.
func (b *Bridge) readDevice(dev device) error { return readDevice(dev, b.iface, b.router) }

// closeOtherOffloads closes sessions that agreed on other features than the TUN has now.
func (b *Bridge) closeOtherOffloads() {
	for _, p := range b.router.table.Load().peers {
		p.closeSessions(errOffloads, func(s *session) bool { return s.flags != s.theirFlags&b.featureFlags() })
	}
}

// Configure changes the settings. Sessions continue: connected peers that understand updates get a changed announcement
// at once, and the other peers with the next hello.
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
	if _, err := now.AppendPayload(nil); err != nil {
		b.config.Store(old)
		return err
	}
	if !reflect.DeepEqual(before, now) {
		for _, p := range b.peers {
			p.sendAnnouncement()
		}
	}
	if own := b.ownServices.Load(); !reflect.DeepEqual(own.List, config.Offers) {
		b.ownServices.Store(&hello.OwnServices{Serial: own.Serial + 1, List: config.Offers})
		for _, p := range b.peers {
			p.offerServices()
		}
	}
	for _, p := range b.peers {
		p.closeSessions(errStreams, func(s *session) bool { return s.stream >= config.Streams })
		p.wakeup.notify()
	}
	return errors.Join(b.iface.configure(config.MTU != old.MTU), b.listener.movePort())
}

// SetCredentials sets the credentials for handshakes from now on. Sessions go on if the new roots trust their peer;
// other ones end, and so do sessions without certificate when there is one now. Nil suspends the bridge: all sessions
// end, and until there are credentials the bridge neither dials nor accepts a peer.
func (b *Bridge) SetCredentials(c *link.Credentials) {
	old := b.credentials.Swap(c)
	peers := b.router.table.Load().peers
	if c == nil {
		for _, p := range peers {
			p.closeSessions(errSuspended, func(*session) bool { return true })
		}
		return
	}
	if c.Unencrypted && (old == nil || !old.Unencrypted) {
		b.log.Warn("NO CERTIFICATE: links are neither encrypted nor authenticated, " +
			"every host that reaches the port can take part in the mesh")
	}
	for _, p := range peers {
		if !c.Unencrypted {
			p.closeSessions(errUnencrypted, (*session).isUnencrypted)
			verifySessions(p.currentSessions(), c)
		}
		p.dialAtOnce()
	}
}

// Set tells the bridge all its peers. It dials new peers, closes removed peers at once, and connects peers with another
// endpoint or address again; the other peers keep their connections. No peer owns an address of the local networks
// unless it has that very network or a part of it: a wide network, such as an egress of 10.0.0.0/8, includes no address
// of this cluster. The error is about the listener or the TUN: peers are set in any case.
func (b *Bridge) Set(peers []mesh.Peer, local []netip.Prefix) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return errClosed
	}
	table, next, added := b.buildTable(peers, local)
	old := b.peers
	b.peers = next
	b.router.table.Store(table)
	for link, p := range old {
		if next[link] != p {
			p.close()
		}
	}
	for _, p := range added {
		b.wg.Go(newDialer(p).dialLoop)
	}
	err := b.listener.openPort()
	if f := b.iface.failure.Load(); f != nil {
		err = errors.Join(err, *f)
	}
	return err
}

// buildTable makes the routing table for peers, of the present peers where they can serve them, and of added ones. b.mu
// is held.
func (b *Bridge) buildTable(peers []mesh.Peer, local []netip.Prefix) (
	table *routingTable, next map[string]*peer, added []*peer,
) {
	table, next = &routingTable{}, make(map[string]*peer, len(peers))
	verdicts := verdictTables{}
	for _, n := range local {
		table.routes.Insert(n, nil)
	}
	for i := range peers {
		spec := &peers[i]
		if next[spec.Link] != nil {
			continue // names are unique; else the first counts
		}
		p := b.peers[spec.Link]
		if p == nil || !p.canServe(spec) {
			old := p
			if p = newPeer(b.shared, b.router, b.iface, spec); old != nil {
				p.counters = old.counters
			}
			added = append(added, p)
		}
		p.filter.Store(newIngressFilter(spec, verdicts))
		for _, n := range spec.Networks {
			table.routes.Insert(n, p)
		}
		table.peers = append(table.peers, p)
		next[spec.Link] = p
	}
	return table, next, added
}

// Addr returns the address that the bridge listens on; nil: it does not listen.
func (b *Bridge) Addr() net.Addr { return b.listener.addr() }

// Close ends all sessions and waits for all goroutines. With keepDevice the TUN stays, with its addresses and routes,
// for the next process; otherwise Close deletes it.
func (b *Bridge) Close(keepDevice bool) error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return errClosed
	}
	b.closed = true
	b.cancel()
	b.listener.close()
	for _, p := range b.peers {
		p.close()
	}
	b.mu.Unlock()
	err := b.iface.close(keepDevice)
	b.wg.Wait()
	return b.iface.deleteMissing(err)
}
