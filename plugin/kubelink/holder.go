package kubelink

// The broker belongs to the process, not to a Corefile: it outlives reloads. This file ties it to
// what caddy does with Corefiles. A restart runs like this:
//
//	OnRestart of the old Corefile
//	parse and set up the new one, OnStartup of the new one, its servers start
//	if any of this fails: OnRestartFailed of the old one, which stays
//	else: OnShutdown of the old one
//
// and the end of the process like this: OnShutdown, OnFinalShutdown. So what is new is applied by
// OnStartup while the old Corefile still serves, OnRestartFailed applies the old again, and
// OnShutdown stops the broker only if no newer Corefile has taken it over. A new Corefile that fails
// hears nothing of it: if the old one had no stanza, the next successful start finds out.

import (
	"errors"
	"reflect"
	"sync"
	"sync/atomic"

	"github.com/mandelsoft/kubelink/broker"
	"github.com/mandelsoft/kubelink/broker/zone"
)

// Broker is what the plugin needs of *broker.Broker.
type Broker interface {
	// Start returns soon. An error means that it can never work.
	Start() error
	// Update applies another configuration; after an error it is applied in part, or not at all.
	Update(broker.Config) error
	// Stop ends all links.
	Stop()
	// Table answers for the mesh domains; nil until the first state is known.
	Table() *zone.Table
	// Ready is nil if the API server is reachable and its state is applied, else why not.
	Ready() error
}

// holder holds the broker of the process.
type holder struct {
	newBroker func(broker.Config) (Broker, error)

	broker atomic.Pointer[Broker] // read by queries

	mu      sync.Mutex // guards what follows
	config  broker.Config
	partly  bool    // config was not applied in full
	owner   *stanza // of the Corefile that was applied last
	waiting string  // why it is not ready, as logged
}

// apply makes the broker run with the stanza's configuration, whatever it did before.
func (h *holder) apply(s *stanza) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if b := h.broker.Load(); b != nil {
		if h.partly || !reflect.DeepEqual(h.config, s.config) {
			if err := (*b).Update(s.config); err != nil {
				h.partly = true
				return err
			}
		}
	} else {
		b, err := h.newBroker(s.config)
		if err != nil {
			return err
		}
		if err := b.Start(); err != nil {
			return err
		}
		h.broker.Store(&b)
	}
	h.config, h.partly, h.owner = s.config, false, s
	return nil
}

// release stops the broker if the stanza is still the one in force.
func (h *holder) release(s *stanza) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.owner != s {
		return
	}
	h.owner = nil
	if b := h.broker.Swap(nil); b != nil {
		(*b).Stop()
	}
}

// started tells that a Corefile is in force: with the stanza s, or without one. A broker started for
// a Corefile that never came into force is stopped.
func (h *holder) started(s *stanza) {
	h.mu.Lock()
	owner := h.owner
	orphan := owner != nil && owner != s && !owner.running
	if s != nil {
		s.running = true
	}
	h.mu.Unlock()
	if orphan {
		h.release(owner)
	}
}

// owns tells whether the broker runs for the stanza, or its Corefile has failed to start.
func (h *holder) owns(s *stanza) (owner, failed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.owner == s, h.owner != s && !s.running
}

// table is nil as long as the links are not known.
func (h *holder) table() *zone.Table {
	if b := h.broker.Load(); b != nil {
		return (*b).Table()
	}
	return nil
}

var errNotStarted = errors.New("the broker is not running")

func (h *holder) check() error {
	if b := h.broker.Load(); b != nil {
		return (*b).Ready()
	}
	return errNotStarted
}

// notReady is the text for names that cannot be answered yet.
func (h *holder) notReady() string {
	if err := h.check(); err != nil {
		return "kubelink is not ready: " + err.Error()
	}
	return "kubelink is not ready: the links are not known yet"
}

// ready logs every change once, as the ready plugin asks every few seconds.
func (h *holder) ready() bool {
	err := h.check()
	reason := ""
	if err != nil {
		reason = err.Error()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if reason != h.waiting {
		h.waiting = reason
		if err != nil {
			log.Warningf("Not ready: %s", reason)
		} else {
			log.Info("Ready")
		}
	}
	return err == nil
}
