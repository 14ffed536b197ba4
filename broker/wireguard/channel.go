package wireguard

// The control channel: what two kubelinks say to each other inside their tunnel, over TCP between their cluster
// addresses. It tells what the hello of package hello tells, and whether the peer is alive: WireGuard itself notices a
// loss after minutes only.
//
// Its sockets are bound to the device, so WireGuard has authenticated the source address of a connection, and the
// source address says which link it belongs to: a peer can speak for no other one. Files: channelpeer.go has the
// channel of one link, channeldial.go and channellisten.go make its connections, channelconn.go serves one,
// channelservices.go has mesh services, channelrival.go has what two brokers of one cluster do to a session, and
// channelsocket.go asks the kernel for sockets.

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
	"sync/atomic"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/onchange"
)

// channelConfig configures channels.
type channelConfig struct {
	settings link.Settings // what our hello tells
	device   string        // name of the device
	log      *slog.Logger
	changed  func() // what StatusOf says has changed; of RTT, only that it has become known. It must not block
	timing   *channelTiming
	system   channelSystem
}

// channelTiming is all durations of control channels.
type channelTiming struct {
	dial, hello   time.Duration // limits: of connecting, and of each step until the hellos are exchanged
	ping, silence time.Duration // interval of pings, and the time without any byte after which a peer is lost
	follow        time.Duration // the end with the larger cluster address dials so much later
	fresh         time.Duration // age of the last handshake from which on no end dials
	stable        time.Duration // a connection that lasted for longer is dialled again at once
	renew         time.Duration // what devices may take for a new session, and for what was sent in an old one

	// The first pause between dials; each failure doubles it, up to a limit: backoffLost for a peer that was lost within
	// recently, 5 times that for one that is lost for longer, and backoffPlain for one that may be no kubelink.
	backoff, backoffLost, backoffPlain time.Duration
	recently                           time.Duration

	announce   time.Duration // between two changes of what a peer announces
	offer      time.Duration // between two changes of what it offers, after many at once
	termMemory time.Duration // see hello.Moment
	logLimit   time.Duration // between two lines about refusals for one reason
	look       time.Duration // interval in which the device is looked at
}

var defaultChannelTiming = channelTiming{
	dial: 2 * time.Second, hello: 2 * time.Second,
	ping: time.Second, silence: 4 * time.Second,
	follow: time.Second, fresh: 180 * time.Second, stable: 3 * time.Second, renew: 300 * time.Millisecond,
	backoff: 100 * time.Millisecond, backoffLost: time.Second, backoffPlain: time.Minute, recently: 5 * time.Minute,
	announce: 3 * time.Second, offer: time.Second, termMemory: 30 * time.Second, logLimit: time.Second, look: time.Second,
}

// channels are the control channels of all links.
type channels struct {
	channelConfig
	start    time.Time // zero of the channels' time
	instance uint64    // random number of this process, see hello.Hello
	refusals *hello.Refusals
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup // all goroutines; Close waits for them

	own         atomic.Pointer[link.Settings]
	ownServices atomic.Pointer[hello.OwnServices]
	table       atomic.Pointer[channelTable]

	mu        sync.Mutex // guards the fields below, and changes of own and table; sockets are opened under it
	closed    bool
	listeners map[netip.Addr]net.Listener // by local cluster address
	index     int                         // of the device to which the listeners are bound
	failure   onchange.Error              // of the listeners
}

// channelTable has the channels. It is not changed.
type channelTable struct {
	links   map[string]*channel
	sources map[netip.Addr]*channel // by cluster address of the peer
	locals  map[netip.Addr]bool     // cluster addresses of this end
}

// openChannels starts without any channel.
func openChannels(config channelConfig) *channels {
	if config.timing == nil {
		config.timing = &defaultChannelTiming
	}
	if config.system == nil {
		config.system = channelSockets{}
	}
	c := &channels{
		channelConfig: config, start: time.Now(),
		refusals:  hello.NewRefusals(config.log, config.timing.logLimit),
		listeners: map[netip.Addr]net.Listener{},
	}
	var random [8]byte
	rand.Read(random[:])
	c.instance = binary.BigEndian.Uint64(random[:]) | 1 // 0 means "not known"
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.own.Store(&config.settings)
	c.ownServices.Store(&hello.OwnServices{Serial: 1, List: config.settings.Offers})
	c.table.Store(&channelTable{})
	c.wg.Go(c.watchDevice)
	return c
}

// now is the channels' time: monotonic, since openChannels.
func (c *channels) now() time.Duration { return time.Since(c.start) }

