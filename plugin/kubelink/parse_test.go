package kubelink

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mandelsoft/kubelink/broker"
	"github.com/mandelsoft/kubelink/broker/eventlog"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// parseStanza reads a stanza as the first of a Corefile named Testfile.
func parseStanza(input string) (broker.Config, error) {
	s := &stanza{config: defaultConfig()}
	err := s.parseBlock(caddy.NewTestController("dns", input))
	return s.config, err
}

func TestDefaults(t *testing.T) {
	want := broker.Config{
		Local: mesh.Local{
			Mode: "bridge", Propagation: "none", MeshDomain: "kubelink.", ClusterDomain: "cluster.local.", DefaultPort: 80,
		},
		APIConfig: broker.APIConfig{Namespace: "kube-system", DeployCRDs: true, DiagnosisPort: 10534},
		GatewayConfig: broker.GatewayConfig{
			BrokerPort: 8088, AdvertisedPort: 80, Interface: "kubelink", RouteTable: 254, RulePriority: 32750,
			PodName: "kubelink-abc", PodIPs: []netip.Addr{netip.MustParseAddr("100.96.1.7"), netip.MustParseAddr("fd00::7")},
		},
		CertificateConfig: broker.CertificateConfig{SecretManageMode: "none"},
		NamesConfig:       broker.NamesConfig{TokenLifetime: 24 * time.Hour},
		LeaseConfig:       broker.LeaseConfig{NodeName: "node1", LeaseDuration: 15 * time.Second},
	}
	t.Setenv("NODE_NAME", "node1")
	t.Setenv("POD_NAME", "kubelink-abc")
	t.Setenv("POD_IP", "100.96.1.7,fd00::7")
	for _, input := range []string{
		"kubelink", "kubelink {\n}", "kubelink {\nipip none\nserved-links all\nmode bridge\n}",
	} {
		if got, err := parseStanza(input); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v\n got %+v\nwant %+v", input, err, got, want)
		}
	}

	// Outside of a pod, the host has the name of the node, and without the variable POD_NAME that of the pod.
	for _, name := range []string{"NODE_NAME", "POD_NAME", "POD_IP"} {
		t.Setenv(name, "")
	}
	host, _ := os.Hostname()
	got, err := parseStanza("kubelink")
	if err != nil || got.NodeName != host || got.PodName != host || got.PodIPs != nil {
		t.Errorf("node %q, pod %q %v, %v, want %q", got.NodeName, got.PodName, got.PodIPs, err, host)
	}

	// In a pod.
	defer func(f string) { namespaceFile = f }(namespaceFile)
	namespaceFile = filepath.Join(t.TempDir(), "namespace")
	if err := os.WriteFile(namespaceFile, []byte("link-system\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := parseStanza("kubelink"); err != nil || got.Namespace != "link-system" {
		t.Errorf("namespace %q, %v", got.Namespace, err)
	}
}

