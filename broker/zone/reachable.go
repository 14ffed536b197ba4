package zone

// An address in an answer is one that this side can reach. What a cluster says of addresses counts only for networks
// that are routed to its link: pods have the same addresses in many clusters, and a client would end at a pod of its
// own cluster. Nor may a peer lead clients to 127.0.0.1, to services of other clusters or to ours (DNS rebinding).
//
// All functions here leave records and sections as they are, because other replies may share them.

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// omission is what is left out of a reply. The zero value is nothing.
type omission struct {
	addrs   []netip.Addr // some of them
	more    int          // how many others
	problem string       // of a link, if there is one to blame
}

// maxOmitted bounds the addresses that are named.
const maxOmitted = 3

func (o *omission) add(addr netip.Addr, path *Path) {
	if o.problem == "" && path.Link != "" && !path.isUsable() {
		o.problem = path.describeProblem()
	}
	switch {
	case slices.Contains(o.addrs, addr):
	case len(o.addrs) < maxOmitted:
		o.addrs = append(o.addrs, addr)
	default:
		o.more++
	}
}

// describe says what is left out, and why.
func (o *omission) describe(c *cluster) string {
	var names []string
	for _, a := range o.addrs {
		names = append(names, a.String())
	}
	text := "left out " + strings.Join(names, ", ")
	if o.more > 0 {
		text += fmt.Sprintf(" and %d more", o.more)
	}
	switch {
	case c.isGlobal && o.problem != "":
		return text + ": " + o.problem
	case c.isGlobal:
		return text + ": the address leads nowhere from here"
	}
	return fmt.Sprintf("%s: not routed to %s, as spec.cidr and spec.egress of the link say; addresses of pods seldom are",
		text, c.displayName())
}

// leaveOutUnreachable removes addresses that do not lead to the cluster, and says so; empty: there are none. It
// replaces sections of the reply, and leaves their records as they are. A reply that has no answer left denies the
// records, but not the name. For a global name, the links to its addresses may be why: that is a failure, as where the
// zone is served.
func (c *cluster) leaveOutUnreachable(m *dns.Msg) (omitted string) {
	if c.link == "" && !c.isGlobal {
		return ""
	}
	answer, extra := c.firstUnreachable(m.Answer), c.firstUnreachable(m.Extra)
	if answer < 0 && extra < 0 {
		return ""
	}
	return c.leaveOut(m, answer, extra)
}

// leaveOut is leaveOutUnreachable from the given records on; negative: none of the section.
func (c *cluster) leaveOut(m *dns.Msg, answer, extra int) (omitted string) {
	var left omission
	before := len(m.Answer)
	m.Answer = c.reachableRecords(m.Answer, answer, &left)
	m.Extra = c.reachableRecords(m.Extra, extra, &left)
	if len(m.Answer) < before {
		c.setAuthority(m)
	}
	if c.isGlobal && left.problem != "" && len(m.Answer) == 0 && before > 0 {
		m.Rcode, m.Ns = dns.RcodeServerFailure, nil
	}
	return left.describe(c)
}

// firstUnreachable is the index of the first record with an address that does not lead to the cluster, or -1.
func (c *cluster) firstUnreachable(rrs []dns.RR) int {
	for i, rr := range rrs {
		if !c.isReachableRecord(rr) {
			return i
		}
	}
	return -1
}

// reachableRecords is the section without the addresses that do not lead to the cluster, of which first has one.
func (c *cluster) reachableRecords(rrs []dns.RR, first int, left *omission) []dns.RR {
	if first < 0 {
		return rrs
	}
	kept := slices.Clone(rrs[:first])
	for _, rr := range rrs[first:] {
		if rr = c.reachablePart(rr, left); rr != nil {
			kept = append(kept, rr)
		}
	}
	return kept
}

// isReachableRecord tells whether all addresses in the record lead to the cluster.
func (c *cluster) isReachableRecord(rr dns.RR) bool {
	switch rr := rr.(type) {
	case *dns.A:
		return c.isReachable(addrOf(rr.A), inDomain(rr.Hdr.Name, c.name))
	case *dns.AAAA:
		return c.isReachable(addrOf(rr.AAAA), inDomain(rr.Hdr.Name, c.name))
	case *dns.SVCB:
		return c.reachesHints(rr)
	case *dns.HTTPS:
		return c.reachesHints(&rr.SVCB)
	}
	return true
}

// reachablePart is what can stay of a record; nil: nothing.
func (c *cluster) reachablePart(rr dns.RR, left *omission) dns.RR {
	if c.isReachableRecord(rr) {
		return rr
	}
	switch rr := rr.(type) {
	case *dns.A:
		left.add(addrOf(rr.A), c.table.pathTo(addrOf(rr.A)))
	case *dns.AAAA:
		left.add(addrOf(rr.AAAA), c.table.pathTo(addrOf(rr.AAAA)))
	case *dns.SVCB:
		if svcb := c.withoutHints(rr, left); svcb != nil {
			return svcb
		}
	case *dns.HTTPS:
		if svcb := c.withoutHints(&rr.SVCB, left); svcb != nil {
			return &dns.HTTPS{SVCB: *svcb}
		}
	}
	return nil
}

// reachesHints tells whether the addresses in a record of RFC 9460 lead to the cluster.
func (c *cluster) reachesHints(rr *dns.SVCB) bool {
	inside := inDomain(rr.Hdr.Name, c.name)
	for _, value := range rr.Value {
		for _, ip := range hintAddresses(value) {
			if !c.isReachable(addrOf(ip), inside) {
				return false
			}
		}
	}
	return true
}

// withoutHints is a copy of the record without hints that do not lead to the cluster; nil if the record says that a
// client must use them. Hints only save a query: the addresses of the target count.
func (c *cluster) withoutHints(rr *dns.SVCB, left *omission) *dns.SVCB {
	part := *rr
	part.Value = nil
	for _, value := range rr.Value {
		hints := hintAddresses(value)
		unreachable := slices.DeleteFunc(slices.Clone(hints), func(ip []byte) bool {
			return c.isReachable(addrOf(ip), inDomain(rr.Hdr.Name, c.name))
		})
		for _, ip := range unreachable {
			left.add(addrOf(ip), c.table.pathTo(addrOf(ip)))
		}
		switch {
		case len(unreachable) == 0:
			part.Value = append(part.Value, value)
		case isMandatory(rr, value.Key()):
			return nil
		}
	}
	return &part
}

// hintAddresses are the addresses of a hint; none for another parameter.
func hintAddresses(value dns.SVCBKeyValue) (ips [][]byte) {
	switch value := value.(type) {
	case *dns.SVCBIPv4Hint:
		for _, ip := range value.Hint {
			ips = append(ips, ip)
		}
	case *dns.SVCBIPv6Hint:
		for _, ip := range value.Hint {
			ips = append(ips, ip)
		}
	}
	return ips
}

// isMandatory tells whether a client must not use the record without the parameter.
func isMandatory(rr *dns.SVCB, key dns.SVCBKey) bool {
	return slices.ContainsFunc(rr.Value, func(value dns.SVCBKeyValue) bool {
		m, ok := value.(*dns.SVCBMandatory)
		return ok && slices.Contains(m.Code, key)
	})
}

// addrOf is the address in a record; not valid if the record has none.
func addrOf(ip []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
