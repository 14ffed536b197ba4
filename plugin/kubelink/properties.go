package kubelink

// The properties of the stanza: how many values each has, and how the values change the configuration.

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/mandelsoft/kubelink/broker"
	"github.com/mandelsoft/kubelink/broker/bridge"
	"github.com/mandelsoft/kubelink/broker/eventlog"
	"github.com/mandelsoft/kubelink/broker/lease"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/overlay"
	"github.com/mandelsoft/kubelink/broker/pki"
)

// property tells how to read one property.
type property struct {
	minValues, maxValues int
	set                  func(p *parser, values []string) error // the error says what is wrong with the values
	list                 string                                 // an example of a value that is a list; empty: it is none
}

// oneValue is a property with one value.
func oneValue(set func(p *parser, value string) error) property {
	return property{minValues: 1, maxValues: 1,
		set: func(p *parser, values []string) error { return set(p, values[0]) }}
}

// oneList is a property with one value, a list.
func oneList(example string, set func(p *parser, value string) error) property {
	prop := oneValue(set)
	prop.list = example
	return prop
}

// fileValue is a property with one value, a file that must exist.
func fileValue(field func(cfg *broker.Config) *string) property {
	return oneValue(func(p *parser, v string) (err error) {
		*field(&p.config), err = p.existingFile(v)
		return err
	})
}

// noValue is a property that switches something by its presence.
func noValue(set func(cfg *broker.Config)) property {
	return property{set: func(p *parser, _ []string) error { set(&p.config); return nil }}
}

// noEffect is a property of the legacy broker that has lost its meaning.
func noEffect(prop, why string) property {
	return property{maxValues: 1, set: func(p *parser, _ []string) error {
		warnNoEffect(line{p.c.File(), p.c.Line()}, prop, why)
		return nil
	}}
}

