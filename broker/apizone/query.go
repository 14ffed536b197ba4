package apizone

// This file resolves queries: from the reply cache, or by the plugin. It turns the plugin's replies into replies of a
// zone of the mesh.

import (
	"context"
	"fmt"
	"slices"

	"github.com/coredns/coredns/plugin/pkg/nonwriter"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
)

// maxTTL is the TTL of all records in seconds, also of the targets of services of type ExternalName.
const maxTTL = 5

// resolveQuery makes the reply to a query in the zone. The sections of the reply are shared with the replies to other
// queries.
func (i *instance) resolveQuery(ctx context.Context, state *request.Request) (*dns.Msg, error) {
	if e := i.replies.findEntry(i.number, i.index, state); e != nil {
		return e.newReply(state.Req), nil
	}
	return i.resolveUncached(ctx, state)
}

// resolveUncached makes a reply and caches it.
func (i *instance) resolveUncached(ctx context.Context, state *request.Request) (*dns.Msg, error) {
	of, cacheable := findObjects(i.index, state.Name(), i.zone)
	m, err := i.queryPlugin(ctx, state)
	if err == nil && cacheable {
		i.replies.addReply(i.number, state, of, m)
	}
	return m, err
}

// queryPlugin gets the reply of the plugin.
func (i *instance) queryPlugin(ctx context.Context, state *request.Request) (*dns.Msg, error) {
	w := nonwriter.New(state.W)
	rcode, err := i.plugin.ServeDNS(ctx, w, state.Req)
	if err != nil {
		return nil, fmt.Errorf("names of %s: %w", i.zone, err)
	}
	m := w.Msg
	if m == nil {
		m = new(dns.Msg).SetRcode(state.Req, rcode)
	}
	if err := i.rewriteAliases(state.Name(), m.Answer); err != nil {
		return nil, err
	}
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if h := rr.Header(); h.Rrtype != dns.TypeOPT {
				h.Ttl = min(h.Ttl, maxTTL)
			}
		}
	}
	return m, nil
}

// rewriteAliases changes the targets of aliases, such as services of type ExternalName. A target in the cluster's own
// domain belongs to the zone: in this cluster, that domain has other names. Package zone follows the alias, as all
// aliases in the mesh.
func (i *instance) rewriteAliases(name string, answer []dns.RR) error {
	const maxName = 254 // RFC 1035: 255 octets, and names of Kubernetes have no escapes
	for _, rr := range answer {
		alias, ok := rr.(*dns.CNAME)
		if !ok || !dns.IsSubDomain(i.clusterDomain, alias.Target) {
			continue
		}
		alias.Target = alias.Target[:len(alias.Target)-len(i.clusterDomain)] + i.zone
		if len(alias.Target) > maxName {
			return fmt.Errorf("%s is an alias of a name that is longer than 255 octets in %s", name, i.zone)
		}
	}
	return nil
}

// serviceNames are the names of the services with the address.
func (i *instance) serviceNames(address string) (names []string) {
	for _, s := range i.index.SvcIndexReverse(address) {
		name := s.Name + "." + s.Namespace + ".svc." + i.zone
		if _, ok := dns.IsDomainName(name); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
