package realnodes

// The command line of users, on real nodes: from nothing to links that are up, and back without a trace.

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// longestConnect is the limit from an empty cluster to an answer by name for pods of all nodes.
const longestConnect = time.Minute

// commandLine runs kubectl-kubelink with a context for each cluster of a test bed.
type commandLine struct {
	program, kubeconfig string
}

// newCommandLine writes a kubeconfig whose contexts have the names of the clusters. A proxy for each leads into its
// network.
func newCommandLine(t *testing.T, f *fleet.Fleet) *commandLine {
	t.Helper()
	root := must(testbed.Repository())(t)
	l := &commandLine{program: filepath.Join(root, "bin", "kubectl-kubelink"),
		kubeconfig: filepath.Join(t.TempDir(), "kubeconfig")}
	config := clientcmdapi.NewConfig()
	for _, b := range f.Brokers {
		config.Clusters[b.Name] = &clientcmdapi.Cluster{Server: b.Config.Host, CertificateAuthorityData: b.Config.CAData,
			ProxyURL: "http://" + serveProxy(t, b.ControlPlane.DialContext)}
		config.AuthInfos[b.Name] = &clientcmdapi.AuthInfo{ClientCertificateData: b.Config.CertData,
			ClientKeyData: b.Config.KeyData}
		config.Contexts[b.Name] = &clientcmdapi.Context{Cluster: b.Name, AuthInfo: b.Name}
	}
	check(t, clientcmd.WriteToFile(*config, l.kubeconfig))
	return l
}

// serveProxy serves the method CONNECT (RFC 9110, section 9.3.6), and returns its address.
func serveProxy(t *testing.T, dial func(ctx context.Context, network, address string) (net.Conn, error)) string {
	listener := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		to, err := dial(r.Context(), "tcp", r.Host)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer to.Close()
		from, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer from.Close()
		fmt.Fprint(from, "HTTP/1.1 200 Connection established\r\n\r\n")
		go func(r *bufio.Reader) { io.Copy(to, r); to.Close() }(buffered.Reader)
		io.Copy(from, to)
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return listener.Addr().String()
}

// run runs a command, and returns what it prints.
func (l *commandLine) run(ctx context.Context, args ...string) (out string, err error) {
	c := exec.CommandContext(ctx, l.program, args...)
	c.Env = append(os.Environ(), "KUBECONFIG="+l.kubeconfig)
	text, err := c.CombinedOutput()
	return string(text), err
}

