package zone

// Answers: from the table itself for a mesh domain, from the DNS service of the cluster for a
// cluster's names, or at once an error that says what is wrong.

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	resolve "github.com/coredns/coredns/plugin/pkg/upstream"
	"github.com/coredns/coredns/request"

	"github.com/miekg/dns"
)

// maxTTL is the longest TTL of any answer and, as names follow links, of any denial, in seconds. It
// is what CoreDNS' kubernetes plugin gives its records, and bounds how long the caches of others
// keep a name whose link is gone.
const maxTTL = 5

// Answer makes the reply to a query for the matched name. Aliases are followed to wherever this CoreDNS has an answer,
// as a resolver that forwards to us does not follow them. The reply is never nil; the error is for the log, if there is
// something that an operator should see. A zone transfer is not for Answer.
//
// What is seldom needed has functions of its own here: each query has a goroutine of its own, whose stack grows, by
// copying, with what its functions need.
func (m *Match) Answer(ctx context.Context, state *request.Request) (*dns.Msg, error) {
	reply, err := m.answer(ctx, state)
	if target, circle := open(reply); target != "" || circle {
		return m.lead(ctx, state, reply, err)
	}
	return reply, err
}

// lead follows the aliases of a reply.
func (m *Match) lead(ctx context.Context, state *request.Request, reply *dns.Msg, err error) (*dns.Msg, error) {
	begin := time.Now()
	for range aliasesMost {
		target, circle := open(reply)
		if circle {
			return Failure(state.Req, dns.ExtendedErrorCodeInvalidData, fmt.Sprintf("the aliases of %s lead in a circle", state.QName())), err
		}
		if target == "" {
			return reply, err
		}
		if time.Since(begin) > followTime || ctx.Err() != nil {
			return Failure(state.Req, dns.ExtendedErrorCodeNetworkError, fmt.Sprintf("to follow the aliases of %s takes over %s", state.QName(), followTime)), err
		}
		next, ok := m.table.Match(canonical(target))
		if !ok {
			return elsewhere(ctx, reply, target, state), err
		}
		m = next
		req := *state.Req
		req.Question = []dns.Question{{Name: target, Qtype: state.QType(), Qclass: state.QClass()}}
		rest, e := m.answer(ctx, &request.Request{W: state.W, Req: &req})
		if err == nil {
			err = e
		}
		reply = follow(reply, rest, state.Req)
		if target, circle := open(rest); target == "" && !circle { // an answer, or that there is none
			return reply, err
		}
	}
	return Failure(state.Req, dns.ExtendedErrorCodeOther, fmt.Sprintf("%s leads through more than %d aliases from one zone of the mesh to another", state.QName(), aliasesMost)), err
}

const (
	// aliasesMost is how many aliases from one zone to another are followed, and how many to names of other plugins.
	aliasesMost = 8
	// followTime is for how long: nobody waits for longer.
	followTime = 2 * time.Second
)

// open is where the aliases of a reply lead to, if it does not say what is there.
func open(reply *dns.Msg) (target string, circle bool) {
	if reply.Rcode != dns.RcodeSuccess || len(reply.Answer) == 0 || reply.Truncated {
		return "", false
	}
	switch reply.Question[0].Qtype {
	case dns.TypeCNAME, dns.TypeANY:
		return "", false
	}
	name := reply.Question[0].Name
	for range min(len(reply.Answer), maxChain) + 1 {
		next := ""
		for _, rr := range reply.Answer {
			if !equalFold(rr.Header().Name, name) {
				continue
			}
			cname, ok := rr.(*dns.CNAME)
			if !ok {
				return "", false // here it ends
			}
			next = cname.Target
		}
		if next != "" {
			name, target = next, next
			continue
		}
		// That there is nothing, or who is to be asked, is an answer, too.
		if slices.ContainsFunc(reply.Ns, func(rr dns.RR) bool { return in(name, rr.Header().Name) }) {
			return "", false
		}
		return target, false
	}
	return "", true // one of them was passed twice, or they are too many
}

// follow adds what is at the end of the aliases to the reply that has them.
func follow(reply, rest, req *dns.Msg) *dns.Msg {
	if rest.Rcode != dns.RcodeSuccess && rest.Rcode != dns.RcodeNameError {
		rest.Question = req.Question // an alias to nobody knows what is no answer
		return rest
	}
	joined := *reply
	joined.Rcode = rest.Rcode
	joined.Authoritative = reply.Authoritative // it is about the first owner (RFC 1035, 4.1.1)
	joined.Truncated = rest.Truncated
	joined.Answer = slices.Concat(reply.Answer, rest.Answer)
	joined.Ns, joined.Extra = rest.Ns, slices.Clip(rest.Extra)
	// An alias of which it is not sure that it is still true leads to nothing that is.
	if o := reply.IsEdns0(); o != nil {
		for _, option := range o.Option {
			if e, ok := option.(*dns.EDNS0_EDE); ok {
				addReason(&joined, req, e)
			}
		}
	}
	return &joined
}

