package kernel

// Mesh services: the chain that leads packets to their endpoints. All of it is pure.
//
// The first packet of a connection goes down a tree to the chain of its address, from there to the one of its port, and
// gets an endpoint as its destination. No other translation follows: the kernel does one per connection. So it needs no
// kube-proxy, and none can lead the packet elsewhere. The hooks are first rules for that reason, too.
//
// The names of chains come from what they are for, not from their place: what changes at one service rewrites no chain
// of another one.

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"math"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/mesh/service"
)

const (
	servicesChain = "KLINK-SERVICES"
	serviceChains = "KLINK-SVC-" // how the names of its inner chains begin
)

// serviceRemedy is for a kernel that lacks what chains of mesh services need.
const serviceRemedy = "mesh services are not served"

// serviceAddress is an address with all that mesh services have at it.
type serviceAddress struct {
	addr  netip.Addr
	whole *service.Service // nil: only the ports belong to services
	ports []servicePort    // sorted by protocol and port
}

type servicePort struct {
	*service.Port
	affinity int // in seconds; 0: none
}

// protocolName is the name as iptables writes it.
func (p servicePort) protocolName() string {
	if p.Protocol == unix.IPPROTO_TCP {
		return "tcp"
	}
	return "udp"
}

// groupServices returns the addresses of services of a family, sorted.
func groupServices(services []service.Service, family int) []serviceAddress {
	byAddress := map[netip.Addr]*serviceAddress{}
	for i := range services {
		s := &services[i]
		if FamilyOf(s.Address) != family {
			continue
		}
		a := byAddress[s.Address]
		if a == nil {
			a = &serviceAddress{addr: s.Address}
			byAddress[s.Address] = a
		}
		if s.Whole {
			a.whole = s
		}
		for k := range s.Ports {
			a.ports = append(a.ports, servicePort{&s.Ports[k], s.Affinity})
		}
	}
	all := make([]serviceAddress, 0, len(byAddress))
	for _, addr := range slices.SortedFunc(maps.Keys(byAddress), netip.Addr.Compare) {
		a := byAddress[addr]
		slices.SortFunc(a.ports, func(p, q servicePort) int {
			return cmp.Or(cmp.Compare(p.Protocol, q.Protocol), cmp.Compare(p.Port.Port, q.Port.Port))
		})
		all = append(all, *a)
	}
	return all
}

// serviceChain gives packets to mesh services an endpoint as their destination, those from elsewhere and those of this
// node. What has no endpoint is accepted as it is: no other program shall translate it, and refuseChain refuses it.
func serviceChain(device string, services []serviceAddress) chain {
	const hook = " -m comment --comment kubelink -j " + servicesChain
	c := chain{table: natTable, name: servicesChain, device: device, first: true, innerPrefix: serviceChains,
		hooks: []string{"-A PREROUTING" + hook, "-A OUTPUT" + hook}, unwanted: len(services) == 0, remedy: serviceRemedy}
	b := &serviceBuilder{prefix: serviceChains, mask: "255.255.255.255"}
	if len(services) > 0 && services[0].addr.Is6() {
		b.mask = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
	}
	entries := make([]entry, len(services))
	for i := range services {
		entries[i] = entry{hostPrefix(services[i].addr), "-g " + b.addAddress(&services[i])}
	}
	c.addTree(entries, b.chains)
	return c
}

// addTree adds the rules of a tree to the chain, and to its inner chains the rest of the tree and others.
func (c *chain) addTree(entries []entry, others []innerChain) {
	if entries = simplifyEntries(entries, passOn); len(entries) > 0 {
		tree := strideTree{option: "-d", prefix: c.innerPrefix}
		tree.addChain(c.name, entries, 1)
		c.rules, c.inner = tree.chains[0].rules, slices.Concat(tree.chains[1:], others)
	}
}

// serviceBuilder makes the inner chains of addresses and ports.
type serviceBuilder struct {
	prefix string // of their names
	mask   string // that compares all bits of addresses
	chains []innerChain
}

// hashName is the name of a chain for something, at most 28 bytes long, as iptables wants it.
func hashName(prefix string, what ...any) string {
	h := fnv.New64a()
	for _, w := range what {
		fmt.Fprint(h, w, " ")
	}
	return fmt.Sprintf("%s%016X", prefix, h.Sum64())
}

