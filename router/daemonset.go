package router

// Is the router at its end because its DaemonSet is? Then the routes go. The API server is asked for one object, by its
// name.

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
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
		return apierrors.IsNotFound(err)
	}
	return m.UID == d.uid && m.DeletionTimestamp != nil
}

// readMetadata reads the metadata.
func (d *daemonSet) readMetadata(ctx context.Context) (*metav1.ObjectMeta, error) {
	text, err := d.client.Get().Namespace(d.namespace).Resource("daemonsets").Name(d.name).Do(ctx).Raw()
	if err != nil {
		return nil, err
	}
	var o metav1.PartialObjectMetadata
	if err := json.Unmarshal(text, &o); err != nil || o.Name != d.name || o.UID == "" {
		return nil, fmt.Errorf("the answer for DaemonSet %s is no object of an API server: %v", d.name, err)
	}
	return &o.ObjectMeta, nil
}
