// Package gather collects what a bug report needs, without secrets.
package gather

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// Cluster is one to gather from.
type Cluster struct {
	Name      string // of its context: that of the folder in the archive
	Namespace string // of kubelink
	Client    client.Reader
	// Logs returns the last lines of a container; previous: of the one that ran before.
	Logs func(ctx context.Context, pod *corev1.Pod, container string, previous bool) ([]byte, error)
	// Extra are other files, by name. A failure is noted.
	Extra map[string]func(context.Context) ([]byte, error)
}

// kind is a kind of objects to gather.
type kind struct {
	group, version, name string
	own                  bool // in the namespace of kubelink
}

// kinds has Secrets first: objects of the other kinds may have their values in fields.
var kinds = []kind{
	{version: "v1", name: "Secret", own: true},
	{group: "kubelink.mandelsoft.org", version: "v1alpha1", name: "KubeLink"},
	{group: "kubelink.mandelsoft.org", version: "v1alpha1", name: "MeshService"},
	{group: "kubelink.mandelsoft.org", version: "v1alpha1", name: "LinkGateway"},
	{group: "coredns.mandelsoft.org", version: "v1alpha1", name: "CoreDNSEntry"},
	{group: "coredns.mandelsoft.org", version: "v1alpha1", name: "HostedZone"},
	{version: "v1", name: "Node"},
	{version: "v1", name: "Pod", own: true},
	{version: "v1", name: "Service", own: true},
	{version: "v1", name: "ConfigMap", own: true},
	{version: "v1", name: "ServiceAccount", own: true},
	{version: "v1", name: "Event", own: true},
	{group: "apps", version: "v1", name: "Deployment", own: true},
	{group: "apps", version: "v1", name: "DaemonSet", own: true},
	{group: "coordination.k8s.io", version: "v1", name: "Lease", own: true},
	{group: "discovery.k8s.io", version: "v1", name: "EndpointSlice", own: true},
	{group: "rbac.authorization.k8s.io", version: "v1", name: "Role", own: true},
	{group: "rbac.authorization.k8s.io", version: "v1", name: "RoleBinding", own: true},
	{group: "networking.k8s.io", version: "v1", name: "NetworkPolicy", own: true},
}

// dnsConfigs are the ConfigMaps of the cluster's DNS.
var dnsConfigs = []string{"coredns", "coredns-custom"}

// archive writes files into a tar.
type archive struct {
	tar      *tar.Writer
	modified time.Time
}

func (a *archive) writeFile(name string, content []byte) error {
	err := a.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(content)), ModTime: a.modified})
	if err == nil {
		_, err = a.tar.Write(content)
	}
	return err
}

// Missing says what could not be read of a cluster.
type Missing struct {
	Cluster  string   // name of its context
	Problems []string // without secrets, in the order of reading
	All      bool     // nothing at all could be read
}

// Write writes an archive (tar, gzip) with a folder for each cluster. It returns the clusters of which something could
// not be read; the file errors.txt in their folders names it, too.
func Write(ctx context.Context, to io.Writer, clusters []*Cluster, now time.Time) (missing []Missing, err error) {
	zip := gzip.NewWriter(to)
	a := &archive{tar: tar.NewWriter(zip), modified: now}
	// The secrets of one cluster may be in the texts of another one.
	s := newScrubber()
	all := make([]*collection, len(clusters))
	var parts sync.WaitGroup
	for i, c := range clusters { // one that is dead takes no time from the rest
		parts.Go(func() { all[i] = c.collectAll(ctx, s) })
	}
	parts.Wait()
	for i, c := range all {
		for _, f := range c.files {
			if err := a.writeFile(path.Join(c.folder, f.name), s.scrubText(f.content)); err != nil {
				return nil, err
			}
		}
		m := Missing{Cluster: clusters[i].Name, All: !c.answered}
		for _, p := range c.problems {
			m.Problems = append(m.Problems, string(s.scrubText([]byte(p))))
		}
		if len(m.Problems) > 0 {
			missing = append(missing, m)
		}
		if err := a.writeFile(path.Join(c.folder, "errors.txt"), []byte(strings.Join(m.Problems, "\n")+"\n")); err != nil {
			return nil, err
		}
	}
	if err := a.tar.Close(); err != nil {
		return nil, err
	}
	return missing, zip.Close()
}

// collection is what is known of a cluster.
type collection struct {
	folder   string
	files    []file
	problems []string
	answered bool // something could be read
}

type file struct {
	name    string
	content []byte
}

func (c *collection) noteFailure(what string, err error) {
	c.problems = append(c.problems, fmt.Sprintf("%s: %v", what, err))
}

