package zone

// Names of mesh services: <name>.<namespace>.msvc.<cluster>.D for all that a cluster offers. Where no service network
// of the cluster is routed to us, <service>.<namespace>.svc.<cluster>.D is what the cluster offers in place of a
// Kubernetes service. As in the DNS of Kubernetes, the name of a service has SRV records of all its ports, and
// _<port>._<protocol>.<service> that of one port.

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/coredns/coredns/request"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Labels below the name of a cluster.
const (
	meshServiceLabel = "msvc."
	serviceLabel     = "svc."
)

// Bounds of what a peer can put into one reply.
const (
	maxServiceAddresses = 64  // of a name, and names of an address
	maxServicePorts     = 256 // of a name
)

// serviceNames are the names of mesh services of a cluster: those below one of its labels.
type serviceNames struct {
	zone    string // <label>.<cluster>.D
	instead bool   // they stand for the cluster's Kubernetes services
	offers  []mesh.Offer
	refused []mesh.RefusedOffer
	names   map[string]*serviceName // by fully qualified name, in lower case; with those between zone and services
}

// serviceName has the records of a name.
type serviceName struct {
	addresses []netip.Addr
	ports     []servicePort
}

type servicePort struct {
	target string // the name of the service
	port   uint16
}

// addOffers adds the names of what a cluster offers, and of its addresses. A cluster without another source of names
// has no others: so what it does not offer is denied.
func (b *builder) addOffers(d *meshDomain, c *cluster, z *mesh.ClusterZone) {
	if len(z.Offers)+len(z.Refused) == 0 && !c.namesOffersOnly() {
		return
	}
	all := b.takeServiceNames(meshServiceLabel+c.name, false, z.Offers, z.Refused)
	b.addNode(all.zone, &node{domain: d, cluster: c, services: all})
	if c.link != "" && len(c.networks) == 0 {
		s := b.takeServiceNames(serviceLabel+c.name, true, chooseOffers(z.Offers, c.addresses), z.Refused)
		b.addNode(s.zone, &node{domain: d, cluster: c, services: s})
	}
	pointers := map[netip.Addr][]string{}
	for i := range z.Offers {
		o := &z.Offers[i]
		if !slices.Contains(c.addresses, o.Address) && len(pointers[o.Address]) < maxServiceAddresses &&
			isName(all.nameOf(o)) {
			pointers[o.Address] = append(pointers[o.Address], all.nameOf(o))
		}
	}
	for a, names := range pointers {
		b.addReverse(d, netip.PrefixFrom(a, a.BitLen()), &reverseNet{cluster: c, names: names})
	}
}

// namesOffersOnly tells whether nothing knows names of the cluster but the table: it is another cluster, and neither
// its DNS service nor its API server is within reach.
func (c *cluster) namesOffersOnly() bool {
	return c.link != "" && !c.isGlobal && !c.service.IsValid() && !c.usesAPI
}

// decides tells whether the names that are offered say all of a name. A DNS service that is reached in spite of its
// missing service network, by way of spec.egress, knows the other services. The name is in lower case.
func (s *serviceNames) decides(name string, c *cluster) bool {
	if !s.instead || s.names[name] != nil || c.namesOffersOnly() {
		return true
	}
	for off, end := 0, false; !end && len(name)-off > len(s.zone); off, end = dns.NextLabel(name, off) {
		if n := s.names[name[off:]]; n != nil && len(n.addresses) > 0 { // it has no other ports
			return true
		}
	}
	return false
}

// takeServiceNames takes the names from the table before, or makes them.
func (b *builder) takeServiceNames(
	zone string, instead bool, offers []mesh.Offer, refused []mesh.RefusedOffer,
) *serviceNames {
	if b.prev != nil {
		before := b.prev.nodes[zone]
		if before != nil && before.services != nil && slices.EqualFunc(before.services.offers, offers, mesh.Offer.Equal) &&
			slices.Equal(before.services.refused, refused) {
			return before.services
		}
	}
	s := &serviceNames{
		zone: zone, instead: instead, offers: offers, refused: refused, names: make(map[string]*serviceName, 4*len(offers)),
	}
	s.names[zone] = &serviceName{}
	for i := range offers {
		s.addOffer(&offers[i])
	}
	return s
}

// chooseOffers returns the offers that have names of Kubernetes services. Of several that stand for one service these
// are the ones at one address per IP family, as a client expects all ports of a name at each of its addresses: an offer
// of all of an address is chosen before one of ports, that before one at an address of the cluster, else the first.
func chooseOffers(offers []mesh.Offer, cluster []netip.Addr) (chosen []mesh.Offer) {
	type key struct {
		namespace, service string
		isV4               bool
	}
	keyOf := func(o *mesh.Offer) key { return key{o.Namespace, o.StandsFor, o.Address.Is4()} }
	rank := func(o *mesh.Offer) int {
		switch {
		case o.Whole:
			return 0
		case slices.Contains(cluster, o.Address):
			return 2
		}
		return 1
	}
	best := map[key]*mesh.Offer{}
	for i := range offers {
		o := &offers[i]
		if before := best[keyOf(o)]; o.StandsFor != "" && (before == nil || rank(o) < rank(before)) {
			best[keyOf(o)] = o
		}
	}
	for i := range offers {
		if o := best[keyOf(&offers[i])]; o != nil && o.Address == offers[i].Address {
			chosen = append(chosen, offers[i])
		}
	}
	return chosen
}

