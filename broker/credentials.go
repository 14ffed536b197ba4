package broker

// The certificate of this end on its way to the dataplane.

import (
	"context"

	"github.com/mandelsoft/kubelink/broker/pki"
)

func (c *Config) pkiConfig() pki.Config {
	return pki.Config{
		Namespace: c.Namespace, Secret: c.Secret, CertFile: c.CertFile, KeyFile: c.KeyFile, CAFile: c.CAFile,
		SecretManageMode: c.SecretManageMode, DNSName: c.DNSName,
	}
}

// refreshCredentials hands new credentials to the dataplane. A source that is unusable is reported, and the last usable
// credentials stay in use. Where no dataplane carries traffic, none are needed, and no secret is managed.
func (r *reconciler) refreshCredentials(ctx context.Context) error {
	b, cfg := r.b, r.b.cfg.pkiConfig()
	if b.bridge == nil {
		b.creds = pki.Store{}
		return nil
	}
	credentials, err := b.creds.Refresh(ctx, r.client, cfg)
	if credentials == nil {
		return err
	}
	b.bridge.SetCredentials(credentials)
	if !credentials.Unencrypted {
		b.log.Info("certificate in use from now on", "source", cfg.Location(),
			"notAfter", credentials.Certificate.Leaf.NotAfter)
	}
	return nil
}
