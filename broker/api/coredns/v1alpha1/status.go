package v1alpha1

// This file has the status that all kinds of the group share.

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// State is the one-word summary of an object.
type State string

// The states of CoreDNSEntries and HostedZones.
const (
	// StateInvalid: the fields of the object cannot work.
	StateInvalid State = "Invalid"
	// StateStale: the object is fine, but its zone is not, or another object has its name.
	StateStale State = "Stale"
	// StateOk: the broker serves all names of the object.
	StateOk State = "Ok"
)

// ConditionAccepted is true when the broker serves all names of the object.
const ConditionAccepted = "Accepted"

// Status is what the broker found out about a CoreDNSEntry or HostedZone.
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
	// EffectiveDomainNames are the fully qualified names that the broker serves.
	// +optional
	// +listType=atomic
	EffectiveDomainNames []string `json:"effectiveDomainNames,omitempty"`
	// ObservedGeneration is the generation of the spec that this status is about.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}
