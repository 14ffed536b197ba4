package wireguard

// Control channels between namespaces.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// newChannelPair is the hub and one spoke, number 2, that talk.
func newChannelPair(t testing.TB, timing channelTiming) (a, b *channelEnd) {
	t.Helper()
	a, all := newChannelEnds(t, 1)
	b = all[1]
	a.open(timing, link.Settings{AdvertisedPort: 1})
	b.open(timing, link.Settings{AdvertisedPort: 2})
	a.set(2)
	b.set(1)
	a.awaitState(2, channelAlive)
	b.awaitState(1, channelAlive)
	return a, b
}

func TestChannel(t *testing.T) {
	a, b := newChannelPair(t, fastChannels())
	hasRTT := func(s channelStatus) bool { return s.RTT > 0 }
	st := a.await(2, "round-trip time", hasRTT)
	if st.Announced.Address != clusterAddress(2) || st.Announced.AdvertisedPort != 2 || st.Dialled != 1 || st.Note != "" {
		t.Errorf("%+v, announces %+v", st, st.Announced)
	}
	if st := b.await(1, "round-trip time", hasRTT); st.Announced.AdvertisedPort != 1 || st.Accepted != 1 {
		t.Errorf("%+v, announces %+v", st, st.Announced)
	}

	// A change goes to the peer on the connection that is there.
	conn, before := a.connOf(2), a.changes.Load()
	changed := link.Settings{
		AdvertisedPort: 3, DNS: &link.DNSInfo{ClusterDomain: "c", Address: netip.MustParseAddr("100.64.0.10")},
		API: &link.APIInfo{Token: "token", CACert: []byte("ca")},
	}
	if err := b.channels.SetHello(changed); err != nil {
		t.Fatal(err)
	}
	a.await(2, "changed", func(s channelStatus) bool {
		return s.Announced.DNS != nil && *s.Announced.DNS == *changed.DNS && s.Announced.API.Token == "token"
	})
	spec := b.peers[0]
	spec.Services = mesh.Prefixes{netip.MustParsePrefix("100.64.0.0/20")}
	if err := b.channels.SetPeers([]mesh.Peer{spec}); err != nil {
		t.Fatal(err)
	}
	a.await(2, "changed", func(s channelStatus) bool { return s.Announced.ServiceCIDR == spec.Services.First() })
	if a.connOf(2) != conn || a.changes.Load() != before+2 {
		t.Errorf("another connection, or %d changes", a.changes.Load()-before)
	}
	changed.API.CACert = make([]byte, 20000)
	if err := b.channels.SetHello(changed); err == nil {
		t.Error("the hello is too large")
	}

	// What is no link any more has no channel.
	a.set()
	b.await(1, "not connected", func(s channelStatus) bool { return s.Accepted == 0 && s.State != channelAlive })
}

// A loss shows within 5 s, and its end at once.
func TestChannelLoss(t *testing.T) {
	a, b := newChannelPair(t, defaultChannelTiming)
	b.cable(a, "down")
	start := time.Now()
	for _, e := range []*channelEnd{a, b} {
		if st := e.awaitState(3-e.number, channelLost); st.Reason != "no answer for 4s" || st.RTT != 0 {
			t.Errorf("%+v", st)
		}
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("noticed after %s", took)
	} else {
		t.Logf("noticed after %s", took)
	}
	b.cable(a, "up")
	start = time.Now()
	a.awaitState(2, channelAlive)
	b.awaitState(1, channelAlive)
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("alive again after %s", took)
	} else {
		t.Logf("alive again after %s", took)
	}
}

// A peer where nothing listens is a plain one, until something does. Its kubelink need not be the end that dials.
func TestChannelPlainPeer(t *testing.T) {
	for hubFirst, name := range map[bool]string{true: "the end that dials first", false: "the other one"} {
		t.Run(name, func(t *testing.T) {
			a, all := newChannelEnds(t, 1)
			b := all[1]
			if !hubFirst {
				a, b = b, a
			}
			a.open(fastChannels(), link.Settings{})
			a.set(b.number)
			if st := a.awaitState(b.number, channelPlain); st.Note != "" || st.Announced != nil {
				t.Errorf("%+v", st)
			}
			b.open(fastChannels(), link.Settings{})
			b.set(a.number)
			a.awaitState(b.number, channelAlive)
			// It starts again, while packets pass.
			b.channels.Close()
			if st := a.awaitState(b.number, channelPlain); !strings.Contains(st.Note, "its kubelink is not") ||
				st.Announced == nil {
				t.Errorf("%+v", st)
			}
			b.open(fastChannels(), link.Settings{})
			b.set(a.number)
			start := time.Now()
			a.awaitState(b.number, channelAlive)
			t.Logf("alive %s after its start", time.Since(start))
		})
	}
}

// Without an answer nothing is known of a peer that was never there, but users are told.
func TestChannelUnanswered(t *testing.T) {
	a, all := newChannelEnds(t, 1)
	timing := fastChannels()
	timing.dial, timing.backoffPlain = 50*time.Millisecond, 10*time.Millisecond
	a.open(timing, link.Settings{})
	all[1].cable(a, "down")
	a.run("ip neigh add 192.168.0.2 lladdr 02:00:00:00:00:02 dev kubelink") // else the kernel says that there is no host
	a.set(2)
	st := a.await(2, "noted", func(s channelStatus) bool { return s.Note != "" })
	if st.State != channelUntried || !strings.Contains(st.Note, "192.168.0.2, TCP port 8779 (timed out)") {
		t.Errorf("%+v", st)
	}
	// Without a session, the reason of the link says what there is to know.
	ch := a.channels.table.Load().links["2"]
	ch.mu.Lock()
	ch.handshake = time.Now().Add(-timing.fresh)
	ch.mu.Unlock()
	if st := a.channels.StatusOf("2"); st.Note != "" {
		t.Errorf("without a session: %+v", st)
	}
}

// That both ends wait for the other one shows while they still have a session, at both.
func TestChannelBothInbound(t *testing.T) {
	a, b := newChannelPair(t, fastChannels())
	set := func(e *channelEnd, host string) {
		t.Helper()
		e.peers[0].Host = host
		if err := e.channels.SetPeers(e.peers); err != nil {
			t.Fatal(err)
		}
	}
	await := func(noted bool) {
		t.Helper()
		for _, e := range []*channelEnd{a, b} {
			e.await(3-e.number, "told", func(s channelStatus) bool {
				return s.State == channelAlive && strings.Contains(s.Note, "Inbound at both ends") == noted
			})
		}
	}
	conn := a.connOf(2)
	set(a, "")
	await(false)
	set(b, "")
	await(true)
	other := a.peers[0] // of the same peer
	other.Link, other.Host = "other", "peer"
	other.Local, other.Addresses = prefixes("192.168.9.1/24"), prefixes("192.168.9.2/24")
	if err := a.channels.SetPeers([]mesh.Peer{a.peers[0], other}); err != nil {
		t.Fatal(err)
	}
	await(false)
	set(a, "")
	await(true)
	set(b, "peer")
	await(false)
	if a.connOf(2) != conn {
		t.Error("the ends have connected anew")
	}
}

// A source that is no peer, and a peer at an address that is not for it, is refused before a byte is read.
func TestChannelStrangers(t *testing.T) {
	a, b := newChannelPair(t, fastChannels())
	a.run("ip addr add 192.168.9.1/24 dev kubelink")
	b.run("ip addr add 192.168.0.77/24 dev kubelink\nip addr add 192.168.9.2/24 dev kubelink")
	other := mesh.Peer{Link: "other", Local: prefixes("192.168.9.1/24"), Addresses: prefixes("192.168.9.3/24")}
	if err := a.channels.SetPeers(append(a.peers, other)); err != nil {
		t.Fatal(err)
	}
	conn, n := b.connOf(1), uint64(0)
	for _, c := range [][2]string{
		{"192.168.0.77", "192.168.0.1"}, {"192.168.9.2", "192.168.9.1"}, {"192.168.0.2", "192.168.9.1"},
	} {
		b.in(func() {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(c[0])}}
			stranger, err := d.Dial("tcp", c[1]+":8779")
			if err != nil {
				return // reset while it was made
			}
			if got, err := stranger.Read(make([]byte, 1)); err == nil {
				t.Errorf("%s gets %d bytes", c[0], got)
			}
			stranger.Close()
		})
		n++
		a.awaitRefusals(hello.RefusedUnknown, n)
	}
	a.in(func() { // this host itself
		if conn, err := net.Dial("tcp", "192.168.0.1:8779"); err == nil {
			conn.Close()
		}
	})
	n++
	a.awaitRefusals(hello.RefusedUnknown, n)
	// Nothing listens for what comes through another device, with a peer's address or not.
	lan := newHost(t)
	joinHosts(t, a.host, lan, [2]string{"172.16.0.1/24", "172.16.0.2/24"})
	lan.run("ip addr add 192.168.0.2/32 dev lo\nip route add 192.168.0.1/32 via 172.16.0.1")
	for _, source := range []string{"172.16.0.2", "192.168.0.2"} {
		lan.in(func() {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}, Timeout: time.Second}
			if conn, err := d.Dial("tcp", "192.168.0.1:8779"); err == nil {
				conn.Close()
				t.Errorf("%s has a connection through another device", source)
			}
		})
	}
	if refused := a.channels.CountRefused()[hello.RefusedUnknown]; refused != n {
		t.Errorf("%d refused, want %d", refused, n)
	}
	if b.connOf(1) != conn {
		t.Error("the peer has another connection")
	}
}

