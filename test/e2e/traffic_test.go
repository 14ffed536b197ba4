package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/test/testbed"
)

// checkClientAddress fails if an address belongs to a pod: addresses of pods mean nothing in other clusters.
func checkClientAddress(t *testing.T, seen string) {
	t.Helper()
	a, err := netip.ParseAddr(seen)
	must(t, err)
	if testbed.PodCIDR.Contains(a) {
		t.Errorf("the server saw the pod address %s", a)
	}
	if !testbed.MeshCIDR.Contains(a) && !testbed.NodeCIDR.Contains(a) {
		t.Errorf("the server saw %s, want a mesh address or a node address", a)
	}
}

// Every pair of the three clusters reaches each other's services, by address and by name.
func TestServices(t *testing.T) {
	ctx := startTest(t, time.Minute)
	for i, from := range clients {
		for j, to := range servers {
			if i == j {
				continue
			}
			t.Run(fmt.Sprintf("%s to %s", brokers[i].Name, brokers[j].Name), func(t *testing.T) {
				for _, host := range []string{to.service.String(), strings.TrimSuffix(serverName(j), ".")} {
					seen, err := from.Get(ctx, "http://"+host+"/")
					must(t, err)
					checkClientAddress(t, seen)
				}
			})
		}
	}
}

func TestPing(t *testing.T) {
	ctx := startTest(t, time.Minute)
	for i := range brokers {
		for j, to := range brokers {
			if i == j {
				continue
			}
			if _, err := clients[i].Ping(ctx, to.MeshAddress.Addr()); err != nil {
				t.Error(err)
			}
			if _, err := brokers[i].Gateway().Ping(ctx, to.MeshAddress.Addr()); err != nil {
				t.Error(err)
			}
		}
	}
	// A packet to a mesh address without cluster is rejected at once.
	if _, err := clients[0].Ping(ctx, netip.MustParseAddr("192.168.0.99")); err == nil ||
		!strings.Contains(err.Error(), "unreachable") {
		t.Errorf("ping of nobody: %v", err)
	}
}

func TestUDP(t *testing.T) {
	ctx := startTest(t, time.Minute)
	conn, err := clients[0].DialContext(ctx, "udp", netip.AddrPortFrom(servers[1].service, udpPort).String())
	must(t, err)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(2 * time.Second))
	_, err = conn.Write([]byte("hello"))
	must(t, err)
	seen := make([]byte, 64)
	n, err := conn.Read(seen)
	must(t, err)
	checkClientAddress(t, string(seen[:n]))

	// Pods reach the DNS service of the other cluster across the mesh, by UDP and TCP.
	for _, network := range []string{"udp", "tcp"} {
		m, err := clients[0].QueryAt(ctx, network, netip.AddrPortFrom(brokers[1].DNSAddress, 53),
			"server.default.svc.cluster.local.", dns.TypeA)
		must(t, err)
		if len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != servers[1].service.String() {
			t.Errorf("%s: %v", network, m)
		}
	}
}

func TestTransfer(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	for _, way := range [][2]int{{0, 1}, {1, 0}} {
		start := time.Now()
		must(t, transfer(ctx, clients[way[0]], servers[way[1]].service, 100<<20, 0))
		t.Logf("100 MiB from %s to %s in %s", brokers[way[1]].Name, brokers[way[0]].Name,
			time.Since(start).Round(time.Millisecond))
	}
}

// Pods need no setting: datagrams of the link's MTU arrive whole. In mode bridge that is the pods' MTU.
func TestLargeDatagrams(t *testing.T) {
	ctx := startTest(t, time.Minute)
	// The largest packet that passes whole, and fragments made by the pod.
	for _, size := range []int{1, 1000, linkMTU() - 28, 4000} {
		conn, err := clients[0].DialContext(ctx, "udp", netip.AddrPortFrom(servers[1].service, udpPort).String())
		must(t, err)
		conn.SetDeadline(time.Now().Add(2 * time.Second))
		_, err = conn.Write(make([]byte, size))
		must(t, err)
		if _, err := conn.Read(make([]byte, 64)); err != nil {
			t.Errorf("datagram of %d bytes: %v", size, err)
		}
		conn.Close()
	}
}

