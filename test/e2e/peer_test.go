package e2e

import (
	"context"

	"github.com/mandelsoft/kubelink/test/bed"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/peer"
)

// dialRaw connects from a host to a broker with a certificate of ca for the names.
func dialRaw(ctx context.Context, from *bed.Host, to *fleet.Broker, ca *bed.CA, names ...string) (*peer.Peer, error) {
	config, err := peer.Config(ca, f.CA, names...)
	if err != nil {
		return nil, err
	}
	return peer.Dial(ctx, from, to.FQDN+":80", to.FQDN, config)
}
