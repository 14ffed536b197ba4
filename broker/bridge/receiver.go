package bridge

// Inbound packets: from the connection of a session to the TUN, or to another peer.
//
// The receiver takes frames from its read buffer in place, filters the packets, and writes them to the TUN from there.
// Packets that go on to another peer are copied. The read buffer lives as long as the session, and no slice of it is
// used after its frame.

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
)

const (
	smallReadBytes   = 32 << 10        // room for frames,
	maxReadBytes     = 4 * largeBuffer // and while large frames come
	shrinkAfterReads = 64              // that did not need the large room
)

var readBuffers = sync.Pool{New: func() any { return new([headroom + maxReadBytes]byte) }}

// receiver is the receiving half of a session. It belongs to the goroutine that runs the session.
type receiver struct {
	session   *session
	shortPath bool     // the path is short, and the connection is tuned to that
	forwardTo *session // has packets of ours to send
	services  hello.ServiceReader

	tunQueue atomic.Int32 // queue of the TUN that packets are written to; the peer sets it
	rtt      atomic.Int64 // round-trip time in nanoseconds, smoothed; 0: not known
}

// readBuffer is the memory for frames that are not complete yet. It has headroom before them.
type readBuffer struct {
	small      []byte
	large      *[headroom + maxReadBytes]byte // nil unless large frames come
	buf        []byte                         // small or large
	start, end int                            // of the bytes that are not handled yet
	needless   int                            // reads since large was needed
}

func newReadBuffer() *readBuffer {
	small := make([]byte, headroom+smallReadBytes)
	return &readBuffer{small: small, buf: small, start: headroom, end: headroom}
}

// addRead takes n bytes that were read to the end of the buffer.
func (b *readBuffer) addRead(n int) {
	if b.needless++; b.end+n > len(b.small)-recordBytes {
		b.needless = 0
	}
	b.end += n
}

// makeRoom makes room for the next read, after all bytes before start were handled. large tells that the peer may send
// super-packets.
func (b *readBuffer) makeRoom(start int, large bool) {
	b.start = start
	switch {
	case b.start == b.end:
		b.start, b.end = headroom, headroom
		if b.large != nil && b.needless >= shrinkAfterReads { // also an idle session gets here, with each ping
			readBuffers.Put(b.large)
			b.buf, b.large = b.small, nil
		}
	case len(b.buf)-b.end < recordBytes: // else the next record would come in parts
		old := b.buf
		if b.large == nil && (large || b.end-b.start > smallReadBytes/2) {
			b.large = readBuffers.Get().(*[headroom + maxReadBytes]byte)
			b.buf = b.large[:]
		}
		b.end = headroom + copy(b.buf[headroom:], old[b.start:b.end])
		b.start = headroom
	}
}

// readFrames handles frames until an error. With keepalive, silence is an error.
func (r *receiver) readFrames() error {
	var (
		s         = r.session
		b         = newReadBuffer()
		keepalive = s.flags&hello.FlagKeepalive != 0
		silence   = s.peer.timing.silence
		renewed   time.Duration // when the deadline was set
	)
	for {
		if keepalive {
			now := s.peer.now()
			if (renewed == 0 || now-renewed > silence/8) && !s.detached.Load() { // not for each read: it is expensive
				renewed = now
				s.raw.SetReadDeadline(time.Now().Add(silence))
			}
		}
		n, err := s.conn.Read(b.buf[b.end:])
		b.addRead(n)
		used, frameErr := r.handleFrames(b.buf[:b.end], b.start)
		switch {
		case frameErr != nil:
			return frameErr
		case keepalive && errors.Is(err, os.ErrDeadlineExceeded):
			return errSilent
		case err != nil:
			return err
		}
		b.makeRoom(used, s.flags&hello.FlagOffload != 0)
	}
}

// handleFrames handles the complete frames in b from start on, and returns where the incomplete frame starts. The bytes
// before a frame have been handled then: the virtio_net_hdr of its packet is written there.
func (r *receiver) handleFrames(b []byte, start int) (used int, err error) {
	s := r.session
	var packets, bytes uint64
	for err == nil {
		typ, payload, rest, ok := hello.CutFrame(b[start:])
		if !ok {
			break
		}
		start += hello.FrameHeader + len(payload)
		var vnet vnetHeader
		if typ == hello.FrameOffload && len(payload) == vnetSize && s.flags&hello.FlagOffload != 0 {
			next, packet, _, ok := hello.CutFrame(rest)
			if !ok { // the frame stays together with its packet
				start -= hello.FrameHeader + vnetSize
				break
			}
			if next == hello.FramePacket {
				vnet, typ, payload = parseVnet(payload), next, packet
				start += hello.FrameHeader + len(packet)
			}
		}
		switch typ {
		case hello.FramePacket:
			packets++
			bytes += uint64(len(payload))
			r.receivePacket(b[start-len(payload)-vnetSize:start], vnet)
		default:
			err = r.handleControl(typ, payload)
		}
	}
	r.kickForwarded()
	if packets > 0 {
		s.peer.counters.rxPackets.Add(packets)
		s.peer.counters.rxBytes.Add(bytes)
	}
	return start, err
}