func TestProperties(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, f := range []string{"kubeconfig", "tls.crt", "tls.key", "ca.crt"} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	addr := netip.MustParseAddr
	prefixes := func(s string) mesh.Prefixes { return mesh.Prefixes{netip.MustParsePrefix(s)} }
	for _, c := range []struct {
		input string
		want  func(*broker.Config)
	}{
		{"kubeconfig kubeconfig", func(c *broker.Config) { c.Kubeconfig = "kubeconfig" }},
		{"kubeconfig kubeconfig admin", func(c *broker.Config) { c.Kubeconfig, c.Context = "kubeconfig", "admin" }},
		{"kubeconfig.apiserver-override https://[fd00::2]:6443/c1", func(c *broker.Config) {
			c.Server = "https://[fd00::2]:6443/c1"
		}},
		{"namespace links", func(c *broker.Config) { c.Namespace = "links" }},
		{"cluster-name kubelink1\nlink-address 192.168.0.11/24", func(c *broker.Config) {
			c.ClusterName, c.Addresses = "kubelink1", prefixes("192.168.0.11/24")
		}},
		{"link-address 192.168.0.11/24", func(c *broker.Config) { c.Addresses = prefixes("192.168.0.11/24") }},
		{"link-address fd00::11/64", func(c *broker.Config) { c.Addresses = prefixes("fd00::11/64") }},
		{"mesh-domain Mesh.Example", func(c *broker.Config) { c.MeshDomain = "mesh.example." }},
		{"node-cidr 10.250.0.0/16\npod-cidr 100.96.0.0/11\n" +
			"service-cidr 100.64.0.0/20\nnode-ip 10.250.0.7", func(c *broker.Config) {
			c.NodeCIDRs, c.PodCIDRs = prefixes("10.250.0.0/16"), prefixes("100.96.0.0/11")
			c.ServiceCIDRs, c.NodeIP = prefixes("100.64.0.0/20"), "10.250.0.7"
		}},
		{"cluster-domain cluster.example.\ndns-service-ip 100.64.0.53", func(c *broker.Config) {
			c.ClusterDomain, c.ClusterDNS = "cluster.example.", addr("100.64.0.53")
		}},
		{"mode none", func(c *broker.Config) { c.Mode = mesh.None }},
		{"broker-port 9000\nadvertised-port 443\nservice broker\nifce-name kl0", func(c *broker.Config) {
			c.BrokerPort, c.AdvertisedPort, c.Service, c.Interface = 9000, 443, "broker", "kl0"
		}},
		{"diagnosis-port 9999", func(c *broker.Config) { c.DiagnosisPort = 9999 }},
		{"diagnosis-port 0", func(c *broker.Config) { c.DiagnosisPort = 0 }},
		{"mtu 9000", func(c *broker.Config) { c.MTU = 9000 }},
		{"offload off\nstreams 4", func(c *broker.Config) { c.NoOffload, c.Streams = true, 4 }},
		{"offload on", func(c *broker.Config) {}},
		{"serve-stale 90m\nstate-names off\nstate-dir state", func(c *broker.Config) {
			c.ServeStale, c.NoStateNames, c.StateDir = 90*time.Minute, true, "state"
		}},
		{"served-links c,a.b,m--x,a.b", func(c *broker.Config) { c.Served = []string{"a.b", "c", "m--x"} }},
		{"served-links <default>,m,fd00:1::/64,192.168.0.0/24,m", func(c *broker.Config) {
			c.Served = []string{"192.168.0.0/24", "<default>", "fd00:1::/64", "m"}
		}},
		{"auto-connect\nsecret tls\nsecret-manage-mode self\ndns-name Kubelink1.Example.", func(c *broker.Config) {
			c.AutoConnect, c.Secret, c.SecretManageMode, c.DNSName = true, "tls", "self", "kubelink1.example"
		}},
		{"auto-connect 100.64.32.0/19,10.0.0.0/8,10.0.0.0/8\nsecret tls", func(c *broker.Config) {
			c.AutoConnect, c.Secret = true, "tls"
			c.AutoNetworks = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("100.64.32.0/19")}
		}},
		{"accept-announced off", func(c *broker.Config) { c.IgnoreAnnounced = true }},
		{"accept-announced on", func(*broker.Config) {}},
		{"global-namespaces prod,default,prod", func(c *broker.Config) {
			c.GlobalNamespaces = []string{"default", "prod"}
		}},
		{"local-ports udp/53,TCP/53,tcp/8080,udp/53", func(c *broker.Config) {
			c.LocalPorts = []mesh.LocalPort{
				{Protocol: "tcp", Port: 53}, {Protocol: "tcp", Port: 8080}, {Protocol: "udp", Port: 53},
			}
		}},
		{"secret tls\nsecret-manage-mode cert\ndns-name 192.0.2.1", func(c *broker.Config) {
			c.Secret, c.SecretManageMode, c.DNSName = "tls", "cert", "192.0.2.1"
		}},
		{"certfile tls.crt\nkeyfile tls.key\ncacertfile ca.crt", func(c *broker.Config) {
			c.CertFile, c.KeyFile, c.CAFile = "tls.crt", "tls.key", "ca.crt"
		}},
		{"certfile tls.crt\nkeyfile tls.key\ntrust-system-cas", func(c *broker.Config) {
			c.CertFile, c.KeyFile, c.SystemCAs = "tls.crt", "tls.key", true
		}},
		{"trust-system-cas\nsecret tls", func(c *broker.Config) { c.Secret, c.SystemCAs = "tls", true }},
		{"route-table 100\nrule-priority 1000", func(c *broker.Config) { c.RouteTable, c.RulePriority = 100, 1000 }},
		{"dns-propagation dns\ndns-advertisement\ncoredns-service-ip 100.64.0.12", func(c *broker.Config) {
			c.Propagation, c.DNSAdvertisement, c.OwnDNS = mesh.PropagateDNS, true, addr("100.64.0.12")
		}},
		{"dns-propagation kubernetes", func(c *broker.Config) { c.Propagation = mesh.PropagateKubernetes }},
		{"meshdns-service-ip 100.64.16.11", func(c *broker.Config) { c.MeshDNS = addr("100.64.16.11") }},
		{"service-account names\nsecret tls", func(c *broker.Config) {
			c.ServiceAccount, c.Secret = types.NamespacedName{Namespace: "kube-system", Name: "names"}, "tls"
		}},
		{"service-account links/names\ntoken-lifetime 90m\n" +
			"certfile tls.crt\nkeyfile tls.key\ncacertfile ca.crt", func(c *broker.Config) {
			c.ServiceAccount, c.TokenLifetime = types.NamespacedName{Namespace: "links", Name: "names"}, 90*time.Minute
			c.CertFile, c.KeyFile, c.CAFile = "tls.crt", "tls.key", "ca.crt"
		}},
		{"coredns-configure\ndns-propagation dns\nservice-cidr 100.64.0.0/20", func(c *broker.Config) {
			c.ConfigureDNS, c.Propagation, c.ServiceCIDRs = true, mesh.PropagateDNS, prefixes("100.64.0.0/20")
		}},
		{"mode none\ncoredns-configure\ndns-propagation dns\ncoredns-service-ip 100.64.0.12", func(c *broker.Config) {
			c.Mode, c.ConfigureDNS, c.Propagation, c.OwnDNS = mesh.None, true, mesh.PropagateDNS, addr("100.64.0.12")
		}},
		{"coredns-deployment kubelink-coredns\ncoredns-secret dns", func(*broker.Config) {}},
		{"log-level debug\nlog-format json", func(c *broker.Config) {
			c.LogLevel, c.LogFormat = slog.LevelDebug, eventlog.JSON
		}},
		{"force-crd-update", func(c *broker.Config) { c.ForceCRDs = true }},
		{"routers none", func(c *broker.Config) { c.NoRouters = true }},
		{"routers expected", func(*broker.Config) {}},
		{"disable-deploy-crds\nkeep-network", func(c *broker.Config) { c.DeployCRDs, c.KeepNetwork = false, true }},
	} {
		want := defaultConfig()
		c.want(&want)
		got, err := parseStanza("kubelink {\n" + c.input + "\n}")
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v\n got %+v\nwant %+v", c.input, err, got, want)
		}
	}
}

