package router

// Which routes this node should have. All of it is pure: objects of the API and facts of the node in, routes and
// findings out.

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/kernel"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// The reasons of findings. They are also the reasons of Events, and labels of a metric.
const (
	ForeignRoute      = "ForeignRoute"      // another program has a route where one of ours should be
	GatewayNotOnLink  = "GatewayNotOnLink"  // no network of this node leads straight to the gateway
	GatewayAddress    = "GatewayAddress"    // the gateway has no address of the family
	NetworkRefused    = "NetworkRefused"    // a route to the network would take something away from this node
	TunnelMissing     = "TunnelMissing"     // the tunnel to the gateway is not there
	RouteNotSet       = "RouteNotSet"       // the kernel refuses a route
	PacketsTakenAway  = "PacketsTakenAway"  // packets of pods to a mesh leave another way
	ReversePathFilter = "ReversePathFilter" // the kernel drops packets because of their source
	ForwardingOff     = "ForwardingOff"     // the kernel does not forward
	AddressesDropped  = "AddressesDropped"  // packets with addresses of meshes do not pass to the gateway
	LargeDropped      = "LargeDropped"      // large packets do not pass to the gateway
	PacketFilter      = "PacketFilter"      // a rule of iptables or nftables drops packets of pods
	TwoGateways       = "TwoGateways"       // two gateways lead to one link
	AccessDenied      = "AccessDenied"      // the API server refuses to tell what the router needs
)

// reasons are all of them.
var reasons = []string{ForeignRoute, GatewayNotOnLink, GatewayAddress, NetworkRefused, TunnelMissing, RouteNotSet,
	PacketsTakenAway, ReversePathFilter, ForwardingOff, AddressesDropped, LargeDropped, PacketFilter, TwoGateways,
	AccessDenied}

// objects are what the API server tells.
type objects struct {
	gateways []*v1alpha1.LinkGateway
	links    []*v1alpha1.KubeLink
	former   []formerEndpoint // of the service of a former broker
}

// formerEndpoint is an address behind the service of a former broker.
type formerEndpoint struct {
	address netip.Addr
	node    string // name; empty: not known
}

// facts are what the node tells.
type facts struct {
	name   string                  // of the node; empty: not known
	ways   map[netip.Addr]lookup   // to the addresses of gateways
	host   mesh.Host               // what the node reaches outside of the meshes
	apart  map[netip.Prefix]string // networks of the cluster that no mesh gets: what they are
	ipip   *tunnel                 // nil: the node uses none
	noIPIP *link.Finding           // why the tunnel that the node should use is not there; nil: it is, or is not needed

	addresses []netip.Addr // of the node, one per family at most
	overlay   *tunnel      // nil: there is no VXLAN device
	noOverlay error        // what is wrong with it; nil: nothing
}

// lookup is what the kernel says of an address.
type lookup struct {
	way kernel.Way
	err error
}

// tunnel is a device that takes packets to the gateway, whatever is between the nodes.
type tunnel struct {
	index int
	mtu   int // in bytes
}

// routing is what a node should have.
type routing struct {
	routes   []kernel.NodeRoute
	findings link.Findings
	unknown  []netip.Prefix // unreachable, for no gateway leads there
	leaders  []leader
}

// leader is a gateway, as the API server tells of it.
type leader struct {
	former   bool   // it has said nothing itself, and its routes have no mark
	name     string // as messages call it
	node     string
	nodeIPs  []netip.Addr
	podIPs   []netip.Addr
	networks []netip.Prefix
	mtu      int
	vxlan    *v1alpha1.GatewayVXLAN
}

// allAddresses are all of the gateway.
func (l *leader) allAddresses() []netip.Addr { return slices.Concat(l.nodeIPs, l.podIPs) }

