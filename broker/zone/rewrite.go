package zone

// Names of a cluster have two spellings: the one in the mesh (svc.kubelink2.kubelink.) and the one in the cluster
// itself (svc.cluster.local.). This file turns a reply with the latter into a reply with the former.

import (
	"errors"
	"slices"

	"github.com/miekg/dns"
)

// rewriter turns a reply of a cluster's DNS service into the reply to the client.
//
// Kubelink does not trust the service of a peer with more than the peer's own cluster: a resolver that forwards the
// mesh domain to kubelink takes all records below it that kubelink passes on, and caches them. So a record stays if its
// owner name, before rewriting, is in the domain of the cluster. The answer section may leave that domain along the
// aliases that start at the question, as a service of type ExternalName does. Where they lead into a mesh domain of the
// table, the alias stays and the records after it go: the table itself answers for that name (chaseCNAME).
type rewriter struct {
	from, to        string // domain of the cluster, zone in the mesh
	queried, client string // the question in the query to the cluster, and as the client spelled it
	table           *Table
	cluster         *cluster
}

// What is wrong with a reply; the name of the zone follows.
var (
	errTooLong = errors.New("a name in the answer is longer than 255 octets in")
	errForeign = errors.New("it answered for a name that is not its own, outside of")
	errRefers  = errors.New("it refers to other name servers, which kubelink does not ask, for a name in")
)

// rewriteReply rewrites a whole reply. It fails if a name of the answer or authority section does not fit, and if the
// question leads to names that the cluster must not answer for: a resolver would take an answer without them for a
// proof that there are none. All other foreign records are left out.
func (w *rewriter) rewriteReply(m *dns.Msg) (err error) {
	if !w.cluster.isGlobal && w.isReferral(m) {
		return errRefers
	}
	chain, intoMesh := w.aliasChain(m.Answer)
	if intoMesh && m.Rcode == dns.RcodeNameError { // the cluster denies a name that the table has to look up
		m.Rcode, m.Ns = dns.RcodeSuccess, nil
	}
	if m.Answer, err = w.rewriteSection(m.Answer, chain); err != nil {
		return err
	}
	if m.Ns, err = w.rewriteSection(m.Ns, nil); err == errTooLong {
		return err
	}
	m.Extra, _ = w.rewriteSection(m.Extra, nil) // additional is optional

	// The cluster is no authority for the name that an alias leads to.
	for _, rr := range m.Answer {
		m.Authoritative = m.Authoritative && inDomain(rr.Header().Name, w.to)
	}
	return nil
}

// isReferral tells whether the reply has nothing but the name servers of a part of the cluster's domain.
func (w *rewriter) isReferral(m *dns.Msg) bool {
	if m.Rcode != dns.RcodeSuccess || m.Authoritative || len(m.Answer) > 0 {
		return false
	}
	refers := false
	for _, rr := range m.Ns {
		switch rr.Header().Rrtype {
		case dns.TypeSOA:
			return false
		case dns.TypeNS:
			refers = refers || inDomain(rr.Header().Name, w.from)
		}
	}
	return refers
}

// rewritePointers rewrites the reply to the question for the names of an address. Only PTR records in the cluster's own
// domain stay.
func (w *rewriter) rewritePointers(m *dns.Msg) error {
	kept := m.Answer[:0]
	for _, rr := range m.Answer {
		ptr, ok := rr.(*dns.PTR)
		if !ok || !equalFold(ptr.Hdr.Name, w.queried) || !inDomain(ptr.Ptr, w.from) {
			continue
		}
		ptr.Hdr.Ttl = min(ptr.Hdr.Ttl, maxTTL)
		ptr.Hdr.Name = w.client
		if !w.rewriteName(&ptr.Ptr) {
			return errTooLong
		}
		kept = append(kept, rr)
	}
	if len(kept) == 0 && len(m.Answer) > 0 {
		return errForeign
	}
	m.Answer, m.Ns = kept, nil
	m.Extra = slices.DeleteFunc(m.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype != dns.TypeOPT })
	return nil
}

