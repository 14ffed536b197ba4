package deploy

// What the CRDs let pass, against what the code takes.

import (
	"testing"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"

	"github.com/mandelsoft/kubelink/broker/overlay"
)

// The API server takes the LinkGateways whose overlay routers can set, and no other ones.
func TestOverlayBounds(t *testing.T) {
	text, err := CRDs.ReadFile("crds/kubelink.mandelsoft.org_linkgateways.yaml")
	if err != nil {
		t.Fatal(err)
	}
	crd := &apiextensions.CustomResourceDefinition{}
	if err := yaml.Unmarshal(text, crd); err != nil {
		t.Fatal(err)
	}
	vxlan := crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"].Properties["vxlan"].Properties
	for field, want := range map[string][2]float64{
		"vni": {1, overlay.MaxVNI}, "port": {overlay.MinPort, overlay.MaxPort},
	} {
		has := vxlan[field]
		if has.Minimum == nil || has.Maximum == nil {
			t.Fatalf("spec.vxlan.%s has no bounds", field)
		}
		if bounds := [2]float64{*has.Minimum, *has.Maximum}; bounds != want {
			t.Errorf("spec.vxlan.%s: schema %v, the overlay takes %v", field, bounds, want)
		}
	}
}
