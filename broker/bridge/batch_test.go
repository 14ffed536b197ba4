package bridge

// The contents of a batch.

import (
	"fmt"
	"testing"
)

// What a peer does not read was not sent to it.
func TestSentOrDropped(t *testing.T) {
	o, s := newTestSession(t)
	s.maxPayload = 1000
	s.flags = 0
	whole := append(make([]byte, vnetSize), packet("192.168.0.11", "192.168.0.12", 64, 1001, 0)...)
	unsummed, h := superPacket("192.168.0.11", "192.168.0.12", 1100),
		vnetHeader{flags: needsCsum, csumStart: 20, csumOffset: csumTCP}
	h.putBytes(unsummed)
	small := append(make([]byte, vnetSize), packet("192.168.0.11", "192.168.0.12", 64, 1000, 0)...)
	o.offloads = true
	for _, in := range [][]byte{whole, unsummed, superPacket("192.168.0.11", "192.168.0.12", 60000), small} {
		o.routePacket(copy(o.readRoom(), in))
	}
	for o.sendBatches() {
	}
	c := s.peer.counters
	if sent, bytes, big := c.txPackets.Load(), c.txBytes.Load(), c.drops[DropTooBig].Load(); sent != 1 || bytes != 1000 ||
		big != 3 {
		t.Errorf("%d packets of %d bytes sent, %d too big", sent, bytes, big)
	}
}

// What is sent of a packet: its frame, after one with the virtio_net_hdr if it has one.
func TestPacketFrame(t *testing.T) {
	for vnet, want := range map[vnetHeader]string{
		{}:                                      "0003" + "00" + "616263",
		{needsCsum, gsoTCPv4, 40, 1448, 20, 16}: "000a" + "12" + "01012800a80514001000" + "0003" + "00" + "616263",
	} {
		if got := fmt.Sprintf("%x", copyBuffer([]byte("abc"), vnet).frame()); got != want {
			t.Errorf("%+v: %s, expected %s", vnet, got, want)
		}
	}
}
