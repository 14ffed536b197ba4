package bridge

// The TUN: the kernel's, with as many offloads as it has to give.

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"

	"github.com/songgao/water"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// DefaultMTU of the TUN, in bytes. A TCP stream carries packets of any size, so nothing has to be
// taken off for the encapsulation: with the 1500 of pods nothing is fragmented and no MSS clamped.
const DefaultMTU = 1500

// Offloads are what the kernel leaves to the other end of a TUN, and the other end to the kernel.
type Offloads uint8

// The offloads. Each one includes those before it.
const (
	OffloadTSO Offloads = 1 << iota // checksums, and TCP segments of up to 64 KiB (TUN_F_CSUM, TSO4, TSO6)
	OffloadUSO                      // UDP as well (TUN_F_USO4, USO6; Linux 6.2)
)

func (o Offloads) String() string {
	switch {
	case o&OffloadUSO != 0:
		return "checksum,TSO,USO"
	case o != 0:
		return "checksum,TSO"
	}
	return "none"
}

// device is a TUN.
type device interface {
	Queues() []tunQueue // the kernel leads a flow to the one that its packets were last written to
	Offloads() Offloads // with any, a virtio_net_hdr is before each packet
	SetMTU(mtu int) error
	// Close ends reading. With keep the device outlives it, with its addresses and routes.
	Close(keep bool) error
}

// tunQueue is one queue of a TUN. One goroutine reads, several write, whole packets.
type tunQueue interface {
	Read(packet []byte) (int, error)
	TryRead(packet []byte) (int, error) // 0: there is none
	Write(packet []byte) (int, error)
}

// kernelTUN is a TUN of the kernel. It is persistent: addresses and routes survive a killed broker, and the
// next one takes them over.
type kernelTUN struct {
	name      string
	queues    []tunQueue // tunFile all
	offloads  Offloads
	noOffload bool  // as configured
	mtu       int   // 0: not known
	refused   error // why there are no offloads that were configured
}

func (t *kernelTUN) Queues() []tunQueue { return t.queues }
func (t *kernelTUN) Offloads() Offloads { return t.offloads }

// tunFile is one open /dev/net/tun.
type tunFile struct {
	*os.File
	raw syscall.RawConn

	// Of the one that reads; made once, so that reading allocates nothing.
	read, try func(fd uintptr) bool
	into      []byte
	n         int
	err       error
}

func newTUNFile(f *os.File) (*tunFile, error) {
	q := &tunFile{File: f}
	var err error
	if q.raw, err = f.SyscallConn(); err != nil {
		return nil, err
	}
	q.read = func(fd uintptr) (done bool) {
		var again bool
		q.n, again, q.err = rawRead(fd, q.into)
		return !again
	}
	q.try = func(fd uintptr) bool { q.read(fd); return true }
	return q, nil
}

func (q *tunFile) Read(b []byte) (int, error)    { return q.readWith(b, q.read) }
func (q *tunFile) TryRead(b []byte) (int, error) { return q.readWith(b, q.try) }

func (q *tunFile) readWith(b []byte, read func(fd uintptr) bool) (int, error) {
	q.into = b
	err := q.raw.Read(read)
	if err == nil && q.err != nil {
		err = os.NewSyscallError("read", q.err)
	}
	return q.n, err
}

// tunWrite is a write to a TUN: several goroutines do so at the same time.
type tunWrite struct {
	packet []byte
	err    error
	do     func(fd uintptr)
}

var tunWrites = sync.Pool{New: func() any {
	w := new(tunWrite)
	w.do = func(fd uintptr) {
		if _, again, err := rawWrite(fd, w.packet); again {
			w.err = syscall.EAGAIN
		} else {
			w.err = err
		}
	}
	return w
}}

func (q *tunFile) Write(packet []byte) (int, error) {
	w := tunWrites.Get().(*tunWrite)
	w.packet = packet
	err := q.raw.Control(w.do)
	if err == nil {
		err = w.err
	}
	w.packet = nil
	tunWrites.Put(w)
	return len(packet), err
}

// openTUN opens the TUN with what the kernel has to give, or takes over the one that an earlier process left. That
// only one process does so is up to the caller: queues of several would share the packets.
func openTUN(name string, mtu int, noOffload bool) (device, error) {
	var dev *kernelTUN
	var err, refused error
	if !noOffload {
		dev, refused = openWithOffloads(name, runtime.GOMAXPROCS(0))
		err = refused
	}
	if noOffload || lacksOffloads(err) {
		dev, err = openWithoutOffloads(name)
	}
	switch {
	case errors.Is(err, syscall.EBUSY):
		return nil, fmt.Errorf("open TUN %s: in use by another process: end it (another kubelink on this node?) or choose another ifce-name", name)
	case errors.Is(err, syscall.EINVAL):
		return nil, fmt.Errorf("open TUN %s: a device of another kind has this name: remove it (ip link del %s) or choose another ifce-name", name, name)
	case errors.Is(err, os.ErrNotExist), errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("open TUN %s: %w: needs /dev/net/tun and the capability NET_ADMIN", name, err)
	case err != nil:
		return nil, fmt.Errorf("open TUN %s: %w", name, err)
	}
	dev.noOffload, dev.refused = noOffload, refused
	if err := dev.SetMTU(mtu); err != nil {
		dev.Close(true)
		return nil, err
	}
	return dev, nil
}

// lacksOffloads tells whether err is that of a kernel that has no offloads, rather than of a moment.
func lacksOffloads(err error) bool {
	return errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTTY) || errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS)
}

