package wireguard

// One UDP socket of the bind: packets are sent and received in batches (sendmmsg(2), recvmmsg(2)), and the kernel cuts
// and joins packets of one size (UDP_SEGMENT and UDP_GRO in udp(7)).

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

const (
	bufferSize  = 7 << 20        // bytes that wait in the kernel, as in wireguard-go
	maxSegments = 64             // packets that the kernel joins, or cuts a message into
	maxJoined   = 1<<16 - 1 - 48 // bytes of a message: the rest is for headers of IPv6 and UDP
	gsoSize     = 2              // bytes of the value of UDP_SEGMENT, a uint16
	controlSize = 64             // bytes of control messages with a packet: an address and the size of its parts
)

// udpSocket is a socket. Its methods may run at the same time.
type udpSocket struct {
	udp   *net.UDPConn
	batch *ipv6.PacketConn // of udp: what reads and writes batches does so for IPv4, too

	joins    bool        // the kernel joins packets that it receives
	single   atomic.Bool // the kernel does not cut messages
	messages sync.Pool   // of *[]ipv6.Message, for send
}

// setOptions sets the options of a socket before it is bound.
func (s *udpSocket) setOptions(network string, fd int) error {
	var err error
	if network == "udp4" {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	} else {
		err = errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1))
	}
	// All that follows is for speed. Without NET_ADMIN net.core.rmem_max and wmem_max bound the buffers.
	for _, o := range [][2]int{{unix.SO_RCVBUF, unix.SO_RCVBUFFORCE}, {unix.SO_SNDBUF, unix.SO_SNDBUFFORCE}} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[1], bufferSize) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[0], bufferSize)
		}
	}
	_, e := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
	s.single.Store(e != nil)
	// A kernel before 5.12, which cannot tell the value, has defects there.
	if _, e = unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO); e == nil {
		s.joins = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil
	}
	return err
}

// use makes the socket that of c.
func (s *udpSocket) use(c *net.UDPConn) {
	s.udp, s.batch = c, ipv6.NewPacketConn(c)
	s.messages.New = func() any {
		all := make([]ipv6.Message, conn.IdealBatchSize)
		for i := range all {
			all[i].OOB = make([]byte, 0, controlSize)
		}
		return &all
	}
}

func (s *udpSocket) port() uint16 { return uint16(s.udp.LocalAddr().(*net.UDPAddr).Port) }

// send sends packets to a place. What the kernel does not take it gets in another form.
func (s *udpSocket) send(packets [][]byte, to *place) error {
	messages := s.messages.Get().(*[]ipv6.Message)
	defer s.release(messages)
	join, source := !s.single.Load(), to.currentSource()
	hasSource := len(source) > 0
	for len(packets) > 0 {
		n, err := s.write(fillMessages(*messages, packets, to.udp, source, join))
		packets = packets[n:]
		switch {
		case err == nil:
		case join: // they are larger than the MTU of the path, or the device cannot make checksums (EIO)
			if join = false; errors.Is(err, unix.EIO) {
				s.single.Store(true)
			}
		case len(source) > 0 && mayBeGone(err):
			source = nil
		default:
			return err
		}
	}
	if hasSource && len(source) == 0 {
		to.ClearSrc()
	}
	return nil
}

// release gives messages back, without the packets.
func (s *udpSocket) release(messages *[]ipv6.Message) {
	for i := 0; i < len(*messages) && (*messages)[i].Buffers != nil; i++ {
		(*messages)[i].Buffers = nil
	}
	s.messages.Put(messages)
}

// mayBeGone tells whether an error may be that the source is no address of this machine any more: the kernel says so of
// IPv6 (EINVAL, and ENODEV of a link-local one) and of IPv4 (ENETUNREACH, before that EINVAL).
func mayBeGone(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENETUNREACH)
}

// write writes messages, and returns how many packets it has written.
func (s *udpSocket) write(messages []ipv6.Message) (packets int, err error) {
	for len(messages) > 0 {
		n, err := s.batch.WriteBatch(messages, 0)
		if err != nil {
			return packets, err
		}
		for i := range messages[:n] {
			packets += len(messages[i].Buffers)
		}
		messages = messages[n:]
	}
	return packets, nil
}

