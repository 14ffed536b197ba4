package e2e

// The dataplane with bad networks and peers: loss, a low rate, peers that can do less, stand still or die,
// connections that break, pods with MTUs of their own.

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// countConnections counts the connections of a broker for a link, dialled by either end.
func countConnections(ctx context.Context, b *fleet.Broker, link string) (n int, err error) {
	for _, by := range []string{"local", "remote"} {
		v, err := b.Metric(ctx, fmt.Sprintf(`coredns_kubelink_link_sessions{dialled_by=%q,link=%q}`, by, link))
		if err != nil {
			return 0, err
		}
		n += int(v)
	}
	return n, nil
}

// waitForOffloads waits until the metrics show that the broker's device has offloads, or none.
func waitForOffloads(t *testing.T, b *fleet.Broker, want bool) {
	t.Helper()
	within(t, 5*time.Second, "offloads to change", func(ctx context.Context) error {
		text, err := b.Host.Get(ctx, fleet.MetricsURL)
		if err != nil {
			return err
		}
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "coredns_kubelink_tun_info{") {
				if strings.Contains(line, `offloads="none"`) == want {
					return errors.New(line)
				}
				return nil
			}
		}
		return errors.New("no such metric")
	})
}

// undoAtEnd takes back an impairment at the end of the test, or earlier.
func undoAtEnd(t *testing.T) func(undo func() error, err error) (undone func()) {
	return func(undo func() error, err error) func() {
		t.Helper()
		must(t, err)
		undone := func() { must(t, undo()) }
		t.Cleanup(undone)
		return undone
	}
}

// stream is a transfer in progress. It checks each byte.
type stream struct {
	got  atomic.Int64 // right bytes so far
	quit context.CancelFunc
	done chan struct{}
	err  error // valid when done is closed
}

const endless = math.MaxInt64

// openStream starts to fetch size bytes from a server. With rate, the server sends at that pace.
func openStream(ctx context.Context, from *testbed.Pod, to netip.Addr, size, rate int) *stream {
	ctx, cancel := context.WithCancel(ctx)
	s := &stream{quit: cancel, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		defer cancel()
		if s.err = s.fetchBytes(ctx, from, to, size, rate); s.err != nil {
			s.err = fmt.Errorf("stream from %s to %s, after %d bytes: %w", to, from.Name, s.got.Load(), s.err)
		}
	}()
	return s
}

func (s *stream) fetchBytes(ctx context.Context, from *testbed.Pod, to netip.Addr, size, rate int) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet,
		fmt.Sprintf("http://%s/bulk?size=%d&rate=%d", to, size, rate), nil)
	if err != nil {
		return err
	}
	response, err := from.HTTPClient().Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	stream, got, want := rand.NewChaCha8(seed), make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := response.Body.Read(got)
		stream.Read(want[:n])
		if !bytes.Equal(got[:n], want[:n]) {
			return errors.New("wrong content")
		}
		total := s.got.Add(int64(n))
		switch {
		case total == int64(size):
			return nil
		case err != nil:
			return err // an early end, too
		}
	}
}

// wait waits until all bytes are there.
func (s *stream) wait() error {
	<-s.done
	return s.err
}

// stop stops the stream. The error is about the time before.
func (s *stream) stop() error {
	select {
	case <-s.done:
	default:
		s.quit()
		<-s.done
	}
	if errors.Is(s.err, context.Canceled) {
		return nil
	}
	return s.err
}

// waitForBytes waits until the stream has got this number of further bytes.
func (s *stream) waitForBytes(t *testing.T, limit time.Duration, bytes int64) time.Duration {
	t.Helper()
	from := s.got.Load()
	return within(t, limit, "stream to go on", func(context.Context) error {
		select {
		case <-s.done:
			if s.err != nil {
				return s.err
			}
			return nil
		default:
		}
		if n := s.got.Load(); n < from+bytes {
			return fmt.Errorf("%d bytes of %d", n-from, bytes)
		}
		return nil
	})
}

// measureSpeed measures the speed of streams in bits per second.
func measureSpeed(window time.Duration, streams ...*stream) float64 {
	total := func() (n int64) {
		for _, s := range streams {
			n += s.got.Load()
		}
		return n
	}
	before, start := total(), time.Now()
	time.Sleep(window) // a measurement
	return float64(total()-before) * 8 / time.Since(start).Seconds()
}

