package zone

// Names of addresses: of clusters in the mesh, and of the services of a cluster.

import (
	"net/netip"

	"github.com/coredns/coredns/request"

	"github.com/miekg/dns"
)

// reverseNet is a network of addresses that have names in a mesh.
type reverseNet struct {
	cluster    *cluster // its service network, or its address; nil: the network of the mesh
	ownAddress bool     // the network is the cluster's address
}

// needsService tells whether only the DNS service of the cluster knows the names.
func (r *reverseNet) needsService() bool {
	return r.cluster != nil && !r.ownAddress && !r.cluster.answersFromAPI()
}

// pointerReply makes the reply to a query for the name of an address that the table or the cluster's API knows.
func (r *reverseNet) pointerReply(state *request.Request, d *meshDomain, name string, address netip.Addr) *dns.Msg {
	c := r.cluster
	if c == nil {
		return noPointerReply(state.Req, d.reverseSOA(name))
	}
	q := questionOf(state.Req)
	cached := c.replies.findEntry(q)
	if !c.status.Usable {
		return c.linkDownReply(state.Req, c.currentPointers(cached))
	}
	names, err := []string{c.name}, error(nil)
	if !r.ownAddress {
		names, err = c.backend.Services(address)
	}
	switch {
	case err != nil:
		code := dns.ExtendedErrorCodeNoReachableAuthority
		return c.failureReply(state.Req, c.currentPointers(cached), code, err.Error())
	case len(names) == 0: // not cached: there are many such addresses
		return noPointerReply(state.Req, d.reverseSOA(name))
	}
	reply := authoritativeReply(state.Req, d.reverseSOA(name), pointerRecords(state.QName(), state.QType(), names))
	c.storeReply(state, q, cached, reply)
	return reply
}

// noPointerReply denies that an address has a name.
func noPointerReply(req *dns.Msg, soa *dns.SOA) *dns.Msg {
	reply := authoritativeReply(req, soa, nil)
	reply.Rcode = dns.RcodeNameError
	return reply
}

// pointerRecords are the PTR records that a query of this type asks for.
func pointerRecords(qname string, qtype uint16, names []string) (rrs []dns.RR) {
	if qtype != dns.TypePTR && qtype != dns.TypeANY {
		return nil
	}
	for _, name := range names {
		rrs = append(rrs, &dns.PTR{Hdr: rrHeader(qname, dns.TypePTR), Ptr: name})
	}
	return rrs
}
