package mesh

// Which mesh services of other clusters are accepted. A cluster is trusted with addresses of its mesh that belong to
// nothing else. An address has one owner: the link that has had it, else the one with the smallest cluster address. So
// all members of a mesh decide the same way on two clusters that come together. The links themselves, and the mesh
// services of this cluster, are more than any offer. What a cluster behind a gateway offers is not known.

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sort"
)

// OfferRefusal is why an offer is not accepted; the text is the label of a metric.
type OfferRefusal string

// The reasons.
const (
	OfferLeftOut OfferRefusal = "left-out" // malformed, or beyond the bounds of the protocol
	OfferOutside OfferRefusal = "outside"  // not in the mesh that both are in
	OfferCluster OfferRefusal = "cluster"  // the address of a cluster
	OfferNetwork OfferRefusal = "network"  // in a network of another link
	OfferLocal   OfferRefusal = "local"    // a mesh service of this cluster has the address
	OfferTaken   OfferRefusal = "taken"    // another link has the address
)

// OfferRefusals are all reasons.
var OfferRefusals = []OfferRefusal{OfferLeftOut, OfferOutside, OfferCluster, OfferNetwork, OfferLocal, OfferTaken}

// Acceptance says what is accepted of all that peers offer.
type Acceptance struct {
	Links   map[string][]Offer    // by name of the link; by namespace and name of the MeshService
	Refused map[OfferRefusal]int  // numbers of the rest
	Rivals  map[netip.Addr]string // links whose offers are refused, by the address of a mesh service of this cluster; some
	// Contested are, by the link that has them, addresses that other links offer as well; sorted, MaxContested at most.
	Contested map[string][]netip.Addr
}

// MaxContested is how many contested addresses of a link are told, which is the bound of the CRD.
const MaxContested = 256

// maxRefused bounds the refused offers of a link that are told to clients of its names.
const maxRefused = 64

// maxRivals bounds Rivals: no peer that changes its offers all the time has thousands of statuses written.
const maxRivals = 16

// offerSet decides on offers.
type offerSet struct {
	links    *linkSet
	settled  map[netip.Addr]string
	clusters map[netip.Addr]string // KubeLinks by the address of their cluster, usable or not
	networks map[netip.Prefix]claim
	lengths  []int                     // of networks
	owners   map[netip.Addr]*linkEntry // of addresses that are offered
	rivals   map[*linkEntry][]rivalOffer
	accepted Acceptance
}

// rivalOffer is an offer that is not accepted since another link has the address.
type rivalOffer struct {
	link  *linkEntry
	offer *Offer
}

// acceptOffers gives links what their peers offer. The claims are those of links that other brokers serve.
func (in *input) acceptOffers(s *linkSet, others claimList) Acceptance {
	if len(in.offers) == 0 {
		return Acceptance{}
	}
	set := &offerSet{
		links: s, settled: in.settled, clusters: map[netip.Addr]string{}, networks: map[netip.Prefix]claim{},
		owners: map[netip.Addr]*linkEntry{}, rivals: map[*linkEntry][]rivalOffer{},
		accepted: Acceptance{Links: map[string][]Offer{}, Refused: map[OfferRefusal]int{},
			Rivals: map[netip.Addr]string{}, Contested: map[string][]netip.Addr{}},
	}
	for _, o := range in.byAge {
		if a, err := ClusterAddress(o.Spec.ClusterAddress); err == nil {
			set.clusters[a.Addr()] = "KubeLink " + o.Name
		}
	}
	for _, m := range s.meshes.list {
		for _, a := range m.Addresses.Addrs() {
			set.clusters[a] = "this cluster"
		}
	}
	lengths := map[int]bool{}
	for _, c := range slices.Concat(others, s.claims) {
		set.networks[c.prefix.Masked()] = c
		lengths[c.prefix.Bits()] = true
	}
	set.lengths = slices.Sorted(maps.Keys(lengths))
	set.decide(in.offers)
	return set.accepted
}