// fillMessages makes messages of as many packets as they can take, and returns these messages. With join, packets of
// one size, and a smaller one after them, are one message, which the kernel cuts.
func fillMessages(messages []ipv6.Message, packets [][]byte, to *net.UDPAddr, source []byte, join bool) []ipv6.Message {
	n := 0
	for ; n < len(messages) && len(packets) > 0; n++ {
		m, size, count := &messages[n], len(packets[0]), 1
		if join {
			count = countJoined(packets)
		}
		m.Addr, m.Buffers, m.OOB = to, packets[:count], append(m.OOB[:0], source...)
		if count > 1 {
			m.OOB = appendSegmentSize(m.OOB, uint16(size))
		}
		packets = packets[count:]
	}
	return messages[:n]
}

// countJoined counts the packets at the start that can be one message.
func countJoined(packets [][]byte) int {
	size, sum := len(packets[0]), len(packets[0])
	for i, p := range packets[1:min(len(packets), maxSegments)] {
		if sum += len(p); len(p) > size || len(p) == 0 || sum > maxJoined {
			return i + 1
		}
		if len(p) < size {
			return i + 2
		}
	}
	return min(len(packets), maxSegments)
}

// segmentHeader begins a control message UDP_SEGMENT.
var segmentHeader = func() []byte {
	h := unix.Cmsghdr{Level: unix.SOL_UDP, Type: unix.UDP_SEGMENT}
	h.SetLen(unix.CmsgLen(gsoSize))
	b, _ := binary.Append(nil, binary.NativeEndian, &h) // a fixed size
	return b
}()

func appendSegmentSize(control []byte, size uint16) []byte {
	end := len(control) + unix.CmsgSpace(gsoSize)
	control = binary.NativeEndian.AppendUint16(append(control, segmentHeader...), size)
	for len(control) < end {
		control = append(control, 0)
	}
	return control
}

// receiver reads from a socket. One goroutine uses it.
type receiver struct {
	*udpSocket
	messages []ipv6.Message
	last     *place // of the last packet
	tunnel   int    // index of the device from which no packet is taken
}

func newReceiver(s *udpSocket, tunnel int) *receiver {
	r := &receiver{udpSocket: s, messages: make([]ipv6.Message, conn.IdealBatchSize), tunnel: tunnel}
	for i := range r.messages {
		r.messages[i].Buffers, r.messages[i].OOB = make([][]byte, 1), make([]byte, controlSize)
	}
	return r
}

// receive is a conn.ReceiveFunc: it reads packets into buffers of 64 KB. Joined packets are read into the last buffers
// and copied to the first ones, each into one of its own: none is overwritten before it was copied. What comes out of a
// tunnel is not taken: the answers would go into it, and each through itself.
func (r *receiver) receive(buffers [][]byte, sizes []int, from []conn.Endpoint) (int, error) {
	first, last := 0, min(len(buffers), len(r.messages))
	if r.joins {
		first = last - max(1, last/maxSegments)
	}
	messages := r.messages[first:last]
	for i := range messages {
		m := &messages[i]
		m.Buffers[0], m.OOB = buffers[first+i], m.OOB[:controlSize]
	}
	n, err := r.batch.ReadBatch(messages, 0)
	if err != nil {
		return 0, err
	}
	count := 0
	for i := range messages[:n] {
		m := &messages[i]
		l, device, size := readControl(m.OOB[:m.NN])
		if device == r.tunnel && device != 0 {
			continue
		}
		at := r.placeOf(m.Addr, l)
		for rest := m.Buffers[0][:m.N]; len(rest) > 0 && count <= first+i; count++ {
			part := rest
			if size > 0 {
				part = rest[:min(size, len(rest))]
			}
			sizes[count], from[count] = copy(buffers[count], part), at
			rest = rest[len(part):]
		}
	}
	return count, nil
}

// placeOf returns the place of the sender of a packet: that of the packet before if it is the same.
func (r *receiver) placeOf(from net.Addr, to local) *place {
	a := from.(*net.UDPAddr).AddrPort()
	if p := r.last; p == nil || p.AddrPort != a || p.local != to || p.clear.Load() {
		r.last = newPlace(a, to)
	}
	return r.last
}

// readControl reads what comes with a packet: our address to which it was sent, the index of the device that it came
// from, and the size of the packets that were joined; 0: it is one.
func readControl(control []byte) (to local, device, size int) {
	for len(control) > unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			break
		}
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			device = int(binary.NativeEndian.Uint32(data))
			to.addr = netip.AddrFrom4([4]byte(data[4:8])) // ipi_spec_dst in ip(7)
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			device = int(binary.NativeEndian.Uint32(data[16:20]))
			if to.addr = netip.AddrFrom16([16]byte(data[:16])); to.addr.IsLinkLocalUnicast() {
				to.index = device
			}
		case h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			size = int(binary.NativeEndian.Uint32(data))
		}
		control = rest
	}
	return to, device, size
}
