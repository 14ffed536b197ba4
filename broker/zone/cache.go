package zone

// Answers of clusters, remembered: for as long as their TTL says, so that a name is not asked again for each query,
// and for longer where stale answers are wanted (RFC 8767) or what is known has to survive a restart.

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
	maxEntries   = 1 << 15        // answers that are remembered; if there are more, some go
	maxEntrySize = 1232           // bytes of one: what fits a datagram on all paths. Larger ones are asked again
	maxStaleAge  = 72 * time.Hour // RFC 8767, 5: one to three days
)

// ReplyCache is the memory of tables. It outlives them.
type ReplyCache struct {
	Persistent atomic.Bool // it is to be saved: answers that nobody else needs are remembered, too

	cache *cache.Cache[*entry]
}

// NewReplyCache returns an empty memory.
func NewReplyCache() *ReplyCache { return &ReplyCache{cache: cache.New[*entry](maxEntries)} }

// question is what an answer depends on.
type question struct {
	name  string // in lower case
	qtype uint16
	flags uint8 // as asked
}

// Flags of a question.
const (
	flagRD = 1 << iota
	flagCD
	flagDO
)

// questionOf is the question of a query. It has no options: see ask.
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

// source is who gave an answer.
type source struct {
	cluster netip.Addr // its service network, or else its DNS service: a cluster with the same name may be another one
	serial  uint64     // of the upstream; 0: an earlier process was told, or it is not asked in this way
	loaded  bool
}

// entry is a remembered reply. It is immutable, but for the copies that it makes of itself.
type entry struct {
	question
	source   source
	storedAt time.Time // when
	minTTL   uint32    // the shortest of its records, in seconds
	reply    *dns.Msg  // the question is that of the first who asked, in lower case

	aged [maxTTL]atomic.Pointer[dns.Msg] // the same with TTLs that are one second shorter, two, ...
}

// findEntry finds what was answered.
func (a *ReplyCache) findEntry(q question) *entry {
	if a == nil {
		return nil
	}
	if e, ok := a.cache.Get(q.hashKey()); ok && e.question == q {
		return e
	}
	return nil
}

// storeReply remembers a reply, whose question is in lower case and that nobody modifies from now on.
func (a *ReplyCache) storeReply(q question, from source, reply *dns.Msg) {
	if a == nil || reply.Truncated || reply.Rcode != dns.RcodeSuccess && reply.Rcode != dns.RcodeNameError {
		return
	}
	if reply.Len() > maxEntrySize {
		return
	}
	e := &entry{question: q, source: from, storedAt: time.Now(), minTTL: maxTTL}
	kept := *reply
	kept.Extra = withoutOPT(append([]dns.RR(nil), reply.Extra...))
	if opt := reply.IsEdns0(); opt != nil && len(opt.Option) > 0 { // is about this one query
		return
	}
	for _, section := range [][]dns.RR{kept.Answer, kept.Ns, kept.Extra} {
		for _, rr := range section {
			e.minTTL = min(e.minTTL, rr.Header().Ttl)
		}
	}
	e.reply = &kept
	a.cache.Add(q.hashKey(), e)
}

// ageSeconds is how old the answer is, in whole seconds.
func (e *entry) ageSeconds() uint32 {
	age := time.Since(e.storedAt)
	if age < 0 { // the clock was set back: what an earlier process was told may be of any age
		return math.MaxUint32
	}
	return uint32(min(age/time.Second, math.MaxUint32))
}

// freshReply makes the reply to a query, nil if the answer is not from this source, or is older than its TTL or most, in
// seconds. A TTL of 0 counts as a second: aliases among clusters come back to the same name within that time, again and
// again.
func (e *entry) freshReply(from source, most uint32, req *dns.Msg) *dns.Msg {
	if e == nil || e.source != from {
		return nil
	}
	age := e.ageSeconds()
	if age >= min(max(e.minTTL, 1), most) {
		return nil
	}
	return replyFrom(e.agedSections(age), req)
}

// staleReply makes the reply to a query of an answer that is no longer true for sure; nil if it is older than that, or was
// another cluster's.
func (e *entry) staleReply(of netip.Addr, most time.Duration, req *dns.Msg) *dns.Msg {
	if e == nil || e.source.cluster != of || time.Duration(e.ageSeconds())*time.Second >= min(most, maxStaleAge) {
		return nil
	}
	return replyFrom(e.reply, req)
}

// agedSections are the records at an age below the TTL.
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
			rr.Header().Ttl -= age // is not below the answer's
			aged = append(aged, rr)
		}
		*section = aged
	}
	e.aged[age].Store(&m)
	return &m
}

