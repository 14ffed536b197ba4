package testbed

// This file tests the test bed itself, on two clusters: that it has what other tests use, and that nothing stays
// behind.

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const holdVar = "KUBELINK_TESTBED_TEST_HOLD" // set in the test process that is the test bed to be killed

func TestMain(m *testing.M) {
	os.Exit(Main(func() int {
		if os.Getenv(holdVar) != "" {
			return holdHosts()
		}
		return m.Run()
	}))
}

func TestTestbed(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	start := time.Now()
	b, err := New(ctx, 2, Options{Nodes: 2, CoreDNS: coreDNS(t), Progress: func(what string) {
		t.Logf("%5.1fs %s", time.Since(start).Seconds(), what)
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		check(t, b.Close())
		again := must(New(context.Background(), 0, Options{}))(t) // nothing is in the way of the next test bed
		check(t, again.Close())
	})
	b.DumpOnFailure(t)
	one, two := b.Clusters[0], b.Clusters[1]

	// The same pods in both clusters: a server on the gateway node, clients on both nodes.
	type pods struct{ server, near, far *Pod }
	var all []pods
	var services []netip.Addr
	for _, c := range b.Clusters {
		var p pods
		p.server = must(c.Pod(ctx, "server", PodOptions{}))(t)
		p.near = must(c.Pod(ctx, "near", PodOptions{}))(t)
		p.far = must(c.Pod(ctx, "far", PodOptions{Node: c.Nodes[1]}))(t)
		check(t, p.server.ServeHTTPEcho(8080))
		check(t, p.server.ServeUDPEcho(5353))
		web := TCPPort(80)
		web.TargetPort.IntVal = 8080
		services = append(services, must(c.Service(ctx, "web", map[string]string{"app": "server"},
			[]corev1.ServicePort{web, UDPPort(5353)}, ServiceOptions{}))(t))
		all = append(all, p)
	}

	t.Run("networks are identical, service networks are not", func(t *testing.T) {
		if a, b := all[0].server.Address, all[1].server.Address; a != b {
			t.Errorf("server pods have %s and %s", a, b)
		}
		for i, c := range b.Clusters {
			if !c.ServiceCIDR.Contains(services[i]) {
				t.Errorf("%s: service at %s, not in %s", c.Name, services[i], c.ServiceCIDR)
			}
		}
	})
	t.Run("service by address and name", func(t *testing.T) {
		for i, p := range all {
			for _, client := range []*Pod{p.near, p.far} {
				for _, url := range []string{fmt.Sprintf("http://%s", services[i]), "http://web",
					"http://web.default.svc.cluster.local."} {
					if seen := must(client.Get(ctx, url))(t); seen != client.Address.String() {
						t.Errorf("%s: %s saw client %s, not %s", client.Name, url, seen, client.Address)
					}
				}
			}
		}
	})
	t.Run("service by UDP", func(t *testing.T) {
		conn := must(all[0].far.Dial("udp", fmt.Sprintf("%s:5353", services[0])))(t)
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		must(conn.Write([]byte("who am I?")))(t)
		buffer := make([]byte, 100)
		n := must(conn.Read(buffer))(t)
		if seen := string(buffer[:n]); seen != all[0].far.Address.String() {
			t.Errorf("server saw client %s, not %s", seen, all[0].far.Address)
		}
	})
	t.Run("programs in pods see the pod", func(t *testing.T) {
		out := must(all[0].near.Run(ctx, "cat", "/etc/resolv.conf", "/etc/hosts",
			"/run/secrets/kubernetes.io/serviceaccount/namespace"))(t)
		for _, want := range []string{"nameserver " + one.DNSAddress.String(), two.FQDN, "default"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in:\n%s", want, out)
			}
		}
		addrs := must(all[0].near.Run(ctx, "ip", "-br", "address", "show", "eth0"))(t)
		if !strings.Contains(addrs, all[0].near.Address.String()+"/32") {
			t.Errorf("addresses: %s", addrs)
		}
	})
	t.Run("names", func(t *testing.T) {
		if a := must(all[0].far.Lookup(ctx, "kubernetes.default"))(t); a[0] != one.APIAddress {
			t.Errorf("kubernetes.default is %s", a)
		}
		for _, network := range []string{"udp", "tcp"} {
			answer := must(all[0].near.QueryAt(ctx, network, netip.AddrPortFrom(one.DNSAddress, 53),
				"nobody.default.svc.cluster.local.", dns.TypeA))(t)
			if answer.Rcode != dns.RcodeNameError {
				t.Errorf("unknown name over %s: %s", network, dns.RcodeToString[answer.Rcode])
			}
		}
	})
	t.Run("stub domain leads to the mesh DNS service", func(t *testing.T) {
		conn := must(one.Gateway().ListenPacket("udp4", ":5300"))(t)
		server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeNotAuth))
		})}
		go server.ActivateAndServe()
		defer server.Shutdown()
		port := UDPPort(53)
		port.TargetPort.IntVal = 5300
		check(t, one.ServiceToNode(ctx, "kube-system", "kubelink", one.MeshDNSAddress, []corev1.ServicePort{port},
			one.Gateway()))
		answer := must(all[0].far.Query(ctx, "web.default.svc.kubelink2.kubelink.", dns.TypeA))(t)
		if answer.Rcode != dns.RcodeNotAuth {
			t.Errorf("answered %s", dns.RcodeToString[answer.Rcode])
		}
	})
	t.Run("own DNS configuration", func(t *testing.T) {
		check(t, one.CustomDNS(ctx, "extra.server", "extra:53 {\n template ANY ANY {\n rcode REFUSED\n }\n}\n"))
		check(t, Until(ctx, "the new server block", func(ctx context.Context) error {
			answer, err := all[0].near.Query(ctx, "x.extra.", dns.TypeA)
			if err == nil && answer.Rcode != dns.RcodeRefused {
				err = fmt.Errorf("answered %s", dns.RcodeToString[answer.Rcode])
			}
			return err
		}))
	})
	t.Run("clusters do not reach each other's networks", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if body, err := all[0].near.Get(ctx, fmt.Sprintf("http://%s", services[1])); err == nil {
			t.Errorf("the other cluster's service answered %q", body)
		}
	})
	t.Run("load balancer leads to the gateway node", func(t *testing.T) {
		check(t, two.Gateway().ServeHTTPEcho(BrokerPort))
		url := "http://" + two.FQDN
		for _, h := range []*Host{one.Gateway().Host, one.Nodes[1].Host, all[0].far.Host} {
			if seen := must(h.Get(ctx, url))(t); seen != one.PublicAddress.String() {
				t.Errorf("from %s the server saw %s, not %s", h.Name, seen, one.PublicAddress)
			}
		}
		must(two.Nodes[1].Get(ctx, url))(t) // its own
	})
	t.Run("cut links", func(t *testing.T) {
		router := two.PublicAddress
		cut := func() bool {
			_, err := one.Gateway().Ping(ctx, router)
			return err != nil
		}
		if cut() {
			t.Fatal("not connected")
		}
		check(t, b.CutLink(ctx, 1, 2))
		if !cut() {
			t.Error("the cut link carries packets")
		}
		check(t, b.RestoreLink(ctx, 1, 2))
		check(t, two.Disconnect(ctx))
		if !cut() {
			t.Error("the disconnected cluster answers")
		}
		check(t, two.Reconnect(ctx))
		if cut() {
			t.Error("not connected after restoring")
		}
	})
	t.Run("service accounts have their own rights only", func(t *testing.T) {
		sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "nobody"}}
		check(t, one.Client.Create(ctx, sa))
		kubeconfig := must(one.KubeconfigFor(ctx, "default", "nobody"))(t)
		for _, h := range []*Host{one.Gateway().Host, all[0].far.Host} {
			who := must(h.Run(ctx, b.binaryPath("kubectl"), "--kubeconfig", kubeconfig, "auth", "whoami"))(t)
			if !strings.Contains(who, "system:serviceaccount:default:nobody") {
				t.Errorf("%s: kubectl auth whoami: %s", h.Name, who)
			}
		}
		out, err := one.Gateway().Run(ctx, b.binaryPath("kubectl"), "--kubeconfig", kubeconfig, "get", "nodes")
		if err == nil || !strings.Contains(err.Error(), "forbidden") {
			t.Errorf("may list nodes: %s %v", out, err)
		}
		if out := must(one.Kubectl(ctx, "get", "nodes"))(t); !strings.Contains(out, "kubelink1-node2   Ready") {
			t.Errorf("kubectl get nodes:\n%s", out)
		}
	})
	t.Run("pods with the node's network", func(t *testing.T) {
		p := must(one.Pod(ctx, "agent", PodOptions{HostNetwork: true}))(t)
		check(t, p.ServeHTTPEcho(9090))
		seen := must(one.Nodes[1].Get(ctx, fmt.Sprintf("http://%s:9090", one.Gateway().Address)))(t)
		if seen != one.Nodes[1].Address.String() {
			t.Errorf("saw %s", seen)
		}
		check(t, p.Delete(ctx))
	})
	t.Run("pods go", func(t *testing.T) {
		p := must(two.Pod(ctx, "short", PodOptions{}))(t)
		sleep := must(p.Start(ctx, "sleep", nil, "sleep", "1000"))(t)
		must(two.Gateway().Ping(ctx, p.Address))(t)
		cable := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "probe"}, PeerName: "probe",
			PeerNamespace: netlink.NsFd(int(p.netns))}
		check(t, netlink.LinkAdd(cable)) // goes with the network namespace
		check(t, p.Delete(ctx))
		<-sleep.Done()
		check(t, Until(ctx, "the network namespace to end", func(context.Context) error {
			if _, err := netlink.LinkByName("probe"); err == nil {
				return errors.New("still there")
			}
			return nil
		}))
		if _, err := two.Gateway().Net.LinkByName(p.device); err == nil {
			t.Error("its link is still there")
		}
		if out := must(two.Kubectl(ctx, "get", "pods"))(t); strings.Contains(out, "short") {
			t.Errorf("kubectl get pods:\n%s", out)
		}
	})
	t.Run("processes", func(t *testing.T) {
		p := must(two.Gateway().Start(ctx, "talker", []string{"WHAT=ready"}, "sh", "-c", "echo $WHAT; exec sleep 1000"))(t)
		check(t, p.WaitLog(ctx, "(?m)^ready$"))
		check(t, p.Kill(syscall.SIGTERM))
		if err := p.Wait(ctx); err == nil || !strings.Contains(err.Error(), "terminated") {
			t.Errorf("ended with: %v", err)
		}
		p = must(two.Gateway().Start(ctx, "talker", nil, "sh", "-c", "echo gone; exit 3"))(t)
		if err := p.WaitLog(ctx, "ready"); err == nil || !strings.Contains(err.Error(), "exit status 3") ||
			!strings.Contains(err.Error(), "gone") {
			t.Errorf("waiting for a log of a program that ended: %v", err)
		}
	})
	t.Run("API server stopped and started", func(t *testing.T) {
		check(t, one.StopAPIServer(ctx))
		api := controlAddress.String() + ":6443"
		if _, err := one.Gateway().Dial("tcp", api); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("connect to the stopped API server: %v", err)
		}
		must(all[0].far.Get(ctx, "http://web"))(t)
		check(t, one.StartAPIServer(ctx))
		check(t, one.Client.Get(ctx, client.ObjectKey{Namespace: "default", Name: "web"}, &corev1.Service{}))
		must(one.Pod(ctx, "late", PodOptions{}))(t)
	})
}

