package zone

// Aliases: a reply may end with a CNAME record into another zone. Kubelink then adds what that zone has, because a
// resolver that forwards to it does not look there.

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	corednsupstream "github.com/coredns/coredns/plugin/pkg/upstream"
	"github.com/coredns/coredns/request"

	"github.com/miekg/dns"
)

const (
	// maxAliases bounds the aliases from one zone of the mesh to another, and the ones to names of other plugins.
	maxAliases = 8
	// maxChaseTime bounds the time for that: no client waits for longer.
	maxChaseTime = 2 * time.Second
)

// chaseCNAME completes a reply with aliases that lead to another zone. err is the error that came with the reply.
func (m *Match) chaseCNAME(
	ctx context.Context, state *request.Request, reply *dns.Msg, err error,
) (*dns.Msg, error) {
	begin := time.Now()
	for range maxAliases {
		target, loop := danglingTarget(reply)
		switch {
		case loop:
			return Failure(state.Req, dns.ExtendedErrorCodeInvalidData,
				fmt.Sprintf("the aliases of %s lead in a circle", state.QName())), err
		case target == "":
			return reply, err
		case time.Since(begin) > maxChaseTime || ctx.Err() != nil:
			return Failure(state.Req, dns.ExtendedErrorCodeNetworkError,
				fmt.Sprintf("following the aliases of %s takes longer than %s", state.QName(), maxChaseTime)), err
		}
		next, ok := m.table.Match(dns.CanonicalName(target))
		if !ok {
			return lookupLocal(ctx, reply, target, state), err
		}
		req := *state.Req
		req.Question = []dns.Question{{Name: target, Qtype: state.QType(), Qclass: state.QClass()}}
		rest, nextErr := next.resolveInZone(ctx, &request.Request{W: state.W, Req: &req})
		if err == nil {
			err = nextErr
		}
		reply = appendChain(reply, rest, state.Req)
		if target, loop := danglingTarget(rest); target == "" && !loop { // records, or a denial
			return reply, err
		}
	}
	return Failure(state.Req, dns.ExtendedErrorCodeOther,
		fmt.Sprintf("%s leads through more than %d aliases from one zone of the mesh to another",
			state.QName(), maxAliases)), err
}

// danglingTarget is the name that the aliases of a reply lead to, if the reply does not say what is there. It is a loop
// if the aliases pass a name twice, or are too many.
func danglingTarget(reply *dns.Msg) (target string, loop bool) {
	if reply.Rcode != dns.RcodeSuccess || len(reply.Answer) == 0 || reply.Truncated {
		return "", false
	}
	switch reply.Question[0].Qtype {
	case dns.TypeCNAME, dns.TypeANY:
		return "", false
	}
	name := reply.Question[0].Name
	for range min(len(reply.Answer), maxChain) + 1 {
		next, ended := followRecords(reply.Answer, name)
		switch {
		case ended:
			return "", false
		case next != "":
			name, target = next, next
			continue
		// A denial and a referral are answers, too.
		case slices.ContainsFunc(reply.Ns, func(rr dns.RR) bool { return inDomain(name, rr.Header().Name) }):
			return "", false
		}
		return target, false
	}
	return "", true
}

// deniedName is the name that a reply denies, or records of: the one that its aliases lead to. It is empty if the reply
// has records of that name.
func deniedName(reply *dns.Msg) string {
	name := reply.Question[0].Name
	if qtype := reply.Question[0].Qtype; len(reply.Answer) > 0 && (qtype == dns.TypeCNAME || qtype == dns.TypeANY) {
		return ""
	}
	for range maxChain + 1 {
		next, ended := followRecords(reply.Answer, name)
		switch {
		case ended:
			return ""
		case next == "":
			return name
		}
		name = next
	}
	return ""
}

// followRecords is where the last CNAME record of a name leads to; empty: there is none. The chain has ended if the
// name has another record.
func followRecords(rrs []dns.RR, name string) (next string, ended bool) {
	for _, rr := range rrs {
		if !equalFold(rr.Header().Name, name) {
			continue
		}
		cname, ok := rr.(*dns.CNAME)
		if !ok {
			return "", true
		}
		next = cname.Target
	}
	return next, false
}

// appendChain joins a reply that has aliases with the reply for the name that they lead to.
func appendChain(reply, rest, req *dns.Msg) *dns.Msg {
	if rest.Rcode != dns.RcodeSuccess && rest.Rcode != dns.RcodeNameError {
		rest.Question = req.Question // an alias to a name of which nothing is known is no answer
		return rest
	}
	joined := *reply
	joined.Rcode = rest.Rcode
	joined.Authoritative = reply.Authoritative // AA is about the first owner name (RFC 1035, 4.1.1)
	joined.Truncated = rest.Truncated
	joined.Answer = slices.Concat(reply.Answer, rest.Answer)
	joined.Ns, joined.Extra = rest.Ns, slices.Clip(rest.Extra)
	// Where the alias may be out of date, the whole answer may be.
	if o := reply.IsEdns0(); o != nil {
		for _, option := range o.Option {
			if e, ok := option.(*dns.EDNS0_EDE); ok {
				addEDE(&joined, req, e)
			}
		}
	}
	return &joined
}

// lookupLocal completes a reply with an alias that leads out of the mesh, from what the other plugins of this CoreDNS
// know. What no plugin knows is left to the client.
func lookupLocal(ctx context.Context, reply *dns.Msg, target string, state *request.Request) *dns.Msg {
	// All plugins that look up names in their own server count in this place.
	depth, _ := ctx.Value(dnsserver.LoopKey{}).(int)
	if depth >= maxAliases {
		return Failure(state.Req, dns.ExtendedErrorCodeInvalidData,
			fmt.Sprintf("the aliases of %s lead in a circle, or through more than %d zones", state.QName(), maxAliases))
	}
	ctx = context.WithValue(ctx, dnsserver.LoopKey{}, depth+1)
	rest, err := corednsupstream.New().Lookup(ctx, *state, target, state.QType())
	if err != nil || rest == nil {
		return reply
	}
	switch rest.Rcode {
	case dns.RcodeSuccess, dns.RcodeNameError, dns.RcodeServerFailure:
		return appendChain(reply, rest, state.Req)
	}
	return reply
}
