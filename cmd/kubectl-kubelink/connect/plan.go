package connect

// What has to be: names, addresses and networks of both clusters. Pure.

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// end is what is known of a cluster, and what it gets.
type end struct {
	context   string
	networks  Networks
	links     []v1alpha1.KubeLink
	addresses []string // of MeshServices

	name     string       // in the mesh
	address  netip.Prefix // in the mesh, with its mask
	local    *v1alpha1.KubeLink
	endpoint string // of its links, with port if it is not the usual one
}

// planOptions are given.
type planOptions struct {
	mesh         netip.Prefix // for clusters that are in none
	meshServices bool         // no service network is routed
}

var notInName = regexp.MustCompile(`[^a-z0-9]+`)

// clusterName is the name of a cluster by its context.
func clusterName(context string) string {
	name := strings.Trim(notInName.ReplaceAllString(strings.ToLower(context), "-"), "-")
	if len(name) > 63 {
		name = strings.Trim(name[len(name)-63:], "-") // the end tells more
	}
	return name
}

// findLocal takes over the LocalLink of the default mesh.
func (e *end) findLocal() error {
	for i := range e.links {
		l := &e.links[i]
		if m, _ := mesh.LinkName(l.Name); l.Spec.Endpoint != v1alpha1.EndpointLocal || m != "" {
			continue
		}
		a, err := mesh.ClusterAddress(l.Spec.ClusterAddress)
		if err != nil {
			return fmt.Errorf("%s: spec.clusterAddress %q of LocalLink %s: %w", e.context, l.Spec.ClusterAddress, l.Name, err)
		}
		e.local, e.name, e.address = l, l.Name, a
		return nil
	}
	return nil
}

// planMesh gives both ends names and addresses, and refuses what cannot work.
func planMesh(a, b *end, o planOptions) error {
	for _, e := range []*end{a, b} {
		if err := e.findLocal(); err != nil {
			return err
		}
		if e.name == "" {
			e.name = clusterName(e.context)
		}
	}
	if a.name == b.name || a.name == "" || b.name == "" {
		return fmt.Errorf("%s and %s would have the names %q and %q in the mesh: give --name %s=NAME",
			a.context, b.context, a.name, b.name, b.context)
	}
	if err := chooseMesh(a, b, &o); err != nil {
		return err
	}
	if err := checkNetworks(a, b, o); err != nil {
		return err
	}
	for _, pair := range [][2]*end{{a, b}, {b, a}} {
		if err := checkLink(pair[0], pair[1]); err != nil {
			return err
		}
	}
	return assignAddresses(a, b, o.mesh)
}

// checkLink refuses a link with the name of the other cluster that leads to a third one, which had the name first.
func checkLink(e, other *end) error {
	l := findLink(e.links, other.name)
	switch {
	case l == nil || l.Spec.Endpoint == v1alpha1.EndpointLocal:
		return nil
	case other.local != nil && l.Spec.ClusterAddress == other.address.String():
		return nil
	case other.local == nil && l.Status.State != v1alpha1.StateUp:
		return nil // an earlier run was not finished
	}
	return fmt.Errorf("%s has a link %s already, to the address %s and the endpoint %s, and that is not %s: "+
		"give --name %s=NAME, or delete the link if no cluster is there",
		e.context, l.Name, l.Spec.ClusterAddress, l.Spec.Endpoint, other.context, other.context)
}

// chooseMesh takes over the network of the mesh in which a cluster is.
func chooseMesh(a, b *end, o *planOptions) error {
	switch {
	case a.local != nil && b.local != nil && a.address.Masked() != b.address.Masked():
		return fmt.Errorf("%s is in mesh %s, and %s in mesh %s: delete the LocalLink and the links of one of them "+
			"(kubectl kubelink disconnect), or link them by hand in a second mesh",
			a.context, a.address.Masked(), b.context, b.address.Masked())
	case a.local != nil:
		o.mesh = a.address.Masked()
	case b.local != nil:
		o.mesh = b.address.Masked()
	}
	return nil
}

