package mesh

// Where the names of another cluster come from: its API server or its DNS service.

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

const dnsPort = 53

// naming gives names to clusters.
type naming struct {
	local   *Local
	meshes  *meshSet
	reports *reports
	taken   map[string]string  // which link has a name of a cluster: two links of two meshes can make the same
	offers  map[string]*Offers // what peers offer, by link: these names need no DNS service
}

// readNames finds out how the names of a link's cluster are resolved. What is missing is noted, and the link works
// without names.
func (n *naming) readNames(l *linkEntry) *Problem {
	zone := ClusterZone{
		Link: l.Name, Addresses: l.addresses.Addrs(), Services: l.services, ClusterDomain: "cluster.local.",
	}
	dns := cmp.Or(l.spec.DNS, &v1alpha1.KubeLinkDNS{})
	service, p := parseDNSAddress(dns)
	if p != nil {
		return p
	}
	if dns.BaseDomain != "" {
		var err error
		if zone.ClusterDomain, err = clusterDomain(dns.BaseDomain, n.meshes.domains()); err != nil {
			return invalid("spec.dns.baseDomain %q: %v", dns.BaseDomain, err)
		}
	}
	if dns.OmitDNSPropagation || n.local.Propagation == PropagateNone || l.mesh.Domain == "" {
		return nil
	}
	if zone.Name = n.clusterName(l); zone.Name == "" {
		return nil
	}
	noAPI := n.setAPI(&zone, l.spec)
	if !service.IsValid() {
		service = Nth(l.services.First(), 10)
	}
	routed := !n.local.Mode.CarriesTraffic() || l.routesTo(service)
	switch {
	case service.IsValid() && routed:
		zone.Upstream = netip.AddrPortFrom(service, dnsPort)
		if noAPI != nil {
			n.reports.addNote(l.Name,
				"names come from the DNS service of the cluster, not from its API server: %v", noAPI)
		}
	case zone.API.Use:
	default:
		n.noteNoService(l, service)
		if n.offers[l.Name] == nil && len(l.unrouted) == 0 { // else denials say why
			return nil
		}
	}
	l.dns, n.taken[zone.Name] = zone, l.Name
	return nil
}

// noteNoService says why the DNS service of a link's cluster is not asked. Mesh services may have names all the same: a
// link without spec.cidr is for them, and nothing is missing in it. Who asks for a name that there is not is told why.
func (n *naming) noteNoService(l *linkEntry, service netip.Addr) {
	switch {
	case len(l.unrouted) > 0 && (!service.IsValid() || l.unrouted.Contains(service)): // there is a note
	case service.IsValid() && slices.ContainsFunc(slices.Concat(n.local.networks(), n.meshes.services()),
		func(own netip.Prefix) bool { return own.Contains(service) }):
		n.reports.addNote(l.Name, "no DNS: spec.dns.dnsIP %s lies in a network of this cluster, and cannot be routed "+
			"to this link; remove it: names of mesh services need none", service)
	case service.IsValid():
		n.reports.addNote(l.Name,
			"no DNS: spec.dns.dnsIP %s is not routed to this link; add it to spec.egress", service)
	case len(l.services) == 0 && n.local.Mode.CarriesTraffic():
	case n.offers[l.Name] == nil || len(n.offers[l.Name].List) == 0:
		n.reports.addNote(l.Name,
			"no DNS: the address of the cluster's DNS service is unknown; "+
				"set spec.dns.dnsIP, or spec.dns.omitDNSPropagation: true")
	}
}

// clusterName is the sub-domain of a link's cluster; empty if there can be none, which is noted. Among links the older
// one has the name. The names of a mesh are more than the names of a cluster, whichever is older.
func (n *naming) clusterName(l *linkEntry) string {
	name, err := ParseDomain(l.Cluster + "." + l.mesh.Domain)
	taken := n.meshes.findDomain(name)
	local := n.meshes.findFunc(func(m *meshEntry) bool {
		return m.Domain != "" && m.Cluster != "" && m.localName() == name
	})
	switch {
	case err != nil:
		n.reports.addNote(l.Name, "no DNS: %s.%s: %v", l.Cluster, l.mesh.Domain, err)
	case InDomain(name, "global."+l.mesh.Domain):
		n.reports.addNote(l.Name, "no DNS: %s is reserved for global names; use another name for the cluster",
			TrimDot(name))
	case name == "ns.dns."+l.mesh.Domain:
		n.reports.addNote(l.Name, "no DNS: %s is the name of the mesh's name server; use another name for the cluster",
			TrimDot(name))
	case taken != nil:
		n.reports.addNote(l.Name, "no DNS: %s is the domain of %s; use another name for the cluster, "+
			"or another spec.dns.baseDomain there", TrimDot(name), MeshTitle(taken.Name))
	case local != nil:
		n.reports.addNote(l.Name, "no DNS: %s is the local cluster in %s; use another name for the cluster",
			TrimDot(name), MeshTitle(local.Name))
	case n.taken[name] != "":
		n.reports.addNote(l.Name, "no DNS: %s is the name of the older link %s; use another name for the cluster",
			TrimDot(name), n.taken[name])
	default:
		return name
	}
	return ""
}

// setAPI makes names come from the API server of the cluster where the propagation says so. The error is why they
// cannot.
func (n *naming) setAPI(zone *ClusterZone, spec *v1alpha1.KubeLinkSpec) (err error) {
	if n.local.Propagation == PropagateKubernetes {
		zone.API, err = apiAccess(spec, zone.Services)
	} else if spec.APIAccess != nil && !strings.HasPrefix(spec.APIAccess.Name, AnnouncedSecret) {
		n.reports.addNote(zone.Link, "spec.apiAccess is not used: it is for dns-propagation kubernetes")
	}
	return err
}

// apiAccess finds the API server of another cluster: the first service address, which is routed to the link as the
// whole of spec.cidr is. The error is why it cannot be used.
func apiAccess(spec *v1alpha1.KubeLinkSpec, services Prefixes) (API, error) {
	switch {
	case spec.APIAccess == nil:
		return API{}, errors.New("spec.apiAccess is not set")
	case spec.APIAccess.Name == "":
		return API{}, errors.New("spec.apiAccess.name is missing; set it to the name of the secret")
	case len(services) == 0:
		return API{}, errors.New("spec.cidr is missing, whose first address is that of the API server")
	}
	server := Nth(services.First(), 1)
	if !server.IsValid() {
		return API{}, fmt.Errorf("spec.cidr %s is too small to have an address for the API server", services.First())
	}
	host := server.String()
	if server.Is6() {
		host = "[" + host + "]"
	}
	return API{
		Server: "https://" + host, Namespace: spec.APIAccess.Namespace, Secret: spec.APIAccess.Name, Use: true,
	}, nil
}
