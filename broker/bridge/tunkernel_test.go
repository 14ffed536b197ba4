package bridge

// A kernel that refuses offloads, or a part of them: seccomp(2) makes this one do so for a thread.

import (
	"errors"
	"syscall"
	"testing"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// refuseIoctl lets ioctls with the request fail on this thread from now on: all of them, or with bits only ioctls whose
// argument has some of these. Nothing makes that undone: the thread has to end.
func refuseIoctl(request, bits uint32, errno syscall.Errno) error {
	const (
		nr, arg1, arg2 = 0, 24, 32 // where struct seccomp_data has them; the low halves, as on little endian machines
		load           = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal          = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		has            = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		give           = unix.BPF_RET | unix.BPF_K
	)
	filter := []unix.SockFilter{
		{Code: load, K: nr},
		{Code: equal, Jf: 5, K: unix.SYS_IOCTL},
		{Code: load, K: arg1},
		{Code: equal, Jf: 3, K: request},
		{Code: load, K: arg2},
		{Code: has, Jf: 1, K: bits},
		{Code: give, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		{Code: give, K: unix.SECCOMP_RET_ALLOW},
	}
	if bits == 0 {
		filter[5].Jf = 0
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
}

// TestKernelRefusesOffloads: the TUN makes do with what there is, says so, and carries packets.
func TestKernelRefusesOffloads(t *testing.T) {
	for _, test := range []struct {
		name          string
		request, bits uint32
		offloads      Offloads
		queues        int // 0: several
		refused       error
	}{
		{"UDP segmentation (before Linux 6.2)", unix.TUNSETOFFLOAD, unix.TUN_F_USO4 | unix.TUN_F_USO6, OffloadTSO, 0, nil},
		{"all segmentation", unix.TUNSETOFFLOAD, unix.TUN_F_CSUM, 0, 1, syscall.EINVAL},
		{"the header before packets", unix.TUNSETVNETHDRSZ, 0, 0, 1, syscall.EINVAL},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, b := sites(t, false, false, func() {
				if err := refuseIoctl(test.request, test.bits, syscall.EINVAL); err != nil {
					t.Errorf("seccomp: %v", err)
				}
			})
			dev := (*a.iface.device.Load()).(*kernelTUN)
			if dev.offloads != test.offloads || test.queues != 0 && len(dev.queues) != test.queues ||
				!errors.Is(dev.refused, test.refused) {
				t.Errorf("offloads %s, %d queues, refused: %v", dev.offloads, len(dev.queues), dev.refused)
			}
			if info := a.TUN(); info.Offloads != test.offloads {
				t.Errorf("what the metric tells: %+v", info)
			}
			checkTraffic(t, a, b, 4<<20)
		})
	}
}

// TestOpenFailsForAMoment: a kernel that has offloads, but no memory or file descriptors now, is asked again later. The
// device that is there stays as it is.
func TestOpenFailsForAMoment(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ENOMEM, syscall.EMFILE, syscall.EPERM} {
		for _, request := range []uint32{unix.TUNSETIFF, unix.TUNSETVNETHDRSZ, unix.TUNSETOFFLOAD} {
			namespace(t)(func() {
				dev, err := openTUN("kubelink", DefaultMTU, false)
				if err != nil {
					t.Error(err)
					return
				}
				dev.Close(true)
				before, err := netlink.LinkByName("kubelink")
				if err != nil {
					t.Error(err)
					return
				}
				if err := refuseIoctl(request, 0, errno); err != nil {
					t.Errorf("seccomp: %v", err)
				}
				if dev, err := openTUN("kubelink", DefaultMTU, false); err == nil || !errors.Is(err, errno) {
					t.Errorf("%v of request %x: %+v, %v", errno, request, dev, err)
				}
				if after, err := netlink.LinkByName("kubelink"); err != nil || after.Attrs().Index != before.Attrs().Index {
					t.Errorf("%v of request %x: the device is gone: %v", errno, request, err)
				}
			})
		}
	}
}

// TestTUNIsNotInherited: programs that the broker runs, such as iptables, do not get it.
func TestTUNIsNotInherited(t *testing.T) {
	for _, noOffload := range []bool{false, true} {
		namespace(t)(func() {
			dev, err := openTUN("kubelink", DefaultMTU, noOffload)
			if err != nil {
				t.Error(err)
				return
			}
			defer dev.Close(false)
			for n := range dev.Queues() {
				_ = dev.Queues()[n].(*tunFile).raw.Control(func(fd uintptr) {
					if flags, err := unix.FcntlInt(fd, unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
						t.Errorf("noOffload %v, queue %d: flags %x, %v", noOffload, n, flags, err)
					}
				})
			}
		})
	}
}
