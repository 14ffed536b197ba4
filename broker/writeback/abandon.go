package writeback

// The last words about objects that no broker keeps any more.

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// writesAtOnce bounds the requests at the end of a broker, which has little time.
const writesAtOnce = 8

// abandonable is an object whose status a broker keeps.
type abandonable interface {
	client.Object
	// Abandon says in the status that no broker keeps it any more, and tells whether that is new.
	Abandon() (changed bool)
}

// Abandon says in the statuses of KubeLinks, and then of MeshServices, that no broker keeps them any more, and returns
// how many say so anew. It ends with ctx.
func Abandon(
	ctx context.Context, c client.Client, links []string, services []types.NamespacedName,
) (changed int, err error) {
	var objects []abandonable
	for _, name := range links {
		objects = append(objects, &v1alpha1.KubeLink{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	for _, key := range services {
		objects = append(objects, &v1alpha1.MeshService{
			ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name},
		})
	}
	var mu sync.Mutex // guards the results
	var all sync.WaitGroup
	turns := make(chan struct{}, writesAtOnce)
	for i, o := range objects {
		turns <- struct{}{}
		if ended := ctx.Err(); ended != nil {
			mu.Lock()
			err = errors.Join(err, fmt.Errorf("%d of %d objects are left: %w", len(objects)-i, len(objects), ended))
			mu.Unlock()
			break
		}
		all.Go(func() {
			defer func() { <-turns }()
			written, failed := abandonObject(ctx, c, o)
			mu.Lock()
			defer mu.Unlock()
			if written {
				changed++
			}
			err = errors.Join(err, failed)
		})
	}
	all.Wait()
	return changed, err
}

func abandonObject(ctx context.Context, c client.Client, named abandonable) (written bool, err error) {
	key := client.ObjectKeyFromObject(named)
	err = retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		o := named.DeepCopyObject().(abandonable) // what a client reads into an object leaves what that has already
		if err := c.Get(ctx, key, o); err != nil {
			return client.IgnoreNotFound(err)
		}
		before := o.DeepCopyObject().(client.Object)
		if written = o.Abandon(); !written {
			return nil
		}
		return c.Status().Patch(ctx, o, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	})
	if err = client.IgnoreNotFound(err); err != nil {
		kind, _ := c.GroupVersionKindFor(named) // the scheme has both kinds
		return false, fmt.Errorf("status of %s %s: %w", kind.Kind, strings.TrimPrefix(key.String(), "/"), err)
	}
	return written, nil
}
