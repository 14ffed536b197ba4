package main

// This file makes load of datagrams. It finds the highest rate that arrives nearly complete, and measures round-trip
// times.

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sync/errgroup"
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

// echoes are round-trip times of many flows.
type echoes struct {
	times  []time.Duration // sorted; an echo without answer has the longest time
	median time.Duration   // the mean of the flows' medians
	lost   int
}

func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

const (
	never = time.Hour

	// A tunnel sorts flows by their hashes, and an echo that shares a connection with the load waits longer than one that
	// does not: so a measure has many flows.
	echoFlows = 8 // at the same time
	echoBatch = time.Second / 4

	echoPatience = time.Second // the wait for an answer
	firstEcho    = math.MaxUint64
)

// measureEchoes sends a datagram at every interval, and new flows do so for each part of the time.
func measureEchoes(client *testbed.Host, to netip.AddrPort, interval, d time.Duration) (echoes, error) {
	var flows [][]time.Duration
	count, batches := int(d/interval), max(1, int(d/echoBatch))
	for i := range batches {
		more, err := measureFlows(client, to, interval, count*(i+1)/batches-count*i/batches)
		if err != nil {
			return echoes{}, fmt.Errorf("ping: %w", err)
		}
		flows = append(flows, more...)
	}
	return joinEchoes(flows)
}

// joinEchoes joins the times of flows. The mean of the flows' medians grows evenly with the number of flows that share
// a connection with the load; the median of all echoes jumps when that is half of them.
func joinEchoes(flows [][]time.Duration) (e echoes, err error) {
	for _, times := range flows {
		slices.Sort(times)
		n := len(times)
		// Where most echoes are lost, their times are at least what the bench has waited.
		e.median += min((times[(n-1)/2]+times[n/2])/2, echoPatience) / time.Duration(len(flows))
		e.times = append(e.times, times...)
	}
	slices.Sort(e.times)
	for _, t := range e.times {
		if t == never {
			e.lost++
		}
	}
	if 2*e.lost >= len(e.times) {
		return e, fmt.Errorf("ping: %d of %d got no answer", e.lost, len(e.times))
	}
	return e, nil
}

// measureFlows sends a datagram at every interval, on one of some new flows after the other, without waiting for
// earlier answers: a slow answer must not slow down the sender. It returns the times of each flow.
func measureFlows(
	client *testbed.Host, to netip.AddrPort, interval time.Duration, count int,
) (times [][]time.Duration, err error) {
	flows := make([]*echoFlow, min(echoFlows, count))
	var opening, receiving errgroup.Group
	for i := range flows {
		n := (count - i + len(flows) - 1) / len(flows)
		flows[i] = &echoFlow{socket: -1, run: runs.Add(1), times: slices.Repeat([]time.Duration{never}, n)}
		defer func() { flows[i].close() }()
		opening.Go(func() error { return flows[i].open(client, to) })
	}
	if err := opening.Wait(); err != nil {
		return nil, err
	}
	for _, f := range flows {
		times = append(times, f.times)
		receiving.Go(f.receiveAnswers)
	}
	err = sendEchoes(flows, interval, count)
	return times, errors.Join(err, receiving.Wait())
}

// echoFlow is the echoes of one socket.
type echoFlow struct {
	socket
	run   uint64
	times []time.Duration
}

// open makes the socket and waits for a first echo, which no times have: what a new flow costs on its way (a translated
// address, for example) is paid then. A first echo may be lost, or its answer come later.
func (f *echoFlow) open(client *testbed.Host, to netip.AddrPort) (err error) {
	if f.socket, err = dialSocket(client, unix.SOCK_DGRAM, to); err != nil {
		return err
	}
	if err := f.setTimeout(unix.SO_RCVTIMEO, echoPatience); err != nil {
		return err
	}
	if err := f.sendEcho(firstEcho); err != nil {
		return err
	}
	_, _, err = f.receiveAnswer()
	return err
}

func (f *echoFlow) sendEcho(number uint64) error {
	question := make([]byte, echoSize)
	binary.NativeEndian.PutUint64(question, f.run)
	binary.NativeEndian.PutUint64(question[8:], number)
	binary.NativeEndian.PutUint64(question[16:], uint64(monotonicNow()))
	_, err := f.write(question)
	return err
}

// sendEchoes sends one datagram at every interval, on one flow after the other.
func sendEchoes(flows []*echoFlow, interval time.Duration, count int) error {
	next := monotonicNow()
	for i := range count {
		if err := flows[i%len(flows)].sendEcho(uint64(i / len(flows))); err != nil {
			return err
		}
		next += interval.Nanoseconds()
		sleepUntil(next)
	}
	return nil
}

// receiveAnswer reads an answer. Its time is never if none comes for a while.
func (f *echoFlow) receiveAnswer() (number uint64, took time.Duration, err error) {
	var buffer [2 * echoSize]byte
	n, err := unix.Read(int(f.socket), buffer[:])
	at := monotonicNow()
	switch {
	case err == unix.EINTR:
		return f.receiveAnswer()
	case err == unix.EAGAIN:
		return 0, never, nil
	case err != nil:
		return 0, 0, err
	case n != echoSize || binary.NativeEndian.Uint64(buffer[:]) != f.run:
		return 0, 0, errors.New("wrong answer")
	}
	sent := int64(binary.NativeEndian.Uint64(buffer[16:]))
	return binary.NativeEndian.Uint64(buffer[8:]), time.Duration(at - sent), nil
}

// receiveAnswers reads the answers and sets the time of each, until all are there or none comes for a while.
func (f *echoFlow) receiveAnswers() error {
	for left := len(f.times); left > 0; {
		number, took, err := f.receiveAnswer()
		switch {
		case err != nil:
			return err
		case took == never:
			return nil // the rest is lost
		case number == firstEcho: // it is late
			continue
		case number >= uint64(len(f.times)) || f.times[number] != never:
			return fmt.Errorf("answer %d of %d, or twice", number, len(f.times))
		}
		f.times[number] = took
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
