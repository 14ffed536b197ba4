package broker

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/broker/kernel"
	"github.com/mandelsoft/kubelink/broker/kubeapi"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/pki"
)

// linkedState has one link to a cluster with names.
func linkedState() *mesh.State {
	return &mesh.State{
		Links: []mesh.Link{{Name: "kubelink2", Peer: "kubelink2"}},
		Zones: []mesh.Zone{{Domain: "kubelink.", Clusters: []mesh.ClusterZone{{
			Name: "kubelink2.kubelink.", Link: "kubelink2", ClusterDomain: "cluster.local.",
			Upstream: netip.MustParseAddrPort("127.0.0.1:9"),
		}}}},
	}
}

// answeredState is the state of the link as DNS tells it; empty: there is no table.
func answeredState(t *testing.T, b *Broker) string {
	t.Helper()
	if b.Table() == nil {
		return ""
	}
	reply := query(t, b, "_state.kubelink2.kubelink.", dns.TypeTXT)
	if len(reply.Answer) != 1 {
		t.Fatal(reply)
	}
	return strings.Join(reply.Answer[0].(*dns.TXT).Txt, " ")
}

// failureText is why a reply is SERVFAIL; empty if it is not.
func failureText(m *dns.Msg) string {
	opt := m.IsEdns0()
	if m.Rcode != dns.RcodeServerFailure || opt == nil || len(opt.Option) != 1 {
		return ""
	}
	return opt.Option[0].(*dns.EDNS0_EDE).ExtraText
}

// fakeKernel returns what the test wants.
type fakeKernel struct {
	kernelSetter
	told   chan struct{} // closed when the kernel is being told
	result chan error
}

func (k *fakeKernel) Set(kernel.State) error {
	close(k.told)
	return <-k.result
}

// newLinkedBroker has a gateway with fakes for kernel and dataplane, on which one link is Up.
func newLinkedBroker(t *testing.T) (*Broker, *fakeDataplane) {
	t.Helper()
	b, err := New(Config{Local: mesh.Local{Mode: mesh.Bridge, Propagation: mesh.PropagateDNS}})
	if err != nil {
		t.Fatal(err)
	}
	d := &fakeDataplane{}
	d.setStatus(link.Status{Link: "kubelink2", State: link.Up})
	b.setGateway(&gateway{dataplane: d, log: b.log})
	b.names.followLinks()
	t.Cleanup(func() { b.names.stopFollowing(); b.names.close() })
	return b, d
}

// startApply applies the state, and returns when the kernel is being told. The kernel returns result then.
func startApply(b *Broker) (k *fakeKernel, pending chan error) {
	k, pending = &fakeKernel{told: make(chan struct{}), result: make(chan error)}, make(chan error)
	b.r.gateway.kernel = k
	go func() {
		err, p := b.r.apply(linkedState(), nil, kubeapi.Entrance{})
		pending <- errors.Join(err, p)
	}()
	<-k.told
	return k, pending
}

// publishChange tells of a change of the link and waits until DNS shows it.
func publishChange(b *Broker) {
	b.names.linksChanged()
	for range 2 { // the second signal is taken after the first was published
		b.names.signal <- struct{}{}
	}
}

// Where the kernel filters what links send, no peer comes before it can. What a killed broker left stays until then,
// unless nothing authenticates this end. A standby has no chains.
func TestPeersWaitForFirewall(t *testing.T) {
	b, d := newLinkedBroker(t)
	calls := []string{}
	d.calls = &calls
	g, k := b.r.gateway, &recordingKernel{calls: &calls}
	g.kernel, g.filters = k, true
	state := linkedState()
	state.Meshes = []mesh.Mesh{{Addresses: prefixes("192.168.0.11/24", "fd00::11/64")}}
	state.Peers = []mesh.Peer{{Link: "kubelink2", Networks: prefixes("192.168.0.12/32", "fd00::12/128")}}
	onlyIPv4 := *state
	onlyIPv4.Meshes = []mesh.Mesh{{Addresses: prefixes("192.168.0.11/24")}}
	unfiltered4 := fmt.Errorf("chain X: %w", kernel.Unfiltered(4))
	unfiltered6 := fmt.Errorf("chain Y: %w", kernel.Unfiltered(6))
	if _, err := b.r.creds.Refresh(t.Context(), nil, pki.Config{}); err != nil {
		t.Fatal(err)
	}
	set := []string{"kernel", "Set 1 peers 0 local"}
	for _, step := range []struct {
		name   string
		result error
		leaves bool
		want   []string
		is     string // networks that the device has of the peer
	}{
		{"the kernel is busy", kernel.ErrBusy, false, []string{"kernel"}, ""},
		{"no chains", errors.Join(unfiltered4, unfiltered6), false, []string{"kernel"}, ""},
		{"stuck", kernel.ErrStuck, false, []string{"kernel"}, ""},
		{"no chains of IPv6", unfiltered6, false, set, "[192.168.0.12/32]"},
		{"busy since then", kernel.ErrBusy, false, set, "[192.168.0.12/32]"},
		{"all chains, and another error", errors.New("a foreign route"), false, set, "[192.168.0.12/32 fd00::12/128]"},
		{"a change fails", errors.Join(unfiltered4, unfiltered6), false, set, "[192.168.0.12/32 fd00::12/128]"},
		{"a mesh of IPv4", nil, false, set, "[192.168.0.12/32]"},
		{"IPv6 again, without chains", unfiltered6, false, set, "[192.168.0.12/32]"},
		{"another broker has the links", nil, true, []string{"Set 0 peers 0 local", "kernel"}, ""},
		{"busy with the first chains", kernel.ErrBusy, false, []string{"kernel"}, ""},
		{"no chains of IPv4", unfiltered4, false, set, "[fd00::12/128]"},
		{"done", nil, false, set, "[192.168.0.12/32 fd00::12/128]"},
	} {
		calls, k.fail = calls[:0], step.result
		now := state
		if step.name == "a mesh of IPv4" {
			now = &onlyIPv4
		}
		apply := func() { _, _ = b.r.carryLinks(now, kubeapi.Entrance{}) }
		if step.leaves {
			apply = func() { _, _ = b.r.leaveLinks(state) }
		}
		apply()
		calls = slices.DeleteFunc(calls, func(c string) bool { return !strings.HasPrefix(c, "Set ") && c != "kernel" })
		if !slices.Equal(calls, step.want) {
			t.Errorf("%s: %q, want %q", step.name, calls, step.want)
		}
		is := ""
		for _, p := range d.peers {
			is += fmt.Sprint(p.Networks)
		}
		if is != step.is {
			t.Errorf("%s: the device has %s, want %s", step.name, is, step.is)
		}
		if fw := k.state.Firewall; !step.leaves && (fw == nil || len(fw.Peers) != 1) {
			t.Errorf("%s: the kernel is told %+v", step.name, fw)
		}
	}
}

