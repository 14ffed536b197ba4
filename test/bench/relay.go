package main

// This file runs the bound to compare with: the smallest relay between two TUNs, with what any relay in user space that
// uses TCP has to do, and nothing else. It moves super-packets between the queues of a TUN with all offloads and as
// many TCP connections, with raw system calls that block, and a thread for each direction of each queue: no
// encryption, no queues, no filter. The bench binary is that program, too: `bench relay listen PORT`,
// `bench relay dial ADDRESS`.

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/tundevice"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

const (
	relayCommand = "relay"
	relayDevice  = "relay0"
	relayPort    = 8790
	relayQueues  = 4

	relayHeader = 4       // bytes before a packet: its length, little endian
	relayBuffer = 1 << 18 // bytes that one read of a connection takes
	relayPacket = 1<<16 + 10
)

// relayAddress is that of the service behind the relay, in no network of kubelink's links.
var relayAddress = netip.MustParseAddr("10.98.0.2")

// runRelay is the main function of the helper process.
func runRelay(role, address string) int {
	debug.SetGCPercent(-1) // a thread in a system call of its own would keep the garbage collector waiting
	runtime.GOMAXPROCS(4 * relayQueues)
	err := func() error {
		connections, err := connectRelay(role, address)
		if err != nil {
			return err
		}
		failed := make(chan error, 2*relayQueues)
		for _, connection := range connections {
			queue, err := openRelayQueue()
			if err != nil {
				return err
			}
			go func() { failed <- relayOut(queue, connection) }()
			go func() { failed <- relayIn(connection, queue) }()
		}
		fmt.Println("ready")
		return <-failed
	}()
	fmt.Fprintln(os.Stderr, "relay:", err)
	return 1
}

// connectRelay returns the connections with the other end, in the same order at both ends. They block.
func connectRelay(role, address string) (connections []int, err error) {
	var listener net.Listener
	if role == "listen" {
		if listener, err = net.Listen("tcp4", ":"+address); err != nil {
			return nil, err
		}
		fmt.Println("listening")
	}
	for range relayQueues {
		var c net.Conn
		if listener != nil {
			c, err = listener.Accept()
		} else if c, err = net.Dial("tcp4", address); err == nil {
			_, err = c.Read(make([]byte, 1)) // the listener has accepted it
		}
		if err != nil {
			return nil, err
		}
		if listener != nil {
			if _, err := c.Write([]byte{0}); err != nil {
				return nil, err
			}
		}
		file, err := c.(*net.TCPConn).File()
		if err != nil {
			return nil, err
		}
		fd := int(file.Fd()) // a copy, which blocks
		if err := unix.SetNonblock(fd, false); err != nil {
			return nil, err
		}
		relayFiles = append(relayFiles, file)
		connections = append(connections, fd)
	}
	return connections, nil
}

var relayFiles []*os.File // keeps them open

// openRelayQueue opens one more queue of the TUN. It blocks.
func openRelayQueue() (fd int, err error) {
	fd, err = tundevice.Open(relayDevice, unix.IFF_TUN|unix.IFF_NO_PI|unix.IFF_VNET_HDR|unix.IFF_MULTI_QUEUE)
	if err != nil {
		return -1, err
	}
	const offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_USO4 | unix.TUN_F_USO6
	return fd, errors.Join(unix.SetNonblock(fd, false), unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloads))
}

// relayOut sends what it reads from a queue of the TUN.
func relayOut(queue, connection int) error {
	runtime.LockOSThread()
	b := make([]byte, relayHeader+relayPacket)
	for {
		n, err := callKernel(unix.SYS_READ, queue, b[relayHeader:])
		if err != nil {
			return fmt.Errorf("read from the TUN: %w", err)
		}
		binary.LittleEndian.PutUint32(b, uint32(n))
		for rest := b[:relayHeader+n]; len(rest) > 0; {
			n, err := callKernel(unix.SYS_WRITE, connection, rest)
			if err != nil {
				return fmt.Errorf("send: %w", err)
			}
			rest = rest[n:]
		}
	}
}

// relayIn writes what it receives to a queue of the TUN.
func relayIn(connection, queue int) error {
	runtime.LockOSThread()
	b := make([]byte, relayBuffer+relayHeader+relayPacket)
	have := 0
	for {
		n, err := callKernel(unix.SYS_READ, connection, b[have:have+relayBuffer])
		if err != nil || n == 0 {
			return fmt.Errorf("receive: %d bytes, %w", n, err)
		}
		rest := b[:have+n]
		for len(rest) >= relayHeader {
			size := relayHeader + int(binary.LittleEndian.Uint32(rest))
			if size > relayHeader+relayPacket {
				return fmt.Errorf("received a packet of %d bytes", size)
			}
			if len(rest) < size {
				break
			}
			_, _ = callKernel(unix.SYS_WRITE, queue, rest[relayHeader:size]) // the kernel refuses some while it sets up the TUN
			rest = rest[size:]
		}
		have = copy(b, rest)
	}
}

// callKernel reads or writes, on the thread of its caller.
func callKernel(call uintptr, fd int, b []byte) (int, error) {
	for {
		n, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		if errno == 0 {
			return int(n), nil
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

// relay is a relay between two clusters.
type relay struct {
	ends      []*tunnelEnd
	processes []*testbed.Process
}

// startRelay links the clusters' gateway nodes. Packets to the service in the second cluster go through the relay,
// behind the address of the first gateway, as with kubelink.
func startRelay(ctx context.Context, one, two *fleet.Broker, service netip.Addr, mtu int) (*relay, error) {
	r := &relay{ends: []*tunnelEnd{
		{Broker: one, device: relayDevice, mtu: mtu, address: netip.MustParsePrefix("10.97.0.1/24"),
			routed: []netip.Prefix{netip.PrefixFrom(service, service.BitLen())}},
		{Broker: two, device: relayDevice, mtu: mtu, address: netip.MustParsePrefix("10.97.0.2/24")},
	}}
	for _, e := range r.ends {
		if err := e.setFilter(ctx, "tcp", relayPort); err != nil {
			return nil, err
		}
	}
	return r, r.start(ctx)
}

// start starts the processes of both ends, the one that listens first.
func (r *relay) start(ctx context.Context) error {
	one, two := r.ends[0], r.ends[1]
	listening, err := two.startRelay(ctx, "listen", fmt.Sprint(relayPort))
	if err != nil {
		return err
	}
	r.processes = append(r.processes, listening)
	if err := listening.WaitLog(ctx, "(?m)^listening$"); err != nil {
		return err
	}
	dialling, err := one.startRelay(ctx, "dial", netip.AddrPortFrom(two.PublicAddress, relayPort).String())
	if err != nil {
		return err
	}
	r.processes = append(r.processes, dialling)
	for i, p := range r.processes {
		if err := p.WaitLog(ctx, "(?m)^ready$"); err != nil {
			return err
		}
		if err := r.ends[1-i].setUpDevice(); err != nil {
			return err
		}
	}
	return nil
}

// startRelay starts the process of this end.
func (e *tunnelEnd) startRelay(ctx context.Context, role, address string) (*testbed.Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	// Threads that block in raw system calls need no signals to let others run.
	return e.Gateway().Start(context.WithoutCancel(ctx), "relay", []string{"GODEBUG=asyncpreemptoff=1"}, self,
		relayCommand, role, address)
}

// restart replaces the processes of both ends.
func (r *relay) restart(ctx context.Context) error {
	if err := endProcesses(ctx, r.processes); err != nil {
		return err
	}
	r.processes = nil
	return r.start(ctx)
}
