package kernel

// What Set does, as text: a fake system that keeps its state in the form that ip and iptables
// print, and a table of transitions whose operations and results are in testdata/transitions.txt
// (go test -run Transitions -update writes it; read the difference).

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

var update = flag.Bool("update", false, "write testdata/transitions.txt")

// fake is a kernel with the devices eth0 (index 2) and, if link says so, kubelink (3). A killed
// broker left the device old (4), another process holds the device open (5).
type fake struct {
	objects
	chains   map[string][]string // by "family table chain"
	log      []string
	dumps    int
	saves    int
	fails    string            // commands that contain it
	missing6 bool              // ip6tables is not installed
	unread   map[string]string // what iptables-save prints in place of a table, by "family table"; empty: exit status 1
}

func newFake() *fake {
	f := &fake{objects: objects{link: link{3, 1420, false}}, chains: map[string][]string{}, unread: map[string]string{}}
	for _, v := range families {
		f.chains[key(v, "nat", "POSTROUTING")] = []string{"-A POSTROUTING -j KUBE-POSTROUTING"}
		f.chains[key(v, "filter", "FORWARD")] = []string{"-A FORWARD -j KUBE-FORWARD"}
		f.chains[key(v, "mangle", "FORWARD")] = []string{"-A FORWARD -j cali-FORWARD"}
		f.chains[key(v, "mangle", "PREROUTING")] = []string{"-A PREROUTING -j cali-PREROUTING"}
	}
	return f
}

func key(family int, table, chain string) string {
	return fmt.Sprintf("IPv%d %s %s", IPVersion(family), table, chain)
}

func (f *fake) DeviceName(index int) string {
	return map[int]string{2: "eth0", 3: "kubelink", 4: "old", 5: "open"}[index]
}

func (f *fake) IsIdleTUN(index int) bool { return index == 4 }

func (f *fake) Dump(_, _ string) *objects {
	f.dumps++
	d := f.objects
	d.forwarding = slices.Clone(d.forwarding)
	d.addresses, d.routes, d.rules = slices.Clone(d.addresses), slices.Clone(d.routes), slices.Clone(d.rules)
	for family := range d.failed {
		d.omitFamily(family)
	}
	return &d
}

func (f *fake) Change(verb string, object any) error {
	text := ipCommand(verb, object, f.DeviceName)
	if f.fails != "" && strings.Contains(text, f.fails) {
		return errors.New("no such luck")
	}
	f.log = append(f.log, text)
	var err error
	switch o := object.(type) {
	case link:
		if verb == "del" {
			f.routes = slices.DeleteFunc(f.routes, func(r route) bool { return r.Index == o.Index })
		} else {
			f.link = o
		}
	case forwarding:
		f.forwarding = append(f.forwarding, o)
	case address:
		f.addresses, err = changed(f.addresses, verb, o, func(x address) bool { return x == o })
	case route:
		f.routes, err = changed(f.routes, verb, o, func(x route) bool { return x.key() == o.key() && x.Metric == o.Metric })
	case rule:
		f.rules, err = changed(f.rules, verb, o, func(x rule) bool { x.Protocol = o.Protocol; return x == o })
	}
	return err
}

func changed[T any](list []T, verb string, object T, same func(T) bool) ([]T, error) {
	at := slices.IndexFunc(list, same)
	switch {
	case verb == "add" && at >= 0:
		return list, unix.EEXIST
	case verb == "del" && at < 0:
		return list, unix.ESRCH
	case verb == "del":
		return slices.Delete(list, at, at+1), nil
	case at >= 0:
		list[at] = object
		return list, nil
	}
	return append(list, object), nil
}