// A lost link shows in DNS while a reconciliation waits: telling DNS takes a lock of its own.
func TestLostLinkDuringReconciliation(t *testing.T) {
	b, d := newLinkedBroker(t)
	b.r.mu.Lock() // as a reconciliation does
	defer b.r.mu.Unlock()
	k, pending := startApply(b)
	k.result <- nil
	if err := <-pending; err != nil {
		t.Fatal(err)
	}
	if text := answeredState(t, b); !strings.Contains(text, "state=Up") {
		t.Fatal(text)
	}
	k, pending = startApply(b)
	d.setStatus(link.Status{Link: "kubelink2", State: link.Down, Reason: "peer is silent"})
	publishChange(b)
	if text := answeredState(t, b); !strings.Contains(text, "state=Down") || !strings.Contains(text, "peer is silent") {
		t.Error(text)
	}
	reply := ask(t, b, "web.default.svc.kubelink2.kubelink.")
	if text := failureText(reply); !strings.Contains(text, "link kubelink2 is Down: peer is silent") {
		t.Error(reply)
	}
	k.result <- nil
	<-pending
}

// The names of a new link are answered when the kernel has its routes, and not as soon as it is connected.
func TestNamesWaitForRoutes(t *testing.T) {
	b, _ := newLinkedBroker(t)
	ready := func(when string, want bool) {
		t.Helper()
		if text := answeredState(t, b); strings.Contains(text, "state=Up") != want {
			t.Errorf("%s: %s", when, text)
		}
	}
	for _, c := range []struct {
		name   string
		result error
		ready  bool // at the end
	}{
		{"busy", kernel.ErrBusy, false},
		{"stuck", kernel.ErrStuck, false},
		{"done", nil, true},
		{"busy with another state", kernel.ErrBusy, true},
	} {
		before := strings.Contains(answeredState(t, b), "state=Up")
		k, pending := startApply(b)
		publishChange(b)
		ready(c.name+", while the kernel is being told", before)
		k.result <- c.result
		if err := <-pending; !errors.Is(err, c.result) || err == nil != (c.result == nil) {
			t.Errorf("%s: %v", c.name, err)
		}
		ready(c.name, c.ready)
	}
}

// Another gateway has no routes yet, whatever the one before had.
func TestNamesWaitForRoutesOfNewGateway(t *testing.T) {
	b, d := newLinkedBroker(t)
	k, pending := startApply(b)
	k.result <- nil
	<-pending
	b.setGateway(&gateway{dataplane: d, log: b.log})
	publishChange(b)
	if text := answeredState(t, b); strings.Contains(text, "state=Up") {
		t.Error(text)
	}
}

// What the kernel does not take in full is tried again, and the names are answered.
func TestNamesAfterKernelError(t *testing.T) {
	b, _ := newLinkedBroker(t)
	k, pending := startApply(b)
	k.result <- errors.New("no such table")
	if err := <-pending; err == nil {
		t.Error("no error")
	}
	if text := answeredState(t, b); !strings.Contains(text, "state=Up") {
		t.Error(text)
	}
}

