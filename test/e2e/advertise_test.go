package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// applyForTest applies a file of deploy for the time of a test.
func applyForTest(t *testing.T, ctx context.Context, b *fleet.Broker, file string) {
	t.Helper()
	text, err := b.Manifest(file)
	must(t, err)
	_, err = b.KubectlInput(ctx, text, "apply", "-f", "-")
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, err := b.KubectlInput(ctx, text, "delete", "--ignore-not-found", "--wait=false", "-f", "-")
		must(t, err)
	})
}

// addProperties sets a broker's Corefile to the text with more properties.
func addProperties(t *testing.T, ctx context.Context, b *fleet.Broker, text string, properties ...string) {
	t.Helper()
	must(t, b.SetCorefile(strings.Replace(text, "dns-propagation dns",
		strings.Join(append([]string{"dns-propagation dns"}, properties...), "\n"), 1)))
	must(t, b.Reload(ctx))
}

// advertise makes the second cluster advertise for the time of a test. At the end, the other clusters have forgotten
// what it advertised.
func advertise(t *testing.T, ctx context.Context, properties ...string) (change func(properties ...string)) {
	t.Helper()
	two := brokers[1]
	text := two.Corefile()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for _, b := range []*fleet.Broker{brokers[0], brokers[2]} {
			must(t, b.Remove(ctx, two.Name)) // otherwise it stays in the link
		}
		// After a reload, the broker announces the same as before until it has read the links. A new link would receive
		// that, and the next test would take it for its own: for some seconds, an API server accepts a token of an account
		// that is gone.
		must(t, two.Kill(ctx, syscall.SIGTERM))
		must(t, two.SetCorefile(text))
		must(t, two.Start(ctx))
		for _, b := range []*fleet.Broker{brokers[0], brokers[2]} {
			waitForCollection(t, b)
		}
		restoreMesh(t)
	})
	change = func(properties ...string) { t.Helper(); addProperties(t, ctx, two, text, properties...) }
	change(properties...)
	return change
}

// expectStableLinks fails the test if a link to the second cluster has been lost by its end.
func expectStableLinks(t *testing.T, ctx context.Context) (check func()) {
	t.Helper()
	since := func() string {
		var all []string
		for _, b := range []*fleet.Broker{brokers[0], brokers[2]} {
			l, err := b.Link(ctx, brokers[1].Name)
			must(t, err)
			for _, c := range l.Status.Conditions {
				if c.Type == v1alpha1.ConditionReady {
					all = append(all, fmt.Sprint(c.Status, c.LastTransitionTime))
				}
			}
			all = append(all, fmt.Sprint(strings.Count(b.Process.FullLog(), "link is down")))
		}
		return fmt.Sprint(all)
	}
	before := since()
	return func() {
		t.Helper()
		if now := since(); now != before {
			t.Errorf("a link was lost: %s, before %s", now, before)
		}
	}
}

// waitForDNSFacts waits until the link to the second cluster has these values.
func waitForDNSFacts(t *testing.T, b *fleet.Broker, ip, domain string) *v1alpha1.KubeLink {
	t.Helper()
	var l *v1alpha1.KubeLink
	within(t, 10*time.Second, "DNS facts at "+b.Name, func(ctx context.Context) (err error) {
		if l, err = b.Link(ctx, brokers[1].Name); err != nil {
			return err
		}
		if d := l.Spec.DNS; d == nil || d.DNSIP != ip || d.BaseDomain != domain {
			return fmt.Errorf("they are %+v", d)
		}
		return nil
	})
	return l
}

