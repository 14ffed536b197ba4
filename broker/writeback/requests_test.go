package writeback

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/deadline"
)

var (
	links = schema.GroupResource{Group: "kubelink.mandelsoft.org", Resource: "kubelinks"}

	errForbidden = apierrors.NewForbidden(links, "x", nil)
	errInvalid   = apierrors.NewInvalid(schema.GroupKind{Kind: "KubeLink"}, "x", nil)
	errInternal  = apierrors.NewInternalError(errors.New("broken"))
	errRefused   = &url.Error{Op: "Patch", URL: "https://10.0.0.1", Err: syscall.ECONNREFUSED}
)

// creates are KubeLinks to be created.
func creates(names ...string) map[string]*v1alpha1.KubeLink {
	all := map[string]*v1alpha1.KubeLink{}
	for _, name := range names {
		l := newKubeLink(name, "b.example")
		all[name] = &l
	}
	return all
}

func TestCreateLinksWithFakeAPIServer(t *testing.T) {
	exists := newKubeLink("exists", "a.example")
	for _, c := range []struct {
		name   string
		result error
		link   string
		kept   bool // for the next try
		fails  bool
		logged bool
	}{
		{"created", nil, "new", false, false, false},
		{"exists", nil, "exists", false, false, false},
		{"invalid", errInvalid, "new", false, false, true},
		{"forbidden", errForbidden, "new", false, false, true},
		{"the API server fails", errInternal, "new", true, true, false},
		{"the API server does not answer", errRefused, "new", true, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			api := newFakeAPI(t, &exists)
			api.fail["create "+c.link] = c.result
			w := newTestWriter(api, nil)
			var log bytes.Buffer
			w.Log = slog.New(slog.NewTextHandler(&log, nil))
			o := &Outcome{Create: creates(c.link)}
			err := w.writeOutcome(t.Context(), o)
			if (err != nil) != c.fails || err != nil && !strings.HasPrefix(err.Error(), "create KubeLink new: ") {
				t.Error(err)
			}
			if len(o.Create) == 1 != c.kept {
				t.Errorf("kept: %v", o.Create)
			}
			if log.Len() > 0 != c.logged {
				t.Errorf("logged: %s", &log)
			}
			if l := api.getLink(t, c.link); (l != nil) != (c.result == nil) {
				t.Errorf("there is %v", l)
			}
			if api.getLink(t, "exists").Spec.Endpoint != "a.example" {
				t.Error("a KubeLink that was there is another one")
			}
		})
	}
}

// No later outcome asks for the KubeLinks again, so a newer outcome takes over what was not created: before the writer
// comes to it, after a failure, and while the writer is at work.
func TestCreatesSurvive(t *testing.T) {
	names := func(o *Outcome) string { return strings.Join(slices.Sorted(maps.Keys(o.Create)), " ") }
	api := newFakeAPI(t)
	api.fail["create a"], api.fail["create b"] = errInternal, errInternal
	w := newTestWriter(api, nil)
	w.MaxCreate = 3
	w.SetOutcome(&Outcome{Create: creates("a")})
	w.SetOutcome(&Outcome{Create: creates("b")})
	if got := names(w.pending); got != "a b" {
		t.Errorf("replaced: %s", got)
	}
	if err := w.writeAll(t.Context()); err == nil || names(w.pending) != "a b" {
		t.Errorf("after a failure: %s, %v", names(w.pending), err)
	}
	w.SetOutcome(&Outcome{
		Create: creates("c"),
		ClusterDNS: func(context.Context) (string, error) { // meanwhile
			w.SetOutcome(&Outcome{Create: creates("d")})
			return "", nil
		},
	})
	if err := w.writeAll(t.Context()); err == nil || names(w.pending) != "a b d" {
		t.Errorf("after a failure with a newer outcome: %s, %v", names(w.pending), err)
	}
	if api.getLink(t, "c") == nil {
		t.Error("c is not created")
	}
	w.SetOutcome(&Outcome{Create: creates("e", "f", "g")})
	if got := names(w.pending); got != "e f g" {
		t.Errorf("more than the limit: %s", got)
	}
	w.SetOutcome(&Outcome{Create: creates("h", "i")})
	if got := strings.Fields(names(w.pending)); len(got) != 3 || got[1] != "h" || got[2] != "i" {
		t.Errorf("up to the limit: %s", got)
	}
	clear(api.fail)
	if err := w.writeAll(t.Context()); err != nil || w.pending != nil {
		t.Errorf("pending %v, %v", w.pending, err)
	}
}

