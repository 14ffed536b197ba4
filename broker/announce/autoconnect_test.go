package announce

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
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
	local := &mesh.Local{
		Mode:         mesh.Bridge,
		ServiceCIDRs: mesh.Prefixes{netip.MustParsePrefix("100.64.0.0/20")},
		DefaultPort:  80,
	}
	policy := &Policy{Local: local, AutoConnect: true, Networks: []netip.Prefix{
		netip.MustParsePrefix("100.64.0.0/16"), netip.MustParsePrefix("16.0.0.0/8")}}
	state := mesh.Build(mesh.Objects{Links: items}, *local)
	for _, c := range []struct {
		name           string
		address, cidr  string
		port           uint16
		names          []string
		link, endpoint string // of the link that is made
		linkCIDR       string
	}{
		{"welcome", "192.168.0.13/24", "100.64.32.0/20", 80, []string{"c.example"},
			"192-168-0-13", "c.example:80", "100.64.32.0/20"},
		{"without services", "192.168.0.13/24", "", 8080, []string{"c.example"}, "192-168-0-13", "c.example:8080", ""},
		{"first name that can be dialled", "192.168.0.13/24", "", 80, []string{"*.example", "c d", "c.example"},
			"192-168-0-13", "c.example:80", ""},
		{"around an allowed one", "192.168.0.13/24", "16.0.0.0/4", 80, []string{"c.example"},
			"192-168-0-13", "c.example:80", ""},
		{"another network", "192.168.0.13/24", "10.0.0.0/9", 80, []string{"c.example"},
			"192-168-0-13", "c.example:80", ""},
		{"any that is allowed", "192.168.0.13/24", "16.7.0.0/16", 80, []string{"c.example"},
			"192-168-0-13", "c.example:80", "16.7.0.0/16"},
		{"port 0", "192.168.0.13/24", "", 0, []string{"c.example"}, "", "", ""},
		{"no name", "192.168.0.13/24", "", 80, nil, "", "", ""},
		{"wildcard only", "192.168.0.13/24", "", 80, []string{"*.example"}, "", "", ""},
		{"other mesh", "192.168.9.13/24", "", 80, []string{"c.example"}, "", "", ""},
		{"our address", "192.168.0.11/24", "", 80, []string{"c.example"}, "", "", ""},
		{"another's address", "192.168.0.12/24", "", 80, []string{"c.example"}, "", "", ""},
		{"our services, which are not routed", "192.168.0.13/24", "100.64.0.0/20", 80, []string{"c.example"},
			"192-168-0-13", "c.example:80", "100.64.0.0/20"},
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
			made := u.MakeLinks(mesh.Objects{Links: items}, &state, policy, slog.New(slog.DiscardHandler))
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
			if l != nil && !mesh.IsAutoLink(l) {
				t.Errorf("no mark: %+v", l.ObjectMeta)
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
	objects, silent := mesh.Objects{Links: items}, slog.New(slog.DiscardHandler)
	for n := range 10 {
		come(fmt.Sprintf("192.168.0.%d/24", 20+n))
		if made := u.MakeLinks(objects, &state, policy, silent); (len(made) == 1) != (n == 0) {
			t.Errorf("%d: made %v", n, made)
		}
	}
	for i := range u.made {
		u.made[i].until = time.Now().Add(-time.Second)
	}
	if come("192.168.0.40/24"); len(u.MakeLinks(objects, &state, policy, silent)) != 1 {
		t.Error("a link that was never created counts for ever")
	}
	policy.AutoConnect = false
	if come("192.168.0.41/24"); len(u.MakeLinks(objects, &state, policy, silent)) != 0 {
		t.Error("a link is made without auto-connect")
	}
}

// TestStrangerTakesNoNetwork: without a list of networks, a peer gets a route to its address only.
func TestStrangerTakesNoNetwork(t *testing.T) {
	local := &mesh.Local{Mode: mesh.Bridge, ServiceCIDRs: mesh.Prefixes{netip.MustParsePrefix("100.64.0.0/20")}}
	me := v1alpha1.KubeLink{}
	me.Name = "me"
	me.Spec = v1alpha1.KubeLinkSpec{ClusterAddress: "192.168.0.11/24", Endpoint: v1alpha1.EndpointLocal}
	items := []v1alpha1.KubeLink{me}
	s := mesh.Build(mesh.Objects{Links: items}, *local)
	for _, cidr := range []string{"10.0.0.0/8", "10.0.0.0/9", "10.251.0.0/16", "172.16.0.0/12", "192.168.1.0/24",
		"192.168.128.0/17", "100.64.16.0/20", "100.64.0.0/20", "100.68.0.0/14", "fc00::/8", "2000::/3"} {
		p := link.UnknownPeer{Names: []string{"evil.example"}}
		p.Address, p.AdvertisedPort = netip.MustParsePrefix("192.168.0.66/24"), 80
		p.ServiceCIDR = netip.MustParsePrefix(cidr)
		u := &UnknownPeers{peers: map[string]link.UnknownPeer{"x": p}}
		policy := &Policy{Local: local, AutoConnect: true}
		made := u.MakeLinks(mesh.Objects{Links: items}, &s, policy, slog.New(slog.DiscardHandler))
		if len(made) != 1 || made["192-168-0-66"] == nil {
			t.Errorf("%s: made %v", cidr, made)
			continue
		}
		after := mesh.Build(mesh.Objects{Links: append(items, *made["192-168-0-66"])}, *local)
		if len(after.Routes) != 1 || after.Routes[0].Destination != netip.MustParsePrefix("192.168.0.0/24") ||
			len(after.Peers[0].Networks) != 1 {
			t.Errorf("%s: routes %v, networks %v", cidr, after.Routes, after.Peers[0].Networks)
		}
	}
}

// A peer that announces a network of the node gets no link, whatever the stanza allows.
func TestStrangerTakesNothingFromTheNode(t *testing.T) {
	local := &mesh.Local{Mode: mesh.Bridge}
	me := v1alpha1.KubeLink{}
	me.Name = "me"
	me.Spec = v1alpha1.KubeLinkSpec{ClusterAddress: "192.168.0.11/24", Endpoint: v1alpha1.EndpointLocal}
	objects := mesh.Objects{Links: []v1alpha1.KubeLink{me}, Host: mesh.Host{
		Networks: []mesh.HostNetwork{{Prefix: netip.MustParsePrefix("10.250.0.0/16"), Device: "eth0"}},
		Needs:    []mesh.HostAddress{{Addr: netip.MustParseAddr("10.9.0.2"), Title: "the API server"}},
	}}
	s := mesh.Build(objects, *local)
	policy := &Policy{Local: local, AutoConnect: true, Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
	for cidr, want := range map[string]int{"10.250.1.0/24": 0, "10.240.0.0/12": 0, "10.9.0.0/20": 0, "10.10.0.0/20": 1} {
		p := link.UnknownPeer{Names: []string{"evil.example"}}
		p.Address, p.AdvertisedPort = netip.MustParsePrefix("192.168.0.66/24"), 80
		p.ServiceCIDR = netip.MustParsePrefix(cidr)
		u := &UnknownPeers{peers: map[string]link.UnknownPeer{"x": p}}
		if made := u.MakeLinks(objects, &s, policy, slog.New(slog.DiscardHandler)); len(made) != want {
			t.Errorf("%s: made %v", cidr, made)
		}
	}
}

// TestAutoLinkNetwork: a link that was made for a peer takes over the announced network when the stanza allows it.
// Until then its note says what to do. What a user has set stays.
func TestAutoLinkNetwork(t *testing.T) {
	local := &mesh.Local{Mode: mesh.Bridge, ServiceCIDRs: mesh.Prefixes{netip.MustParsePrefix("100.64.0.0/20")}}
	announced := netip.MustParsePrefix("100.64.32.0/20")
	for _, c := range []struct {
		name        string
		networks    string
		ignoreFacts bool
		change      func(l *v1alpha1.KubeLink)
		want, note  string
	}{
		{"no list", "", false, nil, "", "the service network 100.64.32.0/20 that the peer announces is not routed: " +
			"allow it with auto-connect 100.64.32.0/20 in the Corefile, or set spec.cidr"},
		{"another network", "100.64.0.0/19", false, nil, "", "allow it with auto-connect 100.64.32.0/20"},
		{"allowed", "100.64.0.0/16", false, nil, "100.64.32.0/20", ""},
		{"allowed, names and APIs are not", "100.64.32.0/20", true, nil, "100.64.32.0/20", ""},
		{"another's", "100.64.0.0/16", false, func(l *v1alpha1.KubeLink) { l.Name = "d" }, "",
			"is not routed: spec.cidr 100.64.32.0/20 is already routed to the older link user"},
		{"the node's", "100.64.0.0/16", false, nil, "",
			"is not routed: spec.cidr 100.64.32.0/20 covers what the gateway node reaches " +
				"outside of the mesh: the default gateway 100.64.33.1"},
		{"a user's link", "100.64.0.0/16", false, func(l *v1alpha1.KubeLink) { l.Annotations = nil }, "", ""},
		{"a user's network", "100.64.0.0/16", false, func(l *v1alpha1.KubeLink) { l.Spec.CIDR = "100.64.48.0/20" }, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			newLink := func(name, address, endpoint, cidr string) v1alpha1.KubeLink {
				l := v1alpha1.KubeLink{}
				l.Name = name
				l.Spec = v1alpha1.KubeLinkSpec{ClusterAddress: address, Endpoint: endpoint, CIDR: cidr}
				return l
			}
			auto := newLink("auto", "192.168.0.13/24", "c.example:80", "")
			auto.Annotations = map[string]string{v1alpha1.AnnotationAutoConnect: "true"}
			if c.change != nil {
				c.change(&auto)
			}
			items := []v1alpha1.KubeLink{newLink("me", "192.168.0.11/24", v1alpha1.EndpointLocal, ""), auto}
			if c.name == "another's" {
				items = append(items, newLink("user", "192.168.0.14/24", "d.example:80", "100.64.32.0/20"))
			}
			policy := &Policy{Local: local, AutoConnect: true, IgnoreFacts: c.ignoreFacts}
			if c.networks != "" {
				policy.Networks = []netip.Prefix{netip.MustParsePrefix(c.networks)}
			}
			objects := mesh.Objects{Links: items}
			if c.name == "the node's" {
				objects.Host.Needs = []mesh.HostAddress{{Addr: netip.MustParseAddr("100.64.33.1"), Title: "the default gateway"}}
			}
			s := mesh.Build(objects, *local)
			statuses := []link.Status{{Link: auto.Name, Announced: &link.Announcement{ServiceCIDR: announced,
				DNS: &link.DNSInfo{ClusterDomain: "c.local"}}}}
			got := new(Receiver).ReceiveAll(objects, &s, statuses, policy, slog.New(slog.DiscardHandler))[auto.Name]
			if got.Facts.cidr != c.want || !strings.Contains(got.Note, c.note) || c.note == "" && got.Note != "" {
				t.Errorf("%+v", got)
			}
			if (got.Facts.baseDomain == "") != c.ignoreFacts {
				t.Errorf("names: %+v", got)
			}
			fields, _ := got.Facts.adopt(&auto, secretName("n", auto.Name))
			if cidr, _ := fields["cidr"].(string); cidr != c.want {
				t.Errorf("adopts %v", fields)
			}
		})
	}
}

// One certificate takes few of the places, however many addresses it announces, and peers that get no link cause one
// line in the log.
func TestUnknownPeersOfOneCertificate(t *testing.T) {
	item := v1alpha1.KubeLink{}
	item.Name = "local"
	item.Spec = v1alpha1.KubeLinkSpec{ClusterAddress: "10.9.0.1/16", Endpoint: "LocalLink"}
	items := []v1alpha1.KubeLink{item}
	local := &mesh.Local{Mode: mesh.Bridge, DefaultPort: 80,
		ServiceCIDRs: mesh.Prefixes{netip.MustParsePrefix("100.64.0.0/20")}}
	policy := &Policy{Local: local, AutoConnect: true, Networks: []netip.Prefix{
		netip.MustParsePrefix("100.64.0.0/16"), netip.MustParsePrefix("10.9.0.0/16")}}
	state := mesh.Build(mesh.Objects{Links: items}, *local)
	const inMesh = "10.9.16.0/20"
	peer := func(n int, cidr string, names ...string) (p link.UnknownPeer) {
		p.Address = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 9, byte(n >> 8), byte(n)}), 16)
		p.ServiceCIDR, p.AdvertisedPort, p.Names = netip.MustParsePrefix(cidr), 80, names
		return p
	}
	var u UnknownPeers
	for n := range 1000 {
		u.Add(peer(2+n, inMesh, "evil.example", strings.Repeat("x", 250)))
	}
	u.Add(peer(2000, "100.64.16.0/20", "good.example"))
	if n := len(u.peers); n != maxUnknownOfName+1 {
		t.Errorf("%d peers wait", n)
	}
	var log strings.Builder
	made := u.MakeLinks(mesh.Objects{Links: items}, &state, policy, slog.New(slog.NewTextHandler(&log, nil)))
	if len(made) != 1 || made["10-9-7-208"] == nil {
		t.Errorf("made %v", made)
	}
	if text := log.String(); strings.Count(text, "\n") != 1 || len(text) > 1<<10 || !strings.Contains(text, "more=7") {
		t.Errorf("logged %d bytes: %s", len(text), text)
	}
	u.Add(peer(2, inMesh, "evil.example"))
	before := log.Len()
	u.MakeLinks(mesh.Objects{Links: items}, &state, policy, slog.New(slog.NewTextHandler(&log, nil)))
	if log.Len() != before {
		t.Errorf("logged again at once: %s", log.String()[before:])
	}
}
