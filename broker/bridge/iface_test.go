package bridge

// The TUN that is there now: failures, replacement, MTU.

import (
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/tundevice"
)

// A TUN that is gone is opened again, links go on.
func TestTUNFailure(t *testing.T) {
	_, a, b := newPair(t)
	since := a.status("b").Since
	peers := []mesh.Peer{newLink("b", 1, 2, "b.example")}
	next := make(chan device, 1)
	a.iface.openDevice = func() (device, error) { // called by the reader only, once it fails
		select {
		case d := <-next:
			return d, nil
		default:
			return nil, io.ErrUnexpectedEOF
		}
	}
	a.tun.Close(true)
	a.await("error", func() bool {
		err := a.Set(peers, nil)
		return err != nil && strings.Contains(err.Error(), "read TUN mem")
	})
	b.tun.in <- packet("192.168.0.12", "192.168.0.11", 64, 60, 1)
	a.await("drop", func() bool { return a.Stats().Links["b"].Drops[DropTUNWrite] == 1 })
	tun := newMemTUN()
	next <- tun
	a.await("end of the error", func() bool { return a.Set(peers, nil) == nil })
	a.tun = tun
	a.pass(b, "192.168.0.11", "192.168.0.12", 2)
	b.pass(a, "192.168.0.12", "192.168.0.11", 3)
	if a.status("b").Since != since {
		t.Error("connection was lost")
	}
}

// One that is opened while the bridge is closed is kept if that was wanted: it may be the one that was there before.
func TestTUNOpenedTooLate(t *testing.T) {
	for _, keep := range []bool{true, false} {
		i := newInternet(t)
		a := i.start("a.example", i.ca.issue(t, "a.example"))
		late := newMemTUN()
		opening := make(chan struct{})
		a.iface.openDevice = func() (device, error) {
			close(opening)
			<-a.ctx.Done()
			return late, nil
		}
		a.tun.Close(true)
		<-opening
		if err := a.Close(keep); err != nil {
			t.Error(err)
		}
		if <-late.closed; late.kept != keep {
			t.Errorf("kept %v, expected %v", late.kept, keep)
		}
	}
}

// A TUN has the MTU that is configured now, also when that changes while it is opened.
func TestMTU(t *testing.T) {
	i := newInternet(t)
	a := i.start("a.example", i.ca.issue(t, "a.example"))
	set := func(mtu int) {
		t.Helper()
		c := a.config
		c.MTU = mtu
		if err := a.Configure(c.Settings); err != nil {
			t.Error(err)
		}
	}
	set(1400)
	if mtu := a.tun.mtu.Load(); mtu != 1400 {
		t.Errorf("MTU %d", mtu)
	}
	late := newMemTUN()
	opening, opened := make(chan struct{}), make(chan struct{})
	a.iface.openDevice = func() (device, error) {
		close(opening)
		<-opened
		return late, nil
	}
	a.tun.Close(true)
	<-opening
	set(1300)
	close(opened)
	a.await("MTU", func() bool { return late.mtu.Load() == 1300 })
}

func TestMissingTUN(t *testing.T) {
	o, _ := newTestSession(t)
	defer o.iface.setDevice(*o.iface.device.Load())
	b := &Bridge{iface: o.iface}
	if tun := b.TUN(); tun.Queues != 1 || tun.Offloads == 0 {
		t.Errorf("%+v", tun)
	}
	o.iface.setDevice(noDevice{})
	if tun := b.TUN(); tun != (TUN{Interface: "null"}) {
		t.Errorf("%+v", tun)
	}
}

// A process that has no TUN at its start serves without one, and says why and what to do, once. It takes the TUN as
// soon as it can be had.
func TestTUNMissingAtStart(t *testing.T) {
	log := &syncBuffer{}
	next, changed := make(chan device, 1), make(chan struct{}, 100)
	b, err := Open(Config{
		Interface: "kubelink", Log: slog.New(slog.NewTextHandler(log, nil)), Changed: func() { changed <- struct{}{} },
		open: func() (device, error) {
			select {
			case d := <-next:
				return d, nil
			default:
				return nil, tundevice.DescribeError("kubelink", os.NewSyscallError("open", unix.ENOENT))
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close(false)
	err = b.Set(nil, nil)
	if err == nil || !strings.Contains(err.Error(), "let the container have /dev/net/tun of the node") {
		t.Errorf("error %v", err)
	}
	next <- newMemTUN()
	for timeout := time.After(10 * time.Second); b.Set(nil, nil) != nil; {
		select {
		case <-changed:
		case <-timeout:
			t.Fatal(b.Set(nil, nil))
		}
	}
	if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
		t.Errorf("%d errors: %s", n, log)
	}
}
