package zone

// Names and the domains they are in. All functions work on the presentation form of github.com/miekg/dns, in which a
// dot inside a label is written `\.`.

// maxChain bounds the aliases in one reply or one zone that kubelink follows, and so the cost of a hostile reply.
// Resolvers follow no more either.
const maxChain = 16

// cutSuffix removes the domain from the end of the name: what is left ends with a dot, or is empty if the name is the
// domain itself. Only whole labels match, in any case. The root matches every name.
func cutSuffix(name, domain string) (prefix string, ok bool) {
	if domain == "." {
		if name == "." {
			return "", true
		}
		return name, name != ""
	}
	n := len(name) - len(domain)
	if n < 0 || !equalFold(name[n:], domain) {
		return "", false
	}
	if n == 0 {
		return "", true
	}
	if name[n-1] != '.' {
		return "", false
	}
	// An odd number of backslashes makes the dot a part of a label.
	escaped := false
	for i := n - 2; i >= 0 && name[i] == '\\'; i-- {
		escaped = !escaped
	}
	return name[:n], !escaped
}

// inDomain tells whether the name is the domain or below it.
func inDomain(name, domain string) bool {
	_, ok := cutSuffix(name, domain)
	return ok
}

// equalFold is strings.EqualFold as DNS means it: for ASCII only.
func equalFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if lowerByte(a[i]) != lowerByte(b[i]) {
			return false
		}
	}
	return true
}

func lowerByte(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// replaceSuffix moves a name from one domain to another. A name that is not in the domain stays as it is. The result
// does not fit if it has more than 255 octets.
func replaceSuffix(name, from, to string) (result string, fits bool) {
	prefix, ok := cutSuffix(name, from)
	switch {
	case !ok:
		return name, true
	case prefix == "":
		return to, true
	case to == ".":
		return prefix, true
	}
	result = prefix + to
	return result, len(result) < maxNameLength || wireLength(result) <= maxNameLength
}

// maxNameLength is the length of the longest name in wire form, in octets (RFC 1035, 2.3.4).
const maxNameLength = 255

// wireLength is the length of a name in wire form, in octets: each dot but an escaped one stands for the length of a
// label. dns.IsDomainName accepts one octet more than allowed.
func wireLength(name string) int {
	if name == "." {
		return 1
	}
	n := 1
	for i := 0; i < len(name); i++ {
		if name[i] == '\\' {
			i++
			if i+2 < len(name) && isDigit(name[i]) && isDigit(name[i+1]) && isDigit(name[i+2]) {
				i += 2
			}
		}
		n++
	}
	return n
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
