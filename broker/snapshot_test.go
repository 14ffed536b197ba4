package broker

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"

	"github.com/miekg/dns"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/snapshot"
)

func ask(t *testing.T, b *Broker, name string) *dns.Msg {
	t.Helper()
	return query(t, b, name, dns.TypeA)
}

func query(t *testing.T, b *Broker, name string, qtype uint16) *dns.Msg {
	t.Helper()
	req := new(dns.Msg)
	req.SetQuestion(name, qtype)
	req.SetEdns0(1232, false)
	table := b.Table()
	if table == nil {
		t.Fatal("nothing is known")
	}
	m, ok := table.Match(name)
	if !ok {
		t.Fatalf("%s is in no zone", name)
	}
	reply, err := m.Answer(context.Background(), &request.Request{W: &test.ResponseWriter{}, Req: req})
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

// A broker that starts without API server answers what the one before knew, and says so.
func TestNamesSurvive(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(r)
		a, _ := dns.NewRR(r.Question[0].Name + " 5 IN A 100.64.16.20")
		m.Answer = []dns.RR{a}
		w.WriteMsg(m)
	})}
	go server.ActivateAndServe()
	defer server.Shutdown()

	local := mesh.Local{
		Mode: mesh.None, Propagation: mesh.PropagateDNS, MeshDomain: "kubelink.", ClusterDomain: "cluster.local.",
	}
	dir := filepath.Join(t.TempDir(), "state")
	first, err := New(Config{Local: local})
	if err != nil {
		t.Fatal(err)
	}
	if first.setSnapshot(dir); first.Table() != nil {
		t.Fatalf("%v", first.Table())
	}
	first.names.publish(func(from *nameSource) {
		from.state = &mesh.State{Zones: []mesh.Zone{{Domain: "kubelink.", Clusters: []mesh.ClusterZone{{
			Name: "kubelink2.kubelink.", Link: "kubelink2", ClusterDomain: "cluster.local.",
			Services: mesh.Prefixes{netip.MustParsePrefix("100.64.16.0/20")},
			Upstream: netip.MustParseAddrPort(pc.LocalAddr().String()),
		}}}}}
	})
	const name = "web.default.svc.kubelink2.kubelink."
	if m := ask(t, first, name); len(m.Answer) != 1 {
		t.Fatal(m)
	}
	link := func(name, address, endpoint, cidr string) v1alpha1.KubeLink {
		applied := map[string]string{
			"kubectl.kubernetes.io/last-applied-configuration": `{"spec":{"presharedKey":"c2VjcmV0"}}`,
		}
		return v1alpha1.KubeLink{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: applied}, Spec: v1alpha1.KubeLinkSpec{
			ClusterAddress: address, Endpoint: endpoint, CIDR: cidr, PresharedKey: "c2VjcmV0",
		}}
	}
	first.r.snapshot.Load().Keep(func(o *snapshot.Objects) {
		o.Links = []v1alpha1.KubeLink{
			link("kubelink1", "192.168.0.11/24", "LocalLink", "100.64.0.0/20"),
			link("kubelink2", "192.168.0.12/24", "b.example", "100.64.16.0/20"),
		}
	})
	first.r.snapshot.Load().Keep(func(o *snapshot.Objects) {
		o.Entries = []coredns.CoreDNSEntry{{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "shop"},
			Spec: coredns.CoreDNSEntrySpec{
				DNSNames: []coredns.DNSName{"shop.svc.global.kubelink"}, A: []coredns.IPv4Address{"100.64.16.20"},
			},
		}}
	})
	first.setSnapshot("") // the end of the process
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 2 {
		t.Errorf("%v, %v", files, err)
	}
	for _, f := range files {
		info, err := f.Info()
		data, _ := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil || info.Mode().Perm() != 0o600 || strings.Contains(string(data), "c2VjcmV0") {
			t.Errorf("%s: %v, %v, %q", f.Name(), info.Mode(), err, data)
		}
	}

	second := func() *Broker {
		b, err := New(Config{Local: local})
		if err != nil {
			t.Fatal(err)
		}
		b.setSnapshot(dir)
		t.Cleanup(func() { b.setSnapshot("") })
		return b
	}
	local.Mode = mesh.Bridge
	m := ask(t, second(), name)
	isStale := func(m *dns.Msg) bool {
		opt := m.IsEdns0()
		return opt != nil && len(opt.Option) == 1 &&
			opt.Option[0].(*dns.EDNS0_EDE).InfoCode == dns.ExtendedErrorCodeStaleAnswer
	}
	if len(m.Answer) != 1 || !isStale(m) {
		t.Errorf("%v", m)
	}
	// Its address lies behind a link whose state is not known yet.
	m = ask(t, second(), "shop.svc.global.kubelink.")
	if len(m.Answer) != 1 || !isStale(m) {
		t.Errorf("%v", m)
	}
	if m := ask(t, second(), "other.default.svc.kubelink2.kubelink."); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v", m)
	}
	if m := ask(t, second(), "kubelink3.kubelink."); m.Rcode != dns.RcodeNameError {
		t.Errorf("%v", m)
	}

	// Files that cannot be used are as good as none.
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(dir, f.Name()), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if second().Table() != nil {
		t.Error("something is known")
	}
}
