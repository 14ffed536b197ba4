package pki

// Mode wireguard: this cluster authenticates itself with a private key, which stands in a secret.

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// privateKeys are the keys of the secret that may have the private key: the former system read the first one, and its
// README named the second one, too.
var privateKeys = [...]string{"WireguardPrivateKey", "WireGuardPrivateKey"}

// PublicKey is the public key of this cluster in mode wireguard; zero: there is none.
func (s *Store) PublicKey() (none mesh.PublicKey) {
	if s.used == nil || s.used.PrivateKey == (mesh.SecretKey{}) {
		return none
	}
	return s.used.PrivateKey.Public()
}

// replaceKey uses the private key of the secret, if it is good.
func (s *Store) replaceKey(ctx context.Context, reader client.Reader, cfg Config) error {
	s.cfg = cfg
	key, err := s.readKeySecret(ctx, reader, cfg)
	switch {
	case err != nil && s.used != nil:
		return fmt.Errorf("%s: %w; the key in use stays so", cfg.Location(), err)
	case err != nil:
		return fmt.Errorf("%s: %w", cfg.Location(), err)
	case s.used == nil || s.used.PrivateKey != key:
		if s.used != nil {
			s.keyChanged, s.awaited = time.Now(), nil
		}
		s.used, s.told = &link.Credentials{PrivateKey: key}, false
	}
	return nil
}

// readKeySecret reads the private key. With secret-manage-mode self, a secret without one gets the key in use, as peers
// know it, or else a new one.
func (s *Store) readKeySecret(ctx context.Context, reader client.Reader, cfg Config) (key mesh.SecretKey, err error) {
	var secret corev1.Secret
	err = reader.Get(ctx, types.NamespacedName{Namespace: cfg.Namespace, Name: cfg.Secret}, &secret)
	missing := apierrors.IsNotFound(err)
	if err != nil && !missing {
		return key, err
	}
	key, err = parsePrivateKey(secret.Data)
	switch {
	case cfg.SecretManageMode == ManageSelf && errors.Is(err, errNoKey):
		if missing {
			secret = corev1.Secret{Type: corev1.SecretTypeOpaque}
			secret.Namespace, secret.Name = cfg.Namespace, cfg.Secret
		}
		return s.addPrivateKey(&secret)
	case missing:
		return key, fmt.Errorf("it does not exist: create it with the output of wg genkey as %s, "+
			"or set secret-manage-mode self", privateKeys[0])
	}
	return key, err
}

var errNoKey = fmt.Errorf("%s is missing: add it with the output of wg genkey, or set secret-manage-mode self",
	privateKeys[0])

// parsePrivateKey finds the private key in the data of a secret. Errors never have it.
func parsePrivateKey(data map[string][]byte) (key mesh.SecretKey, err error) {
	for _, name := range privateKeys {
		text := bytes.TrimSpace(data[name])
		if len(text) == 0 {
			continue
		}
		one, err := mesh.ParseSecretKey(string(text))
		if err != nil {
			return key, fmt.Errorf("%s: %w; replace it by the output of wg genkey", name, err)
		}
		if key != (mesh.SecretKey{}) && key != one {
			return mesh.SecretKey{}, fmt.Errorf("%s and %s are not the same: remove the one that peers do not know",
				privateKeys[0], privateKeys[1])
		}
		key = one
	}
	if key == (mesh.SecretKey{}) {
		return key, errNoKey
	}
	return key, nil
}

// addPrivateKey has the secret written with a key, and the rest as it is. A new key is used when the cache has it.
func (s *Store) addPrivateKey(secret *corev1.Secret) (key mesh.SecretKey, err error) {
	if s.used != nil {
		key = s.used.PrivateKey
	} else {
		rand.Read(key[:])
		key[0], key[31] = key[0]&248, key[31]&127|64 // as wg genkey does
	}
	if secret.Data == nil {
		secret.Data = map[string][]byte{}
	}
	secret.Data[privateKeys[0]] = []byte(key.Base64())
	s.Secret = secret
	if s.used == nil {
		return mesh.SecretKey{}, errors.New("it is being written; if that takes longer, the log says why")
	}
	return key, nil
}

// keyNoteTime is how long, at most, the note about a key waits for statuses that were made after the change.
const keyNoteTime = 3 * time.Minute

// KeyNote says what a key that has changed asks of peers, until the links that were Up before work with it, or all
// links where none was; empty: nothing. After a start, the status of a LocalLink tells which key peers were to have
// before.
func (s *Store) KeyNote(links []v1alpha1.KubeLink, statuses []link.Status, now time.Time) string {
	own := s.PublicKey()
	if own == (mesh.PublicKey{}) {
		return ""
	}
	for i := range links {
		if st := &links[i].Status; !s.compared && st.PublicKey != "" && st.PublicKey != own.String() {
			s.keyChanged = now
		}
	}
	s.compared = true
	if s.keyChanged.IsZero() {
		return ""
	}
	if s.awaited == nil {
		s.awaited = listConnected(links, statuses)
	}
	if !s.awaitsKey(statuses, now) {
		s.keyChanged, s.awaited = time.Time{}, nil
		return ""
	}
	return "the key of this cluster has changed: set spec.publicKey of the links of other clusters to this one to " +
		own.String()
}

// listConnected returns the links whose status was Up last, or all if there is none; nil: no link has a state yet.
func listConnected(links []v1alpha1.KubeLink, statuses []link.Status) (connected map[string]bool) {
	wasUp, all := map[string]bool{}, map[string]bool{}
	for i := range statuses {
		all[statuses[i].Link] = true
	}
	for i := range links {
		if l := &links[i]; all[l.Name] && l.Status.State == v1alpha1.StateUp {
			wasUp[l.Name] = true
		}
	}
	switch {
	case len(wasUp) > 0:
		return wasUp
	case len(all) > 0:
		return all
	}
	return nil
}

// awaitsKey tells whether a link is still to work with the new key. A link that is Up for longer than the cluster has
// the key shows what was before, for a moment.
func (s *Store) awaitsKey(statuses []link.Status, now time.Time) bool {
	recent := now.Sub(s.keyChanged) <= keyNoteTime
	for i := range statuses {
		st := &statuses[i]
		if s.awaited[st.Link] && (st.State != link.Up || recent && !st.Since.After(s.keyChanged)) {
			return true
		}
	}
	return s.awaited == nil && recent
}
