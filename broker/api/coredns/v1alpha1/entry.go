package v1alpha1

// This file has the kind CoreDNSEntry: records of global names.

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Annotations of a CoreDNSEntry.
const (
	// AnnotationFollowLinks set to "false" keeps the addresses of the entry in answers, even if the links to them are
	// not Up.
	AnnotationFollowLinks = "coredns.mandelsoft.org/follow-links"
	// AnnotationOrder set to "fixed" keeps the addresses of the entry's names in the order of the entry. Otherwise, the
	// nearest address comes first.
	AnnotationOrder = "coredns.mandelsoft.org/order"

	// OrderFixed is the value of AnnotationOrder.
	OrderFixed = "fixed"
)

// ZoneName is the entry of dnsNames that stands for the name of the zone itself.
const ZoneName = "@"

// CoreDNSEntry is a set of DNS records at one or more names of a global zone.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:metadata:annotations="kubelink.mandelsoft.org/crd-version=3"
// +kubebuilder:resource:scope=Namespaced,path=corednsentries,singular=corednsentry,shortName=cdnse
// +kubebuilder:printcolumn:name="Names",type=string,JSONPath=`.spec.dnsNames`
// +kubebuilder:printcolumn:name="Zone",type=string,JSONPath=`.spec.zoneRef`
// +kubebuilder:printcolumn:name="A",type=string,JSONPath=`.spec.A`
// +kubebuilder:printcolumn:name="CNAME",type=string,JSONPath=`.spec.CNAME`
// +kubebuilder:printcolumn:name="SRV",type=string,priority=1,JSONPath=`.spec.SRV.service`
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type CoreDNSEntry struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec CoreDNSEntrySpec `json:"spec"`
	// +optional
	Status Status `json:"status,omitempty"`
}

// CoreDNSEntrySpec is what the user wants.
//
// +kubebuilder:validation:XValidation:rule="(has(self.A) && size(self.A) > 0) || (has(self.AAAA) && size(self.AAAA) > 0) || (has(self.TXT) && size(self.TXT) > 0) || (has(self.NS) && size(self.NS) > 0) || has(self.SRV) || (has(self.CNAME) && size(self.CNAME) > 0)",message="the entry has no record: set A, AAAA, CNAME, TXT, SRV or NS"
// +kubebuilder:validation:XValidation:rule="!(has(self.CNAME) && size(self.CNAME) > 0) || !((has(self.A) && size(self.A) > 0) || (has(self.AAAA) && size(self.AAAA) > 0) || (has(self.TXT) && size(self.TXT) > 0) || (has(self.NS) && size(self.NS) > 0))",message="spec.CNAME cannot stand beside A, AAAA, TXT or NS: an alias has no other records; remove one or the other"
// +kubebuilder:validation:XValidation:rule="!(has(self.NS) && size(self.NS) > 0) || !self.dnsNames.exists(n, n.startsWith('*'))",message="spec.NS cannot stand at a wildcard: delegate the names one by one"
// +kubebuilder:validation:XValidation:rule="!has(self.SRV) || !self.dnsNames.exists(n, n.startsWith('*'))",message="spec.SRV cannot stand at a wildcard, as the labels of service and protocol come before it: name the names one by one"
// +kubebuilder:validation:XValidation:rule="(has(self.zoneRef) && size(self.zoneRef) > 0) || !self.dnsNames.exists(n, n == '@' || n == '*')",message="spec.dnsNames @ and * are relative to a zone: set spec.zoneRef, or write the fully qualified name"
type CoreDNSEntrySpec struct {
	// ZoneRef is a HostedZone in the same namespace: dnsNames are relative to each of its names. Without zoneRef they are
	// fully qualified.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	ZoneRef string `json:"zoneRef,omitempty"`

	// DNSNames are the names that have the records. The first label may be *: all names below that have no records of
	// their own. With zoneRef, @ is the name of the zone, and a name with a final dot is fully qualified.
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	DNSNames []DNSName `json:"dnsNames"`

	// A are IPv4 addresses.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=128
	A []IPv4Address `json:"A,omitempty"`

	// AAAA are IPv6 addresses.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=128
	AAAA []IPv6Address `json:"AAAA,omitempty"`

	// TXT are texts, a record each. The broker splits texts of more than 255 bytes into strings.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	TXT []Text `json:"TXT,omitempty"`

	// CNAME is the name that dnsNames are aliases of.
	// +optional
	// +kubebuilder:validation:MaxLength=254
	// +kubebuilder:validation:XValidation:rule="size(self) == 0 || (self.matches('^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?([.][A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*[.]?$') && !isIP(self))",message="spec.CNAME must be a DNS name, such as web.default.svc.kubelink2.kubelink. (with zoneRef a name without final dot is relative to the zone); an address belongs into A or AAAA"
	CNAME string `json:"CNAME,omitempty"`

	// NS are the name servers that dnsNames are delegated to. At the name of a zone, they are further name servers of it.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	NS []NameServer `json:"NS,omitempty"`

	// SRV are the records of a service, at the names _<service>._<protocol>.<name>.
	// +optional
	SRV *Service `json:"SRV,omitempty"`
}

