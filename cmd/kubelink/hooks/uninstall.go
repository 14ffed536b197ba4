package hooks

// The end of kubelink in a cluster, in an order in which nothing of it stays: router and broker end while they still
// have their rights, so that they take routes, interface and finalizers with them.

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/crds"
	"github.com/mandelsoft/kubelink/broker/writeback"
)

// Names of what deploy installs.
const (
	deploymentName = "kubelink"
	daemonSetName  = "kubelink-router"
)

const (
	pollInterval = 250 * time.Millisecond
	// Patience is how long pods may take to end. Those on a node that is dead do not end at all.
	Patience = 75 * time.Second
	// finalizerTime is how long other programs may take to remove their finalizers from objects that are to be deleted.
	finalizerTime = time.Minute
)

// uninstaller removes what broker and router have made.
type uninstaller struct {
	client.Client
	namespace string
	patience  time.Duration // for pods to end
	finalizer time.Duration // for finalizers to go
	out       io.Writer
}

func runUninstall(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("uninstall", flag.ContinueOnError)
	namespace := flags.String("namespace", "kubelink", "of kubelink")
	clusterDNS := flags.Bool("cluster-dns", false, "take the broker's key out of the ConfigMap kube-system/coredns-custom")
	objects := flags.String("objects", "keep", "keep or delete KubeLinks, MeshServices and the CRDs")
	kubeconfig, err := parseFlags(flags, args)
	if err != nil {
		return err
	}
	if *objects != "keep" && *objects != "delete" {
		return fmt.Errorf("--objects=%s: want keep or delete", *objects)
	}
	c, err := connect(kubeconfig)
	if err != nil {
		return err
	}
	u := &uninstaller{Client: c, namespace: *namespace, patience: Patience, finalizer: finalizerTime, out: out}
	steps := []func(context.Context) error{u.endPrograms, u.removeFinalizers, u.abandonObjects, u.deleteGateways}
	if *clusterDNS {
		steps = append(steps, u.cleanClusterDNS)
	}
	if *objects == "delete" {
		steps = append(steps, u.deleteCRDs)
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// endPrograms deletes the router's DaemonSet and the broker's Deployment, and waits until their last pods have ended.
// It does not wait for pods on dead nodes, which go when their nodes go.
func (u *uninstaller) endPrograms(ctx context.Context) error {
	named := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: u.namespace, Name: name} }
	programs := []client.Object{&appsv1.DaemonSet{ObjectMeta: named(daemonSetName)},
		&appsv1.Deployment{ObjectMeta: named(deploymentName)}}
	limited, cancel := context.WithTimeout(ctx, u.patience)
	defer cancel()
	err := u.deleteAll(limited, programs...)
	if err == nil || limited.Err() == nil || ctx.Err() != nil {
		return err
	}
	for _, o := range programs {
		err := u.Delete(ctx, o, client.PropagationPolicy(metav1.DeletePropagationBackground))
		if client.IgnoreNotFound(err) != nil {
			return err
		}
	}
	fmt.Fprintf(u.out, "not all pods have ended within %s: a node may be dead; they go when it answers, or goes\n", u.patience)
	return nil
}

// deleteAll deletes objects, and waits until they, and what they own, are gone.
func (u *uninstaller) deleteAll(ctx context.Context, objects ...client.Object) error {
	for _, o := range objects {
		err := u.Delete(ctx, o, client.PropagationPolicy(metav1.DeletePropagationForeground))
		if client.IgnoreNotFound(err) != nil {
			return err
		}
	}
	for _, o := range objects {
		start := time.Now()
		err := wait.PollUntilContextCancel(ctx, pollInterval, true, func(ctx context.Context) (bool, error) {
			err := u.Get(ctx, client.ObjectKeyFromObject(o), o)
			return err != nil, client.IgnoreNotFound(err)
		})
		if err != nil {
			return fmt.Errorf("%T %s is still there: %w", o, o.GetName(), err)
		}
		fmt.Fprintf(u.out, "%T %s is gone after %.1f s\n", o, o.GetName(), time.Since(start).Seconds())
	}
	return nil
}

// removeFinalizers takes the finalizers off the LocalLinks. The broker does so at its end; one that was killed could
// not.
func (u *uninstaller) removeFinalizers(ctx context.Context) error {
	links := &v1alpha1.KubeLinkList{}
	if err := u.List(ctx, links); err != nil {
		return ignoreNoKind(err)
	}
	for i := range links.Items {
		name := links.Items[i].Name
		if !controllerutil.ContainsFinalizer(&links.Items[i], v1alpha1.Finalizer) {
			continue
		}
		_, released, err := ReleaseLink(ctx, u.Client, name)
		if released {
			fmt.Fprintf(u.out, "KubeLink %s: the broker has left its finalizer, it is taken off\n", name)
		}
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("finalizer of KubeLink %s: %w", name, err)
		}
	}
	return nil
}

// abandonObjects says in the status of KubeLinks and MeshServices that nobody keeps them any more. The broker does so at
// its end; one that was killed could not.
func (u *uninstaller) abandonObjects(ctx context.Context) error {
	links, served := &v1alpha1.KubeLinkList{}, &v1alpha1.MeshServiceList{}
	for _, list := range []client.ObjectList{links, served} {
		if err := ignoreNoKind(u.List(ctx, list)); err != nil {
			return err
		}
	}
	// Objects that say it cost no request: there may be hundreds.
	var names []string
	for i := range links.Items {
		if l := &links.Items[i]; l.DeepCopy().Abandon() {
			names = append(names, l.Name)
		}
	}
	var services []types.NamespacedName
	for i := range served.Items {
		if m := &served.Items[i]; m.DeepCopy().Abandon() {
			services = append(services, client.ObjectKeyFromObject(m))
		}
	}
	n, err := writeback.Abandon(ctx, u.Client, names, services)
	if n > 0 {
		fmt.Fprintf(u.out, "the broker has left the states of %d objects: links are Down, MeshServices are not served\n", n)
	}
	return err
}

