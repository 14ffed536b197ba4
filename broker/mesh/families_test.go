package mesh

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Both families at once: a link has the family of its address, and the networks of the family.
func TestTwoFamilies(t *testing.T) {
	local := cluster1()
	local.Addresses, local.ClusterName = Prefixes{pfx("192.168.0.11/24"), pfx("fd00::1/64")}, "one"
	local.ServiceCIDRs = Prefixes{pfx("100.64.0.0/20"), pfx("fd01::/112")}
	o := new(objs).
		add("four", "192.168.0.12/24", "b.example", cidr("100.64.16.0/20")).
		add("six", "fd00::2/64", "c.example", cidr("fd02::/112"), egress("fd03::/64")).
		add("mask", "fd00::3/48", "d.example").
		add("ours", "fd00::1/64", "d.example").
		add("services", "fd00::4/64", "d.example", cidr("fd01::/120")).
		add("mixed", "fd00::5/64", "d.example", egress("10.1.0.0/16"))
	s := o.build(local)
	for name, want := range map[string]string{
		"mask":  "the mask of the default mesh is /64, as its local address fd00::1/64 says; use fd00::3/64",
		"ours":  "is the address of the local cluster",
		"mixed": "spec.egress 10.1.0.0/16 and spec.clusterAddress fd00::5/64 are of different IP families",
	} {
		if got := s.Problems[name].Message; !strings.Contains(got, want) {
			t.Errorf("%s: %s", name, got)
		}
	}
	wantRoutes := []Route{
		{pfx("100.64.16.0/20"), ip("192.168.0.11")}, {pfx("192.168.0.0/24"), ip("192.168.0.11")},
		{pfx("fd00::/64"), ip("fd00::1")}, {pfx("fd02::/112"), ip("fd00::1")}, {pfx("fd03::/64"), ip("fd00::1")},
	}
	if !strings.Contains(s.Notes["services"], "overlaps with the local service network fd01::/112") {
		t.Errorf("notes %q", s.Notes)
	}
	if len(s.Problems) != 3 || !slices.Equal(s.Routes, wantRoutes) {
		t.Errorf("%+v, routes %v", s.Problems, s.Routes)
	}
	wantIngress := []Rule{
		{pfx("100.64.0.0/20"), true, false}, {pfx("192.168.0.11/32"), true, true},
		{pfx("fd00::1/128"), true, true}, {pfx("fd01::/112"), true, false},
	}
	for i, want := range []string{"192.168.0.12/24", "fd00::4/64", "fd00::2/64"} {
		p := s.Peers[i]
		if p.Addresses.String() != want || p.Local.String() != "192.168.0.11/24, fd00::1/64" ||
			p.Services.String() != "100.64.0.0/20, fd01::/112" || !slices.Equal(p.Ingress, wantIngress) {
			t.Errorf("%+v", p)
		}
	}
	z := s.Zones[0]
	if z.Networks.String() != "192.168.0.0/24, fd00::/64" || len(z.Clusters) != 4 {
		t.Fatalf("%+v", z)
	}
	for i, want := range []struct{ name, addresses, upstream string }{
		{"four.kubelink.", "[192.168.0.12]", "100.64.16.10:53"},
		{"one.kubelink.", "[192.168.0.11 fd00::1]", "100.64.0.10:53"},
		{"services.kubelink.", "[fd00::4]", "invalid AddrPort"},
		{"six.kubelink.", "[fd00::2]", "[fd02::a]:53"},
	} {
		c := z.Clusters[i]
		if c.Name != want.name || fmt.Sprint(c.Addresses) != want.addresses || c.Upstream.String() != want.upstream {
			t.Errorf("%+v, want %+v", c, want)
		}
	}
}
