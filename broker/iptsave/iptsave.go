// Package iptsave reads the rules that iptables-save(8) prints. The kernel's part of the broker and the check of the
// node both do, for different questions.
package iptsave

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// LegacyTables returns the tables of the legacy iptables that are in use in the network namespace of the thread.
// iptables-legacy-save makes another table when it is asked for it.
func LegacyTables(family int) []string {
	names := "/proc/thread-self/net/ip_tables_names"
	if family == unix.AF_INET6 {
		names = "/proc/thread-self/net/ip6_tables_names"
	}
	list, _ := os.ReadFile(names) // absent: the kernel has no legacy iptables, or the process may not see it
	return strings.Fields(string(list))
}

// Words splits a rule as a shell does: iptables-save writes quotes around a value with blanks, and a backslash before
// quotes in it.
func Words(text string) (words []string) {
	var word strings.Builder
	inWord, quoted, escaped := false, false, false
	for _, c := range text {
		switch {
		case escaped:
			word.WriteRune(c)
			escaped = false
		case c == '\\':
			escaped, inWord = true, true
		case c == '"':
			quoted, inWord = !quoted, true
		case c == ' ' && !quoted:
			if inWord {
				words = append(words, word.String())
				word.Reset()
			}
			inWord = false
		default:
			word.WriteRune(c)
			inWord = true
		}
	}
	if inWord {
		words = append(words, word.String())
	}
	return words
}
