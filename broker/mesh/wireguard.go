package mesh

// What mode wireguard reads of links besides: the key of the peer, and the preshared key. The other modes ignore both.

import (
	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
)

// Keys are the keys that stand in secrets. The zero Keys: none is known.
type Keys struct {
	Own       PublicKey               // of this cluster
	Preshared map[string]PresharedKey // of links with spec.presharedKeySecretRef, by name; nil: nothing connects
}

// PresharedKey is what the secret of spec.presharedKeySecretRef has.
type PresharedKey struct {
	Key     SecretKey // zero: none can be used
	Problem string    // why the secret has no usable key now, and what to do, one line; empty: it has
}

// readKeys reads spec.publicKey and the preshared key of a link with a tunnel of its own. Behind a gateway, those of an
// object of the former broker, which wanted them there, too, mean nothing.
func (s *linkSet) readKeys(l *linkEntry) (p *Problem) {
	switch {
	case s.local.Mode != WireGuard:
		return nil
	case l.gateway != "":
		if l.spec.PublicKey != "" {
			s.reports.addNote(l.Name, "spec.publicKey has no meaning with spec.gatewayLink: that link has the connection")
		}
		return nil
	}
	text := l.spec.PublicKey
	if text == "" {
		return invalid("spec.publicKey is missing: mode wireguard needs the key of %s; "+
			"set it to status.publicKey of the LocalLink there, or to what wg pubkey prints there", l.Cluster)
	}
	var err error
	if l.key, err = ParsePublicKey(text); err != nil {
		return invalid("spec.publicKey %q: %v", text, err)
	}
	if l.key == s.keys.Own {
		return invalid("spec.publicKey %s is the key of this cluster: set the key of %s, status.publicKey of the "+
			"LocalLink there", text, l.Cluster)
	}
	if l.preshared, p = s.readPresharedKey(l); p != nil {
		return p
	}
	return s.checkSharedKey(l)
}

// readPresharedKey reads spec.presharedKey, or what the secret of spec.presharedKeySecretRef has. Messages never have
// the key.
func (s *linkSet) readPresharedKey(l *linkEntry) (key SecretKey, p *Problem) {
	text, ref := l.spec.PresharedKey, l.spec.PresharedKeySecretRef
	switch {
	case text != "" && ref != nil:
		return key, invalid("spec.presharedKey and spec.presharedKeySecretRef are both set: remove one of them")
	case text != "":
		key, err := ParseSecretKey(text)
		if err != nil {
			return key, invalid("spec.presharedKey: %v", err)
		}
		return key, nil
	case ref == nil || s.keys.Preshared == nil:
		return key, nil
	}
	found, ok := s.keys.Preshared[l.Name]
	switch {
	case !ok:
		return key, stale("spec.presharedKeySecretRef: secret %s was not read yet", ref.Name)
	case found.Key == SecretKey{}:
		return key, stale("spec.presharedKeySecretRef: %s", found.Problem)
	case found.Problem != "":
		s.reports.addNote(l.Name, "spec.presharedKeySecretRef: %s; the last usable key stays in use", found.Problem)
	}
	return found.Key, nil
}

// checkSharedKey refuses a link with the key of an older link, unless both can be one peer: a peer has one endpoint and
// one preshared key. A cluster in two meshes has two such links.
func (s *linkSet) checkSharedKey(l *linkEntry) *Problem {
	for _, other := range s.byAge {
		switch {
		case other.key != l.key || other.gateway != "":
			continue
		case other.host != l.host || other.port != l.port:
			return invalid("spec.publicKey %s is that of the older link %s, so both have one connection, but spec.endpoint "+
				"is %s here, and %s there: set the key of %s here, or the same endpoint in both",
				l.key, other.Name, l.spec.Endpoint, other.spec.Endpoint, l.Cluster)
		case other.preshared != l.preshared:
			return invalid("spec.publicKey %s is that of the older link %s, so both have one connection, but their preshared "+
				"keys differ: set the key of %s here, or the same preshared key in both", l.key, other.Name, l.Cluster)
		}
	}
	return nil
}

// PresharedKeyRef is the secret that has the preshared key of the link; nil: none has, or the link needs none.
func (l *Local) PresharedKeyRef(o *v1alpha1.KubeLink) *v1alpha1.SecretKeyRef {
	if l.Mode != WireGuard || isLocalLink(o) || o.Spec.GatewayLink != "" {
		return nil
	}
	return o.Spec.PresharedKeySecretRef
}
