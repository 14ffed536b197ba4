package bridge

// System calls of the packet path.
//
// All file descriptors are non-blocking, so these calls return as soon as the kernel has done its work, which is
// some ten microseconds for a super-packet. They are made without telling Go's scheduler: it would take such a call
// for a blocking one after 20 us, hand the processor to another thread, and take it back after that. Measured,
// that was most of the thread switches under load.

import (
	"syscall"
	"unsafe"
)

// rawRead is read(2); 0 without error: nothing is there, or the end.
func rawRead(fd uintptr, b []byte) (n int, again bool, err error) {
	return rawCall(syscall.SYS_READ, fd, b, 0)
}

// rawWrite is write(2); again: the kernel takes nothing now.
func rawWrite(fd uintptr, b []byte) (n int, again bool, err error) {
	return rawCall(syscall.SYS_WRITE, fd, b, 0)
}

// rawSend is send(2).
func rawSend(fd uintptr, b []byte, flags uintptr) (n int, again bool, err error) {
	return rawCall(syscall.SYS_SENDTO, fd, b, flags)
}

func rawCall(call, fd uintptr, b []byte, flags uintptr) (n int, again bool, err error) {
	if len(b) == 0 {
		return 0, false, nil
	}
	for {
		r, _, errno := syscall.RawSyscall6(call, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), flags, 0, 0)
		switch errno {
		case 0:
			return int(r), false, nil
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			return 0, true, nil
		}
		return 0, false, errno
	}
}
