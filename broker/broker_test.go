package broker

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/pki"
	"github.com/mandelsoft/kubelink/broker/snapshot"
)

// New refuses a bad configuration, and does nothing else with it.
func TestNewBadConfig(t *testing.T) {
	b, err := New(Config{Local: mesh.Local{Addresses: prefixes("192.168.0.0/24")}})
	if b != nil || err == nil || !strings.HasPrefix(err.Error(), "link-address 192.168.0.0/24: ") {
		t.Errorf("%v, %v", b, err)
	}
}

// Update before Start: with the same configuration, or other Domains only, nothing is opened, read or started. (Where
// the test runs is no pod: to look for the API server would be an error.)
func TestUpdateWithoutRestart(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	cfg := Config{
		Local:       mesh.Local{Mode: mesh.None, Domains: []string{"one."}},
		NamesConfig: NamesConfig{ServeStale: time.Hour},
	}
	other, bad, restart := cfg, cfg, cfg
	other.Domains = []string{"two."}
	bad.Addresses = prefixes("192.168.0.0/24")
	restart.ServeStale = time.Minute
	for _, c := range []struct {
		name  string
		cfg   Config
		says  string // the error; empty: none
		woken bool
	}{
		{"the same", cfg, "", false},
		{"an equal one", Config{Local: mesh.Local{Mode: mesh.None, Domains: []string{"one."}}, NamesConfig: cfg.NamesConfig},
			"", false},
		{"other Domains", other, "", true},
		{"a bad one", bad, "link-address 192.168.0.0/24: ", false},
		{"one that is more than Domains", restart, "no kubeconfig is set", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Stop()
			events := b.r.waker.newChannel()
			err = b.Update(c.cfg)
			if (err == nil) != (c.says == "") || err != nil && !strings.HasPrefix(err.Error(), c.says) {
				t.Errorf("%v, want %s", err, c.says)
			}
			want := cfg
			if err == nil {
				want = c.cfg
			}
			if !reflect.DeepEqual(b.cfg, want) || !reflect.DeepEqual(b.r.cfg, want) {
				t.Errorf("the broker has %+v, the controllers have %+v", b.cfg.Local, b.r.cfg.Local)
			}
			if b.names.from.serveStale != cfg.ServeStale {
				t.Errorf("names are stale for %v", b.names.from.serveStale)
			}
			if len(events) == 1 != c.woken || b.controllers != nil {
				t.Errorf("%d events, controllers %v", len(events), b.controllers)
			}
		})
	}
}

