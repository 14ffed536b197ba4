package connect

// What there is to wait for, and what is in the way meanwhile.

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/install"
)

func encodeBase64(data []byte) string { return base64.StdEncoding.EncodeToString(data) }

// objectKey is the key of an object of the installation.
func objectKey(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: install.Namespace, Name: name}
}

// clusterKey is the key of an object without namespace.
func clusterKey(name string) types.NamespacedName { return types.NamespacedName{Name: name} }

// awaitUp waits until LocalLinks and links are up.
func (p *pair) awaitUp(ctx context.Context) error {
	if p.DryRun {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, p.UpTimeout)
	defer cancel()
	return p.inBoth(func(_ *pair, ctx context.Context, s, other *side) error {
		for _, name := range []string{s.name, other.name} {
			if err := s.awaitEmpty(ctx, "KubeLink "+name+" to be Up", func(ctx context.Context) (string, error) {
				return s.describeLink(ctx, name)
			}); err != nil {
				return fmt.Errorf("%w; kubectl kubelink diagnose finds the cause", err)
			}
		}
		s.log.printLine(s.Cluster, "the link to %s is Up", other.name)
		return nil
	})(ctx)
}

// describeLink says why a link is not up; empty: it is.
func (s *side) describeLink(ctx context.Context, name string) (string, error) {
	var l v1alpha1.KubeLink
	if err := s.Client.Get(ctx, clusterKey(name), &l); err != nil {
		return "", err
	}
	switch {
	case l.Status.State == "":
		return cmp.Or(s.describePods(ctx), "the broker starts"), nil
	case l.Status.State != v1alpha1.StateUp || l.Status.ObservedGeneration != l.Generation:
		return strings.TrimSuffix(fmt.Sprintf("it is %s: %s", l.Status.State, l.Status.Message), ": "), nil
	}
	return "", nil
}

// describePods says what keeps the broker's pod from starting; empty: not known.
func (s *side) describePods(ctx context.Context) string {
	var pods corev1.PodList
	if err := s.Client.List(ctx, &pods, client.InNamespace(install.Namespace),
		client.MatchingLabels{"app": install.Name}); err != nil {
		return ""
	}
	for _, pod := range pods.Items {
		for _, c := range pod.Status.ContainerStatuses {
			if w := c.State.Waiting; w != nil {
				return strings.TrimSuffix(fmt.Sprintf("pod %s: %s: %s", pod.Name, w.Reason, w.Message), ": ")
			}
		}
		for _, c := range pod.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
				return fmt.Sprintf("pod %s: %s", pod.Name, c.Message)
			}
		}
	}
	return ""
}
