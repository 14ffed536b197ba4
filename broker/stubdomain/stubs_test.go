package stubdomain

import (
	"net/netip"
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
			got := serverBlocks(Stubs(c.zones, own), c.port)
			if got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
			if _, err := caddyfile.Parse("Corefile", strings.NewReader(got), []string{"errors", "forward"}); err != nil {
				t.Error(err)
			}
		})
	}
}
