package e2e

// The command line on real control planes: it reaches brokers through the proxy of the API server, shows both
// directions of links, and finds each of many faults with its cause and its remedy. A healthy mesh has none.

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// commandLine is kubectl-kubelink with a kubeconfig that has a context for each cluster.
type commandLine struct {
	program, kubeconfig string
}

// newCommandLine makes the API servers, which all have one address, reachable at addresses of the test.
func newCommandLine(t *testing.T) *commandLine {
	t.Helper()
	root, err := testbed.Repository()
	must(t, err)
	c := &commandLine{filepath.Join(root, "bin", "kubectl-kubelink"), filepath.Join(t.TempDir(), "kubeconfig")}
	if _, err := os.Stat(c.program); err != nil {
		t.Fatalf("%v: run make build first", err)
	}
	config := clientcmdapi.NewConfig()
	for _, b := range brokers {
		addCluster(t, config, b, clientcmdapi.AuthInfo{
			ClientCertificateData: b.Config.CertData, ClientKeyData: b.Config.KeyData,
			ClientCertificate: b.Config.CertFile, ClientKey: b.Config.KeyFile,
		})
	}
	token, err := tokenOf(b0().Cluster)
	must(t, err)
	addUser(config, "nobody", b0().Name, clientcmdapi.AuthInfo{Token: token})
	must(t, clientcmd.WriteToFile(*config, c.kubeconfig))
	return c
}

func b0() *fleet.Broker { return brokers[0] }

// tokenOf returns a token of an account without any rights.
func tokenOf(c *testbed.Cluster) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	token, err := c.Kubectl(ctx, "-n", "default", "create", "token", "default")
	return strings.TrimSpace(token), err
}

// addCluster adds a context with the name of the cluster, whose server is a port of the test.
func addCluster(t *testing.T, config *clientcmdapi.Config, b *fleet.Broker, user clientcmdapi.AuthInfo) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go forward(conn, b)
		}
	}()
	config.Clusters[b.Name] = &clientcmdapi.Cluster{
		Server: "https://" + listener.Addr().String(), CertificateAuthorityData: b.Config.CAData,
	}
	addUser(config, b.Name, b.Name, user)
}

func addUser(config *clientcmdapi.Config, name, cluster string, user clientcmdapi.AuthInfo) {
	config.AuthInfos[name] = &user
	config.Contexts[name] = &clientcmdapi.Context{Cluster: cluster, AuthInfo: name}
	config.CurrentContext = name
}

// forward carries a connection to the API server of a cluster.
func forward(conn net.Conn, b *fleet.Broker) {
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	server, err := b.ControlPlane.DialContext(ctx, "tcp", strings.TrimPrefix(testbed.APIServerURL(), "https://"))
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		_, _ = io.Copy(server, conn)
		server.Close()
	}()
	_, _ = io.Copy(conn, server)
}

// run runs the command and returns its output, its exit code, and the time that it took.
func (c *commandLine) run(t *testing.T, args ...string) (out string, code int, took time.Duration) {
	t.Helper()
	command := exec.Command(c.program, append([]string{"--kubeconfig", c.kubeconfig}, args...)...)
	var text, problems bytes.Buffer
	command.Stdout, command.Stderr = &text, &problems
	start := time.Now()
	err := command.Run()
	took = time.Since(start)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	return text.String() + problems.String(), code, took
}

// finding has the fields that the tests look at.
type finding struct {
	Context, Reason, Severity, Message, Remedy string
	Object                                     struct{ Kind, Name string }
}