// aliasChain lists the names that the question leads to along the CNAME and DNAME records, in any order of records.
// Where an owner name has several, the first one counts. The chain ends where it leads into a mesh domain of the table.
func (w *rewriter) aliasChain(rrs []dns.RR) (chain []string, intoMesh bool) {
	for name, ok := w.nextAlias(w.queried, rrs); ok && len(chain) < maxChain; name, ok = w.nextAlias(name, rrs) {
		if here, fits := replaceSuffix(name, w.from, w.to); fits && w.isForeign(here, inDomain(name, w.from)) {
			return chain, true
		}
		chain = append(chain, name)
	}
	return chain, false
}

// nextAlias is one step of a chain. A CNAME comes first: where a server made it from a DNAME (RFC 6672, 3.1), both lead
// to the same name.
func (w *rewriter) nextAlias(name string, rrs []dns.RR) (next string, ok bool) {
	for _, rr := range rrs {
		switch rr := rr.(type) {
		case *dns.CNAME:
			if equalFold(rr.Hdr.Name, name) {
				return rr.Target, true
			}
		case *dns.DNAME:
			if !ok && w.dnameCovers(rr, name) {
				next, ok = replaceSuffix(name, rr.Hdr.Name, rr.Target)
			}
		}
	}
	return next, ok
}

// dnameCovers tells whether the DNAME is about the name. One outside of the cluster's domain is not about a name
// inside: in the mesh, the one is not above the other.
func (w *rewriter) dnameCovers(rr *dns.DNAME, name string) bool {
	prefix, ok := cutSuffix(name, rr.Hdr.Name)
	return ok && prefix != "" && inDomain(name, w.from) == inDomain(rr.Hdr.Name, w.from)
}

// onChain tells whether the record's owner name is on the chain.
func (w *rewriter) onChain(chain []string, rr dns.RR) bool {
	dname, _ := rr.(*dns.DNAME)
	for _, name := range chain {
		if equalFold(name, rr.Header().Name) || dname != nil && w.dnameCovers(dname, name) {
			return true
		}
	}
	return false
}

// isForeign tells whether a name of the result is in a mesh domain without being the cluster's: it was not rewritten,
// or it was, and became a name that another cluster or a mesh domain below the cluster's has.
func (w *rewriter) isForeign(name string, rewritten bool) bool {
	n := w.table.nodeOf(dns.CanonicalName(name))
	return n != nil && (!rewritten || n.cluster != w.cluster)
}

// rewriteName rewrites one name and tells whether it fits. The client sees its own spelling where the name is the
// question.
func (w *rewriter) rewriteName(s *string) bool {
	if *s == "" { // such as the gateway of an IPSECKEY that is not a name
		return true
	}
	if equalFold(*s, w.queried) {
		*s = w.client
		return true
	}
	r, fits := replaceSuffix(*s, w.from, w.to)
	if fits {
		*s = r
	}
	return fits
}

// rewriteSection rewrites the records in place and drops the ones that cannot survive it: signatures and denials of
// existence, which cover the names of the cluster, records of who serves them, and records with an owner name that is
// neither in the cluster's domain nor on the chain. It caps TTLs. The error is errTooLong if a name did not fit, or
// else errForeign if a DNAME is about foreign names, or if no record is left because all were foreign. The result is
// good in any case.
func (w *rewriter) rewriteSection(rrs []dns.RR, chain []string) (kept []dns.RR, err error) {
	kept = rrs[:0]
	dropped := false
	for _, rr := range rrs {
		h := rr.Header()
		switch h.Rrtype {
		case dns.TypeOPT:
			if h.Name == "." { // as RFC 6891 demands
				kept = append(kept, rr)
			}
			continue
		case dns.TypeRRSIG, dns.TypeSIG, dns.TypeNSEC, dns.TypeNXT, dns.TypeNSEC3, dns.TypeTSIG:
			continue
		}
		own := inDomain(h.Name, w.from)
		if own && !w.cluster.isGlobal && (h.Rrtype == dns.TypeNS || h.Rrtype == dns.TypeSOA) {
			continue // kubelink serves the zone, and says so itself
		}
		if !own && !w.onChain(chain, rr) {
			dropped = true
			continue
		}
		keep, recordErr := w.rewriteRecord(rr, own)
		switch {
		case keep:
			kept = append(kept, rr)
		case recordErr == nil:
			dropped = true
		case recordErr == errTooLong || err == nil:
			err = recordErr
		}
	}
	if dropped && len(kept) == 0 && err == nil {
		err = errForeign
	}
	return kept, err
}

