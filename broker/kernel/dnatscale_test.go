package kernel

// Mesh services as chains: what a Set writes, which ones it leaves as they are, and what many services cost.

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/mesh/service"
)

// written notes what Set writes.
type written struct {
	system
	commands []string
}

func (w *written) Change(verb string, object any) error {
	w.commands = append(w.commands, fmt.Sprint(verb, object))
	return w.system.Change(verb, object)
}

func (w *written) RestoreTable(ctx context.Context, tools toolset, table string, commands []string) error {
	w.commands = append(w.commands, commands...)
	return w.system.RestoreTable(ctx, tools, table, commands)
}

func openWritten(t testing.TB) (*Kernel, *written) {
	t.Helper()
	k, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	w := &written{system: k.system}
	k.system = w
	return k, w
}

// manyServices are whole addresses of a mesh with a port each and three endpoints.
func manyServices(n, family int) State {
	s := State{Addresses: addresses("172.31.0.1/16"), Routes: routes("172.31.0.0/16 172.31.0.1")}
	if family == unix.AF_INET6 {
		s = State{Addresses: addresses("fd00:31::1/64"), Routes: routes("fd00:31::/64 fd00:31::1")}
	}
	for i := range n {
		x := service.Service{Name: fmt.Sprintf("s%d", i), Whole: true}
		x.Ports = []service.Port{{Protocol: unix.IPPROTO_TCP, Port: 80}}
		for k := range 3 {
			if family == unix.AF_INET {
				x.Address = netip.AddrFrom4([4]byte{172, 31, byte(1 + i/100), byte(1 + 2*(i%100))})
				x.Targets = append(x.Targets, netip.AddrFrom4([4]byte{100, byte(96 + k), byte(i / 250), byte(1 + i%250)}))
			} else {
				x.Address = netip.MustParseAddr(fmt.Sprintf("fd00:31::%x:%x", 1+i/100, 1+2*(i%100)))
				x.Targets = append(x.Targets, netip.MustParseAddr(fmt.Sprintf("fd00:a:%x::%x", k, 1+i)))
			}
			x.Ports[0].Targets = append(x.Ports[0].Targets, netip.AddrPortFrom(x.Targets[k], 8080))
		}
		s.Services = append(s.Services, x)
	}
	return s
}

// processorTime is what this process and the commands that it has run have had of processors.
func processorTime(t testing.TB) (sum time.Duration) {
	t.Helper()
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return sum
}

// walkServices counts the rules with which the first packet of a connection is compared, if it gets the last endpoint.
func walkServices(t testing.TB, rules map[string][]string, chain string, to netip.AddrPort) (n int, target string) {
	t.Helper()
	for _, r := range rules[chain] {
		n++
		words := strings.Fields(r)
		value := func(option string) string {
			if i := slices.Index(words, option); i >= 0 {
				return words[i+1]
			}
			return ""
		}
		if d := value("-d"); d != "" && !netip.MustParsePrefix(d).Contains(to.Addr()) {
			continue
		}
		if p := value("--dport"); p != "" && p != fmt.Sprint(to.Port()) || value("--probability") != "" {
			continue
		}
		if dnat := value("--to-destination"); dnat != "" {
			return n, dnat
		}
		if next := value("-g"); next != "" {
			more, target := walkServices(t, rules, next, to)
			return n + more, target
		}
	}
	return n, ""
}

// rulesByChain returns the rules that iptables-save has printed.
func rulesByChain(saved string) map[string][]string {
	rules := map[string][]string{}
	for line := range strings.Lines(saved) {
		if words := strings.Fields(line); len(words) > 2 && words[0] == "-A" {
			rules[words[1]] = append(rules[words[1]], strings.TrimSpace(line))
		}
	}
	return rules
}

