package v1alpha1

// This file has the kind LinkGateway: where packets to the meshes go. The broker writes it, routers of nodes read it.

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// LinkGateway says where the gateway of a group of links is, and which networks it leads to. The broker that holds the
// links writes it, all of it at once, whenever something of it changes. Its name is that of the Lease of the links, also
// where brokers have no Lease; its namespace is that of the broker. It outlives the broker: the next one that holds the
// links writes it anew.
//
// +kubebuilder:object:root=true
// +kubebuilder:metadata:annotations="kubelink.mandelsoft.org/crd-version=3"
// +kubebuilder:resource:path=linkgateways,singular=linkgateway,shortName=lgw
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.node`
// +kubebuilder:printcolumn:name="Address",type=string,JSONPath=`.spec.nodeIPs[0]`
// +kubebuilder:printcolumn:name="Pod",type=string,JSONPath=`.spec.pod`
// +kubebuilder:printcolumn:name="Term",type=integer,JSONPath=`.spec.term`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type LinkGateway struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec LinkGatewaySpec `json:"spec"`
}

// LinkGatewaySpec is what the broker says. Users do not set it.
type LinkGatewaySpec struct {
	// Node is the name of the gateway's node.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node"`

	// NodeIPs are the addresses of that node, one per family at most. Without one, no node has a way to the gateway.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:validation:XValidation:rule="self.size() < 2 || !self.all(a, isIP(a)) || ip(self[0]).family() != ip(self[1]).family()",message="spec.nodeIPs has two addresses of one family: keep one of them"
	NodeIPs []GatewayIP `json:"nodeIPs,omitempty"`

	// Pod is the name of the broker's pod, if packets have to go to the pod (pod mode). Empty: they go to the node.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Pod string `json:"pod,omitempty"`

	// PodIPs are the addresses of that pod, one per family at most (pod mode).
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:validation:XValidation:rule="self.size() < 2 || !self.all(a, isIP(a)) || ip(self[0]).family() != ip(self[1]).family()",message="spec.podIPs has two addresses of one family: keep one of them"
	PodIPs []GatewayIP `json:"podIPs,omitempty"`

	// Networks are all that the gateway leads to: the ranges of meshes, of accepted links cidr and egress, and addresses
	// of MeshServices outside of the meshes. They are sorted, and each is there once.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=4096
	Networks []GatewayNetwork `json:"networks,omitempty"`

	// Term is the number of the Lease with which the broker holds the links; 0: it has none.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=4294967295
	Term int64 `json:"term,omitempty"`

	// MTU is the size in bytes of the largest packet that the gateway takes from other nodes; 0: unknown.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	MTU int32 `json:"mtu,omitempty"`

	// VXLAN says that packets have to come to the gateway in a VXLAN (property ipip).
	// +optional
	VXLAN *GatewayVXLAN `json:"vxlan,omitempty"`
}

// GatewayIP is an IP address.
//
// +kubebuilder:validation:MaxLength=45
// +kubebuilder:validation:XValidation:rule="isIP(self)",message="must be an IP address, such as 10.250.0.5"
type GatewayIP string

// GatewayNetwork is a network in CIDR notation, without host bits.
//
// +kubebuilder:validation:MaxLength=43
// +kubebuilder:validation:XValidation:rule="isCIDR(self) && cidr(self) == cidr(self).masked()",message="must be a network in CIDR notation without host bits, such as 100.64.16.0/20"
type GatewayNetwork string

// GatewayVXLAN is the overlay network between the nodes and the gateway (RFC 7348).
type GatewayVXLAN struct {
	// VNI is the number of the overlay network.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=16777215
	VNI int32 `json:"vni"`
	// Port is the UDP port of the gateway. Nodes have the next one.
	// +kubebuilder:validation:Minimum=1024
	// +kubebuilder:validation:Maximum=65534
	Port int32 `json:"port"`
}

// LinkGatewayList is a list of LinkGateways.
// +kubebuilder:object:root=true
type LinkGatewayList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []LinkGateway `json:"items"`
}