// SetPeers tells all links. A channel stays unless the peer has another key or address. The error is about the
// listeners; links are set in any case, and what failed is tried again.
func (c *channels) SetPeers(peers []mesh.Peer) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return errClosed
	}
	old := c.table.Load()
	next := &channelTable{map[string]*channel{}, map[netip.Addr]*channel{}, map[netip.Addr]bool{}}
	dialled := map[mesh.PublicKey]bool{} // all links with one key have one endpoint
	for i := range peers {
		dialled[peers[i].Key] = dialled[peers[i].Key] || peers[i].Host != ""
	}
	for i := range peers {
		spec := &peers[i]
		if next.links[spec.Link] != nil {
			continue // names are unique; else the first counts
		}
		ch := old.links[spec.Link]
		if ch == nil || !ch.canServe(spec) {
			ch = newChannel(c, spec)
		}
		next.links[spec.Link] = ch
		for _, a := range spec.Addresses.Addrs() {
			if next.sources[a] == nil {
				next.sources[a] = ch
			}
		}
		for _, a := range spec.Local.Addrs() {
			next.locals[a] = true
		}
		ch.setOwn(spec.Services, !dialled[spec.Key])
	}
	c.table.Store(next)
	for name, ch := range old.links {
		if next.links[name] != ch {
			ch.close()
		}
	}
	for name, ch := range next.links {
		if old.links[name] != ch {
			c.wg.Go(ch.dialLoop)
		}
	}
	return c.openListeners()
}

// SetHello changes what peers are told. Connected peers get it at once.
func (c *channels) SetHello(settings link.Settings) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := checkHello(&settings); err != nil {
		return err
	}
	before, now := makeHello(c.own.Swap(&settings), 0), makeHello(&settings, 0)
	if !reflect.DeepEqual(before, now) {
		for _, ch := range c.table.Load().links {
			ch.sendAnnouncement()
		}
	}
	if own := c.ownServices.Load(); !reflect.DeepEqual(own.List, settings.Offers) {
		c.ownServices.Store(&hello.OwnServices{Serial: own.Serial + 1, List: settings.Offers})
		for _, ch := range c.table.Load().links {
			ch.offerServices()
		}
	}
	return nil
}

// checkHello tells whether peers can be told these settings.
func checkHello(s *link.Settings) error {
	_, err := makeHello(s, 0).AppendPayload(nil)
	return err
}

// makeHello makes our hello, without the addresses, which differ between links.
func makeHello(s *link.Settings, instance uint64) *hello.Hello {
	return &hello.Hello{
		Announcement: link.Announcement{AdvertisedPort: s.AdvertisedPort, DNS: s.DNS, API: s.API, Version: s.Version},
		Capable:      true, Flags: hello.FlagKeepalive | hello.FlagUpdates | hello.FlagServices, Instance: instance,
		Terms: &hello.Terms{Own: s.Term},
	}
}

// NoteHandshake tells that the peer of a link has completed a handshake of WireGuard: it may be dialled at once.
func (c *channels) NoteHandshake(link string, at time.Time) {
	if ch := c.table.Load().links[link]; ch != nil {
		ch.noteHandshake(at)
	}
}

// StatusOf says what the channel of a link knows of the peer. It never waits.
func (c *channels) StatusOf(link string) channelStatus {
	if ch := c.table.Load().links[link]; ch != nil {
		return ch.currentStatus()
	}
	return channelStatus{}
}

// CountRefused returns the number of refused connections by reason.
func (c *channels) CountRefused() [hello.NumRefusals]uint64 { return c.refusals.Counts() }

// watchDevice opens listeners again that failed, or whose device was made anew.
func (c *channels) watchDevice() {
	tick := time.NewTicker(c.timing.look)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-c.ctx.Done():
			return
		}
		c.mu.Lock()
		if !c.closed {
			// The error is logged; SetPeers returns it the next time.
			_ = c.openListeners()
		}
		c.mu.Unlock()
	}
}

var errDevice = errors.New("the device was made anew")

// openListeners listens on each local cluster address, and on no other. Without the device there is no listener, which
// is no error here. c.mu is held.
func (c *channels) openListeners() error {
	table := c.table.Load()
	if index := c.system.Index(c.device); index != c.index { // sockets are bound to what has gone
		c.index = index
		c.closeListeners(func(netip.Addr) bool { return true })
		for _, ch := range table.links {
			ch.closeConnections(errDevice)
		}
	}
	c.closeListeners(func(a netip.Addr) bool { return !table.locals[a] })
	var failed []error
	for addr := range table.locals {
		if c.listeners[addr] != nil || c.index == 0 {
			continue
		}
		l, err := c.openListener(addr)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		c.listeners[addr] = l
	}
	err := errors.Join(failed...)
	if c.failure.Set(err) && err != nil {
		c.log.Error("peers cannot reach the control channel", "error", err)
	}
	return err
}

// closeListeners closes the listeners that are unwanted. c.mu is held.
func (c *channels) closeListeners(unwanted func(netip.Addr) bool) {
	for addr, l := range c.listeners {
		if unwanted(addr) {
			l.Close()
			delete(c.listeners, addr)
		}
	}
}

// Close ends all channels and waits for all goroutines.
func (c *channels) Close() {
	c.mu.Lock()
	c.closed = true
	c.cancel()
	c.closeListeners(func(netip.Addr) bool { return true })
	for _, ch := range c.table.Load().links {
		ch.close()
	}
	c.mu.Unlock()
	c.wg.Wait()
}