// The mode decides on defaults, wherever the property stands.
func TestModeWireGuard(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("tls.crt", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wireGuard := func(c *broker.Config) {
		c.Mode, c.Secret, c.WireGuardDevice, c.Keepalive = mesh.WireGuard, "wg", link.AutoDevice, 21*time.Second
		c.BrokerPort, c.AdvertisedPort, c.DefaultPort = 8777, 8777, 8777
	}
	for _, c := range []struct {
		input string
		want  func(*broker.Config)
	}{
		{"", func(*broker.Config) {}},
		{"secret-manage-mode self", func(c *broker.Config) { c.SecretManageMode = "self" }},
		{"broker-port 8188\nadvertised-port 51820", func(c *broker.Config) { c.BrokerPort, c.AdvertisedPort = 8188, 51820 }},
		{"wireguard-device userspace\nkeepalive 0\nmtu 1380", func(c *broker.Config) {
			c.WireGuardDevice, c.Keepalive, c.MTU = link.UserspaceDevice, 0, 1380
		}},
		{"wireguard-device kernel\nkeepalive 65535", func(c *broker.Config) {
			c.WireGuardDevice, c.Keepalive = link.KernelDevice, 65535*time.Second
		}},
		{"service-account ns/names\ndns-name gw.example", func(c *broker.Config) {
			c.ServiceAccount, c.DNSName = types.NamespacedName{Namespace: "ns", Name: "names"}, "gw.example"
		}},
		// These had no effect in the former system either.
		{"auto-connect 10.0.0.0/8\ncertfile tls.crt\nkeyfile tls.crt\ncacertfile tls.crt", func(*broker.Config) {}},
	} {
		want := defaultConfig()
		wireGuard(&want)
		c.want(&want)
		for _, input := range []string{"mode wireguard\nsecret wg\n" + c.input, c.input + "\nsecret wg\nmode wireguard"} {
			got, err := parseStanza("kubelink {\n" + input + "\n}")
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%s: %v\n got %+v\nwant %+v", input, err, got, want)
			}
		}
	}
}

