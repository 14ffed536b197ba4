package zone

// Names of a cluster have two spellings: the one in the mesh (svc.kubelink2.kubelink.) and the one
// in the cluster itself (svc.cluster.local.). This file turns one into the other, in questions and
// in whole replies. It works on the presentation form of github.com/miekg/dns, in which a dot
// inside a label is written `\.`.

import (
	"errors"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// cutSuffix removes the domain from the end of the name: what is left ends with a dot or is empty,
// if the name is the domain itself. Only whole labels match, in any case. The root matches every name.
func cutSuffix(name, domain string) (prefix string, ok bool) {
	if domain == "." {
		if name == "." {
			return "", true
		}
		return name, name != ""
	}
	n := len(name) - len(domain)
	if n < 0 || !equalFold(name[n:], domain) {
		return "", false
	}
	if n == 0 {
		return "", true
	}
	if name[n-1] != '.' {
		return "", false
	}
	// An odd number of backslashes makes the dot a part of a label.
	escaped := false
	for i := n - 2; i >= 0 && name[i] == '\\'; i-- {
		escaped = !escaped
	}
	return name[:n], !escaped
}

// inDomain tells whether the name is the domain or below it.
func inDomain(name, domain string) bool {
	_, ok := cutSuffix(name, domain)
	return ok
}

// equalFold is strings.EqualFold as DNS means it: for ASCII only.
func equalFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if lowerByte(a[i]) != lowerByte(b[i]) {
			return false
		}
	}
	return true
}

