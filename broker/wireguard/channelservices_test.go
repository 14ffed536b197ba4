package wireguard

// What peers tell each other of their mesh services, in control channels between namespaces.

import (
	"fmt"
	"net/netip"
	"reflect"
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
			Namespace: "default", Name: fmt.Sprintf("echo-%d", i), Address: netip.MustParseAddr(address), Whole: true,
		})
	}
	return list
}

func (e *channelEnd) awaitOffers(peer int, list []mesh.Offer) {
	e.t.Helper()
	e.await(peer, fmt.Sprintf("offering %d mesh services", len(list)), func(s channelStatus) bool {
		return s.Offers != nil && s.Offers.LeftOut == 0 && reflect.DeepEqual(s.Offers.List, list)
	})
}

// What a cluster offers reaches its peer at once: when they talk, and when it changes.
func TestChannelOffers(t *testing.T) {
	timing := fastChannels()
	timing.announce = defaultChannelTiming.announce
	a, all := newChannelEnds(t, 1)
	b := all[1]
	first := offersOf("192.168.0.100", 2)
	a.open(timing, link.Settings{})
	b.open(timing, link.Settings{Offers: append(offersOf("192.168.7.7", 1), first...)}) // one is in no mesh with the peer
	a.set(2)
	b.set(1)
	a.awaitOffers(2, first)
	b.awaitOffers(1, nil)
	conn, replaced, longest := a.connOf(2), 0, time.Duration(0)
	for n := range 20 {
		start, before := time.Now(), a.changes.Load()
		list := offersOf("192.168.0.101", 200*n)
		if err := b.channels.SetHello(link.Settings{Offers: list}); err != nil {
			t.Fatal(err)
		}
		a.awaitOffers(2, list)
		longest = max(longest, time.Since(start))
		if a.changes.Load() == before {
			t.Error("the change is not told")
		}
		if now := a.connOf(2); now != conn {
			conn = now
			replaced++
		}
	}
	// Nobody waits for the next regular announcement. Both ends may have dialled at once: one of the connections ends.
	if longest > timing.announce || replaced > 1 {
		t.Errorf("a change took %s, the connection was replaced %d times", longest, replaced)
	}
	t.Logf("20 changes took %s at most", longest)
	if err := b.channels.SetHello(link.Settings{}); err != nil {
		t.Fatal(err)
	}
	a.awaitOffers(2, nil)

	// A new connection tells it again, of a new process, and a lost peer keeps what it has offered.
	b.channels.Close()
	b.open(timing, link.Settings{Offers: first})
	b.set(1)
	a.awaitOffers(2, first)
	b.channels.Close()
	a.await(2, "not connected", func(s channelStatus) bool { return s.Dialled+s.Accepted == 0 && s.Offers != nil })
}

// A peer without the flag is sent no list, and its lists do not count.
func TestChannelOffersOfFormerPeer(t *testing.T) {
	a, all := newChannelEnds(t, 1)
	b := all[1]
	a.open(fastChannels(), link.Settings{Offers: offersOf("192.168.0.100", 3)})
	a.set(2)
	conn := b.dialAs(clusterAddress(2).Addr(), clusterAddress(1).Addr())
	list := (&hello.OwnServices{Serial: 1, List: offersOf("192.168.0.101", 1)}).AppendFrames(
		append([][]byte(nil), helloOf(2, nil), pingFrame()), a.peers[0].Local)
	for _, frame := range list {
		if _, err := conn.Write(frame); err != nil {
			t.Fatal(err)
		}
	}
	a.awaitState(2, channelAlive)
	for pings := 0; pings < 5; {
		switch typ, _, err := hello.ReadFrame(conn, hello.MaxPayload); {
		case err != nil:
			t.Fatal(err)
		case typ == hello.FrameServices:
			t.Fatal("a list for a peer that does not know of it")
		case typ == hello.FramePing:
			pings++
		}
	}
	if st := a.channels.StatusOf("2"); st.Offers != nil {
		t.Errorf("%+v", st.Offers)
	}
}

// A hostile peer that offers 100,000 services costs bounded memory.
func TestChannelHostileOffers(t *testing.T) {
	a, b := newChannelPair(t, fastChannels())
	hostile := link.Settings{AdvertisedPort: 2, Offers: offersOf("192.168.0.100", 100000)}
	if err := b.channels.SetHello(hostile); err != nil {
		t.Fatal(err)
	}
	st := a.await(2, "bounded services", func(s channelStatus) bool { return s.Offers != nil && s.Offers.LeftOut > 0 })
	if len(st.Offers.List) != hello.MaxServices || st.Offers.LeftOut != 100000-hello.MaxServices ||
		st.State != channelAlive {
		t.Errorf("%d services, %d left out, %s", len(st.Offers.List), st.Offers.LeftOut, st.State)
	}
}
