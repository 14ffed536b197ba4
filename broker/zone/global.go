package zone

// The global names: a zone svc.global.D that is served from objects of this cluster, with the zones
// that are cut out of it. Records are made once, when the objects change; a positive answer costs
// one look-up and, for a single record, no copy. What follows links is decided with each query.

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"github.com/coredns/coredns/request"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker/records"
)

// Path is the way to an address.
type Path struct {
	Link   string // empty: it is local, or nothing is known of it; always usable
	Status Status
}

// localPath is the way to addresses behind no link.
var localPath Path

func (p *Path) isUsable() bool { return p.Link == "" || p.Status.Usable }

// describeProblem is why the path is not usable.
func (p *Path) describeProblem() string {
	text := fmt.Sprintf("link %s is %s", p.Link, p.Status.State)
	if p.Status.Reason != "" {
		text += ": " + p.Status.Reason
	}
	return text
}

// Global is a global zone that is served from objects of this cluster. It is immutable.
type Global struct {
	name           string
	server         string            // our name server
	glue           []dns.RR          // its addresses
	owners         map[string]*owner // by name in lower case; all names between them and the zone are there, too
	sorted         []*owner          // the same, the names above a name before it
	missing        string            // why the objects are not known; empty: they are
	staleReason    string            // why they may be out of date, as an earlier process knew them; empty: they are not
	highestSerial  uint32            // serial that a zone has had so far
	pendingSerials map[string]bool   // zones that have changed, and have no higher serial than before
}

// owner is a name with its records (RFC 4592 calls those without an empty non-terminal).
type owner struct {
	name      string
	zone      *authority
	apex      bool   // it is the top of zone
	cut       *owner // the delegation that it lies in, maybe itself
	wildcard  *owner // the name below whose first label is *
	fixed     bool   // addresses stay in their order
	v4, v6    addressSet
	cname     []dns.RR // one at most
	txt, srv  []dns.RR
	ns        []dns.RR
	glue      []dns.RR // of an apex: addresses of its name servers in its zone, for the zone above
	delegates bool     // ns leads to others: the name is no apex
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

// NewGlobal prepares the names of the global zone of a mesh domain. The addresses are those of the local DNS service.
// The serial is that of zones that are not what they were before; before may be nil. Where it is no higher than the one
// that secondaries may have, the zone keeps that, and gets a new one next time: see Early.
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
		o := g.addOwner(a.Name)
		if o == nil {
			continue
		}
		h := rrHeader(a.Name, dns.TypeSOA)
		h.Ttl = min(a.Minimum, maxTTL) // what does not exist is remembered for the lesser of TTL and minimum (RFC 2308)
		o.apex, o.zone = true, &authority{name: a.Name, soa: []dns.RR{&dns.SOA{
			Hdr: h, Ns: g.server, Mbox: cmp.Or(a.Mbox, "hostmaster."+domain), Serial: serial,
			Refresh: a.Refresh, Retry: a.Retry, Expire: a.Expire, Minttl: a.Minimum,
		}}}
		o.ns = []dns.RR{&dns.NS{Hdr: rrHeader(a.Name, dns.TypeNS), Ns: g.server}}
	}
	for i := range names.Owners {
		if o := g.addOwner(names.Owners[i].Name); o != nil {
			o.setRecords(&names.Owners[i])
		}
	}
	g.inheritZones()
	g.addGlue()
	g.assignSerials(serial, before)
	return g
}

// NoGlobal stands for a global zone whose objects are not known yet: nothing can be said of its names.
func NoGlobal(name, reason string) *Global {
	return &Global{name: dns.CanonicalName(name), missing: reason}
}

// MarkStale marks all answers as what an earlier process knew (RFC 8767), for that reason.
func (g *Global) MarkStale(reason string) { g.staleReason = reason }

// SerialPending says whether there is a zone that has changed and needs a higher serial than there was.
func (g *Global) SerialPending() bool { return len(g.pendingSerials) > 0 }

// Missing is why the names are not known; empty: they are.
func (g *Global) Missing() string { return g.missing }

