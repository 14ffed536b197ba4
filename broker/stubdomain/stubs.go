// Package stubdomain makes the cluster's DNS send the mesh domains to kubelink (coredns-configure). The server blocks
// for that are a key of the ConfigMap coredns-custom, from which a cluster's CoreDNS imports additions to its
// Corefile.
package stubdomain

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Stub is a stub domain: a domain that another DNS service answers for.
type Stub struct {
	Domain string     // without final dot
	Server netip.Addr // of the DNS service; zero: another broker says which, and its block stays as it is
}

// Stubs returns the domains that the cluster's DNS is to send to kubelink at the address own, and to the
// DNS services of meshes. elsewhere are domains of meshes that other brokers serve.
func Stubs(zones []mesh.Zone, elsewhere []string, own netip.Addr) []Stub {
	var stubs []Stub
	for _, d := range elsewhere {
		d = strings.TrimSuffix(d, ".")
		stubs = append(stubs, Stub{Domain: d}, Stub{Domain: "svc.global." + d})
	}
	for _, z := range zones {
		stubs = append(stubs, Stub{strings.TrimSuffix(z.Domain, "."), own})
		// Without upstream, kubelink has the global names as a part of the domain.
		if global := z.Global.Upstream.Addr(); global.IsValid() && global != own {
			stubs = append(stubs, Stub{strings.TrimSuffix(z.Global.Name, "."), global})
		}
	}
	return stubs
}

// stubBlock is a block that kubelink writes.
var stubBlock = regexp.MustCompile(`(?m)^(\S+):\d+ \{\n    errors\n    forward \. (\S+) \{$`)

// keepForeign returns the stubs with the servers of other brokers, as the text of the server blocks has them. Their
// order is the same for all brokers: so none changes what another one has written.
func keepForeign(stubs []Stub, text string) (kept []Stub) {
	servers := map[string]netip.Addr{}
	for _, block := range stubBlock.FindAllStringSubmatch(text, -1) {
		servers[block[1]], _ = netip.ParseAddr(block[2])
	}
	foreign := false
	for _, s := range stubs {
		if !s.Server.IsValid() {
			foreign = true
			s.Server = servers[s.Domain]
		}
		if s.Server.IsValid() {
			kept = append(kept, s)
		}
	}
	if foreign {
		slices.SortStableFunc(kept, func(a, b Stub) int { return strings.Compare(a.Domain, b.Domain) })
	}
	return kept
}

// NewTask returns what configures the cluster's DNS for the zones of a state. Its note says what only the user can heal,
// on one line; empty: nothing. Kubelink has the first one of the addresses own; without any, there are no stub domains.
func (c *Configurer) NewTask(s *mesh.State, own []netip.Addr) func(context.Context) (note string, err error) {
	var stubs []Stub
	if len(own) > 0 {
		stubs = Stubs(s.Zones, s.Elsewhere, own[0])
	}
	return func(ctx context.Context) (string, error) {
		err := c.Configure(ctx, stubs)
		return c.note, err
	}
}

// serverBlocks returns the text for the Corefile; empty if there are no stubs. It has no cache: names follow links,
// and kubelink is near. Without max_fails 0, forward would ask for the root after a failure, which kubelink does not
// serve, and refuse for a while what kubelink answers again.
func serverBlocks(stubs []Stub, port string) string {
	if len(stubs) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("# Maintained by kubelink (coredns-configure): what is changed here is changed back.\n")
	for _, s := range stubs {
		s.writeBlock(&b, port)
	}
	return b.String()
}

func (s Stub) writeBlock(w io.Writer, port string) {
	fmt.Fprintf(w, "%s:%s {\n    errors\n    forward . %s {\n        max_fails 0\n    }\n}\n", s.Domain, port, s.Server)
}
