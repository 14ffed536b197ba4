package wireguard

// Brokers that end, are killed, and find what an earlier one has left; devices that go.

import (
	"fmt"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// A killed broker leaves the TUN with addresses and routes. The next one has the link up again.
func TestKilledBrokerWithDeviceInProcess(t *testing.T) {
	p := newPair(t, false)
	p.connect()
	probe := p.probe()
	h := p.hosts[0]
	show := func() string { return h.run("ip -o addr show dev kubelink\nip route show dev kubelink") }
	before := show()
	p.brokers[0].kill()
	after := strings.ReplaceAll(show(), " linkdown", "")
	if after != before || !strings.Contains(before, "100.64.0.0/16") {
		t.Errorf("of\n%s there is\n%s", before, after)
	}
	began := time.Now()
	b := h.startBroker()
	b.open(OpenArgs{Settings: p.settings})
	b.setKey(keyOne)
	b.set(p.toTwo)
	b.awaitStatus(link.Up, "", 5*time.Second)
	t.Logf("Up %s after the new process was started", time.Since(began))
	if after := show(); after != before {
		t.Errorf("of\n%s there is\n%s", before, after)
	}
	again := h.start("probe", "192.168.0.2")
	again.await("ready")
	again.finishWhole()
	lost, sent := probe.finish()
	t.Logf("%d of %d packets lost", lost, sent)
}

// newStandalonePair starts two connected brokers. A stand-alone wireguard-go has the device of the first one.
func newStandalonePair(t *testing.T) (p *pair, alone *process) {
	t.Helper()
	p = newHosts(t, false)
	alone = p.hosts[0].start("standalone", "kubelink")
	alone.await("ready")
	p.start(0, keyOne)
	p.start(1, keyTwo)
	p.connect()
	return p, alone
}

// A stand-alone wireguard-go outlives the brokers that tell it what to do.
func TestStandaloneProcessIsAdopted(t *testing.T) {
	p, alone := newStandalonePair(t)
	probe := p.probe()
	before := p.brokers[0].peer(keyTwo.Public())
	for range 3 {
		p.brokers[0].kill()
		p.start(0, keyOne)
		p.brokers[0].set(p.toTwo)
		p.brokers[0].awaitStatus(link.Up, "", 5*time.Second)
	}
	if after := p.brokers[0].peer(keyTwo.Public()); !isSameSession(before, after) {
		t.Errorf("%+v became %+v", before, after)
	}
	call[None](p.brokers[0], "Close", true)
	if n := len(p.brokers[0].show().Peers); n != 1 {
		t.Errorf("Close that keeps the device left %d peers", n)
	}
	p.start(0, keyOne)
	p.brokers[0].set(p.toTwo)
	probe.finishWhole()
	if !strings.Contains(p.brokers[0].stderr.String(), "device=adopted") {
		t.Error("not adopted: " + p.brokers[0].stderr.String())
	}

	// The broker takes over when that process ends.
	alone.stdin.Close()
	await(t, "the end of the process", func() bool {
		return strings.Contains(p.brokers[0].stderr.String(), "device=userspace")
	})
	p.hosts[0].route("192.168.0.1/32") // as the kernel's part does
	p.brokers[0].awaitStatus(link.Up, "", 10*time.Second)

	// Its device goes with it, that of another process only loses the peers.
	call[None](p.brokers[0], "Close", false)
	if out := p.hosts[0].run("ip -o link"); strings.Contains(out, "kubelink") {
		t.Error("Close left the TUN: " + out)
	}
	alone = p.hosts[0].start("standalone", "kubelink")
	alone.await("ready")
	p.start(0, keyOne)
	p.brokers[0].set(p.toTwo)
	call[None](p.brokers[0], "Close", false)
	if n := len(p.brokers[0].show().Peers); n != 0 {
		t.Errorf("Close left %d peers of a device that is not ours", n)
	}
}

// A stand-alone wireguard-go with another key serves somebody else, unless a broker has had it before.
func TestForeignProcessIsLeftAlone(t *testing.T) {
	p := newHosts(t, false)
	p.hosts[0].start("standalone", "kubelink").await("ready")
	user := p.hosts[0].startBroker() // it only does what wg(8) does
	call[None](user, "Tell", wgtypes.Config{PrivateKey: new(wgtypes.Key(keyThree)), ListenPort: new(51820),
		Peers: []wgtypes.PeerConfig{{PublicKey: wgtypes.Key(keyTwo.Public())}}})
	before := user.show()
	open := func(key mesh.SecretKey) (b *broker, said string) {
		t.Helper()
		b = p.hosts[0].startBroker()
		b.open(OpenArgs{Settings: p.settings})
		b.setKey(key)
		return b, call[SetReply](b, "Set", []mesh.Peer{p.toTwo}).Error
	}
	isMarked := func() bool { return strings.Contains(p.hosts[0].run("ip link show kubelink"), "alias "+mark) }
	b, said := open(keyOne)
	if !strings.Contains(said, "kubelink is a WireGuard device of another process that kubelink did not set up, and has "+
		"not the private key of this cluster: end that process or choose another ifce-name") {
		t.Errorf("Set says %q", said)
	}
	call[None](b, "Close", false)
	if after := user.show(); !reflect.DeepEqual(after, before) {
		t.Errorf("%+v became %+v", before, after)
	}

	// With our key it is what a former broker has left; from then on it is ours.
	call[None](user, "Tell", wgtypes.Config{PrivateKey: new(clampKey(keyOne))})
	b, said = open(keyOne)
	if said != "" || !isMarked() {
		t.Errorf("Set says %q, marked: %t", said, isMarked())
	}
	b.kill()
	b, said = open(makeKey(5))
	if is := user.show(); said != "" || is.PrivateKey != clampKey(makeKey(5)) || len(is.Peers) != 1 {
		t.Errorf("Set says %q, the device is %+v", said, is)
	}
	b.kill()
	b, _ = open(makeKey(5)) // there is nothing to tell
	call[None](b, "Close", false)
	if n := len(user.show().Peers); n != 0 {
		t.Errorf("Close left %d peers", n)
	}
}

// A process hangs that serves the device: links are Down and say so, and are Up again when it goes on.
func TestStoppedProcess(t *testing.T) {
	p, alone := newStandalonePair(t)
	b := p.brokers[0]
	stop := func(s syscall.Signal) {
		t.Helper()
		if err := alone.cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	stop(syscall.SIGSTOP)
	defer stop(syscall.SIGCONT)
	b.awaitStatus(link.Down, errHangs.Error(), 8*time.Second)
	if reply := call[SetReply](b, "Set", []mesh.Peer{p.toTwo}); !strings.Contains(reply.Error, errHangs.Error()) {
		t.Errorf("Set: %+v", reply)
	}
	stop(syscall.SIGCONT)
	b.awaitStatus(link.Up, "", 10*time.Second)
	stop(syscall.SIGSTOP)
	if st := b.awaitStatus(link.Down, errHangs.Error(), 8*time.Second); st.Downs != 2 {
		t.Errorf("the link went down %d times", st.Downs)
	}
	began := time.Now()
	if err := b.client.Call("Broker.Close", false, &None{}); err == nil || err.Error() != errHangs.Error() {
		t.Errorf("Close: %v", err)
	}
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("Close took %s", took)
	}
}

// A client of wg(8)'s socket stalls in its request, which keeps the broker from the device, until its time is over.
func TestStalledClient(t *testing.T) {
	p := newPair(t, false)
	p.connect()
	p.hosts[0].start("staller", "kubelink").await("ready")
	p.brokers[0].set(p.toTwo)
	if st := p.brokers[0].statuses()[0]; st.State != link.Up {
		t.Errorf("%+v", st)
	}
	p.hosts[0].start("staller", "kubelink").await("ready")
	call[None](p.brokers[0], "Close", false)
}

func TestKeptTUN(t *testing.T) {
	p := newPair(t, false)
	p.connect()
	call[None](p.brokers[0], "Close", true)
	if out := p.hosts[0].run("ip route show dev kubelink"); !strings.Contains(out, "100.64.0.0/16") {
		t.Error("routes have gone: " + out)
	}
	if out := p.hosts[0].run("ls " + socketFolder); out != "" {
		t.Error("left " + out)
	}
	p.start(0, keyOne)
	p.brokers[0].set(p.toTwo)
	p.brokers[0].awaitStatus(link.Up, "", 5*time.Second)
}

// A user deletes the TUN: it is made anew, and the links go on.
func TestDeletedTUN(t *testing.T) {
	p := newPair(t, true)
	p.connect()
	goesOn := func() {
		t.Helper()
		await(t, "a handshake of the new device", func() bool {
			var is wgtypes.Device
			err := p.brokers[0].client.Call("Broker.Show", "kubelink", &is)
			return err == nil && len(is.Peers) == 1 && !is.Peers[0].LastHandshakeTime.IsZero()
		})
		p.hosts[0].route("192.168.0.1/32") // as the kernel's part does
		p.brokers[0].awaitStatus(link.Up, "", 10*time.Second)
	}
	p.hosts[0].run("ip link del kubelink")
	goesOn()
	probe := p.probe()
	probe.finishWhole()

	// Another device has the name: the link is not Up as long as it carries nothing.
	const replace = "ip link del kubelink; ip link add kubelink type bridge"
	await(t, "the other device", func() bool { return p.hosts[0].try("sh", "-c", replace) == nil })
	p.brokers[0].awaitStatus(link.Idle, "kubelink is a device of another kind (bridge): remove it", 10*time.Second)
	p.hosts[0].run("ip link del kubelink")
	goesOn()
}

// What else has the name of the device.
func TestOtherDeviceOfTheName(t *testing.T) {
	for _, c := range []struct {
		name, commands string
		device         link.WireGuardDevice
		want           string // error; empty: it is replaced
	}{
		{"TUN of bridge mode", "ip tuntap add dev kubelink mode tun multi_queue", link.AutoDevice, ""},
		{"TUN of bridge mode without offloads", "ip tuntap add dev kubelink mode tun", link.AutoDevice, ""},
		{"a bridge", "ip link add kubelink type bridge", link.AutoDevice,
			"kubelink is a device of another kind (bridge): remove it (ip link del kubelink) or choose another ifce-name"},
		{"a TAP", "ip tuntap add dev kubelink mode tap", link.AutoDevice,
			"kubelink is a device of another kind (TAP): remove it (ip link del kubelink) or choose another ifce-name"},
		{"no WireGuard in the kernel", "ip link", link.KernelDevice,
			"the kernel has no WireGuard (operation not supported): load the module wireguard on the node"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			h.run(c.commands)
			b := h.startBroker()
			args := OpenArgs{Interface: "kubelink", Settings: link.Settings{Device: c.device}}
			err := b.client.Call("Broker.Open", args, &None{})
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
	t.Run("TAP of a process", func(t *testing.T) {
		h := newHost(t)
		h.start("tap", "kubelink").await("ready")
		err := h.startBroker().client.Call("Broker.Open", OpenArgs{Interface: "kubelink"}, &None{})
		if err == nil || !strings.Contains(err.Error(), "kubelink is a device of another kind (TAP)") {
			t.Error(err)
		}
		h.run("ip link show kubelink")
	})
	t.Run("TUN of a process without WireGuard", func(t *testing.T) {
		h := newHost(t)
		first, second := h.startBroker(), h.startBroker()
		first.open(OpenArgs{})
		h.run("rm " + socketPath("kubelink"))
		err := second.client.Call("Broker.Open", OpenArgs{Interface: "kubelink"}, &None{})
		if err == nil || !strings.Contains(err.Error(), "TUN kubelink is in use by a process that serves no WireGuard at "+
			"/var/run/wireguard/kubelink.sock (no such file or directory): end it") {
			t.Error(err)
		}
	})
}

// Without a folder for the socket, wg(8) sees nothing and links need nothing of it.
func TestNoFolderForSocket(t *testing.T) {
	p := newHosts(t, false)
	p.hosts[0].run("mount -o remount,ro " + socketFolder)
	p.start(0, keyOne)
	p.start(1, keyTwo)
	p.connect()
	if log := p.brokers[0].stderr.String(); !strings.Contains(log,
		"let the container have a writable /var/run/wireguard (volume emptyDir)") {
		t.Error("no warning: " + log)
	}
}

func TestManyPeers(t *testing.T) {
	h := newHost(t)
	h.run("ip link add eth0 type bridge\nip addr add 172.16.0.1/16 dev eth0\nip link set eth0 up")
	var peers []mesh.Peer
	for i := range 250 {
		key := makeKey(byte(i))
		key[31] = byte(i >> 8)
		peers = append(peers, mesh.Peer{Link: fmt.Sprintf("link%03d", i), Key: key.Public(),
			Host: fmt.Sprintf("172.16.1.%d", i), Port: 8777,
			Networks: prefixes(fmt.Sprintf("192.168.%d.%d/32", i/200, i%200+1), fmt.Sprintf("100.%d.0.0/16", i))})
	}
	b := h.startBroker()
	used := func() time.Duration { return call[time.Duration](b, "CPU", None{}) }
	setAll := func() (took, cpu time.Duration) {
		began, before := time.Now(), used()
		reply := call[SetReply](b, "Set", peers)
		for reply.Error == errHangs.Error() { // other programs have the processors
			reply = call[SetReply](b, "Set", peers)
		}
		if reply.Error != "" {
			t.Fatal(reply.Error)
		}
		return time.Since(began), used() - before
	}
	began, before := time.Now(), used()
	b.open(OpenArgs{Settings: link.Settings{ListenPort: 8777, Keepalive: 21 * time.Second}})
	b.setKey(makeKey(77))
	own := makeKey(77).Public()
	for i := range peers {
		if peers[i].Key == own {
			peers[i].Key = keyTwo.Public()
			peers[i].Key[5]++
		}
	}
	setAll()
	total, cpu := time.Since(began), used()-before
	if n := len(b.show().Peers); n != 250 {
		t.Fatalf("%d peers", n)
	}
	peers[100].Preshared = keyTwo
	peers[100].Networks = prefixes("10.0.0.0/16")
	changed, changedCPU := setAll()
	is := b.peer(peers[100].Key)
	if is.PresharedKey != wgtypes.Key(keyTwo) || len(is.AllowedIPs) != 1 {
		t.Errorf("%+v", is)
	}
	result := fmt.Sprintf("Open and Set %s (CPU %s), one changed peer %s (CPU %s)", total, cpu, changed, changedCPU)
	t.Log(result)
	// By the CPU: a busy machine takes longer.
	if cpu > 5*time.Second || changedCPU > time.Second {
		t.Error(result)
	}
}
