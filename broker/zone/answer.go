package zone

// Answers: from the table itself for a mesh domain, from the DNS service of the cluster for a
// cluster's names, or at once an error that says what is wrong.

import (
	"context"
	"fmt"

	"github.com/coredns/coredns/request"

	"github.com/miekg/dns"
)

// maxTTL is the longest TTL of any answer and, as names follow links, of any denial, in seconds. It
// is what CoreDNS' kubernetes plugin gives its records, and bounds how long the caches of others
// keep a name whose link is gone.
const maxTTL = 5

// Answer makes the reply to a query for the matched name. The reply is never nil; the error is for
// the log, if there is something that an operator should see. A zone transfer is not for Answer.
func (m Match) Answer(ctx context.Context, state request.Request) (*dns.Msg, error) {
	if m.cluster != nil {
		return m.cluster.answer(ctx, m, state)
	}
	reply := new(dns.Msg)
	reply.SetReply(state.Req)
	reply.Authoritative = true
	if !m.exact {
		reply.Rcode = dns.RcodeNameError
		reply.Ns = []dns.RR{m.zone.soa()}
		return reply, nil
	}

	qname, qtype := state.QName(), state.QType()
	if m.top && (qtype == dns.TypeSOA || qtype == dns.TypeANY) {
		soa := m.zone.soa()
		soa.Hdr.Name = qname
		reply.Answer = append(reply.Answer, soa)
	}
	if m.top && (qtype == dns.TypeNS || qtype == dns.TypeANY) {
		ns := &dns.NS{Hdr: header(qname, dns.TypeNS), Ns: "ns.dns." + m.zone.domain}
		reply.Answer = append(reply.Answer, ns)
		reply.Extra = m.zone.addresses(ns.Ns, dns.TypeANY)
	}
	if m.ns {
		reply.Answer = m.zone.addresses(qname, qtype)
	}
	if len(reply.Answer) == 0 {
		reply.Ns = []dns.RR{m.zone.soa()}
	}
	return reply, nil
}

func (a *apex) soa() *dns.SOA {
	return &dns.SOA{
		Hdr: header(a.domain, dns.TypeSOA), Ns: "ns.dns." + a.domain, Mbox: "hostmaster." + a.domain,
		Serial: a.serial, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: maxTTL,
	}
}

// addresses are the A and AAAA records of our name server, those of the type asked for.
func (a *apex) addresses(name string, qtype uint16) (rrs []dns.RR) {
	for _, ip := range a.ns {
		switch {
		case ip.Unmap().Is4() && (qtype == dns.TypeA || qtype == dns.TypeANY):
			rrs = append(rrs, &dns.A{Hdr: header(name, dns.TypeA), A: ip.Unmap().AsSlice()})
		case !ip.Unmap().Is4() && (qtype == dns.TypeAAAA || qtype == dns.TypeANY):
			rrs = append(rrs, &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: ip.AsSlice()})
		}
	}
	return rrs
}

func header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: maxTTL}
}

// answer asks the cluster.
func (c *cluster) answer(ctx context.Context, m Match, state request.Request) (*dns.Msg, error) {
	req := state.Req
	if !c.status.Usable {
		text := fmt.Sprintf("link %s is %s", c.link, c.status.State)
		if c.status.Reason != "" {
			text += ": " + c.status.Reason
		}
		return Failure(req, dns.ExtendedErrorCodeNoReachableAuthority, text), nil
	}
	if c.upstream == nil {
		return Failure(req, dns.ExtendedErrorCodeNoReachableAuthority,
			fmt.Sprintf("the address of the DNS service of %s is not known", c.owner())), nil
	}

	asked, fits := replaceSuffix(state.QName(), c.name, c.domain)
	if !fits {
		// Longer than 255 octets in the cluster's own domain: such a name cannot exist there.
		reply := new(dns.Msg)
		reply.SetRcode(req, dns.RcodeNameError)
		reply.Authoritative = true
		reply.Ns = []dns.RR{m.zone.soa()}
		return reply, nil
	}

	// A message of our own: what else is in the client's (TSIG, cookies) is between it and us.
	query := new(dns.Msg)
	query.RecursionDesired, query.CheckingDisabled = req.RecursionDesired, req.CheckingDisabled
	query.Question = []dns.Question{{Name: asked, Qtype: state.QType(), Qclass: state.QClass()}}
	opt := req.IsEdns0()
	if opt != nil {
		query.Extra = []dns.RR{&dns.OPT{Hdr: opt.Hdr, Option: endToEnd(opt.Option)}}
	}

	reply, err := c.upstream.exchange(ctx, request.Request{W: state.W, Req: query})
	if err != nil {
		err = fmt.Errorf("DNS service %s of %s: %w", c.addr, c.owner(), err)
		return Failure(req, dns.ExtendedErrorCodeNetworkError, err.Error()), err
	}

	w := rewriter{from: c.domain, to: c.name, asked: asked, client: state.QName(), table: m.table, cluster: c}
	if err := w.reply(reply); err != nil {
		err = fmt.Errorf("DNS service %s of %s: %w %s", c.addr, c.owner(), err, c.name)
		return Failure(req, dns.ExtendedErrorCodeInvalidData, err.Error()), err
	}
	reply.Id = req.Id
	reply.Question = req.Question
	reply.AuthenticatedData = false // what was validated are other names
	if opt == nil {
		reply.Extra = withoutOPT(reply.Extra)
	} else if o := reply.IsEdns0(); o != nil {
		o.Option = endToEnd(o.Option)
	}
	switch reply.Rcode {
	case dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented, dns.RcodeFormatError:
		explain(reply, req, dns.ExtendedErrorCodeNoReachableAuthority,
			fmt.Sprintf("answer of DNS service %s of %s", c.addr, c.owner()))
	}
	return reply, nil
}

func (c *cluster) owner() string {
	if c.link == "" {
		return "the local cluster"
	}
	return "link " + c.link
}

// Failure is the SERVFAIL reply to a query, with an Extended DNS Error if the client knows EDNS.
func Failure(req *dns.Msg, code uint16, text string) *dns.Msg {
	reply := new(dns.Msg)
	reply.SetRcode(req, dns.RcodeServerFailure)
	explain(reply, req, code, text)
	return reply
}

// explain adds an Extended DNS Error to a reply that has none.
func explain(reply, req *dns.Msg, code uint16, text string) {
	opt := req.IsEdns0()
	if opt == nil {
		return
	}
	o := reply.IsEdns0()
	if o == nil {
		// Size and flags are set by CoreDNS when the reply is written.
		o = &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
		o.SetUDPSize(opt.UDPSize())
		if opt.Do() {
			o.SetDo()
		}
		reply.Extra = append(reply.Extra, o)
	}
	for _, option := range o.Option {
		if option.Option() == dns.EDNS0EDE {
			return
		}
	}
	o.Option = append(o.Option, &dns.EDNS0_EDE{InfoCode: code, ExtraText: clip(text)})
}
