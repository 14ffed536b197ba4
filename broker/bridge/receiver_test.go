package bridge

// What a session holds for frames that are not complete yet.

import (
	"io"
	"testing"

	"github.com/mandelsoft/kubelink/broker/hello"
)

// scriptedConn is a connection whose reads the test answers.
type scriptedConn struct {
	null
	answers chan []byte
	rooms   chan int // bytes that a read would take
}

func (c *scriptedConn) Read(b []byte) (int, error) {
	c.rooms <- len(b)
	answer, ok := <-c.answers
	if !ok {
		return 0, io.EOF
	}
	return copy(b, answer), nil
}

// The reader has a large buffer while large frames come, and no longer.
func TestReadBuffer(t *testing.T) {
	for _, flags := range []uint32{0, hello.FlagOffload} {
		p, _ := newTestPeer(t)
		c := &scriptedConn{answers: make(chan []byte), rooms: make(chan int)}
		raw := newBatchConn(c, p.timing.write)
		s := newSession(p, raw, raw, true, 0, p.featureFlags(), &hello.Hello{Capable: true, Flags: flags})
		ended := make(chan error)
		go func() { ended <- s.readFrames() }()
		large := hello.AppendFrame(nil, hello.FramePacket, packet("192.168.0.12", "100.64.0.1", 64, 60000, 0))
		small := hello.AppendFrame(nil, hello.FramePacket, packet("192.168.0.12", "100.64.0.1", 64, 1500, 0))
		const step = 20 // reads
		send := func(frame []byte) (room int) {
			for rest := frame; len(rest) > 0; {
				room = <-c.rooms
				n := min(room, len(rest), recordBytes)
				c.answers <- rest[:n]
				rest = rest[n:]
			}
			return room
		}
		for range 3 {
			if room := send(small); room > smallReadBytes {
				t.Errorf("starts with room for %d bytes", room)
			}
			for range 2 * shrinkAfterReads / step { // with small ones in between, but not for long
				if room := send(large); room < recordBytes {
					t.Errorf("a record of a large frame comes in parts: room for %d bytes", room)
				}
				for range step {
					if room := send(small); room < maxReadBytes {
						t.Fatalf("room for %d bytes between large frames", room)
					}
				}
			}
			for range shrinkAfterReads {
				send(small)
			}
		}
		<-c.rooms
		close(c.answers)
		if err := <-ended; err != io.EOF {
			t.Error(err)
		}
		wantLarge := uint64(3 * (2 * shrinkAfterReads / step))
		if n := p.counters.rxPackets.Load(); n != 3*(1+shrinkAfterReads)+wantLarge*(1+step) ||
			p.counters.drops.load() != ([NumDrops]uint64{}) {
			t.Errorf("%d packets, drops %v", n, p.counters.drops.load())
		}
	}
}
