package zone

// Zone transfers of global zones, and the serials that tell secondaries when there is something to transfer.

import (
	"slices"

	"github.com/miekg/dns"
)

// Transfer is all records of a zone, the global one or one that is cut out of it, whether its links are usable or not,
// between two SOA records (RFC 5936). A secondary that has the serial already, or a newer one, gets a single SOA
// record; 0 stands for none. It fails if the name is not that of a zone.
func (g *Global) Transfer(zone string, serial uint32) (rrs []dns.RR, ok bool) {
	top := g.owners[zone]
	if top == nil || !top.apex {
		return nil, false
	}
	rrs = append(rrs, top.zone.soa...)
	// Serial numbers wrap around (RFC 1982).
	if current := top.zone.soa[0].(*dns.SOA).Serial; serial != 0 && int32(serial-current) >= 0 {
		return rrs, true
	}
	for _, o := range g.sorted {
		switch {
		case o.zone == top.zone:
			for _, set := range o.recordSets() {
				rrs = append(rrs, set...)
			}
		case o.apex && o.zone.parent == top.zone:
			rrs = append(rrs, o.ns...)
			rrs = append(rrs, o.glue...)
		}
	}
	return append(rrs, top.zone.soa...), true
}

// assignSerials gives a zone the serial from before if its records are what they were, because secondaries need not
// fetch it again. A zone that has changed keeps that serial, too, where the new one is not higher (RFC 1982), because
// secondaries would not fetch it.
func (g *Global) assignSerials(serial uint32, before *Global) {
	if before == nil || before.missing != "" {
		return
	}
	if g.highestSerial = before.highestSerial; int32(serial-g.highestSerial) > 0 {
		g.highestSerial = serial
	}
	changed := map[string]bool{} // by name of the zone
	addChanged(changed, g, before)
	addChanged(changed, before, g)
	for _, o := range g.sorted {
		if !o.apex {
			continue
		}
		last, soa := before.highestSerial, o.zone.soa[0].(*dns.SOA) // a new zone may be one that there was before
		if p := before.owners[o.name]; p != nil && p.apex {
			last = p.zone.soa[0].(*dns.SOA).Serial
		}
		if !changed[o.name] && !before.pendingSerials[o.name] {
			soa.Serial = last
		} else if int32(soa.Serial-last) <= 0 {
			soa.Serial = last
			if g.pendingSerials == nil {
				g.pendingSerials = map[string]bool{}
			}
			g.pendingSerials[o.name] = true
		}
	}
}

// addChanged adds the zones of which secondaries would get other records than before, by the names that g has.
func addChanged(changed map[string]bool, g, before *Global) {
	for _, o := range g.sorted {
		p := before.owners[o.name]
		if p == nil || !o.sameRecords(p) {
			changed[o.zone.name] = true
		}
		if up := o.delegatedBy(); up != "" && (p == nil || !o.sameDelegation(p)) {
			changed[up] = true
		}
	}
}

// delegatedBy is the zone that the zone with this apex was cut out of; empty: none.
func (o *owner) delegatedBy() string {
	if !o.apex || o.zone.parent == nil {
		return ""
	}
	return o.zone.parent.name
}

// sameDelegation tells whether the zone above had the same records of this zone before.
func (o *owner) sameDelegation(before *owner) bool {
	return o.delegatedBy() == before.delegatedBy() &&
		slices.EqualFunc(o.ns, before.ns, sameRecord) && slices.EqualFunc(o.glue, before.glue, sameRecord)
}

// sameRecords tells whether the name had the same records before, in the same zone.
func (o *owner) sameRecords(before *owner) bool {
	if o.apex != before.apex || o.zone.name != before.zone.name {
		return false
	}
	if o.apex {
		soa := *before.zone.soa[0].(*dns.SOA)
		if soa.Serial = o.zone.soa[0].(*dns.SOA).Serial; !sameRecord(&soa, o.zone.soa[0]) {
			return false
		}
	}
	old := before.recordSets()
	for i, set := range o.recordSets() {
		if !slices.EqualFunc(set, old[i], sameRecord) {
			return false
		}
	}
	return true
}

func sameRecord(a, b dns.RR) bool { return a.Header().Ttl == b.Header().Ttl && dns.IsDuplicate(a, b) }
