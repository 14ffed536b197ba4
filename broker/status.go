package broker

// What goes back to the API: status and events of links, finalizers, the managed secret, links of
// peers that connected by themselves. One writer, latest wish wins: the reconciler never waits
// for the API server.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/announce"
	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/apizone"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/stubdomain"
)

// outcome is all that one reconciliation wants to have written.
type outcome struct {
	links       []linkOutcome
	create      map[string]*v1alpha1.KubeLink // by name
	secret      *corev1.Secret                // create if it has no resourceVersion
	certificate bool                          // ask the certificate service
	stubs       []stubdomain.Stub             // coredns-configure
}

type linkOutcome struct {
	object    *v1alpha1.KubeLink // as read from the cache
	state     v1alpha1.State
	message   string
	finalizer bool
	facts     announce.Facts // from its peer
}

// outcome says for each object what is to be seen of it.
func (r *reconciler) outcome(items []v1alpha1.KubeLink, s *mesh.State, applyErr, credErr error) *outcome {
	b := r.b
	o := &outcome{secret: b.creds.Secret, certificate: b.creds.Request}
	if own := b.nsAddresses(); b.cfg.ConfigureDNS && len(own) > 0 {
		o.stubs = stubdomain.Stubs(s.Zones, own[0])
	}
	_, _, advertiseErr := b.advertised(s)
	if text := oneLine(advertiseErr); text != b.unadvertised {
		if b.unadvertised = text; text != "" {
			b.log.Warn("not all is announced to peers that should be", "problem", text)
		}
	}
	var statuses []link.Status
	if b.bridge != nil {
		statuses = b.bridge.Statuses()
	}
	received := b.receiver.ReceiveAll(items, s, statuses, b.creds.Unencrypted(), b.log)
	meshes := map[string]mesh.Mesh{} // by LocalLink
	for _, m := range s.Meshes {
		meshes[m.Link] = m
	}
	links := map[string]mesh.Link{}
	for _, l := range s.Links {
		links[l.Name] = l
	}
	for i := range items {
		obj := &items[i]
		l := linkOutcome{object: obj, message: s.Notes[obj.Name]}
		local := obj.Spec.Endpoint == v1alpha1.EndpointLocal
		link, usable := links[obj.Name]
		problem, broken := s.Problems[obj.Name]
		if local && problem.State != v1alpha1.StateStale {
			l.finalizer = hasMembers(items, obj.Name)
		}
		switch {
		case local && b.cfg.Served != nil && !slices.Contains(b.cfg.Served, obj.Name):
			continue // another broker may speak for it
		case local && obj.DeletionTimestamp != nil:
			l.state, l.message = v1alpha1.StateDeleting, "waits for the deletion of "+strings.Join(meshes[obj.Name].Members, ", ")
		case broken:
			l.state, l.message = problem.State, problem.Message
		case local && errors.Join(credErr, applyErr) != nil:
			l.state, l.message = v1alpha1.StateError, oneLine(errors.Join(credErr, applyErr))
		case local:
			l.state, l.message = v1alpha1.StateUp, join(l.message, oneLine(advertiseErr))
		case !usable:
			continue // not served by this broker, or about to go
		case b.bridge == nil:
			l.state = v1alpha1.StateIdle
			l.message = join("mode none: this broker serves names, and carries no traffic", l.message)
		case !b.creds.Usable():
			l.state, l.message = v1alpha1.StateError, oneLine(credErr)
		default:
			l.state, l.message = b.linkState(link, join(l.message, received[obj.Name].Note))
			l.facts = received[obj.Name].Facts
		}
		o.links = append(o.links, l)
	}
	o.create = b.unknowns.take(items, s, &b.cfg)
	return o
}

// noteNames adds to the notes of links what is wrong with names that come from APIs.
func noteNames(s *mesh.State, statuses map[string]apizone.Status) {
	link, asks := map[string]string{}, map[string]bool{} // by zone
	for _, z := range s.Zones {
		for _, c := range z.Clusters {
			link[c.Name], asks[c.Name] = c.Link, c.Upstream.IsValid()
			for _, m := range s.Meshes {
				if c.Link == "" && m.Name == z.Mesh {
					link[c.Name] = m.Link
				}
			}
		}
	}
	for zone, st := range statuses {
		name := link[zone] // none for the mesh of the stanza: the log has it
		switch {
		case st.Err == nil || name == "":
		case st.Loaded:
			s.Notes[name] = join(s.Notes[name], "names may be out of date: "+oneLine(st.Err))
		default:
			what := "no names: "
			if st.Announced && asks[zone] {
				what = "names come from the DNS service of the cluster, not from its API server: "
			}
			s.Notes[name] = join(s.Notes[name], what+oneLine(st.Err))
		}
	}
}

// linkState is what the dataplane says of a usable link.
func (b *Broker) linkState(l mesh.Link, note string) (v1alpha1.State, string) {
	st, ok := b.bridge.Status(l.Peer)
	if !ok {
		return v1alpha1.StateIdle, note
	}
	if l.Peer != l.Name {
		if st.State == link.Up {
			return v1alpha1.StateUp, join("through "+l.Peer, note)
		}
		return v1alpha1.State(st.State), join(fmt.Sprintf("gateway %s is %s", l.Peer, st.State), st.Reason, note)
	}
	return v1alpha1.State(st.State), join(st.Reason, note)
}

func join(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), "; ")
}

func oneLine(err error) string {
	if err == nil {
		return ""
	}
	return strings.ReplaceAll(err.Error(), "\n", "; ")
}

func hasMembers(items []v1alpha1.KubeLink, local string) bool {
	name, _ := mesh.LinkName(local)
	return slices.ContainsFunc(items, func(o v1alpha1.KubeLink) bool {
		m, _ := mesh.LinkName(o.Name)
		return m == name && o.Spec.Endpoint != v1alpha1.EndpointLocal && o.DeletionTimestamp == nil
	})
}

// writer brings the latest outcome to the API server.
type writer struct {
	b        *Broker
	client   client.Client
	recorder events.EventRecorder

	mu      sync.Mutex
	pending *outcome
	reports []reportOutcome // of global names; after what is pending
	signal  chan struct{}

	// What follows belongs to Start.
	requested bool // the Certificate, by this writer
	dns       stubdomain.Configurer
	keeper    announce.Keeper             // of what peers announce
	writes    map[types.UID]*statusWrites // by link
	rest      time.Duration               // until a status may be written that was held back; 0: none was
}

// The status of a link is written this often at once, and then at this interval. Each write wakes all who watch the link:
// two brokers that see it in different ways would write in turns as fast as the API server lets them.
const (
	statusBurst    = 60
	statusInterval = 5 * time.Second
)

// statusWrites are those of one link.
type statusWrites struct {
	*rate.Limiter
	told bool // that it is limited
}

func newWriter(b *Broker, mgr ctrl.Manager) *writer {
	return &writer{
		b: b, client: mgr.GetClient(), recorder: mgr.GetEventRecorder("kubelink"),
		signal: make(chan struct{}, 1), writes: map[types.UID]*statusWrites{},
		keeper: announce.Keeper{Client: mgr.GetClient(), Namespace: b.cfg.Namespace, Log: b.log},
		dns: stubdomain.Configurer{
			Client: mgr.GetClient(), Reader: mgr.GetAPIReader(), Informers: mgr.GetCache(),
			Restart: &b.dnsRestart, Interval: resync, Wake: b.wake, Log: b.log,
		},
	}
}

func (w *writer) want(o *outcome) {
	w.mu.Lock()
	defer w.mu.Unlock()
	o.adopt(w.pending)
	w.pending = o
	w.wake()
}

// wantReports replaces what was wanted of global names.
func (w *writer) wantReports(reports []reportOutcome) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reports = reports
	w.wake()
}

func (w *writer) wake() {
	select {
	case w.signal <- struct{}{}:
	default:
	}
}

// adopt takes over from an older outcome, which may be nil, what is not wished for again by itself.
func (o *outcome) adopt(older *outcome) {
	if older == nil {
		return
	}
	for name, l := range older.create {
		if len(o.create) < maxUnknown {
			o.create[name] = l
		}
	}
}

// Start runs until ctx ends. A failed write is tried again with what is wanted by then.
func (w *writer) Start(ctx context.Context) error {
	const first, longest = 100 * time.Millisecond, 5 * time.Second
	var retry, later <-chan time.Time
	delay := first
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.signal:
		case <-retry:
		case <-later:
			w.b.wake()
			later = nil
			continue
		}
		retry = nil
		err := w.writeAll(ctx)
		if later = nil; w.rest > 0 {
			later = time.After(w.rest)
		}
		if err != nil && ctx.Err() == nil {
			w.b.log.Warn("cannot write to the API server, trying again", "error", err, "delay", delay)
			retry = time.After(delay/2 + rand.N(delay/2))
			delay = min(2*delay, longest)
			continue
		}
		delay = first
	}
}

