package zone

// The way of a query through the table: Table.Match finds what the name belongs to, Match.Answer makes the reply. It
// comes from the table itself for a mesh domain, from the cluster's API or DNS service for a cluster's names, or is at
// once an error that says what is wrong.

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/coredns/coredns/request"

	"github.com/miekg/dns"
)

// Match is what a table has for a name.
type Match struct {
	*node
	table   *Table
	name    string
	address netip.Addr // that the name is for, in reverse zones
	exact   bool       // the node is the name itself, not an ancestor
	from    origin     // of the answer

	reverseZone string // the reverse zone of a name that is none of an address; empty: the name is another one
}

// Match finds the mesh domain, cluster, global zone or network that the name belongs to. The name is fully qualified
// and in lower case.
func (t *Table) Match(name string) (Match, bool) {
	if n, exact := t.findNode(name); n != nil {
		return Match{node: n, table: t, name: name, exact: exact}, true
	}
	return t.matchReverse(name)
}

// findNode finds the name itself or, not exact, the nearest name above it that its mesh domain, cluster or global zone
// begins with. The name is fully qualified and in lower case.
func (t *Table) findNode(name string) (n *node, exact bool) {
	for off, end := 0, false; !end; off, end = dns.NextLabel(name, off) {
		// Nodes that mean nothing for the names below are passed over.
		if n := t.nodes[name[off:]]; n != nil && (off == 0 || n.cluster != nil || n.global != nil || n.isApex) {
			return n, off == 0
		}
	}
	return nil, false
}

// Zone is the sub-domain of the cluster, the global zone, or else the mesh domain, that the name belongs to.
func (m *Match) Zone() string {
	switch c := m.aboutCluster(); {
	case c != nil:
		return c.name
	case m.global != nil:
		return m.global.name
	}
	return m.domain.name
}

// Link is the KubeLink that leads to the cluster of the name, empty for names that are answered locally.
func (m *Match) Link() string {
	if c := m.aboutCluster(); c != nil {
		return c.link
	}
	return ""
}

// Upstream is the DNS service that is asked for the name; not valid if none is.
func (m *Match) Upstream() netip.AddrPort {
	if c := m.aboutCluster(); c != nil && c.upstream != nil && !c.answersFromAPI() {
		return c.service
	}
	return netip.AddrPort{}
}

// aboutCluster is the cluster that the name is about; nil: none.
func (m *Match) aboutCluster() *cluster {
	switch {
	case m.cluster != nil:
		return m.cluster
	case m.stateOf != nil:
		return m.stateOf
	case m.reverse != nil:
		return m.reverse.cluster
	}
	return nil
}

// Answer makes the reply to a query for the matched name. It follows aliases to any name that this CoreDNS has an
// answer for, because a resolver that forwards to it does not. The reply is never nil; the error is for the log, if
// there is something new that an operator should see. A zone transfer is not for Answer.
//
// Each query has a goroutine of its own. Its stack grows, by copying, with what the functions of the query need. What
// is seldom needed therefore has functions of its own here, and some are not inlined.
func (m *Match) Answer(ctx context.Context, state *request.Request) (*dns.Msg, error) {
	reply, err := m.resolveInZone(ctx, state)
	if counts := m.table.answers[m.Zone()]; counts != nil {
		counts[m.from].Add(1)
	}
	if target, loop := danglingTarget(reply); target != "" || loop {
		return m.chaseCNAME(ctx, state, reply, err)
	}
	return reply, err
}

