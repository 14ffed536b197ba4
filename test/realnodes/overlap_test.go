package realnodes

// Tests of mesh services in clusters whose networks of nodes, pods and services are all the same: pods of all nodes
// reach what other clusters and their own one offer, by address and by name, whatever kube-proxy there is.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/connectivity"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// overlapping has three clusters per test bed. The networks of all are the same. The first one has a link to the second
// in the default mesh, and to the third in another one; the second and the third have a link in the default mesh.
var overlapping = []row{
	{"node-mode", testbed.PointToPoint, "", testbed.ProxyIPTables, 1500, mesh.Bridge, ""},
	{"pod-mode", testbed.Bridge, "", testbed.ProxyNFTables, 9000, mesh.Bridge, ""},
	{"node-mode", testbed.Bridge, "", testbed.ProxyNone, 1500, mesh.Bridge, ""},

	{"node-mode", testbed.Bridge, "", testbed.ProxyNFTables, 9000, mesh.WireGuard, ""},
	{"pod-mode", testbed.PointToPoint, "", testbed.ProxyIPTables, 1500, mesh.WireGuard, ""},
	{"node-mode", testbed.PointToPoint, "", testbed.ProxyNone, 1500, mesh.WireGuard, ""},
}

// otherProxy is the mode that kube-proxy of the first cluster gets during the test.
var otherProxy = map[string]string{
	testbed.ProxyIPTables: testbed.ProxyNFTables, testbed.ProxyNFTables: testbed.ProxyIPTables,
}

const (
	clustersPerBed = 3
	secondDomain   = "second.example"
)

// overlap is a test bed of such clusters.
type overlap struct {
	ctx     context.Context
	fleet   *fleet.Fleet
	members []*member
}

// member is one of its clusters.
type member struct {
	*fleet.Broker
	row    row
	number int
	web    []*testbed.Pod // one on each node; they are clients, too
	solo   []*testbed.Pod // one, beside them
	others []*member      // those with which it shares a mesh and has a link: in the default mesh,
	second *member        // and in the other one
}

// offer is a MeshService of a member.
type offer struct {
	name     string
	spec     string // in JSON
	address  netip.Addr
	servers  []*testbed.Pod // which answer; nil: the router of the cluster
	tcp, udp uint16         // ports; 0: none
	whole    bool           // all of the address leads there, ping included
}

func TestMeshServicesOfOverlappingClusters(t *testing.T) {
	for bed := range slices.Chunk(overlapping, clustersPerBed) {
		t.Run(string(bed[0].links), func(t *testing.T) { checkOverlap(t, bed) })
	}
}

func checkOverlap(t *testing.T, rows []row) {
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	t.Cleanup(cancel)
	start := time.Now()
	progress := func(what string) { t.Logf("%5.1fs %s", time.Since(start).Seconds(), what) }
	opts := fleet.InstallOptions{Nodes: 2, Mode: rows[0].links, Progress: progress}
	for _, r := range rows {
		i := r.installation()
		i.ServiceCIDR = netip.MustParsePrefix("100.64.0.0/20")
		opts.Clusters = append(opts.Clusters, i)
	}
	patches := readServerPatches(t)
	opts.Edit = func(i int, files map[string]string) {
		addSecondMesh(t, files)
		if rows[i].proxy == testbed.ProxyNone {
			files["kustomization.yaml"] += patches
		}
	}
	f, err := fleet.Install(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, f.Close()) })
	f.DumpOnFailure(t)
	o := newOverlap(ctx, f, rows)
	progress("kubelink is installed")
	check(t, o.link())
	check(t, o.deploy())
	progress("links are up, and services there")
	check(t, o.offerAll())
	progress("mesh services are Ok")
	t.Run("services", o.checkServices)
	progress("services are checked")
	o.testNames(t)
	progress("pods have tested mesh services")
	flows := o.dialAll(t)
	check(t, askFlows(ctx, flows))
	o.moveBrokers(t)
	mode := otherProxy[rows[0].proxy]
	for _, n := range o.members[0].Nodes {
		check(t, n.SetProxyMode(ctx, mode))
	}
	check(t, o.waitLinks())
	check(t, askFlows(ctx, flows))
	progress("brokers have moved, and kube-proxy of kubelink1 has mode " + mode)
	t.Run("services after moves, with kube-proxy in mode "+mode, o.checkServices)
	progress("done")
}

