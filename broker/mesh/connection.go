package mesh

// How links are connected: through the link that spec.gatewayLink names, or by an endpoint. No connection may run
// through a tunnel. What a younger object would lead there, the older one keeps.

import (
	"fmt"
	"net/netip"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// readEndpoint reads spec.gatewayLink or, if there is none, spec.endpoint.
func (s *linkSet) readEndpoint(l *linkEntry) *Problem {
	if l.gateway = gatewayName(l.Mesh, l.spec); l.gateway != "" {
		return s.checkGateway(l)
	}
	endpoint := l.spec.Endpoint
	switch {
	case endpoint == "":
		return invalid("spec.endpoint is missing: set it to host[:port] of the peer's broker, or set spec.gatewayLink")
	case endpoint == v1alpha1.EndpointInbound && s.local.Mode == Bridge:
		return invalid("spec.endpoint Inbound works in mode wireguard only: " +
			"in mode bridge give the host name in the peer's certificate")
	case endpoint == v1alpha1.EndpointInbound:
		return nil
	}
	for _, word := range []string{v1alpha1.EndpointInbound, v1alpha1.EndpointLocal} {
		if strings.EqualFold(endpoint, word) {
			return invalid("spec.endpoint %q: did you mean %s? Upper and lower case matter", endpoint, word)
		}
	}
	var err error
	if l.host, l.port, err = Endpoint(endpoint, s.local.DefaultPort); err != nil {
		return invalid("spec.endpoint %q: %v", endpoint, err)
	}
	return nil
}

// gatewayName is the full name of the link that carries this one; empty: it has an endpoint.
func gatewayName(mesh string, spec *v1alpha1.KubeLinkSpec) string {
	if spec.GatewayLink == "" || strings.Contains(spec.GatewayLink, v1alpha1.MeshSeparator) {
		return spec.GatewayLink
	}
	return ObjectName(mesh, spec.GatewayLink)
}

// checkGateway refuses a gateway that can never carry the link, whether it can be used itself or not.
func (s *linkSet) checkGateway(l *linkEntry) *Problem {
	if l.gateway == l.Name {
		return invalid("spec.gatewayLink names this link itself: name the link of the cluster that forwards for it")
	}
	mesh, _ := LinkName(l.gateway)
	if mesh != l.Mesh {
		return invalid("spec.gatewayLink %s belongs to %s: a gateway must be in the same mesh", l.gateway, MeshTitle(mesh))
	}
	if l.mesh.Link == l.gateway {
		return invalid("spec.gatewayLink %s is the LocalLink: "+
			"name the link of another cluster, or set spec.endpoint", l.gateway)
	}
	gateway := s.objects[l.gateway]
	if p, broken := s.reports.problems[l.gateway]; broken && gateway == nil {
		return brokenGateway(l, p.State) // another LocalLink
	}
	if gateway == nil {
		return stale("spec.gatewayLink %s does not exist, or another broker serves it: create that link, "+
			"or name both links in served-links of one broker", l.gateway)
	}
	if next := gatewayName(mesh, &gateway.Spec); next != "" {
		return invalid("spec.gatewayLink %s has a gateway itself (%s): name that one", l.gateway, next)
	}
	return nil
}

// attachGateways finds the links that carry the links with a gateway, once all links are read: a gateway may be younger
// than the links behind it. Of the gateways that cannot be used it takes the one of the oldest link, and returns the
// problems of all links behind it: without their networks, other gateways may be usable.
func (s *linkSet) attachGateways() (orphans map[string]*Problem) {
	broken := ""
	for _, l := range s.byAge {
		if l.gateway == "" || broken != "" && l.gateway != broken {
			continue
		}
		if gateway := s.byName[l.gateway]; gateway != nil {
			l.Peer = gateway.Name
			continue
		}
		if broken = l.gateway; orphans == nil {
			orphans = map[string]*Problem{}
		}
		orphans[l.Name] = brokenGateway(l, s.reports.problems[l.gateway].State)
	}
	return orphans
}

func brokenGateway(l *linkEntry, state v1alpha1.State) *Problem {
	return stale("spec.gatewayLink %s cannot be used (%s): repair that link first", l.gateway, state)
}

// checkLoop refuses what would lead a tunnel's own connection into a tunnel. A link is refused if all addresses of its
// endpoint are in a tunnel, or if it would take one of them, its own or that of an older link.
//
// Which addresses a name has, and where a peer dials from, is up to other clusters. Of other links, that counts while
// this one is new: later, such a change is a matter of the link whose endpoint it is.
func (s *linkSet) checkLoop(l *linkEntry) *Problem {
	if l.gateway == "" {
		l.literal, l.reached = literalAddress(l.host), s.host.endpointAddresses(l.Name, l.host)
	}
	if p := s.checkEndpoint(l, s.host.endpointAddresses("", l.host)); p != nil {
		return p
	}
	if p := s.checkTaken(l, l, l.reached); p != nil {
		return p
	}
	accepted := wasAccepted(s.objects[l.Name])
	for _, other := range s.byAge {
		addresses := other.reached
		if accepted {
			addresses = other.literal
		}
		if p := s.checkTaken(l, other, addresses); p != nil {
			return p
		}
	}
	return nil
}

// checkTaken refuses a link that would take one of the addresses of the endpoint of a link.
func (s *linkSet) checkTaken(l, other *linkEntry, addresses []netip.Addr) *Problem {
	for i := range l.claims {
		c := &l.claims[i]
		if a, ok := s.host.findTaken(c.prefix, addresses); ok {
			return invalid("the network %s (spec.cidr, spec.egress) contains the endpoint %s of link %s: "+
				"its connection would run through a tunnel; narrow the network, or change the endpoint",
				c.prefix, describeEndpoint(other.host, a), other.Name)
		}
	}
	return nil
}

// wasAccepted tells whether a broker has accepted the object with this spec.
func wasAccepted(o *v1alpha1.KubeLink) bool {
	c := meta.FindStatusCondition(o.Status.Conditions, v1alpha1.ConditionAccepted)
	return c != nil && c.Status == metav1.ConditionTrue && c.ObservedGeneration == o.Generation
}

// literalAddress is the address that a host is; nil: it is a name.
func literalAddress(host string) []netip.Addr {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}
	}
	return nil
}