// ReleaseLink takes the broker's finalizer, and no other one, off a KubeLink. It returns the object as it is then, and
// whether the finalizer was there.
func ReleaseLink(ctx context.Context, c client.Client, name string) (l *v1alpha1.KubeLink, released bool, err error) {
	err = retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		l, released = &v1alpha1.KubeLink{}, false
		if err := c.Get(ctx, client.ObjectKey{Name: name}, l); err != nil {
			return err
		}
		before := l.DeepCopy()
		if released = controllerutil.RemoveFinalizer(l, v1alpha1.Finalizer); !released {
			return nil
		}
		return c.Patch(ctx, l, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	})
	return l, released, err
}

// deleteGateways deletes the LinkGateways, and the Leases of the same names.
func (u *uninstaller) deleteGateways(ctx context.Context) error {
	gateways := &v1alpha1.LinkGatewayList{}
	if err := ignoreNoKind(u.List(ctx, gateways, client.InNamespace(u.namespace))); err != nil {
		return err
	}
	names := []string{"kubelink"} // the Lease of a broker without links has no LinkGateway
	for i := range gateways.Items {
		g := &gateways.Items[i]
		names = append(names, g.Name)
		if err := client.IgnoreNotFound(u.Delete(ctx, g)); err != nil {
			return err
		}
	}
	for _, name := range names {
		lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: u.namespace, Name: name}}
		if err := client.IgnoreNotFound(u.Delete(ctx, lease)); err != nil {
			return err
		}
	}
	return nil
}

// cleanClusterDNS takes the server blocks of the meshes out of the cluster's DNS.
func (u *uninstaller) cleanClusterDNS(ctx context.Context) error {
	custom := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "coredns-custom"}}
	patch := client.RawPatch(types.MergePatchType, []byte(`{"data":{"kubelink.server":null}}`))
	return client.IgnoreNotFound(u.Patch(ctx, custom, patch))
}

// deleteCRDs deletes the kinds, and with them all their objects. Objects that finalizers of other programs hold keep
// their kinds.
func (u *uninstaller) deleteCRDs(ctx context.Context) error {
	definitions, err := crds.ReadDefinitions()
	if err != nil {
		return err
	}
	var all []client.Object
	for _, crd := range definitions {
		all = append(all, &apiextensions.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: crd.GetName()}})
	}
	limited, cancel := context.WithTimeout(ctx, u.finalizer)
	defer cancel()
	err = u.deleteAll(limited, all...)
	if err == nil || limited.Err() == nil || ctx.Err() != nil {
		return err
	}
	held, unread := u.findHeld(ctx, definitions)
	if len(held) == 0 {
		return errors.Join(err, unread)
	}
	return errors.Join(fmt.Errorf("after %s, finalizers hold objects that are to be deleted: %s. Let the programs remove them "+
		"that have set them, or, if these are gone, take them off as said; then uninstall again", u.finalizer,
		strings.Join(held, "; ")), unread)
}

// findHeld describes the objects of these kinds, and the kinds, that finalizers hold.
func (u *uninstaller) findHeld(ctx context.Context, definitions []*unstructured.Unstructured) (held []string, err error) {
	for _, crd := range definitions {
		group, _, _ := unstructured.NestedString(crd.Object, "spec", "group")
		kind, _, _ := unstructured.NestedString(crd.Object, "spec", "names", "kind")
		plural, _, _ := unstructured.NestedString(crd.Object, "spec", "names", "plural")
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(schema.GroupVersionKind{Group: group, Version: "v1alpha1", Kind: kind + "List"})
		if e := ignoreNoKind(u.List(ctx, list)); e != nil {
			err = errors.Join(err, fmt.Errorf("list objects of kind %s: %w", kind, e))
		}
		for i := range list.Items {
			held = append(held, describeHeld(kind, plural+"."+group, &list.Items[i])...)
		}
		is := &apiextensions.CustomResourceDefinition{}
		if e := u.Get(ctx, client.ObjectKeyFromObject(crd), is); client.IgnoreNotFound(e) != nil {
			err = errors.Join(err, e)
		}
		held = append(held, describeHeld("CustomResourceDefinition", "crd", is)...)
	}
	return held, err
}

// describeHeld says which finalizers hold an object that is to be deleted, and how to take them off; none: none do.
func describeHeld(kind, resource string, o client.Object) []string {
	finalizers := slices.DeleteFunc(slices.Clone(o.GetFinalizers()), func(name string) bool {
		return name == apiextensions.CustomResourceCleanupFinalizer // waits for the objects of the kind
	})
	if len(finalizers) == 0 || o.GetDeletionTimestamp().IsZero() {
		return nil
	}
	name, in := o.GetName(), ""
	if namespace := o.GetNamespace(); namespace != "" {
		name, in = namespace+"/"+name, "-n "+namespace+" "
	}
	return []string{fmt.Sprintf(`%s %s has %s (kubectl %spatch %s %s --type=merge -p '{"metadata":{"finalizers":null}}')`,
		kind, name, strings.Join(finalizers, " and "), in, resource, o.GetName())}
}

// ignoreNoKind returns nil for the error that the API server does not know the kind: then there is no object of it.
func ignoreNoKind(err error) error {
	if none := new(meta.NoKindMatchError); errors.As(err, &none) {
		return nil
	}
	return client.IgnoreNotFound(err)
}
