package linkgateway

// The writer of the LinkGateway. It does not share the goroutine of package writeback: after a move of the gateway, all
// nodes wait for this one write, and it must not wait for those of hundreds of statuses.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/deadline"
	"github.com/mandelsoft/kubelink/broker/onchange"
)

const (
	// lookInterval is how often the writer looks whether the object is as it should be: a user may have deleted it.
	lookInterval = 5 * time.Second
	// yieldInterval is between two looks while another broker may hold the links.
	yieldInterval = 500 * time.Millisecond
	// grace is for how long failures are not worth a word: at the first start, the CRD comes a moment later.
	grace = 3 * time.Second
)

// WriterConfig is what a writer needs of its surroundings.
type WriterConfig struct {
	Reader    client.Reader // without cache
	Client    client.Writer
	Namespace string
	Log       *slog.Logger
	MayWrite  func() bool // whether this broker still holds the links, as far as it knows
	// HeldSince tells whether this broker has made sure after a time that it holds the links.
	HeldSince func(time.Time) bool
	Wake      func() // called when Problem has changed; it must not block
}

// Writer writes the LinkGateway of the links that this broker holds: at once after each change, in one request. It
// implements manager.Runnable.
type Writer struct {
	WriterConfig
	signal  chan struct{}
	problem onchange.Error // why the object does not say where the gateway is

	mu   sync.Mutex // guards the fields below; held to read or to assign them only
	name string
	want *v1alpha1.LinkGatewaySpec // nil: nothing is written
	lack error                     // what want does not say

	// The fields below belong to the goroutine of Start.
	limit   deadline.Limit
	written *v1alpha1.LinkGateway // as last written by this writer; nil: not yet
	other   *v1alpha1.LinkGateway // of another broker, as last seen; nil: there was none
	seen    time.Time             // when other was seen first
	failing time.Time             // since when requests fail; zero: they do not

	suspects map[string]suspect // objects of other brokers, by name
	formerAt time.Time          // when the writer looked for them last; zero: not since it has another name
	former   onchange.Error     // why what they have left is still there
}

// NewWriter returns a writer that starts with Start.
func NewWriter(c WriterConfig) *Writer {
	return &Writer{WriterConfig: c, signal: make(chan struct{}, 1), limit: deadline.New(deadline.First)}
}

// Set says what the LinkGateway of a name is to say, and why that is not all. nil: another broker holds the links, or
// it is not known which one does. It never blocks.
func (w *Writer) Set(name string, want *v1alpha1.LinkGatewaySpec, lack error) {
	w.mu.Lock()
	same := w.name == name && equality.Semantic.DeepEqual(w.want, want)
	w.name, w.want, w.lack = name, want, lack
	w.mu.Unlock()
	if same {
		return
	}
	select {
	case w.signal <- struct{}{}:
	default:
	}
}

// Problem is why other nodes may not find the gateway; nil: they do, or are about to.
func (w *Writer) Problem() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return errors.Join(w.lack, w.problem.Get())
}

// Start writes until ctx ends. It leaves the object behind: the next broker writes it anew.
func (w *Writer) Start(ctx context.Context) error {
	// A pause is between half of the delay and all of it; the delay grows from 100 ms to 5 s.
	backoff := wait.Backoff{Duration: 50 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 16, Cap: 2500 * time.Millisecond}
	delays := backoff
	timer := time.NewTimer(lookInterval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.signal:
		case <-timer.C:
		}
		pause, err := w.updateObject(ctx)
		if err != nil && ctx.Err() == nil {
			pause = delays.Step()
		} else {
			delays = backoff
		}
		timer.Reset(pause)
	}
}

// updateObject brings the object up to date, and returns the time until the next look.
func (w *Writer) updateObject(ctx context.Context) (pause time.Duration, err error) {
	w.mu.Lock()
	name, want := w.name, w.want
	w.mu.Unlock()
	if want == nil || !w.MayWrite() {
		w.written, w.other, w.failing = nil, nil, time.Time{}
		w.noteProblem(nil)
		return yieldInterval, nil
	}
	key := client.ObjectKey{Namespace: w.Namespace, Name: name}
	var yields error
	err = w.limit.Do(ctx, func(ctx context.Context) error {
		var err error
		yields, err = w.writeObject(ctx, key, want)
		if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) { // another program was faster: look at it
			yields, err = w.writeObject(ctx, key, want)
		}
		return err
	})
	switch {
	case ctx.Err() != nil:
	case err == nil && want.Term > 0 && yields != nil && time.Since(w.seen) < grace: // the Lease is about to be renewed
	case err == nil:
		w.failing = time.Time{}
		w.noteProblem(yields)
	case w.failing.IsZero():
		w.failing = time.Now()
	case time.Since(w.failing) > grace:
		w.noteProblem(fmt.Errorf("LinkGateway %s cannot be written: %w: other nodes do not learn where the gateway is%s",
			key, err, remedyFor(err)))
	}
	if yields != nil {
		return yieldInterval, err
	}
	if err == nil && w.MayWrite() && time.Since(w.formerAt) >= formerInterval {
		w.lookForFormer(ctx, name, want)
	}
	return lookInterval, err
}