// 1,000 services of three endpoints each are set in 3 s, a change of one takes 1 s and concerns its own chains only,
// and a packet is compared with few rules.
func TestManyServices(t *testing.T) {
	for _, backend := range []string{nftBackend, legacyBackend} {
		for _, family := range families {
			inNamespace(t, fmt.Sprintf("%s, IPv%d", backend, IPVersion(family)), func(t *testing.T) {
				if backend == legacyBackend {
					useLegacy(t)
				}
				tun(t, "kubelink")
				k, w := openWritten(t)
				s := manyServices(1000, family)
				none := State{Addresses: s.Addresses, Routes: s.Routes}
				set(t, k, none)
				measure := func(what string, to State, limit time.Duration, lines int) {
					t.Helper()
					w.commands = nil
					began, used := time.Now(), processorTime(t)
					set(t, k, to)
					used = processorTime(t) - used
					t.Logf("%s: Set took %s, %s of processors, and wrote %d lines", what,
						time.Since(began).Round(time.Millisecond), used.Round(time.Millisecond), len(w.commands))
					if len(w.commands) > lines {
						t.Errorf("%s: wrote %.500q", what, w.commands)
					}
					if used > limit { // it waits for nothing, and this machine may be busy
						t.Errorf("%s: Set used %s, want at most %s", what, used, limit)
					}
				}
				less, fewer := s, s
				less.Services = slices.Clone(s.Services)
				x := &less.Services[500]
				x.Targets = x.Targets[:2]
				x.Ports = []service.Port{{Protocol: unix.IPPROTO_TCP, Port: 80, Targets: x.Ports[0].Targets[:2]}}
				fewer.Services = slices.Delete(slices.Clone(s.Services), 500, 501)
				measure("1,000 services", s, 3*time.Second, 20000)
				measure("the same", s, time.Second, 0)
				measure("an endpoint less", less, time.Second, 10)
				measure("an endpoint more", s, time.Second, 10)
				measure("a service less", fewer, time.Second, 30)
				measure("a service more", s, time.Second, 30)

				command := map[int]string{unix.AF_INET: "iptables-save", unix.AF_INET6: "ip6tables-save"}[family]
				rules, most := rulesByChain(run(t, command+" -t nat")), 0
				for _, x := range s.Services {
					for _, port := range []uint16{80, 443} {
						n, got := walkServices(t, rules, servicesChain, netip.AddrPortFrom(x.Address, port))
						want := x.Targets[2].String()
						if port == 80 {
							want = x.Ports[0].Targets[2].String()
						}
						if got != want {
							t.Fatalf("%s port %d gets to %s, want %s", x.Address, port, got, want)
						}
						most = max(most, n)
					}
				}
				t.Logf("a packet is compared with %d rules at most", most)
				if most > 50 {
					t.Errorf("a packet is compared with %d rules", most)
				}
				measure("none", none, 3*time.Second, 20000)
			})
		}
	}
}

