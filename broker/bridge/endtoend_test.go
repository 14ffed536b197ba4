package bridge

// Super-packets from one kernel to another, through bridges and gateways; and what is held for peers that do
// not read.

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// vnetMem is a memTUN with offloads.
type vnetMem struct{ *memTUN }

func (t vnetMem) Queues() []tunQueue { return []tunQueue{t} }
func (t vnetMem) Offloads() Offloads { return OffloadTSO | OffloadUSO }

// site is a bridge with a TUN of a kernel, in a namespace.
type site struct {
	*node
	in     func(func())
	number byte
}

// site starts a bridge with the mesh address 192.168.0.(10+number) and fd00::(10+number). What prepares its
// namespace runs first.
func (i *internet) site(t *testing.T, host string, number byte, noOffload bool, prepare ...func()) *site {
	s := &site{in: namespace(t), number: number}
	for _, f := range prepare {
		s.in(f)
	}
	s.node = i.start(host, i.ca.issue(t, host), func(c *Config) {
		c.Interface, c.NoOffload, c.Streams = "kubelink", noOffload, 2
		c.timing.silence, c.timing.write, c.timing.stable = 5*time.Second, 5*time.Second, 0
		c.open = func() (dev device, err error) {
			now := noOffload
			if s.node != nil && s.Bridge != nil {
				now = s.Bridge.config.Load().NoOffload
			}
			s.in(func() { dev, err = openTUN("kubelink", DefaultMTU, now) })
			return dev, err
		}
	})
	s.configure()
	return s
}

func (s *site) v4() string { return fmt.Sprintf("192.168.0.%d", 10+s.number) }
func (s *site) v6() string { return fmt.Sprintf("fd00::%d", 10+s.number) }

// configure does what broker/kernel does.
func (s *site) configure() {
	s.in(func() {
		configure(s.t.(*testing.T), "kubelink", s.v4()+"/24")
		link, err := netlink.LinkByName("kubelink")
		if err != nil {
			s.t.Error(err)
			return
		}
		addr, _ := netlink.ParseAddr(s.v6() + "/64")
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrReplace(link, addr); err != nil {
			s.t.Error(err)
		}
	})
}

// dual adds IPv6 to a link.
func dual(p mesh.Peer, from, to byte) mesh.Peer {
	p.Networks = append(p.Networks, netip.MustParsePrefix(fmt.Sprintf("fd00::%d/128", 10+to)))
	p.Ingress = append(p.Ingress, mesh.Rule{Prefix: netip.MustParsePrefix(fmt.Sprintf("fd00::%d/128", 10+from)),
		Allow: true})
	return p
}

func sites(t *testing.T, noOffloadA, noOffloadB bool, prepareA ...func()) (a, b *site) {
	return newInternet(t).sites(t, noOffloadA, noOffloadB, prepareA...)
}

func (i *internet) sites(t *testing.T, noOffloadA, noOffloadB bool, prepareA ...func()) (a, b *site) {
	a, b = i.site(t, "a.example", 1, noOffloadA, prepareA...), i.site(t, "b.example", 2, noOffloadB)
	a.set(dual(newLink("b", 1, 2, "b.example"), 1, 2))
	b.set(dual(newLink("a", 2, 1, "a.example"), 2, 1))
	a.awaitState("b", link.Up)
	b.awaitState("a", link.Up)
	return a, b
}

