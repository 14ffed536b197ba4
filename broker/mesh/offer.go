package mesh

// Mesh services that clusters offer to each other.

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// Offer is a mesh service that a cluster offers to the other clusters of a mesh.
type Offer struct {
	Namespace, Name string // of the MeshService
	StandsFor       string // name of the Kubernetes service, in Namespace; empty: none
	Address         netip.Addr
	Whole           bool        // all of Address belongs to the service; else only Ports do
	Ports           []OfferPort // in the order of the sender
}

// Equal tells whether both are the same.
func (o Offer) Equal(p Offer) bool {
	return o.Namespace == p.Namespace && o.Name == p.Name && o.StandsFor == p.StandsFor && o.Address == p.Address &&
		o.Whole == p.Whole && slices.Equal(o.Ports, p.Ports)
}

// RefusedOffer is an Offer that is not accepted.
type RefusedOffer struct {
	Namespace, Name, StandsFor string // as in an Offer
	Address                    netip.Addr
	Reason                     string // a clause; "it" is the address
}

// OfferPort is a port at the address of an Offer.
type OfferPort struct {
	Name     string // a DNS label; empty: none
	Protocol uint8  // number of IANA
	Port     uint16
}

// Offers are what the peer of a link offers, as it says.
type Offers struct {
	List    []Offer // in the order of the sender
	LeftOut int     // malformed ones, and those beyond the bounds of the protocol
}

// NameOffers gives the local cluster the names of what it offers in the meshes. The caller has the State to itself, as
// Build has returned it.
func (s *State) NameOffers(offers []Offer) {
	for i := range s.Zones {
		z := &s.Zones[i]
		for j := range z.Clusters {
			if c := &z.Clusters[j]; c.Link == "" {
				c.Offers = slices.DeleteFunc(slices.Clone(offers), func(o Offer) bool { return !z.Networks.Contains(o.Address) })
				sortOffers(c.Offers)
			}
		}
	}
}

// sortOffers sorts by namespace and name.
func sortOffers(offers []Offer) {
	slices.SortStableFunc(offers, func(a, b Offer) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
}

// title is how messages call the offer.
func (o *Offer) title() string { return fmt.Sprintf("%s/%s at %s", o.Namespace, o.Name, o.Address) }

// OfferedNetworks are the networks of peers that lead to mesh services and to nothing else.
func (s *State) OfferedNetworks() map[netip.Prefix]bool {
	offered := map[netip.Prefix]bool{}
	for _, offers := range s.Offers.Links {
		for i := range offers {
			a := offers[i].Address
			offered[netip.PrefixFrom(a, a.BitLen())] = true
		}
	}
	for i := range s.Peers {
		for _, a := range s.Peers[i].Addresses.Addrs() { // it can have ports of mesh services
			delete(offered, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return offered
}