func (f *fake) SaveTables(_ context.Context, tools toolset, table string) (string, error) {
	family := tools.family
	f.saves++
	if f.missing6 && family == unix.AF_INET6 {
		return "", &exec.Error{Name: "ip6tables-save", Err: exec.ErrNotFound}
	}
	var out strings.Builder
	for _, t := range []string{"nat", "filter", "mangle"} {
		text, unread := f.unread[fmt.Sprintf("IPv%d %s", IPVersion(family), t)]
		if (table == "" || table == t) && unread {
			if text == "" {
				return "", errors.New("no such luck")
			}
			out.WriteString(text)
			continue
		}
		out.WriteString("*" + t + "\n")
		for name, rules := range f.chains {
			if chain, ok := strings.CutPrefix(name, key(family, t, "")); ok && (table == "" || table == t) {
				out.WriteString(":" + chain + " - [0:0]\n")
				for _, r := range rules {
					out.WriteString("[0:0] " + r + "\n")
				}
			}
		}
		out.WriteString("COMMIT\n")
	}
	return out.String(), nil
}

func (f *fake) RestoreTable(_ context.Context, tools toolset, table string, commands []string) error {
	family := tools.family
	if f.fails != "" && strings.Contains(fmt.Sprintf("IPv%d %s", IPVersion(family), table), f.fails) {
		return errors.New("no such luck")
	}
	for _, c := range commands {
		f.log = append(f.log, fmt.Sprintf("IPv%d %s: %s", IPVersion(family), table, c))
		words := strings.Fields(c)
		rule := "-A " + strings.Join(words[1:], " ")
		if chain, ok := strings.CutPrefix(words[0], ":"); ok {
			f.chains[key(family, table, chain)] = []string{}
			continue
		}
		at := key(family, table, words[1])
		switch words[0] {
		case "-A":
			f.chains[at] = append(f.chains[at], rule)
		case "-I":
			place := 1
			if n, err := strconv.Atoi(words[2]); err == nil {
				place, rule = n, "-A "+words[1]+" "+strings.Join(words[3:], " ")
			}
			f.chains[at] = slices.Insert(f.chains[at], place-1, rule)
		case "-D":
			i := slices.Index(f.chains[at], rule)
			if i < 0 {
				return errors.New("no such rule")
			}
			f.chains[at] = slices.Delete(f.chains[at], i, i+1)
		case "-F":
			f.chains[at] = []string{}
		case "-X":
			delete(f.chains, at)
		}
	}
	return nil
}

func (f *fake) String() string {
	var lines []string
	for _, a := range f.addresses {
		lines = append(lines, fmt.Sprintf("%s dev %s noprefixroute=%t", a.Prefix, f.DeviceName(a.Index), a.NoPrefixRoute))
	}
	for _, r := range f.routes {
		lines = append(lines, r.text(f.DeviceName))
	}
	for _, r := range f.rules {
		lines = append(lines, fmt.Sprintf("IPv%d rule priority %d table %d proto %d",
			IPVersion(r.Family), r.Priority, r.Table, r.Protocol))
	}
	slices.Sort(lines)
	if f.link.Index != 0 {
		first := fmt.Sprintf("%s mtu %d up=%t", f.DeviceName(f.link.Index), f.link.MTU, f.link.Up)
		for _, o := range f.forwarding {
			first += fmt.Sprintf(" forwards IPv%d", IPVersion(o.Family))
		}
		lines = append([]string{first}, lines...)
	}
	var names []string
	for name := range f.chains {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		for _, r := range f.chains[name] {
			family, rest, _ := strings.Cut(name, " ")
			table, _, _ := strings.Cut(rest, " ")
			lines = append(lines, family+" "+table+": "+r)
		}
	}
	return strings.Join(lines, "\n")
}

func addresses(prefixes ...string) (list []netip.Prefix) {
	for _, p := range prefixes {
		list = append(list, netip.MustParsePrefix(p))
	}
	return list
}

// routes are "destination source".
func routes(texts ...string) (list []mesh.Route) {
	for _, t := range texts {
		destination, source, _ := strings.Cut(t, " ")
		list = append(list, mesh.Route{Destination: netip.MustParsePrefix(destination), Source: netip.MustParseAddr(source)})
	}
	return list
}

