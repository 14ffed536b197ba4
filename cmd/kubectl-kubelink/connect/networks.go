package connect

// The networks of a cluster. Kubernetes has no place where all of them are, so several are asked.

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

// Networks are those of a cluster; not valid: unknown.
type Networks struct{ Services, Pods, Nodes netip.Prefix }

// titled are the networks with their names.
func (n *Networks) titled() []titledNetwork {
	return []titledNetwork{{"service", "--service-cidr", &n.Services}, {"pod", "--pod-cidr", &n.Pods},
		{"node", "--node-cidr", &n.Nodes}}
}

type titledNetwork struct {
	title, flag string
	*netip.Prefix
}

// minNodeBits bounds the network that is guessed from the addresses of nodes: others may come.
const minNodeBits = 24

// findNetworks fills in what is not given.
func (c *changer) findNetworks(ctx context.Context, n *Networks) error {
	if err := c.readShootInfo(ctx, n); err != nil {
		return err
	}
	if err := c.readKubeadm(ctx, n); err != nil {
		return err
	}
	if err := c.readServiceCIDR(ctx, n); err != nil {
		return err
	}
	if err := c.readNodes(ctx, n); err != nil {
		return err
	}
	for _, t := range n.titled() {
		if !t.IsValid() {
			return fmt.Errorf("%s: the %s network is not known: give %s %s=CIDR", c.Name, t.title, t.flag, c.Name)
		}
	}
	return nil
}

// setNetwork takes over the first network of a list, if it is missing.
func setNetwork(to *netip.Prefix, list string) {
	first, _, _ := strings.Cut(list, ",")
	if p, err := netip.ParsePrefix(strings.TrimSpace(first)); err == nil && !to.IsValid() {
		*to = p.Masked()
	}
}

// readConfig reads a ConfigMap of kube-system. It is empty where there is none.
func (c *changer) readConfig(ctx context.Context, name string) (map[string]string, error) {
	var config corev1.ConfigMap
	err := c.Client.Get(ctx, client.ObjectKey{Namespace: "kube-system", Name: name}, &config)
	if client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("%s: read ConfigMap kube-system/%s: %w", c.Name, name, err)
	}
	return config.Data, nil
}

// readShootInfo asks Gardener.
func (c *changer) readShootInfo(ctx context.Context, n *Networks) error {
	data, err := c.readConfig(ctx, "shoot-info")
	setNetwork(&n.Services, data["serviceNetwork"])
	setNetwork(&n.Pods, data["podNetwork"])
	setNetwork(&n.Nodes, data["nodeNetwork"])
	return err
}

// readKubeadm asks kubeadm.
func (c *changer) readKubeadm(ctx context.Context, n *Networks) error {
	data, err := c.readConfig(ctx, "kubeadm-config")
	var config struct {
		Networking struct{ ServiceSubnet, PodSubnet string } `json:"networking"`
	}
	if err == nil && yaml.Unmarshal([]byte(data["ClusterConfiguration"]), &config) == nil {
		setNetwork(&n.Services, config.Networking.ServiceSubnet)
		setNetwork(&n.Pods, config.Networking.PodSubnet)
	}
	return err
}

// readServiceCIDR asks the API server: for its object (Kubernetes 1.33), else with a service that it refuses.
func (c *changer) readServiceCIDR(ctx context.Context, n *Networks) error {
	if n.Services.IsValid() {
		return nil
	}
	var own networkingv1.ServiceCIDR
	err := c.Client.Get(ctx, client.ObjectKey{Name: "kubernetes"}, &own)
	if err == nil {
		setNetwork(&n.Services, strings.Join(own.Spec.CIDRs, ","))
		return nil
	}
	refused := &corev1.Service{}
	refused.Namespace, refused.Name = "default", "kubelink-network"
	refused.Spec.ClusterIP, refused.Spec.Ports = "0.0.0.1", []corev1.ServicePort{{Port: 1}}
	err = c.Client.Create(ctx, refused, client.DryRunAll)
	if found := validRange.FindStringSubmatch(fmt.Sprint(err)); found != nil {
		setNetwork(&n.Services, found[1])
	}
	return nil // findNetworks says that it is missing
}

// validRange is in the message of the API server.
var validRange = regexp.MustCompile(`valid IPs is ([0-9a-fA-F.:/]+[0-9])`)

// readNodes derives networks from those of the nodes.
func (c *changer) readNodes(ctx context.Context, n *Networks) error {
	if n.Pods.IsValid() && n.Nodes.IsValid() {
		return nil
	}
	var nodes corev1.NodeList
	if err := c.Client.List(ctx, &nodes); err != nil {
		return fmt.Errorf("%s: list nodes: %w", c.Name, err)
	}
	var pods, addresses []netip.Prefix
	for _, node := range nodes.Items {
		if p, err := netip.ParsePrefix(node.Spec.PodCIDR); err == nil {
			pods = append(pods, p)
		}
		for _, a := range node.Status.Addresses {
			if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
				addresses = append(addresses, netip.PrefixFrom(ip, ip.BitLen()))
			}
		}
	}
	if p, err := spanNetworks(pods, 0); err == nil && !n.Pods.IsValid() {
		n.Pods = p
		c.log.printLine(c.Cluster, "pod network %s, as the nodes have it: if it is larger, give --pod-cidr %s=CIDR",
			p, c.Name)
	}
	if p, err := spanNetworks(addresses, minNodeBits); err == nil && !n.Nodes.IsValid() {
		n.Nodes = p
		c.log.printLine(c.Cluster, "node network %s, by the addresses of nodes: if it is larger, give "+
			"--node-cidr %s=CIDR", p, c.Name)
	}
	return nil
}

// spanNetworks returns the smallest network with all networks of the family of the first one, of at most so many bits;
// 0: no limit.
func spanNetworks(all []netip.Prefix, bits int) (netip.Prefix, error) {
	if len(all) == 0 {
		return netip.Prefix{}, errors.New("no network")
	}
	p := all[0].Masked()
	if bits > 0 && p.Addr().Is4() {
		p = netip.PrefixFrom(p.Addr(), min(p.Bits(), bits)).Masked()
	}
	for _, other := range all[1:] {
		for other.Addr().Is4() == p.Addr().Is4() && !(p.Contains(other.Addr()) && p.Bits() <= other.Bits()) {
			p = netip.PrefixFrom(p.Addr(), p.Bits()-1).Masked()
		}
	}
	return p, nil
}
