package e2e

// Names besides the names of services: facts about clusters, and answers for names while their cluster cannot be
// asked.

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/mandelsoft/kubelink/test/fleet"
)

// checkStaleAnswer checks that a name has the address in a stale answer.
func checkStaleAnswer(ctx context.Context, b *fleet.Broker, name string, want netip.Addr, texts ...string) error {
	start := time.Now()
	m, reason, err := queryBroker(ctx, b, "udp", name, dns.TypeA)
	if err != nil {
		return err
	}
	opt := m.IsEdns0()
	if len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != want.String() || opt == nil || len(opt.Option) != 1 {
		return fmt.Errorf("%s: %v", name, m)
	}
	if code := opt.Option[0].(*dns.EDNS0_EDE).InfoCode; code != dns.ExtendedErrorCodeStaleAnswer {
		return fmt.Errorf("%s: Extended DNS Error %d %q", name, code, reason)
	}
	for _, text := range texts {
		if !strings.Contains(reason, text) {
			return fmt.Errorf("%s: the reason %q does not contain %q", name, reason, text)
		}
	}
	if took := time.Since(start); took > 500*time.Millisecond {
		return fmt.Errorf("%s: the answer took %s", name, took)
	}
	return nil
}

func querySingle(ctx context.Context, b *fleet.Broker, name string, kind uint16) (string, error) {
	m, reason, err := queryBroker(ctx, b, "udp", name, kind)
	if err != nil {
		return "", err
	}
	if len(m.Answer) != 1 {
		return "", fmt.Errorf("%s %s: %s %q %v", name, dns.TypeToString[kind], dns.RcodeToString[m.Rcode], reason, m.Answer)
	}
	return strings.TrimPrefix(m.Answer[0].String(), m.Answer[0].Header().String()), nil
}

// reviveBrokers starts the brokers that a failed test has left dead.
func reviveBrokers(t *testing.T) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for _, b := range brokers {
			select {
			case <-b.Process.Done():
				must(t, b.Start(ctx))
			default:
			}
		}
	})
}

func TestFactsAsNames(t *testing.T) {
	ctx := startTest(t, time.Minute)
	reviveBrokers(t)
	b := brokers[0]
	reverse := func(a netip.Addr) string {
		name, err := dns.ReverseAddr(a.String())
		must(t, err)
		return name
	}
	must(t, checkAnswer(ctx, b, "kubelink2.kubelink.", brokers[1].MeshAddress.Addr()))
	for _, c := range []struct {
		name string
		kind uint16
		want string // beginning of the answer
	}{
		{reverse(brokers[1].MeshAddress.Addr()), dns.TypePTR, "kubelink2.kubelink."},
		{reverse(b.MeshAddress.Addr()), dns.TypePTR, "kubelink1.kubelink."},
		{reverse(servers[1].service), dns.TypePTR, "server.default.svc.kubelink2.kubelink."},
		{reverse(servers[0].service), dns.TypePTR, "server.default.svc.kubelink1.kubelink."},
		{"_state.kubelink2.kubelink.", dns.TypeTXT, `"state=Up" "since=20`},
		{"_state.kubelink1.kubelink.", dns.TypeTXT, `"state=Local"`},
	} {
		if got, err := querySingle(ctx, b, c.name, c.kind); err != nil || !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: %s, %v; want %s", c.name, got, err, c.want)
		}
	}
	within(t, 5*time.Second, "a round-trip time", func(ctx context.Context) error {
		got, err := querySingle(ctx, b, "_state.kubelink2.kubelink.", dns.TypeTXT)
		if err == nil && !strings.Contains(got, `"rtt=`) {
			err = fmt.Errorf("%s", got)
		}
		return err
	})

	// All these names follow the link.
	must(t, brokers[1].Kill(ctx, syscall.SIGKILL))
	within(t, lossTime(), "the loss to show", func(ctx context.Context) error {
		for _, name := range []string{"kubelink2.kubelink.", serverName(1)} {
			if err := checkFailure(ctx, b, name, "link kubelink2 is Down"); err != nil {
				return err
			}
		}
		for _, name := range []string{reverse(brokers[1].MeshAddress.Addr()), reverse(servers[1].service)} {
			if m, reason, err := queryBroker(ctx, b, "udp", name, dns.TypePTR); err != nil ||
				m.Rcode != dns.RcodeServerFailure || !strings.Contains(reason, "link kubelink2 is Down") {
				return fmt.Errorf("%s: %v %v", name, m, err)
			}
		}
		got, err := querySingle(ctx, b, "_state.kubelink2.kubelink.", dns.TypeTXT)
		if err == nil && (!strings.HasPrefix(got, `"state=Down" "since=20`) || !strings.Contains(got, `"reason=`)) {
			err = fmt.Errorf("%s", got)
		}
		return err
	})
	must(t, brokers[1].Start(ctx))
	within(t, returnTime(), "the return to show", func(ctx context.Context) error {
		if got, err := querySingle(ctx, b, reverse(servers[1].service), dns.TypePTR); err != nil || got != serverName(1) {
			return fmt.Errorf("%s, %v", got, err)
		}
		return checkAnswer(ctx, b, serverName(1), servers[1].service)
	})
	must(t, f.WaitMesh(ctx))
}

