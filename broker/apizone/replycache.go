package apizone

// Answers of the kubernetes plugin, kept for as long as the objects that they were made of are the
// same ones. The plugin takes about as long as all else that a query costs; to compare pointers takes a
// tenth of that. The plugin never changes an object that it has stored, but replaces it, and what is kept
// here holds on to the old one: so a pointer that is the same means that nothing has changed.

import (
	"hash/maphash"
	"slices"
	"strings"

	"github.com/coredns/coredns/plugin/kubernetes"
	"github.com/coredns/coredns/plugin/kubernetes/object"
	"github.com/coredns/coredns/plugin/pkg/cache"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
)

// maxAnswers bounds the answers that are kept, of all clusters together: some MB.
const maxAnswers = 1 << 14

// answers is shared by all instances.
type answers struct {
	seed  maphash.Seed
	cache *cache.Cache[*keptAnswer]
}

func newAnswers() *answers {
	return &answers{seed: maphash.MakeSeed(), cache: cache.New[*keptAnswer](maxAnswers)}
}

// keptAnswer is an answer and what it depends on.
type keptAnswer struct {
	instance uint64 // its number: all that it has loaded shall go when it ends
	name     string // as the client spelled it, which the answer does, too
	qtype    uint16
	of       objects
	reply    *dns.Msg // its sections are shared with those who ask
}

// objects are all that the names of a service depend on.
type objects struct {
	key           string // service.namespace
	namespace     string
	withEndpoints bool

	exists    bool // the namespace
	services  []*object.Service
	endpoints []*object.Endpoints
}

// find returns what is kept for the query and still good; else nil.
func (a *answers) find(i *instance, state *request.Request) *keptAnswer {
	name, qtype := state.QName(), state.QType()
	kept, ok := a.cache.Get(a.hash(name, qtype))
	if ok && kept.instance == i.number && kept.name == name && kept.qtype == qtype && kept.of.current(i) {
		return kept
	}
	return nil
}

// to makes a reply to the query. It is not part of find, as it would be on the stack there: see zone.Match.Answer.
func (k *keptAnswer) to(i *instance, req *dns.Msg) *dns.Msg {
	m := new(dns.Msg).SetReply(req)
	m.Rcode, m.Authoritative = k.reply.Rcode, true
	m.Answer, m.Ns, m.Extra = k.reply.Answer, k.reply.Ns, k.reply.Extra
	if len(m.Ns) > 0 {
		m.Ns = withSerial(m.Ns, uint32(i.plugin.APIConn.Modified(kubernetes.ModifiedInternal)))
	}
	return m
}

// withSerial is the section with that serial in its SOA record.
func withSerial(rrs []dns.RR, serial uint32) []dns.RR {
	for n, rr := range rrs {
		if soa, ok := rr.(*dns.SOA); ok && soa.Serial != serial {
			rrs = slices.Clone(rrs)
			latest := *soa
			latest.Serial = serial
			rrs[n] = &latest
		}
	}
	return rrs
}

// keep keeps a reply. The objects were looked up before it was made: what has changed since then shows.
func (a *answers) keep(i *instance, state *request.Request, of objects, reply *dns.Msg) {
	alias := slices.ContainsFunc(reply.Answer, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeCNAME })
	if alias || reply.Truncated || !reply.Authoritative { // an alias depends on other objects
		return
	}
	name, qtype := state.QName(), state.QType()
	kept := &keptAnswer{instance: i.number, name: name, qtype: qtype, of: of, reply: &dns.Msg{}}
	kept.reply.Rcode = reply.Rcode
	// Whoever appends to a section must not write into the one that is shared.
	kept.reply.Answer, kept.reply.Ns, kept.reply.Extra = slices.Clip(reply.Answer), slices.Clip(reply.Ns), slices.Clip(reply.Extra)
	a.cache.Add(a.hash(name, qtype), kept)
}

func (a *answers) hash(name string, qtype uint16) uint64 {
	return maphash.String(a.seed, name) ^ uint64(qtype)
}

// objectsOf finds what the name depends on. It is not ok for a name that is not one of a service.
func (i *instance) objectsOf(name string) (of objects, ok bool) {
	labels := dns.SplitDomainName(strings.TrimSuffix(name, i.zone))
	n := len(labels)
	if n < 3 || n > 5 || labels[n-1] != "svc" { // up to _port._protocol.service.namespace.svc
		return of, false
	}
	of.namespace = labels[n-2]
	of.key = object.ServiceKey(labels[n-3], of.namespace)
	of.exists, of.services = i.exists(of.namespace), i.plugin.APIConn.SvcIndex(of.key)
	of.withEndpoints = n == 4 || slices.ContainsFunc(of.services, (*object.Service).Headless)
	if of.withEndpoints {
		of.endpoints = i.plugin.APIConn.EpIndex(of.key)
	}
	return of, true
}

// current tells whether the plugin still has the same objects.
func (of *objects) current(i *instance) bool {
	return of.exists == i.exists(of.namespace) && samePointers(of.services, i.plugin.APIConn.SvcIndex(of.key)) &&
		(!of.withEndpoints || samePointers(of.endpoints, i.plugin.APIConn.EpIndex(of.key)))
}

func (i *instance) exists(namespace string) bool {
	_, err := i.plugin.APIConn.GetNamespaceByName(namespace)
	return err == nil
}

// samePointers compares sets.
func samePointers[T any](a, b []*T) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(p *T) bool { return !slices.Contains(b, p) })
}
