package kernel

// The iptables chains: what should be in them, and the one transaction that makes a table so. All
// of it is pure.

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

const natTable = "nat"

// chain is one of ours. Rules are in the form that iptables -S prints.
type chain struct {
	table, name string
	hook        string // the rule of a builtin chain that jumps to this one
	first       bool   // the hook must be the first rule, else it is appended
	rules       []string
	remedy      string // for a chain that a mesh does without where the kernel lacks it
}

// builtin is the name of the chain that the hook is in.
func (c chain) builtin() string { return strings.Fields(c.hook)[1] }

// wantedChains returns the chains that one family should have.
func wantedChains(device string, s State, family int) []chain {
	return []chain{natChain(device, s, family), forwardChain(device), mssChain(device, family)}
}

// natChain translates sources of packets that leave through the device.
//
// Its hook is the first rule of POSTROUTING, for the first rule that translates a source decides:
// the CNI and kube-proxy masquerade there what leaves a cluster, and MASQUERADE takes any address
// of the device, not the one of the mesh. If another program moves in front of the hook, the next
// Set moves it back.
func natChain(device string, s State, family int) chain {
	c := chain{table: natTable, name: "KUBELINK-POSTROUTING", first: true,
		hook: "-A POSTROUTING -o " + device + " -m comment --comment kubelink -j KUBELINK-POSTROUTING"}
	meshRanges := map[netip.Addr]netip.Prefix{} // by our address in the mesh
	for _, a := range s.Addresses {
		meshRanges[a.Addr()] = a.Masked()
	}
	for _, r := range longestFirst(s.Routes) {
		if familyOf(r.Source) != family {
			continue
		}
		meshRange, ok := meshRanges[r.Source]
		if !ok {
			meshRange = hostPrefix(r.Source)
		}
		from, to := matchOption("-s", meshRange), matchOption("-d", r.Destination)
		// A packet with an address of this mesh keeps it: the address is ours, or that of a cluster
		// that we are the gateway for. ACCEPT, not a negated match of the second rule: a shorter
		// prefix of another mesh must not see the packet.
		c.rules = append(c.rules,
			fmt.Sprintf("-A %s%s%s -o %s -j ACCEPT", c.name, from, to, device),
			fmt.Sprintf("-A %s%s -o %s -j SNAT --to-source %s", c.name, to, device, r.Source))
	}
	return c
}

// longestFirst sorts routes for rules that each decide finally. Routes of several meshes can nest.
// The routing table took the longest prefix, so the longest must decide in the chain, too.
func longestFirst(routes []mesh.Route) []mesh.Route {
	return slices.SortedFunc(slices.Values(routes), func(a, b mesh.Route) int {
		return cmp.Or(b.Destination.Bits()-a.Destination.Bits(), a.Destination.Addr().Compare(b.Destination.Addr()))
	})
}

// forwardChain accepts packets that are forwarded from and to the device, for hosts where the policy
// of FORWARD is DROP. Its hook comes last, so that network policies decide before us.
func forwardChain(device string) chain {
	return chain{table: "filter", name: "KUBELINK-FORWARD",
		hook: "-A FORWARD -m comment --comment kubelink -j KUBELINK-FORWARD",
		rules: []string{
			"-A KUBELINK-FORWARD -i " + device + " -j ACCEPT",
			"-A KUBELINK-FORWARD -o " + device + " -j ACCEPT"}}
}

// mssChain lowers the MSS of connections through the device to what fits the smaller of the two
// paths, the one there and the one back (xt_TCPMSS looks up both), so that pods with a large MTU
// need no path MTU discovery. Its hook comes first: it lets all packets go on, other rules may not.
//
// FORWARD is enough. A process of this node takes its MSS from the device, whose MTU also bounds
// what it sends, whichever MSS the other side tells. Each rule is for the MSS of one direction; we
// do both, as the peer may do none. A packet that passes no FORWARD here (IPVS sends it to an
// endpoint) does so at the peer.
func mssChain(device string, family int) chain {
	const clamp = " -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu"
	module := "iptable_mangle"
	if family == unix.AF_INET6 {
		module = "ip6table_mangle"
	}
	return chain{table: "mangle", name: "KUBELINK-MSS", first: true,
		hook: "-A FORWARD -m comment --comment kubelink -j KUBELINK-MSS",
		rules: []string{
			"-A KUBELINK-MSS -i " + device + clamp,
			"-A KUBELINK-MSS -o " + device + clamp},
		remedy: "it needs the kernel modules xt_TCPMSS and " + module + " (with nf_tables, nft_compat): " +
			"load them on the node, or give its pods no larger MTU than " + device + " has"}
}

// matchOption is an option of a rule with a space before it. iptables prints none for all addresses.
func matchOption(option string, p netip.Prefix) string {
	if p.Bits() == 0 {
		return ""
	}
	return " " + option + " " + p.String()
}

// restoreCommands returns what to tell iptables-restore(8), given the rules that the builtin chain
// and this one have; current is nil where this one does not exist. All of it is one transaction: no
// packet sees less than the old or the new rules.
func (c chain) restoreCommands(wanted bool, builtin, current []string) (commands []string) {
	hooks := c.findHooks(builtin)
	if !wanted {
		commands = deleteCommands(hooks)
		if current != nil {
			commands = append(commands, "-F "+c.name, "-X "+c.name)
		}
		return commands
	}
	if current == nil || !slices.Equal(current, c.rules) {
		commands = append(commands, ":"+c.name+" - [0:0]") // makes or empties it
		commands = append(commands, c.rules...)
	}
	if len(hooks) == 1 && hooks[0] == c.hook && (!c.first || builtin[0] == c.hook) {
		return commands
	}
	commands = append(commands, deleteCommands(hooks)...)
	if c.first {
		return append(commands, "-I"+strings.TrimPrefix(c.hook, "-A"))
	}
	return append(commands, c.hook)
}

func deleteCommands(rules []string) (commands []string) {
	for _, r := range rules {
		commands = append(commands, "-D"+strings.TrimPrefix(r, "-A"))
	}
	return commands
}

// findHooks returns the rules of the builtin chain that jump to this one.
func (c chain) findHooks(builtin []string) (hooks []string) {
	for _, r := range builtin {
		if strings.HasSuffix(r, " -j "+c.name) {
			hooks = append(hooks, r)
		}
	}
	return hooks
}
