package bridge

// What the bridge needs of a TUN. tun.go has the TUN of the kernel.

import "os"

// Offloads are the work on packets that the kernel leaves to the other end of a TUN, and the other end to the kernel.
type Offloads uint8

// The offloads. Each one includes the one before it.
const (
	OffloadTSO Offloads = 1 << iota // checksums, and TCP segments of up to 64 KiB (TUN_F_CSUM, TSO4, TSO6)
	OffloadUSO                      // UDP as well (TUN_F_USO4, USO6; Linux 6.2)
)

func (o Offloads) String() string {
	switch {
	case o&OffloadUSO != 0:
		return "checksum,TSO,USO"
	case o != 0:
		return "checksum,TSO"
	}
	return "none"
}

// device is a TUN.
type device interface {
	Queues() []tunQueue // the kernel sends a flow to the queue that its packets were last written to
	Offloads() Offloads // with any, a virtio_net_hdr is before each packet
	SetMTU(mtu int) error
	// Close ends reading. With keep the device stays, with its addresses and routes.
	Close(keep bool) error
}

// tunQueue is one queue of a TUN. One goroutine reads, several write, whole packets.
type tunQueue interface {
	Read(packet []byte) (int, error)
	TryRead(packet []byte) (int, error) // 0: no packet is there
	Write(packet []byte) (int, error)
}

// noDevice is in the place of a TUN that is missing.
type noDevice struct{}

func (noDevice) Queues() []tunQueue          { return []tunQueue{noDevice{}} }
func (noDevice) Offloads() Offloads          { return 0 }
func (noDevice) Read([]byte) (int, error)    { return 0, os.ErrClosed }
func (noDevice) TryRead([]byte) (int, error) { return 0, os.ErrClosed }
func (noDevice) Write([]byte) (int, error)   { return 0, os.ErrClosed }
func (noDevice) SetMTU(int) error            { return nil }
func (noDevice) Close(bool) error            { return nil }
