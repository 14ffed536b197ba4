package broker

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/mandelsoft/kubelink/broker/announce"
	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/apizone"
	"github.com/mandelsoft/kubelink/broker/globalnames"
	"github.com/mandelsoft/kubelink/broker/kernel"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/linkgateway"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/stubdomain"
	"github.com/mandelsoft/kubelink/broker/writeback"
)

// newFakeAPIServer is controller-runtime's fake client in place of the API server and of the cache.
func newFakeAPIServer(objects ...client.Object) client.WithWatch {
	return fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).
		WithStatusSubresource(&v1alpha1.KubeLink{}).Build()
}

func kubeLink(name, address, endpoint, cidr string) *v1alpha1.KubeLink {
	return &v1alpha1.KubeLink{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.KubeLinkSpec{ClusterAddress: address, Endpoint: endpoint, CIDR: cidr},
	}
}

func TestListenPortWithFakeAPIServer(t *testing.T) {
	service := func(ports ...corev1.ServicePort) *corev1.Service {
		return &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "kubelink"}, Spec: corev1.ServiceSpec{Ports: ports},
		}
	}
	port := func(protocol corev1.Protocol, target intstr.IntOrString) corev1.ServicePort {
		return corev1.ServicePort{Name: "bridge", Protocol: protocol, Port: 443, TargetPort: target}
	}
	other := corev1.ServicePort{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53, TargetPort: intstr.FromInt32(5353)}
	named := func(name string, protocol corev1.Protocol, target int32) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Protocol: protocol, Port: 443, TargetPort: intstr.FromInt32(target)}
	}
	foreign := service(port("TCP", intstr.FromInt32(9)))
	foreign.Namespace = "other"
	for _, c := range []struct {
		name    string
		mode    mesh.Mode
		service string // of the configuration
		object  *corev1.Service
		want    uint16
		says    string
	}{
		{"no service is configured", mesh.Bridge, "", service(port("TCP", intstr.FromInt32(9))), 80, ""},
		{"mode none", mesh.None, "kubelink", service(other), 80, ""},
		{"missing", mesh.Bridge, "kubelink", foreign, 80, `service kubelink: services "kubelink" not found; listening`},
		{"no such port", mesh.Bridge, "kubelink", service(other), 80,
			"service kubelink has 0 TCP ports and none is named bridge: name one so, or add it"},
		{"wrong protocol", mesh.Bridge, "kubelink", service(port("UDP", intstr.FromInt32(9))), 80,
			"service kubelink: port bridge is UDP, but mode bridge uses TCP"},
		{"named target port", mesh.Bridge, "kubelink", service(port("TCP", intstr.FromString("tls"))), 80,
			`service kubelink: target port "tls" of port bridge is a name; use a number`},
		{"number", mesh.Bridge, "kubelink", service(other, port("TCP", intstr.FromInt32(8443))), 8443, ""},
		{"number as text", mesh.Bridge, "kubelink", service(port("TCP", intstr.FromString("8443"))), 8443, ""},
		{"no protocol is TCP", mesh.Bridge, "kubelink", service(port("", intstr.FromInt32(8443))), 8443, ""},
		{"the only TCP port", mesh.Bridge, "kubelink", service(other, named("", "TCP", 8188)), 8188, ""},
		{"two TCP ports", mesh.Bridge, "kubelink", service(named("a", "TCP", 1), named("b", "", 2)), 80,
			"service kubelink has 2 TCP ports and none is named bridge: name one so, or add it"},
		{"two TCP ports, one is named", mesh.Bridge, "kubelink",
			service(named("a", "TCP", 1), named("bridge", "", 2)), 2, ""},
		{"wireguard, the only port", mesh.WireGuard, "kubelink", service(named("", "UDP", 8188)), 8188, ""},
		{"wireguard, the only UDP port", mesh.WireGuard, "kubelink", service(named("bridge", "TCP", 1), other), 5353, ""},
		{"wireguard, named", mesh.WireGuard, "kubelink", service(other, named("wireguard", "UDP", 51820)), 51820, ""},
		{"wireguard, two UDP ports", mesh.WireGuard, "kubelink", service(other, named("x", "UDP", 1)), 80,
			"service kubelink has 2 UDP ports and none is named wireguard: name one so, or add it"},
		{"wireguard, TCP", mesh.WireGuard, "kubelink", service(other, named("wireguard", "", 1)), 80,
			"service kubelink: port wireguard is TCP, but mode wireguard uses UDP"},
		{"no target port", mesh.Bridge, "kubelink", service(port("TCP", intstr.IntOrString{})), 443, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &reconcilerRun{client: newFakeAPIServer(c.object), reconciler: &reconciler{cfg: Config{
				Local: mesh.Local{Mode: c.mode}, APIConfig: APIConfig{Namespace: "ns"},
				GatewayConfig: GatewayConfig{Service: c.service, BrokerPort: 80},
			}}}
			got, err := r.listenPort(t.Context())
			if got.Port != c.want {
				t.Errorf("port %d, want %d", got.Port, c.want)
			}
			if (err == nil) != (c.says == "") {
				t.Fatalf("%v, want %s", err, c.says)
			}
			if err != nil && (!strings.HasPrefix(err.Error(), c.says) ||
				!strings.HasSuffix(err.Error(), "; listening on broker-port 80")) {
				t.Errorf("%v, want %s", err, c.says)
			}
		})
	}
}

