package wireguard

// The UDP sockets of wireguard-go in this process. Its own ones (conn.StdNetBind) send packets to wrong addresses where
// some peers have IPv4 addresses and others IPv6 ones: an address that they use again has the length of the last one.
// Also, they lose packets that are larger than the MTU of the path and go in one message.

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// bind has one port, with a socket for IPv4 and one for IPv6. Its zero value is closed.
type bind struct {
	v4, v6 atomic.Pointer[udpSocket] // nil: closed, or the kernel lacks the family
	tunnel int                       // index of the device of the tunnels, which carries none of them; 0: there is none
}

var _ conn.Bind = (*bind)(nil)

// openTries is how often two sockets are opened when any port will do.
const openTries = 100

func (b *bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	if b.v4.Load() != nil || b.v6.Load() != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	v4, v6, err := openSockets(port)
	for range openTries {
		if port != 0 || !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
		v4, v6, err = openSockets(port)
	}
	if err != nil {
		return nil, 0, err
	}
	var receive []conn.ReceiveFunc
	for _, s := range []*udpSocket{v4, v6} {
		if s != nil {
			receive, port = append(receive, newReceiver(s, b.tunnel).receive), s.port()
		}
	}
	b.v4.Store(v4)
	b.v6.Store(v6)
	return receive, port, nil
}

// openSockets opens a socket of each family that the kernel has.
func openSockets(port uint16) (v4, v6 *udpSocket, err error) {
	if v4, err = openSocket("udp4", port); v4 != nil {
		port = v4.port()
	}
	if err == nil || errors.Is(err, syscall.EAFNOSUPPORT) {
		if v6, err = openSocket("udp6", port); v4 != nil && errors.Is(err, syscall.EAFNOSUPPORT) {
			err = nil
		}
	}
	if err != nil && v4 != nil {
		v4.udp.Close()
	}
	return v4, v6, err
}

func openSocket(network string, port uint16) (*udpSocket, error) {
	s := &udpSocket{}
	c := net.ListenConfig{Control: func(network, _ string, raw syscall.RawConn) error {
		var err error
		e := raw.Control(func(fd uintptr) { err = s.setOptions(network, int(fd)) })
		return errors.Join(err, e)
	}}
	opened, err := c.ListenPacket(context.Background(), network, ":"+strconv.Itoa(int(port)))
	if err != nil {
		return nil, err
	}
	s.use(opened.(*net.UDPConn))
	return s, nil
}

func (b *bind) Close() error {
	var errs []error
	for _, p := range []*atomic.Pointer[udpSocket]{&b.v4, &b.v6} {
		if s := p.Swap(nil); s != nil {
			errs = append(errs, s.udp.Close())
		}
	}
	return errors.Join(errs...)
}

// SetMark sets the fwmark (SO_MARK in socket(7)) of all packets.
func (b *bind) SetMark(mark uint32) error {
	var errs []error
	for _, s := range []*udpSocket{b.v4.Load(), b.v6.Load()} {
		if s == nil {
			continue
		}
		raw, err := s.udp.SyscallConn()
		if err == nil {
			e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark)) })
			err = errors.Join(err, e)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Send sends packets to a place, in their order.
func (b *bind) Send(packets [][]byte, to conn.Endpoint) error {
	p, ok := to.(*place)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	s := b.v4.Load()
	if p.Addr().Is6() {
		s = b.v6.Load()
	}
	if s == nil {
		return syscall.EAFNOSUPPORT
	}
	return s.send(packets, p)
}

func (b *bind) BatchSize() int { return conn.IdealBatchSize }

func (b *bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	return newPlace(netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), local{}), nil
}

// place is where a peer is, and at which of our addresses it knows us. Packets share it: only ClearSrc changes it.
type place struct {
	netip.AddrPort
	udp    *net.UDPAddr // the same
	local  local
	source []byte      // control message that makes local the source of packets; empty: the kernel chooses
	clear  atomic.Bool // source does not count any more
}

var _ conn.Endpoint = (*place)(nil)

// local is an address of ours to which packets come.
type local struct {
	addr  netip.Addr // zero: any
	index int        // of the device that a link-local address belongs to, else 0: the route may change
}

func newPlace(at netip.AddrPort, l local) *place {
	p := &place{AddrPort: at, udp: net.UDPAddrFromAddrPort(at), local: l}
	switch {
	case l.addr.Is4():
		p.source = unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: l.addr.As4()})
	case l.addr.Is6():
		p.source = unix.PktInfo6(&unix.Inet6Pktinfo{Addr: l.addr.As16(), Ifindex: uint32(l.index)})
	}
	return p
}

// currentSource is the control message for packets to the place.
func (p *place) currentSource() []byte {
	if p.clear.Load() {
		return nil
	}
	return p.source
}

func (p *place) ClearSrc() { p.clear.Store(true) }

func (p *place) SrcIP() netip.Addr {
	if p.clear.Load() {
		return netip.Addr{}
	}
	return p.local.addr
}

func (p *place) SrcToString() string { return p.SrcIP().String() }
func (p *place) DstIP() netip.Addr   { return p.Addr() }
func (p *place) DstToString() string { return p.AddrPort.String() }

func (p *place) DstToBytes() []byte {
	b, _ := p.MarshalBinary() // never fails
	return b
}
