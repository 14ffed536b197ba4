package kubelink

// The connection to caddy. Each server block gets a handler. All stanzas of a Corefile share one
// configuration, and the callbacks of the Corefile start, update and stop the broker (lifecycle.go).

import (
	"fmt"
	"slices"
	"sync"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/transfer"

	"github.com/mandelsoft/kubelink/broker"
)

func init() {
	plugin.Register(pluginName, setup)
	caddy.RegisterEventHook(pluginName, func(event caddy.EventName, info any) error {
		if i, ok := info.(*caddy.Instance); ok && event == caddy.InstanceStartupEvent {
			i.StorageMu.RLock()
			s, _ := i.Storage[stanzaKey{}].(*stanza)
			i.StorageMu.RUnlock()
			sharedLifecycle.confirmStartup(s)
		}
		return nil
	})
}

// sharedLifecycle has the broker of this process.
var sharedLifecycle = &brokerLifecycle{
	newBroker: func(cfg broker.Config) (Broker, error) { return broker.New(cfg) },
}

// stanzaKey is where an instance of caddy stores the stanza of its Corefile.
type stanzaKey struct{}

// setup sets up the plugin for one server block.
func setup(c *caddy.Controller) error {
	s := corefileStanza(c)
	if err := s.parseBlock(c); err != nil {
		return plugin.Error(pluginName, err)
	}

	k := &Kubelink{stanza: s, lifecycle: sharedLifecycle}
	for _, z := range plugin.OriginsFromArgsOrServerBlock(nil, c.ServerBlockKeys) {
		if at, known := slices.BinarySearch(s.zones, z); !known { // sorted: another order is no change
			s.zones = slices.Insert(s.zones, at, z)
		}
		if z != "." {
			k.zones = append(k.zones, z)
		}
	}
	if s.config.Domains = s.zones; slices.Contains(s.zones, ".") {
		s.config.Domains = nil // all
	}
	registerNotifier(c, k)
	dnsserver.GetConfig(c).AddPlugin(func(next plugin.Handler) plugin.Handler {
		k.Next = next
		return k
	})
	return nil
}

// corefileStanza is the stanza of the Corefile. The first server block makes it and registers the
// callbacks that run the broker.
func corefileStanza(c *caddy.Controller) *stanza {
	if s, ok := c.Get(stanzaKey{}).(*stanza); ok {
		return s
	}
	s := &stanza{config: defaultConfig()}
	c.Set(stanzaKey{}, s)
	l := sharedLifecycle
	c.OnStartup(func() error {
		raiseStartStack()
		if err := l.applyStanza(s); err != nil {
			if s.place != "" {
				err = fmt.Errorf("%s: %w", s.place, err)
			}
			return plugin.Error(pluginName, err)
		}
		if text := s.config.MissingServerBlock(s.config.MeshDomain); text != "" && len(s.config.Addresses) > 0 {
			log.Warn(text, "place", s.place)
		}
		return nil
	})
	c.OnRestartFailed(func() error { return l.applyStanza(s) })
	c.OnShutdown(func() error { l.releaseBroker(s); return nil })
	return s
}

// registerNotifier runs notifySecondaries while the server block is up, if it has the transfer plugin.
func registerNotifier(c *caddy.Controller, k *Kubelink) {
	stopped := make(chan struct{})
	var running sync.WaitGroup
	stop := sync.OnceFunc(func() { // caddy may call OnShutdown twice
		close(stopped)
		running.Wait()
	})
	c.OnStartup(func() error {
		if t, ok := dnsserver.GetConfig(c).Handler("transfer").(*transfer.Transfer); ok {
			running.Go(func() { k.notifySecondaries(stopped, t.Notify) })
		}
		return nil
	})
	c.OnShutdown(func() error { stop(); return nil })
}
