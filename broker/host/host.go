// Package host tells what the gateway node has and needs outside of the meshes: its networks, default gateways, DNS
// servers and API server, and the addresses of the endpoints of links. mesh.Build refuses objects that would take any
// of that away. The kernel, resolv.conf(5), name lookups and the API server say what there is, again and again.
package host

import (
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/onchange"
)

const (
	// refreshInterval is how often the watcher looks at everything without any event.
	refreshInterval = 30 * time.Second
	// settleTime is how long the watcher waits for further events before it looks.
	settleTime = 100 * time.Millisecond
	// maxShare bounds the share of time that looks at the kernel may take on a node with many routes that change often.
	maxShare = 10
)

// Config says what the watcher watches.
type Config struct {
	Device    string // name of the device of the meshes, which does not count
	Protocols []int  // that mark routes of the meshes, which do not count
	Resolv    string // path of resolv.conf(5); empty: /etc/resolv.conf
	API       *APIServer
	Changed   func() // called when Facts would tell something else; it must not block
	Log       *slog.Logger
}

// Watcher watches the node. Its methods may be called concurrently.
type Watcher struct {
	config  Config
	kernel  *kernel
	names   *resolver
	problem onchange.Error // why the kernel cannot be read
	refresh chan struct{}
	stop    chan struct{}
	wg      sync.WaitGroup

	mu      sync.Mutex // guards the fields below; nothing slow happens under it
	found   *kernelFacts
	links   map[string]string     // hosts of endpoints, by link
	remotes map[string]netip.Addr // where peers were connected last, by link
	last    mesh.Host             // that Facts told last
}

// Open looks at the node of the calling thread's network namespace, and watches it until Close.
func Open(config Config) (*Watcher, error) {
	if config.Resolv == "" {
		config.Resolv = "/etc/resolv.conf"
	}
	k, err := openKernel(config.Device, config.Protocols)
	if err != nil {
		return nil, err
	}
	w := &Watcher{
		config: config, kernel: k, found: &kernelFacts{}, refresh: make(chan struct{}, 1), stop: make(chan struct{}),
		links: map[string]string{}, remotes: map[string]netip.Addr{},
	}
	w.names = newResolver(w.reportChange)
	w.readKernel()
	if err := k.subscribe(); err != nil {
		config.Log.Warn("changes of the node's routes are noticed late", "interval", refreshInterval, "error", err)
	}
	config.API.follow(w)
	w.wg.Go(func() { k.awaitEvents(w.requestRefresh) })
	w.wg.Go(w.refreshLoop)
	w.wg.Go(func() { w.names.lookUpNames(w.stop) })
	return w, nil
}

// Close ends the watcher and awaits its goroutines.
func (w *Watcher) Close() {
	w.config.API.unfollow(w)
	close(w.stop)
	w.kernel.endEvents()
	w.wg.Wait()
}

// Facts tells what there is now, for the endpoints of these links, but not OwnTable. Names that are new are resolved in
// the background.
func (w *Watcher) Facts(links []v1alpha1.KubeLink, statuses []link.Status) mesh.Host {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.setLinks(links, statuses)
	w.last = w.makeFacts()
	return w.last
}

// setLinks takes over the endpoints of links. The address of a peer stays known while its link has the same endpoint,
// whether it is connected or not: else a link that must not cut the peer off would come and go. w.mu is held.
func (w *Watcher) setLinks(links []v1alpha1.KubeLink, statuses []link.Status) {
	before := w.links
	w.links = map[string]string{}
	for i := range links {
		o := &links[i]
		host, _, err := mesh.Endpoint(o.Spec.Endpoint, 1)
		switch {
		case err != nil, o.Spec.Endpoint == v1alpha1.EndpointLocal, o.Spec.GatewayLink != "":
		case o.Spec.Endpoint == v1alpha1.EndpointInbound:
			w.links[o.Name] = "" // the peer connects: there is nothing to look up
		default:
			w.links[o.Name] = host
		}
	}
	maps.DeleteFunc(w.remotes, func(name string, _ netip.Addr) bool {
		host, known := w.links[name]
		return !known || host != before[name]
	})
	for _, st := range statuses {
		_, known := w.links[st.Link]
		if remote, err := netip.ParseAddrPort(st.Remote); err == nil && known {
			w.remotes[st.Link] = remote.Addr().Unmap()
		}
	}
	w.names.setNames(slices.DeleteFunc(slices.Collect(maps.Values(w.links)), func(host string) bool { return host == "" }))
}

// makeFacts puts together what is known. Of the routes, only the ones to the addresses that count are told: pods come
// and go. w.mu is held.
func (w *Watcher) makeFacts() mesh.Host {
	h := mesh.Host{
		Networks: w.found.networks, Addresses: w.found.addresses,
		Needs:     slices.Concat(w.config.API.listNeeds(), w.found.needs),
		Endpoints: w.names.addresses(), Remotes: maps.Clone(w.remotes),
	}
	routes := map[netip.Prefix]bool{}
	add := func(a netip.Addr) {
		if r, ok := w.found.routes.LookupPrefixLPM(netip.PrefixFrom(a, a.BitLen())); ok {
			routes[r] = true
		}
	}
	for _, n := range h.Needs {
		add(n.Addr)
	}
	for _, list := range h.Endpoints {
		for _, a := range list {
			add(a)
		}
	}
	for _, a := range h.Remotes {
		add(a)
	}
	for _, host := range w.links {
		if a, err := netip.ParseAddr(host); err == nil {
			add(a)
		}
	}
	h.Routes = slices.SortedFunc(maps.Keys(routes), netip.Prefix.Compare)
	return h
}

// reportChange calls Changed if Facts would tell something else.
func (w *Watcher) reportChange() {
	w.mu.Lock()
	changed := !reflect.DeepEqual(w.makeFacts(), w.last)
	w.mu.Unlock()
	if changed {
		w.config.Changed()
	}
}

// requestRefresh makes the watcher look at the kernel again. It never blocks.
func (w *Watcher) requestRefresh() {
	select {
	case w.refresh <- struct{}{}:
	default:
	}
}

// refreshLoop looks at the kernel after events and now and then.
func (w *Watcher) refreshLoop() {
	ticker := time.NewTicker(refreshInterval)
	defer ticker.Stop()
	pause := settleTime
	for {
		select {
		case <-w.stop:
			return
		case <-ticker.C:
		case <-w.refresh:
		}
		select {
		case <-w.stop:
			return
		case <-time.After(pause):
		}
		start := time.Now()
		w.readKernel()
		w.reportChange()
		pause = max(settleTime, maxShare*time.Since(start))
	}
}

// readKernel looks at the kernel and at resolv.conf. What was known stays if the kernel cannot be read.
func (w *Watcher) readKernel() {
	found, err := w.kernel.readFacts()
	if w.problem.Set(err) && err != nil {
		w.config.Log.Warn("cannot read the routes of the node: links are not compared with them", "error", err)
	}
	if err != nil {
		return
	}
	found.needs = append(found.needs, nameServers(w.config.Resolv)...)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.found = found
}