func TestCertificateWithFakeAPIServer(t *testing.T) {
	api := newFakeAPI(t)
	w := newTestWriter(api, nil)
	o := &Outcome{Certificate: &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "cert.gardener.cloud/v1alpha1", "kind": "Certificate",
		"metadata": map[string]any{"name": "tls"}, "spec": map[string]any{"secretName": "tls"},
	}}}
	for i, step := range []struct {
		result  error
		applied bool
	}{
		{errForbidden, true},
		{errInternal, true},
		{nil, true},
		{nil, false}, // once is enough, and the user may change it from now on
	} {
		api.fail["apply certificate"] = step.result
		err := w.writeOutcome(t.Context(), o)
		if !errors.Is(err, step.result) {
			t.Errorf("step %d: %v", i, err)
		}
		if writes := api.takeWrites(); len(writes) == 1 != step.applied {
			t.Errorf("step %d: written %v", i, writes)
		}
	}
	if !strings.Contains(api.apply, `"spec":{"secretName":"tls"}`) {
		t.Errorf("applied %s", api.apply)
	}
}

func TestSecretWithFakeAPIServer(t *testing.T) {
	secret := func(data string) *corev1.Secret {
		return &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "tls"}, Data: map[string][]byte{"tls.crt": []byte(data)},
		}
	}
	read := func(api *fakeAPI) *corev1.Secret {
		var s corev1.Secret
		if err := api.Get(t.Context(), client.ObjectKey{Namespace: "ns", Name: "tls"}, &s); err != nil {
			t.Fatal(err)
		}
		return &s
	}
	for _, c := range []struct {
		name   string
		secret func(api *fakeAPI) *corev1.Secret
		writes string
		data   string // at the end
	}{
		{"there is none", func(*fakeAPI) *corev1.Secret { return secret("one") }, "create tls", "one"},
		{"it is renewed", func(api *fakeAPI) *corev1.Secret {
			if err := api.Create(t.Context(), secret("one")); err != nil {
				t.Fatal(err)
			}
			s := read(api)
			s.Data["tls.crt"] = []byte("two")
			return s
		}, "update tls", "two"},
		{"another program has changed it", func(api *fakeAPI) *corev1.Secret {
			if err := api.Create(t.Context(), secret("one")); err != nil {
				t.Fatal(err)
			}
			s, other := read(api), read(api)
			s.Data["tls.crt"], other.Data["tls.crt"] = []byte("two"), []byte("three")
			if err := api.Update(t.Context(), other); err != nil {
				t.Fatal(err)
			}
			return s
		}, "update tls", "three"},
	} {
		t.Run(c.name, func(t *testing.T) {
			api := newFakeAPI(t)
			s := c.secret(api)
			version := s.ResourceVersion
			api.takeWrites()
			err := newTestWriter(api, nil).writeOutcome(t.Context(), &Outcome{Secret: s})
			if writes := strings.Join(api.writes, ", "); err != nil || writes != c.writes {
				t.Errorf("written %s, %v", writes, err)
			}
			if got := string(read(api).Data["tls.crt"]); got != c.data {
				t.Errorf("the secret has %s", got)
			}
			if s.ResourceVersion != version {
				t.Error("the outcome is changed")
			}
		})
	}
}

// An API server that does not answer costs one attempt for each outcome. One that refuses a request may take the next.
func TestUnreachableAPIServer(t *testing.T) {
	for _, c := range []struct {
		name    string
		result  error // of the secret
		writes  string
		reports bool // are written after a failure
		fails   bool
	}{
		{"all is well", nil, "create tls, apply certificate, status one, create new", true, false},
		{"refuses", errForbidden, "create tls, apply certificate, status one, create new", true, true},
		{"knows a newer one", apierrors.NewConflict(links, "x", nil),
			"create tls, apply certificate, status one, create new", true, false},
		{"is gone", apierrors.NewNotFound(links, "x"), "create tls, apply certificate, status one, create new", true, false},
		{"times out by itself", apierrors.NewTimeoutError("x", 1),
			"create tls, apply certificate, status one, create new", true, true},
		{"does not listen", errRefused, "create tls", false, true},
		{"does not answer in time", fmt.Errorf("rate limiter: %w", context.DeadlineExceeded), "create tls", false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			one := newKubeLink("one", "b.example")
			api := newFakeAPI(t, &one)
			api.fail["create tls"] = c.result
			w := newTestWriter(api, nil)
			w.SetOutcome(&Outcome{
				Secret:      &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "tls"}},
				Certificate: &unstructured.Unstructured{Object: map[string]any{"kind": "Certificate"}},
				Links:       []Link{{Object: api.getLink(t, "one"), State: v1alpha1.StateUp}},
				Create:      creates("new"),
			})
			report := &countingReport{}
			SetReports(w, "names", []Report{report})
			err := w.writeAll(t.Context())
			if got := strings.Join(api.writes, ", "); got != c.writes {
				t.Errorf("written %s", got)
			}
			if (err != nil) != c.fails || err != nil && !strings.HasPrefix(err.Error(), "secret tls: ") {
				t.Errorf("%v", err)
			}
			if report.written == 1 != c.reports {
				t.Errorf("reports are written %d times", report.written)
			}
			if (w.pending != nil) != c.fails {
				t.Errorf("pending: %v", w.pending)
			}
		})
	}
}

