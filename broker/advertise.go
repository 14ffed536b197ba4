package broker

// What this cluster announces of itself: how its names are looked up (dns-advertisement), and access to its API
// (service-account). The bridge tells it to peers, which write it to their KubeLinks (announced.go).

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// advertised is what to announce, and why a part of it is missing.
func (b *Broker) advertised(s *mesh.State) (dns *link.DNSInfo, api *link.APIInfo, problem error) {
	if b.cfg.DNSAdvertisement {
		address := b.cfg.clusterDNS()
		for _, m := range s.Meshes { // without service-cidr, a LocalLink may know it
			if !address.IsValid() && m.Service.IsValid() {
				address = mesh.Nth(m.Service, 10)
			}
		}
		if address.IsValid() {
			dns = &link.DNSInfo{ClusterDomain: strings.TrimSuffix(b.cfg.ClusterDomain, "."), Address: address}
		} else { // former peers could not read a domain alone
			problem = errors.New("dns-advertisement: the address of the cluster's DNS service is unknown: set dns-service-ip or service-cidr in the Corefile, or spec.cidr of the LocalLink")
		}
	}
	api, err := b.account.state()
	return dns, api, errors.Join(problem, err)
}

// account is the service account whose token is announced.
type account struct {
	name types.NamespacedName
	life time.Duration // of a token, as it is asked for
	log  *slog.Logger

	mu     sync.Mutex
	access *link.APIInfo // nil: none yet
	err    error         // why there is none, or no new one

	keeping sync.Mutex // that there is one keep; an old one may be about to end
	renew   time.Time  // when a token that we asked for is to be replaced; zero: it is not ours
}

// newAccount is nil if none is configured.
func newAccount(cfg *Config, log *slog.Logger) *account {
	if cfg.ServiceAccount == (types.NamespacedName{}) {
		return nil
	}
	return &account{name: cfg.ServiceAccount, life: cfg.TokenLifetime, log: log}
}

// changeAccount follows a change of the configuration. What an account announces goes on until there is a new token of it.
func (b *Broker) changeAccount(old *Config) {
	cfg, before := &b.cfg, b.account
	same := cfg.ServiceAccount == old.ServiceAccount && cfg.Kubeconfig == old.Kubeconfig && cfg.Context == old.Context
	if same && cfg.TokenLifetime == old.TokenLifetime {
		return
	}
	b.account = newAccount(cfg, b.log)
	if same && before != nil {
		b.account.access, _ = before.state()
	}
}

func (a *account) state() (*link.APIInfo, error) {
	if a == nil {
		return nil, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		return a.access, fmt.Errorf("service-account %s: %w", a.name, a.err)
	}
	return a.access, nil
}

// accountAPI is what keep needs of the API server.
type accountAPI interface {
	// secret is the token in a secret of the account, with its CA; nil if there is none, or none that may be read.
	secret(ctx context.Context) (*link.APIInfo, error)
	// token asks for a token and says how long it lasts.
	token(ctx context.Context) (string, time.Duration, error)
	// ca is the CA of the API server as services see it, in PEM form.
	ca(ctx context.Context) ([]byte, error)
	// accepts says whether the token still opens the API. It does not when the account was deleted, or made anew.
	accepts(ctx context.Context, token string) (bool, error)
}

// How often keep looks after the token, and how soon again after a failure.
const (
	accountInterval              = 30 * time.Second
	accountFirst, accountLongest = time.Second, 30 * time.Second
)

