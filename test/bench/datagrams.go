package main

// This file makes load of datagrams. It finds the highest rate that arrives nearly complete, and measures round-trip
// times.

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/test/testbed"
)

const (
	datagramSize = 1200
	lossAllowed  = 0.01
	batchSize    = 64 // datagrams per system call at most

	// A datagram takes twice its size in a socket's buffer: the default holds less than a hundred. A loss in the load
	// generator would say nothing about the path.
	datagramBuffer = 16 << 20
)

// batch is the datagrams of one system call.
type batch struct {
	headers []unix.Mmsghdr
	iovecs  []unix.Iovec
	data    [][]byte
}

func newBatch(to *unix.RawSockaddrInet4) *batch {
	b := &batch{headers: make([]unix.Mmsghdr, batchSize), iovecs: make([]unix.Iovec, batchSize)}
	for i := range b.headers {
		data := make([]byte, datagramSize+1) // one byte more shows a datagram that is too long
		b.data = append(b.data, data)
		b.iovecs[i].Base = &data[0]
		b.iovecs[i].SetLen(len(data))
		h := &b.headers[i].Hdr
		h.Iov = &b.iovecs[i]
		h.SetIovlen(1)
		if to != nil {
			h.Name, h.Namelen = (*byte)(unsafe.Pointer(to)), unix.SizeofSockaddrInet4
		}
	}
	return b
}

// callKernel calls sendmmsg(2) or recvmmsg(2).
func (b *batch) callKernel(trap uintptr, s socket, n int, flags uintptr) (int, error) {
	r, _, errno := unix.Syscall6(trap, uintptr(s), uintptr(unsafe.Pointer(&b.headers[0])), uintptr(n), flags, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}

var runs atomic.Uint64 // number of a run: it marks late datagrams of another run

// datagrams is a path for datagrams.
type datagrams struct {
	from, to socket
	dest     *unix.RawSockaddrInet4 // destination of an unconnected socket
	near     socket
}

// openDatagrams makes the client's socket. For a download the server learns the client's address as it sees it.
func openDatagrams(client *testbed.Host, server socket, to netip.AddrPort, d direction) (*datagrams, error) {
	near, err := dialSocket(client, unix.SOCK_DGRAM, to)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*datagrams, error) {
		near.close()
		return nil, fmt.Errorf("%s: datagrams to %s: %w", client.Name, to, err)
	}
	for _, s := range []socket{near, server} {
		if err := errors.Join(
			unix.SetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, datagramBuffer),
			s.setTimeout(unix.SO_RCVTIMEO, 100*time.Millisecond),
		); err != nil {
			return fail(err)
		}
	}
	w := &datagrams{from: near, to: server, near: near}
	if d == up {
		return w, nil
	}
	w.from, w.to = server, near
	var token, got [8]byte
	binary.NativeEndian.PutUint64(token[:], runs.Add(1))
	buffer := make([]byte, datagramSize)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if _, err := near.write(token[:]); err != nil {
			return fail(err)
		}
		n, from, err := unix.Recvfrom(int(server), buffer, 0)
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		if err != nil {
			return fail(err)
		}
		copy(got[:], buffer[:n])
		if a, ok := from.(*unix.SockaddrInet4); ok && got == token {
			w.dest = &unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: a.Addr}
			binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&w.dest.Port))[:], uint16(a.Port))
			return w, nil
		}
	}
	return fail(errors.New("the server saw nothing"))
}

func (w *datagrams) close() { w.near.close() }

// attempt is the result of a rate.
type attempt struct {
	sent, received uint64
	rate           float64 // per second, as the sender reached it
}

func (a attempt) lossShare() float64 { return 1 - float64(a.received)/float64(max(1, a.sent)) }

// tryRate sends at a rate for a time and counts the datagrams that arrive. 0 is as fast as possible.
func (w *datagrams) tryRate(rate float64, d time.Duration) (attempt, error) {
	run := runs.Add(1)
	var a attempt
	var sent atomic.Bool
	done := make(chan error, 1)
	go func() {
		var err error
		a.received, err = w.receiveDatagrams(run, &sent)
		done <- err
	}()
	err := w.sendDatagrams(run, rate, d, &a)
	sent.Store(true)
	if err := errors.Join(err, <-done); err != nil {
		return a, err
	}
	if a.received > a.sent {
		return a, fmt.Errorf("%d datagrams sent, %d received", a.sent, a.received)
	}
	return a, nil
}

