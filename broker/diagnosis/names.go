package diagnosis

// Do clients in the cluster find the names of a mesh? The DNS service of the cluster has to forward them.

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	namesTimeout = time.Second
	maxDomains   = 8 // that are asked for
)

// ProbeDNS returns a NameProbe that asks a DNS service, on port 53. It answers for a domain as this broker does, if the
// domain has our name server.
func ProbeDNS(service netip.Addr) NameProbe {
	return func(ctx context.Context, domain string) error {
		ctx, cancel := context.WithTimeout(ctx, namesTimeout)
		defer cancel()
		query := new(dns.Msg).SetQuestion(dns.Fqdn(domain), dns.TypeSOA)
		at := netip.AddrPortFrom(service, 53).String()
		answer, _, err := (&dns.Client{Timeout: namesTimeout}).ExchangeContext(ctx, query, at)
		if err != nil {
			return fmt.Errorf("%s does not answer: %w", at, err)
		}
		for _, rr := range answer.Answer {
			soa, ok := rr.(*dns.SOA)
			if ok && strings.EqualFold(soa.Hdr.Name, dns.Fqdn(domain)) && dns.IsSubDomain(dns.Fqdn(domain), soa.Ns) {
				return nil
			}
		}
		return fmt.Errorf("%s answers %s", at, dns.RcodeToString[answer.Rcode])
	}
}
