// Package mesh is the pure model of kubelink: Build turns the objects of the API and what the local cluster knows of
// itself into a State. No kernel, no clock, no API in here.
package mesh

import (
	"cmp"
	"slices"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// Objects are all objects of the API that a State is made of.
type Objects struct {
	Links []v1alpha1.KubeLink
}

// Build computes the State. It does not change its arguments. Older objects win over younger ones, so that a mistake in
// a new object never breaks what works.
func Build(objects Objects, local Local) State {
	byAge := sortByAge(objects.Links)
	r := newReports()

	meshes := newMeshSet(&local, r, membersByMesh(byAge))
	for _, o := range byAge {
		if isLocalLink(o) {
			meshes.addLocalLink(o)
		}
	}

	links := newLinkSet(&local, meshes, r)
	names := &naming{local: &local, meshes: meshes, reports: r}
	for _, o := range byAge {
		if isLocalLink(o) || o.DeletionTimestamp != nil || !local.servesLink(o.Name) {
			continue
		}
		l, p := links.readLink(o)
		if p == nil {
			p = names.readNames(l)
		}
		if p == nil {
			links.addLink(l)
		}
		r.addProblem(o.Name, p)
	}
	links.attachGateways()
	return makeState(&local, names, links, r)
}

// makeState puts together what was read.
func makeState(local *Local, names *naming, links *linkSet, r *reports) State {
	meshes, byName := names.meshes.list, links.sorted()
	s := State{
		Local: localNetworks(local, meshes), LocalPorts: local.LocalPorts,
		Zones: names.zones(byName), Problems: r.problems, Notes: r.notes,
	}
	r.dropNotesOfBroken()
	for _, m := range meshes {
		s.Meshes = append(s.Meshes, m.Mesh)
	}
	for _, l := range byName {
		link := l.Link
		if !local.Mode.CarriesTraffic() {
			link.Peer = ""
		}
		s.Links = append(s.Links, link)
	}
	if local.Mode.CarriesTraffic() {
		s.Peers, s.Routes = peersOf(byName), routesOf(meshes, byName)
	}
	return s
}

// sortByAge sorts by age, and by name what was created in the same second.
func sortByAge(links []v1alpha1.KubeLink) []*v1alpha1.KubeLink {
	byAge := make([]*v1alpha1.KubeLink, 0, len(links))
	for i := range links {
		byAge = append(byAge, &links[i])
	}
	slices.SortFunc(byAge, func(a, b *v1alpha1.KubeLink) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	return byAge
}

// membersByMesh are the names of the links to other clusters that are not about to go, usable or not.
func membersByMesh(links []*v1alpha1.KubeLink) map[string][]string {
	members := map[string][]string{}
	for _, o := range links {
		if !isLocalLink(o) && o.DeletionTimestamp == nil {
			mesh, _ := LinkName(o.Name)
			members[mesh] = append(members[mesh], o.Name)
		}
	}
	return members
}

func isLocalLink(o *v1alpha1.KubeLink) bool { return o.Spec.Endpoint == v1alpha1.EndpointLocal }
