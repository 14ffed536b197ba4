package kernel

// What the chains should have and what iptables-restore is told for it, without a kernel.

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// rulesOf makes a table of rules as iptables -S prints them and of chains (":C - [0:0]"), separated by "; ".
func rulesOf(t testing.TB, rules string) *ruleTable {
	t.Helper()
	all, err := parseTables("*T\n" + strings.ReplaceAll(rules, "; ", "\n") + "\nCOMMIT\n")
	if err != nil {
		t.Fatal(err)
	}
	return all["T"]
}

func TestRestoreCommands(t *testing.T) {
	first := chain{name: "C", hooks: []string{"-A B -j C"}, device: "k", first: true, rules: []string{"-A C -j ACCEPT"}}
	last := first
	last.first = false
	const (
		own   = ":C - [0:0]; -A C -j ACCEPT; " // the chain is as it should be
		build = ":C - [0:0]; -A C -j ACCEPT"
	)
	for name, c := range map[string]struct {
		chain       chain
		wanted      bool
		found, want string // rules, and commands
	}{
		"all is there, first":           {first, true, own + "-A B -j C; -A B -j X", ""},
		"all is there, last":            {last, true, own + "-A B -j X; -A B -j C", ""},
		"before rules that only accept": {last, true, own + "-A B -j C; -A B -s 10.0.0.0/8 -j ACCEPT", ""},
		"new, first":                    {first, true, "-A B -j X", build + "; -I B -j C"},
		"new, last, nothing else":       {last, true, "", build + "; -I B -j C"},
		"new, last":                     {last, true, "-A B -j X", build + "; -A B -j C"},
		"other rules":                   {first, true, "-A C -j DROP; -A B -j C", build},
		"empty":                         {first, true, ":C - [0:0]; -A B -j C", build},
		"no hook":                       {first, true, own, "-I B -j C"},
		"behind":                        {first, true, own + "-A B -j X; -A B -j C", "-D B -j C; -I B -j C"},
		"twice":                         {last, true, own + "-A B -j C; -A B -j C", "-D B -j C; -D B -j C; -I B -j C"},
		"old hook":                      {first, true, own + "-A B -o k -j C", "-D B -o k -j C; -I B -j C"},
		"a chain that ends alike":       {first, false, "-A B -j XC", ""},
		"unwanted":                      {first, false, own + "-A B -j C; -A B -j X", "-D B -j C; -F C; -X C"},
		"unwanted, empty":               {first, false, ":C - [0:0]", "-F C; -X C"},
		"unwanted, and not there":       {first, false, "-A B -j X", ""},
		"unwanted, an empty table":      {first, false, "", ""},
		"a policy came later":           {last, true, own + ":P - [0:0]; -A B -j C; -A B -j P", "-D B -j C; -A B -j C"},
		"a drop of some came later":     {last, true, own + "-A B -j C; -A B -o weave -j DROP", "-D B -j C; -A B -j C"},
		"behind a reject":               {last, true, own + "-A B -j REJECT; -A B -j C", "-D B -j C; -I B -j C"},
		"between policy and reject": {last, true, own + "-A B -j P; -A B -j REJECT; -A B -j C",
			"-D B -j C; -I B 2 -j C"},
		"before a reject":         {last, true, own + "-A B -j P; -A B -j C; -A B -j REJECT", ""},
		"a policy after a reject": {last, true, own + ":P - [0:0]; -A B -j C; -A B -j REJECT; -A B -j P", ""},
	} {
		got := c.chain.restoreCommands(c.wanted, rulesOf(t, c.found))
		if got := strings.Join(got, "; "); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if got := strings.Join(first.restoreCommands(true, nil), "; "); got != build+"; -I B -j C" {
		t.Errorf("without the table: %q", got)
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
			t.Errorf("IPv%d: rules\n%s\nwant\n%s", IPVersion(family), got, want)
		}
	}
}