// testNames has pods of the first cluster ask for mesh services, and connect to them, as the command line does. Where
// the service network of a link is the own one, it tries none of its addresses.
func (o *overlap) testNames(t *testing.T) {
	r, text := newCommandLine(t, o.fleet).test(t, o.ctx, []string{"test", o.members[0].Name})
	connected := 0
	for _, k := range r.Checks {
		if k.Check == "connect" && k.Result == connectivity.OK && k.Target != "100.64.0.1:443" {
			connected++
		}
	}
	if want := 2 * len(o.members[0].Nodes); !r.OK || connected != want {
		t.Errorf("%d connections, want %d: %s", connected, want, text)
	}
}

// readServerPatches returns the patches of deploy/README.md for a cluster without kube-proxy.
func readServerPatches(t *testing.T) string {
	t.Helper()
	_, section, _ := strings.Cut(string(must(os.ReadFile("../../deploy/README.md"))(t)), "\n## Without kube-proxy\n")
	_, patches, _ := strings.Cut(section, "```yaml\npatches:\n")
	patches, _, found := strings.Cut(patches, "```")
	const example = "https://10.250.0.2:6443"
	if !found || !strings.Contains(patches, example) {
		t.Fatal("deploy/README.md has no patches for a cluster without kube-proxy")
	}
	return strings.ReplaceAll(patches, example, testbed.APIServerURL())
}

// addSecondMesh has the broker serve the names of the second mesh, too.
func addSecondMesh(t *testing.T, files map[string]string) {
	const domain = "kubelink:1053 "
	text := string(must(os.ReadFile("../../deploy/base/corefile.yaml"))(t))
	if strings.Count(text, domain) != 1 {
		t.Errorf("not one %q in the Corefile", domain)
	}
	files["corefile.yaml"] = strings.Replace(text, domain, domain+secondDomain+":1053 ", 1)
	files["kustomization.yaml"] += "patches:\n  - path: corefile.yaml\n"
}

func newOverlap(ctx context.Context, f *fleet.Fleet, rows []row) *overlap {
	o := &overlap{ctx: ctx, fleet: f}
	for i, b := range f.Brokers {
		o.members = append(o.members, &member{Broker: b, row: rows[i], number: i + 1})
	}
	one, two, three := o.members[0], o.members[1], o.members[2]
	one.others, two.others, three.others = []*member{two}, []*member{one, three}, []*member{two}
	one.second, three.second = three, one
	return o
}

// secondAddress is that of the cluster in the second mesh.
func (m *member) secondAddress() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, 0, byte(m.number)}), 24)
}

// link makes all LocalLinks and links, and waits until the links are up. A link tells the service network of the other
// cluster, or not: it is the own one in any case.
func (o *overlap) link() error {
	for _, m := range o.members {
		links := []*v1alpha1.KubeLink{m.Local()}
		for _, other := range m.others {
			l := other.LinkTo()
			if m.number > other.number {
				l.Spec.CIDR = ""
			}
			links = append(links, l)
		}
		if m.second != nil {
			local, l := m.Local(), m.second.LinkTo()
			local.Name, local.Spec.ClusterAddress = "second--"+m.Name, m.secondAddress().String()
			local.Spec.CIDR, local.Spec.DNS = "", &v1alpha1.KubeLinkDNS{BaseDomain: secondDomain}
			l.Name, l.Spec.ClusterAddress, l.Spec.CIDR = "second--"+m.second.Name, m.second.secondAddress().String(), ""
			links = append(links, local, l)
			if m.row.proxy != testbed.ProxyNone {
				if err := m.StubDomain(o.ctx, secondDomain); err != nil {
					return err
				}
			}
		}
		for _, l := range links {
			if err := m.Apply(o.ctx, l); err != nil {
				return err
			}
		}
	}
	return o.waitLinks()
}