// add adds a chain with rules that lack "-A NAME ".
func (b *serviceBuilder) add(name string, rules []string) {
	for i := range rules {
		rules[i] = "-A " + name + " " + rules[i]
	}
	b.chains = append(b.chains, innerChain{name, rules})
}

// addAddress returns the name of the chain of an address.
func (b *serviceBuilder) addAddress(a *serviceAddress) string {
	name := hashName(b.prefix, a.addr)
	rules := b.dispatchPorts(a, func(p servicePort) string { return b.portTarget(a.addr, p) })
	if a.whole != nil {
		targets := make([]string, len(a.whole.Targets))
		for i, t := range a.whole.Targets {
			targets[i] = t.String()
		}
		rules = append(rules, b.spread(name, "", targets, a.whole.Affinity)...)
	}
	b.add(name, rules)
	return name
}

// maxPorts is how many ports of an address are compared one after the other.
const maxPorts = 16

// dispatchPorts returns rules that lead packets to the target of their port. Many ports are divided into ranges, which
// have chains of their own. They return for a port between them.
func (b *serviceBuilder) dispatchPorts(a *serviceAddress, target func(servicePort) string) (rules []string) {
	match := func(first, last servicePort) string {
		text := fmt.Sprintf("-p %s -m %[1]s --dport %d", first.protocolName(), first.Port.Port)
		if last.Port.Port != first.Port.Port {
			text += fmt.Sprintf(":%d", last.Port.Port)
		}
		return text + " "
	}
	size := 1
	if len(a.ports) > maxPorts {
		size = int(math.Ceil(math.Sqrt(float64(len(a.ports)))))
	}
	for rest := a.ports; len(rest) > 0; {
		n := 1
		for n < min(size, len(rest)) && rest[n].Protocol == rest[0].Protocol {
			n++
		}
		part := rest[:n]
		rest = rest[n:]
		if size == 1 {
			rules = append(rules, match(part[0], part[0])+target(part[0]))
			continue
		}
		name := hashName(b.prefix, a.addr, part[0].Protocol, "from", part[0].Port.Port)
		var inside []string
		for _, p := range part {
			inside = append(inside, match(p, p)+target(p))
		}
		b.add(name, inside)
		rules = append(rules, match(part[0], part[n-1])+"-j "+name)
	}
	return rules
}

// portTarget returns the target of packets to a port.
func (b *serviceBuilder) portTarget(addr netip.Addr, p servicePort) string {
	targets := make([]string, len(p.Targets))
	for i, t := range p.Targets {
		targets[i] = t.String()
	}
	switch {
	case len(targets) == 0:
		return toNobody
	case len(targets) == 1 && p.affinity == 0:
		return "-j DNAT --to-destination " + targets[0]
	}
	name := hashName(b.prefix, addr, p.Protocol, p.Port.Port)
	b.add(name, b.spread(name, "-p "+p.protocolName()+" ", targets, p.affinity))
	return "-g " + name
}

// toNobody keeps a packet without endpoint from other translations.
const toNobody = "-j ACCEPT"

// spread returns rules that choose one of the targets, each as often as the others. With affinity, a source gets the
// one that it has had within these seconds, as kube-proxy does it: the list of a target remembers its last 100 sources
// (ip_list_tot of xt_recent), and forgets none of them because other targets change.
func (b *serviceBuilder) spread(key, match string, targets []string, affinity int) (rules []string) {
	if len(targets) == 0 {
		return []string{match + toNobody}
	}
	var random []string
	for i, t := range targets {
		target := "-j DNAT --to-destination " + t
		if affinity > 0 {
			name := hashName(b.prefix, key, t)
			list := " --name " + name + " --mask " + b.mask + " --rsource "
			b.add(name, []string{match + "-m recent --set" + list + target})
			target = "-g " + name
			rules = append(rules, fmt.Sprintf("%s-m recent --rcheck --seconds %d --reap%s%s", match, affinity, list, target))
		}
		if left := len(targets) - i; left > 1 {
			target = "-m statistic --mode random --probability " + probability(left) + " " + target
		}
		random = append(random, match+target)
	}
	return append(rules, random...)
}

// probability is one of n, as iptables prints what the kernel makes of it: a multiple of 2^-31.
func probability(n int) string {
	return fmt.Sprintf("%.11f", math.Round((1<<31)/float64(n))/(1<<31))
}
