package broker

// What peers announce of their clusters (advertise.go): checked as if a user had written it, and written to their
// KubeLinks, but never over what a user did write. There all the rest finds it, also after a restart.

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"
	"unicode"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

const (
	// announcedOwner owns what is written here, so that it can be told from what users write.
	announcedOwner = "kubelink-advertised"

	// Both together fit into a hello. Tokens of service accounts have about 1 KiB, a CA has 1 to 2.
	maxToken = 4 << 10
	maxCA    = 12 << 10
	// maxNote bounds what a peer can make us write to a status.
	maxNote = 200
)

// Keys of a secret with access to an API.
const (
	keyAPIToken = "token"
	keyAPICA    = "certificate-authority-data"
)

// facts is what a peer announces and can be used; zero: it does not, or cannot.
type facts struct {
	dnsIP, baseDomain string // as in spec.dns
	access            *link.APIInfo
}

// heard is what was found out about an announcement. Certificates are not to be parsed for each event.
type heard struct {
	announced *link.Announcement
	access    *link.APIInfo
	err       error
	note      string // as logged
}

// hear checks what the peer of a usable link announces; the note is what cannot be used. The result keeps what has been
// found out, for the next time.
func (old *heard) hear(s *mesh.State, spec *v1alpha1.KubeLinkSpec, a *link.Announcement, plain bool) (*heard, facts) {
	h := &heard{announced: a}
	if old != nil && old.announced == a {
		h.access, h.err = old.access, old.err
	} else if a.API != nil {
		h.access, h.err = checkAccess(a.API)
	}
	f := facts{access: h.access}
	var notes []string
	refuse := func(what string, err error) {
		notes = append(notes, "announced by the peer, but not used: "+short(what+": "+err.Error()))
	}
	if a.DNS != nil {
		if name := a.DNS.ClusterDomain; name != "" {
			if d, err := s.ClusterDomain(name); err != nil {
				refuse("its cluster domain "+quote(name), err)
			} else {
				f.baseDomain = strings.TrimSuffix(d, ".")
			}
		}
		if ip := a.DNS.Address; ip.IsValid() {
			if err := mesh.Routed(spec, ip); err != nil {
				refuse("the address of its DNS service "+ip.String(), err)
			} else {
				f.dnsIP = ip.String()
			}
		}
	}
	switch {
	case h.err != nil:
		refuse("access to its API", h.err)
	case h.access != nil && plain:
		f.access = nil
		refuse("access to its API", errors.New("without certificate anybody could announce it; set secret, or certfile, keyfile and cacertfile"))
	}
	h.note = join(notes...)
	return h, f
}

// quote shows a name that may be anything.
func quote(name string) string {
	if len(name) > 64 {
		name = name[:64] + "..."
	}
	return fmt.Sprintf("%q", name)
}

// short makes a line of a text that somebody else has a part in.
func short(text string) string {
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

// checkAccess checks access to an API and returns it with nothing but the certificates as CA.
func checkAccess(a *link.APIInfo) (*link.APIInfo, error) {
	if len(a.Token) == 0 || len(a.Token) > maxToken {
		return nil, fmt.Errorf("a token has 1 to %d characters, this one has %d", maxToken, len(a.Token))
	}
	// RFC 6750, section 2.1.
	if strings.IndexFunc(a.Token, func(c rune) bool {
		return !(c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || strings.ContainsRune("-._~+/=", c))
	}) >= 0 {
		return nil, errors.New("the token has characters that no token has")
	}
	if len(a.CACert) > maxCA {
		return nil, fmt.Errorf("the CA has %d bytes, %d is the limit", len(a.CACert), maxCA)
	}
	var ca bytes.Buffer
	for rest := a.CACert; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("the CA has something else in it than certificates: %s", quote(block.Type))
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return nil, fmt.Errorf("the CA: %w", err)
		}
		if err := pem.Encode(&ca, &pem.Block{Type: block.Type, Bytes: block.Bytes}); err != nil {
			return nil, err
		}
	}
	if ca.Len() == 0 {
		return nil, errors.New("the CA has no certificate in PEM form")
	}
	return &link.APIInfo{Token: a.Token, CACert: ca.Bytes()}, nil
}