func lowerByte(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// replaceSuffix moves a name from one domain to another. A name that is not in the domain stays as
// it is. The result does not fit if it has more than 255 octets.
func replaceSuffix(name, from, to string) (result string, fits bool) {
	prefix, ok := cutSuffix(name, from)
	switch {
	case !ok:
		return name, true
	case prefix == "":
		return to, true
	case to == ".":
		return prefix, true
	}
	result = prefix + to
	return result, len(result) < maxNameLength || wireLength(result) <= maxNameLength
}

// maxNameLength is the longest name in wire form (RFC 1035, 2.3.4).
const maxNameLength = 255

// wireLength is the length of a name in wire form, where each dot but an escaped one stands for the
// length of a label. dns.IsDomainName lets pass one more than allowed.
func wireLength(name string) int {
	if name == "." {
		return 1
	}
	n := 1
	for i := 0; i < len(name); i++ {
		if name[i] == '\\' {
			i++
			if i+2 < len(name) && isDigit(name[i]) && isDigit(name[i+1]) && isDigit(name[i+2]) {
				i += 2
			}
		}
		n++
	}
	return n
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// rewriter turns a reply of a cluster's DNS service into the reply to the client.
//
// The service of a peer is not trusted with more than its own cluster: a resolver that forwards the
// mesh domain to us takes all that we pass on below it as ours to say, and caches it. So a record
// stays if its owner is in the domain of the cluster, before it is rewritten. The answer section may
// leave that domain along the aliases that start at the question, as a service of type ExternalName
// does. Where they lead into a mesh domain of the table, the alias stays and what follows goes: we say ourselves what
// is there.
type rewriter struct {
	from, to        string // domain of the cluster, zone in the mesh
	queried, client string // question as the cluster was asked, and as the client spelled it
	table           *Table
	cluster         *cluster
}

// What is wrong with a reply; the name of the zone follows.
var (
	errTooLong = errors.New("a name in the answer is longer than 255 octets in")
	errForeign = errors.New("it answered for a name that is not its own, outside of")
)

// rewriteReply rewrites a whole reply. It is an error if a name of the answer or authority section does not
// fit, and if what the question leads to is not for the cluster to say: an answer without that part
// would be taken as a proof that there is none. What else is not the cluster's just goes.
func (w *rewriter) rewriteReply(m *dns.Msg) (err error) {
	chain, ours := w.aliasChain(m.Answer)
	if ours && m.Rcode == dns.RcodeNameError { // it says so of a name that is ours to look up
		m.Rcode, m.Ns = dns.RcodeSuccess, nil
	}
	if m.Answer, err = w.rewriteSection(m.Answer, chain); err != nil {
		return err
	}
	if m.Ns, err = w.rewriteSection(m.Ns, nil); err == errTooLong {
		return err
	}
	m.Extra, _ = w.rewriteSection(m.Extra, nil) // additional is optional

	// The cluster is no authority for where an alias leads to.
	for _, rr := range m.Answer {
		m.Authoritative = m.Authoritative && inDomain(rr.Header().Name, w.to)
	}
	return nil
}

// rewritePointers rewrites the reply to the question for the names of an address. Only these stay, and only those that the
// cluster's service may tell: the ones in its own domain.
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

// maxChain bounds the aliases that are followed, and so what a hostile reply costs. Resolvers follow
// no more either.
const maxChain = 16

// aliasChain lists the names that the question leads to along the CNAME and DNAME records, in whatever
// order these are. Where an owner has several, the first one counts. If ours, what comes next is not the cluster's.
func (w *rewriter) aliasChain(rrs []dns.RR) (chain []string, ours bool) {
	for name, ok := w.nextAlias(w.queried, rrs); ok && len(chain) < maxChain; name, ok = w.nextAlias(name, rrs) {
		if here, fits := replaceSuffix(name, w.from, w.to); fits && w.isForeign(here, inDomain(name, w.from)) {
			return chain, true // where it goes on from there is ours to say
		}
		chain = append(chain, name)
	}
	return chain, false
}

// nextAlias is one step of a chain. A CNAME comes first: the one that was made from a DNAME (RFC 6672,
// 3.1) leads to the same name.
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

// dnameCovers tells whether the DNAME is about the name. One outside of the cluster's domain is not about
// a name inside: in the mesh, the one is not above the other.
func (w *rewriter) dnameCovers(rr *dns.DNAME, name string) bool {
	prefix, ok := cutSuffix(name, rr.Hdr.Name)
	return ok && prefix != "" && inDomain(name, w.from) == inDomain(rr.Hdr.Name, w.from)
}

// onChain tells whether the record's owner is on the chain.
func (w *rewriter) onChain(chain []string, rr dns.RR) bool {
	dname, _ := rr.(*dns.DNAME)
	for _, name := range chain {
		if equalFold(name, rr.Header().Name) || dname != nil && w.dnameCovers(dname, name) {
			return true
		}
	}
	return false
}

// isForeign tells whether a name of the result is in a mesh domain without being the cluster's: it was
// not rewritten, or it was and became a name of ours or of another cluster below the cluster's.
func (w *rewriter) isForeign(name string, rewritten bool) bool {
	m, ok := w.table.Match(dns.CanonicalName(name))
	return ok && (!rewritten || m.cluster != w.cluster)
}

// rewriteName rewrites one name. The client sees its own spelling where the name is the question.
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

// rewriteSection rewrites owners and data of the records in place and drops what cannot survive it:
// signatures and denials of existence, which cover the names of the cluster, and owners that are
// neither in the cluster's domain nor on the chain. TTLs are capped. The error is errTooLong if a
// name did not fit, or else errForeign if a DNAME is about names of others, or if no record is left because all were of
// other owners. The result is good in any case.
func (w *rewriter) rewriteSection(rrs []dns.RR, chain []string) (kept []dns.RR, err error) {
	kept = rrs[:0]
	dropped := false
	for _, rr := range rrs {
		switch rr.Header().Rrtype {
		case dns.TypeOPT:
			if rr.Header().Name == "." { // as RFC 6891 wants it
				kept = append(kept, rr)
			}
			continue
		case dns.TypeRRSIG, dns.TypeSIG, dns.TypeNSEC, dns.TypeNXT, dns.TypeNSEC3, dns.TypeTSIG:
			continue
		}
		h := rr.Header()
		own := inDomain(h.Name, w.from)
		if !own && !w.onChain(chain, rr) {
			dropped = true
			continue
		}
		target := aliasTarget(rr)
		inside := target != nil && inDomain(*target, w.from)
		h.Ttl = min(h.Ttl, maxTTL)
		fits := w.rewriteName(&h.Name)
		eachName(rr, func(s *string) { fits = w.rewriteName(s) && fits })
		switch {
		case !fits:
			err = errTooLong
		case w.isForeign(h.Name, own): // ours to say: see follow
			dropped = true
		case h.Rrtype == dns.TypeDNAME && w.table.hasForeignBelow(h.Name, w.cluster), // it is about all names below
			h.Rrtype == dns.TypeDNAME && w.isForeign(*target, inside): // and leads where we say what there is
			if err == nil {
				err = errForeign
			}
		default:
			kept = append(kept, rr)
		}
	}
	if dropped && len(kept) == 0 && err == nil {
		err = errForeign
	}
	return kept, err
}

// aliasTarget is where the owner of the record, or what is below it, is to be found; nil if the
// record is no alias.
func aliasTarget(rr dns.RR) *string {
	switch rr := rr.(type) {
	case *dns.CNAME:
		return &rr.Target
	case *dns.DNAME:
		return &rr.Target
	}
	return nil
}

// eachName calls f for every domain name in the data of the record. The test compares the list with
// the tags of the record types of the library. Signatures and denials are left out: see section.
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

// endToEndOptions removes the EDNS options that belong to one connection (cookies of RFC 7873, TCP
// keepalive of RFC 7828, padding of RFC 7830) and keeps those meant for the other end.
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

// withoutOPT removes OPT records.
func withoutOPT(rrs []dns.RR) []dns.RR {
	kept := rrs[:0]
	for _, rr := range rrs {
		if rr.Header().Rrtype != dns.TypeOPT {
			kept = append(kept, rr)
		}
	}
	return kept
}

// clipText shortens a text so that a reply with it fits any UDP message, and keeps it valid UTF-8 as
// RFC 8914 wants it.
func clipText(text string) string {
	const most = 240
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	if len(text) > most {
		text = text[:most]
	}
	return strings.ToValidUTF8(text, "")
}