// handleControl handles a frame that is no packet.
func (r *receiver) handleControl(typ byte, payload []byte) error {
	s := r.session
	switch {
	case typ == hello.FramePing && len(payload) == 8:
		s.due.pong.Store(binary.BigEndian.Uint64(payload))
		s.kickSender()
	case typ == hello.FramePong && len(payload) == 8:
		r.updateRTT(s.peer.now() - time.Duration(binary.BigEndian.Uint64(payload)))
	case typ == hello.FrameHello:
		return s.peer.receiveHello(payload)
	case typ == hello.FrameServices && s.flags&hello.FlagServices != 0:
		if list := r.services.AddFrame(payload); list != nil {
			s.peer.receiveServices(s, list)
		}
	}
	return nil
}

// updateRTT notes a round-trip time.
func (r *receiver) updateRTT(rtt time.Duration) {
	old := time.Duration(r.rtt.Load())
	smooth := hello.SmoothRTT(old, rtt)
	if smooth == old { // does not answer a ping of ours, or changes nothing
		return
	}
	if !r.shortPath {
		r.shortPath = r.session.raw.tuneShortPath()
	}
	if r.rtt.Store(int64(smooth)); old == 0 {
		r.session.peer.notifyChanged()
	}
}

// receivePacket decides on a packet from the peer: to the TUN, to another peer, or drop. The packet belongs to the
// caller, with room for a virtio_net_hdr before it.
func (r *receiver) receivePacket(room []byte, vnet vnetHeader) {
	p, packet := r.session.peer, room[vnetSize:]
	src, dst, ok := parseAddresses(packet)
	if !ok || vnet != (vnetHeader{}) && !vnet.validateFor(packet) {
		p.counters.drops.add(DropMalformed)
		return
	}
	routes := &p.router.table.Load().routes
	if owner, _ := routes.Lookup(src); owner != p {
		p.counters.drops.add(DropSource)
		return
	}
	if packet[0] != 0x45 && hasSourceRoute(packet) { // the filter knows dst only, which is not where the packet ends
		p.counters.drops.add(DropDestination)
		return
	}
	filter := p.filter.Load().ofSource(src)
	verdict, _ := filter.verdicts.Lookup(dst)
	next, _ := routes.Lookup(dst)
	transit := next != nil && next.Local.First() == p.Local.First() // other meshes are strangers to the peer
	if transit && verdict != denied {
		// The more specific of ingress and routes decides: a list that allows the rest, or a wide network, leads here
		// only what is here.
		route, _, _ := routes.LookupPrefixLPM(netip.PrefixFrom(dst, dst.BitLen()))
		transit = route.Bits() >= filter.prefixLength(dst)
	}
	switch {
	case !transit:
		r.receiveLocal(filter, verdict, room, vnet)
	case next == p:
		p.counters.drops.add(DropDestination)
	case !decrementTTL(packet):
		p.counters.drops.add(DropTTL)
	case !next.isReachable():
		next.counters.drops.add(DropNotConnected)
	default:
		r.forwardPacket(next, packet, vnet)
	}
}

// receiveLocal writes a packet to the TUN if the filter lets it in.
func (r *receiver) receiveLocal(filter *ingressFilter, v verdict, room []byte, vnet vnetHeader) {
	p := r.session.peer
	switch {
	case v == denied:
		p.counters.drops.add(DropDestination)
	case v != allowed && !filter.allowsNode(v, room[vnetSize:], vnet):
		p.counters.drops.add(DropNode)
	case !p.iface.writePacket(int(r.tunQueue.Load()), room, vnet):
		p.counters.drops.add(DropTUNWrite)
	}
}

// forwardPacket sends a copy of a packet to another peer.
func (r *receiver) forwardPacket(next *peer, packet []byte, vnet vnetHeader) {
	if to := next.sendPacket(copyBuffer(packet, vnet)); to != r.forwardTo {
		r.kickForwarded()
		r.forwardTo = to
	}
}

// kickForwarded has the other session send the packets that were forwarded.
func (r *receiver) kickForwarded() {
	if r.forwardTo != nil {
		r.forwardTo.kickSender()
		r.forwardTo = nil
	}
}

// writePacket writes a packet to a queue of the TUN; room for a virtio_net_hdr is before the packet. It does the work
// on the packet that the TUN does not do.
func (f *iface) writePacket(queue int, room []byte, vnet vnetHeader) bool {
	dev := *f.device.Load()
	queues, offloads := dev.Queues(), dev.Offloads()
	q := queues[queue%len(queues)]
	packet := room[vnetSize:]
	switch {
	case vnet.gsoType == gsoNone && offloads == 0:
		if vnet != (vnetHeader{}) {
			vnet.fillChecksum(packet)
		}
		_, err := q.Write(packet)
		return err == nil
	case vnet.gsoType == gsoNone,
		vnet.gsoType == gsoUDP && offloads&OffloadUSO != 0,
		vnet.gsoType != gsoUDP && offloads != 0:
		vnet.putBytes(room)
		_, err := q.Write(room)
		return err == nil
	}
	return writeSegments(q, vnet.splitPacket(packet), offloads != 0)
}

// writeSegments writes the packets of a super-packet; header: a virtio_net_hdr is before each of them.
func writeSegments(q tunQueue, seg segmenter, header bool) bool {
	var err error
	buf := newBuffer(hello.MaxPayload)
	defer buf.free()
	for seg.countLeft() > 0 {
		n := seg.writeNext(buf.data[headroom:])
		out := buf.data[headroom : headroom+n]
		if header {
			clear(buf.data[headroom-vnetSize : headroom])
			out = buf.data[headroom-vnetSize : headroom+n]
		}
		_, e := q.Write(out)
		err = errors.Join(err, e)
	}
	return err == nil
}
