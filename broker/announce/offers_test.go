package announce

// What is remembered of the mesh services that peers offer.

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Two clusters that offer an address come together within seconds, or one comes later: then the first one keeps it, for
// as long as it offers it.
func TestOffersSettle(t *testing.T) {
	var links []v1alpha1.KubeLink
	for name, spec := range map[string]v1alpha1.KubeLinkSpec{
		"here":  {Endpoint: v1alpha1.EndpointLocal, ClusterAddress: "192.168.0.1/24"},
		"small": {Endpoint: "a.example", ClusterAddress: "192.168.0.2/24"},
		"large": {Endpoint: "b.example", ClusterAddress: "192.168.0.3/24"},
	} {
		links = append(links, v1alpha1.KubeLink{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec})
	}
	address := netip.MustParseAddr("192.168.0.100")
	all := &mesh.Offers{List: []mesh.Offer{{Namespace: "default", Name: "echo", Address: address, Whole: true}}}
	type offered struct{ small, large *mesh.Offers }
	var offers Offers
	for _, step := range []struct {
		what  string
		at    time.Duration
		by    offered
		owner string
	}{
		{"nothing", 0, offered{}, ""},
		{"by the larger one", 0, offered{&mesh.Offers{}, all}, "large"},
		{"by the smaller one, together", 4 * time.Second, offered{all, all}, "small"},
		{"much later", time.Minute, offered{all, all}, "small"},
		{"by the smaller one no more", 2 * time.Minute, offered{&mesh.Offers{}, all}, "large"},
		{"and again, late", 3 * time.Minute, offered{all, all}, "large"},
		{"still", 4 * time.Minute, offered{all, all}, "large"},
	} {
		now := time.Unix(0, 0).Add(step.at)
		objects := mesh.Objects{Links: links}
		offers.AddTo(&objects, []link.Status{{Link: "small", Offers: step.by.small}, {Link: "large", Offers: step.by.large},
			{Link: "former"}}, now)
		s := mesh.Build(objects, mesh.Local{Mode: mesh.Bridge})
		offers.Keep(&s, now)
		owner := ""
		for name := range s.Offers.Links {
			owner += name
		}
		if owner != step.owner {
			t.Errorf("%s: owner %q, want %q; problems %v", step.what, owner, step.owner, s.Problems)
		}
	}
	if got := offers.CountRefused()[mesh.OfferTaken]; got != 1 {
		t.Errorf("%d refused", got)
	}
	objects := mesh.Objects{}
	offers.AddTo(&objects, nil, time.Now())
	if !reflect.DeepEqual(objects, mesh.Objects{}) {
		t.Errorf("%+v", objects)
	}
}
