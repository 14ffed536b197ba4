package apizone

// This file caches replies of the kubernetes plugin for as long as the objects that they were made of are the same
// ones. The plugin takes about as long as all else that a query costs; comparing pointers takes a tenth of that. The
// plugin never changes an object that it has stored, but replaces it, and an entry holds on to the old one: so an equal
// pointer means that nothing has changed.

import (
	"hash/maphash"
	"slices"
	"strings"

	"github.com/coredns/coredns/plugin/kubernetes/object"
	"github.com/coredns/coredns/plugin/pkg/cache"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker/zone"
)

// maxReplies bounds the entries of all clusters together: some MB.
const maxReplies = 1 << 14

// objectIndex has the objects of a plugin.
type objectIndex interface {
	SvcIndex(key string) []*object.Service
	SvcIndexReverse(address string) []*object.Service
	EpIndex(key string) []*object.Endpoints
	GetNamespaceByName(name string) (*object.Namespace, error)
}

// replyCache is shared by all instances.
type replyCache struct {
	seed  maphash.Seed
	cache *cache.Cache[*entry]
}

func newReplyCache() *replyCache {
	return &replyCache{seed: maphash.MakeSeed(), cache: cache.New[*entry](maxReplies)}
}

// entry is a reply and what it depends on.
type entry struct {
	instance uint64 // number of the instance: another one has loaded objects of its own
	name     string // as the client spelled it: the reply spells it the same way
	qtype    uint16
	of       objects
	reply    *dns.Msg // its sections are shared by all replies that are made of it
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

// findEntry returns the entry for the query if its objects are still the same; else nil.
func (c *replyCache) findEntry(instance uint64, index objectIndex, state *request.Request) *entry {
	name, qtype := state.QName(), state.QType()
	e, ok := c.cache.Get(c.hashQuery(name, qtype))
	if ok && e.instance == instance && e.name == name && e.qtype == qtype && e.of.areCurrent(index) {
		return e
	}
	return nil
}

// newReply makes a reply to the query. It is not part of findEntry, as the reply would be on the stack there: see
// zone.Match.Answer.
func (e *entry) newReply(req *dns.Msg) *dns.Msg {
	m := zone.NewReply(req)
	m.Rcode, m.Authoritative = e.reply.Rcode, true
	m.Answer, m.Ns, m.Extra = e.reply.Answer, e.reply.Ns, e.reply.Extra
	return m
}

// addReply caches a reply. The caller looked up the objects before it made the reply: findEntry sees what has changed
// since then.
func (c *replyCache) addReply(instance uint64, state *request.Request, of objects, reply *dns.Msg) {
	isAlias := func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeCNAME }
	if slices.ContainsFunc(reply.Answer, isAlias) { // it depends on other objects
		return
	}
	if reply.Truncated || !reply.Authoritative {
		return
	}
	name, qtype := state.QName(), state.QType()
	// Clipped, so that appending to a section does not write into the shared one.
	shared := &dns.Msg{
		Answer: slices.Clip(reply.Answer), Ns: slices.Clip(reply.Ns), Extra: slices.Clip(reply.Extra),
	}
	shared.Rcode = reply.Rcode
	c.cache.Add(c.hashQuery(name, qtype), &entry{instance: instance, name: name, qtype: qtype, of: of, reply: shared})
}

func (c *replyCache) hashQuery(name string, qtype uint16) uint64 {
	return maphash.String(c.seed, name) ^ uint64(qtype)
}

// findObjects finds what the name depends on. It is not ok for a name that is not one of a service.
func findObjects(index objectIndex, name, zone string) (of objects, ok bool) {
	labels := dns.SplitDomainName(strings.TrimSuffix(name, zone))
	n := len(labels)
	if n < 3 || n > 5 || labels[n-1] != "svc" { // up to _port._protocol.service.namespace.svc
		return of, false
	}
	of.namespace = labels[n-2]
	of.key = object.ServiceKey(labels[n-3], of.namespace)
	of.exists, of.services = namespaceExists(index, of.namespace), index.SvcIndex(of.key)
	of.withEndpoints = n == 4 || slices.ContainsFunc(of.services, (*object.Service).Headless)
	if of.withEndpoints {
		of.endpoints = index.EpIndex(of.key)
	}
	return of, true
}

// areCurrent tells whether the plugin still has the same objects.
func (o *objects) areCurrent(index objectIndex) bool {
	return o.exists == namespaceExists(index, o.namespace) && samePointers(o.services, index.SvcIndex(o.key)) &&
		(!o.withEndpoints || samePointers(o.endpoints, index.EpIndex(o.key)))
}

func namespaceExists(index objectIndex, namespace string) bool {
	_, err := index.GetNamespaceByName(namespace)
	return err == nil
}

// samePointers compares sets.
func samePointers[T any](a, b []*T) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(p *T) bool { return !slices.Contains(b, p) })
}