var properties = map[string]property{
	"kubeconfig": {minValues: 1, maxValues: 2, set: func(p *parser, v []string) (err error) {
		if len(v) == 2 {
			p.config.Context = v[1]
		}
		p.config.Kubeconfig, err = p.existingFile(v[0])
		return err
	}},
	"kubeconfig.apiserver-override": oneValue(setServer),
	"namespace":                     oneValue(func(p *parser, v string) error { return setLabel(&p.config.Namespace, v) }),
	"cluster-name":                  oneValue(setClusterName),
	"link-address": oneValue(func(p *parser, v string) error {
		a, err := mesh.ClusterAddress(v)
		p.config.Addresses = mesh.Prefixes{a}
		return err
	}),
	"mesh-domain":        oneValue(func(p *parser, v string) error { return setDomain(&p.config.MeshDomain, v) }),
	"meshdns-service-ip": oneValue(func(p *parser, v string) error { return setAddress(&p.config.MeshDNS, v) }),

	"node-cidr":    oneValue(func(p *parser, v string) error { return setNetwork(&p.config.NodeCIDRs, v) }),
	"pod-cidr":     oneValue(func(p *parser, v string) error { return setNetwork(&p.config.PodCIDRs, v) }),
	"service-cidr": oneValue(func(p *parser, v string) error { return setNetwork(&p.config.ServiceCIDRs, v) }),
	"node-ip": oneValue(func(p *parser, v string) error {
		var ip netip.Addr
		if err := setAddress(&ip, v); err != nil {
			return err
		}
		p.config.NodeIP = ip.String()
		return nil
	}),
	"cluster-domain": oneValue(func(p *parser, v string) error { return setDomain(&p.config.ClusterDomain, v) }),
	"dns-service-ip": oneValue(func(p *parser, v string) error { return setAddress(&p.config.ClusterDNS, v) }),

	"mode": oneValue(func(p *parser, v string) error {
		return setChoice(&p.config.Mode, v, mesh.Bridge, mesh.WireGuard, mesh.None)
	}),
	"wireguard-device": oneValue(func(p *parser, v string) error {
		return setChoice(&p.config.WireGuardDevice, v, link.AutoDevice, link.KernelDevice, link.UserspaceDevice)
	}),
	"keepalive": oneValue(func(p *parser, v string) error {
		var seconds int
		err := setNumber(&seconds, v, 0, 65535)
		p.config.Keepalive = time.Duration(seconds) * time.Second
		return err
	}),
	// IPv6 needs 1280 bytes (RFC 8200, section 5).
	"mtu":             oneValue(func(p *parser, v string) error { return setNumber(&p.config.MTU, v, 1280, 65535) }),
	"broker-port":     oneValue(func(p *parser, v string) error { return setPort(&p.config.BrokerPort, v) }),
	"advertised-port": oneValue(func(p *parser, v string) error { return setPort(&p.config.AdvertisedPort, v) }),
	"diagnosis-port": oneValue(func(p *parser, v string) error {
		var port int
		err := setNumber(&port, v, 0, 65535)
		p.config.DiagnosisPort = uint16(port)
		return err
	}),
	"routers": oneValue(func(p *parser, v string) error {
		choice := ""
		err := setChoice(&choice, v, "expected", "none")
		p.config.NoRouters = choice == "none"
		return err
	}),
	"service":      oneValue(func(p *parser, v string) error { return setLabel(&p.config.Service, v) }),
	"ifce-name":    oneValue(setInterface),
	"served-links": oneList("kubelink2,mesh2,192.168.0.0/24", setServedLinks),
	"offload":      oneValue(func(p *parser, v string) error { return setOff(&p.config.NoOffload, v) }),
	"streams": oneValue(func(p *parser, v string) error {
		return setNumber(&p.config.Streams, v, 1, bridge.MaxStreams)
	}),
	"local-ports":  oneList("udp/53,tcp/53", setLocalPorts),
	"auto-connect": {maxValues: 1, set: setAutoConnect, list: "100.64.0.0/16,100.65.0.0/16"},

	"secret":     oneValue(func(p *parser, v string) error { return setObjectName(&p.config.Secret, v) }),
	"certfile":   fileValue(func(cfg *broker.Config) *string { return &cfg.CertFile }),
	"keyfile":    fileValue(func(cfg *broker.Config) *string { return &cfg.KeyFile }),
	"cacertfile": fileValue(func(cfg *broker.Config) *string { return &cfg.CAFile }),
	"secret-manage-mode": oneValue(func(p *parser, v string) error {
		return setChoice(&p.config.SecretManageMode, v, pki.ManageNone, pki.ManageSelf, pki.ManageCert)
	}),
	"dns-name":         oneValue(setDNSName),
	"trust-system-cas": noValue(func(cfg *broker.Config) { cfg.SystemCAs = true }),

	"route-table": oneValue(func(p *parser, v string) error {
		if err := setNumber(&p.config.RouteTable, v, 1, 1<<31-1); err != nil {
			return err
		}
		if p.config.RouteTable == 255 {
			return errors.New("table 255 (local) is the kernel's own: use 254 (main) or a table of your own")
		}
		return nil
	}),
	// The rule for the main table has priority 32766: a rule after it would have no effect.
	"rule-priority": oneValue(func(p *parser, v string) error { return setNumber(&p.config.RulePriority, v, 1, 32765) }),
	"ipip": oneValue(func(p *parser, v string) error {
		switch v {
		case "none":
			return nil
		case "vxlan":
			p.config.VXLAN.Wanted = true
			return nil
		case "shared", "configure":
			return errors.New("IPIP is a matter of kubelink-router (flag --ipip): use none or vxlan, or remove the property")
		}
		return errors.New("use none or vxlan, or remove the property")
	}),
	"vxlan-vni": oneValue(func(p *parser, v string) error { return setNumber(&p.config.VXLAN.VNI, v, 1, overlay.MaxVNI) }),
	"vxlan-port": oneValue(func(p *parser, v string) error {
		return setNumber(&p.config.VXLAN.Port, v, overlay.MinPort, overlay.MaxPort)
	}),

	"dns-propagation": oneValue(func(p *parser, v string) error {
		return setChoice(&p.config.Propagation, v, mesh.PropagateNone, mesh.PropagateDNS, mesh.PropagateKubernetes)
	}),
	"accept-announced":   oneValue(func(p *parser, v string) error { return setOff(&p.config.IgnoreAnnounced, v) }),
	"dns-advertisement":  noValue(func(cfg *broker.Config) { cfg.DNSAdvertisement = true }),
	"service-account":    oneValue(setServiceAccount),
	"token-lifetime":     oneValue(setTokenLifetime),
	"coredns-configure":  noValue(func(cfg *broker.Config) { cfg.ConfigureDNS = true }),
	"coredns-service-ip": oneValue(func(p *parser, v string) error { return setAddress(&p.config.OwnDNS, v) }),
	"coredns-deployment": noEffect("coredns-deployment",
		"kubelink answers DNS itself, there is no deployment to restart"),
	"coredns-secret": noEffect("coredns-secret",
		"kubelink answers DNS itself, there is no generated configuration to store"),

	"serve-stale": oneValue(func(p *parser, v string) error {
		return setDuration(&p.config.ServeStale, v, time.Second, 72*time.Hour)
	}),
	"global-namespaces": oneList("default,prod", setGlobalNamespaces),
	"state-names":       oneValue(func(p *parser, v string) error { return setOff(&p.config.NoStateNames, v) }),
	"state-dir": oneValue(func(p *parser, v string) error {
		p.config.StateDir = p.resolvePath(v)
		if info, err := os.Stat(p.config.StateDir); err == nil && !info.IsDir() {
			return errors.New("this is a file, not a directory")
		}
		return nil // the broker makes a missing folder
	}),

	"lease-name": oneValue(func(p *parser, v string) error { return setObjectName(&p.config.LeaseName, v) }),
	"lease-duration": oneValue(func(p *parser, v string) error {
		err := setDuration(&p.config.LeaseDuration, v, time.Second, lease.MaxDuration)
		if err == nil && p.config.LeaseDuration%time.Second != 0 {
			err = errors.New("not a number of whole seconds: a Lease has no others")
		}
		return err
	}),
	"lease-renew-deadline": oneValue(func(p *parser, v string) error {
		return setDuration(&p.config.LeaseRenewDeadline, v, 100*time.Millisecond, lease.MaxDuration)
	}),
	"lease-retry-period": oneValue(func(p *parser, v string) error {
		return setDuration(&p.config.LeaseRetryPeriod, v, 50*time.Millisecond, lease.MaxDuration)
	}),
	"omit-lease": noValue(func(*broker.Config) {}), // checkLease switches it off

	"log-level": oneValue(setLogLevel),
	"log-format": oneValue(func(p *parser, v string) error {
		return setChoice(&p.config.LogFormat, v, eventlog.JSON, eventlog.Text)
	}),

	"force-crd-update":    noValue(func(cfg *broker.Config) { cfg.ForceCRDs = true }),
	"disable-deploy-crds": noValue(func(cfg *broker.Config) { cfg.DeployCRDs = false }),
	"keep-network":        noValue(func(cfg *broker.Config) { cfg.KeepNetwork = true }),
}

