// Package connect links two clusters, from nothing to links that are up, and takes the links away again.
package connect

// One of the two clusters: how to change it, so that what this package has made can be told from the rest.

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	owner        = "kubectl-kubelink" // of fields that are applied
	managedLabel = "app.kubernetes.io/managed-by"
	pollInterval = 500 * time.Millisecond
	quietTime    = 2 * time.Second // what takes longer is told
	// kindRetry is how often a request is tried again while the API server starts to serve new kinds.
	kindRetry = 10 * time.Second
)

// Cluster is an end of a link.
type Cluster struct {
	Name   string // of its context, for messages
	Client client.Client
}

// Log prints what happens, a line each.
type Log struct {
	mu  sync.Mutex // guards out
	out io.Writer
}

// NewLog returns a log that goes to out.
func NewLog(out io.Writer) *Log { return &Log{out: out} }

// PrintAlone calls print while nothing else is printed.
func (l *Log) PrintAlone(print func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	print()
}

func (l *Log) printLine(cluster *Cluster, format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.out, "%s: %s\n", cluster.Name, fmt.Sprintf(format, args...))
}

// changer changes a cluster, or says what it would change.
type changer struct {
	*Cluster
	log       *Log
	dryRun    bool
	patience  time.Duration                              // for pods to end
	leaseTime time.Duration                              // of its Lease
	show      func(*Cluster, *unstructured.Unstructured) // what is applied in a dry run; nil: a line of the log says so
	shown     map[string]bool                            // by a dry run: some objects come first, and again with all others
}

// describeObject names an object in messages.
func describeObject(o client.Object) string {
	kind := o.GetObjectKind().GroupVersionKind().Kind
	if o.GetNamespace() == "" {
		return kind + " " + o.GetName()
	}
	return kind + " " + o.GetNamespace() + "/" + o.GetName()
}

// isOurs tells whether this package has made the object.
func isOurs(o client.Object) bool { return o.GetLabels()[managedLabel] == owner }

// readObject reads an object as it is in the cluster; nil: it is not there.
func (c *changer) readObject(ctx context.Context, o client.Object) (*unstructured.Unstructured, error) {
	is := &unstructured.Unstructured{}
	is.SetGroupVersionKind(o.GetObjectKind().GroupVersionKind())
	err := c.Client.Get(ctx, client.ObjectKeyFromObject(o), is)
	if isAbsent(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: read %s: %w", c.Name, describeObject(o), err)
	}
	return is, nil
}

// isAbsent tells whether an object, or its kind, does not exist.
func isAbsent(err error) bool { return apierrors.IsNotFound(err) || meta.IsNoMatchError(err) }

// applyObject makes an object what it should be, with the label of this package unless another party has made it.
func (c *changer) applyObject(ctx context.Context, o *unstructured.Unstructured) error {
	is, err := c.readObject(ctx, o)
	if err != nil {
		return err
	}
	o = o.DeepCopy()
	if is == nil || isOurs(is) {
		labels := o.GetLabels()
		if labels == nil {
			labels = map[string]string{}
		}
		labels[managedLabel] = owner
		o.SetLabels(labels)
	}
	if c.dryRun {
		c.showObject(o)
		return nil
	}
	before := ""
	if is != nil {
		before = is.GetResourceVersion()
	}
	// A kind that is new may not be served yet.
	err = retryWhile(ctx, kindRetry, func(ctx context.Context) error {
		return c.Client.Apply(ctx, client.ApplyConfigurationFromUnstructured(o), client.FieldOwner(owner),
			client.ForceOwnership)
	}, isAbsent)
	switch {
	case err != nil:
		return fmt.Errorf("%s: apply %s: %w", c.Name, describeObject(o), err)
	case before == "":
		c.log.printLine(c.Cluster, "%s created", describeObject(o))
	case before != o.GetResourceVersion() && !isSame(is, o):
		c.log.printLine(c.Cluster, "%s changed", describeObject(o))
	}
	return nil
}

// isSame tells whether two versions of an object are the same but for the status, which controllers write all the time.
func isSame(a, b *unstructured.Unstructured) bool {
	a, b = a.DeepCopy(), b.DeepCopy()
	for _, o := range []*unstructured.Unstructured{a, b} {
		delete(o.Object, "status")
		o.SetResourceVersion("")
		o.SetManagedFields(nil)
	}
	return equality.Semantic.DeepEqual(a.Object, b.Object)
}

// showObject shows once what a dry run would apply.
func (c *changer) showObject(o *unstructured.Unstructured) {
	name := describeObject(o)
	switch {
	case c.shown[name]:
		return
	case c.show != nil:
		c.show(c.Cluster, redactSecret(o))
	default:
		c.log.printLine(c.Cluster, "would apply %s", name)
	}
	if c.shown == nil {
		c.shown = map[string]bool{}
	}
	c.shown[name] = true
}

