package wireguard

// Ends of control channels in namespaces: devices that are named as the one of WireGuard, without WireGuard.

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// in runs f in the network namespace of the host.
func (h *host) in(f func()) {
	h.t.Helper()
	pid, err := strconv.Atoi(h.pid)
	if err != nil {
		h.t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		ns, err := netns.GetFromPid(pid)
		if err == nil {
			defer ns.Close()
			err = netns.Set(ns)
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		h.t.Error(err)
	}
}

// hostSockets are the sockets of the kernel, in the namespace of a host.
type hostSockets struct{ *host }

func (s hostSockets) Listen(device string, local netip.Addr) (l net.Listener, err error) {
	s.in(func() { l, err = channelSockets{}.Listen(device, local) })
	return l, err
}

func (s hostSockets) Dial(ctx context.Context, device string, local, peer netip.Addr) (conn net.Conn, err error) {
	s.in(func() { conn, err = channelSockets{}.Dial(ctx, device, local, peer) })
	return conn, err
}

func (s hostSockets) Index(device string) (index int) {
	s.in(func() { index = channelSockets{}.Index(device) })
	return index
}

// channelEnd is a cluster with control channels. Number n has the address 192.168.0.n.
type channelEnd struct {
	*host
	number   int
	channels *channels
	peers    []mesh.Peer
	changes  atomic.Int64
}

func clusterAddress(n int) netip.Prefix {
	return netip.MustParsePrefix(fmt.Sprintf("192.168.0.%d/24", n))
}

// newChannelEnds makes clusters, one more than there are spokes: all spokes have a cable to the first one, the hub.
func newChannelEnds(t testing.TB, spokes int) (hub *channelEnd, all []*channelEnd) {
	t.Helper()
	hub = &channelEnd{host: newHost(t), number: 1}
	hub.run("ip link add kubelink type bridge\nip link set kubelink up\nip addr add 192.168.0.1/24 dev kubelink")
	all = []*channelEnd{hub}
	for n := 2; n < spokes+2; n++ {
		e := &channelEnd{host: newHost(t), number: n}
		e.connect(hub)
		all = append(all, e)
	}
	return hub, all
}

// connect lays the cable to the hub.
func (e *channelEnd) connect(hub *channelEnd) {
	e.t.Helper()
	hub.run(fmt.Sprintf("ip link add to%d type veth peer name kubelink netns %s\n"+
		"ip link set to%d master kubelink up", e.number, e.pid, e.number))
	e.run(fmt.Sprintf("ip link set kubelink up\nip addr add %s dev kubelink", clusterAddress(e.number)))
}

// cable cuts or mends the cable of a spoke; a cut one drops what is sent.
func (e *channelEnd) cable(hub *channelEnd, state string) {
	hub.run(fmt.Sprintf("ip link set to%d %s", e.number, state))
}

// open starts the channels of the end.
func (e *channelEnd) open(timing channelTiming, settings link.Settings) {
	e.openWith(timing, settings, hostSockets{e.host})
}

func (e *channelEnd) openWith(timing channelTiming, settings link.Settings, system channelSystem) {
	e.channels = openChannels(channelConfig{
		settings: settings, device: "kubelink", log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		changed: func() { e.changes.Add(1) }, timing: &timing, system: system,
	})
	e.t.Cleanup(e.channels.Close)
}

// fastChannels makes events come soon; losses do not.
func fastChannels() channelTiming {
	t := defaultChannelTiming
	t.ping, t.follow, t.stable, t.backoffPlain = 50*time.Millisecond, 100*time.Millisecond, 0, 200*time.Millisecond
	t.look, t.announce, t.offer = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	return t
}

// set tells the end that these are its peers, and that there was a handshake with each just now.
func (e *channelEnd) set(numbers ...int) {
	e.t.Helper()
	e.peers = nil
	for _, n := range numbers {
		e.peers = append(e.peers, mesh.Peer{
			Link: fmt.Sprint(n), Local: mesh.Prefixes{clusterAddress(e.number)}, Addresses: mesh.Prefixes{clusterAddress(n)},
			Host: "peer",
		})
	}
	if err := e.channels.SetPeers(e.peers); err != nil {
		e.t.Fatal(err)
	}
	for _, p := range e.peers {
		e.channels.NoteHandshake(p.Link, time.Now())
	}
}

// await waits until what is known of a peer is as expected.
func (e *channelEnd) await(peer int, what string, expected func(channelStatus) bool) channelStatus {
	e.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		st := e.channels.StatusOf(fmt.Sprint(peer))
		if expected(st) {
			return st
		}
		if time.Now().After(deadline) {
			e.t.Fatalf("%d of %d: not %s: %+v, announces %+v", e.number, peer, what, st, st.Announced)
		}
		tick := time.NewTimer(2 * time.Millisecond)
		<-tick.C
	}
}

func (e *channelEnd) awaitState(peer int, want channelState) channelStatus {
	e.t.Helper()
	return e.await(peer, string(want), func(s channelStatus) bool { return s.State == want })
}

// awaitRefusals waits for a number of refused connections.
func (e *channelEnd) awaitRefusals(why hello.Refusal, n uint64) {
	e.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for e.channels.CountRefused()[why] < n {
		if time.Now().After(deadline) {
			e.t.Fatalf("%d refused for %s, want %d", e.channels.CountRefused()[why], why, n)
		}
		tick := time.NewTimer(2 * time.Millisecond)
		<-tick.C
	}
}

// connOf is the connection with a peer; nil: there is none.
func (e *channelEnd) connOf(peer int) *channelConn {
	ch := e.channels.table.Load().links[fmt.Sprint(peer)]
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return ch.conn
}

// dialAs connects to the control port of another cluster, as any program at this end can.
func (e *channelEnd) dialAs(from, to netip.Addr) net.Conn {
	e.t.Helper()
	var conn net.Conn
	var err error
	e.in(func() { conn, err = channelSockets{}.Dial(context.Background(), "kubelink", from, to) })
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	return conn
}

// helloOf is a hello that cluster n might send, changed by a test.
func helloOf(n int, change func(*hello.Hello)) []byte {
	h := &hello.Hello{
		Announcement: link.Announcement{Address: clusterAddress(n)}, Capable: true,
		Flags: hello.FlagKeepalive | hello.FlagUpdates, Instance: 7, Terms: &hello.Terms{},
	}
	if change != nil {
		change(h)
	}
	payload, err := h.AppendPayload(nil)
	if err != nil {
		panic(err)
	}
	return hello.AppendFrame(nil, hello.FrameHello, payload)
}

// pingFrame is a ping.
func pingFrame() []byte { return hello.AppendFrame64(make([]byte, 0, 11), hello.FramePing, 1) }
