package announce

// Mesh services that peers offer: which link has had an address, and how many offers are refused.

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// settleTime is how long a link must have had an address until it stays with it. Offers of two clusters that are not
// further apart come together: members of a mesh hear of them in any order, and decide by their cluster addresses.
const settleTime = 5 * time.Second

// Offers remembers what was accepted of the offers of peers. The zero value is ready. One goroutine calls AddTo and
// Keep.
type Offers struct {
	held    map[netip.Addr]heldAddress
	refused atomic.Pointer[map[mesh.OfferRefusal]int]
}

// heldAddress is the link that has an address.
type heldAddress struct {
	link  string
	since time.Time
}

// AddTo adds what peers offer to what a State is made of.
func (o *Offers) AddTo(objects *mesh.Objects, statuses []link.Status, now time.Time) {
	for _, st := range statuses {
		if st.Offers == nil {
			continue
		}
		if objects.Offers == nil {
			objects.Offers, objects.Settled = map[string]*mesh.Offers{}, o.settled(now)
		}
		objects.Offers[st.Link] = st.Offers
	}
}

func (o *Offers) settled(now time.Time) map[netip.Addr]string {
	settled := map[netip.Addr]string{}
	for a, held := range o.held {
		if now.Sub(held.since) >= settleTime {
			settled[a] = held.link
		}
	}
	return settled
}

// Keep remembers what the State has accepted.
func (o *Offers) Keep(s *mesh.State, now time.Time) {
	before := o.held
	o.held = make(map[netip.Addr]heldAddress, len(before))
	for link, offers := range s.Offers.Links {
		for i := range offers {
			held := before[offers[i].Address]
			if held.link != link {
				held = heldAddress{link, now}
			}
			o.held[offers[i].Address] = held
		}
	}
	o.refused.Store(&s.Offers.Refused)
}

// CountRefused returns how many offers of all peers are refused at the moment, by reason. It may be called at any time.
func (o *Offers) CountRefused() map[mesh.OfferRefusal]int {
	if refused := o.refused.Load(); refused != nil {
		return *refused
	}
	return nil
}
