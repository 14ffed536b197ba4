package kubelink

// The way of a query: ServeDNS looks its name up in the broker's zone table (zone.Table.Match), and the
// match answers it (zone.Match.Answer). The other plugins that CoreDNS combines with this one (transfer,
// cache, ready, metadata) get their answers here too.

import (
	"context"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metadata"
	"github.com/coredns/coredns/plugin/transfer"
	"github.com/coredns/coredns/request"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/zone"
)

// Kubelink is the handler of one server block. All handlers answer from the same broker.
type Kubelink struct {
	Next plugin.Handler

	zones     []string // the zones of the server block without the root
	stanza    *stanza  // all server blocks of the Corefile share it
	lifecycle *brokerLifecycle
}

// Name implements plugin.Handler.
func (k *Kubelink) Name() string { return pluginName }

// ServeDNS implements plugin.Handler.
func (k *Kubelink) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	state := &request.Request{W: w, Req: r}
	if r.Opcode != dns.OpcodeQuery || state.QClass() != dns.ClassINET {
		return k.passToNext(ctx, w, r)
	}

	reply, err := k.answerQuery(ctx, state)
	if reply == nil {
		return k.passToNext(ctx, w, r)
	}
	// CoreDNS writes a reply of its own if it gets the rcode of a failure: after WriteMsg the rcode is
	// success, and the errors plugin logs the error. It does not log that the client is gone: a client
	// could have that as often as it likes.
	_ = w.WriteMsg(reply)
	return dns.RcodeSuccess, err
}

// maxUDPSize is the size of the longest answer in a datagram: it fits all paths without fragments. An
// address in a query by UDP may be forged, and must not get forty kilobytes for its forty bytes. Longer
// answers are truncated, and clients then ask by TCP.
const maxUDPSize = 1232

// limitSize reduces the size that a client offers, as the bufsize plugin does: also for the questions
// to clusters.
func limitSize(r *dns.Msg, proto string) {
	if opt := r.IsEdns0(); opt != nil && proto == "udp" && opt.UDPSize() > maxUDPSize {
		opt.SetUDPSize(maxUDPSize)
	}
}

// answerQuery makes and counts the reply to a query; nil: the next plugin answers the name. It is apart
// from ServeDNS to keep the stack small: see zone.Match.Answer.
func (k *Kubelink) answerQuery(ctx context.Context, state *request.Request) (*dns.Msg, error) {
	table := k.lifecycle.currentTable()
	if table == nil {
		return k.replyNotReady(state), nil
	}
	match, ok := table.Match(state.Name())
	if !ok && k.Next == nil {
		match, ok = table.MatchShared(state.Name())
	}
	if !ok {
		return nil, nil
	}
	limitSize(state.Req, state.Proto())
	if t := state.QType(); t == dns.TypeAXFR || t == dns.TypeIXFR { // one that the transfer plugin did not answer
		return countReply(match.Zone(), new(dns.Msg).SetRcode(state.Req, dns.RcodeRefused)), nil
	}
	reply, err := match.Answer(ctx, state)
	return countReply(match.Zone(), reply), err
}

// replyNotReady is the reply while the links are not known: SERVFAIL, as the name may exist or not.
func (k *Kubelink) replyNotReady(state *request.Request) *dns.Msg {
	own := plugin.Zones(k.CacheBypassZones()).Matches(state.Name())
	if own == "" {
		return nil
	}
	return countReply(own, zone.Failure(state.Req, dns.ExtendedErrorCodeNotReady, k.lifecycle.notReadyText()))
}

// passToNext gives the query to the next plugin. If there is none, no plugin has the name: a refusal is
// no error for the log, and an answer ends at an alias that leads to this name.
func (k *Kubelink) passToNext(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	if k.Next == nil && k.lifecycle.currentTable() != nil {
		return dns.RcodeRefused, nil
	}
	return plugin.NextOrFailure(k.Name(), k.Next, ctx, w, r)
}

// Transfer gives the transfer plugin the global zones that the broker serves. The transfer plugin
// stands in front of this one and has checked that the client may have the zone.
func (k *Kubelink) Transfer(zone string, serial uint32) (<-chan []dns.RR, error) {
	table := k.lifecycle.currentTable()
	if table == nil {
		return nil, transfer.ErrNotAuthoritative // ServeDNS gets the query, and its reply gives the reason
	}
	rrs, ok := table.Transfer(zone, serial)
	if !ok {
		return nil, transfer.ErrNotAuthoritative
	}
	all := make(chan []dns.RR, 1) // the transfer plugin cuts it into messages
	all <- rrs
	close(all)
	return all, nil
}

// CacheBypassZones implements the cache plugin's ZoneBypasser: a cache in front of this plugin must not
// keep the names that follow links, and it would strip the reason from a failure. While the links are
// not known these zones are the ones that this plugin answers for.
func (k *Kubelink) CacheBypassZones() []string {
	cfg := &k.stanza.config
	if cfg.Propagation == mesh.PropagateNone {
		return k.zones
	}
	return append(k.zones[:len(k.zones):len(k.zones)], cfg.MeshDomain)
}

// Ready implements the ready plugin's Readiness: the API server is reachable and its state is applied.
func (k *Kubelink) Ready() bool { return k.lifecycle.isReady() }

// Metadata implements the metadata plugin's Provider.
func (k *Kubelink) Metadata(ctx context.Context, state request.Request) context.Context {
	table := k.lifecycle.currentTable()
	if table == nil {
		return ctx
	}
	if match, ok := table.Match(state.Name()); ok {
		metadata.SetValueFunc(ctx, "kubelink/zone", match.Zone)
		metadata.SetValueFunc(ctx, "kubelink/link", match.Link)
		metadata.SetValueFunc(ctx, "kubelink/upstream", func() string {
			if u := match.Upstream(); u.IsValid() {
				return u.String()
			}
			return ""
		})
	}
	return ctx
}