func TestRefused(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("tls.crt", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ input, want string }{
		// The stanza itself is line 1.
		{"link-adress 192.168.0.11/24",
			`Testfile:2 - Error during parsing: unknown property "link-adress": did you mean "link-address"?`},
		{"mode none\nmod none", `:3 - Error during parsing: unknown property "mod": did you mean "mode"?`},
		{"xyzzy", `:2 - Error during parsing: unknown property "xyzzy"`},
		{"mode bridge\nmode none", `:3 - Error during parsing: mode is given twice, before at Testfile:2: keep one`},
		{"mode", `:2 - Error during parsing: mode has no value`},
		{"kubeconfig a b c", `:2 - Error during parsing: kubeconfig takes two values at most, but "a b c" are given`},
		{"mode bridge none", `:2 - Error during parsing: mode takes one value, but "bridge none" are given`},
		{"keep-network yes",
			`:2 - Error during parsing: keep-network takes no value, but "yes" is given: its presence switches it on`},
		{"auto-connect yes", `:2 - Error during parsing: auto-connect yes: "yes": not a network, such as 100.64.0.0/20; ` +
			"use a list of networks separated by commas"},
		{"auto-connect 10.0.0.0/8, 10.0.0.0/8", `auto-connect takes one list without blanks, such as 100.64.0.0/16,`},
		{"global-namespaces a b", `global-namespaces takes one list without blanks, such as default,prod, but "a b" are given`},
		{"local-ports", `local-ports has no value: give a list such as udp/53,tcp/53, without blanks`},
		{`node-ip ""`, `node-ip has an empty value: if it is a variable such as {$NODE_IP}, set it in the environment`},
		{"auto-connect 10.0.0.1/8", `"10.0.0.1/8": an address, not a network: did you mean 10.0.0.0/8?`},
		{"auto-connect 0.0.0.0/0", `"0.0.0.0/0": all addresses there are`},
		{"accept-announced maybe", `accept-announced maybe: not one of on, off`},
		{"accept-announced", `accept-announced has no value`},
		{"mode vpn", `mode vpn: not one of bridge, wireguard, none`},
		{"kubeconfig.apiserver-override 10.0.0.1:6443", `not the URL of an API server, such as https://10.250.0.2:6443`},
		{"kubeconfig.apiserver-override http://a", `not the URL of an API server`},
		{"kubeconfig.apiserver-override https://u:p@a", `not the URL of an API server`},
		{"kubeconfig nowhere", `kubeconfig nowhere: stat nowhere: no such file or directory`},
		{"kubeconfig .", `kubeconfig .: this is a directory, not a file`},
		{"namespace Kube_System", `namespace Kube_System: not a name of a namespace or service`},
		{"cluster-name a--b", `cluster-name a--b: "--" separates mesh and cluster`},
		{"cluster-name a_b", `cluster-name a_b: not a name of an object`},
		{"cluster-name kubelink1",
			`:2 - Error during parsing: cluster-name kubelink1 without link-address: both together define the default mesh`},
		{"link-address 192.168.0.0/24", `link-address 192.168.0.0/24: this is the network, not an address in it`},
		{"link-address 192.168.0.11", `link-address 192.168.0.11: expected the address of the cluster with the mask`},
		{"mode bridge\nlink-address 192.168.0.11/24\nservice-cidr 192.168.0.0/16",
			`:3 - Error during parsing: link-address 192.168.0.11/24 overlaps with service-cidr 192.168.0.0/16`},
		{"mesh-domain .", `mesh-domain .: not a domain name`},
		{"mesh-domain a..b", `mesh-domain a..b: not a domain name`},
		{"mesh-domain cluster.local", `:2 - Error during parsing: mesh-domain and cluster-domain are both cluster.local.`},
		{"cluster-domain kubelink", `:2 - Error during parsing: mesh-domain and cluster-domain are both kubelink.`},
		{"cluster-domain kubelink1.kubelink",
			`:2 - Error during parsing: cluster-domain kubelink1.kubelink. lies in mesh-domain kubelink.`},
		{"mesh-domain local", `:2 - Error during parsing: cluster-domain cluster.local. lies in mesh-domain local.`},
		{"service-cidr 100.64.0.0/10\npod-cidr 100.96.0.0/11",
			`:2 - Error during parsing: service-cidr 100.64.0.0/10 contains pod-cidr 100.96.0.0/11: `},
		{"service-cidr 0.0.0.0/0", `service-cidr 0.0.0.0/0: all addresses there are, not a network`},
		{"pod-cidr 100.96.0.1/11", `pod-cidr 100.96.0.1/11: an address, not a network: did you mean 100.96.0.0/11?`},
		{"node-cidr 10.250.0.0", `node-cidr 10.250.0.0: not a network`},
		{"service-cidr ::ffff:100.64.0.0/116", `write an IPv4 network in its own form`},
		{"diagnosis-port 65536", `diagnosis-port 65536: `},
		{"node-ip node7", `node-ip node7: not an IP address`},
		{"dns-service-ip 0.0.0.0", `dns-service-ip 0.0.0.0: not an IP address`},
		{"broker-port 0", `broker-port 0: not a port: a number from 1 to 65535`},
		{"advertised-port 65536", `advertised-port 65536: not a port`},
		{"ifce-name averyverylongname", `ifce-name averyverylongname: not a name of a network interface`},
		{"ifce-name a/b", `not a name of a network interface`},
		{"served-links all,a", `served-links all,a: "all": all stands alone; use all, or a list of links (kubelink2), meshes`},
		{"served-links a,,b", `served-links a,,b: "": not a name of an object`},
		{"served-links default,<m>", `served-links default,<m>: "<m>": only the default mesh is written in angle brackets`},
		{"served-links 192.168.0.11/24", `"192.168.0.11/24": an address, not a network: did you mean 192.168.0.0/24?`},
		{"served-links a,10.0.0/8", `served-links a,10.0.0/8: "10.0.0/8": not a network`},
		{"dns-name a_b", `dns-name a_b: neither a DNS name nor an IP address`},
		{"global-namespaces prod,", `global-namespaces prod,: "": not a name of a namespace or service`},
		{"global-namespaces prod default", `global-namespaces`},
		{"local-ports 53", `local-ports 53: "53": not tcp/PORT or udp/PORT; use a list such as udp/53,tcp/53`},
		{"local-ports tcp/53,sctp/9", `"sctp/9": not tcp/PORT or udp/PORT`},
		{"local-ports tcp/", `"tcp/": not a port: a number from 1 to 65535`},
		{"local-ports tcp/0", `"tcp/0": not a port`},
		{"local-ports udp/1-9", `"udp/1-9": not a port`},
		{"local-ports tcp/53,", `"": not tcp/PORT or udp/PORT`},
		{"mode none\nlocal-ports tcp/53", `:3 - Error during parsing: local-ports in mode none`},
		{"secret tls\ncertfile tls.crt", `:3 - Error during parsing: certfile together with secret tls`},
		{"certfile tls.crt", `:2 - Error during parsing: certfile without keyfile, cacertfile`},
		{"certfile tls.crt\ntrust-system-cas", `:2 - Error during parsing: certfile without keyfile: the`},
		{"trust-system-cas", `:2 - Error during parsing: trust-system-cas without certificate`},
		{"certfile tls.crt\nkeyfile tls.crt\ncacertfile tls.crt\ntrust-system-cas",
			`:5 - Error during parsing: trust-system-cas together with cacertfile`},
		{"secret tls\ntrust-system-cas\nauto-connect", `:3 - Error during parsing: trust-system-cas with auto-connect`},
		{"secret tls\ndns-name a.example\nsecret-manage-mode self\ntrust-system-cas",
			`:5 - Error during parsing: trust-system-cas with secret-manage-mode self`},
		{"secret-manage-mode self", `secret-manage-mode self needs secret`},
		{"secret-manage-mode cert\nsecret tls", `secret-manage-mode cert needs dns-name`},
		{"secret-manage-mode acme", `secret-manage-mode acme: not one of none, self, cert`},
		{"offload maybe", `offload maybe: not one of on, off`},
		{"state-names maybe", `state-names maybe: not one of on, off`},
		{"serve-stale 1", `serve-stale 1: not a duration from 1s to 72h0m0s, such as 30m`},
		{"serve-stale 96h", `serve-stale 96h: not a duration from 1s to 72h0m0s, such as 30m`},
		{"state-dir tls.crt", `state-dir tls.crt: this is a file, not a directory`},
		{"streams 17", `streams 17: not a number from 1 to 16`},
		{"route-table 0", `route-table 0: not a number from 1 to 2147483647`},
		{"route-table 255", `table 255 (local) is the kernel's own`},
		{"rule-priority 32766", `rule-priority 32766: not a number from 1 to 32765`},
		{"mode none\nsecret tls\nauto-connect", `:4 - Error during parsing: auto-connect in mode none`},
		{"mode none\ndns-advertisement", `:3 - Error during parsing: dns-advertisement in mode none`},
		{"auto-connect", `auto-connect without certificate`},
		{"mode none\nsecret tls\nservice-account names", `:4 - Error during parsing: service-account in mode none`},
		{"service-account names",
			`:2 - Error during parsing: service-account without certificate: its token would be readable on the way`},
		{"service-account a/b/c", `service-account a/b/c: not a name of an object`},
		{"service-account /c", `service-account /c: namespace "": not a name of a namespace`},
		{"service-account Names", `service-account Names: not a name of an object`},
		{"omit-lease\nlease-duration 15s", `:3 - Error during parsing: lease-duration together with omit-lease`},
		{"omit-lease yes", `omit-lease takes no value`},
		{"lease-name A_b", `lease-name A_b: `},
		{"lease-duration 900ms", `lease-duration 900ms: not a duration from 1s to 1h0m0s`},
		{"lease-duration 2500ms", `lease-duration 2500ms: not a number of whole seconds`},
		{"lease-duration 2h", `lease-duration 2h: not a duration from 1s to 1h0m0s`},
		{"lease-renew-deadline 15s",
			`:2 - Error during parsing: lease-renew-deadline 15s is not shorter than lease-duration 15s`},
		{"lease-duration 3s\nlease-renew-deadline 4s",
			`:3 - Error during parsing: lease-renew-deadline 4s is not shorter than lease-duration 3s`},
		{"lease-retry-period 6s",
			`:2 - Error during parsing: lease-retry-period 6s is longer than half of lease-renew-deadline 10s`},
		{"token-lifetime 1h", `:2 - Error during parsing: token-lifetime without service-account`},
		{"token-lifetime 5m", `token-lifetime 5m: the API server issues tokens for 10m and more`},
		{"token-lifetime 2000000h", `token-lifetime 2000000h: the API server issues tokens for 10m and more, up to 2^32 s`},
		{"token-lifetime day", `token-lifetime day: not a duration, such as 24h`},
		{"coredns-configure\nservice-cidr 100.64.0.0/20",
			`:2 - Error during parsing: coredns-configure without dns-propagation`},
		{"dns-propagation dns\ncoredns-configure",
			`:3 - Error during parsing: coredns-configure needs coredns-service-ip, or service-cidr`},
		{"dns-propagation dns\ncoredns-configure\nservice-cidr 100.64.0.0/30",
			`:3 - Error during parsing: coredns-configure needs coredns-service-ip, or service-cidr`},
		{"log-level loud", `:2 - Error during parsing: log-level loud: not one of debug, info, warn, error`},
		{"log-format xml", `:2 - Error during parsing: log-format xml: not one of json, text`},
		{"mode wireguard", `:2 - Error during parsing: mode wireguard needs secret: the name of the secret with the private`},
		{"mode wireguard\nsecret wg\nsecret-manage-mode cert",
			`:4 - Error during parsing: secret-manage-mode cert in mode wireguard: a certificate service makes no`},
		{"mode wireguard\nsecret wg\nstreams 2",
			`:4 - Error during parsing: streams in mode wireguard: it is about the connections of mode bridge; remove it`},
		{"mode wireguard\nsecret wg\noffload on", `:4 - Error during parsing: offload in mode wireguard`},
		{"mode wireguard\nsecret wg\ntrust-system-cas", `:4 - Error during parsing: trust-system-cas in mode wireguard`},
		{"mode wireguard\nsecret wg\nwireguard-device tun",
			`wireguard-device tun: not one of auto, kernel, userspace`},
		{"wireguard-device auto",
			`:2 - Error during parsing: wireguard-device in mode bridge: it is about WireGuard; use mode wireguard or`},
		{"mode none\nkeepalive 21", `:3 - Error during parsing: keepalive in mode none: it is about WireGuard`},
		{"mode wireguard\nsecret wg\nkeepalive 25s", `keepalive 25s: not a number from 0 to 65535`},
		{"mtu 1279", `mtu 1279: not a number from 1280 to 65535`},
		{"mode none\nmtu 1400", `:3 - Error during parsing: mtu in mode none: there are no connections`},
		{"dns-propagation all", `dns-propagation all: not one of none, dns, kubernetes`},
		{"ipip shared", `ipip shared: IPIP is a matter of kubelink-router (flag --ipip): use none or vxlan`},
		{"ipip gre", `ipip gre: use none or vxlan, or remove the property`},
		{"ipip vxlan", `:2 - Error during parsing: ipip vxlan needs node-cidr`},
		{"node-cidr 10.250.0.0/16\nipip vxlan\nmode none", `:3 - Error during parsing: ipip vxlan with mode none`},
		{"vxlan-port 9000", `:2 - Error during parsing: vxlan-port without ipip vxlan`},
		{"vxlan-vni 16777216", `vxlan-vni 16777216: not a number from 1 to 16777215`},
		{"vxlan-port 65535", `vxlan-port 65535: not a number from 1024 to 65534`},
		{"meshdns-service-ip everywhere", `meshdns-service-ip everywhere: not an IP address`},
	} {
		_, err := parseStanza("kubelink {\n" + c.input + "\n}")
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "Testfile:") {
			t.Errorf("%q:\n got %v\nwant %s", c.input, err, c.want)
		}
	}
	for _, c := range []struct{ input, want string }{
		{"kubelink example.org",
			`Testfile:1 - Error during parsing: kubelink takes no arguments, but "example.org" is given`},
		{"kubelink\nkubelink",
			`Testfile:2 - Error during parsing: kubelink: this plugin can only be used once per Server Block`},
		{"kubelink {\nmode {\n}\n}", `Testfile:2 - Error during parsing: mode has no value`},
	} {
		if _, err := parseStanza(c.input); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q:\n got %v\nwant %s", c.input, err, c.want)
		}
	}
}

// TestEveryPropertyIsDocumented compares the README with the parser.
func TestEveryPropertyIsDocumented(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for p := range properties {
		if !strings.Contains(string(readme), "`"+p+"`") && !strings.Contains(string(readme), "`"+p+" ") {
			t.Errorf("README.md does not explain %s", p)
		}
	}
}

func FuzzStanza(f *testing.F) {
	for p := range properties {
		f.Add(p + " 192.168.0.11/24")
	}
	f.Add("mode none\nserved-links a,b\nlink-address 192.168.0.11/24\ncluster-name x")
	f.Fuzz(func(t *testing.T, body string) {
		cfg, err := parseStanza("kubelink {\n" + body + "\n}")
		if err == nil && cfg.Validate() != nil {
			t.Errorf("%q is accepted, though invalid", body)
		}
	})
}