// collectAll reads everything. The scrubber learns the secrets.
func (c *Cluster) collectAll(ctx context.Context, s *scrubber) *collection {
	all := &collection{folder: strings.NewReplacer("/", "-", ":", "-", "..", "-").Replace(c.Name)}
	for _, k := range kinds {
		objects, err := c.listKind(ctx, k)
		if meta.IsNoMatchError(err) {
			all.noteFailure(k.name, fmt.Errorf("the cluster does not know this kind"))
			continue
		}
		if err != nil {
			// "list Secret: " would look like a setting, and its cause would be cut out.
			all.noteFailure("list "+k.name+" objects", err)
			continue
		}
		all.answered = true
		c.learnSecrets(ctx, s, all, objects)
		all.addObjects(s, strings.ToLower(k.name)+"s.yaml", objects)
	}
	var dns []*unstructured.Unstructured
	for _, name := range dnsConfigs {
		o := &unstructured.Unstructured{}
		o.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ConfigMap"))
		if err := c.Client.Get(ctx, client.ObjectKey{Namespace: "kube-system", Name: name}, o); err != nil {
			all.noteFailure("ConfigMap kube-system/"+name, err)
			continue
		}
		all.answered = true
		dns = append(dns, o)
	}
	all.addObjects(s, "cluster-dns.yaml", dns)
	c.collectLogs(ctx, all)
	for name, read := range c.Extra {
		text, err := read(ctx)
		if err != nil {
			all.noteFailure(name, err)
		}
		if len(text) > 0 {
			all.files = append(all.files, file{name, text})
		}
	}
	return all
}

func (c *Cluster) listKind(ctx context.Context, k kind) (all []*unstructured.Unstructured, err error) {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(schema.GroupVersionKind{Group: k.group, Version: k.version, Kind: k.name + "List"})
	var options []client.ListOption
	if k.own {
		options = append(options, client.InNamespace(c.Namespace))
	}
	if err := c.Client.List(ctx, list, options...); err != nil {
		return nil, err
	}
	for i := range list.Items {
		o := &list.Items[i]
		o.SetGroupVersionKind(schema.GroupVersionKind{Group: k.group, Version: k.version, Kind: k.name})
		all = append(all, o)
	}
	return all, nil
}

// learnSecrets tells the scrubber which secrets there are, also those that KubeLinks name, and which keys are public.
func (c *Cluster) learnSecrets(
	ctx context.Context, s *scrubber, all *collection, objects []*unstructured.Unstructured,
) {
	for _, o := range objects {
		switch o.GetKind() {
		case "Secret":
			secret := &corev1.Secret{}
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, secret); err != nil {
				all.noteFailure("Secret "+o.GetName(), err)
			}
			s.addSecret(secret)
		case "KubeLink":
			link := &v1alpha1.KubeLink{}
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, link); err != nil {
				all.noteFailure("KubeLink "+o.GetName(), err)
				continue
			}
			s.addLink(link)
			c.learnNamed(ctx, s, all, link)
		}
	}
}

// learnNamed reads the secrets that a KubeLink names.
func (c *Cluster) learnNamed(ctx context.Context, s *scrubber, all *collection, link *v1alpha1.KubeLink) {
	var keys []client.ObjectKey
	if ref := link.Spec.PresharedKeySecretRef; ref != nil {
		keys = append(keys, client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name})
	}
	if ref := link.Spec.APIAccess; ref != nil {
		keys = append(keys, client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name})
	}
	for _, key := range keys {
		if key.Namespace == "" || key.Namespace == c.Namespace {
			continue // it is there already
		}
		secret := &corev1.Secret{}
		if err := c.Client.Get(ctx, key, secret); err != nil {
			all.noteFailure("Secret "+key.String()+", which KubeLink "+link.Name+" names", err)
			continue
		}
		s.addSecret(secret)
	}
}

// addObjects adds a file with objects.
func (c *collection) addObjects(s *scrubber, name string, objects []*unstructured.Unstructured) {
	var b strings.Builder
	for _, o := range objects {
		s.scrubObject(o)
		text, err := yaml.Marshal(o.Object)
		if err != nil {
			c.noteFailure(name, err)
			continue
		}
		b.WriteString("---\n" + string(text))
	}
	if len(objects) > 0 {
		c.files = append(c.files, file{name, []byte(b.String())})
	}
}

// collectLogs reads the logs of the pods of kubelink.
func (c *Cluster) collectLogs(ctx context.Context, all *collection) {
	var pods corev1.PodList
	if err := c.Client.List(ctx, &pods, client.InNamespace(c.Namespace)); err != nil {
		all.noteFailure("list pods for their logs", err)
		return
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		for _, container := range pod.Spec.Containers {
			name := path.Join("logs", pod.Name+"-"+container.Name)
			text, err := c.Logs(ctx, pod, container.Name, false)
			if err != nil {
				all.noteFailure("log of pod "+pod.Name, err)
			} else {
				all.files = append(all.files, file{name + ".log", text})
			}
			restarted := slices.ContainsFunc(pod.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool {
				return s.Name == container.Name && s.RestartCount > 0
			})
			if !restarted {
				continue
			}
			if text, err := c.Logs(ctx, pod, container.Name, true); err != nil {
				all.noteFailure("former log of pod "+pod.Name, err)
			} else {
				all.files = append(all.files, file{name + ".former.log", text})
			}
		}
	}
}