var (
	oneMesh = State{Addresses: addresses("192.168.0.11/24"),
		Routes: routes("192.168.0.0/24 192.168.0.11", "100.64.16.0/20 192.168.0.11", "100.64.32.0/20 192.168.0.11")}
	oneLink = State{Addresses: oneMesh.Addresses, Routes: oneMesh.Routes[:2]}
	// The second mesh speaks IPv6 too, and has a network inside one of the first.
	twoMeshes = State{Addresses: append(addresses("10.99.0.1/16", "fd00:99::1/64"), oneMesh.Addresses...),
		Routes: append(routes("10.99.0.0/16 10.99.0.1", "100.64.16.128/25 10.99.0.1", "fd00:99::/64 fd00:99::1",
			"fd00:5::/48 fd00:99::1"), oneMesh.Routes...)}
	otherSource = State{Addresses: addresses("192.168.0.12/24"),
		Routes: routes("192.168.0.0/24 192.168.0.12", "100.64.16.0/20 192.168.0.12")}
	openPorts = State{Addresses: twoMeshes.Addresses, Routes: twoMeshes.Routes,
		LocalPorts:      []mesh.LocalPort{{Protocol: "tcp", Port: 53}, {Protocol: "udp", Port: 53}},
		ServiceNetworks: addresses("100.64.0.0/20", "fd00:64::/112")}
	config = Config{Device: "kubelink", MTU: 1500, Table: MainTable, RulePriority: 32750}
	table  = Config{Device: "kubelink", MTU: 1500, Table: 77, RulePriority: 32750}
)

