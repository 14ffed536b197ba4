package overlay

// What a Set wants of a State: underlay, MAC addresses, MTU, routes and rules. It asks the kernel for the ways to the
// peers only.

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/kernel"
)

var families = []int{unix.AF_INET, unix.AF_INET6}

// What VXLAN adds to a packet: IP header, UDP header, VXLAN header, Ethernet header (RFC 7348, section 5).
const (
	overhead4 = 20 + 8 + 8 + 14
	overhead6 = 40 + 8 + 8 + 14
)

// Table is the routing table of the gateway's routes to nodes, and rulePriority that of the rules that lead there: they
// come before the rule of the main table, which leads to nodes outside of the overlay.
const (
	Table        = 118107
	rulePriority = 32740
)

// plan is what a Set wants.
type plan struct {
	role     Role
	state    State
	device   string
	underlay int          // family of the packets that carry the others
	self     netip.Addr   // source of VXLAN packets
	peers    []peer       // that can be served
	families []int        // that packets inside can have
	mtu      int          // of the device, in bytes
	uplinks  []string     // devices that lead to other machines
	inner    []netip.Addr // our addresses inside
}

// peer is one as the kernel needs it.
type peer struct {
	name    string
	address netip.Addr // VXLAN packets go there
	mac     net.HardwareAddr
	inner   []netip.Addr // its addresses inside, at most one per family
	hops    []netip.Addr // its addresses as a neighbour
	sources []source     // where its VXLAN packets come from
}

// source is an address, and the device that the way to it leads through.
type source struct {
	address netip.Addr
	device  string
}

func (s State) validate() error {
	if s.VNI < 1 || s.VNI > MaxVNI {
		return fmt.Errorf("vxlan-vni %d: want 1 to %d", s.VNI, MaxVNI)
	}
	if s.Port < MinPort || s.Port > MaxPort {
		return fmt.Errorf("vxlan-port %d: want %d to %d; the next port is taken, too", s.Port, MinPort, MaxPort)
	}
	if len(s.Addresses) == 0 {
		return fmt.Errorf("the overlay has no address of this node: is node-ip right?")
	}
	return nil
}

// listenPort is the UDP port of this end, peerPort that of its peers.
func (p *plan) listenPort() int { return p.state.Port + map[Role]int{Gateway: 0, Node: 1}[p.role] }
func (p *plan) peerPort() int   { return p.state.Port + map[Role]int{Gateway: 1, Node: 0}[p.role] }

// uses tells whether chains of a family are needed.
func (p *plan) uses(family int) bool {
	return len(p.peers) > 0 && (family == p.underlay || slices.Contains(p.families, family))
}

// makePlan finds the ways to the peers. A peer without a way is left out, and named.
func (o *Overlay) makePlan(s State) (*plan, []error) {
	p := &plan{role: o.role, state: s, device: o.role.Device(), inner: s.Addresses}
	p.self = addressOf(s.Addresses, unix.AF_INET)
	if p.underlay = unix.AF_INET; !p.self.IsValid() {
		p.underlay, p.self = unix.AF_INET6, addressOf(s.Addresses, unix.AF_INET6)
	}
	for _, f := range families {
		if addressOf(s.Addresses, f).IsValid() {
			p.families = append(p.families, f)
		}
	}
	ways := o.system.newWays(p.self)
	var errs []error
	macs := map[string]string{}
	for _, wanted := range s.Peers {
		found, mtu, err := p.findPeer(wanted, ways)
		if other, taken := macs[found.mac.String()]; err == nil && taken {
			err = fmt.Errorf("its address gives the same MAC address %s as that of %s: give one of them another address",
				found.mac, other)
		}
		if err != nil {
			errs = append(errs, &PeerError{wanted.Name, err})
			continue
		}
		macs[found.mac.String()] = wanted.Name
		p.peers = append(p.peers, found)
		if p.mtu == 0 || mtu < p.mtu {
			p.mtu = mtu
		}
	}
	if o.role == Node {
		uplinks, err := o.system.findUplinks(p.device)
		if err != nil {
			errs = append(errs, err)
		}
		p.uplinks = uplinks
	}
	return p, errs
}

