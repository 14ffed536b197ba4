// Package v1alpha1 has the objects of the API group kubelink.mandelsoft.org, with the rules that the API server
// enforces on them. `make generate` makes the CRDs in deploy/crds of it.
//
// +kubebuilder:object:generate=true
// +groupName=kubelink.mandelsoft.org
package v1alpha1

// This file registers the kinds of the group.

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the group and version of the kinds in this package.
var GroupVersion = schema.GroupVersion{Group: "kubelink.mandelsoft.org", Version: "v1alpha1"}

// AddToScheme registers the kinds of this package.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &KubeLink{}, &KubeLinkList{}, &MeshService{}, &MeshServiceList{},
		&LinkGateway{}, &LinkGatewayList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
