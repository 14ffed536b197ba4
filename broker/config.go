package broker

// The configuration: the stanza of the Corefile, what is checked of it, and what the parts of the broker take from it.

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/mandelsoft/kubelink/broker/announce"
	"github.com/mandelsoft/kubelink/broker/apizone"
	"github.com/mandelsoft/kubelink/broker/bridge"
	"github.com/mandelsoft/kubelink/broker/eventlog"
	"github.com/mandelsoft/kubelink/broker/kernel"
	"github.com/mandelsoft/kubelink/broker/lease"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/linkgateway"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/pki"
	"github.com/mandelsoft/kubelink/broker/records"
	"github.com/mandelsoft/kubelink/broker/wireguard"
)

const (
	// resync is how often the broker compares the kernel's state with what it should be, without any event.
	resync = 30 * time.Second
	// tokenTimeout bounds one request about the token that peers are told, for which nothing waits.
	tokenTimeout = 30 * time.Second
	// releaseTimeout bounds the last request of a process: it gives the Lease back.
	releaseTimeout = 2 * time.Second
	// abandonTimeout bounds what a broker says of its links at its end for good.
	abandonTimeout = 5 * time.Second
)

// Config is the stanza of the Corefile with its defaults filled in. It is comparable with
// reflect.DeepEqual: an equal Config after a reload changes nothing.
type Config struct {
	mesh.Local
	APIConfig
	GatewayConfig
	DeviceConfig
	CertificateConfig
	NamesConfig
	LeaseConfig
	LogConfig
}

// LogConfig says what the process logs, and how.
type LogConfig struct {
	LogLevel  slog.Level      // the lowest one
	LogFormat eventlog.Format // empty: text
}

// APIConfig says how the broker uses the API server of its cluster.
type APIConfig struct {
	Kubeconfig, Context string // empty: in-cluster
	Server              string // URL of the API server; empty: that of Kubeconfig
	Namespace           string // of secret and service
	DeployCRDs          bool   // install the CRDs at start
	ForceCRDs           bool   // replace newer CRDs, too
	DiagnosisPort       uint16 // TCP, of reports, which the API server gives users; 0: there are none
}

// GatewayConfig says how the broker carries links.
type GatewayConfig struct {
	NodeIP         string         // address of the node, shown as gateway in the status of links
	PodName        string         // of the broker's pod; else the name of its host
	PodIPs         []netip.Addr   // of the broker's pod; empty: not known
	BrokerPort     uint16         // to listen on, TCP or UDP by the mode; the target port of Service overrides it
	AdvertisedPort uint16         // port that peers are told for auto-connect
	Service        string         // name of the broker's Service; empty: none
	Interface      string         // name of the device
	NoOffload      bool           // the TUN carries single packets
	Streams        int            // most connections per link; 0: the dataplane's default
	AutoConnect    bool           // authenticated peers without link get one
	AutoNetworks   []netip.Prefix // in which such links may have a service network, sorted
	VXLAN          VXLAN          // between nodes and the gateway
	RouteTable     int            // routing table for our routes; 254 is main
	RulePriority   int            // of the rule that leads to RouteTable when it is not main
	KeepNetwork    bool           // leave device, routes and rules in place on shutdown
	NoRouters      bool           // other nodes need no kubelink-router: nothing looks for it
}

// DeviceConfig says what is special of the device.
type DeviceConfig struct {
	MTU             int                  // in bytes; 0: that of the mode
	WireGuardDevice link.WireGuardDevice // in mode wireguard
	Keepalive       time.Duration        // in mode wireguard, whole seconds; 0: none
}

// VXLAN says how packets get from nodes to the gateway and back: in a network of their own, or not.
type VXLAN struct {
	Wanted    bool
	VNI, Port int // 0: that of the overlay
}

// CertificateConfig says where the certificate of links comes from, in mode wireguard the private key.
type CertificateConfig struct {
	Secret                    string // its name
	CertFile, KeyFile, CAFile string // instead of Secret
	SecretManageMode          pki.SecretManageMode
	SystemCAs                 bool   // public CAs, those of the system, are trusted instead of one of the user
	DNSName                   string // name or IP address that the certificate must have
}

