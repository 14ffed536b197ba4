package announce

// Mesh services that peers offer: which link has had an address, and how many offers are refused.

import (
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// settleTime is how long a link must have had an address until it stays with it. Offers of two clusters that are not
// further apart come together: members of a mesh hear of them in any order, and decide by their cluster addresses.
const settleTime = 5 * time.Second

// Offers remembers what was accepted of the offers of peers. The zero value is ready. One goroutine calls AddTo and
// Keep.
type Offers struct {
	held   map[netip.Addr]heldAddress
	former map[netip.Addr]string // contested addresses of links, as an earlier process has written them
	// contested are these, until a link has settled, and those of the State, by link.
	contested map[string][]netip.Addr
	refused   atomic.Pointer[map[mesh.OfferRefusal]int]
}

// heldAddress is the link that has an address.
type heldAddress struct {
	link  string
	since time.Time
}

// AddTo adds what peers offer to what a State is made of.
func (o *Offers) AddTo(objects *mesh.Objects, statuses []link.Status, now time.Time) {
	if len(o.held) == 0 {
		o.readFormer(objects.Links)
	}
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

// readFormer reads which addresses links have had, before a peer offers any to this process: a broker that starts anew
// decides as the other members of the mesh do. What nobody else offered needs no memory.
func (o *Offers) readFormer(links []v1alpha1.KubeLink) {
	for i := range links {
		for _, text := range links[i].Status.Contested {
			if a, err := netip.ParseAddr(text); err == nil {
				if o.former == nil {
					o.former = map[netip.Addr]string{}
				}
				o.former[a] = links[i].Name
			}
		}
	}
}

func (o *Offers) settled(now time.Time) map[netip.Addr]string {
	settled := map[netip.Addr]string{}
	maps.Copy(settled, o.former)
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
	o.contested = maps.Clone(s.Offers.Contested)
	for a, link := range o.former {
		if held, ok := o.held[a]; ok && now.Sub(held.since) >= settleTime {
			delete(o.former, a)
		} else if list := o.contested[link]; !slices.Contains(list, a) && len(list) < mesh.MaxContested {
			if o.contested == nil {
				o.contested = map[string][]netip.Addr{}
			}
			o.contested[link] = slices.SortedFunc(slices.Values(append(slices.Clone(list), a)), netip.Addr.Compare)
		}
	}
}

// Contested are, by the link that has them, addresses that other links offer, too. Readers do not change them.
func (o *Offers) Contested() map[string][]netip.Addr { return o.contested }

// CountRefused returns how many offers of all peers are refused at the moment, by reason. It may be called at any time.
func (o *Offers) CountRefused() map[mesh.OfferRefusal]int {
	if refused := o.refused.Load(); refused != nil {
		return *refused
	}
	return nil
}
