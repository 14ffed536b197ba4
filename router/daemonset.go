package router

// Is the router at its end because its DaemonSet is? Then the routes go. The API server is asked for one object, by its
// name.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

const (
	// askTime is how long the API server may take at the end of the router.
	askTime = 3 * time.Second
	// firstAskPause is between requests at its start.
	firstAskPause = 10 * time.Second
)

// daemonSet is the DaemonSet that runs the router.
type daemonSet struct {
	client    *rest.RESTClient
	namespace string
	name      string

	log *slog.Logger

	mu  sync.Mutex // guards uid
	uid types.UID  // as the router has seen it; empty: not yet
}

// newDaemonSet returns the DaemonSet of the configuration.
func newDaemonSet(c *Config, w *watcher) *daemonSet {
	client, err := w.newClient(appsv1.SchemeGroupVersion, "/apis")
	if err != nil || c.DaemonSet == "" {
		return &daemonSet{}
	}
	return &daemonSet{client: client, namespace: c.Namespace, name: c.DaemonSet, log: c.Log}
}

// awaitFirst looks until it has seen the DaemonSet. One that was never there cannot be gone: the router may run
// otherwise.
func (d *daemonSet) awaitFirst(ctx context.Context) {
	for d.client != nil {
		m, err := d.readMetadata(ctx)
		if err == nil {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.uid = m.UID
			d.log.Info("the DaemonSet has been seen: with it, the routes go", "daemonset", d.name)
			return
		}
		if apierrors.IsForbidden(err) || apierrors.IsNotFound(err) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(firstAskPause):
		}
	}
}

// isGone tells whether the API server says that the DaemonSet is gone or is being deleted. No answer is no reason to
// remove routes.
func (d *daemonSet) isGone() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.uid == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), askTime)
	defer cancel()
	m, err := d.readMetadata(ctx)
	if err != nil {
		return d.isAbsence(err)
	}
	return m.UID == d.uid && m.DeletionTimestamp != nil
}

// isAbsence tells whether an API server says that it has no such object. What stands before it, such as a load balancer
// without a back end, may answer 404, too: client-go marks that, for it is no Status.
func (d *daemonSet) isAbsence(err error) bool {
	status, ok := errors.AsType[*apierrors.StatusError](err)
	if !ok || !apierrors.IsNotFound(err) || status.ErrStatus.Details == nil {
		return false
	}
	details := status.ErrStatus.Details
	unexpected := func(c metav1.StatusCause) bool { return c.Type == metav1.CauseTypeUnexpectedServerResponse }
	return details.Kind == "daemonsets" && details.Name == d.name && !slices.ContainsFunc(details.Causes, unexpected)
}

// readMetadata reads the metadata.
func (d *daemonSet) readMetadata(ctx context.Context) (*metav1.ObjectMeta, error) {
	result := d.client.Get().Namespace(d.namespace).Resource("daemonsets").Name(d.name).Do(ctx)
	text, err := result.Raw()
	if err != nil {
		return nil, result.Error() // which Raw does not read from the answer
	}
	var o metav1.PartialObjectMetadata
	if err := json.Unmarshal(text, &o); err != nil || o.Name != d.name || o.UID == "" {
		return nil, fmt.Errorf("the answer for DaemonSet %s is no object of an API server: %v", d.name, err)
	}
	return &o.ObjectMeta, nil
}
