// Package apizone has the names that come from the API servers of clusters: one instance of the kubernetes
// plugin of CoreDNS for each cluster. They start and end with the links, wait for none of each other, and
// a change of credentials is seamless: the new instance takes over when it has loaded all names.
package apizone

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker/zone"
)

// Access is how the API of a cluster is to be reached.
type Access struct {
	apiSource
	link      string // the KubeLink; empty: the local cluster
	announced bool   // by the peer: nobody here has asked for it
	err       error  // why the source is not known; what ran before goes on
}

// Zones has one backend for each Access.
type Zones struct {
	log     *slog.Logger
	changed func() // what a backend says of itself is another
	answers *answers

	mu  sync.Mutex
	all map[string]*backend // by zone
}

// New has no backends yet. It calls changed when the Status of one has changed.
func New(log *slog.Logger, changed func()) *Zones {
	return &Zones{log: log, changed: changed, answers: newAnswers()}
}

// Set tells which backends there are to be, and which links are usable: a cluster that cannot be
// reached is not tried.
func (z *Zones) Set(wanted []Access, usable func(link string) bool) map[string]zone.Backend {
	z.mu.Lock()
	defer z.mu.Unlock()
	all, result := make(map[string]*backend, len(wanted)), make(map[string]zone.Backend, len(wanted))
	for _, a := range wanted {
		b := z.all[a.zone]
		if b == nil {
			b = &backend{set: z}
		}
		b.update(a, a.link == "" || usable(a.link))
		all[a.zone], result[a.zone] = b, b
	}
	for name, b := range z.all {
		if all[name] == nil {
			b.next.stop()
			b.next = nil
			b.current.Load().stop()
		}
	}
	z.all = all
	return result
}

// Status is what is known of the names of one cluster.
type Status struct {
	Loaded    bool
	Err       error // what keeps the names from being loaded or up to date
	Announced bool  // the peer announced the access: no user asked for it
}

// Statuses tells the Status of each cluster, by zone.
func (z *Zones) Statuses() map[string]Status {
	z.mu.Lock()
	defer z.mu.Unlock()
	all := make(map[string]Status, len(z.all))
	for name, b := range z.all {
		all[name] = Status{Loaded: b.current.Load() != nil, Err: b.failure(), Announced: b.announced}
	}
	return all
}

// backend answers for a cluster. It implements zone.Backend.
type backend struct {
	set     *Zones
	current atomic.Pointer[instance] // has all names; nil: not yet
	reason  atomic.Pointer[error]    // why there is no current instance

	// What follows is guarded by set.mu.
	Access
	usable bool
	next   *instance // loads names, to become the current one
	told   string    // trouble as it was logged
}

// Answer implements zone.Backend.
func (b *backend) Answer(ctx context.Context, state *request.Request) (*dns.Msg, error) {
	if i := b.current.Load(); i != nil {
		return i.answer(ctx, state)
	}
	return nil, *b.reason.Load()
}

// Services are the names of the services with the address in the cluster. The error is that of Answer.
func (b *backend) Services(address netip.Addr) ([]string, error) {
	if i := b.current.Load(); i != nil {
		return i.services(address.String()), nil
	}
	return nil, *b.reason.Load()
}

// Loading implements zone.Backend.
func (b *backend) Loading() bool {
	if b.current.Load() != nil {
		return false
	}
	_, pending := (*b.reason.Load()).(pending)
	return pending
}

// pending is why there are no names while that is no reason to do without: nothing is wrong, or what is wrong is an offer
// of the peer.
type pending struct{ error }

// update brings the instances in line with what is wanted.
func (b *backend) update(a Access, usable bool) {
	b.Access, b.usable = a, usable
	current := b.current.Load()
	if a.err == nil {
		inUse := current != nil && current.apiSource == a.apiSource
		if b.next != nil && (inUse || b.next.apiSource != a.apiSource) {
			b.next.stop()
			b.next = nil
		}
		if b.next == nil && !inUse && usable {
			b.next = newInstance(a.apiSource, b.set.answers, b.synced, b.failed)
		}
	}
	for _, i := range []*instance{current, b.next} {
		switch {
		case i == nil:
		case usable:
			i.resume()
		default:
			i.suspend()
		}
	}
	b.explain()
}

// synced lets a new instance take over.
func (b *backend) synced(i *instance) {
	b.set.mu.Lock()
	if b.next == i { // else there is a newer one, or none is wanted
		b.next = nil
		b.current.Swap(i).stop()
		b.set.log.Info("names of the cluster are loaded from its API server", "zone", b.zone)
		b.explain()
	}
	b.set.mu.Unlock()
	b.set.changed()
}

// failed is called when an instance fails in another way than before, or does not fail any more.
func (b *backend) failed() {
	b.set.mu.Lock()
	b.explain()
	b.set.mu.Unlock()
	b.set.changed()
}

// explain keeps the reason up to date, and logs trouble once.
func (b *backend) explain() {
	why, text := b.trouble(), ""
	if why != nil {
		text = why.Error()
	}
	if text != b.told {
		b.told = text
		if why != nil {
			b.set.log.Warn("names of the cluster cannot be loaded or kept up to date", "zone", b.zone, "error", why)
		} else {
			b.set.log.Info("names of the cluster: no more errors", "zone", b.zone)
		}
	}
	if why == nil {
		why = pending{fmt.Errorf("names of cluster %s are being loaded from its API server", b.zone)}
	}
	b.reason.Store(&why)
}

// trouble is what keeps names from being loaded or up to date; nil if nothing is known to. What happens
// behind a link that is down is no wonder.
func (b *backend) trouble() error {
	err := b.failure()
	if err != nil && b.announced {
		err = pending{err}
	}
	return err
}

// failure is trouble, whoever has asked for the access.
func (b *backend) failure() error {
	if errors.Is(b.err, errPending) || !b.usable {
		return nil
	}
	if b.err != nil {
		return b.err
	}
	if b.next != nil {
		return b.next.failure()
	}
	if i := b.current.Load(); i != nil {
		return i.failure()
	}
	return nil
}
