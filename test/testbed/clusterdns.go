package testbed

// This file runs the cluster's DNS: CoreDNS in a pod behind the service kube-dns, with the ConfigMap coredns-custom
// in a folder whose server blocks it imports.

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
	if c.testbed.opts.CoreDNS == "" {
		return nil
	}
	labels := map[string]string{"k8s-app": "kube-dns"}
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
	text := fmt.Sprintf(corefile, c.filePath(customDNS))
	if err := os.WriteFile(c.filePath("Corefile"), []byte(text), 0o644); err != nil {
		return err
	}
	if err := c.StubDomain(ctx, "kubelink"); err != nil {
		return err
	}
	// It tells what runs; nobody mounts it.
	config := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "coredns"},
		Data: map[string]string{"Corefile": text}}
	if err := c.Client.Create(ctx, config); err != nil {
		return err
	}
	if _, _, err := c.projectCustomDNS(ctx); err != nil { // CoreDNS shall start with it
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

// StubDomain makes the cluster DNS send questions below a domain to kubelink's DNS service. The test bed does it for
// the domain kubelink.
func (c *Cluster) StubDomain(ctx context.Context, domain string) error {
	return c.CustomDNS(ctx, domain+".server", fmt.Sprintf(stubDomain, domain, c.MeshDNSAddress))
}

const customDNS = "coredns-custom"

// CustomDNS writes a key of the ConfigMap kube-system/coredns-custom, which it creates where it is missing; empty text
// removes the key. The cluster DNS sees it within three seconds, unless it reloads: then later.
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

// projectCustomDNS does what kubelet does with a ConfigMap that is an optional volume: the folder is as the ConfigMap
// is now. It returns the version of that, and whether files changed.
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

// What the cluster DNS logs when it will notice changes of its files from now on, and when it is done with a change.
var (
	watchesFiles = regexp.MustCompile("plugin/reload: Running configuration")
	reloaded     = regexp.MustCompile("Reloading complete|Corefile changed but reload failed|Corefile parse failed")
)

// followCustomDNS projects each change until ctx ends. The API server may go and come. CoreDNS would never notice a
// change of an imported file while it reloads (https://github.com/coredns/coredns/issues/6243), which kubelet's pace
// of about a minute makes unlikely: here a change waits for the reload before.
func (c *Cluster) followCustomDNS(ctx context.Context, server *Process) {
	for ctx.Err() == nil {
		reloads := len(reloaded.FindAllString(server.Log(), -1))
		version, changed, err := c.projectCustomDNS(ctx)
		if changed {
			// Files that say the same make no reload: go on after some time.
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			_ = server.waitUntil(ctx, "reload", func(context.Context) error { return server.checkLog(reloaded, reloads+1) })
			cancel()
		}
		if err == nil {
			since := &client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: version}}
			if changes, err := c.Client.Watch(ctx, &corev1.ConfigMapList{}, append(onlyCustomDNS[:2:2], since)...); err == nil {
				<-changes.ResultChan() // or its end
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

// writeCustomDNS makes the folder have the files, and no others, in one step: CoreDNS must not read half a change. As
// kubelet does, it makes another folder and changes a link; the folders of before stay unused.
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
