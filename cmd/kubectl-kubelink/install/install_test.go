package install

import (
	"strings"
	"testing"
)

func TestBuild(t *testing.T) {
	all, err := Build(Values{Image: "kubelink:v1", ServiceCIDR: "100.64.0.0/20", DNSServiceIP: "100.64.0.11"},
		"node-mode", "router", "self-signed")
	if err != nil {
		t.Fatal(err)
	}
	if all[0].GetKind() != "Namespace" || all[0].GetName() != Namespace {
		t.Errorf("%s %s is first", all[0].GetKind(), all[0].GetName())
	}
	for _, o := range all {
		if o.GetAnnotations()["config.kubernetes.io/local-config"] != "" {
			t.Errorf("%s %s is for kustomize only", o.GetKind(), o.GetName())
		}
	}
	d := Find(all, "Deployment", Name)
	if d == nil || Find(all, "DaemonSet", "kubelink-router") == nil || Find(all, "Role", "kubelink-self-signed") == nil {
		t.Fatal("not all objects are there")
	}
	text, err := d.MarshalJSON()
	if err != nil || !strings.Contains(string(text), `"image":"kubelink:v1"`) {
		t.Errorf("%v: %s", err, text)
	}
	if _, err := Build(Values{}, "router"); err == nil || !strings.Contains(err.Error(), "components router") {
		t.Errorf("without a mode: %v", err)
	}
}

func TestCRDs(t *testing.T) {
	all, err := CRDs()
	if err != nil || Find(all, "CustomResourceDefinition", "kubelinks.kubelink.mandelsoft.org") == nil || len(all) != 5 {
		t.Errorf("%d CRDs: %v", len(all), err)
	}
}
