package stubdomain

// How the server blocks come into the cluster's DNS.

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Where the cluster's DNS is configured.
const (
	Namespace = "kube-system"
	ConfigMap = "coredns-custom" // server blocks that the Corefile imports
	// BlocksKey is that of kubelink. Another program's keys of the ConfigMap stay as they are.
	BlocksKey = "kubelink.server"

	CorefileMap = "coredns" // ConfigMap with the Corefile
	CorefileKey = "Corefile"
	deployment  = "coredns"
	// restartedFor is an annotation of the pods: another value is another revision, which makes new pods.
	restartedFor = "kubelink.mandelsoft.org/coredns-custom"

	customMap = "ConfigMap " + Namespace + "/" + ConfigMap // for messages
	owner     = client.FieldOwner("kubelink")
)

// repairPause is how long the key stays at least, whatever other programs write: they may go on for ever, as fast as
// the API server lets them.
const repairPause = time.Second

// maxNote bounds, in bytes, the part of a note that comes from the API server.
const maxNote = 200

// Patcher patches objects, as a client.Client does.
type Patcher interface {
	Patch(ctx context.Context, o client.Object, patch client.Patch, opts ...client.PatchOption) error
}

// Informers have an informer for each kind, as a cache.Cache does.
type Informers interface {
	GetInformer(ctx context.Context, o client.Object, opts ...cache.InformerGetOption) (cache.Informer, error)
}

// PendingRestart remembers that the cluster's DNS is to be restarted. It outlives a Configurer. The zero value is
// ready.
type PendingRestart struct {
	blocks atomic.Pointer[string] // for which the restart is; nil: none is pending
}

// Configurer configures the cluster's DNS. It has one user at a time.
type Configurer struct {
	Client    Patcher
	Reader    client.Reader // asks the API server
	Informers Informers
	Restart   *PendingRestart
	Interval  time.Duration // Configure looks again after it, without any event
	Wake      func()        // asks for another Configure
	Log       *slog.Logger

	config  *Corefile // of the cluster's DNS, as it was last; nil: not known yet
	stubs   []Stub
	checked time.Time   // when there was nothing left to do
	touched atomic.Bool // the ConfigMap was, since then
	note    string      // why the cluster's DNS is not configured, and the remedy; one line, empty: it is
	written time.Time   // when the key was
	watched bool
}

// Configure makes the cluster's DNS send the stub domains to their servers. An error is worth another try. What only
// the user can heal is in the note.
func (c *Configurer) Configure(ctx context.Context, stubs []Stub) error {
	same := slices.Equal(stubs, c.stubs)
	if !c.touched.Swap(false) && same && time.Since(c.checked) < c.Interval-time.Second {
		return nil
	}
	if wait := repairPause - time.Since(c.written); wait > 0 && same {
		c.touched.Store(true)
		time.AfterFunc(wait, c.Wake)
		return nil
	}
	c.checked = time.Time{}
	note, blocks, err := c.configureStubs(ctx, stubs)
	if err != nil {
		return err
	}
	if note != c.note && note != "" {
		var attributes []any
		if blocks != "" {
			attributes = append(attributes, "serverBlocks", blocks)
		}
		c.Log.Warn("coredns-configure: "+note, attributes...)
	}
	c.stubs, c.checked, c.note = stubs, time.Now(), note
	return nil
}

// configureStubs writes the key, where it differs. The blocks are for the log if there is a note. Blocks with which the
// cluster's DNS could not start are not written, and what is there of them goes.
func (c *Configurer) configureStubs(ctx context.Context, stubs []Stub) (note, blocks string, err error) {
	config, known, err := c.readConfig(ctx)
	if err != nil {
		return "", "", err
	}
	var custom corev1.ConfigMap
	err = c.Reader.Get(ctx, types.NamespacedName{Namespace: Namespace, Name: ConfigMap}, &custom)
	if err == nil || apierrors.IsNotFound(err) {
		if err := c.watchConfigMap(ctx); err != nil {
			return "", "", err
		}
	}
	stubs, served := config.dropServed(keepForeign(stubs, custom.Data[BlocksKey]), custom.Data)
	blocks = serverBlocks(stubs, config.port)
	var problem corefileProblem
	if known {
		problem = config.checkImports()
	}
	if err == nil {
		write := blocks
		if problem.broken {
			write = ""
		}
		err = c.writeBlocks(ctx, &custom, write, known && !config.reload)
	}
	if err != nil {
		if note = explainError(err); note == "" {
			return "", "", err
		}
		return note, blocks, nil
	}
	if problem.text != "" {
		return problem.text, blocks, nil
	}
	return served, "", c.restartPods(ctx)
}

