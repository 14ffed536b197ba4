package nodecheck

// Checks of real network namespaces: healthy nodes of each kind, of which nothing is said, and what stands in the way
// of packets. Each test has a namespace of its own, and needs to be root for that.

import (
	"net/netip"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netns"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// inNamespace runs f in a new network namespace. The thread is never given back: it ends with its goroutine.
func inNamespace(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		before, err := netns.Get()
		if err != nil {
			t.Error(err)
			return
		}
		defer before.Close()
		after, err := netns.New()
		if err != nil {
			t.Errorf("make a network namespace (as root): %v", err)
			return
		}
		defer after.Close()
		if before.Equal(after) {
			t.Error("still in the namespace of the host")
			return
		}
		f(t)
	}()
	<-done
}

// sh runs a script.
func sh(t *testing.T, script string) {
	t.Helper()
	if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
		t.Errorf("%s: %v: %s", script, err, out)
		runtime.Goexit()
	}
}

// gateway is a node with a device of ours, one of a pod, and one to the other nodes.
const gateway = `
ip link set lo up
ip tuntap add mode tun kubelink
ip link set kubelink up
ip addr add 192.168.0.11/32 dev kubelink noprefixroute
ip link add cali0 type veth peer name pod0
ip link set cali0 up; ip link set pod0 up
ip link add eth0 type veth peer name lan0
ip link set eth0 up; ip link set lan0 up
ip addr add 10.250.0.3/16 dev eth0
ip route add default via 10.250.0.1
ip route add 100.96.1.5/32 dev cali0
ip route add 100.96.2.0/24 via 10.250.0.4
for d in all default kubelink cali0 eth0; do sysctl -qw net.ipv4.conf.$d.rp_filter=0; done
sysctl -qw net.ipv4.ip_forward=1
`

// routes are those of kubelink.
const routes = `
for n in 192.168.0.12 192.168.0.13 100.64.16.0/20 100.64.32.0/20; do
  ip route add $n dev kubelink src 192.168.0.11 proto 107
done
`

// chains are those of kubelink, in a back end of iptables.
func chains(iptables string) string {
	return strings.ReplaceAll(`
IPT -t nat -N KL-POSTROUTING
for n in 192.168.0.12 192.168.0.13 100.64.16.0/20 100.64.32.0/20; do
  IPT -t nat -A KL-POSTROUTING -s 192.168.0.0/24 -d $n -o kubelink -j ACCEPT
  IPT -t nat -A KL-POSTROUTING -d $n -o kubelink -j SNAT --to-source 192.168.0.11
done
IPT -t nat -I POSTROUTING -o kubelink -m comment --comment kubelink -j KL-POSTROUTING
IPT -N KL-FORWARD
IPT -A KL-FORWARD -i kubelink -j ACCEPT
IPT -A KL-FORWARD -o kubelink -j ACCEPT
IPT -A FORWARD -m comment --comment kubelink -j KL-FORWARD
`, "IPT", iptables)
}

// linkFilter is the firewall of links where the kernel carries them: a list lets none of them to the service network.
func linkFilter(iptables string) string {
	return strings.ReplaceAll(`
IPT -t mangle -N KLINK-LINK-DROP-DEST
IPT -t mangle -A KLINK-LINK-DROP-DEST -j DROP
IPT -t mangle -N KLINK-LINK-POLICY-0
IPT -t mangle -A KLINK-LINK-POLICY-0 -d 192.168.0.11 -j RETURN
IPT -t mangle -A KLINK-LINK-POLICY-0 -g KLINK-LINK-DROP-DEST
IPT -t mangle -N KLINK-LOCAL
IPT -t mangle -A KLINK-LOCAL -j KLINK-LINK-POLICY-0
IPT -t mangle -I PREROUTING -i kubelink -m comment --comment kubelink -j KLINK-LOCAL
`, "IPT", iptables)
}

