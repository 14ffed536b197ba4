package kernel

// What links may send, where the kernel and not the dataplane carries their packets (WireGuard): the chains that decide
// as the filter of the bridge does. All of it is pure.
//
// The dataplane has checked that the source of a packet is routed to the peer that sent it. Three chains follow each
// other. The first one drops sources that no link may have. The second one lets a packet go on to another link of its
// mesh. The third one has the ingress lists, for all else. Each of them is a tree, so that a packet sees few rules,
// however many links there are. What passes them sees the rest of guardChain: replies, ping and open ports of the node.

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Firewall is what the kernel knows of links to filter their packets.
type Firewall struct {
	Peers []mesh.Peer    // with the fields that say what passes only
	Local []netip.Prefix // networks of the local cluster and of its meshes: no source, unless they are a peer's very own
}

// FilterLinks makes the kernel filter the packets of links.
func (s *State) FilterLinks(m *mesh.State) {
	s.Firewall = &Firewall{Local: m.Local}
	for _, p := range m.Peers { // a new endpoint or key is no reason to tell the kernel again
		s.Firewall.Peers = append(s.Firewall.Peers, mesh.Peer{Link: p.Link, Local: p.Local, Addresses: p.Addresses,
			Networks: p.Networks, Ingress: p.Ingress, Carried: p.Carried})
	}
}

// givesFirewall is for a chain that filters links.
const givesFirewall = "firewall"

// The chains of the firewall, in the table of guardChain.
const (
	linkChains = "KLINK-LINK-" // how their names begin

	sourceChain  = linkChains + "SOURCE"
	transitChain = linkChains + "TRANSIT"
	ingressChain = linkChains + "INGRESS"

	toChain      = linkChains + "TO"      // to the networks of a peer
	backChain    = linkChains + "BACK"    // from a peer to itself
	meshChain    = linkChains + "MESH"    // from a mesh
	policyChain  = linkChains + "POLICY"  // lists
	controlChain = linkChains + "CONTROL" // peers of a mesh
	passChain    = linkChains + "PASS"    // to another link
	repliesChain = linkChains + "REPLIES" // for an address of the node that no list lets in

	dropSource      = linkChains + "DROP-SOURCE"
	dropDestination = linkChains + "DROP-DEST"
	dropNode        = linkChains + "DROP-NODE"
)

// firewall makes the chains of one family.
type firewall struct {
	*Firewall
	family   int
	meshes   []netip.Prefix // Local.First of peers
	networks []ownedNetwork // of the family
	ofPeer   [][]netip.Prefix
	routes   bart.Table[int]
	policies []policy
	chains   []innerChain
}

// policy has the target for what links with a list send.
type policy struct {
	rules   []mesh.Rule
	entries []entry // of the family
	target  string
}

// ownedNetwork is a network of a peer, or a local one.
type ownedNetwork struct {
	prefix netip.Prefix
	peer   int // index; notPeer: local
}

const notPeer = -1

// firewallChains returns the rules with which the guard begins, those for the port of peers, and the chains that both
// need.
func firewallChains(fw *Firewall, family int) (first, control []string, chains []innerChain) {
	f := &firewall{Firewall: fw, family: family}
	f.readNetworks()
	for _, name := range []string{dropSource, dropDestination, dropNode} {
		f.chains = append(f.chains, innerChain{name, []string{"-A " + name + " -j DROP"}})
	}
	f.chains = append(f.chains, innerChain{passChain,
		[]string{"-A " + passChain + " -m addrtype ! --dst-type LOCAL -j ACCEPT"}}, f.replies())
	for _, target := range []string{f.checkSources(), f.passTransit(), f.applyPolicies()} {
		if target != passOn {
			first = append(first, "-j"+target[2:])
		}
	}
	control = f.guardControl()
	slices.SortFunc(f.chains, func(a, b innerChain) int { return compareNames(a.name, b.name) })
	return first, control, f.chains
}

func compareNames(a, b string) int {
	if len(a) != len(b) { // in the order of numbers
		return len(a) - len(b)
	}
	if a < b {
		return -1
	}
	return 1
}

