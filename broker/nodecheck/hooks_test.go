package nodecheck

// What stands in the way at hooks that forwarded packets do not pass, or pass before and after all other ones; what
// sets and maps decide; and the same for IPv6.

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// obstacle is what stands in the way on a node.
type obstacle struct {
	name, script string
	link         string
	reason       string
	text         string // of text and remedy
	heal         string // as the remedy says
}

// testObstacles has a healthy node get each obstacle. It is found, and with the remedy followed, nothing is.
func testObstacles(t *testing.T, healthy string, target *Target, obstacles []obstacle) {
	for _, o := range obstacles {
		t.Run(o.name, func(t *testing.T) {
			inNamespace(t, func(t *testing.T) {
				sh(t, healthy+o.script)
				found := checkNode(t, target)
				if !slices.ContainsFunc(found, func(f link.Finding) bool {
					return f.Link == o.link && f.Reason == o.reason && strings.Contains(f.String(), o.text)
				}) {
					t.Errorf("findings %v, want one about link %q with reason %s and %q", found, o.link, o.reason, o.text)
				}
				sh(t, o.heal)
				if found := checkNode(t, target); len(found) > 0 {
					t.Errorf("findings after %s: %v", o.heal, found)
				}
			})
		})
	}
}

func TestOtherHooks(t *testing.T) {
	const base = "\nnft add table inet fw\nnft add chain inet fw forward '{ type filter hook forward priority 0; }'\n"
	testObstacles(t, gateway+routes+podNetwork("iptables-nft")+chains("iptables-nft"), testTarget(), []obstacle{
		{"ingress of the device", `
nft add table netdev fw
nft add chain netdev fw in '{ type filter hook ingress device kubelink priority 0; policy drop; }'`, "", PacketFilter,
			"packets from links are dropped: nftables: chain netdev fw in has the policy DROP",
			"nft insert rule netdev fw in iifname kubelink accept"},
		{"ingress of the device of pods", `
nft add table netdev fw
nft add chain netdev fw in '{ type filter hook ingress devices = { cali0, eth0 } priority 0; }'
nft add rule netdev fw in ip daddr 100.64.32.0/20 drop`, "c", PacketFilter,
			"packets of pods to 100.64.32.0/20 are dropped: nftables: chain netdev fw in", "nft flush chain netdev fw in"},
		{"egress of the device", `
nft add table netdev fw
nft add chain netdev fw out '{ type filter hook egress device kubelink priority 0; policy drop; }'`, "", PacketFilter,
			"packets of pods to links are dropped: nftables: chain netdev fw out",
			"nft insert rule netdev fw out oifname kubelink accept"},
		{"ingress in a table for all families", `
nft add table inet fw
nft add chain inet fw in '{ type filter hook ingress device kubelink priority 0; policy drop; }'`, "", PacketFilter,
			"packets from links are dropped: nftables: chain inet fw in", "nft insert rule inet fw in iifname kubelink accept"},
		{"packets of the node", "iptables-nft -A OUTPUT -o kubelink -j DROP", "", PacketFilter,
			"packets of the node to links are dropped, so that names of links cannot be asked for",
			"iptables-nft -I OUTPUT -o kubelink -j ACCEPT"},
		{"answers to the node", "iptables-legacy -A INPUT -i kubelink -j DROP", "", PacketFilter,
			"answers to the node from links are dropped", "iptables-legacy -I INPUT -i kubelink -j ACCEPT"},
		{"answers to the node, native", `
nft add table inet fw
nft add chain inet fw input '{ type filter hook input priority 10; policy drop; }'
nft add rule inet fw input ct state new accept`, "", PacketFilter, "chain inet fw input has the policy DROP",
			"nft insert rule inet fw input iifname kubelink accept"},
		{"a rule that refuses", "ip rule add from 100.96.0.0/11 to 100.64.16.0/20 priority 99 prohibit", "b", ForeignRoute,
			"remove the rule of type prohibit", "ip rule del priority 99"},
		{"a set", base + `
nft add set inet fw blocked '{ type ipv4_addr; flags interval; elements = { 100.64.16.0/20 }; }'
nft add rule inet fw forward ip daddr @blocked drop`, "b", PacketFilter, "pods to 100.64.16.0/20 are dropped",
			"nft delete element inet fw blocked '{ 100.64.16.0/20 }'"},
		{"a range", base + "nft add rule inet fw forward ip daddr 100.64.32.1-100.64.40.9 drop", "c", PacketFilter,
			"packets of pods to 100.64.32.0/20 are dropped", "nft flush chain inet fw forward"},
		{"a verdict map", base + `
nft add chain inet fw block
nft add rule inet fw block drop
nft add rule inet fw forward iifname vmap '{ kubelink : jump block }'`, "", PacketFilter,
			"packets from links are dropped: nftables: chain inet fw block", "nft flush chain inet fw block"},
		{"a verdict map with a name", base + `
nft add map inet fw verdicts '{ type ifname : verdict; elements = { "kubelink" : drop }; }'
nft add rule inet fw forward oifname vmap @verdicts`, "", PacketFilter, "packets of pods to links are dropped",
			"nft flush map inet fw verdicts"},
		{"new connections", base + "nft add rule inet fw forward 'tcp flags & (syn|ack) == syn oifname kubelink drop'",
			"", PacketFilter, "packets of pods to links are dropped", "nft flush chain inet fw forward"},
	})
}