// transfer sends random bytes over TCP, and checks what arrives. Half way, halfway is called.
func transfer(t *testing.T, from, to *site, address string, size int, halfway func()) {
	t.Helper()
	var l net.Listener
	var err error
	to.in(func() { l, err = net.Listen("tcp", net.JoinHostPort(address, "0")) })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type result struct {
		n   int64
		sum []byte
		err error
	}
	got := make(chan result, 1)
	go func() {
		var r result
		h := sha256.New()
		c, err := l.Accept()
		if err == nil {
			defer c.Close()
			c.SetDeadline(time.Now().Add(40 * time.Second))
			r.n, err = io.Copy(h, c)
		}
		r.err, r.sum = err, h.Sum(nil)
		got <- r
	}()
	var c net.Conn
	from.in(func() { c, err = net.DialTimeout("tcp", l.Addr().String(), 10*time.Second) })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(40 * time.Second))
	h, r, buf := sha256.New(), rand.NewChaCha8([32]byte{1}), make([]byte, 1<<18)
	for n := 0; n < size; n += len(buf) {
		r.Read(buf)
		h.Write(buf)
		if _, err := c.Write(buf); err != nil {
			t.Fatalf("after %d bytes: %v\n%+v\n%+v", n, err, from.Stats(), to.Stats())
		}
		if halfway != nil && n >= size/2 {
			halfway()
			halfway = nil
		}
	}
	c.(*net.TCPConn).CloseWrite()
	select {
	case r := <-got:
		if r.err != nil || !bytes.Equal(r.sum, h.Sum(nil)) {
			t.Fatalf("%d bytes, of %d: %v", r.n, size, r.err)
		}
	case <-time.After(45 * time.Second):
		t.Fatal("transfer has no end")
	}
}

// datagrams sends one super-packet of UDP, and checks the datagrams.
func datagrams(t *testing.T, from, to *site, address string) {
	t.Helper()
	var l net.PacketConn
	var c net.Conn
	var err error
	to.in(func() { l, err = net.ListenPacket("udp", net.JoinHostPort(address, "0")) })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	from.in(func() { c, err = net.Dial("udp", l.LocalAddr().String()) })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	setSegment(t, c, 1200)
	sent := noise(20*1200 + 77)
	if _, err := c.Write(sent); err != nil {
		t.Fatal(err)
	}
	l.SetReadDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 3000)
	for rest := sent; len(rest) > 0; {
		n, _, err := l.ReadFrom(buf)
		if want := rest[:min(1200, len(rest))]; err != nil || !bytes.Equal(buf[:n], want) {
			t.Fatalf("%d bytes before the end: datagram of %d bytes, %v\n%+v\n%+v", len(rest), n, err, from.Stats(), to.Stats())
		} else {
			rest = rest[n:]
		}
	}
}

// checkTraffic checks all kinds of traffic in both directions, and returns bytes and packets that b and a received.
func checkTraffic(t *testing.T, a, b *site, size int) {
	t.Helper()
	for _, d := range []struct {
		from, to *site
		address  string
	}{{a, b, b.v4()}, {b, a, a.v4()}, {a, b, b.v6()}, {b, a, a.v6()}} {
		before := d.to.Stats().Links
		start := time.Now()
		transfer(t, d.from, d.to, d.address, size, nil)
		took := time.Since(start)
		for link, s := range d.to.Stats().Links {
			packets, bytes := s.RxPackets-before[link].RxPackets, s.RxBytes-before[link].RxBytes
			t.Logf("%s: %d bytes in %d packets, %s; drops %v", d.address, bytes, packets, took, s.Drops)
			if d.from.TUN().Offloads != 0 && (d.to.TUN().Offloads != 0) && bytes/max(packets, 1) < 4*1500 {
				t.Errorf("%s: %d bytes in %d packets: no super-packets", d.address, bytes, packets)
			}
		}
		datagrams(t, d.from, d.to, d.address)
	}
}

// From kernel to kernel, with offloads at both ends or at one.
func TestOffloadsEndToEnd(t *testing.T) {
	for _, test := range []struct {
		noOffloadA, noOffloadB bool
		size                   int
	}{{false, false, 50 << 20}, {false, true, 10 << 20}, {true, true, 4 << 20}} {
		t.Run(fmt.Sprintf("noOffload=%v,%v", test.noOffloadA, test.noOffloadB), func(t *testing.T) {
			a, b := sites(t, test.noOffloadA, test.noOffloadB)
			if (a.TUN().Offloads == 0) != test.noOffloadA || (b.TUN().Offloads == 0) != test.noOffloadB {
				t.Fatalf("offloads %s and %s", a.TUN().Offloads, b.TUN().Offloads)
			}
			checkTraffic(t, a, b, test.size)
		})
	}
}