// readNetworks reads who has which network. Of equal ones the last one counts, as in the bridge.
func (f *firewall) readNetworks() {
	add := func(n netip.Prefix, peer int) {
		if n = n.Masked(); FamilyOf(n.Addr()) == f.family {
			f.networks = append(f.networks, ownedNetwork{n, peer})
			f.routes.Insert(n, peer)
			if peer != notPeer {
				f.ofPeer[peer] = append(f.ofPeer[peer], n)
			}
		}
	}
	for _, n := range f.Local {
		add(n, notPeer)
	}
	f.ofPeer = make([][]netip.Prefix, len(f.Peers))
	for i := range f.Peers {
		p := &f.Peers[i]
		if !slices.Contains(f.meshes, p.Local.First()) {
			f.meshes = append(f.meshes, p.Local.First())
		}
		for _, n := range p.Networks {
			add(n, i)
		}
	}
}

// tree adds a tree and returns the target that leads to it. of gives the target of a network.
func (f *firewall) tree(name, option, otherwise string, of func(ownedNetwork) string) string {
	entries := make([]entry, len(f.networks))
	for i, n := range f.networks {
		entries[i] = entry{n.prefix, of(n)}
	}
	return f.addTree(name, option, entries, otherwise)
}

func (f *firewall) addTree(name, option string, entries []entry, otherwise string) string {
	target, chains := buildTree(name, option, entries, otherwise)
	f.chains = append(f.chains, chains...)
	return target
}

// checkSources is for sources that are routed to no link, local ones among them.
func (f *firewall) checkSources() string {
	return f.tree(sourceChain, "-s", "-g "+dropSource, func(n ownedNetwork) string {
		if n.peer == notPeer {
			return "-g " + dropSource
		}
		return passOn
	})
}

// passTransit lets packets go on to another link of the mesh: lists are about what is local. Links of other meshes are
// strangers. An address of the node that a link claims, for it is in no known network, is no way on.
func (f *firewall) passTransit() string {
	targets := make([]string, len(f.Peers))
	for i := range f.Peers {
		targets[i] = f.addTo(i)
	}
	return f.tree(transitChain, "-d", passOn, func(n ownedNetwork) string {
		if n.peer == notPeer {
			return passOn
		}
		return targets[n.peer]
	})
}

// addTo returns the target of packets to the networks of a peer.
func (f *firewall) addTo(i int) string {
	others := "-g " + passChain
	if len(f.meshes) > 1 {
		others = "-g " + fmt.Sprintf("%s-%d", meshChain, slices.Index(f.meshes, f.Peers[i].Local.First()))
		f.addMesh(others[3:], f.Peers[i].Local.First())
	}
	back := map[netip.Prefix]string{}
	for k, o := range originsOf(&f.Peers[i]) {
		target := f.addBack(fmt.Sprintf("%s-%d-%d", backChain, i, k), i, o.Ingress)
		for _, n := range o.Networks {
			back[n.Masked()] = target
		}
	}
	var entries []entry
	for _, n := range f.ofPeer[i] {
		entries = append(entries, entry{n, back[n]})
		for inner, owner := range f.routes.Subnets(n) { // what lies in none of its networks has others, anyway
			if owner != i {
				entries = append(entries, entry{inner, others})
			}
		}
	}
	return f.addTree(fmt.Sprintf("%s-%d", toChain, i), "-s", entries, others)
}

// containsNetwork tells whether a network lies in one of others.
func containsNetwork(others []netip.Prefix, n netip.Prefix) bool {
	return slices.ContainsFunc(others, func(o netip.Prefix) bool {
		return o.Bits() <= n.Bits() && o.Contains(n.Addr())
	})
}

// addMesh adds the chain of sources in a mesh, once.
func (f *firewall) addMesh(name string, of netip.Prefix) {
	if slices.ContainsFunc(f.chains, func(c innerChain) bool { return c.name == name }) {
		return
	}
	target := f.tree(name, "-s", passOn, func(n ownedNetwork) string {
		if n.peer != notPeer && f.Peers[n.peer].Local.First() == of {
			return "-g " + passChain
		}
		return passOn
	})
	if target != "-g "+name {
		f.chains = append(f.chains, innerChain{name, []string{"-A " + name + " " + target}})
	}
}

