package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mandelsoft/kubelink/broker/host"
	"github.com/mandelsoft/kubelink/broker/kernel"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/pki"
)

// fakeDataplane has the statuses that a test gives it, and notes what it is told.
type fakeDataplane struct {
	statuses atomic.Pointer[[]link.Status] // nil: none
	fail     error                         // of each call
	calls    *[]string                     // nil: nothing is noted
	settings link.Settings
	peers    []mesh.Peer
}

func (d *fakeDataplane) note(format string, args ...any) {
	if d.calls != nil {
		*d.calls = append(*d.calls, fmt.Sprintf(format, args...))
	}
}

func (d *fakeDataplane) Configure(s link.Settings) error {
	d.settings = s
	d.note("Configure port %d", s.ListenPort)
	return d.fail
}

func (d *fakeDataplane) SetCredentials(c *link.Credentials) {
	switch {
	case c == nil:
		d.note("SetCredentials none")
	case c.Unencrypted:
		d.note("SetCredentials unencrypted")
	default:
		d.note("SetCredentials certificate")
	}
}

func (d *fakeDataplane) Set(peers []mesh.Peer, local []netip.Prefix) error {
	d.peers = peers
	d.note("Set %d peers %d local", len(peers), len(local))
	return d.fail
}

func (d *fakeDataplane) Statuses() []link.Status {
	d.note("Statuses")
	if all := d.statuses.Load(); all != nil {
		return *all
	}
	return nil
}

func (d *fakeDataplane) setStatus(all ...link.Status) { d.statuses.Store(&all) }

func (d *fakeDataplane) Collect(chan<- prometheus.Metric) { d.note("Collect") }
func (d *fakeDataplane) Close(keep bool) error            { d.note("Close %v", keep); return d.fail }

// fakeClaim can always be had.
type fakeClaim struct{ held bool }

func (c *fakeClaim) Acquire(context.Context, *slog.Logger) error { c.held = true; return nil }
func (c *fakeClaim) Release()                                    { c.held = false }

// recordingKernel notes what it is told.
type recordingKernel struct {
	state kernel.State
	fail  error     // of each call
	calls *[]string // as those of a fakeDataplane
}

func (k *recordingKernel) note(call string) {
	if k.calls != nil {
		*k.calls = append(*k.calls, call)
	}
}

func (k *recordingKernel) Set(s kernel.State) error   { k.state = s; k.note("kernel"); return k.fail }
func (k *recordingKernel) Forget(*kernel.Kernel)      { k.note("kernel forgets") }
func (k *recordingKernel) Wait()                      { k.note("kernel waits") }
func (k *recordingKernel) Clear() error               { k.note("kernel cleared"); return k.fail }
func (k *recordingKernel) Drops() kernel.Drops        { return kernel.Drops{} }
func (k *recordingKernel) Backends() []kernel.Backend { return nil }

func newFakeGateway(d *fakeDataplane, k *recordingKernel) *gateway {
	return &gateway{dataplane: d, kernel: k, log: slog.New(slog.DiscardHandler)}
}

// A mode that carries no traffic needs no dataplane and no credentials, and so does a mode that is not known.
func TestModeWithoutDataplane(t *testing.T) {
	for _, mode := range []mesh.Mode{mesh.None, "", "unknown"} {
		t.Run("mode "+string(mode), func(t *testing.T) {
			cfg := Config{
				Local:             mesh.Local{Mode: mode},
				GatewayConfig:     GatewayConfig{Interface: "a/b", RouteTable: -1}, // nothing of it is used
				CertificateConfig: CertificateConfig{Secret: "tls", SecretManageMode: "self"},
			}
			b, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Stop()
			claim := &fakeClaim{}
			b.claim = claim
			g, err := b.openGateway(&cfg)
			if g != nil || err != nil || claim.held {
				t.Fatalf("opened %v, %v, claim %+v", g, err, claim)
			}
			b.setGateway(g)
			if b.names.currentDataplane() != nil {
				t.Error("names have a dataplane")
			}
			// What an earlier mode had is not in use any more.
			if _, err := b.r.creds.Refresh(t.Context(), nil, pki.Config{}); err != nil || !b.r.creds.Usable() {
				t.Fatal(err)
			}
			run := &reconcilerRun{reconciler: b.r} // without client: no secret is read
			if err := run.refreshCredentials(t.Context()); err != nil || b.r.creds.Usable() || b.r.creds.Secret != nil {
				t.Errorf("credentials %+v, %v", b.r.creds.Store, err)
			}
			d, err := openDataplane(&cfg, dataplaneEvents{}, b.log)
			if want := fmt.Sprintf("mode %s has no dataplane", mode); d != nil || err == nil || err.Error() != want {
				t.Errorf("opened %v, %v", d, err)
			}
		})
	}
}

// An error of a gateway says which property is wrong, and is found before the device is made.
func TestGatewayErrors(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  GatewayConfig
		says string
	}{
		{"no device", GatewayConfig{}, `device name ""`},
		{"long name", GatewayConfig{Interface: strings.Repeat("x", 16)}, `device name "xxxxxxxxxxxxxxxx"`},
		{"table", GatewayConfig{Interface: "kubelink", RouteTable: -1}, "route table -1"},
		{"table local", GatewayConfig{Interface: "kubelink", RouteTable: 255}, "route table 255"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := Config{Local: mesh.Local{Mode: mesh.Bridge}, GatewayConfig: c.cfg}
			g, err := openGateway(&cfg, dataplaneEvents{}, func() {}, host.NewAPIServer(), slog.New(slog.DiscardHandler))
			if g != nil || err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, %v", g, err)
			}
		})
	}
}

// Links go on until the kernel is done, and NAT goes after the links, even if both fail; what is to be kept stays.
func TestGatewayClose(t *testing.T) {
	for _, c := range []struct {
		keep bool
		fail error
		want []string
	}{
		{false, nil, []string{"kernel waits", "Close false", "kernel cleared"}},
		{false, errors.New("lost"), []string{"kernel waits", "Close false", "kernel cleared"}},
		{true, nil, []string{"kernel waits", "Close true"}},
	} {
		calls := []string{}
		d, k := &fakeDataplane{fail: c.fail, calls: &calls}, &recordingKernel{fail: c.fail, calls: &calls}
		newFakeGateway(d, k).close(c.keep)
		if !slices.Equal(calls, c.want) {
			t.Errorf("keep %v, error %v: %q", c.keep, c.fail, calls)
		}
	}
	(*gateway)(nil).close(false) // a mode without dataplane
}