// resolveInZone makes the reply of the zone that the name is in, without a look at other zones.
func (m *Match) resolveInZone(ctx context.Context, state *request.Request) (*dns.Msg, error) {
	switch {
	// DS records of a delegation belong to the zone above (RFC 4035, 3.1.4.1). There is no delegation, because this table
	// has both zones.
	case m.exact && state.QType() == dns.TypeDS && (m.cluster != nil || m.global != nil):
		return m.domainReply(state), nil
	case m.services != nil && m.services.decides(m.name, m.cluster):
		return m.services.reply(m, state), nil
	case m.cluster != nil:
		return m.cluster.resolveName(ctx, m, state)
	case m.reverseZone != "":
		return m.reverseZoneReply(state), nil
	case m.reverse != nil && m.reverse.needsService():
		return m.reverse.cluster.resolveName(ctx, m, state)
	case m.reverse != nil:
		return m.reverse.pointerReply(m, state), nil
	case m.global != nil:
		m.from = fromGlobal
		return resolveGlobal(m.global, m.table, state), nil
	case m.stateOf != nil:
		if client, err := netip.ParseAddr(state.IP()); err == nil && m.table.pathTo(client).Link != "" {
			return refuseState(state.Req), nil
		}
		return m.stateOf.stateReply(state, m.domain), nil
	}
	return m.domainReply(state), nil
}

