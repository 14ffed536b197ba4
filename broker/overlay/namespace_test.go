package overlay

// The overlay between real network namespaces: two nodes on a bridge that drops all addresses but theirs, a pod behind
// each, and a gateway on the first node or in a pod of it. What it sends to its TUN comes out of one in the namespace
// "mesh". These tests need to be root.

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/kernel"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// world is namespaces by name. Its goroutine is locked to a thread, which ends with it.
type world struct {
	t        *testing.T
	spaces   map[string]netns.NsHandle
	v6       bool
	overlays map[string]*Overlay // by namespace
	kernel   *kernel.Kernel      // of the gateway
	gateway  string              // its namespace
}

func newWorld(t *testing.T, names ...string) *world {
	t.Helper()
	runtime.LockOSThread()
	w := &world{t: t, spaces: map[string]netns.NsHandle{}, overlays: map[string]*Overlay{}}
	for _, name := range names {
		ns, err := netns.New()
		if err != nil {
			t.Fatalf("make a network namespace (as root): %v", err)
		}
		t.Cleanup(func() { ns.Close() })
		w.spaces[name] = ns
		w.run(name, `ip link set lo up
			for t in nat filter mangle; do iptables -t $t -N FOREIGN; ip6tables -t $t -N FOREIGN; done
			sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
			sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1
			sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0`)
	}
	return w
}

// in calls f in a namespace.
func (w *world) in(name string, f func()) {
	w.t.Helper()
	if err := netns.Set(w.spaces[name]); err != nil {
		w.t.Fatal(err)
	}
	f()
}

// run runs commands in a namespace, one per line, and returns what they print.
func (w *world) run(name, commands string) string {
	w.t.Helper()
	var all strings.Builder
	w.in(name, func() {
		w.t.Helper()
		for line := range strings.Lines(commands) {
			line = strings.TrimSpace(line)
			if line == "" {
				continue
			}
			out, err := exec.Command("sh", "-c", line).CombinedOutput()
			if err != nil {
				w.t.Fatalf("%s: %s: %v: %s", name, line, err, out)
			}
			all.Write(out)
		}
	})
	return all.String()
}

// connect makes a veth pair between two namespaces.
func (w *world) connect(a, deviceA, b, deviceB string) {
	w.t.Helper()
	w.run(a, fmt.Sprintf("ip link add %s type veth peer name %s netns /proc/%d/fd/%d",
		deviceA, deviceB, syscall.Getpid(), int(w.spaces[b])))
	w.run(a, "ip link set "+deviceA+" up")
	w.run(b, "ip link set "+deviceB+" up")
}

// The addresses of the world. The ones of IPv6 are the others'.
func (w *world) address(name string) netip.Addr {
	addresses := map[string][2]string{
		"node1": {"10.250.0.1", "fd00:a::1"}, "node2": {"10.250.0.2", "fd00:a::2"}, "stranger": {"10.250.0.3", "fd00:a::3"},
		"pod1": {"100.96.1.5", "fd00:b:1::5"}, "pod2": {"100.96.2.5", "fd00:b:2::5"},
		"gateway": {"100.96.1.7", "fd00:b:1::7"},
		"cluster": {"192.168.0.11", "fd00:c::b"},
		"mesh":    {"192.168.0.5", "fd00:c::5"}, "remote": {"100.64.16.9", "fd00:d:1::9"},
		"service2": {"100.64.0.2", "fd00:d::2"}, "host2": {"100.64.0.3", "fd00:d::3"},
	}
	a, known := addresses[name]
	if !known {
		w.t.Fatalf("no address of %s", name)
	}
	if w.v6 {
		return netip.MustParseAddr(a[1])
	}
	return netip.MustParseAddr(a[0])
}

// choose returns the text of the family.
func (w *world) choose(v4, v6 string) string {
	if w.v6 {
		return v6
	}
	return v4
}

// tun makes a TUN device that is up.
func (w *world) tun(name, device string) (file *os.File) {
	w.t.Helper()
	w.in(name, func() {
		w.t.Helper()
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			w.t.Fatal(err)
		}
		request, err := unix.NewIfreq(device)
		if err != nil {
			w.t.Fatal(err)
		}
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
			w.t.Fatal(err)
		}
		file = os.NewFile(uintptr(fd), device)
	})
	w.t.Cleanup(func() { file.Close() })
	w.run(name, "ip link set "+device+" up")
	return file
}