func formatMbit(bits float64) string { return fmt.Sprintf("%.1f Mbit/s", bits/1e6) }

// waitUntilSettled waits until a link is Up at both ends for half a second, in the API and in the metrics. The API is
// late, and may still have the state from before a test.
func waitUntilSettled(t *testing.T, a, b *fleet.Broker) {
	t.Helper()
	var since time.Time
	within(t, 10*time.Second, "link to settle", func(ctx context.Context) error {
		for _, side := range [][2]*fleet.Broker{{a, b}, {b, a}} {
			l, err := side[0].Link(ctx, side[1].Name)
			if err == nil && l.Status.State != v1alpha1.StateUp {
				err = fmt.Errorf("%s: link %s is %s", side[0].Name, l.Name, l.Status.State)
			}
			if err == nil {
				var v float64
				if v, err = side[0].Metric(ctx, fmt.Sprintf(`coredns_kubelink_link_up{link=%q}`, l.Name)); err == nil && v != 1 {
					err = fmt.Errorf("%s: metric of link %s: %g", side[0].Name, l.Name, v)
				}
			}
			if err != nil {
				since = time.Time{}
				return err
			}
		}
		if since.IsZero() {
			since = time.Now()
		}
		if time.Since(since) < 500*time.Millisecond {
			return errors.New("just now")
		}
		return nil
	})
}

// expectUp fails the test if the link between two brokers is not Up all the time at both ends, in the API, the
// metrics and the log.
func expectUp(t *testing.T, a, b *fleet.Broker) (check func()) {
	t.Helper()
	waitUntilSettled(t, a, b)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	var (
		wg       sync.WaitGroup
		mu       sync.Mutex
		problems []string
		ends     []func()
	)
	problem := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		problems = append(problems, fmt.Sprintf("%s %s", time.Now().Format("05.000"), fmt.Sprintf(format, args...)))
	}
	for _, side := range [][2]*fleet.Broker{{a, b}, {b, a}} {
		x, link := side[0], side[1].Name
		w, err := x.Client.Watch(ctx, &v1alpha1.KubeLinkList{}, client.MatchingFields{"metadata.name": link})
		must(t, err)
		wg.Go(func() {
			for e := range w.ResultChan() {
				if ctx.Err() != nil {
					return
				}
				if l, ok := e.Object.(*v1alpha1.KubeLink); !ok {
					problem("%s: watch of link %s: %v", x.Name, link, e.Object)
				} else if l.Status.State != v1alpha1.StateUp {
					problem("%s: link %s is %s: %s", x.Name, link, l.Status.State, l.Status.Message)
				}
			}
			if ctx.Err() == nil {
				problem("%s: the watch ended", x.Name)
			}
		})
		wg.Go(func() {
			for ticker := time.NewTicker(100 * time.Millisecond); ; {
				v, err := x.Metric(ctx, fmt.Sprintf(`coredns_kubelink_link_up{link=%q}`, link))
				if ctx.Err() != nil {
					return
				}
				if err != nil || v != 1 {
					problem("%s: metric of link %s: %g %v", x.Name, link, v, err)
				}
				<-ticker.C
			}
		})
		downs := func() (n int) {
			for line := range strings.Lines(x.Process.Log()) {
				if strings.Contains(line, "link is down") && strings.Contains(line, "link="+link) {
					n++
				}
			}
			return n
		}
		before := downs()
		ends = append(ends, func() {
			w.Stop()
			if n := downs() - before; n > 0 {
				problem("%s: link %s went down %d times, by the log", x.Name, link, n)
			}
		})
	}
	return func() {
		t.Helper()
		cancel()
		for _, end := range ends {
			end()
		}
		wg.Wait()
		if len(problems) > 0 {
			t.Errorf("the link did not stay up:\n%s", strings.Join(problems[:min(len(problems), 10)], "\n"))
		}
	}
}

