package kernel

// Which modules of the kernel rules need, for the error of a chain that cannot be set. It is pure.

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// What iptables-restore says of a rule that fails. The library of both back ends warns of an extension that the kernel
// does not have; the back end for nf_tables also names the line. The other one only names that of COMMIT.
var (
	missingExtension = regexp.MustCompile(`Extension (\w+) revision \d+ not supported`)
	failedLine       = regexp.MustCompile(`line (\d+): RULE_`)
)

// extensionModules are the modules with the matches and targets of rules, by their names in rules: of IPv4, and of IPv6
// if that is another one. Other matches are in the module of the table.
var extensionModules = map[string][2]string{
	"addrtype": {"xt_addrtype"}, "comment": {"xt_comment"}, "conntrack": {"xt_conntrack"}, "multiport": {"xt_multiport"},
	"recent": {"xt_recent"}, "rt": {"ip6t_rt"}, "statistic": {"xt_statistic"}, "tcp": {"xt_tcpudp"},
	"udp": {"xt_tcpudp"}, "DNAT": {"xt_nat"}, "SNAT": {"xt_nat"}, "MASQUERADE": {"xt_MASQUERADE"},
	"REJECT": {"ipt_REJECT", "ip6t_REJECT"}, "TCPMSS": {"xt_TCPMSS"},
}

// describeModules says which modules are needed by the rule that failed, or where that is not known by all of them.
// commands are what iptables-restore was told, and said is what it has printed.
func describeModules(table string, family int, commands []string, said string) string {
	if strings.Contains(said, "xtables lock") { // which another program holds
		return ""
	}
	var names []string
	known := false // what fails
	for _, m := range missingExtension.FindAllStringSubmatch(said, -1) {
		names, known = append(names, m[1]), true
	}
	if m := failedLine.FindStringSubmatch(said); m != nil && !known {
		// The first line names the table.
		if line, err := strconv.Atoi(m[1]); err == nil && line >= 2 && line < len(commands)+2 {
			commands, known = commands[line-2:line-1], true
		}
	}
	if len(names) == 0 {
		names = extensionsOf(commands)
	}
	modules := modulesOf(names, family)
	if !known {
		modules = append(modules, map[int]string{unix.AF_INET: "iptable_", unix.AF_INET6: "ip6table_"}[family]+table)
	}
	switch len(modules) {
	case 0:
		return ""
	case 1:
		return "; it needs the kernel module " + modules[0] + " (with nf_tables, nft_compat): load it on the node"
	}
	last := len(modules) - 1
	return "; it needs the kernel modules " + strings.Join(modules[:last], ", ") + " and " + modules[last] +
		" (with nf_tables, nft_compat): load them on the node"
}

// extensionsOf are the names of all matches and targets in rules.
func extensionsOf(commands []string) (names []string) {
	for _, command := range commands {
		words := strings.Fields(command)
		for i := 1; i < len(words); i++ {
			if words[i-1] == "-m" || words[i-1] == "-j" {
				names = append(names, words[i])
			}
		}
	}
	return names
}

func modulesOf(names []string, family int) (modules []string) {
	for _, name := range names {
		m := extensionModules[name]
		if family == unix.AF_INET6 && m[1] != "" {
			m[0] = m[1]
		}
		if m[0] != "" {
			modules = append(modules, m[0])
		}
	}
	slices.Sort(modules)
	return slices.Compact(modules)
}