func TestServeStale(t *testing.T) {
	ctx := startTest(t, time.Minute)
	reviveBrokers(t)
	b := brokers[0]
	editCorefile(t, ctx, b, "\n    kubelink {\n", "\n    kubelink {\n        serve-stale 1h\n")
	must(t, checkAnswer(ctx, b, serverName(1), servers[1].service))
	must(t, brokers[1].Kill(ctx, syscall.SIGKILL))
	within(t, lossTime(), "a stale answer", func(ctx context.Context) error {
		return checkStaleAnswer(ctx, b, serverName(1), servers[1].service, "link kubelink2 is Down")
	})
	must(t, checkFailure(ctx, b, "nobody."+serverName(1), "link kubelink2 is Down"))
	must(t, brokers[1].Start(ctx))
	within(t, returnTime(), "an answer that is not stale", func(ctx context.Context) error {
		m, reason, err := queryBroker(ctx, b, "udp", serverName(1), dns.TypeA)
		if err == nil && (len(m.Answer) != 1 || reason != "") {
			err = fmt.Errorf("%v", m)
		}
		return err
	})
}

// A broker that starts while the API server is away answers what the broker before it knew.
func TestStateDir(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	reviveBrokers(t)
	b := brokers[2]
	dir := t.TempDir()
	editCorefile(t, ctx, b, "\n    kubelink {\n", "\n    kubelink {\n        state-dir "+dir+"\n")
	within(t, 5*time.Second, "the objects to be kept", func(context.Context) error {
		_, err := os.Stat(filepath.Join(dir, "objects.json"))
		return err
	})
	must(t, checkAnswer(ctx, b, serverName(0), servers[0].service))
	must(t, b.Kill(ctx, syscall.SIGTERM))
	must(t, b.StopAPIServer(ctx))
	start := time.Now()
	must(t, b.Launch())
	within(t, 10*time.Second, "the answer of before", func(ctx context.Context) error {
		return checkStaleAnswer(ctx, b, serverName(0), servers[0].service, "link kubelink1 is")
	})
	t.Logf("answered %s after its start, without API server", time.Since(start))
	must(t, checkFailure(ctx, b, "unknown."+serverName(0), "the API server has not told the links yet"))
	if m, _, err := queryBroker(ctx, b, "udp", "nobody.kubelink.", dns.TypeA); err != nil ||
		m.Rcode != dns.RcodeNameError {
		t.Errorf("%v, %v", m, err)
	}
	must(t, b.StartAPIServer(ctx))
	must(t, b.WaitReady(ctx))
	must(t, f.WaitMesh(ctx))

	// A full disk keeps it from nothing but keeping.
	must(t, b.Kill(ctx, syscall.SIGTERM))
	must(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=4k"))
	full := true
	empty := func() {
		if full {
			full = false
			must(t, syscall.Unmount(dir, 0))
		}
	}
	t.Cleanup(empty)
	must(t, os.WriteFile(filepath.Join(dir, "fill"), make([]byte, 4<<10), 0o600))
	must(t, b.Start(ctx))
	must(t, f.WaitMesh(ctx))
	must(t, checkAnswer(ctx, b, serverName(0), servers[0].service))
	must(t, b.Kill(ctx, syscall.SIGTERM))
	empty()
	must(t, b.Start(ctx))
	must(t, f.WaitMesh(ctx))

	// It does so while a peer is away, too.
	must(t, b.Kill(ctx, syscall.SIGTERM))
	must(t, brokers[0].Kill(ctx, syscall.SIGKILL))
	must(t, b.Start(ctx))
	must(t, checkStaleAnswer(ctx, b, serverName(0), servers[0].service, "link kubelink1 is"))
	must(t, brokers[0].Start(ctx))
	must(t, f.WaitMesh(ctx))
	must(t, checkAnswer(ctx, b, serverName(0), servers[0].service))
	must(t, brokers[0].Kill(ctx, syscall.SIGKILL))
	// earlier answers are of no use any more
	within(t, lossTime(), "the loss to show", func(ctx context.Context) error {
		return checkFailure(ctx, b, serverName(0), "link kubelink1 is Down")
	})
	must(t, brokers[0].Start(ctx))
	must(t, f.WaitMesh(ctx))
}