// waitLinks waits until all links are up, as the brokers say at present, and in the API with what users need to know.
func (o *overlap) waitLinks() error {
	for _, m := range o.members {
		links := map[string][]string{} // what the messages have
		for _, other := range m.others {
			links[other.Name] = nil
			if m.number < other.number {
				links[other.Name] = []string{fmt.Sprintf("spec.cidr %s is not routed, as it overlaps", other.ServiceCIDR)}
			}
		}
		if m.second != nil {
			links["second--"+m.second.Name] = nil
		}
		for name, texts := range links {
			if err := testbed.Until(o.ctx, name+" of "+m.Name, func(ctx context.Context) error {
				up, err := m.Metric(ctx, fmt.Sprintf("coredns_kubelink_link_up{link=%q}", name))
				if err == nil && up != 1 {
					err = errors.New("it is not up")
				}
				return err
			}); err != nil {
				return err
			}
			if err := m.WaitState(o.ctx, name, v1alpha1.StateUp, texts...); err != nil {
				return err
			}
		}
	}
	return nil
}

// moveBrokers has the broker of each cluster run on another node.
func (o *overlap) moveBrokers(t *testing.T) {
	var g errgroup.Group
	flags := readDrainFlags(t)
	for _, m := range o.members {
		g.Go(func() error {
			from := m.Host.Node
			if err := from.Drain(o.ctx, "app=kubelink", flags...); err != nil {
				return err
			}
			if err := m.FindPod(o.ctx); err != nil {
				return err
			}
			return from.Uncordon(o.ctx)
		})
	}
	check(t, g.Wait())
}

// deploy makes the pods, the services and the server outside of the cluster.
func (o *overlap) deploy() error {
	var g errgroup.Group
	for _, m := range o.members {
		g.Go(func() (err error) { m.web, err = m.Deploy(o.ctx, "web", len(m.Nodes)); return err })
		g.Go(func() (err error) { m.solo, err = m.Deploy(o.ctx, "solo", 1); return err })
		for _, name := range []string{"web", "mapped", "second", "headless", "far", "shared"} {
			app := "web"
			if name == "second" {
				app = "solo"
			}
			g.Go(func() error {
				_, err := m.Service(o.ctx, name, map[string]string{"app": app}, servicePorts(),
					testbed.ServiceOptions{Headless: name == "headless"})
				return err
			})
		}
		g.Go(func() error {
			return m.Router.ServeHTTP(internetPort, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				client, _, _ := net.SplitHostPort(r.RemoteAddr)
				io.WriteString(w, m.Router.Name+" "+client)
			}))
		})
	}
	return g.Wait()
}

