package writeback

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"golang.org/x/time/rate"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// takesStatus is an API that only takes statuses and tells which came.
type takesStatus struct {
	client.Client
	status statuses
}

type statuses struct {
	client.SubResourceWriter
	names []string
	last  string // patch
	then  func(name string) error
}

func (a *takesStatus) Status() client.SubResourceWriter { return &a.status }

func (w *statuses) Patch(
	_ context.Context, o client.Object, patch client.Patch, _ ...client.SubResourcePatchOption,
) error {
	data, err := patch.Data(o)
	if w.last = string(data); err != nil {
		return err
	}
	w.names = append(w.names, o.GetName())
	return w.then(o.GetName())
}

// entryReport is the report on a CoreDNSEntry.
type entryReport struct{ entry *coredns.CoreDNSEntry }

func (r entryReport) Object() client.Object { return r.entry }

func (r entryReport) Write(ctx context.Context, c client.Client) error {
	after := r.entry.DeepCopy()
	after.Status.State = "Ok"
	return c.Status().Patch(ctx, after, client.MergeFrom(r.entry))
}

func newTestWriter(api client.Client, wake func()) *Writer {
	return NewWriter(Config{
		Client: api, Recorder: &events.FakeRecorder{}, Log: slog.New(slog.DiscardHandler), Wake: wake, MaxCreate: 256,
	})
}

// However many names there are, the status of a link is the next to be written; and what could not be
// written is tried again, unless it will never work.
func TestReportsWaitForLinks(t *testing.T) {
	entries := make([]coredns.CoreDNSEntry, 4)
	var reports []Report
	for i := range entries {
		entries[i].Name = string(rune('a' + i))
		reports = append(reports, entryReport{&entries[i]})
	}
	kind := schema.GroupResource{Resource: "corednsentries"}
	api := &takesStatus{}
	w := newTestWriter(api, func() {})
	obj := &v1alpha1.KubeLink{ObjectMeta: metav1.ObjectMeta{Name: "link", ResourceVersion: "7"}}
	link := &Outcome{Links: []Link{{Object: obj, State: v1alpha1.StateUp}}}
	for _, c := range []struct {
		name string
		then func(name string) error
		want string // after two rounds
	}{
		{"all is well", func(string) error { return nil }, "a b c d"},
		{"a link changes meanwhile", func(name string) error {
			if name == "b" {
				w.SetOutcome(link)
			}
			return nil
		}, "a b link c d"},
		{"nobody answers", func(string) error { return errors.New("connection refused") }, "a a"},
		{"one is gone, one has changed", func(name string) error {
			switch name {
			case "a":
				return apierrors.NewNotFound(kind, name)
			case "b":
				return apierrors.NewConflict(kind, name, nil)
			}
			return nil
		}, "a b c d"},
		{"forbidden", func(name string) error { return apierrors.NewForbidden(kind, name, nil) }, "a"},
	} {
		api.status.names, api.status.then = nil, c.then
		SetReports(w, "names", reports)
		for range 2 {
			w.writeAll(t.Context())
		}
		if got := strings.Join(api.status.names, " "); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// Another program that writes other statuses cannot make the writer write without end, and other links and names do not
// wait; what failed was no write.
func TestStatusLimit(t *testing.T) {
	link := func(name, message string) Link {
		obj := metav1.ObjectMeta{Name: name, UID: types.UID(name), ResourceVersion: "7"}
		return Link{Object: &v1alpha1.KubeLink{ObjectMeta: obj}, State: v1alpha1.StateUp, Message: message}
	}
	entry := coredns.CoreDNSEntry{ObjectMeta: metav1.ObjectMeta{Name: "entry"}}
	api := &takesStatus{}
	woken := make(chan struct{}, 1)
	w := newTestWriter(api, func() { woken <- struct{}{} })
	var logged bytes.Buffer
	w.Log = slog.New(slog.NewTextHandler(&logged, nil))
	var err error
	write := func(n int, result error, links ...Link) string {
		api.status.names, api.status.then = nil, func(string) error { return result }
		for range n {
			w.pending = nil
			w.SetOutcome(&Outcome{Links: links})
			err = w.writeAll(t.Context())
		}
		return strings.Join(api.status.names, " ")
	}
	failures := 2 * statusBurst
	if got := write(failures, errors.New("connection refused"), link("one", "")); strings.Count(got, "one") != failures {
		t.Errorf("of %d tries: %s", failures, got)
	}
	if got := write(statusBurst, nil, link("one", "")); strings.Count(got, "one") != statusBurst || err != nil {
		t.Errorf("%v: %s", err, got)
	}
	if !strings.Contains(api.status.last, `"resourceVersion":"7"`) {
		t.Errorf("an older state of the object is no obstacle: %s", api.status.last)
	}
	SetReports(w, "names", []Report{entryReport{&entry}})
	got := write(1, nil, link("one", ""), link("two", ""))
	if got != "two entry" || err != nil || w.heldBackBy <= 0 || w.heldBackBy > statusInterval {
		t.Errorf("%v: %s; looked at again in %v", err, got, w.heldBackBy)
	}
	write(3, nil, link("one", ""))
	if strings.Count(logged.String(), "changes too often") != 1 || !strings.Contains(logged.String(), "link=one") {
		t.Errorf("logged %s", &logged)
	}
	// A link of that name that is made anew is another one, and the old one is forgotten.
	anew := link("one", "")
	anew.Object.UID = "anew"
	if got := write(1, nil, anew); got != "one" || err != nil || len(w.limits) > 2 {
		t.Errorf("%v: %s; %d limits", err, got, len(w.limits))
	}
	if write(1, nil, anew); len(w.limits) != 1 || w.heldBackBy != 0 {
		t.Errorf("%d limits; looked at again in %v", len(w.limits), w.heldBackBy)
	}
	// It is written when the time has come, and what was held back is looked at then.
	written := make(chan struct{})
	api.status.names, api.status.then = nil, func(string) error { close(written); return nil }
	tokens := rate.NewLimiter(rate.Every(50*time.Millisecond), 1)
	tokens.Allow()
	w.limits["anew"] = &statusBudget{Limiter: tokens, told: true}
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- w.Start(ctx) }()
	want := func() { w.SetOutcome(&Outcome{Links: []Link{anew}}) }
	want()
	<-woken
	want()
	for done := false; !done; {
		select {
		case <-woken: // rounded down
			want()
		case <-written:
			done = true
		}
	}
	end()
	<-ended
	if strings.Join(api.status.names, " ") != "one" {
		t.Errorf("written %q", api.status.names)
	}
}
