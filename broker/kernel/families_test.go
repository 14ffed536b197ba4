package kernel

// What happens where a part of the kernel or of iptables is missing, fails or does not end, in a real network
// namespace: the other parts are set, and nothing is taken for empty that could not be read.

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fakeCommands puts scripts into PATH until the test ends, in place of commands of the back end nft. In a script, REAL
// is the command itself.
func fakeCommands(t *testing.T, scripts map[string]string) {
	t.Helper()
	dir := t.TempDir()
	for name, script := range scripts {
		name = strings.Replace(name, "tables", "tables-nft", 1)
		program, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		script = "#!/bin/sh\n" + strings.ReplaceAll(script, "REAL", program) + "\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// wantErrors checks that an error is there and has these texts, or that there is none.
func wantErrors(t *testing.T, when string, err error, texts ...string) {
	t.Helper()
	if len(texts) == 0 && err != nil {
		t.Errorf("%s: error %v, want none", when, err)
	}
	for _, text := range texts {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: error %v, want %q", when, err, text)
		}
	}
	if err != nil && len(err.Error()) > 1024 {
		t.Errorf("%s: the error has %d bytes", when, len(err.Error()))
	}
}

// A rule that was made with nft in a table of iptables, which iptables cannot read then: the error names the chain and
// what to do, nothing piles up, the other tables are set, and Clear removes what it can.
func TestNativeRule(t *testing.T) {
	for _, c := range []struct {
		name, table, builtin, rule string
		chains                     []string // of ours in the table
		stays                      bool     // iptables cannot even delete rules behind this one
	}{
		{"numgen", "nat", "POSTROUTING", "numgen random mod 2 == 0 counter",
			[]string{"KLINK-POSTROUTING"}, true},
		{"map", "filter", "FORWARD", "ct state vmap { established : accept, invalid : drop }",
			[]string{"KLINK-FORWARD"}, false},
		{"reject", "filter", "FORWARD", "ip saddr 1.2.3.4 reject with icmp type host-prohibited",
			[]string{"KLINK-FORWARD"}, false},
		{"MSS", "mangle", "FORWARD", "tcp option maxseg size set rt mtu",
			[]string{"KLINK-LOCAL", "KLINK-MSS"}, false},
	} {
		prepare := func(t *testing.T) (*Kernel, *counted) {
			tun(t, "kubelink")
			run(t, fmt.Sprintf("iptables -t %s -A %s -m comment --comment foreign -j ACCEPT", c.table, c.builtin))
			return open(t, config)
		}
		insert := func(t *testing.T) { run(t, fmt.Sprintf("nft insert rule ip %s %s %s", c.table, c.builtin, c.rule)) }
		list := func(t *testing.T) string { return run(t, "nft list table ip "+c.table) }
		texts := []string{"table " + c.table + ": it has a rule that was made with nft",
			"move that rule to a table of its own"}
		for _, name := range c.chains {
			texts = append(texts, "chain "+name+" of IPv4: ")
		}
		inNamespace(t, c.name+" later", func(t *testing.T) {
			k, w := prepare(t)
			set(t, k, oneMesh)
			insert(t)
			before := list(t)
			for i := range 4 {
				w.writes = 0
				wantErrors(t, fmt.Sprintf("Set %d", i), errors.Join(k.Set(oneMesh), k.Warning()), texts...)
				if w.writes > 0 || list(t) != before {
					t.Fatalf("Set %d writes:\n%s", i, list(t))
				}
			}
			if now := run(t, "ip route show proto 107"); !strings.Contains(now, "100.64.32.0/20 via 192.0.0.8 dev kubelink") {
				t.Errorf("routes are gone:\n%s", now)
			}
			err := k.Clear()
			left := list(t)
			if c.stays {
				wantErrors(t, "Clear", err, texts...)
				wantErrors(t, "Clear", err, "until then the chain stays, without rules")
				if strings.Contains(left, "snat") {
					t.Errorf("Clear left\n%s", left)
				}
				run(t, fmt.Sprintf("nft flush chain ip %s %s", c.table, c.builtin))
			} else if wantErrors(t, "Clear", err); strings.Contains(left, "KLINK") {
				t.Errorf("Clear left\n%s", left)
			}
			wantErrors(t, "Clear, repeated", k.Clear())
			if left := list(t); strings.Contains(left, "KLINK") || !strings.Contains(left+c.rule, strings.Fields(c.rule)[0]) {
				t.Errorf("Clear left\n%s", left)
			}
			if now := run(t, "ip route show proto 107"); now != "" {
				t.Errorf("Clear left routes:\n%s", now)
			}
		})
		inNamespace(t, c.name+" first", func(t *testing.T) {
			k, _ := prepare(t)
			insert(t)
			before := list(t)
			for i := range 2 {
				wantErrors(t, fmt.Sprintf("Set %d", i), errors.Join(k.Set(oneMesh), k.Warning()), texts...)
			}
			if now := list(t); now != before {
				t.Errorf("Set made\n%s\nof\n%s", now, before)
			}
			for _, other := range []string{"nat", "filter", "mangle"} {
				if other != c.table && !strings.Contains(run(t, "iptables -t "+other+" -S"), "KLINK") {
					t.Errorf("table %s is not set", other)
				}
			}
			wantErrors(t, "Clear", k.Clear())
			run(t, fmt.Sprintf("nft flush chain ip %s %s", c.table, c.builtin))
			set(t, k, oneMesh)
		})
	}
}

// ip6tables fails in each way that it has on a node without IPv6: no mesh wants it, and IPv4 works without an error.
// Where a mesh wants IPv6, the error says so, IPv4 works, and IPv6 as soon as it can.
func TestFamiliesAreIndependent(t *testing.T) {
	for name, script := range map[string]string{
		"legacy, ipv6.disable=1": `echo "ip6tables v1.8.9 (legacy): can't initialize ip6tables table 'nat': ` +
			`Address family not supported by protocol" >&2; exit 3`,
		"no module":       `echo "modprobe: FATAL: Module ip6_tables not found" >&2; exit 1`,
		"not executable":  `exit 126`,
		"killed":          `kill -9 $$`,
		"prints a notice": `echo "ip6tables is not supported here"; exit 0`,
		"half an answer":  `echo "*nat"; echo ":POSTROUTING ACCEPT [0:0]"; exit 0`,
	} {
		inNamespace(t, name, func(t *testing.T) {
			tun(t, "kubelink")
			path := os.Getenv("PATH")
			fakeCommands(t, map[string]string{"ip6tables-save": script, "ip6tables-restore": script, "ip6tables": script})
			k, w := open(t, config)
			for range 2 {
				w.writes = 0
				set(t, k, oneMesh)
				wantErrors(t, "warning", k.Warning())
			}
			if w.writes > 0 {
				t.Errorf("%d writes where all is right", w.writes)
			}
			err := k.Set(twoMeshes)
			wantErrors(t, "with IPv6", err, "chain KLINK-POSTROUTING of IPv6: table nat: ",
				"2 new routes of IPv6 are not set: there is no source NAT for them")
			if strings.Contains(err.Error(), "IPv4") {
				t.Errorf("error %v is about IPv4", err)
			}
			if now := run(t, "ip route show proto 107"); !strings.Contains(now, "10.99.0.0/16 via 192.0.0.8 dev kubelink") {
				t.Errorf("IPv4 is not set:\n%s", now)
			}
			wantErrors(t, "without IPv6 again", k.Set(oneMesh))
			t.Setenv("PATH", path)
			set(t, k, twoMeshes)
			if now := run(t, "ip6tables -t nat -S"); !strings.Contains(now, "--to-source fd00:99::1") {
				t.Errorf("IPv6 is not set:\n%s", now)
			}
		})
	}
}

// A version that lacks what this package needs is named; another failure with the same status is not blamed on it.
func TestOldVersion(t *testing.T) {
	for version, want := range map[string]string{
		"v1.6.1":             "iptables-nft-restore (iptables 1.6.1 is too old: install 1.6.2 or newer): exit status 2",
		"v1.6.2":             "iptables-nft-restore: exit status 2",
		"v1.8.9 (nf_tables)": "iptables-nft-restore: exit status 2",
		"none of yours":      "iptables-nft-restore: exit status 2",
	} {
		inNamespace(t, version, func(t *testing.T) {
			tun(t, "kubelink")
			fakeCommands(t, map[string]string{
				"iptables-restore": `echo "unrecognized option '--wait'" >&2; exit 2`,
				"iptables":         `echo "iptables ` + version + `"`,
			})
			k, _ := open(t, config)
			wantErrors(t, version, k.Set(oneMesh), want)
		})
	}
}

// What was set is not forgotten because it cannot be read for a time: the error stays until it is removed.
func TestRemovalIsTriedAgain(t *testing.T) {
	enter(t)
	tun(t, "kubelink")
	k, _ := open(t, config)
	set(t, k, twoMeshes)
	path := os.Getenv("PATH")
	fakeCommands(t, map[string]string{"ip6tables-save": "exit 4", "ip6tables-restore": "exit 4"})
	for range 2 {
		wantErrors(t, "while ip6tables fails", k.Set(oneMesh),
			"chain KLINK-POSTROUTING of IPv6", "chain KLINK-LOCAL of IPv6")
	}
	t.Setenv("PATH", path)
	wantErrors(t, "later", k.Set(oneMesh))
	if now := run(t, "ip6tables-save"); strings.Contains(now, "KLINK") {
		t.Errorf("left\n%s", now)
	}
}

// The kernel has no rules of a family that it lacks, and says so. AF_SMC stands for IPv6 here: no kernel has routing
// rules for it.
func TestKernelWithoutFamily(t *testing.T) {
	enter(t)
	k, _ := open(t, config)
	o := &objects{}
	if err := k.system.(*counted).system.(*linux).dumpRules(unix.AF_SMC, o); !errors.Is(err, unix.EAFNOSUPPORT) {
		t.Errorf("error %v, want %v", err, unix.EAFNOSUPPORT)
	}
	f := newFake()
	f.failed = map[int]error{unix.AF_INET6: fmt.Errorf("rules: %w", unix.EAFNOSUPPORT)}
	k = newKernel(table, f, []string{""})
	wantErrors(t, "nobody wants IPv6", k.Set(oneMesh))
	if len(f.routes) != 3 || len(f.addresses) != 1 || len(f.rules) != 1 {
		t.Errorf("IPv4 is not set:\n%s", f)
	}
	wantErrors(t, "IPv6 is wanted", k.Set(twoMeshes),
		"read the network state of IPv6: rules: address family not supported by protocol")
	if len(f.routes) != 5 || len(f.addresses) != 2 {
		t.Errorf("IPv4 is not set, or IPv6 is:\n%s", f)
	}
	wantErrors(t, "Clear", k.Clear())
	// Another error is no lack of the family: what a killed broker left may be there.
	f.failed[unix.AF_INET6] = unix.EPERM
	wantErrors(t, "not permitted", k.Set(oneMesh), "read the network state of IPv6: operation not permitted")
}

// One table cannot be read: the rest is set.
func TestTablesAreIndependent(t *testing.T) {
	for table, want := range map[string][]string{
		"nat":    {"chain KLINK-POSTROUTING of IPv4: table nat: ", "3 new routes of IPv4 are not set"},
		"filter": {"chain KLINK-FORWARD of IPv4: table filter: "},
		"mangle": {"chain KLINK-LOCAL of IPv4: table mangle: ", "chain KLINK-MSS of IPv4: table mangle: "},
	} {
		inNamespace(t, table, func(t *testing.T) {
			tun(t, "kubelink")
			path := os.Getenv("PATH")
			fakeCommands(t, map[string]string{"iptables-save": `case "$*" in
				-c|*` + table + `*) echo "iptables-save: can't initialize table ` + table + `" >&2; exit 3;;
				esac
				exec REAL "$@"`})
			k, _ := open(t, config)
			for range 2 {
				wantErrors(t, "Set", errors.Join(k.Set(oneMesh), k.Warning()),
					append(want, "iptables-nft-save: exit status 3: iptables-save: can't initialize table "+table)...)
			}
			t.Setenv("PATH", path)
			for _, other := range []string{"nat", "filter", "mangle"} {
				if has := strings.Contains(run(t, "iptables -t "+other+" -S"), "KLINK"); has == (other == table) {
					t.Errorf("table %s has chains of ours: %t", other, has)
				}
			}
			set(t, k, oneMesh)
		})
	}
}

// A command that never ends costs the time of one Set, whichever it is, and is named. What it has started ends, too.
func TestCommandsThatDoNotEnd(t *testing.T) {
	for _, name := range []string{"iptables-nft-save", "iptables-nft-restore"} {
		inNamespace(t, name, func(t *testing.T) {
			tun(t, "kubelink")
			path := os.Getenv("PATH")
			pids := filepath.Join(t.TempDir(), "pids")
			script := "sleep 1000 & echo $! >> " + pids + "; wait"
			fakeCommands(t, map[string]string{strings.Replace(name, "-nft", "", 1): script})
			k, _ := open(t, config)
			k.commandTime = time.Second
			began := time.Now()
			wantErrors(t, "Set", k.Set(oneMesh), name+" does not end: something on the node may hold the xtables lock")
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("Set took %s", took)
			}
			list, err := os.ReadFile(pids)
			if err != nil {
				t.Fatal(err)
			}
			for _, pid := range strings.Fields(string(list)) {
				within(t, "process "+pid+" to end", func() bool {
					stat, err := os.ReadFile("/proc/" + pid + "/stat")
					return err != nil || strings.Contains(string(stat), ") Z ")
				})
			}
			k.commandTime = commandTime
			t.Setenv("PATH", path)
			set(t, k, oneMesh)
		})
	}
}