// meshServices are the chains of mesh services: one has an endpoint, and the other one is refused.
func meshServices(iptables string) string {
	return strings.ReplaceAll(`
IPT -t nat -N KLINK-SVC-1
IPT -t nat -A KLINK-SVC-1 -p tcp -m tcp --dport 80 -j DNAT --to-destination 100.96.1.5:8080
IPT -t nat -A KLINK-SVC-1 -j ACCEPT
IPT -t nat -N KLINK-SERVICES
IPT -t nat -A KLINK-SERVICES -d 192.168.0.200/31 -g KLINK-SVC-1
IPT -t nat -N KLINK-SERVICE-SOURCE
IPT -t nat -A KLINK-SERVICE-SOURCE -o kubelink -j RETURN
IPT -t nat -A KLINK-SERVICE-SOURCE -m conntrack --ctorigdst 192.168.0.0/24 -j MASQUERADE
IPT -t nat -I POSTROUTING -m conntrack --ctstate DNAT -m comment --comment kubelink -j KLINK-SERVICE-SOURCE
IPT -N KLINK-REF-ALL
IPT -A KLINK-REF-ALL -p tcp -j REJECT --reject-with tcp-reset
IPT -A KLINK-REF-ALL -j REJECT
IPT -N KLINK-REFUSE
IPT -A KLINK-REFUSE -d 192.168.0.200/31 -g KLINK-REF-ALL
for hook in PREROUTING OUTPUT; do
  IPT -t nat -I $hook -m comment --comment kubelink -j KLINK-SERVICES
done
for hook in FORWARD INPUT OUTPUT; do
  IPT -I $hook -m conntrack --ctstate NEW -m comment --comment kubelink -j KLINK-REFUSE
done
`, "IPT", iptables)
}

// calico and kube-proxy, as the test bed and usual nodes have them.
func podNetwork(iptables string) string {
	return strings.ReplaceAll(`
IPT -N KUBE-FORWARD
IPT -A KUBE-FORWARD -m conntrack --ctstate INVALID -m comment --comment "a comment, with words" -j DROP
IPT -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
IPT -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
IPT -A FORWARD -j KUBE-FORWARD
IPT -t nat -N KUBE-POSTROUTING
IPT -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
IPT -t nat -A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
IPT -t nat -A KUBE-POSTROUTING -j MASQUERADE --random-fully
IPT -t nat -A POSTROUTING -j KUBE-POSTROUTING
IPT -t nat -A POSTROUTING -s 100.96.0.0/11 ! -d 100.96.0.0/11 -j MASQUERADE
IPT -t mangle -A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
`, "IPT", iptables)
}

func testTarget() *Target {
	source := netip.MustParseAddr("192.168.0.11")
	s := &mesh.State{}
	for _, p := range []struct{ link, host, address, services string }{
		{"b", "192.0.2.2", "192.168.0.12/32", "100.64.16.0/20"},
		{"c", "c.example", "192.168.0.13/32", "100.64.32.0/20"},
	} {
		networks := []netip.Prefix{netip.MustParsePrefix(p.services), netip.MustParsePrefix(p.address)}
		s.Peers = append(s.Peers, mesh.Peer{Link: p.link, Host: p.host, Networks: networks,
			Services: mesh.Prefixes{netip.MustParsePrefix("100.64.0.0/20")}})
		for _, n := range networks {
			s.Routes = append(s.Routes, mesh.Route{Destination: n, Source: source})
		}
	}
	return &Target{State: s, Device: "kubelink", Table: 254, Pods: mesh.Prefixes{netip.MustParsePrefix("100.96.0.0/11")}}
}

// statuses are those of links that are connected.
var statuses = []link.Status{{Link: "b", Remote: "192.0.2.2:80"}, {Link: "c", Remote: "192.0.2.3:80"}}

func checkNode(t *testing.T, target *Target) link.Findings {
	t.Helper()
	n, err := openNode()
	if err != nil {
		t.Error(err)
		runtime.Goexit()
	}
	defer n.close()
	var found link.Findings
	for range 2 { // the second look has a cache
		r := n.check(t.Context(), target, statuses)
		if r.Incomplete != nil {
			t.Errorf("incomplete: %v", r.Incomplete)
		}
		found = r.Findings
	}
	return found
}

const firewalld = `
nft add table inet firewalld
nft add chain inet firewalld filter_FORWARD '{ type filter hook forward priority 10; policy accept; }'
nft add rule inet firewalld filter_FORWARD ct state '{ established, related }' accept
nft add rule inet firewalld filter_FORWARD ct status dnat accept
nft add rule inet firewalld filter_FORWARD iifname lo accept
nft add rule inet firewalld filter_FORWARD reject with icmpx type admin-prohibited
`

