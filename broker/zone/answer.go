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
	reply, err := m.resolveInZone(ctx, state)
	if target, circle := danglingTarget(reply); target != "" || circle {
		return m.chaseCNAME(ctx, state, reply, err)
	}
	return reply, err
}

// chaseCNAME follows the aliases of a reply.
func (m *Match) chaseCNAME(ctx context.Context, state *request.Request, reply *dns.Msg, err error) (*dns.Msg, error) {
	begin := time.Now()
	for range maxAliases {
		target, circle := danglingTarget(reply)
		if circle {
			return Failure(state.Req, dns.ExtendedErrorCodeInvalidData, fmt.Sprintf("the aliases of %s lead in a circle", state.QName())), err
		}
		if target == "" {
			return reply, err
		}
		if time.Since(begin) > maxChaseTime || ctx.Err() != nil {
			return Failure(state.Req, dns.ExtendedErrorCodeNetworkError, fmt.Sprintf("to follow the aliases of %s takes over %s", state.QName(), maxChaseTime)), err
		}
		next, ok := m.table.Match(dns.CanonicalName(target))
		if !ok {
			return lookupLocal(ctx, reply, target, state), err
		}
		m = next
		req := *state.Req
		req.Question = []dns.Question{{Name: target, Qtype: state.QType(), Qclass: state.QClass()}}
		rest, e := m.resolveInZone(ctx, &request.Request{W: state.W, Req: &req})
		if err == nil {
			err = e
		}
		reply = appendChain(reply, rest, state.Req)
		if target, circle := danglingTarget(rest); target == "" && !circle { // an answer, or that there is none
			return reply, err
		}
	}
	return Failure(state.Req, dns.ExtendedErrorCodeOther, fmt.Sprintf("%s leads through more than %d aliases from one zone of the mesh to another", state.QName(), maxAliases)), err
}

const (
	// maxAliases is how many aliases from one zone to another are followed, and how many to names of other plugins.
	maxAliases = 8
	// maxChaseTime is for how long: nobody waits for longer.
	maxChaseTime = 2 * time.Second
)

// danglingTarget is where the aliases of a reply lead to, if it does not say what is there.
func danglingTarget(reply *dns.Msg) (target string, circle bool) {
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
		if slices.ContainsFunc(reply.Ns, func(rr dns.RR) bool { return inDomain(name, rr.Header().Name) }) {
			return "", false
		}
		return target, false
	}
	return "", true // one of them was passed twice, or they are too many
}

// appendChain adds what is at the end of the aliases to the reply that has them.
func appendChain(reply, rest, req *dns.Msg) *dns.Msg {
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
				addEDE(&joined, req, e)
			}
		}
	}
	return &joined
}

// lookupLocal follows an alias to a name that is not of the mesh. What no plugin here has is left to the client.
func lookupLocal(ctx context.Context, reply *dns.Msg, target string, state *request.Request) *dns.Msg {
	// All plugins that look names up in their own server count in this place.
	loop, _ := ctx.Value(dnsserver.LoopKey{}).(int)
	if loop >= maxAliases {
		return Failure(state.Req, dns.ExtendedErrorCodeInvalidData, fmt.Sprintf("the aliases of %s lead in a circle, or through more than %d zones", state.QName(), maxAliases))
	}
	rest, err := resolve.New().Lookup(context.WithValue(ctx, dnsserver.LoopKey{}, loop+1), *state, target, state.QType())
	if err != nil || rest == nil || rest.Rcode != dns.RcodeSuccess && rest.Rcode != dns.RcodeNameError && rest.Rcode != dns.RcodeServerFailure {
		return reply
	}
	return appendChain(reply, rest, state.Req)
}

// resolveInZone is what the zone of the name has, without a look at other zones.
func (m *Match) resolveInZone(ctx context.Context, state *request.Request) (*dns.Msg, error) {
	switch {
	// What is said of a delegation, the zone above says (RFC 4035, 3.1.4.1): there is none, as all is in one hand.
	case m.exact && state.QType() == dns.TypeDS && (m.cluster != nil || m.global != nil):
		return m.domainReply(state), nil
	case m.cluster != nil:
		return m.cluster.resolveName(ctx, m, state)
	case m.reverse != nil:
		return m.reverse.pointerReply(ctx, m, state)
	case m.global != nil:
		return m.global.Answer(m.table.pathTo, state), nil
	case m.stateOf != nil:
		return authoritativeReply(state.Req, m.domain.soaRecord(), m.stateOf.stateRecords(state.QName(), state.QType())), nil
	}
	return m.domainReply(state), nil
}

