package announce

// What peers announce of their clusters, and which of it can be used.

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

const (
	// Both together fit into a hello. Tokens of service accounts have about 1 KiB, a CA has 1 to 2.
	MaxToken = 4 << 10  // bytes of a token
	MaxCA    = 12 << 10 // bytes of a CA in PEM form

	// maxNote bounds, in bytes, what a peer can make the broker write to a status.
	maxNote = 200
	// maxQuote bounds, in bytes, how much of a peer's name or type a note shows.
	maxQuote = 64
)

// Facts are what a peer announces and can be used; zero: it does not announce it, or it cannot be used.
type Facts struct {
	cidr              string // as in spec.cidr; only of a link made for the peer
	dnsIP, baseDomain string // as in spec.dns
	access            *link.APIInfo
}

// Received is what a link has from its peer.
type Received struct {
	Facts Facts
	Note  string // what cannot be used and why; one line, empty: all can be used
}

// Receiver checks the announcements of all peers. The zero value is ready.
type Receiver struct {
	last map[string]*receivedAnnouncement // by link
}

// receivedAnnouncement keeps what was found out about an announcement: parsing certificates for each event takes too
// long.
type receivedAnnouncement struct {
	announced *link.Announcement
	access    *link.APIInfo
	err       error  // why access cannot be used
	note      string // as logged
}

// ReceiveAll checks what the peers of links announce, by name of the link. It logs a note when it changes. Without
// encryption no API access is used.
func (r *Receiver) ReceiveAll(
	objects mesh.Objects, s *mesh.State, statuses []link.Status, policy *Policy, log *slog.Logger,
) map[string]Received {
	announced := map[string]*link.Announcement{}
	for _, st := range statuses {
		announced[st.Link] = st.Announced
	}
	links, networks := objects.Links, receiveNetworks(objects, announced, policy)
	all, next := map[string]Received{}, map[string]*receivedAnnouncement{}
	for i := range links {
		name := links[i].Name
		a := announced[name]
		if a == nil {
			continue // not served, behind a gateway, or not connected yet
		}
		last := r.last[name]
		got, facts := &receivedAnnouncement{}, Facts{} // it knows nothing of a: the policy may change
		if !policy.IgnoreFacts {
			got, facts = receiveAnnouncement(last, s, &links[i].Spec, a, policy.Unencrypted)
		}
		if n, ok := networks[name]; ok {
			facts.cidr, got.note = n.cidr, joinNotes(n.note, got.note)
		}
		if got.note != "" && (last == nil || last.note != got.note) {
			log.Warn("a peer announces what cannot be used", "link", name, "problem", got.note)
		}
		all[name], next[name] = Received{facts, got.note}, got
	}
	r.last = next
	return all
}

// receivedNetwork is the service network that a peer announces.
type receivedNetwork struct {
	cidr string // as in spec.cidr; empty: it is not taken over
	note string // why not
}

// receiveNetworks finds the service networks that peers announce of links which were made for them, where no user has
// given one. It takes those that the policy allows, and that take nothing from other links and from the node.
func receiveNetworks(
	objects mesh.Objects, announced map[string]*link.Announcement, policy *Policy,
) map[string]receivedNetwork {
	networks := map[string]receivedNetwork{}
	var trial []v1alpha1.KubeLink // with what is announced
	var candidates []*v1alpha1.KubeLink
	for i := range objects.Links {
		l := &objects.Links[i]
		a := announced[l.Name]
		if a == nil || !a.ServiceCIDR.IsValid() || !mesh.IsAutoLink(l) || l.Spec.CIDR == a.ServiceCIDR.String() ||
			!readOwnership(l).mayWrite(l.Spec.CIDR == "", "spec", "cidr") {
			continue
		}
		if !policy.allowsNetwork(a.ServiceCIDR) {
			networks[l.Name] = receivedNetwork{note: fmt.Sprintf("the service network %[1]s that the peer announces is not "+
				"routed: allow it with auto-connect %[1]s in the Corefile, or set spec.cidr", a.ServiceCIDR)}
			continue
		}
		if trial == nil {
			trial = slices.Clone(objects.Links)
		}
		trial[i].Spec.CIDR = a.ServiceCIDR.String()
		candidates = append(candidates, &trial[i])
	}
	if len(candidates) == 0 {
		return networks
	}
	objects.Links = trial
	problems := mesh.Build(objects, *policy.Local).Problems
	for _, l := range candidates {
		if p, bad := problems[l.Name]; bad {
			networks[l.Name] = receivedNetwork{note: "the service network that the peer announces is not routed: " +
				shorten(p.Message)}
			continue
		}
		networks[l.Name] = receivedNetwork{cidr: l.Spec.CIDR}
	}
	return networks
}