// checkEndpoint refuses an endpoint that can be reached through a tunnel only.
func (s *linkSet) checkEndpoint(l *linkEntry, addresses []netip.Addr) (p *Problem) {
	for _, a := range addresses {
		network, title, ok := s.findTunnel(a)
		if !ok {
			return nil
		}
		if p == nil {
			p = invalid("spec.endpoint %s lies in the network %s %s: the connection would run through a tunnel; "+
				"set an address outside of the meshes",
				describeEndpoint(l.host, a), network, title)
		}
	}
	return p
}

// findTunnel returns the network of a mesh or of an older link that takes packets to the address, and what it is.
func (s *linkSet) findTunnel(a netip.Addr) (network netip.Prefix, title string, ok bool) {
	for _, c := range s.claims {
		if s.host.takes(c.prefix, a) {
			return c.prefix, "that is routed to link " + c.owner, true
		}
	}
	for _, m := range s.meshes.list {
		if n := m.Addresses.SameFamily(a).Masked(); s.host.takes(n, a) {
			return n, "of " + MeshTitle(m.Name), true
		}
	}
	return network, "", false
}

// checkEndpoints refuses a mesh whose network would take the endpoint of an older link, as checkLoop does.
func (s *meshSet) checkEndpoints(l *v1alpha1.KubeLink, network netip.Prefix, older []*v1alpha1.KubeLink) *Problem {
	for _, o := range older {
		host, _, err := Endpoint(o.Spec.Endpoint, 1)
		if err != nil || isLocalLink(o) || o.Spec.GatewayLink != "" || o.DeletionTimestamp != nil {
			continue
		}
		if o.Spec.Endpoint == v1alpha1.EndpointInbound {
			host = ""
		}
		addresses := s.host.endpointAddresses(o.Name, host)
		if wasAccepted(l) {
			addresses = literalAddress(host)
		}
		if a, ok := s.host.findTaken(network, addresses); ok {
			return invalid("spec.clusterAddress: its network %s contains the endpoint %s of the older link %s, whose "+
				"connection would run through a tunnel; choose another network for the mesh",
				network, describeEndpoint(host, a), o.Name)
		}
	}
	return nil
}

// describeEndpoint is how messages call an endpoint that has the address.
func describeEndpoint(host string, a netip.Addr) string {
	if text := a.String(); text == host || host == "" { // a peer without endpoint was there
		return text
	}
	return fmt.Sprintf("%s (%s)", host, a)
}
