package testbed

// This file plays the load balancer of clusters with real nodes, on their routers: it leads the public address of
// services of type LoadBalancer to their node ports, on the nodes that a health check finds good. Without kube-proxy
// there are no node ports: it leads to pods, which must have the network of their nodes.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// checkPeriod is how often the load balancer checks nodes, and how soon it tries again when the API server is away.
const checkPeriod = 200 * time.Millisecond

// silenceLimit is for how long a node may leave health checks unanswered, and counts as what it was. Those of cloud
// providers need several failures, seconds apart, as well: a busy machine may keep an answer back for a while, and to
// take a node away ends connections.
const silenceLimit = 10 * time.Second

// loadBalancer of a cluster. All of its services share the cluster's public address.
type loadBalancer struct {
	cluster  *Cluster
	services atomic.Pointer[corev1.ServiceList] // nil: not known yet
	rules    string                             // what the router has
	backends map[netip.Addr]bool                // nodes that some rule leads to
	health   map[nodePort]*nodeHealth           // of the health checks
	log      *slog.Logger                       // in the folder of all logs
}

// nodePort is where a health check asks: one of a service, at a node.
type nodePort struct {
	node netip.Addr
	port int32
}

// nodeHealth is what health checks have found at a port of a node.
type nodeHealth struct {
	good     bool
	answered time.Time
}

// note takes in the result of a check.
func (h *nodeHealth) note(err error, now time.Time) {
	var silent net.Error
	if errors.As(err, &silent) && silent.Timeout() {
		h.good = h.good && now.Sub(h.answered) < silenceLimit
		return
	}
	h.good, h.answered = err == nil, now
}

// startLoadBalancer starts it. It ends with the test bed.
func (c *Cluster) startLoadBalancer(ctx context.Context) error {
	if !c.opts.isReal() {
		return nil
	}
	log, err := os.Create(filepath.Join(workDir, "log", c.Name+"-load-balancer.log"))
	if err != nil {
		return err
	}
	c.Router.onClose(log)
	b := &loadBalancer{cluster: c, health: map[nodePort]*nodeHealth{}, log: slog.New(slog.NewTextHandler(log, nil))}
	if _, err := c.Router.runWithInput(ctx, "*nat\n:LOAD-BALANCER - [0:0]\n-A PREROUTING -j LOAD-BALANCER\nCOMMIT\n",
		"iptables-restore", "--noflush", "--wait"); err != nil {
		return err
	}
	c.Router.onClose(newTask(c.testbed.ctx, b.followServices, b.balance))
	return nil
}

// followServices reads all services whenever one changes, and gives those of the load balancer its address.
func (b *loadBalancer) followServices(ctx context.Context) {
	for ctx.Err() == nil {
		changes, err := b.cluster.Client.Watch(ctx, &corev1.ServiceList{})
		if err == nil {
			for range changes.ResultChan() {
				list := &corev1.ServiceList{}
				if b.cluster.Client.List(ctx, list) != nil || b.publish(ctx, list) != nil {
					break // and begin anew
				}
				b.services.Store(list)
			}
			changes.Stop()
		}
		waitPeriod(ctx)
	}
}

// publish writes the public address to the status of services.
func (b *loadBalancer) publish(ctx context.Context, list *corev1.ServiceList) error {
	for i := range list.Items {
		s := &list.Items[i]
		if s.Spec.Type != corev1.ServiceTypeLoadBalancer || len(s.Status.LoadBalancer.Ingress) > 0 {
			continue
		}
		before := s.DeepCopy()
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: b.cluster.PublicAddress.String()}}
		err := b.cluster.Client.Status().Patch(ctx, s, client.MergeFrom(before))
		if client.IgnoreNotFound(err) != nil {
			return err
		}
	}
	return nil
}

// balance checks the nodes again and again, and leads packets to the good ones.
func (b *loadBalancer) balance(ctx context.Context) {
	for ctx.Err() == nil {
		if list := b.services.Load(); list != nil {
			rules, backends := "", map[netip.Addr]bool{}
			for i := range list.Items {
				if s := &list.Items[i]; s.Spec.Type == corev1.ServiceTypeLoadBalancer {
					good := b.goodNodes(ctx, s)
					for _, node := range good {
						backends[node] = true
					}
					rules += b.rulesOf(s, good)
				}
			}
			b.apply(ctx, rules, backends)
		}
		waitPeriod(ctx)
	}
}

