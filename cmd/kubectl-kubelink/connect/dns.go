package connect

// How the cluster's DNS finds the names of the mesh: by the ConfigMap coredns-custom, where its Corefile imports it,
// and else by a server block in that Corefile.

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/mandelsoft/kubelink/broker/stubdomain"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	domain = "kubelink" // of the mesh that connect makes
	// What surrounds the server block.
	blockBegin = "# begin of what kubectl kubelink connect has added\n"
	blockEnd   = "# end of what kubectl kubelink connect has added\n"
)

const (
	corefileName = "ConfigMap " + stubdomain.Namespace + "/" + stubdomain.CorefileMap // for messages
	customName   = "ConfigMap " + stubdomain.Namespace + "/" + stubdomain.ConfigMap
	keyName      = "key " + stubdomain.BlocksKey + " of " + customName
)

// clusterDNS says what the DNS of the cluster is.
type clusterDNS struct {
	known   bool // it is a CoreDNS with a Corefile in the usual place
	imports bool // the ConfigMap coredns-custom, in a way that does good
	text    string
}

func (s *side) readDNS(ctx context.Context) error {
	data, err := s.readConfig(ctx, stubdomain.CorefileMap)
	text, known := data[stubdomain.CorefileKey]
	corefile := stubdomain.ReadCorefile(withoutBlock(text))
	s.dns = clusterDNS{known: known, imports: corefile.ImportsBlocks(), text: text}
	return err
}

// setStubDomain sends names of the mesh to kubelink. Where coredns-custom is imported, the broker does it.
func (s *side) setStubDomain(ctx context.Context, address netip.Addr) error {
	switch {
	case !s.dns.known:
		s.log.printLine(s.Cluster, "the DNS of the cluster has no %s: send names in the domain kubelink to %s there",
			corefileName, address)
		return nil
	case s.dns.imports:
		custom := &unstructured.Unstructured{}
		custom.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ConfigMap"))
		custom.SetNamespace(stubdomain.Namespace)
		custom.SetName(stubdomain.ConfigMap)
		if is, err := s.readObject(ctx, custom); err != nil || is != nil {
			return err
		}
		return s.applyObject(ctx, custom)
	}
	text := withoutBlock(s.dns.text)
	corefile := stubdomain.ReadCorefile(text)
	block, note := corefile.AddBlocks([]stubdomain.Stub{{Domain: domain, Server: address}})
	if note != "" {
		s.log.printLine(s.Cluster, "%s", note)
		return nil
	}
	return s.writeCorefile(ctx, strings.TrimRight(text, "\n")+"\n"+blockBegin+block+blockEnd)
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
		s.log.printLine(s.Cluster, "would change "+corefileName)
		return nil
	}
	var config corev1.ConfigMap
	key := client.ObjectKey{Namespace: stubdomain.Namespace, Name: stubdomain.CorefileMap}
	if err := s.Client.Get(ctx, key, &config); err != nil {
		return fmt.Errorf("%s: read %s: %w", s.Name, corefileName, err)
	}
	before := config.DeepCopy()
	config.Data[stubdomain.CorefileKey] = text
	err := s.Client.Patch(ctx, &config, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	if err != nil {
		return fmt.Errorf("%s: change %s: %w", s.Name, corefileName, err)
	}
	s.dns.text = text
	s.log.printLine(s.Cluster, corefileName+" changed")
	if corefile := stubdomain.ReadCorefile(text); corefile.Reloads() {
		return nil
	}
	if err := stubdomain.Restart(ctx, s.Client, text, client.FieldOwner(owner)); err != nil {
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
	err := s.Client.Get(ctx, client.ObjectKey{Namespace: stubdomain.Namespace, Name: stubdomain.ConfigMap}, &custom)
	if isAbsent(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: read %s: %w", s.Name, customName, err)
	}
	_, has := custom.Data[stubdomain.BlocksKey]
	switch {
	case isOurs(&custom) && (len(custom.Data) == 0 || has && len(custom.Data) == 1):
		custom.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ConfigMap"))
		return s.removeAny(ctx, &custom)
	case !has:
		return nil
	case s.dryRun:
		s.log.printLine(s.Cluster, "would remove "+keyName)
		return nil
	}
	patch := fmt.Appendf(nil, `{"data":{%q:null}}`, stubdomain.BlocksKey)
	if err := s.Client.Patch(ctx, &custom, client.RawPatch(types.MergePatchType, patch)); err != nil {
		return fmt.Errorf("%s: remove %s: %w", s.Name, keyName, err)
	}
	s.log.printLine(s.Cluster, keyName+" removed")
	return nil
}