// checkConnect links two clusters that have nothing of kubelink, and takes the link away.
func checkConnect(t *testing.T, ctx context.Context, f *fleet.Fleet, flags ...string) {
	l := newCommandLine(t, f)
	contexts := []string{f.Brokers[0].Name, f.Brokers[1].Name}
	connect := append(append([]string{"connect"}, contexts...), flags...)
	clients := map[*fleet.Broker][]*testbed.Pod{}
	for _, b := range f.Brokers {
		check(t, b.CustomDNS(ctx, "kubelink.server", "")) // the test bed has it for tests of other installations
		clients[b] = must(b.Deploy(ctx, "web", len(b.Nodes)))(t)
		_, err := b.Service(ctx, "web", map[string]string{"app": "web"}, servicePorts(), testbed.ServiceOptions{})
		check(t, err)
	}
	before := l.listAll(t, ctx, f)

	out, err := l.run(ctx, append(connect, "--service-cidr="+contexts[1]+"="+f.Brokers[0].ServiceCIDR.String())...)
	if err == nil || !strings.Contains(out, "overlap") || !strings.Contains(out, "--mesh-services") {
		t.Errorf("overlapping networks: %v\n%s", err, out)
	}
	out, err = l.run(ctx, append(connect, "--dry-run")...)
	if err != nil || !strings.Contains(out, contexts[0]+": would apply KubeLink "+contexts[1]) {
		t.Errorf("dry run: %v\n%s", err, out)
	}
	compareTraces(t, "a refusal and a dry run", before, l.listAll(t, ctx, f))

	start := time.Now()
	out, err = l.run(ctx, connect...)
	t.Logf("%.1f s\n%s", time.Since(start).Seconds(), out)
	check(t, err)
	asked, stop := context.WithTimeout(ctx, longestConnect-time.Since(start))
	defer stop()
	var g errgroup.Group
	for i, b := range f.Brokers {
		url := fmt.Sprintf("http://web.default.svc.%s.kubelink", contexts[1-i])
		for _, p := range clients[b] {
			g.Go(func() error {
				return testbed.Until(asked, "an answer of "+url+" on "+p.Node.Name, func(ctx context.Context) error {
					_, err := p.Get(ctx, url)
					return err
				})
			})
		}
	}
	check(t, g.Wait())
	t.Logf("pods of all nodes have an answer by name after %.1f s", time.Since(start).Seconds())

	out, err = l.run(ctx, connect...)
	if err != nil || strings.Contains(out, " created") || strings.Contains(out, " changed") {
		t.Errorf("again: %v\n%s", err, out)
	}
	disconnect := append([]string{"disconnect"}, contexts...)
	out, err = l.run(ctx, append(disconnect, "--dry-run")...)
	if err != nil || !strings.Contains(out, "would delete Namespace kubelink") {
		t.Errorf("dry run: %v\n%s", err, out)
	}
	start = time.Now()
	out, err = l.run(ctx, disconnect...)
	t.Logf("%.1f s\n%s", time.Since(start).Seconds(), out)
	check(t, err)
	compareTraces(t, "disconnect", before, l.listAll(t, ctx, f))
	if out, err = l.run(ctx, disconnect...); err != nil || strings.Contains(out, "deleted") {
		t.Errorf("again: %v\n%s", err, out)
	}
	for _, b := range f.Brokers {
		_, err := b.Kubectl(ctx, "delete", "service/web", "deployment/web", "--cascade=foreground", "--wait")
		check(t, err)
	}
}

// listAll lists what kubelink may leave behind: objects, the configuration of the clusters' DNS, and what is set on
// nodes.
func (l *commandLine) listAll(t *testing.T, ctx context.Context, f *fleet.Fleet) (all []string) {
	t.Helper()
	for _, b := range f.Brokers {
		for _, args := range [][]string{
			{"get", "crds,namespaces,clusterroles,clusterrolebindings", "-o", "name"},
			{"get", "roles,rolebindings,configmaps,secrets,services,deployments,daemonsets,leases", "-A", "-o",
				"custom-columns=K:.kind,NS:.metadata.namespace,N:.metadata.name", "--no-headers"},
			{"-n", "kube-system", "get", "configmaps", "coredns", "coredns-custom", "-o", "jsonpath={.items[*].data}"},
		} {
			for line := range strings.Lines(must(b.Kubectl(ctx, args...))(t)) {
				all = append(all, b.Name+" "+strings.Join(strings.Fields(line), " "))
			}
		}
		for _, n := range b.Nodes {
			for _, command := range [][]string{{"ip", "-o", "link", "show", "type", "tun"},
				{"ip", "route", "show", "table", "all", "proto", "107"}, {"ip", "route", "show", "table", "all", "proto", "114"},
				{"sh", "-c", "iptables-save | grep -e KLINK -e KLROUTER || true"}} {
				for line := range strings.Lines(must(n.Run(ctx, command[0], command[1:]...))(t)) {
					all = append(all, n.Name+" "+line)
				}
			}
		}
	}
	slices.Sort(all)
	return all
}

// compareTraces says what is there that was not there before, and the other way round.
func compareTraces(t *testing.T, what string, before, after []string) {
	t.Helper()
	for _, line := range after {
		if _, found := slices.BinarySearch(before, line); !found {
			t.Errorf("after %s there is %s", what, line)
		}
	}
	for _, line := range before {
		if _, found := slices.BinarySearch(after, line); !found {
			t.Errorf("after %s there is no %s", what, line)
		}
	}
}