// What a peer says that is no proper hello, or what follows one, ends its connection, and shows.
func TestChannelRefusals(t *testing.T) {
	garbage := bytes.Repeat([]byte{0xa5}, 1000)
	answered := func(more ...[]byte) []byte {
		return append(append(helloOf(3, nil), pingFrame()...), bytes.Join(more, nil)...)
	}
	a, all := newChannelEnds(t, 2)
	b, c := all[1], all[2]
	a.open(fastChannels(), link.Settings{Term: 5})
	b.open(fastChannels(), link.Settings{})
	a.set(2, 3)
	b.set(1)
	a.awaitState(2, channelAlive)
	conn, n := a.connOf(2), a.channels.CountRefused()
	for _, test := range []struct {
		name  string
		send  []byte
		why   hello.Refusal
		shows string // empty: nothing, as the channel was alive
	}{
		{"another address", helloOf(2, nil), hello.RefusedAddress,
			"peer announces cluster address 192.168.0.2/24, this link expects 192.168.0.3"},
		{"another mesh", helloOf(3, func(h *hello.Hello) { h.Address = netip.MustParsePrefix("10.0.0.3/8") }),
			hello.RefusedAddress, "which is not in the mesh"},
		{"garbage", garbage, hello.RefusedHello, "frame of 42405 bytes, at most 17000 are accepted"},
		{"packet", hello.AppendFrame(nil, hello.FramePacket, garbage), hello.RefusedHello, "packet before the hello"},
		{"no pings", helloOf(3, func(h *hello.Hello) { h.Flags = 0 }), hello.RefusedHello, "answers no pings"},
		{"another term of ours", helloOf(3, func(h *hello.Hello) { h.Terms.Followed = 9 }), hello.RefusedTerm,
			"superseded by term 9"},
		{"nothing", nil, hello.RefusedHello, "no hello: timed out"},
		{"half a hello", helloOf(3, nil)[:50], hello.RefusedHello, "no hello: timed out"},
		{"packet later", answered(hello.AppendFrame(nil, hello.FramePacket, garbage)), hello.RefusedHello, ""},
		{"another address later", answered(helloOf(2, nil)), hello.RefusedAddress, ""},
		{"garbage later", answered(hello.AppendFrame(nil, hello.FrameHello, garbage)), hello.RefusedHello, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			peer := c.dialAs(clusterAddress(3).Addr(), clusterAddress(1).Addr())
			peer.Write(test.send)
			n[test.why]++
			a.awaitRefusals(test.why, n[test.why])
			if _, err := io.Copy(io.Discard, peer); errors.Is(err, io.EOF) {
				t.Error(err)
			}
			if test.shows != "" {
				again := c.dialAs(clusterAddress(3).Addr(), clusterAddress(1).Addr()) // a reason that stays shows
				again.Write(test.send)
				n[test.why]++
				a.awaitRefusals(test.why, n[test.why])
				a.await(3, "refused", func(s channelStatus) bool { return strings.Contains(s.Refused, test.shows) })
			}
		})
	}
	if st := a.channels.StatusOf("2"); st.State != channelAlive || a.connOf(2) != conn || st.Refused != "" {
		t.Errorf("the other link: %+v", st)
	}
	if st := a.channels.StatusOf("3"); st.Announced != nil && st.Announced.Address != clusterAddress(3) {
		t.Errorf("%+v", st.Announced)
	}
}

// serveAs answers each control connection at an end with bytes, as a program that is no kubelink of that peer.
func (e *channelEnd) serveAs(answer []byte) {
	e.t.Helper()
	l, err := hostSockets{e.host}.Listen("kubelink", clusterAddress(e.number).Addr())
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			hello.ReadHello(conn, hello.MaxPayload)
			conn.Write(answer)
			conn.Close()
		}
	}()
}

