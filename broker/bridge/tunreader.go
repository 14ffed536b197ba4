package bridge

// Outbound packets: from the TUN to the session that sends them.

import (
	"net/netip"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/time/rate"

	"github.com/mandelsoft/kubelink/broker/hello"
)

// readDevice reads all queues until one of them fails.
func readDevice(dev device, f *iface, r *router) error {
	queues := dev.Queues()
	var readers sync.WaitGroup
	failed := make(chan error, len(queues))
	for i, q := range queues {
		readers.Go(func() { failed <- newTUNReader(i, dev.Offloads(), f, r).readTUN(q) })
	}
	err := <-failed
	for _, q := range queues { // the other readers would wait for ever
		if f, ok := q.(*tunFile); ok {
			f.Close()
		}
	}
	readers.Wait()
	return err
}

// tunReader reads one queue of the TUN. It belongs to one goroutine.
type tunReader struct {
	iface    *iface
	router   *router
	queue    int
	offloads bool
	buf      *buffer    // large, the next packet is read into it
	sessions []*session // which have packets of this reader to send
	joiner   joiner
	icmp     [vnetSize + icmpBufferSize]byte
	limiter  *rate.Limiter // of ICMP messages
}

func newTUNReader(queue int, offloads Offloads, f *iface, r *router) *tunReader {
	t := &tunReader{
		iface: f, router: r, queue: queue, offloads: offloads != 0, buf: newBuffer(hello.MaxPayload),
		limiter: newICMPLimiter(),
	}
	t.joiner.send = t.sendPacket
	return t
}

// readTUN reads until an error. It takes the packets that are there, and sends a batch to each session that has some,
// in turns; when nothing is left to be sent it waits for packets. So small packets that come in a burst share records
// and system calls, and no packet waits for another one that is not there yet.
func (r *tunReader) readTUN(q tunQueue) error {
	read := q.Read
	for {
		n, err := read(r.readRoom())
		for bytes := n; err == nil && n > 0; bytes += n {
			r.routePacket(n)
			if bytes >= maxTurnBytes {
				break
			}
			n, err = q.TryRead(r.readRoom())
		}
		r.joiner.flush()
		if err != nil {
			for _, s := range r.sessions {
				s.kickSender()
			}
			return err
		}
		if read = q.Read; r.sendBatches() {
			read = q.TryRead
			// Nothing here ever waits, and raw system calls give the processor to no other goroutine: see rawcall.go.
			runtime.Gosched()
		}
	}
}

// readRoom is the memory that the next packet is read into.
func (r *tunReader) readRoom() []byte {
	if r.offloads {
		return r.buf.data[headroom-vnetSize:]
	}
	return r.buf.data[headroom:]
}

// sendBatches sends a batch of each session. more tells that some sessions have more to send.
func (r *tunReader) sendBatches() (more bool) {
	r.sessions = slices.DeleteFunc(r.sessions, func(s *session) bool { return !s.sendBatch() })
	return len(r.sessions) > 0
}

// routePacket gives the n bytes in readRoom to the peer that they are for.
func (r *tunReader) routePacket(n int) {
	dst, ok := r.parsePacket(n)
	if !ok {
		r.router.drops.add(DropMalformed)
		return
	}
	p, _ := r.router.table.Load().routes.Lookup(dst)
	if p == nil {
		r.router.drops.add(DropNoLink)
		r.replyUnreachable(r.buf.packet())
		return
	}
	if !p.isReachable() {
		p.counters.drops.add(DropNotConnected)
		r.replyUnreachable(r.buf.packet())
		return
	}
	if p.takesUSO() && r.joiner.addPacket(p, r.buf.packet(), r.buf.vnet) {
		return
	}
	r.sendPacket(p, r.takeBuffer())
}

// sendPacket takes a packet for a peer over, and remembers the session that has to send it.
func (r *tunReader) sendPacket(p *peer, buf *buffer) {
	s := p.sendPacket(buf)
	if s != nil && !slices.Contains(r.sessions, s) {
		r.sessions = append(r.sessions, s)
	}
}

// parsePacket takes the n bytes in readRoom for the packet of the buffer, and returns its destination.
func (r *tunReader) parsePacket(n int) (dst netip.Addr, ok bool) {
	buf := r.buf
	buf.vnet = vnetHeader{}
	if r.offloads {
		if n -= vnetSize; n < 0 {
			return dst, false
		}
		buf.vnet = parseVnet(buf.data[headroom-vnetSize:])
		if buf.vnet.flags &= needsCsum; buf.vnet.flags == 0 && buf.vnet.gsoType == gsoNone {
			buf.vnet = vnetHeader{} // nothing is left to be done
		}
	}
	buf.size = n
	packet := buf.packet()
	_, dst, ok = parseAddresses(packet)
	return dst, ok && (buf.vnet == (vnetHeader{}) || buf.vnet.validateFor(packet))
}

// takeBuffer returns a buffer with the packet. A small packet is copied, so that a queue holds small buffers; a large
// one stays in its buffer.
func (r *tunReader) takeBuffer() *buffer {
	buf := r.buf
	if headroom+buf.size <= mediumBuffer {
		return copyBuffer(buf.packet(), buf.vnet)
	}
	r.buf = newBuffer(hello.MaxPayload)
	return buf
}

// replyUnreachable tells the sender of packet that its destination cannot be reached.
func (r *tunReader) replyUnreachable(packet []byte) {
	if !r.limiter.Allow() {
		return
	}
	if msg := icmpUnreachable(r.icmp[vnetSize:], packet); msg != nil {
		r.iface.writePacket(r.queue, r.icmp[:vnetSize+len(msg)], vnetHeader{})
	}
}
