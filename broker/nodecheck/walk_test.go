package nodecheck

import (
	"net/netip"
	"strings"
	"testing"
)

// outPacket is one of a pod to a link.
func outPacket() *packet {
	return &packet{in: "cali0", out: "kubelink", src: netip.MustParseAddr("100.96.1.5"),
		dst: netip.MustParseAddr("100.64.16.1")}
}

// Rules of a filter table, and the rule that certainly drops the packet of a pod; empty: none does. The rules of CNI
// plugins and firewalls are as these make them, shortened.
func TestFindDrop(t *testing.T) {
	const calico = `
:cali-FORWARD -
:cali-fw-cali0 -
:cali-pro-kns -
-A FORWARD -m comment --comment "cali:wUHhoiAYhphO9Mso" -j cali-FORWARD
-A FORWARD -m comment --comment "cali:S93hcgKJrXEqnTfs" -m comment --comment "Policy explicitly accepted packet." ` +
		`-m mark --mark 0x10000/0x10000 -j ACCEPT
-A cali-FORWARD -m comment --comment "cali:vjrMJCRpqwy5oRoX" -j MARK --set-xmark 0x0/0xe0000
-A cali-FORWARD -i cali+ -m comment --comment "cali:8ZoYfO5HKXWbB3pk" -j cali-fw-cali0
-A cali-fw-cali0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A cali-fw-cali0 -m conntrack --ctstate INVALID -j DROP
-A cali-fw-cali0 -j MARK --set-xmark 0x0/0x10000
-A cali-fw-cali0 -j cali-pro-kns
-A cali-fw-cali0 -m comment --comment "Return if profile accepted" -m mark --mark 0x10000/0x10000 -j RETURN
-A cali-fw-cali0 -m comment --comment "Drop if no profiles matched" -j DROP
-A cali-pro-kns -j MARK --set-xmark 0x10000/0x10000
-A cali-pro-kns -m mark --mark 0x10000/0x10000 -j RETURN
`
	for _, c := range []struct{ name, rules, want string }{
		{"empty", ":FORWARD ACCEPT\n", ""},
		{"policy", ":FORWARD DROP\n", "has the policy DROP"},
		{"policy, and a rule for us", ":FORWARD DROP\n-A FORWARD -o kubelink -j ACCEPT", ""},
		{"policy, and a rule for some of us", ":FORWARD DROP\n-A FORWARD -o kubelink -p tcp --dport 80 -j ACCEPT", ""},
		{"policy, and a rule for others", ":FORWARD DROP\n-A FORWARD -o docker0 -j ACCEPT", "has the policy DROP"},
		{"docker", ":FORWARD DROP\n:DOCKER-USER -\n-A FORWARD -j DOCKER-USER\n" +
			"-A FORWARD -i docker0 ! -o docker0 -j ACCEPT\n" +
			"-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A DOCKER-USER -j RETURN",
			"has the policy DROP"},
		{"RHEL", ":FORWARD ACCEPT\n-A FORWARD -m state --state RELATED,ESTABLISHED -j ACCEPT\n" +
			"-A FORWARD -p icmp -j ACCEPT\n-A FORWARD -i lo -j ACCEPT\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited",
			"-j REJECT"},
		{"ufw", ":FORWARD DROP\n:ufw-before-forward -\n:ufw-reject-forward -\n-A FORWARD -j ufw-before-forward\n" +
			"-A FORWARD -j ufw-reject-forward\n-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n" +
			"-A ufw-before-forward -p icmp -m icmp --icmp-type 3 -j ACCEPT\n-A ufw-reject-forward -j REJECT",
			"-A ufw-reject-forward -j REJECT"},
		{"calico accepts by marks", ":FORWARD DROP" + calico, ""},
		{"calico, and a REJECT behind it", ":FORWARD ACCEPT" + calico + "-A FORWARD -j REJECT", ""},
		{"flannel", ":FORWARD DROP\n:FLANNEL-FWD -\n-A FORWARD -j FLANNEL-FWD\n-A FLANNEL-FWD -s 100.96.0.0/11 -j ACCEPT\n" +
			"-A FLANNEL-FWD -d 100.96.0.0/11 -j ACCEPT", ""},
		{"weave's sets", ":FORWARD DROP\n-A FORWARD -m set --match-set weave-x dst -j ACCEPT", ""},
		{"a set that drops", ":FORWARD ACCEPT\n-A FORWARD -m set --match-set blocked dst -j DROP", ""},
		{"all that is not a set", ":FORWARD ACCEPT\n-A FORWARD -m set ! --match-set allowed dst -j DROP", ""},
		{"not our network", ":FORWARD ACCEPT\n-A FORWARD ! -d 10.0.0.0/8 -j DROP", "! -d 10.0.0.0/8 -j DROP"},
		{"goto", ":FORWARD ACCEPT\n:end -\n-A FORWARD -g end\n-A FORWARD -j ACCEPT\n-A end -j DROP", "-A end -j DROP"},
		{"goto comes back to the policy", ":FORWARD DROP\n:end -\n-A FORWARD -g end\n-A FORWARD -j ACCEPT\n-A end -j RETURN",
			"has the policy DROP"},
		{"RETURN of the base chain", ":FORWARD DROP\n-A FORWARD -j RETURN\n-A FORWARD -j ACCEPT", "has the policy DROP"},
		{"new connections only", ":FORWARD ACCEPT\n-A FORWARD -m conntrack --ctstate NEW -j DROP", "--ctstate NEW -j DROP"},
		{"those that are not new", ":FORWARD ACCEPT\n-A FORWARD -m conntrack ! --ctstate NEW -j DROP", ""},
		{"without DNAT", ":FORWARD ACCEPT\n-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT\n-A FORWARD -j DROP", "-j DROP"},
		{"to a queue", ":FORWARD DROP\n-A FORWARD -j NFQUEUE --queue-num 0", ""},
		{"a chain without rules", ":FORWARD DROP\n:x -\n-A FORWARD -j x", "has the policy DROP"},
		{"a target that is new", ":FORWARD DROP\n-A FORWARD -j LETPASS", ""},
		{"a log before", ":FORWARD ACCEPT\n" +
			"-A FORWARD -j LOG --log-prefix \"-j ACCEPT \"\n-A FORWARD -j DROP", "-A FORWARD -j DROP"},
		{"kubelink refuses what has no endpoint", ":FORWARD ACCEPT\n:KLINK-REFUSE -\n" +
			"-A FORWARD -m conntrack --ctstate NEW -j KLINK-REFUSE\n-A KLINK-REFUSE -j REJECT", ""},
		{"kubelink refuses unused addresses", ":FORWARD ACCEPT\n:KLINK-UNUSED -\n" +
			"-A FORWARD -j KLINK-UNUSED\n-A KLINK-UNUSED -d 192.168.0.11/32 -j RETURN\n-A KLINK-UNUSED -j REJECT", ""},
		{"a circle", ":FORWARD DROP\n:a -\n-A FORWARD -j a\n-A a -j a", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			chains := parseSaved("iptables-legacy", "filter", c.rules)
			_, by := findDrop(chains, forward, forward, outPacket())
			switch {
			case by == nil && c.want != "":
				t.Errorf("not found: %s", c.want)
			case by != nil && (c.want == "" || !strings.Contains(by.text, c.want)):
				t.Errorf("found %s, want %q", by.text, c.want)
			}
		})
	}
}

