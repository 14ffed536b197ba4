package nodecheck

// Which way packets go: the kernel is asked for the packet of a pod to a link, and for one from a link to a pod. The
// answer counts rules, reverse path filter and forwarding.

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// maxPods bounds the devices of pods that are looked at.
const maxPods = 128

// network is one that is routed to a link.
type network struct {
	link   string
	prefix netip.Prefix
	source netip.Addr // that packets of pods leave with
}

// host is an address of the network.
func (n *network) host() netip.Addr {
	if n.prefix.IsSingleIP() {
		return n.prefix.Addr()
	}
	return n.prefix.Addr().Next()
}

// maxOffers is how many mesh services of a peer are looked at: packets to all of them go the same way, and a peer can
// offer thousands.
const maxOffers = 16

// networksOf are the networks of all peers that have a route.
func networksOf(s *mesh.State) (networks []network) {
	offered := s.OfferedNetworks()
	for _, p := range s.Peers {
		left := maxOffers
		for _, prefix := range p.Networks {
			if offered[prefix] {
				if left--; left < 0 {
					continue
				}
			}
			bits, source := -1, netip.Addr{}
			for _, r := range s.Routes {
				if r.Destination.Bits() > bits && r.Destination.Bits() <= prefix.Bits() &&
					r.Destination.Contains(prefix.Addr()) {
					bits, source = r.Destination.Bits(), r.Source
				}
			}
			if source.IsValid() {
				networks = append(networks, network{p.Link, prefix, source})
			}
		}
	}
	return networks
}

// pod is the way to one pod or more.
type pod struct {
	address netip.Addr
	index   int // of the device
	device  string
}

// look is one look at the node.
type look struct {
	*node
	target   *Target
	networks []network
	index    int            // of our device
	names    map[int]string // of devices
	up       map[int]bool   // devices
	pods     []pod
	findings link.Findings
}

var errNoDevice = errors.New("there is no device")

// addFinding adds a finding, unless there is one with this reason about the link, or about the node.
func (l *look) addFinding(peer, reason string, text, remedy string) {
	if !slices.ContainsFunc(l.findings, func(f link.Finding) bool {
		return f.Reason == reason && (f.Link == peer || f.Link == "")
	}) {
		l.findings = append(l.findings, link.Finding{Link: peer, Reason: reason, Text: text, Remedy: remedy})
	}
}

// readDevices reads the names of all devices, and looks for ours.
func (l *look) readDevices() error {
	links, err := l.netlink.LinkList()
	if err != nil {
		return err
	}
	l.names, l.up = map[int]string{}, map[int]bool{}
	for _, dev := range links {
		a := dev.Attrs()
		l.names[a.Index], l.up[a.Index] = a.Name, a.Flags&net.FlagUp != 0
		if a.Name == l.target.Device {
			l.index = a.Index
		}
	}
	return nil
}

// checkDevice looks for our device.
func (l *look) checkDevice() error {
	if err := l.readDevices(); err != nil {
		return err
	}
	const remedy = "kubelink makes it again; if this stays, look for the program that removes it or sets it down"
	switch {
	case l.index == 0:
		l.addFinding("", DeviceMissing, "the network interface "+l.target.Device+" is gone", remedy)
	case !l.up[l.index]:
		l.addFinding("", DeviceMissing, "the network interface "+l.target.Device+" is down", remedy)
	default:
		return nil
	}
	return errNoDevice
}

// checkRoutes looks at both directions, for each family that links use.
func (l *look) checkRoutes() error {
	var errs []error
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		networks := slices.DeleteFunc(slices.Clone(l.networks), func(n network) bool { return familyOf(n.source) != family })
		if len(networks) == 0 {
			continue
		}
		inside, err := l.readRoutes(family, networks)
		errs = append(errs, err)
		pods := l.podsOf(family)
		l.checkForwarding(family, pods)
		first := &pod{} // the node itself, if no pod is known
		if len(pods) > 0 {
			first = &pods[0]
		}
		for i := range inside {
			l.checkOut(inside[i].network, inside[i].address, first, &inside[i].route)
		}
		for i := range networks {
			l.checkBoth(&networks[i], first)
		}
		for i := range pods {
			l.checkBoth(&networks[0], &pods[i])
		}
	}
	return errors.Join(errs...)
}

