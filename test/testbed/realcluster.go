package testbed

// This file boots what a cluster with real nodes has besides a control plane: runtimes of its nodes, a scheduler, and
// a name server of the internet.

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// AllowsRealNodes says whether this process may start real nodes: it is root, and of the machine itself.
func AllowsRealNodes() bool { return os.Getuid() == 0 && os.Getenv(enterVar) == rootEnter }

// prepareRealNodes looks whether this machine can have the real nodes that are to be started, if any.
func (b *Testbed) prepareRealNodes() (err error) {
	if len(b.realNodes()) == 0 {
		return nil
	}
	if !AllowsRealNodes() {
		return errors.New("real nodes need root: light nodes (no PodNetwork) do not")
	}
	if b.nodeBinaries, err = nodesFolder(); err != nil {
		return err
	}
	if _, err := os.Stat(b.nodeBinary("containerd")); err != nil {
		return fmt.Errorf("no programs for real nodes: %w (test/controlplane/build.sh builds them)", err)
	}
	return b.makeCgroups()
}

// startNodes starts kubelets as soon as the runtimes of the nodes run, and the scheduler.
func (c *Cluster) startNodes(ctx context.Context) error {
	if !c.opts.isReal() {
		return nil
	}
	_, err := c.ControlPlane.Start(c.testbed.ctx, "scheduler", nil, c.testbed.nodeBinary("kube-scheduler"),
		"--kubeconfig="+c.filePath("scheduler.kubeconfig"),
		"--bind-address=127.0.0.1",
		"--leader-elect=false")
	if err != nil {
		return err
	}
	select {
	case <-c.testbed.runtimes:
		return c.startKubelets(ctx)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// serveInternetNames answers for the internet's names on the cluster's router. The nodes, and so their pods with
// dnsPolicy Default, have it as their name server.
func (c *Cluster) serveInternetNames(names map[string]netip.Addr) error {
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, query *dns.Msg) {
		answer := new(dns.Msg).SetReply(query)
		question := query.Question[0]
		addr, ok := names[question.Name[:len(question.Name)-1]]
		switch {
		case !ok:
			answer.Rcode = dns.RcodeNameError
		case question.Qtype == dns.TypeA:
			answer.Answer = []dns.RR{&dns.A{A: addr.AsSlice(),
				Hdr: dns.RR_Header{Name: question.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 5}}}
		}
		w.WriteMsg(answer)
	})
	datagrams, err := c.Router.ListenPacket("udp4", netip.AddrPortFrom(RouterAddress, 53).String())
	if err != nil {
		return err
	}
	listener, err := c.Router.Listen("tcp4", netip.AddrPortFrom(RouterAddress, 53).String())
	if err != nil {
		return err
	}
	go (&dns.Server{PacketConn: datagrams, Handler: handler}).ActivateAndServe()
	go (&dns.Server{Listener: listener, Handler: handler}).ActivateAndServe()
	return nil
}

// awaitObject watches an object until it meets the condition, for which it may have to appear first. The list is an
// empty one of the object's kind.
func awaitObject[T client.Object](
	ctx context.Context, c *Cluster, obj T, list client.ObjectList, condition func(T) error,
) error {
	last := errors.New("it does not exist")
	for {
		w, err := c.Client.Watch(ctx, list, client.InNamespace(obj.GetNamespace()),
			client.MatchingFields{"metadata.name": obj.GetName()})
		if err != nil {
			return fmt.Errorf("watch %T %s in %s: %w", obj, obj.GetName(), c.Name, err)
		}
		for event := range w.ResultChan() {
			if is, ok := event.Object.(T); ok {
				if last = condition(is); last == nil {
					w.Stop()
					return nil
				}
			}
		}
		if ctx.Err() != nil {
			return fmt.Errorf("wait for %T %s in %s: %w: %w", obj, obj.GetName(), c.Name, context.Cause(ctx), last)
		}
	}
}

// checkNodeReady returns nil if kubelet says that pods can run on the node.
func checkNodeReady(node *corev1.Node) error {
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			if condition.Status == corev1.ConditionTrue {
				return nil
			}
			return errors.New(condition.Message)
		}
	}
	return errors.New("kubelet has not said whether it is ready")
}

func newNodeObject(name string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
}
