package wireguard

// Devices of the kernel. The machines of the tests have no WireGuard in their kernel, so a fake stands for rtnetlink
// and for the WireGuard of the kernel: the names of the tests say so.

import (
	"errors"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// fakeKernel is a kernel with WireGuard, or without.
type fakeKernel struct {
	without bool
	devices map[string]netlink.Link
	models  map[string]*model // of WireGuard devices
	busy    syscall.Errno     // when a port is opened
	tells   int
	hang    chan struct{} // not nil: devices answer when it is closed
}

func newFakeKernel() *fakeKernel {
	return &fakeKernel{devices: map[string]netlink.Link{}, models: map[string]*model{}}
}

func (k *fakeKernel) Find(name string) (netlink.Link, error) {
	if l := k.devices[name]; l != nil {
		return l, nil
	}
	return nil, nil
}

func (k *fakeKernel) List() ([]netlink.Link, error) {
	return slices.Collect(maps.Values(k.devices)), nil
}

func (k *fakeKernel) Add(l netlink.Link) error {
	name := l.Attrs().Name
	switch {
	case k.devices[name] != nil:
		return syscall.EEXIST
	case k.without && l.Type() == "wireguard":
		return syscall.EOPNOTSUPP
	case l.Type() == "wireguard":
		k.models[name] = &model{}
	}
	k.devices[name] = l
	return nil
}

func (k *fakeKernel) Delete(l netlink.Link) error {
	delete(k.devices, l.Attrs().Name)
	delete(k.models, l.Attrs().Name)
	return nil
}

func (k *fakeKernel) Adjust(l netlink.Link, mtu int, alias string) error {
	l.Attrs().MTU, l.Attrs().Alias = mtu, alias
	return nil
}

func (k *fakeKernel) Device(name string) (*wgtypes.Device, error) {
	if k.hang != nil {
		<-k.hang
	}
	m := k.models[name]
	if m == nil {
		return nil, os.ErrNotExist
	}
	d := m.Device
	d.Peers = slices.Clone(d.Peers)
	return &d, nil
}

func (k *fakeKernel) ConfigureDevice(name string, c wgtypes.Config) error {
	m := k.models[name]
	if m == nil {
		return os.ErrNotExist
	}
	k.tells++
	m.tell(c)
	if c.ListenPort != nil && k.busy != 0 {
		return k.busy // the kernel shows the port all the same
	}
	return nil
}

func (k *fakeKernel) Close() error { return nil }

// add adds a device.
func (k *fakeKernel) add(l netlink.Link, name, alias string) {
	*l.Attrs() = netlink.LinkAttrs{Name: name, Alias: alias}
	if err := k.Add(l); err != nil {
		panic(err)
	}
}

func (k *fakeKernel) opener() *opener {
	return &opener{name: "kubelink", log: slog.New(slog.DiscardHandler), links: k,
		control: func() (control, error) { return k, nil }}
}

func TestKernelDeviceBehindFake(t *testing.T) {
	unused := func() netlink.Link { return &netlink.Tuntap{Mode: netlink.TUNTAP_MODE_TUN} }
	for _, c := range []struct {
		name    string
		prepare func(*fakeKernel)
		want    link.WireGuardDevice
		kind    string
		err     string
		removes bool // Close without keep removes the device
	}{
		{name: "none is there", want: link.AutoDevice, kind: "kernel", removes: true},
		{name: "the kernel has no WireGuard", prepare: func(k *fakeKernel) { k.without = true }, want: link.KernelDevice,
			err: "load the module wireguard"},
		{name: "ours is adopted", prepare: func(k *fakeKernel) { k.add(&netlink.Wireguard{}, "kubelink", mark) },
			want: link.AutoDevice, kind: "kernel", removes: true},
		{name: "one of somebody is adopted and stays",
			prepare: func(k *fakeKernel) { k.add(&netlink.Wireguard{}, "kubelink", "vpn") },
			want:    link.KernelDevice, kind: "kernel"},
		{name: "one of somebody, where it shall be in this process", want: link.UserspaceDevice,
			prepare: func(k *fakeKernel) { k.add(&netlink.Wireguard{}, "kubelink", "") },
			err:     "a WireGuard device of the kernel that kubelink did not make"},
		{name: "a TUN that is not in use is replaced", prepare: func(k *fakeKernel) { k.add(unused(), "kubelink", "") },
			want: link.AutoDevice, kind: "kernel", removes: true},
		{name: "the TUN stays if the kernel has no WireGuard", want: link.KernelDevice,
			prepare: func(k *fakeKernel) { k.without = true; k.add(unused(), "kubelink", "") },
			err:     "load the module wireguard"},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := newFakeKernel()
			if c.prepare != nil {
				c.prepare(k)
			}
			before := len(k.devices)
			b, err := k.opener().open(c.want, 1420)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v", err)
				}
				if len(k.devices) != before {
					t.Errorf("%d devices", len(k.devices))
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if b.Kind() != c.kind || len(k.devices) != 1 {
				t.Errorf("%s, %d devices", b.Kind(), len(k.devices))
			}
			k.models["kubelink"].Peers = []wgtypes.Peer{{}}
			if err := b.Tell(wgtypes.Config{}); err != nil {
				t.Error(err)
			}
			if err := b.Close(false); err != nil {
				t.Error(err)
			}
			if gone := k.devices["kubelink"] == nil; gone != c.removes {
				t.Errorf("gone: %v", gone)
			} else if m := k.models["kubelink"]; m != nil && len(m.Peers) > 0 {
				t.Error("its peers stay")
			}
		})
	}
}