// decide decides on all offers. Smaller cluster addresses come first.
func (s *offerSet) decide(offers map[string]*Offers) {
	var links []*linkEntry
	for _, l := range s.links.byAge {
		if l.gateway == "" && offers[l.Name] != nil {
			links = append(links, l)
		}
	}
	slices.SortFunc(links, func(a, b *linkEntry) int {
		return a.addresses.First().Addr().Compare(b.addresses.First().Addr())
	})
	for _, l := range links {
		for i := range offers[l.Name].List {
			if o := &offers[l.Name].List[i]; s.refuse(l, o) == nil {
				if owner := s.owners[o.Address]; owner == nil || s.settled[o.Address] == l.Name {
					s.owners[o.Address] = l
				}
			}
		}
	}
	for _, l := range links {
		s.acceptAll(l, offers[l.Name])
	}
	for _, l := range links { // what a link has lost is told before what it has kept
		s.noteRivals(l)
	}
}

// acceptAll accepts what it can of what the peer of a link offers, and tells of the rest.
func (s *offerSet) acceptAll(l *linkEntry, offers *Offers) {
	var first *refusedOffer
	refused := offers.LeftOut
	s.accepted.Refused[OfferLeftOut] += offers.LeftOut
	for i := range offers.List {
		o := &offers.List[i]
		why := s.refuse(l, o)
		if owner := s.owners[o.Address]; why == nil && owner != l && !l.hasAddress(o.Address) {
			why = s.refuseTaken(l, o)
		}
		if why == nil {
			l.offers = append(l.offers, *o)
			continue
		}
		refused++
		s.accepted.Refused[why.reason]++
		if len(l.dns.Refused) < maxRefused {
			l.dns.Refused = append(l.dns.Refused, RefusedOffer{o.Namespace, o.Name, o.StandsFor, o.Address, why.text})
		}
		_, known := s.accepted.Rivals[o.Address]
		if why.reason == OfferLocal && !known && len(s.accepted.Rivals) < maxRivals {
			s.accepted.Rivals[o.Address] = l.Name
		}
		first = cmp.Or(first, why)
	}
	sortOffers(l.offers)
	l.addOfferClaims()
	l.dns.Offers = l.offers
	if len(l.offers) > 0 {
		s.accepted.Links[l.Name] = l.offers
	}
	if refused > 0 {
		s.noteRefused(l, offers, refused, first)
	}
}

// noteRefused tells of a link how many offers are not accepted, with an example.
func (s *offerSet) noteRefused(l *linkEntry, offers *Offers, refused int, first *refusedOffer) {
	text := fmt.Sprintf("%d of %d mesh services that the peer offers %s not accepted",
		refused, len(offers.List)+offers.LeftOut, areOf(refused))
	switch {
	case first == nil:
	case refused == 1:
		text += fmt.Sprintf(": %s: %s", first.offer.title(), first.text)
	default:
		text += fmt.Sprintf(", such as %s: %s", first.offer.title(), first.text)
	}
	if n := offers.LeftOut; n > 0 {
		text += fmt.Sprintf("; %d %s malformed or too many", n, areOf(n))
	}
	s.links.reports.addNote(l.Name, "%s", text)
}

// areOf is the verb for a number of things.
func areOf(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}

// noteRivals tells of a link that other ones offer its addresses, too.
func (s *offerSet) noteRivals(l *linkEntry) {
	if rivals := s.rivals[l]; len(rivals) > 0 {
		s.links.reports.addNote(l.Name, "other links offer %d of its mesh addresses as well, such as link %s with %s: "+
			"these offers are not accepted", len(rivals), rivals[0].link.Name, rivals[0].offer.title())
		var contested []netip.Addr
		for _, r := range rivals {
			contested = append(contested, r.offer.Address)
		}
		slices.SortFunc(contested, netip.Addr.Compare)
		contested = slices.Compact(contested)
		s.accepted.Contested[l.Name] = contested[:min(len(contested), MaxContested)]
	}
}