// elsewhere follows an alias to a name that is not of the mesh. What no plugin here has is left to the client.
func elsewhere(ctx context.Context, reply *dns.Msg, target string, state *request.Request) *dns.Msg {
	// All plugins that look names up in their own server count in this place.
	loop, _ := ctx.Value(dnsserver.LoopKey{}).(int)
	if loop >= aliasesMost {
		return Failure(state.Req, dns.ExtendedErrorCodeInvalidData, fmt.Sprintf("the aliases of %s lead in a circle, or through more than %d zones", state.QName(), aliasesMost))
	}
	rest, err := resolve.New().Lookup(context.WithValue(ctx, dnsserver.LoopKey{}, loop+1), *state, target, state.QType())
	if err != nil || rest == nil || rest.Rcode != dns.RcodeSuccess && rest.Rcode != dns.RcodeNameError && rest.Rcode != dns.RcodeServerFailure {
		return reply
	}
	return follow(reply, rest, state.Req)
}

// answer is what the zone of the name has, without a look at other zones.
func (m *Match) answer(ctx context.Context, state *request.Request) (*dns.Msg, error) {
	switch {
	// What is said of a delegation, the zone above says (RFC 4035, 3.1.4.1): there is none, as all is in one hand.
	case m.exact && state.QType() == dns.TypeDS && (m.cluster != nil || m.global != nil):
		return m.own(state), nil
	case m.cluster != nil:
		return m.cluster.answer(ctx, m, state)
	case m.reverse != nil:
		return m.reverse.answer(ctx, m, state)
	case m.global != nil:
		return m.global.Answer(m.table.way, state), nil
	case m.state != nil:
		return ownReply(state.Req, m.zone.soa(), m.state.facts(state.QName(), state.QType())), nil
	}
	return m.own(state), nil
}

// own is what a mesh domain has itself.
func (m *Match) own(state *request.Request) *dns.Msg {
	qname, qtype := state.QName(), state.QType()
	reply := new(dns.Msg)
	reply.SetReply(state.Req)
	reply.Authoritative = true
	if !m.exact {
		reply.Rcode = dns.RcodeNameError
		reply.Ns = []dns.RR{m.zone.soa()}
		return reply
	}

	if m.top && (qtype == dns.TypeSOA || qtype == dns.TypeANY) {
		soa := m.zone.soa()
		soa.Hdr.Name = qname
		reply.Answer = append(reply.Answer, soa)
	}
	if m.top && (qtype == dns.TypeNS || qtype == dns.TypeANY) {
		ns := m.zone.nameServer(state.Req)
		reply.Answer = append(reply.Answer, ns.Answer...)
		reply.Extra = ns.Extra
	}
	if m.ns {
		reply.Answer = addressRecords(qname, qtype, m.zone.ns...)
	}
	if len(reply.Answer) == 0 {
		reply.Ns = []dns.RR{m.zone.soa()}
	}
	return reply
}

// soa is that of the zone that the name is in. We know reverse zones by their addresses only, and take the one right
// above for the zone.
func (m *Match) soa() *dns.SOA {
	soa := m.zone.soa()
	if m.reverse != nil {
		i, _ := dns.NextLabel(m.name, 0)
		soa.Hdr.Name = m.name[i:]
	}
	return soa
}

func (a *apex) soa() *dns.SOA {
	return &dns.SOA{
		Hdr: header(a.domain, dns.TypeSOA), Ns: "ns.dns." + a.domain, Mbox: "hostmaster." + a.domain,
		Serial: a.serial, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: maxTTL,
	}
}

// nameServer is the reply to a query for the name servers of D, or of a zone in it that is answered here.
func (a *apex) nameServer(req *dns.Msg) *dns.Msg {
	ns := &dns.NS{Hdr: header(req.Question[0].Name, dns.TypeNS), Ns: "ns.dns." + a.domain}
	reply := ownReply(req, a.soa(), []dns.RR{ns})
	reply.Extra = addressRecords(ns.Ns, dns.TypeANY, a.ns...)
	return reply
}