// findLeaders returns the gateways, the one that has precedence first. A former broker counts while there is no
// LinkGateway: it leads the links whose status names its node.
func findLeaders(o *objects, apart map[netip.Prefix]string) (leaders []leader) {
	sorted := slices.SortedFunc(slices.Values(o.gateways), func(a, b *v1alpha1.LinkGateway) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	for _, g := range sorted {
		l := leader{name: "LinkGateway " + g.Name, node: g.Spec.Node, mtu: int(g.Spec.MTU), vxlan: g.Spec.VXLAN,
			nodeIPs: parseAddresses(g.Spec.NodeIPs), podIPs: parseAddresses(g.Spec.PodIPs)}
		for _, n := range g.Spec.Networks {
			if p, err := netip.ParsePrefix(string(n)); err == nil {
				l.networks = append(l.networks, p.Masked())
			}
		}
		leaders = append(leaders, l)
	}
	if len(leaders) > 0 {
		return leaders
	}
	return findFormerLeaders(o, apart)
}

// findFormerLeaders returns a gateway for each node that the status of a link names.
func findFormerLeaders(o *objects, apart map[netip.Prefix]string) []leader {
	byNode := map[netip.Addr]*leader{}
	for _, k := range o.links {
		a, err := netip.ParseAddr(k.Status.Gateway)
		if err != nil || !claimsNetworks(k) {
			continue
		}
		l := byNode[a]
		if l == nil {
			l = &leader{former: true, name: "the former broker on node " + a.String(), nodeIPs: []netip.Addr{a}}
			byNode[a] = l
		}
		l.networks = append(l.networks, mesh.Networks(&k.Spec)...)
	}
	// A broker whose endpoint is no address of a node runs in a pod. With several endpoints, none is known.
	if len(o.former) == 1 && len(byNode) == 1 && !containsAddress(apart, titleNodes, o.former[0].address) {
		for _, l := range byNode {
			l.podIPs, l.node = []netip.Addr{o.former[0].address}, o.former[0].node
		}
	}
	var leaders []leader
	for _, a := range slices.SortedFunc(maps.Keys(byNode), netip.Addr.Compare) {
		l := byNode[a]
		slices.SortFunc(l.networks, netip.Prefix.Compare)
		l.networks = slices.Compact(l.networks)
		leaders = append(leaders, *l)
	}
	return leaders
}

// claimsNetworks tells whether the networks of a link are a matter of routes: a broker refuses links that could harm.
func claimsNetworks(k *v1alpha1.KubeLink) bool {
	switch k.Status.State {
	case v1alpha1.StateInvalid, v1alpha1.StateStale, v1alpha1.StateDeleting:
		return false
	}
	return k.DeletionTimestamp == nil
}

func parseAddresses(texts []v1alpha1.GatewayIP) (addresses []netip.Addr) {
	for _, t := range texts {
		if a, err := netip.ParseAddr(string(t)); err == nil {
			addresses = append(addresses, a.Unmap())
		}
	}
	return addresses
}

// What networks of the cluster are.
const (
	titleNodes    = "the network of the nodes (node-cidr)"
	titlePods     = "the network of the pods (pod-cidr)"
	titleServices = "the network of the services (service-cidr)"
	titleAPI      = "the service of the API server"
)

// reserved are networks that lead to no other cluster. Where one of them is routed, it leads to the platform below the
// node, such as the server of its credentials at 169.254.169.254.
var reserved = map[netip.Prefix]string{
	netip.MustParsePrefix("0.0.0.0/8"):          "the network of addresses without meaning",
	netip.MustParsePrefix("127.0.0.0/8"):        "the loopback network",
	netip.MustParsePrefix("169.254.0.0/16"):     "the link-local network",
	netip.MustParsePrefix("224.0.0.0/4"):        "the multicast network",
	netip.MustParsePrefix("255.255.255.255/32"): "the broadcast address",
	netip.MustParsePrefix("::/127"):             "the network of the loopback address",
	netip.MustParsePrefix("fe80::/10"):          "the link-local network",
	netip.MustParsePrefix("ff00::/8"):           "the multicast network",
}

func containsAddress(networks map[netip.Prefix]string, title string, a netip.Addr) bool {
	for n, t := range networks {
		if t == title && n.Contains(a) {
			return true
		}
	}
	return false
}

// makeRouting decides which routes the node should have.
func makeRouting(o *objects, f *facts) *routing {
	r := &routing{leaders: findLeaders(o, f.apart)}
	services := ownServices(o.links)
	covered := map[netip.Prefix]bool{}
	claims := newClaims(o.links)
	ways := make([]hops, len(r.leaders))
	for i := range r.leaders {
		l, way := &r.leaders[i], &ways[i]
		*way = findHops(l, f)
		for _, n := range l.networks {
			if covered[n] { // an older gateway leads there
				r.findings = append(r.findings, claims.compare(n, l)...)
				continue
			}
			covered[n] = true
			claims.leaders[n] = l
			for _, part := range r.admitNetwork(n, l.name, f) {
				r.addRoute(part, way)
			}
		}
	}
	r.addUnlisted(o, covered, services, ways, f)
	for i := range ways {
		r.findings = append(r.findings, ways[i].findings...)
	}
	slices.SortFunc(r.routes, func(a, b kernel.NodeRoute) int { return a.Destination.Compare(b.Destination) })
	r.routes = slices.CompactFunc(r.routes, func(a, b kernel.NodeRoute) bool { return a.Destination == b.Destination })
	return r
}

// claims are which gateway leads to which network. Several may lead to a mesh, but one to a link.
type claims struct {
	links   map[netip.Prefix]bool // networks of links, without those of meshes
	leaders map[netip.Prefix]*leader
	told    map[[2]*leader]bool
}

func newClaims(links []*v1alpha1.KubeLink) *claims {
	c := &claims{map[netip.Prefix]bool{}, map[netip.Prefix]*leader{}, map[[2]*leader]bool{}}
	for _, k := range links {
		own, err := mesh.ClusterAddress(k.Spec.ClusterAddress)
		for _, n := range mesh.Networks(&k.Spec) {
			if claimsNetworks(k) && (err != nil || n != own.Masked()) {
				c.links[n] = true
			}
		}
	}
	return c
}

// compare returns a finding where an older gateway leads to a network of a link, once for two gateways. The older one
// may be what a broker has left that had another lease-name or other served-links.
func (c *claims) compare(n netip.Prefix, younger *leader) link.Findings {
	older := c.leaders[n]
	two := [2]*leader{older, younger}
	if older == nil || older == younger || !c.links[n] || c.told[two] ||
		slices.Equal(older.allAddresses(), younger.allAddresses()) { // one place with two names: one of them is about to go
		return nil
	}
	c.told[two] = true
	return link.Findings{{Reason: TwoGateways, Text: fmt.Sprintf(
		"%s (node %.60s) and the younger %s (node %.60s) both lead to %s of a link: packets go to the older one",
		older.name, older.node, younger.name, younger.node, n),
		Remedy: "if no broker has the lease-name of the older one any more, that goes after a minute " +
			"(with omit-lease: delete it); else let one broker serve the link (served-links)"}}
}

// ownServices are the service networks of this cluster.
func ownServices(links []*v1alpha1.KubeLink) (networks []netip.Prefix) {
	for _, k := range links {
		if p, err := netip.ParsePrefix(k.Spec.CIDR); err == nil && k.Spec.Endpoint == v1alpha1.EndpointLocal {
			networks = append(networks, p.Masked())
		}
	}
	return networks
}

// admitNetwork returns the parts of a network that a route may lead to. A network that is wider than one of this
// cluster leaves that one out; a network that covers what the node needs is refused.
func (r *routing) admitNetwork(n netip.Prefix, from string, f *facts) (parts []netip.Prefix) {
	refuse := func(text, remedy string) {
		r.findings = append(r.findings, link.Finding{Reason: NetworkRefused,
			Text: fmt.Sprintf("%s: %s", from, text), Remedy: remedy})
	}
	const remedy = "name only networks that belong to the other cluster"
	if mesh.CheckWidth(n) != nil { // not even in parts
		refuse(fmt.Sprintf("%s is the default route of this node, or a large part of it", n), remedy)
		return nil
	}
	parts = []netip.Prefix{n}
	for _, networks := range []map[netip.Prefix]string{f.apart, reserved} {
		for _, apart := range slices.SortedFunc(maps.Keys(networks), netip.Prefix.Compare) {
			var left []netip.Prefix
			for _, p := range parts {
				left = append(left, subtractNetwork(p, apart)...)
			}
			if parts = left; len(parts) == 0 {
				refuse(fmt.Sprintf("%s is in %s, %s", n, networks[apart], apart), remedy)
				return nil
			}
		}
	}
	return slices.DeleteFunc(parts, func(p netip.Prefix) bool {
		problem := f.host.CheckRoute(p)
		if problem != nil {
			refuse(problem.Message, "there is no route to it on this node")
		}
		return problem != nil
	})
}

// subtractNetwork returns what is left of a network without another one.
func subtractNetwork(n, other netip.Prefix) []netip.Prefix {
	switch {
	case !n.Overlaps(other):
		return []netip.Prefix{n}
	case n.Bits() >= other.Bits():
		return nil
	}
	low := netip.PrefixFrom(n.Addr(), n.Bits()+1).Masked()
	bytes := n.Addr().AsSlice()
	bytes[n.Bits()/8] |= 1 << (7 - n.Bits()%8)
	address, _ := netip.AddrFromSlice(bytes)
	high := netip.PrefixFrom(address, n.Bits()+1)
	return append(subtractNetwork(low, other), subtractNetwork(high, other)...)
}

// hops are the ways to a gateway, by family.
type hops struct {
	own      bool                      // the node is the gateway and has the routes of the broker
	via      map[bool]kernel.NodeRoute // by Is4, without destination
	missing  map[bool]bool             // families that findings tell of
	leader   *leader
	findings link.Findings
}

// addRoute adds the route to a network. Where there is no way to the gateway, the network is unreachable.
func (r *routing) addRoute(n netip.Prefix, h *hops) {
	if h.own {
		if !h.leader.former { // until the broker has its routes, and when they are gone
			r.routes = append(r.routes, kernel.NodeRoute{Destination: n, Fallback: true})
		}
		return
	}
	is4 := n.Addr().Is4()
	route, ok := h.via[is4]
	if !ok && !h.missing[is4] {
		h.missing[is4] = true
		h.findings = append(h.findings, link.Finding{Reason: GatewayAddress,
			Text:   fmt.Sprintf("%s has no %s address of its node, but leads to %s", h.leader.name, familyName(is4), n),
			Remedy: "give the node such an address, or name networks of the other family only"})
	}
	route.Destination = n
	r.routes = append(r.routes, route)
}

func familyName(is4 bool) string {
	if is4 {
		return "IPv4"
	}
	return "IPv6"
}

// isHere tells whether the gateway is on this node.
func (l *leader) isHere(f *facts) bool {
	return l.node != "" && l.node == f.name ||
		slices.ContainsFunc(l.nodeIPs, func(a netip.Addr) bool { return f.ways[a].way.Local })
}

// nextAddresses returns the addresses of the gateway that packets go to from this node. own: this is its node and has
// the routes of the broker.
func (l *leader) nextAddresses(f *facts) (next []netip.Addr, own bool) {
	here := l.isHere(f)
	if here || l.vxlan != nil { // other nodes reach a pod through the overlay, too
		next = slices.DeleteFunc(slices.Clone(l.podIPs), func(a netip.Addr) bool { return f.ways[a].way.Local })
	}
	if len(next) > 0 {
		return next, false
	}
	return l.nodeIPs, here
}

// findHops finds the ways to a gateway.
func findHops(l *leader, f *facts) hops {
	h := hops{leader: l, via: map[bool]kernel.NodeRoute{}, missing: map[bool]bool{}}
	next, own := l.nextAddresses(f)
	switch {
	case own:
		h.own = true
		return h
	case l.vxlan != nil:
		h.findOverlayHops(next, f)
		return h
	}
	for _, a := range next {
		route, finding := findHop(l, a, l.isHere(f), f)
		if finding != nil {
			h.missing[a.Is4()] = true
			h.findings = append(h.findings, *finding)
			continue
		}
		h.via[a.Is4()] = route
	}
	return h
}

// findHop finds the way to an address of a gateway.
func findHop(l *leader, a netip.Addr, here bool, f *facts) (kernel.NodeRoute, *link.Finding) {
	t, finding := findTunnel(a, here, f)
	if finding != nil {
		return kernel.NodeRoute{}, finding
	}
	if t != nil {
		return kernel.NodeRoute{Gateway: a, Index: t.index, OnLink: true, MTU: lowerMTU(l.mtu, t.mtu)}, nil
	}
	found, ok := f.ways[a]
	what, where, remedy := "node", "not on a network of this node, but behind %s (device %s), which knows no mesh",
		"set --ipip=shared or --ipip=configure here and the property ipip in the Corefile"
	if here { // when the pod goes, its route goes before the next one has said where it is
		what, where = "pod", "not on this node: the way to it leads to %s (device %s)"
		remedy = "wait while the broker's pod moves, or is replaced; if this stays, look at the routes of the pod network " +
			"on this node"
	}
	switch {
	case !ok || found.err != nil:
		return kernel.NodeRoute{}, &link.Finding{Reason: GatewayNotOnLink,
			Text: fmt.Sprintf("%s: no way to its %s %s: %v", l.name, what, a, found.err), Remedy: remedy}
	case found.way.Gateway.IsValid():
		return kernel.NodeRoute{}, &link.Finding{Reason: GatewayNotOnLink, Text: fmt.Sprintf("%s: its %s %s is "+where,
			l.name, what, a, found.way.Gateway, found.way.Device), Remedy: remedy}
	}
	// The kernel says that it reaches a pod without a gateway: so onlink, also where no network of the device has it.
	return kernel.NodeRoute{Gateway: a, Index: found.way.Index, OnLink: here, MTU: lowerMTU(l.mtu, found.way.MTU)}, nil
}

// findTunnel tells through which tunnel packets to an address of a gateway go; nil: through none.
func findTunnel(a netip.Addr, here bool, f *facts) (*tunnel, *link.Finding) {
	if here || !a.Is4() {
		return nil, nil // IPIP is a tunnel between nodes, for IPv4
	}
	return f.ipip, f.noIPIP
}

// lowerMTU is the MTU of a route; 0: that of its device will do.
func lowerMTU(gateway, device int) int {
	if gateway > 0 && gateway < device {
		return gateway
	}
	return 0
}

// addUnlisted adds the networks of links that no gateway lists. While a broker is about to list them, the status of the
// link already names its node: they lead there. Else they are unreachable: they must not take the default route.
func (r *routing) addUnlisted(
	o *objects, covered map[netip.Prefix]bool, services []netip.Prefix, ways []hops, f *facts,
) {
	known := func(n netip.Prefix) bool {
		for own := range f.apart { // the broker leads to no such network, and the status of the link says so
			if own.Contains(n.Addr()) && own.Bits() <= n.Bits() {
				return true
			}
		}
		for bits := n.Bits(); bits >= 0; bits-- {
			if wider, _ := n.Addr().Prefix(bits); covered[wider] {
				return true
			}
		}
		return slices.ContainsFunc(services, n.Overlaps)
	}
	for _, k := range o.links {
		if !claimsNetworks(k) {
			continue
		}
		way := findServing(k, ways)
		for _, n := range mesh.Networks(&k.Spec) {
			if known(n) {
				continue
			}
			covered[n] = true
			if way == nil {
				r.unknown = append(r.unknown, n)
			}
			for _, part := range r.admitNetwork(n, "KubeLink "+k.Name, f) {
				if way != nil {
					r.addRoute(part, way)
				} else {
					r.routes = append(r.routes, kernel.NodeRoute{Destination: part, Fallback: true})
				}
			}
		}
	}
	slices.SortFunc(r.unknown, netip.Prefix.Compare)
}

// findServing returns the way to the gateway on the node that the status of a link names; nil: there is none, or more
// than one.
func findServing(k *v1alpha1.KubeLink, ways []hops) (serving *hops) {
	a, err := netip.ParseAddr(k.Status.Gateway)
	if err != nil {
		return nil
	}
	for i := range ways {
		if !slices.Contains(ways[i].leader.nodeIPs, a.Unmap()) {
			continue
		}
		if serving != nil {
			return nil
		}
		serving = &ways[i]
	}
	return serving
}