func TestTransitions(t *testing.T) {
	f := newFake()
	k := newKernel(config, f, []string{""})
	restart := func(c Config) { k = newKernel(c, f, []string{""}) }
	prefix := netip.MustParsePrefix
	none := func() {}
	// left is a route of a killed broker.
	left := func(table int, destination string, device int) route {
		return route{Table: table, Destination: prefix(destination), Source: netip.MustParseAddr("192.168.0.11"),
			Index: device, Protocol: Protocol}
	}
	var out bytes.Buffer
	for _, step := range []struct {
		name   string
		before func()
		state  State
	}{
		{"nothing to nothing", none, State{}},
		{"one mesh", none, oneMesh},
		{"two meshes, nested networks, IPv6", none, twoMeshes},
		{"a mesh removed", none, oneMesh},
		{"a link removed", none, oneLink},
		{"another address", none, otherSource},
		{"the broker was killed: adopt, with a link more", func() { restart(config) }, oneMesh},
		{"and with another table", func() { restart(table) }, twoMeshes},
		{"another table again", func() { restart(Config{"kubelink", 1500, 1077, 32749}) }, twoMeshes},
		{"back to main", func() { restart(config) }, oneMesh},
		{"somebody moved in front of us, hooked twice, changed a chain", func() {
			post := key(unix.AF_INET, "nat", "POSTROUTING")
			f.chains[post] = append([]string{"-A POSTROUTING -j cali-POSTROUTING"}, f.chains[post]...)
			forward := key(unix.AF_INET, "filter", "FORWARD")
			f.chains[forward] = append(f.chains[forward], "-A FORWARD -j KLINK-FORWARD")
			own := key(unix.AF_INET, "nat", "KLINK-POSTROUTING")
			f.chains[own] = f.chains[own][1:]
			mangle := key(unix.AF_INET, "mangle", "FORWARD")
			f.chains[mangle] = append([]string{"-A FORWARD -j ACCEPT"}, f.chains[mangle]...)
			mss := key(unix.AF_INET, "mangle", "KLINK-MSS")
			f.chains[mss] = f.chains[mss][:1]
		}, oneMesh},
		{"the device was replaced", func() {
			f.link, f.forwarding, f.addresses, f.routes = link{3, 1500, false}, nil, nil, nil
		}, oneLink},
		{"no device", func() { f.link, f.forwarding, f.addresses, f.routes = link{}, nil, nil, nil }, oneMesh},
		{"the device is there, and things of others", func() {
			f.link = link{3, 1500, true}
			f.addresses = []address{{3, prefix("10.1.2.3/32"), false}, {3, prefix("fe80::1/64"), false}}
			f.routes = []route{
				{Table: 254, Destination: prefix("100.64.16.0/20"), Gateway: netip.MustParseAddr("10.250.0.1"), Index: 2,
					Metric: 100, Protocol: 4},
				{Table: 254, Destination: prefix("172.16.0.0/12"), Index: 3, Protocol: 3},
				{Table: 254, Destination: prefix("172.17.0.0/16"), Index: 2, Protocol: Protocol},
			}
			f.rules = []rule{{unix.AF_INET, 0, 255, 2}, {unix.AF_INET, 32766, 254, 2}, {unix.AF_INET, 32750, 77, 3}}
		}, oneMesh},
		{"a rule of somebody else will do", func() { restart(table) }, oneMesh},
		{"clear leaves what is not ours", none, State{}},
		{"one thing fails, the others go on", func() {
			restart(config)
			f.fails, f.missing6 = "100.64.32.0/20", true
		}, oneMesh},
		{"it works again", func() { f.fails = "" }, oneMesh},
		{"what cannot be", none, State{Addresses: oneMesh.Addresses, Routes: append(routes("fd00::/64 192.168.0.11",
			"100.64.32.1/20 192.168.0.9", "100.64.32.9/20 192.168.0.11"), oneLink.Routes...)}},
		{"without source NAT no new routes of IPv4, the others go on", func() {
			f.fails, f.missing6 = "IPv4 nat", false
			f.routes = f.routes[1:] // that of eth0
		}, State{Addresses: twoMeshes.Addresses, Routes: slices.Concat(twoMeshes.Routes[:5], twoMeshes.Routes[6:])}},
		{"nor where a killed broker had them on another device", func() {
			f.routes = append(f.routes,
				left(254, "100.64.16.0/20", 4),
				left(254, "100.64.48.0/20", 4))
		}, oneMesh},
		{"with it again", func() { f.fails = "" }, oneMesh},
		{"another address without it: the routes that are there move", func() { f.fails = "IPv4 nat" }, otherSource},
		{"a killed broker's device, one of others, and none", func() {
			f.fails = ""
			f.routes = append(f.routes[:1:1], // of others
				left(254, "100.64.16.0/20", 4),
				left(77, "100.64.16.0/20", 4),
				left(254, "100.64.32.0/20", 5),
				route{Table: 254, Destination: prefix("100.64.48.0/20"), Protocol: Protocol})
		}, oneMesh},
		{"clear without a device", func() {
			f.link, f.addresses = link{}, nil
			f.routes = slices.DeleteFunc(f.routes, func(r route) bool { return r.Index == 3 })
		}, State{}},
		{"a kernel without TCPMSS: the others go on", func() {
			f.link, f.routes, f.fails = link{3, 1500, true}, nil, "mangle"
		}, twoMeshes},
		{"it has it", func() { f.fails = "" }, twoMeshes},
		{"open ports, and service networks", none, openPorts},
		{"with IPVS", func() { f.ipvs = true }, openPorts},
		{"a network policy behind our hook, a REJECT before it", func() {
			for _, v := range families {
				forward := key(v, "filter", "FORWARD")
				f.chains[key(v, "filter", "KUBE-ROUTER-FORWARD")] = []string{}
				f.chains[forward] = slices.Insert(f.chains[forward], 1, "-A FORWARD -j REJECT --reject-with icmp-port-unreachable")
			}
			forward := key(unix.AF_INET6, "filter", "FORWARD")
			f.chains[forward] = []string{"-A FORWARD -m comment --comment kubelink -j KLINK-FORWARD",
				"-A FORWARD -j KUBE-ROUTER-FORWARD", "-A FORWARD -j DROP"}
		}, openPorts},
		{"iptables cannot read table nat of IPv4 and no table of IPv6: the others go on", func() {
			f.unread = map[string]string{"IPv4 nat": "# Table `nat' is incompatible, use 'nft' tool.\n",
				"IPv6 nat": "", "IPv6 filter": "", "IPv6 mangle": ""}
		}, State{Addresses: openPorts.Addresses, Routes: append(routes("10.9.0.0/16 192.168.0.11"), openPorts.Routes...)}},
		{"clear all the same, as far as it goes", none, State{}},
		{"clear", func() { f.unread = map[string]string{} }, State{}},
	} {
		step.before()
		f.log, f.dumps = nil, 0
		err := k.Set(step.state)
		fmt.Fprintf(&out, "## %s\n", step.name)
		for _, l := range f.log {
			fmt.Fprintf(&out, "    %s\n", l)
		}
		if err != nil {
			fmt.Fprintf(&out, "error:\n    %s\n", strings.ReplaceAll(err.Error(), "\n", "\n    "))
		}
		if err := k.Warning(); err != nil {
			fmt.Fprintf(&out, "warning:\n    %s\n", strings.ReplaceAll(err.Error(), "\n", "\n    "))
		}
		if strings.Contains(step.name, "others") || step.state.isEmpty() {
			fmt.Fprintf(&out, "state:\n    %s\n", strings.ReplaceAll(f.String(), "\n", "\n    "))
		}
		fmt.Fprintln(&out)
		if f.dumps != 1 {
			t.Errorf("%s: %d dumps", step.name, f.dumps)
		}
		f.log = nil
		if again := k.Set(step.state); fmt.Sprint(again) != fmt.Sprint(err) || len(f.log) > 0 {
			t.Errorf("%s: a second Set changed\n%s\nerror %v", step.name, strings.Join(f.log, "\n"), again)
		}
	}

	const file = "testdata/transitions.txt"
	if *update {
		if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(golden, out.Bytes()) {
		t.Errorf("differs from %s:\n%s", file, out.Bytes())
	}
}

// A status that wants the warning of the last Set does not wait for the one that runs: that one waits
// for the lock of xtables, up to 10 s for each command.
func TestWarningDoesNotWait(t *testing.T) {
	f := &waiting{fake: newFake(), entered: make(chan struct{}), leave: make(chan struct{})}
	k := newKernel(config, f, []string{""})
	done := make(chan error)
	go func() { done <- k.Set(oneMesh) }()
	<-f.entered
	if err := k.Warning(); err != nil {
		t.Errorf("warning %v, want none", err)
	}
	close(f.leave)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// waiting is a kernel whose first iptables-restore waits.
type waiting struct {
	*fake
	once           sync.Once
	entered, leave chan struct{}
}

func (w *waiting) RestoreTable(ctx context.Context, tools toolset, table string, commands []string) error {
	w.once.Do(func() { close(w.entered) })
	<-w.leave
	return w.fake.RestoreTable(ctx, tools, table, commands)
}

func TestNew(t *testing.T) {
	for _, c := range []struct {
		config Config
		err    string
	}{
		{Config{}, `device name ""`},
		{Config{Device: "kubelink-kubelink"}, "want 1 to 15 characters"},
		{Config{Device: "kubelink", Table: 255}, "route table 255"},
		{Config{Device: "kubelink", Table: -1}, "route table -1"},
	} {
		if _, err := New(c.config); err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%+v: error %v, want %s", c.config, err, c.err)
		}
	}
}

func TestNormalizeAddresses(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"-A X -s 2001:db8:0:1::/64 -o k -j SNAT --to-source 2001:db8:0:0:1:0:0:1",
			"-A X -s 2001:db8:0:1::/64 -o k -j SNAT --to-source 2001:db8::1:0:0:1"},
		{"-A X -d 10.0.0.0/8 -o fe80 -j ACCEPT", "-A X -d 10.0.0.0/8 -o fe80 -j ACCEPT"},
	} {
		if got := normalizeAddresses(c.in); got != c.want {
			t.Errorf("%s: %s, want %s", c.in, got, c.want)
		}
	}
}
