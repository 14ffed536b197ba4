package lease

// What a Lease says, and what this broker makes of it. All of it is pure.

import (
	"crypto/sha256"
	"fmt"
	"math"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// Name is the name of the Lease of the brokers that serve these links, nil: all. Brokers that carry no traffic have a
// Lease of their own, so that they never keep links from one that does.
func Name(carriesTraffic bool, served []string) string {
	name := "kubelink"
	if !carriesTraffic {
		name = "kubelink-names"
	}
	if served == nil {
		return name
	}
	sum := sha256.Sum256([]byte(strings.Join(served, ",")))
	return fmt.Sprintf("%s-%x", name, sum[:4])
}

// instanceAnnotation tells the processes of one node apart: its value is a random number of the process that holds the
// Lease.
const instanceAnnotation = "kubelink.mandelsoft.org/instance"

// MaxDuration bounds the duration of a Lease. A Lease that says more counts as one of the own duration.
const MaxDuration = time.Hour

// owner is what a Lease says of its holder.
type owner int

const (
	vacant  owner = iota // there is no holder
	self                 // this process
	earlier              // another process with the same identity
	foreign              // another identity
)

// ownerOf tells which process holds the Lease, which may be nil.
func ownerOf(l *coordinationv1.Lease, identity, instance string) owner {
	if l == nil || ptr.Deref(l.Spec.HolderIdentity, "") == "" {
		return vacant
	}
	holder, process := *l.Spec.HolderIdentity, l.Annotations[instanceAnnotation]
	switch {
	case holder != identity:
		return foreign
	case process == instance, process == "": // or nothing says that it is another process
		return self
	}
	return earlier
}

// termOf is the term that a Lease says.
func termOf(l *coordinationv1.Lease) uint32 {
	if l == nil {
		return 0
	}
	return uint32(max(0, ptr.Deref(l.Spec.LeaseTransitions, 0)))
}

// nextTerm follows a term, which a Lease has room for. After the largest one, terms begin anew.
func nextTerm(term uint32) uint32 {
	if term >= math.MaxInt32 {
		return 1
	}
	return term + 1
}

// durationOf is for how long a standby has to see the Lease unchanged before it takes it.
func durationOf(l *coordinationv1.Lease, own time.Duration) time.Duration {
	if l == nil || l.Spec.LeaseDurationSeconds == nil {
		return own
	}
	d := time.Duration(*l.Spec.LeaseDurationSeconds) * time.Second
	if d <= 0 || d > MaxDuration {
		return own
	}
	return d
}

// holderName is the identity of the holder on one line; other programs can write what they like.
func holderName(l *coordinationv1.Lease) string {
	const maxName = 253
	if l == nil {
		return ""
	}
	name := strings.Join(strings.Fields(ptr.Deref(l.Spec.HolderIdentity, "")), " ")
	if len(name) > maxName {
		name = strings.ToValidUTF8(name[:maxName], "")
	}
	return name
}

// claimLease returns the Lease, which may be nil, as a process that holds it with this term writes it. It keeps what
// other programs have written besides.
func claimLease(l *coordinationv1.Lease, c *Config, instance string, term uint32, now time.Time) *coordinationv1.Lease {
	if l = l.DeepCopy(); l == nil {
		l = &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: c.Namespace, Name: c.Name}}
	}
	at := metav1.NewMicroTime(now)
	if ownerOf(l, c.Identity, instance) != self || l.Spec.AcquireTime == nil {
		l.Spec.AcquireTime = &at
	}
	l.Spec.HolderIdentity = &c.Identity
	l.Spec.LeaseDurationSeconds = ptr.To(int32((c.Duration + time.Second - 1) / time.Second))
	l.Spec.LeaseTransitions = ptr.To(int32(term))
	l.Spec.RenewTime = &at
	metav1.SetMetaDataAnnotation(&l.ObjectMeta, instanceAnnotation, instance)
	return l
}

// releaseLease returns the Lease without holder. The term stays, so that the next one is higher.
func releaseLease(l *coordinationv1.Lease) *coordinationv1.Lease {
	l = l.DeepCopy()
	l.Spec.HolderIdentity = nil
	delete(l.Annotations, instanceAnnotation)
	return l
}
