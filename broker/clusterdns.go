package broker

// coredns-configure: server blocks that lead the mesh domains from the cluster's DNS to kubelink. They are a key of the
// ConfigMap coredns-custom, from which a cluster's CoreDNS imports what others add to its Corefile.

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coredns/caddy/caddyfile"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Where the cluster's DNS is configured.
const (
	dnsNamespace  = "kube-system"
	dnsCustom     = "coredns-custom" // ConfigMap with server blocks that the Corefile imports
	dnsCustomKey  = "kubelink.server"
	dnsConfig     = "coredns" // ConfigMap with the Corefile
	dnsConfigKey  = "Corefile"
	dnsDeployment = "coredns"
	// dnsRestarted is an annotation of the pods: another value is another revision, which makes new pods.
	dnsRestarted = "kubelink.mandelsoft.org/coredns-custom"
)

// stubDomain is a domain that another DNS service answers for.
type stubDomain struct {
	domain string // without final dot
	server netip.Addr
}

// stubDomains are the domains that the cluster's DNS is to send to kubelink (own), and to DNS services of meshes.
func stubDomains(zones []mesh.Zone, own netip.Addr) []stubDomain {
	var stubs []stubDomain
	for _, z := range zones {
		stubs = append(stubs, stubDomain{strings.TrimSuffix(z.Domain, "."), own})
		// Else kubelink has it as a part of the domain.
		if global := z.Global.Upstream.Addr(); global.IsValid() && global != own {
			stubs = append(stubs, stubDomain{strings.TrimSuffix(z.Global.Name, "."), global})
		}
	}
	return stubs
}

// serverBlocks is the text for the Corefile; empty if there are no domains. There is no cache: names follow links, and
// kubelink is near. Without max_fails 0, forward would ask for the root after a failure, which kubelink does not serve, and
// refuse for a while what kubelink answers again.
func serverBlocks(stubs []stubDomain, port string) string {
	if len(stubs) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("# Maintained by kubelink (coredns-configure): what is changed here is changed back.\n")
	for _, s := range stubs {
		fmt.Fprintf(&b, "%s:%s {\n    errors\n    forward . %s {\n        max_fails 0\n    }\n}\n", s.domain, port, s.server)
	}
	return b.String()
}

// corefile is what is to be known of the Corefile of the cluster's DNS.
type corefile struct {
	port    string // of the server block for the root: where pods' questions come in
	reload  bool   // it notices changes by itself
	imports bool   // of server blocks
}

// readCorefile looks at the tokens only: what is imported is not here.
func readCorefile(text string) corefile {
	c := corefile{port: "53"}
	depth, line := 0, 0
	for d := caddyfile.NewDispenser(dnsConfigKey, strings.NewReader(text)); d.Next(); {
		val, first := d.Val(), d.Line() != line
		line = d.Line()
		switch {
		case val == "{":
			depth++
		case val == "}":
			depth--
		case val == "reload" && first:
			c.reload = true
		case val == "import" && depth == 0:
			c.imports = true
		case depth == 0:
			zone := strings.TrimSuffix(strings.TrimPrefix(val, "dns://"), ",")
			if port, ok := strings.CutPrefix(zone, ".:"); ok {
				c.port = port
			}
		}
	}
	return c
}

// repairPause is how long the key stays at least, whatever others write: they may do so for ever, as fast as it goes.
const repairPause = time.Second

// clusterDNS is what the writer knows of the cluster's DNS.
type clusterDNS struct {
	stubs   []stubDomain
	checked time.Time   // when there was nothing left to do
	touched atomic.Bool // the ConfigMap was, since then
	note    string      // why it is not configured
	written time.Time   // when the key was
	watched bool
}

// configureDNS makes the cluster's DNS send the domains where they belong. An error is worth another try; what only the
// user can heal is noted.
func (w *writer) configureDNS(ctx context.Context, stubs []stubDomain) error {
	c := &w.dns
	if !c.touched.Swap(false) && slices.Equal(stubs, c.stubs) && time.Since(c.checked) < resync-time.Second {
		return nil
	}
	if wait := repairPause - time.Since(c.written); wait > 0 && slices.Equal(stubs, c.stubs) {
		c.touched.Store(true)
		time.AfterFunc(wait, w.b.wake)
		return nil
	}
	c.checked = time.Time{}
	note, lines, err := w.writeDNS(ctx, stubs)
	if err != nil {
		return err
	}
	if note != c.note && note != "" {
		if lines != "" {
			lines = "\n" + lines
		}
		w.b.log.Warn("coredns-configure: " + note + lines)
	}
	c.stubs, c.checked, c.note = stubs, time.Now(), note
	return nil
}

