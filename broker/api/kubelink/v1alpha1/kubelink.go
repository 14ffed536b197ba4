package v1alpha1

// This file has the kind KubeLink: the links of the local cluster, and its place in each mesh.

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Values of spec.endpoint that are no host.
const (
	// EndpointLocal marks the KubeLink that describes the local cluster's place in a mesh.
	EndpointLocal = "LocalLink"
	// EndpointInbound marks a peer without an endpoint: the peer always dials (wireguard mode).
	EndpointInbound = "Inbound"
)

// MeshSeparator stands between the mesh and the cluster in the name of a KubeLink.
const MeshSeparator = "--"

// Finalizer keeps a LocalLink until its mesh has no other links.
const Finalizer = "kubelink.mandelsoft.org/mesh"

// AnnotationAutoConnect with the value "true" marks a KubeLink that the broker made for a peer without link. It counts
// as younger than links without the annotation: it takes nothing from them, whenever they come.
const AnnotationAutoConnect = "kubelink.mandelsoft.org/auto-connect"

// CRDVersion is the annotation of the CRDs with their version, a number. Each change of a kind raises it, in the markers
// of all kinds: a broker never replaces CRDs of a newer one.
const CRDVersion = "kubelink.mandelsoft.org/crd-version"

// State is the one-word summary of an object.
type State string

// The states of a KubeLink.
const (
	// StateInvalid: the fields of the object cannot work.
	StateInvalid State = "Invalid"
	// StateStale: the object is fine, but its mesh or its gateway link is not.
	StateStale State = "Stale"
	// StateError: the local end of the link failed, or something on the gateway node keeps its packets from passing.
	StateError State = "Error"
	// StateIdle: there is no connection yet, or the kernel does not have the routes of the link yet.
	StateIdle State = "Idle"
	// StateUp: the link is connected, and packets pass.
	StateUp State = "Up"
	// StateDown: the connection was lost, or cannot be established.
	StateDown State = "Down"
	// StateDeleting: the finalizer keeps the LocalLink until its mesh has no other links.
	StateDeleting State = "Deleting"
	// StateOk: the MeshService is served.
	StateOk State = "Ok"
	// StateUnsupported: the broker has mode none, so it cannot serve a MeshService.
	StateUnsupported State = "Unsupported"
)

// Condition types of a KubeLink.
const (
	// ConditionAccepted is true when the spec and the mesh are usable.
	ConditionAccepted = "Accepted"
	// ConditionReady is true when the link carries traffic. For a LocalLink: when its mesh is set up.
	ConditionReady = "Ready"
	// ConditionForwarding is false when something on the gateway node keeps packets of pods from passing. Its reason is
	// the kind, its message what is wrong and what to do. For a LocalLink: when it does so for a link of the mesh.
	ConditionForwarding = "Forwarding"
)

// KubeLink describes the link of the local cluster to another cluster of a mesh. With the endpoint LocalLink it
// describes the place of the local cluster in that mesh. Its name is <mesh>--<cluster>, or just <cluster> in the
// default mesh.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:metadata:annotations="kubelink.mandelsoft.org/crd-version=3"
// +kubebuilder:resource:scope=Cluster,path=kubelinks,singular=kubelink,shortName=klink
// +kubebuilder:printcolumn:name="CIDR",type=string,JSONPath=`.spec.cidr`
// +kubebuilder:printcolumn:name="Address",type=string,JSONPath=`.spec.clusterAddress`
// +kubebuilder:printcolumn:name="Endpoint",type=string,JSONPath=`.spec.endpoint`
// +kubebuilder:printcolumn:name="Gateway",type=string,JSONPath=`.status.gateway`
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="PublicKey",type=string,priority=1,JSONPath=`.status.publicKey`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="!has(self.spec.gatewayLink) || self.spec.gatewayLink != self.metadata.name",message="spec.gatewayLink names this link itself; name the link of the cluster that forwards for it, or remove the field and set spec.endpoint"
type KubeLink struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec KubeLinkSpec `json:"spec"`
	// +optional
	Status KubeLinkStatus `json:"status,omitempty"`
}

