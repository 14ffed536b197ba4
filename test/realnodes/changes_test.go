package realnodes

// What requests across the mesh lose while kubelink's own pods, and what they depend on, change: the broker moves,
// routers end, API servers are away. In the end, kubelink is removed.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

const (
	requestInterval = 50 * time.Millisecond
	longestMove     = 2 * time.Second  // so long requests may fail while a broker moves
	apiServersAway  = 30 * time.Second // so long the test has them stopped
)

// requests of one pod, each on a connection of its own.
type requests struct {
	name    string
	results []result
}

type result struct {
	start time.Time
	took  time.Duration
	err   error
}

// askAll has a pod of each node ask the other cluster's service again and again. A request may take as long as the
// limit. The returned function ends that.
func (w *world) askAll(limit time.Duration) (stop func() []*requests) {
	ctx, cancel := context.WithCancel(context.Background())
	var all []*requests
	var ends sync.WaitGroup
	for i, s := range w.sites {
		for _, client := range s.pods {
			if client.mtu != s.row.mtu {
				continue
			}
			r := &requests{name: fmt.Sprintf("a pod on %s (%s)", client.Node.Name, s.row.mode)}
			all = append(all, r)
			url := "http://" + w.sites[1-i].web.String()
			ends.Go(func() { r.ask(ctx, client.Pod, url, limit) })
		}
	}
	return func() []*requests {
		cancel()
		ends.Wait()
		return all
	}
}

// ask starts a request at each interval, also while others have no answer yet. It ends with the last answer.
func (r *requests) ask(ctx context.Context, client *testbed.Pod, url string, limit time.Duration) {
	ticker := time.NewTicker(requestInterval)
	defer ticker.Stop()
	var mu sync.Mutex // guards r.results
	var ends sync.WaitGroup
	defer ends.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case start := <-ticker.C:
			ends.Go(func() {
				limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
				defer cancel()
				_, err := client.Get(limited, url)
				mu.Lock()
				defer mu.Unlock()
				r.results = append(r.results, result{start, time.Since(start), err})
			})
		}
	}
}

// outage is the longest time in which no request has started that was answered. It returns also the number of requests
// that failed, and why the first of them did.
func (r *requests) outage() (longest time.Duration, failed int, err error) {
	slices.SortFunc(r.results, func(a, b result) int { return a.start.Compare(b.start) })
	var since time.Time
	for _, each := range r.results {
		switch {
		case each.err == nil:
			since = time.Time{}
			continue
		case since.IsZero():
			since = each.start
		}
		failed++
		err = cmp.Or(err, each.err)
		longest = max(longest, each.start.Sub(since)+requestInterval)
	}
	return longest, failed, err
}

// slowest is the time of the request that took longest.
func (r *requests) slowest() (d time.Duration) {
	for _, each := range r.results {
		d = max(d, each.took)
	}
	return d
}

// failures tells when requests have failed, and why: a line for all that follow each other and fail for one reason.
func (r *requests) failures() string {
	const clock = "15:04:05.000" // as in the logs of all programs
	var text strings.Builder
	last, count := "", 0
	for _, each := range r.results { // outage has sorted them
		reason := ""
		if each.err != nil {
			reason = each.err.Error()
		}
		if count++; reason == last {
			continue
		}
		if last != "" {
			fmt.Fprintf(&text, " (%d such requests)", count)
		}
		if last, count = reason, 0; reason != "" {
			start := each.start.UTC().Format(clock)
			fmt.Fprintf(&text, "\n\tstarted %s, took %d ms: %s", start, each.took.Milliseconds(), reason)
		}
	}
	return text.String()
}

// checkOutages fails the test if any request has failed.
func (w *world) checkOutages(t *testing.T, what string, all []*requests) {
	t.Helper()
	if err := w.findOutages(t, what, all, 0); err != nil {
		t.Error(err)
	}
}

// findOutages logs what requests have cost, and returns the outages that took longer than allowed. For these, it logs
// what can tell why.
func (w *world) findOutages(t *testing.T, what string, all []*requests, allowed time.Duration) error {
	t.Helper()
	var errs []error
	for _, r := range all {
		long, failed, err := r.outage()
		t.Logf("%s, %s: %d of %d requests failed, for %d ms; the slowest took %d ms", what, r.name, failed, len(r.results),
			long.Milliseconds(), r.slowest().Milliseconds())
		if long > allowed || len(r.results) == 0 {
			errs = append(errs, fmt.Errorf("%s, %s: requests failed for %s, first: %w", what, r.name, long, err))
			t.Logf("%s, %s:%s", what, r.name, r.failures())
		}
	}
	if len(errs) > 0 {
		w.logState(t)
	}
	return errors.Join(errs...)
}

