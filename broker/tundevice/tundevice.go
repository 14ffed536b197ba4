// Package tundevice opens TUN devices of the kernel (Documentation/networking/tuntap.rst), says what keeps a process
// from having one, and removes the ones that no process uses.
package tundevice

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Path is the file by which processes open TUN devices.
const Path = "/dev/net/tun"

// Open opens a TUN, or another queue of one with several, and makes it if it does not exist. flags are those of
// TUNSETIFF. The descriptor is non-blocking, so the runtime polls it.
func Open(name string, flags uint16) (int, error) {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return -1, err
	}
	request.SetUint16(flags)
	fd, err := unix.Open(Path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("open", err)
	}
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("TUNSETIFF", err)
	}
	return fd, nil
}

// Remove deletes a TUN unless it is in use. The caller needs a TUN of the other kind, or none: the kernel does not make
// a TUN with several queues from one with a single queue, nor the reverse. The broker sets addresses and routes again.
func Remove(name string) bool {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return false
	}
	return IsTUN(link) && !IsInUse(link) && netlink.LinkDel(link) == nil
}

// IsTUN tells whether a device is a TUN, and no TAP. IsInUse cannot be asked of a TAP.
func IsTUN(l netlink.Link) bool {
	tun, ok := l.(*netlink.Tuntap)
	return ok && tun.Mode == netlink.TUNTAP_MODE_TUN
}

// IsInUse tells whether a process has opened a TUN.
func IsInUse(l netlink.Link) bool {
	tun, ok := l.(*netlink.Tuntap)
	if ok && tun.Queues > 0 { // several queues: so many are open
		return true
	}
	fd, err := Open(l.Attrs().Name, unix.IFF_TUN|unix.IFF_NO_PI)
	if err == nil { // it has a single queue, not in use
		unix.Close(fd)
	}
	return errors.Is(err, syscall.EBUSY)
}

// DescribeError adds the remedy to an error of opening a TUN.
func DescribeError(name string, err error) error {
	switch {
	case errors.Is(err, syscall.EBUSY):
		return fmt.Errorf("open TUN %s: in use by another process: end it (another kubelink on this node?) "+
			"or choose another ifce-name", name)
	case errors.Is(err, syscall.EINVAL):
		return fmt.Errorf("open TUN %s: a device of another kind has this name: remove it (ip link del %s) "+
			"or choose another ifce-name", name, name)
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("open TUN %s: %w: let the container have /dev/net/tun of the node (volume hostPath, "+
			"type CharDevice), as deploy/base/deployment.yaml does", name, err)
	case errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO):
		return fmt.Errorf("open TUN %s: %w: the kernel has no TUN: load the module tun on the node (modprobe tun)", name, err)
	case errors.Is(err, os.ErrPermission) && isOpenError(err):
		return fmt.Errorf("open TUN %s: %w: the container runtime forbids the device: runc 1.2.0 to 1.2.3 does, update it; "+
			"else allow character device 10:200, or let the container be privileged", name, err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("open TUN %s: %w: the process lacks the capability NET_ADMIN: add it to "+
			"securityContext.capabilities.add of the container, as deploy/base/deployment.yaml does", name, err)
	}
	return fmt.Errorf("open TUN %s: %w", name, err)
}

// isOpenError tells whether it is /dev/net/tun that cannot be opened.
func isOpenError(err error) bool {
	var call *os.SyscallError
	var path *os.PathError
	return errors.As(err, &call) && call.Syscall == "open" || errors.As(err, &path)
}

// IsMissing tells whether err says that this process may have no device for now. Names do not need one.
func IsMissing(err error) bool {
	return errors.Is(err, os.ErrPermission) || errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENODEV) ||
		errors.Is(err, syscall.ENXIO)
}
