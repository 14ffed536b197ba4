// Package apizone has the names that come from the API servers of clusters: one instance of the kubernetes
// plugin of CoreDNS for each cluster. Instances start and end with the links, and no instance waits for
// another one. A change of credentials is seamless: the new instance takes over when it has loaded all names.
package apizone

// This file keeps the set of clusters: which there are, what is known of each, and the end of all.

import (
	"log/slog"
	"sync"

	"github.com/mandelsoft/kubelink/broker/zone"
)

// Zones has one backend for each Access.
type Zones struct {
	log     *slog.Logger
	changed func()
	replies *replyCache
	budget  loadBudget

	running sync.WaitGroup // the goroutines of all instances

	// mu guards backends, and the fields of each backend that say so. Queries do not take it. Nothing under it waits
	// for the network: closing a TCP connection (instance.stop, transport.suspend) only hands it to the kernel.
	mu       sync.Mutex
	backends map[string]*backend // by zone
}

// New makes an empty set. It calls changed, without any lock, when the Status of a cluster has changed.
func New(log *slog.Logger, changed func()) *Zones {
	return &Zones{log: log, changed: changed, replies: newReplyCache()}
}

// Set replaces the clusters that the broker loads names of, and says which links are usable: an API server behind a
// link that is not usable gets no requests. It returns the backends by zone. Set starts and ends instances, and waits
// for none.
func (z *Zones) Set(wanted []Access, usable func(link string) bool) map[string]zone.Backend {
	z.mu.Lock()
	defer z.mu.Unlock()
	backends, result := make(map[string]*backend, len(wanted)), make(map[string]zone.Backend, len(wanted))
	for _, a := range wanted {
		b := z.backends[a.zone]
		if b == nil {
			b = &backend{zones: z}
		}
		b.setAccess(a, a.link == "" || usable(a.link))
		backends[a.zone], result[a.zone] = b, b
	}
	for name, b := range z.backends {
		if backends[name] == nil {
			b.stopInstances()
		}
	}
	z.backends = backends
	return result
}

// Close ends all instances and waits for the end of their goroutines. The caller may hold locks, except locks that
// the function changed takes. Backends still answer queries from the names that they had. Set must not run meanwhile;
// it may afterwards.
func (z *Zones) Close() {
	z.Set(nil, nil)
	z.running.Wait()
}

// Status is what is known of the names of one cluster.
type Status struct {
	Loaded    bool  // the cluster's names can be resolved
	Err       error // one line: what keeps names from being loaded or up to date; nil: nothing is known to
	Announced bool  // the peer announced the access: no user has asked for it
}

// Statuses returns the Status of each cluster, by zone.
func (z *Zones) Statuses() map[string]Status {
	z.mu.Lock()
	defer z.mu.Unlock()
	statuses := make(map[string]Status, len(z.backends))
	for name, b := range z.backends {
		statuses[name] = Status{Loaded: b.current.Load() != nil, Err: b.currentError(), Announced: b.announced}
	}
	return statuses
}
