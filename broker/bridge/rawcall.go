package bridge

// System calls of the packet path.
//
// All file descriptors are non-blocking, so these calls return as soon as the kernel has done its work, which takes
// about ten microseconds for a super-packet. Go's scheduler does not learn of them: after 20 us it would take such a
// call for a blocking one, hand the processor to another thread, and take it back afterwards. Measured, that caused
// most of the thread switches under load.

import (
	"os"
	"syscall"
	"unsafe"
)

// rawReader reads from a file descriptor. It belongs to the goroutine that reads. Its functions are made once, so that
// a read allocates nothing.
type rawReader struct {
	conn      syscall.RawConn
	wait, try func(fd uintptr) (done bool) // wait has the poller of the runtime wait for data

	into []byte
	n    int
	err  error
}

func newRawReader(conn syscall.RawConn) *rawReader {
	r := &rawReader{conn: conn}
	r.wait = func(fd uintptr) (done bool) {
		var again bool
		r.n, again, r.err = rawRead(fd, r.into)
		return !again
	}
	r.try = func(fd uintptr) bool { r.wait(fd); return true }
	return r
}

// readInto reads to b, by wait or by try.
func (r *rawReader) readInto(b []byte, read func(fd uintptr) bool) (int, error) {
	r.into = b
	err := r.conn.Read(read)
	if err == nil && r.err != nil {
		err = os.NewSyscallError("read", r.err)
	}
	return r.n, err
}

// rawRead is read(2). It returns again when there is nothing to read yet, and 0 without error at the end.
func rawRead(fd uintptr, b []byte) (n int, again bool, err error) {
	return rawCall(syscall.SYS_READ, fd, b, 0)
}

// rawWrite is write(2). It returns again when the kernel accepts nothing now.
func rawWrite(fd uintptr, b []byte) (n int, again bool, err error) {
	return rawCall(syscall.SYS_WRITE, fd, b, 0)
}

// rawSend is send(2). It returns again when the kernel accepts nothing now.
func rawSend(fd uintptr, b []byte, flags uintptr) (n int, again bool, err error) {
	return rawCall(syscall.SYS_SENDTO, fd, b, flags)
}

func rawCall(call, fd uintptr, b []byte, flags uintptr) (n int, again bool, err error) {
	if len(b) == 0 {
		return 0, false, nil
	}
	for {
		data := unsafe.Pointer(unsafe.SliceData(b))
		r, _, errno := syscall.RawSyscall6(call, fd, uintptr(data), uintptr(len(b)), flags, 0, 0)
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
