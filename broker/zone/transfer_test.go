package zone

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// delegated has a zone whose name server is in it.
const delegated = names + `
team NS ns.team
ns.team A 10.0.0.10
ns.team AAAA fd00::10
`

func TestGlobalTransfer(t *testing.T) {
	table := globalTable(t, globalNames(t, delegated, "", ""), links{})
	defer table.Close()
	const z = "svc.global.kubelink."
	for _, c := range []struct {
		zone   string
		serial uint32
		n      int // records, or -1: no such zone
	}{
		{z, 0, 39}, {z, 6, 39}, {z, 7, 1}, {z, 8, 1}, {z, 1<<32 - 1, 39}, {"team." + z, 0, 10}, {"short." + z, 0, 3},
		{"web." + z, 0, -1}, {"nobody." + z, 0, -1}, {"kubelink.", 0, -1}, {"example.com.", 0, -1},
	} {
		rrs, ok := table.Transfer(c.zone, c.serial)
		if ok != (c.n >= 0) || ok && len(rrs) != c.n {
			t.Errorf("%s %d: %d records, %v", c.zone, c.serial, len(rrs), ok)
			for _, rr := range rrs {
				t.Log(rr)
			}
			continue
		}
		for i, rr := range rrs {
			if _, soa := rr.(*dns.SOA); soa != (i == 0 || i == len(rrs)-1) || soa && rr.Header().Name != c.zone ||
				!dns.IsSubDomain(c.zone, rr.Header().Name) {
				t.Errorf("%s: %v", c.zone, rr)
			}
		}
	}
	var names, glue []string
	rrs, _ := table.Transfer(z, 0)
	for _, rr := range rrs {
		if ns, ok := rr.(*dns.NS); ok && ns.Hdr.Name != z {
			names = append(names, strings.TrimSuffix(ns.Hdr.Name, "."+z))
		}
		if rr.Header().Name == "ns.team."+z {
			glue = append(glue, dns.Field(rr, 1))
		}
	}
	if slices.Sort(names); !slices.Equal(names, []string{"short", "sub", "sub", "sub", "team", "team", "team"}) {
		t.Errorf("delegated %q", names)
	}
	if fmt.Sprint(glue) != "[10.0.0.10 fd00::10]" {
		t.Errorf("glue %v", glue)
	}
}

