package zone

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// packQuery is a query in wire form.
func packQuery(t testing.TB, name string) []byte {
	t.Helper()
	query := new(dns.Msg).SetQuestion(name, dns.TypeA)
	query.Id = 0
	wire, err := query.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return wire
}

// packReply is a reply to a query: the same with another bit.
func packReply(query []byte) []byte {
	reply := bytes.Clone(query)
	reply[2] |= 0x80
	return reply
}

// serveDatagrams runs a UDP server on loopback that calls f for each query.
func serveDatagrams(t testing.TB, f func(conn *net.UDPConn, query []byte, from netip.AddrPort)) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	var ended sync.WaitGroup
	ended.Go(func() {
		buffer := make([]byte, maxDatagram)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buffer)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil { // a client that has closed its socket makes others
				f(conn, bytes.Clone(buffer[:n]), from)
			}
		}
	})
	t.Cleanup(func() {
		conn.Close()
		ended.Wait()
	})
	return netip.MustParseAddrPort(conn.LocalAddr().String())
}

// Nothing but the reply of the service ends the wait for it: not its other datagrams, and nobody else's.
func TestForgedReplies(t *testing.T) {
	stranger, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	c := newDatagramClient(serveDatagrams(t, func(conn *net.UDPConn, query []byte, from netip.AddrPort) {
		right := packReply(query)
		if _, err := stranger.WriteToUDPAddrPort(append(bytes.Clone(right), "forged"...), from); err != nil {
			t.Error(err)
		}
		wrongID, wrongName, wrongType, two := bytes.Clone(right), bytes.Clone(right), bytes.Clone(right), bytes.Clone(right)
		wrongID[1]++
		wrongName[headerSize+1]++
		wrongType[len(right)-3]++
		two[5] = 2
		for _, datagram := range [][]byte{{}, {0}, right[:headerSize-1], right[:headerSize], right[:len(right)-1], query,
			wrongID, wrongName, wrongType, two} {
			for range 100 {
				conn.WriteToUDPAddrPort(datagram, from)
			}
		}
		conn.WriteToUDPAddrPort(right, from)
	}), nil)
	for range 20 {
		query := packQuery(t, web)
		reply, err := c.exchange(query)
		if err != nil || !bytes.Equal(reply, packReply(query)) {
			t.Fatalf("%x, %v", reply, err)
		}
	}
}

// A service that answers another question has its name in the failure. It does not shorten the wait.
func TestOtherQuestion(t *testing.T) {
	c := newDatagramClient(serveDatagrams(t, func(conn *net.UDPConn, query []byte, from netip.AddrPort) {
		query[headerSize+1]++
		conn.WriteToUDPAddrPort(packReply(query), from)
	}), nil)
	begin := time.Now()
	if _, err := c.exchange(packQuery(t, web)); err != errMisfits || time.Since(begin) < tryTimeout {
		t.Errorf("%v after %v", err, time.Since(begin))
	}
}

// The case of letters does not matter in a name, and nowhere else: 65 is the type HTTPS, 97 is another one.
func TestTypeHasNoCase(t *testing.T) {
	query, err := new(dns.Msg).SetQuestion(web, dns.TypeHTTPS).Pack()
	if err != nil {
		t.Fatal(err)
	}
	question := questionOfWire(query)
	upper := append(bytes.Clone(query[:headerSize]), bytes.ToUpper(question)...)
	if !repeatsQuestion(upper, question) {
		t.Error("another spelling of the name is refused")
	}
	other := bytes.Clone(query)
	other[len(other)-3] = 97
	if repeatsQuestion(other, question) {
		t.Error("another type is taken for this one")
	}
}

