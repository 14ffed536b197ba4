package writeback

import (
	"strings"
	"testing"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// What a broker does not serve any more is Stale until another one writes its status, and is written once.
func TestFormer(t *testing.T) {
	items := []v1alpha1.KubeLink{
		newKubeLink("gone", "a.example"), newKubeLink("k2", "b.example"), newKubeLink("k3", "c.example"),
		newKubeLink("m--self", v1alpha1.EndpointLocal),
	}
	for i := range items {
		items[i].ResourceVersion = "1"
	}
	var f Former
	says := func(name string, want string, served ...string) {
		t.Helper()
		var outcomes []Link
		for i := range items {
			for _, s := range served {
				if items[i].Name == s {
					outcomes = append(outcomes, Link{Object: &items[i], State: v1alpha1.StateUp})
				}
			}
		}
		var got []string
		for _, o := range f.AddOutcomes(items, outcomes) {
			if o.State == v1alpha1.StateStale && o.Message == formerMessage && !o.Finalizer {
				got = append(got, o.Object.Name)
			} else if o.State != v1alpha1.StateUp {
				t.Errorf("%s: %+v", name, o)
			}
		}
		if text := strings.Join(got, " "); text != want {
			t.Errorf("%s: %s, want %s", name, text, want)
		}
	}
	says("at the start", "", "gone", "k2", "m--self")
	items[0] = deleted(items[0])
	says("with another list", "k2 m--self", "k3")
	says("until it is written", "k2 m--self", "k3")
	items[1].ResourceVersion = "2"
	says("something has written it", "m--self", "k3")
	says("it is served again", "m--self", "k3", "k2")
	says("and is not any more", "k2 m--self", "k3")
	items[1].ResourceVersion, items[3].ResourceVersion = "3", "3"
	says("written", "", "k3")
}
