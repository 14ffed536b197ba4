// Package wireguard is the dataplane of mode wireguard: a WireGuard device, of the kernel, of another process or in
// this one, that is told the links as its peers.
//
// The path of a change: worker.go takes what the broker wants and what the device says, peer.go and endpoint.go know
// the peers, plan.go finds the difference, and device.go (the kernel, another process) or userspace.go (this process)
// tells the device. The state of links follows from what the device says of handshakes (peer.go).
//
// Packets pass through none of this but wireguard-go. What they may reach, the room kernel says.
package wireguard

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/tundevice"
)

// Config configures a device. Configure can change the Settings later. Of these, MTU defaults to DefaultMTU, and
// ListenPort is a UDP port.
type Config struct {
	link.Settings
	Interface string // name of the device

	Log *slog.Logger // nil: slog.Default()

	// Changed is called when the status of a link has changed; of RTT, only that it has become known. It is called without
	// locks, and must not block.
	Changed func()

	timing   *timing        // tests: instead of defaultTiming
	channels *channelTiming // tests: instead of defaultChannelTiming
	seams                   // tests: instead of the system
}

// seams are what the package needs of the system.
type seams struct {
	links   kernelLinks
	control func() (control, error)
	lookup  func(ctx context.Context, network, host string) ([]netip.Addr, error)
	// blocked says why no packet gets to an address, as link.CheckCarrier does.
	blocked func(netip.Addr, link.Carrier) error
}

// DefaultMTU of the device, in bytes: 1500 less IPv6, UDP and WireGuard (wg-quick(8) takes it, too).
const DefaultMTU = 1420

// timing is all durations. Those of WireGuard itself are constants (section 6 of its paper): a session lasts for 180 s,
// and an end that gets no answer to a handshake sends the next one after 5 s.
type timing struct {
	poll, soon  time.Duration // interval in which the device is asked, and while a new link waits
	eager       time.Duration // how long a new link makes the device be asked soon
	grace       time.Duration // a new link without handshake is Down then
	suspect     time.Duration // what may be wrong is told then
	fresh       time.Duration // a link whose last handshake is older is Down
	retry       time.Duration // how long an address of an endpoint is tried
	lookup      time.Duration // interval in which names are looked up
	lookupDown  time.Duration // the same for names of links that are not Up
	lookupLimit time.Duration // of one look-up
	greet       time.Duration // interval in which a link that is not Up, and has no keepalive, starts a handshake
	call        time.Duration // how long Set and Close wait for the device; links are Down then
}

var defaultTiming = timing{
	poll: time.Second, soon: 100 * time.Millisecond, eager: 5 * time.Second,
	grace: 30 * time.Second, suspect: 15 * time.Second, fresh: 180 * time.Second,
	retry: 12 * time.Second, lookup: 20 * time.Second, lookupDown: 3 * time.Second, lookupLimit: 5 * time.Second,
	greet: 10 * time.Second, call: 5 * time.Second,
}

// Device is a WireGuard device with its links.
type Device struct {
	*worker
	cancel context.CancelFunc
}

// desired is what the broker wants.
type desired struct {
	settings link.Settings
	key      mesh.SecretKey
	keySet   bool // SetCredentials was called
	peers    []mesh.Peer
	peersSet bool // Set was called
}

var (
	errClosed = errors.New("the WireGuard device is closed")
	errHangs  = errors.New("the WireGuard device does not answer: end the process that has it")
)

