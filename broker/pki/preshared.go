package pki

// Preshared keys of mode wireguard that stand in secrets (spec.presharedKeySecretRef of KubeLinks).

import (
	"bytes"
	"cmp"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// SecretSource reads secrets in the background.
type SecretSource interface {
	// SetWanted says which secrets are read from now on.
	SetWanted(map[types.NamespacedName]bool)
	// Lookup returns a secret as it was read last; not ok: it is being read for the first time.
	Lookup(types.NamespacedName) (secret *corev1.Secret, ok bool, err error)
}

// presharedTimeout is how long links wait for the first look at a secret.
const presharedTimeout = 5 * time.Second

// PresharedKeys remembers the last usable keys. The zero value is ready. It has one user at a time.
type PresharedKeys struct {
	last  map[v1alpha1.SecretKeyRef]mesh.SecretKey
	since time.Time // when the wait began; zero: there is none
}

// Read returns the preshared keys of links that have them in secrets. pending says that a secret is being read for the
// first time: without its key, a link that works would stop.
func (p *PresharedKeys) Read(
	source SecretSource, namespace string, local *mesh.Local, links []v1alpha1.KubeLink, now time.Time,
) (keys map[string]mesh.PresharedKey, pending bool) {
	keys = map[string]mesh.PresharedKey{}
	wanted := map[types.NamespacedName]bool{}
	refs := map[string]v1alpha1.SecretKeyRef{} // by link
	for i := range links {
		if ref := local.PresharedKeyRef(&links[i]); ref != nil {
			full := v1alpha1.SecretKeyRef{Name: ref.Name, Namespace: cmp.Or(ref.Namespace, namespace), Key: ref.Key}
			refs[links[i].Name] = full
			wanted[types.NamespacedName{Namespace: full.Namespace, Name: full.Name}] = true
		}
	}
	source.SetWanted(wanted)
	last := map[v1alpha1.SecretKeyRef]mesh.SecretKey{} // without the ones that no link has any more
	for name, ref := range refs {
		at := types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}
		secret, ok, err := source.Lookup(at)
		key := p.last[ref]
		switch {
		case !ok:
			pending = pending || key == mesh.SecretKey{}
			err = fmt.Errorf("secret %s is being read", at)
		case err != nil:
			err = explainSecret(at, err)
		default:
			var fresh mesh.SecretKey
			if fresh, err = parsePreshared(at, ref.Key, secret); err == nil {
				key = fresh
			}
		}
		found := mesh.PresharedKey{Key: key}
		if err != nil {
			found.Problem = err.Error()
		}
		keys[name], last[ref] = found, key
	}
	p.last = last
	if !pending {
		p.since = time.Time{}
	} else if p.since.IsZero() {
		p.since = now
	}
	return keys, pending && now.Sub(p.since) < presharedTimeout
}

// parsePreshared finds the preshared key in a secret. Errors never have it.
func parsePreshared(at types.NamespacedName, name string, secret *corev1.Secret) (mesh.SecretKey, error) {
	text := bytes.TrimSpace(secret.Data[name])
	if len(text) == 0 {
		return mesh.SecretKey{}, fmt.Errorf("secret %s has no key %s: add it with the output of wg genpsk", at, name)
	}
	key, err := mesh.ParseSecretKey(string(text))
	if err != nil {
		return key, fmt.Errorf("key %s of secret %s: %w", name, at, err)
	}
	return key, nil
}

// explainSecret says what to do about a secret that cannot be read.
func explainSecret(at types.NamespacedName, err error) error {
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("secret %s does not exist: create it with the output of wg genpsk", at)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("secret %s: the broker may not read it: create it if it does not exist, and allow its service "+
			"account to get it", at)
	}
	return fmt.Errorf("secret %s: %w", at, err)
}
