package connect

// The CA that the clusters of a mesh have in common.

import (
	"bytes"
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/pki"
	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/install"
)

const (
	caCert = "ca.crt"
	caKey  = "ca.key"
)

// shareCA gives both clusters the same CA, as far as this package installs kubelink there.
func (p *pair) shareCA(ctx context.Context) error {
	if p.Mode != mesh.Bridge {
		return nil
	}
	a, b := p.sides[0], p.sides[1]
	if len(a.secret.Data[caCert])+len(b.secret.Data[caCert]) == 0 {
		ca := &corev1.Secret{}
		if _, _, err := pki.ManageSecret(ca, "kubelink", time.Now()); err != nil {
			return err
		}
		if err := p.writeCA(ctx, a, ca); err != nil {
			return err
		}
		return p.writeCA(ctx, b, ca)
	}
	for s, other := range map[*side]*side{a: b, b: a} {
		if len(s.secret.Data[caCert]) > 0 {
			continue
		}
		if len(other.secret.Data[caKey]) == 0 {
			return fmt.Errorf("%s has a CA, but not its key: make a certificate of this CA for %s, and put it into the "+
				"secret %s/%s of %s, with the keys ca.crt, tls.crt and tls.key (deploy/README.md, Certificates)",
				other.Name, s.endpoint, install.Namespace, install.Secret, s.Name)
		}
		return p.writeCA(ctx, s, &other.secret)
	}
	if !bytes.Contains(a.secret.Data[caCert], bytes.TrimSpace(b.secret.Data[caCert])) &&
		!bytes.Contains(b.secret.Data[caCert], bytes.TrimSpace(a.secret.Data[caCert])) {
		return fmt.Errorf("%s and %s have different CAs in the secret %s/%s: add ca.crt of each one to ca.crt of the other",
			p.sides[0].Name, p.sides[1].Name, install.Namespace, install.Secret)
	}
	return nil
}

// writeCA puts the CA into the secret of a cluster.
func (p *pair) writeCA(ctx context.Context, s *side, ca *corev1.Secret) error {
	if !s.installs() {
		return fmt.Errorf("%s has kubelink without a CA in the secret %s/%s: give it one (deploy/README.md, Certificates)",
			s.Name, install.Namespace, install.Secret)
	}
	o := &unstructured.Unstructured{Object: map[string]any{"type": "Opaque", "data": map[string]any{
		caCert: encodeBase64(ca.Data[caCert]), caKey: encodeBase64(ca.Data[caKey])}}}
	o.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Secret"))
	o.SetNamespace(install.Namespace)
	o.SetName(install.Secret)
	if s.dryRun {
		return s.applyObject(ctx, o)
	}
	if s.secret.ResourceVersion == "" {
		o.SetLabels(map[string]string{managedLabel: owner})
		if err := s.Client.Create(ctx, o, client.FieldOwner(owner)); err != nil {
			return fmt.Errorf("%s: create %s: %w", s.Name, describeObject(o), err)
		}
		s.log.printLine(s.Cluster, "%s created", describeObject(o))
		return nil
	}
	o.SetResourceVersion(s.secret.ResourceVersion)
	return s.applyObject(ctx, o)
}
