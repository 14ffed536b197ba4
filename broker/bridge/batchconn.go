package bridge

// The connection beneath TLS. TLS writes each record of at most 16 KiB by itself; what leaves here in one
// system call is all records of a batch: on the way to the peer, what is sent together
// stays together, and each hop works on 64 KiB instead of 16.

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// How much the kernel may hold that it has not sent yet (TCP_NOTSENT_LOWAT): what the path takes in unsentTime, within
// bounds. The rest waits in our queue, where a ping can overtake it.
const (
	unsentTime     = 5 * time.Millisecond
	minUnsent      = 4 << 10
	maxUnsent      = 128 << 10
	unsentInterval = 100 * time.Millisecond // the rate of a path is looked at so often
)

// batchConn passes writes on, until start. From then on they wait for flush.
type batchConn struct {
	net.Conn
	raw syscall.RawConn // nil: not a socket; flush waits then

	mu          sync.Mutex // TLS writes by itself, too: alerts and key updates
	batching    bool
	batch       *[]byte       // nil: nothing waits
	sent        int           // bytes of out
	unsentLimit int           // see adapt
	measuredAt  time.Duration // when that was, in the bridge's time,
	acked       uint64        // and what had arrived
	timeout     time.Duration
	broken      error // what Write closed the connection for

	tryWrite, awaitWrite func(fd uintptr) bool // made once, so that a flush allocates nothing
	written              int
	writeErr             error

	readSocket func(fd uintptr) bool
	readInto   []byte
	readCount  int
	readErr    error
}

const (
	// batchBufferBytes is what a batch takes at most, but for segments that are mostly headers,
	batchBufferBytes = batchBytes + largeBuffer + 1024
	// and gatheredMost with them. What is beyond it is not of us: TLS answers each request for a key update.
	maxBuffered = 2*batchBufferBytes + maxHeaderBytes
)

var errKeyUpdates = errors.New("peer asks for new keys again and again, and does not read")

var batchBuffers = sync.Pool{New: func() any { return new(make([]byte, 0, batchBufferBytes)) }}

func newBatchConn(conn net.Conn, timeout time.Duration) *batchConn {
	g := &batchConn{Conn: conn, timeout: timeout, unsentLimit: maxUnsent}
	if s, ok := conn.(syscall.Conn); ok {
		g.raw, _ = s.SyscallConn()
	}
	g.readSocket = func(fd uintptr) (done bool) {
		var again bool
		g.readCount, again, g.readErr = rawRead(fd, g.readInto)
		return !again
	}
	g.tryWrite = func(fd uintptr) bool { g.writeSocket(fd); return true }
	g.awaitWrite = func(fd uintptr) bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.writeSocket(fd)
		if g.written > 0 {
			g.removeSent()
		}
		return g.written > 0 || g.writeErr != nil
	}
	return g
}

// startBatching lets writes wait for flush from now on.
func (g *batchConn) startBatching() {
	g.mu.Lock()
	g.batching = true
	g.mu.Unlock()
	if g.raw != nil {
		_ = g.raw.Control(func(fd uintptr) { g.limitUnsent(int(fd), g.unsentLimit) })
	}
}

func (g *batchConn) limitUnsent(fd, unsent int) {
	g.unsentLimit = unsent
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent)
}

// adaptUnsent fits what the kernel may hold to the rate of the path, and returns it. It is for when the kernel took no more: then
// what arrived since the last time is what the path takes.
func (g *batchConn) adaptUnsent(now time.Duration) int {
	since := now - g.measuredAt
	if g.raw == nil || since < unsentInterval {
		return g.unsentLimit
	}
	_ = g.raw.Control(func(conn uintptr) {
		fd := int(conn)
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return
		}
		arrived := info.Bytes_acked - g.acked
		g.measuredAt, g.acked = now, info.Bytes_acked
		if since > 10*unsentInterval { // it was idle, too
			return
		}
		unsent := int(min(maxUnsent, max(minUnsent, arrived*uint64(unsentTime)/uint64(since))))
		if unsent > g.unsentLimit*3/2 || unsent < g.unsentLimit*2/3 || unsent == maxUnsent && g.unsentLimit != maxUnsent {
			g.limitUnsent(fd, unsent)
		}
	})
	return g.unsentLimit
}

