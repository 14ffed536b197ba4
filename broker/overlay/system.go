package overlay

// The kernel: rtnetlink(7). It compares what a plan wants with what is there.

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/kernel"
)

// alias marks our device (ifalias in sysfs, `ip link show`).
const alias = "kubelink overlay"

// system is the kernel of this machine. One call at a time: the Overlay sees to that.
type system struct {
	netlink *netlink.Handle
}

// ways finds ways to peers, and keeps what devices it has seen.
type ways struct {
	netlink *netlink.Handle
	self    netip.Addr
	devices map[int]netlink.Link
}

// way is how the kernel reaches an address.
type way struct {
	device string
	mtu    int // in bytes
}

func (s *system) newWays(self netip.Addr) *ways {
	return &ways{s.netlink, self, map[int]netlink.Link{}}
}

// find asks the kernel for the way of a packet from our address.
func (w *ways) find(to netip.Addr) (way, error) {
	found, err := w.netlink.RouteGetWithOptions(to.AsSlice(), &netlink.RouteGetOptions{SrcAddr: w.self.AsSlice()})
	if err != nil {
		return way{}, fmt.Errorf("way from %s to %s: %w", w.self, to, err)
	}
	r := found[0]
	device, known := w.devices[r.LinkIndex]
	if !known {
		if device, err = w.netlink.LinkByIndex(r.LinkIndex); err != nil {
			return way{}, fmt.Errorf("device of the way to %s: %w", to, err)
		}
		w.devices[r.LinkIndex] = device
	}
	mtu := device.Attrs().MTU
	if r.MTU > 0 && r.MTU < mtu {
		mtu = r.MTU
	}
	return way{device.Attrs().Name, mtu}, nil
}