// lookForFormer looks for what other brokers have left, once the own object is right: so nodes find a way all the time.
func (w *Writer) lookForFormer(ctx context.Context, name string, want *v1alpha1.LinkGatewaySpec) {
	err := w.limit.Do(ctx, func(ctx context.Context) error { return w.removeFormer(ctx, name, want) })
	if ctx.Err() == nil && w.former.Set(err) && err != nil {
		w.Log.Warn("other nodes may follow the LinkGateway of a former broker", "problem", err)
	}
	w.formerAt = time.Now()
}

// remedyFor is what to do about an error.
func remedyFor(err error) string {
	switch {
	case apierrors.IsForbidden(err):
		return "; allow it as deploy/base/rbac.yaml does"
	case apierrors.IsNotFound(err):
		return "; install the CRDs of deploy/crds"
	}
	return ""
}

// noteProblem notes why the object is not as it should be; nil: it is.
func (w *Writer) noteProblem(err error) {
	if !w.problem.Set(err) {
		return
	}
	if err != nil {
		w.Log.Warn("other nodes may not find the gateway", "problem", err)
	}
	w.Wake()
}

// writeObject writes the object, unless it is right already. The first result is why it leaves the object to another
// broker; nil: it does not. After a change of what is wanted, it knows the version of the object and needs no look.
func (w *Writer) writeObject(
	ctx context.Context, key client.ObjectKey, want *v1alpha1.LinkGatewaySpec,
) (yields, err error) {
	last := w.written
	if last != nil && last.Name == key.Name && !equality.Semantic.DeepEqual(&last.Spec, want) {
		w.written = nil // after an error, it looks
		return nil, w.putObject(ctx, last, key, want)
	}
	now := &v1alpha1.LinkGateway{}
	err = w.Reader.Get(ctx, key, now)
	switch {
	case apierrors.IsNotFound(err):
		return nil, w.putObject(ctx, nil, key, want)
	case err != nil:
		return nil, err
	case equality.Semantic.DeepEqual(&now.Spec, want):
		w.written, w.other = now, nil
		return nil, nil
	}
	if yields = w.yieldTo(now, want, last != nil); yields != nil {
		return yields, nil
	}
	return nil, w.putObject(ctx, now, key, want)
}

// yieldTo tells why this broker leaves an object as another one has written it. The higher term wins. But terms begin
// anew where a Lease was deleted: a broker that makes sure, after it has seen the object, that it holds the Lease
// overwrites it. Brokers without Lease do not know of each other: the one whose state has changed last wins.
func (w *Writer) yieldTo(now *v1alpha1.LinkGateway, want *v1alpha1.LinkGatewaySpec, wrote bool) error {
	if now.Spec.Term < want.Term || now.Spec.Term == want.Term && now.Spec.Node == want.Node {
		return nil
	}
	if w.other == nil || w.other.ResourceVersion != now.ResourceVersion {
		w.other, w.seen = now, time.Now()
	}
	if want.Term == 0 && now.Spec.Term == 0 && !wrote || !(want.Term == 0 && wrote) && w.HeldSince(w.seen) {
		return nil
	}
	if want.Term == 0 {
		return fmt.Errorf("another broker of the same links, on node %.253q with term %d, has written LinkGateway %s/%s "+
			"after this one: let one broker run, or remove omit-lease", now.Spec.Node, now.Spec.Term, now.Namespace, now.Name)
	}
	return fmt.Errorf("LinkGateway %s/%s names node %.253q with term %d, and this broker has term %d: "+
		"it writes when it has renewed its Lease", now.Namespace, now.Name, now.Spec.Node, now.Spec.Term, want.Term)
}

// putObject makes the object, or updates the one that was there.
func (w *Writer) putObject(
	ctx context.Context, before *v1alpha1.LinkGateway, key client.ObjectKey, want *v1alpha1.LinkGatewaySpec,
) (err error) {
	start := time.Now()
	after := &v1alpha1.LinkGateway{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}
	if before != nil {
		after = before.DeepCopy()
	}
	after.Spec = *want.DeepCopy()
	if before == nil {
		err = w.Client.Create(ctx, after)
	} else {
		err = w.Client.Update(ctx, after)
	}
	if err != nil {
		return err
	}
	if before == nil || before.Spec.Node != want.Node || before.Spec.Pod != want.Pod || before.Spec.Term != want.Term {
		former := ""
		if before != nil {
			former = before.Spec.Node
		}
		w.Log.Info("other nodes are told where the gateway is", "object", key.Name, "node", want.Node, "pod", want.Pod,
			"term", want.Term, "former node", former, "took", time.Since(start).Round(time.Millisecond))
	}
	if after.ResourceVersion == "" {
		return errors.New("the answer has no resourceVersion, which is not believed: " +
			"see what answers in place of the API server")
	}
	w.written, w.other = after, nil
	return nil
}
