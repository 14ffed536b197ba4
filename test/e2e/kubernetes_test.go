package e2e

// Names from the API servers of the clusters (dns-propagation kubernetes).

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// useAPIServers makes the first broker load names from API servers, as deploy/README.md says, and gives it access to
// the API of the second cluster.
func useAPIServers(t *testing.T, ctx context.Context) {
	t.Helper()
	applyFiles(t, ctx, brokers[1], "components/kubernetes-dns/account.yaml")
	applyFiles(t, ctx, brokers[0], "components/kubernetes-dns/account.yaml", "components/kubernetes-dns/rbac.yaml")
	writeAccessSecret(t, ctx, "kubelink2-api", map[string]string{
		"token":                      createToken(t, ctx, brokers[1], "kubelink-dns"),
		"certificate-authority-data": readRootCA(t, ctx, brokers[1]),
	})
	editCorefile(t, ctx, brokers[0], "dns-propagation dns", "dns-propagation kubernetes")
	setAccess(t, ctx, brokers[1], corev1.SecretReference{Name: "kubelink2-api"})
	within(t, 10*time.Second, "names of the second cluster", func(ctx context.Context) error {
		if v, err := brokers[0].Metric(ctx, `coredns_kubelink_cluster_names_up{zone="kubelink2.kubelink."}`); err != nil ||
			v != 1 {
			return fmt.Errorf("they are not loaded: %v", err)
		}
		return checkAnswer(ctx, brokers[0], serverName(1), servers[1].service)
	})
}

func applyFiles(t *testing.T, ctx context.Context, b *fleet.Broker, files ...string) {
	t.Helper()
	for _, file := range files {
		text, err := b.Manifest(file)
		must(t, err)
		_, err = b.KubectlInput(ctx, text, "apply", "-f", "-")
		must(t, err)
	}
}

// createToken requests a token with the TokenRequest API.
func createToken(t *testing.T, ctx context.Context, b *fleet.Broker, account string) string {
	t.Helper()
	text, err := b.Kubectl(ctx, "-n", fleet.Namespace, "create", "token", account)
	must(t, err)
	return strings.TrimSpace(text)
}

func readRootCA(t *testing.T, ctx context.Context, b *fleet.Broker) string {
	t.Helper()
	text, err := b.Kubectl(ctx, "-n", fleet.Namespace, "get", "configmap", "kube-root-ca.crt", "-o",
		`jsonpath={.data.ca\.crt}`)
	must(t, err)
	return text
}

// createAccount makes a service account without any permission.
func createAccount(t *testing.T, ctx context.Context, b *fleet.Broker, name string) {
	t.Helper()
	a := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: fleet.Namespace, Name: name}}
	must(t, b.Client.Create(ctx, a))
	t.Cleanup(func() { b.Client.Delete(context.Background(), a) })
}

// writeAccessSecret writes a secret in the first cluster.
func writeAccessSecret(t *testing.T, ctx context.Context, name string, data map[string]string) {
	t.Helper()
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: fleet.Namespace, Name: name}}
	result, err := controllerutil.CreateOrUpdate(ctx, brokers[0].Client, s, func() error {
		s.Data, s.StringData = nil, data
		return nil
	})
	must(t, err)
	if result == controllerutil.OperationResultCreated {
		t.Cleanup(func() { brokers[0].Client.Delete(context.Background(), s) })
	}
}

// setAccess sets spec.apiAccess of the first cluster's link to another cluster.
func setAccess(t *testing.T, ctx context.Context, to *fleet.Broker, ref corev1.SecretReference) {
	t.Helper()
	l := to.LinkTo()
	l.Spec.APIAccess = &ref
	must(t, brokers[0].Apply(ctx, l))
}

// waitForMessage waits until the message of a link that is Up has the text; without text, until it is empty.
func waitForMessage(t *testing.T, limit time.Duration, link, text string) {
	t.Helper()
	within(t, limit, fmt.Sprintf("message %q", text), func(ctx context.Context) error {
		l, err := brokers[0].Link(ctx, link)
		switch {
		case err != nil:
			return err
		case l.Status.State != v1alpha1.StateUp, !strings.Contains(l.Status.Message, text),
			text == "" && l.Status.Message != "":
			return fmt.Errorf("%s: %s", l.Status.State, l.Status.Message)
		}
		return nil
	})
}

