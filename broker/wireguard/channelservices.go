package wireguard

// Mesh services: what this end offers to the peer of a channel, and what the peer offers.

import (
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
)

// offerServices sends our changed list, if there is a connection with a peer that reads it.
func (ch *channel) offerServices() {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if ch.conn != nil && ch.conn.services {
		ch.conn.due.services.Store(true)
		ch.conn.kickWriter()
	}
}

// receiveServices takes the list that the peer has sent on a connection.
func (ch *channel) receiveServices(k *channelConn, list *hello.ServiceList) {
	var admitted *hello.ServiceList
	var wait time.Duration
	ch.mu.Lock()
	if ch.conn == k {
		admitted, wait = ch.offered.Admit(list, k.instance, ch.now(), ch.timing.offer)
	}
	ch.mu.Unlock()
	if wait > 0 {
		ch.wg.Go(func() {
			if ch.pauseFor(wait) {
				ch.mu.Lock()
				admitted := ch.offered.AdmitPending(ch.now(), ch.timing.offer)
				ch.mu.Unlock()
				ch.keepServices(admitted)
			}
		})
	}
	ch.keepServices(admitted)
}

// keepServices makes a list count; nil is none. It is parsed without the lock.
func (ch *channel) keepServices(list *hello.ServiceList) {
	if list != nil {
		offers := list.Parse()
		ch.changeState(func() { ch.offered.Keep(list, offers) })
	}
}
