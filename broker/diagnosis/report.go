// Package diagnosis says how the links of a cluster are, what is wrong with them, and what to do about it: as a Report,
// which the broker serves as JSON at Path. The command line reads reports, and so can other programs.
//
// A report has no secrets. The server gives it only to users that the API server of the cluster lets read it.
package diagnosis

import "time"

// How a report is requested.
const (
	// Path of the report. It is also the URL (nonResourceURL) for which the user of the token needs the verb "get".
	Path = "/diagnosis"
	// TokenHeader has the token of the request. The proxy of the API server strips the header Authorization.
	TokenHeader = "Kubelink-Token"
	// Audience of the token.
	Audience = "kubelink"
	// ServiceAccount is the account of the manifests that may read reports, in the broker's namespace.
	ServiceAccount = "kubelink-diagnosis"
	// DefaultPort is where brokers serve reports, TCP.
	DefaultPort = 10534
)

// The most entries of the lists of a report. Truncated tells of longer ones.
const (
	MaxLinks        = 1024
	MaxMeshServices = 4096
	MaxFindings     = 1024
)

// Report is what a broker knows of itself and of its links at one moment. Times are RFC 3339 in UTC.
type Report struct {
	Version        string    `json:"version"` // of kubelink
	CoreDNSVersion string    `json:"coreDNSVersion"`
	Time           time.Time `json:"time"`
	Mode           string    `json:"mode"`             // bridge, wireguard, none
	Device         string    `json:"device,omitempty"` // network interface of the links; empty in mode none
	Node           string    `json:"node"`             // identity of the broker, the name of its node
	Namespace      string    `json:"namespace"`        // of the broker's objects
	Ready          bool      `json:"ready"`            // as /ready says

	Lease        Lease         `json:"lease"`
	Clusters     []Cluster     `json:"clusters"` // the place of this cluster in each mesh
	Links        []Link        `json:"links"`    // by name
	Certificates []Certificate `json:"certificates"`
	MeshServices []MeshService `json:"meshServices"` // by namespace and name
	Findings     []Finding     `json:"findings"`     // errors first
	Checks       []Check       `json:"checks"`
	Truncated    bool          `json:"truncated,omitempty"` // a list is longer than its bound
}

// NodePath is the page of kubelink-router with a NodeReport, for the same tokens as Path.
const NodePath = "/findings"

// NodeReport is what kubelink-router knows of its node at one moment.
type NodeReport struct {
	Node     string    `json:"node"`
	Ready    bool      `json:"ready"` // the routes are what they should be, and packets pass
	Findings []Finding `json:"findings"`
}

// Lease says which broker of the cluster holds the links.
type Lease struct {
	Holder  string `json:"holder,omitempty"` // identity; empty: unknown
	Term    uint32 `json:"term"`             // 0: there is no Lease
	Active  bool   `json:"active"`           // this broker holds the links
	Problem string `json:"problem,omitempty"`
}

// Cluster is the place of the local cluster in a mesh.
type Cluster struct {
	Mesh      string   `json:"mesh"` // empty: the default mesh
	Name      string   `json:"name"`
	Link      string   `json:"link,omitempty"`     // the LocalLink; empty: the Corefile defines the mesh
	Addresses []string `json:"addresses"`          // in the mesh, with its mask
	Services  []string `json:"services,omitempty"` // service networks; none: unknown
	Domain    string   `json:"domain,omitempty"`   // of the mesh; empty: no DNS
	State     string   `json:"state,omitempty"`    // of the LocalLink
	Message   string   `json:"message,omitempty"`
}

// Link is a KubeLink to another cluster.
type Link struct {
	Name           string     `json:"name"`
	Mesh           string     `json:"mesh"` // empty: the default mesh
	ClusterAddress string     `json:"clusterAddress"`
	CIDR           string     `json:"cidr,omitempty"`
	Routed         bool       `json:"routed,omitempty"` // CIDR leads to the link; else the cluster has it itself
	Endpoint       string     `json:"endpoint,omitempty"`
	Gateway        string     `json:"gatewayLink,omitempty"` // the link that carries this one; empty: it has a connection
	Egress         []string   `json:"egress,omitempty"`
	State          string     `json:"state"`             // as in the status of the KubeLink
	Reason         string     `json:"reason,omitempty"`  // of the state, one line
	Message        string     `json:"message,omitempty"` // of the status, one line: reason and notes
	Refused        string     `json:"refused,omitempty"` // why this end refused the peer's last connection
	Since          *time.Time `json:"since,omitempty"`   // of the state
	RTT            float64    `json:"rtt,omitempty"`     // seconds; 0: unknown
	Remote         string     `json:"remote,omitempty"`  // address and port of the peer
	PeerVersion    string     `json:"peerVersion,omitempty"`
	Dialled        int        `json:"dialled,omitempty"`  // connections that this end has dialled
	Accepted       int        `json:"accepted,omitempty"` // connections that the peer has dialled
	Names          *Names     `json:"names,omitempty"`    // nil: the cluster has no names here
	Traffic
}

// Traffic is what goes through a link: IP packets from the peer (rx) and to it (tx).
type Traffic struct {
	RxBytes uint64  `json:"rxBytes"` // since the broker's start
	TxBytes uint64  `json:"txBytes"`
	RxRate  float64 `json:"rxRate"` // bytes per second, of the last 5 seconds
	TxRate  float64 `json:"txRate"`
}

// Names are the names of the cluster behind a link.
type Names struct {
	Zone  string `json:"zone"`  // <cluster>.<domain>
	State string `json:"state"` // as the name _state.<zone> tells it
	// MeshService is one that the cluster offers: its name and a TCP port, such as web.shop.msvc.c2.kubelink:80.
	MeshService string `json:"meshService,omitempty"`
}

// Certificate is what expires.
type Certificate struct {
	Kind      string    `json:"kind"` // certificate, ca
	Name      string    `json:"name,omitempty"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	Source    string    `json:"source"` // secret or file
}

// MeshService is one of this cluster.
type MeshService struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	State     string `json:"state"`
	Message   string `json:"message,omitempty"`
}

// Severity of a finding.
type Severity string

// The severities.
const (
	// Error: something does not work.
	Error Severity = "error"
	// Warning: all works, but a part may not be as its user wants it, or will stop to work.
	Warning Severity = "warning"
)

// Finding is one thing that is wrong.
type Finding struct {
	Reason   string   `json:"reason"` // the kind, in the form of the reason of a condition
	Severity Severity `json:"severity"`
	Object   Object   `json:"object"`
	Message  string   `json:"message"` // the cause, one line
	Remedy   string   `json:"remedy"`  // what to do, one line
}

// Object is what a finding is about.
type Object struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

// Check is one thing that the broker has looked at.
type Check struct {
	Name    string `json:"name"`
	OK      bool   `json:"ok"`
	Message string `json:"message,omitempty"` // why not, one line
}

// Refusal is the body of an answer without report.
type Refusal struct {
	Error  string `json:"error"`
	Remedy string `json:"remedy"`
}
