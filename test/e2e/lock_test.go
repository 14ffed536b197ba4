package e2e

// Names while the kernel cannot be told: iptables waits for the lock of xtables, which another program holds. Only the
// legacy iptables takes that lock, the one on nf_tables needs none.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/fleet"
)

const (
	// xtablesLock is where iptables has its lock. Each pod of the test bed has a /run of its own: no other program waits.
	xtablesLock = "/run/xtables.lock"
	// lockHeld is how long the broker's iptables waits; it would give up after 10 s.
	lockHeld = 8 * time.Second
)

// While the broker's iptables waits for the lock of xtables, a peer dies. The names of its cluster fail within a
// second, as at any other time, and the healthy link carries on.
func TestLinkLostWhileXtablesIsLocked(t *testing.T) {
	ctx := startTest(t, 4*time.Minute)
	b := brokers[0]
	iptables := useLegacyIptables(t, ctx, b)
	for _, c := range []struct {
		name    string
		stopAPI bool
		network v1alpha1.EgressCIDR // makes the broker tell the kernel
	}{
		{"API server runs", false, "10.79.0.0/16"},
		{"API server stopped", true, "10.80.0.0/16"},
	} {
		t.Run(c.name, func(t *testing.T) {
			reviveBrokers(t)
			check := expectNoFailures(t, clients[0], servers[2].service)
			defer check()
			release := holdXtablesLock(t, ctx, b, iptables)
			changed := brokers[2].LinkTo()
			changed.Spec.Egress = []v1alpha1.EgressCIDR{c.network}
			must(t, b.Apply(ctx, changed))
			var waiting int
			within(t, 5*time.Second, "iptables to wait", func(context.Context) (err error) {
				waiting, err = findIptables(b)
				return err
			})
			held := time.NewTimer(lockHeld)
			if c.stopAPI {
				stopAPIServer(t, ctx, b)
			}

			must(t, brokers[1].Kill(ctx, syscall.SIGKILL))
			expectDead(t, b, 1)
			if now, err := findIptables(b); err != nil || now != waiting {
				t.Errorf("iptables with process id %d did not wait so long: now %d, %v", waiting, now, err)
			}
			if text, err := brokerRoutes(ctx, b); err != nil || strings.Contains(text, string(c.network)) {
				t.Errorf("the change is in the kernel before iptables was done (%v):\n%s", err, text)
			}

			<-held.C
			must(t, release())
			within(t, 5*time.Second, "change to be applied", func(ctx context.Context) error {
				text, err := brokerRoutes(ctx, b)
				if err == nil && !strings.Contains(text, string(c.network)) {
					err = errors.New(text)
				}
				return err
			})
			must(t, checkFailure(ctx, b, serverName(1), "link kubelink2 is Down"))

			if c.stopAPI {
				must(t, b.StartAPIServer(ctx))
				must(t, b.WaitReady(ctx))
			}
			must(t, b.Apply(ctx, brokers[2].LinkTo()))
			must(t, brokers[1].Start(ctx))
			must(t, f.WaitMesh(ctx))
			must(t, checkAnswer(ctx, b, serverName(1), servers[1].service))
		})
	}
}

// iptables of the broker never ends, as where nf_tables is stuck. Names and links go on, the LocalLink says it, and the
// broker ends in the time that a pod has for that.
func TestIptablesNeverEnds(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	reviveBrokers(t)
	b, dir := brokers[0], t.TempDir()
	stuck := filepath.Join(dir, "stuck")
	for _, name := range []string{"iptables-nft", "ip6tables-nft"} {
		for _, suffix := range []string{"-save", "-restore"} {
			program, err := exec.LookPath(name + suffix)
			must(t, err)
			script := "#!/bin/sh\n[ -e " + stuck + " ] && exec sleep infinity\nexec " + program + " \"$@\"\n"
			must(t, os.WriteFile(filepath.Join(dir, name+suffix), []byte(script), 0o755))
		}
	}
	must(t, b.Kill(ctx, syscall.SIGTERM))
	b.Env = []string{"PATH=" + dir + ":" + os.Getenv("PATH")}
	t.Cleanup(func() { b.Env = nil })
	must(t, b.Start(ctx))
	must(t, f.WaitMesh(ctx))

	check := expectNoFailures(t, clients[0], servers[2].service)
	must(t, os.WriteFile(stuck, nil, 0o644))
	tellKernel(t, ctx, b, "10.83.0.0/16")
	must(t, brokers[1].Kill(ctx, syscall.SIGKILL))
	expectDead(t, b, 1)
	must(t, b.WaitState(ctx, "kubelink2", v1alpha1.StateDown))
	must(t, b.WaitState(ctx, b.Name, v1alpha1.StateError, "iptables-nft-save does not end", "xtables lock"))
	check()

	began := time.Now()
	must(t, b.Kill(ctx, syscall.SIGTERM))
	const limit = 28 * time.Second // a pod has 30 s
	if took := time.Since(began); took > limit {
		t.Errorf("the broker took %s to end, want %s", took, limit)
	}
	must(t, os.Remove(stuck))
	b.Env = nil
	must(t, b.Start(ctx))
	must(t, brokers[1].Start(ctx))
	restoreMesh(t)
}

