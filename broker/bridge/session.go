package bridge

// A session: one connection with a peer after the hellos, and the packets on it.
//
// Outbound, packets come from the queue of the peer; the writer gathers all that wait, in one buffer
// and one Write, but waits for none. Inbound, the reader takes frames from its read buffer in place,
// filters, and writes them to the TUN from there; what goes on to another peer is copied.
//
// Buffers: the writer owns what it pops and frees it; it holds a batch buffer during a Write only.
// The reader owns its read buffer for the life of the session; no slice of it outlives a frame.

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	batchBytes = 64 << 10 // the writer gathers packets up to this size, and one more
	readBytes  = 32 << 10 // the reader starts with this; a larger frame makes it grow, once
)

var batches = sync.Pool{New: func() any { return new(make([]byte, 0, batchBytes+frameHeader+maxPayload)) }}

type session struct {
	p        *peer
	conn     net.Conn // TLS, or raw
	raw      net.Conn
	accepted bool
	instance uint64        // of the peer's process; 0: not known
	flags    uint32        // features that both ends have
	largest  int           // payload that the peer reads
	born     time.Duration // in the bridge's time

	sends  chan struct{} // closed when packets are to be sent on this session
	update chan struct{} // our announcement changed
	pongs  chan uint64   // pings to be answered
	rtt    atomic.Int64  // nanoseconds, smoothed

	done  chan struct{}
	once  sync.Once
	cause error // why it ended; read after done
}

func newSession(p *peer, conn, raw net.Conn, accepted bool, h *hello) *session {
	s := &session{
		p: p, conn: conn, raw: raw, accepted: accepted, instance: h.instance, flags: h.flags & ourFlags,
		largest: maxFormerPayload, born: p.b.now(),
		sends: make(chan struct{}), update: make(chan struct{}, 1), pongs: make(chan uint64, 1), done: make(chan struct{}),
	}
	if h.capable {
		s.largest = maxPayload
	}
	return s
}

// plain tells whether the session is neither encrypted nor authenticated.
func (s *session) plain() bool {
	_, secure := s.conn.(*tls.Conn)
	return !secure
}

// run carries packets until the session ends. The caller has attached it to the peer.
func (s *session) run() {
	written := make(chan struct{})
	go func() {
		s.close(s.write())
		close(written)
	}()
	s.close(s.read())
	<-written
}

// close ends the session; cause of the first call counts. It does not wait for the peer: TLS would.
func (s *session) close(cause error) {
	s.once.Do(func() {
		s.cause = cause
		close(s.done)
		s.raw.Close()
	})
}

var (
	errSilent = errors.New("peer is silent")
	errStuck  = errors.New("peer does not read")
)

// write sends packets, pings and pongs until an error.
func (s *session) write() error {
	var packets <-chan *buffer // nil until packets are to be sent here
	sends := s.sends
	var ping <-chan time.Time
	control := make([]byte, 0, 64)
	if s.flags&flagKeepalive != 0 {
		t := time.NewTicker(s.p.b.timing.ping)
		defer t.Stop()
		ping = t.C
		if err := s.put(s.ping(control)); err != nil { // for a round-trip time from the start
			return err
		}
	}
	for {
		var err error
		select {
		case <-s.done:
			return nil
		case <-sends:
			packets, sends = s.p.queue.packets, nil
		case buf := <-packets:
			err = s.writePackets(s.p.queue.popped(buf))
		case <-ping:
			err = s.put(s.ping(control))
		case token := <-s.pongs:
			err = s.put(appendFrame(control, framePong, binary.BigEndian.AppendUint64(nil, token)))
		case <-s.update:
			var hello []byte
			if hello, err = s.p.hello(); err == nil {
				err = s.put(hello)
			}
		}
		if err != nil {
			return err
		}
	}
}

func (s *session) ping(b []byte) []byte {
	var token [8]byte
	binary.BigEndian.PutUint64(token[:], uint64(s.p.b.now()))
	return appendFrame(b, framePing, token[:])
}

// put writes b; a peer that does not read for long ends the session.
func (s *session) put(b []byte) error {
	s.raw.SetWriteDeadline(time.Now().Add(s.p.b.timing.write))
	_, err := s.conn.Write(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = errStuck
	}
	return err
}

