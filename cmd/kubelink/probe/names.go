package probe

// Questions to DNS services.

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

const (
	questionTime = 1500 * time.Millisecond // until a question is repeated
	bufferSize   = 1232                    // of UDP, bytes
)

// missingError says that a name, or a record of the type, does not exist.
type missingError struct{ error }

// findAddress finds the first address of a name.
func findAddress(ctx context.Context, servers []string, name string) (netip.Addr, error) {
	var last error
	for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
		answer, err := askServers(ctx, servers, name, kind)
		if err != nil {
			if last == nil {
				last = err
			}
			continue
		}
		for _, rr := range answer {
			switch rr := rr.(type) {
			case *dns.A:
				a, _ := netip.AddrFromSlice(rr.A.To4())
				return a, nil
			case *dns.AAAA:
				a, _ := netip.AddrFromSlice(rr.AAAA)
				return a, nil
			}
		}
	}
	return netip.Addr{}, last
}

// askServers asks DNS services in turn, until one answers. An answer without records is a missingError.
func askServers(ctx context.Context, servers []string, name string, kind uint16) ([]dns.RR, error) {
	question := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)
	question.SetEdns0(bufferSize, false)
	last := errors.New("there is no DNS service in " + resolvConf)
	for i := 0; len(servers) > 0 && ctx.Err() == nil; i++ {
		at := servers[i%len(servers)]
		answer, err := exchangeQuery(ctx, question, at)
		if err == nil {
			return readAnswer(answer, at, kind)
		}
		last = fmt.Errorf("DNS service %s: %w", at, err)
		select {
		case <-ctx.Done():
		case <-time.After(questionTime / 10): // a refusal comes at once
		}
	}
	return nil, last
}

// exchangeQuery asks by UDP, and by TCP for what does not fit.
func exchangeQuery(ctx context.Context, question *dns.Msg, at string) (*dns.Msg, error) {
	answer, _, err := (&dns.Client{Timeout: questionTime}).ExchangeContext(ctx, question, at)
	if err == nil && answer.Truncated {
		answer, _, err = (&dns.Client{Net: "tcp", Timeout: questionTime}).ExchangeContext(ctx, question, at)
	}
	return answer, err
}

// readAnswer finds the records of a type. An error has the reason that the DNS service gives (RFC 8914).
func readAnswer(answer *dns.Msg, at string, kind uint16) (found []dns.RR, err error) {
	for _, rr := range answer.Answer {
		if rr.Header().Rrtype == kind {
			found = append(found, rr)
		}
	}
	if len(found) > 0 {
		return found, nil
	}
	text := fmt.Sprintf("DNS service %s answers %s for %s", at, dns.RcodeToString[answer.Rcode], dns.TypeToString[kind])
	if answer.Rcode == dns.RcodeSuccess {
		text = fmt.Sprintf("DNS service %s has no %s records", at, dns.TypeToString[kind])
	}
	if o := answer.IsEdns0(); o != nil {
		for _, option := range o.Option {
			if e, ok := option.(*dns.EDNS0_EDE); ok && e.ExtraText != "" {
				text += ": " + e.ExtraText
			}
		}
	}
	if answer.Rcode == dns.RcodeSuccess || answer.Rcode == dns.RcodeNameError {
		return nil, &missingError{errors.New(text)}
	}
	return nil, errors.New(text)
}