// A token stays in use until another account is configured.
func TestSetTokenSource(t *testing.T) {
	names := NamesConfig{ServiceAccount: types.NamespacedName{Namespace: "ns", Name: "peers"}, TokenLifetime: time.Hour}
	for _, c := range []struct {
		name   string
		change func(*Config)
		same   bool // the source stays
		none   bool
	}{
		{"nothing", func(*Config) {}, true, false},
		{"something else", func(c *Config) { c.ServeStale = time.Hour }, true, false},
		{"lifetime", func(c *Config) { c.TokenLifetime = time.Minute }, false, false},
		{"account", func(c *Config) { c.ServiceAccount.Name = "others" }, false, false},
		{"API server", func(c *Config) { c.Context = "two" }, false, false},
		{"no account", func(c *Config) { c.ServiceAccount = types.NamespacedName{} }, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, err := New(Config{NamesConfig: names})
			if err != nil {
				t.Fatal(err)
			}
			old, before := b.r.cfg, b.r.peers.tokens
			c.change(&b.r.cfg)
			b.r.setTokenSource(&old)
			if after := b.r.peers.tokens; (after == before) != c.same || (after == nil) != c.none {
				t.Errorf("source %p, before %p", after, before)
			}
		})
	}
}

// newTestRun returns a run of the reconciler without manager.
func newTestRun(b *Broker, api client.WithWatch) *reconcilerRun {
	log := slog.New(slog.DiscardHandler)
	return &reconcilerRun{
		reconciler: b.r, client: api, watch: globalnames.NewWatch(b.r.waker.wake, log),
		secrets: apizone.NewSecrets(b.cfg.accessConfig(), nil, api, b.r.waker.wake),
		keys:    apizone.NewSecrets(b.cfg.accessConfig(), nil, api, b.r.waker.wake),
		writer: writeback.NewWriter(writeback.Config{
			Client: api, Recorder: &events.FakeRecorder{}, Log: log, Wake: b.r.waker.wake, MaxCreate: announce.MaxUnknown,
		}),
		places: linkgateway.NewWriter(linkgateway.WriterConfig{Reader: api, Client: api, Log: log, Wake: b.r.waker.wake,
			MayWrite:  func() bool { return true },
			HeldSince: func(time.Time) bool { return true },
		}),
		keeper: &announce.Keeper{Client: api, Log: log},
		dns:    &stubdomain.Configurer{Client: api, Reader: api, Restart: &b.r.dnsRestart, Interval: resync, Log: log},
	}
}

