package wireguard

// wg(8) shows and changes the device in this process, as it does with one of the kernel.

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

func TestWgTool(t *testing.T) {
	p := newPair(t, false)
	p.toTwo.Preshared, p.toOne.Preshared = keyThree, keyThree
	p.connect()
	h, b := p.hosts[0], p.brokers[0]
	shown := h.run("wg show kubelink")
	for _, want := range []string{
		"interface: kubelink\n", "public key: " + keyOne.Public().String() + "\n", "listening port: 8777\n",
		"peer: " + keyTwo.Public().String() + "\n", "preshared key: (hidden)\n", "endpoint: 172.16.0.2:8777\n",
		"192.168.0.2/32", "100.64.16.0/20", "latest handshake: ", "transfer: ", "persistent keepalive: every 21 seconds\n",
	} {
		if !strings.Contains(shown, want) {
			t.Errorf("wg show misses %q:\n%s", want, shown)
		}
	}
	if all := h.run("wg show interfaces"); all != "kubelink\n" {
		t.Errorf("wg show interfaces prints %q", all)
	}

	// What is the same touches no session.
	probe, before := p.probe(), b.peer(keyTwo.Public())
	file := filepath.Join(t.TempDir(), "kubelink.conf")
	if err := os.WriteFile(file, []byte(h.run("wg showconf kubelink")), 0o600); err != nil {
		t.Fatal(err)
	}
	h.run("wg syncconf kubelink " + file)
	if after := b.peer(keyTwo.Public()); !isSameSession(before, after) {
		t.Errorf("%+v became %+v", before, after)
	}

	// What somebody changes, the broker makes right.
	foreign := makeKey(9).Public().String()
	h.run("wg set kubelink peer " + keyTwo.Public().String() + " persistent-keepalive 7\n" +
		"wg set kubelink peer " + foreign + " allowed-ips 192.168.0.9/32,100.64.16.0/24 endpoint 172.16.0.9:1")
	await(t, "the end of the changes", func() bool {
		is := b.show()
		return len(is.Peers) == 1 && is.Peers[0].PublicKey == wgtypes.Key(keyTwo.Public()) &&
			is.Peers[0].PersistentKeepaliveInterval == p.settings.Keepalive && len(is.Peers[0].AllowedIPs) == 2
	})
	if after := b.peer(keyTwo.Public()); !isSameSession(before, after) {
		t.Errorf("%+v became %+v", before, after)
	}
	h.run("wg set kubelink peer " + keyTwo.Public().String() + " remove")
	await(t, "the peer", func() bool {
		is := b.show()
		return len(is.Peers) == 1 && !is.Peers[0].LastHandshakeTime.IsZero()
	})
	probe.finish()
}