// pump copies packets until the end of the test.
func pump(to, from *os.File) {
	for buf := make([]byte, 1<<16); ; {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if _, err := to.Write(buf[:n]); errors.Is(err, os.ErrClosed) {
			return
		}
	}
}

// addPod connects a pod to a node, as Calico does.
func (w *world) addPod(pod, node string) {
	w.t.Helper()
	w.connect(node, pod, pod, "eth0")
	router, bits := w.choose("169.254.1.1", "fd00:ff::1"), w.choose("/32", "/128")
	w.run(node, fmt.Sprintf(`ip addr add %s%s dev %s
		ip route add %s dev %s`, router, bits, pod, w.address(pod), pod))
	w.run(pod, fmt.Sprintf(`ip addr add %s%s dev eth0
		ip route add %s dev eth0
		ip route add default via %s`, w.address(pod), bits, router, router))
}

// build makes the nodes, the network that drops foreign addresses, the pods, and the mesh at the gateway.
func (w *world) build(podMode bool) {
	w.t.Helper()
	w.run("lan", "ip link add br0 type bridge mcast_snooping 0\nip link set br0 up")
	for _, node := range []string{"node1", "node2", "stranger"} {
		w.connect("lan", node, node, "eth0")
		w.run("lan", "ip link set "+node+" master br0")
		w.run(node, fmt.Sprintf("ip addr add %s%s dev eth0\nip route add default via %s",
			w.address(node), w.choose("/24", "/64"), w.choose("10.250.0.254", "fd00:a::fe")))
	}
	ip := w.choose("ip", "ip6")
	nodes := fmt.Sprintf("{ %s, %s, %s }", w.address("node1"), w.address("node2"), w.address("stranger"))
	pods := w.choose("100.96.0.0-100.111.255.255", "fd00:b::-fd00:b:ffff:ffff:ffff:ffff:ffff:ffff")
	// What pods send to each other goes through the nodes' network here, as a pod network of its own would let it.
	w.run("lan", fmt.Sprintf("nft 'table bridge f { chain c { type filter hook forward priority 0; policy drop; "+
		"ether type arp accept; icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept; "+
		"%[1]s saddr %[2]s %[1]s daddr %[2]s accept; %[1]s saddr { %[3]s } %[1]s daddr { %[3]s } accept; "+
		"%[1]s saddr %[2]s %[1]s daddr { %[3]s } accept; %[1]s saddr { %[3]s } %[1]s daddr %[2]s accept; }; }'",
		ip, nodes, pods))
	w.addPod("pod1", "node1")
	w.addPod("pod2", "node2")
	pods1, pods2 := w.choose("100.96.1.0/24", "fd00:b:1::/48"), w.choose("100.96.2.0/24", "fd00:b:2::/48")
	w.run("node1", fmt.Sprintf("ip route add %s via %s", pods2, w.address("node2")))
	w.run("node2", fmt.Sprintf("ip route add %s via %s", pods1, w.address("node1")))
	cluster := w.choose("100.96.0.0/11", "fd00:b::/32")
	for _, node := range []string{"node1", "node2"} { // what pods send to other networks has the address of the node
		w.run(node, fmt.Sprintf("%s -t nat -A POSTROUTING -s %s ! -d %[2]s -j MASQUERADE", w.iptables(), cluster))
	}
	w.gateway = "node1"
	if podMode {
		w.gateway = "gateway"
		w.addPod("gateway", "node1")
		// A pod network that drops foreign addresses, as Calico does from a pod.
		from := "raw -A PREROUTING -i gateway ! -s " + w.address("gateway").String()
		w.run("node1", w.iptables()+" -t "+from+w.choose("", " ! -p ipv6-icmp")+" -j DROP")
	}
	w.joinMesh()
}

func (w *world) iptables() string { return w.choose("iptables", "ip6tables") }