// writeDNS writes the key, where it differs. The note says what the user has to do, the lines are for the Corefile.
func (w *writer) writeDNS(ctx context.Context, stubs []stubDomain) (note, lines string, err error) {
	var custom, config corev1.ConfigMap
	err = w.reader.Get(ctx, types.NamespacedName{Namespace: dnsNamespace, Name: dnsConfig}, &config)
	known := err == nil
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) {
		return "", "", err
	}
	conf := readCorefile(config.Data[dnsConfigKey])
	text := serverBlocks(stubs, conf.port)

	const where = "ConfigMap " + dnsNamespace + "/" + dnsCustom
	err = w.reader.Get(ctx, types.NamespacedName{Namespace: dnsNamespace, Name: dnsCustom}, &custom)
	if err == nil || apierrors.IsNotFound(err) {
		if err := w.watchDNS(ctx); err != nil {
			return "", "", err
		}
	}
	if err == nil {
		err = w.writeDNSKey(ctx, &custom, text, known && !conf.reload)
	}
	switch {
	case apierrors.IsNotFound(err):
		return where + " does not exist: create it if the Corefile of the cluster's DNS imports it, else add the server blocks to that Corefile; the log has them", text, nil
	case apierrors.IsForbidden(err):
		return "kubelink may not read and write " + where + ": allow it, as deploy/overlays/coredns-configure does, or add the server blocks to the Corefile of the cluster's DNS; the log has them", text, nil
	case apierrors.IsInvalid(err): // it is immutable, for example
		return where + " cannot be written: " + oneLine(err), text, nil
	case err != nil:
		return "", "", err
	case known && !conf.imports:
		return "the Corefile in ConfigMap " + dnsNamespace + "/" + dnsConfig + " imports nothing, " + where + " has no effect: add the server blocks to that Corefile; the log has them", text, nil
	}
	return "", "", w.restartDNS(ctx)
}

// writeDNSKey sets the key of the ConfigMap, and no other; without text it removes it. It cannot create a ConfigMap.
func (w *writer) writeDNSKey(ctx context.Context, custom *corev1.ConfigMap, text string, restart bool) error {
	is, there := custom.Data[dnsCustomKey]
	if is == text && there == (text != "") {
		return nil
	}
	var value any // null: to be removed
	if text != "" {
		value = text
	}
	patch, err := json.Marshal(map[string]any{"data": map[string]any{dnsCustomKey: value}})
	if err != nil {
		return err
	}
	if err := w.client.Patch(ctx, custom, client.RawPatch(types.MergePatchType, patch), client.FieldOwner("kubelink")); err != nil {
		return err
	}
	w.dns.written = time.Now()
	w.b.log.Info("the cluster's DNS is configured", "configMap", dnsNamespace+"/"+dnsCustom, "key", dnsCustomKey)
	if restart {
		w.b.dnsRestart.Store(&text)
	}
	return nil
}

// restartDNS makes the pods of the cluster's DNS anew if they would not notice a change of ours. The annotation's value
// stands for the text, so that one change makes one restart, however often it is tried.
func (w *writer) restartDNS(ctx context.Context) error {
	text := w.b.dnsRestart.Load()
	if text == nil {
		return nil
	}
	sum := sha256.Sum256([]byte(*text))
	patch := fmt.Appendf(nil, `{"spec":{"template":{"metadata":{"annotations":{%q:"%x"}}}}}`, dnsRestarted, sum[:8])
	deployment := &unstructured.Unstructured{}
	deployment.SetGroupVersionKind(schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"})
	deployment.SetNamespace(dnsNamespace)
	deployment.SetName(dnsDeployment)
	err := w.client.Patch(ctx, deployment, client.RawPatch(types.MergePatchType, patch), client.FieldOwner("kubelink"))
	switch {
	case apierrors.IsNotFound(err), apierrors.IsForbidden(err):
		w.b.log.Warn("the cluster's DNS does not notice its new configuration, as its Corefile has no reload, and it cannot be restarted: do so by hand, or add reload to the Corefile", "error", err)
	case err != nil:
		return err
	default:
		w.b.log.Info("the cluster's DNS is restarted, as its Corefile has no reload", "deployment", dnsNamespace+"/"+dnsDeployment)
	}
	w.b.dnsRestart.CompareAndSwap(text, nil)
	return nil
}

// watchDNS notices when the ConfigMap comes, goes, or is changed by others. It starts after the first look, as a watch that
// is not allowed would be tried again and again.
func (w *writer) watchDNS(ctx context.Context) error {
	if w.dns.watched {
		return nil
	}
	informer, err := w.cache.GetInformer(ctx, &corev1.ConfigMap{}, cache.BlockUntilSynced(false))
	if err != nil {
		return err
	}
	touched := func() {
		w.dns.touched.Store(true)
		w.b.wake()
	}
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { touched() },
		UpdateFunc: func(any, any) { touched() },
		DeleteFunc: func(any) { touched() },
	})
	w.dns.watched = err == nil
	return err
}