// checkNetworks refuses networks that are in both clusters.
func checkNetworks(a, b *end, o planOptions) error {
	for _, e := range []*end{a, b} {
		for _, t := range e.networks.titled() {
			if t.IsValid() && t.Overlaps(o.mesh) {
				return fmt.Errorf("the network of the mesh, %s, overlaps with the %s network %s of %s: "+
					"choose another one with --mesh-cidr", o.mesh, t.title, *t.Prefix, e.context)
			}
		}
	}
	if o.meshServices {
		return nil
	}
	const remedy = "Give one of them other networks, or add --mesh-services: then the service networks are not " +
		"routed, and each cluster offers single services with MeshServices, at addresses of the mesh"
	if a.networks.Services.Overlaps(b.networks.Services) {
		return fmt.Errorf("the service networks of %s (%s) and %s (%s) overlap, so an address would be in both. %s",
			a.context, a.networks.Services, b.context, b.networks.Services, remedy)
	}
	for _, pair := range [][2]*end{{a, b}, {b, a}} {
		for _, t := range pair[1].networks.titled()[1:] {
			if s := pair[0].networks.Services; t.Overlaps(s) {
				return fmt.Errorf("the service network %s of %s overlaps with the %s network %s of %s, which it would hide. %s",
					s, pair[0].context, t.title, *t.Prefix, pair[1].context, remedy)
			}
		}
	}
	return nil
}

// assignAddresses gives each end that has none the first free address of the mesh.
func assignAddresses(a, b *end, network netip.Prefix) error {
	taken := map[netip.Addr]string{}
	for _, e := range []*end{a, b} {
		for _, l := range e.links {
			if p, err := mesh.ClusterAddress(l.Spec.ClusterAddress); err == nil {
				taken[p.Addr()] = l.Name
			}
		}
		for _, text := range e.addresses {
			if ip, err := netip.ParseAddr(text); err == nil {
				taken[ip] = "a MeshService"
			}
		}
	}
	if a.address.IsValid() && a.address == b.address {
		return fmt.Errorf("%s and %s both have the address %s in the mesh: change spec.clusterAddress of one LocalLink",
			a.context, b.context, a.address.Addr())
	}
	for _, pair := range [][2]*end{{a, b}, {b, a}} {
		e, other := pair[0], pair[1]
		if e.address.IsValid() {
			if err := checkAddress(e, other); err != nil {
				return err
			}
			continue
		}
		if l := findLink(other.links, e.name); l != nil { // an earlier run was not finished
			if p, err := mesh.ClusterAddress(l.Spec.ClusterAddress); err == nil && p.Masked() == network {
				e.address = p
				continue
			}
		}
		for ip := network.Addr().Next(); network.Contains(ip); ip = ip.Next() {
			if _, used := taken[ip]; !used && !mesh.IsNetworkOrBroadcast(network, ip) {
				e.address, taken[ip] = netip.PrefixFrom(ip, network.Bits()), e.name
				break
			}
		}
		if !e.address.IsValid() {
			return fmt.Errorf("no address of the mesh %s is free for %s: choose a larger network with --mesh-cidr",
				network, e.context)
		}
	}
	return nil
}

// checkAddress refuses the address of a cluster that is in the mesh already, if the other one has it for a third one.
func checkAddress(e, other *end) error {
	for i := range other.links {
		l := &other.links[i]
		if p, err := mesh.ClusterAddress(l.Spec.ClusterAddress); err == nil && p == e.address && l.Name != e.name {
			return fmt.Errorf("%s has the address %s in the mesh, and %s has it for its link %s: change "+
				"spec.clusterAddress of LocalLink %s of %s, and of the links to it",
				e.context, e.address.Addr(), other.context, l.Name, e.name, e.context)
		}
	}
	return nil
}

// findLink finds a link by its name; nil: there is none.
func findLink(links []v1alpha1.KubeLink, name string) *v1alpha1.KubeLink {
	for i := range links {
		if links[i].Name == name {
			return &links[i]
		}
	}
	return nil
}