// findUplinks returns the names of the devices with a route to another machine. Routes to pods of this node have none.
func (s *system) findUplinks(own string) (names []string, err error) {
	routes, err := s.netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("routes of the main table: %w", err)
	}
	indexes := map[int]bool{}
	for _, r := range routes {
		if r.Protocol == kernel.Protocol { // a link
			continue
		}
		if r.Gw != nil || r.Via != nil {
			indexes[r.LinkIndex] = true
		}
		for _, hop := range r.MultiPath {
			indexes[hop.LinkIndex] = true
		}
	}
	for index := range indexes {
		device, err := s.netlink.LinkByIndex(index)
		if err == nil && device.Attrs().Name != own {
			names = append(names, device.Attrs().Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// wantedDevice is the device of a plan.
func (p *plan) wantedDevice() *netlink.Vxlan {
	return &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: p.device, MTU: p.mtu, HardwareAddr: makeMAC(p.self)},
		VxlanId: p.state.VNI, Port: p.listenPort(), SrcAddr: p.self.AsSlice()}
}

// removeOutdated removes a device that cannot be changed to the wanted one. It goes before the filters of its port do.
// With it the kernel removes the routes through it: what they led to is unreachable until there are new ones, for it
// must not take the default route.
func (s *system) removeOutdated(p *plan) error {
	wanted := p.wantedDevice()
	found, err := s.findDevice(p.device)
	if err != nil || found == nil {
		return err
	}
	if found.VxlanId == wanted.VxlanId && found.Port == wanted.Port && !found.Learning &&
		found.SrcAddr.Equal(wanted.SrcAddr) {
		return nil
	}
	if err := s.holdRoutes(found.Index, p.role.routeProtocol()); err != nil {
		return fmt.Errorf("the old device %s stays: %w", p.device, err)
	}
	if err := s.netlink.LinkDel(found); err != nil {
		return fmt.Errorf("remove the old device %s: %w", p.device, err)
	}
	return nil
}

// holdRoutes adds an unreachable route behind each route through a device that has a mark of ours. It has the same
// mark: when there is a new route, the owner removes it as one that it does not want.
func (s *system) holdRoutes(index int, mark netlink.RouteProtocol) (err error) {
	for _, f := range families {
		through := &netlink.Route{LinkIndex: index, Protocol: mark, Table: unix.RT_TABLE_UNSPEC}
		found, failed := s.netlink.RouteListFiltered(f, through,
			netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		if failed != nil && !errors.Is(failed, unix.EAFNOSUPPORT) {
			err = errors.Join(err, fmt.Errorf("routes of IPv%d: %w", kernel.IPVersion(f), failed))
		}
		for _, r := range found {
			held := netlink.Route{Family: f, Dst: r.Dst, Table: r.Table, Protocol: mark, Type: unix.RTN_UNREACHABLE,
				Priority: r.Priority + 1}
			if failed := s.netlink.RouteReplace(&held); failed != nil {
				err = errors.Join(err, fmt.Errorf("unreachable route to %s in table %d: %w", r.Dst, r.Table, failed))
			}
		}
	}
	return err
}

// setDevice makes the device as it is wanted, and returns its index. It makes none without filters.
func (s *system) setDevice(p *plan, filtered bool) (int, error) {
	if len(p.peers) == 0 {
		return 0, errors.New("the overlay has no peer that it can reach")
	}
	found, err := s.findDevice(p.device)
	if err != nil {
		return 0, err
	}
	if found == nil {
		if !filtered {
			return 0, fmt.Errorf("device %s is not made: it has no filters", p.device)
		}
		return s.addDevice(p.wantedDevice())
	}
	return found.Index, s.adjustDevice(found, p.wantedDevice())
}

const portRemedy = "choose another one with the property vxlan-port, or vxlan-vni, of kubelink"

// checkPort says which other device or program has the name or the port of the device. Filters would drop its packets.
func (s *system) checkPort(p *plan) error {
	found, err := s.findDevice(p.device)
	if err != nil || found != nil && found.Port == p.listenPort() {
		return err
	}
	links, err := s.netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	for _, l := range links {
		if other, ok := l.(*netlink.Vxlan); ok && other.Port == p.listenPort() {
			return fmt.Errorf("UDP port %d of device %s is that of the VXLAN device %s (VNI %d), which is not kubelink's: %s",
				p.listenPort(), p.device, other.Name, other.VxlanId, portRemedy)
		}
	}
	socket, err := net.ListenUDP("udp", &net.UDPAddr{Port: p.listenPort()})
	if err == nil {
		return socket.Close()
	}
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("UDP port %d is that of another program: %s", p.listenPort(), portRemedy)
	}
	return nil // the device may get it
}

// addDevice makes the device.
func (s *system) addDevice(wanted *netlink.Vxlan) (int, error) {
	if err := s.netlink.LinkAdd(wanted); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) {
			err = fmt.Errorf("%w: load the kernel module vxlan on the node", err)
		}
		return 0, fmt.Errorf("make the VXLAN device %s with VNI %d and UDP port %d: %w",
			wanted.Name, wanted.VxlanId, wanted.Port, err)
	}
	made, err := s.netlink.LinkByName(wanted.Name)
	if err != nil {
		return 0, fmt.Errorf("find the new device %s: %w", wanted.Name, err)
	}
	err = s.adjustDevice(made.(*netlink.Vxlan), wanted)
	if err != nil {
		if errors.Is(err, unix.EADDRINUSE) {
			err = fmt.Errorf("UDP port %d is that of another program: %s", wanted.Port, portRemedy)
		}
		return 0, errors.Join(err, s.netlink.LinkDel(made))
	}
	return made.Attrs().Index, nil
}

// adjustDevice changes what can be changed.
func (s *system) adjustDevice(found, wanted *netlink.Vxlan) error {
	var errs []error
	if found.Alias != alias {
		errs = append(errs, s.netlink.LinkSetAlias(found, alias))
	}
	if found.HardwareAddr.String() != wanted.HardwareAddr.String() {
		errs = append(errs, s.netlink.LinkSetHardwareAddr(found, wanted.HardwareAddr))
	}
	if found.MTU != wanted.MTU {
		errs = append(errs, s.netlink.LinkSetMTU(found, wanted.MTU))
	}
	if found.Flags&net.FlagUp == 0 {
		errs = append(errs, s.netlink.LinkSetUp(found))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("device %s with MTU %d: %w", wanted.Name, wanted.MTU, err)
	}
	return nil
}