// offers are the MeshServices of the cluster in the default mesh.
func (m *member) offers() []offer {
	all := []offer{
		{name: "web", servers: m.web, tcp: 80, udp: 5353, whole: true, spec: `"service": "web"`},
		{name: "headless", servers: m.web, tcp: 80, udp: 5353, whole: true, spec: `"service": "headless"`},
		{name: "mapped", servers: m.web, tcp: 8800, udp: 5300,
			spec: `"service": "mapped", "ports": [{"port": 8800, "name": "http"}, {"port": 5300, "protocol": "udp"}],
				"endpoints": [{"portMappings": [{"port": "http", "targetPort": "web"},
					{"port": 5300, "protocol": "udp", "targetPort": 5353}]}]`},
		{name: "outside", tcp: 80, whole: true,
			spec: fmt.Sprintf(`"endpoints": [{"address": %q, "portMappings": [{"port": 80, "targetPort": %d}]}]`,
				testbed.RouterAddress, internetPort)},
		{name: "first", address: m.MeshAddress.Addr(), servers: m.web, tcp: 7001,
			spec: `"service": "web", "ports": [{"port": 7001, "name": "http"}],
				"endpoints": [{"portMappings": [{"port": "http", "targetPort": 80}]}]`},
		{name: "second", address: m.MeshAddress.Addr(), servers: m.solo, tcp: 7002, udp: 7002,
			spec: `"service": "second", "ports": [{"port": 7002}, {"port": 7002, "protocol": "UDP"}],
				"endpoints": [{"portMappings": [{"port": 7002, "targetPort": "web"},
					{"port": 7002, "protocol": "UDP", "targetPort": "datagrams"}]}]`},
	}
	for i := range all {
		if !all[i].address.IsValid() {
			all[i].address = netip.AddrFrom4([4]byte{192, 168, 0, byte(100 + 10*m.number + i)})
			all[i].spec += fmt.Sprintf(`, "meshAddress": %q`, all[i].address)
		}
	}
	return all
}

// secondOffers are those in the second mesh.
func (m *member) secondOffers() []offer {
	far := netip.AddrFrom4([4]byte{10, 99, 0, byte(100 + m.number)})
	return []offer{
		{name: "far", address: far, servers: m.web, tcp: 80, udp: 5353, whole: true,
			spec: fmt.Sprintf(`"service": "far", "meshAddress": %q`, far)},
		{name: "shared", address: m.secondAddress().Addr(), servers: m.web, tcp: 7001,
			spec: `"service": "shared", "mesh": "second", "ports": [{"port": 7001, "name": "http"}],
				"endpoints": [{"portMappings": [{"port": 7001, "targetPort": "web"}]}]`},
	}
}

// offerAll makes all MeshServices, and waits until they have endpoints.
func (o *overlap) offerAll() error {
	for _, m := range o.members {
		all := m.offers()
		if m.second != nil {
			all = append(all, m.secondOffers()...)
		}
		text := ""
		for _, s := range all {
			text += fmt.Sprintf(`{"apiVersion": "kubelink.mandelsoft.org/v1alpha1", "kind": "MeshService",
				"metadata": {"name": %q, "namespace": "default"}, "spec": {%s}}`+"\n", s.name, s.spec)
		}
		if _, err := m.KubectlInput(o.ctx, text, "apply", "-f", "-"); err != nil {
			return err
		}
		for _, s := range all {
			if _, err := m.Kubectl(o.ctx, "wait", "--for=condition=Ready", "--timeout=30s", "msvc", s.name); err != nil {
				list, _ := m.Kubectl(o.ctx, "get", "msvc", "-o", "wide")
				return fmt.Errorf("%w\n%s", err, list)
			}
		}
	}
	return nil
}

// dialAll has all pods connect to a service of each cluster that they reach, and of their own one. It returns the
// connections by what they are.
func (o *overlap) dialAll(t *testing.T) map[string]*net.UDPConn {
	flows := map[string]*net.UDPConn{}
	for _, m := range o.members {
		for _, p := range m.web {
			for _, provider := range append([]*member{m}, m.others...) {
				s := provider.offers()[0]
				conn := must(p.DialContext(o.ctx, "udp", fmt.Sprintf("%s:%d", s.address, s.udp)))(t)
				t.Cleanup(func() { conn.Close() })
				flows[p.Name+" to "+provider.Name] = conn.(*net.UDPConn)
			}
		}
	}
	return flows
}

