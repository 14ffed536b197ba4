package globalnames

// What users see of CoreDNSEntries and HostedZones: their status.

import (
	"context"
	"slices"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/records"
)

// Report is a status that is to be written.
type Report struct {
	object client.Object // as read from the cache; nothing changes it
	report records.Report
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
	return c.Status().Patch(ctx, obj, client.MergeFrom(r.object))
}

// differingReports lists the reports on objects that have another status.
func differingReports(
	entries []coredns.CoreDNSEntry, zones []coredns.HostedZone, now, before *records.Result,
) (reports []*Report) {
	add := func(o client.Object, now, before map[types.NamespacedName]records.Report) {
		key := client.ObjectKeyFromObject(o)
		report, ok := now[key]
		if !ok {
			return // about to go
		}
		st := statusOf(o)
		if report.Foreign && st.State != "" && st.State != coredns.StateStale {
			// Another broker or another system serves it, unless this broker did so far.
			if old, ours := before[key]; !ours || old.Foreign {
				return
			}
		}
		if !hasStatus(o, st, &report) {
			reports = append(reports, &Report{o, report})
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

// hasStatus says whether the status of an object is that of the report.
func hasStatus(o client.Object, st *coredns.Status, r *records.Report) bool {
	want := newCondition(*r)
	c := meta.FindStatusCondition(st.Conditions, want.Type)
	return c != nil && c.Status == want.Status && st.State == r.State && st.Message == r.Message &&
		st.RootZone == r.RootZone && st.ObservedGeneration == o.GetGeneration() &&
		slices.Equal(st.EffectiveDomainNames, r.Names)
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
