package apizone

// This file bounds what the objects of a cluster take when they are loaded: they come from another cluster, and the
// plugin reads them into memory.

import (
	"context"
	"sync"
	"time"
)

// Variables, as tests have no time for the product's values.
var (
	// maxLoad bounds the objects of a resource as they are loaded, in bytes of their encoding.
	maxLoad int64 = 256 << 20
	// overloadPause is the time between two attempts to load more than maxLoad.
	overloadPause = 10 * time.Minute
)

// loadLimit counts how much was loaded of each resource.
type loadLimit struct {
	mu         sync.Mutex           // guards what follows
	sizes      map[string]int64     // bytes read since a list began, by resource
	overloaded map[string]time.Time // when a resource exceeded maxLoad
}

func newLoadLimit() *loadLimit {
	return &loadLimit{sizes: map[string]int64{}, overloaded: map[string]time.Time{}}
}

// beginList starts to count anew.
func (l *loadLimit) beginList(resource string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sizes[resource] = 0
	delete(l.overloaded, resource)
}

// addBytes counts n bytes of a list. It is false if that makes more than maxLoad.
func (l *loadLimit) addBytes(resource string, n int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sizes[resource] += int64(n)
	if l.sizes[resource] > maxLoad {
		l.overloaded[resource] = time.Now()
		return false
	}
	return true
}

// awaitPause waits until a resource that exceeded maxLoad may be loaded again. The error is that of ctx.
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