// writePackets sends buf and what else is queued. A single packet is sent from its buffer.
func (s *session) writePackets(buf *buffer) error {
	var (
		b       = s.p.b
		oldest  = b.now() - b.timing.stale
		batch   *[]byte
		packets uint64
		bytes   uint64
		err     error
	)
	for ; buf != nil; buf = s.p.queue.pop() {
		switch {
		case buf.queued < oldest:
			s.p.count.drops.add(DropStale)
		case buf.size > s.largest:
			s.p.count.drops.add(DropTooBig)
		default:
			packets++
			bytes += uint64(buf.size)
			if batch == nil && len(s.p.queue.packets) == 0 {
				err = s.put(buf.frame())
				buf.free()
				goto written
			}
			if batch == nil {
				batch = batches.Get().(*[]byte)
			}
			*batch = append(*batch, buf.frame()...)
		}
		buf.free()
		if batch != nil && len(*batch) >= batchBytes {
			break
		}
	}
	if batch != nil {
		err = s.put(*batch)
		*batch = (*batch)[:0]
		batches.Put(batch)
	}
written:
	if err == nil {
		s.p.count.txPackets.Add(packets)
		s.p.count.txBytes.Add(bytes)
	}
	return err
}

// read takes frames until an error. With keepalive, silence is one.
func (s *session) read() error {
	var (
		buf     = make([]byte, readBytes)
		have    = 0
		renewed time.Duration
		silence = s.p.b.timing.silence
	)
	for {
		if s.flags&flagKeepalive != 0 {
			if now := s.p.b.now(); renewed == 0 || now-renewed > silence/8 { // not for each read: it has its cost
				renewed = now
				s.raw.SetReadDeadline(time.Now().Add(silence))
			}
		}
		n, err := s.conn.Read(buf[have:])
		have += n
		rest, ferr := s.frames(buf[:have])
		if ferr != nil {
			return ferr
		}
		if len(rest) >= frameHeader && frameHeader+int(binary.BigEndian.Uint16(rest)) > len(buf) {
			buf = make([]byte, 2*(frameHeader+maxPayload))
		}
		have = copy(buf, rest)
		if err != nil && s.flags&flagKeepalive != 0 && errors.Is(err, os.ErrDeadlineExceeded) {
			return errSilent
		}
		if err != nil {
			return err
		}
	}
}

// frames handles the complete frames in b and returns the rest.
func (s *session) frames(b []byte) (rest []byte, err error) {
	var packets, bytes uint64
	for rest = b; err == nil; {
		typ, payload, next, ok := cutFrame(rest)
		if !ok {
			break
		}
		rest = next
		switch typ {
		case framePacket:
			packets++
			bytes += uint64(len(payload))
			s.p.receive(payload)
		case framePing:
			if len(payload) == 8 {
				select {
				case s.pongs <- binary.BigEndian.Uint64(payload):
				default: // the writer is busy; the next ping is soon
				}
			}
		case framePong:
			if len(payload) == 8 {
				s.measured(s.p.b.now() - time.Duration(binary.BigEndian.Uint64(payload)))
			}
		case frameHello:
			err = s.p.updated(payload)
		}
	}
	if packets > 0 {
		s.p.count.rxPackets.Add(packets)
		s.p.count.rxBytes.Add(bytes)
	}
	return rest, err
}

// measured smooths round-trip times as RFC 6298 does.
func (s *session) measured(rtt time.Duration) {
	if rtt <= 0 || rtt > time.Minute { // not an answer to a ping of ours
		return
	}
	if old := s.rtt.Load(); old != 0 {
		rtt = time.Duration(old) + (rtt-time.Duration(old))/8
	}
	s.rtt.Store(int64(rtt))
}

// receive decides on a packet from the peer: to the TUN, on to another peer, or nowhere. The packet
// is the caller's.
func (p *peer) receive(packet []byte) {
	src, dst, ok := addresses(packet)
	if !ok {
		p.count.drops.add(DropMalformed)
		return
	}
	routes := &p.b.table.Load().routes
	if owner, _ := routes.Lookup(src); owner != p {
		p.count.drops.add(DropSource)
		return
	}
	if allowed, _ := p.filter.Load().ingress.Lookup(dst); allowed {
		if !p.b.write(packet) {
			p.count.drops.add(DropTUNWrite)
		}
		return
	}
	next, _ := routes.Lookup(dst)
	switch {
	case next == nil || next == p:
		p.count.drops.add(DropDestination)
	case !decrementTTL(packet):
		p.count.drops.add(DropTTL)
	case !next.reachable():
		next.count.drops.add(DropNotConnected)
	default:
		next.send(copyBuffer(packet))
	}
}