// All kinds of names, of the own cluster and of others, beside a cluster without API access.
func TestKubernetesDNS(t *testing.T) {
	ctx := startTest(t, 3*time.Minute)
	one, two := brokers[0], brokers[1]
	useAPIServers(t, ctx)
	const domain = "default.svc.kubelink2.kubelink."

	// The endpoints of a headless service: one pod has a name of its own.
	named, err := two.Pod(ctx, "named",
		testbed.PodOptions{Labels: map[string]string{"app": "headless"}, Hostname: "web-0", Subdomain: "headless"})
	must(t, err)
	defer named.Delete(ctx)
	plain, err := two.Pod(ctx, "plain", testbed.PodOptions{Labels: map[string]string{"app": "headless"}})
	must(t, err)
	defer plain.Delete(ctx)
	ports := []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80,
		TargetPort: intstr.FromInt32(httpPort)}}
	_, err = two.Service(ctx, "headless", map[string]string{"app": "headless"}, ports,
		testbed.ServiceOptions{Headless: true})
	must(t, err)
	alias := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: "alias"}}
	alias.Spec.Type, alias.Spec.ExternalName = corev1.ServiceTypeExternalName, "server.default.svc.cluster.local"
	must(t, two.Client.Create(ctx, alias))
	for _, name := range []string{"headless", "alias"} {
		defer two.Client.Delete(ctx,
			&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: name}})
	}

	dashed := strings.ReplaceAll(plain.Address.String(), ".", "-")
	server, web0 := "server."+domain, "web-0.headless."+domain
	// Addresses of pods lead to pods of the asking cluster, if anywhere: they are left out.
	for _, c := range []struct {
		name string
		kind uint16
		want []string // in any order; none: the name or the type does not exist, or addresses are left out
	}{
		{server, dns.TypeA, []string{server + " A " + servers[1].service.String()}},
		{"SERVER.Default.svc.KubeLink2.kubelink.", dns.TypeA,
			[]string{"SERVER.Default.svc.KubeLink2.kubelink. A " + servers[1].service.String()}},
		{server, dns.TypeAAAA, nil},
		{"_http._tcp." + server, dns.TypeSRV, []string{"_http._tcp." + server + " SRV 0 100 80 " + server}},
		{"headless." + domain, dns.TypeA, nil},
		{web0, dns.TypeA, nil},
		{dashed + ".headless." + domain, dns.TypeA, nil},
		{"_http._tcp.headless." + domain, dns.TypeSRV, []string{
			"_http._tcp.headless." + domain + " SRV 0 50 8080 " + web0,
			"_http._tcp.headless." + domain + " SRV 0 50 8080 " + dashed + ".headless." + domain,
		}},
		{"alias." + domain, dns.TypeA,
			[]string{"alias." + domain + " CNAME " + server, server + " A " + servers[1].service.String()}},
		{"alias." + domain, dns.TypeCNAME, []string{"alias." + domain + " CNAME " + server}},
		{"nobody." + domain, dns.TypeA, nil},
		{"kubernetes." + domain, dns.TypeA, []string{"kubernetes." + domain + " A " + two.APIAddress.String()}},
		{serverName(0), dns.TypeA, []string{serverName(0) + " A " + servers[0].service.String()}}, // from the own API server
		{serverName(2), dns.TypeA, []string{serverName(2) + " A " + servers[2].service.String()}}, // from a DNS service
	} {
		for _, network := range []string{"udp", "tcp"} {
			within(t, 5*time.Second, c.name, func(ctx context.Context) error {
				m, why, err := queryBroker(ctx, one, network, c.name, c.kind)
				if err != nil {
					return err
				}
				var got []string
				for _, rr := range m.Answer {
					h := rr.Header()
					if h.Ttl > 5 {
						t.Errorf("%s lives for %d s", h.Name, h.Ttl)
					}
					got = append(got, h.Name+" "+strings.Join(strings.Fields(rr.String())[3:], " "))
				}
				if m.Rcode == dns.RcodeServerFailure || len(got) != len(c.want) {
					return fmt.Errorf("%s %v, want %v (%s)", dns.RcodeToString[m.Rcode], got, c.want, why)
				}
				for _, want := range c.want {
					if !strings.Contains(strings.Join(got, "\n")+"\n", want+"\n") {
						return fmt.Errorf("%v, want %v", got, c.want)
					}
				}
				return nil
			})
		}
	}
	for name, addr := range map[string]netip.Addr{
		"headless." + domain: plain.Address, web0: named.Address, "_http._tcp.headless." + domain: named.Address,
	} {
		kind := dns.TypeA
		if name[0] == '_' {
			kind = dns.TypeSRV // with an address in the additional section
		}
		m, why, err := queryBroker(ctx, one, "tcp", name, kind)
		must(t, err)
		if m.Rcode != dns.RcodeSuccess || !strings.HasPrefix(why, "left out ") || !strings.Contains(why, addr.String()) ||
			strings.Contains(fmt.Sprint(m.Answer, m.Extra[1:]), "100.96.") {
			t.Errorf("%s: %q\n%s", name, why, m)
		}
	}
	waitForMessage(t, 5*time.Second, "kubelink3",
		"names come from the DNS service of the cluster, not from its API server: spec.apiAccess is not set")
	waitForMessage(t, 5*time.Second, "kubelink2", "")

	// A service that appears or disappears in the other cluster shows at once, also in a pod.
	for range 3 {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: "late"}}
		s.Spec.Ports = ports
		must(t, two.Client.Create(ctx, s))
		took := within(t, time.Second, "name of a new service", func(ctx context.Context) error {
			m, err := clients[0].Query(ctx, "late."+domain, dns.TypeA)
			if err == nil && len(m.Answer) == 0 {
				err = errors.New(dns.RcodeToString[m.Rcode])
			}
			return err
		})
		must(t, two.Client.Delete(ctx, s))
		gone := within(t, time.Second, "end of its name", func(ctx context.Context) error {
			m, err := clients[0].Query(ctx, "late."+domain, dns.TypeA)
			if err == nil && m.Rcode != dns.RcodeNameError {
				err = errors.New(dns.RcodeToString[m.Rcode])
			}
			return err
		})
		t.Logf("new name after %s, gone after %s", took, gone)
	}
}

