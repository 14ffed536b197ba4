package e2e

// What stands in the way of packets on the gateway node: the broker finds it and says what to do, and says nothing of a
// healthy node.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mandelsoft/kubelink/broker/api/kubelink/v1alpha1"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// findTime is how soon a finding, or its end, has to show in the API.
const findTime = 5 * time.Second

// nodeCase is something in the way of packets.
type nodeCase struct {
	name        string
	spoil, heal string // commands on the gateway node
	reason      string
	texts       []string // of text and remedy, at the link and at the LocalLink
	wholeNode   bool     // it concerns all links
}

func nodeCases() []nodeCase {
	peer := brokers[1]
	return []nodeCase{
		{"policy DROP in the other back end",
			"iptables-legacy -P FORWARD DROP", "iptables-legacy -P FORWARD ACCEPT", "PacketFilter",
			[]string{"iptables-legacy, table filter: chain FORWARD has the policy DROP",
				"iptables-legacy -I FORWARD -o kubelink -j ACCEPT"}, true},
		{"final REJECT in the other back end (H04)",
			"iptables-legacy -A FORWARD -j REJECT --reject-with icmp-host-prohibited", "iptables-legacy -F FORWARD",
			"PacketFilter",
			[]string{`rule "-A FORWARD -j REJECT`, "iptables-legacy -I FORWARD -o kubelink -j ACCEPT"}, true},
		{"forwarding off for pods (H05)",
			"for f in /proc/sys/net/ipv4/conf/*/forwarding; do echo 0 > $f; done; " +
				"echo 1 > /proc/sys/net/ipv4/conf/kubelink/forwarding",
			"echo 1 > /proc/sys/net/ipv4/ip_forward", "ForwardingOff", []string{"from pods",
				"sysctl -w net.ipv4.ip_forward=1"}, true},
		{"a native drop of nftables",
			"nft add table inet site; nft add chain inet site fw '{ type filter hook forward priority 0; policy drop; }'; " +
				"nft add rule inet site fw ct state established,related accept", "nft delete table inet site", "PacketFilter",
			[]string{"nftables: chain inet site fw has the policy DROP",
				"nft insert rule inet site fw oifname kubelink accept"}, true},
		{"a masquerade before ours",
			"nft add table ip site; nft add chain ip site nat '{ type nat hook postrouting priority 90; }'; " +
				"nft add rule ip site nat ip saddr 100.96.0.0/11 masquerade", "nft delete table ip site", "SourceNAT",
			[]string{"masqueraded before kubelink sees them", "nft insert rule ip site nat oifname kubelink accept"}, true},
		{"a foreign route",
			fmt.Sprintf("ip route add %s/25 dev eth0", peer.ServiceCIDR.Addr()), fmt.Sprintf("ip route del %s/25 dev eth0",
				peer.ServiceCIDR.Addr()),
			"ForeignRoute", []string{"/25 dev eth0", "remove the route (ip route del"}, false},
		{"a rule of the pod network",
			fmt.Sprintf("ip route add default dev eth0 table 77; "+
				"ip rule add priority 1000 from 100.96.0.0/11 to %s lookup 77", peer.ServiceCIDR),
			"ip rule del priority 1000; ip route flush table 77", "ForeignRoute",
			[]string{"rule with priority 1000 (from 100.96.0.0/11 lookup 77)", "rule-priority below 1000"}, false},
		{"an endpoint in a routed network",
			fmt.Sprintf("ip route add %s/32 dev kubelink", peer.PublicAddress),
			fmt.Sprintf("ip route del %s/32 dev kubelink", peer.PublicAddress),
			"EndpointInTunnel", []string{peer.PublicAddress.String() + " of its endpoint " + peer.FQDN, "ip route del"}, false},
	}
}