// diagnose returns the findings about contexts.
func (c *commandLine) diagnose(t *testing.T, args ...string) (all []finding) {
	t.Helper()
	out, _, took := c.run(t, append([]string{"diagnose", "-o", "json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if took > 5*time.Second {
		t.Errorf("%v took %s", args, took)
	}
	return all
}

// expectHealthy waits until there is no finding in the whole mesh.
func (c *commandLine) expectHealthy(t *testing.T) {
	t.Helper()
	within(t, 30*time.Second, "a mesh without findings", func(context.Context) error {
		if all := c.diagnose(t, names()...); len(all) > 0 {
			return fmt.Errorf("%+v", all)
		}
		return nil
	})
}

// expectUnanswered looks at a mesh of which a part is dead: status says so, and what it still knows, in five seconds.
func (c *commandLine) expectUnanswered(t *testing.T, contexts []string) {
	t.Helper()
	const unanswered = 4
	out, code, took := c.run(t, append([]string{"status"}, contexts...)...)
	t.Logf("status after %s:\n%s", took, out)
	if code != unanswered || took > 5*time.Second || !strings.Contains(out, "does not answer") ||
		!strings.Contains(out, "active") {
		t.Errorf("exit code %d after %s", code, took)
	}
}

func names() (names []string) {
	for _, b := range brokers {
		names = append(names, b.Name)
	}
	return names
}

// Of a healthy mesh, status shows both directions of all links, as a table and for programs.
func TestStatusCommand(t *testing.T) {
	startTest(t, time.Minute)
	c := newCommandLine(t)
	c.expectHealthy(t)
	out, code, took := c.run(t, append([]string{"status", "-o", "wide", "--wait", "20s"}, names()...)...)
	t.Logf("in %s:\n%s", took, out)
	if code != 0 || strings.Count(out, " Up ") != 12 || strings.Contains(out, "\x1b[") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	var view struct {
		Healthy bool
		Links   []struct {
			Name, State string
			RTT         float64
			Back        struct{ Context, Name, State string }
			Names       struct{ Zone string }
		}
		Clusters []struct {
			Brokers []struct {
				Report struct {
					Version, Mode, Device string
					Certificates          []struct{ NotAfter time.Time }
				}
			}
		}
	}
	out, _, _ = c.run(t, append([]string{"status", "-o", "json"}, names()...)...)
	must(t, json.Unmarshal([]byte(out), &view))
	if !view.Healthy || len(view.Links) != 6 || len(view.Clusters) != 3 {
		t.Fatalf("%+v", view)
	}
	for _, l := range view.Links {
		if l.State != "Up" || l.Back.State != "Up" || l.RTT <= 0 || l.Names.Zone != l.Name+".kubelink." {
			t.Errorf("%+v", l)
		}
	}
	for _, cluster := range view.Clusters {
		r := cluster.Brokers[0].Report
		if r.Device != "kubelink" || r.Mode != string(f.Mode) || f.Mode == mesh.Bridge && len(r.Certificates) != 2 {
			t.Errorf("%+v", r)
		}
	}
	out, code, _ = c.run(t, "status", "-o", "xml")
	if code != 2 || !strings.Contains(out, "want one of json, yaml, wide") {
		t.Errorf("%d: %s", code, out)
	}
	if out, code, _ := c.run(t, "status", "-o", "yaml", b0().Name); code != 0 || !strings.Contains(out, "healthy: true") {
		t.Errorf("%d: %s", code, out)
	}
}

// During a transfer, both ends show how fast it is. After it, nothing goes through the link.
func TestStatusRates(t *testing.T) {
	startTest(t, time.Minute)
	c := newCommandLine(t)
	const pace = 2 << 20 // bytes per second
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := runInBackground(func() error { return transfer(ctx, clients[0], servers[1].service, 60*pace, pace) })
	expect := func(low, high float64) func(context.Context) error {
		return func(context.Context) error {
			var view struct {
				Links []struct {
					Context, Name  string
					RxRate, TxRate float64
				}
			}
			out, _, _ := c.run(t, "status", "-o", "json", brokers[0].Name, brokers[1].Name)
			if err := json.Unmarshal([]byte(out), &view); err != nil {
				return err
			}
			in, sent := -1.0, -1.0
			for _, l := range view.Links {
				switch {
				case l.Context == brokers[0].Name && l.Name == brokers[1].Name:
					in = l.RxRate
				case l.Context == brokers[1].Name && l.Name == brokers[0].Name:
					sent = l.TxRate
				}
			}
			if min(in, sent) < low || max(in, sent) > high {
				return fmt.Errorf("in %.0f, out %.0f bytes per second", in, sent)
			}
			return nil
		}
	}
	took := within(t, 20*time.Second, "the rate of a transfer", expect(0.75*pace, 1.25*pace))
	t.Logf("the rate is right after %s", took)
	stop()
	_ = ended()
	took = within(t, 20*time.Second, "the end of a transfer", expect(0, 0.01*pace))
	t.Logf("the rate is 0 after %s", took)
}

// The broker pings the other ends of links.
func TestPingCommand(t *testing.T) {
	startTest(t, time.Minute)
	c := newCommandLine(t)
	for _, x := range []struct {
		args string
		code int
		says string
	}{
		{"kubelink2", 0, "kubelink2 (192.168.0.12): 3 of 3 packets of 84 bytes answered, after "},
		{"kubelink3 --size 1400 --count 1", 0, "1 of 1 packets of 1400 bytes answered"},
		{"kubelink2 --size 65535", 3, "0 of 1 packets of 65535 bytes answered: packets of this size are larger than"},
		{"kubelink9", 1, `there is no KubeLink "kubelink9": kubectl get kubelinks shows their names`},
		{"kubelink2 --count 100", 2, "--count 100: want 1 to 6"},
		{"kubelink2 --size 10", 2, "--size 10: want 64 to 65535 bytes"},
	} {
		args := append([]string{"ping", "--context", b0().Name}, strings.Fields(x.args)...)
		if out, code, _ := c.run(t, args...); code != x.code || !strings.Contains(out, x.says) {
			t.Errorf("%s: %d: %s", x.args, code, out)
		}
	}
}

// fault is something that is wrong.
type fault struct {
	name     string
	inject   func(*testing.T, context.Context) // it heals by t.Cleanup
	contexts []string                          // that are asked; none: the first two
	flags    []string
	reason   string
	object   string   // its name; empty: any
	texts    []string // in cause and remedy
}

// kubectl runs kubectl in the first cluster, and something else at the end of the test.
func kubectl(args []string, heal func(context.Context) error) func(*testing.T, context.Context) {
	return func(t *testing.T, ctx context.Context) {
		t.Helper()
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			must(t, heal(ctx))
		})
		_, err := b0().Kubectl(ctx, args...)
		must(t, err)
	}
}

