package overlay

// The iptables chains of an end. All of it is pure.
//
// The filters of VXLAN packets are in INPUT and FORWARD, where the NAT of kube-proxy is done: a service whose endpoint
// is the VXLAN port of a node is no way in. They are in mangle, so that no other program accepts before.

import (
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/kernel"
)

// chains returns the chains of a family. In one that does not carry the others, those about VXLAN packets are empty.
func (p *plan) chains(family int) []kernel.Chain {
	prefix := "KLROUTER-VXLAN-"
	if p.role == Gateway {
		prefix = "KLINK-VXLAN-"
	}
	ports := fmt.Sprintf("%d:%d", p.state.Port, p.state.Port+1)
	chains := []kernel.Chain{
		{Table: "mangle", Name: prefix + "INPUT", Counts: true,
			Hook: fmt.Sprintf("-A INPUT -p udp -m udp --dport %d", p.listenPort())},
		{Table: "mangle", Name: prefix + "GUARD", Counts: true, Hook: "-A FORWARD -p udp -m udp --dport " + ports},
		{Table: "mangle", Name: prefix + "MSS", Hook: "-A FORWARD", Rules: p.mssRules(), Optional: true},
		{Table: "nat", Name: prefix + "NAT", Hook: "-A POSTROUTING", Rules: p.natRules(family)},
		{Table: "filter", Name: prefix + "FORWARD", Hook: "-A FORWARD", Rules: p.forwardRules(family)},
	}
	if p.role == Node {
		chains[4].Behind = p.device
	}
	if family == p.underlay {
		chains[0].Rules = p.inputRules()
		chains[1].Rules = p.guardRules()
	}
	return chains
}

// inputRules let in VXLAN packets of the peers, and drop the rest. The device matters: a pod of this node can send with
// the address of a peer. A gateway in a pod has several addresses, and its packets come by the way of any of them.
func (p *plan) inputRules() (rules []string) {
	for _, peer := range p.peers {
		for _, s := range peer.sources {
			for _, device := range peer.devices() {
				rules = append(rules, fmt.Sprintf("-s %s -i %s -j RETURN", host(s.address), device))
			}
		}
	}
	return append(rules, "-j DROP")
}

// guardRules drop VXLAN packets that this node would forward to a node or a gateway: links and pods have sent them, and
// the CNI can give them the address of this node. What passes are packets of a gateway in a pod of this node, and what
// comes to it from other machines.
func (p *plan) guardRules() (rules []string) {
	protected := slices.Clone(p.state.NodeNetworks)
	protected = slices.DeleteFunc(protected, func(n netip.Prefix) bool { return kernel.FamilyOf(n.Addr()) != p.underlay })
	var forged []string
	for _, peer := range p.peers {
		if !slices.ContainsFunc(protected, func(n netip.Prefix) bool { return n.Contains(peer.address) }) {
			protected = append(protected, netip.PrefixFrom(peer.address, peer.address.BitLen()))
		}
		if p.role == Gateway {
			continue
		}
		way := peer.sources[0]
		rules = append(rules, fmt.Sprintf("-s %s -i %s -p udp -m udp --dport %d -j RETURN",
			host(way.address), way.device, p.listenPort()))
		for _, device := range p.uplinks {
			rules = append(rules, fmt.Sprintf("-d %s -i %s -p udp -m udp --dport %d -j RETURN",
				host(peer.address), device, p.peerPort()))
		}
		for _, s := range peer.sources {
			forged = append(forged, "-s "+host(s.address)+" -j DROP")
		}
	}
	if p.role == Gateway {
		rules = append(rules, "-i "+p.state.TUN+" -j DROP")
	}
	rules = append(rules, forged...)
	for _, n := range protected {
		rules = append(rules, "-d "+n.String()+" -j DROP")
	}
	return rules
}

// natRules give what a node sends into the overlay the address of this node: the network of pods is not known at the
// gateway. What the gateway sends has its source, which the CNI must not take away; nor that of VXLAN packets.
func (p *plan) natRules(family int) (rules []string) {
	if p.role == Gateway {
		return []string{"-o " + p.device + " -j ACCEPT"}
	}
	for _, peer := range p.peers {
		if family == p.underlay {
			rules = append(rules, fmt.Sprintf("-s %s -d %s -p udp -m udp --dport %d -j ACCEPT",
				host(p.self), host(peer.address), p.peerPort()))
		}
	}
	if own := addressOf(p.inner, family); own.IsValid() {
		rules = append(rules,
			fmt.Sprintf("-s %s -o %s -j ACCEPT", host(own), p.device),
			fmt.Sprintf("-o %s -j SNAT --to-source %s", p.device, own))
	}
	return rules
}

// forwardRules let a node forward into the overlay, and the answers back. At the gateway the chains of the meshes do
// that; what is for none of them must not leave by the default route.
func (p *plan) forwardRules(family int) []string {
	if p.role == Node {
		return []string{
			"-i " + p.device + " -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
			"-o " + p.device + " -j ACCEPT"}
	}
	answer := "icmp-net-unreachable"
	if family == unix.AF_INET6 {
		answer = "icmp6-no-route"
	}
	return []string{fmt.Sprintf("-i %s ! -o %s -j REJECT --reject-with %s", p.device, p.state.TUN, answer)}
}

// mssRules lower the MSS of connections through the overlay to what fits: pods need no setting.
func (p *plan) mssRules() []string {
	const clamp = " -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu"
	return []string{"-i " + p.device + clamp, "-o " + p.device + clamp}
}

// devices returns the devices of the ways to a peer, each once.
func (x peer) devices() (names []string) {
	for _, s := range x.sources {
		if !slices.Contains(names, s.device) {
			names = append(names, s.device)
		}
	}
	return names
}

// host is an address as iptables -S prints it in a match.
func host(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }
