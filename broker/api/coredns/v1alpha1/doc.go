// Package v1alpha1 holds the objects of the group coredns.mandelsoft.org, with the rules that the
// API server enforces on them: the names of the global domain of a mesh. The CRDs in deploy/crds are
// generated from it.
//
// +kubebuilder:object:generate=true
// +groupName=coredns.mandelsoft.org
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the group and version of the objects here.
var GroupVersion = schema.GroupVersion{Group: "coredns.mandelsoft.org", Version: "v1alpha1"}

// AddToScheme registers the objects here.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &CoreDNSEntry{}, &CoreDNSEntryList{}, &HostedZone{}, &HostedZoneList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}

// State is the one-word summary of an object.
type State string

// The states of CoreDNSEntries and HostedZones.
const (
	// StateInvalid: the object's own fields cannot work.
	StateInvalid State = "Invalid"
	// StateStale: the object is fine, but not what it depends on: its zone, or another object has the name.
	StateStale State = "Stale"
	// StateOk: all its names are served.
	StateOk State = "Ok"
)

// ConditionAccepted is true when all names of the object are served.
const ConditionAccepted = "Accepted"

// Status is what the broker sees in a CoreDNSEntry or HostedZone.
type Status struct {
	// State is one of Invalid, Stale, Ok.
	// +optional
	State State `json:"state,omitempty"`
	// Message says in one line what is wrong and what to do.
	// +optional
	Message string `json:"message,omitempty"`
	// RootZone is the HostedZone at the root: the last one along zoneRef and parentRef.
	// +optional
	RootZone string `json:"rootZone,omitempty"`
	// EffectiveDomainNames are the fully qualified names that are served.
	// +optional
	// +listType=atomic
	EffectiveDomainNames []string `json:"effectiveDomainNames,omitempty"`
	// ObservedGeneration is the generation of the spec that this status speaks of.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}
