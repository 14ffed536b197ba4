package kernel

// Which modules an error names.

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestDescribeModules(t *testing.T) {
	commands := []string{
		":C - [0:0]", "-A C -m conntrack --ctstate RELATED -j RETURN", "-A C -m addrtype --dst-type LOCAL -j DROP",
		"-A C -p tcp -m tcp --dport 53 -j REJECT --reject-with tcp-reset",
		"-A C -p tcp -j REJECT", "-A C -g D", "-I PREROUTING -m comment --comment kubelink -j C"}
	const one = " (with nf_tables, nft_compat): load it on the node"
	const more = " (with nf_tables, nft_compat): load them on the node"
	for _, c := range []struct {
		name, said string
		family     int
		want       string
	}{
		{"nf_tables, the second line of the chain", "line 4: RULE_APPEND failed (No such file or directory): rule in chain C",
			unix.AF_INET, "; it needs the kernel module xt_addrtype" + one},
		{"two in a rule", "line 5: RULE_APPEND failed", unix.AF_INET,
			"; it needs the kernel modules ipt_REJECT and xt_tcpudp" + more},
		{"a target, IPv6", "line 6: RULE_APPEND failed", unix.AF_INET6, "; it needs the kernel module ip6t_REJECT" + one},
		{"a rule that needs none", "line 7: RULE_APPEND failed (Too many levels of symbolic links)", unix.AF_INET, ""},
		{"a warning of the library", "Warning: Extension addrtype revision 0 not supported, missing kernel module?; " +
			"iptables-restore: line 9 failed", unix.AF_INET, "; it needs the kernel module xt_addrtype" + one},
		{"the line of COMMIT", "iptables-restore: line 9 failed", unix.AF_INET, "; it needs the kernel modules ipt_REJECT, " +
			"xt_addrtype, xt_comment, xt_conntrack, xt_tcpudp and iptable_mangle" + more},
		{"the same, IPv6", "ip6tables-restore: line 9 failed", unix.AF_INET6, "; it needs the kernel modules ip6t_REJECT, " +
			"xt_addrtype, xt_comment, xt_conntrack, xt_tcpudp and ip6table_mangle" + more},
		{"the lock", "Another app is currently holding the xtables lock. Stopped waiting after 1s.", unix.AF_INET, ""},
		{"a line that is none", "line 99: RULE_APPEND failed", unix.AF_INET, "; it needs the kernel modules ipt_REJECT, " +
			"xt_addrtype, xt_comment, xt_conntrack, xt_tcpudp and iptable_mangle" + more},
	} {
		if got := describeModules(mangleTable, c.family, commands, c.said); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