// applyAgain applies a file of deploy/base.
func applyAgain(file string) func(context.Context) error {
	return func(ctx context.Context) error {
		text, err := b0().Manifest("base/" + file)
		if err == nil {
			_, err = b0().KubectlInput(ctx, text, "apply", "-f", "-")
		}
		return err
	}
}

// withLink adds a KubeLink to the first cluster.
func withLink(name, address, endpoint string, change func(*v1alpha1.KubeLinkSpec)) func(*testing.T, context.Context) {
	return func(t *testing.T, ctx context.Context) {
		t.Helper()
		t.Cleanup(func() { must(t, b0().Remove(context.Background(), name)) })
		must(t, b0().Apply(ctx, newKubeLink(name, address, endpoint, change)))
	}
}

// changeLink changes the link of the first cluster to the second one.
func changeLink(change func(*v1alpha1.KubeLinkSpec)) func(*testing.T, context.Context) {
	return func(t *testing.T, ctx context.Context) {
		t.Helper()
		link := brokers[1].LinkTo()
		t.Cleanup(func() { must(t, b0().Apply(context.Background(), link)) })
		changed := link.DeepCopy()
		change(&changed.Spec)
		must(t, b0().Apply(ctx, changed))
	}
}

// withPod adds a pod of kubelink that does not run, and may have an event.
func withPod(status corev1.PodStatus, event string) func(*testing.T, context.Context) {
	return func(t *testing.T, ctx context.Context) {
		t.Helper()
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: fleet.Namespace, Name: "kubelink-stuck", Labels: map[string]string{"app": "kubelink"},
			},
			Spec: corev1.PodSpec{
				NodeName: "nowhere", Containers: []corev1.Container{{Name: "kubelink", Image: "kubelink"}},
			},
		}
		must(t, b0().Client.Create(ctx, pod))
		t.Cleanup(func() { must(t, b0().Client.Delete(context.Background(), pod, client.GracePeriodSeconds(0))) })
		pod.Status = status
		must(t, b0().Client.Status().Update(ctx, pod))
		if event == "" {
			return
		}
		e := &corev1.Event{
			ObjectMeta:     metav1.ObjectMeta{Namespace: fleet.Namespace, Name: "stuck"},
			InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: fleet.Namespace, Name: pod.Name},
			Type:           corev1.EventTypeWarning, Reason: "FailedMount", Message: event, LastTimestamp: metav1.Now(),
		}
		must(t, b0().Client.Create(ctx, e))
		t.Cleanup(func() { must(t, b0().Client.Delete(context.Background(), e)) })
	}
}

// onBroker signals the broker of the second cluster.
func onBroker(signal, heal syscall.Signal) func(*testing.T, context.Context) {
	return func(t *testing.T, ctx context.Context) {
		t.Helper()
		b := brokers[1]
		if heal == 0 {
			must(t, b.Kill(ctx, signal))
			t.Cleanup(func() { startAgain(t, b) })
			return
		}
		must(t, b.Process.Kill(signal))
		t.Cleanup(func() { must(t, b.Process.Kill(heal)) })
	}
}

// unplugNode cuts the node of the second cluster's broker off from all networks.
func unplugNode(t *testing.T, _ context.Context) {
	t.Helper()
	t.Cleanup(func() { must(t, brokers[1].Gateway().Plug()); restoreMesh(t) })
	must(t, brokers[1].Gateway().Unplug())
}

// setNodeReady sets the condition of the node of the second cluster's broker, as a node controller does.
func setNodeReady(t *testing.T, ctx context.Context, status corev1.ConditionStatus) {
	t.Helper()
	n := &corev1.Node{}
	must(t, brokers[1].Client.Get(ctx, client.ObjectKey{Name: brokers[1].Gateway().Name}, n))
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status, Reason: "NodeStatusUnknown",
		Message: "Kubelet stopped posting node status.", LastTransitionTime: metav1.Now()}}
	must(t, brokers[1].Client.Status().Update(ctx, n))
}

