package announce

// How a token source asks the API server.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
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
)

// secretsPause is how long the client does not list secrets after the API server has forbidden it.
const secretsPause = 10 * time.Minute

// Client reads the API server for one TokenSource.
type Client struct {
	account   types.NamespacedName
	lifetime  time.Duration
	config    *rest.Config
	core      corev1client.CoreV1Interface
	inCluster bool      // config is the one of the pod
	forbidden time.Time // when secrets could not be listed
}

// NewClient returns a client for the source. The timeout bounds each request.
func (s *TokenSource) NewClient(cfg *rest.Config, timeout time.Duration, inCluster bool) (*Client, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.Timeout = timeout
	core, err := corev1client.NewForConfig(cfg)
	return &Client{account: s.account, lifetime: s.lifetime, config: cfg, core: core, inCluster: inCluster}, err
}

// readSecret needs the right to list secrets. Without that right, the user wants no such token.
func (c *Client) readSecret(ctx context.Context) (*link.APIInfo, error) {
	if time.Since(c.forbidden) < secretsPause {
		return nil, nil
	}
	list, err := c.core.Secrets(c.account.Namespace).List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("type", string(corev1.SecretTypeServiceAccountToken)).String(),
	})
	if apierrors.IsForbidden(err) {
		c.forbidden = time.Now()
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	slices.SortFunc(list.Items, func(a, b corev1.Secret) int { return strings.Compare(a.Name, b.Name) })
	for _, s := range list.Items {
		token := s.Data[corev1.ServiceAccountTokenKey] // missing until the controller has made it
		own := s.Annotations[corev1.ServiceAccountNameKey] == c.account.Name
		if own && len(token) > 0 && s.DeletionTimestamp == nil {
			return &link.APIInfo{Token: string(token), CACert: s.Data[corev1.ServiceAccountRootCAKey]}, nil
		}
	}
	return nil, nil
}

func (c *Client) requestToken(ctx context.Context) (string, time.Duration, error) {
	r, err := c.core.ServiceAccounts(c.account.Namespace).CreateToken(ctx, c.account.Name, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: ptr.To(int64(c.lifetime / time.Second))},
	}, metav1.CreateOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return "", 0, errors.New("it does not exist: create it, or name another one")
	case apierrors.IsForbidden(err):
		return "", 0, errors.New("kubelink may not ask for its token: " +
			"allow it to create serviceaccounts/token of that name, as deploy/components/advertisement does")
	case err != nil:
		return "", 0, fmt.Errorf("ask for its token: %w", err)
	}
	// The server may grant less. Seconds tell the lifetime even if clocks differ.
	return r.Status.Token, time.Duration(ptr.Deref(r.Spec.ExpirationSeconds, 0)) * time.Second, nil
}

// readCA returns what pods trust: it fits the service kubernetes, and peers use the address of that service. A
// kubeconfig may lead to the API server under another name, with a certificate of another authority.
func (c *Client) readCA(ctx context.Context) ([]byte, error) {
	if c.inCluster && c.config.CAFile != "" {
		return os.ReadFile(c.config.CAFile)
	}
	cm, err := c.core.ConfigMaps(c.account.Namespace).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("CA of the API server: %w", err)
	}
	return []byte(cm.Data[corev1.ServiceAccountRootCAKey]), nil
}

// checkToken also returns an error for a token that opens the API but may not list what names are made of. Whether it
// may watch that, too, peers find out.
func (c *Client) checkToken(ctx context.Context, token string) (bool, error) {
	cfg := rest.AnonymousClientConfig(c.config)
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
	for _, kind := range []struct{ name, path string }{
		{"namespaces", "/api/v1/namespaces"},
		{"services", "/api/v1/services"},
		{"endpointslices", "/apis/discovery.k8s.io/v1/endpointslices"},
	} {
		err := api.RESTClient().Get().AbsPath(kind.path).Param("limit", "1").Do(ctx).Error()
		if apierrors.IsForbidden(err) {
			return true, fmt.Errorf("it may not list %s, so peers get no names from it: "+
				"bind it to a ClusterRole as deploy/components/advertisement does", kind.name)
		}
		if err != nil {
			return true, err
		}
	}
	return true, nil
}
