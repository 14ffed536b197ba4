package broker

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

func TestValidate(t *testing.T) {
	for _, c := range []struct {
		name                             string
		services, pods, nodes, addresses string // separated by spaces
		says                             string // empty: valid
	}{
		{"nothing is set", "", "", "", "", ""},
		{"all is disjoint", "100.64.0.0/20", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.11/24", ""},
		{"both families", "100.64.0.0/20 fd00:1::/112", "10.0.0.0/8 fd00:2::/56", "172.16.0.0/12 fd00:3::/64",
			"192.168.0.11/24 fd00:4::b/64", ""},
		{"pods around services", "10.0.16.0/20", "10.0.0.0/8", "", "", ""},
		{"nodes around services, IPv6", "fd00:1::/112", "", "fd00:1::/64", "", ""},

		{"services around pods", "10.0.0.0/8", "10.1.0.0/16", "", "",
			"service-cidr 10.0.0.0/8 contains pod-cidr 10.1.0.0/16: addresses of services"},
		{"services are pods", "10.0.0.0/16", "10.0.0.0/16", "", "", "service-cidr 10.0.0.0/16 contains pod-cidr 10.0.0.0/16"},
		{"services around nodes", "10.0.0.0/8", "172.16.0.0/12", "10.1.0.0/16", "",
			"service-cidr 10.0.0.0/8 contains node-cidr 10.1.0.0/16"},
		{"services around pods, IPv6", "100.64.0.0/20 fd00::/16", "10.0.0.0/8 fd00:2::/56", "", "",
			"service-cidr fd00::/16 contains pod-cidr fd00:2::/56"},
		{"services around nodes, IPv6", "100.64.0.0/20 fd00::/16", "", "10.0.0.0/8 fd00:3::/64", "",
			"service-cidr fd00::/16 contains node-cidr fd00:3::/64"},

		{"mesh and services", "192.168.0.0/20", "", "", "192.168.0.11/24",
			"link-address 192.168.0.11/24 overlaps with service-cidr 192.168.0.0/20: the mesh network must be disjoint"},
		{"mesh and pods", "", "192.168.0.128/25", "", "192.168.0.11/24",
			"link-address 192.168.0.11/24 overlaps with pod-cidr 192.168.0.128/25"},
		{"mesh and nodes", "", "", "192.168.0.0/24", "192.168.0.11/24",
			"link-address 192.168.0.11/24 overlaps with node-cidr 192.168.0.0/24"},
		{"mesh and services, IPv6", "100.64.0.0/20 fd00:4::/112", "", "", "192.168.0.11/24 fd00:4::b/64",
			"link-address fd00:4::b/64 overlaps with service-cidr fd00:4::/112"},
		{"mesh and pods, IPv6", "", "10.0.0.0/8 fd00:4::/56", "", "192.168.0.11/24 fd00:4::b/64",
			"link-address fd00:4::b/64 overlaps with pod-cidr fd00:4::/56"},
		{"mesh and nodes, IPv6", "", "", "fd00:4::/64", "192.168.0.11/24 fd00:4::b/64",
			"link-address fd00:4::b/64 overlaps with node-cidr fd00:4::/64"},

		{"a network as address", "", "", "", "192.168.0.0/24", "link-address 192.168.0.0/24: this is the network"},
		{"the broadcast address", "", "", "", "192.168.0.255/24", "link-address 192.168.0.255/24: this is the broadcast"},
		{"room for one cluster", "", "", "", "192.168.0.11/32", "link-address 192.168.0.11/32: the mask /32"},
		{"loopback", "", "", "", "127.0.0.1/8", "link-address 127.0.0.1/8: loopback"},
		{"a network as address, IPv6", "", "", "", "192.168.0.11/24 fd00:4::/64", "link-address fd00:4::/64: this is the"},
		{"room for one cluster, IPv6", "", "", "", "fd00:4::b/128", "link-address fd00:4::b/128: the mask /128"},
		{"link-local, IPv6", "", "", "", "fe80::1/64", "link-address fe80::1/64: loopback, link-local"},
	} {
		t.Run(c.name, func(t *testing.T) {
			list := func(s string) mesh.Prefixes { return prefixes(strings.Fields(s)...) }
			cfg := Config{Local: mesh.Local{
				ServiceCIDRs: list(c.services), PodCIDRs: list(c.pods), NodeCIDRs: list(c.nodes), Addresses: list(c.addresses),
			}}
			err := cfg.Validate()
			if (err == nil) != (c.says == "") || err != nil && !strings.HasPrefix(err.Error(), c.says) {
				t.Errorf("%v, want %s", err, c.says)
			}
			if b, newErr := New(cfg); (newErr == nil) != (err == nil) || (b == nil) != (err != nil) {
				t.Errorf("New: %v, %v", b, newErr)
			}
		})
	}
}

func prefixes(all ...string) (p mesh.Prefixes) {
	for _, s := range all {
		p = append(p, netip.MustParsePrefix(s))
	}
	return p
}

const testKubeconfig = `{"apiVersion": "v1", "kind": "Config", "current-context": "one",
"clusters": [{"name": "one", "cluster": {"server": "http://127.0.0.1:1"}},
	{"name": "two", "cluster": {"server": "http://127.0.0.1:2"}}],
"contexts": [{"name": "one", "context": {"cluster": "one"}}, {"name": "two", "context": {"cluster": "two"}}]}`

// writeKubeconfig writes a file with the contexts one and two; nothing listens on their ports.
func writeKubeconfig(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, []byte(testKubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestRestConfig(t *testing.T) {
	good := writeKubeconfig(t)
	bad := filepath.Join(t.TempDir(), "bad")
	if err := os.WriteFile(bad, []byte("no: [yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "") // this is no pod
	for _, c := range []struct {
		name, file, context, server string
		host                        string
		says                        string
	}{
		{"default context", good, "", "", "http://127.0.0.1:1", ""},
		{"context", good, "two", "", "http://127.0.0.1:2", ""},
		{"another server", good, "two", "https://127.0.0.1:3", "https://127.0.0.1:3", ""},
		{"unknown context", good, "three", "", "", "kubeconfig " + good + `: context "three" does not exist`},
		{"no file", good + "x", "", "", "", "kubeconfig " + good + "x: "},
		{"no YAML", bad, "", "", "", "kubeconfig " + bad + ": "},
		{"no pod", "", "", "https://a", "", "no kubeconfig is set, and this is no pod: set kubeconfig FILE"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := Config{APIConfig: APIConfig{Kubeconfig: c.file, Context: c.context, Server: c.server}}
			api, err := cfg.restConfig()
			if (err == nil) != (c.says == "") || err != nil && !strings.HasPrefix(err.Error(), c.says) {
				t.Fatalf("%v, want %s", err, c.says)
			}
			if err == nil && api.Host != c.host {
				t.Errorf("host %s", api.Host)
			}
		})
	}
}

// The addresses of DNS services are those of the first family of the service networks, unless they are configured.
func TestDNSAddresses(t *testing.T) {
	address := netip.MustParseAddr
	for _, c := range []struct {
		name  string
		local mesh.Local
		own   string // empty: unknown
		dns   string
	}{
		{"nothing is known", mesh.Local{}, "", ""},
		{"by the services", mesh.Local{ServiceCIDRs: prefixes("100.64.0.0/20")}, "100.64.0.11", "100.64.0.10"},
		{"IPv6", mesh.Local{ServiceCIDRs: prefixes("fd00:1::/112")}, "fd00:1::b", "fd00:1::a"},
		{"both families", mesh.Local{ServiceCIDRs: prefixes("fd00:1::/112", "100.64.0.0/20")}, "fd00:1::b", "fd00:1::a"},
		{"configured", mesh.Local{
			ServiceCIDRs: prefixes("100.64.0.0/20"), OwnDNS: address("100.64.0.53"), ClusterDNS: address("100.64.0.54"),
		}, "100.64.0.53", "100.64.0.54"},
		{"configured, services are not known", mesh.Local{
			OwnDNS: address("100.64.0.53"), ClusterDNS: address("100.64.0.54"),
		}, "100.64.0.53", "100.64.0.54"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := Config{Local: c.local}
			own := ""
			for _, a := range cfg.nsAddresses() {
				own += a.String()
			}
			dns := ""
			if a := cfg.clusterDNS(); a.IsValid() {
				dns = a.String()
			}
			if own != c.own || dns != c.dns {
				t.Errorf("own %q, of the cluster %q", own, dns)
			}
		})
	}
}
