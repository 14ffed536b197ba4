package records

// Reading CoreDNSEntries and HostedZones on their own: names, records, what SOA records say. The API
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

// apexOf reads what the SOA record of a zone shall say.
func apexOf(spec *coredns.HostedZoneSpec) (Apex, error) {
	a := Apex{Minimum: 5}
	if spec.EMail != "" {
		local, host, _ := strings.Cut(spec.EMail, "@")
		host, err := mesh.ParseDomain(host)
		// Of what mail allows before the @, only the dot has a meaning in a domain name.
		if err != nil || local == "" || len(local) > 63 || strings.Trim(local, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.") != "" {
			return a, fmt.Errorf("spec.email %q: expected a mail address, such as hostmaster@example.com", spec.EMail)
		}
		if a.Mbox = strings.ReplaceAll(local, ".", `\.`) + "." + host; len(local)+len(host) > 253 {
			return a, fmt.Errorf("spec.email %q is longer than 253 characters: use another one", spec.EMail)
		}
	}
	for _, f := range []struct {
		name     string
		value    int32
		standard uint32
		to       *uint32
	}{{"refresh", spec.Refresh, 7200, &a.Refresh}, {"retry", spec.Retry, 1800, &a.Retry}, {"expire", spec.Expire, 86400, &a.Expire}} {
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

// qualified is a fully qualified name and the zone's name that it was relative to; empty: none.
type qualified struct{ name, base string }

// qualify makes fully qualified names of one that is relative to each of the bases, or has a final
// dot and lies in one of them. Without bases it is fully qualified.
func qualify(s string, bases []string) ([]qualified, error) {
	if len(bases) == 0 || strings.HasSuffix(s, ".") {
		name, err := mesh.ParseDomain(s)
		if err != nil || len(bases) == 0 {
			return []qualified{{name, ""}}, err
		}
		i := slices.IndexFunc(bases, func(base string) bool { return mesh.InDomain(name, base) })
		if i < 0 {
			return nil, fmt.Errorf("the final dot makes it a fully qualified name, and it does not lie in %s; remove the dot to make it relative", mesh.TrimDot(bases[0]))
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

// ownerNames is qualify for what also may be a wildcard or, as @, the zone itself.
func ownerNames(s string, bases []string) ([]qualified, error) {
	rest, wildcard := strings.CutPrefix(s, "*")
	var names []qualified
	var err error
	switch {
	case s != coredns.ZoneName && !wildcard:
		return qualify(s, bases)
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
		if names, err = qualify(rest[1:], bases); err != nil {
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

// recordSet is the records of an entry before it is known at which name they stand.
type recordSet struct {
	Owner
	service []serviceRecord
}

// serviceRecord is an SRV record that stands below the name.
type serviceRecord struct {
	prefix string // _service._protocol.
	SRV
}

// records reads the records of an entry. Names in them stay as they are written.
func (e *recordEntry) records() (*recordSet, error) {
	spec := &e.object.Spec
	set := &recordSet{}
	anyLink := e.object.Annotations[coredns.AnnotationFollowLinks] == "false"
	set.Fixed = e.object.Annotations[coredns.AnnotationOrder] == coredns.OrderFixed
	for _, s := range spec.A {
		a, err := netip.ParseAddr(string(s))
		if err != nil || !a.Is4() {
			return nil, fmt.Errorf("spec.A %q: expected an IPv4 address, such as 100.64.16.20", string(s))
		}
		set.Addresses = append(set.Addresses, Address{a, anyLink})
	}
	for _, s := range spec.AAAA {
		a, err := netip.ParseAddr(string(s))
		switch {
		case err == nil && a.Unmap().Is4():
			return nil, fmt.Errorf("spec.AAAA %q is an IPv4 address: write %s into spec.A", string(s), a.Unmap())
		case err != nil || a.Zone() != "":
			return nil, fmt.Errorf("spec.AAAA %q: expected an IPv6 address, such as fd00:64:16::20", string(s))
		}
		set.Addresses = append(set.Addresses, Address{a, anyLink})
	}
	for _, s := range spec.TXT {
		if len(s) > maxText {
			return nil, fmt.Errorf("spec.TXT: a text has %d bytes, and %d is the most; shorten it", len(s), maxText)
		}
		set.TXT = append(set.TXT, string(s))
	}
	for _, s := range spec.NS {
		set.NS = append(set.NS, string(s))
	}
	set.CNAME = spec.CNAME
	if s := spec.SRV; s != nil {
		service, ok := underscored(s.Service)
		if !ok {
			return nil, fmt.Errorf("spec.SRV.service %q: expected the name of a service, such as ldap", s.Service)
		}
		for _, rec := range s.Records {
			protocol, ok := underscored(rec.Protocol)
			if !ok {
				return nil, fmt.Errorf("spec.SRV.records.protocol %q: expected the name of a protocol, such as TCP", rec.Protocol)
			}
			for _, f := range []struct {
				name         string
				value, least int32
			}{{"priority", rec.Priority, 0}, {"weight", rec.Weight, 0}, {"port", rec.Port, 1}} {
				if f.value < f.least || f.value > 65535 {
					return nil, fmt.Errorf("spec.SRV.records.%s %d: expected a number from %d to 65535", f.name, f.value, f.least)
				}
			}
			set.service = append(set.service, serviceRecord{service + protocol, SRV{uint16(rec.Priority), uint16(rec.Weight), uint16(rec.Port), rec.Host}})
		}
	}
	others := len(set.Addresses)+len(set.TXT)+len(set.NS) > 0
	switch {
	case set.CNAME != "" && others:
		return nil, fmt.Errorf("spec.CNAME %q cannot stand beside A, AAAA, TXT or NS: an alias has no other records; remove one or the other", set.CNAME)
	case set.CNAME == "" && !others && len(set.service) == 0:
		return nil, errors.New("the entry has no record: set A, AAAA, CNAME, TXT, SRV or NS")
	}
	return set, nil
}

// underscored makes the label of a service or protocol, with its dot.
func underscored(s string) (label string, ok bool) {
	label, err := mesh.ParseDomain("_" + strings.TrimPrefix(s, "_"))
	return label, err == nil && len(label) > 2 && parent(label) == ""
}

// annotations notes what has no effect.
func (e *recordEntry) annotations() {
	r := &e.report
	for _, a := range []struct{ name, off, on string }{
		{coredns.AnnotationFollowLinks, "true", "false"}, {coredns.AnnotationOrder, "nearest", coredns.OrderFixed},
	} {
		if v, set := e.object.Annotations[a.name]; set && v != a.on && v != a.off && r.State == coredns.StateOk {
			r.Message = fmt.Sprintf("annotation %s %q has no effect: it is %q or %q", a.name, v, a.off, a.on)
		}
	}
}

// target qualifies a name in a record.
func target(field, s, base string) (string, error) {
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

// at is the records as they stand at a name, and those of its services below.
func (set *recordSet) at(q qualified) (owners []Owner, err error) {
	wildcard := strings.HasPrefix(q.name, "*.")
	switch {
	case wildcard && len(set.NS) > 0:
		return nil, fmt.Errorf("spec.NS cannot stand at the wildcard %s: delegate the names one by one", mesh.TrimDot(q.name))
	case wildcard && len(set.service) > 0:
		return nil, fmt.Errorf("spec.SRV cannot stand at the wildcard %s, as the labels of service and protocol come before it: name the names one by one", mesh.TrimDot(q.name))
	}
	own := set.Owner
	own.Name = q.name
	if own.CNAME != "" {
		if own.CNAME, err = target("spec.CNAME", own.CNAME, q.base); err != nil {
			return nil, err
		}
	}
	own.NS = nil
	for _, s := range set.NS {
		ns, err := target("spec.NS", s, q.base)
		if err != nil {
			return nil, err
		}
		own.NS = append(own.NS, ns)
	}
	if entry := (ownerEntry{Owner: own}); !entry.empty() {
		owners = append(owners, own)
	}
	for _, s := range set.service {
		name := s.prefix + q.name
		if len(name) > maxName {
			return nil, fmt.Errorf("spec.SRV: %s has more than 253 characters; use a shorter name", mesh.TrimDot(name))
		}
		if s.Target, err = target("spec.SRV.records.host", s.Target, q.base); err != nil {
			return nil, err
		}
		i := slices.IndexFunc(owners, func(o Owner) bool { return o.Name == name })
		if i < 0 {
			i = len(owners)
			owners = append(owners, Owner{Name: name})
		}
		owners[i].SRV = append(owners[i].SRV, s.SRV)
	}
	return owners, nil
}
