package mesh

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

func TestNetworks(t *testing.T) {
	for _, c := range []struct {
		spec v1alpha1.KubeLinkSpec
		want string
	}{
		{v1alpha1.KubeLinkSpec{ClusterAddress: "192.168.0.12/24", CIDR: "100.64.16.0/20", Endpoint: "k2",
			Egress: []v1alpha1.EgressCIDR{"10.1.2.3", "10.2.3.4/16"}},
			"[192.168.0.0/24 100.64.16.0/20 10.1.2.3/32 10.2.0.0/16]"},
		{v1alpha1.KubeLinkSpec{ClusterAddress: "192.168.0.11/24", CIDR: "100.64.0.0/20", Endpoint: "LocalLink"},
			"[192.168.0.0/24]"},
		{v1alpha1.KubeLinkSpec{ClusterAddress: "fd00:99::2/64", Endpoint: "k2", CIDR: "fd00:16::/64"},
			"[fd00:99::/64 fd00:16::/64]"},
		{v1alpha1.KubeLinkSpec{ClusterAddress: "192.168.0.12", CIDR: "100.64.16.1/20", Endpoint: "k2",
			Egress: []v1alpha1.EgressCIDR{"x", "127.0.0.0/8", "10.9.0.0/16"}}, "[10.9.0.0/16]"},
	} {
		if got := fmt.Sprint(Networks(&c.spec)); got != c.want {
			t.Errorf("%+v: %s, want %s", c.spec, got, c.want)
		}
	}
}

func TestCheckRoute(t *testing.T) {
	h := &Host{
		Networks: []HostNetwork{{netip.MustParsePrefix("10.250.0.0/16"), "eth0"}},
		Needs:    []HostAddress{{netip.MustParseAddr("10.9.0.1"), "the API server"}},
		Routes:   []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("10.250.0.0/16")},
	}
	for network, want := range map[string]string{
		"100.64.16.0/20": "",
		"10.0.0.0/8": "network 10.0.0.0/8 covers what this node reaches outside of the mesh: the API server 10.9.0.1; " +
			"name only networks that belong to the other cluster",
		"10.250.7.0/24": "network 10.250.7.0/24 covers what this node reaches outside of the mesh: " +
			"the network 10.250.0.0/16 of eth0; choose another network, " +
			"or set node-cidr in the Corefile to the part that this cluster uses",
	} {
		got := ""
		if p := h.CheckRoute(netip.MustParsePrefix(network)); p != nil {
			got = p.Message
		}
		if got != want {
			t.Errorf("%s: %q", network, got)
		}
	}
}