// From objects of the API to answers of DNS, and to what users see of the objects.
func TestReconcileWithFakeAPIServer(t *testing.T) {
	const global = "the names of svc.global.kubelink are not known yet" // nothing watches their objects here
	peerUp := []link.Status{{Link: "kubelink2", State: link.Up}}
	bridge, none := mesh.Local{Mode: mesh.Bridge}, mesh.Local{Mode: mesh.None}
	wireGuard, own := mesh.Local{Mode: mesh.WireGuard}, mesh.SecretKey{1: 1, 31: 64}
	for _, c := range []struct {
		name     string
		cfg      Config
		statuses []link.Status
		kernel   error
		again    time.Duration // 0: Reconcile fails
		ready    string        // why it is not
		local    string        // state and message of the LocalLink
		peer     string        // state and message of the link
		dns      string        // what DNS says of it; in mode none, this broker does not know
	}{
		{"mode none", Config{Local: none}, nil, nil, resync, global, "Up ",
			"Idle mode none: this broker serves names, and carries no traffic", "state="},
		{"connected", Config{Local: bridge}, peerUp, nil, resync, global, "Up ", "Up ", "state=Up"},
		{"not connected", Config{Local: bridge}, nil, nil, resync, global, "Up ", "Idle ",
			"state=Idle reason=it is about to be connected"},
		{"no certificate",
			Config{Local: bridge, CertificateConfig: CertificateConfig{Secret: "tls"}, APIConfig: APIConfig{Namespace: "ns"}},
			nil, nil, resync, "secret ns/tls does not exist: create it", "Error secret ns/tls does not exist",
			"Error secret ns/tls does not exist", "state=Error reason=there is no usable certificate"},
		{"no WireGuard key",
			Config{Local: wireGuard, CertificateConfig: CertificateConfig{Secret: "tls"}, APIConfig: APIConfig{Namespace: "ns"}},
			nil, nil, resync, "secret ns/tls: it does not exist: create it", "Error secret ns/tls: it does not exist",
			"Error secret ns/tls: it does not exist", "state=Error reason=there is no usable WireGuard key"},
		{"WireGuard key",
			Config{Local: wireGuard, CertificateConfig: CertificateConfig{Secret: "wg"}, APIConfig: APIConfig{Namespace: "ns"}},
			peerUp, nil, resync, global, "Up ", "Up ", "state=Up"},
		{"the kernel refuses", Config{Local: bridge}, peerUp, errors.New("no route"), 0, "no route\n" + global,
			"Error no route", "Up ", "state=Up"},
		{"the kernel is busy", Config{Local: bridge}, peerUp, kernel.ErrBusy, kernel.Grace,
			global + "\n" + kernel.ErrBusy.Error(), "Up " + kernel.ErrBusy.Error(), "Idle its routes are being set",
			"state=Idle reason=its routes are being set"},
		{"the kernel is stuck", Config{Local: bridge}, peerUp, kernel.ErrStuck, resync,
			kernel.ErrStuck.Error() + "\n" + global, "Error " + kernel.ErrStuck.Error(), "Idle its routes are being set",
			"state=Idle reason=its routes are being set"},
		{"no service", Config{Local: bridge, GatewayConfig: GatewayConfig{Service: "kubelink", BrokerPort: 80}}, peerUp, nil,
			resync, "service kubelink: ", "Error service kubelink: ", "Up ", "state=Up"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := c.cfg
			cfg.Propagation, cfg.MeshDomain, cfg.ClusterDomain = mesh.PropagateDNS, "kubelink.", "cluster.local."
			b, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer b.names.close()
			two := kubeLink("kubelink2", "192.168.0.12/24", "b.example", "100.64.16.0/20")
			two.Spec.PublicKey = mesh.SecretKey{1: 2, 31: 64}.Public().String()
			api := newFakeAPIServer(two,
				&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "wg"},
					Data: map[string][]byte{"WireguardPrivateKey": []byte(own.Base64())}},
				kubeLink("kubelink1", "192.168.0.11/24", v1alpha1.EndpointLocal, "100.64.0.0/20"),
				kubeLink("broken", "192.168.0.13/24", "c.example", "100.64.0.0"))
			if cfg.Mode.CarriesTraffic() {
				d := &fakeDataplane{}
				d.setStatus(c.statuses...)
				b.setGateway(newFakeGateway(d, &recordingKernel{fail: c.kernel}))
			}
			run := newTestRun(b, api)
			result, err := run.Reconcile(t.Context(), reconcile.Request{})
			if (err == nil) != (c.again > 0) || err != nil && !errors.Is(err, c.kernel) || result.RequeueAfter != c.again {
				t.Errorf("again in %v, %v", result.RequeueAfter, err)
			}
			if err := b.Ready(); err == nil || !strings.HasPrefix(err.Error(), c.ready) {
				t.Errorf("ready: %v", err)
			}
			if got := answeredState(t, b); got != c.dns {
				t.Errorf("DNS: %s, want %s", got, c.dns)
			}
			checkStates(t, run.writer, api, map[string]string{
				"kubelink1": c.local, "kubelink2": c.peer, "broken": "Invalid spec.cidr",
			})
			var local v1alpha1.KubeLink
			if err := api.Get(t.Context(), types.NamespacedName{Name: "kubelink1"}, &local); err != nil {
				t.Fatal(err)
			}
			if want := map[bool]string{true: own.Public().String()}[cfg.Secret == "wg"]; local.Status.PublicKey != want {
				t.Errorf("status.publicKey %q, want %q", local.Status.PublicKey, want)
			}
		})
	}
}

// checkStates lets the writer write, and looks at the KubeLinks. The LocalLink has the finalizer, as it has members.
func checkStates(t *testing.T, w *writeback.Writer, api client.Client, want map[string]string) {
	t.Helper()
	recorder := events.NewFakeRecorder(len(want))
	w.Recorder = recorder
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- w.Start(ctx) }()
	for range want {
		<-recorder.Events // of the state of a KubeLink
	}
	end()
	<-ended
	var all v1alpha1.KubeLinkList
	if err := api.List(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	for _, l := range all.Items {
		if got := string(l.Status.State) + " " + l.Status.Message; !strings.HasPrefix(got, want[l.Name]) {
			t.Errorf("%s: %s, want %s", l.Name, got, want[l.Name])
		}
		if has := slices.Contains(l.Finalizers, v1alpha1.Finalizer); has != (l.Name == "kubelink1") {
			t.Errorf("%s: finalizers %v", l.Name, l.Finalizers)
		}
	}
}

// A run that has ended changes nothing: a newer one has taken over.
func TestReconcileAfterEnd(t *testing.T) {
	b, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	end()
	run := newTestRun(b, newFakeAPIServer())
	if _, err := run.Reconcile(ctx, reconcile.Request{}); !errors.Is(err, context.Canceled) || b.Table() != nil {
		t.Errorf("%v, table %v", err, b.Table())
	}
	if err := b.Ready(); !errors.Is(err, errNoState) {
		t.Errorf("ready: %v", err)
	}
}
