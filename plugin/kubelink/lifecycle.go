package kubelink

// The life of the broker. The broker belongs to the process, not to a Corefile: it outlives reloads.
// caddy restarts a Corefile like this:
//
//	OnRestart of the old Corefile
//	parse and set up the new one, OnStartup of the new one, its servers start
//	if any of this fails: OnRestartFailed of the old one, which stays
//	else: OnShutdown of the old one
//
// and ends the process with OnShutdown and OnFinalShutdown. So OnStartup applies the new stanza while the
// old Corefile still serves, OnRestartFailed applies the old stanza again, and OnShutdown stops the broker
// only if no newer Corefile uses it. caddy does not tell a new Corefile that it has failed. If the old
// Corefile had no stanza, the broker started for the failed one runs until the next Corefile starts.

import (
	"errors"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/mandelsoft/kubelink/broker"
	"github.com/mandelsoft/kubelink/broker/onchange"
	"github.com/mandelsoft/kubelink/broker/zone"
)

// Broker is what the plugin needs of *broker.Broker.
type Broker interface {
	// Start returns soon. An error means that the broker can never work.
	Start() error
	// Update applies another configuration; after an error the broker has applied a part of it, or nothing.
	Update(broker.Config) error
	// Stop ends all links.
	Stop()
	// Table answers for the mesh domains; nil until the broker knows the first state.
	Table() *zone.Table
	// Ready is nil if the API server is reachable and its state is applied, else the reason.
	Ready() error
}

// brokerLifecycle starts, updates and stops the broker of the process.
type brokerLifecycle struct {
	newBroker func(broker.Config) (Broker, error)

	broker atomic.Pointer[Broker] // nil while no broker runs; queries read it without a lock

	// unready is why the broker is not ready, as logged last.
	unready onchange.Error

	// mu guards the fields below and the field running of all stanzas. applyStanza and releaseBroker hold
	// it while the broker starts, updates or stops: no query and no readiness check takes it.
	mu         sync.Mutex
	config     broker.Config
	incomplete bool    // the last Update failed: config is not what the broker has applied
	owner      *stanza // the stanza that was applied last; nil: no broker runs
}

// applyStanza makes the broker run with the stanza's configuration. It starts a broker if none runs.
func (l *brokerLifecycle) applyStanza(s *stanza) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b := l.broker.Load(); b != nil {
		if l.incomplete || !reflect.DeepEqual(l.config, s.config) {
			if err := (*b).Update(s.config); err != nil {
				l.incomplete = true
				return err
			}
		}
	} else {
		b, err := l.newBroker(s.config)
		if err != nil {
			return err
		}
		if err := b.Start(); err != nil {
			return err
		}
		l.broker.Store(&b)
	}
	l.config, l.incomplete, l.owner = s.config, false, s
	return nil
}

// releaseBroker stops the broker if it still runs for the stanza.
func (l *brokerLifecycle) releaseBroker(s *stanza) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.owner != s {
		return
	}
	l.owner = nil
	if b := l.broker.Swap(nil); b != nil {
		(*b).Stop()
	}
}

// confirmStartup records that all servers of a Corefile have started. s is its stanza, or nil if it has
// none. If the broker runs for the stanza of a Corefile that failed to start, confirmStartup stops it.
func (l *brokerLifecycle) confirmStartup(s *stanza) {
	l.mu.Lock()
	owner := l.owner
	orphan := owner != nil && owner != s && !owner.running
	if s != nil {
		s.running = true
	}
	l.mu.Unlock()
	if orphan {
		l.releaseBroker(owner)
	}
}

// stanzaState tells whether the broker runs for the stanza, and whether the stanza's Corefile failed to
// start.
func (l *brokerLifecycle) stanzaState(s *stanza) (inForce, failed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.owner == s, l.owner != s && !s.running
}

// currentTable is nil as long as the links are not known.
func (l *brokerLifecycle) currentTable() *zone.Table {
	if b := l.broker.Load(); b != nil {
		return (*b).Table()
	}
	return nil
}

var errNotStarted = errors.New("the broker is not running")

// checkReady is nil if the broker runs and is ready, else the reason.
func (l *brokerLifecycle) checkReady() error {
	if b := l.broker.Load(); b != nil {
		return (*b).Ready()
	}
	return errNotStarted
}

// notReadyText is the text of the Extended DNS Error for names that have no answer yet.
func (l *brokerLifecycle) notReadyText() string {
	if err := l.checkReady(); err != nil {
		return "kubelink is not ready: " + err.Error()
	}
	return "kubelink is not ready: the links are not known yet"
}

// isReady tells whether the broker is ready. It logs only when the reason changes, as the ready plugin
// calls it every few seconds.
func (l *brokerLifecycle) isReady() bool {
	err := l.checkReady()
	if l.unready.Set(err) {
		if err != nil {
			log.Warn("Not ready: " + strings.ReplaceAll(err.Error(), "\n", "; "))
		} else {
			log.Info("Ready")
		}
	}
	return err == nil
}
