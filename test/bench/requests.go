package main

// This file makes load of small HTTP/1.1 requests on kept-alive connections. One thread serves all connections and
// another one sends requests on all of them, with nothing but epoll: net/http costs more than a tunnel.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/test/testbed"
)

const requestConnections = 16

// Requests and answers have a fixed size. An answer repeats the number of its request.
const (
	request = "GET /0000000000000000 HTTP/1.1\r\nHost: server.default.svc\r\n" +
		"User-Agent: bench\r\nAccept: text/plain\r\n\r\n"
	answer = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 32\r\n\r\n0000000000000000 is your answer\n"
)

var (
	requestNumber = bytes.IndexByte([]byte(request), '0')
	answerNumber  = bytes.Index([]byte(answer), []byte("0000000000000000"))
)

const numberSize = 16

// messenger is an end of a connection: it reads messages of a fixed form and answers each.
type messenger struct {
	socket
	reads  []byte // the received part of a message
	form   string
	number int // offset of its number
	write  []byte
	reply  func(number []byte) (again bool, err error)
}

func newMessenger(s socket, reads string, number int, writes string) *messenger {
	return &messenger{socket: s, reads: make([]byte, 0, len(reads)), form: reads, number: number, write: []byte(writes)}
}

// sendMessage writes the message. It is smaller than any socket's buffer, and the previous one has its answer.
func (t *messenger) sendMessage() error {
	n, err := t.socket.write(t.write)
	if err == nil && n != len(t.write) {
		err = errors.New("short write")
	}
	return err
}

// readMessage reads the available bytes. again is false when this end is done.
func (t *messenger) readMessage() (again bool, err error) {
	n, err := t.read(t.reads[len(t.reads):cap(t.reads)])
	if err != nil {
		return false, err
	}
	if n == 0 {
		if len(t.reads) > 0 {
			return false, errors.New("the connection ended within a message")
		}
		return false, nil
	}
	t.reads = t.reads[:len(t.reads)+n]
	if len(t.reads) < cap(t.reads) {
		return true, nil
	}
	after := t.number + numberSize
	if string(t.reads[:t.number]) != t.form[:t.number] || string(t.reads[after:]) != t.form[after:] {
		return false, fmt.Errorf("unexpected message %q", t.reads)
	}
	again, err = t.reply(t.reads[t.number:after])
	t.reads = t.reads[:0]
	return again, err
}

// serveMessengers serves the ends until all are done.
func serveMessengers(ends []*messenger) error {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(epoll)
	for i, t := range ends {
		if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, int(t.socket),
			&unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}); err != nil {
			return err
		}
	}
	events := make([]unix.EpollEvent, len(ends))
	for left := len(ends); left > 0; {
		n, err := unix.EpollWait(epoll, events, int(patience.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("%d of %d connections are without progress for %s", left, len(ends), patience)
		}
		for _, e := range events[:n] {
			t := ends[e.Fd]
			again, err := t.readMessage()
			if err != nil {
				return err
			}
			if !again {
				if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_DEL, int(t.socket), nil); err != nil {
					return err
				}
				// The other end sees the shutdown, and is done, too.
				if err := unix.Shutdown(int(t.socket), unix.SHUT_WR); err != nil && err != unix.ENOTCONN {
					return err
				}
				left--
			}
		}
	}
	return nil
}

// requestLoad is the state of a load of requests: both ends of all connections, and the counts of both sides.
type requestLoad struct {
	asking, serving         []*messenger
	stop                    atomic.Bool
	asked, served, answered atomic.Uint64
}

// measureRequests keeps all connections busy, one request on each at a time, and returns the answers per second.
func measureRequests(
	ctx context.Context, client *testbed.Host, listener socket, to netip.AddrPort, warmUp, d time.Duration,
) (float64, error) {
	l := &requestLoad{}
	defer l.close()
	for range requestConnections {
		near, far, err := connectPair(client, listener, to)
		if err != nil {
			return 0, err
		}
		if err := l.addConnection(near, far); err != nil {
			return 0, err
		}
	}
	var wg sync.WaitGroup
	var errs [2]error
	failed, fail := context.WithCancel(ctx)
	defer fail()
	for i, ends := range [][]*messenger{l.serving, l.asking} {
		wg.Go(func() {
			if errs[i] = serveMessengers(ends); errs[i] != nil {
				fail()
			}
		})
	}
	pause := func(d time.Duration) {
		select {
		case <-failed.Done():
		case <-time.After(d):
		}
	}
	pause(warmUp)
	start, before := time.Now(), l.answered.Load()
	pause(d)
	elapsed, after := time.Since(start), l.answered.Load()
	l.stop.Store(true)
	wg.Wait()
	if err := errors.Join(errs[0], errs[1], ctx.Err()); err != nil {
		return 0, fmt.Errorf("requests: %w", err)
	}
	if q, s, a := l.asked.Load(), l.served.Load(), l.answered.Load(); q != s || s != a {
		return 0, fmt.Errorf("%d requests asked, %d served, %d answered", q, s, a)
	}
	return float64(after-before) / elapsed.Seconds(), nil
}

// addConnection adds both ends of a connection and sends the first request.
func (l *requestLoad) addConnection(near, far socket) error {
	s := newMessenger(far, request, requestNumber, answer)
	s.reply = func(number []byte) (bool, error) {
		copy(s.write[answerNumber:], number)
		l.served.Add(1)
		return true, s.sendMessage()
	}
	a := newMessenger(near, answer, answerNumber, request)
	number := uint64(0)
	next := func() error {
		number++
		l.asked.Add(1)
		digits := a.write[requestNumber : requestNumber+numberSize]
		rest := number
		for i := numberSize - 1; i >= 0; i-- {
			digits[i] = byte('0' + rest%10)
			rest /= 10
		}
		return a.sendMessage()
	}
	a.reply = func(got []byte) (bool, error) {
		if !bytes.Equal(got, a.write[requestNumber:requestNumber+numberSize]) {
			return false, fmt.Errorf("answer %q to request %s", got, strconv.FormatUint(number, 10))
		}
		l.answered.Add(1)
		if l.stop.Load() {
			return false, nil
		}
		return true, next()
	}
	l.serving, l.asking = append(l.serving, s), append(l.asking, a)
	for _, s := range []socket{near, far} {
		if err := unix.SetsockoptInt(int(s), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil { // like HTTP programs
			return err
		}
	}
	return next()
}

func (l *requestLoad) close() {
	for _, t := range append(l.asking, l.serving...) {
		t.close()
	}
}
