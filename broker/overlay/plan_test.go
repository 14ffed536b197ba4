package overlay

import (
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/kernel"
)

func addrs(texts ...string) (list []netip.Addr) {
	for _, x := range texts {
		list = append(list, netip.MustParseAddr(x))
	}
	return list
}

// What cannot work is named with the property.
func TestValidate(t *testing.T) {
	good := State{VNI: 1<<24 - 1, Port: 65534, Addresses: addrs("10.250.0.1")}
	if err := good.validate(); err != nil {
		t.Error(err)
	}
	for _, x := range []struct {
		state State
		want  string
	}{
		{State{VNI: 0, Port: 8780, Addresses: good.Addresses}, "vxlan-vni 0: want 1 to 16777215"},
		{State{VNI: 1 << 24, Port: 8780, Addresses: good.Addresses}, "vxlan-vni 16777216: want 1 to 16777215"},
		{State{VNI: 107, Port: 65535, Addresses: good.Addresses}, "vxlan-port 65535: want 1024 to 65534"},
		{State{VNI: 107, Port: 52, Addresses: good.Addresses}, "vxlan-port 52: want 1024 to 65534"},
		{State{VNI: 107, Port: 8780}, "no address of this node"},
	} {
		if err := x.state.validate(); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%v: error %v, want %q", x.state, err, x.want)
		}
	}
}

// The only node of a cluster is no peer of its own: there is no overlay, and no error.
func TestOnlyNode(t *testing.T) {
	s := State{VNI: 107, Port: 8780, Addresses: addrs("10.250.0.1", "fd00:a::1"),
		Peers: []Peer{{Name: "node1", Addresses: addrs("10.250.0.1")}}}
	if err := (&Overlay{}).Set(s); err != nil {
		t.Error(err)
	}
	s.Peers = append(s.Peers, Peer{Name: "node2", Addresses: addrs("10.250.0.2")})
	if others := s.otherPeers(); len(others) != 1 || others[0].Name != "node2" || len(s.Peers) != 2 {
		t.Errorf("others %v of %v", others, s.Peers)
	}
}

func TestNextHop(t *testing.T) {
	v4, v6, dual := addrs("10.250.0.1"), addrs("fd00:a::1"), addrs("10.250.0.2", "fd00:a::2")
	for _, x := range []struct {
		own, peer []netip.Addr
		family    int
		want      string
	}{
		{v4, dual, unix.AF_INET, "10.250.0.2"},
		{v4, dual, unix.AF_INET6, "invalid IP"},
		{dual, v4, unix.AF_INET6, "invalid IP"},
		{v4, v6, unix.AF_INET, "invalid IP"},
		{dual, dual, unix.AF_INET6, "fe80::26b:afa:2"}, // by the MAC address of the IPv4 address
		{v6, addrs("fd00:a::1"), unix.AF_INET6, "fe80::26b:963f:37d4"},
	} {
		if got := NextHop(x.own, x.peer, x.family).String(); got != x.want {
			t.Errorf("from %v to %v, IPv%d: %s, want %s", x.own, x.peer, kernel.IPVersion(x.family), got, x.want)
		}
	}
}

// An end has the same MAC address for all, and it is no other's.
func TestMakeMAC(t *testing.T) {
	for address, want := range map[string]string{
		"10.250.0.1": "02:6b:0a:fa:00:01", "fd00:a::1": "02:6b:96:3f:37:d4", "fd00:a::2": "02:6b:74:8b:51:cd",
	} {
		if got := makeMAC(netip.MustParseAddr(address)).String(); got != want {
			t.Errorf("%s: %s, want %s", address, got, want)
		}
	}
}
