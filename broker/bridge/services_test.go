package bridge

// What peers tell each other of their mesh services.

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// offersOf are n mesh services at an address.
func offersOf(address string, n int) (list []mesh.Offer) {
	for i := range n {
		list = append(list, mesh.Offer{
			Namespace: "default", Name: fmt.Sprintf("echo-%d", i), StandsFor: "echo",
			Address: netip.MustParseAddr(address),
			Ports:   []mesh.OfferPort{{Name: "web", Protocol: 6, Port: uint16(i%60000 + 1)}},
		})
	}
	return list
}

func offering(list []mesh.Offer) func(*Config) {
	return func(c *Config) { c.Offers = list }
}

// offer changes what the node offers, and waits until the peer has that.
func (n *node) offer(peer *node, name string, list []mesh.Offer) (took time.Duration) {
	n.t.Helper()
	start, config := time.Now(), n.config
	config.Offers = list
	if err := n.Configure(config.Settings); err != nil {
		n.t.Fatal(err)
	}
	peer.awaitOffers(name, list)
	return time.Since(start)
}

func (n *node) awaitOffers(name string, list []mesh.Offer) {
	n.t.Helper()
	n.await(fmt.Sprintf("%d mesh services of %s", len(list), name), func() bool {
		o := n.status(name).Offers
		return o != nil && o.LeftOut == 0 && slices.EqualFunc(o.List, list, func(a, b mesh.Offer) bool {
			return reflect.DeepEqual(a, b)
		})
	})
}

// What a cluster offers reaches its peer at once, when the link is Up and when it changes, on any number of streams.
func TestOffers(t *testing.T) {
	for _, streams := range []int{1, 4} {
		t.Run(fmt.Sprint(streams, " streams"), func(t *testing.T) {
			first := offersOf("192.168.0.11", 2)
			_, a, b := newPair(t, func(c *Config) {
				c.Streams = streams
				c.Offers = append(offersOf("192.168.7.7", 1), first...) // one is in no mesh with the peer
				c.timing.offerInterval = defaultTiming.offerInterval
			})
			b.awaitOffers("a", first)
			a.awaitOffers("b", first)
			sessions := b.router.table.Load().peers[0].currentSessions()
			var longest time.Duration
			for n := range 20 {
				longest = max(longest, a.offer(b, "a", offersOf("192.168.0.100", n)))
			}
			if longest > time.Second {
				t.Errorf("a change took %s", longest)
			}
			t.Logf("20 changes took %s at most", longest)
			a.offer(b, "a", nil)
			for _, s := range sessions {
				if s.hasEnded() && s.cause != errReplaced {
					t.Errorf("a session has ended: %v", s.cause)
				}
			}

			// The session that had the list ends: another one has it.
			p := a.router.table.Load().peers[0]
			for n := range 5 {
				p.mu.Lock()
				if s := p.offers.offering; s != nil {
					s.close(errStuck)
				}
				p.mu.Unlock()
				a.offer(b, "a", offersOf("192.168.0.101", 3000+n))
			}
			a.pass(b, "192.168.0.11", "192.168.0.12", 1)
		})
	}
}

// A link that is Down has what its peer offered last. A peer that comes back as a former one offers nothing.
func TestOffersOfLostPeer(t *testing.T) {
	i, a, b := newPair(t, offering(offersOf("192.168.0.100", 1)))
	a.awaitOffers("b", offersOf("192.168.0.100", 1))
	b.Close(false)
	a.awaitState("b", link.Down)
	a.awaitOffers("b", offersOf("192.168.0.100", 1))
	dialLegacy(t, i, a).read()
	a.await("no mesh services", func() bool { return a.status("b").State == link.Up && a.status("b").Offers == nil })
}

// A hostile peer that offers 100,000 services, and another list all the time, costs bounded memory and the other link
// nothing.
func TestHostileOffers(t *testing.T) {
	i := newInternet(t)
	slow := func(c *Config) { c.timing.offerInterval = time.Hour }
	a := i.start("a.example", i.ca.issue(t, "a.example"), slow)
	b := i.start("b.example", i.ca.issue(t, "b.example"), offering(offersOf("192.168.0.100", 100000)))
	c := i.start("c.example", i.ca.issue(t, "c.example"), offering(offersOf("192.168.0.103", 1)))
	a.set(newLink("b", 1, 2, "b.example"), newLink("c", 1, 3, "c.example"))
	b.set(newLink("a", 2, 1, "a.example"))
	c.set(newLink("a", 3, 1, "a.example"))
	a.await("bounded services", func() bool {
		o := a.status("b").Offers
		return o != nil && len(o.List) == hello.MaxServices && o.LeftOut == 100000-hello.MaxServices
	})
	a.awaitOffers("c", offersOf("192.168.0.103", 1))
	changes, last := 0, a.status("b").Offers
	for n := range 500 {
		config := b.config
		config.Offers = offersOf("192.168.0.100", n)
		b.Configure(config.Settings)
		if n%10 == 0 {
			a.pass(c, "192.168.0.11", "192.168.0.13", uint64(n))
		}
		if now := a.status("b").Offers; now != last {
			changes, last = changes+1, now
		}
	}
	if changes > 100 {
		t.Errorf("%d changes", changes)
	}
	c.offer(a, "c", offersOf("192.168.0.103", 2))
	t.Logf("%d changes of 500", changes)
}
