package connect

// The order in which two clusters get linked.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/install"
	"github.com/mandelsoft/kubelink/cmd/kubelink/hooks"
)

// Options say how. Maps are by the names of the clusters' contexts.
type Options struct {
	DryRun       bool
	Show         func(*Cluster, *unstructured.Unstructured) // what a dry run would apply; nil: a line says so
	Image        string                                     // empty: that of the installation, or DefaultImage
	DefaultImage string
	Mode         mesh.Mode // empty: that of an installation, or bridge
	PodMode      bool      // of new installations
	MeshCIDR     netip.Prefix
	MeshServices bool // no service network is routed
	Names        map[string]string
	Endpoints    map[string]string
	Networks     map[string]Networks
	UpTimeout    time.Duration // for the links, after all is applied
}

// pair is two clusters that get linked.
type pair struct {
	Options
	given       Options // before defaults were filled in
	sides       [2]*side
	log         *Log
	holdsLeases bool // other runs wait for this one
}

// Connect links two clusters.
func Connect(ctx context.Context, a, b *Cluster, o Options, log *Log) error {
	p := newPair(a, b, o, log)
	if err := p.refuseSame(ctx); err != nil {
		return err
	}
	for {
		// The wait for endpoints can be long, and keeps no other run from its work. After it, facts may be others.
		if err := p.prepare(ctx); err != nil {
			return err
		}
		p = p.beginAgain()
		p.holdsLeases = true
		err := p.takeTurns(ctx, func(ctx context.Context) error {
			return doAll(ctx, p.prepare, p.shareCA, p.inBoth((*pair).installMissing), p.inBoth((*pair).applyLocal),
				p.exchangeKeys, p.inBoth((*pair).applyLink))
		})
		if err == nil {
			return p.awaitUp(ctx)
		}
		if !errors.Is(err, errEndpointGone) {
			return err
		}
		p = p.beginAgain()
	}
}

// errEndpointGone says that another run has removed the load balancer whose address this one has waited for.
var errEndpointGone = errors.New("the load balancer has no address any more")

// prepare finds out all that there is to know before the installation, and makes what that takes.
func (p *pair) prepare(ctx context.Context) error {
	return doAll(ctx, p.readFacts, p.makePlan, p.inBoth((*pair).prepareEndpoint))
}

