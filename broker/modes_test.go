package broker

// A reload that changes the mode, or the name of the device: in network namespaces that the test makes, with the TUN,
// iptables and WireGuard in user space of this machine.

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/mandelsoft/kubelink/broker/kernel"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

const namespaceVariable = "KUBELINK_TEST_IN_NAMESPACE" // the process is the one that unshared has started

// unshared runs a test in another process with a network namespace of its own: iptables runs in that of the process.
func unshared(t *testing.T, test func(*testing.T)) {
	t.Helper()
	if os.Getenv(namespaceVariable) != "" {
		test(t)
		return
	}
	c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	c.Env = append(os.Environ(), namespaceVariable+"=1")
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	out, err := c.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("in its namespace (as root): %v\n%s", err, out)
	}
}

// command runs a command and returns what it prints.
func command(t *testing.T, line string) string {
	t.Helper()
	words := strings.Fields(line)
	out, err := exec.CommandContext(t.Context(), words[0], words[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
	return string(out)
}

// carry has the gateway of a broker carry a link, as the reconciler does.
func carry(t *testing.T, b *Broker) {
	t.Helper()
	local := prefixes("192.168.0.11/24")
	peer := mesh.Peer{
		Link: "two", Local: local, Addresses: prefixes("192.168.0.12/24"), Key: mesh.SecretKey{8}.Public(),
		Networks: []netip.Prefix{netip.MustParsePrefix("192.168.0.12/32"), netip.MustParsePrefix("100.64.16.0/20")},
	}
	s := &mesh.State{
		Peers: []mesh.Peer{peer}, Meshes: []mesh.Mesh{{Link: "one", Addresses: local}},
		Routes: []mesh.Route{{Destination: peer.Networks[1], Source: local[0].Addr()}},
	}
	g := b.r.gateway
	if b.cfg.Mode == mesh.WireGuard {
		g.SetCredentials(&link.Credentials{PrivateKey: mesh.SecretKey{16}})
	} else {
		g.SetCredentials(&link.Credentials{Unencrypted: true})
	}
	if err := g.Set(s.Peers, nil); err != nil {
		t.Fatalf("mode %s: %v", b.cfg.Mode, err)
	}
	want := kernel.NewState(s)
	if g.filters {
		want.FilterLinks(s)
	}
	err := g.kernel.Set(want)
	if err == kernel.ErrBusy {
		g.kernel.Wait()
		err = g.kernel.Set(want)
	}
	if err != nil {
		t.Fatalf("mode %s: %v", b.cfg.Mode, err)
	}
	if all := g.Statuses(); len(all) != 1 || all[0].State != link.Idle {
		t.Errorf("mode %s: links %+v", b.cfg.Mode, all)
	}
}

// expectDevice compares what the kernel has with a mode: its TUN with the name, no other one, and its chains.
func expectDevice(t *testing.T, mode mesh.Mode, name string) {
	t.Helper()
	devices, chains := command(t, "ip -d -o link show type tun"), command(t, "iptables-save")
	is := fmt.Sprintf("%d TUN, several queues %v, chains of links %v, others %v", strings.Count(devices, "\n"),
		strings.Contains(devices, "multi_queue"), strings.Contains(chains, "KLINK-LINK"), strings.Contains(chains, ":KLINK-"))
	want := map[mesh.Mode]string{
		mesh.None:      "0 TUN, several queues false, chains of links false, others false",
		mesh.Bridge:    "1 TUN, several queues true, chains of links false, others true",
		mesh.WireGuard: "1 TUN, several queues false, chains of links true, others true",
	}[mode]
	if is != want || mode != mesh.None && !strings.Contains(devices, ": "+name+": ") {
		t.Errorf("mode %s: %s\nwant: %s\n%s%s", mode, is, want, devices, chains)
	}
}

// A changed mode, or another ifce-name, closes the former dataplane before the next one is opened: both need the TUN,
// or the port. Nothing of the former one stays. Where the next one cannot be opened, the former one is opened again.
func TestGatewayByReload(t *testing.T) {
	unshared(t, func(t *testing.T) {
		command(t, "ip link set lo up")
		command(t, "mount -t tmpfs tmpfs /run")
		command(t, "ip link add taken type veth peer name end")
		cfg := Config{Local: mesh.Local{Mode: mesh.Bridge}, APIConfig: APIConfig{Kubeconfig: writeKubeconfig(t)}}
		cfg.Interface, cfg.RouteTable, cfg.BrokerPort = "klink", kernel.MainTable, 8777
		b, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Start(); err != nil {
			t.Fatal(err)
		}
		defer b.Stop()
		carry(t, b)
		expectDevice(t, mesh.Bridge, "klink")
		for _, c := range []struct {
			mode mesh.Mode
			name string
			says string // the error; empty: none
		}{
			{mesh.WireGuard, "klink", ""},
			{mesh.Bridge, "klink", ""},
			{mesh.Bridge, "other", ""},
			{mesh.Bridge, "taken", "ifce-name taken: open TUN taken: "},
			{mesh.WireGuard, "taken", "mode wireguard: taken is a device of another kind"},
			{mesh.WireGuard, "other", ""},
			{mesh.WireGuard, "klink", ""},
			{mesh.WireGuard, "taken", "ifce-name taken: taken is a device of another kind"},
			{mesh.Bridge, "taken", "mode bridge: open TUN taken: "},
			{mesh.None, "klink", ""},
			{mesh.WireGuard, "klink", ""},
		} {
			next := b.cfg
			next.Mode, next.Interface = c.mode, c.name
			err := b.Update(next)
			if (err != nil) != (c.says != "") || err != nil && !strings.HasPrefix(err.Error(), c.says) {
				t.Fatalf("to mode %s, device %s: %v", c.mode, c.name, err)
			}
			if failed := c.says != ""; failed == (b.cfg.Mode == c.mode && b.cfg.Interface == c.name) || b.controllers == nil {
				t.Errorf("mode %s, device %s after %v", b.cfg.Mode, b.cfg.Interface, err)
			}
			if b.r.gateway != nil {
				carry(t, b)
			}
			expectDevice(t, b.cfg.Mode, b.cfg.Interface)
		}
	})
}