// countingReport counts how often it is written.
type countingReport struct {
	object  v1alpha1.KubeLink
	written int
}

func (r *countingReport) Object() client.Object                      { return &r.object }
func (r *countingReport) Write(context.Context, client.Client) error { r.written++; return nil }

// Each request has a time limit of its own, which grows while requests run into it, and one link that cannot be
// written does not keep other ones from being so.
func TestRequestsAreIndependent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limit := deadline.New(deadline.First)
		b := &batch{limit: &limit}
		for _, want := range []time.Duration{5 * time.Second, 10 * time.Second, 20 * time.Second} {
			b.run(t.Context(), "wait", func(ctx context.Context) error {
				began := time.Now()
				<-ctx.Done()
				if took := time.Since(began); took != want {
					t.Errorf("ended after %v", took)
				}
				return errors.New("ended") // no error of the network
			})
		}
		if len(b.errs) != 3 || b.dead {
			t.Errorf("%v, dead %v", b.errs, b.dead)
		}
	})
	one, two := newKubeLink("one", "b.example"), newKubeLink("two", "c.example")
	api := newFakeAPI(t, &one, &two)
	api.fail["status one"] = errInternal
	err := newTestWriter(api, nil).writeOutcome(t.Context(), &Outcome{Links: []Link{
		{Object: api.getLink(t, "one"), State: v1alpha1.StateUp}, {Object: api.getLink(t, "two"), State: v1alpha1.StateUp},
	}})
	if err == nil || !strings.HasPrefix(err.Error(), "KubeLink one: ") || api.getLink(t, "two").Status.State == "" {
		t.Errorf("%v; %+v", err, api.getLink(t, "two").Status)
	}
}

// A failed write is tried again after a pause that grows, with the outcome that is wanted by then.
func TestStartTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTestWriter(nil, nil)
		ctx, end := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- w.Start(ctx) }()
		type attempt struct {
			outcome int
			at      time.Time
		}
		attempts := make(chan attempt)
		outcome := func(i int, results chan error) *Outcome {
			return &Outcome{ClusterDNS: func(context.Context) (string, error) {
				attempts <- attempt{i, time.Now()}
				return "", <-results
			}}
		}
		results := make(chan error, 1)
		w.SetOutcome(outcome(1, results))
		last := <-attempts
		results <- errInternal
		for _, limit := range []time.Duration{100, 200, 400} {
			limit *= time.Millisecond
			next := <-attempts
			if pause := next.at.Sub(last.at); pause < limit/2 || pause > limit || next.outcome != 1 {
				t.Errorf("outcome %d after %v, want at most %v", next.outcome, pause, limit)
			}
			last = next
			if limit == 400*time.Millisecond {
				w.SetOutcome(outcome(2, results)) // in place of the one that fails
			}
			results <- errInternal
		}
		if next := <-attempts; next.outcome != 2 || next.at != last.at {
			t.Errorf("outcome %d after %v", next.outcome, next.at.Sub(last.at))
		}
		results <- nil
		synctest.Wait()
		if w.pending != nil {
			t.Error("what was written is pending")
		}
		w.SetOutcome(outcome(3, results)) // pauses are short again
		last = <-attempts
		results <- errInternal
		if pause := (<-attempts).at.Sub(last.at); pause > 100*time.Millisecond {
			t.Errorf("after %v", pause)
		}
		results <- nil
		end()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
