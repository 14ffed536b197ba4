package zone

import (
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
	if got := clipText(strings.Repeat("ä", 200)); len(got) != 240 || !strings.HasPrefix(strings.Repeat("ä", 200), got) {
		t.Errorf("%d bytes: %q", len(got), got)
	}
	if got := clipText("a\xff"); got != "a" {
		t.Errorf("%q", got)
	}
}