// hearAll is hear for all links: the facts and the notes by link. What it refuses it logs once.
func (b *Broker) hearAll(items []v1alpha1.KubeLink, s *mesh.State) (map[string]facts, map[string]string) {
	all, notes, next := map[string]facts{}, map[string]string{}, map[string]*heard{}
	if b.bridge == nil {
		return all, notes
	}
	announced := map[string]*link.Announcement{}
	for _, st := range b.bridge.Statuses() {
		announced[st.Link] = st.Announced
	}
	for i := range items {
		name := items[i].Name
		a := announced[name]
		if a == nil {
			continue // not served, behind a gateway, or not connected yet
		}
		h, f := b.heard[name].hear(s, &items[i].Spec, a, b.creds.Unencrypted())
		if h.note != "" && (b.heard[name] == nil || b.heard[name].note != h.note) {
			b.log.Warn("a peer announces what cannot be used", "link", name, "problem", h.note)
		}
		all[name], notes[name], next[name] = f, h.note, h
	}
	b.heard = next
	return all, notes
}

// apiSecret is where announced access to the API of a link's cluster is kept.
func (c *Config) apiSecret(link string) corev1.SecretReference {
	return corev1.SecretReference{Namespace: c.Namespace, Name: mesh.AnnouncedSecretName(link)}
}

// ownership tells whose the fields of an object are.
type ownership struct{ ours, others *fieldpath.Set }

func fieldOwnership(o client.Object) ownership {
	w := ownership{&fieldpath.Set{}, &fieldpath.Set{}}
	for _, m := range o.GetManagedFields() {
		set := &fieldpath.Set{}
		if m.FieldsV1 == nil || m.Subresource != "" || set.FromJSON(m.FieldsV1.GetRawReader()) != nil {
			continue
		}
		if m.Manager == announcedOwner {
			w.ours = w.ours.Union(set)
		} else {
			w.others = w.others.Union(set)
		}
	}
	return w
}

// free tells whether a field is not a user's: we wrote it and nobody else did, or nobody at all did.
func (w ownership) free(empty bool, path ...any) bool {
	p := fieldpath.MakePathOrDie(path...)
	return !w.others.Has(p) && (empty || w.ours.Has(p))
}

// adopt says how a KubeLink takes over what its peer announces: fields is the spec to apply, nil if nothing is to be
// changed; secret says that access to the API is ours to keep in the secret. What is not announced, or not any more, stays as
// it is.
func (f facts) adopt(l *v1alpha1.KubeLink, secret corev1.SecretReference) (fields map[string]any, access bool) {
	owners := fieldOwnership(l)
	now := l.Spec.DNS
	if now == nil {
		now = &v1alpha1.KubeLinkDNS{}
	}
	changed := false
	dns := map[string]any{}
	for _, field := range []struct{ name, is, want string }{
		{"dnsIP", now.DNSIP, f.dnsIP},
		{"baseDomain", now.BaseDomain, f.baseDomain},
	} {
		if !owners.free(field.is == "", "spec", "dns", field.name) {
			continue
		}
		value := field.want
		if value == "" {
			value = field.is
		}
		if value != "" {
			dns[field.name] = value
			changed = changed || value != field.is
		}
	}
	spec := map[string]any{}
	if len(dns) > 0 {
		spec["dns"] = dns
	}
	if is := l.Spec.APIAccess; owners.free(is == nil, "spec", "apiAccess") {
		want := is
		if f.access != nil {
			want, access = &secret, true
		}
		if want != nil {
			spec["apiAccess"] = map[string]any{"namespace": want.Namespace, "name": want.Name}
			changed = changed || !reflect.DeepEqual(want, is)
		}
	}
	if !changed {
		return nil, access
	}
	return spec, access
}

// kept is the last attempt to write a link's secret.
type kept struct {
	access *link.APIInfo
	owner  string // UID of the KubeLink
	at     time.Time
	note   string // why it failed
}

