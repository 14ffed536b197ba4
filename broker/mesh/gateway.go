package mesh

// Links without a connection of their own: the link named by spec.gatewayLink carries them.

// attachGateways finds the links that carry the links with a gateway, once all links are read: a gateway may be younger
// than the links behind it.
func (s *linkSet) attachGateways() {
	for _, l := range s.sorted() {
		if l.gateway == "" {
			continue
		}
		if p := s.attachGateway(l); p != nil {
			s.reports.addProblem(l.Name, p)
			delete(s.byName, l.Name)
		}
	}
}

func (s *linkSet) attachGateway(l *linkEntry) *Problem {
	if l.gateway == l.Name {
		return invalid("spec.gatewayLink names this link itself: name the link of the cluster that forwards for it")
	}
	if mesh, _ := LinkName(l.gateway); mesh != l.Mesh {
		return invalid("spec.gatewayLink %s belongs to %s: a gateway must be in the same mesh", l.gateway, meshTitle(mesh))
	}
	if l.mesh.Link == l.gateway {
		return invalid("spec.gatewayLink %s is the LocalLink: "+
			"name the link of another cluster, or set spec.endpoint", l.gateway)
	}
	gateway := s.byName[l.gateway]
	if gateway == nil {
		if p, ok := s.reports.problems[l.gateway]; ok {
			return stale("spec.gatewayLink %s cannot be used (%s): repair that link first", l.gateway, p.State)
		}
		return stale("spec.gatewayLink %s does not exist, or is not served: create that link", l.gateway)
	}
	if gateway.gateway != "" {
		return invalid("spec.gatewayLink %s has a gateway itself (%s): name that one", l.gateway, gateway.gateway)
	}
	l.Peer = gateway.Name
	return nil
}
