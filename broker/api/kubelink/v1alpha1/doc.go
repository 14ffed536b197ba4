// Package v1alpha1 holds the objects of the group kubelink.mandelsoft.org, with the rules that
// the API server enforces on them. The CRDs in deploy/crds are generated from it.
//
// +kubebuilder:object:generate=true
// +groupName=kubelink.mandelsoft.org
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the group and version of the objects here.
var GroupVersion = schema.GroupVersion{Group: "kubelink.mandelsoft.org", Version: "v1alpha1"}

// AddToScheme registers the objects here.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &KubeLink{}, &KubeLinkList{}, &MeshService{}, &MeshServiceList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
