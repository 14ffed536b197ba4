// Package link has the types that dataplanes and the other packages share: the states of links, announcements of peers,
// and the settings and credentials for links. It depends on no dataplane and on no other package of kubelink.
package link

import (
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"time"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// State is the state of a link as its dataplane sees it.
type State string

// The states.
const (
	Idle State = "Idle" // the dataplane has not tried yet, or connects for the first time
	Up   State = "Up"   // both ends have accepted each other, and packets pass
	Down State = "Down" // the connection was lost, or cannot be established
)

// Unrouted is why a link that a dataplane says is Up is Idle for users.
const Unrouted = "its routes are being set"

// Status describes one link.
type Status struct {
	Link      string
	State     State
	Reason    string        // of State, one line; empty when Up
	Refused   string        // reason why this end refused the peer's last connection, one line; empty since the link is Up
	Note      string        // what to know of the link in any State, one line; empty: nothing
	Since     time.Time     // of State
	Downs     uint64        // how often the link was Up and became Down
	RTT       time.Duration // smoothed round-trip time; 0: unknown
	RxBytes   uint64        // of IP packets from the peer, dropped ones too; of links that share a peer the first has all
	TxBytes   uint64        // of IP packets to the peer, in the same way
	Remote    string        // address and port of the peer
	Dialled   int           // number of connections that this end has dialled
	Accepted  int           // number of connections that the peer has dialled
	Announced *Announcement // latest announcement of the peer; nil: the link was not Up yet. Readers do not change it
	Offers    *mesh.Offers  // mesh services that the peer offers; nil: it cannot say, or did not yet. The same
}

// Announcement has the facts that a cluster announces to its peers.
type Announcement struct {
	Address        netip.Prefix // cluster address with the mask of the mesh
	ServiceCIDR    netip.Prefix // zero: none
	AdvertisedPort uint16       // port of the endpoint that peers dial
	DNS            *DNSInfo     // nil: not announced
	API            *APIInfo     // nil: not announced
	Version        string       // of kubelink, letters, digits and ".+_-" only; empty: not known
}

// DNSInfo says how the names of a cluster are resolved.
type DNSInfo struct {
	ClusterDomain string
	Address       netip.Addr // of the cluster's DNS service; the zero Addr: not announced
}

// APIInfo is access to the API server of a cluster. It is secret.
type APIInfo struct {
	Token  string
	CACert []byte // PEM
}

// String hides the token.
func (a APIInfo) String() string { return "API access" }

// UnknownPeer is an authenticated peer for which there is no link.
type UnknownPeer struct {
	Announcement
	Names  []string // of its certificate
	Remote netip.AddrPort
}

// Settings configure a dataplane. They can change while links are Up. A dataplane ignores settings for features that it
// does not have.
type Settings struct {
	MTU       int  // of the device, in bytes; 0: the dataplane's default
	NoOffload bool // the TUN carries single packets with checksums, as if the kernel knew of no offloads
	Streams   int  // connections for each link; 0: the dataplane's default. When both ends dial at once there are more

	ListenPort uint16 // on all addresses; 0: any free port

	Device    WireGuardDevice // in mode wireguard
	Keepalive time.Duration   // in mode wireguard, between packets that keep NAT open, whole seconds; 0: none

	// This end announces these to its peers.
	Term           uint32 // of the Lease of the links; peers follow the broker with the highest. 0: there is no Lease
	AdvertisedPort uint16
	Version        string       // of kubelink
	DNS            *DNSInfo     // nil: not announced
	API            *APIInfo     // nil: not announced
	Offers         []mesh.Offer // mesh services; a peer is told the ones in its mesh

	// AutoConnect makes the dataplane report authenticated peers without link. It requires Credentials with Roots: with
	// the system's roots, every owner of a public certificate could join.
	AutoConnect bool
}

// WireGuardDevice says which implementation of WireGuard carries packets.
type WireGuardDevice string

// The implementations.
const (
	AutoDevice      WireGuardDevice = "auto"      // the kernel's if it has one, else UserspaceDevice
	KernelDevice    WireGuardDevice = "kernel"    // the kernel's
	UserspaceDevice WireGuardDevice = "userspace" // wireguard-go in this process
)

// Credentials are what this end authenticates itself with: the certificate and the authorities that it trusts or, in
// mode wireguard, the private key.
type Credentials struct {
	Certificate tls.Certificate
	Roots       *x509.CertPool // nil: the system's
	// PrivateKey is this end's key in mode wireguard; zero in the other modes.
	PrivateKey mesh.SecretKey
	// Unencrypted asks for links without encryption and authentication. The other fields are empty then.
	Unencrypted bool
}
