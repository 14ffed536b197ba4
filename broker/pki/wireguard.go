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
			s.keyChanged = time.Now()
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
		return mesh.SecretKey{}, errors.New("it is being written: the log says what keeps the broker from doing so")
	}
	return key, nil
}

// keyNoteTime is how long links stay Up, at most, with a key that their peers do not know any more.
const keyNoteTime = 3 * time.Minute

// KeyNote says what a key that has changed asks of peers, as long as some link does not work with it; empty: nothing.
// The status of a LocalLink tells the key that peers were to have before.
func (s *Store) KeyNote(links []v1alpha1.KubeLink, statuses []link.Status, now time.Time) string {
	own := s.PublicKey()
	if own == (mesh.PublicKey{}) {
		return ""
	}
	up, told := true, own.String()
	for i := range links {
		if st := &links[i].Status; st.PublicKey != "" && st.PublicKey != told && s.keyChanged.IsZero() {
			s.keyChanged = now
		}
	}
	for i := range statuses {
		up = up && statuses[i].State == link.Up
	}
	if s.keyChanged.IsZero() || up && now.Sub(s.keyChanged) > keyNoteTime {
		s.keyChanged = time.Time{}
		return ""
	}
	return "the key of this cluster has changed: set spec.publicKey of the links of other clusters to this one to " +
		told
}
