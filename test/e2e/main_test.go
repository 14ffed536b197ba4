// Package e2e tests kubelink as a whole on real control planes: three clusters behind their own NAT routers, with
// identical node and pod networks. Each cluster has a broker, installed from the manifests in deploy. Each test
// leaves all links between the three clusters up. With KUBELINK_MODE=wireguard, links are WireGuard.
package e2e

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// Ports of the server pods.
const (
	httpPort = 8080 // answers with the client's address; /bulk is a stream
	udpPort  = 9000 // answers with the client's address, too
)

var (
	f       *fleet.Fleet
	brokers []*fleet.Broker
	servers []*server // one in each cluster
	clients []*testbed.Pod
)

type server struct {
	pod     *testbed.Pod
	service netip.Addr
}

func TestMain(m *testing.M) { os.Exit(testbed.Main(func() int { return runTests(m) })) }

func runTests(m *testing.M) int {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := bootFleet(ctx); err != nil {
		if f != nil {
			f.DumpLogs(os.Stderr, 40)
		}
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer f.Close()
	if err := leaveOut(f.Mode); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	for _, b := range brokers {
		// The race detector is part of the broker under test.
		if strings.Contains(b.Process.FullLog(), "DATA RACE") {
			fmt.Fprintf(os.Stderr, "data race in the broker of %s\n%s\n", b.Name, b.Process.FullLog())
			code = 1
		}
	}
	if code != 0 {
		f.DumpLogs(os.Stderr, 60)
	}
	return code
}

// withoutReload removes the plugin reload: the tests send CoreDNS a signal (SIGUSR1) when they have changed its
// Corefile. caddy does not expect both at the same time: the race detector found that.
func withoutReload(_ int, corefile string) string {
	before, after, ok := strings.Cut(corefile, "    reload\n")
	if !ok {
		panic("no reload in the Corefile")
	}
	return strings.TrimRight(before, " ") + after
}

func bootFleet(ctx context.Context) (err error) {
	if f, err = fleet.New(ctx, 3, fleet.Options{Edit: withoutReload}); err != nil {
		return err
	}
	brokers = f.Brokers
	for _, b := range brokers {
		s := &server{}
		if s.pod, err = b.Pod(ctx, "server", testbed.PodOptions{}); err != nil {
			return err
		}
		mux := http.NewServeMux()
		mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
			host, _, _ := net.SplitHostPort(r.RemoteAddr)
			io.WriteString(w, host)
		})
		mux.HandleFunc("/bulk", serveBulk)
		if err := s.pod.ServeHTTP(httpPort, mux); err != nil {
			return err
		}
		if err := s.pod.ServeUDPEcho(udpPort); err != nil {
			return err
		}
		s.service, err = b.Service(ctx, "server", map[string]string{"app": "server"}, []corev1.ServicePort{
			{Name: "http", Port: 80, TargetPort: intstr.FromInt32(httpPort)},
			testbed.UDPPort(udpPort),
		}, testbed.ServiceOptions{})
		if err != nil {
			return err
		}
		servers = append(servers, s)
		c, err := b.Pod(ctx, "client", testbed.PodOptions{})
		if err != nil {
			return err
		}
		clients = append(clients, c)
	}
	return f.Mesh(ctx)
}

