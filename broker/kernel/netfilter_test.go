package kernel

// What the chains should have and what iptables-restore is told for it, without a kernel.

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRestoreCommands(t *testing.T) {
	first := chain{name: "C", hook: "-A B -j C", first: true, rules: []string{"-A C -j ACCEPT"}}
	last := first
	last.first = false
	for name, c := range map[string]struct {
		chain            chain
		wanted           bool
		builtin, current []string
		want             []string
	}{
		"all is there, first":                  {first, true, []string{"-A B -j C", "-A B -j X"}, first.rules, nil},
		"all is there, last":                   {last, true, []string{"-A B -j X", "-A B -j C"}, first.rules, nil},
		"before foreign rules that came later": {last, true, []string{"-A B -j C", "-A B -j X"}, first.rules, nil},
		"new, first": {first, true, []string{"-A B -j X"}, nil,
			[]string{":C - [0:0]", "-A C -j ACCEPT", "-I B -j C"}},
		"new, last": {last, true, nil, nil, []string{":C - [0:0]", "-A C -j ACCEPT", "-A B -j C"}},
		"other rules": {first, true, []string{"-A B -j C"}, []string{"-A C -j DROP"},
			[]string{":C - [0:0]", "-A C -j ACCEPT"}},
		"empty": {first, true, []string{"-A B -j C"}, []string{},
			[]string{":C - [0:0]", "-A C -j ACCEPT"}},
		"no hook": {first, true, nil, first.rules, []string{"-I B -j C"}},
		"behind": {first, true, []string{"-A B -j X", "-A B -j C"}, first.rules,
			[]string{"-D B -j C", "-I B -j C"}},
		"twice": {last, true, []string{"-A B -j C", "-A B -j C"}, first.rules,
			[]string{"-D B -j C", "-D B -j C", "-A B -j C"}},
		"old hook": {first, true, []string{"-A B -o k -j C"}, first.rules,
			[]string{"-D B -o k -j C", "-I B -j C"}},
		"a chain with a name that ends alike": {first, false, []string{"-A B -j XC"}, nil, nil},
		"unwanted": {first, false, []string{"-A B -j C", "-A B -j X"}, first.rules,
			[]string{"-D B -j C", "-F C", "-X C"}},
		"unwanted, empty":         {first, false, nil, []string{}, []string{"-F C", "-X C"}},
		"unwanted, and not there": {first, false, []string{"-A B -j X"}, nil, nil},
	} {
		if got := c.chain.restoreCommands(c.wanted, c.builtin, c.current); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestNATChain(t *testing.T) {
	s := State{Addresses: addresses("192.168.0.11/24", "fd00:99::1/64"),
		Routes: routes("0.0.0.0/0 192.168.0.11", "10.0.0.0/8 192.168.0.11", "10.1.0.0/16 10.9.9.9",
			"::/0 fd00:99::1", "fd00:5::/48 fd00:99::1", "fd00:5:0:1::/64 fd00:98::1")}
	for family, want := range map[int]string{
		unix.AF_INET: `
			-s 10.9.9.9/32 -d 10.1.0.0/16 -o k -j ACCEPT
			-d 10.1.0.0/16 -o k -j SNAT --to-source 10.9.9.9
			-s 192.168.0.0/24 -d 10.0.0.0/8 -o k -j ACCEPT
			-d 10.0.0.0/8 -o k -j SNAT --to-source 192.168.0.11
			-s 192.168.0.0/24 -o k -j ACCEPT
			-o k -j SNAT --to-source 192.168.0.11`,
		unix.AF_INET6: `
			-s fd00:98::1/128 -d fd00:5:0:1::/64 -o k -j ACCEPT
			-d fd00:5:0:1::/64 -o k -j SNAT --to-source fd00:98::1
			-s fd00:99::/64 -d fd00:5::/48 -o k -j ACCEPT
			-d fd00:5::/48 -o k -j SNAT --to-source fd00:99::1
			-s fd00:99::/64 -o k -j ACCEPT
			-o k -j SNAT --to-source fd00:99::1`,
	} {
		c := natChain("k", s, family)
		got := strings.ReplaceAll(strings.Join(c.rules, "\n"), "-A "+c.name+" ", "")
		if want := strings.ReplaceAll(strings.TrimSpace(want), "\t", ""); got != want {
			t.Errorf("IPv%d: rules\n%s\nwant\n%s", ipVersion(family), got, want)
		}
	}
}

// Each hook is in the builtin chain that its table has, and jumps to its chain.
func TestWantedChains(t *testing.T) {
	for _, family := range families {
		var got []string
		for _, c := range wantedChains("k", twoMeshes, family) {
			got = append(got, c.table+" "+c.builtin())
			if !slices.Equal(c.findHooks([]string{c.hook}), []string{c.hook}) {
				t.Errorf("IPv%d: hook %q is not one of chain %s", ipVersion(family), c.hook, c.name)
			}
			if (c.remedy != "") != (c.table == "mangle") {
				t.Errorf("IPv%d: chain %s: remedy %q: a mesh does without the MSS only", ipVersion(family), c.name, c.remedy)
			}
		}
		if want := []string{"nat POSTROUTING", "filter FORWARD", "mangle FORWARD"}; !slices.Equal(got, want) {
			t.Errorf("IPv%d: chains in %q, want %q", ipVersion(family), got, want)
		}
	}
	for family, module := range map[int]string{unix.AF_INET: " iptable_mangle ", unix.AF_INET6: " ip6table_mangle "} {
		if c := mssChain("k", family); !strings.Contains(c.remedy, module) {
			t.Errorf("IPv%d: remedy %q does not name%s", ipVersion(family), c.remedy, module)
		}
	}
}
