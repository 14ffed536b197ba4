package router

// The check of packets of pods, in real network namespaces.

import (
	"fmt"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/kernel"
	"github.com/mandelsoft/kubelink/broker/link"
	"github.com/mandelsoft/kubelink/broker/nodecheck"
)

// enter takes the goroutine to a new network namespace. The thread ends with the goroutine.
func enter(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	before, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	after, err := netns.New()
	if err != nil {
		t.Fatalf("make a network namespace (as root): %v", err)
	}
	defer after.Close()
	if before.Equal(after) {
		t.Fatal("still in the namespace of the host")
	}
}

// run runs commands, one in a line.
func run(t *testing.T, commands string) {
	t.Helper()
	for line := range strings.Lines(commands) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
	}
}

// podNode makes a node with a pod and a gateway at 10.250.0.1.
const podNode = `
	ip link set lo up
	ip link add eth0 type veth peer name wire0
	ip link add cali1 type veth peer name wire1
	ip link set eth0 up
	ip link set cali1 up
	ip link set wire0 up
	ip link set wire1 up
	ip addr add 10.250.0.3/16 dev eth0
	ip route add default via 10.250.0.9
	ip route add 100.96.3.5 dev cali1 scope link
	sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.cali1.rp_filter=0`

func TestCheckPackets(t *testing.T) {
	for name, c := range map[string]struct {
		commands string
		reason   string
		texts    []string
	}{
		"all is well": {"", "", nil},
		"a rule for packets of pods": {"ip rule add priority 100 from 100.96.0.0/11 lookup 100\n" +
			"ip route add default via 10.250.0.8 table 100", PacketsTakenAway,
			[]string{"100.96.3.5, device cali1",
				"100.64.16.0/20 (for example 100.64.16.1) leave via 10.250.0.8 dev eth0 (table 100)"}},
		"a rule that drops": {"ip rule add priority 100 from 100.96.0.0/11 to 100.64.16.0/20 prohibit", PacketsTakenAway,
			[]string{"packets of pods (100.96.3.5, device cali1) to 100.64.16.0/20 do not leave"}},
		"forwarding is off": {"sysctl -qw net.ipv4.ip_forward=0", ForwardingOff, []string{"device cali1"}},
		"a rule that accepts": {"nft add table inet f\n" +
			"nft add chain inet f c { type filter hook forward priority 0 ; policy drop ; }\n" +
			"nft add rule inet f c oifname eth0 accept", "", nil},
		"a policy that drops": {"nft add table inet f\n" +
			"nft add chain inet f c { type filter hook forward priority 0 ; policy drop ; }\n" +
			"nft add rule inet f c ct state established accept", PacketFilter,
			[]string{"packets of pods to 100.64.16.0/20 are dropped on this node: nftables: chain inet f c has the policy DROP",
				"nft insert rule inet f c oifname eth0 accept"}},
		"a rule that drops what is for a mesh": {"nft add table inet f\n" +
			"nft add chain inet f c { type filter hook prerouting priority -300 ; }\n" +
			"nft add rule inet f c ip daddr 100.64.0.0/10 drop", PacketFilter, []string{"100.64.16.0/20", "inet f c"}},
		"what drops packets of one pod": {"ip link add cali2 type veth peer name wire2\nip link set cali2 up\n" +
			"ip link set wire2 up\nip route add 100.96.3.6 dev cali2 scope link\nnft add table inet f\n" +
			"nft add chain inet f c { type filter hook forward priority 0 ; }\n" +
			"nft add rule inet f c iifname cali1 drop", "", nil},
		"a strict reverse path filter": {"ip rule add priority 90 to 100.96.3.5 lookup 90\n" +
			"ip route add 100.96.3.5 dev eth0 table 90\nsysctl -qw net.ipv4.conf.cali1.rp_filter=1", ReversePathFilter,
			[]string{"device cali1", "net.ipv4.conf.cali1.rp_filter=2"}},
	} {
		t.Run(name, func(t *testing.T) {
			enter(t)
			run(t, podNode)
			run(t, c.commands)
			routes, err := kernel.OpenRoutes(kernel.RoutesConfig{})
			if err != nil {
				t.Fatal(err)
			}
			way, err := routes.FindWay(netip.MustParseAddr("10.250.0.1"))
			if err != nil {
				t.Fatal(err)
			}
			want := []kernel.NodeRoute{
				{Destination: netip.MustParsePrefix("100.64.16.0/20"), Gateway: netip.MustParseAddr("10.250.0.1"),
					Index: way.Index},
				{Destination: netip.MustParsePrefix("100.64.32.0/20")},
			}
			if _, errs := routes.Set(want); len(errs) > 0 {
				t.Fatal(errs)
			}
			handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				t.Fatal(err)
			}
			defer handle.Close()
			n := &node{netlink: handle, pods: []netip.Prefix{netip.MustParsePrefix("100.96.0.0/11")}}
			if n.filters, err = nodecheck.NewTransitChecker(); err != nil {
				t.Fatal(err)
			}
			defer n.filters.Close()
			found, err := n.checkPackets(want)
			if err != nil {
				t.Error(err)
			}
			checkFindings(t, found, c.reason, c.texts)
		})
	}
}

func checkFindings(t *testing.T, got link.Findings, reason string, texts []string) {
	t.Helper()
	if reason == "" {
		if len(got) > 0 {
			t.Errorf("findings %v", got)
		}
		return
	}
	if len(got) == 0 || got[0].Reason != reason {
		t.Fatalf("findings %v, want %s", got, reason)
	}
	for _, text := range texts {
		if !strings.Contains(fmt.Sprint(got), text) {
			t.Errorf("findings %v, want %s", got, text)
		}
	}
}
