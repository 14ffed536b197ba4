package wireguard

// The worker: the one goroutine that asks the device and tells it, so that nothing waits for a device that hangs.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// worker makes the device what it shall be, again and again.
type worker struct {
	log     *slog.Logger
	timing  *timing
	changed func()
	ctx     context.Context
	wg      sync.WaitGroup // of look-ups
	ended   chan error     // what came of closing the device, which the worker does at its end
	keep    bool           // the device stays then; set before ctx ends

	statuses atomic.Pointer[[]link.Status] // not changed once stored
	seen     atomic.Pointer[observation]   // not changed once stored

	requests chan chan error // of Set: the worker answers what came of its next step
	woken    chan struct{}

	mu      sync.Mutex // guards what follows; nothing slow happens under it
	closed  bool
	desired desired

	channels *channels

	open deviceState // of the goroutine
	view viewOfPeers // of the goroutine
}

// deviceState is the device of the moment.
type deviceState struct {
	opener
	blocked func(netip.Addr, link.Carrier) error

	backend  backend // nil: it is missing
	as       link.WireGuardDevice
	mtu      int   // that it has
	marked   bool  // it has been looked at whether it is ours
	told     error // of the last time that it was told something
	reported string
}

// viewOfPeers is what is known of peers and links.
type viewOfPeers struct {
	resolver *resolver
	peers    map[wgtypes.Key]*peer
	links    []*linkEntry // in the order of Set
}

// linkEntry is a link and the peer that carries it.
type linkEntry struct {
	name   string
	peer   *peer // nil: its key is our own
	status link.Status
}

// observation is what metrics tell.
type observation struct {
	kind  string // of the device; empty: it is missing
	bytes []linkBytes
}

func newWorker(c *Config) *worker {
	w := &worker{
		log: c.Log, timing: c.timing, changed: c.Changed,
		requests: make(chan chan error), woken: make(chan struct{}, 1), ended: make(chan error, 1),
		open: deviceState{
			opener:  opener{name: c.Interface, log: c.Log, links: c.links, control: c.control},
			blocked: c.blocked,
		},
	}
	w.view = viewOfPeers{resolver: newResolver(c.timing, w.wake), peers: map[wgtypes.Key]*peer{}}
	if c.lookup != nil {
		w.view.resolver.lookup = c.lookup
	}
	w.statuses.Store(&[]link.Status{})
	w.seen.Store(&observation{})
	return w
}

// wake makes the worker look at everything soon.
func (w *worker) wake() {
	select {
	case w.woken <- struct{}{}:
	default:
	}
}

// run works until the context ends.
func (w *worker) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var replies []chan error
		select {
		case <-w.ctx.Done():
			return
		case reply := <-w.requests:
			replies = append(replies, reply)
		case <-w.woken:
		case <-timer.C:
		}
		select {
		case <-w.woken: // by what this step takes, too
		default:
		}
		now := time.Now()
		err := w.step(now)
		for _, reply := range replies {
			reply <- err
		}
		w.view.resolver.startDue(w.ctx, &w.wg, now)
		timer.Reset(w.pause(now))
	}
}

// pause is the time until the device is asked again.
func (w *worker) pause(now time.Time) time.Duration {
	for _, p := range w.view.peers {
		if p.handshake.IsZero() && p.endpoint.host != "" && now.Sub(p.waiting) < w.timing.eager {
			return w.timing.soon
		}
	}
	return w.timing.poll
}

// step compares the device with what is wanted, tells it the difference, and makes the states of the links.
func (w *worker) step(now time.Time) error {
	w.mu.Lock()
	want := w.desired
	w.mu.Unlock()
	endWatch := w.watchStep(now)
	is, err := w.readDevice(&want)
	if is != nil {
		w.observe(is, now)
	}
	if want.keySet && want.peersSet {
		w.setPeers(&want, now)
		if is != nil {
			err = w.tellDevice(&want, is, now)
		}
	}
	endWatch()
	w.report(err)
	w.makeStatuses(&want, now, err)
	return err
}