const kubeProxyNFT = `
nft add table ip kube-proxy
nft add set ip kube-proxy cluster-ips '{ type ipv4_addr; flags interval; elements = { 100.64.0.0/20 }; }'
nft add map ip kube-proxy no-endpoint-services '{ type ipv4_addr . inet_proto . inet_service : verdict; }'
nft add chain ip kube-proxy reject-chain
nft add rule ip kube-proxy reject-chain reject
nft add chain ip kube-proxy service-endpoints-check
nft add rule ip kube-proxy service-endpoints-check ip daddr . meta l4proto . th dport vmap @no-endpoint-services
nft add chain ip kube-proxy cluster-ips-check
nft add rule ip kube-proxy cluster-ips-check ip daddr @cluster-ips reject
nft add chain ip kube-proxy filter-forward '{ type filter hook forward priority -110; }'
nft add rule ip kube-proxy filter-forward ct state new jump service-endpoints-check
nft add rule ip kube-proxy filter-forward ct state new jump cluster-ips-check
nft add chain ip kube-proxy masquerading
nft add rule ip kube-proxy masquerading meta mark '&' 0x4000 == 0 return
nft add rule ip kube-proxy masquerading meta mark set meta mark '^' 0x4000
nft add rule ip kube-proxy masquerading masquerade fully-random
nft add chain ip kube-proxy nat-postrouting '{ type nat hook postrouting priority 100; }'
nft add rule ip kube-proxy nat-postrouting jump masquerading
`

