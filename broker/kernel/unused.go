package kernel

// Addresses of a mesh that no cluster has. WireGuard in user space drops what is for them without a word, and clients
// would wait. It is pure.

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	unusedName   = "KLINK-UNUSED"
	unusedChains = unusedName + "-" // how the names of its inner chains begin
)

// unusedChain refuses what leaves for addresses in the range of a mesh that are routed to no link. Its hooks stand
// behind those of refuseChain, which knows services without endpoint, and before that of forwardChain, which accepts
// the packet.
func unusedChain(device string, s State, family int) chain {
	c := chain{table: filterTable, name: unusedName, device: device, first: true, innerPrefix: unusedChains,
		after: refuseName, before: forwardName, optional: true,
		remedy: "what is for an unused address of a mesh gets no answer"}
	for _, from := range []string{"FORWARD", "OUTPUT"} {
		c.hooks = append(c.hooks, "-A "+from+" -o "+device+" -m comment --comment kubelink -j "+unusedName)
	}
	refuse := "-j REJECT --reject-with icmp-host-unreachable"
	if family == unix.AF_INET6 {
		refuse = "-j REJECT --reject-with icmp6-addr-unreachable"
	}
	entries := unusedEntries(s, family, refuse)
	_, tree := buildTree(unusedName, "-d", entries, passOn)
	if c.unwanted = len(tree) == 0; !c.unwanted {
		c.rules, c.inner = tree[0].rules, tree[1:]
	}
	return c
}

// unusedEntries are the ranges of meshes, which are refused, and the networks of links in them, which are not. Where
// the network of a link has a whole range in it, no address there is unused.
func unusedEntries(s State, family int, refuse string) (entries []entry) {
	if s.Firewall == nil {
		return nil
	}
	for _, a := range s.Addresses {
		if FamilyOf(a.Addr()) == family {
			entries = append(entries, entry{a.Masked(), refuse})
		}
	}
	var used []entry
	for i := range s.Firewall.Peers {
		for _, n := range s.Firewall.Peers[i].Networks {
			entries = slices.DeleteFunc(entries, func(e entry) bool { return containsNetwork([]netip.Prefix{n}, e.prefix) })
			if slices.ContainsFunc(entries, func(e entry) bool { return e.prefix.Contains(n.Addr()) }) {
				used = append(used, entry{n.Masked(), passOn})
			}
		}
	}
	return append(entries, used...)
}