// foreign is an address in a network of a link for which there is a route that is not ours.
type foreign struct {
	network *network
	address netip.Addr
	route   netlink.Route
}

// readRoutes reads all routes: it finds the ways to pods, and the foreign routes within networks of links.
func (l *look) readRoutes(family int, networks []network) (inside []foreign, err error) {
	var candidates []pod
	see := func(r netlink.Route) bool {
		if r.LinkIndex == l.index || r.Dst == nil || r.Type == unix.RTN_BROADCAST || r.Type == unix.RTN_MULTICAST {
			return true
		}
		to := toPrefix(r.Dst)
		for i := range networks {
			if n := &networks[i]; n.prefix.Bits() <= to.Bits() && n.prefix.Contains(to.Addr()) {
				inside = append(inside, foreign{n, (&network{prefix: to}).host(), r})
			}
		}
		if r.Type == unix.RTN_UNICAST && l.up[r.LinkIndex] && l.isPodNetwork(to) {
			candidates = append(candidates, pod{podAddress(to), r.LinkIndex, l.names[r.LinkIndex]})
		}
		return true
	}
	all := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
	err = l.netlink.RouteListFilteredIter(family, all, netlink.RT_FILTER_TABLE, see)
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		err = nil // the next look sees the rest
	}
	if p := l.target.Pod; p.Device != "" && familyOf(p.Addr) == family {
		candidates = []pod{{p.Addr, int(l.indexOfDevice(p.Device)), p.Device}}
	}
	l.addPods(candidates)
	return inside, err
}

// addPods adds one pod for each device.
func (l *look) addPods(candidates []pod) {
	seen := map[int]bool{}
	for _, p := range candidates {
		if !seen[p.index] && len(seen) < maxPods && l.leadsTo(p.address, p.index) {
			seen[p.index] = true
			l.pods = append(l.pods, p)
		}
	}
}

func (l *look) isPodNetwork(p netip.Prefix) bool {
	return slices.ContainsFunc(l.target.Pods, func(pods netip.Prefix) bool {
		return pods.Bits() <= p.Bits() && pods.Contains(p.Addr())
	})
}