func startAgain(t *testing.T, b *fleet.Broker) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	must(t, b.Start(ctx))
}

// withoutRule takes the rights for a resource from the broker's ClusterRole.
func withoutRule(resource string) func(*testing.T, context.Context) {
	return func(t *testing.T, ctx context.Context) {
		t.Helper()
		t.Cleanup(func() { must(t, applyAgain("rbac.yaml")(context.Background())) })
		role := &rbacv1.ClusterRole{}
		must(t, b0().Client.Get(ctx, client.ObjectKey{Name: "kubelink"}, role))
		role.Rules = slices.DeleteFunc(role.Rules, func(r rbacv1.PolicyRule) bool {
			return slices.Contains(r.Resources, resource)
		})
		must(t, b0().Client.Update(ctx, role))
	}
}

// certificateSource makes a certificate, its key, and the CAs to trust.
type certificateSource func() (cert, key, ca []byte, err error)

// withCertificate gives a broker something else for its secret.
func withCertificate(b func() *fleet.Broker, make certificateSource) func(*testing.T, context.Context) {
	return func(t *testing.T, ctx context.Context) {
		t.Helper()
		t.Cleanup(func() { must(t, b().NewCertificate(context.Background(), f.CA, b().FQDN)) })
		cert, key, ca, err := make()
		must(t, err)
		must(t, b().TLSSecret(ctx, fleet.Namespace, fleet.Secret, cert, key, ca))
	}
}

// issue makes a certificate of an authority for a name.
func issue(ca *testbed.CA, name string, bundle []byte, edits ...func(*x509.Certificate)) certificateSource {
	return func() ([]byte, []byte, []byte, error) {
		cert, key, err := ca.Issue([]string{name}, nil, edits...)
		return cert, key, bundle, err
	}
}

// clusterFaults are those of clusters and of objects.
func clusterFaults() []fault {
	pending := corev1.PodStatus{Phase: corev1.PodPending, ContainerStatuses: []corev1.ContainerStatus{{
		Name: "kubelink", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{
			Reason: "ImagePullBackOff", Message: "no such image"}},
	}}}
	return []fault{
		{name: "two brokers have the links (H25)", reason: "TwoHolders", inject: startTwin, // peers remember it for a minute
			texts: []string{"several brokers carry the link", "kubelink-twin", "no omit-lease"}},
		{name: "an API server is dead", contexts: []string{brokers[2].Name, b0().Name}, reason: "APIServerUnreachable",
			inject: func(t *testing.T, ctx context.Context) {
				must(t, brokers[2].StopAPIServer(ctx))
				t.Cleanup(func() { must(t, brokers[2].StartAPIServer(context.Background())) })
			}, texts: []string{"does not answer", "see that the server of the context is right"}},
		{name: "no such context", contexts: []string{"elsewhere"}, reason: "NoContext",
			texts: []string{"elsewhere", "kubectl config get-contexts"}},
		{name: "no rights", contexts: []string{"nobody"}, reason: "NoRights",
			texts: []string{"you may not list pods in namespace kubelink", "use a context whose user may"}},
		{name: "another namespace", flags: []string{"-n", "kube-public"}, reason: "NotInstalled",
			texts: []string{"no pod with the label app=kubelink in namespace kube-public", "--namespace"}},
		{name: "the image cannot be had", inject: withPod(pending, ""), reason: "PodNotRunning",
			texts: []string{"ImagePullBackOff: no such image", "imagePullSecrets"}},
		{name: "the node has no TUN", reason: "NoTUN", inject: withPod(corev1.PodStatus{Phase: corev1.PodPending},
			`MountVolume.SetUp failed for volume "tun": hostPath type check failed: /dev/net/tun is not a character device`),
			texts: []string{"/dev/net/tun is not a character device", "modprobe tun"}},
		{name: "the broker has ended", inject: onBroker(syscall.SIGKILL, 0), reason: "BrokerUnreachable",
			texts: []string{"does not answer", "connection refused", "that the broker runs (its log)"}},
		{name: "the broker hangs", inject: onBroker(syscall.SIGSTOP, syscall.SIGCONT), reason: "BrokerUnreachable",
			texts: []string{"no answer within", "see that the node is alive"}},
		{name: "the node of the broker is cut off", reason: "BrokerUnreachable", inject: unplugNode,
			texts: []string{"node kubelink2-node1 does not answer: no answer within", "see that the node is alive"}},
		{name: "the node of the broker is dead, and the API server knows", reason: "NodeNotReady", object: "kubelink2-node1",
			inject: func(t *testing.T, ctx context.Context) { // there is no node controller
				unplugNode(t, ctx)
				setNodeReady(t, ctx, corev1.ConditionUnknown)
				t.Cleanup(func() { setNodeReady(t, context.Background(), corev1.ConditionTrue) })
			}, texts: []string{"the node is not ready", "Kubelet stopped posting node status.", "get node kubelink2-node1"}},
		{name: "the broker may not review tokens", inject: withoutRule("tokenreviews"), reason: "ReportRefused",
			texts: []string{"cannot ask the API server who this is", "create for tokenreviews"}},
		{name: "the account of reports is gone", reason: "AccountMissing",
			inject: kubectl([]string{"-n", "kubelink", "delete", "serviceaccount", "kubelink-diagnosis"},
				applyAgain("rbac.yaml")),
			texts: []string{"does not exist", "apply deploy/base/rbac.yaml"}},
		{name: "the account of reports has no right", reason: "ReportRefused",
			inject: kubectl([]string{"delete", "clusterrolebinding", "kubelink-diagnosis"}, applyAgain("rbac.yaml")),
			texts:  []string{"may not get /diagnosis", "nonResourceURL"}},
		{name: "the cluster's DNS does not reach kubelink", reason: "NamesNotReached",
			inject: func(t *testing.T, ctx context.Context) {
				must(t, b0().CustomDNS(ctx, "kubelink.server", ""))
				t.Cleanup(func() { must(t, b0().StubDomain(context.Background(), "kubelink")) })
			},
			texts: []string{"does not find the names of kubelink", "forward kubelink to the service kubelink-dns"}},
		{name: "a link has no way back", inject: func(t *testing.T, ctx context.Context) {
			must(t, brokers[1].Remove(ctx, b0().Name))
			t.Cleanup(func() { restoreMesh(t) })
			must(t, brokers[1].Apply(ctx, newKubeLink("kept", "192.168.0.60/24", "x.example", nil)))
			t.Cleanup(func() { must(t, brokers[1].Remove(context.Background(), "kept")) })
		}, reason: "OneSidedLink", texts: []string{"has no link back", "kubectl kubelink connect kubelink1 kubelink2"}},
		{name: "the network of another cluster", reason: "WrongNetwork", inject: changeLink(func(s *v1alpha1.KubeLinkSpec) {
			s.CIDR = "100.66.0.0/20"
		}), texts: []string{"spec.cidr 100.66.0.0/20 is not the service network of kubelink2", "set spec.cidr"}},
	}
}