// startMirror starts a service of a cluster. Its pod sends datagrams back unchanged.
func startMirror(t *testing.T, ctx context.Context, cluster int) netip.AddrPort {
	t.Helper()
	const port = 9100
	conn, err := servers[cluster].pod.ListenPacket("udp4", fmt.Sprintf(":%d", port))
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	conn.(*net.UDPConn).SetReadBuffer(4 << 20)
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, from, err := conn.ReadFrom(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				conn.WriteTo(b[:n], from)
			}
		}
	}()
	b := brokers[cluster]
	t.Cleanup(func() {
		must(t, b.Client.Delete(context.Background(),
			&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "mirror"}}))
	})
	addr, err := b.Service(ctx, "mirror", map[string]string{"app": "server"}, []corev1.ServicePort{testbed.UDPPort(port)},
		testbed.ServiceOptions{})
	must(t, err)
	return netip.AddrPortFrom(addr, port)
}

// checkDatagrams sends n datagrams of size bytes to a mirror, in bundles, and checks the answers. A bundle is one
// packet for the kernel (UDP_SEGMENT) as long as all devices on its way can take it.
func checkDatagrams(ctx context.Context, from *testbed.Pod, to netip.AddrPort, size, n, bundle int) error {
	c, err := from.DialContext(ctx, "udp", to.String())
	if err != nil {
		return err
	}
	defer c.Close()
	conn := c.(*net.UDPConn)
	conn.SetReadBuffer(4 << 20)
	if bundle > 1 {
		raw, err := conn.SyscallConn()
		if err != nil {
			return err
		}
		e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size) })
		if err != nil || e != nil {
			return fmt.Errorf("UDP_SEGMENT: %w", errors.Join(err, e))
		}
	}
	content := func(i int) []byte {
		b := make([]byte, size)
		rand.NewChaCha8([32]byte{byte(i), byte(i >> 8), byte(i >> 16)}).Read(b)
		binary.BigEndian.PutUint32(b, uint32(i))
		return b
	}
	buffer := make([]byte, 64<<10)
	for i := 0; i < n; i += bundle {
		var all []byte
		for j := range bundle {
			all = append(all, content(i+j)...)
		}
		if _, err := conn.Write(all); err != nil {
			return fmt.Errorf("send datagram %d: %w", i, err)
		}
		for j := range bundle {
			conn.SetReadDeadline(time.Now().Add(2 * time.Second))
			got, err := conn.Read(buffer)
			if err != nil {
				return fmt.Errorf("answer %d of %d after datagram %d: %w", j, bundle, i, err)
			}
			if !bytes.Equal(buffer[:got], content(i+j)) {
				return fmt.Errorf("answer %d after datagram %d: %d bytes, or order, or content are wrong", j, i, got)
			}
		}
	}
	return nil
}

// checkTraffic checks that the link between two clusters carries 100 MiB by TCP and datagrams by UDP, both ways.
func checkTraffic(t *testing.T, ctx context.Context, a, b int) {
	t.Helper()
	for _, way := range [][2]int{{a, b}, {b, a}} {
		from, to := way[0], way[1]
		start := time.Now()
		must(t, transfer(ctx, clients[to], servers[from].service, 100<<20, 0))
		t.Logf("100 MiB from %s to %s: %s", brokers[from].Name, brokers[to].Name,
			formatMbit(100<<23/time.Since(start).Seconds()))
		service := startMirror(t, ctx, to)
		must(t, checkDatagrams(ctx, clients[from], service, 1200, 1000, 1))
		must(t, checkDatagrams(ctx, clients[from], service, 1200, 1000, 10))
	}
}

// A peer without offloads gets packets that it can take, and its packets arrive.
func TestPeerWithoutOffloads(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	two := brokers[1]
	waitForOffloads(t, two, true)
	t.Cleanup(func() { // runs after the Corefile is back
		waitForOffloads(t, two, true)
		for _, other := range []*fleet.Broker{brokers[0], brokers[2]} {
			waitUntilSettled(t, two, other)
		}
	})
	editCorefile(t, ctx, two, "dns-propagation dns", "dns-propagation dns\noffload off")
	waitForOffloads(t, two, false)
	waitForOffloads(t, brokers[0], true)
	waitUntilSettled(t, two, brokers[0])
	checkTraffic(t, ctx, 0, 1)
}

