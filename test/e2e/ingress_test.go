package e2e

// What linked clusters may reach, in both directions, and objects as users of the former system have them.

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/fleet"
)

// setIngress sets the list of a link.
func setIngress(t *testing.T, ctx context.Context, b *fleet.Broker, link string, list ...string) {
	t.Helper()
	l, err := b.Link(ctx, link)
	must(t, err)
	l.ResourceVersion, l.Spec.Ingress = "", nil
	for _, e := range list {
		l.Spec.Ingress = append(l.Spec.Ingress, v1alpha1.IngressCIDR(e))
	}
	must(t, b.Apply(ctx, l))
}

// TestIngressLists: both lists decide, in either direction. What this side begins works in any case.
func TestIngressLists(t *testing.T) {
	ctx := startTest(t, 3*time.Minute)
	for _, way := range [][2]int{{0, 1}, {1, 0}} {
		t.Run(brokers[way[0]].Name, func(t *testing.T) { checkIngressLists(t, ctx, way[0], way[1]) })
	}
}

// checkIngressLists sets lists in one cluster, and tries what the other one reaches.
func checkIngressLists(t *testing.T, ctx context.Context, here, there int) {
	b, peer, server := brokers[here], brokers[there], servers[here]
	service, own, all := server.service.String(), b.MeshAddress.Addr().String(), b.ServiceCIDR.String()
	defer func() {
		setIngress(t, ctx, b, peer.Name)
		setIngress(t, ctx, b, b.Name)
	}()
	for _, c := range []struct {
		name           string
		local, link    []string
		service, pings bool
	}{
		{"no list", nil, nil, true, true},
		{"an address", nil, []string{service}, true, true},
		{"another address", nil, []string{"10.77.0.9/16", own}, false, true},
		{"denial around an allowance", nil, []string{"!" + all, service}, false, true},
		{"denial in an allowance", nil, []string{all, "!" + service}, false, true},
		{"denials only", nil, []string{"!10.77.0.0/16"}, true, true},
		{"the own address denied", nil, []string{"!" + own}, true, false},
		{"list of the LocalLink", []string{"10.77.0.0/16"}, nil, false, true},
		{"denial of the LocalLink", []string{"!" + service + "/32"}, []string{all}, false, true},
		{"both allow", []string{all}, []string{service}, true, true},
		{"nothing in both", []string{all}, []string{server.pod.Address.String()}, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			check := expectNoFailures(t, clients[here], servers[there].service)
			defer check()
			setIngress(t, ctx, b, b.Name, c.local...)
			setIngress(t, ctx, b, peer.Name, c.link...)
			waitForOutcome(t, "request", c.service, func(ctx context.Context) error {
				_, err := clients[there].Get(ctx, "http://"+service+"/")
				return err
			})
			waitForOutcome(t, "ping", c.pings, func(ctx context.Context) error {
				_, err := clients[there].Ping(ctx, b.MeshAddress.Addr())
				return err
			})
		})
	}
}

// waitForOutcome waits until an attempt succeeds, or until it fails.
func waitForOutcome(t *testing.T, what string, succeeds bool, try func(ctx context.Context) error) {
	t.Helper()
	within(t, 5*time.Second, fmt.Sprintf("success of a %s to be %v", what, succeeds), func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		if err := try(ctx); (err == nil) != succeeds {
			return fmt.Errorf("its result: %v", err)
		}
		return nil
	})
}

// formerKey is the public key of two links of testdata/former.yaml.
const formerKey = "PnCsvsNSxWV+ZDgmSSjxNTE7vGBLz8Lb3MVQTkI2mVM="

// TestFormerObjects: the API server takes objects as users of the former system have them, in a mesh and in networks
// that are free here. They mean what they meant: addresses in egress and ingress, host bits, denials that win.
func TestFormerObjects(t *testing.T) {
	ctx := startTest(t, time.Minute)
	b := brokers[0]
	file, err := os.ReadFile("../../broker/mesh/testdata/former.yaml")
	must(t, err)
	text := string(file)
	if inWireGuard() { // one key would be one peer
		text = strings.Replace(text, formerKey, strangersKey("outside20"), 1)
	}
	var good []string
	var noMask string
	names := []string{}
	for doc := range strings.SplitSeq(text, "\n---\n") {
		if strings.Contains(doc, "kind: KubeLink") {
			before, after, _ := strings.Cut(doc, "metadata: {name: ")
			name, rest, _ := strings.Cut(after, "}")
			names = append(names, "former--"+name)
			doc = before + "metadata: {name: former--" + name + "}" + rest
		}
		doc = strings.NewReplacer("192.168.0.", "192.168.77.", "100.64.", "100.65.",
			"baseDomain: kubelink", "baseDomain: former").Replace(doc)
		if strings.Contains(doc, "nomask") {
			noMask = doc
			continue
		}
		good = append(good, doc)
	}
	out, err := b.KubectlInput(ctx, strings.Join(good, "\n---\n"), "apply", "-f", "-")
	defer func() {
		for _, name := range append(names[1:], names[0]) {
			b.Kubectl(ctx, "delete", "kubelink", name, "--ignore-not-found")
		}
		b.Kubectl(ctx, "delete", "meshservice", "-n", "default", "aservice", "anotherservice", "elsewhere")
	}()
	must(t, err)
	if n := strings.Count(out, " created"); n != len(good) {
		t.Errorf("%d of %d objects are new:\n%s", n, len(good), out)
	}
	if _, err := b.KubectlInput(ctx, noMask, "apply", "-f", "-"); err == nil ||
		!strings.Contains(err.Error(), "spec.clusterAddress must be the address of the cluster in the mesh") {
		t.Errorf("without a mask: %v", err)
	}
	must(t, b.WaitState(ctx, "former--kubelink1", v1alpha1.StateUp))
	// Each mode has a link without what it needs.
	usable, unusable, says := "former--kubelink2", "former--kubelink3", "Inbound works in mode wireguard only"
	if inWireGuard() {
		usable, unusable, says = unusable, usable, "publicKey"
	}
	must(t, b.WaitState(ctx, unusable, v1alpha1.StateInvalid, says))
	within(t, 10*time.Second, "routes of the objects", func(ctx context.Context) error {
		routes, err := brokerRoutes(ctx, b)
		services := map[string]string{"former--kubelink2": "100.65.16.0/20", "former--kubelink3": "100.65.32.0/20"}
		for _, want := range []string{"10.7.0.0/16", services[usable], "192.168.77.0/24"} {
			if err == nil && !strings.Contains(routes, want) {
				err = fmt.Errorf("no route to %s:\n%s", want, routes)
			}
		}
		return err
	})
	for _, name := range []string{usable, "former--outside20"} {
		if l, err := b.Link(ctx, name); err != nil || l.Status.State == v1alpha1.StateInvalid {
			t.Errorf("%s: %+v, %v", name, l.Status, err)
		}
	}
}
