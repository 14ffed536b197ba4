package zone

// Replies that kubelink makes itself: the SOA and NS records of a mesh domain, addresses, failures, and the Extended
// DNS Error (RFC 8914) that says why.

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// maxTTL is the longest TTL of any answer and, as names follow links, of any denial, in seconds. CoreDNS' kubernetes
// plugin gives its records the same TTL. It bounds for how long other caches hold a name after its link is lost.
const maxTTL = 5

func rrHeader(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: maxTTL}
}

// meshDomain is the base domain D of a mesh.
type meshDomain struct {
	name        string
	serial      uint32
	nsAddresses []netip.Addr
}

func (d *meshDomain) soaRecord() *dns.SOA {
	return &dns.SOA{
		Hdr: rrHeader(d.name, dns.TypeSOA), Ns: "ns.dns." + d.name, Mbox: "hostmaster." + d.name,
		Serial: d.serial, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: maxTTL,
	}
}

// subdomainSOA is the SOA record of a zone in D that this CoreDNS answers for.
func (d *meshDomain) subdomainSOA(zone string) *dns.SOA {
	soa := d.soaRecord()
	soa.Hdr.Name = zone
	return soa
}

// reverseSOA is the SOA record for the name of an address. The table knows reverse zones by their addresses only, and
// takes the name right above for the zone.
func (d *meshDomain) reverseSOA(name string) *dns.SOA {
	soa := d.soaRecord()
	i, _ := dns.NextLabel(name, 0)
	soa.Hdr.Name = name[i:]
	return soa
}

// nsReply is the reply to a query for the name servers of D, or of a zone in it that this CoreDNS answers for.
func (d *meshDomain) nsReply(req *dns.Msg) *dns.Msg {
	ns := &dns.NS{Hdr: rrHeader(req.Question[0].Name, dns.TypeNS), Ns: "ns.dns." + d.name}
	reply := authoritativeReply(req, d.soaRecord(), []dns.RR{ns})
	reply.Extra = addressRecords(ns.Ns, dns.TypeANY, d.nsAddresses...)
	return reply
}

// NewReply makes an empty reply to a query, as dns.Msg.SetReply does, in one allocation. It is not taken from a pool:
// plugins in front of this one, such as log and cache, may keep it.
func NewReply(req *dns.Msg) *dns.Msg {
	reply := new(struct {
		dns.Msg
		question [1]dns.Question
	})
	reply.SetReply(&dns.Msg{MsgHdr: req.MsgHdr})
	reply.Question = reply.question[:copy(reply.question[:], req.Question)]
	return &reply.Msg
}

// authoritativeReply is the reply to a query for a name that exists. It has the SOA record if there is nothing else.
func authoritativeReply(req *dns.Msg, soa *dns.SOA, rrs []dns.RR) *dns.Msg {
	reply := NewReply(req)
	reply.Authoritative = true
	if reply.Answer = rrs; len(rrs) == 0 {
		reply.Ns = []dns.RR{soa}
	}
	return reply
}

// addressRecords are the A and AAAA records of a name that a query of this type asks for.
func addressRecords(name string, qtype uint16, of ...netip.Addr) (rrs []dns.RR) {
	for _, ip := range of {
		switch {
		case ip.Unmap().Is4() && (qtype == dns.TypeA || qtype == dns.TypeANY):
			rrs = append(rrs, &dns.A{Hdr: rrHeader(name, dns.TypeA), A: ip.Unmap().AsSlice()})
		case !ip.Unmap().Is4() && (qtype == dns.TypeAAAA || qtype == dns.TypeANY):
			rrs = append(rrs, &dns.AAAA{Hdr: rrHeader(name, dns.TypeAAAA), AAAA: ip.AsSlice()})
		}
	}
	return rrs
}

// Failure is the SERVFAIL reply to a query, with an Extended DNS Error if the client knows EDNS.
func Failure(req *dns.Msg, code uint16, text string) *dns.Msg {
	reply := NewReply(req)
	reply.Rcode = dns.RcodeServerFailure
	explainReply(reply, req, code, text)
	return reply
}

// staleCode is the code of the Extended DNS Error for an answer that may be out of date.
func staleCode(reply *dns.Msg) uint16 {
	if reply.Rcode == dns.RcodeNameError {
		return dns.ExtendedErrorCodeStaleNXDOMAINAnswer
	}
	return dns.ExtendedErrorCodeStaleAnswer
}

// explainReply adds an Extended DNS Error to a reply that has none.
func explainReply(reply, req *dns.Msg, code uint16, text string) {
	if o := reply.IsEdns0(); o == nil || !slices.ContainsFunc(o.Option, isEDE) {
		addEDE(reply, req, &dns.EDNS0_EDE{InfoCode: code, ExtraText: clipText(text)})
	}
}

// explainOmission says what is left out of a reply, if anything is.
func explainOmission(reply, req *dns.Msg, omitted string) {
	if omitted != "" {
		explainReply(reply, req, dns.ExtendedErrorCodeNoReachableAuthority, omitted)
	}
}

func isEDE(o dns.EDNS0) bool { return o.Option() == dns.EDNS0EDE }

// addEDE adds an Extended DNS Error to a reply, if the client knows EDNS.
func addEDE(reply, req *dns.Msg, ede *dns.EDNS0_EDE) {
	opt := req.IsEdns0()
	if opt == nil {
		return
	}
	o := reply.IsEdns0()
	if o == nil {
		// CoreDNS sets size and flags when it writes the reply.
		o = &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
		o.SetUDPSize(opt.UDPSize())
		if opt.Do() {
			o.SetDo()
		}
		reply.Extra = append(reply.Extra, o)
	}
	o.Option = append(o.Option, ede)
}

// clipText shortens a text so that a reply with it fits any UDP message, and keeps it valid UTF-8 as RFC 8914 demands.
// It cuts between words and marks the cut.
func clipText(text string) string {
	const maxText, mark = 240, "..." // bytes
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	if len(text) > maxText {
		text = text[:maxText-len(mark)]
		if i := strings.LastIndexByte(text, ' '); i > 0 {
			text = text[:i]
		}
		text = strings.ToValidUTF8(text, "") + mark
	}
	return strings.ToValidUTF8(text, "")
}

// endToEndOptions removes the EDNS options that belong to one connection (cookies of RFC 7873, TCP keepalive of RFC
// 7828, padding of RFC 7830) and keeps the ones that are meant for the other end.
func endToEndOptions(options []dns.EDNS0) []dns.EDNS0 {
	var kept []dns.EDNS0
	for _, o := range options {
		switch o.Option() {
		case dns.EDNS0COOKIE, dns.EDNS0TCPKEEPALIVE, dns.EDNS0PADDING:
		default:
			kept = append(kept, o)
		}
	}
	return kept
}

// withoutOPT removes OPT records, in place.
func withoutOPT(rrs []dns.RR) []dns.RR {
	kept := rrs[:0]
	for _, rr := range rrs {
		if rr.Header().Rrtype != dns.TypeOPT {
			kept = append(kept, rr)
		}
	}
	return kept
}
