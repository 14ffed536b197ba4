package kernel

// A peer sends packets of its tunnel through the tunnel, in a real network namespace.

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// tunnelBed is a node with a service that leads to the port which carries links, 8777, and to port 5353, as kube-proxy
// has it do. Both are open.
type tunnelBed struct {
	device *os.File
	port   uint16 // source of the last packet
}

const testTunnel = 8777

func newTunnelBed(t *testing.T) *tunnelBed {
	t.Helper()
	bed := &tunnelBed{device: tun(t, "kubelink"), port: 4000}
	run(t, `ip addr add 10.250.0.5/32 dev lo
		ip addr add fd00:250::5/128 dev lo nodad
		sysctl -qw net.ipv4.conf.all.rp_filter=0
		sysctl -qw net.ipv4.conf.kubelink.rp_filter=0`)
	settle(t, netip.MustParseAddr("fd00:250::5"))
	for _, to := range []string{
		"iptables -t nat -A PREROUTING -d 10.96.0.80 -p %s --dport %d -j DNAT --to 10.250.0.5:%d",
		"ip6tables -t nat -A PREROUTING -d fd01::80 -p %s --dport %d -j DNAT --to [fd00:250::5]:%d"} {
		run(t, fmt.Sprintf(to, "udp", testTunnel, testTunnel))
		run(t, fmt.Sprintf(to, "tcp", testTunnel, testTunnel))
		run(t, fmt.Sprintf(to, "udp", 53, 5353))
	}
	return bed
}

// send sends a packet of a peer to the service.
func (bed *tunnelBed) send(t *testing.T, service, peer string, protocol int, port uint16) {
	t.Helper()
	bed.port++
	p := packet{target: service, protocol: protocol, from: bed.port, to: port}
	if _, err := bed.device.Write(p.encode(netip.MustParseAddr(peer))); err != nil {
		t.Fatal(err)
	}
}

// leaves reads what leaves through the device until a packet has this target. It tells whether one had another one.
func (bed *tunnelBed) leaves(t *testing.T, other, target string) (found bool) {
	t.Helper()
	for a := netip.MustParseAddr(target); ; {
		next := nextPacket(t, bed.device)
		if next.target == a {
			return found
		}
		found = found || next.target.String() == other
	}
}

// arrivesAt returns what arrives next, and from where.
func arrivesAt(t *testing.T, socket *net.UDPConn) (from netip.AddrPort) {
	t.Helper()
	if err := socket.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, from, err := socket.ReadFromUDPAddrPort(make([]byte, 100))
	if err != nil {
		t.Fatal(err)
	}
	return netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

// openUDP opens a port of this node for a family.
func openUDP(t *testing.T, version string, port uint16) *net.UDPConn {
	t.Helper()
	socket, err := net.ListenUDP("udp"+version, &net.UDPAddr{Port: int(port)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	return socket
}

// tunnelCases have a service, and two addresses of a peer, for each family.
var tunnelCases = []struct{ version, service, peer, next, loopback string }{
	{"4", "10.96.0.80", "100.64.16.20", "100.64.16.21", "127.0.0.1"},
	{"6", "fd01::80", "fd00:5::20", "fd00:5::21", "::1"},
}

// What a peer sends in its tunnel to the service of the tunnels does not get to their port, and what leaves that port
// does not enter a tunnel: it would be the answer to itself. Other ports of the service go on.
func TestTunnelInTunnel(t *testing.T) {
	for backend, prepare := range map[string]func(testing.TB){"nft": func(testing.TB) {}, "legacy": useLegacy} {
		inNamespace(t, backend, func(t *testing.T) {
			prepare(t)
			bed := newTunnelBed(t)
			k, _ := open(t, config)
			s := twoMeshes
			s.LocalPorts = []mesh.LocalPort{{Protocol: "udp", Port: 5353}}
			s.Tunnel = mesh.LocalPort{Protocol: "udp", Port: testTunnel}
			set(t, k, s)
			var tunnel *net.UDPConn
			for _, c := range tunnelCases {
				service, peer, next := c.service, c.peer, c.next
				other := openUDP(t, c.version, 5353)
				tunnel = openUDP(t, c.version, testTunnel)
				bed.send(t, service, peer, unix.IPPROTO_UDP, testTunnel)
				bed.send(t, service, next, unix.IPPROTO_UDP, 53)
				from := arrivesAt(t, other)
				mark := &net.UDPAddr{IP: net.ParseIP(c.loopback), Port: testTunnel}
				if _, err := openUDP(t, c.version, 0).WriteTo([]byte("mark"), mark); err != nil {
					t.Fatal(err)
				}
				if first := arrivesAt(t, tunnel); !first.Addr().IsLoopback() {
					t.Errorf("the tunnel gets a packet of %s", first)
				}
				to := netip.AddrPortFrom(netip.MustParseAddr(peer), bed.port-1)
				if _, err := tunnel.WriteToUDPAddrPort([]byte("outer"), to); !errors.Is(err, unix.EPERM) {
					t.Errorf("a packet of the tunnel to %s: %v", to, err)
				}
				if _, err := other.WriteToUDPAddrPort([]byte("answer"), from); err != nil {
					t.Fatal(err)
				}
				if bed.leaves(t, peer, next) {
					t.Errorf("a packet of the tunnel to %s leaves through the tunnel", peer)
				}
			}
			if n := k.Drops().Node; n != 2 {
				t.Errorf("%d packets are counted, want 2", n)
			}
			s.Tunnel.Port++
			set(t, k, s)
			bed.send(t, "fd01::80", "fd00:5::20", unix.IPPROTO_UDP, testTunnel)
			if from := arrivesAt(t, tunnel); from.Addr().String() != "fd00:5::20" {
				t.Errorf("a port that carries links no more gets a packet of %s", from)
			}
			wantErrors(t, "Clear", k.Clear())
			if now := state(t); strings.Contains(now, "KLINK") {
				t.Errorf("Clear leaves:\n%s", now)
			}
		})
	}
}

// In mode bridge it is a connection: neither its first packet arrives, nor the answer to it.
func TestConnectionInTunnel(t *testing.T) {
	enter(t)
	bed := newTunnelBed(t)
	k, _ := open(t, config)
	s := twoMeshes
	s.LocalPorts = []mesh.LocalPort{{Protocol: "udp", Port: 5353}}
	s.Tunnel = mesh.LocalPort{Protocol: "tcp", Port: testTunnel}
	set(t, k, s)
	other := map[string]*net.UDPConn{}
	for _, c := range tunnelCases {
		listener, err := net.ListenTCP("tcp"+c.version, &net.TCPAddr{Port: testTunnel})
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		other[c.version] = openUDP(t, c.version, 5353)
	}
	for _, tool := range []string{"", "iptables", "ip6tables"} { // with what the first chain has let in, too
		if tool != "" {
			run(t, tool+" -t mangle -F KLINK-INPUT")
		}
		for _, c := range tunnelCases {
			socket := other[c.version]
			bed.send(t, c.service, c.peer, unix.IPPROTO_TCP, testTunnel)
			bed.send(t, c.service, c.next, unix.IPPROTO_UDP, 53)
			if _, err := socket.WriteToUDPAddrPort([]byte("answer"), arrivesAt(t, socket)); err != nil {
				t.Fatal(err)
			}
			if bed.leaves(t, c.peer, c.next) {
				t.Errorf("%s: a connection of the tunnel to %s goes through the tunnel", tool, c.peer)
			}
		}
	}
}