// expectDead checks that names of a cluster fail within a second after its broker. A query may be under way to it when
// the link is lost, so none is waited for long.
func expectDead(t *testing.T, b *fleet.Broker, cluster int) {
	t.Helper()
	took := within(t, lossTime(), "names of the dead peer to fail", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		return checkFailure(ctx, b, serverName(cluster), fmt.Sprintf("link kubelink%d is Down", cluster+1))
	})
	t.Logf("names failed %s after the peer", took)
}

// useLegacyIptables makes the gateway's node one whose kubelet uses the legacy iptables, until the test ends, and
// returns its name. The broker moves its chains, and no request is lost.
func useLegacyIptables(t *testing.T, ctx context.Context, b *fleet.Broker) (iptables string) {
	t.Helper()
	iptables = "iptables-legacy"
	check := expectNoFailures(t, clients[0], servers[2].service)
	hint := func(ctx context.Context, option string) {
		t.Helper()
		_, err := b.Host.Run(ctx, iptables, "-w", "-t", "mangle", option, "KUBE-IPTABLES-HINT")
		must(t, err)
	}
	hint(ctx, "-N")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		hint(ctx, "-X")
		must(t, b.Kill(ctx, syscall.SIGTERM))
		must(t, b.Start(ctx))
		must(t, f.WaitMesh(ctx))
	})
	tellKernel(t, ctx, b, "10.78.0.0/16")
	within(t, 5*time.Second, "the chains to move", func(ctx context.Context) error {
		legacy, err := b.Host.Run(ctx, "iptables-legacy-save")
		if err != nil {
			return err
		}
		nft, err := b.Host.Run(ctx, "iptables-nft-save")
		if err == nil && (!strings.Contains(legacy, "-j KLINK-POSTROUTING") || strings.Contains(nft, "KLINK-")) {
			err = fmt.Errorf("legacy:\n%s\nnft:\n%s", legacy, nft)
		}
		return err
	})
	metrics, err := b.Host.Get(ctx, fleet.MetricsURL)
	const want = `coredns_kubelink_iptables_backend_info{backend="legacy",family="IPv4"} 1`
	if must(t, err); !strings.Contains(metrics, want) {
		t.Errorf("the metrics lack %s", want)
	}
	check()
	return iptables
}

// holdXtablesLock holds the lock that the broker's iptables takes, until it is released or the test ends.
func holdXtablesLock(t *testing.T, ctx context.Context, b *fleet.Broker, iptables string) (release func() error) {
	t.Helper()
	holder, err := b.Host.Start(ctx, "lock", nil, "flock", "--no-fork", xtablesLock, "sleep", "infinity")
	must(t, err)
	release = func() error {
		if err := holder.Kill(syscall.SIGKILL); err != nil {
			return err
		}
		select {
		case <-holder.Done():
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	t.Cleanup(func() { release() })
	within(t, 5*time.Second, "the lock to be held", func(ctx context.Context) error {
		select {
		case <-holder.Done():
			return fmt.Errorf("flock has ended: %s", holder.Log())
		default:
		}
		_, err := b.Host.Run(ctx, "flock", "--nonblock", xtablesLock, "true")
		if err == nil {
			return errors.New("it is free")
		}
		return nil
	})
	_, err = b.Host.Run(ctx, iptables, "-w", "1", "-S")
	if err == nil || !strings.Contains(err.Error(), "xtables lock") {
		t.Fatalf("iptables does not wait for the lock: %v", err)
	}
	return release
}

// findIptables returns the id of the iptables-restore process that the broker waits for. The kernel shortens names of
// processes.
func findIptables(b *fleet.Broker) (int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	for _, file := range files {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		// The format is "PID (NAME) STATE PARENT ...", proc_pid_stat(5).
		pid, rest, _ := strings.Cut(string(stat), " (")
		_, rest, _ = strings.Cut(rest, ") ")
		fields := strings.Fields(rest)
		if len(fields) < 2 || fields[1] != strconv.Itoa(b.Process.PID()) {
			continue
		}
		command, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline"))
		if strings.HasPrefix(string(command), "iptables-legacy-restore\x00") {
			return strconv.Atoi(pid)
		}
	}
	return 0, errors.New("the broker runs no iptables")
}

// stopAPIServer stops the API server of the broker's cluster and waits until the broker has noticed. It starts again no
// later than the test ends.
func stopAPIServer(t *testing.T, ctx context.Context, b *fleet.Broker) {
	t.Helper()
	must(t, b.StopAPIServer(ctx))
	t.Cleanup(func() {
		if t.Failed() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			b.StartAPIServer(ctx)
		}
	})
	within(t, 5*time.Second, "the broker to miss the API server", func(ctx context.Context) error {
		v, err := b.Metric(ctx, "coredns_kubelink_api_up")
		if err == nil && v != 0 {
			err = fmt.Errorf("api_up is %g", v)
		}
		return err
	})
}

// brokerRoutes are those of the broker in its node.
func brokerRoutes(ctx context.Context, b *fleet.Broker) (string, error) {
	return b.Gateway().Run(ctx, "ip", "route", "show", "table", "all", "proto", "107")
}
