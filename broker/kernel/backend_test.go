package kernel

// Chains are in the back end of iptables that the node uses, in real network namespaces with both.

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// expectBackends checks in which back ends the chains of the families are.
func expectBackends(t *testing.T, k *Kernel, ipv4, ipv6 string) {
	t.Helper()
	wanted := map[string]string{"iptables": ipv4, "ip6tables": ipv6}
	var used []string
	for _, b := range k.Backends() {
		used = append(used, b.Name)
	}
	want := slices.DeleteFunc([]string{ipv4, ipv6}, func(name string) bool { return name == "" })
	if !slices.Equal(used, want) {
		t.Errorf("back ends %q, want %q: %v", used, want, k.Backends())
	}
	for command, want := range wanted {
		for _, backend := range []string{nftBackend, legacyBackend} {
			rules := run(t, command+"-"+backend+"-save")
			for _, chain := range []string{"KLINK-POSTROUTING", "KLINK-LOCAL", "KLINK-FORWARD", "KLINK-MSS"} {
				if has := strings.Contains(rules, "-j "+chain+"\n"); has != (backend == want) {
					t.Errorf("%s-%s has %s: %t\n%s", command, backend, chain, has, rules)
				}
			}
			if backend != want && strings.Contains(rules, "KLINK-") {
				t.Errorf("%s-%s has something of ours:\n%s", command, backend, rules)
			}
		}
	}
}

const (
	hintNFT    = "iptables-nft -t mangle -N KUBE-IPTABLES-HINT\nip6tables-nft -t mangle -N KUBE-IPTABLES-HINT\n"
	hintLegacy = "iptables-legacy -t mangle -N KUBE-KUBELET-CANARY\nip6tables-legacy -t mangle -N KUBE-KUBELET-CANARY\n"
	accept     = " -A FORWARD -s 10.1.2.3 -j ACCEPT\n"
	accept6    = " -A FORWARD -s fd00:66::1 -j ACCEPT\n"
)

func TestBackendOfNode(t *testing.T) {
	for _, c := range []struct{ name, node, ipv4, ipv6 string }{
		{"nothing is there", "", "nft", "nft"},
		{"kubelet uses nft", "iptables-legacy" + accept + "iptables-legacy" + accept + hintNFT, "nft", "nft"},
		{"kubelet uses legacy", "iptables-nft" + accept + "iptables-nft" + accept + hintLegacy, "legacy", "legacy"},
		{"kubelet has used both", hintLegacy + hintNFT, "nft", "nft"},
		{"more rules in legacy", "iptables-nft" + accept + "iptables-legacy" + accept + "iptables-legacy" + accept,
			"legacy", "legacy"},
		{"more rules in nft", "iptables-nft" + accept + "iptables-nft" + accept + "iptables-legacy" + accept, "nft", "nft"},
		{"each family has its own", "iptables-legacy" + accept + "ip6tables-nft" + accept6, "legacy", "nft"},
		{"a killed broker's chains say nothing", "iptables-legacy -t nat -N KLINK-POSTROUTING\n" +
			"iptables-legacy -t nat -A POSTROUTING -o kubelink -m comment --comment kubelink -j KLINK-POSTROUTING\n" +
			"iptables-nft -t filter -N KLROUTER-FORWARD\n" +
			"iptables-nft -A FORWARD -m comment --comment kubelink -j KLROUTER-FORWARD\n", "nft", "nft"},
	} {
		inNamespace(t, c.name, func(t *testing.T) {
			tun(t, "kubelink")
			run(t, c.node)
			k, w := open(t, config)
			for i := range 2 {
				w.writes = 0
				set(t, k, twoMeshes)
				expectBackends(t, k, c.ipv4, c.ipv6)
				if i > 0 && w.writes > 0 {
					t.Errorf("%d writes where all is right", w.writes)
				}
			}
			set(t, k, oneMesh)
			expectBackends(t, k, c.ipv4, "")
			wantErrors(t, "Clear", k.Clear())
			expectBackends(t, k, "", "")
		})
	}
}

