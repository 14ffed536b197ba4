package connect

// How the cluster's DNS finds the names of the mesh: by the ConfigMap coredns-custom, where its Corefile imports it,
// and else by a server block in that Corefile.

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	dnsNamespace = "kube-system"
	dnsConfig    = "coredns"         // ConfigMap with the Corefile, and Deployment
	dnsCustom    = "coredns-custom"  // ConfigMap
	dnsKey       = "kubelink.server" // there, of the broker
	blockBegin   = "# begin of what kubectl kubelink connect has added\n"
	blockEnd     = "# end of what kubectl kubelink connect has added\n"
)

// clusterDNS says what the DNS of the cluster is.
type clusterDNS struct {
	known   bool // it is a CoreDNS with a Corefile in the usual place
	imports bool // the ConfigMap coredns-custom
	text    string
}

var (
	importsServers = regexp.MustCompile(`(?m)^\s*import\s+\S*\*\.server\b`)
	reloads        = regexp.MustCompile(`(?m)^\s*reload\b`)
)

func (s *side) readDNS(ctx context.Context) error {
	data, err := s.readConfig(ctx, dnsConfig)
	text, known := data["Corefile"]
	s.dns = clusterDNS{known: known, imports: importsServers.MatchString(text), text: text}
	return err
}

// setStubDomain sends names of the mesh to kubelink. Where coredns-custom is imported, the broker does it.
func (s *side) setStubDomain(ctx context.Context, address string) error {
	switch {
	case !s.dns.known:
		s.log.printLine(s.Cluster, "the DNS of the cluster has no ConfigMap %s/%s: send names in the domain kubelink to "+
			"%s there", dnsNamespace, dnsConfig, address)
		return nil
	case s.dns.imports:
		custom := &unstructured.Unstructured{}
		custom.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ConfigMap"))
		custom.SetNamespace(dnsNamespace)
		custom.SetName(dnsCustom)
		if is, err := s.readObject(ctx, custom); err != nil || is != nil {
			return err
		}
		return s.applyObject(ctx, custom)
	}
	block := fmt.Sprintf("%skubelink:53 {\n    errors\n    forward . %s {\n        max_fails 0\n    }\n}\n%s",
		blockBegin, address, blockEnd)
	return s.writeCorefile(ctx, strings.TrimRight(withoutBlock(s.dns.text), "\n")+"\n"+block)
}

// withoutBlock is a Corefile without what setStubDomain has added.
func withoutBlock(text string) string {
	before, rest, found := strings.Cut(text, blockBegin)
	if _, after, closed := strings.Cut(rest, blockEnd); found && closed {
		return before + after
	}
	return text
}

// writeCorefile changes the Corefile of the cluster's DNS, if it is another one.
func (s *side) writeCorefile(ctx context.Context, text string) error {
	if text == s.dns.text {
		return nil
	}
	if s.dryRun {
		s.log.printLine(s.Cluster, "would change ConfigMap %s/%s", dnsNamespace, dnsConfig)
		return nil
	}
	var config corev1.ConfigMap
	if err := s.Client.Get(ctx, client.ObjectKey{Namespace: dnsNamespace, Name: dnsConfig}, &config); err != nil {
		return fmt.Errorf("%s: read ConfigMap %s/%s: %w", s.Name, dnsNamespace, dnsConfig, err)
	}
	before := config.DeepCopy()
	config.Data["Corefile"] = text
	err := s.Client.Patch(ctx, &config, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	if err != nil {
		return fmt.Errorf("%s: change ConfigMap %s/%s: %w", s.Name, dnsNamespace, dnsConfig, err)
	}
	s.dns.text = text
	s.log.printLine(s.Cluster, "ConfigMap %s/%s changed", dnsNamespace, dnsConfig)
	if reloads.MatchString(text) {
		return nil
	}
	const restart = `{"spec":{"template":{"metadata":{"annotations":{"kubectl.kubernetes.io/restartedAt":%q}}}}}`
	patch := fmt.Appendf(nil, restart,
		time.Now().Format(time.RFC3339))
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: dnsNamespace, Name: dnsConfig}}
	if err := s.Client.Patch(ctx, d, client.RawPatch(types.StrategicMergePatchType, patch)); err != nil {
		s.log.printLine(s.Cluster, "restart the DNS of the cluster, as its Corefile has no reload: %v", err)
	}
	return nil
}

// removeStubDomain undoes it, also what the broker has written.
func (s *side) removeStubDomain(ctx context.Context) error {
	if err := s.writeCorefile(ctx, withoutBlock(s.dns.text)); err != nil {
		return err
	}
	var custom corev1.ConfigMap
	err := s.Client.Get(ctx, client.ObjectKey{Namespace: dnsNamespace, Name: dnsCustom}, &custom)
	if isAbsent(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: read ConfigMap %s/%s: %w", s.Name, dnsNamespace, dnsCustom, err)
	}
	_, has := custom.Data[dnsKey]
	switch {
	case isOurs(&custom) && (len(custom.Data) == 0 || has && len(custom.Data) == 1):
		custom.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ConfigMap"))
		return s.removeAny(ctx, &custom)
	case !has:
		return nil
	case s.dryRun:
		s.log.printLine(s.Cluster, "would remove key %s of ConfigMap %s/%s", dnsKey, dnsNamespace, dnsCustom)
		return nil
	}
	patch := fmt.Appendf(nil, `{"data":{%q:null}}`, dnsKey)
	if err := s.Client.Patch(ctx, &custom, client.RawPatch(types.MergePatchType, patch)); err != nil {
		return fmt.Errorf("%s: remove key %s of ConfigMap %s/%s: %w", s.Name, dnsKey, dnsNamespace, dnsCustom, err)
	}
	s.log.printLine(s.Cluster, "key %s of ConfigMap %s/%s removed", dnsKey, dnsNamespace, dnsCustom)
	return nil
}
