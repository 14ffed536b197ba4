package kernel

// The real system: rtnetlink(7) through a handle of its own; iptables.go has iptables(8). This file
// translates and decides nothing.

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"runtime"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const maxDumpAttempts = 10 // to get a dump that no change interrupts

// linux is the kernel of this machine. One call at a time: the Kernel sees to that.
type linux struct {
	netlink *netlink.Handle
}

func newSystem() (*linux, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	l := &linux{handle}
	runtime.AddCleanup(l, (*netlink.Handle).Close, handle)
	return l, nil
}

func (l *linux) Dump(device, pod string) (o *objects) {
	for range maxDumpAttempts {
		o = l.dumpObjects(device, pod)
		if !o.isInterrupted() {
			break
		}
	}
	return o
}

// isInterrupted tells that a change came between the parts of a dump.
func (o *objects) isInterrupted() bool {
	return slices.ContainsFunc(slices.Collect(maps.Values(o.failed)), func(err error) bool {
		return errors.Is(err, netlink.ErrDumpInterrupted)
	})
}

func (l *linux) dumpObjects(device, pod string) *objects {
	o := &objects{failed: map[int]error{}}
	if err := errors.Join(l.dumpPod(pod, o), l.dumpDevices(device, o)); err != nil {
		for _, f := range families {
			o.failed[f] = err
		}
		return o
	}
	for _, f := range families {
		if err := l.dumpFamily(f, o); err != nil {
			o.failed[f] = err
			o.omitFamily(f)
		}
	}
	return o
}

// dumpPod reads the settings of the pod's own interface, if it exists.
func (l *linux) dumpPod(name string, o *objects) error {
	if name == "" {
		return nil
	}
	dev, err := l.findDevice(name)
	if dev != nil {
		o.pod = dev.Attrs().Index
		o.addForwarding(dev.Attrs())
	}
	return err
}

// addForwarding adds what is on for a device.
func (o *objects) addForwarding(device *netlink.LinkAttrs) {
	for _, f := range families {
		if isForwarding(f, device.Name) {
			o.forwarding = append(o.forwarding, forwarding{device.Index, f})
		}
	}
}

// dumpDevices reads the link and its settings and addresses, if it exists, and looks for IPVS.
func (l *linux) dumpDevices(name string, o *objects) error {
	// kube-proxy and kube-router give the addresses of all services to such a device.
	for _, d := range []string{"kube-ipvs0", "kube-dummy-if"} {
		dev, err := l.findDevice(d)
		if err != nil {
			return err
		}
		o.ipvs = o.ipvs || dev != nil
	}
	if name == "" { // a router has none
		return nil
	}
	dev, err := l.findDevice(name)
	if dev == nil {
		return err
	}
	attrs := dev.Attrs()
	o.link = link{attrs.Index, attrs.MTU, attrs.Flags&net.FlagUp != 0}
	o.addForwarding(attrs)
	if isUnrouting(name) {
		o.unrouting = []unrouting{{attrs.Index}}
	}
	addresses, err := l.netlink.AddrList(dev, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("addresses: %w", err)
	}
	for _, a := range addresses {
		o.addresses = append(o.addresses,
			address{a.LinkIndex, toPrefix(a.IPNet), a.Flags&unix.IFA_F_NOPREFIXROUTE != 0})
	}
	return nil
}

// findDevice returns nil for a device that does not exist.
func (l *linux) findDevice(name string) (netlink.Link, error) {
	dev, err := l.netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("link %s: %w", name, err)
	}
	return dev, nil
}

func (l *linux) dumpFamily(family int, o *objects) error {
	if err := l.dumpRoutes(family, o); err != nil {
		return fmt.Errorf("routes: %w", err)
	}
	if err := l.dumpRules(family, o); err != nil {
		return fmt.Errorf("rules: %w", err)
	}
	return nil
}

// dumpRoutes reads the routes of all tables.
func (l *linux) dumpRoutes(family int, o *objects) error {
	all := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
	return l.netlink.RouteListFilteredIter(family, all, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
		o.routes = append(o.routes, toRoute(&r))
		return true
	})
}

func toRoute(r *netlink.Route) route {
	source, _ := netip.AddrFromSlice(r.Src)
	gateway, _ := netip.AddrFromSlice(r.Gw)
	result := route{Table: r.Table, Destination: toPrefix(r.Dst), Source: source, Gateway: gateway, Index: r.LinkIndex,
		Metric: r.Priority, Protocol: int(r.Protocol), Type: r.Type, OnLink: r.Flags&int(netlink.FLAG_ONLINK) != 0, MTU: r.MTU}
	switch r.Type {
	case unix.RTN_UNICAST:
		result.Type = 0
	case unix.RTN_UNREACHABLE:
		result.Index = 0 // IPv6 names the loopback device
	}
	return result
}

