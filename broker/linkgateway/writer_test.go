package linkgateway

// The writer with controller-runtime's fake client in place of the API server, in the time of testing/synctest.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// world is an API server with one LinkGateway, and a broker that writes it.
type world struct {
	*Writer
	api client.WithWatch
	log *strings.Builder

	// mu guards the fields below. A test changes them before it calls Set or after, which hand them over to the writer.
	mu     sync.Mutex
	ops    []string
	fail   map[string]error // by verb
	lost   bool             // the broker may not write
	renews bool             // its Lease
	wakes  int
}

var key = client.ObjectKey{Namespace: "kubelink", Name: "kubelink"}

// simulate runs a test with a writer that has nothing to write yet.
func simulate(t *testing.T, test func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		scheme := runtime.NewScheme()
		if err := errors.Join(v1alpha1.AddToScheme(scheme), coordinationv1.AddToScheme(scheme)); err != nil {
			t.Fatal(err)
		}
		w := &world{fail: map[string]error{}, renews: true, log: &strings.Builder{}}
		note := func(verb string) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.ops = append(w.ops, verb)
			return w.fail[verb]
		}
		w.api = fake.NewClientBuilder().WithScheme(scheme).Build()
		watched := interceptor.NewClient(w.api, interceptor.Funcs{
			Get: func(
				c context.Context, a client.WithWatch, k client.ObjectKey, o client.Object, opt ...client.GetOption,
			) error {
				if err := note("get"); err != nil {
					return err
				}
				return a.Get(c, k, o, opt...)
			},
			Create: func(c context.Context, a client.WithWatch, o client.Object, opt ...client.CreateOption) error {
				if err := note("create"); err != nil {
					return err
				}
				return a.Create(c, o, opt...)
			},
			Delete: func(c context.Context, a client.WithWatch, o client.Object, opt ...client.DeleteOption) error {
				if err := note("delete"); err != nil {
					return err
				}
				return a.Delete(c, o, opt...)
			},
			Update: func(c context.Context, a client.WithWatch, o client.Object, opt ...client.UpdateOption) error {
				if err := note("update"); err != nil {
					return err
				}
				return a.Update(c, o, opt...)
			},
		})
		w.Writer = NewWriter(WriterConfig{Reader: watched, Client: watched, Namespace: key.Namespace,
			Log: slog.New(slog.NewTextHandler(w.log, nil)),
			MayWrite: func() bool {
				w.mu.Lock()
				defer w.mu.Unlock()
				return !w.lost
			},
			HeldSince: func(since time.Time) bool {
				w.mu.Lock()
				defer w.mu.Unlock()
				return w.renews && time.Since(since) > 2*time.Second
			},
			Wake: func() {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.wakes++
			},
		})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- w.Start(ctx) }()
		test(t, w)
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// want is what the broker under test, on node1, has to say.
func want(term int64, networks ...v1alpha1.GatewayNetwork) *v1alpha1.LinkGatewaySpec {
	return &v1alpha1.LinkGatewaySpec{Node: "node1", Term: term, Networks: networks}
}

// after lets a time pass and returns the requests since the last call.
func (w *world) after(d time.Duration) string {
	w.handOver()
	time.Sleep(d)
	synctest.Wait()
	ops := strings.Join(w.ops, " ")
	w.ops = nil
	return ops
}

// handOver lets the writer see what the test has changed.
func (w *world) handOver() {
	w.mu.Lock()
	defer w.mu.Unlock()
}

// text is what the object says.
func (w *world) text(t *testing.T) string {
	t.Helper()
	o := &v1alpha1.LinkGateway{}
	if err := w.api.Get(t.Context(), key, o); err != nil {
		return err.Error()
	}
	return fmt.Sprint(o.Spec.Node, " ", o.Spec.Term, " ", o.Spec.Networks)
}

// put plays another program that makes or changes the object.
func (w *world) put(t *testing.T, node string, term int64) {
	t.Helper()
	o := &v1alpha1.LinkGateway{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}
	err := w.api.Get(t.Context(), key, o)
	o.Spec = v1alpha1.LinkGatewaySpec{Node: node, Term: term}
	if err == nil {
		err = w.api.Update(t.Context(), o)
	} else {
		err = w.api.Create(t.Context(), o)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// One request for each change; a look now and then.
func TestOneWritePerChange(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		if ops := w.after(time.Minute); ops != "" {
			t.Errorf("a standby asks: %s", ops)
		}
		for _, c := range []struct {
			spec *v1alpha1.LinkGatewaySpec
			ops  string
		}{
			{want(3, "100.64.16.0/20"), "get create"},
			{want(3, "100.64.16.0/20"), ""},
			{want(3, "100.64.16.0/20", "192.168.0.0/24"), "update"},
			{want(3), "update"},
			{nil, ""},
			{want(5), "get update"},
		} {
			w.Set(key.Name, c.spec, nil)
			if ops := w.after(time.Millisecond); ops != c.ops {
				t.Errorf("%+v: %q, not %q", c.spec, ops, c.ops)
			}
		}
		if got := w.text(t); got != "node1 5 []" {
			t.Error(got)
		}
		if ops := w.after(2 * lookInterval); ops != "get get" {
			t.Errorf("idle: %s", ops)
		}
		if err := w.api.Delete(t.Context(), &v1alpha1.LinkGateway{ObjectMeta: metav1.ObjectMeta{
			Namespace: key.Namespace, Name: key.Name}}); err != nil {
			t.Fatal(err)
		}
		if ops := w.after(lookInterval); ops != "get create" {
			t.Errorf("after the deletion: %s", ops)
		}
		w.lost = true
		w.put(t, "node2", 1)
		if ops := w.after(time.Minute); ops != "" {
			t.Errorf("without the Lease: %s", ops)
		}
		if w.Problem() != nil || w.wakes != 0 {
			t.Errorf("%v, %d wakes", w.Problem(), w.wakes)
		}
	})
}

