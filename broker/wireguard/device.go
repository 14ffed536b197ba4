package wireguard

// Devices: the one that exists under the name, or the kernel's, or wireguard-go in this process.

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/tundevice"
)

// backend is a WireGuard device. One goroutine calls it.
type backend interface {
	// Kind is "kernel", "userspace" (in this process) or "adopted" (in another process).
	Kind() string
	// Read says what the device is. An error: it is there no more; errHangs: its process does not answer.
	Read() (*wgtypes.Device, error)
	// IsForeign tells whether the device may be in use for something else: it is not ours, and has another key.
	IsForeign(is *wgtypes.Device, key wgtypes.Key) bool
	// Tell changes the device.
	Tell(wgtypes.Config) error
	// Adjust sets the MTU, and sees to it that the device is up. With mark, a device without mark is ours from now on.
	Adjust(mtu int, mark bool) error
	// Close ends the use of the device. Without keep it removes the device, or its peers if the device is not ours.
	Close(keep bool) error
}

// control speaks with devices of the kernel, as a wgctrl.Client does, or of other processes.
type control interface {
	Device(name string) (*wgtypes.Device, error)
	ConfigureDevice(name string, config wgtypes.Config) error
	Close() error
}

func newControl() (control, error) { return wgctrl.New() }

// opener opens the device of a name.
type opener struct {
	name    string
	log     *slog.Logger
	links   kernelLinks
	control func() (control, error)

	warned string // the last warning, which is not logged again
}

const (
	mark      = "kubelink"       // alias of our devices (ifalias in sysfs, `ip link show`)
	probeName = "kubelink-probe" // of a device that shows whether the kernel has WireGuard
	kindLink  = "wireguard"      // of devices in rtnetlink
)

// open adopts the device that exists and is of the wanted implementation, or makes one.
func (o *opener) open(want link.WireGuardDevice, mtu int) (backend, error) {
	if want == "" {
		want = link.AutoDevice
	}
	found, err := o.links.Find(o.name)
	if err != nil {
		return nil, err
	}
	inUse := false
	switch {
	case found == nil:
	case found.Type() == kindLink:
		if want != link.UserspaceDevice {
			return o.adopt(found)
		}
		if found.Attrs().Alias != mark {
			return nil, fmt.Errorf("%s is a WireGuard device of the kernel that kubelink did not make: remove it "+
				"(ip link del %s), or set wireguard-device auto, which uses it", o.name, o.name)
		}
		if err := o.links.Delete(found); err != nil {
			return nil, err
		}
	case !tundevice.IsTUN(found):
		return nil, fmt.Errorf("%s is a device of another kind (%s): remove it (ip link del %s) or choose another "+
			"ifce-name", o.name, describeKind(found), o.name)
	default:
		inUse = tundevice.IsInUse(found)
	}
	if inUse {
		return o.adoptProcess(want, found)
	}
	if want != link.UserspaceDevice {
		b, err := o.makeKernel(found, mtu)
		if err == nil || want == link.KernelDevice || !errors.Is(err, syscall.EOPNOTSUPP) {
			return b, err
		}
	}
	return o.openUserspace(mtu)
}

func describeKind(l netlink.Link) string {
	if l.Type() == "tuntap" {
		return "TAP"
	}
	return l.Type()
}

// adoptProcess takes over the device of another process, which tells what it does at the socket of wg(8).
func (o *opener) adoptProcess(want link.WireGuardDevice, found netlink.Link) (backend, error) {
	if want == link.KernelDevice {
		return nil, fmt.Errorf("TUN %s is in use by another process: end it, or set wireguard-device auto, which uses "+
			"the WireGuard of that process", o.name)
	}
	b, err := o.adopt(found)
	if err != nil && !errors.Is(err, errHangs) {
		return nil, fmt.Errorf("TUN %s is in use by a process that serves no WireGuard at %s (%v): end it "+
			"(another kubelink on this node?) or choose another ifce-name", o.name, socketPath(o.name), err)
	}
	return b, err
}

// adopt takes over what is there.
func (o *opener) adopt(found netlink.Link) (backend, error) {
	b := &controlled{name: o.name, control: processControl{}, links: o.links, kind: "adopted",
		ours: found.Attrs().Alias == mark}
	if found.Type() == kindLink {
		c, err := o.control()
		if err != nil {
			return nil, fmt.Errorf("speak with WireGuard devices: %w", err)
		}
		b.control, b.kind = c, "kernel"
	}
	if _, err := b.Read(); err != nil {
		return nil, errors.Join(err, b.control.Close())
	}
	return b, nil
}

