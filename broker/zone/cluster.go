package zone

// A cluster's part of a mesh domain: what the table knows of it, and what is said while it cannot be asked.

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/coredns/coredns/request"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// cluster is the sub-domain of a cluster, or a global zone that another cluster serves.
type cluster struct {
	name          string        // <cluster>.D
	clusterDomain string        // what the cluster itself calls the sub-domain
	isGlobal      bool          // a global zone that another cluster serves
	soa           []dns.RR      // our record of name, for denials
	addresses     []netip.Addr  // of the cluster in the mesh
	networks      mesh.Prefixes // of its services
	table         *Table
	clusterLink

	service  netip.AddrPort // its DNS service
	upstream *upstream      // nil: the address of the DNS service is not known, or the backend has names
	usesAPI  bool           // names come from its API, by way of backend
	backend  Backend        // nil: not there yet

	replies  *ReplyCache
	maxFresh uint32        // for how long replies count as true at most, in seconds
	maxStale time.Duration // for how long replies are given that were true once
}

// clusterLink is the link to a cluster.
type clusterLink struct {
	link      string // empty: the local cluster
	peer      string // the link that carries it: itself, or its gateway
	carried   bool   // by kubelink, and not by another system
	status    Status
	wasUsable bool // this process could use the link once, and so reach the DNS service or the API
}

// Backend answers for a cluster from its API: a kubernetes plugin of CoreDNS. It lives longer than tables.
type Backend interface {
	// Answer makes the reply to a query for a name of the cluster's zone. The error is why there is none yet or any more:
	// one line for the Extended DNS Error, such as a permission that is missing.
	Answer(ctx context.Context, state *request.Request) (*dns.Msg, error)
	// Services are the names of what has the address, in the cluster's zone.
	Services(address netip.Addr) ([]string, error)
	// Loading tells that there are no names yet; the table asks the DNS service of the cluster meanwhile.
	Loading() bool
}

// answersFromAPI tells whether names come from the backend.
func (c *cluster) answersFromAPI() bool {
	return c.backend != nil && (c.upstream == nil || !c.backend.Loading())
}

func (c *cluster) displayName() string {
	if c.link == "" {
		return "the local cluster"
	}
	return "link " + c.link
}

// cacheID tells the cluster from another one that has got its name.
func (c *cluster) cacheID() netip.Addr {
	if len(c.networks) > 0 {
		return c.networks.First().Addr()
	}
	return c.service.Addr()
}

// cacheSource is the source of replies of the cluster's DNS service.
func (c *cluster) cacheSource() source {
	return source{cluster: c.cacheID(), serial: c.upstream.serial, routes: c.table.routes}
}

// wasReached tells whether this process could ask the cluster once. From then on what an earlier process was told is of
// no use.
func (c *cluster) wasReached() bool {
	return c.wasUsable || c.link == "" && c.upstream != nil && c.upstream.answers.Load() > 0
}

// keepsStale tells whether replies are of use after their TTL.
func (c *cluster) keepsStale() bool {
	return c.replies != nil && (c.maxStale > 0 || c.replies.Persistent.Load())
}

// storeReply caches a reply that is not from a DNS service, for the time when kubelink can no longer make it.
func (c *cluster) storeReply(state *request.Request, q question, cached *entry, reply *dns.Msg) {
	if c.keepsStale() && state.QName() == q.name && (cached == nil || cached.ageSeconds() > 0) {
		c.replies.storeReply(q, source{cluster: c.cacheID()}, reply, "")
	}
}

// currentPointers returns the entry with the names of an address, nil if they are no longer names of the cluster.
func (c *cluster) currentPointers(e *entry) *entry {
	if e != nil && slices.ContainsFunc(e.reply.Answer, c.isForeignPointer) {
		return nil
	}
	return e
}

func (c *cluster) isForeignPointer(rr dns.RR) bool {
	ptr, ok := rr.(*dns.PTR)
	return !ok || !inDomain(ptr.Ptr, c.name)
}

