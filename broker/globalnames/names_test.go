package globalnames

import (
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/records"
	"github.com/mandelsoft/kubelink/broker/zone"
)

// Only a status that differs is written, and none of an object that is somebody else's.
func TestDiffering(t *testing.T) {
	key := types.NamespacedName{Namespace: "ns", Name: "x"}
	ok := records.Report{State: "Ok", Names: []string{"x.svc.global.kubelink"}}
	foreign := records.Report{State: "Stale", Message: "elsewhere", Foreign: true}
	written := func(r records.Report, generation int64) coredns.Status {
		c := newCondition(r)
		return coredns.Status{
			State:                r.State,
			Message:              r.Message,
			RootZone:             r.RootZone,
			EffectiveDomainNames: r.Names,
			ObservedGeneration:   generation,
			Conditions:           []metav1.Condition{c},
		}
	}
	for _, c := range []struct {
		name        string
		status      coredns.Status
		now, before records.Report
		write       bool
	}{
		{"new", coredns.Status{}, ok, records.Report{}, true},
		{"the same", written(ok, 2), ok, ok, false},
		{"older generation", written(ok, 1), ok, ok, true},
		{"of the former system", coredns.Status{State: "Ok", ObservedGeneration: 2, EffectiveDomainNames: ok.Names},
			ok, records.Report{}, true},
		{"another message", written(records.Report{State: "Ok", Message: "note", Names: ok.Names}, 2), ok, ok, true},
		{"other names", written(records.Report{State: "Ok"}, 2), ok, ok, true},
		{"another zone", written(records.Report{State: "Ok", Names: ok.Names, RootZone: "z"}, 2), ok, ok, true},
		{"foreign, new", coredns.Status{}, foreign, records.Report{}, true},
		{"foreign, the same", written(foreign, 2), foreign, foreign, false},
		{"foreign, somebody else says Ok", coredns.Status{State: "Ok"}, foreign, records.Report{}, false},
		{"foreign, somebody else said Ok over ours", coredns.Status{State: "Ok"}, foreign, foreign, false},
		{"foreign, ours so far", written(ok, 2), foreign, ok, true},
	} {
		entry := coredns.CoreDNSEntry{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "x", Generation: 2},
			Status:     c.status,
		}
		before := map[types.NamespacedName]records.Report{}
		if c.before.State != "" {
			before[key] = c.before
		}
		now := map[types.NamespacedName]records.Report{key: c.now}
		got := (&Watch{}).differingReports(
			[]coredns.CoreDNSEntry{entry},
			nil,
			&records.Result{Entries: now},
			&records.Result{Entries: before},
			nil, nil,
		)
		if (len(got) == 1) != c.write {
			t.Errorf("%s: %+v", c.name, got)
		}
		hosted := coredns.HostedZone{ObjectMeta: entry.ObjectMeta, Status: c.status}
		got = (&Watch{}).differingReports(
			nil,
			[]coredns.HostedZone{hosted},
			&records.Result{HostedZones: now},
			&records.Result{HostedZones: before},
			nil, nil,
		)
		if (len(got) == 1) != c.write {
			t.Errorf("%s: zone: %+v", c.name, got)
		}
	}
	entry := coredns.CoreDNSEntry{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "gone"}}
	got := (&Watch{}).differingReports([]coredns.CoreDNSEntry{entry}, nil, &records.Result{}, &records.Result{}, nil, nil)
	if len(got) != 0 {
		t.Errorf("without report: %+v", got)
	}
}