// Nothing is said of a node on which packets pass.
func TestHealthyNodes(t *testing.T) {
	for _, c := range []struct{ name, script string }{
		{"iptables-nft", gateway + routes + podNetwork("iptables-nft") + chains("iptables-nft")},
		{"iptables-legacy", gateway + routes + podNetwork("iptables-legacy") + chains("iptables-legacy")},
		{"kube-proxy in nftables mode", gateway + routes + kubeProxyNFT + chains("iptables-nft")},
		{"no IPv6", gateway + "sysctl -qw net.ipv6.conf.all.disable_ipv6=1\n" + routes + chains("iptables-nft")},
		{"kubelink filters what links send", gateway + routes + chains("iptables-nft") + linkFilter("iptables-nft")},
		{"kubelink filters in the legacy back end", gateway + routes + chains("iptables-legacy") +
			linkFilter("iptables-legacy")},
		{"mesh services", gateway + routes + podNetwork("iptables-nft") + chains("iptables-nft") +
			meshServices("iptables-nft")},
		{"mesh services in the legacy back end", gateway + routes + podNetwork("iptables-legacy") +
			chains("iptables-legacy") + meshServices("iptables-legacy") + linkFilter("iptables-legacy")},
		{"policy DROP in our own back end", gateway + routes + podNetwork("iptables-nft") + chains("iptables-nft") +
			"iptables-nft -P FORWARD DROP"},
		{"policy DROP in our own back end, the legacy one", gateway + routes + podNetwork("iptables-legacy") +
			chains("iptables-legacy") + "iptables-legacy -P FORWARD DROP"},
		{"a table of its own for our routes", gateway + strings.ReplaceAll(routes, "proto", "table 107 proto") +
			"ip rule add priority 32750 lookup 107\n" + chains("iptables-nft")},
		{"strict reverse path filter that lets pass", gateway + routes + chains("iptables-nft") +
			"sysctl -qw net.ipv4.conf.all.rp_filter=1"},
		{"the other back end is in use, and accepts", gateway + routes + chains("iptables-nft") +
			podNetwork("iptables-legacy") + "iptables-legacy -P FORWARD DROP\niptables-legacy -A FORWARD -j ACCEPT"},
		{"rules with conditions", gateway + routes + chains("iptables-nft") + `
iptables-nft -I FORWARD -p tcp --dport 25 -j DROP
iptables-nft -I FORWARD -s 10.1.0.0/16 -j REJECT
iptables-nft -I FORWARD -m limit --limit 5/min -j DROP
iptables-nft -I FORWARD -i docker0 -j DROP
iptables-legacy -I FORWARD -o docker+ -j DROP
iptables-legacy -I FORWARD ! -i kubelink ! -o kubelink -j DROP
iptables-legacy -I FORWARD -p udp -j DROP
iptables-legacy -I FORWARD -m addrtype --dst-type LOCAL -j DROP
iptables-legacy -I FORWARD -m conntrack --ctstate INVALID -j DROP
`},
		{"policy DROP of nftables with rules for us", gateway + routes + chains("iptables-nft") + `
nft add table inet fw
nft add chain inet fw forward '{ type filter hook forward priority 0; policy drop; }'
nft add rule inet fw forward ct state vmap '{ established : accept, related : accept, invalid : drop }'
nft add rule inet fw forward iifname vmap '{ "lo" : accept, "kubelink" : accept }'
nft add rule inet fw forward oifname '{ "kubelink", "docker0" }' accept
`},
		{"a set that has our networks", gateway + routes + chains("iptables-nft") + `
nft add table inet fw
nft add set inet fw allowed '{ type ipv4_addr; flags interval; elements = { 100.64.0.0/18, 192.168.0.0/24 }; }'
nft add chain inet fw forward '{ type filter hook forward priority 0; policy drop; }'
nft add rule inet fw forward ip saddr @allowed accept
nft add rule inet fw forward ip daddr @allowed accept
`},
		{"a set that may have our networks", gateway + routes + chains("iptables-nft") + `
nft add table inet fw
nft add set inet fw allowed '{ type ipv4_addr; flags dynamic, timeout; timeout 1h; }'
nft add chain inet fw forward '{ type filter hook forward priority 0; policy drop; }'
nft add rule inet fw forward ip saddr @allowed accept
nft add rule inet fw forward ip daddr @allowed accept
`},
		{"the node accepts answers only", gateway + routes + chains("iptables-nft") + `
iptables-nft -P INPUT DROP
iptables-nft -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables-legacy -A INPUT -m state --state ESTABLISHED -j ACCEPT
iptables-legacy -A INPUT -j REJECT
nft add table inet fw
nft add chain inet fw input '{ type filter hook input priority 10; policy drop; }'
nft add rule inet fw input ct state vmap '{ established : accept, related : accept, invalid : drop }'
nft add chain inet fw output '{ type filter hook output priority 10; policy drop; }'
nft add rule inet fw output oifname '{ "kubelink", "eth0" }' accept
nft add table netdev dev
nft add chain netdev dev in '{ type filter hook ingress device eth0 priority 0; policy drop; }'
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			inNamespace(t, func(t *testing.T) {
				sh(t, c.script)
				if found := checkNode(t, testTarget()); len(found) > 0 {
					t.Errorf("findings: %v", found)
				}
			})
		})
	}
}

// What keeps packets from passing is found, with the remedy; with the remedy followed, nothing is found any more.
func TestFindings(t *testing.T) {
	healthy := gateway + routes + podNetwork("iptables-nft") + chains("iptables-nft")
	for _, c := range []struct {
		name, script string
		link         string
		reason       string
		texts        []string // of text and remedy
		heal         string
	}{
		{"policy DROP in the other back end", healthy + "iptables-legacy -P FORWARD DROP", "", PacketFilter,
			[]string{"iptables-legacy, table filter: chain FORWARD has the policy DROP",
				"iptables-legacy -I FORWARD -o kubelink -j ACCEPT (or set the policy to ACCEPT)"},
			"iptables-legacy -I FORWARD -i kubelink -j ACCEPT; iptables-legacy -I FORWARD -o kubelink -j ACCEPT"},
		{"REJECT in the other back end", healthy + `
iptables-legacy -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables-legacy -A FORWARD -p icmp -j ACCEPT
iptables-legacy -A FORWARD -j REJECT --reject-with icmp-host-prohibited`, "", PacketFilter,
			[]string{`rule "-A FORWARD -j REJECT`, "iptables-legacy -I FORWARD", "(or remove that rule)"},
			"iptables-legacy -D FORWARD -j REJECT --reject-with icmp-host-prohibited"},
		{"REJECT before our hook", healthy + "iptables-nft -I FORWARD -j REJECT", "", PacketFilter,
			[]string{"nftables: chain ip filter FORWARD, rule with handle", "iptables-nft -I FORWARD -i kubelink -j ACCEPT",
				"(or remove that rule, which nft -a list chain ip filter FORWARD shows)"},
			"iptables-nft -D FORWARD -j REJECT"},
		{"our hook is missing, policy DROP", healthy + "iptables-nft -P FORWARD DROP\n" +
			"iptables-nft -D FORWARD -m comment --comment kubelink -j KL-FORWARD", "", PacketFilter,
			[]string{"chain FORWARD has the policy DROP"}, "iptables-nft -P FORWARD ACCEPT"},
		{"native nftables", healthy + `
nft add table inet fw
nft add chain inet fw forward '{ type filter hook forward priority 0; policy drop; }'
nft add rule inet fw forward ct state vmap '{ established : accept, related : accept, invalid : drop }'
`, "", PacketFilter, []string{"nftables: chain inet fw forward has the policy DROP",
			"nft insert rule inet fw forward iifname kubelink accept"},
			"nft insert rule inet fw forward iifname kubelink accept; nft insert rule inet fw forward oifname kubelink accept"},
		{"firewalld", healthy + firewalld, "", PacketFilter,
			[]string{"chain inet firewalld filter_FORWARD, rule with handle"},
			"nft delete table inet firewalld"},
		{"a drop in prerouting", healthy + `
nft add table inet fw
nft add chain inet fw pre '{ type filter hook prerouting priority -300; }'
nft add rule inet fw pre iifname kubelink drop
`, "", PacketFilter, []string{"packets from links are dropped", "chain inet fw pre",
			"nft insert rule inet fw pre iifname kubelink accept"},
			"nft flush chain inet fw pre"},
		{"a drop of one network", healthy + "iptables-legacy -A FORWARD -d 100.64.32.0/20 -j DROP", "c", PacketFilter,
			[]string{"packets of pods to 100.64.32.0/20 are dropped"}, "iptables-legacy -F FORWARD"},
		{"masquerade before us", healthy + "iptables-nft -t nat -I POSTROUTING -s 100.96.0.0/11 -j MASQUERADE", "", SourceNAT,
			[]string{"masqueraded before kubelink sees them", "iptables-nft -t nat -I POSTROUTING -o kubelink -j ACCEPT"},
			"iptables-nft -t nat -D POSTROUTING -s 100.96.0.0/11 -j MASQUERADE"},
		{"native masquerade before us", healthy + `
nft add table ip mynat
nft add chain ip mynat post '{ type nat hook postrouting priority 90; }'
nft add rule ip mynat post oifname '!=' lo masquerade
`, "", SourceNAT, []string{"chain ip mynat post"}, "nft delete table ip mynat"},
		{"our hook is missing in nat", gateway + routes, "", SourceNAT,
			[]string{"no rule gives packets of pods to links the address 192.168.0.11"},
			chains("iptables-nft")},
		{"forwarding is off", healthy + "sysctl -qw net.ipv4.ip_forward=0", "", ForwardingOff,
			[]string{"device kubelink", "sysctl -w net.ipv4.ip_forward=1"}, "sysctl -w net.ipv4.ip_forward=1"},
		{"forwarding of our device is off", healthy + "sysctl -qw net.ipv4.conf.kubelink.forwarding=0", "", ForwardingOff,
			[]string{"from links (device kubelink)"}, "sysctl -qw net.ipv4.conf.kubelink.forwarding=1"},
		{"forwarding of pods is off", healthy + "sysctl -qw net.ipv4.conf.cali0.forwarding=0", "", ForwardingOff,
			[]string{"from pods (device cali0)"}, "sysctl -qw net.ipv4.conf.cali0.forwarding=1"},
		{"a more specific route", healthy + "ip route add 100.64.16.128/25 dev eth0", "b", ForeignRoute,
			[]string{"100.64.16.128/25 dev eth0", "ip route del 100.64.16.128/25 dev eth0"},
			"ip route del 100.64.16.128/25 dev eth0"},
		{"a blackhole", healthy + "ip route add blackhole 100.64.33.0/24", "c", ForeignRoute,
			[]string{"100.64.33.0/24"}, "ip route del blackhole 100.64.33.0/24"},
		{"a rule of the pod network", healthy +
			"ip route add default via 10.250.0.1 table 3\nip rule add from 100.96.1.5 priority 1536 lookup 3",
			"b", ForeignRoute, []string{"default via 10.250.0.1 dev eth0 table 3",
				"the rule with priority 1536 (from 100.96.1.5/32 lookup 3)",
				"rule-priority below 1536"}, "ip rule del priority 1536"},
		{"our route is gone", healthy + "ip route del 100.64.32.0/20", "c", RouteMissing,
			[]string{"default via 10.250.0.1 dev eth0"},
			"ip route add 100.64.32.0/20 dev kubelink src 192.168.0.11"},
		{"strict reverse path filter", gateway + chains("iptables-nft") + strings.ReplaceAll(routes, "proto",
			"table 107 proto") +
			"ip rule add priority 100 iif eth0 lookup 107\nsysctl -qw net.ipv4.conf.all.rp_filter=1", "b", ReversePathFilter,
			[]string{"device kubelink drops packets from 100.64.16.1", "net.ipv4.conf.kubelink.rp_filter=2"},
			"ip rule add priority 101 lookup 107"},
		{"the device is down", healthy + "ip link set kubelink down", "", DeviceMissing, []string{"kubelink is down"},
			"ip link set kubelink up" + routes},
		{"the device is gone", healthy + "ip link del kubelink", "", DeviceMissing, []string{"kubelink is gone"},
			"ip tuntap add mode tun kubelink; ip link set kubelink up\n" +
				"ip addr add 192.168.0.11/32 dev kubelink noprefixroute\n" + routes},
		{"an endpoint within the mesh", healthy + "ip route add 192.0.2.3/32 dev kubelink", "c", EndpointInTunnel,
			[]string{"192.0.2.3 of its endpoint c.example", "ip route del 192.0.2.3/32 dev kubelink"},
			"ip route del 192.0.2.3/32 dev kubelink"},
	} {
		t.Run(c.name, func(t *testing.T) {
			inNamespace(t, func(t *testing.T) {
				sh(t, c.script)
				found := checkNode(t, testTarget())
				i := slices.IndexFunc(found, func(f link.Finding) bool { return f.Link == c.link && f.Reason == c.reason })
				if i < 0 {
					t.Errorf("findings %v, want one about link %q with reason %s", found, c.link, c.reason)
					return
				}
				t.Log(found[i])
				for _, text := range c.texts {
					if !strings.Contains(found[i].String(), text) {
						t.Errorf("%q does not contain %q", found[i].String(), text)
					}
				}
				sh(t, c.heal)
				if found := checkNode(t, testTarget()); len(found) > 0 {
					t.Errorf("findings after %s: %v", c.heal, found)
				}
			})
		})
	}
}