// Two percent of the packets are lost between the routers, in both directions. Pods notice no loss. The TCP
// connections of the link bound their rate.
func TestLoss(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	const size, limit = 50 << 20, 30 * time.Second
	one, two := brokers[0], brokers[1]
	check := expectUp(t, one, two)
	undoAtEnd(t)(testbed.Loss(ctx, one.Cluster, two.Cluster, 0.02))
	undoAtEnd(t)(testbed.Loss(ctx, two.Cluster, one.Cluster, 0.02))
	for _, way := range [][2]int{{0, 1}, {1, 0}} {
		start := time.Now()
		bounded, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		must(t, transfer(bounded, clients[way[0]], servers[way[1]].service, size, 0))
		took := time.Since(start)
		t.Logf("50 MiB from %s to %s with 2 %% loss: %s, %s", brokers[way[1]].Name, brokers[way[0]].Name,
			took.Round(time.Millisecond), formatMbit(size*8/took.Seconds()))
	}
	for _, way := range [][2]*fleet.Broker{{one, two}, {two, one}} {
		out, err := way[0].Router.Iptables(ctx, "-t", "raw", "-L", "PREROUTING", "-v", "-x", "-n")
		must(t, err)
		var dropped int
		for line := range strings.Lines(out) {
			if strings.Contains(line, "statistic") {
				fmt.Sscan(line, &dropped)
			}
		}
		if dropped < 100 { // of 35,000 in each direction, and the acknowledgements
			t.Errorf("only %d packets were lost on their way to %s", dropped, way[0].Name)
		}
		t.Logf("%d packets were lost on their way to %s", dropped, way[0].Name)
	}
	check()
}

// measurePings sends echo requests for the time of the window, without waiting for answers. It returns the sorted
// round-trip times. A lost request counts as a second.
func measurePings(
	ctx context.Context, from *testbed.Pod, to netip.Addr, window time.Duration,
) (all []time.Duration, lost int) {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	var wg sync.WaitGroup
	var mu sync.Mutex
	for end := time.Now().Add(window); time.Now().Before(end); <-ticker.C {
		wg.Go(func() {
			rtt, err := from.Ping(ctx, to)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				rtt = time.Second
				lost++
			}
			all = append(all, rtt)
		})
	}
	wg.Wait()
	slices.Sort(all)
	return all, lost
}

func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[int(q*float64(len(sorted)-1))]
}

// The line between the clusters has 20 Mbit/s, and its routers buffer 50 ms. Bulk transfers fill it, but the
// round-trip time of a ping beside them is short: packets wait in the router, not in the brokers.
func TestRateLimit(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	const (
		rate   = 20e6
		median = 200 * time.Millisecond // 50 ms are in the queue of the line, which drops packets; TCP repeats them in order
		p90    = 300 * time.Millisecond
		window = 5 * time.Second
	)
	one, two := brokers[0], brokers[1]
	undoAtEnd(t)(testbed.Rate(ctx, one.Cluster, rate, 50*time.Millisecond))
	undoAtEnd(t)(testbed.Rate(ctx, two.Cluster, rate, 50*time.Millisecond))
	idle, lost := measurePings(ctx, clients[0], two.MeshAddress.Addr(), time.Second)
	t.Logf("idle: median %s, p90 %s, %d of %d lost", quantile(idle, 0.5), quantile(idle, 0.9), lost, len(idle))
	for _, flows := range []int{1, 4} {
		t.Run(fmt.Sprintf("%d flows", flows), func(t *testing.T) {
			var streams []*stream
			for range flows {
				s := openStream(ctx, clients[0], servers[1].service, endless, 0)
				defer func() { must(t, s.stop()) }()
				s.waitForBytes(t, 10*time.Second, 64<<10)
				streams = append(streams, s)
			}
			used := make(chan float64, 1)
			go func() { used <- measureSpeed(window, streams...) }()
			loaded, lost := measurePings(ctx, clients[0], two.MeshAddress.Addr(), window)
			t.Logf("loaded: median %s, p90 %s, longest %s, %d of %d lost", quantile(loaded, 0.5), quantile(loaded, 0.9),
				quantile(loaded, 1), lost, len(loaded))
			bits := <-used
			t.Logf("transferred meanwhile: %s", formatMbit(bits))
			if bits < 0.7*rate {
				t.Errorf("the line is not used: %s", formatMbit(bits))
			}
			if m := quantile(loaded, 0.5); m > median {
				t.Errorf("the median round-trip time is %s, over %s", m, median)
			}
			if q := quantile(loaded, 0.9); q > p90 {
				t.Errorf("the 90th percentile of the round-trip times is %s, over %s", q, p90)
			}
		})
	}
}

