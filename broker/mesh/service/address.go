package service

// At which address a MeshService is, and of which mesh.

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// parseAddress parses spec.meshAddress, and the addresses of endpoints.
func parseAddress(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil || a.Zone() != "":
		return a, errors.New("expected an IP address, such as 192.168.0.100")
	case a.Is4In6():
		return a, errors.New("write an IPv4 address in its own form, such as 192.168.0.100")
	case !a.IsGlobalUnicast():
		return a, errors.New("loopback, link-local, broadcast and multicast addresses cannot be routed; " +
			"choose one such as 192.168.0.100")
	}
	return a, nil
}

// meshes are all meshes of the cluster, those of this broker first.
func (b *builder) meshes() []*mesh.Mesh {
	s := b.around.State
	list := make([]*mesh.Mesh, 0, len(s.Meshes)+len(s.Unserved))
	for i := range s.Meshes {
		list = append(list, &s.Meshes[i])
	}
	for i := range s.Unserved {
		list = append(list, &s.Unserved[i])
	}
	return list
}

// setMesh says to which mesh a MeshService belongs.
func (e *entry) setMesh(m *mesh.Mesh, s *mesh.State) {
	e.mesh = m
	e.served = slices.ContainsFunc(s.Meshes, func(served mesh.Mesh) bool { return served.Name == m.Name })
}

// findMesh returns the mesh that spec.mesh names.
func (b *builder) findMesh(name string) (*mesh.Mesh, *mesh.Problem) {
	meshes := b.meshes()
	for _, m := range meshes {
		if m.Name == name {
			return m, nil
		}
	}
	if text := b.around.State.Broken[name]; text != "" {
		return nil, stale("spec.mesh %s: %s", quote(name), text)
	}
	names := list(meshes, func(m *mesh.Mesh) string { return mesh.MeshTitle(m.Name) })
	if name == "" {
		return nil, invalid("spec.mesh is missing, and this cluster has no default mesh: name one (there are: %s), "+
			"or create a LocalLink of the default mesh", names)
	}
	return nil, invalid("spec.mesh %s: this cluster has no mesh of this name (there are: %s): name one of these, "+
		"or create the LocalLink of that mesh", quote(name), names)
}

// readAddress finds the address: one of its own, or that of the cluster in a mesh.
func (b *builder) readAddress(e *entry) *mesh.Problem {
	spec := &e.object.Spec
	if spec.MeshAddress == "" {
		m, p := b.findMesh(spec.Mesh)
		if p != nil {
			return p
		}
		e.setMesh(m, b.around.State)
		e.addresses = m.Addresses.Addrs()
		return nil
	}
	a, err := parseAddress(spec.MeshAddress)
	if err != nil {
		return invalid("spec.meshAddress %s: %v", quote(spec.MeshAddress), err)
	}
	e.addresses, e.own = []netip.Addr{a}, true
	for _, m := range b.meshes() {
		if n := m.Addresses.SameFamily(a); n.Contains(a) {
			e.setMesh(m, b.around.State)
			return b.readMeshAddress(e, a, n)
		}
	}
	return b.readForeignAddress(e, a)
}

// readMeshAddress reads an address in a mesh; own is that of the cluster.
func (b *builder) readMeshAddress(e *entry, a netip.Addr, own netip.Prefix) *mesh.Problem {
	switch {
	case a == own.Addr():
		return invalid("spec.meshAddress %s is the address of this cluster in %s: "+
			"leave it out and name spec.ports, or choose another address", a, mesh.MeshTitle(e.mesh.Name))
	case mesh.IsNetworkOrBroadcast(own, a):
		return invalid("spec.meshAddress %s is the network or broadcast address of %s: choose another address",
			a, own.Masked())
	}
	if n, link, ok := b.links.LookupPrefixLPM(netip.PrefixFrom(a, a.BitLen())); ok && n.Bits() >= own.Bits() {
		return invalid("spec.meshAddress %s belongs to the link %s (%s): choose another address", a, link, n)
	}
	if name := e.object.Spec.Mesh; name != "" && name != e.mesh.Name {
		e.addNote("spec.mesh " + quote(name) + " has no meaning: spec.meshAddress lies in " + mesh.MeshTitle(e.mesh.Name))
	}
	return nil
}

// wasServed tells whether a broker has served the object with this spec.
func wasServed(m *v1alpha1.MeshService) bool {
	return m.Status.State == v1alpha1.StateOk && m.Status.ObservedGeneration == m.Generation
}

// readForeignAddress reads an address in none of the meshes.
func (b *builder) readForeignAddress(e *entry, a netip.Addr) *mesh.Problem {
	const remedy = "choose an address of a mesh, or one that nothing else has"
	for _, n := range b.around.State.Local {
		if n.Contains(a) {
			return invalid("spec.meshAddress %s lies in the network %s of this cluster: %s", a, n, remedy)
		}
	}
	what := b.outside[a]
	if what == "" && !wasServed(e.object) { // later, the address is not the peer's to take
		what = b.peers[a]
	}
	if what != "" {
		return invalid("spec.meshAddress %s is what the gateway node reaches outside of the mesh (%s): %s", a, what, remedy)
	}
	if link, ok := b.links.Lookup(a); ok {
		return invalid("spec.meshAddress %s belongs to the link %s: %s", a, link, remedy)
	}
	m, p := b.findMesh(e.object.Spec.Mesh)
	if p != nil && e.object.Spec.Mesh == "" && len(b.meshes()) > 0 {
		m, p = b.meshes()[0], nil
	}
	if p != nil {
		return p
	}
	e.setMesh(m, b.around.State)
	e.addNote("spec.meshAddress " + a.String() + " lies in no mesh: it is served, but not announced, " +
		"and other clusters need it in spec.egress of their link to this one")
	return nil
}
