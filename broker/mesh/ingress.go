package mesh

// Which local destinations packets from a link may reach.

import (
	"net/netip"
	"slices"
)

// effectiveIngress combines the rules of a link with the rules of its mesh: the link's own list, else the mesh-wide
// one, else the local service networks; what the mesh denies stays denied; the local cluster addresses are always
// allowed. In the result, too, the longest prefix decides.
func effectiveIngress(own []Rule, m *meshEntry) []Rule {
	base := withDefault(own, m)
	allowed := map[netip.Prefix]bool{}
	for _, r := range slices.Concat(base, m.ingress) {
		allow, known := decideIngress(base, r.Prefix)
		meshAllow, meshKnown := decideIngress(m.ingress, r.Prefix)
		allowed[r.Prefix] = known && allow && (!meshKnown || meshAllow)
	}
	for _, a := range m.Addresses.Addrs() {
		allowed[netip.PrefixFrom(a, a.BitLen())] = true
	}
	var rules []Rule
	for n, allow := range allowed {
		rules = append(rules, Rule{n, allow})
	}
	slices.SortFunc(rules, func(a, b Rule) int { return a.Prefix.Compare(b.Prefix) })
	return rules
}

// withDefault is the link's own list if it allows something. Otherwise the list is empty or has only denials, to be
// taken from the default: the mesh-wide list, or the local service networks.
func withDefault(own []Rule, m *meshEntry) []Rule {
	allows := func(r Rule) bool { return r.Allow }
	switch {
	case slices.ContainsFunc(own, allows):
		return own
	case slices.ContainsFunc(m.ingress, allows):
		return slices.Concat(m.ingress, own)
	}
	var rules []Rule
	for _, n := range m.Services {
		rules = append(rules, Rule{n, true})
	}
	return append(rules, own...)
}

// decideIngress is what rules say about a network: the longest prefix that contains it counts; among equal ones a
// denial.
func decideIngress(rules []Rule, n netip.Prefix) (allow, known bool) {
	bits := -1
	for _, r := range rules {
		switch {
		case r.Prefix.Bits() > n.Bits() || !r.Prefix.Contains(n.Addr()) || r.Prefix.Bits() < bits:
		case r.Prefix.Bits() == bits:
			allow = allow && r.Allow
		default:
			bits, allow, known = r.Prefix.Bits(), r.Allow, true
		}
	}
	return allow, known
}
