package broker

// The sources of clusters whose names come from their API: one instance of the kubernetes plugin each.
// They start and end with the links, wait for none of each other, and a change of credentials is
// seamless: the new instance takes over when it has loaded all names.

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

// access is how the API of a cluster is to be reached.
type access struct {
	apiSource
	link      string // the KubeLink; empty: the local cluster
	announced bool   // by the peer: nobody here has asked for it
	err       error  // why the source is not known; what ran before goes on
}

// backends has one backend for each access.
type backends struct {
	log     *slog.Logger
	changed func() // what a backend says of itself is another
	answers *answers

	mu  sync.Mutex
	all map[string]*backend // by zone
}

// set tells which backends there are to be, and which links are usable: a cluster that cannot be
// reached is not tried.
func (bs *backends) set(wanted []access, usable func(link string) bool) map[string]zone.Backend {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	all, result := make(map[string]*backend, len(wanted)), make(map[string]zone.Backend, len(wanted))
	for _, a := range wanted {
		b := bs.all[a.zone]
		if b == nil {
			b = &backend{set: bs}
		}
		b.update(a, a.link == "" || usable(a.link))
		all[a.zone], result[a.zone] = b, b
	}
	for name, b := range bs.all {
		if all[name] == nil {
			b.next.stop()
			b.next = nil
			b.current.Load().stop()
		}
	}
	bs.all = all
	return result
}

// each tells of each backend whether its names are loaded, and what keeps them from being loaded or up
// to date.
func (bs *backends) each(f func(zone string, loaded bool, trouble error)) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	for name, b := range bs.all {
		f(name, b.current.Load() != nil, b.trouble())
	}
}

// backend answers for a cluster. It implements zone.Backend.
type backend struct {
	set     *backends
	current atomic.Pointer[instance] // has all names; nil: not yet
	reason  atomic.Pointer[error]    // why there is no current instance

	// What follows is guarded by set.mu.
	access
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
func (b *backend) update(a access, usable bool) {
	b.access, b.usable = a, usable
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