func within(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited 10 s for %s", what)
		}
	}
}

// Another program holds the xtables lock: nothing waits where all is right, and a change waits once, not once for each
// chain.
func TestLock(t *testing.T) {
	enter(t)
	useLegacy(t)
	tun(t, "kubelink")
	k, _ := open(t, config)
	k.commandTime = 3 * time.Second
	set(t, k, oneMesh)

	file, err := os.OpenFile(os.Getenv("XTABLES_LOCKFILE"), os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	wantErrors(t, "nothing to do", k.Set(oneMesh))
	began := time.Now()
	wantErrors(t, "a change of both families", k.Set(twoMeshes), "xtables lock")
	if took := time.Since(began); took < time.Second || took > 6*time.Second {
		t.Errorf("Set took %s, though it has %s", took, k.commandTime)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	set(t, k, twoMeshes)
}

// One look at a family is one command.
func TestOneCommandPerFamily(t *testing.T) {
	enter(t)
	tun(t, "kubelink")
	calls := filepath.Join(t.TempDir(), "calls")
	scripts := map[string]string{}
	for _, name := range []string{"iptables", "iptables-save", "iptables-restore",
		"ip6tables", "ip6tables-save", "ip6tables-restore"} {
		scripts[name] = "echo " + name + " \"$@\" >> " + calls + "; exec REAL \"$@\""
	}
	fakeCommands(t, scripts)
	k, _ := open(t, config)
	set(t, k, twoMeshes)
	if err := os.Remove(calls); err != nil {
		t.Fatal(err)
	}
	set(t, k, twoMeshes)
	if list, err := os.ReadFile(calls); err != nil || string(list) != "iptables-save -c\nip6tables-save -c\n" {
		t.Errorf("%v; commands of a Set that finds all as it should be:\n%s", err, list)
	}
}

// Chains of earlier versions go, when their successors are there; chains of a former router with such names stay.
func TestPredecessors(t *testing.T) {
	const ours = `
		iptables -t nat -N KUBELINK-POSTROUTING
		iptables -t nat -A KUBELINK-POSTROUTING -s 192.168.0.0/24 -d 100.64.16.0/20 -o old -j ACCEPT
		iptables -t nat -A KUBELINK-POSTROUTING -d 100.64.16.0/20 -o old -j SNAT --to-source 192.168.0.9
		iptables -t nat -I POSTROUTING -o old -m comment --comment kubelink -j KUBELINK-POSTROUTING
		iptables -N KUBELINK-FORWARD
		iptables -A KUBELINK-FORWARD -i old -j ACCEPT
		iptables -A KUBELINK-FORWARD -o old -j ACCEPT
		iptables -A FORWARD -m comment --comment kubelink -j KUBELINK-FORWARD
		iptables -t mangle -N KUBELINK-MSS
		iptables -t mangle -A KUBELINK-MSS -i old -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
		iptables -t mangle -I FORWARD -m comment --comment kubelink -j KUBELINK-MSS`
	const router = `
		iptables -t nat -N KUBELINK-NAT
		iptables -t nat -A KUBELINK-NAT -j RETURN
		iptables -t nat -A POSTROUTING -j KUBELINK-NAT
		iptables -t mangle -N KUBELINK-LINKS
		iptables -t mangle -A PREROUTING -j KUBELINK-LINKS`
	for _, c := range []struct{ name, found, stays string }{
		{"ours", ours, ""},
		{"those of a router beside ours", ours + router, router},
		{"ours, flushed by a router", ours + "\niptables -t nat -F KUBELINK-POSTROUTING", ""},
		{"a router's chain with such a name", `
			iptables -N KUBELINK-FORWARD
			iptables -A KUBELINK-FORWARD -j DROP
			iptables -A FORWARD -s 10.66.0.0/16 -j KUBELINK-FORWARD`, `
			iptables -N KUBELINK-FORWARD
			iptables -A KUBELINK-FORWARD -j DROP
			iptables -A FORWARD -s 10.66.0.0/16 -j KUBELINK-FORWARD`},
		{"an empty one without our hook", "iptables -t nat -N KUBELINK-POSTROUTING",
			"iptables -t nat -N KUBELINK-POSTROUTING"},
	} {
		// What Set makes where only what stays is there, and what it makes where all of it is there.
		var states [2]string
		inNamespace(t, c.name, func(t *testing.T) {
			for i, found := range []string{c.stays, c.found} {
				run(t, `iptables -F
					iptables -X
					iptables -t nat -F
					iptables -t nat -X
					iptables -t mangle -F
					iptables -t mangle -X`)
				device := tun(t, "kubelink")
				run(t, found)
				k, _ := open(t, config)
				set(t, k, oneMesh)
				states[i] = run(t, "iptables -S\niptables -t nat -S\niptables -t mangle -S")
				wantErrors(t, "Clear", k.Clear())
				if now := run(t, "iptables-save"); strings.Contains(now, "KLINK") || strings.Contains(now, "comment kubelink") {
					t.Errorf("Clear left\n%s", now)
				}
				device.Close()
			}
			if states[0] != states[1] {
				t.Errorf("has\n%s\nwant\n%s", states[1], states[0])
			}
		})
	}
}

// A native rule in a table without chains of ours, or one that cannot be read, concerns nothing of ours.
func TestOtherTables(t *testing.T) {
	enter(t)
	tun(t, "kubelink")
	run(t, `iptables -t raw -A PREROUTING -s 10.66.0.0/16 -j ACCEPT
		nft insert rule ip raw PREROUTING numgen random mod 2 == 0 counter`)
	k, w := open(t, config)
	set(t, k, oneMesh)
	wantErrors(t, "warning", k.Warning())
	fakeCommands(t, map[string]string{"iptables-save": `[ "$*" = -c ] && {
		echo "iptables-save: can't initialize table security" >&2; exit 3; }
		exec REAL "$@"`})
	w.writes = 0
	set(t, k, oneMesh)
	if w.writes > 0 {
		t.Errorf("%d writes where all is right", w.writes)
	}
}

// A kernel without xt_addrtype cannot guard the node: the error says what that means and what to do, all else is set.
func TestNoAddrtype(t *testing.T) {
	enter(t)
	tun(t, "kubelink")
	path := os.Getenv("PATH")
	fakeCommands(t, map[string]string{"iptables-restore": `input=$(cat)
		line=$(echo "$input" | grep -n addrtype | head -1 | cut -d: -f1)
		[ "$line" ] && { echo "line $line: RULE_APPEND failed (No such file or directory)" >&2; exit 1; }
		echo "$input" | exec REAL "$@"`})
	k, _ := open(t, config)
	wantErrors(t, "Set", k.Set(oneMesh), "chain KLINK-LOCAL of IPv4: iptables-nft-restore: exit status 1: ",
		"No such file or directory); linked clusters may reach ports of this node; "+
			"it needs the kernel module xt_addrtype (")
	now := run(t, "iptables-save\nip route show proto 107")
	for _, want := range []string{"-j KLINK-POSTROUTING", "-j KLINK-FORWARD", "-j KLINK-MSS", "100.64.32.0/20 via"} {
		if !strings.Contains(now, want) {
			t.Errorf("misses %q:\n%s", want, now)
		}
	}
	wantErrors(t, "warning", k.Warning())
	t.Setenv("PATH", path)
	set(t, k, oneMesh)
}

// IPv6 is switched off for the device: what cannot be set is named, and IPv4 works.
func TestDisabledIPv6(t *testing.T) {
	enter(t)
	tun(t, "kubelink")
	run(t, "sysctl -qw net.ipv6.conf.kubelink.disable_ipv6=1")
	k, _ := open(t, config)
	set(t, k, oneMesh)
	set(t, k, State{})
	wantErrors(t, "Set", k.Set(twoMeshes), "ip addr add fd00:99::1/128 dev kubelink noprefixroute: permission denied")
	if now := run(t, "ip route show proto 107"); strings.Count(now, "\n") != 5 {
		t.Errorf("routes of IPv4:\n%s", now)
	}
	run(t, "sysctl -qw net.ipv6.conf.kubelink.disable_ipv6=0")
	set(t, k, twoMeshes)
}

// makeSettingsReadOnly makes /proc/sys read-only for the calling thread, in a mount namespace of its own.
func makeSettingsReadOnly(t *testing.T) {
	t.Helper()
	if err := errors.Join(unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS),
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""),
		unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")); err != nil {
		t.Fatal(err)
	}
}

