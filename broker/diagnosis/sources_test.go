package diagnosis

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A pod that asks without end, with tokens that differ, does not keep an operator out.
func TestFloodOfTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &fakeReviewer{allowed: map[string]bool{"reader": true}}
		h := newHandler(newGate(api), &Config{Report: func(context.Context) *Report { return &Report{} }}, &meter{})
		ask := func(from, token string) int {
			w, r := httptest.NewRecorder(), httptest.NewRequest("GET", Path, nil)
			r.RemoteAddr = from
			r.Header.Set(TokenHeader, token)
			h.ServeHTTP(w, r)
			return w.Code
		}
		ctx, stop := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for n := range 30 {
			all.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					ask("100.96.0.5:1000", fmt.Sprint("stranger ", n, i))
					time.Sleep(50 * time.Millisecond)
				}
			})
		}
		time.Sleep(10 * time.Second)
		for range 5 {
			if code := ask("10.250.0.2:1000", "reader"); code != http.StatusOK {
				t.Errorf("the operator gets %d", code)
			}
			time.Sleep(keepAnswer)
		}
		stop()
		all.Wait()
	})
}

// Sources without end do not fill memory, and an address of IPv6 is as good as another one of its node.
func TestSources(t *testing.T) {
	turns := newTurns()
	for n := range 3 * maxSources {
		turns.find(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)})).Allow()
	}
	if n := len(turns.own); n > maxSources+1 {
		t.Errorf("%d sources", n)
	}
	for remote, want := range map[string]string{"10.0.0.1:1": "10.0.0.1", "[::ffff:10.0.0.1]:1": "10.0.0.1",
		"[2001:db8:0:1::5]:1": "2001:db8:0:1::", "[fe80::1%eth0]:1": "fe80::", "x": "invalid IP"} {
		if got := sourceOf(remote).String(); got != want {
			t.Errorf("%s: %s, want %s", remote, got, want)
		}
	}
}

// A source that holds its connections has so many, and other sources have theirs.
func TestConnectionsOfSource(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	fair := newFairListener(inner)
	accepted := make(chan net.Conn, 100)
	go func() {
		defer close(accepted)
		for {
			c, err := fair.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	dial := func(from string) net.Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	var first net.Conn
	for range connectionsOfSource {
		defer dial("127.0.0.1").Close()
		first = <-accepted
	}
	refused := dial("127.0.0.1")
	if n, err := refused.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes on one connection too many", n)
	}
	defer dial("127.0.0.2").Close()
	if c := <-accepted; sourceOf(c.RemoteAddr().String()).String() != "127.0.0.2" {
		t.Errorf("%s is accepted", c.RemoteAddr())
	}
	first.Close()
	first.Close() // counts once
	defer dial("127.0.0.1").Close()
	<-accepted
	again := dial("127.0.0.1")
	if _, err := again.Read(make([]byte, 1)); err == nil {
		t.Error("a connection was counted out twice")
	}
	inner.Close()
	for range accepted {
	}
}
