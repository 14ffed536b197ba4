package kernel

// The objects of rtnetlink(7) that the mesh needs, as one look at the kernel shows them and as Set
// wants them, and the ip(8) command for a change of one.

import (
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Protocol marks our routes (rtm_protocol, rtnetlink(7)) and rules (FRA_PROTOCOL), so that an
// administrator sees which are kubelink's: `ip route show table all proto 107`. The number is 'k',
// assigned neither in linux/rtnetlink.h nor in iproute2's rt_protos, and above RTPROT_STATIC, so
// that the kernel only stores it.
const Protocol = 'k'

// RouterProtocol marks the routes and rules of a node's router in the same way: `ip route show table all proto 114`.
// Broker and router share the network namespace of the gateway node. Neither has the other's objects in its way.
const RouterProtocol = 'r'

// families are the address families that Set serves; an object's family is one of them.
var families = []int{unix.AF_INET, unix.AF_INET6}

// objects is one look at the kernel, or what Set wants to see of ours. A look has the addresses of
// the device, the routes of all tables, our rules, and foreign rules that do nothing but lead to a
// table.
type objects struct {
	link       link         // zero: there is no such device
	pod        int          // index of the pod's own interface; 0: there is none
	forwarding []forwarding // that is on for both
	unrouting  []unrouting  // of the device
	addresses  []address
	routes     []route
	rules      []rule
	ipvs       bool          // addresses of services are local ones
	failed     map[int]error // families that have no objects here, for the kernel could not tell
}

// omitFamily takes out what belongs to a family.
func (o *objects) omitFamily(family int) {
	o.forwarding = slices.DeleteFunc(o.forwarding, func(x forwarding) bool { return x.Family == family })
	if family == unix.AF_INET {
		o.unrouting = nil
	}
	o.addresses = slices.DeleteFunc(o.addresses, func(a address) bool { return FamilyOf(a.Prefix.Addr()) == family })
	o.routes = slices.DeleteFunc(o.routes, func(r route) bool { return FamilyOf(r.Destination.Addr()) == family })
	o.rules = slices.DeleteFunc(o.rules, func(r rule) bool { return r.Family == family })
}

type link struct {
	Index, MTU int
	Up         bool
}

// forwarding says that packets of a family that come in through a device are forwarded.
type forwarding struct {
	Index, Family int
}

// unrouting says that packets of IPv4 that come in through a device and name a way of their own (source routes, RFC
// 791) are dropped.
type unrouting struct{ Index int }

type address struct {
	Index         int
	Prefix        netip.Prefix
	NoPrefixRoute bool
}

type route struct {
	Table           int
	Destination     netip.Prefix
	Source, Gateway netip.Addr
	Index           int // of the device; 0: several or none
	Metric          int
	Protocol        int
	Type            int  // RTN_UNREACHABLE and the like; 0: RTN_UNICAST
	OnLink          bool // the kernel does not ask whether Gateway is on the network of the device
	MTU             int  // in bytes; 0: that of the device
}

// place is where Set wants at most one route, and none that is foreign.
type place struct {
	table       int
	destination netip.Prefix
}

func (r route) place() place { return place{r.Table, r.Destination} }

// routeKey is what the kernel has at most one route for, as far as Set makes them.
type routeKey struct {
	place
	metric int
}

func (r route) key() routeKey { return routeKey{r.place(), r.Metric} }

type rule struct {
	Family, Priority, Table, Protocol int
}

// ipCommand is what ip(8) would be told for a change of an object. name gives a device its name.
func ipCommand(verb string, object any, name func(int) string) string {
	switch o := object.(type) {
	case link:
		if verb == "del" {
			return "ip link del " + name(o.Index)
		}
		return fmt.Sprintf("ip link %s %s mtu %d up", verb, name(o.Index), o.MTU)
	case forwarding:
		return fmt.Sprintf("sysctl net.ipv%d.conf.%s.forwarding=1", IPVersion(o.Family), name(o.Index))
	case unrouting:
		return fmt.Sprintf("sysctl net.ipv4.conf.%s.accept_source_route=0", name(o.Index))
	case address:
		return fmt.Sprintf("ip addr %s %s dev %s noprefixroute", verb, o.Prefix, name(o.Index))
	case route:
		return fmt.Sprintf("ip route %s %s", verb, o.text(name))
	case rule:
		return fmt.Sprintf("ip -%d rule %s priority %d table %d proto %d",
			IPVersion(o.Family), verb, o.Priority, o.Table, o.Protocol)
	}
	return fmt.Sprintf("%s %v", verb, object)
}

// typeWords are the types of routes that lead nowhere, as ip(8) names them.
var typeWords = map[int]string{
	unix.RTN_BLACKHOLE: "blackhole ", unix.RTN_UNREACHABLE: "unreachable ", unix.RTN_PROHIBIT: "prohibit ",
}

// text is the route as ip(8) prints it.
func (r route) text(name func(int) string) string {
	text := typeWords[r.Type] + r.Destination.String()
	if r.Gateway.IsValid() {
		text += " via " + r.Gateway.String()
	}
	if r.Index != 0 {
		text += " dev " + name(r.Index)
	}
	text += fmt.Sprintf(" proto %d", r.Protocol)
	if r.Source.IsValid() {
		text += " src " + r.Source.String()
	}
	if r.Metric != 0 {
		text += fmt.Sprintf(" metric %d", r.Metric)
	}
	if r.OnLink {
		text += " onlink"
	}
	if r.MTU != 0 {
		text += fmt.Sprintf(" mtu %d", r.MTU)
	}
	return text + fmt.Sprintf(" table %d", r.Table)
}

// FamilyOf is the address family of an address, AF_INET or AF_INET6 (socket(2)). An IPv4 address in IPv6 form is IPv6.
func FamilyOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// IPVersion is 4 or 6, for an address family.
func IPVersion(family int) int {
	if family == unix.AF_INET {
		return 4
	}
	return 6
}

// hostPrefix is the full-length prefix of one address.
func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