// Each hook is in the builtin chain that its table has, and jumps to its chain.
func TestWantedChains(t *testing.T) {
	for _, family := range families {
		var got []string
		for _, c := range wantedChains("k", twoMeshes, family, false) {
			for _, hook := range c.hooks {
				got = append(got, c.table+" "+builtin(hook))
				if others, hooks := c.divideBuiltin(rulesOf(t, hook), hook); len(others) != 0 || len(hooks) != 1 {
					t.Errorf("IPv%d: hook %q is not one of chain %s", IPVersion(family), hook, c.name)
				}
			}
			if strings.HasPrefix(c.name, "KUBELINK-") {
				t.Errorf("a router of the former system flushes chain %s", c.name)
			}
			if c.optional != (c.name == "KLINK-MSS" || c.name == unusedName || c.name == "KLINK-ROUTING") {
				t.Errorf("IPv%d: chain %s: a mesh does without it: %t", IPVersion(family), c.name, c.optional)
			}
		}
		want := []string{"nat POSTROUTING", "nat PREROUTING", "nat OUTPUT", "nat POSTROUTING", "nat POSTROUTING",
			"mangle PREROUTING", "filter FORWARD", "filter FORWARD", "filter INPUT", "filter OUTPUT", "mangle FORWARD",
			"filter FORWARD", "filter OUTPUT", "mangle INPUT", "mangle OUTPUT"}
		if family == unix.AF_INET6 {
			want = append(want, "mangle PREROUTING")
		}
		if !slices.Equal(got, want) {
			t.Errorf("IPv%d: chains in %q, want %q", IPVersion(family), got, want)
		}
	}
}

// What links send and what leaves by another device has the address of that device, where Masquerade says so.
func TestMasquerade(t *testing.T) {
	s := oneMesh
	if c := masqueradeChain("kubelink", s, unix.AF_INET); !c.unwanted {
		t.Error("the chain is wanted without Masquerade")
	}
	s.Masquerade = true
	c := masqueradeChain("kubelink", s, unix.AF_INET)
	want := []string{"-A KLINK-MASQUERADE -o kubelink -j RETURN", "-A KLINK-MASQUERADE -o klvxlan-gw -j RETURN"}
	for _, r := range longestFirst(s.Routes) {
		want = append(want, "-A KLINK-MASQUERADE -s "+r.Destination.String()+" -j MASQUERADE")
	}
	if c.unwanted || !slices.Equal(c.rules, want) {
		t.Errorf("rules %q, want %q", c.rules, want)
	}
}

// The chain about routing headers comes before the guard, also when one of the hooks was lost.
func TestOrderOfHooks(t *testing.T) {
	routing, guard := sourceRouteChain("k", State{Firewall: &Firewall{}}), guardChain("k", State{}, unix.AF_INET6, false)
	for _, c := range []struct {
		chain chain
		found string
		want  string // the command that hooks the chain
	}{
		{guard, routing.hooks[0] + "; -A PREROUTING -j X", "-I PREROUTING 2 "},
		{guard, routing.hooks[0] + "; " + guard.hooks[0], ""},
		{guard, "-A PREROUTING -j X", "-I PREROUTING -i"},
		{routing, guard.hooks[0] + "; " + routing.hooks[0], "-I PREROUTING -i"},
		{routing, routing.hooks[0] + "; " + guard.hooks[0], ""},
		{routing, guard.hooks[0], "-I PREROUTING -i"},
	} {
		got := ""
		for _, command := range c.chain.restoreCommands(true, rulesOf(t, c.found)) {
			if strings.HasPrefix(command, "-I ") || strings.HasSuffix(command, " -j "+c.chain.name) && command[:2] == "-A" {
				got = command
			}
		}
		if !strings.HasPrefix(got, c.want) || (got == "") != (c.want == "") {
			t.Errorf("%s, with %s: %q, want %q", c.chain.name, c.found, got, c.want)
		}
	}
}
