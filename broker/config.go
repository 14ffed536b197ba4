package broker

import (
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/pki"
)

// Config is the stanza of the Corefile with its defaults filled in. It is comparable with
// reflect.DeepEqual: an equal Config after a reload changes nothing.
type Config struct {
	mesh.Local

	Kubeconfig, Context string // empty: in-cluster
	Namespace           string // of secret and service
	NodeIP              string // address of the node, shown as gateway in the status of links

	BrokerPort     uint16 // TCP port to listen on; overridden by the target port of Service
	AdvertisedPort uint16 // the port that the hello announces for auto-connect
	Service        string // name of the broker's Service; empty: none
	Interface      string // name of the TUN
	NoOffload      bool   // no offloads, single packets
	Streams        int    // most connections per link; 0: as many as the bridge thinks right
	AutoConnect    bool

	Secret                    string // name of the TLS secret
	CertFile, KeyFile, CAFile string // instead of Secret
	SecretManageMode          pki.SecretManageMode
	DNSName                   string // name or IP address of the managed certificate

	RouteTable   int // routing table for our routes; 254 is main
	RulePriority int // of the rule that leads to RouteTable when it is not main

	DNSAdvertisement bool
	ServiceAccount   types.NamespacedName // whose token is announced; zero: none
	TokenLifetime    time.Duration        // that is asked for
	ConfigureDNS     bool                 // the cluster's DNS, by the ConfigMap coredns-custom
	ServeStale       time.Duration        // for how long answers are given that were true once; 0: not at all
	NoStateNames     bool                 // there are no names _state.<cluster>.<domain>
	StateDir         string               // folder for what has to survive a restart; empty: nothing has

	DeployCRDs  bool // install the CRDs at start
	KeepNetwork bool // leave device, routes and rules in place on shutdown
}
