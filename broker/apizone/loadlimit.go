package apizone

// This file bounds what the objects of clusters take: they come from other clusters, and the plugins read them into
// memory. What is loaded is counted, and what changes later, too: when there were too many changes, the objects are
// listed anew, and count as what they are then.

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Variables, as tests have no time for the product's values.
var (
	// maxLoad bounds the objects of a resource of one cluster, in bytes of their encoding.
	maxLoad int64 = 256 << 20
	// maxLoadOfAll bounds the objects of all other clusters together.
	maxLoadOfAll int64 = 512 << 20
	// overloadPause is the time between two attempts to load more than that.
	overloadPause = 10 * time.Minute
)

// loadBudget counts the objects of all other clusters.
type loadBudget struct {
	mu   sync.Mutex // guards used
	used int64      // bytes
}

// add counts n bytes more, or less. It is false if there are more than maxLoadOfAll. A nil budget has no bound.
func (b *loadBudget) add(n int64) bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used += n
	return b.used <= maxLoadOfAll
}

// loadLimit counts how much was loaded of each resource of a cluster.
type loadLimit struct {
	budget *loadBudget // nil: for the own cluster

	mu         sync.Mutex           // guards what follows
	sizes      map[string]int64     // bytes read since a list began, by resource
	overloaded map[string]time.Time // when a resource exceeded a bound
	outdated   map[string]bool      // resources with so many changes that they have to be listed anew
	relisted   map[string]time.Time // when that was so before
	released   bool
}

func newLoadLimit(budget *loadBudget) *loadLimit {
	return &loadLimit{
		budget: budget, sizes: map[string]int64{}, overloaded: map[string]time.Time{},
		outdated: map[string]bool{}, relisted: map[string]time.Time{},
	}
}

// beginList starts to count anew.
func (l *loadLimit) beginList(resource string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgetBytes(resource)
	delete(l.overloaded, resource)
	delete(l.outdated, resource)
}

// forgetBytes counts nothing for a resource. The caller holds mu.
func (l *loadLimit) forgetBytes(resource string) {
	if !l.released {
		l.budget.add(-l.sizes[resource])
	}
	l.sizes[resource] = 0
}

// addBytes counts n bytes of a list. The problem is the bound that this exceeds, empty if none: nothing of the list is
// kept.
func (l *loadLimit) addBytes(resource string, n int) (problem string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.countBytes(resource, n) {
		return ""
	}
	problem = fmt.Sprintf("it has more than %d MiB of %s: this is too much to load", maxLoad>>20, resource)
	if l.sizes[resource] <= maxLoad {
		problem = fmt.Sprintf("its %s and what all other clusters have are more than %d MiB: this is too much to load",
			resource, maxLoadOfAll>>20)
	}
	l.overloaded[resource] = time.Now()
	l.forgetBytes(resource)
	return problem
}

// addChanges counts n bytes of changes. It is false if that exceeds a bound: the objects have to be listed anew, and if
// that was so a while ago, they are too many.
func (l *loadLimit) addChanges(resource string, n int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.countBytes(resource, n) {
		return true
	}
	now := time.Now()
	if since, before := l.relisted[resource]; before && now.Sub(since) < overloadPause/10 {
		l.overloaded[resource] = now
	}
	l.outdated[resource], l.relisted[resource] = true, now
	return false
}

// countBytes counts n bytes and tells whether they fit. The caller holds mu.
func (l *loadLimit) countBytes(resource string, n int) bool {
	l.sizes[resource] += int64(n)
	fits := l.released || l.budget.add(int64(n))
	return fits && l.sizes[resource] <= maxLoad
}

// isOutdated tells whether a resource has to be listed before it is watched.
func (l *loadLimit) isOutdated(resource string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.outdated[resource]
}

// release gives back what the cluster takes of the budget.
func (l *loadLimit) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for resource := range l.sizes {
		l.forgetBytes(resource)
	}
	l.released = true
}

// awaitPause waits until a resource that exceeded a bound may be loaded again. The error is that of ctx.
func (l *loadLimit) awaitPause(ctx context.Context, resource string) error {
	l.mu.Lock()
	since := l.overloaded[resource]
	l.mu.Unlock()
	if since.IsZero() {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Until(since.Add(overloadPause))):
		return nil
	}
}
