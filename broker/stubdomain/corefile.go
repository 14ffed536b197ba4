package stubdomain

// What the Corefile of the cluster's DNS says, and whether our server blocks would do good there.

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/coredns/caddy/caddyfile"
)

// Corefile is what there is to know of the Corefile of a cluster's DNS. It does not show what the Corefile imports.
type Corefile struct {
	port    string   // of the first server block for the root, which receives the queries of pods
	reload  bool     // CoreDNS notices changes by itself
	imports []string // patterns of files that are imported beside the server blocks,
	nested  []string // and within them
	zones   []string // zone:port of the server blocks, without the root
}

// ReadCorefile looks at the tokens of a Corefile only, so it reads any text. A parser would import what the Corefile
// imports, or, as that of corefile-migration, panic on a brace in the wrong place.
func ReadCorefile(text string) Corefile {
	r := corefileReader{Dispenser: caddyfile.NewDispenser(CorefileKey, strings.NewReader(text)),
		snippets: map[string][]string{}}
	for r.Next() {
		r.readToken()
	}
	r.port = cmp.Or(r.port, "53")
	r.imports, r.nested = r.expandSnippets(r.imports), r.expandSnippets(r.nested)
	return r.Corefile
}

// corefileReader reads the tokens of a Corefile.
type corefileReader struct {
	caddyfile.Dispenser
	Corefile
	depth, line int
	snippet     string              // that is being read; empty: none
	snippets    map[string][]string // what they import, by name
}

func (r *corefileReader) readToken() {
	token, first := r.Val(), r.Line() != r.line
	r.line = r.Line()
	switch {
	case token == "{":
		r.depth++
	case token == "}":
		if r.depth--; r.depth == 0 {
			r.snippet = ""
		}
	case token == "reload" && first && r.depth <= 1: // deeper it is an option of another plugin
		r.reload = !r.NextArg() || !isZero(r.Val())
	case token == "import" && first:
		if r.NextArg() {
			r.addImport(r.Val())
		}
	case r.depth == 0 && strings.HasPrefix(token, "(") && strings.HasSuffix(token, ")"):
		r.snippet = strings.TrimSuffix(token[1:], ")")
		r.snippets[r.snippet] = nil
	case r.depth == 0:
		r.addZone(strings.TrimSuffix(token, ","))
	}
}

// isZero tells whether the interval of reload is none.
func isZero(interval string) bool {
	d, err := time.ParseDuration(interval)
	return err == nil && d == 0
}

func (r *corefileReader) addImport(pattern string) {
	switch {
	case r.depth == 0:
		r.imports = append(r.imports, pattern)
	case r.snippet != "":
		r.snippets[r.snippet] = append(r.snippets[r.snippet], pattern)
	default:
		r.nested = append(r.nested, pattern)
	}
}

// expandSnippets replaces the names of snippets by what these import.
func (r *corefileReader) expandSnippets(patterns []string) (files []string) {
	for _, p := range patterns {
		if imports, ok := r.snippets[p]; ok {
			files = append(files, imports...)
		} else {
			files = append(files, p)
		}
	}
	return files
}

// addZone notes a zone of a server block for DNS over UDP and TCP.
func (r *corefileReader) addZone(zone string) {
	zone = strings.ToLower(strings.TrimPrefix(zone, "dns://"))
	if strings.Contains(zone, "://") {
		return
	}
	name, port := zone, "53"
	if i := strings.LastIndexByte(zone, ':'); i >= 0 {
		name, port = zone[:i], zone[i+1:]
	}
	switch name = strings.TrimSuffix(name, "."); {
	case name != "":
		r.zones = append(r.zones, name+":"+port)
	case zone != "" && r.port == "":
		r.port = port
	}
}

// matchesKey tells whether a pattern of an import includes our key of the ConfigMap.
func matchesKey(pattern string) bool {
	ok, err := path.Match(path.Base(pattern), BlocksKey)
	return ok && err == nil
}

// corefileProblem is why our server blocks would have no effect, and a remedy; one line, empty: they will have one.
type corefileProblem struct {
	text   string
	broken bool // with them, CoreDNS could not even start
}

const corefileName = "the Corefile in ConfigMap " + Namespace + "/" + CorefileMap

// checkImports tells what is wrong with the imports.
func (c *Corefile) checkImports() corefileProblem {
	matching := slices.DeleteFunc(slices.Clone(c.imports), func(p string) bool { return !matchesKey(p) })
	nested := slices.IndexFunc(c.nested, matchesKey)
	switch {
	case nested >= 0:
		return corefileProblem{fmt.Sprintf("%s imports %.80q within a server block, where key %s of %s would break it: "+
			"import *.override there, and *.server beside the server blocks",
			corefileName, c.nested[nested], BlocksKey, customMap), true}
	case len(matching) > 1:
		return corefileProblem{fmt.Sprintf("%s imports key %s of %s twice, by %.80q and %.80q, which would break it: "+
			"remove one of them", corefileName, BlocksKey, customMap, matching[0], matching[1]), true}
	case len(c.imports) == 0:
		return corefileProblem{text: corefileName + " imports nothing, " + customMap +
			" has no effect: add the server blocks to that Corefile; the log has them"}
	case len(matching) == 0:
		return corefileProblem{text: fmt.Sprintf("%s imports %.80q, which does not include key %s of %s: "+
			"import *.server from there, too, or add the server blocks to that Corefile; the log has them",
			corefileName, strings.Join(c.imports, " "), BlocksKey, customMap)}
	}
	return corefileProblem{}
}

// ImportsBlocks tells whether server blocks in the key BlocksKey of the ConfigMap come into effect.
func (c *Corefile) ImportsBlocks() bool { return c.checkImports().text == "" }

// Reloads tells whether CoreDNS notices changes by itself.
func (c *Corefile) Reloads() bool { return c.reload }

// AddBlocks returns the server blocks of stub domains, as text for this Corefile. The note is about the first domain
// that has one already, and gets none: CoreDNS starts with no domain twice.
func (c *Corefile) AddBlocks(stubs []Stub) (text, note string) {
	stubs, note = c.dropServed(stubs, nil)
	var b strings.Builder
	for _, s := range stubs {
		s.writeBlock(&b, c.port)
	}
	return b.String(), note
}

// dropServed returns the stub domains that no other server block serves: CoreDNS starts with no domain twice. custom
// has the other files that the Corefile may import: the keys of the ConfigMap. The note is about the first domain that
// was dropped.
func (c *Corefile) dropServed(stubs []Stub, custom map[string]string) (rest []Stub, note string) {
	served := map[string]string{} // where, by zone
	for file, text := range custom {
		if path.Ext(file) != path.Ext(BlocksKey) || file == BlocksKey {
			continue
		}
		for _, z := range ReadCorefile(text).zones {
			served[z] = "key " + file + " of " + customMap
		}
	}
	for _, z := range c.zones {
		served[z] = corefileName
	}
	for _, s := range stubs {
		where := served[strings.ToLower(s.Domain)+":"+c.port]
		switch {
		case where == "":
			rest = append(rest, s)
		case note == "":
			note = fmt.Sprintf("%s has a server block for %s, which stays in force: remove it to have one of kubelink's",
				where, s.Domain)
		}
	}
	return rest, note
}
