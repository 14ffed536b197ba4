// Package kernel makes the network stack of the gateway what a mesh needs: addresses and routes
// on the device, the rule that leads to their table, source NAT, the acceptance of forwarded
// packets, and a TCP segment size that fits. All of it is one Set, told the whole; it finds the
// difference itself, so that it also adopts what a killed broker left.
//
// Ours is, and so is changed and removed: on the device, routes with Protocol and full-length
// addresses with noprefixroute; rules with Protocol; the chains KUBELINK-* and the jumps to them.
// So is a TUN device with routes with Protocol that nobody holds open: a killed broker left it, and
// the device has another name since.
//
// This file computes what is wanted and orders the changes; netfilter.go does so for the chains,
// system.go talks to the kernel.
package kernel

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/mandelsoft/kubelink/broker/mesh"
	"golang.org/x/sys/unix"
)

// Protocol marks our routes (rtm_protocol, rtnetlink(7)) and rules (FRA_PROTOCOL), so that
// everybody sees whose they are: `ip route show table all proto 107`. The number is 'k', assigned
// neither in linux/rtnetlink.h nor in iproute2's rt_protos, and above RTPROT_STATIC, so that the
// kernel only stores it.
const Protocol = 'k'

// MainTable is the routing table that needs no rule.
const MainTable = unix.RT_TABLE_MAIN

// Config is what does not change with the meshes. There is one broker per network namespace: the
// chains and the marks are the same whatever the device and the table, so that a broker adopts what
// one with another Config left. Two at the same time would take each other's away.
type Config struct {
	Device       string // name of the TUN; somebody else creates, opens and deletes it
	MTU          int    // of the device, in bytes; 0: leave it
	Table        int    // routing table for our routes; 0: MainTable
	RulePriority int    // of the ip-rule(8) that leads to Table when that is not MainTable
}

// State is what is wanted.
type State struct {
	Addresses []netip.Prefix // local cluster addresses with the mask of their mesh
	Routes    []mesh.Route   // all that leaves through the device, mesh ranges included
}

func (s State) empty() bool { return len(s.Addresses)+len(s.Routes) == 0 }

// Kernel is the network stack of one network namespace. Its methods may be called concurrently.
type Kernel struct {
	config Config
	system system

	mu      sync.Mutex
	clean   map[int]bool // families without chains of ours, as we have seen
	warning error        // of the last Set
}

// system is the kernel as Set needs it. The objects are link, address, route and rule.
type system interface {
	Dump(device string) (*dump, error)                         // all that Set may own or collide with
	Change(verb string, object any) error                      // verb as of ip(8): set, add, replace, del
	Name(index int) string                                     // of a device
	Idle(index int) bool                                       // a TUN device that nobody holds open
	Chain(family int, table, chain string) ([]string, error)   // rules as iptables -S prints them; nil: no such chain
	Restore(family int, table string, commands []string) error // all or nothing, in one transaction
}

// dump is one look at the kernel. Addresses are those of the device; routes are those of all
// tables; rules are ours and those that do nothing but lead to a table.
type dump struct {
	link      link // zero: there is no such device
	addresses []address
	routes    []route
	rules     []rule
}

type link struct {
	Index, MTU int
	Up         bool
}

type address struct {
	Index         int
	Prefix        netip.Prefix
	NoPrefixRoute bool
}

type route struct {
	Table           int
	Destination     netip.Prefix
	Source, Gateway netip.Addr
	Index           int // of the device; 0: several or none
	Metric          int
	Protocol        int
}

// place is what only one route should be for.
type place struct {
	table       int
	destination netip.Prefix
}

func (r route) place() place { return place{r.Table, r.Destination} }

type rule struct {
	Family, Priority, Table, Protocol int
}

// New returns the stack of the network namespace that the calling thread is in. Set and Clear must
// be called in the same one, for they run iptables(8). It needs CAP_NET_ADMIN and Linux 4.17.
func New(config Config) (*Kernel, error) {
	if config.Table == 0 {
		config.Table = MainTable
	}
	if n := len(config.Device); n == 0 || n >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("device name %q: want 1 to %d characters", config.Device, unix.IFNAMSIZ-1)
	}
	if config.Table < 0 || config.Table == unix.RT_TABLE_LOCAL {
		return nil, fmt.Errorf("route table %d: want %d (main) or another table that the kernel does not fill", config.Table, MainTable)
	}
	s, err := newSystem()
	if err != nil {
		return nil, err
	}
	return &Kernel{config: config, system: s, clean: map[int]bool{}}, nil
}

