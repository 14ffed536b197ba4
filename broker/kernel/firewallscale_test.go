package kernel

// The firewall of many links: what a Set and a packet cost.

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/mesh/service"
)

// manyLinks are links with a cluster address and two networks each. With lists each has one of its own.
func manyLinks(n int, lists bool) *mesh.State {
	own := mesh.Prefixes{netip.MustParsePrefix("172.16.0.1/16")}
	service := netip.MustParsePrefix("100.64.0.0/20")
	s := &mesh.State{Meshes: []mesh.Mesh{{Addresses: own, Services: mesh.Prefixes{service}}},
		Local:  []netip.Prefix{service, own[0].Masked(), netip.MustParsePrefix("100.96.0.0/16")},
		Routes: []mesh.Route{{Destination: own[0].Masked(), Source: own[0].Addr()}}}
	for i := range n {
		address := netip.MustParsePrefix(fmt.Sprintf("172.16.%d.%d/16", 1+i/100, 1+2*(i%100)))
		p := mesh.Peer{Link: fmt.Sprintf("link%03d", i), Local: own, Addresses: mesh.Prefixes{address},
			Networks: []netip.Prefix{hostPrefix(address.Addr())},
			Ingress:  []mesh.Rule{{Prefix: service, Allow: true}, {Prefix: hostPrefix(own[0].Addr()), Allow: true, Node: true}}}
		for k := range 2 {
			network := netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/24", 8*k+i/125, 2*(i%125)))
			p.Networks = append(p.Networks, network)
			s.Routes = append(s.Routes, mesh.Route{Destination: network, Source: own[0].Addr()})
		}
		if lists {
			p.Ingress[0].Prefix = netip.MustParsePrefix(fmt.Sprintf("100.64.%d.%d/32", i/200, i%200))
		}
		s.Peers = append(s.Peers, p)
	}
	return s
}

var addressOption = regexp.MustCompile(` (-s|-d) (\S+)`)

// walkedRules counts the rules with which a packet is compared in chains of conditions on addresses, until one drops it
// or the first of our chains ends.
func walkedRules(t testing.TB, rules map[string][]string, source, target string) (n int) {
	t.Helper()
	matches := func(rule string) bool {
		for _, m := range addressOption.FindAllStringSubmatch(rule, -1) {
			address := map[string]string{"-s": source, "-d": target}[m[1]]
			if !netip.MustParsePrefix(m[2]).Contains(netip.MustParseAddr(address)) {
				return false
			}
		}
		return !strings.Contains(rule, " -m ")
	}
	var walk func(chain string) (dropped bool)
	walk = func(chain string) bool {
		for _, r := range rules[chain] {
			n++
			words := strings.Fields(r)
			verb, to := words[len(words)-2], words[len(words)-1]
			switch {
			case !matches(r):
			case to == "DROP":
				return true
			case to == "RETURN":
				return false
			case verb == "-g":
				return walk(to)
			case walk(to):
				return true
			}
		}
		return false
	}
	if walk(guardName) {
		t.Errorf("%s to %s is dropped", source, target)
	}
	return n
}

// 250 links are set in seconds, and a packet is compared with few rules, however many links there are.
func TestFirewallOfManyLinks(t *testing.T) {
	for _, backend := range []string{nftBackend, legacyBackend} {
		for _, lists := range []bool{false, true} {
			inNamespace(t, fmt.Sprintf("%s, lists %t", backend, lists), func(t *testing.T) {
				if backend == legacyBackend {
					useLegacy(t)
				}
				tun(t, "kubelink")
				k, w := open(t, config)
				built := manyLinks(250, lists)
				if lists { // what the service network is for does not matter
					built.Meshes[0].Services = nil
				}
				s := firewallState(built)
				measure := func(what string, s State) {
					t.Helper()
					began := time.Now()
					set(t, k, s)
					took := time.Since(began)
					t.Logf("%s: Set took %s", what, took.Round(time.Millisecond))
					if took > 10*time.Second {
						t.Errorf("%s: Set took %s", what, took)
					}
				}
				measure("250 links", s)
				measure("the same", s)
				fewer := manyLinks(250, lists)
				fewer.Peers = append(fewer.Peers[:100:100], fewer.Peers[101:]...)
				w.writes = 0
				measure("one less", firewallState(fewer))
				measure("one more", s)
				saved := run(t, "iptables-save -t mangle")
				rules, most := rulesByChain(saved), 0
				for i := range built.Peers {
					p := &built.Peers[i]
					target := p.Ingress[0].Prefix.Addr().String()
					most = max(most, walkedRules(t, rules, p.Addresses.Addrs()[0].String(), target),
						walkedRules(t, rules, p.Networks[2].Addr().Next().String(), target))
				}
				t.Logf("%d rules in %d chains; a packet is compared with %d at most", strings.Count(saved, "\n-A KLINK-"),
					strings.Count(saved, "\n:KLINK-"), most)
				if most > 80 {
					t.Errorf("a packet is compared with %d rules", most)
				}
			})
		}
	}
}

// BenchmarkFirewallChains: the chains of 250 links that reach 1,000 mesh services.
func BenchmarkFirewallChains(b *testing.B) {
	services := manyServices(1000, unix.AF_INET).Services
	built := manyLinks(250, false)
	for i := range built.Peers {
		built.Peers[i].Unlisted = true
	}
	open := service.Open(*built, services)
	s := firewallState(&open)
	for b.Loop() {
		firewallChains(s.Firewall, unix.AF_INET)
	}
}

// Peers that offer thousands of mesh services each do not keep the kernel from hearing of other links.
func TestFirewallOfManyOffers(t *testing.T) {
	s := manyLinks(250, false)
	for i := range 20 {
		for j := range 4096 {
			a := netip.AddrFrom4([4]byte{172, 17, byte(i*16) + byte(j>>8), byte(j)})
			s.Peers[i].Networks = append(s.Peers[i].Networks, hostPrefix(a))
		}
	}
	// A network of a later link lies in one of an earlier link, and both have an address.
	s.Peers[30].Networks = append(s.Peers[30].Networks, netip.MustParsePrefix("172.20.0.0/16"))
	s.Peers[31].Networks = append(s.Peers[31].Networks, netip.MustParsePrefix("172.20.7.0/24"))
	s.Peers[32].Networks = append(s.Peers[32].Networks, netip.MustParsePrefix("172.20.7.7/32"))
	began := time.Now()
	_, _, chains := firewallChains(firewallState(s).Firewall, unix.AF_INET)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the chains took %s", took)
	}
	var to []string
	for _, c := range chains {
		if strings.HasPrefix(c.name, toChain+"-30") || strings.HasPrefix(c.name, toChain+"-31") {
			to = append(to, c.rules...)
		}
	}
	for _, want := range []string{"172.20.7.0/24", "172.20.7.7/32"} {
		if !strings.Contains(strings.Join(to, "\n"), want) {
			t.Errorf("%s is not told from the network around it", want)
		}
	}
}
