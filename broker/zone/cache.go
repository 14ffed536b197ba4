package zone

// Replies of clusters, cached: for as long as their TTL says, so that one query to the cluster serves many clients, and
// for longer where stale answers are wanted (RFC 8767) or where they have to survive a restart.

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"math"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/coredns/coredns/plugin/pkg/cache"

	"github.com/miekg/dns"
)

const (
	maxEntries   = 1 << 15        // if there are more, the cache evicts some
	maxEntrySize = 1232           // bytes: what fits a datagram on all paths. Larger replies are not cached
	maxStaleAge  = 72 * time.Hour // RFC 8767, 5: one to three days
)

// ReplyCache holds what clusters have answered. It outlives the tables that share it.
type ReplyCache struct {
	// Persistent: the cache is going to be saved. It then also holds replies that are of use after a restart only.
	Persistent atomic.Bool

	cache *cache.Cache[*entry]
}

// NewReplyCache returns an empty cache.
func NewReplyCache() *ReplyCache { return &ReplyCache{cache: cache.New[*entry](maxEntries)} }

// question is what a reply depends on. It has no EDNS options, because queryUpstream passes none on.
type question struct {
	name  string // in lower case
	qtype uint16
	flags uint8 // of the query
}

// Flags of a question.
const (
	flagRD = 1 << iota
	flagCD
	flagDO
)

// questionOf is the question of a query.
func questionOf(req *dns.Msg) question {
	q := question{name: dns.CanonicalName(req.Question[0].Name), qtype: req.Question[0].Qtype}
	if req.RecursionDesired {
		q.flags |= flagRD
	}
	if req.CheckingDisabled {
		q.flags |= flagCD
	}
	if opt := req.IsEdns0(); opt != nil && opt.Do() {
		q.flags |= flagDO
	}
	return q
}

var seed = maphash.MakeSeed()

func (q question) hashKey() uint64 {
	return maphash.Comparable(seed, q)
}

// source is where a reply came from.
type source struct {
	// cluster is the address of the cluster's service network, or else of its DNS service: a cluster with the same name
	// may be another one.
	cluster netip.Addr
	serial  uint64 // of the upstream; 0: the reply is from a file, or not from an upstream
	routes  uint64 // hash of what was routed where: other addresses may have been left out
	loaded  bool   // an earlier process got the reply
}

// entry is a cached reply. It is immutable, but for the aged copies that it makes of itself.
type entry struct {
	question
	source   source
	storedAt time.Time
	minTTL   uint32   // the shortest of its records, in seconds
	omitted  string   // what is left out of it; empty: nothing
	reply    *dns.Msg // its question is in lower case

	aged [maxTTL]atomic.Pointer[dns.Msg] // by seconds of age: the same with TTLs that are shorter by that much
}

// findEntry returns what is cached for the question; nil: nothing.
func (rc *ReplyCache) findEntry(q question) *entry {
	if rc == nil {
		return nil
	}
	if e, ok := rc.cache.Get(q.hashKey()); ok && e.question == q {
		return e
	}
	return nil
}

// storeReply caches a reply if it is of use to other clients. Its question is in lower case, and nothing may modify it
// from now on.
func (rc *ReplyCache) storeReply(q question, from source, reply *dns.Msg, omitted string) {
	if rc == nil || reply.Truncated || reply.Rcode != dns.RcodeSuccess && reply.Rcode != dns.RcodeNameError {
		return
	}
	if reply.Len() > maxEntrySize {
		return
	}
	e := &entry{question: q, source: from, storedAt: time.Now(), minTTL: maxTTL, omitted: omitted}
	cached := *reply
	cached.Extra = withoutOPT(append([]dns.RR(nil), reply.Extra...))
	if opt := reply.IsEdns0(); opt != nil && len(opt.Option) > 0 { // the options are about this one query
		return
	}
	for _, section := range [][]dns.RR{cached.Answer, cached.Ns, cached.Extra} {
		for _, rr := range section {
			e.minTTL = min(e.minTTL, rr.Header().Ttl)
		}
	}
	e.reply = &cached
	rc.cache.Add(q.hashKey(), e)
}