// replyFrom makes the reply to a query from the sections of another one with the same question, which it shares.
// Owners that are the question are spelled as this client does.
func replyFrom(from *dns.Msg, req *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(req)
	m.Rcode, m.Authoritative, m.RecursionAvailable = from.Rcode, from.Authoritative, from.RecursionAvailable
	// Whoever appends to a section must not write into the one that is shared.
	m.Answer = from.Answer[:len(from.Answer):len(from.Answer)]
	m.Ns = from.Ns[:len(from.Ns):len(from.Ns)]
	m.Extra = from.Extra[:len(from.Extra):len(from.Extra)]
	if name := req.Question[0].Name; name != from.Question[0].Name {
		for _, section := range []*[]dns.RR{&m.Answer, &m.Ns, &m.Extra} {
			*section = respellOwners(*section, from.Question[0].Name, name)
		}
	}
	return m
}

// respellOwners returns the records with the name of owners in another spelling.
func respellOwners(rrs []dns.RR, name, as string) []dns.RR {
	spelled := make([]dns.RR, 0, len(rrs))
	for _, rr := range rrs {
		if equalFold(rr.Header().Name, name) {
			rr = dns.Copy(rr)
			rr.Header().Name = as
		}
		spelled = append(spelled, rr)
	}
	return spelled
}

// The file that answers are kept in is a line that says so, and for each answer
//
//	seconds since 1970  int64 BE
//	address of the cluster's service network  [16]byte, IPv6, or IPv4 mapped to it; zero: not known
//	flags of the question  uint8
//	length of the message  uint16 BE
//	the reply as a DNS message (RFC 1035)
const cacheFileMagic = "kubelink answers 2\n"

// Save writes what is remembered, but for what is too old for anybody.
func (a *ReplyCache) Save(to io.Writer) error {
	w := bufio.NewWriter(to)
	w.WriteString(cacheFileMagic) //nolint:errcheck // Flush tells
	err := error(nil)
	a.cache.Walk(func(items map[uint64]*entry, key uint64) bool {
		e := items[key]
		if e == nil || e.ageSeconds() >= uint32(maxStaleAge/time.Second) {
			return true
		}
		m := *e.reply
		m.Compress = true
		wire, packErr := m.Pack()
		if packErr != nil || len(wire) > dns.MaxMsgSize {
			return true // is asked again
		}
		head := binary.BigEndian.AppendUint64(nil, uint64(e.storedAt.Unix()))
		var cluster [16]byte
		if e.source.cluster.IsValid() {
			cluster = e.source.cluster.As16()
		}
		head = append(append(head, cluster[:]...), e.flags)
		head = binary.BigEndian.AppendUint16(head, uint16(len(wire)))
		w.Write(head) //nolint:errcheck // Flush tells
		_, err = w.Write(wire)
		return err == nil
	})
	return errors.Join(err, w.Flush())
}

// parseClusterAddr reads the address that stands for a cluster.
func parseClusterAddr(b [16]byte) netip.Addr {
	if b == [16]byte{} {
		return netip.Addr{}
	}
	return netip.AddrFrom16(b).Unmap()
}

// Load remembers what Save wrote. All of it is stale. After an error what came before it is remembered.
func (a *ReplyCache) Load(from io.Reader) error {
	r := bufio.NewReader(from)
	magic := make([]byte, len(cacheFileMagic))
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != cacheFileMagic {
		return errors.New("not a file of answers of this version")
	}
	for n := 1; ; n++ {
		var head [27]byte
		if _, err := io.ReadFull(r, head[:]); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("answer %d: %w", n, err)
		}
		wire := make([]byte, binary.BigEndian.Uint16(head[25:]))
		if _, err := io.ReadFull(r, wire); err != nil {
			return fmt.Errorf("answer %d: %w", n, err)
		}
		m := new(dns.Msg)
		if err := m.Unpack(wire); err != nil || len(m.Question) != 1 || m.Question[0].Name != dns.CanonicalName(m.Question[0].Name) || m.IsEdns0() != nil {
			return fmt.Errorf("answer %d: not a reply that is kept: %w", n, errors.Join(err))
		}
		for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
			for _, rr := range section {
				rr.Header().Ttl = min(rr.Header().Ttl, maxTTL)
			}
		}
		e := &entry{
			question: question{m.Question[0].Name, m.Question[0].Qtype, head[24]},
			source:   source{cluster: parseClusterAddr([16]byte(head[8:24])), loaded: true},
			storedAt: time.Unix(int64(binary.BigEndian.Uint64(head[:])), 0), reply: m,
		}
		if time.Since(e.storedAt) < maxStaleAge {
			a.cache.Add(e.hashKey(), e)
		}
	}
}
