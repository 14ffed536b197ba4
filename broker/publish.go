package broker

// What DNS answers from: the zone table, made anew from the last state whenever that or a link changes. It has a lock
// of its own, so that the loss of a link shows in DNS at once, even while the reconciler waits.

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/apizone"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/nodecheck"
	"github.com/mandelsoft/kubelink/broker/zone"
)

// publisher keeps the zone table up to date.
type publisher struct {
	table   atomic.Pointer[zone.Table]
	replies *zone.ReplyCache
	apis    *apizone.Zones

	signal chan struct{} // a link has changed
	stop   chan struct{}
	done   chan struct{}

	mu   sync.Mutex // guards from, and makes tables follow each other; nothing slow happens under it
	from nameSource
}

// nameSource is what the table is made from, besides the states of links.
type nameSource struct {
	state       *mesh.State // nil: none yet
	restored    bool        // an earlier process knew the state; the API server has not confirmed it
	accesses    []apizone.Access
	globals     map[string]*zone.Global
	dataplane   dataplane              // nil: this broker carries no traffic
	check       *nodecheck.Checker     // nil: nothing checks the node
	carries     bool                   // the mode has a dataplane
	credentials bool                   // the dataplane has credentials
	secretTitle string                 // what these are
	elsewhere   map[string]zone.Status // links that another broker of the cluster carries; nil: this one does
	routed      map[string]bool        // links for which the kernel has had routes and NAT; not changed once stored
	nsAddresses []netip.Addr
	hosts       []netip.Prefix // of the local cluster: pods and nodes
	serveStale  time.Duration
	noStates    bool // there are no names _state.<cluster>.<domain>
}

func newPublisher(replies *zone.ReplyCache, apis *apizone.Zones) *publisher {
	return &publisher{replies: replies, apis: apis, signal: make(chan struct{}, 1)}
}

// followLinks follows the changes of links until stopFollowing.
func (p *publisher) followLinks() {
	p.stop, p.done = make(chan struct{}), make(chan struct{})
	go func() {
		defer close(p.done)
		for {
			select {
			case <-p.stop:
				return
			case <-p.signal:
				p.publish(func(*nameSource) {})
			}
		}
	}()
}

// stopFollowing ends what followLinks began.
func (p *publisher) stopFollowing() {
	if p.stop != nil {
		close(p.stop)
		<-p.done
		p.stop = nil
	}
}

// close takes the table away. Nothing follows links any more.
func (p *publisher) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	from := &p.from
	from.state, from.restored, from.accesses, from.globals, from.routed = nil, false, nil, nil, nil
	from.elsewhere = nil
	if t := p.table.Swap(nil); t != nil {
		t.Close()
	}
	p.apis.Close()
}

// linksChanged makes the table follow what the dataplane has noticed. It never blocks.
func (p *publisher) linksChanged() {
	select {
	case p.signal <- struct{}{}:
	default:
	}
}

// currentDataplane is what carries links right now; nil: nothing does.
func (p *publisher) currentDataplane() dataplane {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.from.dataplane
}

// linkStates are the states of the links as the names _state tell them; nil: no links are known yet.
func (p *publisher) linkStates() map[string]zone.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.from.state == nil {
		return nil
	}
	status, states := p.from.linkStatus(), map[string]zone.Status{}
	for _, l := range p.from.state.Links {
		states[l.Name] = status(l.Name)
	}
	return states
}

// routedLinks are the links for which the kernel has had routes and NAT.
func (p *publisher) routedLinks() map[string]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.from.routed
}

// findUnrouted returns the links of a state for which the kernel has had no routes yet.
func (p *publisher) findUnrouted(s *mesh.State) map[string]bool {
	unrouted, routed := map[string]bool{}, p.routedLinks()
	for _, l := range s.Links {
		if !routed[l.Name] {
			unrouted[l.Name] = true
		}
	}
	return unrouted
}

// changeSource changes the source, which the next table is made from.
func (p *publisher) changeSource(change func(*nameSource)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.from)
}