// watchStep makes all links Down if what follows does not end soon: the device hangs. What it returns ends that.
func (w *worker) watchStep(now time.Time) (end func()) {
	done := make(chan struct{})
	late := time.AfterFunc(w.timing.call, func() {
		defer close(done)
		before := *w.statuses.Load()
		all := slices.Clone(before)
		for i := range all {
			all[i].Reason = errHangs.Error()
			setState(&all[i], link.Down, now)
		}
		w.statuses.Store(&all)
		w.logChanges(before, all)
		if w.changed != nil {
			w.changed()
		}
	})
	return func() {
		if late.Stop() {
			return
		}
		<-done
		for _, entry := range w.view.links {
			entry.status.State = link.Down
		}
	}
}

// openDevice opens the device.
func (w *worker) openDevice(want *desired) error {
	o := &w.open
	b, err := o.opener.open(want.settings.Device, want.settings.MTU)
	if err != nil {
		return err
	}
	o.backend, o.as, o.mtu, o.marked, o.told = b, want.settings.Device, 0, false, nil
	w.log.Info("WireGuard device is open", "interface", o.name, "device", b.Kind())
	return nil
}

// closeDevice ends the use of the device.
func (w *worker) closeDevice(keep bool) error {
	b := w.open.backend
	if w.open.backend = nil; b == nil {
		return nil
	}
	for _, p := range w.view.peers {
		p.forget(time.Now())
	}
	return b.Close(keep)
}

// readDevice asks the device, and opens it where it is missing, or another implementation is wanted.
func (w *worker) readDevice(want *desired) (*wgtypes.Device, error) {
	o := &w.open
	if o.backend != nil && o.as != want.settings.Device {
		if err := w.closeDevice(true); err != nil {
			w.log.Warn("cannot close the WireGuard device", "interface", o.name, "error", err)
		}
	}
	if o.backend == nil {
		if err := w.openDevice(want); err != nil {
			return nil, err
		}
	}
	is, err := o.backend.Read()
	if errors.Is(err, errHangs) {
		return nil, err // it may go on
	}
	if err != nil {
		err = fmt.Errorf("WireGuard device %s: %w", o.name, err)
		return nil, errors.Join(err, w.closeDevice(true))
	}
	if !o.marked && o.backend.IsForeign(is, clampKey(want.key)) {
		if !want.keySet {
			return nil, nil // it may have the key that this cluster gets
		}
		remedy, title := "remove it (ip link del "+o.name+")", "the kernel"
		if o.backend.Kind() == "adopted" {
			remedy, title = "end that process", "another process"
		}
		return nil, fmt.Errorf("%s is a WireGuard device of %s that kubelink did not set up, and has not the private key "+
			"of this cluster: %s or choose another ifce-name", o.name, title, remedy)
	}
	if mark := want.key != (mesh.SecretKey{}); o.mtu != want.settings.MTU || mark && !o.marked {
		mark = mark && (is.PrivateKey == (wgtypes.Key{}) || is.PrivateKey == clampKey(want.key))
		if err := o.backend.Adjust(want.settings.MTU, mark); err != nil {
			return is, err
		}
		o.mtu, o.marked = want.settings.MTU, want.key != (mesh.SecretKey{})
	}
	return is, nil
}

// tellDevice tells the device what differs, and looks at what it is now.
func (w *worker) tellDevice(want *desired, is *wgtypes.Device, now time.Time) error {
	o := &w.open
	if isPortInUse(o.told) {
		is.ListenPort = 0 // the kernel shows the port that it could not open
	}
	key := clampKey(want.key)
	if key != (wgtypes.Key{}) && key != is.PrivateKey {
		for _, p := range w.view.peers {
			p.wait(now)
		}
	}
	plan := w.makeTarget(want, key, now).plan(is)
	o.told = nil
	for _, c := range plan {
		if err := o.backend.Tell(c); err != nil {
			o.told = describeTellError(o.name, want, err)
			break
		}
	}
	if len(plan) == 0 {
		return nil
	}
	is, err := o.backend.Read()
	if err != nil {
		return errors.Join(o.told, fmt.Errorf("WireGuard device %s: %w", o.name, err))
	}
	w.observe(is, now)
	return o.told
}