// An absent API server is no error: the broker starts, follows its configuration, and stops. After a failed Update all
// is as before.
func TestLifecycleWithoutAPIServer(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{Local: mesh.Local{Mode: mesh.None}, APIConfig: APIConfig{Kubeconfig: writeKubeconfig(t)}}
	cfg.StateDir = filepath.Join(dir, "one")
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	claim := &fakeClaim{} // that of the network namespace is not this test's to take
	b.claim = claim
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	defer b.Stop()
	if err := b.Ready(); err == nil || b.Table() != nil || metricsSource.Load() != b {
		t.Errorf("ready: %v, table %v", err, b.Table())
	}
	change := func(edit func(*Config)) Config { c := cfg; edit(&c); return c }
	for _, c := range []struct {
		name      string
		cfg       Config
		says      string
		restarted bool // the controllers
		resumed   bool // and what uses the API server goes on
	}{
		{"the same", cfg, "", false, true},
		{"Domains", change(func(c *Config) { c.Domains = []string{"two."} }), "", false, true},
		{"how names are served", change(func(c *Config) { c.ServeStale = time.Minute }), "", true, true},
		{"back", cfg, "", true, true},
		{"another API server", change(func(c *Config) { c.Context = "two" }), "", true, false},
		{"back again", cfg, "", true, false},
		{"no API server", change(func(c *Config) { c.Context = "three" }), "kubeconfig ", false, true},
		{"a folder that cannot be made", change(func(c *Config) { c.StateDir = c.Kubeconfig + "/state" }), "", true, true},
		{"a device that cannot be made", change(func(c *Config) {
			c.Mode, c.StateDir = mesh.Bridge, filepath.Join(dir, "two")
		}), `device name ""`, false, true},
		{"another folder", change(func(c *Config) { c.StateDir = filepath.Join(dir, "three") }), "", true, true},
	} {
		failing := c.says != ""
		before, controllers, api, last := b.cfg, b.controllers, b.api, b.r.snapshot.Load()
		err := b.Update(c.cfg)
		if (err != nil) != failing || err != nil && !strings.HasPrefix(err.Error(), c.says) {
			t.Errorf("%s: %v", c.name, err)
		}
		want := c.cfg
		if failing {
			want = before
		}
		if !reflect.DeepEqual(b.cfg, want) || !reflect.DeepEqual(b.r.cfg, want) {
			t.Errorf("%s: the broker has %+v", c.name, b.cfg)
		}
		if b.controllers != controllers != c.restarted || (b.api == api) != c.resumed {
			t.Errorf("%s: controllers %p, before %p; API %p, before %p", c.name, b.controllers, controllers, b.api, api)
		}
		if after := b.r.snapshot.Load(); after == nil || (after == last) != (failing || before.StateDir == c.cfg.StateDir) {
			t.Errorf("%s: snapshot %p, before %p", c.name, after, last)
		}
		// Its folder shows when it is closed.
		b.r.snapshot.Load().Keep(func(o *snapshot.Objects) {
			o.Links = []v1alpha1.KubeLink{*kubeLink("kept", "192.168.0.12/24", "b.example", "")}
		})
	}
	b.Stop()
	for folder, want := range map[string]bool{"one": true, "two": false, "three": true} {
		data, err := os.ReadFile(filepath.Join(dir, folder, "objects.json"))
		if strings.Contains(string(data), "kept") != want {
			t.Errorf("folder %s: %v, %s", folder, err, data)
		}
	}
	if b.controllers != nil || b.r.snapshot.Load() != nil || metricsSource.Load() != nil || claim.held {
		t.Errorf("left: controllers %v, claim %+v", b.controllers, claim)
	}
}

// A gateway that stays brings all to the kernel again. From when a certificate is configured, it carries no link
// without one.
func TestKeepGateway(t *testing.T) {
	unencrypted := Config{Local: mesh.Local{Mode: mesh.Bridge}}
	secured := unencrypted
	secured.Secret = "tls"
	otherSecret, otherTable, otherDomain := secured, secured, secured
	otherSecret.Secret, otherTable.RouteTable, otherDomain.MeshDomain = "other", -1, "other."
	for _, c := range []struct {
		name     string
		from, to Config
		calls    []string
		usable   bool   // the credentials stay in use
		says     string // the error
	}{
		{"something else", secured, otherDomain, []string{"kernel forgets"}, true, ""},
		{"a certificate, from now on", unencrypted, secured, []string{"kernel forgets", "SetCredentials none"}, false, ""},
		{"another certificate", secured, otherSecret, []string{"kernel forgets"}, true, ""},
		{"no certificate any more", secured, unencrypted, []string{"kernel forgets"}, true, ""},
		{"a table that is none", secured, otherTable, []string{}, true, `device name ""`}, // the device is looked at first
	} {
		t.Run(c.name, func(t *testing.T) {
			b, err := New(c.from)
			if err != nil {
				t.Fatal(err)
			}
			calls := []string{}
			b.setGateway(newFakeGateway(&fakeDataplane{calls: &calls}, &recordingKernel{calls: &calls}))
			if _, err := b.r.creds.Refresh(t.Context(), nil, pki.Config{}); err != nil {
				t.Fatal(err)
			}
			err = b.keepGateway(c.to)
			if (err == nil) != (c.says == "") || err != nil && !strings.HasPrefix(err.Error(), c.says) {
				t.Error(err)
			}
			if !slices.Equal(calls, c.calls) || b.r.creds.Usable() != c.usable {
				t.Errorf("%q, usable %v", calls, b.r.creds.Usable())
			}
			want := c.to
			if err != nil {
				want = c.from
			}
			if !reflect.DeepEqual(b.cfg, want) || !reflect.DeepEqual(b.r.cfg, want) {
				t.Errorf("the broker has %+v", b.cfg)
			}
		})
	}
}
