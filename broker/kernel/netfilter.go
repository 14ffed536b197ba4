package kernel

// The iptables chains: what should be in them, where their hooks stand, and the one transaction that makes a chain so.
// All of it is pure.
//
// Their names begin with KLINK-: a router of the former system flushes all KUBELINK- chains. Earlier
// versions of this program had such names; a chain removes its predecessor in the transaction that makes it.

import (
	"cmp"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

const (
	natTable    = "nat"
	filterTable = "filter"
	mangleTable = "mangle"
)

// chain is one of ours. Rules are in the form that iptables -S prints.
type chain struct {
	table, name string
	hooks       []string // the rules of builtin chains that jump to this one, one of each
	device      string   // of the mesh
	first       bool     // the hooks must be first rules, else they stand behind network policies
	before      string   // another chain of ours, whose hook must come later
	after       string   // another chain of ours, whose hook must come earlier, if it is there
	rules       []string
	old         predecessor
	remedy      string // what a kernel without the chain does; the error also has the modules that it needs
	gives       string // without it, there are no new routes; empty: they do without the chain
	optional    bool   // a mesh does without it
	unwanted    bool   // it is removed
	counts      reason // of the packets that its rules drop; inner ones have reasons of their own
	inner       []innerChain
	innerPrefix string // how the names of inner chains begin, the ones of earlier states, too; empty: there are none
}

// innerChain is one that only a chain of ours leads to. Both change in one transaction.
type innerChain struct {
	name  string
	rules []string
}

// predecessor is the chain that an earlier version of this program had in place of one.
type predecessor struct {
	name string         // empty: there was none
	rule *regexp.Regexp // what each of its rules looks like; a foreign chain with the same name has other ones
}

// builtin is the name of the chain that a hook is in.
func builtin(hook string) string { return strings.Fields(hook)[1] }

// wantedChains returns the chains that one family should have. With ipvs, addresses of services are local ones.
func wantedChains(device string, s State, family int, ipvs bool) []chain {
	services := groupServices(s.Services, family)
	// A port is open when its packets are translated, and refused as long as they are not. A connection keeps the
	// source and the endpoint that its first packet gets, so both are there for it, or none.
	chains := []chain{
		serviceSourceChain(device, s, services, family), serviceChain(device, services),
		natChain(device, s, family), masqueradeChain(device, s, family), guardChain(device, s, family, ipvs),
		forwardChain(device, s, family), refuseChain(device, s, services, family), mssChain(device),
		unusedChain(device, s, family),
	}
	chains = append(chains, tunnelChains(device, s.Tunnel.LocalPort)...)
	if family == unix.AF_INET6 { // of IPv4, it is a setting of the device
		chains = append(chains, sourceRouteChain(device, s))
	}
	return chains
}

// natChain translates sources of packets that leave through the device.
//
// Its hook is the first rule of POSTROUTING, for the first rule that translates a source decides:
// the CNI and kube-proxy masquerade there what leaves a cluster, and MASQUERADE takes any address
// of the device, not the one of the mesh. If another program moves in front of the hook, the next
// Set moves it back.
//
// In a pod, it also translates what leaves another way: the network of pods takes no packets from other addresses than
// the pod's. Its last rules are about all packets, then, so the hook has no device. Packets of the pod itself have its
// address already; on the loopback device a translation would harm them.
func natChain(device string, s State, family int) chain {
	out := " -o " + device
	if s.Pod.Is {
		out = ""
	}
	c := chain{table: natTable, name: "KLINK-POSTROUTING", device: device, first: true, innerPrefix: translateChains,
		gives: "source NAT",
		hooks: []string{"-A POSTROUTING" + out + " -m comment --comment kubelink -j KLINK-POSTROUTING"},
		old: predecessor{"KUBELINK-POSTROUTING",
			regexp.MustCompile(`^(-s \S+ )?(-d \S+ )?-o \S+ -j (ACCEPT|SNAT --to-source \S+)$`)}}
	meshRanges := map[netip.Addr]netip.Prefix{} // by our address in the mesh
	for _, a := range s.Addresses {
		meshRanges[a.Addr()] = a.Masked()
	}
	direct := ""
	if s.servesFamily(family) { // an endpoint can be beyond a link: its answers have to come back here
		direct = " -m conntrack ! --ctstate DNAT"
	}
	var sources []netip.Addr
	for _, r := range longestFirst(s.Routes) {
		if FamilyOf(r.Source) != family {
			continue
		}
		meshRange, ok := meshRanges[r.Source]
		if !ok {
			meshRange = hostPrefix(r.Source)
		}
		if s.Firewall != nil {
			if !slices.Contains(sources, r.Source) {
				sources = append(sources, r.Source)
			}
			c.translateStrangers(s.Firewall, r, meshRange, slices.Index(sources, r.Source), direct != "")
			continue
		}
		from, to := matchOption("-s", meshRange), matchOption("-d", r.Destination)
		// A packet with an address of this mesh keeps it: the address is ours, or that of a cluster
		// that we are the gateway for. ACCEPT, not a negated match of the second rule: a shorter
		// prefix of another mesh must not see the packet.
		c.rules = append(c.rules,
			fmt.Sprintf("-A %s%s%s -o %s%s -j ACCEPT", c.name, from, to, device, direct),
			fmt.Sprintf("-A %s%s -o %s -j SNAT --to-source %s", c.name, to, device, r.Source))
	}
	if s.Pod.Is {
		for _, rule := range []string{" -o " + device + " -j RETURN", " -o " + OverlayDevice + " -j RETURN",
			" -o lo -j RETURN", " -j MASQUERADE"} {
			c.rules = append(c.rules, "-A "+c.name+rule)
		}
	}
	return c
}

// translateChains is how the names of inner chains of natChain begin.
const translateChains = "KLINK-NAT-"

// translateStrangers adds the rule of a route where packets from one link to another one pass the kernel: what links of
// its mesh send keeps its source, for the list of the other end is about that. A network with local ones in it is not
// that of a link alone: it may have pods that no route tells of.
// place is that of its source.
func (c *chain) translateStrangers(fw *Firewall, r mesh.Route, meshRange netip.Prefix, place int, serves bool) {
	name := translateChains + strconv.Itoa(place)
	c.addRules(strings.TrimPrefix(matchOption("-d", r.Destination)+" -o "+c.device+" -g "+name, " "))
	if slices.ContainsFunc(c.inner, func(i innerChain) bool { return i.name == name }) {
		return
	}
	translate := "-j SNAT --to-source " + r.Source.String()
	entries := []entry{{meshRange, "-j ACCEPT"}}
	for i := range fw.Peers {
		inMesh := fw.Peers[i].Local.Contains(r.Source)
		for _, n := range fw.Peers[i].Networks {
			holdsLocal := slices.ContainsFunc(fw.Local, func(l netip.Prefix) bool {
				return n.Bits() <= l.Bits() && n.Contains(l.Addr())
			})
			switch {
			case n.Addr().Is4() != r.Source.Is4():
			case inMesh && !holdsLocal:
				entries = append(entries, entry{n.Masked(), "-j ACCEPT"})
			default:
				entries = append(entries, entry{n.Masked(), translate})
			}
		}
	}
	_, chains := buildTree(name, "-s", entries, translate)
	if serves {
		chains[0].rules = slices.Insert(chains[0].rules, 0, "-A "+name+" -m conntrack --ctstate DNAT "+translate)
	}
	c.inner = append(c.inner, chains...)
}

// masqueradeChain is for a gateway in a network that drops foreign addresses. It goes by the source: the
// dataplane lets in packets with a source that is routed to their link only, and the hook sees no input device.
func masqueradeChain(device string, s State, family int) chain {
	c := chain{table: natTable, name: "KLINK-MASQUERADE", device: device, first: true, gives: "source NAT",
		hooks: []string{"-A POSTROUTING -m comment --comment kubelink -j KLINK-MASQUERADE"}, unwanted: !s.Masquerade}
	for _, out := range []string{device, OverlayDevice} {
		c.rules = append(c.rules, "-A "+c.name+" -o "+out+" -j RETURN")
	}
	for _, r := range longestFirst(s.Routes) {
		if FamilyOf(r.Source) == family {
			c.rules = append(c.rules, "-A "+c.name+matchOption("-s", r.Destination)+" -j MASQUERADE")
		}
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

// guardChain keeps linked clusters away from the node itself. Of what comes in through the device for any address of
// the node, its own ones outside of the mesh included, only this passes: replies, errors about packets that are
// known, ping, and LocalPorts at the addresses of the mesh. Its last rules drop and count the rest.
//
// The hook is in mangle, which packets pass before the NAT of kube-proxy: later, a node port is already the port of a
// pod. Connection tracking has seen the packet there, in raw it has not. A peer's connection that was established
// while the port was open does not go on: only the direction of the reply passes as such.
//
// The address of a service is usually none of the node, so these rules do not concern it. It is one where NodeLocal
// DNSCache has the address of the DNS service, and with IPVS, where kube-proxy refuses ports that no service has.
//
// With a Firewall, it begins with the chains of that. Next are the addresses of tunnels, which nothing opens.
func guardChain(device string, s State, family int, ipvs bool) chain {
	c := chain{table: mangleTable, name: guardName, device: device, first: true, counts: ofNode, innerPrefix: linkChains,
		after:  routingName,
		hooks:  []string{"-A PREROUTING -i " + device + " -m comment --comment kubelink -j " + guardName},
		remedy: "linked clusters may reach ports of this node"}
	ping, node := "-p icmp -m icmp --icmp-type 8", []string{"-m addrtype --dst-type LOCAL,BROADCAST,ANYCAST,MULTICAST"}
	if family == unix.AF_INET6 { // xt_addrtype knows no BROADCAST there, and with MULTICAST no other type matches
		ping = "-p ipv6-icmp -m icmp6 --icmpv6-type 128"
		node = []string{"-d ff00::/8", "-m addrtype --dst-type LOCAL,ANYCAST"}
	}
	var control []string
	if s.Firewall != nil {
		c.gives = givesFirewall
		var first []string
		first, control, c.inner = firewallChains(s.Firewall, family)
		c.addRules(first...)
		if family == unix.AF_INET { // it changes routes, and counts as RELATED
			c.addRules("-p icmp -m icmp --icmp-type 5 -j " + dropNode)
		}
	}
	c.addRules(s.Tunnel.guardAddresses(family)...)
	pass := func(match string) { c.rules = append(c.rules, "-A "+c.name+match+" -j RETURN") }
	passPort := func(to netip.Prefix, p mesh.LocalPort) {
		pass(fmt.Sprintf("%s -p %s -m %[2]s --dport %d", matchOption("-d", to), p.Protocol, p.Port))
	}
	pass(" -m conntrack --ctstate ESTABLISHED --ctdir REPLY")
	pass(" -m conntrack --ctstate RELATED")
	pass(" " + ping + " -m addrtype --dst-type LOCAL")
	c.addRules(control...)
	for _, a := range s.Addresses {
		if FamilyOf(a.Addr()) != family {
			continue
		}
		for _, p := range s.LocalPorts {
			passPort(hostPrefix(a.Addr()), p)
		}
	}
	c.addRules(passServices(s, family)...)
	for _, n := range s.ServiceNetworks {
		switch {
		case FamilyOf(n.Addr()) != family:
		case ipvs:
			pass(matchOption("-d", n))
		default:
			passPort(n, mesh.LocalPort{Protocol: "tcp", Port: 53})
			passPort(n, mesh.LocalPort{Protocol: "udp", Port: 53})
		}
	}
	for _, match := range node {
		c.addRules(match + " -j DROP")
	}
	return c
}

func (c *chain) addRules(rules ...string) {
	for _, r := range rules {
		c.rules = append(c.rules, "-A "+c.name+" "+r)
	}
}

const (
	guardName   = "KLINK-LOCAL"
	routingName = "KLINK-ROUTING" // before the guard, which accepts what goes on to another link
)

const forwardName = "KLINK-FORWARD"

// forwardChain accepts packets that are forwarded from and to the device, for hosts where the policy
// of FORWARD is DROP, or its last rule refuses what is left.
//
// Its hook stands behind the chains of network policies (cali-FORWARD, KUBE-ROUTER-FORWARD, WEAVE-NPC), which
// links must not bypass, and before the first rule that refuses all packets. endOfPolicies says where that is. If a
// policy moves behind the hook, or such a rule before it, the next Set moves the hook.
//
// In a pod, nothing else is forwarded: for a network without route, such as that of a link that has just gone, the pod
// would send packets back to its node, which has sent them.
func forwardChain(device string, s State, family int) chain {
	c := chain{table: filterTable, name: forwardName, device: device,
		hooks: []string{"-A FORWARD -m comment --comment kubelink -j " + forwardName},
		old:   predecessor{"KUBELINK-FORWARD", regexp.MustCompile(`^-[io] \S+ -j ACCEPT$`)},
		rules: []string{
			"-A KLINK-FORWARD -i " + device + " -j ACCEPT",
			"-A KLINK-FORWARD -o " + device + " -j ACCEPT"}, innerPrefix: forwardChains}
	c.acceptServices(s, family)
	if s.Pod.Is {
		unreachable := "icmp-net-unreachable"
		if family == unix.AF_INET6 {
			unreachable = "icmp6-no-route"
		}
		c.rules = append(c.rules, "-A KLINK-FORWARD -j REJECT --reject-with "+unreachable)
	}
	return c
}

// mssChain lowers the MSS of connections through the device to what fits the smaller of the two
// paths, the one there and the one back (xt_TCPMSS looks up both), so that pods with a large MTU
// need no path MTU discovery. Its hook comes first: it lets all packets go on, other rules may not.
//
// FORWARD is enough. A process of this node takes its MSS from the device, whose MTU also bounds
// what it sends, whichever MSS the other side tells. Each rule is for the MSS of one direction; we
// do both, as the peer may do none. A packet that passes no FORWARD here (IPVS sends it to an
// endpoint) does so at the peer.
func mssChain(device string) chain {
	const clamp = " -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu"
	return chain{table: mangleTable, name: "KLINK-MSS", device: device, first: true,
		hooks: []string{"-A FORWARD -m comment --comment kubelink -j KLINK-MSS"},
		old: predecessor{"KUBELINK-MSS",
			regexp.MustCompile(`^-[io] \S+ -p tcp .*-j TCPMSS --clamp-mss-to-pmtu$`)},
		rules: []string{
			"-A KLINK-MSS -i " + device + clamp,
			"-A KLINK-MSS -o " + device + clamp},
		remedy:   "TCP connections of pods with a larger MTU than " + device + " has rely on path MTU discovery",
		optional: true}
}

// sourceRouteChain drops packets of links that name a further way (routing headers of IPv6, RFC 8200): the firewall
// knows the next destination only. A kernel without the match goes no such way itself, unless it was told to.
func sourceRouteChain(device string, s State) chain {
	const name = routingName
	return chain{table: mangleTable, name: name, device: device, first: true, counts: ofDestination,
		hooks:    []string{"-A PREROUTING -i " + device + " -m comment --comment kubelink -j " + name},
		rules:    []string{"-A " + name + " -m rt --rt-segsleft 1:255 -j DROP"},
		unwanted: s.Firewall == nil, optional: true, before: guardName,
		remedy: "packets of links that name a further way (routing headers) reach pods"}
}

// matchOption is an option of a rule with a space before it. iptables prints none for all addresses, and no length for
// one that connection tracking knows.
func matchOption(option string, p netip.Prefix) string {
	switch {
	case p.Bits() == 0:
		return ""
	case option == matchFormer && p.IsSingleIP():
		return " " + option + " " + p.Addr().String()
	}
	return " " + option + " " + p.String()
}

// restoreCommands returns what to tell iptables-restore(8), given the table as it is. All of it is one transaction: no
// packet sees less than the old or the new rules.
func (c chain) restoreCommands(wanted bool, t *ruleTable) (commands []string) {
	old := c.old.removeCommands(t)
	if !wanted {
		for _, hook := range c.hooks {
			_, ours := c.divideBuiltin(t, hook)
			commands = append(commands, deleteCommands(ours)...)
		}
		return slices.Concat(commands, old, removeChains(c.obsolete(t, nil)))
	}
	all := append([]innerChain{{c.name, c.rules}}, c.inner...)
	commands = fillCommands(all, t)
	for i, hook := range c.hooks {
		if i > 0 {
			old = nil
		}
		commands = append(commands, c.hookCommands(t, hook, old)...)
	}
	return append(commands, removeChains(c.obsolete(t, all))...)
}

// fillCommands make chains, or empty them, and fill them, where they are not right. They can lead to each other.
func fillCommands(chains []innerChain, t *ruleTable) (commands []string) {
	var rules []string
	for _, c := range chains {
		if current, exists := t.find(c.name); !exists || !slices.EqualFunc(current, c.rules, hasText) {
			commands = append(commands, makeCommand(c.name))
			rules = append(rules, c.rules...)
		}
	}
	return append(commands, rules...)
}

// makeCommand makes a chain, or empties it. It counts from zero then.
func makeCommand(name string) string { return ":" + name + " - [0:0]" }

// hookCommands put a hook in its place, and remove what old has.
func (c chain) hookCommands(t *ruleTable, hook string, old []string) []string {
	others, ours := c.divideBuiltin(t, hook)
	place := 0
	if !c.first {
		place = t.endOfPolicies(others, c.device)
	} else if c.after != "" && len(others) > 0 && strings.HasSuffix(others[0].text, " -j "+c.after) {
		place = 1
	}
	if len(ours) == 1 && len(old) == 0 && hasText(ours[0], hook) && c.isPlaced(t, hook, others, place) {
		return nil
	}
	remove := append(deleteCommands(ours), old...)
	rule := strings.TrimPrefix(hook, "-A "+builtin(hook))
	switch place {
	case 0:
		return append(remove, "-I "+builtin(hook)+rule)
	case len(others):
		return append(remove, hook)
	}
	return append(remove, fmt.Sprintf("-I %s %d%s", builtin(hook), place+1, rule))
}

// obsolete returns the names of the chain and of inner ones that exist and are not among the wanted ones.
func (c chain) obsolete(t *ruleTable, wanted []innerChain) (names []string) {
	if t == nil {
		return nil
	}
	stay := make(map[string]bool, len(wanted))
	for _, w := range wanted {
		stay[w.name] = true
	}
	for name := range t.chains {
		ours := name == c.name || c.innerPrefix != "" && strings.HasPrefix(name, c.innerPrefix)
		if ours && !stay[name] {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, compareNames)
	return names
}

// removeChains returns the commands that remove chains, which may lead to each other.
func removeChains(names []string) (commands []string) {
	for _, command := range []string{"-F ", "-X "} {
		for _, name := range names {
			commands = append(commands, command+name)
		}
	}
	return commands
}

// divideBuiltin returns the rules of the builtin chain of a hook that are not ours, and the ones that jump to this
// chain.
func (c chain) divideBuiltin(t *ruleTable, hook string) (others, hooks []chainRule) {
	all, _ := t.find(builtin(hook))
	for _, r := range all {
		switch {
		case strings.HasSuffix(r.text, " -j "+c.name):
			hooks = append(hooks, r)
		case !c.old.hasHook(r):
			others = append(others, r)
		}
	}
	return others, hooks
}

// isPlaced tells whether a hook is where it should be among the other rules of its builtin chain: in the place, or
// before it with no rule in between that decides. Other hooks of ours do not count: they would else change places for
// ever.
func (c chain) isPlaced(t *ruleTable, hook string, others []chainRule, place int) bool {
	all, _ := t.find(builtin(hook))
	at := slices.IndexFunc(all, func(r chainRule) bool { return hasText(r, hook) })
	if c.before != "" && slices.ContainsFunc(all[:max(at, 0)], func(r chainRule) bool {
		return strings.HasSuffix(r.text, " -j "+c.before)
	}) {
		return false
	}
	foreign := func(rules []chainRule) []chainRule {
		return slices.DeleteFunc(slices.Clone(rules), func(r chainRule) bool { return ourHook.MatchString(r.text) })
	}
	if at > place {
		return len(foreign(others[place:at])) == 0
	}
	return !t.decides(foreign(others[at:place]), c.device)
}

// ourHook is what ends each rule that jumps to a chain of ours, also of another process.
var ourHook = regexp.MustCompile(` -m comment --comment kubelink -j K[A-Z]+-[A-Z-]+$`)

// hasHook tells whether a rule of a builtin chain is the hook of the predecessor.
func (p predecessor) hasHook(r chainRule) bool {
	return p.name != "" && strings.HasSuffix(r.text, " -m comment --comment kubelink -j "+p.name)
}

// removeCommands returns the commands that remove the predecessor, where it is there. A chain with the same name and
// foreign rules stays, and so does one that foreign rules jump to.
func (p predecessor) removeCommands(t *ruleTable) (commands []string) {
	if t == nil || p.name == "" {
		return nil
	}
	rules, exists := t.find(p.name)
	ours := !slices.ContainsFunc(rules, func(r chainRule) bool {
		return !p.rule.MatchString(strings.TrimPrefix(r.text, "-A "+p.name+" "))
	})
	hooks, used := 0, false
	for _, chain := range t.chains {
		for _, r := range chain {
			if p.hasHook(r) {
				hooks++
				commands = append(commands, deleteCommands([]chainRule{r})...)
			} else if strings.HasSuffix(r.text, " -j "+p.name) || strings.HasSuffix(r.text, " -g "+p.name) {
				used = true
			}
		}
	}
	if exists && ours && !used && hooks+len(rules) > 0 {
		commands = append(commands, "-F "+p.name, "-X "+p.name)
	}
	return commands
}

// hasText compares a rule with the text that we give iptables. C libraries abbreviate IPv6 addresses in different
// ways.
func hasText(r chainRule, text string) bool {
	return r.text == text || normalizeAddresses(r.text) == text
}

// normalizeAddresses writes addresses as netip does.
func normalizeAddresses(line string) string {
	words := strings.Split(line, " ")
	for i, w := range words {
		if p, err := netip.ParsePrefix(w); err == nil {
			words[i] = p.String()
		} else if a, err := netip.ParseAddr(w); err == nil {
			words[i] = a.String()
		}
	}
	return strings.Join(words, " ")
}

func deleteCommands(rules []chainRule) (commands []string) {
	for _, r := range rules {
		commands = append(commands, "-D"+strings.TrimPrefix(r.text, "-A"))
	}
	return commands
}

// blindCommands are what removes a chain that cannot be listed, and what at least empties it.
func (c chain) blindCommands() (remove, empty []string) {
	for _, hook := range c.hooks {
		remove = append(remove, "-D"+strings.TrimPrefix(hook, "-A"))
	}
	empty = []string{"-F " + c.name}
	return append(remove, empty[0], "-X "+c.name), empty
}
