package mesh

// Networks and addresses of a cluster, one of each address family.

import (
	"net/netip"
	"strings"
)

// Prefixes are networks, or addresses with the mask of their network: at most one of each address family. The first one
// is the one that the wire and the objects have, which know of one only.
type Prefixes []netip.Prefix

// First is the first prefix; the zero Prefix if there is none.
func (p Prefixes) First() netip.Prefix {
	if len(p) == 0 {
		return netip.Prefix{}
	}
	return p[0]
}

// SameFamily is the prefix of the address's family; the zero Prefix if there is none. IPv4 addresses in IPv6 form count
// as IPv6.
func (p Prefixes) SameFamily(a netip.Addr) netip.Prefix {
	for _, prefix := range p {
		if prefix.Addr().Is4() == a.Is4() {
			return prefix
		}
	}
	return netip.Prefix{}
}

// Contains tells whether the address lies in one of the networks.
func (p Prefixes) Contains(a netip.Addr) bool { return p.SameFamily(a).Contains(a) }

// Addrs are the addresses without their masks.
func (p Prefixes) Addrs() []netip.Addr {
	var addrs []netip.Addr
	for _, prefix := range p {
		addrs = append(addrs, prefix.Addr())
	}
	return addrs
}

// Masked are the networks in which the addresses lie.
func (p Prefixes) Masked() Prefixes {
	var networks Prefixes
	for _, prefix := range p {
		networks = append(networks, prefix.Masked())
	}
	return networks
}

// String lists them as messages do.
func (p Prefixes) String() string {
	var list []string
	for _, prefix := range p {
		list = append(list, prefix.String())
	}
	return strings.Join(list, ", ")
}