// What this end dials may not be the peer's kubelink.
func TestChannelDialledRefusals(t *testing.T) {
	timing := fastChannels()
	timing.backoffPlain = 10 * time.Millisecond
	for _, test := range []struct {
		name        string
		answer      []byte
		state       channelState
		reason, not string // what shows
	}{
		{"another address", helloOf(9, nil), channelLost,
			"peer announces cluster address 192.168.0.9/24, this link expects 192.168.0.2", ""},
		{"another term of ours", helloOf(2, func(h *hello.Hello) { h.Terms.Followed = 9 }), channelLost,
			"superseded by term 9: the peer follows another broker of this cluster, this one has term 0", ""},
		{"nothing", nil, channelUntried, "(the peer closes the connection before its hello)", ""},
		{"garbage", bytes.Repeat([]byte{0xa5}, 100), channelUntried, "frame of 42405 bytes", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, all := newChannelEnds(t, 1)
			all[1].serveAs(test.answer)
			a.open(timing, link.Settings{})
			a.set(2)
			st := a.await(2, "refused", func(s channelStatus) bool {
				return s.State == test.state && strings.Contains(s.Reason+s.Note, test.reason)
			})
			if st.Announced != nil {
				t.Errorf("%+v", st)
			}
		})
	}
}

// A peer makes 10,000 connections, and leaves each as it is. It keeps none of them, and disturbs no other link.
func TestChannelManyConnections(t *testing.T) {
	a, all := newChannelEnds(t, 2)
	b, c := all[1], all[2]
	timing := defaultChannelTiming
	a.open(timing, link.Settings{})
	b.open(timing, link.Settings{})
	a.set(2, 3)
	b.set(1)
	a.awaitState(2, channelAlive)
	b.awaitState(1, channelAlive)
	before, conn, changes := runtime.NumGoroutine(), a.connOf(2), b.changes.Load()
	var memory, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&memory)
	const many = 10000
	start, most := time.Now(), 0
	c.in(func() {
		for range many {
			conn, err := net.Dial("tcp", "192.168.0.1:8779")
			if err == nil {
				conn.(*net.TCPConn).SetLinger(0)
				defer conn.Close()
			}
			most = max(most, runtime.NumGoroutine())
		}
	})
	took := time.Since(start)
	runtime.ReadMemStats(&after)
	refused := a.channels.CountRefused()
	t.Logf("%d connections in %s: %d refused, %d goroutines more, %d KiB more", many, took, refused[hello.RefusedLimit],
		most-before, (int64(after.HeapAlloc)-int64(memory.HeapAlloc))/1024)
	allowed := uint64(arrivalBurst + arrivalRate*int(took/time.Second+1))
	if refused[hello.RefusedLimit] < many-allowed {
		t.Errorf("only %d are refused", refused[hello.RefusedLimit])
	}
	if most > before+50 {
		t.Errorf("%d goroutines, %d before", most, before)
	}
	if a.connOf(2) != conn || a.channels.StatusOf("2").State != channelAlive || b.changes.Load() > changes+1 {
		t.Errorf("the other link: %+v", a.channels.StatusOf("2"))
	}
	// An honest kubelink of that cluster gets in.
	c.open(timing, link.Settings{})
	c.set(1)
	a.awaitState(3, channelAlive)
}

// A peer that starts again without a word is connected again, though the old connection looks alive at one end.
func TestChannelHalfOpen(t *testing.T) {
	for hubStays, name := range map[bool]string{true: "the end that dials stays", false: "the other one stays"} {
		t.Run(name, func(t *testing.T) {
			a, all := newChannelEnds(t, 1)
			b := all[1]
			stays, restarts := a, b
			if !hubStays {
				stays, restarts = b, a
			}
			for _, e := range all {
				e.open(fastChannels(), link.Settings{})
				e.set(3 - e.number)
			}
			stays.awaitState(restarts.number, channelAlive)
			restarts.awaitState(stays.number, channelAlive)
			old := stays.connOf(restarts.number)
			b.cable(a, "down") // the other end does not learn that the connection ends
			restarts.channels.Close()
			b.cable(a, "up")
			restarts.open(fastChannels(), link.Settings{})
			restarts.set(stays.number)
			start := time.Now()
			restarts.awaitState(stays.number, channelAlive)
			stays.await(restarts.number, "connected again", func(s channelStatus) bool {
				k := stays.connOf(restarts.number)
				return s.State == channelAlive && k != nil && k != old
			})
			t.Logf("after %s", time.Since(start))
		})
	}
}