// residentMemory returns the resident memory of a process in bytes.
func residentMemory(p *testbed.Process) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			var kilobytes int
			_, err := fmt.Sscan(rest, &kilobytes)
			return kilobytes << 10, err
		}
	}
	return 0, errors.New("no VmRSS")
}

// A broker stops for 30 s, with its connections open, while the other brokers send to it as fast as they can. This
// costs neither memory nor the rate of another link. When the broker goes on, its link goes on, too.
//
// Other load of the machine may begin or end between two measures. So the rate may be too low in one round, or two, but
// not in all; a link that really suffers is slow in each.
func TestPeerStopsReading(t *testing.T) {
	ctx := startTest(t, 5*time.Minute)
	const (
		share  = 0.6 // of the rate
		rounds = 3
	)
	most := 64 << 20 // memory
	if inWireGuard() {
		most = 256 << 20 // wireguard-go has 64 KiB for each packet that waits, and 1024 of them per peer and direction
	}
	check := expectUp(t, brokers[0], brokers[1])
	bulk := openStream(ctx, clients[1], servers[0].service, endless, 0)
	defer bulk.stop()
	bulk.waitForBytes(t, time.Minute, 16<<20)
	t.Cleanup(func() { restoreMesh(t) })
	for round := 1; ; round++ {
		r := stopThird(t, ctx, bulk)
		t.Logf("round %d: %s", round, r)
		if r.grown > most {
			t.Errorf("memory grew by %d MiB", r.grown>>20)
		}
		if r.rate >= share*min(r.before, r.after) { // the lower one: the machine has other load, too
			break
		}
		if round == rounds {
			t.Errorf("in each of %d rounds the other link was slow while the third cluster was stopped", rounds)
			break
		}
	}
	must(t, bulk.stop())
	check()
}

// stoppedRound is what was measured of the link between two clusters while the third one was stopped.
type stoppedRound struct {
	before, rate, after float64       // bits per second
	grown               int           // memory, in bytes
	sent                int           // bytes to the third cluster
	back, flows         time.Duration // until its link was up again, and then until traffic flowed
}

func (r *stoppedRound) String() string {
	return fmt.Sprintf("rate of the other link %s, before it was %s, afterwards %s; memory grew by %d MiB; flooded with "+
		"%d MiB; link up %s after it went on, traffic flows after another %s", formatMbit(r.rate), formatMbit(r.before),
		formatMbit(r.after), r.grown>>20, r.sent>>20, r.back, r.flows)
}

// stopThird stops the third broker for 30 s.
func stopThird(t *testing.T, ctx context.Context, bulk *stream) *stoppedRound {
	t.Helper()
	const window = 5 * time.Second
	one, third := brokers[0], brokers[2]
	r := &stoppedRound{before: measureSpeed(window, bulk)}
	base, err := residentMemory(one.Process)
	must(t, err)
	flow := openStream(ctx, clients[2], servers[0].service, endless, 0)
	defer flow.stop()
	flow.waitForBytes(t, time.Minute, 1<<20)
	must(t, third.Process.Kill(syscall.SIGSTOP))
	resume := sync.OnceFunc(func() { must(t, third.Process.Kill(syscall.SIGCONT)) })
	defer resume()
	conn, err := clients[0].DialContext(ctx, "udp", netip.AddrPortFrom(servers[2].service, udpPort).String())
	must(t, err)
	defer conn.Close()
	var wg sync.WaitGroup
	quit := make(chan struct{})
	wg.Go(func() { r.sent = flood(conn, quit) })
	wg.Go(func() { r.grown = largestMemory(one.Process, quit) - base })
	var rates []float64 // other load may use the machine for a while
	for range 6 {
		rates = append(rates, measureSpeed(window, bulk))
	}
	close(quit)
	wg.Wait()
	slices.Sort(rates)
	r.rate = rates[len(rates)/2]
	resume()
	r.back = within(t, 20*time.Second, "link to be up again", func(ctx context.Context) error {
		return errors.Join(third.WaitState(ctx, one.Name, v1alpha1.StateUp), one.WaitState(ctx, third.Name, v1alpha1.StateUp))
	})
	r.flows = waitForReply(t, 10*time.Second, clients[0], servers[2].service)
	must(t, transfer(ctx, clients[2], servers[0].service, 10<<20, 0))
	must(t, flow.stop())
	r.after = measureSpeed(window, bulk)
	return r
}