// Names fail at once with the link. They return with it, and are up to date.
func TestKubernetesDNSFollowsLinks(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	one, two := brokers[0], brokers[1]
	useAPIServers(t, ctx)
	must(t, two.Kill(ctx, syscall.SIGKILL))
	must(t, one.WaitState(ctx, "kubelink2", v1alpha1.StateDown))
	must(t, checkFailure(ctx, one, serverName(1), "link kubelink2 is Down"))
	late := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: "late"}}
	late.Spec.Ports = []corev1.ServicePort{{Port: 80}}
	must(t, two.Client.Create(ctx, late))
	defer two.Client.Delete(ctx, late)
	must(t, two.Start(ctx))
	within(t, 5*time.Second, "link to be up again", func(ctx context.Context) error {
		v, err := one.Metric(ctx, `coredns_kubelink_link_up{link="kubelink2"}`)
		if err == nil && v != 1 {
			err = errors.New("not up")
		}
		return err
	})
	named := within(t, time.Second, "names to come back", func(ctx context.Context) error {
		return checkAnswer(ctx, one, serverName(1), servers[1].service)
	})
	fresh := within(t, 3*time.Second, "what has come meanwhile", func(ctx context.Context) error {
		m, _, err := queryBroker(ctx, one, "udp", "late.default.svc.kubelink2.kubelink.", dns.TypeA)
		if err == nil && len(m.Answer) == 0 {
			err = errors.New(dns.RcodeToString[m.Rcode])
		}
		return err
	})
	t.Logf("names after %s, up to date after %s", named, fresh)

	// Names stay when their API server is away.
	must(t, f.WaitMesh(ctx))
	must(t, two.StopAPIServer(ctx))
	waitForMessage(t, 20*time.Second, "kubelink2", "names may be out of date: API server https://"+two.APIAddress.String())
	must(t, checkAnswer(ctx, one, serverName(1), servers[1].service))
	must(t, two.StartAPIServer(ctx))
	waitForMessage(t, 20*time.Second, "kubelink2", "")
	must(t, f.WaitMesh(ctx))
}