// A test bed that dies, in any way, ends everything that it started. This test sees that from outside of the test
// bed.
func TestNothingStaysBehind(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			before, mounts := listProcesses(t), must(os.ReadFile("/proc/self/mountinfo"))(t)
			outer := exec.Command("/proc/self/exe", "-test.run=^$")
			outer.Env = append(outsideEnv(os.Environ()), holdVar+"=1", "TMPDIR="+t.TempDir())
			outer.Stderr = t.Output()
			stdout := must(outer.StdoutPipe())(t)
			check(t, outer.Start())
			defer outer.Process.Kill()
			lines := bufio.NewScanner(stdout)
			if !lines.Scan() || !strings.HasPrefix(lines.Text(), "nsenter") {
				t.Fatalf("the test bed says %q", lines.Text())
			}
			if out, err := exec.Command("sh", "-c", lines.Text()).CombinedOutput(); string(out) != "192.0.2.1 b.example\n" {
				t.Errorf("%s: %s %v", lines.Text(), out, err)
			}

			// A cable into each namespace of the test bed: its end here disappears when the namespace ends.
			namespaces := map[string]int{}
			for pid := range listProcesses(t) {
				if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil && !before[pid] {
					namespaces[ns] = pid
				}
			}
			delete(namespaces, must(os.Readlink("/proc/self/ns/net"))(t))
			if len(namespaces) != 3 { // its own, host a, host b
				t.Fatalf("the test bed has %d network namespaces", len(namespaces))
			}
			gone := make(chan netlink.LinkUpdate, 100)
			done := make(chan struct{})
			defer close(done)
			check(t, netlink.LinkSubscribe(gone, done))
			cables := map[string]bool{}
			for _, pid := range namespaces {
				name := fmt.Sprintf("probe%d", pid)
				check(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "probe",
					PeerNamespace: netlink.NsPid(pid)}))
				cables[name] = true
			}

			check(t, outer.Process.Signal(signal))
			io.Copy(io.Discard, stdout)
			outer.Wait()
			if want, code := 128+int(signal), outer.ProcessState.ExitCode(); signal != syscall.SIGKILL && code != want {
				t.Errorf("exit code %d, not %d", code, want)
			}
			for deadline := time.After(10 * time.Second); len(cables) > 0; {
				select {
				case update := <-gone:
					if update.Header.Type == syscall.RTM_DELLINK {
						delete(cables, update.Attrs().Name)
					}
				case <-deadline:
					t.Fatalf("network namespaces still there: %v", cables)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			check(t, Until(ctx, "its processes to end", func(context.Context) error {
				for pid := range listProcesses(t) {
					if command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); !before[pid] && len(command) > 0 {
						return fmt.Errorf("process %d: %q", pid, command)
					}
				}
				return nil
			}))
			if after := must(os.ReadFile("/proc/self/mountinfo"))(t); !bytes.Equal(mounts, after) {
				t.Errorf("mounts before:\n%s\nafter:\n%s", mounts, after)
			}
			tmp := outer.Env[len(outer.Env)-1][len("TMPDIR="):]
			if files := must(filepath.Glob(filepath.Join(tmp, "*")))(t); len(files) > 0 {
				t.Errorf("files: %v", files)
			}
		})
	}
}

