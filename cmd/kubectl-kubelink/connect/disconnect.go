package connect

// The way back: links first, while brokers run, then all that connect has made.

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/install"
	"github.com/mandelsoft/kubelink/cmd/kubelink/hooks"
)

// Disconnect removes the links between two clusters. A cluster without other links loses what Connect has made there.
func Disconnect(ctx context.Context, a, b *Cluster, o Options, log *Log) error {
	p := newPair(a, b, o, log)
	if err := p.withRemedy(p.refuseSame)(ctx); err != nil {
		return err
	}
	return p.takeTurns(ctx, func(ctx context.Context) error {
		return doAll(ctx, p.withRemedy(p.inBoth((*pair).readRest)), p.inBoth((*pair).removeLink),
			p.inBoth((*pair).uninstallOwn))
	})
}

// withRemedy adds what to do if one of the clusters does not exist any more.
func (p *pair) withRemedy(step func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		err := step(ctx)
		if err == nil || apierrors.ReasonForError(err) != metav1.StatusReasonUnknown || p.sides[0].isSame(p.sides[1]) {
			return err // an API server says so
		}
		var remedies []string
		for i, s := range p.sides {
			other := p.sides[1-i]
			remedies = append(remedies, fmt.Sprintf("kubectl --context %s delete kubelink %s", s.Name,
				cmp.Or(other.name, clusterName(other.context))))
		}
		return fmt.Errorf("%w; if one of the clusters is gone for good, remove the link of the other one: %s", err,
			strings.Join(remedies, ", or "))
	}
}

// readRest reads what there is to remove.
func (p *pair) readRest(ctx context.Context, s, _ *side) error {
	for _, read := range []func(context.Context) error{s.readLinks, s.readInstallation, s.readDNS} {
		if err := read(ctx); err != nil {
			return err
		}
	}
	if err := s.findLocal(); err != nil {
		return err
	}
	if s.name == "" {
		s.name = clusterName(s.context)
	}
	return nil
}

// removeLink removes the link to the other cluster.
func (p *pair) removeLink(ctx context.Context, s, other *side) error {
	l := findLink(s.links, other.name)
	if l == nil || l.Spec.Endpoint == v1alpha1.EndpointLocal {
		s.log.printLine(s.Cluster, "there is no link to %s", other.name)
		return nil
	}
	if other.address.IsValid() && l.Spec.ClusterAddress != other.address.String() {
		return fmt.Errorf("%s: KubeLink %s has the cluster address %s, and %s has %s: it leads to another cluster, "+
			"and stays. Delete it with kubectl if that is not so", s.Name, l.Name, l.Spec.ClusterAddress, other.Name,
			other.address)
	}
	s.links = slices.DeleteFunc(slices.Clone(s.links), func(k v1alpha1.KubeLink) bool { return k.Name == other.name })
	l = l.DeepCopy()
	l.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("KubeLink"))
	return s.removeAny(ctx, l)
}

// uninstallOwn removes what Connect has made, if the cluster has no other links.
func (p *pair) uninstallOwn(ctx context.Context, s, _ *side) error {
	for i := range s.links {
		if l := &s.links[i]; l.Spec.Endpoint != v1alpha1.EndpointLocal {
			s.log.printLine(s.Cluster, "kubelink stays, as there is another link: %s", l.Name)
			return nil
		}
	}
	if err := s.removeLocals(ctx); err != nil {
		return err
	}
	if s.deployment != nil && !isOurs(s.deployment) {
		s.log.printLine(s.Cluster, "kubelink stays, as it is not by this command")
		return nil
	}
	// Routers take their routes off the nodes while they have their rights.
	for _, o := range []*unstructured.Unstructured{
		newObject(appsv1.SchemeGroupVersion, "DaemonSet", install.Namespace, install.Name+"-router"),
		newObject(appsv1.SchemeGroupVersion, "Deployment", install.Namespace, install.Name),
	} {
		if err := s.removeOwn(ctx, o); err != nil {
			return err
		}
	}
	if err := s.releaseLocals(ctx); err != nil {
		return err
	}
	if err := s.removeStubDomain(ctx); err != nil {
		return err
	}
	if err := s.removeRest(ctx); err != nil {
		return err
	}
	return s.removeCRDs(ctx)
}

