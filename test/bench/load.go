package main

// This file makes load of TCP: sockets in the namespaces of pods, and flows that check their content. datagrams.go
// and requests.go make the other kinds of load.
//
// Both ends of each connection are in this process, so that it can compare byte counts without a protocol. All
// sockets block, and each has a thread of its own: Go's network poller would cost more per wake-up than the measured
// operations, and would add to the measured latency.

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/test/testbed"
)

// patience is the longest time without progress of a socket. It is far beyond the needs of a working path.
const patience = 10 * time.Second

// socket is a blocking IPv4 socket with default options, except for its timeouts.
type socket int

// openSocket makes a socket in the host's network namespace.
func openSocket(h *testbed.Host, kind int) (socket, error) {
	var fd int
	if err := h.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
		return err
	}); err != nil {
		return -1, fmt.Errorf("%s: socket: %w", h.Name, err)
	}
	s := socket(fd)
	if err := errors.Join(s.setTimeout(unix.SO_RCVTIMEO, patience), s.setTimeout(unix.SO_SNDTIMEO, patience)); err != nil {
		s.close()
		return -1, err
	}
	return s, nil
}

func (s socket) setTimeout(option int, d time.Duration) error {
	tv := unix.NsecToTimeval(d.Nanoseconds())
	return unix.SetsockoptTimeval(int(s), unix.SOL_SOCKET, option, &tv)
}

func (s socket) close() { unix.Close(int(s)) }

