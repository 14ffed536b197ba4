package writeback

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

const foreignFinalizer = "example.org/other"

func withFinalizers(l v1alpha1.KubeLink, finalizers ...string) *v1alpha1.KubeLink {
	l.Finalizers = finalizers
	return &l
}

func TestSetStatus(t *testing.T) {
	const yes, no = metav1.ConditionTrue, metav1.ConditionFalse
	for _, c := range []struct {
		state           v1alpha1.State
		accepted, ready metav1.ConditionStatus
	}{
		{v1alpha1.StateInvalid, no, no},
		{v1alpha1.StateStale, no, no},
		{v1alpha1.StateError, yes, no},
		{v1alpha1.StateIdle, yes, no},
		{v1alpha1.StateUp, yes, yes},
		{v1alpha1.StateDown, yes, no},
		{v1alpha1.StateDeleting, yes, no},
	} {
		t.Run(string(c.state), func(t *testing.T) {
			w := newTestWriter(nil, nil)
			w.NodeIP = "10.0.0.7"
			obj := newKubeLink("one", "b.example")
			obj.Generation = 3
			obj.Status = v1alpha1.KubeLinkStatus{State: "Old", Message: "old", PublicKey: "former"}
			w.setStatus(&obj, Link{State: c.state, Message: "why", PublicKey: "key"})
			st := &obj.Status
			if st.State != c.state || st.Message != "why" || st.ObservedGeneration != 3 || st.Gateway != "10.0.0.7" ||
				st.PublicKey != "key" {
				t.Errorf("status %+v", st)
			}
			acceptedReason, acceptedMessage := "Valid", ""
			if c.accepted == no {
				acceptedReason, acceptedMessage = string(c.state), "why"
			}
			for _, want := range []metav1.Condition{
				{Type: "Accepted", Status: c.accepted, Reason: acceptedReason, Message: acceptedMessage},
				{Type: "Ready", Status: c.ready, Reason: string(c.state), Message: "why"},
			} {
				got := meta.FindStatusCondition(st.Conditions, want.Type)
				if got == nil {
					t.Fatalf("condition %s is missing", want.Type)
				}
				if got.LastTransitionTime.IsZero() {
					t.Errorf("condition %s has no time", want.Type)
				}
				want.LastTransitionTime, want.ObservedGeneration = got.LastTransitionTime, 3
				if *got != want {
					t.Errorf("condition %+v, want %+v", *got, want)
				}
			}
			if len(st.Conditions) != 2 {
				t.Errorf("%d conditions", len(st.Conditions))
			}
		})
	}
}

// The time of a condition is that of its last change, and conditions of other programs stay.
func TestSetStatusKeepsConditions(t *testing.T) {
	before := metav1.NewTime(time.Unix(1000, 0))
	obj := newKubeLink("one", "b.example")
	for _, c := range []metav1.Condition{
		{Type: "Foreign", Status: metav1.ConditionTrue}, {Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse},
		{Type: v1alpha1.ConditionAccepted, Status: metav1.ConditionFalse},
	} {
		c.LastTransitionTime = before
		obj.Status.Conditions = append(obj.Status.Conditions, c)
	}
	newTestWriter(nil, nil).setStatus(&obj, Link{State: v1alpha1.StateDown, Message: "silent"})
	for name, changed := range map[string]bool{"Foreign": false, "Ready": false, "Accepted": true} {
		c := meta.FindStatusCondition(obj.Status.Conditions, name)
		if c == nil || c.LastTransitionTime.Equal(&before) == changed {
			t.Errorf("condition %s: %+v", name, c)
		}
	}
}

func TestAnnounceState(t *testing.T) {
	for state, want := range map[v1alpha1.State]string{
		v1alpha1.StateInvalid: "Warning LinkInvalid", v1alpha1.StateStale: "Warning LinkStale",
		v1alpha1.StateError: "Warning LinkError", v1alpha1.StateDown: "Warning LinkDown",
		v1alpha1.StateUp: "Normal LinkUp", v1alpha1.StateIdle: "Normal LinkIdle",
		v1alpha1.StateDeleting: "Normal LinkDeleting",
	} {
		recorder := events.NewFakeRecorder(2)
		w := newTestWriter(nil, nil)
		w.Recorder = recorder
		obj := newKubeLink("one", "b.example")
		w.announceState(&obj, Link{State: state})
		w.announceState(&obj, Link{State: state, Message: "100 % lost"}) // it is no format
		if got := <-recorder.Events; got != want+" link is "+string(state) {
			t.Errorf("without message: %s", got)
		}
		if got := <-recorder.Events; got != want+" 100 % lost" {
			t.Errorf("with message: %s", got)
		}
	}
}