// addBack returns the target of packets from a peer to its own networks: it gets none back, but a list may lead to a
// part of them here.
func (f *firewall) addBack(name string, i int, rules []mesh.Rule) string {
	var entries []entry
	for _, r := range rules {
		target := "-g " + dropDestination
		if r.Allow || r.Node {
			target = passOn
		}
		if owner, ok := f.routes.LookupPrefix(r.Prefix); ok && owner == i {
			entries = append(entries, entry{r.Prefix, target})
		}
	}
	if len(entries) > 0 {
		for _, n := range f.ofPeer[i] {
			entries = append(entries, entry{n, "-g " + dropDestination})
		}
	}
	return f.addTree(name, "-d", entries, "-g "+dropDestination)
}

// originsOf are the links whose packets come from a peer.
func originsOf(p *mesh.Peer) []mesh.Carried {
	if len(p.Carried) > 0 {
		return p.Carried
	}
	return []mesh.Carried{{Networks: p.Networks, Ingress: p.Ingress}}
}

// applyPolicies decides by the lists of the link from which a packet comes.
func (f *firewall) applyPolicies() string {
	targets := make([]map[netip.Prefix]string, len(f.Peers))
	for i := range f.Peers {
		targets[i] = map[netip.Prefix]string{}
		for _, o := range originsOf(&f.Peers[i]) {
			target := f.addPolicy(o.Ingress)
			for _, n := range o.Networks {
				targets[i][n.Masked()] = target
			}
		}
	}
	if len(f.policies) == 1 {
		return f.policies[0].target
	}
	// All sources that come here are of links: what is between them does not matter.
	return f.tree(ingressChain, "-s", "-g "+dropDestination, func(n ownedNetwork) string {
		if n.peer == notPeer {
			return "-g " + dropDestination
		}
		return targets[n.peer][n.prefix]
	})
}

// addPolicy returns the target for the packets of links with these rules.
func (f *firewall) addPolicy(rules []mesh.Rule) string {
	for _, p := range f.policies { // the list of hundreds of links may be one with thousands of mesh services
		if slices.Equal(p.rules, rules) {
			return p.target
		}
	}
	var entries []entry
	for _, r := range rules {
		if FamilyOf(r.Prefix.Addr()) != f.family {
			continue
		}
		target := "-g " + dropDestination
		switch {
		case r.Allow: // of the node, guardChain lets in what it may
			target = passOn
		case r.Node:
			target = "-g " + repliesChain
		}
		entries = append(entries, entry{r.Prefix, target})
	}
	for _, p := range f.policies {
		if slices.Equal(p.entries, entries) {
			return p.target
		}
	}
	target := f.addTree(fmt.Sprintf("%s-%d", policyChain, len(f.policies)), "-d", entries, "-g "+dropDestination)
	f.policies = append(f.policies, policy{rules, entries, target})
	return target
}

// replies is for an address of this cluster that a list denies: connections of the node go on, and peers talk to each
// other nevertheless.
func (f *firewall) replies() innerChain {
	c := innerChain{name: repliesChain}
	for _, rule := range []string{"-m conntrack --ctstate ESTABLISHED --ctdir REPLY -j RETURN",
		"-m conntrack --ctstate RELATED -j RETURN", fmt.Sprintf("-p tcp -m tcp --dport %d -j RETURN", mesh.ControlPort),
		"-g " + dropNode} {
		c.rules = append(c.rules, "-A "+repliesChain+" "+rule)
	}
	return c
}

// guardControl keeps everybody but peers away from the port on which they talk to each other.
func (f *firewall) guardControl() (rules []string) {
	for k, m := range f.meshes {
		var own netip.Prefix
		var peers []entry
		for _, p := range f.Peers {
			if p.Local.First() != m {
				continue
			}
			for _, a := range p.Addresses.Addrs() {
				if FamilyOf(a) == f.family {
					own = p.Local.SameFamily(a)
					peers = append(peers, entry{hostPrefix(a), passOn})
				}
			}
		}
		if own.IsValid() {
			target := f.addTree(fmt.Sprintf("%s-%d", controlChain, k), "-s", peers, "-g "+dropNode)
			rules = append(rules,
				fmt.Sprintf("-d %s -p tcp -m tcp --dport %d %s", hostPrefix(own.Addr()), mesh.ControlPort, target))
		}
	}
	return rules
}
