package e2e

// Peers in mode wireguard that are no kubelink: a plain member of the mesh, and a hostile one inside of its tunnel.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/peer"
	"github.com/mandelsoft/kubelink/test/testbed"
)

const (
	memberDevice  = "wg0"
	memberAddress = "192.168.0.20"
	behindMember  = "192.168.0.101" // it forwards this address
	channelPort   = 8779            // of the control channel
)

// member is a plain WireGuard peer in a pod of the third cluster, behind its NAT, linked to the first two clusters:
// wg-quick(8) makes it, with a stand-alone wireguard-go.
type member struct {
	pod     *testbed.Pod
	key     mesh.SecretKey
	program string // wireguard-go
	config  string // file of wg-quick
}

// quick runs wg-quick.
func (m *member) quick(ctx context.Context, verb string) error {
	c := m.pod.Command(ctx, "wg-quick", verb, m.config)
	c.Env = append(c.Env, "WG_QUICK_USERSPACE_IMPLEMENTATION="+m.program)
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("wg-quick %s: %w: %s", verb, err, out)
	}
	return nil
}

// start makes its device.
func (m *member) start(t *testing.T, ctx context.Context) {
	t.Helper()
	must(t, m.quick(ctx, "up"))
	shown, err := m.pod.Run(ctx, "wg", "show", memberDevice, "public-key")
	must(t, err)
	if key := strings.TrimSpace(shown); key != m.key.Public().String() {
		t.Errorf("wg shows the key %s, want %s", key, m.key.Public())
	}
}

// writeConfig writes the file of wg-quick.
func (m *member) writeConfig(t *testing.T) {
	t.Helper()
	var text strings.Builder
	fmt.Fprintf(&text, "[Interface]\nPrivateKey = %s\nListenPort = 51820\nAddress = %s/32\n",
		m.key.Base64(), memberAddress)
	for _, b := range brokers[:2] {
		far := farEnd(b)
		fmt.Fprintf(&text, "\n[Peer]\nPublicKey = %s\nEndpoint = %s\nAllowedIPs = %s, %s\nPersistentKeepalive = 21\n",
			far.Key, far.Endpoint, far.Allowed[0], far.Allowed[1])
	}
	m.config = filepath.Join(t.TempDir(), memberDevice+".conf")
	must(t, os.WriteFile(m.config, []byte(text.String()), 0o600))
}

// startMember makes the peer, its links, and what it forwards: requests to an address behind it go to another pod.
func startMember(t *testing.T, ctx context.Context) *member {
	t.Helper()
	m := &member{key: fleet.NewKey(), program: buildWireGuard(t, ctx)}
	m.writeConfig(t)
	var err error
	m.pod, err = brokers[2].Pod(ctx, "member", testbed.PodOptions{})
	must(t, err)
	t.Cleanup(func() { must(t, m.pod.Delete(context.Background())) })
	must(t, m.pod.ServeHTTPEcho(80))
	must(t, m.pod.Sysctl("net.ipv4.ip_forward=1"))
	for _, rule := range []string{
		"PREROUTING -d " + behindMember + " -p tcp --dport 80 -j DNAT --to-destination " +
			netip.AddrPortFrom(servers[2].pod.Address, httpPort).String(),
		"POSTROUTING -o eth0 -j MASQUERADE",
	} {
		_, err := m.pod.Iptables(ctx, append([]string{"-t", "nat", "-A"}, strings.Fields(rule)...)...)
		must(t, err)
	}
	link := newKubeLink("member", memberAddress+"/24", v1alpha1.EndpointInbound, withEgress(behindMember))
	link.Spec.PublicKey = m.key.Public().String()
	link.Spec.DNS = &v1alpha1.KubeLinkDNS{OmitDNSPropagation: true}
	for _, b := range brokers[:2] {
		must(t, b.Apply(ctx, link))
		t.Cleanup(func() { must(t, b.Remove(context.Background(), link.Name)) })
	}
	return m
}

// A plain peer reaches services, is reached, and forwards to what is behind it. Its link follows its handshakes.
func TestWireGuardMember(t *testing.T) {
	ctx := startTest(t, 6*time.Minute)
	const down, up = 190 * time.Second, 30 * time.Second
	m := startMember(t, ctx)
	must(t, brokers[0].WaitState(ctx, "member", v1alpha1.StateIdle, "waiting for the peer to connect"))
	m.start(t, ctx)
	stopped := false
	t.Cleanup(func() {
		if !stopped {
			must(t, m.quick(context.Background(), "down"))
		}
	})
	traffic := func() {
		t.Helper()
		for i := range brokers[:2] {
			waitForReply(t, 5*time.Second, m.pod, servers[i].service)
			for _, address := range []string{memberAddress, behindMember} {
				waitForReply(t, 5*time.Second, clients[i], netip.MustParseAddr(address))
			}
			_, err := m.pod.Ping(ctx, brokers[i].MeshAddress.Addr())
			must(t, err)
			must(t, brokers[i].WaitState(ctx, "member", v1alpha1.StateUp))
		}
	}
	traffic()
	check := expectUp(t, brokers[0], brokers[1])
	must(t, m.quick(ctx, "down"))
	stopped = true
	took := within(t, down, "link to be Down", func(ctx context.Context) error {
		l, err := brokers[0].Link(ctx, "member")
		if err == nil && l.Status.State != v1alpha1.StateDown {
			err = fmt.Errorf("%s: %s", l.Status.State, l.Status.Message)
		}
		return err
	})
	m.start(t, ctx)
	stopped = false
	back := within(t, up, "link to be Up", func(ctx context.Context) error {
		return brokers[0].WaitState(ctx, "member", v1alpha1.StateUp)
	})
	t.Logf("Down after %s, Up %s after its return", took, back)
	traffic()
	check()
}

