package v1alpha1

// This file has the kind HostedZone: the zones of global names.

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// HostedZone is a DNS zone, or several zones with the same content: the global zone itself, or a part of it with a
// start of authority (SOA) of its own. CoreDNSEntries refer to it.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:metadata:annotations="kubelink.mandelsoft.org/crd-version=3"
// +kubebuilder:resource:scope=Namespaced,path=hostedzones,singular=hostedzone,shortName=chz
// +kubebuilder:printcolumn:name="Domains",type=string,JSONPath=`.spec.domainNames`
// +kubebuilder:printcolumn:name="Parent",type=string,JSONPath=`.spec.parentRef`
// +kubebuilder:printcolumn:name="EMail",type=string,priority=1,JSONPath=`.spec.email`
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="!has(self.spec.parentRef) || self.spec.parentRef != self.metadata.name",message="spec.parentRef names this zone itself; name the zone above it, or remove the field and write fully qualified domainNames"
type HostedZone struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec HostedZoneSpec `json:"spec"`
	// +optional
	Status Status `json:"status,omitempty"`
}

// HostedZoneSpec is what the user wants.
type HostedZoneSpec struct {
	// ParentRef is the HostedZone in the same namespace that this one is a part of.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	ParentRef string `json:"parentRef,omitempty"`

	// DomainNames are the names of the zone. They are relative to each name of the parent. Without parent, or with a
	// final dot, they are fully qualified.
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	DomainNames []DomainName `json:"domainNames"`

	// EMail is the address of the person responsible, for the SOA record. Default: hostmaster of the mesh domain.
	// +optional
	// +kubebuilder:validation:MaxLength=254
	// +kubebuilder:validation:XValidation:rule="size(self) == 0 || self.matches('^[A-Za-z0-9_+-]+([.][A-Za-z0-9_+-]+)*@[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?([.][A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$')",message="spec.email must be a mail address, such as hostmaster@example.com"
	EMail string `json:"email,omitempty"`

	// Refresh is the number of seconds after which a secondary name server looks for changes. Default: 7200.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Refresh int32 `json:"refresh,omitempty"`
	// Retry is the number of seconds after which it tries again when that failed. Default: 1800.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Retry int32 `json:"retry,omitempty"`
	// Expire is the number of seconds without success after which it gives up. Default: 86400.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Expire int32 `json:"expire,omitempty"`
	// MinimumTTL is the number of seconds for which resolvers may cache that a name does not exist. The broker limits it
	// to 5, as names follow objects and links. Default: 5.
	// +optional
	// +kubebuilder:validation:Minimum=0
	MinimumTTL *int32 `json:"minimumTTL,omitempty"`
}

// DomainName is a name of a zone.
// +kubebuilder:validation:MaxLength=254
// +kubebuilder:validation:XValidation:rule="self.matches('^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?([.][A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*[.]?$')",message="entries of spec.domainNames must be DNS domain names, such as svc.global.kubelink"
type DomainName string

// HostedZoneList is a list of HostedZones.
// +kubebuilder:object:root=true
type HostedZoneList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []HostedZone `json:"items"`
}
