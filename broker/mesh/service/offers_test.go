package service

import (
	"net/netip"
	"reflect"
	"testing"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

func TestOffers(t *testing.T) {
	address := netip.MustParseAddr("192.168.0.100")
	got := Offers([]Service{
		{Namespace: "default", Name: "echo", StandsFor: "svc", Address: address, Whole: true, Affinity: 3,
			Ports: []Port{{Name: "web", Protocol: 6, Port: 80}, {Name: "Not a label", Protocol: 17, Port: 53}}},
		{Namespace: "default", Name: "ports", Address: address, Ports: []Port{{Protocol: 6, Port: 1}}},
	})
	want := []mesh.Offer{
		{Namespace: "default", Name: "echo", StandsFor: "svc", Address: address, Whole: true,
			Ports: []mesh.OfferPort{{Name: "web", Protocol: 6, Port: 80}, {Protocol: 17, Port: 53}}},
		{Namespace: "default", Name: "ports", Address: address, Ports: []mesh.OfferPort{{Protocol: 6, Port: 1}}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
}
