package kubeapi

// Whether the API server is there.

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"

	"github.com/mandelsoft/kubelink/broker/deadline"
)

const (
	// probeInterval is how often Probe asks.
	probeInterval = 2 * time.Second
	// longestProbe is how long an answer may take where the API server is slow.
	longestProbe = 20 * time.Second
)

// Probe asks the API server whether it is there until ctx ends, and tells each result to note: nil, or why it does not
// answer. Watches notice both late. last is the result before the first one.
func Probe(ctx context.Context, cfg *rest.Config, last error, note func(error)) {
	api, unusable := discovery.NewDiscoveryClientForConfig(cfg)
	limit := deadline.NewBounded(probeInterval, longestProbe)
	slow := false
	for {
		err := unusable // for good: a CA that cannot be read, for example
		if err == nil {
			err = limit.Do(ctx, func(ctx context.Context) error {
				return api.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
			})
			if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
				err = nil // it lives; what is missing shows where it is needed
			}
		}
		if ctx.Err() != nil {
			return
		}
		// One answer that is late says nothing of the watches: to start them anew would add to the load that made it late.
		if slow = err != nil && last == nil && !slow && deadline.IsTimeout(err); slow {
			err = nil
		}
		if err != nil {
			err = fmt.Errorf("API server %s: %w", cfg.Host, err)
		}
		note(err)
		last = err
		select {
		case <-ctx.Done():
			return
		case <-time.After(probeInterval):
		}
	}
}
