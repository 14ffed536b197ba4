package lease

// The connection to the API server.

import (
	"net"
	"time"

	coordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/connrotation"
)

// newClient returns a client of Leases, and a function that ends its connections. It has connections of its own: on one
// with no other end, further requests would hang until the kernel notices, while a standby has a new one already.
func newClient(api *rest.Config, c *Config) (l leases, disconnect func(), err error) {
	cfg := rest.CopyConfig(api)
	dial := cfg.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: c.RenewDeadline, KeepAlive: 30 * time.Second}).DialContext
	}
	connections := connrotation.NewDialer(dial)
	cfg.Dial = connections.DialContext
	cfg.QPS = -1 // the Elector paces itself
	client, err := coordinationv1.NewForConfig(cfg)
	if err != nil {
		return nil, nil, err
	}
	return client.Leases(c.Namespace), connections.CloseAll, nil
}