// A path with a round trip of less than shortPath is one of a site. What counts there is the turns that
// processes take on the processors, rather than the network.
const shortPath = 2 * time.Millisecond

// tuneShortPath tunes a connection to a short path, if the path is short: by the kernel's measure, which knows nothing of how
// busy processes are.
//
// BBR, if that is what the system uses, is replaced. It paces by timers, and holds back what it thinks is more
// than the path takes; what it is good for, loss on long ways, costs little here (throughput goes with 1/RTT).
// The flows within have a congestion control of their own.
func (g *batchConn) tuneShortPath() (short bool) {
	if g.raw == nil {
		return false
	}
	_ = g.raw.Control(func(conn uintptr) {
		fd := int(conn)
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil || time.Duration(info.Min_rtt)*time.Microsecond >= shortPath {
			return
		}
		short = true
		if name, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION); err == nil && strings.HasPrefix(name, "bbr") {
			_ = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic")
		}
	})
	return short
}

// Read is for one goroutine.
func (g *batchConn) Read(b []byte) (int, error) {
	if g.raw == nil || len(b) == 0 {
		return g.Conn.Read(b)
	}
	g.readInto = b
	err := g.raw.Read(g.readSocket)
	switch {
	case err != nil:
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.broken != nil {
			return 0, g.broken
		}
		return 0, err
	case g.readErr != nil:
		return 0, os.NewSyscallError("read", g.readErr)
	case g.readCount == 0:
		return 0, io.EOF
	}
	return g.readCount, nil
}

func (g *batchConn) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.batching {
		return g.Conn.Write(b)
	}
	if g.batch == nil {
		g.batch = batchBuffers.Get().(*[]byte)
	}
	if g.sent > 0 { // not from a batch: that begins with nothing
		*g.batch = append((*g.batch)[:0], (*g.batch)[g.sent:]...)
		g.sent = 0
	}
	if len(*g.batch)+len(b) > maxBuffered {
		g.broken = errKeyUpdates
		g.Conn.Close()
		return 0, errKeyUpdates
	}
	*g.batch = append(*g.batch, b...)
	return len(b), nil
}

// flushBatch sends what the kernel takes without waiting; done: that was all.
func (g *batchConn) flushBatch() (done bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.batch != nil {
		if g.raw == nil {
			g.SetWriteDeadline(time.Now().Add(g.timeout))
			g.written, g.writeErr = g.Conn.Write((*g.batch)[g.sent:])
		} else if err := g.raw.Write(g.tryWrite); err != nil {
			return false, err
		}
		if g.writeErr != nil {
			return false, g.writeErr
		}
		if g.written == 0 {
			return false, nil
		}
		g.removeSent()
	}
	return true, nil
}

// awaitSend waits until the kernel takes something, for the timeout at most. Nobody else flushes meanwhile.
func (g *batchConn) awaitSend() error {
	g.SetWriteDeadline(time.Now().Add(g.timeout))
	err := g.raw.Write(g.awaitWrite)
	g.SetWriteDeadline(time.Time{}) // else flush would fail later on
	if err == nil {
		err = g.writeErr
	}
	return err
}

// closeWrite tells the other end that nothing comes any more; what was sent arrives. All was flushed.
func (g *batchConn) closeWrite() {
	if c, ok := g.Conn.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite()
	}
}

// writeSocket is one system call.
func (g *batchConn) writeSocket(fd uintptr) {
	out, flags := (*g.batch)[g.sent:], uintptr(0)
	if g.unsentLimit < maxUnsent { // the kernel does not look at its limit within 64 KiB, unless they come as messages
		out, flags = out[:min(len(out), g.unsentLimit)], unix.MSG_EOR
	}
	if g.written, _, g.writeErr = rawSend(fd, out, flags); g.writeErr != nil {
		g.writeErr = os.NewSyscallError("send", g.writeErr)
	}
}

// removeSent accounts for what was sent.
func (g *batchConn) removeSent() {
	if g.sent += g.written; g.sent == len(*g.batch) {
		if cap(*g.batch) <= 2*batchBufferBytes { // it grew for segments that are mostly headers
			*g.batch = (*g.batch)[:0]
			batchBuffers.Put(g.batch)
		}
		g.batch, g.sent = nil, 0
	}
}
