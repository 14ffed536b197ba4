// Package linkgateway says where the gateway of the links is: on a node, or in a pod of it (pod mode). It writes that
// to the API, as a LinkGateway, for the other nodes.
package linkgateway

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// Config is what the configuration and the environment say of the place. The zero address, and an empty name, are not
// known.
type Config struct {
	Node   string       // name of the node
	NodeIP netip.Addr   // property node-ip
	Pod    string       // name of the pod, which is also the name of its host
	PodIPs []netip.Addr // addresses of the pod

	NodeCIDRs, PodCIDRs mesh.Prefixes // properties node-cidr and pod-cidr
}

// Place is where the gateway is.
type Place struct {
	Node    string
	NodeIPs []netip.Addr // one of each family at most
	InPod   bool         // pod mode
	Pod     string       // pod mode: name of the pod
	PodIPs  []netip.Addr // pod mode: one of each family at most
	Device  string       // pod mode: the pod's own interface; empty: not known
	MTU     int          // of the device that packets come to, in bytes; 0: not known
	Problem error        // pod mode: what is missing; nil: nothing
}

// OwnInterface is the pod's own interface, with the node as what is behind it. Of a node it is the zero HostInterface.
func (p *Place) OwnInterface() mesh.HostInterface {
	if p.Device == "" || len(p.NodeIPs) == 0 {
		return mesh.HostInterface{}
	}
	return mesh.HostInterface{Addr: p.NodeIPs[0], Device: p.Device, MTU: p.MTU}
}

// Locator finds the place again and again. It has one user at a time.
type Locator struct {
	Place  // as found last
	config Config
	onNode *Place // as found last for config; nil: not yet
}

// Locate looks for the place again. What was a node stays one, also while its addresses are gone: a pod has none of a
// node, and never had.
func (l *Locator) Locate(c Config, h *mesh.Host) {
	if !reflect.DeepEqual(c, l.config) {
		l.config, l.onNode = c, nil
	}
	l.Place = findPlace(c, h.Addresses)
	switch {
	case !l.InPod && len(h.Addresses) > 0:
		l.onNode = new(l.Place)
	case l.InPod && l.onNode != nil:
		l.Place = *l.onNode
	}
}

// findPlace finds the place by the addresses of interfaces.
func findPlace(c Config, interfaces []mesh.HostInterface) Place {
	p := Place{Node: c.Node}
	addAddress(&p.NodeIPs, c.NodeIP)
	isOwn := false // an address of the node
	for _, i := range interfaces {
		if c.NodeCIDRs.Contains(i.Addr) || i.Addr == c.NodeIP {
			isOwn = true
			addAddress(&p.NodeIPs, i.Addr)
		}
	}
	if isOwn || len(c.NodeCIDRs) == 0 || len(interfaces) == 0 {
		p.MTU = mtuOf(p.NodeIPs, interfaces)
		return p
	}
	p.InPod, p.Pod = true, c.Pod
	for _, a := range c.PodIPs {
		addAddress(&p.PodIPs, a)
	}
	for _, i := range interfaces {
		if c.PodCIDRs.Contains(i.Addr) {
			addAddress(&p.PodIPs, i.Addr)
		}
	}
	for _, i := range interfaces {
		if p.Device == "" && slices.Contains(p.PodIPs, i.Addr) {
			p.Device = i.Device
		}
	}
	p.MTU = mtuOf(p.PodIPs, interfaces)
	p.Problem = checkPod(c, &p, interfaces)
	return p
}

// addAddress adds an address, unless there is one of its family.
func addAddress(all *[]netip.Addr, a netip.Addr) {
	if a.IsValid() && !slices.ContainsFunc(*all, func(b netip.Addr) bool { return a.Is4() == b.Is4() }) {
		*all = append(*all, a)
	}
}

// mtuOf returns the smallest MTU of the devices with these addresses.
func mtuOf(addresses []netip.Addr, interfaces []mesh.HostInterface) (mtu int) {
	for _, i := range interfaces {
		if slices.Contains(addresses, i.Addr) && (mtu == 0 || i.MTU < mtu) {
			mtu = i.MTU
		}
	}
	return mtu
}

// checkPod says what pod mode lacks.
func checkPod(c Config, p *Place, interfaces []mesh.HostInterface) error {
	why := fmt.Sprintf("no interface has an address in node-cidr %s, so this is a pod without hostNetwork (pod mode)",
		c.NodeCIDRs)
	var errs []error
	say := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: "+format, append([]any{why}, args...)...))
	}
	if !c.NodeIP.IsValid() {
		say("node-ip is missing: set it to the address of the node, as deploy/components/pod-mode does with status.hostIP; " +
			"on a node, correct node-cidr")
	} else if !c.NodeCIDRs.Contains(c.NodeIP) {
		say("node-ip %s does not lie in it: correct node-ip or node-cidr", c.NodeIP)
	}
	switch {
	case len(c.PodCIDRs) == 0:
		say("pod-cidr is missing: set it to the network of all pods; on a node, correct node-cidr")
	case p.Device == "":
		say("pod-cidr %s has none of its addresses (%s): correct pod-cidr; on a node, correct node-cidr",
			c.PodCIDRs, listAddresses(interfaces))
	}
	if c.Node == c.Pod {
		say("the name of the node is not known: set the variable NODE_NAME from spec.nodeName, " +
			"as deploy/components/pod-mode does")
	}
	return errors.Join(errs...)
}

// maxListed bounds what a message lists.
const maxListed = 4

func listAddresses(interfaces []mesh.HostInterface) (text string) {
	for i, a := range interfaces {
		if i == maxListed {
			return text + ", ..."
		}
		if i > 0 {
			text += ", "
		}
		text += a.Addr.String() + " of " + a.Device
	}
	return text
}
