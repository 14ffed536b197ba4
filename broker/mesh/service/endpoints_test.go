package service

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Many MeshServices with many ports of large services cost no more than the endpoints themselves: the reconciler waits.
func TestEndpointsAreReadOnce(t *testing.T) {
	o := manyServices(t, 2, 1000)
	var mappings []string
	for i := range maxPorts {
		mappings = append(mappings, fmt.Sprintf("{port: %d, targetPort: 80}", i+1))
	}
	o.MeshServices = nil
	for i := range 4 {
		o.addSpecs(t, fmt.Sprintf("{service: svc%d, meshAddress: 10.200.2.%d, endpoints: [{portMappings: [%s]}]}",
			i%2, i+1, strings.Join(mappings, ",")))
	}
	b := newBuilder(o, wideCluster())
	first := map[string]*Service{}
	for _, m := range b.byAge {
		services, _ := b.buildOne(m)
		for i := range services {
			s := &services[i]
			of := first[s.StandsFor]
			if of == nil {
				of, first[s.StandsFor] = s, s
			}
			for _, p := range s.Ports {
				if &p.Targets[0] != &of.Ports[0].Targets[0] {
					t.Fatalf("%s: the endpoints of port %d were found anew", s.Name, p.Port)
				}
			}
		}
	}
	if len(first) != 1 || len(b.endpoints) != 2 { // the others have too many in sum
		t.Errorf("%d services, endpoints of %d", len(first), len(b.endpoints))
	}
}

// The order of slices, which a cache does not have, changes nothing; what two slices have counts once.
func TestOrderOfSlices(t *testing.T) {
	o := testObjects(t, testServices)
	o.addSpecs(t, `{service: echo, meshAddress: 192.168.0.100}`)
	for key, list := range o.Slices {
		for i, s := range list {
			again := s.DeepCopy()
			again.Name = fmt.Sprintf("again-%d", i)
			o.Slices[key] = append(o.Slices[key], again)
		}
	}
	var shown []string
	for range 2 {
		r := Build(o, testCluster())
		shown = append(shown, show(r.Services[0]))
		for _, list := range o.Slices {
			slices.Reverse(list)
		}
	}
	const want = "192.168.0.100; all>100.96.0.2 100.96.0.3 100.96.0.9; http=80/TCP>100.96.0.2:8080 100.96.0.3:8080 " +
		"100.96.0.9:9090; dns=53/UDP>100.96.0.2:5353 100.96.0.3:5353"
	if shown[0] != want || shown[1] != want {
		t.Errorf("got  %s\nand  %s\nwant %s", shown[0], shown[1], want)
	}
}

// An address can be there for several slices with ports of their own.
func TestOneAddressInManySlices(t *testing.T) {
	o := manyServices(t, 1, 1)
	for key, list := range o.Slices {
		for i := range 300 {
			s := list[0].DeepCopy()
			port := int32(9000 + i%3)
			s.Name, s.Ports[0].Port = fmt.Sprintf("s%03d", 300-i), &port
			o.Slices[key] = append(o.Slices[key], s)
		}
	}
	got := show(Build(o, wideCluster()).Services[0])
	const want = "10.200.1.0; all>100.96.0.0; http=80/TCP>100.96.0.0:8080 100.96.0.0:9000 100.96.0.0:9001 100.96.0.0:9002"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
