package kubelink

// Setup of a stanza: the server block gets a handler, the Corefile gets one configuration, and the
// broker of the process is started, updated or stopped as Corefiles come and go (holder.go).

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
			shared.started(s)
		}
		return nil
	})
}

// shared holds the broker of this process.
var shared = &holder{newBroker: func(cfg broker.Config) (Broker, error) { return broker.New(cfg) }}

// stanza is what all kubelink stanzas of a Corefile say together: one may have properties.
type stanza struct {
	config broker.Config
	zones  []string // of all server blocks, sorted
	place  string   // file:line of the one with properties; empty: there is none

	running bool // its Corefile has started in full; guarded by the holder
}

type stanzaKey struct{}

func setup(c *caddy.Controller) error {
	s, ok := c.Get(stanzaKey{}).(*stanza)
	if !ok {
		s = &stanza{config: defaults()}
		c.Set(stanzaKey{}, s)
		h := shared
		c.OnStartup(func() error {
			if err := h.apply(s); err != nil {
				if s.place != "" {
					err = fmt.Errorf("%s: %w", s.place, err)
				}
				return plugin.Error(pluginName, err)
			}
			if text := s.config.Unasked(s.config.MeshDomain); text != "" && s.config.Address.IsValid() {
				log.Warningf("%s: %s", s.place, text)
			}
			return nil
		})
		c.OnRestartFailed(func() error { return h.apply(s) })
		c.OnShutdown(func() error { h.release(s); return nil })
	}
	if err := s.parse(c); err != nil {
		return plugin.Error(pluginName, err)
	}

	k := &Kubelink{stanza: s, shared: shared}
	for _, z := range plugin.OriginsFromArgsOrServerBlock(nil, c.ServerBlockKeys) {
		if at, known := slices.BinarySearch(s.zones, z); !known { // their order means nothing
			s.zones = slices.Insert(s.zones, at, z)
		}
		if z != "." {
			k.zones = append(k.zones, z)
		}
	}
	if s.config.Domains = s.zones; slices.Contains(s.zones, ".") {
		s.config.Domains = nil // all
	}
	stopped := make(chan struct{})
	stop := sync.OnceFunc(func() { close(stopped) }) // caddy may say it twice
	c.OnStartup(func() error {
		if t, ok := dnsserver.GetConfig(c).Handler("transfer").(*transfer.Transfer); ok {
			go k.notify(stopped, t.Notify)
		}
		return nil
	})
	c.OnShutdown(func() error { stop(); return nil })
	dnsserver.GetConfig(c).AddPlugin(func(next plugin.Handler) plugin.Handler {
		k.Next = next
		return k
	})
	return nil
}

// parse reads the stanza of one server block.
func (s *stanza) parse(c *caddy.Controller) error {
	for first := true; c.Next(); first = false {
		if !first {
			return c.Errf("%s: %v", pluginName, plugin.ErrOnce)
		}
		place := fmt.Sprintf("%s:%d", c.File(), c.Line())
		p := parser{c: c, config: defaults(), lines: map[string]line{pluginName: {c.File(), c.Line()}}}
		if err := p.parse(); err != nil {
			return err
		}
		if len(p.lines) == 1 { // nothing but its name
			continue
		}
		if s.place != "" {
			return c.Errf("%s has properties at %s and at %s: keep them in one server block and write a plain %q in the others", pluginName, s.place, place, pluginName)
		}
		s.config, s.place = p.config, place
	}
	return nil
}