// refusedOffer says why an offer is not accepted.
type refusedOffer struct {
	offer  *Offer
	reason OfferRefusal
	text   string
}

// refuse says what speaks against an offer, besides offers of other links; nil: nothing.
func (s *offerSet) refuse(l *linkEntry, o *Offer) *refusedOffer {
	refused := func(reason OfferRefusal, format string, args ...any) *refusedOffer {
		return &refusedOffer{o, reason, fmt.Sprintf(format, args...)}
	}
	own := l.mesh.Addresses.SameFamily(o.Address).Masked()
	if !own.Contains(o.Address) {
		return refused(OfferOutside, "it does not lie in the network %s of %s",
			l.mesh.Addresses.Masked(), MeshTitle(l.Mesh))
	}
	if IsNetworkOrBroadcast(own, o.Address) {
		return refused(OfferOutside, "it is the network or broadcast address of %s", own)
	}
	if l.hasAddress(o.Address) {
		if o.Whole {
			return refused(OfferCluster, "it is the address of the cluster itself, of which a service can have ports only")
		}
		return nil
	}
	if cluster := s.clusters[o.Address]; cluster != "" {
		return refused(OfferCluster, "it is the address of %s", cluster)
	}
	if r := s.findReserved(o.Address); r != nil {
		return refused(OfferLocal, "it belongs to %s of this cluster", r.Owner)
	}
	if c, ok := s.findNetwork(o.Address, own.Bits()); ok && c.owner != l.Name {
		return refused(OfferNetwork, "it lies in %s %s of link %s", c.field, c.prefix, c.owner)
	}
	return nil
}

// refuseTaken refuses an offer since another link has the address.
func (s *offerSet) refuseTaken(l *linkEntry, o *Offer) *refusedOffer {
	owner := s.owners[o.Address]
	s.rivals[owner] = append(s.rivals[owner], rivalOffer{l, o})
	why := "offers it, too, and has the smaller cluster address"
	if s.settled[o.Address] == owner.Name {
		why = "has it already"
	}
	return &refusedOffer{o, OfferTaken, fmt.Sprintf("link %s %s", owner.Name, why)}
}

// findReserved returns the mesh service of this cluster that has the address; nil: there is none.
func (s *offerSet) findReserved(a netip.Addr) *Reserved {
	all := s.links.reserved
	i := sort.Search(len(all), func(i int) bool { return all[i].Addr.Compare(a) >= 0 })
	if i == len(all) || all[i].Addr != a {
		return nil
	}
	return &all[i]
}

// findNetwork returns the longest network of a link that contains the address, of a length from minimum on: a wider one
// takes no address of a mesh.
func (s *offerSet) findNetwork(a netip.Addr, minimum int) (claim, bool) {
	for _, bits := range slices.Backward(s.lengths) {
		if bits < minimum {
			break
		}
		if n, err := a.Prefix(bits); err == nil {
			if c, ok := s.networks[n]; ok {
				return c, true
			}
		}
	}
	return claim{}, false
}

// hasAddress tells whether the address is that of the cluster in the mesh.
func (l *linkEntry) hasAddress(a netip.Addr) bool { return l.addresses.SameFamily(a).Addr() == a }

// addOfferClaims routes the addresses of accepted offers to the link, as far as they are not.
func (l *linkEntry) addOfferClaims() {
	known := map[netip.Prefix]bool{}
	for _, c := range l.claims {
		known[c.prefix] = true
	}
	for i := range l.offers {
		a := l.offers[i].Address
		if n := netip.PrefixFrom(a, a.BitLen()); !known[n] {
			known[n] = true
			l.claims = append(l.claims, claim{n, l.Name, fieldOffer})
		}
	}
}
