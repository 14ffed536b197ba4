package connect

// What a cluster has already.

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/install"
)

// side is a cluster with all that is known of it.
type side struct {
	changer
	end
	deployment *appsv1.Deployment // of the broker; nil: kubelink is not installed
	secret     corev1.Secret      // empty: not there
	mode       mesh.Mode          // of the broker; empty: not installed
	dns        clusterDNS
}

// installs tells whether this package installs kubelink there, or has done so.
func (s *side) installs() bool { return s.deployment == nil || isOurs(s.deployment) }

// readFacts reads all of it.
func (s *side) readFacts(ctx context.Context) error {
	for _, read := range []func(context.Context) error{
		s.readLinks, s.readMeshServices, s.readInstallation, s.readSecret, s.readDNS,
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