func setServer(p *parser, v string) error {
	u, err := url.Parse(v)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("not the URL of an API server, such as https://10.250.0.2:6443")
	}
	p.config.Server = v
	return nil
}

func setClusterName(p *parser, v string) error {
	if mesh, cluster, ok := strings.Cut(v, "--"); ok {
		return fmt.Errorf("%q separates mesh and cluster in the names of links, and this is the default mesh: "+
			"use %q, or apply a KubeLink %s with endpoint LocalLink for mesh %s", "--", cluster, v, mesh)
	}
	return setObjectName(&p.config.ClusterName, v)
}

func setInterface(p *parser, v string) error {
	// What the kernel accepts (dev_valid_name in net/core/dev.c); IFNAMSIZ counts the final NUL.
	if len(v) > 15 || v == "." || v == ".." || strings.ContainsAny(v, "/: \t") {
		return errors.New("not a name of a network interface: up to 15 characters without '/', ':' and blanks")
	}
	p.config.Interface = v
	return nil
}

func setServedLinks(p *parser, v string) error {
	if v == "all" {
		return nil
	}
	for entry := range strings.SplitSeq(v, ",") {
		served, err := parseServed(entry)
		if err != nil {
			return fmt.Errorf("%q: %w; use all, or a list of links (kubelink2), meshes (mesh2, %s) and networks of meshes "+
				"(192.168.0.0/24) with commas between, without blanks", entry, err, mesh.DefaultMesh)
		}
		p.config.Served = append(p.config.Served, served)
	}
	// Sorted: another order is no change.
	slices.Sort(p.config.Served)
	p.config.Served = slices.Compact(p.config.Served)
	return nil
}

