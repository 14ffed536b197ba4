package globalnames

// What users see of CoreDNSEntries and HostedZones: their status.

import (
	"context"
	"reflect"
	"slices"
	"sync/atomic"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/records"
)

// Report is a status that is to be written.
type Report struct {
	object  client.Object // as read from the cache; nothing changes it
	report  records.Report
	watch   *Watch
	written atomic.Bool // the API server has taken it
}

// Object is the object that the report is about.
func (r *Report) Object() client.Object { return r.object }

// Write writes the status to the API server.
func (r *Report) Write(ctx context.Context, c client.Client) error {
	obj := r.object.DeepCopyObject().(client.Object)
	st := statusOf(obj)
	st.State, st.Message, st.RootZone = r.report.State, r.report.Message, r.report.RootZone
	st.EffectiveDomainNames, st.ObservedGeneration = r.report.Names, obj.GetGeneration()
	condition := newCondition(r.report)
	condition.ObservedGeneration = obj.GetGeneration()
	meta.SetStatusCondition(&st.Conditions, condition)
	// The cache may lack what was written last: the difference to that would be another one.
	patch := client.MergeFromWithOptions(r.object, client.MergeFromWithOptimisticLock{})
	err := c.Status().Patch(ctx, obj, patch)
	r.written.Store(err == nil)
	r.watch.noteWrite(r.object, r.report, err)
	return err
}

// differingReports lists the reports on objects that have another status. left are those told last on objects that
// others may serve. latest are objects by UID: where their specs are the same, their statuses count.
func (w *Watch) differingReports(
	entries []coredns.CoreDNSEntry, zones []coredns.HostedZone, now, before *records.Result, left []*Report,
	latest map[types.UID]client.Object,
) (reports []*Report) {
	unwritten := map[types.UID]*Report{}
	for _, r := range left {
		if !r.written.Load() {
			unwritten[r.object.GetUID()] = r
		}
	}
	add := func(o client.Object, now, before map[types.NamespacedName]records.Report) {
		key := client.ObjectKeyFromObject(o)
		report, ok := now[key]
		if !ok {
			return // about to go
		}
		if l := latest[o.GetUID()]; l != nil && l.GetGeneration() == o.GetGeneration() {
			o = l
		}
		st := statusOf(o)
		if report.Foreign && st.State != "" && st.State != coredns.StateStale && !w.hasWritten(o) {
			// Another broker or another system serves it, unless this broker did so far, and nobody has spoken since.
			old, ours := before[key]
			told := unwritten[o.GetUID()]
			if (!ours || old.Foreign) && (told == nil || !reflect.DeepEqual(statusOf(told.object), st)) {
				return
			}
		}
		if !hasStatus(o, st, &report) {
			reports = append(reports, &Report{object: o, report: report, watch: w})
		}
	}
	for i := range zones {
		add(&zones[i], now.HostedZones, before.HostedZones)
	}
	for i := range entries {
		add(&entries[i], now.Entries, before.Entries)
	}
	return reports
}

// readLatest returns the objects that the cache has by now, by UID. The watch compares each status that comes later
// with the reports that it was given. So one that came between the reading of the objects and these reports is not
// missed.
func readLatest(ctx context.Context, from client.Reader) (map[types.UID]client.Object, error) {
	var entries coredns.CoreDNSEntryList
	var zones coredns.HostedZoneList
	if err := listAll(ctx, from, &entries, &zones); err != nil {
		return nil, err
	}
	latest := make(map[types.UID]client.Object, len(entries.Items)+len(zones.Items))
	for i := range entries.Items {
		latest[entries.Items[i].UID] = &entries.Items[i]
	}
	for i := range zones.Items {
		latest[zones.Items[i].UID] = &zones.Items[i]
	}
	return latest, nil
}

// listAll reads the objects of lists; nothing here writes to them.
func listAll(ctx context.Context, from client.Reader, lists ...client.ObjectList) error {
	for _, list := range lists {
		if err := from.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return err
		}
	}
	return nil
}

// hasStatus says whether the status of an object is that of the report.
func hasStatus(o client.Object, st *coredns.Status, r *records.Report) bool {
	return st.ObservedGeneration == o.GetGeneration() && statesReport(st, r)
}

// statesReport says whether a status has the report, of whatever generation.
func statesReport(st *coredns.Status, r *records.Report) bool {
	want := newCondition(*r)
	c := meta.FindStatusCondition(st.Conditions, want.Type)
	return c != nil && c.Status == want.Status && st.State == r.State && st.Message == r.Message &&
		st.RootZone == r.RootZone && slices.Equal(st.EffectiveDomainNames, r.Names)
}

// statusOf is the status of a CoreDNSEntry or HostedZone.
func statusOf(o client.Object) *coredns.Status {
	if z, ok := o.(*coredns.HostedZone); ok {
		return &z.Status
	}
	return &o.(*coredns.CoreDNSEntry).Status
}

func newCondition(r records.Report) metav1.Condition {
	c := metav1.Condition{
		Type: coredns.ConditionAccepted, Status: metav1.ConditionFalse, Reason: string(r.State), Message: r.Message,
	}
	if r.State == coredns.StateOk {
		c.Status = metav1.ConditionTrue
	}
	return c
}