// domainReply makes the reply from what a mesh domain has itself.
func (m *Match) domainReply(state *request.Request) *dns.Msg {
	qname, qtype := state.QName(), state.QType()
	reply := NewReply(state.Req)
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

// soaRecord is that of the zone that the name is in.
func (m *Match) soaRecord() *dns.SOA {
	if m.reverse != nil {
		return m.domain.reverseSOA(m.name)
	}
	return m.domain.soaRecord()
}

// isClusterName tells whether the name is <cluster>.D itself, and the cluster has an address in the mesh.
func (m *Match) isClusterName() bool {
	return m.exact && m.cluster != nil && len(m.cluster.addresses) > 0
}

// resolveName makes the reply to a query for a name of the cluster, or of one of its addresses; while the link is not
// usable, the failure that says why.
func (c *cluster) resolveName(ctx context.Context, m *Match, state *request.Request) (*dns.Msg, error) {
	q := questionOf(state.Req)
	cached := c.replies.findEntry(q)
	if m.reverse != nil {
		cached = c.currentPointers(cached)
	}
	forAddress := m.isClusterName() && (q.qtype == dns.TypeA || q.qtype == dns.TypeAAAA)
	switch {
	case !c.status.Usable:
		reply := c.linkDownReply(m, state.Req, cached)
		if forAddress {
			c.correctAddress(state, reply)
		}
		return reply, nil
	case forAddress:
		return c.addressReply(m, state, q, cached), nil
	case m.isZoneOf(c) && (q.qtype == dns.TypeNS || q.qtype == dns.TypeSOA || q.qtype == dns.TypeANY):
		return c.zoneReply(state, m.domain), nil
	case c.answersFromAPI():
		return c.queryBackend(ctx, m, state, q, cached), nil
	case m.isZoneOf(c) && c.namesOffersOnly():
		return authoritativeReply(state.Req, m.domain.subdomainSOA(c.name), nil), nil
	case c.upstream == nil:
		return c.noServiceReply(m, state.Req, cached), nil
	}
	if reply := cached.freshReply(c.cacheSource(), c.maxFresh, state.Req); reply != nil {
		m.from = fromCache
		return reply, nil
	}
	return c.queryService(ctx, m, state, q, cached)
}

// correctAddress corrects a stale answer for the cluster's own address, which may be another one by now.
//
//go:noinline
func (c *cluster) correctAddress(state *request.Request, reply *dns.Msg) {
	if reply.Rcode == dns.RcodeSuccess {
		reply.Answer = addressRecords(state.QName(), state.QType(), c.addresses...)
	}
}

// addressReply is the reply with the cluster's own address.
//
//go:noinline
func (c *cluster) addressReply(m *Match, state *request.Request, q question, cached *entry) *dns.Msg {
	records := addressRecords(state.QName(), state.QType(), c.addresses...)
	reply := authoritativeReply(state.Req, m.domain.soaRecord(), records)
	c.storeReply(state, q, cached, reply)
	return reply
}

// queryBackend makes the reply from the cluster's API.
func (c *cluster) queryBackend(
	ctx context.Context, m *Match, state *request.Request, q question, cached *entry,
) *dns.Msg {
	reply, err := c.backend.Answer(ctx, state)
	if err != nil { // the backend has logged it
		return c.failureReply(m, state.Req, cached, dns.ExtendedErrorCodeNoReachableAuthority, err.Error())
	}
	m.from = fromAPI
	m.undenyName(ctx, state, reply)
	c.setAuthority(reply)
	omitted := c.leaveOutUnreachable(reply)
	c.storeReply(state, q, cached, reply)
	explainOmission(reply, state.Req, omitted)
	return reply
}

// queryService makes the reply from the cluster's DNS service, and caches it.
func (c *cluster) queryService(
	ctx context.Context, m *Match, state *request.Request, q question, cached *entry,
) (*dns.Msg, error) {
	answer, code, err := c.queryUpstream(ctx, m, state, q)
	if err != nil {
		return c.failureReply(m, state.Req, cached, code, err.Error()), c.upstream.pickNews(err)
	}
	m.from = fromService
	m.undenyName(ctx, state, answer)
	omitted := c.leaveOutUnreachable(answer)
	c.replies.storeReply(q, c.cacheSource(), answer, omitted)
	return c.serviceReply(answer, state.Req, omitted), nil
}

// serviceReply is the reply to a client, made from the answer of the cluster's DNS service.
func (c *cluster) serviceReply(answer, req *dns.Msg, omitted string) *dns.Msg {
	r := replyFrom(answer, req)
	if opt := answer.IsEdns0(); opt != nil && req.IsEdns0() == nil {
		r.Extra = withoutOPT(slices.Clone(r.Extra))
	}
	r.Truncated = answer.Truncated
	explainOmission(r, req, omitted)
	switch r.Rcode {
	case dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented, dns.RcodeFormatError:
		explainReply(r, req, dns.ExtendedErrorCodeNoReachableAuthority,
			fmt.Sprintf("answer of DNS service %s of %s", c.service, c.displayName()))
	}
	return r
}

// queryUpstream asks the DNS service of the cluster. The question and all names of the answer are in the mesh domain,
// the question is in lower case. With an error comes the code of the Extended DNS Error.
func (c *cluster) queryUpstream(
	ctx context.Context, m *Match, state *request.Request, q question,
) (*dns.Msg, uint16, error) {
	query := c.upstreamQuery(m, state, q)
	if query == nil {
		return m.noSuchName(state, q), 0, nil
	}
	reply, err := c.upstream.exchangeShared(ctx, &request.Request{W: state.W, Req: query})
	if err != nil {
		return nil, dns.ExtendedErrorCodeNetworkError,
			fmt.Errorf("DNS service %s of %s: %w", c.service, c.displayName(), err)
	}
	if err := c.rewriteAnswer(m, q, query, reply); err != nil {
		return nil, dns.ExtendedErrorCodeInvalidData,
			fmt.Errorf("DNS service %s of %s: %w %s", c.service, c.displayName(), err, c.name)
	}
	return reply, 0, nil
}

// upstreamQuery is the query to the DNS service of the cluster; nil if the name is longer than 255 octets in the
// cluster's own domain. It is a new message: what else the client's query has (TSIG, cookies) is between the client and
// kubelink. Nor are EDNS options passed on: without them a cluster has the same answer for all clients, which they can
// share.
func (c *cluster) upstreamQuery(m *Match, state *request.Request, q question) *dns.Msg {
	name, fits := q.name, true
	if m.reverse == nil {
		name, fits = replaceSuffix(q.name, c.name, c.clusterDomain)
	}
	if !fits {
		return nil
	}
	query := new(dns.Msg)
	query.RecursionDesired, query.CheckingDisabled = state.Req.RecursionDesired, state.Req.CheckingDisabled
	query.Question = []dns.Question{{Name: name, Qtype: q.qtype, Qclass: state.QClass()}}
	if opt := state.Req.IsEdns0(); opt != nil {
		query.Extra = []dns.RR{&dns.OPT{Hdr: opt.Hdr}}
	}
	return query
}

// noSuchName denies a name that cannot exist in the cluster because it would be too long there.
//
//go:noinline
func (m *Match) noSuchName(state *request.Request, q question) *dns.Msg {
	query := new(dns.Msg)
	query.RecursionDesired, query.CheckingDisabled = state.Req.RecursionDesired, state.Req.CheckingDisabled
	query.Question = []dns.Question{{Name: q.name, Qtype: q.qtype, Qclass: state.QClass()}}
	reply := authoritativeReply(query, m.soaRecord(), nil)
	reply.Rcode = dns.RcodeNameError
	return reply
}

// rewriteAnswer turns the answer of the cluster's DNS service to the query into the answer to the question.
func (c *cluster) rewriteAnswer(m *Match, q question, query, reply *dns.Msg) error {
	w := rewriter{
		from: c.clusterDomain, to: c.name, queried: query.Question[0].Name, client: q.name, table: m.table, cluster: c,
	}
	var err error
	if m.reverse != nil {
		err = w.rewritePointers(reply)
	} else {
		err = w.rewriteReply(reply)
	}
	if err != nil {
		return err
	}
	reply.Question = []dns.Question{{Name: q.name, Qtype: q.qtype, Qclass: query.Question[0].Qclass}}
	if m.reverse == nil && !c.isGlobal {
		c.setAuthority(reply)
	}
	if m.reverse != nil && len(reply.Answer) == 0 &&
		(reply.Rcode == dns.RcodeSuccess || reply.Rcode == dns.RcodeNameError) {
		reply.Ns = []dns.RR{m.soaRecord()}
	}
	if o := reply.IsEdns0(); o != nil {
		o.Option = endToEndOptions(o.Option)
	}
	return nil
}

// isZoneOf tells whether the name is that of the cluster's zone.
func (m *Match) isZoneOf(c *cluster) bool { return m.exact && m.cluster == c && !c.isGlobal }

// undenyName takes back the denial of a name that exists, if only because there are names below it: a resolver that
// believes the denial believes that there are none (RFC 8020). The kubernetes plugin of CoreDNS denies its own domain
// for types that it has nothing of, and the names between a service and its ports (_tcp.web.default.svc).
func (m *Match) undenyName(ctx context.Context, state *request.Request, reply *dns.Msg) {
	if reply.Rcode == dns.RcodeNameError && len(reply.Answer) == 0 && m.cluster != nil && !m.cluster.isGlobal &&
		(m.exact || m.hasNamesBelow(ctx, state)) {
		reply.Rcode = dns.RcodeSuccess
	}
}

// hasNamesBelow tells whether the cluster has names below this one, as the schema of Kubernetes has it.
//
//go:noinline
func (m *Match) hasNamesBelow(ctx context.Context, state *request.Request) bool {
	prefix, _ := cutSuffix(m.name, m.cluster.name)
	labels := dns.SplitDomainName(prefix)
	switch {
	case len(labels) == 1: // dns-version has a TXT record, and is denied for other types
		return labels[0] == "svc" || labels[0] == "dns-version" ||
			labels[0] == "pod" && !m.cluster.answersFromAPI() // the API has no pods
	case len(labels) == 4 && labels[3] == "svc" && labels[0][0] == '_':
		return m.exists(ctx, state, m.name[len(labels[0])+1:])
	}
	return false
}

// exists tells whether a name of the cluster is not denied.
func (m *Match) exists(ctx context.Context, state *request.Request, name string) bool {
	service, ok := m.table.Match(name)
	if !ok {
		return false
	}
	req := *state.Req
	req.Question = []dns.Question{{Name: name, Qtype: dns.TypeA, Qclass: state.QClass()}}
	reply, _ := service.resolveInZone(ctx, &request.Request{W: state.W, Req: &req})
	return reply.Rcode != dns.RcodeNameError
}