// The links of the other clusters have the DNS facts that a cluster announces, and follow their changes. A field that
// a user has set stays. A peer does not take over a wrong fact.
func TestAdvertisedDNS(t *testing.T) {
	ctx := startTest(t, 3*time.Minute)
	one, two, three := brokers[0], brokers[1], brokers[2]
	checkLinks := expectStableLinks(t, ctx)
	change := advertise(t, ctx, "dns-advertisement")
	for _, b := range []*fleet.Broker{one, three} {
		l := waitForDNSFacts(t, b, two.DNSAddress.String(), "cluster.local")
		for _, m := range l.ManagedFields {
			if m.Manager != "kubelink-advertised" && strings.Contains(m.FieldsV1.GetRawString(), "f:dnsIP") {
				t.Errorf("%s owns the field, too", m.Manager)
			}
		}
	}

	// Another DNS service with another domain and other answers. A user of the first cluster has set another address.
	_, err := one.Kubectl(ctx, "patch", "kubelink", two.Name, "--type", "merge", "-p",
		`{"spec":{"dns":{"dnsIP":"100.64.16.20"}}}`)
	must(t, err)
	pod, err := two.Pod(ctx, "othernames", testbed.PodOptions{})
	must(t, err)
	conn, err := pod.ListenPacket("udp4", ":53")
	must(t, err)
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if q.Question[0].Name == "server.default.svc.other.example." {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET,
				Ttl: 5}, A: two.APIAddress.AsSlice()}}
		}
		w.WriteMsg(m)
	})}
	go server.ActivateAndServe()
	t.Cleanup(func() {
		server.Shutdown()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		must(t, pod.Delete(ctx))
		must(t, two.Client.Delete(ctx,
			&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "othernames"}}))
	})
	other, err := two.Service(ctx, "othernames", map[string]string{"app": "othernames"},
		[]corev1.ServicePort{testbed.UDPPort(53)}, testbed.ServiceOptions{})
	must(t, err)
	change("dns-advertisement", "dns-service-ip "+other.String(), "cluster-domain Other.Example")
	waitForDNSFacts(t, three, other.String(), "other.example")
	within(t, 2*time.Second, "names of the other DNS service", func(ctx context.Context) error {
		return checkAnswer(ctx, three, serverName(1), two.APIAddress)
	})
	waitForDNSFacts(t, one, "100.64.16.20", "other.example")

	// An address that does not belong to the second cluster, and a domain that would lead back here.
	change("dns-advertisement", "dns-service-ip "+one.DNSAddress.String())
	must(t, three.WaitState(ctx, two.Name, v1alpha1.StateUp, "not used", one.DNSAddress.String(), "spec.egress"))
	waitForDNSFacts(t, three, other.String(), "cluster.local")

	// Back to normal, and then no announcement: the announced facts stay.
	change("dns-advertisement")
	waitForDNSFacts(t, three, two.DNSAddress.String(), "cluster.local")
	waitForDNSFacts(t, one, "100.64.16.20", "cluster.local")
	within(t, 5*time.Second, "the note to go", func(ctx context.Context) error {
		l, err := three.Link(ctx, two.Name)
		if err == nil && l.Status.Message != "" {
			err = errors.New(l.Status.Message)
		}
		return err
	})
	change()
	waitForDNSFacts(t, three, two.DNSAddress.String(), "cluster.local")
	must(t, checkAnswer(ctx, three, serverName(1), servers[1].service))
	checkLinks()
}

// keptAccess is the secret in which brokers keep access to the API of the second cluster.
func keptAccess() *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: fleet.Namespace,
		Name: "kubelink-api-" + brokers[1].Name}}
}

// waitForCollection waits until the secret with access to the API of the second cluster has gone with its link.
func waitForCollection(t *testing.T, b *fleet.Broker) {
	t.Helper()
	within(t, 30*time.Second, "secret with access to be collected in "+b.Name, func(ctx context.Context) error {
		if err := b.Client.Get(ctx, client.ObjectKeyFromObject(keptAccess()), keptAccess()); !apierrors.IsNotFound(err) {
			return fmt.Errorf("it is still there (%v)", err)
		}
		return nil
	})
}

// waitForAPISecret waits until a broker keeps access to the API of the second cluster with another token than the
// given one.
func waitForAPISecret(t *testing.T, limit time.Duration, b *fleet.Broker, other string) *corev1.Secret {
	t.Helper()
	s := keptAccess()
	within(t, limit, "secret with access in "+b.Name, func(ctx context.Context) error {
		if err := b.Client.Get(ctx, client.ObjectKeyFromObject(s), s); err != nil {
			return err
		}
		if string(s.Data["token"]) == other {
			return errors.New("the token is the same as before")
		}
		return nil
	})
	return s
}