// goodNodes returns the nodes that take packets of a service: all of them, or with externalTrafficPolicy Local the ones
// whose health check says that they have an endpoint.
func (b *loadBalancer) goodNodes(ctx context.Context, s *corev1.Service) []netip.Addr {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if b.cluster.proxyMode() == ProxyNone {
		return b.findPods(ctx, s)
	}
	b.cluster.testbed.mu.Lock()
	nodes := b.cluster.Nodes
	b.cluster.testbed.mu.Unlock()
	errs := make([]error, len(nodes))
	var checks sync.WaitGroup
	for i, n := range nodes {
		if s.Spec.HealthCheckNodePort != 0 {
			checks.Go(func() {
				url := fmt.Sprintf("http://%s:%d/healthz", n.Address, s.Spec.HealthCheckNodePort)
				_, errs[i] = b.cluster.Router.Get(ctx, url)
			})
		}
	}
	checks.Wait()
	var good []netip.Addr
	for i, n := range nodes {
		at := nodePort{n.Address, s.Spec.HealthCheckNodePort}
		if b.health[at] == nil {
			b.health[at] = &nodeHealth{}
		}
		before := b.health[at].good
		b.health[at].note(errs[i], time.Now())
		is := b.health[at].good
		if is {
			good = append(good, n.Address)
		}
		if is != before || errs[i] != nil && is {
			b.log.Info("health check", "service", s.Name, "node", n.Name, "good", is, "error", errs[i])
		}
	}
	return good
}

// findPods returns the addresses of the pods behind a service. While the API server is away, nothing changes.
func (b *loadBalancer) findPods(ctx context.Context, s *corev1.Service) (all []netip.Addr) {
	pods := &corev1.PodList{}
	err := b.cluster.Client.List(ctx, pods, client.InNamespace(s.Namespace), client.MatchingLabels(s.Spec.Selector))
	if err != nil {
		return slices.SortedFunc(maps.Keys(b.backends), netip.Addr.Compare)
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		if addr, err := netip.ParseAddr(p.Status.PodIP); err == nil && p.DeletionTimestamp == nil {
			all = append(all, addr)
		}
	}
	return all
}

// rulesOf spreads connections to the service's ports evenly over nodes.
func (b *loadBalancer) rulesOf(s *corev1.Service, nodes []netip.Addr) string {
	var rules strings.Builder
	for _, port := range s.Spec.Ports {
		to := port.NodePort
		if b.cluster.proxyMode() == ProxyNone {
			to = port.TargetPort.IntVal
		}
		for i, node := range nodes {
			fmt.Fprintf(&rules, "-A LOAD-BALANCER -d %s -p %s --dport %d -m statistic --mode random --probability %.5f"+
				" -j DNAT --to-destination %s:%d\n", b.cluster.PublicAddress, strings.ToLower(string(port.Protocol)),
				port.Port, 1/float64(len(nodes)-i), node, to)
		}
	}
	return rules.String()
}

// apply gives the router the rules, and ends connections with nodes that have no part any more.
func (b *loadBalancer) apply(ctx context.Context, rules string, backends map[netip.Addr]bool) {
	if rules != b.rules {
		_, err := b.cluster.Router.runWithInput(ctx, "*nat\n:LOAD-BALANCER - [0:0]\n"+rules+"COMMIT\n",
			"iptables-restore", "--noflush", "--wait")
		if err != nil {
			return // the next round tries again
		}
		b.log.Info("connections go to other nodes", "nodes", slices.Collect(maps.Keys(backends)))
	}
	for node := range b.backends {
		if !backends[node] {
			filter := &netlink.ConntrackFilter{}
			filter.AddIP(netlink.ConntrackOrigDstIP, b.cluster.PublicAddress.AsSlice())
			filter.AddIP(netlink.ConntrackReplySrcIP, node.AsSlice())
			b.cluster.Router.Net.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, filter)
		}
	}
	b.rules, b.backends = rules, backends
}

func waitPeriod(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(checkPeriod):
	}
}

// task is a number of functions that run until it is closed.
type task struct {
	cancel context.CancelFunc
	ends   sync.WaitGroup
}

func newTask(ctx context.Context, functions ...func(context.Context)) *task {
	t := &task{}
	ctx, t.cancel = context.WithCancel(ctx)
	for _, f := range functions {
		t.ends.Go(func() { f(ctx) })
	}
	return t
}

// Close ends the functions, and waits for their ends.
func (t *task) Close() error {
	t.cancel()
	t.ends.Wait()
	return nil
}
