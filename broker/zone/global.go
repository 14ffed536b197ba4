package zone

// The global names: a zone svc.global.D that this cluster serves from its objects, with the zones that are cut out of
// it. NewGlobal makes the records once, when the objects change.

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker/records"
)

// Global is a global zone that this cluster serves from its objects. It is immutable, but for MarkStale.
type Global struct {
	name           string
	server         string            // our name server
	glue           []dns.RR          // its addresses
	owners         map[string]*owner // by name in lower case; all names between them and the zone are there, too
	sorted         []*owner          // the same, the names above a name before it
	missing        string            // why the objects are not known; empty: they are
	staleReason    string            // why the objects are from an earlier process; empty: they are not
	highestSerial  uint32            // that a zone has had so far
	pendingSerials map[string]bool   // zones that have changed, and have no higher serial than before
}

// owner is a name with its records (RFC 4592 calls a name without records an empty non-terminal).
type owner struct {
	name      string
	zone      *authority
	apex      bool   // the name is the top of zone
	cut       *owner // the delegation that the name lies in, maybe itself
	wildcard  *owner // the name below with the first label *
	fixed     bool   // addresses stay in their order
	v4, v6    addressSet
	cname     []dns.RR // one at most
	txt, srv  []dns.RR
	ns        []dns.RR
	glue      []dns.RR // of an apex: addresses of its name servers in its zone, for the zone above
	delegates bool     // ns is a delegation: the name is no apex
}

// addressSet is an A or AAAA record set.
type addressSet struct {
	rrs []dns.RR
	ips []records.Address // of the records
}

// authority is what the apex of a zone says.
type authority struct {
	name   string
	parent *authority // nil: the global zone itself
	soa    []dns.RR   // one
}

// NewGlobal prepares the names of the global zone of a mesh domain. The addresses are the ones of the local DNS
// service. A zone that is not what it was in before, which may be nil, gets the serial. Where secondaries may have the
// same or a higher one, the zone keeps that, and gets a new one next time: see SerialPending.
func NewGlobal(domain string, names records.Zone, serial uint32, addrs []netip.Addr, before *Global) *Global {
	domain = dns.CanonicalName(domain)
	g := &Global{
		name: dns.CanonicalName(names.Name), highestSerial: serial,
		owners: make(map[string]*owner, 2*len(names.Owners)),
	}
	g.server = "ns.dns." + domain
	g.glue = addressRecords(g.server, dns.TypeANY, addrs...)
	g.addOwner(g.name)
	for i := range names.Apexes {
		a := &names.Apexes[i]
		if o := g.addOwner(a.Name); o != nil {
			o.setApex(a, g.server, domain, serial)
		}
	}
	for i := range names.Owners {
		if o := g.addOwner(names.Owners[i].Name); o != nil {
			o.setRecords(&names.Owners[i])
		}
	}
	g.sortOwners()
	g.inheritZones()
	g.addGlue()
	g.assignSerials(serial, before)
	return g
}

// NoGlobal stands for a global zone before its objects are known: nothing can be said of its names.
func NoGlobal(name, reason string) *Global {
	return &Global{name: dns.CanonicalName(name), missing: reason}
}

// MarkStale marks all answers as what an earlier process knew (RFC 8767), for that reason. It must come before the
// first query.
func (g *Global) MarkStale(reason string) { g.staleReason = reason }

// SerialPending tells whether there is a zone that has changed and needs a higher serial than there was.
func (g *Global) SerialPending() bool { return len(g.pendingSerials) > 0 }

// Missing is why the names are not known; empty: they are.
func (g *Global) Missing() string { return g.missing }

// addOwner makes a name of the zone, and the names between; nil if it lies outside.
func (g *Global) addOwner(name string) *owner {
	if o := g.owners[name]; o != nil {
		return o
	}
	if !inDomain(name, g.name) {
		return nil
	}
	o := &owner{name: name}
	g.owners[name] = o
	if name != g.name {
		i, _ := dns.NextLabel(name, 0)
		if up := g.addOwner(name[i:]); strings.HasPrefix(name, "*.") {
			up.wildcard = o
		}
	}
	return o
}

// setApex makes the name the top of a zone.
func (o *owner) setApex(a *records.Apex, server, domain string, serial uint32) {
	h := rrHeader(a.Name, dns.TypeSOA)
	h.Ttl = min(a.Minimum, maxTTL) // resolvers cache a denial for the lesser of TTL and minimum (RFC 2308)
	o.apex, o.zone = true, &authority{name: a.Name, soa: []dns.RR{&dns.SOA{
		Hdr: h, Ns: server, Mbox: cmp.Or(a.Mbox, "hostmaster."+domain), Serial: serial,
		Refresh: a.Refresh, Retry: a.Retry, Expire: a.Expire, Minttl: a.Minimum,
	}}}
	o.ns = []dns.RR{&dns.NS{Hdr: rrHeader(a.Name, dns.TypeNS), Ns: server}}
}

