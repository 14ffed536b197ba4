package connect

// Runs of connect and disconnect with a cluster in common take turns, so that each one sees what the others have
// decided, such as the addresses of clusters. A Lease in each cluster says which run changes it.

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	leaseName = "kubelink-connect" // in kube-system, which no run makes or removes
	leaseText = "Lease " + metav1.NamespaceSystem + "/" + leaseName
	// leaseTime is how long a run that was killed keeps others waiting: a run takes a Lease that it sees unchanged for
	// so long.
	leaseTime = 15 * time.Second
	renewals  = 5 // in that time
	// releaseTime is how long the end of a run may take, also after its own time is over.
	releaseTime = 5 * time.Second
)

// isRace tells whether an object has changed since it was read.
func isRace(err error) bool { return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) }

// takeTurns calls do when no other run changes one of the clusters.
func (p *pair) takeTurns(ctx context.Context, do func(context.Context) error) error {
	if p.DryRun {
		return do(ctx)
	}
	a, b := p.sides[0], p.sides[1]
	if a.uid > b.uid { // all runs begin with the same cluster: none waits for one that waits for it
		a, b = b, a
	}
	return a.holdLease(ctx, func(ctx context.Context) error { return b.holdLease(ctx, do) })
}

// holdLease calls do while this run holds the Lease of the cluster. The context of do ends when the Lease is lost.
func (c *changer) holdLease(ctx context.Context, do func(context.Context) error) error {
	l, err := c.acquireLease(ctx)
	if err != nil {
		return err
	}
	held, end := context.WithCancelCause(ctx)
	var renewal sync.WaitGroup
	renewal.Go(func() { end(c.renewLease(held, l)) })
	err = do(held)
	if lost := context.Cause(held); lost != nil && ctx.Err() == nil {
		err = lost
	}
	end(nil)
	renewal.Wait()
	c.releaseLease(ctx, l)
	return err
}

// acquireLease waits until no other run holds the Lease, and takes it.
func (c *changer) acquireLease(ctx context.Context) (own *coordinationv1.Lease, err error) {
	seen, since := &coordinationv1.Lease{}, time.Now()
	var answered time.Time
	var failed error
	err = c.awaitEmpty(ctx, "another run of this command", func(ctx context.Context) (string, error) {
		own, failed = &coordinationv1.Lease{}, nil
		err := c.Client.Get(ctx, client.ObjectKey{Namespace: metav1.NamespaceSystem, Name: leaseName}, own)
		switch {
		case err == nil || apierrors.IsNotFound(err):
			if answered = time.Now(); !equality.Semantic.DeepEqual(own.Spec, seen.Spec) {
				seen, since = own.DeepCopy(), answered
			}
		case time.Since(answered) < c.leaseTime: // another run has the Lease, and the failure may pass
			return "", err
		}
		switch {
		case apierrors.IsNotFound(err):
			own.Namespace, own.Name = metav1.NamespaceSystem, leaseName
			claimLease(own, c.leaseTime)
			err = c.Client.Create(ctx, own)
		case err == nil && time.Since(since) < c.leaseTime:
			return describeHolder(own), nil
		case err == nil:
			claimLease(own, c.leaseTime)
			err = c.Client.Update(ctx, own)
		}
		switch {
		case isRace(err):
			return "it was faster", nil
		case ctx.Err() != nil:
			return "", err
		}
		failed = err // ends the wait: further tries would fail, too
		return "", nil
	})
	if failed != nil {
		return nil, fmt.Errorf("%s: take %s: %w", c.Name, leaseText, failed)
	}
	return own, err
}

// claimLease makes a Lease that of this run.
func claimLease(l *coordinationv1.Lease, duration time.Duration) {
	host, _ := os.Hostname()                                          // for people
	now := metav1.NewMicroTime(time.Now().Truncate(time.Microsecond)) // as the API server keeps it
	l.Spec = coordinationv1.LeaseSpec{
		HolderIdentity: ptr.To(fmt.Sprintf("process %d on %s", os.Getpid(), host)), AcquireTime: &now, RenewTime: &now,
		LeaseDurationSeconds: ptr.To(max(1, int32(duration/time.Second)))}
}

// isSameClaim tells whether both are the Lease of one run.
func isSameClaim(a, b *coordinationv1.Lease) bool {
	return ptr.Equal(a.Spec.HolderIdentity, b.Spec.HolderIdentity) && a.Spec.AcquireTime.Equal(b.Spec.AcquireTime)
}

// describeHolder says which run holds a Lease.
func describeHolder(l *coordinationv1.Lease) string {
	since := ptr.Deref(l.Spec.AcquireTime, metav1.MicroTime{})
	return fmt.Sprintf("%s holds %s since %s", ptr.Deref(l.Spec.HolderIdentity, "an unknown process"), leaseText,
		since.UTC().Format(time.RFC3339))
}

// renewLease renews the Lease until ctx ends. An error says why this run does not hold it any more.
func (c *changer) renewLease(ctx context.Context, l *coordinationv1.Lease) error {
	interval := c.leaseTime / renewals
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for renewed := time.Now(); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		now := time.Now()
		l.Spec.RenewTime = ptr.To(metav1.NewMicroTime(now))
		request, cancel := context.WithTimeout(ctx, interval)
		err := c.Client.Update(request, l)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			renewed = now
		case isRace(err), isAbsent(err), time.Since(renewed) > c.leaseTime-2*interval:
			return fmt.Errorf("%s: this run has lost %s, and another one may change the cluster: run it again: %w", c.Name,
				leaseText, err)
		}
	}
}

// releaseLease deletes the Lease, unless another run has it meanwhile.
func (c *changer) releaseLease(ctx context.Context, l *coordinationv1.Lease) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTime)
	defer cancel()
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		err := c.Client.Delete(ctx, l, client.Preconditions{UID: &l.UID, ResourceVersion: &l.ResourceVersion})
		if !apierrors.IsConflict(err) {
			return err
		}
		is := &coordinationv1.Lease{} // a renewal may have been done whose answer was lost
		if err := c.Client.Get(ctx, client.ObjectKeyFromObject(l), is); err != nil {
			return err
		}
		if !isSameClaim(is, l) {
			return nil
		}
		l = is
		return err
	})
	if err != nil && !isAbsent(err) {
		c.log.printLine(c.Cluster, "%s stays, and keeps the next run waiting for %s: %v", leaseText, c.leaseTime, err)
	}
}