// checkAccess uses the access from a pod: it may read services, and nothing else.
func checkAccess(ctx context.Context, from *testbed.Pod, s *corev1.Secret) error {
	api, err := client.New(&rest.Config{
		Host: "https://" + brokers[1].APIAddress.String(), Dial: from.DialContext,
		BearerToken:     string(s.Data["token"]),
		TLSClientConfig: rest.TLSClientConfig{CAData: s.Data["certificate-authority-data"]},
	}, client.Options{})
	if err != nil {
		return err
	}
	var services corev1.ServiceList
	if err := api.List(ctx, &services); err != nil {
		return err
	}
	if len(services.Items) == 0 {
		return errors.New("no services")
	}
	if err := api.List(ctx, &corev1.SecretList{}); !apierrors.IsForbidden(err) {
		return fmt.Errorf("it lists secrets: %v", err)
	}
	return nil
}

// tokenLifetime returns the lifetime in the claims of a token.
func tokenLifetime(t *testing.T, token []byte) time.Duration {
	t.Helper()
	parts := strings.Split(string(token), ".")
	if len(parts) != 3 {
		t.Fatal("this is no token of a service account")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	must(t, err)
	var claims struct{ Exp, Iat int64 }
	must(t, json.Unmarshal(payload, &claims))
	if claims.Exp == 0 {
		return 0
	}
	return time.Duration(claims.Exp-claims.Iat) * time.Second
}

// The other clusters keep the access to its API that a cluster announces, with each new token, and links stay up.
// Where the rights for that are missing, the message says so, and the rest goes on.
func TestAdvertisedAPIAccess(t *testing.T) {
	ctx := startTest(t, 5*time.Minute)
	one, two, three := brokers[0], brokers[1], brokers[2]
	for _, b := range []*fleet.Broker{one, two} {
		applyForTest(t, ctx, b, "components/advertisement/rbac.yaml")
	}
	checkLinks := expectStableLinks(t, ctx)
	change := advertise(t, ctx, "dns-advertisement", "service-account kubelink/kubelink-names")
	first := waitForAPISecret(t, 10*time.Second, one, "")
	l := waitForDNSFacts(t, one, two.DNSAddress.String(), "cluster.local")
	within(t, 5*time.Second, "apiAccess", func(ctx context.Context) (err error) {
		if l, err = one.Link(ctx, l.Name); err != nil {
			return err
		}
		if a := l.Spec.APIAccess; a == nil || a.Namespace != fleet.Namespace || a.Name != first.Name {
			return fmt.Errorf("it is %+v", a)
		}
		return nil
	})
	if owner := []metav1.OwnerReference{{APIVersion: "kubelink.mandelsoft.org/v1alpha1", Kind: "KubeLink", Name: l.Name,
		UID: l.UID}}; !reflect.DeepEqual(first.OwnerReferences, owner) {
		t.Errorf("owned by %+v", first.OwnerReferences)
	}
	if first.Labels["app.kubernetes.io/managed-by"] != "kubelink" || len(first.Data) != 2 {
		t.Errorf("labels %v, %d keys", first.Labels, len(first.Data))
	}
	if d := tokenLifetime(t, first.Data["token"]); d != 24*time.Hour {
		t.Errorf("the token lasts for %s", d)
	}
	must(t, checkAccess(ctx, clients[0], first))

	// The third cluster may not keep it.
	must(t, three.WaitState(ctx, two.Name, v1alpha1.StateUp, "may not keep it",
		"create and patch secrets in namespace kubelink", "spec.apiAccess"))
	if l := waitForDNSFacts(t, three, two.DNSAddress.String(), "cluster.local"); l.Spec.APIAccess != nil {
		t.Errorf("apiAccess is %+v", l.Spec.APIAccess)
	}
	if n := strings.Count(three.Process.Log(), "peers announce access to their API"); n != 1 {
		t.Errorf("%d warnings", n)
	}
	applyForTest(t, ctx, three, "components/advertisement/rbac.yaml")

	// A new token because of the configuration, and another one because the old one died with its account.
	change("dns-advertisement", "service-account kubelink/kubelink-names", "token-lifetime 10m")
	second := waitForAPISecret(t, 10*time.Second, one, string(first.Data["token"]))
	if d := tokenLifetime(t, second.Data["token"]); d != 10*time.Minute {
		t.Errorf("the token lasts for %s", d)
	}
	_, err := two.Kubectl(ctx, "-n", fleet.Namespace, "delete", "serviceaccount", "kubelink-names")
	must(t, err)
	must(t, two.WaitState(ctx, two.Name, v1alpha1.StateUp, "service-account kubelink/kubelink-names", "does not exist"))
	applyForTest(t, ctx, two, "components/advertisement/rbac.yaml")
	third := waitForAPISecret(t, time.Minute, one, string(second.Data["token"]))
	must(t, checkAccess(ctx, clients[0], third))
	must(t, two.WaitState(ctx, two.Name, v1alpha1.StateUp))

	// By now the third cluster has tried again.
	var kept *corev1.Secret
	within(t, 90*time.Second, "the third cluster to keep the latest access", func(ctx context.Context) error {
		kept = waitForAPISecret(t, 90*time.Second, three, "")
		if string(kept.Data["token"]) != string(third.Data["token"]) {
			return errors.New("the token is an older one")
		}
		return nil
	})
	must(t, three.WaitState(ctx, two.Name, v1alpha1.StateUp))

	// A field that a user has set stays.
	_, err = one.Kubectl(ctx, "patch", "kubelink", two.Name, "--type", "merge", "-p",
		`{"spec":{"apiAccess":{"namespace":"default","name":"mine"}}}`)
	must(t, err)
	change("dns-advertisement", "service-account kubelink/kubelink-names", "token-lifetime 11m")
	waitForAPISecret(t, 10*time.Second, three, string(third.Data["token"]))
	if l, err := one.Link(ctx, two.Name); err != nil || l.Spec.APIAccess.Name != "mine" ||
		l.Spec.APIAccess.Namespace != "default" {
		t.Errorf("apiAccess is %+v, %v", l.Spec.APIAccess, err)
	}
	for _, b := range brokers {
		for _, token := range [][]byte{first.Data["token"], second.Data["token"], third.Data["token"]} {
			if strings.Contains(b.Process.FullLog(), string(token)) {
				t.Errorf("%s logs a token", b.Name)
			}
		}
	}
	checkLinks()

	// The secret goes with its link.
	must(t, three.Remove(ctx, two.Name))
	waitForCollection(t, three)
}

// Names do not fail if a token may not read anything: the broker goes on asking the DNS service, and both sides say
// what is missing. With the rights, names come from the API server.
func TestAdvertisedAPIAccessWithoutRights(t *testing.T) {
	ctx := startTest(t, 4*time.Minute)
	one, two := brokers[0], brokers[1]
	const rbac = "components/advertisement/rbac.yaml"
	applyForTest(t, ctx, one, rbac)
	applyForTest(t, ctx, two, rbac)
	_, err := two.Kubectl(ctx, "delete", "clusterrolebinding", "kubelink-names")
	must(t, err)
	applyFiles(t, ctx, one, "components/kubernetes-dns/account.yaml", "components/kubernetes-dns/rbac.yaml")
	editCorefile(t, ctx, one, "dns-propagation dns", "dns-propagation kubernetes")
	advertise(t, ctx, "service-account kubelink/kubelink-names")
	waitForAPISecret(t, 10*time.Second, one, "")
	waitForMessage(t, 10*time.Second, two.Name,
		"names come from the DNS service of the cluster, not from its API server: API server https://"+
			two.APIAddress.String())
	must(t, checkAnswer(ctx, one, serverName(1), servers[1].service))
	must(t, two.WaitState(ctx, two.Name, v1alpha1.StateUp,
		"service-account kubelink/kubelink-names: it may not list namespaces"))
	must(t, checkAnswer(ctx, one, serverName(1), servers[1].service))

	applyForTest(t, ctx, two, rbac)
	within(t, 30*time.Second, "names from the API server", func(ctx context.Context) error {
		if v, err := one.Metric(ctx, `coredns_kubelink_cluster_names_up{zone="kubelink2.kubelink."}`); err != nil || v != 1 {
			return fmt.Errorf("they are not loaded: %v", err)
		}
		return checkAnswer(ctx, one, serverName(1), servers[1].service)
	})
	waitForMessage(t, 10*time.Second, two.Name, "")
}

// The LocalLink says what is wrong with the account, the broker tries again, and links stay up. The broker uses a
// secret with a token if there is one.
func TestServiceAccount(t *testing.T) {
	ctx := startTest(t, 3*time.Minute)
	one, two := brokers[0], brokers[1]
	applyForTest(t, ctx, one, "components/advertisement/rbac.yaml")
	checkLinks := expectStableLinks(t, ctx)
	advertise(t, ctx, "service-account kubelink/kubelink-names")
	must(t, two.WaitState(ctx, two.Name, v1alpha1.StateUp, "service-account kubelink/kubelink-names",
		"may not ask for its token", "serviceaccounts/token"))
	must(t, two.WaitReady(ctx))
	applyForTest(t, ctx, two, "components/advertisement/rbac.yaml")
	asked := waitForAPISecret(t, time.Minute, one, "")
	within(t, 10*time.Second, "the token to be accepted",
		func(ctx context.Context) error { return checkAccess(ctx, clients[0], asked) })
	must(t, two.WaitState(ctx, two.Name, v1alpha1.StateUp))

	// The broker has seen that it may not list secrets. It tries again after ten minutes, or with another configuration.
	applyForTest(t, ctx, two, "components/token-secret/token-secret.yaml")
	made := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: fleet.Namespace, Name: "kubelink-names"}}
	must(t, two.WaitFor(ctx, made, func() error {
		if len(made.Data["token"]) == 0 {
			return errors.New("no token in it yet")
		}
		return nil
	}))
	must(t, two.SetCorefile(strings.Replace(two.Corefile(), "service-account kubelink/kubelink-names",
		"service-account kubelink/kubelink-names\ntoken-lifetime 12h", 1)))
	must(t, two.Reload(ctx))
	fixed := waitForAPISecret(t, 10*time.Second, one, string(asked.Data["token"]))
	if string(fixed.Data["token"]) != string(made.Data["token"]) {
		t.Error("it is not the token of the secret")
	}
	if d := tokenLifetime(t, fixed.Data["token"]); d != 0 {
		t.Errorf("it lasts for %s", d)
	}
	must(t, checkAccess(ctx, clients[0], fixed))
	checkLinks()
}

// With accept-announced off a cluster takes over nothing that its peers announce, until it is on again.
func TestAcceptAnnounced(t *testing.T) {
	ctx := startTest(t, 2*time.Minute)
	one, two, three := brokers[0], brokers[1], brokers[2]
	editCorefile(t, ctx, one, "dns-propagation dns", "dns-propagation dns\naccept-announced off")
	advertise(t, ctx, "dns-advertisement")
	waitForDNSFacts(t, three, two.DNSAddress.String(), "cluster.local")
	must(t, one.WaitState(ctx, two.Name, v1alpha1.StateUp))
	waitForReply(t, 5*time.Second, clients[0], servers[1].service)
	if l, err := one.Link(ctx, two.Name); err != nil || l.Spec.DNS != nil {
		t.Errorf("taken over: %+v, %v", l.Spec.DNS, err)
	}
	must(t, one.SetCorefile(strings.Replace(one.Corefile(), "accept-announced off", "accept-announced on", 1)))
	must(t, one.Reload(ctx))
	waitForDNSFacts(t, one, two.DNSAddress.String(), "cluster.local")
}