// New sessions replace the sessions with used-up keys, one after the other. No packet is lost.
func TestKeysUsedUp(t *testing.T) {
	i := newInternet(t)
	i.records = 1000
	a, b := i.sites(t, false, false)
	sinceA, sinceB := a.status("b").Since, b.status("a").Since
	dials := func() int { i.mu.Lock(); defer i.mu.Unlock(); return i.dials["a.example"] + i.dials["b.example"] }
	before := dials()
	transfer(t, a, b, b.v4(), 96<<20, nil)
	transfer(t, b, a, a.v4(), 32<<20, nil)
	if n := dials() - before; n < 4 {
		t.Errorf("%d sessions were made anew", n)
	}
	if a.status("b").Since != sinceA || b.status("a").Since != sinceB {
		t.Errorf("link was down: %+v, %+v", a.status("b"), b.status("a"))
	}
	t.Log(dials()-before, "dials", a.Stats().Links["b"], b.Stats().Links["a"])
}

// The TUN of a link in use becomes one without offloads, and one with offloads again. Connections through it live on.
func TestNoOffloadChanges(t *testing.T) {
	a, b := sites(t, false, false)
	for n, noOffload := range []bool{true, false} {
		for _, s := range []*site{a, b} {
			transfer(t, a, b, b.v4(), 8<<20, func() {
				before := *s.iface.device.Load()
				c := s.config
				c.NoOffload = noOffload
				if err := s.Configure(c.Settings); err != nil {
					t.Error(err)
				}
				s.await("other TUN", func() bool {
					now := *s.iface.device.Load()
					return now != before && now != device(noDevice{}) && (now.Offloads() == 0) == noOffload
				})
				s.configure()
			})
			a.awaitState("b", link.Up)
			b.awaitState("a", link.Up)
			for _, x := range []*site{a, b} {
				x.await("sessions with the flags that are right", func() bool {
					p := x.router.table.Load().peers[0]
					p.mu.Lock()
					defer p.mu.Unlock()
					for _, s := range p.sessions {
						if s.flags != s.theirFlags&x.featureFlags() ||
							(s.flags&hello.FlagOffload != 0) != (a.TUN().Offloads&b.TUN().Offloads != 0) {
							return false
						}
					}
					return len(p.sessions) > 0
				})
			}
		}
		t.Log("step", n, a.Stats().Links["b"], b.Stats().Links["a"])
	}
	checkTraffic(t, a, b, 2<<20)
}

// A TUN that an earlier process left is taken over, or replaced when it is of the other kind. One that is in
// use, or not a TUN, stays.
func TestTUNTakeover(t *testing.T) {
	in := namespace(t)
	in(func() {
		index := func() int {
			link, err := netlink.LinkByName("kubelink")
			if err != nil {
				t.Error(err)
				return 0
			}
			return link.Attrs().Index
		}
		for n, noOffload := range []bool{true, false, false, true, true, false} {
			for _, up := range []bool{false, true} {
				var dev device
				var err error
				for deadline := time.Now().Add(5 * time.Second); ; { // the kernel may tell late that no process has it
					if dev, err = openTUN("kubelink", DefaultMTU, noOffload); err == nil || time.Now().After(deadline) {
						break
					}
					t.Logf("step %d, up %v: %v", n, up, err)
					<-time.After(100 * time.Millisecond)
				}
				if err != nil {
					t.Errorf("step %d: %v", n, err)
					return
				}
				if (dev.Offloads() == 0) != noOffload {
					t.Errorf("step %d: offloads %s", n, dev.Offloads())
				}
				if up {
					configure(t, "kubelink", "192.168.0.11/24")
				}
				before := index()
				for _, other := range []bool{noOffload, !noOffload} { // another process
					second, err := openTUN("kubelink", DefaultMTU, other)
					if err == nil && !(other == noOffload && !noOffload) { // several queues may be shared
						t.Errorf("step %d, up %v: opened again, noOffload %v, while in use as noOffload %v", n, up, other, noOffload)
					}
					if err == nil {
						second.Close(true)
					}
					if index() != before {
						t.Errorf("step %d, up %v: was replaced while in use (noOffload %v, other noOffload %v)", n, up, noOffload, other)
					}
				}
				if err := dev.Close(true); err != nil {
					t.Error(err)
				}
				if t.Failed() {
					return
				}
			}
		}
		if _, err := openTUN("lo", DefaultMTU, false); err == nil {
			t.Error("opened lo")
		}
		tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tap"}, Mode: netlink.TUNTAP_MODE_TAP}
		if err := netlink.LinkAdd(tap); err != nil {
			t.Error(err)
			return
		}
		for _, noOffload := range []bool{false, true} {
			if _, err := openTUN("tap", DefaultMTU, noOffload); err == nil {
				t.Error("opened a TAP")
			}
		}
		if _, err := netlink.LinkByName("tap"); err != nil {
			t.Error("TAP was removed")
		}
	})
}

