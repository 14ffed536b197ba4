package writeback

// The last words about links that no broker keeps any more.

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// writesAtOnce bounds the requests at the end of a broker, which has little time.
const writesAtOnce = 8

// Abandon says in the status of KubeLinks that no broker keeps them any more, and returns how many say so anew.
func Abandon(ctx context.Context, c client.Client, names []string) (changed int, err error) {
	var mu sync.Mutex // guards the results
	var all sync.WaitGroup
	turns := make(chan struct{}, writesAtOnce)
	for _, name := range names {
		turns <- struct{}{}
		all.Go(func() {
			defer func() { <-turns }()
			written, failed := abandonLink(ctx, c, name)
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

func abandonLink(ctx context.Context, c client.Client, name string) (written bool, err error) {
	err = retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		l := &v1alpha1.KubeLink{}
		if err := c.Get(ctx, client.ObjectKey{Name: name}, l); err != nil {
			return client.IgnoreNotFound(err)
		}
		before := l.DeepCopy()
		if written = l.Status.Abandon(); !written {
			return nil
		}
		return c.Status().Patch(ctx, l, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	})
	if err = client.IgnoreNotFound(err); err != nil {
		return false, fmt.Errorf("status of KubeLink %s: %w", name, err)
	}
	return written, nil
}