// findDevice returns our device; nil: there is none. Without alias it is ours if its MAC address is: a process was
// killed before it could set the alias.
func (s *system) findDevice(name string) (*netlink.Vxlan, error) {
	found, err := s.netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", name, err)
	}
	device, ok := found.(*netlink.Vxlan)
	if ok && (device.Alias == alias || device.Alias == "" && strings.HasPrefix(device.HardwareAddr.String(), "02:6b:")) {
		return device, nil
	}
	return nil, fmt.Errorf("there is a device %s that is not kubelink's (a %s device): "+
		"rename it (ip link set %s name NAME)", name, found.Type(), name)
}

// removeDevice leaves a foreign device.
func (s *system) removeDevice(name string) error {
	found, _ := s.findDevice(name)
	if found == nil {
		return nil
	}
	if err := s.netlink.LinkDel(found); err != nil {
		return fmt.Errorf("remove device %s: %w", name, err)
	}
	return nil
}

// setPeers sets where the packets for a peer go: forwarding database and neighbours. What is there and not wanted is
// removed.
func (s *system) setPeers(p *plan, index int) (errs []error) {
	wanted := map[string]netlink.Neigh{}
	for _, x := range p.peers {
		for _, n := range x.entries(index) {
			wanted[entryKey(n)] = n
		}
	}
	for _, family := range []int{unix.AF_BRIDGE, unix.AF_INET, unix.AF_INET6} {
		found, err := s.netlink.NeighList(index, family)
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			return append(errs, fmt.Errorf("neighbours of %s: %w", p.device, err))
		}
		for _, n := range found {
			if n.LinkIndex != index || n.State&netlink.NUD_PERMANENT == 0 {
				continue
			}
			n.Family = family
			if n.IP.To4() != nil {
				n.IP = n.IP.To4()
			}
			if _, keep := wanted[entryKey(n)]; keep {
				delete(wanted, entryKey(n))
			} else if err := removeEntry(n); err != nil {
				errs = append(errs, fmt.Errorf("remove %s (%s) from %s: %w", n.IP, n.HardwareAddr, p.device, err))
			}
		}
	}
	for _, n := range wanted {
		if err := setEntry(n, p.peerPort()); err != nil {
			errs = append(errs, fmt.Errorf("set %s (%s) on %s: %w", n.IP, n.HardwareAddr, p.device, err))
		}
	}
	return errs
}

// entries are what the kernel needs to know of a peer.
func (x peer) entries(index int) []netlink.Neigh {
	entries := []netlink.Neigh{{LinkIndex: index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF,
		State: netlink.NUD_PERMANENT | netlink.NUD_NOARP, IP: x.address.AsSlice(), HardwareAddr: x.mac}}
	for _, a := range x.hops {
		entries = append(entries, netlink.Neigh{LinkIndex: index, Family: kernel.FamilyOf(a), State: netlink.NUD_PERMANENT,
			IP: a.AsSlice(), HardwareAddr: x.mac})
	}
	return entries
}

func entryKey(n netlink.Neigh) string { return fmt.Sprint(n.Family, n.IP, n.HardwareAddr) }

// attrPort is NDA_PORT of linux/neighbour.h.
const attrPort = 6

