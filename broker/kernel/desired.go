package kernel

// What a caller tells Set, and which objects of rtnetlink(7) Set wants for it. All of it is pure.

import (
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/mesh/service"
)

// MainTable is the routing table that needs no rule.
const MainTable = unix.RT_TABLE_MAIN

// Config is what does not change with the meshes. There is one broker per network namespace: the
// chains and the marks are the same for any device and table, so that a broker adopts what one with
// another Config left. Two brokers at the same time would remove each other's objects.
type Config struct {
	Device       string // name of the TUN; the caller creates, opens and deletes it
	MTU          int    // of the device, in bytes; 0: leave it
	Table        int    // routing table for our routes; 0: MainTable
	RulePriority int    // of the ip-rule(8) that leads to Table when that is not MainTable
}

// State is what a caller wants, of both address families.
type State struct {
	Addresses  []netip.Prefix   // local cluster addresses with the mask of their mesh
	Routes     []mesh.Route     // all that leaves through the device, mesh ranges included
	LocalPorts []mesh.LocalPort // of Addresses that are open to what comes in through the device
	Tunnel     Tunnel
	// ServiceNetworks are the local ones; an address of the node in one can be that of a service.
	ServiceNetworks []netip.Prefix
	Services        []service.Service // mesh services, each address and each of its ports once
	// Masquerade gives packets from the networks of Routes that leave a node by any other device the address of that
	// device: the network of nodes drops foreign addresses. Those of OverlayDevice keep theirs. A pod needs no such word.
	Masquerade bool
	Pod        Pod
	Firewall   *Firewall // nil: the dataplane lets in what may come from links only
}

// Pod says that the network namespace is that of a pod, in which only the broker runs (pod mode). The zero Pod: it is
// that of a node.
type Pod struct {
	Is     bool
	Device string // the pod's own interface; empty: not known
}

// OverlayDevice is the name of the VXLAN device that leads from the gateway to nodes.
const OverlayDevice = "klvxlan-gw"

// NewState returns what the kernel is to have of a state of the meshes.
func NewState(s *mesh.State) State {
	want := State{Routes: s.Routes, LocalPorts: s.LocalPorts}
	for _, m := range s.Meshes {
		want.Addresses = append(want.Addresses, m.Addresses...)
		want.ServiceNetworks = append(want.ServiceNetworks, m.Services...)
	}
	// Several meshes can have the same ones.
	slices.SortFunc(want.ServiceNetworks, netip.Prefix.Compare)
	want.ServiceNetworks = slices.Compact(want.ServiceNetworks)
	return want
}

func (s State) isEmpty() bool { return len(s.Addresses)+len(s.Routes) == 0 }

// Uses tells whether a mesh has addresses of an IP version, 4 or 6: else there are no chains for it.
func (s State) Uses(version int) bool {
	return slices.ContainsFunc(families, func(f int) bool { return IPVersion(f) == version && s.usesFamily(f) })
}

func (s State) usesFamily(family int) bool {
	return s.routesFamily(family) ||
		slices.ContainsFunc(s.Addresses, func(a netip.Prefix) bool { return FamilyOf(a.Addr()) == family })
}

func (s State) routesFamily(family int) bool {
	return slices.ContainsFunc(s.Routes, func(r mesh.Route) bool { return FamilyOf(r.Source) == family })
}

func (s State) servesFamily(family int) bool {
	return slices.ContainsFunc(s.Services, func(x service.Service) bool { return FamilyOf(x.Address) == family })
}

// hasAddress tells whether an address is one of this cluster.
func (s State) hasAddress(addr netip.Addr) bool {
	return slices.ContainsFunc(s.Addresses, func(a netip.Prefix) bool { return a.Addr() == addr })
}