// writeAll writes what is wanted: links first, and then global names, of which there may be many, until
// there is something new of links.
func (w *writer) writeAll(ctx context.Context) error {
	w.mu.Lock()
	o := w.pending
	w.pending = nil
	w.mu.Unlock()
	if o != nil {
		w.rest = 0
		if err := w.write(ctx, o); err != nil {
			// What is wrong with a link is no reason for names to wait; that nobody answers is.
			if status := apierrors.APIStatus(nil); errors.As(err, &status) {
				err = errors.Join(err, w.writeReports(ctx))
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.pending == nil {
				w.pending = o
			} else {
				w.pending.adopt(o)
			}
			return err
		}
	}
	return w.writeReports(ctx)
}

func (w *writer) writeReports(ctx context.Context) error {
	for ctx.Err() == nil {
		w.mu.Lock()
		reports := w.reports
		interrupted := w.pending != nil
		w.mu.Unlock()
		if interrupted || len(reports) == 0 {
			return nil
		}
		ctx, cancel := context.WithTimeout(ctx, apiTimeout)
		err := reports[0].write(ctx, w.client)
		cancel()
		done := 1
		switch {
		case err == nil, apierrors.IsNotFound(err), apierrors.IsConflict(err): // both: the watch will tell
		case apierrors.IsForbidden(err), apierrors.IsInvalid(err):
			w.b.log.Warn("cannot write the status of global names", "object", client.ObjectKeyFromObject(reports[0].object), "error", err)
			if apierrors.IsForbidden(err) {
				done = len(reports) // the others, too
			}
		default:
			return err
		}
		w.mu.Lock()
		if len(w.reports) > 0 && w.reports[0].object == reports[0].object { // not replaced meanwhile
			w.reports = w.reports[done:]
		}
		w.mu.Unlock()
	}
	return nil
}

func (w *writer) write(ctx context.Context, o *outcome) error {
	var errs []error
	do := func(what string, f func(context.Context) error) bool {
		ctx, cancel := context.WithTimeout(ctx, apiTimeout)
		defer cancel()
		err := f(ctx)
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) { // both: the watch will tell
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
		// Nobody is there: the others would fail the same way, only later.
		var status apierrors.APIStatus
		var netErr net.Error
		return err == nil || errors.As(err, &status) || !errors.As(err, &netErr)
	}
	if s := o.secret; s != nil {
		if !do("secret "+s.Name, func(ctx context.Context) error {
			if s.ResourceVersion == "" {
				return w.client.Create(ctx, s.DeepCopy())
			}
			return w.client.Update(ctx, s.DeepCopy())
		}) {
			return errors.Join(errs...)
		}
	}
	if o.certificate && !w.requested {
		if !do("certificate", func(ctx context.Context) error {
			err := w.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(w.b.cfg.pkiConfig().CertificateRequest()), client.FieldOwner("kubelink"), client.ForceOwnership)
			w.requested = err == nil
			return err
		}) {
			return errors.Join(errs...)
		}
	}
	if w.b.cfg.ConfigureDNS {
		if !do("cluster DNS", func(ctx context.Context) error { return w.dns.Configure(ctx, o.stubs) }) {
			return errors.Join(errs...)
		}
	}
	if len(w.writes) > len(o.links) { // of links that are gone, too
		maps.DeleteFunc(w.writes, func(uid types.UID, _ *statusWrites) bool {
			return !slices.ContainsFunc(o.links, func(l linkOutcome) bool { return l.object.UID == uid })
		})
	}
	for _, l := range o.links {
		if !do("KubeLink "+l.object.Name, func(ctx context.Context) error { return w.link(ctx, l) }) {
			return errors.Join(errs...)
		}
	}
	for name, l := range o.create {
		if !do("create KubeLink "+name, func(ctx context.Context) error {
			err := w.client.Create(ctx, l.DeepCopy())
			switch {
			case apierrors.IsAlreadyExists(err):
				err = nil
			case apierrors.IsInvalid(err), apierrors.IsForbidden(err):
				w.b.log.Warn("cannot create the link of a peer that connected by itself", "link", name, "error", err)
				err = nil // the next try would end the same way
			}
			if err == nil {
				delete(o.create, name)
			}
			return err
		}) {
			break
		}
	}
	return errors.Join(errs...)
}

