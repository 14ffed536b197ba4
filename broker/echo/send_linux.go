package echo

// Sockets of Linux: raw(7), ip(7), ipv6(7).

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

// Send sends the packets and awaits the answers, for MaxCount seconds at most. It needs CAP_NET_RAW. An error says that
// nothing could be tried.
func Send(ctx context.Context, r Request) (Result, error) {
	result := Result{Times: []float64{}}
	if err := r.Check(); err != nil {
		return result, err
	}
	f := familyOf(r.To)
	dialer := net.Dialer{Control: f.setOptions}
	opened, err := dialer.DialContext(ctx, f.network, r.To.String())
	if errors.Is(err, syscall.EPERM) {
		return result, fmt.Errorf("open a socket for ICMP: %w: the broker needs the capability NET_RAW", err)
	}
	if err != nil {
		result.Problem = describe(err)
		return result, nil
	}
	defer opened.Close()
	stop := context.AfterFunc(ctx, func() { opened.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	x := &exchange{family: f, conn: opened.(*net.IPConn), nonce: make([]byte, 8), size: r.Size}
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
	request, answer icmp.Type
	protocol        int // of ICMP
	header          int // of IP, bytes
	options         [][3]int
}

var (
	v4 = &family{"ip4:icmp", ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply, unix.IPPROTO_ICMP, ipv4.HeaderLen, [][3]int{
		{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO},
		{unix.IPPROTO_IP, unix.IP_RECVERR, 1}, // refusals end a read
	}}
	v6 = &family{"ip6:ipv6-icmp", ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, unix.IPPROTO_ICMPV6,
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
	e := raw.Control(func(fd uintptr) {
		for _, o := range f.options {
			err = errors.Join(err, os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), o[0], o[1], o[2])))
		}
	})
	return errors.Join(err, e)
}

// exchange is a series of requests and answers. The socket sees all ICMP packets of the other end; the nonce tells
// ours.
type exchange struct {
	*family
	conn  *net.IPConn
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
		n, _, err := x.conn.ReadFrom(b) // without the header of IP
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
