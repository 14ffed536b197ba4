package kernel

// Whether the kernel forwards what comes in through the device, and where to. The settings of the node are not ours,
// the ones of our device are: Documentation/networking/ip-sysctl.rst of Linux.

import (
	"bytes"
	"fmt"
	"os"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// isForwarding tells whether forwarding is on for a device. What cannot be read is not on; setForwarding says why
// then.
//
// Each device has a setting that IPv4 goes by. IPv6 goes by the one of all devices, or by force_forwarding of the
// device (Linux 6.17); forwarding of the device makes it the interface of a router only.
func isForwarding(family int, device string) bool {
	if family == unix.AF_INET {
		return isOn(family, device, "forwarding")
	}
	return isOn(family, device, "forwarding") &&
		(isOn(family, "all", "forwarding") || isOn(family, device, "force_forwarding"))
}

func isOn(family int, device, setting string) bool {
	value, err := os.ReadFile(settingFile(family, device, setting))
	return err == nil && string(bytes.TrimSpace(value)) == "1"
}

func settingFile(family int, device, setting string) string {
	return fmt.Sprintf("/proc/sys/net/ipv%d/conf/%s/%s", IPVersion(family), device, setting)
}

func setForwarding(o forwarding, device string) error {
	if o.Family == unix.AF_INET {
		return setConfig4(o.Index, inetConfForwarding, 1)
	}
	settings := []string{"forwarding"}
	if !isOn(o.Family, "all", "forwarding") {
		settings = append(settings, "force_forwarding")
	}
	for _, s := range settings {
		if err := os.WriteFile(settingFile(o.Family, device, s), []byte("1"), 0); err != nil {
			return fmt.Errorf("%w: run sysctl -w net.ipv6.conf.all.forwarding=1 on the node; in a pod without hostNetwork, "+
				"let kubelet set it (securityContext.sysctls)", err)
		}
	}
	return nil
}

// PrepareDevice makes the kernel forward what comes in through a device of ours. It writes only where that is not so.
func PrepareDevice(index int, device string, family int) error {
	if isForwarding(family, device) {
		return nil
	}
	return setForwarding(forwarding{index, family}, device)
}

// isUnrouting tells whether source routes are refused. What cannot be read is not so.
func isUnrouting(device string) bool {
	value, err := os.ReadFile(settingFile(unix.AF_INET, device, "accept_source_route"))
	return err == nil && string(bytes.TrimSpace(value)) == "0"
}

// setConfig4 uses rtnetlink(7), for a container without privileges cannot write files below /proc/sys. There is no such
// way for IPv6.
func setConfig4(index, setting int, value uint32) error {
	request := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	message := nl.NewIfInfomsg(unix.AF_UNSPEC)
	message.Index = int32(index)
	request.AddData(message)
	perFamily := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	config := perFamily.AddRtAttr(unix.AF_INET, nil).AddRtAttr(inetConf, nil)
	config.AddRtAttr(setting, nl.Uint32Attr(value))
	request.AddData(perFamily)
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// IFLA_INET_CONF of linux/if_link.h, IPV4_DEVCONF_FORWARDING and IPV4_DEVCONF_ACCEPT_SOURCE_ROUTE of linux/ip.h.
const (
	inetConf            = 1
	inetConfForwarding  = 1
	inetConfSourceRoute = 9
)
