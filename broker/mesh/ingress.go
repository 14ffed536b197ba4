package mesh

// Which local destinations packets from a link may reach.
//
// Each list that there is must let a packet pass: that of the link, that of its LocalLink, and for a cluster behind a
// gateway that of the gateway. The default counts where there is no list at all. In a list denials win, whatever the
// order and the length of its entries, and a list of denials only allows the rest.

import (
	"net/netip"
	"slices"
)

// unroutable are networks to which no list leads: "the rest" is not loopback, where kube-proxy lets packets to
// NodePorts in (route_localnet), and not the metadata service of a cloud (RFC 6890, section 2.2).
var unroutable = []Rule{
	{Prefix: netip.MustParsePrefix("0.0.0.0/8")},
	{Prefix: netip.MustParsePrefix("127.0.0.0/8")},
	{Prefix: netip.MustParsePrefix("169.254.0.0/16")},
	{Prefix: netip.MustParsePrefix("224.0.0.0/4")},
	{Prefix: netip.MustParsePrefix("255.255.255.255/32")},
	{Prefix: netip.MustParsePrefix("::/127")},
	{Prefix: netip.MustParsePrefix("::ffff:0:0/96")},
	{Prefix: netip.MustParsePrefix("fe80::/10")},
	{Prefix: netip.MustParsePrefix("ff00::/8")},
}

// coversUnroutable tells whether a network is so wide that it has unroutable ones in it, as a default route has, or
// half of one.
func coversUnroutable(n netip.Prefix) bool {
	return slices.ContainsFunc(unroutable, func(r Rule) bool { return contains(n, r.Prefix) })
}

// IngressList is spec.ingress of a KubeLink, as a user wrote it.
type IngressList struct {
	Link, Mesh string // Link is the name of the KubeLink
	Local      bool   // it is the LocalLink: the list counts for all links of the mesh
	Rules      []Rule
}

// Excludes tells whether the list keeps packets from an address; denial is the entry that does, unless no entry leads
// there. Other than by a denial, no list keeps them from ports of an address that this cluster itself has in the mesh.
func (l *IngressList) Excludes(a netip.Addr, own bool) (excluded bool, denial netip.Prefix) {
	n := netip.PrefixFrom(a, a.BitLen())
	for _, r := range l.Rules {
		if !r.Allow && contains(r.Prefix, n) {
			return true, r.Prefix
		}
	}
	return !own && !allowsAll([][]Rule{l.Rules}, n), netip.Prefix{}
}

// ingressLists are the lists that are not empty, those of LocalLinks first.
func ingressLists(meshes []*meshEntry, links []*linkEntry) (lists []IngressList) {
	for _, m := range meshes {
		if len(m.ingress) > 0 {
			lists = append(lists, IngressList{m.Link, m.Name, true, m.ingress})
		}
	}
	for _, l := range links {
		if len(l.ingress) > 0 {
			lists = append(lists, IngressList{l.Name, l.Mesh, false, l.ingress})
		}
	}
	return lists
}

// effectiveIngress are the rules of which the longest prefix decides as lists, as users wrote them, decide together.
// Empty ones are none. node are the local cluster addresses of all meshes.
func effectiveIngress(m *meshEntry, node []netip.Addr, lists ...[]Rule) []Rule {
	lists = slices.DeleteFunc(lists, func(list []Rule) bool { return len(list) == 0 })
	if len(lists) == 0 {
		lists = append(lists, defaultIngress(m))
	}
	lists = append(lists, unroutable)
	// Between two of these prefixes there is no other one: all addresses of the longer one are decided the same way.
	rules := []Rule{{Prefix: netip.PrefixFrom(netip.IPv4Unspecified(), 0)},
		{Prefix: netip.PrefixFrom(netip.IPv6Unspecified(), 0)}}
	for _, list := range lists {
		rules = append(rules, list...)
	}
	for i, r := range rules {
		rules[i].Allow = allowsAll(lists, r.Prefix)
	}
	for _, a := range node {
		n := netip.PrefixFrom(a, a.BitLen())
		own := slices.Contains(m.Addresses.Addrs(), a)
		allow := allowsAll(lists, n) || own && !deniesAny(lists, n)
		rules = slices.DeleteFunc(rules, func(r Rule) bool { return r.Prefix == n })
		rules = append(rules, Rule{Prefix: n, Allow: allow, Node: own || allow})
	}
	return dropNeedless(rules)
}

// noteDenied tells of the first entry of a list that a denial of the same list leaves nothing of.
func (r *reports) noteDenied(object string, list []Rule) {
	for _, allow := range list {
		i := slices.IndexFunc(list, func(deny Rule) bool { return !deny.Allow && contains(deny.Prefix, allow.Prefix) })
		if allow.Allow && i >= 0 {
			r.addNote(object, "%s of spec.ingress has no effect: !%s denies it, whatever the order of the list",
				allow.Prefix, list[i].Prefix)
			return
		}
	}
}

// defaultIngress is the list where there is none: the local service networks, and the cluster's own addresses.
func defaultIngress(m *meshEntry) []Rule {
	var list []Rule
	for _, n := range m.Services {
		list = append(list, Rule{Prefix: n, Allow: true})
	}
	for _, a := range m.Addresses.Addrs() {
		list = append(list, Rule{Prefix: netip.PrefixFrom(a, a.BitLen()), Allow: true})
	}
	return list
}

// allowsAll tells whether each of the lists lets all packets to a network pass.
func allowsAll(lists [][]Rule, n netip.Prefix) bool {
	for _, list := range lists {
		allow, denialsOnly := false, true
		for _, r := range list {
			denialsOnly = denialsOnly && !r.Allow
			allow = allow || r.Allow && contains(r.Prefix, n)
		}
		if !allow && !denialsOnly {
			return false
		}
	}
	return !deniesAny(lists, n)
}

// deniesAny tells whether one of the lists has a denial of a network.
func deniesAny(lists [][]Rule, n netip.Prefix) bool {
	return slices.ContainsFunc(lists, func(list []Rule) bool {
		return slices.ContainsFunc(list, func(r Rule) bool { return !r.Allow && contains(r.Prefix, n) })
	})
}

// contains tells whether all addresses of a network lie in another one.
func contains(outer, n netip.Prefix) bool {
	return outer.Bits() <= n.Bits() && outer.Contains(n.Addr())
}

// dropNeedless sorts rules and leaves out those that say the same as the network around them, or as no rule: a denial.
func dropNeedless(rules []Rule) []Rule {
	// A network comes before the networks in it.
	slices.SortFunc(rules, func(a, b Rule) int { return a.Prefix.Compare(b.Prefix) })
	var kept, around []Rule
	for _, r := range rules {
		for len(around) > 0 && !contains(around[len(around)-1].Prefix, r.Prefix) {
			around = around[:len(around)-1]
		}
		var outer Rule
		if len(around) > 0 {
			outer = around[len(around)-1]
		}
		if r.Allow == outer.Allow && r.Node == outer.Node {
			continue
		}
		kept, around = append(kept, r), append(around, r)
	}
	return kept
}