// NamesConfig says what peers and the cluster's DNS are told of names, and what happens to names when clusters are
// away.
type NamesConfig struct {
	IgnoreAnnounced  bool                 // KubeLinks do not take over what peers are told
	DNSAdvertisement bool                 // peers are told how this cluster's names are resolved
	ServiceAccount   types.NamespacedName // peers are told its token; zero: none
	TokenLifetime    time.Duration        // that the broker asks for
	ConfigureDNS     bool                 // the cluster's DNS, by the ConfigMap coredns-custom
	ServeStale       time.Duration        // how long DNS gives answers that were true once; 0: not at all
	NoStateNames     bool                 // there are no names _state.<cluster>.<domain>
	GlobalNamespaces []string             // whose objects may have global names; empty: all
	StateDir         string               // folder for what has to survive a restart; empty: nothing has
}

// LeaseConfig says how the broker finds out whether another one carries the same links.
type LeaseConfig struct {
	NodeName           string        // identity of the holder of the Lease
	LeaseName          string        // empty: derived from the links that are served
	LeaseDuration      time.Duration // 0: there is no Lease, this broker carries the links
	LeaseRenewDeadline time.Duration // 0: two thirds of LeaseDuration
	LeaseRetryPeriod   time.Duration // 0: two fifteenths of LeaseDuration
}

// Validate checks what can be checked without the system. Messages name properties.
func (c *Config) Validate() error {
	type network struct {
		name  string
		cidrs mesh.Prefixes
	}
	services := network{"service-cidr", c.ServiceCIDRs}
	pods, nodes := network{"pod-cidr", c.PodCIDRs}, network{"node-cidr", c.NodeCIDRs}
	for _, n := range []network{pods, nodes} { // these may contain the service network
		for _, service := range services.cidrs {
			for _, cidr := range n.cidrs {
				if service.Overlaps(cidr) && service.Bits() <= cidr.Bits() {
					return fmt.Errorf("service-cidr %s contains %s %s: addresses of services are those of nothing else",
						service, n.name, cidr)
				}
			}
		}
	}
	for _, address := range c.Addresses {
		if _, err := mesh.ClusterAddress(address.String()); err != nil {
			return fmt.Errorf("link-address %s: %w", address, err)
		}
		for _, n := range []network{services, pods, nodes} {
			for _, cidr := range n.cidrs {
				if cidr.Overlaps(address) {
					return fmt.Errorf("link-address %s overlaps with %s %s: "+
						"the mesh network must be disjoint from the networks of its clusters", address, n.name, cidr)
				}
			}
		}
	}
	return c.validateLease()
}

// validateLease checks the durations of the Lease.
func (c *Config) validateLease() error {
	l := c.leaseConfig()
	switch {
	case l.Duration == 0:
		return nil
	case l.RenewDeadline >= l.Duration:
		return fmt.Errorf("lease-renew-deadline %s is not shorter than lease-duration %s: another broker would take the "+
			"links of one that still tries to renew", l.RenewDeadline, l.Duration)
	case l.RetryPeriod*2 > l.RenewDeadline:
		return fmt.Errorf("lease-retry-period %s is longer than half of lease-renew-deadline %s: one failure in between "+
			"must cost nothing", l.RetryPeriod, l.RenewDeadline)
	}
	return nil
}

// leaseConfig says which Lease decides whether this broker carries the links. Brokers that serve other links have
// another one, and so has a broker that serves names only.
func (c *Config) leaseConfig() lease.Config {
	name := c.LeaseName
	if name == "" {
		name = lease.Name(c.Mode.CarriesTraffic(), c.Served)
	}
	return lease.Config{
		Namespace: c.Namespace, Name: name, Identity: c.NodeName, Duration: c.LeaseDuration,
		RenewDeadline: cmp.Or(c.LeaseRenewDeadline, c.LeaseDuration*2/3),
		RetryPeriod:   cmp.Or(c.LeaseRetryPeriod, c.LeaseDuration*2/15),
	}
}