// redactSecret returns the object without the values of a secret.
func redactSecret(o *unstructured.Unstructured) *unstructured.Unstructured {
	if o.GetKind() != "Secret" {
		return o
	}
	o = o.DeepCopy()
	data, _, _ := unstructured.NestedMap(o.Object, "data")
	for key := range data {
		data[key] = "UkVEQUNURUQ=" // REDACTED in base64
	}
	o.Object["data"] = data
	return o
}

// removeOwn deletes an object that this package has made, with all that depends on it, and waits until it is gone.
func (c *changer) removeOwn(ctx context.Context, o client.Object) error {
	is, err := c.readObject(ctx, o)
	if err != nil || is == nil || !isOurs(is) {
		return err
	}
	return c.removeAny(ctx, is)
}

// endsSlowly tells whether the end of an object takes time, or other things have to wait for it.
func endsSlowly(o client.Object) bool {
	switch o.GetObjectKind().GroupVersionKind().Kind {
	case "KubeLink", "Deployment", "DaemonSet", "Namespace", "CustomResourceDefinition":
		return true
	}
	return false
}

// removeAny does so whatever has made it.
func (c *changer) removeAny(ctx context.Context, o client.Object) error {
	if c.dryRun {
		c.log.printLine(c.Cluster, "would delete %s", describeObject(o))
		return nil
	}
	name := describeObject(o) // a typed object has no kind after it was read
	policy := client.PropagationPolicy("Background")
	if endsSlowly(o) {
		policy = "Foreground"
	}
	err := c.Client.Delete(ctx, o, policy)
	if isAbsent(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: delete %s: %w", c.Name, name, err)
	}
	if !endsSlowly(o) {
		c.log.printLine(c.Cluster, "%s deleted", name)
		return nil
	}
	limited, hasPods := ctx, endsWithPods(o)
	if hasPods {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeout(ctx, c.patience)
		defer cancel()
	}
	switch err := c.awaitGone(limited, name, o); {
	case err == nil:
		c.log.printLine(c.Cluster, "%s deleted", name)
		return nil
	case !hasPods || ctx.Err() != nil || limited.Err() == nil:
		return err
	}
	c.log.printLine(c.Cluster, "%s: not all pods have ended within %s, as a node may be dead: it goes with them", name,
		c.patience)
	// Without it, the pods still go, but it does not wait for them.
	if err := c.Client.Delete(ctx, o, client.PropagationPolicy("Background")); err != nil && !isAbsent(err) {
		return fmt.Errorf("%s: delete %s: %w", c.Name, name, err)
	}
	return nil
}

// endsWithPods tells whether an object ends when its pods have ended.
func endsWithPods(o client.Object) bool {
	kind := o.GetObjectKind().GroupVersionKind().Kind
	return kind == "Deployment" || kind == "DaemonSet" || kind == "Namespace"
}

// awaitGone waits until an object that was deleted is gone.
func (c *changer) awaitGone(ctx context.Context, name string, o client.Object) error {
	uid := o.GetUID()
	return c.awaitEmpty(ctx, name+" to be gone", func(ctx context.Context) (string, error) {
		err := c.Client.Get(ctx, client.ObjectKeyFromObject(o), o)
		if isAbsent(err) || err == nil && o.GetUID() != uid {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		return strings.TrimSuffix("it ends; finalizers: "+strings.Join(o.GetFinalizers(), ", "), "; finalizers: "), nil
	})
}

// awaitEmpty waits until check returns no text. A failed request is tried again.
func (c *changer) awaitEmpty(ctx context.Context, what string, check func(context.Context) (string, error)) error {
	missing, printed, start := "", "", time.Now()
	err := wait.PollUntilContextCancel(ctx, pollInterval, true, func(ctx context.Context) (bool, error) {
		text, err := check(ctx)
		if err != nil {
			if text = err.Error(); ctx.Err() != nil {
				text = missing // the end of the wait says nothing
			}
		}
		if missing = text; text != printed && text != "" && time.Since(start) > quietTime {
			c.log.printLine(c.Cluster, "waiting for %s: %s", what, text)
			printed = text
		}
		return text == "" && err == nil, nil
	})
	if err != nil {
		return fmt.Errorf("%s: no more time to wait for %s: %s", c.Name, what, missing)
	}
	return nil
}

// retryWhile does something again as long as it fails in a way that passes.
func retryWhile(
	ctx context.Context, limit time.Duration, do func(context.Context) error, passes func(error) bool,
) (err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_ = wait.PollUntilContextCancel(ctx, pollInterval, true, func(ctx context.Context) (bool, error) {
		if e := do(ctx); err == nil || ctx.Err() == nil { // the end of the wait says nothing
			err = e
		}
		return err == nil || !passes(err), nil
	})
	return err
}
