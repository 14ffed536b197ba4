package mesh

import (
	"net/netip"
	"testing"
)

func TestClaimConflicts(t *testing.T) {
	for _, c := range []struct {
		name           string
		oldField, old  string
		field, network string
		want           bool
	}{
		{"the same service network", fieldCIDR, "100.64.16.0/20", fieldCIDR, "100.64.16.0/20", true},
		{"service network in a service network", fieldCIDR, "100.64.16.0/20", fieldCIDR, "100.64.16.0/24", true},
		{"service network around a service network", fieldCIDR, "100.64.16.0/20", fieldCIDR, "100.64.0.0/16", true},
		{"service networks side by side", fieldCIDR, "100.64.16.0/20", fieldCIDR, "100.64.32.0/20", false},
		{"egress is a service network", fieldCIDR, "100.64.16.0/20", fieldEgress, "100.64.16.0/20", true},
		{"egress in a service network", fieldCIDR, "100.64.16.0/20", fieldEgress, "100.64.17.0/24", true},
		{"egress around a service network", fieldCIDR, "100.64.16.0/20", fieldEgress, "100.64.0.0/16", false},
		{"service network is egress", fieldEgress, "100.64.16.0/20", fieldCIDR, "100.64.16.0/20", true},
		{"service network in egress", fieldEgress, "100.64.0.0/16", fieldCIDR, "100.64.16.0/20", false},
		{"service network around egress", fieldEgress, "100.64.17.0/24", fieldCIDR, "100.64.16.0/20", false},
		{"the same egress", fieldEgress, "10.0.0.0/8", fieldEgress, "10.0.0.0/8", true},
		{"egress in egress", fieldEgress, "10.0.0.0/8", fieldEgress, "10.1.0.0/16", false},
		{"egress around egress", fieldEgress, "10.1.0.0/16", fieldEgress, "10.0.0.0/8", false},
		{"egress is an address", fieldAddress, "192.168.0.12/32", fieldEgress, "192.168.0.12/32", true},
		{"egress around an address", fieldAddress, "192.168.0.12/32", fieldEgress, "192.168.0.0/28", false},
		{"IPv6", fieldCIDR, "fd02::/112", fieldEgress, "fd02::a/128", true},
		{"other family", fieldCIDR, "100.64.16.0/20", fieldCIDR, "::/0", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			old, young := claim{pfx(c.old), "k2", c.oldField}, claim{pfx(c.network), "k3", c.field}
			if got := young.conflictsWith(&old); got != c.want {
				t.Errorf("conflict: %v", got)
			}
			p := claimList{{pfx("10.9.0.0/16"), "k1", fieldEgress}, old}.checkFree(young)
			want := ""
			if c.want {
				want = c.field + " " + c.network + " is already routed to the older link k2 (" + c.old +
					"): a network belongs to one link, take it out of one of both"
			}
			checkEqual(t, "problem", problemText(p, "Invalid"), want)
		})
	}
}

// The oldest claim is the one that is told, and the one that an address is found in; the longest one is where packets
// go.
func TestClaimList(t *testing.T) {
	list := claimList{
		{pfx("10.0.0.0/8"), "k2", fieldEgress}, {pfx("10.1.0.0/16"), "k3", fieldEgress},
		{pfx("10.1.1.0/24"), "k4", fieldCIDR}, {pfx("fd00::/64"), "k5", fieldEgress},
	}
	for _, c := range []struct {
		addr, owner string
		bits        int
	}{
		{"10.2.0.1", "k2", 8}, {"10.1.2.1", "k2", 16}, {"10.1.1.1", "k2", 24}, {"fd00::1", "k5", 64},
		{"11.0.0.1", "", -1}, {"fd01::1", "", -1}, {"::ffff:10.1.1.1", "", -1},
	} {
		got, ok := list.findAddress(ip(c.addr))
		if got.owner != c.owner || ok != (c.owner != "") {
			t.Errorf("%s: found %v, %v", c.addr, got, ok)
		}
		checkEqual(t, c.addr+" longest match", list.longestMatch(ip(c.addr)), c.bits)
	}
	checkEqual(t, "longest match of the zero Addr", list.longestMatch(netip.Addr{}), -1)
	if c, ok := claimList(nil).findAddress(ip("10.1.1.1")); ok {
		t.Errorf("an empty list has %v", c)
	}
	same := pfx("10.1.0.0/16")
	p := append(list[:3:3], claim{same, "k6", fieldCIDR}).checkFree(claim{same, "k7", fieldEgress})
	checkEqual(t, "problem", problemText(p, "Invalid"),
		"spec.egress 10.1.0.0/16 is already routed to the older link k3 (10.1.0.0/16): a network belongs to one link, "+
			"take it out of one of both")
}
