package kernel

// nf_tables takes no more than 16 chains in a row (NFT_JUMP_STACK_SIZE in nf_tables.h of Linux).

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

const maxChains = 16

// randomNetwork is an IPv4 network outside of those that links have of themselves.
func randomNetwork(random *rand.Rand) netip.Prefix {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], 20<<24+random.Uint32N(60<<24))
	return netip.PrefixFrom(netip.AddrFrom4(a), 16+random.IntN(17)).Masked()
}

// scatteredLinks are links of three meshes with networks all over the place. The first one of each mesh has many, and
// one around most of the other ones; lists lead to a part of its own ones.
func scatteredLinks(n int) *mesh.State {
	random := rand.New(rand.NewPCG(1, 2))
	s := &mesh.State{}
	for k := range 3 {
		own := mesh.Prefixes{netip.MustParsePrefix(fmt.Sprintf("172.%d.0.1/16", 16+k))}
		s.Meshes = append(s.Meshes, mesh.Mesh{Addresses: own})
		s.Local = append(s.Local, own[0].Masked())
		s.Routes = append(s.Routes, mesh.Route{Destination: own[0].Masked(), Source: own[0].Addr()})
		for i := range n / 3 {
			address := netip.MustParsePrefix(fmt.Sprintf("172.%d.1.%d/16", 16+k, i+1))
			p := mesh.Peer{Link: fmt.Sprintf("link%d-%d", k, i), Local: own, Addresses: mesh.Prefixes{address},
				Networks: []netip.Prefix{hostPrefix(address.Addr())}}
			count := 8
			if i == 0 {
				count = 200
				p.Networks = append(p.Networks, netip.MustParsePrefix([]string{"0.0.0.0/1", "32.0.0.0/4", "64.0.0.0/3"}[k]))
			}
			for range count {
				network := randomNetwork(random)
				p.Networks = append(p.Networks, network)
				p.Ingress = append(p.Ingress, mesh.Rule{Prefix: network, Allow: random.IntN(2) == 0})
			}
			s.Peers = append(s.Peers, p)
		}
	}
	return s
}

// longestWay counts the chains of the longest way through one of ours, with the builtin chain.
func longestWay(c chain) (chains int) {
	rules := map[string][]string{c.name: c.rules}
	for _, i := range c.inner {
		rules[i.name] = i.rules
	}
	known := map[string]int{}
	var follow func(name string) int
	follow = func(name string) int {
		if _, exists := rules[name]; !exists {
			return 0
		}
		if n, seen := known[name]; seen {
			return n
		}
		most := 0
		for _, r := range rules[name] {
			words := strings.Fields(r)
			for i, w := range words[:len(words)-1] {
				if w == "-j" || w == "-g" {
					most = max(most, follow(words[i+1]))
				}
			}
		}
		known[name] = most + 1
		return most + 1
	}
	return 1 + follow(c.name)
}

// The kernel takes the chains of links that have all kinds of networks.
func TestWayThroughChains(t *testing.T) {
	inNamespace(t, "252 links", func(t *testing.T) {
		tun(t, "kubelink")
		k, _ := open(t, config)
		s, longest := firewallState(scatteredLinks(252)), 0
		for _, c := range append(wantedChains("kubelink", s, unix.AF_INET, false),
			wantedChains("kubelink", manyServices(1000, unix.AF_INET6), unix.AF_INET6, false)...) {
			n := longestWay(c)
			longest = max(longest, n)
			if n > maxChains {
				t.Errorf("chain %s: %d chains in a row", c.name, n)
			}
		}
		t.Logf("%d chains in a row at most", longest)
		set(t, k, s)
	})
}
