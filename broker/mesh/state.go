package mesh

// The State: what Build makes, and everything else works from.

import (
	"net/netip"
	"slices"
)

// State is everything that the effects need to know: plain values in a fixed order, so that equal input gives equal
// State. It is not changed after Build, other than by NameOffers.
type State struct {
	Meshes     []Mesh             // that this broker is a gateway of, by name
	Unserved   []Mesh             // that another broker is the gateway of, or none, by name
	Broken     map[string]string  // why a mesh cannot be used, by its name
	Links      []Link             // usable links to other clusters, by name
	Networks   []LinkNetwork      // of these clusters, and of accepted links of other brokers; sorted
	Offers     Acceptance         // mesh services of these clusters
	Local      []netip.Prefix     // networks of the local cluster, and of its meshes; sorted
	LocalPorts []LocalPort        // of the local cluster addresses that other clusters reach, sorted
	Peers      []Peer             // links that have a connection of their own, by name
	Lists      []IngressList      // which the Ingress of the Peers was made of
	Routes     []Route            // what is routed into the mesh, by destination
	Zones      []Zone             // mesh domains, by domain
	Problems   map[string]Problem // why a KubeLink cannot be used, by name
	Notes      map[string]string  // what to know of a usable KubeLink, by name
	Foreign    map[string]bool    // LocalLinks whose status another broker writes
	Elsewhere  []string           // mesh domains for which another broker answers, sorted
}

// LocalServices are the service networks of the local cluster in its meshes, and its addresses there.
func (s *State) LocalServices() (networks []netip.Prefix) {
	for i := range s.Meshes {
		networks = append(networks, s.Meshes[i].Services...)
		for _, a := range s.Meshes[i].Addresses.Addrs() {
			networks = append(networks, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return networks
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
	Shared    bool       // other brokers may serve links of it
}

// Link is a usable link to another cluster.
type Link struct {
	Name    string // of the KubeLink
	Mesh    string
	Cluster string
	Peer    string // the Peer that carries it: itself, or its gateway; empty: the mode carries no traffic
}

// LinkNetwork is a network that belongs to another cluster: its address in the mesh, its services, or what its link has
// in egress.
type LinkNetwork struct {
	Prefix netip.Prefix
	Link   string // name of the KubeLink
}

// ControlPort is the TCP port of cluster addresses on which two kubelinks talk inside a tunnel, in mode wireguard.
const ControlPort = 8779

// Peer is a link with a connection of its own and all that crosses it.
type Peer struct {
	Link      string         // name of the KubeLink
	Local     Prefixes       // addresses of this cluster in the mesh; our hello says so
	Services  Prefixes       // local service networks; our hello says so; empty: unknown
	Addresses Prefixes       // addresses of the peer in the mesh; its hello must say so
	Host      string         // of the endpoint: DNS name in lower case, no final dot, or IP; empty: the peer connects
	Port      uint16         // of the endpoint
	Key       PublicKey      // of the peer, in mode wireguard; links with one key are one WireGuard peer
	Preshared SecretKey      // with the peer, in mode wireguard; zero: none
	Networks  []netip.Prefix // what is sent to the peer and may come from it, links behind it included; sorted
	Ingress   []Rule         // where packets from the peer may go: the longest prefix decides, none denies; sorted
	Carried   []Carried      // instead of Ingress, where the peer carries other links: these and itself, by name
	Unlisted  bool           // Ingress comes from no list: mesh services are open, too
	Open      []LocalPort    // ports of the node that Ingress may allow, sorted
}

// Carried is a link whose packets come through a Peer. Of several links the one with the longest network that contains
// the source of a packet decides.
type Carried struct {
	Networks []netip.Prefix // sources of the link's packets, sorted
	Ingress  []Rule         // where these may go, as in a Peer
	Unlisted bool           // as in a Peer
}

// Rule allows or denies destinations.
type Rule struct {
	Prefix netip.Prefix
	Allow  bool
	Node   bool // a local cluster address: Allow is for ping and open ports only, and replies come in any case
}

// Route leads a destination into the mesh. What leaves this way gets the source address Source: as the preferred source
// of the route and by source NAT.
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
	Name     string         // svc.global.<domain>; empty: there is none
	Upstream netip.AddrPort // the mesh-global DNS service; zero: the objects of this cluster have the names
	Link     string         // the KubeLink that leads to Upstream; empty: Upstream is in the local cluster
}

// ClusterZone is the sub-domain of one cluster.
type ClusterZone struct {
	Name          string         // fully qualified: <cluster>.<domain>
	Link          string         // the KubeLink; empty: the local cluster
	Addresses     []netip.Addr   // of the cluster in the mesh, at most one of each family
	Services      Prefixes       // service networks of the cluster; empty: unknown
	Upstream      netip.AddrPort // DNS service of the cluster; zero: unknown
	ClusterDomain string         // domain that the cluster itself uses, fully qualified
	API           API            // instead of Upstream; zero: the names come from Upstream
	Offers        []Offer        // accepted mesh services of the cluster; the local one's are its own; by namespace, name
	Refused       []RefusedOffer // some of those that are not accepted, in the order of the peer
}

// Equal tells whether both are the same.
func (c ClusterZone) Equal(d ClusterZone) bool {
	return c.Name == d.Name && c.Link == d.Link && c.Upstream == d.Upstream && c.ClusterDomain == d.ClusterDomain &&
		c.API == d.API && slices.Equal(c.Addresses, d.Addresses) && slices.Equal(c.Services, d.Services) &&
		slices.EqualFunc(c.Offers, d.Offers, Offer.Equal) && slices.Equal(c.Refused, d.Refused)
}

// API is how the API server of a cluster is reached.
type API struct {
	Server    string // https://host; empty: the local one, with the broker's own credentials
	Namespace string // of the secret with the credentials; empty: the broker's
	Secret    string // its name; empty for the local API server
	Use       bool   // names come from it
}
