package e2e

// The mode of two clusters is changed by a reload of their Corefiles.

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// changeTime is how soon packets have to pass after both ends have changed their mode.
const changeTime = 15 * time.Second

// servePort adds the UDP port of mode wireguard to the service for the time of a test.
func servePort(t *testing.T, ctx context.Context, b *fleet.Broker) {
	t.Helper()
	patch := func(ctx context.Context, how string) {
		_, err := b.Kubectl(ctx, "patch", "service", "kubelink", "-n", fleet.Namespace, "-p", fmt.Sprintf(
			`{"spec":{"ports":[{"name":"wireguard","port":%[1]d,"targetPort":%[1]d,"protocol":"UDP"%[2]s}]}}`,
			testbed.WireguardPort, how))
		must(t, err)
	}
	patch(ctx, "")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		patch(ctx, `,"$patch":"delete"`)
	})
}

// expectMode waits until the gateway node has the TUN and the chains of a mode, and nothing of another one.
func expectMode(t *testing.T, b *fleet.Broker, mode mesh.Mode) {
	t.Helper()
	within(t, 10*time.Second, fmt.Sprintf("%s to have what mode %s needs", b.Name, mode), func(ctx context.Context) error {
		devices, err := b.Host.Node.Run(ctx, "ip", "-d", "-o", "link", "show", "type", "tun")
		chains, err2 := b.Host.Node.Run(ctx, "iptables-save")
		if err = errors.Join(err, err2); err != nil {
			return err
		}
		if strings.Contains(devices, "kubelink") != mode.CarriesTraffic() ||
			strings.Contains(devices, "multi_queue") != (mode == mesh.Bridge) ||
			strings.Contains(chains, ":KLINK-") != mode.CarriesTraffic() ||
			strings.Contains(chains, ":KLINK-LINK") != (mode == mesh.WireGuard) {
			return errors.New(devices + chains)
		}
		return nil
	})
}

// Two clusters change from bridge to wireguard, back, to none, and so on, with one name of the device. Packets pass
// after each change, and nothing of the former mode stays in the kernel.
func TestModeByReload(t *testing.T) {
	ctx := startTest(t, 4*time.Minute)
	pair := brokers[:2]
	for _, b := range pair {
		servePort(t, ctx, b)
		must(t, b.SetKey(ctx, fleet.NewKey()))
	}
	must(t, pair[0].Apply(ctx, pair[1].LinkTo()))
	must(t, pair[1].Apply(ctx, pair[0].LinkTo()))
	texts := []string{pair[0].Corefile(), pair[1].Corefile()}
	t.Cleanup(func() {
		for i, b := range pair {
			must(t, b.SetCorefile(texts[i]))
			must(t, b.Reload(ctx))
			must(t, b.WaitReady(ctx))
		}
		restoreMesh(t)
	})
	const stanza = "\n    kubelink {\n"
	for _, mode := range []mesh.Mode{mesh.WireGuard, mesh.Bridge, mesh.None, mesh.WireGuard} {
		t.Run(string(mode), func(t *testing.T) {
			for i, b := range pair {
				must(t, b.SetCorefile(strings.Replace(texts[i], stanza, stanza+"        mode "+string(mode)+"\n", 1)))
				must(t, b.Reload(ctx))
			}
			for _, b := range pair {
				expectMode(t, b, mode)
			}
			if mode.CarriesTraffic() {
				bothWays(t, changeTime)
			}
		})
	}
}
