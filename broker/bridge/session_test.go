package bridge

// What a session does besides carrying packets.

import (
	"testing"
	"time"
)

// A session that always has something to send, as one that packets are forwarded to, sends its pings all the same.
func TestPingUnderLoad(t *testing.T) {
	p, _ := lonely(t, func(timing *timing) { timing.ping = time.Millisecond })
	var (
		s     *session
		pings = make(chan struct{}, 1)
		next  = func() {
			buf := copyBuffer(packet("192.168.0.11", "192.168.0.12", 64, 100, 0), vnetHeader{})
			buf.queued = p.b.now()
			s.post(buf)
		}
		write = func(b []byte) {
			for {
				typ, _, rest, ok := cutFrame(b)
				if !ok {
					break
				}
				if typ == framePing {
					select {
					case pings <- struct{}{}:
					default:
					}
				}
				b = rest
			}
			next()   // while this one is sent,
			s.kick() // so that there is no end
		}
	)
	raw := newGather(&taker{write: write}, time.Second)
	s = newSession(p, raw, raw, true, 0, p.b.flags(), &hello{capable: true, flags: flagKeepalive})
	next()
	ended := make(chan struct{})
	go func() { s.attend(); close(ended) }()
	for range 10 {
		select {
		case <-pings:
		case <-time.After(10 * time.Second):
			t.Fatal("no ping")
		}
	}
	s.close(nil)
	<-ended
}