// Both ends dial at once, again and again: they agree on one connection, and keep it.
func TestChannelBothDial(t *testing.T) {
	a, all := newChannelEnds(t, 1)
	b := all[1]
	timing := fastChannels()
	timing.follow = 0
	for range 10 {
		for _, e := range all {
			e.open(timing, link.Settings{})
		}
		for _, e := range all {
			e.set(3 - e.number)
		}
		a.awaitState(2, channelAlive)
		b.awaitState(1, channelAlive)
		var x, y *channelConn
		var since time.Time
		a.await(2, "one connection that stays", func(channelStatus) bool {
			beforeX, beforeY := x, y
			if x, y = a.connOf(2), b.connOf(1); x != beforeX || y != beforeY {
				since = time.Now()
			}
			return x != nil && y != nil && x.conn.LocalAddr().String() == y.conn.RemoteAddr().String() &&
				time.Since(since) > 5*timing.ping
		})
		for _, e := range all {
			e.channels.Close()
		}
	}
}

// A broker with a lower term than the one that this end follows does not get in.
func TestChannelTerms(t *testing.T) {
	a, all := newChannelEnds(t, 1)
	b := all[1]
	a.open(fastChannels(), link.Settings{})
	b.open(fastChannels(), link.Settings{Term: 4})
	a.set(2)
	b.set(1)
	a.awaitState(2, channelAlive)
	conn := a.connOf(2)
	second := b.dialAs(clusterAddress(2).Addr(), clusterAddress(1).Addr())
	second.Write(helloOf(2, func(h *hello.Hello) { h.Terms.Own = 3 }))
	theirs, err := hello.ReadHello(second, hello.MaxPayload)
	if err != nil || theirs.Terms.Followed != 4 {
		t.Errorf("%+v, %v", theirs, err)
	}
	a.await(2, "noted", func(s channelStatus) bool {
		return s.Note == "a second broker of the cluster claims this link with term 3; "+
			"the link follows the broker with term 4: end one of them, or let both use the same Lease (lease-name)"
	})
	if a.connOf(2) != conn {
		t.Error("another connection")
	}
	second = b.dialAs(clusterAddress(2).Addr(), clusterAddress(1).Addr())
	second.Write(append(helloOf(2, func(h *hello.Hello) { h.Terms.Own, h.AdvertisedPort = 5, 55 }), pingFrame()...))
	a.await(2, "the higher term", func(s channelStatus) bool { return s.Announced.AdvertisedPort == 55 })
}

// The device is made anew, as a port that was in use is free again: listeners come back, and so do connections.
func TestChannelListeners(t *testing.T) {
	a, b := newChannelPair(t, fastChannels())
	old := a.connOf(2)
	a.run("ip link del to2")
	b.connect(a)
	for _, e := range []*channelEnd{a, b} {
		e.await(3-e.number, "connected again", func(s channelStatus) bool {
			k := e.connOf(3 - e.number)
			return s.State == channelAlive && k != nil && k != old
		})
	}
	a.channels.Close()
	b.channels.Close()
	l, err := hostSockets{a.host}.Listen("kubelink", clusterAddress(1).Addr())
	if err != nil {
		t.Fatal(err)
	}
	a.open(fastChannels(), link.Settings{})
	err = a.channels.SetPeers(a.peers)
	if err == nil || !strings.Contains(err.Error(), "192.168.0.1:8779") ||
		!strings.Contains(err.Error(), "end the program that has this port") {
		t.Errorf("port in use: %v", err)
	}
	l.Close()
	b.open(fastChannels(), link.Settings{})
	b.set(1)
	a.awaitState(2, channelAlive) // this end has seen no handshake, so that only the peer dials
}

// Without a handshake of WireGuard no end dials; with a new one it does so at once.
func TestChannelHandshake(t *testing.T) {
	a, all := newChannelEnds(t, 1)
	b := all[1]
	timing := fastChannels()
	timing.backoffPlain = time.Hour
	a.open(timing, link.Settings{})
	b.open(timing, link.Settings{})
	a.set(2)
	a.awaitState(2, channelPlain) // nothing listens yet
	if err := b.channels.SetPeers([]mesh.Peer{{Link: "1", Local: prefixes("192.168.0.2/24"),
		Addresses: prefixes("192.168.0.1/24")}}); err != nil {
		t.Fatal(err)
	}
	b.channels.NoteHandshake("1", time.Now().Add(-time.Hour))
	ch := b.channels.table.Load().links["1"]
	if limit := ch.dialLimit(); limit != 0 {
		t.Errorf("dials for %s", limit)
	}
	a.channels.NoteHandshake("2", time.Now())
	a.awaitState(2, channelAlive)
	b.awaitState(1, channelAlive)
}