// domainReply is what a mesh domain has itself.
func (m *Match) domainReply(state *request.Request) *dns.Msg {
	qname, qtype := state.QName(), state.QType()
	reply := new(dns.Msg)
	reply.SetReply(state.Req)
	reply.Authoritative = true
	if !m.exact {
		reply.Rcode = dns.RcodeNameError
		reply.Ns = []dns.RR{m.domain.soaRecord()}
		return reply
	}

	if m.isApex && (qtype == dns.TypeSOA || qtype == dns.TypeANY) {
		soa := m.domain.soaRecord()
		soa.Hdr.Name = qname
		reply.Answer = append(reply.Answer, soa)
	}
	if m.isApex && (qtype == dns.TypeNS || qtype == dns.TypeANY) {
		ns := m.domain.nsReply(state.Req)
		reply.Answer = append(reply.Answer, ns.Answer...)
		reply.Extra = ns.Extra
	}
	if m.isNameServer {
		reply.Answer = addressRecords(qname, qtype, m.domain.nsAddresses...)
	}
	if len(reply.Answer) == 0 {
		reply.Ns = []dns.RR{m.domain.soaRecord()}
	}
	return reply
}

// soaRecord is that of the zone that the name is in. We know reverse zones by their addresses only, and take the one right
// above for the zone.
func (m *Match) soaRecord() *dns.SOA {
	soa := m.domain.soaRecord()
	if m.reverse != nil {
		i, _ := dns.NextLabel(m.name, 0)
		soa.Hdr.Name = m.name[i:]
	}
	return soa
}

func (a *meshDomain) soaRecord() *dns.SOA {
	return &dns.SOA{
		Hdr: rrHeader(a.name, dns.TypeSOA), Ns: "ns.dns." + a.name, Mbox: "hostmaster." + a.name,
		Serial: a.serial, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: maxTTL,
	}
}

// nsReply is the reply to a query for the name servers of D, or of a zone in it that is answered here.
func (a *meshDomain) nsReply(req *dns.Msg) *dns.Msg {
	ns := &dns.NS{Hdr: rrHeader(req.Question[0].Name, dns.TypeNS), Ns: "ns.dns." + a.name}
	reply := authoritativeReply(req, a.soaRecord(), []dns.RR{ns})
	reply.Extra = addressRecords(ns.Ns, dns.TypeANY, a.nsAddresses...)
	return reply
}

// authoritativeReply is our own reply to a query for a name that exists.
func authoritativeReply(req *dns.Msg, soa *dns.SOA, rrs []dns.RR) *dns.Msg {
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
			rrs = append(rrs, &dns.A{Hdr: rrHeader(name, dns.TypeA), A: ip.Unmap().AsSlice()})
		case !ip.Unmap().Is4() && (qtype == dns.TypeAAAA || qtype == dns.TypeANY):
			rrs = append(rrs, &dns.AAAA{Hdr: rrHeader(name, dns.TypeAAAA), AAAA: ip.AsSlice()})
		}
	}
	return rrs
}

// stateLabel is before the name of a cluster in the name of what is known of its link.
const stateLabel = "_state."

// stateRecords are what is known of the link to a cluster, as strings of the form of RFC 1464: "state=Up".
func (c *cluster) stateRecords(name string, qtype uint16) []dns.RR {
	if qtype != dns.TypeTXT && qtype != dns.TypeANY {
		return nil
	}
	if c.link == "" {
		return []dns.RR{&dns.TXT{Hdr: rrHeader(name, dns.TypeTXT), Txt: []string{"state=Local"}}}
	}
	txt := []string{"state=" + c.status.State}
	if !c.status.Since.IsZero() {
		txt = append(txt, "since="+c.status.Since.UTC().Format(time.RFC3339))
	}
	if c.status.Usable && c.status.RTT > 0 {
		txt = append(txt, fmt.Sprintf("rtt=%.2fms", c.status.RTT.Seconds()*1000))
	}
	if c.status.Reason != "" {
		txt = append(txt, "reason="+clipText(c.status.Reason))
	}
	return []dns.RR{&dns.TXT{Hdr: rrHeader(name, dns.TypeTXT), Txt: txt}}
}