// rewriteRecord rewrites owner name and data of a record. own: its owner name is in the cluster's domain. A record that
// is not to be kept, without an error, has an owner name that the table itself answers for.
func (w *rewriter) rewriteRecord(rr dns.RR, own bool) (keep bool, err error) {
	h := rr.Header()
	target := aliasTarget(rr)
	targetInside := target != nil && inDomain(*target, w.from)
	h.Ttl = min(h.Ttl, maxTTL)
	fits := w.rewriteName(&h.Name)
	eachName(rr, func(s *string) { fits = w.rewriteName(s) && fits })
	switch {
	case !fits:
		return false, errTooLong
	case w.isForeign(h.Name, own):
		return false, nil
	case h.Rrtype != dns.TypeDNAME:
		return true, nil
	// A DNAME is about all names below its owner name, and must not lead into a mesh domain either.
	case w.table.hasForeignBelow(h.Name, w.cluster) || w.isForeign(*target, targetInside):
		return false, errForeign
	}
	return true, nil
}

// aliasTarget is the name that the record leads to; nil if the record is no alias.
func aliasTarget(rr dns.RR) *string {
	switch rr := rr.(type) {
	case *dns.CNAME:
		return &rr.Target
	case *dns.DNAME:
		return &rr.Target
	}
	return nil
}

// eachName calls f for every domain name in the data of the record. A test compares the list, here and in eachRareName,
// with the tags of the record types of the library. Signatures and denials are left out: see rewriteSection.
func eachName(rr dns.RR, f func(*string)) {
	switch rr := rr.(type) {
	case *dns.CNAME:
		f(&rr.Target)
	case *dns.DNAME:
		f(&rr.Target)
	case *dns.NS:
		f(&rr.Ns)
	case *dns.PTR:
		f(&rr.Ptr)
	case *dns.SRV:
		f(&rr.Target)
	case *dns.MX:
		f(&rr.Mx)
	case *dns.SOA:
		f(&rr.Ns)
		f(&rr.Mbox)
	case *dns.NAPTR:
		f(&rr.Replacement)
	case *dns.SVCB:
		f(&rr.Target)
	case *dns.HTTPS:
		f(&rr.Target)
	default:
		eachRareName(rr, f)
	}
}

// eachRareName is eachName for record types that are experimental, obsolete or hardly used.
func eachRareName(rr dns.RR, f func(*string)) {
	switch rr := rr.(type) {
	case *dns.AFSDB:
		f(&rr.Hostname)
	case *dns.RT:
		f(&rr.Host)
	case *dns.KX:
		f(&rr.Exchanger)
	case *dns.RP:
		f(&rr.Mbox)
		f(&rr.Txt)
	case *dns.MINFO:
		f(&rr.Rmail)
		f(&rr.Email)
	case *dns.MB:
		f(&rr.Mb)
	case *dns.MG:
		f(&rr.Mg)
	case *dns.MR:
		f(&rr.Mr)
	case *dns.MF:
		f(&rr.Mf)
	case *dns.MD:
		f(&rr.Md)
	case *dns.PX:
		f(&rr.Map822)
		f(&rr.Mapx400)
	case *dns.NSAPPTR:
		f(&rr.Ptr)
	case *dns.TALINK:
		f(&rr.PreviousName)
		f(&rr.NextName)
	case *dns.HIP:
		for i := range rr.RendezvousServers {
			f(&rr.RendezvousServers[i])
		}
	case *dns.LP:
		f(&rr.Fqdn)
	case *dns.IPSECKEY:
		f(&rr.GatewayHost)
	case *dns.AMTRELAY:
		f(&rr.GatewayHost)
	case *dns.TKEY:
		f(&rr.Algorithm)
	}
}
