// Package service says what the MeshServices of a cluster mean: at which addresses of its meshes is something behind
// which endpoints? Pure: objects in, services and problems out. Package kernel leads packets to the endpoints.
package service

import "net/netip"

// Service is an address of a mesh, or some ports of one, with the endpoints behind it.
type Service struct {
	Namespace, Name string     // of the MeshService
	StandsFor       string     // name of the Kubernetes service, in Namespace; empty: none, it has endpoints of its own
	Address         netip.Addr // in a mesh of this cluster
	// Whole says that all of Address belongs to the service: packets to what Ports does not have go to Targets, with the
	// port that they have. Else only Ports belong to it, of an address that several services may share. What no service
	// has of such an address is refused, unless it is an address of this cluster.
	Whole    bool
	Ports    []Port       // sorted by protocol and port, each once
	Targets  []netip.Addr // sorted; empty though Whole: such packets are refused
	Affinity int          // for how many seconds a source keeps its target after its last new connection; 0: for none
}

// Port is a port of an address with the endpoints behind it.
type Port struct {
	Name     string           // of spec.ports, else of the port of the Kubernetes service; may be empty
	Protocol uint8            // number of IANA: 6 (TCP) or 17 (UDP)
	Port     uint16           // at the address of the mesh
	Targets  []netip.AddrPort // ready ones, of the family of the address, sorted; empty: connections are refused
}
