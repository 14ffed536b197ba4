package pki

// The store reads files or the secret and remembers which certificate is in use.

import (
	"context"
	"fmt"
	"os"
	"reflect"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/link"
)

// Store holds the credentials in use, and what the last Refresh wants to be written to the API. The zero value has no
// credentials: links cannot be made.
type Store struct {
	Secret  *corev1.Secret // to be written, created if it has no resourceVersion; nil: nothing is to be written
	Request bool           // the certificate service is to be asked (Config.CertificateRequest)

	used    *link.Credentials // the credentials in use; nil: none
	told    bool              // Refresh has returned them
	cfg     Config            // by which they were accepted
	data    map[string][]byte // their content, by key of the secret; nil: they are no certificate
	until   time.Time         // when they expire
	renewAt time.Time         // when the broker is to renew the certificate; zero: never

	// Of mode wireguard:
	keyChanged time.Time       // when the key became another one; zero: all peers know it
	awaited    map[string]bool // the links that are to work with it then; nil: not known yet
	compared   bool            // the first key was compared with the one that the LocalLinks had
}

// Usable tells whether links may be made.
func (s *Store) Usable() bool { return s.used != nil }

// Making tells whether the broker is writing the first key, or the first certificate, of this cluster.
func (s *Store) Making() bool { return s.Secret != nil && s.used == nil }

// Unencrypted tells whether links work without authentication and encryption.
func (s *Store) Unencrypted() bool { return s.used != nil && s.used.Unencrypted }

// Retell is for another dataplane: the next Refresh returns the credentials in use. Without encryption there are none
// afterwards.
func (s *Store) Retell() {
	if s.Unencrypted() {
		*s = Store{}
	}
	s.told = false
}

// RenewIn is the time until the broker has to renew the certificate.
func (s *Store) RenewIn() time.Duration {
	if s.renewAt.IsZero() {
		return leafLife
	}
	return max(time.Until(s.renewAt), time.Second)
}

// Refresh reads the source of a dataplane's certificate or key. It returns the credentials in use if they are new, or
// were not told yet, else nil. After an error the ones in use stay in use, and the error tells until when.
func (s *Store) Refresh(ctx context.Context, reader client.Reader, cfg Config) (*link.Credentials, error) {
	s.Secret, s.Request, s.renewAt = nil, false, time.Time{}
	if cfg.WireGuard != s.cfg.WireGuard { // what another mode has used is of no use
		*s = Store{}
	}
	var err error
	if cfg.WireGuard {
		err = s.replaceKey(ctx, reader, cfg)
	} else {
		err = s.replace(ctx, reader, cfg, time.Now())
	}
	if s.told || s.used == nil {
		return nil, err
	}
	s.told = true
	return s.used, err
}

// replace uses what the source has, if that is good.
func (s *Store) replace(ctx context.Context, reader client.Reader, cfg Config, now time.Time) error {
	if !cfg.Configured() {
		if !s.Unencrypted() {
			*s = Store{used: &link.Credentials{Unencrypted: true}}
		}
		return nil
	}
	if s.Unencrypted() { // from now on no link works in plain text, even if the certificate is missing
		s.used = nil
	}
	data, err := s.readSource(ctx, reader, cfg)
	if err == nil && (s.Secret != nil || reflect.DeepEqual(data, s.data) && cfg == s.cfg) {
		if now.After(s.until) {
			err = fmt.Errorf("%s: the certificate, or the CA that signed it, expired at %s and was not renewed: "+
				"peers refuse it", cfg.Location(), formatTime(s.until))
		}
		return err
	}
	if err == nil {
		next, until, judged := candidate{cfg, data, s.data}.judge(now)
		if judged == nil {
			s.used, s.told, s.cfg, s.data, s.until = next, false, cfg, data, until
			return nil
		}
		err = fmt.Errorf("%s: %w", cfg.Location(), judged)
	}
	switch {
	case s.used == nil:
		return err
	case now.After(s.until):
		return fmt.Errorf("%w; the certificate in use expired at %s: peers refuse it", err, formatTime(s.until))
	}
	return fmt.Errorf("%w; the certificate in use stays so, it is valid until %s", err, formatTime(s.until))
}

// readSource reads the files or the secret. With a secret to be written, there is nothing to use yet.
func (s *Store) readSource(ctx context.Context, reader client.Reader, cfg Config) (map[string][]byte, error) {
	if cfg.CertFile != "" {
		return readFiles(cfg)
	}
	var secret corev1.Secret
	err := reader.Get(ctx, types.NamespacedName{Namespace: cfg.Namespace, Name: cfg.Secret}, &secret)
	missing := apierrors.IsNotFound(err)
	if err != nil && !missing {
		return nil, err
	}
	switch {
	case cfg.SecretManageMode == ManageSelf && s.hasLostCA(&secret, cfg):
		return nil, fmt.Errorf("%s has no %s and %s any more, and peers trust this CA: put them back; "+
			"to have a new CA made, restart kubelink", cfg.Location(), keyCA, keyCAKey)
	case cfg.SecretManageMode == ManageSelf:
		if missing {
			secret = corev1.Secret{Type: corev1.SecretTypeTLS}
			secret.Namespace, secret.Name = cfg.Namespace, cfg.Secret
		}
		return s.manageSource(&secret, cfg)
	case cfg.SecretManageMode == ManageCert:
		s.Request = true
		if missing {
			return nil, fmt.Errorf("%s does not exist: waiting for the certificate service", cfg.Location())
		}
	case missing:
		return nil, fmt.Errorf("%s does not exist: create it with tls.crt, tls.key and ca.crt", cfg.Location())
	}
	return certificateData(&secret), nil
}

// hasLostCA tells whether the secret has no CA any more, while certificates of one are in use. A new CA would cut this
// cluster off from all peers.
func (s *Store) hasLostCA(secret *corev1.Secret, cfg Config) bool {
	return s.data != nil && s.cfg == cfg && len(secret.Data[keyCA]) == 0 && len(secret.Data[keyCAKey]) == 0
}

// manageSource renews the content of the secret where needed. A changed secret is used when the cache has it.
func (s *Store) manageSource(secret *corev1.Secret, cfg Config) (map[string][]byte, error) {
	changed, renewAt, err := ManageSecret(secret, cfg.DNSName, time.Now())
	s.renewAt = renewAt
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", cfg.Location(), err)
	case !changed:
		return certificateData(secret), nil
	}
	s.Secret = secret
	if s.data == nil {
		return nil, fmt.Errorf("%s is being written", cfg.Location())
	}
	return nil, nil
}

// certificateData leaves out the key of the CA: links do not need it.
func certificateData(secret *corev1.Secret) map[string][]byte {
	return map[string][]byte{keyCert: secret.Data[keyCert], keyKey: secret.Data[keyKey], keyCA: secret.Data[keyCA]}
}

// readFiles returns the contents of the configured files under the keys of a secret.
func readFiles(cfg Config) (map[string][]byte, error) {
	data := map[string][]byte{}
	for key, file := range map[string]string{keyCert: cfg.CertFile, keyKey: cfg.KeyFile, keyCA: cfg.CAFile} {
		if file == "" {
			continue
		}
		var err error
		if data[key], err = os.ReadFile(file); err != nil {
			return nil, err
		}
	}
	return data, nil
}
