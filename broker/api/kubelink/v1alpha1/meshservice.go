package v1alpha1

// This file has the kind MeshService.

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// MeshService makes a service, or a set of endpoints, reachable from the whole mesh: at a mesh address of its own, or
// at ports of the local cluster's mesh address.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:metadata:annotations="kubelink.mandelsoft.org/crd-version=3"
// +kubebuilder:resource:path=meshservices,singular=meshservice,shortName=msvc
// +kubebuilder:printcolumn:name="Service",type=string,JSONPath=`.spec.service`
// +kubebuilder:printcolumn:name="Address",type=string,JSONPath=`.spec.meshAddress`
// +kubebuilder:printcolumn:name="Mesh",type=string,JSONPath=`.spec.mesh`
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type MeshService struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec MeshServiceSpec `json:"spec"`
	// +optional
	Status MeshServiceStatus `json:"status,omitempty"`
}

// MeshServiceSpec is what the user wants.
//
// +kubebuilder:validation:XValidation:rule="(has(self.service) && size(self.service) > 0) || (has(self.endpoints) && self.endpoints.exists(e, has(e.address) && size(e.address) > 0))",message="nothing to expose: set spec.service to a service of this namespace, or give spec.endpoints with addresses"
// +kubebuilder:validation:XValidation:rule="!has(self.service) || size(self.service) == 0 || !has(self.endpoints) || (self.endpoints.size() <= 1 && self.endpoints.all(e, !has(e.address) || size(e.address) == 0))",message="with spec.service, spec.endpoints may have one entry, with portMappings only: remove spec.service or the addresses"
// +kubebuilder:validation:XValidation:rule="(has(self.service) && size(self.service) > 0) || !has(self.endpoints) || self.endpoints.all(e, has(e.address) && size(e.address) > 0)",message="without spec.service, each of spec.endpoints needs an address"
// +kubebuilder:validation:XValidation:rule="(has(self.meshAddress) && size(self.meshAddress) > 0) || (has(self.ports) && self.ports.size() > 0)",message="spec.ports is missing: without spec.meshAddress the local cluster's mesh address is used, and ports of it must be named"
type MeshServiceSpec struct {
	// Service is the name of a service in the same namespace.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Service string `json:"service,omitempty"`

	// MeshAddress is an address of the mesh, and not that of a cluster. Without ports, all of it belongs to the service.
	// +optional
	// +kubebuilder:validation:MaxLength=45
	// +kubebuilder:validation:XValidation:rule="size(self) == 0 || isIP(self)",message="spec.meshAddress must be an IP address of the mesh, such as 192.168.0.100"
	// +kubebuilder:validation:XValidation:rule="size(self) == 0 || !isIP(self) || ip(self).isGlobalUnicast()",message="spec.meshAddress cannot be a loopback, link-local, broadcast or multicast address"
	MeshAddress string `json:"meshAddress,omitempty"`

	// Mesh is the mesh in which the address of this cluster has the ports, without meshAddress. Default: the default mesh.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Mesh string `json:"mesh,omitempty"`

	// Ports are the ports at the mesh address. Without ports, the whole meshAddress leads to the service.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	Ports []MeshServicePort `json:"ports,omitempty"`

	// Endpoints are the targets. The load is balanced between several ones. With service there is one entry at most, for
	// its portMappings.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	Endpoints []MeshServiceEndpoint `json:"endpoints,omitempty"`
}

// Protocol is TCP or UDP, in any case.
//
// +kubebuilder:validation:MaxLength=16
// +kubebuilder:validation:XValidation:rule="self.lowerAscii() in ['tcp', 'udp']",message="protocol must be TCP or UDP"
type Protocol string

// MeshServicePort is a port at the mesh address.
type MeshServicePort struct {
	// Name is a name of the port, for portMappings and SRV records.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name,omitempty"`
	// Protocol is TCP or UDP, in any case. Default: TCP.
	// +optional
	// +kubebuilder:default=TCP
	Protocol Protocol `json:"protocol,omitempty"`
	// Port is the number of the port at the mesh address, from 1 to 65535. Without portMappings it leads to the port of
	// the same number: of the service, or of the endpoints where spec.service is not set.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port"`
}

// MeshServiceEndpoint is a target of a MeshService.
type MeshServiceEndpoint struct {
	// Address is an IP address. It is not needed where spec.service is set.
	// +optional
	// +kubebuilder:validation:MaxLength=45
	// +kubebuilder:validation:XValidation:rule="size(self) == 0 || isIP(self)",message="spec.endpoints[].address must be an IP address"
	// +kubebuilder:validation:XValidation:rule="size(self) == 0 || !isIP(self) || ip(self).isGlobalUnicast()",message="spec.endpoints[].address cannot be a loopback, link-local, broadcast or multicast address"
	Address string `json:"address,omitempty"`
	// PortMappings say which ports of the mesh address lead to which ports. One without mapping leads to the port of the
	// same number.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	PortMappings []MeshServicePortMapping `json:"portMappings,omitempty"`
}

// MeshServicePortMapping maps a port of the mesh address to a port of the target.
type MeshServicePortMapping struct {
	// Protocol is that of the port: TCP or UDP, in any case. Default: TCP.
	// +optional
	// +kubebuilder:default=TCP
	Protocol Protocol `json:"protocol,omitempty"`
	// Port is a port of spec.ports, by its number or name, or by the name that the port of this number has in the service.
	// With meshAddress and without spec.ports it may be any port.
	Port intstr.IntOrString `json:"port"`
	// TargetPort is a port of the endpoint, by its number. With spec.service it is a port of the service, by its number or
	// name: packets go to the port of the pods behind it.
	TargetPort intstr.IntOrString `json:"targetPort"`
}

// MeshServiceStatus is what the broker found out.
type MeshServiceStatus struct {
	// State is one of Ok, Invalid, Stale, Unsupported.
	// +optional
	State State `json:"state,omitempty"`
	// Message says in one line what is wrong and what to do.
	// +optional
	Message string `json:"message,omitempty"`
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// MeshServiceList is a list of MeshServices.
// +kubebuilder:object:root=true
type MeshServiceList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []MeshService `json:"items"`
}