func toNetlinkRoute(r route) *netlink.Route {
	n := &netlink.Route{Table: r.Table, Dst: toIPNet(r.Destination), Src: r.Source.AsSlice(), Gw: r.Gateway.AsSlice(),
		LinkIndex: r.Index, Priority: r.Metric, Protocol: netlink.RouteProtocol(r.Protocol), Type: r.Type, MTU: r.MTU}
	if r.OnLink {
		n.Flags = int(netlink.FLAG_ONLINK)
	}
	if !r.Gateway.IsValid() && r.Type == 0 {
		n.Scope = netlink.SCOPE_LINK
	}
	return n
}

// dumpRules reads the rules of broker and router, and the foreign ones without any condition.
func (l *linux) dumpRules(family int, o *objects) error {
	rules, err := l.netlink.RuleList(family)
	if err != nil {
		return err
	}
	for _, r := range rules {
		unconditional := rule{family, r.Priority, r.Table, int(r.Protocol)}
		if r == *toNetlinkRule(unconditional) || r.Protocol == Protocol || r.Protocol == RouterProtocol {
			o.rules = append(o.rules, unconditional)
		}
	}
	return nil
}

func (l *linux) Change(verb string, object any) error {
	switch o := object.(type) {
	case link:
		return l.changeLink(verb, o)
	case forwarding:
		return setForwarding(o, l.DeviceName(o.Index))
	case unrouting:
		return setConfig4(o.Index, inetConfSourceRoute, 0)
	case address:
		a := &netlink.Addr{IPNet: toIPNet(o.Prefix), LinkIndex: o.Index, Flags: unix.IFA_F_NOPREFIXROUTE}
		if o.Prefix.Addr().Is6() {
			a.Flags |= unix.IFA_F_NODAD // usable as source at once
		}
		return map[string]func(netlink.Link, *netlink.Addr) error{
			"add": l.netlink.AddrAdd, "del": l.netlink.AddrDel}[verb](nil, a)
	case route:
		return map[string]func(*netlink.Route) error{"add": l.netlink.RouteAdd, "replace": l.netlink.RouteReplace,
			"del": l.netlink.RouteDel}[verb](toNetlinkRoute(o))
	case rule:
		return map[string]func(*netlink.Rule) error{
			"add": l.netlink.RuleAdd, "del": l.netlink.RuleDel}[verb](toNetlinkRule(o))
	}
	return fmt.Errorf("unknown object %T", object)
}

func (l *linux) changeLink(verb string, o link) error {
	dev := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: o.Index}}
	if verb == "del" {
		return l.netlink.LinkDel(dev)
	}
	if err := l.netlink.LinkSetMTU(dev, o.MTU); err != nil {
		return fmt.Errorf("mtu: %w", err)
	}
	return l.netlink.LinkSetUp(dev)
}

func (l *linux) DeviceName(index int) string {
	dev, err := l.netlink.LinkByIndex(index)
	if err != nil {
		return fmt.Sprintf("if%d", index)
	}
	return dev.Attrs().Name
}

func (l *linux) FindWay(to netip.Addr) (Way, error) {
	routes, err := l.netlink.RouteGet(to.AsSlice())
	if err == nil && len(routes) == 0 {
		err = unix.ENETUNREACH
	}
	if err != nil {
		return Way{}, fmt.Errorf("look up the route to %s: %w", to, err)
	}
	r := &routes[0]
	dev, err := l.netlink.LinkByIndex(r.LinkIndex)
	if err != nil {
		return Way{}, fmt.Errorf("look up the device of the route to %s: %w", to, err)
	}
	gateway, _ := netip.AddrFromSlice(r.Gw)
	return Way{Index: r.LinkIndex, Device: dev.Attrs().Name, Local: r.Type == unix.RTN_LOCAL, Gateway: gateway.Unmap(),
		MTU: dev.Attrs().MTU}, nil
}

func (l *linux) IsIdleTUN(index int) bool {
	dev, err := l.netlink.LinkByIndex(index)
	if err != nil {
		return false
	}
	// A TUN has a carrier while a process holds it open. Only a device that is up tells, and only
	// such a device has routes.
	tun, ok := dev.(*netlink.Tuntap)
	return ok && tun.Mode == netlink.TUNTAP_MODE_TUN &&
		tun.RawFlags&(unix.IFF_UP|unix.IFF_LOWER_UP) == unix.IFF_UP
}

func toNetlinkRule(r rule) *netlink.Rule {
	n := netlink.NewRule()
	n.Family, n.Priority, n.Table, n.Protocol = r.Family, r.Priority, r.Table, uint8(r.Protocol)
	return n
}

func toIPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func toPrefix(n *net.IPNet) netip.Prefix {
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
}
