package kernel

// The routes of a router in real network namespaces: a node with a network of nodes and a pod.

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// node makes the devices of a node: eth0 in the network of nodes, and cali1, which leads to a pod.
const node = `
	ip link add eth0 type veth peer name wire0
	ip link add cali1 type veth peer name wire1
	ip link set eth0 addrgenmode none
	ip link set cali1 addrgenmode none
	ip link set wire0 addrgenmode none up
	ip link set wire1 addrgenmode none up
	ip addr add 10.250.0.5/16 dev eth0
	ip addr add fd00:250::5/64 dev eth0 nodad
	ip link set eth0 up
	ip link set cali1 up
	ip route add 100.96.0.9 dev cali1 scope link
	ip route add default via 10.250.0.1`

// openNode opens the routes of a new namespace with a node.
func openNode(t testing.TB, c RoutesConfig) *Routes {
	t.Helper()
	enter(t)
	run(t, node)
	return openAgain(t, c)
}

func openAgain(t testing.TB, c RoutesConfig) *Routes {
	t.Helper()
	r, err := OpenRoutes(c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// via makes a route by what the kernel says of the way to the gateway; empty: unreachable.
func via(t testing.TB, r *Routes, destination, gateway string) NodeRoute {
	t.Helper()
	n := NodeRoute{Destination: netip.MustParsePrefix(destination)}
	if gateway == "" {
		return n
	}
	n.Gateway = netip.MustParseAddr(gateway)
	w, err := r.FindWay(n.Gateway)
	if err != nil || w.Local || w.Gateway.IsValid() {
		t.Fatalf("%+v, %v", w, err)
	}
	n.Index = w.Index
	return n
}

// setRoutes sets routes, and returns how many changes that were.
func setRoutes(t testing.TB, r *Routes, want ...NodeRoute) int {
	t.Helper()
	written, errs := r.Set(want)
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return written
}

// routing are all routes and rules that do not change by themselves.
func routing(t testing.TB) string {
	t.Helper()
	return run(t, `ip -4 route show table all
		ip -6 route show
		ip -4 rule
		ip -6 rule`)
}

// wantMarked looks at the routes and rules with the protocol of a router.
func wantMarked(t testing.TB, want string) {
	t.Helper()
	var lines []string
	for line := range strings.Lines(run(t, `ip -4 route show table all proto 114
		ip -6 route show table all proto 114`)) {
		lines = append(lines, strings.TrimSpace(strings.Replace(line, " pref medium", "", 1)))
	}
	for line := range strings.Lines(run(t, "ip -4 rule\nip -6 rule")) {
		if strings.Contains(line, "proto 114") {
			lines = append(lines, strings.ReplaceAll(strings.TrimSpace(line), "\t", " "))
		}
	}
	if got, want := strings.Join(lines, "\n"), strings.ReplaceAll(strings.TrimSpace(want), "\t", ""); got != want {
		t.Errorf("has\n%s\nwant\n%s", got, want)
	}
}

func TestNodeRoutes(t *testing.T) {
	r := openNode(t, RoutesConfig{})
	before := routing(t)
	services := via(t, r, "100.64.16.0/20", "10.250.0.6")
	services.MTU = 1380
	pod := via(t, r, "192.168.0.0/24", "100.96.0.9")
	pod.OnLink = true
	gone, gone6 := via(t, r, "100.64.32.0/20", ""), via(t, r, "fd00:32::/64", "")
	services6 := via(t, r, "fd00:16::/64", "fd00:250::6")
	if n := setRoutes(t, r, services, pod, gone, services6, gone6); n != 5 {
		t.Errorf("%d changes", n)
	}
	wantMarked(t, `
		100.64.16.0/20 via 10.250.0.6 dev eth0 metric 101 mtu 1380
		unreachable 100.64.32.0/20 metric 101
		192.168.0.0/24 via 100.96.0.9 dev cali1 metric 101 onlink
		fd00:16::/64 via fd00:250::6 dev eth0 metric 1125
		unreachable fd00:32::/64 dev lo metric 1125`)

	// Nothing is written where all is right, also by a router that comes after a kill.
	for _, again := range []*Routes{r, openAgain(t, RoutesConfig{})} {
		if n := setRoutes(t, again, services, pod, gone, services6, gone6); n != 0 {
			t.Errorf("%d changes of what is right", n)
		}
	}

	// Each kind becomes each other, and what is deleted comes back.
	run(t, `ip route del 192.168.0.0/24
		ip -6 route del fd00:16::/64`)
	unreachable := func(n NodeRoute) NodeRoute { return NodeRoute{Destination: n.Destination} }
	moved := via(t, r, "100.64.32.0/20", "10.250.0.7")
	moved6 := via(t, r, "fd00:32::/64", "fd00:250::7")
	if n := setRoutes(t, r, unreachable(services), pod, moved, unreachable(services6), moved6); n != 5 {
		t.Errorf("%d changes", n)
	}
	wantMarked(t, `
		unreachable 100.64.16.0/20 metric 101
		100.64.32.0/20 via 10.250.0.7 dev eth0 metric 101
		192.168.0.0/24 via 100.96.0.9 dev cali1 metric 101 onlink
		unreachable fd00:16::/64 dev lo metric 1125
		fd00:32::/64 via fd00:250::7 dev eth0 metric 1125`)
	if err := r.Clear(); err != nil {
		t.Error(err)
	}
	if now := routing(t); now != before {
		t.Errorf("Clear left\n%s\nof\n%s", now, before)
	}
}

// Another table has a rule, and a router with another table takes all along.
func TestNodeRoutesTable(t *testing.T) {
	r := openNode(t, RoutesConfig{Table: 251, RulePriority: 32750})
	before := routing(t)
	route4, route6 := via(t, r, "100.64.16.0/20", "10.250.0.6"), via(t, r, "fd00:16::/64", "fd00:250::6")
	setRoutes(t, r, route4, route6)
	wantMarked(t, `
		100.64.16.0/20 via 10.250.0.6 dev eth0 table 251 metric 101
		fd00:16::/64 via fd00:250::6 dev eth0 table 251 metric 1125
		32750: from all lookup 251 proto 114
		32750: from all lookup 251 proto 114`)
	r = openAgain(t, RoutesConfig{})
	setRoutes(t, r, route4)
	wantMarked(t, "100.64.16.0/20 via 10.250.0.6 dev eth0 metric 101")
	if err := r.Clear(); err != nil {
		t.Error(err)
	}
	if now := routing(t); now != before {
		t.Errorf("Clear left\n%s\nof\n%s", now, before)
	}
	for _, table := range []int{-1, unix.RT_TABLE_LOCAL} {
		if _, err := OpenRoutes(RoutesConfig{Table: table}); err == nil {
			t.Errorf("table %d is taken", table)
		}
	}
}

// A foreign route stays and is named, the rest is set.
func TestNodeRoutesForeign(t *testing.T) {
	r := openNode(t, RoutesConfig{})
	run(t, `ip route add 100.64.16.0/20 via 10.250.0.99 metric 7
		ip route add prohibit 100.64.32.0/20 metric 300
		ip -6 route add fd00:16::/64 via fd00:250::99`)
	before := routing(t)
	want := []NodeRoute{via(t, r, "100.64.16.0/20", "10.250.0.6"), via(t, r, "100.64.32.0/20", "10.250.0.6"),
		via(t, r, "100.64.48.0/20", "10.250.0.6"), via(t, r, "fd00:16::/64", "fd00:250::6")}
	_, errs := r.Set(want)
	var texts []string
	for _, err := range errs {
		foreign := &ForeignRouteError{}
		if !errors.As(err, &foreign) {
			t.Errorf("error %v", err)
		} else {
			texts = append(texts, foreign.Route)
		}
	}
	got := strings.Join(texts, "\n")
	if want := "100.64.16.0/20 via 10.250.0.99 dev eth0 proto 3 metric 7 table 254\n" +
		"prohibit 100.64.32.0/20 proto 3 metric 300 table 254\n" +
		"fd00:16::/64 via fd00:250::99 dev eth0 proto 3 metric 1024 table 254"; got != want {
		t.Errorf("foreign\n%s\nwant\n%s", got, want)
	}
	wantMarked(t, "100.64.48.0/20 via 10.250.0.6 dev eth0 metric 101")
	if err := r.Clear(); err != nil {
		t.Error(err)
	}
	if now := routing(t); now != before {
		t.Errorf("has\n%s\nof\n%s", now, before)
	}
}

// Broker and router on one node: each has its routes, the broker's win, and each clears its own only.
func TestNodeRoutesBesideBroker(t *testing.T) {
	r := openNode(t, RoutesConfig{})
	tun(t, "kubelink")
	before := routing(t)
	var want []NodeRoute
	for _, x := range twoMeshes.Routes {
		n := via(t, r, x.Destination.String(), "10.250.0.6")
		if x.Destination.Addr().Is6() {
			n = via(t, r, x.Destination.String(), "fd00:250::6")
		}
		want = append(want, n)
	}
	var fallback []NodeRoute
	for _, n := range want {
		fallback = append(fallback, NodeRoute{Destination: n.Destination, Fallback: true})
	}
	part := fallback[0]
	part.Destination = netip.PrefixFrom(part.Destination.Addr(), part.Destination.Bits()+1)
	if n := setRoutes(t, r, append(fallback, part)...); n != len(want)+1 {
		t.Errorf("%d routes where there is no broker", n)
	}
	k, _ := open(t, config)
	set(t, k, twoMeshes)
	if n := setRoutes(t, r, append(fallback, part)...); n != len(want)+1 {
		t.Errorf("%d changes because the broker has routes", n)
	}
	wantMarked(t, "")
	if n := setRoutes(t, r, want...); n != len(want) {
		t.Errorf("%d changes because of the broker", n)
	}
	for _, x := range twoMeshes.Routes {
		if w, err := r.FindWay(x.Destination.Addr().Next()); err != nil || w.Device != "kubelink" && !w.Local {
			t.Errorf("%s leaves by %+v, %v", x.Destination, w, err)
		}
	}
	if err := k.Clear(); err != nil {
		t.Error(err)
	}
	if n := setRoutes(t, r, want...); n != 0 {
		t.Errorf("%d changes because the broker is gone", n)
	}
	set(t, k, twoMeshes)
	broker := routing(t)
	if err := r.Clear(); err != nil {
		t.Error(err)
	}
	if now := routing(t); len(now) >= len(broker) || !strings.Contains(now, "dev kubelink proto 107") {
		t.Errorf("the router's Clear left\n%s", now)
	}
	if err := k.Clear(); err != nil {
		t.Error(err)
	}
	run(t, `ip link set kubelink down
		ip link set kubelink mtu 1500`)
	if now := routing(t); strings.Contains(now, "proto 107") || strings.Contains(now, "proto 114") {
		t.Errorf("left\n%s\nof\n%s", now, before)
	}
}

// Of a former router, its routes to the destinations of its file are taken over, and nothing else.
func TestNodeRoutesFormer(t *testing.T) {
	r := openNode(t, RoutesConfig{Table: 251, RulePriority: 32750,
		Former: []netip.Prefix{netip.MustParsePrefix("100.64.16.0/20"), netip.MustParsePrefix("100.64.32.0/20"),
			netip.MustParsePrefix("100.64.64.0/20"), netip.MustParsePrefix("100.64.80.0/20"),
			netip.MustParsePrefix("100.64.96.0/20")},
		Nodes: []netip.Prefix{netip.MustParsePrefix("10.250.0.0/16")}})
	const foreign = `100.64.48.0/20 via 10.250.0.99 dev eth0 metric 101
		100.64.64.0/20 via 10.250.0.99 dev eth0 metric 100
		100.64.80.0/20 via 10.250.0.99 dev eth0 proto static metric 101
		100.64.96.0/20 via 100.96.0.9 dev cali1 metric 101 onlink`
	for line := range strings.Lines(foreign + `
		100.64.16.0/20 via 10.250.0.99 dev eth0 metric 101
		100.64.32.0/20 via 10.250.0.99 dev eth0 metric 101 table 251`) {
		run(t, "ip route add "+line)
	}
	setRoutes(t, r, via(t, r, "100.64.16.0/20", "10.250.0.6"))
	now := run(t, "ip route show table all")
	for line := range strings.Lines(foreign) {
		if line = strings.TrimSpace(line); !strings.Contains(now, line) {
			t.Errorf("misses %s", line)
		}
	}
	if strings.Contains(now, "100.64.32.0/20") || strings.Contains(now, "100.64.16.0/20 via 10.250.0.99") {
		t.Errorf("left what is of the former router:\n%s", now)
	}
	wantMarked(t, `100.64.16.0/20 via 10.250.0.6 dev eth0 table 251 metric 101
		32750: from all lookup 251 proto 114`)
}

// New routes come before old ones go: packets to a network that is split, or joined, never follow the default route.
func TestNodeRoutesOrder(t *testing.T) {
	r := openNode(t, RoutesConfig{})
	var log []string
	r.system = logged{r.system, &log}
	setRoutes(t, r, via(t, r, "100.64.0.0/16", "10.250.0.6"))
	setRoutes(t, r, via(t, r, "100.64.0.0/17", "10.250.0.6"), via(t, r, "100.64.128.0/17", "10.250.0.6"))
	if len(log) != 4 || !strings.HasPrefix(log[3], "ip route del 100.64.0.0/16") {
		t.Errorf("changes %q", log)
	}
}

type logged struct {
	routeSystem
	log *[]string
}

func (l logged) Change(verb string, object any) error {
	*l.log = append(*l.log, ipCommand(verb, object, l.DeviceName))
	return l.routeSystem.Change(verb, object)
}

// What the kernel says of addresses.
func TestFindWay(t *testing.T) {
	r := openNode(t, RoutesConfig{})
	for to, want := range map[string]Way{
		"10.250.0.6": {Device: "eth0", MTU: 1500}, "10.250.0.5": {Device: "lo", Local: true, MTU: 65536},
		"100.96.0.9": {Device: "cali1", MTU: 1500}, "fd00:250::6": {Device: "eth0", MTU: 1500},
		"8.8.8.8":     {Device: "eth0", Gateway: netip.MustParseAddr("10.250.0.1"), MTU: 1500},
		"fd00:250::5": {Device: "lo", Local: true, MTU: 65536},
	} {
		got, err := r.FindWay(netip.MustParseAddr(to))
		got.Index = 0
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", to, got, err, want)
		}
	}
	if _, err := r.FindWay(netip.MustParseAddr("fd00:99::1")); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("no route: %v", err)
	}
}

