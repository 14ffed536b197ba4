package bridge

// The TUN, and outbound packets on their way from it to the queue of a peer. session.go has the
// rest of their way.

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/songgao/water"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// DefaultMTU of the TUN, in bytes. A TCP stream carries packets of any size, so nothing has to be
// taken off for the encapsulation: with the 1500 of pods nothing is fragmented and no MSS clamped.
const DefaultMTU = 1500

// device is one end of a TUN: whole packets. Several goroutines write, one reads.
type device interface {
	Read(packet []byte) (int, error)
	Write(packet []byte) (int, error)
	// Close ends Read. With keep the device outlives it, with its addresses and routes.
	Close(keep bool) error
}

// kernelTUN is a TUN of the kernel. It is persistent: addresses and routes survive a killed broker, and the
// next one takes them over.
type kernelTUN struct {
	*water.Interface
}

func openTUN(name string, mtu int) (device, error) {
	config := water.Config{DeviceType: water.TUN}
	config.Name, config.Persist = name, true
	ifce, err := water.New(config)
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
	dev := kernelTUN{ifce}
	if err := dev.setMTU(mtu); err != nil {
		dev.Close(true)
		return nil, err
	}
	return dev, nil
}

func (t kernelTUN) setMTU(mtu int) error {
	link, err := netlink.LinkByName(t.Name())
	if err == nil && link.Attrs().MTU != mtu {
		err = netlink.LinkSetMTU(link, mtu)
	}
	if err != nil {
		return fmt.Errorf("set MTU %d of %s: %w", mtu, t.Name(), err)
	}
	return nil
}

func (t kernelTUN) Close(keep bool) error {
	var err error
	if !keep {
		var raw syscall.RawConn
		if raw, err = t.ReadWriteCloser.(*os.File).SyscallConn(); err == nil {
			if e := raw.Control(func(fd uintptr) { err = unix.IoctlSetInt(int(fd), unix.TUNSETPERSIST, 0) }); e != nil {
				err = e
			}
		}
		if err != nil {
			err = fmt.Errorf("delete TUN %s: %w", t.Name(), err)
		}
	}
	return errors.Join(err, t.Interface.Close())
}

// noDevice is there while the TUN is not.
type noDevice struct{}

func (noDevice) Read([]byte) (int, error)  { return 0, os.ErrClosed }
func (noDevice) Write([]byte) (int, error) { return 0, os.ErrClosed }
func (noDevice) Close(bool) error          { return nil }

// Pauses before a TUN that failed is opened again: the first one, doubled each time, and the last.
const (
	reopenFirst = 100 * time.Millisecond
	reopenMost  = 5 * time.Second
)

// readTUN takes packets from the TUN until the bridge is closed. A TUN that fails, as it does when
// somebody deletes it, is opened again.
func (b *Bridge) readTUN() {
	out := b.newOutbound()
	dev, pause := *b.device.Load(), reopenFirst
	for {
		n, err := dev.Read(out.buf.data[headroom:])
		if err == nil {
			pause = reopenFirst
			out.packet(n)
			continue
		}
		if !b.setDevice(noDevice{}) {
			return
		}
		b.log.Error("TUN failed, it is opened again", "interface", b.name, "error", err)
		b.failure.Store(new(fmt.Errorf("read TUN %s: %w", b.name, err)))
		b.changed()
		dev.Close(true) // else the name stays in use
		for dev = nil; dev == nil; pause = min(2*pause, reopenMost) {
			select {
			case <-time.After(pause):
			case <-b.ctx.Done():
				return
			}
			if dev, err = b.open(); err != nil {
				dev = nil
				b.log.Warn("TUN is still missing", "error", err)
			}
		}
		if !b.setDevice(dev) {
			dev.Close(false) // it is new: there is nothing on it to keep
			return
		}
		b.log.Info("TUN is open again", "interface", b.name)
		b.failure.Store(nil)
		b.changed()
	}
}

// setDevice replaces the device, unless the bridge is closed: Close takes care of the one it finds.
func (b *Bridge) setDevice(dev device) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.device.Store(&dev)
	return true
}

// outbound is the state of one TUN reader.
type outbound struct {
	*Bridge
	buf   *buffer // large, the next packet is read into it
	icmp  [1280]byte
	limit limiter
}

func (b *Bridge) newOutbound() *outbound {
	return &outbound{Bridge: b, buf: newBuffer(maxPayload), limit: limiter{every: icmpInterval, burst: icmpBurst}}
}

// packet sends the n bytes in buf to the peer they are for. A small packet is copied, so that a queue
// holds small buffers; a large one goes with its buffer.
func (o *outbound) packet(n int) {
	o.buf.size = n
	packet := o.buf.packet()
	_, dst, ok := addresses(packet)
	if !ok {
		o.drops.add(DropMalformed)
		return
	}
	p, _ := o.table.Load().routes.Lookup(dst)
	if p == nil {
		o.drops.add(DropNoLink)
		o.answer(packet)
		return
	}
	if !p.reachable() {
		p.count.drops.add(DropNotConnected)
		o.answer(packet)
		return
	}
	if n <= smallPacket {
		p.send(copyBuffer(packet))
		return
	}
	p.send(o.buf)
	o.buf = newBuffer(maxPayload)
}

// answer tells the sender of packet that its destination cannot be reached.
func (o *outbound) answer(packet []byte) {
	if !o.limit.allow(o.now()) {
		return
	}
	if msg := unreachable(o.icmp[:], packet); msg != nil {
		o.write(msg)
	}
}

// write writes a packet to the TUN.
func (b *Bridge) write(packet []byte) bool {
	_, err := (*b.device.Load()).Write(packet)
	return err == nil
}