// Rules of a nat table, and the source that the packet of a pod leaves with.
func TestFindSource(t *testing.T) {
	const ours = "-A POSTROUTING -o kubelink -j KLINK\n" +
		"-A KLINK -s 192.168.0.0/24 -d 100.64.16.0/20 -o kubelink -j ACCEPT\n" +
		"-A KLINK -d 100.64.16.0/20 -o kubelink -j SNAT --to-source 192.168.0.11\n"
	for _, c := range []struct{ name, rules, want string }{
		{"ours", ours, "192.168.0.11"},
		{"none", "", "100.96.1.5"},
		{"ours before a masquerade", ours + "-A POSTROUTING -j MASQUERADE", "192.168.0.11"},
		{"a masquerade before ours", "-A POSTROUTING -s 100.96.0.0/11 ! -d 100.96.0.0/11 -j MASQUERADE\n" + ours, "device"},
		{"one that leaves us out", "-A POSTROUTING -s 100.96.0.0/11 ! -o kubelink -j MASQUERADE\n" + ours, "192.168.0.11"},
		{"one that may be about us", "-A POSTROUTING -m set --match-set x dst -j MASQUERADE\n" + ours, "unclear"},
		{"another source", "-A POSTROUTING -o kubelink -j SNAT --to-source 10.250.0.3\n" + ours, "10.250.0.3"},
		{"one of several sources", "-A POSTROUTING -j SNAT --to-source 10.250.0.3-10.250.0.9\n" + ours, "unclear"},
		{"an ACCEPT before ours", "-A POSTROUTING -d 100.64.0.0/10 -j ACCEPT\n" + ours, "100.96.1.5"},
	} {
		t.Run(c.name, func(t *testing.T) {
			chains := parseSaved("iptables-legacy", "nat", ":POSTROUTING ACCEPT\n:KLINK -\n"+c.rules)
			source, _, _, ok := findSource(chains, outPacket())
			got := source.String()
			switch {
			case !ok:
				got = "unclear"
			case !source.IsValid():
				got = "device"
			}
			if got != c.want {
				t.Errorf("source %s, want %s", got, c.want)
			}
		})
	}
}

func TestMissingCapabilities(t *testing.T) {
	const admin, raw = 1 << 12, 1 << 13
	for effective, want := range map[uint64]string{
		0:           "add [NET_ADMIN, NET_RAW] to securityContext.capabilities.add",
		admin:       "add [NET_RAW]",
		raw:         "add [NET_ADMIN]",
		admin | raw: "",
	} {
		if got := missingCapabilities(effective).String(); !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%x: %q, want %q", effective, got, want)
		}
	}
}
