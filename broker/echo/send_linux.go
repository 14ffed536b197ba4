package echo

// Sockets of Linux: raw(7), ip(7), ipv6(7), and those for ICMP echo alone, which need no capability: icmp(7).

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// answerTime is how long an answer may take.
const answerTime = time.Second

// Send sends the packets and awaits the answers, for MaxCount seconds at most. It needs CAP_NET_RAW, or a group in the
// sysctl net.ipv4.ping_group_range. An error says that nothing could be tried.
func Send(ctx context.Context, r Request) (Result, error) {
	result := Result{Times: []float64{}}
	if err := r.Check(); err != nil {
		return result, err
	}
	f := familyOf(r.To)
	opened, err := f.open(ctx, r.To)
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		return result, fmt.Errorf("open a socket for ICMP: %w: it needs the capability NET_RAW", err)
	}
	if err != nil {
		result.Problem = describe(err)
		return result, nil
	}
	defer opened.Close()
	stop := context.AfterFunc(ctx, func() { opened.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	x := &exchange{family: f, conn: opened, nonce: make([]byte, 8), size: r.Size}
	_, _ = rand.Read(x.nonce) // never fails
	for range r.Count {
		took, err := x.run(ctx)
		if result.Sent++; err == nil {
			result.Received++
			result.Times = append(result.Times, took.Seconds())
			continue
		}
		if result.Problem = describe(err); errors.Is(err, os.ErrDeadlineExceeded) {
			result.Problem = ""
		}
		if ctx.Err() != nil || errors.Is(err, syscall.EMSGSIZE) { // the next one would be too large, too
			break
		}
	}
	return result, nil
}

// describe is the reason of an error in the words of the kernel.
func describe(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		switch errno {
		case syscall.EMSGSIZE:
			return "packets of this size are larger than the MTU of the way: " + errno.Error()
		default:
			return errno.Error()
		}
	}
	return err.Error()
}

// family is what differs between IPv4 and IPv6.
type family struct {
	network         string
	domain          int // of sockets
	request, answer icmp.Type
	protocol        int // of ICMP
	header          int // of IP, bytes
	options         [][3]int
}

var (
	v4 = &family{"ip4:icmp", unix.AF_INET, ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply, unix.IPPROTO_ICMP,
		ipv4.HeaderLen, [][3]int{
			{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO},
			{unix.IPPROTO_IP, unix.IP_RECVERR, 1}, // refusals end a read
		}}
	v6 = &family{"ip6:ipv6-icmp", unix.AF_INET6, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, unix.IPPROTO_ICMPV6,
		ipv6.HeaderLen, [][3]int{
			{unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO},
			{unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1},
			{unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1},
		}}
)

func familyOf(a netip.Addr) *family {
	if a.Is4() {
		return v4
	}
	return v6
}

func (f *family) setOptions(_, _ string, raw syscall.RawConn) error {
	var err error
	e := raw.Control(func(fd uintptr) { err = f.setSocketOptions(int(fd)) })
	return errors.Join(err, e)
}

func (f *family) setSocketOptions(fd int) (err error) {
	for _, o := range f.options {
		err = errors.Join(err, os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, o[0], o[1], o[2])))
	}
	return err
}

func (f *family) socketAddress(to netip.Addr) unix.Sockaddr {
	if f == v4 {
		return &unix.SockaddrInet4{Addr: to.As4()}
	}
	return &unix.SockaddrInet6{Addr: to.As16()}
}

// packetConn is a connected socket. Its ReadFrom reads packets without the header of IP.
type packetConn interface {
	net.Conn
	ReadFrom(b []byte) (int, net.Addr, error)
}

// open opens a socket that sees all ICMP packets of the other end, or else one that sees the answers to its own.
func (f *family) open(ctx context.Context, to netip.Addr) (packetConn, error) {
	conn, err := (&net.Dialer{Control: f.setOptions}).DialContext(ctx, f.network, to.String())
	if err == nil {
		return conn.(*net.IPConn), nil
	}
	if !errors.Is(err, syscall.EPERM) {
		return nil, err
	}
	fd, err := unix.Socket(f.domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, f.protocol)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	file := os.NewFile(uintptr(fd), "icmp")
	defer file.Close() // the connection has its own
	if err := f.setSocketOptions(fd); err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, f.socketAddress(to)); err != nil {
		return nil, os.NewSyscallError("connect", err)
	}
	if conn, err = net.FileConn(file); err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil // in the words of package net
}

// exchange is a series of requests and answers. The socket sees all ICMP packets of the other end; the nonce tells
// ours.
type exchange struct {
	*family
	conn  packetConn
	nonce []byte
	size  int
	seq   int
}

// run sends a packet and awaits the answer.
func (x *exchange) run(ctx context.Context) (time.Duration, error) {
	x.seq++
	data := make([]byte, x.size-x.header-8) // without the header of ICMP
	copy(data, x.nonce)
	message := icmp.Message{Type: x.request, Body: &icmp.Echo{ID: int(x.nonce[0]), Seq: x.seq, Data: data}}
	packet, err := message.Marshal(nil) // the kernel makes the checksum of IPv6
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := x.conn.SetDeadline(began.Add(answerTime)); err != nil {
		return 0, err
	}
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if _, err := x.conn.Write(packet); err != nil {
		return 0, err
	}
	for b := make([]byte, x.size); ; {
		n, _, err := x.conn.ReadFrom(b)
		if err != nil {
			return 0, err
		}
		if x.isAnswer(b[:n], data) {
			return time.Since(began), nil
		}
	}
}

func (x *exchange) isAnswer(packet, data []byte) bool {
	m, err := icmp.ParseMessage(x.protocol, packet)
	if err != nil || m.Type != x.answer {
		return false
	}
	e, ok := m.Body.(*icmp.Echo)
	return ok && e.Seq == x.seq && bytes.Equal(e.Data, data)
}
