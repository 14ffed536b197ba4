package service

// What other clusters are told of services.

import (
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Offers are the services without their endpoints, in the same order.
func Offers(services []Service) []mesh.Offer {
	var offers []mesh.Offer
	for i := range services {
		s := &services[i]
		o := mesh.Offer{
			Namespace: s.Namespace, Name: s.Name, StandsFor: s.StandsFor, Address: s.Address, Whole: s.Whole,
		}
		for _, p := range s.Ports {
			name := p.Name
			if len(validation.IsDNS1123Label(name)) > 0 { // it can be no name in DNS
				name = ""
			}
			o.Ports = append(o.Ports, mesh.OfferPort{Name: name, Protocol: p.Protocol, Port: p.Port})
		}
		offers = append(offers, o)
	}
	return offers
}