// A late reply is none to the query that has got its ID, and is no harm when nobody waits.
func TestLateReply(t *testing.T) {
	c := newDatagramClient(netip.AddrPort{}, nil)
	first, second := packQuery(t, web), packQuery(t, "db.default.svc.cluster.local.")
	late := packReply(first)
	w := &waitingQuery{question: questionOfWire(second), result: make(chan datagramResult, 1)}
	s := &sharedSocket{waiting: map[uint16]*waitingQuery{0: w}}
	c.handOver(s, late)
	c.handOver(s, packReply(second))
	c.handOver(s, packReply(second))
	if r := <-w.result; !bytes.Equal(r.reply, packReply(second)) || len(s.waiting) > 0 {
		t.Errorf("%x, %d waiting", r.reply, len(s.waiting))
	}
}

// A reply that comes at the last moment counts, and the port is as good as before.
func TestLastMoment(t *testing.T) {
	c := newDatagramClient(netip.AddrPort{}, nil)
	query := packQuery(t, web)
	w := &waitingQuery{question: questionOfWire(query), result: make(chan datagramResult, 1)}
	s := &sharedSocket{waiting: map[uint16]*waitingQuery{0: w}}
	c.socket = s
	c.handOver(s, packReply(query))
	reply, err := c.giveUp(s, 0, w, os.ErrDeadlineExceeded)
	if err != nil || !bytes.Equal(reply, packReply(query)) || c.socket != s {
		t.Errorf("%x, %v", reply, err)
	}
}

// All queries that wait have IDs of their own, and get their own replies, in whatever order they come.
func TestManyWait(t *testing.T) {
	const count = 128 // more may not fit the buffer of the service
	var mu sync.Mutex
	var held [][]byte
	ids, ports := map[uint16]bool{}, map[netip.AddrPort]bool{}
	c := newDatagramClient(serveDatagrams(t, func(conn *net.UDPConn, query []byte, from netip.AddrPort) {
		mu.Lock()
		defer mu.Unlock()
		held = append(held, packReply(query))
		ids[binary.BigEndian.Uint16(query)], ports[from] = true, true
		for len(ids) == count && len(held) > 0 {
			i := len(held) / 2
			conn.WriteToUDPAddrPort(held[i], from)
			held = append(held[:i], held[i+1:]...)
		}
	}), nil)
	var wg sync.WaitGroup
	for i := range count {
		wg.Go(func() {
			query := packQuery(t, fmt.Sprintf("x%d.cluster.local.", i))
			if reply, err := c.exchange(query); err != nil || !bytes.Equal(reply, packReply(query)) {
				t.Errorf("%d: %x, %v", i, reply, err)
			}
		})
	}
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	if len(ids) != count || len(ports) != 1 {
		t.Errorf("%d IDs, %d ports", len(ids), len(ports))
	}
}

// When a socket is old, or a reply did not come, the next query has another port. Replies to the old port still count.
func TestPortChanges(t *testing.T) {
	var answers atomic.Bool
	ports := make(chan netip.AddrPort, 8)
	reply := make(chan func(), 8)
	answers.Store(true)
	c := newDatagramClient(serveDatagrams(t, func(conn *net.UDPConn, query []byte, from netip.AddrPort) {
		ports <- from
		answer := func() { conn.WriteToUDPAddrPort(packReply(query), from) }
		if answers.Load() {
			answer()
		} else {
			reply <- answer
		}
	}), nil)
	ask := func() netip.AddrPort {
		t.Helper()
		if _, err := c.exchange(packQuery(t, web)); err != nil {
			t.Error(err)
		}
		return <-ports
	}
	first := ask()
	if again := ask(); again != first {
		t.Errorf("%v, then %v", first, again)
	}

	answers.Store(false)
	result := make(chan error)
	go func() { _, err := c.exchange(packQuery(t, web)); result <- err }()
	if from := <-ports; from != first {
		t.Errorf("%v, then %v", first, from)
	}
	c.mu.Lock()
	old := c.socket
	old.closesAt = time.Now().Add(tryTimeout - 1)
	c.mu.Unlock()
	answers.Store(true)
	second := ask()
	if second == first {
		t.Error("the port is the same after a while")
	}
	(<-reply)()
	if err := <-result; err != nil {
		t.Error(err)
	}

	answers.Store(false)
	if _, err := c.exchange(packQuery(t, web)); err != os.ErrDeadlineExceeded {
		t.Error(err)
	}
	answers.Store(true)
	if from := <-ports; from != second {
		t.Errorf("%v, then %v", second, from)
	}
	if third := ask(); third == second {
		t.Error("the port is the same after a query without a reply")
	}
}