// finalizerTime is how long a broker that runs gets to take its finalizer off a LocalLink.
const finalizerTime = 15 * time.Second

// removeLocals removes the LocalLinks that Connect has made.
func (s *side) removeLocals(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, finalizerTime)
	defer cancel()
	for i := range s.links {
		l := s.links[i].DeepCopy()
		l.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("KubeLink"))
		if err := s.removeOwn(ctx, l); err != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil // releaseLocals removes what is left
}

// releaseLocals takes the broker's finalizer off LocalLinks that are to be deleted, and that no broker has released.
func (s *side) releaseLocals(ctx context.Context) error {
	for i := range s.links {
		l, released := &v1alpha1.KubeLink{}, false
		err := s.Client.Get(ctx, clusterKey(s.links[i].Name), l)
		if err == nil && !l.DeletionTimestamp.IsZero() {
			l, released, err = hooks.ReleaseLink(ctx, s.Client, l.Name)
		}
		switch {
		case err != nil && !isAbsent(err):
			return fmt.Errorf("%s: take the finalizer off KubeLink %s: %w", s.Name, s.links[i].Name, err)
		case err == nil && len(l.Finalizers) > 0 && !l.DeletionTimestamp.IsZero():
			s.log.printLine(s.Cluster, "KubeLink %s stays until what has its finalizers %s releases it", l.Name,
				strings.Join(l.Finalizers, ", "))
		case released:
			s.log.printLine(s.Cluster, "KubeLink %s deleted, without a broker", s.links[i].Name)
		}
	}
	return nil
}

func newObject(group schema.GroupVersion, kind, namespace, name string) *unstructured.Unstructured {
	o := &unstructured.Unstructured{}
	o.SetGroupVersionKind(group.WithKind(kind))
	o.SetNamespace(namespace)
	o.SetName(name)
	return o
}

// removeRest removes the other objects of the installation, the namespace at last.
func (s *side) removeRest(ctx context.Context) error {
	var all []*unstructured.Unstructured
	for _, components := range [][]string{
		{"node-mode", "router", "self-signed", "coredns-configure"}, {"node-mode", "wireguard"},
	} {
		objects, err := install.Build(install.Values{}, components...)
		if err != nil {
			return err
		}
		all = append(all, objects...)
	}
	all = append(all, newObject(corev1.SchemeGroupVersion, "Secret", install.Namespace, install.Secret))
	for _, isNamespace := range []bool{false, true} {
		for _, o := range all {
			if (o.GetKind() == "Namespace") != isNamespace {
				continue
			}
			if err := s.removeOwn(ctx, o); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeCRDs removes the CRDs, unless there are objects of these kinds, which would go with them.
func (s *side) removeCRDs(ctx context.Context) error {
	crds, err := install.CRDs()
	if err != nil {
		return err
	}
	for _, crd := range crds {
		is, err := s.readObject(ctx, crd)
		if err != nil {
			return err
		}
		if is == nil || !isOurs(is) {
			continue
		}
		group, _, _ := unstructured.NestedString(crd.Object, "spec", "group")
		kind, _, _ := unstructured.NestedString(crd.Object, "spec", "names", "kind")
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(schema.GroupVersionKind{Group: group, Version: "v1alpha1", Kind: kind + "List"})
		if err := s.Client.List(ctx, list); err != nil && !isAbsent(err) {
			return fmt.Errorf("%s: list objects of kind %s: %w", s.Name, kind, err)
		}
		if n := len(list.Items); n > 0 && !s.dryRun {
			s.log.printLine(s.Cluster, "the kind %s stays, as there are %d objects of it, such as %s", kind, n,
				describeObject(&list.Items[0]))
			continue
		}
		if err := s.removeOwn(ctx, crd); err != nil {
			return err
		}
	}
	return nil
}
