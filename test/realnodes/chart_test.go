package realnodes

// The Helm chart on real nodes: from nothing to links, helm test, an upgrade, and an end that leaves nothing.

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

const (
	// From nothing to requests by name from each node. A machine that has nothing else to do takes a third of it.
	longestInstall = time.Minute
	longestRestart = 10 * time.Second // so long requests may fail while the broker's pod is replaced
)

// checkChart installs the chart in all clusters, links them, upgrades, and uninstalls while the links are there.
func (w *world) checkChart(t *testing.T) {
	before, from, err := fleet.ChartBefore(w.ctx, t.TempDir())
	check(t, err)
	t.Logf("the chart to begin with is that of %s", from)
	start := time.Now()
	w.installChart(t, before)
	took := time.Since(start)
	t.Logf("from nothing to requests by name from each node: %.1f s", took.Seconds())
	if took > longestInstall {
		t.Errorf("that is more than %s", longestInstall)
	}
	for _, b := range w.fleet.Brokers {
		out := must(b.Helm(w.ctx, "test", "kubelink", "--namespace", fleet.Namespace))(t)
		for _, want := range []string{"Phase:          Succeeded"} {
			if !strings.Contains(out, want) {
				t.Errorf("helm test in %s: no %q in\n%s", b.Name, want, out)
			}
		}
	}
	w.checkOffers(t)
	w.upgradeChart(t)
	w.uninstallChart(t)
}

// offers are a MeshService, a zone of global names, and a name in it for a service of the other cluster.
const offers = `{apiVersion: kubelink.mandelsoft.org/v1alpha1, kind: MeshService,
metadata: {name: offer, namespace: default}, spec: {service: web, meshAddress: %s}}
---
{apiVersion: coredns.mandelsoft.org/v1alpha1, kind: HostedZone,
metadata: {name: global, namespace: kubelink}, spec: {domainNames: [svc.global.kubelink], email: a@example.com}}
---
{apiVersion: coredns.mandelsoft.org/v1alpha1, kind: CoreDNSEntry,
metadata: {name: web, namespace: default}, spec: {dnsNames: [web.svc.global.kubelink], CNAME: %s}}`

// checkOffers has each cluster offer a mesh service, and serve global names: pods of each node ask by these names. They
// are there until kubelink is uninstalled.
func (w *world) checkOffers(t *testing.T) {
	for i, s := range w.sites {
		address := netip.AddrFrom4([4]byte{192, 168, 0, byte(120 + i)})
		_, err := s.KubectlInput(w.ctx, fmt.Sprintf(offers, address, w.sites[1-i].webName()), "apply", "-f", "-")
		check(t, err)
	}
	var g errgroup.Group
	for i, s := range w.sites {
		for _, p := range s.pods {
			for _, name := range []string{"offer.default.msvc." + w.sites[1-i].Name + ".kubelink", "web.svc.global.kubelink"} {
				g.Go(func() error { return p.askByName(w.ctx, name) })
			}
		}
	}
	check(t, g.Wait())
}

// installChart ends when a pod of each node has asked the other cluster by a name.
func (w *world) installChart(t *testing.T, chart string) {
	var g errgroup.Group
	for i, b := range w.fleet.Brokers {
		g.Go(func() error {
			values := "mode=" + strings.TrimSuffix(w.sites[i].row.mode, "-mode")
			if overlay := w.sites[i].row.overlay; overlay != "" {
				values += ",overlay=" + overlay
			}
			notes, err := b.InstallChart(w.ctx, chart, values)
			if err == nil && !strings.Contains(notes, "Next steps:") {
				err = fmt.Errorf("Helm tells no next steps: %s", notes)
			}
			return err
		})
	}
	check(t, g.Wait())
	check(t, w.fleet.Mesh(w.ctx))
	for i, s := range w.sites {
		for _, p := range s.pods {
			g.Go(func() error { return p.askByName(w.ctx, w.sites[1-i].webName()) })
		}
	}
	check(t, g.Wait())
}

// webName is the name of the cluster's service for other clusters.
func (s *site) webName() string { return "web.default.svc." + s.Name + ".kubelink" }

// askByName asks a service of another cluster, until it answers.
func (p *pod) askByName(ctx context.Context, name string) error {
	return testbed.Until(ctx, name+" from "+p.Name, func(ctx context.Context) error {
		_, err := p.Get(ctx, "http://"+name)
		return err
	})
}