// A socket closes itself. What still waits fails.
func TestSocketCloses(t *testing.T) {
	c := newDatagramClient(serveDatagrams(t, func(*net.UDPConn, []byte, netip.AddrPort) {}), nil)
	w := &waitingQuery{result: make(chan datagramResult, 1)}
	s, _, err := c.addWaiting(w)
	if err != nil || time.Until(s.closesAt) > socketAge+tryTimeout {
		t.Fatal(s, err)
	}
	s.SetDeadline(time.Now())
	if r := <-w.result; !errors.Is(r.err, os.ErrDeadlineExceeded) {
		t.Error(r.err)
	}
	for err == nil {
		_, err = s.Read(nil)
	}
	if c.mu.Lock(); c.socket != nil || len(s.waiting) > 0 {
		t.Errorf("%v, %d waiting", c.socket, len(s.waiting))
	}
	c.mu.Unlock()
}

// When the service is gone, all queries that wait for it fail at once, and so does the next one. When it is back, it is
// asked again.
func TestServiceGoes(t *testing.T) {
	asked := make(chan struct{}, 1)
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	service := netip.MustParseAddrPort(conn.LocalAddr().String())
	c := newDatagramClient(service, nil)
	results := make(chan error, 2)
	exchange := func() { _, err := c.exchange(packQuery(t, web)); results <- err }
	go exchange()
	if _, err := conn.Read(make([]byte, 512)); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	begin := time.Now()
	exchange()
	for range 2 {
		if err := <-results; !errors.Is(err, syscall.ECONNREFUSED) || time.Since(begin) > tryTimeout/2 {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
	}
	if conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(service)); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		query := make([]byte, 512)
		if n, from, err := conn.ReadFromUDPAddrPort(query); err == nil {
			conn.WriteToUDPAddrPort(packReply(query[:n]), from)
		}
		close(asked)
	}()
	if exchange(); <-results != nil {
		t.Error("it is back, and still refuses")
	}
	<-asked
}

// enterNamespace takes the test to a network namespace of its own, and returns the loopback, which is up.
func enterNamespace(t *testing.T) netlink.Link {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread ends with the test, and the namespace with the sockets
	space, err := netns.New()
	if err != nil {
		t.Fatalf("make a network namespace (as root): %v", err)
	}
	defer space.Close()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	return lo
}

// slowDown lets 1000 bytes a second pass, of packets up to that length, and queues others up to a limit.
func slowDown(t *testing.T, l netlink.Link, length, limit uint32) {
	t.Helper()
	const tick = 15625 // of a byte: 64 ns each
	attrs := netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
	if err := netlink.QdiscAdd(&netlink.Tbf{QdiscAttrs: attrs, Rate: 1000, Limit: limit, Buffer: length * tick}); err != nil {
		t.Fatal(err)
	}
}

// A query that a queue of this node drops is lost, as others are on the way. The ones that wait beside it do not fail.
func TestFullQueue(t *testing.T) {
	lo := enterNamespace(t)
	c := newDatagramClient(serveDatagrams(t, func(*net.UDPConn, []byte, netip.AddrPort) {
		t.Error("the queue drops nothing")
	}), nil)
	other := &waitingQuery{result: make(chan datagramResult, 1)}
	if _, _, err := c.addWaiting(other); err != nil {
		t.Fatal(err)
	}
	slowDown(t, lo, 16, 1)
	if _, err := c.exchange(packQuery(t, web)); err != os.ErrDeadlineExceeded {
		t.Errorf("the query that was dropped: %v", err)
	}
	select {
	case r := <-other.result:
		t.Errorf("the query beside it: %v", r.err)
	default:
	}
}

