package records

// The records of a CoreDNSEntry, before it is known at which name they stand.

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
	"github.com/mandelsoft/kubelink/broker/mesh"
)

// recordSet has the records of an entry. Names in them are as they are written.
type recordSet struct {
	Owner
	services []serviceRecord
}

// serviceRecord is an SRV record that stands below the name.
type serviceRecord struct {
	prefix string // _service._protocol.
	SRV
}

// parseRecords parses the records of an entry.
func parseRecords(o *coredns.CoreDNSEntry) (*recordSet, error) {
	spec := &o.Spec
	set := &recordSet{Owner: Owner{CNAME: spec.CNAME, Fixed: o.Annotations[coredns.AnnotationOrder] == coredns.OrderFixed}}
	var err error
	anyLink := o.Annotations[coredns.AnnotationFollowLinks] == "false"
	if set.Addresses, err = parseAddresses(spec, anyLink); err != nil {
		return nil, err
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
	if spec.SRV != nil {
		if set.services, err = parseServices(spec.SRV); err != nil {
			return nil, err
		}
	}
	besides := len(set.Addresses)+len(set.TXT)+len(set.NS) > 0
	switch {
	case set.CNAME != "" && besides:
		return nil, fmt.Errorf("spec.CNAME %q cannot stand beside A, AAAA, TXT or NS: an alias has no other records; "+
			"remove one or the other", set.CNAME)
	case set.CNAME == "" && !besides && len(set.services) == 0:
		return nil, errors.New("the entry has no record: set A, AAAA, CNAME, TXT, SRV or NS")
	}
	return set, nil
}

// parseAddresses parses spec.A and spec.AAAA.
func parseAddresses(spec *coredns.CoreDNSEntrySpec, anyLink bool) ([]Address, error) {
	var addresses []Address
	for _, s := range spec.A {
		a, err := netip.ParseAddr(string(s))
		if err != nil || !a.Is4() {
			return nil, fmt.Errorf("spec.A %q: expected an IPv4 address, such as 100.64.16.20", string(s))
		}
		if err := checkHost("spec.A", a); err != nil {
			return nil, err
		}
		addresses = append(addresses, Address{a, anyLink})
	}
	for _, s := range spec.AAAA {
		a, err := netip.ParseAddr(string(s))
		switch {
		case err == nil && a.Unmap().Is4():
			return nil, fmt.Errorf("spec.AAAA %q is an IPv4 address: write %s into spec.A", string(s), a.Unmap())
		case err != nil || a.Zone() != "":
			return nil, fmt.Errorf("spec.AAAA %q: expected an IPv6 address, such as fd00:64:16::20", string(s))
		}
		if err := checkHost("spec.AAAA", a); err != nil {
			return nil, err
		}
		addresses = append(addresses, Address{a, anyLink})
	}
	return addresses, nil
}

// checkHost refuses an address that is another host for each client, or none.
func checkHost(field string, a netip.Addr) error {
	if a.IsLoopback() || a.IsUnspecified() || a.IsLinkLocalUnicast() || a.IsMulticast() {
		return fmt.Errorf("%s %s is the address of no host that all clients reach: "+
			"write one that is the same for all of them", field, a)
	}
	return nil
}

// parseServices parses spec.SRV.
func parseServices(spec *coredns.Service) ([]serviceRecord, error) {
	service, ok := parseUnderscored(spec.Service)
	if !ok {
		return nil, fmt.Errorf("spec.SRV.service %q: expected the name of a service, such as ldap", spec.Service)
	}
	var services []serviceRecord
	for _, r := range spec.Records {
		protocol, ok := parseUnderscored(r.Protocol)
		if !ok {
			return nil, fmt.Errorf("spec.SRV.records.protocol %q: expected the name of a protocol, such as TCP", r.Protocol)
		}
		for _, f := range []struct {
			name         string
			value, least int32
		}{{"priority", r.Priority, 0}, {"weight", r.Weight, 0}, {"port", r.Port, 1}} {
			if f.value < f.least || f.value > 65535 {
				return nil, fmt.Errorf("spec.SRV.records.%s %d: expected a number from %d to 65535", f.name, f.value, f.least)
			}
		}
		srv := SRV{uint16(r.Priority), uint16(r.Weight), uint16(r.Port), r.Host}
		services = append(services, serviceRecord{service + protocol, srv})
	}
	return services, nil
}

// parseUnderscored makes the label of a service or protocol, with its dot.
func parseUnderscored(s string) (label string, ok bool) {
	label, err := mesh.ParseDomain("_" + strings.TrimPrefix(s, "_"))
	return label, err == nil && len(label) > 2 && parentName(label) == ""
}

// recordsAt are the records as they stand at a name, and the records of its services below.
func (set *recordSet) recordsAt(at qualified) ([]Owner, error) {
	wildcard := strings.HasPrefix(at.name, "*.")
	switch {
	case wildcard && len(set.NS) > 0:
		return nil, fmt.Errorf("spec.NS cannot stand at the wildcard %s: delegate the names one by one",
			mesh.TrimDot(at.name))
	case wildcard && len(set.services) > 0:
		return nil, fmt.Errorf("spec.SRV cannot stand at the wildcard %s, "+
			"as the labels of service and protocol come before it: name the names one by one", mesh.TrimDot(at.name))
	}
	own, err := set.ownRecords(at)
	if err != nil {
		return nil, err
	}
	var owners []Owner
	if own.hasRecords() {
		owners = append(owners, own)
	}
	for _, s := range set.services {
		name := s.prefix + at.name
		if len(name) > maxName {
			return nil, fmt.Errorf("spec.SRV: %s has more than 253 characters; use a shorter name", mesh.TrimDot(name))
		}
		if s.Target, err = qualifyTarget("spec.SRV.records.host", s.Target, at.base); err != nil {
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

// ownRecords are the records at the name itself.
func (set *recordSet) ownRecords(at qualified) (own Owner, err error) {
	own = set.Owner
	own.Name = at.name
	if own.CNAME != "" {
		if own.CNAME, err = qualifyTarget("spec.CNAME", own.CNAME, at.base); err != nil {
			return own, err
		}
	}
	own.NS = nil
	for _, s := range set.NS {
		ns, err := qualifyTarget("spec.NS", s, at.base)
		if err != nil {
			return own, err
		}
		own.NS = append(own.NS, ns)
	}
	return own, nil
}
