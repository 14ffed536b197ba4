// Package echo asks the other end of a link for answers to ICMP echo requests (RFC 792, RFC 4443), as ping(8) does:
// whether packets of a size get through, and how long they take.
package echo

import (
	"fmt"
	"net/netip"
)

// Bounds of a Request.
const (
	MinSize     = 64 // bytes
	MaxSize     = 65535
	DefaultSize = 84 // that of ping(8) with IPv4
	MaxCount    = 6
)

// Request says what to send.
type Request struct {
	To    netip.Addr
	Size  int // of each IP packet with its header, bytes; packets are never fragmented on their way
	Count int // of packets; each is sent when the one before was answered, or lost
}

// Check says whether the bounds are kept.
func (r *Request) Check() error {
	switch {
	case r.Size < MinSize || r.Size > MaxSize:
		return fmt.Errorf("size %d: want %d to %d bytes", r.Size, MinSize, MaxSize)
	case r.Count < 1 || r.Count > MaxCount:
		return fmt.Errorf("count %d: want 1 to %d", r.Count, MaxCount)
	}
	return nil
}

// Result is what came back.
type Result struct {
	Sent     int       `json:"sent"`
	Received int       `json:"received"`
	Times    []float64 `json:"times"`             // of the answers: round trips, seconds
	Problem  string    `json:"problem,omitempty"` // why the last packet was not sent, or who refused it
}