// The files of settings are read-only, as in a container without privileges: rtnetlink sets forwarding of IPv4. For
// IPv6 there is a warning with the remedy, which goes when that is done.
func TestReadOnlySettings(t *testing.T) {
	enter(t)
	tun(t, "kubelink")
	run(t, `sysctl -qw net.ipv4.ip_forward=0
		sysctl -qw net.ipv6.conf.all.forwarding=0`)
	makeSettingsReadOnly(t)
	k, _ := open(t, config)
	set(t, k, oneMesh)
	wantErrors(t, "IPv4", k.Warning())
	if value := run(t, "sysctl -n net.ipv4.conf.kubelink.forwarding"); value != "1\n" {
		t.Errorf("forwarding is %q", value)
	}
	set(t, k, twoMeshes)
	wantErrors(t, "IPv6", k.Warning(), "sysctl net.ipv6.conf.kubelink.forwarding=1: open ",
		"read-only file system: run sysctl -w net.ipv6.conf.all.forwarding=1 on the node")
	if err := unix.Unmount("/proc/sys", 0); err != nil {
		t.Fatal(err)
	}
	run(t, "sysctl -qw net.ipv6.conf.all.forwarding=1")
	set(t, k, twoMeshes)
	wantErrors(t, "after the remedy", k.Warning())
}

