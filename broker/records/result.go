package records

// The result: what Build makes, and DNS and the statuses of the objects are made from.

import (
	"fmt"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	coredns "github.com/mandelsoft/kubelink/broker/api/coredns/v1alpha1"
)

// Result is what the objects say about the global zones that are served here.
type Result struct {
	Zones       []Zone // by name
	Entries     map[types.NamespacedName]Report
	HostedZones map[types.NamespacedName]Report
}

// Zone has the names of one global zone. All names are fully qualified and in lower case.
type Zone struct {
	Name   string  // svc.global.<domain>
	Apexes []Apex  // of the zone itself, and of the zones that HostedZones cut out of it, by name
	Owners []Owner // names that have records, by name
}

// Apex is the top of a zone: what its SOA record says.
type Apex struct {
	Name                            string
	Mbox                            string // mail address as a domain name, in presentation form; empty: the default
	Refresh, Retry, Expire, Minimum uint32 // seconds
}

// Owner is a name and its records. A CNAME stands alone. NS records delegate the name and all below it, unless it is an
// apex; beside them and below are only the addresses of their name servers.
type Owner struct {
	Name      string // the first label may be *
	Addresses []Address
	TXT       []string
	CNAME     string
	NS        []string
	SRV       []SRV
	Fixed     bool // addresses stay in their order
}

// hasRecords tells whether the name has records of any type.
func (o *Owner) hasRecords() bool {
	return len(o.Addresses) > 0 || len(o.NS) > 0 || o.CNAME != "" || len(o.TXT) > 0 || len(o.SRV) > 0
}

// isGlue tells whether the records may stay in a delegation to the servers: none but NS and, if it is the name of one
// of the servers, addresses.
func (o *Owner) isGlue(servers []string) bool {
	if o.CNAME != "" || len(o.TXT) > 0 || len(o.SRV) > 0 {
		return false
	}
	return len(o.Addresses) == 0 || slices.Contains(servers, o.Name)
}

// Address is the data of an A or AAAA record.
type Address struct {
	netip.Addr
	AnyLink bool // it is answered in any state of the link to it
}

// SRV is the data of an SRV record.
type SRV struct {
	Priority, Weight, Port uint16
	Target                 string
}

// Report is what is to be said of an object.
type Report struct {
	State    coredns.State
	Message  string   // what is wrong, or good to know; one line
	RootZone string   // name of the HostedZone at the root
	Names    []string // that are served, without final dot
	// Foreign: it lies outside of all zones that are served here. Another server may have it, and speak for it.
	Foreign bool
}

// problem keeps a name, or a whole object, from being served.
type problem struct {
	state   coredns.State // Invalid, Stale
	message string        // one line: field, value and remedy
}

func invalid(format string, args ...any) *problem {
	return &problem{coredns.StateInvalid, fmt.Sprintf(format, args...)}
}

func stale(format string, args ...any) *problem {
	return &problem{coredns.StateStale, fmt.Sprintf(format, args...)}
}

// addProblem reports a problem. The first message stays, and the worst state.
func (r *Report) addProblem(p *problem) {
	if r.State == coredns.StateOk {
		r.Message = p.message
	}
	if r.State != coredns.StateInvalid {
		r.State = p.state
	}
}
