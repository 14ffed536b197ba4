package main

// This file runs the tunnel to compare with: wireguard-go between the gateway nodes, as its own program runs it. The
// bench binary is that program, too: `bench wireguard NAME`.

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

const (
	wireguardCommand = "wireguard"
	wireguardPort    = testbed.WireguardPort + 1 // kubelink in mode wireguard has the other one
	wireguardDevice  = "wg0"
	// variable with the configuration in the form of wireguard's cross-platform interface
	wireguardConfig = "BENCH_WIREGUARD"
	profileVariable = "BENCH_PROFILE" // variable with the address for profiles
)

// wireguardAddress is that of the service behind wireguard-go, in no network of kubelink's links.
var wireguardAddress = netip.MustParseAddr("10.98.0.1")

// runWireguard is the main function of the helper process: it does what wireguard-go does, but not as a daemon.
func runWireguard(name string) int {
	err := func() error {
		dev, err := tun.CreateTUN(name, device.DefaultMTU)
		if err != nil {
			return fmt.Errorf("create TUN: %w", err)
		}
		wg := device.NewDevice(dev, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, ""))
		defer wg.Close()
		if err := wg.IpcSet(os.Getenv(wireguardConfig)); err != nil {
			return err
		}
		if err := wg.Up(); err != nil {
			return err
		}
		if address := os.Getenv(profileVariable); address != "" {
			mux := http.NewServeMux()
			mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
			go http.ListenAndServe(address, mux)
		}
		fmt.Println("ready")
		end := make(chan os.Signal, 1)
		signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
		select {
		case <-end:
			return nil
		case <-wg.Wait():
			return errors.New("the device is closed")
		}
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, "wireguard:", err)
		return 1
	}
	return 0
}

// wireguard is a WireGuard link between two clusters.
type wireguard struct {
	ends      []*wireguardEnd
	profile   bool // its processes serve profiles
	processes []*testbed.Process
}

// wireguardEnd is one end of a WireGuard link.
type wireguardEnd struct {
	tunnelEnd
	key *ecdh.PrivateKey
}

// startWireguard links the clusters' gateway nodes. Packets to the service in the second cluster go through the link,
// behind the address of the first gateway, as with kubelink. The second cluster does not reach services of the first.
func startWireguard(ctx context.Context, one, two *fleet.Broker, service netip.Addr, profile bool) (*wireguard, error) {
	ends := []*wireguardEnd{
		{tunnelEnd: tunnelEnd{Broker: one, device: wireguardDevice, address: netip.MustParsePrefix("10.99.0.1/24"),
			routed: []netip.Prefix{netip.PrefixFrom(service, service.BitLen())}}},
		{tunnelEnd: tunnelEnd{Broker: two, device: wireguardDevice, address: netip.MustParsePrefix("10.99.0.2/24")}},
	}
	for _, e := range ends {
		var err error
		if e.key, err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			return nil, err
		}
	}
	for _, e := range ends {
		if err := e.setFilter(ctx, "udp", wireguardPort); err != nil {
			return nil, err
		}
	}
	w := &wireguard{ends: ends, profile: profile}
	return w, w.start(ctx)
}

// start starts the processes of both ends.
func (w *wireguard) start(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for i, e := range w.ends {
		env := []string{wireguardConfig + "=" + e.config(w.ends[1-i])}
		if w.profile {
			env = append(env, profileVariable+"="+wireguardProfile)
		}
		gateway := e.Gateway()
		p, err := gateway.Start(context.WithoutCancel(ctx), "wireguard-go", env, self, wireguardCommand, wireguardDevice)
		if err != nil {
			return err
		}
		w.processes = append(w.processes, p)
		if err := p.WaitLog(ctx, "(?m)^ready$"); err != nil {
			return err
		}
		if err := e.setUpDevice(); err != nil {
			return err
		}
	}
	return nil
}

// restart replaces the processes of both ends. The devices and their routes go with the old ones.
func (w *wireguard) restart(ctx context.Context) error {
	if err := endProcesses(ctx, w.processes); err != nil {
		return err
	}
	w.processes = nil
	return w.start(ctx)
}

// config is the configuration of this end in the form of wireguard's cross-platform interface.
func (e *wireguardEnd) config(peer *wireguardEnd) string {
	var config strings.Builder
	fmt.Fprintf(&config, "private_key=%s\nlisten_port=%d\n", hex.EncodeToString(e.key.Bytes()), wireguardPort)
	fmt.Fprintf(&config, "public_key=%s\nendpoint=%s\n", hex.EncodeToString(peer.key.PublicKey().Bytes()),
		netip.AddrPortFrom(peer.PublicAddress, wireguardPort))
	address := peer.address.Addr()
	for _, a := range append([]netip.Prefix{netip.PrefixFrom(address, address.BitLen())}, e.routed...) {
		fmt.Fprintf(&config, "allowed_ip=%s\n", a)
	}
	return config.String()
}

// prepareMode gives a broker what it needs for mode wireguard beside what it has for mode bridge: a key, links with
// keys, and a port of its service.
func prepareMode(ctx context.Context, b *fleet.Broker, all []*fleet.Broker) error {
	if err := b.SetKey(ctx, fleet.NewKey()); err != nil {
		return err
	}
	for _, other := range all {
		if other == b {
			continue
		}
		if err := other.Apply(ctx, b.LinkTo()); err != nil {
			return err
		}
	}
	_, err := b.Kubectl(ctx, "patch", "service", "kubelink", "-n", fleet.Namespace, "-p", fmt.Sprintf(
		`{"spec":{"ports":[{"name":"wireguard","port":%[1]d,"targetPort":%[1]d,"protocol":"UDP"}]}}`,
		testbed.WireguardPort))
	return err
}

// readState returns the errors in the logs of the helper processes, or an error when one of them has ended.
func (w *wireguard) readState() (complaints string, err error) {
	if err := checkRunning(w.processes); err != nil {
		return "", err
	}
	for _, p := range w.processes {
		for line := range strings.Lines(p.Log()) {
			if strings.HasPrefix(line, "ERROR") {
				complaints += p.Name + ": " + line
			}
		}
	}
	return complaints, nil
}