// pointerReply is the name of an address.
func (r *reverseNet) pointerReply(ctx context.Context, m *Match, state *request.Request) (*dns.Msg, error) {
	qname, qtype := state.QName(), state.QType()
	c := r.cluster
	switch {
	case c == nil:
		reply := authoritativeReply(state.Req, m.soaRecord(), nil)
		reply.Rcode = dns.RcodeNameError
		return reply, nil
	case !r.ownAddress && !c.answersFromAPI():
		return c.resolveName(ctx, m, state)
	case !c.status.Usable:
		return c.linkDownReply(state.Req, c.currentPointers(c.replies.findEntry(questionOf(state.Req)))), nil
	}
	names := []string{c.name}
	if !r.ownAddress {
		var err error
		if names, err = c.backend.Services(m.address); err != nil {
			return c.failureReply(state.Req, c.currentPointers(c.replies.findEntry(questionOf(state.Req))), dns.ExtendedErrorCodeNoReachableAuthority, err.Error()), nil
		}
	}
	var rrs []dns.RR
	for _, name := range names {
		if qtype == dns.TypePTR || qtype == dns.TypeANY {
			rrs = append(rrs, &dns.PTR{Hdr: rrHeader(qname, dns.TypePTR), Ptr: name})
		}
	}
	reply := authoritativeReply(state.Req, m.soaRecord(), rrs)
	if len(names) == 0 {
		reply.Rcode = dns.RcodeNameError
	}
	if len(names) > 0 { // others are many
		q := questionOf(state.Req)
		c.storeReply(state, q, c.replies.findEntry(q), reply)
	}
	return reply, nil
}

// currentPointers are the remembered names of an address, if they are still names of the cluster.
func (c *cluster) currentPointers(m *entry) *entry {
	if m != nil && slices.ContainsFunc(m.reply.Answer, func(rr dns.RR) bool { ptr, ok := rr.(*dns.PTR); return !ok || !inDomain(ptr.Ptr, c.name) }) {
		return nil
	}
	return m
}

func rrHeader(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: maxTTL}
}

// resolveName is what the cluster says to a query; while its link is not usable, why.
func (c *cluster) resolveName(ctx context.Context, m *Match, state *request.Request) (*dns.Msg, error) {
	req := state.Req
	q := questionOf(req)
	remembered := c.replies.findEntry(q)
	if m.reverse != nil {
		remembered = c.currentPointers(remembered)
	}
	own := m.exact && m.reverse == nil && c.address.IsValid() && (q.qtype == dns.TypeA || q.qtype == dns.TypeAAAA)
	if !c.status.Usable {
		reply := c.linkDownReply(req, remembered)
		if own {
			c.correctAddress(state, reply)
		}
		return reply, nil
	}
	if own {
		return c.addressReply(m, state, q, remembered), nil
	}
	if c.answersFromAPI() {
		return c.queryBackend(ctx, m, state, q, remembered), nil
	}
	if c.upstream != nil {
		if reply := remembered.freshReply(c.cacheSource(), c.maxFresh, req); reply != nil {
			return reply, nil
		}
	}
	return c.resolveUpstream(ctx, m, state, q, remembered)
}

// linkDownReply is what is said while the link is not usable.
//
//go:noinline
func (c *cluster) linkDownReply(req *dns.Msg, remembered *entry) *dns.Msg {
	return c.failureReply(req, remembered, dns.ExtendedErrorCodeNoReachableAuthority, (&Path{c.link, c.status}).describeProblem())
}

// correctAddress corrects a stale answer for the cluster's own address, which may be another one by now.
//
//go:noinline
func (c *cluster) correctAddress(state *request.Request, reply *dns.Msg) {
	if reply.Rcode == dns.RcodeSuccess {
		reply.Answer = addressRecords(state.QName(), state.QType(), c.address)
	}
}

// addressReply is the cluster's own address.
//
//go:noinline
func (c *cluster) addressReply(m *Match, state *request.Request, q question, remembered *entry) *dns.Msg {
	reply := authoritativeReply(state.Req, m.domain.soaRecord(), addressRecords(state.QName(), state.QType(), c.address))
	c.storeReply(state, q, remembered, reply)
	return reply
}