// A gateway cuts super-packets for a peer without offloads.
func TestGatewayCuts(t *testing.T) {
	i := newInternet(t)
	a := i.site(t, "a.example", 1, false)
	g := i.start("g.example", i.ca.issue(t, "g.example"), func(c *Config) {
		c.Streams = 2
		c.timing.silence, c.timing.write = 5*time.Second, 5*time.Second
		c.open = openerOf(vnetMem{newMemTUN()})
	})
	c := i.site(t, "c.example", 3, true)
	via := func(p mesh.Peer, to byte) mesh.Peer {
		p.Networks = append(p.Networks, netip.MustParsePrefix(fmt.Sprintf("192.168.0.%d/32", 10+to)),
			netip.MustParsePrefix(fmt.Sprintf("fd00::%d/128", 10+to)))
		return p
	}
	a.set(via(dual(newLink("g", 1, 2, "g.example"), 1, 2), 3))
	c.set(via(dual(newLink("g", 3, 2, "g.example"), 3, 2), 1))
	g.set(dual(newLink("a", 2, 1, "a.example"), 2, 1), dual(newLink("c", 2, 3, "c.example"), 2, 3))
	for _, n := range []*site{a, c} {
		n.awaitState("g", link.Up)
	}
	g.awaitState("a", link.Up)
	g.awaitState("c", link.Up)
	checkTraffic(t, a, c, 8<<20)
	before := g.Stats().Links["a"]
	transfer(t, a, c, c.v4(), 8<<20, nil)
	from, to := g.Stats().Links["a"], g.Stats().Links["c"]
	if packets := from.RxPackets - before.RxPackets; (from.RxBytes-before.RxBytes)/packets < 4*1500 {
		t.Errorf("the gateway got no super-packets: %+v, %+v", before, from)
	}
	t.Logf("from a %+v, to c %+v", from, to)
}

// heldBytes is the most that is held for a session, by where: see maxSessionBytes and maxBatchBytes.
type heldBytes struct{ mailbox, queue, batchConn int }

func (h *heldBytes) measure(b *Bridge) {
	for _, p := range b.router.table.Load().peers {
		p.mu.Lock()
		for _, s := range p.sessions {
			h.mailbox = max(h.mailbox, int(s.posted.Load()))
			if s.kicks.Add(1) == 1 { // as who sends
				h.queue = max(h.queue, s.queue.bytes)
				s.sendLoop()
			}
		}
		p.mu.Unlock()
	}
}

