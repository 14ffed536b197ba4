package announce

import (
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// What a peer without link announces is not trusted, however right its certificate is.
func TestUnknownPeers(t *testing.T) {
	newLink := func(name, address, endpoint, cidr string) v1alpha1.KubeLink {
		l := v1alpha1.KubeLink{}
		l.Name = name
		l.Spec = v1alpha1.KubeLinkSpec{ClusterAddress: address, Endpoint: endpoint, CIDR: cidr}
		return l
	}
	items := []v1alpha1.KubeLink{
		newLink("local", "192.168.0.11/24", "LocalLink", ""),
		newLink("b", "192.168.0.12/24", "b.example:443", "100.64.16.0/20"),
	}
	enabled, local := true, &mesh.Local{
		Mode:         mesh.Bridge,
		ServiceCIDRs: mesh.Prefixes{netip.MustParsePrefix("100.64.0.0/20")},
		DefaultPort:  80,
	}
	state := mesh.Build(mesh.Objects{Links: items}, *local)
	for _, c := range []struct {
		name           string
		address, cidr  string
		port           uint16
		names          []string
		link, endpoint string // of the link that is made
		linkCIDR       string
	}{
		{"welcome", "192.168.0.13/24", "100.64.32.0/20", 80, []string{"c.example"}, "192-168-0-13", "c.example:80", "100.64.32.0/20"},
		{"without services", "192.168.0.13/24", "", 8080, []string{"c.example"}, "192-168-0-13", "c.example:8080", ""},
		{"first name that can be dialled", "192.168.0.13/24", "", 80, []string{"*.example", "c d", "c.example"}, "192-168-0-13", "c.example:80", ""},
		{"public networks are not taken over", "192.168.0.13/24", "16.0.0.0/4", 80, []string{"c.example"}, "192-168-0-13", "c.example:80", ""},
		{"port 0", "192.168.0.13/24", "", 0, []string{"c.example"}, "", "", ""},
		{"no name", "192.168.0.13/24", "", 80, nil, "", "", ""},
		{"wildcard only", "192.168.0.13/24", "", 80, []string{"*.example"}, "", "", ""},
		{"other mesh", "192.168.9.13/24", "", 80, []string{"c.example"}, "", "", ""},
		{"our address", "192.168.0.11/24", "", 80, []string{"c.example"}, "", "", ""},
		{"another's address", "192.168.0.12/24", "", 80, []string{"c.example"}, "", "", ""},
		{"our services", "192.168.0.13/24", "100.64.0.0/20", 80, []string{"c.example"}, "", "", ""},
		{"another's services", "192.168.0.13/24", "100.64.16.0/24", 80, []string{"c.example"}, "", "", ""},
		{"second link for a certificate", "192.168.0.13/24", "", 80, []string{"c.example", "b.example"}, "", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := link.UnknownPeer{Names: c.names}
			p.Address, p.AdvertisedPort = netip.MustParsePrefix(c.address), c.port
			if c.cidr != "" {
				p.ServiceCIDR = netip.MustParsePrefix(c.cidr)
			}
			u := &UnknownPeers{peers: map[string]link.UnknownPeer{c.address: p}}
			made := u.MakeLinks(items, &state, local, enabled, slog.New(slog.DiscardHandler))
			if c.link == "" {
				if len(made) != 0 {
					t.Errorf("made %v", made)
				}
				return
			}
			l := made[c.link]
			if l == nil || l.Spec.Endpoint != c.endpoint || l.Spec.CIDR != c.linkCIDR || l.Spec.ClusterAddress != c.address {
				t.Errorf("made %+v", made)
			}
		})
	}

	// With one certificate there is one link, whatever addresses it comes from, and before the link shows.
	u := &UnknownPeers{peers: map[string]link.UnknownPeer{}}
	come := func(address string) {
		p := link.UnknownPeer{Names: []string{"c.example"}}
		p.Address, p.AdvertisedPort = netip.MustParsePrefix(address), 80
		u.peers = map[string]link.UnknownPeer{address: p}
	}
	for n := range 10 {
		come(fmt.Sprintf("192.168.0.%d/24", 20+n))
		if made := u.MakeLinks(items, &state, local, enabled, slog.New(slog.DiscardHandler)); (len(made) == 1) != (n == 0) {
			t.Errorf("%d: made %v", n, made)
		}
	}
	for i := range u.made {
		u.made[i].until = time.Now().Add(-time.Second)
	}
	if come("192.168.0.40/24"); len(u.MakeLinks(items, &state, local, enabled, slog.New(slog.DiscardHandler))) != 1 {
		t.Error("a link that was never created counts for ever")
	}
	enabled = false
	if come("192.168.0.41/24"); len(u.MakeLinks(items, &state, local, enabled, slog.New(slog.DiscardHandler))) != 0 {
		t.Error("a link is made without auto-connect")
	}
}
