package broker

// What this cluster announces to its peers.

import (
	"errors"

	"github.com/mandelsoft/kubelink/broker/announce"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// advertised is what to announce, and why a part of it is missing.
func (b *Broker) advertised(s *mesh.State) (dns *link.DNSInfo, api *link.APIInfo, problem error) {
	if b.cfg.DNSAdvertisement {
		address := b.cfg.clusterDNS()
		for _, m := range s.Meshes { // without service-cidr, a LocalLink may know it
			if !address.IsValid() {
				address = mesh.Nth(m.Services.First(), 10)
			}
		}
		dns, problem = announce.NameLookup(b.cfg.ClusterDomain, address)
	}
	api, err := b.tokens.Access()
	return dns, api, errors.Join(problem, err)
}

// setTokenSource follows a change of the configuration. The broker announces the token of the same account until
// there is a new one.
func (b *Broker) setTokenSource(old *Config) {
	cfg, before := &b.cfg, b.tokens
	same := cfg.ServiceAccount == old.ServiceAccount && cfg.Kubeconfig == old.Kubeconfig && cfg.Context == old.Context
	if same && cfg.TokenLifetime == old.TokenLifetime {
		return
	}
	b.tokens = announce.NewTokenSource(cfg.ServiceAccount, cfg.TokenLifetime, b.log)
	if same && before != nil {
		b.tokens.Adopt(before)
	}
}