// ownReply is our own reply to a query for a name that exists.
func ownReply(req *dns.Msg, soa *dns.SOA, rrs []dns.RR) *dns.Msg {
	reply := new(dns.Msg)
	reply.SetReply(req)
	reply.Authoritative = true
	if reply.Answer = rrs; len(rrs) == 0 {
		reply.Ns = []dns.RR{soa}
	}
	return reply
}

// addressRecords are the A and AAAA records of a name, those of the type asked for.
func addressRecords(name string, qtype uint16, of ...netip.Addr) (rrs []dns.RR) {
	for _, ip := range of {
		switch {
		case ip.Unmap().Is4() && (qtype == dns.TypeA || qtype == dns.TypeANY):
			rrs = append(rrs, &dns.A{Hdr: header(name, dns.TypeA), A: ip.Unmap().AsSlice()})
		case !ip.Unmap().Is4() && (qtype == dns.TypeAAAA || qtype == dns.TypeANY):
			rrs = append(rrs, &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: ip.AsSlice()})
		}
	}
	return rrs
}

// stateLabel is before the name of a cluster in the name of what is known of its link.
const stateLabel = "_state."

// facts are what is known of the link to a cluster, as strings of the form of RFC 1464: "state=Up".
func (c *cluster) facts(name string, qtype uint16) []dns.RR {
	if qtype != dns.TypeTXT && qtype != dns.TypeANY {
		return nil
	}
	if c.link == "" {
		return []dns.RR{&dns.TXT{Hdr: header(name, dns.TypeTXT), Txt: []string{"state=Local"}}}
	}
	txt := []string{"state=" + c.status.State}
	if !c.status.Since.IsZero() {
		txt = append(txt, "since="+c.status.Since.UTC().Format(time.RFC3339))
	}
	if c.status.Usable && c.status.RTT > 0 {
		txt = append(txt, fmt.Sprintf("rtt=%.2fms", c.status.RTT.Seconds()*1000))
	}
	if c.status.Reason != "" {
		txt = append(txt, "reason="+clip(c.status.Reason))
	}
	return []dns.RR{&dns.TXT{Hdr: header(name, dns.TypeTXT), Txt: txt}}
}

// answer is the name of an address.
func (r *reverse) answer(ctx context.Context, m *Match, state *request.Request) (*dns.Msg, error) {
	qname, qtype := state.QName(), state.QType()
	c := r.cluster
	switch {
	case c == nil:
		reply := ownReply(state.Req, m.soa(), nil)
		reply.Rcode = dns.RcodeNameError
		return reply, nil
	case !r.self && !c.loads():
		return c.answer(ctx, m, state)
	case !c.status.Usable:
		return c.down(state.Req, c.pointers(c.answers.get(asks(state.Req)))), nil
	}
	names := []string{c.name}
	if !r.self {
		var err error
		if names, err = c.backend.Services(m.addr); err != nil {
			return c.failure(state.Req, c.pointers(c.answers.get(asks(state.Req))), dns.ExtendedErrorCodeNoReachableAuthority, err.Error()), nil
		}
	}
	var rrs []dns.RR
	for _, name := range names {
		if qtype == dns.TypePTR || qtype == dns.TypeANY {
			rrs = append(rrs, &dns.PTR{Hdr: header(qname, dns.TypePTR), Ptr: name})
		}
	}
	reply := ownReply(state.Req, m.soa(), rrs)
	if len(names) == 0 {
		reply.Rcode = dns.RcodeNameError
	}
	if len(names) > 0 { // others are many
		q := asks(state.Req)
		c.remember(state, q, c.answers.get(q), reply)
	}
	return reply, nil
}

// pointers are the remembered names of an address, if they are still names of the cluster.
func (c *cluster) pointers(m *memo) *memo {
	if m != nil && slices.ContainsFunc(m.reply.Answer, func(rr dns.RR) bool { ptr, ok := rr.(*dns.PTR); return !ok || !in(ptr.Ptr, c.name) }) {
		return nil
	}
	return m
}

func header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: maxTTL}
}