// The status that counts is the latest one of the same spec: one that the broker has written itself may come late,
// after it has come to another conclusion. What it has said last of an object is told until it is written, unless
// another one has spoken since.
func TestDifferingFromLatest(t *testing.T) {
	key := types.NamespacedName{Namespace: "ns", Name: "x"}
	ok, invalid := records.Report{State: "Ok"}, records.Report{State: "Invalid", Message: "wrong"}
	foreign := records.Report{State: "Stale", Message: "elsewhere", Foreign: true}
	entry := func(r records.Report, generation int64) *coredns.CoreDNSEntry {
		return &coredns.CoreDNSEntry{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "x", UID: "x", Generation: generation},
			Status: coredns.Status{State: r.State, Message: r.Message, ObservedGeneration: generation,
				Conditions: []metav1.Condition{newCondition(r)}},
		}
	}
	read := []coredns.CoreDNSEntry{*entry(ok, 1)}
	for _, c := range []struct {
		name              string
		latest            *coredns.CoreDNSEntry
		now, before, sent records.Report
		unwritten         bool
		write             bool
	}{
		{"nothing new", entry(ok, 1), ok, ok, ok, false, false},
		{"it has come late", entry(invalid, 1), ok, invalid, invalid, false, true},
		{"what is wanted has come", entry(invalid, 1), invalid, ok, invalid, false, false},
		{"of another spec", entry(invalid, 2), ok, ok, ok, false, false},
		{"somebody else serves it", entry(ok, 1), foreign, foreign, invalid, false, false},
		{"ours has come after the last word", entry(ok, 1), foreign, foreign, ok, false, true},
		{"the last word is not written", entry(ok, 1), foreign, foreign, invalid, true, true},
		{"somebody else has spoken since", entry(invalid, 1), foreign, foreign, ok, true, false},
	} {
		left := &Report{object: entry(ok, 1), report: foreign}
		left.written.Store(!c.unwritten)
		w := &Watch{}
		w.written.Store(types.UID("x"), &c.sent)
		got := w.differingReports(read, nil,
			&records.Result{Entries: map[types.NamespacedName]records.Report{key: c.now}},
			&records.Result{Entries: map[types.NamespacedName]records.Report{key: c.before}},
			[]*Report{left}, map[types.UID]client.Object{"x": c.latest})
		if (len(got) == 1) != c.write || c.write && got[0].object != c.latest {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}

// lateLists is an API whose entry gets a status after it was read first.
type lateLists struct {
	client.Client
	first, then coredns.CoreDNSEntry
	reads       int
	late        func()
}

func (a *lateLists) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	l, ok := list.(*coredns.CoreDNSEntryList)
	if !ok {
		return nil
	}
	if l.Items = []coredns.CoreDNSEntry{a.first}; a.reads > 0 {
		a.late()
		l.Items[0] = a.then
	}
	a.reads++
	return nil
}

// A status may come between the reading of the objects and the reports on them. Either the watch knows these by then, or
// the status is read.
func TestStatusComesLate(t *testing.T) {
	meta := metav1.ObjectMeta{Namespace: "ns", Name: "x", UID: "x", Generation: 1}
	api := &lateLists{first: coredns.CoreDNSEntry{ObjectMeta: meta}, then: coredns.CoreDNSEntry{ObjectMeta: meta}}
	api.then.ResourceVersion = "2"
	w := NewWatch(func() {}, slog.New(slog.DiscardHandler))
	w.synced.Store(true)
	api.late = func() {
		if w.reportOn(&api.first) == nil {
			t.Error("the watch does not know the report yet")
		}
	}
	var told []*Report
	err := (&Names{}).Update(t.Context(), &Refresh{
		Reader: api, Watch: w, Zones: []mesh.Zone{{Domain: "kubelink.", Global: mesh.GlobalZone{Name: "svc.global.kubelink."}}},
		Holds: true, Wake: func() {}, Keep: func([]coredns.CoreDNSEntry, []coredns.HostedZone) {},
		Report: func(r []*Report) { told = r },
	})
	if err != nil || len(told) != 1 || told[0].object.GetResourceVersion() != "2" {
		t.Errorf("%v, told %+v", err, told)
	}
}

// A standby tells nothing. When it takes the links, it tells what differs, though no object has changed: it does not know
// what the holder has written last.
func TestTakeoverTells(t *testing.T) {
	e := coredns.CoreDNSEntry{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "x", UID: "x", Generation: 1}}
	w := NewWatch(func() {}, slog.New(slog.DiscardHandler))
	w.synced.Store(true)
	told := -1
	names := &Names{}
	refresh := &Refresh{
		Reader: &lists{entries: []coredns.CoreDNSEntry{e}}, Watch: w, Wake: func() {},
		Zones: []mesh.Zone{{Domain: "kubelink.", Global: mesh.GlobalZone{Name: "svc.global.kubelink."}}},
		Keep:  func([]coredns.CoreDNSEntry, []coredns.HostedZone) {}, Report: func(r []*Report) { told = len(r) },
	}
	for i, c := range []struct {
		holds bool
		told  int // -1: nothing is built
	}{{false, 0}, {false, -1}, {true, 1}, {true, -1}, {false, -1}, {true, 1}} {
		told, refresh.Holds = -1, c.holds
		names.built = time.Time{} // long ago
		if err := names.Update(t.Context(), refresh); err != nil || told != c.told {
			t.Errorf("step %d: %v, told %d, want %d", i, err, told, c.told)
		}
	}
}