// link writes finalizer, announced facts and status of one link, where they differ.
func (w *writer) link(ctx context.Context, l linkOutcome) error {
	obj := l.object.DeepCopy()
	has := slices.Contains(obj.Finalizers, v1alpha1.Finalizer)
	if has != l.finalizer && (has || obj.DeletionTimestamp == nil) {
		if l.finalizer {
			obj.Finalizers = append(obj.Finalizers, v1alpha1.Finalizer)
		} else {
			obj.Finalizers = slices.DeleteFunc(obj.Finalizers, func(f string) bool { return f == v1alpha1.Finalizer })
		}
		if err := w.client.Patch(ctx, obj, client.MergeFromWithOptions(l.object, client.MergeFromWithOptimisticLock{})); err != nil {
			return err
		}
		if !l.finalizer && obj.DeletionTimestamp != nil {
			return nil // gone
		}
	}
	note, factsErr := w.keeper.Keep(ctx, l.object, l.facts)
	l.message = join(l.message, note)
	if note := w.dns.Note(); l.object.Spec.Endpoint == v1alpha1.EndpointLocal && note != "" {
		l.message = join(l.message, "coredns-configure: "+note)
	}
	before := obj.DeepCopy()
	st := &obj.Status
	st.State, st.Message, st.ObservedGeneration = l.state, l.message, obj.Generation
	st.Gateway = w.b.cfg.NodeIP
	accepted, ready := metav1.ConditionTrue, metav1.ConditionFalse
	if l.state == v1alpha1.StateInvalid || l.state == v1alpha1.StateStale {
		accepted = metav1.ConditionFalse
	}
	if l.state == v1alpha1.StateUp {
		ready = metav1.ConditionTrue
	}
	for _, c := range []metav1.Condition{
		{Type: v1alpha1.ConditionAccepted, Status: accepted},
		{Type: v1alpha1.ConditionReady, Status: ready},
	} {
		c.Reason, c.Message, c.ObservedGeneration = string(l.state), l.message, obj.Generation
		if c.Type == v1alpha1.ConditionAccepted && accepted == metav1.ConditionTrue {
			c.Reason, c.Message = "Valid", ""
		}
		meta.SetStatusCondition(&st.Conditions, c)
	}
	if equality.Semantic.DeepEqual(before.Status, *st) {
		return factsErr
	}
	writes := w.writes[obj.UID]
	if writes == nil {
		writes = &statusWrites{Limiter: rate.NewLimiter(rate.Every(statusInterval), statusBurst)}
		w.writes[obj.UID] = writes
	}
	if tokens := writes.Tokens(); tokens < 1 {
		rest := time.Duration((1 - tokens) / float64(writes.Limit()) * float64(time.Second))
		w.rest = min(cmp.Or(w.rest, rest), rest)
		if !writes.told {
			w.b.log.Warn("the status of a link changes too often: it is written at intervals from now on. Either the link flaps, or another broker with another configuration runs in this cluster",
				"link", obj.Name, "interval", statusInterval, "state", l.state, "message", l.message)
			writes.told = true
		}
		return factsErr
	} else if tokens > statusBurst/2 {
		writes.told = false
	}
	// What we wrote last may not be in the cache yet: the times of transitions, and events, would be of a change that is none.
	if err := w.client.Status().Patch(ctx, obj, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})); err != nil {
		return errors.Join(factsErr, err)
	}
	writes.Allow() // what failed wakes nobody
	if before.Status.State != l.state {
		kind := corev1.EventTypeWarning
		if l.state == v1alpha1.StateUp || l.state == v1alpha1.StateIdle || l.state == v1alpha1.StateDeleting {
			kind = corev1.EventTypeNormal
		}
		note := l.message
		if note == "" {
			note = "link is " + string(l.state)
		}
		w.recorder.Eventf(obj, nil, kind, "Link"+string(l.state), "Reconcile", "%s", note)
		w.b.log.Info("link "+string(l.state), "link", obj.Name, "message", l.message)
	}
	return factsErr
}

