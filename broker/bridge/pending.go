package bridge

// Accepted connections before their hello has arrived. Their number is bounded so that honest peers get in while
// strangers hold or make as many connections as they like, and so that a peer with a certificate keeps out no other
// one. An address is no identity: many peers may share one behind a load balancer.

import (
	"crypto/sha256"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// As sshd's MaxStartups: with more strangers than startDropping some new ones are dropped, at random, and all of them
	// at maxStrangers. 250 peers that return at once, behind one address, find room without a drop.
	startDropping = 256
	maxStrangers  = 512
	maxMembers    = 512 // connections with a certificate, before their hello

	// A peer answers within its round trip and the time that its processor takes. One that is later than lateAfter and
	// some round trips makes room for a new one.
	lateAfter  = 500 * time.Millisecond
	lateTrips  = 3
	maxLateRTT = 500 * time.Millisecond // a stranger may pretend to be far away
)

// pendingConn is a connection before its hello has arrived. pendingConns.mu guards what is not said to be constant.
type pendingConn struct {
	conn   net.Conn       // constant
	remote netip.AddrPort // constant
	late   time.Duration  // constant: how long the peer may take for an answer, before it is late
	asked  int            // how many answers this end has asked for,
	since  time.Time      // and when it asked for the last one, but for the time that it has worked since then itself
	works  time.Time      // this end works since then; zero: it waits for the peer
}

func newPendingConn(conn net.Conn) *pendingConn {
	remote := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
	return &pendingConn{
		conn: conn, remote: netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port()),
		late: lateAfter + lateTrips*min(maxLateRTT, measureRTT(conn)),
	}
}

// pendingConns are all such connections.
type pendingConns struct {
	turns turnQueue // of TLS handshakes

	mu        sync.Mutex // guards the fields below, and those of each connection
	strangers []*pendingConn
	members   []*member // with a certificate, the oldest first
}

// nameHash stands for the names in a certificate.
type nameHash [sha256.Size]byte

func hashNames(names []string) nameHash { return sha256.Sum256([]byte(strings.Join(names, " "))) }

// member is a connection with a certificate.
type member struct {
	*pendingConn
	name nameHash // of its certificate
}

// addConn adds a connection. If there are many, it closes and returns one: the one that is late for longest, else,
// perhaps, the new one. Work that was begun is not thrown away, unless the peer is late.
func (p *pendingConns) addConn(c *pendingConn) (closed *pendingConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	c.asked, c.since = askedHello, now
	p.strangers = append(p.strangers, c)
	if len(p.strangers) <= startDropping {
		return nil
	}
	closed = p.latest(now)
	if closed == nil && p.dropsNew(c) {
		closed = c
	}
	if closed != nil {
		p.removeStranger(closed)
		closed.conn.Close()
	}
	return closed
}

// latest returns the connection of which the answer is overdue for longest; nil: none is. p.mu is held.
func (p *pendingConns) latest(now time.Time) (latest *pendingConn) {
	var most time.Duration
	for _, c := range p.strangers {
		if late := now.Sub(c.since) - c.late; c.works.IsZero() && late > most {
			latest, most = c, late
		}
	}
	return latest
}

// dropsNew decides whether the new connection c is dropped: the more strangers there are, the more likely. An address
// with a small part of all connections has a small part in the drops. p.mu is held.
func (p *pendingConns) dropsNew(c *pendingConn) bool {
	total := len(p.strangers)
	if total > maxStrangers {
		return true
	}
	same := 0
	for _, o := range p.strangers {
		if o.remote.Addr() == c.remote.Addr() {
			same++
		}
	}
	share := min(1, 2*float64(same)/float64(total))
	return rand.Float64() < share*float64(total-startDropping)/(maxStrangers-startDropping)
}

// awaitAnswer notes that this end waits for the peer: for its first bytes (askedHello), or for what follows our part of
// the handshake (askedCertificate). A peer that sends byte by byte is late all the same.
func (p *pendingConns) awaitAnswer(c *pendingConn, asked int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	switch {
	case asked > c.asked:
		c.asked, c.since = asked, now
	case !c.works.IsZero():
		c.since = c.since.Add(now.Sub(c.works))
	}
	c.works = time.Time{}
}

// startWork notes that this end works on what the peer has sent, or waits for its turn to do so.
func (p *pendingConns) startWork(c *pendingConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.works = time.Now()
}

// authenticate notes that the certificate of a connection was accepted. Of each name there are limit connections at
// most: the oldest one of the same name is closed, and returned, so that an honest peer that was cut off gets in.
func (p *pendingConns) authenticate(c *pendingConn, name nameHash, limit int) (closed *pendingConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.removeStranger(c)
	p.members = append(p.members, &member{c, name})
	var same []*member
	for _, m := range p.members {
		if m.name == name {
			same = append(same, m)
		}
	}
	switch {
	case len(same) > limit:
		closed = same[0].pendingConn
	case len(p.members) > maxMembers:
		closed = p.members[0].pendingConn
	default:
		return nil
	}
	p.removeMember(closed)
	closed.conn.Close()
	return closed
}

// removeConn removes a connection, if it is still there.
func (p *pendingConns) removeConn(c *pendingConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.removeStranger(c)
	p.removeMember(c)
}

// removeStranger and removeMember need p.mu.
func (p *pendingConns) removeStranger(c *pendingConn) {
	p.strangers = slices.DeleteFunc(p.strangers, func(o *pendingConn) bool { return o == c })
}

func (p *pendingConns) removeMember(c *pendingConn) {
	p.members = slices.DeleteFunc(p.members, func(m *member) bool { return m.pendingConn == c })
}

// maxReports is the number of certificates that unknownReports remembers.
const maxReports = 512

// unknownReports limits how often a peer without link is reported: each report causes work in the broker.
type unknownReports struct {
	mu   sync.Mutex // guards last
	last map[nameHash]time.Time
}

// allow tells whether a certificate may be reported again, an interval after the last time. When there are too many
// certificates in an interval, further ones have to wait.
func (u *unknownReports) allow(name nameHash, interval time.Duration) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := time.Now()
	if last, ok := u.last[name]; ok && now.Sub(last) < interval {
		return false
	}
	if len(u.last) >= maxReports {
		maps.DeleteFunc(u.last, func(_ nameHash, last time.Time) bool { return now.Sub(last) >= interval })
	}
	if len(u.last) >= maxReports {
		return false
	}
	if u.last == nil {
		u.last = map[nameHash]time.Time{}
	}
	u.last[name] = now
	return true
}