// Serials follow the clock, and go on without it only when it was put back by more than a moment.
func TestNextSerial(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for _, c := range []struct{ highest, want uint32 }{
		{0, 1_800_000_000}, {1_799_999_999, 1_800_000_000}, {1_800_000_000, 1_800_000_000},
		{1_800_000_060, 1_800_000_000}, {1_800_000_061, 1_800_000_062},
	} {
		if serial := nextSerial(c.highest, now); serial != c.want {
			t.Errorf("%d: %d", c.highest, serial)
		}
	}
}

// lists is an API that only lists entries.
type lists struct {
	client.Client
	entries []coredns.CoreDNSEntry
}

func (a *lists) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	if l, ok := list.(*coredns.CoreDNSEntryList); ok {
		l.Items = a.entries
	}
	return nil
}

// Two changes within a second have one serial at first. The next one comes by itself: nothing else needs to happen.
func TestSerialIsDue(t *testing.T) {
	const name = "svc.global.kubelink."
	woken := make(chan struct{}, 1)
	wake := func() {
		select {
		case woken <- struct{}{}:
		default:
		}
	}
	api := &lists{}
	watch := NewWatch(wake, slog.New(slog.DiscardHandler))
	watch.synced.Store(true)
	names := &Names{}
	refresh := &Refresh{
		Reader: api, Watch: watch, Zones: []mesh.Zone{{Domain: "kubelink.", Global: mesh.GlobalZone{Name: name}}}, Wake: wake,
		Keep: func([]coredns.CoreDNSEntry, []coredns.HostedZone) {}, Report: func([]*Report) {},
	}
	build := func() (serial uint32) {
		if err := names.Update(t.Context(), refresh); err != nil {
			t.Fatal(err)
		}
		rrs, _ := names.zones[name].Transfer(name, 0)
		return rrs[0].(*dns.SOA).Serial
	}
	serial := build()
	for i := 0; !names.early; i++ { // until two are in one second
		api.entries = []coredns.CoreDNSEntry{{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "x"},
			Spec: coredns.CoreDNSEntrySpec{
				DNSNames: []coredns.DNSName{"x." + name},
				TXT:      []coredns.Text{coredns.Text(fmt.Sprint(i))},
			},
		}}
		watch.noteChange()
		<-woken
		names.took = 0 // no pause, the end of which would be another reason to build
		serial = build()
	}
	timeout := time.After(5 * time.Second)
	for next := serial; next == serial; next = build() {
		select {
		case <-woken:
		case <-timeout:
			t.Fatalf("the serial stays %d", serial)
		}
	}
	if names.early {
		t.Error("one more is due")
	}
}

// A status is no change of names, whoever has written it, unless the broker has come to another conclusion since it has
// written it. What the user does is one.
func TestGlobalWatchUpdates(t *testing.T) {
	w := &Watch{wake: func() {}}
	ok, old := records.Report{State: "Ok"}, records.Report{State: "Invalid"}
	w.reports.Store(&records.Result{Entries: map[types.NamespacedName]records.Report{{}: ok}})
	w.written.Store(types.UID("1"), &old)
	entry := func(change func(*coredns.CoreDNSEntry)) *coredns.CoreDNSEntry {
		e := &coredns.CoreDNSEntry{
			ObjectMeta: metav1.ObjectMeta{UID: "1", Generation: 1, Annotations: map[string]string{"a": "b"}},
		}
		change(e)
		return e
	}
	says := func(e *coredns.CoreDNSEntry, r records.Report) {
		e.Status = coredns.Status{State: r.State, ObservedGeneration: 1, Conditions: []metav1.Condition{newCondition(r)}}
	}
	for _, c := range []struct {
		name   string
		change func(*coredns.CoreDNSEntry)
		counts bool
	}{
		{"status", func(e *coredns.CoreDNSEntry) { says(e, ok) }, false},
		{"status of another", func(e *coredns.CoreDNSEntry) { says(e, records.Report{State: "Stale"}) }, false},
		{"status that was ours", func(e *coredns.CoreDNSEntry) { says(e, old) }, true},
		{"the same of what is not here", func(e *coredns.CoreDNSEntry) { e.Name = "x"; says(e, old) }, false},
		{"labels", func(e *coredns.CoreDNSEntry) { e.Labels = map[string]string{"a": "b"} }, false},
		{"spec", func(e *coredns.CoreDNSEntry) { e.Generation = 2 }, true},
		{"annotations", func(e *coredns.CoreDNSEntry) { e.Annotations = nil }, true},
		{"another object", func(e *coredns.CoreDNSEntry) { e.UID = "2" }, true},
	} {
		before := w.version.Load()
		w.OnUpdate(entry(func(*coredns.CoreDNSEntry) {}), entry(c.change))
		if (w.version.Load() != before) != c.counts {
			t.Errorf("%s", c.name)
		}
	}
}

