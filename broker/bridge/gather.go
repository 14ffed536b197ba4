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
	unsentTime  = 5 * time.Millisecond
	unsentLeast = 4 << 10
	unsentMost  = 128 << 10
	unsentEvery = 100 * time.Millisecond // the rate of a path is looked at so often
)

// gather passes writes on, until start. From then on they wait for flush.
type gather struct {
	net.Conn
	raw syscall.RawConn // nil: not a socket; flush waits then

	mu      sync.Mutex // TLS writes by itself, too: alerts and key updates
	waits   bool
	out     *[]byte       // nil: nothing waits
	sent    int           // bytes of out
	unsent  int           // see adapt
	looked  time.Duration // when that was, in the bridge's time,
	acked   uint64        // and what had arrived
	timeout time.Duration
	broken  error // what Write closed the connection for

	try, wait func(fd uintptr) bool // made once, so that a flush allocates nothing
	n         int
	err       error

	read    func(fd uintptr) bool
	into    []byte
	got     int
	readErr error
}

const (
	// gatheredBytes is what a batch takes at most, but for segments that are mostly headers,
	gatheredBytes = batchBytes + largeBuffer + 1024
	// and gatheredMost with them. What is beyond it is not of us: TLS answers each request for a key update.
	gatheredMost = 2*gatheredBytes + headersMost
)

var errFlood = errors.New("peer asks for new keys again and again, and does not read")

var gathered = sync.Pool{New: func() any { return new(make([]byte, 0, gatheredBytes)) }}

func newGather(conn net.Conn, timeout time.Duration) *gather {
	g := &gather{Conn: conn, timeout: timeout, unsent: unsentMost}
	if s, ok := conn.(syscall.Conn); ok {
		g.raw, _ = s.SyscallConn()
	}
	g.read = func(fd uintptr) (done bool) {
		var again bool
		g.got, again, g.readErr = rawRead(fd, g.into)
		return !again
	}
	g.try = func(fd uintptr) bool { g.write(fd); return true }
	g.wait = func(fd uintptr) bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.write(fd)
		if g.n > 0 {
			g.took()
		}
		return g.n > 0 || g.err != nil
	}
	return g
}

// start lets writes wait for flush from now on.
func (g *gather) start() {
	g.mu.Lock()
	g.waits = true
	g.mu.Unlock()
	if g.raw != nil {
		_ = g.raw.Control(func(fd uintptr) { g.limit(int(fd), g.unsent) })
	}
}

func (g *gather) limit(fd, unsent int) {
	g.unsent = unsent
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent)
}

// adapt fits what the kernel may hold to the rate of the path, and returns it. It is for when the kernel took no more: then
// what arrived since the last time is what the path takes.
func (g *gather) adapt(now time.Duration) int {
	since := now - g.looked
	if g.raw == nil || since < unsentEvery {
		return g.unsent
	}
	_ = g.raw.Control(func(conn uintptr) {
		fd := int(conn)
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return
		}
		arrived := info.Bytes_acked - g.acked
		g.looked, g.acked = now, info.Bytes_acked
		if since > 10*unsentEvery { // it was idle, too
			return
		}
		unsent := int(min(unsentMost, max(unsentLeast, arrived*uint64(unsentTime)/uint64(since))))
		if unsent > g.unsent*3/2 || unsent < g.unsent*2/3 || unsent == unsentMost && g.unsent != unsentMost {
			g.limit(fd, unsent)
		}
	})
	return g.unsent
}

// A path with a round trip of less than shortPath is one of a site. What counts there is the turns that
// processes take on the processors, rather than the network.
const shortPath = 2 * time.Millisecond

// shorten tunes a connection to a short path, if the path is short: by the kernel's measure, which knows nothing of how
// busy processes are.
//
// BBR, if that is what the system uses, is replaced. It paces by timers, and holds back what it thinks is more
// than the path takes; what it is good for, loss on long ways, costs little here (throughput goes with 1/RTT).
// The flows within have a congestion control of their own.
func (g *gather) shorten() (short bool) {
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
func (g *gather) Read(b []byte) (int, error) {
	if g.raw == nil || len(b) == 0 {
		return g.Conn.Read(b)
	}
	g.into = b
	err := g.raw.Read(g.read)
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
	case g.got == 0:
		return 0, io.EOF
	}
	return g.got, nil
}

func (g *gather) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.waits {
		return g.Conn.Write(b)
	}
	if g.out == nil {
		g.out = gathered.Get().(*[]byte)
	}
	if g.sent > 0 { // not from a batch: that begins with nothing
		*g.out = append((*g.out)[:0], (*g.out)[g.sent:]...)
		g.sent = 0
	}
	if len(*g.out)+len(b) > gatheredMost {
		g.broken = errFlood
		g.Conn.Close()
		return 0, errFlood
	}
	*g.out = append(*g.out, b...)
	return len(b), nil
}

// flush sends what the kernel takes without waiting; done: that was all.
func (g *gather) flush() (done bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.out != nil {
		if g.raw == nil {
			g.SetWriteDeadline(time.Now().Add(g.timeout))
			g.n, g.err = g.Conn.Write((*g.out)[g.sent:])
		} else if err := g.raw.Write(g.try); err != nil {
			return false, err
		}
		if g.err != nil {
			return false, g.err
		}
		if g.n == 0 {
			return false, nil
		}
		g.took()
	}
	return true, nil
}

// sendSome waits until the kernel takes something, for the timeout at most. Nobody else flushes meanwhile.
func (g *gather) sendSome() error {
	g.SetWriteDeadline(time.Now().Add(g.timeout))
	err := g.raw.Write(g.wait)
	g.SetWriteDeadline(time.Time{}) // else flush would fail later on
	if err == nil {
		err = g.err
	}
	return err
}

// closeWrite tells the other end that nothing comes any more; what was sent arrives. All was flushed.
func (g *gather) closeWrite() {
	if c, ok := g.Conn.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite()
	}
}

// write is one system call.
func (g *gather) write(fd uintptr) {
	out, flags := (*g.out)[g.sent:], uintptr(0)
	if g.unsent < unsentMost { // the kernel does not look at its limit within 64 KiB, unless they come as messages
		out, flags = out[:min(len(out), g.unsent)], unix.MSG_EOR
	}
	if g.n, _, g.err = rawSend(fd, out, flags); g.err != nil {
		g.err = os.NewSyscallError("send", g.err)
	}
}

// took accounts for what was sent.
func (g *gather) took() {
	if g.sent += g.n; g.sent == len(*g.out) {
		if cap(*g.out) <= 2*gatheredBytes { // it grew for segments that are mostly headers
			*g.out = (*g.out)[:0]
			gathered.Put(g.out)
		}
		g.out, g.sent = nil, 0
	}
}