// setRecords makes the records of a name.
func (o *owner) setRecords(from *records.Owner) {
	o.fixed = from.Fixed
	for _, a := range from.Addresses {
		if a.Is4() {
			o.v4.addAddress(a, &dns.A{Hdr: rrHeader(o.name, dns.TypeA), A: a.AsSlice()})
		} else {
			o.v6.addAddress(a, &dns.AAAA{Hdr: rrHeader(o.name, dns.TypeAAAA), AAAA: a.AsSlice()})
		}
	}
	if from.CNAME != "" {
		o.cname = []dns.RR{&dns.CNAME{Hdr: rrHeader(o.name, dns.TypeCNAME), Target: from.CNAME}}
	}
	for _, text := range from.TXT {
		o.txt = append(o.txt, &dns.TXT{Hdr: rrHeader(o.name, dns.TypeTXT), Txt: splitText(text)})
	}
	for _, s := range from.SRV {
		h := rrHeader(o.name, dns.TypeSRV)
		o.srv = append(o.srv, &dns.SRV{Hdr: h, Priority: s.Priority, Weight: s.Weight, Port: s.Port, Target: s.Target})
	}
	for _, ns := range from.NS {
		o.ns = append(o.ns, &dns.NS{Hdr: rrHeader(o.name, dns.TypeNS), Ns: ns})
	}
	o.delegates = len(o.ns) > 0 && !o.apex
}

func (s *addressSet) addAddress(a records.Address, rr dns.RR) {
	s.rrs, s.ips = append(s.rrs, rr), append(s.ips, a)
}

// splitText cuts a text into the strings of a TXT record, 255 bytes each. The library takes a backslash in them for the
// beginning of an escape.
func splitText(text string) []string {
	var parts []string
	for len(text) > 255 {
		parts, text = append(parts, strings.ReplaceAll(text[:255], `\`, `\\`)), text[255:]
	}
	return append(parts, strings.ReplaceAll(text, `\`, `\\`))
}

// sortOwners lists all names, the names above a name before it, and leaves their record sets no capacity: appending to
// an answer must not write into them.
func (g *Global) sortOwners() {
	g.sorted = make([]*owner, 0, len(g.owners))
	for _, o := range g.owners {
		g.sorted = append(g.sorted, o)
		for _, rrs := range []*[]dns.RR{&o.v4.rrs, &o.v6.rrs, &o.txt, &o.srv, &o.ns} {
			*rrs = slices.Clip(*rrs)
		}
	}
	slices.SortFunc(g.sorted, func(a, b *owner) int {
		return cmp.Or(cmp.Compare(len(a.name), len(b.name)), cmp.Compare(a.name, b.name))
	})
}

// inheritZones gives each name its zone and the delegation that it lies in: the ones of the name above, unless the name
// is the top of a zone itself.
func (g *Global) inheritZones() {
	for _, o := range g.sorted {
		i, _ := dns.NextLabel(o.name, 0)
		up := g.owners[o.name[i:]]
		switch {
		case up == nil:
		case o.apex:
			o.zone.parent = up.zone
		default:
			o.zone, o.cut = up.zone, up.cut
		}
		if o.delegates && o.cut == nil {
			o.cut = o
		}
	}
}

// addGlue gives each zone that is cut out the addresses of its name servers that are in it: a resolver that has only
// the zone above could not ask them (RFC 1034, 4.2.1).
func (g *Global) addGlue() {
	for _, o := range g.sorted {
		if !o.apex {
			continue
		}
		for _, rr := range o.ns {
			host := dns.CanonicalName(rr.(*dns.NS).Ns)
			if h := g.owners[host]; h != nil && inDomain(host, o.name) {
				o.glue = slices.Concat(o.glue, h.v4.rrs, h.v6.rrs)
			}
		}
	}
}

// findOwner is the name itself or, not exact, the nearest one above that exists: the closest encloser of RFC 4592. It
// is nil for a name outside of the zone.
func (g *Global) findOwner(name string) (o *owner, exact bool) {
	for off, end := 0, false; !end; off, end = dns.NextLabel(name, off) {
		if o := g.owners[name[off:]]; o != nil {
			return o, off == 0
		}
	}
	return nil, false
}

// isZoneCut tells whether the name is a delegation, or the top of a zone that is cut out of another.
func (o *owner) isZoneCut() bool { return o.cut == o || o.apex && o.zone.parent != nil }

// recordSets are the records of the name, without the SOA record of an apex.
func (o *owner) recordSets() [6][]dns.RR {
	return [...][]dns.RR{o.ns, o.cname, o.v4.rrs, o.v6.rrs, o.txt, o.srv}
}