// hostile is a peer with a good key on the gateway node of the third cluster.
type hostile struct {
	node    *testbed.Node
	tunnel  *peer.Tunnel
	to, own netip.Addr // mesh addresses of the first cluster and of the peer
}

// startHostile starts the peer in place of the third broker. It may also send from another address.
func startHostile(t *testing.T, ctx context.Context, to, own, another netip.Addr) *hostile {
	t.Helper()
	third := brokers[2]
	must(t, third.Kill(ctx, syscall.SIGTERM))
	h := &hostile{node: third.Gateway(), to: to, own: own}
	far := farEnd(brokers[0])
	far.Allowed = []netip.Prefix{netip.PrefixFrom(to, 32)}
	var err error
	h.tunnel, err = peer.OpenTunnel(ctx, h.node.Host, "hostile", third.PrivateKey(), testbed.WireguardPort, far)
	must(t, err)
	t.Cleanup(func() {
		h.tunnel.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		must(t, third.Start(ctx))
	})
	for _, command := range []string{
		"address add " + own.String() + "/32 dev hostile",
		"address add " + another.String() + "/32 dev hostile",
		"route add " + to.String() + "/32 dev hostile src " + own.String(),
	} {
		_, err := h.node.Run(ctx, "ip", strings.Fields(command)...)
		must(t, err)
	}
	return h
}

// dial connects to the control channel from an address, through its device.
func (h *hostile) dial(ctx context.Context, from netip.Addr) (conn net.Conn, err error) {
	err = h.node.Do(func() (err error) {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)),
			Control: func(_, _ string, raw syscall.RawConn) (err error) {
				return errors.Join(raw.Control(func(fd uintptr) {
					err = unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "hostile")
				}), err)
			}}
		conn, err = d.DialContext(ctx, "tcp4", netip.AddrPortFrom(h.to, channelPort).String())
		return err
	})
	return conn, err
}

// say sends something to the control channel, and waits until the broker ends the connection.
func (h *hostile) say(t *testing.T, ctx context.Context, what func(*peer.Peer) error) {
	t.Helper()
	conn, err := h.dial(ctx, h.own)
	must(t, err)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	p := &peer.Peer{Conn: conn}
	what(p) // the broker may have ended it already
	must(t, p.Ended())
}

// A peer inside of its tunnel sends what it likes to the control channel: that is refused, and costs other links nothing.
func TestWireGuardHostilePeer(t *testing.T) {
	ctx := startTest(t, 5*time.Minute)
	one, two, third := brokers[0], brokers[1], brokers[2]
	t.Cleanup(func() { restoreMesh(t) })
	h := startHostile(t, ctx, one.MeshAddress.Addr(), third.MeshAddress.Addr(), two.MeshAddress.Addr())
	must(t, one.WaitState(ctx, third.Name, v1alpha1.StateUp))
	healthy := expectNoFailures(t, clients[0], servers[1].service)
	check := expectUp(t, one, two)
	before, err := residentMemory(one.Process)
	must(t, err)

	t.Run("the address of another peer", func(t *testing.T) {
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if conn, err := h.dial(short, two.MeshAddress.Addr()); err == nil {
			conn.Close()
			t.Error("a peer connects with the address of another one")
		}
	})
	for _, c := range []struct {
		name, reason string
		say          func(*peer.Peer) error
	}{
		{"garbage", "hello", func(p *peer.Peer) error { _, err := io.WriteString(p, "GET / HTTP/1.1\r\n\r\n"); return err }},
		{"a frame without end", "hello", func(p *peer.Peer) error { _, err := p.Write([]byte{0xff, 0xff, 1, 0}); return err }},
		{"no word", "hello", func(p *peer.Peer) error { return nil }},
		{"a hello of another cluster", "address", func(p *peer.Peer) error { return p.Hello(two.MeshAddress, two.ServiceCIDR) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			expectCount(t, refusedSeries(c.reason), func() { h.say(t, ctx, c.say) })
		})
	}
	t.Run("10,000 connections", func(t *testing.T) { h.connectOften(t, ctx, 10000) })
	limit := before + max(64<<20, before/2) // the race detector has a share of all that was ever used
	if after, err := residentMemory(one.Process); err != nil || after > limit {
		t.Errorf("memory grew from %d MiB to %d MiB, %v", before>>20, after>>20, err)
	} else {
		t.Logf("memory was %d MiB, is %d MiB", before>>20, after>>20)
	}
	healthy()
	check()
	must(t, checkAnswer(ctx, one, serverName(1), servers[1].service))
}

// connectOften opens connections to the control channel, 100 at a time, and says nothing.
func (h *hostile) connectOften(t *testing.T, ctx context.Context, n int) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	todo := make(chan struct{}, n)
	for range n {
		todo <- struct{}{}
	}
	close(todo)
	var open []net.Conn // they stay open until all are there
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	for range 100 {
		wg.Go(func() {
			for range todo {
				short, cancel := context.WithTimeout(ctx, 2*time.Second)
				conn, err := h.dial(short, h.own)
				cancel()
				if err != nil {
					continue
				}
				mu.Lock()
				open = append(open, conn)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	t.Logf("%d of %d connections were opened", len(open), n)
}
