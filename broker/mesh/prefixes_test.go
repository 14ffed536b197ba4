package mesh

import (
	"net/netip"
	"reflect"
	"testing"
)

// checkEqual compares a part of what a test got.
func checkEqual[T any](t *testing.T, what string, got, want T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s:\n got %v\nwant %v", what, got, want)
	}
}

func TestPrefixes(t *testing.T) {
	four, six := pfx("192.168.0.11/24"), pfx("fd00::1/64")
	var none netip.Prefix
	for _, c := range []struct {
		name            string
		p               Prefixes
		first, four, v6 netip.Prefix
		addrs           []netip.Addr
		masked          Prefixes
		text            string
	}{
		{"nil", nil, none, none, none, nil, nil, ""},
		{"empty", Prefixes{}, none, none, none, nil, nil, ""},
		{"IPv4", Prefixes{four}, four, four, none, ips("192.168.0.11"), pfxs("192.168.0.0/24"), "192.168.0.11/24"},
		{"IPv6", Prefixes{six}, six, none, six, ips("fd00::1"), pfxs("fd00::/64"), "fd00::1/64"},
		{
			"IPv4 first", Prefixes{four, six}, four, four, six, []netip.Addr{four.Addr(), six.Addr()},
			Prefixes{pfx("192.168.0.0/24"), pfx("fd00::/64")}, "192.168.0.11/24, fd00::1/64",
		},
		{
			"IPv6 first", Prefixes{six, four}, six, four, six, []netip.Addr{six.Addr(), four.Addr()},
			Prefixes{pfx("fd00::/64"), pfx("192.168.0.0/24")}, "fd00::1/64, 192.168.0.11/24",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			checkEqual(t, "First", c.p.First(), c.first)
			checkEqual(t, "SameFamily of IPv4", c.p.SameFamily(ip("10.0.0.1")), c.four)
			checkEqual(t, "SameFamily of IPv6", c.p.SameFamily(ip("2001:db8::1")), c.v6)
			checkEqual(t, "SameFamily of IPv4 in IPv6", c.p.SameFamily(ip("::ffff:10.0.0.1")), c.v6)
			checkEqual(t, "Addrs", c.p.Addrs(), c.addrs)
			checkEqual(t, "Masked", c.p.Masked(), c.masked)
			checkEqual(t, "String", c.p.String(), c.text)
		})
	}
}

func TestPrefixesContain(t *testing.T) {
	both := Prefixes{pfx("192.168.0.11/24"), pfx("fd00::1/64")}
	for _, c := range []struct {
		addr       string
		both, four bool
	}{
		{"192.168.0.0", true, true},
		{"192.168.0.255", true, true},
		{"192.168.1.0", false, false},
		{"fd00::", true, false},
		{"fd00::ffff:ffff:ffff:ffff", true, false},
		{"fd00:0:0:1::", false, false},
		{"::ffff:192.168.0.11", false, false},
	} {
		checkEqual(t, c.addr+" in both", both.Contains(ip(c.addr)), c.both)
		checkEqual(t, c.addr+" in IPv4", both[:1].Contains(ip(c.addr)), c.four)
		checkEqual(t, c.addr+" in none", Prefixes(nil).Contains(ip(c.addr)), false)
	}
	checkEqual(t, "the zero Addr in both", both.Contains(netip.Addr{}), false)
}
