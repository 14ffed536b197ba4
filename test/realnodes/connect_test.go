package realnodes

// The command line of users, on real nodes: from nothing to links that are up, and back without a trace.

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/connectivity"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// longestConnect is the limit from an empty cluster to an answer by name for pods of all nodes.
const longestConnect = time.Minute

// commandLine runs kubectl-kubelink with a context for each cluster of a test bed.
type commandLine struct {
	program, kubeconfig string
}

// newCommandLine writes a kubeconfig whose contexts have the names of the clusters.
func newCommandLine(t *testing.T, f *fleet.Fleet) *commandLine {
	t.Helper()
	root := must(testbed.Repository())(t)
	l := &commandLine{program: filepath.Join(root, "bin", "kubectl-kubelink"),
		kubeconfig: filepath.Join(t.TempDir(), "kubeconfig")}
	check(t, f.WriteKubeconfig(l.kubeconfig))
	return l
}

// run runs a command, and returns what it prints.
func (l *commandLine) run(ctx context.Context, args ...string) (out string, err error) {
	text, err := l.command(ctx, args...).CombinedOutput()
	return string(text), err
}

func (l *commandLine) command(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, l.program, args...)
	c.Env = append(os.Environ(), "KUBECONFIG="+l.kubeconfig)
	c.Dir = filepath.Dir(l.kubeconfig)
	return c
}

// readCommands returns the commands that deploy/README.md has for two clusters, with other names for them.
func readCommands(t *testing.T, names []string) (commands map[string][]string) {
	t.Helper()
	_, section, _ := strings.Cut(string(must(os.ReadFile("../../deploy/README.md"))(t)), "\n## One command\n")
	section, _, _ = strings.Cut(section, "\n## ")
	commands = map[string][]string{}
	for line := range strings.Lines(section) {
		text, found := strings.CutPrefix(line, "kubectl kubelink ")
		if !found {
			continue
		}
		text, _, _ = strings.Cut(text, "#")
		args := strings.Fields(text)
		for i := range args {
			if n, ok := map[string]string{"c1": names[0], "c2": names[1]}[args[i]]; ok {
				args[i] = n
			}
		}
		key := args[0]
		if args[len(args)-1] == "--dry-run" {
			key += " dry"
		}
		commands[key] = args
	}
	for _, key := range []string{"connect dry", "connect", "test", "version", "gather", "disconnect"} {
		if commands[key] == nil || len(commands) != 6 {
			t.Fatalf("deploy/README.md: no command %q, or others: %q", key, commands)
		}
	}
	return commands
}

// checkConnect links two clusters that have nothing of kubelink, as the documentation says, and takes the link away.
func checkConnect(t *testing.T, ctx context.Context, f *fleet.Fleet, flags ...string) {
	l := newCommandLine(t, f)
	names := []string{f.Brokers[0].Name, f.Brokers[1].Name}
	commands := readCommands(t, names)
	clients := map[*fleet.Broker][]*testbed.Pod{}
	for _, b := range f.Brokers {
		check(t, b.CustomDNS(ctx, "kubelink.server", "")) // the test bed has it for tests of other installations
		clients[b] = must(b.Deploy(ctx, "web", len(b.Nodes)))(t)
		_, err := b.Service(ctx, "web", map[string]string{"app": "web"}, servicePorts(), testbed.ServiceOptions{})
		check(t, err)
	}
	before := l.listAll(t, ctx, f)
	connect := append(slices.Clone(commands["connect"]), flags...)
	out, err := l.run(ctx, append(connect, "--service-cidr="+names[1]+"="+f.Brokers[0].ServiceCIDR.String())...)
	if err == nil || !strings.Contains(out, "overlap") || !strings.Contains(out, "--mesh-services") {
		t.Errorf("overlapping networks: %v\n%s", err, out)
	}
	out, err = l.run(ctx, append(commands["connect dry"], flags...)...)
	if err != nil || !strings.Contains(out, names[0]+": would apply KubeLink "+names[1]) {
		t.Errorf("dry run: %v\n%s", err, out)
	}
	compareTraces(t, "a refusal and a dry run", before, l.listAll(t, ctx, f))

	start := time.Now()
	out, err = l.run(ctx, connect...)
	t.Logf("%.1f s\n%s", time.Since(start).Seconds(), out)
	check(t, err)
	asked, stop := context.WithDeadline(ctx, start.Add(longestConnect))
	defer stop()
	check(t, askByName(asked, f, clients))
	t.Logf("pods of all nodes have an answer by name after %.1f s", time.Since(start).Seconds())

	out, err = l.run(ctx, connect...)
	if err != nil || strings.Contains(out, " created") || strings.Contains(out, " changed") {
		t.Errorf("again: %v\n%s", err, out)
	}
	if out, err = l.run(ctx, commands["version"]...); err != nil || strings.Count(out, f.Image()) != 4 {
		t.Errorf("version: %v\n%s", err, out)
	}
	if len(flags) == 0 { // the pages are about certificates, too; and the API servers do not reach brokers in pod mode
		l.checkTest(t, ctx, f, commands["test"])
		l.checkPages(t, ctx, f)
	}
	l.checkGather(t, ctx, f, commands["gather"])
	l.checkDisconnect(t, ctx, commands["disconnect"])
	compareTraces(t, "disconnect", before, l.listAll(t, ctx, f))
	for _, b := range f.Brokers {
		_, err := b.Kubectl(ctx, "delete", "service/web", "deployment/web", "--cascade=foreground", "--wait")
		check(t, err)
	}
}

