package host

// The facts of a node that a network namespace plays: each test has one of its own, and needs to be root for that.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vishvananda/netns"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

var (
	pfx = netip.MustParsePrefix
	ip  = netip.MustParseAddr
)

// enter takes the goroutine to a new network namespace. The thread ends with the goroutine.
func enter(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("make a network namespace (as root): %v", err)
	}
	t.Cleanup(func() { ns.Close() })
	run(t, "ip link set lo up")
}

// run runs commands, one per line.
func run(t *testing.T, commands string) {
	t.Helper()
	for line := range strings.Lines(commands) {
		if words := strings.Fields(line); len(words) > 0 {
			if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", line, err, out)
			}
		}
	}
}

// open opens a watcher with a resolv.conf. The channel tells changes.
func open(t *testing.T, resolv string, api *APIServer) (*Watcher, chan struct{}) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte(resolv), 0o600); err != nil {
		t.Fatal(err)
	}
	changes := make(chan struct{}, 100)
	w, err := Open(Config{
		Device: "kubelink", Protocols: []int{107, 114}, Resolv: path, API: api, Log: slog.New(slog.DiscardHandler),
		Changed: func() { changes <- struct{}{} },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w, changes
}

func newLink(name, endpoint string) v1alpha1.KubeLink {
	return v1alpha1.KubeLink{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.KubeLinkSpec{Endpoint: endpoint},
	}
}

func checkFacts(t *testing.T, got, want mesh.Host) {
	t.Helper()
	a, b := reflect.ValueOf(got), reflect.ValueOf(want)
	for i := range a.NumField() {
		if fmt.Sprint(a.Field(i)) != fmt.Sprint(b.Field(i)) {
			t.Errorf("%s\n got %v\nwant %v", a.Type().Field(i).Name, a.Field(i), b.Field(i))
		}
	}
}

const lan = `
	ip link add eth0 type veth peer name far
	ip link set eth0 up
	ip link set far up
	ip addr add 10.250.0.11/16 dev eth0
	ip addr add 10.250.0.12/16 dev eth0
	ip addr add fd10::11/64 dev eth0 nodad
	ip route add default via 10.250.0.1
	ip route add 10.9.0.0/16 via 10.250.0.9
	ip -6 route add default via fd10::1
	ip link add kubelink type veth peer name farmesh
	ip link set farmesh up
	ip link set kubelink up
	ip addr add 192.168.0.11/32 dev kubelink
	ip route add 192.168.0.0/24 dev kubelink proto 107
	ip link add docker0 type veth peer name container
	ip link set docker0 up
	ip addr add 172.17.0.1/16 dev docker0
	ip link add off type veth peer name faroff
	ip addr add 172.18.0.1/16 dev off
	ip link add uplink type veth peer name farlink
	ip link set uplink up mtu 1400
	ip link set farlink up
	ip addr add 10.128.0.5/32 dev uplink
	ip rule add priority 100 table 100
	ip route add 10.77.0.0/16 via 10.250.0.9 table 100
	ip rule add from 10.1.1.1 priority 101 table 101
	ip route add default via 10.250.0.66 table 101
`

func TestFactsOfTheKernel(t *testing.T) {
	enter(t)
	run(t, lan)
	api := NewAPIServer()
	api.setEndpoints([]netip.Addr{ip("10.250.0.2")})
	w, changes := open(t, "nameserver 127.0.0.53\nnameserver 10.9.0.53\nnameserver fd10::53\n", api)
	links := []v1alpha1.KubeLink{
		newLink("local", v1alpha1.EndpointLocal), newLink("k2", "10.77.0.3:443"), newLink("broken", "a b"),
	}
	want := mesh.Host{
		Networks: []mesh.HostNetwork{
			{Prefix: pfx("10.250.0.0/16"), Device: "eth0"}, {Prefix: pfx("fd10::/64"), Device: "eth0"},
		},
		Addresses: []mesh.HostInterface{ // of devices without carrier, too
			{Addr: ip("10.128.0.5"), Device: "uplink", MTU: 1400}, {Addr: ip("10.250.0.11"), Device: "eth0", MTU: 1500},
			{Addr: ip("10.250.0.12"), Device: "eth0", MTU: 1500}, {Addr: ip("172.17.0.1"), Device: "docker0", MTU: 1500},
			{Addr: ip("172.18.0.1"), Device: "off", MTU: 1500}, {Addr: ip("fd10::11"), Device: "eth0", MTU: 1500},
		},
		Routes: []netip.Prefix{
			pfx("10.9.0.0/16"), pfx("10.77.0.0/16"), pfx("10.128.0.5/32"), pfx("10.250.0.0/16"), pfx("fd10::/64"),
		},
		Needs: []mesh.HostAddress{
			{Addr: ip("10.250.0.2"), Title: "the API server"}, {Addr: ip("10.128.0.5"), Title: "its own address"},
			{Addr: ip("10.250.0.1"), Title: "the default gateway"}, {Addr: ip("fd10::1"), Title: "the default gateway"},
			{Addr: ip("10.9.0.53"), Title: "the DNS server"}, {Addr: ip("fd10::53"), Title: "the DNS server"},
		},
	}
	checkFacts(t, w.Facts(links, nil), want)

	// A change in the kernel is told; a pod that comes is none, nor is a route of the broker or of a router.
	run(t, `ip route add 100.96.0.7/32 dev eth0
		ip route add 100.64.16.0/20 dev kubelink proto 107
		ip route add 10.77.0.0/24 via 10.250.0.9 proto 114
		ip link add cni0 type veth peer name farcni
		ip link set cni0 up
		ip link set farcni up
		ip addr add 10.42.0.1/24 dev cni0`)
	want.Networks = slices.Insert(want.Networks, 0, mesh.HostNetwork{Prefix: pfx("10.42.0.0/24"), Device: "cni0"})
	await(t, changes, func() bool { return slices.Equal(w.Facts(links, nil).Networks, want.Networks) })
	if got := w.Facts(links, nil); !slices.Equal(got.Routes, want.Routes) {
		t.Errorf("routes %v", got.Routes)
	}
	w.readKernel()
	w.reportChange()
	if n := len(changes); n > 0 {
		t.Errorf("%d more changes told", n)
	}
}

// await waits for a change that makes the condition true.
func await(t *testing.T, changes chan struct{}, condition func() bool) {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for !condition() {
		select {
		case <-changes:
		case <-timeout:
			t.Fatal("no such change within 10 s")
		}
	}
}

// The address of a peer stays known until its link has another endpoint, or is gone.
func TestRemotes(t *testing.T) {
	enter(t)
	w, _ := open(t, "", NewAPIServer())
	up := []link.Status{
		{Link: "k2", Remote: "[::ffff:172.31.0.2]:4711"}, {Link: "k9", Remote: "172.31.0.9:1"}, {Link: "k3"},
	}
	links := []v1alpha1.KubeLink{newLink("k2", "172.31.0.1"), newLink("k3", "172.31.0.3")}
	for _, c := range []struct {
		links    []v1alpha1.KubeLink
		statuses []link.Status
		want     map[string]netip.Addr
	}{
		{links, nil, map[string]netip.Addr{}},
		{links, up, map[string]netip.Addr{"k2": ip("172.31.0.2")}},
		{links, []link.Status{{Link: "k2"}}, map[string]netip.Addr{"k2": ip("172.31.0.2")}},
		{[]v1alpha1.KubeLink{newLink("k2", "172.31.0.4")}, nil, map[string]netip.Addr{}},
		{links, up, map[string]netip.Addr{"k2": ip("172.31.0.2")}},
		{nil, nil, map[string]netip.Addr{}},
	} {
		if got := w.Facts(c.links, c.statuses).Remotes; fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("got %v, want %v", got, c.want)
		}
	}
}