// startTest limits the time of a test, and prints the brokers' logs if the test fails.
func startTest(t *testing.T, limit time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	t.Cleanup(func() {
		if t.Failed() {
			f.DumpLogs(os.Stderr, 40)
		}
	})
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// within fails the test if the condition is not met within the limit. It returns the time that this took.
func within(t *testing.T, limit time.Duration, what string, condition func(context.Context) error) time.Duration {
	t.Helper()
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := testbed.Until(ctx, what, condition); err != nil {
		t.Fatal(err)
	}
	return time.Since(start)
}

// seed of the stream that serveBulk sends.
var seed = [32]byte{1, 2, 3}

// serveBulk sends size pseudo-random bytes. With rate, it sends at that pace in bytes per second.
func serveBulk(w http.ResponseWriter, r *http.Request) {
	size, _ := strconv.Atoi(r.FormValue("size"))
	rate, _ := strconv.Atoi(r.FormValue("rate"))
	stream := rand.NewChaCha8(seed)
	chunk := make([]byte, 64<<10)
	var pace <-chan time.Time
	if rate > 0 {
		ticker := time.NewTicker(time.Duration(len(chunk)) * time.Second / time.Duration(rate))
		defer ticker.Stop()
		pace = ticker.C
	}
	for size > 0 {
		part := chunk[:min(size, len(chunk))]
		stream.Read(part)
		if _, err := w.Write(part); err != nil {
			return
		}
		size -= len(part)
		if pace != nil {
			w.(http.Flusher).Flush()
			select {
			case <-pace:
			case <-r.Context().Done():
				return
			}
		}
	}
}

// transfer fetches size bytes from a server and compares their checksum.
func transfer(ctx context.Context, from *testbed.Pod, to netip.Addr, size, rate int) error {
	url := fmt.Sprintf("http://%s/bulk?size=%d&rate=%d", to, size, rate)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := from.HTTPClient().Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	got, want := sha256.New(), sha256.New()
	n, err := io.Copy(got, response.Body)
	if err != nil {
		return fmt.Errorf("after %d bytes: %w", n, err)
	}
	if _, err := io.CopyN(want, rand.NewChaCha8(seed), int64(size)); err != nil {
		return err
	}
	if n != int64(size) || string(got.Sum(nil)) != string(want.Sum(nil)) {
		return fmt.Errorf("got %d bytes of %d, checksum %x, want %x", n, size, got.Sum(nil), want.Sum(nil))
	}
	return nil
}

// runInBackground runs fn. The returned function waits for it.
func runInBackground(fn func() error) func() error {
	done := make(chan error, 1)
	go func() { done <- fn() }()
	return func() error { return <-done }
}

const (
	// requestLimit is how long a request may take on a machine that has nothing else to do.
	requestLimit = time.Second
	// requestTime is how long a request may take at all.
	requestTime = 5 * time.Second
	// requestFactor is how much longer than one that no broker has seen a request may take: it passes two of them.
	requestFactor = 10
)

// requestLog is what became of requests.
type requestLog struct {
	sent    int
	slowest time.Duration
	err     error // of the ones that had no answer
}

// repeatRequests sends a request to the server after each pause, and waits for its answer, until stop: at
// least one.
func repeatRequests(from *testbed.Pod, to netip.Addr, pause time.Duration) (stop func() requestLog) {
	ctx, cancel := context.WithCancel(context.Background())
	var all requestLog
	var wg sync.WaitGroup
	first := make(chan struct{})
	wg.Go(func() {
		ticker := time.NewTicker(pause)
		defer ticker.Stop()
		for {
			one, end := context.WithTimeout(ctx, requestTime)
			start := time.Now()
			_, err := from.Get(one, "http://"+to.String()+"/")
			took := time.Since(start)
			end()
			if ctx.Err() != nil { // what is under way at the end counts only if it is late
				err = nil
			} else {
				if all.sent++; all.sent == 1 {
					close(first)
				}
			}
			all.slowest, all.err = max(all.slowest, took), errors.Join(all.err, err)
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
	})
	return func() requestLog {
		<-first
		cancel()
		wg.Wait()
		return all
	}
}

// expectNoFailures is repeatRequests for a test: no request may fail. Where the machine has other load, requests inside
// the cluster, which pass no broker, are slow at the same time: then the ones on the link may be so, too.
func expectNoFailures(t *testing.T, from *testbed.Pod, to netip.Addr) (check func()) {
	t.Helper()
	compare := func() requestLog { return requestLog{} }
	if i := slices.Index(clients, from); i >= 0 {
		compare = repeatRequests(from, servers[i].service, 50*time.Millisecond)
	}
	stop := repeatRequests(from, to, 20*time.Millisecond)
	return func() {
		t.Helper()
		got, inside := stop(), compare()
		limit := max(requestLimit, requestFactor*inside.slowest)
		if got.err != nil || got.sent == 0 || got.slowest > limit {
			t.Errorf("of %d requests on the healthy link some failed (%v); the slowest took %s, and of %d inside the cluster %s",
				got.sent, got.err, got.slowest, inside.sent, inside.slowest)
		}
	}
}

// waitForReply waits until the server answers a request from the pod.
func waitForReply(t *testing.T, limit time.Duration, from *testbed.Pod, to netip.Addr) time.Duration {
	t.Helper()
	return within(t, limit, fmt.Sprintf("answer of %s to %s", to, from.Name), func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		defer cancel()
		_, err := from.Get(ctx, "http://"+to.String()+"/")
		return err
	})
}

// queryBroker sends a query with EDNS to the broker's own server. It returns the answer and the text of its Extended
// DNS Error.
func queryBroker(ctx context.Context, b *fleet.Broker, network, name string, kind uint16) (*dns.Msg, string, error) {
	m, err := b.Host.QueryAt(ctx, network, b.DNS(), name, kind)
	if err != nil {
		return nil, "", err
	}
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if ede, ok := o.(*dns.EDNS0_EDE); ok {
				return m, ede.ExtraText, nil
			}
		}
	}
	return m, "", nil
}

// checkAnswer checks that a name has the address.
func checkAnswer(ctx context.Context, b *fleet.Broker, name string, want netip.Addr) error {
	m, _, err := queryBroker(ctx, b, "udp", name, dns.TypeA)
	if err != nil {
		return err
	}
	for _, rr := range m.Answer {
		if a, ok := rr.(*dns.A); ok && a.A.String() == want.String() {
			return nil
		}
	}
	return fmt.Errorf("%s: %s %v, want %s", name, dns.RcodeToString[m.Rcode], m.Answer, want)
}

// checkFailure checks that the answer for a name is SERVFAIL, and that its reason contains all texts.
func checkFailure(ctx context.Context, b *fleet.Broker, name string, texts ...string) error {
	start := time.Now()
	m, reason, err := queryBroker(ctx, b, "udp", name, dns.TypeA)
	if err != nil {
		return err
	}
	if m.Rcode != dns.RcodeServerFailure {
		return fmt.Errorf("%s: %s, want SERVFAIL", name, dns.RcodeToString[m.Rcode])
	}
	for _, text := range texts {
		if !strings.Contains(reason, text) {
			return fmt.Errorf("%s: the reason %q does not contain %q", name, reason, text)
		}
	}
	if took := time.Since(start); took > 500*time.Millisecond {
		return fmt.Errorf("%s: the failure took %s", name, took)
	}
	return nil
}

// serverName returns the mesh name of the server of a cluster.
func serverName(cluster int) string {
	return "server.default.svc." + brokers[cluster].Name + ".kubelink."
}
