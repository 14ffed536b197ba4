package bridge

// The connection beneath TLS. TLS writes each record of at most 16 KiB by itself; a batchConn sends all records of a
// batch in one system call. On the way to the peer, bytes that are sent together stay together, and each hop works on
// 64 KiB instead of 16.

import (
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxBatchBytes = 64 << 10 // packets up to this size, and one more, make a batch; fewer on slow paths

	// batchBufferBytes is the most that a batch takes, except for segments that are mostly headers,
	batchBufferBytes = maxBatchBytes + largeBuffer + 1024
	// and maxBuffered is the most with such segments. Only TLS writes beyond it: it answers each request for a key update.
	maxBuffered = 2*batchBufferBytes + maxHeaderBytes
)

var errKeyUpdates = errors.New("peer asks for new keys again and again, and does not read")

var batchBuffers = sync.Pool{New: func() any { return new(make([]byte, 0, batchBufferBytes)) }}

// batchConn passes writes on until startBatching. From then on they wait for flushBatch.
//
// One goroutine reads. One goroutine at a time has the right to send, and calls flushBatch, awaitSend, closeWrite and
// adaptUnsent: see sender. TLS calls Write at any time, for alerts and key updates.
type batchConn struct {
	net.Conn
	raw     syscall.RawConn // nil: not a socket; flushBatch waits then
	reader  *rawReader
	timeout time.Duration   // of a write
	guard   *handshakeGuard // of the goroutine that reads; nil: the TLS handshake is over

	unsent unsentLimit // of the goroutine that has the right to send

	// mu guards the fields below. System calls under it do not block.
	mu       sync.Mutex
	batching bool
	batch    *[]byte // nil: nothing waits
	sent     int     // bytes of batch that were sent
	broken   error   // reason why Write closed the connection

	tryWrite, awaitWrite func(fd uintptr) bool // made once, so that a flush allocates nothing
	written              int
	writeErr             error
}

func newBatchConn(conn net.Conn, timeout time.Duration) *batchConn {
	c := &batchConn{Conn: conn, timeout: timeout, unsent: unsentLimit{bytes: maxUnsent}}
	if s, ok := conn.(syscall.Conn); ok {
		c.raw, _ = s.SyscallConn()
	}
	if c.raw != nil {
		c.reader = newRawReader(c.raw)
	}
	c.tryWrite = func(fd uintptr) bool { c.writeSocket(fd); return true }
	c.awaitWrite = func(fd uintptr) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.writeSocket(fd)
		if c.written > 0 {
			c.removeSent()
		}
		return c.written > 0 || c.writeErr != nil
	}
	return c
}

// endGuard ends the bounds of the handshake.
func (c *batchConn) endGuard() {
	if c.guard != nil {
		c.guard.endTurn()
		c.guard = nil
	}
}

// startBatching lets writes wait for flushBatch from now on.
func (c *batchConn) startBatching() {
	c.mu.Lock()
	c.batching = true
	c.mu.Unlock()
	if c.raw != nil {
		_ = c.raw.Control(func(fd uintptr) { c.unsent.set(int(fd), c.unsent.bytes) })
	}
}

// adaptUnsent fits the bytes that the kernel may hold to the rate of the path, and returns them. The caller has waited
// for the kernel to accept more.
func (c *batchConn) adaptUnsent(now time.Duration) int {
	if c.raw != nil {
		c.unsent.adapt(c.raw, now)
	}
	return c.unsent.bytes
}

// tuneShortPath tunes the connection to a short path, if the path is short.
func (c *batchConn) tuneShortPath() (short bool) {
	return c.raw != nil && tuneShortPath(c.raw)
}

// Read is for one goroutine.
func (c *batchConn) Read(b []byte) (int, error) {
	if c.guard != nil {
		return c.guard.read(b, c.readSocket)
	}
	return c.readSocket(b)
}