// upgradeChart upgrades from the chart of the commit before, with one changed value: of the broker's pod, and then of
// its stanza alone, which costs no restart.
func (w *world) upgradeChart(t *testing.T) {
	chart := must(fleet.Chart())(t)
	b := w.fleet.Brokers[0]
	for _, c := range []struct {
		values  string
		limit   time.Duration // of a request
		allowed time.Duration
	}{
		{"resources.limits.memory=1100Mi", time.Second, longestRestart},
		{"properties.serve-stale=1h", 10 * time.Second, 0},
	} {
		stop := w.askAll(c.limit)
		start := time.Now()
		check(t, b.UpgradeChart(w.ctx, chart, c.values))
		check(t, w.fleet.WaitMesh(w.ctx))
		t.Logf("%s: upgraded (%s) after %.1f s", b.Name, c.values, time.Since(start).Seconds())
		for i, s := range w.sites {
			for _, p := range s.pods {
				check(t, p.askByName(w.ctx, w.sites[1-i].webName()))
			}
		}
		if err := w.findOutages(t, "upgrade of "+b.Name+" with "+c.values, stop(), c.allowed); err != nil {
			t.Error(err)
		}
	}
}

// uninstallChart uninstalls while LocalLinks and links are there. In one cluster Helm takes the objects with it, in the
// other one a user deletes them later: nothing hangs.
func (w *world) uninstallChart(t *testing.T) {
	ctx, chart := w.ctx, must(fleet.Chart())(t)
	check(t, w.fleet.Brokers[1].UpgradeChart(ctx, chart, "uninstall.objects=delete"))
	start := time.Now()
	var g errgroup.Group
	for _, b := range w.fleet.Brokers {
		g.Go(func() error { return b.UninstallChart(ctx) })
	}
	check(t, g.Wait())
	t.Logf("uninstalled after %.1f s", time.Since(start).Seconds())
	kept := w.fleet.Brokers[0]
	links := must(kept.Kubectl(ctx, "get", "kubelinks", "-o", "jsonpath={.items[*].metadata.finalizers}"))(t)
	names := must(kept.Kubectl(ctx, "get", "kubelinks", "-o", "name"))(t)
	if len(strings.Fields(names)) != 2 || links != "" {
		t.Errorf("links of users that Helm has left: %q with finalizers %q", names, links)
	}
	states := must(kept.Kubectl(ctx, "get", "kubelinks", "-o", "jsonpath={.items[*].status.state}"))(t)
	if states != "Down Down" {
		t.Errorf("links that nobody keeps are %s", states)
	}
	w.releaseLink(t, kept)
	for _, args := range [][]string{
		{"delete", "-f", filepath.Join(filepath.Dir(filepath.Dir(chart)), "crds"), "--timeout=20s"},
		{"delete", "namespace", fleet.Namespace, "--timeout=30s"},
	} {
		must(kept.Kubectl(ctx, args...))(t)
	}
	must(w.fleet.Brokers[1].Kubectl(ctx, "delete", "namespace", fleet.Namespace, "--timeout=30s"))(t)
	w.checkNothingLeft(t)
}

// releaseLink gives a LocalLink the finalizer that a broker leaves which is killed. What Helm runs before it deletes
// anything takes it off, so that the LocalLink can go.
func (w *world) releaseLink(t *testing.T, b *fleet.Broker) {
	local := must(b.Link(w.ctx, b.Name))(t)
	local.Finalizers = append(local.Finalizers, v1alpha1.Finalizer)
	check(t, b.Client.Update(w.ctx, local))
	check(t, b.Client.Delete(w.ctx, local))
	if l := must(b.Link(w.ctx, b.Name))(t); l.DeletionTimestamp == nil {
		t.Errorf("%s is not being deleted: %+v", l.Name, l.ObjectMeta)
	}
	config := filepath.Join(t.TempDir(), "kubeconfig")
	check(t, b.Kubeconfig(config))
	binary := must(fleet.Binary())(t)
	t.Log(must(b.ControlPlane.Run(w.ctx, binary, "uninstall", "--namespace", fleet.Namespace, "--kubeconfig", config))(t))
	if _, err := b.Link(w.ctx, b.Name); !apierrors.IsNotFound(err) {
		t.Errorf("LocalLink %s: %v, not gone", b.Name, err)
	}
}