// restConfig finds the API server.
func (c *Config) restConfig() (*rest.Config, error) {
	cfg, err := c.readAccess()
	if err == nil && c.Server != "" {
		cfg.Host = c.Server
	}
	return cfg, err
}

// readAccess reads the access of Kubeconfig, or of the pod.
func (c *Config) readAccess() (*rest.Config, error) {
	if c.Kubeconfig == "" {
		cfg, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("no kubeconfig is set, and this is no pod: set kubeconfig FILE (%w)", err)
		}
		return cfg, nil
	}
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{ExplicitPath: c.Kubeconfig},
		&clientcmd.ConfigOverrides{CurrentContext: c.Context}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", c.Kubeconfig, err)
	}
	return cfg, nil
}

// pkiConfig says where the certificate, or the key of mode wireguard, comes from.
func (c *Config) pkiConfig() pki.Config {
	return pki.Config{
		WireGuard: c.Mode == mesh.WireGuard,
		Namespace: c.Namespace, Secret: c.Secret, CertFile: c.CertFile, KeyFile: c.KeyFile, CAFile: c.CAFile,
		SecretManageMode: c.SecretManageMode, DNSName: c.DNSName, SystemCAs: c.SystemCAs,
	}
}

// accessConfig is what the credentials for API servers depend on.
func (c *Config) accessConfig() apizone.Config {
	return apizone.Config{Namespace: c.Namespace, TLSSecret: c.Secret, Propagation: c.Propagation}
}

// announcePolicy is what this cluster takes over from peers.
func (c *Config) announcePolicy(unencrypted bool) *announce.Policy {
	return &announce.Policy{
		Local: &c.Local, AutoConnect: c.AutoConnect, Networks: c.AutoNetworks,
		IgnoreFacts: c.IgnoreAnnounced, Unencrypted: unencrypted,
	}
}

// placeConfig is what is known of the place of the gateway without asking the kernel.
func (c *Config) placeConfig() linkgateway.Config {
	nodeIP, _ := netip.ParseAddr(c.NodeIP)
	return linkgateway.Config{
		Node: c.NodeName, NodeIP: nodeIP, Pod: c.PodName, PodIPs: c.PodIPs, NodeCIDRs: c.NodeCIDRs, PodCIDRs: c.PodCIDRs,
	}
}

func (c *Config) kernelConfig() kernel.Config {
	return kernel.Config{Device: c.Interface, MTU: c.deviceMTU(), Table: c.RouteTable, RulePriority: c.RulePriority}
}

// deviceMTU is the MTU of the device, in bytes.
func (c *Config) deviceMTU() int {
	if c.Mode == mesh.WireGuard {
		return cmp.Or(c.MTU, wireguard.DefaultMTU)
	}
	return cmp.Or(c.MTU, bridge.DefaultMTU)
}

// linkSettings are the settings that the dataplane gets. It announces no names, no API and no term yet.
func (c *Config) linkSettings(port uint16) link.Settings {
	version, _ := programVersions()
	return link.Settings{
		Version:        strings.Trim(version, "()"), // "(devel)" of a build without git
		MTU:            c.deviceMTU(),
		Device:         c.WireGuardDevice,
		Keepalive:      c.Keepalive,
		NoOffload:      c.NoOffload,
		Streams:        c.Streams,
		ListenPort:     port,
		AdvertisedPort: c.AdvertisedPort,
		AutoConnect:    c.AutoConnect,
	}
}

// tenancy says which namespaces may have global names.
func (c *Config) tenancy() records.Tenancy {
	return records.Tenancy{Home: c.Namespace, Allowed: c.GlobalNamespaces}
}

// nsAddresses are the addresses of kubelink's own DNS service; none if they are unknown.
func (c *Config) nsAddresses() []netip.Addr {
	a := c.DNSAddress(c.ServiceCIDRs)
	if !a.IsValid() {
		return nil
	}
	return []netip.Addr{a}
}

// clusterDNS is the address of the local cluster's DNS service.
func (c *Config) clusterDNS() netip.Addr {
	if c.ClusterDNS.IsValid() || len(c.ServiceCIDRs) == 0 {
		return c.ClusterDNS
	}
	return mesh.Nth(c.ServiceCIDRs.First(), 10)
}
