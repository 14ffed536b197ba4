package e2e

// What a gateway node has to do with links: its firewall, its settings, and the ports that links do not open.

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/fleet"
)

// tellKernel has the broker look at its node now: a link to the third cluster gets another network.
func tellKernel(t *testing.T, ctx context.Context, b *fleet.Broker, network v1alpha1.EgressCIDR) {
	t.Helper()
	changed := brokers[2].LinkTo()
	changed.Spec.Egress = []v1alpha1.EgressCIDR{network}
	must(t, b.Apply(ctx, changed))
}

// waitForRoute waits until the broker's node has a route of it.
func waitForRoute(t *testing.T, b *fleet.Broker, network string) {
	t.Helper()
	within(t, 10*time.Second, "route to "+network, func(ctx context.Context) error {
		routes, err := brokerRoutes(ctx, b)
		if err == nil && !strings.Contains(routes, network) {
			err = errors.New(routes)
		}
		return err
	})
}

// Things on the gateway node that are in the way of links. Each is set right when the broker looks, or named.
func TestNodeInTheWay(t *testing.T) {
	ctx := startTest(t, 3*time.Minute)
	defer restoreMesh(t)
	b, gw := brokers[0], brokers[0].Gateway()
	bothWays := func(t *testing.T) {
		t.Helper()
		waitForReply(t, 10*time.Second, clients[0], servers[1].service)
		waitForReply(t, 10*time.Second, clients[1], servers[0].service)
	}
	run := func(t *testing.T, name string, args ...string) string { // also when the time of the test is over
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		out, err := gw.Run(ctx, name, args...)
		must(t, err)
		return out
	}
	fails := func(t *testing.T, what string) {
		t.Helper()
		within(t, 5*time.Second, what, func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
			defer cancel()
			if _, err := clients[1].Get(ctx, "http://"+servers[0].service.String()+"/"); err == nil {
				return errors.New("a request gets through")
			}
			return nil
		})
	}

	t.Run("a REJECT before the hook of FORWARD", func(t *testing.T) {
		reject := []string{"FORWARD", "-j", "REJECT", "--reject-with", "icmp-host-prohibited"}
		run(t, "iptables", append([]string{"-w", "-I"}, reject...)...)
		t.Cleanup(func() { run(t, "iptables", append([]string{"-w", "-D"}, reject...)...) })
		fails(t, "the REJECT to work")
		tellKernel(t, ctx, b, "10.81.0.0/16")
		bothWays(t)
	})
	t.Run("forwarding is off for the device", func(t *testing.T) {
		must(t, gw.Sysctl("net.ipv4.conf.kubelink.forwarding=0"))
		fails(t, "the setting to work")
		tellKernel(t, ctx, b, "10.82.0.0/16")
		bothWays(t)
	})
	t.Run("a rule made with nft in table nat", func(t *testing.T) {
		waitForRoute(t, b, "10.82.0.0/16")
		check := expectNoFailures(t, clients[0], servers[1].service)
		defer check()
		run(t, "nft", "insert", "rule", "ip", "nat", "POSTROUTING", "numgen", "random", "mod", "2", "==", "0", "counter")
		handle := regexp.MustCompile(`numgen .* # handle (\d+)`).FindStringSubmatch(
			run(t, "nft", "-a", "list", "chain", "ip", "nat", "POSTROUTING"))[1]
		remove := sync.OnceFunc(func() { run(t, "nft", "delete", "rule", "ip", "nat", "POSTROUTING", "handle", handle) })
		t.Cleanup(remove)
		for i := range 3 {
			network := fmt.Sprintf("10.%d.0.0/16", 90+i)
			tellKernel(t, ctx, b, v1alpha1.EgressCIDR(network))
			must(t, b.WaitState(ctx, b.Name, v1alpha1.StateError, "chain KLINK-POSTROUTING of IPv4: table nat: ",
				"made with nft", "move that rule to a table of its own"))
			if routes, err := brokerRoutes(ctx, b); err != nil || strings.Contains(routes, network) {
				t.Errorf("a new route without source NAT: %v\n%s", err, routes)
			}
		}
		if jumps := strings.Count(run(t, "nft", "list", "chain", "ip", "nat", "POSTROUTING"), "jump KLINK-"); jumps != 1 {
			t.Errorf("%d hooks in POSTROUTING, want 1", jumps)
		}
		remove()
		tellKernel(t, ctx, b, "10.93.0.0/16")
		waitForRoute(t, b, "10.93.0.0/16")
		must(t, b.WaitState(ctx, b.Name, v1alpha1.StateUp))
		bothWays(t)
	})
	t.Run("no IPv6", func(t *testing.T) {
		dir := t.TempDir()
		for _, name := range []string{"ip6tables-nft", "ip6tables-nft-save", "ip6tables-nft-restore"} {
			script := "#!/bin/sh\necho \"can't initialize ip6tables table: " +
				"Address family not supported by protocol\" >&2\nexit 3\n"
			must(t, os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755))
		}
		restart := func(env ...string) {
			t.Helper()
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			must(t, b.Kill(ctx, syscall.SIGTERM))
			b.Env = env
			must(t, b.Start(ctx)) // it waits until the broker is ready
		}
		t.Cleanup(func() { restart() })
		restart("PATH=" + dir + ":" + os.Getenv("PATH"))
		bothWays(t)
		must(t, b.WaitState(ctx, b.Name, v1alpha1.StateUp))
	})
}

// A linked cluster pings the address of another one and reaches its services, and no port of its gateway node: none of
// a process, and no node port.
func TestPortsOfTheNode(t *testing.T) {
	ctx := startTest(t, time.Minute)
	b, gw := brokers[0], brokers[0].Gateway()
	const process = 8124
	must(t, gw.ServeHTTPEcho(process))
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "server-node-port", Namespace: "default"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, Selector: map[string]string{"app": "server"},
			Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(httpPort)}},
		},
	}
	createForTest(t, ctx, b, service)
	nodePort := int(service.Spec.Ports[0].NodePort)
	url := func(address netip.Addr, port int) string {
		return "http://" + netip.AddrPortFrom(address, uint16(port)).String() + "/"
	}
	for _, port := range []int{process, nodePort} {
		within(t, 10*time.Second, "port "+strconv.Itoa(port)+" for the node's own pods", func(ctx context.Context) error {
			_, err := clients[0].Get(ctx, url(gw.Address, port))
			return err
		})
	}

	var wg sync.WaitGroup
	for _, port := range []int{process, nodePort, 1053} {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			conn, err := clients[1].DialContext(ctx, "tcp", netip.AddrPortFrom(b.MeshAddress.Addr(), uint16(port)).String())
			if err == nil {
				conn.Close()
				t.Errorf("a linked cluster reaches port %d of the gateway node", port)
			}
		})
	}
	wg.Wait()
	_, err := clients[1].Ping(ctx, b.MeshAddress.Addr())
	must(t, err)
	waitForReply(t, 2*time.Second, clients[1], servers[0].service)
}
