package bridge

// Bridges in memory: TUNs that are channels, names that a map resolves, a CA.

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// syncBuffer is a log for several goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// memTUN is a device whose other end is two channels.
type memTUN struct {
	in, out chan []byte
	closed  chan struct{}
	once    sync.Once
	kept    bool
	mtu     atomic.Int64
}

func newMemTUN() *memTUN {
	return &memTUN{in: make(chan []byte), out: make(chan []byte, 4096), closed: make(chan struct{})}
}

func (t *memTUN) Read(b []byte) (int, error) {
	select {
	case p := <-t.in:
		return copy(b, p), nil
	case <-t.closed:
		return 0, os.ErrClosed
	}
}

func (t *memTUN) TryRead(b []byte) (int, error) {
	select {
	case p := <-t.in:
		return copy(b, p), nil
	default:
		return 0, nil
	}
}

func (t *memTUN) Queues() []tunQueue { return []tunQueue{t} }
func (t *memTUN) Offloads() Offloads { return 0 }
func (t *memTUN) SetMTU(n int) error { t.mtu.Store(int64(n)); return nil }

func (t *memTUN) Write(b []byte) (int, error) {
	select {
	case t.out <- bytes.Clone(b):
		return len(b), nil
	default:
		return 0, io.ErrShortWrite
	}
}

func (t *memTUN) Close(keep bool) error {
	t.once.Do(func() { t.kept = keep; close(t.closed) })
	return nil
}

// openerOf opens a device that is there already.
func openerOf(d device) func() (device, error) { return func() (device, error) { return d, nil } }

// authority is a CA.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	return newAuthorityAt(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
}

// publicAuthority is an authority that the system's roots include.
func publicAuthority(t *testing.T) *authority {
	t.Setenv("GODEBUG", "x509usefallbackroots=1")
	publicOnce.Do(func() {
		publicCA = newAuthority(t)
		x509.SetFallbackRoots(publicCA.pool)
	})
	return publicCA
}

var (
	publicOnce sync.Once
	publicCA   *authority
)

// newAuthorityAt is one whose own certificate is valid for a time.
func newAuthorityAt(t testing.TB, from, to time.Time) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: from, NotAfter: to, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	ca := &authority{key: key, pool: x509.NewCertPool()}
	ca.cert, _ = x509.ParseCertificate(der)
	ca.pool.AddCert(ca.cert)
	return ca
}

// issue returns credentials for names: host names, addresses, or cn= a common name. The
// certificate is for servers only, as those from ACME services are.
func (ca *authority) issue(t testing.TB, names ...string) *link.Credentials {
	return ca.issueAt(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour), names...)
}

// issueAt issues credentials that are valid for a time.
func (ca *authority) issueAt(t testing.TB, from, to time.Time, names ...string) *link.Credentials {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: from, NotAfter: to,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, n := range names {
		if cn, ok := strings.CutPrefix(n, "cn="); ok {
			template.Subject.CommonName = cn
		} else if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return &link.Credentials{Certificate: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, Roots: ca.pool}
}

// internet resolves host names to bridges, and can be cut.
type internet struct {
	t     testing.TB
	ca    *authority
	mu    sync.Mutex
	hosts map[string]string
	dials map[string]int

	freezes bool          // connections are no sockets, so that
	frozen  chan struct{} // nothing that was dialled passes any more when this is closed

	records int64         // see timing
	silence time.Duration // the same; zero: longer than a busy machine takes for anything
}

func newInternet(t testing.TB) *internet {
	return &internet{t: t, ca: newAuthority(t), hosts: map[string]string{}, frozen: make(chan struct{}),
		dials: map[string]int{}, records: defaultTiming.maxRecords}
}

func (i *internet) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, _ := net.SplitHostPort(address)
	i.mu.Lock()
	to, ok := i.hosts[host]
	i.dials[host]++
	frozen := i.frozen
	i.mu.Unlock()
	if !ok {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, to)
	if err != nil {
		return nil, err
	}
	if i.freezes {
		f := &freezable{Conn: conn, frozen: frozen, closed: make(chan struct{})}
		i.t.Cleanup(func() { f.Conn.Close() })
		return f, nil
	}
	return conn, nil
}

func (i *internet) name(host, address string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if address == "" {
		delete(i.hosts, host)
	} else {
		i.hosts[host] = address
	}
}

// freezable is a connection that stays open, but silent, when the internet is frozen: its end does not get through
// either, from neither side.
type freezable struct {
	net.Conn
	frozen   chan struct{}
	closed   chan struct{}
	once     sync.Once
	deadline atomic.Pointer[time.Time] // of reads; nil: none
}

func (f *freezable) SetDeadline(t time.Time) error {
	f.deadline.Store(&t)
	return f.Conn.SetDeadline(t)
}