// openWithOffloads opens the TUN with virtio_net_hdr and several queues (linux/if_tun.h).
func openWithOffloads(name string, queues int) (*kernelTUN, error) {
	const flags = unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_MULTI_QUEUE
	t := &kernelTUN{name: name}
	for len(t.queues) < queues {
		fd, err := attachQueue(name, flags)
		if errors.Is(err, syscall.EINVAL) && len(t.queues) == 0 && removeDevice(name) {
			fd, err = attachQueue(name, flags)
		}
		if err != nil && len(t.queues) > 0 {
			break // fewer will do
		}
		if err != nil {
			return nil, err
		}
		for _, option := range []struct {
			request uint
			value   int
		}{{unix.TUNSETVNETHDRSZ, vnetSize}, {unix.TUNSETVNETLE, 1}} {
			if err := unix.IoctlSetPointerInt(fd, option.request, option.value); err != nil {
				unix.Close(fd)
				return nil, errors.Join(os.NewSyscallError("ioctl", err), t.Close(true))
			}
		}
		if err = unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err == nil && len(t.queues) == 0 {
			t.offloads, err = setOffloads(fd)
		}
		if err != nil {
			unix.Close(fd)
			return nil, errors.Join(os.NewSyscallError("ioctl", err), t.Close(true))
		}
		if err := t.addQueue(os.NewFile(uintptr(fd), "/dev/net/tun")); err != nil { // is not blocking: the runtime polls it
			return nil, errors.Join(err, t.Close(true))
		}
	}
	return t, nil
}

// attachQueue opens a queue of the TUN, and makes the TUN if it is not there.
func attachQueue(name string, flags uint16) (int, error) {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return -1, err
	}
	request.SetUint16(flags)
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("open", err)
	}
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("TUNSETIFF", err)
	}
	return fd, nil
}

// removeDevice deletes a TUN that is there, unless it is in use. It is not of the kind that is wanted (the kernel does not
// make one of several queues from one of a single queue, nor the other way round; its addresses and routes are set
// again), or nobody wants it any more.
func removeDevice(name string) bool {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return false
	}
	tun, ok := link.(*netlink.Tuntap)
	if !ok || tun.Mode != netlink.TUNTAP_MODE_TUN || tun.Queues > 0 { // how many of several queues are in use
		return false
	}
	if fd, err := attachQueue(name, unix.IFF_TUN|unix.IFF_NO_PI); err == nil { // one of a single queue, which nobody uses
		unix.Close(fd)
	} else if errors.Is(err, syscall.EBUSY) {
		return false
	}
	return netlink.LinkDel(link) == nil
}

// setOffloads sets as many as the kernel has.
func setOffloads(fd int) (Offloads, error) {
	const tso = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	if unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tso|unix.TUN_F_USO4|unix.TUN_F_USO6) == nil {
		return OffloadTSO | OffloadUSO, nil
	}
	return OffloadTSO, unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tso)
}

// openWithoutOffloads opens the TUN without any of that.
func openWithoutOffloads(name string) (*kernelTUN, error) {
	config := water.Config{DeviceType: water.TUN}
	config.Name, config.Persist = name, true
	ifce, err := water.New(config)
	if errors.Is(err, syscall.EINVAL) && removeDevice(name) {
		ifce, err = water.New(config)
	}
	if err != nil {
		return nil, err
	}
	t := &kernelTUN{name: name}
	err = t.addQueue(ifce.ReadWriteCloser.(*os.File))
	if err == nil { // an earlier process may have left some offloads
		err = t.controlQueue(func(fd int) error {
			unix.CloseOnExec(fd) // water does not: a program that the broker runs would hold the TUN
			return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, 0)
		})
	}
	if err != nil {
		return nil, errors.Join(err, t.Close(true))
	}
	return t, nil
}

func (t *kernelTUN) addQueue(f *os.File) error {
	q, err := newTUNFile(f)
	if err != nil {
		f.Close()
		return err
	}
	t.queues = append(t.queues, q)
	return nil
}

// controlQueue runs f with the file descriptor of the first queue.
func (t *kernelTUN) controlQueue(f func(fd int) error) error {
	var err error
	if e := t.queues[0].(*tunFile).raw.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil {
		err = e
	}
	return os.NewSyscallError("ioctl", err)
}

func (t *kernelTUN) SetMTU(mtu int) error {
	if t.mtu == mtu {
		return nil
	}
	link, err := netlink.LinkByName(t.name)
	if err == nil && link.Attrs().MTU != mtu {
		err = netlink.LinkSetMTU(link, mtu)
	}
	if err != nil {
		return fmt.Errorf("set MTU %d of %s: %w", mtu, t.name, err)
	}
	t.mtu = mtu
	return nil
}

func (t *kernelTUN) Close(keep bool) error {
	var err error
	if !keep && len(t.queues) > 0 {
		if err = t.controlQueue(func(fd int) error { return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 0) }); err != nil {
			err = fmt.Errorf("delete TUN %s: %w", t.name, err)
		}
	}
	for _, q := range t.queues {
		if e := q.(*tunFile).Close(); !errors.Is(e, os.ErrClosed) { // the reader closes what failed
			err = errors.Join(err, e)
		}
	}
	return err
}

// noDevice is there while the TUN is not.
type noDevice struct{}

func (noDevice) Queues() []tunQueue          { return []tunQueue{noDevice{}} }
func (noDevice) Offloads() Offloads          { return 0 }
func (noDevice) Read([]byte) (int, error)    { return 0, os.ErrClosed }
func (noDevice) TryRead([]byte) (int, error) { return 0, os.ErrClosed }
func (noDevice) Write([]byte) (int, error)   { return 0, os.ErrClosed }
func (noDevice) SetMTU(int) error            { return nil }
func (noDevice) Close(bool) error            { return nil }
