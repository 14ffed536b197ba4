package zone

// Names of addresses: of clusters in the mesh, and of the services of a cluster; and the zones that these names are in.
//
// Each name in in-addr.arpa or ip6.arpa, of the networks that are ours, is a zone: 16.64.100.in-addr.arpa of
// 100.64.16.0/20, for example. The names of addresses right below are in it. A network whose length is no multiple of 8
// (or 4) is not a zone: the one that it lies in is ours in part.

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/coredns/coredns/request"

	"github.com/miekg/dns"
)

// reverseNet is a network of addresses that have names in a mesh.
type reverseNet struct {
	cluster    *cluster // its service network, or its address; nil: the network of the mesh
	ownAddress bool     // the network is the cluster's address
	names      []string // of mesh services; the network is their address
}

// needsService tells whether only the DNS service of the cluster knows the names.
func (r *reverseNet) needsService() bool {
	return r.cluster != nil && !r.ownAddress && r.names == nil && !r.cluster.answersFromAPI()
}

// pointerReply makes the reply to a query for the name of an address that the table or the cluster's API knows.
func (r *reverseNet) pointerReply(m *Match, state *request.Request) *dns.Msg {
	c, soa := r.cluster, m.domain.reverseSOA(m.name)
	if c == nil {
		return noPointerReply(state.Req, soa)
	}
	q := questionOf(state.Req)
	cached := c.replies.findEntry(q)
	if !c.status.Usable {
		return c.linkDownReply(m, state.Req, c.currentPointers(cached))
	}
	names, err := r.names, error(nil)
	switch {
	case r.ownAddress:
		names = []string{c.name}
	case names == nil:
		m.from = fromAPI
		names, err = c.backend.Services(m.address)
	}
	switch {
	case err != nil:
		code := dns.ExtendedErrorCodeNoReachableAuthority
		return c.failureReply(m, state.Req, c.currentPointers(cached), code, err.Error())
	case len(names) == 0: // not cached: there are many such addresses
		return noPointerReply(state.Req, soa)
	}
	reply := authoritativeReply(state.Req, soa, pointerRecords(state.QName(), state.QType(), names))
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

// enclosingZone is a reverse zone that has a network of ours in it, and other networks.
type enclosingZone struct {
	domain *meshDomain
	named  bool // denials name it: it is right above addresses
}

// addEnclosing adds the zone that the network lies in, unless the network is a zone.
func (b *builder) addEnclosing(d *meshDomain, network netip.Prefix) {
	step := labelBits(network.Addr())
	bits := min(network.Bits(), network.Addr().BitLen()-step)
	named := bits < network.Bits()
	if bits -= bits % step; bits == 0 || bits == network.Bits() {
		return
	}
	zone := netip.PrefixFrom(network.Addr(), bits).Masked()
	b.table.enclosing[zone] = enclosingZone{d, named || b.table.enclosing[zone].named}
}

// labelBits is the number of bits that one label of a reverse name stands for.
func labelBits(a netip.Addr) int {
	if a.Is4() {
		return 8
	}
	return 4
}

// reverseName is a name in in-addr.arpa or ip6.arpa.
type reverseName struct {
	prefix netip.Prefix // that the labels stand for
	name   string       // of the prefix
	below  bool         // there are more labels, which stand for nothing
}

// parseReverse reads a reverse name in lower case.
func parseReverse(name string) (r reverseName, ok bool) {
	rest, isIPv4 := strings.CutSuffix(name, ".in-addr.arpa.")
	ip, size, base := make([]byte, 4), 8, 10
	if !isIPv4 {
		if rest, ok = strings.CutSuffix(name, ".ip6.arpa."); !ok {
			return r, false
		}
		ip, size, base = make([]byte, 16), 4, 16
	}
	bits := 0
	for len(rest) > 0 && bits < 8*len(ip) {
		dot := strings.LastIndexByte(rest, '.')
		n, err := strconv.ParseUint(rest[dot+1:], base, size)
		if err != nil || strconv.FormatUint(n, base) != rest[dot+1:] || dot > 0 && rest[dot-1] == '\\' {
			break
		}
		ip[bits/8] |= byte(n) << (8 - size - bits%8)
		bits += size
		rest = rest[:max(dot, 0)]
	}
	addr, _ := netip.AddrFromSlice(ip)
	r = reverseName{netip.PrefixFrom(addr, bits), name, rest != ""}
	if r.below {
		r.name = name[len(rest)+1:]
	}
	return r, bits > 0
}

// zone is the zone that the name is, or lies in: the name of an address is none.
func (r *reverseName) zone() (prefix netip.Prefix, name string) {
	if !r.prefix.IsSingleIP() {
		return r.prefix, r.name
	}
	return r.wider(r.prefix, r.name)
}

// wider is the zone above.
func (r *reverseName) wider(prefix netip.Prefix, name string) (netip.Prefix, string) {
	_, name, _ = strings.Cut(name, ".")
	a := prefix.Addr()
	return netip.PrefixFrom(a, prefix.Bits()-labelBits(a)).Masked(), name
}

// matchReverse finds the network or the reverse zone that the name belongs to.
func (t *Table) matchReverse(name string) (Match, bool) {
	r, ok := parseReverse(name)
	if !ok {
		return Match{}, false
	}
	if r.prefix.IsSingleIP() && !r.below {
		if n, ok := t.reverse.Lookup(r.prefix.Addr()); ok {
			return Match{node: n, table: t, name: name, address: r.prefix.Addr(), exact: true}, true
		}
	}
	prefix, zone := r.zone()
	if n, ok := t.reverse.LookupPrefix(prefix); ok {
		return Match{node: n, table: t, name: name, reverseZone: zone, exact: name == zone}, true
	}
	if z := t.enclosing[prefix]; z.named && name == zone {
		return Match{node: &node{domain: z.domain}, table: t, name: name, reverseZone: zone, exact: true}, true
	}
	return Match{}, false
}

// MatchShared finds the reverse zone of a name that is nothing of ours, if the zone has a network of ours in it: for a
// server that asks no other one for such names. The name is fully qualified and in lower case.
func (t *Table) MatchShared(name string) (Match, bool) {
	r, ok := parseReverse(name)
	if !ok {
		return Match{}, false
	}
	exists := !r.below && t.reverse.OverlapsPrefix(r.prefix) // a network of ours is below
	for prefix, zone := r.zone(); prefix.Bits() > 0; prefix, zone = r.wider(prefix, zone) {
		if z, ok := t.enclosing[prefix]; ok {
			m := Match{node: &node{domain: z.domain}, table: t, name: name, reverseZone: zone, exact: exists || name == zone}
			return m, true
		}
	}
	return Match{}, false
}

// reverseZoneReply makes the reply to a query for a reverse zone, or for a name in it that is none of an address.
func (m *Match) reverseZoneReply(state *request.Request) *dns.Msg {
	soa := m.domain.subdomainSOA(m.reverseZone)
	switch qtype := state.QType(); {
	case !m.exact:
		return noPointerReply(state.Req, soa)
	case m.name == m.reverseZone && (qtype == dns.TypeSOA || qtype == dns.TypeANY):
		soa.Hdr.Name = state.QName()
		return authoritativeReply(state.Req, soa, []dns.RR{soa})
	case m.name == m.reverseZone && qtype == dns.TypeNS:
		return m.domain.nsReply(state.Req)
	}
	return authoritativeReply(state.Req, soa, nil)
}