// logState logs what brokers, routers and Kubernetes have done last. Their clocks are in UTC.
func (w *world) logState(t *testing.T) {
	t.Helper()
	for _, b := range w.fleet.Brokers {
		for _, command := range []string{
			"-n kubelink logs --timestamps --prefix --tail=60 --selector app=kubelink",
			"-n kubelink logs --timestamps --prefix --tail=40 --selector app=kubelink --previous",
			"-n kubelink logs --timestamps --prefix --tail=40 --selector app=kubelink-router",
			"-n kubelink logs --timestamps --prefix --tail=20 --selector app=kubelink-router --previous",
			"get nodes,linkgateways,kubelinks,leases,endpointslices,pods --all-namespaces --output wide",
			"get events --all-namespaces --sort-by .lastTimestamp",
		} {
			out, err := b.Kubectl(w.ctx, strings.Fields(command)...)
			if err != nil { // no container has run before
				out = err.Error()
			}
			t.Logf("%s: kubectl %s:\n%s", b.Name, command, out)
		}
	}
}

// killRouters of all nodes, as the kernel does that is out of memory. Kubelet starts them again.
func (w *world) killRouters(t *testing.T) {
	ctx := w.ctx
	stop := w.askAll(10 * time.Second)
	killed := map[*testbed.Pod]*fleet.Broker{}
	for _, b := range w.fleet.Brokers {
		for _, p := range must(b.PodsOf(ctx, len(b.Nodes), fleet.Namespace, map[string]string{"app": "kubelink-router"}))(t) {
			check(t, p.KillContainer(ctx))
			killed[p] = b
		}
	}
	for p, b := range killed {
		before := p.Object.Status.ContainerStatuses[0].RestartCount
		check(t, b.WaitFor(ctx, p.Object, func() error {
			s := p.Object.Status.ContainerStatuses
			if len(s) != 1 || s[0].RestartCount <= before || !s[0].Ready {
				return fmt.Errorf("%+v", s)
			}
			return nil
		}))
	}
	w.checkOutages(t, "routers killed", stop())
}

func (w *world) rollRouters(t *testing.T) {
	ctx := w.ctx
	stop := w.askAll(10 * time.Second)
	for _, command := range []string{"restart", "status"} {
		for _, b := range w.fleet.Brokers {
			must(b.Kubectl(ctx, "-n", fleet.Namespace, "rollout", command, "daemonset/kubelink-router"))(t)
		}
	}
	w.checkOutages(t, "DaemonSet rolled", stop())
}

// moveBrokers moves each broker to another node. Other load of the machine can make a move take too long, but not each
// of several moves.
func (w *world) moveBrokers(t *testing.T) {
	const rounds = 3
	flows := map[*pod]*net.UDPConn{}
	for i, s := range w.sites {
		for _, p := range s.pods {
			flows[p] = must(p.dialDatagrams(w.ctx, w.sites[1-i].pods[0].service.String()))(t)
			defer flows[p].Close()
		}
	}
	w.askFlows(t, flows)
	for _, b := range w.fleet.Brokers {
		for round := 1; ; round++ {
			err := w.moveBroker(t, b)
			w.askFlows(t, flows)
			if err == nil {
				break
			}
			t.Logf("round %d: %v", round, err)
			if round == rounds {
				t.Errorf("each of %d moves of the broker of %s took too long", rounds, b.Name)
				break
			}
		}
	}
}

// askFlows sends datagrams of flows that began before the brokers moved, as those of a VPN.
func (w *world) askFlows(t *testing.T, flows map[*pod]*net.UDPConn) {
	t.Helper()
	for p, c := range flows {
		if _, _, err := askAgain(w.ctx, c, 100, true); err != nil {
			t.Errorf("a flow of %s on %s: %v", p.name, p.site.row, err)
		}
	}
}

// readDrainFlags returns the flags of the command with which users move a broker, as deploy/README.md prints it.
func readDrainFlags(t *testing.T) []string {
	t.Helper()
	_, command, found := strings.Cut(string(must(os.ReadFile("../../deploy/README.md"))(t)), "\nkubectl drain NODE ")
	command, _, _ = strings.Cut(command, "\n")
	if !found || command == "" {
		t.Fatal("deploy/README.md prints no kubectl drain")
	}
	return strings.Fields(command)
}