func (w *datagrams) sendDatagrams(run uint64, rate float64, d time.Duration, a *attempt) error {
	b := newBatch(w.dest)
	for i := range b.iovecs {
		b.iovecs[i].SetLen(datagramSize)
		binary.NativeEndian.PutUint64(b.data[i], run)
	}
	start := time.Now()
	// The sender does not make up for a delay with a long burst: datagrams would be lost in queues that the rate alone
	// does not fill.
	const burst = 2 * batchSize
	from, already := start, 0.0 // the schedule: its start, and the number of datagrams due before
	next := monotonicNow()
	elapsed := time.Duration(0)
	for ; elapsed < d; elapsed = time.Since(start) {
		due := uint64(batchSize)
		if rate > 0 {
			late := already + time.Since(from).Seconds()*rate - float64(a.sent)
			if late > burst {
				from, already, late = time.Now(), float64(a.sent)+burst, burst
			}
			due = uint64(max(0, late))
		}
		if due == 0 {
			// The kernel sleeps more precisely than the Go runtime, which sleeps for milliseconds.
			next = max(next+200_000, monotonicNow())
			sleepUntil(next)
			continue
		}
		n := int(min(due, batchSize))
		for i := range n {
			number := a.sent + uint64(i)
			binary.NativeEndian.PutUint64(b.data[i][8:], number)
			binary.NativeEndian.PutUint64(b.data[i][datagramSize-8:], number^run)
		}
		n, err := b.callKernel(unix.SYS_SENDMMSG, w.from, n, 0)
		switch {
		case err == unix.EINTR:
		case err == unix.ENOBUFS: // the queue of the own device is full: the rate is too high
			a.sent++
		case err != nil:
			return fmt.Errorf("send datagrams: %w", err)
		default:
			a.sent += uint64(n)
		}
	}
	a.rate = float64(a.sent) / elapsed.Seconds()
	return nil
}

// receiveDatagrams counts the datagrams of a run until the sender is done and no more arrive.
func (w *datagrams) receiveDatagrams(run uint64, sent *atomic.Bool) (count uint64, err error) {
	b := newBatch(nil)
	for {
		over := sent.Load()
		n, err := b.callKernel(unix.SYS_RECVMMSG, w.to, batchSize, unix.MSG_WAITFORONE)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN && over:
			return count, nil
		case err == unix.EAGAIN:
			continue
		case err != nil:
			return count, fmt.Errorf("receive datagrams: %w", err)
		}
		for i := range n {
			data := b.data[i]
			if binary.NativeEndian.Uint64(data) != run {
				continue
			}
			if b.headers[i].Len != datagramSize {
				return count, fmt.Errorf("a datagram of %d bytes arrived with %d", datagramSize, b.headers[i].Len)
			}
			if binary.NativeEndian.Uint64(data[8:])^run != binary.NativeEndian.Uint64(data[datagramSize-8:]) {
				return count, errors.New("a datagram with wrong content arrived")
			}
			count++
		}
	}
}

// findHighestRate searches for the highest rate with less loss than allowed. It starts from a guess and returns the
// rate that arrived, per second.
func (w *datagrams) findHighestRate(
	ctx context.Context, guess float64, d time.Duration, refinements, attempts int,
) (float64, error) {
	if guess == 0 {
		a, err := w.tryRate(0, d/2)
		if err != nil {
			return 0, err
		}
		guess = max(1000, float64(a.received)/(d/2).Seconds())
	}
	best := 0.0
	good := func(rate float64) (bool, error) {
		for range attempts {
			if err := ctx.Err(); err != nil {
				return false, err
			}
			a, err := w.tryRate(rate, d)
			if err != nil {
				return false, err
			}
			if a.lossShare() < lossAllowed {
				best = max(best, a.rate*(1-a.lossShare()))
				return true, nil
			}
		}
		return false, nil
	}
	const step = 1.25
	low, high := 0.0, 0.0
	for rate := guess; low == 0 || high == 0; {
		before := best
		ok, err := good(rate)
		switch {
		case err != nil:
			return 0, err
		case !ok:
			high, rate = rate, rate/step
		case best < 1.03*before: // the sender cannot send faster, or the kernel does not let it
			return best, nil
		default:
			low, rate = rate, rate*step
		}
		if rate < 100 {
			return 0, errors.New("datagrams are lost at every rate")
		}
	}
	for range refinements {
		middle := (low + high) / 2
		ok, err := good(middle)
		switch {
		case err != nil:
			return 0, err
		case ok:
			low = middle
		default:
			high = middle
		}
	}
	return best, nil
}