// memoryConn is a connection that gives bytes and takes all.
type memoryConn struct {
	net.Conn
	Reader  *bytes.Reader
	written int
}

func (c *memoryConn) Read(b []byte) (int, error)       { return c.Reader.Read(b) }
func (c *memoryConn) Write(b []byte) (int, error)      { c.written += len(b); return len(b), nil }
func (c *memoryConn) Close() error                     { return nil }
func (c *memoryConn) SetDeadline(time.Time) error      { return nil }
func (c *memoryConn) SetReadDeadline(time.Time) error  { return nil }
func (c *memoryConn) SetWriteDeadline(time.Time) error { return nil }
func (c *memoryConn) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(192, 168, 0, 3)} }
func (c *memoryConn) LocalAddr() net.Addr              { return &net.TCPAddr{IP: net.IPv4(192, 168, 0, 1)} }

// FuzzChannel: whatever a peer sends, it can say something about itself only.
func FuzzChannel(f *testing.F) {
	hello3 := helloOf(3, func(h *hello.Hello) {
		h.DNS = &link.DNSInfo{ClusterDomain: "c", Address: netip.MustParseAddr("100.64.0.10")}
		h.API = &link.APIInfo{Token: "t", CACert: []byte("ca")}
	})
	f.Add(hello3, false)
	f.Add(append(append(append(bytes.Clone(hello3), pingFrame()...), hello3...), pingFrame()...), true)
	f.Add(append(append(bytes.Clone(hello3), pingFrame()...), helloOf(2, nil)...), false)
	f.Add(hello.AppendFrame(pingFrame(), hello.FramePacket, []byte("packet")), true)
	timing := defaultChannelTiming
	timing.announce = 0
	f.Fuzz(func(t *testing.T, in []byte, dialled bool) {
		if countFrames(in) > frameBurst {
			return // the rest would be read later, and slowly
		}
		conn := &memoryConn{Reader: bytes.NewReader(in)}
		e := &channelEnd{host: &host{t: t}, number: 1}
		e.openWith(timing, link.Settings{}, fuzzSystem{conn})
		next := &channelTable{links: map[string]*channel{}}
		for _, n := range []int{2, 3} {
			next.links[fmt.Sprint(n)] = newChannel(e.channels, &mesh.Peer{Link: fmt.Sprint(n),
				Local: mesh.Prefixes{clusterAddress(1)}, Addresses: mesh.Prefixes{clusterAddress(n)}})
		}
		e.channels.table.Store(next)
		ch := next.links["3"]
		if dialled {
			ch.concludeDial(ch.dialPeer(time.Second))
			for e.connOf(3) != nil {
				runtime.Gosched()
			}
		} else {
			ch.addPending(conn)
			inbound{ch, conn}.serveConn()
		}
		e.channels.Close()
		if st := e.channels.StatusOf("2"); st != (channelStatus{}) {
			t.Errorf("the other peer: %+v", st)
		}
		st := e.channels.StatusOf("3")
		if a := st.Announced; a != nil && a.Address.Addr() != clusterAddress(3).Addr() {
			t.Errorf("announces %+v", a)
		}
		if len(st.Reason) > hello.MaxReason || len(st.Refused) > hello.MaxReason || strings.ContainsAny(st.Refused, "\n\r") {
			t.Errorf("%+v", st)
		}
		if conn.written > 1000+len(in) {
			t.Errorf("answers %d bytes with %d", len(in), conn.written)
		}
	})
}

// fuzzSystem dials one connection.
type fuzzSystem struct{ conn net.Conn }

func (s fuzzSystem) Dial(context.Context, string, netip.Addr, netip.Addr) (net.Conn, error) {
	return s.conn, nil
}
func (s fuzzSystem) Listen(string, netip.Addr) (net.Listener, error) { return nil, io.EOF }
func (s fuzzSystem) Index(string) int                                { return 0 }

func countFrames(b []byte) (n int) {
	for ok := true; ok; n++ {
		_, _, b, ok = hello.CutFrame(b)
	}
	return n
}