// A queue of this node that is slow does not hold up those who send.
func TestSlowQueue(t *testing.T) {
	lo := enterNamespace(t)
	c := newDatagramClient(serveDatagrams(t, func(*net.UDPConn, []byte, netip.AddrPort) {}), nil)
	s, err := c.openSocket()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	slowDown(t, lo, 1000, 1<<24)
	s.SetWriteDeadline(time.Now().Add(tryTimeout))
	query := packQuery(t, web)
	for i := range maxWaiting {
		if _, err := s.Write(query); err != nil {
			t.Fatalf("after %d queries: %v", i, err)
		}
	}
}

// The kernel is told to report all that is unreachable, in both families.
func TestReportsUnreachable(t *testing.T) {
	for _, service := range []string{"127.0.0.1:53", "[::1]:53"} {
		addr := netip.MustParseAddrPort(service)
		s, err := newDatagramClient(addr, nil).openSocket()
		if err != nil {
			t.Fatal(err)
		}
		level, option := unix.IPPROTO_IP, unix.IP_RECVERR
		if addr.Addr().Is6() {
			level, option = unix.IPPROTO_IPV6, unix.IPV6_RECVERR
		}
		raw, err := s.Conn.(*net.UDPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			if on, err := unix.GetsockoptInt(int(fd), level, option); err != nil || on != 1 {
				t.Errorf("%s: %d, %v", service, on, err)
			}
		})
		s.Close()
	}
}

// askUpstream asks an upstream for a name of the cluster.
func askUpstream(t *testing.T, u *upstream, tcp bool) (*dns.Msg, error) {
	query := new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA)
	query.Id = 0
	return u.exchangeShared(t.Context(), &request.Request{W: &test.ResponseWriter{TCP: tcp}, Req: query})
}

// A reply that is cut, or longer than it may be, counts as truncated, with the answers left out.
func TestCutReply(t *testing.T) {
	for _, size := range []int{100, maxDatagram + 100} {
		u := newUpstream(serveDatagrams(t, func(conn *net.UDPConn, query []byte, from netip.AddrPort) {
			m := new(dns.Msg)
			if err := m.Unpack(query); err != nil {
				t.Error(err)
			}
			m.Response = true
			for m.Len() < size {
				m.Answer = append(m.Answer, rr(t, m.Question[0].Name+" 5 IN A 100.64.16.20"))
			}
			wire, err := m.Pack()
			if err != nil {
				t.Error(err)
			}
			if size < maxDatagram {
				wire = wire[:len(wire)-2]
			}
			conn.WriteToUDPAddrPort(wire, from)
		}), "cluster.local.")
		reply, err := askUpstream(t, u, false)
		if err != nil || !reply.Truncated || len(reply.Answer) > 0 {
			t.Errorf("%d: %v, %v", size, reply, err)
		}
		u.stopChecks()
	}
}