// joinMesh gives the gateway the kernel state that a broker gives it.
func (w *world) joinMesh() {
	w.t.Helper()
	here, there := w.tun(w.gateway, "kubelink"), w.tun("mesh", "tun")
	go pump(here, there)
	go pump(there, here)
	bits := w.choose("/32", "/128")
	meshRange := w.choose("192.168.0.0/24", "fd00:c::/64")
	w.run("mesh", fmt.Sprintf(`ip addr add %s%s dev tun
		ip addr add %s%s dev tun
		ip %s route add default dev tun`, w.address("mesh"), w.choose("/24", "/64"), w.address("remote"), bits,
		w.choose("-4", "-6")))
	state := kernel.State{Masquerade: w.gateway == "node1", Pod: kernel.Pod{Is: w.gateway != "node1", Device: "eth0"},
		Addresses: []netip.Prefix{netip.PrefixFrom(w.address("cluster"), netip.MustParsePrefix(meshRange).Bits())}}
	for _, n := range []string{meshRange, w.choose("100.64.16.0/20", "fd00:d:1::/48")} {
		state.Routes = append(state.Routes, mesh.Route{Destination: netip.MustParsePrefix(n), Source: w.address("cluster")})
	}
	w.in(w.gateway, func() {
		k, err := kernel.New(kernel.Config{Device: "kubelink"})
		if err == nil {
			err = k.Set(state)
		}
		if err != nil {
			w.t.Fatal(err)
		}
		w.kernel = k
	})
	for service, target := range map[string]string{"service2": "pod2", "host2": "node2"} { // as kube-proxy does
		w.run(w.gateway, fmt.Sprintf("%s -t nat -A PREROUTING -d %s -j DNAT --to-destination %s",
			w.iptables(), w.address(service), w.address(target)))
	}
}

// states returns what a broker and a router would want, by namespace.
func (w *world) states() map[string]State {
	network := []netip.Prefix{netip.MustParsePrefix(w.choose("10.250.0.0/24", "fd00:a::/64"))}
	common := State{VNI: DefaultVNI, Port: DefaultPort, NodeNetworks: network}
	gateway := common
	gateway.Addresses, gateway.TUN = []netip.Addr{w.address(w.gateway)}, "kubelink"
	gateway.Local = []netip.Addr{w.address("cluster")}
	for _, n := range []string{"node1", "node2"} {
		gateway.Peers = append(gateway.Peers, Peer{Name: n, Addresses: []netip.Addr{w.address(n)}})
	}
	states := map[string]State{w.gateway: gateway}
	for _, n := range []string{"node1", "node2"} {
		if n == w.gateway {
			continue
		}
		node := common
		node.Addresses = []netip.Addr{w.address(n)}
		node.Peers = []Peer{{Name: "gateway", Addresses: []netip.Addr{w.address(w.gateway)},
			Sources: []netip.Addr{w.address("node1")}}}
		states[n] = node
	}
	return states
}

// open returns the overlay of a namespace.
func (w *world) open(name string) (o *Overlay) {
	w.t.Helper()
	role := Node
	if name == w.gateway {
		role = Gateway
	}
	w.in(name, func() {
		var err error
		if o, err = New(role); err != nil {
			w.t.Fatal(err)
		}
	})
	w.overlays[name] = o
	return o
}

// set sets the overlay of all, and routes as a router does.
func (w *world) set() {
	w.t.Helper()
	for name, s := range w.states() {
		if w.overlays[name] == nil {
			w.open(name)
		}
		w.in(name, func() {
			w.t.Helper()
			if err := w.overlays[name].Set(s); err != nil {
				w.t.Fatalf("%s: %v", name, err)
			}
		})
		if name != w.gateway {
			w.route(name, fmt.Sprintf("via %s dev %s onlink",
				NextHop(s.Addresses, s.Peers[0].Addresses, kernel.FamilyOf(w.address(name))), Node.Device()))
		}
	}
}

// route leads the networks of the mesh from a node to the gateway.
func (w *world) route(node, how string) {
	w.t.Helper()
	for _, n := range []string{w.choose("192.168.0.0/24", "fd00:c::/64"), w.choose("100.64.16.0/20", "fd00:d:1::/48")} {
		w.run(node, "ip route replace "+n+" "+how+" metric 101 proto 114")
	}
}

// dropped is what an end has counted.
func (w *world) dropped(name string) uint64 {
	w.t.Helper()
	w.in(name, func() {
		if err := w.overlays[name].Set(w.states()[name]); err != nil {
			w.t.Fatalf("%s: %v", name, err)
		}
	})
	return w.overlays[name].Counters().Dropped
}

// listen answers each UDP packet to a port in a namespace with the address that it came from.
func (w *world) listen(name string, port int) *net.UDPConn {
	w.t.Helper()
	var conn *net.UDPConn
	w.in(name, func() {
		var err error
		if conn, err = net.ListenUDP(w.choose("udp4", "udp6"), &net.UDPAddr{Port: port}); err != nil {
			w.t.Fatal(err)
		}
	})
	w.t.Cleanup(func() { conn.Close() })
	return conn
}

