package host

// What the kernel knows of the node, by rtnetlink(7).

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/gaissmai/bart"
	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Titles of addresses, as messages call them.
const (
	titleGateway = "the default gateway"
	titleDNS     = "the DNS server"
	titleOwn     = "its own address"
)

const maxDumpAttempts = 10 // to get a dump that no change interrupts

// kernelFacts is one look at the kernel.
type kernelFacts struct {
	networks  []mesh.HostNetwork
	addresses []mesh.HostInterface
	needs     []mesh.HostAddress
	routes    bart.Lite // destinations of the routes of the tables that decide, ours left out
}

// kernel reads the network stack of one network namespace.
type kernel struct {
	device    string
	protocols []int
	handle    *netlink.Handle
	events    *nl.NetlinkSocket // nil: there are none
}

func openKernel(device string, protocols []int) (*kernel, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	return &kernel{device: device, protocols: protocols, handle: handle}, nil
}

// subscribe asks the kernel for events about links, addresses and routes.
func (k *kernel) subscribe() (err error) {
	k.events, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	return err
}

// awaitEvents calls changed after events until endEvents. What an event says does not matter: some may be lost.
func (k *kernel) awaitEvents(changed func()) {
	for k.events != nil {
		_, _, err := k.events.Receive()
		if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
			return
		}
		changed()
	}
}

// endEvents ends awaitEvents. The last read may still use the handle: the garbage collector closes it.
func (k *kernel) endEvents() {
	if k.events != nil {
		k.events.Close()
	}
}

// readFacts looks at the kernel.
func (k *kernel) readFacts() (facts *kernelFacts, err error) {
	for range maxDumpAttempts {
		if facts, err = k.readOnce(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return facts, err
}

func (k *kernel) readOnce() (*kernelFacts, error) {
	facts := &kernelFacts{}
	links, err := k.handle.LinkList()
	if err != nil {
		return nil, fmt.Errorf("links: %w", err)
	}
	own := -1
	for _, l := range links {
		if l.Attrs().Name == k.device {
			own = l.Attrs().Index
		} else if err := k.readAddresses(l, facts); err != nil {
			return nil, fmt.Errorf("addresses of %s: %w", l.Attrs().Name, err)
		}
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		if err := k.readRoutes(family, own, facts); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			return nil, fmt.Errorf("routes: %w", err)
		}
	}
	slices.SortFunc(facts.networks, func(a, b mesh.HostNetwork) int { return a.Prefix.Compare(b.Prefix) })
	facts.networks = slices.Compact(facts.networks)
	slices.SortFunc(facts.addresses, func(a, b mesh.HostInterface) int {
		return cmp.Or(a.Addr.Compare(b.Addr), strings.Compare(a.Device, b.Device))
	})
	return facts, nil
}

// readAddresses reads the addresses and the networks of a device. Nothing is behind a device that is down or has no
// carrier, such as the bridge of a container engine that runs no container.
func (k *kernel) readAddresses(l netlink.Link, facts *kernelFacts) error {
	attrs := l.Attrs()
	if attrs.Flags&net.FlagLoopback != 0 {
		return nil
	}
	const works = unix.IFF_UP | unix.IFF_LOWER_UP
	isWorking := attrs.RawFlags&works == works
	addresses, err := k.handle.AddrList(l, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return err
	}
	for _, a := range addresses {
		p := toPrefix(a.IPNet)
		if isRoutable(p.Addr()) && l.Type() != "dummy" {
			facts.addresses = append(facts.addresses, mesh.HostInterface{Addr: p.Addr(), Device: attrs.Name, MTU: attrs.MTU})
		}
		switch {
		case !isRoutable(p.Addr()), !isWorking:
		case !p.IsSingleIP():
			facts.networks = append(facts.networks, mesh.HostNetwork{Prefix: p.Masked(), Device: attrs.Name})
		case l.Type() != "dummy": // which holds addresses of services, for example
			facts.needs = append(facts.needs, mesh.HostAddress{Addr: p.Addr(), Title: titleOwn})
		}
	}
	return nil
}

// readRoutes reads the routes of a family, and the default gateways among them.
func (k *kernel) readRoutes(family, own int, facts *kernelFacts) error {
	tables, err := k.readTables(family)
	if err != nil {
		return err
	}
	all := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
	return k.handle.RouteListFilteredIter(family, all, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
		decides := tables[r.Table] && (r.Table != unix.RT_TABLE_LOCAL || r.Type == unix.RTN_LOCAL)
		if !decides || slices.Contains(k.protocols, int(r.Protocol)) || r.LinkIndex == own {
			return true
		}
		destination := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if family == unix.AF_INET6 {
			destination = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		if r.Dst != nil {
			destination = toPrefix(r.Dst)
		}
		facts.routes.Insert(destination)
		if destination.Bits() == 0 {
			facts.addGateway(r.Gw)
			for _, hop := range r.MultiPath {
				facts.addGateway(hop.Gw)
			}
		}
		return true
	})
}

func (f *kernelFacts) addGateway(ip net.IP) {
	a, ok := netip.AddrFromSlice(ip)
	need := mesh.HostAddress{Addr: a.Unmap(), Title: titleGateway}
	if ok && isRoutable(need.Addr) && !slices.Contains(f.needs, need) {
		f.needs = append(f.needs, need)
	}
}

// readTables returns the tables that every packet may take a route of: a rule without a condition leads there.
func (k *kernel) readTables(family int) (map[int]bool, error) {
	rules, err := k.handle.RuleList(family)
	if err != nil {
		return nil, err
	}
	tables := map[int]bool{}
	for _, r := range rules {
		plain := netlink.NewRule()
		plain.Family, plain.Priority, plain.Table, plain.Protocol = family, r.Priority, r.Table, r.Protocol
		if r == *plain && !slices.Contains(k.protocols, int(r.Protocol)) {
			tables[r.Table] = true
		}
	}
	return tables, nil
}

// nameServers reads the name servers that this process asks. A file that cannot be read names none.
func nameServers(path string) (needs []mesh.HostAddress) {
	config, err := dns.ClientConfigFromFile(path)
	if err != nil {
		return nil
	}
	for _, server := range config.Servers {
		if a, err := netip.ParseAddr(server); err == nil && isRoutable(a.Unmap()) {
			needs = append(needs, mesh.HostAddress{Addr: a.Unmap(), Title: titleDNS})
		}
	}
	return needs
}

// isRoutable tells whether a route could lead packets to the address elsewhere.
func isRoutable(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsMulticast()
}

func toPrefix(n *net.IPNet) netip.Prefix {
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
}