// storeReply keeps an answer that is not of a DNS service, for the time when it can no longer be given.
func (c *cluster) storeReply(state *request.Request, q question, remembered *entry, reply *dns.Msg) {
	if c.keepsStale() && state.QName() == q.name && (remembered == nil || remembered.ageSeconds() > 0) {
		c.replies.storeReply(q, source{cluster: c.cacheID()}, reply)
	}
}

// queryBackend is the answer of a backend.
func (c *cluster) queryBackend(ctx context.Context, m *Match, state *request.Request, q question, remembered *entry) *dns.Msg {
	if m.exact && m.reverse == nil && state.QType() == dns.TypeNS {
		return m.domain.nsReply(state.Req) // the plugin does not know who serves it here
	}
	reply, err := c.backend.Answer(ctx, state)
	if err != nil {
		return c.failureReply(state.Req, remembered, dns.ExtendedErrorCodeNoReachableAuthority, err.Error()) // logged where it began
	}
	c.undenyOwnName(m, reply)
	c.storeReply(state, q, remembered, reply)
	return reply
}

// resolveUpstream is what the DNS service of the cluster answers.
func (c *cluster) resolveUpstream(ctx context.Context, m *Match, state *request.Request, q question, remembered *entry) (*dns.Msg, error) {
	req := state.Req
	if c.upstream == nil && c.usesAPI {
		return c.failureReply(req, remembered, dns.ExtendedErrorCodeNotReady,
			fmt.Sprintf("names of %s are not loaded yet", c.displayName())), nil
	}
	if c.upstream == nil {
		return c.failureReply(req, remembered, dns.ExtendedErrorCodeNoReachableAuthority,
			fmt.Sprintf("the address of the DNS service of %s is not known", c.displayName())), nil
	}
	asked, code, err := c.queryUpstream(ctx, m, state, q)
	if err != nil {
		return c.failureReply(req, remembered, code, err.Error()), err
	}
	c.replies.storeReply(q, c.cacheSource(), asked)
	r := replyFrom(asked, req)
	if opt := asked.IsEdns0(); opt != nil && req.IsEdns0() == nil {
		r.Extra = withoutOPT(slices.Clone(r.Extra))
	}
	r.Truncated = asked.Truncated
	switch r.Rcode {
	case dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented, dns.RcodeFormatError:
		explainReply(r, req, dns.ExtendedErrorCodeNoReachableAuthority,
			fmt.Sprintf("answer of DNS service %s of %s", c.service, c.displayName()))
	}
	return r, nil
}

// cacheID tells it from another cluster that has got its name.
func (c *cluster) cacheID() netip.Addr {
	if c.network.IsValid() {
		return c.network.Addr()
	}
	return c.service.Addr()
}

// cacheSource is the DNS service that is asked.
func (c *cluster) cacheSource() source {
	return source{cluster: c.cacheID(), serial: c.upstream.serial}
}

// wasReached tells whether the cluster could be asked by this process: what an earlier one was told is no longer of use.
func (c *cluster) wasReached() bool {
	return c.wasUsable || c.link == "" && c.upstream != nil && c.upstream.answered.Load()
}

// keepsStale tells whether anybody wants answers that were true once.
func (c *cluster) keepsStale() bool {
	return c.replies != nil && (c.maxStale > 0 || c.replies.Persistent.Load())
}

// failureReply is what is said when the cluster cannot be asked: a stale answer (RFC 8767) where that is wanted, else
// SERVFAIL. The Extended DNS Error says why in either case.
func (c *cluster) failureReply(req *dns.Msg, remembered *entry, code uint16, text string) *dns.Msg {
	most := c.maxStale
	if remembered != nil && remembered.source.loaded && !c.wasReached() {
		most = maxStaleAge
	}
	if most > 0 {
		if r := remembered.staleReply(c.cacheID(), most, req); r != nil {
			explainReply(r, req, staleCode(r), text)
			return r
		}
	}
	return Failure(req, code, text)
}