// What was written while the broker came to another conclusion, or to an object that was another one by then, is a
// reason to look again: the watch may have brought the object before.
func TestNoteWrite(t *testing.T) {
	ok, old := records.Report{State: "Ok", Names: []string{"x."}}, records.Report{State: "Invalid"}
	conflict := apierrors.NewConflict(schema.GroupResource{}, "x", nil)
	for _, c := range []struct {
		name    string
		written records.Report
		err     error
		counts  bool
	}{
		{"written", ok, nil, false},
		{"written late", old, nil, true},
		{"another object", ok, conflict, true},
		{"refused", old, apierrors.NewBadRequest("no"), false},
	} {
		e, w := &coredns.CoreDNSEntry{}, &Watch{wake: func() {}}
		w.reports.Store(&records.Result{Entries: map[types.NamespacedName]records.Report{{}: ok}})
		if w.noteWrite(e, c.written, c.err); (w.version.Load() > 0) != c.counts {
			t.Errorf("%s", c.name)
		}
		_, noted := w.written.Load(e.UID)
		if w.OnDelete(e); noted != (c.err == nil) {
			t.Errorf("%s: noted: %v", c.name, noted)
		}
		if _, kept := w.written.Load(e.UID); kept {
			t.Errorf("%s: kept after its deletion", c.name)
		}
	}
}

// What is not known is said to be so, and what was known stays.
func TestGlobalsUnknown(t *testing.T) {
	const name = "svc.global.kubelink."
	g := &Names{}
	if err := g.setUnknown([]string{name}, nil); err == nil || len(g.zones) != 0 {
		t.Errorf("%v %v", err, g.zones)
	}
	forbidden := context.Canceled
	if err := g.setUnknown([]string{name}, forbidden); err != nil ||
		g.zones[name].Missing() != "the names of svc.global.kubelink are not known: context canceled" {
		t.Errorf("%v %v", err, g.zones)
	}
	before := g.zones[name]
	if err := g.setUnknown([]string{name}, forbidden); err != nil || g.zones[name] != before {
		t.Errorf("another one for the same reason: %v", err)
	}
	known := zone.NewGlobal("kubelink.", records.Build(nil, nil, []string{name}, records.Tenancy{}).Zones[0], 1, nil, nil)
	g.zones = map[string]*zone.Global{name: known}
	if err := g.setUnknown([]string{name, "svc.global.other."}, nil); err == nil || len(g.zones) != 1 ||
		g.zones[name] != known {
		t.Errorf("%v %v", err, g.zones)
	}
}

// patchedStatus is an API server that keeps the patch of a status.
type patchedStatus struct {
	client.Client
	status statusWriter
}

type statusWriter struct {
	client.SubResourceWriter
	patch string
}

func (a *patchedStatus) Status() client.SubResourceWriter { return &a.status }

func (w *statusWriter) Patch(
	_ context.Context, o client.Object, patch client.Patch, _ ...client.SubResourcePatchOption,
) error {
	data, err := patch.Data(o)
	w.patch = string(data)
	return err
}

// A report is written as status and condition of the generation that it is about; the object from the cache stays.
func TestReportWrite(t *testing.T) {
	meta := metav1.ObjectMeta{Namespace: "ns", Name: "x", Generation: 2, ResourceVersion: "7"}
	report := records.Report{
		State: coredns.StateInvalid, Message: "spec.A is wrong", RootZone: "root", Names: []string{"x.svc.global.kubelink"},
	}
	for _, o := range []client.Object{
		&coredns.CoreDNSEntry{ObjectMeta: meta}, &coredns.HostedZone{ObjectMeta: meta},
	} {
		before := o.DeepCopyObject()
		api := &patchedStatus{}
		r := &Report{object: o, report: report, watch: &Watch{wake: func() {}}}
		if err := r.Write(t.Context(), api); err != nil || !reflect.DeepEqual(o, before) || r.Object() != o {
			t.Errorf("%T: %v, %+v", o, err, o)
		}
		for _, want := range []string{
			`"resourceVersion":"7"`,
			`"state":"Invalid"`, `"message":"spec.A is wrong"`, `"rootZone":"root"`, `"observedGeneration":2`,
			`"effectiveDomainNames":["x.svc.global.kubelink"]`, `"type":"Accepted"`, `"status":"False"`, `"reason":"Invalid"`,
		} {
			if !strings.Contains(api.status.patch, want) {
				t.Errorf("%T: no %s in %s", o, want, api.status.patch)
			}
		}
	}
}
