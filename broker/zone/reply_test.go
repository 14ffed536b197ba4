package zone

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestEndToEnd(t *testing.T) {
	got := endToEndOptions([]dns.EDNS0{
		&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE}, &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET},
		&dns.EDNS0_TCP_KEEPALIVE{Code: dns.EDNS0TCPKEEPALIVE}, &dns.EDNS0_PADDING{},
	})
	if len(got) != 1 || got[0].Option() != dns.EDNS0SUBNET {
		t.Errorf("kept %v", got)
	}
}

func TestClip(t *testing.T) {
	word := strings.Repeat("b", 119)
	for text, want := range map[string]string{
		strings.Repeat("ä", 200):      strings.Repeat("ä", 118) + "...",
		strings.Repeat("a ", 120):     strings.Repeat("a ", 120),
		strings.Repeat("a ", 121):     strings.Repeat("a ", 117) + "a...",
		word + " " + word + " c":      word + "...",
		word + "\n" + word[4:] + "cc": word + "; " + word[4:] + "cc",
		"a\xff":                       "a",
	} {
		if got := clipText(text); got != want {
			t.Errorf("%d bytes: %q, want %q", len(got), got, want)
		}
	}
}

func TestExplainReply(t *testing.T) {
	req := new(dns.Msg).SetQuestion(web, dns.TypeA)
	m := new(dns.Msg).SetReply(req)
	if explainReply(m, req, 22, "x"); m.IsEdns0() != nil {
		t.Errorf("the client knows no EDNS: %v", m)
	}
	req.SetEdns0(1232, true)
	for _, text := range []string{"first", "second"} { // the first reason stays
		explainReply(m, req, dns.ExtendedErrorCodeNotReady, text)
		code, text := ede(m)
		if o := m.IsEdns0(); o.UDPSize() != 1232 || !o.Do() || code != dns.ExtendedErrorCodeNotReady || text != "first" {
			t.Errorf("%v", m)
		}
	}
}

func TestAddressRecords(t *testing.T) {
	var addrs []netip.Addr
	for _, s := range []string{"10.0.0.1", "::ffff:10.0.0.2", "fd00::1"} {
		addrs = append(addrs, netip.MustParseAddr(s))
	}
	for qtype, want := range map[uint16]string{
		dns.TypeA: "10.0.0.1 10.0.0.2", dns.TypeAAAA: "fd00::1", dns.TypeANY: "10.0.0.1 10.0.0.2 fd00::1", dns.TypeTXT: "",
	} {
		var got []string
		for _, rr := range addressRecords(web, qtype, addrs...) {
			got = append(got, dns.Field(rr, 1))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %q, want %q", dns.TypeToString[qtype], got, want)
		}
	}
}