// addOwner makes a name of the zone, and those between; nil if it lies outside.
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
		o.srv = append(o.srv, &dns.SRV{Hdr: rrHeader(o.name, dns.TypeSRV), Priority: s.Priority, Weight: s.Weight, Port: s.Port, Target: s.Target})
	}
	for _, ns := range from.NS {
		o.ns = append(o.ns, &dns.NS{Hdr: rrHeader(o.name, dns.TypeNS), Ns: ns})
	}
	o.delegates = len(o.ns) > 0 && !o.apex
}

func (s *addressSet) addAddress(a records.Address, rr dns.RR) {
	s.rrs, s.ips = append(s.rrs, rr), append(s.ips, a)
}

// splitText cuts a text into the strings of a TXT record, 255 bytes each. The library takes a backslash
// in them for the beginning of an escape.
func splitText(text string) []string {
	var parts []string
	for len(text) > 255 {
		parts, text = append(parts, strings.ReplaceAll(text[:255], `\`, `\\`)), text[255:]
	}
	return append(parts, strings.ReplaceAll(text, `\`, `\\`))
}

// inheritZones tells every name its zone and the delegation it lies in: those of the name above, if it is not
// the top of one itself.
func (g *Global) inheritZones() {
	g.sorted = make([]*owner, 0, len(g.owners))
	for _, o := range g.owners {
		g.sorted = append(g.sorted, o)
		// Whoever appends to an answer must not write into our records.
		for _, rrs := range []*[]dns.RR{&o.v4.rrs, &o.v6.rrs, &o.txt, &o.srv, &o.ns} {
			*rrs = slices.Clip(*rrs)
		}
	}
	slices.SortFunc(g.sorted, func(a, b *owner) int {
		return cmp.Or(cmp.Compare(len(a.name), len(b.name)), cmp.Compare(a.name, b.name))
	})
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

// addGlue gives each zone that is cut out the addresses of its name servers that are in it: who has only the zone above
// could not ask them (RFC 1034, 4.2.1).
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

// findOwner is the name itself or, not exact, the nearest one above that exists: the closest encloser of
// RFC 4592. It is nil for a name outside of the zone.
func (g *Global) findOwner(name string) (o *owner, exact bool) {
	for off, end := 0, false; !end; off, end = dns.NextLabel(name, off) {
		if o := g.owners[name[off:]]; o != nil {
			return o, off == 0
		}
	}
	return nil, false
}

// Answer makes the reply to a query for a name of the zone. Addresses behind links that are not usable
// are left out while another one of the name is usable; if none is, the reply is a failure that says
// why. The same goes for SRV records and delegations, by the addresses of their hosts. The addresses
// that are left come in the order local, then by round-trip time; equal ones rotate with the ID of the
// query.
//
// behind tells the way to an address; nil: all are local. ANY is answered with all there is.
func (g *Global) Answer(behind func(netip.Addr) *Path, state *request.Request) *dns.Msg {
	reply := g.resolveName(behind, state)
	if g.staleReason != "" {
		explainReply(reply, state.Req, staleCode(reply), g.staleReason)
	}
	return reply
}

// resolveName is Answer, whoever knew the names.
func (g *Global) resolveName(behind func(netip.Addr) *Path, state *request.Request) *dns.Msg {
	req := state.Req
	if g.missing != "" {
		return Failure(req, dns.ExtendedErrorCodeNotReady, g.missing)
	}
	a := globalReply{global: g, pathTo: behind, rotation: int(req.Id), qtype: state.QType(), reply: new(dns.Msg)}
	a.reply.SetReply(req)
	a.reply.Authoritative = true
	name, shown := state.Name(), req.Question[0].Name
	for range maxChain + 1 {
		o, exact := g.findOwner(name)
		switch {
		case o == nil: // an alias has led out of the zone
			return a.reply
		case exact && a.qtype == dns.TypeDS && (o.cut == o || o.apex && o.zone.parent != nil):
			// What is said of a delegation, the zone above says (RFC 4035, 3.1.4.1).
			a.reply.Ns = o.zone.soa
			if o.apex {
				a.reply.Ns = o.zone.parent.soa
			}
			return a.reply
		case o.cut != nil:
			a.referTo(o.cut)
		case !exact && o.wildcard == nil:
			a.reply.Rcode = dns.RcodeNameError
			a.reply.Ns = o.zone.soa
		default:
			if !exact {
				o = o.wildcard
			}
			if len(o.cname) > 0 && a.qtype != dns.TypeCNAME && a.qtype != dns.TypeANY {
				a.reply.Answer = append(a.reply.Answer, withOwner(o.cname, shown)...)
				name = o.cname[0].(*dns.CNAME).Target
				shown = name
				continue
			}
			a.addRecords(o, shown)
		}
		if a.problem != "" {
			if a.failed {
				return Failure(req, dns.ExtendedErrorCodeNoReachableAuthority, a.problem)
			}
			explainReply(a.reply, req, dns.ExtendedErrorCodeNoReachableAuthority, a.problem)
		}
		return a.reply
	}
	return Failure(req, dns.ExtendedErrorCodeInvalidData, fmt.Sprintf("the aliases of %s lead in a circle, or are more than %d", state.Name(), maxChain))
}

// globalReply is an answer in the making.
type globalReply struct {
	global   *Global
	pathTo   func(netip.Addr) *Path
	rotation int
	qtype    uint16
	reply    *dns.Msg
	problem  string // what keeps something from being answered
	failed   bool   // ... and nothing is left
}

// addRecords answers with the records of a name.
func (a *globalReply) addRecords(o *owner, shown string) {
	var rrs []dns.RR
	left := true // nothing is kept from the answer, or something remains
	switch a.qtype {
	case dns.TypeA:
		rrs, left = a.selectAddresses(o, &o.v4, &o.v6)
	case dns.TypeAAAA:
		rrs, left = a.selectAddresses(o, &o.v6, &o.v4)
	case dns.TypeCNAME:
		rrs = o.cname
	case dns.TypeTXT:
		rrs = o.txt
	case dns.TypeSRV:
		rrs, left = a.reachableHosts(o.srv)
	case dns.TypeNS:
		rrs = o.ns // of an apex: other ones are referred to
		a.addAdditional(rrs)
	case dns.TypeSOA:
		if o.apex {
			rrs = o.zone.soa
		}
	case dns.TypeANY:
		rrs, left = a.allRecords(o)
	}
	if a.failed = !left; a.failed {
		return
	}
	if len(rrs) == 0 {
		a.reply.Ns = o.zone.soa
		return
	}
	if rrs = withOwner(rrs, shown); len(a.reply.Answer) == 0 {
		a.reply.Answer = rrs
	} else {
		a.reply.Answer = append(a.reply.Answer, rrs...)
	}
}

// allRecords is what a name has, of any type.
func (a *globalReply) allRecords(o *owner) (rrs []dns.RR, ok bool) {
	v4, ok4 := a.selectAddresses(o, &o.v4, &o.v6)
	v6, ok6 := a.selectAddresses(o, &o.v6, &o.v4)
	if o.apex {
		rrs = append(rrs, o.zone.soa...)
	}
	rrs = slices.Concat(rrs, o.ns, o.cname, v4, v6, o.txt, o.srv)
	return rrs, ok4 && ok6 || len(rrs) > 0
}

// selectAddresses selects from a record set of a name what is usable. It fails if there is nothing, and the
// other set has nothing usable either.
func (a *globalReply) selectAddresses(o *owner, set, other *addressSet) (rrs []dns.RR, ok bool) {
	rrs = a.usableAddresses(set, o.fixed)
	if len(rrs) > 0 || len(set.rrs) == 0 {
		return rrs, true
	}
	rest := a.usableAddresses(other, o.fixed)
	a.addProblems(set, other)
	return nil, len(rest) > 0
}

// candidate is an address that may go into an answer.
type candidate struct {
	rr       dns.RR
	distance int64
}

// usableAddresses selects the addresses to answer with and puts the nearest first.
func (a *globalReply) usableAddresses(set *addressSet, fixed bool) []dns.RR {
	n := len(set.rrs)
	if n == 0 || a.pathTo == nil && (n == 1 || fixed) {
		return set.rrs
	}
	if n > 1 {
		return a.nearestAddresses(set, fixed)
	}
	if set.ips[0].AnyLink || a.pathTo(set.ips[0].Addr).isUsable() {
		return set.rrs
	}
	return nil
}

// nearestAddresses is usable for several addresses.
func (a *globalReply) nearestAddresses(set *addressSet, fixed bool) []dns.RR {
	n := len(set.rrs)
	var few [8]candidate
	list := few[:0]
	for i := range n {
		if !fixed {
			i = (i + a.rotation) % n
		}
		path := &localPath
		if a.pathTo != nil {
			path = a.pathTo(set.ips[i].Addr)
		}
		if path.isUsable() || set.ips[i].AnyLink {
			list = append(list, candidate{set.rrs[i], path.sortDistance()})
		}
	}
	if !fixed {
		slices.SortStableFunc(list, func(a, b candidate) int { return cmp.Compare(a.distance, b.distance) })
	}
	rrs := make([]dns.RR, len(list))
	for i := range list {
		rrs[i] = list[i].rr
	}
	return rrs
}

// sortDistance is the measure of the order: local first, then by round-trip time, what is not known last.
func (p *Path) sortDistance() int64 {
	switch {
	case p.Link == "":
		return -1
	case !p.Status.Usable || p.Status.RTT <= 0:
		return math.MaxInt64
	}
	return int64(p.Status.RTT)
}

// addProblems says why addresses are left out.
func (a *globalReply) addProblems(sets ...*addressSet) {
	for _, set := range sets {
		for _, ip := range set.ips {
			p := a.pathTo(ip.Addr)
			if text := p.describeProblem(); !p.isUsable() && !strings.Contains(a.problem, text) && len(a.problem) < maxProblem {
				a.problem = strings.TrimPrefix(a.problem+"; "+text, "; ")
			}
		}
	}
}

// maxProblem bounds what is collected of links that are not usable; clip shortens it further.
const maxProblem = 250

// reachableHosts leaves out SRV or NS records whose host has no usable address, while there are others, and
// adds the addresses of the rest. It fails if nothing is left.
func (a *globalReply) reachableHosts(rrs []dns.RR) (kept []dns.RR, ok bool) {
	kept = rrs
	if a.pathTo != nil && slices.ContainsFunc(rrs, a.isDead) {
		if kept = slices.DeleteFunc(slices.Clone(rrs), a.isDead); len(kept) == 0 {
			for _, rr := range rrs {
				o := a.hostOwner(hostName(rr))
				a.addProblems(&o.v4, &o.v6)
			}
			return nil, false
		}
	}
	a.addAdditional(kept)
	return kept, true
}

// isDead tells whether the host of a record has addresses, none of which is usable.
func (a *globalReply) isDead(rr dns.RR) bool {
	o := a.hostOwner(hostName(rr))
	return o != nil && len(o.v4.rrs)+len(o.v6.rrs) > 0 && len(a.usableAddresses(&o.v4, true)) == 0 && len(a.usableAddresses(&o.v6, true)) == 0
}

// hostName is the name in an SRV or NS record.
func hostName(rr dns.RR) string {
	switch rr := rr.(type) {
	case *dns.SRV:
		return rr.Target
	case *dns.NS:
		return rr.Ns
	}
	return ""
}

// hostOwner is where the addresses of a name are; nil if it has none here.
func (a *globalReply) hostOwner(name string) *owner {
	o, exact := a.global.findOwner(name)
	if o != nil && !exact {
		o = o.wildcard
	}
	return o
}

// addAdditional adds the addresses of the hosts of SRV or NS records.
func (a *globalReply) addAdditional(rrs []dns.RR) {
	for i, rr := range rrs {
		name := hostName(rr)
		if slices.ContainsFunc(rrs[:i], func(other dns.RR) bool { return hostName(other) == name }) {
			continue
		}
		if name == a.global.server {
			a.reply.Extra = append(a.reply.Extra, a.global.glue...)
		} else if o := a.hostOwner(name); o != nil {
			a.reply.Extra = append(a.reply.Extra, withOwner(a.usableAddresses(&o.v4, o.fixed), name)...)
			a.reply.Extra = append(a.reply.Extra, withOwner(a.usableAddresses(&o.v6, o.fixed), name)...)
		}
	}
}

// referTo answers with a delegation.
func (a *globalReply) referTo(cut *owner) {
	rrs, ok := a.reachableHosts(cut.ns)
	a.failed = !ok
	a.reply.Ns = rrs
	a.reply.Authoritative = len(a.reply.Answer) > 0 // that of an alias
}

// withOwner gives records their owner as it was asked for: another spelling, or a name that a wildcard stands for.
func withOwner(rrs []dns.RR, name string) []dns.RR {
	if len(rrs) == 0 || rrs[0].Header().Name == name {
		return rrs
	}
	renamed := make([]dns.RR, len(rrs))
	for i, rr := range rrs {
		renamed[i] = dns.Copy(rr)
		renamed[i].Header().Name = name
	}
	return renamed
}

// assignSerials gives zones whose records are what they were before the serial from before, as secondaries need not fetch
// them again; others too, where the new one is not higher (RFC 1982): they would not.
func (g *Global) assignSerials(serial uint32, before *Global) {
	if before == nil || before.missing != "" {
		return
	}
	if g.highestSerial = before.highestSerial; int32(serial-g.highestSerial) > 0 {
		g.highestSerial = serial
	}
	changed := map[string]bool{} // zones
	for _, pair := range [][2]*Global{{g, before}, {before, g}} {
		for _, o := range pair[0].sorted {
			p := pair[1].owners[o.name]
			if p == nil || !o.sameRecords(p) {
				changed[o.zone.name] = true
			}
			if up := o.delegatedBy(); up != "" && (p == nil || p.delegatedBy() != up || !slices.EqualFunc(o.ns, p.ns, sameRecord) || !slices.EqualFunc(o.glue, p.glue, sameRecord)) {
				changed[up] = true
			}
		}
	}
	for _, o := range g.sorted {
		if !o.apex {
			continue
		}
		last, soa := before.highestSerial, o.zone.soa[0].(*dns.SOA) // a new zone may be one that there was before
		if p := before.owners[o.name]; p != nil && p.apex {
			last = p.zone.soa[0].(*dns.SOA).Serial
		}
		if !changed[o.name] && !before.pendingSerials[o.name] {
			soa.Serial = last
		} else if int32(soa.Serial-last) <= 0 {
			soa.Serial = last
			if g.pendingSerials == nil {
				g.pendingSerials = map[string]bool{}
			}
			g.pendingSerials[o.name] = true
		}
	}
}

// delegatedBy is the zone that the zone whose top this is was cut out of.
func (o *owner) delegatedBy() string {
	if !o.apex || o.zone.parent == nil {
		return ""
	}
	return o.zone.parent.name
}

// sameRecords says whether the name had the same records before, in the same zone.
func (o *owner) sameRecords(before *owner) bool {
	if o.apex != before.apex || o.zone.name != before.zone.name {
		return false
	}
	if o.apex {
		soa := *before.zone.soa[0].(*dns.SOA)
		if soa.Serial = o.zone.soa[0].(*dns.SOA).Serial; !sameRecord(&soa, o.zone.soa[0]) {
			return false
		}
	}
	old := before.recordSets()
	for i, set := range o.recordSets() {
		if !slices.EqualFunc(set, old[i], sameRecord) {
			return false
		}
	}
	return true
}

func sameRecord(a, b dns.RR) bool { return a.Header().Ttl == b.Header().Ttl && dns.IsDuplicate(a, b) }

// recordSets are the records of the name, but for that of the apex.
func (o *owner) recordSets() [6][]dns.RR {
	return [...][]dns.RR{o.ns, o.cname, o.v4.rrs, o.v6.rrs, o.txt, o.srv}
}

// Transfer is all records of a zone, the global one or one that is cut out of it, whatever its links
// are like, between two SOA records (RFC 5936). A secondary that has the serial already, or a newer
// one, gets a single SOA record; 0 stands for none. It fails if the name is not that of a zone.
func (g *Global) Transfer(zone string, serial uint32) (rrs []dns.RR, ok bool) {
	top := g.owners[zone]
	if top == nil || !top.apex {
		return nil, false
	}
	rrs = append(rrs, top.zone.soa...)
	// Serial numbers wrap around (RFC 1982).
	if current := top.zone.soa[0].(*dns.SOA).Serial; serial != 0 && int32(serial-current) >= 0 {
		return rrs, true
	}
	for _, o := range g.sorted {
		switch {
		case o.zone == top.zone:
			for _, set := range o.recordSets() {
				rrs = append(rrs, set...)
			}
		case o.apex && o.zone.parent == top.zone:
			rrs = append(rrs, o.ns...)
			rrs = append(rrs, o.glue...)
		}
	}
	return append(rrs, top.zone.soa...), true
}
