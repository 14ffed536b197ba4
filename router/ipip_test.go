package router

// The kernel here has no ipip: a fake plays it, which the names of the tests say.

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// fakeIPIP is a kernel with or without tunl0.
type fakeIPIP struct {
	state    *ipipState
	noModule bool
	log      []string
}

func (f *fakeIPIP) Find() (*ipipState, error) {
	if f.state == nil {
		return nil, nil
	}
	s := *f.state
	return &s, nil
}

func (f *fakeIPIP) Create() error {
	if f.noModule {
		return errors.New("operation not supported")
	}
	f.log = append(f.log, "create")
	f.state = &ipipState{index: 5, mtu: 1480}
	return nil
}

func (f *fakeIPIP) Configure(_ *ipipState, address netip.Prefix) error {
	f.log = append(f.log, fmt.Sprintf("configure %v", address))
	f.state.mtu, f.state.up = ipipMTU, true
	if address.IsValid() {
		f.state.addresses, f.state.alias = append(f.state.addresses, address), ipipAlias
	}
	return nil
}

func (f *fakeIPIP) Release(_ *ipipState, address netip.Prefix) error {
	f.log = append(f.log, fmt.Sprintf("release %v", address))
	return nil
}

func TestIPIPWithFakeKernel(t *testing.T) {
	ofCalico := &ipipState{index: 5, mtu: 1480, up: true,
		addresses: []netip.Prefix{netip.MustParsePrefix("100.96.1.1/32")}}
	for name, c := range map[string]struct {
		mode    string
		system  fakeIPIP
		tunnel  string // index and MTU, or the error
		log     string
		release string
	}{
		"none, and there is a tunl0": {IPIPNone, fakeIPIP{state: ofCalico}, "<nil>", "", ""},
		"shared":                     {IPIPShared, fakeIPIP{state: ofCalico}, "&{5 1480}", "", ""},
		"shared, no device":          {IPIPShared, fakeIPIP{}, "ipip shared: there is no device tunl0", "", ""},
		"shared, down": {IPIPShared, fakeIPIP{state: &ipipState{index: 5}},
			"ipip shared: device tunl0 is down", "", ""},
		"shared, no address": {IPIPShared, fakeIPIP{state: &ipipState{index: 5, up: true}},
			"ipip shared: device tunl0 has no IPv4 address", "", ""},
		"configure": {IPIPConfigure, fakeIPIP{}, "&{5 1440}", "create,configure 10.250.0.3/32", "release 10.250.0.3/32"},
		"configure, no module": {IPIPConfigure, fakeIPIP{noModule: true},
			"ipip configure: device tunl0: operation not supported", "", ""},
		"configure, the device of another": {IPIPConfigure, fakeIPIP{state: ofCalico},
			"&{5 1440}", "configure invalid Prefix", ""},
	} {
		t.Run(name, func(t *testing.T) {
			tunnel := &ipip{c.mode, netip.MustParseAddr("10.250.0.3"), &c.system}
			if c.system.state != nil {
				s := *c.system.state
				c.system.state = &s
			}
			for range 2 { // the second time nothing is done
				got, err := tunnel.prepareTunnel()
				text := fmt.Sprint(got)
				if err != nil {
					text = err.Error()
				}
				if text != c.tunnel || tunnel.tellRemedy() == "" {
					t.Errorf("tunnel %s, want %s", text, c.tunnel)
				}
			}
			if got := strings.Join(c.system.log, ","); got != c.log {
				t.Errorf("log %s, want %s", got, c.log)
			}
			c.system.log = nil
			if err := tunnel.releaseDevice(); err != nil {
				t.Error(err)
			}
			if got := strings.Join(c.system.log, ","); got != c.release {
				t.Errorf("release: log %s, want %s", got, c.release)
			}
		})
	}
}