// objectFaults are those of KubeLinks and MeshServices.
func objectFaults() []fault {
	meshService := `apiVersion: kubelink.mandelsoft.org/v1alpha1
kind: MeshService
metadata: {name: broken, namespace: default}
spec: {meshAddress: 192.168.77.7, service: nothing}
`
	return []fault{
		{name: "overlapping networks", inject: withLink("far", "192.168.0.50/24", "x.example",
			withCIDR(b0().ServiceCIDR.String())),
			reason: "OverlappingNetworks", texts: []string{"overlaps with the local service network", "remove spec.cidr"}},
		{name: "a network with the node's LAN (H07)", inject: withLink("far", "192.168.0.50/24", "x.example",
			withEgress("10.250.0.0/24")), reason: "LinkInvalid",
			texts: []string{"spec.egress 10.250.0.0/24 lies in the node-cidr", "far"}},
		{name: "a network with the endpoint (H13)", inject: changeLink(withEgress("172.31.0.0/24")), reason: "LinkInvalid",
			texts: []string{"contains the endpoint kubelink.kubelink2", "narrow the network"}},
		{name: "a cluster address twice", inject: withLink("far", brokers[1].MeshAddress.String(), "x.example", nil),
			reason: "LinkInvalid", texts: []string{"is already used by the older link kubelink2", "far"}},
		{name: "a wrong mask", inject: withLink("far", "192.168.0.50/16", "x.example", nil), reason: "LinkInvalid",
			texts: []string{"the mask of", "use 192.168.0.50/24"}},
		{name: "a mesh without LocalLink", inject: withLink("m9--far", "192.168.9.50/24", "x.example", nil),
			reason: "LinkStale", texts: []string{"has no LocalLink", "create KubeLink"}},
		{name: "a gateway that is not there", inject: withLink("far", "192.168.0.50/24", "", func(s *v1alpha1.KubeLinkSpec) {
			s.GatewayLink = "nowhere"
		}), reason: "LinkStale", texts: []string{"spec.gatewayLink nowhere does not exist", "create that link"}},
		{name: "an unknown name", inject: withLink("far", "192.168.0.50/24", "nowhere.invalid", nil), reason: "LinkDown",
			texts: []string{" nowhere.invalid:", "correct the name in spec.endpoint"}},
		{name: "a broken MeshService", reason: "MeshServiceInvalid", inject: func(t *testing.T, ctx context.Context) {
			t.Cleanup(func() { b0().Kubectl(context.Background(), "delete", "meshservice", "broken") })
			_, err := b0().KubectlInput(ctx, meshService, "apply", "-f", "-")
			must(t, err)
		}, texts: []string{"has no such service", "create it"}},
	}
}

