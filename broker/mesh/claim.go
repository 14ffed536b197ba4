package mesh

// Networks that are routed to links. A network belongs to one link: the oldest one that claims it.

import "net/netip"

// The fields that claim networks.
const (
	fieldAddress = "spec.clusterAddress"
	fieldCIDR    = "spec.cidr"
	fieldEgress  = "spec.egress"
	fieldOffer   = "" // no field: the peer offers a mesh service there
)

// claim is a network that belongs to a link.
type claim struct {
	prefix netip.Prefix
	owner  string // name of the link
	field  string // of the link
}

// conflictsWith tells whether the claim cannot stand beside an older one. Two service networks may not overlap at all.
// Other networks may surround a service network, but not take a part of it.
func (c *claim) conflictsWith(old *claim) bool {
	if old.field != fieldCIDR {
		return old.prefix == c.prefix
	}
	return contains(old.prefix, c.prefix) || c.field == fieldCIDR && contains(c.prefix, old.prefix)
}

// claimList has claims, older ones first.
type claimList []claim

// checkFree refuses a network that belongs to an older link.
func (l claimList) checkFree(c claim) *Problem {
	for i := range l {
		if old := &l[i]; c.conflictsWith(old) {
			return invalid("%s %s is already routed to the older link %s (%s): a network belongs to one link, "+
				"take it out of one of both",
				c.field, c.prefix, old.owner, old.prefix)
		}
	}
	return nil
}

// findAddress returns the first claim that contains the address.
func (l claimList) findAddress(a netip.Addr) (claim, bool) {
	for _, c := range l {
		if c.prefix.Contains(a) {
			return c, true
		}
	}
	return claim{}, false
}

// longestMatch is the length of the longest prefix that contains the address; -1 if there is none.
func (l claimList) longestMatch(a netip.Addr) int {
	bits := -1
	for _, c := range l {
		if c.prefix.Contains(a) {
			bits = max(bits, c.prefix.Bits())
		}
	}
	return bits
}