// joinNotes joins notes that are not empty.
func joinNotes(notes ...string) string {
	return strings.Join(slices.DeleteFunc(notes, func(n string) bool { return n == "" }), "; ")
}

// receiveAnnouncement checks what the peer of a usable link announces. It takes over from the last result, which may
// be nil, what has been found out about the same announcement.
func receiveAnnouncement(
	last *receivedAnnouncement, s *mesh.State, spec *v1alpha1.KubeLinkSpec, a *link.Announcement, unencrypted bool,
) (*receivedAnnouncement, Facts) {
	got := &receivedAnnouncement{announced: a}
	if last != nil && last.announced == a {
		got.access, got.err = last.access, last.err
	} else if a.API != nil {
		got.access, got.err = checkAccess(a.API)
	}
	var notes []string
	refuse := func(what string, err error) {
		notes = append(notes, "announced by the peer, but not used: "+shorten(what+": "+err.Error()))
	}
	facts := Facts{access: got.access}
	if a.DNS != nil {
		var err error
		if facts.baseDomain, err = checkDomain(s, a.DNS.ClusterDomain); err != nil {
			refuse("its cluster domain "+quote(a.DNS.ClusterDomain), err)
		}
		if facts.dnsIP, err = checkDNSAddress(spec, a.DNS.Address); err != nil {
			refuse("the address of its DNS service "+a.DNS.Address.String(), err)
		}
	}
	switch {
	case got.err != nil:
		refuse("access to its API", got.err)
	case got.access != nil && unencrypted:
		facts.access = nil
		refuse("access to its API", errors.New(
			"without certificate anybody could announce it; set secret, or certfile, keyfile and cacertfile"))
	}
	got.note = joinNotes(notes...)
	return got, facts
}

// checkDomain returns the domain as spec.dns has it; empty if there is none.
func checkDomain(s *mesh.State, name string) (string, error) {
	if name == "" {
		return "", nil
	}
	domain, err := s.ClusterDomain(name)
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(domain, "."), nil
}

// checkDNSAddress returns the address as spec.dns has it; empty if there is none.
func checkDNSAddress(spec *v1alpha1.KubeLinkSpec, address netip.Addr) (string, error) {
	if !address.IsValid() {
		return "", nil
	}
	if err := mesh.Routed(spec, address); err != nil {
		return "", err
	}
	return address.String(), nil
}

// checkAccess checks access to an API and returns it with nothing but the certificates as CA.
func checkAccess(a *link.APIInfo) (*link.APIInfo, error) {
	if len(a.Token) == 0 || len(a.Token) > MaxToken {
		return nil, fmt.Errorf("a token has 1 to %d characters, this one has %d", MaxToken, len(a.Token))
	}
	if strings.IndexFunc(a.Token, func(c rune) bool { return !isTokenChar(c) }) >= 0 {
		return nil, errors.New("the token has characters that no token has")
	}
	if len(a.CACert) > MaxCA {
		return nil, fmt.Errorf("the CA has %d bytes, %d is the limit", len(a.CACert), MaxCA)
	}
	certs, err := link.ParseBundle(a.CACert)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the CA: %w", err)
	case len(certs) == 0:
		return nil, errors.New("the CA has no certificate in PEM form")
	case !slices.ContainsFunc(certs, func(c *x509.Certificate) bool { return time.Now().Before(c.NotAfter) }):
		return nil, fmt.Errorf("the CA expired at %s", certs[0].NotAfter.UTC().Format(time.RFC3339))
	}
	var ca bytes.Buffer
	for _, c := range certs {
		if err := pem.Encode(&ca, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}); err != nil {
			return nil, err
		}
	}
	return &link.APIInfo{Token: a.Token, CACert: ca.Bytes()}, nil
}

// isTokenChar tells whether a bearer token may have the character (RFC 6750, section 2.1).
func isTokenChar(c rune) bool {
	return c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || strings.ContainsRune("-._~+/=", c)
}

// quote shows a name that may be anything.
func quote(name string) string {
	if len(name) > maxQuote {
		name = name[:maxQuote] + "..."
	}
	return fmt.Sprintf("%q", name)
}

// shorten makes a line of a text to which another party has contributed.
func shorten(text string) string {
	if len(text) > maxNote {
		text = strings.ToValidUTF8(text[:maxNote], "") + "..."
	}
	return strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return '?'
		}
		return c
	}, text)
}