// makeKernel makes a device of the kernel in the place of a TUN that is not in use. The error is EOPNOTSUPP if the
// kernel has no WireGuard; the TUN stays then.
func (o *opener) makeKernel(tun netlink.Link, mtu int) (backend, error) {
	describe := func(err error) error {
		switch {
		case errors.Is(err, syscall.EOPNOTSUPP):
			return fmt.Errorf("make device %s: the kernel has no WireGuard (%w): load the module wireguard on the node "+
				"(modprobe wireguard), or set wireguard-device auto or userspace", o.name, err)
		case errors.Is(err, os.ErrPermission):
			return fmt.Errorf("make device %s: %w: the process lacks the capability NET_ADMIN: add it to "+
				"securityContext.capabilities.add of the container, as deploy/base/deployment.yaml does", o.name, err)
		}
		return fmt.Errorf("make WireGuard device %s: %w", o.name, err)
	}
	wanted := func(name string) *netlink.Wireguard {
		return &netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: mtu}}
	}
	if tun != nil {
		if err := o.links.Add(wanted(probeName)); err != nil && !errors.Is(err, syscall.EEXIST) {
			return nil, describe(err)
		}
		probe, err := o.links.Find(probeName)
		if err == nil && probe != nil {
			err = o.links.Delete(probe)
		}
		if err = errors.Join(err, o.links.Delete(tun)); err != nil {
			return nil, describe(err)
		}
	}
	if err := o.links.Add(wanted(o.name)); err != nil {
		return nil, describe(err)
	}
	made, err := o.links.Find(o.name)
	if err != nil || made == nil {
		return nil, describe(errors.Join(err, errors.New("it is not there")))
	}
	if err := o.links.Adjust(made, mtu, mark); err != nil {
		return nil, describe(errors.Join(err, o.links.Delete(made)))
	}
	made.Attrs().Alias = mark
	return o.adopt(made)
}

// removeStrays removes the devices of the kernel that are marked as ours and have another name.
func removeStrays(links kernelLinks, name string) error {
	all, err := links.List()
	for _, l := range all {
		if l.Type() == kindLink && l.Attrs().Alias == mark && l.Attrs().Name != name {
			err = errors.Join(err, links.Delete(l))
		}
	}
	return err
}

// RemoveDevices removes the devices of the kernel that an earlier process has left in this mode.
func RemoveDevices() error { return removeStrays(rtnetlink{}, "") }

// controlled is a device of the kernel or of another process.
type controlled struct {
	name    string
	control control
	links   kernelLinks
	kind    string
	ours    bool // marked: no other key keeps us from it, and one of the kernel goes with us
	told    bool // Tell was called
}

func (c *controlled) Kind() string                   { return c.kind }
func (c *controlled) Read() (*wgtypes.Device, error) { return c.control.Device(c.name) }

func (c *controlled) IsForeign(is *wgtypes.Device, key wgtypes.Key) bool {
	return !c.ours && is.PrivateKey != (wgtypes.Key{}) && is.PrivateKey != key
}

func (c *controlled) Tell(config wgtypes.Config) error {
	c.told = true
	return c.control.ConfigureDevice(c.name, config)
}

func (c *controlled) Adjust(mtu int, marked bool) error {
	found, err := c.links.Find(c.name)
	if err != nil || found == nil {
		return err // Read tells that it is gone
	}
	alias := found.Attrs().Alias
	if marked && alias == "" {
		alias = mark
	}
	c.ours = alias == mark
	return c.links.Adjust(found, mtu, alias)
}

func (c *controlled) Close(keep bool) error {
	var err error
	switch {
	case keep:
	case c.kind == "kernel" && c.ours:
		var found netlink.Link
		if found, err = c.links.Find(c.name); err == nil && found != nil {
			err = c.links.Delete(found)
		}
	case !c.ours && !c.told: // it may be foreign
	default:
		err = c.Tell(wgtypes.Config{ReplacePeers: true})
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			err = nil // it is gone
		}
	}
	return errors.Join(err, c.control.Close())
}

// kernelLinks are the devices of the kernel.
type kernelLinks interface {
	Find(name string) (netlink.Link, error) // nil: there is none
	List() ([]netlink.Link, error)
	Add(netlink.Link) error
	Delete(netlink.Link) error
	// Adjust sets MTU and alias, and sets the device up, where that differs.
	Adjust(l netlink.Link, mtu int, alias string) error
}

// rtnetlink is the kernel of this machine (rtnetlink(7)).
type rtnetlink struct{}

func (rtnetlink) Find(name string) (netlink.Link, error) {
	found, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find device %s: %w", name, err)
	}
	return found, nil
}

func (rtnetlink) List() ([]netlink.Link, error) {
	all, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	return all, nil
}

func (rtnetlink) Add(l netlink.Link) error { return netlink.LinkAdd(l) }

func (rtnetlink) Delete(l netlink.Link) error {
	if err := netlink.LinkDel(l); err != nil && !errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("remove device %s: %w", l.Attrs().Name, err)
	}
	return nil
}

func (rtnetlink) Adjust(l netlink.Link, mtu int, alias string) error {
	is := l.Attrs()
	var errs []error
	if is.MTU != mtu {
		errs = append(errs, netlink.LinkSetMTU(l, mtu))
	}
	if is.Alias != alias {
		errs = append(errs, netlink.LinkSetAlias(l, alias))
	}
	if is.RawFlags&unix.IFF_UP == 0 {
		errs = append(errs, netlink.LinkSetUp(l))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("set device %s up with MTU %d: %w", is.Name, mtu, err)
	}
	return nil
}
