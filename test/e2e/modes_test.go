package e2e

// The same tests run in mode bridge and in mode wireguard: KUBELINK_MODE says which one. This file has what differs.

import (
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/peer"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// leftOut are the tests that cannot apply in a mode, with the reason. A name is a regular expression.
var leftOut = map[mesh.Mode]map[string]string{
	mesh.Bridge: {
		`TestWireGuard\w+`: "they are about keys, handshakes and devices of WireGuard",
	},
	mesh.WireGuard: {
		"TestPeerWithoutOffloads":                        "WireGuard negotiates no offloads: property offload is of mode bridge",
		"TestConnectionsKilled":                          "packets travel in UDP: a link has no connections to break",
		"TestLegacyPeerTransfer":                         "the frames in TLS of a former peer; TestWireGuard has a peer that is no kubelink",
		"TestCertificateReplaced":                        "there are keys in place of certificates: TestWireGuard replaces them",
		"TestAutoConnect":                                "the device drops what comes from unknown keys: no link can be made of it",
		"TestSecretManagedBySelf":                        "there are keys in place of certificates: TestWireGuard has the broker make one",
		"TestSecretManagedByCertificateServiceOfTheTest": "there are keys in place of certificates",
		"TestRefusedConnections":                         "the device refuses without a word; TestWireGuard has a hostile peer",
		"TestPlainSessionsEndWithCertificate":            "WireGuard always encrypts",
		"TestBadCredentials":                             "there are keys in place of certificates: TestWireGuard has bad ones",
		"TestEndOfTrust":                                 "keys have neither a CA nor an end",
		"TestModeByReload":                               "it begins in mode bridge",
		"TestFrontByServerName":                          "packets of WireGuard have no server name",
	},
}

// leaveOut has the tests skipped that cannot apply in the mode, and prints why.
func leaveOut(mode mesh.Mode) error {
	flag.Parse()
	var patterns []string
	for _, name := range slices.Sorted(maps.Keys(leftOut[mode])) {
		fmt.Printf("left out in mode %s: %s: %s\n", mode, name, leftOut[mode][name])
		patterns = append(patterns, "^"+name+"$")
	}
	skip := flag.Lookup("test.skip").Value
	if chosen := skip.String(); chosen != "" {
		patterns = append(patterns, chosen)
	}
	return skip.Set(strings.Join(patterns, "|"))
}

func inWireGuard() bool { return f.Mode == mesh.WireGuard }

// linkMTU is the default MTU of links.
func linkMTU() int {
	if inWireGuard() {
		return 1420
	}
	return 1500
}

// lossTime is how soon names have to fail after a peer has been killed. In mode bridge the peer's kernel closes its
// connections at once. In mode wireguard the link is silent: that has to be noticed within 5 s.
func lossTime() time.Duration {
	if inWireGuard() {
		return 6 * time.Second
	}
	return time.Second
}

// returnTime is how soon a link has to be Up again after its broker, or its peer, has been started anew. In mode
// wireguard a new device makes new handshakes.
func returnTime() time.Duration {
	if inWireGuard() {
		return 5 * time.Second
	}
	return 3 * time.Second
}

// followTime is how soon requests pass again when two brokers of a cluster dial, and the peer follows one of them. In
// mode wireguard both may greet at once: a device that gets no answer to a handshake sends the next one after 5 s.
func followTime() time.Duration {
	if inWireGuard() {
		return 8 * time.Second
	}
	return 3 * time.Second
}

// placeTime is how soon a LinkGateway has to name the broker that takes over 250 links. In mode wireguard the kernel
// gets a firewall for them before.
func placeTime() time.Duration {
	if inWireGuard() {
		return 2 * time.Second
	}
	return time.Second
}

// allowForLoad is what to allow beyond a limit for a change of the rules of many links: brokers run iptables some times
// for it, which takes far longer on a busy machine.
func allowForLoad(t *testing.T, ctx context.Context, n *testbed.Node) time.Duration {
	t.Helper()
	const runs = 10
	began := time.Now()
	_, err := n.Run(ctx, "iptables-save")
	must(t, err)
	return runs * time.Since(began)
}

// droppedSeries is the counter of packets from a link that the firewall has dropped. In mode wireguard the kernel has
// the firewall, and counts by reason.
func droppedSeries(link, reason string) string {
	if inWireGuard() {
		link = ""
	}
	return fmt.Sprintf(`coredns_kubelink_dropped_packets_total{link=%q,reason=%q}`, link, reason)
}

// countTime is how soon a counter shows what was refused. In mode wireguard the broker runs iptables-save for it, which
// may take its time on a machine with other load.
func countTime() time.Duration {
	if inWireGuard() {
		return 15 * time.Second
	}
	return 2 * time.Second
}

// strangersKey is a public key for a link to a cluster that the test bed does not have. In mode bridge it needs none.
func strangersKey(name string) string {
	if !inWireGuard() {
		return ""
	}
	return mesh.SecretKey(sha256.Sum256([]byte(name))).Public().String()
}

// brokerPort is where the load balancer leads the packets of peers on the gateway node: protocol and port.
func brokerPort() (protocol, port string) {
	if inWireGuard() {
		return "udp", fmt.Sprint(testbed.WireguardPort)
	}
	return "tcp", fmt.Sprint(testbed.BrokerPort)
}

// withPublicPort is an endpoint of a broker with its port.
func withPublicPort(b *fleet.Broker, host string) string {
	if inWireGuard() {
		return fmt.Sprintf("%s:%d", host, testbed.WireguardPort)
	}
	return host + ":80"
}

// farEnd is a broker for a peer that is no kubelink.
func farEnd(b *fleet.Broker) peer.Far {
	return peer.Far{
		Key:      b.PrivateKey().Public(),
		Endpoint: netip.AddrPortFrom(b.PublicAddress, testbed.WireguardPort),
		Allowed:  []netip.Prefix{netip.PrefixFrom(b.MeshAddress.Addr(), 32), b.ServiceCIDR},
	}
}