const gateway6 = `
ip link set lo up
ip tuntap add mode tun kubelink
ip link set kubelink up
ip addr add fd00:a::11/128 dev kubelink noprefixroute nodad
ip link add cali0 type veth peer name pod0
ip link set cali0 up; ip link set pod0 up
ip link add eth0 type veth peer name lan0
ip link set eth0 up; ip link set lan0 up
ip addr add 2001:db8::3/64 dev eth0 nodad
ip -6 route add default via 2001:db8::1
ip -6 route add fd00:96::5/128 dev cali0
ip -6 route add fd00:96:2::/64 via 2001:db8::4
sysctl -qw net.ipv6.conf.all.forwarding=1
`

// as6 makes scripts for IPv6 of those for IPv4.
func as6(script string) string {
	return strings.NewReplacer("ip route", "ip -6 route", "iptables-", "ip6tables-", "192.168.0.0/24", "fd00:a::/64",
		"192.168.0.", "fd00:a::", "100.64.16.0/20", "fd00:64:1::/112", "100.64.32.0/20", "fd00:64:2::/112",
		"100.96.0.0/11", "fd00:96::/32").Replace(script)
}

func TestFindingsIPv6(t *testing.T) {
	source := netip.MustParseAddr("fd00:a::11")
	state := &mesh.State{}
	for name, networks := range map[string][]netip.Prefix{
		"b": {netip.MustParsePrefix("fd00:64:1::/112"), netip.MustParsePrefix("fd00:a::12/128")},
		"c": {netip.MustParsePrefix("fd00:64:2::/112"), netip.MustParsePrefix("fd00:a::13/128")},
	} {
		state.Peers = append(state.Peers, mesh.Peer{Link: name, Host: "192.0.2.2", Networks: networks,
			Services: mesh.Prefixes{netip.MustParsePrefix("fd00:64::/112")}})
		for _, n := range networks {
			state.Routes = append(state.Routes, mesh.Route{Destination: n, Source: source})
		}
	}
	target := &Target{State: state, Device: "kubelink", Table: 254,
		Pods: mesh.Prefixes{netip.MustParsePrefix("fd00:96::/32")}}
	testObstacles(t, gateway6+as6(routes+podNetwork("iptables-nft")+chains("iptables-nft")), target, []obstacle{
		{"policy DROP in the other back end", "ip6tables-legacy -P FORWARD DROP", "", PacketFilter,
			"ip6tables-legacy, table filter: chain FORWARD has the policy DROP",
			"ip6tables-legacy -I FORWARD -i kubelink -j ACCEPT; ip6tables-legacy -I FORWARD -o kubelink -j ACCEPT"},
		{"REJECT before our hook", "ip6tables-nft -I FORWARD -j REJECT", "", PacketFilter,
			"ip6tables-nft -I FORWARD -i kubelink -j ACCEPT", "ip6tables-nft -D FORWARD -j REJECT"},
		{"native nftables", `
nft add table ip6 fw
nft add chain ip6 fw forward '{ type filter hook forward priority 0; }'
nft add rule ip6 fw forward ip6 daddr fd00:64:1::/112 drop`, "b", PacketFilter,
			"packets of pods to fd00:64:1::/112 are dropped", "nft delete table ip6 fw"},
		{"masquerade before us", "ip6tables-nft -t nat -I POSTROUTING -s fd00:96::/32 -j MASQUERADE", "", SourceNAT,
			"masqueraded before kubelink sees them", "ip6tables-nft -t nat -D POSTROUTING -s fd00:96::/32 -j MASQUERADE"},
		{"forwarding is off", "sysctl -qw net.ipv6.conf.all.forwarding=0", "", ForwardingOff,
			"sysctl -w net.ipv6.conf.all.forwarding=1", "sysctl -qw net.ipv6.conf.all.forwarding=1"},
		{"a more specific route", "ip -6 route add fd00:64:1::8000/113 dev eth0", "b", ForeignRoute,
			"ip route del fd00:64:1::8000/113 dev eth0", "ip -6 route del fd00:64:1::8000/113 dev eth0"},
		{"a blackhole", "ip -6 route add blackhole fd00:64:2::/120", "c", ForeignRoute, "blackhole fd00:64:2::/120",
			"ip -6 route del blackhole fd00:64:2::/120"},
		{"a rule of the pod network",
			"ip -6 route add default via 2001:db8::1 table 3\nip -6 rule add from fd00:96::5 priority 1536 lookup 3",
			"b", ForeignRoute, "rule-priority below 1536", "ip -6 rule del priority 1536"},
		{"a rule that refuses", "ip -6 rule add from fd00:96::/32 priority 99 prohibit", "c", ForeignRoute,
			"remove the rule of type prohibit", "ip -6 rule del priority 99"},
		{"our route is gone", "ip -6 route del fd00:64:2::/112", "c", RouteMissing, "default via 2001:db8::1 dev eth0",
			"ip -6 route add fd00:64:2::/112 dev kubelink src fd00:a::11"},
	})
}