// Names are looked up at once when they are new, and then again and again; a look-up that fails changes nothing.
func TestResolver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var changes atomic.Int32
		var answer atomic.Pointer[[]netip.Addr] // for b.example; nil: none
		answer.Store(&[]netip.Addr{ip("172.31.0.3"), ip("::ffff:172.31.0.2")})
		r := newResolver(func() { changes.Add(1) })
		r.lookup = func(_ context.Context, _, host string) ([]netip.Addr, error) {
			if list := answer.Load(); list != nil && host == "b.example" {
				return slices.Clone(*list), nil
			}
			return nil, errors.New("no such host")
		}
		stop, done := make(chan struct{}), make(chan struct{})
		go func() { defer close(done); r.lookUpNames(stop) }()
		check := func(n int32, want ...string) {
			t.Helper()
			synctest.Wait()
			var got []string
			for _, a := range r.addresses()["b.example"] {
				got = append(got, a.String())
			}
			if !slices.Equal(got, want) || changes.Load() != n {
				t.Errorf("got %v after %d changes, want %v after %d", got, changes.Load(), want, n)
			}
		}
		r.setNames([]string{"b.example", "c.example", "10.0.0.1"})
		check(1, "172.31.0.2", "172.31.0.3")
		time.Sleep(refreshInterval + time.Second)
		check(1, "172.31.0.2", "172.31.0.3")
		answer.Store(nil)
		time.Sleep(refreshInterval)
		check(1, "172.31.0.2", "172.31.0.3")
		answer.Store(&[]netip.Addr{ip("10.0.0.7")})
		time.Sleep(refreshInterval)
		check(2, "10.0.0.7")
		r.setNames(nil)
		check(2)
		close(stop)
		<-done
	})
}

