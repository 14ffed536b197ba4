package e2e

// The programs that send the queries of TestResolvers: dig, a client made with miekg/dns, and unbound as the resolver
// in front of kubelink, with a small internet of names behind it.

import (
	"context"
	"crypto"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"

	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// querier is a way to send queries.
type querier struct {
	name  string
	limit int  // the longest answer that it takes by UDP; 0: it uses TCP
	edns  bool // it uses EDNS, so the answer can have a reason
	front bool // it queries a resolver in front of kubelink
	query func(ctx context.Context, questions []dns.Question) ([]*dns.Msg, error)
}

// sizes are the sizes in EDNS. Without EDNS, an answer has 512 bytes at most.
var sizes = []int{0, 512, 1232, 4096}

// maxUDP is the longest answer by UDP in bytes, whatever a client takes: "bufsize" of deploy/base.
const maxUDP = 1232

// newQueriers returns the ways to query a DNS server from a pod.
func newQueriers(from *testbed.Pod, server netip.AddrPort) (all []querier) {
	for _, size := range sizes {
		for _, client := range []struct {
			name string
			ask  func(context.Context, *testbed.Pod, netip.AddrPort, string, int, []dns.Question) ([]*dns.Msg, error)
		}{{"dig", queryDig}, {"miekg/dns", queryMiekg}} {
			for _, network := range []string{"udp", "tcp"} {
				if network == "tcp" && size > 512 { // TCP does not use sizes
					continue
				}
				a := querier{name: fmt.Sprintf("%s %s/%d", client.name, network, size), edns: size > 0}
				if network == "udp" {
					a.limit = min(max(size, dns.MinMsgSize), maxUDP)
				}
				a.query = func(ctx context.Context, questions []dns.Question) ([]*dns.Msg, error) {
					return client.ask(ctx, from, server, network, size, questions)
				}
				all = append(all, a)
			}
		}
	}
	return all
}

// queryMiekg queries with a client of miekg/dns. As with dig, one datagram may be lost.
func queryMiekg(
	ctx context.Context, from *testbed.Pod, server netip.AddrPort, network string, size int, questions []dns.Question,
) ([]*dns.Msg, error) {
	answers := make([]*dns.Msg, len(questions))
	again := network == "udp"
	for i, q := range questions {
		m := new(dns.Msg).SetQuestion(q.Name, q.Qtype)
		if size > 0 {
			m.SetEdns0(uint16(size), false)
		}
		var err error
		if answers[i], err = from.Exchange(ctx, network, server, m); err != nil && again {
			again = false
			answers[i], err = from.Exchange(ctx, network, server, m)
		}
		if err != nil {
			return nil, err
		}
	}
	return answers, nil
}

// queryDig sends all queries with one run of dig.
func queryDig(
	ctx context.Context, from *testbed.Pod, server netip.AddrPort, network string, size int, questions []dns.Question,
) ([]*dns.Msg, error) {
	args := []string{
		"@" + server.Addr().String(), "-p", strconv.Itoa(int(server.Port())), "+noall", "+comments", "+question", "+answer",
		"+authority", "+additional",
		"+ignore", "+tries=2", "+time=3", "+notcp", "+noedns",
	}
	if network == "tcp" {
		args = append(args, "+tcp")
	}
	if size > 0 {
		args = append(args, "+edns=0", fmt.Sprintf("+bufsize=%d", size))
	}
	for _, q := range questions {
		args = append(args, "-q", q.Name, "-t", dns.TypeToString[q.Qtype])
	}
	text, err := from.Run(ctx, "dig", args...)
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, text)
	}
	// One datagram may be lost, as on any network. It does happen here, on the way to kubelink: the pod's kernel counts
	// one datagram more than the node's kernel has delivered.
	if lost := strings.Count(text, "communications error"); lost > 1 {
		return nil, fmt.Errorf("%d questions were asked again\n%s", lost, text)
	}
	answers, err := parseDig(text)
	if err == nil && len(answers) != len(questions) {
		err = fmt.Errorf("%d answers to %d questions\n%s", len(answers), len(questions), text)
	}
	return answers, err
}

var (
	digStatus = regexp.MustCompile(`^;; ->>HEADER<<- opcode: QUERY, status: (\w+), id: \d+$`)
	digFlags  = regexp.MustCompile(`^;; flags:([a-z ]*);`)
	digEDNS   = regexp.MustCompile(`^; EDNS: version: 0, flags:[a-z ]*; udp: (\d+)$`)
	digReason = regexp.MustCompile(`^; EDE: (\d+)(?: \([^)]*\))?(?:: \((.*)\))?$`)
	digName   = regexp.MustCompile(`^;(\S+)\s+IN\s+(\S+)$`)
)

