package wireguard

// Addresses of endpoints that are names. They are looked up in the background.

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const maxLookups = 32 // at once

// resolver looks names up: at once when they are new, and then again and again.
type resolver struct {
	lookup  func(ctx context.Context, network, host string) ([]netip.Addr, error)
	timing  *timing
	changed func() // called when a look-up has found something else than the one before

	mu    sync.Mutex // guards names; no look-up happens under it
	names map[string]*lookupState
}

// lookupState is what is known of a name.
type lookupState struct {
	addresses []netip.Addr // what the last look-up that did not fail has found
	err       error        // of the last look-up
	every     time.Duration
	begun     time.Time // when the last look-up began; zero: none has
	busy      bool
}

func newResolver(t *timing, changed func()) *resolver {
	return &resolver{lookup: net.DefaultResolver.LookupNetIP, timing: t, changed: changed,
		names: map[string]*lookupState{}}
}

// setNames replaces the names, each with how often it is looked up.
func (r *resolver) setNames(every map[string]time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name := range r.names {
		if every[name] == 0 {
			delete(r.names, name)
		}
	}
	for name, pause := range every {
		if r.names[name] == nil {
			r.names[name] = &lookupState{}
		}
		r.names[name].every = pause
	}
}

// known returns what was found for a name, and why nothing was.
func (r *resolver) known(name string) ([]netip.Addr, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.names[name]; s != nil {
		return s.addresses, s.err
	}
	return nil, nil
}

// startDue starts the look-ups whose time has come. wg has their goroutines.
func (r *resolver) startDue(ctx context.Context, wg *sync.WaitGroup, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	busy := 0
	for _, s := range r.names {
		if s.busy {
			busy++
		}
	}
	for name, s := range r.names {
		if busy < maxLookups && !s.busy && now.Sub(s.begun) >= s.every {
			s.busy, s.begun = true, now
			busy++
			wg.Go(func() { r.lookUp(ctx, name, s) })
		}
	}
}

// lookUp looks a name up. A failure leaves what was found before.
func (r *resolver) lookUp(ctx context.Context, name string, s *lookupState) {
	ctx, cancel := context.WithTimeout(ctx, r.timing.lookupLimit)
	defer cancel()
	found, err := r.lookup(ctx, "ip", name)
	for i := range found {
		found[i] = found[i].Unmap()
	}
	r.mu.Lock()
	news := (err == nil) != (s.err == nil) || len(s.addresses) == 0
	if err == nil {
		// A server may give the same addresses in another order each time.
		news = news || len(found) != len(s.addresses) ||
			slices.ContainsFunc(found, func(a netip.Addr) bool { return !slices.Contains(s.addresses, a) })
		s.addresses = found
	}
	s.err, s.busy = err, false
	r.mu.Unlock()
	if news {
		r.changed()
	}
}
