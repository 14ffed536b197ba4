package connect

// What a cluster has already.

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/install"
)

// side is a cluster with all that is known of it.
type side struct {
	changer
	end
	uid        types.UID          // of the cluster; empty: not known
	deployment *appsv1.Deployment // of the broker; nil: kubelink is not installed
	secret     corev1.Secret      // empty: not there
	mode       mesh.Mode          // of the broker; empty: not installed
	dns        clusterDNS
}

// installs tells whether this package installs kubelink there, or has done so.
func (s *side) installs() bool { return s.deployment == nil || isOurs(s.deployment) }

// refuseSame refuses two contexts of one cluster. Its namespace kube-system, which no one can make anew, tells.
func (p *pair) refuseSame(ctx context.Context) error {
	if err := p.inBoth(func(_ *pair, ctx context.Context, s, _ *side) error {
		var system corev1.Namespace
		err := s.Client.Get(ctx, clusterKey(metav1.NamespaceSystem), &system)
		if s.uid = system.UID; err != nil && !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) {
			return fmt.Errorf("%s: read Namespace %s: %w", s.Name, metav1.NamespaceSystem, err)
		}
		return nil
	})(ctx); err != nil {
		return err
	}
	if a, b := p.sides[0], p.sides[1]; a.isSame(b) {
		return fmt.Errorf("%s and %s are contexts of the same cluster: name one of another cluster", a.Name, b.Name)
	}
	return nil
}

// isSame tells whether both are the same cluster.
func (s *side) isSame(other *side) bool { return s.uid == other.uid && s.uid != "" }

// refuseElsewhere refuses a cluster that has kubelink in another namespace: it cannot have two.
func (s *side) refuseElsewhere(ctx context.Context) error {
	var list appsv1.DeploymentList
	err := s.Client.List(ctx, &list, client.MatchingLabels{"app": install.Name})
	if err != nil && !apierrors.IsForbidden(err) {
		return fmt.Errorf("%s: list Deployments: %w", s.Name, err)
	}
	for i := range list.Items {
		if d := &list.Items[i]; d.Namespace != install.Namespace {
			return fmt.Errorf("%s has kubelink in namespace %s (Deployment %s), and this command is for namespace %s: link "+
				"it with a LocalLink and links (deploy/README.md), or remove it first", s.Name, d.Namespace, d.Name,
				install.Namespace)
		}
	}
	return nil
}

// readFacts reads all of it.
func (s *side) readFacts(ctx context.Context) error {
	for _, read := range []func(context.Context) error{
		s.readLinks, s.readMeshServices, s.readInstallation, s.refuseElsewhere, s.readSecret, s.readDNS,
	} {
		if err := read(ctx); err != nil {
			return err
		}
	}
	return s.findNetworks(ctx, &s.networks)
}

func (s *side) readLinks(ctx context.Context) error {
	var list v1alpha1.KubeLinkList
	if err := s.Client.List(ctx, &list); err != nil && !isAbsent(err) {
		return fmt.Errorf("%s: list KubeLinks: %w", s.Name, err)
	}
	s.links = list.Items
	return nil
}

func (s *side) readMeshServices(ctx context.Context) error {
	var list v1alpha1.MeshServiceList
	if err := s.Client.List(ctx, &list); err != nil && !isAbsent(err) {
		return fmt.Errorf("%s: list MeshServices: %w", s.Name, err)
	}
	for i := range list.Items {
		s.addresses = append(s.addresses, list.Items[i].Spec.MeshAddress)
	}
	return nil
}

// readInstallation reads the Deployment, and what it tells of networks and endpoint.
func (s *side) readInstallation(ctx context.Context) error {
	d, config := &appsv1.Deployment{}, &corev1.ConfigMap{}
	key := client.ObjectKey{Namespace: install.Namespace, Name: install.Name}
	if err := s.Client.Get(ctx, key, d); isAbsent(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("%s: read Deployment %s: %w", s.Name, key, err)
	}
	if err := s.Client.Get(ctx, key, config); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("%s: read ConfigMap %s: %w", s.Name, key, err)
	}
	s.deployment, s.mode = d, mesh.Bridge
	for _, text := range config.Data {
		for line := range strings.Lines(text) {
			if words := strings.Fields(line); len(words) > 1 && words[0] == "mode" {
				s.mode = mesh.Mode(words[1])
			}
		}
	}
	to := map[string]*netip.Prefix{"SERVICE_CIDR": &s.networks.Services, "POD_CIDR": &s.networks.Pods,
		"NODE_CIDR": &s.networks.Nodes}
	for _, c := range d.Spec.Template.Spec.Containers {
		for _, e := range c.Env {
			if n := to[e.Name]; n != nil {
				setNetwork(n, e.Value)
			}
			if e.Name == "ENDPOINT" && s.endpoint == "" {
				s.endpoint = e.Value
			}
		}
	}
	return nil
}

func (s *side) readSecret(ctx context.Context) error {
	key := client.ObjectKey{Namespace: install.Namespace, Name: install.Secret}
	if err := s.Client.Get(ctx, key, &s.secret); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("%s: read Secret %s: %w", s.Name, key, err)
	}
	return nil
}