// A command of a family that is not in use hangs: the other one is set before, and the next Set does not wait for it.
func TestUnusedFamilyHangs(t *testing.T) {
	enter(t)
	tun(t, "kubelink")
	dir := t.TempDir()
	fakeCommands(t, map[string]string{
		"ip6tables-save": "echo $$ > " + dir + "/pid; ip route show proto 107 > " + dir + "/routes; exec sleep 1000"})
	k, _ := open(t, config)
	began := time.Now()
	wantErrors(t, "first", k.Set(oneMesh))
	if took := time.Since(began); took > commandTime {
		t.Errorf("the first Set took %s", took)
	}
	routes, err := os.ReadFile(dir + "/routes")
	if err != nil || !strings.Contains(string(routes), "100.64.32.0/20 via 192.0.0.8 dev kubelink") {
		t.Errorf("routes when ip6tables began: %v\n%s", err, routes)
	}
	if err := os.Remove(dir + "/pid"); err != nil {
		t.Fatal(err)
	}
	wantErrors(t, "second", k.Set(oneMesh))
	if _, err := os.Stat(dir + "/pid"); err == nil {
		t.Error("the second Set waits for ip6tables, too")
	}
}

// With the rules of 1000 services a look at the tables takes about as long as iptables-save does.
func TestManyForeignRules(t *testing.T) {
	enter(t)
	tun(t, "kubelink")
	var rules strings.Builder
	rules.WriteString("*nat\n:KUBE-SERVICES - [0:0]\n")
	const services = 1000
	for i := range services {
		address := fmt.Sprintf("10.96.%d.%d", i/250, i%250)
		fmt.Fprintf(&rules, ":KUBE-SVC-%d - [0:0]\n:KUBE-SEP-%[1]d - [0:0]\n", i)
		fmt.Fprintf(&rules, "-A KUBE-SERVICES -d %s/32 -p tcp -m comment --comment \"ns/service-%d:http cluster IP\" "+
			"-m tcp --dport 80 -j KUBE-SVC-%[2]d\n", address, i)
		fmt.Fprintf(&rules, "-A KUBE-SVC-%d -m comment --comment \"ns/service:http -> 10.0.0.1:80\" -j KUBE-SEP-%[1]d\n", i)
		fmt.Fprintf(&rules, "-A KUBE-SEP-%d -p tcp -m tcp -j DNAT --to-destination 10.0.0.1:80\n", i)
	}
	rules.WriteString("-A PREROUTING -j KUBE-SERVICES\nCOMMIT\n")
	restore := exec.Command("iptables-restore", "--noflush")
	restore.Stdin = strings.NewReader(rules.String())
	if out, err := restore.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	k, w := open(t, config)
	set(t, k, oneMesh)
	// The least of several times that programs had of processors: others run on this machine.
	const tries = 5
	var save, look time.Duration
	for i := range tries {
		before := processorTime(t)
		run(t, "iptables-save -c")
		saved := processorTime(t)
		w.writes = 0
		set(t, k, oneMesh)
		took, tookSet := saved-before, processorTime(t)-saved
		if i == 0 || took < save {
			save = took
		}
		if i == 0 || tookSet < look {
			look = tookSet
		}
	}
	t.Logf("iptables-save takes %s, Set %s", save, look)
	if w.writes > 0 || look > 3*save+100*time.Millisecond {
		t.Errorf("iptables-save takes %s, Set %s, with %d writes", save, look, w.writes)
	}
}
