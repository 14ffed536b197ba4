package bridge

// The bounds of one TLS handshake: the bytes that the peer sends, and its turns on the processors.

import (
	"fmt"
	"runtime"
	"time"

	"github.com/mandelsoft/kubelink/broker/link"
)

// maxHandshakeBytes is what a peer sends until it is authenticated: its certificates, and the rest of the handshake.
const maxHandshakeBytes = link.MaxCertBytes + 8<<10

var errHandshakeTooLong = fmt.Errorf("more than %d bytes before the end of the handshake: send at most %d "+
	"certificates with %d bytes, and no root certificate", maxHandshakeBytes, link.MaxCerts, link.MaxCertBytes)

// turnQueue gives turns on the processors to the handshakes of accepted connections, in the order in which they ask. A
// handshake that waits for its peer has none. Each value is a turn, and says from when on it is free: a turn rests for
// as long as it was used, up to maxRest. So handshakes take about a quarter of the processors, and packets have the
// rest, for all that strangers do.
type turnQueue chan time.Time

// maxRest is more than any part of a handshake takes on a processor. On a busy machine a turn may last for longer.
const maxRest = 5 * time.Millisecond

func newTurnQueue() turnQueue {
	n := max(1, runtime.GOMAXPROCS(0)/2)
	q := make(turnQueue, n)
	for range n {
		q <- time.Time{}
	}
	return q
}

// takeTurn waits for a turn, and returns when it began.
func (q turnQueue) takeTurn() time.Time {
	time.Sleep(time.Until(<-q))
	return time.Now()
}

func (q turnQueue) endTurn(began time.Time) {
	now := time.Now()
	q <- now.Add(min(now.Sub(began), maxRest))
}

// handshakeGuard bounds a handshake. It belongs to the goroutine of the handshake.
type handshakeGuard struct {
	left    int           // bytes that the peer may still send
	pending *pendingConns // nil: this end has dialled, it needs no turn
	conn    *pendingConn  // in pending
	asked   int           // for what it waits: askedHello, askedCertificate
	began   time.Time     // of the turn; zero: has none
}

// What a handshake waits for.
const (
	askedHello       = 1 // the first bytes
	askedCertificate = 2 // the answer to our part
)

// newGuard is for an accepted connection.
func newGuard(p *pendingConns, c *pendingConn) *handshakeGuard {
	return &handshakeGuard{left: maxHandshakeBytes, pending: p, conn: c, asked: askedHello}
}

// read reads from the connection, without a turn while it waits.
func (g *handshakeGuard) read(b []byte, read func([]byte) (int, error)) (int, error) {
	if g.left == 0 {
		return 0, errHandshakeTooLong
	}
	if g.pending == nil {
		n, err := read(b[:min(len(b), g.left)])
		g.left -= n
		return n, err
	}
	g.endTurn()
	g.pending.awaitAnswer(g.conn, g.asked)
	n, err := read(b[:min(len(b), g.left)])
	g.left -= n
	g.pending.startWork(g.conn)
	g.began = g.pending.turns.takeTurn()
	return n, err
}

// endTurn gives the turn back, if the handshake has one.
func (g *handshakeGuard) endTurn() {
	if !g.began.IsZero() {
		g.pending.turns.endTurn(g.began)
		g.began = time.Time{}
	}
}
