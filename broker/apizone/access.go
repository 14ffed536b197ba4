package apizone

// Credentials for the API servers of other clusters: the secrets that KubeLinks name in spec.apiAccess.
// Those in the broker's own namespace come from the cache. Others are read directly, now and then, as
// nobody wants to give the broker all secrets of the cluster to watch.

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Keys of a secret for API access.
const (
	keyToken  = corev1.ServiceAccountTokenKey
	keyCAData = "certificate-authority-data"
)

// Config is what the credentials depend on.
type Config struct {
	Namespace   string // of the broker, and of secrets without another one
	TLSSecret   string // name of the secret with the broker's certificate, which the cache has, too
	Propagation mesh.Propagation
}

// FindAccesses finds the credentials for each cluster whose names come from its API. Those for the local one are own.
func (s *Secrets) FindAccesses(ctx context.Context, zones []mesh.Zone, own *rest.Config) (all []Access) {
	elsewhere := map[types.NamespacedName]bool{}
	for _, z := range zones {
		for _, c := range z.Clusters {
			if !c.API.Use {
				continue
			}
			a := Access{link: c.Link, apiSource: apiSource{zone: c.Name, clusterDomain: c.ClusterDomain, server: c.API.Server}}
			if c.API.Server == "" {
				a.own = own
				all = append(all, a)
				continue
			}
			key := types.NamespacedName{Namespace: cmp.Or(c.API.Namespace, s.cfg.Namespace), Name: c.API.Secret}
			a.secret = key.String()
			// By name only: the namespace of the broker may have been another one.
			a.announced = key.Name == mesh.AnnouncedSecretName(c.Link)
			var secret *corev1.Secret
			if s.cached != nil && key.Namespace == s.cfg.Namespace {
				secret = &corev1.Secret{}
				a.err = s.cached.Get(ctx, key, secret)
			} else {
				elsewhere[key] = true
				secret, a.err = s.get(key)
			}
			if a.err == nil {
				a.token, a.ca, a.err = apiCredentials(secret.Data)
			}
			if a.err != nil {
				a.err = secretError(key, a.err)
			}
			all = append(all, a)
		}
	}
	s.want(elsewhere)
	return all
}

// secretError says what to do.
func secretError(key types.NamespacedName, err error) error {
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("secret %s does not exist: create it with the keys %s and %s", key, keyToken, keyCAData)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("secret %s: the broker may not read it: allow its service account to get, list and watch secrets in its own namespace, or to get this one", key)
	}
	return fmt.Errorf("secret %s: %w", key, err)
}

// apiCredentials reads token and CA. The CA is in PEM form, or in base64 of that as in kubeconfigs.
func apiCredentials(data map[string][]byte) (token, ca string, err error) {
	token = string(bytes.TrimSpace(data[keyToken]))
	if token == "" {
		return "", "", fmt.Errorf("key %s is missing", keyToken)
	}
	text := bytes.TrimSpace(data[keyCAData])
	if len(text) == 0 {
		return "", "", fmt.Errorf("key %s is missing", keyCAData)
	}
	if block, _ := pem.Decode(text); block == nil {
		// The decoder passes over line ends.
		if text, err = base64.StdEncoding.DecodeString(string(text)); err != nil {
			text = nil
		}
	}
	if !x509.NewCertPool().AppendCertsFromPEM(text) {
		return "", "", fmt.Errorf("key %s has no certificate in PEM form, or in base64 of that", keyCAData)
	}
	return token, string(text), nil
}

