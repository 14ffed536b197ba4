package announce

// What is remembered of the mesh services that peers offer.

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// offerStep is what two clusters offer at a time since the start, and who has it then.
type offerStep struct {
	what         string
	at           time.Duration
	small, large *mesh.Offers
	owner        string
}

var (
	contestedAddress = netip.MustParseAddr("192.168.0.100")
	offered          = &mesh.Offers{List: []mesh.Offer{
		{Namespace: "default", Name: "echo", Address: contestedAddress, Whole: true}}}
	notOffered = &mesh.Offers{}
)

// offeringLinks are the links to the clusters.
func offeringLinks() []v1alpha1.KubeLink {
	var links []v1alpha1.KubeLink
	for _, l := range [][3]string{{"here", v1alpha1.EndpointLocal, "192.168.0.1/24"},
		{"small", "a.example", "192.168.0.2/24"}, {"large", "b.example", "192.168.0.3/24"}} {
		links = append(links, v1alpha1.KubeLink{ObjectMeta: metav1.ObjectMeta{Name: l[0]},
			Spec: v1alpha1.KubeLinkSpec{Endpoint: l[1], ClusterAddress: l[2]}})
	}
	return links
}

func runOfferSteps(t *testing.T, offers *Offers, links []v1alpha1.KubeLink, steps []offerStep) {
	t.Helper()
	for _, step := range steps {
		now := time.Unix(0, 0).Add(step.at)
		objects := mesh.Objects{Links: links}
		offers.AddTo(&objects, []link.Status{{Link: "small", Offers: step.small}, {Link: "large", Offers: step.large},
			{Link: "former"}}, now)
		s := mesh.Build(objects, mesh.Local{Mode: mesh.Bridge})
		offers.Keep(&s, now)
		if owner := strings.Join(slices.Sorted(maps.Keys(s.Offers.Links)), " "); owner != step.owner {
			t.Errorf("%s: owner %q, want %q; problems %v", step.what, owner, step.owner, s.Problems)
		}
	}
}

// Two clusters that offer an address come together within seconds, or one comes later: then the first one keeps it, for
// as long as it offers it.
func TestOffersSettle(t *testing.T) {
	var offers Offers
	runOfferSteps(t, &offers, offeringLinks(), []offerStep{
		{"nothing", 0, nil, nil, ""},
		{"by the larger one", 0, notOffered, offered, "large"},
		{"by the smaller one, together", 4 * time.Second, offered, offered, "small"},
		{"much later", time.Minute, offered, offered, "small"},
		{"by the smaller one no more", 2 * time.Minute, notOffered, offered, "large"},
		{"and again, late", 3 * time.Minute, offered, offered, "large"},
		{"still", 4 * time.Minute, offered, offered, "large"},
	})
	if got := offers.CountRefused()[mesh.OfferTaken]; got != 1 {
		t.Errorf("%d refused", got)
	}
	want := map[string][]netip.Addr{"large": {contestedAddress}}
	if got := offers.Contested(); !reflect.DeepEqual(got, want) {
		t.Errorf("contested %v, want %v", got, want)
	}
	objects := mesh.Objects{}
	offers.AddTo(&objects, nil, time.Now())
	if !reflect.DeepEqual(objects, mesh.Objects{}) {
		t.Errorf("%+v", objects)
	}
}

// A broker that starts anew hears of both at once, or of the wrong one first: the status of the link says who had it.
func TestOffersAfterRestart(t *testing.T) {
	links := offeringLinks()
	links[2].Status.Contested = []string{contestedAddress.String(), "damaged"}
	var offers Offers
	runOfferSteps(t, &offers, links, []offerStep{{"nothing", 0, nil, nil, ""}})
	links[2].Status.Contested = nil // whatever becomes of it
	runOfferSteps(t, &offers, links, []offerStep{
		{"by the smaller one first", time.Second, offered, nil, "small"},
		{"and by the one that had it", 2 * time.Second, offered, offered, "large"},
	})
	if got := offers.Contested()["large"]; !slices.Equal(got, []netip.Addr{contestedAddress}) {
		t.Errorf("contested %v", got)
	}
	runOfferSteps(t, &offers, links, []offerStep{
		{"still", time.Minute, offered, offered, "large"},
		{"by that one no more", 2 * time.Minute, offered, nil, "small"},
		{"and again, late", 3 * time.Minute, offered, offered, "small"},
	})
	if got := offers.Contested(); len(got) != 1 || len(got["small"]) != 1 {
		t.Errorf("contested %v", got)
	}
}