// Names are rewritten both ways, by UDP and TCP, in any spelling. Missing names are NXDOMAIN.
func TestNames(t *testing.T) {
	ctx := startTest(t, time.Minute)
	b := brokers[0]
	for j := range brokers { // including the local cluster
		for _, network := range []string{"udp", "tcp"} {
			m, _, err := queryBroker(ctx, b, network, "SERVER.default.svc."+brokers[j].Name+".KubeLink.", dns.TypeA)
			must(t, err)
			if len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != servers[j].service.String() ||
				m.Question[0].Name != "SERVER.default.svc."+brokers[j].Name+".KubeLink." {
				t.Errorf("%s: %v", network, m)
			}
		}
	}
	m, _, err := queryBroker(ctx, b, "udp", "_http._tcp."+serverName(1), dns.TypeSRV)
	must(t, err)
	if len(m.Answer) != 1 || m.Answer[0].(*dns.SRV).Target != serverName(1) {
		t.Errorf("SRV: %v", m)
	}
	for name, rcode := range map[string]int{
		"kubelink.":                              dns.RcodeSuccess,
		"nope.kubelink.":                         dns.RcodeNameError,
		"nope.default.svc.kubelink2.kubelink.":   dns.RcodeNameError,
		"server.default.svc.kubelink9.kubelink.": dns.RcodeNameError,
	} {
		m, _, err := queryBroker(ctx, b, "udp", name, dns.TypeA)
		must(t, err)
		if m.Rcode != rcode || len(m.Answer) != 0 || len(m.Ns) != 1 || m.Ns[0].Header().Rrtype != dns.TypeSOA {
			t.Errorf("%s: %v", name, m)
		} else if !dns.IsSubDomain("kubelink.", m.Ns[0].Header().Name) {
			t.Errorf("%s: SOA of %s", name, m.Ns[0].Header().Name)
		}
	}
	for kind, count := range map[uint16]int{dns.TypeSOA: 1, dns.TypeNS: 1} {
		m, _, err := queryBroker(ctx, b, "udp", "kubelink.", kind)
		must(t, err)
		if len(m.Answer) != count || !m.Authoritative {
			t.Errorf("%s: %v", dns.TypeToString[kind], m)
		}
	}
	// A pod gets the same through the cluster's DNS.
	addrs, err := clients[0].Lookup(ctx, strings.TrimSuffix(serverName(2), "."))
	must(t, err)
	if len(addrs) != 1 || addrs[0] != servers[2].service {
		t.Errorf("%v", addrs)
	}
}

// Events and conditions show the changes of a link.
func TestEventsAndConditions(t *testing.T) {
	ctx := startTest(t, time.Minute)
	b := brokers[0]
	within(t, 10*time.Second, "event", func(ctx context.Context) error {
		out, err := b.Kubectl(ctx, "get", "events.events.k8s.io", "-A", "-o",
			"jsonpath={range .items[*]}{.regarding.kind}/{.regarding.name} {.reason} {.type}{\"\\n\"}{end}")
		if err == nil && !strings.Contains(out, "KubeLink/kubelink2 LinkUp Normal") {
			err = fmt.Errorf("events:\n%s", out)
		}
		return err
	})
	_, err := b.Kubectl(ctx, "wait", "--for=condition=Ready", "--timeout=5s", "kubelink/kubelink1", "kubelink/kubelink2",
		"kubelink/kubelink3")
	must(t, err)
}

// The metrics show links, traffic and state.
func TestMetrics(t *testing.T) {
	ctx := startTest(t, time.Minute)
	b := brokers[0]
	bytesRx := `coredns_kubelink_link_bytes_total{direction="rx",link="kubelink2"}`
	before, err := b.Metric(ctx, bytesRx)
	must(t, err)
	must(t, transfer(ctx, clients[0], servers[1].service, 1<<20, 0))
	within(t, 5*time.Second, "metrics", func(ctx context.Context) error {
		device := fmt.Sprintf(`coredns_kubelink_tun_info{interface="kubelink",offloads="checksum,TSO,USO",queues="%d"}`,
			runtime.GOMAXPROCS(0))
		if inWireGuard() {
			device = `coredns_kubelink_wireguard_info{device="userspace",interface="kubelink"}`
		}
		for series, least := range map[string]float64{
			`coredns_kubelink_links{state="Up"}`:                  2,
			`coredns_kubelink_link_up{link="kubelink2"}`:          1,
			`coredns_kubelink_link_rtt_seconds{link="kubelink2"}`: 1e-6,
			device:                     1,
			`coredns_kubelink_api_up`:  1,
			`coredns_kubelink_applied`: 1,
			bytesRx:                    before + 1<<20,
		} {
			v, err := b.Metric(ctx, series)
			if err != nil {
				return err
			}
			if v < least {
				return fmt.Errorf("%s is %g, want at least %g", series, v, least)
			}
		}
		return nil
	})
}