// doAll does one step after the other, until one fails.
func doAll(ctx context.Context, steps ...func(context.Context) error) error {
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// beginAgain returns the clusters without what was read of them, but with the networks that were found. Endpoints are
// found anew: another run may have removed the load balancer.
func (p *pair) beginAgain() *pair {
	o := p.given
	o.Networks = map[string]Networks{}
	for _, s := range p.sides {
		o.Networks[s.Name] = s.networks
	}
	again := newPair(p.sides[0].Cluster, p.sides[1].Cluster, o, p.log)
	for i, s := range p.sides {
		again.sides[i].uid, again.sides[i].shown = s.uid, s.shown
	}
	return again
}

func newPair(a, b *Cluster, o Options, log *Log) *pair {
	p := &pair{Options: o, given: o, log: log}
	for i, c := range []*Cluster{a, b} {
		p.sides[i] = &side{changer: changer{Cluster: c, log: log, dryRun: o.DryRun, show: o.Show, patience: hooks.Patience,
			leaseTime: leaseTime},
			end: end{context: c.Name, name: o.Names[c.Name], endpoint: o.Endpoints[c.Name], networks: o.Networks[c.Name]}}
	}
	return p
}

// inBoth does a step for both clusters at the same time. The second argument of the step is the other cluster.
func (p *pair) inBoth(step func(p *pair, ctx context.Context, s, other *side) error) func(context.Context) error {
	return func(ctx context.Context) error {
		var g errgroup.Group
		for i, s := range p.sides {
			g.Go(func() error { return step(p, ctx, s, p.sides[1-i]) })
		}
		return g.Wait()
	}
}

func (p *pair) readFacts(ctx context.Context) error {
	return p.inBoth(func(_ *pair, ctx context.Context, s, _ *side) error { return s.readFacts(ctx) })(ctx)
}

func (p *pair) makePlan(context.Context) error {
	a, b := p.sides[0], p.sides[1]
	for _, s := range p.sides {
		if s.mode != "" && p.Mode != "" && s.mode != p.Mode {
			return fmt.Errorf("%s has kubelink in mode %s, not %s: all clusters of a mesh need the same mode",
				s.Name, s.mode, p.Mode)
		}
		p.Mode = cmp.Or(p.Mode, s.mode)
	}
	p.Mode = cmp.Or(p.Mode, mesh.Bridge)
	if err := planMesh(&a.end, &b.end, planOptions{mesh: p.MeshCIDR, meshServices: p.MeshServices}); err != nil {
		return err
	}
	for _, s := range p.sides {
		if s.installs() && cmp.Or(p.Image, p.DefaultImage) == "" {
			return errors.New("the image of kubelink is not known: give --image, such as --image REGISTRY/kubelink:v1")
		}
	}
	return nil
}

// buildObjects returns the objects of the installation, with what is known so far.
func (p *pair) buildObjects(s *side) ([]*unstructured.Unstructured, error) {
	image, podMode := cmp.Or(p.Image, p.DefaultImage), p.PodMode
	if d := s.deployment; d != nil {
		podMode = !d.Spec.Template.Spec.HostNetwork
		if containers := d.Spec.Template.Spec.Containers; p.Image == "" && len(containers) > 0 {
			image = containers[0].Image
		}
	}
	components := []string{"node-mode", "router"}
	if podMode {
		components[0] = "pod-mode"
	}
	if p.Mode == mesh.WireGuard {
		components = append(components, "wireguard")
	} else {
		components = append(components, "self-signed")
	}
	if s.dns.imports {
		components = append(components, "coredns-configure")
	}
	host, _, err := mesh.Endpoint(cmp.Or(s.endpoint, "unknown"), 80)
	if err != nil {
		return nil, fmt.Errorf("%s: endpoint %q: %w", s.Name, s.endpoint, err)
	}
	return install.Build(install.Values{
		Image: image, ServiceCIDR: s.networks.Services.String(), PodCIDR: s.networks.Pods.String(),
		NodeCIDR: s.networks.Nodes.String(), MeshCIDR: s.address.Masked().String(),
		DNSServiceIP: mesh.Nth(s.networks.Services, 11).String(), Endpoint: host,
	}, components...)
}

// prepareEndpoint makes the CRDs, the namespace and the service, and waits until the service has an endpoint: its name
// goes into the certificate.
func (p *pair) prepareEndpoint(ctx context.Context, s, other *side) error {
	crds, err := install.CRDs()
	if err != nil {
		return err
	}
	for _, crd := range crds {
		is, err := s.readObject(ctx, crd)
		if err == nil && is == nil { // the broker brings it up to date
			err = s.applyObject(ctx, crd)
		}
		if err != nil {
			return err
		}
	}
	if !s.installs() {
		return p.findEndpoint(ctx, s, other)
	}
	objects, err := p.buildObjects(s)
	if err != nil {
		return err
	}
	for _, o := range []*unstructured.Unstructured{install.Find(objects, "Namespace", install.Namespace),
		install.Find(objects, "Service", install.Name)} {
		if err := s.applyObject(ctx, o); err != nil {
			return err
		}
	}
	return p.findEndpoint(ctx, s, other)
}

// findEndpoint finds out how other clusters reach this one.
func (p *pair) findEndpoint(ctx context.Context, s, other *side) error {
	if l := findLink(other.links, s.name); l != nil && s.endpoint == "" {
		s.endpoint = l.Spec.Endpoint
	}
	if s.endpoint != "" {
		return nil
	}
	if s.dryRun {
		s.endpoint = "load-balancer.of." + s.name // not known before the service is there
	}
	ctx, cancel := context.WithTimeout(ctx, p.UpTimeout)
	defer cancel()
	err := s.awaitEmpty(ctx, "the load balancer of Service "+install.Namespace+"/"+install.Name,
		func(ctx context.Context) (string, error) {
			if s.endpoint != "" {
				return "", nil
			}
			var service corev1.Service
			if err := s.Client.Get(ctx, objectKey(install.Name), &service); err != nil {
				return "", err
			}
			for _, in := range service.Status.LoadBalancer.Ingress {
				if s.endpoint = cmp.Or(in.Hostname, in.IP); s.endpoint != "" {
					return "", nil
				}
			}
			if p.holdsLeases { // no other run is to wait for so long
				return "", nil
			}
			return "it has no address yet; without load balancers give the name or address under which other clusters " +
				"reach this one: --endpoint " + s.Name + "=HOST[:PORT]", nil
		})
	if err == nil && s.endpoint == "" {
		s.log.printLine(s.Cluster, "%v, as another run has removed it: waiting again", errEndpointGone)
		return errEndpointGone
	}
	return err
}

// installMissing applies all that the cluster does not have.
func (p *pair) installMissing(ctx context.Context, s, _ *side) error {
	if !s.installs() {
		s.log.printLine(s.Cluster, "kubelink is there, not by this command: it stays as it is")
		return nil
	}
	objects, err := p.buildObjects(s)
	if err != nil {
		return err
	}
	for _, o := range objects {
		if err := s.applyObject(ctx, o); err != nil {
			return err
		}
	}
	return s.setStubDomain(ctx, mesh.Nth(s.networks.Services, 11))
}

// applyLocal makes the LocalLink.
func (p *pair) applyLocal(ctx context.Context, s, _ *side) error {
	if s.local != nil && !isOurs(s.local) {
		return nil
	}
	spec := map[string]any{"endpoint": v1alpha1.EndpointLocal, "clusterAddress": s.address.String()}
	if s.routesServices(p) {
		spec["cidr"] = s.networks.Services.String()
	}
	return s.applyKubeLink(ctx, s.name, spec)
}

// routesServices tells whether the service network of the cluster is routed in the mesh.
func (s *side) routesServices(p *pair) bool {
	if s.local != nil {
		return s.local.Spec.CIDR != ""
	}
	return !p.MeshServices
}

func (s *side) applyKubeLink(ctx context.Context, name string, spec map[string]any) error {
	o := &unstructured.Unstructured{Object: map[string]any{"spec": spec}}
	o.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("KubeLink"))
	o.SetName(name)
	return s.applyObject(ctx, o)
}