// KubeLinkSpec is what the user wants.
//
// +kubebuilder:validation:XValidation:rule="(has(self.endpoint) && size(self.endpoint) > 0) || (has(self.gatewayLink) && size(self.gatewayLink) > 0)",message="spec.endpoint is missing: set it to host[:port] of the peer, to LocalLink for the local cluster, or set spec.gatewayLink"
// +kubebuilder:validation:XValidation:rule="!(has(self.endpoint) && self.endpoint == 'LocalLink' && has(self.gatewayLink) && size(self.gatewayLink) > 0)",message="spec.gatewayLink cannot be used on a LocalLink: remove it"
// +kubebuilder:validation:XValidation:rule="!(has(self.cidr) && size(self.cidr) > 0 && isCIDR(self.cidr) && isCIDR(self.clusterAddress) && cidr(self.cidr).containsIP(cidr(self.clusterAddress).ip()))",message="spec.clusterAddress lies in spec.cidr: the mesh network must be disjoint from every service network"
// +kubebuilder:validation:XValidation:rule="!(has(self.presharedKey) && size(self.presharedKey) > 0 && has(self.presharedKeySecretRef))",message="spec.presharedKey and spec.presharedKeySecretRef are both set: remove one of them"
type KubeLinkSpec struct {
	// CIDR is the service network of the remote cluster. On a LocalLink: that of the local cluster.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="size(self) == 0 || (isCIDR(self) && cidr(self) == cidr(self).masked())",message="spec.cidr must be a network in CIDR notation without host bits, such as 100.64.16.0/20"
	CIDR string `json:"cidr,omitempty"`

	// ClusterAddress is the address of the cluster in the mesh, with the mask of the mesh, such as 192.168.0.12/24.
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="isCIDR(self)",message="spec.clusterAddress must be the address of the cluster in the mesh with the mask of the mesh, such as 192.168.0.12/24"
	// +kubebuilder:validation:XValidation:rule="!isCIDR(self) || cidr(self).prefixLength() >= (cidr(self).ip().family() == 4 ? 31 : 127) || !(cidr(self) == cidr(self).masked())",message="spec.clusterAddress has no host part: give the address of the cluster, such as 192.168.0.12/24, not the network"
	// +kubebuilder:validation:XValidation:rule="!isCIDR(self) || cidr(self).prefixLength() > 0",message="the mask /0 of spec.clusterAddress is that of all addresses there are; use that of the mesh, such as /24"
	ClusterAddress string `json:"clusterAddress"`

	// Endpoint is host[:port] of the peer's broker, or LocalLink, or Inbound (wireguard mode). A link with a gatewayLink
	// needs none.
	// +optional
	// +kubebuilder:validation:MaxLength=261
	// +kubebuilder:validation:XValidation:rule="size(self) == 0 || self.matches('^([A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?[.]?|[[][0-9A-Fa-f:.]+[]])(:[0-9]{1,5})?$') || isIP(self)",message="spec.endpoint must be host[:port] with a DNS name, an IPv4 address or an IPv6 address (in brackets when a port follows), or LocalLink, or Inbound"
	Endpoint string `json:"endpoint,omitempty"`

	// GatewayLink is the name of the link to the broker that forwards to this cluster. Without mesh prefix it names a
	// link of the same mesh.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	GatewayLink string `json:"gatewayLink,omitempty"`

	// Egress lists further networks to route to this link.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	Egress []EgressCIDR `json:"egress,omitempty"`

	// Ingress lists the local destinations that this link may reach. An entry with a leading ! denies. Denials win, and
	// a list of denials only allows the rest. The list of the LocalLink and that of the link must both let a packet pass,
	// for a cluster behind a gatewayLink also that of the gateway. Default, if there is no list: the local service
	// network, and the MeshServices of the mesh. A list has to name their addresses, too. Of the gateway node itself,
	// lists allow ping, and ports of MeshServices at the cluster's own address, which are open unless it is denied.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	Ingress []IngressCIDR `json:"ingress,omitempty"`

	// PublicKey is the base64 form of the peer's WireGuard key, which a link with an endpoint needs (wireguard mode).
	// +optional
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="size(self) == 0 || self.matches('^[A-Za-z0-9+/]{43}=$')",message="spec.publicKey must be a WireGuard key: 32 bytes in base64, as wg pubkey prints it"
	PublicKey string `json:"publicKey,omitempty"`

	// PresharedKey is the base64 form of a WireGuard preshared key (wireguard mode).
	// +optional
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="size(self) == 0 || self.matches('^[A-Za-z0-9+/]{43}=$')",message="spec.presharedKey must be a WireGuard key: 32 bytes in base64, as wg genpsk prints it"
	PresharedKey string `json:"presharedKey,omitempty"`

	// PresharedKeySecretRef is the key of a secret that has the preshared key, instead of presharedKey (wireguard mode).
	// +optional
	PresharedKeySecretRef *SecretKeyRef `json:"presharedKeySecretRef,omitempty"`

	// APIAccess is the secret with token and certificate-authority-data for the API server of the remote cluster.
	// +optional
	APIAccess *corev1.SecretReference `json:"apiAccess,omitempty"`

	// DNS describes the DNS service of the remote cluster. On a LocalLink: that of the mesh.
	// +optional
	DNS *KubeLinkDNS `json:"dns,omitempty"`
}

