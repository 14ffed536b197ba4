package bridge

// What a session does besides carrying packets.

import (
	"hash/crc32"
	"net/netip"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/hello"
)

// A session that always has something to send, as one that packets are forwarded to, sends its pings all the same.
func TestPingUnderLoad(t *testing.T) {
	p, _ := newTestPeer(t, func(timing *timing) { timing.ping = time.Millisecond })
	var (
		s     *session
		pings = make(chan struct{}, 1)
		next  = func() {
			buf := copyBuffer(packet("192.168.0.11", "192.168.0.12", 64, 100, 0), vnetHeader{})
			buf.queued = p.now()
			s.postPacket(buf)
		}
		write = func(b []byte) {
			for {
				typ, _, rest, ok := hello.CutFrame(b)
				if !ok {
					break
				}
				if typ == hello.FramePing {
					select {
					case pings <- struct{}{}:
					default:
					}
				}
				b = rest
			}
			next()         // while this one is sent,
			s.kickSender() // so that there is no end
		}
	)
	raw := newBatchConn(&writerConn{write: write}, time.Second)
	s = newSession(p, raw, raw, true, 0, p.featureFlags(), &hello.Hello{Capable: true, Flags: hello.FlagKeepalive})
	next()
	ended := make(chan struct{})
	go func() { s.serveEvents(); close(ended) }()
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

// judgeTUN keeps a checksum of what is written to it, all of which has to be sound.
type judgeTUN struct {
	nullTUN
	t    *testing.T
	sum  uint32
	many int
}

func (j *judgeTUN) Write(b []byte) (int, error) {
	packet := b
	if j.offloads != 0 {
		packet = b[vnetSize:]
	}
	_, _, ok := parseAddresses(packet)
	if !ok || hasSourceRoute(packet) {
		j.t.Errorf("to the TUN: %x", b)
	}
	if h := parseVnet(b); j.offloads != 0 && h != (vnetHeader{}) {
		if !h.validateFor(packet) || h.gsoType == gsoUDP && j.offloads&OffloadUSO == 0 {
			j.t.Errorf("to the TUN: %+v of %x", parseVnet(b), packet)
		}
	}
	j.sum = crc32.Update(j.sum, crc32.IEEETable, b)
	j.many++
	return len(b), nil
}

// FuzzSession: all packets that reach the TUN are valid, and the same however the bytes from the peer are cut.
func FuzzSession(f *testing.F) {
	type end struct {
		*session
		tun *judgeTUN
	}
	var ends []end
	for _, offloads := range []Offloads{0, OffloadTSO, OffloadTSO | OffloadUSO} {
		judge := &judgeTUN{nullTUN: *newNullTUN(offloads)}
		judge.queues = []tunQueue{judge}
		_, s := newTestSessionOn(f, judge)
		s.flags |= hello.FlagOffload | hello.FlagUSO
		ends = append(ends, end{s, judge})
	}
	ownHello, _, err := ends[0].peer.helloFrame(0, nil)
	if err != nil {
		f.Fatal(err)
	}
	for n, flow := range append(flows(0), flows(1000)...) {
		h, b := flow.super(noise(3000))
		if flow.v6 {
			copy(b[8:], netip.MustParseAddr("fd00::12").AsSlice())
			copy(b[24:], netip.MustParseAddr("fd00::11").AsSlice())
		} else {
			copy(b[12:], []byte{192, 168, 0, 12, 100, 64, 0, 1})
		}
		v := make([]byte, vnetSize)
		h.putBytes(v)
		in := hello.AppendFrame(ownHello, hello.FramePing, noise(8))
		in = hello.AppendFrame(hello.AppendFrame(in, hello.FrameOffload, v), hello.FramePacket, b)
		in = hello.AppendFrame(hello.AppendFrame(in, hello.FramePong, noise(8)), 99, noise(20))
		in = hello.AppendFrame(in, hello.FramePacket, packet("192.168.0.12", "100.64.0.1", 64, 60, 0))
		f.Add(in, byte(n), uint16(n*100))
	}
	f.Fuzz(func(t *testing.T, in []byte, which byte, step uint16) {
		e := ends[int(which)%len(ends)]
		take := func(step int) (used int, sum uint32, many int, failed bool) {
			e.tun.t, e.tun.sum, e.tun.many = t, 0, 0
			buf, start := append(make([]byte, headroom), in...), headroom
			for end := headroom; end < len(buf) && !failed; {
				end = min(end+step, len(buf))
				next, err := e.handleFrames(buf[:end], start)
				if next < start || next > end {
					t.Fatalf("used %d of %d to %d", next, start, end)
				}
				start, failed = next, err != nil
			}
			return start, e.tun.sum, e.tun.many, failed
		}
		used, sum, many, failed := take(max(1, len(in)))
		used2, sum2, many2, failed2 := take(int(step) + 1)
		if used != used2 || sum != sum2 || many != many2 || failed != failed2 {
			t.Errorf("at once: %d bytes gave %d packets, failed %v; in parts of %d: %d bytes, %d packets, %v", used, many,
				failed, int(step)+1, used2, many2, failed2)
		}
	})
}