// failureReply is the reply when the cluster cannot be asked: a stale answer (RFC 8767) where an operator wants that,
// else SERVFAIL. The Extended DNS Error says why in either case.
func (c *cluster) failureReply(m *Match, req *dns.Msg, cached *entry, code uint16, text string) *dns.Msg {
	maxAge := c.maxStale
	if cached != nil && cached.source.loaded && !c.wasReached() {
		maxAge = maxStaleAge
	}
	if maxAge > 0 {
		if r := cached.staleReply(c.cacheID(), maxAge, req); r != nil {
			m.from = fromStale
			c.leaveOutUnreachable(r) // routes may be others by now
			explainReply(r, req, staleCode(r), text)
			return r
		}
	}
	m.from = fromNowhere
	return Failure(req, code, text)
}

// linkDownReply is the reply while the link is not usable.
//
//go:noinline
func (c *cluster) linkDownReply(m *Match, req *dns.Msg, cached *entry) *dns.Msg {
	path := Path{Link: c.link, Status: c.status}
	return c.failureReply(m, req, cached, dns.ExtendedErrorCodeNoReachableAuthority, path.describeProblem())
}

// noServiceReply is the reply while nothing can be asked for the names of the cluster.
//
//go:noinline
func (c *cluster) noServiceReply(m *Match, req *dns.Msg, cached *entry) *dns.Msg {
	if c.usesAPI {
		return c.failureReply(m, req, cached, dns.ExtendedErrorCodeNotReady,
			fmt.Sprintf("names of %s are not loaded yet", c.displayName()))
	}
	return c.failureReply(m, req, cached, dns.ExtendedErrorCodeNoReachableAuthority,
		fmt.Sprintf("the address of the DNS service of %s is not known", c.displayName()))
}

// zoneReply is the reply to a query for who serves the cluster's zone: kubelink, and not the DNS service of the
// cluster, which knows no mesh domain.
//
//go:noinline
func (c *cluster) zoneReply(state *request.Request, d *meshDomain) *dns.Msg {
	soa := d.subdomainSOA(state.QName())
	switch state.QType() {
	case dns.TypeSOA:
		return authoritativeReply(state.Req, soa, []dns.RR{soa})
	case dns.TypeNS:
		return d.nsReply(state.Req)
	}
	reply := d.nsReply(state.Req) // ANY
	reply.Answer = slices.Concat([]dns.RR{soa}, reply.Answer, addressRecords(state.QName(), dns.TypeANY, c.addresses...))
	return reply
}

// setAuthority replaces the authority section, in which a cluster may name other servers: a denial has our SOA record.
func (c *cluster) setAuthority(m *dns.Msg) {
	if len(m.Ns) == 0 && len(m.Answer) > 0 && m.Rcode == dns.RcodeSuccess {
		return
	}
	m.Ns = nil
	switch m.Rcode {
	case dns.RcodeSuccess, dns.RcodeNameError:
		if name := deniedName(m); name != "" && inDomain(name, c.name) {
			m.Ns = c.soa
		}
	}
}

// stateLabel and the name of a cluster make the name that shows the state of its link.
const stateLabel = "_state."

// refuseState is the reply to a client of another cluster: how this cluster's other links are is not its affair.
func refuseState(req *dns.Msg) *dns.Msg {
	reply := NewReply(req)
	reply.Rcode = dns.RcodeRefused
	explainReply(reply, req, dns.ExtendedErrorCodeProhibited, "states of links are for clients of this cluster")
	return reply
}

// stateReply tells what is known of the link to the cluster, as strings in the form of RFC 1464: "state=Up".
func (c *cluster) stateReply(state *request.Request, d *meshDomain) *dns.Msg {
	var rrs []dns.RR
	if qtype := state.QType(); qtype == dns.TypeTXT || qtype == dns.TypeANY {
		facts := []string{"state=Local"}
		if c.link != "" {
			facts = c.status.describeState()
		}
		rrs = []dns.RR{&dns.TXT{Hdr: rrHeader(state.QName(), dns.TypeTXT), Txt: facts}}
	}
	return authoritativeReply(state.Req, d.soaRecord(), rrs)
}
