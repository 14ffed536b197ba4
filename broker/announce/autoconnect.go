package announce

// auto-connect: KubeLinks for authenticated peers that have none. Such a link routes the peer's address in the mesh.
// The service network that the peer announces it routes only where the stanza allows it.

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// UnknownPeers are authenticated peers without a link, seen by the dataplane.
type UnknownPeers struct {
	mu    sync.Mutex                  // guards peers
	peers map[string]link.UnknownPeer // by address

	// The fields below belong to MakeLinks.
	made   []madeLink // lately; the cache may not have them yet
	logged time.Time  // when a refused peer was logged
}

// madeLink counts as a link until the cache has it, or it was not created after all.
type madeLink struct {
	v1alpha1.KubeLink
	until time.Time
}

const madeLinkTime = 30 * time.Second

// MaxUnknown bounds the peers that wait for a link, and maxUnknownOfName those with the same certificate: one for each
// mesh that two clusters share. A peer that is left out dials again.
const (
	MaxUnknown       = 256
	maxUnknownOfName = 8
)

// Add notes a peer. It never blocks.
func (u *UnknownPeers) Add(p link.UnknownPeer) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.peers == nil {
		u.peers = map[string]link.UnknownPeer{}
	}
	same := 0
	for _, o := range u.peers {
		if slices.Equal(o.Names, p.Names) {
			same++
		}
	}
	if len(u.peers) < MaxUnknown && same < maxUnknownOfName {
		u.peers[p.Address.String()] = p
	}
}

// logRefused logs a peer that gets no link, once per second: peers come again and again. more is the number of the
// other ones.
func (u *UnknownPeers) logRefused(p *link.UnknownPeer, problem string, more int, log *slog.Logger) {
	if time.Since(u.logged) < time.Second {
		return
	}
	u.logged = time.Now()
	names := make([]string, len(p.Names))
	for i, n := range p.Names {
		names[i] = quote(n)
	}
	log.Warn("a peer that connected by itself gets no link", "names", names[:min(len(names), 10)], "remote", p.Remote,
		"problem", shorten(problem), "more", more)
}

// Policy is what this cluster takes over from peers.
type Policy struct {
	Local       *mesh.Local
	AutoConnect bool           // authenticated peers without link get one
	Networks    []netip.Prefix // in which such links may have a service network
	IgnoreFacts bool           // what peers announce of their names and APIs is not taken over
	Unencrypted bool           // peers are not authenticated
}

// allowsNetwork tells whether a link made for a peer may have the service network.
func (p *Policy) allowsNetwork(n netip.Prefix) bool {
	return slices.ContainsFunc(p.Networks, func(outer netip.Prefix) bool {
		return n.IsValid() && outer.Bits() <= n.Bits() && outer.Contains(n.Addr())
	})
}

// MakeLinks makes links for the peers that belong to one of our meshes and have none. What a peer announces
// is not trusted: a certificate gets one link, and no link that cannot be used or takes anything from other links or
// from the node.
func (u *UnknownPeers) MakeLinks(
	objects mesh.Objects, s *mesh.State, policy *Policy, log *slog.Logger,
) map[string]*v1alpha1.KubeLink {
	u.mu.Lock()
	peers := u.peers
	u.peers = nil
	u.mu.Unlock()
	result := map[string]*v1alpha1.KubeLink{}
	if !policy.AutoConnect || len(peers) == 0 { // auto-connect may have been switched off
		return result
	}
	items := slices.Clone(objects.Links)
	u.made = slices.DeleteFunc(u.made, func(m madeLink) bool {
		return time.Now().After(m.until) || containsLink(items, m.Name)
	})
	for _, m := range u.made {
		items = append(items, m.KubeLink)
	}
	var refused link.UnknownPeer
	var problems []string
	for _, p := range peers {
		for i := range s.Meshes {
			l, ok := newPeerLink(&p, &s.Meshes[i], items)
			if policy.allowsNetwork(p.ServiceCIDR) {
				l.Spec.CIDR = p.ServiceCIDR.String()
			}
			if !ok || containsLink(items, l.Name) {
				continue
			}
			all := append(items, l)
			objects.Links = all
			if problem, bad := mesh.Build(objects, *policy.Local).Problems[l.Name]; bad {
				refused, problems = p, append(problems, problem.Message)
				continue
			}
			items, u.made = all, append(u.made, madeLink{l, time.Now().Add(madeLinkTime)})
			made := l
			made.CreationTimestamp = metav1.Time{}
			result[l.Name] = &made
		}
	}
	if n := len(problems); n > 0 {
		u.logRefused(&refused, problems[n-1], n-1, log)
	}
	return result
}

func containsLink(items []v1alpha1.KubeLink, name string) bool {
	return slices.ContainsFunc(items, func(o v1alpha1.KubeLink) bool { return o.Name == name })
}

// newPeerLink makes the KubeLink of a peer in a mesh. It is not ok for a peer of another mesh, for a peer that no name
// leads to, and for a certificate that has a link there.
func newPeerLink(p *link.UnknownPeer, m *mesh.Mesh, items []v1alpha1.KubeLink) (l v1alpha1.KubeLink, ok bool) {
	local := m.Addresses.SameFamily(p.Address.Addr())
	if local.Masked() != p.Address.Masked() || p.AdvertisedPort == 0 {
		return l, false
	}
	host := ""
	for _, name := range p.Names {
		h, _, err := mesh.Endpoint(name, p.AdvertisedPort)
		if err != nil {
			continue // a wildcard, for example
		}
		if hasEndpoint(items, m.Name, h, p.AdvertisedPort) {
			return l, false
		}
		if host == "" {
			host = h
		}
	}
	if host == "" {
		return l, false
	}
	cluster := strings.NewReplacer(".", "-", ":", "-").Replace(p.Address.Addr().StringExpanded())
	l.Name = mesh.ObjectName(m.Name, cluster)
	l.Annotations = map[string]string{v1alpha1.AnnotationAutoConnect: "true"}
	l.CreationTimestamp = metav1.Now() // the youngest link wins over no other one
	l.Spec.ClusterAddress = p.Address.String()
	l.Spec.Endpoint = net.JoinHostPort(host, fmt.Sprint(p.AdvertisedPort))
	return l, true
}

// hasEndpoint says whether a link of the mesh has that endpoint host.
func hasEndpoint(items []v1alpha1.KubeLink, meshName, host string, port uint16) bool {
	return slices.ContainsFunc(items, func(o v1alpha1.KubeLink) bool {
		other, _, err := mesh.Endpoint(o.Spec.Endpoint, port)
		in, _ := mesh.LinkName(o.Name)
		return err == nil && other == host && in == meshName
	})
}
