package peer

// This file simulates clusters that consist of a broker and a DNS service, hundreds of them in one process. Each has
// a link of its own to the broker under test, with the addresses and networks of a link, and answers DNS queries that
// come through it.

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/test/testbed"
)

// Stub is one such cluster.
type Stub struct {
	Name     string       // of the cluster, and of the KubeLink
	Endpoint string       // host name of its broker, in its certificate
	Listens  netip.Addr   // address to which the host name must lead
	Address  netip.Prefix // in the mesh
	Services netip.Prefix // its 10th address is the DNS service, its 20th is the address of Service
	host     *testbed.Host
	config   *tls.Config

	mu    sync.Mutex
	up    bool
	conns map[net.Conn]bool
}

// Service is the only name of a stub, in the cluster's own domain.
const Service = "web.default.svc.cluster.local."

// Stubs are many stubs with one listener.
type Stubs struct {
	All       []*Stub
	listener  net.Listener
	byAddress map[netip.Addr]*Stub
}

// ServeStubs makes n stubs on the host that are up. Each stub accepts connections at the port, at a loopback address
// of its own. The mesh addresses of the stubs begin after the address of mesh, their service networks begin with
// services.
func ServeStubs(host *testbed.Host, port int, ca *testbed.CA, n int, mesh, services netip.Prefix) (*Stubs, error) {
	all := &Stubs{byAddress: map[netip.Addr]*Stub{}}
	loopback, addr, network := netip.AddrFrom4([4]byte{127, 1, 0, 0}), mesh.Addr(), services
	for i := range n {
		loopback, addr = loopback.Next(), addr.Next()
		s := &Stub{
			Name: fmt.Sprintf("stub%03d", i+1), Endpoint: fmt.Sprintf("stub%03d.example", i+1),
			Listens: loopback, Address: netip.PrefixFrom(addr, mesh.Bits()), Services: network,
			host: host, up: true, conns: map[net.Conn]bool{},
		}
		var err error
		if s.config, err = Config(ca, ca, s.Endpoint); err != nil {
			return nil, err
		}
		all.All = append(all.All, s)
		all.byAddress[s.Listens] = s
		network = netip.PrefixFrom(nextNetwork(network), network.Bits())
	}
	var err error
	if all.listener, err = host.Listen("tcp4", fmt.Sprintf(":%d", port)); err != nil {
		return nil, err
	}
	go all.acceptConns()
	return all, nil
}

// nextNetwork returns the first address behind a network.
func nextNetwork(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	n += 1 << (32 - p.Bits())
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

func (s *Stub) nthAddress(n int) netip.Addr {
	a := s.Services.Masked().Addr()
	for range n {
		a = a.Next()
	}
	return a
}

// ServiceAddress returns the address of Service.
func (s *Stub) ServiceAddress() netip.Addr { return s.nthAddress(20) }

// Close ends all stubs.
func (all *Stubs) Close() {
	all.listener.Close()
	for _, s := range all.All {
		s.Down()
	}
}

func (all *Stubs) acceptConns() {
	for {
		conn, err := all.listener.Accept()
		if err != nil {
			return
		}
		go func() {
			local, _ := netip.ParseAddrPort(conn.LocalAddr().String())
			s := all.byAddress[local.Addr()]
			if s == nil || !s.isUp() {
				conn.Close()
				return
			}
			t := tls.Server(conn, s.config)
			t.SetDeadline(time.Now().Add(10 * time.Second))
			if t.Handshake() != nil {
				conn.Close()
				return
			}
			s.serveConn(&Peer{t})
		}()
	}
}

func (s *Stub) isUp() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.up
}

// Down ends the connections and refuses new ones.
func (s *Stub) Down() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.up = false
	for c := range s.conns {
		// tls.Conn.Close would send an alert and might wait, but a dead broker sends nothing.
		c.(*tls.Conn).NetConn().Close()
	}
	clear(s.conns)
}

// Up accepts connections again and makes one to the broker at the address, like a broker after its start.
func (s *Stub) Up(ctx context.Context, address, name string) error {
	s.mu.Lock()
	s.up = true
	s.mu.Unlock()
	p, err := Dial(ctx, s.host, address, name, s.config)
	if err != nil {
		return err
	}
	go s.serveConn(p)
	return nil
}

// serveConn answers queries on a connection until it ends.
func (s *Stub) serveConn(p *Peer) {
	defer p.Close()
	s.mu.Lock()
	if !s.up {
		s.mu.Unlock()
		return
	}
	s.conns[p.Conn] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.conns, p.Conn)
		s.mu.Unlock()
	}()
	p.SetDeadline(time.Time{})
	if p.Hello(s.Address, s.Services) != nil {
		return
	}
	for {
		kind, b, err := p.Receive()
		if err != nil {
			return
		}
		from, to, question, ok := ParseUDP(b)
		if kind != Packet || !ok || to != netip.AddrPortFrom(s.nthAddress(10), 53) {
			continue
		}
		if answer := s.answerQuery(question); answer != nil && p.Send(Packet, UDP(to, from, answer)) != nil {
			return
		}
	}
}

// answerQuery returns the answer of the DNS service, or nil if the message is no query.
func (s *Stub) answerQuery(question []byte) []byte {
	q := new(dns.Msg)
	if q.Unpack(question) != nil || q.Response || len(q.Question) != 1 {
		return nil
	}
	reply := new(dns.Msg).SetReply(q)
	reply.Authoritative = true
	name := q.Question[0].Name
	switch {
	case dns.CanonicalName(name) != Service:
		reply.Rcode = dns.RcodeNameError
	case q.Question[0].Qtype == dns.TypeA:
		reply.Answer = []dns.RR{&dns.A{
			Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 5},
			A:   s.ServiceAddress().AsSlice(),
		}}
	}
	if len(reply.Answer) == 0 {
		reply.Ns = []dns.RR{&dns.SOA{
			Hdr: dns.RR_Header{Name: "cluster.local.", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 5},
			Ns:  "ns.dns.cluster.local.", Mbox: "hostmaster.cluster.local.", Serial: 1, Refresh: 7200, Retry: 1800,
			Expire: 86400, Minttl: 5,
		}}
	}
	answer, err := reply.Pack()
	if err != nil {
		return nil
	}
	return answer
}
