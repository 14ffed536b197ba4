package fleet

// This file has what is different in mode wireguard: a key in place of a certificate, a UDP port in place of a TCP port.

import (
	"context"
	"crypto/rand"
	"maps"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// keyEntry is where the secret has the private key.
const keyEntry = "WireguardPrivateKey"

// installWireGuard applies the component wireguard, adds its properties to the ConfigMap, and makes the key.
func (b *Broker) installWireGuard(ctx context.Context, cm *corev1.ConfigMap) error {
	const folder = "components/wireguard/"
	rights, err := b.Manifest(folder + "rbac.yaml")
	if err != nil {
		return err
	}
	if _, err := b.KubectlInput(ctx, rights, "apply", "-f", "-"); err != nil {
		return err
	}
	root, err := testbed.Repository()
	if err != nil {
		return err
	}
	if _, err := b.Kubectl(ctx, "patch", "service", "kubelink", "-n", Namespace,
		"--patch-file", filepath.Join(root, "deploy", folder, "service.yaml")); err != nil {
		return err
	}
	more, err := b.configMap(folder + "properties.yaml")
	if err != nil {
		return err
	}
	maps.Copy(cm.Data, more.Data)
	return b.SetKey(ctx, NewKey())
}

// NewKey makes a private key, or a preshared key.
func NewKey() (k mesh.SecretKey) {
	rand.Read(k[:]) // it never fails
	return k
}

// SetKey makes a private key that of the cluster: it is in the secret. Links to the cluster have the public key from
// now on.
func (b *Broker) SetKey(ctx context.Context, key mesh.SecretKey) error {
	secret := keySecret()
	_, err := controllerutil.CreateOrUpdate(ctx, b.Client, secret, func() error {
		if secret.Data == nil {
			secret.Data = map[string][]byte{}
		}
		secret.Data[keyEntry] = []byte(key.Base64() + "\n")
		return nil
	})
	if err == nil {
		b.key = key
	}
	return err
}

// ReadKey waits until the broker has made its key.
func (b *Broker) ReadKey(ctx context.Context) error {
	secret := keySecret()
	return b.WaitFor(ctx, secret, func() (err error) {
		b.key, err = mesh.ParseSecretKey(string(secret.Data[keyEntry]))
		return err
	})
}

// PrivateKey is that of the cluster.
func (b *Broker) PrivateKey() mesh.SecretKey { return b.key }

// PublicKey is that of the cluster, as a KubeLink has it.
func (b *Broker) PublicKey() string { return b.key.Public().String() }

func keySecret() *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: Secret}}
}