// without leaves out families.
func (s State) without(families map[int]error) State {
	if len(families) == 0 {
		return s
	}
	s.Addresses = slices.DeleteFunc(slices.Clone(s.Addresses), func(a netip.Prefix) bool {
		return families[FamilyOf(a.Addr())] != nil
	})
	s.Routes = slices.DeleteFunc(slices.Clone(s.Routes), func(r mesh.Route) bool {
		return families[FamilyOf(r.Source)] != nil
	})
	return s
}

// validateRoutes returns the routes that the kernel can have, each once, and an error for each of
// the rest.
func validateRoutes(routes []mesh.Route) (valid []mesh.Route, errs []error) {
	sources := map[netip.Prefix]netip.Addr{}
	for _, r := range routes {
		r.Destination = r.Destination.Masked()
		source, known := sources[r.Destination]
		switch {
		case !r.Destination.IsValid() || r.Destination.Addr().Is4() != r.Source.Is4() || !r.Source.IsValid():
			errs = append(errs, fmt.Errorf("route %s: source %s: want an address of the same family",
				r.Destination, r.Source))
		case !known:
			sources[r.Destination] = r.Source
			valid = append(valid, r)
		case source != r.Source:
			errs = append(errs, fmt.Errorf("route %s: source %s: another route to it has source %s",
				r.Destination, r.Source, source))
		}
	}
	return valid, errs
}

// wantedObjects returns the objects that Set wants to see of ours. Without a device there are no
// addresses and routes; the rules need none. pod is the index of the pod's own interface, 0: there is none. What comes
// in through it is to be forwarded, too; of a node, that is its own setting.
func wantedObjects(c Config, s State, device link, pod int) objects {
	wanted := objects{link: device, rules: wantedRules(c, s)}
	if device.Index == 0 || s.isEmpty() {
		return wanted
	}
	wanted.link.Up = true
	if c.MTU != 0 {
		wanted.link.MTU = c.MTU
	}
	for _, f := range families {
		if s.usesFamily(f) {
			wanted.forwarding = append(wanted.forwarding, forwarding{device.Index, f})
		}
		if s.usesFamily(f) && pod != 0 {
			wanted.forwarding = append(wanted.forwarding, forwarding{pod, f})
		}
	}
	if s.Firewall != nil && s.usesFamily(unix.AF_INET) {
		wanted.unrouting = []unrouting{{device.Index}}
	}
	for _, a := range s.Addresses {
		// Full-length, for each range comes as a route of its own, with its source.
		wanted.addresses = append(wanted.addresses, address{device.Index, hostPrefix(a.Addr()), true})
	}
	for _, r := range s.Routes {
		o := route{Table: c.Table, Destination: r.Destination, Source: r.Source,
			Index: device.Index, Metric: defaultMetric(r.Destination), Protocol: Protocol}
		if r.Destination.Addr().Is4() {
			o.Gateway, o.OnLink = anyPeer, true
		}
		wanted.routes = append(wanted.routes, o)
	}
	return wanted
}

// anyPeer is the gateway of routes to links, the IPv4 dummy address (RFC 7600). The device asks for no neighbour, so it
// leads there as well as a route without gateway. But between two links, or for an address that the firewall refuses,
// the kernel would send an ICMP redirect to a sender that it takes for a neighbour, and each one takes from the few ICMP
// errors that it allows the sender (icmp_ratelimit): refusals and "fragmentation needed" would be lost.
var anyPeer = netip.MustParseAddr("192.0.0.8")

// wantedRules returns a rule to our table for each family that has routes.
func wantedRules(c Config, s State) (rules []rule) {
	if c.Table == MainTable {
		return nil
	}
	for _, f := range families {
		if s.routesFamily(f) {
			rules = append(rules, rule{f, c.RulePriority, c.Table, Protocol})
		}
	}
	return rules
}

// defaultMetric is what the kernel takes when none is given: 0, for IPv6 IP6_RT_PRIO_USER.
func defaultMetric(destination netip.Prefix) int {
	if destination.Addr().Is4() {
		return 0
	}
	return 1024
}