// A program that has both back ends changes its mind: we stay, as long as the node has rules here and kubelet says
// nothing else.
func TestBackendStays(t *testing.T) {
	enter(t)
	tun(t, "kubelink")
	run(t, "iptables-legacy"+accept)
	k, _ := open(t, config)
	set(t, k, oneMesh)
	run(t, "iptables-nft"+accept+"iptables-nft"+accept)
	set(t, k, oneMesh)
	expectBackends(t, k, "legacy", "")
	run(t, hintNFT)
	set(t, k, oneMesh)
	expectBackends(t, k, "nft", "")
}

// restoreLog notes which back end is told what.
type restoreLog struct {
	system
	calls []string
	fails string // back end
}

func (l *restoreLog) RestoreTable(ctx context.Context, tools toolset, table string, commands []string) error {
	if tools.backend == l.fails {
		return fmt.Errorf("no such luck")
	}
	verb := "makes"
	if slices.ContainsFunc(commands, func(c string) bool { return strings.HasPrefix(c, "-X KLINK-") }) {
		verb = "removes"
	}
	l.calls = append(l.calls, tools.backend+" "+verb)
	return l.system.RestoreTable(ctx, tools, table, commands)
}

// The node is changed from one back end to the other: the new chains are there before the old ones go. If they cannot
// be made, the old ones stay.
func TestBackendMoves(t *testing.T) {
	for _, to := range []string{nftBackend, legacyBackend} {
		inNamespace(t, "to "+to, func(t *testing.T) {
			tun(t, "kubelink")
			from, prepare, change := legacyBackend, hintLegacy, hintNFT
			if to == legacyBackend {
				from, prepare, change = nftBackend, hintNFT, "iptables-nft -t mangle -X KUBE-IPTABLES-HINT\n"+hintLegacy
			}
			run(t, prepare)
			k, w := open(t, config)
			set(t, k, oneMesh)
			run(t, change)

			log := &restoreLog{system: w.system, fails: to}
			k.system = log
			wantErrors(t, "Set", k.Set(oneMesh), "chain KLINK-POSTROUTING of IPv4: no such luck")
			if now := run(t, "iptables-"+from+"-save"); !strings.Contains(now, "-j KLINK-POSTROUTING") {
				t.Errorf("the old chains are gone:\n%s", now)
			}
			log.fails = "none"
			set(t, k, oneMesh)
			expectBackends(t, k, to, "")
			want := []string{to + " makes", to + " makes", to + " makes", to + " makes",
				from + " removes", from + " removes", from + " removes", from + " removes"}
			if !reflect.DeepEqual(log.calls, want) {
				t.Errorf("iptables: %q, want %q", log.calls, want)
			}
			log.calls = nil
			set(t, k, oneMesh)
			if len(log.calls) > 0 {
				t.Errorf("where all is right: %q", log.calls)
			}
		})
	}
}

// Chains of other rooms move, too.
func TestChainsMove(t *testing.T) {
	enter(t)
	run(t, hintLegacy)
	chains := []Chain{{Table: "mangle", Name: "KLINK-X-INPUT", Hook: "-A INPUT -p udp", Rules: []string{"-j DROP"}}}
	c, err := NewChains()
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		node, want string
		wanted     bool
	}{{"", legacyBackend, true}, {hintNFT, nftBackend, true}, {"", nftBackend, true}, {"", "", false}} {
		run(t, step.node)
		if warning, err := c.Set(unix.AF_INET, chains, step.wanted); warning != nil || err != nil {
			t.Fatal(warning, err)
		}
		for _, backend := range []string{nftBackend, legacyBackend} {
			rules := run(t, "iptables-"+backend+"-save")
			if has := strings.Contains(rules, "KLINK-X-INPUT"); has != (backend == step.want) {
				t.Errorf("after %q %s has the chain: %t\n%s", step.node, backend, has, rules)
			}
		}
	}
}

