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

	data        map[string][]byte // of the certificate in use, by key of the secret; nil: none
	unencrypted bool              // the configuration asks for no certificate
	renewAt     time.Time         // when the broker is to renew the certificate; zero: never
}

// Usable tells whether links may be made.
func (s *Store) Usable() bool { return s.unencrypted || s.data != nil }

// Unencrypted tells whether links work without authentication and encryption.
func (s *Store) Unencrypted() bool { return s.unencrypted }

// RenewIn is the time until the broker has to renew the certificate.
func (s *Store) RenewIn() time.Duration {
	if s.renewAt.IsZero() {
		return leafLife
	}
	return max(time.Until(s.renewAt), time.Second)
}

// Refresh reads the source of a dataplane's certificate. It returns the credentials if they differ from the ones in
// use, else nil. After an error the ones in use stay in use.
func (s *Store) Refresh(ctx context.Context, reader client.Reader, cfg Config) (*link.Credentials, error) {
	s.Secret, s.Request, s.renewAt = nil, false, time.Time{}
	if !cfg.Configured() {
		if s.unencrypted {
			return nil, nil
		}
		s.unencrypted, s.data = true, nil
		return &link.Credentials{Unencrypted: true}, nil
	}
	s.unencrypted = false // from now on no link works in plain text, even if the certificate is missing
	data, err := s.readSource(ctx, reader, cfg)
	if err != nil {
		return nil, err
	}
	if reflect.DeepEqual(data, s.data) {
		return nil, nil
	}
	credentials, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.Location(), err)
	}
	s.data = data
	return credentials, nil
}

// readSource reads the files or the secret.
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
	return s.data, nil
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
