package mesh

import (
	"net/netip"
	"slices"
	"testing"
)

// A ClusterZone is another one when any of its fields is.
func TestClusterZoneEqual(t *testing.T) {
	make := func() ClusterZone {
		return ClusterZone{
			Name: "two.kubelink.", Link: "two", Addresses: ips("192.168.0.12"), Services: pfxs("100.64.16.0/20"),
			Upstream: netip.MustParseAddrPort("100.64.16.10:53"), ClusterDomain: "cluster.local.",
			API: API{Server: "https://100.64.16.1", Secret: "two", Use: true},
		}
	}
	if !make().Equal(make()) {
		t.Error("equal zones are not")
	}
	for field, change := range map[string]func(*ClusterZone){
		"Name":          func(c *ClusterZone) { c.Name = "three.kubelink." },
		"Link":          func(c *ClusterZone) { c.Link = "" },
		"Addresses":     func(c *ClusterZone) { c.Addresses = slices.Concat(c.Addresses, ips("fd00::2")) },
		"Services":      func(c *ClusterZone) { c.Services = nil },
		"Upstream":      func(c *ClusterZone) { c.Upstream = netip.AddrPort{} },
		"ClusterDomain": func(c *ClusterZone) { c.ClusterDomain = "k8s.example." },
		"API":           func(c *ClusterZone) { c.API.Namespace = "other" },
		"API.Server":    func(c *ClusterZone) { c.API.Server = "" },
		"API.Secret":    func(c *ClusterZone) { c.API.Secret = "three" },
		"API.Use":       func(c *ClusterZone) { c.API.Use = false },
	} {
		other := make()
		change(&other)
		if make().Equal(other) || other.Equal(make()) {
			t.Errorf("zones that differ in %s are equal", field)
		}
	}
}