// unknownPeers are authenticated peers without a link, seen by the bridge (auto-connect).
type unknownPeers struct {
	mu    sync.Mutex
	peers map[string]link.UnknownPeer // by address

	made []madeLink // lately; maybe they are not seen yet. Belongs to take.
}

// madeLink counts as a link until it shows, or was not created after all.
type madeLink struct {
	v1alpha1.KubeLink
	until time.Time
}

const madeLinkTime = 30 * time.Second

// maxUnknown bounds them; who is left out comes again.
const maxUnknown = 256

func (b *Broker) unknownPeer(p link.UnknownPeer) {
	u := &b.unknowns
	u.mu.Lock()
	if u.peers == nil {
		u.peers = map[string]link.UnknownPeer{}
	}
	if len(u.peers) < maxUnknown {
		u.peers[p.Address.String()] = p
	}
	u.mu.Unlock()
	b.wake()
}

// take makes links of the peers that belong to one of our meshes and have none. What a peer announces
// is not trusted: a certificate gets one link, and none that cannot be used or takes from others.
func (u *unknownPeers) take(items []v1alpha1.KubeLink, s *mesh.State, cfg *Config) map[string]*v1alpha1.KubeLink {
	u.mu.Lock()
	peers := u.peers
	u.peers = nil
	u.mu.Unlock()
	result := map[string]*v1alpha1.KubeLink{}
	if !cfg.AutoConnect || len(peers) == 0 { // auto-connect: not any more
		return result
	}
	items = slices.Clone(items)
	u.made = slices.DeleteFunc(u.made, func(m madeLink) bool {
		return time.Now().After(m.until) || slices.ContainsFunc(items, func(o v1alpha1.KubeLink) bool { return o.Name == m.Name })
	})
	for _, m := range u.made {
		items = append(items, m.KubeLink)
	}
	for _, p := range peers {
		for _, m := range s.Meshes {
			if !slices.Contains(m.Addresses.Masked(), p.Address.Masked()) || p.AdvertisedPort == 0 {
				continue
			}
			host, known := "", false
			for _, name := range p.Names {
				h, _, err := mesh.Endpoint(name, p.AdvertisedPort)
				if err != nil {
					continue // a wildcard, for example
				}
				if host == "" {
					host = h
				}
				known = known || slices.ContainsFunc(items, func(o v1alpha1.KubeLink) bool {
					other, _, err := mesh.Endpoint(o.Spec.Endpoint, p.AdvertisedPort)
					in, _ := mesh.LinkName(o.Name)
					return err == nil && other == h && in == m.Name
				})
			}
			if host == "" || known {
				continue
			}
			l := v1alpha1.KubeLink{}
			l.Name = mesh.ObjectName(m.Name, strings.NewReplacer(".", "-", ":", "-").Replace(p.Address.Addr().StringExpanded()))
			l.CreationTimestamp = metav1.Now() // the youngest: it wins over none
			l.Spec.ClusterAddress = p.Address.String()
			l.Spec.Endpoint = net.JoinHostPort(host, fmt.Sprint(p.AdvertisedPort))
			if private(p.ServiceCIDR) {
				l.Spec.CIDR = p.ServiceCIDR.String()
			}
			if slices.ContainsFunc(items, func(o v1alpha1.KubeLink) bool { return o.Name == l.Name }) {
				continue
			}
			all := append(items, l)
			if problem, bad := mesh.Build(mesh.Objects{Links: all}, cfg.Local).Problems[l.Name]; bad {
				slog.Warn("a peer that connected by itself gets no link", "plugin", "kubelink", "names", p.Names, "remote", p.Remote, "problem", problem.Message)
				continue
			}
			items, u.made = all, append(u.made, madeLink{l, time.Now().Add(madeLinkTime)})
			made := l
			made.CreationTimestamp = metav1.Time{}
			result[l.Name] = &made
		}
	}
	return result
}

// private says whether a network lies in the ranges for private use (RFC 1918, RFC 4193) or for
// carriers (RFC 6598), from which clusters take their service networks.
func private(p netip.Prefix) bool {
	return slices.ContainsFunc(privateRanges, func(r netip.Prefix) bool {
		return p.IsValid() && r.Bits() <= p.Bits() && r.Contains(p.Addr())
	})
}

var privateRanges = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fc00::/7"),
}
