package mesh

// What the gateway node has and needs outside of the meshes. No network of a mesh may take that away: a node that loses
// its API server never hears that the object to blame was deleted.

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Host are the facts of the gateway node, as its kernel, its files, and the API server tell them. Nothing of kubelink
// itself is among them. The zero Host: nothing is known.
type Host struct {
	Networks  []HostNetwork           // of its devices
	Addresses []HostInterface         // of its devices, also of those without carrier; sorted
	Routes    []netip.Prefix          // destinations of its routes, networks included
	Needs     []HostAddress           // addresses that it must reach
	Endpoints map[string][]netip.Addr // addresses of the endpoints of links, by the host name of the endpoint
	Remotes   map[string]netip.Addr   // where the peer of a link was connected last, by the name of the link
	OwnTable  bool                    // the kernel looks at our routes before it looks at Routes
}

// HostNetwork is the network of a device.
type HostNetwork struct {
	Prefix netip.Prefix
	Device string
}

// HostInterface is an address of a device.
type HostInterface struct {
	Addr   netip.Addr
	Device string
	MTU    int // of the device
}

// HostAddress is an address with what it is, such as "the default gateway".
type HostAddress struct {
	Addr  netip.Addr
	Title string
}

// HasRoute tells whether a route of the node leads to the address, other than a default route.
func (h *Host) HasRoute(a netip.Addr) bool { return h.longestRoute(a) > 0 }

// takes tells whether a route to n would lead packets to the address into a mesh. The longest route decides.
func (h *Host) takes(n netip.Prefix, a netip.Addr) bool {
	return n.Contains(a) && (h.OwnTable || n.Bits() >= h.longestRoute(a))
}

// longestRoute is the length of the longest route to an address that is not ours; -1 if there is none.
func (h *Host) longestRoute(a netip.Addr) int {
	bits := -1
	for _, r := range h.Routes {
		if r.Contains(a) {
			bits = max(bits, r.Bits())
		}
	}
	return bits
}

// hostCheck compares networks with the facts of the node.
type hostCheck struct {
	*Host
	local *Local
	title string // of the node
}

// CheckRoute refuses a network whose route would take something away from a node that is not the gateway; nil: it takes
// nothing.
func (h *Host) CheckRoute(n netip.Prefix) *Problem {
	return hostCheck{h, &Local{}, "this node"}.checkRoute("network", n, nil)
}

// checkRoute refuses a network whose route would take something away from the node. A network that is wider than one of
// the node takes nothing from it: the longer routes of the node stay in force.
func (c hostCheck) checkRoute(field string, n netip.Prefix, services Prefixes) *Problem {
	return c.checkNetwork(field, n, func(a netip.Addr) bool { return !services.Contains(a) && c.takes(n, a) },
		func(own netip.Prefix) bool { return c.OwnTable || n.Bits() >= own.Bits() })
}

// checkApart refuses a network that has an address in common with the node: what the node reaches there, a cluster of
// the mesh cannot have.
func (c hostCheck) checkApart(field string, n netip.Prefix, services Prefixes) *Problem {
	return c.checkNetwork(field, n, func(a netip.Addr) bool { return !services.Contains(a) && n.Contains(a) },
		func(netip.Prefix) bool { return true })
}

// maxCovered bounds what a message lists.
const maxCovered = 5

// checkNetwork names all that a network covers: addresses, and the networks of the node that overlap with it. Addresses
// of services count for nothing, as the node translates them before it routes.
func (c hostCheck) checkNetwork(
	field string, n netip.Prefix, takesAddress func(netip.Addr) bool, takesFrom func(netip.Prefix) bool,
) *Problem {
	var covered []string
	for _, need := range c.Needs {
		if takesAddress(need.Addr) {
			covered = append(covered, need.Title+" "+need.Addr.String())
		}
	}
	remedy := "name only networks that belong to the other cluster"
	for _, own := range c.Networks {
		if !c.usedPart(own.Prefix).Overlaps(n) || !takesFrom(own.Prefix) {
			continue
		}
		if len(covered) == 0 && own.Prefix.Bits() < n.Bits() {
			remedy = "choose another network, or set node-cidr in the Corefile to the part that this cluster uses"
		}
		covered = append(covered, fmt.Sprintf("the network %s of %s", own.Prefix, own.Device))
	}
	if len(covered) == 0 {
		return nil
	}
	if more := len(covered) - maxCovered; more > 0 {
		covered = append(covered[:maxCovered:maxCovered], fmt.Sprintf("%d more", more))
	}
	return invalid("%s %s covers what %s reaches outside of the mesh: %s; %s",
		field, n, c.title, strings.Join(covered, ", "), remedy)
}

// usedPart is the part of a network of the node in which there is something: node-cidr may say so.
func (c hostCheck) usedPart(network netip.Prefix) netip.Prefix {
	nodes := c.local.NodeCIDRs.SameFamily(network.Addr())
	if nodes.IsValid() && network.Overlaps(nodes) && network.Bits() < nodes.Bits() {
		return nodes
	}
	return network
}

// endpointAddresses are the addresses under which the peer of a link is known: that of the endpoint, or the ones that
// the name of the endpoint has, and where the peer was connected last. host is the host of the endpoint.
func (h *Host) endpointAddresses(link, host string) []netip.Addr {
	addresses := literalAddress(host)
	if addresses == nil {
		addresses = slices.Clone(h.Endpoints[host])
	}
	if a, ok := h.Remotes[link]; ok && !slices.Contains(addresses, a) {
		addresses = append(addresses, a)
	}
	return addresses
}

// findTaken returns the first address to which packets would take a route to n.
func (h *Host) findTaken(n netip.Prefix, addresses []netip.Addr) (netip.Addr, bool) {
	i := slices.IndexFunc(addresses, func(a netip.Addr) bool { return h.takes(n, a) })
	if i < 0 {
		return netip.Addr{}, false
	}
	return addresses[i], true
}
