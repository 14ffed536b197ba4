package bridge

// The TUN of the kernel, with as many offloads and queues as the kernel has.

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

	"github.com/mandelsoft/kubelink/broker/tundevice"
)

// kernelTUN is a TUN of the kernel. It is persistent: addresses and routes survive a killed broker, and the next broker
// takes them over.
type kernelTUN struct {
	name      string
	queues    []tunQueue // each is a *tunFile
	offloads  Offloads
	noOffload bool  // as configured
	mtu       int   // 0: not known
	refused   error // reason why there are no offloads that were configured
}

func (t *kernelTUN) Queues() []tunQueue { return t.queues }
func (t *kernelTUN) Offloads() Offloads { return t.offloads }

// tunFile is one open /dev/net/tun.
type tunFile struct {
	*os.File
	raw    syscall.RawConn
	reader *rawReader
}

func newTUNFile(f *os.File) (*tunFile, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &tunFile{f, raw, newRawReader(raw)}, nil
}

func (q *tunFile) Read(b []byte) (int, error)    { return q.reader.readInto(b, q.reader.wait) }
func (q *tunFile) TryRead(b []byte) (int, error) { return q.reader.readInto(b, q.reader.try) }

// tunWrite is a write to a TUN. Several goroutines write at the same time.
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

// openTUN opens the TUN with the offloads of the kernel, or takes over the TUN that an earlier process left. The caller
// ensures that only one process does so: queues of several processes would share the packets.
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
	if err != nil {
		return nil, tundevice.DescribeError(name, err)
	}
	dev.noOffload, dev.refused = noOffload, refused
	if err := dev.SetMTU(mtu); err != nil {
		dev.Close(true)
		return nil, err
	}
	return dev, nil
}

// lacksOffloads tells whether err comes from a kernel without offloads. Other errors may be temporary.
func lacksOffloads(err error) bool {
	return errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTTY) ||
		errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS)
}

// openWithOffloads opens the TUN with virtio_net_hdr and several queues (linux/if_tun.h).
func openWithOffloads(name string, queues int) (*kernelTUN, error) {
	const flags = unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_MULTI_QUEUE
	t := &kernelTUN{name: name}
	for len(t.queues) < queues {
		fd, err := tundevice.Open(name, flags)
		if errors.Is(err, syscall.EINVAL) && len(t.queues) == 0 && tundevice.Remove(name) {
			fd, err = tundevice.Open(name, flags)
		}
		if err != nil && len(t.queues) > 0 {
			break // fewer queues suffice
		}
		if err != nil {
			return nil, err
		}
		if err := t.setQueueOptions(fd); err != nil {
			unix.Close(fd)
			return nil, errors.Join(os.NewSyscallError("ioctl", err), t.Close(true))
		}
		// The file descriptor is non-blocking, so the runtime polls it.
		if err := t.addQueue(os.NewFile(uintptr(fd), tundevice.Path)); err != nil {
			return nil, errors.Join(err, t.Close(true))
		}
	}
	return t, nil
}

// setQueueOptions sets the options of a queue that is not added yet. With the first queue it sets the offloads.
func (t *kernelTUN) setQueueOptions(fd int) error {
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, vnetSize); err != nil {
		return err
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETLE, 1); err != nil {
		return err
	}
	err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1)
	if err == nil && len(t.queues) == 0 {
		t.offloads, err = setOffloads(fd)
	}
	return err
}

// setOffloads sets all offloads that the kernel has.
func setOffloads(fd int) (Offloads, error) {
	const tso = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	if unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tso|unix.TUN_F_USO4|unix.TUN_F_USO6) == nil {
		return OffloadTSO | OffloadUSO, nil
	}
	return OffloadTSO, unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tso)
}

// openWithoutOffloads opens the TUN with a single queue, and without virtio_net_hdr.
func openWithoutOffloads(name string) (*kernelTUN, error) {
	config := water.Config{DeviceType: water.TUN}
	config.Name, config.Persist = name, true
	ifce, err := water.New(config)
	if errors.Is(err, syscall.EINVAL) && tundevice.Remove(name) {
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
		err = t.controlQueue(func(fd int) error { return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 0) })
		if err != nil {
			err = fmt.Errorf("delete TUN %s: %w", t.name, err)
		}
	}
	for _, q := range t.queues {
		if e := q.(*tunFile).Close(); !errors.Is(e, os.ErrClosed) { // readDevice closes queues when one of them failed
			err = errors.Join(err, e)
		}
	}
	return err
}