// Without IPv6 in the kernel, IPv4 works.
func TestNodeRoutesFamilies(t *testing.T) {
	r := openNode(t, RoutesConfig{})
	r.system = withoutIPv6{r.system}
	setRoutes(t, r, via(t, r, "100.64.16.0/20", "10.250.0.6"))
	written, errs := r.Set([]NodeRoute{via(t, r, "100.64.16.0/20", "10.250.0.6"), via(t, r, "fd00:16::/64", "")})
	if written != 0 || len(errs) != 1 ||
		!strings.Contains(errs[0].Error(), "read the routes of IPv6: address family not") {
		t.Errorf("%d changes, errors %v", written, errs)
	}
	wantMarked(t, "100.64.16.0/20 via 10.250.0.6 dev eth0 metric 101")
}

type withoutIPv6 struct{ routeSystem }

func (s withoutIPv6) Dump(device, pod string) *objects {
	o := s.routeSystem.Dump(device, pod)
	o.failed = map[int]error{unix.AF_INET6: unix.EAFNOSUPPORT}
	o.omitFamily(unix.AF_INET6)
	return o
}

// Routes to a gateway with our mark exist; those of other programs, and those that lead nowhere, do not count.
func TestNamespaceRoutesExist(t *testing.T) {
	r := openNode(t, RoutesConfig{})
	run(t, "ip route add 100.64.0.0/20 via 10.250.0.1 metric 101")
	setRoutes(t, r, via(t, r, "100.64.16.0/20", ""))
	if r.Exist() {
		t.Error("routes of ours to a gateway exist")
	}
	setRoutes(t, r, via(t, r, "100.64.16.0/20", "10.250.0.1"))
	if !openAgain(t, RoutesConfig{}).Exist() {
		t.Error("the routes of an earlier start do not exist")
	}
}
