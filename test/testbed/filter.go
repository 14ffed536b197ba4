package testbed

// This file makes networks of real nodes as strict as some are: they drop what does not carry their own addresses.

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// FilterNodeNetwork makes the network between the nodes drop packets that are not from and to addresses of nodes and
// pods, as clouds do that check source and destination.
func (c *Cluster) FilterNodeNetwork(ctx context.Context) error {
	_, err := c.Router.runWithInput(ctx, fmt.Sprintf(`table bridge node-network {
	chain forward {
		type filter hook forward priority 0
		ether type ip ip saddr != { %[1]s, %[2]s } counter drop
		ether type ip ip daddr != { %[1]s, %[2]s } counter drop
	}
}
`, NodeCIDR, PodCIDR), "nft", "-f", "-")
	return err
}

// NodeNetworkDrops returns how many packets FilterNodeNetwork has dropped.
func (c *Cluster) NodeNetworkDrops(ctx context.Context) (int, error) {
	rules, err := c.Router.Run(ctx, "nft", "list", "table", "bridge", "node-network")
	return sumCounters(rules, "packets "), err
}

// FilterPodNetwork makes the node drop what pods send from other addresses than those of pods, and what would come to
// pods for other addresses.
func (n *Node) FilterPodNetwork(ctx context.Context) error {
	for _, rule := range []string{
		"-t raw -A PREROUTING -i %s ! -s %s -m comment --comment pod-network -j DROP",
		"-t mangle -A POSTROUTING -o %s ! -d %s -m comment --comment pod-network -j DROP",
	} {
		if _, err := n.Iptables(ctx, strings.Fields(fmt.Sprintf(rule, n.podDevices(), PodCIDR))...); err != nil {
			return err
		}
	}
	return nil
}

// PodNetworkDrops returns how many packets FilterPodNetwork has dropped.
func (n *Node) PodNetworkDrops(ctx context.Context) (int, error) {
	all := 0
	for _, table := range []string{"raw", "mangle"} {
		rules, err := n.Run(ctx, "iptables-save", "-c", "-t", table)
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(rules) {
			if strings.Contains(line, "pod-network") {
				all += sumCounters(line, "[")
			}
		}
	}
	return all, nil
}

// podDevices matches the node's ends of its pods' cables.
func (n *Node) podDevices() string {
	switch n.cni {
	case PointToPoint:
		return "veth+"
	case Bridge:
		return "cni0"
	}
	return "cali+"
}

// sumCounters adds the numbers that stand behind a word.
func sumCounters(text, word string) (sum int) {
	for _, part := range strings.Split(text, word)[1:] {
		end := strings.IndexFunc(part, func(r rune) bool { return r < '0' || r > '9' })
		if n, err := strconv.Atoi(part[:max(end, 0)]); err == nil {
			sum += n
		}
	}
	return sum
}
