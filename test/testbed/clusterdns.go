package testbed

// This file runs the cluster's DNS: CoreDNS in a pod behind the service kube-dns. CoreDNS imports the server blocks
// in a folder that follows the ConfigMap coredns-custom.

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"time"

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
    reload 2s 1s%s
}
import %s/*.server
`

// stubDomain sends queries for a mesh domain to kubelink's own DNS service. It passes on kubelink's answers and
// failures: it caches nothing and tries nothing twice.
const stubDomain = `%s:53 {
    errors
    forward . %s {
        max_fails 0
    }
}
`

func (c *Cluster) startDNS(ctx context.Context) error {
	if !c.hasDNS() {
		return nil
	}
	if err := c.createDNSAccount(ctx); err != nil {
		return err
	}
	labels := map[string]string{"k8s-app": "kube-dns"}
	internet := ""
	if c.opts.isReal() {
		internet = "\n    forward . " + RouterAddress.String()
	}
	text := fmt.Sprintf(corefile, internet, c.filePath(customDNS))
	if err := os.WriteFile(c.filePath("Corefile"), []byte(text), 0o644); err != nil {
		return err
	}
	if err := c.StubDomain(ctx, "kubelink"); err != nil {
		return err
	}
	// kubelink reads the Corefile in this ConfigMap. CoreDNS itself reads the file.
	config := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "coredns"},
		Data: map[string]string{"Corefile": text}}
	if err := c.Client.Create(ctx, config); err != nil {
		return err
	}
	if _, _, err := c.projectCustomDNS(ctx); err != nil { // CoreDNS starts with it
		return err
	}
	pod, err := c.Pod(ctx, "coredns", PodOptions{Namespace: "kube-system", Labels: labels, ServiceAccount: "coredns"})
	if err != nil {
		return err
	}
	server, err := pod.Start(c.testbed.ctx, "coredns", nil, c.testbed.opts.CoreDNS, "-conf", c.filePath("Corefile"))
	if err != nil {
		return err
	}
	ports := []corev1.ServicePort{
		{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53},
		{Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: 53},
	}
	if _, err := c.Service(ctx, "kube-dns", labels, ports,
		ServiceOptions{Namespace: "kube-system", ClusterIP: c.DNSAddress}); err != nil {
		return err
	}
	err = server.waitUntil(ctx, "cluster DNS of "+c.Name, func(ctx context.Context) error {
		answer, err := pod.Query(ctx, "kubernetes.default.svc.cluster.local.", dns.TypeA)
		if err != nil {
			return err
		}
		if len(answer.Answer) == 0 {
			return errors.New(dns.RcodeToString[answer.Rcode])
		}
		return server.checkLog(watchesFiles, 1)
	})
	if err == nil {
		go c.followCustomDNS(c.testbed.ctx, server)
	}
	return err
}

// hasDNS says whether the cluster has a DNS. Without kube-proxy, no address leads there.
func (c *Cluster) hasDNS() bool { return c.testbed.opts.CoreDNS != "" && c.proxyMode() != ProxyNone }

// createDNSAccount creates the service account of the cluster DNS, and its rights.
func (c *Cluster) createDNSAccount(ctx context.Context) error {
	for _, obj := range []client.Object{
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "coredns"}},
		&rbacv1.ClusterRole{
			ObjectMeta: metav1.ObjectMeta{Name: "system:coredns"},
			Rules: []rbacv1.PolicyRule{
				{APIGroups: []string{""}, Resources: []string{"endpoints", "services", "pods", "namespaces"},
					Verbs: []string{"list", "watch"}},
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
	return nil
}

// StubDomain makes the cluster DNS send queries below a domain to kubelink's DNS service. The test bed does this for
// the domain kubelink.
func (c *Cluster) StubDomain(ctx context.Context, domain string) error {
	return c.CustomDNS(ctx, domain+".server", fmt.Sprintf(stubDomain, domain, c.MeshDNSAddress))
}

const customDNS = "coredns-custom"

// CustomDNS writes a key of the ConfigMap kube-system/coredns-custom and creates the ConfigMap if it is missing. An
// empty text removes the key. The cluster DNS reads the change within three seconds, or after a reload that is in
// progress.
func (c *Cluster) CustomDNS(ctx context.Context, key, text string) error {
	custom := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: customDNS}}
	err := c.Client.Get(ctx, client.ObjectKeyFromObject(custom), custom)
	if client.IgnoreNotFound(err) != nil {
		return err
	}
	before := custom.DeepCopy()
	if custom.Data == nil {
		custom.Data = map[string]string{}
	}
	custom.Data[key] = text
	if text == "" {
		delete(custom.Data, key)
	}
	if err != nil {
		return c.Client.Create(ctx, custom)
	}
	return c.Client.Patch(ctx, custom, client.MergeFrom(before))
}

// projectCustomDNS writes the ConfigMap to the folder, as kubelet does for a ConfigMap that is an optional volume. It
// returns the version of the ConfigMap, and whether files changed.
func (c *Cluster) projectCustomDNS(ctx context.Context) (version string, changed bool, err error) {
	list := &corev1.ConfigMapList{}
	if err := c.Client.List(ctx, list, onlyCustomDNS...); err != nil {
		return "", false, err
	}
	files := map[string]string{}
	for _, custom := range list.Items {
		maps.Copy(files, custom.Data)
	}
	changed, err = c.writeCustomDNS(files)
	return list.ResourceVersion, changed, err
}

var onlyCustomDNS = []client.ListOption{client.InNamespace("kube-system"),
	client.MatchingFields{"metadata.name": customDNS}}

// The messages in the log of the cluster DNS: it notices changes of its files from now on, and it is done with a
// change.
var (
	watchesFiles = regexp.MustCompile("plugin/reload: Running configuration")
	reloaded     = regexp.MustCompile("Reloading complete|Corefile changed but reload failed|Corefile parse failed")
)

// followCustomDNS projects each change until ctx ends. The API server may stop and start meanwhile. CoreDNS never
// notices a change of an imported file that comes during a reload (https://github.com/coredns/coredns/issues/6243).
// In a real cluster this is unlikely, because kubelet writes about once a minute. Here a change waits for the end of
// the previous reload.
func (c *Cluster) followCustomDNS(ctx context.Context, server *Process) {
	for ctx.Err() == nil {
		reloads := len(reloaded.FindAllString(server.Log(), -1))
		version, changed, err := c.projectCustomDNS(ctx)
		if changed {
			// Files with the same meaning cause no reload: go on after some time.
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			_ = server.waitUntil(ctx, "reload", func(context.Context) error { return server.checkLog(reloaded, reloads+1) })
			cancel()
		}
		if err == nil {
			since := &client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: version}}
			if changes, err := c.Client.Watch(ctx, &corev1.ConfigMapList{}, append(onlyCustomDNS[:2:2], since)...); err == nil {
				<-changes.ResultChan() // or the end of the watch
				changes.Stop()
				continue
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// writeCustomDNS makes the folder have exactly these files, in one step: CoreDNS must not read half a change. Like
// kubelet, it makes a new folder and changes a link. Nothing uses the old folder any more.
func (c *Cluster) writeCustomDNS(files map[string]string) (changed bool, err error) {
	if c.customDNS != nil && maps.Equal(files, c.customDNS) {
		return false, nil
	}
	link := c.filePath(customDNS)
	dir, err := os.MkdirTemp(filepath.Dir(link), customDNS+"-")
	if err != nil {
		return false, err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return false, err
		}
	}
	next := dir + ".link"
	if err := errors.Join(os.Chmod(dir, 0o755), os.Symlink(dir, next), os.Rename(next, link)); err != nil {
		return false, err
	}
	c.customDNS = files
	return true, nil
}
