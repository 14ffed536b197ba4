package kubelink

// NOTIFY (RFC 1996) to the secondaries that the transfer plugin knows for the global zones. Without it
// a secondary sees a change when its refresh timer runs out.

import (
	"time"

	"github.com/mandelsoft/kubelink/broker/zone"
)

const (
	// notifyDelay is the period in which several changes cause one NOTIFY.
	notifyDelay = time.Second
	// maxNotifies limits the zones that are notified at once: a secondary that does not answer takes six
	// seconds for each zone, and the other zones wait.
	maxNotifies = 8
)

// notifySecondaries sends a NOTIFY for every zone in the beginning, and later for each zone with a new
// serial, until stop is closed. It sends none while the broker does not run for this Corefile: the
// Corefile is not in force yet, or another one is.
func (k *Kubelink) notifySecondaries(stop <-chan struct{}, send func(zone string) error) {
	tick := time.NewTicker(notifyDelay)
	defer tick.Stop()
	var last *zone.Table
	var notified map[string]uint32
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		inForce, failed := k.lifecycle.stanzaState(k.stanza)
		if failed {
			return // caddy does not shut down a Corefile that failed to start: stop stays open
		}
		table := k.lifecycle.currentTable()
		if !inForce || table == nil || table == last {
			continue
		}
		serials := table.Serials()
		if !notifyChanges(stop, send, notified, serials) {
			return
		}
		last, notified = table, serials
	}
}

// notifyChanges sends a NOTIFY for each zone if its serial differs from the notified one, and waits until
// all are sent. It returns false as soon as stop is closed. A NOTIFY that is on its way then ends by
// itself when its retries are used up: the transfer plugin cannot cancel it.
func notifyChanges(stop <-chan struct{}, send func(zone string) error, notified, serials map[string]uint32) bool {
	slots := make(chan struct{}, maxNotifies)
	takeSlot := func() bool {
		select {
		case <-stop:
			return false
		case slots <- struct{}{}:
			return true
		}
	}
	for name, serial := range serials {
		if notified[name] == serial {
			continue
		}
		if !takeSlot() {
			return false
		}
		go func() {
			defer func() { <-slots }()
			if err := send(name); err != nil {
				// The transfer plugin may have only some of the zones, and a secondary has its refresh timer.
				log.Debug("cannot notify secondaries", "zone", name, "error", err)
			}
		}()
	}
	for range maxNotifies { // when all slots are taken, no NOTIFY is on its way
		if !takeSlot() {
			return false
		}
	}
	return true
}