// queryUpstream asks the DNS service of the cluster. Names of the reply are those of the mesh, and the question is in lower case.
// With an error comes the code of the Extended DNS Error.
func (c *cluster) queryUpstream(ctx context.Context, m *Match, state *request.Request, q question) (*dns.Msg, uint16, error) {
	asked, fits := q.name, true
	if m.reverse == nil {
		asked, fits = replaceSuffix(q.name, c.name, c.clusterDomain)
	}
	req := state.Req
	// A message of our own: what else is in the client's (TSIG, cookies) is between it and us.
	query := new(dns.Msg)
	query.RecursionDesired, query.CheckingDisabled = req.RecursionDesired, req.CheckingDisabled
	query.Question = []dns.Question{{Name: asked, Qtype: q.qtype, Qclass: state.QClass()}}
	if !fits {
		// Longer than 255 octets in the cluster's own domain: such a name cannot exist there.
		reply := authoritativeReply(query, m.soaRecord(), nil)
		reply.Rcode = dns.RcodeNameError
		reply.Question[0].Name = q.name
		return reply, 0, nil
	}
	opt := req.IsEdns0()
	if opt != nil {
		// Its options are not passed on: a cluster has the same answer for everybody, which can be shared.
		query.Extra = []dns.RR{&dns.OPT{Hdr: opt.Hdr}}
	}

	reply, err := c.upstream.exchangeShared(ctx, request.Request{W: state.W, Req: query})
	if err != nil {
		return nil, dns.ExtendedErrorCodeNetworkError, fmt.Errorf("DNS service %s of %s: %w", c.service, c.displayName(), err)
	}

	w := rewriter{from: c.clusterDomain, to: c.name, queried: asked, client: q.name, table: m.table, cluster: c}
	if m.reverse != nil {
		err = w.rewritePointers(reply)
	} else {
		err = w.rewriteReply(reply)
	}
	if err != nil {
		return nil, dns.ExtendedErrorCodeInvalidData, fmt.Errorf("DNS service %s of %s: %w %s", c.service, c.displayName(), err, c.name)
	}
	reply.Question = []dns.Question{{Name: q.name, Qtype: q.qtype, Qclass: state.QClass()}}
	c.undenyOwnName(m, reply)
	if m.reverse != nil && len(reply.Answer) == 0 && (reply.Rcode == dns.RcodeSuccess || reply.Rcode == dns.RcodeNameError) {
		reply.Ns = []dns.RR{m.soaRecord()}
	}
	if o := reply.IsEdns0(); o != nil {
		o.Option = endToEndOptions(o.Option)
	}
	return reply, 0, nil
}

// undenyOwnName takes back a denial of the cluster's own name, which has an address. The kubernetes plugin of CoreDNS denies
// its domain for types that it has nothing of, and who believes that believes that nothing is below (RFC 8020).
func (c *cluster) undenyOwnName(m *Match, reply *dns.Msg) {
	if m.exact && m.reverse == nil && c.address.IsValid() && reply.Rcode == dns.RcodeNameError {
		reply.Rcode = dns.RcodeSuccess
	}
}

func (c *cluster) displayName() string {
	if c.link == "" {
		return "the local cluster"
	}
	return "link " + c.link
}

// Failure is the SERVFAIL reply to a query, with an Extended DNS Error if the client knows EDNS.
func Failure(req *dns.Msg, code uint16, text string) *dns.Msg {
	reply := new(dns.Msg)
	reply.SetRcode(req, dns.RcodeServerFailure)
	explainReply(reply, req, code, text)
	return reply
}

// staleCode is the Extended DNS Error of an answer that may be out of date.
func staleCode(reply *dns.Msg) uint16 {
	if reply.Rcode == dns.RcodeNameError {
		return dns.ExtendedErrorCodeStaleNXDOMAINAnswer
	}
	return dns.ExtendedErrorCodeStaleAnswer
}

// explainReply adds an Extended DNS Error to a reply that has none.
func explainReply(reply, req *dns.Msg, code uint16, text string) {
	if o := reply.IsEdns0(); o == nil || !slices.ContainsFunc(o.Option, func(o dns.EDNS0) bool { return o.Option() == dns.EDNS0EDE }) {
		addEDE(reply, req, &dns.EDNS0_EDE{InfoCode: code, ExtraText: clipText(text)})
	}
}

// addEDE adds an Extended DNS Error to a reply, if the client knows EDNS.
func addEDE(reply, req *dns.Msg, reason *dns.EDNS0_EDE) {
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