// flood sends datagrams until quit, and returns how many bytes.
func flood(conn net.Conn, quit <-chan struct{}) (sent int) {
	const (
		burst = 64 << 20 // bytes at full speed,
		pace  = 2 << 20  // and then bytes per second: more would take the processors from the measures
	)
	datagram := make([]byte, 1200)
	start := time.Now()
	for ticker := time.NewTicker(time.Millisecond); ; {
		select {
		case <-quit:
			return sent
		case <-ticker.C:
		}
		for due := burst + int(pace*time.Since(start).Seconds()); sent < due; sent += len(datagram) {
			conn.Write(datagram) // may be refused: soon the link is known to be down
		}
	}
}

// largestMemory watches the resident memory of a process until quit, and returns the most that it had, in bytes.
func largestMemory(p *testbed.Process, quit <-chan struct{}) (largest int) {
	for ticker := time.NewTicker(100 * time.Millisecond); ; {
		if n, err := residentMemory(p); err == nil {
			largest = max(largest, n)
		}
		select {
		case <-quit:
			return largest
		case <-ticker.C:
		}
	}
}

// A link has several connections. The test breaks one after another while transfers run: the link stays Up, every
// flow goes on, and no byte is lost.
func TestConnectionsKilled(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	const kills = 12
	one, two := brokers[0], brokers[1]
	// Wait for several connections at both ends: first in the kernel, which notices a broken connection at once, then in
	// the metrics of the brokers. So the next connection to break is not the last one.
	several := func() (conns [2][]testbed.Connection, took time.Duration) {
		t.Helper()
		took = within(t, 10*time.Second, "several connections", func(ctx context.Context) (err error) {
			for i, side := range [][2]*fleet.Broker{{one, two}, {two, one}} {
				if conns[i], err = side[0].Gateway().Connections(ctx, side[1].PublicAddress); err != nil {
					return err
				}
				if len(conns[i]) < 2 {
					return fmt.Errorf("%s has %v", side[0].Name, conns[i])
				}
			}
			for _, side := range [][2]*fleet.Broker{{one, two}, {two, one}} {
				n, err := countConnections(ctx, side[0], side[1].Name)
				if err != nil {
					return err
				}
				if n < 2 {
					return fmt.Errorf("%s counts %d", side[0].Name, n)
				}
			}
			return nil
		})
		return conns, took
	}
	several()
	check := expectUp(t, one, two)
	whole := openStream(ctx, clients[0], servers[1].service, 96<<20, 16<<20) // 6 s at least
	streams := []*stream{whole}
	for _, way := range [][2]int{{0, 1}, {0, 1}, {1, 0}, {1, 0}} {
		streams = append(streams, openStream(ctx, clients[way[0]], servers[way[1]].service, endless, 0))
	}
	defer func() {
		for _, s := range streams {
			s.stop()
		}
	}()
	var n int
	var longest time.Duration
	for done := false; !done || n < kills; n++ {
		for _, s := range streams {
			longest = max(longest, s.waitForBytes(t, 10*time.Second, 256<<10))
		}
		conns, _ := several()
		i := n % 2 // alternately at both ends, and there one connection after another
		must(t, []*testbed.Node{one.Gateway(), two.Gateway()}[i].KillConnection(ctx, conns[i][n/2%len(conns[i])]))
		select {
		case <-whole.done:
			done = true
		default:
		}
	}
	must(t, whole.wait())
	var total int64
	for _, s := range streams {
		s.waitForBytes(t, 10*time.Second, 256<<10)
		must(t, s.stop())
		total += s.got.Load()
	}
	_, again := several()
	t.Logf(
		"%d connections were broken, %d MiB transferred, a flow stood still for %s at most, the last was replaced after %s",
		n, total>>20, longest.Round(time.Millisecond), again)
	check()
}