// parseDig reads dig's output. It is meant for people, but it is complete.
func parseDig(text string) (answers []*dns.Msg, err error) {
	var m *dns.Msg
	var section *[]dns.RR
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if found := digStatus.FindStringSubmatch(line); found != nil {
			m, section = new(dns.Msg), nil
			m.Rcode = dns.StringToRcode[found[1]]
			answers = append(answers, m)
		}
		if m == nil {
			continue
		}
		if found := digFlags.FindStringSubmatch(line); found != nil {
			for flag := range strings.FieldsSeq(found[1]) {
				m.Response = m.Response || flag == "qr"
				m.Authoritative = m.Authoritative || flag == "aa"
				m.Truncated = m.Truncated || flag == "tc"
			}
		} else if found := digEDNS.FindStringSubmatch(line); found != nil {
			size, _ := strconv.Atoi(found[1])
			m.SetEdns0(uint16(size), false)
		} else if found := digReason.FindStringSubmatch(line); found != nil {
			code, _ := strconv.Atoi(found[1])
			opt := m.IsEdns0()
			opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: uint16(code), ExtraText: found[2]})
		} else if strings.HasSuffix(line, " SECTION:") {
			sections := map[string]*[]dns.RR{"ANSWER": &m.Answer, "AUTHORITY": &m.Ns, "ADDITIONAL": &m.Extra}
			section = sections[strings.Fields(line)[1]]
		} else if found := digName.FindStringSubmatch(line); found != nil {
			m.Question = []dns.Question{{Name: found[1], Qtype: dns.StringToType[found[2]], Qclass: dns.ClassINET}}
		} else if section != nil && line != "" && line[0] != ';' {
			rr, err := dns.NewRR(line)
			if err != nil {
				return nil, fmt.Errorf("%q: %w", line, err)
			}
			*section = append(*section, rr)
		}
	}
	return answers, nil
}

// The names of the internet, and the names of a zone of the mesh that is delegated to the same server.
const internetNames = `
www.outside.example.       5 IN A     192.0.2.80
alias.outside.example.     5 IN CNAME www.outside.example.
forged.outside.example.    5 IN A     192.0.2.66

branch.svc.global.kubelink.      5 IN SOA ns.branch.svc.global.kubelink. hostmaster.branch.svc.global.kubelink. (
                                         1 7200 1800 86400 5 )
branch.svc.global.kubelink.      5 IN NS  ns.branch.svc.global.kubelink.
desk.branch.svc.global.kubelink. 5 IN A   192.0.2.81
desk.branch.svc.global.kubelink. 5 IN TXT "of the branch"
`

// internet is a name server for everything outside of the mesh, on port 53 of a pod. It stands for the whole
// hierarchy from the root down, which it signs as one zone (RFC 4035). Its answer for the name forged differs from
// the signed one.
type internet struct {
	records []dns.RR
	key     *dns.DNSKEY
	signer  crypto.Signer
}

// startInternet starts the server. It returns the address of its service, and the key to trust.
func startInternet(ctx context.Context, b *fleet.Broker) (addr netip.Addr, trust string, err error) {
	n := &internet{}
	zone := dns.NewZoneParser(strings.NewReader(internetNames), ".", "")
	for rr, ok := zone.Next(); ok; rr, ok = zone.Next() {
		n.records = append(n.records, rr)
	}
	if err := zone.Err(); err != nil {
		return addr, "", err
	}
	n.key = &dns.DNSKEY{
		Hdr:   dns.RR_Header{Name: ".", Rrtype: dns.TypeDNSKEY, Class: dns.ClassINET, Ttl: 5},
		Flags: dns.ZONE | dns.SEP, Protocol: 3, Algorithm: dns.ECDSAP256SHA256,
	}
	private, err := n.key.Generate(256)
	if err != nil {
		return addr, "", err
	}
	n.signer = private.(crypto.Signer)
	n.records = append(n.records, n.key)

	pod, err := b.Pod(ctx, "internet", testbed.PodOptions{})
	if err != nil {
		return addr, "", err
	}
	conn, err := pod.ListenPacket("udp", ":53")
	if err != nil {
		return addr, "", err
	}
	listener, err := pod.Listen("tcp", ":53")
	if err != nil {
		return addr, "", err
	}
	for _, server := range []*dns.Server{{PacketConn: conn, Handler: n}, {Listener: listener, Handler: n}} {
		go server.ActivateAndServe()
	}
	addr, err = b.Service(ctx, "internet", map[string]string{"app": "internet"}, []corev1.ServicePort{
		{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53}, {Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: 53},
	}, testbed.ServiceOptions{})
	return addr, n.key.String(), err
}

