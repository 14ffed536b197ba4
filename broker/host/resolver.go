package host

// Addresses of the endpoints of links that are names.

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	lookupTimeout = 5 * time.Second
	maxLookups    = 8 // at once
)

// resolver looks names up, at once when they are new, and then again and again.
type resolver struct {
	lookup  func(ctx context.Context, network, host string) ([]netip.Addr, error)
	changed func() // called when addresses have changed
	wake    chan struct{}

	mu    sync.Mutex              // guards known; no look-up happens under it
	known map[string][]netip.Addr // by name; nil: the name was not looked up yet
}

func newResolver(changed func()) *resolver {
	return &resolver{
		lookup: net.DefaultResolver.LookupNetIP, changed: changed, wake: make(chan struct{}, 1),
		known: map[string][]netip.Addr{},
	}
}

// setNames replaces the names. Addresses are passed over. It never blocks.
func (r *resolver) setNames(hosts []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.known, func(name string, _ []netip.Addr) bool { return !slices.Contains(hosts, name) })
	for _, h := range hosts {
		if _, known := r.known[h]; known {
			continue
		}
		if _, err := netip.ParseAddr(h); err == nil {
			continue
		}
		r.known[h] = nil
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// addresses are the addresses of all names that have some.
func (r *resolver) addresses() map[string][]netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	addresses := maps.Clone(r.known)
	maps.DeleteFunc(addresses, func(_ string, list []netip.Addr) bool { return len(list) == 0 })
	return addresses
}

// lookUpNames looks names up until stop is closed.
func (r *resolver) lookUpNames(stop <-chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		<-stop
		cancel()
	})
	defer wg.Wait()
	ticker := time.NewTicker(refreshInterval)
	defer ticker.Stop()
	for {
		onlyNew := true
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-ticker.C:
			onlyNew = false
		}
		if r.lookUpAll(ctx, onlyNew) {
			r.changed()
		}
	}
}

// lookUpAll looks names up, a few at once, and tells whether addresses have changed.
func (r *resolver) lookUpAll(ctx context.Context, onlyNew bool) (changed bool) {
	r.mu.Lock()
	names := slices.Collect(maps.Keys(r.known))
	if onlyNew {
		names = slices.DeleteFunc(names, func(name string) bool { return r.known[name] != nil })
	}
	r.mu.Unlock()
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxLookups)
	for _, name := range names {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			found := r.lookUp(ctx, name)
			r.mu.Lock()
			defer r.mu.Unlock()
			if before, wanted := r.known[name]; wanted && found != nil && !slices.Equal(before, found) {
				r.known[name], changed = found, true
			}
		})
	}
	wg.Wait()
	return changed
}

// lookUp returns the addresses of a name in their order, nil if they are unknown: what was known stays then.
func (r *resolver) lookUp(ctx context.Context, name string) []netip.Addr {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	found, err := r.lookup(ctx, "ip", name)
	if err != nil {
		return nil
	}
	for i := range found {
		found[i] = found[i].Unmap()
	}
	slices.SortFunc(found, netip.Addr.Compare)
	return slices.Compact(found)
}
