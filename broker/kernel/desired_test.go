package kernel

// Which objects a State wants, without a kernel.

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

func TestValidateRoutes(t *testing.T) {
	for name, c := range map[string]struct {
		routes, valid []mesh.Route
		errors        []string
	}{
		"none":                   {nil, nil, nil},
		"both families":          {twoMeshes.Routes, twoMeshes.Routes, nil},
		"destination not masked": {routes("10.1.2.3/8 10.9.9.9"), routes("10.0.0.0/8 10.9.9.9"), nil},
		"twice the same":         {routes("10.0.0.0/8 10.9.9.9", "10.1.1.1/8 10.9.9.9"), routes("10.0.0.0/8 10.9.9.9"), nil},
		"two sources, IPv4": {routes("10.0.0.0/8 10.9.9.9", "10.0.0.0/8 10.9.9.8"), routes("10.0.0.0/8 10.9.9.9"),
			[]string{"route 10.0.0.0/8: source 10.9.9.8: another route to it has source 10.9.9.9"}},
		"two sources, IPv6": {routes("fd00::/64 fd00::1", "fd00::/64 fd00::2"), routes("fd00::/64 fd00::1"),
			[]string{"route fd00::/64: source fd00::2: another route to it has source fd00::1"}},
		"families mixed": {routes("fd00::/64 10.9.9.9", "10.0.0.0/8 fd00::1", "10.1.0.0/16 10.9.9.9"),
			routes("10.1.0.0/16 10.9.9.9"),
			[]string{"route fd00::/64: source 10.9.9.9: want an address of the same family",
				"route 10.0.0.0/8: source fd00::1: want an address of the same family"}},
		"no source": {[]mesh.Route{{Destination: netip.MustParsePrefix("fd00::/64")}}, nil,
			[]string{"source invalid IP: want an address of the same family"}},
		"no destination": {[]mesh.Route{{Source: netip.MustParseAddr("fd00::1")}}, nil,
			[]string{"want an address of the same family"}},
	} {
		valid, errs := validateRoutes(c.routes)
		if !slices.Equal(valid, c.valid) {
			t.Errorf("%s: valid %v, want %v", name, valid, c.valid)
		}
		if len(errs) != len(c.errors) {
			t.Errorf("%s: errors %v, want %q", name, errs, c.errors)
			continue
		}
		for i, err := range errs {
			if !strings.Contains(err.Error(), c.errors[i]) {
				t.Errorf("%s: error %v, want %s", name, err, c.errors[i])
			}
		}
	}
}

func TestWantedObjects(t *testing.T) {
	bothFamilies := State{Addresses: addresses("192.168.0.11/24", "fd00:99::1/64"),
		Routes: routes("192.168.0.0/24 192.168.0.11", "fd00:99::/64 fd00:99::1")}
	onlyIPv6 := State{Addresses: bothFamilies.Addresses[1:], Routes: bothFamilies.Routes[1:]}
	v4Rule, v6Rule := rule{unix.AF_INET, 32750, 77, Protocol}, rule{unix.AF_INET6, 32750, 77, Protocol}
	for name, c := range map[string]struct {
		config Config
		state  State
		device link
		want   []string // as ip(8) would be told
		rules  []rule
	}{
		"nothing": {table, State{}, link{3, 1420, false}, []string{"kubelink mtu 1420 up=false"}, nil},
		"both families": {table, bothFamilies, link{3, 1420, false}, []string{
			"kubelink mtu 1500 up=true forwards IPv4 forwards IPv6",
			"192.168.0.11/32 dev kubelink noprefixroute=true",
			"192.168.0.0/24 via 192.0.0.8 dev kubelink proto 107 src 192.168.0.11 onlink table 77",
			"fd00:99::1/128 dev kubelink noprefixroute=true",
			"fd00:99::/64 dev kubelink proto 107 src fd00:99::1 metric 1024 table 77",
		}, []rule{v4Rule, v6Rule}},
		"IPv6 only": {table, onlyIPv6, link{3, 1500, true}, []string{
			"kubelink mtu 1500 up=true forwards IPv6",
			"fd00:99::1/128 dev kubelink noprefixroute=true",
			"fd00:99::/64 dev kubelink proto 107 src fd00:99::1 metric 1024 table 77",
		}, []rule{v6Rule}},
		"main table":              {config, onlyIPv6, link{}, nil, nil},
		"no device":               {table, bothFamilies, link{}, nil, []rule{v4Rule, v6Rule}},
		"addresses without route": {table, State{Addresses: bothFamilies.Addresses}, link{}, nil, nil},
		"MTU left": {Config{Device: "kubelink", Table: MainTable}, State{Addresses: bothFamilies.Addresses[:1]},
			link{3, 1420, false},
			[]string{"kubelink mtu 1420 up=true forwards IPv4", "192.168.0.11/32 dev kubelink noprefixroute=true"}, nil},
	} {
		got := wantedObjects(c.config, c.state, c.device, 0)
		if !slices.Equal(got.rules, c.rules) {
			t.Errorf("%s: rules %v, want %v", name, got.rules, c.rules)
		}
		got.rules = nil
		if text, want := (&fake{objects: got}).String(), sortedLines(c.want); text != want {
			t.Errorf("%s: wants\n%s\nnot\n%s", name, text, want)
		}
	}
}

// sortedLines are the lines of objects in the order of fake.String: the link, then the rest sorted.
func sortedLines(lines []string) string {
	if len(lines) > 1 {
		slices.Sort(lines[1:])
	}
	return strings.Join(lines, "\n")
}

func TestUsesFamily(t *testing.T) {
	for name, c := range map[string]struct {
		state          State
		v4, v6         bool
		route4, route6 bool
	}{
		"empty":             {State{}, false, false, false, false},
		"IPv4 address only": {State{Addresses: addresses("10.0.0.1/8")}, true, false, false, false},
		"IPv6 address only": {State{Addresses: addresses("fd00::1/64")}, false, true, false, false},
		"IPv6 route only":   {State{Routes: routes("fd00::/64 fd00::1")}, false, true, false, true},
		"both":              {twoMeshes, true, true, true, true},
	} {
		s := c.state
		if v4, v6 := s.usesFamily(unix.AF_INET), s.usesFamily(unix.AF_INET6); v4 != c.v4 || v6 != c.v6 {
			t.Errorf("%s: uses IPv4 %t, IPv6 %t, want %t, %t", name, v4, v6, c.v4, c.v6)
		}
		if v4, v6 := s.routesFamily(unix.AF_INET), s.routesFamily(unix.AF_INET6); v4 != c.route4 || v6 != c.route6 {
			t.Errorf("%s: routes IPv4 %t, IPv6 %t, want %t, %t", name, v4, v6, c.route4, c.route6)
		}
	}
}