// moveBroker drains the node of a broker. A request has failed if there is no answer within a second. The error tells
// of pods whose requests have failed for too long.
func (w *world) moveBroker(t *testing.T, b *fleet.Broker) error {
	ctx, from := w.ctx, b.Host.Node
	stop := w.askAll(time.Second)
	check(t, from.Drain(ctx, "app=kubelink", readDrainFlags(t)...))
	check(t, b.FindPod(ctx))
	check(t, w.fleet.WaitMesh(ctx))
	// The old pod may take its time to end. What it then does must not harm, either.
	check(t, testbed.Until(ctx, "the end of the old pod", func(ctx context.Context) error {
		pods, err := b.Kubectl(ctx, "-n", fleet.Namespace, "get", "pods", "-l", "app=kubelink", "-o", "name")
		if err == nil && len(strings.Fields(pods)) != 1 {
			err = errors.New(pods)
		}
		return err
	}))
	for i, s := range w.sites {
		for _, client := range s.pods {
			must(client.Get(ctx, "http://"+w.sites[1-i].web.String()))(t)
		}
	}
	all := stop()
	check(t, from.Uncordon(ctx))
	if b.Host.Node == from {
		t.Fatalf("the broker of %s is still on %s", b.Name, from.Name)
	}
	return w.findOutages(t, "broker of "+b.Name+" moved to "+b.Host.Node.Name, all, longestMove)
}

func (w *world) stopAPIServers(t *testing.T) {
	ctx := w.ctx
	stop := w.askAll(10 * time.Second)
	for _, c := range w.fleet.Clusters {
		check(t, c.StopAPIServer(ctx))
	}
	<-time.After(apiServersAway)
	for _, c := range w.fleet.Clusters {
		check(t, c.StartAPIServer(ctx))
	}
	check(t, w.fleet.WaitMesh(ctx))
	w.checkOutages(t, fmt.Sprintf("API servers away for %s", apiServersAway), stop())
}

// checkRemoval removes kubelink from all clusters: nothing of it stays on any node.
func (w *world) checkRemoval(t *testing.T) {
	ctx := w.ctx
	for _, c := range w.fleet.Clusters {
		for _, n := range c.Nodes {
			if got := must(listOurs(ctx, n))(t); len(got) == 0 {
				t.Errorf("%s has nothing of kubelink that could be removed", n.Name)
			}
		}
	}
	start := time.Now()
	for _, b := range w.fleet.Brokers { // links of all clusters go before any broker goes
		must(b.Kubectl(ctx, "delete", "kubelinks", "--all"))(t)
	}
	t.Logf("links are gone after %.1f s", time.Since(start).Seconds())
	var g errgroup.Group
	for _, b := range w.fleet.Brokers {
		g.Go(func() error { return b.Uninstall(ctx) })
	}
	check(t, g.Wait())
	t.Logf("all is removed after %.1f s", time.Since(start).Seconds())
	w.checkNothingLeft(t)
}

// checkNothingLeft looks for what is kubelink's on nodes and in API servers.
func (w *world) checkNothingLeft(t *testing.T) {
	t.Helper()
	for _, b := range w.fleet.Brokers {
		for _, n := range b.Nodes {
			if got := must(listOurs(w.ctx, n))(t); len(got) > 0 {
				t.Errorf("%s still has\n%s", n.Name, strings.Join(got, "\n"))
			}
		}
		kinds := must(b.Kubectl(w.ctx, "get", "crds,namespaces,clusterroles,clusterrolebindings,roles,rolebindings",
			"--all-namespaces", "-o", "name"))(t)
		if strings.Contains(kinds, "kubelink") {
			t.Errorf("%s still has\n%s", b.Name, kinds)
		}
	}
}

// stateFolder lists the folder that the component state-dir leaves on a node.
const stateFolder = "find /var/lib -maxdepth 1 -name kubelink"

// listOurs lists what broker and router have on a node: routes and rules with their protocols, chains, devices, and the
// folder of the broker.
func listOurs(ctx context.Context, n *testbed.Node) (ours []string, err error) {
	for _, command := range []string{
		"ip route show table all proto 107", "ip route show table all proto 114", "ip route show table all proto 118",
		"ip -6 route show table all proto 107", "ip -6 route show table all proto 114",
		"ip -6 route show table all proto 118", "ip -details rule", "ip -6 -details rule", "ip -o link",
		"iptables-legacy-save", "iptables-nft-save", "ip6tables-legacy-save", "ip6tables-nft-save", stateFolder,
	} {
		words := strings.Fields(command)
		out, err := n.Run(ctx, words[0], words[1:]...)
		if err != nil && !strings.Contains(command, " table all ") { // no such table
			return nil, err
		}
		for line := range strings.Lines(out) {
			if isOurs(command, line) {
				ours = append(ours, command+": "+strings.TrimSpace(line))
			}
		}
	}
	return ours, nil
}

func isOurs(command, line string) bool {
	if strings.Contains(command, " route ") || command == stateFolder {
		return true
	}
	for _, mark := range []string{"KLINK", "KLROUTER", ": kubelink", ": klvxlan", "proto 107", "proto 114", "proto 118"} {
		if strings.Contains(line, mark) {
			return true
		}
	}
	return false
}
