package zone

// Queries by UDP to the DNS service of a cluster. Many queries share a socket, and one goroutine reads the replies for
// all of them: a socket, a goroutine and deadlines for each query cost as much as all the rest of it.
//
// Who does not see the packets must not be able to answer in place of the service. So the socket takes datagrams from
// the address of the service only, its port is random and another one every few seconds, the ID of each query is
// random, and a reply has to repeat the question, too. Nor does a late reply answer another query that has got its ID.

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// A socket takes queries for socketAge. After another tryTimeout none of them waits any more, and it closes.
	socketAge = 2 * time.Second

	maxDatagram = 4096 // of a reply

	headerSize = 12 // of a message
)

// datagramClient sends queries to a DNS service. It needs no end: its sockets close themselves.
type datagramClient struct {
	service netip.AddrPort
	lost    <-chan struct{} // closed when no reply can come any more

	mu     sync.Mutex    // guards all below, and all waitingQueries
	socket *sharedSocket // that takes queries; nil: there is none
	ids    *bufio.Reader // random
}

// sharedSocket is a connected socket with a port of its own.
type sharedSocket struct {
	net.Conn
	closesAt time.Time
	waiting  map[uint16]*waitingQuery // by ID
}

// waitingQuery is a query without a reply yet.
type waitingQuery struct {
	question []byte              // as it was sent
	result   chan datagramResult // with room for one: who takes the query out of the socket's map sends
	misfit   bool                // there was a reply to another question
}

type datagramResult struct {
	reply []byte
	err   error
}

// Failures of an exchange.
var (
	errLost    = errors.New("the link is lost")
	errMisfits = errors.New("answer to another question")
)

func newDatagramClient(service netip.AddrPort, lost <-chan struct{}) *datagramClient {
	return &datagramClient{service: service, lost: lost, ids: bufio.NewReader(rand.Reader)}
}

// exchange gives the query, which has one question, an ID, sends it, and waits for the reply, for tryTimeout at most.
// What is longer than maxDatagram is cut. The error is that of the socket, such as ECONNREFUSED,
// os.ErrDeadlineExceeded, errMisfits, or errLost.
func (c *datagramClient) exchange(query []byte) ([]byte, error) {
	w := &waitingQuery{question: questionOfWire(query), result: make(chan datagramResult, 1)}
	s, id, err := c.addWaiting(w)
	if err != nil {
		return nil, err
	}
	binary.BigEndian.PutUint16(query, id)
	// That a queue of this node has no room is the one error that means this query only. It is lost, as others are.
	if _, err := s.Write(query); err != nil && !errors.Is(err, unix.ENOBUFS) {
		c.failSocket(s, err) // maybe the error of an earlier query
	}
	timeout := time.NewTimer(tryTimeout)
	defer timeout.Stop()
	select {
	case r := <-w.result:
		return r.reply, r.err
	case <-c.lost:
		err = errLost
	case <-timeout.C:
		err = os.ErrDeadlineExceeded
	}
	return c.giveUp(s, id, w, err)
}

// addWaiting picks socket and ID for a query.
func (c *datagramClient) addWaiting(w *waitingQuery) (s *sharedSocket, id uint16, err error) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.socket == nil || c.socket.closesAt.Sub(now) < tryTimeout {
		if c.socket, err = c.openSocket(); err != nil {
			return nil, 0, err
		}
	}
	s = c.socket
	for {
		var b [2]byte
		if _, err := io.ReadFull(c.ids, b[:]); err != nil {
			return nil, 0, err
		}
		id = binary.BigEndian.Uint16(b[:])
		if s.waiting[id] == nil { // there are maxWaiting at most
			s.waiting[id] = w
			return s, id, nil
		}
	}
}

// openSocket opens a socket and starts its reader.
func (c *datagramClient) openSocket() (*sharedSocket, error) {
	d := net.Dialer{Control: setOptions}
	conn, err := d.Dial("udp", c.service.String())
	if err != nil {
		return nil, err
	}
	s := &sharedSocket{conn, time.Now().Add(socketAge + tryTimeout), map[uint16]*waitingQuery{}}
	conn.SetDeadline(s.closesAt)
	go c.readReplies(s)
	return s, nil
}