// fieldFaults are others of those that were reported from the field.
func fieldFaults() []fault {
	return []fault{
		{name: "a Corefile whose glob takes no server blocks (H22)", reason: "NamesNotForwarded", inject: spoilImports,
			texts: []string{`/*.override", which does not include key kubelink.server`, "import *.server"}},
		{name: "the port for links is taken (H23)", reason: "NotApplied", inject: takePort,
			texts: []string{"address already in use", "end the program that has"}},
		{name: "a native rule in a table of iptables (H01)", reason: "NotApplied", inject: spoilChain,
			texts: []string{"KLINK-POSTROUTING", "a rule that was made with nft", "move that rule to a table of its own"}},
		{name: "state-dir is full (H27)", reason: "StateDirUnusable", inject: fillStateDir,
			texts: []string{"no space left on device", "free space", "remove state-dir"}},
		{name: "the lock of xtables is held (F1)", reason: "NotApplied", inject: func(t *testing.T, ctx context.Context) {
			t.Helper()
			holdXtablesLock(t, ctx, b0(), useLegacyIptables(t, ctx, b0()))
			tellKernel(t, ctx, b0(), "10.81.0.0/16")
		}, texts: []string{"holding the xtables lock", "fuser /run/xtables.lock"}},
		{name: "CRDs cannot be written (F2)", reason: "CRDsOutdated", inject: refuseCRDs,
			texts: []string{"CRDs are not as this version needs them", "kubectl apply --server-side -f deploy/crds"}},
		{name: "a name of another namespace (review 3)", reason: "GlobalNameInvalid",
			inject: func(t *testing.T, ctx context.Context) {
				spec := coredns.CoreDNSEntrySpec{DNSNames: []coredns.DNSName{"db.svc.global.kubelink"},
					A: []coredns.IPv4Address{"10.99.0.1"}}
				createForTest(t, ctx, b0(), newEntry("db", spec))
				waitForRecords(t, b0(), "db", dns.TypeA, "A 10.99.0.1")
				evil := newEntry("evil", spec)
				evil.Namespace = "kube-public"
				createForTest(t, ctx, b0(), evil)
			}, texts: []string{"db.svc.global.kubelink belongs to", "default"}},
	}
}

// spoilImports makes coredns-configure useless: the Corefile of the cluster's DNS does not import what that writes.
func spoilImports(t *testing.T, ctx context.Context) {
	t.Helper()
	b := b0()
	t.Cleanup(func() { must(t, b.StubDomain(context.Background(), "kubelink")) })
	config := dnsConfigMap("coredns")
	must(t, b.Client.Get(ctx, client.ObjectKeyFromObject(config), config))
	good := config.Data["Corefile"]
	set := func(text string) {
		config.Data["Corefile"] = text
		must(t, b.Client.Update(context.Background(), config))
	}
	t.Cleanup(func() { set(good) })
	set(strings.Replace(good, "/*.server", "/*.override", 1))
	applyForTest(t, ctx, b, "components/coredns-configure/rbac.yaml")
	editCorefile(t, ctx, b, "dns-propagation dns", "dns-propagation dns\ncoredns-configure")
}

// takePort starts the first broker when another program has the port for links.
func takePort(t *testing.T, ctx context.Context) {
	t.Helper()
	b := b0()
	must(t, b.Kill(ctx, syscall.SIGTERM))
	t.Cleanup(func() { must(t, b.Kill(context.Background(), syscall.SIGTERM)); startAgain(t, b) })
	var other io.Closer
	var err error
	if f.Mode == mesh.WireGuard {
		other, err = b.Gateway().ListenPacket("udp", ":8777")
	} else {
		other, err = b.Gateway().Listen("tcp", ":8088")
	}
	must(t, err)
	t.Cleanup(func() { other.Close() })
	must(t, b.Launch())
}

// spoilChain adds a rule to a chain of iptables that iptables cannot read.
func spoilChain(t *testing.T, ctx context.Context) {
	t.Helper()
	t.Cleanup(func() { restoreMesh(t) })
	t.Cleanup(func() {
		b0().Gateway().Run(context.Background(), "sh", "-c",
			"nft delete rule ip nat POSTROUTING handle "+
				"$(nft -a list chain ip nat POSTROUTING | sed -n 's/.*numgen.*handle //p')")
	})
	_, err := b0().Gateway().Run(ctx, "nft", "insert", "rule", "ip", "nat", "POSTROUTING", "numgen", "random", "mod", "2",
		"==", "0", "counter")
	must(t, err)
	tellKernel(t, ctx, b0(), "10.84.0.0/16")
}