// podAddress is an address of a network of pods that is probably none of the node: these begin with the node's.
func podAddress(p netip.Prefix) netip.Addr {
	if p.IsSingleIP() {
		return p.Addr()
	}
	last := p.Addr().AsSlice()
	for i := p.Bits(); i < len(last)*8; i++ {
		last[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(last)
	return a.Prev()
}

// leadsTo tells whether the node would send to an address through a device.
func (l *look) leadsTo(a netip.Addr, index int) bool {
	r, err := l.routeOf(a, nil)
	return err == nil && r.LinkIndex == index && r.Type == unix.RTN_UNICAST
}

func (l *look) podsOf(family int) (pods []pod) {
	for _, p := range l.pods {
		if familyOf(p.address) == family {
			pods = append(pods, p)
		}
	}
	return pods
}

// routeOf asks the kernel for the route of a packet. options is nil for a packet of the node.
func (l *look) routeOf(to netip.Addr, options *netlink.RouteGetOptions) (netlink.Route, error) {
	routes, err := l.netlink.RouteGetWithOptions(to.AsSlice(), options)
	if err != nil {
		return netlink.Route{}, err
	}
	if len(routes) == 0 {
		return netlink.Route{}, unix.ENETUNREACH
	}
	return routes[0], nil
}

// checkForwarding looks at the sysctls. IPv4 looks at the device that a packet comes from, IPv6 at all together.
func (l *look) checkForwarding(family int, pods []pod) {
	if family == unix.AF_INET6 {
		forced, _ := readSysctl("ipv6", l.target.Device, "force_forwarding") // since Linux 6.17
		if all, ok := readSysctl("ipv6", "all", "forwarding"); ok && all == 0 && forced != 1 {
			if l.target.Pod.Device != "" {
				l.addFinding("", ForwardingOff, "forwarding of IPv6 is off in the pod", podRemedy("net.ipv6.conf.all.forwarding"))
				return
			}
			l.addFinding("", ForwardingOff, "forwarding of IPv6 is off on the node",
				"sysctl -w net.ipv6.conf.all.forwarding=1 (a router accepts router advertisements with accept_ra=2 only)")
		}
		return
	}
	for _, d := range append([]pod{{device: l.target.Device}}, pods...) {
		if on, ok := readSysctl("ipv4", d.device, "forwarding"); ok && on == 0 {
			whose := "from pods"
			if d.device == l.target.Device {
				whose = "from links"
			}
			remedy := fmt.Sprintf("sysctl -w net.ipv4.ip_forward=1, or net.ipv4.conf.%s.forwarding=1 for this device only",
				d.device)
			if l.target.Pod.Device != "" {
				remedy = "kubelink sets it again; if this stays: " + podRemedy("net.ipv4.ip_forward")
			}
			l.addFinding("", ForwardingOff,
				fmt.Sprintf("forwarding of IPv4 is off for packets %s (device %s)", whose, d.device), remedy)
		}
	}
}

// podRemedy is how a setting gets into a pod, which cannot write its own /proc/sys.
func podRemedy(setting string) string {
	return fmt.Sprintf("set %s=1 with securityContext.sysctls of the pod, which kubelet allows with "+
		"--allowed-unsafe-sysctls, or with the CNI plugin tuning; or use hostNetwork", setting)
}

// checkBoth asks for the ways to a network and back.
func (l *look) checkBoth(n *network, p *pod) {
	l.checkOut(n, n.host(), p, &netlink.Route{})
	if p.index != 0 {
		l.checkIn(n, p)
	}
}

// checkOut asks for the way of a packet to a network. suspect is a foreign route that may take it.
func (l *look) checkOut(n *network, to netip.Addr, p *pod, suspect *netlink.Route) {
	options, whose := &netlink.RouteGetOptions{}, "packets of the node"
	if p.index != 0 {
		options.IifIndex, options.SrcAddr = p.index, p.address.AsSlice()
		whose = fmt.Sprintf("packets of pods (%s, device %s)", p.address, p.device)
	}
	r, err := l.routeOf(to, options)
	if err == nil && r.LinkIndex == l.index {
		return
	}
	plain := suspect.Type <= unix.RTN_UNICAST && p.index != 0
	if err != nil && plain && l.explain(err, n.link, p.device, p.address.String()) {
		return
	}
	options.FIBMatch = true
	match, matchErr := l.routeOf(to, options)
	if matchErr != nil {
		match = *suspect
	}
	l.addRoute(n, to, whose, err, &match)
}

// lookFor is the end of remedies for what kubelink sets itself.
const lookFor = "look for the program that removes it, or for an error at the LocalLink"

// addRoute adds the finding that packets leave another way than ours.
func (l *look) addRoute(n *network, to netip.Addr, whose string, err error, match *netlink.Route) {
	way := "would leave by " + l.routeText(match)
	if err != nil {
		way = "would not leave: " + errorText(err)
		if match.Dst != nil {
			way += " (" + l.routeText(match) + ")"
		}
	}
	text := fmt.Sprintf("%s to %s (for example %s) %s", whose, n.prefix, to, way)
	other := match.Table != 0 && match.Table != l.target.Table
	specific := match.Dst != nil && toPrefix(match.Dst).Bits() >= n.prefix.Bits()
	switch {
	case other && match.Table != unix.RT_TABLE_LOCAL && match.Table != unix.RT_TABLE_MAIN:
		rule, priority := l.ruleText(match.Table, familyOf(to))
		l.addFinding(n.link, ForeignRoute, text+rule,
			fmt.Sprintf("set route-table (such as 107) and a rule-priority below %d, "+
				"so that the routes of kubelink come first, or remove the rule", priority))
	case specific || match.Table == unix.RT_TABLE_LOCAL:
		l.addFinding(n.link, ForeignRoute, text, fmt.Sprintf("remove the route (ip route del %s), "+
			"or take %s out of the networks of the link", l.routeText(match), n.prefix))
	case isRefused(err) && match.Dst == nil:
		l.addFinding(n.link, ForeignRoute, text+" (a rule refuses them)", "remove the rule of type prohibit, unreachable or "+
			"blackhole (see ip rule), or set route-table (such as 107) and a rule-priority below that of the rule")
	default:
		l.addFinding(n.link, RouteMissing, text,
			"kubelink sets its route again; if this stays, "+lookFor)
	}
}

// isRefused tells whether a rule or a route without device refuses packets: prohibit, unreachable, blackhole.
func isRefused(err error) bool {
	return errors.Is(err, unix.EACCES) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EINVAL)
}

// checkIn asks for the way of a packet from a network to a pod.
func (l *look) checkIn(n *network, p *pod) {
	_, err := l.routeOf(p.address, &netlink.RouteGetOptions{IifIndex: l.index, SrcAddr: n.host().AsSlice()})
	if err == nil || l.explain(err, n.link, l.target.Device, n.host().String()) {
		return
	}
	text := fmt.Sprintf("packets from %s to pods (%s) find no way: %s", n.prefix, p.address, errorText(err))
	l.addFinding(n.link, RouteMissing, text, "mend the routes of the pod network on this node")
}

// explain adds the finding that a sysctl of the device, from which a packet comes, causes. It tells whether one does.
func (l *look) explain(err error, peer, device, source string) bool {
	forwarding, known := readSysctl("ipv4", device, "forwarding")
	all, _ := readSysctl("ipv4", "all", "rp_filter")
	own, _ := readSysctl("ipv4", device, "rp_filter")
	switch {
	case errors.Is(err, unix.EHOSTUNREACH) && known && forwarding == 0:
		return true // checkForwarding says it
	case (errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EINVAL)) && max(all, own) == 1:
		l.addFinding(peer, ReversePathFilter,
			fmt.Sprintf("the strict reverse path filter of device %s drops packets from %s, "+
				"because answers would leave another way", device, source),
			fmt.Sprintf("sysctl -w net.ipv4.conf.%s.rp_filter=2 (loose)", device))
		return true
	}
	return false
}

