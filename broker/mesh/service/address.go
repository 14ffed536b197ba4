package service

// At which address a MeshService is, and of which mesh.

import (
	"cmp"
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

// meshes are all meshes of the cluster, by name: brokers that serve different ones say the same of an object.
func (b *builder) meshes() []*mesh.Mesh {
	s := b.around.State
	list := make([]*mesh.Mesh, 0, len(s.Meshes)+len(s.Unserved))
	for i := range s.Meshes {
		list = append(list, &s.Meshes[i])
	}
	for i := range s.Unserved {
		list = append(list, &s.Unserved[i])
	}
	slices.SortFunc(list, func(a, b *mesh.Mesh) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// setMesh says to which mesh a MeshService belongs.
func (e *entry) setMesh(m *mesh.Mesh, s *mesh.State) {
	e.mesh, e.foreign = m, false
	e.served = slices.ContainsFunc(s.Meshes, func(served mesh.Mesh) bool { return served.Name == m.Name })
}

// findMesh finds the mesh that spec.mesh names.
func (b *builder) findMesh(e *entry) *mesh.Problem {
	name := e.object.Spec.Mesh
	meshes := b.meshes()
	for _, m := range meshes {
		if m.Name == name {
			e.setMesh(m, b.around.State)
			return nil
		}
	}
	if text := b.around.State.Broken[name]; text != "" {
		e.foreign = b.isForeignMesh(name)
		return stale("spec.mesh %s: %s", quote(name), text)
	}
	titles := list(meshes, func(m *mesh.Mesh) string { return mesh.MeshTitle(m.Name) })
	names, other := " (there are: "+titles+")", "one of these"
	if b.around.Partial { // the stanza of another broker may define one
		names, other = "", "another one"
	}
	none := len(meshes) == 0 && !b.around.Partial
	switch {
	case name == "" && none:
		return invalid("this cluster has no mesh: create a LocalLink")
	case none:
		return invalid("spec.mesh %s: this cluster has no mesh: create the LocalLink of that mesh", quote(name))
	case name == "":
		e.foreign = b.around.Partial
		return invalid("spec.mesh is missing, and this cluster has no default mesh: name one%s, "+
			"or create a LocalLink of the default mesh", names)
	}
	return invalid("spec.mesh %s: this cluster has no mesh of this name%s: name %s, "+
		"or create the LocalLink of that mesh", quote(name), names, other)
}

// isForeignMesh tells whether another broker writes the status of the LocalLink of a mesh.
func (b *builder) isForeignMesh(name string) bool {
	for link := range b.around.State.Foreign {
		if of, _ := mesh.LinkName(link); of == name {
			return true
		}
	}
	return false
}

// readAddress finds the address: one of its own, or that of the cluster in a mesh.
func (b *builder) readAddress(e *entry) *mesh.Problem {
	spec := &e.object.Spec
	if spec.MeshAddress == "" {
		if p := b.findMesh(e); p != nil {
			return p
		}
		e.addresses = e.mesh.Addresses.Addrs()
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
	if rival := b.around.State.Offers.Rivals[a]; rival != "" {
		e.addNote("the cluster of link " + rival + " offers " + a.String() +
			", too: other clusters reach the one that they had first; choose another address here or there")
		e.doubtful = true
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

// readForeignAddress reads an address in none of the meshes. The mesh comes first: what is in the way of an address is
// different on the nodes of two brokers, and one of them has to say it.
func (b *builder) readForeignAddress(e *entry, a netip.Addr) *mesh.Problem {
	if p := b.findMesh(e); p != nil {
		first := b.meshes()
		if e.object.Spec.Mesh != "" || len(first) == 0 || b.around.Partial {
			return p
		}
		e.setMesh(first[0], b.around.State)
	}
	const remedy = "choose an address of a mesh, or one that nothing else has"
	if !slices.ContainsFunc(b.meshes(), func(m *mesh.Mesh) bool { return m.Addresses.SameFamily(a).IsValid() }) {
		return invalid("spec.meshAddress %s is an %s address, and no mesh of this cluster has one: "+
			"choose an address of a mesh", a, familyOf(a))
	}
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
	e.addNote("spec.meshAddress " + a.String() + " lies in no mesh: it is served, but not announced, " +
		"and other clusters need it in spec.egress of their link to this one; " + b.choice())
	e.doubtful = true
	return nil
}

// choice says in which networks an address is announced.
func (b *builder) choice() string {
	const text = "or choose an address of a mesh"
	if b.around.Partial { // the stanza of another broker may define one
		return text
	}
	return text + ": " + list(b.meshes(), func(m *mesh.Mesh) string {
		return mesh.MeshTitle(m.Name) + " has " + m.Addresses.Masked().String()
	})
}
