package bridge

// The network interface of the bridge: the TUN that is there now, writes to it, and its replacement when it fails or
// when its offloads are to change.

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mandelsoft/kubelink/broker/tundevice"
)

// Pauses before a TUN that failed is opened again: the first pause, doubled each time, up to the last one.
const (
	minReopenPause = 100 * time.Millisecond
	maxReopenPause = 5 * time.Second
)

// iface is the network interface of the bridge. Packets are written to the device of the moment.
type iface struct {
	*shared
	name       string
	openDevice func() (device, error)
	device     atomic.Pointer[device]
	reopen     atomic.Bool           // the device was closed to be opened again with other offloads
	failure    atomic.Pointer[error] // of the device; nil: none

	// mu guards the fields below, and the replacement of device. It is held while the MTU is set (rtnetlink) and while the
	// device is closed, but on no path of packets.
	mu     sync.Mutex
	closed bool
	keep   bool // when closed: the device stays
}

// open opens the device for the first time. A process that may not do so has none: names do not need it, and the state
// of the links says what is missing.
func (f *iface) open() error {
	dev, err := f.openDevice()
	if tundevice.IsMissing(err) {
		f.noteFailure(err)
		f.setDevice(noDevice{})
		return nil
	}
	if err != nil {
		return err
	}
	f.setDevice(dev)
	f.logDevice(dev)
	return nil
}

// serve calls read to read the device until it fails, and then replaces the device, until the interface is closed. A
// device fails, for example, when a user deletes it. serve calls reopened after each replacement.
func (f *iface) serve(read func(device) error, reopened func()) {
	dev := *f.device.Load()
	for {
		err := read(dev)
		if !f.setDevice(noDevice{}) {
			return
		}
		pause := minReopenPause
		if _, missing := dev.(noDevice); missing { // open has noted why
			f.notifyChanged()
		} else if f.reopen.Swap(false) {
			f.log.Info("TUN is opened again with other offloads", "interface", f.name)
			pause = 0
		} else {
			f.log.Error("TUN failed, it is opened again", "interface", f.name, "error", err)
			f.failure.Store(new(fmt.Errorf("read TUN %s: %w", f.name, err)))
			f.notifyChanged()
		}
		dev.Close(true) // else the name stays in use
		if dev = f.awaitDevice(pause); dev == nil {
			return
		}
		if !f.setDevice(dev) {
			if err := dev.Close(f.keep); err != nil {
				f.log.Warn("cannot delete the TUN", "error", err)
			}
			return
		}
		f.logDevice(dev)
		f.failure.Store(nil)
		reopened()
		f.notifyChanged()
	}
}

// awaitDevice tries to open the device until it succeeds. It returns nil when the bridge was closed.
func (f *iface) awaitDevice(pause time.Duration) device {
	for ; ; pause = min(max(2*pause, minReopenPause), maxReopenPause) {
		select {
		case <-time.After(pause):
		case <-f.ctx.Done():
			return nil
		}
		dev, err := f.openDevice()
		if err == nil {
			return dev
		}
		if f.noteFailure(err) {
			f.notifyChanged()
		}
	}
}

// noteFailure notes why there is no device, and logs it when that is news.
func (f *iface) noteFailure(err error) (news bool) {
	last := f.failure.Swap(&err)
	if news = last == nil || (*last).Error() != err.Error(); news {
		f.log.Error("links carry nothing: the TUN is missing", "interface", f.name, "error", err)
	}
	return news
}

// setDevice replaces the device, unless the interface is closed: close takes care of the device that it finds.
func (f *iface) setDevice(dev device) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	c := f.config.Load() // may have changed while the device was opened
	if t, ok := dev.(*kernelTUN); ok && t.noOffload != c.NoOffload {
		f.reopen.Store(true)
		t.Close(true)
	} else if err := dev.SetMTU(c.MTU); err != nil {
		f.log.Warn("cannot set the MTU of the TUN", "error", err)
	}
	f.device.Store(&dev)
	if _, missing := dev.(noDevice); !missing {
		f.offloads.Store(uint32(dev.Offloads()))
	}
	return true
}

// configure applies the settings to the device. Offloads change with another device: serve opens it.
func (f *iface) configure(mtuChanged bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, dev := f.config.Load(), *f.device.Load()
	if t, ok := dev.(*kernelTUN); ok && c.NoOffload != t.noOffload {
		f.reopen.Store(true)
		dev.Close(true)
	} else if mtuChanged {
		return dev.SetMTU(c.MTU)
	}
	return nil
}

// close closes the device. With keep it stays, with its addresses and routes; otherwise close deletes it. deleteMissing
// has to be called when serve has ended.
func (f *iface) close(keep bool) error {
	f.mu.Lock()
	f.closed, f.keep = true, keep
	dev := *f.device.Load()
	f.mu.Unlock()
	return dev.Close(keep)
}

// deleteMissing deletes a device that close could not delete, as it was just about to be opened again.
func (f *iface) deleteMissing(err error) error {
	_, missing := (*f.device.Load()).(noDevice)
	if !f.keep && (missing || err != nil) && tundevice.Remove(f.name) {
		return nil
	}
	return err
}

// logDevice logs what the kernel has given.
func (f *iface) logDevice(dev device) {
	attrs := []any{"interface", f.name, "queues", len(dev.Queues()), "offloads", dev.Offloads()}
	if t, ok := dev.(*kernelTUN); ok && t.refused != nil {
		attrs = append(attrs, "refused", t.refused)
	}
	f.log.Info("TUN is open", attrs...)
}