// findPeer asks for the way to a peer. mtu is what the device can have for it.
func (p *plan) findPeer(wanted Peer, ways *ways) (found peer, mtu int, err error) {
	found = peer{name: wanted.Name, address: addressOf(wanted.Addresses, p.underlay)}
	if !found.address.IsValid() {
		return found, 0, fmt.Errorf("it has no IPv%d address, as this end has", kernel.IPVersion(p.underlay))
	}
	found.mac = makeMAC(found.address)
	for _, f := range p.families {
		if a := addressOf(wanted.Addresses, f); a.IsValid() {
			found.inner = append(found.inner, a)
			found.hops = append(found.hops, a)
		}
	}
	if p.role == Node {
		found.hops = nextHops(found.address, found.inner)
	}
	way, err := ways.find(found.address)
	if err != nil {
		return found, 0, err
	}
	if way.device == p.device || way.device == p.state.TUN {
		return found, 0, fmt.Errorf("the way to %s leads through %s, which is for what the overlay carries: "+
			"take this address out of the networks of the links", found.address, way.device)
	}
	found.sources = []source{{found.address, way.device}}
	for _, a := range wanted.Sources {
		if kernel.FamilyOf(a) != p.underlay || slices.Contains(p.state.Addresses, a) {
			continue
		}
		if other, err := ways.find(a); err == nil {
			found.sources = append(found.sources, source{a, other.device})
		}
	}
	overhead := overhead4
	if p.underlay == unix.AF_INET6 {
		overhead = overhead6
	}
	return found, way.mtu - overhead, nil
}

// makeMAC derives the MAC address of an end from the address that VXLAN packets to it have. It is locally administered
// (IEEE 802), as the bit 02 says.
func makeMAC(a netip.Addr) net.HardwareAddr {
	mac := net.HardwareAddr{0x02, 0x6b}
	if a.Is4() {
		return append(mac, a.AsSlice()...)
	}
	sum := sha256.Sum256(a.AsSlice())
	return append(mac, sum[:4]...)
}

// NextHop is the gateway of routes to networks of a family (unix.AF_INET or unix.AF_INET6) through the device of a node
// with these addresses, to a peer with these ones; invalid: one of them has no address of the family.
func NextHop(own, peer []netip.Addr, family int) netip.Addr {
	underlay := unix.AF_INET
	if !addressOf(own, underlay).IsValid() {
		underlay = unix.AF_INET6
	}
	inner := addressOf(peer, family)
	if address := addressOf(peer, underlay); address.IsValid() && inner.IsValid() && addressOf(own, family).IsValid() {
		return nextHops(address, []netip.Addr{inner})[0]
	}
	return netip.Addr{}
}

// nextHops are the addresses of a peer as gateway of routes. Linux takes a gateway whose address is on another device
// for IPv4 only, so in IPv6 it is a link-local one, made of the MAC address.
func nextHops(address netip.Addr, inner []netip.Addr) (hops []netip.Addr) {
	for _, a := range inner {
		if a.Is6() {
			linkLocal := [16]byte{0: 0xfe, 1: 0x80}
			copy(linkLocal[10:], makeMAC(address))
			a = netip.AddrFrom16(linkLocal)
		}
		hops = append(hops, a)
	}
	return hops
}

// rules lead what is for a node into the overlay: what comes from the meshes, and the answers of the gateway's own
// addresses in them. By the main table it would leave with a source that the network of the nodes drops.
func (p *plan) rules() (rules []netlink.Rule) {
	for _, f := range p.families {
		r := netlink.NewRule()
		r.Family, r.Priority, r.Table, r.Protocol, r.IifName = f, rulePriority, Table, Protocol, p.state.TUN
		rules = append(rules, *r)
		for _, a := range p.state.Local {
			if kernel.FamilyOf(a) != f {
				continue
			}
			r := netlink.NewRule()
			r.Family, r.Priority, r.Table, r.Protocol, r.Src = f, rulePriority, Table, Protocol, hostNet(a)
			rules = append(rules, *r)
		}
	}
	return rules
}

func addressOf(list []netip.Addr, family int) netip.Addr {
	for _, a := range list {
		if a.IsValid() && kernel.FamilyOf(a) == family {
			return a
		}
	}
	return netip.Addr{}
}

func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}