// Nothing is written where all is right, the next process adopts what a killed one left, hooks come back to their
// places, and the end leaves nothing.
func TestServiceChanges(t *testing.T) {
	for _, backend := range []string{nftBackend, legacyBackend} {
		inNamespace(t, backend, func(t *testing.T) {
			if backend == legacyBackend {
				useLegacy(t)
			}
			tun(t, "kubelink")
			run(t, foreign)
			before := state(t)
			all := bedState
			for _, family := range families {
				affine := bedService(family, 200, "p1", "p2", "p3")
				affine.Affinity = 10800
				affine.Ports = []service.Port{bedPort(family, unix.IPPROTO_TCP, 80, 8080, "p1", "p2"),
					bedPort(family, unix.IPPROTO_UDP, 53, 53), bedPort(family, unix.IPPROTO_UDP, 54, 53, "far4")}
				own := service.Service{Name: "own", Address: all.Addresses[0].Addr()}
				outside := bedService(family, 7, "p1", "p2")
				outside.Address = netip.MustParseAddr("10.7.7.7")
				if family == unix.AF_INET6 {
					own.Address, outside.Address = all.Addresses[1].Addr(), netip.MustParseAddr("fd00:7::7")
				}
				for port := range uint16(100) {
					own.Ports = append(own.Ports, bedPort(family, unix.IPPROTO_TCP, 1000+port, 80, "p1", "p2"),
						bedPort(family, unix.IPPROTO_UDP, 1000+port, 80))
				}
				all.Services = append(all.Services, affine, own, outside, bedService(family, 201), bedService(family, 202, "p1"))
			}
			firewalled := all
			firewalled.Firewall = &Firewall{}
			inPod := all
			inPod.Pod = Pod{Is: true, Device: "eth0"}
			fewer := all
			fewer.Services = append(slices.Clone(all.Services[:2]), all.Services[6:]...)
			states := map[string]State{"node": all, "firewall": firewalled, "pod": inPod, "fewer": fewer, "none": bedState}
			fresh := map[string]string{}
			for name, s := range states {
				k, _ := openWritten(t)
				set(t, k, s)
				fresh[name] = state(t)
				next, w := openWritten(t)
				for process, k := range map[string]*Kernel{"the same": k, "the next": next} {
					if set(t, k, s); len(w.commands) > 0 {
						t.Errorf("%s: %s process wrote %q", name, process, w.commands)
					}
				}
				set(t, next, State{})
				if now := state(t); now != before {
					t.Fatalf("%s: Clear left\n%s\nof\n%s", name, now, before)
				}
			}
			k, _ := openWritten(t)
			for _, name := range []string{"node", "firewall", "pod", "node", "fewer", "none", "fewer", "node"} {
				set(t, k, states[name])
				now, want := strings.Split(state(t), "\n"), strings.Split(fresh[name], "\n")
				if more, less := minus(now, want), minus(want, now); len(more)+len(less) > 0 {
					t.Errorf("changed to %s: has %q, misses %q", name, more, less)
				}
			}
			run(t, `iptables -t nat -N KUBE-SERVICES
				iptables -t nat -I PREROUTING -j KUBE-SERVICES
				iptables -t nat -I OUTPUT -j KUBE-SERVICES
				iptables -D FORWARD -m comment --comment kubelink -j KLINK-FORWARD
				iptables -I FORWARD -m comment --comment kubelink -j KLINK-FORWARD`)
			set(t, k, all)
			for table, want := range map[string][]string{"nat": {
				"-A PREROUTING -m comment --comment kubelink -j KLINK-SERVICES\n-A PREROUTING -j KUBE-SERVICES\n",
				"-A OUTPUT -m comment --comment kubelink -j KLINK-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n",
			}, "filter": {"-A FORWARD -m conntrack --ctstate NEW -m comment --comment kubelink -j KLINK-REFUSE\n" +
				"-A FORWARD -s 10.66.0.0/16 -j DROP\n-A FORWARD -m comment --comment kubelink -j KLINK-FORWARD\n"}} {
				rules := run(t, "iptables -t "+table+" -S")
				for _, w := range want {
					if !strings.Contains(rules, w) {
						t.Errorf("not in %s: %s%s", table, w, rules)
					}
				}
			}
		})
	}
}

// The first connection to a service comes as soon as packets get an endpoint, and its answers have to come back.
func TestServiceSourceComesFirst(t *testing.T) {
	inNamespace(t, "first service", func(t *testing.T) {
		tun(t, "kubelink")
		k, w := openWritten(t)
		set(t, k, bedState)
		w.commands = nil
		s := bedState
		s.Services = []service.Service{bedService(unix.AF_INET, 200, "p1")}
		set(t, k, s)
		source := slices.IndexFunc(w.commands, func(c string) bool { return strings.Contains(c, "-j "+sourceName) })
		target := slices.IndexFunc(w.commands, func(c string) bool { return strings.Contains(c, "-j "+servicesChain) })
		if source < 0 || target < source {
			t.Errorf("hooks at %d and %d of %q", source, target, w.commands)
		}
	})
}

// What a firewall lets in at the address of the cluster has the order of the services.
func TestPassServices(t *testing.T) {
	s := oneMesh
	s.LocalPorts = []mesh.LocalPort{{Protocol: "tcp", Port: 9153}}
	x := service.Service{Address: s.Addresses[0].Addr()}
	for port := uint16(1); port <= 17; port++ {
		x.Ports = append(x.Ports, service.Port{Protocol: unix.IPPROTO_TCP, Port: port})
	}
	x.Ports = append(x.Ports, service.Port{Protocol: unix.IPPROTO_UDP, Port: 53})
	s.Services = []service.Service{x, {Address: netip.MustParseAddr("192.168.0.200"), Whole: true, Ports: x.Ports}}
	want := []string{
		"-d 192.168.0.11/32 -p tcp -m multiport --dports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15 -j RETURN",
		"-d 192.168.0.11/32 -p tcp -m multiport --dports 16,17 -j RETURN",
		"-d 192.168.0.11/32 -p udp -m multiport --dports 53 -j RETURN",
	}
	if got := passServices(s, unix.AF_INET); !slices.Equal(got, want) {
		t.Errorf("rules %q, want %q", got, want)
	}
}