func (f *freezable) SetReadDeadline(t time.Time) error {
	f.deadline.Store(&t)
	return f.Conn.SetReadDeadline(t)
}

func (f *freezable) Close() error {
	f.once.Do(func() { close(f.closed) })
	if f.cut() {
		return f.Conn.SetReadDeadline(time.Now())
	}
	return f.Conn.Close()
}

func (f *freezable) cut() bool {
	select {
	case <-f.frozen:
		return true
	default:
		return false
	}
}

func (f *freezable) Write(b []byte) (int, error) {
	if f.cut() {
		return len(b), nil
	}
	return f.Conn.Write(b)
}

func (f *freezable) Read(b []byte) (int, error) {
	for {
		n, err := f.Conn.Read(b)
		if !f.cut() {
			return n, err
		}
		if err != nil {
			return 0, f.awaitDeadline(err)
		}
	}
}

// awaitDeadline waits until a read of a silent connection ends. A later deadline than that of its begin does not count.
func (f *freezable) awaitDeadline(err error) error {
	at := f.deadline.Load()
	if at == nil || at.IsZero() || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	select {
	case <-time.After(time.Until(*at)):
		return os.ErrDeadlineExceeded
	case <-f.closed:
		return net.ErrClosed
	}
}

// node is a bridge under test.
type node struct {
	*Bridge
	t       testing.TB
	tun     *memTUN
	events  chan struct{}
	unknown chan link.UnknownPeer
	config  Config
	ups     atomic.Int64 // how often Changed saw a link that is Up
	reasons sync.Map     // all that Changed saw: the keys
}

func testTiming(i *internet) *timing {
	return &timing{
		dial: 2 * time.Second, handshake: 5 * time.Second, write: 300 * time.Millisecond,
		tls: 5 * time.Second, hello: 5 * time.Second,
		ping: 20 * time.Millisecond, silence: cmp.Or(i.silence, 5*time.Second), stale: time.Second,
		backoff: 2 * time.Millisecond, backoffUsed: 20 * time.Millisecond, backoffIdle: 50 * time.Millisecond,
		recheck: 20 * time.Millisecond, renewal: 100 * time.Millisecond,
		recently: time.Minute, stable: 20 * time.Millisecond, followDelay: 10 * time.Millisecond, maxRecords: i.records,
		dialer: i.dial,
	}
}

// unencrypted are credentials for links without TLS.
var unencrypted = &link.Credentials{Unencrypted: true}

// start opens a bridge that is found at host.
func (i *internet) start(host string, creds *link.Credentials, change ...func(*Config)) *node {
	i.t.Helper()
	n := &node{t: i.t, tun: newMemTUN(), events: make(chan struct{}, 1), unknown: make(chan link.UnknownPeer, 16)}
	n.config = Config{
		Interface: "mem", open: openerOf(n.tun), timing: testTiming(i), Log: quiet,
		Settings: link.Settings{AdvertisedPort: 80},
		Changed: func() {
			for _, s := range n.Statuses() {
				n.reasons.Store(s.Reason, true)
				if s.State == link.Up {
					n.ups.Add(1)
				}
			}
			select {
			case n.events <- struct{}{}:
			default:
			}
		},
		OnUnknown: func(u link.UnknownPeer) {
			select {
			case n.unknown <- u:
			default:
			}
		},
	}
	for _, f := range change {
		f(&n.config)
	}
	var err error
	if n.Bridge, err = Open(n.config); err != nil {
		i.t.Fatal(err)
	}
	i.t.Cleanup(func() { n.Close(false) })
	n.SetCredentials(creds)
	n.set()
	i.name(host, n.address())
	return n
}

func (n *node) address() string {
	_, port, _ := net.SplitHostPort(n.Addr().String())
	return net.JoinHostPort("127.0.0.1", port)
}

func (n *node) set(peers ...mesh.Peer) {
	n.t.Helper()
	if err := n.Set(peers, nil); err != nil {
		n.t.Fatal(err)
	}
}

// patience is for what comes at once on an idle machine.
const patience = 30 * time.Second

// await waits until cond, which a change of status or a counter may bring about.
func (n *node) await(what string, cond func() bool) {
	n.t.Helper()
	deadline := time.After(patience)
	poll := time.NewTicker(2 * time.Millisecond) // counters have no event
	defer poll.Stop()
	for !cond() {
		select {
		case <-n.events:
		case <-poll.C:
		case <-deadline:
			n.t.Fatalf("not in time: %s\n%+v\n%+v", what, n.Statuses(), n.Stats())
		}
	}
}

// hadReason says whether a link had this reason, now or earlier.
func (n *node) hadReason(reason string) bool {
	_, had := n.reasons.Load(reason)
	return had
}

