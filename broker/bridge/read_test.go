package bridge

// What a session holds for frames that are not complete yet.

import (
	"io"
	"testing"
)

// script is a connection whose reads the test answers.
type script struct {
	null
	answers chan []byte
	rooms   chan int // bytes that a read would take
}

func (c *script) Read(b []byte) (int, error) {
	c.rooms <- len(b)
	answer, ok := <-c.answers
	if !ok {
		return 0, io.EOF
	}
	return copy(b, answer), nil
}

// The reader has a large buffer while large frames come, and no longer.
func TestReadBuffer(t *testing.T) {
	for _, flags := range []uint32{0, flagOffload} {
		p, _ := lonely(t)
		c := &script{answers: make(chan []byte), rooms: make(chan int)}
		raw := newGather(c, p.b.timing.write)
		s := newSession(p, raw, raw, true, 0, p.b.flags(), &hello{capable: true, flags: flags})
		ended := make(chan error)
		go func() { ended <- s.read() }()
		large := appendFrame(nil, framePacket, packet("192.168.0.12", "100.64.0.1", 64, 60000, 0))
		small := appendFrame(nil, framePacket, packet("192.168.0.12", "100.64.0.1", 64, 1500, 0))
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
			if room := send(small); room > readBytes {
				t.Errorf("starts with room for %d bytes", room)
			}
			for range 2 * readsSmall / step { // with small ones in between, but not for long
				if room := send(large); room < recordBytes {
					t.Errorf("a record of a large frame comes in parts: room for %d bytes", room)
				}
				for range step {
					if room := send(small); room < readMost {
						t.Fatalf("room for %d bytes between large frames", room)
					}
				}
			}
			for range readsSmall {
				send(small)
			}
		}
		<-c.rooms
		close(c.answers)
		if err := <-ended; err != io.EOF {
			t.Error(err)
		}
		wantLarge := uint64(3 * (2 * readsSmall / step))
		if n := p.count.rxPackets.Load(); n != 3*(1+readsSmall)+wantLarge*(1+step) || p.count.drops.load() != ([NumDrops]uint64{}) {
			t.Errorf("%d packets, drops %v", n, p.count.drops.load())
		}
	}
}
