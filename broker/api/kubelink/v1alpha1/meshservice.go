package v1alpha1

// This file has the kind MeshService. Its CRD is installed, but kubelink ignores the objects so far.

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// MeshService makes a service, or a set of endpoints, reachable from the whole mesh: at a mesh address of its own, or
// at ports of the local cluster's mesh address.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:metadata:annotations="kubelink.mandelsoft.org/crd-version=1"
// +kubebuilder:resource:path=meshservices,singular=meshservice,shortName=msvc
// +kubebuilder:printcolumn:name="Service",type=string,JSONPath=`.spec.service`
// +kubebuilder:printcolumn:name="Address",type=string,JSONPath=`.spec.meshAddress`
// +kubebuilder:printcolumn:name="Mesh",type=string,JSONPath=`.spec.mesh`
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
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
// +kubebuilder:validation:XValidation:rule="(has(self.meshAddress) && size(self.meshAddress) > 0) || (has(self.ports) && self.ports.size() > 0)",message="spec.ports is missing: without spec.meshAddress the local cluster's mesh address is used, and ports of it must be named"
type MeshServiceSpec struct {
	// Service is the name of a service in the same namespace.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Service string `json:"service,omitempty"`

	// MeshAddress is a mesh address for this service alone.
	// +optional
	// +kubebuilder:validation:MaxLength=45
	// +kubebuilder:validation:XValidation:rule="size(self) == 0 || isIP(self)",message="spec.meshAddress must be an IP address of the mesh, such as 192.168.0.100"
	MeshAddress string `json:"meshAddress,omitempty"`

	// Mesh is the mesh with the local address that serves without meshAddress. Default: the default mesh.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Mesh string `json:"mesh,omitempty"`

	// Ports are the ports at the mesh address. Without ports, the whole address maps to the service.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	Ports []MeshServicePort `json:"ports,omitempty"`

	// Endpoints are the targets. The load is balanced between several ones.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	Endpoints []MeshServiceEndpoint `json:"endpoints,omitempty"`
}

// MeshServicePort is a port at the mesh address.
type MeshServicePort struct {
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name,omitempty"`
	// +optional
	// +kubebuilder:default=TCP
	// +kubebuilder:validation:Enum=TCP;UDP;tcp;udp
	Protocol corev1.Protocol `json:"protocol,omitempty"`
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
	Address string `json:"address,omitempty"`
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	PortMappings []MeshServicePortMapping `json:"portMappings,omitempty"`
}

// MeshServicePortMapping maps a port of the mesh address to a port of the target.
type MeshServicePortMapping struct {
	// +optional
	// +kubebuilder:default=TCP
	// +kubebuilder:validation:Enum=TCP;UDP;tcp;udp
	Protocol corev1.Protocol `json:"protocol,omitempty"`
	// Port is a port of spec.ports, by its number or name.
	Port intstr.IntOrString `json:"port"`
	// TargetPort is a port of the target, by its number, or by its name in the service.
	TargetPort intstr.IntOrString `json:"targetPort"`
}

// MeshServiceStatus is what the broker found out.
type MeshServiceStatus struct {
	// State is one of Ok, Invalid, Unsupported.
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