// typeWords are the types of routes without device, as ip(8) takes them.
var typeWords = map[int][]string{
	unix.RTN_BLACKHOLE: {"blackhole"}, unix.RTN_UNREACHABLE: {"unreachable"}, unix.RTN_PROHIBIT: {"prohibit"},
}

// routeText describes a route as ip(8) takes it.
func (l *look) routeText(r *netlink.Route) string {
	words := slices.Clone(typeWords[r.Type])
	switch {
	case r.Dst == nil || toPrefix(r.Dst).Bits() == 0:
		words = append(words, "default")
	default:
		words = append(words, toPrefix(r.Dst).String())
	}
	if len(r.Gw) > 0 {
		words = append(words, "via", r.Gw.String())
	}
	if name := l.names[r.LinkIndex]; name != "" {
		words = append(words, "dev", name)
	}
	switch r.Table {
	case unix.RT_TABLE_MAIN, 0:
	case unix.RT_TABLE_LOCAL:
		words = append(words, "table local")
	default:
		words = append(words, "table", strconv.Itoa(r.Table))
	}
	return strings.Join(words, " ")
}

// ruleText names the first rule that leads to a table.
func (l *look) ruleText(table, family int) (text string, priority int) {
	rules, err := l.netlink.RuleList(family)
	if err != nil {
		return "", 1
	}
	for _, r := range rules {
		if r.Table == table {
			from := "all"
			if r.Src != nil {
				from = r.Src.String()
			}
			return fmt.Sprintf(", because of the rule with priority %d (from %s lookup %d)", r.Priority, from, table), r.Priority
		}
	}
	return "", 1
}

// readSysctl reads a setting of a device.
func readSysctl(family, device, name string) (value int, ok bool) {
	text, err := os.ReadFile(filepath.Join("/proc/sys/net", family, "conf", device, name))
	if err != nil {
		return 0, false
	}
	value, err = strconv.Atoi(strings.TrimSpace(string(text)))
	return value, err == nil
}

// indexOfDevice is the index of a device; 0: not known.
func (l *look) indexOfDevice(name string) uint32 {
	for index, n := range l.names {
		if n == name {
			return uint32(index)
		}
	}
	return 0
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func toPrefix(n *net.IPNet) netip.Prefix {
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
}
