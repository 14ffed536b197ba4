package stubdomain

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/coredns/caddy/caddyfile"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

func TestServerBlocks(t *testing.T) {
	own, global := netip.MustParseAddr("100.64.0.11"), netip.MustParseAddr("100.64.0.12")
	at := func(a netip.Addr) mesh.GlobalZone {
		return mesh.GlobalZone{Name: "svc.global.kubelink.", Upstream: netip.AddrPortFrom(a, 53)}
	}
	const head = "# Maintained by kubelink (coredns-configure): what is changed here is changed back.\n"
	block := func(domain, server string) string {
		return domain + " {\n    errors\n    forward . " + server + " {\n        max_fails 0\n    }\n}\n"
	}
	for _, c := range []struct {
		name  string
		zones []mesh.Zone
		port  string
		want  string
	}{
		{"no mesh", nil, "53", ""},
		{"one", []mesh.Zone{{Domain: "kubelink."}}, "53", head + block("kubelink:53", "100.64.0.11")},
		{"two", []mesh.Zone{{Domain: "a.example."}, {Domain: "kubelink."}}, "8053",
			head + block("a.example:8053", "100.64.0.11") + block("kubelink:8053", "100.64.0.11")},
		{"global names elsewhere", []mesh.Zone{{Domain: "kubelink.", Global: at(global)}}, "53",
			head + block("kubelink:53", "100.64.0.11") + block("svc.global.kubelink:53", "100.64.0.12")},
		{"global names here", []mesh.Zone{{Domain: "kubelink.", Global: at(own)}}, "53",
			head + block("kubelink:53", "100.64.0.11")},
		{"global names of objects",
			[]mesh.Zone{{Domain: "kubelink.", Global: mesh.GlobalZone{Name: "svc.global.kubelink."}}}, "53",
			head + block("kubelink:53", "100.64.0.11")},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := serverBlocks(Stubs(c.zones, nil, own), c.port)
			if got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
			if _, err := caddyfile.Parse("Corefile", strings.NewReader(got), []string{"errors", "forward"}); err != nil {
				t.Error(err)
			}
		})
	}
}

// Brokers that serve different meshes write one text together, whichever writes last.
func TestKeepForeign(t *testing.T) {
	first, second := netip.MustParseAddr("100.64.0.11"), netip.MustParseAddr("100.64.0.12")
	global := netip.MustParseAddr("100.64.16.11")
	one := Stubs([]mesh.Zone{{Domain: "kubelink."}}, []string{"second.example."}, first)
	two := Stubs([]mesh.Zone{{Domain: "second.example.", Global: mesh.GlobalZone{
		Name: "svc.global.second.example.", Upstream: netip.AddrPortFrom(global, 53)}}}, []string{"kubelink."}, second)
	text := ""
	write := func(stubs []Stub) bool {
		before := text
		text = serverBlocks(keepForeign(stubs, text), "8053")
		return text != before
	}
	if !write(one) || !write(two) || write(one) || write(two) {
		t.Errorf("they do not agree: %s", text)
	}
	if got := strings.Join(regexp.MustCompile(`(?m)^\S+:8053|forward . \S+`).FindAllString(text, -1), " "); got !=
		"kubelink:8053 forward . 100.64.0.11 second.example:8053 forward . 100.64.0.12 "+
			"svc.global.second.example:8053 forward . 100.64.16.11" {
		t.Error(got)
	}
	// A mesh that is gone takes its blocks along, and one that changes brokers has the other server.
	if !write(Stubs([]mesh.Zone{{Domain: "kubelink."}}, nil, second)) || strings.Contains(text, "example") ||
		!strings.Contains(text, second.String()) || strings.Contains(text, first.String()) {
		t.Error(text)
	}
}