// askByName has the pods ask the service web of the other cluster, until all of them have an answer.
func askByName(ctx context.Context, f *fleet.Fleet, clients map[*fleet.Broker][]*testbed.Pod) error {
	var g errgroup.Group
	for i, b := range f.Brokers {
		url := fmt.Sprintf("http://web.default.svc.%s.kubelink", f.Brokers[1-i].Name)
		for _, p := range clients[b] {
			g.Go(func() error {
				return testbed.Until(ctx, "an answer of "+url+" on "+p.Node.Name, func(ctx context.Context) error {
					_, err := p.Get(ctx, url)
					return err
				})
			})
		}
	}
	return g.Wait()
}

// checkTest tests from all nodes. Then a node drops what its pods send to the other cluster: the checks of this node
// fail, and no others, until it is mended.
func (l *commandLine) checkTest(t *testing.T, ctx context.Context, f *fleet.Fleet, command []string) {
	b, peer := f.Brokers[0], f.Brokers[1]
	check(t, b.FindPod(ctx))
	broken := b.Nodes[slices.IndexFunc(b.Nodes, func(n *testbed.Node) bool { return n != b.Host.Node })]
	for _, drops := range []bool{false, true, false} {
		if drops {
			drop(t, ctx, broken, "-I", peer)
		}
		start := time.Now()
		r, text := l.test(t, ctx, command)
		t.Logf("%.1f s\n%s", time.Since(start).Seconds(), text)
		if drops {
			drop(t, ctx, broken, "-D", peer)
		}
		if want := 5 * (len(b.Nodes) + len(peer.Nodes)); len(r.Checks) != want || r.OK == drops {
			t.Errorf("%d checks, want %d", len(r.Checks), want)
		}
		failed := map[string]bool{}
		for _, k := range r.Checks {
			if k.Result != connectivity.OK {
				failed[k.Context+" "+k.Node+" "+k.Link+" "+k.Check+" "+string(k.Result)] = true
			}
		}
		want := map[string]bool{}
		if drops {
			for _, name := range []string{"connect", "ping"} {
				want[b.Name+" "+broken.Name+" "+peer.Name+" "+name+" failed"] = true
			}
		}
		if !maps.Equal(failed, want) {
			t.Errorf("%v, want %v", failed, want)
		}
		for _, found := range r.Findings {
			if found.Object.Kind != "Node" || found.Object.Name != broken.Name || !strings.Contains(found.Remedy, "router") {
				t.Errorf("%+v", found)
			}
		}
		if len(r.Findings) != len(want) {
			t.Errorf("%+v", r.Findings)
		}
	}
	l.interruptTest(t, ctx, b, command)
	for _, c := range f.Brokers {
		if out := must(c.Kubectl(ctx, listTestPods...))(t); out != "" {
			t.Errorf("pods of tests are left: %s", out)
		}
	}
}

var listTestPods = []string{"-n", "kubelink", "get", "pods", "-l", "app=kubelink-test", "-o", "name"}

// interruptTest presses Ctrl-C while there are pods of a test.
func (l *commandLine) interruptTest(t *testing.T, ctx context.Context, b *fleet.Broker, command []string) {
	t.Helper()
	var out bytes.Buffer
	c := l.command(ctx, command...)
	c.Stdout, c.Stderr = &out, &out
	check(t, c.Start())
	seen := testbed.Until(ctx, "pods of a test", func(ctx context.Context) error {
		text, err := b.Kubectl(ctx, listTestPods...)
		if err == nil && text == "" {
			err = errors.New("there are none")
		}
		return err
	})
	check(t, errors.Join(seen, c.Process.Signal(os.Interrupt)))
	err := c.Wait()
	if code, ok := errors.AsType[*exec.ExitError](err); !ok || code.ExitCode() != 1 ||
		!strings.Contains(out.String(), "interrupted; the pods of the test are removed") {
		t.Errorf("Ctrl-C: %v: %s", err, &out)
	}
}

// test runs the command test, and returns its report.
func (l *commandLine) test(t *testing.T, ctx context.Context, command []string) (r connectivity.Report, text string) {
	t.Helper()
	out, err := l.run(ctx, append(slices.Clone(command), "-o", "json")...)
	begin := strings.Index(out, "{\n") // progress comes before
	if begin < 0 {
		t.Fatalf("%v: %s", err, out)
	}
	check(t, json.Unmarshal([]byte(out[begin:]), &r))
	if code, ok := errors.AsType[*exec.ExitError](err); r.OK != (err == nil) || !r.OK && (!ok || code.ExitCode() != 3) {
		t.Errorf("%v: %s", err, out)
	}
	return r, out
}

