package bridge

// TUNs of the kernel, in network namespaces of their own.

import (
	"bytes"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/link"
)

// namespace runs functions in a new network namespace. Its thread ends with the test, and with it the
// namespace.
func namespace(t *testing.T) func(func()) {
	work, ready := make(chan func()), make(chan error)
	go func() {
		runtime.LockOSThread()
		ready <- unix.Unshare(unix.CLONE_NEWNET)
		for f := range work {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
	t.Cleanup(func() { close(work) })
	return func(f func()) {
		done := make(chan struct{})
		work <- func() { defer close(done); f() }
		<-done
	}
}

// configure does what broker/kernel does.
func configure(t *testing.T, name, address string) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Error(err)
		return
	}
	if mtu := link.Attrs().MTU; mtu != DefaultMTU {
		t.Errorf("MTU %d", mtu)
	}
	addr, _ := netlink.ParseAddr(address)
	if err := netlink.AddrReplace(link, addr); err != nil {
		t.Error(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Error(err)
	}
}

// ping sends an echo request and waits for the answer of the kernel at the other end.
func ping(t *testing.T, to string) {
	t.Helper()
	conn, err := net.Dial("ip4:icmp", to)
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	request := []byte{8, 0, 0, 0, 1, 2, 0, 1, 'k', 'l'}
	sum := ^foldSum(sum16(request, 0))
	request[2], request[3] = byte(sum>>8), byte(sum)
	if _, err := conn.Write(request); err != nil {
		t.Error(err)
		return
	}
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	answer := make([]byte, 100)
	n, err := conn.Read(answer)
	// after the IP header
	if err != nil || n != 20+len(request) || answer[20] != 0 || !bytes.Equal(answer[24:n], request[4:]) {
		t.Errorf("ping %s: %x, %v", to, answer[:n], err)
	}
}

func TestKernelTUN(t *testing.T) {
	i := newInternet(t)
	inA, inB := namespace(t), namespace(t)
	in := func(namespace func(func())) func(*Config) {
		return func(c *Config) {
			c.Interface = "kubelink"
			c.open = func() (dev device, err error) {
				namespace(func() { dev, err = openTUN("kubelink", DefaultMTU, false) })
				return dev, err
			}
		}
	}
	a := i.start("a.example", i.ca.issue(t, "a.example"), in(inA))
	b := i.start("b.example", i.ca.issue(t, "b.example"), in(inB))
	inA(func() { configure(t, "kubelink", "192.168.0.11/24") })
	inB(func() { configure(t, "kubelink", "192.168.0.12/24") })
	a.set(newLink("b", 1, 2, "b.example"))
	b.set(newLink("a", 2, 1, "a.example"))
	a.awaitState("b", link.Up)
	b.awaitState("a", link.Up)
	inA(func() { ping(t, "192.168.0.12") })
	inB(func() { ping(t, "192.168.0.11") })

	// A device that a user deletes comes back.
	inB(func() {
		if dev, err := netlink.LinkByName("kubelink"); err != nil || netlink.LinkDel(dev) != nil {
			t.Errorf("delete device: %v", err)
		}
	})
	b.await("failure", func() bool { return b.iface.failure.Load() != nil })
	b.await("end of failure", func() bool { return b.iface.failure.Load() == nil })
	inB(func() { configure(t, "kubelink", "192.168.0.12/24") })
	inA(func() { ping(t, "192.168.0.12") })
	inB(func() { ping(t, "192.168.0.11") })

	// What cannot be reached fails at once.
	inA(func() {
		if _, err := net.DialTimeout("tcp", "192.168.0.99:80", 5*time.Second); !errors.Is(err, syscall.EHOSTUNREACH) {
			t.Errorf("dial a missing host: %v", err)
		}
	})

	inA(func() {
		if _, err := Open(Config{Interface: "lo", Log: quiet}); err == nil ||
			!strings.Contains(err.Error(), "a device of another kind has this name") {
			t.Errorf("opened lo: %v", err)
		}
	})

	// The device outlives the process, and the next one takes it over as it is.
	if err := a.Close(true); err != nil {
		t.Error(err)
	}
	a = i.start("a.example", i.ca.issue(t, "a.example"), in(inA))
	inA(func() {
		dev, err := netlink.LinkByName("kubelink")
		if err != nil {
			t.Error(err)
			return
		}
		if addrs, err := netlink.AddrList(dev, netlink.FAMILY_V4); err != nil || len(addrs) != 1 {
			t.Errorf("addresses %v, %v", addrs, err)
		}
	})
	a.set(newLink("b", 1, 2, "b.example"))
	a.awaitState("b", link.Up)
	inA(func() { ping(t, "192.168.0.12") })

	if err := a.Close(false); err != nil {
		t.Error(err)
	}
	inA(func() {
		if _, err := netlink.LinkByName("kubelink"); err == nil {
			t.Error("device was not deleted")
		}
	})
}

// A bridge that is closed while its TUN is opened again, or about to be, leaves one behind or not, as it was told.
func TestCloseWhileReopening(t *testing.T) {
	for _, keep := range []bool{true, false} {
		for _, missing := range []bool{true, false} { // else it was only closed
			in := namespace(t)
			opened, stop := make(chan struct{}, 1), make(chan struct{})
			first := true
			b, err := Open(Config{Interface: "kubelink", Log: quiet, open: func() (dev device, err error) {
				if !first {
					select {
					case opened <- struct{}{}:
					default:
					}
					<-stop
					return nil, io.ErrUnexpectedEOF
				}
				first = false
				in(func() { dev, err = openTUN("kubelink", DefaultMTU, false) })
				return dev, err
			}})
			if err != nil {
				t.Fatal(err)
			}
			if missing {
				c := *b.config.Load()
				c.NoOffload = true
				if err := b.Configure(c.Settings); err != nil {
					t.Fatal(err)
				}
				<-opened
			} else {
				(*b.iface.device.Load()).Close(true)
			}
			close(stop)
			in(func() {
				if err := b.Close(keep); err != nil {
					t.Errorf("Close(%v), missing %v: %v", keep, missing, err)
				}
				if _, err := netlink.LinkByName("kubelink"); (err == nil) != keep {
					t.Errorf("Close(%v), missing %v: the device: %v", keep, missing, err)
				}
			})
		}
	}
}
