package echo

import (
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// enter moves the test into a network namespace of its own, and runs commands there.
func enter(t *testing.T, commands string) {
	t.Helper()
	runtime.LockOSThread() // the thread ends with the test
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	if out, err := exec.Command("sh", "-ec", commands).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// Packets up to the MTU come back; larger ones, lost ones and refused ones do not, and the result says why.
func TestSend(t *testing.T) {
	enter(t, `ip link set lo mtu 1500 up
		ip link add quiet type veth peer name other
		ip link set other up
		ip link set quiet up
		ip addr add 192.0.2.1/24 dev quiet
		ip -6 addr add fd00:1::1/64 dev quiet nodad
		ip neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev quiet
		ip -6 neigh add fd00:1::2 lladdr 02:00:00:00:00:02 dev quiet
		ip route add unreachable 198.51.100.0/24
		sysctl -q -w net.ipv4.ping_group_range="0 2147483647"`)
	for _, privileged := range []bool{true, false} {
		if !privileged {
			dropRaw(t)
		}
		checkSend(t, privileged)
	}
	enter(t, `sysctl -q -w net.ipv4.ping_group_range="1 0"`)
	dropRaw(t)
	_, err := Send(t.Context(), Request{netip.MustParseAddr("127.0.0.1"), DefaultSize, 1})
	if err == nil || !strings.Contains(err.Error(), "needs the capability NET_RAW") {
		t.Errorf("without rights: %v", err)
	}
}

// dropRaw takes the capability NET_RAW from the thread of the test.
func dropRaw(t *testing.T) {
	t.Helper()
	header, data := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
	err := unix.Capget(&header, &data[0])
	if data[0].Effective &^= 1 << unix.CAP_NET_RAW; err == nil {
		err = unix.Capset(&header, &data[0])
	}
	if err != nil {
		t.Fatal(err)
	}
}

func checkSend(t *testing.T, privileged bool) {
	t.Helper()
	for _, c := range []struct {
		name, to       string
		size, count    int
		sent, received int
		problem        string
	}{
		{"IPv4", "127.0.0.1", DefaultSize, 3, 3, 3, ""},
		{"IPv6", "::1", DefaultSize, 3, 3, 3, ""},
		{"as large as the MTU", "127.0.0.1", 1500, 1, 1, 1, ""},
		{"as large as the MTU, IPv6", "::1", 1500, 1, 1, 1, ""},
		{"the smallest", "::1", MinSize, 1, 1, 1, ""},
		{"larger", "127.0.0.1", 1501, 3, 1, 0, "larger than the MTU"},
		{"larger, IPv6", "::1", 1501, 3, 1, 0, "larger than the MTU"},
		{"lost", "192.0.2.2", DefaultSize, 2, 2, 0, ""},
		{"lost, IPv6", "fd00:1::2", DefaultSize, 1, 1, 0, ""},
		{"no route", "198.51.100.1", DefaultSize, 1, 0, 0, "no route to host"},
	} {
		// No subtest, which would be in another namespace.
		got, err := Send(t.Context(), Request{netip.MustParseAddr(c.to), c.size, c.count})
		if err != nil || got.Sent != c.sent || got.Received != c.received || len(got.Times) != got.Received ||
			!strings.Contains(got.Problem, c.problem) || c.problem == "" && got.Problem != "" {
			t.Errorf("%s, NET_RAW %t: %+v, %v; want %d of %d, %q", c.name, privileged, got, err, c.received, c.sent, c.problem)
		}
		for _, s := range got.Times {
			if s <= 0 || s > answerTime.Seconds() {
				t.Errorf("%s: an answer after %s", c.name, time.Duration(s*float64(time.Second)))
			}
		}
	}
}

func TestCheck(t *testing.T) {
	for _, r := range []Request{{Size: MinSize - 1, Count: 1}, {Size: MaxSize + 1, Count: 1},
		{Size: DefaultSize, Count: 0}, {Size: DefaultSize, Count: MaxCount + 1}} {
		if _, err := Send(t.Context(), r); err == nil || !strings.Contains(err.Error(), "want ") {
			t.Errorf("%+v: %v", r, err)
		}
	}
}