// What happens when the object says something else, by terms of this broker and of the object.
func TestOtherWriters(t *testing.T) {
	for _, c := range []struct {
		name    string
		renews  bool
		own     int64
		node    string // that the object names
		term    int64
		want    string
		after   time.Duration // at most
		problem string
	}{
		{"lower term", true, 3, "node2", 2, "node1 3 []", lookInterval, ""},
		{"lower term, without renewal", false, 3, "node2", 2, "node1 3 []", lookInterval, ""},
		{"higher term of a Lease that is gone", true, 3, "node2", 9, "node1 3 []", lookInterval + 4*time.Second, ""},
		{"higher term of the holder", false, 3, "node2", 9, "node2 9 []", 0, "names node \"node2\" with term 9"},
		{"same term on the same node", false, 3, "node1", 3, "node1 3 []", lookInterval, ""},
		{"same term on another node", false, 3, "node2", 3, "node2 3 []", 0, "this broker has term 3"},
		{"both without Lease", true, 0, "node2", 0, "node2 0 []", 0, "another broker of the same links, on node \"node2\""},
		{"without Lease, same node", true, 0, "node1", 0, "node1 0 []", lookInterval, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			simulate(t, func(t *testing.T, w *world) {
				w.renews = c.renews
				w.Set(key.Name, want(c.own, "10.7.0.0/16"), nil)
				w.after(time.Millisecond)
				w.put(t, c.node, c.term)
				wanted := strings.Replace(c.want, "node1 "+fmt.Sprint(c.own)+" []", "node1 "+fmt.Sprint(c.own)+" [10.7.0.0/16]", 1)
				w.after(max(c.after, time.Minute))
				if got := w.text(t); got != wanted {
					t.Errorf("%s, not %s", got, wanted)
				}
				err := w.Problem()
				if (err != nil) != (c.problem != "") || err != nil && !strings.Contains(err.Error(), c.problem) {
					t.Errorf("problem %v", err)
				}
				if warned := strings.Count(w.log.String(), "level=WARN"); warned > 1 || (warned == 1) != (c.problem != "") {
					t.Errorf("%d warnings: %s", warned, w.log)
				}
			})
		})
	}
}

// At its start a broker takes over what another one has left, but not from one with a Lease when its own cannot be used.
func TestTakeOver(t *testing.T) {
	for _, c := range []struct {
		name      string
		own, term int64
		renews    bool
		want      string
	}{
		{"next term", 4, 3, true, "node1 4 []"},
		{"a Lease that began anew", 1, 7, true, "node1 1 []"},
		{"omit-lease", 0, 0, true, "node1 0 []"},
		{"omit-lease after a Lease", 0, 7, true, "node1 0 []"},
		{"a Lease that cannot be used", 0, 7, false, "node2 7 []"},
		{"cut off", 3, 4, false, "node2 4 []"},
	} {
		t.Run(c.name, func(t *testing.T) {
			simulate(t, func(t *testing.T, w *world) {
				w.renews = c.renews
				w.put(t, "node2", c.term)
				w.Set(key.Name, want(c.own), nil)
				w.after(4 * time.Second)
				if got := w.text(t); got != c.want {
					t.Errorf("%s, not %s", got, c.want)
				}
			})
		})
	}
}

// Requests that fail are tried again, soon at first. What fails for long is said, with the remedy, once.
func TestFailures(t *testing.T) {
	resource := schema.GroupResource{Group: v1alpha1.GroupVersion.Group, Resource: "linkgateways"}
	for _, c := range []struct {
		name, verb string
		err        error
		says       string
	}{
		{"no CRD", "create", apierrors.NewNotFound(resource, ""), "install the CRDs"},
		{"no permission", "create", apierrors.NewForbidden(resource, key.Name, errors.New("no role")),
			"deploy/base/rbac.yaml"},
		{"no answer", "get", context.DeadlineExceeded, "deadline"},
	} {
		t.Run(c.name, func(t *testing.T) {
			simulate(t, func(t *testing.T, w *world) {
				w.fail[c.verb] = c.err
				w.Set(key.Name, want(1), nil)
				if n := strings.Count(w.after(time.Second), c.verb); n < 3 {
					t.Errorf("%d tries in a second", n)
				}
				if w.Problem() != nil || w.wakes != 0 {
					t.Errorf("after a second: %v", w.Problem())
				}
				w.after(time.Minute)
				if err := w.Problem(); err == nil || !strings.Contains(err.Error(), c.says) || w.wakes != 1 ||
					strings.Count(w.log.String(), "level=WARN") != 1 {
					t.Errorf("problem %v, %d wakes, log %s", err, w.wakes, w.log)
				}
				delete(w.fail, c.verb)
				w.after(6 * time.Second)
				if w.Problem() != nil || w.text(t) != "node1 1 []" || w.wakes != 2 {
					t.Errorf("%v, %s, %d wakes", w.Problem(), w.text(t), w.wakes)
				}
			})
		})
	}
	t.Run("another program was faster", func(t *testing.T) {
		simulate(t, func(t *testing.T, w *world) {
			w.Set(key.Name, want(3), nil)
			w.after(time.Millisecond)
			w.put(t, "node2", 2)
			w.Set(key.Name, want(3, "10.7.0.0/16"), errors.New("no room"))
			if ops := w.after(time.Millisecond); ops != "update get update" || w.text(t) != "node1 3 [10.7.0.0/16]" {
				t.Errorf("%s: %s", ops, w.text(t))
			}
			if err := w.Problem(); err == nil || err.Error() != "no room" {
				t.Error(err)
			}
		})
	})
}