func isPortInUse(err error) bool { return errors.Is(err, syscall.EADDRINUSE) }

// describeTellError adds the remedy to an error of the device.
func describeTellError(name string, want *desired, err error) error {
	if isPortInUse(err) {
		return fmt.Errorf("WireGuard device %s cannot open UDP port %d: %w: end the program that has it, "+
			"or choose another broker-port", name, want.settings.ListenPort, syscall.EADDRINUSE)
	}
	return fmt.Errorf("tell WireGuard device %s: %w", name, err)
}

// observe notes what the device says of the peers.
func (w *worker) observe(is *wgtypes.Device, now time.Time) {
	for i := range is.Peers {
		if p := w.view.peers[is.Peers[i].PublicKey]; p != nil {
			p.observe(&is.Peers[i], now, w.timing)
		}
	}
}

// setPeers makes the peers that are wanted of those that are there. Links with one key are one peer.
func (w *worker) setPeers(want *desired, now time.Time) {
	old, own := w.view.peers, want.key.Public()
	w.view.peers = make(map[wgtypes.Key]*peer, len(want.peers))
	links := make([]*linkEntry, 0, len(want.peers))
	dialled := map[mesh.PublicKey]*mesh.Peer{} // mesh sees to it that links of one key agree
	for i := range want.peers {
		if spec := &want.peers[i]; spec.Host != "" && dialled[spec.Key] == nil {
			dialled[spec.Key] = spec
		}
	}
	for i := range want.peers {
		spec := &want.peers[i]
		entry := &linkEntry{name: spec.Link}
		links = append(links, entry)
		if spec.Key == own && want.key != (mesh.SecretKey{}) {
			continue
		}
		key := wgtypes.Key(spec.Key)
		p := w.view.peers[key]
		if p == nil {
			if p = old[key]; p == nil {
				p = &peer{key: key, waiting: now}
			}
			p.reset(cmp.Or(dialled[spec.Key], spec), now, w.timing)
			w.view.peers[key] = p
		}
		p.links = append(p.links, spec.Link)
		for _, n := range spec.Networks {
			p.networks = append(p.networks, n.Masked())
		}
		entry.peer = p
	}
	before := w.view.links
	for i, entry := range links {
		if i >= len(before) || before[i].name != entry.name {
			if at := slices.IndexFunc(before, func(e *linkEntry) bool { return e.name == entry.name }); at >= 0 {
				entry.status = before[at].status
			}
			continue
		}
		entry.status = before[i].status
	}
	w.view.links = links
}

// makeTarget makes what the device shall be, and chooses addresses of endpoints.
func (w *worker) makeTarget(want *desired, key wgtypes.Key, now time.Time) *target {
	t := &target{key: key, port: int(want.settings.ListenPort), keepalive: want.settings.Keepalive.Truncate(time.Second)}
	names := map[string]time.Duration{}
	for _, p := range w.view.peers {
		up, heard := p.isFresh(now, w.timing), w.hearChannels(p)
		if p.aside = !heard.Superseded.IsZero() && !p.handshake.After(heard.Superseded); p.aside {
			t.peers = append(t.peers, targetPeer{key: p.key, preshared: p.preshared, aside: true})
			continue
		}
		lost := heard.State == channelLost
		if e := &p.endpoint; e.host != "" && (len(e.addresses) == 0 || !isAddress(e.host)) {
			names[e.host] = w.timing.lookup
			if !up || lost {
				names[e.host] = w.timing.lookupDown
			}
			e.setAddresses(w.view.resolver.known(e.host))
		}
		one := targetPeer{key: p.key, preshared: p.preshared, networks: p.networks}
		one.endpoint = p.endpoint.choose(circumstances{
			current: toAddrPort(p.current.Endpoint), fresh: up && !p.ended.After(p.handshake), up: up && !lost,
			now: now, retry: w.timing.retry,
			blocked: func(a netip.Addr) error { return w.open.blocked(a, carried(want.peers)) },
		})
		if t.keepalive == 0 && !up && p.endpoint.told.IsValid() && now.Sub(p.greeted) >= w.timing.greet {
			one.greet, p.greeted = true, now
		}
		if p.renewSession(&heard, now) {
			one.renew = true
			if heard.Robbed && p.left.IsValid() {
				one.endpoint = p.left
			}
		}
		t.peers = append(t.peers, one)
	}
	w.view.resolver.setNames(names)
	slices.SortFunc(t.peers, func(a, b targetPeer) int { return slices.Compare(a.key[:], b.key[:]) })
	return t
}