// ServeDNS implements dns.Handler.
func (n *internet) ServeDNS(w dns.ResponseWriter, req *dns.Msg) {
	reply := new(dns.Msg).SetReply(req)
	reply.Authoritative = true
	q := req.Question[0]
	name, exists := dns.CanonicalName(q.Name), false
	var soa dns.RR
	for _, rr := range n.records {
		h := rr.Header()
		exists = exists || dns.IsSubDomain(name, h.Name)
		if h.Name == name && (h.Rrtype == q.Qtype || h.Rrtype == dns.TypeCNAME) {
			reply.Answer = append(reply.Answer, rr)
		}
		if h.Rrtype == dns.TypeSOA && dns.IsSubDomain(h.Name, name) {
			soa = rr
		}
	}
	if !exists {
		reply.Rcode = dns.RcodeNameError
	}
	if len(reply.Answer) == 0 && soa != nil {
		reply.Ns = []dns.RR{soa}
	}
	if opt := req.IsEdns0(); opt != nil {
		reply.SetEdns0(dns.DefaultMsgSize, opt.Do())
		if soa == nil && opt.Do() && len(reply.Answer) > 0 {
			reply.Answer = append(reply.Answer, n.signRecords(reply.Answer))
		}
	}
	if name == "forged.outside.example." {
		for i, rr := range reply.Answer {
			if a, ok := dns.Copy(rr).(*dns.A); ok {
				a.A = []byte{192, 0, 2, 99}
				reply.Answer[i] = a
			}
		}
	}
	// Resolvers that query in mixed case expect the same case in the answer.
	for i, rr := range reply.Answer {
		if rr.Header().Name == name {
			rr = dns.Copy(rr)
			rr.Header().Name = q.Name
			reply.Answer[i] = rr
		}
	}
	w.WriteMsg(reply)
}

// signRecords makes the signature of a record set.
func (n *internet) signRecords(rrs []dns.RR) dns.RR {
	sig := &dns.RRSIG{
		Hdr:       dns.RR_Header{Name: rrs[0].Header().Name, Rrtype: dns.TypeRRSIG, Class: dns.ClassINET, Ttl: 5},
		Algorithm: n.key.Algorithm, KeyTag: n.key.KeyTag(), SignerName: ".",
		Inception: uint32(time.Now().Add(-time.Hour).Unix()), Expiration: uint32(time.Now().Add(time.Hour).Unix()),
	}
	if err := sig.Sign(n.signer, rrs); err != nil {
		panic(err)
	}
	return sig
}

// unboundConf is a typical configuration of a resolver, with the zones of the mesh. The resolver validates answers
// from the internet. The zones of the mesh are not signed, and some are reverse zones of private networks: the
// configuration has to allow both. The resolver remembers nothing, so that answers can be compared.
const unboundConf = `
server:
    do-daemonize: no
    username: ""
    chroot: ""
    directory: ""
    pidfile: ""
    use-syslog: no
    logfile: ""
    interface: 0.0.0.0@%[1]d
    access-control: 0.0.0.0/0 allow
    do-ip6: no
    module-config: "validator iterator"
    trust-anchor: "%[2]s"
    domain-insecure: "kubelink"
    unblock-lan-zones: yes
    insecure-lan-zones: yes
    ede: yes
    msg-cache-size: 0
    rrset-cache-size: 0
    cache-max-ttl: 0
    cache-max-negative-ttl: 0
    serve-expired: no
    %[3]s
forward-zone:
    name: "."
    forward-addr: %[4]s
`

// A resolver either forwards queries unchanged, or it takes kubelink for an authoritative server: then it follows
// delegations, and queries from the top down (RFC 9156), here in random case.
var resolvers = []struct {
	name string
	port uint16
	ask  string // the kind of zone for queries to kubelink
	more string
}{
	{"unbound forwarding", 53, "forward", ""},
	{"unbound iterating", 54, "stub", "use-caps-for-id: yes\n    qname-minimisation-strict: yes"},
}

// startResolvers starts unbound in a pod, once in each way.
func startResolvers(
	t *testing.T, ctx context.Context, b *fleet.Broker, internet netip.Addr, trust string, zones []string,
) (all []querier) {
	t.Helper()
	pod, err := b.Pod(ctx, "unbound", testbed.PodOptions{})
	must(t, err)
	t.Cleanup(func() { must(t, pod.Delete(context.Background())) })
	for _, r := range resolvers {
		conf := fmt.Sprintf(unboundConf, r.port, strings.ReplaceAll(trust, "\t", " "), r.more, internet)
		for _, z := range zones {
			conf += fmt.Sprintf("%[1]s-zone:\n    name: %[2]q\n    %[1]s-addr: %[3]s\n", r.ask, z, b.MeshDNSAddress)
		}
		path := filepath.Join(t.TempDir(), "unbound.conf")
		must(t, os.WriteFile(path, []byte(conf), 0o644))
		process, err := pod.Start(context.Background(), r.name, nil, "unbound", "-d", "-c", path)
		must(t, err)
		server := netip.AddrPortFrom(pod.Address, r.port)
		must(t, process.WaitLog(ctx, "start of service"))
		all = append(all, querier{name: r.name, front: true,
			query: func(ctx context.Context, questions []dns.Question) ([]*dns.Msg, error) {
				return queryMiekg(ctx, pod, server, "tcp", 1232, questions)
			}})

		// Check that it validates.
		validated := func(name string) *dns.Msg {
			question := new(dns.Msg).SetQuestion(name, dns.TypeA)
			question.AuthenticatedData = true
			m, err := pod.Exchange(ctx, "tcp", server, question)
			must(t, err)
			return m
		}
		good, forged := validated("www.outside.example."), validated("forged.outside.example.")
		if !good.AuthenticatedData || len(good.Answer) != 1 || forged.Rcode != dns.RcodeServerFailure {
			t.Fatalf("%s does not validate:\n%s\n%s\n%s", r.name, good, forged, process.Log())
		}
	}
	return all
}