// drop inserts or deletes rules that drop what pods of a node send to another cluster.
func drop(t *testing.T, ctx context.Context, n *testbed.Node, how string, to *fleet.Broker) {
	t.Helper()
	for _, destination := range []string{to.ServiceCIDR.String(), to.MeshAddress.Masked().String()} {
		_, err := n.Run(ctx, "iptables", how, "FORWARD", "-d", destination, "-j", "DROP")
		check(t, err)
	}
}

// checkGather makes an archive, which has what brokers say, and none of their keys.
func (l *commandLine) checkGather(t *testing.T, ctx context.Context, f *fleet.Fleet, command []string) {
	out, err := l.run(ctx, command...)
	check(t, err)
	archive := must(os.Open(filepath.Join(filepath.Dir(l.kubeconfig), command[len(command)-1])))(t)
	defer archive.Close()
	zip := must(gzip.NewReader(archive))(t)
	text := string(must(io.ReadAll(zip))(t)) // the tar holds its files as they are
	for _, b := range f.Brokers {
		for _, want := range []string{b.Name + "/kubelinks.yaml", b.Name + "/logs/", b.Name + "/secrets.yaml"} {
			if !strings.Contains(text, want) {
				t.Errorf("there is no %s: %s", want, out)
			}
		}
		secret := &corev1.Secret{}
		check(t, b.Client.Get(ctx, client.ObjectKey{Namespace: fleet.Namespace, Name: fleet.Secret}, secret))
		keys := 0
		for name, value := range secret.Data {
			if !strings.HasSuffix(strings.ToLower(name), "key") || strings.Contains(name, "Public") {
				continue
			}
			keys++
			for line := range strings.Lines(string(value)) {
				line = strings.TrimSpace(line)
				if !strings.HasPrefix(line, "-----") && strings.Contains(text, line) ||
					strings.Contains(text, base64.StdEncoding.EncodeToString(value)) {
					t.Errorf("the archive has %s of %s", name, b.Name)
				}
			}
		}
		if keys == 0 {
			t.Errorf("%s has no key", b.Name)
		}
	}
}

// checkDisconnect runs a dry run of disconnect, the command itself, and once more what has nothing to do.
func (l *commandLine) checkDisconnect(t *testing.T, ctx context.Context, command []string) {
	out, err := l.run(ctx, append(slices.Clone(command), "--dry-run")...)
	if err != nil || !strings.Contains(out, "would delete Namespace kubelink") {
		t.Errorf("dry run: %v\n%s", err, out)
	}
	start := time.Now()
	out, err = l.run(ctx, command...)
	t.Logf("%.1f s\n%s", time.Since(start).Seconds(), out)
	check(t, err)
	if out, err = l.run(ctx, command...); err != nil || strings.Contains(out, "deleted") {
		t.Errorf("again: %v\n%s", err, out)
	}
}

// checkMigrate starts brokers from what migrate makes of the arguments of a former one. They serve its links.
func checkMigrate(t *testing.T, ctx context.Context, f *fleet.Fleet) {
	l := newCommandLine(t, f)
	made := map[*fleet.Broker]string{}
	for _, b := range f.Brokers {
		c := exec.CommandContext(ctx, l.program, "migrate", "-o", "yaml", "--image="+f.Image(),
			"--mesh-cidr="+b.MeshAddress.Masked().String(), "--", "--broker.mode=bridge", "--secret="+fleet.Secret,
			"--server-port-http=8180", "--broker.broker-port=8188", "--pod-cidr="+testbed.PodCIDR.String(),
			"--node-cidr="+testbed.NodeCIDR.String(), "--service-cidr="+b.ServiceCIDR.String(), "--ifce-name=kubelink",
			"--dns-advertisement", "--dns-propagation=dns", "--coredns-configure", "--pool.size=1")
		objects := string(must(c.Output())(t))
		made[b] = objects
		_, err := b.KubectlInput(ctx, objects, "apply", "-f", "-")
		check(t, err)
		check(t, b.NewCertificate(ctx, f.CA, b.FQDN))
	}
	for i, b := range f.Brokers {
		check(t, b.FindPod(ctx))
		check(t, b.Apply(ctx, b.Local()))
		check(t, b.Apply(ctx, f.Brokers[1-i].LinkTo()))
	}
	for i, b := range f.Brokers {
		check(t, b.WaitState(ctx, f.Brokers[1-i].Name, v1alpha1.StateUp))
	}
	for i, b := range f.Brokers {
		check(t, b.Remove(ctx, f.Brokers[1-i].Name))
		check(t, b.Remove(ctx, b.Name))
		_, err := b.KubectlInput(ctx, made[b], "delete", "--ignore-not-found", "--cascade=foreground", "-f", "-")
		check(t, err)
		_, err = b.Kubectl(ctx, "delete", "-f", filepath.Join(must(testbed.Repository())(t), "deploy", "crds"))
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
				{"sh", "-c", "iptables-save | grep -e KLINK -e KLROUTER || true"}, strings.Fields(stateFolder)} {
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
