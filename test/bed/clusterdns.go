package bed

// This file runs the cluster's DNS: CoreDNS in a pod behind the service kube-dns, with a folder in the place of the
// ConfigMap coredns-custom.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const corefile = `.:53 {
    errors
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 5
    }
    reload 2s 1s
}
import %s/*.server
`

// stubDomain sends a mesh domain's questions to kubelink's own DNS service. Answers are kubelink's, so are failures:
// nothing is cached or tried twice here.
const stubDomain = `%s:53 {
    errors
    forward . %s {
        max_fails 0
    }
}
`

func (c *Cluster) startDNS(ctx context.Context) error {
	if c.bed.opts.CoreDNS == "" {
		return nil
	}
	labels := map[string]string{"k8s-app": "kube-dns"}
	for _, obj := range []client.Object{
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "coredns"}},
		&rbacv1.ClusterRole{
			ObjectMeta: metav1.ObjectMeta{Name: "system:coredns"},
			Rules: []rbacv1.PolicyRule{
				{APIGroups: []string{""}, Resources: []string{"endpoints", "services", "pods", "namespaces"}, Verbs: []string{"list", "watch"}},
				{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: []string{"list", "watch"}},
			},
		},
		&rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "system:coredns"},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "system:coredns"},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: "kube-system", Name: "coredns"}},
		},
	} {
		if err := c.Client.Create(ctx, obj); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(c.file("coredns-custom"), 0o755); err != nil {
		return err
	}
	if err := c.StubDomain("kubelink"); err != nil {
		return err
	}
	if err := os.WriteFile(c.file("Corefile"), fmt.Appendf(nil, corefile, c.file("coredns-custom")), 0o644); err != nil {
		return err
	}
	pod, err := c.Pod(ctx, "coredns", PodOptions{Namespace: "kube-system", Labels: labels, ServiceAccount: "coredns"})
	if err != nil {
		return err
	}
	server, err := pod.Start(c.bed.ctx, "coredns", nil, c.bed.opts.CoreDNS, "-conf", c.file("Corefile"))
	if err != nil {
		return err
	}
	ports := []corev1.ServicePort{
		{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53},
		{Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: 53},
	}
	if _, err := c.Service(ctx, "kube-dns", labels, ports, ServiceOptions{Namespace: "kube-system", ClusterIP: c.DNSAddress}); err != nil {
		return err
	}
	return server.until(ctx, "cluster DNS of "+c.Name, func(ctx context.Context) error {
		answer, err := pod.Query(ctx, "kubernetes.default.svc.cluster.local.", dns.TypeA)
		if err != nil {
			return err
		}
		if len(answer.Answer) == 0 {
			return errors.New(dns.RcodeToString[answer.Rcode])
		}
		return nil
	})
}

// StubDomain makes the cluster DNS send questions below a domain to kubelink's DNS service. The bed does it for the domain
// kubelink.
func (c *Cluster) StubDomain(domain string) error {
	return c.CustomDNS(domain+".server", fmt.Sprintf(stubDomain, domain, c.MeshDNSAddress))
}

// CustomDNS writes a key of the ConfigMap coredns-custom, so to speak; empty text removes it. The cluster DNS sees it
// within three seconds.
func (c *Cluster) CustomDNS(key, text string) error {
	path := filepath.Join(c.file("coredns-custom"), key)
	if text == "" {
		return os.Remove(path)
	}
	// In one step: CoreDNS must not read half a file.
	if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