// startTwin starts a second broker in the first cluster, that asks nobody whether it may have the links.
func startTwin(t *testing.T, ctx context.Context) {
	t.Helper()
	node, err := b0().AddNode(ctx)
	must(t, err)
	twin, err := b0().Beside(ctx, "kubelink-twin", node,
		strings.Replace(b0().Corefile(), "dns-propagation dns", "dns-propagation dns\nomit-lease", 1))
	must(t, err)
	t.Cleanup(func() {
		must(t, twin.Host.Delete(context.Background()))
		must(t, f.WaitMesh(context.Background()))
	})
	must(t, twin.Launch())
}

// fillStateDir gives the first broker a folder for what has to survive a restart, on a full disk.
func fillStateDir(t *testing.T, ctx context.Context) {
	t.Helper()
	const dir = "/run/full-disk"
	_, err := b0().Host.Run(ctx, "sh", "-c",
		"mkdir -p $0 && mount -t tmpfs -o size=16k none $0 && ! dd if=/dev/zero of=$0/full", dir)
	must(t, err)
	t.Cleanup(func() { b0().Host.Run(context.Background(), "umount", "-l", dir) })
	editCorefile(t, ctx, b0(), "dns-propagation dns", "dns-propagation dns\nstate-dir "+dir)
}

// refuseCRDs starts the first broker with an API server that refuses to change CRDs.
func refuseCRDs(t *testing.T, ctx context.Context) {
	t.Helper()
	startProxy(t, b0()).setFault(func(w http.ResponseWriter, r *http.Request) bool {
		crd := r.Method == http.MethodPatch && strings.HasPrefix(r.URL.Path, "/apis/apiextensions.k8s.io/")
		return crd && refuse(w)
	})
	must(t, b0().Kill(ctx, syscall.SIGTERM))
	startAgain(t, b0())
}

// startFarRouter adds a node with a router to the second cluster.
func startFarRouter(t *testing.T, ctx context.Context) *farNode {
	t.Helper()
	w := startFarNode(t, ctx, brokers[1], 0)
	must(t, w.router.Launch())
	must(t, w.router.WaitReady(ctx))
	t.Cleanup(func() {
		must(t, w.router.Kill(context.Background(), syscall.SIGTERM))
		must(t, w.router.Cleanup(context.Background()))
	})
	return w
}

// routerFaults are those of a node that is not the gateway.
func routerFaults(w *farNode) []fault {
	n, network := w.router.Host.Node, b0().ServiceCIDR.String()
	spoil := func(spoil, heal string) func(*testing.T, context.Context) {
		return func(t *testing.T, ctx context.Context) {
			t.Helper()
			t.Cleanup(func() {
				_, err := n.Run(context.Background(), "sh", "-c", heal)
				must(t, err)
			})
			_, err := n.Run(ctx, "sh", "-c", spoil)
			must(t, err)
		}
	}
	return []fault{
		{name: "a foreign route on another node", reason: "ForeignRoute", object: n.Name,
			inject: spoil("ip route add prohibit "+network+" metric 50", "ip route del prohibit "+network+" metric 50"),
			texts:  []string{"packets to " + network + " take a route that is not kubelink's", "ip route del prohibit"}},
		{name: "forwarding off on another node", reason: "ForwardingOff", object: n.Name,
			inject: spoil("echo 0 > /proc/sys/net/ipv4/ip_forward", "echo 1 > /proc/sys/net/ipv4/ip_forward"),
			texts:  []string{"forwarding is off for packets of pods", "sysctl -w net.ipv4.conf.all.forwarding=1"}},
		{name: "a firewall on another node", reason: "PacketFilter", object: n.Name,
			inject: spoil("nft add table inet site; nft add chain inet site fw '{ type filter hook forward priority 0; }'; "+
				"nft add rule inet site fw ip daddr "+network+" drop", "nft delete table inet site"),
			texts: []string{"packets of pods to " + network + " are dropped on this node", "chain inet site fw",
				"nft insert rule inet site fw oifname eth0 accept"}},
		{name: "the network of another node has a smaller MTU", reason: "LargeDropped", object: n.Name,
			inject: func(t *testing.T, ctx context.Context) {
				t.Helper()
				relaunch := func() { // it asks at once
					must(t, w.router.Kill(ctx, syscall.SIGTERM))
					must(t, w.router.Launch())
				}
				t.Cleanup(relaunch)
				spoil("nft add table netdev site; nft add chain netdev site out '{ type filter hook egress device eth0 "+
					"priority 0; }'; nft add rule netdev site out ip daddr "+w.broker.MeshAddress.Masked().String()+
					" meta length '>' 1314 drop", "nft delete table netdev site")(t, ctx)
				relaunch()
			}, texts: []string{"get lost between this node and the gateway", "small ones do not", "MTU"}},
	}
}

