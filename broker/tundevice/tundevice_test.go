package tundevice

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Why a TUN cannot be opened is told with the remedy. Some reasons may go without a restart, and names need no TUN.
func TestOpenErrors(t *testing.T) {
	for _, c := range []struct {
		name    string
		err     error
		says    string
		missing bool
	}{
		{"no device file", os.NewSyscallError("open", unix.ENOENT), "volume hostPath, type CharDevice", true},
		{"no module", os.NewSyscallError("open", unix.ENODEV), "modprobe tun", true},
		{"no driver", os.NewSyscallError("open", unix.ENXIO), "modprobe tun", true},
		{"forbidden by the runtime", os.NewSyscallError("open", unix.EPERM),
			"the container runtime forbids the device", true},
		{"forbidden, without offloads", &os.PathError{Op: "open", Path: "/dev/net/tun", Err: unix.EPERM},
			"the container runtime forbids the device", true},
		{"no capability", os.NewSyscallError("TUNSETIFF", unix.EPERM), "capability NET_ADMIN", true},
		{"no capability, without offloads", unix.EPERM, "capability NET_ADMIN", true},
		{"in use", os.NewSyscallError("TUNSETIFF", unix.EBUSY), "in use by another process", false},
		{"another kind", os.NewSyscallError("TUNSETIFF", unix.EINVAL), "ip link del kubelink", false},
	} {
		err := DescribeError("kubelink", c.err)
		if !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "open TUN kubelink") ||
			IsMissing(err) != c.missing {
			t.Errorf("%s: %v, missing %v", c.name, err, IsMissing(err))
		}
	}
}
