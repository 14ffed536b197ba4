package kernel

import (
	"net/netip"
	"testing"
)

// What is found is ours, and not what other programs have.
func TestFindLeft(t *testing.T) {
	f := newFake()
	k := newKernel(Config{Device: "kubelink", Table: MainTable}, f, nil)
	if left := k.FindLeft(); left != (Left{Device: true}) {
		t.Errorf("a new device: %+v", left)
	}
	to := netip.MustParsePrefix("100.64.16.0/20")
	f.addresses = []address{
		{3, netip.MustParsePrefix("192.168.0.11/32"), true}, {3, netip.MustParsePrefix("10.0.0.1/24"), false},
	}
	f.routes = []route{
		{Table: MainTable, Destination: to, Index: 3, Protocol: Protocol},
		{Table: MainTable, Destination: to, Index: 4, Protocol: Protocol}, // of the device before
		{Table: MainTable, Destination: to, Index: 2, Protocol: 3},
	}
	f.rules = []rule{{Protocol: Protocol}, {Protocol: RouterProtocol}}
	if left := k.FindLeft(); left != (Left{Device: true, Addresses: 1, Routes: 2, Rules: 1}) {
		t.Errorf("a killed broker: %+v", left)
	}
	f.objects = objects{}
	if left := k.FindLeft(); left != (Left{}) {
		t.Errorf("an empty node: %+v", left)
	}
}
