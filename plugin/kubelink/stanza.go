package kubelink

// The stanza of a Corefile: its defaults, and how the stanzas of several server blocks become one.

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/plugin"

	"github.com/mandelsoft/kubelink/broker"
	"github.com/mandelsoft/kubelink/broker/diagnosis"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/pki"
)

// stanza is the common configuration of all kubelink stanzas of a Corefile: one of them may have
// properties.
type stanza struct {
	config broker.Config
	zones  []string // the zones of all server blocks, sorted
	place  string   // file:line of the stanza with properties; empty: none has properties

	running bool // all servers of the Corefile have started; guarded by brokerLifecycle.mu
}

// namespaceFile is where the kubelet writes the namespace of a pod.
var namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// Defaults of mode wireguard, those of the legacy broker.
const (
	wireGuardPort      = 8777
	wireGuardKeepalive = 21 * time.Second
)

// defaultConfig has the defaults of the legacy broker, those of mode bridge where they depend on the mode.
func defaultConfig() broker.Config {
	cfg := broker.Config{
		Local: mesh.Local{
			Mode:          mesh.Bridge,
			Propagation:   mesh.PropagateNone,
			MeshDomain:    "kubelink.",
			ClusterDomain: "cluster.local.",
			DefaultPort:   80,
		},
		APIConfig: broker.APIConfig{Namespace: "kube-system", DeployCRDs: true, DiagnosisPort: diagnosis.DefaultPort},
		GatewayConfig: broker.GatewayConfig{
			BrokerPort:     8088,
			AdvertisedPort: 80,
			Interface:      "kubelink",
			RouteTable:     254,
			RulePriority:   32750,
			PodName:        cmp.Or(os.Getenv("POD_NAME"), hostName()),
			PodIPs:         podIPs(),
		},
		CertificateConfig: broker.CertificateConfig{SecretManageMode: pki.ManageNone},
		NamesConfig:       broker.NamesConfig{TokenLifetime: 24 * time.Hour},
		LeaseConfig:       broker.LeaseConfig{NodeName: nodeName(), LeaseDuration: 15 * time.Second},
	}
	if ns, err := os.ReadFile(namespaceFile); err == nil {
		if ns := strings.TrimSpace(string(ns)); ns != "" {
			cfg.Namespace = ns
		}
	}
	return cfg
}

// setModeDefaults sets the defaults that depend on the mode.
func setModeDefaults(p *parser) {
	if p.config.Mode != mesh.WireGuard {
		return
	}
	p.config.DefaultPort = wireGuardPort
	for prop, port := range map[string]*uint16{
		"broker-port": &p.config.BrokerPort, "advertised-port": &p.config.AdvertisedPort,
	} {
		if !p.isGiven(prop) {
			*port = wireGuardPort
		}
	}
	if !p.isGiven("wireguard-device") {
		p.config.WireGuardDevice = link.AutoDevice
	}
	if !p.isGiven("keepalive") {
		p.config.Keepalive = wireGuardKeepalive
	}
}

// nodeName is the name of the node: the value of the variable NODE_NAME, or else the name of the host, which a pod in
// the network of its node has from it.
func nodeName() string {
	if name := os.Getenv("NODE_NAME"); name != "" {
		return name
	}
	return hostName()
}

func hostName() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "unknown"
	}
	return name
}

// podIPs are the addresses of the pod: the value of the variable POD_IP, a list with commas as status.podIPs has it.
func podIPs() (all []netip.Addr) {
	for text := range strings.SplitSeq(os.Getenv("POD_IP"), ",") {
		if a, err := netip.ParseAddr(text); err == nil {
			all = append(all, a)
		}
	}
	return all
}

// parseBlock reads the stanza of one server block.
func (s *stanza) parseBlock(c *caddy.Controller) error {
	for first := true; c.Next(); first = false {
		if !first {
			return c.Errf("%s: %v", pluginName, plugin.ErrOnce)
		}
		place := fmt.Sprintf("%s:%d", c.File(), c.Line())
		p := newParser(c, defaultConfig())
		if err := p.parseStanza(); err != nil {
			return err
		}
		setModeDefaults(p)
		if err := checkCombinations(p); err != nil {
			return err
		}
		if len(p.lines) == 1 { // the name of the plugin alone
			continue
		}
		if s.place != "" {
			return c.Errf("%s has properties at %s and at %s: "+
				"keep them in one server block and write a plain %q in the others", pluginName, s.place, place, pluginName)
		}
		s.config, s.place = p.config, place
	}
	return nil
}