// answer is what the cluster says to a query; while its link is not usable, why.
func (c *cluster) answer(ctx context.Context, m *Match, state *request.Request) (*dns.Msg, error) {
	req := state.Req
	q := asks(req)
	remembered := c.answers.get(q)
	if m.reverse != nil {
		remembered = c.pointers(remembered)
	}
	own := m.exact && m.reverse == nil && c.self.IsValid() && (q.qtype == dns.TypeA || q.qtype == dns.TypeAAAA)
	if !c.status.Usable {
		reply := c.down(req, remembered)
		if own {
			c.readdress(state, reply)
		}
		return reply, nil
	}
	if own {
		return c.apex(m, state, q, remembered), nil
	}
	if c.loads() {
		return c.load(ctx, m, state, q, remembered), nil
	}
	if c.upstream != nil {
		if reply := remembered.fresh(c.source(), c.fresh, req); reply != nil {
			return reply, nil
		}
	}
	return c.fetch(ctx, m, state, q, remembered)
}

// down is what is said while the link is not usable.
//
//go:noinline
func (c *cluster) down(req *dns.Msg, remembered *memo) *dns.Msg {
	return c.failure(req, remembered, dns.ExtendedErrorCodeNoReachableAuthority, (&Path{c.link, c.status}).problem())
}

// readdress corrects a stale answer for the cluster's own address, which may be another one by now.
//
//go:noinline
func (c *cluster) readdress(state *request.Request, reply *dns.Msg) {
	if reply.Rcode == dns.RcodeSuccess {
		reply.Answer = addressRecords(state.QName(), state.QType(), c.self)
	}
}

// apex is the cluster's own address.
//
//go:noinline
func (c *cluster) apex(m *Match, state *request.Request, q question, remembered *memo) *dns.Msg {
	reply := ownReply(state.Req, m.zone.soa(), addressRecords(state.QName(), state.QType(), c.self))
	c.remember(state, q, remembered, reply)
	return reply
}

// remember keeps an answer that is not of a DNS service, for the time when it can no longer be given.
func (c *cluster) remember(state *request.Request, q question, remembered *memo, reply *dns.Msg) {
	if c.remembers() && state.QName() == q.name && (remembered == nil || remembered.age() > 0) {
		c.answers.put(q, source{cluster: c.id()}, reply)
	}
}

// load is the answer of a backend.
func (c *cluster) load(ctx context.Context, m *Match, state *request.Request, q question, remembered *memo) *dns.Msg {
	if m.exact && m.reverse == nil && state.QType() == dns.TypeNS {
		return m.zone.nameServer(state.Req) // the plugin does not know who serves it here
	}
	reply, err := c.backend.Answer(ctx, state)
	if err != nil {
		return c.failure(state.Req, remembered, dns.ExtendedErrorCodeNoReachableAuthority, err.Error()) // logged where it began
	}
	c.exist(m, reply)
	c.remember(state, q, remembered, reply)
	return reply
}

// fetch is what the DNS service of the cluster answers.
func (c *cluster) fetch(ctx context.Context, m *Match, state *request.Request, q question, remembered *memo) (*dns.Msg, error) {
	req := state.Req
	if c.upstream == nil && c.api {
		return c.failure(req, remembered, dns.ExtendedErrorCodeNotReady,
			fmt.Sprintf("names of %s are not loaded yet", c.owner())), nil
	}
	if c.upstream == nil {
		return c.failure(req, remembered, dns.ExtendedErrorCodeNoReachableAuthority,
			fmt.Sprintf("the address of the DNS service of %s is not known", c.owner())), nil
	}
	asked, code, err := c.ask(ctx, m, state, q)
	if err != nil {
		return c.failure(req, remembered, code, err.Error()), err
	}
	c.answers.put(q, c.source(), asked)
	r := reply(asked, req)
	if opt := asked.IsEdns0(); opt != nil && req.IsEdns0() == nil {
		r.Extra = withoutOPT(slices.Clone(r.Extra))
	}
	r.Truncated = asked.Truncated
	switch r.Rcode {
	case dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented, dns.RcodeFormatError:
		explain(r, req, dns.ExtendedErrorCodeNoReachableAuthority,
			fmt.Sprintf("answer of DNS service %s of %s", c.addr, c.owner()))
	}
	return r, nil
}

// id tells it from another cluster that has got its name.
func (c *cluster) id() netip.Addr {
	if c.network.IsValid() {
		return c.network.Addr()
	}
	return c.addr.Addr()
}

// source is the DNS service that is asked.
func (c *cluster) source() source { return source{cluster: c.id(), serial: c.upstream.serial} }

// reached tells whether the cluster could be asked by this process: what an earlier one was told is no longer of use.
func (c *cluster) reached() bool {
	return c.known || c.link == "" && c.upstream != nil && c.upstream.answered.Load()
}

// remembers tells whether anybody wants answers that were true once.
func (c *cluster) remembers() bool {
	return c.answers != nil && (c.stale > 0 || c.answers.Persistent.Load())
}

