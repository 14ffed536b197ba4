package bridge

// The firewall of links, as a table of packets. The chains of the kernel, which filter in mode wireguard, are tested with
// the same one.

import (
	"encoding/binary"
	"encoding/json"
	"net/netip"
	"os"
	"testing"

	"github.com/mandelsoft/kubelink/broker/hello"
	"github.com/mandelsoft/kubelink/broker/mesh"
	"github.com/mandelsoft/kubelink/broker/mesh/service"
)

// firewallTable is the file. A packet's want is where it gets: "in", "on" to another link, or why it is dropped.
type firewallTable struct {
	Local    mesh.Local
	Objects  mesh.Objects
	Services []service.Service
	Packets  []struct {
		Name, From, Src, Dst, Kind string
		Port                       uint16
		Want, Bridge               string // Bridge: where connection tracking, behind the bridge, says the rest
	}
}

func readFirewallTable(t *testing.T) (table firewallTable, state mesh.State) {
	t.Helper()
	text, err := os.ReadFile("../mesh/testdata/firewall.json")
	if err == nil {
		err = json.Unmarshal(text, &table)
	}
	if err != nil {
		t.Fatal(err)
	}
	if state = mesh.Build(table.Objects, table.Local); len(state.Problems) > 0 {
		t.Fatal(state.Problems)
	}
	return table, service.Open(state, table.Services)
}

// firewallPacket makes a packet of the table.
func firewallPacket(src, dst, kind string, port uint16) []byte {
	from, to := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	v6, protocol, payload, headers := from.Is6(), byte(tcp), tcpHeader(port, syn), []byte(nil)
	switch kind {
	case "ack":
		payload = tcpHeader(port, ack)
	case "udp":
		protocol, payload = udp, udpHeader(port)
	case "ping":
		if protocol, payload = protocolICMP, icmpHeader(echoRequest); v6 {
			protocol, payload = protocolICMPv6, icmpHeader(echoRequestV6)
		}
	case "redirect":
		protocol, payload = protocolICMP, icmpHeader(5)
	case "routing":
		headers = append([]byte{43, tcp, 2, 2, 1}, make([]byte, 20)...)
	}
	b := ipPacket(v6, protocol, headers, payload)
	if v6 {
		copy(b[8:], from.AsSlice())
		copy(b[24:], to.AsSlice())
		return b
	}
	copy(b[12:], from.AsSlice())
	copy(b[16:], to.AsSlice())
	if kind == "loose" {
		options := []byte{1, 131, 7, 4, 8, 8, 8, 8}
		b = append(b[:20:20], append(options, b[20:]...)...)
		b[0] = 0x47
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	}
	return b
}

func TestFirewallTable(t *testing.T) {
	table, state := readFirewallTable(t)
	tun := newMemTUN()
	b := newTestBridge(t, tun)
	b.SetCredentials(unencrypted)
	if err := b.Set(state.Peers, state.Local); err != nil {
		t.Fatal(err)
	}
	sessions := map[string]*session{}
	for _, p := range b.router.table.Load().peers {
		p.failed.Store(true) // it counts what it gets
		raw := newBatchConn(null{}, 0)
		sessions[p.Link] = newSession(p, raw, raw, true, 0, b.featureFlags(),
			&hello.Hello{Capable: true, Flags: b.featureFlags(), Streams: 1})
	}
	for _, c := range table.Packets {
		before := b.Stats()
		packet := firewallPacket(c.Src, c.Dst, c.Kind, c.Port)
		sessions[c.From].receivePacket(append(make([]byte, vnetSize), packet...), vnetHeader{})
		got := "nowhere"
		for link, s := range b.Stats().Links {
			for why, n := range s.Drops {
				if n == before.Links[link].Drops[why] {
					continue
				}
				if got = Drop(why).String(); Drop(why) == DropNotConnected {
					got = "on"
				}
			}
		}
		if len(tun.out) > 0 {
			<-tun.out
			got = "in"
		}
		want := c.Want
		if c.Bridge != "" {
			want = c.Bridge
		}
		if got != want {
			t.Errorf("%s (%s: %s to %s): %s, want %s", c.Name, c.From, c.Src, c.Dst, got, want)
		}
	}
}
