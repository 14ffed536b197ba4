package mesh

import (
	"net/netip"
	"slices"
	"testing"
)

func TestModeCarriesTraffic(t *testing.T) {
	for mode, want := range map[Mode]bool{Bridge: true, WireGuard: true, None: false, "": false, "Bridge": false} {
		checkEqual(t, "mode "+string(mode), mode.CarriesTraffic(), want)
	}
}

func TestDNSAddress(t *testing.T) {
	for _, c := range []struct {
		name     string
		own      netip.Addr
		services Prefixes
		want     netip.Addr
	}{
		{"eleventh address", netip.Addr{}, pfxs("100.64.0.0/20"), ip("100.64.0.11")},
		{"IPv6", netip.Addr{}, pfxs("fd01::/112"), ip("fd01::b")},
		{"of the first network", netip.Addr{}, Prefixes{pfx("fd01::/112"), pfx("100.64.0.0/20")}, ip("fd01::b")},
		{"too small", netip.Addr{}, pfxs("100.64.0.0/29"), netip.Addr{}},
		{"unknown", netip.Addr{}, nil, netip.Addr{}},
		{"configured", ip("100.64.0.12"), pfxs("100.64.0.0/20"), ip("100.64.0.12")},
		{"configured, networks unknown", ip("100.64.0.12"), nil, ip("100.64.0.12")},
	} {
		l := Local{OwnDNS: c.own, ServiceCIDRs: pfxs("10.0.0.0/8")} // those of the argument count
		checkEqual(t, c.name, l.DNSAddress(c.services), c.want)
	}
}

func TestMissingServerBlock(t *testing.T) {
	const says = "no server block of the Corefile answers for mesh.example: " +
		"write a block with the key mesh.example and kubelink in it, or add the key to one"
	for _, c := range []struct {
		name        string
		propagation Propagation
		domains     []string
		want        string
	}{
		{"all queries", PropagateDNS, nil, ""},
		{"no block", PropagateDNS, []string{}, says},
		{"the domain", PropagateDNS, []string{"mesh.example."}, ""},
		{"a domain above", PropagateKubernetes, []string{"kubelink.", "example."}, ""},
		{"a domain below", PropagateKubernetes, []string{"a.mesh.example."}, says},
		{"a part of a label", PropagateDNS, []string{"sh.example."}, says},
		{"no names at all", PropagateNone, []string{}, ""},
	} {
		l := Local{Propagation: c.propagation, Domains: c.domains}
		checkEqual(t, c.name, l.MissingServerBlock("mesh.example."), c.want)
	}
}

func TestCheckDisjoint(t *testing.T) {
	l := Local{
		ServiceCIDRs: Prefixes{pfx("100.64.0.0/20"), pfx("fd01::/112")},
		PodCIDRs:     Prefixes{pfx("fd02::/64"), pfx("10.96.0.0/16")},
		NodeCIDRs:    pfxs("10.250.0.0/16"),
	}
	for _, c := range []struct{ network, property, own string }{
		{"100.64.0.0/20", "service-cidr", "100.64.0.0/20"},
		{"fd01::5/128", "service-cidr", "fd01::/112"},
		{"10.96.7.0/24", "pod-cidr", "10.96.0.0/16"},
		{"fd02::/16", "pod-cidr", "fd02::/64"},
		{"10.250.0.0/17", "node-cidr", "10.250.0.0/16"},
		{"10.0.0.0/8", "pod-cidr", "10.96.0.0/16"}, // the first one is told
		{"0.0.0.0/0", "service-cidr", "100.64.0.0/20"},
		{"100.64.16.0/20", "", ""},
		{"fd03::/64", "", ""},
	} {
		want := ""
		if c.property != "" {
			want = "spec.cidr " + c.network + " overlaps with the local " + c.property + " " + c.own + ": they must be disjoint"
		}
		checkEqual(t, c.network, problemText(l.checkDisjoint("spec.cidr", pfx(c.network)), "Invalid"), want)
	}
	all := slices.Concat(l.ServiceCIDRs, l.PodCIDRs, l.NodeCIDRs)
	checkEqual(t, "networks", l.networks(), []netip.Prefix(all))
	if p := new(Local).checkDisjoint("spec.cidr", pfx("0.0.0.0/0")); p != nil {
		t.Errorf("nothing is known of the local cluster, but there is %+v", p)
	}
}