// failure is what is said when the cluster cannot be asked: a stale answer (RFC 8767) where that is wanted, else
// SERVFAIL. The Extended DNS Error says why in either case.
func (c *cluster) failure(req *dns.Msg, remembered *memo, code uint16, text string) *dns.Msg {
	most := c.stale
	if remembered != nil && remembered.source.earlier && !c.reached() {
		most = staleMost
	}
	if most > 0 {
		if r := remembered.stale(c.id(), most, req); r != nil {
			explain(r, req, staleCode(r), text)
			return r
		}
	}
	return Failure(req, code, text)
}

// ask asks the DNS service of the cluster. Names of the reply are those of the mesh, and the question is in lower case.
// With an error comes the code of the Extended DNS Error.
func (c *cluster) ask(ctx context.Context, m *Match, state *request.Request, q question) (*dns.Msg, uint16, error) {
	asked, fits := q.name, true
	if m.reverse == nil {
		asked, fits = replaceSuffix(q.name, c.name, c.domain)
	}
	req := state.Req
	// A message of our own: what else is in the client's (TSIG, cookies) is between it and us.
	query := new(dns.Msg)
	query.RecursionDesired, query.CheckingDisabled = req.RecursionDesired, req.CheckingDisabled
	query.Question = []dns.Question{{Name: asked, Qtype: q.qtype, Qclass: state.QClass()}}
	if !fits {
		// Longer than 255 octets in the cluster's own domain: such a name cannot exist there.
		reply := ownReply(query, m.soa(), nil)
		reply.Rcode = dns.RcodeNameError
		reply.Question[0].Name = q.name
		return reply, 0, nil
	}
	opt := req.IsEdns0()
	if opt != nil {
		// Its options are not passed on: a cluster has the same answer for everybody, which can be shared.
		query.Extra = []dns.RR{&dns.OPT{Hdr: opt.Hdr}}
	}

	reply, err := c.upstream.exchange(ctx, request.Request{W: state.W, Req: query})
	if err != nil {
		return nil, dns.ExtendedErrorCodeNetworkError, fmt.Errorf("DNS service %s of %s: %w", c.addr, c.owner(), err)
	}

	w := rewriter{from: c.domain, to: c.name, asked: asked, client: q.name, table: m.table, cluster: c}
	if m.reverse != nil {
		err = w.pointers(reply)
	} else {
		err = w.reply(reply)
	}
	if err != nil {
		return nil, dns.ExtendedErrorCodeInvalidData, fmt.Errorf("DNS service %s of %s: %w %s", c.addr, c.owner(), err, c.name)
	}
	reply.Question = []dns.Question{{Name: q.name, Qtype: q.qtype, Qclass: state.QClass()}}
	c.exist(m, reply)
	if m.reverse != nil && len(reply.Answer) == 0 && (reply.Rcode == dns.RcodeSuccess || reply.Rcode == dns.RcodeNameError) {
		reply.Ns = []dns.RR{m.soa()}
	}
	if o := reply.IsEdns0(); o != nil {
		o.Option = endToEnd(o.Option)
	}
	return reply, 0, nil
}

// exist takes back a denial of the cluster's own name, which has an address. The kubernetes plugin of CoreDNS denies
// its domain for types that it has nothing of, and who believes that believes that nothing is below (RFC 8020).
func (c *cluster) exist(m *Match, reply *dns.Msg) {
	if m.exact && m.reverse == nil && c.self.IsValid() && reply.Rcode == dns.RcodeNameError {
		reply.Rcode = dns.RcodeSuccess
	}
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

// staleCode is the Extended DNS Error of an answer that may be out of date.
func staleCode(reply *dns.Msg) uint16 {
	if reply.Rcode == dns.RcodeNameError {
		return dns.ExtendedErrorCodeStaleNXDOMAINAnswer
	}
	return dns.ExtendedErrorCodeStaleAnswer
}

// explain adds an Extended DNS Error to a reply that has none.
func explain(reply, req *dns.Msg, code uint16, text string) {
	if o := reply.IsEdns0(); o == nil || !slices.ContainsFunc(o.Option, func(o dns.EDNS0) bool { return o.Option() == dns.EDNS0EDE }) {
		addReason(reply, req, &dns.EDNS0_EDE{InfoCode: code, ExtraText: clip(text)})
	}
}

// addReason adds an Extended DNS Error to a reply, if the client knows EDNS.
func addReason(reply, req *dns.Msg, reason *dns.EDNS0_EDE) {
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
	o.Option = append(o.Option, reason)
}