const (
	// secretRefresh is how often secrets are written that should be there unchanged.
	secretRefresh = 10 * time.Minute
	// secretRetry is how often it is tried to write a secret that the API server refuses.
	secretRetry = time.Minute
)

// announced writes what the peer of a link announces, where it differs. The note says what the API server refuses.
func (w *writer) announced(ctx context.Context, l linkOutcome) (note string, err error) {
	ref := w.b.cfg.apiSecret(l.object.Name)
	spec, access := l.facts.adopt(l.object, ref)
	if access {
		if note, err = w.keepSecret(ctx, l.object, ref, l.facts.access); err != nil {
			return "", err
		}
		if note != "" { // no reference to what is not there; the rest is written
			without := l.facts
			without.access = nil
			spec, _ = without.adopt(l.object, ref)
		}
	}
	if spec == nil {
		return note, nil
	}
	// The version makes it fail, and not create or overwrite anything, where the object is not the one any more that this
	// was decided on. Nothing is forced, for the same reason.
	apply := &unstructured.Unstructured{Object: map[string]any{"spec": spec}}
	apply.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("KubeLink"))
	apply.SetName(l.object.Name)
	apply.SetUID(l.object.UID)
	apply.SetResourceVersion(l.object.ResourceVersion)
	err = w.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(apply), client.FieldOwner(announcedOwner))
	if apierrors.IsInvalid(err) { // it would be so the next time
		return join(note, "what the peer announces is refused by the API server: "+short(oneLine(err))), nil
	}
	if err == nil {
		w.b.log.Info("the link takes over what its peer announces", "link", l.object.Name, "dns", spec["dns"], "apiAccess", spec["apiAccess"])
	}
	return note, err
}

// keepSecret writes the secret of a link. It is not read: whose its fields are, the API server knows.
func (w *writer) keepSecret(ctx context.Context, l *v1alpha1.KubeLink, ref corev1.SecretReference, access *link.APIInfo) (note string, err error) {
	last := w.kept[l.Name]
	age := time.Since(last.at)
	if reflect.DeepEqual(last.access, access) && last.owner == string(l.UID) && (last.note == "" && age < secretRefresh || last.note != "" && age < secretRetry) {
		return last.note, nil
	}
	secret := corev1ac.Secret(ref.Name, ref.Namespace).
		WithLabels(map[string]string{"app.kubernetes.io/managed-by": "kubelink"}).
		WithOwnerReferences(metav1ac.OwnerReference().
			WithAPIVersion(v1alpha1.GroupVersion.String()).WithKind("KubeLink").WithName(l.Name).WithUID(l.UID)).
		WithType(corev1.SecretTypeOpaque).
		WithData(map[string][]byte{keyAPIToken: []byte(access.Token), keyAPICA: access.CACert})
	err = w.client.Apply(ctx, secret, client.FieldOwner(announcedOwner))
	switch {
	case apierrors.IsForbidden(err):
		note = fmt.Sprintf("the peer announces access to its API, but kubelink may not keep it: allow it to create and patch secrets in namespace %s, as deploy/overlays/advertisement does, or set spec.apiAccess", ref.Namespace)
		if !w.deniedSecrets {
			w.deniedSecrets = true
			w.b.log.Warn("peers announce access to their API, but kubelink may not keep it: allow it to create and patch secrets, as deploy/overlays/advertisement does, or set spec.apiAccess of the links", "namespace", ref.Namespace)
		}
	case apierrors.IsConflict(err), apierrors.IsInvalid(err):
		note = fmt.Sprintf("the peer announces access to its API, but secret %s/%s was written by somebody else: delete it, or set spec.apiAccess", ref.Namespace, ref.Name)
		w.b.log.Warn("cannot keep the access to its API that a peer announces", "link", l.Name, "error", err)
	case err != nil:
		return "", fmt.Errorf("secret %s/%s: %w", ref.Namespace, ref.Name, err)
	}
	w.kept[l.Name] = kept{access, string(l.UID), time.Now(), note}
	return note, nil
}