// Clear removes all that is ours. The device stays, it need not exist.
func (k *Kernel) Clear() error { return k.Set(State{}) }

// Set makes the state so. Where all is right it writes nothing. A part that fails does not stop the
// others: their errors are joined, each says what was tried, and the next Set tries again.
func (k *Kernel) Set(s State) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	routes, errs := validate(s.Routes)
	s.Routes = routes

	// Source NAT is decided with the first packet of a connection and then kept, so the chains
	// come before the first packet can leave, and go when none leaves any more.
	if s.empty() {
		errs = append(errs, k.setNetwork(s, nil)...)
	}
	noNAT, failed := k.setChains(s)
	errs = append(errs, failed...)
	if !s.empty() {
		errs = append(errs, k.setNetwork(s, noNAT)...)
	}
	return errors.Join(errs...)
}

// Warning tells what the last Set could not do, but a mesh does without; nil: there is nothing.
func (k *Kernel) Warning() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.warning
}

// validate returns the routes that can be set.
func validate(routes []mesh.Route) (valid []mesh.Route, errs []error) {
	seen := map[netip.Prefix]netip.Addr{}
	for _, r := range routes {
		r.Destination = r.Destination.Masked()
		other, twice := seen[r.Destination]
		switch {
		case !r.Destination.IsValid() || r.Destination.Addr().Is4() != r.Source.Is4() || !r.Source.IsValid():
			errs = append(errs, fmt.Errorf("route %s: source %s: want an address of the same family", r.Destination, r.Source))
		case !twice:
			seen[r.Destination] = r.Source
			valid = append(valid, r)
		case other != r.Source:
			errs = append(errs, fmt.Errorf("route %s: source %s: it is there with source %s", r.Destination, r.Source, other))
		}
	}
	return valid, errs
}

// setNetwork sets all that rtnetlink(7) does, in this order: the device is up before it can have
// routes; a route needs its source address, a rule its table; and the other way round. The families
// of noNAT get no new routes: the connections that take one would stay without source NAT.
func (k *Kernel) setNetwork(s State, noNAT map[int]bool) (errs []error) {
	now, err := k.system.Dump(k.config.Device)
	if err != nil {
		return []error{fmt.Errorf("read the network state of device %s: %w", k.config.Device, err)}
	}
	change := func(verb string, object any) {
		if err := k.system.Change(verb, object); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", command(verb, object, k.system.Name), err))
		}
	}
	want := k.want(s, now.link)
	if now.link.Index == 0 && !s.empty() {
		errs = append(errs, fmt.Errorf("device %s does not exist: %d addresses and %d routes are not set",
			k.config.Device, len(s.Addresses), len(s.Routes)))
	}

	// What is there: ours, and what others have in the places where ours should be.
	var ours, foreign dump
	for _, a := range now.addresses {
		if a.NoPrefixRoute && a.Prefix.IsSingleIP() {
			ours.addresses = append(ours.addresses, a)
		}
	}
	for _, r := range now.rules {
		if r.Protocol == Protocol {
			ours.rules = append(ours.rules, r)
		} else {
			r.Protocol = Protocol
			foreign.rules = append(foreign.rules, r)
		}
	}
	oldAt, foreignAt, wantAt := map[place]route{}, map[place]route{}, map[place]route{}
	mine := map[int]bool{now.link.Index: true} // devices: this one, and those that a killed broker left
	mine[0] = false                            // not a device: other routes with Protocol may have none
	for _, r := range now.routes {
		if _, known := mine[r.Index]; !known && r.Protocol == Protocol {
			mine[r.Index] = k.system.Idle(r.Index)
		}
		if r.Protocol == Protocol && mine[r.Index] {
			ours.routes = append(ours.routes, r)
			oldAt[r.place()] = r
		} else {
			foreignAt[r.place()] = r
		}
	}

	if want.link != now.link {
		change("set", want.link)
	}
	for _, a := range minus(want.addresses, ours.addresses) {
		change("add", a)
	}
	held := map[int]int{} // number of routes by family
	for _, r := range want.routes {
		wantAt[r.place()] = r
		other, taken := foreignAt[r.place()]
		old, there := oldAt[r.place()]
		switch {
		case taken:
			errs = append(errs, fmt.Errorf("%s: there is a route that is not ours: %s",
				command("add", r, k.system.Name), other.text(k.system.Name)))
		case noNAT[family(r.Source)] && old.Index != r.Index:
			held[family(r.Source)]++
			mine[old.Index] = false // stays: no packet gets through it, but the default route would take it
		case !there:
			change("add", r)
		case old != r:
			change("replace", r)
		}
	}
	for _, f := range families {
		if held[f] > 0 {
			errs = append(errs, fmt.Errorf("%d new routes of IPv%d are not set: there is no source NAT for them", held[f], version(f)))
		}
	}
	// A rule of somebody else that leads there will do, the kernel refuses a second one.
	for _, r := range minus(want.rules, append(foreign.rules, ours.rules...)) {
		change("add", r)
	}

	for _, r := range minus(ours.rules, want.rules) {
		change("del", r)
	}
	for _, r := range ours.routes {
		if _, wanted := wantAt[r.place()]; !wanted {
			change("del", r)
		}
	}
	for _, a := range minus(ours.addresses, want.addresses) {
		change("del", a)
	}
	for _, index := range slices.Sorted(maps.Keys(mine)) {
		if mine[index] && index != now.link.Index {
			change("del", link{Index: index})
		}
	}
	return errs
}

