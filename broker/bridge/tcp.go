package bridge

// Options of TCP sockets: how soon a dead peer is noticed, how many bytes the kernel holds that it has not sent yet,
// and congestion control on short paths.

import (
	"net"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tuneTCP sets the options of a new connection. A connection to a peer that does not answer TCP keepalives, or does not
// acknowledge what was sent, ends after 15 s: legacy peers have no pings.
func tuneTCP(conn net.Conn) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{
		Enable: true, Idle: 5 * time.Second, Interval: 3 * time.Second, Count: 3,
	})
	setUserTimeout(tcp, 15*time.Second)
}

// setUserTimeout sets TCP_USER_TIMEOUT (tcp(7)). Without it the kernel takes longer to give a dead peer up.
func setUserTimeout(conn *net.TCPConn, d time.Duration) {
	if raw, err := conn.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
		})
	}
}

// measureRTT returns the round-trip time that the kernel has measured; 0: not known.
func measureRTT(conn net.Conn) (rtt time.Duration) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return 0
	}
	if raw, err := tcp.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
				rtt = time.Duration(info.Rtt) * time.Microsecond
			}
		})
	}
	return rtt
}

// The kernel may hold as many bytes that it has not sent yet (TCP_NOTSENT_LOWAT) as the path takes in unsentTime,
// within bounds. Further bytes wait in the queue of the session, where a ping can overtake them.
const (
	unsentTime     = 5 * time.Millisecond
	minUnsent      = 4 << 10
	maxUnsent      = 128 << 10
	unsentInterval = 100 * time.Millisecond // between measurements of the rate of a path
)

// unsentLimit is the number of bytes that the kernel may hold, and the measurement that it comes from.
type unsentLimit struct {
	bytes      int
	measuredAt time.Duration // in the bridge's time
	acked      uint64        // bytes that had arrived then
}

func (u *unsentLimit) set(fd, bytes int) {
	u.bytes = bytes
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, bytes)
}

// adapt measures the rate of the path, and sets the limit. As the kernel was full until now, the bytes that arrived
// since the last measurement are what the path takes.
func (u *unsentLimit) adapt(conn syscall.RawConn, now time.Duration) {
	since := now - u.measuredAt
	if since < unsentInterval {
		return
	}
	_ = conn.Control(func(s uintptr) {
		fd := int(s)
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return
		}
		arrived := info.Bytes_acked - u.acked
		u.measuredAt, u.acked = now, info.Bytes_acked
		if since > 10*unsentInterval { // the connection was idle for a part of this time
			return
		}
		bytes := int(min(maxUnsent, max(minUnsent, arrived*uint64(unsentTime)/uint64(since))))
		if bytes > u.bytes*3/2 || bytes < u.bytes*2/3 || bytes == maxUnsent && u.bytes != maxUnsent {
			u.set(fd, bytes)
		}
	})
}

// A path with a shorter round trip than maxShortPath is within one site. There, the turns that processes take on the
// processors count more than the network.
const maxShortPath = 2 * time.Millisecond

// tuneShortPath tunes a connection to a short path, if the path is short: by the kernel's measure, which does not
// depend on how busy processes are.
//
// It replaces BBR, if the system uses that. BBR paces by timers, and holds back bytes that exceed what it takes for the
// rate of the path. Its benefit, throughput despite loss on long paths, matters little here (throughput goes with
// 1/RTT). The flows within the link have a congestion control of their own.
func tuneShortPath(conn syscall.RawConn) (short bool) {
	_ = conn.Control(func(s uintptr) {
		fd := int(s)
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil || time.Duration(info.Min_rtt)*time.Microsecond >= maxShortPath {
			return
		}
		short = true
		name, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		if err == nil && strings.HasPrefix(name, "bbr") {
			_ = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic")
		}
	})
	return short
}
