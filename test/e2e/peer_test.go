package e2e

import (
	"context"

	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/peer"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// dialRaw connects from a host to a broker with a certificate of ca for the names.
func dialRaw(
	ctx context.Context, from *testbed.Host, to *fleet.Broker, ca *testbed.CA, names ...string,
) (*peer.Peer, error) {
	config, err := peer.Config(ca, f.CA, names...)
	if err != nil {
		return nil, err
	}
	return peer.Dial(ctx, from, to.FQDN+":80", to.FQDN, config)
}
