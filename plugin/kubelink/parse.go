package kubelink

// The parser of a stanza. Each property of the table in properties.go reads its own values, and the checks
// in combine.go refuse properties that do not fit together. Every error says file and line, property and
// value, and what would be right.

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"

	"github.com/mandelsoft/kubelink/broker"
)

// line is a place in a Corefile.
type line struct {
	file string
	no   int
}

// parser reads one stanza.
type parser struct {
	c      *caddy.Controller
	config broker.Config
	lines  map[string]line // by property that is given; that of the stanza itself is under the plugin's name
}

func newParser(c *caddy.Controller, defaults broker.Config) *parser {
	return &parser{
		c:      c,
		config: defaults,
		lines:  map[string]line{pluginName: {c.File(), c.Line()}},
	}
}

// parseStanza reads all properties of the stanza.
func (p *parser) parseStanza() error {
	if args := p.c.RemainingArgs(); len(args) > 0 {
		return p.c.Errf("%s takes no arguments, but %q is given: the zones come from the KubeLink objects and mesh-domain",
			pluginName, strings.Join(args, " "))
	}
	for p.c.NextBlock() {
		if err := p.parseProperty(); err != nil {
			return err
		}
	}
	return nil
}

// parseProperty reads the property at which caddy's controller stands.
func (p *parser) parseProperty() error {
	key, at := p.c.Val(), line{p.c.File(), p.c.Line()}
	if key == "{" || key == "}" {
		return p.c.Errf("unexpected %q: one property per line", key)
	}
	prop, known := properties[key]
	if !known {
		return p.c.Errf("unknown property %q%s", key, suggestProperty(key))
	}
	if before, twice := p.lines[key]; twice {
		return p.c.Errf("%s is given twice, before at %s:%d: keep one", key, before.file, before.no)
	}
	p.lines[key] = at
	values := p.c.RemainingArgs()
	given := strings.Join(values, " ")
	switch {
	case len(values) < prop.minValues && prop.list != "":
		return p.errorAt(key, "%s has no value: give a list such as %s, without blanks", key, prop.list)
	case len(values) < prop.minValues:
		return p.errorAt(key, "%s has no value", key)
	case slices.Contains(values, ""):
		return p.errorAt(key, "%s has an empty value: if it is a variable such as {$NODE_IP}, set it in the environment", key)
	case len(values) > prop.maxValues && prop.maxValues == 0:
		return p.errorAt(key, "%s takes no value, but %q is given: its presence switches it on", key, given)
	case len(values) > prop.maxValues && prop.list != "":
		return p.errorAt(key, "%s takes one list without blanks, such as %s, but %q are given", key, prop.list, given)
	case len(values) > prop.maxValues:
		allowed := map[int]string{1: "one value", 2: "two values at most"}[prop.maxValues]
		return p.errorAt(key, "%s takes %s, but %q are given", key, allowed, given)
	}
	if err := prop.set(p, values); err != nil {
		return p.errorAt(key, "%s: %v", strings.Join(append([]string{key}, values...), " "), err)
	}
	return nil
}

// isGiven tells whether the stanza has the property.
func (p *parser) isGiven(prop string) bool {
	_, ok := p.lines[prop]
	return ok
}

// dropProperty takes a property for not given, and warns that it has no effect.
func (p *parser) dropProperty(prop, why string) {
	if l, given := p.lines[prop]; given {
		warnNoEffect(l, prop, why)
		delete(p.lines, prop)
	}
}

// warnNoEffect warns that a property has no effect.
func warnNoEffect(at line, prop, why string) {
	log.Warn(prop+" has no effect and can be removed: "+why, "place", at.String())
}

// String is the place as errors name it.
func (l line) String() string { return fmt.Sprintf("%s:%d", l.file, l.no) }

// errorAt is an error in the form of caddy's errors, at the place of a property.
func (p *parser) errorAt(prop, format string, args ...any) error {
	l := p.lines[prop]
	return fmt.Errorf("%s:%d - Error during parsing: %s", l.file, l.no, fmt.Sprintf(format, args...))
}

// resolvePath is the path of a file: a relative name starts at the root of the server block.
func (p *parser) resolvePath(v string) string {
	if root := dnsserver.GetConfig(p.c).Root; !filepath.IsAbs(v) && root != "" {
		return filepath.Join(root, v)
	}
	return v
}

// existingFile is the path of a file that must exist.
func (p *parser) existingFile(v string) (string, error) {
	v = p.resolvePath(v)
	info, err := os.Stat(v)
	if err != nil {
		return "", err
	}
	if info.IsDir() {
		return "", errors.New("this is a directory, not a file")
	}
	return v, nil
}

// suggestProperty names the known property that is nearest to an unknown one, if any is near.
func suggestProperty(key string) string {
	best, distance := "", 1+max(2, len(key)/3)
	for known := range properties {
		if d := editDistance(key, known); d < distance || d == distance && best != "" && known < best {
			best, distance = known, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(": did you mean %q?", best)
}

// editDistance is the Levenshtein distance: the number of single characters to insert, delete or replace.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