// setEntry adds or replaces an entry. In the forwarding database it has the port of the peer: without it the kernel
// takes that of the device.
func setEntry(n netlink.Neigh, port int) error {
	request := entryRequest(n, unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	request.AddData(nl.NewRtAttr(unix.NDA_DST, n.IP))
	if n.Family == unix.AF_BRIDGE {
		request.AddData(nl.NewRtAttr(attrPort, binary.BigEndian.AppendUint16(nil, uint16(port))))
	}
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// removeEntry removes an entry; of the forwarding database all that has the MAC address, whatever its port.
func removeEntry(n netlink.Neigh) error {
	request := entryRequest(n, unix.RTM_DELNEIGH, 0)
	if n.Family != unix.AF_BRIDGE {
		request.AddData(nl.NewRtAttr(unix.NDA_DST, n.IP))
	}
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func entryRequest(n netlink.Neigh, command, flags int) *nl.NetlinkRequest {
	request := nl.NewNetlinkRequest(command, flags|unix.NLM_F_ACK)
	request.AddData(&netlink.Ndmsg{Family: uint8(n.Family), Index: uint32(n.LinkIndex), State: uint16(n.State),
		Flags: uint8(n.Flags)})
	request.AddData(nl.NewRtAttr(unix.NDA_LLADDR, n.HardwareAddr))
	return request
}

// setRoutes leads the addresses of nodes into the overlay, in our table. What is new comes before what is old goes.
func (s *system) setRoutes(p *plan, index int) (errs []error) {
	wanted, missing := map[string]bool{}, map[string]*netlink.Route{}
	for _, x := range p.peers {
		for _, a := range x.inner {
			r := &netlink.Route{Table: Table, Dst: hostNet(a), LinkIndex: index, Protocol: Protocol,
				Scope: netlink.SCOPE_LINK}
			wanted[r.Dst.String()], missing[r.Dst.String()] = true, r
		}
	}
	found, errs := s.listRoutes()
	for _, r := range found {
		if r.LinkIndex == index {
			delete(missing, r.Dst.String())
		}
	}
	for _, r := range missing {
		if err := s.netlink.RouteReplace(r); err != nil {
			errs = append(errs, fmt.Errorf("route %s dev %s table %d: %w", r.Dst, p.device, Table, err))
		}
	}
	if len(missing) > 0 { // some of the old ones are replaced
		found, _ = s.listRoutes()
	}
	for _, r := range found {
		if wanted[r.Dst.String()] && r.LinkIndex == index {
			continue
		}
		if err := s.netlink.RouteDel(&r); err != nil {
			errs = append(errs, fmt.Errorf("remove route %s of table %d: %w", r.Dst, Table, err))
		}
	}
	return errs
}

// listRoutes returns the routes of our table that are ours.
func (s *system) listRoutes() (routes []netlink.Route, errs []error) {
	for _, f := range families {
		found, err := s.netlink.RouteListFiltered(f, &netlink.Route{Table: Table, Protocol: Protocol},
			netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			errs = append(errs, fmt.Errorf("routes of table %d: %w", Table, err))
		}
		routes = append(routes, found...)
	}
	return routes, errs
}

// setRules sets the rules, and removes all others with Protocol.
func (s *system) setRules(wanted []netlink.Rule) (errs []error) {
	missing := slices.Clone(wanted)
	var old []netlink.Rule
	for _, f := range families {
		found, err := s.netlink.RuleList(f)
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			errs = append(errs, fmt.Errorf("rules of IPv%d: %w", kernel.IPVersion(f), err))
		}
		for _, r := range found {
			if r.Protocol != Protocol {
				continue
			}
			r.Family = f
			count := len(missing)
			missing = slices.DeleteFunc(missing, func(m netlink.Rule) bool { return ruleKey(m) == ruleKey(r) })
			if len(missing) == count {
				old = append(old, r)
			}
		}
	}
	for _, r := range missing {
		if err := s.netlink.RuleAdd(&r); err != nil {
			errs = append(errs, fmt.Errorf("add rule %s: %w", ruleKey(r), err))
		}
	}
	for _, r := range old {
		if err := s.netlink.RuleDel(&r); err != nil {
			errs = append(errs, fmt.Errorf("remove rule %s: %w", ruleKey(r), err))
		}
	}
	return errs
}

// ruleKey is the rule as ip(8) takes it.
func ruleKey(r netlink.Rule) string {
	text := fmt.Sprintf("IPv%d priority %d", kernel.IPVersion(r.Family), r.Priority)
	if r.Src != nil {
		text += " from " + r.Src.String()
	}
	if r.IifName != "" {
		text += " iif " + r.IifName
	}
	return fmt.Sprintf("%s lookup %d", text, r.Table)
}
