package bridge

// Outbound packets on their way from the TUN to a session, which has the rest of their way; and what is
// written to the TUN.

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"
)

// Pauses before a TUN that failed is opened again: the first one, doubled each time, and the last.
const (
	minReopenPause = 100 * time.Millisecond
	maxReopenPause = 5 * time.Second
)

// maxTurnBytes is how much is read from the TUN before some of it is sent. It is more than a batch: what
// waits shall wait in our queues, where one flow can overtake another one, and not in that of the TUN.
const maxTurnBytes = 256 << 10

// serveTUN takes packets from the TUN until the bridge is closed. A TUN that fails, as it does when
// somebody deletes it, is opened again.
func (b *Bridge) serveTUN() {
	dev, pause := *b.device.Load(), minReopenPause
	for {
		err := b.readTUN(dev)
		if !b.setDevice(noDevice{}) {
			return
		}
		if b.reopen.Swap(false) {
			b.log.Info("TUN is opened again with other offloads", "interface", b.name)
			dev.Close(true)
			pause = 0
		} else {
			b.log.Error("TUN failed, it is opened again", "interface", b.name, "error", err)
			b.failure.Store(new(fmt.Errorf("read TUN %s: %w", b.name, err)))
			b.notifyChanged()
			dev.Close(true) // else the name stays in use
		}
		for dev = nil; dev == nil; pause = min(max(2*pause, minReopenPause), maxReopenPause) {
			select {
			case <-time.After(pause):
			case <-b.ctx.Done():
				return
			}
			if dev, err = b.openDevice(); err != nil {
				dev = nil
				b.log.Warn("TUN is still missing", "error", err)
			}
		}
		if !b.setDevice(dev) {
			if err := dev.Close(b.keep); err != nil {
				b.log.Warn("TUN stays", "error", err)
			}
			return
		}
		pause = minReopenPause
		b.logDevice(dev)
		b.failure.Store(nil)
		for _, p := range b.table.Load().peers { // what was agreed on with the peer has to be what is there
			p.closeSessions(errOffloads, func(s *session) bool { return s.flags != s.theirFlags&b.featureFlags() })
		}
		b.notifyChanged()
	}
}

// readTUN reads all queues until one of them fails.
func (b *Bridge) readTUN(dev device) error {
	queues := dev.Queues()
	var readers sync.WaitGroup
	failed := make(chan error, len(queues))
	for i, q := range queues {
		readers.Go(func() { failed <- b.newTUNReader(i, dev.Offloads()).readLoop(q) })
	}
	err := <-failed
	for _, q := range queues { // the others would wait for ever
		if f, ok := q.(*tunFile); ok {
			f.Close()
		}
	}
	readers.Wait()
	return err
}

// setDevice replaces the device, unless the bridge is closed: Close takes care of the one it finds.
func (b *Bridge) setDevice(dev device) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	c := b.config.Load() // may have changed while the device was opened
	if t, ok := dev.(*kernelTUN); ok && t.noOffload != c.NoOffload {
		b.reopen.Store(true)
		t.Close(true)
	} else if err := dev.SetMTU(c.MTU); err != nil {
		b.log.Warn("MTU of the TUN", "error", err)
	}
	b.device.Store(&dev)
	if _, missing := dev.(noDevice); !missing {
		b.offloads.Store(uint32(dev.Offloads()))
	}
	return true
}

// tunReader is the state of one TUN reader.
type tunReader struct {
	*Bridge
	queue    int
	offloads bool
	buf      *buffer    // large, the next packet is read into it
	sessions []*session // that have packets of ours to be sent
	icmp     [vnetSize + 1280]byte
	limit    limiter
}

func (b *Bridge) newTUNReader(queue int, offloads Offloads) *tunReader {
	return &tunReader{
		Bridge: b, queue: queue, offloads: offloads != 0, buf: newBuffer(maxPayload),
		limit: limiter{every: icmpInterval, burst: icmpBurst},
	}
}

