package broker

// The order of effects.

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/mandelsoft/kubelink/broker/apizone"
	"github.com/mandelsoft/kubelink/broker/kernel"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// apply is the one place that orders effects. Independent parts do not stop each other: their errors are joined.
// pending is kernel.ErrBusy while the kernel is still being told.
func (r *reconciler) apply(s *mesh.State, accesses []apizone.Access, port uint16) (err, pending error) {
	publish := func(from *nameSource) {
		from.state, from.restored, from.accesses, from.globals = s, false, accesses, r.globals.Zones()
		from.credentials = r.creds.Usable()
	}
	// Names of links that go are the first to go: no client shall wait for what is being taken down.
	r.names.publish(publish)
	var errs []error
	if g := r.gateway; g != nil {
		// Peers come before routes: dialling starts at once, and the first routed packet finds a link. NAT comes
		// before addresses and routes (kernel.Set sees to that), so that no packet leaves with a foreign source
		// address. On removal the order is harmless: what is still routed for an instant is answered with
		// unreachable.
		settings := r.cfg.linkSettings(port)
		settings.DNS, settings.API, _ = r.newAnnouncement(s) // what is missing is told by the LocalLinks
		errs = append(errs, g.Configure(settings))
		peers := s.Peers
		if !r.creds.Usable() {
			peers = nil // better no link than one without authentication
		}
		errs = append(errs, g.Set(peers, s.Local))
		switch err := g.kernel.Set(kernelState(s)); err {
		case kernel.ErrBusy:
			pending = err
		case kernel.ErrStuck:
			errs = append(errs, err)
		default:
			errs = append(errs, err)
			r.names.changeSource(func(from *nameSource) { from.setRouted(s) })
		}
	}
	// Names of links that have come are the last: a client that gets an answer can use it.
	r.names.publish(publish)
	return errors.Join(errs...), pending
}

// kernelState is what the kernel is to have of a state.
func kernelState(s *mesh.State) kernel.State {
	want := kernel.State{Routes: s.Routes, LocalPorts: s.LocalPorts}
	for _, m := range s.Meshes {
		want.Addresses = append(want.Addresses, m.Addresses...)
		want.Services = append(want.Services, m.Services...)
	}
	// Several meshes can have the same ones.
	slices.SortFunc(want.Services, netip.Prefix.Compare)
	want.Services = slices.Compact(want.Services)
	return want
}
