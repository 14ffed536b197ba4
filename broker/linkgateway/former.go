package linkgateway

// LinkGateways that other brokers have left: with another lease-name or other served-links, a broker writes another
// object. Nodes follow the older one, so what is left must go.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

const (
	// formerInterval is how often the writer looks for objects that others have left.
	formerInterval = 15 * time.Second
	// deadTime is for how long neither an object nor its Lease has changed before the object counts as left. It is longer
	// than a broker needs to start anew, and than the usual duration of a Lease.
	deadTime = time.Minute
)

// suspect is an object of another broker that leads to a network of ours.
type suspect struct {
	version string    // of the object and of its Lease
	since   time.Time // when this version was seen first
}

// removeFormer deletes what other brokers have left. It never deletes what a broker without Lease may still want.
func (w *Writer) removeFormer(ctx context.Context, own string, want *v1alpha1.LinkGatewaySpec) error {
	var list v1alpha1.LinkGatewayList
	if err := w.Reader.List(ctx, &list, client.InNamespace(w.Namespace)); err != nil {
		return fmt.Errorf("cannot look for LinkGateways of former brokers: %w%s", err, remedyFor(err))
	}
	suspects := map[string]suspect{}
	var errs []error
	for i := range list.Items {
		g := &list.Items[i]
		if g.Name == own || g.DeletionTimestamp != nil {
			continue
		}
		why := ""
		switch {
		case g.Spec.Node == want.Node && g.Spec.Pod == want.Pod:
			// One broker at most carries links in a network namespace, and here this is the one.
			why = "it names the place of this broker"
		case g.Spec.Term > 0 && slices.ContainsFunc(g.Spec.Networks, func(n v1alpha1.GatewayNetwork) bool {
			return slices.Contains(want.Networks, n)
		}):
			dead, err := w.watchSuspect(ctx, g, suspects)
			if errs = append(errs, err); dead {
				why = fmt.Sprintf("it leads to a network of this broker, and its Lease has not been renewed for %s", deadTime)
			}
		}
		if why != "" {
			errs = append(errs, w.deleteFormer(ctx, g, why))
		}
	}
	w.suspects = suspects
	return errors.Join(errs...)
}

// watchSuspect tells whether the broker of an object is gone: neither the object nor the Lease of its name changes.
func (w *Writer) watchSuspect(
	ctx context.Context, g *v1alpha1.LinkGateway, suspects map[string]suspect,
) (dead bool, err error) {
	var lease coordinationv1.Lease
	if err := w.Reader.Get(ctx, client.ObjectKeyFromObject(g), &lease); err != nil && !apierrors.IsNotFound(err) {
		return false, fmt.Errorf("cannot look whether Lease %s is held: %w%s", g.Name, err, remedyFor(err))
	}
	s := suspect{fmt.Sprint(g.UID, g.ResourceVersion, "/", lease.UID, lease.ResourceVersion), time.Now()}
	if last, ok := w.suspects[g.Name]; ok && last.version == s.version {
		s.since = last.since
	}
	suspects[g.Name] = s
	limit := deadTime
	if d := lease.Spec.LeaseDurationSeconds; d != nil {
		limit = max(limit, 2*time.Duration(*d)*time.Second)
	}
	return time.Since(s.since) >= limit, nil
}

// deleteFormer deletes an object, unless it has changed since it was read.
func (w *Writer) deleteFormer(ctx context.Context, g *v1alpha1.LinkGateway, why string) error {
	err := w.Client.Delete(ctx, g, client.Preconditions{UID: &g.UID, ResourceVersion: &g.ResourceVersion})
	switch {
	case apierrors.IsNotFound(err) || apierrors.IsConflict(err):
		return nil
	case err != nil:
		return fmt.Errorf("LinkGateway %s is left of a former broker (%s), and cannot be deleted: %w%s",
			g.Name, why, err, remedyFor(err))
	}
	w.Log.Info("the LinkGateway of a former broker is deleted", "object", g.Name, "reason", why, "node", g.Spec.Node,
		"pod", g.Spec.Pod, "term", g.Spec.Term)
	return nil
}
