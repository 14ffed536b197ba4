package kubelink

// NOTIFY (RFC 1996) to the secondaries of the global zones, those that the transfer plugin knows: they would hear of a
// change when their refresh timer runs out.

import (
	"sync"
	"time"

	"github.com/mandelsoft/kubelink/broker/zone"
)

const (
	notifyDelay = time.Second // changes within that are told once
	notifyMost  = 8           // zones at once: a secondary that does not answer takes six seconds each, and others wait
)

// notify tells of zones whose serial is another, and of all in the beginning, until stop is closed. A Corefile that has
// not come into force, or no longer is, tells nobody.
func (k *Kubelink) notify(stop <-chan struct{}, send func(zone string) error) {
	tick := time.NewTicker(notifyDelay)
	defer tick.Stop()
	var last *zone.Table
	var told map[string]uint32
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		owner, failed := k.shared.owns(k.stanza)
		if failed {
			return // nobody will close stop
		}
		table := k.shared.table()
		if !owner || table == nil || table == last {
			continue
		}
		serials := table.Serials()
		var sending sync.WaitGroup
		room := make(chan struct{}, notifyMost)
		for name, serial := range serials {
			if told[name] == serial {
				continue
			}
			select {
			case <-stop:
				return
			case room <- struct{}{}:
			}
			sending.Go(func() {
				defer func() { <-room }()
				if err := send(name); err != nil {
					log.Debug(err) // it may have only some of the zones; and there is its refresh timer
				}
			})
		}
		sending.Wait()
		last, told = table, serials
	}
}