// keep has a token that can be announced, until ctx ends. It wakes the reconciler when that, or why there is none, changes.
func (a *account) keep(ctx context.Context, api accountAPI, wake func()) {
	a.keeping.Lock()
	defer a.keeping.Unlock()
	delay := accountFirst
	for {
		access, err := a.look(ctx, api)
		if ctx.Err() != nil {
			return
		}
		if a.set(access, err) {
			wake()
		}
		pause := accountInterval
		if err != nil {
			pause = delay/2 + rand.N(delay/2)
			delay = min(2*delay, accountLongest)
		} else {
			delay = accountFirst
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// set says whether anything changed. After a failure what is announced stays.
func (a *account) set(access *link.APIInfo, err error) (changed bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if fmt.Sprint(err) != fmt.Sprint(a.err) {
		a.err, changed = err, true
	}
	if err == nil && !reflect.DeepEqual(access, a.access) {
		a.access, changed = access, true
		from := []any{"service-account", a.name, "from", "secret"}
		if !a.renew.IsZero() {
			from = []any{"service-account", a.name, "renewed", a.renew.Format(time.RFC3339)}
		}
		a.log.Info("token and CA are announced from now on", from...)
	}
	return changed
}

// look finds what is to be announced: the token of a secret, the present one, or a new one.
func (a *account) look(ctx context.Context, api accountAPI) (*link.APIInfo, error) {
	access, err := api.secret(ctx)
	if err != nil {
		return nil, err
	}
	if access != nil {
		a.renew = time.Time{}
		return checkAccess(access)
	}
	access = &link.APIInfo{}
	if access.CACert, err = api.ca(ctx); err != nil {
		return nil, err
	}
	if time.Now().Before(a.renew) {
		good, err := api.accepts(ctx, a.access.Token)
		if err != nil {
			return nil, err
		}
		if good {
			access.Token = a.access.Token
		}
	}
	renew := a.renew
	if access.Token == "" {
		var life time.Duration
		if access.Token, life, err = api.token(ctx); err != nil {
			return nil, err
		}
		renew = time.Now().Add(life * 2 / 3)
	}
	if access, err = checkAccess(access); err == nil {
		a.renew = renew
	}
	return access, err
}

// accountClient is the API server.
type accountClient struct {
	*account
	rest *rest.Config
	core corev1client.CoreV1Interface

	inCluster bool
	denied    time.Time // when secrets could not be listed
}

func (b *Broker) newAccountClient(cfg *rest.Config) (*accountClient, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.Timeout = apiTimeout
	core, err := corev1client.NewForConfig(cfg)
	return &accountClient{account: b.account, rest: cfg, core: core, inCluster: b.cfg.Kubeconfig == ""}, err
}

// secret needs the right to list secrets. Who does not give it wants no such token.
func (c *accountClient) secret(ctx context.Context) (*link.APIInfo, error) {
	if time.Since(c.denied) < 10*time.Minute {
		return nil, nil
	}
	list, err := c.core.Secrets(c.name.Namespace).List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("type", string(corev1.SecretTypeServiceAccountToken)).String(),
	})
	if apierrors.IsForbidden(err) {
		c.denied = time.Now()
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	slices.SortFunc(list.Items, func(a, b corev1.Secret) int { return strings.Compare(a.Name, b.Name) })
	for _, s := range list.Items {
		token := s.Data[corev1.ServiceAccountTokenKey] // missing until the controller has made it
		if s.Annotations[corev1.ServiceAccountNameKey] == c.name.Name && len(token) > 0 && s.DeletionTimestamp == nil {
			return &link.APIInfo{Token: string(token), CACert: s.Data[corev1.ServiceAccountRootCAKey]}, nil
		}
	}
	return nil, nil
}

func (c *accountClient) token(ctx context.Context) (string, time.Duration, error) {
	r, err := c.core.ServiceAccounts(c.name.Namespace).CreateToken(ctx, c.name.Name, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: ptr.To(int64(c.life / time.Second))},
	}, metav1.CreateOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return "", 0, errors.New("it does not exist: create it, or name another one")
	case apierrors.IsForbidden(err):
		return "", 0, errors.New("kubelink may not ask for its token: allow it to create serviceaccounts/token of that name, as deploy/overlays/advertisement does")
	case err != nil:
		return "", 0, fmt.Errorf("ask for its token: %w", err)
	}
	// The server may grant less. That is told in seconds, too: clocks may differ.
	return r.Status.Token, time.Duration(ptr.Deref(r.Spec.ExpirationSeconds, 0)) * time.Second, nil
}

// ca is what pods trust: it fits the service kubernetes, whose address peers use. A kubeconfig may lead to the API server
// under another name, with a certificate of another authority.
func (c *accountClient) ca(ctx context.Context) ([]byte, error) {
	if c.inCluster && c.rest.CAFile != "" {
		return os.ReadFile(c.rest.CAFile)
	}
	cm, err := c.core.ConfigMaps(c.name.Namespace).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("CA of the API server: %w", err)
	}
	return []byte(cm.Data[corev1.ServiceAccountRootCAKey]), nil
}

func (c *accountClient) accepts(ctx context.Context, token string) (bool, error) {
	cfg := rest.AnonymousClientConfig(c.rest)
	cfg.BearerToken = token
	api, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return false, err
	}
	err = api.RESTClient().Get().AbsPath("/version").Do(ctx).Error()
	switch {
	case apierrors.IsUnauthorized(err):
		return false, nil
	case err != nil && !apierrors.IsForbidden(err):
		return true, err
	}
	// What names are made of. That it may watch that, too, is the peers' to find out.
	for _, path := range []string{"/api/v1/namespaces", "/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices"} {
		err := api.RESTClient().Get().AbsPath(path).Param("limit", "1").Do(ctx).Error()
		if apierrors.IsForbidden(err) {
			return true, fmt.Errorf("it may not list %s, so peers get no names from it: bind it to a ClusterRole as deploy/overlays/advertisement does", path[strings.LastIndexByte(path, '/')+1:])
		}
		if err != nil {
			return true, err
		}
	}
	return true, nil
}