// readConfig reads the Corefile of the cluster's DNS. If there is none, or the broker may not read it, it is not
// known. Where there was one, that still counts: a user who replaces it may leave it empty, or delete it, for a moment.
func (c *Configurer) readConfig(ctx context.Context) (config Corefile, known bool, err error) {
	var m corev1.ConfigMap
	err = c.Reader.Get(ctx, types.NamespacedName{Namespace: Namespace, Name: CorefileMap}, &m)
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) {
		return Corefile{}, false, err
	}
	if text := m.Data[CorefileKey]; strings.TrimSpace(text) != "" {
		config = ReadCorefile(text)
		c.config = &config
	}
	if c.config == nil {
		return ReadCorefile(""), false, nil
	}
	return *c.config, true, nil
}

// explainError says what the user has to do; empty: the broker is to try again.
func explainError(err error) string {
	switch {
	case apierrors.IsNotFound(err):
		return customMap + " does not exist: create it if the Corefile of the cluster's DNS imports it, " +
			"else add the server blocks to that Corefile; the log has them"
	case apierrors.IsForbidden(err):
		return "kubelink may not read and write " + customMap +
			": allow it, as deploy/components/coredns-configure does, " +
			"or add the server blocks to the Corefile of the cluster's DNS; the log has them"
	case apierrors.IsInvalid(err): // it is immutable, for example
		text := strings.ReplaceAll(err.Error(), "\n", "; ")
		if len(text) > maxNote {
			text = strings.ToValidUTF8(text[:maxNote], "") + "..."
		}
		return customMap + " cannot be written: " + text
	}
	return ""
}

// writeBlocks sets the key of the ConfigMap, and no other; without blocks it removes the key. It cannot create a
// ConfigMap.
func (c *Configurer) writeBlocks(ctx context.Context, custom *corev1.ConfigMap, blocks string, restart bool) error {
	is, there := custom.Data[BlocksKey]
	if is == blocks && there == (blocks != "") {
		return nil
	}
	var value any // null: to be removed
	if blocks != "" {
		value = blocks
	}
	patch, err := json.Marshal(map[string]any{"data": map[string]any{BlocksKey: value}})
	if err != nil {
		return err
	}
	if err := c.Client.Patch(ctx, custom, client.RawPatch(types.MergePatchType, patch), owner); err != nil {
		return err
	}
	c.written = time.Now()
	c.Log.Info("the cluster's DNS is configured", "configMap", Namespace+"/"+ConfigMap, "key", BlocksKey)
	if restart {
		c.Restart.blocks.Store(&blocks)
	}
	return nil
}

// restartPods makes the pods of the cluster's DNS anew if they do not notice a change by themselves.
func (c *Configurer) restartPods(ctx context.Context) error {
	blocks := c.Restart.blocks.Load()
	if blocks == nil {
		return nil
	}
	err := Restart(ctx, c.Client, *blocks, owner)
	switch {
	case apierrors.IsNotFound(err), apierrors.IsForbidden(err):
		c.Log.Warn("the cluster's DNS does not notice its new configuration, as its Corefile has no reload, "+
			"and it cannot be restarted: do so by hand, or add reload to the Corefile", "error", err)
	case err != nil:
		return err
	default:
		c.Log.Info("the cluster's DNS is restarted, as its Corefile has no reload",
			"deployment", Namespace+"/"+deployment)
	}
	c.Restart.blocks.CompareAndSwap(blocks, nil)
	return nil
}

// Restart makes the pods of the cluster's DNS anew, once for a text: it stands, as a digest, in an annotation.
func Restart(ctx context.Context, c Patcher, text string, opts ...client.PatchOption) error {
	sum := sha256.Sum256([]byte(text))
	patch := fmt.Appendf(nil, `{"spec":{"template":{"metadata":{"annotations":{%q:"%x"}}}}}`, restartedFor, sum[:8])
	pods := &unstructured.Unstructured{}
	pods.SetGroupVersionKind(schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"})
	pods.SetNamespace(Namespace)
	pods.SetName(deployment)
	return c.Patch(ctx, pods, client.RawPatch(types.MergePatchType, patch), opts...)
}

// watchConfigMap notices when the ConfigMap comes, goes, or is changed by other programs. It starts after the first
// read: the informer would try a forbidden watch again and again.
func (c *Configurer) watchConfigMap(ctx context.Context) error {
	if c.watched {
		return nil
	}
	informer, err := c.Informers.GetInformer(ctx, &corev1.ConfigMap{}, cache.BlockUntilSynced(false))
	if err != nil {
		return err
	}
	touch := func() {
		c.touched.Store(true)
		c.Wake()
	}
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { touch() },
		UpdateFunc: func(any, any) { touch() },
		DeleteFunc: func(any) { touch() },
	})
	c.watched = err == nil
	return err
}
