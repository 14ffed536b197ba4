package kernel

// What the firewall of many links costs packets.

import (
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netns"
)

// BenchmarkFirewallPacket: a packet of one of 250 links, from one device to another one.
func BenchmarkFirewallPacket(b *testing.B) {
	for _, backend := range []string{nftBackend, legacyBackend} {
		for _, what := range []string{"none", "250 links", "250 links with lists"} {
			b.Run(backend+", "+what, func(b *testing.B) {
				enter(b)
				if backend == legacyBackend {
					useLegacy(b)
				}
				links := tun(b, "kubelink")
				tun(b, "pods")
				run(b, `ip link set pods up
					ip route add 100.64.0.0/20 dev pods
					sysctl -qw net.ipv4.conf.all.rp_filter=0
					sysctl -qw net.ipv4.conf.kubelink.rp_filter=0`)
				built := manyLinks(250, what == "250 links with lists")
				s := firewallState(built)
				if what == "none" {
					s.Firewall = nil
				}
				k, _ := open(b, config)
				set(b, k, s)
				p := built.Peers[124]
				packet := udp4(p.Networks[1].Addr().Next(), p.Ingress[0].Prefix.Addr().Next())
				if p.Ingress[0].Prefix.IsSingleIP() {
					packet = udp4(p.Networks[1].Addr().Next(), p.Ingress[0].Prefix.Addr())
				}
				began, packets := threadTime(b), 0
				for b.Loop() {
					for range 1000 {
						if _, err := links.Write(packet); err != nil {
							b.Fatal(err)
						}
					}
					packets += 1000
				}
				b.StopTimer()
				b.ReportMetric(float64(threadTime(b)-began)/float64(packets), "ns/packet")
				set(b, k, s)
				if d := k.Drops(); d != (Drops{}) {
					b.Errorf("dropped %+v", d)
				}
			})
		}
	}
}

// threadTime is the time that this thread has had on processors, which does not depend on what else runs.
func threadTime(b *testing.B) time.Duration {
	text, err := os.ReadFile("/proc/thread-self/schedstat")
	if err != nil {
		b.Fatal(err)
	}
	var n int64
	if _, err := fmt.Sscan(string(text), &n); err != nil {
		b.Fatal(err)
	}
	return time.Duration(n)
}

// BenchmarkFirewallThroughput: TCP from one of 250 links to a pod, with and without the firewall by turns. It prints
// the median of the rounds' ratios.
func BenchmarkFirewallThroughput(b *testing.B) {
	enter(b)
	node, err := netns.Get()
	if err != nil {
		b.Fatal(err)
	}
	defer node.Close()
	within := func(ns netns.NsHandle, f func()) {
		if err := netns.Set(ns); err != nil {
			b.Fatal(err)
		}
		f()
		if err := netns.Set(node); err != nil {
			b.Fatal(err)
		}
	}
	pod, far := neighbour(b, node, "pods"), neighbour(b, node, "kubelink")
	run(b, `ip link set pods up
		ip addr add 169.254.1.1/32 dev pods
		ip route add 100.64.0.1 dev pods
		ip neigh add 192.0.0.8 lladdr 02:00:00:00:00:02 dev kubelink
		sysctl -qw net.ipv4.ip_forward=1`)
	within(pod, func() {
		run(b, `ip link set eth0 up
			ip addr add 100.64.0.1/32 dev eth0
			ip route add default via 169.254.1.1 dev eth0 onlink`)
	})
	within(far, func() {
		run(b, `ip link set eth0 address 02:00:00:00:00:02 up
			ip addr add 172.16.1.1/32 dev eth0
			ip route add default via 172.16.0.1 dev eth0 onlink`)
	})
	k, _ := open(b, config)
	with := firewallState(manyLinks(250, false))
	without := with
	without.Firewall = nil
	var listener net.Listener
	within(pod, func() { listener, err = net.Listen("tcp", "100.64.0.1:7777") })
	if err != nil {
		b.Fatal(err)
	}
	defer listener.Close()
	transfer := func(s State) (rate float64) {
		set(b, k, s)
		var client net.Conn
		within(far, func() { client, err = net.DialTimeout("tcp", "100.64.0.1:7777", 10*time.Second) })
		if err != nil {
			b.Fatal(err)
		}
		server, err := listener.Accept()
		if err != nil {
			b.Fatal(err)
		}
		defer server.Close()
		received := make(chan int64)
		go func() {
			n, _ := io.Copy(io.Discard, server)
			received <- n
		}()
		buffer, began := make([]byte, 64<<10), time.Now()
		for time.Since(began) < time.Second {
			if _, err := client.Write(buffer); err != nil {
				b.Fatal(err)
			}
		}
		client.Close()
		return float64(<-received) / time.Since(began).Seconds()
	}
	var ratios []float64
	for b.Loop() {
		for range 7 {
			bare := transfer(without)
			ratios = append(ratios, transfer(with)/bare)
			fmt.Fprintf(os.Stderr, "%.0f MB/s without, ratio %.2f\n", bare/1e6, ratios[len(ratios)-1])
		}
	}
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], "ratio")
}