// openFake opens a Device of a fake kernel.
func openFake(t *testing.T, k *fakeKernel) *Device {
	t.Helper()
	return openFakeWithin(t, k, fastTiming.call, nil)
}

// openFakeWithin opens a Device of a fake kernel that has to answer within a time.
func openFakeWithin(t *testing.T, k *fakeKernel, limit time.Duration, changed func()) *Device {
	t.Helper()
	c := Config{Changed: changed, Interface: "kubelink", Settings: link.Settings{ListenPort: 8777},
		Log: slog.New(slog.DiscardHandler)}
	c.links, c.control = k, func() (control, error) { return k, nil }
	slow := fastTiming
	slow.poll, slow.soon = time.Hour, time.Hour // a step per Set: the fake has no lock
	slow.call = limit
	c.timing = &slow
	d, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestAdoptedKernelDeviceBehindFakeGetsMark(t *testing.T) {
	for _, c := range []struct {
		name, alias string
		key         mesh.SecretKey // that the device has
		want        string         // alias
	}{
		{"of a former broker", "", keyOne, mark},
		{"that nobody has set up", "", mesh.SecretKey{}, mark},
		{"with another alias", "vpn", keyOne, "vpn"},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := newFakeKernel()
			k.add(&netlink.Wireguard{}, "kubelink", c.alias)
			k.add(&netlink.Wireguard{}, "wg0", "")
			k.add(&netlink.Wireguard{}, "old", mark) // of a kubelink with another ifce-name
			k.models["kubelink"].PrivateKey = clampKey(c.key)
			k.models["kubelink"].Peers = []wgtypes.Peer{{PublicKey: wgtypes.Key(keyThree.Public())}}
			d := openFake(t, k)
			if k.tells > 0 {
				t.Errorf("%d commands before Set", k.tells)
			}
			d.SetCredentials(&link.Credentials{PrivateKey: keyOne})
			if err := d.Set(nil, nil); err != nil {
				t.Error(err)
			}
			if alias := k.devices["kubelink"].Attrs().Alias; alias != c.want {
				t.Errorf("alias %q, want %q", alias, c.want)
			}
			if k.devices["wg0"] == nil || k.devices["old"] != nil {
				t.Errorf("devices %v", k.devices)
			}
			if n := len(k.models["kubelink"].Peers); n > 0 {
				t.Errorf("%d peers that nobody wants", n)
			}
			if err := d.Close(true); err != nil {
				t.Error(err)
			}
			if err := removeStrays(k, ""); err != nil || (k.devices["kubelink"] == nil) != (c.want == mark) {
				t.Errorf("%v, devices %v", err, k.devices)
			}
		})
	}
}