// A zone gets a new serial when what is transferred of it has changed, and not with other zones.
func TestGlobalSerials(t *testing.T) {
	const z = "svc.global.kubelink."
	before := NewGlobal("kubelink.", globalNames(t, delegated, "", ""), 7, options.NSAddresses, nil)
	for _, c := range []struct {
		what, from, to string
		changed        string // zones
	}{
		{"nothing", "", "", ""},
		{"address", "web A 10.0.0.1", "web A 10.0.0.99", z},
		{"address in a zone", "db.team A 10.0.0.9", "db.team A 10.0.0.99", "team." + z},
		{"address at the top of a zone", "team A 10.0.0.8", "team A 10.0.0.99", "team." + z},
		{"one more", "team A 10.0.0.8", "team A 10.0.0.8\nteam A 10.0.0.99", "team." + z},
		{"other type", "db.team A 10.0.0.9", "db.team TXT 10.0.0.9", "team." + z},
		{"text", "hello world", "hello", z},
		{"alias", "alias CNAME web", "alias CNAME a.deep", z},
		{"SRV", "_ldap._tcp.dir SRV 0 5", "_ldap._tcp.dir SRV 0 6", z},
		{"spelling", "out CNAME www.example.com.", "out CNAME WWW.example.com.", ""},
		{"name server of a zone", "team NS ns2", "team NS insub", z + " team." + z},
		{"name server of a delegation", "sub NS ns.example.com.", "sub NS ns.example.org.", z},
		{"new name", "web A", "new A 10.0.0.99\nweb A", z},
		{"new name in a zone", "web A", "new.team A 10.0.0.99\nweb A", "team." + z},
		{"name is gone", "*.self CNAME a.self", "", z},
		{"name is gone from a zone", "db.team A 10.0.0.9", "", "team." + z},
		{"address of a zone's name server", "ns.team A 10.0.0.10", "ns.team A 10.0.0.99", z + " team." + z},
		{"minimum of a zone", "7 1 2 3 3600", "7 1 2 3 60", "team." + z},
		{"zone within", "db.team A", "db.team SOA ns.dns.kubelink. hostmaster.kubelink. 7 1 2 3 0\ndb.team A",
			"db.team." + z + " team." + z},
		{"zone is gone", "short SOA ns.dns.kubelink. hostmaster.kubelink. 7 1 2 3 0", "", z},
		{"name instead of a zone", "short SOA ns.dns.kubelink. hostmaster.kubelink. 7 1 2 3 0", "short A 10.0.0.99", z},
		{"zone instead of a name", "a.deep A", "deep SOA ns.dns.kubelink. hostmaster.kubelink. 7 1 2 3 0\na.deep A",
			"deep." + z + " " + z},
	} {
		text := strings.Replace(delegated, c.from, c.to, 1)
		if text == delegated && c.changed != "" {
			t.Fatal("no such names:", c.from)
		}
		now := NewGlobal("kubelink.", globalNames(t, text, "", ""), 8, options.NSAddresses, before)
		var changed []string
		for _, o := range now.sorted {
			if !o.apex {
				continue
			}
			serial := o.zone.soa[0].(*dns.SOA).Serial
			if serial == 8 {
				changed = append(changed, o.name)
			}
			// Transferred is what belongs to the serial.
			theirs, known := before.Transfer(o.name, 0)
			rrs, _ := now.Transfer(o.name, 0)
			same := slices.EqualFunc(theirs, rrs, func(a, b dns.RR) bool { return strings.EqualFold(a.String(), b.String()) })
			if same != (serial == 7) || serial == 7 && !known {
				t.Errorf("%s: serial %d, same %v:\n%v\n%v", c.what, serial, same, theirs, rrs)
			}
		}
		if slices.Sort(changed); strings.Join(changed, " ") != c.changed {
			t.Errorf("%s: changed %q, want %q", c.what, changed, c.changed)
		}
	}
	// One that has changed again before there is another serial gets it with the next one.
	g := before
	for n, c := range []struct {
		text         string
		serial, want uint32
		early        bool
	}{
		{"a A 10.0.0.1", 8, 8, false}, {"a A 10.0.0.2", 8, 8, true}, {"a A 10.0.0.2", 7, 8, true},
		{"a A 10.0.0.2", 9, 9, false}, {"a A 10.0.0.2", 10, 9, false},
		{"a A 10.0.0.3", 1<<31 + 8, 1<<31 + 8, false}, {"a A 10.0.0.4", 1<<32 - 1, 1<<32 - 1, false},
		{"a A 10.0.0.5", 1, 1, false}, {"a A 10.0.0.6", 1<<32 - 1, 1, true},
	} {
		g = NewGlobal("kubelink.", globalNames(t,
			strings.Replace(delegated, "db.team A 10.0.0.9", strings.Replace(c.text, "a ", "a.team ", 1), 1), "", ""), c.serial,
			options.NSAddresses, g)
		serial := g.owners["team."+z].zone.soa[0].(*dns.SOA).Serial
		if serial != c.want || g.SerialPending() != c.early || g.owners[z].zone.soa[0].(*dns.SOA).Serial != 7 {
			t.Errorf("%d: serial %d, early %v", n, serial, g.SerialPending())
		}
	}
	if g := NewGlobal("kubelink.", globalNames(t, delegated, "", ""), 8, options.NSAddresses[:1],
		NoGlobal(z, "not known")); g.owners[z].zone.soa[0].(*dns.SOA).Serial != 8 {
		t.Error("a zone has the serial of one that was not known")
	}
}
