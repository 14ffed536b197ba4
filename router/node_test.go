package router

// What openNode and readFacts say of a real node.

import (
	"log/slog"
	"net/netip"
	"testing"

	"github.com/mandelsoft/kubelink/broker/kernel"
)

// TestNodeFacts: a route table of our own comes first, so that wide networks take away more. The service of the API
// server is for no mesh.
func TestNodeFacts(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
	c := &Config{NodeIP: netip.MustParseAddr("10.250.0.3"), Device: "kubelink", IPIP: IPIPNone, Log: slog.Default()}
	for _, table := range []int{0, kernel.MainTable, 107} {
		c.Table = table
		n, err := openNode(c, func() {})
		if err != nil {
			t.Fatal(err)
		}
		defer n.closeHandles()
		f := n.readFacts(nil, nil)
		if f.host.OwnTable != (table == 107) {
			t.Errorf("table %d: OwnTable %v", table, f.host.OwnTable)
		}
		for network, want := range map[string]int{"10.96.0.0/16": 16, "10.96.0.1/32": 0} {
			if parts := new(routing).admitNetwork(netip.MustParsePrefix(network), "a test", f); len(parts) != want {
				t.Errorf("%s: %v", network, parts)
			}
		}
	}
}
