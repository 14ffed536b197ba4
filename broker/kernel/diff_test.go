package kernel

// Who owns what the kernel has, and which changes follow, without a kernel. Devices have the names
// of fake: eth0 (index 2), kubelink (3), old (4), open (5).

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// routeTo makes a route with Protocol in the main table.
func routeTo(destination, source string, index int) route {
	r := route{Table: MainTable, Destination: netip.MustParsePrefix(destination), Index: index, Protocol: Protocol}
	if source != "" {
		r.Source = netip.MustParseAddr(source)
	}
	r.Metric = defaultMetric(r.Destination)
	return r
}

func TestDivideObjects(t *testing.T) {
	onDevice, onOld := routeTo("10.0.0.0/16", "10.9.9.9", 3), routeTo("fd00::/64", "fd00::1", 4)
	onOpen, onNone := routeTo("10.1.0.0/16", "", 5), routeTo("10.2.0.0/16", "", 0)
	static := route{Table: MainTable, Destination: netip.MustParsePrefix("10.3.0.0/16"), Index: 3, Protocol: 4}
	ourAddress := address{3, netip.MustParsePrefix("fd00::1/128"), true}
	ourRule, foreignRule := rule{unix.AF_INET6, 1, 77, Protocol}, rule{unix.AF_INET, 1, 77, 3}
	found := objects{
		link: link{3, 1500, true},
		addresses: []address{ourAddress,
			{3, netip.MustParsePrefix("fd00::2/128"), false},
			{3, netip.MustParsePrefix("10.9.9.9/24"), true}},
		routes: []route{onDevice, onOld, onOpen, onNone, static},
		rules:  []rule{ourRule, foreignRule},
	}
	if got := candidateDevices(found); !slices.Equal(got, []int{4, 5}) {
		t.Errorf("candidates for old devices %v, want 4 and 5", got)
	}

	o := divideObjects(found, []int{4})
	if o.ours.link != found.link || !slices.Equal(o.oldDevices, []int{4}) {
		t.Errorf("link %v, old devices %v", o.ours.link, o.oldDevices)
	}
	if !slices.Equal(o.ours.addresses, []address{ourAddress}) {
		t.Errorf("our addresses %v", o.ours.addresses)
	}
	if !slices.Equal(o.ours.routes, []route{onDevice, onOld}) {
		t.Errorf("our routes %v", o.ours.routes)
	}
	if !slices.Equal(o.foreign.routes, []route{onOpen, onNone, static}) {
		t.Errorf("foreign routes %v", o.foreign.routes)
	}
	if !slices.Equal(o.ours.rules, []rule{ourRule}) || !slices.Equal(o.foreign.rules, []rule{foreignRule}) {
		t.Errorf("our rules %v, foreign rules %v", o.ours.rules, o.foreign.rules)
	}

	// Without the device a route without device is not ours.
	found.link = link{}
	if o := divideObjects(found, nil); len(o.ours.routes) > 0 {
		t.Errorf("without device: our routes %v", o.ours.routes)
	}
}