// A reply may be just as long as it may be. A longer one counts as truncated, also where a record ends at the cut.
func TestCutBetweenRecords(t *testing.T) {
	for _, c := range []struct{ end, more int }{
		{maxDatagram, 0}, {maxDatagram, 1}, {maxDatagram + 1, 0}, {maxDatagram + 1, 1},
	} {
		u := newUpstream(serveDatagrams(t, func(conn *net.UDPConn, query []byte, from netip.AddrPort) {
			m := new(dns.Msg)
			if err := m.Unpack(query); err != nil {
				t.Error(err)
			}
			m.Response = true
			short := rr(t, "x. 5 IN A 100.64.16.20")
			for m.Len()+100 < c.end {
				m.Answer = append(m.Answer, short)
			}
			text := c.end - m.Len() - dns.Len(rr(t, `x. 5 IN TXT ""`))
			m.Answer = append(m.Answer, rr(t, "x. 5 IN TXT "+strings.Repeat("y", text)))
			if m.Len() != c.end {
				t.Errorf("a record ends at %d, not at %d", m.Len(), c.end)
			}
			for range c.more {
				m.Answer = append(m.Answer, short)
			}
			wire, err := m.Pack()
			if err != nil {
				t.Error(err)
			}
			conn.WriteToUDPAddrPort(wire, from)
		}), "cluster.local.")
		reply, err := askUpstream(t, u, false)
		if want := c.end+c.more > maxDatagram; err != nil || reply.Truncated != want || want == (len(reply.Answer) > 0) {
			t.Errorf("%+v: %d answers, truncated: %v, %v", c, len(reply.Answer), reply.Truncated, err)
		}
		u.stopChecks()
	}
}

// Queries by UDP and by TCP are in one metric.
func TestRequestDuration(t *testing.T) {
	var asked atomic.Int64
	addr := serve(t, clusterDNS(t, &asked))
	u := newUpstream(addr, "cluster.local.")
	defer u.stopChecks()
	for _, tcp := range []bool{false, true} {
		if _, err := askUpstream(t, u, tcp); err != nil {
			t.Error(err)
		}
	}
	if _, err := prometheus.DefaultGatherer.Gather(); err != nil {
		t.Error(err)
	}
	var m dto.Metric
	err := requestDuration.WithLabelValues("kubelink", addr.String(), "NOERROR").(prometheus.Metric).Write(&m)
	if n := m.GetHistogram().GetSampleCount(); err != nil || n != 2 {
		t.Errorf("%d queries, %v", n, err)
	}
}

// FuzzReply: no datagram makes the client panic, and a query gets none but its own reply.
func FuzzReply(f *testing.F) {
	query := packQuery(f, web)
	for _, seed := range [][]byte{{}, query, packReply(query), packReply(query)[:headerSize], packReply(query)[:20],
		bytes.ToUpper(packReply(query)), packReply(packQuery(f, "x."+web))} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, datagram []byte) {
		w := &waitingQuery{question: questionOfWire(query), result: make(chan datagramResult, 1)}
		s := &sharedSocket{waiting: map[uint16]*waitingQuery{0: w}}
		newDatagramClient(netip.AddrPort{}, nil).handOver(s, datagram)
		select {
		case r := <-w.result:
			m := new(dns.Msg)
			err := m.Unpack(r.reply)
			if len(s.waiting) > 0 || m.Id != 0 || !m.Response || !bytes.Equal(r.reply, datagram) {
				t.Errorf("%v", m)
			}
			if len(m.Question) > 1 || len(m.Question) == 1 && !strings.EqualFold(m.Question[0].Name, web) {
				t.Errorf("%v, %v", m, err)
			}
		default:
			if s.waiting[0] != w || bytes.Equal(datagram, packReply(query)) {
				t.Error("the query waits for nothing")
			}
		}
	})
}

// BenchmarkDatagrams is a query and its reply on the wire, for one client and for a hundred at a time.
func BenchmarkDatagrams(b *testing.B) {
	for _, clients := range []int{1, 100} {
		b.Run(fmt.Sprint(clients), func(b *testing.B) {
			c := newDatagramClient(serveDatagrams(b, func(conn *net.UDPConn, query []byte, from netip.AddrPort) {
				conn.WriteToUDPAddrPort(packReply(query), from)
			}), nil)
			queries := make(chan struct{})
			var wg sync.WaitGroup
			for range clients {
				wg.Go(func() {
					query := packQuery(b, web)
					for range queries {
						if _, err := c.exchange(query); err != nil {
							b.Error(err)
						}
					}
				})
			}
			b.ReportAllocs()
			for b.Loop() {
				queries <- struct{}{}
			}
			close(queries)
			wg.Wait()
		})
	}
}
