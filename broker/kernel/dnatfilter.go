package kernel

// What else packets of mesh services need besides an endpoint: they are refused where there is none, pass this node,
// and the answers come back here. All of it is pure.

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	refuseName   = "KLINK-REFUSE"
	refuseChains = "KLINK-REF-" // how the names of its inner chains begin

	sourceName   = "KLINK-SERVICE-SOURCE"
	sourceChains = sourceName + "-"

	forwardChains = forwardName + "-"
)

// matchFormer matches the destination that a connection had before any translation.
const matchFormer = "-m conntrack --ctorigdst"

// refuseChain refuses what is still for the address of a mesh service when all translation is done: there is no
// endpoint. Of the address of the cluster, these are the ports of services, and of others all. It does so for all
// services, so that nothing changes when endpoints come and go, and no packet to one leaves
// for the meshes, or gets to a process of this node that has the same port. Its hooks come first: other rules, also
// those of forwardChain, may accept or drop the packet.
func refuseChain(device string, s State, services []serviceAddress, family int) chain {
	c := chain{table: filterTable, name: refuseName, device: device, first: true, innerPrefix: refuseChains,
		before: forwardName, unwanted: len(services) == 0, remedy: serviceRemedy}
	for _, from := range []string{"FORWARD", "INPUT", "OUTPUT"} {
		c.hooks = append(c.hooks,
			"-A "+from+" -m conntrack --ctstate NEW -m comment --comment kubelink -j "+refuseName)
	}
	const reset, all = "-j REJECT --reject-with tcp-reset", refuseChains + "ALL"
	unreachable := "-j REJECT --reject-with icmp-port-unreachable"
	if family == unix.AF_INET6 {
		unreachable = "-j REJECT --reject-with icmp6-port-unreachable"
	}
	b := &serviceBuilder{prefix: refuseChains}
	b.add(all, []string{"-p tcp " + reset, unreachable})
	entries := make([]entry, len(services))
	for i := range services {
		a := &services[i]
		entries[i] = entry{hostPrefix(a.addr), "-g " + all}
		if a.whole != nil || !s.hasAddress(a.addr) {
			continue
		}
		rules := b.dispatchPorts(a, func(p servicePort) string {
			if p.Protocol == unix.IPPROTO_TCP {
				return reset
			}
			return unreachable
		})
		name := hashName(refuseChains, a.addr)
		b.add(name, rules)
		entries[i].target = "-g " + name
	}
	c.addTree(entries, b.chains)
	return c
}

// serviceSourceChain gives packets to endpoints the address of the device by which they leave, so that the answers come
// back here: an endpoint may be in another node, which has no route to the client, in the client's own network, or the
// client itself. What leaves for the meshes gets its source from natChain. The other ends of the overlay have routes.
func serviceSourceChain(device string, s State, services []serviceAddress, family int) chain {
	c := chain{table: natTable, name: sourceName, device: device, first: true, innerPrefix: sourceChains,
		unwanted: len(services) == 0, remedy: serviceRemedy,
		hooks: []string{"-A POSTROUTING -m conntrack --ctstate DNAT -m comment --comment kubelink -j " + sourceName}}
	for _, out := range []string{device, OverlayDevice, "lo"} {
		c.addRules("-o " + out + " -j RETURN")
	}
	entries := serviceRanges(s, services, "-j MASQUERADE")
	for _, a := range s.Addresses { // it can have node ports
		known := slices.ContainsFunc(services, func(x serviceAddress) bool { return x.addr == a.Addr() })
		if FamilyOf(a.Addr()) == family && !known {
			entries = append(entries, entry{hostPrefix(a.Addr()), passOn})
		}
	}
	_, tree := buildTree(sourceName, matchFormer, entries, passOn)
	if len(tree) > 0 {
		c.rules, c.inner = append(c.rules, tree[0].rules...), tree[1:]
	}
	return c
}

// serviceRanges returns the ranges of meshes that mesh services have addresses in, and addresses that are in none, with
// a target. Nothing else in them is translated, but for node ports of the address of this cluster.
func serviceRanges(s State, services []serviceAddress, target string) (entries []entry) {
	seen := map[netip.Prefix]bool{}
	for i := range services {
		n := hostPrefix(services[i].addr)
		for _, a := range s.Addresses {
			if a.Contains(services[i].addr) {
				n = a.Masked()
			}
		}
		if !seen[n] {
			seen[n] = true
			entries = append(entries, entry{n, target})
		}
	}
	return entries
}

// acceptServices accepts packets between others and the endpoints of mesh services, in both directions.
func (c *chain) acceptServices(s State, family int) {
	const root = forwardChains + "SERVICES"
	entries := serviceRanges(s, groupServices(s.Services, family), "-j ACCEPT")
	_, tree := buildTree(root, matchFormer, entries, passOn)
	if len(tree) > 0 {
		c.addRules("-m conntrack --ctstate DNAT -j " + root)
		c.inner = append(c.inner, tree...)
	}
}

// maxMultiport is how many ports xt_multiport takes.
const maxMultiport = 15

// passServices returns the rules of the guard that let packets to ports of mesh services at addresses of this cluster
// pass: they are none of the node. If they get no endpoint, refuseChain refuses them.
func passServices(s State, family int) (rules []string) {
	for _, a := range groupServices(s.Services, family) {
		if !s.hasAddress(a.addr) {
			continue
		}
		byProtocol := map[string][]string{}
		for _, p := range a.ports {
			byProtocol[p.protocolName()] = append(byProtocol[p.protocolName()], fmt.Sprint(p.Port.Port))
		}
		for _, protocol := range []string{"tcp", "udp"} {
			for part := range slices.Chunk(byProtocol[protocol], maxMultiport) {
				rules = append(rules, fmt.Sprintf("-d %s -p %s -m multiport --dports %s -j RETURN",
					hostPrefix(a.addr), protocol, strings.Join(part, ",")))
			}
		}
	}
	return rules
}
