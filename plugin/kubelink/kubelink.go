// Package kubelink is the CoreDNS plugin that links Kubernetes clusters: it runs the broker (link
// controllers and dataplane) in this process and answers DNS from the live state of the links.
package kubelink

import (
	"context"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metadata"
	clog "github.com/coredns/coredns/plugin/pkg/log"
	"github.com/coredns/coredns/plugin/transfer"
	"github.com/coredns/coredns/request"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/zone"
)

const pluginName = "kubelink"

var log = clog.NewWithPlugin(pluginName)

// Kubelink is the handler of one server block. All of them answer from the same broker.
type Kubelink struct {
	Next plugin.Handler

	zones  []string // of the server block, but for the root
	stanza *stanza  // shared by all server blocks of the Corefile
	shared *holder
}

// Name implements plugin.Handler.
func (k *Kubelink) Name() string { return pluginName }

// ServeDNS implements plugin.Handler.
func (k *Kubelink) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	state := &request.Request{W: w, Req: r}
	if r.Opcode != dns.OpcodeQuery || state.QClass() != dns.ClassINET {
		return k.next(ctx, w, r)
	}

	reply, err := k.answer(ctx, state)
	if reply == nil {
		return k.next(ctx, w, r)
	}
	// As it is written, no failure may be returned as rcode, lest CoreDNS writes another one; the error goes to the
	// errors plugin.
	if e := w.WriteMsg(reply); err == nil {
		err = e
	}
	return dns.RcodeSuccess, err
}

// answer is the reply to a query, counted; nil: the name is not ours. It is not part of ServeDNS for the stack: see
// zone.Match.Answer.
func (k *Kubelink) answer(ctx context.Context, state *request.Request) (*dns.Msg, error) {
	table := k.shared.table()
	if table == nil {
		return k.notReady(state), nil
	}
	match, ok := table.Match(state.Name())
	if !ok {
		return nil, nil
	}
	if t := state.QType(); t == dns.TypeAXFR || t == dns.TypeIXFR { // that the transfer plugin does not make
		return count(match.Zone(), new(dns.Msg).SetRcode(state.Req, dns.RcodeRefused)), nil
	}
	reply, err := match.Answer(ctx, state)
	return count(match.Zone(), reply), err
}

// notReady is the reply while the links are not known: that says nothing about a name, neither that it exists nor the
// contrary.
func (k *Kubelink) notReady(state *request.Request) *dns.Msg {
	own := plugin.Zones(k.CacheBypassZones()).Matches(state.Name())
	if own == "" {
		return nil
	}
	return count(own, zone.Failure(state.Req, dns.ExtendedErrorCodeNotReady, k.shared.notReady()))
}

// next leaves the query to the next plugin. Where there is none the name is nobody's: to refuse it is no error that needs
// to be logged, and an alias to it ends the answer.
func (k *Kubelink) next(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	if k.Next == nil && k.shared.table() != nil {
		return dns.RcodeRefused, nil
	}
	return plugin.NextOrFailure(k.Name(), k.Next, ctx, w, r)
}

// Transfer lets the transfer plugin have the global zones that are served here. That
// plugin, in front of us, has looked who may have them.
func (k *Kubelink) Transfer(zone string, serial uint32) (<-chan []dns.RR, error) {
	table := k.shared.table()
	if table == nil {
		return nil, transfer.ErrNotAuthoritative // ServeDNS gets it, and says why
	}
	rrs, ok := table.Transfer(zone, serial)
	if !ok {
		return nil, transfer.ErrNotAuthoritative
	}
	all := make(chan []dns.RR, 1) // the plugin cuts it into messages
	all <- rrs
	close(all)
	return all, nil
}

// CacheBypassZones implements the cache plugin's ZoneBypasser: the names that follow links must not
// be held back by a cache in front of us, which would also strip the reason from a cached failure.
// These zones are also what is ours before the links are known.
func (k *Kubelink) CacheBypassZones() []string {
	cfg := &k.stanza.config
	if cfg.Propagation == mesh.PropagateNone {
		return k.zones
	}
	return append(k.zones[:len(k.zones):len(k.zones)], cfg.MeshDomain)
}

// Ready implements the ready plugin's Readiness: the API server is reachable and its state is applied.
func (k *Kubelink) Ready() bool { return k.shared.ready() }

// Metadata implements the metadata plugin's Provider.
func (k *Kubelink) Metadata(ctx context.Context, state request.Request) context.Context {
	table := k.shared.table()
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