// apiStub answers as an API server does.
func apiStub(t *testing.T, answer func(path string) (int, any)) (*rest.Config, netip.Addr) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		code, object := answer(r.URL.Path)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		json.NewEncoder(w).Encode(object)
	}))
	t.Cleanup(server.Close)
	return &rest.Config{Host: server.URL}, netip.MustParseAddrPort(server.Listener.Addr().String()).Addr()
}

func TestReadEndpoints(t *testing.T) {
	refuse := metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure"}
	slice := func(addresses ...string) any {
		return map[string]any{"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
			"endpoints": []any{map[string]any{"addresses": addresses}}}
	}
	status := func(code int, reason metav1.StatusReason) (int, any) {
		s := refuse
		s.Code, s.Reason = int32(code), reason
		return code, s
	}
	known := "10.0.0.1"
	for _, c := range []struct {
		name   string
		answer func(path string) (int, any)
		want   string // addresses
		fails  bool
	}{
		{"endpoints", func(string) (int, any) { return 200, slice("10.250.0.2", "fd10::2", "127.0.0.1", "x") },
			"10.250.0.2 fd10::2", false},
		{"none", func(string) (int, any) { return 200, slice() }, known, false},
		{"error", func(string) (int, any) { return status(500, metav1.StatusReasonInternalError) }, known, true},
		{"forbidden", func(path string) (int, any) {
			if path != "/api" {
				return status(403, metav1.StatusReasonForbidden)
			}
			return 200, metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions", APIVersion: "v1"},
				ServerAddressByClientCIDRs: []metav1.ServerAddressByClientCIDR{
					{ClientCIDR: "0.0.0.0/0", ServerAddress: "10.250.0.3:6443"},
					{ClientCIDR: "::/0", ServerAddress: "api.example:443"},
				}}
		}, "10.250.0.3", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, _ := apiStub(t, c.answer)
			s := NewAPIServer()
			s.setEndpoints([]netip.Addr{ip(known)})
			if err := s.ReadEndpoints(t.Context(), cfg); (err != nil) != c.fails {
				t.Errorf("error %v", err)
			}
			var got []string
			for _, n := range s.listNeeds() {
				got = append(got, n.Addr.String())
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("got %v, want %s", got, c.want)
			}
		})
	}
}

// What a client connects to is noted, whether it succeeds or not. The address of the service is none of a host.
func TestConnectionsAreNoted(t *testing.T) {
	s := NewAPIServer()
	s.service = ip("100.64.0.1")
	dialled := func(address string) bool {
		return slices.ContainsFunc(s.listNeeds(), func(n mesh.HostAddress) bool { return n.Addr.String() == address })
	}
	dialer := net.Dialer{Control: func(_, _ string, _ syscall.RawConn) error { return errors.New("not in a test") }}
	client := http.Client{Transport: s.Wrap(&http.Transport{DialContext: dialer.DialContext})}
	for _, address := range []string{"192.0.2.7", "100.64.0.1", "127.0.0.1"} {
		if response, err := client.Get("http://" + address + ":1/"); err == nil {
			response.Body.Close()
			t.Fatalf("%s answers", address)
		}
	}
	s.noteConnection("[::ffff:198.51.100.1]:443")
	if !dialled("192.0.2.7") || !dialled("198.51.100.1") || dialled("100.64.0.1") || dialled("127.0.0.1") {
		t.Errorf("noted %v", s.listNeeds())
	}
}

// An API server that is slow is waited for, and one that answers with errors is not waited for long.
func TestAwaitEndpoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := func(d time.Duration, code int) *rest.Config {
			answer := roundTripper(func(r *http.Request) (*http.Response, error) {
				select {
				case <-r.Context().Done():
					return nil, r.Context().Err()
				case <-time.After(d):
				}
				body := `{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1","endpoints":[{"addresses":["10.250.0.2"]}]}`
				return &http.Response{
					StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}}, Request: r,
					Body: io.NopCloser(strings.NewReader(body)),
				}, nil
			})
			return &rest.Config{Host: "http://api.example", Transport: answer}
		}
		for _, c := range []struct {
			delay  time.Duration
			code   int
			known  int
			within time.Duration
		}{
			{0, 200, 1, time.Second}, {8 * time.Second, 200, 1, 20 * time.Second}, {time.Hour, 200, 0, 2 * time.Minute},
			{0, 500, 0, 10 * time.Second},
		} {
			s, start := NewAPIServer(), time.Now()
			s.AwaitEndpoints(t.Context(), slow(c.delay, c.code), slog.New(slog.DiscardHandler))
			if took := time.Since(start); len(s.listNeeds()) != c.known || took > c.within {
				t.Errorf("delay %s, status %d: %d addresses after %s", c.delay, c.code, len(s.listNeeds()), took)
			}
		}
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