func TestFinalizerWithFakeAPIServer(t *testing.T) {
	local := newKubeLink("self", v1alpha1.EndpointLocal)
	const ours, foreign = v1alpha1.Finalizer, foreignFinalizer
	for _, c := range []struct {
		name   string
		object *v1alpha1.KubeLink
		wanted bool
		writes string
		left   []string // finalizers; nil: none
		gone   bool
	}{
		{"added", withFinalizers(local, foreign), true, "patch self, status self", []string{foreign, ours}, false},
		{"there already", withFinalizers(local, ours), true, "status self", []string{ours}, false},
		{"removed", withFinalizers(local, ours, foreign), false, "patch self, status self", []string{foreign}, false},
		{"never there", withFinalizers(local, foreign), false, "status self", []string{foreign}, false},
		{"kept while members are there", withFinalizers(deleted(local), ours), true, "status self", []string{ours}, false},
		{"too late to be added", withFinalizers(deleted(local), foreign), true, "status self", []string{foreign}, false},
		{"the last one of a deleted object", withFinalizers(deleted(local), ours), false, "patch self", nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			api := newFakeAPI(t, c.object)
			cached := api.getLink(t, "self")
			before := cached.DeepCopy()
			adopted := false
			err := newTestWriter(api, nil).writeLink(t.Context(), Link{
				Object: cached, State: v1alpha1.StateUp, Finalizer: c.wanted,
				Adopt: func(context.Context) (string, error) { adopted = true; return "", nil },
			})
			if got := strings.Join(api.writes, ", "); err != nil || got != c.writes {
				t.Errorf("written %s, %v; want %s", got, err, c.writes)
			}
			if adopted == c.gone {
				t.Errorf("adopted: %v", adopted)
			}
			after := api.getLink(t, "self")
			if (after == nil) != c.gone {
				t.Fatalf("left: %v", after)
			}
			if after != nil && !slices.Equal(after.Finalizers, c.left) {
				t.Errorf("finalizers %v, want %v", after.Finalizers, c.left)
			}
			if fmt.Sprint(before) != fmt.Sprint(cached) {
				t.Error("the object of the cache is changed")
			}
		})
	}
}

// The API server refuses a change to an older version of the object, and what it refuses changes nothing else.
func TestWriteOutdatedWithFakeAPIServer(t *testing.T) {
	for _, c := range []struct {
		name      string
		finalizer bool
		writes    string
	}{
		{"finalizer", true, "patch self"},
		{"status", false, "status self"},
	} {
		t.Run(c.name, func(t *testing.T) {
			local := newKubeLink("self", v1alpha1.EndpointLocal)
			api := newFakeAPI(t, &local)
			cached := api.getLink(t, "self")
			newer := cached.DeepCopy()
			newer.Labels = map[string]string{"by": "a user"}
			if err := api.Update(t.Context(), newer); err != nil {
				t.Fatal(err)
			}
			api.takeWrites()
			recorder := events.NewFakeRecorder(1)
			w := newTestWriter(api, nil)
			w.Recorder = recorder
			l := Link{Object: cached, State: v1alpha1.StateUp, Finalizer: c.finalizer}
			err := w.writeLink(t.Context(), l)
			if got := strings.Join(api.takeWrites(), ", "); !apierrors.IsConflict(err) || got != c.writes {
				t.Errorf("written %s, %v", got, err)
			}
			after := api.getLink(t, "self")
			if len(after.Finalizers) > 0 || after.Status.State != "" || len(recorder.Events) > 0 {
				t.Errorf("%+v, %d events", after, len(recorder.Events))
			}
			// The watch brings a new outcome: that is no error of the whole.
			if err := w.writeOutcome(t.Context(), &Outcome{Links: []Link{l}}); err != nil {
				t.Error(err)
			}
		})
	}
}