func (n *node) status(name string) link.Status {
	for _, s := range n.Statuses() {
		if s.Link == name {
			return s
		}
	}
	return link.Status{}
}

func (n *node) awaitState(name string, state link.State) link.Status {
	n.t.Helper()
	n.await(name+" "+string(state), func() bool { return n.status(name).State == state })
	return n.status(name)
}

func (n *node) awaitReason(name, reason string) {
	n.t.Helper()
	n.await(name+" is Down: "+reason, func() bool {
		s := n.status(name)
		return s.State == link.Down && strings.Contains(s.Reason, reason)
	})
}

// awaitPeer waits until packets for the first link are sent to m, and not to what was there before.
func (n *node) awaitPeer(m *node) {
	n.t.Helper()
	n.await("session with the new process", func() bool {
		t := n.router.table.Load().peers[0].flows.Load()
		return t != nil && t[0].activeSession().instance == m.instance
	})
}

// receive returns the next packet that the bridge writes to the TUN.
func (n *node) receive() []byte {
	n.t.Helper()
	select {
	case p := <-n.tun.out:
		return p
	case <-time.After(patience):
		n.t.Fatalf("no packet\n%+v\n%+v", n.Statuses(), n.Stats())
		return nil
	}
}

func packetMark(p []byte) uint64 { return binary.BigEndian.Uint64(p[len(p)-8:]) }

// pass sends a packet from n to m and waits for it there.
func (n *node) pass(m *node, src, dst string, id uint64) {
	n.t.Helper()
	n.tun.in <- packet(src, dst, 64, 100, id)
	select {
	case p := <-m.tun.out:
		if got := packetMark(p); got != id {
			n.t.Fatalf("received %d instead of %d", got, id)
		}
	case <-time.After(10 * time.Second):
		n.t.Fatalf("packet %d is lost\n%+v\n%+v\n%+v\n%+v", id, n.Statuses(), n.Stats(), m.Statuses(), m.Stats())
	}
}

// reach sends packets from n to m until one arrives: right after a loss, a connection that was being made
// before may still come and go.
func (n *node) reach(m *node, src, dst string) {
	n.t.Helper()
	n.await("packet", func() bool {
		n.tun.in <- packet(src, dst, 64, 100, 0)
		select {
		case <-m.tun.out:
			return true
		default:
			return false
		}
	})
}

// link is a peer from the cluster with number from to the one with number to, at host:
// 192.168.0.(10+x) in the mesh, 100.64.x.0/24 behind it.
func newLink(name string, from, to byte, host string) mesh.Peer {
	mine, theirs := netip.AddrFrom4([4]byte{192, 168, 0, 10 + from}), netip.AddrFrom4([4]byte{192, 168, 0, 10 + to})
	return mesh.Peer{
		Link: name, Host: host, Port: 80,
		Local: mesh.Prefixes{netip.PrefixFrom(mine, 24)}, Addresses: mesh.Prefixes{netip.PrefixFrom(theirs, 24)},
		Networks: []netip.Prefix{netip.PrefixFrom(theirs, 32),
			netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, to, 0}), 24)},
		Ingress: []mesh.Rule{
			{Prefix: netip.PrefixFrom(mine, 32), Allow: true},
			{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, from, 0}), 24), Allow: true},
		},
	}
}

var spec = mesh.Peer{
	Link: "b", Host: "b", Port: 80, Local: mesh.Prefixes{netip.MustParsePrefix("192.168.0.11/24")},
	Addresses: mesh.Prefixes{netip.MustParsePrefix("192.168.0.12/24")},
	Networks:  []netip.Prefix{netip.MustParsePrefix("192.168.0.12/32"), netip.MustParsePrefix("fd00::12/128")},
	Ingress: []mesh.Rule{
		{Prefix: netip.MustParsePrefix("100.64.0.0/20"), Allow: true},
		{Prefix: netip.MustParsePrefix("fd00::11/128"), Allow: true},
		{Prefix: netip.MustParsePrefix("100.64.1.0/24"), Allow: false},
	},
}

// newPair is two bridges a (1) and b (2) that are linked and up.
func newPair(t testing.TB, change ...func(*Config)) (i *internet, a, b *node) {
	t.Helper()
	i = newInternet(t)
	a, b = i.pair(change...)
	return i, a, b
}

func (i *internet) pair(change ...func(*Config)) (a, b *node) {
	i.t.Helper()
	a = i.start("a.example", i.ca.issue(i.t, "a.example"), change...)
	b = i.start("b.example", i.ca.issue(i.t, "b.example"), change...)
	a.set(newLink("b", 1, 2, "b.example"))
	b.set(newLink("a", 2, 1, "a.example"))
	a.awaitState("b", link.Up)
	b.awaitState("a", link.Up)
	return a, b
}
