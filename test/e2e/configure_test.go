package e2e

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

func dnsConfigMap(name string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: name}}
}

// checkPodQuery checks the answer that a pod gets from its cluster's DNS.
func checkPodQuery(name string, want int) func(context.Context) error {
	return func(ctx context.Context) error {
		m, err := clients[0].Query(ctx, name, dns.TypeA)
		if err == nil && (m.Rcode != want || want == dns.RcodeSuccess && len(m.Answer) == 0) {
			err = fmt.Errorf("%s: %s %v", name, dns.RcodeToString[m.Rcode], m.Answer)
		}
		return err
	}
}

// The key in the ConfigMap coredns-custom sends the mesh domains from the cluster's DNS to kubelink. The broker keeps
// the key right, and touches or makes nothing else.
func TestConfigureClusterDNS(t *testing.T) {
	ctx := startTest(t, 4*time.Minute)
	// The cluster's DNS reloads within three seconds, one change after another.
	const reloads = 30 * time.Second
	b := brokers[0]
	custom := dnsConfigMap("coredns-custom")
	must(t, b.Client.Delete(ctx, custom))
	t.Cleanup(func() { // runs after the Corefile is back
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		must(t, client.IgnoreNotFound(b.Client.Delete(ctx, dnsConfigMap("coredns-custom"))))
		must(t, b.StubDomain(ctx, "kubelink"))
		within(t, reloads, "names of the mesh", checkPodQuery(serverName(1), dns.RcodeSuccess))
	})
	within(t, reloads, "names of the mesh to be nobody's", checkPodQuery(serverName(1), dns.RcodeServerFailure))

	// Without the right, and without the ConfigMap, the message says what to do.
	editCorefile(t, ctx, b, "dns-propagation dns", "dns-propagation dns\ncoredns-configure", "kubelink:1053 ",
		"second.example:1053 {\n kubelink\n}\nkubelink:1053 ")
	must(t, b.WaitState(ctx, b.Name, v1alpha1.StateUp,
		"coredns-configure: kubelink may not read and write ConfigMap kube-system/coredns-custom"))
	must(t, b.WaitReady(ctx))
	applyForTest(t, ctx, b, "components/coredns-configure/rbac.yaml")
	applyForTest(t, ctx, b, "components/coredns-restart/rbac.yaml")
	missing := "coredns-configure: ConfigMap kube-system/coredns-custom does not exist: create it"
	within(t, 75*time.Second, "the message that it does not exist", func(ctx context.Context) error {
		return b.WaitState(ctx, b.Name, v1alpha1.StateUp, missing)
	})
	block := fmt.Sprintf("kubelink:53 {\n    errors\n    forward . %s {\n        max_fails 0\n    }\n}\n",
		b.MeshDNSAddress)
	if quoted := strconv.Quote(block); !strings.Contains(b.Process.Log(), quoted[1:]) { // other lines are before it
		t.Errorf("the log does not have the lines %s", quoted)
	}

	// The ConfigMap appears with a key of a user, disappears, and appears again.
	const users = "users:53 {\n    template ANY ANY {\n        rcode REFUSED\n    }\n}\n"
	has := func(texts ...string) func(context.Context) error {
		return func(ctx context.Context) error {
			if err := b.Client.Get(ctx, client.ObjectKeyFromObject(custom), custom); err != nil {
				return err
			}
			text := custom.Data["kubelink.server"]
			if n := strings.Count(text, "forward"); n != len(texts) {
				return fmt.Errorf("it is %q", text)
			}
			for _, want := range texts {
				if !strings.Contains(text, want) {
					return fmt.Errorf("it is %q, without %q", text, want)
				}
			}
			return nil
		}
	}
	for range 2 {
		custom = dnsConfigMap("coredns-custom")
		custom.Data = map[string]string{"users.server": users}
		must(t, b.Client.Create(ctx, custom))
		within(t, 10*time.Second, "the key", has(block))
		if len(custom.Data) != 2 || custom.Data["users.server"] != users {
			t.Errorf("the ConfigMap has %v", custom.Data)
		}
		must(t, b.WaitState(ctx, b.Name, v1alpha1.StateUp))
		within(t, reloads, "names of the mesh", checkPodQuery(serverName(1), dns.RcodeSuccess))
		within(t, reloads, "the user's names", checkPodQuery("x.users.", dns.RcodeRefused))
		must(t, b.Client.Delete(ctx, custom))
		must(t, b.WaitState(ctx, b.Name, v1alpha1.StateUp, missing))
	}
	custom = dnsConfigMap("coredns-custom")
	must(t, b.Client.Create(ctx, custom))
	within(t, 10*time.Second, "the key", has(block))

	// The broker undoes a change of its key.
	_, err := b.Kubectl(ctx, "-n", "kube-system", "patch", "configmap", "coredns-custom", "--type", "merge", "-p",
		`{"data":{"kubelink.server":"# mine","other":"mine"}}`)
	must(t, err)
	within(t, 10*time.Second, "the key to be as before", has(block))
	if custom.Data["other"] != "mine" {
		t.Errorf("the ConfigMap has %v", custom.Data)
	}

	// Every mesh with DNS has its domain in the key. The broker restarts the cluster's DNS only if that does not reload
	// by itself.
	deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "coredns"}}
	labels := map[string]string{"k8s-app": "none"}
	deployment.Spec.Selector = &metav1.LabelSelector{MatchLabels: labels}
	deployment.Spec.Template.Labels = labels
	deployment.Spec.Template.Spec.Containers = []corev1.Container{{Name: "coredns", Image: "test-bed"}}
	must(t, b.Client.Create(ctx, deployment))
	t.Cleanup(func() { must(t, b.Client.Delete(context.Background(), deployment)) })
	restarted := func() string {
		t.Helper()
		must(t, b.Client.Get(ctx, client.ObjectKeyFromObject(deployment), deployment))
		return deployment.Spec.Template.Annotations["kubelink.mandelsoft.org/coredns-custom"]
	}
	second := &v1alpha1.KubeLink{ObjectMeta: metav1.ObjectMeta{Name: "second--kubelink1"}}
	second.Spec = v1alpha1.KubeLinkSpec{ClusterAddress: "10.99.0.1/24", Endpoint: v1alpha1.EndpointLocal,
		DNS: &v1alpha1.KubeLinkDNS{BaseDomain: "second.example"}}
	must(t, b.Apply(ctx, second))
	t.Cleanup(func() { must(t, b.Remove(context.Background(), second.Name)) })
	within(t, 3*time.Second, "the second domain", has(block, "second.example:53 {"))
	within(t, reloads, "names of the second mesh", checkPodQuery("ns.dns.second.example.", dns.RcodeSuccess))
	must(t, b.Remove(ctx, second.Name))
	within(t, 3*time.Second, "the second domain to go", has(block))
	if v := restarted(); v != "" {
		t.Errorf("restarted for %s, though there is reload", v)
	}

	config := dnsConfigMap("coredns")
	must(t, b.Client.Get(ctx, client.ObjectKeyFromObject(config), config))
	text := config.Data["Corefile"]
	corefile := func(text string) {
		t.Helper()
		before := config.DeepCopy()
		config.Data["Corefile"] = text
		must(t, b.Client.Patch(context.Background(), config, client.MergeFrom(before)))
	}
	corefile(strings.Replace(strings.Replace(text, "reload 2s 1s", "", 1), ".:53", ".:8053", 1))
	t.Cleanup(func() { corefile(text) })
	must(t, b.Apply(ctx, second))
	within(t, 3*time.Second, "the second domain, at the port of the Corefile",
		has("kubelink:8053 {", "second.example:8053 {"))
	var first string
	within(t, 3*time.Second, "restart", func(context.Context) error {
		if first = restarted(); first == "" {
			return errors.New("not restarted")
		}
		return nil
	})
	generation := deployment.Generation
	// the broker reads the ConfigMap again
	_, err = b.Kubectl(ctx, "-n", "kube-system", "annotate", "configmap", "coredns-custom", "touched=yes")
	must(t, err)
	must(t, b.Remove(ctx, second.Name))
	within(t, 3*time.Second, "the second domain to go", has("kubelink:8053 {"))
	within(t, 3*time.Second, "another restart", func(context.Context) error {
		if restarted() == first {
			return errors.New("not restarted again")
		}
		return nil
	})
	if deployment.Generation != generation+1 {
		t.Errorf("%d restarts for one change", deployment.Generation-generation)
	}

	// Without an import, the key has no effect.
	corefile(".:53 {\n    errors\n}\n")
	must(t, b.Apply(ctx, second))
	must(t, b.WaitState(ctx, b.Name, v1alpha1.StateUp, "imports nothing", "add the server blocks to that Corefile"))
}