// The test kills the brokers of both ends during a transfer, first the receiving, then the sending one. The transfer
// goes on when they are back, and no byte is lost.
func TestBrokersKilledDuringTransfer(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	t.Cleanup(func() { restoreMesh(t) })
	const size = 64 << 20
	bulk := openStream(ctx, clients[0], servers[1].service, size, 8<<20)
	defer bulk.stop()
	for _, b := range brokers[:2] {
		bulk.waitForBytes(t, 10*time.Second, 4<<20)
		must(t, b.Kill(ctx, syscall.SIGKILL))
		killed := bulk.got.Load()
		must(t, b.Start(ctx))
		ready := time.Now()
		// Packets on their way may still arrive: only more than that is progress.
		within(t, 15*time.Second, "transfer to go on", func(context.Context) error {
			if n := bulk.got.Load(); n < killed+1<<20 {
				return fmt.Errorf("at byte %d", n)
			}
			return nil
		})
		t.Logf("%s was killed at byte %d of %d, and the transfer went on %s after it was ready again", b.Name, killed, size,
			time.Since(ready).Round(time.Millisecond))
	}
	if bulk.got.Load() == size {
		t.Error("the transfer was over before it was disturbed")
	}
	must(t, bulk.wait())
	must(t, f.WaitMesh(ctx))
}

// pingWhole sends an echo request with size bytes of data that must not be fragmented. It sends one: the first packet
// gets through a link that is Up.
func pingWhole(from *testbed.Host, to netip.Addr, size int) error {
	var c net.PacketConn
	err := from.Do(func() error {
		config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
			return errors.Join(raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
			}), err)
		}}
		var err error
		c, err = config.ListenPacket(context.Background(), "ip4:icmp", "0.0.0.0")
		return err
	})
	if err != nil {
		return err
	}
	defer c.Close()
	data := make([]byte, size)
	rand.NewChaCha8(seed).Read(data)
	request := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: size, Seq: 1, Data: data}}
	packet, err := request.Marshal(nil)
	if err != nil {
		return err
	}
	if _, err := c.WriteTo(packet, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return err
	}
	c.SetReadDeadline(time.Now().Add(requestTime))
	var refused error // by an ICMP error
	for buffer := make([]byte, 64<<10); ; {
		n, from, err := c.ReadFrom(buffer)
		if err != nil {
			return errors.Join(err, refused)
		}
		reply, err := icmp.ParseMessage(1, buffer[:n])
		if err != nil {
			continue
		}
		switch echo, ok := reply.Body.(*icmp.Echo); {
		case ok && reply.Type == ipv4.ICMPTypeEchoReply && echo.ID == size && bytes.Equal(echo.Data, data):
			return nil
		case reply.Type == ipv4.ICMPTypeDestinationUnreachable:
			refused = fmt.Errorf("%s says: %v, code %d", from, reply.Type, reply.Code)
		}
	}
}

// tcpInfo returns the kernel's data of a TCP connection.
func tcpInfo(conn net.Conn) (info *unix.TCPInfo, err error) {
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	e := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	return info, errors.Join(e, err)
}

