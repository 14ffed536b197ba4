package wireguard

// WireGuard in this process: wireguard-go on a TUN. The TUN is persistent: its addresses and routes survive a killed
// broker, and the next one takes it over.

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/mandelsoft/kubelink/broker/tundevice"
)

const (
	// tunFlags are those of wireguard-go: a single queue, packets as large as the kernel makes them.
	tunFlags = unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	// vnetSize is the size of the header before packets that wireguard-go expects.
	vnetSize = 10
)

// userspace is wireguard-go in this process.
type userspace struct {
	name   string
	file   *os.File // of the TUN
	device *device.Device
	socket *uapiSocket // nil: wg(8) does not see the device
	links  kernelLinks
}

// openUserspace opens the TUN, or takes over the one that an earlier process has left, and runs WireGuard on it.
func (o *opener) openUserspace(mtu int) (backend, error) {
	file, err := openTUN(o.name)
	if errors.Is(err, syscall.EINVAL) && tundevice.Remove(o.name) { // that of bridge mode, which has several queues
		file, err = openTUN(o.name)
	}
	if err != nil {
		return nil, tundevice.DescribeError(o.name, err)
	}
	packets, err := tun.CreateTUNFromFile(file, mtu)
	if err != nil {
		return nil, fmt.Errorf("open TUN %s: %w", o.name, errors.Join(err, file.Close()))
	}
	sockets := new(bind)
	found, err := o.links.Find(o.name)
	if err == nil && found != nil { // wireguard-go opens the sockets as soon as it sees that the TUN is up
		sockets.tunnel = found.Attrs().Index
	}
	u := &userspace{name: o.name, file: file, links: o.links,
		device: device.NewDevice(packets, sockets, newLogger(o.log))}
	if err == nil && found != nil {
		err = u.Adjust(mtu, false)
	}
	if err == nil {
		err = u.device.Up()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start WireGuard on %s: %w", o.name, err), u.Close(true))
	}
	if u.socket, err = serveSocket(o.name, u.device); err != nil && o.warned != err.Error() {
		o.warned = err.Error()
		o.log.Warn("wg(8) cannot show the device; links need nothing of it: let the container have a writable "+
			socketFolder+" (volume emptyDir)", "interface", o.name, "error", err)
	}
	return u, nil
}

// openTUN opens a TUN, and makes it if it does not exist.
func openTUN(name string) (*os.File, error) {
	fd, err := tundevice.Open(name, tunFlags)
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1),
		unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, vnetSize), // an earlier process may have set another one
	)
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("ioctl", err)
	}
	return os.NewFile(uintptr(fd), tundevice.Path), nil
}

// newLogger makes a logger for wireguard-go. It may log an error per packet, so a line a second is all that it gets.
func newLogger(log *slog.Logger) *device.Logger {
	var last atomic.Int64
	return &device.Logger{Verbosef: device.DiscardLogf, Errorf: func(format string, args ...any) {
		now := time.Now().UnixNano()
		if before := last.Load(); now-before > int64(time.Second) && last.CompareAndSwap(before, now) {
			log.Debug("WireGuard: " + fmt.Sprintf(format, args...))
		}
	}}
}

func (u *userspace) Kind() string { return "userspace" }

func (u *userspace) Read() (*wgtypes.Device, error) {
	select {
	case <-u.device.Wait():
		return nil, fmt.Errorf("TUN %s is gone: %w", u.name, os.ErrClosed)
	default:
	}
	text, err := u.device.IpcGet()
	if err != nil {
		return nil, err
	}
	d, err := parseDevice(text)
	if err == nil {
		d.Name = u.name
	}
	return d, err
}

func (u *userspace) IsForeign(*wgtypes.Device, wgtypes.Key) bool { return false }

func (u *userspace) Tell(c wgtypes.Config) error { return u.device.IpcSet(formatConfig(c)) }

func (u *userspace) Adjust(mtu int, _ bool) error {
	found, err := u.links.Find(u.name)
	if err != nil || found == nil {
		return err
	}
	return u.links.Adjust(found, mtu, found.Attrs().Alias)
}

func (u *userspace) Close(keep bool) error {
	u.socket.close()
	var err error
	if raw, e := u.file.SyscallConn(); !keep && e == nil {
		e = raw.Control(func(fd uintptr) { err = unix.IoctlSetInt(int(fd), unix.TUNSETPERSIST, 0) })
		if err = os.NewSyscallError("TUNSETPERSIST", err); e != nil {
			err = nil // the TUN was removed, and wireguard-go has closed the file
		}
	}
	u.device.Close()
	<-u.device.Wait()
	if err != nil {
		return fmt.Errorf("delete TUN %s: %w", u.name, err)
	}
	return nil
}