// parseServed parses an entry of served-links.
func parseServed(entry string) (served string, err error) {
	switch {
	case entry == "all":
		return "", errors.New("all stands alone")
	case entry == mesh.DefaultMesh:
		return entry, nil
	case strings.ContainsRune(entry, '/'):
		var networks mesh.Prefixes
		err = setNetwork(&networks, entry)
		return networks.String(), err
	case strings.ContainsAny(entry, "<>"):
		return "", fmt.Errorf("only the default mesh is written in angle brackets, %s", mesh.DefaultMesh)
	}
	err = setObjectName(&served, entry)
	return served, err
}

func setAutoConnect(p *parser, values []string) error {
	p.config.AutoConnect = true
	for _, list := range values {
		for item := range strings.SplitSeq(list, ",") {
			var n mesh.Prefixes
			if err := setNetwork(&n, item); err != nil {
				return fmt.Errorf("%q: %w; use a list of networks separated by commas, without blanks, "+
					"or no value: then no network is taken over", item, err)
			}
			p.config.AutoNetworks = append(p.config.AutoNetworks, n...)
		}
	}
	// Sorted: another order is no change.
	slices.SortFunc(p.config.AutoNetworks, netip.Prefix.Compare)
	p.config.AutoNetworks = slices.Compact(p.config.AutoNetworks)
	return nil
}

func setLocalPorts(p *parser, v string) error {
	for item := range strings.SplitSeq(v, ",") {
		protocol, port, _ := strings.Cut(item, "/")
		l := mesh.LocalPort{Protocol: strings.ToLower(protocol)}
		if l.Protocol != "tcp" && l.Protocol != "udp" {
			return fmt.Errorf("%q: not tcp/PORT or udp/PORT; use a list such as udp/53,tcp/53, without blanks", item)
		}
		if err := setPort(&l.Port, port); err != nil {
			return fmt.Errorf("%q: %w", item, err)
		}
		p.config.LocalPorts = append(p.config.LocalPorts, l)
	}
	// Sorted: another order is no change.
	slices.SortFunc(p.config.LocalPorts, mesh.LocalPort.Compare)
	p.config.LocalPorts = slices.Compact(p.config.LocalPorts)
	return nil
}

func setGlobalNamespaces(p *parser, v string) error {
	for item := range strings.SplitSeq(v, ",") {
		var namespace string
		if err := setLabel(&namespace, item); err != nil {
			return fmt.Errorf("%q: %w; use a list of namespaces separated by commas, without blanks", item, err)
		}
		p.config.GlobalNamespaces = append(p.config.GlobalNamespaces, namespace)
	}
	// Sorted: another order is no change.
	slices.Sort(p.config.GlobalNamespaces)
	p.config.GlobalNamespaces = slices.Compact(p.config.GlobalNamespaces)
	return nil
}

func setServiceAccount(p *parser, v string) error {
	account := types.NamespacedName{Namespace: "kube-system", Name: v}
	if ns, n, ok := strings.Cut(v, "/"); ok {
		account = types.NamespacedName{Namespace: ns, Name: n}
	}
	if err := setLabel(&account.Namespace, account.Namespace); err != nil {
		return fmt.Errorf("namespace %q: %w", account.Namespace, err)
	}
	if err := setObjectName(&account.Name, account.Name); err != nil {
		return err
	}
	p.config.ServiceAccount = account
	return nil
}

func setTokenLifetime(p *parser, v string) error {
	d, err := time.ParseDuration(v)
	if err != nil {
		return errors.New("not a duration, such as 24h")
	}
	if d < 10*time.Minute || d > 1<<32*time.Second { // the limits of the API
		return errors.New("the API server issues tokens for 10m and more, up to 2^32 s")
	}
	p.config.TokenLifetime = d.Truncate(time.Second)
	return nil
}

func setDNSName(p *parser, v string) error {
	if net.ParseIP(v) == nil {
		if errs := validation.IsDNS1123Subdomain(strings.ToLower(strings.TrimSuffix(v, "."))); len(errs) > 0 {
			return errors.New("neither a DNS name nor an IP address")
		}
	}
	// Certificates and endpoints have it in lower case without a final dot.
	p.config.DNSName = strings.ToLower(strings.TrimSuffix(v, "."))
	return nil
}
