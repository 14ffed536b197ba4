package router

// IPIP between nodes: packets to the gateway leave through tunl0, the device of the kernel's module ipip (ip-
// tunnel(8)), which Calico may use, too.

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Modes of IPIP.
const (
	IPIPNone      = "none"      // nodes reach each other directly
	IPIPShared    = "shared"    // another program makes tunl0
	IPIPConfigure = "configure" // the router makes tunl0
)

const (
	ipipDevice = "tunl0"
	ipipMTU    = 1440 // bytes, as a former router has it
	// ipipAlias marks a device that a router has configured.
	ipipAlias = "kubelink-router"
)

// ipip is the tunnel of the node.
type ipip struct {
	mode    string
	address netip.Addr // of the node
	system  ipipSystem
}

// ipipSystem is the kernel as ipip needs it.
type ipipSystem interface {
	Find() (*ipipState, error) // nil: there is no device
	Create() error
	Configure(s *ipipState, address netip.Prefix) error // MTU, up, alias, and an address if that is valid
	Release(s *ipipState, address netip.Prefix) error   // takes away what Configure has set
}

// ipipState is the device as it is.
type ipipState struct {
	index, mtu int
	up         bool
	addresses  []netip.Prefix // of IPv4
	alias      string
}

func newIPIP(mode string, address netip.Addr) *ipip { return &ipip{mode, address, ipipKernel{}} }

// prepareTunnel returns the tunnel as it can be used; nil: the node uses none.
func (t *ipip) prepareTunnel() (*tunnel, error) {
	if t.mode != IPIPShared && t.mode != IPIPConfigure {
		return nil, nil
	}
	s, err := t.system.Find()
	if err == nil && t.mode == IPIPConfigure {
		s, err = t.configureDevice(s)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("ipip %s: device %s: %w", t.mode, ipipDevice, err)
	case s == nil:
		return nil, fmt.Errorf("ipip %s: there is no device %s", t.mode, ipipDevice)
	case !s.up:
		return nil, fmt.Errorf("ipip %s: device %s is down", t.mode, ipipDevice)
	case len(s.addresses) == 0:
		return nil, fmt.Errorf("ipip %s: device %s has no IPv4 address", t.mode, ipipDevice)
	}
	return &tunnel{index: s.index, mtu: s.mtu}, nil
}

// configureDevice makes the device what it should be. An address that it has stays.
func (t *ipip) configureDevice(s *ipipState) (*ipipState, error) {
	var err error
	if s == nil {
		if err = t.system.Create(); err != nil {
			return nil, err
		}
		if s, err = t.system.Find(); err != nil || s == nil {
			return nil, err
		}
	}
	if s.up && s.mtu == ipipMTU && len(s.addresses) > 0 {
		return s, nil
	}
	address := netip.Prefix{}
	if len(s.addresses) == 0 {
		address = netip.PrefixFrom(t.address, t.address.BitLen())
	}
	if err := t.system.Configure(s, address); err != nil {
		return nil, err
	}
	return t.system.Find()
}

// tellRemedy says what to do when there is no tunnel.
func (t *ipip) tellRemedy() string {
	if t.mode == IPIPShared {
		return "the router waits for the program that makes it (such as Calico with IPIP); " +
			"if there is none, set --ipip=configure"
	}
	return "load the kernel module ipip, or set the property ipip vxlan in the Corefile"
}

// releaseDevice takes away what the router has set on the device.
func (t *ipip) releaseDevice() error {
	s, err := t.system.Find()
	if err != nil || s == nil || s.alias != ipipAlias {
		return err
	}
	address := netip.Prefix{}
	if len(s.addresses) == 1 && s.addresses[0].IsSingleIP() {
		address = s.addresses[0]
	}
	return t.system.Release(s, address)
}

// ipipKernel is the kernel of this machine.
type ipipKernel struct{}

// Find implements ipipSystem.
func (ipipKernel) Find() (*ipipState, error) {
	dev, err := netlink.LinkByName(ipipDevice)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	attrs := dev.Attrs()
	s := &ipipState{index: attrs.Index, mtu: attrs.MTU, up: attrs.RawFlags&unix.IFF_UP != 0, alias: attrs.Alias}
	addresses, err := netlink.AddrList(dev, netlink.FAMILY_V4)
	for _, a := range addresses {
		if p, e := netip.ParsePrefix(a.IPNet.String()); e == nil {
			s.addresses = append(s.addresses, p)
		}
	}
	return s, err
}

// Create implements ipipSystem. Loading the module makes the device already.
func (ipipKernel) Create() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = ipipDevice
	err := netlink.LinkAdd(&netlink.Iptun{LinkAttrs: attrs})
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// Configure implements ipipSystem.
func (ipipKernel) Configure(s *ipipState, address netip.Prefix) error {
	dev := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: s.index}}
	if err := netlink.LinkSetMTU(dev, ipipMTU); err != nil {
		return fmt.Errorf("mtu %d: %w", ipipMTU, err)
	}
	if address.IsValid() {
		a, err := netlink.ParseAddr(address.String())
		if err != nil {
			return err
		}
		if err := errors.Join(netlink.AddrReplace(dev, a), netlink.LinkSetAlias(dev, ipipAlias)); err != nil {
			return fmt.Errorf("address %s: %w", address, err)
		}
	}
	return netlink.LinkSetUp(dev)
}

// Release implements ipipSystem.
func (ipipKernel) Release(s *ipipState, address netip.Prefix) error {
	dev := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: s.index}}
	var errs []error
	if address.IsValid() {
		a, err := netlink.ParseAddr(address.String())
		if err == nil {
			err = netlink.AddrDel(dev, a)
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, netlink.LinkSetDown(dev), netlink.LinkSetAlias(dev, ""))...)
}