// publish changes the source and makes DNS answer from it, with links as they are right now.
func (p *publisher) publish(change func(*nameSource)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	from := &p.from
	if change(from); from.state == nil {
		return
	}
	status := from.linkStatus()
	opts := zone.Options{
		NSAddresses:  from.nsAddresses,
		Serial:       uint32(time.Now().Unix()),
		Backends:     p.apis.Set(from.accesses, func(link string) bool { return status(link).Usable }),
		Globals:      from.globals,
		Replies:      p.replies,
		ServeStale:   from.serveStale,
		NoStateNames: from.noStates,
		Links:        from.state.Links,
		Services:     from.state.LocalServices(),
		Hosts:        from.hosts,
	}
	for _, peer := range from.state.Peers {
		for _, n := range peer.Networks {
			opts.Networks = append(opts.Networks, zone.Network{Prefix: n, Link: peer.Link})
		}
	}
	p.table.Store(zone.New(p.table.Load(), from.state.Zones, status, opts))
}

// setConfig takes over what names depend on.
func (from *nameSource) setConfig(c *Config) {
	from.carries, from.secretTitle = c.Mode.CarriesTraffic(), c.pkiConfig().Title()
	from.nsAddresses = c.nsAddresses()
	from.hosts = slices.Concat(c.PodCIDRs, c.NodeCIDRs)
	from.serveStale, from.noStates = c.ServeStale, c.NoStateNames
}

// keepRouted forgets the links that a state lacks: the kernel is about to lose their routes, and may be told them
// again before it says so.
func (from *nameSource) keepRouted(s *mesh.State) {
	before := from.routed
	from.setRouted(s)
	maps.DeleteFunc(from.routed, func(name string, _ bool) bool { return !before[name] })
}

// setRouted notes that the kernel has the routes of the links, or as many of them as it takes.
func (from *nameSource) setRouted(s *mesh.State) {
	from.routed = make(map[string]bool, len(s.Links))
	for _, l := range s.Links {
		from.routed[l.Name] = true
	}
}

// linkStatus tells the zone table which links can be used right now.
func (from *nameSource) linkStatus() func(link string) zone.Status {
	if !from.carries {
		return func(string) zone.Status { return zone.Status{Usable: true} } // another system carries the traffic
	}
	if from.elsewhere != nil {
		return func(link string) zone.Status { return from.elsewhere[link] }
	}
	peers := map[string]*link.Status{}
	if from.dataplane != nil {
		statuses := from.dataplane.Statuses()
		peers = make(map[string]*link.Status, len(statuses))
		for i := range statuses {
			peers[statuses[i].Link] = &statuses[i]
		}
	}
	report := from.check.Report()
	links := make(map[string]zone.Status, len(from.state.Links))
	for _, l := range from.state.Links {
		st, ok := peers[l.Peer]
		found := report.About(l.Peer)
		switch {
		case ok && st.State == link.Up && !from.routed[l.Name]:
			links[l.Name] = zone.Status{State: string(link.Idle), Reason: link.Unrouted, Since: st.Since}
		case ok && st.State == link.Up && len(found) > 0:
			// Names go on: a check can be wrong, and what it has found may concern pods only.
			links[l.Name] = zone.Status{
				Usable: true, State: string(v1alpha1.StateError), Reason: found.String(),
				Since: st.Since, RTT: st.RTT,
			}
		case ok:
			links[l.Name] = zone.Status{
				Usable: st.State == link.Up, State: string(st.State), Reason: st.Reason, Since: st.Since, RTT: st.RTT,
			}
		case from.restored:
			links[l.Name] = zone.Status{
				State:  string(link.Idle),
				Reason: "kubelink has just started, and the API server has not told the links yet",
			}
		case from.credentials:
			links[l.Name] = zone.Status{State: string(link.Idle), Reason: "it is about to be connected"}
		default:
			links[l.Name] = zone.Status{State: string(v1alpha1.StateError), Reason: "there is no usable " + from.secretTitle}
		}
	}
	return func(link string) zone.Status { return links[link] }
}