func TestExitCode(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestNoSuchTest$", "-test.badflag")
	cmd.Env = outsideEnv(os.Environ())
	out, _ := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 2 || !strings.Contains(string(out), "badflag") {
		t.Errorf("exit code %d, output:\n%s", cmd.ProcessState.ExitCode(), out)
	}
}

// holdHosts makes two hosts with a running program each, prints how to look into the second, and waits to be killed.
func holdHosts() int {
	b := &Testbed{}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	for _, name := range []string{"a", "b"} {
		h, err := b.newHost(name, resolver{}, nil)
		if err == nil {
			err = h.SetHosts(map[string]netip.Addr{name + ".example": netip.MustParseAddr("192.0.2.1")})
		}
		if err == nil {
			_, err = h.Start(b.ctx, "sleep", nil, "sleep", "1000")
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	err := Until(b.ctx, "programs to be in their namespaces", func(context.Context) error {
		for _, p := range b.processes {
			if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.PID())); err != nil || string(name) != "sleep\n" {
				return fmt.Errorf("%s is still %s", p.Name, name)
			}
		}
		return nil
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(b.hosts[1].Enter("grep", "example", "/etc/hosts"))
	select {}
}

// coreDNS returns this project's binary if it is built, or else a plain CoreDNS of the same version.
func coreDNS(t *testing.T) string {
	root := must(Repository())(t)
	if path := filepath.Join(root, "bin", "kubelink"); exec.Command(path, "-version").Run() == nil {
		return path
	}
	path := filepath.Join(t.TempDir(), "coredns")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", path, "github.com/coredns/coredns")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build CoreDNS: %v\n%s", err, out)
	}
	return path
}

func listProcesses(t *testing.T) map[int]bool {
	pids := map[int]bool{}
	for _, entry := range must(os.ReadDir("/proc"))(t) {
		if pid, err := strconv.Atoi(entry.Name()); err == nil {
			pids[pid] = true
		}
	}
	return pids
}

// outsideEnv removes the traces of this test bed from an environment. With the result, a test bed can start inside of
// a test bed.
func outsideEnv(env []string) (outside []string) {
	for _, e := range env {
		if !strings.HasPrefix(e, stageVar+"=") && !strings.HasPrefix(e, hostPIDVar+"=") {
			outside = append(outside, e)
		}
	}
	return outside
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// must returns a function, because so it can take both results of a call.
func must[T any](value T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		check(t, err)
		return value
	}
}
