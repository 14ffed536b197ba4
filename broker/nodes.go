package broker

// The other nodes of the cluster: the overlay leads to them, and their pods need a router.

import (
	"context"
	"errors"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/lease"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/linkgateway"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/onchange"
)

// clusterNodes are the nodes as read last.
type clusterNodes struct {
	list     []linkgateway.Node
	err      error          // why they are not known; nil: they are
	unserved onchange.Error // why the overlay does not lead to some of them
	routers  linkgateway.Routers
	lacking  onchange.Error // on which nodes pods have no way to the links
}

// needsNodes tells whether the broker has to know the nodes: for the overlay, or for what they lack.
func (c *Config) needsNodes() bool {
	return c.VXLAN.Wanted && c.Mode.CarriesTraffic() || c.expectsRouters()
}

// expectsRouters tells whether each other node is to have a router.
func (c *Config) expectsRouters() bool { return c.Mode.CarriesTraffic() && !c.NoRouters }

// read reads them, if they are needed.
func (n *clusterNodes) read(ctx context.Context, reader client.Reader, c *Config) {
	n.list, n.err = nil, nil
	if c.needsNodes() {
		n.list, n.err = linkgateway.ReadNodes(ctx, reader, c.NodeCIDRs)
	}
}

// checkRouters looks whether pods of all nodes have a way to the gateway. What is missing there is no matter of this
// node, so the broker stays ready. nil: it is not this broker's matter, or routers are not expected.
func (r *reconcilerRun) checkRouters(ctx context.Context, s *mesh.State) *link.RouterReport {
	if r.gateway == nil || !r.cfg.expectsRouters() || r.holder.Role != lease.Holder || len(s.Meshes) == 0 {
		r.nodes.lacking.Set(nil)
		return nil
	}
	r.nodes.routers.Namespace = r.cfg.Namespace
	report := r.nodes.routers.Check(ctx, r.client, r.nodes.list, r.nodes.err, &r.gateway.place.Place, time.Now())
	var lacking error
	if len(report.Findings) > 0 {
		lacking = errors.New(report.Findings.String())
	}
	switch changed := r.nodes.lacking.Set(lacking); {
	case changed && lacking != nil:
		r.log.Warn("pods of other nodes have no way to the links", "problem", lacking)
	case changed:
		r.log.Info("pods of all nodes have a way to the links")
	}
	return report
}