func isAddress(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil
}

// report logs what is wrong with the device, once.
func (w *worker) report(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if w.open.reported == text {
		return
	}
	w.open.reported = text
	if err != nil {
		w.log.Error("links carry nothing: the WireGuard device is not as it shall be", "interface", w.open.name, "error", err)
	}
}

// makeStatuses makes the states of the links. With failure the device is not as it shall be.
func (w *worker) makeStatuses(want *desired, now time.Time, failure error) {
	own := want.key.Public()
	all, o := make([]link.Status, 0, len(w.view.links)), &observation{}
	if w.open.backend != nil {
		o.kind = w.open.backend.Kind()
	}
	first := map[*peer]bool{}
	for _, entry := range w.view.links {
		st := entry.status
		st.Link = entry.name
		state, reason := w.judgeLink(entry, want, own, now)
		judged := state
		if state, reason = w.askChannel(entry, &st, state, reason); judged == link.Up && state == link.Down {
			reason += w.explainSilence(entry.peer, want, own, now)
		}
		if errors.Is(failure, errHangs) {
			state = link.Down
		}
		if failure != nil && state != link.Up {
			reason = cutText(failure.Error())
		}
		st.Reason = reason
		setState(&st, state, now)
		if p := entry.peer; p != nil {
			st.Remote = ""
			if p.remote.IsValid() && p.isFresh(now, w.timing) {
				st.Remote = p.remote.String()
			}
			if !first[p] { // links of one peer share its packets
				first[p] = true
				o.bytes = append(o.bytes, linkBytes{entry.name, p.counters.rx, p.counters.tx})
				st.RxBytes, st.TxBytes = uint64(p.counters.rx), uint64(p.counters.tx)
			}
		}
		entry.status = st
		all = append(all, st)
	}
	before := *w.statuses.Swap(&all)
	beforeKind := w.seen.Swap(o).kind
	if w.changed != nil && (!slices.EqualFunc(before, all, isSameStatus) || beforeKind != o.kind) {
		w.logChanges(before, all)
		w.changed()
	}
}

// setState sets the state of a link, and counts its ends.
func setState(st *link.Status, state link.State, now time.Time) {
	if st.State == state {
		return
	}
	if st.State == link.Up {
		st.Downs++
	}
	st.State, st.Since = state, now
}

// judgeLink returns the state of a link and its reason.
func (w *worker) judgeLink(
	entry *linkEntry, want *desired, own mesh.PublicKey, now time.Time,
) (link.State, string) {
	switch {
	case want.key == (mesh.SecretKey{}):
		return link.Idle, "this cluster has no private key"
	case entry.peer == nil:
		return link.Down, errOwnKey.Error()
	}
	why := entry.peer.endpoint.tunnel
	if !entry.peer.isFresh(now, w.timing) {
		why = w.findObstacle(entry.peer, want)
	}
	return entry.peer.judge(now, w.timing, own, why)
}

