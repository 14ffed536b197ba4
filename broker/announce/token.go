// Package announce has what clusters tell each other of themselves: how their names are looked up
// (dns-advertisement), and access to their APIs (service-account). The dataplane carries it. This end finds out what
// to tell, checks what peers tell as if a user had written it, and writes that to their KubeLinks, but never over
// what a user wrote.
package announce

// The token that this cluster announces.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/mandelsoft/kubelink/broker/link"
)

// NameLookup is what a cluster announces of its names: its domain, and the address of its DNS service.
func NameLookup(clusterDomain string, dnsService netip.Addr) (*link.DNSInfo, error) {
	if !dnsService.IsValid() { // legacy peers cannot read a domain alone
		return nil, errors.New("dns-advertisement: the address of the cluster's DNS service is unknown: " +
			"set dns-service-ip or service-cidr in the Corefile, or spec.cidr of the LocalLink")
	}
	return &link.DNSInfo{ClusterDomain: strings.TrimSuffix(clusterDomain, "."), Address: dnsService}, nil
}

const (
	// tokenInterval is how often the source looks after the token.
	tokenInterval = 30 * time.Second
	// After a failure the source looks again after firstRetry, twice that, and so on up to maxRetry. Half of the time is
	// random, so that clusters do not ask in step.
	firstRetry, maxRetry = time.Second, 30 * time.Second
)

// TokenSource has the token of the service account that is announced. A nil TokenSource announces none.
type TokenSource struct {
	account  types.NamespacedName
	lifetime time.Duration // of a token, as it is requested
	log      *slog.Logger

	mu     sync.Mutex    // guards access and err
	access *link.APIInfo // nil: none yet
	err    error         // why there is none, or no new one

	running sync.Mutex // held by Run, as the next Run may start before the last one has ended. Guards renewAt
	renewAt time.Time  // when a token that was requested is to be replaced; zero: access is from a secret
}

// NewTokenSource returns nil if there is no account.
func NewTokenSource(account types.NamespacedName, lifetime time.Duration, log *slog.Logger) *TokenSource {
	if account == (types.NamespacedName{}) {
		return nil
	}
	return &TokenSource{account: account, lifetime: lifetime, log: log}
}

// Adopt announces what another source of the same account does until this source has a token of its own.
func (s *TokenSource) Adopt(before *TokenSource) {
	access, _ := before.Access()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.access = access
}

// Access is what to announce, nil for nothing, and why it is missing or not renewed.
func (s *TokenSource) Access() (*link.APIInfo, error) {
	if s == nil {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.access, fmt.Errorf("service-account %s: %w", s.account, s.err)
	}
	return s.access, nil
}

// tokenAPI is what Run needs of the API server.
type tokenAPI interface {
	// readSecret returns the token in a secret of the account, with its CA; nil if there is none, or the broker may not
	// read it.
	readSecret(ctx context.Context) (*link.APIInfo, error)
	// requestToken returns a new token and how long it lasts.
	requestToken(ctx context.Context) (string, time.Duration, error)
	// readCA returns the CA of the API server as services see it, in PEM form.
	readCA(ctx context.Context) ([]byte, error)
	// checkToken tells whether the token still opens the API. It does not when the account was deleted, or made anew.
	checkToken(ctx context.Context, token string) (bool, error)
}

// Run keeps a token that can be announced, until ctx ends. It calls wake when Access has changed.
func (s *TokenSource) Run(ctx context.Context, api tokenAPI, wake func()) {
	s.running.Lock()
	defer s.running.Unlock()
	// The backoff adds to its durations; ours are the upper end.
	first := wait.Backoff{Duration: firstRetry / 2, Cap: maxRetry / 2, Factor: 2, Jitter: 1, Steps: math.MaxInt}
	backoff := first
	for {
		access, err := s.findAccess(ctx, api)
		if ctx.Err() != nil {
			return
		}
		if s.setAccess(access, err) {
			wake()
		}
		pause := tokenInterval
		if err != nil {
			pause = backoff.Step()
		} else {
			backoff = first
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// setAccess tells whether anything has changed. After a failure the source announces what it did before.
func (s *TokenSource) setAccess(access *link.APIInfo, err error) (changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if fmt.Sprint(err) != fmt.Sprint(s.err) {
		s.err, changed = err, true
	}
	if err == nil && !reflect.DeepEqual(access, s.access) {
		s.access, changed = access, true
		from := []any{"service-account", s.account, "from", "secret"}
		if !s.renewAt.IsZero() {
			from = []any{"service-account", s.account, "renewed", s.renewAt.Format(time.RFC3339)}
		}
		s.log.Info("token and CA are announced from now on", from...)
	}
	return changed
}

// findAccess returns what is to be announced: the token of a secret, the present one, or a new one.
func (s *TokenSource) findAccess(ctx context.Context, api tokenAPI) (*link.APIInfo, error) {
	access, err := api.readSecret(ctx)
	if err != nil {
		return nil, err
	}
	if access != nil {
		s.renewAt = time.Time{}
		return checkAccess(access)
	}
	access = &link.APIInfo{}
	if access.CACert, err = api.readCA(ctx); err != nil {
		return nil, err
	}
	if time.Now().Before(s.renewAt) {
		good, err := api.checkToken(ctx, s.access.Token)
		if err != nil {
			return nil, err
		}
		if good {
			access.Token = s.access.Token
		}
	}
	renewAt := s.renewAt
	if access.Token == "" {
		var life time.Duration
		if access.Token, life, err = api.requestToken(ctx); err != nil {
			return nil, err
		}
		renewAt = time.Now().Add(life * 2 / 3)
	}
	if access, err = checkAccess(access); err == nil {
		s.renewAt = renewAt
	}
	return access, err
}