// What is there already is not written again, and only a new state makes an event.
func TestStatusDifferencesWithFakeAPIServer(t *testing.T) {
	local := newKubeLink("one", "b.example")
	api := newFakeAPI(t, &local)
	recorder := events.NewFakeRecorder(1)
	w := newTestWriter(api, nil)
	w.Recorder = recorder
	for _, c := range []struct {
		state   v1alpha1.State
		message string
		writes  int
		event   string
	}{
		{v1alpha1.StateIdle, "", 1, "Normal LinkIdle link is Idle"},
		{v1alpha1.StateIdle, "", 0, ""},
		{v1alpha1.StateUp, "", 1, "Normal LinkUp link is Up"},
		{v1alpha1.StateUp, "names are old", 1, ""},
		{v1alpha1.StateUp, "names are old", 0, ""},
		{v1alpha1.StateDown, "silent", 1, "Warning LinkDown silent"},
	} {
		l := Link{Object: api.getLink(t, "one"), State: c.state, Message: c.message}
		if err := w.writeLink(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		event := ""
		if len(recorder.Events) > 0 {
			event = <-recorder.Events
		}
		if writes := api.takeWrites(); len(writes) != c.writes || event != c.event {
			t.Errorf("%s %q: written %v, event %q", c.state, c.message, writes, event)
		}
		if st := api.getLink(t, "one").Status; st.State != c.state || st.Message != c.message {
			t.Errorf("status %+v, want %s %q", st, c.state, c.message)
		}
	}
}

// What a user has to do about announced facts shows in the message; a failure to write them does not keep the status
// from being written.
func TestAdoptWithFakeAPIServer(t *testing.T) {
	failure, lost := errors.New("adopt failed"), errors.New("status failed")
	for _, c := range []struct {
		name    string
		note    string
		err     error
		status  error // of the API server
		message string
		want    []error
	}{
		{"all is well", "", nil, nil, "message", nil},
		{"a note", "allow it", nil, nil, "message; allow it", nil},
		{"a failure", "", failure, nil, "message", []error{failure}},
		{"two failures", "", failure, lost, "", []error{failure, lost}},
		{"a failure of the status", "allow it", nil, lost, "", []error{lost}},
	} {
		t.Run(c.name, func(t *testing.T) {
			peer := newKubeLink("one", "b.example")
			api := newFakeAPI(t, &peer)
			api.fail["status one"] = c.status
			recorder := events.NewFakeRecorder(1)
			w := newTestWriter(api, nil)
			w.Recorder = recorder
			l := Link{Object: api.getLink(t, "one"), State: v1alpha1.StateUp, Message: "message"}
			l.Adopt = func(context.Context) (string, error) { return c.note, c.err }
			err := w.writeLink(t.Context(), l)
			for _, want := range c.want {
				if !errors.Is(err, want) {
					t.Errorf("%v is missing in %v", want, err)
				}
			}
			if c.want == nil && err != nil {
				t.Error(err)
			}
			if st := api.getLink(t, "one").Status; st.Message != c.message {
				t.Errorf("message %q, want %q", st.Message, c.message)
			}
			if written := c.status == nil; len(recorder.Events) == 1 != written {
				t.Errorf("%d events", len(recorder.Events))
			}
			// Another attempt with the same status returns the error, too.
			api.fail = nil
			l.Object = api.getLink(t, "one")
			if err := w.writeLink(t.Context(), l); !errors.Is(err, c.err) {
				t.Errorf("again: %v", err)
			}
		})
	}
}

// The note of the cluster's DNS shows at LocalLinks only.
func TestDNSNoteWithFakeAPIServer(t *testing.T) {
	local, peer := newKubeLink("self", v1alpha1.EndpointLocal), newKubeLink("peer", "b.example")
	api := newFakeAPI(t, &local, &peer)
	w := newTestWriter(api, nil)
	note := "imports nothing"
	for range 2 {
		err := w.writeOutcome(t.Context(), &Outcome{
			ClusterDNS: func(context.Context) (string, error) { return note, nil },
			Links: []Link{
				{Object: api.getLink(t, "self"), State: v1alpha1.StateUp, Message: "note"},
				{Object: api.getLink(t, "peer"), State: v1alpha1.StateUp},
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		want := "note"
		if note != "" {
			want = "note; coredns-configure: " + note
		}
		own, other := api.getLink(t, "self").Status.Message, api.getLink(t, "peer").Status.Message
		if own != want || other != "" {
			t.Errorf("%q at the LocalLink, %q at the peer", own, other)
		}
		note = ""
	}
}