// Pods need no setting for any MTU of their cable, and no fragments appear.
func TestMTU(t *testing.T) {
	ctx := startTest(t, time.Minute)
	counters := func() (all []int) {
		for _, b := range brokers[:2] {
			for _, h := range []*testbed.Host{b.Gateway().Host, b.Router} {
				n, err := h.Counter(ctx, "Ip", "FragCreates")
				must(t, err)
				all = append(all, n)
			}
		}
		return all
	}
	before := counters()

	mtu := linkMTU()
	t.Run(fmt.Sprintf("ping of %d", mtu), func(t *testing.T) {
		for _, way := range [][2]int{{0, 1}, {1, 0}} {
			if err := pingWhole(clients[way[0]].Host, brokers[way[1]].MeshAddress.Addr(), mtu-28); err != nil {
				t.Errorf("from %s: %v", clients[way[0]].Name, err)
			}
		}
	})
	mss := uint32(mtu - 40)
	t.Run(fmt.Sprintf("MSS of %d", mss), func(t *testing.T) {
		for _, way := range [][2]int{{0, 1}, {1, 0}} {
			conn, err := clients[way[0]].DialContext(ctx, "tcp", netip.AddrPortFrom(servers[way[1]].service, 80).String())
			must(t, err)
			defer conn.Close()
			info, err := tcpInfo(conn)
			must(t, err)
			sent, announced := info.Snd_mss, info.Advmss
			if info.Options&1 != 0 { // time stamps take 12 bytes of each segment, which are not in these numbers
				sent, announced = sent+12, announced+12
			}
			// The gateway clamps the MSS that the other side announces.
			if sent != mss || announced != 1460 || info.Pmtu != 1500 {
				t.Errorf("from %s: segments of %d, announced %d, path MTU %d", clients[way[0]].Name, sent, announced, info.Pmtu)
			}
		}
	})

	type own struct {
		pod     *testbed.Pod
		service netip.Addr
	}
	pod := func(cluster int, name string, mtu int) own {
		t.Helper()
		b := brokers[cluster]
		p, err := b.Pod(ctx, name, testbed.PodOptions{})
		must(t, err)
		t.Cleanup(func() {
			ctx := context.Background()
			must(t, b.Client.Delete(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}))
			must(t, p.Delete(ctx))
		})
		_, err = p.SetMTU(mtu) // ends with the pod
		must(t, err)
		must(t, p.ServeHTTP(80, http.HandlerFunc(serveBulk)))
		must(t, p.ServeUDPEcho(udpPort))
		service, err := b.Service(ctx, name, map[string]string{"app": name},
			[]corev1.ServicePort{testbed.TCPPort(80), testbed.UDPPort(udpPort)}, testbed.ServiceOptions{})
		must(t, err)
		return own{p, service}
	}
	usual := own{clients[1], servers[1].service}
	large, narrow, other := pod(0, "mtu9000", 9000), pod(1, "mtu1400", 1400), pod(1, "mtu9000", 9000)
	for _, c := range []struct {
		name string
		a, b own
	}{
		{"9000 and 1500", large, usual},
		{"9000 and 1400", large, narrow},
		{"9000 and 9000", large, other},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, way := range [][2]own{{c.a, c.b}, {c.b, c.a}} {
				start := time.Now()
				must(t, transfer(ctx, way[0].pod, way[1].service, 10<<20, 0))
				t.Logf("10 MiB to %s: %s", way[0].pod.Name, time.Since(start).Round(time.Millisecond))
			}
		})
	}
	// A datagram that must not be fragmented is too large for the last cable. Its sender, in the other cluster, gets an
	// error.
	t.Run("path MTU", func(t *testing.T) {
		conn, err := clients[0].DialContext(ctx, "udp", netip.AddrPortFrom(narrow.service, udpPort).String())
		must(t, err)
		defer conn.Close()
		raw, err := conn.(*net.UDPConn).SyscallConn()
		must(t, err)
		must(t, raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
		}))
		must(t, err)
		within(t, 5*time.Second, "path MTU of 1400", func(context.Context) error {
			conn.Write(make([]byte, mtu-28)) // fails when the MTU is known
			var now int
			raw.Control(func(fd uintptr) { now, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU) })
			if err == nil && now != 1400 {
				err = fmt.Errorf("it is %d", now)
			}
			return err
		})
		within(t, 5*time.Second, "answer to what fits", func(context.Context) error {
			// the socket may still report the error of the previous datagram
			if _, err := conn.Write(make([]byte, 1372)); err != nil {
				return err
			}
			conn.SetReadDeadline(time.Now().Add(time.Second))
			_, err := conn.Read(make([]byte, 64))
			return err
		})
	})
	if after := counters(); !slices.Equal(before, after) {
		t.Errorf("fragments were made by gateways or routers: %v, before %v", after, before)
	}
}