// certificateFaults are those of mode bridge.
func certificateFaults(t *testing.T) []fault {
	stranger, err := testbed.NewCA("stranger")
	must(t, err)
	first, second := b0, func() *fleet.Broker { return brokers[1] }
	name := b0().FQDN
	glued := append(bytes.TrimRight(f.CA.PEM, "\n"), stranger.PEM...)
	return []fault{
		{name: "no CA (H10)", inject: withCertificate(first, issue(f.CA, name, nil)), reason: "CertificateUnusable",
			texts: []string{"ca.crt", "the certificate in use stays"}},
		{name: "a certificate of another CA (H11)", inject: withCertificate(first, issue(stranger, name, f.CA.PEM)),
			reason: "CertificateUnusable", texts: []string{"kubelink-tls"}},
		{name: "two CAs on one line (H12)", inject: withCertificate(first, issue(f.CA, name, glued)),
			reason: "CertificateUnusable", texts: []string{"ca.crt: block"}},
		{name: "a certificate that ends soon", inject: withCertificate(first, issue(f.CA, name, f.CA.PEM,
			func(c *x509.Certificate) {
				c.NotBefore, c.NotAfter = time.Now().Add(-720*time.Hour), time.Now().Add(48*time.Hour)
			})), reason: "CertificateExpires", texts: []string{"secret kubelink/kubelink-tls is valid until", "renew it"}},
		{name: "the peer has another CA", inject: withCertificate(second, issue(stranger, brokers[1].FQDN, stranger.PEM)),
			reason: "LinkDown", texts: []string{"trust the CA of the other"}},
		{name: "the certificate of the peer has another name", reason: "LinkDown", inject: func(
			t *testing.T, ctx context.Context,
		) {
			t.Cleanup(func() { must(t, brokers[1].NewCertificate(context.Background(), f.CA, brokers[1].FQDN)) })
			must(t, brokers[1].NewCertificate(ctx, f.CA, "other.example"))
			must(t, brokers[1].Kill(ctx, syscall.SIGKILL))
			must(t, brokers[1].Launch())
		}, texts: []string{"names [other.example]", "give the peer a certificate of that name"}},
	}
}

// Each fault is found with its cause and its remedy, and the mesh is healthy before and after.
func TestDiagnoseFaults(t *testing.T) {
	ctx := startTest(t, 10*time.Minute)
	c := newCommandLine(t)
	c.expectHealthy(t)
	faults := slices.Concat(clusterFaults(), objectFaults(), fieldFaults())
	if f.Mode == mesh.Bridge {
		faults = append(faults, certificateFaults(t)...)
	}
	faults = append(faults, routerFaults(startFarRouter(t, ctx))...)
	for _, n := range nodeCases() {
		inject := func(t *testing.T, ctx context.Context) {
			t.Cleanup(func() { b0().Gateway().Run(context.Background(), "sh", "-c", n.heal) })
			_, err := b0().Gateway().Run(ctx, "sh", "-c", n.spoil)
			must(t, err)
		}
		faults = append(faults, fault{name: n.name, reason: n.reason, texts: n.texts, inject: inject})
	}
	for _, one := range faults {
		t.Run(one.name, func(t *testing.T) {
			if one.inject != nil {
				one.inject(t, ctx)
			}
			contexts := one.contexts
			if contexts == nil {
				contexts = names()[:2]
			}
			var found finding
			took := within(t, 30*time.Second, "finding "+one.reason, func(context.Context) (err error) {
				found, err = findFault(c.diagnose(t, append(one.flags, contexts...)...), &one)
				return err
			})
			t.Logf("after %s: %s %s\n  cause:  %s\n  remedy: %s",
				took, found.Object.Kind, found.Object.Name, found.Message, found.Remedy)
			if one.reason == "APIServerUnreachable" || one.reason == "BrokerUnreachable" || one.reason == "NodeNotReady" {
				c.expectUnanswered(t, contexts)
			}
		})
	}
	restoreMesh(t)
	c.expectHealthy(t)
	t.Logf("%d faults", len(faults))
}

// findFault finds the finding about a fault.
func findFault(all []finding, one *fault) (finding, error) {
	for _, f := range all {
		text := f.Message + " | " + f.Remedy
		if f.Reason == one.reason && f.Message != "" && f.Remedy != "" && f.Object.Name != "" &&
			(one.object == "" || one.object == f.Object.Name) &&
			!slices.ContainsFunc(one.texts, func(part string) bool { return !strings.Contains(text, part) }) {
			return f, nil
		}
	}
	return finding{}, fmt.Errorf("found %+v", all)
}
