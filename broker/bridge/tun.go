package bridge

// The TUN, and outbound packets on their way from it to the queue of a peer. session.go has the
// rest of their way.

import (
	"errors"
	"fmt"
	"os"
	"syscall"

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

// readTUN takes packets from the TUN until it is closed.
func (b *Bridge) readTUN() {
	out := b.newOutbound()
	for {
		n, err := b.device.Read(out.buf.data[headroom:])
		if err != nil {
			if b.ctx.Err() == nil {
				b.log.Error("TUN failed, no more packets are sent", "interface", b.name, "error", err)
				b.failure.Store(new(fmt.Errorf("read TUN %s: %w", b.name, err)))
				b.changed()
			}
			return
		}
		out.packet(n)
	}
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
	p, ok := o.table.Load().routes.Lookup(dst)
	if !ok {
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
	_, err := b.device.Write(packet)
	return err == nil
}
