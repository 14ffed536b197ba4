package mesh

// The local cluster, as the stanza of the Corefile describes it.

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// Mode is how links carry traffic.
type Mode string

// The modes.
const (
	// Bridge: packets of a TUN travel in TLS streams.
	Bridge Mode = "bridge"
	// WireGuard: a WireGuard device carries the packets.
	WireGuard Mode = "wireguard"
	// None: names only, another system carries the traffic.
	None Mode = "none"
)

// CarriesTraffic tells whether links of the mode have connections of their own. Links of an unknown mode have none.
func (m Mode) CarriesTraffic() bool { return m == Bridge || m == WireGuard }

// Propagation is where the names of a cluster come from.
type Propagation string

// The kinds of propagation.
const (
	// PropagateNone: kubelink serves no mesh domain.
	PropagateNone Propagation = "none"
	// PropagateDNS: kubelink asks the DNS service of each cluster.
	PropagateDNS Propagation = "dns"
	// PropagateKubernetes: kubelink watches the API server of each cluster. Where it has no access to one, it asks the DNS
	// service of that cluster, as with PropagateDNS.
	PropagateKubernetes Propagation = "kubernetes"
)

// Local is what this cluster knows of itself: the stanza of the Corefile.
type Local struct {
	Mode        Mode
	Propagation Propagation

	// The default mesh, if the stanza defines it: there are Addresses then.
	Addresses   Prefixes // local cluster addresses with the mesh's masks
	ClusterName string
	MeshDomain  string // default base domain of a mesh; a fully qualified name

	Domains []string // keys of the server blocks: queries for names in them reach kubelink; nil: all queries do

	ServiceCIDRs, PodCIDRs, NodeCIDRs Prefixes // empty: unknown

	ClusterDomain string     // fully qualified
	ClusterDNS    netip.Addr // zero: the 10th address of the first of ServiceCIDRs
	OwnDNS        netip.Addr // of kubelink's own DNS service; zero: the 11th address of the first of ServiceCIDRs
	MeshDNS       netip.Addr // of the mesh-global DNS service of the default mesh; zero: none, or this one

	DefaultPort uint16      // of an endpoint without port
	Served      []string    // names and networks of links and meshes to serve, sorted; nil: all
	LocalPorts  []LocalPort // of the local cluster addresses that other clusters reach, sorted; no others are open
}

// LocalPort is a port of the gateway node that is open to other clusters, at the local cluster addresses.
type LocalPort struct {
	Protocol string // tcp or udp, as iptables writes it
	Port     uint16
}

func (p LocalPort) String() string { return fmt.Sprintf("%s/%d", p.Protocol, p.Port) }

// Compare orders by protocol and port.
func (p LocalPort) Compare(q LocalPort) int {
	return cmp.Or(cmp.Compare(p.Protocol, q.Protocol), cmp.Compare(p.Port, q.Port))
}

// DNSAddress is kubelink's own DNS service in a cluster with these service networks; not valid if they are not known.
func (l *Local) DNSAddress(services Prefixes) netip.Addr {
	if l.OwnDNS.IsValid() {
		return l.OwnDNS
	}
	return Nth(services.First(), 11)
}

// MissingServerBlock says what to do about a domain for which queries do not reach kubelink; empty if they do.
func (l *Local) MissingServerBlock(domain string) string {
	inDomain := func(key string) bool { return InDomain(domain, key) }
	if l.Propagation == PropagateNone || l.Domains == nil || slices.ContainsFunc(l.Domains, inDomain) {
		return ""
	}
	return fmt.Sprintf("no server block of the Corefile answers for %[1]s: "+
		"write a block with the key %[1]s and kubelink in it, or add the key to one", TrimDot(domain))
}

// checkDisjoint refuses a network that would hide one of the local cluster.
func (l *Local) checkDisjoint(field string, n netip.Prefix) *Problem {
	for _, own := range []struct {
		property string
		networks Prefixes
	}{{"service-cidr", l.ServiceCIDRs}, {"pod-cidr", l.PodCIDRs}, {"node-cidr", l.NodeCIDRs}} {
		if cidr := own.networks.SameFamily(n.Addr()); cidr.Overlaps(n) {
			return invalid("%s %s overlaps with the local %s %s: they must be disjoint", field, n, own.property, cidr)
		}
	}
	return nil
}

// titledNetworks are networks of the local cluster, by what they are.
type titledNetworks struct {
	title    string
	networks Prefixes
}

func (l *Local) titledNetworks(services Prefixes) []titledNetworks {
	return []titledNetworks{
		{"local service network", services}, {"pod-cidr", l.PodCIDRs}, {"node-cidr", l.NodeCIDRs},
	}
}

// networks are all networks of the local cluster that the stanza names.
func (l *Local) networks() []netip.Prefix {
	return slices.Concat(l.ServiceCIDRs, l.PodCIDRs, l.NodeCIDRs)
}