// Each thing in the way of packets shows within five seconds with its remedy at the link and at the LocalLink, in DNS,
// in metrics, in ready and as an event, and the link is Up again within five seconds after it is gone.
func TestNodeFindings(t *testing.T) {
	ctx := startTest(t, 3*time.Minute)
	b := brokers[0]
	for _, c := range nodeCases() {
		t.Run(c.name, func(t *testing.T) {
			node := b.Gateway()
			t.Cleanup(func() { node.Run(context.Background(), "sh", "-c", c.heal) })
			_, err := node.Run(ctx, "sh", "-c", c.spoil)
			must(t, err)
			found := within(t, findTime, "finding", func(ctx context.Context) error { return checkFinding(ctx, b, &c) })
			if !c.wholeNode {
				if _, condition, err := forwarding(ctx, b, "kubelink3"); err != nil || condition.Status != metav1.ConditionTrue {
					t.Errorf("the other link: %+v, %v", condition, err)
				}
			}
			within(t, findTime, "event", func(ctx context.Context) error { return checkEvent(ctx, b, b.Name, c.texts[0]) })
			within(t, findTime, "readiness to end", func(ctx context.Context) error { return checkUnready(ctx, b, c.texts[0]) })

			_, err = node.Run(ctx, "sh", "-c", c.heal)
			must(t, err)
			healed := within(t, findTime, "link to be Up", func(ctx context.Context) error { return checkUp(ctx, b) })
			waitForReply(t, time.Second, clients[0], servers[1].service)
			t.Logf("found after %s, healed after %s", found, healed)
		})
	}
}

// What stands in the way in our own back end is passed: our rule comes before it, and links stay Up.
func TestOwnFilterPasses(t *testing.T) {
	ctx := startTest(t, time.Minute)
	b := brokers[0]
	node := b.Gateway()
	t.Cleanup(func() { node.Iptables(context.Background(), "-P", "FORWARD", "ACCEPT") })
	_, err := node.Iptables(ctx, "-P", "FORWARD", "DROP")
	must(t, err)
	waitForReply(t, findTime, clients[0], servers[1].service)
	waitForReply(t, findTime, clients[1], servers[0].service)
	must(t, b.WaitChecked(ctx))
	must(t, checkUp(ctx, b))
}

// A process without a capability says so, and still serves names.
func TestMissingCapability(t *testing.T) {
	ctx := startTest(t, time.Minute)
	b := brokers[0]
	binary, err := fleet.Binary()
	must(t, err)
	restore := func(ctx context.Context) error {
		b.Binary = ""
		if err := b.Kill(ctx, syscall.SIGTERM); err != nil {
			return err
		}
		return errors.Join(b.Start(ctx), f.WaitMesh(ctx))
	}
	t.Cleanup(func() {
		if b.Binary != "" {
			restore(context.Background())
		}
	})
	for _, name := range []string{"NET_RAW", "NET_ADMIN"} {
		script := filepath.Join(t.TempDir(), "kubelink")
		text := "#!/bin/sh\nexec setpriv --bounding-set -" + strings.ToLower(name) + " " + binary + " \"$@\"\n"
		must(t, os.WriteFile(script, []byte(text), 0o755))
		must(t, b.Kill(ctx, syscall.SIGTERM))
		b.Binary = script
		must(t, b.Launch())
		within(t, 2*findTime, "finding of "+name, func(ctx context.Context) error {
			_, condition, err := forwarding(ctx, b, b.Name)
			if err != nil {
				return err
			}
			remedy := "add [" + name + "] to securityContext.capabilities.add"
			for _, text := range []string{"lacks the capability " + name, remedy} {
				if condition.Reason != "MissingCapability" || !strings.Contains(condition.Message, text) {
					return fmt.Errorf("condition %+v, want %q", condition, text)
				}
			}
			return checkAnswer(ctx, b, serverName(0), servers[0].service)
		})
	}
	must(t, restore(ctx))
}

// Nothing is said of a node with kube-proxy in nftables mode, and packets pass.
func TestNodeWithNFTablesProxy(t *testing.T) {
	ctx := startTest(t, time.Minute)
	b := brokers[0]
	node := b.Gateway()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := node.SetProxyMode(ctx, testbed.ProxyIPTables); err != nil {
			t.Error(err)
		}
		waitForReply(t, findTime, clients[1], servers[0].service)
	})
	must(t, node.SetProxyMode(ctx, testbed.ProxyNFTables))
	waitForReply(t, findTime, clients[1], servers[0].service)
	waitForReply(t, findTime, clients[0], servers[1].service)
	must(t, b.WaitChecked(ctx))
	must(t, checkUp(ctx, b))
}

