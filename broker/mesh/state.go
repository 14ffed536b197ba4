// Package mesh is the pure model of kubelink: Build turns the objects of the API and what the
// local cluster knows of itself into a State. No kernel, no clock, no API in here.
package mesh

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// Mode is how links carry traffic.
type Mode string

// The modes.
const (
	// Bridge: a TUN whose packets travel in TLS streams.
	Bridge Mode = "bridge"
	// None: names only, another system carries the traffic.
	None Mode = "none"
)

// CarriesTraffic tells whether links of the mode have connections of their own. An unknown mode has none.
func (m Mode) CarriesTraffic() bool { return m == Bridge }

// Propagation is where the names of a cluster come from.
type Propagation string

// The kinds of propagation.
const (
	// PropagateNone: no mesh domain is served.
	PropagateNone Propagation = "none"
	// PropagateDNS: the DNS service of each cluster is asked.
	PropagateDNS Propagation = "dns"
	// PropagateKubernetes: the API server of each cluster is watched; clusters without API access are
	// asked as with PropagateDNS.
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

	Domains []string // that queries reach us for: those of the server blocks; nil: all

	ServiceCIDRs, PodCIDRs, NodeCIDRs Prefixes   // empty: unknown
	ClusterDomain                     string     // fully qualified
	ClusterDNS                        netip.Addr // zero: the 10th address of the first of ServiceCIDRs
	OwnDNS                            netip.Addr // kubelink's own DNS service; zero: the 11th address of the first of ServiceCIDRs
	MeshDNS                           netip.Addr // the mesh-global DNS service of the default mesh; zero: none, or this one

	DefaultPort uint16   // of an endpoint without port
	Served      []string // names of the links to serve; nil: all
}

// DNSAddress is kubelink's own DNS service in a cluster with these service networks; not valid if they are not known.
func (l *Local) DNSAddress(services Prefixes) netip.Addr {
	if l.OwnDNS.IsValid() || len(services) == 0 {
		return l.OwnDNS
	}
	return Nth(services.First(), 11)
}

// Unasked is what to do about a domain whose queries do not reach us; empty if they do.
func (l *Local) Unasked(domain string) string {
	if l.Propagation == PropagateNone || l.Domains == nil || slices.ContainsFunc(l.Domains, func(d string) bool { return InDomain(domain, d) }) {
		return ""
	}
	return fmt.Sprintf("no server block of the Corefile answers for %[1]s: write a block with the key %[1]s and kubelink in it, or add the key to one", strings.TrimSuffix(domain, "."))
}

// Objects are all objects of the API that a State is made of.
type Objects struct {
	Links []v1alpha1.KubeLink
}

// State is everything that the effects need to know: plain values in a fixed order, so that equal
// input gives equal State. It is not changed after Build.
type State struct {
	Meshes   []Mesh             // by name
	Links    []Link             // usable links to other clusters, by name
	Local    []netip.Prefix     // networks of the local cluster, and of its meshes; sorted
	Peers    []Peer             // links that have a connection of their own, by name
	Routes   []Route            // what is routed into the mesh, by destination
	Zones    []Zone             // mesh domains, by domain
	Problems map[string]Problem // why a KubeLink cannot be used, by name
	Notes    map[string]string  // what to know of a usable KubeLink, by name
}

// Mesh is one mesh that the local cluster is a member of.
type Mesh struct {
	Name      string     // empty: the default mesh
	Link      string     // the LocalLink; empty: defined by the stanza
	Cluster   string     // name of the local cluster
	Addresses Prefixes   // local cluster addresses with the mesh's masks
	Services  Prefixes   // local service networks; empty: unknown
	Domain    string     // base domain, fully qualified; empty: no DNS
	DNS       netip.Addr // the mesh-global DNS service; zero: none, or this one
	Members   []string   // names of all links of the mesh but the LocalLink, usable or not, sorted
}

// Link is a usable link to another cluster.
type Link struct {
	Name    string // of the KubeLink
	Mesh    string
	Cluster string
	Peer    string // the Peer that carries it: itself, or its gateway
}

// Peer is a link with a connection of its own and all that crosses it.
type Peer struct {
	Link      string         // name of the KubeLink
	Local     Prefixes       // what we are in its mesh; our hello says so
	Services  Prefixes       // local service networks; our hello says so; empty: unknown
	Addresses Prefixes       // what the peer is in its mesh; its hello must say so
	Host      string         // endpoint host, as the certificate names it: DNS name in lower case without final dot, or IP
	Port      uint16         // endpoint port
	Networks  []netip.Prefix // what is sent to the peer and may come from it, links behind it included; sorted
	Ingress   []Rule         // local destinations that packets from the peer may go to; the longest prefix decides, none denies; sorted
}

// Rule allows or denies destinations.
type Rule struct {
	Prefix netip.Prefix
	Allow  bool
}

// Route leads a destination into the mesh. What leaves this way gets the source address Source:
// as the preferred source of the route and by source NAT.
type Route struct {
	Destination netip.Prefix
	Source      netip.Addr
}

// Zone is the base domain of a mesh.
type Zone struct {
	Domain   string // fully qualified, lower case
	Mesh     string
	Networks Prefixes      // of the mesh
	Clusters []ClusterZone // by name
	Global   GlobalZone
}

// GlobalZone is the sub-domain of a mesh for names that belong to no cluster.
type GlobalZone struct {
	Name     string         // svc.global.<domain>
	Upstream netip.AddrPort // the mesh-global DNS service; zero: the zone is served from the objects of this cluster
	Link     string         // the KubeLink that leads to Upstream; empty: it is in the local cluster
}

// ClusterZone is the sub-domain of one cluster.
type ClusterZone struct {
	Name          string         // fully qualified: <cluster>.<domain>
	Link          string         // the KubeLink; empty: the local cluster
	Addresses     []netip.Addr   // of the cluster in the mesh, at most one of each family
	Services      Prefixes       // its service networks; empty: unknown
	Upstream      netip.AddrPort // DNS service of the cluster; zero: unknown
	ClusterDomain string         // domain that the cluster itself uses, fully qualified
	API           API            // instead of Upstream; zero: Upstream is asked
}

// Equal tells whether both are the same.
func (c ClusterZone) Equal(d ClusterZone) bool {
	return c.Name == d.Name && c.Link == d.Link && c.Upstream == d.Upstream && c.ClusterDomain == d.ClusterDomain &&
		c.API == d.API && slices.Equal(c.Addresses, d.Addresses) && slices.Equal(c.Services, d.Services)
}

// API is how the API server of a cluster is reached.
type API struct {
	Server    string // https://host; empty: the local one, with the broker's own credentials
	Namespace string // of the secret with the credentials; empty: the broker's
	Secret    string // its name; empty for the local API server
	Use       bool   // names come from it
}

// Problem is why an object cannot be used.
type Problem struct {
	State   v1alpha1.State // Invalid, Stale
	Message string         // one line: field, value and remedy
}