// Peers that do not read are flooded: the bytes held for them are bounded, and other links are not disturbed.
func TestMemoryBound(t *testing.T) {
	for _, size := range []int{60, 65000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			i := newInternet(t)
			a := i.start("a.example", i.ca.issue(t, "a.example"), func(c *Config) {
				c.Streams = 2
				c.timing.write, c.timing.stale = time.Hour, time.Hour // they stay
			})
			c := i.start("c.example", i.ca.issue(t, "c.example"), func(c *Config) { c.Streams = 2 })
			specs := []mesh.Peer{newLink("c", 1, 3, "c.example")}
			const peers = 4
			for n := range byte(peers) {
				p := newLink(fmt.Sprintf("x%d", n), 1, 20+n, "127.0.0.1")
				p.Port = 1
				specs = append(specs, p)
			}
			a.set(specs...)
			c.set(newLink("a", 3, 1, "a.example"))
			a.awaitState("c", link.Up)
			c.awaitState("a", link.Up)
			var conns []net.Conn
			var stuck []*session
			for n := range byte(peers) {
				p := a.router.table.Load().peers[1+n]
				for stream := range 2 {
					x, y := sockets(t)
					x.SetWriteBuffer(4096)
					y.SetReadBuffer(4096)
					conns = append(conns, y)
					h := &hello.Hello{Capable: true, Flags: hello.FlagStreams, Streams: 2, Stream: stream}
					raw := newBatchConn(x, a.timing.write)
					s := newSession(p, raw, raw, true, stream, p.featureFlags(), h)
					own := p.credentials.Swap(unencrypted) // for this moment
					if !p.attachSession(s, h) {
						t.Fatal("not attached")
					}
					p.credentials.Store(own)
					stuck = append(stuck, s)
					a.wg.Go(func() { s.run(); p.detachSession(s, s.cause) })
				}
			}
			const limit = maxSessionBytes
			var most heldBytes
			count := 16 << 20 / (size + 2000)
			for n := range count {
				for peer := range peers {
					a.tun.in <- packet(fmt.Sprintf("100.64.1.%d", byte(n)), fmt.Sprintf("192.168.0.%d", 30+peer), 64, size, uint64(n))
				}
				if n%64 == 0 {
					most.measure(a.Bridge)
				}
				if n%(count/20) == 0 {
					start := time.Now()
					a.pass(c, "192.168.0.11", "192.168.0.13", uint64(n))
					if d := time.Since(start); d > time.Second {
						t.Errorf("another link waits for %s", d)
					}
				}
			}
			most.measure(a.Bridge)
			if most.queue < limit/2 {
				t.Errorf("no flood: held %+v", most)
			}
			for n := range peers {
				s := a.Stats().Links[fmt.Sprintf("x%d", n)]
				if s.Drops[DropQueueFull] == 0 || s.Drops[DropStale] > 0 {
					t.Errorf("x%d: %+v", n, s)
				}
			}
			for _, y := range conns {
				y.Close()
			}
			a.await("ends", func() bool {
				for n := range peers {
					if s := a.status(fmt.Sprintf("x%d", n)); s.Dialled+s.Accepted > 0 {
						return false
					}
				}
				return true
			})
			held := 0 // in the first 100 ms of a bridge, flows stay on the first session
			for _, s := range stuck {
				s.raw.mu.Lock()
				if s.raw.batch != nil {
					held++
					most.batchConn = max(most.batchConn, len(*s.raw.batch))
				}
				s.raw.mu.Unlock()
			}
			if held < peers {
				t.Errorf("%d sessions are stuck", held)
			}
			t.Logf("limit %d, held %+v", limit, most)
			if most.mailbox > limit || most.queue > limit || most.batchConn > batchBufferBytes {
				t.Errorf("limit %d, held %+v", limit, most)
			}
		})
	}
}

// endless is a TUN that always has a packet.
type endless struct {
	nullTUN
	packet []byte
	read   func() error // each time
}

func (e *endless) TryRead(b []byte) (int, error) { return copy(b, e.packet), e.read() }
func (e *endless) Read(b []byte) (int, error)    { return e.TryRead(b) }

// A TUN reader that always has something to send gives other goroutines their turn.
func TestReaderYields(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	o, s := newTestSession(t)
	var ran, started atomic.Bool
	turns := func() uint64 { sent, _ := countPackets(s.peer); return sent }
	q := &endless{packet: packet("192.168.0.11", "192.168.0.12", 64, 60000, 0)}
	q.read = func() error {
		if started.CompareAndSwap(false, true) {
			go ran.Store(true)
		}
		if ran.Load() || turns() > 20 { // 60000 bytes are nearly a batch
			return io.EOF
		}
		return nil
	}
	if err := o.readTUN(q); err != io.EOF {
		t.Error(err)
	}
	if !ran.Load() {
		t.Errorf("no other goroutine had a turn while %d packets were sent", turns())
	}
}

// newLinks is a bridge of links without connections, and a session of each, on connections that take everything.
func newLinks(t testing.TB, count int) (*tunReader, []*session) {
	t.Helper()
	o, peers := newUnconnected(t, count)
	var all []*session
	for _, p := range peers {
		raw := newBatchConn(null{}, time.Second)
		raw.startBatching()
		h := &hello.Hello{Capable: true, Flags: p.featureFlags(), Streams: 1}
		s := newSession(p, raw, raw, true, 0, p.featureFlags(), h)
		if !p.attachSession(s, h) {
			t.Fatal("not attached")
		}
		all = append(all, s)
	}
	return o, all
}