// The message says what is wrong with credentials. Other clusters are not affected. New credentials take over without
// a gap.
func TestKubernetesDNSCredentials(t *testing.T) {
	ctx := startTest(t, 3*time.Minute)
	one, two, three := brokers[0], brokers[1], brokers[2]
	useAPIServers(t, ctx)

	// An account without permissions, which gets some later.
	createAccount(t, ctx, three, "nobody")
	ca := readRootCA(t, ctx, three)
	writeAccessSecret(t, ctx, "kubelink3-api",
		map[string]string{"token": createToken(t, ctx, three, "nobody"), "certificate-authority-data": ca})
	setAccess(t, ctx, three, corev1.SecretReference{Namespace: fleet.Namespace, Name: "kubelink3-api"})
	forbidden := []string{"API server https://" + three.APIAddress.String() + ": ", "is forbidden",
		`User "system:serviceaccount:kubelink:nobody"`}
	within(t, 5*time.Second, "reason",
		func(ctx context.Context) error { return checkFailure(ctx, one, serverName(2), forbidden...) })
	waitForMessage(t, 5*time.Second, "kubelink3", "no names: "+forbidden[0])
	must(t, checkAnswer(ctx, one, serverName(1), servers[1].service))
	must(t, checkAnswer(ctx, one, serverName(0), servers[0].service))
	applyFiles(t, ctx, three, "components/kubernetes-dns/account.yaml")
	_, err := three.Kubectl(ctx, "create", "clusterrolebinding", "nobody", "--clusterrole=kubelink-dns",
		"--serviceaccount=kubelink:nobody")
	must(t, err)
	defer three.Kubectl(ctx, "delete", "clusterrolebinding", "nobody")
	within(t, 10*time.Second, "names of the third cluster", func(ctx context.Context) error {
		return checkAnswer(ctx, one, serverName(2), servers[2].service)
	})
	waitForMessage(t, 5*time.Second, "kubelink3", "")

	// Credentials are replaced: no query may fail.
	query, stop := context.WithCancel(ctx)
	defer stop()
	var queries atomic.Int64
	wait := runInBackground(func() error {
		ticker := time.NewTicker(2 * time.Millisecond) // leave time for the brokers
		defer ticker.Stop()
		for ; query.Err() == nil; <-ticker.C {
			if err := checkAnswer(query, one, serverName(1), servers[1].service); err != nil && query.Err() == nil {
				return err
			}
			queries.Add(1)
		}
		return nil
	})
	loaded := func() int {
		return strings.Count(one.Process.FullLog(), "names of the cluster are loaded from its API server")
	}
	secret := func(token string) {
		t.Helper()
		writeAccessSecret(t, ctx, "kubelink2-api",
			map[string]string{"token": token, "certificate-authority-data": readRootCA(t, ctx, two)})
	}
	secret("wrong")
	waitForMessage(t, 10*time.Second, "kubelink2",
		"names may be out of date: API server https://"+two.APIAddress.String()+
			": Unauthorized: the token of secret kubelink/kubelink2-api is not accepted")
	secret("")
	waitForMessage(t, 5*time.Second, "kubelink2",
		"names may be out of date: secret kubelink/kubelink2-api: key token is missing")
	before := loaded()
	createAccount(t, ctx, two, "successor")
	_, err = two.Kubectl(ctx, "create", "clusterrolebinding", "successor", "--clusterrole=kubelink-dns",
		"--serviceaccount=kubelink:successor")
	must(t, err)
	defer two.Kubectl(ctx, "delete", "clusterrolebinding", "successor")
	secret(createToken(t, ctx, two, "successor"))
	within(t, 10*time.Second, "new credentials to take over", func(context.Context) error {
		if loaded() == before {
			return errors.New("not yet")
		}
		return nil
	})
	waitForMessage(t, 5*time.Second, "kubelink2", "")
	// this ends the old token, too
	must(t, two.Client.Delete(ctx,
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: fleet.Namespace, Name: "kubelink-dns"}}))
	late := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: "late"}}
	late.Spec.Ports = []corev1.ServicePort{{Port: 80}}
	must(t, two.Client.Create(ctx, late))
	defer two.Client.Delete(ctx, late)
	within(t, time.Second, "name seen with the new credentials", func(ctx context.Context) error {
		m, _, err := queryBroker(ctx, one, "udp", "late.default.svc.kubelink2.kubelink.", dns.TypeA)
		if err == nil && len(m.Answer) == 0 {
			err = errors.New(dns.RcodeToString[m.Rcode])
		}
		return err
	})
	stop()
	must(t, wait())
	t.Logf("%d queries, none failed", queries.Load())

	// A secret of another namespace needs permission to get it.
	elsewhere := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: "kubelink3-api"}}
	elsewhere.StringData = map[string]string{"token": createToken(t, ctx, three, "nobody"),
		"certificate-authority-data": ca}
	must(t, client.IgnoreAlreadyExists(one.Client.Create(ctx, elsewhere)))
	defer one.Client.Delete(ctx, elsewhere)
	setAccess(t, ctx, three, corev1.SecretReference{Namespace: metav1.NamespaceDefault, Name: "kubelink3-api"})
	waitForMessage(t, 5*time.Second, "kubelink3",
		"names may be out of date: secret default/kubelink3-api: the broker may not read it: allow its service account")
	must(t, checkAnswer(ctx, one, serverName(2), servers[2].service))
	_, err = one.Kubectl(ctx, "-n", "default", "create", "role", "kubelink3-api", "--verb=get", "--resource=secrets",
		"--resource-name=kubelink3-api")
	must(t, err)
	_, err = one.Kubectl(ctx, "-n", "default", "create", "rolebinding", "kubelink3-api", "--role=kubelink3-api",
		"--serviceaccount=kubelink:kubelink")
	must(t, err)
	defer one.Kubectl(ctx, "-n", "default", "delete", "role,rolebinding", "kubelink3-api")
	waitForMessage(t, 40*time.Second, "kubelink3", "")
}