// ageSeconds is how old the reply is, in whole seconds.
func (e *entry) ageSeconds() uint32 {
	age := time.Since(e.storedAt)
	if age < 0 { // the clock was set back: an entry of an earlier process may be of any age
		return math.MaxUint32
	}
	return uint32(min(age/time.Second, math.MaxUint32))
}

// freshReply makes the reply to a query, nil if the entry is not from this source, or is older than its TTL or maxAge,
// in seconds. A TTL of 0 counts as a second: aliases among clusters come back to the same name within that time, again
// and again.
func (e *entry) freshReply(from source, maxAge uint32, req *dns.Msg) *dns.Msg {
	if e == nil || e.source != from {
		return nil
	}
	age := e.ageSeconds()
	if age >= min(max(e.minTTL, 1), maxAge) {
		return nil
	}
	reply := replyFrom(e.agedSections(age), req)
	explainOmission(reply, req, e.omitted)
	return reply
}

// staleReply makes the reply to a query from an entry, maybe after its TTL; nil if it is older than maxAge, or of
// another cluster.
func (e *entry) staleReply(cluster netip.Addr, maxAge time.Duration, req *dns.Msg) *dns.Msg {
	if e == nil || e.source.cluster != cluster || time.Duration(e.ageSeconds())*time.Second >= min(maxAge, maxStaleAge) {
		return nil
	}
	return replyFrom(e.reply, req)
}

// agedSections are the records at an age below the TTL, in seconds.
func (e *entry) agedSections(age uint32) *dns.Msg {
	if age == 0 {
		return e.reply
	}
	if m := e.aged[age].Load(); m != nil {
		return m
	}
	m := *e.reply
	for _, section := range []*[]dns.RR{&m.Answer, &m.Ns, &m.Extra} {
		aged := make([]dns.RR, 0, len(*section))
		for _, rr := range *section {
			rr = dns.Copy(rr)
			rr.Header().Ttl -= age // age is below the shortest TTL
			aged = append(aged, rr)
		}
		*section = aged
	}
	e.aged[age].Store(&m)
	return &m
}

// replyFrom makes the reply to a query from another one to the same question. Both share their sections. Where an owner
// name is the question, the reply spells it as this client does.
func replyFrom(shared *dns.Msg, req *dns.Msg) *dns.Msg {
	m := NewReply(req)
	m.Rcode, m.Authoritative, m.RecursionAvailable = shared.Rcode, shared.Authoritative, shared.RecursionAvailable
	// No capacity is left: appending to a section must not write into the shared one.
	m.Answer = shared.Answer[:len(shared.Answer):len(shared.Answer)]
	m.Ns = shared.Ns[:len(shared.Ns):len(shared.Ns)]
	m.Extra = shared.Extra[:len(shared.Extra):len(shared.Extra)]
	if name := req.Question[0].Name; name != shared.Question[0].Name {
		for _, section := range []*[]dns.RR{&m.Answer, &m.Ns, &m.Extra} {
			*section = respellOwners(*section, shared.Question[0].Name, name)
		}
	}
	return m
}

// respellOwners returns the records with an owner name in another spelling.
func respellOwners(rrs []dns.RR, name, spelling string) []dns.RR {
	spelled := make([]dns.RR, 0, len(rrs))
	for _, rr := range rrs {
		if equalFold(rr.Header().Name, name) {
			rr = dns.Copy(rr)
			rr.Header().Name = spelling
		}
		spelled = append(spelled, rr)
	}
	return spelled
}

// The file that replies are saved in begins with cacheFileMagic. For each entry follow
//
//	seconds since 1970  int64 BE
//	source.cluster  [16]byte, IPv6, or IPv4 mapped to it; zero: not known
//	flags of the question  uint8
//	length of the message  uint16 BE
//	the reply as a DNS message (RFC 1035)
const (
	cacheFileMagic = "kubelink answers 2\n"
	entryHeadSize  = 8 + 16 + 1 + 2
)