// Effects have an order: names of lost links first, peers before routes, names of new links last.
func TestApplyOrder(t *testing.T) {
	const names = "Statuses" // the zone table is made with the states of the links
	state := &mesh.State{
		Links:  []mesh.Link{{Name: "kubelink2", Peer: "kubelink2"}},
		Peers:  []mesh.Peer{{Link: "kubelink2"}},
		Meshes: []mesh.Mesh{{Addresses: prefixes("192.168.0.11/24")}},
		Local:  prefixes("100.64.0.0/20"),
		Routes: []mesh.Route{{
			Destination: netip.MustParsePrefix("100.64.16.0/20"), Source: netip.MustParseAddr("192.168.0.11"),
		}},
	}
	lost, refused := errors.New("device lost"), errors.New("route refused")
	for _, c := range []struct {
		name   string
		cfg    Config
		fail   error // of the dataplane
		kernel error
		calls  []string
		dns    string // the address that peers are told; empty: none
	}{
		{"unencrypted", Config{}, nil, nil,
			[]string{"SetCredentials unencrypted", names, "Configure port 7", "Set 1 peers 1 local", "kernel", names}, ""},
		{"no certificate yet", Config{CertificateConfig: CertificateConfig{CertFile: "none", KeyFile: "none"}}, nil, nil,
			[]string{names, "Configure port 7", "Set 0 peers 1 local", "kernel", names}, ""},
		{"parts do not stop each other", Config{}, lost, refused,
			[]string{"SetCredentials unencrypted", names, "Configure port 7", "Set 1 peers 1 local", "kernel", names}, ""},
		{"peers are told names", Config{
			Local:       mesh.Local{ServiceCIDRs: prefixes("100.64.0.0/20"), ClusterDomain: "cluster.local."},
			NamesConfig: NamesConfig{DNSAdvertisement: true},
		}, nil, nil,
			[]string{"SetCredentials unencrypted", names, "Configure port 7", "Set 1 peers 1 local", "kernel", names},
			"100.64.0.10"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.cfg.Mode, c.cfg.Propagation = mesh.Bridge, mesh.PropagateDNS
			b, err := New(c.cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer b.names.close()
			d := &fakeDataplane{fail: c.fail, calls: &[]string{}}
			k := &recordingKernel{fail: c.kernel, calls: d.calls}
			b.setGateway(newFakeGateway(d, k))
			run := &reconcilerRun{reconciler: b.r}
			if err := run.refreshCredentials(t.Context()); (err != nil) != (c.cfg.CertFile != "") {
				t.Error(err)
			}
			err, pending := b.r.apply(state, nil, kubeapi.Entrance{Port: 7})
			if !errors.Is(err, c.fail) || !errors.Is(err, c.kernel) || err != nil && c.fail == nil || pending != nil {
				t.Errorf("%v, pending %v", err, pending)
			}
			if !slices.Equal(*d.calls, c.calls) {
				t.Errorf("\ngot  %q\nwant %q", *d.calls, c.calls)
			}
			if len(k.state.Addresses) != 1 || len(k.state.Routes) != 1 {
				t.Errorf("the kernel has %+v", k.state)
			}
			if got := d.settings.DNS; (got != nil) != (c.dns != "") || got != nil && got.Address.String() != c.dns {
				t.Errorf("told: %+v", got)
			}
		})
	}
}

// A device that does not let its peers go keeps the chains that filter them.
func TestChainsStayWithPeers(t *testing.T) {
	b, d := newLinkedBroker(t)
	calls := []string{}
	g := b.r.gateway
	g.kernel, g.filters, d.fail = &recordingKernel{calls: &calls}, true, errors.New("the device does not answer")
	if err, _ := b.r.leaveLinks(linkedState()); !errors.Is(err, d.fail) || len(calls) > 0 {
		t.Errorf("%v, calls %q", err, calls)
	}
	d.fail = nil
	if err, _ := b.r.leaveLinks(linkedState()); err != nil || !slices.Equal(calls, []string{"kernel"}) {
		t.Errorf("%v, calls %q", err, calls)
	}
}

// Links are kept away from what leads to the port that carries them: addresses of the service, and node ports of all
// nodes.
func TestTunnelOf(t *testing.T) {
	b, _ := newLinkedBroker(t)
	b.r.cfg.NodeCIDRs = prefixes("10.250.0.0/16")
	b.r.gateway.place.NodeIPs = []netip.Addr{netip.MustParseAddr("10.250.0.5"), netip.MustParseAddr("fd00:250::5")}
	for mode, protocol := range map[mesh.Mode]string{mesh.Bridge: "tcp", mesh.WireGuard: "udp"} {
		b.r.cfg.Mode = mode
		got := b.r.tunnelOf(kubeapi.Entrance{Port: 8777, NodePorts: []uint16{30777},
			Addresses: []netip.AddrPort{netip.MustParseAddrPort("10.96.0.80:443")}})
		want := kernel.Tunnel{LocalPort: mesh.LocalPort{Protocol: protocol, Port: 8777}}
		for _, a := range []struct {
			network string
			port    uint16
		}{{"10.96.0.80/32", 443}, {"10.250.0.0/16", 30777}, {"fd00:250::5/128", 30777}} {
			want.Addresses = append(want.Addresses,
				kernel.TunnelAddress{Network: netip.MustParsePrefix(a.network), Port: a.port})
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("mode %s: %v, want %v", mode, got, want)
		}
	}
}