// exchangeKeys waits for the public keys of both clusters, in mode wireguard.
func (p *pair) exchangeKeys(ctx context.Context) error {
	if p.Mode != mesh.WireGuard || p.DryRun {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, p.UpTimeout)
	defer cancel()
	return p.inBoth(func(_ *pair, ctx context.Context, s, _ *side) error {
		return s.awaitEmpty(ctx, "the key of LocalLink "+s.name, func(ctx context.Context) (string, error) {
			s.local = &v1alpha1.KubeLink{}
			if err := s.Client.Get(ctx, clusterKey(s.name), s.local); err != nil {
				return "", err
			}
			if s.local.Status.PublicKey == "" {
				return cmp.Or(s.local.Status.Message, s.describePods(ctx), "the broker starts"), nil
			}
			return "", nil
		})
	})(ctx)
}

// applyLink makes the link to the other cluster.
func (p *pair) applyLink(ctx context.Context, s, other *side) error {
	if l := findLink(s.links, other.name); l != nil && !isOurs(l) {
		s.log.printLine(s.Cluster, "KubeLink %s is there, not by this command: it stays as it is", l.Name)
		return nil
	}
	spec := map[string]any{"endpoint": other.endpoint, "clusterAddress": other.address.String()}
	if other.routesServices(p) && !p.MeshServices {
		spec["cidr"] = other.networks.Services.String()
	}
	if other.local != nil && other.local.Status.PublicKey != "" {
		spec["publicKey"] = other.local.Status.PublicKey
	}
	return s.applyKubeLink(ctx, other.name, spec)
}
