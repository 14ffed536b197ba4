// Package kubeapi is how the controllers ask the API server of the cluster: with no request for what is known, and with
// doubts in answers that say nothing. An API server that is slow, or that a proxy speaks for, costs no link.
package kubeapi

import (
	"context"
	"fmt"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// NewMapper returns a mapper that knows the resources of the broker's own kinds. For other kinds it asks the API
// server, with several requests, when they are needed.
func NewMapper(cfg *rest.Config, client *http.Client) (meta.RESTMapper, error) {
	known := meta.NewDefaultRESTMapper(nil)
	known.Add(v1alpha1.GroupVersion.WithKind("KubeLink"), meta.RESTScopeRoot)
	known.Add(v1alpha1.GroupVersion.WithKind("MeshService"), meta.RESTScopeNamespace)
	known.AddSpecific(v1alpha1.GroupVersion.WithKind("LinkGateway"), v1alpha1.GroupVersion.WithResource("linkgateways"),
		v1alpha1.GroupVersion.WithResource("linkgateway"), meta.RESTScopeNamespace)
	known.AddSpecific(coredns.GroupVersion.WithKind("CoreDNSEntry"), coredns.GroupVersion.WithResource("corednsentries"),
		coredns.GroupVersion.WithResource("corednsentry"), meta.RESTScopeNamespace)
	known.Add(coredns.GroupVersion.WithKind("HostedZone"), meta.RESTScopeNamespace)
	known.Add(corev1.SchemeGroupVersion.WithKind("Node"), meta.RESTScopeRoot)
	for _, kind := range []string{"Secret", "Service", "ConfigMap", "Pod"} {
		known.Add(corev1.SchemeGroupVersion.WithKind(kind), meta.RESTScopeNamespace)
	}
	known.Add(schema.GroupVersionKind{Group: "discovery.k8s.io", Version: "v1", Kind: "EndpointSlice"},
		meta.RESTScopeNamespace)
	known.Add(schema.GroupVersionKind{Group: "coordination.k8s.io", Version: "v1", Kind: "Lease"}, meta.RESTScopeNamespace)
	known.Add(schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}, meta.RESTScopeNamespace)
	dynamic, err := apiutil.NewDynamicRESTMapper(cfg, client)
	if err != nil {
		return nil, err
	}
	return meta.FirstHitRESTMapper{MultiRESTMapper: meta.MultiRESTMapper{known, dynamic}}, nil
}

// NewInformer is cache.NewSharedIndexInformer, but it does not believe a list without a version: an API server never
// sends one, and an empty one would mean that all objects are gone. Informers keep what they have, and ask again.
func NewInformer(
	from cache.ListerWatcher, object runtime.Object, resync time.Duration, indexers cache.Indexers,
) cache.SharedIndexInformer {
	source := cache.ToListerWatcherWithContext(from)
	checked := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			list, err := source.ListWithContext(ctx, options)
			if err == nil {
				err = checkList(list)
			}
			if err != nil {
				return nil, err
			}
			return list, nil
		},
		WatchFuncWithContext: source.WatchWithContext,
	}
	return cache.NewSharedIndexInformer(checked, object, resync, indexers)
}

// checkList refuses a list that an API server cannot have sent.
func checkList(list runtime.Object) error {
	m, err := meta.ListAccessor(list)
	if err == nil && m.GetResourceVersion() == "" {
		err = fmt.Errorf("the answer is a %T without resourceVersion, which is not believed: "+
			"see what answers in place of the API server", list)
	}
	return err
}

// Reader does not believe answers that an API server cannot have sent. It asks another Reader, which has no cache.
type Reader struct{ client.Reader }

// Get implements client.Reader.
func (r Reader) Get(ctx context.Context, key client.ObjectKey, o client.Object, options ...client.GetOption) error {
	if err := r.Reader.Get(ctx, key, o, options...); err != nil {
		return err
	}
	if o.GetName() != key.Name || o.GetResourceVersion() == "" {
		return fmt.Errorf("the answer for %s is a %T without name and resourceVersion, which is not believed: "+
			"see what answers in place of the API server", key, o)
	}
	return nil
}

// List implements client.Reader.
func (r Reader) List(ctx context.Context, list client.ObjectList, options ...client.ListOption) error {
	if err := r.Reader.List(ctx, list, options...); err != nil {
		return err
	}
	return checkList(list)
}