// A device that has another key is in use for something else, with peers or before it gets any.
func TestForeignDeviceBehindFakeKernelIsLeftAlone(t *testing.T) {
	for _, alias := range []string{"", "vpn"} {
		k := newFakeKernel()
		k.add(&netlink.Wireguard{}, "kubelink", alias)
		k.devices["kubelink"].Attrs().MTU = 1280
		foreign := k.models["kubelink"]
		foreign.PrivateKey = clampKey(keyTwo)
		if alias == "" {
			foreign.Peers = []wgtypes.Peer{{PublicKey: wgtypes.Key(keyThree.Public())}}
		}
		peers := len(foreign.Peers)
		d := openFake(t, k)
		for _, c := range []*link.Credentials{nil, {PrivateKey: keyOne}} {
			d.SetCredentials(c)
			err := d.Set([]mesh.Peer{{Link: "two", Key: keyTwo.Public()}}, nil)
			if err == nil || !strings.Contains(err.Error(), "remove it (ip link del kubelink) or choose another ifce-name") {
				t.Errorf("error %v", err)
			}
		}
		if st := d.Statuses()[0]; !strings.Contains(st.Reason, "that kubelink did not set up") {
			t.Errorf("%+v", st)
		}
		if err := d.Close(false); err != nil {
			t.Error(err)
		}
		is := k.devices["kubelink"].Attrs()
		if k.tells > 0 || len(foreign.Peers) != peers || is.MTU != 1280 || is.Alias != alias {
			t.Errorf("%d commands, %+v, %+v", k.tells, foreign, is)
		}
	}
}

// While the kernel does not answer, links are Down and say so, and Close does not wait for it.
func TestHangingFakeKernel(t *testing.T) {
	k := newFakeKernel()
	changes := make(chan struct{}, 100)
	d := openFakeWithin(t, k, time.Second, func() { changes <- struct{}{} })
	d.SetCredentials(&link.Credentials{PrivateKey: keyOne})
	peers := []mesh.Peer{{Link: "two", Key: keyTwo.Public()}}
	if err := d.Set(peers, nil); err != nil || d.Statuses()[0].State != link.Idle {
		t.Fatal(err, d.Statuses())
	}
	for len(changes) > 0 {
		<-changes
	}
	k.hang = make(chan struct{})
	if err := d.Set(peers, nil); !errors.Is(err, errHangs) {
		t.Errorf("Set: %v", err)
	}
	<-changes
	if st := d.Statuses()[0]; st.State != link.Down || st.Reason != errHangs.Error() {
		t.Errorf("%+v", st)
	}
	close(k.hang)
	<-changes
	if st := d.Statuses()[0]; st.State != link.Idle {
		t.Errorf("%+v", st)
	}
	if err := d.Set(peers, nil); err != nil {
		t.Error(err)
	}
	k.hang = make(chan struct{})
	if err := d.Set(peers, nil); !errors.Is(err, errHangs) {
		t.Errorf("Set: %v", err)
	}
	if err := d.Close(false); !errors.Is(err, errHangs) {
		t.Errorf("Close: %v", err)
	}
	close(k.hang)
	if err := <-d.ended; err != nil || len(k.devices) > 0 {
		t.Errorf("%v, devices %v", err, k.devices)
	}
}

// A kernel shows a port that it could not open as if it had.
func TestPortInUseBehindFakeKernel(t *testing.T) {
	k := newFakeKernel()
	k.busy = syscall.EADDRINUSE
	d := openFake(t, k)
	defer d.Close(false)
	d.SetCredentials(&link.Credentials{PrivateKey: keyOne})
	for range 2 {
		if err := d.Set(nil, nil); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("error %v", err)
		}
	}
	k.busy = 0
	if err := d.Set(nil, nil); err != nil {
		t.Error(err)
	}
	tells := k.tells
	if err := d.Set(nil, nil); err != nil || k.tells != tells {
		t.Errorf("%v, %d commands", err, k.tells-tells)
	}
}