const echoSize = 64

// serveEcho returns every datagram to its sender, until the socket is closed at the end of the process.
func serveEcho(s socket) {
	buffer := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(int(s), buffer, 0)
		if err == unix.EBADF {
			return
		}
		if err == nil {
			unix.Sendto(int(s), buffer[:n], 0, from) // the client counts a lost echo
		}
	}
}

// echoes are round-trip times.
type echoes struct {
	times []time.Duration // sorted; an echo without answer has the longest time
	lost  int
}

func (e echoes) quantile(q float64) time.Duration { return quantile(e.times, q) }

func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

const never = time.Hour

// echoFlows is the number of flows that echoes belong to. A tunnel sorts flows by their hashes, and an echo that shares
// a connection with the load waits longer than one that does not: with a single flow, chance would choose the median.
const echoFlows = 8

// measureEchoes sends a datagram at every interval, of one flow after the other, without waiting for earlier answers: a
// slow answer must not slow down the sender.
func measureEchoes(client *testbed.Host, to netip.AddrPort, interval, d time.Duration) (echoes, error) {
	var sockets []socket
	for range echoFlows {
		s, err := dialSocket(client, unix.SOCK_DGRAM, to)
		if err != nil {
			return echoes{}, err
		}
		defer s.close()
		if err := s.setTimeout(unix.SO_RCVTIMEO, time.Second); err != nil {
			return echoes{}, err
		}
		sockets = append(sockets, s)
	}
	run, times := runs.Add(1), slices.Repeat([]time.Duration{never}, int(d/interval))
	var wg sync.WaitGroup
	errs := make([]error, echoFlows+1)
	for i, s := range sockets {
		wg.Go(func() { errs[i] = receiveEchoes(s, run, times, i) })
	}
	errs[echoFlows] = sendEchoes(sockets, run, interval, len(times))
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return echoes{}, fmt.Errorf("ping: %w", err)
	}
	slices.Sort(times)
	e := echoes{times: times}
	for _, t := range times {
		if t == never {
			e.lost++
		}
	}
	if 2*e.lost >= len(times) {
		return e, fmt.Errorf("ping: %d of %d got no answer", e.lost, len(times))
	}
	return e, nil
}

// sendEchoes sends one datagram at every interval, on one socket after the other.
func sendEchoes(sockets []socket, run uint64, interval time.Duration, count int) error {
	question := make([]byte, echoSize)
	binary.NativeEndian.PutUint64(question, run)
	next := monotonicNow()
	for i := range count {
		binary.NativeEndian.PutUint64(question[8:], uint64(i))
		binary.NativeEndian.PutUint64(question[16:], uint64(monotonicNow()))
		if _, err := sockets[i%len(sockets)].write(question); err != nil {
			return err
		}
		next += interval.Nanoseconds()
		sleepUntil(next)
	}
	return nil
}

// receiveEchoes reads the answers of a flow and sets the time of each, until all are there or none comes for a second.
func receiveEchoes(s socket, run uint64, times []time.Duration, flow int) error {
	buffer := make([]byte, 2048)
	for left := (len(times) - flow + echoFlows - 1) / echoFlows; left > 0; {
		n, err := unix.Read(int(s), buffer)
		at := monotonicNow()
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return nil // the rest is lost
		case err != nil:
			return err
		case n != echoSize || binary.NativeEndian.Uint64(buffer) != run:
			return errors.New("wrong answer")
		}
		number := binary.NativeEndian.Uint64(buffer[8:])
		if number >= uint64(len(times)) || number%echoFlows != uint64(flow) || times[number] != never {
			return fmt.Errorf("answer %d of %d, or twice, or of another flow", number, len(times))
		}
		times[number] = time.Duration(at - int64(binary.NativeEndian.Uint64(buffer[16:])))
		left--
	}
	return nil
}

// monotonicNow returns the monotonic clock in nanoseconds.
func monotonicNow() int64 {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}

func sleepUntil(t int64) {
	ts := unix.NsecToTimespec(t)
	for unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &ts, nil) == unix.EINTR {
	}
}