// forwarding returns a KubeLink and its condition Forwarding.
func forwarding(ctx context.Context, b *fleet.Broker, name string) (*v1alpha1.KubeLink, *metav1.Condition, error) {
	l, err := b.Link(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	c := meta.FindStatusCondition(l.Status.Conditions, v1alpha1.ConditionForwarding)
	if c == nil {
		return nil, nil, errors.New(name + " has no condition Forwarding")
	}
	return l, c, nil
}

// checkFinding checks all places that show a finding about the link to the second cluster.
func checkFinding(ctx context.Context, b *fleet.Broker, c *nodeCase) error {
	for _, name := range []string{b.Name, "kubelink2"} {
		l, condition, err := forwarding(ctx, b, name)
		if err != nil {
			return err
		}
		if condition.Status != metav1.ConditionFalse || condition.Reason != c.reason {
			return fmt.Errorf("%s is %s, condition %+v", name, l.Status.State, condition)
		}
		for _, text := range c.texts {
			if !strings.Contains(condition.Message, text) || !strings.Contains(l.Status.Message, text) {
				return fmt.Errorf("%s: the message %q or %q does not contain %q", name, l.Status.Message, condition.Message, text)
			}
		}
		ready := meta.IsStatusConditionTrue(l.Status.Conditions, v1alpha1.ConditionReady)
		if bad := name != b.Name || c.wholeNode; ready == bad || (l.Status.State == v1alpha1.StateUp) == bad {
			return fmt.Errorf("%s is %s, ready %v", name, l.Status.State, ready)
		}
	}
	m, _, err := queryBroker(ctx, b, "udp", "_state.kubelink2.kubelink.", dns.TypeTXT)
	if err != nil {
		return err
	}
	if text := fmt.Sprint(m.Answer); !strings.Contains(text, "state=Error") && !strings.Contains(text, "state=Down") {
		return errors.New(text)
	}
	v, err := b.Metric(ctx, fmt.Sprintf("coredns_kubelink_node_findings{reason=%q}", c.reason))
	if err == nil && v < 1 {
		err = errors.New("no metric")
	}
	return err
}

// checkUp checks that there is no finding, and that the broker is ready.
func checkUp(ctx context.Context, b *fleet.Broker) error {
	for _, name := range []string{b.Name, "kubelink2", "kubelink3"} {
		l, condition, err := forwarding(ctx, b, name)
		if err != nil {
			return err
		}
		if l.Status.State != v1alpha1.StateUp || condition.Status != metav1.ConditionTrue {
			return fmt.Errorf("%s is %s (%s), condition %+v", name, l.Status.State, l.Status.Message, condition)
		}
	}
	_, err := b.Host.Get(ctx, fleet.ReadyURL)
	return err
}

// checkEvent checks that there is an event about a KubeLink.
func checkEvent(ctx context.Context, b *fleet.Broker, name, text string) error {
	var events corev1.EventList
	if err := b.Client.List(ctx, &events); err != nil {
		return err
	}
	for _, e := range events.Items {
		if e.InvolvedObject.Name == name && strings.Contains(e.Message, text) {
			return nil
		}
	}
	return fmt.Errorf("none of %d events is about %s and contains %q", len(events.Items), name, text)
}

// checkUnready checks that the broker is not ready, and that the log says why.
func checkUnready(ctx context.Context, b *fleet.Broker, text string) error {
	if page, err := b.Host.Get(ctx, fleet.ReadyURL); err == nil {
		return fmt.Errorf("the broker is ready: %s", page)
	}
	for line := range strings.Lines(b.Process.Log()) {
		if strings.Contains(line, "Not ready: ") && strings.Contains(line, text) {
			return nil
		}
	}
	return fmt.Errorf("the log does not say that it is not ready because of %q", text)
}