func TestPlanChanges(t *testing.T) {
	v4, v6 := routeTo("10.0.0.0/16", "10.9.9.9", 3), routeTo("fd00::/64", "fd00::1", 3)
	moved4, moved6 := routeTo("10.0.0.0/16", "10.9.9.8", 3), routeTo("fd00::/64", "fd00::2", 3)
	old4, old6 := routeTo("10.0.0.0/16", "10.9.9.9", 4), routeTo("fd00::/64", "fd00::1", 4)
	a4 := address{3, netip.MustParsePrefix("10.9.9.9/32"), true}
	a6 := address{3, netip.MustParsePrefix("fd00::1/128"), true}
	r4, r6 := rule{unix.AF_INET, 9, 77, Protocol}, rule{unix.AF_INET6, 9, 77, Protocol}
	up, down := link{3, 1500, true}, link{3, 1420, false}
	all := objects{link: up, addresses: []address{a4, a6}, routes: []route{v4, v6}, rules: []rule{r4, r6}}
	foreign := func(r route) route { r.Protocol, r.Metric = 4, 100; return r }

	for name, c := range map[string]struct {
		wanted   objects
		found    ownership
		noRoutes map[int]string
		want     string // changes, conflicts and withheld routes
	}{
		"all is there": {all, ownership{ours: all}, nil, ""},
		"all is new": {all, ownership{ours: objects{link: down}}, nil, `
			ip link set kubelink mtu 1500 up
			ip addr add 10.9.9.9/32 dev kubelink noprefixroute
			ip addr add fd00::1/128 dev kubelink noprefixroute
			ip route add 10.0.0.0/16 dev kubelink proto 107 src 10.9.9.9 table 254
			ip route add fd00::/64 dev kubelink proto 107 src fd00::1 metric 1024 table 254
			ip -4 rule add priority 9 table 77 proto 107
			ip -6 rule add priority 9 table 77 proto 107`},
		"all goes": {objects{link: up}, ownership{ours: all}, nil, `
			ip -4 rule del priority 9 table 77 proto 107
			ip -6 rule del priority 9 table 77 proto 107
			ip route del 10.0.0.0/16 dev kubelink proto 107 src 10.9.9.9 table 254
			ip route del fd00::/64 dev kubelink proto 107 src fd00::1 metric 1024 table 254
			ip addr del 10.9.9.9/32 dev kubelink noprefixroute
			ip addr del fd00::1/128 dev kubelink noprefixroute`},
		"one family for the other: first add": {
			objects{link: up, addresses: []address{a6}, routes: []route{v6}, rules: []rule{r6}},
			ownership{ours: objects{link: up, addresses: []address{a4}, routes: []route{v4}, rules: []rule{r4}}}, nil, `
			ip addr add fd00::1/128 dev kubelink noprefixroute
			ip route add fd00::/64 dev kubelink proto 107 src fd00::1 metric 1024 table 254
			ip -6 rule add priority 9 table 77 proto 107
			ip -4 rule del priority 9 table 77 proto 107
			ip route del 10.0.0.0/16 dev kubelink proto 107 src 10.9.9.9 table 254
			ip addr del 10.9.9.9/32 dev kubelink noprefixroute`},
		"other sources, also without source NAT": {
			objects{link: up, routes: []route{moved4, moved6}}, ownership{ours: objects{link: up, routes: []route{v4, v6}}},
			map[int]string{unix.AF_INET: "source NAT", unix.AF_INET6: "source NAT"}, `
			ip route replace 10.0.0.0/16 dev kubelink proto 107 src 10.9.9.8 table 254
			ip route replace fd00::/64 dev kubelink proto 107 src fd00::2 metric 1024 table 254`},
		"no source NAT for IPv6": {
			objects{link: up, routes: []route{v4, v6}}, ownership{ours: objects{link: up}}, map[int]string{unix.AF_INET6: "source NAT"}, `
			ip route add 10.0.0.0/16 dev kubelink proto 107 src 10.9.9.9 table 254
			withheld IPv6 1`},
		"foreign routes": {
			objects{link: up, routes: []route{v4, v6}},
			ownership{ours: objects{link: up}, foreign: objects{routes: []route{foreign(v4), foreign(v6)}}}, nil, `
			conflict 10.0.0.0/16 dev kubelink proto 4 src 10.9.9.9 metric 100 table 254
			conflict fd00::/64 dev kubelink proto 4 src fd00::1 metric 100 table 254`},
		"a foreign rule to the table": {
			objects{link: up, rules: []rule{r4, r6}},
			ownership{ours: objects{link: up},
				foreign: objects{rules: []rule{{unix.AF_INET6, 9, 77, 3}, {unix.AF_INET, 8, 77, 3}}}}, nil, `
			ip -4 rule add priority 9 table 77 proto 107`},
		"an old device goes with its routes": {
			objects{link: up, routes: []route{v4, v6}},
			ownership{ours: objects{link: up, routes: []route{old4, old6}}, oldDevices: []int{4}}, nil, `
			ip route replace 10.0.0.0/16 dev kubelink proto 107 src 10.9.9.9 table 254
			ip route replace fd00::/64 dev kubelink proto 107 src fd00::1 metric 1024 table 254
			ip link del old`},
		"an old device stays while its routes do": {
			objects{link: up, routes: []route{v4, v6}},
			ownership{ours: objects{link: up, routes: []route{old4, old6}}, oldDevices: []int{4}},
			map[int]string{unix.AF_INET: "source NAT"}, `
			ip route replace fd00::/64 dev kubelink proto 107 src fd00::1 metric 1024 table 254
			withheld IPv4 1`},
	} {
		p := planChanges(c.wanted, c.found, c.noRoutes)
		if got, want := planText(p), strings.ReplaceAll(strings.TrimSpace(c.want), "\t", ""); got != want {
			t.Errorf("%s: plans\n%s\nwant\n%s", name, got, want)
		}
	}
}

func planText(p *plan) string {
	name := (&fake{}).DeviceName
	var lines []string
	for _, c := range p.changes {
		lines = append(lines, ipCommand(c.verb, c.object, name))
	}
	for _, c := range p.conflicts {
		lines = append(lines, "conflict "+c.foreign.text(name))
	}
	for _, f := range families {
		if p.withheld[f] > 0 {
			lines = append(lines, "withheld IPv"+string(rune('0'+IPVersion(f)))+" "+string(rune('0'+p.withheld[f])))
		}
	}
	return strings.Join(lines, "\n")
}

func TestMinus(t *testing.T) {
	for _, c := range []struct{ a, b, want []int }{
		{nil, nil, nil},
		{[]int{1, 2, 3}, []int{2}, []int{1, 3}},
		{[]int{3, 1, 3}, nil, []int{3, 1}},
		{[]int{1}, []int{1, 2}, nil},
	} {
		if got := minus(c.a, c.b); !slices.Equal(got, c.want) {
			t.Errorf("%v minus %v: %v, want %v", c.a, c.b, got, c.want)
		}
	}
}