// dialSocket connects from the host. For datagrams it only sets the destination.
func dialSocket(h *testbed.Host, kind int, to netip.AddrPort) (socket, error) {
	s, err := openSocket(h, kind)
	if err != nil {
		return -1, err
	}
	err = retryInterrupted(func() error {
		err := unix.Connect(int(s), &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
		if err == unix.EISCONN { // the connection went on after the signal
			return nil
		}
		return err
	})
	if err != nil {
		s.close()
		return -1, fmt.Errorf("%s: connect to %s: %w", h.Name, to, err)
	}
	return s, nil
}

// listenSocket binds a socket to a port of the host; a TCP socket also listens.
func listenSocket(h *testbed.Host, kind int, port int) (socket, error) {
	s, err := openSocket(h, kind)
	if err != nil {
		return -1, err
	}
	err = unix.Bind(int(s), &unix.SockaddrInet4{Port: port})
	if err == nil && kind == unix.SOCK_STREAM {
		err = unix.Listen(int(s), 64)
	}
	if err != nil {
		s.close()
		return -1, fmt.Errorf("%s: listen at port %d: %w", h.Name, port, err)
	}
	return s, nil
}

// retryInterrupted repeats a system call after a signal: the Go runtime sends many.
func retryInterrupted(call func() error) error {
	for {
		switch err := call(); err {
		case unix.EINTR, unix.EINPROGRESS, unix.EALREADY:
		case unix.EAGAIN:
			return fmt.Errorf("no progress for %s", patience)
		default:
			return err
		}
	}
}

// read returns 0 at the end of the stream.
func (s socket) read(p []byte) (n int, err error) {
	err = retryInterrupted(func() error { n, err = unix.Read(int(s), p); return err })
	return n, err
}

func (s socket) write(p []byte) (n int, err error) {
	err = retryInterrupted(func() error { n, err = unix.Write(int(s), p); return err })
	return n, err
}

func (s socket) readFull(p []byte) error {
	for len(p) > 0 {
		n, err := s.read(p)
		if err != nil {
			return err
		}
		if n == 0 {
			return errors.New("unexpected end of stream")
		}
		p = p[n:]
	}
	return nil
}

var tokens atomic.Uint64

// connectPair makes a TCP connection and returns both of its ends.
func connectPair(client *testbed.Host, listener socket, to netip.AddrPort) (near, far socket, err error) {
	if near, err = dialSocket(client, unix.SOCK_STREAM, to); err != nil {
		return -1, -1, err
	}
	// The token shows that both ends belong to the same connection, and that no other process answered.
	var sent, got [8]byte
	binary.NativeEndian.PutUint64(sent[:], tokens.Add(1))
	if _, err = near.write(sent[:]); err == nil {
		err = retryInterrupted(func() error {
			fd, _, err := unix.Accept4(int(listener), unix.SOCK_CLOEXEC)
			far = socket(fd)
			return err
		})
	}
	if err != nil {
		near.close()
		return -1, -1, fmt.Errorf("%s: connect to %s: %w", client.Name, to, err)
	}
	err = errors.Join(far.setTimeout(unix.SO_RCVTIMEO, patience), far.setTimeout(unix.SO_SNDTIMEO, patience))
	if err == nil {
		err = far.readFull(got[:])
	}
	if err == nil && got != sent {
		err = errors.New("another connection arrived")
	}
	if err != nil {
		near.close()
		far.close()
		return -1, -1, fmt.Errorf("%s: connection to %s: %w", client.Name, to, err)
	}
	return near, far, nil
}

// blockSize is the size of a read or write. Each block of a flow starts with its number, the rest is the pattern.
const blockSize = 256 << 10

var pattern = func() []byte {
	p := make([]byte, blockSize)
	for i := 0; i < len(p); i += 8 {
		binary.NativeEndian.PutUint64(p[i:], uint64(i)*0x9e3779b97f4a7c15)
	}
	return p
}()

// flow is one direction of a TCP connection under load.
type flow struct {
	from, to       socket
	sent, received atomic.Uint64
}

func (f *flow) sendBlocks(stop *atomic.Bool) error {
	block := bytes.Clone(pattern)
	for number := uint64(0); !stop.Load(); number++ {
		binary.NativeEndian.PutUint64(block, number)
		for rest := block; len(rest) > 0; {
			n, err := f.from.write(rest)
			if err != nil {
				return fmt.Errorf("send: %w", err)
			}
			f.sent.Add(uint64(n))
			rest = rest[n:]
		}
	}
	return unix.Shutdown(int(f.from), unix.SHUT_WR)
}

func (f *flow) receiveBlocks() error {
	buffer := make([]byte, blockSize)
	for at := uint64(0); ; {
		n, err := f.to.read(buffer)
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		if n == 0 {
			return nil
		}
		if err := checkPiece(buffer[:n], at); err != nil {
			return err
		}
		at += uint64(n)
		f.received.Store(at)
	}
}

// checkPiece verifies a piece of a flow at low cost: it compares block numbers and both ends of the piece. Lost,
// doubled or reordered bytes show there.
func checkPiece(piece []byte, at uint64) error {
	const sample = 64
	verify := func(p []byte, at uint64) error {
		for len(p) > 0 {
			number, offset := at/blockSize, at%blockSize
			n := min(len(p), int(blockSize-offset))
			got := p[:n]
			if offset < 8 { // the number, or its rest
				var want [8]byte
				binary.NativeEndian.PutUint64(want[:], number)
				head := min(n, int(8-offset))
				if !bytes.Equal(got[:head], want[offset:int(offset)+head]) {
					return fmt.Errorf("wrong content at byte %d: not block %d", at, number)
				}
				got, offset = got[head:], offset+uint64(head)
			}
			if !bytes.Equal(got, pattern[offset:int(offset)+len(got)]) {
				return fmt.Errorf("wrong content at byte %d", at)
			}
			p, at = p[n:], at+uint64(n)
		}
		return nil
	}
	if err := verify(piece[:min(sample, len(piece))], at); err != nil {
		return err
	}
	if tail := max(0, len(piece)-sample); tail > 0 {
		if err := verify(piece[tail:], at+uint64(tail)); err != nil {
			return err
		}
	}
	if head := (blockSize - at%blockSize) % blockSize; head+8 <= uint64(len(piece)) {
		return verify(piece[head:head+8], at+head)
	}
	return nil
}

// direction of a transfer.
type direction string

const (
	up   direction = "up"   // client to server
	down direction = "down" // server to client
)

// flows are flows in one direction that run at the same time.
type flows []*flow

// openFlows makes the connections.
func openFlows(client *testbed.Host, listener socket, to netip.AddrPort, n int, d direction) (flows, error) {
	var all flows
	for range n {
		near, far, err := connectPair(client, listener, to)
		if err != nil {
			all.close()
			return nil, err
		}
		if d == down {
			near, far = far, near
		}
		all = append(all, &flow{from: near, to: far})
	}
	return all, nil
}

func (all flows) close() {
	for _, f := range all {
		f.from.close()
		f.to.close()
	}
}

func (all flows) receivedBytes() (n uint64) {
	for _, f := range all {
		n += f.received.Load()
	}
	return n
}

// runDuring keeps all flows busy during the warm-up and while measure runs. It checks that all bytes that were sent
// have arrived.
func (all flows) runDuring(ctx context.Context, warmUp time.Duration, measure func() error) error {
	var stop atomic.Bool
	var wg sync.WaitGroup
	errs := make([]error, 2*len(all)+1)
	failed, fail := context.WithCancel(ctx)
	defer fail()
	work := func(err *error, f func() error) {
		wg.Go(func() {
			if *err = f(); *err != nil {
				fail()
			}
		})
	}
	for i, f := range all {
		work(&errs[2*i], f.receiveBlocks)
		work(&errs[2*i+1], func() error { return f.sendBlocks(&stop) })
	}
	select {
	case <-failed.Done():
		errs[len(errs)-1] = ctx.Err()
	case <-time.After(warmUp):
		errs[len(errs)-1] = measure()
	}
	stop.Store(true)
	wg.Wait()
	for i, f := range all {
		if s, r := f.sent.Load(), f.received.Load(); s != r {
			errs = append(errs, fmt.Errorf("flow %d: %d bytes sent, %d received", i, s, r))
		} else if s == 0 {
			errs = append(errs, fmt.Errorf("flow %d: nothing sent", i))
		}
	}
	return errors.Join(errs...)
}
