package zone

import (
	"net/netip"
	"testing"
)

func TestMatch(t *testing.T) {
	table := New(nil, zones(netip.MustParseAddrPort("127.0.0.1:1")), up, options)
	defer table.Close()
	for _, c := range []struct{ name, zone, link string }{
		{"kubelink.", "kubelink.", ""},
		{"x.kubelink.", "kubelink.", ""},
		{"kubelink2.kubelink.", "kubelink2.kubelink.", "kubelink2"},
		{"x.y.kubelink2.kubelink.", "kubelink2.kubelink.", "kubelink2"},
		{"xkubelink2.kubelink.", "kubelink.", ""},
		{`x\.kubelink2.kubelink.`, "kubelink.", ""},
		{"deep.kubelink.", "kubelink.", ""},
		{"b.deep.kubelink.", "kubelink.", ""},
		{"x.a.deep.kubelink.", "a.deep.kubelink.", "a.deep"},
		{"x.other.kubelink.", "other.kubelink.", ""},
		{"x.c.other.kubelink.", "c.other.kubelink.", "other--c"},
		{"x.ns.dns.kubelink.", "kubelink.", ""},
		{"mykubelink.", "", ""},
		{"example.com.", "", ""},
		{".", "", ""},
	} {
		m, ok := table.Match(c.name)
		if ok != (c.zone != "") || ok && (m.Zone() != c.zone || m.Link() != c.link) {
			t.Errorf("%s: %v %+v", c.name, ok, m)
		}
	}
}
