package apizone

// This file reads the secrets with credentials for the API servers of other clusters, and others that KubeLinks name.
// The cache of the manager has the secrets of the broker's own namespace, if it may watch them. The broker reads the
// secrets of other namespaces directly, now and then: no user wants to let it watch all secrets of the cluster.

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

const (
	// readInterval is how often the broker reads secrets that are not in the cache.
	readInterval = 30 * time.Second
	// readTimeout bounds the reading of one secret.
	readTimeout = 5 * time.Second
	// listTimeout bounds the question whether secrets may be listed.
	listTimeout = 20 * time.Second
)

// Config is what the broker's configuration says of secrets.
type Config struct {
	Namespace   string // of the broker, and of secrets for which a KubeLink names none
	TLSSecret   string // name of the secret with the broker's own certificate
	Propagation mesh.Propagation
}

// CachedSecrets is what the cache of a manager is to hold of secrets: with dns-propagation kubernetes, all of the
// broker's namespace. It is not ok with another dns-propagation, or when the broker cannot list them.
func CachedSecrets(ctx context.Context, api client.Reader, cfg Config, log *slog.Logger) (by cache.ByObject, ok bool) {
	if cfg.Propagation != mesh.PropagateKubernetes {
		return by, false
	}
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	if err := api.List(ctx, &corev1.SecretList{}, client.InNamespace(cfg.Namespace), client.Limit(1)); err != nil {
		// Links, and names of other sources, shall not suffer, whatever the reason is.
		log.Warn("secrets for API access are read one by one: the component kubernetes-dns allows to watch them",
			"error", err)
		return by, false
	}
	return cache.ByObject{
		Namespaces: map[string]cache.Config{cfg.Namespace: {}},
		Transform:  cfg.stripSecret,
	}, true
}

// stripSecret keeps of secrets what the broker needs: secrets can be large, and have credentials for other programs.
func (c Config) stripSecret(obj any) (any, error) {
	s, ok := obj.(*corev1.Secret)
	if !ok || s.Name == c.TLSSecret {
		return obj, nil
	}
	s.ManagedFields = nil
	delete(s.Annotations, corev1.LastAppliedConfigAnnotation)
	maps.DeleteFunc(s.Data, func(key string, _ []byte) bool { return key != mesh.KeyToken && key != mesh.KeyCA })
	return s, nil
}

var errPending = errors.New("it is being read")

// Secrets reads secrets. Its Start reads the uncached ones in the background: an API server that hangs must not hold
// up the reconciler.
type Secrets struct {
	cfg    Config
	cached client.Reader // has all secrets of cfg.Namespace; nil: no cache does
	direct client.Reader
	wake   func()
	signal chan struct{} // there is a new secret to read

	mu      sync.Mutex // guards results; Start does not hold it while it reads
	results map[types.NamespacedName]secretResult
}

// secretResult is how the last attempt to read a secret ended.
type secretResult struct {
	secret *corev1.Secret
	err    error
}

// describeVersion is another text whenever users of the secret have something to do.
func (r secretResult) describeVersion() string {
	if r.err != nil {
		return r.err.Error()
	}
	return r.secret.ResourceVersion
}

// NewSecrets takes a reader of a cache that has all secrets of the broker's namespace, nil if there is none, and a
// reader that asks the API server. Start calls wake when a secret has changed that is not in the cache.
func NewSecrets(cfg Config, cached, direct client.Reader, wake func()) *Secrets {
	return &Secrets{cfg: cfg, cached: cached, direct: direct, wake: wake, signal: make(chan struct{}, 1)}
}

func (s *Secrets) isCached(key types.NamespacedName) bool {
	return s.cached != nil && key.Namespace == s.cfg.Namespace
}

// getSecret returns a secret from the cache, or as Start read it last.
func (s *Secrets) getSecret(ctx context.Context, key types.NamespacedName) (*corev1.Secret, error) {
	if s.isCached(key) {
		secret := &corev1.Secret{}
		return secret, s.cached.Get(ctx, key, secret)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := s.results[key]; ok {
		return r.secret, r.err
	}
	return nil, errPending
}

// Lookup returns a secret as Start read it last, which no cache has; not ok: it is being read for the first time.
func (s *Secrets) Lookup(key types.NamespacedName) (secret *corev1.Secret, ok bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.results[key]
	return r.secret, ok && r.err != errPending, r.err
}

// SetWanted says which secrets Start reads from now on.
func (s *Secrets) SetWanted(keys map[types.NamespacedName]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	results := make(map[types.NamespacedName]secretResult, len(keys))
	for key := range keys {
		r, ok := s.results[key]
		if !ok {
			r.err = errPending
			select {
			case s.signal <- struct{}{}:
			default:
			}
		}
		results[key] = r
	}
	s.results = results
}

// Start implements manager.Runnable.
func (s *Secrets) Start(ctx context.Context) error {
	ticker := time.NewTicker(readInterval)
	defer ticker.Stop()
	for {
		s.readAll(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-s.signal:
		case <-ticker.C:
		}
	}
}

// readAll reads the secrets that are wanted.
func (s *Secrets) readAll(ctx context.Context) {
	s.mu.Lock()
	results := maps.Clone(s.results)
	s.mu.Unlock()
	changed := false
	for key, old := range results {
		r := s.readSecret(ctx, key)
		switch {
		case ctx.Err() != nil:
			return
		case r.err != nil && !apierrors.IsNotFound(r.err) && !apierrors.IsForbidden(r.err) && old.secret != nil:
			continue // the last result is better than nothing
		}
		s.mu.Lock()
		if _, wanted := s.results[key]; wanted {
			s.results[key] = r
		}
		s.mu.Unlock()
		changed = changed || r.describeVersion() != old.describeVersion()
	}
	if changed {
		s.wake()
	}
}

// readSecret asks the API server.
func (s *Secrets) readSecret(ctx context.Context, key types.NamespacedName) secretResult {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	secret := &corev1.Secret{}
	if err := s.direct.Get(ctx, key, secret); err != nil {
		return secretResult{err: err}
	}
	return secretResult{secret: secret}
}