// CachedSecrets is what the cache of a manager shall have of secrets: with dns-propagation kubernetes all of
// the broker's namespace. It is not ok where that is not wanted, or the broker is not allowed to see them.
func CachedSecrets(ctx context.Context, api *rest.Config, cfg Config, log *slog.Logger) (by cache.ByObject, ok bool, err error) {
	if cfg.Propagation != mesh.PropagateKubernetes {
		return by, false, nil
	}
	c, err := client.New(api, client.Options{})
	if err != nil {
		return by, false, err
	}
	if err := c.List(ctx, &corev1.SecretList{}, client.InNamespace(cfg.Namespace), client.Limit(1)); err != nil {
		if !apierrors.IsForbidden(err) {
			return by, false, err
		}
		// Links and names of other sources shall not suffer.
		log.Warn("secrets for API access are read one by one: the overlay kubernetes-dns allows to watch them", "error", err)
		return by, false, nil
	}
	return cache.ByObject{
		Namespaces: map[string]cache.Config{cfg.Namespace: {}},
		Transform:  cfg.stripSecret,
	}, true, nil
}

// stripSecret keeps of secrets what the broker needs: there are large ones, and others' credentials.
func (cfg Config) stripSecret(obj any) (any, error) {
	s, ok := obj.(*corev1.Secret)
	if !ok || s.Name == cfg.TLSSecret {
		return obj, nil
	}
	s.ManagedFields = nil
	delete(s.Annotations, corev1.LastAppliedConfigAnnotation)
	maps.DeleteFunc(s.Data, func(key string, _ []byte) bool { return key != keyToken && key != keyCAData })
	return s, nil
}

const (
	// readInterval is how often secrets are read that are not in the cache.
	readInterval = 30 * time.Second
	// readTimeout bounds the reading of one.
	readTimeout = 5 * time.Second
)

var errPending = errors.New("it is being read")

// Secrets reads secrets that are not in the cache, in the background: an API server that hangs
// must not hold up the reconciler.
type Secrets struct {
	cfg    Config
	cached client.Reader // has all secrets of cfg.Namespace; nil: no cache does
	direct client.Reader
	wake   func()

	mu     sync.Mutex
	known  map[types.NamespacedName]secretResult
	signal chan struct{}
}

type secretResult struct {
	secret *corev1.Secret
	err    error
}

// version differs where something is to be done.
func (r secretResult) version() string {
	if r.err != nil {
		return r.err.Error()
	}
	return r.secret.ResourceVersion
}

// NewSecrets takes a reader of a cache that has all secrets of the broker's namespace, nil if there is none, and a reader
// of the API server. It calls wake when a secret has changed that it was asked for.
func NewSecrets(cfg Config, cached, direct client.Reader, wake func()) *Secrets {
	return &Secrets{cfg: cfg, cached: cached, direct: direct, wake: wake, signal: make(chan struct{}, 1)}
}

// get returns a secret as it was read last.
func (s *Secrets) get(key types.NamespacedName) (*corev1.Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := s.known[key]; ok {
		return r.secret, r.err
	}
	return nil, errPending
}

// want tells which secrets to read from now on.
func (s *Secrets) want(keys map[types.NamespacedName]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := make(map[types.NamespacedName]secretResult, len(keys))
	for key := range keys {
		r, ok := s.known[key]
		if !ok {
			r.err = errPending
			select {
			case s.signal <- struct{}{}:
			default:
			}
		}
		known[key] = r
	}
	s.known = known
}

// Start implements manager.Runnable.
func (s *Secrets) Start(ctx context.Context) error {
	ticker := time.NewTicker(readInterval)
	defer ticker.Stop()
	for {
		s.read(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-s.signal:
		case <-ticker.C:
		}
	}
}

func (s *Secrets) read(ctx context.Context) {
	s.mu.Lock()
	keys := maps.Clone(s.known)
	s.mu.Unlock()
	changed := false
	for key, old := range keys {
		var r secretResult
		secret := &corev1.Secret{}
		get, cancel := context.WithTimeout(ctx, readTimeout)
		if r.err = s.direct.Get(get, key, secret); r.err == nil {
			r.secret = secret
		}
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case r.err != nil && !apierrors.IsNotFound(r.err) && !apierrors.IsForbidden(r.err) && old.secret != nil:
			continue // what was read is better than nothing
		}
		s.mu.Lock()
		if _, wanted := s.known[key]; wanted {
			s.known[key] = r
		}
		s.mu.Unlock()
		changed = changed || r.version() != old.version()
	}
	if changed {
		s.wake()
	}
}
