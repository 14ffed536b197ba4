package mesh

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

func TestClusterDomain(t *testing.T) {
	s := &State{Meshes: []Mesh{{Domain: "kubelink."}, {Domain: ""}, {Domain: "m2.example."}}}
	for _, c := range []struct{ in, want, says string }{
		{"cluster.local", "cluster.local.", ""},
		{"Cluster.Local.", "cluster.local.", ""},
		{"notkubelink", "notkubelink.", ""},
		{"example", "example.", ""}, // a mesh domain in the cluster's domain: names get shorter with each turn
		{"", "", "1 to 253 characters"},
		{".", "", "1 to 253 characters"},
		{"a..b", "", "label"},
		{"a b", "", "not a letter"},
		{strings.Repeat("a.", 200), "", "1 to 253 characters"},
		{"kubelink", "", "mesh domain kubelink"},
		{"a.KUBELINK.", "", "mesh domain kubelink"},
		{"x.m2.example", "", "mesh domain m2.example"},
	} {
		got, err := s.ClusterDomain(c.in)
		if got != c.want || (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q: %q, %v", c.in, got, err)
		}
	}
}

func TestRouted(t *testing.T) {
	spec := &v1alpha1.KubeLinkSpec{
		ClusterAddress: "192.168.0.12/24", CIDR: "100.64.16.0/20", Egress: []v1alpha1.EgressCIDR{"10.1.0.0/16", "fd00::/64"},
	}
	for addr, want := range map[string]bool{
		"100.64.16.10": true, "10.1.2.3": true, "fd00::1": true, "192.168.0.12": true,
		"100.64.0.10": false, "192.168.0.13": false, "127.0.0.1": false, "0.0.0.0": false, "::": false, "8.8.8.8": false,
	} {
		err := Routed(spec, ip(addr))
		if (err == nil) != want || err != nil && !strings.Contains(err.Error(), "spec.egress") {
			t.Errorf("%s: %v", addr, err)
		}
	}
	if Routed(&v1alpha1.KubeLinkSpec{ClusterAddress: "192.168.0.12/24"}, netip.Addr{}) == nil {
		t.Error("no address is routed")
	}
}

// The API server allows names of up to 253 characters.
func TestAnnouncedSecretName(t *testing.T) {
	checkEqual(t, "name", AnnouncedSecretName("m--two"), "kubelink-api-m--two")
	longest := strings.Repeat("a", 253-len(AnnouncedSecret))
	checkEqual(t, "longest name", AnnouncedSecretName(longest), AnnouncedSecret+longest)

	a, b := AnnouncedSecretName(longest+"a"), AnnouncedSecretName(longest+"b")
	for _, name := range []string{a, b} {
		if !strings.HasPrefix(name, AnnouncedSecret) || len(name) != len(AnnouncedSecret)+64 {
			t.Errorf("%q is no name with a hash", name)
		}
	}
	if a == b || a != AnnouncedSecretName(longest+"a") {
		t.Errorf("a hash names one link: %s, %s", a, b)
	}
}

// Fields that cannot be parsed route nothing.
func TestRoutedBrokenFields(t *testing.T) {
	for name, spec := range map[string]*v1alpha1.KubeLinkSpec{
		"empty":           {},
		"address":         {ClusterAddress: "10.1.0.0/16"}, // the network, not an address
		"cidr":            {CIDR: "10.1.0.1/16"},
		"egress":          {Egress: []v1alpha1.EgressCIDR{"10.1.0", "x"}},
		"other addresses": {ClusterAddress: "10.1.0.2/16"}, // the mask is that of the mesh
	} {
		checkError(t, name, Routed(spec, ip("10.1.0.1")), "it is not routed to this link; add it to spec.egress")
	}
	spec := &v1alpha1.KubeLinkSpec{ClusterAddress: "x", CIDR: "y", Egress: []v1alpha1.EgressCIDR{"z", "10.1.0.1"}}
	checkError(t, "one good field", Routed(spec, ip("10.1.0.1")), "")
}
