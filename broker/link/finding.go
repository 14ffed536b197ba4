package link

// What keeps packets of links from passing on this node.

import (
	"fmt"
	"strings"
)

// Finding is something on the node that keeps packets from passing between pods and links.
type Finding struct {
	Link   string // the peer that packets do not reach, or do not come from; empty: all peers
	Reason string // the kind, in the form of the reason of a condition
	Text   string // what is wrong, on one line
	Remedy string // what to do, on one line
}

// String is the finding on one line.
func (f Finding) String() string {
	text := f.Text + ": " + f.Remedy
	if f.Link != "" {
		text = "link " + f.Link + ": " + text
	}
	return text
}

// Findings are all findings of one look at the node.
type Findings []Finding

// maxFindingsText bounds the text of many findings, in bytes: it stands in a status.
const maxFindingsText = 800

// String is a line that has as many of them as fit, the first in any case.
func (f Findings) String() string {
	var text strings.Builder
	for i, one := range f {
		next := one.String()
		if i > 0 && text.Len()+len(next) > maxFindingsText {
			fmt.Fprintf(&text, "; and %d more", len(f)-i)
			break
		}
		if i > 0 {
			text.WriteString("; ")
		}
		text.WriteString(next)
	}
	return text.String()
}

// Select returns the ones about the node, and the ones about links that the function selects.
func (f Findings) Select(selected func(link string) bool) (some Findings) {
	for _, one := range f {
		if one.Link == "" || selected(one.Link) {
			some = append(some, one)
		}
	}
	return some
}

// About returns the ones about the node, and the ones about one peer.
func (f Findings) About(peer string) Findings {
	return f.Select(func(link string) bool { return link == peer })
}
