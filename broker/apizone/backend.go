package apizone

// This file has the backend of one cluster: which instance answers, which one is to replace it, and why there are no
// names yet.

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"

	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker/onchange"
)

// backend answers for a cluster. It implements zone.Backend.
type backend struct {
	zones   *Zones
	current atomic.Pointer[instance] // has all names; nil: not yet
	absence atomic.Pointer[absence]  // why there is no current instance

	// What follows is guarded by zones.mu.
	Access
	usable bool
	next   *instance      // loads names, to become the current one
	logged onchange.Error // currentError as the log has it
}

// absence says why a backend has no names.
type absence struct {
	err     error
	loading bool // the cluster's DNS service may be queried meanwhile: see zone.Backend
}

// Answer implements zone.Backend.
func (b *backend) Answer(ctx context.Context, state *request.Request) (*dns.Msg, error) {
	if i := b.current.Load(); i != nil {
		return i.resolveQuery(ctx, state)
	}
	return nil, b.absence.Load().err
}

// Services are the names of the services with the address in the cluster. The error is that of Answer.
func (b *backend) Services(address netip.Addr) ([]string, error) {
	if i := b.current.Load(); i != nil {
		return i.serviceNames(address.String()), nil
	}
	return nil, b.absence.Load().err
}

// Loading implements zone.Backend.
func (b *backend) Loading() bool {
	return b.current.Load() == nil && b.absence.Load().loading
}

// setAccess starts, suspends, resumes and ends instances as the access and the link's state demand.
func (b *backend) setAccess(a Access, usable bool) {
	b.Access, b.usable = a, usable
	current := b.current.Load()
	if a.err == nil {
		inUse := current != nil && current.apiSource == a.apiSource
		if b.next != nil && (inUse || b.next.apiSource != a.apiSource) {
			b.next.stop()
			b.next = nil
		}
		if b.next == nil && !inUse && usable {
			b.next = startInstance(a.apiSource, b.zones, b.takeOver, b.errorChanged)
		}
	}
	for _, i := range []*instance{current, b.next} {
		switch {
		case i == nil:
		case usable:
			i.transport.resume()
		default:
			i.transport.suspend()
		}
	}
	b.updateAbsence()
}

// stopInstances ends what loads names and what keeps them up to date. The backend still answers from the names that
// it has.
func (b *backend) stopInstances() {
	if b.next != nil {
		b.next.stop()
		b.next = nil
	}
	if i := b.current.Load(); i != nil {
		i.stop()
	}
}

// takeOver makes an instance that has loaded all names the current one.
func (b *backend) takeOver(i *instance) {
	b.zones.mu.Lock()
	if b.next == i { // else there is a newer one, or none is wanted
		b.next = nil
		if old := b.current.Swap(i); old != nil {
			old.stop()
		}
		b.zones.log.Info("names of the cluster are loaded from its API server", "zone", b.zone)
		b.updateAbsence()
	}
	b.zones.mu.Unlock()
	b.zones.changed()
}

// errorChanged is called when an instance fails in another way than before, or does not fail any more.
func (b *backend) errorChanged() {
	b.zones.mu.Lock()
	b.updateAbsence()
	b.zones.mu.Unlock()
	b.zones.changed()
}

// updateAbsence sets the absence, and logs currentError when it has changed.
func (b *backend) updateAbsence() {
	err := b.currentError()
	if b.logged.Set(err) {
		if err != nil {
			b.zones.log.Warn("names of the cluster cannot be loaded or kept up to date", "zone", b.zone, "error", err)
		} else {
			b.zones.log.Info("names of the cluster: no more errors", "zone", b.zone)
		}
	}
	// An offer of the peer that cannot be used is no reason to do without the cluster's DNS service.
	loading := err == nil || b.announced
	if err == nil {
		err = fmt.Errorf("names of cluster %s are being loaded from its API server", b.zone)
	}
	b.absence.Store(&absence{err: err, loading: loading})
}

// currentError is what keeps names from being loaded or up to date; nil if nothing is known to. That an API server
// behind an unusable link does not answer is no error of its own.
func (b *backend) currentError() error {
	if errors.Is(b.err, errPending) || !b.usable {
		return nil
	}
	if b.err != nil {
		return b.err
	}
	if b.next != nil {
		return b.next.transport.currentError()
	}
	if i := b.current.Load(); i != nil {
		return i.transport.currentError()
	}
	return nil
}
