package bridge

// How a super-packet is cut into the packets that it stands for. Pure functions, no I/O.

import "encoding/binary"

// segmenter cuts a super-packet into packets with all checksums filled in:
//
//	for s := h.splitPacket(packet); s.nextSize() > 0; {
//		n := s.writeNext(b)
//	}
type segmenter struct {
	packet  []byte
	start   int    // of the TCP or UDP header
	headers int    // bytes of the IP header and the TCP or UDP header: each segment has them
	mss     int    // bytes of payload of all segments but the last
	done    int    // segments written so far
	total   int    // segments
	pseudo  uint32 // sum of the pseudo header without the length in it
	tcp     bool
}

// splitPacket starts to cut a super-packet. validateFor has accepted the header. The caller must not change the packet
// before the last segment is written.
func (h *vnetHeader) splitPacket(packet []byte) segmenter {
	s := segmenter{
		packet:  packet,
		start:   int(h.csumStart),
		headers: int(h.hdrLen),
		mss:     int(h.gsoSize),
		tcp:     h.gsoType != gsoUDP,
	}
	s.total = (len(packet) - s.headers + s.mss - 1) / s.mss
	s.pseudo = uint32(binary.BigEndian.Uint16(packet[h.csumStart+h.csumOffset:])) +
		uint32(^uint16(len(packet)-s.start))
	return s
}

// countLeft returns the number of segments that are left. All have the same size, but the last may be shorter.
func (s *segmenter) countLeft() int { return s.total - s.done }

// nextSize returns the bytes of the next segment; 0: there is none.
func (s *segmenter) nextSize() int {
	if s.done == s.total {
		return 0
	}
	return min(s.headers+s.mss, len(s.packet)-s.done*s.mss)
}

// writeNext writes the next segment to b, which has room for it, and returns its bytes.
func (s *segmenter) writeNext(b []byte) int {
	n := s.nextSize()
	if n == 0 {
		return 0
	}
	b = b[:n]
	copy(b, s.packet[:s.headers])
	copy(b[s.headers:], s.packet[s.headers+s.done*s.mss:])
	if b[0]>>4 == 4 {
		binary.BigEndian.PutUint16(b[2:], uint16(n))
		binary.BigEndian.PutUint16(b[4:], binary.BigEndian.Uint16(b[4:])+uint16(s.done))
		checksumIPv4(b)
	} else {
		binary.BigEndian.PutUint16(b[4:], uint16(n-40))
	}
	s.finishTransport(b[s.start:])
	s.done++
	return n
}

// finishTransport fits the TCP or UDP header to its segment, and fills in the checksum.
func (s *segmenter) finishTransport(segment []byte) {
	check := csumUDP
	if s.tcp {
		check = csumTCP
		binary.BigEndian.PutUint32(segment[4:], binary.BigEndian.Uint32(segment[4:])+uint32(s.done*s.mss))
		if s.done > 0 {
			segment[13] &^= 0x80 // CWR only on the first segment (RFC 3168, 6.1.2)
		}
		if s.done < s.total-1 {
			segment[13] &^= 0x09 // PSH and FIN only on the last segment
		}
	} else {
		binary.BigEndian.PutUint16(segment[4:], uint16(len(segment)))
	}
	binary.BigEndian.PutUint16(segment[check:], 0)
	sum := ^foldSum(sum16(segment, s.pseudo+uint32(len(segment))))
	if sum == 0 && !s.tcp {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(segment[check:], sum)
}

// checksumIPv4 fills in the checksum of an IPv4 header.
func checksumIPv4(packet []byte) {
	binary.BigEndian.PutUint16(packet[10:], 0)
	binary.BigEndian.PutUint16(packet[10:], ^foldSum(sum16(packet[:int(packet[0]&0x0f)*4], 0)))
}