// Open adopts the device that exists under the name, or makes one, and removes devices of the kernel that an earlier
// process has made under other names. It tells the device nothing before SetCredentials and Set.
func Open(config Config) (*Device, error) {
	if config.Log == nil {
		config.Log = slog.Default()
	}
	if config.timing == nil {
		config.timing = &defaultTiming
	}
	if config.links == nil {
		config.links = rtnetlink{}
	}
	if config.control == nil {
		config.control = newControl
	}
	if config.blocked == nil {
		config.blocked = link.CheckCarrier
	}
	if err := checkHello(&config.Settings); err != nil {
		return nil, err
	}
	w := newWorker(&config)
	w.desired.settings = withDefaults(config.Settings)
	if err := removeStrays(config.links, config.Interface); err != nil {
		config.Log.Warn("cannot remove a device that an earlier kubelink has left", "error", err)
	}
	if err := w.openDevice(&w.desired); err != nil && !tundevice.IsMissing(err) {
		return nil, err
	}
	w.channels = openChannels(channelConfig{
		settings: config.Settings, device: config.Interface, log: config.Log, changed: w.wake,
		timing: config.channels,
	})
	d := &Device{worker: w}
	w.ctx, d.cancel = context.WithCancel(context.Background())
	go func() {
		w.run()
		w.wg.Wait()
		w.ended <- w.closeDevice(w.keep)
	}()
	return d, nil
}

func withDefaults(s link.Settings) link.Settings {
	if s.MTU == 0 {
		s.MTU = DefaultMTU
	}
	if s.Device == "" {
		s.Device = link.AutoDevice
	}
	return s
}

// Configure changes the settings. Sessions go on, and connected kubelinks are told at once. What cannot be done, Set
// tells.
func (d *Device) Configure(settings link.Settings) error {
	if err := d.channels.SetHello(settings); err != nil {
		return err
	}
	return d.change(func(want *desired) { want.settings = withDefaults(settings) })
}

// SetCredentials sets the private key. With another one all peers have to greet again; with nil the device has no
// peers.
func (d *Device) SetCredentials(c *link.Credentials) {
	// The error says that the device is closed.
	_ = d.change(func(want *desired) {
		want.key, want.keySet = mesh.SecretKey{}, true
		if c != nil {
			want.key = c.PrivateKey
		}
	})
}

// Set tells the device all its peers. Links with one key are one peer. A peer that is the same, or gets another address
// or other allowed IPs, keeps its session; the kernel sees to it that packets of local networks do not come from one.
// The error is about this end.
func (d *Device) Set(peers []mesh.Peer, _ []netip.Prefix) error {
	failed := d.channels.SetPeers(peers) // it has the links before the worker sees their handshakes
	err := d.change(func(want *desired) { want.peers, want.peersSet = slices.Clone(peers), true })
	if err != nil {
		return err
	}
	return errors.Join(d.awaitStep(), failed)
}

// awaitStep has the worker tell the device what is wanted, and returns what came of that.
func (d *Device) awaitStep() error {
	reply := make(chan error, 1)
	timer := time.NewTimer(d.timing.call)
	defer timer.Stop()
	select {
	case d.requests <- reply:
	case <-d.ctx.Done():
		return errClosed
	case <-timer.C:
		return errHangs
	}
	select {
	case err := <-reply:
		return err
	case <-d.ctx.Done():
		return errClosed
	case <-timer.C:
		return errHangs
	}
}

// change changes what is wanted, and wakes the worker.
func (d *Device) change(f func(*desired)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errClosed
	}
	f(&d.desired)
	d.wake()
	return nil
}

// Statuses returns the status of each link, in the order of Set.
func (d *Device) Statuses() []link.Status { return slices.Clone(*d.statuses.Load()) }

// Close ends the links and awaits all goroutines; of the worker only for a while, as the device may hang. With
// keepDevice the device stays as it is, with its addresses and routes, for the next process: of the kernel and of
// another process with all its peers. Otherwise Close removes our device, and the peers of one that is not ours.
func (d *Device) Close(keepDevice bool) error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return errClosed
	}
	d.closed, d.keep = true, keepDevice
	d.mu.Unlock()
	d.cancel()
	d.channels.Close()
	select {
	case err := <-d.ended:
		return err
	case <-time.After(d.timing.call):
		return errHangs
	}
}
