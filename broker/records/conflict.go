package records

// Whether records can stand beside the records of older entries (RFC 1034: an alias has no other records; a delegation
// hides what is below it).

import (
	"slices"

	"github.com/mandelsoft/kubelink/broker/mesh"
)

// checkFit tells why a name cannot have the records besides what older entries say; nil if it can.
func (t *nameTree) checkFit(add *Owner) *problem {
	shown := mesh.TrimDot(add.Name)
	if len(t.owners) >= maxNames {
		return stale("%s: there are %d global names already, and that is the most; remove some", shown, maxNames)
	}
	if p := t.checkDelegatedAbove(add); p != nil {
		return p
	}
	o := t.addName(add.Name)
	switch {
	case add.CNAME != "" && o.apex != nil:
		return invalid("spec.CNAME cannot stand at %s, which is the name of a zone: write addresses instead", shown)
	case add.CNAME != "" && o.hasRecords() && o.CNAME != add.CNAME:
		return stale("%s: the older entry %s has records of that name, and an alias has none beside it; "+
			"remove the name from one of the two", shown, o.by)
	case add.CNAME == "" && o.CNAME != "":
		return stale("%s: the older entry %s makes that name an alias, which has no other records; "+
			"remove the name from one of the two", shown, o.by)
	case isFull(o.Addresses, add.Addresses) || isFull(o.TXT, add.TXT) || isFull(o.NS, add.NS) || isFull(o.SRV, add.SRV):
		return stale("%s: older entries have %d records of that name already, and that is the most; use another name",
			shown, maxRecords)
	case o.apex == nil && (len(o.NS) > 0 || len(add.NS) > 0):
		return t.checkDelegation(o, add)
	}
	return nil
}

// isFull tells whether there is no room for more records of a type.
func isFull[T any](old, add []T) bool { return len(old) >= maxRecords && len(add) > 0 }

// checkDelegatedAbove refuses records below a name that an older entry delegates, but for addresses of its name
// servers.
func (t *nameTree) checkDelegatedAbove(add *Owner) *problem {
	for at := add.Name; !t.served[at]; {
		at = parentName(at)
		o := t.owners[at]
		if o == nil {
			continue
		}
		if o.apex != nil {
			return nil
		}
		if o.isDelegated() && (len(add.NS) > 0 || !add.isGlue(o.NS)) {
			return stale("%s: the older entry %s delegates %s to other name servers, so the name belongs there; "+
				"use another one, or remove one of the two", mesh.TrimDot(add.Name), o.by, mesh.TrimDot(at))
		}
	}
	return nil
}

// checkDelegation refuses a delegation, old or new, that hides something: at its name and below there may only be
// addresses of its name servers.
func (t *nameTree) checkDelegation(o *ownerEntry, add *Owner) *problem {
	shown := mesh.TrimDot(o.Name)
	servers := slices.Concat(o.NS, add.NS)
	switch {
	case !add.isGlue(servers) && len(o.NS) > 0:
		return stale("%s: the older entry %s delegates that name to other name servers, so its records belong there; "+
			"remove the name from one of the two", shown, o.by)
	case !add.isGlue(servers):
		return invalid("spec.NS delegates %s to other name servers, so its other records belong there: "+
			"remove them, or make an entry of its own for another name", shown)
	case !o.isGlue(servers):
		return stale("spec.NS would delegate %s, which has records of the older entry %s; "+
			"remove the name from one of the two", shown, o.by)
	case o.below > t.countGlue(o.Name, servers):
		return stale("spec.NS would delegate %s, below which there are names of the older %s; "+
			"delegate another name, or remove those", shown, o.first)
	}
	return nil
}

// countGlue counts the name servers that have addresses below a delegated name.
func (t *nameTree) countGlue(name string, servers []string) int {
	n := 0
	slices.Sort(servers)
	for _, s := range slices.Compact(servers) {
		o := t.owners[s]
		if o == nil || s == name || !mesh.InDomain(s, name) {
			continue
		}
		if o.apex == nil && len(o.Addresses) > 0 && len(o.NS) == 0 && o.isGlue(servers) {
			n++
		}
	}
	return n
}
