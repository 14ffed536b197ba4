package bridge

// A session: one connection with a peer after the hellos. sender.go and receiver.go carry its packets.

import (
	"crypto/tls"
	"errors"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
)

// maxSpentSignals is how often the sender of the only session of a link tells that its keys are used up, until the
// session ends without another one in its place: once per sixteenth of timing.maxRecords.
const maxSpentSignals = 6

// Causes of the end of a session.
var (
	errUnencrypted = errors.New("it had no certificate, and a certificate is required now")
	errSuspended   = errors.New("waiting for the certificate")
	errStreams     = errors.New("fewer streams are configured")
	errOffloads    = errors.New("the TUN's offloads changed")
	errRenewed     = errors.New("its certificates are renewed, a new connection replaces it")
	errKeysUsedUp  = errors.New("its keys are used up, a new connection replaces it")
	errSilent      = errors.New("peer is silent")
	errStuck       = errors.New("peer does not read")
)

// session is one connection with a peer. Two goroutines belong to it: run, which receives, and serveEvents.
type session struct {
	peer       *peer
	conn       net.Conn // TLS, or raw
	raw        *batchConn
	remote     string // address of the peer's end
	accepted   bool   // else dialled
	stream     int
	instance   uint64        // of the peer's process; 0: not known
	ourFlags   uint32        // features that we announced,
	theirFlags uint32        // that the peer announced,
	flags      uint32        // and that both ends announced
	startedAt  time.Duration // in the bridge's time
	detached   atomic.Bool   // no longer a session of the peer
	authorization

	sender
	receiver

	once  sync.Once
	done  chan struct{}
	cause error // of the end; read after done
}

// newSession makes a session of a connection on which the hellos were exchanged; flags were in our hello.
func newSession(
	p *peer, conn net.Conn, raw *batchConn, accepted bool, stream int, flags uint32, h *hello.Hello,
) *session {
	s := &session{
		peer: p, conn: conn, raw: raw, remote: raw.RemoteAddr().String(), accepted: accepted, stream: stream,
		instance: h.Instance,
		ourFlags: flags, theirFlags: h.Flags, flags: h.Flags & flags,
		startedAt: p.now(), done: make(chan struct{}),
	}
	s.sender.init(s, h.Capable)
	s.receiver.session = s
	return s
}

// isUnencrypted tells whether the session is neither encrypted nor authenticated.
func (s *session) isUnencrypted() bool {
	_, secure := s.conn.(*tls.Conn)
	return !secure
}

// orderKey orders the sessions of a peer in the same way at both ends.
func (s *session) orderKey() int {
	key := s.stream << 1
	if s.accepted == s.peer.isInitiator() {
		key |= 1
	}
	return key
}

// run carries packets until the session ends. The caller has attached the session to the peer.
func (s *session) run() {
	served := make(chan struct{})
	go func() {
		defer close(served)
		s.serveEvents()
	}()
	s.close(s.readFrames())
	<-served
}

// close ends the session; the cause of the first call counts. It does not wait for the peer: the end of TLS would.
func (s *session) close(cause error) {
	s.once.Do(func() {
		s.cause = cause
		close(s.done)
		s.raw.Close()
	})
}

// hasEnded tells whether close was called.
func (s *session) hasEnded() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// serveEvents sends pings, and does the work of the sender that has to wait, until the end of the session.
func (s *session) serveEvents() {
	var ping <-chan time.Time
	if s.flags&hello.FlagKeepalive != 0 {
		t := time.NewTicker(s.peer.timing.ping)
		defer t.Stop()
		ping = t.C
	}
	check := time.NewTimer(s.peer.timing.recheck)
	defer check.Stop()
	spent := 0
	s.kickSender()
	for {
		select {
		case <-s.done:
			return
		case <-ping:
			s.due.ping.Store(true)
			s.kickSender()
		case <-check.C:
			s.checkAuthorization(time.Now())
			check.Reset(s.peer.timing.recheck)
		case <-s.spentSignal:
			spent++
			s.peer.retireSession(s, errKeysUsedUp, spent > maxSpentSignals)
		case <-s.turn:
			s.sendLoop()
		case <-s.blockedSignal:
			if err := s.awaitWritable(); err != nil {
				s.close(err)
				return
			}
		}
	}
}

// awaitWritable waits until the kernel accepts bytes again. Meanwhile no goroutine sends: see sender.blocked.
func (s *session) awaitWritable() error {
	err := s.raw.awaitSend()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = errStuck
	}
	if err != nil {
		return err
	}
	s.batchLimit = min(maxBatchBytes, s.raw.adaptUnsent(s.peer.now()))
	s.writable.Store(true)
	s.kickSender()
	return nil
}

// firstRenewal returns the number of TLS records after which a session is replaced. It differs between sessions, so
// that they are not replaced at the same time.
func (s *session) firstRenewal() int64 {
	if s.isUnencrypted() {
		return math.MaxInt64
	}
	records := s.peer.timing.maxRecords
	return records/4*3 + rand.Int64N(records/4)
}
