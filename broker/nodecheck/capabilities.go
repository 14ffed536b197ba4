package nodecheck

// What the process may do.

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mandelsoft/kubelink/broker/link"
)

// neededCapabilities are the ones that links need (capabilities(7)).
var neededCapabilities = []struct {
	number int
	name   string
	reason string
}{
	{unix.CAP_NET_ADMIN, "NET_ADMIN", "to set up the network interface, routes and iptables"},
	{unix.CAP_NET_RAW, "NET_RAW", "for iptables"},
}

// checkCapabilities looks for capabilities that this process lacks.
func checkCapabilities() link.Findings {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return nil
	}
	return missingCapabilities(uint64(sets[0].Effective) | uint64(sets[1].Effective)<<32)
}

// missingCapabilities is the finding about a set of capabilities.
func missingCapabilities(effective uint64) link.Findings {
	var names, reasons []string
	for _, c := range neededCapabilities {
		if effective&(1<<c.number) == 0 {
			names, reasons = append(names, c.name), append(reasons, c.name+" "+c.reason)
		}
	}
	if names == nil {
		return nil
	}
	return link.Findings{{
		Reason: MissingCapability,
		Text:   "the process lacks the capability " + strings.Join(reasons, " and "),
		Remedy: fmt.Sprintf("add [%s] to securityContext.capabilities.add of the container, "+
			"as deploy/base/deployment.yaml has it", strings.Join(names, ", ")),
	}}
}
