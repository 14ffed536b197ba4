package apizone

// This file finds how the API server of each cluster is reached: its address comes from the KubeLink, token and CA
// from the secret that spec.apiAccess names, or that the broker wrote because the peer announced them.

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Access is how the API of a cluster is reached.
type Access struct {
	apiSource
	link      string // name of the KubeLink; empty: the local cluster
	announced bool   // by the peer: no user of this cluster has asked for it
	err       error  // why the source is not known; a running instance goes on
}

// apiSource is the API of a cluster and the domains that its names go to. A change of any of it needs another instance.
type apiSource struct {
	zone          string // <cluster>.D
	clusterDomain string // the domain that the cluster itself uses

	server    string // https://host
	secret    string // namespace/name, for messages
	token, ca string

	own *rest.Config // that of the broker itself, instead of the server
}

// FindAccesses finds the access for each cluster with names from its API server. The local cluster's is local.
func (s *Secrets) FindAccesses(ctx context.Context, zones []mesh.Zone, local *rest.Config) (accesses []Access) {
	uncached := map[types.NamespacedName]bool{}
	for _, z := range zones {
		for _, c := range z.Clusters {
			if !c.API.Use {
				continue
			}
			a := Access{
				apiSource: apiSource{zone: c.Name, clusterDomain: c.ClusterDomain, server: c.API.Server},
				link:      c.Link,
			}
			if c.API.Server == "" {
				a.own = local
			} else {
				s.setCredentials(ctx, &a, c.API, uncached)
			}
			accesses = append(accesses, a)
		}
	}
	s.SetWanted(uncached)
	return accesses
}

// setCredentials takes token and CA from the secret, and adds it to uncached if no cache has it.
func (s *Secrets) setCredentials(ctx context.Context, a *Access, api mesh.API, uncached map[types.NamespacedName]bool) {
	key := types.NamespacedName{Namespace: cmp.Or(api.Namespace, s.cfg.Namespace), Name: api.Secret}
	a.secret = key.String()
	// By name only: the namespace of the broker may have been another one.
	a.announced = key.Name == mesh.AnnouncedSecretName(a.link)
	if !s.isCached(key) {
		uncached[key] = true
	}
	secret, err := s.getSecret(ctx, key)
	if err == nil {
		a.token, a.ca, err = parseCredentials(secret.Data)
	}
	if err != nil {
		a.err = secretError(key, err)
	}
}

// secretError says what to do.
func secretError(key types.NamespacedName, err error) error {
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("secret %s does not exist: create it with the keys %s and %s", key, mesh.KeyToken, mesh.KeyCA)
	case apierrors.IsForbidden(err):
		const remedy = "allow its service account to get, list and watch secrets in its own namespace, or to get this one"
		return fmt.Errorf("secret %s: the broker may not read it: %s", key, remedy)
	}
	return fmt.Errorf("secret %s: %w", key, err)
}

// parseCredentials reads token and CA. The CA is in PEM form, or in base64 of that as in kubeconfigs.
func parseCredentials(data map[string][]byte) (token, ca string, err error) {
	token = string(bytes.TrimSpace(data[mesh.KeyToken]))
	if token == "" {
		return "", "", fmt.Errorf("key %s is missing", mesh.KeyToken)
	}
	text := bytes.TrimSpace(data[mesh.KeyCA])
	if len(text) == 0 {
		return "", "", fmt.Errorf("key %s is missing", mesh.KeyCA)
	}
	// The decoder passes over line ends.
	if decoded, err := base64.StdEncoding.DecodeString(string(text)); err == nil {
		text = decoded
	}
	certs, err := link.ParseBundle(text)
	switch {
	case err != nil:
		return "", "", fmt.Errorf("key %s: %w", mesh.KeyCA, err)
	case len(certs) == 0:
		return "", "", fmt.Errorf("key %s has no certificate in PEM form, or in base64 of that", mesh.KeyCA)
	}
	return token, string(text), nil
}
