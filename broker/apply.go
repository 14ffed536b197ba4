package broker

// The order of effects.

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/mandelsoft/kubelink/broker/apizone"
	"github.com/mandelsoft/kubelink/broker/kernel"
	"github.com/mandelsoft/kubelink/broker/kubeapi"
	"github.com/mandelsoft/kubelink/broker/lease"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/nodecheck"
)

// apply is the one place that orders effects. Independent parts do not stop each other: their errors are joined.
// pending is kernel.ErrBusy while the kernel is still being told. While it is not known which broker holds the links,
// the gateway stays as it is: the kernel may have what an earlier process left.
func (r *reconciler) apply(s *mesh.State, accesses []apizone.Access, at kubeapi.Entrance) (err, pending error) {
	publish := func(from *nameSource) {
		from.state, from.restored = s, r.holder.Role == lease.Unknown
		from.accesses, from.globals = accesses, r.globals.Zones()
		from.elsewhere, from.credentials = r.holder.Elsewhere, r.creds.Usable()
	}
	// Names of links that go are the first to go: no client shall wait for what is being taken down.
	r.names.publish(publish)
	switch {
	case r.gateway == nil || r.holder.Role == lease.Unknown:
	case r.holder.Role == lease.Standby:
		err, pending = r.leaveLinks(s)
	default:
		err, pending = r.carryLinks(s, at)
	}
	// Names of links that have come are the last: a client that gets an answer can use it.
	r.names.publish(publish)
	return err, pending
}

// carryLinks makes the gateway carry the links.
func (r *reconciler) carryLinks(s *mesh.State, at kubeapi.Entrance) (err, pending error) {
	// Peers come before routes: dialling starts at once, and the first routed packet finds a link. NAT comes
	// before addresses and routes (kernel.Set sees to that), so that no packet leaves with a foreign source
	// address. On removal the order is harmless: what is still routed for an instant is answered with
	// unreachable. In mode wireguard the kernel filters what links send, so peers wait for its first chains.
	g := r.gateway
	settings := r.cfg.linkSettings(at.Port)
	settings.Term = r.holder.Term
	settings.DNS, settings.API, _ = r.newAnnouncement(s) // what is missing is told by the LocalLinks
	settings.Offers = r.services.Offers()
	errs := []error{g.Configure(settings)}
	peers := s.Peers
	if !r.creds.Usable() {
		peers = nil // better no link than one without authentication
	}
	want := kernel.NewState(s)
	want.Services = r.services.List()
	if g.filters {
		want.FilterLinks(s)
	} else {
		errs = append(errs, g.Set(peers, s.Local))
	}
	want.Tunnel = r.tunnelOf(at)
	want.Pod = kernel.Pod{Is: g.place.InPod, Device: g.place.Device}
	want.Masquerade = r.cfg.VXLAN.Wanted && !g.place.InPod
	r.names.changeSource(func(from *nameSource) { from.keepRouted(s) })
	err, pending = r.setKernel(want, func(from *nameSource) {
		from.setRouted(s)
		r.checkNode(s)
	})
	if pending == nil && !errors.Is(err, kernel.ErrStuck) {
		g.filtered.Note(&want, err)
	}
	if g.filters && (g.filtered != kernel.Filtered{} || len(peers) == 0) { // else a killed broker's device stays as it is
		errs = append(errs, g.Set(g.filtered.Restrict(peers), s.Local))
	}
	// The overlay comes last: it leads to addresses that exist by now.
	failed, busy := r.setOverlay(s)
	return errors.Join(append(errs, err, g.place.Problem, failed)...), cmp.Or(pending, busy)
}

// tunnelOf says where the tunnels are. A node port is one of each node.
func (r *reconciler) tunnelOf(at kubeapi.Entrance) kernel.Tunnel {
	protocol := strings.ToLower(string(kubeapi.ProtocolOf(r.cfg.Mode)))
	t := kernel.Tunnel{LocalPort: mesh.LocalPort{Protocol: protocol, Port: at.Port}}
	for _, a := range at.Addresses {
		host := netip.PrefixFrom(a.Addr(), a.Addr().BitLen())
		t.Addresses = append(t.Addresses, kernel.TunnelAddress{Network: host, Port: a.Port()})
	}
	nodes := slices.Clone(r.cfg.NodeCIDRs)
	for _, a := range r.gateway.place.NodeIPs {
		if !nodes.Contains(a) {
			nodes = append(nodes, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	for _, port := range at.NodePorts {
		for _, n := range nodes {
			t.Addresses = append(t.Addresses, kernel.TunnelAddress{Network: n, Port: port})
		}
	}
	return t
}

// leaveLinks makes the gateway leave the links to the broker that holds them: addresses, routes and NAT of this node
// would only lead packets to where they are refused.
func (r *reconciler) leaveLinks(s *mesh.State) (err, pending error) {
	r.gateway.SetCredentials(nil)
	failed := r.gateway.Set(nil, s.Local)
	if failed != nil && r.gateway.filters { // a device that may still have peers keeps its chains
		unset, busy := r.leaveOverlay()
		return errors.Join(failed, unset), busy
	}
	r.gateway.filtered = kernel.Filtered{}
	r.names.changeSource(func(from *nameSource) { from.routed = nil })
	err, pending = r.setKernel(kernel.State{}, func(*nameSource) { r.checkNode(&mesh.State{}) })
	unset, busy := r.leaveOverlay()
	return errors.Join(failed, err, unset), cmp.Or(pending, busy)
}

// checkNode says for which state packets have to pass on this node.
func (r *reconciler) checkNode(s *mesh.State) {
	r.gateway.check.Set(nodecheck.Target{
		State: s, Device: r.cfg.Interface, Table: r.cfg.RouteTable, Pods: r.cfg.PodCIDRs,
		Pod: r.gateway.place.OwnInterface(),
	})
}

// setKernel brings a state to the kernel, and tells DNS when the kernel has it.
func (r *reconciler) setKernel(want kernel.State, done func(*nameSource)) (err, pending error) {
	err = r.gateway.kernel.Set(want)
	switch {
	case errors.Is(err, kernel.ErrBusy):
		return nil, err
	case errors.Is(err, kernel.ErrStuck):
		return err, nil
	}
	r.names.changeSource(done)
	return err, nil
}