// setOptions makes the kernel report that host or network are unreachable, as it does for a port: the queries then fail
// at once. It makes room for maxWaiting queries and their replies, as far as the kernel allows: else a slow queue on
// the way out would hold up all who send. No option is vital.
func setOptions(network, _ string, conn syscall.RawConn) error {
	level, option := unix.IPPROTO_IP, unix.IP_RECVERR
	if network == "udp6" {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_RECVERR
	}
	return conn.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), level, option, 1)
		makeRoom(int(fd), unix.SO_SNDBUFFORCE, unix.SO_SNDBUF)
		makeRoom(int(fd), unix.SO_RCVBUFFORCE, unix.SO_RCVBUF)
	})
}

// makeRoom sets the size of a buffer; without the capability for the first option, as far as the second one goes.
func makeRoom(fd, force, option int) {
	const size = maxWaiting << 10
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, size)
	}
}

// readReplies hands replies over until the socket fails.
func (c *datagramClient) readReplies(s *sharedSocket) {
	datagram := make([]byte, maxDatagram+1) // one byte more tells that a datagram is longer
	for {
		n, err := s.Read(datagram)
		if err != nil {
			c.failSocket(s, err)
			return
		}
		c.handOver(s, datagram[:n])
	}
}

// handOver gives a reply to the query that waits for it. It ignores all else that comes.
func (c *datagramClient) handOver(s *sharedSocket, datagram []byte) {
	if len(datagram) < headerSize || !isReply(datagram) {
		return
	}
	id := binary.BigEndian.Uint16(datagram)
	c.mu.Lock()
	defer c.mu.Unlock()
	w := s.waiting[id]
	switch {
	case w == nil:
	case repeatsQuestion(datagram, w.question):
		delete(s.waiting, id)
		w.result <- datagramResult{reply: append([]byte(nil), datagram...)}
	default:
		w.misfit = true
	}
}

// failSocket closes a socket: all queries that wait fail.
func (c *datagramClient) failSocket(s *sharedSocket, err error) {
	defer s.Close() // its reader fails then, and must find nothing to do
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retireSocket(s)
	for id, w := range s.waiting {
		delete(s.waiting, id)
		w.result <- datagramResult{err: err}
	}
}

// retireSocket makes the next query take another socket. The caller has locked c.mu.
func (c *datagramClient) retireSocket(s *sharedSocket) {
	if c.socket == s {
		c.socket = nil
	}
}

// giveUp ends the wait of a query with an error, unless its result has just come. The next try takes another port: on
// the way, something may have forgotten what comes back to this one.
func (c *datagramClient) giveUp(s *sharedSocket, id uint16, w *waitingQuery, err error) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.waiting[id] != w {
		r := <-w.result
		return r.reply, r.err
	}
	delete(s.waiting, id)
	c.retireSocket(s)
	if w.misfit {
		return nil, errMisfits
	}
	return nil, err
}

// isReply looks at the header of a message.
func isReply(message []byte) bool { return message[2]&0x80 != 0 }

// questionOfWire is the only question of a message that has a valid one.
func questionOfWire(message []byte) []byte {
	end := headerSize
	for message[end] != 0 {
		end += 1 + int(message[end])
	}
	return message[headerSize : end+1+4] // type and class
}

// repeatsQuestion tells whether a message has the question, its name in any spelling, and no other one. A server that
// does not understand the query may leave the question out; to leave it to the reader saves the wait.
func repeatsQuestion(message, question []byte) bool {
	count, rest := binary.BigEndian.Uint16(message[4:]), message[headerSize:]
	if count == 0 {
		return true
	}
	if count != 1 || len(rest) < len(question) {
		return false
	}
	nameSize := len(question) - 4 // the lengths of labels are below the letters
	return equalFold(rest[:nameSize], question[:nameSize]) &&
		bytes.Equal(rest[nameSize:len(question)], question[nameSize:])
}
