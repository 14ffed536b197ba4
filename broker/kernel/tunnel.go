package kernel

// No tunnel lies in itself. A peer can send a packet of its tunnel inside of it, to a service that leads to our own
// port. The dataplane would take it, and send its answer through the device, that is, through the answer itself. All of
// it is pure.

import (
	"fmt"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// tunnelChains keep the port that carries links away from the device: what comes in there does not get to the port, and
// what leaves the port does not go out there. Their hooks are behind the NAT of kube-proxy, and before that of answers.
func tunnelChains(device string, port mesh.LocalPort) []chain {
	toChain := func(builtin, way, option string, counts reason) chain {
		name := "KLINK-" + builtin
		return chain{table: mangleTable, name: name, device: device, first: true, counts: counts, unwanted: port.Port == 0,
			hooks:  []string{fmt.Sprintf("-A %s %s %s -m comment --comment kubelink -j %s", builtin, way, device, name)},
			rules:  []string{fmt.Sprintf("-A %s -p %s -m %[2]s %s %d -j DROP", name, port.Protocol, option, port.Port)},
			remedy: "a hostile peer may lead the traffic of its link through the link itself"}
	}
	return []chain{toChain("INPUT", "-i", "--dport", ofNode), toChain("OUTPUT", "-o", "--sport", notCounted)}
}