// SecretKeyRef names a key of a secret.
type SecretKeyRef struct {
	// Name of the secret.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
	// Namespace of the secret. Default: that of the broker.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace,omitempty"`
	// Key of the secret's data.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Key string `json:"key"`
}

// EgressCIDR is a network in CIDR notation, or an address. Host bits have no meaning.
// +kubebuilder:validation:MaxLength=64
// +kubebuilder:validation:XValidation:rule="isCIDR(self) || isIP(self)",message="entries of spec.egress must be networks in CIDR notation, such as 10.20.0.0/16, or addresses"
type EgressCIDR string

// IngressCIDR is a network in CIDR notation, or an address. With a leading ! it denies. Host bits have no meaning.
// +kubebuilder:validation:MaxLength=65
// +kubebuilder:validation:XValidation:rule="self.startsWith('!') ? (isCIDR(self.substring(1)) || isIP(self.substring(1))) : (isCIDR(self) || isIP(self))",message="entries of spec.ingress must be networks in CIDR notation, such as 100.64.0.0/20, or addresses, with a leading ! to deny: !100.64.0.10"
type IngressCIDR string

// KubeLinkDNS describes a DNS service.
type KubeLinkDNS struct {
	// OmitDNSPropagation keeps the names of the cluster out of the mesh domain.
	// +optional
	OmitDNSPropagation bool `json:"omitDNSPropagation,omitempty"`

	// DNSIP is the address of the remote cluster's DNS service. Default: the 10th address of cidr. On a LocalLink: the
	// address of the DNS service for the global names of the mesh. The former broker wrote "<nil>" for none.
	// +optional
	// +kubebuilder:validation:MaxLength=45
	// +kubebuilder:validation:XValidation:rule="size(self) == 0 || self == '<nil>' || isIP(self)",message="spec.dns.dnsIP must be an IP address, such as 100.64.16.10"
	DNSIP string `json:"dnsIP,omitempty"`

	// BaseDomain is the domain of the remote cluster. Default: cluster.local. On a LocalLink: the mesh domain.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="size(self) == 0 || self.matches('^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?([.][A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*[.]?$')",message="spec.dns.baseDomain must be a DNS domain name, such as cluster.local"
	BaseDomain string `json:"baseDomain,omitempty"`
}

// KubeLinkStatus is what the broker found out.
type KubeLinkStatus struct {
	// State is one of Invalid, Stale, Error, Idle, Up, Down, Deleting.
	// +optional
	State State `json:"state,omitempty"`
	// Message says in one line what is wrong and what to do.
	// +optional
	Message string `json:"message,omitempty"`
	// Gateway is the address of the node with the broker that serves this link.
	// +optional
	Gateway string `json:"gateway,omitempty"`
	// Term is the number of the Lease with which that broker holds its links. Each broker that takes the links has a higher
	// one, and peers follow the highest. Without Lease there is none.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Term int64 `json:"term,omitempty"`
	// Standbys are the brokers that take the links when the Lease ends, on LocalLinks. Each enters itself. The list is
	// emptied now and then, and a broker that lives enters itself again.
	// +optional
	// +listType=map
	// +listMapKey=node
	// +kubebuilder:validation:MaxItems=64
	Standbys []Standby `json:"standbys,omitempty"`
	// PublicKey is the local WireGuard key, on LocalLinks: spec.publicKey of the links that peers have to this cluster.
	// +optional
	PublicKey string `json:"publicKey,omitempty"`
	// Contested are addresses of the mesh that mesh services of this link have, though other links offer them, too. The
	// link keeps them when the broker starts anew.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	Contested []string `json:"contested,omitempty"`
	// ObservedGeneration is the generation of the spec that this status is about.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Standby is a broker that holds no links, and answers DNS.
type Standby struct {
	// Node is the name of its node.
	Node string `json:"node"`
	// Message says in one line which broker holds the links.
	// +optional
	Message string `json:"message,omitempty"`
}

// KubeLinkList is a list of KubeLinks.
// +kubebuilder:object:root=true
type KubeLinkList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []KubeLink `json:"items"`
}