// isName tells whether a name is not too long for one.
func isName(name string) bool {
	_, ok := dns.IsDomainName(name)
	return ok && wireLength(name) <= maxNameLength
}

// nameOf is the name of an offered service.
func (s *serviceNames) nameOf(o *mesh.Offer) string {
	name := o.Name
	if s.instead {
		name = o.StandsFor
	}
	return dns.CanonicalName(name + "." + o.Namespace + "." + s.zone)
}

// addOffer adds the names of a service and of its ports. What is too long for a name has none.
func (s *serviceNames) addOffer(o *mesh.Offer) {
	name := s.nameOf(o)
	if !isName(name) {
		return
	}
	n := s.makeName(name)
	if !slices.Contains(n.addresses, o.Address) && len(n.addresses) < maxServiceAddresses {
		n.addresses = append(n.addresses, o.Address)
	}
	for _, p := range o.Ports {
		port := servicePort{target: name, port: p.Port}
		n.addPort(port)
		if p.Name == "" {
			continue
		}
		full := dns.CanonicalName("_" + p.Name + "._" + protocolLabel(p.Protocol) + "." + name)
		if isName(full) {
			s.makeName(full).addPort(port)
		}
	}
}

// protocolLabel is the name of a protocol as RFC 2782 has it.
func protocolLabel(protocol uint8) string {
	switch protocol {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_SCTP:
		return "sctp"
	}
	return fmt.Sprintf("ip-%d", protocol)
}

func (n *serviceName) addPort(p servicePort) {
	if len(n.ports) < maxServicePorts && !slices.Contains(n.ports, p) {
		n.ports = append(n.ports, p)
	}
}

// makeName makes a name and those between it and the zone, which exist as well (RFC 8020).
func (s *serviceNames) makeName(name string) *serviceName {
	n := s.names[name]
	if n == nil {
		n = &serviceName{}
		s.names[name] = n
		i, _ := dns.NextLabel(name, 0)
		s.makeName(name[i:])
	}
	return n
}

// reply is the reply to a query for one of the names, or for one that would be among them.
func (s *serviceNames) reply(m *Match, state *request.Request) *dns.Msg {
	c := m.cluster
	q := questionOf(state.Req)
	cached := c.replies.findEntry(q)
	if !c.status.Usable {
		return c.linkDownReply(m, state.Req, cached)
	}
	n := s.names[m.name]
	if n == nil {
		reply := authoritativeReply(state.Req, m.domain.subdomainSOA(c.name), nil)
		reply.Rcode = dns.RcodeNameError
		explainReply(reply, state.Req, dns.ExtendedErrorCodeOther, s.explainMissing(m.name, c))
		return reply
	}
	qname, qtype := state.QName(), state.QType()
	records := addressRecords(qname, qtype, n.addresses...)
	var extra []dns.RR
	if qtype == dns.TypeSRV || qtype == dns.TypeANY {
		for _, p := range n.ports {
			records = append(records, &dns.SRV{Hdr: rrHeader(qname, dns.TypeSRV), Weight: 100, Port: p.port, Target: p.target})
		}
		if len(n.ports) > 0 {
			target := n.ports[0].target // all ports of a name are of one service
			extra = addressRecords(target, dns.TypeANY, s.names[target].addresses...)
		}
	}
	reply := authoritativeReply(state.Req, m.domain.subdomainSOA(c.name), records)
	reply.Extra = append(reply.Extra, extra...)
	c.storeReply(state, q, cached, reply)
	return reply
}

// explainMissing says why there is no such name. The name is in lower case.
func (s *serviceNames) explainMissing(name string, c *cluster) string {
	labels := dns.SplitDomainName(strings.TrimSuffix(name, s.zone))
	var port []string
	for len(labels) > 2 && strings.HasPrefix(labels[0], "_") {
		port, labels = append(port, labels[0][1:]), labels[1:]
	}
	if len(labels) < 2 {
		return "names of services are SERVICE.NAMESPACE." + s.zone
	}
	for i := 1; i < len(labels)-1; i++ {
		name := strings.Join(labels[i:], ".") + "." + s.zone
		if n := s.names[name]; n != nil && len(n.addresses) > 0 {
			return "mesh services have no names of endpoints: ask for " + name
		}
	}
	last := len(labels) - 1
	what := labels[last] + "/" + strings.Join(labels[:last], ".")
	if n := s.names[strings.Join(labels, ".")+"."+s.zone]; n != nil && len(n.addresses) > 0 {
		return fmt.Sprintf("what %s offers as %s has no port with the name and protocol %s", c.displayName(), what,
			strings.Join(port, "/"))
	}
	if r := s.findRefused(what); r != nil {
		return fmt.Sprintf("the mesh service %s/%s at %s that %s offers is not accepted: %s", r.Namespace, r.Name, r.Address,
			c.displayName(), r.Reason)
	}
	if s.instead {
		return fmt.Sprintf("no service network of %s is routed here, and it offers no mesh service for %s",
			c.displayName(), what)
	}
	return fmt.Sprintf("%s offers no mesh service %s", c.displayName(), what)
}

// findRefused finds the refused offer with the name, or that stands for the service of the name; nil: there is none.
func (s *serviceNames) findRefused(what string) *mesh.RefusedOffer {
	for i := range s.refused {
		r := &s.refused[i]
		name := r.Name
		if s.instead {
			name = r.StandsFor
		}
		if name != "" && strings.EqualFold(r.Namespace+"/"+name, what) {
			return r
		}
	}
	return nil
}
