package zone

// Replies for global names. A positive answer costs one look-up and, for a single record, no copy. Which addresses are
// behind links that are not usable is decided with each query.

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/coredns/coredns/request"

	"github.com/miekg/dns"
)

// resolveGlobal makes the reply to a query for a name of the zone. It leaves out addresses behind links that are not
// usable while another address of the name is usable; if none is, the reply is a failure that says why. The same goes
// for SRV records and delegations, by the addresses of their hosts. The addresses that are left come in the order
// local, then by round-trip time; equal ones rotate with the ID of the query.
//
// ANY is answered with all records.
func resolveGlobal(g *Global, table *Table, state *request.Request) *dns.Msg {
	var reply *dns.Msg
	if g.missing != "" {
		reply = Failure(state.Req, dns.ExtendedErrorCodeNotReady, g.missing)
	} else {
		a := globalReply{
			global: g, table: table, rotation: int(state.Req.Id), qtype: state.QType(), reply: NewReply(state.Req),
		}
		reply = a.resolveName(state)
	}
	if g.staleReason != "" {
		explainReply(reply, state.Req, staleCode(reply), g.staleReason)
	}
	return reply
}

// globalReply is a reply in the making.
type globalReply struct {
	global   *Global
	table    *Table // has the paths to addresses
	rotation int
	qtype    uint16
	reply    *dns.Msg
	problem  string // why something is left out
	failed   bool   // ... and nothing is left
}

// resolveName makes the reply, along the aliases of the zone.
func (a *globalReply) resolveName(state *request.Request) *dns.Msg {
	a.reply.Authoritative = true
	name, shown := state.Name(), state.Req.Question[0].Name
	for range maxChain + 1 {
		o, exact := a.global.findOwner(name)
		if o == nil { // an alias has led out of the zone
			return a.reply
		}
		source := o // of the records
		if !exact {
			source = o.wildcard
		}
		switch {
		case exact && a.qtype == dns.TypeDS && o.isZoneCut():
			a.denyDS(o)
		case o.cut != nil:
			a.referTo(o.cut)
		case source == nil:
			a.reply.Rcode = dns.RcodeNameError
			a.reply.Ns = o.zone.soa
		case a.followsAlias(source):
			a.reply.Answer = append(a.reply.Answer, withOwner(source.cname, shown)...)
			name = source.cname[0].(*dns.CNAME).Target
			shown = name
			continue
		default:
			a.addRecords(source, shown)
		}
		return a.explainProblem(state.Req)
	}
	return Failure(state.Req, dns.ExtendedErrorCodeInvalidData,
		fmt.Sprintf("the aliases of %s lead in a circle, or are more than %d", state.Name(), maxChain))
}

// denyDS denies the DS record of a delegation, in the name of the zone above (RFC 4035, 3.1.4.1).
func (a *globalReply) denyDS(o *owner) {
	a.reply.Ns = o.zone.soa
	if o.apex {
		a.reply.Ns = o.zone.parent.soa
	}
}

// followsAlias tells whether the reply goes on with the target of the name's CNAME record.
func (a *globalReply) followsAlias(o *owner) bool {
	return len(o.cname) > 0 && a.qtype != dns.TypeCNAME && a.qtype != dns.TypeANY
}

// explainProblem is the reply, with the reason if something is left out; a failure if nothing is left.
func (a *globalReply) explainProblem(req *dns.Msg) *dns.Msg {
	if a.problem == "" {
		return a.reply
	}
	if a.failed {
		return Failure(req, dns.ExtendedErrorCodeNoReachableAuthority, a.problem)
	}
	explainReply(a.reply, req, dns.ExtendedErrorCodeNoReachableAuthority, a.problem)
	return a.reply
}

// addRecords answers with the records of a name.
func (a *globalReply) addRecords(o *owner, shown string) {
	var rrs []dns.RR
	left := true // no record is left out, or some remain
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
		rrs = o.ns // of an apex: a delegation is for referTo
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

// allRecords are the records of a name, of any type.
func (a *globalReply) allRecords(o *owner) (rrs []dns.RR, ok bool) {
	v4, ok4 := a.selectAddresses(o, &o.v4, &o.v6)
	v6, ok6 := a.selectAddresses(o, &o.v6, &o.v4)
	if o.apex {
		rrs = append(rrs, o.zone.soa...)
	}
	rrs = slices.Concat(rrs, o.ns, o.cname, v4, v6, o.txt, o.srv)
	return rrs, ok4 && ok6 || len(rrs) > 0
}

// selectAddresses selects the usable addresses of a record set of a name. It fails if there is none, and the other set
// has none either.
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
	if n == 0 {
		return nil
	}
	if n > 1 {
		return a.nearestAddresses(set, fixed)
	}
	if set.ips[0].AnyLink || a.table.pathTo(set.ips[0].Addr).isUsable() {
		return set.rrs
	}
	return nil
}

// nearestAddresses is usableAddresses for a set of several.
func (a *globalReply) nearestAddresses(set *addressSet, fixed bool) []dns.RR {
	n := len(set.rrs)
	var few [8]candidate
	list := few[:0]
	for i := range n {
		if !fixed {
			i = (i + a.rotation) % n
		}
		path := a.table.pathTo(set.ips[i].Addr)
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

// addProblems collects why addresses are left out.
func (a *globalReply) addProblems(sets ...*addressSet) {
	for _, set := range sets {
		for _, ip := range set.ips {
			p := a.table.pathTo(ip.Addr)
			if text := p.describeProblem(); !p.isUsable() && !strings.Contains(a.problem, text) && len(a.problem) < maxProblem {
				a.problem = strings.TrimPrefix(a.problem+"; "+text, "; ")
			}
		}
	}
}

// maxProblem bounds the text of addProblems, in bytes; clipText shortens it further.
const maxProblem = 250

// reachableHosts leaves out SRV or NS records of hosts without a usable address, while other records are left, and adds
// the addresses of their hosts. It fails if nothing is left.
func (a *globalReply) reachableHosts(rrs []dns.RR) (kept []dns.RR, ok bool) {
	kept = rrs
	if slices.ContainsFunc(rrs, a.isDead) {
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

// isDead tells whether the host of a record has addresses, but no usable one.
func (a *globalReply) isDead(rr dns.RR) bool {
	o := a.hostOwner(hostName(rr))
	return o != nil && len(o.v4.rrs)+len(o.v6.rrs) > 0 &&
		len(a.usableAddresses(&o.v4, true)) == 0 && len(a.usableAddresses(&o.v6, true)) == 0
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

// hostOwner is the name that has the addresses of a host; nil if the zone has none.
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
	a.reply.Authoritative = len(a.reply.Answer) > 0 // for an alias
}

// withOwner gives records the owner name that the client asked for: another spelling, or a name that a wildcard covers.
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