// inPod is the network of a pod: all but itself is behind one address of the node, and nothing is forwarded by default.
const inPod = `
ip link set lo up
ip tuntap add mode tun kubelink
ip link set kubelink up
ip addr add 192.168.0.11/32 dev kubelink noprefixroute
ip link add pod0 type veth peer name cali0
ip link set pod0 up; ip link set cali0 up
ip addr add 100.96.1.7/32 dev pod0
ip route add 169.254.1.1 dev pod0
ip route add default via 169.254.1.1 dev pod0
sysctl -qw net.ipv4.ip_forward=0
sysctl -qw net.ipv4.conf.kubelink.forwarding=1
sysctl -qw net.ipv4.conf.pod0.forwarding=1
` + routes + `
iptables -t nat -N KL-POSTROUTING
iptables -t nat -A KL-POSTROUTING -s 192.168.0.0/24 -o kubelink -j ACCEPT
iptables -t nat -A KL-POSTROUTING -o kubelink -j SNAT --to-source 192.168.0.11
iptables -t nat -A KL-POSTROUTING -o lo -j RETURN
iptables -t nat -A KL-POSTROUTING -j MASQUERADE
iptables -t nat -I POSTROUTING -m comment --comment kubelink -j KL-POSTROUTING
`

// In a pod, packets of other pods come through its own interface. Remedies are what a user can do to a pod.
func TestFindingsInPod(t *testing.T) {
	for _, c := range []struct {
		name, script, reason string
		texts                []string
	}{
		{"healthy", "", "", nil},
		{"forwarding is off", "sysctl -qw net.ipv4.conf.pod0.forwarding=0", ForwardingOff,
			[]string{"from pods (device pod0)", "set net.ipv4.ip_forward=1 with securityContext.sysctls of the pod"}},
		{"a foreign route", "ip route add 100.64.16.128/25 dev pod0", ForeignRoute, []string{"100.64.16.128/25 dev pod0"}},
		{"no NAT", "iptables -t nat -F KL-POSTROUTING", SourceNAT, []string{"192.168.0.11"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			inNamespace(t, func(t *testing.T) {
				sh(t, inPod+c.script)
				target := testTarget()
				target.Pod = mesh.HostInterface{Addr: netip.MustParseAddr("10.250.0.3"), Device: "pod0"}
				found := checkNode(t, target)
				i := slices.IndexFunc(found, func(f link.Finding) bool { return f.Reason == c.reason })
				if (i >= 0) != (c.reason != "") || c.reason == "" && len(found) > 0 {
					t.Errorf("findings %v, want reason %q", found, c.reason)
					return
				}
				for _, text := range c.texts {
					if !strings.Contains(found[i].String(), text) {
						t.Errorf("%q does not contain %q", found[i].String(), text)
					}
				}
			})
		})
	}
}
