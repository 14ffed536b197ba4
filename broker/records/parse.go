package records

// Parsing CoreDNSEntries and HostedZones on their own: what SOA records say, names, and the names in records. The API
// server checks most of it already (CEL), but objects may be older than the rules.

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// parseApex parses what the SOA record of a zone shall say.
func parseApex(spec *coredns.HostedZoneSpec) (Apex, error) {
	a := Apex{Minimum: 5}
	var err error
	if a.Mbox, err = parseMailbox(spec.EMail); err != nil {
		return a, err
	}
	for _, f := range []struct {
		name     string
		value    int32
		standard uint32
		to       *uint32
	}{
		{"refresh", spec.Refresh, 7200, &a.Refresh},
		{"retry", spec.Retry, 1800, &a.Retry},
		{"expire", spec.Expire, 86400, &a.Expire},
	} {
		if f.value < 0 {
			return a, fmt.Errorf("spec.%s %d: expected a number of seconds from 0 on", f.name, f.value)
		}
		*f.to = cmp.Or(uint32(f.value), f.standard)
	}
	if m := spec.MinimumTTL; m != nil {
		if *m < 0 {
			return a, fmt.Errorf("spec.minimumTTL %d: expected a number of seconds from 0 on", *m)
		}
		a.Minimum = uint32(*m)
	}
	return a, nil
}

// mailChars are the characters that are allowed before the @. Of them, only the dot has a meaning in a domain name.
const mailChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-."

// parseMailbox makes a domain name of a mail address (RFC 1035, section 8): the dots before the @ are escaped.
func parseMailbox(mail string) (string, error) {
	if mail == "" {
		return "", nil
	}
	local, host, _ := strings.Cut(mail, "@")
	host, err := mesh.ParseDomain(host)
	if err != nil || local == "" || len(local) > 63 || strings.Trim(local, mailChars) != "" {
		return "", fmt.Errorf("spec.email %q: expected a mail address, such as hostmaster@example.com", mail)
	}
	if len(local)+len(host) > 253 {
		return "", fmt.Errorf("spec.email %q is longer than 253 characters: use another one", mail)
	}
	return strings.ReplaceAll(local, ".", `\.`) + "." + host, nil
}

// qualified is a fully qualified name and the zone's name that it was relative to; empty: none.
type qualified struct{ name, base string }

// qualifyName makes fully qualified names of one that is relative to each of the bases, or has a final dot and lies in
// one of them. Without bases it is fully qualified.
func qualifyName(s string, bases []string) ([]qualified, error) {
	if len(bases) == 0 || strings.HasSuffix(s, ".") {
		name, err := mesh.ParseDomain(s)
		if err != nil || len(bases) == 0 {
			return []qualified{{name, ""}}, err
		}
		i := slices.IndexFunc(bases, func(base string) bool { return mesh.InDomain(name, base) })
		if i < 0 {
			return nil, fmt.Errorf("the final dot makes it a fully qualified name, and it does not lie in %s; "+
				"remove the dot to make it relative", mesh.TrimDot(bases[0]))
		}
		return []qualified{{name, bases[i]}}, nil
	}
	names := make([]qualified, 0, len(bases))
	for _, base := range bases {
		name, err := mesh.ParseDomain(s + "." + base)
		if err != nil {
			return nil, err
		}
		names = append(names, qualified{name, base})
	}
	return names, nil
}

// qualifyOwner is qualifyName for what also may be a wildcard or, as @, the zone itself.
func qualifyOwner(s string, bases []string) ([]qualified, error) {
	rest, wildcard := strings.CutPrefix(s, "*")
	var names []qualified
	var err error
	switch {
	case s != coredns.ZoneName && !wildcard:
		return qualifyName(s, bases)
	case s == coredns.ZoneName, rest == "":
		if len(bases) == 0 {
			return nil, errors.New("it is relative to a zone: set spec.zoneRef, or write the fully qualified name")
		}
		for _, base := range bases {
			names = append(names, qualified{base, base})
		}
	case rest[0] != '.':
		return nil, errors.New("* must be a label of its own, the first one: *.x")
	default:
		if names, err = qualifyName(rest[1:], bases); err != nil {
			return nil, err
		}
	}
	if wildcard {
		for i := range names {
			if names[i].name = "*." + names[i].name; len(names[i].name) > maxName {
				return nil, errors.New("with the names of the zone it has more than 253 characters")
			}
		}
	}
	return names, nil
}

// qualifyTarget makes a fully qualified name of a name in a record.
func qualifyTarget(field, s, base string) (string, error) {
	if a, err := netip.ParseAddr(mesh.TrimDot(s)); err == nil {
		return "", fmt.Errorf("%s %q is an address: expected a name, or write %s into A or AAAA", field, s, a)
	}
	if base != "" && !strings.HasSuffix(s, ".") {
		s += "." + base
	}
	name, err := mesh.ParseDomain(s)
	if err != nil {
		return "", fmt.Errorf("%s %q: %w", field, s, err)
	}
	return name, nil
}