// newUnconnected is a bridge of links that have no session, and that no end dials.
func newUnconnected(t testing.TB, count int) (*tunReader, []*peer) {
	t.Helper()
	b := newTestBridge(t, newNullTUN(OffloadTSO|OffloadUSO))
	b.SetCredentials(unencrypted)
	var specs []mesh.Peer
	for n := range count {
		p := newLink(fmt.Sprint(n), 0, 1, "")
		addr := netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 1})
		p.Addresses, p.Networks = mesh.Prefixes{netip.PrefixFrom(addr, 8)}, []netip.Prefix{netip.PrefixFrom(addr, 32)}
		specs = append(specs, p)
	}
	if err := b.Set(specs, nil); err != nil {
		t.Fatal(err)
	}
	return newTUNReader(0, 0, b.iface, b.router), b.router.table.Load().peers
}

// Packets that wait for a first session count, too.
func TestMemoryOfBacklogs(t *testing.T) {
	o, peers := newUnconnected(t, 1000)
	for _, p := range peers {
		out := packet("192.168.0.10", p.Addresses.First().Addr().String(), 64, hello.MaxPayload, 0)
		for range 3 {
			o.routePacket(copy(o.readRoom(), out))
		}
	}
	total := 0
	for _, p := range peers {
		total += p.backlogBytes
	}
	if held := o.iface.budget.held.Load(); held != int64(total) || held > maxBridgeBytes || held < maxBridgeBytes/2 {
		t.Errorf("the account says %d bytes, backlogs hold %d, at most %d are right", held, total, maxBridgeBytes)
	}
	for _, p := range peers {
		p.close()
	}
	if held := o.iface.budget.held.Load(); held != 0 {
		t.Errorf("%d bytes are left in the account", held)
	}
}

// All links together are bounded, however many do not take what is for them, and share alike; one that was idle takes a
// burst all the same.
func TestMemoryShared(t *testing.T) {
	for _, test := range []struct{ stuck, rounds, least, most int }{
		{1, 20, maxSessionBytes - largeBuffer, maxSessionBytes},
		{10, 20, maxSessionBytes - largeBuffer, maxSessionBytes},
		{60, 20, maxBridgeBytes / 60 / 2, maxBridgeBytes / 60},
		{220, 20, minSessionBytes / 2, minSessionBytes},
		{2000, 2, 0, minSessionBytes}, // 250 links with 8 streams
	} {
		t.Run(fmt.Sprint(test.stuck), func(t *testing.T) {
			o, all := newLinks(t, test.stuck+1)
			idle, stuck := all[0], all[1:]
			for _, s := range stuck {
				s.blocked = true
			}
			flood := func(s *session, super int) {
				out := packet("192.168.0.10", s.peer.Addresses.First().Addr().String(), 64, hello.MaxPayload, 0)
				for range super {
					o.routePacket(copy(o.readRoom(), out))
				}
				for o.sendBatches() {
				}
			}
			for range test.rounds { // more than a session holds, in turns
				for _, s := range stuck {
					flood(s, 5)
				}
			}
			held, total := int(o.iface.budget.held.Load()), 0
			for n, s := range stuck {
				if total += s.queue.bytes; s.queue.bytes < test.least || s.queue.bytes > test.most {
					t.Errorf("session %d holds %d bytes, expected %d to %d", n, s.queue.bytes, test.least, test.most)
				}
			}
			if held != total || held > maxBridgeBytes {
				t.Errorf("the account says %d bytes, sessions hold %d, at most %d are right", held, total, maxBridgeBytes)
			}
			flood(idle, maxTurnBytes/hello.MaxPayload+1)
			if sent, dropped := countPackets(idle.peer); sent != maxTurnBytes/hello.MaxPayload+1 || dropped != 0 {
				t.Errorf("of a burst on another link %d packets were sent, %d dropped", sent, dropped)
			}
			for _, s := range stuck { // they end
				s.detached.Store(true)
				s.peer.close()
				s.kickSender()
			}
			if held := o.iface.budget.held.Load(); held != 0 {
				t.Errorf("%d bytes are left in the account", held)
			}
		})
	}
}
