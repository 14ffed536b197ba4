package mesh

// What other clusters say of themselves, whether a user wrote it into the KubeLink or the peer announced it.

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// ClusterDomain parses the domain that another cluster uses for itself, as spec.dns.baseDomain of its KubeLink. The
// domain comes back fully qualified.
func (s *State) ClusterDomain(name string) (string, error) {
	var domains []string
	for _, m := range s.Meshes {
		domains = append(domains, m.Domain)
	}
	return clusterDomain(name, domains)
}

// clusterDomain refuses names in a mesh domain: two clusters that say so of each other would ask each other without
// end, as each leads the mesh domain back to kubelink.
func clusterDomain(name string, meshDomains []string) (string, error) {
	d, err := ParseDomain(name)
	if err != nil {
		return "", err
	}
	for _, m := range meshDomains {
		if m != "" && InDomain(d, m) {
			return "", fmt.Errorf("it lies in the mesh domain %s, "+
				"but is the domain that the cluster uses for itself, such as cluster.local", TrimDot(m))
		}
	}
	return d, nil
}

// Routed returns an error if the address is not routed to the link of the KubeLink, which is usable.
func Routed(spec *v1alpha1.KubeLinkSpec, a netip.Addr) error {
	if p, err := ClusterAddress(spec.ClusterAddress); err == nil && p.Addr() == a {
		return nil
	}
	if p, err := parseNetwork(spec.CIDR); err == nil && p.Contains(a) {
		return nil
	}
	for _, e := range spec.Egress {
		if p, err := parseEgress(e); err == nil && p.Contains(a) {
			return nil
		}
	}
	return errors.New("it is not routed to this link; add it to spec.egress")
}

// Keys of a secret with access to an API server, announced by a peer or written by a user.
const (
	KeyToken = "token"                      // of a service account
	KeyCA    = "certificate-authority-data" // in PEM form
)

// AnnouncedSecret begins the names of secrets with access that peers have announced.
const AnnouncedSecret = "kubelink-api-"

// AnnouncedSecretName is the name of the secret with the access to its API that the peer of a link announces. A name
// longer than the API server allows becomes one with a hash.
func AnnouncedSecretName(link string) string {
	const maxName = 253
	name := AnnouncedSecret + link
	if len(name) > maxName {
		sum := sha256.Sum256([]byte(link))
		name = AnnouncedSecret + hex.EncodeToString(sum[:])
	}
	return name
}
