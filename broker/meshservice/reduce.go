package meshservice

// What the cache has of objects: a cluster may have ten thousands of EndpointSlices that no MeshService leads to.

import (
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// reduceMeta leaves the name, and what tells versions apart.
func reduceMeta(m *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion}
}

// reduceService leaves type, ports and affinity of a service.
func reduceService(o any) (any, error) {
	s, ok := o.(*corev1.Service)
	if !ok {
		return o, nil
	}
	return &corev1.Service{ObjectMeta: reduceMeta(&s.ObjectMeta), Spec: corev1.ServiceSpec{
		Type: s.Spec.Type, Ports: s.Spec.Ports, SessionAffinity: s.Spec.SessionAffinity,
		SessionAffinityConfig: s.Spec.SessionAffinityConfig,
	}}, nil
}

// fieldService is the index of EndpointSlices by their service.
const fieldService = "service"

func serviceOf(o client.Object) []string { return []string{o.GetLabels()[discovery.LabelServiceName]} }

// reduceSlice leaves ports, addresses and conditions of endpoints. Of the addresses of one endpoint the first one
// counts.
func reduceSlice(o any) (any, error) {
	s, ok := o.(*discovery.EndpointSlice)
	if !ok {
		return o, nil
	}
	reduced := &discovery.EndpointSlice{ObjectMeta: reduceMeta(&s.ObjectMeta), AddressType: s.AddressType, Ports: s.Ports}
	if name := s.Labels[discovery.LabelServiceName]; name != "" {
		reduced.Labels = map[string]string{discovery.LabelServiceName: name}
	}
	if s.AddressType == discovery.AddressTypeFQDN || reduced.Labels == nil {
		return reduced, nil // no service has its endpoints
	}
	reduced.Endpoints = make([]discovery.Endpoint, 0, len(s.Endpoints))
	for _, e := range s.Endpoints {
		if len(e.Addresses) > 0 {
			reduced.Endpoints = append(reduced.Endpoints, discovery.Endpoint{
				Addresses: e.Addresses[:1:1], Conditions: shareConditions(e.Conditions),
			})
		}
	}
	return reduced, nil
}

var yes, no = true, false

// shareConditions has one place for each value, instead of one for each endpoint.
func shareConditions(c discovery.EndpointConditions) discovery.EndpointConditions {
	share := func(b *bool) *bool {
		switch {
		case b == nil:
			return nil
		case *b:
			return &yes
		}
		return &no
	}
	return discovery.EndpointConditions{
		Ready: share(c.Ready), Serving: share(c.Serving), Terminating: share(c.Terminating),
	}
}