func (w *world) answer(name string) {
	w.t.Helper()
	conn := w.listen(name, 7)
	// An answer comes from the address that was asked.
	if err := ipControl(conn, w.v6); err != nil {
		w.t.Fatal(err)
	}
	go func() {
		buf, oob := make([]byte, 100), make([]byte, 200)
		for {
			n, on, _, from, err := conn.ReadMsgUDPAddrPort(buf, oob)
			if err != nil {
				return
			}
			_ = n
			conn.WriteMsgUDPAddrPort([]byte(from.Addr().Unmap().String()), replyFrom(oob[:on]), from)
		}
	}()
}

// ipControl asks for the address that a packet was sent to.
func ipControl(conn *net.UDPConn, v6 bool) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	failed := raw.Control(func(fd uintptr) {
		if v6 {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		}
	})
	if failed != nil {
		return failed
	}
	return err
}

// replyFrom makes the control message of a packet that of its answer: the source, and no device.
func replyFrom(oob []byte) []byte {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil || len(messages) == 0 {
		return nil
	}
	if messages[0].Header.Level == unix.IPPROTO_IPV6 {
		return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: [16]byte(messages[0].Data[:16])})
	}
	return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: [4]byte(messages[0].Data[8:12])})
}

// ask sends packets until there is an answer, and returns the address that the server saw; invalid: there is none.
func (w *world) ask(from string, to netip.Addr, tries int) (seen netip.Addr) {
	w.t.Helper()
	w.in(from, func() {
		conn, err := net.Dial("udp", netip.AddrPortFrom(to, 7).String())
		if err != nil {
			return
		}
		defer conn.Close()
		buf := make([]byte, 100)
		for range tries {
			if _, err := conn.Write([]byte("?")); err != nil {
				return
			}
			conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			if n, err := conn.Read(buf); err == nil {
				seen, _ = netip.ParseAddr(string(buf[:n]))
				return
			}
		}
	})
	return seen
}

// want checks whether a request gets its answer, and which address the server sees.
func (w *world) want(from, to, seen string) {
	w.t.Helper()
	want, tries := netip.Addr{}, 2 // the first one may be lost to a look-up of a neighbour
	if seen != "" {
		want, tries = w.address(seen), 25
	}
	got := w.ask(from, w.address(to), tries)
	if got != want {
		w.t.Errorf("from %s to %s: the server saw %v, want %v", from, to, got, want)
	}
}

// forged is a VXLAN packet with a UDP packet inside.
func (w *world) forged(mac net.HardwareAddr, source, target netip.AddrPort) []byte {
	frame := []byte{0x08, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(frame[4:], DefaultVNI<<8)
	frame = append(append(frame, mac...), 0x02, 0x6b, 0, 0, 0, 9)
	payload := []byte("forged")
	udp := binary.BigEndian.AppendUint16(nil, source.Port())
	udp = binary.BigEndian.AppendUint16(udp, target.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	udp = append(append(udp, 0, 0), payload...)
	return append(frame, append([]byte{0x08, 0x00}, ipv4(source.Addr(), target.Addr(), unix.IPPROTO_UDP, udp)...)...)
}

// ipv4 is a packet. The checksum of UDP may be 0.
func ipv4(source, target netip.Addr, protocol byte, payload []byte) []byte {
	p := make([]byte, 20, 20+len(payload))
	p[0], p[8], p[9] = 0x45, 64, protocol
	binary.BigEndian.PutUint16(p[2:], uint16(20+len(payload)))
	copy(p[12:], source.AsSlice())
	copy(p[16:], target.AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum+sum>>16))
	return append(p, payload...)
}

// send sends a UDP packet with any source.
func (w *world) send(from string, source, target netip.AddrPort, payload []byte) {
	w.t.Helper()
	udp := binary.BigEndian.AppendUint16(nil, source.Port())
	udp = binary.BigEndian.AppendUint16(udp, target.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	packet := ipv4(source.Addr(), target.Addr(), unix.IPPROTO_UDP, append(append(udp, 0, 0), payload...))
	w.in(from, func() {
		w.t.Helper()
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			w.t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: target.Addr().As4()}); err != nil {
			w.t.Fatalf("send from %s: %v", from, err)
		}
	})
}

// segmentSize is TCP_INFO's tcpi_snd_mss of a connection.
func segmentSize(t *testing.T, conn *net.TCPConn) (size int) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		info, e := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err = e; err == nil {
			size = int(info.Snd_mss)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return size
}
