package wireguard

// Sockets of the control channel: bound to the device.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// channelSystem is what control channels need of the kernel.
type channelSystem interface {
	// Listen listens on the control port of a local address, for what arrives through the device.
	Listen(device string, local netip.Addr) (net.Listener, error)
	// Dial connects with the control port of a peer, through the device.
	Dial(ctx context.Context, device string, local, peer netip.Addr) (net.Conn, error)
	// Index identifies the device; 0: there is none.
	Index(device string) int
}

// channelSockets asks the kernel.
type channelSockets struct{}

func (channelSockets) Listen(device string, local netip.Addr) (net.Listener, error) {
	config := net.ListenConfig{KeepAlive: -1, Control: func(_, _ string, raw syscall.RawConn) error {
		return controlSocket(raw, func(fd int) error {
			// The address comes to the device later than the peers do.
			level, option := unix.SOL_IP, unix.IP_FREEBIND
			if local.Is6() {
				level, option = unix.SOL_IPV6, unix.IPV6_FREEBIND
			}
			if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
				return fmt.Errorf("IP_FREEBIND: %w", err)
			}
			return bindToDevice(fd, device)
		})
	}}
	config.SetMultipathTCP(false)
	l, err := config.Listen(context.Background(), "tcp", channelAddress(local))
	if errors.Is(err, unix.EADDRINUSE) {
		err = fmt.Errorf("%w: end the program that has this port of this address, or of all addresses", err)
	}
	if err != nil {
		return nil, fmt.Errorf("control channel: %w", err)
	}
	return l, nil
}

func (channelSockets) Dial(ctx context.Context, device string, local, peer netip.Addr) (net.Conn, error) {
	d := net.Dialer{
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(local, 0)), KeepAlive: -1,
		Control: func(_, _ string, raw syscall.RawConn) error {
			return controlSocket(raw, func(fd int) error { return bindToDevice(fd, device) })
		},
	}
	d.SetMultipathTCP(false)
	return d.DialContext(ctx, "tcp", channelAddress(peer))
}

func (channelSockets) Index(device string) int {
	found, err := netlink.LinkByName(device)
	if err != nil {
		return 0
	}
	return found.Attrs().Index
}

func channelAddress(a netip.Addr) string { return netip.AddrPortFrom(a, mesh.ControlPort).String() }

// bindToDevice binds a socket to the device: nothing that comes another way reaches it, and nothing leaves another way.
func bindToDevice(fd int, device string) error {
	err := unix.BindToDevice(fd, device)
	if err == unix.EPERM {
		return fmt.Errorf("bind to device %s: %w: before Linux 5.7 that needs the capability NET_RAW", device, err)
	}
	if err != nil {
		return fmt.Errorf("bind to device %s: %w", device, err)
	}
	return nil
}

// controlSocket runs f with the file descriptor of a socket.
func controlSocket(raw syscall.RawConn, f func(fd int) error) error {
	var err error
	if e := raw.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil {
		return e
	}
	return err
}

// dropConn ends a connection so that the kernel keeps nothing of it: it sends a reset, and no bytes that wait.
func dropConn(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		// An error says that the connection has ended already.
		_ = tcp.SetLinger(0)
	}
	conn.Close()
}

// sourceOf is the address at the other end of a connection.
func sourceOf(conn net.Conn) netip.Addr { return addrOf(conn.RemoteAddr()) }

func addrOf(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// describeFailure says in few words why a connection is not there: the same words for the same failure.
func describeFailure(err error) string {
	errno, isErrno := errors.AsType[syscall.Errno](err)
	var timeout net.Error
	switch {
	case isErrno:
		return errno.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "closed by the peer"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timed out"
	}
	return hello.CutText(err.Error(), hello.MaxReason)
}
