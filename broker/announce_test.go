package broker

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/mandelsoft/kubelink/broker/announce"
	"github.com/mandelsoft/kubelink/broker/bridge"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// What is announced at its largest fits into a hello.
func TestAnnouncementFits(t *testing.T) {
	for _, over := range []int{0, 300} {
		_, err := bridge.Open(bridge.Config{
			Interface: "a/b", // no such can be opened
			Settings: link.Settings{
				DNS: &link.DNSInfo{ClusterDomain: strings.Repeat("d", 253), Address: netip.IPv6Unspecified()},
				API: &link.APIInfo{Token: strings.Repeat("t", announce.MaxToken), CACert: make([]byte, announce.MaxCA+over)},
			},
		})
		if large := strings.Contains(fmt.Sprint(err), "announced facts take"); err == nil || large != (over > 0) {
			t.Errorf("%d bytes more: %v", over, err)
		}
	}
}

func TestAdvertisedDNS(t *testing.T) {
	service := mesh.Prefixes{netip.MustParsePrefix("100.64.0.0/20")}
	on := NamesConfig{DNSAdvertisement: true}
	for _, c := range []struct {
		name    string
		cfg     Config
		service mesh.Prefixes // of the LocalLink
		want    string
		says    string
	}{
		{"off", Config{Local: mesh.Local{ServiceCIDRs: service}}, nil, "", ""},
		{"default", Config{NamesConfig: on, Local: mesh.Local{ServiceCIDRs: service}}, service, "100.64.0.10", ""},
		{"by address", Config{
			NamesConfig: on, Local: mesh.Local{ServiceCIDRs: service, ClusterDNS: netip.MustParseAddr("100.64.0.53")},
		}, service, "100.64.0.53", ""},
		{"by the LocalLink", Config{NamesConfig: on}, service, "100.64.0.10", ""},
		{"unknown", Config{NamesConfig: on}, nil, "", "dns-service-ip"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.cfg.ClusterDomain = "cluster.local."
			r := &reconciler{cfg: c.cfg}
			dns, _, err := r.newAnnouncement(&mesh.State{Meshes: []mesh.Mesh{{Services: c.service}}})
			if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Error(err)
			}
			wrong := dns != nil && (dns.Address.String() != c.want || dns.ClusterDomain != "cluster.local")
			if (dns == nil) != (c.want == "") || wrong {
				t.Errorf("%+v", dns)
			}
		})
	}
}