// want is the dump that we want to see of ours.
func (k *Kernel) want(s State, device link) dump {
	want := dump{link: device}
	if device.Index != 0 && !s.empty() {
		want.link.Up = true
		if k.config.MTU != 0 {
			want.link.MTU = k.config.MTU
		}
		for _, a := range s.Addresses {
			// Full-length, for each range comes as a route of its own, with its source.
			want.addresses = append(want.addresses, address{device.Index, host(a.Addr()), true})
		}
		for _, r := range s.Routes {
			want.routes = append(want.routes, route{Table: k.config.Table, Destination: r.Destination, Source: r.Source,
				Index: device.Index, Metric: metric(r.Destination), Protocol: Protocol})
		}
	}
	for _, f := range families {
		if k.config.Table != MainTable && slices.ContainsFunc(s.Routes, func(r mesh.Route) bool { return family(r.Source) == f }) {
			want.rules = append(want.rules, rule{f, k.config.RulePriority, k.config.Table, Protocol})
		}
	}
	return want
}

// command is what ip(8) would be told for a change.
func command(verb string, object any, name func(int) string) string {
	switch o := object.(type) {
	case link:
		if verb == "del" {
			return "ip link del " + name(o.Index)
		}
		return fmt.Sprintf("ip link %s %s mtu %d up", verb, name(o.Index), o.MTU)
	case address:
		return fmt.Sprintf("ip addr %s %s dev %s noprefixroute", verb, o.Prefix, name(o.Index))
	case route:
		return fmt.Sprintf("ip route %s %s", verb, o.text(name))
	case rule:
		return fmt.Sprintf("ip -%d rule %s priority %d table %d proto %d", version(o.Family), verb, o.Priority, o.Table, o.Protocol)
	}
	return fmt.Sprintf("%s %v", verb, object)
}

// text is the route as ip(8) has it.
func (r route) text(name func(int) string) string {
	text := r.Destination.String()
	if r.Gateway.IsValid() {
		text += " via " + r.Gateway.String()
	}
	if r.Index != 0 {
		text += " dev " + name(r.Index)
	}
	text += fmt.Sprintf(" proto %d", r.Protocol)
	if r.Source.IsValid() {
		text += " src " + r.Source.String()
	}
	if r.Metric != 0 {
		text += fmt.Sprintf(" metric %d", r.Metric)
	}
	return text + fmt.Sprintf(" table %d", r.Table)
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// metric is what the kernel takes when none is given: 0, for IPv6 IP6_RT_PRIO_USER.
func metric(destination netip.Prefix) int {
	if destination.Addr().Is4() {
		return 0
	}
	return 1024
}

// minus returns those of a that are not in b, each once.
func minus[T comparable](a, b []T) []T {
	in := make(map[T]bool, len(b))
	for _, x := range b {
		in[x] = true
	}
	var result []T
	for _, x := range a {
		if !in[x] {
			in[x] = true
			result = append(result, x)
		}
	}
	return result
}