// readLoop reads until an error. It takes the packets that are there and sends a batch to each session that has
// some, in turns; when nothing is left to be sent it waits for packets. Small packets that come in a burst
// share records and system calls; none waits for another one that is not there yet.
func (o *tunReader) readLoop(q tunQueue) error {
	read := q.Read
	for {
		n, err := read(o.readRoom())
		for bytes := n; err == nil && n > 0; bytes += n {
			o.routePacket(n)
			if bytes >= maxTurnBytes {
				break
			}
			n, err = q.TryRead(o.readRoom())
		}
		if err != nil {
			for _, s := range o.sessions {
				s.kickSender()
			}
			return err
		}
		if read = q.Read; o.sendBatches() {
			read = q.TryRead
			runtime.Gosched() // nothing here ever waits, and raw system calls do not let others in: see raw.go
		}
	}
}

// readRoom is where the next packet is read to.
func (o *tunReader) readRoom() []byte {
	if o.offloads {
		return o.buf.data[headroom-vnetSize:]
	}
	return o.buf.data[headroom:]
}

// sendBatches sends a batch of what each session has; more: some have more.
func (o *tunReader) sendBatches() (more bool) {
	o.sessions = slices.DeleteFunc(o.sessions, func(s *session) bool { return !s.pushBatch() })
	return len(o.sessions) > 0
}

// routePacket leads the n bytes in room to the peer they are for. A small packet is copied, so that a queue
// holds small buffers; a large one goes with its buffer.
func (o *tunReader) routePacket(n int) {
	buf := o.buf
	buf.vnet = vnetHeader{}
	if o.offloads {
		if n -= vnetSize; n < 0 {
			o.drops.add(DropMalformed)
			return
		}
		buf.vnet = parseVnet(buf.data[headroom-vnetSize:])
		if buf.vnet.flags &= needsCsum; buf.vnet.flags == 0 && buf.vnet.gsoType == gsoNone {
			buf.vnet = vnetHeader{} // nothing is left to be done
		}
	}
	buf.size = n
	packet := buf.packet()
	_, dst, ok := parseAddresses(packet)
	if !ok || buf.vnet != (vnetHeader{}) && !buf.vnet.validateFor(packet) {
		o.drops.add(DropMalformed)
		return
	}
	p, _ := o.table.Load().routes.Lookup(dst)
	if p == nil {
		o.drops.add(DropNoLink)
		o.replyUnreachable(packet)
		return
	}
	if !p.isReachable() {
		p.counters.drops.add(DropNotConnected)
		o.replyUnreachable(packet)
		return
	}
	if headroom+n <= mediumBuffer {
		buf = copyBuffer(packet, buf.vnet)
	} else {
		o.buf = newBuffer(maxPayload)
	}
	s := p.sendPacket(buf)
	if s == nil {
		return
	}
	if !slices.Contains(o.sessions, s) {
		o.sessions = append(o.sessions, s)
	}
}

// replyUnreachable tells the sender of packet that its destination cannot be reached.
func (o *tunReader) replyUnreachable(packet []byte) {
	if !o.limit.allow(o.now()) {
		return
	}
	if msg := icmpUnreachable(o.icmp[vnetSize:], packet); msg != nil {
		o.writePacket(o.queue, o.icmp[:vnetSize+len(msg)], vnetHeader{})
	}
}

// writePacket writes a packet to a queue of the TUN; room for a virtio_net_hdr is before it. Where the TUN
// does not do what is left to be done on the packet, we do.
func (b *Bridge) writePacket(queue int, room []byte, vnet vnetHeader) bool {
	dev := *b.device.Load()
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
	case vnet.gsoType == gsoNone, vnet.gsoType == gsoUDP && offloads&OffloadUSO != 0, vnet.gsoType != gsoUDP && offloads != 0:
		vnet.putBytes(room)
		_, err := q.Write(room)
		return err == nil
	}
	var err error
	buf := newBuffer(maxPayload)
	defer buf.free()
	seg := vnet.splitPacket(packet)
	for seg.countLeft() > 0 {
		n := seg.writeNext(buf.data[headroom:])
		out := buf.data[headroom : headroom+n]
		if offloads != 0 {
			clear(buf.data[headroom-vnetSize : headroom])
			out = buf.data[headroom-vnetSize : headroom+n]
		}
		_, e := q.Write(out)
		err = errors.Join(err, e)
	}
	return err == nil
}