// DNSName is a name of an entry.
// +kubebuilder:validation:MaxLength=254
// +kubebuilder:validation:XValidation:rule="self == '@' || self.matches('^([*]|([*][.])?[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?([.][A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*[.]?)$')",message="entries of spec.dnsNames must be DNS names, such as web.svc.global.kubelink, whose first label may be *, or @ for the name of the zone"
type DNSName string

// IPv4Address is the data of an A record.
// +kubebuilder:validation:MaxLength=15
// +kubebuilder:validation:XValidation:rule="isIP(self) && ip(self).family() == 4",message="entries of spec.A must be IPv4 addresses, such as 100.64.16.20"
type IPv4Address string

// IPv6Address is the data of an AAAA record.
// +kubebuilder:validation:MaxLength=45
// +kubebuilder:validation:XValidation:rule="isIP(self) && ip(self).family() == 6",message="entries of spec.AAAA must be IPv6 addresses, such as fd00:64:16::20; an IPv4 address belongs into A"
type IPv6Address string

// Text is the data of a TXT record.
// +kubebuilder:validation:MaxLength=4096
type Text string

// NameServer is the data of an NS record.
// +kubebuilder:validation:MaxLength=254
// +kubebuilder:validation:XValidation:rule="self.matches('^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?([.][A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*[.]?$') && !isIP(self)",message="entries of spec.NS must be DNS names of name servers, such as ns1.example.com. (with zoneRef a name without final dot is relative to the zone)"
type NameServer string

// Service is a set of SRV records (RFC 2782).
type Service struct {
	// Service is the symbolic name of the service, such as ldap.
	// +kubebuilder:validation:MaxLength=62
	// +kubebuilder:validation:XValidation:rule="self.matches('^_?[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?$')",message="spec.SRV.service must be the name of a service, such as ldap"
	Service string `json:"service"`
	// Records are the servers, a record each.
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	Records []SRVRecord `json:"records"`
}

// SRVRecord is one place where clients find a service.
type SRVRecord struct {
	// Protocol is TCP or UDP, or another one that has a name.
	// +kubebuilder:validation:MaxLength=62
	// +kubebuilder:validation:XValidation:rule="self.matches('^_?[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?$')",message="spec.SRV.records.protocol must be the name of a protocol, such as TCP"
	Protocol string `json:"protocol"`
	// Priority is lowest for the hosts that clients try first.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	Priority int32 `json:"priority,omitempty"`
	// Weight is the share among hosts of the same priority.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	Weight int32 `json:"weight,omitempty"`
	// Port is the number of the port at the host, from 1 to 65535.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port"`
	// Host is a name that has addresses. With zoneRef a name without final dot is relative to the zone.
	// +kubebuilder:validation:MaxLength=254
	// +kubebuilder:validation:XValidation:rule="self.matches('^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?([.][A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*[.]?$') && !isIP(self)",message="spec.SRV.records.host must be a DNS name that has addresses, such as ldap1.svc.global.kubelink"
	Host string `json:"host"`
}

// CoreDNSEntryList is a list of CoreDNSEntries.
// +kubebuilder:object:root=true
type CoreDNSEntryList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []CoreDNSEntry `json:"items"`
}
