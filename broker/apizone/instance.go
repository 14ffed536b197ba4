package apizone

// This file runs one kubernetes plugin of CoreDNS on the API of one cluster: its start, the loading of all names, and
// its end.

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/caddy/caddyfile"
	"github.com/coredns/coredns/plugin/kubernetes"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// pluginStanza has the defaults of the plugin and of the former system: names of services and of the endpoints of
// headless ones; none of pods, as addresses of pods mean nothing in other clusters.
const pluginStanza = "kubernetes %s {\n ttl 5\n}"

// instance is a running plugin.
type instance struct {
	apiSource
	number    uint64 // marks its entries in the reply cache
	transport *transport
	replies   *replyCache
	end       context.CancelFunc

	// Set when all names are loaded:
	plugin *kubernetes.Kubernetes
	index  objectIndex // of the plugin
}

// lastNumber is the number of the instance that was started last.
var lastNumber atomic.Uint64

// startInstance starts to load the names in a goroutine of the zones, which ends after stop. The instance calls synced
// when all names are there, and errorChanged at each change of transport.currentError; both from its goroutines.
func startInstance(source apiSource, of *Zones, synced func(*instance), errorChanged func()) *instance {
	ctx, end := context.WithCancel(context.Background())
	i := &instance{
		apiSource: source, number: lastNumber.Add(1), end: end,
		transport: newTransport(source, &of.budget, errorChanged), replies: of.replies,
	}
	of.running.Go(func() { i.run(ctx, synced) })
	return i
}

// run starts the plugin and ends with ctx. The plugin does not tell when its informers have ended: they see the end of
// the plugin, and stop closes their connections.
func (i *instance) run(ctx context.Context, synced func(*instance)) {
	if err := i.initPlugin(ctx); err != nil {
		if ctx.Err() == nil {
			i.transport.reportFailure("", err.Error())
		}
		return
	}
	var loading sync.WaitGroup
	loading.Go(func() {
		if i.awaitNames(ctx) == nil {
			synced(i)
		}
	})
	context.AfterFunc(ctx, func() { _ = i.plugin.APIConn.Stop() }) // the first call cannot fail
	i.plugin.APIConn.Run()                                         // until Stop
	loading.Wait()
}

// initPlugin makes the plugin, which makes no requests yet.
func (i *instance) initPlugin(ctx context.Context) error {
	config, err := i.transport.newConfig(ctx)
	if err != nil {
		return err
	}
	if i.own == nil {
		if err = i.transport.connect(ctx); err != nil {
			return err
		}
	}
	// The plugin's options can be set in this way only.
	c := &caddy.Controller{
		Dispenser: caddyfile.NewDispenser(i.zone, strings.NewReader(fmt.Sprintf(pluginStanza, i.zone))),
	}
	c.Next()
	if i.plugin, err = kubernetes.ParseStanza(c); err != nil {
		return err
	}
	i.plugin.Upstream = noUpstream{}
	i.plugin.ClientConfig = clientConfig{config: config}
	if _, _, err = i.plugin.InitKubeCache(ctx); err != nil {
		return err
	}
	i.index = i.plugin.APIConn
	return nil
}

// awaitNames waits until the plugin has all names. The error is that of ctx.
func (i *instance) awaitNames(ctx context.Context) error {
	const interval = 50 * time.Millisecond
	err := wait.PollUntilContextCancel(ctx, interval, true, func(context.Context) (bool, error) {
		return i.plugin.APIConn.HasSynced(), nil
	})
	if err == nil {
		i.transport.setLoaded()
	}
	return err
}

// stop ends the instance and its connections, and does not wait for that. The instance still answers the queries that
// it has begun.
func (i *instance) stop() {
	i.end()
	i.transport.conns.CloseAll()
	i.transport.limit.release()
}

// clientConfig gives the plugin a configuration that is not in a file. The plugin calls no other method.
type clientConfig struct {
	uncalledMethods
	config *rest.Config
}

type uncalledMethods = clientcmd.ClientConfig

func (c clientConfig) ClientConfig() (*rest.Config, error) { return c.config, nil }

// noUpstream keeps the plugin from following aliases: package zone follows them.
type noUpstream struct{}

func (noUpstream) Lookup(context.Context, request.Request, string, uint16) (*dns.Msg, error) {
	return new(dns.Msg), nil
}