// Save writes all entries, except the ones that are too old to be of use.
func (rc *ReplyCache) Save(to io.Writer) error {
	w := bufio.NewWriter(to)
	w.WriteString(cacheFileMagic) //nolint:errcheck // Flush tells
	err := error(nil)
	rc.cache.Walk(func(items map[uint64]*entry, key uint64) bool {
		if e := items[key]; e != nil && e.ageSeconds() < uint32(maxStaleAge/time.Second) {
			err = e.writeTo(w)
		}
		return err == nil
	})
	return errors.Join(err, w.Flush())
}

// writeTo writes an entry. One that does not fit a message, or does not come out of it again, is left out: the cluster
// can be asked again.
func (e *entry) writeTo(w *bufio.Writer) error {
	m := *e.reply
	m.Compress = true
	wire, err := m.Pack()
	if err != nil || len(wire) > dns.MaxMsgSize || new(dns.Msg).Unpack(wire) != nil {
		return nil
	}
	head := binary.BigEndian.AppendUint64(nil, uint64(e.storedAt.Unix()))
	var cluster [16]byte
	if e.source.cluster.IsValid() {
		cluster = e.source.cluster.As16()
	}
	head = append(append(head, cluster[:]...), e.flags)
	head = binary.BigEndian.AppendUint16(head, uint16(len(wire)))
	w.Write(head) //nolint:errcheck // the next one tells
	_, err = w.Write(wire)
	return err
}

// parseClusterAddr reads source.cluster.
func parseClusterAddr(b [16]byte) netip.Addr {
	if b == [16]byte{} {
		return netip.Addr{}
	}
	return netip.AddrFrom16(b).Unmap()
}

// Load adds what Save wrote. All of it is stale. An entry that cannot be used does not keep others from being loaded;
// the error counts such entries.
func (rc *ReplyCache) Load(from io.Reader) error {
	r := bufio.NewReader(from)
	magic := make([]byte, len(cacheFileMagic))
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != cacheFileMagic {
		return errors.New("not a file of answers of this version")
	}
	var firstErr error
	unusable := 0
	for n := 1; ; n++ {
		head, wire, err := readEntry(r)
		if err == io.EOF {
			break
		} else if err != nil {
			return errors.Join(fmt.Errorf("answer %d: %w", n, err), firstErr)
		}
		e, err := parseEntry(head, wire)
		switch {
		case err != nil:
			if unusable++; firstErr == nil {
				firstErr = fmt.Errorf("answer %d: %w", n, err)
			}
		case time.Since(e.storedAt) < maxStaleAge:
			rc.cache.Add(e.hashKey(), e)
		}
	}
	if unusable > 0 {
		return fmt.Errorf("%d answers are left out, the first because of %w", unusable, firstErr)
	}
	return nil
}

// readEntry reads what writeTo wrote. The error is io.EOF if there is nothing more.
func readEntry(r io.Reader) (head [entryHeadSize]byte, wire []byte, err error) {
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return head, nil, err
	}
	wire = make([]byte, binary.BigEndian.Uint16(head[25:]))
	if _, err := io.ReadFull(r, wire); err == io.EOF {
		return head, nil, io.ErrUnexpectedEOF
	} else if err != nil {
		return head, nil, err
	}
	return head, wire, nil
}

// parseEntry makes an entry of what readEntry read.
func parseEntry(head [entryHeadSize]byte, wire []byte) (*entry, error) {
	m := new(dns.Msg)
	if err := m.Unpack(wire); err != nil {
		return nil, fmt.Errorf("not a DNS message: %w", err)
	}
	if len(m.Question) != 1 || m.Question[0].Name != dns.CanonicalName(m.Question[0].Name) || m.IsEdns0() != nil {
		return nil, errors.New("a reply that is never cached")
	}
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			rr.Header().Ttl = min(rr.Header().Ttl, maxTTL)
		}
	}
	return &entry{
		question: question{m.Question[0].Name, m.Question[0].Qtype, head[24]},
		source:   source{cluster: parseClusterAddr([16]byte(head[8:24])), loaded: true},
		storedAt: time.Unix(int64(binary.BigEndian.Uint64(head[:])), 0), reply: m,
	}, nil
}
