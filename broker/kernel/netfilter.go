package kernel

// The iptables chains: what is in them, and the one transaction that makes a table so.

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"

	"github.com/mandelsoft/kubelink/broker/mesh"
	"golang.org/x/sys/unix"
)

// chain is one of ours. Rules are in the form that iptables -S prints.
type chain struct {
	table, name string
	hook        string // the rule of a builtin chain that jumps here
	first       bool   // the hook must be the first rule, else it is appended
	rules       []string
	remedy      string // for one that a mesh does without where the kernel lacks it
}

// chains returns what one family should have.
//
// The hook of KUBELINK-POSTROUTING is the first rule of POSTROUTING, for the first rule that
// translates a source decides: the CNI and kube-proxy masquerade there what leaves a cluster, and
// MASQUERADE takes any address of the device, not that of the mesh. If somebody else moves in
// front of it, the next Set moves it back.
//
// The hook of KUBELINK-FORWARD comes last, so that network policies decide before us. It is for
// hosts where the policy of FORWARD is DROP.
//
// KUBELINK-MSS lowers the MSS of connections through the device to what fits the smaller of the
// two paths, the one there and the one back (xt_TCPMSS looks up both), so that pods with a large
// MTU need no path MTU discovery. Its hook comes first: it lets all packets go on, others may not.
// FORWARD is enough. A process of this node takes its MSS from the device, whose MTU also bounds
// what it sends, whatever MSS the other side tells. Each rule is for the MSS of one direction; we
// do both, as the peer may do none. What passes no FORWARD here (what IPVS sends to an endpoint) does
// so at the peer.
func (k *Kernel) chains(s State, f int) []chain {
	device := k.config.Device
	nat := chain{table: "nat", name: "KUBELINK-POSTROUTING", first: true,
		hook: "-A POSTROUTING -o " + device + " -m comment --comment kubelink -j KUBELINK-POSTROUTING"}
	filter := chain{table: "filter", name: "KUBELINK-FORWARD",
		hook:  "-A FORWARD -m comment --comment kubelink -j KUBELINK-FORWARD",
		rules: []string{"-A KUBELINK-FORWARD -i " + device + " -j ACCEPT", "-A KUBELINK-FORWARD -o " + device + " -j ACCEPT"}}
	const clamp = " -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu"
	mss := chain{table: "mangle", name: "KUBELINK-MSS", first: true,
		hook:  "-A FORWARD -m comment --comment kubelink -j KUBELINK-MSS",
		rules: []string{"-A KUBELINK-MSS -i " + device + clamp, "-A KUBELINK-MSS -o " + device + clamp},
		remedy: "it needs the kernel modules xt_TCPMSS and " + map[int]string{unix.AF_INET: "iptable_mangle", unix.AF_INET6: "ip6table_mangle"}[f] +
			" (with nf_tables, nft_compat): load them on the node, or give its pods no larger MTU than " + device + " has"}

	ranges := map[netip.Addr]netip.Prefix{} // of the mesh, by our address in it
	for _, a := range s.Addresses {
		ranges[a.Addr()] = a.Masked()
	}
	// Routes of several meshes can nest. The routing table took the longest prefix, so it must be
	// the one that decides here too: the longest first, and each decides finally.
	routes := slices.Clone(s.Routes)
	slices.SortFunc(routes, func(a, b mesh.Route) int {
		return cmp.Or(b.Destination.Bits()-a.Destination.Bits(), a.Destination.Addr().Compare(b.Destination.Addr()))
	})
	for _, r := range routes {
		if family(r.Source) != f {
			continue
		}
		within, there := ranges[r.Source]
		if !there {
			within = host(r.Source)
		}
		from, to := match("-s", within), match("-d", r.Destination)
		// What has an address of this mesh keeps it: it is ours, or that of a cluster that we are
		// the gateway for. ACCEPT, not a negated match of the other rule: a shorter prefix of
		// another mesh must not see it.
		nat.rules = append(nat.rules,
			fmt.Sprintf("-A %s%s%s -o %s -j ACCEPT", nat.name, from, to, device),
			fmt.Sprintf("-A %s%s -o %s -j SNAT --to-source %s", nat.name, to, device, r.Source))
	}
	return []chain{nat, filter, mss}
}

func match(option string, p netip.Prefix) string {
	if p.Bits() == 0 {
		return "" // iptables does not print it
	}
	return " " + option + " " + p.String()
}

// commands returns what to tell iptables-restore(8), given the rules of the builtin chain and of
// this one. All of it is one transaction: no packet sees less than the old or the new rules.
func (c chain) commands(want bool, builtin, now []string) (commands []string) {
	var hooks []string
	for _, r := range builtin {
		if strings.HasSuffix(r, " -j "+c.name) {
			hooks = append(hooks, r)
		}
	}
	hooked := len(hooks) == 1 && hooks[0] == c.hook && (!c.first || builtin[0] == c.hook)
	if want && (now == nil || !slices.Equal(now, c.rules)) {
		commands = append(append(commands, ":"+c.name+" - [0:0]"), c.rules...) // makes or empties it
	}
	if !want || !hooked {
		for _, h := range hooks {
			commands = append(commands, "-D"+strings.TrimPrefix(h, "-A"))
		}
	}
	switch {
	case want && !hooked && c.first:
		commands = append(commands, "-I"+strings.TrimPrefix(c.hook, "-A"))
	case want && !hooked:
		commands = append(commands, c.hook)
	case !want && now != nil:
		commands = append(commands, "-F "+c.name, "-X "+c.name)
	}
	return commands
}

// setChains sets the chains of both families. A family that is not in use is looked at once, for
// what a killed broker left. It returns the families whose source NAT is not as it should be.
func (k *Kernel) setChains(s State) (noNAT map[int]bool, errs []error) {
	noNAT = map[int]bool{}
	var warnings []error
	defer func() { k.warning = errors.Join(warnings...) }()
	for _, f := range families {
		want := slices.ContainsFunc(s.Addresses, func(a netip.Prefix) bool { return family(a.Addr()) == f }) ||
			slices.ContainsFunc(s.Routes, func(r mesh.Route) bool { return family(r.Source) == f })
		if !want && k.clean[f] {
			continue
		}
		k.clean[f] = !want
		for _, c := range k.chains(s, f) {
			if err := k.setChain(c, f, want); err != nil {
				k.clean[f] = false
				noNAT[f] = noNAT[f] || c.table == "nat"
				err = fmt.Errorf("chain %s of IPv%d: %w", c.name, version(f), err)
				if c.remedy != "" && want && !errors.Is(err, exec.ErrNotFound) {
					warnings = append(warnings, fmt.Errorf("%w; %s", err, c.remedy))
					continue
				}
				errs = append(errs, err)
			}
		}
	}
	return noNAT, errs
}

func (k *Kernel) setChain(c chain, f int, want bool) error {
	builtin, err := k.system.Chain(f, c.table, strings.Fields(c.hook)[1])
	if err != nil {
		if !want && errors.Is(err, exec.ErrNotFound) {
			return nil // without iptables there are no chains
		}
		return err
	}
	now, err := k.system.Chain(f, c.table, c.name)
	if err != nil {
		return err
	}
	if commands := c.commands(want, builtin, now); len(commands) > 0 {
		return k.system.Restore(f, c.table, commands)
	}
	return nil
}

var families = []int{unix.AF_INET, unix.AF_INET6}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func version(family int) int {
	if family == unix.AF_INET {
		return 4
	}
	return 6
}