// askFlows sends datagrams of flows that go on, also when brokers have moved, as those of a VPN.
func askFlows(ctx context.Context, flows map[string]*net.UDPConn) error {
	var g errgroup.Group
	for what, conn := range flows {
		g.Go(func() error {
			if _, _, err := askAgain(ctx, conn, 100, true); err != nil {
				return fmt.Errorf("a flow of %s: %w", what, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// checkServices has the pods of all nodes, and the nodes, use what their clusters and others offer.
func (o *overlap) checkServices(t *testing.T) {
	for _, m := range o.members {
		t.Run(m.row.String(), func(t *testing.T) {
			t.Parallel()
			for _, p := range m.web {
				where := "beside the gateway"
				if p.Node == m.Host.Node {
					where = "on the gateway node"
				}
				t.Run("a pod "+where, func(t *testing.T) {
					t.Parallel()
					m.checkFrom(t, o.ctx, p.Host, m.row.proxy != testbed.ProxyNone)
				})
				t.Run("a process "+where, func(t *testing.T) { // or a pod with the node's network
					t.Parallel()
					m.checkFrom(t, o.ctx, p.Node.Host, false)
				})
			}
		})
	}
}

func (m *member) checkFrom(t *testing.T, ctx context.Context, from *testbed.Host, hasDNS bool) {
	for _, provider := range append([]*member{m}, m.others...) {
		(&caller{from, hasDNS, m, provider, "kubelink"}).checkAll(t, ctx, provider.offers())
	}
	if m.second == nil {
		return
	}
	for _, provider := range []*member{m, m.second} {
		(&caller{from, hasDNS, m, provider, secondDomain}).checkAll(t, ctx, provider.secondOffers())
	}
}

// caller is a pod or a node of a cluster that uses what a cluster offers in a mesh.
type caller struct {
	*testbed.Host
	hasDNS       bool // that of the cluster; else names are asked of the broker
	of, provider *member
	domain       string
}

func (c *caller) checkAll(t *testing.T, ctx context.Context, offers []offer) {
	for i := range offers {
		s := &offers[i]
		if err := c.checkOffer(ctx, s); err != nil {
			t.Errorf("%s at %s of %s: %v", s.name, s.address, c.provider.Name, err)
		}
	}
}

func (c *caller) checkOffer(ctx context.Context, s *offer) error {
	ctx, cancel := context.WithTimeout(ctx, 40*time.Second)
	defer cancel()
	// The router of this node may still have to set its routes.
	if err := testbed.Until(ctx, "the way to "+s.name, func(ctx context.Context) error {
		_, err := c.Get(ctx, fmt.Sprintf("http://%s:%d/names", s.address, s.tcp))
		return err
	}); err != nil {
		return err
	}
	errs := []error{c.checkTraffic(ctx, s, s.address.String())}
	if s.whole {
		errs = append(errs, testbed.Until(ctx, "an answer to ping", func(ctx context.Context) error {
			// All pings of this process are one flow. When the gateway has moved, a node that hides its pods loses one packet of
			// those that it had before: it hides them behind the address of another device now.
			_, err := c.Ping(ctx, s.address)
			return err
		}))
	}
	labels := []string{"msvc"}
	if c.of != c.provider && strings.Contains(s.spec, fmt.Sprintf(`"service": %q`, s.name)) {
		labels = append(labels, "svc") // it stands for the service of this name, whose network is not routed
	}
	for _, label := range labels {
		name := fmt.Sprintf("%s.default.%s.%s.%s", s.name, label, c.provider.Name, c.domain)
		errs = append(errs, c.checkName(ctx, s, name))
	}
	return errors.Join(errs...)
}

// checkTraffic sends requests and datagrams to an offer, by address or by name.
func (c *caller) checkTraffic(ctx context.Context, s *offer, host string) error {
	return errors.Join(c.checkTCP(ctx, s, host, s.tcp), c.checkUDP(ctx, s, host))
}

// query asks the cluster's DNS, or else the broker.
func (c *caller) query(ctx context.Context, name string, kind uint16) (*dns.Msg, error) {
	if !c.hasDNS {
		return c.QueryAt(ctx, "udp", c.of.DNS(), name, kind)
	}
	return c.Query(ctx, dns.Fqdn(name), kind)
}

// checkName waits until a name has the address of an offer and no other one, and uses it. It does so with the port that
// the name has, too.
func (c *caller) checkName(ctx context.Context, s *offer, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if err := testbed.Until(ctx, name, func(ctx context.Context) error {
		m, err := c.query(ctx, name, dns.TypeA)
		if err == nil && (len(m.Answer) != 1 || !strings.HasSuffix(m.Answer[0].String(), "\t"+s.address.String())) {
			err = fmt.Errorf("not %s:\n%s", s.address, m)
		}
		return err
	}); err != nil {
		return err
	}
	host := name
	if !c.hasDNS {
		host = s.address.String()
	}
	errs := []error{c.checkTraffic(ctx, s, host)}
	if strings.Contains(s.spec, `"name": "http"`) {
		m, err := c.query(ctx, "_http._tcp."+name, dns.TypeSRV)
		if err != nil {
			return err
		}
		port := uint16(0)
		for _, r := range m.Answer {
			if srv, ok := r.(*dns.SRV); ok && srv.Target == dns.Fqdn(name) && len(m.Answer) == 1 {
				port = srv.Port
			}
		}
		if port != s.tcp {
			return fmt.Errorf("not port %d:\n%s", s.tcp, m)
		}
		errs = append(errs, c.checkTCP(ctx, s, host, port))
	}
	return errors.Join(errs...)
}

// checkTCP asks some times: all servers get their share.
func (c *caller) checkTCP(ctx context.Context, s *offer, host string, port uint16) error {
	for range 2 * max(len(s.servers), 1) {
		answer, err := c.Get(ctx, fmt.Sprintf("http://%s:%d/names", host, port))
		if err != nil {
			return err
		}
		server, client, _ := strings.Cut(answer, " ")
		if err := c.provider.checkClient(s, server, client); err != nil {
			return fmt.Errorf("TCP to %s: %w", host, err)
		}
	}
	if s.servers == nil {
		return nil
	}
	return download(ctx, c.Host, fmt.Sprintf("http://%s:%d/bytes/", host, port), 1e5)
}

func (c *caller) checkUDP(ctx context.Context, s *offer, host string) error {
	if s.udp == 0 {
		return nil
	}
	conn, err := c.DialContext(ctx, "udp", fmt.Sprintf("%s:%d", host, s.udp))
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, size := range []int{100, 3000} { // the latter in fragments, where the network of pods needs them
		client, _, err := askAgain(ctx, conn.(*net.UDPConn), size, true)
		if err == nil {
			err = c.provider.checkClient(s, "", client)
		}
		if err != nil {
			return fmt.Errorf("UDP to %s, %d bytes: %w", host, size, err)
		}
	}
	return nil
}

// checkClient compares the address that a server has seen with that of the gateway at the device by which it sends to
// the server. Without the server's name, any of them may be it.
func (m *member) checkClient(s *offer, server, client string) error {
	if s.servers == nil { // outside of the cluster, where a node hides its pods
		if server != m.Router.Name || client != m.Host.Node.Address.String() {
			return fmt.Errorf("%s has seen %s, not %s", server, client, m.Host.Node.Address)
		}
		return nil
	}
	var wants []string
	for _, p := range s.servers {
		want := m.Host.Address // the node's, or in pod mode the pod's
		if m.row.mode == "node-mode" && p.Node == m.Host.Node {
			want = p.Node.Pods.Addr().Next() // the node's end of the network of its pods
		}
		if cmp.Or(server, p.Object.Name) != p.Object.Name {
			continue
		}
		if client == want.String() {
			return nil
		}
		wants = append(wants, want.String())
	}
	return fmt.Errorf("server %q has seen %s, not %s", server, client, wants)
}
