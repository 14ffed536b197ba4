package realnodes

// Tests of kubelink as users install it, on real nodes, in all combinations of where the broker runs, of pod networks
// and of overlays.

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// A row is a cluster with kubelink. Its pods have MTU 1500 and 9000 whatever its networks have.
type row struct {
	mode       string // a component
	podNetwork string
	overlay    string // a component; empty: none
	proxy      string
	mtu        int       // of the networks of nodes and pods, bytes
	links      mesh.Mode // of both rows that share a test bed
	helm       string    // that installs the chart
}

// matrix has all combinations of mode, pod network and overlay. Two rows that follow each other share a test bed: their
// clusters are linked. With vxlan, their networks are strict: they drop addresses that are not those of nodes and pods.
var matrix = []row{
	{"node-mode", testbed.PointToPoint, "", testbed.ProxyIPTables, 1500, mesh.Bridge, testbed.Helm4},
	{"pod-mode", testbed.Bridge, "", testbed.ProxyNFTables, 9000, mesh.Bridge, testbed.Helm3},
	{"node-mode", testbed.Bridge, "vxlan", testbed.ProxyNFTables, 9000, mesh.Bridge, testbed.Helm4},
	{"pod-mode", testbed.PointToPoint, "vxlan", testbed.ProxyIPTables, 1500, mesh.Bridge, testbed.Helm3},
	{"node-mode", testbed.Bridge, "", testbed.ProxyIPTables, 9000, mesh.WireGuard, testbed.Helm4},
	{"pod-mode", testbed.PointToPoint, "", testbed.ProxyNFTables, 1500, mesh.WireGuard, testbed.Helm3},

	{"node-mode", testbed.Bridge, "", testbed.ProxyIPTables, 1500, mesh.Bridge, testbed.Helm4},
	{"pod-mode", testbed.PointToPoint, "", testbed.ProxyIPTables, 9000, mesh.Bridge, testbed.Helm3},
	{"node-mode", testbed.PointToPoint, "vxlan", testbed.ProxyIPTables, 9000, mesh.Bridge, testbed.Helm4},
	{"pod-mode", testbed.Bridge, "vxlan", testbed.ProxyIPTables, 1500, mesh.Bridge, testbed.Helm3},
}

const (
	// pairwise is the number of rows, from the first one, that have each pair of mode, pod network and overlay.
	// `make test` tests them.
	pairwise = 4
	// allVar is set by `make matrix`: all rows are tested.
	allVar = "KUBELINK_MATRIX"
)

func (r row) String() string {
	return fmt.Sprintf("%s on %s, %s, %s, %d", r.mode, r.podNetwork, cmp.Or(r.overlay, "no overlay"), r.proxy, r.mtu)
}

func (r row) installation() fleet.Installation {
	i := fleet.Installation{
		ClusterOptions: testbed.ClusterOptions{PodNetwork: r.podNetwork, ProxyMode: r.proxy, MTU: r.mtu, Helm: r.helm},
		Components:     []string{r.mode, "router"},
	}
	if r.overlay != "" {
		i.Components = append(i.Components, r.overlay)
	}
	return i
}

func TestMatrix(t *testing.T) {
	rows := matrix
	if os.Getenv(allVar) == "" {
		rows = rows[:pairwise]
	}
	for pair := range slices.Chunk(rows, 2) {
		t.Run(string(pair[0].links)+", "+cmp.Or(pair[0].overlay, "no overlay"), func(t *testing.T) { checkPair(t, pair) })
	}
}

func checkPair(t *testing.T, rows []row) {
	ctx, cancel := context.WithTimeout(t.Context(), 9*time.Minute)
	t.Cleanup(cancel)
	start := time.Now()
	progress := func(what string) { t.Logf("%5.1fs %s", time.Since(start).Seconds(), what) }
	opts := fleet.InstallOptions{Nodes: 2, Mode: rows[0].links, Progress: progress}
	for _, r := range rows {
		opts.Clusters = append(opts.Clusters, r.installation())
	}
	f, err := fleet.Boot(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, f.Close()) })
	f.DumpOnFailure(t)
	w := &world{ctx: ctx, fleet: f}
	check(t, w.deploy(rows))
	progress("pods run")
	w.observeBefore(t)
	progress("what pods reach without kubelink is known")
	check(t, f.Install(ctx))
	progress("kubelink is installed")
	check(t, f.Mesh(ctx))
	progress("links are up")
	if !t.Run("pods", func(t *testing.T) { w.checkPods(t, 1e8) }) { // it ends when its parallel tests have ended
		w.logState(t)
	}
	progress("pods are checked")
	t.Run("the broker moves", w.moveBrokers)
	t.Run("pods after the moves", func(t *testing.T) { w.checkPods(t, 1e6) })
	progress("pods are checked again")
	if rows[0].overlay == "" && rows[0].links == mesh.Bridge { // routers do not know what links are
		t.Run("routers are killed", w.killRouters)
		t.Run("the DaemonSet is rolled", w.rollRouters)
		t.Run("the API servers are away", w.stopAPIServers)
		t.Run("strict networks need an overlay", w.checkStrict)
	} else {
		t.Run("removal", w.checkRemoval) // after an outage of the API server, kubelet hears of it late
		t.Run("the chart", w.checkChart)
	}
	progress("done")
}

// checkPods lets the pods of all nodes reach the other cluster, and what they reached without kubelink. Each downloads
// size bytes.
func (w *world) checkPods(t *testing.T, size int64) {
	for i, s := range w.sites {
		t.Run(s.row.String(), func(t *testing.T) {
			t.Parallel()
			for _, p := range s.pods {
				where := "beside the gateway"
				if p.Node == s.Host.Node {
					where = "on the gateway node"
				}
				t.Run(fmt.Sprintf("%d %s", p.mtu, where), func(t *testing.T) {
					t.Parallel()
					p.checkRemote(t, w.ctx, w.sites[1-i], size)
					p.checkLocal(t, w.ctx)
				})
			}
		})
	}
}

// makeStrict makes the networks of a cluster drop foreign addresses.
func (s *site) makeStrict(ctx context.Context) error {
	var g errgroup.Group
	g.Go(func() error { return s.FilterNodeNetwork(ctx) })
	for _, n := range s.Nodes {
		g.Go(func() error { return n.FilterPodNetwork(ctx) })
	}
	return g.Wait()
}

// checkStrict makes networks strict that have no overlay: packets to the meshes get lost between the nodes.
func (w *world) checkStrict(t *testing.T) {
	ctx := w.ctx
	for i, s := range w.sites {
		check(t, s.makeStrict(ctx))
		for _, p := range s.pods {
			if p.Node == s.Host.Node {
				continue
			}
			if rtt, err := p.Ping(ctx, w.sites[1-i].MeshAddress.Addr()); err == nil {
				t.Errorf("%s reaches the mesh in %s", p.Name, rtt)
			}
		}
		if n := must(s.NodeNetworkDrops(ctx))(t); n == 0 {
			t.Errorf("the node network of %s has dropped nothing", s.Name)
		}
	}
}

// listNames is what failures name: all keys of both maps.
func listNames(a, b map[string]string) []string {
	var names []string
	for _, m := range []map[string]string{a, b} {
		for name := range m {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, strings.Compare)
	return slices.Compact(names)
}