// Rules of Kubernetes in the other back end are named: packets pass them, too.
func TestRulesInOtherBackend(t *testing.T) {
	enter(t)
	tun(t, "kubelink")
	run(t, hintNFT+"iptables-legacy -N KUBE-FORWARD\niptables-legacy -A KUBE-FORWARD -j DROP")
	k, _ := open(t, config)
	set(t, k, oneMesh)
	wantErrors(t, "warning", k.Warning(), "iptables-legacy of IPv4 has 1 rules of Kubernetes, and kubelink uses "+
		"iptables-nft (kubelet's chain is there): packets pass both", "boot it")
	run(t, "iptables-legacy -F KUBE-FORWARD")
	set(t, k, oneMesh)
	wantErrors(t, "later", k.Warning())
}

// onlyCommands makes PATH a directory with these commands of iptables only, by name and program.
func onlyCommands(t *testing.T, commands map[string]string) {
	t.Helper()
	dir := t.TempDir()
	for name, program := range commands {
		path, err := exec.LookPath(program)
		if err != nil {
			t.Fatal(err)
		}
		for _, tool := range []string{"", "-save", "-restore"} {
			if err := os.Symlink(path, filepath.Join(dir, name+tool)); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Setenv("PATH", dir)
}

// Where one back end is installed, kubelink uses it, whatever the rules in the other one. Where no command has a back
// end in its name, kubelink takes what is called iptables.
func TestInstalledBackends(t *testing.T) {
	for _, c := range []struct {
		name, want string
		commands   map[string]string
	}{
		{"nft", "nft", map[string]string{"iptables-nft": "xtables-nft-multi", "ip6tables-nft": "xtables-nft-multi"}},
		{"legacy", "legacy", map[string]string{
			"iptables-legacy": "xtables-legacy-multi", "ip6tables-legacy": "xtables-legacy-multi"}},
		{"iptables", "", map[string]string{"iptables": "xtables-legacy-multi", "ip6tables": "xtables-legacy-multi"}},
	} {
		inNamespace(t, c.name, func(t *testing.T) {
			tun(t, "kubelink")
			run(t, hintNFT)
			path := os.Getenv("PATH")
			onlyCommands(t, c.commands)
			k, _ := open(t, config)
			set(t, k, oneMesh)
			if used := k.Backends(); len(used) != 1 || used[0].Name != c.want || used[0].Reason != "no other one is installed" {
				t.Errorf("back ends %v, want %q", used, c.want)
			}
			clear := func() { wantErrors(t, "Clear", k.Clear()) }
			t.Setenv("PATH", path)
			backend := c.want
			if backend == "" {
				backend = legacyBackend
			}
			if now := run(t, "iptables-"+backend+"-save"); !strings.Contains(now, "-j KLINK-POSTROUTING") {
				t.Errorf("iptables-%s has no chain of ours:\n%s", backend, now)
			}
			onlyCommands(t, c.commands)
			clear()
			t.Setenv("PATH", path)
			expectBackends(t, k, "", "")
		})
	}
}

// The look at the other back end never ends: it costs a moment, and only once.
func TestOtherBackendIsStuck(t *testing.T) {
	enter(t)
	tun(t, "kubelink")
	run(t, "iptables-legacy"+accept) // else there is nothing to look at
	dir := t.TempDir()
	script := "#!/bin/sh\necho once >> " + dir + "/looks\nexec sleep 1000\n"
	for _, name := range []string{"iptables-legacy-save", "ip6tables-legacy-save"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	k, _ := open(t, config)
	began := time.Now()
	for range 3 {
		set(t, k, oneMesh)
	}
	if took := time.Since(began); took > 3*unusedTime+5*time.Second {
		t.Errorf("three times Set took %s", took)
	}
	if looks, err := os.ReadFile(dir + "/looks"); err != nil || strings.Count(string(looks), "once") != 1 {
		t.Errorf("looks: %q, want one: %v", looks, err)
	}
	if used := k.Backends(); len(used) != 1 || used[0].Name != nftBackend {
		t.Errorf("back ends %v", used)
	}
}
