package bridge

// What all parts of a bridge share: its clock, settings, credentials and limits, and what it announces.

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/link"
)

// shared is common to the Bridge, its TUN, its listener and its peers.
type shared struct {
	log      *slog.Logger
	timing   *timing
	start    time.Time       // zero of the bridge's time
	instance uint64          // random number of this process, see hello.Hello
	ctx      context.Context // ends when the bridge is closed
	wg       sync.WaitGroup  // all goroutines of the bridge; Close waits for them

	config      atomic.Pointer[Config]
	credentials atomic.Pointer[link.Credentials] // nil: not known yet, or suspended
	ownServices atomic.Pointer[hello.OwnServices]
	offloads    atomic.Uint32 // of the TUN, or of the last TUN that was there

	budget   byteBudget
	refusals *hello.Refusals
	changed  signal // wakes reportChanges
}

// now is the bridge's time: monotonic, since Open.
func (s *shared) now() time.Duration { return time.Since(s.start) }

// notifyChanged has reportChanges call Config.Changed. It never waits.
func (s *shared) notifyChanged() { s.changed.notify() }

// reportChanges calls Config.Changed after changes, until the bridge is closed. A change is told at once, and several
// within timing.changeInterval together: a peer that connects and goes as fast as it can causes no more work than that.
func (s *shared) reportChanges() {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-s.changed:
		case <-s.ctx.Done():
			return
		}
		if f := s.config.Load().Changed; f != nil {
			f()
		}
		pause.Reset(s.timing.changeInterval)
		select {
		case <-pause.C:
		case <-s.ctx.Done():
			return
		}
	}
}

// ownHello is the hello of this end, without the addresses, which differ between links.
func (s *shared) ownHello() *hello.Hello {
	c := s.config.Load()
	return &hello.Hello{
		Announcement: link.Announcement{AdvertisedPort: c.AdvertisedPort, DNS: c.DNS, API: c.API, Version: c.Version},
		Capable:      true, Flags: s.featureFlags(), Instance: s.instance, Streams: c.Streams,
		Terms: &hello.Terms{Own: c.Term},
	}
}

// featureFlags are the features of this end.
func (s *shared) featureFlags() uint32 {
	flags := hello.FlagKeepalive | hello.FlagUpdates | hello.FlagStreams | hello.FlagServices
	offloads := Offloads(s.offloads.Load())
	if offloads&OffloadTSO != 0 {
		flags |= hello.FlagOffload
	}
	if offloads&OffloadUSO != 0 {
		flags |= hello.FlagUSO
	}
	return flags
}

// signal wakes the goroutine that receives from it. It remembers one event.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

func (s signal) notify() {
	select {
	case s <- struct{}{}:
	default:
	}
}