// findObstacle says why no packet gets to the endpoint of a peer; nil: one may.
func (w *worker) findObstacle(p *peer, want *desired) error {
	if a := toAddrPort(p.current.Endpoint); p.endpoint.tunnel == nil && a.IsValid() {
		return w.open.blocked(a.Addr(), carried(want.peers))
	}
	return p.endpoint.tunnel
}

// explainSilence adds to the reason of a link whose peer does not answer in its tunnel what the device knows.
func (w *worker) explainSilence(p *peer, want *desired, own mesh.PublicKey, now time.Time) string {
	if p.aside || p.alone.IsZero() || now.Sub(p.alone) < w.timing.suspect {
		return ""
	}
	return ": " + p.explain(now.Sub(p.alone), w.timing, own, w.findObstacle(p, want))
}

// askChannel adds what the control channel of a link knows to its status. A link is not Up while the peer, which is a
// kubelink, does not answer there.
func (w *worker) askChannel(entry *linkEntry, st *link.Status, state link.State, reason string) (link.State, string) {
	if p := entry.peer; p != nil && !p.handshake.IsZero() && !p.aside {
		w.channels.NoteHandshake(entry.name, p.seen)
	}
	c := w.channels.StatusOf(entry.name)
	st.Announced, st.Offers, st.Refused, st.Note = c.Announced, c.Offers, c.Refused, c.Note
	st.RTT, st.Dialled, st.Accepted = c.RTT, c.Dialled, c.Accepted
	switch {
	case !c.Superseded.IsZero(), state == link.Up && c.State == channelLost:
		return link.Down, c.Reason
	case state == link.Down && c.State == channelAlive && entry.peer != nil: // a session may last without handshake
		return link.Up, ""
	}
	return state, reason
}

// hearChannels puts together what the control channels of a peer's links say that concerns its session: channelLost if
// one says so, and the latest times.
func (w *worker) hearChannels(p *peer) (all channelStatus) {
	for _, name := range p.links {
		c := w.channels.StatusOf(name)
		if c.State == channelLost {
			all.State = channelLost
		}
		if c.Superseded.After(all.Superseded) {
			all.Superseded = c.Superseded
		}
		if c.Renew.After(all.Renew) {
			all.Renew, all.Robbed, all.Silent = c.Renew, c.Robbed, c.Silent
		}
	}
	return all
}

// logChanges logs links that are Up or Down since now.
func (w *worker) logChanges(before, now []link.Status) {
	states := make(map[string]link.State, len(before))
	for i := range before {
		states[before[i].Link] = before[i].State
	}
	for i := range now {
		switch s := &now[i]; {
		case states[s.Link] == s.State:
		case s.State == link.Up:
			w.log.Info("link is up", "link", s.Link, "remote", s.Remote)
		case s.State == link.Down:
			w.log.Warn("link is down", "link", s.Link, "reason", s.Reason)
		}
	}
}

// isSameStatus tells whether both say the same to users. A round-trip time changes with each packet.
func isSameStatus(a, b link.Status) bool {
	a.RTT, b.RTT = min(a.RTT, 1), min(b.RTT, 1)
	a.Dialled, a.Accepted = b.Dialled, b.Accepted
	a.RxBytes, a.TxBytes = b.RxBytes, b.TxBytes
	return a == b
}

// carried are the links, as link.CheckCarrier asks for them.
type carried []mesh.Peer

func (c carried) IsLocal(a netip.Addr) bool {
	return slices.ContainsFunc(c, func(p mesh.Peer) bool { return slices.Contains(p.Local.Addrs(), a) })
}

func (c carried) FindNetwork(a netip.Addr) (network netip.Prefix, link string) {
	take := func(n netip.Prefix, of string) {
		if n.Contains(a) && (!network.IsValid() || n.Bits() > network.Bits()) {
			network, link = n.Masked(), of
		}
	}
	for i := range c {
		for _, n := range c[i].Networks {
			take(n, c[i].Link)
		}
		take(c[i].Local.SameFamily(a), "")
	}
	return network, link
}