func (c *batchConn) readSocket(b []byte) (int, error) {
	if c.raw == nil || len(b) == 0 {
		return c.Conn.Read(b)
	}
	n, err := c.reader.readInto(b, c.reader.wait)
	if err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.broken != nil {
			err = c.broken
		}
		return 0, err
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (c *batchConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.batching {
		return c.Conn.Write(b)
	}
	if c.batch == nil {
		c.batch = batchBuffers.Get().(*[]byte)
	}
	if c.sent > 0 { // TLS writes by itself: a batch begins with an empty buffer
		*c.batch = append((*c.batch)[:0], (*c.batch)[c.sent:]...)
		c.sent = 0
	}
	if len(*c.batch)+len(b) > maxBuffered {
		c.broken = errKeyUpdates
		c.Conn.Close()
		return 0, errKeyUpdates
	}
	*c.batch = append(*c.batch, b...)
	return len(b), nil
}

// flushBatch sends the bytes that the kernel accepts without waiting. done tells that these were all.
func (c *batchConn) flushBatch() (done bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.batch != nil {
		if c.raw == nil {
			c.SetWriteDeadline(time.Now().Add(c.timeout))
			c.written, c.writeErr = c.Conn.Write((*c.batch)[c.sent:])
		} else if err := c.raw.Write(c.tryWrite); err != nil {
			return false, err
		}
		if c.writeErr != nil {
			return false, c.writeErr
		}
		if c.written == 0 {
			return false, nil
		}
		c.removeSent()
	}
	return true, nil
}

// unsentBytes is the number of bytes that wait for the kernel.
func (c *batchConn) unsentBytes() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.batch == nil {
		return 0
	}
	return len(*c.batch) - c.sent
}

// shrinkBatch moves the bytes that wait for the kernel to memory that is just large enough, and gives the buffer of a
// batch back: many peers may be slow at once.
func (c *batchConn) shrinkBatch() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.batch == nil || cap(*c.batch) < batchBufferBytes {
		return
	}
	rest := slices.Clone((*c.batch)[c.sent:])
	c.recycleBatch()
	c.batch, c.sent = &rest, 0
}

// shrinkAfter is how long the kernel accepts nothing until shrinkBatch is worth it.
const shrinkAfter = 200 * time.Millisecond

// awaitSend waits until the kernel accepts some bytes, for the timeout at most.
func (c *batchConn) awaitSend() error {
	first := min(c.timeout, shrinkAfter)
	c.SetWriteDeadline(time.Now().Add(first))
	err := c.raw.Write(c.awaitWrite)
	if errors.Is(err, os.ErrDeadlineExceeded) && first < c.timeout {
		c.shrinkBatch()
		c.SetWriteDeadline(time.Now().Add(c.timeout - first))
		err = c.raw.Write(c.awaitWrite)
	}
	c.SetWriteDeadline(time.Time{}) // else flushBatch would fail later on
	if err == nil {
		err = c.writeErr
	}
	return err
}

// closeWrite tells the peer that no bytes follow; bytes that were sent arrive. flushBatch has sent all.
func (c *batchConn) closeWrite() {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite()
	}
}

// writeSocket is one system call. c.mu is held.
func (c *batchConn) writeSocket(fd uintptr) {
	out, flags := (*c.batch)[c.sent:], uintptr(0)
	if c.unsent.bytes < maxUnsent { // the kernel ignores its limit within 64 KiB, unless they come as messages
		out, flags = out[:min(len(out), c.unsent.bytes)], unix.MSG_EOR
	}
	if c.written, _, c.writeErr = rawSend(fd, out, flags); c.writeErr != nil {
		c.writeErr = os.NewSyscallError("send", c.writeErr)
	}
}

// removeSent removes the written bytes from the batch. c.mu is held.
func (c *batchConn) removeSent() {
	if c.sent += c.written; c.sent == len(*c.batch) {
		c.recycleBatch()
		c.batch, c.sent = nil, 0
	}
}

// recycleBatch gives the buffer of the batch back, unless it is smaller or larger than usual: it was shrunk, or it grew
// for segments that are mostly headers. c.mu is held.
func (c *batchConn) recycleBatch() {
	if n := cap(*c.batch); n >= batchBufferBytes && n <= 2*batchBufferBytes {
		*c.batch = (*c.batch)[:0]
		batchBuffers.Put(c.batch)
	}
}
